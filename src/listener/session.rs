//! A session is one client's conversation, from greeting to goodbye.
//!
//! It reads no socket and waits for nothing: give it a line and the time, it returns a reply and what to
//! do next.
//!
//! ```text
//!  Connected ──EHLO──► Ready ──MAIL──► Open ──DATA──► Receiving ──end of data──► Ready
//!      │                 ▲  ◄──RSET, EHLO──┘                                       ▲
//!      │                         └──BDAT──► Chunking ──BDAT LAST, RSET, a refusal──► Ready ───────┤
//!      └─ AUTH from Ready: Authenticating ──235 or 535──► Ready ───────────────────┘
//! ```
//!
//! The transaction is owned by the state and dropped whole with it: there is nothing to reset by hand
//! and so nothing to forget. What the session does not do: frame octets ([`crate::smtp::framing`]),
//! parse commands ([`Command`]), touch a disk or a clock. Nothing but the queue's
//! [`Receipt`] leads to the 250 after content.

use std::{borrow::Cow, sync::Arc, time::Duration};

use super::{
    auth::{Channel, Exchange, Progress},
    policy::{self, Client, Hello, RelayPermitted, Rules},
};
use crate::{
    clock::Timestamp,
    mail::envelope::{Addressee, DeliverBy, Envelope, Handling, Origin},
    queue::Receipt,
    smtp::{
        address::{Mailbox, ReversePath},
        command::Command,
        esmtp::{MailParameters, RcptParameters},
        extension::Offer,
        framing::Line,
        parameter::{Body, Hold},
        reply::{Reply, Severity},
        sasl,
    },
};

/// One client's conversation.
#[derive(Debug)]
pub struct Session {
    rules: Arc<Rules>,
    client: Client,
    state: State,
    /// This address offers STARTTLS.
    starttls: bool,
    /// Makes the challenges of this session unlike those of any other.
    nonce: String,
    challenges: u32,
    errors: usize,
    failed_logins: usize,
    idle_commands: usize,
}

/// Where the conversation stands, with exactly what is known there.
#[derive(Debug)]
enum State {
    /// Before EHLO or HELO.
    Connected,
    /// Between transactions.
    Ready,
    /// The client owes a line of a SASL exchange.
    Authenticating(Exchange),
    /// Behind MAIL.
    Open(Transaction),
    /// Behind DATA.
    Receiving(Transaction),
    /// Behind a BDAT that was not the last (RFC 3030 §2).
    Chunking(Transaction),
    /// Behind the last reply.
    Closed,
}

/// A mail transaction (RFC 5321 §3.3): MAIL, RCPT…, DATA.
#[derive(Debug)]
struct Transaction {
    reverse_path: ReversePath,
    recipients: Vec<Addressee>,
    handling: Handling,
    _permitted: RelayPermitted,
}

/// What the connection does after the reply was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Read the next line.
    Continue,
    /// Start TLS, then call [`Session::tls_started`].
    StartTls,
    /// Receive content, then call [`Session::received`]. No reply was made yet.
    Receive,
    /// Receive so many octets of content, the last of it or not, then call [`Session::received`], or
    /// [`Session::chunk_received`] if more is to come. No reply was made yet.
    Chunk(u64, bool),
    /// As `Continue`, but so many octets come first that are nobody's content, and no commands.
    Skip(u64),
    /// As `Continue`, but let the client wait before it hears the reply: its password was wrong.
    Penalty,
    /// The same, then close.
    LastPenalty,
    /// Close.
    Close,
}

/// A reply, if one is due already, and what to do next.
pub type Step = (Option<Reply>, Next);

impl Session {
    /// A session with a client that has just connected. `nonce` is random and not used before.
    pub fn new(rules: Arc<Rules>, client: Client, starttls: bool, nonce: String) -> Self {
        Self {
            rules,
            client,
            starttls,
            state: State::Connected,
            nonce,
            challenges: 0,
            errors: 0,
            failed_logins: 0,
            idle_commands: 0,
        }
    }

    /// Whom we are talking to.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Whether it may relay: by its address, or because it has logged in.
    pub fn is_known(&self) -> bool {
        policy::is_known(&self.rules, &self.client)
    }

