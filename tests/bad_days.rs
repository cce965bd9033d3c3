//! Providers' bad days: quotas, throttling, refused logins and refusals of everything, played by the
//! scripted upstream in the providers' own words. Nothing bounces that is not the message's own fault,
//! the pause is told, and the mail arrives once when the day is better.

mod support;

use std::collections::HashMap;

use support::client::message_with;
use support::relay::Relay;
use support::service::Service;
use support::upstream::{Behaviour, Upstream};
use support::wait;

const PASSWORD: &str = "upstream-sesame-4711";

fn mailer(upstream: &Upstream) -> Service {
    upstream.upstream_of(Service::mailer(), PASSWORD)
}

fn send(relay: &Relay, sender: &str, tokens: impl IntoIterator<Item = String>) {
    let mut client = relay.client();
    for token in tokens {
        let sent = client.send(sender, &["someone@example.test"], &message_with(&token));
        sent.expect("the relay takes it, whatever the upstream is like");
    }
}

fn tokens(prefix: &str, count: usize) -> impl Iterator<Item = String> {
    (0..count).map(move |number| format!("{prefix}-{number}"))
}

fn states(relay: &Relay) -> HashMap<String, usize> {
    let mut states = HashMap::new();
    for item in relay.queue() {
        *states.entry(item["state"].as_str().expect("a state").to_owned()).or_default() += 1;
    }
    states
}

/// How many messages have bounced, by what the log says.
fn bounces(relay: &Relay) -> usize {
    relay.log().lines().filter(|line| line.contains(" bounced id=")).count()
}

fn upstream_status(relay: &Relay) -> serde_json::Value {
    relay.status()["upstreams"][0].clone()
}

/// The whole story of a day: three messages wait, the pause is told with its words and its time, and
/// once the day is better they arrive once each.
fn a_day(name: &str, bad: fn(&mut Behaviour), words: &[&str], who: &str, seconds: std::ops::Range<i64>) {
    let upstream = Upstream::start(PASSWORD);
    upstream.set(bad);
    let relay = Relay::start(&mailer(&upstream));
    send(&relay, "sender@example.test", tokens(name, 3));
    let status = wait::until(&format!("{name}: the pause is told"), || {
        Some(upstream_status(&relay)).filter(|status| status["state"] != "up")
    });
    assert_eq!(status["state"], "paused", "{name}: {status}");
    let reason = status["reason"].as_str().expect("a reason");
    for word in words {
        assert!(reason.contains(word), "{name}: {word:?} is not in {reason}");
    }
    assert_eq!(status["who_must_act"], who, "{name}: {status}");
    let until: jiff::Timestamp = status["until"].as_str().expect("a time").parse().expect("a time");
    let wait = until.as_second() - jiff::Timestamp::now().as_second();
    assert!(seconds.contains(&wait), "{name}: {wait} s");
    let told = relay.told(&["status"]);
    assert!(words.iter().all(|word| told.contains(word)) && told.contains("Next try at"), "{name}: {told}");
    wait::until_true("all wait", || states(&relay) == HashMap::from([("deferred".to_owned(), 3)]));
    assert_eq!(bounces(&relay), 0, "{name}");

    upstream.set(|behaviour| {
        behaviour.greeting = None;
        behaviour.login = None;
        behaviour.refusal = None;
        behaviour.senders.clear();
        behaviour.recipients.clear();
    });
    relay.told(&["reload"]);
    relay.wait_for_empty_queue();
    assert_eq!(upstream.arrived(), 3, "{name}");
    assert!(upstream.ledger().values().all(|count| *count == 1), "{name}: {:?}", upstream.ledger());
    assert_eq!(bounces(&relay), 0, "{name}");
}

fn behind_the_dot(reply: &str) -> Option<String> {
    Some(reply.to_owned())
}

const HOUR: std::ops::Range<i64> = 3_500..3_700;

