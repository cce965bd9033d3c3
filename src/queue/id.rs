//! The queue id: our name for an entry, in the 250, in logs and in every command.
//!
//! A number that grows with time, so that entries lie in the store in the order of their arrival
//! and the id alone tells when that was. Written in Crockford's base 32: 13 characters without
//! letters that can be misread, the same in a file name, a URL and a shell.

use std::{
    fmt,
    str::FromStr,
    sync::atomic::{AtomicU64, Ordering},
};

use serde::{Deserialize, Serialize};

use crate::clock::Timestamp;

/// Ids that one millisecond has room for before they run ahead of the clock.
const PER_MILLISECOND_BITS: u32 = 20;
/// A positive SQLite integer has 63 bits: 43 for milliseconds reach the year 2248.
const ID_MAX: u64 = i64::MAX as u64;
const LENGTH: usize = 13;
const ALPHABET: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";

/// The name of one entry.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct QueueId(u64);

impl QueueId {
    /// As the store keeps it.
    pub(super) fn from_i64(value: i64) -> Self {
        Self(value.max(0) as u64)
    }

    /// As the store keeps it.
    pub fn to_i64(self) -> i64 {
        self.0 as i64
    }

    /// The first that may be given out at a time.
    pub(super) fn first_of(time: Timestamp) -> Self {
        Self((time.0 << PER_MILLISECOND_BITS) & ID_MAX)
    }

    /// When it was given out.
    pub fn time(self) -> Timestamp {
        Timestamp(self.0 >> PER_MILLISECOND_BITS)
    }
}

impl fmt::Display for QueueId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for place in (0..LENGTH as u32).rev() {
            let digit = (self.0 >> (5 * place)) & 31;
            write!(f, "{}", ALPHABET[digit as usize] as char)?;
        }
        Ok(())
    }
}

impl fmt::Debug for QueueId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The text is not a queue id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a queue id: expected 13 characters such as 01HXYZ0000ABC")]
pub struct NoQueueId;

impl FromStr for QueueId {
    type Err = NoQueueId;
    fn from_str(text: &str) -> Result<Self, NoQueueId> {
        if text.len() != LENGTH {
            return Err(NoQueueId);
        }
        let mut value = 0u128;
        for b in text.bytes() {
            let upper = b.to_ascii_uppercase();
            let digit = ALPHABET.iter().position(|letter| *letter == upper).ok_or(NoQueueId)?;
            value = value << 5 | digit as u128;
        }
        u64::try_from(value).ok().filter(|value| *value <= ID_MAX).map(Self).ok_or(NoQueueId)
    }
}

impl TryFrom<String> for QueueId {
    type Error = NoQueueId;
    fn try_from(text: String) -> Result<Self, NoQueueId> {
        text.parse()
    }
}

impl From<QueueId> for String {
    fn from(id: QueueId) -> Self {
        id.to_string()
    }
}

/// Gives out ids, each greater than all before it, also when the clock goes back.
#[derive(Debug)]
pub(super) struct QueueIds(AtomicU64);

impl QueueIds {
    /// Goes on behind the greatest id ever stored.
    pub(super) fn after(greatest: QueueId) -> Self {
        Self(AtomicU64::new(greatest.0))
    }

    /// Goes on behind this one, which comes from elsewhere.
    pub(super) fn reach(&self, id: QueueId) {
        self.0.fetch_max(id.0, Ordering::Relaxed);
    }

    /// The next id.
    pub(super) fn next(&self, now: Timestamp) -> QueueId {
        // The low bits start at random, so that ids tell nobody how much mail there is.
        let fresh =
            (now.0 << PER_MILLISECOND_BITS | fastrand::u64(..) >> (64 - PER_MILLISECOND_BITS)) & ID_MAX;
        let step = |last: u64| Some(fresh.max(last + 1));
        let last = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, step).unwrap_or_default();
        QueueId(fresh.max(last + 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_grow_even_when_the_clock_goes_back() {
        let ids = QueueIds::after(QueueId(0));
        let first = ids.next(Timestamp(1_340_000_000_000));
        let second = ids.next(Timestamp(1_000));
        assert!(second > first);
        assert_eq!(first.time(), Timestamp(1_340_000_000_000));
        assert!(QueueIds::after(second).next(Timestamp(0)) > second);
    }

    #[test]
    fn an_id_is_read_back_in_any_case_and_nothing_else_is_one() {
        let id = QueueIds::after(QueueId(0)).next(Timestamp(1_340_000_000_000));
        assert_eq!(id.to_string().parse(), Ok(id));
        assert_eq!(id.to_string().to_lowercase().parse(), Ok(id));
        for bad in ["", "../../etc/pwd", "0123456789ABU", "ZZZZZZZZZZZZZ", "0123456789ABCD"] {
            assert_eq!(bad.parse::<QueueId>(), Err(NoQueueId), "{bad}");
        }
    }
}
