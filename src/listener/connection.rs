//! A connection drives a [`Session`]: it reads, waits, upgrades to TLS, receives content.
//!
//! Everything that the session must not do is here, and nothing that it decides. Replies to commands
//! that came in one packet leave in one packet (RFC 2920 §3.1). Every wait has its deadline and every
//! buffer its bound.

mod content;

use std::{io, sync::Arc, time::Duration};

use bytes::{Buf as _, BytesMut};
use rustls::ServerConfig;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    sync::watch,
    time::{Instant, sleep, timeout, timeout_at},
};
use tokio_rustls::TlsAcceptor;

use self::content::Partial;
use super::{
    budget::{Budget, Share},
    intake::Intake,
    pace::Pace,
    penalty::Penalties,
    places::Place,
    policy::Client,
    session::{Next, Session},
};
use crate::{
    net::Stream,
    observe::Rejection,
    smtp::{
        framing::LineReader,
        reply::{Reply, Severity},
    },
};

/// A client that doesn't take its replies is given up.
const WRITE_TIMEOUT: Duration = Duration::from_secs(60);
/// How long, and how much, a client is still heard behind the last that it is told.
const PARTING_TIMEOUT: Duration = Duration::from_secs(1);
const PARTING_OCTETS: usize = 64 * 1024;
/// What is read at once: little while commands come one by one, much while content streams.
const READ_COMMANDS: usize = 4 * 1024;
const READ_CONTENT: usize = 64 * 1024;
/// Replies gathered before they are written, though more commands wait.
const REPLIES_MAX: usize = 32 * 1024;

/// What a connection needs from its listener.
#[derive(Debug)]
pub struct Surroundings {
    /// What becomes of a message.
    pub intake: Intake,
    /// For STARTTLS.
    pub tls: Option<Arc<ServerConfig>>,
    /// Who is slowed down for wrong passwords.
    pub penalties: Penalties,
    /// The content that all connections hold in memory.
    pub budget: Budget,
    /// The most octets that it may be.
    pub buffered: usize,
    /// Its place among the others.
    pub place: Place,
    /// Turns true when the process is about to end.
    pub shutdown: watch::Receiver<bool>,
}

/// Serves one client until either side has had enough.
///
/// # Errors
/// The connection broke; what was accepted until then is safe, the rest never happened.
pub async fn serve<S>(
    stream: Stream<S>,
    client: Client,
    pace: Pace,
    surroundings: Surroundings,
) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let starttls = surroundings.tls.is_some();
    let session = Session::new(Arc::clone(&surroundings.intake.rules), client, starttls, nonce());
    let mut connection = Connection {
        stream: Some(stream),
        input: BytesMut::new(),
        output: Vec::new(),
        lines: LineReader::default(),
        pace,
        share: surroundings.budget.share(),
        session,
        partial: None,
        around: surroundings,
    };
    let greeting = connection.session.greeting();
    connection.say(&greeting);
    connection.converse().await
}

/// The handshake of TLS, within the time that this client has for it.
///
/// # Errors
/// It failed, or took too long.
pub(super) async fn handshake<S>(
    config: Arc<ServerConfig>,
    stream: S,
    pace: &Pace,
    place: &Place,
) -> io::Result<Stream<S>>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let handshake = timeout_at(pace.handshake_deadline(), TlsAcceptor::from(config).accept(stream));
    let stream = tokio::select! {
        stream = handshake => stream??,
        () = place.is_wanted_at(pace.deadline_in_a_crowd()) => return Err(io::ErrorKind::TimedOut.into()),
    };
    Ok(Stream::Tls(Box::new(stream.into())))
}

/// Random text that no session has had before.
fn nonce() -> String {
    let octets: [u8; 16] =
        crate::net::random().expect("because without randomness the process would not have come so far");
    octets.iter().map(|b| format!("{b:02x}")).collect()
}

