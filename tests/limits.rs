//! Limits and several upstreams, end to end: the upstreams' own clocks are the ledger.

mod support;

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{Ipv4Addr, TcpStream};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

use support::client::message_with;
use support::relay::Relay;
use support::service::Service;
use support::upstream::{Arrival, Ending, USER, Upstream};
use support::{http, wait};

const PASSWORD: &str = "upstream-sesame-4711";

/// A relay with several upstreams: name, server, and what else stands in its map.
fn several(upstreams: &[(&str, &Upstream, &str)]) -> Service {
    Service::mailer().set("smtp_relays", relays(upstreams))
}

fn relays(upstreams: &[(&str, &Upstream, &str)]) -> String {
    let items = upstreams.iter().map(|(name, upstream, more)| {
        format!(
            "\n      - {{name: {name}, server: localhost, port: {}, username: {USER}, password: {PASSWORD}, \
             tls_ca: {}{more}}}",
            upstream.port,
            upstream.ca_file().display()
        )
    });
    items.collect()
}

fn send(relay: &Relay, prefix: &str, count: usize) {
    let mut client = relay.client();
    for number in 0..count {
        client.send_token(&format!("{prefix}-{number}")).expect("it is taken");
    }
}

/// The most that came within any stretch of this length.
fn most_within(arrivals: &[Arrival], length: Duration, count: impl Fn(&Arrival) -> usize) -> usize {
    let from = |first: usize| {
        let within = arrivals[first..].iter().take_while(|arrival| arrival.at - arrivals[first].at < length);
        within.map(&count).sum()
    };
    (0..arrivals.len()).map(from).max().unwrap_or(0)
}

/// `used` of the first limit of that window.
fn used(relay: &Relay, window: &str) -> u64 {
    let status = relay.status();
    let limits = status["limits"].as_array().expect("limits").clone();
    let limit = limits.iter().find(|limit| limit["window"] == window).expect("a limit of that window");
    limit["used"].as_u64().expect("a number")
}

#[test]
fn ten_a_second_and_fifty_a_day_are_never_exceeded_though_it_is_killed_again_and_again() {
    let upstream = Upstream::start(PASSWORD);
    upstream.set(|behaviour| behaviour.final_delay = Duration::from_millis(30));
    let service = upstream
        .upstream_of(Service::mailer(), PASSWORD)
        .set("smtp_rate_limit", "[10/second, 50 recipients/day]");
    let mut relay = Relay::start(&service);
    send(&relay, "many", 80);
    for kill_at in [7, 16, 25] {
        wait::until_true("it sends", || upstream.arrived() >= kill_at);
        relay.kill9();
        relay.up();
    }
    wait::until_true("the day is used up", || used(&relay, "day") == 50);
    std::thread::sleep(Duration::from_millis(1_500));

    let arrivals = upstream.arrivals();
    let recipients: usize = arrivals.iter().map(|arrival| arrival.recipients).sum();
    assert!(recipients <= 50, "{recipients} in a day");
    // What was under way at a kill counts, whether it had arrived or not.
    assert!(recipients >= 50 - 3 * 10, "{recipients} in a day");
    let second = most_within(&arrivals, Duration::from_secs(1), |_| 1);
    assert!(second <= 10, "{second} in a second");
    assert!(second >= 8, "a whole second may go at once, and {second} went");

    let status = relay.status();
    assert_eq!(status["upstreams"][0]["state"], "paused");
    let reason = status["upstreams"][0]["reason"].as_str().expect("a reason");
    assert!(reason.contains("50 recipients/day"), "{reason}");
    let item = &relay.queue()[0];
    assert_eq!(
        (item["state"].as_str(), item["recipients"][0]["attempts"].as_u64()),
        (Some("deferred"), Some(0))
    );
    assert!(item["reason"].as_str().is_some_and(|reason| reason.contains("50 recipients/day")), "{item}");
    assert!(item["recipients"][0]["next_attempt"].is_string(), "{item}");
    let metrics = http::get(relay.admin, "/metrics").text();
    for line in ["outpost_rate_limit_used{", "outpost_rate_limit_max{"] {
        assert!(metrics.contains(line), "{metrics}");
    }
    assert!(metrics.contains("window=\"day\",counts=\"recipients\"} 50"), "{metrics}");
    let said = relay.told(&["status"]);
    assert!(said.contains("50 of 50 recipients/day used"), "{said}");
    let published = relay.environment()["DOTCLOUD_MAILER_SMTP_RATE_LIMIT"].clone();
    assert_eq!(published, "10 messages/second,50 recipients/day");
}

