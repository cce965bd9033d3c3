//! The gate before an upstream: may a new connection be opened now?
//!
//! A refused login repeated by every queued message locks the account; an upstream that comes back
//! and meets a thousand connections goes down again. So connections are opened through the gate:
//! one at a time until one has succeeded, then two at a time; none while it is closed after a
//! failure. It opens again by itself after a growing, jittered wait to let one probe through, or at
//! once when the operator says so. Connections already open go on working meanwhile.
//!
//! Refused logins and pauses of the account survive a restart, so that restarts in a loop neither lock the
//! account nor go on knocking where the upstream has said when to come again.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::{sync::Notify, time::Instant};

use super::kept::Kept;
use crate::{
    clock::{Clock, Timestamp},
    config::Waits,
    mail::outcome::{Evidence, Scope},
    queue::retry,
};

/// Connections being opened at once, once one has succeeded; only one where a login is tried twice. Together
/// with one probe after the first wait this bounds a wrong password to three attempts in the first minute and a
/// half.
const OPENING_MAX: usize = 2;

/// Logins of which nothing good is known, within one and a half of the first wait: 90 s by default.
const LOGINS_MAX: usize = 3;

/// What a gate remembers over a restart, and for which login that holds.
#[derive(Clone, Debug, Default)]
pub struct Memory {
    /// Where.
    pub kept: Kept,
    /// Tells one login from another; a changed one is tried at once.
    pub mark: u16,
    /// The first wait after a refused login; `None`: there is no login that could be refused.
    pub first: Option<Duration>,
    /// A login may be tried a second time within one pass, as one by an access token is with another token.
    pub twice: bool,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Remembered {
    mark: u16,
    /// Logins since the last that succeeded: those under way, and those refused.
    logins: Vec<Timestamp>,
    failures: u32,
    #[serde(default)]
    pauses: u32,
    /// The last answer to this login was yes.
    #[serde(default)]
    good: bool,
    /// Why it is closed, and when a probe may be let through.
    closed: Option<(Evidence, Timestamp)>,
}

/// Whether a restart changes nothing about it: what was said of the login or the account, and whatever the
/// upstream itself gave a time to. An upstream that was not there may be back.
fn survives(evidence: &Evidence) -> bool {
    matches!(evidence.scope, Scope::Credential | Scope::Account) || evidence.not_before().is_some()
}

/// The gate. Clones share it.
#[derive(Clone, Debug)]
pub struct Gate(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    clock: Clock,
    memory: Mutex<Memory>,
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
    /// Times that it was closed for all since the last message that was delivered: each of them behind a
    /// connection that stood, which was no sign of a better day.
    pauses: u32,
    closed: Option<Closed>,
    /// Logins since the last that succeeded, at most the last few.
    logins: Vec<Timestamp>,
    /// The last answer to the login was yes, be it before a restart: one that is cut short is then no
    /// sign of a wrong password.
    good: bool,
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
        Self::remembering(Memory::default(), clock)
    }

    /// A gate that keeps refused logins and pauses in `memory`, and begins with what is there.
    pub fn remembering(memory: Memory, clock: Clock) -> Self {
        let Remembered { mark, logins, failures, pauses, good, closed } = memory.kept.read();
        let mut state = State::default();
        if mark == memory.mark {
            let now = clock.now();
            state.logins = logins;
            state.failures = failures;
            state.pauses = pauses;
            state.good = good;
            state.closed = closed.filter(|(_, until)| *until > now).map(|(evidence, until)| {
                // A clock that was set back must not keep it closed for longer than it was meant.
                let wait = until.since(now).min(until.since(evidence.at));
                Closed {
                    evidence,
                    until: now.after(wait),
                    deadline: Instant::now() + wait,
                    everything: false,
                }
            });
        }
        let (memory, state) = (Mutex::new(memory), Mutex::new(state));
        Self(Arc::new(Inner { clock, memory, state, changed: Notify::new() }))
    }