    /// The first thing said.
    pub fn greeting(&self) -> Reply {
        Reply::greeting(&self.rules.hostname)
    }

    /// The longest line that may come next.
    pub fn line_max(&self) -> usize {
        match self.state {
            State::Authenticating(_) => sasl::LINE_MAX,
            // RFC 4954 §4: the initial response makes the AUTH command long, for whoever may use it. What turns
            // out not to be one is bound by `is_too_long`.
            State::Ready if self.client.user.is_none() => sasl::LINE_MAX,
            _ => self.rules.bounds.command_line,
        }
    }

    /// Takes one line that came at `now`.
    pub fn line(&mut self, line: Line<'_>, now: Timestamp) -> Step {
        let recipients = self.recipients();
        let step = match (line, &self.state) {
            (Line::Whole(line), State::Authenticating(_)) => self.exchange(line),
            (Line::TooLong, State::Authenticating(_)) => {
                self.state = State::Ready;
                say(Reply::auth_line_too_long())
            }
            (Line::BareNewline, State::Authenticating(_)) => {
                self.state = State::Ready;
                say(Reply::bare_newline_in_command())
            }
            (Line::TooLong, _) => say(Reply::line_too_long()),
            (Line::Whole(line), _) if self.is_too_long(line) => say(Reply::line_too_long()),
            (Line::BareNewline, _) => say(Reply::bare_newline_in_command()),
            (Line::Whole(line), State::Connected) if is_http(line) => (Some(Reply::not_http()), Next::Close),
            (Line::Whole(line), State::Connected) if is_proxy_header(line) => {
                (Some(Reply::no_proxy_header_here()), Next::Close)
            }
            (Line::Whole(line), _) => match Command::parse(line) {
                Ok(command) => self.command(command, now),
                Err(reply) => say(reply),
            },
        };
        // Naming recipients brings a message forward; all else could go on for ever.
        self.idle_commands += usize::from(self.recipients() <= recipients);
        self.bounded(step)
    }

    /// Whether a line is longer than a command may be, AUTH apart.
    fn is_too_long(&self, line: &[u8]) -> bool {
        let is_auth = line.get(..5).is_some_and(|verb| verb.eq_ignore_ascii_case(b"AUTH "));
        line.len() > self.rules.bounds.command_line && !is_auth
    }

    /// TLS stands, with that channel binding: all that was known is forgotten (RFC 3207 §4.2).
    pub fn tls_started(&mut self, binding: Option<[u8; 32]>) {
        self.client = self.client.over_tls(binding);
        self.state = State::Connected;
    }

    /// Whether a transaction is open.
    pub fn in_transaction(&self) -> bool {
        matches!(self.state, State::Open(_) | State::Receiving(_) | State::Chunking(_))
    }

    fn recipients(&self) -> usize {
        if let State::Open(transaction) = &self.state { transaction.recipients.len() } else { 0 }
    }

    /// The envelope and origin of the content to receive.
    pub fn envelope(&self) -> Option<(Envelope, Origin)> {
        let (State::Receiving(transaction) | State::Chunking(transaction)) = &self.state else {
            return None;
        };
        let hello = self.client.hello.as_ref();
        let envelope = Envelope {
            reverse_path: transaction.reverse_path.clone(),
            recipients: transaction.recipients.clone(),
            handling: transaction.handling.clone(),
        };
        let origin = Origin {
            client: self.client.address.to_string(),
            hello: hello.map_or(String::new(), |hello| hello.name.clone()),
            user: self.client.user.as_ref().map(|user| user.user().to_owned()),
            extended: hello.is_some_and(|hello| hello.extended),
            tls: self.client.tls,
            http: false,
        };
        Some((envelope, origin))
    }

    /// Whether content is being received; what came of it belongs to nobody as soon as it isn't.
    pub fn is_receiving(&self) -> bool {
        matches!(self.state, State::Receiving(_) | State::Chunking(_))
    }

    /// A chunk of that many octets was received; the transaction goes on.
    pub fn chunk_received(&mut self, octets: u64) -> Reply {
        Reply::chunk_ok(octets)
    }

