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
use rusqlite::{
    Connection, ErrorCode, OpenFlags, OptionalExtension as _, named_params, params, types::Value,
};

use super::{
    Depth, Fault,
    entry::Entry,
    format::{self, FORMAT},
    id::QueueId,
    marks::{self, Flow},
    reserve::Reserve,
    search::Search,
};
use crate::clock::Timestamp;

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
}

impl State {
    /// What a queued entry is that is due then.
    pub(super) fn queued(entry: &Entry, due: i64) -> Self {
        if due > entry.received.0 as i64 { Self::Deferred } else { Self::Queued }
    }

    fn from_i64(value: i64) -> Self {
        match value {
            0 => Self::Queued,
            1 => Self::Deferred,
            2 => Self::Held,
            _ => Self::Damaged,
        }
    }

    /// Whether it is tried when it is due.
    pub(super) fn is_queued(self) -> bool {
        matches!(self, Self::Queued | Self::Deferred)
    }
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
    /// Due behind `latest`, where no wait of ours ends, or in the future though it never waited: it is
    /// due now.
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
    #[error("{0}")]
    File(String),
    #[error("SQLite did not take synchronous=FULL and journal_mode=WAL ({0})")]
    NotDurable(String),
}

/// What to do about damage.
const WHAT_NOW: &str = "the database is damaged: `outpost queue check` tells what is; stop the relay and restore \
    a backup, or move the queue's directory away as a whole and keep it, to start with an empty one";

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        if is_damage(&error) { Self::Damaged(error) } else { Self::Sqlite(error) }
    }
}

/// Whether it is the file that is wrong, and not the disk or the moment.
pub(super) fn is_damage(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase))
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

impl Store {
    /// Opens the database at `path`, making it at first start.
    pub(super) fn open(path: &Path) -> Result<Self, StoreError> {
        // Made by us rather than by SQLite, so that nobody else can read it; WAL and index follow it.
        let made = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path);
        made.map_err(|error| StoreError::File(error.to_string()))?;
        let found = format::look(path)?;
        let mut connection = Connection::open_with_flags(
            path,
            OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX,
        )?;
        connection.busy_timeout(std::time::Duration::from_secs(5))?;
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
        format::bring_up_to_date(&mut connection, found)?;
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
                connection.prepare_cached(INSERT_RECORD)?.execute(params![id, entry.encode()])?;
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
                let id = entry.id.to_i64();
                connection
                    .prepare_cached("UPDATE message SET state = ?, due = ? WHERE id = ?")?
                    .execute(params![state_of(entry, || State::Deferred) as i32, due.0 as i64, id])?;
                connection
                    .prepare_cached("UPDATE record SET octets = ? WHERE id = ?")?
                    .execute(params![entry.encode(), id])?;
            }
            Change::Remove { id } => {
                let id = id.to_i64();
                let size: Option<i64> = connection
                    .prepare_cached("DELETE FROM message WHERE id = ? RETURNING size")?
                    .query_row([id], |row| row.get(0))
                    .optional()?;
                connection.prepare_cached("DELETE FROM record WHERE id = ?")?.execute([id])?;
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

    /// A write that changes nothing, to learn whether the disk takes writes again.
    pub(super) fn probe(&mut self) -> Result<(), Fault> {
        self.apply(std::iter::empty())
    }

    /// Housekeeping while nothing else is to do: empties the WAL and gives free pages back to the
    /// file system, a few hundred at a time so that mail never waits for it. True if there is more.
    pub(super) fn tidy(&mut self) -> rusqlite::Result<bool> {
        // A reader that takes long, as a backup does, is not waited for: new mail would wait with it.
        self.connection.busy_timeout(std::time::Duration::ZERO)?;
        let emptied = self.connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()));
        self.connection.busy_timeout(std::time::Duration::from_secs(5))?;
        emptied?;
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

