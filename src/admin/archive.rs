//! A queue as an archive: a tar file (POSIX ustar), two members a message, `ID.json` and behind it
//! `ID.eml`. Written and read piece by piece, here and by the commands.
//!
//! An archive may come from anywhere: the names in it are compared and never used as paths, sizes bound
//! what is read and never what is set aside, and what is no plain file is passed over.

use std::io;

use axum::body::Body;
use bytes::{Buf as _, Bytes, BytesMut};
use http_body_util::BodyExt as _;
use tar::{EntryType, Header};

use crate::{clock::Timestamp, queue::QueueId};

/// What an archive is for HTTP, and what a browser calls it.
pub(super) const CONTENT_TYPE: &str = "application/x-tar";
pub(super) const DISPOSITION: &str = "attachment; filename=\"queue.tar\"";
/// Headers and contents take whole blocks.
pub const BLOCK: usize = 512;
/// What stands at the end of an archive.
pub static END: [u8; 2 * BLOCK] = [0; 2 * BLOCK];

/// Which half of a message a member is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Half {
    /// `ID.json`: everything but the content.
    Record,
    /// `ID.eml`: the content, octet for octet.
    Content,
}

/// The header of a member; its octets follow, filled up by [`padding`].
pub fn header(id: QueueId, half: Half, size: u64) -> Bytes {
    let end = match half {
        Half::Record => "json",
        Half::Content => "eml",
    };
    let mut header = Header::new_ustar();
    // The name is short, and there is nothing else that could be refused.
    let _ = header.set_path(format!("{id}.{end}"));
    let Timestamp(milliseconds) = id.time();
    header.set_entry_type(EntryType::Regular);
    header.set_size(size);
    header.set_mode(0o600);
    header.set_mtime(milliseconds / 1_000);
    header.set_uid(0);
    header.set_gid(0);
    header.set_cksum();
    Bytes::copy_from_slice(header.as_bytes())
}

/// What fills the last block behind so many octets.
pub fn padding(size: u64) -> Bytes {
    static ZEROS: [u8; BLOCK] = [0; BLOCK];
    let used = (size % BLOCK as u64) as usize;
    Bytes::from_static(if used == 0 { &[] } else { &ZEROS[used..] })
}

/// What one member is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// As it stands there; only for people.
    pub name: String,
    /// The block that says all this.
    pub header: Bytes,
    /// Which message's, and which half; `None` if it is nothing of a queue.
    pub half: Option<(QueueId, Half)>,
    /// Octets, as it says itself.
    pub size: u64,
    /// It says something of other members, as programs that write archives do; not worth a word.
    pub is_note: bool,
}

impl Member {
    fn of(block: &Bytes) -> Option<Self> {
        let header = Header::from_byte_slice(block);
        if header.cksum().ok()? != checksum(block) {
            return None;
        }
        let name = String::from_utf8_lossy(&header.path_bytes()).into_owned();
        let kind = header.entry_type();
        let is_file = matches!(kind, EntryType::Regular | EntryType::Continuous);
        let notes = [
            EntryType::XHeader,
            EntryType::XGlobalHeader,
            EntryType::GNULongName,
            EntryType::GNULongLink,
            EntryType::Directory,
        ];
        let half = Some(name.strip_prefix("./").unwrap_or(&name)).filter(|_| is_file).and_then(half_of);
        let (size, is_note) = (header.entry_size().ok()?, notes.contains(&kind));
        Some(Self { name, header: block.clone(), half, size, is_note })
    }
}

fn half_of(name: &str) -> Option<(QueueId, Half)> {
    let (id, end) = name.split_once('.')?;
    let half = match end {
        "json" => Half::Record,
        "eml" => Half::Content,
        _ => return None,
    };
    Some((id.parse().ok()?, half))
}

/// The archive can't be read on.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// It stops before its end.
    #[error("the archive ends in the middle")]
    Cut,
    /// What should be a member is none.
    #[error("the archive is damaged: there is no member where one should be, at octet {0}")]
    Damaged(u64),
    /// It can't be read.
    #[error("the archive can't be read: {0}")]
    Unreadable(io::Error),
}

/// Reads an archive member by member.
#[derive(Debug)]
pub struct Members {
    body: Body,
    /// Read and not yet given out.
    buffer: BytesMut,
    /// Octets given out so far.
    position: u64,
    /// Of the member's octets, those that were not asked for yet.
    left: u64,
    /// Behind them.
    padding: u64,
}

impl Members {
    /// The members of the archive that `body` holds.
    pub fn new(body: Body) -> Self {
        Self { body, buffer: BytesMut::new(), position: 0, left: 0, padding: 0 }
    }

    /// Octets of the archive so far.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// The next member; what of the last was not asked for is passed over.
    ///
    /// # Errors
    /// See [`ArchiveError`]: nothing behind that can be read.
    pub async fn next(&mut self) -> Result<Option<Member>, ArchiveError> {
        while self.piece().await?.is_some() {}
        while self.padding > 0 {
            let take = self.fill().await?.min(self.padding as usize);
            self.give(take);
            self.padding -= take as u64;
        }
        let at = self.position;
        let block = self.block().await?;
        if block.iter().all(|octet| *octet == 0) {
            // The second block of the end, and whatever stands behind it, is nobody's business.
            return Ok(None);
        }
        let member = Member::of(&block).ok_or(ArchiveError::Damaged(at))?;
        self.left = member.size;
        self.padding = padding(member.size).len() as u64;
        Ok(Some(member))
    }