#[test]
fn what_left_in_one_flight_with_its_envelope_counts_though_not_a_word_came_back() {
    let upstream = Upstream::start(PASSWORD);
    upstream.set(|behaviour| {
        behaviour.chunking = true;
        behaviour.ending = Ending::DropBeforeAnyReply;
    });
    let service = upstream.upstream_of(Service::mailer(), PASSWORD).set("smtp_rate_limit", "1/day");
    let relay = Relay::start(&service);
    send(&relay, "flight", 3);
    wait::until_true("one has arrived", || upstream.arrived() == 1);
    wait::until_true("all wait for the limit", || {
        let is_limit = |item: &serde_json::Value| {
            item["state"] == "deferred"
                && item["reason"].as_str().is_some_and(|reason| reason.contains("/day"))
        };
        relay.status()["upstreams"][0]["state"] == "paused" && relay.queue().iter().any(is_limit)
    });
    // Longer than the longest wait between two tries.
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!((upstream.arrivals().len(), used(&relay, "day")), (1, 1));
    assert!(relay.log().contains("uncertain"), "{}", relay.log());
}

#[test]
fn a_message_to_more_than_may_be_reached_is_split_and_the_rest_waits() {
    let upstream = Upstream::start(PASSWORD);
    let service =
        upstream.upstream_of(Service::mailer(), PASSWORD).set("smtp_rate_limit", "3 recipients/day");
    let relay = Relay::start(&service);
    let to: Vec<String> = (0..5).map(|number| format!("user{number}@example.test")).collect();
    let to: Vec<&str> = to.iter().map(String::as_str).collect();
    relay.client().send("a@example.test", &to, &message_with("split")).expect("it is taken");
    wait::until_true("three are reached", || used(&relay, "day") == 3);
    wait::until_true("two wait", || {
        let item = &relay.queue()[0];
        let states: Vec<_> =
            item["recipients"].as_array().expect("a list").iter().map(|r| r["state"].clone()).collect();
        states.iter().filter(|state| *state == "delivered").count() == 3
            && states.iter().filter(|state| *state == "deferred").count() == 2
    });
    assert_eq!(upstream.arrivals().iter().map(|arrival| arrival.recipients).collect::<Vec<_>>(), [3]);

    // More is allowed: it goes at once, though nothing had become due.
    relay.home.write(&[&service.set("smtp_rate_limit", "10 recipients/day")]);
    relay.told(&["reload"]);
    relay.wait_for_empty_queue();
    assert_eq!(upstream.arrivals().iter().map(|arrival| arrival.recipients).sum::<usize>(), 5);
}

#[test]
fn what_is_over_the_first_upstreams_limit_goes_by_the_second() {
    let (first, second) = (Upstream::start(PASSWORD), Upstream::start(PASSWORD));
    let relay = Relay::start(&several(&[
        ("first", &first, ", priority: 1, rate_limit: 5/day"),
        ("second", &second, ", priority: 2"),
    ]));
    send(&relay, "over", 12);
    relay.wait_for_empty_queue();
    assert_eq!((first.arrivals().len(), second.arrivals().len()), (5, 7));
    assert!(first.ledger().keys().all(|token| !second.ledger().contains_key(token)), "each once");
    let status = relay.status();
    assert_eq!(
        (&status["upstreams"][0]["state"], &status["upstreams"][1]["state"]),
        (&"paused".into(), &"up".into())
    );
}

