//! A message on its way into the queue: from the first octet of content to the receipt.
//!
//! Small content gathers in memory and goes into the journal with its entry, and into the database if it stays. Once it outgrows
//! [`INLINE_MAX`] it moves to a file of the spool and streams there, so that memory stays bounded
//! whatever the size. Dropped before its commit, it leaves nothing behind.

use std::sync::{Arc, atomic::Ordering};

use bytes::{Bytes, BytesMut};
use tokio::sync::oneshot;

use super::{
    Fault, Queue, Receipt, Shared,
    entry::{ContentInfo, Entry, Recipient},
    id::QueueId,
    spool::SpoolFile,
    writer::{NewContent, NewEntry, Request},
};
use crate::{
    clock::Timestamp,
    mail::{
        content::{Facts, HeaderTooLarge, header_end},
        envelope::{Envelope, Origin},
        submission,
    },
};

/// Content up to this size lies in the database: one sync, no inode of its own. Measured: beyond it
/// the database writes everything twice for nothing.
pub const INLINE_MAX: usize = 256 * 1024;

/// A message being received.
#[derive(Debug)]
pub struct Incoming {
    queue: Queue,
    _counted: Counted,
    id: QueueId,
    received: Timestamp,
    /// Content not yet in the file; all of it while there is none.
    buffer: BytesMut,
    /// How much of it may be there, our Received field apart.
    buffered: usize,
    file: Option<SpoolFile>,
    /// Octets at the start of the content that are our own Received field.
    trace: usize,
    /// Our name, if it is for us to trace and complete the message.
    hostname: Option<String>,
    size: u64,
    crc32c: u32,
    /// What the header section said, once the start of the content has gone to the file.
    facts: Option<Result<Facts, HeaderTooLarge>>,
    /// What the history is to keep of its acceptance.
    event: Option<Vec<u8>>,
}

/// Counts as being received until dropped.
#[derive(Debug)]
struct Counted(Arc<Shared>);

