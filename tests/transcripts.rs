//! Plays every dialog of `tests/transcripts/` against a real connection with a real queue on disk: whole,
//! octet by octet, and cut in two at every place (a long one at some of them).
//!
//! `BLESS=1 cargo test --test transcripts` writes down what the server says now; read the difference before
//! you keep it. `ONLY=word` plays the files with that word in their name. The form is in `script.rs`.

#[path = "transcripts/script.rs"]
mod script;

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use outpost::{
    clock::{Clock, Timestamp},
    config::{HistorySettings, QueueSettings, User, Waits},
    listener::{
        allowance::Allowances,
        auth::Credentials,
        budget::Budget,
        connection::{self, Surroundings},
        intake::Intake,
        pace::Pace,
        penalty::Penalties,
        places::{Most, Places},
        policy::{Client, Rules, Senders},
        tls,
    },
    mail::{content::Content, envelope::Handling},
    net::Stream,
    queue::{Action, Queue, entry::Recipient},
    smtp::esmtp::{MailParameters, RcptParameters},
};
use script::{Script, Setting, Step};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream},
    sync::watch,
    time::{Instant, timeout},
};

/// When every dialog takes place, as far as the connection knows.
const NOW: Timestamp = Timestamp(1_340_000_000_000);
/// How often a dialog is cut in two at most; longer ones are cut at as many places, evenly.
const CUTS_MAX: usize = 120;
/// No reply takes so long; on the paused clock it is longer than any wait of the server.
const PATIENCE: Duration = Duration::from_secs(30);
const PATIENCE_PAUSED: Duration = Duration::from_secs(1_000);
/// While blessing: silence that means the server has said it all.
const SILENCE: Duration = Duration::from_millis(200);
const SILENCE_PAUSED: Duration = Duration::from_secs(2);

#[test]
fn every_dialog_goes_as_written_however_its_octets_are_cut() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/transcripts");
    let only = std::env::var("ONLY").unwrap_or_default();
    let mut files: Vec<PathBuf> = std::fs::read_dir(directory)
        .expect("the transcripts")
        .map(|file| file.expect("a file").path())
        .filter(|path| path.extension().is_some_and(|ext| ext == "smtp"))
        .filter(|path| path.to_string_lossy().contains(&only))
        .collect();
    files.sort();
    assert!(!files.is_empty(), "no transcripts found");

    let home = tempfile::tempdir().expect("a directory");
    let tls = Tls::new(home.path());
    let next = AtomicUsize::new(0);
    let work = || {
        let mut wrong = Vec::new();
        while let Some(file) = files.get(next.fetch_add(1, Ordering::Relaxed)) {
            let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if let Err(why) = play_file(file, &tls, &home.path().join(&name)) {
                wrong.push(format!("{name}:{why}"));
            }
        }
        wrong
    };
    let mut wrong: Vec<String> = std::thread::scope(|scope| {
        let workers = [scope.spawn(work), scope.spawn(work), scope.spawn(work), scope.spawn(work)];
        workers.into_iter().flat_map(|worker| worker.join().expect("no panic")).collect()
    });
    wrong.sort();
    assert!(wrong.is_empty(), "{} of {} dialogs differ:\n\n{}", wrong.len(), files.len(), wrong.join("\n"));
}

/// Both ends' TLS.
struct Tls {
    server: Arc<rustls::ServerConfig>,
    client: tokio_rustls::TlsConnector,
}

impl Tls {
    fn new(directory: &Path) -> Self {
        use rustls::pki_types::pem::PemObject as _;
        let server = tls::load(None, directory, "relay.example").expect("a certificate").config;
        let cert = rustls::pki_types::CertificateDer::from_pem_file(directory.join("cert.pem"));
        let mut roots = rustls::RootCertStore::empty();
        roots.add(cert.expect("our certificate")).expect("our certificate");
        let client = rustls::ClientConfig::builder_with_provider(outpost::net::crypto())
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(roots)
            .with_no_client_auth();
        Self { server, client: Arc::new(client).into() }
    }
}

/// How a client's octets are cut.
#[derive(Clone, Copy, Debug)]
enum Cut {
    Nowhere,
    Everywhere,
    /// Behind so many octets of all that the client says.
    At(usize),
}

