//! The database of the history, as its one writer has it: events in their order, and how many there are.

use std::{fs::OpenOptions, os::unix::fs::OpenOptionsExt as _, path::Path};

use rusqlite::{Connection, ErrorCode, OpenFlags, params};

use super::{CHECKPOINT_AFTER, PAUSE, QueueId, SHARE_OF_NONE, tail::Placed};

pub(super) const FORMAT: i32 = 1;
const APPLICATION_ID: i32 = 0x4F75_7048; // "OupH"
const SCHEMA: &str = "
    CREATE TABLE meta(key TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
    INSERT INTO meta VALUES('events', 0);
    CREATE TABLE event(seq INTEGER PRIMARY KEY, id INTEGER, octets BLOB NOT NULL);
    CREATE INDEX event_id ON event(id) WHERE id IS NOT NULL;
";
/// Later than the rest of its format: made where it is missing. What is refused is found and counted by it.
const INDEX_OF_NONE: &str = "CREATE INDEX IF NOT EXISTS event_of_none ON event(seq) WHERE id IS NULL";
/// Events deleted in one go.
pub(super) const SLICE: i64 = 1_000;
/// Pages given back to the file system in one go, and those that are kept for what comes.
const VACUUM_PAGES: i64 = 256;
const KEPT_PAGES: i64 = 1_024;

pub(super) fn checkpoint(connection: &Connection) -> rusqlite::Result<()> {
    connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()))
}

/// Whether the file is at fault rather than the disk or the moment.
pub(super) fn is_damage(error: &rusqlite::Error) -> bool {
    matches!(
        error.sqlite_error_code(),
        Some(
            ErrorCode::DatabaseCorrupt
                | ErrorCode::NotADatabase
                | ErrorCode::Unknown
                | ErrorCode::ConstraintViolation
                | ErrorCode::TypeMismatch
        )
    ) || matches!(error, rusqlite::Error::InvalidColumnType(..) | rusqlite::Error::QueryReturnedNoRows)
}

/// The writing connection.
#[derive(Debug)]
pub(super) struct Writer {
    pub(super) connection: Connection,
    /// The place of the last event.
    pub(super) last: i64,
    events: i64,
    /// Those of no message.
    of_none: i64,
}

