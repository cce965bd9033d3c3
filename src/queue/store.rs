//! The store: one SQLite database, in the only way that keeps the promise.
//!
//! WAL with `synchronous=FULL`, read back at start, because with less a power cut takes acknowledged
//! mail. One connection writes, everything of a batch in one transaction with one sync; others only
//! read. SQLite has no checksums of its own, so each record and each content carries a CRC32C that is
//! compared on every read.

use std::{
    fs::OpenOptions,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension as _, named_params, params};

use super::{Depth, Fault, entry::Entry, id::QueueId, reserve::Reserve};
use crate::clock::Timestamp;

/// The version of the tables below. A store of a later version is refused and left untouched.
const FORMAT: i32 = 1;
const APPLICATION_ID: i32 = 0x4F75_7450; // "OutP"

/// `due` is when the entry wants to be tried; `state` is one of [`State`]. The partial index makes
/// "what is due" a short range however much is held; the second one makes counting the held cheap.
const SCHEMA: &str = "
    CREATE TABLE meta(key TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
    INSERT INTO meta VALUES('messages', 0), ('octets', 0), ('last', 0);
    CREATE TABLE message(
        id INTEGER PRIMARY KEY,
        state INTEGER NOT NULL,
        due INTEGER NOT NULL,
        size INTEGER NOT NULL,
        record BLOB NOT NULL);
    CREATE INDEX message_due ON message(due, id) WHERE state = 0;
    CREATE INDEX message_not_queued ON message(state) WHERE state <> 0;
    CREATE TABLE content(id INTEGER PRIMARY KEY, octets BLOB NOT NULL);
";

/// What the `state` column says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Tried when due.
    Queued = 0,
    /// Waits for an operator.
    Held = 1,
    /// Its record or content failed its checksum; set aside, never deleted by us.
    Damaged = 2,
}

/// One change of a transaction.
#[derive(Debug)]
pub(super) enum Change<'a> {
    /// A new entry; with its content, unless that is in the spool.
    Insert { entry: &'a Entry, octets: Option<&'a Bytes> },
    /// An entry's new state, and when it is due.
    Update { entry: &'a Entry, due: Timestamp },
    /// It has left.
    Remove { id: QueueId },
    /// It can't be read.
    SetAside { id: QueueId },
    /// Due behind `latest`, where no wait of ours ends, it is due now.
    BringForward { id: QueueId, latest: Timestamp, now: Timestamp },
}

