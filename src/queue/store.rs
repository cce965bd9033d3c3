//! The store: one SQLite database, in WAL mode with `synchronous=FULL`.
//!
//! In front of it is the journal, which takes each batch with one append and one sync; the database
//! gets in bulk what has not left meanwhile. One connection writes, others only read. SQLite has no
//! checksums of its own, so each record and each content carries a CRC32C that is compared on every read.

mod absorb;
mod connection;

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use bytes::Bytes;
use rusqlite::{Connection, named_params, params};

use self::connection::{BUSY, connect, is_failed_write};
pub(super) use self::connection::{StoreError, is_damage};
use super::{
    Fault,
    entry::Entry,
    format::{self, FORMAT},
    id::QueueId,
    journal::{self, Journal, Step},
    marks::{self, Flow},
    pending::{Fate, Outcome, Pending},
    reserve::Reserve,
};
use crate::clock::Timestamp;

/// Pages of the WAL behind which it is brought into the database: 4 MiB. What leaves soon is never written a
/// second time, since its pages are used again before; but damage in a WAL loses what follows, so there
/// should never be much of it.
const LOG_PAGES: i64 = 1_000;
/// It is also done that often, as long as anything is written.
const OFTEN: Duration = Duration::from_secs(1);
/// Entries, beside those that are under way and may leave at any moment, that the database is behind at most: so
/// few that nobody waits long while they are brought there.
const BEHIND_ENTRIES: usize = 128;
/// The same of octets, of all of them.
const BEHIND_OCTETS: usize = 4 * 1024 * 1024;
/// Octets of the journal behind which it begins from its start.
const JOURNAL_OCTETS: u64 = 16 * 1024 * 1024;

/// A row of `message`.
pub(super) const INSERT_MESSAGE: &str =
    "INSERT INTO message(id, state, due, size, flow, sender, recipients) VALUES(?, ?, ?, ?, ?, ?, ?)";
/// Its record.
pub(super) const INSERT_RECORD: &str = "INSERT INTO record(id, octets) VALUES(?, ?)";

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

/// One change of a transaction.
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

/// How much of an entry is removed. Without its row nobody looks for the rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Removal {
    Whole,
    /// Its content stays.
    Record,
    /// Its record stays as well.
    Row,
    /// All of it stays, set aside.
    None,
}

impl Removal {
    const ALL: &[Self] = &[Self::Whole, Self::Record, Self::Row, Self::None];
}

