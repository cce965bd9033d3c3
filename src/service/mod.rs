//! The composition root: builds the parts, runs them, reloads, drains.
//!
//! - here: one relay, from settings to goodbye
//! - [`parts`]: what is made of settings, at start and at each reload
//! - `doors`: the sockets that take mail
//! - `passwords`: old passwords of apps, which work for a while
//! - `files`: whether one of the files that settings come from has changed
//! - `manager`: what a service manager is told
//! - [`dev`]: local mode: the same relay with an upstream built in
//!
//! Order of the start: everything that can be wrong is found before the first socket answers; the
//! environment is published once it does. Order of the end: no new connections, idle sessions told,
//! final replies waited for, the writer last.

pub mod dev;
mod doors;
mod files;
mod manager;
pub mod parts;
mod passwords;

use std::{io, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use secrecy::SecretString;
use tokio::{
    net::TcpListener,
    signal::unix::{Signal, SignalKind, signal},
    sync::{mpsc, oneshot, watch},
    time::{Instant, Interval, MissedTickBehavior, timeout_at},
};

pub(crate) use self::doors::Passed;
use self::{
    doors::{Doors, Plan},
    files::Watch,
    parts::Log,
    passwords::Passwords,
};
use crate::{
    admin::{self, Admin, Once, Places, Streams, TcpDoor},
    clock::Clock,
    config::{self, ListenTls, Loaded, Settings, Source},
    delivery::{dkim::KeyFault, tls::TlsFault},
    environment::{self, Published},
    listener::{
        Listener,
        allowance::Allowances,
        socket::Socket,
        tls::{Identity, IdentityError},
    },
    net,
    observe::{Observer, trend::Trend},
    queue::{OpenError, Queue, WriterThread, disk},
    runner::Runner,
};

/// How often the files of the settings are looked at: soon enough for whoever waits, cheap enough to forget. A change
/// counts when a file has stayed as it is for as long.
const LOOK: Duration = Duration::from_millis(1500);
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
            Self::Queue(OpenError::Io { .. } | OpenError::Missing { .. }) | Self::Data { .. } => 73,
            Self::Identity(_) | Self::Tls(_) | Self::Key(_) => 78,
        }
    }
}

/// Runs the relay until a signal ends it.
///
/// # Errors
/// It can't start; nothing was half-started.
pub fn serve(loaded: Loaded, source: Source) -> Result<(), StartError> {
    // Before there are threads.
    let passed = Passed::take();
    let observer = Observer::default();
    let log = parts::start_log(&loaded.settings.log, &loaded.settings.data, &observer);
    for warning in &loaded.warnings {
        tracing::warn!("{warning}");
    }
    if let Some(warning) = disk::thrown_away(&loaded.settings) {
        tracing::warn!("{warning}");
    }
    let made_of = MadeOf { settings: loaded.settings, source: Some(source), passed, embedded: None };
    run(made_of, observer, &log, || ())
}

