//! What is due now: a bounded window on the queue, in memory.
//!
//! The store knows everything; the window holds the next few entries so that a worker never waits
//! for the disk. Committed mail enters it straight from the writer while there is room, content and
//! all, and is then delivered without being read back. Beyond that the feeder fills it from the
//! store. However long the queue is, the window stays small.

use std::collections::{HashSet, VecDeque};

use super::{entry::Entry, id::QueueId};
use crate::{clock::Timestamp, mail::content::Content};

/// Entries in the window.
const ENTRIES_MAX: usize = 1_000;
/// Octets of content in the window.
const OCTETS_MAX: usize = 16 * 1024 * 1024;
/// Entries put off, of which only the id is kept.
const AWAY_MAX: usize = 20_000;
/// Below this many entries the window is filled again.
const LOW: usize = 250;

/// One of so many turns goes to the lowest priority, so that it is not waited out by the others.
const LOW_TURN: usize = 8;

/// An entry with its content at hand.
#[derive(Debug)]
pub(super) struct Ready {
    pub(super) entry: Box<Entry>,
    pub(super) content: Content,
}

impl Ready {
    /// RFC 6710: higher goes first.
    fn priority(&self) -> i8 {
        self.entry.handling.priority
    }
}

/// The window and what is known of the rest.
#[derive(Debug, Default)]
pub(super) struct Schedule {
    ready: VecDeque<Ready>,
    octets: usize,
    /// Counts to [`LOW_TURN`].
    turn: usize,
    /// In the window, or claimed: not to be taken from the store a second time.
    taken: HashSet<QueueId>,
    /// Due, and put off by whoever claimed them: not to be taken from the store for now.
    away: HashSet<QueueId>,
    /// The store may hold entries that are due and not taken.
    more: bool,
    /// When the store's next entry becomes due, as far as known.
    next_due: Option<Timestamp>,
    /// While the store is being looked at: entries that changed meanwhile, so that what was read of
    /// them is out of date.
    changed: Option<Changed>,
}

/// What changed during a look at the store.
#[derive(Debug, Default)]
struct Changed {
    ids: HashSet<QueueId>,
    next_due: Option<Timestamp>,
}

impl Schedule {
    /// A schedule that knows nothing of the store yet.
    pub(super) fn unknown() -> Self {
        Self { more: true, ..Self::default() }
    }

    /// A new entry was committed and is due. It enters the window unless others wait before it; an
    /// urgent one (RFC 6710 §5) always does, be it in the place of the last.
    pub(super) fn offer(&mut self, ready: Ready) {
        let is_urgent = ready.entry.handling.priority > 0;
        if is_urgent && !self.has_room() {
            self.put_back_last();
        }
        if (self.more && !is_urgent) || !self.has_room() {
            self.more = true;
        } else {
            self.push(ready);
        }
    }

    /// Leaves the last of the window to the store, which has it anyway.
    fn put_back_last(&mut self) {
        if let Some(last) = self.ready.pop_back() {
            self.taken.remove(&last.entry.id);
            self.octets -= last.content.octets_in_memory();
            self.more = true;
        }
    }

    /// A look at the store begins; [`Self::fill`] ends it.
    pub(super) fn begin_look(&mut self) {
        self.changed = Some(Changed::default());
        self.more = false;
    }

    /// Entries were read from the store; `complete` if those are all that are due, and then when the
    /// next will be.
    ///
    /// An entry that was settled since the look began is not what was read any more: taking it
    /// would deliver it twice.
    pub(super) fn fill(&mut self, found: Vec<Ready>, complete: bool, next_due: Option<Timestamp>) {
        let changed = self.changed.take().unwrap_or_default();
        for ready in found {
            let id = ready.entry.id;
            if !self.is_taken(id) && !changed.ids.contains(&id) {
                self.push(ready);
            }
        }
        self.more |= !complete;
        self.next_due = earlier(next_due, changed.next_due);
    }

