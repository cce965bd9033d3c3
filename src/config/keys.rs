//! Every key of the `config` map, once: what it wants, its default, who may use it, and whether a change waits for
//! the next start. Reading, the list of known names, what a reload says, and the check that the manual mentions
//! each key all go by this table.

use super::Role;

/// One key of the `config` map.
#[derive(Debug)]
pub struct Key {
    /// Its name: `smtp_relay_port`.
    pub name: &'static str,
    /// The name that it also has in a service of another type: `smtp_port`.
    pub local: Option<&'static str>,
    /// Its only name, where it stands in a map of its own: `port`.
    called: Option<&'static str>,
    /// Whether only a service of `type: smtp` has it.
    pub relay_only: bool,
    /// Whether it is a secret, so that `…_file` and a credential give it too.
    pub secret: bool,
    /// Whether a change waits for the next start; all others are taken up by a reload.
    pub restart: bool,
    /// What a value is: "a port from 1 to 65535".
    pub wants: &'static str,
    /// A value as it may stand in the file.
    pub example: &'static str,
    /// What holds when it is missing.
    pub default: &'static str,
    /// What it does, in a line.
    pub doc: &'static str,
    /// Where the manual says more.
    pub see: Option<&'static str>,
}

impl Key {
    const fn new(name: &'static str, wants: &'static str, example: &'static str) -> Self {
        Self {
            name,
            local: None,
            called: None,
            relay_only: false,
            secret: false,
            restart: false,
            wants,
            example,
            default: "none",
            doc: "",
            see: None,
        }
    }

    const fn local(self, name: &'static str) -> Self {
        Self { local: Some(name), ..self }
    }

    /// The same key in the map of one of several upstreams.
    const fn called(&self, called: &'static str) -> Self {
        Self { called: Some(called), ..*self }
    }

    const fn relay_only(self) -> Self {
        Self { relay_only: true, ..self }
    }

    const fn secret(self) -> Self {
        Self { secret: true, ..self }
    }

    const fn restart(self) -> Self {
        Self { restart: true, ..self }
    }

    const fn default(self, default: &'static str) -> Self {
        Self { default, ..self }
    }

    const fn doc(self, doc: &'static str) -> Self {
        Self { doc, ..self }
    }

    const fn see(self, see: &'static str) -> Self {
        Self { see: Some(see), ..self }
    }

