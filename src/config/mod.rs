//! Configuration: `dotcloud.yml` and the environment, turned into typed settings.
//!
//! [`load()`] reads a file once, judges the whole of it, and returns either [`Settings`] or every
//! [`Problem`] it found, each with file, line, column and what to do. Settings are plain data:
//! whoever holds them needs no other source, and nothing here opens a socket or starts a task.
//!
//! The rest of the program never sees YAML, and never sees an environment variable.

mod hints;
mod keys;
mod limit;
mod listener;
mod load;
mod node;
mod path;
pub mod presets;
mod problem;
mod reader;
mod replies;
mod schema;
mod secret;
mod services;
mod settings;
#[cfg(test)]
mod tests;
mod told;
mod upstream;
mod value;
mod vocabulary;

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use ipnet::IpNet;
use secrecy::{ExposeSecret as _, SecretString};

use crate::smtp::{
    framing::COMMAND_LINE_MAX,
    pattern::{AddressMap, AddressPattern},
};

pub use self::path::{Proxy, ProxyProtocol};
pub use self::{
    keys::{KEYS, Key, secret_keys},
    limit::{Counts, Limit, parse_limit},
    load::{Loaded, Places, Source, load, load_with_files, parse},
    problem::{Problem, Problems},
    replies::{Replies, ReplyRule, ReplyWait},
    schema::schema,
    told::{LogAddresses, LogFormat, LogSettings, Thresholds, Webhook, Webhooks},
};

/// Everything one relay needs to run, resolved: defaults applied, overrides merged, secrets read.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The service's name in dotcloud.yml: `mailer`.
    pub service: String,
    /// What the service is: the relay itself, or another service's local MTA.
    pub role: Role,
    /// The name in the banner, EHLO, Received and Message-ID.
    pub hostname: String,
    /// Where everything lives that must survive a restart.
    pub data: PathBuf,
    /// The addresses that take mail.
    pub listen: Vec<Listen>,
    /// The listener's certificate and key; `None`: self-signed, made once and kept under `data`.
    pub tls: Option<ListenerTls>,
    /// Who may hand us mail.
    pub access: Access,
    /// The most that a client may ask of us.
    pub bounds: Bounds,
    /// Where mail goes: at least one. Only `smtp_relays` makes several.
    pub upstreams: Vec<Upstream>,
    /// Where mail waits, and for how long.
    pub queue: QueueSettings,
    /// What is published for apps.
    pub environment: EnvironmentSettings,
    /// The web page, API and metrics.
    pub admin: AdminSettings,
    /// The keys that sign mail.
    pub dkim: Vec<Dkim>,
    /// Permanent refusals of distinct messages in a row, without a success, after which the rest is
    /// held.
    pub breaker_bounces: usize,
    /// Who gets reports that can't be returned to their sender.
    pub postmaster: Option<String>,
    /// What is logged, and how.
    pub log: LogSettings,
    /// Who is told what over HTTP.
    pub webhooks: Webhooks,
}

/// What kind of service the settings were read from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// A service of `type: smtp`, configured by `smtp_relay_*`.
    Relay,
    /// The local MTA of a service of another type, configured by `smtp_server` and its kin.
    LocalMta,
}

/// One address that takes mail.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listen {
    /// Host and port as written, resolved when it is bound; or `unix:` and a path; or `fd:` and the name of a socket
    /// that whoever starts us passes.
    pub address: String,
    /// Whether the connection starts in TLS, may change to it, or neither.
    pub tls: ListenTls,
    /// Everybody must log in, trusted networks too.
    pub login_required: bool,
    /// Whose connections begin with a PROXY header that names the client.
    pub proxies: Vec<IpNet>,
}

impl Listen {
    /// An address that offers STARTTLS and asks for nothing special.
    pub fn at(address: impl Into<String>) -> Self {
        Self { address: address.into(), tls: ListenTls::StartTls, login_required: false, proxies: Vec::new() }
    }

    /// Whether whoever starts us passes it, open already.
    pub fn is_passed(&self) -> bool {
        self.address.starts_with("fd:")
    }

    /// Whether it is a Unix socket, which only this machine can reach.
    pub fn is_unix(&self) -> bool {
        self.address.starts_with("unix:")
    }
}

/// TLS on a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListenTls {
    /// Never.
    None,
    /// Offered by STARTTLS (RFC 3207).
    StartTls,
    /// From the first byte (RFC 8314 §3.3).
    Implicit,
}

/// A certificate of our own, in files.
#[derive(Clone, Debug)]
pub struct ListenerTls {
    /// PEM file with the chain, the leaf first.
    pub cert: PathBuf,
    /// PEM file with the private key.
    pub key: PathBuf,
}

