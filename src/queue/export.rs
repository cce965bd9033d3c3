//! Messages on their way out of the queue into an archive: each as it was at one moment, and whole.

use std::{
    fs::File,
    io::{self, Read, Seek as _},
    path::Path,
};

use bytes::Bytes;

use super::{Fault, Queue, archive::Archived, id::QueueId};
use crate::mail::content::Content;

/// Read at once from a file.
const PIECE: usize = 64 * 1024;

/// What there is of a message that is asked for.
#[derive(Debug)]
pub enum Export {
    /// All of it.
    Whole(Exported),
    /// Nothing: it has left.
    Gone,
    /// Its record or its content is not what was accepted.
    Damaged,
}

/// A message for an archive.
#[derive(Debug)]
pub struct Exported {
    /// All but the content, in the form of [`Archived`].
    pub record: Vec<u8>,
    /// Octet for octet.
    pub content: WholeContent,
}

/// Content that was compared with its checksum.
#[derive(Debug)]
pub enum WholeContent {
    /// In memory.
    Memory(Bytes),
    /// All of a file, which stays readable when its message leaves; so many octets.
    File(File, u64),
}

impl WholeContent {
    /// Octets.
    pub fn size(&self) -> u64 {
        match self {
            Self::Memory(octets) => octets.len() as u64,
            Self::File(_, size) => *size,
        }
    }
}

impl Queue {
    /// A message for an archive.
    ///
    /// # Errors
    /// The store can't be read.
    pub async fn export(&self, id: QueueId) -> Result<Export, Fault> {
        self.read(move |shared, reader| {
            let Some(row) = reader.get(id)? else { return Ok(Export::Gone) };
            let whole = match row.entry {
                Some(entry) => {
                    shared.content(reader, &entry)?.and_then(whole).map(|content| (entry, content))
                }
                None => None,
            };
            match whole {
                Some((entry, content)) => {
                    let record = Archived::of(entry, row.due).write();
                    Ok(Export::Whole(Exported { record, content }))
                }
                // It may have left between two looks.
                None if reader.get(id)?.is_none() => Ok(Export::Gone),
                None => Ok(Export::Damaged),
            }
        })
        .await
    }
}

fn whole(content: Content) -> Option<WholeContent> {
    match content {
        Content::Memory(octets) => Some(WholeContent::Memory(octets)),
        Content::File { path, size, crc32c } => {
            open_whole(&path, size, crc32c).ok().flatten().map(|file| WholeContent::File(file, size))
        }
    }
}

/// Opens a file that has this size and this checksum; `None` if it has not.
pub(super) fn open_whole(path: &Path, size: u64, crc32c: u32) -> io::Result<Option<File>> {
    let mut file = File::open(path)?;
    let (mut piece, mut sum, mut read) = (vec![0; PIECE], 0, 0);
    loop {
        match file.read(&mut piece)? {
            0 => break,
            more => {
                sum = crc32c::crc32c_append(sum, &piece[..more]);
                read += more as u64;
            }
        }
    }
    if (read, sum) != (size, crc32c) {
        return Ok(None);
    }
    file.rewind()?;
    Ok(Some(file))
}
