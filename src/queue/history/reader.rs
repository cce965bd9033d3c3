//! Reads the history, whether its relay runs or not: what the database has, and behind it what the tail has.

use std::{cell::RefCell, fs, io, path::Path};

use rusqlite::{Connection, OpenFlags, params};

use super::{
    Fault, NAME, PAUSE, QueueId,
    database::{FOREIGN, is_damage, is_foreign, is_unborn},
    tail::{self, Placed},
};

/// An event as it was recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recorded {
    /// Its place: each event's is greater than those of all before it.
    pub seq: i64,
    /// What was recorded.
    pub octets: Vec<u8>,
}

/// A stretch of the history.
#[derive(Clone, Copy, Debug)]
pub struct Span {
    /// Only of this message.
    pub id: Option<QueueId>,
    /// Behind this place.
    pub after: i64,
    /// Before this one.
    pub before: i64,
    /// The end of it rather than its beginning, if it is longer than the limit.
    pub newest: bool,
    /// Most events.
    pub limit: usize,
}

/// Reads the history of a queue, whether its relay runs or not.
#[derive(Debug)]
pub struct Reader {
    /// There is none as long as nothing happened.
    connection: Option<Connection>,
    /// What is not in it, or was not a moment ago.
    tail: Vec<Placed>,
    /// What was found wrong with the file itself.
    pub(super) damage: RefCell<Option<String>>,
}

impl Reader {
    /// Opens the history of the queue in `directory`.
    ///
    /// # Errors
    /// It is there and can't be opened.
    pub fn open(directory: &Path) -> Result<Self, Fault> {
        let path = directory.join(NAME);
        let damage = RefCell::default();
        // Before the database, into which it may go at this moment.
        let tail = tail::read(directory)?;
        match fs::metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Ok(Self { connection: None, tail, damage })
            }
            Err(error) => Err(error.into()),
            Ok(_) if is_foreign(&path) => Err(Fault::Broken(format!("{} {FOREIGN}", path.display()))),
            Ok(_) => {
                let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
                let connection = Connection::open_with_flags(&path, flags)?;
                connection.busy_timeout(PAUSE)?;
                let connection = Some(connection).filter(|connection| !is_unborn(connection));
                Ok(Self { connection, tail, damage })
            }
        }
    }

    /// Events of a stretch, oldest first.
    ///
    /// # Errors
    /// It can't be read.
    pub fn events(&self, span: &Span) -> Result<Vec<Recorded>, Fault> {
        let (mut found, last) = match &self.connection {
            None => (Vec::new(), 0),
            Some(connection) => self.query(connection, span).map_err(|error| {
                if is_damage(&error) {
                    *self.damage.borrow_mut() = Some(error.to_string());
                }
                Fault::from(error)
            })?,
        };
        let is_meant = |event: &&Placed| {
            event.seq > span.after.max(last)
                && event.seq < span.before
                && (span.id.is_none() || span.id == event.id)
        };
        let recorded = |event: &Placed| Recorded { seq: event.seq, octets: event.octets.clone() };
        found.extend(self.tail.iter().filter(is_meant).map(recorded));
        match span.newest {
            true => drop(found.drain(..found.len().saturating_sub(span.limit))),
            false => found.truncate(span.limit),
        }
        Ok(found)
    }

    /// What the database has of it, and its last place.
    fn query(&self, connection: &Connection, span: &Span) -> rusqlite::Result<(Vec<Recorded>, i64)> {
        // One look at it: what gets into it meanwhile is still taken from the tail.
        let transaction = connection.unchecked_transaction()?;
        let of_one = if span.id.is_some() { "id = ?3" } else { "?3 IS NULL" };
        let order = if span.newest { "DESC" } else { "ASC" };
        let query = format!(
            "SELECT seq, octets FROM event WHERE seq > ?1 AND seq < ?2 AND {of_one} ORDER BY seq {order} LIMIT ?4"
        );
        let mut found = transaction
            .prepare_cached(&query)?
            .query_map(
                params![span.after, span.before, span.id.map(QueueId::to_i64), span.limit as i64],
                |row| Ok(Recorded { seq: row.get(0)?, octets: row.get(1)? }),
            )?
            .collect::<rusqlite::Result<Vec<_>>>()?;
        if span.newest {
            found.reverse();
        }
        let last: Option<i64> = transaction.query_row("SELECT max(seq) FROM event", [], |row| row.get(0))?;
        Ok((found, last.unwrap_or(0)))
    }
}
