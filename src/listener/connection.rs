//! A connection drives a [`Session`]: it reads, waits, upgrades to TLS, receives content.
//!
//! Everything that the session must not do is here, and nothing that it decides. Replies to commands
//! that came in one packet leave in one packet (RFC 2920 §3.1). Every wait has its deadline and every
//! buffer its bound.

use std::{io, sync::Arc, time::Duration};

use bytes::{Buf as _, BytesMut};
use rustls::ServerConfig;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    sync::watch,
    time::{Instant, timeout},
};
use tokio_rustls::TlsAcceptor;

use super::{
    allowance::Allowances,
    policy::{Client, Rules},
    session::{Next, Session},
};
use crate::{
    clock::Clock,
    limits::account::Spent,
    mail::{
        content,
        envelope::{Envelope, Handling, Origin},
        trace,
    },
    net::Stream,
    observe::{Event, EventKind, Observer, Received},
    queue::{Fault, Incoming, Queue, QueueId, Receipt},
    smtp::{
        framing::{ContentFault, ContentReader, LineReader},
        parameter::Body,
        reply::Reply,
    },
};

/// RFC 5321 §4.5.3.2.7: a server waits at least five minutes for the next command.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(300);
/// RFC 5321 §4.5.3.2.5: three minutes for each block of content; five, to be on the sender's side.
const CONTENT_TIMEOUT: Duration = Duration::from_secs(300);
/// A client that doesn't take its replies is given up.
const WRITE_TIMEOUT: Duration = Duration::from_secs(60);
/// RFC 3207 sets none; whoever needs longer for a handshake is not going to send mail.
const TLS_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a client with a wrong password waits for the answer.
const PENALTY: Duration = Duration::from_secs(1);
/// What is read at once: little while commands come one by one, much while content streams.
const READ_COMMANDS: usize = 4 * 1024;
const READ_CONTENT: usize = 64 * 1024;
/// Replies gathered before they are written, though more commands wait.
const REPLIES_MAX: usize = 32 * 1024;

/// What a connection needs from its listener.
#[derive(Debug)]
pub struct Surroundings {
    /// What clients are held to.
    pub rules: Arc<Rules>,
    /// How much logins may hand in.
    pub allowances: Arc<Allowances>,
    /// For STARTTLS.
    pub tls: Option<Arc<ServerConfig>>,
    /// Where mail goes.
    pub queue: Queue,
    /// Who is told of it; nobody where mail is only captured.
    pub observer: Option<Observer>,
    /// The time.
    pub clock: Clock,
    /// Turns true when the process is about to end.
    pub shutdown: watch::Receiver<bool>,
}

/// Serves one client until either side has had enough.
///
/// # Errors
/// The connection broke; what was accepted until then is safe, the rest never happened.
pub async fn serve<S>(stream: Stream<S>, client: Client, surroundings: Surroundings) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let starttls = surroundings.tls.is_some();
    let session = Session::new(Arc::clone(&surroundings.rules), client, starttls, nonce());
    let mut connection = Connection {
        stream: Some(stream),
        input: BytesMut::new(),
        output: Vec::new(),
        lines: LineReader::default(),
        session,
        around: surroundings,
    };
    let greeting = connection.session.greeting();
    connection.say(&greeting);
    connection.converse().await
}

/// Random text that no session has had before.
fn nonce() -> String {
    let mut octets = [0; 16];
    // Without randomness the process would not have come so far; and a challenge that can be
    // guessed is still an HMAC's key away from being of use.
    let _ = getrandom::fill(&mut octets);
    octets.iter().map(|b| format!("{b:02x}")).collect()
}