#[test]
fn gmail_s_daily_limit_pauses_the_account_for_an_hour_at_a_time() {
    let bad = |it: &mut Behaviour| {
        let reply =
            "550 5.4.5 Daily user sending limit exceeded. For more information on Gmail sending limits";
        it.senders.insert("sender@example.test".into(), reply.into());
    };
    a_day("gmail", bad, &["550 5.4.5", "daily limit is used up"], "operator", HOUR);
}

#[test]
fn gmail_s_unusual_rate_pauses_for_minutes() {
    let bad = |it: &mut Behaviour| {
        it.refusal =
            behind_the_dot("421 4.7.0 Our system has detected an unusual rate of mail. Try again later");
    };
    a_day("gmail-rate", bad, &["421 4.7.0", "unusual"], "nobody", 590..615);
}

#[test]
fn ses_s_daily_quota_behind_the_dot_pauses_the_account() {
    let bad = |it: &mut Behaviour| {
        it.refusal = behind_the_dot("454 Throttling failure: Daily message quota exceeded.");
    };
    a_day("ses", bad, &["454 Throttling failure", "24 hours"], "operator", HOUR);
}

#[test]
fn sendgrid_s_used_up_credits_are_no_wrong_password() {
    let bad = |it: &mut Behaviour| {
        it.login = behind_the_dot("451 Authentication failed: Maximum credits exceeded");
    };
    a_day("sendgrid", bad, &["Maximum credits exceeded", "not wrong"], "operator", HOUR);
}

#[test]
fn office_365_s_submission_quota_pauses_the_account() {
    let bad = |it: &mut Behaviour| {
        it.refusal = behind_the_dot(
            "554 5.2.0 STOREDRV.Submission.Exception:SubmissionQuotaExceededException; Failed to process message",
        );
    };
    a_day("office365", bad, &["SubmissionQuotaExceeded", "10,000 recipients"], "operator", HOUR);
}

#[test]
fn a_small_host_s_seconds_are_taken_at_their_word() {
    let bad = |it: &mut Behaviour| {
        it.refusal = behind_the_dot("550 Too many messages. Try again in 92 seconds");
    };
    a_day("small", bad, &["Try again in 92 seconds"], "nobody", 85..95);
}

/// One message waits for as long as the upstream is like this, and arrives once when it is not.
fn is_kept(name: &str, bad: impl FnOnce(&mut Behaviour), state: &str) {
    let upstream = Upstream::start(PASSWORD);
    upstream.set(bad);
    let relay = Relay::start(&mailer(&upstream).set("smtp_retry", "10m..30m"));
    send(&relay, "sender@example.test", [name.to_owned()]);
    wait::until_true(&format!("{name}: it was tried"), || {
        let queue = relay.queue();
        queue.len() == 1 && queue[0]["state"] != "active" && !queue[0]["reason"].is_null()
    });
    assert_eq!(upstream_status(&relay)["state"], state, "{name}");
    assert_eq!(bounces(&relay), 0, "{name}");
    let id = relay.queue()[0]["id"].as_str().expect("an id").to_owned();
    let shown = relay.told(&["queue", "show", &id]);
    assert!(shown.contains("what now:") && shown.contains("Next try at"), "{name}: {shown}");

    upstream.set(|behaviour| {
        behaviour.greeting = None;
        behaviour.login = None;
        behaviour.refusal = None;
        behaviour.senders.clear();
        behaviour.recipients.clear();
    });
    relay.told(&["queue", "retry", "--all", "--yes"]);
    relay.wait_for_empty_queue();
    assert_eq!(upstream.ledger(), HashMap::from([(name.to_owned(), 1)]), "{name}");
}

#[test]
fn what_is_said_at_the_door_keeps_the_mail() {
    for reply in ["554 5.7.1 we do not know you", "521 no mail here", "421 4.3.2 closing", "777 what?"] {
        is_kept(reply, |it| it.greeting = Some(reply.into()), "down");
    }
}

