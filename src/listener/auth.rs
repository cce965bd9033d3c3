//! SASL at the listener (RFC 4954): exchanges, and whether a password is right.
//!
//! No I/O. Comparisons take the same time whoever is asked for and wherever the difference lies, and
//! every failure is the same reply, so nothing tells whether a user exists.

use secrecy::{ExposeSecret as _, SecretString};

use crate::smtp::{
    reply::Reply,
    sasl,
    scram::{Binding, ClientFirst, Server},
};

/// Who may log in.
#[derive(Debug, Default)]
pub struct Credentials {
    /// Each login with the passwords that are right: its own, and old ones that still are.
    logins: Vec<(String, Vec<SecretString>)>,
    /// The most that any of them has. As many are tried for each, so that the time tells nothing.
    tries: usize,
}

impl Credentials {
    /// From user names and passwords.
    pub fn new(users: Vec<(String, SecretString)>) -> Self {
        let logins = users.into_iter().map(|(name, password)| (name, vec![password])).collect();
        Self { logins, tries: 1 }
    }

    /// The same, with further passwords of some of them.
    #[must_use]
    pub fn or(mut self, others: Vec<(String, SecretString)>) -> Self {
        for (name, password) in others {
            if let Some((_, passwords)) = self.logins.iter_mut().find(|(login, _)| *login == name) {
                passwords.push(password);
                self.tries = self.tries.max(passwords.len());
            }
        }
        self
    }

    /// Whether anybody can log in at all.
    pub fn is_empty(&self) -> bool {
        self.logins.is_empty()
    }

    /// Who this is, if that is the password, for a way in that shows it openly.
    pub fn log_in(&self, username: &str, password: &str) -> Option<Authenticated> {
        self.verify(username, |known| sasl::same_secret(password, known))
    }

    /// Tries `check` on the passwords of `username`, or on some nobody has, so that it takes as long.
    fn verify(&self, username: &str, check: impl Fn(&str) -> bool) -> Option<Authenticated> {
        self.prove(username, |password| check(password).then_some(())).map(|(user, ())| user)
    }

    /// The same where a right password also leads to something.
    fn prove<T>(&self, username: &str, check: impl Fn(&str) -> Option<T>) -> Option<(Authenticated, T)> {
        let login = self.logins.iter().find(|(name, _)| name == username);
        let passwords = login.map_or(&[][..], |(_, passwords)| passwords);
        let mut right = None;
        for turn in 0..self.tries {
            let password = passwords.get(turn);
            let proof = check(password.map_or("", |password| password.expose_secret()));
            right = right.or(proof.filter(|_| password.is_some()));
        }
        right.map(|proof| (Authenticated { user: username.to_owned() }, proof))
    }
}

/// The proof that a client knows a password. Only this module makes one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Authenticated {
    user: String,
}

impl Authenticated {
    /// Who logged in.
    pub fn user(&self) -> &str {
        &self.user
    }
}

/// What an exchange needs to know of the connection that it happens on.
#[derive(Clone, Copy, Debug)]
pub struct Channel {
    /// A password may be shown here.
    pub private: bool,
    /// What only the two ends of this TLS connection know.
    pub binding: Option<[u8; 32]>,
}

/// An exchange under way, named for what the client owes.
#[derive(Debug)]
pub enum Exchange {
    /// PLAIN: its only message.
    Plain,
    /// LOGIN: the user name.
    LoginName,
    /// LOGIN: the password.
    LoginPassword(String),
    /// CRAM-MD5: the response to this challenge.
    CramMd5(String),
    /// SCRAM-SHA-256: its first message. With our share of the nonce, and the channel binding that
    /// this connection has, whether or not it is `bound` by the mechanism's name.
    ScramFirst {
        /// SCRAM-SHA-256-PLUS.
        bound: bool,
        /// Our share of the nonce.
        nonce: String,
        /// The connection's channel binding.
        binding: Option<[u8; 32]>,
    },
    /// SCRAM-SHA-256: its proof.
    ScramProof {
        /// Our end.
        server: Server,
        /// Who it says it is.
        user: String,
        /// It wants to act for somebody else.
        foreign: bool,
    },
    /// SCRAM-SHA-256: its consent to our proof, which is in that message.
    ScramEnd(Authenticated, String),
}

/// What comes of a client's message.
#[derive(Debug)]
pub enum Progress {
    /// The next challenge.
    Challenge(Exchange, Reply),
    /// The right password.
    Success(Authenticated),
    /// Not the right password.
    Wrong,
    /// Not an exchange: the reply says why.
    Refused(Reply),
}