    /// Takes the next entry; it stays taken until [`Self::forget`].
    pub(super) fn pop(&mut self) -> Option<Ready> {
        self.turn = (self.turn + 1) % LOW_TURN;
        let place = match self.ready.back() {
            Some(last) if self.turn == 0 => {
                self.ready.partition_point(|other| other.priority() > last.priority())
            }
            _ => 0,
        };
        let ready = self.ready.remove(place)?;
        self.octets -= ready.content.octets_in_memory();
        Some(ready)
    }

    /// A claim was given back untouched.
    pub(super) fn give_back(&mut self, ready: Ready) {
        self.octets += ready.content.octets_in_memory();
        let place = self.ready.partition_point(|other| other.priority() > ready.priority());
        self.ready.insert(place, ready);
    }

    /// Whether another entry can be put off.
    pub(super) fn has_room_to_put_off(&self) -> bool {
        self.away.len() < AWAY_MAX
    }

    /// A claimed entry leaves the window as it was, until [`Self::bring_back`].
    pub(super) fn put_off(&mut self, ready: &Ready) {
        self.taken.remove(&ready.entry.id);
        self.away.insert(ready.entry.id);
    }

    /// Whether there were any of these.
    pub(super) fn bring_back(&mut self, ids: &[QueueId]) -> bool {
        let before = self.away.len();
        for id in ids {
            self.away.remove(id);
        }
        self.more |= self.away.len() < before;
        self.away.len() < before
    }

    /// Entries that are put off.
    pub(super) fn away(&self) -> usize {
        self.away.len()
    }

    /// An entry's new state is in the store, which is now the only one to know it; `due` is when it
    /// wants to be tried again, if at all.
    pub(super) fn forget(&mut self, id: QueueId, due: Option<Timestamp>) {
        self.taken.remove(&id);
        self.next_due = earlier(self.next_due, due);
        if let Some(changed) = &mut self.changed {
            changed.ids.insert(id);
            changed.next_due = earlier(changed.next_due, due);
        }
    }

    /// Takes an entry for an operator to act on, until [`Self::forget`]. False if it is claimed.
    pub(super) fn withdraw(&mut self, id: QueueId) -> bool {
        self.away.remove(&id);
        if self.taken.insert(id) {
            return true;
        }
        let Some(place) = self.ready.iter().position(|ready| ready.entry.id == id) else {
            return false;
        };
        if let Some(ready) = self.ready.remove(place) {
            self.octets -= ready.content.octets_in_memory();
        }
        true
    }

    /// The store must be looked at: something may be due that the window doesn't hold.
    pub(super) fn look_again(&mut self) {
        self.more = true;
    }

    /// Whether the store should be looked at now.
    pub(super) fn wants_look(&self) -> bool {
        self.more && self.ready.len() < LOW && self.octets < OCTETS_MAX
    }

    /// When the store must be looked at next, if nothing changes before. What has become due does
    /// not enter a window that is well filled: it would grow with each look while nothing leaves it.
    pub(super) fn next_look(&mut self, now: Timestamp) -> Option<Timestamp> {
        if self.next_due.is_some_and(|due| due <= now) {
            self.next_due = None;
            self.more = true;
        }
        if self.wants_look() { Some(now) } else { self.next_due }
    }

    /// Entries that can be claimed now.
    pub(super) fn waiting(&self) -> usize {
        self.ready.len()
    }

    /// Entries that are claimed.
    pub(super) fn claimed(&self) -> usize {
        self.taken.len() - self.ready.len()
    }

    /// Whether an entry is in the window or claimed.
    pub(super) fn is_taken(&self, id: QueueId) -> bool {
        self.taken.contains(&id) || self.away.contains(&id)
    }

    /// Whether an entry is claimed at this moment.
    pub(super) fn is_claimed(&self, id: QueueId) -> bool {
        self.taken.contains(&id) && !self.ready.iter().any(|ready| ready.entry.id == id)
    }

