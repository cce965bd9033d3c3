//! Conversations with upstreams that behave, and with many that don't, over memory.

use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader, DuplexStream};

use super::*;
use crate::{
    config::{AuthMechanism, Replies, Serves, TlsVersion, UpstreamTls, Waits},
    delivery::{Forward, Head},
    mail::{content::Content, envelope::Handling},
    smtp::{
        address::{Mailbox, ReversePath},
        parameter::Body,
        reply::Enhanced,
    },
};

pub(crate) fn upstream() -> Upstream {
    Upstream {
        name: "up".into(),
        server: "up.example".into(),
        port: 25,
        tls: UpstreamTls::None,
        tls_min_version: TlsVersion::Tls12,
        ca: None,
        fingerprint: None,
        published: Vec::new(),
        login: None,
        allow_insecure_auth: false,
        connections: 1,
        timeout: Some(Duration::from_secs(5)),
        auth_retry: Waits { first: Duration::from_secs(60), longest: Duration::from_secs(60) },
        identity: None,
        recipients: None,
        messages: None,
        source: Vec::new(),
        proxy: None,
        pipelining: true,
        chunking: true,
        message_size: None,
        provider: None,
        replies: Replies::default(),
        limits: Vec::new(),
        sender_rewrite: None,
        replaces: Vec::new(),
        serves: Serves::default(),
    }
}

fn client(keywords: &str) -> (Client<DuplexStream>, DuplexStream) {
    let (ours, theirs) = tokio::io::duplex(64 * 1024);
    let mut client =
        Client::new(Stream::Plain(ours), Arc::new(upstream()), "relay.example".into(), Clock::System);
    client.capabilities = Capabilities::from_reply(&Reply::new(250, None, format!("up\n{keywords}")));
    (client, theirs)
}

/// An upstream that answers what it was told to, whatever is asked; it counts the messages it took.
fn play(stream: DuplexStream, answers: &'static [&'static str]) -> tokio::task::JoinHandle<Vec<String>> {
    tokio::spawn(async move {
        let mut stream = BufReader::new(stream);
        let (mut heard, mut content) = (Vec::new(), false);
        let mut answers = answers.iter();
        loop {
            let mut line = String::new();
            if stream.read_line(&mut line).await.unwrap_or(0) == 0 {
                return heard;
            }
            heard.push(line.trim_end().to_owned());
            if content && line != ".\r\n" {
                continue;
            }
            if let Some(size) = line.strip_prefix("BDAT ").and_then(|rest| rest.split(' ').next()) {
                let mut octets = vec![0; size.parse().expect("a size")];
                if stream.read_exact(&mut octets).await.is_err() {
                    return heard;
                }
            }
            let Some(answer) = answers.next() else { return heard };
            if *answer == "hang up" {
                return heard;
            }
            content = answer.starts_with("354");
            if stream.get_mut().write_all(format!("{answer}\r\n").as_bytes()).await.is_err() {
                return heard;
            }
        }
    })
}

async fn attempt(client: &mut Client<DuplexStream>, recipients: &[&str], content: &Content) -> Attempt {
    attempt_with(client, recipients, content, Handling::default()).await
}

async fn attempt_with(
    client: &mut Client<DuplexStream>,
    recipients: &[&str],
    content: &Content,
    handling: Handling,
) -> Attempt {
    attempt_as(client, recipients, content, None, handling).await
}

async fn attempt_as(
    client: &mut Client<DuplexStream>,
    recipients: &[&str],
    content: &Content,
    head: Option<&Head>,
    handling: Handling,
) -> Attempt {
    attempt_behind(client, recipients, content, (head, handling), None).await
}

/// The same, with another message to these announced behind its content.
async fn attempt_behind(
    client: &mut Client<DuplexStream>,
    recipients: &[&str],
    content: &Content,
    (head, handling): (Option<&Head>, Handling),
    next: Option<&[&str]>,
) -> Attempt {
    let mailboxes = |of: &[&str]| of.iter().map(|text| Mailbox::parse(text).unwrap()).collect::<Vec<_>>();
    let (recipients, behind) = (mailboxes(recipients), next.map(mailboxes));
    let reverse_path = ReversePath::from(Mailbox::parse("a@b.example").unwrap());
    let forward = |mailbox| Forward { mailbox, notify: None, original: None };
    let to =
        |recipients| Message { reverse_path: &reverse_path, recipients, handling: &handling, content, head };
    let behind =
        behind.as_ref().map(|behind| client.ahead(&to(behind.iter().map(forward).collect())).expect("plain"));
    client.attempt(&to(recipients.iter().map(forward).collect()), behind, async {}).await
}

fn content() -> Content {
    Content::Memory(Bytes::from_static(b"Subject: x\r\n\r\n.hi\r\n"))
}

fn outcomes(attempt: Attempt) -> Vec<Outcome> {
    match attempt {
        Attempt::Done(outcomes) | Attempt::Lost(outcomes) => outcomes,
        other => panic!("{other:?}"),
    }
}

