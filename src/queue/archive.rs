//! The form in which messages leave a queue for a file, and come back: what `queue export` writes for
//! each beside its content, and what `queue import` believes of it.
//!
//! An archive may come from anywhere, so nothing in it is trusted: addresses are parsed anew, no text
//! may hold what could become a line of its own in a command, a header or a log, and what the content
//! can tell is asked of the content.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    entry::{Entry, RecipientState},
    id::QueueId,
};
use crate::clock::Timestamp;

/// The version of the form. Fields that are added have defaults and don't change it.
const VERSION: u32 = 1;
/// The longest record that is read: tens of thousands of recipients with what was tried for each.
pub const RECORD_MAX: u64 = 16 * 1024 * 1024;
/// The longest text in one, and the longest that goes into a command (ENVID, ORCPT).
const TEXT_MAX: usize = 64 * 1024;
const PARAMETER_MAX: usize = 512;
/// So much may the clock of the host that it comes from be ahead.
const AHEAD_MAX: Duration = Duration::from_secs(3_600);
/// More than in a year of tries each half a minute.
const ATTEMPTS_MAX: u32 = 1_100_000;
/// Nothing waits longer by anybody's wish.
const WAIT_MAX: Duration = Duration::from_secs(366 * 86_400);

/// A message in an archive, without its content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Archived {
    version: u32,
    /// When it wants to be tried next; held ones have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    due: Option<Timestamp>,
    /// The message: its record in the queue.
    pub message: Entry,
}

/// Why a record in an archive is not believed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unbelievable {
    /// It is no JSON, or lacks something.
    #[error("its record can't be read: {0}")]
    Unreadable(String),
    /// Of another version.
    #[error("its record is of version {0}: this version of Outpost knows {VERSION}")]
    Version(u32),
    /// The name in the archive is another's.
    #[error("its record is another message's")]
    Foreign,
    /// Something in it is not as it ever leaves a queue.
    #[error("its record is not one of a queue: {0}")]
    Wrong(&'static str),
}

impl Archived {
    /// A message as it is queued, tried next at `due`.
    pub(super) fn of(message: Entry, due: Timestamp) -> Self {
        let due = message.held.is_none().then_some(due);
        Self { version: VERSION, due, message }
    }

    /// The form in a file.
    pub(super) fn write(&self) -> Vec<u8> {
        serde_json::to_vec_pretty(self)
            .expect("because an entry holds only strings and numbers, and a Vec takes all")
    }

    /// Reads the record of `id`.
    ///
    /// # Errors
    /// See [`Unbelievable`].
    pub fn read(id: QueueId, json: &[u8], now: Timestamp) -> Result<Self, Unbelievable> {
        let unreadable = |error: serde_json::Error| Unbelievable::Unreadable(error.to_string());
        let mut value: Value = serde_json::from_slice(json).map_err(unreadable)?;
        match value.get("version").and_then(Value::as_u64) {
            Some(version) if version == u64::from(VERSION) => {}
            Some(other) => return Err(Unbelievable::Version(u32::try_from(other).unwrap_or(u32::MAX))),
            None => return Err(Unbelievable::Wrong("it says no version")),
        }
        // The content will tell, and may hold what a record must not.
        if let Some(message) = value.get_mut("message").and_then(Value::as_object_mut) {
            message.remove("subject");
            message.remove("message_id");
        }
        check_texts("", &value)?;
        let mut archived: Self = serde_json::from_value(value).map_err(unreadable)?;
        if archived.message.id != id {
            return Err(Unbelievable::Foreign);
        }
        archived.message.check(archived.due, now).map_err(Unbelievable::Wrong)?;
        archived.keep_due();
        Ok(archived)
    }

    /// Those still to be reached wait as long as the message did.
    fn keep_due(&mut self) {
        let Some(due) = self.due else { return };
        let pending = |state| state == RecipientState::Pending;
        for recipient in self.message.recipients.iter_mut().filter(|one| pending(one.state)) {
            recipient.due = recipient.due.max(Some(due));
        }
    }
}

/// No text holds a control character; only words of upstreams have several lines.
fn check_texts(key: &str, value: &Value) -> Result<(), Unbelievable> {
    match value {
        Value::String(text) => {
            let lines = matches!(key, "text" | "explanation" | "help");
            if text.len() > TEXT_MAX {
                return Err(Unbelievable::Wrong("a text in it is too long"));
            }
            if text.chars().any(|c| c.is_control() && !(lines && c == '\n')) {
                return Err(Unbelievable::Wrong("a text in it holds control characters"));
            }
            Ok(())
        }
        Value::Array(items) => items.iter().try_for_each(|item| check_texts(key, item)),
        Value::Object(fields) => fields.iter().try_for_each(|(key, value)| check_texts(key, value)),
        Value::Null | Value::Bool(_) | Value::Number(_) => Ok(()),
    }
}

