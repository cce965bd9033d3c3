//! Messages on their way from an archive into the queue: under their old ids, so that none comes twice,
//! and durable before anybody is told.

use super::{Fault, Queue, Receipt, archive::Archived, entry::Entry, id::QueueId, incoming::Incoming};
use crate::{mail::envelope::Handling, smtp::framing::ChunkReader, smtp::parameter::Body};

/// The right to bring one message back under its id. While it lives nobody else has it.
#[derive(Debug)]
pub struct Place {
    queue: Queue,
    id: QueueId,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.queue.shared.importing().remove(&self.id);
    }
}

/// The content is not what the record says.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ImportError {
    /// It was damaged, or is another's.
    #[error("its content is not the one that was accepted: the checksum differs")]
    Damaged,
    /// RFC 5321 §2.3.8: nobody could have handed it in.
    #[error("its content holds a bare CR or LF")]
    BareNewline,
    /// Nobody could have handed it in.
    #[error("the header section of its content is too large")]
    HeaderTooLarge,
    /// Ours.
    #[error(transparent)]
    Fault(#[from] Fault),
}

impl Queue {
    /// A place for the message `id`; `None` if it is queued, or somebody is about to bring it.
    ///
    /// # Errors
    /// The store can't be read.
    pub async fn place_for(&self, id: QueueId) -> Result<Option<Place>, Fault> {
        if !self.shared.importing().insert(id) {
            return Ok(None);
        }
        let place = Place { queue: self.clone(), id };
        let is_queued = self.read(move |_, reader| Ok(reader.get(id)?.is_some())).await?;
        Ok((!is_queued).then_some(place))
    }
}

impl Place {
    /// Begins to receive the content. With `dry`, only to see whether it would be taken.
    ///
    /// # Errors
    /// There is no room for it.
    pub fn receive(self, archived: Archived, dry: bool) -> Result<Import, Fault> {
        let (queue, entry) = (&self.queue, archived.message);
        let (settings, tally) = (queue.shared.settings.load(), queue.tally());
        let incoming = queue.begin()?;
        // Those that are being brought are as good as here, this one among them.
        let messages = tally.messages + queue.shared.importing().len() as u64;
        let octets = tally.octets.saturating_add(entry.content.size);
        if settings.max_messages.is_some_and(|max| messages > max)
            || settings.max_bytes.is_some_and(|max| octets > max)
            || queue.free_space()?.saturating_sub(entry.content.size) < settings.min_free
        {
            return Err(Fault::Full);
        }
        // None that is given out from now on may be one that comes from elsewhere.
        queue.shared.ids.reach(self.id);
        let incoming = Incoming::new(queue.clone(), self.id, incoming.received());
        let binary = entry.handling.body == Body::Binary;
        let reader = ChunkReader::new(entry.content.size, binary);
        Ok(Import { incoming: (!dry).then_some(incoming), entry, reader, crc32c: 0, _place: self })
    }
}

/// A message that is being brought back.
#[derive(Debug)]
pub struct Import {
    /// `None` if it is not to be kept.
    incoming: Option<Incoming>,
    entry: Entry,
    reader: ChunkReader,
    crc32c: u32,
    _place: Place,
}

impl Import {
    /// Octets of content that are to come.
    pub fn size(&self) -> u64 {
        self.entry.content.size
    }

    /// Takes the next octets of the content.
    ///
    /// # Errors
    /// It can't be kept.
    pub async fn take(&mut self, octets: &[u8]) -> Result<(), Fault> {
        self.crc32c = crc32c::crc32c_append(self.crc32c, octets);
        if self.reader.read(octets)
            && let Some(incoming) = &mut self.incoming
        {
            incoming.push(octets);
            incoming.flush().await?;
        }
        Ok(())
    }

    /// Makes the message durable; returns what was accepted. With `dry`, only judges it.
    ///
    /// # Errors
    /// See [`ImportError`]; then nothing of it is queued.
    pub async fn commit(mut self) -> Result<Entry, ImportError> {
        self.reader.end();
        let content = self.entry.content;
        if (self.reader.size(), self.crc32c) != (content.size, content.crc32c) {
            return Err(ImportError::Damaged);
        }
        if self.reader.fault().is_some() {
            return Err(ImportError::BareNewline);
        }
        let Some(mut incoming) = self.incoming else { return Ok(self.entry) };
        let facts = incoming.facts().map_err(|_| ImportError::HeaderTooLarge)?;
        let Handling { body, utf8, .. } = self.entry.handling;
        let entry = Entry {
            handling: Handling {
                body: match body {
                    Body::SevenBit if self.reader.is_eight_bit() => Body::EightBit,
                    said => said,
                },
                utf8_header: utf8 && facts.eight_bit,
                ..self.entry.handling
            },
            hops: facts.hops,
            subject: facts.subject,
            message_id: facts.message_id,
            ..self.entry
        };
        let Receipt { .. } = incoming.accept(entry.clone()).await?;
        Ok(entry)
    }
}
