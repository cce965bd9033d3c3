//! Which SASL mechanism to log in with, and what to say.

use secrecy::ExposeSecret as _;

use crate::{
    config::{AuthMechanism, Login},
    smtp::sasl,
};

/// A mechanism that we speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mechanism {
    /// RFC 2195: the password itself doesn't travel.
    CramMd5,
    /// RFC 4616.
    Plain,
    /// Where nothing else is offered.
    Login,
}

/// The strongest first.
const BY_STRENGTH: [Mechanism; 3] = [Mechanism::CramMd5, Mechanism::Plain, Mechanism::Login];

impl Mechanism {
    /// As EHLO names it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::CramMd5 => "CRAM-MD5",
            Self::Plain => "PLAIN",
            Self::Login => "LOGIN",
        }
    }

    /// What goes with the AUTH command, if the client speaks first.
    pub fn initial(self, login: &Login) -> Option<String> {
        (self == Self::Plain)
            .then(|| sasl::encode(sasl::plain(&login.username, login.password.expose_secret())))
    }

    /// The answer to the `round`th challenge (from 0); `None` if no more was to be expected.
    pub fn respond(self, login: &Login, round: usize, challenge: &[u8]) -> Option<String> {
        let password = login.password.expose_secret();
        match (self, round) {
            (Self::CramMd5, 0) => Some(sasl::encode(sasl::cram_md5(&login.username, password, challenge))),
            (Self::Login, 0) => Some(sasl::encode(&login.username)),
            (Self::Login, 1) => Some(sasl::encode(password)),
            _ => None,
        }
    }
}

/// The mechanism to use, of those that are wanted and offered.
pub fn choose(wanted: AuthMechanism, offered: &[String]) -> Option<Mechanism> {
    let is_wanted = |mechanism: Mechanism| match wanted {
        AuthMechanism::Auto => true,
        AuthMechanism::Plain => mechanism == Mechanism::Plain,
        AuthMechanism::Login => mechanism == Mechanism::Login,
        AuthMechanism::CramMd5 => mechanism == Mechanism::CramMd5,
    };
    BY_STRENGTH
        .into_iter()
        .find(|mechanism| is_wanted(*mechanism) && offered.iter().any(|name| name == mechanism.name()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_strongest_that_is_wanted_and_offered_is_chosen() {
        let offered = |names: &[&str]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
        let all = offered(&["LOGIN", "PLAIN", "CRAM-MD5", "XOAUTH2"]);
        assert_eq!(choose(AuthMechanism::Auto, &all), Some(Mechanism::CramMd5));
        assert_eq!(choose(AuthMechanism::Auto, &offered(&["LOGIN", "PLAIN"])), Some(Mechanism::Plain));
        assert_eq!(choose(AuthMechanism::Login, &all), Some(Mechanism::Login));
        assert_eq!(choose(AuthMechanism::CramMd5, &offered(&["PLAIN"])), None);
        assert_eq!(choose(AuthMechanism::Auto, &offered(&["XOAUTH2"])), None);
    }
}