impl Entry {
    /// What is wrong with an entry that comes from elsewhere, if anything.
    fn check(&self, due: Option<Timestamp>, now: Timestamp) -> Result<(), &'static str> {
        let soon = now.after(AHEAD_MAX);
        if self.id.time() > soon || self.received > soon {
            return Err("it was received in the future; is the clock of either host wrong?");
        }
        let waits = self.recipients.iter().map(|recipient| recipient.due);
        let waits = waits.chain([due, self.handling.hold_until]).flatten();
        if waits.max().is_some_and(|due| due > now.after(WAIT_MAX)) {
            return Err("it waits for a time too far ahead");
        }
        if self.recipients.is_empty() {
            return Err("it has no recipients");
        }
        if self.recipients.iter().any(|recipient| recipient.attempts > ATTEMPTS_MAX) {
            return Err("it was tried more often than can be");
        }
        if self.held.is_none() && self.pending().next().is_none() {
            return Err("nobody is to be reached any more");
        }
        if !(-9..=9).contains(&self.handling.priority) {
            return Err("its priority is not between -9 and 9");
        }
        if self.handling.envid.as_ref().is_some_and(|envid| envid.len() > PARAMETER_MAX) {
            return Err("its ENVID is too long");
        }
        for original in self.recipients.iter().filter_map(|recipient| recipient.original.as_ref()) {
            // RFC 3461 §4.2: an atom; anything else could become a parameter of its own.
            let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
            if original.kind.is_empty()
                || original.kind.len() > 64
                || !original.kind.bytes().all(plain)
                || original.address.is_empty()
                || original.address.len() > PARAMETER_MAX
            {
                return Err("an ORCPT in it is not well-formed");
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::queue::entry::tests::sample;

    const NOW: Timestamp = Timestamp(1_340_000_000_000);

    fn written() -> String {
        let archived = Archived::of(sample(7), Timestamp(NOW.0 + 5_000));
        String::from_utf8(archived.write()).expect("JSON")
    }

    fn read(json: &str) -> Result<Archived, Unbelievable> {
        Archived::read(QueueId::from_i64(7), json.as_bytes(), NOW)
    }

    #[test]
    fn a_record_is_read_back_and_its_wait_stays() {
        let archived = read(&written()).expect("our own");
        assert_eq!(archived.message.recipients[0].due, Some(Timestamp(NOW.0 + 5_000)));
        assert_eq!(archived.message.first_due(), Timestamp(NOW.0 + 5_000));
        assert_eq!(archived.message.received, sample(7).received);
        let held = Entry { held: Some("by hand".into()), ..sample(7) };
        let json = String::from_utf8(Archived::of(held, Timestamp(0)).write()).expect("JSON");
        assert!(!json.contains("\"due\""), "{json}");
    }

    #[test]
    fn what_no_queue_wrote_is_not_believed() {
        let json = written();
        for (from, to, why) in [
            ("\"version\": 1", "\"version\": 2", "version 2"),
            ("\"version\": 1", "\"ver\": 1", "no version"),
            ("0000000000007", "0000000000008", "another message's"),
            ("app@sender.example", "app@sender.example> SIZE=1", "can't be read"),
            ("user@rcpt.example", "user@rcpt.example\\r\\nRCPT TO:<x@y.example>", "control characters"),
            ("\"hello\": \"app\"", "\"hello\": \"app\\r\\nX: y\"", "control characters"),
            ("\"recipients\": [", "\"recipients\": [], \"others\": [", "no recipients"),
            ("\"state\": \"pending\"", "\"state\": \"delivered\"", "nobody is to be reached"),
            ("\"due\": 1340000005000", "\"due\": 9000000000000000000", "too far ahead"),
            ("\"received\": 1000", "\"received\": 9000000000000000000", "in the future"),
            ("\"body\": \"eightbit\"", "\"body\": \"eightbit\", \"priority\": 99", "priority"),
            (
                "\"attempts\": 0",
                "\"attempts\": 0, \"original\": {\"kind\": \"rfc822 NOTIFY=NEVER\", \"address\": \"a\"}",
                "ORCPT",
            ),
        ] {
            assert!(json.contains(from), "{from}: {json}");
            let refused = read(&json.replacen(from, to, 1)).expect_err(to).to_string();
            assert!(refused.contains(why), "{to}: {refused}");
        }
        assert!(read(&json[..json.len() / 2]).is_err());
    }
}