#[test]
fn a_quota_that_the_first_upstream_tells_of_sends_the_mail_by_the_second() {
    let (first, second) = (Upstream::start(PASSWORD), Upstream::start(PASSWORD));
    let daily = "550 5.4.5 Daily user sending limit exceeded.";
    first.set(|behaviour| drop(behaviour.senders.insert("sender@example.test".into(), daily.into())));
    let relay =
        Relay::start(&several(&[("first", &first, ", priority: 1"), ("second", &second, ", priority: 2")]));
    send(&relay, "quota", 12);
    relay.wait_for_empty_queue();
    assert_eq!((first.arrivals().len(), second.arrivals().len()), (0, 12));
    assert!(second.ledger().values().all(|count| *count == 1), "{:?}", second.ledger());
    let status = relay.status();
    assert_eq!(
        (&status["upstreams"][0]["state"], &status["upstreams"][1]["state"]),
        (&"paused".into(), &"up".into())
    );
    assert!(!relay.log().contains(" bounced id="), "{}", relay.log());
}

#[test]
fn while_the_first_upstream_is_down_the_second_takes_the_mail_and_gives_it_back() {
    let (mut first, second) = (Upstream::stopped(PASSWORD), Upstream::start(PASSWORD));
    let relay =
        Relay::start(&several(&[("first", &first, ", priority: 1"), ("second", &second, ", priority: 2")]));
    send(&relay, "down", 30);
    relay.wait_for_empty_queue();
    assert_eq!(second.arrivals().len(), 30);

    first.up();
    let mut number = 0;
    wait::until_true("the first is tried again, and takes mail", || {
        number += 1;
        relay.client().send_token(&format!("back-{number}")).expect("it is taken");
        relay.status()["upstreams"][0]["state"] == "up"
    });
    relay.wait_for_empty_queue();
    let before = second.arrivals().len();
    send(&relay, "up", 30);
    relay.wait_for_empty_queue();
    let late = second.arrivals().len() - before;
    assert!(late <= 1, "{late} went by the second although the first is up");
    let all = first.ledger().into_iter().chain(second.ledger());
    assert!(all.into_iter().all(|(_, count)| count == 1), "each once");
}

#[test]
fn mail_for_a_closed_upstream_is_in_nobodys_way_and_goes_when_it_opens() {
    let (mut closed, open) = (Upstream::stopped(PASSWORD), Upstream::start(PASSWORD));
    let relay = Relay::start(&several(&[
        ("closed", &closed, ", recipients: closed.test"),
        ("open", &open, ", recipients: open.test"),
    ]));
    let mut client = relay.client();
    let mut send = |to: &str, token: &str| {
        client.send("a@example.test", &[to], &message_with(token)).expect("it is taken");
    };
    // More than the queue's window holds.
    for number in 0..1_500 {
        send("a@closed.test", &format!("closed-{number}"));
    }
    for number in 0..50 {
        send("a@open.test", &format!("open-{number}"));
    }
    send("a@nowhere.test", "unserved");
    wait::until_true("the open one has its mail", || open.arrived() == 50);
    let status = relay.status();
    assert_eq!(status["upstreams"][0]["state"], "down");
    wait::until_true("all that waits is deferred", || relay.status()["queue"]["deferred"] == 1_501);
    let reason = relay.queue().last().expect("the last")["reason"].as_str().expect("a reason").to_owned();
    assert!(reason.contains("smtp_relays"), "{reason}");

    closed.up();
    wait::until_within(3 * wait::DEADLINE, "the closed one gets its mail", || {
        (closed.arrived() == 1_500).then_some(())
    });
    wait::until_true("one is left, which nobody serves", || relay.status()["queue"]["messages"] == 1);
    assert_eq!(closed.arrivals().len(), 1_500, "each once");
}

#[test]
fn mail_that_no_upstream_serves_is_returned_or_held_when_its_time_is_over() {
    let upstream = Upstream::start(PASSWORD);
    let relays = several(&[("only", &upstream, ", recipients: example.test")]);
    let relay = Relay::start(&relays.set("smtp_queue_lifetime", "3s"));
    for sender in ["a@example.test", ""] {
        relay.client().send(sender, &["b@nowhere.test"], &message_with("unserved")).expect("it is taken");
    }
    wait::until_true("its sender is told", || upstream.arrived() == 1);
    let report = String::from_utf8_lossy(&upstream.messages()[0]).into_owned();
    for words in ["Final-Recipient: rfc822; b@nowhere.test", "Status: 4.4.7", "no upstream of smtp_relays"] {
        assert!(report.contains(words), "{words}: {report}");
    }
    wait::until_true("what has no sender is held", || relay.status()["queue"]["held"] == 1);
    wait::until_true("it alone is left", || relay.status()["queue"]["messages"] == 1);
    assert_eq!(relay.told(&["logs", "--event=expired"]).lines().count(), 2);
}

