//! A user's consent, given on another device (RFC 8628): `outpost login` shows a code, the user types it
//! where they are logged in, and the refresh token comes here.

use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use tokio::time::{Instant, sleep, timeout};

use super::oauth::{Answer, LIMIT, ask, encoded, keep};
use crate::config::OAuth;

/// RFC 8628 §3.2: where the server does not say how often it may be asked; and §3.5: what it adds when
/// it was asked too often.
const INTERVAL: Duration = Duration::from_secs(5);
/// Nobody types a code for longer.
const PATIENCE: Duration = Duration::from_secs(3_600);

/// What the user is shown.
#[derive(Debug)]
pub struct Asked<'o> {
    oauth: &'o OAuth,
    /// Where to go.
    pub place: String,
    /// What to type there.
    pub code: String,
    /// How long that is good for.
    pub lasts: Duration,
    device_code: SecretString,
    interval: Duration,
}

#[derive(Deserialize)]
struct Begun {
    device_code: Option<String>,
    user_code: Option<String>,
    verification_uri: Option<String>,
    /// Google's name for it.
    verification_url: Option<String>,
    expires_in: Option<u64>,
    interval: Option<u64>,
}

/// Asks for a code.
///
/// # Errors
/// Why there is none, in words.
pub async fn begin(oauth: &OAuth) -> Result<Asked<'_>, String> {
    let url = oauth.device_url.as_deref().ok_or("smtp_relay_oauth has no device_url")?;
    let fields = [("client_id", Some(oauth.client_id.as_str())), ("scope", oauth.scope.as_deref())];
    let answer = post(url, encoded(fields)).await?;
    let refused: Answer = serde_json::from_slice(&answer).map_err(|_| format!("{url} answers no JSON"))?;
    if let Some(words) = refused.refusal() {
        return Err(format!("{url} refuses: {words}"));
    }
    let begun: Begun =
        serde_json::from_slice(&answer).map_err(|_| format!("what {url} answers is no code"))?;
    let place = begun.verification_uri.or(begun.verification_url);
    let (Some(device_code), Some(code), Some(place)) = (begun.device_code, begun.user_code, place) else {
        return Err(format!("what {url} answers is no code"));
    };
    Ok(Asked {
        oauth,
        place,
        code,
        lasts: begun.expires_in.map_or(PATIENCE, Duration::from_secs).min(PATIENCE),
        device_code: device_code.into(),
        interval: begun.interval.map_or(INTERVAL, Duration::from_secs).max(Duration::from_secs(1)),
    })
}

impl Asked<'_> {
    /// Waits for the consent, and keeps what it brings.
    ///
    /// # Errors
    /// It does not come, in words.
    pub async fn consent(self) -> Result<(), String> {
        let url = &self.oauth.token_url;
        let (end, mut interval) = (Instant::now() + self.lasts, self.interval);
        while Instant::now() < end {
            sleep(interval).await;
            let form = encoded([
                ("grant_type", Some("urn:ietf:params:oauth:grant-type:device_code")),
                ("client_id", Some(self.oauth.client_id.as_str())),
                ("client_secret", self.oauth.client_secret.as_ref().map(ExposeSecret::expose_secret)),
                ("device_code", Some(self.device_code.expose_secret())),
            ]);
            // RFC 8628 §3.5: a connection that fails is no answer.
            let Ok(answer) = post(url, form).await else { continue };
            let answer: Answer =
                serde_json::from_slice(&answer).map_err(|_| format!("what {url} answers is no token"))?;
            if answer.access_token.is_some() {
                let token = answer.refresh_token.ok_or_else(|| {
                    format!("{url} gave no refresh token: does `scope` ask for one (offline_access)?")
                })?;
                return keep(self.oauth, &token)
                    .map_err(|error| format!("{}: {error}", self.oauth.kept.display()));
            }
            match answer.error.as_deref() {
                Some("authorization_pending") => {}
                Some("slow_down") => interval += INTERVAL,
                _ => return Err(format!("{url} refuses: {}", answer.refusal().unwrap_or_default())),
            }
        }
        Err("nobody has typed the code in time".to_owned())
    }
}

async fn post(url: &str, form: String) -> Result<bytes::Bytes, String> {
    let uri = url.parse().map_err(|_| format!("{url} is no URL"))?;
    match timeout(LIMIT, ask(&uri, form)).await {
        Ok(answer) => answer.map_err(|error| format!("{url}: {error}")),
        Err(_) => Err(format!("{url} does not answer in time")),
    }
}