    /// The content was received, or why it was not.
    pub fn received(&mut self, result: Result<Receipt, Reply>) -> Reply {
        self.state = State::Ready;
        self.idle_commands = 0;
        match result {
            Ok(receipt) => {
                // A client that keeps its connection for good errs now and then, and gets its mail through.
                self.errors = 0;
                Reply::accepted(&receipt)
            }
            Err(refusal) => refusal,
        }
    }

    /// The table, in the order of RFC 5321 §4.1.4.
    fn command(&mut self, command: Command, now: Timestamp) -> Step {
        match (&mut self.state, command) {
            (State::Closed, _) => (None, Next::Close),
            (_, Command::Quit) => self.quit(),
            (_, Command::Noop) => say(Reply::ok()),
            (_, Command::Help) => say(Reply::help()),
            (_, Command::Vrfy) => say(Reply::can_not_verify()),

            (_, Command::Ehlo(name)) => self.hello(name, true, now),
            (_, Command::Helo(name)) => self.hello(name, false, now),
            (State::Open(_) | State::Chunking(_), Command::Rset) => {
                self.state = State::Ready;
                say(Reply::ok())
            }
            (_, Command::Rset) => say(Reply::ok()),

            (State::Connected, Command::StartTls) if !self.starttls => say(Reply::tls_not_available()),
            (State::Connected | State::Ready, Command::StartTls) => self.start_tls(),
            (_, Command::StartTls) => say(Reply::auth_in_transaction()),

            (_, Command::Bdat(size, last)) => self.bdat(size, last),
            (State::Chunking(_), Command::Rcpt(..) | Command::Data) => say(Reply::chunks_begun()),

            (State::Connected, Command::Auth(..) | Command::Mail(..) | Command::Rcpt(..) | Command::Data) => {
                say(Reply::hello_first())
            }
            (State::Ready, Command::Auth(mechanism, initial)) => self.auth(&mechanism, initial.as_deref()),
            (_, Command::Auth(..)) => say(Reply::auth_in_transaction()),

            (State::Ready, Command::Mail(path, parameters)) => self.mail(path, parameters, now),
            (_, Command::Mail(..)) => say(Reply::nested_mail()),
            (State::Open(transaction), Command::Rcpt(mailbox, asked)) => {
                rcpt(transaction, mailbox, asked, policy::most_recipients(&self.rules, &self.client))
            }
            // Who may not open a transaction hears why, and not that one is missing.
            (State::Ready, Command::Rcpt(..)) if !policy::is_known(&self.rules, &self.client) => {
                say(Reply::relaying_denied())
            }
            (_, Command::Rcpt(..)) => say(Reply::mail_first()),
            (State::Open(transaction), Command::Data) if transaction.recipients.is_empty() => {
                say(Reply::no_valid_recipients())
            }
            (State::Open(transaction), Command::Data) if transaction.handling.body == Body::Binary => {
                say(Reply::binary_needs_bdat())
            }
            (State::Open(_), Command::Data) => self.data(),
            (_, Command::Data) => say(Reply::mail_first()),
        }
    }

    fn hello(&mut self, name: String, extended: bool, now: Timestamp) -> Step {
        // RFC 5321 §4.1.4: EHLO inside a transaction has the effect of RSET.
        self.state = State::Ready;
        self.client.hello = Some(Hello { name, extended });
        let auth = self.client.user.is_none() && !self.rules.credentials.is_empty();
        let offer = Offer {
            message_size: self.rules.message_size,
            recipients: policy::most_recipients(&self.rules, &self.client).0,
            binary: self.rules.binary,
            hold: self.hold_max(now).map(|(longest, latest)| [Hold::For(longest), Hold::Until(latest.0)]),
            tls: self.client.tls,
            starttls: self.starttls && !self.client.tls,
            auth,
            auth_clear: auth && self.client.is_private(),
            auth_bound: auth && self.client.binding.is_some(),
        };
        let keywords = if extended { offer.keywords() } else { Vec::new() };
        say(Reply::hello(&self.rules.hostname, &keywords))
    }

    fn start_tls(&mut self) -> Step {
        if self.client.tls {
            return say(Reply::already_tls());
        }
        if !self.starttls {
            return say(Reply::tls_not_available());
        }
        (Some(Reply::ready_for_tls()), Next::StartTls)
    }

