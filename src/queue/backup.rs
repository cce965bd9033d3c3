//! A copy of the queue, made while it is in use: database and journal as they were at one moment, and the files
//! that belong to it. The copy opens as a queue.
//!
//! Within one reading transaction SQLite copies page after page, while mail goes on: a reader is in
//! nobody's way. A file of content never changes, so a link to it is a copy. A message that has left
//! before its file could be linked is left out; one whose file was lost before stays in the copy as
//! damaged as it is. All of it happens in a directory of another name, which gets its own at the end.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    time::Duration,
};

use rusqlite::{
    Connection, OpenFlags,
    backup::{Backup, StepResult},
};
use serde::Serialize;

use super::{
    Fault, format, history, journal,
    pending::Pending,
    reader::Reader,
    spool::Spool,
    store::{self, Change, Store},
};

/// Rows that are looked at once.
const PAGE: usize = 1_000;
/// Pages that are copied in one step: 4 MiB.
const STEP: i32 = 1_024;
/// How often it is looked for a moment at which journal and database agree.
const LOOKS: usize = 20;
/// How long somebody else may have the new database locked, which nobody knows of.
const BUSY: Duration = Duration::from_millis(50);

/// What a backup holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct BackedUp {
    /// Messages in the copy.
    pub messages: u64,
    /// Octets of their content.
    pub bytes: u64,
    /// Files of content, and how many of them could not be linked and were copied.
    pub files: u64,
    /// See `files`.
    pub copied: u64,
    /// The history is in it.
    pub history: bool,
}

/// There is no backup.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// Something is in the way.
    #[error("{}: there is something in it; name a new directory, or an empty one", .0.display())]
    NotEmpty(PathBuf),
    /// The queue can't be read.
    #[error("the queue can't be read: {0}")]
    Unreadable(String),
    /// The queue can't be read to its end, or the copy can't be written.
    #[error("the copy in {} can't be made: {error}", path.display())]
    Unwritable {
        /// Where it was to be.
        path: PathBuf,
        /// Why not.
        error: Fault,
    },
}

