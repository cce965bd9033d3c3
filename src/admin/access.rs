//! Who may ask: the checks before every route, and the headers behind it.
//!
//! Whoever can open the Unix socket owns the relay's files, so nothing more is asked there. On TCP
//! three kinds of strangers are kept out: people without the password, web pages that make a
//! visitor's browser send requests here, and web pages whose name was made to point here.

use std::{net::IpAddr, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use axum::{
    extract::{Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header},
    middleware::Next,
    response::{IntoResponse as _, Redirect, Response},
};
use secrecy::{ExposeSecret as _, SecretString};
use tokio::time::Instant;

use super::{
    Refusal, page,
    place::Place,
    session::{Door, LoggedIn, Sessions},
};
use crate::{config::Settings, smtp::sasl};

/// The longest that one request may take.
const REQUEST_MAX: Duration = Duration::from_secs(30);
/// The same where a message of any size may come with it, from wherever an archive is read.
const IMPORT_MAX: Duration = Duration::from_secs(270);
/// A connection so old ends with the next answer.
const CONNECTION_OLD: Duration = Duration::from_secs(20);
/// A wrong password's answer waits no longer, so that it comes within its request's time.
const WRONG_PASSWORD_MAX: Duration = Duration::from_secs(16);
/// Where mail is handed in: the only place that takes the logins of apps.
pub(super) const MESSAGES: &str = "/api/v1/messages";

/// The way a request came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// The socket in the data directory.
    Socket,
    /// The network, loopback included: any user of this machine and any browser on it.
    Tcp,
}

/// Who is at the other end of a connection.
#[derive(Clone, Debug)]
pub(super) struct Peer {
    pub(super) address: IpAddr,
    came: Instant,
    place: Arc<Place>,
}

impl Peer {
    /// Somebody who has just come.
    pub(super) fn new(address: IpAddr, place: Place) -> Self {
        Self { address, came: Instant::now(), place: Arc::new(place) }
    }

    /// Whether it is time for another connection.
    fn is_old(&self) -> bool {
        self.came.elapsed() > CONNECTION_OLD
    }

    /// Does something to its end, and keeps the connection's place until then though the client leaves: whoever
    /// guesses passwords would else hang up in the place of waiting, and guess again. `None` if it panicked.
    pub(super) async fn to_its_end<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Option<T> {
        let place = Arc::clone(&self.place);
        let work = tokio::spawn(async move {
            let done = work.await;
            drop(place);
            done
        });
        work.await.ok()
    }
}

#[derive(Clone)]
pub(super) struct Guard {
    pub(super) access: Access,
    pub(super) settings: Arc<ArcSwap<Settings>>,
    pub(super) door: Door,
}

impl Door {
    /// Waits as a wrong password has to: longer with each one, by the address that it comes from.
    pub(super) async fn wrong(&self, peer: Option<&Peer>) {
        let client = peer.map_or(IpAddr::from([0, 0, 0, 0]), |peer| peer.address);
        let wait = self.penalties.miss(client).min(WRONG_PASSWORD_MAX);
        tracing::warn!(%client, "a wrong password at the page or the API");
        match peer {
            Some(peer) => drop(peer.to_its_end(tokio::time::sleep(wait)).await),
            None => tokio::time::sleep(wait).await,
        }
    }
}

/// Why a request is let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// It knows the password, or needs none.
    Free,
    /// By the session that it comes with.
    Session,
}

