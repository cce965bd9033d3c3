//! An outage of the upstream and its end: while it is away it is asked now and then and no more, and when it is back
//! mail goes at a bounded pace, each message once; what it puts off comes back spread out.

mod support;

use std::time::{Duration, Instant};

use support::relay::Relay;
use support::service::Service;
use support::upstream::{Ending, Upstream};
use support::{http, wait};

const PASSWORD: &str = "upstream-sesame-4711";
const CONNECTIONS: usize = 6;

fn mailer(upstream: &Upstream) -> Service {
    let service = upstream.upstream_of(Service::mailer(), PASSWORD).set("smtp_queue_min_free", 0);
    service.set("smtp_relay_connections", CONNECTIONS)
}

fn send(relay: &Relay, count: usize) {
    let mut client = relay.client();
    for number in 0..count {
        client.send_token(&format!("token-{number}")).expect("it is taken");
    }
}

#[test]
fn while_it_is_away_it_is_probed_now_and_then_and_when_it_is_back_connections_stay_within_their_limit() {
    const MESSAGES: usize = 500;
    let upstream = Upstream::start(PASSWORD);
    upstream.set(|behaviour| behaviour.greeting = Some("421 4.3.2 down for maintenance".to_owned()));
    let relay = Relay::start(&mailer(&upstream));
    let began = Instant::now();
    send(&relay, MESSAGES);
    wait::until_true("some seconds have passed", || began.elapsed() > Duration::from_secs(4));
    let probes = upstream.heard().len();
    // The wait between two begins with smtp_retry's first, a second here, however much waits.
    assert!((1..=began.elapsed().as_secs() as usize + 2).contains(&probes), "{probes} connections");
    assert_eq!(relay.status()["queue"]["messages"], MESSAGES);

    upstream.set(|behaviour| {
        behaviour.greeting = None;
        behaviour.final_delay = Duration::from_millis(10);
    });
    let mut most = 0;
    wait::until_true("all have arrived", || {
        most = most.max(upstream.connections());
        upstream.arrived() == MESSAGES
    });
    relay.wait_for_empty_queue();
    assert!((2..=CONNECTIONS).contains(&most), "{most} connections at once");
    assert!(upstream.ledger().values().all(|count| *count == 1), "each arrives once");
}

#[test]
fn what_was_put_off_together_does_not_come_back_together() {
    const MESSAGES: usize = 200;
    let upstream = Upstream::start(PASSWORD);
    upstream.set(|behaviour| {
        behaviour.recipients.insert("someone@example.test".into(), "450 4.2.0 not now".into());
    });
    let relay = Relay::start(&mailer(&upstream).set("smtp_retry", "10m..30m"));
    send(&relay, MESSAGES);
    wait::until_true("all are deferred", || relay.status()["queue"]["deferred"] == MESSAGES);
    let seconds = |time: &serde_json::Value| {
        let time: jiff::Timestamp = time.as_str().expect("a time").parse().expect("a time");
        time.as_second()
    };
    let mut next: Vec<i64> =
        relay.queue().iter().map(|item| seconds(&item["recipients"][0]["next_attempt"])).collect();
    next.sort_unstable();
    // Ten minutes, a fifth less or more: four minutes in all.
    let spread = next[MESSAGES - 1] - next[0];
    assert!((150..=300).contains(&spread), "within {spread} s");
    let most = next.iter().map(|at| next.iter().filter(|other| (*at..at + 24).contains(other)).count()).max();
    assert!(most < Some(MESSAGES / 4), "{most:?} of {MESSAGES} within a tenth of that");
}

#[test]
fn after_a_lost_final_reply_the_next_try_waits_and_carries_the_same_names_and_people_are_told() {
    let upstream = Upstream::start(PASSWORD);
    upstream.set(|behaviour| behaviour.ending = Ending::DropBeforeReply);
    let relay = Relay::start(&mailer(&upstream).set("smtp_retry", "1s..4s"));
    let said = relay.client().send_token("perhaps").expect("it is taken");
    let id = said.rsplit(' ').next().expect("an id").to_owned();
    wait::until_true("it was tried", || upstream.arrivals().len() == 1);
    upstream.set(|behaviour| behaviour.ending = Ending::Reply);
    relay.wait_for_empty_queue();

    let arrivals = upstream.arrivals();
    let waited = arrivals[1].at - arrivals[0].at;
    // The longest wait of smtp_retry, because that is less than five minutes; an ordinary first one is a second.
    assert!(waited >= Duration::from_millis(3_900), "{waited:?}");
    let messages = upstream.messages();
    assert_eq!(messages.len(), 2, "it may arrive twice");
    assert_eq!(messages[0], messages[1], "and then whoever gets both can tell");
    let text = String::from_utf8_lossy(&messages[0]).into_owned();
    assert!(
        text.contains("Message-ID: <perhaps@client.test>") && text.contains(&format!("id {id}")),
        "{text}"
    );

    let events = relay.told(&["logs", "--json", &id]);
    let uncertain: Vec<&str> = events.lines().filter(|line| line.contains("\"uncertain\":true")).collect();
    assert_eq!(uncertain.len(), 1, "{events}");
    assert!(uncertain[0].contains("\"event\":\"deferred\""), "{events}");
    assert!(relay.log().contains("uncertain=true"), "{}", relay.log());
    let metrics = http::get(relay.admin, "/metrics").text();
    assert!(metrics.contains("outpost_deliveries_uncertain_total{upstream=\"localhost\"} 1"), "{metrics}");
}

#[test]
fn senders_are_slowed_before_the_bound_is_reached_and_never_without_one() {
    const BOUND: usize = 50;
    // The six behind the 42nd of 50 wait 1.39 s together at least, whatever chance says.
    const TOGETHER: Duration = Duration::from_millis(1_390);
    let upstream = Upstream::stopped(PASSWORD);
    let fill = |relay: &Relay| {
        let mut client = relay.client();
        let mut took = |tokens: std::ops::Range<usize>| {
            let began = Instant::now();
            for number in tokens {
                client.send_token(&format!("token-{number}")).expect("it is taken");
            }
            began.elapsed()
        };
        took(0..42);
        took(42..BOUND - 2)
    };
    let post = |relay: &Relay| {
        let began = Instant::now();
        let path = "/api/v1/messages?from=app@sender.example&to=user@rcpt.example";
        let fields = [("Content-Type", "message/rfc822")];
        (http::send("POST", relay.admin, path, &fields, b"Subject: x\r\n\r\nx\r\n").status, began.elapsed())
    };

    let relay = Relay::start(&mailer(&upstream).set("smtp_queue_max_messages", BOUND));
    let slowed = fill(&relay);
    for _ in 0..2 {
        let (status, took) = post(&relay);
        assert!(status == 202 && took > Duration::from_millis(600), "{status} behind {took:?}");
    }
    assert!(slowed > TOGETHER, "{slowed:?}");
    assert!(relay.log().contains("new mail is taken more slowly"), "{}", relay.log());
    assert_eq!(post(&relay).0, 503);
    let refused = relay.client().send_token("one-too-many").expect_err("there is no room").to_string();
    assert!(refused.contains("452"), "{refused}");

    let relay = Relay::start(&mailer(&upstream));
    fill(&relay);
    assert_eq!(post(&relay).0, 202);
    assert!(!relay.log().contains("more slowly"), "{}", relay.log());
}