    /// The names that it has in a service of this role, `…_file` of secrets apart.
    pub fn names(&self, role: Role) -> impl Iterator<Item = &'static str> {
        let local = self.local.filter(|_| role == Role::LocalMta && self.called.is_none());
        let own = (!self.relay_only || role == Role::Relay).then_some(self.called.unwrap_or(self.name));
        local.into_iter().chain(own)
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
        .local("smtp_server").default("the preset's, else required")
        .doc("The upstream that mail is handed to."),
    Key::new("smtp_relay_port", "a port from 1 to 65535", "587")
        .local("smtp_port").default("the preset's, else 587")
        .doc("Its port."),
    Key::new("smtp_relay_username", "a user name", "postmaster@example.com")
        .local("smtp_username")
        .doc("The login there."),
    Key::new("smtp_relay_password", "a password, in one line", "'…'")
        .local("smtp_password").secret()
        .doc("Its password."),
    Key::new("smtp_relay_provider", "the name of a preset", "mailgun")
        .default("told by the server's name")
        .doc("A preset: host, port, TLS, known limits; any key set beside it wins.")
        .see("providers.md#presets"),
    Key::new("smtp_relay_tls", "one of starttls, implicit, opportunistic, none", "starttls")
        .local("smtp_tls").default("implicit on port 465, else starttls")
        .doc("How the connection is protected."),
    Key::new("smtp_relay_tls_ca", "the path of a PEM file", "/etc/outpost/ca.pem")
        .default("the system's roots")
        .doc("Authorities to trust instead of the system's."),
    Key::new("smtp_relay_tls_fingerprint", "a SHA-256 fingerprint of 64 hexadecimal digits", "'3a:5f:…'")
        .doc("The only certificate to accept, whatever its name and age."),
    Key::new("smtp_relay_tls_cert", "the path of a PEM file", "/etc/outpost/client.pem")
        .doc("Our own certificate, where the upstream asks for one, with its chain."),
    Key::new("smtp_relay_tls_key", "the path of a PEM file", "/etc/outpost/client.key")
        .doc("Its private key."),
    Key::new("smtp_relay_tls_min_version", "1.2 or 1.3", "1.3")
        .default("1.2")
        .doc("The oldest version of TLS that is good enough."),
    Key::new("smtp_relay_auth", "one of auto, plain, login, cram-md5, scram-sha-256, xoauth2, oauthbearer", "auto")
        .default("auto")
        .doc("The mechanism to log in with; auto: the strongest that both sides have."),
    Key::new("smtp_relay_allow_insecure_auth", "true or false", "true")
        .default("false")
        .doc("Send credentials even where nobody verified who reads them."),
    Key::new("smtp_relay_oauth", "a map of token_url, client_id, client_secret, refresh_token, scope",
             "{token_url: …, client_id: …, refresh_token: …}")
        .doc("Access tokens instead of a password.")
        .see("#access-tokens"),
    Key::new("smtp_relay_connections", "a number from 1 to 1000", "10")
        .default("the preset's, else 10")
        .doc("Most connections at once."),
    Key::new("smtp_relay_recipients", "a number from 1 to 100000", "50")
        .default("the preset's, else no bound")
        .doc("Most recipients of one transaction; a message for more goes in several."),
    Key::new("smtp_relay_messages", "a number above 0", "100")
        .default("the preset's, else no bound")
        .doc("Most messages over one connection."),
    Key::new("smtp_relay_proxy", "a URL: socks5:// or http://, user:password@ if need be, host and port", "socks5://proxy:1080")
        .secret()
        .doc("A proxy to connect through: SOCKS5, or HTTP's CONNECT. It resolves the upstream's name.")
        .see("upstream.md#the-way-there"),
    Key::new("smtp_relay_source_address", "an IP address, or one of each family", "192.0.2.7")
        .default("the system's choice")
        .doc("The address to connect from."),
    Key::new("smtp_relay_pipelining", "true or false", "false")
        .default("true")
        .doc("Send several commands at once (RFC 2920), where the upstream says that it can take them.")
        .see("upstream.md#one-round-trip-a-message"),
    Key::new("smtp_relay_chunking", "true or false", "false")
        .default("true")
        .doc("Send content by BDAT (RFC 3030), where the upstream says that it can take it."),
    Key::new("smtp_relay_timeout", "a duration", "30s")
        .default("RFC 5321 §4.5.3.2")
        .doc("Shortens the deadline of each phase to at most this."),
    Key::new("smtp_auth_retry", "two durations, the first and the longest wait", "1m..30m")
        .default("1m..30m")
        .doc("The waits after the upstream refused the login."),
    Key::new("smtp_relay_replies", "a list of rules, each a map", "[{text: slow down, scope: account, means: …}]")
        .default("the table that is shipped")
        .doc("What replies of the upstream mean; asked before the shipped table.")
        .see("providers.md#rules-of-your-own"),
    Key::new("smtp_relays", "a list of upstreams, each a map", "[{name: first, server: smtp.mailgun.org}]")
        .doc("Several upstreams, instead of `smtp_relay_…`; which mail each is for."),
    Key::new("smtp_rate_limit", "a limit, or a list of them", "500 recipients/day")
        .default("the preset's, else none")
        .doc("Most messages or recipients in any stretch of a time."),
    Key::new("smtp_sender_rewrite", "a mail address, or a map of senders to mail addresses", "relay@example.com")
        .doc("Other sender addresses than the apps use, in envelope and From field.")
        .see("#senders"),
    Key::new("smtp_dkim", "a map of domain, selector, key and algorithm, or a list of them", "{domain: example.com}")
        .doc("The keys that sign mail (DKIM).")
        .see("#signatures"),
    Key::new("smtp_breaker_bounces", "a number from 1 to 1000", "10")
        .default("10")
        .doc("Permanent refusals of distinct messages in a row, without a success, after which the rest is held."),

