//! The queue keeps the promise: once [`Incoming::commit`] has returned a [`Receipt`], the message
//! survives a crash, and is delivered or reported or visibly held. Before that, nothing of it is ever
//! sent on.
//!
//! # The legal states on disk
//!
//! | | spool file | row in `message` | meaning |
//! |---|---|---|---|
//! | S1 | – | – | no such message |
//! | S2 | being written | – | a large message is being received; after a crash: swept at start |
//! | S3 | whole and synced | – | between the file and its row; after a crash: swept, nobody was told yes |
//! | S4 | – or whole | `queued` | **accepted**: content in the row's twin in `content`, or in the file |
//! | S5 | – or whole | `held` | accepted, and waits for an operator |
//! | S6 | any | `damaged` | record or content failed its checksum; set aside, left for a person |
//! | S7 | whole | – | it has left and its file is about to go; after a crash: swept |
//!
//! The one instant of acceptance is the return of `COMMIT` in [`store`]: the row, the content or the
//! name of its file, and the tally become durable by the same sync. A row never exists without its
//! content, so S2, S3 and S7 can be swept without looking further.
//!
//! # The order inside every verb
//!
//! Disk, then memory, then word. One thread writes ([`writer`]) and groups what waits into one
//! transaction; the [`schedule`] holds a bounded window of what is due; readers read beside it.
//!
//! # What is not here
//!
//! No SMTP, no upstream, no report text: the runner brings those together. Nothing here starts a
//! task; [`Queue::feed`] is a loop that its owner runs.

pub mod entry;
pub mod id;
pub mod incoming;
mod lock;
pub mod retry;
mod schedule;
mod spool;
mod store;
mod writer;

use std::{
    io,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc},
    time::Duration,
};

use bytes::Bytes;
use tokio::sync::{Notify, oneshot};

pub use self::{entry::Entry, id::QueueId, incoming::Incoming};
use self::{
    id::QueueIds,
    lock::Lock,
    schedule::{Ready, Schedule},
    spool::Spool,
    store::{Reader, State, Store, StoreError, Tally},
    writer::{EntryChange, NewContent, NewEntry, Request},
};
use crate::{
    clock::{Clock, Timestamp},
    config::QueueSettings,
    mail::{
        content::{Content, Facts},
        envelope::{Envelope, Origin},
    },
};

/// The proof that a message is on stable storage. Only the queue makes one, and no 250 after content
/// can be said without it.
#[derive(Debug, PartialEq, Eq)]
pub struct Receipt {
    id: QueueId,
}

impl Receipt {
    /// The entry it stands for.
    pub fn id(&self) -> QueueId {
        self.id
    }
}

/// The queue can't take or change a message now. Always our trouble, never the client's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The disk, or a bound set by the operator, is full.
    #[error("no room left on the queue's disk")]
    Full,
    /// Anything else.
    #[error("{0}")]
    Broken(String),
}

impl Fault {
    fn stopped() -> Self {
        Self::Broken("the queue is shutting down".to_owned())
    }
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::Full,
            _ => Self::Broken(error.to_string()),
        }
    }
}

/// The queue can't be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it.
    #[error("the queue in {} is in use by {}", directory.display(), holder(*process))]
    InUse {
        /// Which queue.
        directory: PathBuf,
        /// By whom, as far as it said so.
        process: Option<u32>,
    },
    /// A file can't be used.
    #[error("{}: {error}", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// The database can't be used.
    #[error("{}: {reason}", path.display())]
    Store {
        /// Which.
        path: PathBuf,
        /// Why.
        reason: String,
    },
}

impl OpenError {
    fn io(path: &Path, error: io::Error) -> Self {
        Self::Io { path: path.to_owned(), error }
    }
}

fn holder(process: Option<u32>) -> String {
    process.map_or("another process".to_owned(), |id| format!("process {id}"))
}

/// How an entry goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// It has left: nobody is to be reached any more.
    Done,
    /// It is tried again then.
    Retry(Timestamp),
    /// It waits for an operator; [`Entry::held`] says why.
    Hold,
}