/// Who may hand us mail.
#[derive(Clone, Debug)]
pub struct Access {
    /// The logins for apps. The first is the one that is published.
    pub users: Vec<User>,
    /// How long a login's old password still works beside its new one; `None`: not at all.
    pub password_grace: Option<Duration>,
    /// Networks that may relay without AUTH.
    pub networks: Vec<IpNet>,
    /// The senders that may be used at all; `None`: any.
    pub senders: Option<Vec<AddressPattern>>,
}

/// One login for apps.
#[derive(Clone, Debug)]
pub struct User {
    /// What the client says it is.
    pub name: String,
    /// In clear, because CRAM-MD5 needs it (RFC 2195).
    /// `None`: generated at first start and kept in the data directory.
    pub password: Option<SecretString>,
    /// The senders that it may use; `None`: any.
    pub senders: Option<Vec<AddressPattern>>,
    /// What it may hand in, at most.
    pub limits: Vec<Limit>,
}

/// The most that a client may ask of us.
#[derive(Clone, Debug)]
pub struct Bounds {
    /// Octets of one message's content.
    pub message_size: u64,
    /// Whether that content may be binary (RFC 3030 §3).
    pub binary: bool,
    /// Recipients of one message.
    pub recipients: usize,
    /// Connections at once.
    pub connections: usize,
    /// Connections at once from one address.
    pub connections_per_client: usize,
    /// Octets of content that all connections together may hold in memory.
    pub buffered: usize,
    /// The bounds of a single session.
    pub session: SessionBounds,
}

/// The most that a client may ask of us in one session.
#[derive(Clone, Copy, Debug)]
pub struct SessionBounds {
    /// Octets of a command line.
    pub command_line: usize,
    /// Octets of a line of content; `None`: any.
    pub content_line: Option<usize>,
    /// Octets of a message's header section.
    pub header: usize,
    /// Octets of a message that are held in memory, before it goes to a file; not less than `header`.
    pub buffered: usize,
    /// Received fields of a message.
    pub hops: usize,
    /// Received fields of our own.
    pub passes: usize,
    /// Wrong logins.
    pub failed_logins: usize,
    /// Refused commands.
    pub errors: usize,
    /// Commands that bring no message forward, since the last message.
    pub commands: usize,
    /// The same of a client that may not relay yet.
    pub commands_before_auth: usize,
    /// From the connection to the login of a client that may not relay without one.
    pub login_timeout: Duration,
    /// A wait for a whole command, or for more content.
    pub timeout: Duration,
    /// From MAIL to the end of content.
    pub transaction_timeout: Duration,
    /// Octets of content a second, on average; 0: any.
    pub min_rate: u64,
}

impl Default for SessionBounds {
    fn default() -> Self {
        Self {
            command_line: COMMAND_LINE_MAX,
            // Lines of any length cost no memory, and the upstream knows best what it takes.
            content_line: None,
            // More is an attack or a mistake, and every next hop would have to bear it.
            header: 256 * 1024,
            buffered: 256 * 1024,
            // RFC 5321 §6.3 suggests at least 100; mail that passed 50 relays is going round in circles.
            hops: 50,
            // Once or twice a message may come back, by a list or a forwarding rule; more often it goes in
            // circles, and the hops of others need not be waited for.
            passes: 5,
            // So that guessing costs a new connection each time.
            failed_logins: 3,
            // Postfix's hard limit; there, too, they are errors without a message in between.
            errors: 20,
            // A mail library's pool may say NOOP now and then; more than this is no mail client.
            commands: 1000,
            // Postfix's junk command limit.
            commands_before_auth: 100,
            // What logs in does so at once; two minutes leave time for a slow handshake, and for a person.
            login_timeout: Duration::from_secs(120),
            // RFC 5321 §4.5.3.2.7: a server waits at least five minutes for the next command.
            timeout: Duration::from_secs(300),
            transaction_timeout: Duration::from_secs(3600),
            // As Postfix's smtpd_min_data_rate.
            min_rate: 500,
        }
    }
}

