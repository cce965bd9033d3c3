//! The history: what happened to each message, findable after it left.
//!
//! A database of its own beside the store, so that nothing that is wrong with it can touch mail, and a
//! `tail` of what happened last. Events are collected in memory and written to the tail by whoever comes
//! first: the queue's writer just before it makes outcomes durable, so that a process that is killed has
//! told of all that it settled, or a thread of the history's own, a moment later. That thread takes them
//! over into the database, many at once. With `synchronous=NORMAL` that costs no sync; only a checkpoint
//! does, every some thousand events. A power cut may take the latest events, never the file.
//!
//! What is damaged is set aside and begun anew; a file of another version is left as it is, and nothing is
//! written. What can't be written is kept for a while, then dropped and counted. What an event is, is not known here: octets.

mod database;
mod reader;
mod tail;

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use rusqlite::{Connection, OpenFlags};

pub use self::reader::{Reader, Recorded, Span};
use self::{
    database::{FOREIGN, SLICE, Writer, checkpoint, is_damage, is_foreign},
    tail::{Placed, Tail},
};
use super::{Fault, id::QueueId, retry};
use crate::{
    clock::{Clock, Course, Timestamp},
    config::{HistorySettings, QueueSettings},
};

const NAME: &str = "history.sqlite";
/// Where a damaged one is put; one before it is replaced.
const NAME_DAMAGED: &str = "history.damaged.sqlite";

/// Events of no message, which is what was refused, have this share of every bound: whoever is refused
/// again and again pushes out others like it, and not what happened to mail.
const SHARE_OF_NONE: usize = 10;

/// Events that wait in memory at most to be written, and as many to get into the database: some 20 MB each.
/// Ordinarily they wait for [`GATHER`].
const PENDING_MAX: usize = 50_000;
/// So long events gather before they get into the database.
const GATHER: Duration = Duration::from_millis(200);
/// After trouble the file is left alone for so long.
const PAUSE: Duration = Duration::from_secs(1);
/// How often it is looked for old events while there is nothing to write.
const LOOK: Duration = Duration::from_secs(30);
/// Octets of events behind which the log of the database is emptied.
const CHECKPOINT_AFTER: usize = 1024 * 1024;
/// A tail that is longer is emptied, though there is more to come.
const TAIL_MAX: u64 = 1024 * 1024;
/// What is free on the disk does not change much within this time.
const ROOM_HOLDS: Duration = Duration::from_millis(50);
/// What an event takes, about.
const EVENT_OCTETS: usize = 400;

/// Where the history of the queue in `directory` lies.
pub(super) fn path(directory: &Path) -> PathBuf {
    directory.join(NAME)
}

/// Where what happened last lies that may not be in it yet. Whoever copies both takes this one first.
pub(super) fn path_of_tail(directory: &Path) -> PathBuf {
    tail::path(directory)
}

/// The first place that an event of this time can have. The clock may go back, places never do.
pub fn place_of(time: Timestamp) -> i64 {
    (time.0.min(i64::MAX as u64 >> PLACE_BITS) << PLACE_BITS) as i64
}

const PLACE_BITS: u32 = 10;

/// How the history itself is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HistoryHealth {
    /// Events that could not be kept, since the start.
    pub lost: u64,
    /// Files that were set aside as damaged, since the start.
    pub set_aside: u64,
}

type Event = (Option<QueueId>, Vec<u8>);

#[derive(Debug, Default)]
struct Pending {
    events: Vec<Event>,
    /// So many of them are of no message.
    of_none: usize,
    /// The thread has something to do.
    called: bool,
    stop: bool,
}

/// The tail, and what is known of it by whoever writes to it.
#[derive(Debug, Default)]
struct Desk {
    tail: Option<Tail>,
    /// What is in the tail and not yet in the database.
    placed: Vec<Placed>,
    /// The place of the last event.
    last: i64,
    trouble: Option<Trouble>,
    /// Whether there was room on the disk, and when that was looked at.
    room: Option<(bool, Instant)>,
}

/// The database. Whoever holds it may ask for the desk as well; never the other way round.
#[derive(Debug, Default)]
struct Shelf {
    open: Option<Writer>,
    trouble: Option<Trouble>,
    unsynced: usize,
}

