//! The queue keeps the promise: once [`Incoming::commit`] has returned a [`Receipt`], the message
//! survives a crash, and is delivered or reported or visibly held. Before that, nothing of it is ever
//! sent on.
//!
//! # The legal states on disk
//!
//! A row is in the journal first. What does not leave soon goes into the database, and is then in both only until
//! the journal is written from its start again.
//!
//! | | spool file | row in `message` | meaning |
//! |---|---|---|---|
//! | S1 | – | – | no such message |
//! | S2 | being written | – | a large message is being received; after a crash: swept at start |
//! | S3 | whole and synced | – | between the file and its row; after a crash: swept, nobody was told yes |
//! | S4 | – or whole | `queued` | **accepted**: content in the row's twin in `content`, or in the file |
//! | S5 | – or whole | `held` | accepted, and waits for an operator |
//! | S6 | any | `held` or `damaged` | content or record failed its checksum; set aside, left for a person |
//! | S7 | whole | – | it has left and its file is about to go; after a crash: swept |
//!
//! The one instant of acceptance is the return of the journal's sync in `store`: the row and the content, or
//! the name of its file, become durable by it. A row never exists without its content, so S2, S3 and S7
//! can be swept without looking further.
//!
//! # The order inside every verb
//!
//! Disk, then memory, then word. One thread writes (`writer`) and groups what waits into one frame of the
//! `journal`; beside it another tells the database. The `schedule` holds a bounded window of what is due; readers
//! read the database, which is told before of what it does not know.
//!
//! # What is not here
//!
//! No SMTP, no upstream, no report text: the runner brings those together. Nothing here starts a
//! task; [`Queue::feed`] is a loop that its owner runs.

pub mod archive;
pub mod backup;
pub mod check;
mod claim;
mod directory;
pub mod disk;
pub mod entry;
pub mod export;
mod fault;
mod feed;
mod format;
mod health;
pub mod history;
pub mod id;
mod identity;
pub mod import;
pub mod incoming;
mod journal;
mod lock;
mod marks;
mod operate;
mod pending;
mod reader;
mod reserve;
pub mod retry;
mod room;
mod schedule;
mod search;
mod spool;
mod store;
mod turns;
mod wal;
mod writer;

use std::{
    collections::HashSet,
    io,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc,
    },
};

use arc_swap::ArcSwap;
use bytes::Bytes;
use tokio::sync::{Notify, broadcast, oneshot};

#[cfg(fuzzing)]
pub use self::journal::fuzz as fuzz_journal;
pub use self::{
    claim::{Claim, Report, Settled},
    entry::Entry,
    fault::{Fault, OpenError},
    history::HistoryHealth,
    id::QueueId,
    incoming::Incoming,
    marks::{Flow, is_meant},
    operate::{Action, ActionError, Listed},
    search::{Search, Standing},
    turns::Turns,
};
use self::{
    directory::{make_directory, sync_path_to},
    health::Health,
    history::{History, Stops},
    id::QueueIds,
    identity::Memory,
    lock::Lock,
    reader::Reader,
    room::Room,
    schedule::Schedule,
    spool::Spool,
    store::{Store, StoreError, Tally},
    writer::Request,
};
use crate::{
    clock::{Clock, Timestamp},
    config::QueueSettings,
    mail::content::Content,
};

/// Why an entry is held whose record or content is not what was accepted.
pub const DAMAGED: &str = "damaged";
/// Damaged entries that wait to be told of.
const DAMAGED_MAX: usize = 1_000;

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

/// What the queue's handles, its writer and its readers share.
#[derive(Debug)]
struct Shared {
    directory: PathBuf,
    settings: ArcSwap<QueueSettings>,
    clock: Clock,
    spool: Spool,
    ids: QueueIds,
    schedule: Mutex<Schedule>,
    tally: Mutex<Tally>,
    /// The journal has what the database doesn't know.
    behind: AtomicBool,
    /// Messages that are being received.
    receiving: AtomicUsize,
    room: Room,
    health: Health,
    /// An entry can be claimed.
    claimable: Notify,
    /// The feeder should look at the store.
    look: Notify,
    readers: Mutex<Vec<Reader>>,
    /// Entries that are set aside, for whoever tells of it.
    damaged: broadcast::Sender<QueueId>,
    /// Messages that are being brought back from an archive: under ids that are not new.
    importing: Mutex<HashSet<QueueId>>,
    history: Arc<History>,
}