impl Exchange {
    /// Begins with `AUTH mechanism [initial]`. The challenge is random and used only once.
    pub fn begin(
        mechanism: &str,
        initial: Option<&str>,
        channel: Channel,
        challenge: impl FnOnce() -> String,
        credentials: &Credentials,
    ) -> Progress {
        let first = match mechanism {
            _ if credentials.is_empty() => return Progress::Refused(Reply::unknown_mechanism()),
            "PLAIN" | "LOGIN" if !channel.private => return Progress::Refused(Reply::auth_needs_tls()),
            "PLAIN" => Self::Plain,
            "LOGIN" => Self::LoginName,
            "CRAM-MD5" => Self::CramMd5(challenge()),
            "SCRAM-SHA-256" | "SCRAM-SHA-256-PLUS" => {
                let bound = mechanism.ends_with("-PLUS");
                if bound && channel.binding.is_none() {
                    return Progress::Refused(Reply::unknown_mechanism());
                }
                // Unique, printable and without a comma: as RFC 5802 §5.1 wants a nonce.
                Self::ScramFirst { bound, nonce: challenge(), binding: channel.binding }
            }
            _ => return Progress::Refused(Reply::unknown_mechanism()),
        };
        match (initial, &first) {
            // RFC 4954 §4: no initial response where the server speaks first.
            (Some(_), Self::CramMd5(_)) => {
                Progress::Refused(Reply::bad_argument("CRAM-MD5 takes no initial response"))
            }
            (Some(initial), _) => first.respond(initial, credentials),
            (None, _) => first.challenge(),
        }
    }

    /// Goes on with one line of the client.
    pub fn respond(self, line: &str, credentials: &Credentials) -> Progress {
        if line == "*" {
            return Progress::Refused(Reply::auth_cancelled());
        }
        let Some(message) = sasl::decode(line) else {
            return Progress::Refused(Reply::bad_base64());
        };
        let verified = match self {
            Self::Plain => match sasl::parse_plain(&message) {
                // RFC 4616 §2: nobody here may act for another, and is told no more than of a wrong password.
                Some((authzid, user, password)) => {
                    credentials.log_in(user, password).filter(|_| authzid.is_empty() || authzid == user)
                }
                None => return Progress::Refused(Reply::bad_base64()),
            },
            Self::LoginName => match String::from_utf8(message) {
                Ok(user) => return Self::LoginPassword(user).challenge(),
                Err(_) => return Progress::Refused(Reply::bad_base64()),
            },
            Self::LoginPassword(user) => match std::str::from_utf8(&message) {
                Ok(password) => credentials.log_in(&user, password),
                Err(_) => return Progress::Refused(Reply::bad_base64()),
            },
            Self::CramMd5(challenge) => match sasl::parse_cram_md5(&message) {
                Some((user, digest)) => credentials
                    .verify(user, |right| sasl::verify_cram_md5(right, challenge.as_bytes(), digest)),
                None => return Progress::Refused(Reply::bad_base64()),
            },
            Self::ScramFirst { bound, nonce, binding } => {
                return scram_first(&message, bound, &nonce, binding);
            }
            Self::ScramProof { server, user, foreign } => {
                let proof = server.proof(&message);
                let proven = proof.and_then(|proof| credentials.prove(&user, |right| proof.verify(right)));
                match proven.filter(|_| !foreign) {
                    // RFC 4954 §4: what is said with a success goes in a challenge of its own.
                    Some((user, said)) => return Self::ScramEnd(user, said).challenge(),
                    None => None,
                }
            }
            Self::ScramEnd(user, _) if message.is_empty() => Some(user),
            Self::ScramEnd(..) => return Progress::Refused(Reply::bad_base64()),
        };
        verified.map_or(Progress::Wrong, Progress::Success)
    }

    fn challenge(self) -> Progress {
        let prompt = match &self {
            Self::Plain => "",
            Self::LoginName => "Username:",
            Self::LoginPassword(_) => "Password:",
            Self::CramMd5(challenge) => challenge,
            Self::ScramFirst { .. } => "",
            Self::ScramProof { server, .. } => server.first(),
            Self::ScramEnd(_, said) => said,
        };
        let reply = Reply::challenge(sasl::encode(prompt));
        Progress::Challenge(self, reply)
    }
}

/// SCRAM: who the client says it is, and what it says about channel binding.
fn scram_first(message: &[u8], bound: bool, nonce: &str, binding: Option<[u8; 32]>) -> Progress {
    let Some(first) = ClientFirst::parse(message) else { return Progress::Refused(Reply::bad_base64()) };
    match (&first.binding, bound) {
        (Binding::Exporter, true) | (Binding::Unsupported, false) => {}
        // RFC 5802 §6: it can bind and was not told that we can: somebody took that out on the way.
        (Binding::NotOffered, false) if binding.is_some() => return Progress::Wrong,
        (Binding::NotOffered, false) => {}
        _ => return Progress::Refused(Reply::bad_argument("this channel binding is not offered here")),
    }
    let foreign = first.authzid.as_ref().is_some_and(|authzid| *authzid != first.username);
    let server = Server::new(&first, nonce, binding.as_ref().map(<[u8; 32]>::as_slice));
    Exchange::ScramProof { server, user: first.username, foreign }.challenge()
}
