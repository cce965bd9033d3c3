//! Submission: clients speak to us.
//!
//! - here: the accept loop, how many at once, and the end of it
//! - [`connection`]: sockets, deadlines, TLS, content
//! - [`session`]: the conversation, as a pure state machine
//! - [`auth`]: SASL exchanges
//! - [`policy`]: who may do what
//! - [`allowance`]: how much a login may hand in
//! - [`tls`]: our certificate
//!
//! The listener knows the queue's accepting half and nothing of delivery.

pub mod allowance;
pub mod auth;
pub mod connection;
pub mod policy;
pub mod session;
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
use rustls::ServerConfig;
use tokio::{
    io::AsyncWriteExt as _,
    net::{TcpListener, TcpStream},
    sync::watch,
    time::timeout,
};
use tokio_rustls::TlsAcceptor;

use self::{
    allowance::Allowances,
    connection::Surroundings,
    policy::{Client, Rules},
};
use crate::{
    clock::Clock, config::ListenTls, net::Stream, observe::Observer, queue::Queue, smtp::reply::Reply,
};

/// How long a refused client has to take its refusal.
const REFUSAL_TIMEOUT: Duration = Duration::from_secs(5);
/// RFC 3207 sets none; see [`connection`].
const TLS_TIMEOUT: Duration = Duration::from_secs(30);
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
    pub async fn accept(&self, socket: TcpListener, tls: ListenTls) {
        let mut shutdown = self.0.shutdown.clone();
        loop {
            let accepted = tokio::select! {
                accepted = socket.accept() => accepted,
                _ = shutdown.wait_for(|shutdown| *shutdown) => return,
            };
            match accepted {
                Ok((stream, peer)) => self.admit(stream, peer.ip(), tls),
                Err(error) => {
                    tracing::warn!(%error, "can't accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn admit(&self, stream: TcpStream, address: IpAddr, tls: ListenTls) {
        // Replies are single small packets: waiting to fill them costs 40 ms each.
        let _ = stream.set_nodelay(true);
        let terms = self.0.terms.load_full();
        let Some(place) = Place::take(&self.0, address.to_canonical(), &terms) else {
            tokio::spawn(refuse(stream));
            return;
        };
        let listener = self.clone();
        tokio::spawn(async move {
            if let Err(error) = listener.serve(stream, address, tls, &terms).await {
                tracing::debug!(client = %address, %error, "connection lost");
            }
            drop(place);
        });
    }

    async fn serve(
        &self,
        stream: TcpStream,
        address: IpAddr,
        tls: ListenTls,
        terms: &Terms,
    ) -> std::io::Result<()> {
        let surroundings = Surroundings {
            rules: Arc::clone(&terms.rules),
            allowances: Arc::clone(&terms.allowances),
            tls: terms.tls.clone().filter(|_| tls == ListenTls::StartTls),
            queue: self.0.queue.clone(),
            observer: self.0.observer.clone(),
            clock: self.0.clock.clone(),
            shutdown: self.0.shutdown.clone(),
        };
        let stream = match (&terms.tls, tls) {
            (Some(config), ListenTls::Implicit) => {
                let handshake = TlsAcceptor::from(Arc::clone(config)).accept(stream);
                let stream = timeout(TLS_TIMEOUT, handshake).await.map_err(std::io::Error::from)??;
                Stream::Tls(Box::new(stream.into()))
            }
            _ => Stream::Plain(stream),
        };
        let client = Client::new(address, stream.is_tls());
        connection::serve(stream, client, surroundings).await
    }
}

/// One of the connections that may be open at once. Given back when dropped.
struct Place {
    inner: Arc<Inner>,
    address: IpAddr,
}

impl Place {
    fn take(inner: &Arc<Inner>, address: IpAddr, terms: &Terms) -> Option<Self> {
        let mut per_client = inner.per_client.lock().unwrap_or_else(PoisonError::into_inner);
        let of_client = per_client.get(&address).copied().unwrap_or(0);
        if inner.open.load(Ordering::Relaxed) >= terms.connections
            || of_client >= terms.connections_per_client
        {
            return None;
        }
        per_client.insert(address, of_client + 1);
        let open = inner.open.fetch_add(1, Ordering::Relaxed) + 1;
        inner.show(open);
        drop(per_client);
        Some(Self { inner: Arc::clone(inner), address })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut per_client = self.inner.per_client.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(of_client) = per_client.get_mut(&self.address) {
            *of_client -= 1;
            if *of_client == 0 {
                per_client.remove(&self.address);
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

async fn refuse(mut stream: TcpStream) {
    let mut refusal = Vec::new();
    Reply::too_many_connections().write_to(&mut refusal);
    let _ = timeout(REFUSAL_TIMEOUT, stream.write_all(&refusal)).await;
}
