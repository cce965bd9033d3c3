//! The page: the API's values for the eyes. It shows and does nothing else; levers are commands.
//!
//! No script at all, one stylesheet, and everything that came from outside is escaped by the
//! template.

use axum::{
    extract::{FromRef as _, Path, State},
    http::header,
    response::{IntoResponse as _, Response},
};
use maud::{DOCTYPE, Markup, html};

use super::{
    Admin, Answer, Desk, content, dev,
    dev::Captured,
    events::Wanted,
    people,
    queue::{self, Filter},
    view::{Item, Status, UpstreamStatus},
};
use crate::observe::Event;

/// Rows of each table.
const ROWS: usize = 50;
/// What is shown of a captured message.
const SHOWN_MAX: usize = 1024 * 1024;

pub(super) async fn style() -> Response {
    ([(header::CONTENT_TYPE, "text/css; charset=utf-8")], include_str!("style.css")).into_response()
}

pub(super) async fn dashboard(State(admin): State<Admin>) -> Answer<Response> {
    let status = admin.status().await?;
    let filter = Filter { limit: Some(ROWS), ..Filter::default() };
    let desk = Desk::from_ref(&admin);
    let queued = queue::page(&desk, &filter).await?.items;
    // The page is there whatever is wrong with the history.
    let lately = desk.events(Wanted { limit: Some(ROWS), ..Wanted::default() }).await;
    let events = lately.map(|list| list.items).unwrap_or_default();
    let captured = match &admin.captured {
        Some(queue) => Some(dev::captured(queue, 0, 1_000).await?),
        None => None,
    };
    let service = admin.settings.load().service.clone();
    Ok(page(
        &service,
        html! {
            (overview(&status))
            @if let Some(captured) = &captured { (captured_table(captured)) }
            (queue_table(&queued, status.queue.messages))
            (events_table(&events))
        },
    ))
}

fn page(service: &str, body: Markup) -> Response {
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                title { (service) " – Outpost" }
                link rel="stylesheet" href="/style.css";
            }
            body {
                h1 { a href="/" { "Outpost" } " " span.soft { (service) } }
                (body)
                footer {
                    a href="/api/v1/status" { "status" } " · "
                    a href="/metrics" { "metrics" } " · "
                    a href="/api/openapi.json" { "API" }
                }
            }
        }
    };
    ([(header::CONTENT_TYPE, "text/html; charset=utf-8")], page.into_string()).into_response()
}

fn overview(status: &Status) -> Markup {
    let paused = |sentence: &str| {
        let is_about = |upstream: &&UpstreamStatus| sentence == upstream.sentence();
        Some(status.upstreams.iter().find(is_about)?.state.as_str()).filter(|state| *state != "up")
    };
    html! {
        @for sentence in status.sentences() {
            @let class = match () {
                () if sentence.starts_with("NEW MAIL") => Some("down"),
                () if sentence.starts_with("Held") => Some("held"),
                () => paused(&sentence),
            };
            p class=[class] { (sentence) }
        }
    }
}

