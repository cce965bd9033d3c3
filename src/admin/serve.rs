//! The two ways in, TCP and the Unix socket, and what bounds a connection on either.

use std::{
    fs, io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::fs::PermissionsExt as _,
    },
    path::{Path, PathBuf},
    time::Duration,
};

use axum::{
    Router,
    serve::{Listener, ListenerExt as _},
};
use hyper::{Request, body::Incoming, server::conn::http1};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::graceful::GracefulShutdown,
    service::TowerToHyperService,
};
use tokio::{
    net::{TcpListener, UnixListener, UnixStream},
    sync::watch,
};
use tower::ServiceExt as _;

use super::{
    Access, Admin,
    access::Peer,
    place::{self, Places},
    router, trend,
};
use crate::net;

/// The socket's name in the data directory.
pub const SOCKET: &str = "admin.sock";

/// For a request's header to arrive; also how long an idle connection is kept.
const HEADER_WITHIN: Duration = Duration::from_secs(10);
/// No connection is kept longer, whatever it does. The last request over one begins before
/// [`Peer::is_old`] and the wait for its header are over, and has its own time.
const CONNECTION_WITHIN: Duration = Duration::from_secs(320);
/// The largest header, and what is buffered of a body.
const BUFFER_MAX: usize = 32 * 1024;
/// At the end, for answers that are under way.
const DRAIN: Duration = Duration::from_secs(1);

/// The way in by TCP, which can move to another address: who is inside stays inside, and who has logged in stays so.
#[derive(Debug)]
pub struct TcpDoor {
    router: Router,
    shutdown: watch::Receiver<bool>,
    /// Told, or gone, it ends the one that is open.
    open: watch::Sender<bool>,
}

impl TcpDoor {
    /// Answers at this socket from now on, and no more at the one before.
    pub fn open(&mut self, tcp: TcpListener) {
        let (open, closing) = watch::channel(false);
        // An answer in several writes must not wait for the client's acknowledgement.
        let tcp = tcp.tap_io(|stream| drop(stream.set_nodelay(true)));
        let end = ended(self.shutdown.clone(), closing);
        let most = place::places(net::descriptors());
        let places = Places::new(most, most.div_ceil(2));
        tokio::spawn(answer(tcp, self.router.clone(), |peer: &SocketAddr| peer.ip(), places, end));
        self.open = open;
    }

    /// Lets nobody in any more.
    pub fn close(&self) {
        let _ = self.open.send(true);
    }
}

/// Answers on TCP and on the Unix socket at `path`, and keeps the numbers behind the plots, until
/// `shutdown` turns true; on TCP, as long as the door is kept.
///
/// # Errors
/// The socket can't be made.
pub fn serve(
    admin: Admin,
    tcp: TcpListener,
    path: &Path,
    shutdown: watch::Receiver<bool>,
) -> io::Result<TcpDoor> {
    let unix = bind_socket(path)?;
    let (open, _) = watch::channel(false);
    let mut door = TcpDoor { router: router(admin.clone(), Access::Tcp), shutdown: shutdown.clone(), open };
    door.open(tcp);
    let here = |_: &_| IpAddr::V4(Ipv4Addr::LOCALHOST);
    let end = ended(shutdown.clone(), shutdown.clone());
    // Whoever may open the socket is one of us.
    let most = place::places(net::descriptors());
    tokio::spawn(answer(unix, router(admin.clone(), Access::Socket), here, Places::new(most, most), end));
    tokio::spawn(trend::keep(admin, shutdown));
    Ok(door)
}

/// Returns when one of them turns true, or can't any more.
async fn ended(mut one: watch::Receiver<bool>, mut other: watch::Receiver<bool>) {
    tokio::select! {
        _ = one.wait_for(|ended| *ended) => {}
        _ = other.wait_for(|ended| *ended) => {}
    }
}

/// What `axum::serve` does, with bounds: on connections, their number, header and time.
async fn answer<L: Listener>(
    mut listener: L,
    router: Router,
    peer: fn(&L::Addr) -> IpAddr,
    places: Places,
    end: impl Future<Output = ()>,
) {
    tokio::pin!(end);
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEADER_WITHIN).max_buf_size(BUFFER_MAX);
    let graceful = GracefulShutdown::new();
    loop {
        let accepted = async {
            let free = places.one().await;
            (listener.accept().await, free)
        };
        let ((stream, address), free) = tokio::select! {
            accepted = accepted => accepted,
            () = &mut end => break,
        };
        let client = peer(&address);
        // Whoever has as many as he may is hung up on, so that there is one for the others.
        let Some(place) = free.and_then(|free| places.of(client, free)) else {
            tracing::debug!(%client, "as many connections to the page and the API as one may have");
            continue;
        };
        let peer = Peer::new(client, place);
        let service = router.clone().map_request(move |mut request: Request<Incoming>| {
            request.extensions_mut().insert(peer.clone());
            request
        });
        let service = TowerToHyperService::new(service);
        let connection = graceful.watch(http.serve_connection(TokioIo::new(stream), service));
        tokio::spawn(async move {
            // What goes wrong with a connection is its client's trouble alone.
            let _ = tokio::time::timeout(CONNECTION_WITHIN, connection).await;
        });
    }
    // Whoever knocks now is refused, and the address is free.
    drop(listener);
    let _ = tokio::time::timeout(DRAIN, graceful.shutdown()).await;
}

/// Binds the socket for its owner alone. One that is there already is replaced: the queue's lock
/// proves that nobody serves it any more.
fn bind_socket(path: &Path) -> io::Result<UnixListener> {
    let (directory, name) = (path.parent(), path.file_name());
    let (directory, name) = directory.zip(name).ok_or(io::ErrorKind::InvalidFilename)?;
    let (_held, directory) = within_reach(directory)?;
    let (fresh, path) = (directory.join(".admin.sock.new"), directory.join(name));
    match fs::remove_file(&fresh) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let socket = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None)?;
    socket.bind(&socket2::SockAddr::unix(&fresh)?)?;
    // Before it listens, and before it has its name: nobody else can ever connect.
    fs::set_permissions(&fresh, fs::Permissions::from_mode(0o600))?;
    socket.listen(128)?;
    socket.set_nonblocking(true)?;
    fs::rename(&fresh, &path)?;
    UnixListener::from_std(std::os::unix::net::UnixListener::from(OwnedFd::from(socket)))
}

/// Connects to the socket in a data directory.
///
/// # Errors
/// No relay serves it, or its owner is another user.
pub async fn connect_socket(data: &Path) -> io::Result<UnixStream> {
    let (_held, directory) = within_reach(data)?;
    UnixStream::connect(directory.join(SOCKET)).await
}

/// A socket's path has at most 107 octets (unix(7)). A longer directory is reached through an open
/// descriptor of it.
fn within_reach(directory: &Path) -> io::Result<(Option<fs::File>, PathBuf)> {
    if directory.as_os_str().len() < 80 {
        return Ok((None, directory.to_owned()));
    }
    let held = fs::File::open(directory)?;
    let path = PathBuf::from(format!("/proc/self/fd/{}", held.as_raw_fd()));
    Ok((Some(held), path))
}