impl Next {
    fn due(self) -> Option<Timestamp> {
        match self {
            Self::Retry(due) => Some(due),
            Self::Done | Self::Hold => None,
        }
    }
}

/// How much is queued.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Depth {
    /// All entries.
    pub messages: u64,
    /// Octets of their content.
    pub octets: u64,
    /// Due, or being tried.
    pub active: u64,
    /// Waiting for their next try.
    pub deferred: u64,
    /// Waiting for an operator.
    pub held: u64,
    /// When the oldest was accepted.
    pub oldest: Option<Timestamp>,
}

/// An entry as a list shows it.
#[derive(Clone, Debug)]
pub struct Listed {
    /// Its name.
    pub id: QueueId,
    /// Octets.
    pub size: u64,
    /// When it wants to be tried, unless it is held.
    pub due: Timestamp,
    /// An attempt is under way at this moment.
    pub claimed: bool,
    /// The entry itself; `None` if it is damaged.
    pub entry: Option<Entry>,
}

/// An operator's action on one entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Try it now.
    Retry,
    /// Try it no more until it is released.
    Hold,
    /// Let a held one go on.
    Release,
    /// Remove it; nobody is told.
    Delete,
}

/// An operator's action was not done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ActionError {
    /// There is none of this id.
    #[error("no such message in the queue")]
    NoSuchEntry,
    /// An attempt is under way.
    #[error("the message is being delivered at this moment; try again")]
    Busy,
    /// It can't be read.
    #[error("the message is damaged: it can only be deleted")]
    Damaged,
    /// The store refused.
    #[error(transparent)]
    Fault(#[from] Fault),
}

/// Whether the store can be written, and why not.
#[derive(Debug, Default)]
struct Health(Mutex<Option<String>>);

impl Health {
    fn reason(&self) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Returns what was the reason before.
    fn set(&self, reason: Option<String>) -> Option<String> {
        std::mem::replace(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner), reason)
    }
}

/// What the queue's handles, its writer and its readers share.
#[derive(Debug)]
struct Shared {
    directory: PathBuf,
    settings: QueueSettings,
    clock: Clock,
    spool: Spool,
    ids: QueueIds,
    schedule: Mutex<Schedule>,
    tally: Mutex<Tally>,
    health: Health,
    /// An entry can be claimed.
    claimable: Notify,
    /// The feeder should look at the store.
    look: Notify,
    readers: Mutex<Vec<Reader>>,
    _lock: Lock,
}

impl Shared {
    fn schedule(&self) -> MutexGuard<'_, Schedule> {
        self.schedule.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_tally(&self, tally: Tally) {
        *self.tally.lock().unwrap_or_else(PoisonError::into_inner) = tally;
    }

    fn content_file(&self, entry: &Entry) -> Content {
        let info = entry.content;
        Content::File { path: self.spool.path(entry.id), size: info.size, crc32c: info.crc32c }
    }

    /// Runs `read` with a reading connection; they are kept for the next time.
    fn with_reader<T>(&self, read: impl FnOnce(&Reader) -> rusqlite::Result<T>) -> Result<T, Fault> {
        let pooled = || self.readers.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = pooled().pop();
        let reader = match kept {
            Some(reader) => reader,
            None => Reader::open(&store::path(&self.directory))?,
        };
        let result = read(&reader);
        if result.is_ok() {
            pooled().push(reader);
        }
        Ok(result?)
    }

    /// The content of an entry, compared with its checksum if it is in the database.
    fn content(&self, reader: &Reader, entry: &Entry) -> rusqlite::Result<Option<Content>> {
        if entry.content.spooled {
            let content = self.content_file(entry);
            let whole = std::fs::metadata(self.spool.path(entry.id))
                .is_ok_and(|file| file.is_file() && file.len() == entry.content.size);
            return Ok(whole.then_some(content));
        }
        let octets = reader.octets(entry.id)?;
        let sound = |octets: &Bytes| {
            octets.len() as u64 == entry.content.size && crc32c::crc32c(octets) == entry.content.crc32c
        };
        Ok(octets.filter(sound).map(Content::Memory))
    }
}

