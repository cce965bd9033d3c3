//! Access tokens (RFC 6749): fetched with a refresh token or as a client, kept until shortly before they
//! expire, and fetched by one at a time.
//!
//! A token that is in use is replaced ahead of its time, so that no mail waits for that, and that it can't
//! be replaced is known before mail must wait.
//!
//! Access tokens stay in memory; a refresh token that the endpoint gave in the place of another, or for a
//! consent, is kept in a file that only its owner can read. Of secrets nothing is shown; what the
//! endpoint says of an error is, bounded, and nothing else of its answer.

use std::{
    fs,
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
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

use super::{post::post, withheld::without};
use crate::{
    clock::{Clock, Timestamp},
    config::{OAuth, Waits},
    mail::outcome::Scope,
    smtp::sasl,
};

/// For the whole of a fetch.
pub(super) const LIMIT: Duration = Duration::from_secs(30);
/// So long before it expires a token is not used any more.
const EARLY: Duration = Duration::from_secs(60);
/// So long before it is not used any more another is fetched, or a quarter of its use where that is less.
const AHEAD: Duration = Duration::from_secs(300);
/// A token that can be used for a shorter time is fetched when it is needed, and never ahead.
const USE_MIN: Duration = Duration::from_secs(4);
/// Between tries to fetch one ahead while the endpoint can't be asked; a refusal is a refused login.
const UNREACHED: Waits = Waits { first: Duration::from_secs(5), longest: Duration::from_secs(300) };
/// Where the endpoint does not say (RFC 6749 §5.1 only recommends that it does).
const USUAL: Duration = Duration::from_secs(3_600);
/// No token is believed to last longer: a year.
const LASTS_MAX: Duration = Duration::from_secs(31_536_000);
/// Characters that are shown of what the endpoint says of an error.
const WORDS_MAX: usize = 200;

/// What a form's value has written out: all but RFC 3986 §2.3.
const FORM: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// The tokens of one login.
#[derive(Debug)]
pub(super) struct Tokens {
    settings: OAuth,
    state: Mutex<State>,
    /// Fetching; a second fetch at the same time would take the first one's refresh token away from
    /// it where those are used once.
    fetching: Semaphore,
    clock: Clock,
}

#[derive(Debug, Default)]
struct State {
    held: Option<Held>,
    /// No other could be fetched in its place.
    failed: Option<Failed>,
}

#[derive(Clone, Debug)]
struct Held {
    token: SecretString,
    /// When it expires, for people.
    expires: Timestamp,
    /// Not used any more then.
    until: Instant,
    /// When another is fetched, if that is done ahead.
    renew: Option<Instant>,
}

#[derive(Debug)]
struct Failed {
    fault: Fault,
    /// In a row.
    times: u32,
    /// When it is tried again.
    again: Instant,
}

/// The token that a login goes by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenInUse {
    /// When it expires.
    pub expires: Timestamp,
    /// Why no other can be had in its place, while that is so.
    pub trouble: Option<TokenTrouble>,
}

/// An access token can't be renewed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenTrouble {
    /// What was seen.
    pub words: String,
    /// What to do.
    pub help: &'static str,
}

/// There is no token.
#[derive(Clone, Debug)]
pub(super) struct Fault {
    /// What was seen.
    pub(super) words: String,
    /// Whether the endpoint refused, or could not be asked.
    pub(super) scope: Scope,
}

impl Fault {
    fn network(words: impl std::fmt::Display) -> Self {
        Self { words: words.to_string(), scope: Scope::Network }
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
    fs::rename(&beside, &oauth.kept)?;
    // The old one may be worth nothing any more, so the new one's name must last, too.
    fs::File::open(oauth.kept.parent().unwrap_or(Path::new(".")))?.sync_all()
}

impl Held {
    fn new(token: String, lasts: Duration, clock: &Clock) -> Self {
        let (now, used) = (Instant::now(), lasts.saturating_sub(EARLY));
        // Not all relays that were started together are to ask together.
        let ahead = AHEAD.min(used / 4).mul_f64(1.0 + fastrand::f64() / 10.0);
        Self {
            token: token.into(),
            expires: clock.now().after(lasts),
            until: now + used,
            renew: (used >= USE_MIN).then(|| now + used.saturating_sub(ahead)),
        }
    }
}

impl Failed {
    /// Whether it is worth a word: what was not reached once may be there again at the next try.
    fn is_trouble(&self) -> bool {
        self.fault.scope == Scope::Credential || self.times > 1
    }
}

impl Tokens {
    pub(super) fn new(settings: OAuth, clock: Clock) -> Arc<Self> {
        Arc::new(Self { settings, state: Mutex::default(), fetching: Semaphore::new(1), clock })
    }

    /// A token, and whether it was at hand.
    ///
    /// # Errors
    /// None can be had now.
    pub(super) async fn token(&self, waits: Waits) -> Result<(SecretString, bool), Fault> {
        if let Some(token) = self.at_hand() {
            return Ok((token, true));
        }
        let _one = self.fetching.acquire().await;
        // Another may have fetched it meanwhile.
        if let Some(token) = self.at_hand() {
            return Ok((token, true));
        }
        Ok((self.replace(waits).await?, false))
    }

