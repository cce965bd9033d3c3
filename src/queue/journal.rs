//! The journal: what was accepted, or became of a message, within the last moments; in front of the database.
//!
//! One append with one sync makes a batch durable, where the database would write a dozen pages for it. Most
//! mail leaves within moments and so never comes into the database; what stays is brought there in bulk
//! ([`Store::absorb_beside`](super::store::Store::absorb_beside)), and once the database knows all of it the file is
//! written from its start again.
//!
//! A frame is a batch: seal, CRC32C, number, length, steps, and zeros up to a multiple of [`ALIGNED`] octets. The
//! seal is a number that only this queue knows: what somebody sends as content is never taken for a frame.
//! Numbers go on for ever, and the database knows up to which one it has all. So behind the last frame
//! stands what has a lower number, or nothing whole: a frame that was never synced, and promised nothing. The
//! next batch is not begun before that; where a frame of a higher number follows, what is before it
//! was damaged, and this is told from a torn end.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use bytes::{Buf, Bytes};

use super::id::QueueId;
use crate::clock::Timestamp;

/// Seal, checksum, number, length.
const HEADER: usize = 8 + 4 + 8 + 4;
/// Where what the checksum is of begins.
const CHECKED: usize = 8 + 4;
/// Frames begin at multiples of it, so that one behind damage is found.
const ALIGNED: usize = 64;
/// What the file may keep while nothing is to do.
const KEPT: u64 = 1024 * 1024;
/// What the buffer for a frame may keep.
const BUFFER: usize = 256 * 1024;

const INSERT: u8 = 1;
const UPDATE: u8 = 2;
const REMOVE: u8 = 3;

/// What became of one entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// It was accepted: its record, the size of its content, and that, unless it lies in the spool.
    Insert { id: QueueId, size: u64, record: Bytes, octets: Option<Bytes> },
    /// Its new record, and when it is due.
    Update { id: QueueId, due: Timestamp, record: Bytes },
    /// It has left, with so many octets of content.
    Remove { id: QueueId, size: u64 },
}

/// What a journal holds that the database does not know.
#[derive(Debug, Default)]
pub(super) struct Replay {
    /// In their order.
    pub(super) steps: Vec<Step>,
    /// The greatest number of a frame.
    pub(super) last: u64,
    /// Where its frames end.
    end: u64,
    /// Frames that were durable and can't be read.
    pub(super) lost: u64,
}

/// The file, open for the next frame.
#[derive(Debug)]
pub(super) struct Journal {
    path: PathBuf,
    seal: i64,
    /// `None` behind a failed write or sync: what stands in the file then is not known, and a second sync of it
    /// would lie.
    file: Option<File>,
    /// The number of the last frame.
    last: u64,
    end: u64,
    buffer: Vec<u8>,
    /// It was told that it can't be used.
    told: bool,
}

/// Where the journal of the queue lies whose database is at `database`.
pub(super) fn path(database: &Path) -> PathBuf {
    database.with_file_name("queue.journal")
}

/// Where it is copied to if it is damaged.
pub(super) fn aside(database: &Path) -> PathBuf {
    database.with_file_name("queue.damaged.journal")
}

/// Keeps a copy of a journal that lacks so many frames, for a person to look at, and tells of it.
pub(super) fn set_aside(database: &Path, lost: u64) {
    let (path, aside) = (path(database), aside(database));
    // The first one stays, until a person has looked at it.
    if !aside.exists()
        && let Err(error) = fs::copy(&path, &aside)
    {
        tracing::error!(%error, "the damaged journal can't be copied");
    }
    tracing::error!(
        commits = lost,
        "the queue's journal was damaged: some of what was recorded last before the relay ended is not in the queue \
         any more. It is kept as {}; `outpost logs` tells what was received then",
        aside.display()
    );
}

/// Reads what the journal at `path` of the queue with this seal holds behind the frame number `known`.
pub(super) fn read(path: &Path, seal: i64, known: u64) -> io::Result<Replay> {
    let octets = match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        read => read?,
    };
    Ok(replay(&Bytes::from(octets), seal, known))
}

