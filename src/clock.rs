//! The only place that asks what time it is.
//!
//! Two times, kept apart: *wall time* ([`Timestamp`]) is shown to people and stored, so it may jump;
//! deadlines and waits use tokio's monotonic clock, which can't. A test clock derives the wall time
//! from tokio's paused clock, so that days of retries pass in no time.

use std::{
    fmt,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

/// A point in wall time: milliseconds since 1970-01-01T00:00:00Z.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Timestamp(pub u64);

impl Timestamp {
    /// The time this much later.
    pub fn after(self, wait: Duration) -> Self {
        Self(self.0.saturating_add(wait.as_millis() as u64))
    }

    /// The time this much earlier.
    pub fn before(self, wait: Duration) -> Self {
        Self(self.0.saturating_sub(wait.as_millis() as u64))
    }

    /// How long ago `earlier` was; zero if it lies ahead, as after a clock was set back.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }

    /// As a header field shows it (RFC 5322 §3.3), in UTC.
    pub fn rfc5322(self) -> String {
        jiff::fmt::rfc2822::to_string(&self.to_jiff().to_zoned(jiff::tz::TimeZone::UTC))
            .unwrap_or_else(|_| "Thu, 1 Jan 1970 00:00:00 +0000".to_owned())
    }

    fn to_jiff(self) -> jiff::Timestamp {
        jiff::Timestamp::from_millisecond(self.0 as i64).unwrap_or(jiff::Timestamp::MAX)
    }
}

/// As events and the API show it: RFC 3339 with milliseconds, in UTC.
impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.3}", self.to_jiff())
    }
}

/// The text is no time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a time: expected one such as 2012-06-18T06:13:20Z")]
pub struct NoTime;

/// Of the same form, with any offset.
impl std::str::FromStr for Timestamp {
    type Err = NoTime;
    fn from_str(text: &str) -> Result<Self, NoTime> {
        let time: jiff::Timestamp = text.parse().map_err(|_| NoTime)?;
        u64::try_from(time.as_millisecond()).map(Self).map_err(|_| NoTime)
    }
}

/// Tells the wall time.
#[derive(Clone, Debug, Default)]
pub enum Clock {
    /// The system's.
    #[default]
    System,
    /// Starts at a given time and then follows tokio's clock, paused or not.
    Test {
        /// The wall time at `origin`.
        start: Timestamp,
        /// When the clock was made.
        origin: Option<Instant>,
    },
}

impl Clock {
    /// A clock for tests that reads `start` now and follows tokio's clock from here.
    pub fn starting_at(start: Timestamp) -> Self {
        Self::Test { start, origin: Some(Instant::now()) }
    }

    /// The wall time.
    pub fn now(&self) -> Timestamp {
        match self {
            Self::System => Timestamp(
                SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64),
            ),
            Self::Test { start, origin } => {
                start.after(origin.map_or(Duration::ZERO, |origin| origin.elapsed()))
            }
        }
    }
}

/// Wall time beside monotonic time, to see where the one jumps.
#[derive(Debug)]
pub struct Course {
    wall: Timestamp,
    monotonic: Instant,
    /// When it began to go straight on, by both.
    straight: (Timestamp, Instant),
}

impl Course {
    /// Less is not worth looking for.
    const BACK: Duration = Duration::from_secs(1);
    /// Less brings nothing near its end.
    const FORWARD: Duration = Duration::from_secs(60);

    /// Begins now; what was before is not known.
    pub fn new(now: Timestamp) -> Self {
        let monotonic = Instant::now();
        Self { wall: now, monotonic, straight: (now, monotonic) }
    }

    /// Whether wall time went back since the last time that it was asked for.
    pub fn went_back(&mut self, now: Timestamp) -> bool {
        let expected = self.look(now);
        expected.since(now) > Self::BACK
    }

    /// Whether `wait` has passed since the clock was last set forward, and since this was begun. Then no time
    /// that has come has come by that alone.
    pub fn is_straight_for(&mut self, now: Timestamp, wait: Duration) -> bool {
        self.look(now);
        self.straight.1.elapsed() >= wait
    }

    /// Whether all that has passed since `time` was seen to pass.
    pub fn has_seen(&mut self, now: Timestamp, time: Timestamp) -> bool {
        self.look(now);
        time >= self.straight.0
    }

    /// What time it should be, by the last look and monotonic time.
    fn look(&mut self, now: Timestamp) -> Timestamp {
        let expected = self.wall.after(self.monotonic.elapsed());
        (self.wall, self.monotonic) = (now, Instant::now());
        if now.since(expected) > Self::FORWARD {
            self.straight = (now, self.monotonic);
        }
        expected
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timestamp_is_shown_in_both_forms() {
        let time = Timestamp(1_340_000_000_123);
        assert_eq!(time.to_string(), "2012-06-18T06:13:20.123Z");
        assert_eq!(time.rfc5322(), "Mon, 18 Jun 2012 06:13:20 +0000");
        assert_eq!(time.to_string().parse(), Ok(time));
        assert_eq!("2012-06-18T08:13:20.123+02:00".parse(), Ok(time));
        assert_eq!("yesterday".parse::<Timestamp>(), Err(NoTime));
    }

    #[tokio::test(start_paused = true)]
    async fn a_test_clock_follows_the_paused_clock() {
        let clock = Clock::starting_at(Timestamp(1_000));
        tokio::time::sleep(Duration::from_secs(86_400)).await;
        assert_eq!(clock.now(), Timestamp(86_401_000));
    }

    #[tokio::test(start_paused = true)]
    async fn a_course_sees_jumps_and_knows_how_long_there_was_none() {
        let (start, second) = (Timestamp(1_000_000_000), Duration::from_secs(1));
        let mut course = Course::new(start);
        assert!(course.has_seen(start, start) && !course.has_seen(start, start.before(second)));
        assert!(course.is_straight_for(start, Duration::ZERO) && !course.is_straight_for(start, second));
        tokio::time::sleep(10 * second).await;
        let now = start.after(12 * second);
        assert!(course.is_straight_for(now, 10 * second), "two seconds are no jump");
        assert!(!course.went_back(now) && course.went_back(now.before(2 * second)));
        let then = now.after(86_400 * second);
        assert!(!course.is_straight_for(then, second) && !course.has_seen(then, now));
        assert!(course.has_seen(then, then));
        tokio::time::sleep(second).await;
        assert!(course.is_straight_for(then.after(second), second));
    }
}
