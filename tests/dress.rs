//! How mail is changed for its upstream: other senders' addresses in envelope and From field, and DKIM
//! signatures. Everything else is as the app wrote it.

mod support;

use support::bytes::contains;
use support::relay::Relay;
use support::service::{Home, Service};
use support::upstream::Upstream;
use support::wait;

const PASSWORD: &str = "upstream-sesame-4711";

fn mailer(upstream: &Upstream) -> Service {
    upstream.upstream_of(Service::mailer(), PASSWORD)
}

/// The MAIL commands that the upstream heard, in their order.
fn mail_commands(upstream: &Upstream) -> Vec<String> {
    let heard: Vec<u8> = upstream.heard().into_iter().flat_map(|heard| heard.inside).collect();
    let text = String::from_utf8_lossy(&heard).into_owned();
    text.lines().filter(|line| line.starts_with("MAIL FROM:")).map(str::to_owned).collect()
}

/// A body beyond what is kept in memory, with dots at the beginning of lines.
fn large_body() -> String {
    (0..9_000)
        .map(|line| format!(".line {line} of a message that is kept in a file of its own\r\n"))
        .collect()
}

#[test]
fn envelope_and_from_get_the_address_and_nothing_else_changes() {
    let upstream = Upstream::start(PASSWORD);
    let relay = Relay::start(&mailer(&upstream).set("smtp_sender_rewrite", "relay@example.com"));
    let header = "X-Token: one\r\nDate: Mon, 23 Nov 2026 10:00:00 +0000\r\nMessage-ID: <1@app.test>\r\n";
    for (token, body) in [("small", "Hello.\r\n.\r\n".to_owned()), ("large", large_body())] {
        let from = "\"Shop, the <best>\" (one)\r\n <shop@app.test>";
        let content = |token: &str, from: &str, more: &str| {
            format!("{}From: {from}\r\n{more}Subject: x\r\n\r\n{body}", header.replace("one", token))
        };
        let sent = content(token, from, "");
        let stuffed = sent.replace("\r\n.", "\r\n..");
        relay.client().send("shop@app.test", &["a@example.test"], &stuffed).expect("taken");
        wait::until_true(token, || upstream.ledger().contains_key(token));
        let got = upstream.messages().pop().expect("a message");
        let expected = content(
            token,
            "\"Shop, the <best>\" (one)\r\n <relay@example.com>",
            &format!("Reply-To: {from}\r\n"),
        );
        // Our Received field is on top.
        assert!(
            got.ends_with(expected.as_bytes()),
            "{token}: {}",
            String::from_utf8_lossy(&got[..got.len().min(900)])
        );
        assert!(got.starts_with(b"Received: ") && got.len() < expected.len() + 400);
        let command = mail_commands(&upstream).pop().expect("a command");
        assert!(command.starts_with("MAIL FROM:<relay@example.com> "), "{command}");
        assert!(command.contains(&format!("SIZE={}", got.len())), "{command}: {}", got.len());
    }
}

#[test]
fn patterns_say_which_senders_and_a_change_applies_to_queued_mail() {
    let upstream = Upstream::start(PASSWORD);
    upstream.set(|it| it.greeting = Some("421 4.3.2 not now".into()));
    let service = mailer(&upstream);
    let home = Home::new(&[&service]);
    let relay = Relay::start_in(&home, &service);
    for sender in ["root@web.test", "ann@shop.test", "ann@example.com"] {
        let content = format!("X-Token: {sender}\r\nFrom: {sender}\r\n\r\nx\r\n");
        relay.client().send(sender, &["a@example.test"], &content).expect("taken");
    }
    let map = "{root@web.test: ops@example.com, .test: other@example.com, shop.test: shop@example.com}";
    home.write(&[&service.set("smtp_sender_rewrite", map)]);
    upstream.set(|it| it.greeting = None);
    relay.told(&["reload"]);
    relay.wait_for_empty_queue();
    let mut got: Vec<(String, String)> = upstream
        .messages()
        .iter()
        .map(|message| {
            let text = String::from_utf8_lossy(message).into_owned();
            let field = |name: &str| {
                let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_default();
                line.split_once(": ").map_or(String::new(), |(_, value)| value.to_owned())
            };
            (format!("{} {}", field("X-Token:"), field("From:")), field("Reply-To:"))
        })
        .collect();
    got.sort();
    // `.test` means subdomains of test, which both are.
    let expected = [
        ("ann@example.com ann@example.com", ""),
        ("ann@shop.test other@example.com", "ann@shop.test"),
        ("root@web.test ops@example.com", "root@web.test"),
    ];
    assert_eq!(got, expected.map(|(a, b)| (a.to_owned(), b.to_owned())));
    let mut senders: Vec<String> = mail_commands(&upstream)
        .iter()
        .map(|line| line[10..].split(' ').next().unwrap().to_owned())
        .collect();
    senders.sort();
    assert_eq!(senders, ["<ann@example.com>", "<ops@example.com>", "<other@example.com>"]);
}

#[test]
fn a_report_keeps_its_empty_sender_and_goes_to_the_first_sender() {
    let upstream = Upstream::start(PASSWORD);
    upstream
        .set(|it| drop(it.recipients.insert("gone@example.test".into(), "550 5.1.1 no such user".into())));
    let relay = Relay::start(&mailer(&upstream).set("smtp_sender_rewrite", "relay@example.com"));
    relay.client().send("app@app.test", &["gone@example.test"], "X-Token: one\r\n\r\nx\r\n").expect("taken");
    relay.wait_for_empty_queue();
    wait::until_true("the report", || upstream.messages().len() == 1);
    let report = upstream.messages().remove(0);
    assert!(contains(&report, b"To: <app@app.test>") || contains(&report, b"To: app@app.test"));
    let commands = mail_commands(&upstream);
    assert!(commands[0].starts_with("MAIL FROM:<relay@example.com>"), "{commands:?}");
    assert!(commands[1].starts_with("MAIL FROM:<>"), "{commands:?}");
}
