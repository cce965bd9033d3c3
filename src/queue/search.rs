//! Looking for entries among a million: by what their rows in the store say, and then, where an address
//! is wanted, by the entries themselves. Nothing is missed and nothing is there that isn't meant.

use rusqlite::types::Value;

use super::{
    entry::Entry,
    id::QueueId,
    marks::{Wanted, is_meant},
};
use crate::clock::Timestamp;

/// What is looked for. Without any condition, everything.
#[derive(Clone, Debug, Default)]
pub struct Search {
    /// From this address, or this `@domain`, or `<>`.
    pub sender: Option<String>,
    /// For this address, or somebody at this `@domain`.
    pub recipient: Option<String>,
    /// How it stands.
    pub standing: Standing,
    /// Accepted before this.
    pub before: Option<Timestamp>,
}

/// How an entry stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Standing {
    /// In whatever way.
    #[default]
    Any,
    /// Waits for an operator, or is damaged.
    Held,
    /// Not held.
    Queued,
    /// Due by this time, or under way.
    Due(Timestamp),
    /// Wants to be tried later than this.
    Later(Timestamp),
    /// An attempt is under way.
    Claimed,
}

impl Search {
    /// Whether it matters what is claimed.
    pub(super) fn asks_for_claims(&self) -> bool {
        matches!(self.standing, Standing::Due(_) | Standing::Claimed)
    }

    /// An index of all that stand so, where there is one: worth going by while they are few.
    pub(super) fn index(&self) -> Option<&'static str> {
        match self.standing {
            Standing::Held => Some("message INDEXED BY message_held WHERE state >= 2"),
            Standing::Later(_) => Some("message INDEXED BY message_later WHERE state = 1"),
            _ => None,
        }
    }

    /// What must hold for a row, as a part of a statement, and the values in it; `claims` are under way.
    pub(super) fn conditions(&self, claims: &[QueueId]) -> (String, Vec<Value>) {
        let (mut all, mut values) = (Vec::new(), Vec::new());
        let mut must = |condition: String, value: Option<Value>| {
            all.push(condition);
            values.extend(value);
        };
        let time = |at: Timestamp| Some(Value::Integer(at.0 as i64));
        let claims = || {
            let ids: Vec<String> = claims.iter().map(|id| id.to_i64().to_string()).collect();
            format!("id IN ({})", ids.join(","))
        };
        match self.sender.as_deref().map(Wanted::of) {
            None => {}
            Some(Wanted::Nobody) => must("sender = 0".to_owned(), None),
            Some(Wanted::Domain(mark)) => must("sender >> 31 = ?".to_owned(), Some(i64::from(mark).into())),
            Some(Wanted::Address(mark)) => {
                must("sender & 0x7FFFFFFF = ?".to_owned(), Some(i64::from(mark).into()));
            }
        }
        match self.recipient.as_deref().map(Wanted::of) {
            None => {}
            Some(Wanted::Nobody) => must("0".to_owned(), None),
            Some(Wanted::Domain(mark) | Wanted::Address(mark)) => {
                must("instr(recipients, ?) > 0".to_owned(), Some(mark.to_be_bytes().to_vec().into()));
            }
        }
        match self.standing {
            Standing::Any => {}
            Standing::Held => must("state >= 2".to_owned(), None),
            Standing::Queued => must("state <= 1".to_owned(), None),
            Standing::Due(now) => must(format!("(state <= 1 AND due <= ? OR {})", claims()), time(now)),
            Standing::Later(now) => must("state = 1 AND due > ?".to_owned(), time(now)),
            Standing::Claimed => must(claims(), None),
        }
        if let Some(before) = self.before {
            must("id < ?".to_owned(), Some(QueueId::first_of(before).to_i64().into()));
        }
        (all.iter().map(|condition| format!("{condition} AND ")).collect(), values)
    }

    /// Whether one of which nothing is known is meant, too.
    pub(super) fn asks_for_all(&self) -> bool {
        let standing = matches!(self.standing, Standing::Any | Standing::Held);
        standing && !self.has_address() && self.before.is_none()
    }

    /// Whether addresses matter, which rows know only by their marks.
    pub(super) fn has_address(&self) -> bool {
        self.sender.is_some() || self.recipient.is_some()
    }

    /// Whether the addresses of an entry are those.
    pub(super) fn means(&self, entry: &Entry) -> bool {
        let is_sender = |wanted: &String| is_meant(wanted, entry.reverse_path.as_str());
        let is_recipient =
            |wanted: &String| entry.recipients.iter().any(|one| is_meant(wanted, one.address.as_str()));
        self.sender.as_ref().is_none_or(is_sender) && self.recipient.as_ref().is_none_or(is_recipient)
    }
}
