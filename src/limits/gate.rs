//! The gate before an upstream: may a new connection be opened now?
//!
//! A refused login repeated by every queued message locks the account; an upstream that comes back
//! and meets a thousand connections goes down again. So connections are opened through the gate:
//! one at a time until one has succeeded, then two at a time; none while it is closed after a
//! failure. It opens again by itself after a growing, jittered wait to let one probe through, or at
//! once when the operator says so. Connections already open go on working meanwhile.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{sync::Notify, time::Instant};

use crate::{
    clock::{Clock, Timestamp},
    config::Waits,
    mail::outcome::Evidence,
    queue::retry,
};

/// Connections being opened at once, once one has succeeded. Together with one probe after the first
/// wait this bounds a wrong password to three attempts in the first minute and a half.
const OPENING_MAX: usize = 2;

/// The gate. Clones share it.
#[derive(Clone, Debug)]
pub struct Gate(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    clock: Clock,
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// One connection succeeded since the last failure or reset.
    proven: bool,
    /// Connections being opened.
    opening: usize,
    /// Failures in a row.
    failures: u32,
    closed: Option<Closed>,
    /// Counts resets, so that what began before one can't close the gate after it.
    epoch: u64,
}

/// Why and until when the gate is closed.
#[derive(Clone, Debug)]
pub struct Closed {
    /// What was seen.
    pub evidence: Evidence,
    /// When a probe will be let through, in wall time, for people.
    pub until: Timestamp,
    deadline: Instant,
    /// What was seen concerns the connections that stand as well.
    everything: bool,
}

/// The leave to open one connection; dropped when that has succeeded or failed.
#[derive(Debug)]
pub struct Pass {
    gate: Gate,
    epoch: u64,
}

impl Gate {
    /// An open gate before an upstream of which nothing is known yet.
    pub fn new(clock: Clock) -> Self {
        Self(Arc::new(Inner { clock, state: Mutex::default(), changed: Notify::new() }))
    }

    /// Waits until a connection may be opened.
    pub async fn pass(&self) -> Pass {
        loop {
            let changed = self.0.changed.notified();
            let wait = {
                let mut state = self.state();
                let most = if state.proven { OPENING_MAX } else { 1 };
                match &state.closed {
                    Some(closed) if closed.deadline > Instant::now() => Some(closed.deadline),
                    _ if state.opening < most => {
                        state.opening += 1;
                        return Pass { gate: self.clone(), epoch: state.epoch };
                    }
                    _ => None,
                }
            };
            match wait {
                Some(deadline) => {
                    let _ = tokio::time::timeout_at(deadline, changed).await;
                }
                None => changed.await,
            }
        }
    }

    /// Why it is closed, if it is.
    pub fn closed(&self) -> Option<Closed> {
        self.state().closed.clone()
    }

    /// Closes it although a connection stands: what the upstream said there concerns all of them.
    /// Returns when a probe will be let through.
    pub fn close(&self, waits: Waits, evidence: Evidence) -> Timestamp {
        let mut state = self.state();
        // Connections being opened at this moment must not open it again by succeeding.
        state.epoch += 1;
        self.close_in(state, waits, evidence, true)
    }

    /// Whether it was closed for all connections, those that stand among them.
    pub fn stops_all(&self) -> bool {
        let state = self.state();
        state.closed.as_ref().is_some_and(|closed| closed.everything && closed.deadline > Instant::now())
    }

    fn close_in(
        &self,
        mut state: MutexGuard<'_, State>,
        waits: Waits,
        evidence: Evidence,
        everything: bool,
    ) -> Timestamp {
        // Two connections may have been under way; together they are one failure.
        if let Some(closed) = &mut state.closed
            && closed.deadline > Instant::now()
        {
            closed.everything |= everything;
            return closed.until;
        }
        state.failures += 1;
        state.proven = false;
        let now = self.0.clock.now();
        // Where the upstream said when, asking earlier only makes it longer.
        let told = evidence.not_before().map_or(Duration::ZERO, |at| at.since(now));
        let wait =
            retry::wait(waits, state.failures, fastrand::f64()).max(told).max(Duration::from_millis(100));
        let until = now.after(wait);
        state.closed = Some(Closed { evidence, until, deadline: Instant::now() + wait, everything });
        until
    }

