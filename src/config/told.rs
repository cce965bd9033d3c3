//! Who is told what of a running relay: the log, and webhooks.

use std::time::Duration;

use secrecy::{ExposeSecret as _, SecretString};

use super::{
    keys::{Key, key},
    reader::Reader,
    value,
};

/// What is logged, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogSettings {
    /// A filter as `tracing` understands it: `info`, `outpost=debug`.
    pub level: String,
    /// For people or for programs.
    pub format: LogFormat,
    /// What of people's addresses it shows.
    pub addresses: LogAddresses,
}

impl Default for LogSettings {
    fn default() -> Self {
        let (format, addresses) = (LogFormat::Human, LogAddresses::Full);
        Self { level: "info".to_owned(), format, addresses }
    }
}

/// The form of the log's lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// Words and `name=value`.
    Human,
    /// One object a line.
    Json,
}

/// What the log shows of people's addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogAddresses {
    /// All.
    Full,
    /// The domain.
    Domain,
    /// A number in its place.
    Hash,
}

/// Who is told what over HTTP.
#[derive(Clone, Debug, Default)]
pub struct Webhooks {
    /// Hears that an operator must look.
    pub alerts: Option<Webhook>,
    /// Hears what happens to messages.
    pub events: Option<Webhook>,
    /// When to raise alarm.
    pub thresholds: Thresholds,
}

/// A place that takes signed POSTs.
#[derive(Clone)]
pub struct Webhook {
    /// Where. It may hold a secret itself, so it is never shown.
    pub url: SecretString,
    /// What requests are signed with.
    pub secret: SecretString,
}

impl std::fmt::Debug for Webhook {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Webhook")
    }
}

impl PartialEq for Webhook {
    fn eq(&self, other: &Self) -> bool {
        let of = |hook: &Self| [&hook.url, &hook.secret].map(|text| text.expose_secret().to_owned());
        of(self) == of(other)
    }
}

/// When to raise alarm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Thresholds {
    /// Messages in the queue.
    pub messages: u64,
    /// How long the oldest has waited.
    pub age: Duration,
    /// So long before a certificate expires.
    pub certificate: Duration,
}

impl Default for Thresholds {
    fn default() -> Self {
        let day = Duration::from_secs(86_400);
        Self { messages: 10_000, age: day / 6, certificate: 14 * day }
    }
}

/// What is logged, and how.
pub(super) fn log(reader: &mut Reader<'_>) -> LogSettings {
    let default = LogSettings::default();
    LogSettings {
        level: reader.one(key!("smtp_log_level"), value::log_filter).unwrap_or(default.level),
        format: reader.one(key!("smtp_log_format"), value::log_format).unwrap_or(default.format),
        addresses: reader.one(key!("smtp_log_addresses"), value::log_addresses).unwrap_or(default.addresses),
    }
}

/// Who is told what over HTTP.
pub(super) fn webhooks(reader: &mut Reader<'_>) -> Webhooks {
    let default = Thresholds::default();
    Webhooks {
        alerts: webhook(reader, key!("smtp_alert_webhook"), key!("smtp_alert_webhook_secret")),
        events: webhook(reader, key!("smtp_event_webhook"), key!("smtp_event_webhook_secret")),
        thresholds: Thresholds {
            messages: reader
                .one(key!("smtp_alert_queue_messages"), value::number(1..=u64::MAX))
                .unwrap_or(default.messages),
            age: reader.one(key!("smtp_alert_queue_age"), value::duration).unwrap_or(default.age),
            certificate: reader
                .one(key!("smtp_alert_certificate"), value::duration)
                .unwrap_or(default.certificate),
        },
    }
}

/// A place that takes signed POSTs. Its address may hold a secret, so nothing of it is repeated.
fn webhook(reader: &mut Reader<'_>, key: &'static Key, signing: &'static Key) -> Option<Webhook> {
    let (url, secret) = (reader.secret(key), reader.secret(signing));
    let place = reader.place(key);
    let url = url?;
    if !value::is_web_address(url.expose_secret()) {
        let help = "for example https://alerts.example.com/outpost; a login in it is not understood";
        reader.report(place, format!("{} is no URL of http:// or https://", key.name), Some(help));
        return None;
    }
    let Some(secret) = secret else {
        if !reader.is_set(signing) {
            let help =
                format!("set {} to what `openssl rand -base64 32` prints, there and here", signing.name);
            reader.report(place, format!("{} has no secret to sign with", key.name), Some(&help));
        }
        return None;
    };
    Some(Webhook { url, secret })
}