/// The writing connection.
#[derive(Debug)]
pub(super) struct Store {
    connection: Connection,
    tally: Tally,
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

/// The store can't be opened.
#[derive(Debug, thiserror::Error)]
pub(super) enum StoreError {
    #[error(transparent)]
    Sqlite(#[from] rusqlite::Error),
    #[error("it was written by a later version of Outpost (format {0}, known here: {FORMAT})")]
    Newer(i32),
    #[error("it is not an Outpost queue")]
    Foreign,
    #[error("{0}")]
    File(String),
    #[error("SQLite did not take synchronous=FULL and journal_mode=WAL ({0})")]
    NotDurable(String),
}

impl From<rusqlite::Error> for Fault {
    fn from(error: rusqlite::Error) -> Self {
        match error.sqlite_error_code() {
            Some(ErrorCode::DiskFull) => Self::Full,
            _ => Self::Broken(error.to_string()),
        }
    }
}

impl Store {
    /// Opens the database at `path`, making it at first start.
    pub(super) fn open(path: &Path) -> Result<Self, StoreError> {
        // Made by us rather than by SQLite, so that nobody else can read it; WAL and index follow it.
        let made = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path);
        made.map_err(|error| StoreError::File(error.to_string()))?;
        let connection = Connection::open_with_flags(
            path,
            OpenFlags::SQLITE_OPEN_READ_WRITE
                | OpenFlags::SQLITE_OPEN_CREATE
                | OpenFlags::SQLITE_OPEN_NO_MUTEX,
        )?;
        connection.busy_timeout(std::time::Duration::from_secs(5))?;
        let format: i32 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
        let owner: i32 = connection.pragma_query_value(None, "application_id", |row| row.get(0))?;
        match (owner, format) {
            (APPLICATION_ID, FORMAT) | (0, 0) => {}
            (APPLICATION_ID, later) if later > FORMAT => return Err(StoreError::Newer(later)),
            _ => return Err(StoreError::Foreign),
        }
        // auto_vacuum must be chosen before the first table, so that space can be given back later.
        connection.pragma_update(None, "auto_vacuum", "INCREMENTAL")?;
        let mode: String =
            connection.pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get(0))?;
        connection.pragma_update(None, "synchronous", "FULL")?;
        let synchronous: i32 = connection.pragma_query_value(None, "synchronous", |row| row.get(0))?;
        if mode != "wal" || synchronous != 2 {
            return Err(StoreError::NotDurable(format!("{mode}, {synchronous}")));
        }
        // 4 MiB: damage in a WAL loses what follows, so there should never be much of it; and a
        // checkpoint in the writer's way stays short.
        connection.pragma_update(None, "wal_autocheckpoint", 1000)?;
        connection.pragma_update(None, "journal_size_limit", 8 * 1024 * 1024)?;
        connection.pragma_update(None, "cache_size", -16 * 1024)?;
        connection.set_prepared_statement_cache_capacity(32);
        if format == 0 {
            connection.execute_batch(&format!(
                "BEGIN IMMEDIATE; {SCHEMA} PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {FORMAT}; COMMIT;"
            ))?;
        }
        let tally = read_tally(&connection)?;
        let reserve = Reserve::new(path.parent().unwrap_or(path));
        Ok(Self { connection, tally, reserve })
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
        self.tally
    }

    /// Whether there is an entry of this id.
    pub(super) fn contains(&self, id: QueueId) -> rusqlite::Result<bool> {
        self.connection.prepare_cached("SELECT 1 FROM message WHERE id = ?")?.exists([id.to_i64()])
    }