#[test]
fn what_is_said_of_the_login_keeps_the_mail() {
    for reply in [
        "535 5.7.8 no",
        "534 5.7.9 Application-specific password required",
        "454 4.7.0 Temporary authentication failure",
        "432 4.7.12 a password transition is needed",
        "504 5.5.4 no such mechanism",
        "550 5.7.30 Basic authentication is not supported",
    ] {
        is_kept(reply, |it| it.login = Some(reply.into()), "paused");
    }
}

#[test]
fn what_is_said_behind_mail_rcpt_and_the_dot_for_now_keeps_the_mail() {
    let mail = |reply: &'static str| {
        move |it: &mut Behaviour| drop(it.senders.insert("sender@example.test".into(), reply.into()))
    };
    let rcpt = |reply: &'static str| {
        move |it: &mut Behaviour| drop(it.recipients.insert("someone@example.test".into(), reply.into()))
    };
    let dot = |reply: &'static str| move |it: &mut Behaviour| it.refusal = Some(reply.into());
    is_kept("mail-530", mail("530 5.7.0 Authentication required"), "paused");
    is_kept("mail-452", mail("452 4.3.1 no space"), "down");
    is_kept("mail-451", mail("451 4.7.1 later"), "up");
    is_kept("rcpt-450", rcpt("450 4.2.0 greylisted"), "up");
    is_kept("rcpt-545", rcpt("550 5.4.5 whatever"), "paused");
    is_kept("dot-451", dot("451 4.3.0 later"), "up");
    is_kept("dot-421", dot("421 4.3.0 closing"), "up");
    is_kept("dot-432", dot("432 4.3.2 Concurrent connections limit exceeded"), "down");
}

#[test]
fn only_the_refused_recipient_bounces() {
    let upstream = Upstream::start(PASSWORD);
    upstream.set(|it| {
        it.recipients.insert("gone@example.test".into(), "550 5.1.1 no such user".into());
        it.recipients.insert("full@example.test".into(), "552 5.2.2 mailbox full".into());
    });
    let relay = Relay::start(&mailer(&upstream));
    let recipients = ["a@example.test", "gone@example.test", "full@example.test", "b@example.test"];
    relay.client().send("sender@example.test", &recipients, &message_with("one")).expect("taken");
    relay.wait_for_empty_queue();
    assert_eq!(upstream.ledger().get("one"), Some(&1));
    wait::until_true("both are told of", || bounces(&relay) >= 2);
    assert_eq!(bounces(&relay), 2);
}

#[test]
fn ses_s_rate_is_kept_to_within_seconds_without_anybody() {
    let upstream = Upstream::start(PASSWORD);
    upstream.set(|it| {
        it.refusal = behind_the_dot("454 Throttling failure: Maximum sending rate exceeded.");
    });
    let relay = Relay::start(&mailer(&upstream).set("smtp_retry", "10m..30m"));
    send(&relay, "sender@example.test", tokens("rate", 3));
    wait::until_true("it was throttled", || upstream_status(&relay)["state"] == "paused");
    upstream.set(|it| it.refusal = None);
    relay.wait_for_empty_queue();
    assert!(upstream.arrived() == 3 && upstream.ledger().values().all(|count| *count == 1));
    assert_eq!(bounces(&relay), 0);
}

#[test]
fn too_many_recipients_go_at_once_in_further_transactions() {
    let upstream = Upstream::start(PASSWORD);
    upstream.set(|it| it.most_recipients = 4);
    // Had any of them to wait for a retry, the test would run out of time.
    let relay = Relay::start(&mailer(&upstream).set("smtp_retry", "10m..30m"));
    let recipients: Vec<String> = (0..10).map(|number| format!("r{number}@example.test")).collect();
    let recipients: Vec<&str> = recipients.iter().map(String::as_str).collect();
    relay.client().send("sender@example.test", &recipients, &message_with("many")).expect("taken");
    relay.wait_for_empty_queue();
    assert_eq!(upstream.ledger().get("many"), Some(&3), "4, 4 and 2");
    assert_eq!(bounces(&relay), 0);
}

