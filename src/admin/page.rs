//! The pages: the API's values for the eyes, and its levers for the hand.
//!
//! Rendered here, whole; a script only keeps them fresh. Everything that came from outside is escaped by
//! the template, and shown without what could reorder it. Nothing is loaded from elsewhere, and no
//! page runs or frames anything but what the policy in [`layout`] names.
//!
//! - `overview`, `queue`, `act`, `message`, `captured`: the pages
//! - `login`: the way in, where a password is asked for
//! - `layout`, `list`, `plot`, `words`: what they share; `mime`: a message taken apart
//! - `live`, `assets`: what keeps them fresh and makes them look

mod act;
mod assets;
mod captured;
mod layout;
mod list;
mod live;
mod login;
mod message;
mod mime;
mod overview;
mod plot;
mod queue;
mod words;

use axum::{
    Router,
    extract::DefaultBodyLimit,
    response::Redirect,
    routing::{get, post},
};

pub(super) use self::{live::Places, login::LOGIN};
use super::{Admin, Refusal, content, dev};
use layout::Shown;

/// Whether anybody may have it: what the page at the door is made of.
pub(super) fn is_public(path: &str) -> bool {
    path == LOGIN || assets::PATHS.contains(&path)
}

/// All pages; those of local mode only there.
pub(super) fn routes(is_local: bool) -> Router<Admin> {
    let mut router = Router::new()
        .route("/", get(overview::show))
        .route("/queue", get(queue::show))
        .route("/queue/confirm", get(act::confirm))
        // Whoever comes back there later, or reloads, is led to where things stand.
        .route("/queue/act", get(|| async { Redirect::to("/queue") }).post(act::act))
        .route("/queue/{id}", get(message::show))
        .route("/live", get(live::stream))
        .route(LOGIN, get(login::form).post(login::log_in).layer(DefaultBodyLimit::max(login::FORM_MAX)))
        .route("/logout", post(login::log_out))
        .merge(assets::routes());
    if is_local {
        router = router
            .route("/dev", get(captured::list))
            .route("/dev/empty", get(captured::ask).post(captured::empty))
            .route("/dev/{n}", get(captured::show))
            .route("/dev/{n}/html", get(captured::html))
            .route("/dev/{n}/part/{k}", get(captured::part))
            .route("/dev/{n}/raw", get(captured::raw));
    }
    router
}

/// Work of the processor on somebody's message, beside the threads that serve.
async fn aside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Shown<T> {
    let done = tokio::task::spawn_blocking(work).await;
    Ok(done.map_err(|_| Refusal::new(axum::http::StatusCode::INTERNAL_SERVER_ERROR, "see the log"))?)
}
