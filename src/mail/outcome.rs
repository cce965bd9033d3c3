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
    /// Our login.
    Credential,
    /// The upstream as a whole, or the way there.
    Upstream,
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
    /// The content went out and no final reply came: the upstream may have taken the message.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub uncertain: bool,
    /// The version of TLS it travelled by, if any: `TLSv1.3`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<String>,
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
