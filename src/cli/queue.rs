//! `outpost queue …`: looks at queued mail and acts on it, one message by id or many by filter. Where no
//! relay runs the same is done on its queue.
//!
//! - here: what is looked at
//! - [`act`]: what is done
//! - [`export`], [`import`]: what goes into an archive, and comes back
//! - [`care`]: whether the queue is whole, and a copy of it

mod act;
mod care;
mod export;
mod import;

use clap::{Args, Subcommand};

use self::act::Chosen;
use super::{
    Place,
    client::{Client, segment, with_query},
    exit::Failure,
    output,
};
use crate::{
    admin::{
        Filter,
        events::Story,
        people,
        view::{Item, List},
    },
    observe::Event,
};

#[derive(Debug, Subcommand)]
pub(super) enum Queue {
    /// List messages, the oldest first
    List(Listing),
    /// Show one message and what was tried for each recipient
    Show {
        /// The queue id
        id: String,
        /// For programs
        #[arg(long)]
        json: bool,
    },
    /// Print a message as it will be sent
    Cat {
        /// The queue id
        id: String,
    },
    /// Try now, and tell the upstream's breaker to forget what it saw
    Retry(Chosen),
    /// Try no more until it is released
    Hold(Chosen),
    /// Let held messages go on
    Release(Chosen),
    /// Return messages to their senders, with a report
    Bounce(act::Bounce),
    /// Remove messages; nobody is told
    Delete(Chosen),
    /// Copy messages into an archive, with all that is known of them; they stay queued
    Export(export::Export),
    /// Bring back messages from an archive; what is here or has left already is passed over
    Import(import::Import),
    /// Say whether the queue is whole; changes nothing, whether the relay runs or not
    Check(care::Check),
    /// Copy the queue into a new directory, while the relay runs or not
    Backup(care::Backup),
}

#[derive(Debug, Args)]
pub(super) struct Listing {
    #[command(flatten)]
    filter: Filter,
    /// All messages [default: the first 100]
    #[arg(long)]
    all: bool,
    /// For programs
    #[arg(long)]
    json: bool,
}

impl Queue {
    pub(super) fn run(self, place: &Place) -> Result<(), Failure> {
        match self {
            Self::Check(check) => check.run(place),
            Self::Backup(backup) => backup.run(place),
            // A queue may come to a host before its relay was ever started.
            Self::Import(import) => import.run(&Client::of_queue(place, true)?),
            other => other.ask(&Client::of_queue(place, false)?),
        }
    }

    fn ask(self, client: &Client) -> Result<(), Failure> {
        match self {
            Self::Import(_) | Self::Check(_) | Self::Backup(_) => {}
            Self::List(listing) => return listing.run(client),
            Self::Show { id, json } => {
                let told: Story = client.get(&format!("/api/v1/queue/{}", segment(&id)))?;
                if json {
                    output::json(&told);
                } else {
                    output::say(shown(&told));
                }
            }
            Self::Cat { id } => {
                output::pass_on(&client.raw(&format!("/api/v1/queue/{}/content", segment(&id)))?);
            }
            Self::Retry(chosen) => return chosen.act(client, "retry", None),
            Self::Hold(chosen) => return chosen.act(client, "hold", None),
            Self::Release(chosen) => return chosen.act(client, "release", None),
            Self::Bounce(bounce) => return bounce.act(client),
            Self::Delete(chosen) => return chosen.act(client, "delete", None),
            Self::Export(export) => return export.run(client),
        }
        Ok(())
    }
}

/// The messages that a filter wants, page by page, until `enough`.
fn found(client: &Client, filter: &Filter, enough: usize) -> Result<(Vec<Item>, Option<String>), Failure> {
    let mut filter = Filter { limit: Some(enough.min(1_000)), ..filter.clone() };
    let mut items: Vec<Item> = Vec::new();
    loop {
        let page: List<Item> = client.get(&with_query("/api/v1/queue", &filter))?;
        items.extend(page.items);
        if page.next.is_none() || items.len() >= enough {
            return Ok((items, page.next));
        }
        filter.cursor = page.next;
    }
}

impl Listing {
    fn run(self, client: &Client) -> Result<(), Failure> {
        let enough = if self.all { usize::MAX } else { 100 };
        let (items, next) = found(client, &self.filter, enough)?;
        if self.json {
            output::json(&List { items, next });
            return Ok(());
        }
        if items.is_empty() {
            output::say(if self.filter.is_empty() { "The queue is empty." } else { "No message is meant." });
            return Ok(());
        }
        let rows: Vec<_> = items.iter().map(row).collect();
        output::say(output::table(["ID", "STATE", "RECEIVED", "SIZE", "FROM", "TO", "REASON"], &rows));
        if next.is_some() {
            output::complain("there are more: --all shows them");
        }
        Ok(())
    }
}

fn row(item: &Item) -> [String; 7] {
    let mut to = item.recipients.first().map_or(String::new(), |first| first.address.clone());
    if item.recipients.len() > 1 {
        to.push_str(&format!(" +{}", item.recipients.len() - 1));
    }
    [
        item.id.clone(),
        item.state.name().to_owned(),
        item.received.clone(),
        people::size(item.size),
        sender(item).to_owned(),
        to,
        item.reason.clone().unwrap_or_default(),
    ]
}

fn sender(item: &Item) -> &str {
    if item.sender.is_empty() { "<>" } else { &item.sender }
}

/// One message in full, what is not known left out.
fn shown(told: &Story) -> String {
    let item = &told.item;
    let mut lines = Vec::new();
    let mut fact = |name: &str, value: Option<&str>| {
        lines.extend(value.map(|value| format!("{:12}{}", format!("{name}:"), people::printable(value))));
    };
    fact("id", Some(&item.id));
    fact("state", Some(item.state.name()));
    fact("reason", item.reason.as_deref());
    fact("received", Some(&item.received));
    fact("client", item.client.as_deref());
    fact("user", item.user.as_deref());
    fact("sender", Some(sender(item)));
    fact("subject", item.subject.as_deref());
    fact("message-id", item.message_id.as_deref());
    fact("size", Some(&people::size(item.size)));
    fact("upstream", Some(&item.upstream));
    for recipient in &item.recipients {
        let attempts = people::count(recipient.attempts.into(), "attempt");
        fact("recipient", Some(&format!("{} ({}, {attempts})", recipient.address, recipient.state)));
        fact("  reply", recipient.last_reply.as_deref());
        // It begins with the reply where there is one, and ends with the next try.
        fact("  what now", recipient.sentence().as_deref());
    }
    if !told.history.is_empty() {
        lines.push("history:".to_owned());
        lines.extend(told.history.iter().map(happened));
    }
    lines.join("\n")
}

/// One event, without what stands above it.
fn happened(event: &Event) -> String {
    let own = Event { id: String::new(), sender: None, size: None, message_id: None, ..event.clone() };
    format!("  {} {}", event.time, people::printable(&own.line()))
}