/// What was wrong the last time, and until when it is left alone.
#[derive(Debug)]
struct Trouble {
    reason: String,
    until: Instant,
}

impl Trouble {
    fn is_fresh(&self) -> bool {
        Instant::now() < self.until
    }
}

/// How much is kept; may change while it runs.
#[derive(Debug)]
struct Bounds {
    settings: HistorySettings,
    /// Free octets on the disk below which nothing is written: what is left is for mail.
    min_free: u64,
    /// For so long nothing becomes too old by a clock that was set forward, or that nobody has seen yet.
    grace: Duration,
}

impl Bounds {
    fn of(settings: &QueueSettings) -> Self {
        Self {
            settings: settings.history,
            // The last half of what must stay free is for what must not be lost.
            min_free: settings.min_free / 2,
            grace: retry::longest(settings.retry),
        }
    }
}

/// The history of one queue.
#[derive(Debug)]
pub(super) struct History {
    directory: PathBuf,
    bounds: ArcSwap<Bounds>,
    clock: Clock,
    course: Mutex<Course>,
    pending: Mutex<Pending>,
    wake: Condvar,
    desk: Mutex<Desk>,
    shelf: Mutex<Shelf>,
    lost: AtomicU64,
    set_aside: AtomicU64,
}

impl History {
    pub(super) fn new(directory: &Path, settings: &QueueSettings, clock: Clock) -> Arc<Self> {
        Arc::new(Self {
            directory: directory.to_owned(),
            bounds: ArcSwap::from_pointee(Bounds::of(settings)),
            course: Mutex::new(Course::new(clock.now())),
            clock,
            pending: Mutex::default(),
            wake: Condvar::new(),
            desk: Mutex::default(),
            shelf: Mutex::default(),
            lost: AtomicU64::new(0),
            set_aside: AtomicU64::new(0),
        })
    }

    /// Goes by other bounds from now on.
    pub(super) fn change(&self, settings: &QueueSettings) {
        self.bounds.store(Arc::new(Bounds::of(settings)));
    }

    /// Takes an event, to be written soon. Never waits for the disk.
    pub(super) fn record(&self, id: Option<QueueId>, octets: Vec<u8>) {
        let mut pending = self.pending();
        let has_share = id.is_some() || pending.of_none < PENDING_MAX / SHARE_OF_NONE;
        if pending.events.len() >= PENDING_MAX || !has_share {
            self.lost.fetch_add(1, Ordering::Relaxed);
            return;
        }
        pending.of_none += usize::from(id.is_none());
        pending.events.push((id, octets));
        self.call(&mut pending);
    }

    pub(super) fn health(&self) -> HistoryHealth {
        HistoryHealth {
            lost: self.lost.load(Ordering::Relaxed),
            set_aside: self.set_aside.load(Ordering::Relaxed),
        }
    }

    /// Writes what has gathered to the tail. Trouble stays here.
    pub(super) fn write(&self) {
        if self.pending().events.is_empty() {
            return;
        }
        let mut desk = self.desk();
        if desk.trouble.as_ref().is_some_and(Trouble::is_fresh) || !self.has_room(&mut desk) {
            return;
        }
        if desk.tail.is_none() {
            drop(desk);
            self.begin();
            desk = self.desk();
        }
        let Desk { tail: Some(tail), placed, last, trouble, .. } = &mut *desk else { return };
        if placed.len() >= PENDING_MAX {
            return;
        }
        // Taken with the desk at hand, so that events are written in their order.
        let events = {
            let mut pending = self.pending();
            pending.of_none = 0;
            std::mem::take(&mut pending.events)
        };
        let (now, before) = (self.clock.now(), placed.len());
        let mut seq = *last;
        placed.extend(events.into_iter().map(|(id, octets)| {
            seq = place_of(now).max(seq + 1);
            Placed { seq, id, octets }
        }));
        match tail.append(&placed[before..]) {
            Ok(()) => {
                *last = seq;
                recovered(trouble);
            }
            Err(error) => {
                let events = placed.drain(before..).map(|event| (event.id, event.octets)).collect();
                tell_of(trouble, words(error));
                drop(desk);
                self.put_back(events);
            }
        }
    }