fn replay(octets: &Bytes, seal: i64, known: u64) -> Replay {
    let mut found = Replay { last: known, ..Replay::default() };
    let mut at = 0;
    let mut before: Option<u64> = None;
    while let Some(frame) = next_frame(octets, seal, at, before, known) {
        if frame.number > known {
            found.lost += frame.number - before.map_or(known, |before| before.max(known)) - 1;
            found.steps.extend(frame.steps);
            found.last = frame.number;
        }
        before = Some(frame.number);
        at = frame.end;
        found.end = at as u64;
    }
    found
}

struct Frame {
    number: u64,
    steps: Vec<Step>,
    end: usize,
}

/// The frame at `at`, if it follows `before`; else the next one further on that is newer than all that is known.
fn next_frame(octets: &Bytes, seal: i64, at: usize, before: Option<u64>, known: u64) -> Option<Frame> {
    let follows = |number: u64| before.is_none_or(|before| number == before + 1);
    if let Some(frame) = frame(octets, seal, at, follows) {
        return Some(frame);
    }
    let newest = before.unwrap_or_default().max(known);
    let mut further = (at..octets.len()).step_by(ALIGNED).skip(1);
    further.find_map(|at| frame(octets, seal, at, |number| number > newest))
}

/// The frame at `at`, if it is whole and its number is wanted.
fn frame(octets: &Bytes, seal: i64, at: usize, wants: impl Fn(u64) -> bool) -> Option<Frame> {
    let mut header = octets.get(at..at + HEADER)?;
    if header.get_i64_le() != seal {
        return None;
    }
    let crc = header.get_u32_le();
    let (number, length) = (header.get_u64_le(), header.get_u32_le() as usize);
    if !wants(number) {
        return None;
    }
    let behind = at + HEADER + length;
    if crc32c::crc32c(octets.get(at + CHECKED..behind)?) != crc {
        return None;
    }
    let steps = steps(octets.slice(at + HEADER..behind))?;
    Some(Frame { number, steps, end: behind.next_multiple_of(ALIGNED) })
}

fn steps(mut octets: Bytes) -> Option<Vec<Step>> {
    let mut steps = Vec::new();
    while octets.has_remaining() {
        let kind = octets.try_get_u8().ok()?;
        let id = QueueId::from_i64(octets.try_get_i64_le().ok()?);
        steps.push(match kind {
            INSERT => {
                let (size, in_spool) = (octets.try_get_u64_le().ok()?, octets.try_get_u8().ok()? != 0);
                let record = piece(&mut octets)?;
                let octets = if in_spool { None } else { Some(piece(&mut octets)?) };
                Step::Insert { id, size, record, octets }
            }
            UPDATE => {
                let due = Timestamp(octets.try_get_u64_le().ok()?);
                Step::Update { id, due, record: piece(&mut octets)? }
            }
            REMOVE => Step::Remove { id, size: octets.try_get_u64_le().ok()? },
            _ => return None,
        });
    }
    Some(steps)
}

fn piece(octets: &mut Bytes) -> Option<Bytes> {
    let length = octets.try_get_u32_le().ok()? as usize;
    (length <= octets.len()).then(|| octets.split_to(length))
}

