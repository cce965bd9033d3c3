//! `outpost presets`: what is known of providers.

use clap::Args;
use serde::Serialize;

use super::{
    exit::{Exit, Failure},
    output,
};
use crate::{
    admin::people,
    config::{
        Replies,
        presets::{self, Preset},
    },
};

#[derive(Debug, Args)]
pub(super) struct Presets {
    /// One of them, in full
    name: Option<String>,
    /// For programs
    #[arg(long)]
    json: bool,
}

/// A preset as it is shown. What a provider does not document is not there.
#[derive(Debug, Serialize)]
struct Shown<'p> {
    name: &'p str,
    title: &'p str,
    hosts: &'p [String],
    ports: &'p [u16],
    tls: &'static str,
    username: &'p str,
    password: &'p str,
    recipients_per_message: Option<usize>,
    max_message_size: Option<u64>,
    connections: Option<usize>,
    messages_per_connection: Option<u64>,
    rate_limits: &'p [String],
    replies: Vec<&'p str>,
    sender: Option<&'p str>,
    gone: Option<&'p str>,
    note: Option<&'p str>,
    source: &'p str,
    date: &'p str,
}

impl Presets {
    pub(super) fn run(self) -> Result<(), Failure> {
        let replies = Replies::default();
        let Some(name) = self.name else {
            let all: Vec<Shown<'_>> =
                presets::presets().iter().map(|preset| Shown::of(preset, &replies)).collect();
            if self.json {
                output::json(&all);
            } else {
                let rows: Vec<[String; 4]> = all.iter().map(Shown::row).collect();
                output::say(output::table(["NAME", "PROVIDER", "HOST", "PORTS"], &rows));
            }
            return Ok(());
        };
        let Some(preset) = presets::preset(&name.to_ascii_lowercase()) else {
            let words =
                format!("there is no preset {}; `outpost presets` lists them", people::printable(&name));
            return Err(Failure::new(Exit::USAGE, words));
        };
        let shown = Shown::of(preset, &replies);
        if self.json {
            output::json(&shown);
        } else {
            output::say(shown.in_full());
        }
        Ok(())
    }
}

impl<'p> Shown<'p> {
    fn of(preset: &'p Preset, replies: &'p Replies) -> Self {
        let is_its = |rule: &&crate::config::ReplyRule| rule.provider.contains(&preset.name);
        Self {
            name: &preset.name,
            title: &preset.title,
            hosts: &preset.hosts,
            ports: &preset.ports,
            tls: match preset.ports.first() {
                Some(port) if preset.implicit.contains(port) => "implicit",
                _ => "starttls",
            },
            username: &preset.username,
            password: &preset.password,
            recipients_per_message: preset.recipients,
            max_message_size: preset.size,
            connections: preset.connections,
            messages_per_connection: preset.messages,
            rate_limits: &preset.limits,
            replies: replies.rules().filter(is_its).map(|rule| rule.name.as_str()).collect(),
            sender: preset.sender.as_deref(),
            gone: preset.gone.as_deref(),
            note: preset.note.as_deref(),
            source: &preset.source,
            date: &preset.date,
        }
    }

    fn row(&self) -> [String; 4] {
        let title =
            if self.gone.is_some() { format!("{} (gone)", self.title) } else { self.title.to_owned() };
        [self.name.to_owned(), title, self.hosts.join(" "), joined(self.ports)]
    }

    fn in_full(&self) -> String {
        let mut lines = Vec::new();
        let mut fact = |name: &str, value: Option<String>| {
            lines.extend(value.map(|value| format!("{:25}{value}", format!("{name}:"))));
        };
        fact("name", Some(self.name.to_owned()));
        fact("provider", Some(self.title.to_owned()));
        fact("gone", self.gone.map(str::to_owned));
        fact("hosts", Some(self.hosts.join(", ")));
        fact("ports", Some(joined(self.ports)));
        fact("tls", Some(self.tls.to_owned()));
        fact("user name", Some(self.username.to_owned()));
        fact("password", Some(self.password.to_owned()));
        fact("recipients per message", self.recipients_per_message.map(|most| most.to_string()));
        fact("largest message", self.max_message_size.map(people::size));
        fact("connections", self.connections.map(|most| most.to_string()));
        fact("messages per connection", self.messages_per_connection.map(|most| most.to_string()));
        fact("rate limits", (!self.rate_limits.is_empty()).then(|| self.rate_limits.join(", ")));
        fact("replies", (!self.replies.is_empty()).then(|| self.replies.join(", ")));
        fact("senders", self.sender.map(str::to_owned));
        fact("note", self.note.map(str::to_owned));
        fact("source", Some(format!("{} ({})", self.source, self.date)));
        lines.join("\n")
    }
}

fn joined(ports: &[u16]) -> String {
    ports.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
