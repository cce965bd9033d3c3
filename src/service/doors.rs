//! The sockets that take mail: bound, given by a service manager, opened and closed by a reload.

use std::{io, net::SocketAddr, sync::Arc};

use listenfd::ListenFd;
use tokio::task::AbortHandle;

use super::{StartError, parts};
use crate::{
    config::Listen,
    listener::{Listener, socket::Socket},
};

/// Sockets that whoever started us has opened for us (sd_listen_fds(3)), by their names. They are ours to use again and
/// again, for only the service manager can open them.
#[derive(Debug, Default)]
pub(crate) struct Passed(Vec<(String, Given)>);

#[derive(Debug)]
enum Given {
    Tcp(std::net::TcpListener),
    Unix(std::os::unix::net::UnixListener),
}

impl Passed {
    /// Takes them from the environment; to be called before there are threads.
    pub(crate) fn take() -> Self {
        let names = sd_notify::listen_fds_with_names().map(|all| all.map(|(_, name)| name).collect());
        let names: Vec<String> = names.unwrap_or_default();
        let mut fds = ListenFd::from_env();
        let mut given = |at: usize| {
            if let Ok(Some(socket)) = fds.take_tcp_listener(at) {
                return Some(Given::Tcp(socket));
            }
            fds.take_unix_listener(at).ok().flatten().map(Given::Unix)
        };
        Self(names.into_iter().enumerate().filter_map(|(at, name)| Some((name, given(at)?))).collect())
    }

    /// All of that name.
    fn named(&self, wanted: &str) -> io::Result<Vec<Socket>> {
        let named = self.0.iter().filter(|(name, _)| name == wanted);
        let sockets: Vec<Socket> = named.map(|(_, given)| given.socket()).collect::<Result<_, _>>()?;
        if sockets.is_empty() {
            let words = "no socket of that name was passed: see FileDescriptorName= in systemd.socket(5)";
            return Err(io::Error::new(io::ErrorKind::NotFound, words));
        }
        Ok(sockets)
    }
}

impl Given {
    fn socket(&self) -> io::Result<Socket> {
        match self {
            Self::Tcp(socket) => {
                let socket = socket.try_clone()?;
                socket.set_nonblocking(true)?;
                Ok(Socket::Tcp(tokio::net::TcpListener::from_std(socket)?))
            }
            Self::Unix(socket) => {
                let socket = socket.try_clone()?;
                socket.set_nonblocking(true)?;
                Ok(Socket::Unix(tokio::net::UnixListener::from_std(socket)?))
            }
        }
    }
}

/// The doors that are open, in the order of the settings.
#[derive(Debug, Default)]
pub(super) struct Doors {
    passed: Passed,
    open: Vec<Door>,
}

#[derive(Debug)]
struct Door {
    listen: Listen,
    sockets: Vec<Arc<Socket>>,
    accepting: Vec<AbortHandle>,
}

/// What is to be open next: everything that can go wrong with it has gone well.
#[derive(Debug)]
pub(super) struct Plan(Vec<(Listen, Vec<Arc<Socket>>)>);

impl Plan {
    /// The first TCP address, which is the one that apps are told.
    pub(super) fn first(&self) -> SocketAddr {
        let first = self.0.iter().flat_map(|(_, sockets)| sockets).find_map(|socket| socket.tcp_address());
        first.unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 0)))
    }

    /// Where clients find us: sockets that were passed by the addresses that they have.
    pub(super) fn addresses(&self) -> Vec<Listen> {
        let of = |(listen, sockets): &(Listen, Vec<Arc<Socket>>)| {
            let passed = listen.address.starts_with("fd:");
            let found = sockets.iter().filter(|_| passed).filter_map(|socket| socket.tcp_address());
            let found: Vec<Listen> =
                found.map(|address| Listen { address: address.to_string(), ..listen.clone() }).collect();
            if found.is_empty() { vec![listen.clone()] } else { found }
        };
        self.0.iter().flat_map(of).collect()
    }
}

impl Doors {
    pub(super) fn with(passed: Passed) -> Self {
        Self { passed, open: Vec::new() }
    }

    /// The plan by which nothing changes.
    pub(super) fn as_they_are(&self) -> Plan {
        Plan(self.open.iter().map(|door| (door.listen.clone(), door.sockets.clone())).collect())
    }

    /// Binds what is not open yet.
    ///
    /// # Errors
    /// An address can't be bound; nothing has changed.
    pub(super) async fn plan(&self, wanted: &[Listen]) -> Result<Plan, StartError> {
        let mut plan = Vec::new();
        for listen in wanted {
            let sockets = match self.open.iter().find(|door| door.listen.address == listen.address) {
                Some(door) => door.sockets.clone(),
                None => self
                    .bind(&listen.address)
                    .await
                    .map_err(|error| StartError::Bind { address: listen.address.clone(), error })?,
            };
            plan.push((listen.clone(), sockets));
        }
        Ok(Plan(plan))
    }

    async fn bind(&self, address: &str) -> io::Result<Vec<Arc<Socket>>> {
        let sockets = match address.strip_prefix("fd:") {
            Some(name) => self.passed.named(name)?,
            None => vec![Socket::bind(address).await?],
        };
        Ok(sockets.into_iter().map(Arc::new).collect())
    }

    /// Opens and closes doors by the plan. One that stays as it is isn't touched, and clients who are inside stay
    /// inside.
    pub(super) fn change(&mut self, plan: Plan, listener: &Listener) {
        let mut old = std::mem::take(&mut self.open);
        for (listen, sockets) in plan.0 {
            if let Some(at) = old.iter().position(|door| door.listen == listen) {
                self.open.push(old.swap_remove(at));
                continue;
            }
            // One that is open under other terms goes on with the same socket: nobody who knocks is turned away.
            for door in old.extract_if(.., |door| door.listen.address == listen.address) {
                door.stop();
            }
            for socket in &sockets {
                let address = socket.tcp_address().map_or(listen.address.clone(), |bound| bound.to_string());
                tracing::info!(address, tls = ?listen.tls, "taking mail");
            }
            let accepting = sockets.iter().map(|socket| {
                let (listener, socket, entrance) =
                    (listener.clone(), Arc::clone(socket), parts::entrance(&listen));
                tokio::spawn(async move { listener.accept(socket, entrance).await }).abort_handle()
            });
            let accepting = accepting.collect();
            self.open.push(Door { listen, sockets, accepting });
        }
        for door in old {
            tracing::info!(address = door.listen.address, "taking no more mail here");
            door.stop();
        }
    }
}

impl Door {
    fn stop(&self) {
        self.accepting.iter().for_each(AbortHandle::abort);
    }
}