    // The listener.
    Key::new("smtp_listen", "an address with its port, `unix:` and a path, or `fd:` and a name, or a list of them", "0.0.0.0:587")
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
    Key::new("smtp_password_grace", "a duration", "1d")
        .default("none: the old one ends at once")
        .doc("How long a login's old password still works beside its new one.")
        .see("operations.md#running-it"),
    Key::new("smtp_users", "a map of names, each with its password", "{shop: {password: '…'}}")
        .doc("Further logins for apps."),
    Key::new("smtp_networks", "a network, or a list of them", "10.0.0.0/8")
        .default("127.0.0.0/8 and ::1/128")
        .doc("Who may relay without a login."),
    Key::new("smtp_senders", "a domain or a mail address, or a list of them", "[example.com, ceo@example.org]")
        .default("any")
        .doc("The senders that may be used."),
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
        .doc("Most clients at once; a fifth of them is kept for those of `smtp_networks`."),
    Key::new("smtp_max_connections_per_client", "a number from 1 to 100000", "200")
        .default("200")
        .doc("Most connections at once from one address (IPv6: from one network of 64 bits)."),
    Key::new("smtp_max_buffered", "a size above 0", "64MB")
        .default("64MB")
        .doc("Content that all connections together may hold in memory, the first 16 KiB of each message apart; what is more goes to files."),
    Key::new("smtp_max_command_line", "a number from 512 to 32768", "2048")
        .default("2048")
        .doc("Octets of a command line; a longer one is answered 500."),
    Key::new("smtp_max_content_line", "a number from 998 to 1000000000", "998")
        .default("any")
        .doc("Octets of a line of a message, without its CRLF; a longer one is answered 554."),
    Key::new("smtp_max_buffered_per_connection", "a size from 1KB to 256KiB", "256KiB")
        .default("256KiB")
        .doc("Content that one connection may hold in memory; what is longer goes to a file while it comes."),
    Key::new("smtp_max_header_size", "a size from 1KB to 256KiB", "256KiB")
        .default("256KiB")
        .doc("The largest header section; a larger one is answered 552."),
    Key::new("smtp_max_hops", "a number from 1 to 1000", "50")
        .default("50")
        .doc("Most Received fields; more are a mail loop, 554."),
    Key::new("smtp_max_passes", "a number from 1 to 1000", "5")
        .default("5")
        .doc("Most Received fields of our own; more are a mail loop, 554."),
    Key::new("smtp_max_failed_logins", "a number from 1 to 1000", "3")
        .default("3")
        .doc("Wrong logins after which a connection ends."),
    Key::new("smtp_max_errors", "a number from 1 to 100000", "20")
        .default("20")
        .doc("Refused commands without a message in between after which a connection ends."),
    Key::new("smtp_max_commands", "a number from 10 to 100000", "1000")
        .default("1000")
        .doc("Commands without a message in between after which a connection ends."),
    Key::new("smtp_max_commands_before_auth", "a number from 10 to 100000", "100")
        .default("100")
        .doc("The same for a client that may not relay yet."),
    Key::new("smtp_login_timeout", "a duration", "2m")
        .default("2m")
        .doc("How long a client that may not relay without a login may take for it, from its connection on."),
    Key::new("smtp_timeout", "a duration", "5m")
        .default("5m")
        .doc("How long a client may take for a whole command, or be silent in its content."),
    Key::new("smtp_transaction_timeout", "a duration", "1h")
        .default("1h")
        .doc("How long a client may take from MAIL to the end of its content."),
    Key::new("smtp_min_rate", "a size", "500")
        .default("500")
        .doc("Octets of content a second, on average beyond the first minute; 0 turns the check off."),

