//! The budget against a plain model: every attempt as an interval, counted by an upstream at a
//! moment of its own choice, over kills, restarts and clocks set back.

use std::time::Duration;

use proptest::prelude::*;

use super::*;

/// An attempt: the upstream counted it some time from begin to end.
#[derive(Clone, Copy, Debug)]
struct Attempt {
    begin: Tick,
    end: Tick,
    recipients: u64,
}

#[derive(Clone, Debug)]
enum Step {
    Wait(u32),
    Take(u64),
    /// The oldest attempt under way ends, and so much of it was used.
    Finish(bool),
    Kill {
        down: u32,
        back: u32,
    },
    Stop {
        down: u32,
    },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (0u32..200).prop_map(Step::Wait),
        3 => (0u32..20_000).prop_map(Step::Wait),
        1 => (0u32..3_600_000).prop_map(Step::Wait),
        8 => (1u64..5).prop_map(Step::Take),
        6 => any::<bool>().prop_map(Step::Finish),
        1 => (0u32..5_000, 0u32..100_000).prop_map(|(down, back)| Step::Kill { down, back }),
        1 => (0u32..5_000).prop_map(|down| Step::Stop { down }),
    ];
    prop::collection::vec(step, 1..300)
}

fn limits() -> Vec<Limit> {
    let limit = |max, counts, seconds| Limit { max, counts, window: Duration::from_secs(seconds) };
    vec![
        limit(3, Counts::Messages, 1),
        limit(7, Counts::Recipients, 60),
        limit(250, Counts::Recipients, 7_200),
        limit(20, Counts::Messages, 3_600),
    ]
}

/// A run of the relay: its own ticks begin at 0, while the world's time goes on.
struct Run {
    budget: Budget,
    disk: Option<Stored>,
    /// The world's time, and what the run's ticks and the wall clock are off from it.
    world: Tick,
    started: Tick,
    wall_offset: i64,
    flying: Vec<(Tick, u64)>,
    done: Vec<Attempt>,
}

impl Run {
    fn new() -> Self {
        let budget = Budget::new(&limits(), 0);
        let wall_offset = 1_000_000_000;
        let (flying, done) = (Vec::new(), Vec::new());
        Self { budget, disk: None, world: 0, started: 0, wall_offset, flying, done }
    }

    fn now(&self) -> Tick {
        self.world - self.started
    }

    fn wall(&self) -> Timestamp {
        Timestamp((self.world + self.wall_offset) as u64)
    }

    fn take(&mut self, want: u64) {
        let (now, wall) = (self.now(), self.wall());
        let mut take = self.budget.take(now, want);
        if take == Take::Unwritten {
            let (stored, more) = self.budget.prepare(now, wall, want);
            self.disk = Some(stored);
            self.budget.written(&more);
            take = self.budget.take(now, want);
            assert_ne!(take, Take::Unwritten, "what was written is enough");
        }
        match take {
            Take::Granted(recipients) => self.flying.push((self.world, recipients)),
            _ => assert!(self.budget.blocked(now).is_some(), "nothing is refused without a reason"),
        }
    }

    fn finish(&mut self, counted: bool) {
        if self.flying.is_empty() {
            return;
        }
        let (begin, recipients) = self.flying.remove(0);
        let now = self.now();
        // Nothing was heard of it, so that the upstream can't have counted it.
        self.budget.finish(now, recipients, if counted { Spent::For(recipients) } else { Spent::Nothing });
        if counted {
            self.done.push(Attempt { begin, end: self.world, recipients });
        }
    }

    fn restart(&mut self, down: u32) {
        self.world += Tick::from(down);
        self.started = self.world;
        let wall = self.wall();
        self.budget = match &self.disk {
            Some(stored) => Budget::restored(&limits(), stored, 0, wall),
            None => Budget::new(&limits(), 0),
        };
    }
}

/// The most that stands in any stretch of `length`, when each attempt is counted at `at(attempt)`.
fn most(attempts: &[Attempt], limit: Limit, at: impl Fn(&Attempt) -> Tick) -> u64 {
    let length = limit.window.as_millis() as Tick;
    let cost = |attempt: &Attempt| match limit.counts {
        Counts::Messages => 1,
        Counts::Recipients => attempt.recipients,
    };
    let mut counted: Vec<(Tick, u64)> = attempts.iter().map(|a| (at(a), cost(a))).collect();
    counted.sort_unstable();
    let within = |from: Tick| {
        counted.iter().filter(|(time, _)| (from..from + length).contains(time)).map(|(_, cost)| cost).sum()
    };
    counted.iter().map(|(from, _)| within(*from)).max().unwrap_or(0)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn no_window_ever_holds_more_than_its_limit(steps in steps(), share in 0.0f64..=1.0) {
        let mut run = Run::new();
        for step in steps {
            match step {
                Step::Wait(millis) => run.world += Tick::from(millis),
                Step::Take(want) => run.take(want),
                Step::Finish(counted) => run.finish(counted),
                Step::Kill { down, back } => {
                    // Whatever was under way may have been counted until the process was gone.
                    let world = run.world;
                    let cut = run.flying.drain(..);
                    run.done.extend(cut.map(|(begin, recipients)| Attempt { begin, end: world, recipients }));
                    run.wall_offset -= i64::from(back);
                    run.restart(down);
                }
                Step::Stop { down } => {
                    while !run.flying.is_empty() {
                        run.finish(true);
                    }
                    run.disk = Some(run.budget.last_words(run.now(), run.wall()));
                    run.restart(down);
                }
            }
        }
        for limit in limits() {
            let somewhere = |attempt: &Attempt| {
                attempt.begin + ((attempt.end - attempt.begin) as f64 * share) as Tick
            };
            prop_assert!(most(&run.done, limit, |attempt| attempt.begin) <= limit.max, "{limit} from the begin");
            prop_assert!(most(&run.done, limit, |attempt| attempt.end) <= limit.max, "{limit} to the end");
            prop_assert!(most(&run.done, limit, somewhere) <= limit.max, "{limit} between");
        }
    }
}

