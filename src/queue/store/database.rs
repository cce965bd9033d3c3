//! The database, and the one connection that writes it.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use rusqlite::{Connection, named_params, params};

use super::{
    BUSY, Change, Entry, FORMAT, Fate, Flow, Outcome, Pending, QueueId, State, StoreError, Tally, connect,
    is_damage,
};
use crate::{
    clock::Timestamp,
    queue::{DAMAGED, marks},
};

/// Pages of the WAL behind which it is brought into the database: 4 MiB. Damage in a WAL loses what follows, so
/// there should never be much of it.
pub(super) const LOG_PAGES: i64 = 1_000;
/// The least time between two slices of tidying while there is work.
const BETWEEN_SLICES: Duration = Duration::from_millis(100);
/// Free pages that are worth it then: 16 MiB. Fewer are soon used again.
const FREE_WHILE_BUSY: u64 = 4_096;

/// A row of `message`.
pub(in crate::queue) const INSERT_MESSAGE: &str =
    "INSERT INTO message(id, state, due, size, flow, sender, recipients) VALUES(?, ?, ?, ?, ?, ?, ?)";
/// Its record.
pub(in crate::queue) const INSERT_RECORD: &str = "INSERT INTO record(id, octets) VALUES(?, ?)";

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

/// The database, to be written.
#[derive(Debug)]
pub(super) struct Database {
    connection: Connection,
    tally: Tally,
    checkpointed: Instant,
    tidied: Instant,
}

impl Database {
    /// Opens it, and brings it to the format of today; `found` is its format now.
    pub(super) fn open(path: &Path, found: Option<i32>) -> Result<Self, StoreError> {
        let connection = connect(path, found)?;
        let tally = read_tally(&connection)?;
        Ok(Self { connection, tally, checkpointed: Instant::now(), tidied: Instant::now() })
    }

    /// How much it knows to be queued.
    pub(super) fn tally(&self) -> Tally {
        self.tally
    }

    /// The seal of the journal's frames, and the number of the last one that it knows.
    pub(super) fn known(&self) -> rusqlite::Result<(i64, u64)> {
        known(&self.connection)
    }

    /// The number that tells this queue from others; it gets this one if it has none. It does without where that
    /// can't be written.
    pub(super) fn identity(&self, number: i64) -> i64 {
        let give = "INSERT INTO meta(key, value) VALUES('identity', ?) ON CONFLICT DO NOTHING";
        if let Err(error) = self.connection.execute(give, [number]) {
            tracing::warn!(%error, "the queue can't be given a number");
        }
        let given = "SELECT value FROM meta WHERE key = 'identity'";
        self.connection.query_row(given, [], |row| row.get(0)).unwrap_or(number)
    }

    /// Whether it has an entry of this id.
    pub(super) fn contains(&self, id: QueueId) -> rusqlite::Result<bool> {
        self.connection.prepare_cached("SELECT 1 FROM message WHERE id = ?")?.exists([id.to_i64()])
    }

    /// Tells it all of this, in one transaction, behind which it has all frames of the journal up to `known`.
    pub(super) fn tell_all(&mut self, pending: &Pending, known: u64) -> rusqlite::Result<()> {
        self.transaction(Some(known), |database| {
            // Also of what has left meanwhile: no id is given out twice.
            database.tally.last = database.tally.last.max(pending.more().2);
            pending.fates().try_for_each(|(id, fate)| database.tell(id, fate, Removal::Whole))
        })
    }

    /// Tells it what became of the entries that it has, in one transaction.
    pub(super) fn tell_outcomes(&mut self, pending: &Pending) -> rusqlite::Result<()> {
        self.transaction(None, |database| {
            let mut old = pending.fates().filter(|(_, fate)| fate.new.is_none());
            old.try_for_each(|(id, fate)| database.tell(id, fate, Removal::Whole))
        })
    }

    /// Tells it of one entry, of which it removes as much as may be.
    pub(super) fn tell_with_care(&mut self, id: QueueId, fate: &Fate) -> rusqlite::Result<()> {
        with_care(true, |removal| self.transaction(None, |database| database.tell(id, fate, removal)))
    }

