//! One connection to the scripted upstream: the conversation, and what is done wrong in it.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread::sleep;
use std::time::Instant;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

use super::super::bytes::{field_name, header_fields};
use super::{Arrival, Behaviour, Ending, Heard, StartTls, State, USER, locked};

/// A socket that keeps what it reads.
struct Recorder {
    stream: TcpStream,
    heard: Arc<Mutex<Heard>>,
}

impl Read for Recorder {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.stream.read(buffer)?;
        locked(&self.heard).wire.extend_from_slice(&buffer[..count]);
        Ok(count)
    }
}

impl Write for Recorder {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

/// Why a phase of a conversation ended.
enum Next {
    StartTls,
    Over,
}

/// Talks to one client until it, or the script, has enough.
pub(super) fn converse(stream: TcpStream, state: &State, heard: &Arc<Mutex<Heard>>) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let recorder = Recorder { stream, heard: Arc::clone(heard) };
    let mut clear = Session::new(recorder, state, None);
    if let Some(greeting) = locked(&state.behaviour).greeting.clone() {
        return clear.say(&greeting);
    }
    clear.say("220 upstream.test ESMTP, scripted")?;
    if let Next::Over = clear.run()? {
        return Ok(());
    }
    let Behaviour { shows, starttls, .. } = locked(&state.behaviour).clone();
    match starttls {
        StartTls::HalfClosed => clear.stream.stream.shutdown(Shutdown::Write)?,
        StartTls::Garbage => clear.say("not a word of TLS, says the test")?,
        _ => {}
    }
    if matches!(starttls, StartTls::Stalled | StartTls::HalfClosed | StartTls::Garbage) {
        while clear.read_more()? {}
        return Ok(());
    }
    let tls = rustls::ServerConnection::new(Arc::clone(&state.configs[&shows])).map_err(io::Error::other)?;
    let mut stream = rustls::StreamOwned::new(tls, clear.stream);
    while stream.conn.is_handshaking() {
        stream.conn.complete_io(&mut stream.sock)?;
    }
    {
        let mut heard = locked(heard);
        heard.resumed = stream.conn.handshake_kind() == Some(rustls::HandshakeKind::Resumed);
        heard.key_exchange = stream.conn.negotiated_key_exchange_group().map(|group| group.name());
    }
    Session::new(stream, state, Some(heard)).run().map(|_| ())
}

/// One phase, in clear or inside TLS.
struct Session<'a, S> {
    stream: S,
    state: &'a State,
    /// Where to note what comes inside TLS; `None` in clear.
    inside: Option<&'a Arc<Mutex<Heard>>>,
    buffer: Vec<u8>,
    trusted: bool,
    recipients: usize,
    /// MAIL was refused, so nothing behind it makes sense.
    refused: bool,
}

impl<'a, S: Read + Write> Session<'a, S> {
    fn new(stream: S, state: &'a State, inside: Option<&'a Arc<Mutex<Heard>>>) -> Self {
        Self { stream, state, inside, buffer: Vec::new(), trusted: false, recipients: 0, refused: false }
    }

    fn run(&mut self) -> io::Result<Next> {
        while let Some(line) = self.take_until(b"\r\n")? {
            let line = String::from_utf8_lossy(&line).into_owned();
            let (verb, rest) = line.split_once(' ').unwrap_or((line.as_str(), ""));
            let behaviour = locked(&self.state.behaviour).clone();
            match verb.to_ascii_uppercase().as_str() {
                "EHLO" => match &behaviour.ehlo {
                    Some(reply) => self.say(reply)?,
                    None => self.say(&self.extensions(&behaviour))?,
                },
                "HELO" | "NOOP" => self.say("250 2.0.0 Ok")?,
                "RSET" => {
                    self.recipients = 0;
                    self.say("250 2.0.0 Ok")?;
                }
                "STARTTLS" if self.inside.is_none() => match behaviour.starttls {
                    StartTls::Refused => self.say("454 4.7.0 TLS not available just now")?,
                    StartTls::Stripped => self.say("502 5.5.1 no such command")?,
                    StartTls::Offered | StartTls::Stalled | StartTls::HalfClosed | StartTls::Garbage => {
                        self.say("220 2.0.0 ready")?;
                        return Ok(Next::StartTls);
                    }
                    StartTls::Injected => {
                        self.say("220 2.0.0 ready\r\n250-upstream.test\r\n250 AUTH PLAIN LOGIN")?;
                        return Ok(Next::StartTls);
                    }
                },
                "AUTH" => {
                    locked(&self.state.auth_attempts).push(Instant::now());
                    self.authenticate(rest, &behaviour)?;
                }
                "MAIL" if !self.trusted && !behaviour.open => {
                    self.say("530 5.7.0 Authentication required")?
                }
                "MAIL" if behaviour.ending == Ending::DropBeforeAnyReply => {
                    return self.take_flight().map(|()| Next::Over);
                }
                "MAIL" => {
                    self.recipients = 0;
                    let address = between(rest, '<', '>').to_ascii_lowercase();
                    let reply = behaviour.senders.get(&address);
                    self.refused = reply.is_some();
                    self.say(reply.map_or("250 2.1.0 Ok", String::as_str))?;
                }
                "RCPT" if self.refused => self.say("503 5.5.1 no sender, says the test")?,
                "RCPT" => {
                    let address = between(rest, '<', '>').to_ascii_lowercase();
                    match behaviour.recipients.get(&address) {
                        Some(reply) => self.say(reply)?,
                        None if self.recipients >= behaviour.most_recipients => {
                            self.say("452 4.5.3 too many recipients, says the test")?;
                        }
                        None => {
                            self.recipients += 1;
                            self.say("250 2.1.5 Ok")?;
                        }
                    }
                }
                "DATA" if self.recipients == 0 => self.say("554 5.5.1 no valid recipients")?,
                "DATA" => {
                    self.say("354 go ahead")?;
                    let message = self.take_lines()?;
                    if !self.judge_message(message)? {
                        return Ok(Next::Over);
                    }
                }
                "BDAT" => {
                    let chunk = self.take_chunk(rest)?;
                    if self.recipients == 0 {
                        self.say("503 5.5.1 no valid recipients")?;
                    } else if !self.judge_message(chunk)? {
                        return Ok(Next::Over);
                    }
                }
                "QUIT" => {
                    self.say("221 2.0.0 bye")?;
                    return Ok(Next::Over);
                }
                _ => self.say("502 5.5.2 not in the script")?,
            }
        }
        Ok(Next::Over)
    }

