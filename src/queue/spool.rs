//! The spool: content too large for the database, one file each, named by its queue id.
//!
//! A file is complete and synced before its row is committed, so a file without a row belongs to
//! nobody: it was being received, or its message has left. Such files are swept at start.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use super::id::QueueId;

/// The directory of spool files.
#[derive(Clone, Debug)]
pub(super) struct Spool(PathBuf);

impl Spool {
    /// Opens the spool of the queue in `directory`, making it at first start.
    pub(super) fn open(directory: &Path) -> io::Result<Self> {
        let path = directory.join("spool");
        super::directory::make_directory(&path)?;
        Ok(Self(path))
    }

    /// The spool of the queue in `directory`, which may not be there.
    pub(super) fn at(directory: &Path) -> Self {
        Self(directory.join("spool"))
    }

    /// Where the content of `id` lies.
    pub(super) fn path(&self, id: QueueId) -> PathBuf {
        self.0.join(id.to_string())
    }

    /// Whether the directory is where it was, so that a file that isn't in it is lost.
    pub(super) fn is_there(&self) -> bool {
        self.0.is_dir()
    }

    /// Makes the names of all files that were written durable.
    pub(super) fn sync_directory(&self) -> io::Result<()> {
        File::open(&self.0)?.sync_all()
    }

    /// Makes a file, syncs it and removes it, to learn whether that can be done again.
    pub(super) fn probe(&self) -> io::Result<()> {
        // No id, so that nobody takes it for content.
        let path = self.0.join("probe");
        let _ = fs::remove_file(&path);
        let mut file = SpoolFile::create(path)?;
        file.write(b"x")?;
        file.finish()?;
        self.sync_directory()
    }

    /// Removes a file whose message has left. If that fails it is swept at the next start.
    pub(super) fn remove(&self, id: QueueId) {
        if let Err(error) = fs::remove_file(self.path(id)) {
            tracing::warn!(%id, %error, "spool file not removed");
        }
    }

    /// The ids of all files. What is not named by an id is not ours and is left alone.
    pub(super) fn ids(&self) -> io::Result<Vec<QueueId>> {
        let mut ids = Vec::new();
        for file in fs::read_dir(&self.0)? {
            if let Some(id) = file?.file_name().to_str().and_then(|name| name.parse().ok()) {
                ids.push(id);
            }
        }
        Ok(ids)
    }
}

/// A spool file being written. Dropped before it is finished, it is removed.
#[derive(Debug)]
pub(super) struct SpoolFile {
    file: Option<File>,
    path: PathBuf,
    keep: bool,
}

impl SpoolFile {
    /// Begins a new file; it must not exist, and a link planted there is not followed.
    pub(super) fn create(path: PathBuf) -> io::Result<Self> {
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
        Ok(Self { file: Some(file), path, keep: false })
    }

    /// Appends.
    pub(super) fn write(&mut self, octets: &[u8]) -> io::Result<()> {
        self.file.as_mut().map_or(Ok(()), |file| file.write_all(octets))
    }

    /// Makes the content durable. The name becomes so by [`Spool::sync_directory`].
    pub(super) fn finish(&mut self) -> io::Result<()> {
        // Never synced twice: after a failed sync the kernel has dropped the pages, and a second
        // one would lie about them.
        self.file.take().map_or(Ok(()), |file| file.sync_all())
    }

    /// The row is committed: the file stays.
    pub(super) fn keep(mut self) {
        self.keep = true;
    }
}

impl Drop for SpoolFile {
    fn drop(&mut self) {
        if !self.keep {
            let _ = fs::remove_file(&self.path);
        }
    }
}