#[test]
fn a_message_for_more_than_a_transaction_takes_goes_in_several() {
    let upstream = Upstream::start(PASSWORD);
    let service = mailer(&upstream).set("smtp_relay_recipients", 4).set("smtp_relay_messages", 2);
    let relay = Relay::start(&service.set("smtp_retry", "10m..30m"));
    let recipients: Vec<String> = (0..10).map(|number| format!("r{number}@example.test")).collect();
    let recipients: Vec<&str> = recipients.iter().map(String::as_str).collect();
    relay.client().send("sender@example.test", &recipients, &message_with("many")).expect("taken");
    relay.wait_for_empty_queue();
    assert_eq!(upstream.ledger().get("many"), Some(&3), "4, 4 and 2");
    let asked =
        |heard: &support::upstream::Heard| memchr::memmem::find_iter(&heard.inside, b"MAIL FROM").count();
    let mut over_each: Vec<_> = upstream.heard().iter().map(asked).collect();
    // Which of the two carries one depends on whether the first is idle again when the rest is due.
    over_each.sort_unstable();
    assert_eq!(over_each, [1, 2], "at most two over each connection");
}

#[test]
fn an_upstream_that_refuses_everything_gets_ten_bounces_and_then_nothing_more() {
    let upstream = Upstream::start(PASSWORD);
    upstream.set(|it| {
        it.refusal = behind_the_dot("554 5.7.1 your account is suspended, says the test");
        it.final_delay = std::time::Duration::from_millis(200);
    });
    let service = mailer(&upstream).set("smtp_relay_connections", 10).set("smtp_retry", "10m..30m");
    let mut relay = Relay::start(&service);
    let loads: Vec<_> = (0..5)
        .map(|session| {
            std::thread::spawn({
                let port = relay.smtp;
                move || {
                    let mut client = support::client::Client::connect(port).expect("a session");
                    for token in tokens(&format!("all-{session}"), 12) {
                        client.send_token(&token).expect("taken");
                    }
                }
            })
        })
        .collect();
    loads.into_iter().for_each(|load| load.join().expect("sent"));
    // Sixty messages; what is not bounced is held, reports apart, which the upstream refuses as well.
    wait::until_true("all the rest is held", || {
        let states = states(&relay);
        states.get("held").is_some_and(|held| *held >= 50) && states.len() == 1
    });
    let before = bounces(&relay);
    assert!(before <= 10, "{before} bounced");
    let status = upstream_status(&relay);
    assert_eq!(
        (&status["state"], &status["who_must_act"]),
        (&"paused".into(), &"operator".into()),
        "{status}"
    );
    assert!(relay.told(&["status"]).contains("suspended, says the test"));
    assert!(relay.log().contains("nothing more bounces"), "an alarm");

    // A restart is no reason to bounce another ten.
    relay.terminate();
    relay.up();
    send(&relay, "sender@example.test", tokens("later", 5));
    wait::until_true("these are held too", || {
        let states = states(&relay);
        states.get("held").is_some_and(|held| *held >= 55) && states.len() == 1
    });
    assert_eq!(bounces(&relay), before);

    upstream.set(|it| {
        it.refusal = None;
        it.final_delay = std::time::Duration::ZERO;
    });
    relay.told(&["reload"]);
    // A report among the first ten has nobody to be reported to.
    let dead = |item: &serde_json::Value| {
        item["reason"].as_str().is_some_and(|reason| reason.contains("no sender to tell"))
    };
    wait::until_true("all else goes", || relay.queue().iter().all(dead));
    assert!(upstream.ledger().values().all(|count| *count == 1), "{:?}", upstream.ledger());
    let arrived = upstream.ledger().keys().filter(|token| token.contains('-')).count();
    assert!(arrived >= 65 - 10, "{arrived} arrived");
}