/// D, W (waits), F, or U (uncertain) for each recipient.
fn letters(outcomes: &[Outcome]) -> String {
    let letter = |outcome: &Outcome| match outcome {
        Outcome::Delivered(_) => 'D',
        Outcome::Deferred(evidence) if evidence.uncertain => 'U',
        Outcome::Deferred(_) => 'W',
        Outcome::Failed(_) => 'F',
    };
    outcomes.iter().map(letter).collect()
}

const TWO: [&str; 2] = ["c@d.example", "e@f.example"];

/// Answers to MAIL, RCPT, RCPT, DATA, dot; what becomes of the two recipients; whether the
/// connection can be used again.
#[tokio::test]
async fn each_recipient_has_its_own_outcome_and_nothing_is_counted_for_another() {
    let cases: [(&'static [&'static str], &str, bool); 20] = [
        (&["250 ok", "250 ok", "250 ok", "354 go", "250 taken"], "DD", true),
        (&["250 ok", "550 no", "250 ok", "354 go", "250 taken"], "FD", true),
        (&["250 ok", "250 ok", "451 later", "354 go", "250 taken"], "DW", true),
        (&["250 ok", "250 ok", "452 4.5.3 too many", "354 go", "250 taken"], "DW", true),
        (&["250 ok", "250 ok", "250 ok", "354 go", "451 later"], "WW", true),
        (&["250 ok", "250 ok", "250 ok", "354 go", "554 spam"], "FF", true),
        (&["250 ok", "550 no", "550 no", "554 nobody", "x"], "FF", true),
        (&["250 ok", "550 no", "550 no", "354 go", "554 nobody"], "FF", true),
        (&["550 you", "503 x", "503 x", "503 x", "x"], "FF", true),
        (&["530 log in", "503 x", "503 x", "503 x", "x"], "WW", true),
        (&["250 ok", "250 ok", "250 ok", "451 not now", "x"], "WW", true),
        // A yes to DATA, as of an upstream that is one reply ahead: no content was sent, so nothing
        // was delivered.
        (&["250 ok", "250 ok", "250 ok", "250 ok", "x"], "WW", false),
        (&["250 ok", "250 ok", "250 ok", "354 go\r\n250 one too many", "250 taken"], "WW", false),
        (&["250 ok", "250 ok", "250 ok", "354 go", "hang up"], "UU", false),
        (&["250 ok", "250 ok", "421 bye", "x", "x"], "WW", false),
        // Who was answered before it ended has an answer.
        (&["250 ok", "550 no", "421 bye", "x", "x"], "FW", false),
        (&["250 ok", "550 no", "hang up", "x", "x"], "FW", false),
        // Out of step, so that even a no may be another's.
        (&["250 ok", "250 ok", "550 no", "250 ok", "x"], "WW", false),
        (&["250 ok", "250 ok", "550 no", "550 no\r\n354 go", "x"], "WW", false),
        (&["250 ok", "250 ok", "250 ok", "hello?", "x"], "WW", false),
    ];
    for keywords in ["PIPELINING", ""] {
        for (answers, expected, usable) in cases {
            let (mut client, theirs) = client(keywords);
            let upstream = play(theirs, answers);
            let got = outcomes(attempt(&mut client, &TWO, &content()).await);
            assert_eq!(letters(&got), expected, "{keywords} {answers:?} {got:?}");
            assert_eq!(client.is_usable(), usable, "{keywords} {answers:?}");
            drop(client);
            let heard = upstream.await.unwrap();
            let sent = heard.iter().any(|line| line == "..hi");
            // Content goes out exactly where it was asked for and somebody is to have it.
            let asked = answers[3] == "354 go" && answers[1..3].contains(&"250 ok");
            assert_eq!(sent, asked, "{keywords} {answers:?} {heard:?}");
        }
    }
}

#[tokio::test]
async fn a_connection_that_ended_while_it_was_kept_costs_the_message_nothing() {
    let (mut client, theirs) = client("PIPELINING");
    let upstream = play(theirs, &["250 ok", "250 ok", "354 go", "250 taken", "hang up"]);
    assert_eq!(letters(&outcomes(attempt(&mut client, &["c@d.example"], &content()).await)), "D");
    assert!(matches!(attempt(&mut client, &["c@d.example"], &content()).await, Attempt::Stale));
    assert!(!client.is_usable());
    upstream.await.unwrap();
}