fn day(max: u64) -> Vec<Limit> {
    vec![Limit { max, counts: Counts::Messages, window: Duration::from_secs(86_400) }]
}

#[test]
fn a_limit_can_be_used_in_full_and_frees_as_it_leaves() {
    let mut budget = Budget::new(&day(50), 0);
    for _ in 0..50 {
        let (_, more) = budget.prepare(10, Timestamp(10), 1);
        budget.written(&more);
        assert_eq!(budget.take(10, 1), Take::Granted(1));
        budget.finish(10, 1, Spent::For(1));
    }
    assert_eq!(budget.take(10, 1), Take::Gone);
    assert_eq!(budget.blocked(10).map(|(_, frees)| frees), Some(Some(86_400_011)));
    assert_eq!(budget.blocked(86_400_011), None);
}

#[test]
fn nothing_is_taken_that_the_disk_has_not_heard_of() {
    let mut budget = Budget::new(&day(1_000), 0);
    assert_eq!(budget.take(0, 1), Take::Unwritten);
    let (stored, more) = budget.prepare(0, Timestamp(0), 1);
    budget.written(&more);
    for _ in 0..10 {
        assert_eq!(budget.take(0, 1), Take::Granted(1), "a hundredth was reserved at once");
    }
    assert_eq!(budget.take(0, 1), Take::Unwritten);
    // Killed now, those ten are known, though nothing was written since.
    let mut after = Budget::restored(&day(1_000), &stored, 0, Timestamp(1));
    assert_eq!(after.usage(0)[0].used, 10);
}

#[test]
fn a_good_end_loses_nothing_of_the_budget() {
    let mut budget = Budget::new(&day(1_000), 0);
    let (_, more) = budget.prepare(0, Timestamp(0), 1);
    budget.written(&more);
    assert_eq!(budget.take(0, 1), Take::Granted(1));
    budget.finish(0, 1, Spent::For(1));
    let stored = budget.last_words(5, Timestamp(5));
    assert_eq!(Budget::restored(&day(1_000), &stored, 0, Timestamp(9)).usage(0)[0].used, 1);
}

#[test]
fn what_the_upstream_never_saw_is_given_back_to_quotas_and_not_to_rates() {
    let rate = Limit { max: 10, counts: Counts::Messages, window: Duration::from_secs(60) };
    let limits = [day(50)[0], rate];
    let mut budget = Budget::new(&limits, 0);
    let (_, more) = budget.prepare(0, Timestamp(0), 1);
    budget.written(&more);
    assert_eq!(budget.take(0, 1), Take::Granted(1));
    budget.finish(0, 1, Spent::For(0));
    assert_eq!(budget.usage(0).iter().map(|usage| usage.used).collect::<Vec<_>>(), [0, 1]);
}

#[test]
fn more_recipients_than_are_free_get_what_is_free() {
    let limits = [Limit { max: 5, counts: Counts::Recipients, window: Duration::from_secs(3_600) }];
    let mut budget = Budget::new(&limits, 0);
    let (_, more) = budget.prepare(0, Timestamp(0), 9);
    budget.written(&more);
    assert_eq!(budget.take(0, 9), Take::Granted(5));
    assert_eq!(budget.take(0, 4), Take::Gone);
}

#[test]
fn other_settings_keep_what_was_spent_in_the_windows_that_stay() {
    let mut budget = Budget::new(&day(50), 0);
    let (_, more) = budget.prepare(0, Timestamp(0), 1);
    budget.written(&more);
    assert_eq!(budget.take(0, 1), Take::Granted(1));
    budget.change(&[day(20)[0], Limit { window: Duration::from_secs(3_600), ..day(9)[0] }], 0);
    budget.finish(0, 1, Spent::For(1));
    let used: Vec<_> = budget.usage(0).iter().map(|usage| (usage.limit.max, usage.used)).collect();
    assert_eq!(used, [(20, 1), (9, 1)]);
}

#[test]
fn what_is_not_stored_is_used_up_at_a_start_and_free_a_moment_later() {
    let limits = [Limit { max: 10, counts: Counts::Messages, window: Duration::from_secs(1) }];
    let mut budget = Budget::new(&limits, 0);
    assert_eq!(budget.take(0, 1), Take::Gone);
    assert_eq!(budget.blocked(0).map(|(_, frees)| frees), Some(Some(1_001)));
    for _ in 0..10 {
        assert_eq!(budget.take(1_001, 1), Take::Granted(1), "a whole second may go at once");
    }
    assert_eq!(budget.take(1_001, 1), Take::Gone);
}
