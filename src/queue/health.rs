//! How the store is: whether it can be written and read, and why not.

use std::sync::{Mutex, PoisonError};

use super::Fault;

/// Why the store can't be written as it should.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Trouble {
    /// In words.
    pub(super) reason: String,
    /// Outcomes can be recorded nevertheless, so that queued mail can leave.
    pub(super) records: bool,
    /// Room is what it lacks.
    pub(super) full: bool,
}

impl Trouble {
    /// Only outcomes find room.
    pub(super) fn full() -> Self {
        Self { reason: Fault::Full.to_string(), records: true, full: true }
    }
}

/// Whether the store can be written and read, and why not.
#[derive(Debug, Default)]
pub(super) struct Health {
    writing: Mutex<Option<Trouble>>,
    reading: Mutex<Option<String>>,
}

impl Health {
    /// Of a store that was opened, and has room for new mail or not.
    pub(super) fn opened(is_full: bool) -> Self {
        Self { writing: Mutex::new(is_full.then(Trouble::full)), reading: Mutex::default() }
    }

    /// Why it can't be written, if so.
    pub(super) fn trouble(&self) -> Option<Trouble> {
        self.writing.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn can_record(&self) -> bool {
        self.trouble().is_none_or(|trouble| trouble.records)
    }

    pub(super) fn is_full(&self) -> bool {
        self.trouble().is_some_and(|trouble| trouble.full)
    }

    /// Why the store can't be read, if so.
    pub(super) fn unread(&self) -> Option<String> {
        self.reading.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Returns what was the matter before.
    pub(super) fn set_unread(&self, reason: Option<String>) -> Option<String> {
        std::mem::replace(&mut *self.reading.lock().unwrap_or_else(PoisonError::into_inner), reason)
    }

    /// Returns what was the matter before.
    pub(super) fn set(&self, trouble: Option<Trouble>) -> Option<Trouble> {
        std::mem::replace(&mut *self.writing.lock().unwrap_or_else(PoisonError::into_inner), trouble)
    }
}
