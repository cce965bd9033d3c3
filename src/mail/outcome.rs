//! What an attempt meant, for each recipient, with the evidence.
//!
//! An outcome is not an error: a refusal by the upstream is a result like any other, and the queue,
//! the reports and the operator all need the same few facts about it.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{
    clock::Timestamp,
    smtp::reply::{Enhanced, Reply},
};

/// What an attempt meant for one recipient.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The upstream took it: its 250 after the content.
    Delivered(Evidence),
    /// Not now; it stays queued.
    Deferred(Evidence),
    /// Never; its sender is told.
    Failed(Evidence),
}

impl Outcome {
    /// What was seen.
    pub fn evidence(&self) -> &Evidence {
        match self {
            Self::Delivered(evidence) | Self::Deferred(evidence) | Self::Failed(evidence) => evidence,
        }
    }
}

/// How far a trouble reaches. Asked first; only the first two can ever make mail bounce.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// This recipient.
    Recipient,
    /// This message.
    Message,
    /// This transaction: the same mail may pass at once in another.
    Transaction,
    /// All mail from this sender.
    Sender,
    /// Our login.
    Credential,
    /// All that our account may send: its quotas and rates.
    Account,
    /// The upstream as a whole.
    Upstream,
    /// The way to the upstream.
    Network,
}

/// Who can do something about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Who {
    /// Whoever runs this relay.
    #[serde(rename = "operator")]
    Operator,
    /// The upstream's people.
    #[serde(rename = "the upstream")]
    Upstream,
    /// Whoever sent the message.
    #[serde(rename = "the sender")]
    Sender,
    /// It passes by itself.
    #[serde(rename = "nobody")]
    Nobody,
}

impl Who {
    /// The word for it, as the API has it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Operator => "operator",
            Self::Upstream => "the upstream",
            Self::Sender => "the sender",
            Self::Nobody => "nobody",
        }
    }
}

/// What the upstream wants less of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Slower {
    /// Messages in a time.
    Rate,
    /// Connections at once.
    Connections,
}

/// What is known about a reply beyond its words.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Advice {
    /// Who can do something about it.
    pub who: Who,
    /// What to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub help: Option<String>,
    /// The upstream said, or its window says, that nothing helps before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_before: Option<Timestamp>,
    /// So many tries are worth it; then it is as if it had been refused for good.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tries: Option<u32>,
    /// It comes too fast, or from too many sides.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slower: Option<Slower>,
}

/// What was seen, kept for reports and people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Evidence {
    /// When.
    pub at: Timestamp,
    /// At which upstream.
    pub upstream: String,
    /// During what, as people call it: `RCPT`, `final reply`.
    pub phase: String,
    /// How far it reaches.
    pub scope: Scope,
    /// The upstream's words as they came.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reply: Option<Reply>,
    /// Ours, where the upstream said nothing or what it said needs explaining.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub explanation: Option<String>,
    /// What it amounts to, where the upstream gave no code of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<Enhanced>,
    /// Who must act and what to do, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub advice: Option<Box<Advice>>,
    /// The content went out and no final reply came: the upstream may have taken the message.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub uncertain: bool,
    /// The version of TLS it travelled by, if any: `TLSv1.3`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<String>,
}

impl Evidence {
    /// Who can do something about it, where that is known.
    pub fn who(&self) -> Option<Who> {
        self.advice.as_ref().map(|advice| advice.who)
    }

    /// What to do, where that is known.
    pub fn help(&self) -> Option<&str> {
        self.advice.as_ref()?.help.as_deref()
    }

    /// What the upstream wants less of, if it said so.
    pub fn slower(&self) -> Option<Slower> {
        self.advice.as_ref()?.slower
    }

    /// How many tries are worth it, if that is known.
    pub fn tries(&self) -> Option<u32> {
        self.advice.as_ref()?.tries
    }

    /// When the upstream wants to be asked again, if it said so.
    pub fn not_before(&self) -> Option<Timestamp> {
        self.advice.as_ref()?.not_before
    }
}

/// What people read about a trouble, wherever they read it: what was seen and means (`reason`, an
/// [`Evidence`] in one line), who must act, what to do, and when the next try is.
pub fn sentence(reason: &str, who: Option<&str>, help: Option<&str>, next: Option<&str>) -> String {
    let mut said = format!("{}.", reason.trim_end_matches('.'));
    match who {
        Some("operator") => said.push_str(" You must act: it won't get better by itself."),
        Some("nobody") => said.push_str(" Nobody must act: it passes."),
        Some(who) => said.push_str(&format!(" Who must act: {who}.")),
        None => {}
    }
    if let Some(help) = help {
        said.push_str(&format!(" What to do: {}.", help.trim_end_matches('.')));
    }
    if let Some(next) = next {
        said.push_str(&format!(" Next try at {next}."));
    }
    said
}

/// In one line: the upstream's words, then ours.
impl fmt::Display for Evidence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.reply, &self.explanation) {
            (Some(reply), Some(ours)) => write!(f, "{reply} ({ours})"),
            (Some(reply), None) => write!(f, "{reply}"),
            (None, Some(ours)) => f.write_str(ours),
            (None, None) => write!(f, "no reply during {}", self.phase),
        }
    }
}