/// The queue. Clones share it.
#[derive(Clone, Debug)]
pub struct Queue {
    shared: Arc<Shared>,
    requests: mpsc::Sender<Request>,
}

/// The writer's thread; joining it waits until all that was asked is on disk.
#[derive(Debug)]
pub struct WriterThread(std::thread::JoinHandle<()>);

impl WriterThread {
    /// Waits for the writer to finish. It does once every [`Queue`] is dropped.
    pub fn join(self) {
        let _ = self.0.join();
    }
}

impl Queue {
    /// Opens the queue, making it at first start, and starts its writer.
    ///
    /// # Errors
    /// Another process has it, it is not ours, or the disk refuses.
    pub fn open(settings: &QueueSettings, clock: Clock) -> Result<(Self, WriterThread), OpenError> {
        let directory = settings.directory.clone();
        make_directory(&directory).map_err(|error| OpenError::io(&directory, error))?;
        let lock = Lock::take(&directory)?;
        let spool = Spool::open(&directory).map_err(|error| OpenError::io(&directory, error))?;
        let path = store::path(&directory);
        let refuse = |error: StoreError| OpenError::Store { path: path.clone(), reason: error.to_string() };
        let store = Store::open(&path).map_err(refuse)?;
        let greatest = store.greatest_id().map_err(|error| refuse(error.into()))?;
        sweep(&store, &spool).map_err(|error| OpenError::io(&directory, error))?;
        let shared = Arc::new(Shared {
            directory,
            settings: settings.clone(),
            clock,
            spool,
            ids: QueueIds::after(greatest),
            schedule: Mutex::new(Schedule::unknown()),
            tally: Mutex::new(store.tally()),
            health: Health::default(),
            claimable: Notify::new(),
            look: Notify::new(),
            readers: Mutex::default(),
            _lock: lock,
        });
        // Not bounded, because each session and each worker has at most one request in it.
        let (requests, received) = mpsc::channel();
        let writer = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("queue-writer".to_owned())
            .spawn(move || writer::run(store, &received, &writer))
            .map_err(|error| OpenError::io(&path, error))?;
        Ok((Self { shared, requests }, WriterThread(thread)))
    }

    /// Begins to receive a message.
    ///
    /// # Errors
    /// There is no room for another.
    pub fn begin(&self) -> Result<Incoming, Fault> {
        let (settings, tally) = (&self.shared.settings, self.tally());
        if settings.max_messages.is_some_and(|max| tally.messages >= max)
            || settings.max_bytes.is_some_and(|max| tally.octets >= max)
            || self.free_space()? < settings.min_free
        {
            return Err(Fault::Full);
        }
        let now = self.shared.clock.now();
        Ok(Incoming::new(self.clone(), self.shared.ids.next(now), now))
    }

    /// Why new mail can't be made durable now, if so.
    pub fn trouble(&self) -> Option<String> {
        if let Some(reason) = self.shared.health.reason() {
            return Some(reason);
        }
        match self.begin() {
            Ok(_) => None,
            Err(Fault::Full) => Some("the queue's disk or one of its bounds is full".to_owned()),
            Err(fault) => Some(fault.to_string()),
        }
    }

    /// Waits until an entry is due and claims it.
    pub async fn claim(&self) -> Claim {
        loop {
            let changed = self.shared.claimable.notified();
            if let Some(claim) = self.try_claim() {
                return claim;
            }
            changed.await;
        }
    }

    /// Claims an entry that is due, if one is at hand.
    pub fn try_claim(&self) -> Option<Claim> {
        // While outcomes can't be recorded, nothing is sent: it would be sent again after a restart.
        if self.shared.health.reason().is_some() {
            return None;
        }
        let mut schedule = self.shared.schedule();
        let ready = schedule.pop()?;
        if schedule.wants_look() {
            self.shared.look.notify_one();
        }
        Some(Claim { ready: Some(ready), queue: self.clone() })
    }

