//! The content of a message, from the client to the intake: read to its end whatever becomes of it, and answered
//! once.

use std::{io, time::Duration};

use bytes::Buf as _;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::Instant,
};

use super::{Connection, broken};
use crate::{
    mail::envelope::{Envelope, Origin},
    observe::Event,
    queue::{Fault, Incoming, Receipt},
    smtp::{
        framing::{ChunkReader, ContentReader},
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
        self.slow_down().await?;
        let mut incoming = match self.around.intake.begin(&envelope, &origin) {
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
        let result = self.around.intake.accept(incoming, judged, fault, &mut envelope, &origin).await;
        self.answer(result, &envelope, &origin, end.elapsed()).await
    }

    /// BDAT: one chunk of content to the queue; with the last, the one reply that decides.
    pub(super) async fn receive_chunk(&mut self, size: u64, last: bool) -> io::Result<()> {
        let mut partial = match self.partial.take() {
            Some(partial) => partial,
            None => {
                let Some((envelope, origin)) = self.session.envelope() else { return Err(broken()) };
                let binary = envelope.handling.body == Body::Binary;
                let reader = self.around.intake.chunk_reader(binary);
                self.slow_down().await?;
                match self.around.intake.begin(&envelope, &origin) {
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
        let result = self.around.intake.accept(incoming, judged, fault, &mut envelope, &origin).await;
        self.answer(result, &envelope, &origin, end.elapsed()).await
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
            Ok(event) => self.around.intake.accepted(&event, took),
            Err(refusal) => self.around.intake.refused(envelope, origin, &refusal),
        }
        flushed
    }

    /// Reads content to its end, whatever becomes of it.
    async fn read_content(&mut self, incoming: &mut Incoming) -> io::Result<(ContentReader, Option<Fault>)> {
        self.pace.octets(0);
        let mut reader = self.around.intake.content_reader();
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
                fault = self.share.keep(&mut *incoming, self.around.buffered).await.err();
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
                fault = self.share.keep(&mut partial.incoming, self.around.buffered).await.err();
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
}
