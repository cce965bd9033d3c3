//! Reports as they are: whole ones in `tests/dsn/`, and what no words of others can do to one.
//!
//! With `BLESS=1` the files are written anew; read the difference before it is committed.

use std::{collections::BTreeMap, path::PathBuf};

use mail_parser::{MessageParser, MimeHeaders as _};
use proptest::prelude::*;

use super::*;
use crate::{
    mail::outcome::{Advice, Scope, Who},
    smtp::reply::{Enhanced, Reply},
};

const HEADER: &[u8] = "Subject: =?utf-8?q?Gr=C3=BC=C3=9Fe?=\r\nFrom: app@sender.example\r\n\
    To: a@x.example, b@x.example\r\nMessage-ID: <1@sender.example>\r\n"
    .as_bytes();

fn evidence(reply: Option<Reply>, explanation: Option<&str>) -> Evidence {
    Evidence {
        at: Timestamp(1_340_000_100_000),
        upstream: "smtp.example".into(),
        phase: "RCPT".into(),
        scope: if reply.is_some() { Scope::Recipient } else { Scope::Upstream },
        reply,
        explanation: explanation.map(str::to_owned),
        status: None,
        uncertain: false,
        advice: None,
        tls: None,
    }
}

fn mailbox(text: &str) -> Mailbox {
    Mailbox::parse(text).unwrap()
}

fn report<'a>(action: Action, to: &'a Mailbox, recipients: Vec<Fate<'a>>) -> Report<'a> {
    Report {
        action,
        recipients,
        to,
        hostname: "relay.example",
        id: "01HXYZ0000ABC",
        unique: "0123456789abcdef0123456789abcdef",
        arrival: Timestamp(1_340_000_000_000),
        until: Timestamp(1_340_432_000_000),
        now: Timestamp(1_340_000_200_000),
        subject: Some("Grüße"),
        message_id: Some("<1@sender.example>"),
        envid: None,
        returned: Returned::Header(HEADER),
    }
}

fn fate<'a>(recipient: &'a Mailbox, evidence: &'a Evidence) -> Fate<'a> {
    Fate { recipient, original: None, evidence: Some(evidence), expired: false, next: None }
}

/// The blocks of a report's machine part, as mail-parser finds it and RFC 3464 wants it read.
fn blocks(octets: &[u8]) -> Vec<BTreeMap<String, String>> {
    let report = MessageParser::default().parse(octets).expect("a message");
    let part = report.parts.iter().find(|part| {
        part.content_type()
            .and_then(|kind| kind.subtype())
            .is_some_and(|kind| kind.ends_with("delivery-status"))
    });
    let text = String::from_utf8(part.expect("a machine part").contents().to_vec()).expect("text");
    let fields = |block: &str| {
        let field = |line: &str| {
            let (name, value) = line.split_once(": ").unwrap_or_else(|| panic!("no field: {line:?}"));
            (name.to_owned(), value.to_owned())
        };
        let fields: Vec<_> = block.lines().map(field).collect();
        let map: BTreeMap<_, _> = fields.iter().cloned().collect();
        assert_eq!(map.len(), fields.len(), "a field stands twice: {block}");
        map
    };
    text.trim_end().split("\r\n\r\n").map(fields).collect()
}

/// Compares with the file of this name.
#[track_caller]
fn assert_golden(name: &str, octets: &[u8]) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/dsn").join(format!("{name}.eml"));
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(&path, octets).expect("tests/dsn can be written");
    }
    let wanted = std::fs::read(&path).unwrap_or_default();
    assert_eq!(
        String::from_utf8_lossy(octets),
        String::from_utf8_lossy(&wanted),
        "not as in {}; BLESS=1 writes it anew",
        path.display()
    );
}

#[test]
fn refused_and_given_up_recipients_are_told_in_one_report() {
    let reply = Reply::new(
        550,
        Some(Enhanced(5, 1, 1)),
        "no such user hére, and this is a long line that nobody may fold or encode\nnor its second line",
    );
    let refused = evidence(Some(reply), None);
    let silent = evidence(None, Some("smtp.example:587 does not answer"));
    let (to, a, b) = (mailbox("app@sender.example"), mailbox("a@x.example"), mailbox("b@x.example"));
    let original = OriginalRecipient { kind: "rfc822".into(), address: "Anna+list@old.example".into() };
    let recipients = vec![
        Fate { original: Some(&original), ..fate(&a, &refused) },
        Fate { expired: true, ..fate(&b, &silent) },
    ];
    let octets = Report { envid: Some("QQ 314159"), ..report(Action::Failed, &to, recipients) }.compose();
    assert!(octets.is_ascii(), "a report must pass any upstream");
    assert_golden("failed", &octets);

    let report = MessageParser::default().parse(&octets).unwrap();
    assert_eq!(report.subject(), Some("Not delivered: Grüße"));
    assert_eq!(report.header_raw("Auto-Submitted").map(str::trim), Some("auto-replied"));
    let kind = report.content_type().unwrap();
    assert_eq!((kind.ctype(), kind.subtype()), ("multipart", Some("report")));
    assert_eq!(kind.attribute("report-type"), Some("delivery-status"));
    let people = report.body_text(0).unwrap();
    for words in ["550 5.1.1 no such user hére", "given up", "check the address", "Anna+list@old.example"] {
        assert!(people.contains(words), "{words} is not in {people}");
    }
    let blocks = blocks(&octets);
    assert_eq!(blocks.len(), 3);
    assert_eq!(blocks[0]["Original-Envelope-Id"], "QQ 314159");
    assert_eq!(blocks[1]["Original-Recipient"], "rfc822; Anna+list@old.example");
    assert_eq!(blocks[1]["Final-Recipient"], "rfc822; a@x.example");
    assert_eq!((&*blocks[1]["Action"], &*blocks[1]["Status"]), ("failed", "5.1.1"));
    assert_eq!(
        blocks[1]["Diagnostic-Code"],
        "smtp; 550 5.1.1 no such user h?re, and this is a long line that nobody may fold or encode nor its second line"
    );
    assert_eq!((&*blocks[2]["Action"], &*blocks[2]["Status"]), ("failed", "4.4.7"));
}

