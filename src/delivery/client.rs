//! The conversation on one connection: commands out, replies in, an outcome per recipient.
//!
//! MAIL, every RCPT and DATA leave in one packet where the upstream can take it (RFC 2920), and the
//! content with its final dot in another: two round trips a message. Only what is binary goes by BDAT. Replies are matched strictly in
//! order; a reply too many or too few ends the connection, so that a 250 can never be counted for
//! another recipient. Every wait has the phase's deadline, every reply its bound.

mod evidence;

use std::{future::Future, sync::Arc};

use bytes::{Buf as _, Bytes, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    time::timeout,
};

use super::{
    Head, Message,
    auth::{Exchange, Mechanism},
    lost::{Lost, Why},
    needs::{self, Lack},
    phase::Phase,
    source::{Source, SourceError},
    transaction::Transaction,
};
use crate::{
    clock::Clock,
    config::{Login, Upstream, UpstreamTls},
    mail::outcome::{Evidence, Outcome, Scope},
    net::Stream,
    smtp::{
        command::Command,
        extension::Capabilities,
        framing::ContentWriter,
        parameter::Body,
        reply::{Reply, ReplyReader, Severity},
        sasl,
    },
};

/// Recipients of one pipelined group. RFC 2920 §3.1 warns of both sides waiting for the other to
/// read: so many commands and their replies fit every buffer between us.
const GROUP_MAX: usize = 100;
/// Content up to this size is copied behind one another with its dot, so that both leave at once.
const ONE_WRITE: usize = 16 * 1024;
/// What is read of a spool file at once.
const READ_CONTENT: usize = 64 * 1024;
const READ_REPLIES: usize = 4 * 1024;
/// Challenges of one SASL exchange; no mechanism of ours has more than two, and an empty one before them.
const CHALLENGES_MAX: usize = 4;
/// RFC 5802 §3: the server proves itself too, or it is somebody else.
const UNPROVEN: &str = "the upstream took the login without showing that it knows the password: it may be somebody else's server";

/// An open connection, logged in and ready for mail.
#[derive(Debug)]
pub struct Client<S> {
    stream: Stream<S>,
    input: BytesMut,
    replies: ReplyReader,
    output: Vec<u8>,
    capabilities: Capabilities,
    upstream: Arc<Upstream>,
    hostname: Arc<str>,
    clock: Clock,
    /// The connection can't be used for another message.
    broken: bool,
    /// A transaction was left open; RSET before the next.
    reset: bool,
    /// Messages carried.
    carried: u64,
}