    /// Fetches another token in the place of the one in use, if it is time; `waits` are those between
    /// refused logins.
    pub(super) async fn renew(&self, waits: Waits) {
        if self.is_due() {
            let _one = self.fetching.acquire().await;
            if self.is_due() {
                let _ = self.replace(waits).await;
            }
        }
    }

    /// What could not be renewed is tried again without a wait.
    pub(super) fn hasten(&self) {
        if let Some(failed) = &mut self.state().failed {
            failed.again = Instant::now();
        }
    }

    /// The upstream does not take it.
    pub(super) fn forget(&self) {
        let State { held, failed } = &mut *self.state();
        match (failed, held) {
            // It goes on being told, and tried.
            (Some(_), Some(held)) => held.until = Instant::now(),
            (_, held) => *held = None,
        }
    }

    /// The token in use. None for a login that was never used, or not for so long that its token is gone.
    pub(super) fn in_use(&self) -> Option<TokenInUse> {
        let state = self.state();
        let held =
            state.held.as_ref().filter(|held| state.failed.is_some() || held.until > Instant::now())?;
        let trouble = state.failed.as_ref().filter(|failed| failed.is_trouble());
        let trouble = trouble
            .map(|failed| TokenTrouble { words: failed.fault.words.clone(), help: self.help(&failed.fault) });
        Some(TokenInUse { expires: held.expires, trouble })
    }

    /// What to do about it.
    pub(super) fn help(&self, fault: &Fault) -> &'static str {
        match fault.scope {
            Scope::Credential if self.settings.device_url.is_some() => HELP_CONSENT,
            Scope::Credential => HELP_REFUSED,
            _ => HELP_UNREACHED,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn at_hand(&self) -> Option<SecretString> {
        let state = self.state();
        state.held.as_ref().filter(|held| held.until > Instant::now()).map(|held| held.token.clone())
    }

    fn is_due(&self) -> bool {
        let state = self.state();
        let due = match (&state.held, &state.failed) {
            (Some(_), Some(failed)) => Some(failed.again),
            (Some(held), None) => held.renew,
            (None, _) => None,
        };
        due.is_some_and(|due| due <= Instant::now())
    }

    /// Fetches a token and holds it. That it fails is remembered where there is one to be replaced.
    async fn replace(&self, waits: Waits) -> Result<SecretString, Fault> {
        let fetched = timeout(LIMIT, self.fetch()).await.unwrap_or_else(|_| {
            Err(Fault::network(format!("{} does not answer in time", self.settings.token_url)))
        });
        let mut state = self.state();
        match fetched {
            Ok(held) => {
                let token = held.token.clone();
                *state = State { held: Some(held), failed: None };
                Ok(token)
            }
            Err(fault) => {
                if state.held.is_some() {
                    let times = state.failed.as_ref().map_or(0, |failed| failed.times).saturating_add(1);
                    let again = Instant::now() + wait(&fault, times, waits);
                    state.failed = Some(Failed { fault: fault.clone(), times, again });
                }
                Err(fault)
            }
        }
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
            let lasts = answer.expires_in.map_or(USUAL, Duration::from_secs).min(LASTS_MAX);
            return Ok(Held::new(token, lasts, &self.clock));
        }
        let said = answer.refusal().unwrap_or_default();
        // Words of theirs may repeat what was sent.
        let sent = [self.settings.client_secret.as_ref(), refresh.as_ref()].into_iter().flatten();
        let sent: Vec<String> = sent.map(|secret| secret.expose_secret().to_owned()).collect();
        let said = without(&said, &sent).unwrap_or(said);
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

/// How long not to ask again after so many failures in a row.
fn wait(fault: &Fault, times: u32, refused: Waits) -> Duration {
    let Waits { first, longest } = if fault.scope == Scope::Credential { refused } else { UNREACHED };
    let grown = first.saturating_mul(1 << times.saturating_sub(1).min(16)).min(longest);
    grown.mul_f64(0.9 + fastrand::f64() / 5.0)
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

const HELP_CONSENT: &str =
    "give the consent anew: `outpost login`; if that changes nothing, check smtp_relay_oauth";
const HELP_REFUSED: &str = "check smtp_relay_oauth; a refresh token that has expired or was revoked must be made anew, then `outpost reload`";
const HELP_UNREACHED: &str =
    "check token_url of smtp_relay_oauth, and whether outgoing connections to it are allowed here";

#[cfg(test)]
mod tests {
    use std::{
        io::{BufRead as _, BufReader, Read as _},
        net::TcpListener,
    };

    use super::*;

    const HOUR: Waits = Waits { first: Duration::from_secs(3_600), longest: Duration::from_secs(3_600) };
    const REFUSED: &str = r#"{"error": "invalid_grant", "error_description": "refresh-sesame was revoked"}"#;

    /// A token endpoint that gives these answers, one each time, and is then gone.
    fn endpoint(answers: &'static [&'static str]) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        std::thread::spawn(move || {
            for answer in answers {
                let mut stream = BufReader::new(listener.accept().unwrap().0);
                let (mut length, mut line) = (0, String::new());
                while stream.read_line(&mut line).unwrap() > 2 {
                    if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                        length = value.trim().parse().unwrap();
                    }
                    line.clear();
                }
                stream.read_exact(&mut vec![0; length]).unwrap();
                let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", answer.len());
                stream.get_mut().write_all((head + answer).as_bytes()).unwrap();
            }
        });
        port
    }

