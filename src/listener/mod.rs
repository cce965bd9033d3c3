//! Submission: clients speak to us.
//!
//! - here: the accept loop, how many at once, and the end of it
//! - [`connection`]: sockets, deadlines, TLS, content
//! - [`session`]: the conversation, as a pure state machine
//! - [`auth`]: SASL exchanges
//! - [`policy`]: who may do what
//! - [`intake`]: what becomes of a message, however it comes
//! - [`handin`]: mail that comes by other ways than SMTP
//! - [`allowance`]: how much a login may hand in
//! - [`pace`], [`budget`]: how long a client may take, and how much memory all of them
//! - [`penalty`]: how long a wrong password waits
//! - [`socket`], [`proxy`]: where clients come in, and what a load balancer says of them
//! - [`tls`], [`validity`]: our certificate
//!
//! The listener knows the queue's accepting half and nothing of delivery.

pub mod allowance;
pub mod auth;
pub mod budget;
pub mod certificate;
pub mod connection;
pub mod handin;
pub mod intake;
pub mod pace;
pub mod penalty;
pub mod policy;
pub mod proxy;
pub mod session;
pub mod socket;
pub mod tls;
pub mod validity;

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use ipnet::IpNet;
use rustls::ServerConfig;
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt as _},
    sync::watch,
    time::{Instant, timeout},
};
use tokio_rustls::TlsAcceptor;

use self::{
    allowance::Allowances,
    budget::Budget,
    connection::Surroundings,
    intake::Intake,
    penalty::Penalties,
    policy::{Client, Rules},
    socket::{Accepted, Socket},
};
use crate::{
    clock::Clock,
    config::ListenTls,
    net::Stream,
    observe::{Event, EventKind, Observer, Rejection},
    queue::Queue,
    smtp::reply::Reply,
};

/// How long a refused client has to take its refusal.
const REFUSAL_TIMEOUT: Duration = Duration::from_secs(5);
/// RFC 3207 sets none; see [`connection`].
const TLS_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a load balancer has to name its client.
const PROXY_TIMEOUT: Duration = Duration::from_secs(10);
/// How often it is told that there was no place: a line for each refusal would be a part of the flood.
const TOLD_EVERY: Duration = Duration::from_secs(10);
/// When no descriptor is left, accepting again at once would only burn the processor.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What may change while the listener runs.
#[derive(Debug)]
pub struct Terms {
    /// What clients are held to.
    pub rules: Arc<Rules>,
    /// How much logins may hand in.
    pub allowances: Arc<Allowances>,
    /// Our certificate.
    pub tls: Option<Arc<ServerConfig>>,
    /// Connections at once.
    pub connections: usize,
    /// Connections at once from one address.
    pub connections_per_client: usize,
    /// Octets of content that all connections together may hold in memory.
    pub buffered: usize,
}

/// What holds for the clients of one address.
#[derive(Clone, Debug)]
pub struct Entrance {
    /// TLS from the start, offered, or neither.
    pub tls: ListenTls,
    /// Everybody must log in, trusted networks too.
    pub login_required: bool,
    /// Whose connections begin with a PROXY header.
    pub proxies: Vec<IpNet>,
}

impl From<ListenTls> for Entrance {
    fn from(tls: ListenTls) -> Self {
        Self { tls, login_required: false, proxies: Vec::new() }
    }
}

/// Takes mail on any number of addresses. Clones share it.
#[derive(Clone, Debug)]
pub struct Listener(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    terms: ArcSwap<Terms>,
    queue: Queue,
    observer: Option<Observer>,
    clock: Clock,
    shutdown: watch::Receiver<bool>,
    open: AtomicUsize,
    per_client: Mutex<HashMap<IpAddr, usize>>,
    penalties: Penalties,
    budget: Budget,
    /// When it was last told that there was no place for a client.
    told: Mutex<Option<Instant>>,
    /// True from when nine of ten places are taken until three of ten are free.
    crowded: watch::Sender<bool>,
}

