//! Wishes about reports (RFC 3461) from an app to the upstream, and the reports that come back
//! (RFC 3464): the real program between a client and upstreams with DSN and without.

mod support;

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use support::bytes::contains_word;
use support::postfix::Postfix;
use support::relay::Relay;
use support::service::{Home, Service};
use support::upstream::Upstream;
use support::{programs, wait};

const PASSWORD: &str = "upstream-sesame-4711";
const MAIL: &str = "<sender@example.test> RET=FULL ENVID=QQ+2B314";
const CONTENT: &str = "From: sender@example.test\r\nTo: a@example.test\r\nSubject: wishes\r\n\
                       Message-ID: <wishes@app.test>\r\nX-Token: wishes\r\n\r\nThe body.\r\n";

/// A mail as Python's email package reads it.
fn read(file: &Path) -> Value {
    programs::python("read_mail.py", &[&file.display().to_string()])
}

fn read_octets(home: &Home, mail: &[u8]) -> Value {
    let file = home.path("read.eml");
    fs::write(&file, mail).expect("a file to read from");
    read(&file)
}

/// What the upstream was told inside TLS, all connections in one.
fn told(upstream: &Upstream) -> String {
    upstream.heard().iter().map(|heard| String::from_utf8_lossy(&heard.inside).into_owned()).collect()
}

/// The reports that arrived at the upstream, as Python reads them.
fn reports(upstream: &Upstream, home: &Home) -> Vec<Value> {
    let is_report = |mail: &&Vec<u8>| contains_word(mail, "Auto-Submitted: auto-replied");
    upstream.messages().iter().filter(is_report).map(|mail| read_octets(home, mail)).collect()
}

#[test]
fn reports_are_read_by_pythons_email_package_as_they_are_meant() {
    let directory = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/dsn");
    let mut seen = 0;
    for file in fs::read_dir(directory).expect("tests/dsn") {
        let file = file.expect("a file").path();
        let report = read(&file);
        assert_eq!(report["type"], "multipart/report", "{}", file.display());
        assert_eq!(report["defects"], serde_json::json!([]), "{}", file.display());
        assert_eq!(report["auto_submitted"], "auto-replied");
        let kinds: Vec<&str> =
            report["parts"].as_array().expect("parts").iter().filter_map(Value::as_str).collect();
        assert_eq!(kinds.len(), 3, "{kinds:?}");
        let status = format!("message/{}", report["report_type"].as_str().expect("a report-type"));
        assert_eq!((kinds[0], kinds[1]), ("text/plain", status.as_str()));
        let blocks = report["status"].as_array().expect("blocks");
        assert!(blocks.len() >= 2 && blocks[0]["reporting-mta"] == "dns; relay.example", "{blocks:?}");
        let name = file.file_stem().expect("a name").to_string_lossy();
        let action = name.split('-').next().expect("a word");
        assert!(blocks[1..].iter().all(|block| block["action"] == action), "{action}: {blocks:?}");
        seen += 1;
    }
    assert!(seen >= 5, "{seen}");
}

#[test]
fn wishes_go_on_to_an_upstream_with_dsn_as_they_came_and_it_alone_serves_them() {
    let upstream = Upstream::start(PASSWORD);
    upstream.set(|behaviour| behaviour.dsn = true);
    let relay = Relay::start(&upstream.upstream_of(Service::mailer(), PASSWORD));
    let rcpts = [
        "<a@example.test> NOTIFY=SUCCESS,DELAY ORCPT=rfc822;Anna+2Bx@old.test",
        "<b@example.test> NOTIFY=NEVER",
        "<c@example.test>",
    ];
    relay.client().send_as(MAIL, &rcpts, CONTENT).expect("it is taken");
    wait::until_true("it arrives", || upstream.arrived() == 1);
    relay.wait_for_empty_queue();
    let told = told(&upstream);
    let mail = told.lines().find(|line| line.starts_with("MAIL FROM")).expect("MAIL");
    assert!(mail.contains(" RET=FULL ENVID=QQ+2B314"), "{mail}");
    for rcpt in rcpts {
        assert!(told.contains(&format!("RCPT TO:{rcpt}\r\n")), "{rcpt} is not in {told}");
    }
    assert_eq!(upstream.messages().len(), 1, "no report of ours");
}