fn state_of(entry: &Entry, otherwise: impl Fn() -> State) -> State {
    if entry.held.is_some() { State::Held } else { otherwise() }
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

    /// Flows of which something is due, from `from` on, at most `limit` flows looked at; and where to go
    /// on, if that was not all.
    pub(super) fn flows(
        &self,
        from: Flow,
        now: Timestamp,
        limit: usize,
    ) -> rusqlite::Result<(Vec<Flow>, Option<Flow>)> {
        let mut next = self.0.prepare_cached(
            "SELECT flow, due FROM message INDEXED BY message_turn
             WHERE state <= 1 AND flow >= ? ORDER BY flow, due LIMIT 1",
        )?;
        let (mut found, mut from) = (Vec::new(), from.to_i64());
        for _ in 0..limit {
            let first = next.query_row([from], |row| Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?)));
            let Some((flow, due)) = first.optional()? else { return Ok((found, None)) };
            if due <= now.0 as i64 {
                found.push(Flow::from_i64(flow));
            }
            from = flow + 1;
        }
        Ok((found, Some(Flow::from_i64(from))))
    }

    /// Tells of entries of a flow that are due, the longest due first, until `take` has enough. True if
    /// those were all.
    pub(super) fn due(
        &self,
        flow: Flow,
        now: Timestamp,
        mut take: impl FnMut(QueueId) -> bool,
    ) -> rusqlite::Result<bool> {
        let mut statement = self.0.prepare_cached(
            "SELECT id FROM message INDEXED BY message_turn
             WHERE state <= 1 AND flow = ? AND due <= ? ORDER BY due, id",
        )?;
        let mut rows = statement.query(params![flow.to_i64(), now.0 as i64])?;
        while let Some(row) = rows.next()? {
            if !take(QueueId::from_i64(row.get(0)?)) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// When the next deferred entry becomes due, after `now`.
    pub(super) fn next_due(&self, now: Timestamp) -> rusqlite::Result<Option<Timestamp>> {
        self.0
            .prepare_cached("SELECT min(due) FROM message WHERE state = 1 AND due > ?")?
            .query_row([now.0 as i64], |row| row.get::<_, Option<i64>>(0))
            .map(|due| due.map(|due| Timestamp(due as u64)))
    }

    /// Deferred entries behind one of this due time and id, in that order.
    pub(super) fn ahead(&self, (due, id): (Timestamp, QueueId), limit: usize) -> rusqlite::Result<Vec<Row>> {
        self.rows(
            "SELECT id, due, size, state FROM message INDEXED BY message_later
             WHERE state = 1 AND due >= ?1 AND (due > ?1 OR id > ?2) ORDER BY due, id LIMIT ?3",
            params![due.0 as i64, id.to_i64(), limit as i64],
        )
    }

    /// Entries that were accepted at a time that has not come yet.
    pub(super) fn of_the_future(&self, now: Timestamp, limit: usize) -> rusqlite::Result<Vec<QueueId>> {
        self.0
            .prepare_cached("SELECT id FROM message WHERE id > ?1 AND state = 0 AND due > ?2 LIMIT ?3")?
            .query_map(params![QueueId::first_of(now).to_i64(), now.0 as i64, limit as i64], |row| {
                row.get(0).map(QueueId::from_i64)
            })?
            .collect()
    }

    /// One entry.
    pub(super) fn get(&self, id: QueueId) -> rusqlite::Result<Option<Row>> {
        let mut rows = self.rows("SELECT id, due, size, state FROM message WHERE id = ?", [id.to_i64()])?;
        Ok(rows.pop())
    }

    /// Entries behind `after`, in the order of their arrival.
    pub(super) fn list(&self, after: Option<QueueId>, limit: usize) -> rusqlite::Result<Vec<Row>> {
        self.rows(
            "SELECT id, due, size, state FROM message WHERE id > ? ORDER BY id LIMIT ?",
            params![after.map_or(-1, QueueId::to_i64), limit as i64],
        )
    }

    /// Entries behind `after` that are looked for, in the order of their arrival.
    ///
    /// The rows alone are looked through, and an entry is read only where its row says that it may be
    /// meant.
    pub(super) fn search(
        &self,
        search: &Search,
        claims: &[QueueId],
        after: Option<QueueId>,
        limit: usize,
    ) -> rusqlite::Result<Vec<Row>> {
        let (conditions, mut parameters) = search.conditions(claims);
        parameters.push(Value::Integer(after.map_or(-1, QueueId::to_i64)));
        let query = format!("SELECT id, due, size, state FROM message WHERE {conditions} id > ? ORDER BY id");
        self.rows_that(&query, rusqlite::params_from_iter(parameters), limit, |row| {
            !search.has_address() || row.entry.as_ref().is_some_and(|entry| search.means(entry))
        })
    }

    fn rows(&self, query: &str, parameters: impl rusqlite::Params) -> rusqlite::Result<Vec<Row>> {
        self.rows_that(query, parameters, usize::MAX, |_| true)
    }

    fn rows_that(
        &self,
        query: &str,
        parameters: impl rusqlite::Params,
        limit: usize,
        wants: impl Fn(&Row) -> bool,
    ) -> rusqlite::Result<Vec<Row>> {
        let mut statement = self.0.prepare_cached(query)?;
        let mut rows = statement.query(parameters)?;
        let mut found = Vec::new();
        while found.len() < limit
            && let Some(row) = rows.next()?
        {
            let id = QueueId::from_i64(row.get(0)?);
            let row = Row {
                id,
                due: Timestamp(row.get::<_, i64>(1)? as u64),
                size: row.get::<_, i64>(2)? as u64,
                state: State::from_i64(row.get(3)?),
                entry: self.entry(id)?,
            };
            if wants(&row) {
                found.push(row);
            }
        }
        Ok(found)
    }

    /// The entry of this id; `None` if it is damaged.
    fn entry(&self, id: QueueId) -> rusqlite::Result<Option<Entry>> {
        let record = self
            .0
            .prepare_cached("SELECT octets FROM record WHERE id = ?")?
            .query_row([id.to_i64()], |row| {
                Ok(row.get_ref(0)?.as_bytes().ok().and_then(|record| Entry::decode(id, record)))
            })
            .optional();
        match record {
            Err(error) if is_damage(&error) => Ok(None),
            other => other.map(Option::flatten),
        }
    }

    /// The content of an entry, if it is in the database.
    pub(super) fn octets(&self, id: QueueId) -> rusqlite::Result<Option<Bytes>> {
        let octets = self
            .0
            .prepare_cached("SELECT octets FROM content WHERE id = ?")?
            // Damage may have changed the type as well; the checksum is the judge, not SQLite.
            .query_row([id.to_i64()], |row| Ok(row.get_ref(0)?.as_bytes().map(Bytes::copy_from_slice).ok()))
            .optional();
        match octets {
            Err(error) if is_damage(&error) => Ok(None),
            other => other.map(Option::flatten),
        }
    }

    /// The depth of the queue, in one consistent look.
    pub(super) fn depth(&self, now: Timestamp) -> rusqlite::Result<Depth> {
        self.0
            .prepare_cached(
                "SELECT (SELECT value FROM meta WHERE key = 'messages'),
                        (SELECT value FROM meta WHERE key = 'octets'),
                        (SELECT count(*) FROM message WHERE state = 1 AND due > :now),
                        (SELECT count(*) FROM message WHERE state >= 2),
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

/// Where the database of the queue in `directory` lies.
pub(super) fn path(directory: &Path) -> PathBuf {
    directory.join("queue.sqlite")
}