/// Where mail goes: one smarthost and how to talk to it.
#[derive(Clone, Debug)]
pub struct Upstream {
    /// Its name in logs, status and metrics; the server's name unless another is given.
    pub name: String,
    /// Host name or address, as configured: the certificate is verified against it.
    pub server: String,
    /// TCP port.
    pub port: u16,
    /// How the connection is protected.
    pub tls: UpstreamTls,
    /// The oldest version of TLS that is good enough.
    pub tls_min_version: TlsVersion,
    /// PEM file of authorities to trust instead of the system's.
    pub ca: Option<PathBuf>,
    /// Our own certificate, where the upstream asks for one.
    pub identity: Option<ListenerTls>,
    /// SHA-256 of the only certificate to accept, whatever its name.
    pub fingerprint: Option<[u8; 32]>,
    /// Files of the application's environment.json kind, where another relay of the same
    /// application may have published the fingerprint of its self-signed certificate.
    pub published: Vec<PathBuf>,
    /// Login, if there is one.
    pub login: Option<Login>,
    /// Send credentials even where nobody verified who reads them.
    pub allow_insecure_auth: bool,
    /// Most connections at once.
    pub connections: usize,
    /// Shortens each phase's RFC 5321 §4.5.3.2 deadline to at most this.
    pub timeout: Option<Duration>,
    /// First and longest wait after a refused login.
    pub auth_retry: Waits,
    /// Most recipients of one transaction.
    pub recipients: Option<usize>,
    /// Most messages over one connection.
    pub messages: Option<u64>,
    /// The addresses that connections are made from, at most one of each family; empty: the system's choice.
    pub source: Vec<IpAddr>,
    /// Who connects us to it.
    pub proxy: Option<Proxy>,
    /// Send it what it need not be asked for first, where it says that it can take that.
    pub pipelining: bool,
    /// Send it content in chunks, where it says that it can take that.
    pub chunking: bool,
    /// Octets of its largest message, where its EHLO doesn't say: the provider's documented one.
    pub message_size: Option<u64>,
    /// The provider's preset, where it is known.
    pub provider: Option<String>,
    /// What its replies mean.
    pub replies: Replies,
    /// What it may be sent, at most.
    pub limits: Vec<Limit>,
    /// Other addresses for the senders that apps use.
    pub sender_rewrite: Option<AddressMap>,
    /// Header fields that it replaces, in small letters, so that a signature leaves them out.
    pub replaces: Vec<String>,
    /// Which mail it is for.
    pub serves: Serves,
}

/// Which mail an upstream is for. An empty list means all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Serves {
    /// Lower goes first.
    pub priority: u32,
    /// Its share among those of the same priority; 0 counts as 1.
    pub weight: u32,
    /// Mail from these. The null reverse-path of reports belongs to all.
    pub senders: Vec<AddressPattern>,
    /// Mail to these.
    pub recipients: Vec<AddressPattern>,
    /// Mail of these logins.
    pub users: Vec<String>,
}

impl Upstream {
    /// Tells one login from another, after a restart too. So short that it gives nothing away.
    pub fn login_mark(&self) -> u16 {
        use sha2::Digest as _;
        let login = self.login.as_ref().map(|login| login.identity().join("\0")).unwrap_or_default();
        let sum = sha2::Sha256::digest(format!("{}\0{}\0{login}", self.server, self.port));
        u16::from_be_bytes([sum[0], sum[1]])
    }

    /// Whether a connection to the one is as good as one to the other.
    pub fn is_same(&self, other: &Self) -> bool {
        let login = |upstream: &Self| upstream.login.as_ref().map(Login::identity);
        let proxy = |upstream: &Self| upstream.proxy.as_ref().map(Proxy::identity);
        let others = |upstream: &Self| Self {
            login: None,
            proxy: None,
            limits: Vec::new(),
            sender_rewrite: None,
            replaces: Vec::new(),
            serves: Serves::default(),
            ..upstream.clone()
        };
        // What lies in a file may have changed without its name.
        let in_files = self.ca.is_some() || self.identity.is_some();
        // Without login and proxy its debug form holds every field and no secret.
        !in_files
            && login(self) == login(other)
            && proxy(self) == proxy(other)
            && format!("{:?}", others(self)) == format!("{:?}", others(other))
    }
}

/// How the connection to the upstream is protected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UpstreamTls {
    /// STARTTLS, and nothing happens without it.
    StartTls,
    /// TLS from the first byte.
    Implicit,
    /// STARTTLS where it is offered, without verification; otherwise in clear.
    Opportunistic,
    /// In clear.
    None,
}

/// A version of TLS. RFC 8996: nothing older is ever spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum TlsVersion {
    /// RFC 5246.
    Tls12,
    /// RFC 8446.
    Tls13,
}

/// The login at the upstream.
#[derive(Clone, Debug)]
pub struct Login {
    /// User name.
    pub username: String,
    /// Password.
    pub password: SecretString,
    /// Which mechanism to use.
    pub mechanism: AuthMechanism,
    /// Where to get access tokens, which then take the password's place.
    pub oauth: Option<OAuth>,
}

