//! The composition root: builds the parts, runs them, reloads, drains.
//!
//! - here: one relay, from settings to goodbye
//! - [`parts`]: what is made of settings, at start and at each reload
//! - [`dev`]: local mode: the same relay with an upstream built in
//!
//! Order of the start: everything that can be wrong is found before the first socket answers; the
//! environment is published once it does. Order of the end: no new connections, idle sessions told,
//! final replies waited for, the writer last.

pub mod dev;
pub mod parts;

use std::{io, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use secrecy::SecretString;
use tokio::{
    net::TcpListener,
    signal::unix::{Signal, SignalKind, signal},
    sync::{mpsc, oneshot, watch},
    time::{Instant, MissedTickBehavior, timeout_at},
};

use crate::{
    admin::{self, Admin},
    clock::Clock,
    config::{self, ListenTls, Loaded, Settings, Source},
    delivery::{dkim::KeyFault, tls::TlsFault},
    environment::{self, Published},
    listener::{
        Listener,
        allowance::Allowances,
        socket::Socket,
        tls::{self, Identity, IdentityError},
    },
    observe::Observer,
    queue::{OpenError, Queue, WriterThread, disk},
    runner::Runner,
};

/// How often the listener's certificate is looked at: soon enough for whoever waits, cheap enough to forget.
const CERTIFICATE_LOOK: Duration = Duration::from_secs(3);
/// SIGTERM to exit: container runtimes wait ten seconds before they kill.
const DRAIN: Duration = Duration::from_secs(8);
/// How long the end waits for tasks to let go, and for the writers behind them, on a disk that hangs.
const LET_GO: Duration = Duration::from_millis(500);
const LAST_WRITES: Duration = Duration::from_secs(1);

/// The relay can't start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The queue.
    #[error(transparent)]
    Queue(#[from] OpenError),
    /// An address.
    #[error("can't listen on {address}: {error}")]
    Bind {
        /// Which.
        address: String,
        /// Why.
        error: io::Error,
    },
    /// The listener's certificate.
    #[error("the listener's certificate: {0}")]
    Identity(#[from] IdentityError),
    /// The upstream's TLS settings.
    #[error("TLS to the upstream: {0}")]
    Tls(#[from] TlsFault),
    /// A key that signs mail.
    #[error(transparent)]
    Key(#[from] KeyFault),
    /// A file in the data directory, or the runtime.
    #[error("{}: {error}", path.display())]
    Data {
        /// Which.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
}

impl StartError {
    /// As sysexits(3) has it.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Queue(OpenError::InUse { .. }) => 75,
            Self::Queue(OpenError::Store { .. }) => 65,
            Self::Bind { error, .. }
            | Self::Data { error, .. }
            | Self::Queue(OpenError::Io { error, .. })
                if error.kind() == io::ErrorKind::PermissionDenied =>
            {
                77
            }
            Self::Bind { .. } => 69,
            Self::Queue(OpenError::Io { .. }) | Self::Data { .. } => 73,
            Self::Identity(_) | Self::Tls(_) | Self::Key(_) => 78,
        }
    }
}

/// Runs the relay until a signal ends it.
///
/// # Errors
/// It can't start; nothing was half-started.
pub fn serve(loaded: Loaded, source: Source) -> Result<(), StartError> {
    let observer = Observer::default();
    let _log = parts::start_log(&loaded.settings.log_level, &observer);
    for warning in &loaded.warnings {
        tracing::warn!("{warning}");
    }
    if let Some(warning) = disk::thrown_away(&loaded.settings) {
        tracing::warn!("{warning}");
    }
    run(loaded.settings, Some(source), None, observer, || ())
}

/// What local mode adds: where the embedded upstream keeps what it gets, and its own writer.
pub(crate) struct Embedded {
    pub(crate) captured: Queue,
    pub(crate) writer: WriterThread,
    pub(crate) listener: Listener,
    pub(crate) socket: std::net::TcpListener,
    pub(crate) shutdown: watch::Sender<bool>,
}

/// Builds and runs one relay, and waits for its writers when all else has ended.
pub(crate) fn run(
    settings: Settings,
    source: Option<Source>,
    embedded: Option<Embedded>,
    observer: Observer,
    ready: impl FnOnce(),
) -> Result<(), StartError> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| StartError::Data { path: settings.data.clone(), error })?;
    raise_descriptor_limit();
    let data = settings.data.clone();
    let writers = runtime.block_on(async {
        // Before anything else, so that an early signal doesn't end us the hard way.
        let signals = Signals::new().map_err(|error| StartError::Data { path: data, error })?;
        let service = Service::start(settings, source, embedded, observer).await?;
        ready();
        Ok::<_, StartError>(service.until_stopped(signals).await)
    })?;
    // Drops what is still under way, and with it the last handles of the queue.
    runtime.shutdown_timeout(LET_GO);
    let until = std::time::Instant::now() + LAST_WRITES;
    // Not `all`: each of them has its turn.
    let unwritten = writers.iter().filter(|writer| !writer.ends_by(until)).count();
    if unwritten > 0 {
        // Accepted mail is on disk since its 250; what can be missing are outcomes.
        tracing::error!("the queue's disk hangs: what was delivered last may be sent again");
    }
    tracing::info!("stopped");
    Ok(())
}

/// The signals that we answer.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }
}