    /// Waits until a connection may be opened.
    pub async fn pass(&self) -> Pass {
        loop {
            let changed = self.0.changed.notified();
            let wait = {
                let mut state = self.state();
                let one = !state.proven || state.pauses > 0 || self.memory().twice;
                let most = if one { 1 } else { OPENING_MAX };
                match &state.closed {
                    Some(closed) if closed.deadline > Instant::now() => Some(closed.deadline),
                    _ if state.opening < most => match self.too_many_logins(&state) {
                        Some(deadline) => Some(deadline),
                        None => {
                            state.opening += 1;
                            return Pass { gate: self.clone(), epoch: state.epoch };
                        }
                    },
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

    /// Until when no login may be tried, whatever became of those before: a relay that dies with each
    /// never hears that it was refused.
    fn too_many_logins(&self, state: &State) -> Option<Instant> {
        let window = self.memory().first?.mul_f64(1.5);
        let now = self.0.clock.now();
        // One that lies further ahead is from before the clock was set back.
        let mut known = state.logins.iter().rev().filter(|login| login.since(now) <= window);
        let left = window.checked_sub(now.since(*known.nth(LOGINS_MAX - 1)?))?;
        Some(Instant::now() + left + Duration::from_millis(1))
    }

    fn remember(&self, state: &State) {
        let closed = state.closed.as_ref().filter(|closed| survives(&closed.evidence));
        let memory = self.memory();
        memory.kept.write(&Remembered {
            mark: memory.mark,
            logins: state.logins.clone(),
            good: state.good,
            failures: if closed.is_some() { state.failures } else { 0 },
            pauses: state.pauses,
            closed: closed.map(|closed| (closed.evidence.clone(), closed.until)),
        });
    }

    /// Why it is closed, if it is.
    pub fn closed(&self) -> Option<Closed> {
        self.state().closed.clone()
    }

    /// Connections being opened.
    pub fn opening(&self) -> usize {
        self.state().opening
    }

    /// Closes it although a connection stands: what the upstream said there concerns all of them.
    /// Returns when a probe will be let through.
    pub fn close(&self, waits: Waits, evidence: Evidence) -> Timestamp {
        let mut state = self.state();
        // Connections being opened at this moment must not open it again by succeeding.
        state.epoch += 1;
        self.close_in(state, waits, evidence, true)
    }

    /// Whether one connection is enough for now: it was closed for all, and no message was delivered since.
    pub fn is_on_trial(&self) -> bool {
        self.state().pauses > 0
    }

    /// A message was delivered. Returns whether that ends a trial.
    pub fn delivered(&self) -> bool {
        let mut state = self.state();
        // One that was under way when it was closed is no sign that it was closed in vain.
        let ends = state.pauses > 0 && state.closed.is_none();
        if ends {
            state.pauses = 0;
            self.remember(&state);
            drop(state);
            self.0.changed.notify_waiters();
        }
        ends
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
        let times = if everything { &mut state.pauses } else { &mut state.failures };
        *times = times.saturating_add(1);
        let times = *times;
        state.proven = false;
        let now = self.0.clock.now();
        // Where the upstream said when, asking earlier only makes it longer.
        let told = evidence.not_before().map_or(Duration::ZERO, |at| at.since(now));
        let wait = retry::wait(waits, times, fastrand::f64()).max(told).max(Duration::from_millis(100));
        let until = now.after(wait);
        if evidence.scope != Scope::Credential {
            // It did not come to a login, or that was not refused.
            state.logins.pop();
        } else if std::mem::take(&mut state.good) {
            state.logins.push(now);
        }
        state.closed = Some(Closed { evidence, until, deadline: Instant::now() + wait, everything });
        self.remember(&state);
        until
    }

    /// Opens it at once: settings changed, or the operator wants a try.
    pub fn reset(&self) {
        let mut state = self.state();
        let epoch = state.epoch + 1;
        *state = State { opening: state.opening, epoch, ..State::default() };
        self.remember(&state);
        drop(state);
        self.0.changed.notify_waiters();
    }

    /// Opens it at once for what may be another login.
    pub fn change(&self, memory: Memory) {
        *self.memory() = memory;
        self.reset();
    }

    /// Locked behind the state, where both are.
    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.0.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pass {
    /// It is made use of now; false if the gate has closed since it was given, and then it may not be. A login of
    /// which nothing good is known yet is written down before it is tried, so that no death can make it unknown.
    pub fn begin(&self) -> bool {
        let mut state = self.gate.state();
        if state.closed.as_ref().is_some_and(|closed| closed.deadline > Instant::now()) {
            return false;
        }
        let login = self.gate.memory().first.is_some();
        if !login || state.proven || state.good || state.epoch != self.epoch {
            return true;
        }
        if state.logins.len() >= LOGINS_MAX {
            state.logins.remove(0);
        }
        state.logins.push(self.gate.0.clock.now());
        self.gate.remember(&state);
        true
    }

    /// The connection stands: the gate is open. Returns whether it had been closed.
    pub fn succeeded(self) -> bool {
        let mut state = self.gate.state();
        if state.epoch != self.epoch {
            return false;
        }
        state.proven = true;
        state.failures = 0;
        let was_closed = state.closed.take().is_some();
        if was_closed || !state.good || !state.logins.is_empty() {
            state.good = true;
            state.logins.clear();
            self.gate.remember(&state);
        }
        was_closed
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
    use crate::mail::outcome::{Advice, Who};

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
    async fn a_login_that_is_tried_with_two_tokens_is_tried_at_most_three_times_in_ninety_seconds() {
        let memory = Memory { twice: true, first: Some(Duration::from_secs(60)), ..Memory::default() };
        let gate = Gate::remembering(memory, Clock::System);
        gate.pass().await.succeeded();
        let start = Instant::now();
        // The token at hand and another one; then only fresh ones, for what was refused is forgotten.
        let mut attempts = vec![start.elapsed(); 2];
        let first = gate.pass().await;
        assert!(is_open(&gate).await.is_none(), "one at a time");
        first.failed(WAITS, evidence());
        for _ in 0..20 {
            let pass = gate.pass().await;
            attempts.push(start.elapsed());
            pass.failed(WAITS, evidence());
        }
        for (i, first) in attempts.iter().enumerate() {
            let within = attempts[i..].iter().filter(|t| **t - *first <= Duration::from_secs(90)).count();
            assert!(within <= 3, "{attempts:?}");
        }
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
    async fn waits_grow_while_connections_stand_and_nothing_is_delivered() {
        let home = tempfile::TempDir::new().unwrap();
        let clock = Clock::starting_at(Timestamp(1_000_000_000));
        let gate = || {
            let kept = Kept::at(home.path().join("gate.json"));
            Gate::remembering(Memory { kept, ..Memory::default() }, clock.clone())
        };
        let mut open = gate();
        let mut waits = Vec::new();
        for round in 0..7 {
            assert!(open.pass().await.succeeded() || round == 0);
            assert_eq!(open.is_on_trial(), round > 0);
            waits.push(open.close(WAITS, evidence()).since(clock.now()).as_secs());
            assert!(!open.delivered(), "it was under way");
            if round == 3 {
                open = gate();
            }
        }
        let least = [48, 96, 192, 384, 768, 1_440, 1_440];
        assert!(waits.iter().zip(least).all(|(wait, least)| *wait >= least), "{waits:?}");
        open.pass().await.succeeded();
        let _one = open.pass().await;
        assert!(is_open(&open).await.is_none(), "one is enough to find out");
        assert!(open.delivered() && !open.is_on_trial() && !open.delivered());
        assert!(is_open(&open).await.is_some());
        let wait = open.close(WAITS, evidence()).since(clock.now());
        assert!(wait <= Duration::from_secs(72), "{wait:?}");
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
    async fn a_pass_from_before_the_gate_closed_is_good_for_nothing() {
        let gate = Gate::new(Clock::System);
        gate.pass().await.succeeded();
        let (kept, used) = (gate.pass().await, gate.pass().await);
        assert!(used.begin());
        used.failed(WAITS, evidence());
        assert!(!kept.begin());
        drop(kept);
        assert!(gate.pass().await.begin(), "its wait is over");
    }

    #[tokio::test(start_paused = true)]
    async fn restarts_in_a_loop_try_a_login_no_more_often() {
        let home = tempfile::TempDir::new().unwrap();
        let clock = Clock::starting_at(Timestamp(1_000_000_000));
        let memory = |mark| {
            let kept = Kept::at(home.path().join("gate.json"));
            Memory { kept, mark, first: Some(Duration::from_secs(60)), twice: false }
        };
        // Dead before it is known what became of each.
        let mut tried = 0;
        for _ in 0..20 {
            let gate = Gate::remembering(memory(7), clock.clone());
            if let Some(pass) = is_open(&gate).await {
                assert!(pass.begin());
                tried += 1;
            }
            tokio::time::sleep(Duration::from_secs(4)).await;
        }
        assert_eq!(tried, LOGINS_MAX);
        // One that had worked before is not: what cut it short was no refusal.
        let gate = Gate::remembering(memory(10), clock.clone());
        gate.pass().await.succeeded();
        for _ in 0..2 * LOGINS_MAX {
            let gate = Gate::remembering(memory(10), clock.clone());
            assert!(is_open(&gate).await.expect("it was good").begin());
        }
        // Another login is another matter.
        assert!(is_open(&Gate::remembering(memory(8), clock.clone())).await.is_some());

        let gate = Gate::remembering(memory(9), clock.clone());
        gate.pass().await.failed(WAITS, evidence());
        let again = Gate::remembering(memory(9), clock.clone());
        assert!(again.closed().is_some_and(|closed| closed.until > clock.now()));
        assert!(is_open(&again).await.is_none());
        again.reset();
        let again = Gate::remembering(memory(9), clock);
        assert!(again.pass().await.succeeded() || again.closed().is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn logins_from_before_the_clock_was_set_back_are_in_nobody_s_way() {
        let home = tempfile::TempDir::new().unwrap();
        let gate = |clock: &Clock| {
            let kept = Kept::at(home.path().join("gate.json"));
            let memory = Memory { kept, first: Some(Duration::from_secs(60)), ..Memory::default() };
            Gate::remembering(memory, clock.clone())
        };
        let [later, earlier] = [1_000_000_000, 900_000_000].map(|time| Clock::starting_at(Timestamp(time)));
        for clock in [later, earlier] {
            for _ in 0..LOGINS_MAX {
                assert!(is_open(&gate(&clock)).await.expect("it may be tried").begin());
            }
            assert!(is_open(&gate(&clock)).await.is_none());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_pause_of_the_account_survives_a_restart_and_an_upstream_that_is_down_is_asked_at_once() {
        let home = tempfile::TempDir::new().unwrap();
        let clock = Clock::starting_at(Timestamp(1_000_000_000));
        let gate = |mark| {
            let kept = Kept::at(home.path().join("gate.json"));
            Gate::remembering(Memory { kept, mark, ..Memory::default() }, clock.clone())
        };
        let seen = |scope, told: Option<u64>| {
            let not_before = told.map(|seconds| clock.now().after(Duration::from_secs(seconds)));
            let advice = Advice { who: Who::Nobody, help: None, not_before, tries: None, slower: None };
            Evidence { at: clock.now(), scope, advice: Some(Box::new(advice)), ..evidence() }
        };
        // Of the account, and with a time: it lasts as long as it was meant, however often it starts.
        let until = gate(1).close(WAITS, seen(Scope::Account, Some(3_600)));
        for _ in 0..20 {
            tokio::time::sleep(Duration::from_secs(60)).await;
            assert_eq!(gate(1).closed().unwrap().until.since(until), Duration::ZERO);
            assert!(is_open(&gate(1)).await.is_none());
        }
        // Another login is another account, and an operator's word ends it for good.
        assert!(is_open(&gate(2)).await.is_some());
        gate(1).reset();
        assert!(is_open(&gate(1)).await.is_some());

        gate(1).close(WAITS, seen(Scope::Upstream, Some(300)));
        assert!(is_open(&gate(1)).await.is_none());
        tokio::time::sleep(Duration::from_secs(300)).await;
        assert!(is_open(&gate(1)).await.is_some(), "its time is over");
        gate(1).pass().await.failed(WAITS, seen(Scope::Network, None));
        assert!(is_open(&gate(1)).await.is_some(), "it may be back");
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
