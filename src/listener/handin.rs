//! Mail that comes by other ways than SMTP: a transaction without a conversation.
//!
//! The same session decides about it, from the same commands, and the same intake takes it: whoever
//! brings it is held to what holds at every other door.

use std::{net::IpAddr, sync::Arc};

use tokio::time::{Instant, timeout};

use super::{
    Listener,
    auth::Authenticated,
    budget::Share,
    intake::Intake,
    policy::{Client, Hello},
    session::Session,
};
use crate::{
    mail::envelope::{Envelope, Origin},
    observe::Rejection,
    queue::{Fault, Incoming, QueueId},
    smtp::{
        address::Mailbox,
        framing::{ChunkReader, Line},
        parameter::Body,
        reply::Reply,
    },
};

/// What the Received field calls a client that has no EHLO to name itself.
const NAME: &str = "api";

/// A reply that says no, and to which recipient, if it was about one.
#[derive(Clone, Debug)]
pub struct Refused {
    /// As it was given.
    pub recipient: Option<String>,
    /// What a client of SMTP would have heard.
    pub reply: Reply,
}

impl Refused {
    fn whole(reply: Reply) -> Vec<Self> {
        vec![Self { recipient: None, reply }]
    }
}

/// A message that is being handed in. Dropped before its end, it leaves nothing behind.
#[derive(Debug)]
pub struct HandIn {
    intake: Intake,
    incoming: Incoming,
    reader: ChunkReader,
    /// What it takes of the memory for content.
    share: Share,
    /// The most that all shares may be together.
    buffered: usize,
    fault: Option<Fault>,
    envelope: Envelope,
    origin: Origin,
}

impl Listener {
    /// The login of this name, if that is its password. A wrong one waits, longer with each.
    ///
    /// # Errors
    /// The refusal to say.
    pub async fn log_in(&self, client: IpAddr, user: &str, password: &str) -> Result<Authenticated, Reply> {
        let terms = self.0.terms.load_full();
        if let Some(user) = terms.rules.credentials.log_in(user, password) {
            return Ok(user);
        }
        let refusal = Reply::wrong_credentials();
        self.intake(&terms).turned_away(&Client::new(client, false), None, &refusal, Rejection::command);
        let wait = self.0.penalties.miss(client.to_canonical());
        let mut shutdown = self.0.shutdown.clone();
        let _ = timeout(wait, shutdown.wait_for(|shutdown| *shutdown)).await;
        Err(refusal)
    }

    /// Lets a client wait with its message while the queue grows towards its bound, as one of SMTP does.
    pub async fn slow_down(&self) {
        let wait = self.0.queue.slowdown();
        if !wait.is_zero() {
            let mut shutdown = self.0.shutdown.clone();
            let _ = timeout(wait, shutdown.wait_for(|shutdown| *shutdown)).await;
        }
    }

    /// The largest message that is taken, in octets.
    pub fn message_size(&self) -> u64 {
        self.0.terms.load().rules.message_size
    }

    /// Opens a transaction; an empty `sender` is the null sender. One recipient that is refused refuses
    /// all, for nobody would hear of it later.
    ///
    /// # Errors
    /// What was refused, and why.
    pub fn hand_in(
        &self,
        mut client: Client,
        sender: &str,
        recipients: &[String],
    ) -> Result<HandIn, Vec<Refused>> {
        let terms = self.0.terms.load();
        let intake = self.intake(&terms);
        client.hello = Some(Hello { name: NAME.to_owned(), extended: true });
        let result = self.open(&intake, client.clone(), sender, recipients);
        let opened = result.and_then(|(envelope, origin)| {
            let incoming = intake.begin(&envelope, &origin).map_err(Refused::whole)?;
            Ok((envelope, origin, incoming))
        });
        match opened {
            Ok((envelope, origin, incoming)) => Ok(HandIn {
                reader: intake.chunk_reader(false),
                share: self.0.budget.share(),
                buffered: terms.buffered,
                intake,
                incoming,
                fault: None,
                envelope,
                origin,
            }),
            Err(refused) => {
                if let Some(first) = refused.first() {
                    intake.turned_away(&client, None, &first.reply, Rejection::command);
                }
                Err(refused)
            }
        }
    }

    /// MAIL and RCPT, answered by a session.
    fn open(
        &self,
        intake: &Intake,
        client: Client,
        sender: &str,
        recipients: &[String],
    ) -> Result<(Envelope, Origin), Vec<Refused>> {
        let now = intake.clock.now();
        let mut session = Session::new(Arc::clone(&intake.rules), client, false, String::new());
        let mut say = |line: &str| match session.line(Line::Whole(line.as_bytes()), now).0 {
            Some(reply) if !reply.is_success() => Err(reply),
            _ => Ok(()),
        };
        say(&format!("EHLO {NAME}")).map_err(Refused::whole)?;
        if !sender.is_empty() {
            mailbox(sender).map_err(Refused::whole)?;
        }
        let is_ascii = sender.is_ascii() && recipients.iter().all(|recipient| recipient.is_ascii());
        let utf8 = if is_ascii { "" } else { " SMTPUTF8" };
        say(&format!("MAIL FROM:<{sender}>{utf8}")).map_err(Refused::whole)?;
        let mut refused = Vec::new();
        for recipient in recipients {
            let said = mailbox(recipient).and_then(|()| say(&format!("RCPT TO:<{recipient}>")));
            if let Err(reply) = said {
                refused.push(Refused { recipient: Some(recipient.clone()), reply });
            }
        }
        if !refused.is_empty() {
            return Err(refused);
        }
        say("BDAT 0").map_err(Refused::whole)?;
        let (envelope, origin) = session.envelope().ok_or_else(|| Refused::whole(Reply::local_error()))?;
        Ok((envelope, Origin { http: true, ..origin }))
    }
}

/// An address goes into a command only if it is nothing else.
fn mailbox(text: &str) -> Result<(), Reply> {
    match Mailbox::parse(text) {
        Ok(_) if !text.contains(|c: char| c.is_control()) => Ok(()),
        Ok(_) => Err(Reply::not_text()),
        Err(error) => Err(Reply::bad_argument(error.to_string())),
    }
}

impl HandIn {
    /// The queue id that the message will have.
    pub fn id(&self) -> QueueId {
        self.incoming.id()
    }

    /// Takes the next octets of content; false if nothing can come of it any more.
    pub async fn push(&mut self, octets: &[u8]) -> bool {
        if self.fault.is_some() || !self.reader.read(octets) {
            return false;
        }
        self.incoming.push(octets);
        self.fault = self.share.keep(&mut self.incoming, self.buffered).await.err();
        self.fault.is_none()
    }

    /// Judges the content, and makes the message durable. Run it to its end: dropped meanwhile, it may or
    /// may not have been accepted.
    ///
    /// # Errors
    /// The refusal to say; nothing was accepted.
    pub async fn finish(mut self) -> Result<QueueId, Reply> {
        let end = Instant::now();
        self.reader.end();
        let body = if self.reader.is_eight_bit() { Body::EightBit } else { Body::SevenBit };
        self.envelope.handling.body = body;
        let judged = (self.reader.fault(), self.reader.size());
        let Self { intake, incoming, fault, mut envelope, origin, .. } = self;
        match intake.accept(incoming, judged, fault, &mut envelope, &origin).await {
            Ok((receipt, event)) => {
                intake.accepted(&event, end.elapsed());
                Ok(receipt.id())
            }
            Err(refusal) => {
                intake.refused(&envelope, &origin, &refusal);
                Err(refusal)
            }
        }
    }
}
