//! Asking the running relay, over the Unix socket in its data directory; or, about its queue, this
//! process in its place.

use std::{
    fmt::Display,
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::{Method, Request, Response, StatusCode, client::conn::http1};
use hyper_util::rt::TokioIo;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

use super::{
    Place,
    exit::{Exit, Failure},
    stopped::Stopped,
};
use crate::admin::{Body, SOCKET, connect_socket};

/// For one answer, content included.
const ANSWER_WITHIN: Duration = Duration::from_secs(60);

/// Octets of an answer that may be a sentence.
const LINE_MAX: usize = 1_000;

/// A relay that was found, or the queue of one that doesn't run.
pub(super) struct Client {
    runtime: tokio::runtime::Runtime,
    way: Way,
}

/// How it is asked.
enum Way {
    /// Over the socket in this directory.
    Socket(PathBuf),
    /// Without it, in this process.
    Stopped(Stopped),
}

impl Client {
    /// Finds the relay; whether it runs shows with the first request.
    pub(super) fn find(place: &Place) -> Result<Self, Failure> {
        Self::at(place.data()?)
    }

    /// The relay of this data directory.
    pub(super) fn at(data: PathBuf) -> Result<Self, Failure> {
        Ok(Self { runtime: runtime()?, way: Way::Socket(data) })
    }

    /// Finds the relay if it runs; else opens its queue. With `new`, makes it where there is none.
    pub(super) fn of_queue(place: &Place, new: bool) -> Result<Self, Failure> {
        let (runtime, data) = (runtime()?, place.data()?);
        match runtime.block_on(connect_socket(&data)) {
            Ok(_) => Ok(Self { runtime, way: Way::Socket(data) }),
            Err(error) if is_absent(&error) => {
                // Its runner may start what tells of a change: it must be inside.
                let stopped = runtime.block_on(async { Stopped::open(place, &data, new) })?;
                Ok(Self { runtime, way: Way::Stopped(stopped) })
            }
            Err(error) => Err(unreachable(&data, &error)),
        }
    }

    /// Whether a relay runs, though it may not be for this user to ask.
    pub(super) fn is_served(&self) -> bool {
        let Way::Socket(data) = &self.way else { return false };
        match self.runtime.block_on(connect_socket(data)) {
            Ok(_) => true,
            // A directory that is closed to us tells nothing.
            Err(error) => {
                error.kind() == io::ErrorKind::PermissionDenied
                    && data.join(SOCKET).symlink_metadata().is_ok()
            }
        }
    }

    /// Runs what asks it more than once.
    pub(super) fn block_on<T>(&self, work: impl Future<Output = T>) -> T {
        self.runtime.block_on(work)
    }

    /// Gets an answer whose octets come as they are asked for.
    pub(super) async fn fetch(&self, path: &str) -> Result<Response<Body>, Failure> {
        let sending = self.send(Method::GET, path, Body::empty());
        tokio::time::timeout(ANSWER_WITHIN, sending).await.unwrap_or_else(|_| Err(silent()))
    }

    /// Hands something over, and gets a value for it.
    pub(super) async fn hand_over<T: DeserializeOwned>(&self, path: &str, body: Body) -> Result<T, Failure> {
        let response = self.send(Method::POST, path, body).await?;
        understood(&response.into_body().collect().await.map_err(closed)?.to_bytes())
    }

    /// Gets a value.
    pub(super) fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        understood(&self.raw(path)?)
    }

    /// Has something done that brings forth a value.
    pub(super) fn post<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        understood(&self.ask(Method::POST, path)?)
    }

    /// Gets octets.
    pub(super) fn raw(&self, path: &str) -> Result<Bytes, Failure> {
        self.ask(Method::GET, path)
    }

    /// Has something done; returns what was done in words.
    pub(super) fn act(&self, path: &str) -> Result<String, Failure> {
        let answer: Value = serde_json::from_slice(&self.ask(Method::POST, path)?).unwrap_or_default();
        Ok(answer["done"].as_str().unwrap_or("done").to_owned())
    }

    fn ask(&self, method: Method, path: &str) -> Result<Bytes, Failure> {
        self.runtime.block_on(async {
            let asked = async {
                let response = self.send(method, path, Body::empty()).await?;
                Ok(response.into_body().collect().await.map_err(closed)?.to_bytes())
            };
            tokio::time::timeout(ANSWER_WITHIN, asked).await.unwrap_or_else(|_| Err(silent()))
        })
    }

    /// Sends a request; returns an answer that is a success.
    async fn send(&self, method: Method, path: &str, body: Body) -> Result<Response<Body>, Failure> {
        let request = Request::builder().method(method).uri(path).header("host", "outpost");
        let request = request.body(body).map_err(|error| Failure::new(Exit::USAGE, error))?;
        let response = match &self.way {
            Way::Stopped(stopped) => stopped.ask(request).await?,
            Way::Socket(data) => {
                let stream = connect_socket(data).await.map_err(|error| unreachable(data, &error))?;
                let (mut sender, connection) =
                    http1::handshake(TokioIo::new(stream)).await.map_err(closed)?;
                tokio::spawn(connection);
                sender.send_request(request).await.map_err(closed)?.map(Body::new)
            }
        };
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let octets = response.into_body().collect().await.map_err(closed)?.to_bytes();
        let answer: Value = serde_json::from_slice(&octets).unwrap_or_default();
        let words = match answer["error"].as_str() {
            Some(words) => words.to_owned(),
            // A probe's answer is plain text.
            None if octets.len() < LINE_MAX && octets.starts_with(b"not ready") => {
                String::from_utf8_lossy(&octets).trim().to_owned()
            }
            None => format!("the relay answered {status}"),
        };
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

fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|error| Failure::new(Exit::UNAVAILABLE, error))
}

fn silent() -> Failure {
    Failure::new(Exit::UNAVAILABLE, "the relay doesn't answer")
}

fn closed(error: impl Display) -> Failure {
    Failure::new(Exit::UNAVAILABLE, format!("the relay closed: {error}"))
}

fn understood<T: DeserializeOwned>(octets: &[u8]) -> Result<T, Failure> {
    serde_json::from_slice(octets).map_err(|error| {
        let words = format!("the relay's answer can't be understood; is it another version? ({error})");
        Failure::new(Exit::UNAVAILABLE, words)
    })
}

/// Whether nobody serves the socket.
fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused)
}

fn unreachable(data: &Path, error: &io::Error) -> Failure {
    let socket = data.join(SOCKET).display().to_string();
    match error.kind() {
        io::ErrorKind::PermissionDenied => Failure::new(
            Exit::NOT_PERMITTED,
            format!("{socket} belongs to another user: run this as the relay's user"),
        ),
        _ if is_absent(error) => Failure::new(
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