    /// Makes all changes durable, or none. When it returns, they are on stable storage.
    pub(super) fn apply<'a>(&mut self, changes: impl Iterator<Item = Change<'a>>) -> Result<(), Fault> {
        let before = self.tally;
        let result = self.transaction(changes);
        if result.is_err() {
            self.tally = before;
            // A failed COMMIT may leave the transaction open; a failed ROLLBACK has nothing to undo.
            if !self.connection.is_autocommit() {
                let _ = self.connection.execute_batch("ROLLBACK");
            }
        }
        Ok(result?)
    }

    fn transaction<'a>(&mut self, changes: impl Iterator<Item = Change<'a>>) -> rusqlite::Result<()> {
        self.connection.prepare_cached("BEGIN IMMEDIATE")?.execute([])?;
        for change in changes {
            self.change(change)?;
        }
        let mut keep = self.connection.prepare_cached("UPDATE meta SET value = ? WHERE key = ?")?;
        keep.execute(params![self.tally.messages as i64, "messages"])?;
        keep.execute(params![self.tally.octets as i64, "octets"])?;
        keep.execute(params![self.tally.last, "last"])?;
        drop(keep);
        self.connection.prepare_cached("COMMIT")?.execute([])?;
        Ok(())
    }

    fn change(&mut self, change: Change<'_>) -> rusqlite::Result<()> {
        let connection = &self.connection;
        match change {
            Change::Insert { entry, octets } => {
                let id = entry.id.to_i64();
                connection
                    .prepare_cached(
                        "INSERT INTO message(id, state, due, size, record) VALUES(?, ?, ?, ?, ?)",
                    )?
                    .execute(params![
                        id,
                        state_of(entry) as i32,
                        entry.first_due().0 as i64,
                        entry.content.size as i64,
                        entry.encode()
                    ])?;
                if let Some(octets) = octets {
                    connection
                        .prepare_cached("INSERT INTO content(id, octets) VALUES(?, ?)")?
                        .execute(params![id, &octets[..]])?;
                }
                self.tally.last = self.tally.last.max(id);
                self.tally.messages += 1;
                self.tally.octets += entry.content.size;
            }
            Change::Update { entry, due } => {
                connection
                    .prepare_cached("UPDATE message SET state = ?, due = ?, record = ? WHERE id = ?")?
                    .execute(params![
                        state_of(entry) as i32,
                        due.0 as i64,
                        entry.encode(),
                        entry.id.to_i64()
                    ])?;
            }
            Change::Remove { id } => {
                let id = id.to_i64();
                let size: Option<i64> = connection
                    .prepare_cached("DELETE FROM message WHERE id = ? RETURNING size")?
                    .query_row([id], |row| row.get(0))
                    .optional()?;
                connection.prepare_cached("DELETE FROM content WHERE id = ?")?.execute([id])?;
                if let Some(size) = size {
                    self.tally.messages = self.tally.messages.saturating_sub(1);
                    self.tally.octets = self.tally.octets.saturating_sub(size as u64);
                }
            }
            Change::SetAside { id } => {
                connection
                    .prepare_cached("UPDATE message SET state = ? WHERE id = ?")?
                    .execute(params![State::Damaged as i32, id.to_i64()])?;
            }
            Change::BringForward { id, latest, now } => {
                connection
                    .prepare_cached("UPDATE message SET due = ? WHERE id = ? AND state = 0 AND due > ?")?
                    .execute(params![now.0 as i64, id.to_i64(), latest.0 as i64])?;
            }
        }
        Ok(())
    }

    /// A write that changes nothing, to learn whether the disk takes writes again.
    pub(super) fn probe(&mut self) -> Result<(), Fault> {
        self.apply(std::iter::empty())
    }

    /// Housekeeping while nothing else is to do: empties the WAL and gives free pages back to the
    /// file system, a few hundred at a time so that mail never waits for it. True if there is more.
    pub(super) fn tidy(&mut self) -> rusqlite::Result<bool> {
        self.connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?;
        let free = |c: &Connection| c.pragma_query_value(None, "freelist_count", |row| row.get::<_, i64>(0));
        // A few pages are kept, so that a quiet relay doesn't grow and shrink its file all day.
        const KEPT: i64 = 256;
        let before = free(&self.connection)?;
        if before <= KEPT {
            return Ok(false);
        }
        let mut statement = self.connection.prepare("PRAGMA incremental_vacuum(512)")?;
        let mut rows = statement.query([])?;
        while rows.next()?.is_some() {}
        Ok(true)
    }
}

fn state_of(entry: &Entry) -> State {
    if entry.held.is_some() { State::Held } else { State::Queued }
}

fn read_tally(connection: &Connection) -> rusqlite::Result<Tally> {
    let value = |key: &str| {
        connection.query_row("SELECT value FROM meta WHERE key = ?", [key], |row| row.get::<_, i64>(0))
    };
    Ok(Tally { messages: value("messages")? as u64, octets: value("octets")? as u64, last: value("last")? })
}

/// A row as it was read: the entry, or the id of one that is damaged.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) id: QueueId,
    pub(super) due: Timestamp,
    pub(super) size: u64,
    pub(super) state: State,
    pub(super) entry: Option<Entry>,
}

/// A reading connection.
#[derive(Debug)]
pub(super) struct Reader(Connection);

impl Reader {
    /// Opens the database at `path`, which must exist.
    pub(super) fn open(path: &Path) -> rusqlite::Result<Self> {
        let connection = Connection::open_with_flags(
            path,
            OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX,
        )?;
        connection.busy_timeout(std::time::Duration::from_secs(5))?;
        connection.pragma_update(None, "cache_size", -4 * 1024)?;
        Ok(Self(connection))
    }

    /// Queued entries that are due, the longest due first.
    pub(super) fn due(&self, now: Timestamp, limit: usize) -> rusqlite::Result<Vec<QueueId>> {
        self.0
            .prepare_cached("SELECT id FROM message WHERE state = 0 AND due <= ? ORDER BY due, id LIMIT ?")?
            .query_map(params![now.0 as i64, limit as i64], |row| row.get(0).map(QueueId::from_i64))?
            .collect()
    }

