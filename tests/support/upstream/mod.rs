//! A scripted upstream: an SMTP server that does one thing wrong on demand, and remembers every
//! byte it was sent, before TLS and inside it.
//!
//! It is strict where the tests need a judge: a message counts when its final CRLF.CRLF came.
//! What it does wrong can be changed while it runs, and applies from the next step on.

use std::collections::HashMap;
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{JoinHandle, spawn};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::certs::{Authority, Identity};
use super::ports;
use super::service::Service;

mod session;

/// A name of its, besides localhost, for those who have a name server of their own.
pub const NAME: &str = "smtp.upstream.test";
/// The login it asks for.
pub const USER: &str = "postmaster@upstream.test";

/// The certificate it shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Shows {
    /// The right one: for localhost and 127.0.0.1, by the CA in [`Upstream::ca_file`].
    Good,
    /// One that ended years ago.
    Expired,
    /// One for another host's name.
    WrongName,
    /// One by an authority that nobody knows.
    UnknownAuthority,
    /// The right one, and it asks for the client's, by the same CA.
    GoodAndAsks,
}

/// What it makes of STARTTLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartTls {
    /// As it should be.
    Offered,
    /// Not in the answer to EHLO: as if somebody on the way had taken it out. AUTH is offered.
    Stripped,
    /// Offered, then answered 454.
    Refused,
    /// Plaintext replies glued to the 220, in one segment, for the client to take as said in TLS.
    Injected,
    /// Offered, and then not a word of a handshake.
    Stalled,
    /// Offered; behind the 220 it has nothing more to say, and listens.
    HalfClosed,
    /// Offered, and then what is no handshake.
    Garbage,
}

/// How it ends a message's transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// With a 250.
    Reply,
    /// It has the message, in one flight with its envelope (CHUNKING), and hangs up without a word to either.
    DropBeforeAnyReply,
    /// It has the message and hangs up without a word.
    DropBeforeReply,
    /// It says 250 and hangs up.
    DropAfterReply,
}

/// All that can be set.
#[derive(Clone)]
pub struct Behaviour {
    pub shows: Shows,
    pub starttls: StartTls,
    /// The password it takes.
    pub password: String,
    /// Whether anybody may send without a login.
    pub open: bool,
    /// What it says to EHLO instead of what it offers.
    pub ehlo: Option<String>,
    /// What stands after AUTH in the answer to EHLO.
    pub mechanisms: &'static str,
    /// What else it offers, behind PIPELINING.
    pub keywords: Vec<&'static str>,
    /// The same in clear, if it is something else there.
    pub keywords_in_clear: Option<Vec<&'static str>>,
    /// Whether it offers DSN.
    pub dsn: bool,
    /// Whether it offers CHUNKING.
    pub chunking: bool,
    /// What it says first instead of its greeting, and hangs up.
    pub greeting: Option<String>,
    /// What it says to a login, whatever the password.
    pub login: Option<String>,
    /// It hangs up in the place of its 235.
    pub login_lost: bool,
    /// Replies to MAIL by address; 250 for all others.
    pub senders: HashMap<String, String>,
    /// Replies to RCPT by address; 250 for all others.
    pub recipients: HashMap<String, String>,
    /// So many recipients are accepted in one transaction; 452 4.5.3 for the rest.
    pub most_recipients: usize,
    /// What it says behind the dot instead of taking the message.
    pub refusal: Option<String>,
    /// How long it thinks before the final reply.
    pub final_delay: Duration,
    pub ending: Ending,
}

/// What was received on one connection.
#[derive(Default, Clone)]
pub struct Heard {
    /// Every byte from the socket: what was said in clear, then TLS records.
    pub wire: Vec<u8>,
    /// What came inside TLS, decrypted.
    pub inside: Vec<u8>,
    /// Where it came from.
    pub from: Option<std::net::IpAddr>,
    /// Whether its TLS session was one of before.
    pub resumed: bool,
    /// How the keys of TLS were agreed upon.
    pub key_exchange: Option<rustls::NamedGroup>,
}

/// When a whole message came, and for how many recipients.
#[derive(Clone, Copy, Debug)]
pub struct Arrival {
    pub at: Instant,
    pub recipients: usize,
    /// Whether more was said behind it before it was answered.
    pub followed: bool,
}

/// The server; it ends when dropped.
pub struct Upstream {
    pub port: u16,
    dir: TempDir,
    state: Arc<State>,
    accept: Option<JoinHandle<()>>,
}

struct State {
    behaviour: Mutex<Behaviour>,
    configs: HashMap<Shows, Arc<rustls::ServerConfig>>,
    heard: Mutex<Vec<Arc<Mutex<Heard>>>>,
    ledger: Mutex<HashMap<String, usize>>,
    messages: Mutex<Vec<Vec<u8>>>,
    arrivals: Mutex<Vec<Arrival>>,
    auth_attempts: Mutex<Vec<Instant>>,
    open: Mutex<HashMap<usize, TcpStream>>,
    running: AtomicBool,
}

impl Upstream {
    /// Starts one that takes mail as it should, for [`USER`] with this password.
    pub fn start(password: &str) -> Self {
        let mut upstream = Self::stopped(password);
        upstream.up();
        upstream
    }

