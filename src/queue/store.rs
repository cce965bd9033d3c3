//! The store: one SQLite database, in WAL mode with `synchronous=FULL`.
//!
//! In front of it is the journal, which takes each batch with one append and one sync; the database
//! gets in bulk what has not left meanwhile, by a thread of its own, which a commit waits for only when it is far
//! behind. One connection writes, others only read. SQLite has no checksums of its own, so each record and each
//! content carries a CRC32C that is compared on every read.

mod absorb;
mod connection;
mod database;

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use bytes::Bytes;

pub(super) use self::{
    absorb::Absorbing,
    connection::{StoreError, is_damage},
    database::{INSERT_MESSAGE, INSERT_RECORD, known},
};
use self::{
    absorb::Beside,
    connection::{BUSY, connect, is_failed_write},
    database::Database,
};
use super::{
    Fault,
    entry::Entry,
    format::{self, FORMAT},
    id::QueueId,
    journal::{self, Journal, Step},
    marks::Flow,
    pending::{Fate, Outcome, Pending},
    reserve::Reserve,
};
use crate::clock::Timestamp;

/// What the database is behind it is told that often, and its log is brought into it, as long as anything is written.
const OFTEN: Duration = Duration::from_secs(1);
/// Entries, beside those that are under way and may leave at any moment, behind which the database is told: so few
/// that whoever wants to read it does not wait long.
const BEHIND_ENTRIES: usize = 128;
/// The same of octets, of all of them.
const BEHIND_OCTETS: usize = 4 * 1024 * 1024;
/// So many entries more are too much while it is being told: then it is waited for.
const FAR_ENTRIES: usize = 8 * BEHIND_ENTRIES;
/// So many octets more: what it is behind must find room in its log and in the reserve.
const FAR_OCTETS: usize = BEHIND_OCTETS;
/// Octets of the journal behind which it begins from its start.
const JOURNAL_OCTETS: u64 = 16 * 1024 * 1024;

/// What the `state` column says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Due since it was accepted.
    Queued = 0,
    /// Waits for its time, or has waited.
    Deferred = 1,
    /// Waits for an operator.
    Held = 2,
    /// Its record or content can't be read; set aside, never deleted by us.
    Damaged = 3,
    /// Its row can't be read, nor written; never stored.
    Unreadable = 4,
}

impl State {
    /// What a queued entry is that is due then.
    pub(super) fn queued(entry: &Entry, due: i64) -> Self {
        if due > entry.received.0 as i64 { Self::Deferred } else { Self::Queued }
    }

    pub(super) fn from_i64(value: i64) -> Self {
        match value {
            0 => Self::Queued,
            1 => Self::Deferred,
            2 => Self::Held,
            _ => Self::Damaged,
        }
    }

    /// Whether it can be read, as far as known.
    pub(super) fn is_sound(self) -> bool {
        !matches!(self, Self::Damaged | Self::Unreadable)
    }

    /// Whether it is tried when it is due.
    pub(super) fn is_queued(self) -> bool {
        matches!(self, Self::Queued | Self::Deferred)
    }
}

/// One change of a commit.
#[derive(Clone, Copy, Debug)]
pub(super) enum Change<'a> {
    /// A new entry; with its content, unless that is in the spool.
    Insert { entry: &'a Entry, octets: Option<&'a Bytes> },
    /// An entry's new state, and when it is due.
    Update { entry: &'a Entry, due: Timestamp },
    /// It has left, with so many octets of content.
    Remove { id: QueueId, size: u64 },
    /// It can't be read.
    SetAside { id: QueueId },
    /// Due behind `latest`, where no wait of ours ends, or in the future though it never waited: it is
    /// due now.
    BringForward { id: QueueId, latest: Timestamp, now: Timestamp },
}

