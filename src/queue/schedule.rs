//! What is due now: a bounded window on the queue, in memory, and whose turn it is.
//!
//! The store knows everything; the window holds the next few entries so that a worker never waits
//! for the disk. Committed mail enters it straight from the writer while there is room, content and
//! all, and is then delivered without being read back. Beyond that the feeder fills it from the
//! store. However long the queue is, the window stays small.
//!
//! The senders of a priority take turns ([`Flow`]), in the window and at the door to it: where it is
//! full, one of the flow that has most of it makes room for one of a flow that has little. So a letter
//! of a quiet sender does not wait behind a hundred thousand of another's, whether they have just come,
//! lie in the store since the last start, or become due again.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    time::Duration,
};

use super::{entry::Entry, id::QueueId, marks::Flow, turns::Turns};
use crate::{clock::Timestamp, mail::content::Content};

/// Entries in the window.
const ENTRIES_MAX: usize = 1_000;
/// Octets of content in the window.
const OCTETS_MAX: usize = 16 * 1024 * 1024;
/// Entries that a look brings of each flow, though the window is well filled.
const SHARE: usize = 4;
/// Entries put off, of which only the id is kept.
const AWAY_MAX: usize = 20_000;
/// Below this many entries the window is filled again.
const LOW: usize = 250;
/// Flows that are remembered as having more in the store.
const BEHIND_MAX: usize = 4_096;
/// While the window is well filled the store is looked at so often for those who have nothing in it.
const PAUSE: Duration = Duration::from_millis(200);
/// The same while there are more flows than one look sees, so that all are seen soon.
const PAUSE_MIDWAY: Duration = Duration::from_millis(40);

/// One of so many turns goes to a lower priority than the highest, to each of them in turn, so that
/// none is waited out by the others.
const LOW_TURN: usize = 8;

/// An entry with its content at hand.
#[derive(Debug)]
pub(super) struct Ready {
    pub(super) entry: Box<Entry>,
    pub(super) content: Content,
}

/// Where an entry is that is not to be taken from the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Window(Flow),
    Claimed,
}

/// The window and what is known of the rest.
#[derive(Debug, Default)]
pub(super) struct Schedule {
    /// By rank, the highest priority first; none is empty.
    ready: BTreeMap<u32, Turns<Ready>>,
    waiting: usize,
    octets: usize,
    /// Counts turns.
    turns: usize,
    /// In the window, or claimed: not to be taken from the store a second time.
    taken: HashMap<QueueId, Place>,
    /// Due, and put off by whoever claimed them: not to be taken from the store for now.
    away: HashMap<QueueId, Flow>,
    /// How many of each flow.
    away_of: HashMap<Flow, usize>,
    /// Settled, and what the database has of them is out of date.
    outdated: HashSet<QueueId>,
    /// In the store, and beyond reading.
    passed_over: HashSet<QueueId>,
    /// Flows that have more in the store than in the window.
    behind: HashSet<Flow>,
    /// The store may hold entries that are due and not taken, of any flow.
    unknown: bool,
    /// Where the next look goes on, if the last one did not see all flows; and which of those that it
    /// saw have more.
    midway: Option<(Flow, HashSet<Flow>)>,
    /// When the last look at the store began.
    looked: Timestamp,
    /// It brought nothing, and nothing has left the window since: each flow has its share of it.
    barren: bool,
    /// When the store's next entry becomes due, as far as known.
    next_due: Option<Timestamp>,
    /// While the store is being looked at: what changed meanwhile, so that what was read is out of date.
    changed: Option<Changed>,
}

/// What changed during a look at the store.
#[derive(Debug, Default)]
struct Changed {
    ids: HashSet<QueueId>,
    next_due: Option<Timestamp>,
}

/// What a look at the store should bring.
#[derive(Debug)]
pub(super) struct Look {
    /// The flow to begin with.
    pub(super) from: Flow,
    /// How much the window has of each flow.
    has: HashMap<Flow, usize>,
    /// Entries that the window has room for, if it is low.
    room: usize,
}

impl Look {
    /// How many entries to bring of a flow, which is one of so many.
    pub(super) fn wanted(&self, flow: Flow, flows: usize) -> usize {
        let share = (self.room / flows.max(1)).max(SHARE);
        share.saturating_sub(self.has.get(&flow).copied().unwrap_or(0))
    }
}