#[test]
fn whom_no_upstream_serves_keeps_nobody_else_of_the_message_waiting() {
    let upstream = Upstream::start(PASSWORD);
    let busy = "450 4.2.0 greylisted, says the test".to_owned();
    upstream.set(|behaviour| drop(behaviour.recipients.insert("a@example.test".to_owned(), busy)));
    let relay = Relay::start(&several(&[("only", &upstream, ", recipients: example.test")]));
    let to = ["a@example.test", "b@nowhere.test"];
    relay.client().send("a@example.test", &to, &message_with("both")).expect("it is taken");
    wait::until_true("it was tried", || relay.queue()[0]["recipients"][0]["attempts"] == 1);
    upstream.set(|behaviour| behaviour.recipients.clear());
    wait::until_true("the one is reached", || relay.queue()[0]["recipients"][0]["state"] == "delivered");
    // To look has the queue offer it once more, and for a moment it is under way.
    wait::until_true("the other waits", || relay.queue()[0]["recipients"][1]["state"] == "deferred");
}

#[test]
fn recipients_of_one_message_go_by_their_own_upstreams_each_at_its_own_pace() {
    let (slow, quick) = (Upstream::start(PASSWORD), Upstream::start(PASSWORD));
    let busy = "450 4.2.0 greylisted, says the test".to_owned();
    slow.set(|behaviour| drop(behaviour.recipients.insert("a@slow.test".to_owned(), busy)));
    let relay = Relay::start(
        &several(&[
            ("slow", &slow, ", recipients: slow.test"),
            ("quick", &quick, ", recipients: quick.test"),
        ])
        .set("smtp_retry", "3s..4s"),
    );
    let to = ["a@slow.test", "b@quick.test", "c@quick.test"];
    relay.client().send("a@example.test", &to, &message_with("both")).expect("it is taken");
    wait::until_true("the quick ones are reached", || quick.arrived() == 1);
    assert_eq!(quick.arrivals()[0].recipients, 2, "in one transaction");
    wait::until_true("the slow one was tried", || relay.queue()[0]["recipients"][0]["attempts"] == 1);
    std::thread::sleep(Duration::from_millis(1_500));
    let item = relay.queue().remove(0);
    assert_eq!(item["recipients"][0]["attempts"], 1, "it waits, though the others were due: {item}");
    assert_eq!((&item["upstream"], &item["state"]), (&"slow".into(), &"deferred".into()));
    slow.set(|behaviour| behaviour.recipients.clear());
    // An operator's word brings it at once.
    relay.told(&["queue", "retry", "--all", "--yes"]);
    relay.wait_for_empty_queue();
    assert_eq!((slow.arrivals().len(), quick.arrivals().len()), (1, 1));
}

#[test]
fn whoever_draws_a_message_nobody_gets_it_by_an_upstream_that_does_not_serve_him() {
    const MESSAGES: usize = 60;
    let (one, two, third) = (Upstream::start(PASSWORD), Upstream::start(PASSWORD), Upstream::start(PASSWORD));
    let relay = Relay::start(&several(&[
        ("one", &one, ", recipients: one.test"),
        ("two", &two, ", recipients: two.test"),
        ("third", &third, ", recipients: third.test"),
    ]));
    let mut client = relay.client();
    for number in 0..MESSAGES {
        let to = ["x@two.test", "y@third.test"];
        client.send("a@example.test", &to, &message_with(&format!("both-{number}"))).expect("it is taken");
    }
    relay.wait_for_empty_queue();
    assert_eq!((one.arrived(), two.arrived(), third.arrived()), (0, MESSAGES, MESSAGES));
    for upstream in [&two, &third] {
        assert!(upstream.arrivals().iter().all(|arrival| arrival.recipients == 1), "the other's, too");
    }
}

