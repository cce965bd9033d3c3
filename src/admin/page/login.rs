//! The way in, where a password is asked for, and the way out.

use std::collections::HashMap;

use axum::{
    Extension, Form,
    extract::{Query, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse as _, Redirect, Response},
};
use maud::{Markup, html};
use secrecy::ExposeSecret as _;

use super::layout::{Shown, bare};
use crate::{
    admin::{
        Admin, Refusal,
        access::Peer,
        session::{self, Door},
    },
    smtp::sasl,
};

/// Octets of what is sent there, by whom nobody knows yet.
pub(super) const FORM_MAX: usize = 16 * 1024;
/// Where it is.
pub(in crate::admin) const LOGIN: &str = "/login";

/// A place on our own pages, and nowhere else.
fn place(next: Option<&String>) -> &str {
    let is_ours = |next: &&str| {
        next.starts_with('/')
            && !next[1..].starts_with(['/', '\\'])
            && next.bytes().all(|b| b.is_ascii_graphic())
    };
    next.map(String::as_str).filter(is_ours).unwrap_or("/")
}

pub(super) async fn form(
    State(admin): State<Admin>,
    Query(asked): Query<HashMap<String, String>>,
) -> Response {
    let next = place(asked.get("next"));
    if admin.settings.load().admin.password.is_none() {
        return Redirect::to(next).into_response();
    }
    bare("Log in", &ask(next, None))
}

fn ask(next: &str, wrong: Option<&str>) -> Markup {
    html! {
        form.login method="post" action=(LOGIN) {
            h1 { img src="/icon.svg" alt="" width="32" height="32"; "Outpost" }
            @if let Some(wrong) = wrong { p.note role="alert" { (wrong) } }
            input type="hidden" name="next" value=(next);
            // Password managers want a name beside the password.
            input.hidden name="username" value="outpost" autocomplete="username" tabindex="-1" aria-hidden="true" readonly;
            label { span { "Password" } input type="password" name="password" autocomplete="current-password" required autofocus; }
            button { "Log in" }
            p.soft { "It is " code { "smtp_admin_password" } " of dotcloud.yml." }
        }
    }
}

pub(super) async fn log_in(
    State(admin): State<Admin>,
    Extension(door): Extension<Door>,
    peer: Option<Extension<Peer>>,
    headers: HeaderMap,
    Form(said): Form<HashMap<String, String>>,
) -> Shown {
    let next = place(said.get("next"));
    let settings = admin.settings.load_full();
    let Some(password) = settings.admin.password.as_ref().map(|password| password.expose_secret()) else {
        return Ok(Redirect::to(next).into_response());
    };
    let given = said.get("password").map(String::as_str).unwrap_or_default();
    if !sasl::same_secret(given, password) {
        door.wrong(peer.as_ref().map(|Extension(peer)| peer)).await;
        let page = bare("Log in", &ask(next, Some("That is not the password.")));
        return Ok((StatusCode::UNAUTHORIZED, page).into_response());
    }
    let token = door.sessions.begin(password);
    let token = token.map_err(|error| Refusal::new(StatusCode::SERVICE_UNAVAILABLE, error.to_string()))?;
    let cookie = session::cookie(Some(&token), session::came_by_tls(&headers));
    Ok(([(header::SET_COOKIE, cookie)], Redirect::to(next)).into_response())
}

pub(super) async fn log_out(Extension(door): Extension<Door>, headers: HeaderMap) -> Response {
    door.sessions.end(&headers);
    let cookie = session::cookie(None, session::came_by_tls(&headers));
    ([(header::SET_COOKIE, cookie)], Redirect::to(LOGIN)).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_way_on_leads_to_our_own_pages_only() {
        let to = |next: &str| place(Some(&next.to_owned())).to_owned();
        assert_eq!(to("/queue?state=held"), "/queue?state=held");
        for elsewhere in ["//evil.example", "/\\evil.example", "https://evil.example", "/a\r\nb", ""] {
            assert_eq!(to(elsewhere), "/", "{elsewhere:?}");
        }
        assert_eq!(place(None), "/");
    }
}
