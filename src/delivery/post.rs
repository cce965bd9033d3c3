//! One HTTP POST on a connection of its own, in TLS verified against the system's roots where the URL says
//! https. For token endpoints and webhooks, which are asked now and then.

use std::{io, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{Method, Request, StatusCode, Uri, client::conn::http1};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::net::lookup_host;
use tokio_rustls::TlsConnector;

use super::{dial::dial, tls};
use crate::net::Stream;

/// Octets of an answer.
const ANSWER_MAX: usize = 64 * 1024;

/// Posts a body; the status and body of the answer. Redirections are not followed. `limit` bounds the
/// connecting; bound the whole by a deadline of your own.
///
/// # Errors
/// There was no answer. What is said of it names the host at most.
pub(super) async fn post(
    uri: &Uri,
    fields: &[(&str, &str)],
    body: Bytes,
    limit: Duration,
) -> io::Result<(StatusCode, Bytes)> {
    let secure = uri.scheme_str() == Some("https");
    let host = uri.host().ok_or(io::ErrorKind::InvalidInput)?;
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let port = uri.port_u16().unwrap_or(if secure { 443 } else { 80 });
    let addresses = lookup_host((bare, port)).await?.collect();
    let (stream, _) = dial(addresses, &[], limit).await?;
    let stream = if secure {
        let config = tls::system_roots().map_err(io::Error::other)?;
        let name = ServerName::try_from(bare.to_owned()).map_err(io::Error::other)?;
        Stream::Tls(Box::new(TlsConnector::from(config).connect(name, stream).await?.into()))
    } else {
        Stream::Plain(stream)
    };
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
    let connection = tokio::spawn(connection);
    let mut request = Request::builder()
        .method(Method::POST)
        .uri(uri.path_and_query().map_or("/", |path| path.as_str()))
        .header("host", uri.authority().map_or(host, |authority| authority.as_str()))
        .header("connection", "close");
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    let request = request.body(Full::new(body)).map_err(io::Error::other)?;
    let answer = async {
        let answer = sender.send_request(request).await.map_err(io::Error::other)?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), ANSWER_MAX).collect().await.map_err(io::Error::other)?;
        Ok((status, body.to_bytes()))
    };
    let answer = answer.await;
    connection.abort();
    answer
}

/// The same to a URL in text; the status alone.
///
/// # Errors
/// There was no answer, or that is no URL; of the URL nothing but its host is named.
pub async fn post_to(url: &str, fields: &[(&str, &str)], body: Vec<u8>, limit: Duration) -> io::Result<u16> {
    let uri: Uri = url.parse().map_err(|_| io::Error::other("its URL can't be understood"))?;
    let (status, _) = post(&uri, fields, body.into(), limit).await?;
    Ok(status.as_u16())
}
