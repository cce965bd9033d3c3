//! The queue and a plain map, given the same verbs in any order, agree: on what is there, on what can be claimed,
//! on what an operator is told; also when it was closed in the middle and opened again, and when it was not closed
//! and what a kill leaves of it is opened.

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use outpost::clock::Clock;
use outpost::mail::envelope::Origin;
use outpost::queue::{Action, ActionError, Claim, Next, Queue, QueueId, WriterThread};
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestRng, TestRunner};
use tempfile::TempDir;
use tokio::task::JoinHandle;

use support::copy::copy;
use support::ledger::{all, content, read};
use support::workload::{envelope, settings};

/// What can be done; numbers pick one of what there is.
#[derive(Clone, Debug)]
enum Verb {
    Accept { size: usize },
    Abandon { size: usize },
    Claim,
    GiveBack(usize),
    Deliver(usize),
    Defer(usize, When),
    Hold(usize),
    Operate(Act, usize),
    Reopen,
    Crash,
}

/// When it is tried again.
#[derive(Clone, Copy, Debug, PartialEq)]
enum When {
    Now,
    InAnHour,
}

#[derive(Clone, Copy, Debug)]
enum Act {
    Retry,
    Hold,
    Release,
    Delete,
}

fn verbs() -> impl Strategy<Value = Verb> {
    let size = prop_oneof![4 => 1usize..5_000, 1 => 200_000usize..300_000, 1 => 300_000usize..600_000];
    let when = || prop_oneof![Just(When::Now), Just(When::InAnHour)];
    let act = prop_oneof![Just(Act::Retry), Just(Act::Hold), Just(Act::Release), Just(Act::Delete)];
    prop_oneof![
        6 => size.clone().prop_map(|size| Verb::Accept { size }),
        1 => size.prop_map(|size| Verb::Abandon { size }),
        6 => Just(Verb::Claim),
        1 => any::<usize>().prop_map(Verb::GiveBack),
        2 => any::<usize>().prop_map(Verb::Deliver),
        2 => (any::<usize>(), when()).prop_map(|(which, when)| Verb::Defer(which, when)),
        1 => any::<usize>().prop_map(Verb::Hold),
        4 => (act, any::<usize>()).prop_map(|(act, which)| Verb::Operate(act, which)),
        1 => Just(Verb::Reopen),
        1 => Just(Verb::Crash),
    ]
}

/// An entry as the map has it.
#[derive(Clone, Debug, PartialEq)]
struct Known {
    number: u64,
    size: usize,
    attempts: u32,
    held: bool,
    due: When,
}

/// The queue, the map, and the claims that are out.
struct Both {
    dir: TempDir,
    queue: Queue,
    writer: WriterThread,
    feeder: JoinHandle<()>,
    map: BTreeMap<QueueId, Known>,
    claims: Vec<Claim>,
    number: u64,
}

fn open(dir: &TempDir) -> (Queue, WriterThread, JoinHandle<()>) {
    let (queue, writer) = Queue::open(&settings(&dir.path().join("queue")), Clock::System).expect("it opens");
    let feeding = queue.clone();
    let feeder = tokio::spawn(async move { feeding.feed().await });
    (queue, writer, feeder)
}

impl Both {
    fn new() -> Self {
        let dir = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
        Self::open(dir, BTreeMap::new(), 0)
    }

    fn open(dir: TempDir, map: BTreeMap<QueueId, Known>, number: u64) -> Self {
        let (queue, writer, feeder) = open(&dir);
        Self { dir, queue, writer, feeder, map, claims: Vec::new(), number }
    }

