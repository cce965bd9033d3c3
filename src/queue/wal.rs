//! Damage in the middle of SQLite's write-ahead log, which SQLite takes for its end.
//!
//! Each frame's checksum goes on from the one before it, so that a torn end is told from what is whole.
//! One octet that goes bad in the middle so hides all that was committed behind it, and SQLite says
//! nothing. But it is still there to be seen: behind a transaction that was cut off nothing can follow,
//! since the next one is not begun before that is synced. Damage in the last transaction can't be told
//! from a cut.
//!
//! The format: <https://www.sqlite.org/fileformat2.html#the_write_ahead_log>.

use std::{
    fs::{self, File},
    io::{self, BufReader, Read as _},
    path::{Path, PathBuf},
};

const HEADER: usize = 32;
const FRAME_HEADER: usize = 24;
/// The last bit says how checksums take their words: big-endian.
const MAGIC: u32 = 0x377F_0682;

/// What SQLite takes for the end of its log is told and kept if it is none.
pub(super) fn tell_of_damage(path: &Path) {
    match set_aside(path) {
        Ok(None) => {}
        Ok(Some((aside, pages))) => tracing::error!(
            pages,
            "the queue's log was damaged: what was recorded last before the relay ended, up to some seconds, is \
             not in the queue any more. It is kept as {}; `outpost logs` tells what was received then",
            aside.display()
        ),
        Err(error) => tracing::error!(%error, "the queue's log can't be looked through for damage"),
    }
}

/// Looks at the log of the database at `path`, before SQLite does. If it hides something it is copied, for
/// a person to look at; the copy's name and how many pages are hidden in it.
fn set_aside(path: &Path) -> io::Result<Option<(PathBuf, usize)>> {
    let log = PathBuf::from(format!("{}-wal", path.display()));
    let hidden = match File::open(&log) {
        Ok(file) => hidden(BufReader::with_capacity(64 * 1024, file))?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
        Err(error) => return Err(error),
    };
    if hidden == 0 {
        return Ok(None);
    }
    let aside = aside(path);
    fs::copy(&log, &aside)?;
    Ok(Some((aside, hidden)))
}

/// Where the log of the database at `path` is copied to.
pub(super) fn aside(path: &Path) -> PathBuf {
    path.with_extension("damaged.sqlite-wal")
}

/// Pages that were committed behind the first transaction that can't be read.
fn hidden(mut log: impl io::Read) -> io::Result<usize> {
    let mut header = [0; HEADER];
    if !fill(&mut log, &mut header)? {
        return Ok(0);
    }
    let big = word(&header, 0) & 1 == 1;
    let mut sum = checksum((0, 0), &header[..24], big);
    let page = word(&header, 8) as usize;
    if word(&header, 0) & !1 != MAGIC || sum != pair(&header, 24) || !page.is_power_of_two() || page > 65_536
    {
        // Synced before the first frame is written, and within one sector: whatever follows is hidden.
        let mut rest = Vec::new();
        log.take(1 << 20).read_to_end(&mut rest)?;
        return Ok(rest.len().div_ceil(4_096));
    }
    let salt = pair(&header, 16);
    let mut frame = vec![0; FRAME_HEADER + page];
    let (mut is_whole, mut is_cut_off, mut hidden) = (true, false, 0);
    while fill(&mut log, &mut frame)? {
        let ours = pair(&frame, 8) == salt;
        if is_whole {
            sum = checksum(sum, &frame[..8], big);
            sum = checksum(sum, &frame[FRAME_HEADER..], big);
            is_whole = ours && sum == pair(&frame, 16);
        }
        if !is_whole && ours {
            hidden += usize::from(is_cut_off);
            // The last frame of a transaction says how large the database is then.
            is_cut_off |= word(&frame, 4) != 0;
        }
    }
    Ok(hidden)
}