/// What a relay is made of.
pub(crate) struct MadeOf {
    pub(crate) settings: Settings,
    /// Where to read them again; local mode has no such place.
    pub(crate) source: Option<Source>,
    pub(crate) passed: Passed,
    pub(crate) embedded: Option<Embedded>,
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
    made_of: MadeOf,
    observer: Observer,
    log: &Log,
    ready: impl FnOnce(),
) -> Result<(), StartError> {
    let settings = &made_of.settings;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| StartError::Data { path: settings.data.clone(), error })?;
    raise_descriptor_limit();
    net::gather_randomness();
    let data = settings.data.clone();
    let writers = runtime.block_on(async {
        // Before anything else, so that an early signal doesn't end us the hard way.
        let signals = Signals::new().map_err(|error| StartError::Data { path: data, error })?;
        let service = Service::start(made_of, observer).await?;
        ready();
        Ok::<_, StartError>(service.until_stopped(signals, log).await)
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
    stop: Stop,
    hangup: Signal,
}

/// What tells the relay to stop.
struct Stop {
    terminate: Signal,
    interrupt: Signal,
}

impl Stop {
    /// Waits for it.
    async fn told(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }

    /// Does something, and tells the manager meanwhile that we are alive; `None` if told to stop before its end.
    async fn or<T>(&mut self, alive: &mut Interval, work: impl Future<Output = T>) -> Option<T> {
        tokio::pin!(work);
        loop {
            tokio::select! {
                () = self.told() => return None,
                _ = alive.tick() => manager::alive(),
                done = &mut work => return Some(done),
            }
        }
    }
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            stop: Stop {
                terminate: signal(SignalKind::terminate())?,
                interrupt: signal(SignalKind::interrupt())?,
            },
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
    doors: Doors,
    page: TcpDoor,
    passwords: Passwords,
    watched: Watch,
    queue: Queue,
    listener: Listener,
    allowances: Arc<ArcSwap<Allowances>>,
    runner: Runner,
    shutdown: watch::Sender<bool>,
    running: tokio::task::JoinHandle<()>,
    reloads: mpsc::Receiver<oneshot::Sender<Result<String, String>>>,
    writers: Vec<WriterThread>,
    capture_shutdown: Option<watch::Sender<bool>>,
    clock: Clock,
}

impl Service {
    async fn start(made_of: MadeOf, observer: Observer) -> Result<Self, StartError> {
        let MadeOf { mut settings, source, passed, embedded } = made_of;
        let clock = Clock::System;
        let (shutdown, told) = watch::channel(false);

        parts::make_data_directory(&settings)?;
        let (queue, writer) = match source {
            Some(_) => Queue::open_known(&settings.queue, clock.clone(), &settings.data)?,
            // Local mode begins anew wherever it finds nothing.
            None => Queue::open(&settings.queue, clock.clone())?,
        };
        let keeper = queue.clone();
        observer.keep_by(Box::new(move |event| {
            keeper.record(event.id.parse().ok(), event.octets());
        }));
        let mut watched = Watch::default();
        if let Some(source) = &source {
            let (files, _) = config::load_with_files(source, &|name| std::env::var(name).ok());
            watched.follow(parts::files(files, &settings));
        }
        let identity = parts::identity(&settings)?;
        // What was made just now is no change.
        watched.take_as_they_are();
        let access = parts::access(&settings)?;
        let mut passwords = Passwords::kept_at(settings.data.join("passwords.json"));
        passwords.change(settings.access.password_grace, &access, clock.now());
        let orders = parts::orders(&settings, &[], &clock)?;
        let mut doors = Doors::with(passed);
        let plan = doors.plan(&settings.listen).await?;
        settings.listen = plan.addresses();
        let admin_socket = bind(&settings.admin.listen.to_string()).await?;
        let published = parts::published(&settings, plan.first(), identity.as_ref(), &access);
        publish(&settings, &published).await;
        let allowances = parts::allowances(&settings, &Allowances::default(), &clock);
        let logins = parts::logins(access, &passwords);
        let terms = parts::terms(&settings, logins, identity.as_ref(), Arc::clone(&allowances));
        let listener =
            Listener::new(terms, queue.clone(), Some(observer.clone()), clock.clone(), told.clone());
        let runner = Runner::new(orders, queue.clone(), observer.clone(), clock.clone());
        let (reload, reloads) = mpsc::channel(4);
        let settings = Arc::new(ArcSwap::from_pointee(settings));
        let published = Arc::new(ArcSwap::from_pointee(published));
        let allowances = Arc::new(ArcSwap::new(allowances));
        let admin = Admin {
            settings: Arc::clone(&settings),
            queue: queue.clone(),
            runner: runner.clone(),
            observer,
            listener: listener.clone(),
            once: Once::open(&settings.load().data, clock.clone()),
            streams: Streams::default(),
            places: Places::default(),
            allowances: Arc::clone(&allowances),
            published: Arc::clone(&published),
            reload,
            captured: embedded.as_ref().map(|embedded| embedded.captured.clone()),
            trend: Trend::at(settings.load().data.join("trend")),
            clock: clock.clone(),
        };
        let socket_path = settings.load().data.join("admin.sock");
        tokio::spawn(admin::alerts::watch(admin.clone(), told.clone()));
        tokio::spawn(admin::forward::forward(admin.clone(), told.clone()));
        let page = admin::serve(admin, admin_socket, &socket_path, told.clone())
            .map_err(|error| StartError::Data { path: socket_path, error })?;

        let mut writers = vec![writer];
        let mut capture_shutdown = None;
        if let Some(embedded) = embedded {
            let socket = TcpListener::from_std(embedded.socket)
                .map_err(|error| StartError::Bind { address: "the embedded upstream".to_owned(), error })?;
            let socket = Arc::new(Socket::Tcp(socket));
            tokio::spawn(async move { embedded.listener.accept(socket, ListenTls::StartTls).await });
            tokio::spawn(dev::bound_captured(embedded.captured));
            writers.push(embedded.writer);
            capture_shutdown = Some(embedded.shutdown);
        }
        doors.change(plan, &listener);
        let (running, until) = (runner.clone(), told);
        let running = tokio::spawn(async move { running.run(until).await });
        for upstream in &settings.load().upstreams {
            tracing::info!(upstream = upstream.name, port = upstream.port, "ready");
        }
        Ok(Self {
            settings,
            source,
            published,
            doors,
            page,
            passwords,
            watched,
            queue,
            listener,
            allowances,
            runner,
            shutdown,
            running,
            reloads,
            writers,
            capture_shutdown,
            clock,
        })
    }

    /// Serves signals and reloads; then drains.
    async fn until_stopped(mut self, signals: Signals, log: &Log) -> Vec<WriterThread> {
        let Signals { mut stop, mut hangup } = signals;
        let ticks = |every: Duration| {
            let mut ticks = tokio::time::interval(every);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            ticks
        };
        let (mut look, alive_every) = (ticks(LOOK), manager::alive_every());
        let mut alive = ticks(alive_every.unwrap_or(Duration::from_secs(3600)));
        manager::ready("taking mail");
        loop {
            // A disk that hangs may keep any of these from its end: a signal is heard all the same.
            let gone_on = tokio::select! {
                () = stop.told() => break,
                _ = hangup.recv() => stop.or(&mut alive, self.reload(log, "")).await.is_some(),
                _ = look.tick() => stop.or(&mut alive, self.look(log)).await.is_some(),
                _ = alive.tick() => {
                    manager::alive();
                    true
                }
                Some(answer) = self.reloads.recv() => {
                    let result = stop.or(&mut alive, self.reload(log, "")).await;
                    result.map(|result| answer.send(result)).is_some()
                }
            };
            if !gone_on {
                break;
            }
        }
        manager::stopping("final replies are waited for");
        let told_again = "told to stop a second time: final replies are not waited for";
        tokio::select! {
            () = self.drain() => {}
            () = stop.told() => tracing::warn!("{told_again}"),
        }
        self.writers
    }

    async fn drain(&mut self) {
        tracing::info!("stopping: final replies are waited for");
        let deadline = Instant::now() + DRAIN;
        let _ = self.shutdown.send(true);
        // Whoever knocks now is refused by the system, or waits for the next process at a socket that was passed.
        self.doors = Doors::default();
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

    /// Reads the configuration again if a file of it has changed and come to rest; ends old passwords.
    async fn look(&mut self, log: &Log) {
        let mut watched = std::mem::take(&mut self.watched);
        let looked = tokio::task::spawn_blocking(move || (watched.changed(), watched)).await;
        let Ok((changed, watched)) = looked else { return };
        self.watched = watched;
        if !changed.is_empty() {
            let names: Vec<String> = changed.iter().map(|path| path.display().to_string()).collect();
            let _ = self.reload(log, &format!("{}: changed; ", names.join(", "))).await;
        } else if self.passwords.next_end().is_some_and(|end| end <= self.clock.now()) {
            let settings = self.settings.load_full();
            match prepare(&settings, self.doors.as_they_are()) {
                Ok(prepared) => {
                    self.change_listener(&settings, prepared).await;
                    tracing::info!("an old password of an app has ended");
                }
                // It is tried again at the next look.
                Err(error) => tracing::error!("an old password of an app can't be ended yet: {error}"),
            }
        }
    }

    /// Holds clients to these settings, and tells apps.
    async fn change_listener(&mut self, settings: &Settings, prepared: Prepared) {
        let Prepared { identity, access, plan } = prepared;
        self.passwords.change(settings.access.password_grace, &access, self.clock.now());
        let published = parts::published(settings, plan.first(), identity.as_ref(), &access);
        let allowances = parts::allowances(settings, &self.allowances.load(), &self.clock);
        let logins = parts::logins(access, &self.passwords);
        self.listener.change(parts::terms(settings, logins, identity.as_ref(), Arc::clone(&allowances)));
        self.doors.change(plan, &self.listener);
        // Behind the listener's change: whoever reads it may log in at once.
        publish(settings, &published).await;
        self.allowances.store(allowances);
        self.published.store(Arc::new(published));
    }

    /// Has the page and the API at another address. One of the same port may be free only when the old one is closed.
    async fn move_page(&mut self, old: SocketAddr, new: SocketAddr) -> Result<(), StartError> {
        let mut bound = bind(&new.to_string()).await;
        if bound.is_err() && new.port() == old.port() {
            self.page.close();
            let until = Instant::now() + LET_GO;
            while bound.is_err() && Instant::now() < until {
                tokio::time::sleep(Duration::from_millis(10)).await;
                bound = bind(&new.to_string()).await;
            }
            if bound.is_err() {
                self.page.open(bind(&old.to_string()).await?);
            }
        }
        self.page.open(bound?);
        tracing::info!(address = %new, "the page and the API are here now");
        Ok(())
    }

    /// Reads the configuration again and goes by it. Queue, connections and counters stay. `why` begins the line in
    /// the log.
    async fn reload(&mut self, log: &Log, why: &str) -> Result<String, String> {
        manager::reloading();
        let result = self.read_again(log).await;
        match &result {
            Ok(said) => {
                tracing::info!("{why}{said}");
                manager::ready(said);
            }
            Err(problem) => {
                tracing::error!("{why}not reloaded, the settings in force stay: {problem}");
                manager::ready("not reloaded, the settings in force stay");
            }
        }
        result
    }

    async fn read_again(&mut self, log: &Log) -> Result<String, String> {
        let Some(source) = self.source.clone() else {
            return Err("local mode has no configuration to read again".to_owned());
        };
        let old = self.settings.load_full();
        let mut watched = std::mem::take(&mut self.watched);
        let read = move || {
            // Looked at before they are read, so that no change falls in between.
            watched.take_as_they_are();
            let (files, loaded) = config::load_with_files(&source, &|name| std::env::var(name).ok());
            let settings = loaded.as_ref().map_or(&*old, |loaded| &loaded.settings);
            watched.follow(parts::files(files, settings));
            (watched, loaded, old)
        };
        let (watched, loaded, old) =
            tokio::task::spawn_blocking(read).await.map_err(|error| error.to_string())?;
        self.watched = watched;
        let mut settings = loaded.map_err(|problems| problems.to_string())?.settings;
        let old_page = old.admin.listen;
        let waiting = parts::leave_until_restart(&old, &mut settings);
        let plan = self.doors.plan(&settings.listen).await.map_err(|error| error.to_string())?;
        settings.listen = plan.addresses();
        let prepared = prepare(&settings, plan).map_err(|error| error.to_string())?;
        let kept = self.runner.agents();
        let orders = parts::orders(&settings, &kept, &self.clock).map_err(|error| error.to_string())?;
        // The last that can fail, for it may close what is open.
        if settings.admin.listen != old_page {
            self.move_page(old_page, settings.admin.listen).await.map_err(|error| error.to_string())?;
        }
        self.change_listener(&settings, prepared).await;
        self.queue.change(&settings.queue);
        self.runner.change(orders);
        log.change(&settings.log, &settings.data);
        self.settings.store(Arc::new(settings));
        Ok(if waiting.is_empty() {
            "configuration read again".to_owned()
        } else {
            format!("configuration read again; these need a restart: {}", waiting.join(", "))
        })
    }
}

/// Makes what the listener needs of new settings, before anything changes.
fn prepare(settings: &Settings, plan: Plan) -> Result<Prepared, StartError> {
    Ok(Prepared { identity: parts::identity(settings)?, access: parts::access(settings)?, plan })
}

struct Prepared {
    identity: Option<Identity>,
    access: Vec<(String, SecretString)>,
    plan: Plan,
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