impl Schedule {
    /// A schedule that knows nothing of the store yet.
    pub(super) fn unknown() -> Self {
        Self { unknown: true, ..Self::default() }
    }

    /// A new entry was committed and is due. It enters the window unless others of its flow wait in the
    /// store before it, or the flow has its share of a full window; an urgent one (RFC 6710 §5) does not
    /// care who came before.
    pub(super) fn offer(&mut self, ready: Ready) {
        // A look, or an operator, was quicker: what is committed can be read before it is offered.
        if self.is_taken(ready.entry.id) {
            return;
        }
        let flow = Flow::of(&ready.entry);
        let is_urgent = ready.entry.handling.priority > 0;
        if (self.behind.contains(&flow) && !is_urgent) || !self.makes_room(flow, is_urgent) {
            self.leave_behind(flow);
        } else {
            self.push(flow, ready);
        }
    }

    /// Whether there is room for one more of a flow, be it in the place of another's.
    fn makes_room(&mut self, flow: Flow, is_urgent: bool) -> bool {
        while !self.has_room() {
            let longest = self.ready.values().rev().filter_map(Turns::longest);
            let longest = longest.reduce(|longest, other| if other.1 > longest.1 { other } else { longest });
            let Some((longest, length)) = longest else { return true };
            let overtakes = is_urgent && longest.rank() > flow.rank();
            if !overtakes && length <= self.len_of(flow) + 1 {
                return false;
            }
            let last = self.ready.get_mut(&longest.rank()).and_then(|turns| turns.pop_last_of(longest));
            let Some(last) = last else { return false };
            self.removed(&last, longest.rank());
            // The store has it anyway.
            self.taken.remove(&last.entry.id);
            self.leave_behind(longest);
        }
        true
    }

    /// A flow has entries that are due in the store only.
    fn leave_behind(&mut self, flow: Flow) {
        // Also between the parts of a look: the rest of it may not come by this flow again.
        if let Some((_, more)) = &mut self.midway {
            if more.len() < BEHIND_MAX {
                more.insert(flow);
            } else {
                self.unknown |= !more.contains(&flow);
            }
        }
        if self.behind.len() < BEHIND_MAX {
            self.behind.insert(flow);
        } else {
            self.unknown |= !self.behind.contains(&flow);
        }
    }

    /// A look at the store begins; [`Self::fill`] follows for each flow, then [`Self::end_look`].
    pub(super) fn begin_look(&mut self, now: Timestamp) -> Look {
        self.changed = Some(Changed::default());
        self.looked = now;
        self.barren = true;
        if self.midway.is_none() {
            self.unknown = false;
        }
        let (from, _) = self.midway.get_or_insert_with(|| (Flow::FIRST, HashSet::new()));
        let from = *from;
        let has = self.ready.values().flat_map(Turns::lengths).collect();
        Look { from, has, room: if self.is_low() { ENTRIES_MAX / 2 } else { 0 } }
    }

    /// Entries of a flow were read from the store; `complete` if those and the taken ones are all that
    /// are due.
    ///
    /// An entry that was settled since the look began is not what was read any more: taking it
    /// would deliver it twice.
    pub(super) fn fill(&mut self, flow: Flow, found: Vec<Ready>, mut complete: bool) {
        for ready in found {
            let id = ready.entry.id;
            let has_changed = self.changed.as_ref().is_some_and(|changed| changed.ids.contains(&id));
            if !self.is_to_be_read(id) || has_changed {
                continue;
            }
            if self.makes_room(flow, false) {
                self.push(flow, ready);
            } else {
                complete = false;
            }
        }
        if !complete {
            self.leave_behind(flow);
        }
    }

    /// The look is over; `next` is the flow to go on with, if not all were seen, and `next_due` when
    /// the next entry becomes due.
    pub(super) fn end_look(&mut self, next: Option<Flow>, next_due: Option<Timestamp>) {
        let changed = self.changed.take().unwrap_or_default();
        self.next_due = earlier(next_due, changed.next_due);
        let (_, more) = self.midway.take().unwrap_or((Flow::FIRST, HashSet::new()));
        match next {
            Some(next) => self.midway = Some((next, more)),
            None => {
                self.behind.clear();
                more.into_iter().for_each(|flow| self.leave_behind(flow));
            }
        }
    }

    /// The look failed: what it should have brought is still to be brought.
    pub(super) fn look_failed(&mut self) {
        self.changed = None;
        self.midway = None;
        self.unknown = true;
    }

