//! `outpost send`: a test message through the running relay, by the way that apps take.
//!
//! With `--wait` it stays until the upstream's final answer is known for every recipient.

use std::time::{Duration, Instant};

use clap::Args;
use serde::Deserialize;

use super::{
    Place,
    client::{Client, segment},
    exit::{Exit, Failure},
    handover, output,
    relay::Relay,
};
use crate::{
    admin::{
        Info, people,
        view::{Item, List},
    },
    config,
    mail::{
        content::Content,
        envelope::{Envelope, Handling},
    },
    smtp::address::Mailbox,
};

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
        let recipients = to.len();
        let id = submit(place, from, to, content)?;
        output::say(format!("queued as {id}"));
        if self.wait { wait(&client, &id, recipients, timeout) } else { Ok(Exit::OK) }
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
fn submit(place: &Place, from: Mailbox, to: Vec<Mailbox>, content: Vec<u8>) -> Result<String, Failure> {
    let utf8 = !from.is_ascii() || to.iter().any(|to| !to.is_ascii());
    let handling = Handling { utf8, ..Handling::default() };
    let recipients = to.into_iter().map(Into::into).collect();
    let envelope = Envelope { reverse_path: from.into(), recipients, handling };
    let mut session = Relay::find(place)?.open()?;
    let outcomes = session.hand_over(&envelope, &Content::Memory(content.into()))?;
    session.close();
    handover::queue_id(&envelope.recipients, &outcomes)
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