impl Counted {
    fn new(queue: &Queue) -> Self {
        queue.shared.receiving.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(&queue.shared))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.receiving.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Incoming {
    pub(super) fn new(queue: Queue, id: QueueId, received: Timestamp) -> Self {
        Self {
            _counted: Counted::new(&queue),
            queue,
            id,
            received,
            buffer: BytesMut::new(),
            buffered: INLINE_MAX,
            file: None,
            trace: 0,
            hostname: None,
            size: 0,
            crc32c: 0,
            facts: None,
            event: None,
        }
    }

    /// The queue id that the message will have.
    pub fn id(&self) -> QueueId {
        self.id
    }

    /// When it began to be received.
    pub fn received(&self) -> Timestamp {
        self.received
    }

    /// Holds at most so many octets of it in memory, and never more than [`INLINE_MAX`]. A header section that is
    /// longer counts as too large.
    pub fn hold_at_most(&mut self, octets: usize) {
        self.buffered = octets.min(INLINE_MAX);
    }

    /// Puts our Received field in front; before any content. What the header section lacks is added
    /// behind it (RFC 6409 §8) under our name, once the section has come.
    pub fn trace(&mut self, field: &str, hostname: &str) {
        self.trace = field.len();
        self.hostname = Some(hostname.to_owned());
        self.push(field.as_bytes());
    }

    /// Has the history keep an event once the message is accepted, before anybody hears that it is: what
    /// has a receipt is remembered however the process ends, and of what was not accepted nothing is.
    pub fn remember(&mut self, event: Vec<u8>) {
        self.event = Some(event);
    }

    /// Takes the next octets of the content. They stay in memory until [`Self::flush`].
    pub fn push(&mut self, octets: &[u8]) {
        self.crc32c = crc32c::crc32c_append(self.crc32c, octets);
        self.size += octets.len() as u64;
        self.buffer.extend_from_slice(octets);
    }

    /// Moves what is too much for memory to the spool. Call it after each read.
    ///
    /// # Errors
    /// The content can't be kept; read the rest of it and refuse the message.
    pub async fn flush(&mut self) -> Result<(), Fault> {
        if self.buffer.len() <= self.buffered + self.trace {
            return Ok(());
        }
        self.write_to_file(false).await
    }

    /// Octets of it that are held in memory.
    pub fn held(&self) -> usize {
        // What has gone to the file leaves its room for what comes next.
        if self.file.is_some() { self.buffer.capacity() } else { self.buffer.len() }
    }

    /// Moves all of it to the spool before its time, because memory is short.
    ///
    /// # Errors
    /// It can't be kept; read the rest of it and refuse the message. Its header section has not come whole, and
    /// is looked at in memory.
    pub async fn spill(&mut self) -> Result<(), Fault> {
        let head = &self.buffer[self.trace.min(self.buffer.len())..];
        if self.facts.is_none() && header_end(head, false).is_none() {
            return Err(Fault::Full);
        }
        self.write_to_file(false).await?;
        self.buffer = BytesMut::new();
        Ok(())
    }

    /// Lets go of what is held in memory: the message is refused.
    pub fn forget(&mut self) {
        self.buffer = BytesMut::new();
    }

    /// What the header section says, now that all content has come.
    ///
    /// # Errors
    /// It is longer than anything a next hop would bear.
    pub fn facts(&mut self) -> Result<Facts, HeaderTooLarge> {
        match &self.facts {
            Some(facts) => facts.clone(),
            None => self.look_at_header(true),
        }
    }

    /// Looks at the start of the content, all of which is in the buffer, and completes it.
    fn look_at_header(&mut self, whole: bool) -> Result<Facts, HeaderTooLarge> {
        let head = &self.buffer[self.trace..];
        let mut facts = Facts::of(head, whole);
        if let (Ok(facts), Some(hostname)) = (&mut facts, &self.hostname) {
            facts.count_passes(head, hostname);
            let added = submission::complete(facts, &self.id.to_string(), hostname, self.received);
            if !added.is_empty() {
                let behind = self.buffer.split_off(self.trace);
                self.buffer.extend_from_slice(added.as_bytes());
                self.buffer.extend_from_slice(&behind);
                self.size += added.len() as u64;
                self.crc32c = crc32c::crc32c(&self.buffer);
            }
        }
        self.facts = Some(facts.clone());
        facts
    }

    /// Makes the message durable. When this returns a receipt, it survives whatever happens.
    ///
    /// # Errors
    /// Nothing was accepted, and nothing of it will ever be sent on.
    pub async fn commit(self, envelope: Envelope, origin: Origin, facts: Facts) -> Result<Receipt, Fault> {
        let entry = Entry {
            id: self.id,
            received: self.received,
            reverse_path: envelope.reverse_path,
            recipients: envelope.recipients.into_iter().map(Recipient::new).collect(),
            handling: envelope.handling,
            origin,
            content: ContentInfo { size: self.size, crc32c: self.crc32c, spooled: self.file.is_some() },
            hops: facts.hops,
            subject: facts.subject,
            message_id: facts.message_id,
            held: None,
            warned: false,
        };
        self.accept(entry).await
    }

    /// The same with an entry that knows all but where its content is.
    pub(super) async fn accept(mut self, mut entry: Entry) -> Result<Receipt, Fault> {
        if self.file.is_some() {
            self.write_to_file(true).await?;
        }
        entry.content = ContentInfo { size: self.size, crc32c: self.crc32c, spooled: self.file.is_some() };
        let content = match self.file {
            Some(file) => NewContent::File(file),
            None => NewContent::Memory(Bytes::from(self.buffer)),
        };
        let (done, answer) = oneshot::channel();
        let new = NewEntry { entry: Box::new(entry), content, event: self.event };
        self.queue.request(Request::Accept(new, done))?;
        answer.await.map_err(|_| Fault::stopped())?
    }

    async fn write_to_file(&mut self, finish: bool) -> Result<(), Fault> {
        if self.facts.is_none() {
            // Too large or not: whoever asks for the facts hears of it.
            let _ = self.look_at_header(false);
        }
        if self.queue.shared.health.is_full() {
            // What room is left is for outcomes.
            return Err(Fault::Full);
        }
        let path = self.queue.shared.spool.path(self.id);
        let file = self.file.take();
        let octets = std::mem::take(&mut self.buffer);
        let written = tokio::task::spawn_blocking(move || {
            let mut file = file.map_or_else(|| SpoolFile::create(path), Ok)?;
            file.write(&octets)?;
            if finish {
                file.finish()?;
            }
            std::io::Result::Ok((file, octets))
        });
        let written = written.await.map_err(|_| Fault::stopped())?.map_err(Fault::from);
        if let Err(fault) = &written {
            self.queue.shared.health.note_spool(Err(fault));
        }
        let (file, octets) = written?;
        self.file = Some(file);
        self.buffer = octets;
        self.buffer.clear();
        Ok(())
    }
}
