//! An entry: one accepted message, whom it still has to reach, and what was tried.
//!
//! Its stored form is JSON behind a CRC32C: readable with any SQLite tool, extended by adding fields
//! with defaults, and never trusted without its checksum.

use memchr::memmem;
use serde::{Deserialize, Serialize};

use super::id::QueueId;
use crate::{
    clock::Timestamp,
    mail::{
        envelope::{Addressee, Handling, Origin},
        outcome::Evidence,
    },
    smtp::{
        address::{Mailbox, ReversePath},
        parameter::{Body, Notify, OriginalRecipient},
    },
};

/// One accepted message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Its name.
    pub id: QueueId,
    /// When it was accepted.
    pub received: Timestamp,
    /// Who hears of a failure.
    pub reverse_path: ReversePath,
    /// Everyone it is for; those already served stay listed until the entry leaves.
    pub recipients: Vec<Recipient>,
    /// What the client asked for.
    #[serde(default)]
    pub handling: Handling,
    /// How it came.
    pub origin: Origin,
    /// The content's checksum and size.
    pub content: ContentInfo,
    /// Received fields of other hosts in it.
    #[serde(default)]
    pub hops: usize,
    /// For people; not decoded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
    /// For people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message_id: Option<String>,
    /// Why an operator's word is waited for; `None` while it isn't.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held: Option<String>,
    /// Its sender was told that it is late.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub warned: bool,
}

/// What an older form of the record held.
#[derive(Deserialize)]
struct Old {
    #[serde(default)]
    eight_bit: bool,
}

/// The content as it was accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContentInfo {
    /// Octets, our Received field included.
    pub size: u64,
    /// Its checksum, compared before any of it leaves.
    pub crc32c: u32,
    /// In a file of the spool rather than in the database.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub spooled: bool,
}

/// One recipient of an entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recipient {
    /// Whom to reach.
    pub address: Mailbox,
    /// Of what the sender wants to hear; `None` where it did not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub notify: Option<Notify>,
    /// The recipient as the sender first knew it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub original: Option<OriginalRecipient>,
    /// Whether that is still to be done.
    #[serde(default)]
    pub state: RecipientState,
    /// Attempts whose outcome is known.
    #[serde(default)]
    pub attempts: u32,
    /// What the last of them showed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last: Option<Evidence>,
    /// The upstream that may have taken it already: its final reply was lost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub perhaps: Option<String>,
    /// When it wants to be tried again, where others of the entry may be tried earlier.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub due: Option<Timestamp>,
}

impl Recipient {
    /// One that nothing was tried for yet.
    pub fn new(addressee: Addressee) -> Self {
        let Addressee { mailbox: address, notify, original } = addressee;
        Self {
            address,
            notify,
            original,
            state: RecipientState::Pending,
            attempts: 0,
            last: None,
            perhaps: None,
            due: None,
        }
    }
}

/// What became of a recipient.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RecipientState {
    /// Still to be reached.
    #[default]
    Pending,
    /// Taken by the upstream.
    Delivered,
    /// Refused for good, and reported.
    Bounced,
    /// Not reached within the queue's lifetime, and reported.
    Expired,
}

impl Entry {
    /// Recipients still to be reached, with their place in the list.
    pub fn pending(&self) -> impl Iterator<Item = (usize, &Recipient)> {
        self.recipients.iter().enumerate().filter(|(_, r)| r.state == RecipientState::Pending)
    }

    /// When it is to be tried first: at once, or when its sender said (RFC 4865); one that was tried in
    /// another queue, when it would have been tried there.
    pub(super) fn first_due(&self) -> Timestamp {
        let tried = self.pending().map(|(_, recipient)| recipient.due.unwrap_or_default()).min();
        self.handling.hold_until.max(tried).unwrap_or_default().max(self.received)
    }