impl Writer {
    pub(super) fn open(path: &Path) -> rusqlite::Result<Self> {
        // Made by us rather than by SQLite, so that nobody else can read it. If this fails, so does that.
        let _ = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path);
        let connection = Connection::open_with_flags(
            path,
            OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX,
        )?;
        connection.busy_timeout(PAUSE)?;
        connection.pragma_update(None, "auto_vacuum", "INCREMENTAL")?;
        connection.query_row("PRAGMA journal_mode = WAL", [], |_| Ok(()))?;
        connection.pragma_update(None, "synchronous", "NORMAL")?;
        connection.pragma_update(None, "wal_autocheckpoint", 0)?;
        connection.pragma_update(None, "journal_size_limit", 8 * CHECKPOINT_AFTER as i64)?;
        connection.pragma_update(None, "cache_size", -2 * 1024)?;
        if connection.pragma_query_value(None, "user_version", |row| row.get::<_, i32>(0))? == 0 {
            connection.execute_batch(&format!(
                "BEGIN IMMEDIATE; {SCHEMA} PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {FORMAT}; COMMIT;"
            ))?;
        }
        connection.execute_batch(INDEX_OF_NONE)?;
        let last = connection
            .query_row("SELECT max(seq) FROM event", [], |row| row.get::<_, Option<i64>>(0))?
            .unwrap_or(0);
        let events =
            connection.query_row("SELECT value FROM meta WHERE key = 'events'", [], |row| row.get(0))?;
        let of_none =
            connection.query_row("SELECT count(*) FROM event WHERE id IS NULL", [], |row| row.get(0))?;
        Ok(Self { connection, last, events, of_none })
    }

    /// All of them or none. Those that are there already are passed over.
    pub(super) fn append(&mut self, events: &[Placed]) -> rusqlite::Result<()> {
        let new = &events[events.partition_point(|event| event.seq <= self.last)..];
        let Some(last) = new.last() else { return Ok(()) };
        let transaction = self.connection.transaction()?;
        {
            let mut insert =
                transaction.prepare_cached("INSERT INTO event(seq, id, octets) VALUES(?, ?, ?)")?;
            for event in new {
                insert.execute(params![event.seq, event.id.map(QueueId::to_i64), event.octets])?;
            }
        }
        let number = self.events + new.len() as i64;
        keep_count(&transaction, number)?;
        transaction.commit()?;
        (self.last, self.events) = (last.seq, number);
        self.of_none += new.iter().filter(|event| event.id.is_none()).count() as i64;
        Ok(())
    }

    /// Deletes a slice of what lies before `oldest` or is more than `most`; how many.
    pub(super) fn trim(&mut self, oldest: i64, most: i64) -> rusqlite::Result<usize> {
        let over_share = (self.of_none - most / SHARE_OF_NONE as i64).max(0);
        let too_many = (self.events - over_share - most).clamp(0, SLICE);
        let transaction = self.connection.transaction()?;
        let are_of_none = transaction
            .prepare_cached(
                "DELETE FROM event WHERE seq IN (SELECT seq FROM event ORDER BY seq LIMIT ?)
                    OR seq IN (SELECT seq FROM event WHERE seq < ? ORDER BY seq LIMIT ?)
                    OR seq IN (SELECT seq FROM event WHERE id IS NULL ORDER BY seq LIMIT ?)
                    RETURNING id IS NULL",
            )?
            .query_map(params![too_many, oldest, SLICE, over_share.min(SLICE)], |row| row.get(0))?
            .collect::<rusqlite::Result<Vec<bool>>>()?;
        let deleted = are_of_none.len();
        if deleted == 0 {
            return Ok(0);
        }
        let number = self.events - deleted as i64;
        keep_count(&transaction, number)?;
        transaction.commit()?;
        self.events = number;
        self.of_none -= are_of_none.into_iter().filter(|of_none| *of_none).count() as i64;
        let free: i64 = self.connection.pragma_query_value(None, "freelist_count", |row| row.get(0))?;
        if free > KEPT_PAGES {
            let mut vacuum =
                self.connection.prepare(&format!("PRAGMA incremental_vacuum({VACUUM_PAGES})"))?;
            let mut rows = vacuum.query([])?;
            while rows.next()?.is_some() {}
        }
        Ok(deleted)
    }
}

fn keep_count(connection: &Connection, number: i64) -> rusqlite::Result<()> {
    connection.prepare_cached("UPDATE meta SET value = ? WHERE key = 'events'")?.execute([number]).map(|_| ())
}

/// Whether the file is of another version or of another program: not to be written into, nor to be set aside.
/// Nothing of it is changed by looking.
pub(super) fn is_foreign(path: &Path) -> bool {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let Ok(connection) = Connection::open_with_flags(path, flags) else { return false };
    let number = |name| connection.pragma_query_value(None, name, |row| row.get::<_, i32>(0));
    // What can't be read is damaged, and that is another matter.
    let (Ok(owner), Ok(format)) = (number("application_id"), number("user_version")) else { return false };
    !matches!((owner, format), (0, 0) | (APPLICATION_ID, FORMAT))
}

/// What is said of it.
pub(super) const FOREIGN: &str =
    "is of a later version of Outpost, or no history: it is left as it is, and nothing is remembered";

/// Whether whoever made the file died before there was a table in it: only a writer can go on with that.
pub(super) fn is_unborn(connection: &Connection) -> bool {
    match connection.pragma_query_value(None, "user_version", |row| row.get::<_, i32>(0)) {
        Ok(format) => format == 0,
        Err(error) => error.sqlite_error_code() == Some(ErrorCode::ReadOnly),
    }
}