fn play_file(file: &Path, tls: &Tls, directory: &Path) -> Result<(), String> {
    let script = Script::parse(&std::fs::read_to_string(file).expect("a transcript"))?;
    let settings = QueueSettings {
        directory: directory.to_owned(),
        lifetime: Duration::from_secs(86_400),
        delay_warning: None,
        retry: Waits { first: Duration::from_secs(60), longest: Duration::from_secs(3_600) },
        max_messages: script.setting.full.then_some(0),
        max_bytes: None,
        min_free: 0,
        history: HistorySettings::default(),
    };
    let (queue, writer) = Queue::open(&settings, Clock::System).expect("a queue");
    if std::env::var_os("BLESS").is_some() {
        let text = runtime(&script.setting).block_on(bless(&script, &queue, tls));
        std::fs::write(file, text).expect("the transcript is written");
        return Ok(());
    }
    let said = runtime(&script.setting)
        .block_on(play(&script, &queue, tls, Cut::Nowhere))
        .map_err(|why| format!("{why}\n    (played whole)\n"))?;
    let mut cuts = vec![];
    if script.setting.cuts {
        cuts.push(Cut::Everywhere);
        cuts.extend((1..said).step_by(said / CUTS_MAX + 1).map(Cut::At));
    }
    for cut in &cuts {
        runtime(&script.setting)
            .block_on(play(&script, &queue, tls, *cut))
            .map_err(|why| format!("{why}\n    (with its octets cut: {cut:?})\n"))?;
    }
    drop(queue);
    writer.join();
    Ok(())
}

fn runtime(setting: &Setting) -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(setting.paused)
        .build()
        .expect("a runtime")
}

/// Plays a dialog; returns how many octets the client said.
async fn play(script: &Script, queue: &Queue, tls: &Tls, cut: Cut) -> Result<usize, String> {
    let mut peer = Peer::connect(&script.setting, queue, tls, cut).await;
    for (line, step) in &script.steps {
        let wrong = |what: String| format!("{line}: {what}");
        match step {
            Step::Hear(expected) if expected == script::KEYWORDS => peer.skip_reply().await.map_err(wrong)?,
            Step::Hear(expected) => match peer.hear(peer.patience).await {
                Heard::Line(got) if script::matches(expected, &got) => peer.check_time().map_err(wrong)?,
                got => return Err(wrong(format!("\n    expected {expected}\n    got      {got}"))),
            },
            Step::Closed => match peer.hear(peer.patience).await {
                Heard::Eof => {}
                got => return Err(wrong(format!("expected the end\n    got {got}"))),
            },
            step => peer.act(step, tls).await.map_err(wrong)?,
        }
    }
    let said = peer.said;
    if let Some(line) = peer.finish().await.first() {
        return Err(format!(" the server goes on where the transcript ends: {line}"));
    }
    let got = queued(queue, script.setting.received).await;
    let as_expected = got.len() == script.queue.len()
        && script.queue.iter().zip(&got).all(|(expected, got)| script::matches(expected, got));
    if !as_expected {
        let (expected, got) = (script.queue.join("\n      "), got.join("\n      "));
        return Err(format!(" in the queue\n    expected\n      {expected}\n    got\n      {got}"));
    }
    Ok(said)
}

/// Plays the client's part and writes down the server's.
async fn bless(script: &Script, queue: &Queue, tls: &Tls) -> String {
    let silence = if script.setting.paused { SILENCE_PAUSED } else { SILENCE };
    let mut peer = Peer::connect(&script.setting, queue, tls, Cut::Nowhere).await;
    let greeting = if script.setting.early { Vec::new() } else { peer.hear_all(silence).await };
    let mut heard = vec![Vec::new(); script.steps.len()];
    for (i, (line, step)) in script.steps.iter().enumerate() {
        match step {
            Step::Hear(_) | Step::Closed => continue,
            step => peer.act(step, tls).await.unwrap_or_else(|why| panic!("line {line}: {why}")),
        }
        let silence = if let Step::After(wait) = step { *wait + silence } else { silence };
        heard[i] = peer.hear_all(silence).await;
    }
    peer.finish().await;
    if !script.setting.keywords {
        heard.iter_mut().for_each(script::leave_out_keywords);
    }
    let queue = queued(queue, script.setting.received)
        .await
        .iter()
        .map(|line| script::masked(line))
        .collect::<Vec<_>>();
    script.blessed(&greeting, &heard, &queue)
}