#[test]
fn an_upstream_without_dsn_hears_of_no_wish_and_we_tell_what_was_passed_on_and_what_failed() {
    let upstream = Upstream::start(PASSWORD);
    let refusal = "550 5.1.1 no such user, says the test";
    upstream.set(|behaviour| {
        for user in ["bad", "silent"] {
            behaviour.recipients.insert(format!("{user}@example.test"), refusal.to_owned());
        }
    });
    let relay = Relay::start(&upstream.upstream_of(Service::mailer(), PASSWORD));
    let rcpts = [
        "<a@example.test> NOTIFY=SUCCESS ORCPT=rfc822;Anna+2Bx@old.test",
        "<c@example.test>",
        "<bad@example.test>",
        "<silent@example.test> NOTIFY=NEVER",
    ];
    relay.client().send_as(MAIL, &rcpts, CONTENT).expect("it is taken");
    wait::until_true("the message and two reports arrive", || upstream.messages().len() == 3);
    relay.wait_for_empty_queue();
    for word in ["NOTIFY", "ORCPT", "RET=", "ENVID"] {
        assert!(!told(&upstream).contains(&format!(" {word}")), "{word} in {}", told(&upstream));
    }
    let reports = reports(&upstream, &relay.home);
    let of = |action: &str| {
        let found = reports.iter().find(|report| report["status"][1]["action"] == action);
        found.unwrap_or_else(|| panic!("{action} is not in {reports:#?}")).clone()
    };
    let relayed = of("relayed");
    assert_eq!(relayed["status"].as_array().map(Vec::len), Some(2), "one recipient: {relayed:#}");
    assert_eq!(relayed["status"][0]["original-envelope-id"], "QQ+314");
    assert_eq!(relayed["status"][1]["final-recipient"], "rfc822; a@example.test");
    assert_eq!(relayed["status"][1]["original-recipient"], "rfc822; Anna+x@old.test");
    let failed = of("failed");
    assert_eq!(failed["status"].as_array().map(Vec::len), Some(2), "one recipient: {failed:#}");
    assert_eq!(failed["status"][1]["final-recipient"], "rfc822; bad@example.test");
    assert_eq!(failed["status"][1]["diagnostic-code"], format!("smtp; {refusal}"));
    assert_eq!(failed["parts"][2], "message/rfc822", "RET=FULL");
    assert!(relay.queue().is_empty(), "nothing is held for a recipient of whom nobody wants to hear");
}

#[test]
fn a_sender_is_warned_once_of_mail_that_waits_for_an_upstream_that_is_away() {
    let mut upstream = Upstream::stopped(PASSWORD);
    let service = upstream.upstream_of(Service::mailer(), PASSWORD).set("smtp_delay_warning", "1s");
    let mut relay = Relay::start(&service);
    let rcpts = ["<a@example.test>", "<b@example.test> NOTIFY=FAILURE"];
    for _ in 0..3 {
        relay.client().send_as(MAIL, &rcpts, CONTENT).expect("it is taken");
    }
    wait::until_true("each has its warning", || relay.queue().len() == 6);
    relay.terminate();
    relay.up();
    upstream.up();
    relay.told(&["reload"]);
    relay.wait_for_empty_queue();
    assert_eq!(upstream.messages().len(), 6);
    let reports = reports(&upstream, &relay.home);
    assert_eq!(reports.len(), 3, "one for each message, also over a restart");
    for report in reports {
        assert_eq!(report["subject"], "Delayed: wishes");
        let blocks = report["status"].as_array().expect("blocks");
        assert_eq!(blocks.len(), 2, "{blocks:?}");
        assert_eq!(blocks[1]["final-recipient"], "rfc822; a@example.test");
        assert_eq!(blocks[1]["action"], "delayed");
        assert!(blocks[1]["status"].as_str().is_some_and(|status| status.starts_with("4.")), "{blocks:?}");
        assert!(blocks[1]["will-retry-until"].is_string());
        assert!(report["text"].as_str().is_some_and(|text| text.contains("You need not send")), "{report:#}");
    }
}

