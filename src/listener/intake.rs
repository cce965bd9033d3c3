//! What becomes of a message that a client hands in, by whichever way it comes: begun, judged, made
//! durable, told.
//!
//! A connection and a program that hands in mail over HTTP are held to the same here, by the same code.

use std::{sync::Arc, time::Duration};

use super::{
    allowance::Allowances,
    policy::{Client, Rules},
};
use crate::{
    clock::Clock,
    limits::account::Spent,
    mail::{
        envelope::{Envelope, Origin},
        trace,
    },
    observe::{Event, EventKind, Observer, Received, Rejection, some_of},
    queue::{Fault, Incoming, Queue, Receipt},
    smtp::{
        framing::{ChunkReader, ContentFault, ContentReader},
        reply::Reply,
    },
};

/// The way from content to a receipt.
#[derive(Clone, Debug)]
pub struct Intake {
    /// What clients are held to.
    pub rules: Arc<Rules>,
    /// How much logins may hand in.
    pub allowances: Arc<Allowances>,
    /// Where mail goes.
    pub queue: Queue,
    /// Who is told of it; nobody where mail is only captured.
    pub observer: Option<Observer>,
    /// The time.
    pub clock: Clock,
}

impl Intake {
    /// A message in the queue's hands, with our Received field on top.
    ///
    /// # Errors
    /// What to tell the client.
    pub fn begin(&self, envelope: &Envelope, origin: &Origin) -> Result<Incoming, Reply> {
        let mut incoming = self.queue.begin().map_err(|fault| refusal(&fault))?;
        incoming.hold_at_most(self.rules.bounds.buffered);
        if self.rules.trace {
            let only = if let [only] = envelope.recipients.as_slice() { Some(&only.mailbox) } else { None };
            let field = trace::received(
                origin,
                &self.rules.hostname,
                &incoming.id().to_string(),
                only,
                envelope.handling.utf8,
                incoming.received(),
            );
            incoming.trace(&field, &self.rules.hostname);
        }
        Ok(incoming)
    }

    /// Reads content behind DATA.
    pub fn content_reader(&self) -> ContentReader {
        let reader = ContentReader::new(self.rules.message_size);
        match self.rules.bounds.content_line {
            Some(max) => reader.with_lines_of(max),
            None => reader,
        }
    }

    /// Reads content that comes in chunks.
    pub fn chunk_reader(&self, binary: bool) -> ChunkReader {
        let reader = ChunkReader::new(self.rules.message_size, binary);
        match self.rules.bounds.content_line {
            Some(max) => reader.with_lines_of(max),
            None => reader,
        }
    }

    /// Judges content that was read to its end, and makes it durable.
    ///
    /// # Errors
    /// What to tell the client.
    pub async fn accept(
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
                let max = self.rules.bounds.content_line.unwrap_or_default();
                return Err(Reply::content_line_too_long(max));
            }
            Some(ContentFault::TooLarge) => return Err(Reply::too_large(self.rules.message_size)),
            None => {}
        }
        if let Some(fault) = fault {
            return Err(refusal(&fault));
        }
        let bounds = &self.rules.bounds;
        let facts = incoming.facts().ok().filter(|facts| facts.header <= bounds.header);
        let facts = facts.ok_or_else(|| Reply::header_too_large(bounds.header))?;
        if facts.hops > bounds.hops {
            return Err(Reply::too_many_hops(bounds.hops));
        }
        if facts.passes > bounds.passes {
            return Err(Reply::passed_too_often(&self.rules.hostname));
        }
        envelope.handling.utf8_header = envelope.handling.utf8 && facts.eight_bit;
        let event = Event {
            sender: Some(envelope.reverse_path.as_str().to_owned()),
            recipient: Some(joined(envelope)),
            client: Some(origin.client.clone()),
            user: origin.user.clone(),
            size: Some(size),
            message_id: facts.message_id.clone(),
            ..Event::new(self.clock.now(), EventKind::Received, incoming.id())
        };
        if self.observer.is_some() {
            incoming.remember(event.octets());
        }
        let recipients = envelope.recipients.len();
        let leave = self.allowances.leave(origin.user.as_deref(), recipients).await?;
        let committed = incoming.commit(envelope.clone(), origin.clone(), facts).await;
        if let Some(leave) = leave {
            leave.spent(if committed.is_ok() { Spent::For(recipients as u64) } else { Spent::Nothing });
        }
        committed.map(|receipt| (receipt, event)).map_err(|fault| refusal(&fault))
    }

    /// Tells of a message that was accepted, so long after its end; the history has it already.
    pub fn accepted(&self, event: &Event, took: Duration) {
        let Some(observer) = &self.observer else { return };
        observer.metrics().enqueue_seconds.observe(took.as_secs_f64());
        observer.metrics().received(Received::accepted);
        observer.say(event);
    }

    /// The client was refused something before there was a whole message.
    pub fn turned_away(
        &self,
        client: &Client,
        envelope: Option<&Envelope>,
        reply: &Reply,
        reason: Rejection,
    ) {
        let Some(observer) = &self.observer else { return };
        observer.metrics().rejected(reason);
        observer.emit(Event {
            sender: envelope.map(|envelope| envelope.reverse_path.as_str().to_owned()),
            recipient: envelope.map(joined),
            client: Some(client.address.to_string()),
            user: client.user.as_ref().map(|user| user.user().to_owned()),
            reply: Some(reply.to_string()),
            ..Event::new(self.clock.now(), EventKind::Rejected, "")
        });
    }

    /// Tells of a message that was refused when it had come.
    pub fn refused(&self, envelope: &Envelope, origin: &Origin, reply: &Reply) {
        let Some(observer) = &self.observer else { return };
        observer.metrics().received(Received::rejected);
        observer.metrics().rejected(Rejection::message);
        observer.emit(Event {
            sender: Some(envelope.reverse_path.as_str().to_owned()),
            recipient: Some(joined(envelope)),
            client: Some(origin.client.clone()),
            user: origin.user.clone(),
            reply: Some(reply.to_string()),
            ..Event::new(self.clock.now(), EventKind::Rejected, "")
        });
    }
}

/// Recipients as an event shows them; a long list is cut, for a log line is not an archive.
fn joined(envelope: &Envelope) -> String {
    some_of(envelope.recipients.iter().map(|to| to.mailbox.to_string()))
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