impl Listener {
    /// A listener that puts what it takes into `queue`, and tells `observer` of it, if there is one.
    pub fn new(
        terms: Terms,
        queue: Queue,
        observer: Option<Observer>,
        clock: Clock,
        shutdown: watch::Receiver<bool>,
    ) -> Self {
        Self(Arc::new(Inner {
            terms: ArcSwap::from_pointee(terms),
            queue,
            observer,
            clock,
            shutdown,
            open: AtomicUsize::new(0),
            per_client: Mutex::default(),
            penalties: Penalties::default(),
            budget: Budget::default(),
            told: Mutex::default(),
            crowded: watch::Sender::new(false),
        }))
    }

    /// Holds clients to other terms from their next connection on.
    pub fn change(&self, terms: Terms) {
        self.0.terms.store(Arc::new(terms));
    }

    /// Open connections.
    pub fn connections(&self) -> usize {
        self.0.open.load(Ordering::Relaxed)
    }

    /// Accepts on one address until the process is about to end. Dropped between two clients, it leaves the socket
    /// as it was.
    pub async fn accept(&self, socket: Arc<Socket>, entrance: impl Into<Entrance>) {
        let entrance = Arc::new(entrance.into());
        let mut shutdown = self.0.shutdown.clone();
        let mut failing = false;
        loop {
            let accepted = tokio::select! {
                accepted = socket.accept() => accepted,
                _ = shutdown.wait_for(|shutdown| *shutdown) => return,
            };
            match accepted {
                Ok(accepted) => {
                    failing = false;
                    let address = accepted.address();
                    match accepted {
                        Accepted::Tcp(stream, _) => self.admit(stream, address, &entrance),
                        Accepted::Unix(stream) => self.admit(stream, address, &entrance),
                    }
                }
                Err(error) => {
                    // Once, for it may go on for long: descriptors are short, most likely.
                    if !std::mem::replace(&mut failing, true) {
                        tracing::warn!(%error, "can't accept connections; trying on");
                    }
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn admit<S>(&self, stream: S, address: IpAddr, entrance: &Arc<Entrance>)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + Sync + 'static,
    {
        let terms = self.0.terms.load_full();
        let proxied = entrance.proxies.iter().any(|network| network.contains(&address));
        let mut place = Place::take(&self.0, &terms);
        if !proxied {
            place = place.and_then(|place| place.of(address, &terms));
        }
        let Some(place) = place else {
            self.0.no_place_for(address);
            tokio::spawn(refuse(stream, Reply::too_many_connections()));
            return;
        };
        let (listener, entrance) = (self.clone(), Arc::clone(entrance));
        tokio::spawn(async move {
            let served = match proxied {
                true => listener.serve_proxied(stream, place, &entrance, &terms).await,
                false => listener.serve(stream, address, &entrance, &terms).await.map(|()| drop(place)),
            };
            if let Err(error) = served {
                tracing::debug!(client = %address, %error, "connection lost");
            }
        });
    }

    /// A connection whose client is yet to be named by a load balancer.
    async fn serve_proxied<S>(
        &self,
        mut stream: S,
        place: Place,
        entrance: &Entrance,
        terms: &Terms,
    ) -> std::io::Result<()>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let Ok(Ok(address)) = timeout(PROXY_TIMEOUT, proxy::read_header(&mut stream)).await else {
            tracing::warn!("a load balancer's connection did not begin with a PROXY header");
            refuse(stream, Reply::proxy_header_expected()).await;
            return Ok(());
        };
        match place.of(address, terms) {
            Some(_place) => self.serve(stream, address, entrance, terms).await,
            None => {
                self.0.no_place_for(address);
                refuse(stream, Reply::too_many_connections()).await;
                Ok(())
            }
        }
    }

    /// What becomes of messages under these terms.
    fn intake(&self, terms: &Terms) -> Intake {
        Intake {
            rules: Arc::clone(&terms.rules),
            allowances: Arc::clone(&terms.allowances),
            queue: self.0.queue.clone(),
            observer: self.0.observer.clone(),
            clock: self.0.clock.clone(),
        }
    }

    async fn serve<S>(
        &self,
        stream: S,
        address: IpAddr,
        entrance: &Entrance,
        terms: &Terms,
    ) -> std::io::Result<()>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let surroundings = Surroundings {
            intake: self.intake(terms),
            tls: terms.tls.clone().filter(|_| entrance.tls == ListenTls::StartTls),
            penalties: self.0.penalties.clone(),
            budget: self.0.budget.clone(),
            buffered: terms.buffered,
            crowded: self.0.crowded.subscribe(),
            shutdown: self.0.shutdown.clone(),
        };
        let stream = match (&terms.tls, entrance.tls) {
            (Some(config), ListenTls::Implicit) => {
                let handshake = TlsAcceptor::from(Arc::clone(config)).accept(stream);
                let stream = timeout(TLS_TIMEOUT, handshake).await.map_err(std::io::Error::from)??;
                Stream::Tls(Box::new(stream.into()))
            }
            _ => Stream::Plain(stream),
        };
        let client = Client {
            binding: stream.channel_binding(),
            login_required: entrance.login_required,
            ..Client::new(address, stream.is_tls())
        };
        connection::serve(stream, client, surroundings).await
    }
}

/// One of the connections that may be open at once. Given back when dropped.
struct Place {
    inner: Arc<Inner>,
    /// Whose it is, once that is known.
    client: Option<IpAddr>,
    /// How many places there are.
    all: usize,
}

impl Place {
    fn take(inner: &Arc<Inner>, terms: &Terms) -> Option<Self> {
        let free = |open: usize| (open < terms.connections).then_some(open + 1);
        let before = inner.open.fetch_update(Ordering::Relaxed, Ordering::Relaxed, free).ok()?;
        inner.show(before + 1, terms.connections);
        Some(Self { inner: Arc::clone(inner), client: None, all: terms.connections })
    }

    /// The same, counted as this client's; given back if it has as many as it may.
    fn of(mut self, client: IpAddr, terms: &Terms) -> Option<Self> {
        let mut per_client = self.inner.per_client.lock().unwrap_or_else(PoisonError::into_inner);
        let count = per_client.entry(client).or_insert(0);
        if *count < terms.connections_per_client {
            *count += 1;
            self.client = Some(client);
        }
        drop(per_client);
        self.client.is_some().then_some(self)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(client) = self.client {
            let mut per_client = self.inner.per_client.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(count) = per_client.get_mut(&client) {
                *count -= 1;
                if *count == 0 {
                    per_client.remove(&client);
                }
            }
        }
        let open = self.inner.open.fetch_sub(1, Ordering::Relaxed) - 1;
        self.inner.show(open, self.all);
    }
}

impl Inner {
    /// Counts a client that found no place, and tells of it now and then.
    fn no_place_for(&self, client: IpAddr) {
        let Some(observer) = &self.observer else { return };
        observer.metrics().rejected(Rejection::connections);
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.is_some_and(|told| told.elapsed() < TOLD_EVERY) {
            return;
        }
        *told = Some(Instant::now());
        drop(told);
        observer.emit(Event {
            client: Some(client.to_string()),
            reply: Some(Reply::too_many_connections().to_string()),
            ..Event::new(self.clock.now(), EventKind::Rejected, "")
        });
    }

    fn show(&self, open: usize, all: usize) {
        // Two marks, so that one client's coming and going doesn't turn it on and off.
        let crowded = |was: &mut bool| {
            let is = if *was { open * 10 > all * 7 } else { open * 10 >= all * 9 };
            std::mem::replace(was, is) != is
        };
        if self.crowded.send_if_modified(crowded) {
            tracing::info!(open, crowded = *self.crowded.borrow(), "places for clients");
        }
        if let Some(observer) = &self.observer {
            observer.metrics().listener_connections.set(open as i64);
        }
    }
}

async fn refuse(mut stream: impl AsyncWrite + Unpin, reply: Reply) {
    let mut refusal = Vec::new();
    reply.write_to(&mut refusal);
    let _ = timeout(REFUSAL_TIMEOUT, stream.write_all(&refusal)).await;
}