#[test]
fn a_late_message_is_told_as_such_with_the_time_until_which_it_is_tried() {
    let later = evidence(
        Some(Reply::new(550, Some(Enhanced(5, 4, 5)), "quota exceeded")),
        Some("the account's limit"),
    );
    let (to, a, b) = (mailbox("app@sender.example"), mailbox("a@x.example"), mailbox("b@x.example"));
    let advice = Advice { who: Who::Operator, help: None, not_before: None, tries: None, slower: None };
    let later = Evidence { advice: Some(Box::new(advice)), ..later };
    let waits = Fate { next: Some(Timestamp(1_340_003_700_000)), ..fate(&a, &later) };
    let untried = Fate { evidence: None, ..fate(&b, &later) };
    let octets = report(Action::Delayed, &to, vec![waits, untried]).compose();
    assert_golden("delayed", &octets);
    let blocks = blocks(&octets);
    assert_eq!((&*blocks[1]["Action"], &*blocks[1]["Status"]), ("delayed", "4.4.5"));
    assert_eq!(blocks[1]["Will-Retry-Until"], "Sat, 23 Jun 2012 06:13:20 +0000");
    assert_eq!((&*blocks[2]["Action"], &*blocks[2]["Status"]), ("delayed", "4.0.0"));
    assert!(!blocks[2].contains_key("Last-Attempt-Date") && !blocks[2].contains_key("Remote-MTA"));
}

#[test]
fn what_was_passed_on_is_told_without_a_promise() {
    let taken = evidence(Some(Reply::new(250, None, "Ok: queued as 4711")), None);
    let (to, a) = (mailbox("app@sender.example"), mailbox("a@x.example"));
    let octets = Report { subject: None, ..report(Action::Relayed, &to, vec![fate(&a, &taken)]) }.compose();
    assert_golden("relayed", &octets);
    let blocks = blocks(&octets);
    assert_eq!((&*blocks[1]["Action"], &*blocks[1]["Status"]), ("relayed", "2.0.0"));
    assert!(!blocks[1].contains_key("Will-Retry-Until"));
}

#[test]
fn of_very_many_recipients_people_read_the_first_and_programs_read_all() {
    let refused = evidence(Some(Reply::new(550, None, "no")), None);
    let to = mailbox("app@sender.example");
    let recipients: Vec<_> = (0..103).map(|n| mailbox(&format!("user{n}@x.example"))).collect();
    let fates = recipients.iter().map(|recipient| fate(recipient, &refused)).collect();
    let octets = report(Action::Failed, &to, fates).compose();
    assert_eq!(blocks(&octets).len(), 104);
    let parsed = MessageParser::default().parse(&octets).unwrap();
    let people = parsed.body_text(0).unwrap();
    assert!(
        people.contains("user99@") && !people.contains("user100@") && people.contains("and 3 more"),
        "{people}"
    );
}

#[test]
fn all_of_a_message_is_returned_unchanged() {
    let refused = evidence(Some(Reply::new(554, Some(Enhanced(5, 7, 1)), "spam")), None);
    let (to, a) = (mailbox("\"a b\"@sender.example"), mailbox("a@x.example"));
    let message = [HEADER, "\r\n.\r\nSchöne Grüße\r\n--0123456789abcdef\r\n".as_bytes()].concat();
    let octets = Report {
        returned: Returned::Message(&message),
        ..report(Action::Failed, &to, vec![fate(&a, &refused)])
    }
    .compose();
    assert_golden("failed-with-the-whole-message", &octets);
    let report = MessageParser::default().parse(&octets).unwrap();
    let inner = report.attachment(1).and_then(|part| part.message()).expect("a message in the message");
    assert_eq!(inner.raw_message(), message);
}

