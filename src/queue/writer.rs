//! The writer: one thread, which all changes of the store go through.
//!
//! It takes everything that waits, makes it durable with one sync, and answers everybody (group commit). Beside
//! that the database is told what it doesn't know yet, once that is much or a second old, or someone wants to read it.
//! While one batch is synced the next one gathers. A request that makes the batch fail is found by trying each
//! alone, so it can't take the others down.

use std::{
    sync::{
        Arc,
        atomic::Ordering,
        mpsc::{Receiver, RecvTimeoutError},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use tokio::sync::oneshot;

use super::{
    Fault, Next, Receipt, Shared,
    entry::Entry,
    health::Trouble,
    id::QueueId,
    schedule::Ready,
    spool::SpoolFile,
    store::{self, Absorbing, Change, Store},
};
use crate::{clock::Timestamp, mail::content::Content};

/// Requests of one commit.
const BATCH_MAX: usize = 1_000;
/// Octets of content in one commit.
const BATCH_OCTETS_MAX: usize = 8 * 1024 * 1024;
/// After so long without work the store is tidied, and a store that failed is tried again.
const IDLE: Duration = Duration::from_secs(1);
/// The wait between two slices of tidying that nobody waits for.
const SOON: Duration = Duration::from_millis(5);
/// How soon it is noticed that the database was told.
const WHILE_TELLING: Duration = Duration::from_millis(1);
/// The least time between two looks at the spool while there is work.
const BETWEEN_LOOKS: Duration = Duration::from_millis(100);

/// A new entry and its content.
#[derive(Debug)]
pub(super) struct NewEntry {
    pub(super) entry: Box<Entry>,
    pub(super) content: NewContent,
    /// What the history is to keep of its acceptance.
    pub(super) event: Option<Vec<u8>>,
}

/// Content on its way into the store.
#[derive(Debug)]
pub(super) enum NewContent {
    /// Goes into the journal, and into the database if it stays.
    Memory(Bytes),
    /// Lies complete and synced in the spool.
    File(SpoolFile),
}

/// What the writer is asked to make durable.
#[derive(Debug)]
pub(super) enum Request {
    /// A message was received.
    Accept(NewEntry, oneshot::Sender<Result<Receipt, Fault>>),
    /// An entry goes on: after an attempt, or because an operator said so.
    Change(Box<EntryChange>, oneshot::Sender<Result<(), Fault>>),
    /// An entry can't be read.
    SetAside(QueueId),
    /// Somebody wants to read the database.
    Absorb(oneshot::Sender<()>),
    /// The clock was set back, and left the due times of these far ahead.
    BringForward(Astray, oneshot::Sender<Result<(), Fault>>),
}

/// Queued entries whose due time may lie behind `latest`: then they are due now.
#[derive(Debug)]
pub(super) struct Astray {
    pub(super) ids: Vec<QueueId>,
    pub(super) latest: Timestamp,
    pub(super) now: Timestamp,
}

/// How an entry goes on, and the reports that this brings forth. All of it in one frame: no
/// crash can make a report twice or not at all.
#[derive(Debug)]
pub(super) struct EntryChange {
    pub(super) entry: Entry,
    pub(super) next: Next,
    pub(super) reports: Vec<NewEntry>,
    /// It is a fact: until it is recorded it is tried again. Else it is given up and told.
    pub(super) insists: bool,
}

/// Serves requests until all senders are gone.
pub(super) fn run(mut store: Store, requests: &Receiver<Request>, shared: &Arc<Shared>) {
    // Outcomes that could not be recorded. They are tried again before anything else: until then
    // their entries stay taken, so that nothing is delivered a second time meanwhile.
    let mut late: Vec<Request> = Vec::new();
    let mut readers = Readers::default();
    let (mut wait, mut tidy) = (IDLE, true);
    let mut looked = Instant::now();
    loop {
        let mut batch = std::mem::take(&mut late);
        match requests.recv_timeout(if store.is_telling() { WHILE_TELLING } else { wait }) {
            Ok(request) => {
                batch.push(request);
                gather(&mut batch, requests);
                (wait, tidy) = (IDLE, true);
            }
            Err(RecvTimeoutError::Timeout) if store.is_telling() => {
                late = batch;
                go_on_telling(&mut store, shared, &mut readers);
                continue;
            }
            Err(RecvTimeoutError::Timeout) => {
                if batch.is_empty() {
                    idle(&mut store, shared, &mut tidy);
                    wait = if tidy { SOON } else { IDLE };
                    continue;
                }
            }
            Err(RecvTimeoutError::Disconnected) if batch.is_empty() => break,
            Err(RecvTimeoutError::Disconnected) => {
                commit(&mut store, shared, batch, &mut Vec::new());
                break;
            }
        }
        let batch = readers.come(batch);
        if !batch.is_empty() {
            commit(&mut store, shared, batch, &mut late);
        }
        // Behind the answers, for which clients wait. What fails here stays where it is, durable as it was.
        go_on_telling(&mut store, shared, &mut readers);
        store.keep_house();
        if looked.elapsed() > BETWEEN_LOOKS {
            look_at_spool(shared);
            looked = Instant::now();
        }
    }
    absorb(&mut store, shared);
    let _ = store.tidy();
}

/// Those who wait until the database knows what was recorded before they came.
#[derive(Default)]
struct Readers {
    /// For what it is being told.
    of_this: Vec<oneshot::Sender<()>>,
    /// For what it is told next.
    of_next: Vec<oneshot::Sender<()>>,
}

impl Readers {
    /// Takes them out of a batch.
    fn come(&mut self, batch: Vec<Request>) -> Vec<Request> {
        let mut rest = Vec::with_capacity(batch.len());
        for request in batch {
            match request {
                Request::Absorb(done) => self.of_next.push(done),
                other => rest.push(other),
            }
        }
        rest
    }

    /// Lets go who waits no more.
    fn go(readers: &mut Vec<oneshot::Sender<()>>) {
        for done in readers.drain(..) {
            let _ = done.send(());
        }
    }
}

/// Sees to it that the database is told what it should know by now.
fn go_on_telling(store: &mut Store, shared: &Arc<Shared>, readers: &mut Readers) {
    let absorbing = store.wants_absorbing(shared.under_way());
    let is_wanted = !readers.of_next.is_empty() && !store.is_absorbed();
    if !store.is_telling() {
        tell_absorbed(store, shared);
        if absorbing != Absorbing::Now {
            Readers::go(&mut readers.of_this);
        }
        match absorbing {
            Absorbing::NotYet if !is_wanted => {}
            Absorbing::NotYet | Absorbing::Beside if store.absorb_beside() => {
                readers.of_this = std::mem::take(&mut readers.of_next);
            }
            Absorbing::NotYet | Absorbing::Beside | Absorbing::Now => absorb(store, shared),
        }
    }
    if !store.is_telling() {
        Readers::go(&mut readers.of_this);
        Readers::go(&mut readers.of_next);
    }
}

/// Tells the database what it doesn't know.
fn absorb(store: &mut Store, shared: &Arc<Shared>) {
    let mut result = store.absorb();
    if result == Err(Fault::Full) && store.give_up_reserve() {
        tracing::error!("the queue's disk is full: what was kept in reserve is given up to record outcomes");
        result = store.absorb();
    }
    if result == Err(Fault::Full) {
        result = store.absorb_outcomes();
    }
    recover(store, shared, &result);
    tell_absorbed(store, shared);
}

/// Lets the feeder see what the database was told.
fn tell_absorbed(store: &mut Store, shared: &Shared) {
    shared.behind.store(!store.is_absorbed(), Ordering::Release);
    let absorbed = store.take_absorbed();
    if absorbed.is_empty() {
        return;
    }
    let mut schedule = shared.schedule();
    for (id, due) in absorbed {
        schedule.set_up_to_date(id, due);
    }
    drop(schedule);
    shared.look.notify_one();
}

/// Takes what waits, as much as one commit should hold.
fn gather(batch: &mut Vec<Request>, requests: &Receiver<Request>) {
    let mut octets: usize = batch.iter().map(Request::octets).sum();
    while batch.len() < BATCH_MAX && octets < BATCH_OCTETS_MAX {
        let Ok(request) = requests.try_recv() else { break };
        octets += request.octets();
        batch.push(request);
    }
}

/// Where the spool took no file it is tried whether it does again.
fn look_at_spool(shared: &Shared) {
    if shared.health.spool().is_some() {
        let probed = shared.spool.probe().map_err(Fault::from);
        shared.health.note_spool(probed.as_ref().copied());
    }
}

fn idle(store: &mut Store, shared: &Arc<Shared>, tidy: &mut bool) {
    look_at_spool(shared);
    let is_well = shared.health.trouble().is_none();
    if is_well && store.is_late() && store.absorb_beside() {
        return;
    }
    // Also of a journal from which all has left, so that its file can shrink.
    if !store.is_absorbed() || *tidy {
        absorb(store, shared);
    }
    let trouble = shared.health.trouble().filter(|trouble| !trouble.records);
    if store.restore_reserve() || trouble.is_some() {
        let is_broken = trouble.is_some_and(|trouble| !trouble.full);
        let result = if is_broken { reopen(store, shared) } else { store.probe() };
        note(store, shared, &result);
        *tidy = false;
    } else if *tidy {
        *tidy = store.tidy().unwrap_or(false);
    }
}

/// Makes the batch durable, then tells: disk, memory, word, always in this order.
fn commit(store: &mut Store, shared: &Arc<Shared>, batch: Vec<Request>, late: &mut Vec<Request>) {
    store.restore_reserve();
    record(store, shared, batch, late);
}

/// As [`commit`], with what room there is.
fn record(store: &mut Store, shared: &Arc<Shared>, batch: Vec<Request>, late: &mut Vec<Request>) {
    let is_full = store.is_full();
    // What room is left is for outcomes: new mail would take it away from them.
    let (refused, batch): (Vec<_>, Vec<_>) =
        batch.into_iter().partition(|request| is_full && request.is_new_mail());
    let refuse = |refused: Vec<Request>| refused.into_iter().map(|request| (request, Err(Fault::Full)));
    if !refused.is_empty() {
        settle(shared, store, refuse(refused).collect(), late);
        if batch.is_empty() {
            return;
        }
    }
    let Some(batch) = with_names(store, shared, batch, late) else { return };
    // What happened to a message is told before it leaves, so that a crash in between loses none of it.
    if batch.iter().any(|request| matches!(request, Request::Change(..))) {
        shared.history.write();
    }
    let results = match make_durable(store, shared, &batch) {
        Err(Fault::Full) if store.give_up_reserve() => {
            tracing::error!(
                "the queue's disk is full: what was kept in reserve is given up to record outcomes"
            );
            // The reserve is not made again before this: a disk may have room for it and none for a write.
            return record(store, shared, batch, late);
        }
        Ok(()) => batch.into_iter().map(|request| (request, Ok(()))).collect(),
        // One that is alone, or all, because nothing can be written.
        Err(fault) if batch.len() == 1 || !shared.health.can_record() => {
            batch.into_iter().map(|request| (request, Err(fault.clone()))).collect()
        }
        Err(_) => batch
            .into_iter()
            .map(|request| {
                let result = make_durable(store, shared, std::slice::from_ref(&request));
                (request, result)
            })
            .collect(),
    };
    settle(shared, store, results, late);
}

/// Spool files were synced as they were written; their names must be durable before their rows. They are
/// synced once: after a failed sync a second one would lie. Then all that have a file are refused, and
/// the rest goes on, if there is any.
fn with_names(
    store: &mut Store,
    shared: &Arc<Shared>,
    batch: Vec<Request>,
    late: &mut Vec<Request>,
) -> Option<Vec<Request>> {
    if !batch.iter().any(Request::has_file) {
        return Some(batch);
    }
    let names = shared.spool.sync_directory().map_err(Fault::from);
    shared.health.note_spool(names.as_ref().copied());
    let Err(fault) = names else { return Some(batch) };
    let (refused, rest): (Vec<_>, Vec<_>) = batch.into_iter().partition(Request::has_file);
    settle(shared, store, refused.into_iter().map(|request| (request, Err(fault.clone()))).collect(), late);
    Some(rest).filter(|rest| !rest.is_empty())
}

fn make_durable(store: &mut Store, shared: &Shared, batch: &[Request]) -> Result<(), Fault> {
    let alone = batch.len() == 1;
    let changes = batch.iter().flat_map(Request::changes);
    let result = store.apply(changes, alone);
    // Damage that hinders one of many is no trouble of the store: each is tried alone.
    if alone || !store.has_met_damage() {
        recover(store, shared, &result);
    }
    result
}

/// Keeps the store's health. After an error other than a full disk the connection is given up: what
/// it believes to be in the file may not be there.
fn recover(store: &mut Store, shared: &Shared, result: &Result<(), Fault>) {
    note(store, shared, result);
    if matches!(result, Err(Fault::Broken(_))) {
        let reopened = reopen(store, shared);
        note(store, shared, &reopened);
    }
}

/// Gives up the connection for a new one, and writes by that at once. What a failed sync has refused
/// stands in the log, commit mark and all, and after a kill it would be taken for mail: it has to be
/// written over before anybody hears that it was refused.
fn reopen(store: &mut Store, shared: &Shared) -> Result<(), Fault> {
    store.reopen(&store::path(&shared.directory)).map_err(|error| Fault::Broken(error.to_string()))?;
    store.probe()?;
    store.absorb()
}

/// Notes how the store is behind an attempt to write, and tells what has changed.
fn note(store: &Store, shared: &Shared, result: &Result<(), Fault>) {
    let trouble = match result {
        Ok(()) if store.is_full() => Some(Trouble::full()),
        Ok(()) => None,
        Err(fault) => {
            Some(Trouble { reason: fault.to_string(), records: false, full: *fault == Fault::Full })
        }
    };
    let before = shared.health.set(trouble.clone());
    if trouble.as_ref().is_none_or(|trouble| trouble.records) {
        if before.as_ref().is_some_and(|before| !before.records) {
            shared.claimable.notify_waiters();
            shared.claimable.notify_one();
        }
        if trouble.is_none() && before.is_some() {
            tracing::info!("the queue can be written again");
        }
    } else if before != trouble {
        tracing::error!(reason = trouble.map(|trouble| trouble.reason), "the queue can't be written");
    }
}

fn settle(
    shared: &Arc<Shared>,
    store: &mut Store,
    mut results: Vec<(Request, Result<(), Fault>)>,
    late: &mut Vec<Request>,
) {
    shared.set_tally(store.tally());
    tell_absorbed(store, shared);
    // Behind the commit, so that nothing is told that is not so; before anybody hears of it and before
    // it can be delivered, so that all that is told is in its order.
    let mut told = false;
    for (request, result) in &mut results {
        if let (Request::Accept(new, _), Ok(())) = (request, result)
            && let Some(event) = new.event.take()
        {
            shared.history.record(Some(new.entry.id), event);
            told = true;
        }
    }
    if told {
        shared.history.write();
    }
    // Before the window is locked, which everybody waits for.
    for (request, result) in &results {
        if let (Request::Change(change, _), Ok(())) = (request, result)
            && change.next == Next::Done
            && change.entry.content.spooled
        {
            shared.spool.remove(change.entry.id);
        }
    }
    let mut woken = 0;
    {
        let mut schedule = shared.schedule();
        for (request, result) in results {
            match (request, result) {
                (Request::Accept(new, done), Ok(())) => {
                    let receipt = Receipt { id: new.entry.id };
                    woken += usize::from(new.entry.held.is_none());
                    offer(&mut schedule, shared, new);
                    let _ = done.send(Ok(receipt));
                }
                (Request::Accept(_, done), Err(fault)) => {
                    let _ = done.send(Err(fault));
                }
                (Request::Change(change, done), Ok(())) => {
                    let EntryChange { entry, next, reports, .. } = *change;
                    schedule.forget(entry.id, next.due());
                    if next == Next::Done {
                        schedule.has_left(entry.id);
                    }
                    if store.is_outdated(entry.id) {
                        schedule.set_outdated(entry.id);
                    }
                    for report in reports {
                        woken += 1;
                        offer(&mut schedule, shared, report);
                    }
                    let _ = done.send(Ok(()));
                }
                (Request::Change(change, done), Err(fault)) if !change.insists => {
                    // The store knows best when it is due.
                    schedule.forget(change.entry.id, Some(Timestamp::default()));
                    let _ = done.send(Err(fault));
                }
                (Request::Change(change, done), Err(fault)) => {
                    // Whoever waits learns of it; the change itself is not given up.
                    let _ = done.send(Err(fault));
                    late.push(Request::Change(change, oneshot::channel().0));
                }
                (Request::SetAside(id), Ok(())) => schedule.forget(id, None),
                (Request::SetAside(id), Err(_)) => {
                    // Left alone, and seen to be, until it can be noted.
                    schedule.forget(id, None);
                    schedule.pass_over(id);
                }
                (Request::Absorb(_), _) => {}
                // The feeder looks again behind it, or asks again.
                (Request::BringForward(_, done), result) => {
                    let _ = done.send(result);
                }
            }
        }
    }
    for _ in 0..woken {
        shared.claimable.notify_one();
    }
    // What was deferred may be due before the feeder meant to look.
    shared.look.notify_one();
}

fn offer(schedule: &mut super::schedule::Schedule, shared: &Shared, new: NewEntry) {
    let NewEntry { entry, content, .. } = new;
    let content = match content {
        NewContent::Memory(octets) => Content::Memory(octets),
        NewContent::File(file) => {
            file.keep();
            shared.content_file(&entry)
        }
    };
    if entry.held.is_some() {
        return;
    }
    let due = entry.first_due();
    if due > shared.clock.now() {
        schedule.forget(entry.id, Some(due));
    } else {
        schedule.offer(Ready { entry, content });
    }
}

impl Request {
    fn octets(&self) -> usize {
        match self {
            Self::Accept(new, _) => new.octets(),
            Self::Change(change, _) => change.reports.iter().map(NewEntry::octets).sum(),
            Self::SetAside(_) | Self::Absorb(_) | Self::BringForward(..) => 0,
        }
    }

    fn is_new_mail(&self) -> bool {
        matches!(self, Self::Accept(..))
    }

    fn has_file(&self) -> bool {
        matches!(self, Self::Accept(NewEntry { content: NewContent::File(_), .. }, _))
    }

    fn changes(&self) -> impl Iterator<Item = Change<'_>> + Clone {
        let (first, reports, astray) = match self {
            Self::Accept(new, _) => (Some(new.insert()), [].as_slice(), None),
            Self::Change(change, _) => {
                let EntryChange { entry, next, reports, .. } = &**change;
                let first = match next {
                    Next::Done => Change::Remove { id: entry.id, size: entry.content.size },
                    Next::Retry(due) => Change::Update { entry, due: *due },
                    Next::Hold => Change::Update { entry, due: Timestamp::default() },
                };
                (Some(first), reports.as_slice(), None)
            }
            Self::Absorb(_) => (None, [].as_slice(), None),
            Self::SetAside(id) => (Some(Change::SetAside { id: *id }), [].as_slice(), None),
            Self::BringForward(astray, _) => (None, [].as_slice(), Some(astray)),
        };
        let forward = astray.into_iter().flat_map(|Astray { ids, latest, now }| {
            ids.iter().map(|id| Change::BringForward { id: *id, latest: *latest, now: *now })
        });
        first.into_iter().chain(reports.iter().map(NewEntry::insert)).chain(forward)
    }
}

impl NewEntry {
    fn octets(&self) -> usize {
        match &self.content {
            NewContent::Memory(octets) => octets.len(),
            NewContent::File(_) => 0,
        }
    }

    fn insert(&self) -> Change<'_> {
        let octets = match &self.content {
            NewContent::Memory(octets) => Some(octets),
            NewContent::File(_) => None,
        };
        Change::Insert { entry: &self.entry, octets }
    }
}