    async fn apply(mut self, verb: Verb) -> Result<Self, TestCaseError> {
        match verb {
            Verb::Accept { size } => {
                self.number += 1;
                let mut incoming = self.receive(size).await;
                let (id, facts) = (incoming.id(), incoming.facts().expect("a short header"));
                let receipt = incoming.commit(envelope(), Origin::default(), facts).await;
                prop_assert_eq!(receipt.expect("it is taken").id(), id);
                let known = Known { number: self.number, size, attempts: 0, held: false, due: When::Now };
                prop_assert_eq!(self.map.insert(id, known), None, "an id is given out once");
            }
            Verb::Abandon { size } => drop(self.receive(size).await),
            Verb::Claim => self.claim().await?,
            Verb::GiveBack(which) => drop(self.take(which)),
            Verb::Deliver(which) => {
                if let Some(claim) = self.take(which) {
                    self.map.remove(&claim.entry().id);
                    self.settle(claim, Next::Done).await;
                }
            }
            Verb::Defer(which, when) => {
                if let Some(mut claim) = self.take(which) {
                    let known = self.map.get_mut(&claim.entry().id).expect("it is known");
                    (known.attempts, known.due) = (known.attempts + 1, when);
                    claim.entry_mut().recipients[0].attempts += 1;
                    let now = Clock::System.now();
                    let due = if when == When::Now { now } else { now.after(Duration::from_secs(3_600)) };
                    self.settle(claim, Next::Retry(due)).await;
                }
            }
            Verb::Hold(which) => {
                if let Some(mut claim) = self.take(which) {
                    self.map.get_mut(&claim.entry().id).expect("it is known").held = true;
                    claim.entry_mut().held = Some("for the test".to_owned());
                    self.settle(claim, Next::Hold).await;
                }
            }
            Verb::Operate(act, which) => self.operate(act, which).await?,
            Verb::Reopen => {
                let (dir, map, number) = self.close().await;
                self = Self::open(dir, map, number);
                self.compare().await?;
            }
            Verb::Crash => {
                self = self.crash(&[]).await;
                self.compare().await?;
            }
        }
        Ok(self)
    }

    /// Goes on with what a kill at this moment would have left, but for files of these names.
    async fn crash(self, lost: &[&str]) -> Self {
        let left = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
        copy(&self.dir.path().join("queue"), &left.path().join("queue"), lost);
        let (_, map, number) = self.close().await;
        Self::open(left, map, number)
    }

    async fn close(mut self) -> (TempDir, BTreeMap<QueueId, Known>, u64) {
        // What was claimed is as if nothing had been tried.
        self.claims.clear();
        self.feeder.abort();
        let _ = self.feeder.await;
        drop(self.queue);
        self.writer.join();
        (self.dir, self.map, self.number)
    }

    async fn receive(&self, size: usize) -> outpost::queue::Incoming {
        let mut incoming = self.queue.begin().expect("there is room");
        for piece in content(self.number, size).chunks(64 * 1024) {
            incoming.push(piece);
            incoming.flush().await.expect("it is kept");
        }
        incoming
    }

    async fn claim(&mut self) -> Result<(), TestCaseError> {
        let claimed: Vec<QueueId> = self.claims.iter().map(|claim| claim.entry().id).collect();
        let claimable =
            |(id, known): (&QueueId, &Known)| !known.held && known.due == When::Now && !claimed.contains(id);
        if !self.map.iter().any(claimable) {
            prop_assert!(self.queue.try_claim().is_none(), "something is claimed that nobody should have");
            return Ok(());
        }
        let claim = tokio::time::timeout(Duration::from_secs(10), self.queue.claim()).await;
        let claim = claim.map_err(|_| TestCaseError::fail("what is due can't be claimed"))?;
        let id = claim.entry().id;
        let known = self.map.get(&id).ok_or_else(|| TestCaseError::fail("an unknown entry is claimed"))?;
        prop_assert!(claimable((&id, known)), "{:?} is claimed", known);
        prop_assert_eq!(claim.entry().recipients[0].attempts, known.attempts);
        prop_assert!(read(claim.content()) == content(known.number, known.size), "its content is another");
        self.claims.push(claim);
        Ok(())
    }

    fn take(&mut self, which: usize) -> Option<Claim> {
        (!self.claims.is_empty()).then(|| self.claims.swap_remove(which % self.claims.len()))
    }

    async fn settle(&self, claim: Claim, next: Next) {
        self.queue.settle(claim, next, Vec::new()).durable().await.expect("it is recorded");
    }

