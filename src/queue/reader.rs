//! Reading the store, beside the writer: what is due, what an operator looks for, one entry.
//!
//! A page of the file that can't be read costs the entries on it and no others: an entry whose record
//! or content lies there is damaged, one whose row lies there is unreadable, and the rest goes on.

use std::{ops::Range, path::Path};

use bytes::Bytes;
use rusqlite::{Connection, OpenFlags, OptionalExtension as _, named_params, params, types::Value};

use super::{
    Depth,
    entry::Entry,
    id::QueueId,
    marks::Flow,
    search::Search,
    store::{State, unless_damaged},
};
use crate::clock::Timestamp;

/// Rows of an index that a search goes by rather than by all rows.
const FEW: i64 = 10_000;

/// The first id behind that one; without one, the first of all.
pub(super) fn behind(after: Option<QueueId>) -> i64 {
    after.map_or(0, |after| after.to_i64() + 1)
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

impl Row {
    /// Stands for one on a page of the file that can't be read.
    fn unreadable(id: QueueId) -> Self {
        Self { id, due: Timestamp::default(), size: 0, state: State::Unreadable, entry: None }
    }
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
        let row = self
            .0
            .prepare_cached("SELECT id, due, size, state FROM message WHERE id = ?")?
            .query_row([id.to_i64()], |row| self.row(row));
        Ok(unless_damaged(row.optional())?.unwrap_or_else(|| Some(Row::unreadable(id))))
    }

    /// Entries behind `after`, in the order of their arrival.
    pub(super) fn list(&self, after: Option<QueueId>, limit: usize) -> rusqlite::Result<Vec<Row>> {
        self.search(&Search::default(), &[], behind(after)..i64::MAX, limit)
    }

    /// The id in the middle of those from `start` on, by the times of their arrival.
    pub(super) fn middle(&self, start: i64) -> rusqlite::Result<i64> {
        let end = |which: &str| {
            self.0
                .prepare_cached(&format!("SELECT {which}(id) FROM message WHERE id >= ?"))?
                .query_row([start], |row| row.get::<_, Option<i64>>(0))
        };
        Ok(end("min")?.unwrap_or(start).midpoint(end("max")?.unwrap_or(start)))
    }

    /// Entries of a range of ids that are looked for, in the order of their arrival.
    ///
    /// The rows alone are looked through, and an entry is read only where its row says that it may be
    /// meant. Around a page that can't be read the way goes by the records.
    pub(super) fn search(
        &self,
        search: &Search,
        claims: &[QueueId],
        Range { mut start, end }: Range<i64>,
        limit: usize,
    ) -> rusqlite::Result<Vec<Row>> {
        let (mut conditions, values) = search.conditions(claims);
        if let Some(index) = search.index().filter(|index| self.has_few(index)) {
            conditions.push_str(&format!("id IN (SELECT id FROM {index}) AND "));
        }
        let query = format!(
            "SELECT id, due, size, state FROM message WHERE {conditions} id >= ? AND id < ? ORDER BY id"
        );
        let is_meant =
            |row: &Row| !search.has_address() || row.entry.as_ref().is_some_and(|entry| search.means(entry));
        let mut found = Vec::new();
        if limit == 0 {
            return Ok(found);
        }
        loop {
            let bounds = [Value::Integer(start), Value::Integer(end)];
            let parameters = rusqlite::params_from_iter(values.iter().cloned().chain(bounds));
            let looked = self.each(&query, parameters, |row| {
                start = row.id.to_i64() + 1;
                if is_meant(&row) {
                    found.push(row);
                }
                found.len() < limit
            });
            if unless_damaged(looked)?.is_some() {
                return Ok(found);
            }
            let next = self.beyond_damage(start..end, |row| {
                if search.asks_for_all() && found.len() < limit {
                    found.push(row);
                }
            });
            match next? {
                Some(next) if found.len() < limit => start = next.to_i64(),
                _ => return Ok(found),
            }
        }
    }

    /// Whether there are so few in an index that to sort them costs less than to look through all rows.
    fn has_few(&self, index: &str) -> bool {
        let query = format!("SELECT count(*) FROM (SELECT 1 FROM {index} LIMIT {FEW} + 1)");
        let counted =
            self.0.prepare_cached(&query).and_then(|mut count| count.query_row([], |row| row.get(0)));
        // Where a page of the index can't be read the rows themselves are the way.
        counted.is_ok_and(|count: i64| count <= FEW)
    }

    /// A search through these ids has met a page that can't be read. Tells of the rows on it, and returns
    /// the entry to go on with, if there is one.
    fn beyond_damage(
        &self,
        Range { start, end }: Range<i64>,
        mut tell: impl FnMut(Row),
    ) -> rusqlite::Result<Option<QueueId>> {
        let mut ids = self.0.prepare_cached("SELECT id FROM record WHERE id >= ? AND id < ? ORDER BY id")?;
        let mut ids = ids.query([start, end])?;
        let (mut is_first, mut is_behind) = (true, false);
        while let Some(row) = ids.next()? {
            let id = QueueId::from_i64(row.get(0)?);
            let Some(row) = self.get(id)? else { continue };
            if row.state == State::Unreadable {
                is_behind = true;
                tell(row);
            } else if is_behind || is_first && id.to_i64() != start {
                // If it is the first, the page was met where `start` would be, and nothing is passed.
                return Ok(Some(id));
            }
            is_first = false;
        }
        Ok(None)
    }

    fn rows(&self, query: &str, parameters: impl rusqlite::Params) -> rusqlite::Result<Vec<Row>> {
        let mut found = Vec::new();
        self.each(query, parameters, |row| {
            found.push(row);
            true
        })?;
        Ok(found)
    }

    fn each(
        &self,
        query: &str,
        parameters: impl rusqlite::Params,
        mut goes_on: impl FnMut(Row) -> bool,
    ) -> rusqlite::Result<()> {
        let mut statement = self.0.prepare_cached(query)?;
        let mut rows = statement.query(parameters)?;
        while let Some(row) = rows.next()? {
            if !goes_on(self.row(row)?) {
                break;
            }
        }
        Ok(())
    }

    fn row(&self, row: &rusqlite::Row<'_>) -> rusqlite::Result<Row> {
        let id = QueueId::from_i64(row.get(0)?);
        Ok(Row {
            id,
            due: Timestamp(row.get::<_, i64>(1)? as u64),
            size: row.get::<_, i64>(2)? as u64,
            state: State::from_i64(row.get(3)?),
            entry: self.entry(id)?,
        })
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
        Ok(unless_damaged(record)?.flatten().flatten())
    }

    /// The content of an entry, if it is in the database.
    pub(super) fn octets(&self, id: QueueId) -> rusqlite::Result<Option<Bytes>> {
        let octets = self
            .0
            .prepare_cached("SELECT octets FROM content WHERE id = ?")?
            // Damage may have changed the type as well; the checksum is the judge, not SQLite.
            .query_row([id.to_i64()], |row| Ok(row.get_ref(0)?.as_bytes().map(Bytes::copy_from_slice).ok()))
            .optional();
        Ok(unless_damaged(octets)?.flatten().flatten())
    }

    /// The depth of the queue, in one consistent look.
    pub(super) fn depth(&self, now: Timestamp) -> rusqlite::Result<Depth> {
        let oldest = self
            .0
            .prepare_cached("SELECT min(id) FROM message")?
            .query_row([], |row| row.get::<_, Option<i64>>(0));
        let oldest = unless_damaged(oldest)?.flatten().map(QueueId::from_i64);
        self.0
            .prepare_cached(
                "SELECT (SELECT value FROM meta WHERE key = 'messages'),
                        (SELECT value FROM meta WHERE key = 'octets'),
                        (SELECT count(*) FROM message WHERE state = 1 AND due > :now),
                        (SELECT count(*) FROM message WHERE state >= 2)",
            )?
            .query_row(named_params! { ":now": now.0 as i64 }, |row| {
                let messages = row.get::<_, i64>(0)? as u64;
                let deferred = row.get::<_, i64>(2)? as u64;
                let held = row.get::<_, i64>(3)? as u64;
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