    fn auth(&mut self, mechanism: &str, initial: Option<&str>) -> Step {
        if self.client.user.is_some() {
            return say(Reply::already_authenticated());
        }
        self.challenges += 1;
        // RFC 2195 §2: a challenge is never used twice.
        let challenge = || format!("<{}.{}@{}>", self.challenges, self.nonce, self.rules.hostname);
        let channel = Channel { private: self.client.is_private(), binding: self.client.binding };
        let progress = Exchange::begin(mechanism, initial, channel, challenge, &self.rules.credentials);
        self.progress(progress)
    }

    fn exchange(&mut self, line: &[u8]) -> Step {
        let State::Authenticating(exchange) = std::mem::replace(&mut self.state, State::Ready) else {
            return say(Reply::local_error());
        };
        // Not even an empty response: who sends other octets means something else.
        let Ok(line) = std::str::from_utf8(line) else { return say(Reply::bad_base64()) };
        let progress = exchange.respond(line, &self.rules.credentials);
        self.progress(progress)
    }

    fn progress(&mut self, progress: Progress) -> Step {
        match progress {
            Progress::Challenge(exchange, reply) => {
                self.state = State::Authenticating(exchange);
                say(reply)
            }
            Progress::Success(user) => {
                self.client.user = Some(user);
                say(Reply::authenticated())
            }
            Progress::Refused(reply) => say(reply),
            Progress::Wrong => {
                self.failed_logins += 1;
                if self.failed_logins < self.rules.bounds.failed_logins {
                    return (Some(Reply::wrong_credentials()), Next::Penalty);
                }
                self.state = State::Closed;
                (Some(Reply::too_many_failed_logins()), Next::LastPenalty)
            }
        }
    }

    fn mail(&mut self, reverse_path: ReversePath, asked: MailParameters, now: Timestamp) -> Step {
        let permitted = match policy::may_relay(&self.rules, &self.client, &reverse_path) {
            Ok(permitted) => permitted,
            Err(refusal) => return say(refusal),
        };
        // RFC 1870 §6.1: refused before a single octet of it has travelled.
        if asked.size.is_some_and(|size| size > self.rules.message_size) {
            return say(Reply::too_large(self.rules.message_size));
        }
        if asked.body == Body::Binary && !self.rules.binary {
            return say(Reply::bad_parameter("BODY"));
        }
        // RFC 8689 §4.1: what came in clear needs no TLS from here on.
        if asked.require_tls && !self.client.tls {
            return say(Reply::unknown_parameter("REQUIRETLS"));
        }
        let hold_until = match asked.hold.map(|hold| self.hold(hold, now)).transpose() {
            Ok(hold_until) => hold_until,
            Err(refusal) => return say(refusal),
        };
        let deliver_by = asked.deliver_by.map(|by| {
            let wait = Duration::from_secs(by.seconds.unsigned_abs().into());
            let time = if by.seconds < 0 { now.before(wait) } else { now.after(wait) };
            DeliverBy { time, or_return: by.or_return, trace: by.trace }
        });
        self.state = State::Open(Transaction {
            reverse_path,
            recipients: Vec::new(),
            handling: Handling {
                body: asked.body,
                utf8: asked.utf8,
                utf8_header: false,
                ret: asked.ret,
                envid: asked.envid,
                require_tls: asked.require_tls,
                priority: asked.priority.unwrap_or_default(),
                hold_until,
                deliver_by,
            },
            _permitted: permitted,
        });
        say(Reply::sender_ok())
    }

    /// The longest that a message can be held, in seconds, and the time when that ends.
    fn hold_max(&self, now: Timestamp) -> Option<(u32, Timestamp)> {
        // RFC 4865 §3: nine digits.
        let longest = self.rules.hold.as_secs().min(999_999_999);
        let seconds = u32::try_from(longest).ok().filter(|seconds| *seconds > 0)?;
        Some((seconds, now.after(Duration::from_secs(longest))))
    }

    /// Until when a message is held. A time that has passed already holds nothing.
    fn hold(&self, hold: Hold, now: Timestamp) -> Result<Timestamp, Reply> {
        let Some((longest, latest)) = self.hold_max(now) else {
            return Err(Reply::unknown_parameter("HOLDFOR"));
        };
        let until = match hold {
            Hold::For(seconds) => now.after(Duration::from_secs(seconds.into())),
            Hold::Until(time) => Timestamp(time),
        };
        if until > latest { Err(Reply::held_too_long(longest.into())) } else { Ok(until) }
    }