    /// When the next queued entry becomes due, after `now`.
    pub(super) fn next_due(&self, now: Timestamp) -> rusqlite::Result<Option<Timestamp>> {
        self.0
            .prepare_cached("SELECT min(due) FROM message WHERE state = 0 AND due > ?")?
            .query_row([now.0 as i64], |row| row.get::<_, Option<i64>>(0))
            .map(|due| due.map(|due| Timestamp(due as u64)))
    }

    /// Queued entries behind one of this due time and id, in that order.
    pub(super) fn ahead(&self, (due, id): (Timestamp, QueueId), limit: usize) -> rusqlite::Result<Vec<Row>> {
        self.0
            .prepare_cached(
                "SELECT id, due, size, state, record FROM message
                 WHERE state = 0 AND (due, id) > (?, ?) ORDER BY due, id LIMIT ?",
            )?
            .query_map(params![due.0 as i64, id.to_i64(), limit as i64], row)?
            .collect()
    }

    /// One entry.
    pub(super) fn get(&self, id: QueueId) -> rusqlite::Result<Option<Row>> {
        self.0
            .prepare_cached("SELECT id, due, size, state, record FROM message WHERE id = ?")?
            .query_row([id.to_i64()], row)
            .optional()
    }

    /// Entries behind `after`, in the order of their arrival.
    pub(super) fn list(&self, after: Option<QueueId>, limit: usize) -> rusqlite::Result<Vec<Row>> {
        self.0
            .prepare_cached(
                "SELECT id, due, size, state, record FROM message WHERE id > ? ORDER BY id LIMIT ?",
            )?
            .query_map(params![after.map_or(-1, QueueId::to_i64), limit as i64], row)?
            .collect()
    }

    /// The content of an entry, if it is in the database.
    pub(super) fn octets(&self, id: QueueId) -> rusqlite::Result<Option<Bytes>> {
        self.0
            .prepare_cached("SELECT octets FROM content WHERE id = ?")?
            // Damage may have changed the type as well; the checksum is the judge, not SQLite.
            .query_row([id.to_i64()], |row| Ok(row.get_ref(0)?.as_bytes().map(Bytes::copy_from_slice).ok()))
            .optional()
            .map(Option::flatten)
    }

    /// The depth of the queue, in one consistent look.
    pub(super) fn depth(&self, now: Timestamp) -> rusqlite::Result<Depth> {
        self.0
            .prepare_cached(
                "SELECT (SELECT value FROM meta WHERE key = 'messages'),
                        (SELECT value FROM meta WHERE key = 'octets'),
                        (SELECT count(*) FROM message WHERE state = 0 AND due > :now),
                        (SELECT count(*) FROM message WHERE state <> 0),
                        (SELECT min(id) FROM message)",
            )?
            .query_row(named_params! { ":now": now.0 as i64 }, |row| {
                let messages = row.get::<_, i64>(0)? as u64;
                let deferred = row.get::<_, i64>(2)? as u64;
                let held = row.get::<_, i64>(3)? as u64;
                let oldest = row.get::<_, Option<i64>>(4)?.map(QueueId::from_i64);
                Ok(Depth {
                    messages,
                    octets: row.get::<_, i64>(1)? as u64,
                    active: messages.saturating_sub(deferred + held),
                    deferred,
                    held,
                    oldest: oldest.map(QueueId::time),
                })
            })
    }
}

fn row(row: &rusqlite::Row<'_>) -> rusqlite::Result<Row> {
    let id = QueueId::from_i64(row.get(0)?);
    let state = match row.get(3)? {
        0 => State::Queued,
        1 => State::Held,
        _ => State::Damaged,
    };
    Ok(Row {
        id,
        due: Timestamp(row.get::<_, i64>(1)? as u64),
        size: row.get::<_, i64>(2)? as u64,
        state,
        entry: row.get_ref(4)?.as_bytes().ok().and_then(|record| Entry::decode(id, record)),
    })
}

/// Where the database of the queue in `directory` lies.
pub(super) fn path(directory: &Path) -> PathBuf {
    directory.join("queue.sqlite")
}
