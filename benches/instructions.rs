//! How many instructions a message of 1 KiB costs in each stage that it passes, counted by valgrind: the same each
//! time, whatever else the machine does. The counts that are known stand here, and a stage that needs more than
//! [`TOLERANCE`] beyond its own fails. Whoever makes one dearer changes its number in the same commit, and says why.
//!
//! `benches/count-instructions` runs it. The numbers are of our code as the tests compile it, not optimised; that of
//! libraries is.

#![allow(missing_docs)] // The macros make modules.

use std::{hint::black_box, net::IpAddr, sync::Arc, time::Duration};

use gungraun::{Callgrind, EntryPoint, EventKind, OutputFormat, prelude::*};
use outpost::{
    clock::{Clock, Timestamp},
    config::{HistorySettings, QueueSettings, SessionBounds, Waits},
    listener::{
        auth::Credentials,
        policy::{Client, Rules, Senders},
        session::{Next, Session},
    },
    mail::{
        content::Facts,
        envelope::{Envelope, Handling, Origin},
        submission, trace,
    },
    observe::{Event, EventKind as Happened},
    queue::{self, Queue},
    smtp::{
        address::{Mailbox, ReversePath},
        command::Command,
        framing::{ContentReader, ContentWriter, LineReader},
        reply::ReplyReader,
    },
};
use secrecy::SecretString;

/// In percent. Another version of the compiler or of a library may bring as much; then the numbers are taken anew.
const TOLERANCE: u64 = 5;
const SIZE: usize = 1024;
const NOW: Timestamp = Timestamp(1_340_000_000_000);
/// Messages that go through the queue, one behind the other.
const QUEUED: usize = 50;

/// A stage that costs so many instructions.
fn costs(instructions: u64) -> LibraryBenchmarkConfig {
    limited(Callgrind::with_args(["--cache-sim=no"]), instructions)
}

fn limited(mut callgrind: Callgrind, instructions: u64) -> LibraryBenchmarkConfig {
    callgrind.hard_limits([(EventKind::Ir, instructions + instructions * TOLERANCE / 100)]);
    let mut config = LibraryBenchmarkConfig::default();
    config.tool(callgrind).output_format(OutputFormat::default());
    config
}

/// Of the queue only what its writer does counts: what the threads say to each other depends on the moment.
fn writer_costs(instructions: u64) -> LibraryBenchmarkConfig {
    let mut callgrind = Callgrind::with_args(["--cache-sim=no"]);
    callgrind.entry_point(EntryPoint::Custom("outpost::queue::store::Store::apply*".to_owned()));
    limited(callgrind, instructions)
}

fn content() -> Vec<u8> {
    let mut content = b"From: <app@sender.example>\r\nTo: <user@rcpt.example>\r\nSubject: hello\r\n\
        Message-ID: <1@sender.example>\r\nDate: Mon, 18 Jun 2012 06:13:20 +0000\r\n\r\n"
        .to_vec();
    while content.len() < SIZE {
        content.extend_from_slice(b"The quick brown fox jumps over the lazy dog; 0123456789 abcdef.\r\n");
    }
    content
}

fn wire() -> Vec<u8> {
    [content(), b".\r\n".to_vec()].concat()
}

fn origin() -> Origin {
    Origin { client: "127.0.0.1".into(), hello: "app.internal".into(), ..Origin::default() }
}

fn mailbox(text: &str) -> Mailbox {
    Mailbox::parse(text).expect("an address")
}

fn ready() -> Session {
    let rules = Rules {
        hostname: "relay.example".into(),
        credentials: Credentials::new(vec![("dotcloud".into(), SecretString::from("secret"))]),
        networks: vec!["127.0.0.0/8".parse().expect("a network")],
        message_size: 25_000_000,
        recipients: 1_000,
        recipients_of_users: std::collections::HashMap::new(),
        binary: true,
        hold: Duration::from_secs(1_000),
        senders: Senders::default(),
        bounds: SessionBounds::default(),
        trace: true,
    };
    let mut session =
        Session::new(Arc::new(rules), Client::new(IpAddr::from([127, 0, 0, 1]), false), true, "nonce".into());
    talk(&mut session, b"EHLO app.internal\r\n");
    session
}

/// What a connection does with the octets that come.
fn talk(session: &mut Session, mut input: &[u8]) -> (Vec<u8>, Next) {
    let (mut lines, mut output, mut last) = (LineReader::default(), Vec::new(), Next::Continue);
    while let Ok((Some(line), used)) = lines.next(input, session.line_max()) {
        let (reply, next) = session.line(line, NOW);
        if let Some(reply) = reply {
            reply.write_to(&mut output);
        }
        (input, last) = (&input[used..], next);
    }
    (output, last)
}

