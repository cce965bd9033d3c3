//! Local mode: the mail that arrived at the embedded upstream, as its reader would see it.

use std::collections::HashMap;

use axum::{
    extract::{Path, Query, State},
    http::{HeaderName, HeaderValue, header},
    response::{IntoResponse as _, Redirect, Response},
};
use bytes::Bytes;
use maud::{Markup, html};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

use super::{
    aside, content, dev,
    layout::{Part, Shown, Visit},
    list, message,
    mime::{self, Sight},
    words,
};
use crate::{
    admin::{Refusal, dev::Captured, people},
    clock::Timestamp,
    queue::Queue,
};

/// Messages of a page.
const PAGE: usize = 100;
/// What is read of one: all of it, for no listener of ours takes more.
const OCTETS_MAX: usize = 64_000_000;
/// What is shown of its source.
const SOURCE_MAX: usize = 256 * 1024;

/// A message's HTML may style itself and show the pictures that came with it; all else is forbidden, and it
/// stands in a sandbox wherever it is opened.
const HTML_POLICY: &str = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; font-src data:; \
                           base-uri 'none'; form-action 'none'; frame-ancestors 'self'; sandbox";

pub(super) async fn list(visit: Visit, Query(asked): Query<HashMap<String, String>>) -> Shown {
    let queue = dev::queue(&visit.admin)?;
    let skipped = asked.get("skip").and_then(|skip| skip.parse().ok()).unwrap_or(0);
    let (mail, all) = dev::latest(queue, skipped + PAGE).await?;
    let shown = mail.get(skipped..).unwrap_or_default();
    let body = html! {
        div.heading {
            h1 { "Mail that arrived" }
            @if all > 0 { a.button.quiet href="/dev/empty" { "Empty" } }
        }
        section #arrived data-live="" { (rows(shown, visit.admin.clock.now())) }
        p.pages {
            @if all > 0 { span.soft { (people::count(all as u64, "message")) ", the latest first" } }
            @if skipped > 0 { a href="/dev" { "Latest" } }
            @if all > skipped + PAGE { a.button href={ "/dev?skip=" (skipped + PAGE) } { "Older" } }
        }
    };
    Ok(visit.page("Mail that arrived", Part::Captured, body).await)
}

/// A list of them.
pub(super) fn rows(mail: &[Captured], now: Timestamp) -> Markup {
    html! {
        @if mail.is_empty() {
            (list::nothing("Nothing has arrived yet", &html! { "Mail you send appears here. Send it to the SMTP port that " code { "outpost dev" } " has told; no login is needed, and nothing leaves this machine." }))
        } @else {
            ul.rows.arrived { @for one in mail {
                li {
                    div.what {
                        a.subject href={ "/dev/" (one.n) } { (words::subject(one.subject.as_deref())) }
                        div.parties {
                            (words::sender(&one.sender)) " " span.arrow aria-label="to" role="img" { "→" } " "
                            (words::recipients(one.recipients.iter().map(String::as_str)))
                        }
                    }
                    div.facts {
                        span { (words::ago(&one.received, now)) }
                        span { (people::size(one.size)) }
                        span.how { (how(one)) }
                    }
                }
            } }
        }
    }
}

fn how(mail: &Captured) -> &'static str {
    match (mail.tls, mail.auth) {
        (true, true) => "TLS, AUTH",
        (true, false) => "TLS",
        (false, true) => "AUTH",
        (false, false) => "in clear",
    }
}

/// The ways to look at one.
#[derive(Clone, Copy, PartialEq, Eq)]
enum View {
    Html,
    Text,
    Header,
    Attachments,
    Source,
}

impl View {
    const ALL: [(Self, &str, &str); 5] = [
        (Self::Html, "html", "HTML"),
        (Self::Text, "text", "Text"),
        (Self::Header, "header", "Header"),
        (Self::Attachments, "attachments", "Attachments"),
        (Self::Source, "source", "Source"),
    ];

    fn is_there(self, sight: &Sight) -> bool {
        match self {
            Self::Html => sight.has_html,
            Self::Attachments => !sight.attachments.is_empty(),
            _ => true,
        }
    }
}

pub(super) async fn show(
    visit: Visit,
    Path(n): Path<String>,
    Query(asked): Query<HashMap<String, String>>,
) -> Shown {
    let (mail, octets) = read(dev::queue(&visit.admin)?, &n).await?;
    let parsed = octets.clone();
    let sight = aside(move || mime::sight(&parsed)).await?;
    let wanted = asked.get("view").and_then(|name| View::ALL.into_iter().find(|(_, one, _)| one == name));
    let wanted = wanted.map(|(view, ..)| view).filter(|view| view.is_there(&sight));
    let view = wanted.unwrap_or(if sight.has_html { View::Html } else { View::Text });
    let (previous, next) = (mail.n - 1, mail.n + 1);
    let has_next = dev::numbered(dev::queue(&visit.admin)?, &next.to_string()).await.is_ok();
    let body = html! {
        p.path {
            a href="/dev" { "Mail that arrived" } " / " (mail.n)
            span.steps {
                @if previous > 0 { a href={ "/dev/" (previous) } rel="prev" { "Earlier" } }
                @if has_next { a href={ "/dev/" (next) } rel="next" { "Later" } }
            }
        }
        h1 { (words::subject(mail.subject.as_deref())) }
        dl.facts {
            dt { "From" } dd { (words::sender(&mail.sender)) }
            dt { "To" } dd { (words::recipients(mail.recipients.iter().map(String::as_str))) }
            dt { "Arrived" } dd { (words::time(&mail.received)) ", " (people::size(mail.size)) ", " (how(&mail))
                @if let Some(user) = &mail.user { ", logged in as " (people::printable(user)) } }
        }
        div.heading {
            nav.tabs aria-label="Ways to look at it" { @for (one, name, words) in View::ALL { @if one.is_there(&sight) {
                a href={ "/dev/" (mail.n) "?view=" (name) } aria-current=[(one == view).then_some("page")] {
                    (words)
                    @if one == View::Attachments { span.badge { (sight.attachments.len()) } }
                }
            } } }
            a.button.quiet href={ "/dev/" (mail.n) "/raw" } download={ (mail.id) ".eml" } { "Download" }
        }
        (seen(&mail, view, &sight, &octets))
    };
    Ok(visit.page(mail.subject.as_deref().unwrap_or("Mail"), Part::Captured, body).await)
}

