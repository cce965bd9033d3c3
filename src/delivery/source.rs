//! Content on its way out: at hand before the upstream hears of the message.

use std::{io::ErrorKind, path::Path};

use crate::mail::content::Content;

/// Content ready to be sent, opened before the upstream hears of it.
pub(super) enum Source<'m> {
    Memory(&'m [u8]),
    File { file: tokio::fs::File, size: u64, crc32c: u32 },
}

pub(super) enum SourceError {
    /// It is not there.
    Damaged,
    /// Our host's trouble, such as no descriptors left: it passes.
    Unreadable(std::io::Error),
}

impl<'m> Source<'m> {
    /// Makes the content ready.
    pub(super) async fn open(content: &'m Content) -> Result<Self, SourceError> {
        match content {
            Content::Memory(octets) => Ok(Self::Memory(octets)),
            Content::File { path, size, crc32c } => match tokio::fs::File::open(path).await {
                Ok(file) => Ok(Self::File { file, size: *size, crc32c: *crc32c }),
                // Without its directory it is not lost, but out of reach for now.
                Err(error)
                    if error.kind() == ErrorKind::NotFound && path.parent().is_some_and(Path::is_dir) =>
                {
                    Err(SourceError::Damaged)
                }
                Err(error) => Err(SourceError::Unreadable(error)),
            },
        }
    }
}