    fn tokens(port: u16) -> Arc<Tokens> {
        let settings = OAuth {
            token_url: format!("http://127.0.0.1:{port}/"),
            device_url: None,
            client_id: "us".into(),
            client_secret: None,
            refresh_token: Some("refresh-sesame".to_owned().into()),
            scope: None,
            kept: "/nowhere/oauth.json".into(),
        };
        Tokens::new(settings, Clock::System)
    }

    /// As if the time had come.
    fn make_due(tokens: &Tokens) {
        tokens.hasten();
        if let Some(held) = &mut tokens.state().held {
            held.renew = Some(Instant::now());
        }
    }

    fn trouble(tokens: &Tokens) -> Option<TokenTrouble> {
        tokens.in_use().expect("a token in use").trouble
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_is_replaced_five_minutes_or_a_quarter_of_its_use_before_its_end() {
        let clock = Clock::starting_at(Timestamp(0));
        for (lasts, least) in [(3_600, 300), (660, 150), (76, 4)] {
            let held = Held::new("token".into(), Duration::from_secs(lasts), &clock);
            let ahead = held.until - held.renew.unwrap();
            let least = Duration::from_secs(least);
            assert!((least..=least.mul_f64(1.1)).contains(&ahead), "{lasts}: {ahead:?}");
            assert_eq!(held.expires, Timestamp(lasts * 1_000));
        }
        let held = Held::new("token".into(), Duration::from_secs(63), &clock);
        assert_eq!(held.renew, None, "it would be fetched again and again");
    }

    #[tokio::test]
    async fn what_can_not_be_renewed_is_told_until_it_is_and_a_login_without_use_is_left_alone() {
        let tokens = tokens(endpoint(&[
            r#"{"access_token": "access-1", "expires_in": 3600}"#,
            REFUSED,
            r#"{"access_token": "access-2", "expires_in": 3600}"#,
        ]));
        tokens.renew(HOUR).await;
        assert!(tokens.in_use().is_none() && tokens.at_hand().is_none(), "never used");
        let (token, was_at_hand) = tokens.token(HOUR).await.unwrap();
        assert_eq!((token.expose_secret(), was_at_hand), ("access-1", false));
        tokens.renew(HOUR).await;
        assert_eq!(tokens.token(HOUR).await.unwrap().0.expose_secret(), "access-1", "not yet");

        make_due(&tokens);
        tokens.renew(HOUR).await;
        let told = trouble(&tokens).expect("it was refused");
        assert!(told.words.ends_with("refuses: invalid_grant: (withheld) was revoked"), "{}", told.words);
        assert!(told.help.contains("must be made anew"));
        assert!(tokens.token(HOUR).await.unwrap().1, "the one in use is used on");
        // Not before its time.
        tokens.renew(HOUR).await;
        // The upstream may know of it as well.
        tokens.forget();
        assert!(trouble(&tokens).is_some() && tokens.at_hand().is_none());

        tokens.hasten();
        tokens.renew(HOUR).await;
        assert_eq!(trouble(&tokens), None);
        assert_eq!(tokens.token(HOUR).await.unwrap().0.expose_secret(), "access-2");
    }

    #[tokio::test]
    async fn an_endpoint_that_is_not_there_for_a_moment_is_not_worth_a_word() {
        let tokens = tokens(endpoint(&[r#"{"access_token": "access-1", "expires_in": 3600}"#]));
        tokens.token(HOUR).await.unwrap();
        for told in [false, true] {
            make_due(&tokens);
            tokens.renew(HOUR).await;
            assert_eq!(trouble(&tokens).is_some(), told);
        }
        assert!(trouble(&tokens).unwrap().help.contains("token_url"));
    }

    #[test]
    fn waits_grow_and_refusals_wait_as_refused_logins_do() {
        let seconds = |scope, times| {
            let fault = Fault { words: String::new(), scope };
            wait(&fault, times, HOUR).as_secs_f64().round()
        };
        assert!((4.0..=6.0).contains(&seconds(Scope::Network, 1)));
        assert!((18.0..=22.0).contains(&seconds(Scope::Network, 3)));
        assert!((270.0..=330.0).contains(&seconds(Scope::Network, 1_000)));
        assert!((3_240.0..=3_960.0).contains(&seconds(Scope::Credential, 1)));
    }
}