#[tokio::test]
async fn a_connection_that_has_carried_what_it_may_costs_the_message_nothing() {
    const ENOUGH: &str = "452 4.5.3 Too many recipients: Too many messages sent";
    for keywords in ["PIPELINING", "CHUNKING", "PIPELINING\nCHUNKING", "8BITMIME"] {
        let answers: &[&str] = match (keywords.contains("CHUNKING"), keywords.contains("PIPELINING")) {
            (true, true) => &["250 ok", "250 ok", "250 taken", ENOUGH, "503 no", "503 no"],
            (true, false) => &["250 ok", "250 ok", "250 taken", ENOUGH],
            (false, true) => &["250 ok", "250 ok", "354 go", "250 taken", ENOUGH, "503 no", "503 no"],
            (false, false) => &["250 ok", "250 ok", "354 go", "250 taken", ENOUGH],
        };
        let (mut client, theirs) = self::client(keywords);
        let upstream = play(theirs, answers);
        assert_eq!(letters(&outcomes(attempt(&mut client, &["c@d.example"], &content()).await)), "D");
        let second = attempt(&mut client, &["c@d.example"], &content()).await;
        assert!(matches!(second, Attempt::Stale), "{keywords}: {second:?}");
        assert!(!client.is_usable(), "{keywords}");
        drop(client);
        upstream.await.unwrap();
    }
    // Exim's words, at which it leaves.
    let (mut client, theirs) = self::client("PIPELINING\nCHUNKING");
    let answers = &["250 ok", "250 ok", "250 taken", "421 too many messages in this connection"];
    let upstream = play(theirs, answers);
    assert_eq!(letters(&outcomes(attempt(&mut client, &ONE, &content()).await)), "D");
    assert!(matches!(attempt(&mut client, &ONE, &content()).await, Attempt::Stale));
    drop(client);
    upstream.await.unwrap();
    // Some say so of the first recipient, and go on to count the others.
    let (mut client, theirs) = self::client("PIPELINING");
    let more = "451 mails per session exceeded";
    let answers = [&["250", "250", "354 go", "250 taken"][..], &["250", more, more, "554 nobody"]];
    let upstream = play(theirs, Box::leak(answers.concat().into_boxed_slice()));
    assert_eq!(letters(&outcomes(attempt(&mut client, &ONE, &content()).await)), "D");
    assert!(matches!(attempt(&mut client, &TWO, &content()).await, Attempt::Stale));
    assert!(!client.is_usable());
    drop(client);
    upstream.await.unwrap();
    // Whoever was accepted nevertheless has got it.
    let (mut client, theirs) = self::client("PIPELINING");
    let answers = [&["250", "250", "354 go", "250 taken"][..], &["250", more, "250", "354 go", "250 taken"]];
    let upstream = play(theirs, Box::leak(answers.concat().into_boxed_slice()));
    assert_eq!(letters(&outcomes(attempt(&mut client, &ONE, &content()).await)), "D");
    assert_eq!(letters(&outcomes(attempt(&mut client, &TWO, &content()).await)), "WD");
    assert!(!client.is_usable());
    drop(client);
    upstream.await.unwrap();
    // One that takes nothing at all is not asked over and over.
    let (mut client, theirs) = self::client("8BITMIME");
    let upstream = play(theirs, &[ENOUGH]);
    let got = outcomes(attempt(&mut client, &["c@d.example"], &content()).await);
    assert_eq!((letters(&got).as_str(), got[0].evidence().scope), ("W", Scope::Transaction));
    assert!(!client.is_usable());
    drop(client);
    upstream.await.unwrap();
}

/// What is refused of an account concerns the other messages too, though the upstream hangs up behind its words.
#[tokio::test]
async fn a_refused_sender_is_an_answer_for_all_though_nothing_follows_it() {
    for keywords in ["PIPELINING", "PIPELINING\nCHUNKING"] {
        let (mut client, theirs) = client(keywords);
        let upstream = play(theirs, &["550 5.4.5 Daily user sending limit exceeded", "hang up"]);
        let Attempt::Done(got) = attempt(&mut client, &TWO, &content()).await else {
            panic!("{keywords}: no answer")
        };
        assert!(got.iter().all(|outcome| outcome.evidence().scope == Scope::Account), "{keywords}: {got:?}");
        assert!(!client.is_usable());
        drop(client);
        upstream.await.unwrap();
    }
}

#[tokio::test]
async fn a_no_amid_content_is_the_answer_to_it() {
    let (ours, theirs) = tokio::io::duplex(1024);
    let mut client =
        Client::new(Stream::Plain(ours), Arc::new(upstream()), "relay.example".into(), Clock::System);
    client.capabilities = Capabilities::from_reply(&Reply::new(250, None, "up\nPIPELINING"));
    let upstream = tokio::spawn(async move {
        let mut stream = BufReader::new(theirs);
        let mut line = String::new();
        while line != "Subject: x\r\n" {
            line.clear();
            assert!(stream.read_line(&mut line).await.unwrap() > 0, "it goes on");
            if line == "DATA\r\n" {
                stream.get_mut().write_all(b"250\r\n250\r\n250\r\n354\r\n").await.unwrap();
            }
        }
        stream.get_mut().write_all(b"552 5.3.4 too large\r\n").await.unwrap();
    });
    let large = Content::Memory(Bytes::from(format!("Subject: x\r\n\r\n{}", "x\r\n".repeat(50_000))));
    assert_eq!(letters(&outcomes(attempt(&mut client, &TWO, &large).await)), "FF");
    assert!(!client.is_usable());
    upstream.await.unwrap();
}