    /// Opens it at once: settings changed, or the operator wants a try.
    pub fn reset(&self) {
        let mut state = self.state();
        let epoch = state.epoch + 1;
        *state = State { opening: state.opening, epoch, ..State::default() };
        drop(state);
        self.0.changed.notify_waiters();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pass {
    /// The connection stands: the gate is open. Returns whether it had been closed.
    pub fn succeeded(self) -> bool {
        let mut state = self.gate.state();
        if state.epoch != self.epoch {
            return false;
        }
        state.proven = true;
        state.failures = 0;
        state.closed.take().is_some()
    }

    /// It failed: the gate closes for a while that grows with each failure in a row.
    /// Returns when a probe will be let through.
    pub fn failed(self, waits: Waits, evidence: Evidence) -> Timestamp {
        let state = self.gate.state();
        if state.epoch != self.epoch {
            return self.gate.0.clock.now();
        }
        self.gate.close_in(state, waits, evidence, false)
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        let mut state = self.gate.state();
        state.opening = state.opening.saturating_sub(1);
        drop(state);
        self.gate.0.changed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mail::outcome::Scope;

    const WAITS: Waits = Waits { first: Duration::from_secs(60), longest: Duration::from_secs(1_800) };

    fn evidence() -> Evidence {
        Evidence {
            at: Timestamp(0),
            upstream: "up".into(),
            phase: "AUTH".into(),
            scope: Scope::Credential,
            reply: None,
            explanation: None,
            status: None,
            advice: None,
            uncertain: false,
            tls: None,
        }
    }

    async fn is_open(gate: &Gate) -> Option<Pass> {
        tokio::time::timeout(Duration::from_millis(1), gate.pass()).await.ok()
    }

    #[tokio::test(start_paused = true)]
    async fn one_connection_is_opened_until_one_has_succeeded() {
        let gate = Gate::new(Clock::System);
        let first = gate.pass().await;
        assert!(is_open(&gate).await.is_none());
        first.succeeded();
        let _second = gate.pass().await;
        let _third = gate.pass().await;
        assert!(is_open(&gate).await.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_refused_login_is_tried_at_most_three_times_in_ninety_seconds() {
        let gate = Gate::new(Clock::System);
        gate.pass().await.succeeded();
        let start = Instant::now();
        let mut attempts = Vec::new();
        let two = [gate.pass().await, gate.pass().await];
        for pass in two {
            attempts.push(start.elapsed());
            pass.failed(WAITS, evidence());
        }
        for _ in 0..20 {
            let pass = gate.pass().await;
            attempts.push(start.elapsed());
            pass.failed(WAITS, evidence());
        }
        for (i, first) in attempts.iter().enumerate() {
            let within = attempts[i..].iter().filter(|t| **t - *first <= Duration::from_secs(90)).count();
            assert!(within <= 3, "{attempts:?}");
        }
        let last = attempts[attempts.len() - 1] - attempts[attempts.len() - 2];
        assert!(last >= Duration::from_secs(1_440) && last <= Duration::from_secs(2_160));
    }

    #[tokio::test(start_paused = true)]
    async fn a_reset_opens_it_at_once_and_what_began_before_can_not_close_it() {
        let gate = Gate::new(Clock::System);
        gate.pass().await.failed(WAITS, evidence());
        assert!(gate.closed().is_some());
        gate.reset();
        assert!(gate.closed().is_none());
        let before = gate.pass().await;
        gate.reset();
        before.failed(WAITS, evidence());
        assert!(is_open(&gate).await.is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn closed_for_all_it_is_not_opened_by_a_connection_begun_before() {
        let gate = Gate::new(Clock::System);
        gate.pass().await.succeeded();
        let begun = gate.pass().await;
        gate.close(WAITS, evidence());
        assert!(!begun.succeeded());
        assert!(gate.stops_all() && is_open(&gate).await.is_none());
        assert!(gate.pass().await.succeeded());
        assert!(!gate.stops_all());
    }

    #[tokio::test(start_paused = true)]
    async fn the_closed_gate_lets_one_probe_through() {
        let gate = Gate::new(Clock::System);
        gate.pass().await.failed(WAITS, evidence());
        let start = Instant::now();
        let probe = gate.pass().await;
        assert!(start.elapsed() >= Duration::from_secs(48));
        assert!(is_open(&gate).await.is_none());
        assert!(probe.succeeded());
        assert!(is_open(&gate).await.is_some());
    }
}
