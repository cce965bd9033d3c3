//! How the store is: whether it can be written and read, and why not.

use std::sync::{
    Mutex, PoisonError,
    atomic::{AtomicBool, Ordering},
};

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
    /// Why large mail can't be kept.
    spooling: Mutex<Option<String>>,
    /// Nobody writes any more.
    ended: AtomicBool,
}

impl Health {
    /// Of a store that was opened, and has room for new mail or not.
    pub(super) fn opened(is_full: bool) -> Self {
        Self { writing: Mutex::new(is_full.then(Trouble::full)), ..Self::default() }
    }

    /// Why it can't be written, if so.
    pub(super) fn trouble(&self) -> Option<Trouble> {
        self.writing.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Why not all mail can be taken, or what there is be read; in words.
    pub(super) fn reason(&self) -> Option<String> {
        if self.ended.load(Ordering::Relaxed) {
            return Some("the queue's writer has ended: see the log, and start the relay again".to_owned());
        }
        let spooling = || Some(format!("large mail can't be kept: {}", self.spool()?));
        self.trouble().map(|trouble| trouble.reason).or_else(|| self.unread()).or_else(spooling)
    }

    /// Why the spool takes no file, if so.
    pub(super) fn spool(&self) -> Option<String> {
        self.spooling.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Notes how it went with a file of the spool, and tells what has changed.
    pub(super) fn note_spool(&self, result: Result<(), &Fault>) {
        // Room is looked at for itself.
        let reason = result.err().filter(|fault| **fault != Fault::Full).map(ToString::to_string);
        let mut spooling = self.spooling.lock().unwrap_or_else(PoisonError::into_inner);
        if *spooling == reason {
            return;
        }
        match &reason {
            Some(reason) => tracing::error!(reason, "large mail can't be kept"),
            None => tracing::info!("large mail can be kept again"),
        }
        *spooling = reason;
    }

    /// The writer is gone.
    pub(super) fn ended(&self) {
        self.ended.store(true, Ordering::Relaxed);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_not_be_done_is_a_reason_until_it_can() {
        let health = Health::opened(false);
        assert_eq!(health.reason(), None);
        health.note_spool(Err(&Fault::Broken("no such directory".to_owned())));
        assert!(health.reason().unwrap().contains("large mail can't be kept: no such directory"));
        assert!(health.can_record());
        health.note_spool(Ok(()));
        assert_eq!(health.reason(), None);
        health.ended();
        assert!(health.reason().unwrap().contains("start the relay again"));
    }
}