struct Connection<S> {
    /// `None` only while TLS is being started.
    stream: Option<Stream<S>>,
    input: BytesMut,
    output: Vec<u8>,
    lines: LineReader,
    session: Session,
    around: Surroundings,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Connection<S> {
    async fn converse(&mut self) -> io::Result<()> {
        loop {
            let max = self.session.line_max();
            let (next, used) = match self.lines.next(&self.input, max) {
                Ok((Some(line), used)) => {
                    let (reply, next) = self.session.line(line);
                    if next == Next::Penalty {
                        tokio::time::sleep(PENALTY).await;
                    }
                    if let Some(reply) = reply {
                        if reply.is_about_policy() {
                            self.turned_away(&reply);
                        }
                        reply.write_to(&mut self.output);
                    }
                    (Some(next), used)
                }
                Ok((None, used)) => (None, used),
                Err(_) => {
                    self.say(&Reply::line_too_long());
                    (Some(Next::Close), 0)
                }
            };
            self.input.advance(used);
            match next {
                None => {
                    if !self.read_commands().await? {
                        return Ok(());
                    }
                }
                Some(Next::Continue | Next::Penalty) => {
                    if self.output.len() > REPLIES_MAX {
                        self.flush().await?;
                    }
                }
                Some(Next::StartTls) => self.start_tls().await?,
                Some(Next::Receive) => self.receive().await?,
                Some(Next::Close) => {
                    self.flush().await?;
                    return self.close().await;
                }
            }
        }
    }

    /// Writes what is due and reads more; false if the conversation is over.
    async fn read_commands(&mut self) -> io::Result<bool> {
        self.flush().await?;
        if self.input.is_empty() {
            // A connection that waits for its next command should not hold what the last one took.
            self.input = BytesMut::with_capacity(READ_COMMANDS);
        }
        self.input.reserve(READ_COMMANDS);
        let mut shutdown = self.around.shutdown.clone();
        let hostname = Arc::clone(&self.around.rules);
        let stream = self.stream.as_mut().ok_or_else(broken)?;
        let farewell = tokio::select! {
            biased;
            read = timeout(COMMAND_TIMEOUT, stream.read_buf(&mut self.input)) => match read {
                Ok(read) => return Ok(read? > 0),
                Err(_) => Reply::idle_too_long(&hostname.hostname),
            },
            _ = shutdown.wait_for(|shutdown| *shutdown) => Reply::shutting_down(&hostname.hostname),
        };
        self.say(&farewell);
        self.flush().await?;
        self.close().await?;
        Ok(false)
    }

    async fn start_tls(&mut self) -> io::Result<()> {
        // RFC 3207 §4: what a client sent behind STARTTLS in clear could have been put there by
        // anybody. It must not be answered inside TLS, and no honest client sends it.
        if !self.input.is_empty() {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "commands in clear behind STARTTLS"));
        }
        self.flush().await?;
        let (Some(config), Some(Stream::Plain(stream))) = (self.around.tls.clone(), self.stream.take())
        else {
            return Err(broken());
        };
        let handshake = TlsAcceptor::from(config).accept(stream);
        let stream = timeout(TLS_TIMEOUT, handshake).await.map_err(io::Error::from)??;
        self.stream = Some(Stream::Tls(Box::new(stream.into())));
        self.lines = LineReader::default();
        self.session.tls_started();
        Ok(())
    }

    /// DATA: content to the queue, and the one reply that decides whose the message is.
    async fn receive(&mut self) -> io::Result<()> {
        let Some((envelope, origin)) = self.session.envelope() else { return Err(broken()) };
        let mut incoming = match self.around.queue.begin() {
            Ok(incoming) => incoming,
            Err(fault) => {
                self.refused(&envelope, &origin, &refusal(&fault));
                let reply = self.session.received(Err(refusal(&fault)));
                self.say(&reply);
                return Ok(());
            }
        };
        self.say(&Reply::start_data());
        self.flush().await?;
        if self.around.rules.trace {
            let only = if let [only] = envelope.recipients.as_slice() { Some(&only.mailbox) } else { None };
            let field = trace::received(
                &origin,
                &self.around.rules.hostname,
                &incoming.id().to_string(),
                only,
                incoming.received(),
            );
            incoming.trace(&field);
        }
        let (content, fault) = self.read_content(&mut incoming).await?;
        let end = Instant::now();
        // What was announced matters less than what came: the upstream is told the truth.
        let body = if content.is_eight_bit() { Body::EightBit } else { Body::SevenBit };
        let handling = Handling { body, ..envelope.handling };
        let envelope = Envelope { handling, ..envelope };
        let result = self.accept(incoming, &content, fault, &envelope, &origin).await;
        let took = end.elapsed();
        let told = match &result {
            Ok((receipt, message_id)) => Ok((receipt.id(), message_id.clone())),
            Err(refusal) => Err(refusal.clone()),
        };
        let reply = self.session.received(result.map(|(receipt, _)| receipt));
        self.say(&reply);
        // The client doesn't wait for what only we want to know; nor does it matter if it has left.
        let flushed = self.flush().await;
        match told {
            Ok((id, message_id)) => self.accepted(&envelope, origin, id, message_id, content.size(), took),
            Err(refusal) => self.refused(&envelope, &origin, &refusal),
        }
        flushed
    }

    /// Reads content to its end, whatever becomes of it.
    async fn read_content(&mut self, incoming: &mut Incoming) -> io::Result<(ContentReader, Option<Fault>)> {
        let mut reader = ContentReader::new(self.around.rules.message_size);
        let mut fault = None;
        loop {
            let keep = fault.is_none();
            let used = reader.read(&self.input, |octets| {
                if keep {
                    incoming.push(octets);
                }
            });
            self.input.advance(used);
            if keep && let Err(error) = incoming.flush().await {
                fault = Some(error);
            }
            if reader.is_done() {
                return Ok((reader, fault));
            }
            self.input.reserve(READ_CONTENT);
            let stream = self.stream.as_mut().ok_or_else(broken)?;
            let read = timeout(CONTENT_TIMEOUT, stream.read_buf(&mut self.input))
                .await
                .map_err(io::Error::from)??;
            if read == 0 {
                // RFC 5321 §4.1.1.4: without the end of data nothing was said.
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    /// Judges content that was read to its end, and makes it durable.
    async fn accept(
        &self,
        incoming: Incoming,
        content: &ContentReader,
        fault: Option<Fault>,
        envelope: &Envelope,
        origin: &Origin,
    ) -> Result<(Receipt, Option<String>), Reply> {
        match content.fault() {
            Some(ContentFault::BareNewline) => return Err(Reply::bare_newline_in_content()),
            Some(ContentFault::TooLarge) => return Err(Reply::too_large(self.around.rules.message_size)),
            None => {}
        }
        if let Some(fault) = fault {
            return Err(refusal(&fault));
        }
        let facts = incoming.facts().map_err(|_| Reply::header_too_large(content::HEADER_MAX))?;
        if facts.hops > content::HOPS_MAX {
            return Err(Reply::too_many_hops(content::HOPS_MAX));
        }
        let message_id = facts.message_id.clone();
        let recipients = envelope.recipients.len();
        let leave = self.around.allowances.leave(origin.user.as_deref(), recipients).await?;
        let committed = incoming.commit(envelope.clone(), origin.clone(), facts).await;
        if let Some(leave) = leave {
            leave.spent(if committed.is_ok() { Spent::For(recipients as u64) } else { Spent::Nothing });
        }
        committed.map(|receipt| (receipt, message_id)).map_err(|fault| refusal(&fault))
    }

    fn accepted(
        &self,
        envelope: &Envelope,
        origin: Origin,
        id: QueueId,
        message_id: Option<String>,
        size: u64,
        took: Duration,
    ) {
        let Some(observer) = &self.around.observer else { return };
        observer.metrics().enqueue_seconds.observe(took.as_secs_f64());
        observer.metrics().received(Received::accepted);
        observer.emit(Event {
            sender: Some(envelope.reverse_path.as_str().to_owned()),
            recipient: Some(joined(envelope)),
            client: Some(origin.client),
            user: origin.user,
            size: Some(size),
            message_id,
            ..Event::new(self.around.clock.now(), EventKind::Received, id)
        });
    }

    /// A command was refused for who the client is or what it may do.
    fn turned_away(&self, reply: &Reply) {
        let Some(observer) = &self.around.observer else { return };
        let client = self.session.client();
        observer.emit(Event {
            client: Some(client.address.to_string()),
            user: client.user.as_ref().map(|user| user.user().to_owned()),
            reply: Some(reply.to_string()),
            ..Event::new(self.around.clock.now(), EventKind::Rejected, "")
        });
    }

    fn refused(&self, envelope: &Envelope, origin: &Origin, reply: &Reply) {
        let Some(observer) = &self.around.observer else { return };
        observer.metrics().received(Received::rejected);
        observer.emit(Event {
            sender: Some(envelope.reverse_path.as_str().to_owned()),
            recipient: Some(joined(envelope)),
            client: Some(origin.client.clone()),
            user: origin.user.clone(),
            reply: Some(reply.to_string()),
            ..Event::new(self.around.clock.now(), EventKind::Rejected, "")
        });
    }

    fn say(&mut self, reply: &Reply) {
        reply.write_to(&mut self.output);
    }

    async fn flush(&mut self) -> io::Result<()> {
        if self.output.is_empty() {
            return Ok(());
        }
        let stream = self.stream.as_mut().ok_or_else(broken)?;
        let write = async {
            stream.write_all(&self.output).await?;
            stream.flush().await
        };
        timeout(WRITE_TIMEOUT, write).await.map_err(io::Error::from)??;
        self.output.clear();
        Ok(())
    }

    async fn close(&mut self) -> io::Result<()> {
        let stream = self.stream.as_mut().ok_or_else(broken)?;
        timeout(WRITE_TIMEOUT, stream.shutdown()).await.map_err(io::Error::from)?
    }
}

/// Recipients as an event shows them; a long list is cut, for a log line is not an archive.
fn joined(envelope: &Envelope) -> String {
    const SHOWN: usize = 10;
    let mut text =
        envelope.recipients.iter().take(SHOWN).map(|to| to.mailbox.to_string()).collect::<Vec<_>>().join(",");
    if envelope.recipients.len() > SHOWN {
        text.push_str(&format!(",… {} in all", envelope.recipients.len()));
    }
    text
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

fn broken() -> io::Error {
    io::ErrorKind::BrokenPipe.into()
}
