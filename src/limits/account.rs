//! The account of one upstream or login: its budget, with a clock and a disk.
//!
//! A part of the budget is taken before an attempt and given back, or counted, behind it. Whoever
//! can't have any waits for [`Account::ready`]; nobody asks again and again.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::Notify,
    time::{Instant, timeout_at},
};

pub use super::budget::Spent;
use super::{
    budget::{Budget, Take},
    file::{self, Found},
    window::Tick,
};
use crate::{
    clock::{Clock, Timestamp},
    config::Limit,
};

/// How long to wait after the disk refused to be told.
const AFTER_FAULT: Duration = Duration::from_secs(5);
/// However far away the next change is: bounds the wait where none is known.
const LONGEST: Duration = Duration::from_secs(3_600);

/// An account. Clones share it.
#[derive(Clone, Debug)]
pub struct Account(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    of: String,
    file: PathBuf,
    clock: Clock,
    /// Tick 0.
    start: Instant,
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug)]
struct State {
    budget: Budget,
    /// The file is being written.
    writing: bool,
    /// Counts changes of the limits, so that what was reserved before is not credited after.
    epoch: u64,
    /// Why the disk could not be told, and when to try again.
    fault: Option<(String, Instant)>,
}

/// Why nothing may be sent now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blocked {
    /// In words.
    pub reason: String,
    /// When it may again, if nothing else happens; `None` while that depends on what is under way.
    pub until: Option<Timestamp>,
    /// It is our disk that is in the way, not a limit.
    pub is_fault: bool,
}

/// How much of one limit is used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Usage {
    /// The limit.
    pub limit: Limit,
    /// So much of it.
    pub used: u64,
    /// When some of that leaves.
    pub frees_at: Option<Timestamp>,
}

/// The leave to send one message to some recipients. Dropped without a word, all of it counts.
#[derive(Debug)]
pub struct Permit {
    account: Account,
    recipients: u64,
    settled: bool,
}

impl Account {
    /// Opens the account of `of`, whose file lies in `directory`, or begins it.
    pub fn open(directory: &Path, of: &str, limits: &[Limit], clock: Clock) -> Self {
        let file = file::path(directory, of);
        let found = if limits.is_empty() { Found::Nothing } else { file::read(&file) };
        let budget = match found {
            Found::Nothing => Budget::new(limits, 0),
            Found::State(stored) => Budget::restored(limits, &stored, 0, clock.now()),
            Found::Damaged(reason) => {
                tracing::error!(
                    file = %file.display(), of, reason,
                    "what was used of the limits can't be read, so they count as used up now; \
                     stop the relay and delete the file to begin anew"
                );
                Budget::exhausted(limits, 0)
            }
        };
        let state = State { budget, writing: false, epoch: 0, fault: None };
        let (start, changed) = (Instant::now(), Notify::new());
        Self(Arc::new(Inner { of: of.to_owned(), file, clock, start, state: Mutex::new(state), changed }))
    }

    /// Goes by other limits from now on.
    pub fn change(&self, limits: &[Limit]) {
        let now = self.tick();
        let mut state = self.state();
        state.epoch += 1;
        state.budget.change(limits, now);
        state.fault = None;
        drop(state);
        self.0.changed.notify_waiters();
    }

    /// Why nothing may be sent now, if so.
    pub fn blocked(&self) -> Option<Blocked> {
        let now = self.tick();
        let mut state = self.state();
        if let Some((reason, until)) = state.fault.as_ref().filter(|(_, until)| *until > Instant::now()) {
            let reason = format!("what is used of the limits of {} can't be recorded: {reason}", self.0.of);
            let until = self.0.clock.now().after(until.saturating_duration_since(Instant::now()));
            return Some(Blocked { reason, until: Some(until), is_fault: true });
        }
        let (limit, frees) = state.budget.blocked(now)?;
        let reason = format!("the limit of {} of {limit} is used up", self.0.of);
        Some(Blocked { reason, until: frees.map(|frees| self.wall(now, frees)), is_fault: false })
    }