#[tokio::test]
async fn a_hundred_and_more_recipients_go_in_groups() {
    let recipients: Vec<String> = (0..250).map(|n| format!("u{n}@d.example")).collect();
    let recipients: Vec<&str> = recipients.iter().map(String::as_str).collect();
    let (mut client, theirs) = client("PIPELINING");
    let upstream = tokio::spawn(async move {
        let mut stream = BufReader::new(theirs);
        loop {
            let mut line = String::new();
            if stream.read_line(&mut line).await.unwrap_or(0) == 0 {
                return;
            }
            let answer = match line.get(..4) {
                Some("DATA") => "354 go\r\n",
                Some("RCPT") if line.contains("u7@") => "550 no\r\n",
                Some("RCPT" | "MAIL") => "250 ok\r\n",
                _ if line == ".\r\n" => "250 taken\r\n",
                _ => continue,
            };
            stream.get_mut().write_all(answer.as_bytes()).await.unwrap();
        }
    });
    let got = letters(&outcomes(attempt(&mut client, &recipients, &content()).await));
    assert_eq!(got.len(), 250);
    assert_eq!(got.find('F'), Some(7));
    assert_eq!(got.matches('D').count(), 249);
    drop(client);
    upstream.await.unwrap();
}

#[tokio::test]
async fn a_damaged_spool_file_never_gets_its_dot_and_a_missing_one_is_never_begun() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("content");
    std::fs::write(&path, "Subject: x\r\n\r\nhi\r\n").unwrap();
    let damaged = Content::File { path, size: 18, crc32c: 1 };
    let (mut client, theirs) = client("PIPELINING");
    let upstream = play(theirs, &["250 ok", "250 ok", "354 go", "250 taken"]);
    assert!(matches!(attempt(&mut client, &["c@d.example"], &damaged).await, Attempt::Damaged));
    assert!(!client.is_usable());
    drop(client);
    assert!(!upstream.await.unwrap().contains(&".".to_owned()));

    let missing = Content::File { path: directory.path().join("none"), size: 18, crc32c: 1 };
    let (mut client, theirs) = self::client("PIPELINING");
    assert!(matches!(attempt(&mut client, &["c@d.example"], &missing).await, Attempt::Damaged));
    drop(client);
    assert!(play(theirs, &[]).await.unwrap().is_empty());
}

#[tokio::test]
async fn what_the_upstream_said_it_will_not_take_is_not_sent() {
    let (mut client, _theirs) = client("PIPELINING\nSIZE 10");
    let got = outcomes(attempt(&mut client, &TWO, &content()).await);
    assert_eq!(letters(&got), "FF");
    assert_eq!((got[0].evidence().reply.clone(), got[0].evidence().status), (None, Some(Enhanced(5, 3, 4))));
    assert!(client.is_usable());
}

#[tokio::test(start_paused = true)]
async fn a_silent_upstream_is_given_up_at_its_deadline() {
    let (mut client, _theirs) = client("PIPELINING");
    let start = tokio::time::Instant::now();
    let got = outcomes(attempt(&mut client, &TWO, &content()).await);
    assert_eq!(letters(&got), "WW");
    assert_eq!(start.elapsed(), Duration::from_secs(5));
}

/// An upstream for BDAT: it refuses recipients named `no`, and keeps what it takes.
fn play_chunks(stream: DuplexStream) -> tokio::task::JoinHandle<Vec<Vec<u8>>> {
    tokio::spawn(async move {
        let (mut stream, mut taken) = (BufReader::new(stream), Vec::new());
        loop {
            let mut line = String::new();
            if stream.read_line(&mut line).await.unwrap_or(0) == 0 {
                return taken;
            }
            let mut answer = if line.contains("<no@") { "550 no\r\n" } else { "250 ok\r\n" };
            if let Some(size) = line.strip_prefix("BDAT ") {
                let size = size.trim_end().strip_suffix(" LAST").expect("one chunk").parse().unwrap();
                let mut octets = vec![0; size];
                if stream.read_exact(&mut octets).await.is_err() {
                    return taken;
                }
                taken.push(octets);
                answer = "250 taken\r\n";
            }
            stream.get_mut().write_all(answer.as_bytes()).await.unwrap();
        }
    })
}

#[tokio::test]
async fn binary_content_goes_by_bdat_as_it_is() {
    let binary = || Handling { body: Body::Binary, ..Handling::default() };
    let octets: Vec<u8> = b"a\n.\r\n\0\r.\r\n".iter().copied().cycle().take(200_000).collect();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("content");
    std::fs::write(&path, &octets).unwrap();
    let crc32c = crc32c::crc32c(&octets);
    let file = |size, crc32c| Content::File { path: path.clone(), size, crc32c };
    let memory = Content::Memory(octets.clone().into());

    let (mut client, theirs) = client("PIPELINING\nCHUNKING\nBINARYMIME");
    let upstream = play_chunks(theirs);
    let got = outcomes(attempt_with(&mut client, &["no@x.example", "c@d.example"], &memory, binary()).await);
    assert_eq!(letters(&got), "FD");
    // Nobody accepted: not an octet of it.
    let got = outcomes(attempt_with(&mut client, &["no@x.example"], &memory, binary()).await);
    assert_eq!(letters(&got), "F");
    let got = outcomes(attempt_with(&mut client, &TWO, &file(200_000, crc32c), binary()).await);
    assert_eq!((letters(&got).as_str(), client.is_usable()), ("DD", true));
    // A damaged file: what was announced as the last chunk never becomes whole.
    assert!(matches!(attempt_with(&mut client, &TWO, &file(200_000, 1), binary()).await, Attempt::Damaged));
    drop(client);
    assert_eq!(upstream.await.unwrap(), [octets.clone(), octets]);

    let (mut client, theirs) = self::client("PIPELINING\nCHUNKING\n8BITMIME");
    assert_eq!(letters(&outcomes(attempt_with(&mut client, &TWO, &memory, binary()).await)), "FF");
    drop((client, theirs));
}

