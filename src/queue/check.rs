//! Whether the queue on a disk is whole: the database, each record, each content, the files, the tally.
//!
//! It reads the files themselves, beside a relay that runs as well as without one, and also where no
//! relay could start. It changes nothing: its connections can't write. Rows are read some at a time, so
//! neither memory nor the relay's log of the database grows with the queue.

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use rusqlite::{Connection, OpenFlags};
use serde::Serialize;

use super::{
    OpenError,
    entry::Entry,
    export::open_whole,
    format,
    id::QueueId,
    journal::{self, Replay},
    pending::{Fate, Outcome, Pending},
    reader::{Reader, Row},
    spool::Spool,
    store::{self, State, StoreError},
};

/// Rows that are read at once.
const PAGE: usize = 200;
/// Problems that are told one by one; all are counted.
const TOLD: usize = 1_000;
/// What SQLite tells of its own at most.
const PAGES_TOLD: usize = 20;

/// What a look at the whole queue has found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Checked {
    /// Messages that were looked at.
    pub messages: u64,
    /// Octets of their content.
    pub bytes: u64,
    /// How much is wrong.
    pub damaged: u64,
    /// The same one by one, as far as there is room.
    pub problems: Vec<Problem>,
    /// Files of content that belong to no message: it is being received or has just left, or a crash left
    /// them to be swept at the next start. They are no damage.
    pub stray_files: u64,
}

/// Something that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// With which message; `None`: with the store.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<QueueId>,
    /// What.
    pub problem: String,
}

/// Looks at the queue in `directory`, and tells now and then how many messages of how many are done.
///
/// # Errors
/// There is no queue that this version could read; what is merely damaged is no error.
pub fn check(directory: &Path, mut progress: impl FnMut(u64, u64)) -> Result<Checked, OpenError> {
    let path = store::path(directory);
    std::fs::metadata(&path).map_err(|error| OpenError::io(&path, error))?;
    let mut checking = Checking { directory: directory.to_owned(), found: Checked::default() };
    let outcome = checking.look(&path, &mut progress);
    match outcome {
        Ok(()) => {}
        Err(Stop::Open(error)) => return Err(error),
        Err(Stop::Damage(error)) => checking.note(None, format!("{}: {error}", path.display())),
    }
    Ok(checking.found)
}

/// Why the look ends before its time.
enum Stop {
    Open(OpenError),
    Damage(rusqlite::Error),
}

impl From<rusqlite::Error> for Stop {
    fn from(error: rusqlite::Error) -> Self {
        Self::Damage(error)
    }
}

struct Checking {
    directory: PathBuf,
    found: Checked,
}

impl Checking {
    fn note(&mut self, id: Option<QueueId>, problem: impl Into<String>) {
        self.found.damaged += 1;
        if self.found.problems.len() < TOLD {
            self.found.problems.push(Problem { id, problem: problem.into() });
        }
    }

    fn look(&mut self, path: &Path, progress: &mut impl FnMut(u64, u64)) -> Result<(), Stop> {
        format::expect_current(path).map_err(|error| match error {
            StoreError::Sqlite(error) | StoreError::Damaged(error) => Stop::Damage(error),
            other => Stop::Open(OpenError::Store { path: path.to_owned(), reason: other.to_string() }),
        })?;
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(path, flags)?;
        connection.busy_timeout(Duration::from_secs(5))?;
        self.pages(&connection)?;
        let recent = self.recent(path, &connection)?;
        let of = self.tally(&connection)?;
        let reader = Reader::open(path)?;
        let spool = Spool::at(&self.directory);
        let mut after = None;
        loop {
            let rows = match reader.list(after, PAGE) {
                Ok(rows) => rows,
                Err(error) => {
                    let from = after.map_or("the first".to_owned(), |id: QueueId| format!("{id}"));
                    self.note(None, format!("messages behind {from} can't be read: {error}"));
                    break;
                }
            };
            let complete = rows.len() < PAGE;
            after = rows.last().map(|row| row.id);
            for row in rows.into_iter().filter(|row| !is_told_by_journal(&recent, row.id)) {
                self.found.messages += 1;
                // What a damaged row says of it may be anything.
                self.found.bytes = self.found.bytes.saturating_add(row.size);
                if let Some(problem) = problem_of(&row, &reader, &spool)
                    // One that was settled meanwhile is nobody's trouble.
                    && is_still(&reader, &row)
                    // Of more than are told it makes no difference, and it takes its time.
                    && !(self.found.problems.len() < TOLD && has_left(path, &connection, &reader, row.id))
                {
                    self.note(Some(row.id), problem);
                }
            }
            progress(self.found.messages, of);
            if complete {
                break;
            }
        }
        self.new_ones(&recent, &spool, |id| has_left(path, &connection, &reader, id));
        self.strays(&connection)?;
        self.files(&recent, &reader, &spool);
        Ok(())
    }