    /// Opens the database and the tail, and learns which place is the last one.
    fn begin(&self) {
        let mut shelf = self.shelf();
        if shelf.trouble.as_ref().is_some_and(Trouble::is_fresh) {
            return;
        }
        let opened = self.with_database(&mut shelf, |writer| Ok(writer.last));
        let mut desk = self.desk();
        if desk.tail.is_some() {
            return;
        }
        let opened = opened.and_then(|last| Ok((last, Tail::open(&self.directory).map_err(words)?)));
        match opened {
            Ok((last, (tail, mut left))) => {
                left.retain(|event| event.seq > last);
                desk.last = left.last().map_or(last, |event| event.seq).max(desk.last);
                desk.placed = left;
                desk.tail = Some(tail);
            }
            Err(reason) => tell_of(&mut shelf.trouble, reason),
        }
    }

    /// Takes what is in the tail over into the database.
    fn absorb(&self) {
        let mut shelf = self.shelf();
        if shelf.trouble.as_ref().is_some_and(Trouble::is_fresh) {
            return;
        }
        let events = {
            let mut desk = self.desk();
            if desk.placed.is_empty() && desk.tail.as_ref().is_none_or(|tail| tail.length() == 0)
                || !self.has_room(&mut desk)
            {
                return;
            }
            std::mem::take(&mut desk.placed)
        };
        if !events.is_empty() && !self.shelve(&mut shelf, events) {
            return;
        }
        let mut desk = self.desk();
        // While more and more comes it is never all there; then the last of it, which is little, is waited for.
        let rest = std::mem::take(&mut desk.placed);
        if !rest.is_empty() && desk.tail.as_ref().is_some_and(|tail| tail.length() < TAIL_MAX) {
            desk.placed = rest;
            return;
        }
        if !rest.is_empty() {
            match self.with_database(&mut shelf, |writer| writer.append(&rest)) {
                Ok(()) => shelf.unsynced += octets(&rest),
                Err(reason) => {
                    desk.placed = rest;
                    return tell_of(&mut shelf.trouble, reason);
                }
            }
        }
        if let Some(Err(error)) = desk.tail.as_mut().map(Tail::empty) {
            tell_of(&mut desk.trouble, words(error));
        }
    }

    /// Whether these events are in the database now. If not, they wait on.
    fn shelve(&self, shelf: &mut Shelf, mut events: Vec<Placed>) -> bool {
        match self.with_database(shelf, |writer| writer.append(&events)) {
            Ok(()) => {
                shelf.unsynced += octets(&events);
                recovered(&mut shelf.trouble);
                true
            }
            Err(reason) => {
                tell_of(&mut shelf.trouble, reason);
                shelf.open = None;
                let mut desk = self.desk();
                events.append(&mut desk.placed);
                desk.placed = events;
                false
            }
        }
    }

    /// Does something to the database. A damaged one is set aside, and it is done to a new one.
    fn with_database<T>(
        &self,
        shelf: &mut Shelf,
        mut act: impl FnMut(&mut Writer) -> rusqlite::Result<T>,
    ) -> Result<T, String> {
        let path = self.directory.join(NAME);
        if shelf.open.is_none() && is_foreign(&path) {
            return Err(format!("{} {FOREIGN}", path.display()));
        }
        let mut attempt = |shelf: &mut Shelf| match &mut shelf.open {
            Some(writer) => act(writer),
            closed => act(closed.insert(Writer::open(&path)?)),
        };
        match attempt(shelf) {
            Err(error) if is_damage(&error) => {
                self.put_aside(shelf, &error.to_string())?;
                attempt(shelf).map_err(words)
            }
            other => other.map_err(words),
        }
    }

    /// Whether the disk has room for more than mail. If not, that is told.
    fn has_room(&self, desk: &mut Desk) -> bool {
        let min_free = self.bounds.load().min_free;
        let (has_room, _) = match desk.room.filter(|(_, at)| at.elapsed() < ROOM_HOLDS) {
            Some(known) => known,
            None => match rustix::fs::statvfs(&self.directory) {
                Ok(disk) => {
                    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
                    *desk.room.insert((free >= min_free, Instant::now()))
                }
                Err(error) => {
                    tell_of(&mut desk.trouble, words(error));
                    return false;
                }
            },
        };
        if !has_room {
            tell_of(&mut desk.trouble, "what is left of the disk is for mail".to_owned());
        }
        has_room
    }

