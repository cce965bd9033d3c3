//! Mail whose time is over: told once as expired, reported once, by 4.4.7; also when it only waited, and when nobody
//! is there to be told.

mod support;

use support::client::message_with;
use support::relay::Relay;
use support::service::Service;
use support::upstream::Upstream;
use support::wait;

const PASSWORD: &str = "upstream-sesame-4711";
const TO: &str = "someone@example.test";

fn mailer(upstream: &Upstream) -> Service {
    upstream.upstream_of(Service::mailer(), PASSWORD).set("smtp_queue_lifetime", "3s")
}

/// An upstream that never takes mail for [`TO`], and all else.
fn unwilling() -> Upstream {
    let upstream = Upstream::start(PASSWORD);
    let busy = "450 4.2.1 busy, says the test".to_owned();
    upstream.set(|behaviour| drop(behaviour.recipients.insert(TO.to_owned(), busy)));
    upstream
}

fn send(relay: &Relay, sender: &str, token: &str) {
    relay.client().send(sender, &[TO], &message_with(token)).expect("it is taken");
}

fn expired(relay: &Relay) -> usize {
    relay.told(&["logs", "--event=expired"]).lines().count()
}

/// Each message that arrived is the report on one that has expired, for this address.
fn all_are_reports(upstream: &Upstream, number: usize, to: &str) {
    let messages = upstream.messages();
    assert_eq!(messages.len(), number, "one for each");
    for message in messages {
        let report = String::from_utf8_lossy(&message).into_owned();
        let to = format!("\r\nTo: {to}\r\n");
        for words in ["Action: failed", "Status: 4.4.7", "Final-Recipient: rfc822; someone@example.test", &to]
        {
            assert!(report.contains(words), "{words}: {report}");
        }
    }
}

#[test]
fn what_the_upstream_puts_off_for_ever_expires_once_and_is_reported_once() {
    let upstream = unwilling();
    let relay = Relay::start(&mailer(&upstream));
    send(&relay, "sender@example.test", "busy");
    wait::until_true("it has expired", || expired(&relay) == 1);
    relay.wait_for_empty_queue();
    assert_eq!(expired(&relay), 1);
    all_are_reports(&upstream, 1, "sender@example.test");
    let events = relay.told(&["logs", "--event=expired", "--json"]);
    assert!(events.contains("450 4.2.1 busy"), "with the last answer: {events}");
}

#[test]
fn what_waits_before_a_closed_gate_expires_once_and_is_reported_when_it_opens() {
    let mut upstream = Upstream::stopped(PASSWORD);
    // Few, and it opens soon, for their reports have no more time than all else.
    let service = mailer(&upstream).set("smtp_queue_lifetime", "10s").set("smtp_retry", "1s..1s");
    let relay = Relay::start(&service);
    for number in 0..6 {
        send(&relay, "sender@example.test", &format!("away-{number}"));
    }
    wait::until_true("all have expired", || expired(&relay) >= 6);
    upstream.up();
    relay.wait_for_empty_queue();
    assert_eq!(expired(&relay), 6);
    all_are_reports(&upstream, 6, "sender@example.test");
}

#[test]
fn what_has_no_sender_is_held_or_reported_to_the_postmaster() {
    let upstream = unwilling();
    let relay = Relay::start(&mailer(&upstream));
    send(&relay, "", "nobody");
    wait::until_true("it is held", || relay.status()["queue"]["held"] == 1);
    assert_eq!((expired(&relay), relay.queue().len(), upstream.arrived()), (1, 1, 0));
    let reason = relay.queue()[0]["reason"].as_str().expect("a reason").to_owned();
    assert!(reason.contains("no sender to tell"), "{reason}");

    let upstream = unwilling();
    let relay = Relay::start(&mailer(&upstream).set("smtp_postmaster", "postmaster@relay.test"));
    send(&relay, "", "postmaster");
    wait::until_true("it has expired", || expired(&relay) == 1);
    relay.wait_for_empty_queue();
    all_are_reports(&upstream, 1, "postmaster@relay.test");
}