impl Journal {
    /// The journal at `path`, of which `replay` was read. If the database knows all of it, it is open for the first
    /// frame; its name is durable when the caller has synced the directory.
    pub(super) fn new(path: PathBuf, seal: i64, replay: &Replay, is_known: bool) -> Self {
        let open =
            || OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path).ok();
        let file = if is_known { open() } else { None };
        let end = if is_known { 0 } else { replay.end };
        Self { path, seal, file, last: replay.last, end, buffer: Vec::new(), told: false }
    }

    /// Whether a frame can be appended.
    pub(super) fn is_sound(&self) -> bool {
        self.file.is_some()
    }

    /// The number of the last frame, be it one that failed.
    pub(super) fn last(&self) -> u64 {
        self.last
    }

    /// How much of the file is in use.
    pub(super) fn octets(&self) -> u64 {
        self.end
    }

    /// Makes steps durable, all or none.
    ///
    /// # Errors
    /// They are not, and the journal is not to be used before [`Self::restart`].
    pub(super) fn append(&mut self, steps: &[Step]) -> io::Result<()> {
        let Some(file) = &self.file else { return Err(io::Error::other("the journal is not open")) };
        self.last += 1;
        fill(&mut self.buffer, self.seal, self.last, steps);
        let done = file.write_all_at(&self.buffer, self.end).and_then(|()| file.sync_data());
        match done {
            Ok(()) => self.end += self.buffer.len() as u64,
            Err(_) => {
                // What is refused must not be found by whoever is started next. This page is written anew, so it can be
                // synced; if it can't, the database still makes the frame void.
                let again = OpenOptions::new().write(true).open(&self.path);
                let _ = again.and_then(|file| {
                    file.write_all_at(&[0; ALIGNED], self.end)?;
                    file.sync_data()
                });
                self.file = None;
            }
        }
        self.buffer.shrink_to(BUFFER);
        done
    }

    /// Begins from the start: the database has all of it. What failed is given up for a new file; while none can be
    /// made, the database does without.
    pub(super) fn restart(&mut self) {
        self.end = 0;
        if self.file.is_some() {
            return;
        }
        match open(&self.path) {
            Ok(file) => (self.file, self.told) = (Some(file), false),
            Err(error) if !self.told => {
                tracing::error!(path = %self.path.display(), %error, "the journal can't be written: mail is slower");
                self.told = true;
            }
            Err(_) => {}
        }
    }

    /// Gives room back that a busy time has taken.
    pub(super) fn shrink(&self) -> io::Result<()> {
        match &self.file {
            Some(file) if self.end == 0 && file.metadata()?.len() > KEPT => file.set_len(KEPT),
            _ => Ok(()),
        }
    }
}

/// An empty file, whose name is durable.
fn open(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path)?;
    // Behind a failed sync the kernel may take for clean what is not on disk.
    file.set_len(0)?;
    file.sync_all()?;
    File::open(path.parent().unwrap_or(path))?.sync_all()?;
    Ok(file)
}

/// Makes the frame of this number.
fn fill(frame: &mut Vec<u8>, seal: i64, number: u64, steps: &[Step]) {
    frame.clear();
    frame.resize(HEADER, 0);
    let put = |frame: &mut Vec<u8>, octets: &[u8]| {
        frame.extend_from_slice(&(octets.len() as u32).to_le_bytes());
        frame.extend_from_slice(octets);
    };
    for step in steps {
        let (kind, id) = match step {
            Step::Insert { id, .. } => (INSERT, id),
            Step::Update { id, .. } => (UPDATE, id),
            Step::Remove { id, .. } => (REMOVE, id),
        };
        frame.push(kind);
        frame.extend_from_slice(&id.to_i64().to_le_bytes());
        match step {
            Step::Insert { size, record, octets, .. } => {
                frame.extend_from_slice(&size.to_le_bytes());
                frame.push(u8::from(octets.is_none()));
                put(frame, record);
                if let Some(octets) = octets {
                    put(frame, octets);
                }
            }
            Step::Update { due, record, .. } => {
                frame.extend_from_slice(&due.0.to_le_bytes());
                put(frame, record);
            }
            Step::Remove { size, .. } => frame.extend_from_slice(&size.to_le_bytes()),
        }
    }
    let length = (frame.len() - HEADER) as u32;
    frame[CHECKED..CHECKED + 8].copy_from_slice(&number.to_le_bytes());
    frame[CHECKED + 8..HEADER].copy_from_slice(&length.to_le_bytes());
    let crc = crc32c::crc32c(&frame[CHECKED..]);
    frame[..8].copy_from_slice(&seal.to_le_bytes());
    frame[8..CHECKED].copy_from_slice(&crc.to_le_bytes());
    frame.resize(frame.len().next_multiple_of(ALIGNED), 0);
}

