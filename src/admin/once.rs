//! `Idempotency-Key`: what is handed in twice by a client that never heard the answer is queued once.
//!
//! Before a message is made durable, its key, a digest of what was asked for, and the queue id that it
//! will have are on stable storage; behind it, that it is. If we die in between, whether the queue or
//! its history knows that id tells what became of it. Keys live for a day, in a file of a line each.

use std::{
    collections::{HashMap, HashSet},
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::{
    clock::{Clock, Timestamp},
    queue::QueueId,
};

/// How long a key is known.
pub(super) const LIFETIME: Duration = Duration::from_secs(86_400);
/// Keys that are known at once: some 20 MB of memory and of the file.
const KEYS_MAX: usize = 100_000;
/// Lines beyond twice what is known, behind which the file is written anew.
const SLACK: usize = 1_000;
/// The file's name in the data directory.
const NAME: &str = "idempotency.jsonl";

/// What is known of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Known {
    /// Of what was asked for.
    pub(super) digest: Mark,
    /// What it was queued as.
    pub(super) id: QueueId,
    /// Whether it is known that it was.
    pub(super) sure: bool,
    at: Timestamp,
}

/// A digest of 128 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Mark(u128);

impl Mark {
    /// Of these parts, none of which can be taken for another.
    pub(super) fn of(hasher: Sha256) -> Self {
        let digest = hasher.finalize();
        let mut first = [0; 16];
        first.copy_from_slice(&digest[..16]);
        Self(u128::from_be_bytes(first))
    }
}

/// A line of the file.
#[derive(Serialize, Deserialize)]
struct Line {
    key: String,
    digest: String,
    id: QueueId,
    at: Timestamp,
    /// `begun`, `done`, `forgotten`.
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum State {
    Begun,
    Done,
    Forgotten,
}

/// The keys of the last day. Clones share it.
#[derive(Clone, Debug)]
pub struct Once(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    clock: Clock,
    /// Taken first of the two, and where a disk may be waited for.
    log: Mutex<Log>,
    /// Held for moments only: requests are answered beside each other on the same threads.
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    known: HashMap<Mark, Known>,
    /// Requests with these keys are being answered.
    under_way: HashSet<Mark>,
}

/// The file.
#[derive(Debug, Default)]
struct Log {
    /// Made when it is first needed.
    file: Option<File>,
    lines: usize,
    /// The last line has no end.
    is_cut: bool,
}

/// A request's hold on its key, until it is answered.
#[derive(Debug)]
pub(super) struct Turn {
    once: Once,
    key: Mark,
}

/// Why a request can't have its key now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Busy {
    /// Another request with the key is being answered.
    UnderWay,
    /// There are as many keys as can be remembered.
    TooMany,
}

impl Once {
    /// What is known in this data directory. A file that can't be read is told of, and as good as none.
    pub fn open(data: &Path, clock: Clock) -> Self {
        let path = data.join(NAME);
        let (mut log, mut table) = (Log::default(), Table::default());
        let oldest = clock.now().before(LIFETIME);
        match fs::read_to_string(&path) {
            Ok(text) => {
                log.is_cut = !text.is_empty() && !text.ends_with('\n');
                for line in text.lines() {
                    log.lines += 1;
                    // The last line may have been cut off by our end.
                    if let Ok(line) = serde_json::from_str::<Line>(line) {
                        table.learn(&line, oldest);
                    }
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "the idempotency keys of the last day are forgotten");
            }
        }
        Self(Arc::new(Inner { path, clock, log: Mutex::new(log), table: Mutex::new(table) }))
    }