/// As many descriptors as we may have: with the usual 1,024 the clients alone could take them all,
/// and deliveries would find none left.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::warn!(%error, "the limit on open files can't be raised");
    }
}

/// A running relay.
struct Service {
    settings: Arc<ArcSwap<Settings>>,
    source: Option<Source>,
    published: Arc<ArcSwap<Published>>,
    bound: SocketAddr,
    listener: Listener,
    allowances: Arc<ArcSwap<Allowances>>,
    runner: Runner,
    shutdown: watch::Sender<bool>,
    running: tokio::task::JoinHandle<()>,
    reloads: mpsc::Receiver<oneshot::Sender<Result<String, String>>>,
    writers: Vec<WriterThread>,
    capture_shutdown: Option<watch::Sender<bool>>,
    certificate: tls::Stamp,
    clock: Clock,
}

impl Service {
    async fn start(
        settings: Settings,
        source: Option<Source>,
        embedded: Option<Embedded>,
        observer: Observer,
    ) -> Result<Self, StartError> {
        let clock = Clock::System;
        let (shutdown, told) = watch::channel(false);

        parts::make_data_directory(&settings)?;
        let (queue, writer) = Queue::open(&settings.queue, clock.clone())?;
        let keeper = queue.clone();
        observer.keep_by(Box::new(move |event| {
            keeper.record(event.id.parse().ok(), event.octets());
        }));
        // Looked at before it is read, so that no change falls in between.
        let mut certificate = parts::certificate_stamp(&settings);
        let identity = parts::identity(&settings)?;
        if !certificate.is_complete() {
            certificate = parts::certificate_stamp(&settings);
        }
        let access = parts::access(&settings)?;
        let orders = parts::orders(&settings, &[], &clock)?;
        let mut sockets = Vec::new();
        for listen in &settings.listen {
            let socket = Socket::bind(&listen.address).await;
            let socket =
                socket.map_err(|error| StartError::Bind { address: listen.address.clone(), error })?;
            sockets.push((socket, listen));
        }
        let admin_socket = bind(&settings.admin.listen.to_string()).await?;
        let bound = sockets
            .iter()
            .find_map(|(socket, _)| socket.tcp_address())
            .unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 0)));

        let entrances: Vec<_> = sockets
            .into_iter()
            .map(|(socket, listen)| {
                let address = socket.tcp_address().map_or(listen.address.clone(), |bound| bound.to_string());
                tracing::info!(address, tls = ?listen.tls, "taking mail");
                (socket, parts::entrance(listen))
            })
            .collect();
        let published = parts::published(&settings, bound, identity.as_ref(), &access);
        publish(&settings, &published).await;
        let allowances = parts::allowances(&settings, &Allowances::default(), &clock);
        let terms = parts::terms(&settings, access, identity.as_ref(), Arc::clone(&allowances));
        let listener =
            Listener::new(terms, queue.clone(), Some(observer.clone()), clock.clone(), told.clone());
        let runner = Runner::new(orders, queue.clone(), observer.clone(), clock.clone());
        let (reload, reloads) = mpsc::channel(4);
        let settings = Arc::new(ArcSwap::from_pointee(settings));
        let published = Arc::new(ArcSwap::from_pointee(published));
        let allowances = Arc::new(ArcSwap::new(allowances));
        let admin = Admin {
            settings: Arc::clone(&settings),
            queue,
            runner: runner.clone(),
            observer,
            allowances: Arc::clone(&allowances),
            published: Arc::clone(&published),
            reload,
            captured: embedded.as_ref().map(|embedded| embedded.captured.clone()),
            clock: clock.clone(),
        };
        let socket_path = settings.load().data.join("admin.sock");
        admin::serve(admin, admin_socket, &socket_path, told.clone())
            .map_err(|error| StartError::Data { path: socket_path, error })?;

        let mut writers = vec![writer];
        let mut capture_shutdown = None;
        if let Some(embedded) = embedded {
            let socket = TcpListener::from_std(embedded.socket)
                .map_err(|error| StartError::Bind { address: "the embedded upstream".to_owned(), error })?;
            let socket = Socket::Tcp(socket);
            tokio::spawn(async move { embedded.listener.accept(socket, ListenTls::StartTls).await });
            tokio::spawn(dev::bound_captured(embedded.captured));
            writers.push(embedded.writer);
            capture_shutdown = Some(embedded.shutdown);
        }
        for (socket, entrance) in entrances {
            let listener = listener.clone();
            tokio::spawn(async move { listener.accept(socket, entrance).await });
        }
        let (running, until) = (runner.clone(), told);
        let running = tokio::spawn(async move { running.run(until).await });
        for upstream in &settings.load().upstreams {
            tracing::info!(upstream = upstream.name, port = upstream.port, "ready");
        }
        Ok(Self {
            settings,
            source,
            published,
            bound,
            listener,
            allowances,
            runner,
            shutdown,
            running,
            reloads,
            writers,
            capture_shutdown,
            certificate,
            clock,
        })
    }

    /// Serves signals and reloads; then drains.
    async fn until_stopped(mut self, signals: Signals) -> Vec<WriterThread> {
        let Signals { mut terminate, mut interrupt, mut hangup } = signals;
        let mut look = tokio::time::interval(CERTIFICATE_LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = terminate.recv() => break,
                _ = interrupt.recv() => break,
                _ = hangup.recv() => {
                    if let Err(problem) = self.reload().await {
                        tracing::error!("not reloaded, the settings in force stay: {problem}");
                    }
                }
                _ = look.tick() => self.look_at_certificate().await,
                Some(answer) = self.reloads.recv() => {
                    let result = self.reload().await;
                    let _ = answer.send(result);
                }
            }
        }
        let told_again = "told to stop a second time: final replies are not waited for";
        tokio::select! {
            () = self.drain() => {}
            _ = terminate.recv() => tracing::warn!("{told_again}"),
            _ = interrupt.recv() => tracing::warn!("{told_again}"),
        }
        self.writers
    }

    async fn drain(&mut self) {
        tracing::info!("stopping: final replies are waited for");
        let deadline = Instant::now() + DRAIN;
        let _ = self.shutdown.send(true);
        let runner = timeout_at(deadline, &mut self.running).await;
        while self.listener.connections() > 0 && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        if runner.is_err() {
            tracing::warn!("an upstream still owes a final reply: that message will be tried again");
        }
        self.allowances.load().close();
        if let Some(capture) = &self.capture_shutdown {
            let _ = capture.send(true);
        }
    }

    /// Takes the certificate up again if its files have changed. One that can't be used changes nothing.
    async fn look_at_certificate(&mut self) {
        let settings = self.settings.load_full();
        let looked = {
            let settings = Arc::clone(&settings);
            tokio::task::spawn_blocking(move || parts::certificate_stamp(&settings)).await
        };
        let Ok(stamp) = looked else { return };
        if stamp == self.certificate {
            return;
        }
        self.certificate = stamp;
        match (parts::identity(&settings), parts::access(&settings)) {
            (Ok(identity), Ok(access)) => {
                self.change_listener(&settings, identity.as_ref(), access).await;
                let fingerprint = identity.map(|identity| identity.fingerprint);
                tracing::info!(fingerprint, "the listener's certificate has changed and was taken up");
            }
            (Err(error), _) | (_, Err(error)) => {
                tracing::error!("the listener's certificate has changed, but the one in use stays: {error}");
            }
        }
    }

    /// Holds clients to these settings, and tells apps.
    async fn change_listener(
        &self,
        settings: &Settings,
        identity: Option<&Identity>,
        access: Vec<(String, SecretString)>,
    ) {
        let published = parts::published(settings, self.bound, identity, &access);
        publish(settings, &published).await;
        let allowances = parts::allowances(settings, &self.allowances.load(), &self.clock);
        self.listener.change(parts::terms(settings, access, identity, Arc::clone(&allowances)));
        self.allowances.store(allowances);
        self.published.store(Arc::new(published));
    }

    /// Reads the configuration again and goes by it. Queue, connections and counters stay.
    async fn reload(&self) -> Result<String, String> {
        let old = self.settings.load_full();
        let (settings, identity) = match &self.source {
            Some(source) => {
                let source = source.clone();
                let read = move || config::load(&source, &|name| std::env::var(name).ok());
                let loaded = tokio::task::spawn_blocking(read)
                    .await
                    .map_err(|error| error.to_string())?
                    .map_err(|problems| problems.to_string())?;
                let identity = parts::identity(&loaded.settings).map_err(|error| error.to_string())?;
                (loaded.settings, identity)
            }
            None => return Err("local mode has no configuration to read again".to_owned()),
        };
        let access = parts::access(&settings).map_err(|error| error.to_string())?;
        let kept = self.runner.agents();
        let orders = parts::orders(&settings, &kept, &self.clock).map_err(|error| error.to_string())?;
        self.change_listener(&settings, identity.as_ref(), access).await;
        self.runner.change(orders);
        let unchanged = parts::needs_restart(&old, &settings);
        self.settings.store(Arc::new(settings));
        let said = if unchanged.is_empty() {
            "configuration read again".to_owned()
        } else {
            format!("configuration read again; these need a restart: {}", unchanged.join(", "))
        };
        tracing::info!("{said}");
        Ok(said)
    }
}

async fn bind(address: &str) -> Result<TcpListener, StartError> {
    TcpListener::bind(address).await.map_err(|error| StartError::Bind { address: address.to_owned(), error })
}

/// Tells apps. That it fails is no reason to take no mail.
async fn publish(settings: &Settings, published: &Published) {
    let (files, published) = (settings.environment.files.clone(), published.clone());
    let result = tokio::task::spawn_blocking(move || environment::publish(&files, &published)).await;
    if let Ok(Err(error)) = result {
        tracing::error!("what apps need could not be published: {error}");
    }
}