fn captured_table(captured: &[Captured]) -> Markup {
    html! {
        h2 { "Arrived at the embedded upstream" }
        @if captured.is_empty() { p.soft { "Nothing yet." } } @else {
            div.table { table {
                tr { th { "#" } th { "Received" } th { "From" } th { "To" } th { "Subject" } th { "Size" } th { "How" } }
                @for mail in captured.iter().rev().take(ROWS) {
                    tr {
                        td.fact { a href={ "/dev/" (mail.n) } { (mail.n) } }
                        td.fact { (clock(&mail.received)) }
                        td { (sender(&mail.sender)) }
                        td { (mail.recipients.join(", ")) }
                        td { a href={ "/dev/" (mail.n) } { (mail.subject.as_deref().unwrap_or("(no subject)")) } }
                        td.fact { (people::size(mail.size)) }
                        td.fact { (how(mail)) }
                    }
                }
            } }
            @if captured.len() > ROWS {
                p.soft { "The latest " (ROWS) "; all of them: " a href="/api/v1/dev/messages" { "JSON" } }
            }
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

fn queue_table(items: &[Item], messages: u64) -> Markup {
    html! {
        h2 { "Queue" }
        @if items.is_empty() { p.soft { "Empty." } } @else {
            div.table { table {
                tr { th { "Id" } th { "State" } th { "Received" } th { "From" } th { "To" } th { "Subject" } th { "Reason" } }
                @for item in items {
                    tr {
                        td.fact { a href={ "/api/v1/queue/" (item.id) } { code { (item.id) } } }
                        td class={ "fact " (item.state.name()) } { (item.state.name()) }
                        td.fact { (clock(&item.received)) }
                        td { (sender(&item.sender)) }
                        td { (addresses(item)) }
                        td { (item.subject.as_deref().unwrap_or("")) }
                        td { (item.reason.as_deref().unwrap_or("")) }
                    }
                }
            } }
            @if messages > items.len() as u64 {
                p.soft { "The oldest " (items.len()) " of " (messages) "; for more: " code { "outpost queue list" } }
            }
        }
    }
}

/// The first few; a message can have thousands.
fn addresses(item: &Item) -> String {
    let first: Vec<&str> = item.recipients.iter().take(5).map(|r| r.address.as_str()).collect();
    match item.recipients.len() {
        0..=5 => first.join(", "),
        all => format!("{} and {} more", first.join(", "), all - 5),
    }
}

fn events_table(events: &[Event]) -> Markup {
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    html! {
        h2 { "Lately" }
        @if events.is_empty() { p.soft { "Nothing yet." } } @else {
            div.table { table {
                tr { th { "Time" } th { "Event" } th { "Id" } th { "From" } th { "To" } th { "Reply" } }
                @for event in events.iter().rev() {
                    @let kind = serde_json::to_value(event.event).unwrap_or_default();
                    @let kind = kind.as_str().unwrap_or_default();
                    tr {
                        td.fact { (clock(&event.time.to_string())) }
                        td class={ "fact " (kind) } { (kind) @if event.uncertain { " (uncertain)" } }
                        td.fact { code { (event.id) } }
                        td { (text(&event.sender)) }
                        td { (text(&event.recipient)) }
                        td { (text(&event.reply)) }
                    }
                }
            } }
        }
    }
}

fn sender(address: &str) -> &str {
    if address.is_empty() { "<>" } else { address }
}

/// `2012-06-18 06:13:20` of an RFC 3339 time.
fn clock(time: &str) -> String {
    time.get(..19).unwrap_or(time).replace('T', " ")
}

/// One captured message: its header as it stands and its text.
pub(super) async fn captured(State(admin): State<Admin>, Path(n): Path<String>) -> Answer<Response> {
    let queue = dev::queue(&admin)?;
    let (id, mail) = dev::numbered(queue, &n).await?;
    let octets = content::start(queue, id, SHOWN_MAX).await?;
    let end = memchr::memmem::find(&octets, b"\r\n\r\n").unwrap_or(octets.len());
    let head = shown(&String::from_utf8_lossy(&octets[..end]));
    let message = mail_parser::MessageParser::new().parse(&octets[..]);
    let text = message.as_ref().and_then(|message| message.body_text(0));
    let attachments: Vec<String> =
        message.iter().flat_map(|message| message.attachments()).map(attachment).collect();
    let service = admin.settings.load().service.clone();
    Ok(page(
        &service,
        html! {
            h2 { (mail.subject.as_deref().unwrap_or("(no subject)")) }
            p { "From " (sender(&mail.sender)) " to " (mail.recipients.join(", ")) }
            p.soft {
                (clock(&mail.received)) ", " (people::size(mail.size)) ", " (how(&mail))
                @if let Some(user) = &mail.user { ", logged in as " (user) }
                " · " a href={ "/api/v1/dev/messages/" (mail.n) } { "download" }
            }
            pre { (text.map_or("(no text)".to_owned(), |text| shown(&text))) }
            @if !attachments.is_empty() {
                h2 { "Attachments" }
                @for attachment in &attachments { p { (attachment) } }
            }
            h2 { "Header" }
            pre { (head) }
        },
    ))
}

fn attachment(part: &mail_parser::MessagePart<'_>) -> String {
    use mail_parser::MimeHeaders as _;
    let name = people::printable(part.attachment_name().unwrap_or("(no name)"));
    let kind = part.content_type().map_or("of no type".to_owned(), |kind| {
        people::printable(&format!("{}/{}", kind.ctype(), kind.subtype().unwrap_or("*")))
    });
    format!("{name}, {kind}, {}", people::size(part.contents().len() as u64))
}

/// Lines stay lines; other controls and what reorders text is made visible.
fn shown(text: &str) -> String {
    text.lines().map(|line| people::printable(&line.replace('\t', "    "))).collect::<Vec<_>>().join("\n")
}
