//! How fast an upstream takes mail, as far as it has complained: learned, below the limits that are set.
//!
//! After a complaint about the rate, half of it; after one about connections, half of them. Then a little
//! more each minute, until nothing is left of it. What is set (`smtp_rate_limit`, the number of
//! connections) holds beside it and is never exceeded: rolling windows bound what is used in all, and
//! this spreads it, by the generic cell rate algorithm, which knows one time and no history.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::{sync::Notify, time::Instant};

use super::kept::Kept;

/// How early a message may be: timers are no better, and at a high rate each would wait for one.
const TOLERANCE: Duration = Duration::from_millis(100);
/// No complaint makes it slower, in messages a second: one a minute.
const SLOWEST: f64 = 1.0 / 60.0;
/// Each minute adds this share of the rate that was complained about.
const CREEP: f64 = 0.05;
/// Lifted at this multiple of it.
const ENOUGH: f64 = 2.0;
/// One connection more after so long.
const CONNECTION_AFTER: Duration = Duration::from_secs(600);
/// The rate is measured over so many messages at most, none of them older than this.
const MEASURED: usize = 64;
const MEASURED_OVER: Duration = Duration::from_secs(60);

/// The pace of one upstream. Clones share it.
#[derive(Clone, Debug)]
pub struct Pace(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    kept: Kept,
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    rate: Option<Rate>,
    connections: Option<(usize, Instant)>,
    /// When the last messages began.
    begun: VecDeque<Instant>,
}

#[derive(Clone, Copy, Debug)]
struct Rate {
    /// Messages a second, when it was halved last.
    base: f64,
    /// What was complained about.
    complained: f64,
    halved: Instant,
    /// When the next message is due: the theoretical arrival time.
    due: Instant,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Remembered {
    rate: Option<(f64, f64)>,
    connections: Option<usize>,
}

/// What was learned.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Learned {
    /// At most so many messages a second.
    pub rate: Option<f64>,
    /// At most so many connections.
    pub connections: Option<usize>,
}

impl Rate {
    fn now(&self, now: Instant) -> f64 {
        let minutes = now.saturating_duration_since(self.halved).as_secs_f64() / 60.0;
        self.base + self.complained * CREEP * minutes
    }
}

impl Pace {
    /// The pace as it was learned before.
    pub fn remembering(kept: Kept) -> Self {
        let Remembered { rate, connections } = kept.read();
        let now = Instant::now();
        let sane = |rate: f64| rate.is_finite() && rate > 0.0;
        let rate = rate.filter(|(base, complained)| sane(*base) && sane(*complained));
        let rate = rate.map(|(base, complained)| Rate { base, complained, halved: now, due: now });
        let connections = connections.map(|most| (most.max(1), now));
        let state = State { rate, connections, begun: VecDeque::new() };
        Self(Arc::new(Inner { kept, state: Mutex::new(state), changed: Notify::new() }))
    }

    /// Waits until a message may begin.
    pub async fn ready(&self) {
        loop {
            let changed = self.0.changed.notified();
            let Some(at) = self.state().waits(Instant::now()) else { return };
            let _ = tokio::time::timeout_at(at, changed).await;
        }
    }

    /// Whether one may begin now.
    pub fn is_ready(&self) -> bool {
        self.state().waits(Instant::now()).is_none()
    }

    /// Begins one, if it may.
    pub fn begin(&self) -> Option<Instant> {
        let (now, mut state) = (Instant::now(), self.state());
        if state.waits(now).is_some() {
            return None;
        }
        if let Some(rate) = &mut state.rate {
            if rate.now(now) >= rate.complained * ENOUGH {
                state.rate = None;
                self.remember(&state);
            } else {
                rate.due = rate.due.max(now) + Duration::from_secs_f64(1.0 / rate.now(now));
            }
        }
        while state.begun.len() >= MEASURED
            || state.begun.front().is_some_and(|first| now.duration_since(*first) > MEASURED_OVER)
        {
            state.begun.pop_front();
        }
        state.begun.push_back(now);
        Some(now)
    }

    /// The upstream complained about the rate, in answer to a message that began then.
    pub fn slower(&self, begun: Instant) {
        let (now, mut state) = (Instant::now(), self.state());
        // What was under way when the rate was halved says nothing about the new one.
        if state.rate.is_some_and(|rate| begun <= rate.halved) {
            return;
        }
        let measured = state.measured(now);
        let rate = state.rate.map_or(measured, |rate| rate.now(now).min(measured));
        let base = (rate / 2.0).max(SLOWEST);
        let due = now + Duration::from_secs_f64(1.0 / base);
        state.rate = Some(Rate { base, complained: rate.max(SLOWEST), halved: now, due });
        self.remember(&state);
        drop(state);
        self.0.changed.notify_waiters();
    }

    /// The upstream complained about too many connections, in answer to what began then: so many may be
    /// open from now on.
    pub fn fewer(&self, begun: Instant, connections: usize) {
        let mut state = self.state();
        if state.connections.is_some_and(|(_, at)| begun <= at) {
            return;
        }
        state.connections = Some((connections.max(1), Instant::now()));
        self.remember(&state);
    }

