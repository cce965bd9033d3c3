//! Much that happens on a queue at once: mail comes in, is tried, held, released, reported and deleted, with a
//! line in the ledger before and after each promise.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use outpost::clock::Clock;
use outpost::config::{HistorySettings, QueueSettings, Waits};
use outpost::mail::envelope::{Envelope, Handling, Origin};
use outpost::queue::{Action, ActionError, Claim, Next, Queue, Report};
use outpost::smtp::address::{Mailbox, ReversePath};

use super::ledger::{self, Fate};

/// A queue's settings: nothing limits it.
pub fn settings(directory: &Path) -> QueueSettings {
    QueueSettings {
        directory: directory.to_owned(),
        lifetime: Duration::from_secs(5 * 86_400),
        retry: Waits { first: Duration::from_secs(60), longest: Duration::from_secs(3_600) },
        delay_warning: None,
        max_messages: None,
        max_bytes: None,
        min_free: 0,
        history: HistorySettings::default(),
    }
}

/// From one to one.
pub fn envelope() -> Envelope {
    let mailbox = |text| Mailbox::parse(text).expect("an address");
    Envelope {
        reverse_path: ReversePath::from(mailbox("sender@example.test")),
        recipients: vec![mailbox("someone@example.test").into()],
        handling: Handling::default(),
    }
}

/// A size as mail has it: mostly small, some that go to the spool.
pub fn size(dice: &mut fastrand::Rng) -> usize {
    match dice.u32(0..10) {
        0..6 => dice.usize(100..20_000),
        6..8 => dice.usize(60_000..250_000),
        _ => dice.usize(270_000..600_000),
    }
}

/// The ledger's file, each line written at once.
#[derive(Clone)]
pub struct Notes(Arc<File>);

impl Notes {
    pub fn append_to(path: &Path) -> Self {
        Self(Arc::new(OpenOptions::new().create(true).append(true).open(path).expect("the ledger")))
    }

    fn note(&self, line: &str) {
        // One write, so that a line is there or not.
        (&*self.0).write_all(line.as_bytes()).expect("the ledger takes a line");
    }
}

/// What is to be done.
pub struct Workload {
    pub queue: PathBuf,
    pub notes: Notes,
    pub seed: u64,
    /// Messages to be accepted by each of the producers.
    pub each: usize,
}

const PRODUCERS: usize = 3;
const WORKERS: usize = 3;

impl Workload {
    /// Opens the queue and works on it until all is accepted, then closes it.
    pub async fn run(self) {
        let (queue, writer) =
            Queue::open(&settings(&self.queue), Clock::System).expect("the queue can be opened");
        let feeding = queue.clone();
        let feeder = tokio::spawn(async move { feeding.feed().await });
        // Numbers don't repeat when the work goes on after a crash.
        let number = Arc::new(AtomicU64::new(Clock::System.now().0 << 20));
        let left = Arc::new(AtomicUsize::new(PRODUCERS * self.each));
        let mut dice = fastrand::Rng::with_seed(self.seed);
        let producers: Vec<_> = (0..PRODUCERS)
            .map(|_| {
                let (queue, notes, dice) = (queue.clone(), self.notes.clone(), dice.fork());
                tokio::spawn(produce(queue, notes, dice, Arc::clone(&left), Arc::clone(&number)))
            })
            .collect();
        let mut workers: Vec<_> = (0..WORKERS)
            .map(|_| tokio::spawn(work(queue.clone(), self.notes.clone(), dice.fork())))
            .collect();
        workers.push(tokio::spawn(operate(queue.clone(), self.notes.clone(), dice.fork())));
        for producer in producers {
            producer.await.expect("a producer ends well");
        }
        // The store tidies itself when nothing has happened for a second.
        for worker in &workers {
            assert!(!worker.is_finished(), "a worker has panicked");
            worker.abort();
        }
        for worker in workers {
            let _ = worker.await;
        }
        tokio::time::sleep(Duration::from_millis(1_200)).await;
        feeder.abort();
        let _ = feeder.await;
        drop(queue);
        writer.join();
    }
}