/// What came of one attempt.
#[derive(Debug)]
pub enum Attempt {
    /// An outcome for each recipient, in their order.
    Done(Vec<Outcome>),
    /// The kept connection had ended before anything was said about this message.
    Stale,
    /// The content failed its checksum: not a dot of it was finished.
    Damaged,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Client<S> {
    /// A client on a fresh stream.
    pub fn new(stream: Stream<S>, upstream: Arc<Upstream>, hostname: Arc<str>, clock: Clock) -> Self {
        Self {
            stream,
            input: BytesMut::new(),
            replies: ReplyReader::default(),
            output: Vec::new(),
            capabilities: Capabilities::default(),
            upstream,
            hostname,
            clock,
            broken: false,
            reset: false,
            carried: 0,
        }
    }

    /// What the upstream said it can do.
    pub fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    /// Whether nobody else can listen.
    pub fn is_tls(&self) -> bool {
        self.stream.is_tls()
    }

    /// Whether a login can be tied to this connection.
    pub fn has_binding(&self) -> bool {
        self.stream.channel_binding().is_some()
    }

    /// Whether another message can be carried.
    pub fn is_usable(&self) -> bool {
        !self.broken
    }

    /// Messages that went over it, delivered or not.
    pub fn carried(&self) -> u64 {
        self.carried
    }

    /// Reads the first reply.
    ///
    /// # Errors
    /// The connection ended.
    pub async fn greeting(&mut self) -> Result<Reply, Lost> {
        self.read(Phase::Greeting).await
    }

    /// Says EHLO and takes note of the keywords.
    ///
    /// # Errors
    /// The connection ended.
    pub async fn ehlo(&mut self) -> Result<Reply, Lost> {
        let reply = self.command(Phase::Ehlo, &Command::Ehlo(self.hostname.to_string())).await?;
        self.capabilities = Capabilities::from_reply(&reply);
        Ok(reply)
    }

    /// Says STARTTLS.
    ///
    /// # Errors
    /// The connection ended.
    pub async fn start_tls(&mut self) -> Result<Reply, Lost> {
        self.command(Phase::StartTls, &Command::StartTls).await
    }

    /// Gives up the stream for the TLS handshake; `None` if more came in clear than was asked for:
    /// it would be taken for replies inside TLS.
    pub fn into_plain(self) -> Option<S> {
        match self.stream {
            Stream::Plain(stream) if self.input.is_empty() && !self.replies.is_midway() => Some(stream),
            _ => None,
        }
    }

    /// Gives up the stream, for somebody else to go on with the session.
    pub fn into_stream(self) -> Stream<S> {
        self.stream
    }

    /// Whether octets came that nobody asked for.
    fn has_more(&self) -> bool {
        !self.input.is_empty() || self.replies.is_midway()
    }

    /// Logs in.
    ///
    /// # Errors
    /// The connection ended.
    pub async fn authenticate(&mut self, mechanism: Mechanism, login: &Login) -> Result<Reply, Lost> {
        let mut exchange = Exchange::new(mechanism, login, self.stream.channel_binding().as_ref());
        let command = Command::Auth(mechanism.name().to_owned(), exchange.initial());
        let mut reply = self.command(Phase::Auth, &command).await?;
        for _ in 0..CHALLENGES_MAX {
            if reply.code() != 334 {
                if reply.is_success() && !exchange.is_mutual() {
                    self.broken = true;
                    return Err(Lost::new(Phase::Auth, Why::Garbage(UNPROVEN.to_owned())));
                }
                return Ok(reply);
            }
            let challenge = reply.lines().next().and_then(sasl::decode).unwrap_or_default();
            let line = exchange.respond(&challenge).unwrap_or_else(|| "*".to_owned());
            self.output.extend_from_slice(line.as_bytes());
            self.output.extend_from_slice(b"\r\n");
            self.flush(Phase::Auth).await?;
            reply = self.read(Phase::Auth).await?;
        }
        self.broken = true;
        Err(Lost::new(Phase::Auth, Why::Garbage("the upstream asked without end".to_owned())))
    }

    /// Tries to bring one message to its recipients.
    ///
    /// `before_content` is waited for before any content is sent. It bounds what can be sent twice
    /// after a crash to one message a connection: the one before is recorded by then.
    pub async fn attempt(
        &mut self,
        message: &Message<'_>,
        before_content: impl Future<Output = ()>,
    ) -> Attempt {
        if let Some(lack) = needs::of_message(message, &self.capabilities, self.is_verified()) {
            return Attempt::Done(vec![self.lacking(lack); message.recipients.len()]);
        }
        let mut transaction = Transaction::new(message);
        transaction.outcomes.extend(message.recipients.iter().enumerate().map(|(place, to)| {
            let lack = needs::of_recipient(place, to.mailbox, &self.capabilities);
            lack.map(|lack| self.lacking(lack))
        }));
        if transaction.open().next().is_none() {
            return Attempt::Done(transaction.outcomes.into_iter().flatten().collect());
        }
        let source = match Source::open(message.content).await {
            Ok(source) => source,
            Err(SourceError::Damaged) => return Attempt::Damaged,
            Err(SourceError::Unreadable(error)) => {
                let evidence = Evidence {
                    explanation: Some(format!("the content can't be read from the spool now: {error}")),
                    ..self.evidence(Phase::Content, Scope::Message, None)
                };
                return Attempt::Done(vec![Outcome::Deferred(evidence); message.recipients.len()]);
            }
        };
        let stale_allowed = self.carried > 0;
        let result = self.transact(&mut transaction, source, before_content).await;
        self.carried += 1;
        let lost = match result {
            Ok(Carried::Judged) => {
                return Attempt::Done(
                    transaction.finish(|| self.evidence(Phase::FinalReply, Scope::Transaction, None)),
                );
            }
            Ok(Carried::Damaged) => {
                self.broken = true;
                return Attempt::Damaged;
            }
            Err(lost) => lost,
        };
        self.broken = true;
        // Only where the first reply should have been: nothing was judged yet.
        if stale_allowed && lost.phase == Phase::Mail {
            return Attempt::Stale;
        }
        // A goodbye may say what concerns more than this connection.
        if let Some(reply) = &lost.reply
            && let verdict = self.judged(lost.phase, reply, false)
            && verdict.rule.is_some()
        {
            let outcome = self.outcome(lost.phase, reply, verdict);
            return Attempt::Done(
                transaction
                    .outcomes
                    .into_iter()
                    .map(|open| open.unwrap_or_else(|| outcome.clone()))
                    .collect(),
            );
        }
        let uncertain = lost.phase == Phase::FinalReply && lost.reply.is_none();
        let evidence = Evidence {
            uncertain,
            explanation: Some(if uncertain {
                format!("{}; it may have taken the message, so it may arrive twice", lost.words())
            } else {
                lost.words()
            }),
            ..self.evidence(lost.phase, Scope::Upstream, lost.reply)
        };
        Attempt::Done(transaction.finish(|| evidence.clone()))
    }

    /// Says goodbye, without waiting long for an answer.
    pub async fn quit(mut self) {
        if !self.broken {
            Command::Quit.write_to(&mut self.output);
            let goodbye = async {
                self.flush(Phase::Mail).await?;
                self.read(Phase::Mail).await
            };
            let _ = timeout(std::time::Duration::from_secs(2), goodbye).await;
        }
        let _ = timeout(std::time::Duration::from_secs(1), self.stream.shutdown()).await;
    }

    /// What the upstream said in advance that it will not take, or not at once.
    fn lacking(&self, lack: Lack) -> Outcome {
        let Lack { status, words, scope } = lack;
        let evidence = self.evidence(Phase::Mail, scope, None);
        let evidence = Evidence { status: Some(status), explanation: Some(words), ..evidence };
        if status.0 == 4 { Outcome::Deferred(evidence) } else { Outcome::Failed(evidence) }
    }

    /// TLS with whom we were told to talk to, and nobody else.
    fn is_verified(&self) -> bool {
        let verified = !matches!(self.upstream.tls, UpstreamTls::None | UpstreamTls::Opportunistic);
        self.is_tls() && verified
    }

    async fn transact(
        &mut self,
        transaction: &mut Transaction<'_, '_>,
        source: Source<'_>,
        before_content: impl Future<Output = ()>,
    ) -> Result<Carried, Lost> {
        if self.has_more() {
            return Err(Lost::new(Phase::Mail, Why::Closed));
        }
        let binary = transaction.message.handling.body == Body::Binary;
        let data = self.envelope(transaction, !binary).await?;
        let accepted = transaction.open().count();
        if let Some(data) = data.filter(|data| data.code() != 354) {
            // A yes to DATA says nothing about content that was never sent: replies and commands are
            // out of step, and whatever comes next would be counted for the wrong thing.
            if !matches!(data.severity(), Severity::Transient | Severity::Permanent) {
                return Err(Lost::new(
                    Phase::Data,
                    Why::Garbage(format!("an answer that does not fit ({data})")),
                ));
            }
            self.reset = true;
            self.broken |= self.has_more();
            self.judge(transaction, Phase::Data, &data);
            return Ok(Carried::Judged);
        }
        if binary && accepted == 0 {
            self.reset = true;
            return Ok(Carried::Judged);
        }
        // RFC 5321 §4.3.2: behind 354 the server has nothing to say until the dot.
        if self.has_more() {
            return Err(Lost::new(Phase::Data, Why::Garbage("a reply too many".to_owned())));
        }
        if accepted == 0 {
            // RFC 2920 §3.1: DATA was let through although nobody was accepted. An empty message
            // to nobody ends it.
            self.output.extend_from_slice(b".\r\n");
            self.flush(Phase::Content).await?;
            self.read(Phase::FinalReply).await?;
            return Ok(Carried::Judged);
        }
        before_content.await;
        let form = if binary {
            Command::Bdat(transaction.message.size(), true).write_to(&mut self.output);
            Form::Chunk
        } else {
            Form::Lines(ContentWriter::default())
        };
        if !self.content(source, transaction.message.head, form).await? {
            return Ok(Carried::Damaged);
        }
        let reply = self.read(Phase::FinalReply).await?;
        if reply.code() == 421 {
            return Err(Lost { reply: Some(reply), ..Lost::new(Phase::FinalReply, Why::Closed) });
        }
        self.judge(transaction, Phase::FinalReply, &reply);
        // Another reply behind the last one answers nothing we asked.
        self.broken |= self.has_more();
        Ok(Carried::Judged)
    }

    /// MAIL, RCPT…, and DATA where it is wanted. Notes the outcome of every recipient that is not
    /// accepted, and returns DATA's reply, or the one that took its place.
    async fn envelope(
        &mut self,
        transaction: &mut Transaction<'_, '_>,
        data: bool,
    ) -> Result<Option<Reply>, Lost> {
        let message = transaction.message;
        let places: Vec<usize> = transaction.open().collect();
        let mut first = Vec::new();
        if self.reset {
            first.push((Phase::Mail, Command::Rset));
        }
        first.push((Phase::Mail, needs::mail(message, &self.capabilities)));
        let mut refused_sender = None;
        let mut pending = first;
        let mut groups = places.chunks(GROUP_MAX).peekable();
        while let Some(group) = groups.next() {
            let rcpt = |place: &usize| needs::rcpt(&message.recipients[*place], &self.capabilities);
            pending.extend(group.iter().map(|place| (Phase::Rcpt, rcpt(place))));
            if data && groups.peek().is_none() {
                pending.push((Phase::Data, Command::Data));
            }
            let replies = self.group(&pending).await?;
            let mut group = group.iter();
            for ((phase, command), reply) in pending.iter().zip(replies) {
                match command {
                    Command::Mail(..) if !reply.is_success() => {
                        let refusal = self.verdict(Phase::Mail, &reply, false);
                        // The connection has carried what it may.
                        self.broken |= refusal.evidence().scope == Scope::Transaction;
                        refused_sender = Some(refusal);
                    }
                    Command::Rcpt(..) => {
                        let place = *group.next().expect("because each RCPT was made of a place");
                        if let Some(refusal) = &refused_sender {
                            transaction.note(place, refusal.clone());
                        } else if !reply.is_success() {
                            let accepted = transaction.outcomes[..place].iter().any(Option::is_none);
                            transaction.note(place, self.verdict(*phase, &reply, accepted));
                        }
                    }
                    Command::Data => {
                        self.reset = false;
                        return Ok(Some(reply));
                    }
                    _ => {}
                }
            }
            pending = Vec::new();
        }
        self.reset = false;
        Ok(None)
    }

    /// Sends commands together where the upstream can take them so, and reads a reply to each.
    async fn group(&mut self, commands: &[(Phase, Command)]) -> Result<Vec<Reply>, Lost> {
        let mut replies = Vec::with_capacity(commands.len());
        if self.capabilities.pipelining {
            for (_, command) in commands {
                command.write_to(&mut self.output);
            }
            self.flush(commands.first().map_or(Phase::Mail, |(phase, _)| *phase)).await?;
        }
        for (phase, command) in commands {
            if !self.capabilities.pipelining {
                command.write_to(&mut self.output);
                self.flush(*phase).await?;
            }
            let reply = self.read(*phase).await?;
            // RFC 5321 §3.8: 421 may answer anything, and means that nothing more will be.
            if reply.code() == 421 {
                return Err(Lost { reply: Some(reply), ..Lost::new(*phase, Why::Closed) });
            }
            let refused = !reply.is_success() && !self.capabilities.pipelining;
            let stop = refused && *phase == Phase::Mail && matches!(command, Command::Mail(..));
            replies.push(reply);
            if stop {
                // One at a time there is no need to go on; the others share the answer.
                let last = replies.last().cloned();
                replies.extend(std::iter::repeat_n(last, commands.len() - replies.len()).flatten());
                self.reset = true;
                break;
            }
        }
        Ok(replies)
    }

    /// Writes content and its end. False if it is damaged; then the end was not written.
    async fn content(
        &mut self,
        source: Source<'_>,
        head: Option<&Head>,
        mut form: Form,
    ) -> Result<bool, Lost> {
        let mut skip = 0;
        if let Some(head) = head {
            self.write_content(&mut form, &head.octets).await?;
            skip = head.replaces;
        }
        match source {
            Source::Memory(octets) => {
                self.write_content(&mut form, &octets[skip.min(octets.len())..]).await?
            }
            Source::File { mut file, size, crc32c } => {
                file.set_max_buf_size(READ_CONTENT);
                let (mut read, mut crc, mut buffer) = (0, 0, BytesMut::new());
                // The last piece waits until the checksum is known: of a chunk, it is the end.
                let mut held = Bytes::new();
                loop {
                    buffer.reserve(READ_CONTENT);
                    match file.read_buf(&mut buffer).await {
                        Ok(0) => break,
                        Ok(_) => {}
                        Err(error) => return Err(Lost::new(Phase::Content, Why::Spool(error))),
                    }
                    let piece: Bytes = buffer.split().freeze();
                    read += piece.len() as u64;
                    crc = crc32c::crc32c_append(crc, &piece);
                    if read > size {
                        return Ok(false);
                    }
                    let skipped = skip.min(piece.len());
                    skip -= skipped;
                    let before = std::mem::replace(&mut held, piece.slice(skipped..));
                    self.write_content(&mut form, &before).await?;
                }
                if (read, crc) != (size, crc32c) {
                    return Ok(false);
                }
                self.write_content(&mut form, &held).await?;
            }
        }
        if let Form::Lines(writer) = form {
            self.output.extend_from_slice(writer.end());
        }
        self.flush(Phase::Content).await?;
        Ok(true)
    }

    async fn write_content(&mut self, form: &mut Form, octets: &[u8]) -> Result<(), Lost> {
        let mut pieces = Vec::new();
        match form {
            Form::Lines(writer) if octets.len() <= ONE_WRITE => {
                let output = &mut self.output;
                writer.write(octets, |piece| output.extend_from_slice(piece));
                return Ok(());
            }
            Form::Lines(writer) => writer.write(octets, |piece| pieces.push(piece)),
            Form::Chunk => pieces.push(octets),
        }
        self.flush(Phase::Content).await?;
        for piece in pieces {
            self.write(Phase::Content, piece).await?;
        }
        Ok(())
    }

    async fn command(&mut self, phase: Phase, command: &Command) -> Result<Reply, Lost> {
        command.write_to(&mut self.output);
        self.flush(phase).await?;
        self.read(phase).await
    }

    async fn flush(&mut self, phase: Phase) -> Result<(), Lost> {
        let output = std::mem::take(&mut self.output);
        let result = self.write(phase, &output).await;
        self.output = output;
        self.output.clear();
        result
    }

    async fn write(&mut self, phase: Phase, octets: &[u8]) -> Result<(), Lost> {
        if octets.is_empty() {
            return Ok(());
        }
        let write = async {
            self.stream.write_all(octets).await?;
            self.stream.flush().await
        };
        let why = match timeout(phase.deadline(self.upstream.timeout), write).await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(error)) => Why::Broken(error),
            Err(_) => Why::Silent,
        };
        self.broken = true;
        let mut lost = Lost::new(phase, why);
        // An upstream that closes in our midst has often said why.
        if let Ok(Ok(reply)) = timeout(std::time::Duration::from_millis(200), self.read(phase)).await {
            lost.reply = Some(reply).filter(|reply| !reply.is_success());
        }
        Err(lost)
    }

    async fn read(&mut self, phase: Phase) -> Result<Reply, Lost> {
        let limit = phase.deadline(self.upstream.timeout);
        let reply = match timeout(limit, self.read_unbounded()).await {
            Ok(Ok(reply)) => return Ok(reply),
            Ok(Err(why)) => why,
            Err(_) => Why::Silent,
        };
        self.broken = true;
        Err(Lost::new(phase, reply))
    }

    async fn read_unbounded(&mut self) -> Result<Reply, Why> {
        loop {
            let mut rest = &self.input[..];
            let found = self.replies.read(&mut rest).map_err(|error| Why::Garbage(error.to_string()))?;
            let used = self.input.len() - rest.len();
            self.input.advance(used);
            if let Some(reply) = found {
                return Ok(reply);
            }
            self.input.reserve(READ_REPLIES);
            match self.stream.read_buf(&mut self.input).await {
                Ok(0) => return Err(Why::Closed),
                Ok(_) => {}
                Err(error) => return Err(Why::Broken(error)),
            }
        }
    }
}

/// How content travels.
enum Form {
    /// Behind DATA: lines, their dots doubled (RFC 5321 §4.5.2).
    Lines(ContentWriter),
    /// Behind BDAT: as it is (RFC 3030 §2).
    Chunk,
}

/// How a transaction ended.
enum Carried {
    /// Every recipient has an outcome.
    Judged,
    /// The content is not what was accepted.
    Damaged,
}

#[cfg(test)]
mod tests;
