//! The format of the database: its tables, its version, and the way here from earlier ones.
//!
//! | version | what it brought |
//! |---|---|
//! | 1 | the first |
//! | 2 | narrow rows in `message`, with whose turn an entry is and what filters look for; the records in a table of their own |
//! | 3 | the journal beside it; `meta` says up to which frame its steps are in the database |
//!
//! A migration is one transaction: whatever happens in it, the store is of the one version or of the
//! other, whole. A store of a later version is refused and not an octet of it changed.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use rusqlite::{Connection, ErrorCode, OpenFlags, TransactionBehavior, params};

use super::{
    entry::Entry,
    id::QueueId,
    journal, marks,
    store::{self, State, StoreError},
};

/// The version of the tables below.
pub(super) const FORMAT: i32 = 3;
const APPLICATION_ID: i32 = 0x4F75_7450; // "OutP"

/// `record` and `content` are what was accepted and what became of it. A row of `message` says in
/// short what its record says at length, so that looking through a million takes no time: `state` is
/// one of [`State`], `due` when the entry wants to be tried, `flow` whose turn it takes, `sender` and
/// `recipients` are marks of addresses. The row's id is the last column of each index by itself.
///
/// `message_turn` makes "what is due of this sender" a short range; `message_later` has only what was
/// ever deferred, so that mail which goes out at once never touches it; `message_held` makes counting
/// the held cheap.
const SCHEMA: &str = "
    CREATE TABLE message(
        id INTEGER PRIMARY KEY,
        state INTEGER NOT NULL,
        due INTEGER NOT NULL,
        size INTEGER NOT NULL,
        flow INTEGER NOT NULL,
        sender INTEGER NOT NULL,
        recipients BLOB NOT NULL);
    CREATE TABLE record(id INTEGER PRIMARY KEY, octets BLOB NOT NULL);
";
const INDEXES: &str = "
    CREATE INDEX message_turn ON message(flow, due) WHERE state <= 1;
    CREATE INDEX message_later ON message(due) WHERE state = 1;
    CREATE INDEX message_held ON message(state) WHERE state >= 2;
";
/// What no version changed.
const COMMON: &str = "
    CREATE TABLE meta(key TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
    INSERT INTO meta VALUES('messages', 0), ('octets', 0), ('last', 0);
    CREATE TABLE content(id INTEGER PRIMARY KEY, octets BLOB NOT NULL);
";

/// The number of the journal's last frame that is in the database; and what its frames begin with, which nobody
/// knows who sends content.
const JOURNAL: &str = "INSERT INTO meta VALUES('journal', 0), ('seal', random());";

/// Makes an empty store where none is. It gets its name when all of it is on the disk: one sync in the place of the
/// dozen that SQLite spends on a file which others may look at meanwhile, and a kill leaves nothing of that name. The
/// name is durable when the caller has synced the directory.
pub(super) fn make(path: &Path) -> Result<(), StoreError> {
    let named = |ending: &str| {
        let mut name = path.as_os_str().to_owned();
        name.push(ending);
        PathBuf::from(name)
    };
    let file = |error: io::Error| StoreError::File(error.to_string());
    // The log of a store that is gone would be taken for this one's; and what was left by a kill.
    if [named("-wal"), named("-journal"), named(".new"), named(".new-wal")].map(remove).contains(&true) {
        File::open(path.parent().unwrap_or(path)).and_then(|names| names.sync_all()).map_err(file)?;
    }
    // Another store's, which can't be told from this one's by its numbers. An empty one is what a first start leaves
    // whose power was cut.
    let left = journal::path(path);
    let is_of_another = fs::metadata(&left).is_ok_and(|left| left.len() > 0);
    if is_of_another && fs::rename(left, journal::aside(path)).is_ok() {
        tracing::error!(
            "a journal is there without its queue: it is kept as {}",
            journal::aside(path).display()
        );
    }
    let new = named(".new");
    // Made by us rather than by SQLite, so that nobody else can read it; WAL and index follow it.
    let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new).map_err(file)?;
    let mut connection = Connection::open_with_flags(
        &new,
        OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX,
    )?;
    connection.pragma_update(None, "synchronous", "OFF")?;
    connection.pragma_update_and_check(None, "journal_mode", "MEMORY", |_| Ok(()))?;
    give_space_back(&connection)?;
    bring_up_to_date(&mut connection, None)?;
    connection.execute("INSERT INTO meta(key, value) VALUES('identity', ?)", [fastrand::i64(1..)])?;
    connection.pragma_update_and_check(None, "journal_mode", "WAL", |_| Ok(()))?;
    connection.close().map_err(|(_, error)| error)?;
    made.sync_all().and_then(|()| fs::rename(&new, path)).map_err(file)
}

/// Whether there was such a file.
fn remove(path: PathBuf) -> bool {
    fs::remove_file(path).is_ok()
}

