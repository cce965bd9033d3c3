//! Every key of the `config` map, once: what it wants, its default, who may use it, and whether this
//! version can honour it. Reading, the list of known names, and the check that the manual mentions
//! each key all go by this table.

use super::Role;

/// One key of the `config` map.
#[derive(Debug)]
pub struct Key {
    /// Its name: `smtp_relay_port`.
    pub name: &'static str,
    /// The name that it also has in a service of another type: `smtp_port`.
    pub local: Option<&'static str>,
    /// Whether only a service of `type: smtp` has it.
    pub relay_only: bool,
    /// Whether it is a secret, so that `…_file` and a credential give it too.
    pub secret: bool,
    /// Whether this version honours it. A key that it would ignore is refused.
    pub supported: bool,
    /// What a value is: "a port from 1 to 65535".
    pub wants: &'static str,
    /// A value as it may stand in the file.
    pub example: &'static str,
    /// What holds when it is missing.
    pub default: &'static str,
    /// What it does, in a line.
    pub doc: &'static str,
}

impl Key {
    const fn new(name: &'static str, wants: &'static str, example: &'static str) -> Self {
        Self {
            name,
            local: None,
            relay_only: false,
            secret: false,
            supported: true,
            wants,
            example,
            default: "none",
            doc: "",
        }
    }

    /// A key that is part of the contract and not of this version.
    const fn later(name: &'static str, doc: &'static str) -> Self {
        Self { supported: false, doc, ..Self::new(name, "", "") }
    }

    const fn local(self, name: &'static str) -> Self {
        Self { local: Some(name), ..self }
    }

    const fn relay_only(self) -> Self {
        Self { relay_only: true, ..self }
    }

    const fn secret(self) -> Self {
        Self { secret: true, ..self }
    }

    const fn default(self, default: &'static str) -> Self {
        Self { default, ..self }
    }

    const fn doc(self, doc: &'static str) -> Self {
        Self { doc, ..self }
    }

    /// The names that it has in a service of this role, `…_file` of secrets apart.
    pub fn names(&self, role: Role) -> impl Iterator<Item = &'static str> {
        let local = self.local.filter(|_| role == Role::LocalMta);
        local.into_iter().chain((!self.relay_only || role == Role::Relay).then_some(self.name))
    }

    /// The name to speak of it by in a service of this role.
    pub fn name(&self, role: Role) -> &'static str {
        self.names(role).next().unwrap_or(self.name)
    }
}

/// The key of that name, in [`KEYS`] or the table given.
macro_rules! key {
    ($name:literal) => {
        key!(crate::config::keys::KEYS, $name)
    };
    ($table:expr, $name:literal) => {
        const { &$table[crate::config::keys::position($table, $name)] }
    };
}
pub(super) use key;

/// Where a key stands in its table; a name that isn't there doesn't compile.
pub(super) const fn position(table: &[Key], name: &str) -> usize {
    let mut at = 0;
    while !same(table[at].name.as_bytes(), name.as_bytes()) {
        at += 1;
    }
    at
}

const fn same(a: &[u8], b: &[u8]) -> bool {
    let mut at = 0;
    while at < a.len() && at < b.len() && a[at] == b[at] {
        at += 1;
    }
    at == a.len() && at == b.len()
}