    /// Takes the turn of a key; what is known of it.
    pub(super) fn begin(&self, key: Mark) -> Result<(Turn, Option<Known>), Busy> {
        let mut table = self.table();
        let oldest = self.0.clock.now().before(LIFETIME);
        let known = table.known.get(&key).copied().filter(|known| known.at > oldest);
        if known.is_none() && table.known.len() >= KEYS_MAX {
            table.known.retain(|_, known| known.at > oldest);
            if table.known.len() >= KEYS_MAX {
                return Err(Busy::TooMany);
            }
        }
        if !table.under_way.insert(key) {
            return Err(Busy::UnderWay);
        }
        Ok((Turn { once: self.clone(), key }, known))
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn log(&self) -> MutexGuard<'_, Log> {
        self.0.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes a line down; on stable storage when it returns, if that is wanted.
    fn write(&self, key: Mark, known: Known, state: State, sync: bool) -> io::Result<()> {
        let line = Line {
            key: format!("{:032x}", key.0),
            digest: format!("{:032x}", known.digest.0),
            id: known.id,
            at: known.at,
            state,
        };
        let mut octets = serde_json::to_vec(&line)?;
        octets.push(b'\n');
        let oldest = self.0.clock.now().before(LIFETIME);
        let file = {
            // Before it is learned, so that lines stand in the order in which they were.
            let mut log = self.log();
            let keys = {
                let mut table = self.table();
                table.learn(&line, oldest);
                table.known.len()
            };
            if log.is_cut || log.lines > 2 * keys + SLACK {
                let known = self.table().known_since(oldest);
                log.rewrite(&self.0.path, &known)?;
            }
            if log.file.is_none() {
                log.file = Some(appending(&self.0.path)?);
            }
            log.lines += 1;
            let Some(file) = log.file.as_mut() else { return Err(io::ErrorKind::NotFound.into()) };
            file.write_all(&octets)?;
            file.try_clone()?
        };
        // Others write meanwhile; what they wrote before is on disk with it.
        if sync { file.sync_data() } else { Ok(()) }
    }

    async fn note(&self, key: Mark, known: Known, state: State, sync: bool) -> io::Result<()> {
        let once = self.clone();
        let writing = tokio::task::spawn_blocking(move || once.write(key, known, state, sync));
        writing.await.unwrap_or_else(|error| Err(io::Error::other(error)))
    }
}

impl Table {
    fn learn(&mut self, line: &Line, oldest: Timestamp) {
        let mark = |text: &str| u128::from_str_radix(text, 16).ok().map(Mark);
        let Some((key, digest)) = mark(&line.key).zip(mark(&line.digest)) else { return };
        if line.state == State::Forgotten || line.at <= oldest {
            self.known.remove(&key);
            return;
        }
        let sure = line.state == State::Done;
        self.known.insert(key, Known { digest, id: line.id, sure, at: line.at });
    }

    /// What is still known; the rest is forgotten.
    fn known_since(&mut self, oldest: Timestamp) -> Vec<(Mark, Known)> {
        self.known.retain(|_, known| known.at > oldest);
        self.known.iter().map(|(key, known)| (*key, *known)).collect()
    }
}

impl Log {
    /// Only what is still known, in a new file that takes the place of the old one.
    fn rewrite(&mut self, path: &Path, known: &[(Mark, Known)]) -> io::Result<()> {
        let beside = path.with_extension("new");
        let _ = fs::remove_file(&beside);
        let mut octets = Vec::new();
        for (key, known) in known {
            let state = if known.sure { State::Done } else { State::Begun };
            let (key, digest) = (format!("{:032x}", key.0), format!("{:032x}", known.digest.0));
            serde_json::to_writer(&mut octets, &Line { key, digest, id: known.id, at: known.at, state })?;
            octets.push(b'\n');
        }
        let mut file = appending(&beside)?;
        file.write_all(&octets)?;
        file.sync_all()?;
        fs::rename(&beside, path)?;
        self.lines = known.len();
        self.is_cut = false;
        self.file = Some(file);
        Ok(())
    }
}

fn appending(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new().append(true).create(true).mode(0o600).open(path)?;
    // A new file's name is part of what must last.
    if let Some(directory) = path.parent() {
        File::open(directory)?.sync_all()?;
    }
    Ok(file)
}

impl Turn {
    /// Makes it durable what the key stands for, before the message is.
    pub(super) async fn begun(&self, digest: Mark, id: QueueId) -> io::Result<()> {
        self.note(digest, id, State::Begun, true).await
    }

