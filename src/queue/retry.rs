//! When to try again: pure arithmetic on waits.

use std::time::Duration;

use crate::config::Waits;

/// Each wait is so many times the one before.
const FACTOR: f64 = 2.0;
/// Waits are spread by up to this share in both directions, so that what failed together does not
/// come back together.
const JITTER: f64 = 0.2;

/// The wait before the next try, when `attempts` have failed so far; `random` is from 0 to 1.
pub fn wait(waits: Waits, attempts: u32, random: f64) -> Duration {
    let doubled = waits.first.as_secs_f64() * FACTOR.powi(attempts.saturating_sub(1).min(64) as i32);
    let bounded = doubled.min(waits.longest.as_secs_f64());
    Duration::from_secs_f64(bounded * (1.0 - JITTER + 2.0 * JITTER * random.clamp(0.0, 1.0)))
}

/// No wait is longer.
pub fn longest(waits: Waits) -> Duration {
    waits.longest.mul_f64(1.0 + JITTER)
}

#[cfg(test)]
mod tests {
    use super::*;

    const WAITS: Waits = Waits { first: Duration::from_secs(60), longest: Duration::from_secs(3600) };

    #[test]
    fn waits_double_up_to_the_longest() {
        let minutes: Vec<_> = (1..=9).map(|n| wait(WAITS, n, 0.5).as_secs() / 60).collect();
        assert_eq!(minutes, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
        assert_eq!(wait(WAITS, u32::MAX, 0.5), Duration::from_secs(3600));
        assert_eq!(wait(WAITS, 0, 0.5), Duration::from_secs(60));
        assert_eq!(wait(WAITS, u32::MAX, 1.0), longest(WAITS));
    }

    #[test]
    fn waits_are_spread_by_a_fifth() {
        assert_eq!(wait(WAITS, 1, 0.0), Duration::from_secs(48));
        assert_eq!(wait(WAITS, 1, 1.0), Duration::from_secs(72));
    }
}