    /// The next octets of the member; `None` at its end.
    ///
    /// # Errors
    /// The archive ends before.
    pub async fn piece(&mut self) -> Result<Option<Bytes>, ArchiveError> {
        if self.left == 0 {
            return Ok(None);
        }
        let have = self.fill().await?;
        let take = usize::try_from(self.left).unwrap_or(usize::MAX).min(have);
        self.left -= take as u64;
        Ok(Some(self.give(take)))
    }

    /// All octets of the member; `None` if there are more than `most`.
    ///
    /// # Errors
    /// The archive ends before.
    pub async fn all(&mut self, most: u64) -> Result<Option<Bytes>, ArchiveError> {
        if self.left > most {
            return Ok(None);
        }
        let mut octets = BytesMut::new();
        while let Some(piece) = self.piece().await? {
            octets.extend_from_slice(&piece);
        }
        Ok(Some(octets.freeze()))
    }

    /// Reads what is behind the end, so that whoever sends it is heard out.
    pub async fn drain(mut self) {
        while let Some(Ok(_)) = self.body.frame().await {}
    }

    async fn block(&mut self) -> Result<Bytes, ArchiveError> {
        while self.buffer.len() < BLOCK {
            self.more().await?;
        }
        Ok(self.give(BLOCK))
    }

    /// How much is at hand, at least one octet.
    async fn fill(&mut self) -> Result<usize, ArchiveError> {
        while self.buffer.is_empty() {
            self.more().await?;
        }
        Ok(self.buffer.len())
    }

    async fn more(&mut self) -> Result<(), ArchiveError> {
        let frame = self.body.frame().await.ok_or(ArchiveError::Cut)?;
        let frame = frame.map_err(|error| ArchiveError::Unreadable(io::Error::other(error)))?;
        if let Ok(mut octets) = frame.into_data() {
            while octets.has_remaining() {
                let chunk = octets.chunk();
                let length = chunk.len();
                self.buffer.extend_from_slice(chunk);
                octets.advance(length);
            }
        }
        Ok(())
    }

    fn give(&mut self, octets: usize) -> Bytes {
        self.position += octets as u64;
        self.buffer.split_to(octets).freeze()
    }
}

/// The sum of all octets, its own field taken as blanks.
fn checksum(block: &[u8]) -> u32 {
    const FIELD: std::ops::Range<usize> = 148..156;
    let octet = |(at, octet): (usize, &u8)| if FIELD.contains(&at) { 32 } else { u32::from(*octet) };
    block.iter().enumerate().map(octet).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archive(members: &[(Half, &[u8])]) -> Vec<u8> {
        let id = "01HXYZ0000ABC".parse().expect("an id");
        let mut octets = Vec::new();
        for (half, content) in members {
            octets.extend_from_slice(&header(id, *half, content.len() as u64));
            octets.extend_from_slice(content);
            octets.extend_from_slice(&padding(content.len() as u64));
        }
        octets.extend_from_slice(&END);
        octets
    }

    async fn read(octets: Vec<u8>) -> Result<Vec<(String, usize)>, ArchiveError> {
        let mut members = Members::new(Body::from(octets));
        let mut found = Vec::new();
        while let Some(member) = members.next().await? {
            let content = members.all(10_000).await?;
            found.push((member.name, content.map_or(usize::MAX, |content| content.len())));
        }
        Ok(found)
    }

    #[tokio::test]
    async fn what_is_written_is_read_and_a_cut_is_seen_wherever_it_is() {
        let octets = archive(&[(Half::Record, b"{}"), (Half::Content, &[b'x'; 1_000])]);
        let found = read(octets.clone()).await.expect("whole");
        assert_eq!(found, [("01HXYZ0000ABC.json".to_owned(), 2), ("01HXYZ0000ABC.eml".to_owned(), 1_000)]);
        for end in (0..=octets.len() - 2 * BLOCK).step_by(100) {
            assert!(matches!(read(octets[..end].to_vec()).await, Err(ArchiveError::Cut)), "{end}");
        }
        let mut damaged = octets;
        damaged[2 * BLOCK + 3] ^= 1;
        let refused = read(damaged).await.expect_err("a header");
        assert!(matches!(refused, ArchiveError::Damaged(1_024)), "{refused}");
    }

    #[tokio::test]
    async fn only_files_with_the_name_of_a_message_are_of_a_queue() {
        let member = |name: &str, kind: EntryType| {
            let mut header = Header::new_ustar();
            header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
            header.set_entry_type(kind);
            header.set_size(u64::MAX);
            header.set_cksum();
            Member::of(&Bytes::copy_from_slice(header.as_bytes())).map(|member| member.half.is_some())
        };
        for name in ["01HXYZ0000ABC.json", "./01HXYZ0000ABC.eml"] {
            assert_eq!(member(name, EntryType::Regular), Some(true));
            assert_eq!(member(name, EntryType::Symlink), Some(false));
        }
        for name in ["../01HXYZ0000ABC.json", "/01HXYZ0000ABC.eml", "01HXYZ0000ABC", "x.json", ""] {
            assert_eq!(member(name, EntryType::Regular), Some(false), "{name}");
        }
    }
}
