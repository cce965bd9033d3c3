//! The conversation on one connection: commands out, replies in, an outcome per recipient.
//!
//! - here: the connection, the login, and what an attempt came to
//! - `transact`: one transaction
//! - `wire`: octets out, replies in
//! - `evidence`: outcomes out of replies
//!
//! Where the upstream can take it (RFC 2920), MAIL, every RCPT and DATA leave together, behind the
//! content of the message before; where it offers CHUNKING (RFC 3030), content leaves with them. Both
//! ways a message costs one round trip while there are more. Replies are matched strictly in order; a reply too many or too few ends the connection, so that a 250 can never be counted for
//! another recipient. Every wait has the phase's deadline, every reply its bound.

mod evidence;
mod transact;
mod wire;

use std::{future::Future, sync::Arc};

use bytes::BytesMut;
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt as _},
    time::{Instant, timeout},
};

pub use self::transact::Ahead;
use super::{
    Message,
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
    mail::outcome::{Advice, Evidence, Outcome, Scope, Who},
    net::Stream,
    smtp::{
        command::Command,
        extension::Capabilities,
        framing::ContentWriter,
        reply::{Enhanced, Reply, ReplyReader, Severity},
        sasl,
    },
};

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
    /// It took HELO in the place of EHLO, so that nobody knows what else it could do.
    bare: bool,
    /// A transaction was left open; RSET before the next.
    reset: bool,
    /// Messages carried.
    carried: u64,
    /// The envelope that was sent behind the last message.
    ahead: Option<Ahead>,
    /// When the upstream last said something.
    heard: Instant,
}

/// What came of one attempt.
#[derive(Debug)]
pub enum Attempt {
    /// An outcome for each recipient, in their order.
    Done(Vec<Outcome>),
    /// The same of a connection that ended on the way, without a word about why: that concerns no other, and the
    /// next one will show what it was.
    Lost(Vec<Outcome>),
    /// The kept connection had ended, or has carried what it may, before anything was said about this message.
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
            bare: false,
            reset: false,
            carried: 0,
            ahead: None,
            heard: Instant::now(),
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

    /// Whether it can be told of a message behind the content of another.
    pub fn can_go_ahead(&self) -> bool {
        self.capabilities.pipelining && !self.capabilities.chunking
    }

