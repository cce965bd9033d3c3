//! The outside's window and levers: health, metrics, API, web page.
//!
//! Reads from and acts on the parts that it is given; nothing else knows it. The same routes answer
//! on TCP and on a Unix socket in the data directory, which is how the commands reach a running
//! relay.
//!
//! - [`access`]: who may ask: names, passwords, foreign pages; `session`: who has logged in
//! - [`mod@serve`]: the two ways in, and what bounds a connection
//! - [`view`]: the queue and the upstream as people see them
//! - `queue`, `bulk`, `export`, `import`, `status`, `events`, `relay`, `trend`, `dev`: the routes of the API
//! - `stream`: events as they happen
//! - `submit`, `compose`, `once`: mail that is handed in over HTTP, each message once
//! - [`alerts`], [`forward`]: what webhooks are told
//! - `page`: the same for the eyes and the hand

pub mod access;
pub mod alerts;
pub mod archive;
mod bulk;
mod compose;
pub mod content;
mod dev;
pub mod events;
pub mod export;
mod extract;
pub mod forward;
pub mod import;
mod once;
mod page;
pub mod people;
mod place;
mod queue;
mod relay;
pub mod serve;
mod session;
mod status;
mod stream;
mod submit;
#[cfg(test)]
mod tests;
mod trend;
pub mod view;

use std::sync::Arc;

use arc_swap::ArcSwap;
use axum::{
    Json, Router,
    extract::FromRef,
    http::{Request, StatusCode, header},
    middleware,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde_json::json;
use tokio::sync::{mpsc, oneshot};
use tower::ServiceExt as _;

pub use axum::body::Body;

pub use self::{
    access::Access,
    bulk::{Failed, Order, Outcome},
    once::Once,
    place::places,
    queue::{Filter, NOT_HELD},
    relay::{Info, ListenInfo},
    serve::{SOCKET, TcpDoor, connect_socket, serve},
    stream::Streams,
    submit::Places,
    trend::{Moment, Trend},
};
use crate::{
    clock::Clock,
    config::Settings,
    environment::Published,
    listener::{Listener, allowance::Allowances},
    observe::Observer,
    queue::{Fault, Queue},
    runner::Runner,
};

/// What the routes work on.
#[derive(Clone)]
pub struct Admin {
    /// The settings in force.
    pub settings: Arc<ArcSwap<Settings>>,
    /// The queue.
    pub queue: Queue,
    /// Who opens connections to it.
    pub runner: Runner,
    /// Events and metrics.
    pub observer: Observer,
    /// Takes mail that is handed in over HTTP.
    pub listener: Listener,
    /// The idempotency keys of the last day.
    pub once: Once,
    /// What bounds streams of events.
    pub streams: Streams,
    /// What bounds messages in parts.
    pub places: Places,
    /// What logins may hand in.
    pub allowances: Arc<ArcSwap<Allowances>>,
    /// What apps are told.
    pub published: Arc<ArcSwap<Published>>,
    /// Asks the service to read its configuration again; the answer says what came of it.
    pub reload: mpsc::Sender<oneshot::Sender<Result<String, String>>>,
    /// In local mode, what the embedded upstream has received: a queue of its own that nobody empties.
    pub captured: Option<Queue>,
    /// The numbers behind the plots.
    pub trend: crate::observe::trend::Trend,
    /// The time.
    pub clock: Clock,
}

/// What the routes of the queue work on: all that there is while no relay runs.
#[derive(Clone)]
pub struct Desk {
    /// The queue.
    pub queue: Queue,
    /// Who knows its upstreams, and composes reports.
    pub runner: Runner,
    /// Events and metrics.
    pub observer: Observer,
    /// The time.
    pub clock: Clock,
}

impl FromRef<Admin> for Desk {
    fn from_ref(admin: &Admin) -> Self {
        let Admin { queue, runner, observer, clock, .. } = admin.clone();
        Self { queue, runner, observer, clock }
    }
}

/// The routes of the queue alone, for a process that has opened it: asked without a connection.
#[derive(Clone, Debug)]
pub struct QueueRoutes(Router);

impl QueueRoutes {
    /// The routes of this queue.
    pub fn new(desk: Desk) -> Self {
        let router = queue_routes()
            .fallback(|| async { Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "the relay doesn't run") })
            .layer(axum::Extension(Access::Socket))
            .with_state(desk);
        Self(router)
    }

    /// Answers one request.
    pub async fn ask(&self, request: Request<Body>) -> Response {
        match self.0.clone().oneshot(request).await {
            Ok(response) => response,
            Err(never) => match never {},
        }
    }
}

fn queue_routes<S: Clone + Send + Sync + 'static>() -> Router<S>
where
    Desk: FromRef<S>,
{
    Router::new()
        .route("/api/v1/queue", get(queue::list).post(bulk::act))
        .route("/api/v1/queue/export", get(export::export))
        .route("/api/v1/queue/import", post(import::import))
        .route("/api/v1/queue/{id}", get(queue::show).delete(queue::delete))
        .route("/api/v1/queue/{id}/content", get(queue::content))
        .route("/api/v1/queue/{id}/export", get(export::one))
        .route("/api/v1/queue/{id}/{action}", post(queue::act))
}

/// All routes, behind the checks that this way in needs.
pub fn router(admin: Admin, access: Access) -> Router {
    let router = queue_routes()
        .merge(page::routes(admin.captured.is_some()))
        .route("/healthz", get(status::healthz))
        .route("/readyz", get(status::readyz))
        .route("/metrics", get(status::metrics))
        .route("/api/openapi.json", get(openapi))
        .route("/api/v1/status", get(status::status))
        .route("/api/v1/trend", get(trend::show))
        .route("/api/v1/events", get(stream::events))
        .route(access::MESSAGES, post(submit::submit))
        .route("/api/v1/info", get(relay::info))
        .route("/api/v1/reload", post(relay::reload))
        .route("/api/v1/dev/messages", get(dev::list).delete(dev::clear))
        .route("/api/v1/dev/messages/{n}", get(dev::raw));
    let door = session::Door::default();
    let guard = access::Guard { access, settings: Arc::clone(&admin.settings), door: door.clone() };
    router
        .fallback(|| async { Refusal::not_found("there is nothing here; see /api/openapi.json") })
        .layer(middleware::from_fn_with_state(guard, access::guard))
        .layer(axum::Extension(access))
        .layer(axum::Extension(door))
        .layer(axum::Extension(page::Places::default()))
        .with_state(admin)
}

async fn openapi() -> Response {
    ([(header::CONTENT_TYPE, "application/json")], include_str!("openapi.json")).into_response()
}

/// Why a request was not done: a status, and words for people.
#[derive(Debug)]
pub(crate) struct Refusal(StatusCode, String);

impl Refusal {
    fn new(status: StatusCode, words: impl Into<String>) -> Self {
        Self(status, words.into())
    }

    fn not_found(words: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, words)
    }

    fn bad_request(words: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, words)
    }

    fn is_not_found(&self) -> bool {
        self.0 == StatusCode::NOT_FOUND
    }

    /// Whether it is our disk's doing.
    fn is_fault(&self) -> bool {
        self.0.is_server_error()
    }

    fn words(&self) -> &str {
        &self.1
    }
}

impl From<Fault> for Refusal {
    fn from(fault: Fault) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, fault.to_string())
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        (self.0, Json(json!({ "error": self.1 }))).into_response()
    }
}

type Answer<T> = Result<T, Refusal>;
