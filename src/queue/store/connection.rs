//! The connection that writes, in the only way that keeps the promise; and why there is none.

use std::{path::Path, time::Duration};

use rusqlite::{Connection, ErrorCode, OpenFlags};

use super::database::LOG_PAGES;
use crate::queue::{
    Fault,
    format::{self, FORMAT},
};

/// How long a lock is waited for.
pub(super) const BUSY: Duration = Duration::from_secs(5);

/// The store can't be opened.
#[derive(Debug, thiserror::Error)]
pub(in crate::queue) enum StoreError {
    #[error(transparent)]
    Sqlite(rusqlite::Error),
    #[error("{0}: {WHAT_NOW}")]
    Damaged(rusqlite::Error),
    #[error(
        "it was written by an earlier version of Outpost (format {0}): start the relay, or `outpost queue list`, and it is brought up to date"
    )]
    Earlier(i32),
    #[error("it was written by a later version of Outpost (format {0}, known here: {FORMAT})")]
    Newer(i32),
    #[error("it is not an Outpost queue")]
    Foreign,
    #[error("the queue is gone from where it was")]
    Gone,
    #[error("{0}")]
    File(String),
    #[error("SQLite did not take synchronous=FULL and journal_mode=WAL ({0})")]
    NotDurable(String),
}

/// What to do about damage.
const WHAT_NOW: &str = "the database is damaged: `outpost queue check` tells what is; stop the relay and restore \
    a backup, or move the queue's directory away as a whole and keep it, to start with an empty one (the start then \
    says what else to remove)";

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        if is_damage(&error) { Self::Damaged(error) } else { Self::Sqlite(error) }
    }
}

/// Whether it is the file that is wrong, and not the disk or the moment.
pub(in crate::queue) fn is_damage(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase))
}

pub(super) fn is_failed_write(error: &rusqlite::Error) -> bool {
    matches!(error, rusqlite::Error::SqliteFailure(error, _) if error.extended_code == rusqlite::ffi::SQLITE_IOERR_WRITE)
}

impl From<rusqlite::Error> for Fault {
    fn from(error: rusqlite::Error) -> Self {
        match error.sqlite_error_code() {
            Some(ErrorCode::DiskFull) => Self::Full,
            _ if is_damage(&error) => Self::Broken(format!("{error}: {WHAT_NOW}")),
            _ => Self::Broken(error.to_string()),
        }
    }
}

/// Opens the database, and brings it to the format of today.
pub(super) fn connect(path: &Path, found: Option<i32>) -> Result<Connection, StoreError> {
    let mut connection = Connection::open_with_flags(
        path,
        OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX,
    )?;
    connection.busy_timeout(BUSY)?;
    if found.is_none() {
        format::give_space_back(&connection)?;
    }
    let mode: String = connection.pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get(0))?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    let synchronous: i32 = connection.pragma_query_value(None, "synchronous", |row| row.get(0))?;
    if mode != "wal" || synchronous != 2 {
        return Err(StoreError::NotDurable(format!("{mode}, {synchronous}")));
    }
    // Not in a commit, for which somebody waits: see `checkpoint`.
    connection.pragma_update(None, "wal_autocheckpoint", 0)?;
    connection.pragma_update(None, "journal_size_limit", 2 * LOG_PAGES * 4_096)?;
    connection.pragma_update(None, "cache_size", -16 * 1024)?;
    connection.set_prepared_statement_cache_capacity(32);
    format::bring_up_to_date(&mut connection, found)?;
    Ok(connection)
}
