//! Submission: clients speak to us.
//!
//! - here: the accept loop, how many at once, and the end of it
//! - [`connection`]: sockets, deadlines, TLS, content
//! - [`session`]: the conversation, as a pure state machine
//! - [`auth`]: SASL exchanges
//! - [`policy`]: who may do what
//! - [`penalty`]: how long a wrong password waits
//! - [`socket`], [`proxy`]: where clients come in, and what a load balancer says of them
//! - [`tls`]: our certificate
//!
//! The listener knows the queue's accepting half and nothing of delivery.

pub mod auth;
pub mod connection;
pub mod penalty;
pub mod policy;
pub mod proxy;
pub mod session;
pub mod socket;
pub mod tls;

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
    time::timeout,
};
use tokio_rustls::TlsAcceptor;

use self::{
    connection::Surroundings,
    penalty::Penalties,
    policy::{Client, Rules},
    socket::{Accepted, Socket},
};
use crate::{
    clock::Clock, config::ListenTls, net::Stream, observe::Observer, queue::Queue, smtp::reply::Reply,
};

/// How long a refused client has to take its refusal.
const REFUSAL_TIMEOUT: Duration = Duration::from_secs(5);
/// RFC 3207 sets none; see [`connection`].
const TLS_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a load balancer has to name its client.
const PROXY_TIMEOUT: Duration = Duration::from_secs(10);
/// When no descriptor is left, accepting again at once would only burn the processor.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What may change while the listener runs.
#[derive(Debug)]
pub struct Terms {
    /// What clients are held to.
    pub rules: Arc<Rules>,
    /// Our certificate.
    pub tls: Option<Arc<ServerConfig>>,
    /// Connections at once.
    pub connections: usize,
    /// Connections at once from one address.
    pub connections_per_client: usize,
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

    /// Accepts on one address until the process is about to end.
    pub async fn accept(&self, socket: Socket, entrance: impl Into<Entrance>) {
        let entrance = Arc::new(entrance.into());
        let mut shutdown = self.0.shutdown.clone();
        loop {
            let accepted = tokio::select! {
                accepted = socket.accept() => accepted,
                _ = shutdown.wait_for(|shutdown| *shutdown) => return,
            };
            match accepted {
                Ok(accepted) => {
                    let address = accepted.address();
                    match accepted {
                        Accepted::Tcp(stream, _) => self.admit(stream, address, &entrance),
                        Accepted::Unix(stream) => self.admit(stream, address, &entrance),
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, "can't accept a connection");
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
                refuse(stream, Reply::too_many_connections()).await;
                Ok(())
            }
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
            rules: Arc::clone(&terms.rules),
            tls: terms.tls.clone().filter(|_| entrance.tls == ListenTls::StartTls),
            queue: self.0.queue.clone(),
            observer: self.0.observer.clone(),
            penalties: self.0.penalties.clone(),
            clock: self.0.clock.clone(),
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
}

impl Place {
    fn take(inner: &Arc<Inner>, terms: &Terms) -> Option<Self> {
        let free = |open: usize| (open < terms.connections).then_some(open + 1);
        let before = inner.open.fetch_update(Ordering::Relaxed, Ordering::Relaxed, free).ok()?;
        inner.show(before + 1);
        Some(Self { inner: Arc::clone(inner), client: None })
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
        self.inner.show(open);
    }
}

impl Inner {
    fn show(&self, open: usize) {
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
