//! The tail of the history: what happened last, as far as the database may not have it yet.
//!
//! All events of a moment cost one write(2) and no sync, so the queue's writer, for whom clients wait, can tell of
//! each message before it leaves. What was written outlives the process, however that ends. Each event has its place
//! in the history already: whoever reads both files takes from here what lies behind the database's last place, and
//! nothing comes twice.
//!
//! ```text
//! checksum of all that follows (4) | octets of the event (4) | place (8) | queue id, or NONE (8) | the event
//! ```

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use super::QueueId;

const NAME: &str = "history.tail";
/// Stands for the id of what was refused. No id is negative.
const NONE: i64 = i64::MIN;
const HEAD: usize = 24;
/// Longer than any event: a length beyond it is damage.
const EVENT_MAX: usize = 1024 * 1024;

/// Where the tail of the history in `directory` lies.
pub(in crate::queue) fn path(directory: &Path) -> PathBuf {
    directory.join(NAME)
}

/// An event that has its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Placed {
    pub(super) seq: i64,
    pub(super) id: Option<QueueId>,
    pub(super) octets: Vec<u8>,
}

/// The file, as its one writer has it.
#[derive(Debug)]
pub(super) struct Tail {
    file: File,
    length: u64,
}

impl Tail {
    /// Opens the tail, making it at first start, and reads what an earlier process left in it.
    pub(super) fn open(directory: &Path) -> io::Result<(Self, Vec<Placed>)> {
        let mut options = OpenOptions::new();
        let file = options.write(true).create(true).truncate(false).mode(0o600).open(path(directory))?;
        let (events, length) = whole(&fs::read(path(directory))?);
        Ok((Self { file, length: length as u64 }, events))
    }

    /// Octets in it.
    pub(super) fn length(&self) -> u64 {
        self.length
    }

    /// Writes all of them behind what is there. What fails halfway is written over by the next.
    pub(super) fn append(&mut self, events: &[Placed]) -> io::Result<()> {
        let mut octets = Vec::with_capacity(events.iter().map(|event| HEAD + event.octets.len()).sum());
        for event in events {
            let begin = octets.len();
            octets.extend_from_slice(&[0; 4]);
            octets.extend_from_slice(&(event.octets.len() as u32).to_le_bytes());
            octets.extend_from_slice(&event.seq.to_le_bytes());
            octets.extend_from_slice(&event.id.map_or(NONE, QueueId::to_i64).to_le_bytes());
            octets.extend_from_slice(&event.octets);
            let checksum = crc32c::crc32c(&octets[begin + 4..]);
            octets[begin..begin + 4].copy_from_slice(&checksum.to_le_bytes());
        }
        self.file.write_all_at(&octets, self.length)?;
        self.length += octets.len() as u64;
        Ok(())
    }

    /// Begins anew: the database has all of it.
    pub(super) fn empty(&mut self) -> io::Result<()> {
        self.file.set_len(0)?;
        self.length = 0;
        Ok(())
    }
}

/// What the tail of the history in `directory` holds, in its order.
pub(super) fn read(directory: &Path) -> io::Result<Vec<Placed>> {
    match fs::read(path(directory)) {
        Ok(octets) => Ok(whole(&octets).0),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// The events up to the first that is not whole, and where they end. Places only grow: what lies behind the end, of
/// a longer tail before this one, is not taken for more.
fn whole(octets: &[u8]) -> (Vec<Placed>, usize) {
    let (mut events, mut rest, mut last) = (Vec::new(), octets, 0);
    while let Some((event, used)) = first(rest).filter(|(event, _)| event.seq > last) {
        last = event.seq;
        events.push(event);
        rest = &rest[used..];
    }
    (events, octets.len() - rest.len())
}

fn first(octets: &[u8]) -> Option<(Placed, usize)> {
    let (head, rest) = octets.split_at_checked(HEAD)?;
    let number = |from: usize| i64::from_le_bytes(head[from..from + 8].try_into().unwrap_or_default());
    let word = |from: usize| u32::from_le_bytes(head[from..from + 4].try_into().unwrap_or_default());
    let length = word(4) as usize;
    let event = rest.get(..length).filter(|_| length <= EVENT_MAX)?;
    let checksum = crc32c::crc32c_append(crc32c::crc32c(&head[4..]), event);
    let id = (number(16) != NONE).then(|| QueueId::from_i64(number(16)));
    let placed = Placed { seq: number(8), id, octets: event.to_vec() };
    (checksum == word(0)).then_some((placed, HEAD + length))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(seq: i64, octets: &str) -> Placed {
        let id = (seq % 2 == 0).then(|| QueueId::from_i64(seq));
        Placed { seq, id, octets: octets.into() }
    }

    #[test]
    fn what_was_written_is_read_back_up_to_where_it_is_damaged_or_cut() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(read(directory.path()).unwrap(), []);
        let (mut tail, left) = Tail::open(directory.path()).unwrap();
        assert_eq!(left, []);
        let events = [event(1, "one"), event(2, ""), event(5, "three")];
        tail.append(&events[..1]).unwrap();
        tail.append(&events[1..]).unwrap();
        let file = path(directory.path());
        let octets = fs::read(&file).unwrap();
        for cut in 0..=octets.len() {
            fs::write(&file, &octets[..cut]).unwrap();
            let found = read(directory.path()).unwrap();
            assert_eq!(found, events[..found.len()], "cut at {cut}");
            assert_eq!(found.len() == 3, cut == octets.len());
        }
        for place in 0..octets.len() {
            let mut damaged = octets.clone();
            damaged[place] ^= 0x10;
            fs::write(&file, damaged).unwrap();
            let found = read(directory.path()).unwrap();
            assert!(found.len() < 3 && found == events[..found.len()], "damaged at {place}");
        }
    }

    #[test]
    fn it_goes_on_behind_the_last_whole_event_and_begins_anew_when_emptied() {
        let directory = tempfile::tempdir().unwrap();
        let (mut tail, _) = Tail::open(directory.path()).unwrap();
        tail.append(&[event(1, "one"), event(2, "two")]).unwrap();
        let file = path(directory.path());
        let octets = fs::read(&file).unwrap();
        fs::write(&file, &octets[..octets.len() - 1]).unwrap();
        let (mut tail, left) = Tail::open(directory.path()).unwrap();
        assert_eq!(left, [event(1, "one")]);
        tail.append(&[event(3, "three")]).unwrap();
        assert_eq!(read(directory.path()).unwrap(), [event(1, "one"), event(3, "three")]);
        tail.empty().unwrap();
        assert_eq!((tail.length(), read(directory.path()).unwrap()), (0, Vec::new()));
        tail.append(&[event(4, "four")]).unwrap();
        assert_eq!(read(directory.path()).unwrap(), [event(4, "four")]);
    }
}
