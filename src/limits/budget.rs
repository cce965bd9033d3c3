//! The windows of one upstream or login together, and what of them must be on disk. Pure.
//!
//! # How the limit outlives a crash
//!
//! Before anything is taken, the disk knows that it may be: the stored state says what was spent,
//! and how much more may be in use by now (`reserved` and what is under way). A run that ends
//! well stores what it really spent. After any other end all that was reserved counts as spent at the
//! moment of the next start: a little of the budget may be lost, and never is there more of it.
//!
//! What is reserved at once is a hundredth of the limit, so that there are a hundred syncs a window,
//! and none lost where the limit is small. A window of a few seconds is not stored at all: after a
//! start it counts as used up, and that is over before anybody notices.
//!
//! # Clocks
//!
//! Ticks come from a clock that never jumps. Stored are ages, and the wall time at which they were
//! so; at the next start only the wall time that has passed since is added to them. A clock that was
//! set back meanwhile adds nothing; one that was set forward while nobody ran can't be told from time.

use serde::{Deserialize, Serialize};

use super::window::{Tick, Window};
use crate::{
    clock::Timestamp,
    config::{Counts, Limit},
};

/// Windows below this are not stored.
const STORED_FROM: i64 = 10_000;
/// Below this a limit is a rate, about how often we ask; from here on it is a quota, about what was
/// taken: what the upstream refused before it saw any content is given back.
const QUOTA_FROM: i64 = 3_600_000;
/// The share of a limit that is reserved at once.
const RESERVED_SHARE: u64 = 100;

/// All limits of one upstream or login.
#[derive(Clone, Debug, Default)]
pub(super) struct Budget {
    meters: Vec<Meter>,
}

#[derive(Clone, Debug)]
struct Meter {
    limit: Limit,
    window: Window,
    /// Known to the disk as possibly used, and not taken yet. Means nothing where nothing is stored.
    reserved: u64,
}

/// What came of asking for a part of the budget.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Take {
    /// It was taken, for so many recipients.
    Granted(u64),
    /// Nothing is free.
    Gone,
    /// It is free, but the disk must hear of it before.
    Unwritten,
}

/// What became of what was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spent {
    /// The upstream heard nothing of it.
    Nothing,
    /// It heard of the message, and got content for so many of its recipients.
    For(u64),
}

/// How much of one limit is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Usage {
    pub(super) limit: Limit,
    pub(super) used: u64,
    /// When the oldest of it leaves, or, with nothing free, when something will be.
    pub(super) frees_at: Option<Tick>,
}

impl Meter {
    fn new(limit: Limit) -> Self {
        let length = i64::try_from(limit.window.as_millis()).unwrap_or(i64::MAX);
        Self { limit, window: Window::new(limit.max, length), reserved: 0 }
    }

    fn length(&self) -> i64 {
        i64::try_from(self.limit.window.as_millis()).unwrap_or(i64::MAX)
    }

    fn is_stored(&self) -> bool {
        self.length() >= STORED_FROM
    }

    fn cost(&self, recipients: u64) -> u64 {
        match self.limit.counts {
            Counts::Messages => recipients.min(1),
            Counts::Recipients => recipients,
        }
    }

    /// What to reserve beyond what is, so that `cost` can be taken.
    fn more(&self, cost: u64) -> u64 {
        let wanted = cost.max(self.limit.max / RESERVED_SHARE).max(1);
        wanted.min(self.window.free()).saturating_sub(self.reserved)
    }
}

impl Budget {
    /// Nothing spent yet. What is not stored counts as used up, for nobody knows.
    pub(super) fn new(limits: &[Limit], now: Tick) -> Self {
        let mut budget = Self { meters: limits.iter().copied().map(Meter::new).collect() };
        for meter in budget.meters.iter_mut().filter(|meter| !meter.is_stored()) {
            meter.window.spend(now, meter.limit.max);
        }
        budget
    }

    /// All used up at this moment: for a stored state that can't be read.
    pub(super) fn exhausted(limits: &[Limit], now: Tick) -> Self {
        let mut budget = Self::new(limits, now);
        for meter in budget.meters.iter_mut().filter(|meter| meter.is_stored()) {
            meter.window.spend(now, meter.limit.max);
        }
        budget
    }

    /// As it was stored, `passed` milliseconds ago as far as the wall clock knows.
    pub(super) fn restored(limits: &[Limit], stored: &Stored, now: Tick, wall: Timestamp) -> Self {
        let mut budget = Self::new(limits, now);
        let passed = i64::try_from(wall.since(stored.saved).as_millis()).unwrap_or(i64::MAX);
        for meter in budget.meters.iter_mut().filter(|meter| meter.is_stored()) {
            let same = |kept: &&StoredWindow| {
                kept.seconds == meter.limit.window.as_secs() && kept.counts == meter.limit.counts.name()
            };
            let Some(kept) = stored.windows.iter().find(same) else { continue };
            for (age, count) in &kept.spent {
                let age = i64::try_from(*age).unwrap_or(i64::MAX).saturating_add(passed);
                if age < meter.length() {
                    meter.window.spend(now.saturating_sub(age), *count);
                }
            }
            meter.window.spend(now, kept.pending);
        }
        budget
    }

