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
    /// RFC 7628: an access token instead of a password.
    OAuthBearer,
    /// The same before it had an RFC, as Google and Microsoft have it.
    XOAuth2,
}

/// The strongest first.
const BY_STRENGTH: [Mechanism; 5] =
    [Mechanism::OAuthBearer, Mechanism::XOAuth2, Mechanism::CramMd5, Mechanism::Plain, Mechanism::Login];

impl Mechanism {
    /// As EHLO names it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::CramMd5 => "CRAM-MD5",
            Self::Plain => "PLAIN",
            Self::Login => "LOGIN",
            Self::OAuthBearer => "OAUTHBEARER",
            Self::XOAuth2 => "XOAUTH2",
        }
    }

    /// What goes with the AUTH command, if the client speaks first.
    pub fn initial(self, login: &Login) -> Option<String> {
        let (user, password) = (&login.username, login.password.expose_secret());
        match self {
            Self::Plain => Some(sasl::encode(sasl::plain(user, password))),
            Self::OAuthBearer => Some(sasl::encode(sasl::oauthbearer(user, password))),
            Self::XOAuth2 => Some(sasl::encode(sasl::xoauth2(user, password))),
            Self::CramMd5 | Self::Login => None,
        }
    }

    /// Whether it takes an access token instead of a password.
    fn takes_token(self) -> bool {
        matches!(self, Self::OAuthBearer | Self::XOAuth2)
    }

    /// The answer to the `round`th challenge (from 0); `None` if no more was to be expected.
    pub fn respond(self, login: &Login, round: usize, challenge: &[u8]) -> Option<String> {
        let password = login.password.expose_secret();
        match (self, round) {
            (Self::CramMd5, 0) => Some(sasl::encode(sasl::cram_md5(&login.username, password, challenge))),
            (Self::Login, 0) => Some(sasl::encode(&login.username)),
            (Self::Login, 1) => Some(sasl::encode(password)),
            // The challenge says what is wrong with the token, and wants an answer before the 535:
            // RFC 7628 §3.2.3.
            (Self::OAuthBearer, 0) => Some(sasl::encode("\x01")),
            (Self::XOAuth2, 0) => Some(String::new()),
            _ => None,
        }
    }
}

/// The mechanism to use, of those that are wanted and offered.
pub fn choose(login: &Login, offered: &[String]) -> Option<Mechanism> {
    let is_wanted = |mechanism: Mechanism| match login.mechanism {
        // A token is no password, nor the other way round.
        _ if mechanism.takes_token() != login.oauth.is_some() => false,
        AuthMechanism::Auto => true,
        AuthMechanism::Plain => mechanism == Mechanism::Plain,
        AuthMechanism::Login => mechanism == Mechanism::Login,
        AuthMechanism::CramMd5 => mechanism == Mechanism::CramMd5,
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
        });
        Login { username: "a@b".into(), password: "secret".to_owned().into(), mechanism, oauth }
    }

    fn offered(names: &[&str]) -> Vec<String> {
        names.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn the_strongest_that_is_wanted_and_offered_is_chosen() {
        let choose = |wanted, names: &[&str]| choose(&login(wanted, false), &offered(names));
        let all = ["LOGIN", "PLAIN", "CRAM-MD5", "XOAUTH2"];
        assert_eq!(choose(AuthMechanism::Auto, &all), Some(Mechanism::CramMd5));
        assert_eq!(choose(AuthMechanism::Auto, &["LOGIN", "PLAIN"]), Some(Mechanism::Plain));
        assert_eq!(choose(AuthMechanism::Login, &all), Some(Mechanism::Login));
        assert_eq!(choose(AuthMechanism::CramMd5, &["PLAIN"]), None);
        assert_eq!(choose(AuthMechanism::Auto, &["XOAUTH2"]), None);
    }

    #[test]
    fn a_token_goes_by_its_own_mechanisms_and_by_no_other() {
        let choose = |wanted, names: &[&str]| choose(&login(wanted, true), &offered(names));
        let all = ["LOGIN", "PLAIN", "XOAUTH2", "OAUTHBEARER"];
        assert_eq!(choose(AuthMechanism::Auto, &all), Some(Mechanism::OAuthBearer));
        assert_eq!(choose(AuthMechanism::XOAuth2, &all), Some(Mechanism::XOAuth2));
        assert_eq!(choose(AuthMechanism::Auto, &["PLAIN", "LOGIN"]), None);
    }
}
