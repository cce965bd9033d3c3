//! The connection of both ends: in clear, or in TLS.
//!
//! Generic over what carries it, so that a session can be played over memory as well as over TCP.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::{TlsStream, rustls::ProtocolVersion};

/// A connection that may have been upgraded to TLS.
#[derive(Debug)]
pub enum Stream<S> {
    /// In clear.
    Plain(S),
    /// In TLS.
    Tls(Box<TlsStream<S>>),
}

impl<S> Stream<S> {
    /// Whether it is in TLS.
    pub fn is_tls(&self) -> bool {
        matches!(self, Self::Tls(_))
    }

    /// What only the two ends of this connection know (RFC 9266). TLS 1.3 only: before, it may not be
    /// unlike that of another connection.
    pub fn channel_binding(&self) -> Option<[u8; 32]> {
        let Self::Tls(stream) = self else { return None };
        if stream.get_ref().1.protocol_version()? != ProtocolVersion::TLSv1_3 {
            return None;
        }
        let (empty, label) = ([0; 32], b"EXPORTER-Channel-Binding");
        match stream.as_ref() {
            TlsStream::Client(stream) => stream.get_ref().1.export_keying_material(empty, label, Some(&[])),
            TlsStream::Server(stream) => stream.get_ref().1.export_keying_material(empty, label, Some(&[])),
        }
        .ok()
    }

    /// The version of TLS as people write it.
    pub fn tls_version(&self) -> Option<&'static str> {
        match self {
            Self::Plain(_) => None,
            Self::Tls(stream) => match stream.get_ref().1.protocol_version()? {
                ProtocolVersion::TLSv1_2 => Some("TLSv1.2"),
                ProtocolVersion::TLSv1_3 => Some("TLSv1.3"),
                _ => Some("TLS"),
            },
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Stream<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Stream<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Self::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(stream) => stream.is_write_vectored(),
            Self::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

/// Octets that nobody can guess. They come from where TLS has its keys from, which asks the kernel itself: a program
/// without libraries, in a root without devices, has them too.
///
/// # Errors
/// The system gives none.
pub fn random<const N: usize>() -> io::Result<[u8; N]> {
    let mut octets = [0; N];
    rustls::crypto::aws_lc_rs::default_provider()
        .secure_random
        .fill(&mut octets)
        .map_err(|_| io::Error::other("the system gives no random octets"))?;
    Ok(octets)
}

/// Has the first randomness gathered while others wait for the disk. It is gathered once a process, and takes the
/// processor some 60 ms; who needs it sooner waits for the rest of that.
pub fn gather_randomness() {
    let gather = || drop(crypto().secure_random.fill(&mut [0]));
    // Without a thread for it, whoever needs it first gathers it.
    drop(std::thread::Builder::new().name("randomness".to_owned()).spawn(gather));
}

/// The cryptography that all TLS of ours uses.
pub fn crypto() -> std::sync::Arc<rustls::crypto::CryptoProvider> {
    std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

/// How many descriptors this process may have.
pub fn descriptors() -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    limit.and_then(|limit| usize::try_from(limit).ok()).unwrap_or(usize::MAX)
}