/// False at the end.
fn fill(log: &mut impl io::Read, buffer: &mut [u8]) -> io::Result<bool> {
    match log.read_exact(buffer) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        other => other.map(|()| true),
    }
}

fn word(octets: &[u8], at: usize) -> u32 {
    octets[at..].first_chunk().map_or(0, |octets| u32::from_be_bytes(*octets))
}

fn pair(octets: &[u8], at: usize) -> (u32, u32) {
    (word(octets, at), word(octets, at + 4))
}

fn checksum((mut a, mut b): (u32, u32), octets: &[u8], big: bool) -> (u32, u32) {
    let (words, _) = octets.as_chunks::<4>();
    let read = |octets: &[u8; 4]| if big { u32::from_be_bytes(*octets) } else { u32::from_le_bytes(*octets) };
    let (pairs, _) = words.as_chunks::<2>();
    for [first, second] in pairs {
        a = a.wrapping_add(read(first)).wrapping_add(b);
        b = b.wrapping_add(read(second)).wrapping_add(a);
    }
    (a, b)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The log of several transactions of several pages each.
    fn log(directory: &Path) -> Vec<u8> {
        let path = directory.join("queue.sqlite");
        let connection = rusqlite::Connection::open(&path).unwrap();
        connection.execute_batch("PRAGMA journal_mode = WAL; CREATE TABLE t(octets BLOB);").unwrap();
        for _ in 0..5 {
            connection.execute("INSERT INTO t VALUES(zeroblob(20000))", []).unwrap();
        }
        fs::read(directory.join("queue.sqlite-wal")).unwrap()
    }

    fn frames(log: &[u8]) -> impl Iterator<Item = &[u8]> {
        log[HEADER..].chunks(FRAME_HEADER + 4_096)
    }

    #[test]
    fn what_is_whole_or_cut_off_hides_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let log = log(directory.path());
        assert!(frames(&log).count() > 20);
        for end in (0..log.len()).step_by(501) {
            assert_eq!(hidden(&log[..end]).unwrap(), 0, "cut off at {end}");
        }
        // The last transaction torn: any of its pages is missing, and what is behind that is there.
        let last = frames(&log).enumerate().filter(|(_, frame)| word(frame, 4) != 0).map(|(at, _)| at);
        let last: Vec<usize> = last.collect();
        for torn in last[last.len() - 2] + 1..=last[last.len() - 1] {
            let mut log = log.clone();
            let at = HEADER + torn * (FRAME_HEADER + 4_096);
            log[at..at + FRAME_HEADER + 4_096].fill(0);
            assert_eq!(hidden(&log[..]).unwrap(), 0, "frame {torn}");
        }
    }

    #[test]
    fn damage_before_the_last_transactions_is_seen_wherever_it_is() {
        let directory = tempfile::tempdir().unwrap();
        let log = log(directory.path());
        let commits: Vec<usize> =
            frames(&log).enumerate().filter(|(_, frame)| word(frame, 4) != 0).map(|(at, _)| at).collect();
        // Two transactions are whole behind it: where one ends may itself be what is damaged.
        let end = HEADER + (commits[commits.len() - 3] + 1) * (FRAME_HEADER + 4_096);
        for at in (0..end).step_by(97).chain(0..HEADER + FRAME_HEADER) {
            let mut log = log.clone();
            log[at] ^= 1;
            assert!(hidden(&log[..]).unwrap() > 0, "octet {at}");
        }
    }

    #[test]
    fn a_log_that_hides_something_is_copied_for_people() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("queue.sqlite");
        assert_eq!(set_aside(&path).unwrap(), None);
        let mut log = log(directory.path());
        log[HEADER + 100] ^= 1;
        fs::write(directory.path().join("queue.sqlite-wal"), &log).unwrap();
        let (copy, hidden) = set_aside(&path).unwrap().unwrap();
        assert!(hidden > 10 && fs::read(copy).unwrap() == log);
    }
}
