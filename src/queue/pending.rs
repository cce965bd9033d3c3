//! What the database does not know yet: the sum of the journal's steps, by entry.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::{id::QueueId, journal::Step};
use crate::clock::Timestamp;

/// A new entry.
#[derive(Clone, Debug)]
pub(super) struct New {
    pub(super) size: u64,
    pub(super) record: Bytes,
    /// `None`: it lies in the spool.
    pub(super) octets: Option<Bytes>,
}

/// How an entry goes on.
#[derive(Clone, Debug)]
pub(super) enum Outcome {
    Update { due: Timestamp, record: Bytes },
    Remove { size: u64 },
}

/// What became of an entry. One that came and left is forgotten.
#[derive(Clone, Debug, Default)]
pub(super) struct Fate {
    pub(super) new: Option<New>,
    pub(super) outcome: Option<Outcome>,
}

impl Fate {
    /// When it wants to be tried, if it does; what is new perhaps at once.
    pub(super) fn due(&self) -> Option<Timestamp> {
        match self.outcome {
            // What is held waits for none.
            Some(Outcome::Update { due, .. }) => Some(due).filter(|due| *due != Timestamp::default()),
            Some(Outcome::Remove { .. }) => None,
            None => Some(Timestamp::default()),
        }
    }

    fn octets(&self) -> usize {
        let new =
            self.new.as_ref().map_or(0, |new| new.record.len() + new.octets.as_ref().map_or(0, Bytes::len));
        let outcome = match &self.outcome {
            Some(Outcome::Update { record, .. }) => record.len(),
            _ => 0,
        };
        new + outcome
    }
}

/// The sum of steps.
#[derive(Clone, Debug, Default)]
pub(super) struct Pending {
    fates: BTreeMap<QueueId, Fate>,
    octets: usize,
    messages: i64,
    sizes: i64,
    last: i64,
    /// Some of it may be in the database already.
    is_replay: bool,
}

impl Pending {
    /// The sum of what was found at start. Before that the database may have been told of some entries alone.
    pub(super) fn replay(steps: Vec<Step>) -> Self {
        let mut pending = Self { is_replay: true, ..Self::default() };
        steps.into_iter().for_each(|step| pending.add(step));
        pending
    }

    /// Adds a step.
    pub(super) fn add(&mut self, step: Step) {
        let id = match &step {
            Step::Insert { id, .. } | Step::Update { id, .. } | Step::Remove { id, .. } => *id,
        };
        let mut fate = self.fates.remove(&id).unwrap_or_default();
        self.octets -= fate.octets();
        match step {
            Step::Insert { size, record, octets, .. } => {
                fate = Fate { new: Some(New { size, record, octets }), outcome: None };
                self.count(1, size);
                self.last = self.last.max(id.to_i64());
            }
            Step::Update { due, record, .. } => fate.outcome = Some(Outcome::Update { due, record }),
            Step::Remove { size, .. } => {
                if !matches!(fate.outcome, Some(Outcome::Remove { .. })) {
                    self.count(-1, size);
                }
                if let Some(new) = &mut fate.new {
                    if !self.is_replay {
                        return;
                    }
                    (new.record, new.octets) = (Bytes::new(), None);
                }
                fate.outcome = Some(Outcome::Remove { size });
            }
        }
        self.octets += fate.octets();
        self.fates.insert(id, fate);
    }

    /// Adds what came behind it, by which time some of it may be in the database.
    pub(super) fn go_on_with(&mut self, later: Self) {
        self.is_replay = true;
        self.last = self.last.max(later.last);
        for (id, Fate { new, outcome }) in later.fates {
            if let Some(New { size, record, octets }) = new {
                self.add(Step::Insert { id, size, record, octets });
            }
            match outcome {
                Some(Outcome::Update { due, record }) => self.add(Step::Update { id, due, record }),
                Some(Outcome::Remove { size }) => self.add(Step::Remove { id, size }),
                None => {}
            }
        }
    }

    fn count(&mut self, messages: i64, size: u64) {
        self.messages += messages;
        self.sizes = self.sizes.saturating_add(messages * i64::try_from(size).unwrap_or(i64::MAX));
    }

    /// By entry.
    pub(super) fn fates(&self) -> impl Iterator<Item = (QueueId, &Fate)> {
        self.fates.iter().map(|(id, fate)| (*id, fate))
    }

    /// Of one entry.
    pub(super) fn fate(&self, id: QueueId) -> Option<&Fate> {
        self.fates.get(&id)
    }