    // The queue.
    Key::new("smtp_queue", "the path of a directory", "/var/lib/outpost/queue")
        .restart().default("`queue` in the data directory")
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
        .doc("Messages in the queue; more are answered 452. From four fifths on, while the queue grows, each new one waits up to 2 s."),
    Key::new("smtp_queue_max_bytes", "a size above 0", "10GB")
        .doc("Octets in the queue; more are answered 452, and mail waits before as with smtp_queue_max_messages."),
    Key::new("smtp_queue_min_free", "a size", "100MB")
        .default("100MB")
        .doc("What must stay free on the queue's disk; 0 turns the check off."),
    Key::new("smtp_history_age", "a duration", "30d")
        .default("30d")
        .doc("How long what happened to messages is remembered, also after they left."),
    Key::new("smtp_history_events", "a number from 1 to 1000000000", "1000000")
        .default("1000000")
        .doc("Events that are remembered at most; each takes some 400 octets of the queue's disk."),
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
    Key::new("smtp_log_format", "one of human, json", "json")
        .default("human")
        .doc("Lines for people, or a JSON object a line."),
    Key::new("smtp_log_addresses", "one of full, domain, hash", "domain")
        .default("full")
        .doc("What the log shows of people's addresses: all, the domain, or a number in their place."),
    Key::new("smtp_alert_webhook", "an https URL", "https://alerts.example.com/outpost")
        .secret()
        .doc("Who hears that an operator must look; in no way that depends on mail."),
    Key::new("smtp_alert_webhook_secret", "a secret, in one line", "'…'")
        .secret()
        .doc("What alerts are signed with."),
    Key::new("smtp_alert_queue_messages", "a number above 0", "1000")
        .default("10000")
        .doc("Messages in the queue that raise an alert."),
    Key::new("smtp_alert_queue_age", "a duration", "1h")
        .default("4h")
        .doc("Age of the oldest message that raises an alert."),
    Key::new("smtp_alert_certificate", "a duration", "30d")
        .default("14d")
        .doc("How long before the listener's certificate expires an alert is raised."),
    Key::new("smtp_event_webhook", "an https URL", "https://app.example.com/mail-events")
        .secret()
        .doc("Who hears what happens to messages."),
    Key::new("smtp_event_webhook_secret", "a secret, in one line", "'…'")
        .secret()
        .doc("What events are signed with."),
];

/// What a listener holds when it is written as a map.
pub(super) const LISTENER: &[Key] = &[
    Key::new("address", "an address with its port, `unix:` and a path, or `fd:` and a name", "0.0.0.0:465")
        .doc("Where it listens."),
    Key::new("tls", "one of none, starttls, implicit", "implicit")
        .default("starttls")
        .doc("Whether a connection begins in TLS, may change to it, or neither."),
    Key::new("auth", "optional or required", "required")
        .default("optional")
        .doc("Whether everybody must log in here, trusted networks too."),
    Key::new("proxy_protocol", "true, false, or the networks of the load balancers", "10.0.0.5")
        .default("false")
        .doc("Who must begin with a PROXY header, and is believed: the load balancers."),
];

/// What a login holds.
pub(super) const USER: &[Key] = &[
    Key::new("password", "a password, in one line", "'…'").secret().default("required").doc("Its password."),
    Key::new("senders", "a domain or a mail address, or a list of them", "shop.example.com")
        .default("any")
        .doc("The senders that it may use."),
    Key::new("rate_limit", "a limit, or a list of them", "100/hour").doc("How much it may hand in."),
];