/// What the queue holds, as transcripts show it; emptied for the next play.
async fn queued(queue: &Queue, received: bool) -> Vec<String> {
    let mut lines = Vec::new();
    for listed in queue.list(None, 100).await.expect("the queue can be read") {
        let entry = listed.entry.expect("a sound entry");
        let to: Vec<String> = entry.recipients.iter().map(recipient).collect();
        let asked = asked(&entry.handling);
        lines.push(format!("from <{}> to {}{asked}", entry.reverse_path.as_str(), to.join(" ")));
        let content = match queue.content(entry.id).await.expect("it can be read").expect("it is whole") {
            Content::Memory(octets) => octets.to_vec(),
            Content::File { path, .. } => std::fs::read(path).expect("it can be read"),
        };
        // Our field is the first, and the only one of the head that ends with a date behind a fold.
        let end = content.windows(8).position(|w| w == b" +0000\r\n").map_or(0, |at| at + 8);
        let (field, rest) = content.split_at(end);
        assert!(field.starts_with(b"Received: from "), "our Received field is not on top");
        let content = if received { &content } else { without_our_fields(rest) };
        let mut pieces: Vec<&[u8]> = content.split_inclusive(|b| *b == b'\n').collect();
        for piece in pieces.drain(..) {
            match piece.strip_suffix(b"\r\n") {
                Some(line) => lines.push(format!("|{}", script::shown(line))),
                None => lines.push(format!("| without CRLF: {}", script::shown(piece))),
            }
        }
        queue.act(entry.id, Action::Delete, "").await.expect("it can be removed");
    }
    if lines.is_empty() { vec!["nothing".to_owned()] } else { lines }
}

/// Content without the Date and Message-ID that we added.
fn without_our_fields(mut content: &[u8]) -> &[u8] {
    for (begin, end) in [(&b"Date: "[..], &b" +0000"[..]), (b"Message-ID: <", b"@relay.example>")] {
        let line = content.split(|b| *b == b'\r').next().unwrap_or_default();
        if line.starts_with(begin) && line.ends_with(end) {
            content = &content[line.len() + 2..];
        }
    }
    content
}

/// What was asked for a recipient stands behind it in parentheses.
fn recipient(recipient: &Recipient) -> String {
    let (notify, original) = (recipient.notify, recipient.original.as_ref());
    let asked = RcptParameters { notify, original: original.cloned() };
    let mut text = String::new();
    asked.write_to(&mut text);
    let text = if text.is_empty() { text } else { format!(" ({})", text.trim_start()) };
    format!("<{}>{text}", recipient.address)
}

/// What is kept of MAIL's parameters, as they would be said again; times as seconds from the dialog's.
fn asked(handling: &Handling) -> String {
    let Handling { body, utf8, ref ret, ref envid, require_tls, priority, hold_until, deliver_by, .. } =
        *handling;
    let mut text = String::new();
    let mut seconds = |name: &str, time: Timestamp| {
        let seconds = (time.0 as i64 - NOW.0 as i64) / 1_000;
        text.push_str(&format!(" {name}={seconds}"));
    };
    hold_until.iter().for_each(|time| seconds("HOLDFOR", *time));
    if let Some(by) = deliver_by {
        seconds("BY", by.time);
        text.push_str(if by.or_return { ";R" } else { ";N" });
        text.push_str(if by.trace { "T" } else { "" });
    }
    let mut said = String::new();
    let priority = Some(priority).filter(|priority| *priority != 0);
    let (ret, envid) = (*ret, envid.clone());
    MailParameters { body, utf8, ret, envid, require_tls, priority, ..MailParameters::default() }
        .write_to(&mut said);
    if handling.utf8_header {
        said.push_str(" (UTF-8 in the header)");
    }
    said.replace(" BODY=", " ") + &text
}

/// What the client heard.
enum Heard {
    Line(String),
    Eof,
    Silence,
}

