//! The breaker on refusals: good mail must not bounce because the account is in trouble.
//!
//! An upstream that refuses everything for good does not mean each message; it means us. So after a
//! number of permanent refusals of distinct messages in a row, without a success, nothing bounces any
//! more: the rest is held, and somebody must look. A sender whose address is refused is stopped at
//! once, and alone; other senders go on.
//!
//! While it is open one message is let through now and then, as a probe, with growing waits. A probe
//! that passes closes it; one that is refused is held like the others. An operator's word closes it
//! too. What it knows survives a restart, so that restarts in a loop do not bounce a few more each.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::{
    sync::{Notify, futures::Notified},
    time::Instant,
};

use super::kept::Kept;
use crate::{
    clock::{Clock, Timestamp},
    config::Waits,
    mail::outcome::Evidence,
    queue::retry,
};

/// What the reason of mail that was stopped by any breaker begins with.
pub const HELD: &str = "stopped by the breaker for refusals of ";
/// A probe that was not heard of for so long is none any more: somebody has deleted it.
const PROBE_MAX: Duration = Duration::from_secs(1_800);
/// Senders that are stopped each by itself; behind them all are.
const SENDERS_MAX: usize = 1_000;

/// The breaker. Clones share it.
#[derive(Clone, Debug)]
pub struct Breaker(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// The upstream's name.
    of: String,
    clock: Clock,
    kept: Kept,
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct State {
    /// Messages that were refused for good since the last success; no more than may bounce.
    #[serde(default)]
    refused: Vec<String>,
    /// Why nothing goes out.
    #[serde(default)]
    all: Option<Open>,
    /// Why a sender's mail doesn't, by reverse-path.
    #[serde(default)]
    senders: BTreeMap<String, Open>,
    /// Whose own limit at the upstream is used up, by reverse-path, until the time that it gave.
    #[serde(default)]
    paused: BTreeMap<String, Evidence>,
}

impl State {
    fn forget_probe(&mut self, id: &str) {
        for open in self.all.iter_mut().chain(self.senders.values_mut()) {
            if open.probe.as_ref().is_some_and(|(probe, _)| probe == id) {
                open.probe = None;
            }
        }
    }
}

/// Why mail is stopped, and when one is let through again.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Open {
    /// The refusal that opened it.
    pub evidence: Evidence,
    /// When a probe will be let through.
    pub until: Timestamp,
    /// How far ahead that was when it was said.
    #[serde(default)]
    meant: Duration,
    /// Probes that were refused.
    failures: u32,
    /// The message that is the probe at this moment, and since when.
    #[serde(skip)]
    probe: Option<(String, Instant)>,
}

impl Open {
    fn new(evidence: &Evidence, waits: Waits, now: Timestamp) -> Self {
        let mut open =
            Self { evidence: evidence.clone(), until: now, meant: Duration::ZERO, failures: 0, probe: None };
        open.wait(waits, now);
        open
    }

    /// Another was refused. Those that were under way when it opened are no probes.
    fn refused(&mut self, waits: Waits, now: Timestamp) {
        if self.is_over(now) {
            self.wait(waits, now);
        }
    }

    fn wait(&mut self, waits: Waits, now: Timestamp) {
        self.failures += 1;
        self.probe = None;
        self.meant = retry::wait(waits, self.failures, fastrand::f64());
        self.until = now.after(self.meant);
    }

    /// Whether its time is over. A clock that was set back makes it no longer than it was meant.
    fn is_over(&self, now: Timestamp) -> bool {
        self.until <= now || self.until.since(now) > self.meant
    }

    /// Whether a message may go as a probe now, and none is under way.
    pub fn wants_probe(&self, now: Timestamp) -> bool {
        let under_way = self.probe.as_ref().is_some_and(|(_, since)| since.elapsed() < PROBE_MAX);
        self.is_over(now) && !under_way
    }

    /// Whether this message may go: it is the probe, or becomes it.
    fn lets_through(&mut self, id: &str, now: Timestamp) -> bool {
        if self.wants_probe(now) {
            self.probe = Some((id.to_owned(), Instant::now()));
        }
        self.probe.as_ref().is_some_and(|(probe, _)| probe == id)
    }
}