#[library_benchmark(config = costs(71_683), setup = ready)]
#[bench::envelope()]
fn session(mut session: Session) -> (Vec<u8>, Option<(Envelope, Origin)>) {
    let said = b"MAIL FROM:<app@sender.example> SIZE=1024\r\nRCPT TO:<user@rcpt.example>\r\nDATA\r\n";
    let (output, _) = black_box(talk(&mut session, black_box(said)));
    (output, session.envelope())
}

#[library_benchmark(config = costs(13_002), setup = wire)]
#[bench::in_1_kib()]
fn framing(wire: Vec<u8>) -> (Vec<u8>, u32) {
    let (mut kept, mut sum) = (Vec::with_capacity(2 * SIZE), 0);
    ContentReader::new(u64::MAX).read(black_box(&wire), |octets| {
        sum = crc32c::crc32c_append(sum, octets);
        kept.extend_from_slice(octets);
    });
    black_box((kept, sum))
}

#[library_benchmark(config = costs(35_083), setup = content)]
#[bench::facts()]
fn header(content: Vec<u8>) -> (String, String) {
    let mut facts = Facts::of(black_box(&content), true).expect("a header section");
    facts.count_passes(&content, "relay.example");
    let added = submission::complete(&mut facts, "1M83JGMBQ1W2J", "relay.example", NOW);
    let to = mailbox("user@rcpt.example");
    let field = trace::received(&origin(), "relay.example", "1M83JGMBQ1W2J", Some(&to), false, NOW);
    black_box((added, field))
}

#[library_benchmark(config = costs(61_781))]
#[bench::delivered()]
fn event() -> (Vec<u8>, String) {
    let event = Event {
        sender: Some("app@sender.example".to_owned()),
        recipient: Some("user@rcpt.example".to_owned()),
        upstream: Some("smtp.example".to_owned()),
        reply: Some("250 2.0.0 Ok: queued as 4XyZ".to_owned()),
        attempt: Some(1),
        delay_ms: Some(3),
        tls: Some("TLSv1.3".to_owned()),
        ..Event::new(NOW, Happened::Delivered, "1M83JGMBQ1W2J")
    };
    black_box((event.octets(), event.line()))
}

#[library_benchmark(config = costs(53_945), setup = content)]
#[bench::out_1_kib()]
fn sending(content: Vec<u8>) -> Vec<u8> {
    let mut output = Vec::with_capacity(2 * SIZE);
    for line in ["MAIL FROM:<app@sender.example> SIZE=1024", "RCPT TO:<user@rcpt.example>", "DATA"] {
        Command::parse(line.as_bytes()).expect("a command").write_to(&mut output);
    }
    ContentWriter::default().write(black_box(&content), |piece| output.extend_from_slice(piece));
    black_box(output)
}

#[library_benchmark(config = costs(34_315))]
#[bench::of_one_message()]
fn replies() -> usize {
    let mut said = &b"250 2.1.0 Ok\r\n250 2.1.5 Ok\r\n354 End data with <CR><LF>.<CR><LF>\r\n\
        250 2.0.0 Ok: queued as 4XyZ\r\n"[..];
    let mut count = 0;
    while !said.is_empty() {
        let read = ReplyReader::default().read(&mut said);
        count += usize::from(black_box(read).is_ok());
    }
    count
}

#[library_benchmark(config = writer_costs(3_474_392))]
#[bench::accepted_and_settled()]
fn store() {
    let directory = tempfile::tempdir().expect("a directory of our own");
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let wait = Waits { first: Duration::from_secs(60), longest: Duration::from_secs(3_600) };
    let settings = QueueSettings {
        directory: directory.path().join("queue"),
        lifetime: Duration::from_secs(5 * 86_400),
        delay_warning: None,
        retry: wait,
        max_messages: None,
        max_bytes: None,
        min_free: 0,
        history: HistorySettings::default(),
    };
    let (queue, writer) = Queue::open(&settings, Clock::System).expect("the queue opens");
    let content = content();
    for _ in 0..QUEUED {
        runtime.block_on(through(&queue, &content));
    }
    drop(queue);
    writer.join();
}

/// Alone in the queue, so that each of its two changes is a frame of its own.
async fn through(queue: &Queue, content: &[u8]) {
    let mut incoming = queue.begin().expect("room");
    incoming.push(content);
    let envelope = Envelope {
        reverse_path: ReversePath::from(mailbox("app@sender.example")),
        recipients: vec![mailbox("user@rcpt.example").into()],
        handling: Handling::default(),
    };
    incoming.commit(envelope, origin(), Facts::default()).await.expect("a receipt");
    let claim = queue.claim().await;
    queue.settle(claim, queue::Next::Done, Vec::new()).durable().await.expect("it is recorded");
}

library_benchmark_group!(
    name = message,
    benchmarks = [session, framing, header, event, sending, replies, store]
);
main!(library_benchmark_groups = message);