    fn put_back(&self, mut events: Vec<Event>) {
        let mut pending = self.pending();
        events.append(&mut pending.events);
        let too_many = events.len().saturating_sub(PENDING_MAX);
        self.lost.fetch_add(too_many as u64, Ordering::Relaxed);
        events.drain(..too_many);
        pending.of_none = of_none(&events);
        pending.events = events;
    }

    /// Moves a damaged file out of the way, for a person to look at.
    fn put_aside(&self, shelf: &mut Shelf, why: &str) -> Result<(), String> {
        shelf.open = None;
        let (from, to) = (self.directory.join(NAME), self.directory.join(NAME_DAMAGED));
        let with = |path: &Path, end: &str| PathBuf::from(format!("{}{end}", path.display()));
        let moved = fs::rename(with(&from, "-wal"), with(&to, "-wal")).or_else(|_| {
            // There is none, so that one from before must not be taken for it.
            fs::remove_file(with(&to, "-wal")).or(Ok::<_, io::Error>(()))
        });
        moved.and_then(|()| fs::rename(&from, &to)).map_err(|error| error.to_string())?;
        let _ = fs::remove_file(with(&from, "-shm"));
        self.set_aside.fetch_add(1, Ordering::Relaxed);
        tracing::error!(
            "the history was damaged ({why}): it is set aside as {}, and begun anew",
            to.display()
        );
        Ok(())
    }

    /// Runs `read` on what was recorded so far.
    pub(super) fn read<T>(&self, read: impl FnOnce(&Reader) -> Result<T, Fault>) -> Result<T, Fault> {
        self.write();
        // Whoever was writing just now has made the file if there is to be one.
        self.absorb();
        let reader = Reader::open(&self.directory)?;
        let result = read(&reader);
        if let Some(why) = reader.damage.into_inner() {
            // Writing goes to the end and might never meet with it.
            let _ = self.put_aside(&mut self.shelf(), &why);
        }
        result
    }

    /// The thread's work, until it is told to stop.
    pub(super) fn keep(&self) {
        loop {
            let stop = {
                let idle = |pending: &mut Pending| !pending.called && !pending.stop;
                let waited = self.wake.wait_timeout_while(self.pending(), LOOK, idle);
                waited.unwrap_or_else(PoisonError::into_inner).0.stop
            };
            if !stop {
                std::thread::sleep(GATHER);
            }
            self.pending().called = false;
            self.write();
            self.absorb();
            if stop {
                // Closing it empties its log.
                self.shelf().open = None;
                return;
            }
            self.tidy();
            let waits = !self.desk().placed.is_empty();
            let mut pending = self.pending();
            if waits || !pending.events.is_empty() {
                self.call(&mut pending);
            }
        }
    }

    /// Wakes the thread, unless it is awake.
    fn call(&self, pending: &mut Pending) {
        if !std::mem::replace(&mut pending.called, true) {
            self.wake.notify_one();
        }
    }

    /// Tells the thread to write what is left and end.
    fn stop(&self) {
        self.pending().stop = true;
        self.wake.notify_one();
    }

    /// Deletes what is too old or too much, in slices between which others write, and keeps the
    /// database's log short.
    fn tidy(&self) {
        let Bounds { settings, grace, .. } = **self.bounds.load();
        let now = self.clock.now();
        let mut course = self.course.lock().unwrap_or_else(PoisonError::into_inner);
        let is_old = course.is_straight_for(now, grace);
        drop(course);
        let oldest = if is_old { place_of(now.before(settings.age)) } else { 0 };
        loop {
            let mut shelf = self.shelf();
            let Some(writer) = &mut shelf.open else { return };
            let deleted = writer.trim(oldest, settings.events as i64).unwrap_or_else(|error| {
                tracing::warn!(%error, "old events could not be deleted from the history");
                0
            });
            shelf.unsynced += deleted * EVENT_OCTETS;
            let is_long = shelf.unsynced >= CHECKPOINT_AFTER;
            drop(shelf);
            if is_long {
                self.empty_log();
            }
            if deleted < SLICE as usize {
                return;
            }
        }
    }