    /// How many entries a look at the store should bring, the taken ones among them.
    pub(super) fn look_limit(&self) -> usize {
        self.taken.len() + self.away.len() + ENTRIES_MAX / 2
    }

    fn has_room(&self) -> bool {
        self.ready.len() < ENTRIES_MAX && self.octets < OCTETS_MAX
    }

    fn push(&mut self, ready: Ready) {
        self.taken.insert(ready.entry.id);
        self.octets += ready.content.octets_in_memory();
        // Behind all of its priority, which nearly always is the end.
        let place = self.ready.partition_point(|other| other.priority() >= ready.priority());
        self.ready.insert(place, ready);
    }
}

fn earlier(a: Option<Timestamp>, b: Option<Timestamp>) -> Option<Timestamp> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::queue::entry::tests::sample;

    fn ready(id: u64) -> Ready {
        Ready { entry: Box::new(sample(id)), content: Content::Memory(Bytes::from_static(b"a\r\n")) }
    }

    fn of_priority(id: u64, priority: i8) -> Ready {
        let mut ready = ready(id);
        ready.entry.handling.priority = priority;
        ready
    }

    fn next(schedule: &mut Schedule) -> i64 {
        schedule.pop().expect("it is filled").entry.id.to_i64()
    }

    #[test]
    fn a_password_reset_overtakes_a_newsletter_however_long_that_is() {
        let mut schedule = Schedule::unknown();
        schedule.begin_look();
        schedule.fill((0..ENTRIES_MAX as u64).map(ready).collect(), false, None);
        schedule.offer(of_priority(5_000, 5));
        schedule.offer(ready(5_001));
        assert_eq!(schedule.waiting(), ENTRIES_MAX, "the window stays bounded");
        assert_eq!(next(&mut schedule), 5_000);
        assert_eq!(next(&mut schedule), 0);
        // What had to leave the window is looked for again, as is what found no place.
        assert!(schedule.more && !schedule.is_taken(QueueId::from_i64(ENTRIES_MAX as i64 - 1)));
    }

    #[test]
    fn one_turn_in_eight_is_for_the_last_priority() {
        let mut schedule = Schedule::default();
        for id in 0..20 {
            schedule.offer(of_priority(id, 4));
        }
        schedule.offer(of_priority(100, -4));
        schedule.offer(of_priority(101, -4));
        let order: Vec<i64> = (0..16).map(|_| next(&mut schedule)).collect();
        assert_eq!((order[7], order[15]), (100, 101));
        assert!(order.iter().filter(|id| **id < 100).is_sorted(), "within a priority in order: {order:?}");
    }

    #[test]
    fn what_is_given_back_goes_before_its_like() {
        let mut schedule = Schedule::default();
        (0..3).for_each(|id| schedule.offer(ready(id)));
        let first = schedule.pop().expect("it is filled");
        schedule.offer(of_priority(9, 1));
        schedule.give_back(first);
        assert_eq!([next(&mut schedule), next(&mut schedule), next(&mut schedule)], [9, 0, 1]);
    }

    #[test]
    fn a_well_filled_window_is_not_filled_again_by_what_is_put_off() {
        let now = Timestamp(1_000);
        let mut schedule = Schedule::unknown();
        schedule.begin_look();
        schedule.fill((0..2 * LOW as u64).map(ready).collect(), true, None);
        // As before a closed gate: one is tried, and is due again at once.
        let tried = schedule.pop().expect("it is filled");
        schedule.forget(tried.entry.id, Some(now));
        assert_eq!(schedule.next_look(now), None);
        while schedule.waiting() >= LOW {
            let done = schedule.pop().expect("it is filled");
            schedule.forget(done.entry.id, None);
        }
        assert_eq!(schedule.next_look(now), Some(now), "what was put off is looked for in the end");
    }
}