#[test]
fn wishes_outlast_a_breaker_s_hold_and_an_operator_s() {
    let upstream = Upstream::start(PASSWORD);
    upstream.set(|behaviour| behaviour.refusal = Some("554 5.7.1 suspended, says the test".to_owned()));
    let service = upstream.upstream_of(Service::mailer(), PASSWORD).set("smtp_breaker_bounces", 1);
    let relay = Relay::start(&service.set("smtp_retry", "10m..30m"));
    let send = |rcpt: &str| {
        let said = relay.client().send_as(MAIL, &[rcpt], CONTENT).expect("it is taken");
        said.rsplit(' ').next().expect("an id").to_owned()
    };
    let state = |id: &str| {
        let queue = relay.queue();
        queue
            .iter()
            .find(|item| item["id"] == id)
            .map(|item| item["state"].as_str().expect("a state").to_owned())
    };
    let held = |id: &str| wait::until_true("it is held", || state(id).as_deref() == Some("held"));
    // The first refusal is final, and nobody wants to hear of it; what follows is held.
    send("<first@example.test> NOTIFY=NEVER");
    wait::until_true("the first has bounced", || relay.queue().is_empty());
    let passed_on = send("<held@example.test> NOTIFY=SUCCESS");
    held(&passed_on);
    let by_hand = send("<by-hand@example.test> NOTIFY=SUCCESS,FAILURE");
    let returned = send("<returned@example.test> NOTIFY=FAILURE");
    let unreturned = send("<unreturned@example.test> NOTIFY=SUCCESS");
    for id in [&by_hand, &returned, &unreturned] {
        held(id);
        relay.told(&["queue", "hold", id]);
    }
    assert_eq!(upstream.messages().len(), 0);

    upstream.set(|behaviour| behaviour.refusal = None);
    relay.told(&["reload"]);
    wait::until_true("what the breaker held has gone", || state(&passed_on).is_none());
    relay.told(&["queue", "release", &by_hand]);
    relay.told(&["queue", "bounce", &returned]);
    relay.told(&["queue", "bounce", &unreturned]);
    relay.wait_for_empty_queue();
    let mut told: Vec<(String, String)> = reports(&upstream, &relay.home)
        .iter()
        .map(|report| {
            let recipient = &report["status"][1];
            let word = |name: &str| recipient[name].as_str().expect("a word").to_owned();
            (word("final-recipient"), word("action"))
        })
        .collect();
    told.sort();
    let expected = [("by-hand", "relayed"), ("held", "relayed"), ("returned", "failed")];
    let expected = expected.map(|(who, what)| (format!("rfc822; {who}@example.test"), what.to_owned()));
    assert_eq!(told, expected);
}

#[test]
fn postfix_takes_a_wish_over_and_tells_when_the_mail_is_delivered() {
    let postfix = Postfix::start(&["user", "sender"]);
    let relay = Relay::start(&postfix.upstream_of(Service::mailer()));
    let rcpts = ["<user@example.test> NOTIFY=SUCCESS ORCPT=rfc822;first@old.test"];
    relay.client().send_as(MAIL, &rcpts, CONTENT).expect("it is taken");
    postfix.first_mail("user");
    let told = read_octets(&relay.home, &postfix.first_mail("sender"));
    relay.wait_for_empty_queue();
    assert_eq!(postfix.mailbox("sender").len(), 1, "Postfix tells, and we do not");
    assert_eq!(told["status"][1]["action"], "delivered", "{told:#}");
    assert_eq!(told["status"][0]["original-envelope-id"], "QQ+314");
    assert_eq!(told["status"][1]["original-recipient"], "rfc822;first@old.test");
}

#[test]
fn of_two_relays_in_a_row_the_last_tells_and_it_tells_once() {
    let upstream = Upstream::start(PASSWORD);
    let second = upstream.upstream_of(Service::mailer(), PASSWORD).set("smtp_password", "app-sesame-77");
    let home = Home::new(&[]);
    let shared = home.path("environment.json");
    let second = second.set("smtp_environment_file", shared.display()).set("smtp_hostname", "second.test");
    let first = Service::new("www", "python")
        .set("smtp_environment_file", shared.display())
        .set("smtp_server", "127.0.0.1")
        .set("smtp_port", second.smtp)
        .set("smtp_username", "dotcloud")
        .set("smtp_password", "app-sesame-77");
    home.write(&[&first, &second]);
    let relay = Relay::start_in(&home, &second);
    let local = Relay::start_in(&home, &first);
    let rcpts = ["<a@example.test> NOTIFY=SUCCESS,FAILURE ORCPT=rfc822;Anna+2Bx@old.test"];
    local.client().send_as(MAIL, &rcpts, CONTENT).expect("it is taken");
    wait::until_true("the message and its report arrive", || upstream.messages().len() == 2);
    local.wait_for_empty_queue();
    relay.wait_for_empty_queue();
    let reports = reports(&upstream, &home);
    assert_eq!((reports.len(), upstream.messages().len()), (1, 2));
    let (message, recipient) = (&reports[0]["status"][0], &reports[0]["status"][1]);
    assert_eq!(message["reporting-mta"], "dns; second.test");
    assert_eq!(message["original-envelope-id"], "QQ+314");
    assert_eq!(recipient["action"], "relayed");
    assert_eq!(recipient["original-recipient"], "rfc822; Anna+x@old.test");
}