/// The writing connection.
#[derive(Debug)]
pub(super) struct Store {
    connection: Connection,
    has_met_damage: bool,
    /// Of the database.
    tally: Tally,
    journal: Journal,
    pending: Pending,
    /// What the database was told of since [`Self::take_absorbed`], and when each is due.
    absorbed: Vec<(QueueId, Option<Timestamp>)>,
    absorbed_at: Instant,
    /// The database could not be told the last time, and the journal must not go on for ever.
    lags: bool,
    reserve: Reserve,
    checkpointed: Instant,
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
        let found = format::look(path)?.ok_or(StoreError::Gone)?;
        // The old one is closed behind it: as long as one is open, the log ends where it ended for all of them.
        self.connection = connect(path, Some(found))?;
        self.tally = read_tally(&self.connection)?;
        Ok(())
    }

    fn open_found(path: &Path, found: Option<i32>) -> Result<Self, StoreError> {
        let connection = connect(path, found)?;
        let tally = read_tally(&connection)?;
        let (seal, known) = known(&connection)?;
        let file = journal::path(path);
        let replay =
            journal::read(&file, seal, known).map_err(|error| StoreError::File(error.to_string()))?;
        if replay.lost > 0 {
            journal::set_aside(path, replay.lost);
        }
        let is_known = replay.last == known;
        let journal = Journal::new(file, seal, &replay, is_known);
        let pending = Pending::replay(replay.steps);
        let reserve = Reserve::new(path.parent().unwrap_or(path));
        let mut store = Self {
            connection,
            has_met_damage: false,
            tally,
            journal,
            pending,
            absorbed: Vec::new(),
            absorbed_at: Instant::now(),
            lags: false,
            reserve,
            checkpointed: Instant::now(),
        };
        if !is_known && let Err(fault) = store.absorb() {
            // It is tried again, and kept until then.
            tracing::error!(%fault, "what was recorded last can't be brought into the queue's database yet");
        }
        Ok(store)
    }

    /// Whether the room that is left is for outcomes alone.
    pub(super) fn is_full(&self) -> bool {
        self.reserve.is_spent()
    }

    /// Frees room for outcomes. False if there was none to free.
    pub(super) fn give_up_reserve(&mut self) -> bool {
        let freed = self.reserve.give_up();
        if freed {
            // The WAL then begins from its start instead of growing.
            let _ = self.connection.query_row("PRAGMA wal_checkpoint(RESTART)", [], |_| Ok(()));
        }
        freed
    }

    /// Makes the reserve again if it was given up and there is plenty of room. True if it was made.
    pub(super) fn restore_reserve(&mut self) -> bool {
        self.reserve.is_spent() && self.reserve.restore()
    }

    /// How much is queued.
    pub(super) fn tally(&self) -> Tally {
        let (messages, octets, last) = self.pending.more();
        Tally {
            messages: self.tally.messages.saturating_add_signed(messages),
            octets: self.tally.octets.saturating_add_signed(octets),
            last: self.tally.last.max(last),
        }
    }

    /// The number that tells this queue from others; it gets this one if it has none. It does without where that
    /// can't be written.
    pub(super) fn identity(&mut self, number: i64) -> i64 {
        let give = "INSERT INTO meta(key, value) VALUES('identity', ?) ON CONFLICT DO NOTHING";
        if let Err(error) = self.connection.execute(give, [number]) {
            tracing::warn!(%error, "the queue can't be given a number");
        }
        let given = "SELECT value FROM meta WHERE key = 'identity'";
        self.connection.query_row(given, [], |row| row.get(0)).unwrap_or(number)
    }

    /// Whether there is an entry of this id.
    pub(super) fn contains(&self, id: QueueId) -> rusqlite::Result<bool> {
        Ok(self.pending.is_new(id) || self.is_in_database(id)?)
    }

    fn is_in_database(&self, id: QueueId) -> rusqlite::Result<bool> {
        self.connection.prepare_cached("SELECT 1 FROM message WHERE id = ?")?.exists([id.to_i64()])
    }

    /// Makes all changes durable, or none. When it returns, they are on stable storage.
    ///
    /// See [`Self::write`] for `careful`.
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
        let again = |step: &Step| matches!(step, Step::Insert { id, .. } if self.pending.is_outdated(*id));
        let steps = steps.filter(|steps| self.journal.is_sound() && !steps.iter().any(again));
        if let Some(steps) = steps {
            self.journal.append(&steps)?;
            steps.into_iter().for_each(|step| self.pending.add(step));
            return Ok(());
        }
        // By the database, which must know first what was before.
        self.absorb()?;
        self.write(changes, careful)
    }

    /// The same in the database, in one transaction.
    ///
    /// With `careful`, what can't be removed whole because a page beside it can't be read is removed as
    /// far as may be, and at least set aside: it must not be sent again.
    fn write<'a>(
        &mut self,
        changes: impl Iterator<Item = Change<'a>> + Clone,
        careful: bool,
    ) -> Result<(), Fault> {
        let removals = if careful { Removal::ALL } else { &Removal::ALL[..1] };
        let mut result = Ok(());
        for removal in removals {
            let before = self.tally;
            result = self.transaction(None, |store| {
                changes.clone().try_for_each(|change| store.change(change, *removal))
            });
            if result.is_err() {
                self.undo(before);
            }
            self.has_met_damage = result.as_ref().is_err_and(is_damage);
            if !self.has_met_damage {
                break;
            }
        }
        result.map_err(|error| self.fault(error))
    }

    /// SQLite knows of full disks, and takes a full quota for a broken one.
    fn fault(&self, error: rusqlite::Error) -> Fault {
        if is_failed_write(&error) && self.reserve.is_over_quota() { Fault::Full } else { error.into() }
    }

    /// Whether the last changes failed because a page can't be read.
    pub(super) fn has_met_damage(&self) -> bool {
        self.has_met_damage
    }

    /// One transaction; behind it the database has all frames of the journal up to `known`.
    fn transaction(
        &mut self,
        known: Option<u64>,
        work: impl FnOnce(&mut Self) -> rusqlite::Result<()>,
    ) -> rusqlite::Result<()> {
        self.connection.prepare_cached("BEGIN IMMEDIATE")?.execute([])?;
        work(self)?;
        let mut keep = self.connection.prepare_cached("UPDATE meta SET value = ? WHERE key = ?")?;
        keep.execute(params![self.tally.messages as i64, "messages"])?;
        keep.execute(params![self.tally.octets as i64, "octets"])?;
        keep.execute(params![self.tally.last, "last"])?;
        if let Some(known) = known {
            keep.execute(params![known as i64, "journal"])?;
        }
        drop(keep);
        self.connection.prepare_cached("COMMIT")?.execute([])?;
        Ok(())
    }

    /// Behind a transaction that failed.
    fn undo(&mut self, before: Tally) {
        self.tally = before;
        // A failed COMMIT may leave the transaction open; a failed ROLLBACK has nothing to undo.
        if !self.connection.is_autocommit() {
            let _ = self.connection.execute_batch("ROLLBACK");
        }
    }

    fn change(&mut self, change: Change<'_>, removal: Removal) -> rusqlite::Result<()> {
        let connection = &self.connection;
        match change {
            Change::Insert { entry, octets } => {
                self.insert(entry, &entry.encode(), octets.map(|octets| &octets[..]))?;
            }
            Change::Update { entry, due } => self.update(entry, due, &entry.encode())?,
            Change::Remove { id, .. } if removal == Removal::None => {
                return self.change(Change::SetAside { id }, removal);
            }
            Change::Remove { id, size } => {
                let id = id.to_i64();
                let gone = connection.prepare_cached("DELETE FROM message WHERE id = ?")?.execute([id])?;
                if removal != Removal::Row {
                    connection.prepare_cached("DELETE FROM record WHERE id = ?")?.execute([id])?;
                }
                if removal == Removal::Whole {
                    connection.prepare_cached("DELETE FROM content WHERE id = ?")?.execute([id])?;
                }
                if gone > 0 {
                    self.tally.messages = self.tally.messages.saturating_sub(1);
                    self.tally.octets = self.tally.octets.saturating_sub(size);
                }
            }
            Change::SetAside { id } => {
                connection
                    .prepare_cached("UPDATE message SET state = ? WHERE id = ?")?
                    .execute(params![State::Damaged as i32, id.to_i64()])?;
            }
            Change::BringForward { id, latest, now } => {
                connection
                    .prepare_cached(
                        "UPDATE message SET due = :now WHERE id = :id
                         AND (state = 1 AND due > :latest OR state = 0 AND due > :now)",
                    )?
                    .execute(named_params! {
                        ":now": now.0 as i64, ":id": id.to_i64(), ":latest": latest.0 as i64
                    })?;
            }
        }
        Ok(())
    }

    fn insert(&mut self, entry: &Entry, record: &[u8], octets: Option<&[u8]>) -> rusqlite::Result<()> {
        let connection = &self.connection;
        let id = entry.id.to_i64();
        let due = entry.first_due().0 as i64;
        let recipients = marks::recipients(entry.recipients.iter().map(|one| one.address.as_str()));
        connection.prepare_cached(INSERT_MESSAGE)?.execute(params![
            id,
            state_of(entry, || State::queued(entry, due)) as i32,
            due,
            entry.content.size as i64,
            Flow::of(entry).to_i64(),
            marks::sender(entry.reverse_path.as_str()),
            recipients
        ])?;
        connection.prepare_cached(INSERT_RECORD)?.execute(params![id, record])?;
        if let Some(octets) = octets {
            connection
                .prepare_cached("INSERT INTO content(id, octets) VALUES(?, ?)")?
                .execute(params![id, octets])?;
        }
        self.tally.last = self.tally.last.max(id);
        self.tally.messages += 1;
        self.tally.octets += entry.content.size;
        Ok(())
    }

    fn update(&mut self, entry: &Entry, due: Timestamp, record: &[u8]) -> rusqlite::Result<()> {
        let id = entry.id.to_i64();
        self.connection
            .prepare_cached("UPDATE message SET state = ?, due = ? WHERE id = ?")?
            .execute(params![state_of(entry, || State::Deferred) as i32, due.0 as i64, id])?;
        self.connection
            .prepare_cached("UPDATE record SET octets = ? WHERE id = ?")?
            .execute(params![record, id])?;
        Ok(())
    }

    /// A write that changes nothing, to learn whether the disk takes writes again. Where the log ends
    /// stands a new frame then, whatever stood there before.
    pub(super) fn probe(&mut self) -> Result<(), Fault> {
        // A row that is as it should be SQLite does not write, and then syncs nothing; this it always does.
        Ok(self.connection.pragma_update(None, "user_version", FORMAT)?)
    }

    /// Brings the WAL's pages into the database: once there are many, or when it was not done for a second,
    /// so that what is free can be given back also while mail trickles on.
    pub(super) fn checkpoint(&mut self) -> rusqlite::Result<()> {
        let pages: i64 =
            self.connection.prepare_cached("PRAGMA wal_checkpoint(NOOP)")?.query_row([], |row| row.get(1))?;
        if pages < LOG_PAGES && self.checkpointed.elapsed() < OFTEN {
            return Ok(());
        }
        self.checkpointed = Instant::now();
        if pages < LOG_PAGES / 4 {
            return self.empty_log();
        }
        // The file keeps its size: to write over it needs no word of it in the file system's journal.
        self.connection.prepare_cached("PRAGMA wal_checkpoint(PASSIVE)")?.query_row([], |_| Ok(()))
    }

    /// Brings all of the WAL into the database and gives its room back.
    fn empty_log(&mut self) -> rusqlite::Result<()> {
        // A reader that takes long, as a backup does, is not waited for: new mail would wait with it.
        self.connection.busy_timeout(Duration::ZERO)?;
        let emptied = self.connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()));
        self.connection.busy_timeout(BUSY)?;
        emptied
    }

    /// Housekeeping while nothing else is to do: empties the WAL and gives free pages back to the
    /// file system. True if there is more.
    pub(super) fn tidy(&mut self) -> rusqlite::Result<bool> {
        self.empty_log()?;
        let _ = self.journal.shrink();
        // A few pages are kept, so that a quiet relay doesn't grow and shrink its file all day.
        self.give_back_some(256)
    }

    /// Gives some of the free pages back, if there are more than `kept`: few enough that mail never
    /// waits long for it, enough that all are back within a minute. True if there were.
    pub(super) fn give_back_some(&mut self, kept: u64) -> rusqlite::Result<bool> {
        let free: i64 = self.connection.pragma_query_value(None, "freelist_count", |row| row.get(0))?;
        let free = free.unsigned_abs();
        if free <= kept {
            return Ok(false);
        }
        let slice = (free / 128).clamp(512, 4_096);
        let mut statement = self.connection.prepare(&format!("PRAGMA incremental_vacuum({slice})"))?;
        let mut rows = statement.query([])?;
        while rows.next()?.is_some() {}
        Ok(true)
    }
}