impl Change<'_> {
    /// As the journal keeps it; `None` for what only the database can do.
    fn step(self) -> Option<Step> {
        Some(match self {
            Self::Insert { entry, octets } => Step::Insert {
                id: entry.id,
                size: entry.content.size,
                record: entry.encode().into(),
                octets: octets.cloned(),
            },
            Self::Update { entry, due } => Step::Update { id: entry.id, due, record: entry.encode().into() },
            Self::Remove { id, size } => Step::Remove { id, size },
            Self::SetAside { .. } | Self::BringForward { .. } => return None,
        })
    }
}

/// What is written of the queue.
#[derive(Debug)]
pub(super) struct Store {
    /// Whoever writes it has it, for one transaction: this, or the thread of `beside`.
    database: Arc<Mutex<Database>>,
    /// Of the database, without what `beside` tells it.
    tally: Tally,
    journal: Journal,
    /// What the database doesn't know, and is not being told.
    pending: Pending,
    /// What it is being told.
    beside: Option<Beside>,
    /// What the database was told of since [`Self::take_absorbed`], and when each is due.
    absorbed: Vec<(QueueId, Option<Timestamp>)>,
    absorbed_at: Instant,
    /// When a thread last told the database, and looked after it.
    kept_at: Instant,
    /// The database could not be told the last time, and the journal must not go on for ever.
    lags: bool,
    /// Why not, if its connection is not to be trusted any more.
    broken: Option<Fault>,
    has_met_damage: bool,
    reserve: Reserve,
}

/// How much is queued, kept with every transaction so that nobody has to count a million rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    pub(super) messages: u64,
    pub(super) octets: u64,
    /// The greatest id ever used, so that none is given out twice.
    pub(super) last: i64,
}

impl Store {
    /// Opens the database at `path`, making it at first start.
    pub(super) fn open(path: &Path) -> Result<Self, StoreError> {
        if !path.exists() {
            format::make(path)?;
        }
        Self::open_found(path, format::look(path)?)
    }

    /// Opens the database once more; it must be there. What it does not know yet stays known here.
    pub(super) fn reopen(&mut self, path: &Path) -> Result<(), StoreError> {
        self.join_beside();
        let found = format::look(path)?.ok_or(StoreError::Gone)?;
        // The old one is closed behind it: as long as one is open, the log ends where it ended for all of them.
        let database = Database::open(path, Some(found))?;
        self.tally = database.tally();
        *self.database() = database;
        self.broken = None;
        Ok(())
    }

    fn open_found(path: &Path, found: Option<i32>) -> Result<Self, StoreError> {
        let database = Database::open(path, found)?;
        let (seal, known) = database.known()?;
        let file = journal::path(path);
        let replay =
            journal::read(&file, seal, known).map_err(|error| StoreError::File(error.to_string()))?;
        if replay.lost > 0 {
            journal::set_aside(path, replay.lost);
        }
        let is_known = replay.last == known;
        let journal = Journal::new(file, seal, &replay, is_known);
        let mut store = Self {
            tally: database.tally(),
            database: Arc::new(Mutex::new(database)),
            journal,
            pending: Pending::replay(replay.steps),
            beside: None,
            absorbed: Vec::new(),
            absorbed_at: Instant::now(),
            kept_at: Instant::now(),
            lags: false,
            broken: None,
            has_met_damage: false,
            reserve: Reserve::new(path.parent().unwrap_or(path)),
        };
        if !is_known && let Err(fault) = store.absorb() {
            // It is tried again, and kept until then.
            tracing::error!(%fault, "what was recorded last can't be brought into the queue's database yet");
        }
        Ok(store)
    }

    fn look_at_tally(&mut self) {
        let tally = self.database().tally();
        self.tally = tally;
    }

    /// The database, which is waited for.
    fn database(&self) -> MutexGuard<'_, Database> {
        self.database.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the room that is left is for outcomes alone.
    pub(super) fn is_full(&self) -> bool {
        self.reserve.is_spent()
    }

    /// Frees room for outcomes. False if there was none to free.
    pub(super) fn give_up_reserve(&mut self) -> bool {
        let freed = self.reserve.give_up();
        if freed {
            self.database().restart_log();
        }
        freed
    }