/// What becomes of a message that was refused for good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refused {
    /// Its sender is told.
    Bounce,
    /// It is kept, for this reason.
    Hold(String),
}

/// Mail that is stopped, as people see it.
#[derive(Clone, Debug)]
pub struct Stopped {
    /// Why, and until when.
    pub open: Open,
    /// Whose mail; `None`: everybody's.
    pub sender: Option<String>,
}

impl Breaker {
    /// A breaker before the upstream of that name, which remembers what was `kept`.
    pub fn new(of: &str, kept: Kept, clock: Clock) -> Self {
        let state = Mutex::new(kept.read());
        Self(Arc::new(Inner { of: of.to_owned(), clock, kept, state, changed: Notify::new() }))
    }

    /// What the reason of mail that was stopped here begins with.
    pub fn held(&self) -> String {
        format!("{HELD}{}: ", self.0.of)
    }

    fn reason(&self, evidence: &Evidence) -> String {
        self.held() + &evidence.to_string()
    }

    /// Why this message may not be tried now; `None`: it may.
    pub fn stops(&self, id: &str, sender: &str) -> Option<String> {
        let now = self.0.clock.now();
        let mut state = self.state();
        let state = &mut *state;
        let open = [state.all.as_mut(), state.senders.get_mut(sender)].into_iter().flatten();
        // Each has its say, so that one probe answers both.
        let mut stopped = None;
        for open in open {
            if !open.lets_through(id, now) {
                stopped = stopped.or_else(|| Some(self.reason(&open.evidence)));
            }
        }
        if stopped.is_some() {
            // It is held, and so no probe of the other either, which may have let it through.
            state.forget_probe(id);
        }
        stopped
    }

    /// A message was refused for good by the upstream, and nobody of it was served.
    pub fn refused(&self, most: usize, waits: Waits, id: &str, evidence: &Evidence) -> Refused {
        let now = self.0.clock.now();
        let mut state = self.state();
        let counted = state.refused.iter().any(|other| other == id);
        if state.all.is_none() && (counted || state.refused.len() < most) {
            if !counted {
                state.refused.push(id.to_owned());
                self.0.kept.write(&*state);
            }
            return Refused::Bounce;
        }
        self.open_all(state, waits, evidence, now);
        Refused::Hold(self.reason(evidence))
    }

    /// The upstream does not take mail from this sender.
    pub fn sender_refused(&self, waits: Waits, sender: &str, evidence: &Evidence) -> String {
        let now = self.0.clock.now();
        let mut state = self.state();
        if let Some(open) = state.senders.get_mut(sender) {
            open.refused(waits, now);
        } else if state.senders.len() < SENDERS_MAX {
            tracing::error!(sender, "mail from this sender is held until somebody acts: {evidence}");
            state.senders.insert(sender.to_owned(), Open::new(evidence, waits, now));
        } else {
            self.open_all(state, waits, evidence, now);
            return self.reason(evidence);
        }
        self.changed(state);
        self.reason(evidence)
    }

    /// The upstream takes no mail from this sender before a time that it gave. Nothing is held for that.
    pub fn sender_paused(&self, sender: &str, evidence: &Evidence) {
        let now = self.0.clock.now();
        let mut state = self.state();
        state.paused.retain(|_, evidence| is_paused(evidence, now));
        if state.paused.len() < SENDERS_MAX {
            state.paused.insert(sender.to_owned(), evidence.clone());
            self.changed(state);
        }
    }

    /// Why this sender's mail waits, as it was said; `None`: it need not.
    pub fn pause_of(&self, sender: &str) -> Option<Evidence> {
        let now = self.0.clock.now();
        let state = self.state();
        state.paused.get(sender).filter(|evidence| is_paused(evidence, now)).cloned()
    }

    fn open_all(&self, mut state: MutexGuard<'_, State>, waits: Waits, evidence: &Evidence, now: Timestamp) {
        match &mut state.all {
            Some(open) => open.refused(waits, now),
            None => {
                tracing::error!(
                    refused = state.refused.len(),
                    "message after message is refused for good: nothing more bounces, all mail is held until \
                     somebody acts: {evidence}"
                );
                state.all = Some(Open::new(evidence, waits, now));
            }
        }
        self.changed(state);
    }