    /// Records how a claimed entry goes on, and accepts the reports that this brings forth, in one
    /// transaction. The work begins at once; the future tells when it is durable.
    pub fn settle(&self, claim: Claim, next: Next, reports: Vec<Report>) -> Settled {
        let (done, answer) = oneshot::channel();
        if let Some(ready) = claim.into_inner() {
            let reports = reports.into_iter().map(|report| self.new_report(report)).collect();
            let change = Box::new(EntryChange { entry: *ready.entry, next, reports });
            // If the writer is gone, so is the process in a moment; the entry is still on disk.
            let _ = self.requests.send(Request::Change(change, done));
        }
        Settled(answer)
    }

    /// Keeps the window filled from the store. Runs until it is dropped.
    pub async fn feed(&self) {
        /// However far away the next due time is, so that a clock set forward is noticed.
        const LONGEST: Duration = Duration::from_secs(30);
        loop {
            let now = self.shared.clock.now();
            let look = self.shared.schedule().next_look(now);
            match look {
                Some(at) if at <= now => {
                    if let Err(fault) = self.look(now).await {
                        tracing::error!(%fault, "the queue can't be read");
                        tokio::time::sleep(Duration::from_secs(1)).await;
                    }
                }
                other => {
                    let wait = other.map_or(LONGEST, |at| at.since(now).min(LONGEST));
                    let _ = tokio::time::timeout(wait, self.shared.look.notified()).await;
                    let now = self.shared.clock.now();
                    let mut schedule = self.shared.schedule();
                    if schedule.next_look(now).is_some_and(|at| at <= now) {
                        schedule.look_again();
                    }
                }
            }
        }
    }

    /// How much is queued.
    ///
    /// # Errors
    /// The store can't be read.
    pub async fn depth(&self) -> Result<Depth, Fault> {
        let now = self.shared.clock.now();
        self.read(move |_, reader| reader.depth(now)).await
    }

    /// Entries behind `after` in the order of their arrival, at most `limit`.
    ///
    /// # Errors
    /// The store can't be read.
    pub async fn list(&self, after: Option<QueueId>, limit: usize) -> Result<Vec<Listed>, Fault> {
        self.read(move |shared, reader| {
            let rows = reader.list(after, limit)?;
            let schedule = shared.schedule();
            Ok(rows.into_iter().map(|row| listed(row, &schedule)).collect())
        })
        .await
    }

    /// One entry.
    ///
    /// # Errors
    /// The store can't be read.
    pub async fn get(&self, id: QueueId) -> Result<Option<Listed>, Fault> {
        self.read(move |shared, reader| {
            let row = reader.get(id)?;
            let schedule = shared.schedule();
            Ok(row.map(|row| listed(row, &schedule)))
        })
        .await
    }

    /// The content of an entry; `None` if there is none, or it is damaged.
    ///
    /// # Errors
    /// The store can't be read.
    pub async fn content(&self, id: QueueId) -> Result<Option<Content>, Fault> {
        self.read(move |shared, reader| match reader.get(id)?.and_then(|row| row.entry) {
            Some(entry) => shared.content(reader, &entry),
            None => Ok(None),
        })
        .await
    }

    /// Does what an operator asks with one entry.
    ///
    /// # Errors
    /// See [`ActionError`].
    pub async fn act(&self, id: QueueId, action: Action, reason: &str) -> Result<(), ActionError> {
        if !self.shared.schedule().withdraw(id) {
            return Err(ActionError::Busy);
        }
        let result = self.act_on_withdrawn(id, action, reason).await;
        if result.is_err() {
            // It goes on as it was; the store knows best when.
            self.shared.schedule().forget(id, Some(Timestamp::default()));
            self.shared.look.notify_one();
        }
        result
    }

    async fn act_on_withdrawn(&self, id: QueueId, action: Action, reason: &str) -> Result<(), ActionError> {
        let listed = self.get(id).await?.ok_or(ActionError::NoSuchEntry)?;
        if listed.entry.is_none() && action != Action::Delete {
            return Err(ActionError::Damaged);
        }
        let now = self.shared.clock.now();
        let mut entry = listed.entry.unwrap_or_else(|| Entry::placeholder(id, now, listed.size));
        let next = match action {
            Action::Delete => Next::Done,
            Action::Hold => {
                entry.held = Some(reason.to_owned());
                Next::Hold
            }
            // A held entry stays held until it is released: trying it is another decision.
            Action::Retry if entry.held.is_some() => Next::Hold,
            Action::Retry => Next::Retry(now),
            Action::Release => {
                entry.held = None;
                Next::Retry(now)
            }
        };
        let (done, answer) = oneshot::channel();
        let change = Box::new(EntryChange { entry, next, reports: Vec::new() });
        self.request(Request::Change(change, done))?;
        answer.await.map_err(|_| Fault::stopped())??;
        Ok(())
    }