impl std::fmt::Display for Heard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Line(line) => f.write_str(line),
            Self::Eof => f.write_str("EOF"),
            Self::Silence => f.write_str("silence"),
        }
    }
}

/// The client of a dialog, and the server as a task beside it.
struct Peer {
    stream: Option<Stream<DuplexStream>>,
    server: tokio::task::JoinHandle<std::io::Result<()>>,
    shutdown: watch::Sender<bool>,
    cut: Cut,
    patience: Duration,
    said: usize,
    input: Vec<u8>,
    challenges: Vec<String>,
    last: Instant,
    after: Option<Duration>,
    /// Where it is remembered what a login has used.
    _accounts: Option<tempfile::TempDir>,
}

impl Peer {
    async fn connect(setting: &Setting, queue: &Queue, tls: &Tls, cut: Cut) -> Self {
        let users = if setting.users { vec![("dotcloud".to_owned(), "secret".into())] } else { Vec::new() };
        let accounts = setting.limits.first().map(|_| tempfile::tempdir().expect("a directory"));
        let limited = [User {
            name: "dotcloud".to_owned(),
            password: None,
            senders: None,
            limits: setting.limits.clone(),
        }];
        let directory = accounts.as_ref().map_or(Path::new(""), |accounts| accounts.path());
        // Always the same time, so that a dialog can say when.
        let clock = Clock::Test { start: NOW, origin: None };
        let allowances = Allowances::of(&limited, directory, &Allowances::default(), &clock);
        let rules = Rules {
            hostname: "relay.example".to_owned(),
            credentials: Credentials::new(users),
            networks: vec!["127.0.0.0/8".parse().expect("a network"), "::1/128".parse().expect("a network")],
            message_size: setting.message_size,
            recipients: setting.recipients,
            recipients_of_users: Allowances::most_recipients(&limited),
            binary: setting.binary,
            hold: Duration::from_secs(432_000),
            senders: Senders {
                of_all: setting.senders.clone(),
                of_users: setting.user_senders.iter().map(|l| ("dotcloud".to_owned(), l.clone())).collect(),
            },
            bounds: setting.bounds,
            trace: true,
        };
        let (shutdown, watched) = watch::channel(false);
        // The only place there is leaves no other.
        let most = Most { all: if setting.crowded { 1 } else { 100 }, of_one: 100 };
        let pace = Pace::new(setting.bounds);
        let surroundings = Surroundings {
            intake: Intake {
                allowances: Arc::new(allowances),
                rules: Arc::new(rules),
                queue: queue.clone(),
                observer: None,
                clock,
            },
            tls: setting.starttls.then(|| Arc::clone(&tls.server)),
            penalties: Penalties::default(),
            budget: Budget::default(),
            buffered: setting.buffered,
            place: Places::default().take(most).expect("a place"),
            shutdown: watched,
        };
        // Large enough that neither side ever waits for the other to read.
        let (client, server) = tokio::io::duplex(4 * 1024 * 1024);
        let (config, implicit, address) = (Arc::clone(&tls.server), setting.tls, setting.client);
        let login_required = setting.login_required;
        let server = tokio::spawn(async move {
            let stream = if implicit {
                let handshake = tokio_rustls::TlsAcceptor::from(config).accept(server);
                Stream::Tls(Box::new(handshake.await?.into()))
            } else {
                Stream::Plain(server)
            };
            let binding = stream.channel_binding();
            let client = Client { binding, login_required, ..Client::new(address, stream.is_tls()) };
            connection::serve(stream, client, pace, surroundings).await
        });
        let mut peer = Self {
            stream: Some(Stream::Plain(client)),
            server,
            shutdown,
            cut,
            patience: if setting.paused { PATIENCE_PAUSED } else { PATIENCE },
            said: 0,
            input: Vec::new(),
            challenges: Vec::new(),
            last: Instant::now(),
            after: None,
            _accounts: accounts,
        };
        if setting.tls {
            peer.start_tls(tls).await.expect("a handshake");
        }
        peer
    }