fn seen(mail: &Captured, view: View, sight: &Sight, octets: &[u8]) -> Markup {
    match view {
        View::Html => html! {
            iframe.preview src={ "/dev/" (mail.n) "/html" } sandbox="" referrerpolicy="no-referrer"
                title="The message's HTML. Scripts don't run, and nothing is loaded from elsewhere." {}
            p.soft { "Scripts don't run, links lead nowhere, and nothing is loaded from elsewhere." }
        },
        View::Text => match sight.text.as_deref().filter(|text| !text.trim().is_empty()) {
            Some(text) => words::lines(text),
            None => list::nothing("It has no text", &html! { "Look at its source." }),
        },
        View::Header => message::fields(sight),
        View::Attachments => html! {
            ul.rows.files { @for (k, attachment) in sight.attachments.iter().enumerate() {
                li {
                    div.what {
                        a.subject href={ "/dev/" (mail.n) "/part/" (k) } download=(attachment.name) { (attachment.name) }
                        div.parties { (attachment.kind) }
                    }
                    div.facts { span { (people::size(attachment.size)) } }
                }
            } }
        },
        View::Source => html! {
            (words::lines(&String::from_utf8_lossy(&octets[..octets.len().min(SOURCE_MAX)])))
            @if octets.len() > SOURCE_MAX { p.soft { "Only its beginning is shown; download it for all of it." } }
        },
    }
}

async fn read(queue: &Queue, n: &str) -> Shown<(Captured, Bytes)> {
    let (id, mail) = dev::numbered(queue, n).await?;
    Ok((mail, content::start(queue, id, OCTETS_MAX).await?))
}

/// The HTML alone, for the frame.
pub(super) async fn html(visit: Visit, Path(n): Path<String>) -> Shown {
    let (_, octets) = read(dev::queue(&visit.admin)?, &n).await?;
    let html = aside(move || mime::html(&octets)).await?;
    let html = html.ok_or_else(|| Refusal::not_found("this message has no HTML"))?;
    let headers = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CONTENT_SECURITY_POLICY, HTML_POLICY),
        (header::X_FRAME_OPTIONS, "SAMEORIGIN"),
        (HeaderName::from_static("x-dns-prefetch-control"), "off"),
    ];
    Ok((headers, html).into_response())
}

/// One attachment, to be kept and not to be shown.
pub(super) async fn part(visit: Visit, Path((n, k)): Path<(String, String)>) -> Shown {
    let none = || Refusal::not_found("the message has no such attachment");
    let k: usize = k.parse().map_err(|_| none())?;
    let (_, octets) = read(dev::queue(&visit.admin)?, &n).await?;
    let found = aside(move || mime::attachment(&octets, k)).await?;
    let (name, kind, octets) = found.ok_or_else(none)?;
    Ok(([(header::CONTENT_TYPE, HeaderValue::from_static(kind)), disposition(&name)], octets).into_response())
}

/// RFC 6266 §4.3: the name in letters that everybody knows, and as it is.
fn disposition(name: &str) -> (HeaderName, HeaderValue) {
    let plain: String =
        name.chars().map(|c| if c.is_ascii_graphic() || c == ' ' { c } else { '_' }).collect();
    let value = format!(
        "attachment; filename=\"{}\"; filename*=UTF-8''{}",
        plain.replace(['"', '\\'], "_"),
        utf8_percent_encode(name, NON_ALPHANUMERIC)
    );
    let value = HeaderValue::try_from(value).unwrap_or(HeaderValue::from_static("attachment"));
    (header::CONTENT_DISPOSITION, value)
}

pub(super) async fn raw(visit: Visit, Path(n): Path<String>) -> Shown<Response> {
    let queue = dev::queue(&visit.admin)?;
    Ok(content::download(queue, dev::numbered(queue, &n).await?.0).await?)
}

pub(super) async fn ask(visit: Visit) -> Shown {
    let (_, all) = dev::latest(dev::queue(&visit.admin)?, 0).await?;
    let many = people::count(all as u64, "message");
    let body = html! {
        h1 { "Empty the list of " (many) "?" }
        p.lead { "What has arrived here is forgotten. The queue and its history stay." }
        form.decide method="post" action="/dev/empty" {
            div.buttons { button.danger { "Forget " (many) } a href="/dev" { "Leave it" } }
        }
    };
    Ok(visit.page("Empty the list", Part::Captured, body).await)
}

pub(super) async fn empty(visit: Visit) -> Shown {
    dev::clear(State(visit.admin)).await?;
    Ok(Redirect::to("/dev").into_response())
}