    fn extensions(&self, behaviour: &Behaviour) -> String {
        let mut lines = vec!["upstream.test".to_owned(), "PIPELINING".to_owned()];
        // With STARTTLS stripped AUTH is offered in clear: the bait.
        if self.inside.is_some() || behaviour.starttls == StartTls::Stripped {
            lines.push(format!("AUTH {}", behaviour.mechanisms));
        } else {
            lines.push("STARTTLS".to_owned());
        }
        let keywords = behaviour.keywords_in_clear.as_ref().filter(|_| self.inside.is_none());
        lines.extend(keywords.unwrap_or(&behaviour.keywords).iter().map(ToString::to_string));
        for (offered, keyword) in [(behaviour.dsn, "DSN"), (behaviour.chunking, "CHUNKING")] {
            lines.extend(offered.then(|| keyword.to_owned()));
        }
        let last = lines.len() - 1;
        let lines: Vec<String> = lines
            .iter()
            .enumerate()
            .map(|(at, line)| format!("250{}{line}", if at == last { ' ' } else { '-' }))
            .collect();
        lines.join("\r\n")
    }

    fn authenticate(&mut self, rest: &str, behaviour: &Behaviour) -> io::Result<()> {
        if let Some(reply) = &behaviour.login {
            return self.say(reply);
        }
        let (mechanism, initial) = rest.split_once(' ').unwrap_or((rest, ""));
        let given = match mechanism.to_ascii_uppercase().as_str() {
            "XOAUTH2" | "OAUTHBEARER" => {
                let said = decoded(initial);
                let bearer = format!("auth=Bearer {}\x01\x01", behaviour.password);
                let user = format!("{}{USER}", if mechanism == "XOAUTH2" { "user=" } else { "n,a=" });
                let said = String::from_utf8_lossy(&said).into_owned();
                if said.starts_with(&user) && said.ends_with(&bearer) {
                    (USER.as_bytes().to_vec(), behaviour.password.clone().into_bytes())
                } else {
                    // It wants an answer before it says no.
                    self.ask("334 eyJzdGF0dXMiOiI0MDEifQ==")?;
                    (Vec::new(), Vec::new())
                }
            }
            "PLAIN" => {
                let answer = if initial.is_empty() { self.ask("334 ")? } else { decoded(initial) };
                let mut parts = answer.split(|byte| *byte == 0).skip(1).map(<[u8]>::to_vec);
                (parts.next().unwrap_or_default(), parts.next().unwrap_or_default())
            }
            "LOGIN" => {
                let user = if initial.is_empty() { self.ask("334 VXNlcm5hbWU6")? } else { decoded(initial) };
                (user, self.ask("334 UGFzc3dvcmQ6")?)
            }
            // These it can't check, and says no.
            "CRAM-MD5" => {
                self.ask(&format!("334 {}", BASE64.encode("<4711@upstream.test>")))?;
                (Vec::new(), Vec::new())
            }
            "SCRAM-SHA-256" => {
                let first = String::from_utf8_lossy(&decoded(initial)).into_owned();
                let nonce = first.rsplit_once("r=").map_or("", |(_, nonce)| nonce);
                self.ask(&format!("334 {}", BASE64.encode(format!("r={nonce}4711,s=c2FsdA==,i=4096"))))?;
                (Vec::new(), Vec::new())
            }
            _ => return self.say("504 5.5.4 not in the script"),
        };
        self.trusted = given.0 == USER.as_bytes() && given.1 == behaviour.password.as_bytes();
        if self.trusted && behaviour.login_lost {
            Err(io::ErrorKind::ConnectionAborted.into())
        } else if self.trusted {
            self.say("235 2.7.0 Accepted")
        } else {
            self.say("535 5.7.8 Username and password not accepted, says the test")
        }
    }

