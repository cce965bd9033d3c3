//! The content of a message, from the client to the queue: read to its end whatever becomes of it, judged, made
//! durable, and answered once.

use std::{io, time::Duration};

use bytes::Buf as _;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::Instant,
};

use super::{Connection, broken, joined};
use crate::{
    limits::account::Spent,
    mail::{
        envelope::{Envelope, Origin},
        trace,
    },
    observe::{Event, EventKind},
    queue::{Fault, Incoming, Receipt},
    smtp::{
        framing::{ChunkReader, ContentFault, ContentReader},
        parameter::Body,
        reply::Reply,
    },
};

/// A message that comes in chunks (RFC 3030 §2).
pub(super) struct Partial {
    incoming: Incoming,
    reader: ChunkReader,
    envelope: Envelope,
    origin: Origin,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Connection<S> {
    /// DATA: content to the queue, and the one reply that decides whose the message is.
    pub(super) async fn receive(&mut self) -> io::Result<()> {
        let Some((mut envelope, origin)) = self.session.envelope() else { return Err(broken()) };
        let mut incoming = match self.begin(&envelope, &origin) {
            Ok(incoming) => incoming,
            Err(refusal) => return self.answer(Err(refusal), &envelope, &origin, Duration::ZERO).await,
        };
        self.say(&Reply::start_data());
        self.flush().await?;
        let (content, fault) = self.read_content(&mut incoming).await?;
        let end = Instant::now();
        // What was announced matters less than what came: the upstream is told the truth.
        envelope.handling.body = if content.is_eight_bit() { Body::EightBit } else { Body::SevenBit };
        let judged = (content.fault(), content.size());
        let result = self.accept(incoming, judged, fault, &mut envelope, &origin).await;
        self.answer(result, &envelope, &origin, end.elapsed()).await
    }

    /// BDAT: one chunk of content to the queue; with the last, the one reply that decides.
    pub(super) async fn receive_chunk(&mut self, size: u64, last: bool) -> io::Result<()> {
        let mut partial = match self.partial.take() {
            Some(partial) => partial,
            None => {
                let Some((envelope, origin)) = self.session.envelope() else { return Err(broken()) };
                let binary = envelope.handling.body == Body::Binary;
                let reader = self.chunk_reader(binary);
                match self.begin(&envelope, &origin) {
                    Ok(incoming) => Box::new(Partial { incoming, reader, envelope, origin }),
                    Err(refusal) => {
                        self.skip(size).await?;
                        return self.answer(Err(refusal), &envelope, &origin, Duration::ZERO).await;
                    }
                }
            }
        };
        let fault = self.read_chunk(&mut partial, size).await?;
        if last {
            partial.reader.end();
        }
        if !last && fault.is_none() && partial.reader.fault().is_none() {
            let reply = self.session.chunk_received(size);
            self.say(&reply);
            self.partial = Some(partial);
            return Ok(());
        }
        let end = Instant::now();
        let Partial { incoming, reader, mut envelope, origin } = *partial;
        envelope.handling.body = match envelope.handling.body {
            Body::Binary => Body::Binary,
            _ if reader.is_eight_bit() => Body::EightBit,
            _ => Body::SevenBit,
        };
        let judged = (reader.fault(), reader.size());
        let result = self.accept(incoming, judged, fault, &mut envelope, &origin).await;
        self.answer(result, &envelope, &origin, end.elapsed()).await
    }

    /// A message in the queue's hands, with our Received field on top.
    fn begin(&self, envelope: &Envelope, origin: &Origin) -> Result<Incoming, Reply> {
        let mut incoming = self.around.queue.begin().map_err(|fault| refusal(&fault))?;
        incoming.hold_at_most(self.around.rules.bounds.buffered);
        if self.around.rules.trace {
            let only = if let [only] = envelope.recipients.as_slice() { Some(&only.mailbox) } else { None };
            let field = trace::received(
                origin,
                &self.around.rules.hostname,
                &incoming.id().to_string(),
                only,
                envelope.handling.utf8,
                incoming.received(),
            );
            incoming.trace(&field, &self.around.rules.hostname);
        }
        Ok(incoming)
    }

    /// Says what became of a message, and tells the observer.
    async fn answer(
        &mut self,
        result: Result<(Receipt, Event), Reply>,
        envelope: &Envelope,
        origin: &Origin,
        took: Duration,
    ) -> io::Result<()> {
        let (receipt, told) = match result {
            Ok((receipt, event)) => (Ok(receipt), Ok(event)),
            Err(refusal) => (Err(refusal.clone()), Err(refusal)),
        };
        self.share.give_back();
        self.pace.line(false);
        let reply = self.session.received(receipt);
        self.say(&reply);
        // The client doesn't wait for what only we want to know; nor does it matter if it has left.
        let flushed = self.flush().await;
        match told {
            Ok(event) => self.accepted(&event, took),
            Err(refusal) => self.refused(envelope, origin, &refusal),
        }
        flushed
    }

    /// Reads content to its end, whatever becomes of it.
    async fn read_content(&mut self, incoming: &mut Incoming) -> io::Result<(ContentReader, Option<Fault>)> {
        self.pace.octets(0);
        let mut reader = self.content_reader();
        let mut fault = None;
        loop {
            let keep = fault.is_none();
            let used = reader.read(&self.input, |octets| {
                if keep {
                    incoming.push(octets);
                }
            });
            self.input.advance(used);
            if keep {
                fault = self.hold(reader.size()).err().or(incoming.flush().await.err());
            }
            if reader.is_done() {
                return Ok((reader, fault));
            }
            self.read_more().await?;
        }
    }

    /// Reads a chunk to its end, whatever becomes of it.
    async fn read_chunk(&mut self, partial: &mut Partial, size: u64) -> io::Result<Option<Fault>> {
        self.pace.octets(0);
        let (mut left, mut fault) = (size, None);
        loop {
            let here = usize::try_from(left).unwrap_or(usize::MAX).min(self.input.len());
            let octets = &self.input[..here];
            if partial.reader.read(octets) && fault.is_none() {
                partial.incoming.push(octets);
                fault = self.hold(partial.reader.size()).err().or(partial.incoming.flush().await.err());
            }
            self.input.advance(here);
            left -= here as u64;
            if left == 0 {
                return Ok(fault);
            }
            self.flush().await?;
            self.read_more().await?;
        }
    }

    fn content_reader(&self) -> ContentReader {
        let reader = ContentReader::new(self.around.rules.message_size);
        match self.around.rules.bounds.content_line {
            Some(max) => reader.with_lines_of(max),
            None => reader,
        }
    }

    fn chunk_reader(&self, binary: bool) -> ChunkReader {
        let reader = ChunkReader::new(self.around.rules.message_size, binary);
        match self.around.rules.bounds.content_line {
            Some(max) => reader.with_lines_of(max),
            None => reader,
        }
    }

    /// Counts content of that size so far; what is beyond the bound of a connection lies in a file.
    fn hold(&mut self, size: u64) -> Result<(), Fault> {
        let octets = size.min(self.around.rules.bounds.buffered as u64) as usize;
        if self.share.grow_to(octets, self.around.buffered) { Ok(()) } else { Err(Fault::Full) }
    }

    /// Judges content that was read to its end, and makes it durable.
    async fn accept(
        &self,
        mut incoming: Incoming,
        (content, size): (Option<ContentFault>, u64),
        fault: Option<Fault>,
        envelope: &mut Envelope,
        origin: &Origin,
    ) -> Result<(Receipt, Event), Reply> {
        match content {
            Some(ContentFault::BareNewline) => return Err(Reply::bare_newline_in_content()),
            Some(ContentFault::HiddenDot) => return Err(Reply::hidden_dot_in_content()),
            Some(ContentFault::LineTooLong) => {
                let max = self.around.rules.bounds.content_line.unwrap_or_default();
                return Err(Reply::content_line_too_long(max));
            }
            Some(ContentFault::TooLarge) => return Err(Reply::too_large(self.around.rules.message_size)),
            None => {}
        }
        if let Some(fault) = fault {
            return Err(refusal(&fault));
        }
        let bounds = &self.around.rules.bounds;
        let facts = incoming.facts().ok().filter(|facts| facts.header <= bounds.header);
        let facts = facts.ok_or_else(|| Reply::header_too_large(bounds.header))?;
        if facts.hops > bounds.hops {
            return Err(Reply::too_many_hops(bounds.hops));
        }
        if facts.passes > bounds.passes {
            return Err(Reply::passed_too_often(&self.around.rules.hostname));
        }
        envelope.handling.utf8_header = envelope.handling.utf8 && facts.eight_bit;
        let event = Event {
            sender: Some(envelope.reverse_path.as_str().to_owned()),
            recipient: Some(joined(envelope)),
            client: Some(origin.client.clone()),
            user: origin.user.clone(),
            size: Some(size),
            message_id: facts.message_id.clone(),
            ..Event::new(self.around.clock.now(), EventKind::Received, incoming.id())
        };
        if self.around.observer.is_some() {
            incoming.remember(event.octets());
        }
        let recipients = envelope.recipients.len();
        let leave = self.around.allowances.leave(origin.user.as_deref(), recipients).await?;
        let committed = incoming.commit(envelope.clone(), origin.clone(), facts).await;
        if let Some(leave) = leave {
            leave.spent(if committed.is_ok() { Spent::For(recipients as u64) } else { Spent::Nothing });
        }
        committed.map(|receipt| (receipt, event)).map_err(|fault| refusal(&fault))
    }
}

/// What a client is told of a fault of ours: always 4yz, never our error's text.
fn refusal(fault: &Fault) -> Reply {
    match fault {
        Fault::Full => Reply::storage_full(),
        Fault::Broken(reason) => {
            tracing::error!(reason, "a message could not be queued");
            Reply::local_error()
        }
    }
}