    /// What the journal has and the database does not know yet.
    fn recent(&mut self, path: &Path, connection: &Connection) -> rusqlite::Result<Pending> {
        // A second look, for it may have been written from its start during the first one.
        let found = match replay(path, connection)? {
            Ok(found) if found.lost > 0 => replay(path, connection)?,
            found => found,
        };
        let mut steps = Vec::new();
        match found {
            Ok(found) => {
                if found.lost > 0 {
                    self.note(None, format!("the journal: {} of its commits can't be read", found.lost));
                }
                steps = found.steps;
            }
            Err(error) => self.note(None, format!("the journal can't be read: {error}")),
        }
        // The database may be told of some of it at any moment: what has left is remembered, too.
        Ok(Pending::replay(steps))
    }

    /// Messages that only the journal has; each of its frames has been compared with its checksum.
    fn new_ones(&mut self, recent: &Pending, spool: &Spool, has_left: impl Fn(QueueId) -> bool) {
        let new = recent.fates().filter(|(id, _)| recent.wants_a_place(*id));
        for (id, new) in new.filter_map(|(id, fate)| Some((id, fate.new.as_ref()?))) {
            self.found.messages += 1;
            self.found.bytes = self.found.bytes.saturating_add(new.size);
            let problem = match Entry::decode(id, &new.record) {
                None => Some("its record is damaged".to_owned()),
                Some(entry) if entry.content.spooled => problem_of_file(&entry, spool),
                Some(_) => None,
            };
            if let Some(problem) = problem.filter(|_| !has_left(id)) {
                self.note(Some(id), problem);
            }
        }
    }

    /// What SQLite itself finds wrong with tables, indexes and pages.
    fn pages(&mut self, connection: &Connection) -> rusqlite::Result<()> {
        let mut statement = connection.prepare(&format!("PRAGMA integrity_check({PAGES_TOLD})"))?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let text: String = row.get(0)?;
            for line in text.lines().filter(|line| *line != "ok") {
                self.note(None, format!("the database: {line}"));
            }
        }
        Ok(())
    }

    /// Whether as much is there as the store believes, in one look; how many messages there are.
    fn tally(&mut self, connection: &Connection) -> rusqlite::Result<u64> {
        let query = "SELECT (SELECT value FROM meta WHERE key = 'messages'),
                            (SELECT value FROM meta WHERE key = 'octets'),
                            (SELECT count(*) FROM message), (SELECT coalesce(sum(size), 0) FROM message)";
        let numbers: [i64; 4] = connection
            .query_row(query, [], |row| Ok([row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?]))?;
        let [messages, octets, there, size] = numbers;
        if (messages, octets) != (there, size) {
            let words = format!(
                "the tally says {messages} messages and {octets} octets, and there are {there} and {size}"
            );
            self.note(None, words);
        }
        Ok(there.max(0) as u64)
    }

    /// Records and contents that no message has.
    fn strays(&mut self, connection: &Connection) -> rusqlite::Result<()> {
        let query = "SELECT id FROM content WHERE id NOT IN (SELECT id FROM message)
                     UNION SELECT id FROM record WHERE id NOT IN (SELECT id FROM message) LIMIT ?";
        let mut statement = connection.prepare(query)?;
        let mut rows = statement.query([TOLD as i64])?;
        while let Some(row) = rows.next()? {
            let id = QueueId::from_i64(row.get(0)?);
            self.note(Some(id), "its record or content is there, and no row says that it was accepted");
        }
        Ok(())
    }

    fn files(&mut self, recent: &Pending, reader: &Reader, spool: &Spool) {
        let is_stray =
            |id: &QueueId| !recent.wants_a_place(*id) && reader.get(*id).is_ok_and(|row| row.is_none());
        match spool.ids() {
            Ok(ids) => self.found.stray_files = ids.iter().filter(|id| is_stray(id)).count() as u64,
            Err(error) => self.note(None, format!("the directory of large content can't be read: {error}")),
        }
    }
}