#[test]
fn after_a_lost_final_reply_a_message_is_not_given_to_another_upstream() {
    let (mut first, second) = (Upstream::start(PASSWORD), Upstream::start(PASSWORD));
    first.set(|behaviour| behaviour.ending = Ending::DropBeforeReply);
    let relay =
        Relay::start(&several(&[("first", &first, ", priority: 1"), ("second", &second, ", priority: 2")]));
    relay.client().send_token("perhaps").expect("it is taken");
    wait::until_true("it arrives without an answer", || first.arrived() == 1);
    first.down();
    first.set(|behaviour| behaviour.ending = Ending::Reply);
    wait::until_true("the first is known to be down", || {
        relay.client().send_token("other").expect("it is taken");
        relay.status()["upstreams"][0]["state"] == "down"
    });
    // Longer than the longest wait: it was due again, and stayed.
    std::thread::sleep(Duration::from_secs(4));
    assert!(!second.ledger().contains_key("perhaps"), "{:?}", second.ledger());
    first.up();
    relay.wait_for_empty_queue();
    assert_eq!(first.ledger().get("perhaps"), Some(&2));
    assert!(!second.ledger().contains_key("perhaps"));
}

#[test]
fn other_upstreams_in_the_settings_take_what_is_queued_already() {
    let (gone, new) = (Upstream::stopped(PASSWORD), Upstream::start(PASSWORD));
    let service = several(&[("gone", &gone, ""), ("other", &gone, ", senders: none.test")]);
    let relay = Relay::start(&service);
    send(&relay, "queued", 20);
    relay.home.write(&[&service.set("smtp_relays", relays(&[("new", &new, "")]))]);
    relay.told(&["reload"]);
    relay.wait_for_empty_queue();
    assert_eq!(new.arrived(), 20);
}

// RFC 6710.
#[test]
fn a_higher_priority_goes_first_within_a_limit_however_many_wait_and_by_whatever_way() {
    let (slow, other) = (Upstream::start(PASSWORD), Upstream::start(PASSWORD));
    let relay = Relay::start(&several(&[
        ("slow", &slow, ", recipients: slow.test, rate_limit: 1/second"),
        ("other", &other, ", recipients: other.test"),
    ]));
    let mut client = relay.client();
    let mut send = |sender: &str, priority: i8, token: &str| {
        let mail = format!("<{sender}> MT-PRIORITY={priority}");
        client.send_as(&mail, &["<a@slow.test>"], &message_with(token)).expect("it is taken");
    };
    // Of more senders than a lane asks for at once, so that no turn of theirs would come soon.
    for number in 0..150 {
        send(&format!("a@low{number}.test"), -4, &format!("low-{number}"));
    }
    wait::until_true("some have gone", || slow.arrived() >= 2);
    send("a@high.test", 4, "high");
    wait::until_true("the high one has gone", || slow.ledger().contains_key("high"));
    let before = slow.arrivals().len();
    assert!(before <= 20, "{before} went before it");
}

/// Logs in and sends messages until one is refused; how many were taken, and the refusal.
fn taken_of_login(port: u16, login: &str, recipients: usize) -> (usize, String) {
    let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).expect("a session");
    stream.set_read_timeout(Some(Duration::from_secs(10))).expect("a deadline");
    let mut stream = BufReader::new(stream);
    let mut say = |line: &str| {
        stream.get_mut().write_all(line.as_bytes()).expect("it listens");
        loop {
            let mut reply = String::new();
            stream.read_line(&mut reply).expect("it answers");
            if reply.as_bytes().get(3) != Some(&b'-') {
                return reply;
            }
        }
    };
    say("");
    say("EHLO client.test\r\n");
    let plain = BASE64.encode(format!("\0{login}\0secret"));
    assert!(say(&format!("AUTH PLAIN {plain}\r\n")).starts_with("235"));
    let end = Instant::now() + Duration::from_secs(20);
    let mut taken = 0;
    while Instant::now() < end {
        say("MAIL FROM:<a@example.test>\r\n");
        for number in 0..recipients {
            say(&format!("RCPT TO:<user{number}@example.test>\r\n"));
        }
        say("DATA\r\n");
        let reply = say(&format!("{}.\r\n", message_with(&format!("{login}-{taken}"))));
        if !reply.starts_with("250") {
            return (taken, reply);
        }
        taken += 1;
    }
    panic!("nothing was ever refused");
}

