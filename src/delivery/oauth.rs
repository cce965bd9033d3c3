//! Access tokens (RFC 6749): fetched with a refresh token or as a client, kept until shortly before they
//! expire, and fetched by one at a time.
//!
//! Access tokens stay in memory; a refresh token that the endpoint gave in the place of another, or for a
//! consent, is kept in a file that only its owner can read. Of secrets nothing is shown; what the
//! endpoint says of an error is, bounded, and nothing else of its answer.

use std::{
    fs,
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use hyper::Uri;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tokio::{
    sync::Semaphore,
    time::{Instant, timeout},
};

use super::post::post;
use crate::{config::OAuth, mail::outcome::Scope, smtp::sasl};

/// For the whole of a fetch.
pub(super) const LIMIT: Duration = Duration::from_secs(30);
/// So long before it expires a token is not used any more.
const EARLY: Duration = Duration::from_secs(60);
/// Where the endpoint does not say (RFC 6749 §5.1 only recommends that it does).
const USUAL: Duration = Duration::from_secs(3_600);
/// Characters that are shown of what the endpoint says of an error.
const WORDS_MAX: usize = 200;

/// What a form's value has written out: all but RFC 3986 §2.3.
const FORM: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// The tokens of one login.
#[derive(Debug)]
pub(super) struct Tokens {
    settings: OAuth,
    held: Mutex<Option<Held>>,
    /// Fetching; a second fetch at the same time would take the first one's refresh token away from
    /// it where those are used once.
    fetching: Semaphore,
}

#[derive(Clone, Debug)]
struct Held {
    token: SecretString,
    until: Instant,
}

/// There is no token.
#[derive(Debug)]
pub(super) struct Fault {
    /// What was seen.
    pub(super) words: String,
    /// Whether the endpoint refused, or could not be asked.
    pub(super) scope: Scope,
}

impl Fault {
    fn network(words: impl std::fmt::Display) -> Self {
        Self { words: format!("no access token: {words}"), scope: Scope::Network }
    }
}

/// What a token endpoint answers (RFC 6749 §5).
#[derive(Deserialize)]
pub(super) struct Answer {
    pub(super) access_token: Option<String>,
    pub(super) refresh_token: Option<String>,
    expires_in: Option<u64>,
    pub(super) error: Option<String>,
    error_description: Option<String>,
}

impl Answer {
    /// Why not, in its words.
    pub(super) fn refusal(&self) -> Option<String> {
        let said = [self.error.as_deref()?, self.error_description.as_deref().unwrap_or_default()].join(": ");
        let said = said.trim_end_matches([':', ' ']);
        Some(said.chars().filter(|c| !c.is_control()).take(WORDS_MAX).collect())
    }
}

/// A refresh token in its file, and in the place of which one it came, so that one that the operator
/// changes since counts.
#[derive(Default, Serialize, Deserialize)]
struct Kept {
    refresh_token: String,
    instead_of: String,
}

/// Tells one configured token from another, and gives nothing away.
fn mark(oauth: &OAuth) -> String {
    let configured = oauth.refresh_token.as_ref().map_or("", |token| token.expose_secret());
    sasl::encode(Sha256::digest(["outpost", oauth.client_id.as_str(), configured].join("\0")))
}

/// The refresh token to use.
fn refresh_token(oauth: &OAuth) -> Option<SecretString> {
    let kept = fs::read(&oauth.kept).ok().and_then(|octets| serde_json::from_slice::<Kept>(&octets).ok());
    let kept = kept.filter(|kept| kept.instead_of == mark(oauth));
    kept.map(|kept| kept.refresh_token.into()).or_else(|| oauth.refresh_token.clone())
}

/// Keeps a refresh token, for its owner alone.
pub(super) fn keep(oauth: &OAuth, token: &str) -> io::Result<()> {
    if let Some(directory) = oauth.kept.parent() {
        fs::DirBuilder::new().recursive(true).mode(0o750).create(directory)?;
    }
    let kept = Kept { refresh_token: token.to_owned(), instead_of: mark(oauth) };
    let beside = oauth.kept.with_extension("new");
    let mut options = fs::OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
    file.write_all(&serde_json::to_vec(&kept)?)?;
    file.sync_all()?;
    fs::rename(&beside, &oauth.kept)
}

impl Tokens {
    pub(super) fn new(settings: OAuth) -> Arc<Self> {
        Arc::new(Self { settings, held: Mutex::default(), fetching: Semaphore::new(1) })
    }

    /// A token, and whether it was at hand.
    ///
    /// # Errors
    /// None can be had now.
    pub(super) async fn token(&self) -> Result<(SecretString, bool), Fault> {
        if let Some(token) = self.at_hand() {
            return Ok((token, true));
        }
        let _one = self.fetching.acquire().await;
        // Another may have fetched it meanwhile.
        if let Some(token) = self.at_hand() {
            return Ok((token, true));
        }
        let held = timeout(LIMIT, self.fetch()).await.unwrap_or_else(|_| {
            Err(Fault::network(format!("{} does not answer in time", self.settings.token_url)))
        })?;
        let token = held.token.clone();
        *self.held.lock().unwrap_or_else(PoisonError::into_inner) = Some(held);
        Ok((token, false))
    }

    /// The upstream does not take it.
    pub(super) fn forget(&self) {
        *self.held.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    fn at_hand(&self) -> Option<SecretString> {
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.as_ref().filter(|held| held.until > Instant::now()).map(|held| held.token.clone())
    }

    async fn fetch(&self) -> Result<Held, Fault> {
        let url = &self.settings.token_url;
        let uri: Uri = url.parse().map_err(|error| Fault::network(format!("{url}: {error}")))?;
        let settings = self.settings.clone();
        let refresh = tokio::task::spawn_blocking(move || refresh_token(&settings)).await.ok().flatten();
        if refresh.is_none() && self.settings.device_url.is_some() && self.settings.client_secret.is_none() {
            let words = "nobody has given consent yet: run `outpost login`".to_owned();
            return Err(Fault { words, scope: Scope::Credential });
        }
        let answer = ask(&uri, self.form(refresh.as_ref()))
            .await
            .map_err(|error| Fault::network(format!("{url}: {error}")))?;
        let answer: Answer = serde_json::from_slice(&answer)
            .map_err(|_| Fault::network(format!("what {url} answers is no token")))?;
        if let Some(token) = answer.access_token {
            // RFC 6749 §6: the old one may be worth nothing any more.
            if let Some(new) = answer.refresh_token {
                let settings = self.settings.clone();
                let kept = tokio::task::spawn_blocking(move || keep(&settings, &new)).await;
                if let Err(error) = kept.unwrap_or_else(|error| Err(io::Error::other(error))) {
                    let path = self.settings.kept.display();
                    tracing::error!(%path, %error, "the new refresh token can't be kept");
                }
            }
            let lasts = answer.expires_in.map_or(USUAL, Duration::from_secs).saturating_sub(EARLY);
            return Ok(Held { token: token.into(), until: Instant::now() + lasts });
        }
        let said = answer.refusal().unwrap_or_default();
        let words = format!("the token endpoint {url} refuses: {said}");
        Err(Fault { words, scope: Scope::Credential })
    }

    /// RFC 6749 §6 with a refresh token, else §4.4.2 as a client.
    fn form(&self, refresh_token: Option<&SecretString>) -> String {
        let OAuth { client_id, client_secret, scope, .. } = &self.settings;
        let grant = if refresh_token.is_some() { "refresh_token" } else { "client_credentials" };
        encoded([
            ("grant_type", Some(grant)),
            ("client_id", Some(client_id.as_str())),
            ("client_secret", client_secret.as_ref().map(ExposeSecret::expose_secret)),
            ("refresh_token", refresh_token.map(ExposeSecret::expose_secret)),
            ("scope", scope.as_deref()),
        ])
    }
}

/// A form of those fields that have a value.
pub(super) fn encoded<'f>(fields: impl IntoIterator<Item = (&'f str, Option<&'f str>)>) -> String {
    let set = fields.into_iter().filter_map(|(name, value)| Some((name, value?)));
    let encoded = set.map(|(name, value)| format!("{name}={}", utf8_percent_encode(value, FORM)));
    encoded.collect::<Vec<_>>().join("&")
}

/// One POST of a form, and the body of its answer: an error is told in the body, so its status matters only
/// where the endpoint itself has failed.
pub(super) async fn ask(uri: &Uri, form: String) -> io::Result<Bytes> {
    let fields = [("content-type", "application/x-www-form-urlencoded"), ("accept", "application/json")];
    let (status, body) = post(uri, &fields, form.into(), LIMIT).await?;
    if status.is_server_error() { Err(io::Error::other(format!("it answers {status}"))) } else { Ok(body) }
}