impl Shared {
    fn schedule(&self) -> MutexGuard<'_, Schedule> {
        self.schedule.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn importing(&self) -> MutexGuard<'_, HashSet<QueueId>> {
        self.importing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Messages that are being received or delivered.
    fn under_way(&self) -> usize {
        self.receiving.load(Ordering::Relaxed) + self.schedule().claimed()
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
            let whole = match std::fs::symlink_metadata(self.spool.path(entry.id)) {
                Ok(file) => file.is_file() && file.len() == entry.content.size,
                // Any other error is the host's and passes, also a spool that was moved away or is not
                // mounted; delivery will look again.
                Err(error) => error.kind() != io::ErrorKind::NotFound || !self.spool.is_there(),
            };
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
pub struct WriterThread([std::thread::JoinHandle<()>; 2]);

impl WriterThread {
    /// Waits for the writer to finish. It does once every [`Queue`] is dropped.
    pub fn join(self) {
        for thread in self.0 {
            let _ = thread.join();
        }
    }

    /// Waits for the writer, but no longer than until then; whether it has finished.
    pub fn ends_by(&self, until: std::time::Instant) -> bool {
        while self.0.iter().any(|thread| !thread.is_finished()) {
            if std::time::Instant::now() >= until {
                return false;
            }
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
        true
    }
}

impl Queue {
    /// Opens the queue, making it at first start, and starts its writer.
    ///
    /// # Errors
    /// Another process has it, it is not ours, or the disk refuses.
    pub fn open(settings: &QueueSettings, clock: Clock) -> Result<(Self, WriterThread), OpenError> {
        Self::open_with(settings, clock, None)
    }

    /// The same for the queue of a relay, which the directory `data` remembers.
    ///
    /// # Errors
    /// Also: a queue is remembered and none is there.
    pub fn open_known(
        settings: &QueueSettings,
        clock: Clock,
        data: &Path,
    ) -> Result<(Self, WriterThread), OpenError> {
        let memory = Memory::of(data)?;
        memory.expect(&settings.directory)?;
        Self::open_with(settings, clock, Some(&memory))
    }

    fn open_with(
        settings: &QueueSettings,
        clock: Clock,
        memory: Option<&Memory>,
    ) -> Result<(Self, WriterThread), OpenError> {
        let directory = settings.directory.clone();
        make_directory(&directory).map_err(|error| OpenError::io(&directory, error))?;
        let lock = Lock::take(&directory)?;
        let spool = Spool::open(&directory).map_err(|error| OpenError::io(&directory, error))?;
        let path = store::path(&directory);
        if !path.exists() {
            // Also when the volume with all that was is not mounted; we can't tell, people can.
            tracing::info!(directory = %directory.display(), "no queue was there: a new one is made");
        }
        let refuse = |error: StoreError| OpenError::Store { path: path.clone(), reason: error.to_string() };
        // Before SQLite does, which would empty it.
        wal::tell_of_damage(&path);
        let store = Store::open(&path).map_err(refuse)?;
        sync_path_to(&directory).map_err(|error| OpenError::io(&directory, error))?;
        if let Some(memory) = memory {
            memory.remember(&directory, store.identity(memory.number()));
        }
        // What a damaged log has hidden may have left its content there.
        if !wal::aside(&path).exists() && !journal::aside(&path).exists() {
            sweep(&store, &spool).map_err(|error| OpenError::io(&directory, error))?;
        }
        let mut schedule = Schedule::unknown();
        store.outdated().for_each(|id| schedule.set_outdated(id));
        let history = History::new(&directory, settings, clock.clone());
        let shared = Arc::new(Shared {
            directory,
            settings: ArcSwap::from_pointee(settings.clone()),
            clock,
            spool,
            ids: QueueIds::after(QueueId::from_i64(store.tally().last)),
            schedule: Mutex::new(schedule),
            tally: Mutex::new(store.tally()),
            behind: AtomicBool::new(!store.is_absorbed()),
            receiving: AtomicUsize::new(0),
            room: Room::default(),
            health: Health::opened(store.is_full()),
            claimable: Notify::new(),
            look: Notify::new(),
            readers: Mutex::default(),
            damaged: broadcast::Sender::new(DAMAGED_MAX),
            importing: Mutex::default(),
            history: Arc::clone(&history),
        });
        // Not bounded, because each session and each worker has at most one request in it.
        let (requests, received) = mpsc::channel();
        let start = |name: &str, work: Box<dyn FnOnce() + Send>| {
            let thread = std::thread::Builder::new().name(name.to_owned()).spawn(work);
            thread.map_err(|error| OpenError::io(&path, error))
        };
        let (writer, keeper) = (Arc::clone(&shared), Arc::clone(&history));
        let keeping = start("history", Box::new(move || keeper.keep()))?;
        let stops = Stops(history);
        let writing = Box::new(move || {
            // Whoever may write holds the lock, and nobody else: a reader that lingers keeps no one out.
            let _lock = lock;
            let _stops = stops;
            let _ended = Ended(Arc::clone(&writer));
            writer::run(store, &received, &writer);
        });
        Ok((Self { shared, requests }, WriterThread([start("queue-writer", writing)?, keeping])))
    }

    /// Goes by other bounds from now on. Where it lies can't be changed.
    pub fn change(&self, settings: &QueueSettings) {
        self.shared.settings.store(Arc::new(settings.clone()));
        self.shared.history.change(settings);
    }

    /// Begins to receive a message.
    ///
    /// # Errors
    /// There is no room for another.
    pub fn begin(&self) -> Result<Incoming, Fault> {
        if !self.has_room()? {
            return Err(Fault::Full);
        }
        let now = self.shared.clock.now();
        Ok(Incoming::new(self.clone(), self.shared.ids.next(now), now))
    }

    /// Why new mail can't be made durable now, or what is queued can't be read, if so.
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

    /// Whether outcomes can be recorded. While they can't, nothing is to be sent: it would be sent again after a
    /// restart.
    pub fn can_record(&self) -> bool {
        self.shared.health.can_record()
    }

    /// Claims an entry that is due, if one is at hand.
    pub fn try_claim(&self) -> Option<Claim> {
        if !self.can_record() {
            return None;
        }
        let mut schedule = self.shared.schedule();
        let ready = schedule.pop()?;
        if schedule.wants_look() {
            self.shared.look.notify_one();
        }
        Some(Claim { ready: Some(ready), due: None, queue: self.clone() })
    }

    /// How much is queued.
    ///
    /// # Errors
    /// The store can't be read.
    pub async fn depth(&self) -> Result<Depth, Fault> {
        let now = self.shared.clock.now();
        let mut depth = self.read(move |_, reader| reader.depth(now)).await?;
        let unreadable = (self.shared.schedule().passed_over() as u64).min(depth.active);
        depth.held += unreadable;
        depth.active -= unreadable;
        Ok(depth)
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

    /// Notes an event of a message, or of none, in the history. Never waits and never fails: whatever is
    /// wrong with the history is no reason to do less with mail.
    pub fn record(&self, id: Option<QueueId>, event: Vec<u8>) {
        self.shared.history.record(id, event);
    }

    /// Reads the history, with all that was recorded before.
    ///
    /// # Errors
    /// It can't be read.
    pub async fn read_history<T: Send + 'static>(
        &self,
        read: impl FnOnce(&history::Reader) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T, Fault> {
        let history = Arc::clone(&self.shared.history);
        tokio::task::spawn_blocking(move || history.read(read)).await.map_err(|_| Fault::stopped())?
    }

    /// Where the part of the queue is that a damaged log has hidden, until somebody moves it away.
    pub fn damaged_log(&self) -> Option<PathBuf> {
        let path = store::path(&self.shared.directory);
        [wal::aside(&path), journal::aside(&path)].into_iter().find(|path| path.exists())
    }

    /// Tells from now on which entries are found damaged and set aside.
    pub fn damaged(&self) -> broadcast::Receiver<QueueId> {
        self.shared.damaged.subscribe()
    }

    /// How the history is.
    pub fn history_health(&self) -> HistoryHealth {
        self.shared.history.health()
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

    fn request(&self, request: Request) -> Result<(), Fault> {
        self.requests.send(request).map_err(|_| Fault::stopped())
    }

    /// Has the database know what the journal has. If it can't be told, whoever reads it sees what was before.
    async fn catch_up(&self) {
        if self.shared.behind.load(Ordering::Acquire) {
            let (done, told) = oneshot::channel();
            if self.request(Request::Absorb(done)).is_ok() {
                let _ = told.await;
            }
        }
    }

    async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Shared, &Reader) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, Fault> {
        self.catch_up().await;
        self.read_as_it_is(read).await
    }

    /// The same of what the database knows by now.
    async fn read_as_it_is<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Shared, &Reader) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, Fault> {
        let shared = Arc::clone(&self.shared);
        tokio::task::spawn_blocking(move || shared.with_reader(|reader| read(&shared, reader)))
            .await
            .map_err(|_| Fault::stopped())?
    }
}

/// Notes that the writer is gone, however it ends.
struct Ended(Arc<Shared>);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.health.ended();
    }
}

/// Removes spool files that have no row: see the table of states.
fn sweep(store: &Store, spool: &Spool) -> io::Result<()> {
    for id in spool.ids()? {
        let row = store::unless_damaged(store.contains(id)).map_err(io::Error::other)?;
        match row {
            Some(true) => {}
            Some(false) => {
                tracing::info!(%id, "removing content of a message that was never accepted or has left");
                spool.remove(id);
            }
            None => tracing::warn!(%id, "content is kept whose row can't be read"),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