    fn empty_log(&self) {
        // Most of it beside whoever writes, on a connection of its own; the rest, which is little, while
        // nobody does, so that the log can begin at its start again.
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let beside = Connection::open_with_flags(self.directory.join(NAME), flags);
        let beside = beside.and_then(|beside| checkpoint(&beside));
        let mut shelf = self.shelf();
        let rest = shelf.open.as_ref().map_or(Ok(()), |writer| checkpoint(&writer.connection));
        if let Err(error) = beside.and(rest) {
            tracing::warn!(%error, "the history's log could not be emptied");
        }
        shelf.unsynced = 0;
    }

    fn pending(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn desk(&self) -> MutexGuard<'_, Desk> {
        self.desk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn shelf(&self) -> MutexGuard<'_, Shelf> {
        self.shelf.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Stops the history's thread however the one that has this ends.
#[derive(Debug)]
pub(super) struct Stops(pub(super) Arc<History>);

impl Drop for Stops {
    fn drop(&mut self) {
        self.0.stop();
    }
}

fn of_none(events: &[Event]) -> usize {
    events.iter().filter(|(id, _)| id.is_none()).count()
}

fn octets(events: &[Placed]) -> usize {
    events.iter().map(|event| event.octets.len()).sum()
}

fn words(error: impl std::error::Error) -> String {
    error.to_string()
}

fn tell_of(trouble: &mut Option<Trouble>, reason: String) {
    if trouble.as_ref().is_none_or(|before| before.reason != reason) {
        tracing::error!("the history can't be written; mail goes on: {reason}");
    }
    *trouble = Some(Trouble { reason, until: Instant::now() + PAUSE });
}

fn recovered(trouble: &mut Option<Trouble>) {
    if trouble.take().is_some() {
        tracing::info!("the history can be written again");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Span = Span { id: None, after: 0, before: i64::MAX, newest: false, limit: 10_000 };

    fn of(history: HistorySettings, min_free: u64) -> QueueSettings {
        let wait = Duration::from_secs(1);
        QueueSettings {
            directory: PathBuf::new(),
            lifetime: wait,
            delay_warning: None,
            retry: crate::config::Waits { first: Duration::ZERO, longest: Duration::ZERO },
            max_messages: None,
            max_bytes: None,
            min_free,
            history,
        }
    }

    fn history(directory: &Path, settings: HistorySettings) -> Arc<History> {
        History::new(directory, &of(settings, 0), Clock::System)
    }

    fn keep(history: &History) {
        history.write();
        history.absorb();
    }

    fn told(history: &History, span: &Span) -> Vec<String> {
        let events = history.read(|reader| reader.events(span)).unwrap();
        events.into_iter().map(|event| String::from_utf8(event.octets).unwrap()).collect()
    }

    #[test]
    fn what_was_recorded_is_read_at_once_and_by_message_and_behind_a_place() {
        let directory = tempfile::tempdir().unwrap();
        let history = history(directory.path(), HistorySettings::default());
        let id = QueueId::from_i64(7);
        assert!(told(&history, &ALL).is_empty());
        history.record(Some(id), b"one".to_vec());
        history.record(None, b"two".to_vec());
        assert_eq!(told(&history, &ALL), ["one", "two"]);
        history.record(Some(id), b"three".to_vec());
        assert_eq!(told(&history, &Span { id: Some(id), ..ALL }), ["one", "three"]);
        assert_eq!(told(&history, &Span { newest: true, limit: 2, ..ALL }), ["two", "three"]);
        let first = history.read(|reader| reader.events(&ALL)).unwrap()[0].seq;
        assert_eq!(told(&history, &Span { after: first, ..ALL }), ["two", "three"]);
        assert_eq!(told(&history, &Span { before: first + 1, ..ALL }), ["one"]);
        // Without the relay, and by the next one, whose places go on.
        drop(history);
        assert_eq!(Reader::open(directory.path()).unwrap().events(&ALL).unwrap().len(), 3);
        let next = self::history(directory.path(), HistorySettings::default());
        next.record(None, b"four".to_vec());
        assert_eq!(told(&next, &ALL), ["one", "two", "three", "four"]);
    }

    #[test]
    fn it_is_bounded_by_number_and_by_age_and_gives_space_back() {
        let directory = tempfile::tempdir().unwrap();
        let bounds = HistorySettings { events: 500, ..HistorySettings::default() };
        let history = history(directory.path(), bounds);
        let id = QueueId::from_i64(7);
        let fill = |history: &History| {
            for number in 0..4_000 {
                history.record(Some(id), format!("{number:01000}").into_bytes());
            }
            keep(history);
        };
        for _ in 0..8 {
            fill(&history);
            history.tidy();
        }
        assert_eq!(told(&history, &ALL).len(), 500);
        let log = fs::metadata(directory.path().join("history.sqlite-wal")).unwrap().len();
        let size = fs::metadata(directory.path().join(NAME)).unwrap().len();
        assert!(size < 12 << 20 && log < 24 << 20, "{size} {log}");
        history.shelf().open = None;
        let aged = HistorySettings { age: Duration::ZERO, ..bounds };
        let history = self::history(directory.path(), aged);
        history.record(None, b"last".to_vec());
        keep(&history);
        std::thread::sleep(Duration::from_millis(5));
        history.tidy();
        assert!(told(&history, &ALL).is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_clock_set_forward_makes_nothing_old_at_once() {
        let directory = tempfile::tempdir().unwrap();
        let hour = Duration::from_secs(3_600);
        let mut settings = of(HistorySettings { age: 2 * hour, ..HistorySettings::default() }, 0);
        settings.retry.longest = hour;
        let clock = Clock::starting_at(Timestamp(1_000_000_000_000));
        let history = History::new(directory.path(), &settings, clock.clone());
        history.record(None, b"one".to_vec());
        keep(&history);
        tokio::time::sleep(hour * 3 / 2).await;
        *history.course.lock().unwrap() = Course::new(Timestamp(0));
        tokio::time::sleep(hour).await;
        history.tidy();
        assert_eq!(told(&history, &ALL), ["one"], "the clock was set forward");
        tokio::time::sleep(hour * 3 / 2).await;
        history.tidy();
        assert!(told(&history, &ALL).is_empty(), "it is old by both clocks");
    }

    #[test]
    fn a_flood_of_refusals_pushes_out_refusals_and_nothing_of_mail() {
        let directory = tempfile::tempdir().unwrap();
        let bounds = HistorySettings { events: 1_000, ..HistorySettings::default() };
        let flood = |history: &History| {
            for number in 0..3_000 {
                history.record(None, format!("refused {number}").into_bytes());
            }
            keep(history);
            history.tidy();
        };
        let kinds = |history: &History| {
            let told = told(history, &ALL);
            let refused = told.iter().filter(|event| event.starts_with("refused")).count();
            (told.len() - refused, refused)
        };
        let first = history(directory.path(), bounds);
        for number in 0..700 {
            first.record(Some(QueueId::from_i64(number)), b"received".to_vec());
        }
        (0..3).for_each(|_| flood(&first));
        assert_eq!(kinds(&first), (700, 100));
        assert!(told(&first, &ALL).last().unwrap().ends_with("refused 2999"), "the latest stay");
        // The next process knows how many there are, also of a file from before they had a share.
        first.shelf().open.take().unwrap().connection.execute_batch("DROP INDEX event_of_none").unwrap();
        let next = history(directory.path(), bounds);
        flood(&next);
        assert_eq!(kinds(&next), (700, 100));
    }

    #[test]
    fn refusals_leave_room_in_memory_for_what_happens_to_mail() {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join(NAME)).unwrap();
        let history = history(directory.path(), HistorySettings::default());
        for _ in 0..2 {
            for _ in 0..PENDING_MAX {
                history.record(None, b"refused".to_vec());
            }
            keep(&history);
        }
        let share = PENDING_MAX / SHARE_OF_NONE;
        assert_eq!(history.pending().events.len(), share);
        for number in 0..PENDING_MAX - share {
            history.record(Some(QueueId::from_i64(number as i64)), b"received".to_vec());
        }
        assert_eq!(history.pending().events.len(), PENDING_MAX, "all of them have room");
    }

    #[test]
    fn what_a_killed_process_had_written_is_there_for_readers_and_for_the_next_one() {
        let directory = tempfile::tempdir().unwrap();
        let killed = history(directory.path(), HistorySettings::default());
        killed.record(None, b"one".to_vec());
        keep(&killed);
        killed.record(Some(QueueId::from_i64(7)), b"two".to_vec());
        killed.record(None, b"three".to_vec());
        killed.write();
        std::mem::forget(killed);
        let read = |span: &Span| {
            let found = Reader::open(directory.path()).unwrap().events(span).unwrap();
            found.into_iter().map(|event| String::from_utf8(event.octets).unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(read(&ALL), ["one", "two", "three"]);
        assert_eq!(read(&Span { id: Some(QueueId::from_i64(7)), ..ALL }), ["two"]);
        assert_eq!(read(&Span { newest: true, limit: 2, ..ALL }), ["two", "three"]);
        assert_eq!(read(&Span { limit: 2, ..ALL }), ["one", "two"]);
        let next = history(directory.path(), HistorySettings::default());
        next.record(None, b"four".to_vec());
        assert_eq!(told(&next, &ALL), ["one", "two", "three", "four"]);
        assert_eq!(next.desk().tail.as_ref().unwrap().length(), 0, "the database has all of it");
        assert_eq!(read(&ALL), ["one", "two", "three", "four"]);
    }

    #[test]
    fn what_is_in_both_files_is_told_once() {
        let directory = tempfile::tempdir().unwrap();
        let first = history(directory.path(), HistorySettings::default());
        first.record(None, b"one".to_vec());
        first.write();
        let tail = fs::read(path_of_tail(directory.path())).unwrap();
        first.absorb();
        drop(first);
        // Killed between the two.
        fs::write(path_of_tail(directory.path()), tail).unwrap();
        assert_eq!(Reader::open(directory.path()).unwrap().events(&ALL).unwrap().len(), 1);
        let next = history(directory.path(), HistorySettings::default());
        next.record(None, b"two".to_vec());
        assert_eq!(told(&next, &ALL), ["one", "two"]);
    }

    #[test]
    fn a_tail_that_grows_while_it_is_taken_over_is_emptied_all_the_same() {
        let directory = tempfile::tempdir().unwrap();
        let history = history(directory.path(), HistorySettings::default());
        let stop = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            let writing = scope.spawn(|| {
                let mut number = 0;
                while !stop.load(Ordering::Relaxed) {
                    history.record(None, format!("{number:01000}").into_bytes());
                    history.write();
                    number += 1;
                }
                number
            });
            let length = || history.desk().tail.as_ref().map_or(0, Tail::length);
            let (begun, mut emptied) = (Instant::now(), 0);
            for _ in 0..20 {
                // What is less may wait for the next time.
                while length() < 2 * TAIL_MAX {
                    assert!(begun.elapsed() < Duration::from_secs(60), "it does not grow");
                    std::thread::sleep(Duration::from_millis(1));
                }
                let before = length();
                history.absorb();
                emptied += usize::from(length() < before);
            }
            stop.store(true, Ordering::Relaxed);
            let number = writing.join().unwrap();
            assert!(emptied > 10, "{emptied}");
            let span = Span { limit: usize::MAX >> 1, ..ALL };
            assert_eq!(told(&history, &span).len(), number);
        });
    }

    #[test]
    fn a_damaged_file_is_set_aside_and_begun_anew() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join(NAME), vec![b'?'; 20_000]).unwrap();
        let history = history(directory.path(), HistorySettings::default());
        history.record(None, b"one".to_vec());
        assert_eq!(told(&history, &ALL), ["one"]);
        assert_eq!(history.health(), HistoryHealth { lost: 0, set_aside: 1 });
        let aside = fs::read(directory.path().join(NAME_DAMAGED)).unwrap();
        assert_eq!(aside, vec![b'?'; 20_000]);
    }

    #[test]
    fn a_file_of_a_later_version_is_left_alone_and_mail_goes_on_without() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(NAME);
        let first = history(directory.path(), HistorySettings::default());
        first.record(None, b"one".to_vec());
        keep(&first);
        let writer = first.shelf().open.take().unwrap();
        writer.connection.pragma_update(None, "user_version", database::FORMAT + 1).unwrap();
        drop((writer, first));
        let before = fs::read(&path).unwrap();
        let history = history(directory.path(), HistorySettings::default());
        history.record(None, b"two".to_vec());
        keep(&history);
        history.tidy();
        let told = history.read(|reader| reader.events(&ALL)).unwrap_err().to_string();
        assert!(told.contains("later version") && told.contains(NAME), "{told}");
        assert_eq!(history.health(), HistoryHealth::default());
        assert!(fs::read(&path).unwrap() == before && !directory.path().join(NAME_DAMAGED).exists());
    }

    #[test]
    fn damage_that_only_a_reader_meets_with_is_set_aside_too() {
        let directory = tempfile::tempdir().unwrap();
        let history = history(directory.path(), HistorySettings::default());
        for number in 0..2_000 {
            history.record(Some(QueueId::from_i64(7)), format!("{number:0500}").into_bytes());
        }
        keep(&history);
        // Closed, so that all is in the file and none of it in memory.
        history.shelf().open = None;
        let path = directory.path().join(NAME);
        let mut octets = fs::read(&path).unwrap();
        let half = octets.len() / 2;
        octets[half..half + 8_192].fill(0xAA);
        fs::write(&path, octets).unwrap();
        assert!(history.read(|reader| reader.events(&ALL)).is_err());
        assert_eq!(history.health().set_aside, 1);
        history.record(None, b"anew".to_vec());
        assert_eq!(told(&history, &ALL), ["anew"]);
    }

    #[test]
    fn what_cannot_be_written_waits_and_is_dropped_and_counted_beyond_its_bound() {
        let directory = tempfile::tempdir().unwrap();
        // Nothing can be made where a directory is in the way.
        fs::create_dir(directory.path().join(NAME)).unwrap();
        let history = history(directory.path(), HistorySettings::default());
        for number in 0..PENDING_MAX + 10 {
            history.record(Some(QueueId::from_i64(7)), number.to_string().into_bytes());
        }
        keep(&history);
        assert!(history.shelf().trouble.is_some());
        assert_eq!(history.health(), HistoryHealth { lost: 10, set_aside: 0 });
        fs::remove_dir(directory.path().join(NAME)).unwrap();
        history.shelf().trouble = None;
        assert_eq!(told(&history, &Span { limit: PENDING_MAX + 10, ..ALL }).len(), PENDING_MAX);
    }

    #[test]
    fn what_is_left_of_a_full_disk_is_for_mail() {
        let directory = tempfile::tempdir().unwrap();
        let history =
            History::new(directory.path(), &of(HistorySettings::default(), u64::MAX), Clock::System);
        history.record(None, b"one".to_vec());
        keep(&history);
        assert!(!directory.path().join(NAME).exists());
    }

    #[test]
    fn a_file_whose_maker_was_killed_over_it_is_as_good_as_none() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(NAME);
        let looks_empty = || Reader::open(directory.path()).unwrap().events(&ALL).unwrap().is_empty();
        fs::write(&path, "").unwrap();
        assert!(looks_empty());
        // In the midst of its first transaction, which its journal takes back.
        let elsewhere = tempfile::tempdir().unwrap();
        let other = elsewhere.path().join(NAME);
        let connection = Connection::open(&other).unwrap();
        connection.execute_batch("CREATE TABLE one(octets BLOB); PRAGMA cache_size = 2;").unwrap();
        connection.execute_batch("BEGIN; INSERT INTO one VALUES(zeroblob(200000));").unwrap();
        let journal = |path: &Path| PathBuf::from(format!("{}-journal", path.display()));
        fs::copy(journal(&other), journal(&path)).unwrap();
        fs::copy(&other, &path).unwrap();
        assert!(looks_empty());
        let history = history(directory.path(), HistorySettings::default());
        history.record(None, b"one".to_vec());
        assert_eq!(told(&history, &ALL).len(), 1);
    }
}