    fn ask(&mut self, challenge: &str) -> io::Result<Vec<u8>> {
        self.say(challenge)?;
        let line = self.take_until(b"\r\n")?.ok_or(io::ErrorKind::UnexpectedEof)?;
        Ok(decoded(&String::from_utf8_lossy(&line)))
    }

    /// Takes a message behind DATA to its end.
    fn take_lines(&mut self) -> io::Result<Vec<u8>> {
        let mut message = Vec::new();
        loop {
            let line = self.take_until(b"\r\n")?.ok_or(io::ErrorKind::UnexpectedEof)?;
            if line == b"." {
                return Ok(message);
            }
            message.extend_from_slice(line.strip_prefix(b".").unwrap_or(&line));
            message.extend_from_slice(b"\r\n");
        }
    }

    /// Takes a message that is one chunk: `19 LAST`.
    fn take_chunk(&mut self, arguments: &str) -> io::Result<Vec<u8>> {
        let size = arguments.split(' ').next().and_then(|size| size.parse().ok());
        let size: usize = size.ok_or(io::ErrorKind::InvalidData)?;
        while self.buffer.len() < size {
            if !self.read_more()? {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        let rest = self.buffer.split_off(size);
        Ok(std::mem::replace(&mut self.buffer, rest))
    }

    /// Takes what follows MAIL up to the end of the chunk, and says nothing to any of it.
    fn take_flight(&mut self) -> io::Result<()> {
        loop {
            let line = self.take_until(b"\r\n")?.ok_or(io::ErrorKind::UnexpectedEof)?;
            let line = String::from_utf8_lossy(&line).into_owned();
            match line.split_once(' ') {
                Some(("BDAT", arguments)) => {
                    let chunk = self.take_chunk(arguments)?;
                    self.note_message(chunk);
                    return Ok(());
                }
                _ => self.recipients += 1,
            }
        }
    }

    fn note_message(&self, message: Vec<u8>) {
        let token = token_of(&message);
        locked(&self.state.messages).push(message);
        locked(&self.state.arrivals).push(Arrival {
            at: Instant::now(),
            recipients: self.recipients,
            followed: !self.buffer.is_empty(),
        });
        // What a test waits for comes last.
        *locked(&self.state.ledger).entry(token).or_default() += 1;
    }

    /// Says what becomes of a whole message; false when the conversation ends with it.
    fn judge_message(&mut self, message: Vec<u8>) -> io::Result<bool> {
        let refusal = locked(&self.state.behaviour).refusal.clone();
        if let Some(reply) = refusal {
            sleep(locked(&self.state.behaviour).final_delay);
            self.say(&reply)?;
            return Ok(!reply.starts_with("421"));
        }
        self.note_message(message);
        let behaviour = locked(&self.state.behaviour).clone();
        sleep(behaviour.final_delay);
        if behaviour.ending != Ending::DropBeforeReply {
            self.say("250 2.0.0 Ok: taken by the scripted upstream")?;
        }
        Ok(behaviour.ending == Ending::Reply)
    }

    fn say(&mut self, reply: &str) -> io::Result<()> {
        // One write, so that what is glued together travels in one segment.
        self.stream.write_all(format!("{reply}\r\n").as_bytes())?;
        self.stream.flush()
    }

    /// The bytes before `end`, which is taken, too; `None` when the peer has left.
    fn take_until(&mut self, end: &[u8]) -> io::Result<Option<Vec<u8>>> {
        loop {
            if let Some(at) = memchr::memmem::find(&self.buffer, end) {
                let rest = self.buffer.split_off(at + end.len());
                let mut line = std::mem::replace(&mut self.buffer, rest);
                line.truncate(at);
                return Ok(Some(line));
            }
            if !self.read_more()? {
                return Ok(None);
            }
        }
    }

    /// Reads what comes next; false when the peer has left.
    fn read_more(&mut self) -> io::Result<bool> {
        let mut chunk = [0; 16 * 1024];
        let count = self.stream.read(&mut chunk)?;
        if let Some(heard) = self.inside {
            locked(heard).inside.extend_from_slice(&chunk[..count]);
        }
        self.buffer.extend_from_slice(&chunk[..count]);
        Ok(count > 0)
    }
}

/// What a message is known by: its X-Token field, else its Message-ID, else its subject.
fn token_of(message: &[u8]) -> String {
    let fields = header_fields(message);
    let value = |name: &str| {
        let field = fields.iter().find(|field| field_name(field) == name)?;
        Some(field.split_once(':')?.1.trim().to_owned())
    };
    value("x-token")
        .or_else(|| value("message-id"))
        .or_else(|| value("subject"))
        .unwrap_or_else(|| "without a name".to_owned())
}

fn between(text: &str, open: char, close: char) -> &str {
    let from = text.find(open).map_or(0, |at| at + 1);
    let to = text[from..].find(close).map_or(text.len(), |at| from + at);
    &text[from..to]
}

fn decoded(text: &str) -> Vec<u8> {
    BASE64.decode(text.trim()).unwrap_or_default()
}