    fn data(&mut self) -> Step {
        let state = std::mem::replace(&mut self.state, State::Ready);
        if let State::Open(transaction) = state {
            self.state = State::Receiving(transaction);
        }
        (None, Next::Receive)
    }

    /// RFC 3030 §2: the octets follow at once, whatever is said of them. A refusal drops the transaction:
    /// else the rest of its message could be taken for the whole. They are read over only for whom and as far
    /// as a message would be read: a size is quickly said, and its octets could stream for ever.
    fn bdat(&mut self, size: u64, last: bool) -> Step {
        if size > 0 {
            self.idle_commands = 0;
        }
        let (state, refusal) = match std::mem::replace(&mut self.state, State::Ready) {
            State::Open(transaction) if transaction.recipients.is_empty() => {
                (State::Ready, Reply::no_valid_recipients())
            }
            State::Open(transaction) | State::Chunking(transaction) => {
                self.state = State::Chunking(transaction);
                return (None, Next::Chunk(size, last));
            }
            State::Connected => (State::Connected, Reply::hello_first()),
            other => (other, Reply::mail_first()),
        };
        if size > self.rules.message_size || size > 0 && !self.is_known() {
            self.state = State::Closed;
            return (Some(Reply::refused_chunk_not_read()), Next::Close);
        }
        self.state = state;
        (Some(refusal), Next::Skip(size))
    }

    fn quit(&mut self) -> Step {
        self.state = State::Closed;
        (Some(Reply::goodbye(&self.rules.hostname)), Next::Close)
    }

    /// Ends conversations that lead nowhere.
    fn bounded(&mut self, step: Step) -> Step {
        if step.0.as_ref().is_some_and(|reply| reply.severity() == Severity::Permanent) {
            self.errors += 1;
        }
        let goes_on = matches!(step.1, Next::Continue | Next::Skip(_) | Next::Chunk(..));
        let bounds = &self.rules.bounds;
        let (commands, key) = match self.is_known() {
            true => (bounds.commands, "smtp_max_commands"),
            false => (bounds.commands_before_auth, "smtp_max_commands_before_auth"),
        };
        let farewell = match goes_on {
            true if self.errors >= bounds.errors => Reply::too_many_errors(),
            true if self.idle_commands >= commands => Reply::too_many_commands(key),
            _ => return step,
        };
        self.state = State::Closed;
        (Some(farewell), Next::Close)
    }
}

fn say(reply: Reply) -> Step {
    (Some(reply), Next::Continue)
}

fn rcpt(
    transaction: &mut Transaction,
    mailbox: Mailbox,
    asked: RcptParameters,
    (max, key): (usize, Cow<'static, str>),
) -> Step {
    if !mailbox.is_ascii() && !transaction.handling.utf8 {
        return say(Reply::non_ascii_address());
    }
    if transaction.recipients.len() >= max {
        return say(Reply::too_many_recipients(&key));
    }
    let RcptParameters { notify, original } = asked;
    // Twice the same is once: RFC 5321 §4.5.3.1.8 lets a server drop the repetition.
    if !transaction.recipients.iter().any(|known| known.mailbox == mailbox) {
        transaction.recipients.push(Addressee { mailbox, notify, original });
    }
    say(Reply::recipient_ok())
}

/// A browser, tricked into talking to us, would send its request as our commands.
fn is_http(line: &[u8]) -> bool {
    let verb = line.split(|b| *b == b' ').next().unwrap_or_default();
    [&b"GET"[..], b"POST", b"PUT", b"HEAD", b"OPTIONS", b"CONNECT", b"DELETE", b"PATCH"].contains(&verb)
}

/// A load balancer's header that this listener was not told to expect, or that somebody forged. Of the
/// binary form, which begins with two empty lines, the third line is the first that tells.
fn is_proxy_header(line: &[u8]) -> bool {
    line.starts_with(b"PROXY ") || line == b"\0"
}

#[cfg(test)]
mod tests;
