//! Which SASL mechanism to log in with, and what to say.

use secrecy::ExposeSecret as _;

use crate::{
    config::{AuthMechanism, Login},
    smtp::{sasl, scram},
};

/// A mechanism that we speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mechanism {
    /// RFC 7677, tied to the TLS connection (RFC 9266).
    ScramSha256Plus,
    /// RFC 7677: both sides prove that they know the password, and neither shows it.
    ScramSha256,
    /// RFC 2195: the password itself doesn't travel.
    CramMd5,
    /// RFC 4616.
    Plain,
    /// Where nothing else is offered.
    Login,
    /// RFC 7628: an access token instead of a password.
    OAuthBearer,
    /// The same before it had an RFC, as Google and Microsoft have it.
    XOAuth2,
}

/// The strongest first.
const BY_STRENGTH: [Mechanism; 7] = [
    Mechanism::OAuthBearer,
    Mechanism::XOAuth2,
    Mechanism::ScramSha256Plus,
    Mechanism::ScramSha256,
    Mechanism::CramMd5,
    Mechanism::Plain,
    Mechanism::Login,
];

impl Mechanism {
    /// As EHLO names it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::ScramSha256Plus => "SCRAM-SHA-256-PLUS",
            Self::ScramSha256 => "SCRAM-SHA-256",
            Self::CramMd5 => "CRAM-MD5",
            Self::Plain => "PLAIN",
            Self::Login => "LOGIN",
            Self::OAuthBearer => "OAUTHBEARER",
            Self::XOAuth2 => "XOAUTH2",
        }
    }

    /// Whether it takes an access token instead of a password.
    fn takes_token(self) -> bool {
        matches!(self, Self::OAuthBearer | Self::XOAuth2)
    }
}

/// One login under way: what to say next.
pub struct Exchange<'l> {
    login: &'l Login,
    state: State,
    /// The server has yet to show that it knows the password.
    unproven: bool,
}

/// What is to be said.
enum State {
    /// The client's first word, to be said with the command or to an empty challenge.
    Initial {
        message: Vec<u8>,
        then: Box<Self>,
    },
    CramMd5,
    LoginName,
    LoginPassword,
    /// The challenge says what is wrong with the token, and wants an answer before the 535.
    TokenRefused(&'static [u8]),
    ScramProof(scram::Client),
    /// What the server must say to prove itself.
    ScramServer(String),
    /// Nothing more is to be expected.
    Over,
}

impl<'l> Exchange<'l> {
    /// Begins a login; `binding` is the connection's (RFC 9266), if it has one.
    pub fn new(mechanism: Mechanism, login: &'l Login, binding: Option<&[u8; 32]>) -> Self {
        let (user, password) = (&login.username, login.password.expose_secret());
        let initial = |message, then| State::Initial { message, then: Box::new(then) };
        let scram =
            |(client, first): (scram::Client, String)| initial(first.into_bytes(), State::ScramProof(client));
        let state = match mechanism {
            Mechanism::ScramSha256Plus => {
                scram(scram::Client::new(user, &nonce(), binding.map(<[u8; 32]>::as_slice)))
            }
            Mechanism::ScramSha256 if binding.is_some() => {
                scram(scram::Client::not_offered_binding(user, &nonce()))
            }
            Mechanism::ScramSha256 => scram(scram::Client::new(user, &nonce(), None)),
            Mechanism::CramMd5 => State::CramMd5,
            Mechanism::Plain => initial(sasl::plain(user, password), State::Over),
            Mechanism::Login => State::LoginName,
            // RFC 7628 §3.2.3.
            Mechanism::OAuthBearer => {
                initial(sasl::oauthbearer(user, password), State::TokenRefused(b"\x01"))
            }
            Mechanism::XOAuth2 => initial(sasl::xoauth2(user, password), State::TokenRefused(b"")),
        };
        let unproven = matches!(mechanism, Mechanism::ScramSha256 | Mechanism::ScramSha256Plus);
        Self { login, state, unproven }
    }

