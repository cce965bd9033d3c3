//! Asking the running relay, over the Unix socket in its data directory.

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper::{Method, Request, StatusCode, client::conn::http1};
use hyper_util::rt::TokioIo;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

use super::{
    Place,
    exit::{Exit, Failure},
};
use crate::admin::{SOCKET, connect_socket};

/// For one answer, content included.
const ANSWER_WITHIN: Duration = Duration::from_secs(60);

/// A relay that was found.
pub(super) struct Client {
    runtime: tokio::runtime::Runtime,
    data: PathBuf,
}

impl Client {
    /// Finds the relay; whether it runs shows with the first request.
    pub(super) fn find(place: &Place) -> Result<Self, Failure> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| Failure::new(Exit::UNAVAILABLE, error))?;
        Ok(Self { runtime, data: place.data()? })
    }

    /// Gets a value.
    pub(super) fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        let octets = self.raw(path)?;
        serde_json::from_slice(&octets).map_err(|error| {
            let words = format!("the relay's answer can't be understood; is it another version? ({error})");
            Failure::new(Exit::UNAVAILABLE, words)
        })
    }

    /// Gets octets.
    pub(super) fn raw(&self, path: &str) -> Result<Bytes, Failure> {
        self.ask(Method::GET, path)
    }

    /// Has something done; returns what was done in words.
    pub(super) fn act(&self, method: Method, path: &str) -> Result<String, Failure> {
        let answer: Value = serde_json::from_slice(&self.ask(method, path)?).unwrap_or_default();
        Ok(answer["done"].as_str().unwrap_or("done").to_owned())
    }

    fn ask(&self, method: Method, path: &str) -> Result<Bytes, Failure> {
        let answer = self.runtime.block_on(async {
            let asked = ask(&self.data, method, path);
            tokio::time::timeout(ANSWER_WITHIN, asked)
                .await
                .unwrap_or_else(|_| Err(Failure::new(Exit::UNAVAILABLE, "the relay doesn't answer")))
        });
        let (status, octets) = answer?;
        if status.is_success() {
            return Ok(octets);
        }
        let answer: Value = serde_json::from_slice(&octets).unwrap_or_default();
        let words =
            answer["error"].as_str().map_or_else(|| format!("the relay answered {status}"), str::to_owned);
        let exit = match status {
            StatusCode::BAD_REQUEST => Exit::USAGE,
            StatusCode::NOT_FOUND => Exit::DATA,
            StatusCode::CONFLICT => Exit::TRY_AGAIN,
            StatusCode::UNPROCESSABLE_ENTITY => Exit::CONFIG,
            _ => Exit::UNAVAILABLE,
        };
        Err(Failure::new(exit, words))
    }
}

async fn ask(data: &Path, method: Method, path: &str) -> Result<(StatusCode, Bytes), Failure> {
    let stream = connect_socket(data).await.map_err(|error| unreachable(data, &error))?;
    let broken = |error: hyper::Error| Failure::new(Exit::UNAVAILABLE, format!("the relay closed: {error}"));
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
    tokio::spawn(connection);
    let request = Request::builder().method(method).uri(path).header("host", "outpost");
    let request = request.body(Empty::<Bytes>::new()).map_err(|error| Failure::new(Exit::USAGE, error))?;
    let response = sender.send_request(request).await.map_err(broken)?;
    let status = response.status();
    Ok((status, response.into_body().collect().await.map_err(broken)?.to_bytes()))
}

fn unreachable(data: &Path, error: &io::Error) -> Failure {
    let socket = data.join(SOCKET).display().to_string();
    match error.kind() {
        io::ErrorKind::PermissionDenied => Failure::new(
            Exit::NOT_PERMITTED,
            format!("{socket} belongs to another user: run this as the relay's user"),
        ),
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => Failure::new(
            Exit::UNAVAILABLE,
            format!(
                "no relay runs here: nobody answers at {socket}\n  help: if it runs elsewhere, name its --data"
            ),
        ),
        _ => Failure::new(Exit::UNAVAILABLE, format!("{socket}: {error}")),
    }
}

/// A path with a query string made of a value's fields.
pub(super) fn with_query(path: &str, query: &impl Serialize) -> String {
    let fields = serde_json::to_value(query).unwrap_or_default();
    let pairs = fields.as_object().into_iter().flatten().map(|(name, value)| {
        let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        format!("{name}={}", utf8_percent_encode(&text, NON_ALPHANUMERIC))
    });
    let pairs: Vec<String> = pairs.collect();
    if pairs.is_empty() { path.to_owned() } else { format!("{path}?{}", pairs.join("&")) }
}

/// A path's segment, whatever was typed.
pub(super) fn segment(text: &str) -> String {
    utf8_percent_encode(text, NON_ALPHANUMERIC).to_string()
}
