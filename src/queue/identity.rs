//! Which queue it is: a number that the queue has, and that the data directory remembers. A queue whose
//! volume is not mounted looks like one that never was; by this they are told apart, so that no new one is
//! begun in silence while mail lies elsewhere.
//!
//! The queue has its number before it is remembered. So whoever is killed between the two starts again as
//! if for the first time, with the queue that is there.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use super::{OpenError, store};

/// Where the number is remembered, in the data directory.
const NAME: &str = "queue.id";

/// What a data directory remembers of its queue.
#[derive(Debug)]
pub(super) struct Memory {
    path: PathBuf,
    known: Option<i64>,
}

impl Memory {
    /// What `data` remembers, which may be nothing yet.
    pub(super) fn of(data: &Path) -> Result<Self, OpenError> {
        let path = data.join(NAME);
        let known = match fs::read_to_string(&path) {
            Ok(text) => i64::from_str_radix(text.trim(), 16).ok(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(OpenError::io(&path, error)),
        };
        Ok(Self { path, known })
    }

    /// Refuses where a queue is known, and none is in `directory`. Nothing is made there before.
    pub(super) fn expect(&self, directory: &Path) -> Result<(), OpenError> {
        let is_there = fs::metadata(store::path(directory)).is_ok_and(|file| file.len() > 0);
        if self.known.is_none() || is_there {
            return Ok(());
        }
        Err(OpenError::Missing { directory: directory.to_owned(), remembered: self.path.clone() })
    }

    /// The number for a queue that has none.
    pub(super) fn number(&self) -> i64 {
        self.known.unwrap_or_else(|| fastrand::i64(1..))
    }

    /// Remembers the queue that was opened. That it can't be is told, and is no reason not to start: on a full
    /// disk queued mail has to leave.
    pub(super) fn remember(&self, directory: &Path, number: i64) {
        if self.known == Some(number) {
            return;
        }
        if self.known.is_some() {
            tracing::warn!(
                directory = %directory.display(),
                "another queue is there than the last time: what the other one held is not in it"
            );
        }
        if let Err(error) = self.write(number) {
            tracing::warn!(path = %self.path.display(), %error, "which queue is ours can't be remembered");
        }
    }

    fn write(&self, number: i64) -> io::Result<()> {
        let data = self.path.parent().unwrap_or(Path::new("."));
        DirBuilder::new().recursive(true).mode(0o750).create(data)?;
        let beside = self.path.with_extension("id.new");
        let mut file =
            OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
        writeln!(file, "{number:016x}")?;
        file.sync_all()?;
        fs::rename(&beside, &self.path)?;
        File::open(data)?.sync_all()
    }
}
