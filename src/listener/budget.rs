//! How much content all connections together may hold in memory.
//!
//! When it is too much, a message goes to the spool before its time, so that large messages on their way never
//! keep others out. Only a header section has to come whole first.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use crate::queue::{Fault, Incoming};

/// So much of each message is not counted, and so never lacks room: nearly every message as a whole, and the
/// header section of nearly all others. How many there are the places for clients bound.
const UNCOUNTED: usize = 16 * 1024;

/// The octets held by all connections. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Budget(Arc<AtomicUsize>);

/// What one connection holds of it. Given back when dropped.
#[derive(Debug)]
pub struct Share {
    budget: Budget,
    octets: usize,
}

impl Budget {
    /// A share of nothing yet.
    pub fn share(&self) -> Share {
        Share { budget: self.clone(), octets: 0 }
    }
}

impl Share {
    /// Keeps what came of a message so far: in memory as far as there is room, else in the spool. All shares
    /// together never outgrow `max`.
    ///
    /// # Errors
    /// It can't be kept, and isn't; read the rest of it and refuse the message.
    pub async fn keep(&mut self, incoming: &mut Incoming, max: usize) -> Result<(), Fault> {
        let kept = self.keep_somewhere(incoming, max).await;
        if kept.is_err() {
            incoming.forget();
            self.give_back();
        }
        kept
    }

    async fn keep_somewhere(&mut self, incoming: &mut Incoming, max: usize) -> Result<(), Fault> {
        incoming.flush().await?;
        if self.hold(incoming.held(), max) {
            return Ok(());
        }
        incoming.spill().await?;
        if self.hold(incoming.held(), max) { Ok(()) } else { Err(Fault::Full) }
    }

    /// Makes it the share of a message that holds so many octets; false if all shares together would outgrow
    /// `max`.
    fn hold(&mut self, octets: usize, max: usize) -> bool {
        let octets = octets.saturating_sub(UNCOUNTED);
        if octets <= self.octets {
            self.budget.0.fetch_sub(self.octets - octets, Ordering::Relaxed);
        } else {
            let more = octets - self.octets;
            let fits = |held: usize| held.checked_add(more).filter(|sum| *sum <= max);
            if self.budget.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).is_err() {
                return false;
            }
        }
        self.octets = octets;
        true
    }

    /// Makes it a share of nothing again.
    pub fn give_back(&mut self) {
        self.budget.0.fetch_sub(std::mem::take(&mut self.octets), Ordering::Relaxed);
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.give_back();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_never_outgrow_the_budget_and_are_given_back() {
        let budget = Budget::default();
        let (mut a, mut b) = (budget.share(), budget.share());
        let hold = |share: &mut Share, octets: usize| share.hold(UNCOUNTED + octets, 100);
        assert!(hold(&mut a, 60));
        assert!(!hold(&mut b, 41));
        assert!(hold(&mut b, 40));
        assert!(!hold(&mut a, 61));
        assert!(hold(&mut a, 50), "less than it had");
        assert!(hold(&mut b, 50), "which another may have");
        drop(b);
        assert!(hold(&mut a, 100));
        assert!(budget.share().hold(UNCOUNTED, 100), "what is small has room always");
        drop(a);
        assert_eq!(budget.0.load(Ordering::Relaxed), 0);
    }
}
