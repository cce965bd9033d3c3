//! The frame of every page, its policy, and pages that say what is wrong.

use axum::{
    extract::FromRequestParts,
    http::{HeaderName, HeaderValue, StatusCode, header, request::Parts},
    response::{IntoResponse, Response},
};
use maud::{DOCTYPE, Markup, html};

use super::super::{Admin, Refusal, session::LoggedIn};
use crate::{admin::people, queue::Fault};

/// What a page may do: be styled by our style, run our script, and frame a message's HTML, which is kept in
/// by a policy of its own.
const POLICY: &str = "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; \
                      connect-src 'self'; frame-src 'self'; form-action 'self'; base-uri 'none'; \
                      frame-ancestors 'none'";

/// The parts of the site.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Overview,
    Queue,
    Captured,
}

/// Somebody looks at a page.
#[derive(Clone)]
pub(super) struct Visit {
    pub(super) admin: Admin,
    logged_in: bool,
}

impl FromRequestParts<Admin> for Visit {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(parts: &mut Parts, admin: &Admin) -> Result<Self, Self::Rejection> {
        let logged_in = parts.extensions.get::<LoggedIn>().is_some();
        Ok(Self { admin: admin.clone(), logged_in })
    }
}

impl Visit {
    /// The page.
    pub(super) async fn page(&self, title: &str, part: Part, body: Markup) -> Response {
        let service = self.admin.settings.load().service.clone();
        // The number beside a word is worth no fault.
        let queued = self.admin.queue.depth().await.ok().map(|depth| depth.messages);
        let link = |to: Part, path: &str, name: &str, number: Option<u64>| {
            html! {
                a href=(path) aria-current=[(to == part).then_some("page")] {
                    (name)
                    @if let Some(number @ 1..) = number { span.badge { (super::words::number(number)) } }
                }
            }
        };
        let bar = html! {
            header.bar {
                a.brand href="/" { img src="/icon.svg" alt="" width="24" height="24"; "Outpost" }
                span.service { (people::printable(&service)) }
                nav #nav data-live="" aria-label="Pages" {
                    (link(Part::Overview, "/", "Overview", None))
                    (link(Part::Queue, "/queue", "Queue", queued))
                    @if self.admin.captured.is_some() { (link(Part::Captured, "/dev", "Mail", None)) }
                }
                @if self.logged_in {
                    form.logout method="post" action="/logout" { button.quiet { "Log out" } }
                }
            }
        };
        document(title, &bar, &body).into_response()
    }
}

/// A page without the bar, for who has not come in.
pub(super) fn bare(title: &str, body: &Markup) -> Response {
    document(title, &html! {}, body).into_response()
}

fn document(title: &str, bar: &Markup, body: &Markup) -> impl IntoResponse + use<> {
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { (title) " – Outpost" }
                link rel="icon" href="/icon.svg" type="image/svg+xml";
                link rel="stylesheet" href="/style.css";
                script src="/page.js" defer {}
            }
            body {
                a.skip href="#content" { "To the content" }
                (bar)
                main #content tabindex="-1" { (body) }
                footer {
                    span { "Times are UTC." }
                    span {
                        a href="/api/v1/status" { "Status" } " "
                        a href="/metrics" { "Metrics" } " "
                        a href="/api/openapi.json" { "API" }
                    }
                }
            }
        }
    };
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8")),
        (header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY)),
        // Without it a browser would not tell us that our own forms are ours (Fetch §3.2).
        (header::REFERRER_POLICY, HeaderValue::from_static("same-origin")),
        (HeaderName::from_static("x-dns-prefetch-control"), HeaderValue::from_static("off")),
    ];
    (headers, page.into_string())
}

/// What a page answers, or why it can't.
pub(super) type Shown<T = Response> = Result<T, Trouble>;

/// A refusal for people.
#[derive(Debug)]
pub(super) struct Trouble(Refusal);

impl From<Refusal> for Trouble {
    fn from(refusal: Refusal) -> Self {
        Self(refusal)
    }
}

impl From<Fault> for Trouble {
    fn from(fault: Fault) -> Self {
        Self(fault.into())
    }
}

impl IntoResponse for Trouble {
    fn into_response(self) -> Response {
        let Refusal(status, words) = self.0;
        let title = match status {
            StatusCode::NOT_FOUND => "Not found",
            StatusCode::BAD_REQUEST => "That was not understood",
            _ if status.is_server_error() => "Not now",
            _ => "That can't be done",
        };
        let body = html! {
            h1 { (title) }
            p.lead { (sentence(&words)) }
            p { a.button href="/" { "To the overview" } }
        };
        (status, bare(title, &body)).into_response()
    }
}

/// With a capital, and a full stop.
pub(super) fn sentence(words: &str) -> String {
    let mut letters = people::printable(words).chars().collect::<Vec<_>>();
    if let Some(first) = letters.first_mut() {
        *first = first.to_ascii_uppercase();
    }
    let text: String = letters.into_iter().collect();
    if text.ends_with(['.', '!', '?']) { text } else { format!("{text}.") }
}