    async fn act(&mut self, step: &Step, tls: &Tls) -> Result<(), String> {
        self.last = Instant::now();
        match step {
            Step::Say(words) => self.say(&script::octets(words, &self.challenges)).await,
            Step::End => drop(self.stream().shutdown().await),
            Step::Tls => self.start_tls(tls).await.map_err(|error| format!("no handshake: {error}"))?,
            Step::After(wait) => self.after = Some(*wait),
            Step::Shutdown => drop(self.shutdown.send(true)),
            Step::Hear(_) | Step::Closed => {}
        }
        Ok(())
    }

    fn stream(&mut self) -> &mut Stream<DuplexStream> {
        self.stream.as_mut().expect("a connection")
    }

    /// Says it in the pieces that the cut demands. A server that has closed need not listen.
    async fn say(&mut self, octets: &[u8]) {
        let end = self.said + octets.len();
        let (first, second) = match self.cut {
            Cut::At(at) if (self.said + 1..end).contains(&at) => octets.split_at(at - self.said),
            _ => (octets, &[][..]),
        };
        self.said = end;
        // Beyond that many, single octets show nothing new and take long.
        let size = if matches!(self.cut, Cut::Everywhere) && octets.len() < 4_000 { 1 } else { usize::MAX };
        for piece in first.chunks(size).chain(second.chunks(size)) {
            let stream = self.stream();
            let _ = stream.write_all(piece).await;
            let _ = stream.flush().await;
            // The server reads what is there before more comes.
            for _ in 0..5 {
                tokio::task::yield_now().await;
            }
        }
    }

    async fn start_tls(&mut self, tls: &Tls) -> std::io::Result<()> {
        let Some(Stream::Plain(stream)) = self.stream.take() else { panic!("already in TLS") };
        let name = "relay.example".try_into().expect("a name");
        let stream = timeout(self.patience, tls.client.connect(name, stream)).await??;
        self.stream = Some(Stream::Tls(Box::new(stream.into())));
        Ok(())
    }

    async fn hear(&mut self, patience: Duration) -> Heard {
        loop {
            if let Some(end) = self.input.iter().position(|b| *b == b'\n') {
                let line: Vec<u8> = self.input.drain(..=end).collect();
                let line = line.strip_suffix(b"\r\n").expect("a reply ends with CRLF");
                let line = String::from_utf8_lossy(line).into_owned();
                if let Some(challenge) = line.strip_prefix("334 ") {
                    self.challenges.push(challenge.to_owned());
                }
                return Heard::Line(line);
            }
            let stream = self.stream.as_mut().expect("a connection");
            match timeout(patience, stream.read_buf(&mut self.input)).await {
                Err(_) => return Heard::Silence,
                Ok(Ok(0) | Err(_)) => {
                    assert!(self.input.is_empty(), "half a line: {:?}", self.input);
                    return Heard::Eof;
                }
                Ok(Ok(_)) => {}
            }
        }
    }

    /// Hears the rest of a reply, whatever it says.
    async fn skip_reply(&mut self) -> Result<(), String> {
        loop {
            match self.hear(self.patience).await {
                Heard::Line(line) if line.starts_with("250 ") => return Ok(()),
                Heard::Line(line) if line.starts_with("250-") => {}
                got => return Err(format!("expected keywords\n    got {got}")),
            }
        }
    }

    async fn hear_all(&mut self, silence: Duration) -> Vec<String> {
        let mut lines = Vec::new();
        loop {
            match self.hear(silence).await {
                Heard::Line(line) => lines.push(script::masked(&line)),
                Heard::Silence => return lines,
                Heard::Eof => {
                    lines.push("EOF".to_owned());
                    return lines;
                }
            }
        }
    }

    /// Whether the line just heard came when it should.
    fn check_time(&mut self) -> Result<(), String> {
        match self.after.take() {
            Some(wait) if self.last.elapsed().as_secs() != wait.as_secs() => {
                Err(format!("came after {:?} and not after {wait:?}", self.last.elapsed()))
            }
            _ => Ok(()),
        }
    }

    /// Ends the client's side; returns what the server still had to say.
    async fn finish(mut self) -> Vec<String> {
        let _ = self.stream().shutdown().await;
        let rest = self.hear_all(self.patience).await;
        // A broken connection is an end like any other; a panic is not.
        let _ = self.server.await.expect("the server doesn't panic");
        rest.into_iter().filter(|line| line != "EOF").collect()
    }
}
