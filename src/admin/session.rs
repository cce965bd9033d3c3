//! Who has logged in: a bounded number of sessions, each for a bounded time.
//!
//! A browser keeps a token, and we only its digest, so that what is compared tells nothing by the time that it
//! takes. A session ends with the password that opened it. None survives a restart.

use std::{
    collections::HashMap,
    io,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::http::{HeaderMap, HeaderValue, header};
use sha2::{Digest as _, Sha256};
use tokio::time::Instant;

use crate::{listener::penalty::Penalties, net};

/// A session ends when nobody has used it for so long, and in any case after so long.
const IDLE_MAX: Duration = Duration::from_secs(8 * 3_600);
const AGE_MAX: Duration = Duration::from_secs(24 * 3_600);
/// Sessions at once; the one that was used least lately makes room.
const SESSIONS_MAX: usize = 64;
const COOKIE: &str = "outpost_session";

/// The request came with a session.
#[derive(Clone, Copy, Debug)]
pub(super) struct LoggedIn;

/// What keeps the door: sessions, and how long wrong passwords wait. Clones share it.
#[derive(Clone, Debug, Default)]
pub(super) struct Door {
    pub(super) sessions: Sessions,
    pub(super) penalties: Penalties,
}

/// The sessions.
#[derive(Clone, Debug, Default)]
pub(super) struct Sessions(Arc<Mutex<HashMap<[u8; 32], Session>>>);

#[derive(Clone, Copy, Debug)]
struct Session {
    password: [u8; 32],
    begun: Instant,
    used: Instant,
}

impl Session {
    fn is_over(&self, now: Instant) -> bool {
        now - self.used > IDLE_MAX || now - self.begun > AGE_MAX
    }
}

impl Sessions {
    /// Begins one for whoever knew this password; gives its token.
    ///
    /// # Errors
    /// The system gives no random octets.
    pub(super) fn begin(&self, password: &str) -> io::Result<String> {
        let octets: [u8; 32] = net::random()?;
        let token: String = octets.iter().map(|octet| format!("{octet:02x}")).collect();
        let now = Instant::now();
        let mut sessions = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        sessions.retain(|_, session| !session.is_over(now));
        if sessions.len() >= SESSIONS_MAX
            && let Some(oldest) = sessions.iter().min_by_key(|(_, session)| session.used).map(|(key, _)| *key)
        {
            sessions.remove(&oldest);
        }
        sessions.insert(digest(&token), Session { password: digest(password), begun: now, used: now });
        Ok(token)
    }

    /// Whether a request comes with one that this password opened.
    pub(super) fn has(&self, headers: &HeaderMap, password: &str) -> bool {
        let (now, password) = (Instant::now(), digest(password));
        let mut sessions = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        tokens(headers).any(|token| {
            let session = sessions.get_mut(&digest(token));
            let session = session.filter(|session| !session.is_over(now) && session.password == password);
            session.map(|session| session.used = now).is_some()
        })
    }

    /// Ends those that a request comes with.
    pub(super) fn end(&self, headers: &HeaderMap) {
        let mut sessions = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for token in tokens(headers) {
            sessions.remove(&digest(token));
        }
    }
}

fn digest(text: &str) -> [u8; 32] {
    Sha256::digest(text.as_bytes()).into()
}

/// What the cookies of our name say (RFC 6265 §4.2.1).
fn tokens(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    let fields = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
    let pairs = fields.flat_map(|field| field.split(';')).filter_map(|pair| pair.trim().split_once('='));
    pairs.filter(|(name, _)| *name == COOKIE).map(|(_, token)| token)
}

/// Has the browser keep a token, or forget it. No script reads it, and no other site's page has it sent.
pub(super) fn cookie(token: Option<&str>, is_secure: bool) -> HeaderValue {
    let age = if token.is_some() { AGE_MAX.as_secs() } else { 0 };
    let token = token.unwrap_or_default();
    let secure = if is_secure { "; Secure" } else { "" };
    let cookie = format!("{COOKIE}={token}; Path=/; Max-Age={age}; HttpOnly; SameSite=Strict{secure}");
    HeaderValue::try_from(cookie).unwrap_or(HeaderValue::from_static(""))
}

/// Whether a proxy says that the browser came to it by TLS. Whoever lies about it harms only himself.
pub(super) fn came_by_tls(headers: &HeaderMap) -> bool {
    let says = |name: &str, word: &str| {
        let value = headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
        value.to_ascii_lowercase().split([',', ';']).any(|part| part.trim().trim_matches('"') == word)
    };
    says("x-forwarded-proto", "https") || says("forwarded", "proto=https")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(token: &str) -> HeaderMap {
        let cookie = format!("other=1; {COOKIE}={token}");
        [(header::COOKIE, HeaderValue::try_from(cookie).unwrap())].into_iter().collect()
    }

    #[tokio::test(start_paused = true)]
    async fn a_session_ends_in_time_with_its_password_and_by_logging_out() {
        let sessions = Sessions::default();
        let token = sessions.begin("open").unwrap();
        assert!(sessions.has(&with(&token), "open") && token.len() == 64);
        assert!(!sessions.has(&with(&token), "another password") && !sessions.has(&with("x"), "open"));
        tokio::time::advance(IDLE_MAX).await;
        assert!(sessions.has(&with(&token), "open"), "just in time");
        tokio::time::advance(IDLE_MAX).await;
        assert!(sessions.has(&with(&token), "open"));
        tokio::time::advance(IDLE_MAX + Duration::from_secs(1)).await;
        assert!(!sessions.has(&with(&token), "open"), "too old");
        let (first, second) = (sessions.begin("open").unwrap(), sessions.begin("open").unwrap());
        sessions.end(&with(&first));
        assert!(!sessions.has(&with(&first), "open") && sessions.has(&with(&second), "open"));
    }

    #[tokio::test(start_paused = true)]
    async fn sessions_are_bounded_and_the_idle_one_goes_first() {
        let sessions = Sessions::default();
        let first = sessions.begin("open").unwrap();
        let idle = sessions.begin("open").unwrap();
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(sessions.has(&with(&first), "open"));
        for _ in 0..SESSIONS_MAX - 1 {
            sessions.begin("open").unwrap();
        }
        assert_eq!(sessions.0.lock().unwrap().len(), SESSIONS_MAX);
        assert!(sessions.has(&with(&first), "open") && !sessions.has(&with(&idle), "open"));
    }

    #[test]
    fn a_cookie_is_for_us_alone_and_for_tls_where_there_is_tls() {
        let set = |secure| cookie(Some("t"), secure).to_str().unwrap().to_owned();
        assert!(set(true).ends_with("HttpOnly; SameSite=Strict; Secure") && !set(false).contains("Secure"));
        let forwarded = |name: &'static str, value: &'static str| {
            let headers = [(header::HeaderName::from_static(name), HeaderValue::from_static(value))];
            came_by_tls(&headers.into_iter().collect())
        };
        assert!(forwarded("x-forwarded-proto", "HTTPS") && forwarded("forwarded", "for=x;proto=https"));
        assert!(!forwarded("x-forwarded-proto", "http") && !came_by_tls(&HeaderMap::new()));
    }
}
