//! How much content all connections together may hold in memory.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

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
    /// Makes the share at least that large; false if all shares together would outgrow `max`.
    pub fn grow_to(&mut self, octets: usize, max: usize) -> bool {
        let more = octets.saturating_sub(self.octets);
        let fits = |held: usize| held.checked_add(more).filter(|sum| *sum <= max || more == 0);
        let grown = self.budget.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).is_ok();
        self.octets += if grown { more } else { 0 };
        grown
    }
}

impl Share {
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
        assert!(a.grow_to(60, 100));
        assert!(!b.grow_to(41, 100));
        assert!(b.grow_to(40, 100));
        assert!(a.grow_to(50, 100), "no more than it has");
        assert!(!a.grow_to(61, 100));
        drop(b);
        assert!(a.grow_to(100, 100));
        drop(a);
        assert_eq!(budget.0.load(Ordering::Relaxed), 0);
    }
}