    /// The same, not listening yet; its port is reserved.
    pub fn stopped(password: &str) -> Self {
        let dir = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
        let known = Authority::new("test CA of the scripted upstream");
        let unknown = Authority::new("test CA that nobody knows");
        known.write_to(&dir.path().join("ca.pem"));
        let here = ["localhost", "127.0.0.1", NAME];
        let config = |identity: Identity| Arc::new(identity.server_config());
        let configs = HashMap::from([
            (Shows::Good, config(known.identity(&here))),
            (Shows::GoodAndAsks, Arc::new(known.identity(&here).server_config_that_asks(&known))),
            (Shows::Expired, config(known.expired_identity(&here))),
            (Shows::WrongName, config(known.identity(&["other.example"]))),
            (Shows::UnknownAuthority, config(unknown.identity(&here))),
        ]);
        let client = known.identity(&["client.test"]);
        for (name, pem) in [("client.pem", &client.cert_pem), ("client.key", &client.key_pem)] {
            std::fs::write(dir.path().join(name), pem).expect("the client's identity can be written");
        }
        let behaviour = Behaviour {
            shows: Shows::Good,
            starttls: StartTls::Offered,
            password: password.to_owned(),
            open: false,
            ehlo: None,
            mechanisms: "PLAIN LOGIN",
            keywords: vec!["8BITMIME", "ENHANCEDSTATUSCODES", "SIZE 52428800"],
            keywords_in_clear: None,
            dsn: false,
            chunking: false,
            greeting: None,
            login: None,
            login_lost: false,
            senders: HashMap::new(),
            recipients: HashMap::new(),
            most_recipients: usize::MAX,
            refusal: None,
            final_delay: Duration::ZERO,
            ending: Ending::Reply,
        };
        let state = State {
            behaviour: Mutex::new(behaviour),
            configs,
            heard: Mutex::default(),
            ledger: Mutex::default(),
            messages: Mutex::default(),
            arrivals: Mutex::default(),
            auth_attempts: Mutex::default(),
            open: Mutex::default(),
            running: AtomicBool::new(false),
        };
        Self { port: ports::free(), dir, state: Arc::new(state), accept: None }
    }

    /// Listens, with what it knew before.
    pub fn up(&mut self) {
        if self.accept.is_some() {
            return;
        }
        // Between fork and exec a child that another test starts holds what probed the port.
        let bind = || TcpListener::bind((Ipv4Addr::LOCALHOST, self.port)).ok();
        let listener = crate::support::wait::until("its own port is free", bind);
        self.state.running.store(true, Ordering::SeqCst);
        let state = Arc::clone(&self.state);
        self.accept = Some(spawn(move || accept(&listener, &state)));
    }

    /// Stops listening and cuts every connection.
    pub fn down(&mut self) {
        let Some(accept) = self.accept.take() else {
            return;
        };
        self.state.running.store(false, Ordering::SeqCst);
        // Wakes the accept loop, which then sees that it is over.
        let _ = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port));
        let _ = accept.join();
        for stream in locked(&self.state.open).values() {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// Changes what it does from now on.
    pub fn set(&self, change: impl FnOnce(&mut Behaviour)) {
        change(&mut locked(&self.state.behaviour));
    }

    /// The authority behind its good certificate.
    pub fn ca_file(&self) -> PathBuf {
        self.dir.path().join("ca.pem")
    }

    /// A file of the client's identity that it takes: `client.pem` or `client.key`.
    pub fn client_file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The relay's keys for this upstream, by name, so that the name counts.
    pub fn upstream_of(&self, service: Service, password: &str) -> Service {
        service
            .set("smtp_relay_server", "localhost")
            .set("smtp_relay_port", self.port)
            .set("smtp_relay_username", USER)
            .set("smtp_relay_password", password)
            .set("smtp_relay_tls_ca", self.ca_file().display())
    }

    /// What was received, one item a connection, oldest first.
    pub fn heard(&self) -> Vec<Heard> {
        locked(&self.state.heard).iter().map(|heard| locked(heard).clone()).collect()
    }

    /// How often each token arrived: whole messages, whether a reply was given or not.
    pub fn ledger(&self) -> HashMap<String, usize> {
        locked(&self.state.ledger).clone()
    }

    /// How many different tokens have arrived.
    pub fn arrived(&self) -> usize {
        locked(&self.state.ledger).len()
    }

    /// The messages themselves, in the order of their arrival, dots unstuffed.
    pub fn messages(&self) -> Vec<Vec<u8>> {
        locked(&self.state.messages).clone()
    }

    /// When messages came, oldest first.
    pub fn arrivals(&self) -> Vec<Arrival> {
        locked(&self.state.arrivals).clone()
    }

    /// How many AUTH commands it has had.
    pub fn auth_attempts(&self) -> usize {
        locked(&self.state.auth_attempts).len()
    }

    /// When they came.
    pub fn auth_times(&self) -> Vec<Instant> {
        locked(&self.state.auth_attempts).clone()
    }

    /// How many connections are open now.
    pub fn connections(&self) -> usize {
        locked(&self.state.open).len()
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.down();
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no session panics with a lock")
}

fn accept(listener: &TcpListener, state: &Arc<State>) {
    loop {
        let Ok((stream, from)) = listener.accept() else {
            return;
        };
        if !state.running.load(Ordering::SeqCst) {
            return;
        }
        let heard = Arc::new(Mutex::new(Heard { from: Some(from.ip()), ..Heard::default() }));
        let key = {
            let mut all = locked(&state.heard);
            all.push(Arc::clone(&heard));
            all.len()
        };
        let Ok(handle) = stream.try_clone() else {
            return;
        };
        locked(&state.open).insert(key, handle);
        let state = Arc::clone(state);
        spawn(move || {
            // A peer that leaves is none of the server's business.
            let _ = session::converse(stream, &state, &heard);
            if let Some(stream) = locked(&state.open).remove(&key) {
                let _ = stream.shutdown(Shutdown::Both);
            }
        });
    }
}
