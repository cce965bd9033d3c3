//! What delivery costs, and how far it is from the round trip's bound.
//!
//! `cargo bench --bench delivery` prints both: messages a second over one connection through 20 ms of round
//! trip, by DATA and by BDAT; and processor time a message over 20 connections with TLS and a login, of the
//! one thread that delivers. The upstream runs in another thread, and throws away what it gets.

#![allow(clippy::print_stdout, clippy::unwrap_used)]

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use outpost::{
    clock::Clock,
    config::{AuthMechanism, Login, Replies, Serves, TlsVersion, Upstream, UpstreamTls, Waits},
    delivery::{
        Agent, Forward, Message,
        client::{Attempt, Client},
    },
    mail::{content::Content, envelope::Handling, outcome::Outcome},
    net,
    smtp::address::{Mailbox, ReversePath},
};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    runtime::Builder,
    sync::mpsc,
    time::{Instant as At, sleep_until},
};
use tokio_rustls::TlsAcceptor;

/// Of each message.
const SIZE: usize = 1024;
const ROUND_TRIP: Duration = Duration::from_millis(20);
const CONNECTIONS: usize = 20;

fn main() {
    for (keywords, how) in [("PIPELINING", "DATA"), ("PIPELINING\r\n250-CHUNKING", "BDAT")] {
        let rate = through_a_delay(keywords, 200);
        println!("one connection, {} ms round trip, by {how}: {rate:.1} messages/s", ROUND_TRIP.as_millis());
    }
    for (keywords, how) in [("PIPELINING", "DATA"), ("PIPELINING\r\n250-CHUNKING", "BDAT")] {
        let cost = with_tls_and_login(keywords, 40_000);
        println!(
            "{CONNECTIONS} connections, TLS and AUTH, by {how}: {cost:.1} µs of processor time a message"
        );
    }
}

/// Messages a second.
fn through_a_delay(keywords: &'static str, count: usize) -> f64 {
    let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let sink = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(take(stream, keywords));
            }
        });
        let proxy = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = proxy.local_addr().unwrap().port();
        tokio::spawn(async move {
            while let Ok((near, _)) = proxy.accept().await {
                let far = TcpStream::connect(("127.0.0.1", sink)).await.unwrap();
                near.set_nodelay(true).unwrap();
                far.set_nodelay(true).unwrap();
                let ((near_in, near_out), (far_in, far_out)) = (near.into_split(), far.into_split());
                tokio::spawn(delayed(near_in, far_out));
                tokio::spawn(delayed(far_in, near_out));
            }
        });
        let agent = Agent::new(upstream(port, None), "bench.example", Clock::System).unwrap();
        let mut client = agent.open(|_| ()).await.unwrap();
        let left = AtomicUsize::new(count);
        let begun = Instant::now();
        carry(&mut client, &left).await;
        count as f64 / begun.elapsed().as_secs_f64()
    })
}

/// Passes octets on half a round trip later, in their order.
async fn delayed(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin + Send + 'static) {
    let (sender, mut receiver) = mpsc::channel::<(At, Vec<u8>)>(1_000);
    tokio::spawn(async move {
        while let Some((at, octets)) = receiver.recv().await {
            sleep_until(at).await;
            if to.write_all(&octets).await.is_err() {
                return;
            }
        }
    });
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(length @ 1..) = from.read(&mut buffer).await {
        if sender.send((At::now() + ROUND_TRIP / 2, buffer[..length].to_vec())).await.is_err() {
            return;
        }
    }
}

/// Microseconds of the delivering thread.
fn with_tls_and_login(keywords: &'static str, count: usize) -> f64 {
    let key = rcgen::KeyPair::generate().unwrap();
    let cert =
        rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap().self_signed(&key).unwrap();
    let fingerprint = <[u8; 32]>::from(<sha2::Sha256 as sha2::Digest>::digest(cert.der()));
    let config = rustls::ServerConfig::builder_with_provider(net::crypto())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![cert.der().clone()],
            PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())),
        )
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        Builder::new_current_thread().enable_all().build().unwrap().block_on(async move {
            let listener = TcpListener::from_std(listener).unwrap();
            while let Ok((stream, _)) = listener.accept().await {
                let acceptor = acceptor.clone();
                stream.set_nodelay(true).unwrap();
                tokio::spawn(async move { take(acceptor.accept(stream).await.unwrap(), keywords).await });
            }
        });
    });
    Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
        let agent = Agent::new(upstream(port, Some(fingerprint)), "bench.example", Clock::System).unwrap();
        let mut clients = Vec::new();
        for _ in 0..CONNECTIONS {
            clients.push(agent.open(|_| ()).await.unwrap());
        }
        let left = Arc::new(AtomicUsize::new(count));
        let begun = thread_time();
        let tasks: Vec<_> = clients
            .into_iter()
            .map(|mut client| {
                let left = Arc::clone(&left);
                tokio::spawn(async move { carry(&mut client, &left).await })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
        (thread_time() - begun).as_secs_f64() * 1e6 / count as f64
    })
}

