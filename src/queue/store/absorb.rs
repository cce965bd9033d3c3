//! Absorbing: the database is told, in bulk, what the journal has and it does not know yet.
//!
//! A thread tells it, beside the writer, whose commits go on in the journal meanwhile. What goes wrong there is
//! done again by the writer, which then waits for it.

use std::{
    panic::resume_unwind,
    sync::{Arc, PoisonError},
    thread::{self, JoinHandle},
    time::Instant,
};

use super::{
    BEHIND_ENTRIES, BEHIND_OCTETS, FAR_ENTRIES, FAR_OCTETS, JOURNAL_OCTETS, OFTEN, Pending, QueueId, Store,
    is_damage,
};
use crate::{
    clock::Timestamp,
    queue::{Fault, pending::Fate},
};

/// What the database is being told by a thread of its own.
#[derive(Debug)]
pub(super) struct Beside {
    told: Arc<Pending>,
    /// The last frame of the journal that it is of.
    known: u64,
    thread: JoinHandle<rusqlite::Result<()>>,
}

impl Beside {
    /// Waits for its end, however it ends.
    pub(super) fn end(self) {
        let _ = self.thread.join();
    }
}

/// What is to be done about what the database doesn't know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::queue) enum Absorbing {
    /// Nothing yet, or it is being done.
    NotYet,
    /// [`Store::absorb_beside`].
    Beside,
    /// [`Store::absorb`].
    Now,
}

impl Store {
    /// Whether the database knows all that is to be known.
    pub(in crate::queue) fn is_absorbed(&self) -> bool {
        self.pending.is_empty() && self.beside.is_none()
    }

    /// What the database is being told.
    pub(super) fn told(&self) -> Option<&Pending> {
        self.beside.as_ref().map(|beside| &*beside.told)
    }

    /// Whether what the database has of an entry is out of date, or will be once it was told what it is being told.
    pub(in crate::queue) fn is_outdated(&self, id: QueueId) -> bool {
        let is = |pending: &Pending| pending.is_outdated(id);
        is(&self.pending) || self.told().is_some_and(is)
    }

    /// The entries that the database does not know as they are, new ones among them, as of when the store was opened.
    pub(in crate::queue) fn outdated(&self) -> impl Iterator<Item = QueueId> {
        self.pending.fates().map(|(id, _)| id)
    }

    /// Whether the database is being told something.
    pub(in crate::queue) fn is_telling(&self) -> bool {
        self.beside.is_some()
    }

    /// Whether the database was not told for a while of what it doesn't know.
    pub(in crate::queue) fn is_late(&self) -> bool {
        !self.is_absorbed() && self.absorbed_at.elapsed() > OFTEN
    }

    /// What it is time for, while so many entries are under way.
    pub(in crate::queue) fn wants_absorbing(&mut self, under_way: usize) -> Absorbing {
        let (entries, octets) = (self.pending.len(), self.pending.octets());
        let is_far = entries > FAR_ENTRIES + under_way || octets > FAR_OCTETS;
        let is_long = self.journal.octets() > JOURNAL_OCTETS;
        if is_far || is_long || self.beside.as_ref().is_some_and(|beside| beside.thread.is_finished()) {
            self.join_beside();
        }
        if self.lags || is_long {
            Absorbing::Now
        } else if self.beside.is_none()
            && (self.is_late() || entries > BEHIND_ENTRIES + under_way || octets > BEHIND_OCTETS)
        {
            Absorbing::Beside
        } else {
            Absorbing::NotYet
        }
    }

    /// What the database was told of since this was asked last, and when each is due.
    pub(in crate::queue) fn take_absorbed(&mut self) -> Vec<(QueueId, Option<Timestamp>)> {
        std::mem::take(&mut self.absorbed)
    }

    /// Has a thread tell the database all that it doesn't know; [`Self::wants_absorbing`] takes notice of its end. False where
    /// there is no thread to be had.
    pub(in crate::queue) fn absorb_beside(&mut self) -> bool {
        self.join_beside();
        let (told, known) = (Arc::new(std::mem::take(&mut self.pending)), self.journal.last());
        let (database, pending) = (Arc::clone(&self.database), Arc::clone(&told));
        let tell = move || {
            let mut database = database.lock().unwrap_or_else(PoisonError::into_inner);
            let told = database.tell_all(&pending, known);
            // Whoever waits for the database waits for this as well, and nobody else does. On a full disk it makes room.
            let _ = database.keep_house(OFTEN / 2);
            told
        };
        self.absorbed_at = Instant::now();
        self.kept_at = self.absorbed_at;
        match thread::Builder::new().name("queue-absorber".to_owned()).spawn(tell) {
            Ok(thread) => self.beside = Some(Beside { told, known, thread }),
            Err(_) => self.pending = Arc::unwrap_or_clone(told),
        }
        self.is_telling()
    }