    /// Makes changes, all or none.
    ///
    /// With `careful`, what can't be removed whole because a page beside it can't be read is removed as
    /// far as may be, and at least set aside: it must not be sent again.
    pub(super) fn write<'a>(
        &mut self,
        changes: impl Iterator<Item = Change<'a>> + Clone,
        careful: bool,
    ) -> rusqlite::Result<()> {
        with_care(careful, |removal| {
            self.transaction(None, |database| {
                changes.clone().try_for_each(|change| database.change(change, removal))
            })
        })
    }

    /// One transaction; behind it the database has all frames of the journal up to `known`.
    fn transaction(
        &mut self,
        known: Option<u64>,
        work: impl FnOnce(&mut Self) -> rusqlite::Result<()>,
    ) -> rusqlite::Result<()> {
        let before = self.tally;
        let result = self.try_transaction(known, work);
        if result.is_err() {
            self.tally = before;
            // A failed COMMIT may leave the transaction open; a failed ROLLBACK has nothing to undo.
            if !self.connection.is_autocommit() {
                let _ = self.connection.execute_batch("ROLLBACK");
            }
        }
        result
    }

    fn try_transaction(
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

    fn tell(&mut self, id: QueueId, fate: &Fate, removal: Removal) -> rusqlite::Result<()> {
        // Where entries were told one by one before a kill, some are there already.
        if let Some(new) = &fate.new
            && !matches!(fate.outcome, Some(Outcome::Remove { .. }))
            && !self.contains(id)?
        {
            let octets = new.octets.as_deref();
            match Entry::decode(id, &new.record) {
                Some(entry) => self.insert(&entry, &new.record, octets)?,
                None => {
                    let mut entry = Entry::placeholder(id, id.time(), new.size);
                    entry.held = Some(DAMAGED.to_owned());
                    self.insert(&entry, &new.record, octets)?;
                }
            }
        }
        match &fate.outcome {
            Some(Outcome::Update { due, record }) => match Entry::decode(id, record) {
                Some(entry) => self.update(&entry, *due, record),
                None => self.change(Change::SetAside { id }, removal),
            },
            Some(Outcome::Remove { size }) => self.change(Change::Remove { id, size: *size }, removal),
            None => Ok(()),
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

    /// Has the WAL begin from its start instead of growing.
    pub(super) fn restart_log(&self) {
        let _ = self.connection.query_row("PRAGMA wal_checkpoint(RESTART)", [], |_| Ok(()));
    }

    /// A write that changes nothing, to learn whether the disk takes writes again. Where the log ends
    /// stands a new frame then, whatever stood there before.
    pub(super) fn probe(&self) -> rusqlite::Result<()> {
        // A row that is as it should be SQLite does not write, and then syncs nothing; this it always does.
        self.connection.pragma_update(None, "user_version", FORMAT)
    }

    /// Brings the WAL's pages into the database: once there are many, or when it was not done for `after`,
    /// so that what is free can be given back also while mail trickles on.
    fn checkpoint(&mut self, after: Duration) -> rusqlite::Result<()> {
        let pages: i64 =
            self.connection.prepare_cached("PRAGMA wal_checkpoint(NOOP)")?.query_row([], |row| row.get(1))?;
        if pages < LOG_PAGES && self.checkpointed.elapsed() < after {
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
        // A few pages are kept, so that a quiet relay doesn't grow and shrink its file all day.
        self.give_back_some(256)
    }

    /// Housekeeping while there is work: where mail trickles on, there is never an idle second.
    /// Its log is looked after if that was not done for `after`.
    pub(super) fn keep_house(&mut self, after: Duration) -> rusqlite::Result<()> {
        self.checkpoint(after)?;
        self.give_back_slice()
    }

    /// Gives some of many free pages back, now and then.
    pub(super) fn give_back_slice(&mut self) -> rusqlite::Result<()> {
        if self.tidied.elapsed() > BETWEEN_SLICES {
            self.tidied = Instant::now();
            self.give_back_some(FREE_WHILE_BUSY)?;
        }
        Ok(())
    }

    /// Gives some of the free pages back, if there are more than `kept`: few enough that mail never
    /// waits long for it, enough that all are back within a minute. True if there were.
    fn give_back_some(&mut self, kept: u64) -> rusqlite::Result<bool> {
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

/// Removes the whole, else as much as may be, if `careful`.
fn with_care(
    careful: bool,
    mut attempt: impl FnMut(Removal) -> rusqlite::Result<()>,
) -> rusqlite::Result<()> {
    let removals = if careful { Removal::ALL } else { &Removal::ALL[..1] };
    let mut result = Ok(());
    for removal in removals {
        result = attempt(*removal);
        if !result.as_ref().is_err_and(is_damage) {
            break;
        }
    }
    result
}

fn state_of(entry: &Entry, otherwise: impl Fn() -> State) -> State {
    if entry.held.is_some() { State::Held } else { otherwise() }
}

fn meta(connection: &Connection, key: &str) -> rusqlite::Result<i64> {
    connection.query_row("SELECT value FROM meta WHERE key = ?", [key], |row| row.get(0))
}

/// The seal of the journal's frames, and the number of the last one that the database knows.
pub(in crate::queue) fn known(connection: &Connection) -> rusqlite::Result<(i64, u64)> {
    Ok((meta(connection, "seal")?, meta(connection, "journal")?.unsigned_abs()))
}

fn read_tally(connection: &Connection) -> rusqlite::Result<Tally> {
    let value = |key: &str| meta(connection, key);
    Ok(Tally { messages: value("messages")? as u64, octets: value("octets")? as u64, last: value("last")? })
}
