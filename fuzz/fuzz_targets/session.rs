//! Any octets as a whole dialog, through the same framing as a connection's: one reply to each line, no state
//! that a sequence of commands could break, and nothing ever relayed for a stranger.

#![no_main]

use std::{net::IpAddr, sync::Arc};

use libfuzzer_sys::fuzz_target;
use outpost::{
    clock::Timestamp,
    config::SessionBounds,
    listener::{
        auth::Credentials,
        policy::{Client, Rules, Senders},
        session::{Next, Session},
    },
    mail::envelope::Envelope,
    smtp::{
        framing::{ChunkReader, ContentReader, LineReader},
        parameter::Body,
        reply::Reply,
    },
};
use secrecy::SecretString;

fn session(stranger: bool, tls: bool) -> Session {
    let rules = Rules {
        hostname: "relay.example".into(),
        credentials: Credentials::new(vec![("dotcloud".into(), SecretString::from("secret"))]),
        networks: vec!["127.0.0.0/8".parse().expect("a network")],
        message_size: 1_000,
        recipients: 3,
        recipients_of_users: Default::default(),
        binary: true,
        hold: std::time::Duration::from_secs(1_000),
        senders: Senders::default(),
        bounds: SessionBounds::default(),
        trace: true,
    };
    let address: IpAddr = if stranger { [192, 0, 2, 7] } else { [127, 0, 0, 1] }.into();
    Session::new(Arc::new(rules), Client::new(address, tls), !tls, "nonce".into())
}

fn binary(envelope: &Envelope) -> bool {
    envelope.handling.body == Body::Binary
}

fuzz_target!(|data: &[u8]| {
    let Some((flags, mut input)) = data.split_first() else { return };
    let (stranger, mut tls) = (flags & 1 != 0, flags & 2 != 0);
    let mut session = session(stranger, tls);
    let mut lines = LineReader::default();
    let mut chunks: Option<ChunkReader> = None;
    while let Ok((line, used)) = lines.next(input, session.line_max()) {
        let Some(line) = line else { return };
        let (reply, next) = session.line(line, Timestamp(1_340_000_000_000));
        input = &input[used..];
        if let Some(reply) = &reply {
            let mut written = Vec::new();
            reply.write_to(&mut written);
            assert!(written.ends_with(b"\r\n"));
            assert_eq!(written.iter().filter(|b| **b == b'\n').count(), reply.lines().count());
            assert!(!reply.to_string().contains("secret"), "a password is told");
        }
        match next {
            Next::Continue | Next::Penalty => {
                let code = reply.expect("one reply").code();
                assert!((200..600).contains(&code) && code != 354 && code != 421, "{code}");
            }
            Next::StartTls => {
                assert!(!tls, "TLS within TLS");
                assert_eq!(reply.expect("one reply").code(), 220);
                session.tls_started(None);
                (tls, lines) = (true, LineReader::default());
            }
            Next::Receive => {
                assert!(reply.is_none(), "two replies to DATA");
                let (envelope, origin) = session.envelope().expect("content belongs to a transaction");
                assert!((1..=3).contains(&envelope.recipients.len()));
                assert!(!stranger || origin.user.is_some(), "relayed for a stranger");
                assert_eq!(origin.tls, tls);
                let mut content = ContentReader::new(1_000);
                input = &input[content.read(input, |_| {})..];
                if !content.is_done() {
                    return;
                }
                assert_eq!(session.received(Err(Reply::local_error())).code(), 451);
            }
            Next::Chunk(size, last) => {
                assert!(reply.is_none(), "two replies to BDAT");
                let (envelope, origin) = session.envelope().expect("content belongs to a transaction");
                assert!((1..=3).contains(&envelope.recipients.len()));
                assert!(!stranger || origin.user.is_some(), "relayed for a stranger");
                let Some((octets, rest)) = usize::try_from(size).ok().and_then(|n| input.split_at_checked(n))
                else {
                    return;
                };
                input = rest;
                let mut reader = chunks.take().unwrap_or_else(|| ChunkReader::new(1_000, binary(&envelope)));
                reader.read(octets);
                if last {
                    reader.end();
                }
                if last || reader.fault().is_some() {
                    assert_eq!(session.received(Err(Reply::local_error())).code(), 451);
                } else {
                    assert_eq!(session.chunk_received(size).code(), 250);
                    chunks = Some(reader);
                    continue;
                }
            }
            Next::Skip(size) => {
                assert!(matches!(reply.expect("one reply").code(), 503 | 554));
                assert!(!session.is_receiving(), "a refused chunk leaves a transaction");
                assert!(size <= 1_000 && (size == 0 || session.is_known()), "read over for ever");
                let Some(rest) = usize::try_from(size).ok().and_then(|n| input.get(n..)) else { return };
                input = rest;
            }
            Next::Close | Next::LastPenalty => {
                // 550: a PROXY header from nobody who may say one.
                assert!(matches!(reply.expect("one reply").code(), 221 | 421 | 550));
                return;
            }
        }
        if !session.is_receiving() {
            chunks = None;
        }
        assert_eq!(session.envelope().is_some(), chunks.is_some(), "a transaction outlived its content");
    }
});