/// Has pages that are free given back to the disk later; to be chosen before the first table.
pub(super) fn give_space_back(connection: &Connection) -> rusqlite::Result<()> {
    connection.pragma_update(None, "auto_vacuum", "INCREMENTAL")
}

/// The version of the store at `path`; `None` if it is empty. Nothing of it is changed, not even by
/// SQLite: a later version may keep more beside it than we know of.
pub(super) fn look(path: &Path) -> Result<Option<i32>, StoreError> {
    match look_by(path, OpenFlags::SQLITE_OPEN_READ_ONLY) {
        // Whoever was about to make it was killed before it had a log: only a writer can undo that.
        Err(StoreError::Sqlite(error)) if error.sqlite_error_code() == Some(ErrorCode::ReadOnly) => {
            look_by(path, OpenFlags::SQLITE_OPEN_READ_WRITE)
        }
        looked => looked,
    }
}

fn look_by(path: &Path, way: OpenFlags) -> Result<Option<i32>, StoreError> {
    let connection = Connection::open_with_flags(path, way | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    let number = |name| connection.pragma_query_value(None, name, |row| row.get::<_, i32>(0));
    match (number("application_id")?, number("user_version")?) {
        (0, 0) => Ok(None),
        (APPLICATION_ID, version) if version > FORMAT => Err(StoreError::Newer(version)),
        (APPLICATION_ID, version) if version >= 1 => Ok(Some(version)),
        _ => Err(StoreError::Foreign),
    }
}

/// Says whether the store at `path` is of this version, for whoever only reads it.
pub(super) fn expect_current(path: &Path) -> Result<(), StoreError> {
    match look_by(path, OpenFlags::SQLITE_OPEN_READ_ONLY)? {
        Some(FORMAT) => Ok(()),
        Some(earlier) => Err(StoreError::Earlier(earlier)),
        None => Err(StoreError::Foreign),
    }
}

/// Brings the store from what [`look`] found to [`FORMAT`], in one transaction or not at all.
pub(super) fn bring_up_to_date(connection: &mut Connection, found: Option<i32>) -> rusqlite::Result<()> {
    if found == Some(FORMAT) {
        return Ok(());
    }
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    match found {
        None => transaction.execute_batch(&[COMMON, SCHEMA, INDEXES, JOURNAL].concat())?,
        Some(version) => {
            tracing::info!(from = version, to = FORMAT, "the queue's format is brought up to date");
            if version == 1 {
                from_1_to_2(&transaction)?;
            }
            transaction.execute_batch(JOURNAL)?;
        }
    }
    transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
    transaction.pragma_update(None, "user_version", FORMAT)?;
    transaction.commit()
}

/// Records go over octet for octet; only what stands beside them is new.
fn from_1_to_2(connection: &Connection) -> rusqlite::Result<()> {
    connection.execute_batch(
        "DROP INDEX message_due;
         DROP INDEX message_not_queued;
         ALTER TABLE message RENAME TO message_1;",
    )?;
    connection.execute_batch(SCHEMA)?;
    let mut old = connection.prepare("SELECT id, state, due, size, record FROM message_1 ORDER BY id")?;
    let mut message = connection.prepare(store::INSERT_MESSAGE)?;
    let mut record = connection.prepare(store::INSERT_RECORD)?;
    let mut rows = old.query([])?;
    while let Some(row) = rows.next()? {
        let id: i64 = row.get(0)?;
        let due: i64 = row.get(2)?;
        let octets = row.get_ref(4)?.as_bytes().unwrap_or_default();
        let entry = Entry::decode(QueueId::from_i64(id), octets);
        let state = match row.get(1)? {
            0 => entry.as_ref().map_or(State::Deferred, |entry| State::queued(entry, due)),
            1 => State::Held,
            _ => State::Damaged,
        };
        // What can't be read is nobody's: it is set aside when its time comes.
        let entry = entry.unwrap_or_else(|| Entry::placeholder(QueueId::from_i64(id), Default::default(), 0));
        let size: i64 = row.get(3)?;
        let recipients = marks::recipients(entry.recipients.iter().map(|one| one.address.as_str()));
        let sender = marks::sender(entry.reverse_path.as_str());
        let flow = marks::Flow::of(&entry).to_i64();
        message.execute(params![id, state as i32, due, size, flow, sender, recipients])?;
        record.execute(params![id, octets])?;
    }
    connection.execute_batch("DROP TABLE message_1")?;
    connection.execute_batch(INDEXES)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::queue::tests::format_1;

    const PAGE: usize = 4096;
    const WAL_HEADER: usize = 32;
    const FRAME: usize = 24 + PAGE;

    fn wal(path: &Path) -> std::path::PathBuf {
        path.with_file_name("queue.sqlite-wal")
    }

    /// All that a store of version 1 says, and nothing that may change on the way.
    fn told(path: &Path, version: i32) -> Vec<(i64, i64, i64, Vec<u8>)> {
        let connection = Connection::open(path).unwrap();
        let query = match version {
            1 => "SELECT id, due, size, record FROM message ORDER BY id",
            _ => "SELECT m.id, due, size, octets FROM message m JOIN record r ON r.id = m.id ORDER BY m.id",
        };
        let mut statement = connection.prepare(query).unwrap();
        let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?)));
        rows.unwrap().collect::<rusqlite::Result<_>>().unwrap()
    }

    #[test]
    fn a_migration_that_is_cut_anywhere_leaves_the_one_version_or_the_other_whole() {
        let directory = format_1();
        let path = store::path(directory.path());
        let before = told(&path, 1);
        let original = fs::read(&path).unwrap();
        let mut connection = Connection::open(&path).unwrap();
        connection.pragma_update(None, "wal_autocheckpoint", 0).unwrap();
        bring_up_to_date(&mut connection, Some(1)).unwrap();
        // What was written, in the order of writing; whoever dies has written a part of it.
        let written = fs::read(wal(&path)).unwrap();
        drop(connection);
        let frames = (written.len() - WAL_HEADER) / FRAME;
        assert!(frames > 5, "{frames} frames");
        let mut seen = [0; FORMAT as usize + 1];
        for frame in 0..=frames {
            for torn in [0, 30, FRAME / 2] {
                let end = (WAL_HEADER + frame * FRAME + torn).min(written.len());
                let cut = tempfile::tempdir().unwrap();
                let path = store::path(cut.path());
                fs::write(&path, &original).unwrap();
                fs::write(wal(&path), &written[..end]).unwrap();
                let version = look(&path).unwrap().unwrap();
                seen[version as usize] += 1;
                assert_eq!(told(&path, version), before, "cut at octet {end}");
                store::Store::open(&path).unwrap();
                assert_eq!(told(&path, FORMAT), before, "cut at octet {end}, and opened");
            }
        }
        assert!(seen[1] > 10 && seen[FORMAT as usize] > 0, "{seen:?}");
    }

    #[test]
    fn a_later_version_is_not_changed_by_an_octet_though_it_was_killed() {
        let directory = tempfile::tempdir().unwrap();
        let path = store::path(directory.path());
        drop(store::Store::open(&path).unwrap());
        let connection = Connection::open(&path).unwrap();
        connection.pragma_update(None, "user_version", FORMAT + 1).unwrap();
        // As a kill leaves it: the new version is in the WAL alone.
        let killed = tempfile::tempdir().unwrap();
        let left = store::path(killed.path());
        fs::copy(&path, &left).unwrap();
        fs::copy(wal(&path), wal(&left)).unwrap();
        let before = (fs::read(&left).unwrap(), fs::read(wal(&left)).unwrap());
        let error = store::Store::open(&left).unwrap_err();
        assert!(matches!(error, StoreError::Newer(version) if version == FORMAT + 1), "{error}");
        assert!((fs::read(&left).unwrap(), fs::read(wal(&left)).unwrap()) == before);
    }

    #[test]
    fn a_journal_whose_queue_is_gone_is_kept_aside_unless_it_is_empty() {
        let directory = tempfile::tempdir().unwrap();
        let path = store::path(directory.path());
        let (left, aside) = (journal::path(&path), journal::aside(&path));
        fs::write(&left, "").unwrap();
        make(&path).unwrap();
        assert!(!aside.exists());
        fs::remove_file(&path).unwrap();
        fs::write(&left, "mail").unwrap();
        make(&path).unwrap();
        assert_eq!(fs::read(&aside).unwrap(), b"mail");
        assert!(!left.exists());
    }

    #[test]
    fn one_that_was_killed_before_it_had_a_log_is_made_all_the_same() {
        let directory = tempfile::tempdir().unwrap();
        let path = store::path(directory.path());
        let connection = Connection::open(&path).unwrap();
        // As SQLite begins each database: with a journal that takes back what was written of it. What is too
        // much for its memory is written before the end of the transaction.
        connection.execute_batch("CREATE TABLE one(octets BLOB); PRAGMA cache_size = 2;").unwrap();
        connection.execute_batch("BEGIN; INSERT INTO one VALUES(zeroblob(200000));").unwrap();
        let killed = tempfile::tempdir().unwrap();
        let left = store::path(killed.path());
        let journal = |path: &Path| path.with_file_name("queue.sqlite-journal");
        fs::copy(&path, &left).unwrap();
        fs::copy(journal(&path), journal(&left)).unwrap();
        let read_only = look_by(&left, OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap_err();
        assert!(read_only.to_string().contains("readonly"), "{read_only}");
        assert_eq!(look(&left).unwrap(), None);
        drop(store::Store::open(&left).unwrap());
        assert_eq!(look(&left).unwrap(), Some(FORMAT));
    }
}