#[test]
fn a_login_over_its_limit_is_told_to_come_again_and_a_kill_forgets_nothing() {
    let upstream = Upstream::start(PASSWORD);
    let service = upstream
        .upstream_of(Service::mailer(), PASSWORD)
        .set("smtp_users", "{shop: {password: secret, rate_limit: 6 recipients/hour}, crm: {password: secret, rate_limit: 1/hour}}");
    let mut relay = Relay::start(&service);
    let (taken, refusal) = taken_of_login(relay.smtp, "shop", 2);
    assert_eq!(taken, 3, "{refusal}");
    assert!(refusal.starts_with("451 4.7.1 ") && refusal.contains("again later at "), "{refusal}");
    let (taken, refusal) = taken_of_login(relay.smtp, "shop", 7);
    // The seventh is refused by itself: it belongs into another message.
    assert_eq!(taken, 0, "{refusal}");
    assert!(
        refusal.starts_with("451 4.7.1 ") && refusal.contains("(smtp_users.shop.rate_limit)"),
        "{refusal}"
    );
    // What is under way at a kill may arrive twice, and would be counted so.
    relay.wait_for_empty_queue();
    relay.kill9();
    relay.up();
    assert_eq!(taken_of_login(relay.smtp, "shop", 1).0, 0);
    assert_eq!(taken_of_login(relay.smtp, "crm", 1).0, 1, "each login has its own");
    let logins = relay.status()["logins"].clone();
    assert_eq!((&logins[0]["user"], &logins[0]["used"]), (&"crm".into(), &1.into()), "{logins}");
    assert_eq!((&logins[1]["user"], &logins[1]["used"]), (&"shop".into(), &6.into()), "{logins}");
    assert!(logins[1]["max"] == 6 && logins[1]["frees_at"].is_string(), "{logins}");
    let said = relay.told(&["status"]);
    let shop = said.lines().find(|line| line.trim().starts_with("login shop ")).unwrap_or_default();
    assert!(shop.contains("6 of 6 recipients/hour used; frees up at "), "{said}");
    relay.wait_for_empty_queue();
    assert_eq!(upstream.arrivals().len(), 4);
}

#[test]
fn mail_goes_by_the_upstream_and_login_of_its_sender_its_recipient_or_its_app() {
    let upstreams = ["for a", "for b", "for the app", "for inside"].map(Upstream::start);
    // A password of its own for each sender domain, as Mailgun has it.
    let items = upstreams.iter().zip([
        ("a", "for a", "senders: a.test, priority: 2"),
        ("b", "for b", "senders: b.test, priority: 2"),
        ("app", "for the app", "users: shop, priority: 1"),
        ("inside", "for inside", "recipients: [inside.test, .inside.test]"),
    ]);
    let items = items.map(|(upstream, (name, password, serves))| {
        format!(
            "\n      - {{name: {name}, server: localhost, port: {}, username: {USER}, password: {password}, \
             tls_ca: {}, {serves}}}",
            upstream.port,
            upstream.ca_file().display()
        )
    });
    let service = Service::mailer()
        .set("smtp_relays", items.collect::<String>())
        .set("smtp_users", "{shop: {password: secret, rate_limit: 1/hour}}");
    let relay = Relay::start(&service);
    let mut client = relay.client();
    for (sender, recipient) in [
        ("x@a.test", "someone@else.test"),
        ("x@b.test", "someone@else.test"),
        ("x@b.test", "someone@inside.test"),
        ("x@a.test", "someone@deep.inside.test"),
    ] {
        client.send(sender, &[recipient], &message_with(&format!("{sender} to {recipient}"))).expect("taken");
    }
    assert_eq!(taken_of_login(relay.smtp, "shop", 1).0, 1);
    relay.wait_for_empty_queue();
    let mut arrived = upstreams.map(|upstream| upstream.ledger().into_keys().collect::<Vec<_>>());
    arrived.iter_mut().for_each(|tokens| tokens.sort());
    let expected = [
        vec!["x@a.test to someone@else.test"],
        vec!["x@b.test to someone@else.test"],
        vec!["shop-0"],
        vec!["x@a.test to someone@deep.inside.test", "x@b.test to someone@inside.test"],
    ];
    assert_eq!(arrived, expected.map(|tokens| tokens.into_iter().map(str::to_owned).collect::<Vec<_>>()));
}
