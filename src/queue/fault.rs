//! What can go wrong with the queue. Always our trouble, never the client's.

use std::{
    io,
    path::{Path, PathBuf},
};

/// The queue can't take or change a message now. Always our trouble, never the client's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The disk, or a bound set by the operator, is full.
    #[error("no room left on the queue's disk")]
    Full,
    /// Anything else.
    #[error("{0}")]
    Broken(String),
}

impl Fault {
    pub(super) fn stopped() -> Self {
        Self::Broken("the queue is shutting down".to_owned())
    }
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::Full,
            _ => Self::Broken(error.to_string()),
        }
    }
}

/// The queue can't be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it.
    #[error("the queue in {} is in use by {}", directory.display(), holder(*process))]
    InUse {
        /// Which queue.
        directory: PathBuf,
        /// By whom, as far as it said so.
        process: Option<u32>,
    },
    /// The data directory remembers a queue, and none is there.
    #[error(
        "this relay has a queue, and it is not in {}: if it lies on a volume, mount that; if it was moved, name where \
         it is by smtp_queue; to begin anew with an empty one, remove {}",
        directory.display(),
        remembered.display()
    )]
    Missing {
        /// Where it should be.
        directory: PathBuf,
        /// Where it is remembered.
        remembered: PathBuf,
    },
    /// A file can't be used.
    #[error("{}: {error}", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// The database can't be used.
    #[error("{}: {reason}", path.display())]
    Store {
        /// Which.
        path: PathBuf,
        /// Why.
        reason: String,
    },
}

impl OpenError {
    pub(super) fn io(path: &Path, error: io::Error) -> Self {
        Self::Io { path: path.to_owned(), error }
    }
}

fn holder(process: Option<u32>) -> String {
    process.map_or("another process".to_owned(), |id| format!("process {id}"))
}
