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
    relay.told(&["reload"]);
    // Not before: none may go by the settings of before.
    upstream.set(|it| it.greeting = None);
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

/// What an independent implementation says of each signature of a message.
fn verdicts(relay: &Relay, message: &[u8], records: &[(String, String)]) -> Vec<serde_json::Value> {
    let file = relay.data().join("to-verify.eml");
    std::fs::write(&file, message).expect("a file");
    let mut arguments = vec![file.to_str().expect("a path")];
    arguments.extend(records.iter().flat_map(|(name, text)| [name.as_str(), text.as_str()]));
    let verdicts = support::programs::python("dkim_verify.py", &arguments);
    verdicts.as_array().expect("a list").clone()
}

#[test]
fn another_implementation_finds_both_signatures_good_whatever_the_message() {
    let upstream = Upstream::start(PASSWORD);
    let keys = "[{domain: example.com}, {domain: example.com, selector: ed, algorithm: ed25519}]";
    let service =
        mailer(&upstream).set("smtp_dkim", keys).set("smtp_sender_rewrite", "{.test: relay@example.com}");
    let home = Home::new(&[&service]);
    let mut relay = Relay::of(&home, &service);
    let refused = relay.cli(&["check"]);
    assert_eq!(refused.status.code(), Some(78));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("`outpost dkim` makes the key"));

    let zone = relay.told(&["dkim"]);
    assert!(zone.contains("outpost._domainkey.example.com. IN TXT ( \"v=DKIM1; k=rsa; p="), "{zone}");
    assert_eq!(zone.matches("made just now").count(), 2);
    for selector in ["outpost", "ed"] {
        let file = relay.data().join(format!("dkim/{selector}.example.com.pem"));
        let mode =
            std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&file).expect("made").permissions());
        assert_eq!(mode & 0o777, 0o600);
        let key = std::fs::read_to_string(&file).expect("a key");
        assert!(key.lines().filter(|line| !line.starts_with('-')).all(|line| !zone.contains(line)), "shown");
    }
    let records: serde_json::Value = serde_json::from_str(&relay.told(&["dkim", "--json"])).expect("JSON");
    let text = |record: &serde_json::Value, key: &str| record[key].as_str().expect("a text").to_owned();
    let records: Vec<(String, String)> =
        records.as_array().expect("a list").iter().map(|it| (text(it, "name"), text(it, "value"))).collect();

    relay.up();
    let long = "x ".repeat(5_000);
    let bodies = [
        ("empty", String::new()),
        ("blank", "\r\n\r\n \t\r\n".to_owned()),
        ("eight-bit", "Gr\u{fc}\u{df}e \u{2603}\r\n".to_owned()),
        ("long", format!("{long}\r\n\t {long} \r\n\r\n")),
        ("dots", ".\r\n..\r\n.a.\r\n".to_owned()),
        ("large", large_body()),
    ];
    for (token, body) in bodies {
        let content = format!(
            "X-Token: {token}\r\nFrom:  \"Shop\"\r\n\t<shop@shop.test>\r\nTo: a@example.test\r\nTO: b@example.test\r\n\
             Subject:  folded \r\n and  spaced\t\r\n\r\n{body}"
        );
        let stuffed = content.replace("\r\n.", "\r\n..");
        let mail = "<shop@shop.test> BODY=8BITMIME";
        relay.client().send_as(mail, &["<a@example.test>"], &stuffed).expect("taken");
        wait::until_true(token, || upstream.ledger().contains_key(token));
        let got = upstream.messages().pop().expect("a message");
        assert!(contains(&got, b"<relay@example.com>"), "{token}");
        assert_eq!(verdicts(&relay, &got, &records), [true, true], "{token}");
        let relayed = [b"Received: from a by b; Mon, 23 Nov 2026 10:00:00 +0000\r\n", &got[..]].concat();
        assert_eq!(verdicts(&relay, &relayed, &records), [true, true], "{token}");
        // The judge can say no: of another body, another sender, a second From field.
        for changed in [
            [&got[..], b"more\r\n"].concat(),
            String::from_utf8_lossy(&got).replace("relay@example.com", "other@example.com").into_bytes(),
            [b"From: other@example.com\r\n", &got[..]].concat(),
        ] {
            assert!(verdicts(&relay, &changed, &records).iter().all(|verdict| verdict != true), "{token}");
        }
    }
    // Mail from elsewhere is not signed in our name.
    relay
        .client()
        .send("a@else.example", &["a@example.test"], "X-Token: else\r\nFrom: a@else.example\r\n\r\nx\r\n")
        .expect("taken");
    wait::until_true("else", || upstream.ledger().contains_key("else"));
    assert!(!contains(&upstream.messages().pop().expect("a message"), b"DKIM-Signature"));
}