    async fn operate(&mut self, act: Act, which: usize) -> Result<(), TestCaseError> {
        let Some(id) = self.map.keys().nth(which % self.map.len().max(1)).copied() else { return Ok(()) };
        let action = match act {
            Act::Retry => Action::Retry,
            Act::Hold => Action::Hold,
            Act::Release => Action::Release,
            Act::Delete => Action::Delete,
        };
        let told = self.queue.act(id, action, "for the test").await;
        if self.claims.iter().any(|claim| claim.entry().id == id) {
            prop_assert_eq!(told, Err(ActionError::Busy));
            return Ok(());
        }
        let known = self.map.get_mut(&id).expect("it is known");
        // What isn't held can't be released, and stays as it is.
        let is_done = known.held || !matches!(act, Act::Release);
        prop_assert_eq!(told, Ok(is_done));
        match act {
            Act::Delete => drop(self.map.remove(&id)),
            Act::Hold => known.held = true,
            Act::Release if known.held => (known.held, known.due) = (false, When::Now),
            Act::Release => {}
            // A held one stays held.
            Act::Retry if known.held => {}
            Act::Retry => known.due = When::Now,
        }
        Ok(())
    }

    async fn compare(&self) -> Result<(), TestCaseError> {
        let mut found = BTreeMap::new();
        for item in all(&self.queue).await {
            let entry = item.entry.ok_or_else(|| TestCaseError::fail("an entry is damaged"))?;
            let Some(known) = self.map.get(&item.id) else {
                return Err(TestCaseError::fail(format!("{} should be gone", item.id)));
            };
            let whole = self.queue.content(item.id).await.expect("it can be read").map(|c| read(&c));
            prop_assert!(whole == Some(content(known.number, known.size)), "its content is another");
            let held = entry.held.is_some();
            let far = item.due > Clock::System.now();
            let due = if held {
                known.due
            } else if far {
                When::InAnHour
            } else {
                When::Now
            };
            let attempts = entry.recipients[0].attempts;
            found.insert(item.id, Known { attempts, held, due, ..known.clone() });
        }
        prop_assert_eq!(&found, &self.map);
        let depth = self.queue.depth().await.expect("it can be read");
        prop_assert_eq!(depth.messages, self.map.len() as u64);
        prop_assert_eq!(depth.held, self.map.values().filter(|known| known.held).count() as u64);
        Ok(())
    }
}

#[test]
fn the_queue_and_a_plain_map_agree_whatever_is_done_in_whatever_order() {
    let config = Config { cases: 40, max_shrink_iters: 200, failure_persistence: None, ..Config::default() };
    // Always the same cases, so that a failure is somebody's change and not the day's.
    let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    TestRunner::new_with_rng(config, rng)
        .run(&proptest::collection::vec(verbs(), 10..80), |verbs| {
            runtime.block_on(async {
                let mut both = Both::new();
                for verb in verbs {
                    both = both.apply(verb).await?;
                }
                both.apply(Verb::Reopen).await.map(drop)
            })
        })
        .unwrap_or_else(|error| panic!("{error}"));
}

/// The control: what a kill leaves is more than what was brought into the database, and less is missed.
#[tokio::test]
async fn a_crash_that_takes_the_journal_or_a_file_is_missed_by_the_map() {
    let verbs = [Verb::Accept { size: 1_000 }, Verb::Accept { size: 400_000 }, Verb::Claim];
    let prepare = async || {
        let mut both = Both::new();
        for verb in verbs.clone() {
            both = both.apply(verb).await.expect("they agree");
        }
        both
    };
    prepare().await.crash(&[]).await.compare().await.expect("they agree");
    let mut missed = false;
    // Once a second the journal is brought into the database.
    for _ in 0..5 {
        missed |= prepare().await.crash(&["queue.journal"]).await.compare().await.is_err();
    }
    assert!(missed, "the journal is lost");
    let both = prepare().await;
    let file = fs::read_dir(both.dir.path().join("queue/spool")).expect("the spool").next();
    let name = file.expect("a file").expect("a file").file_name().into_string().expect("an id");
    both.crash(&[&format!("spool/{name}")]).await.compare().await.expect_err("a file is lost");
}