    /// How many connections there may be, of so many that are set.
    pub fn connections(&self, set: usize) -> usize {
        let (now, mut state) = (Instant::now(), self.state());
        let most = state.most_connections(now).unwrap_or(set);
        if most >= set && state.connections.take().is_some() {
            self.remember(&state);
        }
        most.min(set)
    }

    /// What holds now, if anything was learned.
    pub fn learned(&self) -> Option<Learned> {
        let (now, state) = (Instant::now(), self.state());
        let rate = state.rate.map(|rate| rate.now(now));
        let connections = state.most_connections(now);
        (rate.is_some() || connections.is_some()).then_some(Learned { rate, connections })
    }

    fn remember(&self, state: &State) {
        let rate = state.rate.map(|rate| (rate.base, rate.complained));
        self.0.kept.write(&Remembered { rate, connections: state.connections.map(|(most, _)| most) });
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Until when a message must wait, if it must.
    fn waits(&self, now: Instant) -> Option<Instant> {
        let rate = self.rate?;
        (rate.due > now + TOLERANCE && rate.now(now) < rate.complained * ENOUGH).then(|| rate.due - TOLERANCE)
    }

    fn measured(&self, now: Instant) -> f64 {
        let begun = self.begun.iter().filter(|at| now.duration_since(**at) <= MEASURED_OVER);
        let (count, first) = (begun.clone().count().max(1), begun.min().copied().unwrap_or(now));
        count as f64 / now.duration_since(first).as_secs_f64().max(1.0)
    }

    fn most_connections(&self, now: Instant) -> Option<usize> {
        let (most, since) = self.connections?;
        let more = now.saturating_duration_since(since).as_secs() / CONNECTION_AFTER.as_secs();
        Some(most.saturating_add(usize::try_from(more).unwrap_or(usize::MAX)))
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::{advance, sleep};

    use super::*;

    async fn begin_within(pace: &Pace, time: Duration) -> (usize, Instant) {
        let (end, mut count, mut last) = (Instant::now() + time, 0, Instant::now());
        while tokio::time::timeout_at(end, pace.ready()).await.is_ok() && Instant::now() < end {
            last = pace.begin().expect("it is ready");
            count += 1;
            sleep(Duration::from_millis(50)).await;
        }
        (count, last)
    }

    #[tokio::test(start_paused = true)]
    async fn a_complaint_halves_the_rate_and_minutes_bring_it_back() {
        let pace = Pace::remembering(Kept::default());
        let (count, last) = begin_within(&pace, Duration::from_secs(10)).await;
        assert!((195..=200).contains(&count) && pace.learned().is_none(), "20 a second: {count}");
        advance(Duration::from_millis(10)).await;
        pace.slower(last);
        // Others that were under way say nothing new.
        pace.slower(last);
        let rate = pace.learned().unwrap().rate.unwrap();
        assert!((9.0..=11.0).contains(&rate), "{rate}");
        let (count, last) = begin_within(&pace, Duration::from_secs(10)).await;
        assert!((90..=115).contains(&count), "{count}");
        pace.slower(last);
        let rate = pace.learned().unwrap().rate.unwrap();
        assert!((4.5..=5.8).contains(&rate), "{rate}");
        advance(Duration::from_secs(600)).await;
        let rate = pace.learned().unwrap().rate.unwrap();
        assert!((9.0..=11.0).contains(&rate), "back where it complained last: {rate}");
        advance(Duration::from_secs(1_900)).await;
        assert!(pace.begin().is_some() && pace.learned().is_none(), "lifted");
    }

    #[tokio::test(start_paused = true)]
    async fn it_never_comes_to_a_halt_and_survives_a_restart() {
        let directory = tempfile::tempdir().unwrap();
        let kept = || Kept::at(directory.path().join("pace.json"));
        let pace = Pace::remembering(kept());
        for _ in 0..20 {
            pace.ready().await;
            let begun = pace.begin().expect("ready");
            advance(Duration::from_millis(1)).await;
            pace.slower(begun);
        }
        let rate = pace.learned().unwrap().rate.unwrap();
        assert!((SLOWEST..SLOWEST * 1.2).contains(&rate), "{rate}");
        let again = Pace::remembering(kept());
        assert!((SLOWEST..SLOWEST * 1.2).contains(&again.learned().unwrap().rate.unwrap()));
        std::fs::write(directory.path().join("pace.json"), r#"{"rate":[-1.0,0.0],"connections":0}"#).unwrap();
        let again = Pace::remembering(kept());
        assert_eq!(again.learned(), Some(Learned { rate: None, connections: Some(1) }));
    }

    #[tokio::test(start_paused = true)]
    async fn connections_are_halved_and_come_back_one_by_one() {
        let pace = Pace::remembering(Kept::default());
        let begun = Instant::now();
        assert_eq!(pace.connections(10), 10);
        advance(Duration::from_secs(1)).await;
        pace.fewer(begun, 4);
        pace.fewer(begun, 4);
        assert_eq!((pace.connections(10), pace.connections(3)), (4, 3));
        let pace = Pace::remembering(Kept::default());
        pace.fewer(begun, 4);
        advance(CONNECTION_AFTER * 3).await;
        assert_eq!(pace.connections(10), 7);
        advance(CONNECTION_AFTER * 3).await;
        assert_eq!((pace.connections(10), pace.learned()), (10, None));
    }
}