#[test]
fn a_sender_beyond_ascii_reads_a_report_beyond_ascii_and_all_others_do_not() {
    let refused = evidence(Some(Reply::new(550, Some(Enhanced(5, 1, 1)), "unbekannt: größe")), None);
    let (to, a) = (mailbox("müller@bücher.example"), mailbox("ü@x.example"));
    let original = OriginalRecipient { kind: "utf-8".into(), address: "ö@old.example".into() };
    let recipients = vec![Fate { original: Some(&original), ..fate(&a, &refused) }];
    let octets = report(Action::Failed, &to, recipients.clone()).compose();
    assert_golden("failed-for-a-sender-beyond-ascii", &octets);
    let ours = &blocks(&octets)[1];
    assert_eq!(ours["Final-Recipient"], "utf-8; ü@x.example");
    assert_eq!(ours["Original-Recipient"], "utf-8; ö@old.example");
    assert_eq!(ours["Diagnostic-Code"], "smtp; 550 5.1.1 unbekannt: größe");

    let octets = report(Action::Failed, &mailbox("app@sender.example"), recipients).compose();
    assert!(octets.is_ascii());
    assert_eq!(blocks(&octets)[1]["Final-Recipient"], "utf-8; \\x{FC}@x.example");
    assert_eq!(blocks(&octets)[1]["Original-Recipient"], "utf-8; \\x{F6}@old.example");
}

/// Characters that mean something somewhere in a message, among all others.
fn hostile() -> impl Strategy<Value = String> {
    let pieces = prop_oneof![
        Just("\r\n".to_owned()),
        Just("\n".to_owned()),
        Just("\r\n\r\n".to_owned()),
        Just("Action: delivered".to_owned()),
        Just("\r\nFinal-Recipient: rfc822; forged@x.example\r\n".to_owned()),
        Just("Bcc: forged@x.example".to_owned()),
        Just("=?utf-8?q?=0D=0ABcc:_forged?=".to_owned()),
        Just("--0123456789abcdef".to_owned()),
        Just("\u{202E}\u{2028}\u{85}\0".to_owned()),
        "\\PC{0,80}",
        any::<String>(),
    ];
    proptest::collection::vec(pieces, 0..8).prop_map(|pieces| pieces.concat())
}

prop_compose! {
    fn address()(local in "[!-~]{1,20}|\"[ -~]{1,40}\"", domain in "[a-z]{1,9}(\\.[a-z]{2,5}){1,2}|\\[127\\.0\\.0\\.1\\]")
        -> Option<Mailbox>
    {
        Mailbox::parse(&format!("{local}@{domain}")).ok()
    }
}

proptest! {
    #[test]
    fn no_words_of_others_can_forge_a_field_or_a_part(
        words in hostile(),
        ours in proptest::option::of(hostile()),
        subject in proptest::option::of(hostile()),
        message_id in proptest::option::of(hostile()),
        header in hostile(),
        envid in proptest::option::of("[ -~]{0,100}"),
        (kind, original) in ("rfc822|utf-8|x-[a-z]{1,9}", "\\PC{1,300}"),
        to in address(),
        recipient in address(),
        action in proptest::sample::select(vec![Action::Relayed, Action::Delayed, Action::Failed]),
        silent: bool,
    ) {
        let (Some(to), Some(recipient)) = (to, recipient) else { return Ok(()) };
        let reply = (!silent).then(|| Reply::new(550, None, words));
        let seen = evidence(reply, ours.as_deref());
        let original = OriginalRecipient { kind, address: original };
        let fate = Fate { original: Some(&original), ..fate(&recipient, &seen) };
        let report = Report {
            subject: subject.as_deref(),
            message_id: message_id.as_deref(),
            envid: envid.as_deref(),
            returned: Returned::Header(header.as_bytes()),
            ..report(action, &to, vec![fate])
        };
        let octets = report.compose();
        prop_assert!(octets.is_ascii());
        let lines = octets.split(|b| *b == b'\n');
        prop_assert!(lines.clone().all(|line| line.len() <= 999), "RFC 5322 §2.1.1");
        let text = String::from_utf8(octets.clone()).unwrap();
        prop_assert!(!text.replace("\r\n", "").contains(['\r', '\n', '\0']), "only CRLF ends a line");

        let parsed = MessageParser::default().parse(&octets).unwrap();
        let known = ["From", "To", "Subject", "Date", "Message-ID", "Auto-Submitted", "In-Reply-To", "References",
            "MIME-Version", "Content-Type"];
        for header in parsed.headers() {
            prop_assert!(known.contains(&header.name()), "{:?}", header.name());
        }
        prop_assert_eq!(parsed.parts.len(), 4 - usize::from(header.is_empty()), "the whole and its three parts");
        let blocks = blocks(&octets);
        prop_assert_eq!(blocks.len(), 2);
        prop_assert_eq!(&blocks[1]["Action"], action.name());
        let wanted = format!("rfc822; {recipient}");
        prop_assert_eq!(&blocks[1]["Final-Recipient"], &wanted);
    }
}