/// What one of several upstreams holds: what it is for, and the keys above under shorter names.
pub(super) const RELAY: &[Key] = &[
    Key::new("name", "a name of letters, digits, . _ and -", "first")
        .default("the server's")
        .doc("Its name in the log, status and metrics."),
    Key::new("priority", "a number from 0 to 1000", "10").default("0").doc("Lower goes first."),
    Key::new("weight", "a number from 1 to 1000", "3")
        .default("1")
        .doc("Its share among those of the same priority."),
    Key::new("senders", "a domain or a mail address, or a list of them", "example.com")
        .default("any")
        .doc("Mail from these."),
    Key::new("recipients", "a domain or a mail address, or a list of them", "example.com")
        .default("any")
        .doc("Mail to these."),
    Key::new("users", "a login of an app, or a list of them", "shop")
        .default("any")
        .doc("Mail of these logins."),
    key!("smtp_relay_server").called("server"),
    key!("smtp_relay_port").called("port"),
    key!("smtp_relay_username").called("username"),
    key!("smtp_relay_password").called("password"),
    key!("smtp_relay_provider").called("provider"),
    key!("smtp_relay_tls").called("tls"),
    key!("smtp_relay_tls_ca").called("tls_ca"),
    key!("smtp_relay_tls_fingerprint").called("tls_fingerprint"),
    key!("smtp_relay_tls_cert").called("tls_cert"),
    key!("smtp_relay_tls_key").called("tls_key"),
    key!("smtp_relay_tls_min_version").called("tls_min_version"),
    key!("smtp_relay_auth").called("auth"),
    key!("smtp_relay_allow_insecure_auth").called("allow_insecure_auth"),
    key!("smtp_relay_oauth").called("oauth"),
    key!("smtp_relay_connections").called("connections"),
    key!("smtp_relay_recipients").called("most_recipients"),
    key!("smtp_relay_messages").called("messages"),
    key!("smtp_relay_proxy").called("proxy"),
    key!("smtp_relay_source_address").called("source_address"),
    key!("smtp_relay_pipelining").called("pipelining"),
    key!("smtp_relay_chunking").called("chunking"),
    key!("smtp_relay_timeout").called("timeout"),
    key!("smtp_relay_replies").called("replies"),
    key!("smtp_rate_limit").called("rate_limit"),
    key!("smtp_sender_rewrite").called("sender_rewrite"),
];

/// What the table of replies holds.
pub(super) const REPLIES: &[Key] = &[
    Key::new("waits", "a list of regular expressions", "'again in (?<seconds>\\d+)'"),
    Key::new("rules", "a list of rules", "[]"),
];

/// What a rule about replies holds.
#[rustfmt::skip] // One key, one line.
pub(super) const REPLY: &[Key] = &[
    Key::new("name", "a name", "slow-down").doc("Its name, in the log."),
    Key::new("provider", "a preset's name, or a list of them", "gmail").default("any").doc("Only of these upstreams."),
    Key::new("phase", "one or several of connect, greeting, ehlo, starttls, tls, auth, mail, rcpt, data, content, final reply", "rcpt").default("any").doc("Only replies to these."),
    Key::new("code", "a code of three digits, x for any, or a list of them", "45x").default("any").doc("Only these."),
    Key::new("enhanced", "an enhanced code, x for any number, or none, or a list of them", "5.4.5").default("any").doc("Only these."),
    Key::new("text", "a regular expression", "quota exceeded").default("any").doc("Only where it fits the text, in any case."),
    Key::new("after_accepted", "true or false", "true").default("any").doc("Only where another recipient of the transaction was accepted."),
    Key::new("scope", "one of recipient, message, transaction, sender, credential, account, upstream, network", "account").default("as the phase has it").doc("What the reply is about: only a message or a recipient can be refused for good."),
    Key::new("permanent", "true or false", "false").default("by the first digit").doc("Whether it is for good, whatever the first digit."),
    Key::new("tries", "a number from 1 to 1000", "5").doc("So many are worth it; then it counts as refused."),
    Key::new("who_must_act", "one of operator, the upstream, the sender, nobody", "operator").default("operator").doc("Who can change it."),
    Key::new("means", "words", "the quota of today is used up").doc("What it means, in words for people."),
    Key::new("help", "words", "send less").doc("What to do."),
    Key::new("wait", "a duration, or hour for the next full hour", "10m").doc("How long to wait before the next try."),
    Key::new("slower", "rate or connections", "rate").doc("What the upstream wants less of."),
    Key::new("source", "words", "the provider's manual").doc("Where that is written."),
    Key::new("date", "a day", "2026-11-23").doc("When it was."),
];

/// What the table of presets holds.
pub(super) const PRESETS: &[Key] = &[Key::new("presets", "a list of presets", "[]")];