#[test]
fn a_probe_that_passes_sets_the_rest_free() {
    let upstream = Upstream::start(PASSWORD);
    upstream.set(|it| it.refusal = behind_the_dot("550 no"));
    let relay = Relay::start(&mailer(&upstream).set("smtp_breaker_bounces", 1));
    send(&relay, "sender@example.test", tokens("probe", 6));
    wait::until_true("held", || states(&relay).get("held").is_some_and(|held| *held >= 5));
    upstream.set(|it| it.refusal = None);
    relay.wait_for_empty_queue();
    assert!(bounces(&relay) <= 1);
    let arrived = upstream.ledger();
    assert!(arrived.keys().filter(|token| token.starts_with("probe-")).count() >= 5, "{arrived:?}");
    assert!(arrived.values().all(|count| *count == 1), "{arrived:?}");
}

#[test]
fn a_refused_sender_is_held_alone_and_goes_once_released() {
    let upstream = Upstream::start(PASSWORD);
    let refusal = "550 5.7.1 bad@example.test is not authorised to send, says the test";
    upstream.set(|it| drop(it.senders.insert("bad@example.test".into(), refusal.into())));
    let relay = Relay::start(&mailer(&upstream).set("smtp_retry", "10m..30m"));
    send(&relay, "bad@example.test", tokens("bad", 15));
    send(&relay, "good@example.test", tokens("good", 15));
    wait::until_true("the good ones pass, the bad ones are held", || {
        upstream.arrived() == 15 && states(&relay) == HashMap::from([("held".to_owned(), 15)])
    });
    assert!(upstream.ledger().keys().all(|token| token.starts_with("good-")));
    assert_eq!(bounces(&relay), 0);
    let status = upstream_status(&relay);
    assert_eq!(status["state"], "up", "{status}");
    assert!(relay.told(&["status"]).contains("bad@example.test"));

    upstream.set(|it| it.senders.clear());
    relay.told(&["queue", "release", "--all", "--yes"]);
    relay.wait_for_empty_queue();
    assert!(upstream.arrived() == 30 && upstream.ledger().values().all(|count| *count == 1));
}

#[test]
fn a_sender_whose_own_limit_is_used_up_waits_alone_and_is_not_named_again() {
    let upstream = Upstream::start(PASSWORD);
    let reply = "550 5.4.5 Daily SMTP relay limit exceeded for user.";
    upstream.set(|it| drop(it.senders.insert("busy@example.test".into(), reply.into())));
    let mut relay = Relay::start(&mailer(&upstream));
    let deferred = |relay: &Relay, count: usize| {
        wait::until_true("all of it waits", || {
            states(relay) == HashMap::from([("deferred".to_owned(), count)])
        });
    };
    send(&relay, "busy@example.test", tokens("first", 1));
    deferred(&relay, 1);
    send(&relay, "busy@example.test", tokens("more", 5));
    send(&relay, "good@example.test", tokens("good", 5));
    wait::until_true("others go on", || upstream.arrived() == 5);
    deferred(&relay, 6);
    relay.kill9();
    relay.up();
    send(&relay, "busy@example.test", tokens("later", 3));
    deferred(&relay, 9);
    let named = || -> usize {
        let asked = |inside: &[u8]| memchr::memmem::find_iter(inside, b"MAIL FROM:<busy@").count();
        upstream.heard().iter().map(|heard| asked(&heard.inside)).sum()
    };
    assert_eq!((named(), bounces(&relay)), (1, 0));
    let item = relay.queue().remove(0);
    let next: jiff::Timestamp =
        item["recipients"][0]["next_attempt"].as_str().expect("a time").parse().expect("a time");
    assert!((3_400..3_700).contains(&(next.as_second() - jiff::Timestamp::now().as_second())), "{item}");

    upstream.set(|it| it.senders.clear());
    relay.told(&["queue", "retry", "--all", "--yes"]);
    relay.wait_for_empty_queue();
    assert!(upstream.arrived() == 14 && upstream.ledger().values().all(|count| *count == 1));
}

#[test]
fn a_rule_of_the_operator_s_own_wins() {
    let upstream = Upstream::start(PASSWORD);
    upstream.set(|it| it.refusal = behind_the_dot("550 no more today, says the test"));
    let rule = "[{text: no more today, scope: account, means: the hoster's day is over, wait: 2h}]";
    let relay = Relay::start(&mailer(&upstream).set("smtp_relay_replies", rule));
    send(&relay, "sender@example.test", tokens("own", 2));
    wait::until_true("it is paused", || {
        let status = upstream_status(&relay);
        status["reason"].as_str().is_some_and(|reason| reason.contains("the hoster's day is over"))
    });
    assert_eq!(bounces(&relay), 0);
}

