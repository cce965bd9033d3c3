//! One sender brings far more mail than the upstream takes for the time being; nobody else's waits for it.

mod support;

use std::thread;
use std::time::{Duration, Instant};

use support::client::message_with;
use support::relay::Relay;
use support::service::Service;
use support::upstream::{USER, Upstream};
use support::wait;

const PASSWORD: &str = "upstream-sesame-4711";
const CONNECTIONS: usize = 2;
/// More than the window in memory holds.
const BACKLOG: usize = 1_600;
/// What may go before a message of another sender: what is under way, and a turn each.
const BEFORE: usize = 12;

fn slow(behaviour: &mut support::upstream::Behaviour) {
    behaviour.final_delay = Duration::from_millis(40);
}

/// One app hands in a backlog.
fn newsletter(relay: &Relay) {
    thread::scope(|scope| {
        for session in 0..8 {
            scope.spawn(move || {
                let mut client = relay.client();
                for number in 0..BACKLOG / 8 {
                    let content = message_with(&format!("news-{session}-{number}"));
                    client.send("news@bulk.test", &["someone@example.test"], &content).expect("it is taken");
                }
            });
        }
    });
}

/// The upstream begins to take what was handed in before; gives how much it has taken.
fn begin(upstream: &mut Upstream) -> usize {
    upstream.up();
    wait::until("the backlog has begun to leave", || Some(upstream.arrived()).filter(|arrived| *arrived > 0))
}

fn shop(relay: &Relay, token: &str, recipient: &str) {
    let mut client = relay.client();
    client.send("shop@shop.test", &[recipient], &message_with(token)).expect("it is taken");
}

/// How many messages arrive before this one, behind so many.
fn passed_by(upstream: &Upstream, from: usize, token: &str) -> usize {
    let needle = token.as_bytes();
    let carries = |mail: &Vec<u8>| mail.windows(needle.len()).any(|some| some == needle);
    wait::until(token, || upstream.messages().iter().position(carries)).saturating_sub(from)
}

#[test]
fn a_single_letter_passes_by_anothers_backlog_when_it_comes_after_a_restart_and_when_it_is_due_again() {
    let mut upstream = Upstream::stopped(PASSWORD);
    upstream.set(slow);
    let service = upstream.upstream_of(Service::mailer(), PASSWORD).set("smtp_queue_min_free", 0);
    let mut relay = Relay::start(&service.set("smtp_relay_connections", CONNECTIONS));
    newsletter(&relay);
    begin(&mut upstream);
    shop(&relay, "order-1", "buyer@example.test");
    let from = upstream.arrived();
    assert!(passed_by(&upstream, from, "order-1") <= BEFORE);

    // Refused for now, it is due again in a second or two.
    upstream.set(|behaviour| {
        behaviour.recipients.insert("greylisted@example.test".into(), "450 4.2.0 not now".into());
    });
    shop(&relay, "order-2", "greylisted@example.test");
    wait::until_true("it is deferred", || {
        let told = relay.told(&["queue", "list", "--sender", "shop@shop.test", "--state", "deferred"]);
        told.contains("greylisted@example.test")
    });
    upstream.set(|behaviour| behaviour.recipients.clear());
    let from = upstream.messages().len();
    // Two seconds and a fifth of waiting, and then its turn.
    let waited = (2_600 / 40) * CONNECTIONS;
    assert!(passed_by(&upstream, from, "order-2") <= waited + BEFORE);

    // Nothing is delivered meanwhile, so that it is found in the store.
    upstream.set(|behaviour| behaviour.final_delay = Duration::from_secs(30));
    shop(&relay, "order-3", "buyer@example.test");
    relay.kill9();
    upstream.set(slow);
    let from = upstream.messages().len();
    relay.up();
    assert!(passed_by(&upstream, from, "order-3") <= BEFORE);
    assert!(upstream.arrived() < BACKLOG, "the backlog was too short for this test");
}

#[test]
fn an_urgent_message_overtakes_its_own_senders_backlog() {
    const LETTERS: usize = 400;
    let mut upstream = Upstream::stopped(PASSWORD);
    upstream.set(slow);
    let service = upstream.upstream_of(Service::mailer(), PASSWORD).set("smtp_queue_min_free", 0);
    let relay = Relay::start(&service.set("smtp_relay_connections", CONNECTIONS));
    let mut client = relay.client();
    for number in 0..LETTERS {
        let content = message_with(&format!("news-{number}"));
        client.send("app@app.test", &["someone@example.test"], &content).expect("it is taken");
    }
    begin(&mut upstream);
    let to = ["<someone@example.test>"];
    client.send_as("<app@app.test> MT-PRIORITY=9", &to, &message_with("reset-1")).expect("it is taken");
    let from = upstream.arrived();
    assert!(passed_by(&upstream, from, "reset-1") <= BEFORE);
    assert!(upstream.arrived() < LETTERS, "the backlog was too short for this test");
}

#[test]
fn what_is_to_be_held_arrives_when_its_time_has_come_and_not_before() {
    let upstream = Upstream::start(PASSWORD);
    let relay = Relay::start(&upstream.upstream_of(Service::mailer(), PASSWORD));
    let (mut client, begin) = (relay.client(), Instant::now());
    let to = ["<someone@example.test>"];
    client.send_as("<app@app.test> HOLDFOR=3", &to, &message_with("held")).expect("it is taken");
    client.send_as("<app@app.test>", &to, &message_with("at once")).expect("it is taken");
    relay.wait_for_empty_queue();
    let arrivals: Vec<_> = upstream.arrivals().iter().map(|arrival| arrival.at - begin).collect();
    let hold = Duration::from_secs(3);
    assert!(arrivals.len() == 2 && arrivals[0] < hold && arrivals[1] >= hold, "{arrivals:?}");
}

#[test]
fn a_slow_upstream_with_a_backlog_holds_up_no_other_upstream_and_no_other_sender() {
    let (mut slow_one, quick_one) = (Upstream::stopped(PASSWORD), Upstream::start(PASSWORD));
    slow_one.set(slow);
    let relays = format!(
        "[{}, {}]",
        entry("slow", &slow_one, ""),
        entry("quick", &quick_one, "recipients: [quick.test], ")
    );
    let service = Service::mailer().set("smtp_relays", relays).set("smtp_queue_min_free", 0);
    let relay = Relay::start(&service);
    newsletter(&relay);
    let from = begin(&mut slow_one);
    shop(&relay, "order-1", "buyer@quick.test");
    passed_by(&quick_one, 0, "order-1");
    assert!(slow_one.arrived() < from + BACKLOG / 4, "it waited for the slow one");
    shop(&relay, "order-2", "buyer@example.test");
    let from = slow_one.arrived();
    // A tray of what others drew may lie before it, its own turn in it.
    assert!(passed_by(&slow_one, from, "order-2") <= 40);
}

fn entry(name: &str, upstream: &Upstream, more: &str) -> String {
    format!(
        "{{name: {name}, server: localhost, port: {}, username: {USER}, password: {PASSWORD}, {more}tls_ca: {}, connections: {CONNECTIONS}, priority: {}}}",
        upstream.port,
        upstream.ca_file().display(),
        if name == "quick" { 1 } else { 2 }
    )
}