struct Connection<S> {
    /// `None` only while TLS is being started.
    stream: Option<Stream<S>>,
    input: BytesMut,
    output: Vec<u8>,
    lines: LineReader,
    pace: Pace,
    /// What the message under way takes of the memory for content.
    share: Share,
    session: Session,
    /// What came of a message so far, between two chunks of it.
    partial: Option<Box<Partial>>,
    around: Surroundings,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Connection<S> {
    async fn converse(&mut self) -> io::Result<()> {
        loop {
            let max = self.session.line_max();
            let (next, reply, used) = match self.lines.next(&self.input, max) {
                Ok((Some(line), used)) => {
                    let (reply, next) = self.session.line(line, self.around.intake.clock.now());
                    (Some(next), reply, used)
                }
                Ok((None, used)) => (None, None, used),
                Err(_) => (Some(Next::Close), Some(Reply::line_too_long()), 0),
            };
            self.input.advance(used);
            match next {
                Some(Next::Penalty | Next::LastPenalty) => self.penalty().await,
                Some(Next::Skip(octets)) => self.skip(octets).await?,
                _ => {}
            }
            if let Some(reply) = reply {
                let refused = matches!(reply.severity(), Severity::Transient | Severity::Permanent);
                if refused && next == Some(Next::Close) {
                    self.turned_away(&reply, Rejection::abuse);
                } else if reply.is_about_policy() {
                    self.turned_away(&reply, Rejection::command);
                }
                self.say(&reply);
            }
            if !self.session.is_receiving() {
                self.partial = None;
                self.share.give_back();
            }
            if next.is_some() {
                self.pace.line(self.session.in_transaction());
            }
            if self.session.is_known() {
                self.pace.is_known();
                self.around.place.is_no_strangers();
            }
            match next {
                None => {
                    if !self.read_commands().await? {
                        return Ok(());
                    }
                }
                Some(Next::Continue | Next::Penalty | Next::Skip(_)) => {
                    if self.output.len() > REPLIES_MAX {
                        self.flush().await?;
                    }
                }
                Some(Next::StartTls) => self.start_tls().await?,
                Some(Next::Receive) => self.receive().await?,
                Some(Next::Chunk(size, last)) => self.receive_chunk(size, last).await?,
                Some(Next::Close | Next::LastPenalty) => {
                    self.flush().await?;
                    return self.close().await;
                }
            }
        }
    }

    /// Lets a client with a wrong password wait for its answer, but never the process for its end.
    async fn penalty(&mut self) {
        let wait = self.around.penalties.miss(self.session.client().address);
        let mut shutdown = self.around.shutdown.clone();
        let _ = timeout(wait, shutdown.wait_for(|shutdown| *shutdown)).await;
    }

    /// Lets a client wait with its content while the queue grows towards its bound.
    async fn slow_down(&mut self) -> io::Result<()> {
        let wait = self.pace.bears(self.around.intake.queue.slowdown());
        if wait.is_zero() {
            return Ok(());
        }
        self.flush().await?;
        unhurried(wait, &self.around.place, self.around.shutdown.clone()).await;
        Ok(())
    }

    /// Writes what is due and reads more; false if the conversation is over.
    async fn read_commands(&mut self) -> io::Result<bool> {
        self.flush().await?;
        if self.input.is_empty() && self.input.capacity() > READ_COMMANDS {
            // A connection that waits for its next command should not hold what the last one took.
            self.input = BytesMut::with_capacity(READ_COMMANDS);
        }
        self.input.reserve(READ_COMMANDS);
        let mut shutdown = self.around.shutdown.clone();
        let deadline = self.pace.deadline();
        let wanted = self.around.place.is_wanted_at(self.pace.deadline_in_a_crowd());
        let hostname = &self.around.intake.rules.hostname;
        let stream = self.stream.as_mut().ok_or_else(broken)?;
        let farewell = tokio::select! {
            biased;
            read = timeout_at(deadline, stream.read_buf(&mut self.input)) => match read {
                Ok(read) => return Ok(read? > 0),
                Err(_) if self.pace.is_late_to_log_in() => Reply::no_login_in_time(),
                Err(_) => Reply::idle_too_long(hostname),
            },
            () = wanted => Reply::idle_too_long(hostname),
            _ = shutdown.wait_for(|shutdown| *shutdown) => Reply::shutting_down(hostname),
        };
        // A connection that a client keeps for its next message has its end, too, and nobody need be told.
        if self.session.in_transaction() && !*shutdown.borrow() {
            self.turned_away(&farewell, Rejection::slow);
        }
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
        let stream = handshake(config, stream, &self.pace, &self.around.place).await?;
        self.session.tls_started(stream.channel_binding());
        self.stream = Some(stream);
        self.lines = LineReader::default();
        Ok(())
    }

    /// Reads octets that are nobody's.
    async fn skip(&mut self, mut octets: u64) -> io::Result<()> {
        loop {
            let here = usize::try_from(octets).unwrap_or(usize::MAX).min(self.input.len());
            self.input.advance(here);
            octets -= here as u64;
            if octets == 0 {
                return Ok(());
            }
            self.flush().await?;
            self.read_more().await?;
        }
    }

    /// Reads more content. The end of the connection is an error: without the end of its content
    /// nothing was said (RFC 5321 §4.1.1.4).
    async fn read_more(&mut self) -> io::Result<()> {
        self.input.reserve(READ_CONTENT);
        let stream = self.stream.as_mut().ok_or_else(broken)?;
        let Ok(read) = timeout_at(self.pace.deadline(), stream.read_buf(&mut self.input)).await else {
            self.turned_away(&Reply::too_slow(), Rejection::slow);
            self.say(&Reply::too_slow());
            self.flush().await?;
            self.close().await?;
            return Err(io::ErrorKind::TimedOut.into());
        };
        let read = read?;
        self.pace.octets(read);
        if read == 0 { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(()) }
    }

    /// The client was refused something before there was a whole message.
    fn turned_away(&self, reply: &Reply, reason: Rejection) {
        let envelope = self.session.envelope().map(|(envelope, _)| envelope);
        self.around.intake.turned_away(self.session.client(), envelope.as_ref(), reply, reason);
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
        close(self.stream.as_mut().ok_or_else(broken)?).await
    }
}

/// Ends our side, and hears the client's out for a moment. A socket that is closed with octets unread resets its
/// connection, and what was said last can be lost on its way.
///
/// # Errors
/// The connection was broken already, or the client doesn't take what it was told.
pub(super) async fn close<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S) -> io::Result<()> {
    timeout(WRITE_TIMEOUT, stream.shutdown()).await.map_err(io::Error::from)??;
    let mut left = PARTING_OCTETS;
    let mut unread = vec![0; READ_COMMANDS];
    let hear_out = async {
        while let Ok(read @ 1..) = stream.read(&mut unread).await {
            left = left.saturating_sub(read);
            if left == 0 {
                return;
            }
        }
    };
    // Whoever has not ended by then has had its chance.
    let _ = timeout(PARTING_TIMEOUT, hear_out).await;
    Ok(())
}

