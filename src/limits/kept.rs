//! A small state that survives a restart: one JSON file, replaced whole.
//!
//! Not synced: it must survive our death, not the machine's, and what it guards is a courtesy to the
//! upstream, never mail. A file that can't be read is as good as none.

use std::{fs, io, os::unix::fs::OpenOptionsExt as _, path::PathBuf};

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
    pub(super) fn read<T: DeserializeOwned + Default>(&self) -> T {
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
    pub(super) fn write(&self, state: &impl Serialize) {
        use io::Write as _;
        let Some(path) = &self.0 else { return };
        let beside = path.with_extension("new");
        let write = || {
            let octets = serde_json::to_vec(state)?;
            let mut options = fs::OpenOptions::new();
            let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
            file.write_all(&octets)?;
            fs::rename(&beside, path)
        };
        if let Err(error) = write() {
            tracing::warn!(path = %path.display(), %error, "what should survive a restart can't be kept");
        }
    }
}