    /// What goes with the AUTH command, if the client speaks first.
    pub fn initial(&self) -> Option<String> {
        match &self.state {
            State::Initial { message, .. } => Some(sasl::encode(message)),
            _ => None,
        }
    }

    /// The answer to the next challenge; `None` if no more was to be expected, or the server is not the
    /// one that knows the password.
    pub fn respond(&mut self, challenge: &[u8]) -> Option<String> {
        let (user, password) = (&self.login.username, self.login.password.expose_secret());
        let state = match std::mem::replace(&mut self.state, State::Over) {
            // The server wants to speak first although we may: RFC 4954 §4 lets it. It asks only once.
            State::Initial { message, then } if challenge.is_empty() => {
                self.state = *then;
                return Some(sasl::encode(message));
            }
            State::Initial { then, .. } => *then,
            other => other,
        };
        let (answer, next) = match state {
            State::CramMd5 => (sasl::cram_md5(user, password, challenge).into_bytes(), State::Over),
            State::LoginName => (user.clone().into_bytes(), State::LoginPassword),
            State::LoginPassword => (password.to_owned().into_bytes(), State::Over),
            State::TokenRefused(answer) => (answer.to_vec(), State::Over),
            State::ScramProof(client) => {
                let first = std::str::from_utf8(challenge).ok()?;
                let (last, expected) = client.respond(password, first)?;
                (last.into_bytes(), State::ScramServer(expected))
            }
            State::ScramServer(expected) if sasl::same_secret(&expected, str::from_utf8(challenge).ok()?) => {
                self.unproven = false;
                (Vec::new(), State::Over)
            }
            _ => return None,
        };
        self.state = next;
        Some(sasl::encode(answer))
    }

