//! `outpost send`: a test message through the running relay, by the way that apps take.
//!
//! With `--wait` it stays until the upstream's final answer is known for every recipient.

use std::{
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpStream, ToSocketAddrs as _},
    time::{Duration, Instant},
};

use clap::Args;
use serde::Deserialize;

use super::{
    Place,
    client::{Client, segment},
    exit::{Exit, Failure},
    output,
};
use crate::{
    admin::{
        Info, people,
        view::{Item, List},
    },
    config,
    smtp::{
        address::{Mailbox, ReversePath},
        command::Command,
        esmtp::{MailParameters, RcptParameters},
        extension::Capabilities,
        framing::ContentWriter,
        reply::{Reply, ReplyReader},
        sasl,
    },
};

/// For one reply of the relay's; it is on this machine.
const REPLY_WITHIN: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(200);

#[derive(Debug, Args)]
pub(super) struct Send {
    /// For whom
    #[arg(long, value_name = "ADDRESS", required = true)]
    to: Vec<String>,
    /// From whom [default: the login at the upstream if it is an address, else outpost@hostname]
    #[arg(long, value_name = "ADDRESS")]
    from: Option<String>,
    /// What it is about
    #[arg(long, default_value = "Test message from Outpost")]
    subject: String,
    /// Stay until the upstream has taken or refused it, and tell its answer
    #[arg(long)]
    wait: bool,
    /// How long to stay
    #[arg(long, value_name = "TIME", default_value = "60s", requires = "wait")]
    timeout: String,
}

impl Send {
    pub(super) fn run(self, place: &Place) -> Result<Exit, Failure> {
        let usage = |words: &str| Failure::new(Exit::USAGE, words);
        let timeout = config::parse_duration(&self.timeout).ok_or_else(|| usage("--timeout is 30s, 5m"))?;
        let client = Client::find(place)?;
        let info: Info = client.get("/api/v1/info")?;
        let from = match (self.from, &info.relay_username) {
            (Some(from), _) => mailbox(&from)?,
            (None, Some(login)) if login.contains('@') => mailbox(login)?,
            (None, _) => mailbox(&format!("outpost@{}", info.hostname))?,
        };
        let to = self.to.iter().map(|to| mailbox(to)).collect::<Result<Vec<_>, _>>()?;
        let content = compose(&from, &to, &self.subject, &info.hostname)?;
        let id = submit(&info, &from, &to, &content)?;
        output::say(format!("queued as {id}"));
        if self.wait { wait(&client, &id, to.len(), timeout) } else { Ok(Exit::OK) }
    }
}

fn mailbox(address: &str) -> Result<Mailbox, Failure> {
    Mailbox::parse(address).map_err(|error| Failure::new(Exit::DATA, format!("{address}: {error}")))
}

fn compose(from: &Mailbox, to: &[Mailbox], subject: &str, hostname: &str) -> Result<Vec<u8>, Failure> {
    let unusable = |error: &dyn std::fmt::Display| Failure::new(Exit::DATA, format!("no message: {error}"));
    let parse = |mailbox: &Mailbox| mailbox.as_str().parse().map_err(|error| unusable(&error));
    let id = format!("<{:016x}.{:016x}@{hostname}>", fastrand::u64(..), fastrand::u64(..));
    let mut builder =
        lettre::Message::builder().from(parse(from)?).subject(subject).date_now().message_id(Some(id));
    for to in to {
        builder = builder.to(parse(to)?);
    }
    let text = "This is a test message from Outpost. If you can read it, mail arrives.\r\n";
    Ok(builder.body(text.to_owned()).map_err(|error| unusable(&error))?.formatted())
}

/// Hands the message to the relay; returns its queue id.
fn submit(info: &Info, from: &Mailbox, to: &[Mailbox], content: &[u8]) -> Result<String, Failure> {
    let mut session = Session::open(info)?;
    session.expect(None, "greeting")?;
    let hello = session.say(&Command::Ehlo("localhost".to_owned()))?;
    let offered = Capabilities::from_reply(&hello);
    // From loopback the relay takes PLAIN; whether it must be said depends on its networks.
    if let Some(password) = info.published("PASSWORD")
        && offered.auth.iter().any(|mechanism| mechanism == "PLAIN")
    {
        let initial = sasl::encode(sasl::plain(&info.login, password));
        session.say(&Command::Auth("PLAIN".to_owned(), Some(initial)))?;
    }
    let utf8 = !from.is_ascii() || to.iter().any(|to| !to.is_ascii());
    let asked = MailParameters { utf8, ..MailParameters::default() };
    session.say(&Command::Mail(ReversePath::from(from.clone()), asked))?;
    for to in to {
        session.say(&Command::Rcpt(to.clone(), RcptParameters::default()))?;
    }
    session.say(&Command::Data)?;
    let mut stuffed = Vec::with_capacity(content.len() + 64);
    let mut writer = ContentWriter::default();
    writer.write(content, |piece| stuffed.extend_from_slice(piece));
    stuffed.extend_from_slice(writer.end());
    let accepted = session.expect(Some(&stuffed), "content")?;
    let _ = session.say(&Command::Quit);
    let id = accepted.lines().next().and_then(|line| line.strip_prefix("queued as ")).map(str::to_owned);
    id.ok_or_else(|| {
        Failure::new(Exit::UNAVAILABLE, format!("no queue id in the relay's answer: {accepted}"))
    })
}

