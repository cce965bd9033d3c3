//! One rolling window: how much was spent in the stretch of time that ends now. Pure.
//!
//! The promise is that no stretch of the window's length ever holds more than the limit, whenever
//! between beginning and end of an attempt the upstream counts it. So what is taken counts from the
//! moment it is taken until one length after it was *finished*.
//!
//! Memory is bounded: what is finished within a small share of the length shares a slot, and a slot
//! leaves the window as a whole, with its latest part: a little late, never early.

use std::collections::VecDeque;

/// Milliseconds on a clock that never jumps, from the start of this run; earlier runs lie below 0.
pub(super) type Tick = i64;

/// A slot spans at most this share of the window, which is how much later than necessary it may
/// leave; there are never more than so many and one.
const SLOTS: i64 = 250;

/// What was spent at about one time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Slot {
    /// When the slot began.
    first: Tick,
    /// When the latest of it was finished.
    pub(super) last: Tick,
    pub(super) count: u64,
}

/// A rolling window.
#[derive(Clone, Debug)]
pub(super) struct Window {
    pub(super) max: u64,
    length: i64,
    /// Oldest first.
    slots: VecDeque<Slot>,
    spent: u64,
    /// Taken, and not finished yet.
    flying: u64,
}

impl Window {
    /// An empty window of `length` milliseconds.
    pub(super) fn new(max: u64, length: i64) -> Self {
        Self { max, length: length.max(1), slots: VecDeque::new(), spent: 0, flying: 0 }
    }

    /// Lets go of what has left the window.
    pub(super) fn forget(&mut self, now: Tick) {
        while let Some(slot) = self.slots.front().filter(|slot| slot.last + self.length <= now) {
            self.spent -= slot.count;
            self.slots.pop_front();
        }
    }

    /// How much is used now, what is under way included.
    pub(super) fn used(&self) -> u64 {
        self.spent + self.flying
    }

    /// How much is under way.
    pub(super) fn flying(&self) -> u64 {
        self.flying
    }

    /// How much may be taken now.
    pub(super) fn free(&self) -> u64 {
        self.max.saturating_sub(self.used())
    }

    /// When there will be something to take, if nothing else happens. `None`: when what is under way
    /// has been finished for a length.
    pub(super) fn frees_at(&self) -> Option<Tick> {
        let mut used = self.used();
        for slot in &self.slots {
            used -= slot.count;
            if used < self.max {
                return Some(slot.last + self.length);
            }
        }
        None
    }

    /// When the oldest of what is used leaves.
    pub(super) fn next_free(&self) -> Option<Tick> {
        self.slots.front().map(|slot| slot.last + self.length)
    }

    /// Takes; it must be free.
    pub(super) fn take(&mut self, count: u64) {
        self.flying += count;
    }

    /// What was taken is finished; `spent` of it was really used.
    pub(super) fn finish(&mut self, now: Tick, taken: u64, spent: u64) {
        self.flying = self.flying.saturating_sub(taken);
        self.spend(now, spent);
    }

    /// Counts what was used until now.
    pub(super) fn spend(&mut self, now: Tick, count: u64) {
        if count == 0 {
            return;
        }
        // The clock was cut down to whole milliseconds.
        let now = now.saturating_add(1);
        self.spent = self.spent.saturating_add(count);
        match self.slots.back_mut() {
            Some(slot) if now - slot.first <= self.length / SLOTS => {
                slot.last = slot.last.max(now);
                slot.count = slot.count.saturating_add(count);
            }
            _ => self.slots.push_back(Slot { first: now, last: now, count }),
        }
    }

    /// What was spent and has not left.
    pub(super) fn slots(&self) -> impl Iterator<Item = Slot> {
        self.slots.iter().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_taken_counts_until_one_length_after_it_was_finished() {
        let mut window = Window::new(2, 1_000);
        window.take(2);
        assert_eq!((window.free(), window.frees_at()), (0, None));
        window.finish(500, 1, 1);
        assert_eq!(window.frees_at(), Some(1_501));
        window.finish(700, 1, 1);
        window.forget(1_500);
        assert_eq!(window.free(), 0);
        window.forget(1_501);
        assert_eq!((window.free(), window.frees_at()), (1, Some(1_501 + 200)));
    }

    #[test]
    fn what_shares_a_slot_leaves_with_the_latest_of_it() {
        let mut window = Window::new(9, 1_000);
        window.spend(0, 1);
        window.spend(3, 1);
        window.forget(1_003);
        assert_eq!(window.used(), 2);
        window.forget(1_004);
        assert_eq!(window.used(), 0);
    }

    #[test]
    fn two_million_a_day_take_no_more_than_a_few_hundred_slots() {
        let mut window = Window::new(2_000_000, 86_400_000);
        for second in 0..86_400 {
            window.spend(second * 1_000, 20);
        }
        assert!(window.slots().count() <= SLOTS as usize + 1);
        assert_eq!(window.used(), 86_400 * 20);
    }

    #[test]
    fn a_limit_that_was_lowered_frees_when_enough_has_left() {
        let mut window = Window::new(10, 1_000);
        for tick in 0..10 {
            window.spend(tick * 100, 1);
        }
        window.max = 3;
        assert_eq!((window.free(), window.frees_at()), (0, Some(700 + 1 + 1_000)));
    }
}