    /// Somebody got mail from this sender. Returns whether that closed it, so that what it held is free.
    pub fn succeeded(&self, sender: &str) -> bool {
        let mut state = self.state();
        let was_open = state.all.take().is_some() | state.senders.remove(sender).is_some();
        if state.paused.remove(sender).is_some() | was_open || !state.refused.is_empty() {
            state.refused.clear();
            self.changed(state);
        }
        was_open
    }

    /// A probe said neither yes nor no; the next message may be one.
    pub fn undecided(&self, id: &str) {
        self.state().forget_probe(id);
    }

    /// Closes it: settings changed, or the operator wants a try.
    pub fn reset(&self) {
        let mut state = self.state();
        *state = State::default();
        self.changed(state);
    }

    /// What is stopped: everything first, then senders.
    pub fn stopped(&self) -> Vec<Stopped> {
        let state = self.state();
        let all = state.all.iter().map(|open| Stopped { open: open.clone(), sender: None });
        let senders = state.senders.iter();
        all.chain(senders.map(|(sender, open)| Stopped { open: open.clone(), sender: Some(sender.clone()) }))
            .collect()
    }

    /// Waits until something changes from now on, that is since this was called.
    pub fn changed_once(&self) -> Notified<'_> {
        self.0.changed.notified()
    }

    fn changed(&self, state: MutexGuard<'_, State>) {
        self.0.kept.write(&*state);
        drop(state);
        self.0.changed.notify_waiters();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether that time is still to come. A clock that was set back makes it no longer than it was meant.
fn is_paused(evidence: &Evidence, now: Timestamp) -> bool {
    let left = evidence.not_before().map_or(Duration::ZERO, |until| until.since(now));
    let meant = evidence.not_before().map_or(Duration::ZERO, |until| until.since(evidence.at));
    left > Duration::ZERO && left <= meant
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mail::outcome::{Advice, Scope, Who};

    const WAITS: Waits = Waits { first: Duration::from_secs(60), longest: Duration::from_secs(3_600) };

    fn evidence() -> Evidence {
        Evidence {
            at: Timestamp(0),
            upstream: "up".into(),
            phase: "MAIL".into(),
            scope: Scope::Message,
            reply: None,
            explanation: Some("no".into()),
            status: None,
            advice: None,
            uncertain: false,
            tls: None,
        }
    }

    fn breaker(kept: &Kept) -> Breaker {
        Breaker::new("up", kept.clone(), Clock::starting_at(Timestamp(1_000_000)))
    }

    fn bounces(breaker: &Breaker, most: usize, ids: std::ops::Range<u32>) -> usize {
        let refuse = |id: u32| breaker.refused(most, WAITS, &id.to_string(), &evidence());
        ids.map(refuse).filter(|refused| *refused == Refused::Bounce).count()
    }

    #[tokio::test(start_paused = true)]
    async fn no_more_bounce_than_may_and_a_success_starts_anew() {
        let breaker = breaker(&Kept::default());
        assert_eq!(bounces(&breaker, 10, 0..10), 10);
        assert!(breaker.stops("x", "a@b").is_none(), "ten may");
        assert!(!breaker.succeeded("a@b"));
        assert_eq!(bounces(&breaker, 10, 10..40), 10);
        assert!(breaker.stops("x", "a@b").is_some_and(|reason| reason.starts_with(HELD)));
    }

    #[tokio::test(start_paused = true)]
    async fn the_same_message_again_counts_once() {
        let breaker = breaker(&Kept::default());
        for _ in 0..5 {
            assert_eq!(bounces(&breaker, 2, 1..2), 1);
        }
        assert_eq!(bounces(&breaker, 2, 2..9), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn one_probe_at_a_time_goes_through_and_closes_it() {
        let breaker = breaker(&Kept::default());
        bounces(&breaker, 1, 0..5);
        assert!(breaker.stops("a", "s").is_some());
        tokio::time::sleep(Duration::from_secs(73)).await;
        assert!(breaker.stops("a", "s").is_none() && breaker.stops("b", "s").is_some());
        // Refused, it is held, and the wait grows.
        assert_eq!(bounces(&breaker, 1, 7..8), 0);
        tokio::time::sleep(Duration::from_secs(73)).await;
        assert!(breaker.stops("a", "s").is_some());
        tokio::time::sleep(Duration::from_secs(73)).await;
        assert!(breaker.stops("b", "s").is_none());
        // Neither yes nor no: another may try.
        breaker.undecided("b");
        assert!(breaker.stops("c", "s").is_none());
        assert!(breaker.succeeded("s"), "what is held is free");
        assert!(breaker.stops("d", "s").is_none() && breaker.stopped().is_empty());
        assert!(!breaker.succeeded("s"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_refused_sender_is_stopped_alone() {
        let breaker = breaker(&Kept::default());
        breaker.sender_refused(WAITS, "bad@x", &evidence());
        assert!(breaker.stops("1", "bad@x").is_some() && breaker.stops("1", "good@x").is_none());
        assert!(!breaker.succeeded("good@x"));
        assert!(breaker.stops("1", "bad@x").is_some());
        assert!(breaker.succeeded("bad@x"));
        assert!(breaker.stops("1", "bad@x").is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_held_for_its_sender_is_no_probe_for_all() {
        let breaker = breaker(&Kept::default());
        bounces(&breaker, 1, 0..2);
        tokio::time::sleep(Duration::from_secs(73)).await;
        breaker.sender_refused(WAITS, "bad@x", &evidence());
        assert!(breaker.stops("1", "bad@x").is_some());
        assert!(breaker.stops("2", "good@x").is_none(), "another may be the probe");
    }

    #[tokio::test(start_paused = true)]
    async fn a_sender_whose_limit_is_used_up_waits_until_its_time_also_over_a_restart() {
        let home = tempfile::TempDir::new().unwrap();
        let clock = Clock::starting_at(Timestamp(1_000_000));
        let breaker = || Breaker::new("up", Kept::at(home.path().join("breaker.json")), clock.clone());
        let until = clock.now().after(Duration::from_secs(60));
        let advice =
            Advice { who: Who::Nobody, help: None, not_before: Some(until), tries: None, slower: None };
        let evidence = Evidence { at: clock.now(), advice: Some(Box::new(advice)), ..evidence() };
        breaker().sender_paused("busy@x", &evidence);
        tokio::time::sleep(Duration::from_secs(20)).await;
        let told = breaker().pause_of("busy@x").expect("it waits");
        assert_eq!((told.not_before(), told.at), (Some(until), evidence.at));
        assert!(breaker().pause_of("other@x").is_none() && breaker().stops("1", "busy@x").is_none());
        tokio::time::sleep(Duration::from_secs(41)).await;
        assert!(breaker().pause_of("busy@x").is_none());
        breaker().sender_paused("busy@x", &Evidence { at: Timestamp(0), ..evidence.clone() });
        breaker().reset();
        assert!(breaker().pause_of("busy@x").is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_clock_that_was_set_back_makes_no_wait_for_a_probe_longer() {
        let home = tempfile::TempDir::new().unwrap();
        let kept = Kept::at(home.path().join("breaker.json"));
        let at = |time| Breaker::new("up", kept.clone(), Clock::starting_at(Timestamp(time)));
        bounces(&at(1_000_000_000), 1, 0..2);
        assert!(at(1_000_000_000).stops("a", "s").is_some());
        let back = at(900_000_000);
        assert!(back.stops("a", "s").is_none() && back.stops("b", "s").is_some());
        // Refused, the next waits by the clock of now.
        assert_eq!(bounces(&back, 1, 7..8), 0);
        tokio::time::sleep(Duration::from_secs(73)).await;
        assert!(back.stops("b", "s").is_some());
        tokio::time::sleep(Duration::from_secs(73)).await;
        assert!(back.stops("b", "s").is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_restart_forgets_nothing() {
        let home = tempfile::TempDir::new().unwrap();
        let kept = Kept::at(home.path().join("breaker.json"));
        assert_eq!(bounces(&breaker(&kept), 10, 0..6), 6);
        assert_eq!(bounces(&breaker(&kept), 10, 6..20), 4);
        let again = breaker(&kept);
        assert!(again.stops("x", "s").is_some());
        again.reset();
        assert!(breaker(&kept).stops("x", "s").is_none());
        std::fs::write(home.path().join("breaker.json"), "{torn").unwrap();
        assert!(breaker(&kept).stopped().is_empty());
    }
}