    /// What the last attempt at any pending recipient showed.
    pub fn last_evidence(&self) -> Option<&Evidence> {
        self.pending().filter_map(|(_, r)| r.last.as_ref()).max_by_key(|evidence| evidence.at)
    }

    /// Stands for an entry whose record can't be read, so that it can be removed.
    pub(super) fn placeholder(id: QueueId, now: Timestamp, size: u64) -> Self {
        Self {
            id,
            received: now,
            reverse_path: ReversePath::NULL,
            recipients: Vec::new(),
            handling: Handling::default(),
            origin: Origin::default(),
            content: ContentInfo { size, crc32c: 0, spooled: false },
            hops: 0,
            subject: None,
            message_id: None,
            held: None,
            warned: false,
        }
    }

    /// The stored form.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut octets = vec![0; 4];
        serde_json::to_writer(&mut octets, self)
            .expect("because an entry holds only strings and numbers, and a Vec takes all");
        let crc = checksum(self.id, &octets[4..]);
        octets[..4].copy_from_slice(&crc.to_le_bytes());
        octets
    }

    /// Reads the stored form of the entry `id`; `None` if it is damaged or another's.
    pub fn decode(id: QueueId, octets: &[u8]) -> Option<Self> {
        let (crc, json) = octets.split_first_chunk::<4>()?;
        if u32::from_le_bytes(*crc) != checksum(id, json) {
            return None;
        }
        let mut entry: Self = serde_json::from_slice(json).ok().filter(|entry: &Self| entry.id == id)?;
        // The form of 0.1.0 said of the content only whether it goes beyond ASCII.
        if memmem::find(json, b"\"eight_bit\":true").is_some()
            && serde_json::from_slice(json).is_ok_and(|old: Old| old.eight_bit)
        {
            entry.handling.body = Body::EightBit;
        }
        Some(entry)
    }
}

/// The id is part of it, so that a record can't stand in for another's.
fn checksum(id: QueueId, json: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&id.to_i64().to_le_bytes()), json)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// An entry for tests.
    pub(crate) fn sample(id: u64) -> Entry {
        Entry {
            id: QueueId::from_i64(id as i64),
            received: Timestamp(1_000),
            reverse_path: Mailbox::parse("app@sender.example").unwrap().into(),
            recipients: vec![Recipient::new(Mailbox::parse("user@rcpt.example").unwrap().into())],
            handling: Handling { body: Body::EightBit, ..Handling::default() },
            origin: Origin { client: "127.0.0.1".into(), hello: "app".into(), ..Origin::default() },
            content: ContentInfo { size: 3, crc32c: crc32c::crc32c(b"a\r\n"), spooled: false },
            hops: 0,
            subject: Some("hello".into()),
            message_id: None,
            held: None,
            warned: false,
        }
    }

    #[test]
    fn a_record_of_the_first_form_keeps_its_eighth_bit() {
        let entry = sample(7);
        let json = serde_json::to_string(&entry).unwrap();
        let old = json.replacen(r#""handling":{"body":"eightbit"}"#, r#""eight_bit":true"#, 1);
        assert_ne!(json, old);
        let mut record = checksum(entry.id, old.as_bytes()).to_le_bytes().to_vec();
        record.extend_from_slice(old.as_bytes());
        assert_eq!(Entry::decode(entry.id, &record), Some(entry));
    }

    #[test]
    fn an_entry_is_read_back_and_no_flipped_bit_goes_unnoticed() {
        let entry = sample(7);
        let octets = entry.encode();
        assert_eq!(Entry::decode(entry.id, &octets), Some(entry.clone()));
        assert_eq!(Entry::decode(QueueId::from_i64(8), &octets), None);
        for i in 0..octets.len() {
            let mut damaged = octets.clone();
            damaged[i] ^= 1;
            assert_eq!(Entry::decode(entry.id, &damaged), None, "octet {i}");
        }
        assert_eq!(Entry::decode(entry.id, &octets[..octets.len() - 1]), None);
    }
}