    /// Takes the next entry; it stays taken until [`Self::forget`].
    pub(super) fn pop(&mut self) -> Option<Ready> {
        self.turns = self.turns.wrapping_add(1);
        let lower = self.ready.len().saturating_sub(1);
        let place = match self.turns.is_multiple_of(LOW_TURN) && lower > 0 {
            true => 1 + self.turns / LOW_TURN % lower,
            false => 0,
        };
        let rank = *self.ready.keys().nth(place)?;
        let (_, ready) = self.ready.get_mut(&rank)?.pop()?;
        self.removed(&ready, rank);
        self.taken.insert(ready.entry.id, Place::Claimed);
        Some(ready)
    }

    /// A claim was given back untouched.
    pub(super) fn give_back(&mut self, ready: Ready) {
        let flow = Flow::of(&ready.entry);
        self.added(&ready, flow);
        self.ready.entry(flow.rank()).or_default().put_back(flow, ready);
    }

    /// Whether another entry of a flow can be put off. What is left is there for whoever has none of
    /// it: no flow gets more than is left for the others.
    pub(super) fn has_room_to_put_off(&self, flow: Flow) -> bool {
        let of_flow = self.away_of.get(&flow).copied().unwrap_or(0);
        of_flow < AWAY_MAX.saturating_sub(self.away.len())
    }

    /// A claimed entry leaves the window as it was, until [`Self::bring_back`].
    pub(super) fn put_off(&mut self, ready: &Ready) {
        let (id, flow) = (ready.entry.id, Flow::of(&ready.entry));
        self.taken.remove(&id);
        if self.away.insert(id, flow).is_none() {
            *self.away_of.entry(flow).or_default() += 1;
        }
    }

    /// Whether there were any of these.
    pub(super) fn bring_back(&mut self, ids: &[QueueId]) -> bool {
        let before = self.away.len();
        for id in ids {
            if let Some(flow) = self.no_longer_away(*id) {
                self.leave_behind(flow);
            }
        }
        let came = self.away.len() < before;
        self.barren &= !came;
        came
    }

    fn no_longer_away(&mut self, id: QueueId) -> Option<Flow> {
        let flow = self.away.remove(&id)?;
        let of_flow = self.away_of.entry(flow).or_default();
        *of_flow = of_flow.saturating_sub(1);
        if *of_flow == 0 {
            self.away_of.remove(&flow);
        }
        Some(flow)
    }