async fn produce(
    queue: Queue,
    notes: Notes,
    mut dice: fastrand::Rng,
    left: Arc<AtomicUsize>,
    number: Arc<AtomicU64>,
) {
    while left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok() {
        let (number, size) = (number.fetch_add(1, Ordering::SeqCst), size(&mut dice));
        let mut incoming = queue.begin().expect("there is room");
        let content = ledger::content(number, size);
        for piece in content.chunks(64 * 1024) {
            incoming.push(piece);
            incoming.flush().await.expect("the spool takes it");
        }
        if dice.u32(0..10) == 0 {
            // The client has gone before its final dot: of this nothing may ever be seen.
            continue;
        }
        let (id, facts) = (incoming.id(), incoming.facts().expect("a short header"));
        notes.note(&ledger::accepting(id, &content));
        let receipt =
            incoming.commit(envelope(), Origin::default(), facts).await.expect("the queue takes it");
        assert_eq!(receipt.id(), id);
        notes.note(&ledger::durable(id, Fate::Queued(0)));
    }
}

async fn work(queue: Queue, notes: Notes, mut dice: fastrand::Rng) {
    loop {
        let claim = queue.claim().await;
        settle(&queue, &notes, &mut dice, claim).await;
    }
}

async fn settle(queue: &Queue, notes: &Notes, dice: &mut fastrand::Rng, mut claim: Claim) {
    let id = claim.entry().id;
    let attempts = claim.entry().recipients[0].attempts + 1;
    let mut reports = Vec::new();
    let (fate, next) = match dice.u32(0..10) {
        0..5 => (Fate::Gone, Next::Done),
        5 => {
            // The worker's connection broke: nothing is known, and it goes back.
            drop(claim);
            tokio::task::yield_now().await;
            return;
        }
        6 => {
            let (content, held) = (ledger::report(id), Some("for the test".to_owned()));
            reports.push(Report { envelope: envelope(), origin: Origin::default(), content, held });
            (Fate::Reported, Next::Done)
        }
        7 => {
            claim.entry_mut().held = Some("for the test".to_owned());
            (Fate::Held(attempts), Next::Hold)
        }
        _ => {
            let later = Duration::from_millis(if dice.bool() { 5 } else { 3_600_000 });
            (Fate::Queued(attempts), Next::Retry(Clock::System.now().after(later)))
        }
    };
    claim.entry_mut().recipients[0].attempts = attempts;
    notes.note(&ledger::begun(id, fate));
    let settled = queue.settle(claim, next, reports);
    // Sometimes nobody waits for it; then nothing is promised yet.
    if dice.u32(0..4) > 0 {
        settled.durable().await.expect("the queue takes the outcome");
        notes.note(&ledger::durable(id, fate));
    }
}

/// An operator who looks through what is held, and throws away or lets go what he finds.
async fn operate(queue: Queue, notes: Notes, mut dice: fastrand::Rng) {
    loop {
        tokio::time::sleep(Duration::from_millis(20)).await;
        for item in ledger::all(&queue).await {
            let Some(entry) = item.entry.filter(|entry| entry.held.is_some()) else { continue };
            let is_report = entry.subject.as_deref().is_some_and(|subject| subject.starts_with("Report"));
            if is_report || dice.bool() {
                continue;
            }
            let (fate, action) = match dice.bool() {
                true => (Fate::Gone, Action::Delete),
                false => (Fate::Queued(entry.recipients[0].attempts), Action::Release),
            };
            notes.note(&ledger::begun(item.id, fate));
            loop {
                match queue.act(item.id, action, "for the test").await {
                    Ok(_) => break,
                    // Its settlement isn't through yet.
                    Err(ActionError::Busy) => tokio::task::yield_now().await,
                    Err(error) => panic!("{} of {}: {error}", "an operator's action", item.id),
                }
            }
            notes.note(&ledger::durable(item.id, fate));
        }
    }
}
