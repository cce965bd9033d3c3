//! Local mode: the relay with an upstream built in, which keeps what it gets for looking at.
//!
//! Nothing is pretended: the embedded upstream is our own listener with a certificate and a login,
//! made for this run, in front of a queue that nobody empties. The relay reaches it over TCP, TLS and
//! AUTH like any other upstream.

use std::{
    fs, io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use secrecy::SecretString;
use tokio::sync::watch;

use super::{Embedded, MadeOf, Passed, StartError, parts, run};
use crate::{
    clock::Clock,
    config::{
        Access, AdminSettings, AuthMechanism, Bounds, EnvironmentSettings, HistorySettings, Listen,
        ListenerTls, LogSettings, Login, QueueSettings, Replies, Role, Serves, SessionBounds, Settings,
        TlsVersion, Upstream, UpstreamTls, User, Waits, Webhooks,
    },
    listener::{
        Listener, Terms,
        auth::Credentials,
        places::Most,
        policy::{Rules, Senders},
        tls,
    },
    observe::Observer,
    queue::{Action, Queue},
};

/// What `outpost dev` was asked for.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where the relay takes mail.
    pub smtp: SocketAddr,
    /// Where the web page is.
    pub admin: SocketAddr,
    /// Where everything is kept; `None`: [`default_data`].
    pub data: Option<PathBuf>,
}

/// Messages that the embedded upstream keeps; the oldest make room.
const CAPTURED_MAX: u64 = 2_000;
const USERNAME: &str = "dev";

/// Where local mode keeps its data unless told otherwise: of this user, gone with the next boot.
pub fn default_data() -> PathBuf {
    std::env::temp_dir().join(format!("outpost-dev-{}", rustix::process::getuid().as_raw()))
}

/// Runs local mode until a signal ends it. `say` prints the four lines that a newcomer needs.
///
/// # Errors
/// It can't start.
pub fn dev(options: &Options, say: impl Fn(&str)) -> Result<(), StartError> {
    let observer = Observer::default();
    let data = match &options.data {
        Some(data) => data.clone(),
        None => {
            let data = default_data();
            own_directory(&data).map_err(|error| StartError::Data { path: data.clone(), error })?;
            data
        }
    };
    let log = LogSettings { level: "warn,outpost=info".to_owned(), ..LogSettings::default() };
    let log = parts::start_log(&log, &data, &observer);
    let (embedded, upstream) = embedded(&data)?;
    let settings = settings(options, data, upstream);
    let file = settings.environment.files[0].display().to_string();
    let made_of = MadeOf { settings, source: None, passed: Passed::default(), embedded: Some(embedded) };
    run(made_of, observer, &log, || {
        say(&format!("Send mail to  {}   no login and no TLS needed; both work", options.smtp));
        say(&format!(
            "Look at it    http://{}   every message arrives here and goes no further",
            options.admin
        ));
        say(&format!("For apps      {file}   host, port, login and password"));
        say("Stop          Ctrl-C   what has arrived is kept for the next time");
        if !options.admin.ip().is_loopback() {
            say(
                "Mind          no password is asked for: whoever reaches that address reads all that arrives",
            );
        }
    })
}

/// A directory in a place that everybody may write to must be ours before anything goes into it.
fn own_directory(path: &Path) -> io::Result<()> {
    match fs::DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        other => return other,
    }
    let found = fs::symlink_metadata(path)?;
    if found.is_dir() && found.uid() == rustix::process::getuid().as_raw() {
        Ok(())
    } else {
        Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            "it belongs to somebody else; name another with --data",
        ))
    }
}

fn settings(options: &Options, data: PathBuf, upstream: Upstream) -> Settings {
    Settings {
        service: "dev".to_owned(),
        role: Role::Relay,
        hostname: "localhost".to_owned(),
        listen: vec![Listen::at(options.smtp.to_string())],
        tls: None,
        access: Access {
            users: vec![User {
                name: "dotcloud".to_owned(),
                password: None,
                senders: None,
                limits: Vec::new(),
            }],
            password_grace: None,
            senders: None,
            networks: ["127.0.0.0/8", "::1/128"].iter().filter_map(|network| network.parse().ok()).collect(),
        },
        bounds: Bounds {
            binary: true,
            message_size: 25_000_000,
            recipients: 1_000,
            connections: 1_000,
            connections_per_client: 200,
            buffered: 64_000_000,
            session: SessionBounds::default(),
        },
        upstreams: vec![upstream],
        queue: queue_settings(data.join("queue")),
        environment: EnvironmentSettings {
            files: vec![data.join("environment.json"), data.join("environment.yaml")],
            public_host: None,
            relay_password: false,
        },
        admin: AdminSettings { listen: options.admin, password: None },
        dkim: Vec::new(),
        breaker_bounces: 10,
        postmaster: None,
        log: LogSettings::default(),
        webhooks: Webhooks::default(),
        data,
    }
}

