//! The floor: a relay that does what physics asks and nothing else. SMTP in, one grouped append with its sync before
//! the 250, SMTP out, over TLS with a login where that is asked for. No queue, no retry, no checks, no log: whatever
//! goes wrong ends it. What Outpost costs beside it is what its promises cost.
//!
//!   floor FILE LISTEN UPSTREAM TLS CA USER PASSWORD      ports on 127.0.0.1; TLS is none or starttls

use std::{
    fs::OpenOptions,
    io,
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    sync::{Arc, mpsc as blocking},
};

use memchr::memmem;
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName, pem::PemObject as _},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::{Mutex, mpsc, oneshot},
};
use tokio_rustls::TlsConnector;

/// Connections to the upstream.
const CONNECTIONS: usize = 20;
/// The log is written over and over within so many octets, as that of a database is.
const LOG: u64 = 4 * 1024 * 1024;
const READ: usize = 64 * 1024;

/// A message as it came: envelope lines, and content with its dots doubled, the last one included.
struct Message {
    envelope: Vec<u8>,
    content: Vec<u8>,
}

type Durable = (Message, oneshot::Sender<()>);

struct Upstream {
    port: String,
    tls: Option<TlsConnector>,
    login: Option<(String, String)>,
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> io::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [file, listen, upstream, tls, ca, user, password] = arguments.as_slice() else {
        return Err(io::Error::other("floor FILE LISTEN UPSTREAM TLS CA USER PASSWORD"));
    };
    let upstream = Arc::new(Upstream {
        port: upstream.clone(),
        tls: (tls == "starttls").then(|| connector(ca)).transpose()?,
        login: (!user.is_empty()).then(|| (user.clone(), password.clone())),
    });
    let (queue, queued) = mpsc::unbounded_channel();
    let queued = Arc::new(Mutex::new(queued));
    let (append, appended) = blocking::channel();
    let log = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(file)?;
    std::thread::spawn(move || keep(&log, &appended, &queue));
    for _ in 0..CONNECTIONS {
        let (upstream, queued) = (Arc::clone(&upstream), Arc::clone(&queued));
        tokio::spawn(async move { relay(&upstream, &queued).await });
    }
    let listener = TcpListener::bind(("127.0.0.1", listen.parse().map_err(io::Error::other)?)).await?;
    let mut end = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let (stream, append) = (accepted?.0, append.clone());
                stream.set_nodelay(true)?;
                tokio::spawn(async move { serve(stream, append).await });
            }
            _ = end.recv() => return Ok(()),
        }
    }
}

fn connector(ca: &str) -> io::Result<TlsConnector> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(ca).map_err(io::Error::other)? {
        roots.add(certificate.map_err(io::Error::other)?).map_err(io::Error::other)?;
    }
    let config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}

/// Appends all that waits, syncs once, and tells.
fn keep(log: &std::fs::File, appended: &blocking::Receiver<Durable>, queue: &mpsc::UnboundedSender<Message>) {
    let (mut octets, mut at) = (Vec::new(), 0);
    while let Ok(first) = appended.recv() {
        let batch: Vec<Durable> = std::iter::once(first).chain(appended.try_iter()).collect();
        octets.clear();
        for (message, _) in &batch {
            octets.extend_from_slice(&message.envelope);
            octets.extend_from_slice(&message.content);
        }
        at = if at + octets.len() as u64 > LOG { 0 } else { at };
        log.write_all_at(&octets, at).and_then(|()| log.sync_data()).expect("the disk takes it");
        at += octets.len() as u64;
        for (message, done) in batch {
            let _ = queue.send(message);
            let _ = done.send(());
        }
    }
}

/// A client of ours.
async fn serve(mut stream: TcpStream, append: blocking::Sender<Durable>) -> io::Result<()> {
    let (mut input, mut envelope) = (Vec::with_capacity(READ), Vec::new());
    stream.write_all(b"220 floor.example ESMTP\r\n").await?;
    loop {
        let line = line(&mut stream, &mut input).await?;
        match line.get(..4).unwrap_or_default() {
            b"DATA" => {
                stream.write_all(b"354 go\r\n").await?;
                let content = content(&mut stream, &mut input).await?;
                envelope.extend_from_slice(b"DATA\r\n");
                let (done, durable) = oneshot::channel();
                let message = Message { envelope: std::mem::take(&mut envelope), content };
                append.send((message, done)).map_err(io::Error::other)?;
                durable.await.map_err(io::Error::other)?;
                stream.write_all(b"250 2.0.0 queued\r\n").await?;
            }
            b"EHLO" => stream.write_all(b"250-floor.example\r\n250 PIPELINING\r\n").await?,
            b"QUIT" => return stream.write_all(b"221 bye\r\n").await,
            _ => {
                envelope.extend_from_slice(&line);
                stream.write_all(b"250 2.0.0 ok\r\n").await?;
            }
        }
    }
}