    /// Makes the reserve again if it was given up and there is plenty of room. True if it was made.
    pub(super) fn restore_reserve(&mut self) -> bool {
        self.reserve.is_spent() && self.reserve.restore()
    }

    /// How much is queued.
    pub(super) fn tally(&self) -> Tally {
        let mut tally = self.tally;
        for pending in self.told().into_iter().chain([&self.pending]) {
            let (messages, octets, last) = pending.more();
            tally.messages = tally.messages.saturating_add_signed(messages);
            tally.octets = tally.octets.saturating_add_signed(octets);
            tally.last = tally.last.max(last);
        }
        tally
    }

    /// As [`Database::identity`].
    pub(super) fn identity(&self, number: i64) -> i64 {
        self.database().identity(number)
    }

    /// Whether there is an entry of this id, as of when the store was opened.
    pub(super) fn contains(&self, id: QueueId) -> rusqlite::Result<bool> {
        Ok(self.pending.is_new(id) || self.database().contains(id)?)
    }

    /// Makes all changes durable, or none. When it returns, they are on stable storage.
    ///
    /// See [`Database::write`] for `careful`.
    pub(super) fn apply<'a>(
        &mut self,
        changes: impl Iterator<Item = Change<'a>> + Clone,
        careful: bool,
    ) -> Result<(), Fault> {
        self.has_met_damage = false;
        if self.lags {
            self.absorb()?;
        }
        let steps: Option<Vec<Step>> = changes.clone().map(Change::step).collect();
        // One that comes again, as from an archive, while the database still has it from before.
        let again = |step: &Step| matches!(step, Step::Insert { id, .. } if self.is_outdated(*id));
        let steps = steps.filter(|steps| self.journal.is_sound() && !steps.iter().any(again));
        if let Some(steps) = steps {
            self.journal.append(&steps)?;
            steps.into_iter().for_each(|step| self.pending.add(step));
            return Ok(());
        }
        // By the database, which must know first what was before.
        self.absorb()?;
        let written = self.database().write(changes, careful);
        self.look_at_tally();
        self.has_met_damage = written.as_ref().is_err_and(is_damage);
        written.map_err(|error| self.fault(error))
    }

    /// SQLite knows of full disks, and takes a full quota for a broken one.
    fn fault(&self, error: rusqlite::Error) -> Fault {
        if is_failed_write(&error) && self.reserve.is_over_quota() { Fault::Full } else { error.into() }
    }

    /// Whether the last changes failed because a page can't be read.
    pub(super) fn has_met_damage(&self) -> bool {
        self.has_met_damage
    }

    /// A write that changes nothing, to learn whether the disk takes writes again.
    pub(super) fn probe(&self) -> Result<(), Fault> {
        Ok(self.database().probe()?)
    }

    /// Housekeeping while there is work; the log is left to whoever tells the database, if someone did lately.
    pub(super) fn keep_house(&self) {
        if self.beside.is_some() {
            return;
        }
        let mut database = self.database();
        let _ = match self.kept_at.elapsed() > 2 * OFTEN {
            true => database.keep_house(OFTEN),
            false => database.give_back_slice(),
        };
    }

    /// Housekeeping while nothing else is to do. True if there is more.
    pub(super) fn tidy(&self) -> rusqlite::Result<bool> {
        let more = self.database().tidy();
        let _ = self.journal.shrink();
        more
    }
}

impl Drop for Store {
    /// Nobody may open the database before the last one who writes it is gone, also where the writer panics.
    fn drop(&mut self) {
        if let Some(beside) = self.beside.take() {
            beside.end();
        }
    }
}

/// `None` where the result is that a page of the file can't be read.
pub(super) fn unless_damaged<T>(result: rusqlite::Result<T>) -> rusqlite::Result<Option<T>> {
    match result {
        Err(error) if is_damage(&error) => Ok(None),
        other => other.map(Some),
    }
}

/// Where the database of the queue in `directory` lies.
pub(super) fn path(directory: &Path) -> PathBuf {
    directory.join("queue.sqlite")
}