/// `smtp_relay_oauth` (RFC 6749): with a refresh token, or as a client by itself.
#[derive(Clone, Debug)]
pub struct OAuth {
    /// The token endpoint.
    pub token_url: String,
    /// Where a user's consent is asked for (RFC 8628).
    pub device_url: Option<String>,
    /// The client's name there.
    pub client_id: String,
    /// Its secret.
    pub client_secret: Option<SecretString>,
    /// What stands for the user's consent.
    pub refresh_token: Option<SecretString>,
    /// What is asked for.
    pub scope: Option<String>,
    /// The file for a refresh token that was given in the place of another, or for a consent.
    pub kept: PathBuf,
}

impl Login {
    /// All that makes one login another, secrets included.
    fn identity(&self) -> [String; 8] {
        let secret = |secret: Option<&SecretString>| secret.map_or("", |s| s.expose_secret()).to_owned();
        let oauth = self.oauth.as_ref();
        let text = |text: Option<&String>| text.cloned().unwrap_or_default();
        [
            self.username.clone(),
            secret(Some(&self.password)),
            format!("{:?}", self.mechanism),
            text(oauth.map(|oauth| &oauth.token_url)),
            text(oauth.map(|oauth| &oauth.client_id)),
            secret(oauth.and_then(|oauth| oauth.client_secret.as_ref())),
            secret(oauth.and_then(|oauth| oauth.refresh_token.as_ref())),
            text(oauth.and_then(|oauth| oauth.scope.as_ref())),
        ]
    }
}

/// `smtp_relay_auth`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AuthMechanism {
    /// The strongest that both sides have.
    Auto,
    /// RFC 4616.
    Plain,
    /// The old one without an RFC.
    Login,
    /// RFC 2195.
    CramMd5,
    /// RFC 7677, with its channel binding where both sides have one.
    ScramSha256,
    /// RFC 7628.
    OAuthBearer,
    /// The same before it had an RFC.
    XOAuth2,
}

/// A first and a longest wait; between them waits grow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waits {
    /// The first wait.
    pub first: Duration,
    /// No wait is longer, jitter aside.
    pub longest: Duration,
}

/// Where mail waits, and for how long.
#[derive(Clone, Debug)]
pub struct QueueSettings {
    /// A directory on a local disk.
    pub directory: PathBuf,
    /// When to give up.
    pub lifetime: Duration,
    /// When to tell the sender that mail is late; `None`: never.
    pub delay_warning: Option<Duration>,
    /// The waits of ordinary deferrals.
    pub retry: Waits,
    /// Messages; more are answered 452.
    pub max_messages: Option<u64>,
    /// Octets; more are answered 452.
    pub max_bytes: Option<u64>,
    /// Octets that must stay free on the queue's disk; 0 turns the check off.
    pub min_free: u64,
    /// How much is remembered of what happened.
    pub history: HistorySettings,
}

/// How much is remembered of what happened to messages, also after they left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HistorySettings {
    /// Events older than this are forgotten.
    pub age: Duration,
    /// The oldest of more than these are forgotten.
    pub events: u64,
}

impl Default for HistorySettings {
    fn default() -> Self {
        Self { age: Duration::from_secs(30 * 86_400), events: 1_000_000 }
    }
}

/// A key that signs mail from a domain (RFC 6376).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dkim {
    /// The domain of the From field, or one above it.
    pub domain: String,
    /// Tells the domain's keys apart.
    pub selector: String,
    /// PEM file with the private key.
    pub key: PathBuf,
    /// What `outpost dkim` makes if it is missing.
    pub algorithm: DkimAlgorithm,
}

/// What a key is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DkimAlgorithm {
    /// RSA with 2048 bits, which every verifier knows.
    Rsa,
    /// Ed25519 (RFC 8463), short and quick; not every verifier knows it.
    Ed25519,
}

/// What is published for apps, and where.
#[derive(Clone, Debug)]
pub struct EnvironmentSettings {
    /// `.json`, `.yml`/`.yaml` or `.env`, by their endings.
    pub files: Vec<PathBuf>,
    /// The host that apps can reach us under; `None`: the listener's address or the host name.
    pub public_host: Option<String>,
    /// Publish the upstream's password too.
    pub relay_password: bool,
}

/// The web page, API and metrics.
#[derive(Clone, Debug)]
pub struct AdminSettings {
    /// TCP address.
    pub listen: SocketAddr,
    /// Needed to listen anywhere but loopback.
    pub password: Option<SecretString>,
}

/// Reads a duration as settings write it: `30s`, `5d`. `None` if it is none.
pub fn parse_duration(text: &str) -> Option<Duration> {
    value::duration(text).ok()
}
