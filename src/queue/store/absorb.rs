//! Absorbing: the database is told, in bulk, what the journal has and it does not know yet.

use std::time::Instant;

use super::{
    BEHIND_ENTRIES, BEHIND_OCTETS, Change, Fate, JOURNAL_OCTETS, OFTEN, Outcome, Pending, QueueId, Removal,
    Store, is_damage,
};
use crate::{
    clock::Timestamp,
    queue::{DAMAGED, Fault, entry::Entry},
};

impl Store {
    /// Whether the database knows all that is to be known.
    pub(in crate::queue) fn is_absorbed(&self) -> bool {
        self.pending.is_empty()
    }

    /// Whether what the database has of an entry is out of date.
    pub(in crate::queue) fn is_outdated(&self, id: QueueId) -> bool {
        self.pending.is_outdated(id)
    }

    /// The entries that the database does not know as they are, new ones among them.
    pub(in crate::queue) fn outdated(&self) -> impl Iterator<Item = QueueId> {
        self.pending.fates().map(|(id, _)| id)
    }

    /// Whether it is time for [`Self::absorb`], while so many entries are under way.
    pub(in crate::queue) fn wants_absorbing(&self, under_way: usize) -> bool {
        let is_late = !self.is_absorbed() && self.absorbed_at.elapsed() > OFTEN;
        is_late
            || self.pending.len() > BEHIND_ENTRIES + under_way
            || self.pending.octets() > BEHIND_OCTETS
            || self.journal.octets() > JOURNAL_OCTETS
    }

    /// What the database was told of since this was asked last, and when each is due.
    pub(in crate::queue) fn take_absorbed(&mut self) -> Vec<(QueueId, Option<Timestamp>)> {
        std::mem::take(&mut self.absorbed)
    }

    /// Tells the database all that it doesn't know, in one transaction. Then the journal begins anew.
    ///
    /// # Errors
    /// The journal stays as it is, and what it has is as durable as before.
    pub(in crate::queue) fn absorb(&mut self) -> Result<(), Fault> {
        let absorbed = self.absorb_all();
        // Where only room is lacking, outcomes still go on.
        self.lags = absorbed.as_ref().is_err_and(|fault| *fault != Fault::Full);
        absorbed
    }

    fn absorb_all(&mut self) -> Result<(), Fault> {
        if self.pending.is_empty() && self.journal.is_sound() && self.journal.octets() == 0 {
            return Ok(());
        }
        let (known, before) = (self.journal.last(), self.tally);
        let pending = std::mem::take(&mut self.pending);
        // Also of what has left meanwhile: no id is given out twice.
        self.tally.last = self.tally.last.max(pending.more().2);
        let told = self.transaction(Some(known), |store| {
            pending.fates().try_for_each(|(id, fate)| store.tell(id, fate, Removal::Whole))
        });
        self.absorbed_at = Instant::now();
        let Err(error) = told else {
            self.absorbed.extend(pending.fates().map(|(id, fate)| (id, fate.due())));
            self.journal.restart();
            return Ok(());
        };
        self.pending = pending;
        self.undo(before);
        if is_damage(&error) { self.absorb_each() } else { Err(self.fault(error)) }
    }

    /// Tells the database what became of entries that it has. That needs next to no room; what is new stays in the
    /// journal alone.
    ///
    /// # Errors
    /// As [`Self::absorb`].
    pub(in crate::queue) fn absorb_outcomes(&mut self) -> Result<(), Fault> {
        let before = self.tally;
        let pending = std::mem::take(&mut self.pending);
        let of_old = |pending: &Pending| -> Vec<QueueId> {
            pending.fates().filter(|(_, fate)| fate.new.is_none()).map(|(id, _)| id).collect()
        };
        let told = self.transaction(None, |store| {
            let mut old = pending.fates().filter(|(_, fate)| fate.new.is_none());
            old.try_for_each(|(id, fate)| store.tell(id, fate, Removal::Whole))
        });
        self.pending = pending;
        if let Err(error) = told {
            self.undo(before);
            return Err(self.fault(error));
        }
        for id in of_old(&self.pending) {
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
            match self.absorb_with_care(id) {
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

    fn absorb_with_care(&mut self, id: QueueId) -> rusqlite::Result<()> {
        let pending = std::mem::take(&mut self.pending);
        let mut result = Ok(());
        if let Some(fate) = pending.fate(id) {
            for removal in Removal::ALL {
                let before = self.tally;
                result = self.transaction(None, |store| store.tell(id, fate, *removal));
                if result.is_err() {
                    self.undo(before);
                }
                if !result.as_ref().is_err_and(is_damage) {
                    break;
                }
            }
        }
        self.pending = pending;
        result
    }

    fn absorbed_one(&mut self, id: QueueId) {
        let due = self.pending.fate(id).and_then(Fate::due);
        self.absorbed.push((id, due));
        self.pending.forget(id);
    }

    fn tell(&mut self, id: QueueId, fate: &Fate, removal: Removal) -> rusqlite::Result<()> {
        // Where entries were told one by one before a kill, some are there already.
        if let Some(new) = &fate.new
            && !matches!(fate.outcome, Some(Outcome::Remove { .. }))
            && !self.is_in_database(id)?
        {
            let octets = new.octets.as_deref();
            match Entry::decode(id, &new.record) {
                Some(entry) => self.insert(&entry, &new.record, octets)?,
                None => {
                    let mut entry = Entry::placeholder(id, id.time(), new.size);
                    entry.held = Some(DAMAGED.to_owned());
                    self.insert(&entry, &new.record, octets)?;
                }
            }
        }
        match &fate.outcome {
            Some(Outcome::Update { due, record }) => match Entry::decode(id, record) {
                Some(entry) => self.update(&entry, *due, record),
                None => self.change(Change::SetAside { id }, removal),
            },
            Some(Outcome::Remove { size }) => self.change(Change::Remove { id, size: *size }, removal),
            None => Ok(()),
        }
    }
}