    /// Waits for the thread that tells the database, if there is one, and takes notice of what it did.
    pub(super) fn join_beside(&mut self) {
        let Some(Beside { told, known, thread }) = self.beside.take() else { return };
        let result = thread.join().unwrap_or_else(|panic| resume_unwind(panic));
        let told = Arc::unwrap_or_clone(told);
        self.look_at_tally();
        match result {
            Ok(()) => {
                let pending = &self.pending;
                // What went on meanwhile is out of date again.
                let is_up_to_date = |(id, _): &(QueueId, &Fate)| pending.fate(*id).is_none();
                self.absorbed.extend(told.fates().filter(is_up_to_date).map(|(id, fate)| (id, fate.due())));
                if self.journal.last() == known {
                    self.journal.restart();
                }
            }
            Err(error) => {
                let later = std::mem::replace(&mut self.pending, told);
                self.pending.go_on_with(later);
                self.lags = true;
                // Room, or care, may be enough; else what the connection believes may not be so.
                let fault = if is_damage(&error) { None } else { Some(self.fault(error)) };
                self.broken = fault.filter(|fault| *fault != Fault::Full);
            }
        }
    }

    /// Tells the database all that it doesn't know, in one transaction. Then the journal begins anew.
    ///
    /// # Errors
    /// The journal stays as it is, and what it has is as durable as before.
    pub(in crate::queue) fn absorb(&mut self) -> Result<(), Fault> {
        self.join_beside();
        // Until it is opened anew.
        if let Some(fault) = &self.broken {
            return Err(fault.clone());
        }
        let absorbed = self.absorb_all();
        self.look_at_tally();
        // Where only room is lacking, outcomes still go on.
        self.lags = absorbed.as_ref().is_err_and(|fault| *fault != Fault::Full);
        absorbed
    }

    fn absorb_all(&mut self) -> Result<(), Fault> {
        if self.pending.is_empty() && self.journal.is_sound() && self.journal.octets() == 0 {
            return Ok(());
        }
        let told = self.database().tell_all(&self.pending, self.journal.last());
        self.absorbed_at = Instant::now();
        match told {
            Ok(()) => {
                let pending = std::mem::take(&mut self.pending);
                self.absorbed.extend(pending.fates().map(|(id, fate)| (id, fate.due())));
                self.journal.restart();
                Ok(())
            }
            Err(error) if is_damage(&error) => self.absorb_each(),
            Err(error) => Err(self.fault(error)),
        }
    }

    /// Tells the database what became of entries that it has. That needs next to no room; what is new stays in the
    /// journal alone.
    ///
    /// # Errors
    /// As [`Self::absorb`].
    pub(in crate::queue) fn absorb_outcomes(&mut self) -> Result<(), Fault> {
        self.join_beside();
        let told = self.database().tell_outcomes(&self.pending);
        self.look_at_tally();
        told.map_err(|error| self.fault(error))?;
        let old = self.pending.fates().filter(|(_, fate)| fate.new.is_none());
        let old: Vec<QueueId> = old.map(|(id, _)| id).collect();
        for id in old {
            self.absorbed_one(id);
        }
        Ok(())
    }

    /// One after the other, since a page can't be read that some of them need. What became of an entry whose page
    /// it is can't be noted there, nor can it be sent again: nobody can read it. A new entry that needs the
    /// page stays in the journal, and nothing goes on before there is a place for it.
    fn absorb_each(&mut self) -> Result<(), Fault> {
        let ids: Vec<QueueId> = self.pending.fates().map(|(id, _)| id).collect();
        let mut homeless = Ok(());
        for id in ids {
            let told = match self.pending.fate(id) {
                Some(fate) => self.database().tell_with_care(id, fate),
                None => Ok(()),
            };
            match told {
                Ok(()) => self.absorbed_one(id),
                Err(error) if is_damage(&error) && !self.pending.wants_a_place(id) => {
                    tracing::error!(%id, %error, "what became of a message can't be noted, for the page of the file is damaged");
                    self.absorbed_one(id);
                }
                Err(error) if is_damage(&error) => homeless = Err(error.into()),
                Err(error) => return Err(self.fault(error)),
            }
        }
        if self.pending.is_empty() { self.absorb_all() } else { homeless }
    }

    fn absorbed_one(&mut self, id: QueueId) {
        let due = self.pending.fate(id).and_then(Fate::due);
        self.absorbed.push((id, due));
        self.pending.forget(id);
    }
}