    /// Entries that are claimed at this moment.
    pub fn claimed(&self) -> usize {
        self.shared.schedule().claimed()
    }

    /// Entries that could be claimed at once.
    pub fn waiting(&self) -> usize {
        self.shared.schedule().waiting()
    }

    /// How much is queued, as of the last commit.
    fn tally(&self) -> Tally {
        *self.shared.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn free_space(&self) -> Result<u64, Fault> {
        if self.shared.settings.min_free == 0 {
            return Ok(u64::MAX);
        }
        let disk = rustix::fs::statvfs(&self.shared.directory).map_err(io::Error::from)?;
        Ok(disk.f_bavail.saturating_mul(disk.f_frsize))
    }

    fn request(&self, request: Request) -> Result<(), Fault> {
        self.requests.send(request).map_err(|_| Fault::stopped())
    }

    fn new_report(&self, report: Report) -> NewEntry {
        let now = self.shared.clock.now();
        let content = Bytes::from(report.content);
        let facts = Facts::of(&content, true).unwrap_or_default();
        let entry = Entry {
            id: self.shared.ids.next(now),
            received: now,
            reverse_path: report.envelope.reverse_path,
            recipients: report.envelope.recipients.into_iter().map(entry::Recipient::new).collect(),
            eight_bit: report.envelope.eight_bit,
            origin: report.origin,
            content: entry::ContentInfo {
                size: content.len() as u64,
                crc32c: crc32c::crc32c(&content),
                spooled: false,
            },
            hops: facts.hops,
            subject: facts.subject,
            message_id: facts.message_id,
            held: report.held,
        };
        NewEntry { entry: Box::new(entry), content: NewContent::Memory(content) }
    }

    /// One look at the store: fills the window with what is due.
    async fn look(&self, now: Timestamp) -> Result<(), Fault> {
        let queue = self.clone();
        let limit = {
            let mut schedule = self.shared.schedule();
            schedule.begin_look();
            schedule.look_limit()
        };
        let looked = self.read(move |shared, reader| {
            let due = reader.due(now, limit)?;
            let mut found = Vec::new();
            let mut octets = 0;
            let complete = due.len() < limit;
            for id in due {
                if shared.schedule().is_taken(id) {
                    continue;
                }
                match queue.load(shared, reader, id, now)? {
                    Loaded::Ready(ready) => {
                        octets += ready.content.octets_in_memory();
                        found.push(ready);
                    }
                    Loaded::Damaged => queue.set_aside(id),
                    Loaded::Gone => {}
                }
                if octets > LOOK_OCTETS_MAX {
                    shared.schedule().fill(found, false, None);
                    return Ok(());
                }
            }
            let next_due = if complete { reader.next_due(now)? } else { None };
            shared.schedule().fill(found, complete, next_due);
            Ok(())
        });
        if let Err(fault) = looked.await {
            self.shared.schedule().fill(Vec::new(), false, None);
            return Err(fault);
        }
        for _ in 0..self.waiting() {
            self.shared.claimable.notify_one();
        }
        Ok(())
    }

    fn load(
        &self,
        shared: &Shared,
        reader: &Reader,
        id: QueueId,
        now: Timestamp,
    ) -> rusqlite::Result<Loaded> {
        let entry = match reader.get(id)? {
            Some(row) if row.state == State::Queued && row.due <= now => row.entry,
            _ => return Ok(Loaded::Gone),
        };
        let Some(entry) = entry else { return Ok(Loaded::Damaged) };
        Ok(match shared.content(reader, &entry)? {
            Some(content) => Loaded::Ready(Ready { entry: Box::new(entry), content }),
            // It may have left between the two reads.
            None if reader.get(id)?.is_none() => Loaded::Gone,
            None => Loaded::Damaged,
        })
    }

    /// Sets a damaged entry aside, so that the others go on.
    fn set_aside(&self, id: QueueId) {
        if self.shared.schedule().withdraw(id) {
            tracing::error!(%id, "a damaged message is set aside as held");
            let _ = self.request(Request::SetAside(id));
        }
    }

    async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Shared, &Reader) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, Fault> {
        let shared = Arc::clone(&self.shared);
        tokio::task::spawn_blocking(move || shared.with_reader(|reader| read(&shared, reader)))
            .await
            .map_err(|_| Fault::stopped())?
    }
}