fn queue_settings(directory: PathBuf) -> QueueSettings {
    QueueSettings {
        directory,
        lifetime: Duration::from_secs(5 * 86_400),
        delay_warning: Some(Duration::from_secs(4 * 3_600)),
        // Somebody is watching: what fails is tried again while they do.
        retry: Waits { first: Duration::from_secs(1), longest: Duration::from_secs(10) },
        max_messages: None,
        max_bytes: None,
        min_free: 100_000_000,
        history: HistorySettings::default(),
    }
}

/// The embedded upstream, and how to reach it.
fn embedded(data: &Path) -> Result<(Embedded, Upstream), StartError> {
    let directory = data.join("upstream");
    let fail = |error| StartError::Data { path: directory.clone(), error };
    fs::DirBuilder::new().recursive(true).mode(0o700).create(&directory).map_err(fail)?;
    let password = parts::random_password().map_err(fail)?;
    let files = make_certificates(&directory).map_err(|error| fail(io::Error::other(error)))?;
    let ca = directory.join("ca.pem");
    let socket = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .and_then(|socket| socket.set_nonblocking(true).map(|()| socket))
        .map_err(|error| StartError::Bind { address: "127.0.0.1:0".to_owned(), error })?;
    let port = socket.local_addr().map_err(fail)?.port();
    let clock = Clock::System;
    let (captured, writer) = Queue::open(&queue_settings(directory.join("captured")), clock.clone())?;
    let listener = listener(&directory, &files, password.clone(), &captured, clock)?;
    let (listener, shutdown) = listener;
    let upstream = Upstream {
        name: "embedded".to_owned(),
        server: IpAddr::V4(Ipv4Addr::LOCALHOST).to_string(),
        port,
        tls: UpstreamTls::StartTls,
        tls_min_version: TlsVersion::Tls12,
        ca: Some(ca),
        fingerprint: None,
        published: Vec::new(),
        login: Some(Login {
            username: USERNAME.to_owned(),
            password,
            mechanism: AuthMechanism::Auto,
            oauth: None,
        }),
        allow_insecure_auth: false,
        connections: 10,
        timeout: None,
        auth_retry: Waits { first: Duration::from_secs(1), longest: Duration::from_secs(10) },
        identity: None,
        recipients: None,
        messages: None,
        source: Vec::new(),
        proxy: None,
        pipelining: true,
        chunking: true,
        message_size: None,
        provider: None,
        replies: Replies::default(),
        limits: Vec::new(),
        sender_rewrite: None,
        replaces: Vec::new(),
        serves: Serves::default(),
    };
    Ok((Embedded { captured, writer, listener, socket, shutdown }, upstream))
}

fn listener(
    directory: &Path,
    files: &ListenerTls,
    password: SecretString,
    captured: &Queue,
    clock: Clock,
) -> Result<(Listener, watch::Sender<bool>), StartError> {
    let rules = Rules {
        hostname: "upstream.localhost".to_owned(),
        credentials: Credentials::new(vec![(USERNAME.to_owned(), password)]),
        networks: Vec::new(),
        message_size: 50_000_000,
        recipients: 1_000,
        recipients_of_users: Default::default(),
        binary: true,
        hold: Duration::ZERO,
        senders: Senders::default(),
        bounds: SessionBounds::default(),
        trace: false,
    };
    let identity = tls::load(Some(files), directory, "localhost")?;
    let terms = Terms {
        rules: Arc::new(rules),
        allowances: Arc::default(),
        tls: Some(identity.config),
        connections: Most { all: 50, of_one: 50 },
        buffered: 64_000_000,
    };
    let (shutdown, told) = watch::channel(false);
    Ok((Listener::new(terms, captured.clone(), None, clock, told), shutdown))
}

/// An authority made for this run, trusted by this relay alone, and a certificate signed by it. The
/// authority's key is never written down.
fn make_certificates(directory: &Path) -> Result<ListenerTls, Box<dyn std::error::Error + Send + Sync>> {
    let ca_key = KeyPair::generate()?;
    let mut ca = CertificateParams::new(Vec::new())?;
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    ca.distinguished_name.push(rcgen::DnType::CommonName, "Outpost local mode");
    fs::write(directory.join("ca.pem"), ca.clone().self_signed(&ca_key)?.pem())?;
    let key = KeyPair::generate()?;
    let leaf = CertificateParams::new(vec!["localhost".to_owned(), "127.0.0.1".to_owned()])?
        .signed_by(&key, &Issuer::new(ca, ca_key))?;
    let files = ListenerTls { cert: directory.join("cert.pem"), key: directory.join("key.pem") };
    fs::write(&files.cert, leaf.pem())?;
    fs::write(&files.key, key.serialize_pem())?;
    Ok(files)
}

/// Keeps what the embedded upstream holds within its bound, the latest first. Runs for ever.
pub(super) async fn bound_captured(captured: Queue) {
    loop {
        tokio::time::sleep(Duration::from_secs(5)).await;
        let Ok(depth) = captured.depth().await else { continue };
        let too_many = depth.messages.saturating_sub(CAPTURED_MAX) as usize;
        for old in captured.list(None, too_many.min(500)).await.unwrap_or_default() {
            let _ = captured.act(old.id, Action::Delete, "").await;
        }
    }
}