/// Copies the queue in `from` to `to`, and tells now and then how many pages of how many are copied.
/// When it returns, all is on disk.
///
/// # Errors
/// See [`BackupError`]; then nothing is left of it.
pub fn backup(from: &Path, to: &Path, progress: impl FnMut(u64, u64)) -> Result<BackedUp, BackupError> {
    let unwritable = |error: Fault| BackupError::Unwritable { path: to.to_owned(), error };
    match fs::read_dir(to).map(|mut files| files.next().is_none()) {
        Ok(true) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Ok(false) => return Err(BackupError::NotEmpty(to.to_owned())),
        Err(error) => return Err(unwritable(error.into())),
    }
    let above = to.parent().filter(|above| !above.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // A directory for us alone, removed with all in it unless it gets its name.
    let private = fs::Permissions::from_mode(0o700);
    let made = tempfile::Builder::new().prefix(".outpost-backup-").permissions(private).tempdir_in(above);
    let made = made.map_err(|error| unwritable(error.into()))?;
    let path = store::path(from);
    format::expect_current(&path).map_err(|error| BackupError::Unreadable(error.to_string()))?;
    let source = open(&path).map_err(|error| BackupError::Unreadable(error.to_string()))?;
    let done = copy(&source, from, made.path(), progress).map_err(unwritable)?;
    fs::rename(made.path(), to).map_err(|error| unwritable(error.into()))?;
    // It has another name now: nothing is left to remove.
    let _ = made.keep();
    File::open(above).and_then(|above| above.sync_all()).map_err(|error| unwritable(error.into()))?;
    Ok(done)
}

fn open(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(Duration::from_secs(5))?;
    Ok(connection)
}

fn copy(
    source: &Connection,
    from: &Path,
    to: &Path,
    progress: impl FnMut(u64, u64),
) -> Result<BackedUp, Fault> {
    let recent = look(source, from, to)?;
    let (theirs, ours) = (Spool::at(from), Spool::open(to)?);
    let mut done = BackedUp::default();
    // First the files, which may go at any moment.
    for id in theirs.ids()? {
        let in_database =
            source.prepare_cached("SELECT 1 FROM message WHERE id = ?")?.exists([id.to_i64()])?;
        if (in_database || recent.is_new(id))
            && let Some(copied) = take_file(&theirs.path(id), &ours.path(id))?
        {
            done.files += 1;
            done.copied += u64::from(copied);
        }
    }
    let path = store::path(to);
    copy_database(source, &path, progress)?;
    source.execute_batch("COMMIT")?;
    // What the journal brought is then in the database as all else.
    let absorbed = Store::open(&path).map_err(|error| Fault::Broken(error.to_string()))?;
    leave_closed(absorbed, &path)?;
    (done.messages, done.bytes) = complete(&path, &store::path(from), &ours)?;
    done.history = copy_history(from, to);
    File::open(&path)?.sync_all()?;
    ours.sync_directory()?;
    File::open(to)?.sync_all()?;
    Ok(done)
}

/// Copies what `source` sees into a new database.
fn copy_database(source: &Connection, path: &Path, mut progress: impl FnMut(u64, u64)) -> Result<(), Fault> {
    // Made by us, so that nobody else can read it.
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    let mut copy = Connection::open(path)?;
    let backup = Backup::new(source, &mut copy)?;
    loop {
        match backup.step(STEP)? {
            StepResult::Done => return Ok(()),
            StepResult::More => {}
            _ => std::thread::sleep(BUSY),
        }
        let pages = backup.progress();
        let of = u64::try_from(pages.pagecount).unwrap_or_default();
        progress(of.saturating_sub(u64::try_from(pages.remaining).unwrap_or_default()), of);
    }
}

/// Takes out of the copy what has left before its file could be taken; says what is in it.
fn complete(path: &Path, source: &Path, ours: &Spool) -> Result<(u64, u64), Fault> {
    let (copy, source) = (Reader::open(path)?, Reader::open(source)?);
    let (mut messages, mut octets) = (0, 0);
    let mut gone = Vec::new();
    let mut after = None;
    loop {
        let rows = copy.list(after, PAGE)?;
        let complete = rows.len() < PAGE;
        after = rows.last().map(|row| row.id);
        for row in rows {
            let spooled = row.entry.as_ref().is_some_and(|entry| entry.content.spooled);
            // One that is still queued there has lost its file, and the copy is to tell as much.
            if spooled && !ours.path(row.id).exists() && source.get(row.id)?.is_none() {
                gone.push(Change::Remove { id: row.id, size: row.size });
            } else {
                messages += 1;
                // What a damaged row says of it may be anything.
                octets = u64::saturating_add(octets, row.size);
            }
        }
        if complete {
            break;
        }
    }
    drop(copy);
    if !gone.is_empty() {
        let mut store = Store::open(path).map_err(|error| Fault::Broken(error.to_string()))?;
        store.apply(gone.into_iter(), false)?;
        leave_closed(store, path)?;
    }
    Ok((messages, octets))
}

/// Leaves the copy as the database alone.
fn leave_closed(mut store: Store, path: &Path) -> Result<(), Fault> {
    store.absorb()?;
    store.tidy()?;
    drop(store);
    // Whoever opens the copy makes them where it then lies.
    for beside in [path.with_file_name("reserve"), journal::path(path)] {
        let _ = fs::remove_file(beside);
    }
    Ok(())
}

/// Copies the journal, and has this connection see the database as it is behind that; the sum of what only the copy
/// has. The journal begins from its start only when the database knows all of it, so what the copy has is all that
/// was recorded up to some moment, or lacks commits in its midst: then it is tried again.
fn look(source: &Connection, from: &Path, to: &Path) -> Result<Pending, Fault> {
    let (path, copy) = (journal::path(&store::path(from)), journal::path(&store::path(to)));
    for _ in 0..LOOKS {
        let _ = fs::remove_file(&copy);
        if path.exists() {
            copy_file(&path, &copy)?;
        }
        // From here on this connection sees the queue as it is now.
        source.execute_batch("BEGIN")?;
        let (seal, known) = store::known(source)?;
        let found = journal::read(&copy, seal, known)?;
        if found.lost == 0 {
            let mut recent = Pending::default();
            found.steps.into_iter().for_each(|step| recent.add(step));
            return Ok(recent);
        }
        source.execute_batch("ROLLBACK")?;
        std::thread::sleep(BUSY);
    }
    Err(Fault::Broken(
        "its journal is damaged, or written over all the time: see `outpost queue check`, or try again later"
            .to_owned(),
    ))
}

/// The history tells what had become of messages. Without it the copy is as good for mail.
fn copy_history(from: &Path, to: &Path) -> bool {
    let path = history::path(from);
    if !path.exists() {
        return false;
    }
    // What happened last goes from the one file into the other at any moment, and counts once if it is in both.
    let tail = match copy_file(&history::path_of_tail(from), &history::path_of_tail(to)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Fault::from(error)),
        _ => Ok(()),
    };
    let copied = tail.and_then(|()| Ok(open(&path)?)).and_then(|source| {
        source.execute_batch("BEGIN")?;
        source.query_row("SELECT count(*) FROM meta", [], |_| Ok(()))?;
        copy_database(&source, &history::path(to), |_, _| {})?;
        Ok(File::open(history::path(to))?.sync_all()?)
    });
    if let Err(error) = &copied {
        tracing::warn!(%error, "the history is not in the backup");
        let _ = fs::remove_file(history::path(to));
        let _ = fs::remove_file(history::path_of_tail(to));
    }
    copied.is_ok()
}

/// Links a file, or copies it to another file system; whether it was copied. `None` if it is gone.
fn take_file(from: &Path, to: &Path) -> io::Result<Option<bool>> {
    let taken = match fs::hard_link(from, to) {
        Ok(()) => Ok(false),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(error),
        // Another file system, or one without links.
        Err(_) => copy_file(from, to).map(|()| true),
    };
    match taken {
        Ok(copied) => Ok(Some(copied)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn copy_file(from: &Path, to: &Path) -> io::Result<()> {
    let mut source = File::open(from)?;
    let mut copy = OpenOptions::new().write(true).create_new(true).mode(0o600).open(to)?;
    io::copy(&mut source, &mut copy)?;
    copy.sync_all()
}