    /// The message is durable.
    pub(super) async fn done(&self, digest: Mark, id: QueueId) -> io::Result<()> {
        self.note(digest, id, State::Done, true).await
    }

    /// Nothing was accepted: the key is free again.
    pub(super) async fn forget(&self, digest: Mark, id: QueueId) -> io::Result<()> {
        self.note(digest, id, State::Forgotten, false).await
    }

    async fn note(&self, digest: Mark, id: QueueId, state: State, sync: bool) -> io::Result<()> {
        let known = Known { digest, id, sure: state == State::Done, at: self.once.0.clock.now() };
        self.once.note(self.key, known, state, sync).await
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.once.table().under_way.remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(text: &str) -> Mark {
        Mark::of(Sha256::new_with_prefix(text))
    }

    fn id(text: &str) -> QueueId {
        text.parse().expect("an id")
    }

    #[tokio::test(start_paused = true)]
    async fn keys_survive_a_restart_for_a_day_and_no_longer() {
        let home = tempfile::tempdir().expect("a directory");
        let clock = Clock::starting_at(Timestamp(1_340_000_000_000));
        let once = Once::open(home.path(), clock.clone());
        let (first, second) = (id("01HXYZ0000ABC"), id("01HXYZ0000ABD"));
        for (key, id, state) in [("a", first, State::Done), ("b", second, State::Begun)] {
            let (turn, known) = once.begin(mark(key)).expect("its turn");
            assert_eq!(known, None);
            assert_eq!(once.begin(mark(key)).expect_err("another has it"), Busy::UnderWay);
            turn.begun(mark("x"), id).await.expect("it is written");
            if state == State::Done {
                turn.done(mark("x"), id).await.expect("it is written");
            }
        }
        let (turn, _) = once.begin(mark("c")).expect("its turn");
        turn.begun(mark("x"), first).await.expect("it is written");
        turn.forget(mark("x"), first).await.expect("it is written");
        // The end of a line that was cut off by a kill.
        let file = home.path().join(NAME);
        let cut = fs::read_to_string(&file).expect("the file") + "{\"key\":\"00";
        fs::write(&file, cut).expect("it is written");

        let once = Once::open(home.path(), clock.clone());
        let known =
            |key: &str| once.begin(mark(key)).expect("its turn").1.map(|known| (known.id, known.sure));
        assert_eq!(known("a"), Some((first, true)));
        assert_eq!(known("b"), Some((second, false)));
        assert_eq!(known("c"), None);
        tokio::time::advance(LIFETIME).await;
        assert_eq!(known("a"), None);
        let once = Once::open(home.path(), clock);
        assert!(once.table().known.is_empty());
    }

    #[tokio::test]
    async fn the_file_stays_as_long_as_what_is_known() {
        let home = tempfile::tempdir().expect("a directory");
        let once = Once::open(home.path(), Clock::System);
        let (turn, _) = once.begin(mark("a")).expect("its turn");
        for _ in 0..2 * SLACK {
            turn.once.write(turn.key, known(), State::Done, false).expect("it is written");
        }
        let lines = fs::read_to_string(home.path().join(NAME)).expect("the file").lines().count();
        assert!(lines <= SLACK + 3, "{lines}");
        drop(turn);
        let once = Once::open(home.path(), Clock::System);
        assert!(once.begin(mark("a")).expect("its turn").1.is_some_and(|known| known.sure));
    }

    #[test]
    fn a_disk_that_hangs_keeps_nobody_from_a_turn() {
        let home = tempfile::tempdir().expect("a directory");
        let once = Once::open(home.path(), Clock::System);
        // As whoever waits for the disk has it.
        let _writing = once.log();
        let (turn, _) = once.begin(mark("a")).expect("its turn");
        drop(turn);
        assert!(once.begin(mark("a")).is_ok());
    }

    fn known() -> Known {
        Known { digest: mark("x"), id: id("01HXYZ0000ABC"), sure: true, at: Clock::System.now() }
    }
}