pub(super) async fn guard(State(guard): State<Guard>, mut request: Request, next: Next) -> Response {
    let way = match guard.access {
        Access::Socket => Ok(Way::Free),
        Access::Tcp => check(&guard.settings.load(), &guard.door.sessions, &request),
    };
    if way.as_ref().is_ok_and(|way| *way == Way::Session) {
        request.extensions_mut().insert(LoggedIn);
    }
    let peer = request.extensions().get::<Peer>().cloned();
    let is_large = matches!(request.uri().path(), "/api/v1/queue/import" | MESSAGES);
    let most = if is_large { IMPORT_MAX } else { REQUEST_MAX };
    let mut response = match way {
        Err(refusal) if refusal.0 == StatusCode::UNAUTHORIZED => {
            if request.headers().contains_key(header::AUTHORIZATION) {
                guard.door.wrong(peer.as_ref()).await;
            }
            ask_for_password(&request, refusal)
        }
        Err(refusal) => refusal.into_response(),
        Ok(_) => tokio::time::timeout(most, next.run(request)).await.unwrap_or_else(|_| {
            Refusal::new(StatusCode::GATEWAY_TIMEOUT, "this took too long; try again").into_response()
        }),
    };
    // The router says so in no words; it adds the field Allow behind us.
    if response.status() == StatusCode::METHOD_NOT_ALLOWED {
        let words = "this can't be done here; the header field Allow names what can";
        response = Refusal::new(StatusCode::METHOD_NOT_ALLOWED, words).into_response();
    }
    protect(response.headers_mut());
    if peer.is_some_and(|peer| peer.is_old()) {
        // In the place of an end in the midst of another request.
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// People get a form; programs get what HTTP has for them.
fn ask_for_password(request: &Request, refusal: Refusal) -> Response {
    let headers = request.headers();
    let is_read = request.method() == Method::GET;
    let is_page = text(headers, header::ACCEPT).is_some_and(|kinds| kinds.contains("text/html"));
    if is_read && is_page && !headers.contains_key(header::AUTHORIZATION) {
        let wanted = request.uri().path_and_query().map_or("/", |wanted| wanted.as_str());
        let next = percent_encoding::utf8_percent_encode(wanted, percent_encoding::NON_ALPHANUMERIC);
        return Redirect::to(&format!("{}?next={next}", page::LOGIN)).into_response();
    }
    let mut response = refusal.into_response();
    // A browser would ask people for a name and password on behalf of a script.
    if text(headers, HeaderName::from_static("sec-fetch-mode")).is_none_or(|mode| mode == "navigate") {
        let ask = HeaderValue::from_static("Basic realm=\"outpost\", charset=\"UTF-8\"");
        response.headers_mut().insert(header::WWW_AUTHENTICATE, ask);
    }
    response
}

/// Nothing here is to be run, framed, guessed at or kept by a browser, unless its own route says so.
fn protect(headers: &mut HeaderMap) {
    const POLICY: &str = "default-src 'none'; style-src 'self'; base-uri 'none'; form-action 'none'; \
                          frame-ancestors 'none'";
    let fixed = [
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::CACHE_CONTROL, "no-store"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    ];
    for (name, value) in fixed {
        headers.entry(name).or_insert(HeaderValue::from_static(value));
    }
}

fn check(settings: &Settings, sessions: &Sessions, request: &Request) -> Result<Way, Refusal> {
    let path = request.uri().path();
    // Health says nothing that a stranger could use, and its askers know no password.
    if matches!(path, "/healthz" | "/readyz") {
        return Ok(Way::Free);
    }
    let headers = request.headers();
    let mut way = Way::Free;
    match settings.admin.password.as_ref().map(|password| password.expose_secret()) {
        // A page that a browser got under a foreign name is never sent the password, nor the session.
        Some(password) if knows(headers, password) => {}
        Some(password) if sessions.has(headers, password) => way = Way::Session,
        Some(_) if page::is_public(path) => {}
        // Who hands in mail may be an app, which the listener knows.
        Some(_) if path == MESSAGES && login_of_app(settings, headers).is_some() => {}
        Some(_) => {
            return Err(Refusal::new(StatusCode::UNAUTHORIZED, "a password is needed: smtp_admin_password"));
        }
        // It came while settings with a password were in force, or not yet.
        None if settings.admin.listen.ip().is_loopback() && is_from_elsewhere(request) => {
            let words = "without smtp_admin_password this is for the relay's own machine alone";
            return Err(Refusal::new(StatusCode::FORBIDDEN, words));
        }
        None if !is_our_name(settings, headers) => {
            let words = "this name is not the relay's: ask for an address, localhost or smtp_hostname";
            return Err(Refusal::new(StatusCode::MISDIRECTED_REQUEST, words));
        }
        None => {}
    }
    if matches!(*request.method(), Method::GET | Method::HEAD) || is_of_our_page(headers) {
        return Ok(way);
    }
    Err(Refusal::new(StatusCode::FORBIDDEN, "another site's page can't change anything here"))
}

fn text(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    headers.get(name).map(|value| value.to_str().unwrap_or_default())
}

/// The password, by Basic with any user name (RFC 7617) or as a Bearer token (RFC 6750).
fn knows(headers: &HeaderMap, password: &str) -> bool {
    let Some((scheme, given)) = text(headers, header::AUTHORIZATION).and_then(|value| value.split_once(' '))
    else {
        return false;
    };
    match scheme.to_ascii_lowercase().as_str() {
        "bearer" => sasl::same_secret(given.trim(), password),
        "basic" => sasl::decode(given.trim())
            .and_then(|pair| String::from_utf8(pair).ok())
            .and_then(|pair| Some(sasl::same_secret(pair.split_once(':')?.1, password)))
            .unwrap_or(false),
        _ => false,
    }
}

/// User and password of an app: what Basic names, unless it is the operator's password.
pub(super) fn login_of_app(settings: &Settings, headers: &HeaderMap) -> Option<(String, String)> {
    let is_operator = |password: &SecretString| knows(headers, password.expose_secret());
    if settings.admin.password.as_ref().is_some_and(is_operator) {
        return None;
    }
    let (scheme, given) = text(headers, header::AUTHORIZATION)?.split_once(' ')?;
    let pair = sasl::decode(given.trim()).filter(|_| scheme.eq_ignore_ascii_case("basic"))?;
    let (user, password) = std::str::from_utf8(&pair).ok()?.split_once(':')?;
    Some((user.to_owned(), password.to_owned()))
}

fn is_from_elsewhere(request: &Request) -> bool {
    request.extensions().get::<Peer>().is_some_and(|peer| !peer.address.to_canonical().is_loopback())
}

/// Against DNS rebinding: a browser always says under which name it came. What says no name is none.
fn is_our_name(settings: &Settings, headers: &HeaderMap) -> bool {
    let Some(host) = text(headers, header::HOST) else { return true };
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host,
    };
    let bare = name.trim_start_matches('[').trim_end_matches(']');
    bare.parse::<IpAddr>().is_ok()
        || name.eq_ignore_ascii_case("localhost")
        || name.eq_ignore_ascii_case(&settings.hostname)
}

/// Against other sites' pages that make a browser change things here: it tells where such a request
/// comes from (Fetch §3.2), and a form can't be sent without that.
fn is_of_our_page(headers: &HeaderMap) -> bool {
    let site = text(headers, HeaderName::from_static("sec-fetch-site"));
    if site.is_some_and(|site| !matches!(site, "same-origin" | "none")) {
        return false;
    }
    if let Some(origin) = text(headers, header::ORIGIN) {
        let host = origin.split_once("://").map(|(_, host)| host);
        return host.is_some() && host == text(headers, header::HOST);
    }
    let kind = text(headers, header::CONTENT_TYPE).unwrap_or_default().to_ascii_lowercase();
    let forms = ["application/x-www-form-urlencoded", "multipart/form-data", "text/plain"];
    !forms.iter().any(|form| kind.starts_with(form)) || headers.contains_key("x-requested-with")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::tests::settings;

    fn asked(method: &str, path: &str, headers: &[(&str, &str)]) -> Request {
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(axum::body::Body::empty()).expect("a request")
    }

    #[track_caller]
    fn status(password: &str, method: &str, path: &str, headers: &[(&str, &str)]) -> u16 {
        let settings = settings(&format!("smtp_hostname: relay.example\n    {password}"));
        let way = check(&settings, &Sessions::default(), &asked(method, path, headers));
        way.map_or_else(|refusal| refusal.0.as_u16(), |_| 200)
    }

    #[test]
    fn a_foreign_name_gets_nothing_but_health() {
        for host in
            ["127.0.0.1:8025", "[::1]:8025", "[::1]", "localhost", "LOCALHOST:8025", "relay.example:1"]
        {
            assert_eq!(status("", "GET", "/", &[("host", host)]), 200, "{host}");
        }
        for host in ["evil.example", "127.0.0.1.evil.example:8025", "localhost.evil.example", ""] {
            assert_eq!(status("", "GET", "/", &[("host", host)]), 421, "{host}");
        }
        assert_eq!(status("", "GET", "/readyz", &[("host", "mailer:8025")]), 200);
        assert_eq!(status("", "GET", "/", &[]), 200);
    }

    #[test]
    fn the_password_opens_by_basic_and_bearer_and_under_any_name() {
        let password = "smtp_admin_password: 'op:en'";
        let host = ("host", "mailer:8025");
        let with = |value: &str| status(password, "GET", "/metrics", &[host, ("authorization", value)]);
        assert_eq!(with(&format!("Basic {}", sasl::encode("anybody:op:en"))), 200);
        assert_eq!(with("bearer op:en"), 200);
        assert_eq!(with(&format!("Basic {}", sasl::encode("anybody:open"))), 401);
        assert_eq!(with("Bearer"), 401);
        assert_eq!(with("Basic %%%"), 401);
        assert_eq!(status(password, "GET", "/metrics", &[host]), 401);
        assert_eq!(status(password, "GET", "/healthz", &[host]), 200);
    }

    #[test]
    fn a_session_opens_as_the_password_does_and_forms_of_other_sites_get_nothing_by_it() {
        let settings = settings("smtp_admin_password: open");
        let sessions = Sessions::default();
        let cookie = format!("outpost_session={}", sessions.begin("open").expect("a session"));
        let way = |method: &str, path: &str, more: &[(&str, &str)]| {
            let headers = [&[("host", "mailer:8025"), ("cookie", cookie.as_str())], more].concat();
            check(&settings, &sessions, &asked(method, path, &headers)).map_err(|refusal| refusal.0.as_u16())
        };
        let form = ("content-type", "application/x-www-form-urlencoded");
        assert_eq!(way("GET", "/", &[]), Ok(Way::Session));
        assert_eq!(way("POST", "/queue/act", &[form, ("origin", "http://mailer:8025")]), Ok(Way::Session));
        for strange in
            [("origin", "http://evil.example"), ("origin", "null"), ("sec-fetch-site", "cross-site")]
        {
            assert_eq!(way("POST", "/queue/act", &[form, strange]), Err(403), "{strange:?}");
        }
        assert_eq!(way("POST", "/queue/act", &[form]), Err(403), "a browser that says nothing");
        assert_eq!(status("smtp_admin_password: open", "POST", "/queue/act", &[form]), 401);
        assert_eq!(status("smtp_admin_password: open", "GET", "/login", &[]), 200);
        assert_eq!(status("smtp_admin_password: open", "POST", "/login", &[form]), 403, "nor a login");
    }

    async fn peer(address: &str) -> Peer {
        let places = crate::admin::place::Places::new(2, 2);
        let (address, free) = (address.parse().expect("an address"), places.one().await.expect("a place"));
        Peer::new(address, places.of(address, free).expect("a place"))
    }

    #[tokio::test]
    async fn without_a_password_nobody_of_another_machine_is_let_in() {
        for (address, status) in [("127.0.0.1", 200), ("::ffff:127.0.0.1", 200), ("192.0.2.1", 403)] {
            let mut request = asked("GET", "/", &[("host", "127.0.0.1:8025")]);
            request.extensions_mut().insert(peer(address).await);
            let way = check(&settings(""), &Sessions::default(), &request);
            assert_eq!(way.map_or_else(|refusal| refusal.0.as_u16(), |_| 200), status, "{address}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_does_not_wait_for_the_answer_to_a_wrong_password_keeps_his_place_until_then() {
        let (door, peer) = (Door::default(), peer("192.0.2.1").await);
        let place = Arc::downgrade(&peer.place);
        let left = tokio::time::timeout(Duration::from_millis(50), door.wrong(Some(&peer))).await;
        assert!(left.is_err());
        drop(peer);
        tokio::time::sleep(Duration::from_millis(900)).await;
        assert!(place.upgrade().is_some(), "a second is not over");
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert!(place.upgrade().is_none());
    }

    #[test]
    fn pages_of_other_sites_change_nothing() {
        let host = ("host", "localhost:8025");
        let post = |header: (&str, &str)| status("", "POST", "/api/v1/reload", &[host, header]);
        assert_eq!(post(("origin", "http://localhost:8025")), 200);
        assert_eq!(post(("content-type", "application/json")), 200);
        assert_eq!(post(("accept", "*/*")), 200, "a program that is no browser");
        assert_eq!(post(("origin", "http://localhost:9999")), 403);
        assert_eq!(post(("origin", "null")), 403);
        assert_eq!(post(("sec-fetch-site", "cross-site")), 403);
        assert_eq!(post(("sec-fetch-site", "same-site")), 403);
        assert_eq!(post(("content-type", "application/x-www-form-urlencoded")), 403);
        assert_eq!(post(("content-type", "text/plain;charset=UTF-8")), 403);
    }
}
