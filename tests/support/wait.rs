//! Waiting for what must happen, with a deadline, by looking again and again.

use std::thread::sleep;
use std::time::{Duration, Instant};

/// How long anything may take before a test calls it missing.
pub const DEADLINE: Duration = Duration::from_secs(30);
const BETWEEN_LOOKS: Duration = Duration::from_millis(20);

/// Looks until there is something, and gives it; panics with `what` when the deadline has passed.
pub fn until<T>(what: &str, look: impl FnMut() -> Option<T>) -> T {
    until_within(DEADLINE, what, look)
}

/// As [`until`], with a deadline of its own.
pub fn until_within<T>(limit: Duration, what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + limit;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < end, "waited {limit:?} in vain: {what}");
        sleep(BETWEEN_LOOKS);
    }
}

/// Looks until it is so.
pub fn until_true(what: &str, mut look: impl FnMut() -> bool) {
    until(what, || look().then_some(()));
}

/// Whether a child ends within a few seconds.
pub fn ended(child: &mut std::process::Child) -> bool {
    let end = Instant::now() + Duration::from_secs(5);
    while Instant::now() < end {
        if !matches!(child.try_wait(), Ok(None)) {
            return true;
        }
        sleep(BETWEEN_LOOKS);
    }
    false
}