/// Waits, but not while others find no place, and never for the end of the process.
async fn unhurried(wait: Duration, place: &Place, mut shutdown: watch::Receiver<bool>) {
    tokio::select! {
        () = sleep(wait) => {}
        () = place.is_wanted_at(Instant::now()) => {}
        _ = shutdown.wait_for(|shutdown| *shutdown) => {}
    }
}

fn broken() -> io::Error {
    io::ErrorKind::BrokenPipe.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::listener::places::{Most, Places};

    #[tokio::test(start_paused = true)]
    async fn a_wait_of_ours_ends_when_places_run_short_and_with_the_process() {
        let most = Most { all: 10, of_one: 10 };
        let places = Places::default();
        let (end, shutdown) = watch::channel(false);
        let place = places.take(most).expect("a place");
        let waited = async || {
            let began = Instant::now();
            unhurried(Duration::from_secs(2), &place, shutdown.clone()).await;
            began.elapsed().as_secs()
        };
        assert_eq!(waited().await, 2);
        let crowd: Vec<_> = (0..9).map(|_| places.take(most).expect("a place")).collect();
        assert_eq!(waited().await, 0, "others find no place");
        drop(crowd);
        assert_eq!(waited().await, 2);
        end.send_replace(true);
        assert_eq!(waited().await, 0, "the process ends");
    }
}