/// Whether the journal knows it better than its row: it is new, or has left.
fn is_told_by_journal(recent: &Pending, id: QueueId) -> bool {
    let has_left = |fate: &Fate| matches!(fate.outcome, Some(Outcome::Remove { .. }));
    recent.fate(id).is_some_and(|fate| fate.new.is_some() || has_left(fate))
}

/// What the journal has at this moment and the database does not know.
fn replay(path: &Path, connection: &Connection) -> rusqlite::Result<io::Result<Replay>> {
    let (seal, known) = store::known(connection)?;
    Ok(journal::read(&journal::path(path), seal, known))
}

/// Whether an entry has left by now: as the journal has it, which the database may learn of later, or the database.
fn has_left(path: &Path, connection: &Connection, reader: &Reader, id: QueueId) -> bool {
    let Ok(Ok(found)) = replay(path, connection) else { return false };
    let recent = Pending::replay(found.steps);
    match recent.fate(id) {
        Some(fate) => matches!(fate.outcome, Some(Outcome::Remove { .. })),
        None => reader.get(id).is_ok_and(|row| row.is_none()),
    }
}

/// Whether a row is as it was read.
fn is_still(reader: &Reader, row: &Row) -> bool {
    match reader.get(row.id) {
        Ok(now) => now.is_some_and(|now| now.state == row.state && now.size == row.size),
        Err(_) => true,
    }
}

fn problem_of(row: &Row, reader: &Reader, spool: &Spool) -> Option<String> {
    let Some(entry) = &row.entry else {
        return Some(
            "its record is damaged; its content may be whole: `outpost queue cat` can't show it".into(),
        );
    };
    let content = problem_of_content(entry, reader, spool);
    match (row.state, content) {
        (_, Some(problem)) => Some(problem),
        (State::Damaged, None) => Some("it was set aside as damaged, and can be read now".into()),
        _ if row.size != entry.content.size => Some("its row and its record differ about its size".into()),
        (state, None) if (state == State::Held) != entry.held.is_some() => {
            Some("its row and its record differ about whether it is held".into())
        }
        _ => None,
    }
}

fn problem_of_content(entry: &Entry, reader: &Reader, spool: &Spool) -> Option<String> {
    let info = entry.content;
    if info.spooled {
        return problem_of_file(entry, spool);
    }
    match reader.octets(entry.id) {
        Err(error) => Some(format!("its content can't be read: {error}")),
        Ok(None) => Some("its content is missing".into()),
        Ok(Some(octets)) if octets.len() as u64 != info.size => {
            Some(format!("its content has {} octets instead of {}", octets.len(), info.size))
        }
        Ok(Some(octets)) if crc32c::crc32c(&octets) != info.crc32c => Some("its content is damaged".into()),
        Ok(Some(_)) => None,
    }
}

fn problem_of_file(entry: &Entry, spool: &Spool) -> Option<String> {
    let info = entry.content;
    let path = spool.path(entry.id);
    let words = |problem: &str| Some(format!("{problem}: {}", path.display()));
    match std::fs::metadata(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => words("the file of its content is missing"),
        Err(error) => words(&format!("the file of its content can't be read ({error})")),
        Ok(file) if file.len() != info.size => {
            words(&format!("the file of its content has {} octets instead of {}", file.len(), info.size))
        }
        Ok(_) => match open_whole(&path, info.size, info.crc32c) {
            Ok(Some(_)) => None,
            Ok(None) => words("its content is damaged"),
            Err(error) => words(&format!("the file of its content can't be read ({error})")),
        },
    }
}