    /// Waits until a message to one recipient could be sent.
    pub async fn ready(&self) {
        loop {
            let changed = self.0.changed.notified();
            let until = {
                let now = self.tick();
                let mut state = self.state();
                match (&state.fault, state.budget.is_boundless()) {
                    (_, true) => return,
                    (Some((_, until)), _) if *until > Instant::now() => *until,
                    _ => match state.budget.blocked(now) {
                        None => return,
                        Some((_, frees)) => self.instant(frees),
                    },
                }
            };
            let _ = timeout_at(until, changed).await;
        }
    }

    /// Takes a message to at most `want` recipients; `None` if nothing is free after all.
    pub async fn take(&self, want: usize) -> Option<Permit> {
        let want = want as u64;
        loop {
            let changed = self.0.changed.notified();
            let now = self.tick();
            let prepared = {
                let mut state = self.state();
                match state.budget.take(now, want) {
                    Take::Granted(recipients) => {
                        return Some(Permit { account: self.clone(), recipients, settled: false });
                    }
                    Take::Gone => return None,
                    Take::Unwritten if state.fault.as_ref().is_some_and(|(_, at)| *at > Instant::now()) => {
                        return None;
                    }
                    Take::Unwritten if state.writing => None,
                    Take::Unwritten => {
                        state.writing = true;
                        Some((state.budget.prepare(now, self.0.clock.now(), want), state.epoch))
                    }
                }
            };
            match prepared {
                Some(((stored, more), epoch)) => {
                    let account = self.clone();
                    let write = move || {
                        let result = file::write(&account.0.file, &account.0.of, &stored);
                        account.written(result, &more, epoch);
                    };
                    // It goes on to its end even if nobody waits for it any more.
                    let _ = tokio::task::spawn_blocking(write).await;
                }
                None => changed.await,
            }
        }
    }

    fn written(&self, result: std::io::Result<()>, more: &[u64], epoch: u64) {
        let mut state = self.state();
        state.writing = false;
        match result {
            Ok(()) if state.epoch == epoch => {
                state.budget.written(more);
                state.fault = None;
            }
            Ok(()) => {}
            Err(error) => {
                let (file, of) = (self.0.file.display(), &self.0.of);
                tracing::error!(%file, of, %error, "what is used of the limits can't be recorded: nothing is sent");
                state.fault = Some((error.to_string(), Instant::now() + AFTER_FAULT));
            }
        }
        drop(state);
        self.0.changed.notify_waiters();
    }

    /// How much of each limit is used.
    pub fn usage(&self) -> Vec<Usage> {
        let now = self.tick();
        let usage = self.state().budget.usage(now);
        usage
            .into_iter()
            .map(|usage| Usage {
                limit: usage.limit,
                used: usage.used.min(usage.limit.max),
                frees_at: usage.frees_at.map(|frees| self.wall(now, frees)),
            })
            .collect()
    }

    /// Writes down what was really used, at a good end.
    pub fn close(&self) {
        let now = self.tick();
        let last_words = {
            let mut state = self.state();
            if state.budget.is_boundless() || state.writing {
                return;
            }
            state.budget.last_words(now, self.0.clock.now())
        };
        if let Err(error) = file::write(&self.0.file, &self.0.of, &last_words) {
            tracing::warn!(%error, of = self.0.of, "a little of the limits is lost");
        }
    }

    fn finish(&self, recipients: u64, spent: Spent) {
        let now = self.tick();
        self.state().budget.finish(now, recipients, spent);
        self.0.changed.notify_waiters();
    }

    fn tick(&self) -> Tick {
        Tick::try_from(self.0.start.elapsed().as_millis()).unwrap_or(Tick::MAX)
    }

    fn wall(&self, now: Tick, then: Tick) -> Timestamp {
        let ahead = u64::try_from(then.saturating_sub(now)).unwrap_or(0);
        self.0.clock.now().after(Duration::from_millis(ahead))
    }

