//! What apps are told: `environment.json` and its twins.
//!
//! [`variables`] is the list of what is published, [`render`] its text in some format, [`publish`]
//! brings files up to date, and [`published_fingerprint`] finds what a sibling relay has published.
//! When to publish, and what the values are, is the service's business.

mod file;
mod format;

use std::net::Ipv6Addr;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use secrecy::{ExposeSecret as _, SecretString};

pub use self::{
    file::{EnvironmentError, publish, published_fingerprint},
    format::{Format, render},
};

/// What apps need to know about one relay.
#[derive(Clone, Debug)]
pub struct Published {
    /// The service's name: `mailer`.
    pub service: String,
    /// A name or address that apps can reach; IPv6 without brackets.
    pub host: String,
    /// The listener's port.
    pub port: u16,
    /// The login for apps.
    pub login: String,
    /// Its password.
    pub password: SecretString,
    /// `starttls`, `implicit` or `none`.
    pub tls: &'static str,
    /// SHA-256 of the listener's certificate, in lower-case hexadecimal.
    pub fingerprint: Option<String>,
    /// The upstream.
    pub relay_server: String,
    /// Its port.
    pub relay_port: u16,
    /// The login there.
    pub relay_username: Option<String>,
    /// Its password, if it is to be published at all.
    pub relay_password: Option<SecretString>,
    /// `500 recipients/day`, several joined by `,`.
    pub rate_limit: Option<String>,
    /// Octets.
    pub max_message_size: u64,
    /// Recipients of one message.
    pub max_recipients: usize,
}

/// What follows `DOTCLOUD_<SERVICE>_SMTP_` in our keys. Only these are ours to change: a service
/// `mailer_smtp` has keys that begin like those of `mailer`.
const SUFFIXES: [&str; 14] = [
    "HOST",
    "PORT",
    "LOGIN",
    "PASSWORD",
    "URL",
    "TLS",
    "TLS_FINGERPRINT",
    "RELAY_SERVER",
    "RELAY_PORT",
    "RELAY_USERNAME",
    "RELAY_PASSWORD",
    "RATE_LIMIT",
    "MAX_MESSAGE_SIZE",
    "MAX_RECIPIENTS",
];

/// What RFC 3986 §2.3 leaves unreserved stands for itself, and nothing else does.
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// How all keys of a service begin: `DOTCLOUD_MAILER_SMTP_`.
pub fn prefix(service: &str) -> String {
    let upper = |c: char| {
        if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' }
    };
    format!("DOTCLOUD_{}_SMTP_", service.chars().map(upper).collect::<String>())
}

/// The names and values that are published, in a fixed order. All values are strings.
pub fn variables(published: &Published) -> Vec<(String, String)> {
    let secret = |secret: &SecretString| secret.expose_secret().to_owned();
    let values = [
        Some(published.host.clone()),
        Some(published.port.to_string()),
        Some(published.login.clone()),
        Some(secret(&published.password)),
        Some(url(published)),
        Some(published.tls.to_owned()),
        published.fingerprint.clone(),
        Some(published.relay_server.clone()),
        Some(published.relay_port.to_string()),
        published.relay_username.clone(),
        published.relay_password.as_ref().map(secret),
        published.rate_limit.clone(),
        Some(published.max_message_size.to_string()),
        Some(published.max_recipients.to_string()),
    ];
    let prefix = prefix(&published.service);
    let named = SUFFIXES.iter().zip(values);
    named.filter_map(|(suffix, value)| Some((format!("{prefix}{suffix}"), value?))).collect()
}

fn url(published: &Published) -> String {
    let encoded = |text: &str| utf8_percent_encode(text, RESERVED).to_string();
    let host = match published.host.parse::<Ipv6Addr>() {
        Ok(address) => format!("[{address}]"),
        Err(_) => encoded(&published.host),
    };
    let scheme = if published.tls == "implicit" { "smtps" } else { "smtp" };
    let password = encoded(published.password.expose_secret());
    format!("{scheme}://{}:{password}@{host}:{}", encoded(&published.login), published.port)
}

#[cfg(test)]
mod tests;