#[tokio::test]
async fn whom_the_upstream_can_not_reach_is_left_out_and_the_others_are_not() {
    let (mut client, theirs) = client("PIPELINING\nLIMITS RCPTMAX=2");
    let upstream = play(theirs, &["250 ok", "250 ok", "354 go", "250 taken"]);
    let recipients = ["ü@x.example", "c@d.example", "e@f.example"];
    let got = outcomes(attempt(&mut client, &recipients, &content()).await);
    assert_eq!(letters(&got), "FDW");
    assert_eq!(got[0].evidence().status, Some(Enhanced(5, 6, 7)));
    assert_eq!(got[2].evidence().scope, Scope::Transaction);
    drop(client);
    let heard = upstream.await.unwrap();
    assert!(heard.iter().all(|line| line.is_ascii() && !line.contains("SMTPUTF8")), "{heard:?}");
}

/// RFC 5802 §3: the yes of a server that did not show that it knows the password is worth nothing.
#[tokio::test]
async fn a_server_that_only_claims_to_know_the_password_is_left() {
    let login = Login {
        username: "a".into(),
        password: "secret".to_owned().into(),
        mechanism: AuthMechanism::Auto,
        oauth: None,
    };
    let cases: [&'static [&'static str]; 4] = [
        &["235 welcome"],
        &["334 ", "235 welcome"],
        // Not a word of SCRAM, and no matter what it says to our giving up.
        &["334 aGVsbG8=", "235 welcome"],
        &["334 ", "334 ", "334 ", "235 welcome"],
    ];
    for answers in cases {
        let (mut client, theirs) = client("AUTH SCRAM-SHA-256");
        let upstream = play(theirs, answers);
        let lost = client.authenticate(Mechanism::ScramSha256, &login).await.expect_err("no login");
        assert!(lost.words().contains("without showing that it knows the password"), "{}", lost.words());
        assert!(!client.is_usable());
        drop(client);
        let heard = upstream.await.unwrap();
        assert!(heard.iter().all(|line| !line.contains(&sasl::encode("secret"))), "{heard:?}");
    }
}

/// A server that asks on and on hears user name and password once, and then no more.
#[tokio::test]
async fn challenges_without_end_end_the_login() {
    let login = Login {
        username: "a".into(),
        password: "secret".to_owned().into(),
        mechanism: AuthMechanism::Auto,
        oauth: None,
    };
    for mechanism in [Mechanism::Login, Mechanism::CramMd5, Mechanism::Plain, Mechanism::XOAuth2] {
        let (mut client, theirs) = client("AUTH LOGIN");
        let upstream = play(theirs, &["334 VXNlcm5hbWU6"; 20]);
        let lost = client.authenticate(mechanism, &login).await.expect_err("no login");
        assert!(lost.words().contains("asked without end"), "{}", lost.words());
        assert!(!client.is_usable());
        drop(client);
        let heard = upstream.await.unwrap();
        assert!(heard.len() <= 1 + CHALLENGES_MAX, "{heard:?}");
        let secret = heard.iter().filter(|line| **line == sasl::encode("secret")).count();
        assert_eq!(secret, usize::from(mechanism == Mechanism::Login), "{heard:?}");
        assert_eq!(heard.last().map(String::as_str), Some("*"), "{heard:?}");
    }
}