#[test]
fn a_way_that_is_not_there_keeps_the_mail() {
    let mut upstream = Upstream::stopped(PASSWORD);
    let relay = Relay::start(&mailer(&upstream));
    send(&relay, "sender@example.test", tokens("way", 2));
    let status = wait::until("it is told", || {
        Some(upstream_status(&relay)).filter(|status| status["state"] == "down")
    });
    assert!(
        status["reason"].as_str().is_some_and(|reason| reason.contains("refuses connections")),
        "{status}"
    );
    assert_eq!(bounces(&relay), 0);
    upstream.up();
    relay.wait_for_empty_queue();
    assert!(upstream.arrived() == 2 && upstream.ledger().values().all(|count| *count == 1));
}

#[test]
fn what_the_upstream_will_never_take_though_it_says_not_now_goes_back_after_a_few_tries() {
    let upstream = Upstream::start(PASSWORD);
    upstream.set(|it| it.refusal = behind_the_dot("450 The subject field is required. #MS42201"));
    let rule = "[{text: 'is required', tries: 3, scope: message, means: it will never pass}]";
    let relay =
        Relay::start(&mailer(&upstream).set("smtp_relay_replies", rule).set("smtp_retry", "500ms..1s"));
    send(&relay, "sender@example.test", tokens("never", 1));
    wait::until_true("its sender is told", || bounces(&relay) >= 1);
    let log = relay.log();
    let of_it: Vec<&str> = log.lines().filter(|line| line.contains("sender=sender@example.test")).collect();
    let count = |what: &str| of_it.iter().filter(|line| line.contains(what)).count();
    assert_eq!((count(" deferred id="), count(" bounced id=")), (2, 1), "{of_it:#?}");
    // The report passes, as the day is better.
    upstream.set(|it| it.refusal = None);
    relay.wait_for_empty_queue();
    let reports = upstream.messages();
    assert!(reports.len() == 1 && String::from_utf8_lossy(&reports[0]).contains("#MS42201"), "{reports:?}");
}

#[test]
fn restarts_in_a_loop_do_not_knock_at_an_account_that_pauses() {
    let upstream = Upstream::start(PASSWORD);
    let daily = "550 5.4.5 Daily user sending limit exceeded.";
    upstream.set(|it| drop(it.senders.insert("sender@example.test".into(), daily.into())));
    let service = mailer(&upstream);
    let mut relay = Relay::start(&service);
    send(&relay, "sender@example.test", tokens("first", 1));
    let paused = wait::until("it pauses", || {
        Some(upstream_status(&relay)).filter(|status| status["state"] == "paused")
    });
    let knocks = upstream.heard().len();
    for round in 0..4 {
        relay.kill9();
        relay.up();
        let status = upstream_status(&relay);
        for what in ["state", "until", "reason", "who_must_act"] {
            assert_eq!(status[what], paused[what], "restart {round}");
        }
        send(&relay, "sender@example.test", tokens(&format!("round-{round}"), 3));
        wait::until_true("all wait for it", || states(&relay).get("deferred") == Some(&(4 + 3 * round)));
    }
    assert_eq!(upstream.heard().len(), knocks, "it has knocked");
    assert_eq!(bounces(&relay), 0);

    // An operator's word opens it, and a restart behind it finds it open.
    relay.told(&["queue", "retry", "--all", "--yes"]);
    wait::until_true("it has asked again", || {
        upstream.heard().len() > knocks && upstream_status(&relay)["state"] == "paused"
    });
    // So does another login, which may be another account.
    relay.kill9();
    upstream.set(|it| {
        it.senders.clear();
        it.password = "another-sesame-4712".into();
    });
    relay.home.write(&[&service.set("smtp_relay_password", "another-sesame-4712")]);
    relay.up();
    relay.wait_for_empty_queue();
    assert_eq!(upstream.arrived(), 13);
    assert!(upstream.ledger().values().all(|count| *count == 1), "{:?}", upstream.ledger());
}

