//! Style, script and icon: each a file of its own, so that the policy needs no exception.

use axum::{Router, http::header, response::IntoResponse, routing::get};

use super::Admin;

/// Where they are.
pub(super) const PATHS: &[&str] = &["/style.css", "/page.js", "/icon.svg"];

pub(super) fn routes() -> Router<Admin> {
    Router::new()
        .route("/style.css", get(|| file("text/css; charset=utf-8", include_str!("style.css"))))
        .route("/page.js", get(|| file("text/javascript; charset=utf-8", include_str!("page.js"))))
        .route("/icon.svg", get(|| file("image/svg+xml", include_str!("icon.svg"))))
}

async fn file(kind: &'static str, text: &'static str) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, kind)], text)
}
