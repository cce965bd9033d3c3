//! Where clients come in: TCP, or a Unix socket.

use std::{
    fs, io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    os::unix::fs::{FileTypeExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

/// Owner and group: who else is to hand in mail gets a group, not the world.
const MODE: u32 = 0o660;
/// As many as Linux lets wait by default.
const BACKLOG: i32 = 1024;

/// A bound socket.
#[derive(Debug)]
pub enum Socket {
    /// An address and port.
    Tcp(TcpListener),
    /// A path in the file system.
    Unix(UnixListener),
}

/// A client at the door.
#[derive(Debug)]
pub enum Accepted {
    /// By TCP, from this address.
    Tcp(TcpStream, IpAddr),
    /// By a Unix socket. It counts as loopback: only processes of this machine can open it, and no
    /// more of them than its directory and mode let through.
    Unix(UnixStream),
}

impl Accepted {
    /// The address that the client counts as.
    pub fn address(&self) -> IpAddr {
        match self {
            Self::Tcp(_, address) => address.to_canonical(),
            Self::Unix(_) => IpAddr::V4(Ipv4Addr::LOCALHOST),
        }
    }
}

impl Socket {
    /// Binds `host:port` or `unix:/path`.
    ///
    /// # Errors
    /// The system's; for a path also that a living process serves it, or that it is no socket.
    pub async fn bind(address: &str) -> io::Result<Self> {
        match address.strip_prefix("unix:") {
            Some(path) => bind_unix(Path::new(path)).map(Self::Unix),
            None => TcpListener::bind(address).await.map(Self::Tcp),
        }
    }

    /// The TCP address that was bound, if it is one.
    pub fn tcp_address(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(socket) => socket.local_addr().ok(),
            Self::Unix(_) => None,
        }
    }

    /// The next client.
    ///
    /// # Errors
    /// The system's; the socket goes on.
    pub async fn accept(&self) -> io::Result<Accepted> {
        match self {
            Self::Tcp(socket) => {
                let (stream, peer) = socket.accept().await?;
                // Replies are single small packets: waiting to fill them costs 40 ms each.
                let _ = stream.set_nodelay(true);
                Ok(Accepted::Tcp(stream, peer.ip()))
            }
            Self::Unix(socket) => Ok(Accepted::Unix(socket.accept().await?.0)),
        }
    }
}

/// Binds beside and renames, so that the path is there with its mode or not at all. A socket that
/// nobody serves any more is replaced; anything else at its place is left alone.
fn bind_unix(path: &Path) -> io::Result<UnixListener> {
    match fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, "there is something else of that name"));
        }
        Ok(_) if std::os::unix::net::UnixStream::connect(path).is_ok() => {
            return Err(io::Error::new(io::ErrorKind::AddrInUse, "another process serves this socket"));
        }
        _ => {}
    }
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    let beside = PathBuf::from(beside);
    match fs::remove_file(&beside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let socket = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None)?;
    socket.bind(&socket2::SockAddr::unix(&beside)?)?;
    fs::set_permissions(&beside, fs::Permissions::from_mode(MODE))?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    fs::rename(&beside, path)?;
    UnixListener::from_std(std::os::unix::net::UnixListener::from(std::os::fd::OwnedFd::from(socket)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_stale_socket_is_replaced_and_nothing_else_is() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("smtp");
        let address = format!("unix:{}", path.display());
        let first = Socket::bind(&address).await.unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
        assert_eq!(Socket::bind(&address).await.unwrap_err().kind(), io::ErrorKind::AddrInUse);
        drop(first);
        assert!(path.exists(), "stale");
        let second = Socket::bind(&address).await.unwrap();
        let client = UnixStream::connect(&path).await.unwrap();
        assert!(second.accept().await.unwrap().address().is_loopback());
        drop(client);
        let file = directory.path().join("file");
        fs::write(&file, "mail").unwrap();
        let refused = Socket::bind(&format!("unix:{}", file.display())).await.unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read_to_string(file).unwrap(), "mail");
    }
}