#[test]
fn whoever_complains_about_the_rate_gets_half_of_it_also_after_a_restart() {
    let upstream = Upstream::start(PASSWORD);
    let mut relay = Relay::start(&mailer(&upstream));
    send(&relay, "sender@example.test", tokens("before", 20));
    relay.wait_for_empty_queue();
    upstream.set(|it| {
        it.refusal = behind_the_dot("454 Throttling failure: Maximum sending rate exceeded.");
    });
    send(&relay, "sender@example.test", tokens("after", 10));
    let learned = |relay: &Relay| upstream_status(relay)["learned"]["messages_per_second"].as_f64();
    let rate = wait::until("it has learned", || learned(&relay));
    assert!(rate > 0.01 && relay.told(&["status"]).contains("It has complained"), "{rate}");
    upstream.set(|it| it.refusal = None);
    relay.terminate();
    relay.up();
    let kept = learned(&relay).expect("it has not forgotten");
    assert!((rate * 0.2..rate * 1.2).contains(&kept), "{rate}, then {kept}");
    relay.wait_for_empty_queue();
    assert!(upstream.arrived() == 30 && upstream.ledger().values().all(|count| *count == 1));
}

#[test]
fn whoever_complains_about_connections_gets_no_more_than_it_takes() {
    let upstream = Upstream::start(PASSWORD);
    upstream.set(|it| it.final_delay = std::time::Duration::from_millis(300));
    let relay = Relay::start(&mailer(&upstream).set("smtp_relay_connections", 6));
    send(&relay, "sender@example.test", tokens("many", 60));
    wait::until_true("many at once", || upstream.connections() >= 4);
    upstream.set(|it| it.refusal = behind_the_dot("432 4.3.2 Concurrent connections limit exceeded."));
    let most = wait::until("it has learned", || upstream_status(&relay)["learned"]["connections"].as_u64());
    assert!((1..=3).contains(&most), "{most}");
    wait::until_true("those under way have heard it too", || upstream_status(&relay)["connections"] == 0);
    upstream.set(|it| {
        it.refusal = None;
        it.final_delay = std::time::Duration::from_millis(20);
    });
    relay.told(&["reload"]);
    let mut seen = 0;
    wait::until_true("all goes", || {
        seen = seen.max(upstream_status(&relay)["connections"].as_u64().unwrap_or(0));
        relay.queue().is_empty()
    });
    assert!(seen <= most, "{seen} at once, {most} learned");
    assert!(upstream.arrived() == 60 && upstream.ledger().values().all(|count| *count == 1));
    assert_eq!(bounces(&relay), 0);
}

/// Thirty messages that this day refuses for good; no more than ten of them bounce.
fn no_more_than_ten_bounce(name: &str, bad: impl FnOnce(&mut Behaviour), body: &str, more: &[(&str, &str)]) {
    let upstream = Upstream::start(PASSWORD);
    upstream.set(bad);
    let service = mailer(&upstream).set("smtp_retry", "100ms..200ms");
    let relay = Relay::start(&more.iter().fold(service, |service, (key, value)| service.set(key, value)));
    let mut client = relay.client();
    for token in tokens(name, 30) {
        let letter = format!("{}{body}\r\n", message_with(&token));
        client.send("sender@example.test", &["someone@example.test"], &letter).expect("taken");
    }
    let of_ours = |item: &&serde_json::Value| item["sender"] == "sender@example.test";
    wait::until_true(&format!("{name}: the rest is held"), || {
        let queue = relay.queue();
        // Reports of bounces, where they are refused as well, are among the ten.
        queue.iter().filter(of_ours).count() >= 20
            && queue.iter().filter(of_ours).all(|item| item["state"] == "held")
    });
    let bounced = relay.log().lines().filter(|line| line.contains(" bounced id=")).count();
    assert!(bounced <= 10, "{name}: {bounced} bounced");
    assert_eq!(upstream_status(&relay)["who_must_act"], "operator", "{name}");
}

