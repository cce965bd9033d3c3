//! SASL at the listener (RFC 4954): exchanges, and whether a password is right.
//!
//! No I/O. Comparisons take the same time whoever is asked for and wherever the difference lies, and
//! every failure is the same reply, so nothing tells whether a user exists.

use secrecy::{ExposeSecret as _, SecretString};

use crate::smtp::{reply::Reply, sasl};

/// Who may log in.
#[derive(Debug, Default)]
pub struct Credentials(Vec<(String, SecretString)>);

impl Credentials {
    /// From user names and passwords.
    pub fn new(users: Vec<(String, SecretString)>) -> Self {
        Self(users)
    }

    /// Whether anybody can log in at all.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Tries `check` on the password of `username`, or on one nobody has, so that it takes as long.
    fn verify(&self, username: &str, check: impl Fn(&str) -> bool) -> Option<Authenticated> {
        let password = self.0.iter().find(|(name, _)| name == username).map(|(_, password)| password);
        let right = check(password.map_or("", |password| password.expose_secret()));
        (right && password.is_some()).then(|| Authenticated { user: username.to_owned() })
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
    /// Begins with `AUTH mechanism [initial]`. `private` says that a password may be shown here.
    pub fn begin(
        mechanism: &str,
        initial: Option<&str>,
        private: bool,
        challenge: impl FnOnce() -> String,
        credentials: &Credentials,
    ) -> Progress {
        let first = match mechanism {
            _ if credentials.is_empty() => return Progress::Refused(Reply::unknown_mechanism()),
            "PLAIN" | "LOGIN" if !private => return Progress::Refused(Reply::auth_needs_tls()),
            "PLAIN" => Self::Plain,
            "LOGIN" => Self::LoginName,
            "CRAM-MD5" => Self::CramMd5(challenge()),
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
                Some((user, password)) => {
                    credentials.verify(user, |right| sasl::same_secret(right, password))
                }
                None => return Progress::Refused(Reply::bad_base64()),
            },
            Self::LoginName => match String::from_utf8(message) {
                Ok(user) => return Self::LoginPassword(user).challenge(),
                Err(_) => return Progress::Refused(Reply::bad_base64()),
            },
            Self::LoginPassword(user) => match std::str::from_utf8(&message) {
                Ok(password) => credentials.verify(&user, |right| sasl::same_secret(right, password)),
                Err(_) => return Progress::Refused(Reply::bad_base64()),
            },
            Self::CramMd5(challenge) => match sasl::parse_cram_md5(&message) {
                Some((user, digest)) => credentials
                    .verify(user, |right| sasl::verify_cram_md5(right, challenge.as_bytes(), digest)),
                None => return Progress::Refused(Reply::bad_base64()),
            },
        };
        verified.map_or(Progress::Wrong, Progress::Success)
    }

    fn challenge(self) -> Progress {
        let prompt = match &self {
            Self::Plain => "",
            Self::LoginName => "Username:",
            Self::LoginPassword(_) => "Password:",
            Self::CramMd5(challenge) => challenge,
        };
        let reply = Reply::challenge(sasl::encode(prompt));
        Progress::Challenge(self, reply)
    }
}
