//! The reserve: room that is given up when the disk is full, so that what leaves the queue can still
//! be recorded. Without it, all that is delivered on a full disk would be delivered again after a
//! restart, or nothing could leave at all.
//!
//! While it is spent no new mail is taken, for that would eat the room that outcomes need.

use std::{
    fs::{self, OpenOptions},
    io,
    os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{FallocateFlags, fallocate},
    io::Errno,
};

/// Octets; with what is free within the WAL, as much as the database can be behind.
const SIZE_MAX: u64 = 8 * 1024 * 1024;
/// Its share of a small disk.
const SHARE: u64 = 16;
/// It is made only where so many times its size is free, so that it doesn't come and go.
const PLENTY: u64 = 2;

/// The file, and whether it is there to be given up.
#[derive(Debug)]
pub(super) struct Reserve {
    path: PathBuf,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Held,
    /// Given up, or there was never room for it.
    Spent,
    /// Not to be had on such a file system, or the disk refuses everything.
    Unknown,
}

impl Reserve {
    /// Makes the reserve of the queue in `directory`, if there is room.
    pub(super) fn new(directory: &Path) -> Self {
        let mut reserve = Self { path: directory.join("reserve"), state: State::Spent };
        reserve.restore();
        reserve
    }

    /// Whether it was given up, so that new mail must wait.
    pub(super) fn is_spent(&self) -> bool {
        self.state == State::Spent
    }

    /// Frees its room. False if there was none to free.
    pub(super) fn give_up(&mut self) -> bool {
        let held = self.state == State::Held;
        if held {
            if let Err(error) = fs::remove_file(&self.path) {
                tracing::error!(path = %self.path.display(), %error, "the reserve can't be given up");
            }
            self.state = State::Spent;
        }
        held
    }

    /// Makes it, once there is plenty of room. True if it is no longer spent.
    pub(super) fn restore(&mut self) -> bool {
        if self.state == State::Spent {
            self.state = self.make().unwrap_or_else(|error| {
                tracing::debug!(path = %self.path.display(), %error, "no reserve is made");
                State::Unknown
            });
        }
        self.state != State::Spent
    }

    /// Whether a quota is what keeps a page from being written.
    pub(super) fn is_over_quota(&self) -> bool {
        let path = self.path.with_extension("quota");
        let written = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&path);
        let written = written.and_then(|file| {
            file.write_all_at(&[0; 4_096], 0)?;
            file.sync_all()
        });
        let _ = fs::remove_file(&path);
        written.is_err_and(|error| error.kind() == io::ErrorKind::QuotaExceeded)
    }

    fn make(&self) -> io::Result<State> {
        let directory = self.path.parent().unwrap_or(&self.path);
        let disk = rustix::fs::statvfs(directory)?;
        let size = (disk.f_blocks.saturating_mul(disk.f_frsize) / SHARE).min(SIZE_MAX);
        // A file of this length may have holes, as a copy often has, and then makes no room when it is given up.
        let is_whole = |file: fs::Metadata| file.len() == size && file.blocks() * 512 >= size;
        if fs::symlink_metadata(&self.path).is_ok_and(is_whole) {
            return Ok(State::Held);
        }
        if disk.f_bavail.saturating_mul(disk.f_frsize) < size * PLENTY {
            return Ok(State::Spent);
        }
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&self.path)?;
        match fallocate(&file, FallocateFlags::empty(), 0, size) {
            Ok(()) => Ok(State::Held),
            Err(error) => {
                fs::remove_file(&self.path)?;
                if matches!(error, Errno::NOSPC | Errno::DQUOT) {
                    Ok(State::Spent)
                } else {
                    Err(error.into())
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_made_given_up_once_and_made_again() {
        let directory = tempfile::tempdir().unwrap();
        let mut reserve = Reserve::new(directory.path());
        assert!(!reserve.is_spent());
        let size = fs::metadata(directory.path().join("reserve")).unwrap().len();
        assert!(size > 0 && size <= SIZE_MAX);
        assert!(reserve.give_up() && reserve.is_spent() && !reserve.give_up());
        assert!(!directory.path().join("reserve").exists());
        assert!(reserve.restore() && !reserve.is_spent());
        // The next process takes over what it finds.
        assert!(!Reserve::new(directory.path()).is_spent());
        assert!(!reserve.is_over_quota());
    }

    #[test]
    fn one_that_takes_no_room_is_made_anew() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("reserve");
        Reserve::new(directory.path());
        let size = fs::metadata(&path).unwrap().len();
        fs::remove_file(&path).unwrap();
        fs::File::create(&path).unwrap().set_len(size).unwrap();
        assert!(!Reserve::new(directory.path()).is_spent());
        assert!(fs::metadata(&path).unwrap().blocks() * 512 >= size);
    }
}