/// A line with its end.
async fn line<S: AsyncRead + Unpin>(stream: &mut S, input: &mut Vec<u8>) -> io::Result<Vec<u8>> {
    loop {
        if let Some(end) = memchr::memchr(b'\n', input) {
            let rest = input.split_off(end + 1);
            return Ok(std::mem::replace(input, rest));
        }
        more(stream, input).await?;
    }
}

/// Content up to the dot that ends it.
async fn content<S: AsyncRead + Unpin>(stream: &mut S, input: &mut Vec<u8>) -> io::Result<Vec<u8>> {
    let mut seen = 0;
    loop {
        if let Some(end) = memmem::find(&input[seen..], b"\r\n.\r\n") {
            let rest = input.split_off(seen + end + 5);
            return Ok(std::mem::replace(input, rest));
        }
        seen = input.len().saturating_sub(4);
        more(stream, input).await?;
    }
}

async fn more<S: AsyncRead + Unpin>(stream: &mut S, input: &mut Vec<u8>) -> io::Result<()> {
    input.reserve(READ);
    if stream.read_buf(input).await? == 0 { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(()) }
}

/// A connection to the upstream.
async fn relay(upstream: &Upstream, queued: &Mutex<mpsc::UnboundedReceiver<Message>>) {
    let Some(first) = queued.lock().await.recv().await else { return };
    let stream =
        TcpStream::connect(("127.0.0.1", upstream.port.parse().expect("a port"))).await.expect("upstream");
    stream.set_nodelay(true).expect("a socket");
    let (mut stream, mut input) = (stream, Vec::with_capacity(READ));
    reply(&mut stream, &mut input).await;
    say(&mut stream, &mut input, b"EHLO floor.example\r\n").await;
    match &upstream.tls {
        None => carry(upstream, stream, input, first, queued).await,
        Some(connector) => {
            say(&mut stream, &mut input, b"STARTTLS\r\n").await;
            let name = ServerName::try_from("127.0.0.1").expect("an address");
            let mut stream = connector.connect(name, stream).await.expect("TLS");
            say(&mut stream, &mut input, b"EHLO floor.example\r\n").await;
            carry(upstream, stream, input, first, queued).await;
        }
    }
}

/// Message after message: the next envelope leaves behind the dot of the one before, if there is a next one.
async fn carry<S: AsyncRead + AsyncWrite + Unpin>(
    upstream: &Upstream,
    mut stream: S,
    mut input: Vec<u8>,
    first: Message,
    queued: &Mutex<mpsc::UnboundedReceiver<Message>>,
) {
    if let Some((user, password)) = &upstream.login {
        say(&mut stream, &mut input, b"AUTH LOGIN\r\n").await;
        say(&mut stream, &mut input, format!("{}\r\n", base64(user.as_bytes())).as_bytes()).await;
        say(&mut stream, &mut input, format!("{}\r\n", base64(password.as_bytes())).as_bytes()).await;
    }
    let (mut next, mut announced, mut output) = (first, false, Vec::with_capacity(READ));
    loop {
        let message = next;
        if !announced {
            stream.write_all(&message.envelope).await.expect("upstream");
            stream.flush().await.expect("upstream");
        }
        for _ in 0..memchr::memchr_iter(b'\n', &message.envelope).count() {
            reply(&mut stream, &mut input).await;
        }
        let behind = queued.try_lock().ok().and_then(|mut queued| queued.try_recv().ok());
        output.clear();
        output.extend_from_slice(&message.content);
        output.extend_from_slice(behind.as_ref().map_or(&[], |next| &next.envelope));
        stream.write_all(&output).await.expect("upstream");
        stream.flush().await.expect("upstream");
        reply(&mut stream, &mut input).await;
        announced = behind.is_some();
        next = match behind {
            Some(next) => next,
            None => match queued.lock().await.recv().await {
                Some(next) => next,
                None => return,
            },
        };
    }
}

async fn say<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S, input: &mut Vec<u8>, command: &[u8]) {
    stream.write_all(command).await.expect("upstream");
    stream.flush().await.expect("upstream");
    reply(stream, input).await;
}

async fn reply<S: AsyncRead + Unpin>(stream: &mut S, input: &mut Vec<u8>) {
    loop {
        let line = line(stream, input).await.expect("upstream");
        assert!(matches!(line[0], b'2' | b'3'), "{}", String::from_utf8_lossy(&line));
        if line.get(3) != Some(&b'-') {
            return;
        }
    }
}

fn base64(octets: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in octets.chunks(3) {
        let bits =
            chunk.iter().fold(0, |bits, octet| bits << 8 | u32::from(*octet)) << (8 * (3 - chunk.len()));
        for place in 0..4 {
            let digit = DIGITS[(bits >> (18 - 6 * place)) as usize & 63];
            text.push(if place <= chunk.len() { char::from(digit) } else { '=' });
        }
    }
    text
}