/// Processor time of this thread, as Linux counts it.
fn thread_time() -> Duration {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    Duration::from_nanos(stat.split(' ').next().unwrap().parse().unwrap())
}

/// Carries messages while there are any left, each told of behind the one before.
async fn carry(client: &mut Client<TcpStream>, left: &AtomicUsize) {
    let reverse_path = ReversePath::from(Mailbox::parse("sender@example.test").unwrap());
    let mailbox = Mailbox::parse("someone@example.test").unwrap();
    let text = format!("Subject: x\r\n\r\n{}", "0123456789 0123456789 0123456789\r\n".repeat(SIZE / 34));
    let (handling, content) = (Handling::default(), Content::Memory(Bytes::from(text)));
    let message = Message {
        reverse_path: &reverse_path,
        recipients: vec![Forward { mailbox: &mailbox, notify: None, original: None }],
        handling: &handling,
        content: &content,
        head: None,
    };
    let take = || left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok();
    let mut more = take();
    while more {
        more = take();
        let ahead = if more { client.ahead(&message) } else { None };
        match client.attempt(&message, ahead, async {}).await {
            Attempt::Done(outcomes) => {
                assert!(matches!(outcomes[..], [Outcome::Delivered(_)]), "{outcomes:?}")
            }
            other => panic!("{other:?}"),
        }
    }
}

/// An upstream that takes everything.
async fn take(mut stream: impl AsyncRead + AsyncWrite + Unpin, keywords: &str) {
    let (mut buffer, mut replies) = (Vec::new(), b"220 sink\r\n".to_vec());
    let (mut chunk, mut content) = (vec![0; 64 * 1024], false);
    loop {
        if stream.write_all(&replies).await.is_err() || stream.flush().await.is_err() {
            return;
        }
        replies.clear();
        let Ok(length @ 1..) = stream.read(&mut chunk).await else { return };
        buffer.extend_from_slice(&chunk[..length]);
        let mut used = 0;
        loop {
            let rest = &buffer[used..];
            let end: &[u8] = if content { b"\r\n.\r\n" } else { b"\r\n" };
            let Some(at) = memchr::memmem::find(rest, end) else { break };
            let (line, next) = (&rest[..at], used + at + end.len());
            let reply = match line.get(..4) {
                _ if content => "250 taken\r\n".to_owned(),
                Some(b"EHLO") => format!("250-sink\r\n250-{keywords}\r\n250 AUTH PLAIN\r\n"),
                Some(b"AUTH") => "235 ok\r\n".to_owned(),
                Some(b"DATA") => "354 go\r\n".to_owned(),
                Some(b"BDAT") => {
                    let text = String::from_utf8_lossy(line);
                    let size: usize = text.split(' ').nth(1).unwrap().parse().unwrap();
                    if buffer.len() < next + size {
                        break;
                    }
                    used = next + size;
                    replies.extend_from_slice(b"250 taken\r\n");
                    continue;
                }
                _ => "250 ok\r\n".to_owned(),
            };
            content = reply.starts_with("354");
            replies.extend_from_slice(reply.as_bytes());
            used = next;
        }
        buffer.drain(..used);
    }
}

fn upstream(port: u16, fingerprint: Option<[u8; 32]>) -> Upstream {
    let login = Login {
        username: "bench".into(),
        password: "sesame".to_owned().into(),
        mechanism: AuthMechanism::Auto,
        oauth: None,
    };
    let wait = Duration::from_secs(60);
    Upstream {
        name: "sink".into(),
        server: "localhost".into(),
        port,
        tls: if fingerprint.is_some() { UpstreamTls::Implicit } else { UpstreamTls::None },
        tls_min_version: TlsVersion::Tls12,
        ca: None,
        login: fingerprint.map(|_| login),
        fingerprint,
        published: Vec::new(),
        allow_insecure_auth: false,
        connections: CONNECTIONS,
        timeout: None,
        auth_retry: Waits { first: wait, longest: wait },
        identity: None,
        recipients: None,
        messages: None,
        message_size: None,
        source: Vec::new(),
        proxy: None,
        pipelining: true,
        chunking: true,
        provider: None,
        replies: Replies::default(),
        limits: Vec::new(),
        sender_rewrite: None,
        replaces: Vec::new(),
        serves: Serves::default(),
    }
}