    /// Takes an entry out: the database knows.
    pub(super) fn forget(&mut self, id: QueueId) {
        let Some(fate) = self.fates.remove(&id) else { return };
        self.octets -= fate.octets();
        if let Some(new) = &fate.new {
            self.count(-1, new.size);
        }
        if let Some(Outcome::Remove { size }) = fate.outcome {
            self.count(1, size);
        }
    }

    /// Whether the database does not have the entry.
    pub(super) fn is_new(&self, id: QueueId) -> bool {
        self.fates.get(&id).is_some_and(|fate| fate.new.is_some())
    }

    /// Whether the entry is new, and stays.
    pub(super) fn wants_a_place(&self, id: QueueId) -> bool {
        let has_left = |fate: &Fate| matches!(fate.outcome, Some(Outcome::Remove { .. }));
        self.fates.get(&id).is_some_and(|fate| fate.new.is_some() && !has_left(fate))
    }

    /// Whether what the database has of the entry is out of date.
    pub(super) fn is_outdated(&self, id: QueueId) -> bool {
        self.fates.get(&id).is_some_and(|fate| fate.new.is_none())
    }

    /// Entries.
    pub(super) fn len(&self) -> usize {
        self.fates.len()
    }

    /// Whether there are none.
    pub(super) fn is_empty(&self) -> bool {
        self.fates.is_empty()
    }

    /// Octets of records and contents.
    pub(super) fn octets(&self) -> usize {
        self.octets
    }

    /// How many messages, and octets of theirs, there are more than in the database; and the greatest id.
    pub(super) fn more(&self) -> (i64, i64, i64) {
        (self.messages, self.sizes, self.last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn insert(id: i64) -> Step {
        let octets = Some(Bytes::from_static(b"0123456789"));
        Step::Insert { id: QueueId::from_i64(id), size: 10, record: Bytes::from_static(b"record"), octets }
    }

    fn update(id: i64) -> Step {
        Step::Update { id: QueueId::from_i64(id), due: Timestamp(9), record: Bytes::from_static(b"new") }
    }

    fn remove(id: i64) -> Step {
        Step::Remove { id: QueueId::from_i64(id), size: 10 }
    }

    fn sum(steps: impl IntoIterator<Item = Step>) -> Pending {
        let mut pending = Pending::default();
        steps.into_iter().for_each(|step| pending.add(step));
        pending
    }

    #[test]
    fn what_came_and_left_is_nothing_but_its_id() {
        let pending = sum([insert(1), update(1), remove(1)]);
        assert!(pending.is_empty() && pending.octets() == 0);
        assert_eq!(pending.more(), (0, 0, 1));
    }

    #[test]
    fn what_stays_is_counted_once_however_it_goes_on() {
        let pending = sum([insert(1), update(1), update(1), remove(2), remove(2)]);
        assert_eq!((pending.len(), pending.more()), (2, (0, 0, 1)));
        assert_eq!(pending.octets(), 16 + 3);
        assert!(pending.is_new(QueueId::from_i64(1)) && pending.is_outdated(QueueId::from_i64(2)));
    }

    #[test]
    fn at_start_what_left_is_remembered_for_it_may_be_in_the_database() {
        let pending = Pending::replay(vec![insert(1), remove(1)]);
        assert_eq!((pending.len(), pending.more()), (1, (0, 0, 1)));
    }

    /// The database may have been told of the one that left; it must hear of that, too.
    #[test]
    fn what_came_behind_is_added_and_forgets_nothing() {
        let mut pending = sum([insert(1), insert(2)]);
        pending.go_on_with(sum([update(1), remove(2), insert(3), insert(4), remove(4), remove(9)]));
        assert_eq!((pending.len(), pending.more()), (4, (1, 10, 4)));
        let has_left =
            |id| matches!(pending.fate(QueueId::from_i64(id)).unwrap().outcome, Some(Outcome::Remove { .. }));
        assert!(has_left(2) && has_left(9) && !has_left(1) && pending.is_new(QueueId::from_i64(1)));
    }

    #[test]
    fn what_the_database_knows_is_not_counted() {
        let mut pending = sum([insert(1), insert(2), remove(3)]);
        [1, 3, 7].into_iter().for_each(|id| pending.forget(QueueId::from_i64(id)));
        assert_eq!((pending.more(), pending.octets()), ((1, 10, 2), 16));
    }
}