/// `None` where the result is that a page of the file can't be read.
pub(super) fn unless_damaged<T>(result: rusqlite::Result<T>) -> rusqlite::Result<Option<T>> {
    match result {
        Err(error) if is_damage(&error) => Ok(None),
        other => other.map(Some),
    }
}

fn state_of(entry: &Entry, otherwise: impl Fn() -> State) -> State {
    if entry.held.is_some() { State::Held } else { otherwise() }
}

fn meta(connection: &Connection, key: &str) -> rusqlite::Result<i64> {
    connection.query_row("SELECT value FROM meta WHERE key = ?", [key], |row| row.get(0))
}

/// The seal of the journal's frames, and the number of the last one that the database knows.
pub(super) fn known(connection: &Connection) -> rusqlite::Result<(i64, u64)> {
    Ok((meta(connection, "seal")?, meta(connection, "journal")?.unsigned_abs()))
}

fn read_tally(connection: &Connection) -> rusqlite::Result<Tally> {
    let value = |key: &str| meta(connection, key);
    Ok(Tally { messages: value("messages")? as u64, octets: value("octets")? as u64, last: value("last")? })
}

/// Where the database of the queue in `directory` lies.
pub(super) fn path(directory: &Path) -> PathBuf {
    directory.join("queue.sqlite")
}