/// What the store had under an id.
enum Loaded {
    /// An entry that is due.
    Ready(Ready),
    /// Nothing that is due any more.
    Gone,
    /// An entry whose record or content fails its checksum.
    Damaged,
}

/// Octets of content brought into the window by one look at the store.
const LOOK_OCTETS_MAX: usize = 8 * 1024 * 1024;

/// A message of our own making: a report, or a copy of one.
#[derive(Debug)]
pub struct Report {
    /// Whom it is for.
    pub envelope: Envelope,
    /// Where it comes from: ourselves.
    pub origin: Origin,
    /// Complete, header and all.
    pub content: Vec<u8>,
    /// Why it waits for an operator, if it can't be sent to anybody.
    pub held: Option<String>,
}

/// An entry that one worker has to itself. Dropped unsettled, it goes back as it was; dropped by a
/// panic it is held, for whatever caused that would cause it again and again.
#[derive(Debug)]
pub struct Claim {
    ready: Option<Ready>,
    queue: Queue,
}

impl Claim {
    /// The entry.
    pub fn entry(&self) -> &Entry {
        &self.ready.as_ref().expect("because only settling empties a claim, and that consumes it").entry
    }

    /// The entry, to note outcomes in it.
    pub fn entry_mut(&mut self) -> &mut Entry {
        &mut self.ready.as_mut().expect("because only settling empties a claim, and that consumes it").entry
    }

    /// Its content.
    pub fn content(&self) -> &Content {
        &self.ready.as_ref().expect("because only settling empties a claim, and that consumes it").content
    }

    fn into_inner(mut self) -> Option<Ready> {
        self.ready.take()
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let Some(mut ready) = self.ready.take() else { return };
        if std::thread::panicking() {
            ready.entry.held = Some("internal error while it was being delivered; see the log".to_owned());
            let change = EntryChange { entry: *ready.entry, next: Next::Hold, reports: Vec::new() };
            let _ = self.queue.request(Request::Change(Box::new(change), oneshot::channel().0));
        } else {
            self.queue.shared.schedule().give_back(ready);
            self.queue.shared.claimable.notify_one();
        }
    }
}

/// Tells when a settlement is durable.
#[derive(Debug)]
pub struct Settled(oneshot::Receiver<Result<(), Fault>>);

impl Settled {
    /// Waits for it.
    ///
    /// # Errors
    /// It could not be recorded yet. The queue goes on trying, and keeps the entry to itself until
    /// then.
    pub async fn durable(self) -> Result<(), Fault> {
        self.0.await.map_err(|_| Fault::stopped())?
    }
}

fn listed(row: store::Row, schedule: &Schedule) -> Listed {
    let claimed = schedule.is_claimed(row.id);
    let entry = if row.state == State::Damaged { None } else { row.entry };
    Listed { id: row.id, size: row.size, due: row.due, claimed, entry }
}

/// Removes spool files that have no row: see the table of states.
fn sweep(store: &Store, spool: &Spool) -> io::Result<()> {
    for id in spool.ids()? {
        if !store.contains(id).map_err(io::Error::other)? {
            tracing::info!(%id, "removing content of a message that was never accepted or has left");
            spool.remove(id);
        }
    }
    Ok(())
}

/// Makes a directory that only we can look into.
fn make_directory(path: &Path) -> io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

#[cfg(test)]
mod tests;
