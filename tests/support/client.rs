//! A small SMTP client that pipelines, for many messages; the lines it sends are all its own.

use std::io::{self, BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread::{JoinHandle, spawn};
use std::time::Duration;

/// A connection from an address of its own: all of 127/8 is loopback.
pub fn connect_from(source: Ipv4Addr, port: u16) -> io::Result<TcpStream> {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
    socket.bind(&SocketAddr::from((source, 0)).into())?;
    socket.connect_timeout(&SocketAddr::from((Ipv4Addr::LOCALHOST, port)).into(), Duration::from_secs(5))?;
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    stream.set_write_timeout(Some(Duration::from_secs(10)))?;
    Ok(stream)
}

/// One session.
pub struct Client {
    stream: BufReader<TcpStream>,
}

impl Client {
    /// Connects to loopback and says EHLO.
    pub fn connect(port: u16) -> io::Result<Self> {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        let mut client = Self { stream: BufReader::new(stream) };
        client.expect('2')?;
        client.write(b"EHLO client.test\r\n")?;
        client.expect('2')?;
        Ok(client)
    }

    /// Sends one message; gives the final reply, which is 250 with the queue id.
    ///
    /// `content` has CRLF line ends and no line that starts with a dot.
    pub fn send(&mut self, sender: &str, recipients: &[&str], content: &str) -> io::Result<String> {
        let recipients: Vec<String> = recipients.iter().map(|recipient| format!("<{recipient}>")).collect();
        self.send_as(&format!("<{sender}>"), &recipients, content)
    }

    /// The same, with what follows the colons of MAIL and RCPT as it is to be said.
    pub fn send_as(&mut self, mail: &str, rcpts: &[impl AsRef<str>], content: &str) -> io::Result<String> {
        let mut commands = format!("MAIL FROM:{mail}\r\n");
        for rcpt in rcpts {
            commands.push_str(&format!("RCPT TO:{}\r\n", rcpt.as_ref()));
        }
        commands.push_str("DATA\r\n");
        self.write(commands.as_bytes())?;
        for _ in 0..=rcpts.len() {
            self.expect('2')?;
        }
        self.expect('3')?;
        self.write(format!("{content}.\r\n").as_bytes())?;
        let reply = self.expect('2')?;
        if !reply.starts_with("250 2.0.0 queued as ") {
            return Err(io::Error::other(format!("no queue id in the final reply: {reply}")));
        }
        Ok(reply)
    }

    /// Sends a message that carries `token`, by which the scripted upstream knows it again.
    pub fn send_token(&mut self, token: &str) -> io::Result<String> {
        self.send("sender@example.test", &["someone@example.test"], &message_with(token))
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.get_mut().write_all(bytes)
    }

    fn expect(&mut self, class: char) -> io::Result<String> {
        loop {
            let mut line = String::new();
            if self.stream.read_line(&mut line)? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            if line.as_bytes().get(3) == Some(&b'-') {
                continue;
            }
            if !line.starts_with(class) {
                return Err(io::Error::other(format!("the relay said {}", line.trim_end())));
            }
            return Ok(line.trim_end().to_owned());
        }
    }
}

/// A small message with `token` in its header.
pub fn message_with(token: &str) -> String {
    format!(
        "From: sender@example.test\r\nTo: someone@example.test\r\nSubject: {token}\r\n\
         Message-ID: <{token}@client.test>\r\nX-Token: {token}\r\n\r\nThe body of {token}.\r\n"
    )
}

/// A message of at least this size, of which each line is its own, so that a part of another would be noticed.
pub fn letter(token: &str, size: usize) -> String {
    let mut text = message_with(token);
    let mut line = 0;
    while text.len() < size {
        line += 1;
        text.push_str(&format!("{line} of {token} {}\r\n", "=".repeat(800.min(size - text.len()))));
    }
    text
}

/// Sessions that send as fast as the relay takes it, until it breaks off or all is sent.
pub struct Load {
    acknowledged: Arc<Mutex<Vec<String>>>,
    sessions: Vec<JoinHandle<()>>,
}

impl Load {
    /// Starts `sessions` that send `each` messages, with tokens that begin with `prefix`.
    pub fn start(port: u16, prefix: &str, sessions: usize, each: usize) -> Self {
        let acknowledged = Arc::new(Mutex::new(Vec::new()));
        let sessions = (0..sessions)
            .map(|session| {
                let (acknowledged, prefix) = (Arc::clone(&acknowledged), prefix.to_owned());
                spawn(move || {
                    let Ok(mut client) = Client::connect(port) else {
                        return;
                    };
                    for number in 0..each {
                        let token = format!("{prefix}-{session}-{number}");
                        // A session that ends early is what these tests are about: what counts
                        // is what was acknowledged before.
                        let Ok(_) = client.send_token(&token) else {
                            return;
                        };
                        acknowledged.lock().expect("no poison").push(token);
                    }
                })
            })
            .collect();
        Self { acknowledged, sessions }
    }

    /// How many messages have got their 250 by now.
    pub fn acknowledged(&self) -> usize {
        self.acknowledged.lock().expect("no poison").len()
    }

    /// Whether all sessions have ended.
    pub fn ended(&self) -> bool {
        self.sessions.iter().all(JoinHandle::is_finished)
    }

    /// Waits for the sessions; gives the tokens of all acknowledged messages.
    pub fn finish(self) -> Vec<String> {
        for session in self.sessions {
            session.join().expect("a load session doesn't panic");
        }
        std::mem::take(&mut *self.acknowledged.lock().expect("no poison"))
    }
}