    fn instant(&self, frees: Option<Tick>) -> Instant {
        let longest = Instant::now() + LONGEST;
        let at = frees.and_then(|frees| u64::try_from(frees).ok());
        at.and_then(|at| self.0.start.checked_add(Duration::from_millis(at)))
            .map_or(longest, |at| at.min(longest))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Permit {
    /// For so many recipients.
    pub fn recipients(&self) -> usize {
        usize::try_from(self.recipients).unwrap_or(usize::MAX)
    }

    /// It is not used after all.
    pub fn withdraw(self) {
        self.spent(Spent::Nothing);
    }

    /// The attempt is over.
    pub fn spent(mut self, spent: Spent) {
        self.settled = true;
        self.account.finish(self.recipients, spent);
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if !self.settled {
            self.account.finish(self.recipients, Spent::For(self.recipients));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::parse_limit;

    fn limits(texts: &[&str]) -> Vec<Limit> {
        texts.iter().map(|text| parse_limit(text).unwrap()).collect()
    }

    fn open(directory: &Path, texts: &[&str]) -> Account {
        Account::open(directory, "up", &limits(texts), Clock::starting_at(Timestamp(1_000_000)))
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_finds_nothing_free_waits_until_something_is() {
        let home = tempfile::tempdir().unwrap();
        let account = open(home.path(), &["2/second"]);
        account.ready().await;
        let begin = Instant::now();
        for _ in 0..7 {
            account.ready().await;
            account.take(1).await.unwrap().spent(Spent::For(1));
        }
        let took = begin.elapsed();
        assert!(took >= Duration::from_secs(3) && took < Duration::from_millis(3_100), "{took:?}");
    }

    #[tokio::test]
    async fn killed_it_knows_what_was_under_way_and_stopped_what_was_used() {
        let home = tempfile::tempdir().unwrap();
        let account = open(home.path(), &["5 recipients/day"]);
        account.take(3).await.unwrap().spent(Spent::For(3));
        let _under_way = account.take(1).await.unwrap();
        let after_kill = open(home.path(), &["5 recipients/day"]);
        assert_eq!(after_kill.usage()[0].used, 4);
        let last = after_kill.take(2).await.unwrap();
        assert_eq!(last.recipients(), 1, "a message is split where less is free");
        assert!(after_kill.take(1).await.is_none());
        assert!(after_kill.blocked().unwrap().reason.contains("5 recipients/day"));
        last.spent(Spent::Nothing);
        after_kill.close();
        assert_eq!(open(home.path(), &["5 recipients/day"]).usage()[0].used, 4);
    }

    #[tokio::test]
    async fn a_damaged_file_counts_as_used_up() {
        let home = tempfile::tempdir().unwrap();
        let account = open(home.path(), &["5/day"]);
        account.take(1).await.unwrap().spent(Spent::For(1));
        let path = file::path(home.path(), "up");
        let mut octets = std::fs::read(&path).unwrap();
        let last = octets.len() - 10;
        octets[last] ^= 1;
        std::fs::write(&path, octets).unwrap();
        assert!(open(home.path(), &["5/day"]).take(1).await.is_none());
    }

    #[tokio::test]
    async fn what_the_disk_refuses_to_remember_is_not_sent_and_says_so() {
        let home = tempfile::tempdir().unwrap();
        let place = home.path().join("limits");
        let account = open(&place, &["5/day"]);
        std::fs::write(&place, "in the way").unwrap();
        assert!(account.take(1).await.is_none());
        let blocked = account.blocked().unwrap();
        assert!(blocked.reason.contains("can't be recorded") && blocked.is_fault);
    }

    #[tokio::test]
    async fn without_limits_nothing_is_in_the_way_and_no_file_is_written() {
        let home = tempfile::tempdir().unwrap();
        let account = open(home.path(), &[]);
        account.ready().await;
        assert_eq!(account.take(1_000).await.unwrap().recipients(), 1_000);
        account.close();
        assert_eq!(std::fs::read_dir(home.path()).unwrap().count(), 0);
    }
}