#[tokio::test]
async fn another_head_goes_out_in_the_place_of_the_first_octets_and_counts() {
    let octets: Vec<u8> = [&b"Subject: x\r\n"[..], &b"\r\n.hi\r\n".repeat(20_000)].concat();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), &octets).unwrap();
    let crc32c = crc32c::crc32c(&octets);
    let in_file = Content::File { path: file.path().to_owned(), size: octets.len() as u64, crc32c };
    let head = Head { octets: b".Subject: another one\r\n".to_vec(), replaces: 12 };
    let sent = [&head.octets[..], &octets[12..]].concat();
    for content in [Content::Memory(Bytes::from(octets)), in_file] {
        for binary in [false, true] {
            let keywords = if binary { "PIPELINING\nSIZE\nBINARYMIME\nCHUNKING" } else { "PIPELINING\nSIZE" };
            let (mut client, theirs) = client(keywords);
            let upstream = tokio::spawn(async move {
                let (mut stream, mut heard) = (BufReader::new(theirs), Vec::new());
                let mut line = String::new();
                while stream.read_line(&mut line).await.unwrap_or(0) > 0 {
                    let said = std::mem::take(&mut line);
                    if let Some(size) = said.strip_prefix("BDAT ").and_then(|rest| rest.split(' ').next()) {
                        let mut chunk = vec![0; size.parse().unwrap()];
                        tokio::io::AsyncReadExt::read_exact(&mut stream, &mut chunk).await.unwrap();
                        heard.extend_from_slice(&chunk);
                    } else if said == "DATA\r\n" {
                        stream.get_mut().write_all(b"354 go\r\n").await.unwrap();
                        while line != ".\r\n" {
                            heard.extend_from_slice(line.strip_prefix('.').unwrap_or(&line).as_bytes());
                            line.clear();
                            assert!(stream.read_line(&mut line).await.unwrap() > 0);
                        }
                        line.clear();
                    } else if said.starts_with("MAIL") {
                        heard.extend_from_slice(said.as_bytes());
                    }
                    stream.get_mut().write_all(b"250 ok\r\n").await.unwrap();
                }
                heard
            });
            let body = if binary { Body::Binary } else { Body::SevenBit };
            let handling = Handling { body, ..Handling::default() };
            let got = attempt_as(&mut client, &["c@d.example"], &content, Some(&head), handling).await;
            assert_eq!(letters(&outcomes(got)), "D");
            drop(client);
            let heard = upstream.await.unwrap();
            let end = heard.iter().position(|octet| *octet == b'\n').unwrap() + 1;
            let mail = String::from_utf8_lossy(&heard[..end]).into_owned();
            assert!(mail.contains(&format!(" SIZE={}", sent.len())), "{mail}");
            assert!(heard[end..] == sent, "{binary}: {} and {}", heard.len() - end, sent.len());
        }
    }
}

/// An upstream that says nothing until it has heard a line that begins so, and then all at once.
fn play_flights(
    stream: DuplexStream,
    flights: &'static [(&'static str, &'static str)],
) -> tokio::task::JoinHandle<()> {
    tokio::spawn(async move {
        let mut stream = BufReader::new(stream);
        for (until, answers) in flights {
            let mut line = String::new();
            while !line.starts_with(until) {
                line.clear();
                assert!(stream.read_line(&mut line).await.unwrap_or(0) > 0, "no {until}");
            }
            stream.get_mut().write_all(answers.as_bytes()).await.unwrap();
        }
    })
}

const ONE: [&str; 1] = ["c@d.example"];

async fn first_of_two(client: &mut Client<DuplexStream>) -> String {
    let done = attempt_behind(client, &TWO, &content(), (None, Handling::default()), Some(&ONE)).await;
    letters(&outcomes(done))
}

/// RFC 2920 §3.1.
#[tokio::test]
async fn the_next_envelope_goes_behind_the_dot_and_costs_no_round_trip() {
    let (mut client, theirs) = client("PIPELINING");
    let upstream = play_flights(
        theirs,
        &[
            ("DATA", "250 ok\r\n250 ok\r\n250 ok\r\n354 go\r\n"),
            // The first message's final reply waits for the second one's envelope.
            ("DATA", "250 taken\r\n250 ok\r\n250 ok\r\n354 go\r\n"),
            (".\r\n", "250 taken\r\n"),
        ],
    );
    assert_eq!(first_of_two(&mut client).await, "DD");
    assert!(!client.is_free());
    assert_eq!(letters(&outcomes(attempt(&mut client, &ONE, &content()).await)), "D");
    assert!(client.is_free() && client.is_usable());
    upstream.await.unwrap();
}

/// Answers to both; what becomes of the first message and of the second (S: not tried); whether the
/// connection can be used again.
#[tokio::test]
async fn what_is_said_behind_the_dot_is_never_counted_for_another() {
    let cases: [(&'static [&'static str], &str, &str, bool); 10] = [
        (&["250", "250", "250", "354", "250", "250", "250", "354", "250"], "DD", "D", true),
        (&["250", "250", "250", "354", "554 spam", "250", "250", "354", "250"], "FF", "D", true),
        (&["250", "250", "250", "354", "250", "250", "550 no", "554", "x"], "DD", "F", true),
        (&["250", "250", "250", "354", "250", "550 you", "503", "503", "x"], "DD", "F", true),
        // Not a word about the second: it is tried again, as if it had never been said.
        (&["250", "250", "250", "354", "250", "hang up"], "DD", "S", false),
        (&["250", "250", "250", "354", "hang up"], "UU", "S", false),
        (&["250", "250", "250", "354", "250\r\n421 bye", "x"], "DD", "S", false),
        // One reply too many: what answers DATA is not 354, so nothing of the second was sent.
        (&["250", "250", "250", "354", "250 taken\r\n250 extra", "250", "250", "354", "x"], "DD", "W", false),
        (&["250", "250", "250", "354", "250 taken\r\n554 spam", "250", "250", "354", "x"], "DD", "W", false),
        (&["250", "250", "250", "354", "250", "250", "250 ok\r\n250 extra", "354", "x"], "DD", "W", false),
    ];
    for (answers, first, second, usable) in cases {
        let (mut client, theirs) = client("PIPELINING");
        let upstream = play(theirs, answers);
        assert_eq!(first_of_two(&mut client).await, first, "{answers:?}");
        let got = if client.is_usable() {
            match attempt(&mut client, &ONE, &content()).await {
                Attempt::Stale => "S".to_owned(),
                done => letters(&outcomes(done)),
            }
        } else {
            "S".to_owned()
        };
        assert_eq!(got, second, "{answers:?}");
        assert_eq!(client.is_usable(), usable, "{answers:?}");
        drop(client);
        let heard = upstream.await.unwrap();
        let sent = heard.iter().filter(|line| *line == "..hi").count();
        assert_eq!(sent, 1 + usize::from(second == "D"), "{answers:?} {heard:?}");
    }
}