// RFC 2852 §4.
#[test]
fn who_wants_mail_back_rather_than_late_gets_it_back_from_an_upstream_without_deliverby() {
    let upstream = Upstream::start(PASSWORD);
    let service = upstream.upstream_of(Service::mailer(), PASSWORD);
    let home = Home::new(&[&service]);
    let relay = Relay::start_in(&home, &service);
    let (returned, told_late) = ("<back@example.test> BY=600;R", "<late@example.test> BY=600;N");
    relay.client().send_as(returned, &["<a@example.test>"], CONTENT).expect("it is taken");
    relay.client().send_as(told_late, &["<a@example.test>"], CONTENT).expect("it is taken");
    relay.wait_for_empty_queue();
    let said = told(&upstream);
    assert!(!said.contains("MAIL FROM:<back@example.test>"), "{said}");
    assert!(said.contains("MAIL FROM:<late@example.test> ") && !said.contains(" BY="), "{said}");
    let reports = reports(&upstream, &home);
    assert_eq!(reports.len(), 1, "{reports:?}");
    assert_eq!(
        (&reports[0]["to"], &reports[0]["status"][1]["action"]),
        (&"back@example.test".into(), &"failed".into())
    );
    assert_eq!(reports[0]["status"][1]["status"], "5.3.3", "{reports:?}");
    let words = reports[0]["text"].as_str().expect("words").split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(words.contains("no DELIVERBY"), "{words}");
}

/// The report, its lines in one.
fn flat(report: &Value) -> String {
    let text = report["text"].as_str().expect("a text");
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
fn status_queue_api_and_report_say_the_same_of_what_waits() {
    let quota = "550 5.4.5 Daily user sending limit exceeded, says the test";
    let busy = "451 4.3.0 not just now, says the test";
    for (reply, means, who, in_report, at_mail) in [
        (
            quota,
            "the account's daily limit is used up; it frees within 24 hours",
            ("operator", "You must act"),
            "Whoever runs this relay must act",
            true,
        ),
        (
            busy,
            "the upstream does not take mail for this recipient now",
            ("nobody", "Nobody must act"),
            "Nobody must act",
            false,
        ),
    ] {
        let upstream = Upstream::start(PASSWORD);
        upstream.set(|it| {
            let (map, address) = match at_mail {
                true => (&mut it.senders, "sender@example.test"),
                false => (&mut it.recipients, "a@example.test"),
            };
            map.insert(address.to_owned(), reply.to_owned());
        });
        let service = upstream.upstream_of(Service::mailer(), PASSWORD);
        let relay = Relay::start(&service.set("smtp_delay_warning", "1s").set("smtp_retry", "10m..30m"));
        relay.client().send_as("<sender@example.test>", &["<a@example.test>"], CONTENT).expect("it is taken");
        let is_ours = |item: &Value| item["sender"] == "sender@example.test" && item["state"] == "deferred";
        let item = wait::until("it waits, and its sender is told", || {
            let queue = relay.queue();
            let told = queue.len() == 2 || !upstream.messages().is_empty();
            queue.iter().find(|item| is_ours(item)).filter(|_| told).cloned()
        });
        let all = format!("{reply} ({means})");
        let recipient = &item["recipients"][0];
        assert_eq!((&item["reason"], &recipient["reason"]), (&all.clone().into(), &all.clone().into()));
        assert_eq!(recipient["who_must_act"], who.0);
        let next = recipient["next_attempt"].as_str().expect("a time");
        let shown = relay.told(&["queue", "show", item["id"].as_str().expect("an id")]);
        for words in [&all, who.1, &format!("Next try at {next}")] {
            assert!(shown.contains(words), "{words}: {shown}");
        }
        let status = relay.status()["upstreams"][0].clone();
        if at_mail {
            assert_eq!((&status["reason"], &status["who_must_act"]), (&all.clone().into(), &who.0.into()));
            assert_eq!(status["until"], next);
            let told = relay.told(&["status"]);
            assert!(told.contains(who.1) && told.contains(means), "{told}");
        } else {
            assert_eq!(status["state"], "up", "others are not concerned");
        }
        upstream.set(|it| {
            it.senders.clear();
            it.recipients.clear();
        });
        relay.told(&["queue", "retry", "--all", "--yes"]);
        relay.wait_for_empty_queue();
        let reports = reports(&upstream, &relay.home);
        assert_eq!(reports.len(), 1);
        let text = flat(&reports[0]);
        for words in [&all, in_report, &format!("Next try at {next}")] {
            assert!(text.contains(words), "{words}: {text}");
        }
    }
}