/// What a preset holds.
#[rustfmt::skip] // One key, one line.
pub(super) const PRESET: &[Key] = &[
    Key::new("name", "a name", "mailgun"),
    Key::new("title", "words", "Mailgun"),
    Key::new("hosts", "a host name, or a list of them", "smtp.mailgun.org"),
    Key::new("host_pattern", "a regular expression", "^smtp"),
    Key::new("ports", "a port, or a list of them", "587"),
    Key::new("implicit", "a port, or a list of them", "465"),
    Key::new("username", "words", "the full address"),
    Key::new("password", "words", "an app password"),
    Key::new("recipients", "a number from 1 to 100000", "50"),
    Key::new("size", "a size above 0", "10MB"),
    Key::new("connections", "a number from 1 to 1000", "3"),
    Key::new("messages", "a number above 0", "100"),
    Key::new("limits", "limits as smtp_rate_limit takes them", "500 recipients/day"),
    Key::new("replaces", "the name of a header field, or a list of them", "date"),
    Key::new("mistakes", "a list of mistakes", "[]"),
    Key::new("sender", "words", "it takes its account's address only"),
    Key::new("gone", "words", "it has ended"),
    Key::new("note", "words", "it is slow"),
    Key::new("source", "words", "its manual"),
    Key::new("date", "a day", "2026-11-23"),
];

/// What a mistake holds.
pub(super) const MISTAKE: &[Key] = &[
    Key::new("user", "a regular expression", "@"),
    Key::new("user_not", "a regular expression", "@"),
    Key::new("password", "a regular expression", "^x"),
    Key::new("password_not", "a regular expression", "^x"),
    Key::new("says", "words", "this is an API key"),
    Key::new("help", "words", "make an SMTP key"),
];

/// What a key that signs mail holds.
pub(super) const DKIM: &[Key] = &[
    Key::new("domain", "a domain name", "example.com")
        .default("required")
        .doc("Mail from this domain, and from below it, is signed."),
    Key::new("selector", "a domain name", "outpost")
        .default("outpost")
        .doc("Tells the keys of a domain apart."),
    Key::new("key", "the path of a PEM file", "/etc/outpost/dkim.pem")
        .default("`dkim/SELECTOR.DOMAIN.pem` in the data directory")
        .doc("The private key."),
    Key::new("algorithm", "rsa or ed25519", "rsa").default("rsa").doc("How it signs."),
];

/// Every key that holds a secret, below the key of its map where it has one: `smtp_users.password`.
pub fn secret_keys() -> impl Iterator<Item = String> {
    let tables: [(&str, &[Key]); 6] = [
        ("", KEYS),
        ("smtp_listen.", LISTENER),
        ("smtp_users.", USER),
        ("smtp_relays.", RELAY),
        ("smtp_dkim.", DKIM),
        ("smtp_relay_oauth.", OAUTH),
    ];
    tables.into_iter().flat_map(|(map, keys)| {
        let secrets = keys.iter().filter(|key| key.secret);
        secrets.map(move |key| format!("{map}{}", key.called.unwrap_or(key.name)))
    })
}

/// What tells where access tokens come from.
pub(super) const OAUTH: &[Key] = &[
    Key::new("provider", "google or microsoft", "microsoft").doc("Sets the URLs and the scope."),
    Key::new("tenant", "a directory's name or number", "example.onmicrosoft.com")
        .default("organizations")
        .doc("The directory at microsoft."),
    Key::new("device_url", "an https URL", "https://oauth2.googleapis.com/device/code")
        .default("the provider's")
        .doc("Where a user's consent is asked for."),
    Key::new("token_url", "an https URL", "https://oauth2.googleapis.com/token")
        .default("the provider's, else required")
        .doc("Where access tokens are given."),
    Key::new("client_id", "words", "1234.apps.googleusercontent.com")
        .default("required")
        .doc("The client's name there."),
    Key::new("client_secret", "a secret, in one line", "'…'").secret().doc("Its secret."),
    Key::new("refresh_token", "a secret, in one line", "'…'")
        .secret()
        .doc("What stands for a user's consent; without one, the client acts by itself."),
    Key::new("scope", "words", "https://mail.google.com/")
        .default("the provider's")
        .doc("What is asked for."),
];