/// What was announced behind a dot leaves in one write with it: where that fails, the dot may have left.
#[tokio::test]
async fn a_write_that_fails_behind_the_dot_leaves_the_message_uncertain() {
    for (announced, expected) in [(true, "UU"), (false, "WW")] {
        // So little is buffered that nothing leaves before it is read.
        let (ours, theirs) = tokio::io::duplex(8);
        let mut client =
            Client::new(Stream::Plain(ours), Arc::new(upstream()), "relay.example".into(), Clock::System);
        client.capabilities = Capabilities::from_reply(&Reply::new(250, None, "up\nPIPELINING"));
        let last = if announced { ".\r\n" } else { "Subject: x\r\n" };
        let upstream = tokio::spawn(async move {
            let mut stream = BufReader::with_capacity(1, theirs);
            let mut line = String::new();
            while line != last {
                line.clear();
                assert!(stream.read_line(&mut line).await.unwrap() > 0, "it goes on");
                if line == "DATA\r\n" {
                    stream.get_mut().write_all(b"250\r\n250\r\n250\r\n354\r\n").await.unwrap();
                }
            }
        });
        let next = announced.then_some(&ONE[..]);
        let done = attempt_behind(&mut client, &TWO, &content(), (None, Handling::default()), next).await;
        assert_eq!(letters(&outcomes(done)), expected);
        assert!(!client.is_usable());
        upstream.await.unwrap();
    }
}

#[tokio::test]
async fn a_connection_that_waits_for_one_message_carries_no_other() {
    let (mut client, theirs) = client("PIPELINING");
    let upstream = play(theirs, &["250", "250", "250", "354", "250", "250", "250", "354", "x"]);
    assert_eq!(first_of_two(&mut client).await, "DD");
    assert!(matches!(attempt(&mut client, &["other@d.example"], &content()).await, Attempt::Stale));
    assert!(!client.is_usable());
    // Nor does it say goodbye: that would be content.
    client.quit().await;
    let heard = upstream.await.unwrap();
    assert!(heard.iter().all(|line| line != "QUIT" && !line.contains("other")), "{heard:?}");
}

/// RFC 3030 §4.2. Answers to MAIL, RCPT, RCPT, BDAT; what becomes of the two; whether the connection can
/// be used again.
#[tokio::test]
async fn a_chunk_in_one_flight_with_its_envelope_is_counted_for_nobody_else() {
    let cases: [(&'static [&'static str], &str, bool); 17] = [
        (&["250", "250", "250", "250"], "DD", true),
        (&["250", "550 no", "250", "250"], "FD", true),
        (&["250", "250", "452 4.5.3 too many", "250"], "DW", true),
        (&["250", "550 no", "550 no", "503"], "FF", true),
        (&["550 you", "503", "503", "503"], "FF", true),
        (&["250", "250", "250", "554 spam"], "FF", true),
        (&["250", "250", "250", "451 later"], "WW", true),
        (&["250", "250", "421 bye"], "WW", false),
        // Who was answered before it ended has an answer.
        (&["250", "550 no", "421 bye"], "FW", false),
        (&["250", "550 no", "hang up"], "FU", false),
        (&["530 log in", "hang up"], "WW", false),
        // Behind its yes it may go.
        (&["250", "250", "250", "250 taken\r\n421 bye"], "DD", false),
        // Out of step: none of it can be believed, and it may have been taken.
        (&["250", "550 no", "550 no", "250"], "UU", false),
        (&["250", "250", "550 no\r\n250 extra", "250"], "UU", false),
        (&["250", "250", "250", "250 taken\r\n250 extra"], "UU", false),
        (&["250", "250", "250", "hang up"], "UU", false),
        (&["hang up"], "UU", false),
    ];
    for (answers, expected, usable) in cases {
        let (mut client, theirs) = client("PIPELINING\nCHUNKING");
        let upstream = play(theirs, answers);
        let got = outcomes(attempt(&mut client, &TWO, &content()).await);
        assert_eq!(letters(&got), expected, "{answers:?} {got:?}");
        assert_eq!(client.is_usable(), usable, "{answers:?}");
        drop(client);
        upstream.await.unwrap();
    }
}