    /// Goes by other limits; what was spent in windows that stay is kept, and so is what is under way.
    pub(super) fn change(&mut self, limits: &[Limit], now: Tick) {
        let old = std::mem::take(&mut self.meters);
        self.meters = limits
            .iter()
            .map(|limit| {
                let same =
                    |meter: &&Meter| (meter.limit.counts, meter.limit.window) == (limit.counts, limit.window);
                let mut meter = old.iter().find(same).cloned().unwrap_or_else(|| {
                    let mut meter = Meter::new(*limit);
                    if !meter.is_stored() {
                        meter.window.spend(now, limit.max);
                    }
                    meter
                });
                meter.limit.max = limit.max;
                meter.window.max = limit.max;
                meter
            })
            .collect();
    }

    /// Whether there is no limit at all.
    pub(super) fn is_boundless(&self) -> bool {
        self.meters.is_empty()
    }

    /// Whether a message to one recipient could be taken; if not, which limit is in the way for the
    /// longest, and until when, as far as that is known.
    pub(super) fn blocked(&mut self, now: Tick) -> Option<(Limit, Option<Tick>)> {
        self.forget(now);
        let full = self.meters.iter().filter(|meter| meter.window.free() == 0);
        let in_the_way = full.map(|meter| (meter.limit, meter.window.frees_at()));
        in_the_way.max_by_key(|(_, frees)| frees.unwrap_or(Tick::MAX))
    }

    /// Takes a message to at most `want` recipients, and at least one.
    pub(super) fn take(&mut self, now: Tick, want: u64) -> Take {
        self.forget(now);
        let Some(granted) = self.grant(want) else { return Take::Gone };
        let unwritten = |meter: &Meter| meter.is_stored() && meter.reserved < meter.cost(granted);
        if self.meters.iter().any(unwritten) {
            return Take::Unwritten;
        }
        for meter in &mut self.meters {
            let cost = meter.cost(granted);
            meter.window.take(cost);
            meter.reserved = meter.reserved.saturating_sub(cost);
        }
        Take::Granted(granted)
    }

    /// The most recipients that could be had now, of `want`.
    fn grant(&self, want: u64) -> Option<u64> {
        let frees = self.meters.iter().map(|meter| match meter.limit.counts {
            Counts::Messages if meter.window.free() == 0 => 0,
            Counts::Messages => want,
            Counts::Recipients => meter.window.free().min(want),
        });
        frees.min().or(Some(want)).filter(|granted| *granted > 0)
    }

    /// What was taken for `granted` recipients is over.
    pub(super) fn finish(&mut self, now: Tick, granted: u64, spent: Spent) {
        for meter in &mut self.meters {
            let taken = meter.cost(granted);
            let used = match spent {
                Spent::Nothing => 0,
                Spent::For(recipients) if meter.length() >= QUOTA_FROM => meter.cost(recipients.min(granted)),
                Spent::For(_) => taken,
            };
            // Settings may have brought the window in after it was taken.
            meter.window.finish(now, taken, used);
            meter.reserved = meter.reserved.saturating_add(taken - used);
        }
    }

    /// What to store so that `want` recipients can be taken, and how much each window then has
    /// reserved beyond now: hand that to [`Self::written`] once it is on disk.
    pub(super) fn prepare(&mut self, now: Tick, wall: Timestamp, want: u64) -> (Stored, Vec<u64>) {
        self.forget(now);
        let want = self.grant(want).unwrap_or(0);
        let more: Vec<u64> = self.meters.iter().map(|meter| meter.more(meter.cost(want))).collect();
        (self.stored(now, wall, &more), more)
    }

    /// What [`Self::prepare`] gave is on disk.
    pub(super) fn written(&mut self, more: &[u64]) {
        for (meter, more) in self.meters.iter_mut().zip(more) {
            meter.reserved = meter.reserved.saturating_add(*more);
        }
    }

    /// What to store at a good end, when nothing more will be taken.
    pub(super) fn last_words(&mut self, now: Tick, wall: Timestamp) -> Stored {
        self.forget(now);
        for meter in &mut self.meters {
            meter.reserved = 0;
        }
        self.stored(now, wall, &[])
    }

    fn stored(&self, now: Tick, wall: Timestamp, more: &[u64]) -> Stored {
        let more = more.iter().copied().chain(std::iter::repeat(0));
        let kept = self.meters.iter().zip(more).filter(|(meter, _)| meter.is_stored());
        let windows = kept.map(|(meter, more)| StoredWindow {
            counts: meter.limit.counts.name().to_owned(),
            seconds: meter.limit.window.as_secs(),
            pending: meter.window.flying().saturating_add(meter.reserved).saturating_add(more),
            spent: meter
                .window
                .slots()
                .map(|slot| (u64::try_from(now.saturating_sub(slot.last)).unwrap_or(0), slot.count))
                .collect(),
        });
        Stored { saved: wall, windows: windows.collect() }
    }

    /// How much of each limit is used.
    pub(super) fn usage(&mut self, now: Tick) -> Vec<Usage> {
        self.forget(now);
        let usage = |meter: &Meter| Usage {
            limit: meter.limit,
            used: meter.window.used(),
            frees_at: match meter.window.free() {
                0 => meter.window.frees_at(),
                _ => meter.window.next_free(),
            },
        };
        self.meters.iter().map(usage).collect()
    }

    fn forget(&mut self, now: Tick) {
        for meter in &mut self.meters {
            meter.window.forget(now);
        }
    }
}

/// The stored form.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Stored {
    /// The wall time of the ages.
    saved: Timestamp,
    windows: Vec<StoredWindow>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct StoredWindow {
    counts: String,
    seconds: u64,
    /// May have been used since.
    pending: u64,
    /// Age in milliseconds, and how much.
    spent: Vec<(u64, u64)>,
}

#[cfg(test)]
mod tests;