    /// Whether any message may be the next on it: none was announced.
    pub fn is_free(&self) -> bool {
        self.ahead.is_none()
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
        let mut reply = self.command(Phase::Ehlo, &Command::Ehlo(self.hostname.to_string())).await?;
        if reply.severity() == Severity::Permanent {
            // RFC 5321 §3.2: a server of before EHLO. It offers nothing, so neither login nor mail goes where
            // TLS is required.
            reply = self.command(Phase::Ehlo, &Command::Helo(self.hostname.to_string())).await?;
            self.bare = reply.is_success();
        }
        let offered = Capabilities::from_reply(&reply);
        self.capabilities = Capabilities {
            pipelining: offered.pipelining && self.upstream.pipelining,
            chunking: offered.chunking && self.upstream.chunking,
            ..offered
        };
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
    ///
    /// `behind` is of the message that must be tried next on this connection. It is sent behind this
    /// one's content, if that is sent.
    pub async fn attempt(
        &mut self,
        message: &Message<'_>,
        behind: Option<Ahead>,
        before_content: impl Future<Output = ()>,
    ) -> Attempt {
        if let Some(lack) = self.lack(message) {
            self.broken |= self.bare;
            return Attempt::Done(vec![self.lacking(lack); message.recipients.len()]);
        }
        let mut transaction = self.begin(message);
        // The next connection may say EHLO to better ears.
        self.broken |= self.bare && transaction.outcomes.iter().any(Option::is_some);
        if transaction.open().next().is_none() {
            return Attempt::Done(transaction.outcomes.into_iter().flatten().collect());
        }
        let source = match Source::open(message.content).await {
            Ok(source) => source,
            Err(SourceError::Damaged) => return Attempt::Damaged,
            Err(SourceError::Unreadable(error)) => {
                let evidence = Evidence {
                    explanation: Some(format!("the content can't be read from the spool now: {error}")),
                    advice: advice(Who::Operator),
                    ..self.evidence(Phase::Content, Scope::Message, None)
                };
                return Attempt::Done(vec![Outcome::Deferred(evidence); message.recipients.len()]);
            }
        };
        let stale_allowed = self.carried > 0;
        let result = self.transact(&mut transaction, source, behind, before_content).await;
        self.carried += 1;
        let lost = match result {
            // Over a fresh connection the same answer means that it must wait, or it would go on for ever.
            Ok(Carried::Judged) if stale_allowed && transaction.used_up && transaction.is_unsent() => {
                return Attempt::Stale;
            }
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
        // Only where the first reply should have been: nothing was judged yet. Who says goodbye there took no content.
        let is_untouched = !transaction.content_sent || lost.reply.as_ref().is_some_and(is_goodbye);
        if stale_allowed && lost.phase == Phase::Mail && is_untouched {
            return Attempt::Stale;
        }
        // All had been answered before it ended.
        if transaction.open().next().is_none() {
            if stale_allowed && transaction.used_up && transaction.is_unsent() {
                return Attempt::Stale;
            }
            return Attempt::Done(transaction.outcomes.into_iter().flatten().collect());
        }
        // A goodbye may say what concerns more than this connection. Any other answer amid content is about that.
        let phase = if lost.phase == Phase::Content { Phase::FinalReply } else { lost.phase };
        if let Some(reply) = &lost.reply
            && let verdict = self.judged(phase, reply, false)
            && (verdict.rule.is_some() || lost.phase == Phase::Content && !is_goodbye(reply))
        {
            let outcome = self.outcome(phase, reply, verdict);
            return Attempt::Done(
                transaction
                    .outcomes
                    .into_iter()
                    .map(|open| open.unwrap_or_else(|| outcome.clone()))
                    .collect(),
            );
        }
        let content_sent = transaction.content_sent || lost.phase == Phase::FinalReply;
        let uncertain = content_sent && lost.reply.is_none();
        let evidence = Evidence {
            uncertain,
            explanation: Some(if uncertain {
                format!("{}; it may have taken the message, so it may arrive twice", lost.words())
            } else {
                lost.words()
            }),
            advice: advice(lost.who()),
            ..self.evidence(lost.phase, Scope::Upstream, lost.reply)
        };
        Attempt::Lost(transaction.finish(|| evidence.clone()))
    }

    /// Says goodbye, without waiting long for an answer.
    pub async fn quit(mut self) {
        // An upstream that waits for content would take it for some.
        if !self.broken && self.ahead.is_none() {
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
        let seen = |scope, status, words, who: Option<Who>| Evidence {
            status: Some(status),
            explanation: Some(words),
            advice: who.and_then(advice),
            ..self.evidence(Phase::Mail, scope, None)
        };
        match status {
            Enhanced(4, ..) => Outcome::Deferred(seen(scope, status, words, Some(Who::Nobody))),
            // It has refused EHLO, which a better day may change. How large a message may be is known otherwise.
            Enhanced(5, subject, detail) if self.bare && status != needs::TOO_LARGE => {
                let words = format!("{words}: it refuses EHLO, and with HELO it offers nothing");
                let status = Enhanced(4, subject, detail);
                Outcome::Deferred(seen(Scope::Upstream, status, words, Some(Who::Upstream)))
            }
            _ => Outcome::Failed(seen(scope, status, words, None)),
        }
    }

    /// TLS with whom we were told to talk to, and nobody else.
    fn is_verified(&self) -> bool {
        let verified = !matches!(self.upstream.tls, UpstreamTls::None | UpstreamTls::Opportunistic);
        self.is_tls() && verified
    }
}

/// RFC 5321 §3.8.
fn is_goodbye(reply: &Reply) -> bool {
    reply.code() == 421
}

/// Who can do something about what nobody gave advice on.
fn advice(who: Who) -> Option<Box<Advice>> {
    Some(Box::new(Advice { who, help: None, not_before: None, tries: None, slower: None }))
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
pub(super) mod tests;