#[tokio::test]
async fn behind_a_refused_chunk_comes_rset_and_no_answer_is_waited_for_in_between() {
    let (mut client, theirs) = client("PIPELINING\nCHUNKING");
    let upstream = play_flights(
        theirs,
        &[
            ("BDAT 19 LAST", "250 ok\r\n250 ok\r\n554 no\r\n"),
            ("RSET", ""),
            ("BDAT 19 LAST", "250 ok\r\n250 ok\r\n250 ok\r\n250 taken\r\n"),
        ],
    );
    assert_eq!(letters(&outcomes(attempt(&mut client, &ONE, &content()).await)), "F");
    assert_eq!(letters(&outcomes(attempt(&mut client, &ONE, &content()).await)), "D");
    upstream.await.unwrap();
}

/// Where the upstream may have left in the meantime, content waits for the answer to the envelope.
#[tokio::test(start_paused = true)]
async fn a_chunk_on_a_connection_that_was_silent_leaves_nothing_uncertain() {
    let (mut client, theirs) = client("PIPELINING\nCHUNKING");
    let upstream = play(theirs, &["250", "250", "250 taken", "hang up"]);
    assert_eq!(letters(&outcomes(attempt(&mut client, &ONE, &content()).await)), "D");
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(matches!(attempt(&mut client, &ONE, &content()).await, Attempt::Stale));
    drop(client);
    let heard = upstream.await.unwrap();
    assert_eq!(heard.iter().filter(|line| line.starts_with("BDAT")).count(), 1, "{heard:?}");
}

/// RFC 5321 §3.2.
#[tokio::test]
async fn a_server_that_refuses_ehlo_is_greeted_as_in_the_old_days_and_offers_nothing() {
    let (mut client, theirs) = client("PIPELINING");
    let upstream = play(theirs, &["500 what?", "250 up\r\n"]);
    assert!(client.ehlo().await.unwrap().is_success());
    assert_eq!(*client.capabilities(), Capabilities::default());
    drop(client);
    assert_eq!(upstream.await.unwrap(), ["EHLO relay.example", "HELO relay.example"]);
}

/// What needs more than HELO offers is not refused for good by one that refuses EHLO today.
#[tokio::test]
async fn behind_helo_what_is_lacking_waits() {
    let (mut client, theirs) = client("PIPELINING");
    let upstream = play(theirs, &["500 what?", "250 up", "250", "250", "250", "354 go", "250 taken"]);
    client.ehlo().await.unwrap();
    assert_eq!(letters(&outcomes(attempt(&mut client, &TWO, &content()).await)), "DD");
    assert!(client.is_usable());
    let eight_bit = Handling { body: Body::EightBit, ..Handling::default() };
    let got = outcomes(attempt_with(&mut client, &TWO, &content(), eight_bit).await);
    assert_eq!(letters(&got), "WW");
    assert_eq!(
        (got[0].evidence().scope, got[0].evidence().status),
        (Scope::Upstream, Some(Enhanced(4, 6, 3)))
    );
    assert!(!client.is_usable(), "another connection asks again");
    drop(client);
    upstream.await.unwrap();
}

/// An upstream that says this over and over in the place of a reply, at this pace.
async fn babbled(words: &'static [u8], pause: Duration) -> (String, Duration) {
    let (mut client, mut theirs) = client("PIPELINING");
    let babble = tokio::spawn(async move {
        while theirs.write_all(words).await.is_ok() {
            tokio::time::sleep(pause).await;
        }
    });
    let start = tokio::time::Instant::now();
    let got = letters(&outcomes(attempt(&mut client, &TWO, &content()).await));
    assert!(!client.is_usable());
    drop(client);
    babble.await.unwrap();
    (got, start.elapsed())
}

#[tokio::test(start_paused = true)]
async fn a_reply_without_end_is_given_up_at_its_bound_and_a_slow_one_at_its_deadline() {
    let within = |time: Duration| time < Duration::from_secs(1);
    for words in [&b"250-and so on\r\n"[..], b"250 x", b"250-\n"] {
        let (got, time) = babbled(words, Duration::ZERO).await;
        assert!(got == "WW" && within(time), "{words:?} {got} {time:?}");
    }
    // A byte a second is not a sign of life that counts.
    let (got, time) = babbled(b"2", Duration::from_secs(1)).await;
    assert_eq!((got.as_str(), time), ("WW", Duration::from_secs(5)));
}

#[tokio::test]
async fn codes_that_nobody_knows_count_by_their_first_digit_and_noise_for_nothing() {
    let cases: [(&'static [&'static str], &str); 5] = [
        (&["299 sure", "250", "277 why not", "354 go", "299 taken"], "DD"),
        (&["250", "777 no such thing", "250", "354 go", "250"], "WW"),
        (&["250", "499 later", "599 never", "354 go", "250"], "WF"),
        (&["250", "250", "250", "354 go", "ok"], "UU"),
        (&["\u{1b}[2J", "250", "250", "354 go", "250"], "WW"),
    ];
    for (answers, expected) in cases {
        let (mut client, theirs) = client("PIPELINING");
        let upstream = play(theirs, answers);
        let got = letters(&outcomes(attempt(&mut client, &TWO, &content()).await));
        assert_eq!(got, expected, "{answers:?}");
        drop(client);
        upstream.await.unwrap();
    }
}