/// A session with the relay's own listener.
struct Session {
    stream: TcpStream,
    input: Vec<u8>,
    reader: ReplyReader,
}

impl Session {
    fn open(info: &Info) -> Result<Self, Failure> {
        let failed = |words: String| Failure::new(Exit::UNAVAILABLE, words);
        let listen = info
            .listen
            .iter()
            .find(|listen| listen.tls != "implicit" && !listen.address.starts_with("unix:"));
        let listen = listen.ok_or_else(|| {
            failed("the relay takes mail over implicit TLS or Unix sockets only".to_owned())
        })?;
        let opened = || {
            let mut address = listen.address.to_socket_addrs()?.next().ok_or(io::ErrorKind::NotFound)?;
            if address.ip().is_unspecified() {
                let loopback = if address.is_ipv4() { "127.0.0.1" } else { "::1" };
                address = SocketAddr::new(loopback.parse().map_err(io::Error::other)?, address.port());
            }
            let stream = TcpStream::connect_timeout(&address, REPLY_WITHIN)?;
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(REPLY_WITHIN))?;
            stream.set_write_timeout(Some(REPLY_WITHIN))?;
            Ok(stream)
        };
        let stream = opened().map_err(|error: io::Error| failed(format!("{}: {error}", listen.address)))?;
        Ok(Self { stream, input: Vec::new(), reader: ReplyReader::default() })
    }

    fn say(&mut self, command: &Command) -> Result<Reply, Failure> {
        let mut line = Vec::new();
        command.write_to(&mut line);
        let verb = String::from_utf8_lossy(&line);
        let verb = verb.split([' ', '\r']).next().unwrap_or_default().to_owned();
        self.expect(Some(&line), &verb)
    }

    /// Sends, and wants a yes.
    fn expect(&mut self, octets: Option<&[u8]>, what: &str) -> Result<Reply, Failure> {
        let sent = octets.map_or(Ok(()), |octets| self.stream.write_all(octets));
        let reply = sent.and_then(|()| self.reply());
        let reply = reply
            .map_err(|error| Failure::new(Exit::UNAVAILABLE, format!("the relay at {what}: {error}")))?;
        match reply.code() {
            0..400 => Ok(reply),
            400..500 => Err(Failure::new(Exit::TRY_AGAIN, format!("the relay at {what}: {reply}"))),
            530 | 535 | 538 => {
                Err(Failure::new(Exit::NOT_PERMITTED, format!("the relay at {what}: {reply}")))
            }
            _ => Err(Failure::new(Exit::DATA, format!("the relay at {what}: {reply}"))),
        }
    }

    fn reply(&mut self) -> io::Result<Reply> {
        loop {
            let mut rest = &self.input[..];
            let reply = self.reader.read(&mut rest).map_err(io::Error::other)?;
            self.input = rest.to_vec();
            if let Some(reply) = reply {
                return Ok(reply);
            }
            let mut piece = [0; 4096];
            match self.stream.read(&mut piece)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                read => self.input.extend_from_slice(&piece[..read]),
            }
        }
    }
}

/// What is read of an event.
#[derive(Debug, Deserialize)]
struct Seen {
    event: String,
    recipient: Option<String>,
    reply: Option<String>,
    upstream: Option<String>,
    next_attempt: Option<String>,
}

/// Follows the message until each of its recipients has an answer.
fn wait(client: &Client, id: &str, recipients: usize, timeout: Duration) -> Result<Exit, Failure> {
    let end = Instant::now() + timeout;
    let (mut told, mut finished, mut exit) = (0, 0, Exit::OK);
    while Instant::now() < end {
        let events: List<Seen> = client.get(&format!("/api/v1/events?limit=1000&id={}", segment(id)))?;
        for event in events.items.iter().skip(told) {
            told += 1;
            match event.event.as_str() {
                "received" => continue,
                "delivered" => finished += 1,
                "bounced" | "expired" => {
                    finished += 1;
                    exit = Exit::UNAVAILABLE;
                }
                "deleted" => (finished, exit) = (recipients, Exit::UNAVAILABLE),
                _ => {}
            }
            output::say(people::printable(&event.sentence()));
        }
        if finished >= recipients {
            return Ok(exit);
        }
        std::thread::sleep(POLL);
    }
    let why = client.get::<Item>(&format!("/api/v1/queue/{}", segment(id))).ok().and_then(|item| item.reason);
    let why = why.map_or(String::new(), |why| format!("\n  {}", people::printable(&why)));
    let words = format!("no final answer within {} s; {id} stays queued{why}", timeout.as_secs());
    Err(Failure::new(Exit::TRY_AGAIN, words))
}

impl Seen {
    /// `delivered to a@b.example by up.example: 250 ok`
    fn sentence(&self) -> String {
        let mut words = self.event.clone();
        for (before, part) in [
            (" to ", &self.recipient),
            (" by ", &self.upstream),
            (": ", &self.reply),
            ("; next try at ", &self.next_attempt),
        ] {
            words.extend(part.iter().flat_map(|part| [before, part.as_str()]));
        }
        words
    }
}