    /// Whether a yes can be believed: with SCRAM only from a server that has proven itself.
    pub fn is_mutual(&self) -> bool {
        !self.unproven
    }
}

/// Random text that no exchange has had before.
fn nonce() -> String {
    let octets: [u8; 18] =
        crate::net::random().expect("because without randomness TLS would not have come so far");
    sasl::encode(octets)
}

/// The mechanism to use, of those that are wanted and offered; `bound`: the connection has a channel
/// binding.
pub fn choose(login: &Login, offered: &[String], bound: bool) -> Option<Mechanism> {
    let is_wanted = |mechanism: Mechanism| match login.mechanism {
        // A token is no password, nor the other way round.
        _ if mechanism.takes_token() != login.oauth.is_some() => false,
        _ if mechanism == Mechanism::ScramSha256Plus && !bound => false,
        AuthMechanism::Auto => true,
        AuthMechanism::Plain => mechanism == Mechanism::Plain,
        AuthMechanism::Login => mechanism == Mechanism::Login,
        AuthMechanism::CramMd5 => mechanism == Mechanism::CramMd5,
        AuthMechanism::ScramSha256 => {
            matches!(mechanism, Mechanism::ScramSha256 | Mechanism::ScramSha256Plus)
        }
        AuthMechanism::OAuthBearer => mechanism == Mechanism::OAuthBearer,
        AuthMechanism::XOAuth2 => mechanism == Mechanism::XOAuth2,
    };
    BY_STRENGTH
        .into_iter()
        .find(|mechanism| is_wanted(*mechanism) && offered.iter().any(|name| name == mechanism.name()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::OAuth;

    fn login(mechanism: AuthMechanism, token: bool) -> Login {
        let oauth = token.then(|| OAuth {
            token_url: "https://tokens.example/".into(),
            client_id: "us".into(),
            client_secret: None,
            refresh_token: None,
            scope: None,
            device_url: None,
            kept: std::path::PathBuf::new(),
        });
        Login { username: "a@b".into(), password: "secret".to_owned().into(), mechanism, oauth }
    }

    fn offered(names: &[&str]) -> Vec<String> {
        names.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn the_strongest_that_is_wanted_and_offered_is_chosen() {
        let bound = |wanted, names: &[&str], bound| choose(&login(wanted, false), &offered(names), bound);
        let choose = |wanted, names: &[&str]| bound(wanted, names, false);
        let scram = ["PLAIN", "CRAM-MD5", "SCRAM-SHA-256", "SCRAM-SHA-256-PLUS"];
        assert_eq!(bound(AuthMechanism::Auto, &scram, true), Some(Mechanism::ScramSha256Plus));
        assert_eq!(bound(AuthMechanism::Auto, &scram[..3], true), Some(Mechanism::ScramSha256));
        assert_eq!(choose(AuthMechanism::Auto, &scram), Some(Mechanism::ScramSha256));
        assert_eq!(bound(AuthMechanism::ScramSha256, &scram, true), Some(Mechanism::ScramSha256Plus));
        assert_eq!(choose(AuthMechanism::ScramSha256, &["PLAIN"]), None);
        let all = ["LOGIN", "PLAIN", "CRAM-MD5", "XOAUTH2"];
        assert_eq!(choose(AuthMechanism::Auto, &all), Some(Mechanism::CramMd5));
        assert_eq!(choose(AuthMechanism::Auto, &["LOGIN", "PLAIN"]), Some(Mechanism::Plain));
        assert_eq!(choose(AuthMechanism::Login, &all), Some(Mechanism::Login));
        assert_eq!(choose(AuthMechanism::CramMd5, &["PLAIN"]), None);
        assert_eq!(choose(AuthMechanism::Auto, &["XOAUTH2"]), None);
    }

    #[test]
    fn a_token_goes_by_its_own_mechanisms_and_by_no_other() {
        let choose = |wanted, names: &[&str]| choose(&login(wanted, true), &offered(names), true);
        let all = ["LOGIN", "PLAIN", "XOAUTH2", "OAUTHBEARER"];
        assert_eq!(choose(AuthMechanism::Auto, &all), Some(Mechanism::OAuthBearer));
        assert_eq!(choose(AuthMechanism::XOAuth2, &all), Some(Mechanism::XOAuth2));
        assert_eq!(choose(AuthMechanism::Auto, &["PLAIN", "LOGIN"]), None);
    }

    /// A login by SCRAM with a server that plays `server`; whether its yes can be believed.
    fn scram(binding: Option<&[u8; 32]>, mechanism: Mechanism, theirs: Option<&[u8]>, right: &str) -> bool {
        let login = login(AuthMechanism::Auto, false);
        let mut exchange = Exchange::new(mechanism, &login, binding);
        let first = sasl::decode(&exchange.initial().expect("SCRAM speaks first")).unwrap();
        let server = scram::Server::new(&scram::ClientFirst::parse(&first).unwrap(), "server", theirs);
        assert!(!exchange.is_mutual());
        let again = exchange.respond(b"").map(|first| sasl::decode(&first).unwrap());
        assert_eq!(again, Some(first), "to a server that asks for what it has got");
        let last = sasl::decode(&exchange.respond(server.first().as_bytes()).unwrap()).unwrap();
        assert!(!exchange.is_mutual());
        let said = server.proof(&last).and_then(|proof| proof.verify(right));
        let answer = exchange.respond(said.as_deref().unwrap_or("e=invalid-proof").as_bytes());
        assert_eq!(answer.is_some(), exchange.is_mutual());
        exchange.is_mutual()
    }

    #[test]
    fn scram_ends_well_with_a_server_that_knows_the_password_and_sees_the_same_connection() {
        let (one, other) = ([1; 32], [2; 32]);
        assert!(scram(None, Mechanism::ScramSha256, None, "secret"));
        assert!(scram(Some(&one), Mechanism::ScramSha256, None, "secret"));
        assert!(scram(Some(&one), Mechanism::ScramSha256Plus, Some(&one), "secret"));
        assert!(!scram(Some(&one), Mechanism::ScramSha256Plus, Some(&other), "secret"));
        assert!(!scram(None, Mechanism::ScramSha256, None, "another"));
    }
}