/// Frames of a kind that `data` says, in a file of some octets that were there before, and damage as it says; what
/// is read of them is what was written, in its order, and what is missing is told of where it can be.
#[cfg(fuzzing)]
pub fn fuzz(data: &[u8]) {
    const SEAL: i64 = -4_711;
    let mut data = Bytes::copy_from_slice(data);
    let known = u64::from(data.try_get_u8().unwrap_or_default());
    let mut damage: Vec<(u16, u8)> = Vec::new();
    for _ in 0..data.try_get_u8().unwrap_or_default() % 4 {
        damage.extend(data.try_get_u16().ok().zip(data.try_get_u8().ok()));
    }
    let cut = data.try_get_u16().unwrap_or(u16::MAX);
    let (mut octets, mut frames) = (Vec::new(), Vec::new());
    let mut number = known;
    while data.has_remaining() {
        let batch: Vec<Step> = (0..=data.try_get_u8().unwrap_or_default() % 3)
            .map_while(|_| {
                let id = QueueId::from_i64(data.try_get_u8().ok()?.into());
                let length = usize::from(data.try_get_u8().ok()?);
                let piece = data.split_to(length.min(data.len()));
                Some(match length % 4 {
                    0 => Step::Insert { id, size: 1, record: piece.clone(), octets: Some(piece) },
                    1 => Step::Insert { id, size: 2, record: piece, octets: None },
                    2 => Step::Update { id, due: Timestamp(length as u64), record: piece },
                    _ => Step::Remove { id, size: 3 },
                })
            })
            .collect();
        number += 1;
        let mut frame = Vec::new();
        fill(&mut frame, SEAL, number, &batch);
        octets.extend_from_slice(&frame);
        frames.push(batch);
    }
    // Behind it stands what is older: content of anybody, or frames that the database knows.
    let (written, behind) = (octets.len(), octets.clone());
    octets.extend_from_slice(&behind);
    let whole = replay(&Bytes::copy_from_slice(&octets), SEAL, known);
    assert_eq!((whole.steps, whole.lost, whole.end), (frames.concat(), 0, written as u64));
    // Nobody else's seal.
    assert!(replay(&Bytes::copy_from_slice(&octets), !SEAL, known).steps.is_empty());

    octets.truncate(cut.into());
    for (at, with) in damage {
        if let Some(octet) = octets.get_mut(usize::from(at)) {
            *octet ^= with;
        }
    }
    let found = replay(&Bytes::from(octets), SEAL, known);
    let mut expected = frames.iter().flatten();
    assert!(found.steps.iter().all(|step| expected.any(|written| written == step)), "invented");
    // All up to the last one that was found is there or is counted.
    let upto = usize::try_from(found.last - known).expect("few");
    let lost = usize::try_from(found.lost).expect("few");
    let steps: usize = frames[..upto].iter().map(Vec::len).sum();
    assert!(lost < upto.max(1) && (lost > 0 || found.steps.len() == steps), "{lost} of {upto} are told");
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEAL: i64 = -4_711;

    fn insert(id: i64, length: usize) -> Step {
        Step::Insert {
            id: QueueId::from_i64(id),
            size: length as u64,
            record: Bytes::from(format!("record of {id}")),
            octets: Some(Bytes::from(vec![id as u8; length])),
        }
    }

    fn batches() -> Vec<Vec<Step>> {
        let (one, two) = (QueueId::from_i64(1), QueueId::from_i64(2));
        let spooled = Step::Insert { id: two, size: 9, record: Bytes::from_static(b"r"), octets: None };
        vec![
            vec![insert(1, 100), spooled],
            vec![Step::Update { id: two, due: Timestamp(7), record: Bytes::from_static(b"new") }],
            vec![Step::Remove { id: one, size: 100 }, insert(3, 0)],
            vec![insert(4, 5_000)],
        ]
    }

    /// A journal with these batches behind frame `known`, and its octets.
    fn written(known: u64, batches: &[Vec<Step>]) -> (tempfile::TempDir, Journal, Vec<u8>) {
        let directory = tempfile::tempdir().unwrap();
        let path = path(&directory.path().join("queue.sqlite"));
        let mut journal = Journal::new(path.clone(), SEAL, &read(&path, SEAL, known).unwrap(), true);
        batches.iter().for_each(|batch| journal.append(batch).unwrap());
        let octets = fs::read(&path).unwrap();
        (directory, journal, octets)
    }

    fn steps_of(octets: &[u8], known: u64) -> (Vec<Step>, u64) {
        let found = replay(&Bytes::copy_from_slice(octets), SEAL, known);
        (found.steps, found.lost)
    }

    #[test]
    fn what_was_appended_is_read_back_but_what_the_database_knows() {
        let (_directory, journal, octets) = written(40, &batches());
        assert_eq!(journal.last(), 44);
        for known in 40..=44 {
            let rest = batches()[known - 40..].concat();
            assert_eq!(steps_of(&octets, known as u64), (rest, 0));
        }
    }

    #[test]
    fn behind_a_restart_what_stood_there_before_is_not_read() {
        let (_directory, mut journal, _) = written(0, &batches());
        journal.restart();
        journal.append(&batches()[1]).unwrap();
        let octets = fs::read(&journal.path).unwrap();
        assert_eq!(steps_of(&octets, 4), (batches()[1].clone(), 0));
        assert_eq!(steps_of(&octets, 5), (vec![], 0));
    }

    #[test]
    fn a_torn_end_is_no_damage_and_brings_nothing() {
        let (_directory, _, octets) = written(0, &batches());
        let whole = batches()[..3].concat();
        let last = octets.len() - (octets.len() - HEADER).min(5_056);
        for end in (0..octets.len()).step_by(37) {
            let (steps, lost) = steps_of(&octets[..end], 0);
            assert!(lost == 0 && batches().concat().starts_with(&steps), "cut at {end}");
        }
        for hole in (last..octets.len() - 128).step_by(61) {
            let mut octets = octets.clone();
            octets[hole] ^= 1;
            assert_eq!(steps_of(&octets, 0), (whole.clone(), 0), "octet {hole}");
        }
    }

    #[test]
    fn damage_before_the_last_frame_is_told_and_costs_no_other_frame() {
        let (_directory, _, octets) = written(0, &batches());
        let all = batches().concat();
        let second = all.iter().position(|step| matches!(step, Step::Update { .. })).unwrap();
        for at in 0..2 * HEADER {
            let mut octets = octets.clone();
            octets[at] ^= 1;
            let (steps, lost) = steps_of(&octets, 0);
            assert_eq!((&steps[..], lost), (&all[second..], 1), "octet {at}");
            // What the database has is no loss.
            assert_eq!(steps_of(&octets, 1), (all[second..].to_vec(), 0), "octet {at}");
        }
    }

    /// Whoever sends mail can't know the seal.
    #[test]
    fn content_that_looks_like_a_frame_is_none() {
        let mut forged = Vec::new();
        fill(&mut forged, 1, 1_000, &[Step::Remove { id: QueueId::from_i64(1), size: 100 }]);
        let forged: Bytes = forged.repeat(10).into();
        let mail = Step::Insert {
            id: QueueId::from_i64(9),
            size: forged.len() as u64,
            record: Bytes::from_static(&[0; 7]),
            octets: Some(forged),
        };
        let (_directory, _, mut octets) = written(0, &[vec![mail]]);
        assert_eq!(steps_of(&octets, 0).0.len(), 1);
        for shift in 0..ALIGNED {
            octets.insert(HEADER, 0);
            assert_eq!(steps_of(&octets, 0), (vec![], 0), "shifted by {shift}");
        }
    }

    #[test]
    fn what_failed_leaves_nothing_and_goes_on_in_an_empty_file() {
        let (_directory, mut journal, _) = written(0, &batches());
        let end = journal.octets();
        // As a disk does that takes what is written and fails to sync it.
        fill(&mut journal.buffer, SEAL, 5, &batches()[0]);
        journal.file.as_ref().unwrap().write_all_at(&journal.buffer, end).unwrap();
        journal.file = Some(File::open(&journal.path).unwrap());
        journal.append(&batches()[0]).unwrap_err();
        assert!(!journal.is_sound() && journal.last() == 5);
        journal.append(&batches()[0]).unwrap_err();
        journal.restart();
        journal.append(&batches()[3]).unwrap();
        let octets = fs::read(&journal.path).unwrap();
        assert_eq!(steps_of(&octets, 5), (batches()[3].clone(), 0));
    }
}