/// Every key, in the manual's order.
#[rustfmt::skip] // One key, one paragraph.
pub const KEYS: &[Key] = &[
    // The upstream.
    Key::new("smtp_relay_server", "a host name or an address", "smtp.mailgun.org")
        .local("smtp_server").default("required")
        .doc("The upstream that mail is handed to."),
    Key::new("smtp_relay_port", "a port from 1 to 65535", "587")
        .local("smtp_port").default("587")
        .doc("Its port."),
    Key::new("smtp_relay_username", "a user name", "postmaster@example.com")
        .local("smtp_username")
        .doc("The login there."),
    Key::new("smtp_relay_password", "a password, in one line", "'…'")
        .local("smtp_password").secret()
        .doc("Its password."),
    Key::later("smtp_relay_provider", "A preset by name: host, port, TLS, limits."),
    Key::new("smtp_relay_tls", "one of starttls, implicit, opportunistic, none", "starttls")
        .local("smtp_tls").default("implicit on port 465, else starttls")
        .doc("How the connection is protected."),
    Key::new("smtp_relay_tls_ca", "the path of a PEM file", "/etc/outpost/ca.pem")
        .default("the system's roots")
        .doc("Authorities to trust instead of the system's."),
    Key::new("smtp_relay_tls_fingerprint", "a SHA-256 fingerprint of 64 hexadecimal digits", "'3a:5f:…'")
        .doc("The only certificate to accept, whatever its name and age."),
    Key::later("smtp_relay_tls_cert", "A client certificate."),
    Key::later("smtp_relay_tls_key", "The client certificate's key."),
    Key::new("smtp_relay_auth", "one of auto, plain, login, cram-md5", "auto")
        .default("auto")
        .doc("The mechanism to log in with; auto: the strongest that both sides have."),
    Key::new("smtp_relay_allow_insecure_auth", "true or false", "true")
        .default("false")
        .doc("Send credentials even where nobody verified who reads them."),
    Key::later("smtp_relay_oauth", "Tokens instead of a password."),
    Key::new("smtp_relay_connections", "a number from 1 to 1000", "10")
        .default("10")
        .doc("Most connections at once."),
    Key::new("smtp_relay_timeout", "a duration", "30s")
        .default("RFC 5321 §4.5.3.2")
        .doc("Shortens the deadline of each phase to at most this."),
    Key::new("smtp_auth_retry", "two durations, the first and the longest wait", "1m..30m")
        .default("1m..30m")
        .doc("The waits after the upstream refused the login."),
    Key::later("smtp_relays", "Several upstreams."),
    Key::later("smtp_rate_limit", "Most messages or recipients in a time."),
    Key::later("smtp_sender_rewrite", "Other sender addresses than the apps use."),
    Key::later("smtp_breaker_bounces", "Refusals in a row after which the rest is held."),

    // The listener.
    Key::new("smtp_listen", "an address with its port, or a list of them", "0.0.0.0:587")
        .default("0.0.0.0:587; 127.0.0.1:25 for a local MTA")
        .doc("Where apps hand in mail."),
    Key::new("smtp_hostname", "a domain name", "mailer.example.com")
        .default("the system's")
        .doc("Our name in banner, EHLO, Received and Message-ID."),
    Key::new("smtp_username", "a user name", "dotcloud")
        .relay_only().default("dotcloud")
        .doc("The login for apps."),
    Key::new("smtp_password", "a password, in one line", "'…'")
        .relay_only().secret().default("generated once and kept")
        .doc("Its password."),
    Key::later("smtp_password_grace", "How long a changed password's predecessor still works."),
    Key::new("smtp_users", "a map of names, each with its password", "{shop: {password: '…'}}")
        .doc("Further logins for apps."),
    Key::new("smtp_networks", "a network, or a list of them", "10.0.0.0/8")
        .default("127.0.0.0/8 and ::1/128")
        .doc("Who may relay without a login."),
    Key::later("smtp_senders", "The senders that may be used."),
    Key::new("smtp_tls_cert", "the path of a PEM file", "/etc/outpost/cert.pem")
        .default("self-signed, made once")
        .doc("The listener's certificate, with its chain."),
    Key::new("smtp_tls_key", "the path of a PEM file", "/etc/outpost/key.pem")
        .doc("Its private key."),
    Key::new("smtp_max_message_size", "a size above 0", "25MB")
        .default("25MB")
        .doc("The largest message."),
    Key::new("smtp_binarymime", "true or false", "true")
        .default("false")
        .doc("Take binary messages (BINARYMIME); only where the upstream takes them too."),
    Key::new("smtp_max_recipients", "a number from 1 to 100000", "1000")
        .default("1000")
        .doc("Most recipients of one message."),
    Key::new("smtp_max_connections", "a number from 1 to 100000", "1000")
        .default("1000")
        .doc("Most clients at once."),
    Key::new("smtp_max_connections_per_client", "a number from 1 to 100000", "200")
        .default("200")
        .doc("Most connections at once from one address."),

    // The queue.
    Key::new("smtp_queue", "the path of a directory", "/var/lib/outpost/queue")
        .default("`queue` in the data directory")
        .doc("Where mail waits."),
    Key::new("smtp_queue_lifetime", "a duration", "5d")
        .default("5d")
        .doc("When to give up."),
    Key::new("smtp_retry", "two durations, the first and the longest wait", "1m..1h")
        .default("1m..1h")
        .doc("The waits between tries."),
    Key::new("smtp_delay_warning", "a duration, or never", "4h")
        .default("4h")
        .doc("When to tell the sender that mail is late."),
    Key::new("smtp_queue_max_messages", "a number above 0", "100000")
        .doc("Messages in the queue; more are answered 452."),
    Key::new("smtp_queue_max_bytes", "a size above 0", "10GB")
        .doc("Octets in the queue; more are answered 452."),
    Key::new("smtp_queue_min_free", "a size", "100MB")
        .default("100MB")
        .doc("What must stay free on the queue's disk; 0 turns the check off."),
    Key::new("smtp_postmaster", "a mail address", "postmaster@example.com")
        .default("none: kept in the queue as held")
        .doc("Who gets what can't be returned."),

    // What is seen from outside.
    Key::new("smtp_environment_file", "a path that ends in .json, .yml, .yaml or .env, or a list of them",
             "/home/dotcloud/environment.json")
        .default("`environment.json` and `environment.yaml` in the data directory")
        .doc("Where the parameters for apps are published."),
    Key::new("smtp_public_host", "a host name or an address", "mailer")
        .default("the listener's address, else the host name")
        .doc("The host under which apps reach us."),
    Key::new("smtp_publish_relay_password", "true or false", "false")
        .default("false")
        .doc("Publish the upstream's password too."),
    Key::new("smtp_admin_listen", "an IP address with its port", "127.0.0.1:8025")
        .default("127.0.0.1:8025")
        .doc("Web page, API and metrics."),
    Key::new("smtp_admin_password", "a password, in one line", "'…'")
        .secret()
        .doc("Needed to listen there on anything but loopback."),
    Key::new("smtp_log_level", "error, warn, info, debug or trace, or target=level pairs", "info")
        .default("info")
        .doc("What is logged, as `tracing` understands it."),
];

/// What a listener holds when it is written as a map.
pub(super) const LISTENER: &[Key] = &[
    Key::new("address", "an address with its port", "0.0.0.0:465"),
    Key::new("tls", "one of none, starttls, implicit", "implicit"),
    Key::later("auth", "Whether a login is required here."),
    Key::later("proxy_protocol", "Whether a load balancer names the client."),
];

/// What a login holds.
pub(super) const USER: &[Key] = &[
    Key::new("password", "a password, in one line", "'…'").secret(),
    Key::later("senders", "The senders that it may use."),
    Key::later("rate_limit", "Most messages in a time."),
];
