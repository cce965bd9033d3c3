//! Submission: clients speak to us.
//!
//! - here: the accept loop, and the end of it
//! - [`places`], [`party`]: how many at once, and who counts as one
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
pub mod party;
pub mod penalty;
pub mod places;
pub mod policy;
pub mod proxy;
pub mod session;
pub mod socket;
pub mod tls;
pub mod validity;

use std::{
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use arc_swap::ArcSwap;
use ipnet::IpNet;
use rustls::ServerConfig;
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt as _},
    sync::{Semaphore, watch},
    time::{Instant, timeout},
};

use self::{
    allowance::Allowances,
    budget::Budget,
    connection::Surroundings,
    intake::Intake,
    pace::Pace,
    penalty::Penalties,
    places::{Most, Place, Places},
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
/// How many refused clients are heard out at once: each has a descriptor beside those of the places.
const PARTINGS: usize = 16;
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
    pub connections: Most,
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
    places: Places,
    penalties: Penalties,
    budget: Budget,
    /// Refused clients that are heard out at once.
    partings: Semaphore,
    /// When it was last told that there was no place for a client.
    told: Mutex<Option<Instant>>,
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
            places: Places::new(observer.clone()),
            observer,
            clock,
            shutdown,
            penalties: Penalties::default(),
            budget: Budget::default(),
            partings: Semaphore::new(PARTINGS),
            told: Mutex::default(),
        }))
    }

    /// Holds clients to other terms from their next connection on.
    pub fn change(&self, terms: Terms) {
        self.0.terms.store(Arc::new(terms));
    }

    /// Open connections.
    pub fn connections(&self) -> usize {
        self.0.places.taken()
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
        let client = entrance.client(address);
        let place = self.0.places.take(terms.connections).and_then(|place| match proxied {
            // Whose it is the load balancer will say.
            true => Ok(place),
            false => place.of(address, policy::is_known(&terms.rules, &client)),
        });
        let place = match place {
            Ok(place) => place,
            Err(reply) => {
                self.0.no_place_for(address, &reply);
                let (listener, entrance) = (self.clone(), Arc::clone(entrance));
                tokio::spawn(async move { listener.refuse(stream, reply, &entrance).await });
                return;
            }
        };
        let (listener, entrance) = (self.clone(), Arc::clone(entrance));
        tokio::spawn(async move {
            let served = match proxied {
                true => listener.serve_proxied(stream, place, &entrance, &terms).await,
                false => listener.serve(stream, client, place, &entrance, &terms).await,
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
            self.refuse(stream, Reply::proxy_header_expected(), entrance).await;
            return Ok(());
        };
        let client = entrance.client(address);
        match place.of(address, policy::is_known(&terms.rules, &client)) {
            Ok(place) => self.serve(stream, client, place, entrance, terms).await,
            Err(reply) => {
                self.0.no_place_for(address, &reply);
                self.refuse(stream, reply, entrance).await;
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
        client: Client,
        place: Place,
        entrance: &Entrance,
        terms: &Terms,
    ) -> std::io::Result<()>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let mut pace = Pace::new(terms.rules.bounds);
        if policy::is_known(&terms.rules, &client) {
            pace.is_known();
        }
        let (stream, client) = match (&terms.tls, entrance.tls) {
            (Some(config), ListenTls::Implicit) => {
                let stream = connection::handshake(Arc::clone(config), stream, &pace, &place).await?;
                let client = client.over_tls(stream.channel_binding());
                (stream, client)
            }
            _ => (Stream::Plain(stream), client),
        };
        let surroundings = Surroundings {
            intake: self.intake(terms),
            tls: terms.tls.clone().filter(|_| entrance.tls == ListenTls::StartTls),
            penalties: self.0.penalties.clone(),
            budget: self.0.budget.clone(),
            buffered: terms.buffered,
            place,
            shutdown: self.0.shutdown.clone(),
        };
        connection::serve(stream, client, pace, surroundings).await
    }
}

impl Entrance {
    /// One that has just come in here.
    fn client(&self, address: IpAddr) -> Client {
        Client { login_required: self.login_required, ..Client::new(address, false) }
    }
}

impl Inner {
    /// Counts a client that found no place, and tells of it now and then.
    fn no_place_for(&self, client: IpAddr, reply: &Reply) {
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
            reply: Some(reply.to_string()),
            ..Event::new(self.clock.now(), EventKind::Rejected, "")
        });
    }
}

impl Listener {
    /// Says why there is nothing here for a client, and closes. Where a handshake is expected nothing else can be
    /// said.
    async fn refuse<S>(&self, mut stream: S, reply: Reply, entrance: &Entrance)
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        if entrance.tls == ListenTls::Implicit {
            return;
        }
        let mut refusal = Vec::new();
        reply.write_to(&mut refusal);
        let said = timeout(REFUSAL_TIMEOUT, stream.write_all(&refusal)).await;
        // In a flood there is no time for each.
        if let (Ok(Ok(())), Ok(_permit)) = (said, self.0.partings.try_acquire()) {
            let _ = connection::close(&mut stream).await;
        }
    }
}
