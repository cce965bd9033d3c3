//! A small state that survives a restart: one JSON file, replaced whole.
//!
//! Synced, for it guards an account, and what it holds changes seldom. A file that can't be read is as good
//! as none: no mail depends on it.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use serde::{Serialize, de::DeserializeOwned};

/// More is no file of ours.
const OCTETS_MAX: u64 = 4 * 1024 * 1024;

/// Where a state is kept; nowhere, for tests and for what need not survive.
#[derive(Clone, Debug, Default)]
pub struct Kept(Option<PathBuf>);

impl Kept {
    /// Kept in this file.
    pub fn at(path: PathBuf) -> Self {
        Self(Some(path))
    }

    /// What was kept; the default if nothing was.
    pub fn read<T: DeserializeOwned + Default>(&self) -> T {
        let Some(path) = &self.0 else { return T::default() };
        let read = || -> io::Result<T> {
            if fs::symlink_metadata(path)?.len() > OCTETS_MAX {
                return Err(io::ErrorKind::InvalidData.into());
            }
            Ok(serde_json::from_slice(&fs::read(path)?)?)
        };
        read().unwrap_or_else(|error| {
            if error.kind() != io::ErrorKind::NotFound {
                tracing::warn!(path = %path.display(), %error, "what was kept there is forgotten");
            }
            T::default()
        })
    }

    /// Keeps it. That it fails is told, and is no reason to stop.
    pub fn write(&self, state: &impl Serialize) {
        let Some(path) = &self.0 else { return };
        let written = serde_json::to_vec(state).map_err(Into::into).and_then(|octets| replace(path, &octets));
        if let Err(error) = written {
            tracing::warn!(path = %path.display(), %error, "what should survive a restart can't be kept");
        }
    }
}

/// Replaces a file whole, durably: what stood there, or this. Its directory must be there.
///
/// # Errors
/// It is what it was, or may be this after all.
pub(super) fn replace(path: &Path, octets: &[u8]) -> io::Result<()> {
    let beside = path.with_extension("new");
    let mut options = fs::OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
    file.write_all(octets)?;
    file.sync_all()?;
    fs::rename(&beside, path)?;
    sync_directory(path.parent().unwrap_or(Path::new(".")))
}

/// Makes the names in a directory durable.
///
/// # Errors
/// They may not be.
pub(super) fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}