    /// Whether an entry is put off.
    pub(super) fn is_away(&self, id: QueueId) -> bool {
        self.away.contains_key(&id)
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

    /// What the database has of an entry that was settled is out of date until [`Self::set_up_to_date`].
    pub(super) fn set_outdated(&mut self, id: QueueId) {
        self.outdated.insert(id);
    }

    /// The database knows what became of an entry, and when it wants to be tried again, if at all.
    pub(super) fn set_up_to_date(&mut self, id: QueueId, due: Option<Timestamp>) {
        self.outdated.remove(&id);
        // What is in the window, or with somebody, was offered when it was accepted.
        if !self.is_taken(id) {
            self.next_due = earlier(self.next_due, due);
            if let Some(changed) = &mut self.changed {
                changed.next_due = earlier(changed.next_due, due);
            }
        }
    }

    /// Takes an entry for an operator to act on, until [`Self::forget`]. False if it is claimed.
    pub(super) fn withdraw(&mut self, id: QueueId) -> bool {
        if self.outdated.contains(&id) {
            return false;
        }
        self.no_longer_away(id);
        match self.taken.insert(id, Place::Claimed) {
            None => true,
            Some(Place::Claimed) => false,
            Some(Place::Window(flow)) => {
                let turns = self.ready.get_mut(&flow.rank());
                let found = turns.and_then(|turns| turns.pull(flow, |ready| ready.entry.id == id));
                if let Some(ready) = found {
                    self.removed(&ready, flow.rank());
                }
                true
            }
        }
    }

    /// An entry can be neither read nor set aside: it is left alone until the next start.
    pub(super) fn pass_over(&mut self, id: QueueId) {
        if self.passed_over.len() < AWAY_MAX && self.passed_over.insert(id) {
            tracing::error!(%id, "a message can't be read, for the page of the file is damaged: see `outpost queue check`");
        }
    }

    /// An entry that was passed over has left.
    pub(super) fn has_left(&mut self, id: QueueId) {
        self.passed_over.remove(&id);
    }

    /// Entries that can be neither read nor set aside, as far as known.
    pub(super) fn passed_over(&self) -> usize {
        self.passed_over.len()
    }

    /// The store must be looked at: something may be due that the window doesn't hold.
    pub(super) fn look_again(&mut self) {
        self.unknown = true;
    }

    /// Whether a low window can be filled now.
    pub(super) fn wants_look(&self) -> bool {
        self.has_more() && self.is_low()
    }

    /// When the store must be looked at next, if nothing changes before. A window that is well filled
    /// is not filled on, for it would grow with each look while nothing leaves it; but now and then it
    /// is looked for those who have nothing in it.
    pub(super) fn next_look(&mut self, now: Timestamp) -> Option<Timestamp> {
        if self.next_due.is_some_and(|due| due <= now) {
            self.next_due = None;
            self.unknown = true;
        }
        if !self.has_more() {
            return self.next_due;
        }
        // A clock that was set back must not make anybody wait.
        let looked = self.looked.min(now);
        let wants_more = self.is_low() && (self.unknown || !self.barren);
        Some(match (wants_more, &self.midway) {
            (true, _) => now,
            (false, None) => now.max(looked.after(PAUSE)),
            (false, Some(_)) => now.max(looked.after(PAUSE_MIDWAY)),
        })
    }

    /// Entries that can be claimed now.
    pub(super) fn waiting(&self) -> usize {
        self.waiting
    }

    /// Entries that are claimed.
    pub(super) fn claimed(&self) -> usize {
        self.taken.len() - self.waiting
    }

    /// Whether an entry is in the window or claimed.
    pub(super) fn is_taken(&self, id: QueueId) -> bool {
        self.taken.contains_key(&id) || self.away.contains_key(&id) || self.passed_over.contains(&id)
    }

    /// Whether an entry is to be taken from the database, if it is due there.
    pub(super) fn is_to_be_read(&self, id: QueueId) -> bool {
        !self.is_taken(id) && !self.outdated.contains(&id)
    }

    /// Whether an entry is claimed at this moment.
    pub(super) fn is_claimed(&self, id: QueueId) -> bool {
        self.taken.get(&id) == Some(&Place::Claimed)
    }

    /// The entries that are claimed at this moment.
    pub(super) fn claims(&self) -> impl Iterator<Item = QueueId> {
        let claimed = self.taken.iter().filter(|(_, place)| **place == Place::Claimed);
        claimed.map(|(id, _)| *id)
    }

    fn has_more(&self) -> bool {
        self.unknown || self.midway.is_some() || !self.behind.is_empty()
    }

    fn is_low(&self) -> bool {
        self.waiting < LOW && self.octets < OCTETS_MAX
    }

    fn has_room(&self) -> bool {
        self.waiting < ENTRIES_MAX && self.octets < OCTETS_MAX
    }

    fn len_of(&self, flow: Flow) -> usize {
        self.ready.get(&flow.rank()).map_or(0, |turns| turns.len_of(flow))
    }

    fn push(&mut self, flow: Flow, ready: Ready) {
        self.added(&ready, flow);
        self.ready.entry(flow.rank()).or_default().push(flow, ready);
    }

    fn added(&mut self, ready: &Ready, flow: Flow) {
        self.taken.insert(ready.entry.id, Place::Window(flow));
        self.barren = false;
        self.waiting += 1;
        self.octets += ready.content.octets_in_memory();
    }

    /// It was taken out of the window.
    fn removed(&mut self, ready: &Ready, rank: u32) {
        self.barren = false;
        self.waiting -= 1;
        self.octets -= ready.content.octets_in_memory();
        if self.ready.get(&rank).is_some_and(Turns::is_empty) {
            self.ready.remove(&rank);
        }
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

    /// A schedule that has seen a store of one flow.
    fn filled(found: Vec<Ready>, complete: bool) -> Schedule {
        let mut schedule = Schedule::unknown();
        schedule.begin_look(Timestamp(1_000));
        schedule.fill(Flow::of(&found[0].entry), found, complete);
        schedule.end_look(None, None);
        schedule
    }

    fn next(schedule: &mut Schedule) -> i64 {
        schedule.pop().expect("it is filled").entry.id.to_i64()
    }

    #[test]
    fn a_password_reset_overtakes_a_newsletter_however_long_that_is() {
        let mut schedule = filled((0..ENTRIES_MAX as u64).map(ready).collect(), false);
        schedule.offer(of_priority(5_000, 5));
        schedule.offer(ready(5_001));
        assert_eq!(schedule.waiting(), ENTRIES_MAX, "the window stays bounded");
        assert_eq!(next(&mut schedule), 5_000);
        assert_eq!(next(&mut schedule), 0);
        // What had to leave the window is looked for again, as is what found no place.
        assert!(schedule.has_more() && !schedule.is_taken(QueueId::from_i64(ENTRIES_MAX as i64 - 1)));
    }

    /// Of one sender there is more than its share, and little of the others: nothing more comes before something
    /// leaves, however low the window is.
    #[test]
    fn a_look_that_brought_nothing_is_not_followed_by_the_next_at_once() {
        let mut schedule = Schedule::unknown();
        let now = Timestamp(1_000);
        let flow = Flow::of(&ready(0).entry);
        schedule.begin_look(now);
        schedule.fill(flow, (0..160).map(ready).collect(), false);
        schedule.end_look(None, None);
        assert_eq!(schedule.next_look(now), Some(now), "the window is low, and the look brought some");
        schedule.begin_look(now);
        schedule.fill(flow, Vec::new(), false);
        schedule.end_look(None, None);
        assert_eq!(schedule.next_look(now), Some(now.after(PAUSE)));
        schedule.pop().expect("it is filled");
        assert_eq!(schedule.next_look(now), Some(now), "there is room for another of the flow");
    }

    #[test]
    fn one_turn_in_eight_is_for_the_lower_priorities() {
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
        let mut schedule = filled((0..2 * LOW as u64).map(ready).collect(), true);
        // As before a closed gate: one is tried, and is due again at once.
        let tried = schedule.pop().expect("it is filled");
        schedule.forget(tried.entry.id, Some(now));
        assert_eq!(schedule.next_look(now), Some(now.after(PAUSE)), "only for who has nothing in it");
        while schedule.waiting() >= LOW {
            let done = schedule.pop().expect("it is filled");
            schedule.forget(done.entry.id, None);
        }
        assert_eq!(schedule.next_look(now), Some(now), "what was put off is looked for in the end");
    }

    fn from(id: u64, user: u64) -> Ready {
        let mut ready = ready(id);
        ready.entry.origin.user = Some(format!("app-{user}"));
        ready
    }

    #[test]
    fn a_backlog_of_one_sender_takes_no_memory_and_holds_nobody_up() {
        let mut schedule = Schedule::default();
        (0..100_000).for_each(|id| schedule.offer(from(id, 1)));
        assert_eq!((schedule.waiting(), schedule.taken.len()), (ENTRIES_MAX, ENTRIES_MAX));
        (0..50).for_each(|number| schedule.offer(from(200_000 + number, 2 + number)));
        assert_eq!(schedule.waiting(), ENTRIES_MAX, "the window stays bounded");
        let first: Vec<i64> = (0..51).map(|_| next(&mut schedule)).collect();
        assert_eq!(first.iter().filter(|id| **id < 100_000).count(), 1, "{first:?}");
    }

    #[test]
    fn what_a_look_has_brought_before_it_was_offered_is_there_once() {
        let mut schedule = filled(vec![ready(1)], true);
        schedule.offer(ready(1));
        let claimed = schedule.pop().expect("it is there");
        schedule.offer(ready(1));
        assert!(schedule.pop().is_none());
        schedule.forget(claimed.entry.id, None);
        assert_eq!((schedule.waiting(), schedule.claimed()), (0, 0));
    }

    #[test]
    fn what_is_put_off_of_one_sender_leaves_room_for_the_others() {
        let mut schedule = Schedule::default();
        let mut count = 0;
        while schedule.has_room_to_put_off(Flow::of(&from(0, 1).entry)) {
            schedule.put_off(&from(count, 1));
            count += 1;
        }
        assert_eq!(count as usize, AWAY_MAX / 2);
        assert!(schedule.has_room_to_put_off(Flow::of(&from(0, 2).entry)));
        assert!(schedule.bring_back(&(0..count).map(|id| QueueId::from_i64(id as i64)).collect::<Vec<_>>()));
        assert_eq!((schedule.away(), schedule.away_of.len()), (0, 0));
    }

    #[test]
    fn what_finds_no_room_between_two_parts_of_a_look_is_not_forgotten() {
        let mut schedule = Schedule::unknown();
        (0..ENTRIES_MAX as u64).for_each(|id| schedule.offer(from(id, 1)));
        schedule.begin_look(Timestamp(1_000));
        schedule.end_look(Some(Flow::of(&from(0, 2).entry)), None);
        schedule.offer(from(5_000, 1));
        schedule.begin_look(Timestamp(1_000));
        schedule.end_look(None, None);
        assert!(schedule.has_more());
    }

    /// The store as a plain list, and a feeder that does what it is told.
    #[derive(Default)]
    struct Model {
        schedule: Schedule,
        due: std::collections::BTreeMap<QueueId, u64>,
        claimed: Vec<Ready>,
    }

    impl Model {
        fn look(&mut self) {
            let look = self.schedule.begin_look(Timestamp(1_000));
            let mut flows: BTreeMap<Flow, Vec<Ready>> = BTreeMap::new();
            for (id, user) in &self.due {
                let ready = from(id.to_i64() as u64, *user);
                flows.entry(Flow::of(&ready.entry)).or_default().push(ready);
            }
            let seen: Vec<_> = flows.into_iter().filter(|(flow, _)| *flow >= look.from).collect();
            // As if more flows than three were too many for one look.
            let next = seen.get(3).map(|(flow, _)| *flow);
            let seen: Vec<_> = seen.into_iter().take(3).collect();
            let count = seen.len();
            for (flow, all) in seen {
                let mut new: Vec<_> =
                    all.into_iter().filter(|ready| !self.schedule.is_taken(ready.entry.id)).collect();
                let wanted = look.wanted(flow, count);
                let complete = new.len() <= wanted;
                new.truncate(wanted);
                self.schedule.fill(flow, new, complete);
            }
            self.schedule.end_look(next, None);
        }
    }

    proptest::proptest! {
        #![proptest_config(proptest::test_runner::Config { cases: 64, failure_persistence: None, ..Default::default() })]

        /// Whatever is done, nothing is claimed twice, nothing that is due is forgotten, and the window
        /// keeps its bound.
        #[test]
        fn the_window_and_a_plain_list_agree(verbs in proptest::collection::vec((0..6_u8, 0..7_u64, 1..400_usize), 1..60)) {
            let mut model = Model { schedule: Schedule::unknown(), ..Model::default() };
            let mut id = 0;
            for (verb, user, count) in verbs {
                match verb {
                    // Most of the mail is of one sender.
                    0 | 1 => for _ in 0..count {
                        id += 1;
                        let user = if verb == 0 { 0 } else { user };
                        model.due.insert(QueueId::from_i64(id), user);
                        model.schedule.offer(from(id as u64, user));
                    },
                    2 => for _ in 0..count {
                        if model.claimed.len() == 100 { break }
                        let Some(ready) = model.schedule.pop() else { break };
                        proptest::prop_assert!(model.due.contains_key(&ready.entry.id));
                        proptest::prop_assert!(model.claimed.iter().all(|other| other.entry.id != ready.entry.id));
                        model.claimed.push(ready);
                    },
                    3 => model.claimed.drain(..).for_each(|ready| {
                        model.due.remove(&ready.entry.id);
                        model.schedule.forget(ready.entry.id, None);
                    }),
                    4 => model.claimed.drain(..).for_each(|ready| model.schedule.give_back(ready)),
                    _ => model.look(),
                }
                proptest::prop_assert!(model.schedule.waiting() <= ENTRIES_MAX + 100);
                proptest::prop_assert_eq!(model.schedule.claimed(), model.claimed.len());
            }
            // In the end all leave, the looks being those that are asked for.
            model.claimed.drain(..).for_each(|ready| model.schedule.give_back(ready));
            for _ in 0..10_000 {
                while let Some(ready) = model.schedule.pop() {
                    proptest::prop_assert!(model.due.remove(&ready.entry.id).is_some());
                    model.schedule.forget(ready.entry.id, None);
                }
                match model.schedule.next_look(Timestamp(2_000)) {
                    Some(_) => model.look(),
                    None => break,
                }
            }
            proptest::prop_assert!(model.due.is_empty(), "{} are forgotten", model.due.len());
        }
    }
}
