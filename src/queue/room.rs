//! Whether there is room for another message, and how long one waits for it while little is left.
//!
//! At a bound that the operator has set mail is refused, all at once. So that apps feel it before, and smoothly,
//! the last fifth is filled more slowly: each message waits the longer the less is left. Only while the queue
//! grows, for one that others empty has room soon; and never without a bound, for then it may grow.

use std::{
    io,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use super::{Fault, Queue};

/// From here on, as a part of the bound, new mail waits.
const SLOW_FROM: f64 = 0.8;
/// No message waits longer, however full the queue is.
const LONGEST: Duration = Duration::from_secs(2);
/// Whether the queue grows is told from what it was so long ago, up to twice that.
const SPAN: Duration = Duration::from_secs(2);
/// It is told no more often that clients wait.
const TOLD_EVERY: Duration = Duration::from_secs(60);
/// What is free on a disk does not change much within this time, and asking costs each message something.
const FREE_SPACE_HOLDS: Duration = Duration::from_millis(50);

/// What is known of the room.
#[derive(Debug, Default)]
pub(super) struct Room {
    /// Octets that are free on its disk, and since when that is known.
    free_space: Mutex<Option<(u64, Instant)>>,
    trend: Mutex<Trend>,
}

/// How full the queue was lately.
#[derive(Debug, Default)]
struct Trend {
    before: Option<(f64, Instant)>,
    latest: Option<(f64, Instant)>,
    /// When it was told that clients wait.
    told: Option<Instant>,
}

impl Trend {
    /// Whether the queue, which is now so full, is fuller than it was some seconds ago.
    fn grows(&mut self, fill: f64, now: Instant) -> bool {
        let younger_than = |span| move |(_, at): &(f64, Instant)| now - *at < span;
        let latest = match self.latest.filter(younger_than(SPAN)) {
            Some(latest) => latest,
            None => {
                // What was before a time without mail says nothing of now.
                self.before = self.latest.filter(younger_than(2 * SPAN));
                *self.latest.insert((fill, now))
            }
        };
        fill > self.before.unwrap_or(latest).0
    }

    /// Whether it is time to tell that clients wait.
    fn tells(&mut self, now: Instant) -> bool {
        let due = self.told.is_none_or(|told| now - told >= TOLD_EVERY);
        if due {
            self.told = Some(now);
        }
        due
    }
}

/// How long a message waits at most while the queue is so full, as a part of its bound, and grows. It begins
/// gently, because the first who wait are many.
fn longest(fill: f64, grows: bool) -> Duration {
    // What is refused need not wait for that.
    if !grows || fill >= 1.0 {
        return Duration::ZERO;
    }
    let way = ((fill - SLOW_FROM) / (1.0 - SLOW_FROM)).max(0.0);
    LONGEST.mul_f64(way * way)
}

impl Queue {
    /// Whether another message may come.
    pub(super) fn has_room(&self) -> Result<bool, Fault> {
        Ok(self.fill().is_none_or(|fill| fill < 1.0)
            && self.free_space()? >= self.shared.settings.load().min_free
            && !self.shared.health.is_full())
    }

    /// How long the next message should wait before it is taken, so that the queue does not run into its bound.
    /// Apart from each other by chance, so that those who came together do not come back together.
    pub fn slowdown(&self) -> Duration {
        let Some(fill) = self.fill().filter(|fill| *fill > SLOW_FROM) else { return Duration::ZERO };
        let (longest, tells) = {
            let now = Instant::now();
            let mut trend = self.shared.room.trend.lock().unwrap_or_else(PoisonError::into_inner);
            let longest = longest(fill, trend.grows(fill, now));
            (longest, !longest.is_zero() && trend.tells(now))
        };
        if tells {
            tracing::warn!(
                percent = (fill * 100.0) as u64,
                "the queue grows towards its bound (smtp_queue_max_messages, smtp_queue_max_bytes): new mail is \
                 taken more slowly"
            );
        }
        longest.mul_f64(0.5 + fastrand::f64() / 2.0)
    }

    /// What part is taken of the nearest bound that the operator has set; `None` without one.
    fn fill(&self) -> Option<f64> {
        let settings = self.shared.settings.load();
        if settings.max_messages.is_none() && settings.max_bytes.is_none() {
            return None;
        }
        let tally = self.tally();
        let part = |taken: u64, max: Option<u64>| match max {
            Some(max) if taken >= max => 1.0,
            Some(max) => taken as f64 / max as f64,
            None => 0.0,
        };
        Some(part(tally.messages, settings.max_messages).max(part(tally.octets, settings.max_bytes)))
    }

    pub(super) fn free_space(&self) -> Result<u64, Fault> {
        if self.shared.settings.load().min_free == 0 {
            return Ok(u64::MAX);
        }
        let mut known = self.shared.room.free_space.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((octets, at)) = *known
            && at.elapsed() < FREE_SPACE_HOLDS
        {
            return Ok(octets);
        }
        let disk = rustix::fs::statvfs(&self.shared.directory).map_err(io::Error::from)?;
        let octets = disk.f_bavail.saturating_mul(disk.f_frsize);
        *known = Some((octets, Instant::now()));
        Ok(octets)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_begins_at_four_fifths_grows_smoothly_and_has_its_bound() {
        let millis = |fill: f64| (longest(fill, true).as_secs_f64() * 1_000.0).round();
        assert_eq!([0.0, 0.5, 0.8].map(millis), [0.0, 0.0, 0.0]);
        assert_eq!([0.85, 0.9, 0.95].map(millis), [125.0, 500.0, 1_125.0]);
        assert_eq!(longest(1.0, true), Duration::ZERO, "it is refused at once");
        let steps: Vec<_> = (800..1_000).map(|n| longest(f64::from(n) / 1_000.0, true)).collect();
        for two in steps.windows(2) {
            assert!(two[0] < two[1] && two[1] - two[0] < LONGEST / 50, "{two:?}");
        }
        assert!(steps.iter().all(|wait| *wait <= LONGEST));
        assert_eq!(longest(0.99, false), Duration::ZERO, "nobody waits while it does not grow");
    }

    #[tokio::test(start_paused = true)]
    async fn a_queue_grows_that_is_fuller_than_seconds_ago() {
        let mut trend = Trend::default();
        let mut after = async |wait: Duration, fill: f64| {
            tokio::time::advance(wait).await;
            trend.grows(fill, Instant::now())
        };
        let moment = SPAN / 4;
        assert!(!after(moment, 0.90).await, "nothing is known of before");
        assert!(after(moment, 0.91).await);
        assert!(!after(moment, 0.90).await);
        for _ in 0..20 {
            assert!(!after(moment, 0.90).await, "it is as full as it was");
        }
        for step in 0..20 {
            assert!(after(moment, 0.91 + f64::from(step) / 1_000.0).await, "step {step}");
        }
        assert!(after(moment, 0.928).await, "a few have left");
        for _ in 0..9 {
            after(moment, 0.928).await;
        }
        assert!(!after(moment, 0.928).await, "for seconds as many have left as came");
        assert!(!after(2 * SPAN, 0.99).await, "how it was before a time without mail does not count");
    }

    #[tokio::test(start_paused = true)]
    async fn it_is_told_once_a_minute_that_clients_wait() {
        let mut trend = Trend::default();
        assert!(trend.tells(Instant::now()) && !trend.tells(Instant::now()));
        tokio::time::advance(TOLD_EVERY).await;
        assert!(trend.tells(Instant::now()));
    }
}