#[test]
fn what_an_upstream_offers_no_more_bounces_ten_and_then_nothing() {
    no_more_than_ten_bounce("8bitmime", |it| it.keywords = vec!["SIZE 52428800"], "Grüße", &[]);
    no_more_than_ten_bounce("size", |it| it.keywords = vec!["8BITMIME", "SIZE 200"], &"x".repeat(900), &[]);
}

#[test]
fn what_says_not_now_until_it_is_given_up_bounces_ten_and_then_nothing() {
    let rule = "[{text: 'is required', tries: 2, scope: message, means: it will never pass}]";
    let bad = |it: &mut Behaviour| it.refusal = behind_the_dot("450 The subject field is required.");
    no_more_than_ten_bounce("tries", bad, "", &[("smtp_relay_replies", rule)]);
}

#[test]
fn an_upstream_that_takes_helo_alone_today_gets_what_it_can_and_the_rest_waits() {
    let upstream = Upstream::start(PASSWORD);
    upstream.set(|it| {
        it.open = true;
        it.ehlo = Some("502 5.5.1 not today, says the test".into());
    });
    let service = mailer(&upstream)
        .without("smtp_relay_username")
        .without("smtp_relay_password")
        .without("smtp_relay_tls_ca")
        .set("smtp_relay_tls", "none");
    let relay = Relay::start(&service);
    let mut client = relay.client();
    for token in tokens("helo", 15) {
        let letter = format!("{}Grüße\r\n", message_with(&token));
        client.send("sender@example.test", &["someone@example.test"], &letter).expect("taken");
    }
    send(&relay, "sender@example.test", tokens("ascii", 15));
    wait::until_true("the rest waits", || {
        upstream.arrived() == 15 && states(&relay) == HashMap::from([("deferred".to_owned(), 15)])
    });
    assert!(upstream.ledger().keys().all(|token| token.starts_with("ascii-")));
    let reason = relay.queue()[0]["reason"].as_str().expect("a reason").to_owned();
    assert!(reason.contains("8BITMIME") && reason.contains("refuses EHLO"), "{reason}");
    assert_eq!(bounces(&relay), 0);
    upstream.set(|it| it.ehlo = None);
    relay.told(&["reload"]);
    relay.wait_for_empty_queue();
    assert!(upstream.arrived() == 30 && upstream.ledger().values().all(|count| *count == 1));
}

#[test]
fn what_shows_only_behind_the_login_is_asked_about_less_and_less_and_over_one_connection() {
    let upstream = Upstream::start(PASSWORD);
    upstream.set(|it| {
        it.senders.insert("sender@example.test".into(), "530 5.7.0 Authentication required".into());
    });
    let relay = Relay::start(&mailer(&upstream).set("smtp_auth_retry", "1s..16s"));
    send(&relay, "sender@example.test", tokens("behind", 30));
    wait::until_true("it was asked", || upstream.auth_attempts() > 0);
    let first = upstream.auth_times()[0];
    let end = first + std::time::Duration::from_secs(10);
    // Before the first answer others may have been opened.
    let beginning = std::time::Duration::from_millis(700);
    wait::until_true("ten seconds are over", || {
        let begins = first.elapsed() < beginning;
        assert!(begins || upstream.connections() <= 1, "{} connections", upstream.connections());
        std::time::Instant::now() > end
    });
    // Then about 1, 3 and 7 seconds later; by waits that do not grow it would be about ten times.
    let asked = upstream.auth_times().iter().filter(|at| **at > first + beginning).count();
    assert!((2..=4).contains(&asked), "{asked} logins behind the first ones in ten seconds");
    assert_eq!(bounces(&relay), 0);
    upstream.set(|it| it.senders.clear());
    relay.wait_for_empty_queue();
    assert!(upstream.arrived() == 30 && upstream.ledger().values().all(|count| *count == 1));
}
