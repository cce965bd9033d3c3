//! One message: what it is, where each recipient stands, every attempt with the upstream's words.

use axum::{
    Json,
    extract::{FromRef as _, Path, State},
};
use maud::{Markup, html};

use super::{
    aside, content,
    layout::{Part, Shown, Visit, sentence},
    list,
    mime::{self, Sight},
    words,
};
use crate::{
    admin::{
        Desk, extract, people, queue,
        view::{self, Item},
    },
    clock::Timestamp,
    observe::Event,
};

/// What is read of the content for looking at.
const SHOWN_MAX: usize = 256 * 1024;
/// Recipients shown one by one.
const RECIPIENTS_MAX: usize = 500;
/// Events shown, the latest.
const EVENTS_MAX: usize = 1_000;

pub(super) async fn show(visit: Visit, Path(name): Path<String>) -> Shown {
    let desk = Desk::from_ref(&visit.admin);
    let id = queue::id(&name)?;
    let Json(story) = queue::show(State(desk.clone()), extract::Path(name)).await?;
    let sight = match content::start(&desk.queue, id, SHOWN_MAX).await {
        Ok(octets) => {
            let is_all = octets.len() < SHOWN_MAX;
            Some((aside(move || mime::sight(&octets)).await?, is_all))
        }
        // It has left, or is damaged.
        Err(_) => None,
    };
    let (item, now) = (&story.item, visit.admin.clock.now());
    let body = html! {
        p.path { a href="/queue" { "Queue" } " / " code { (item.id) } }
        h1 { (words::subject(item.subject.as_deref())) }
        section #message data-live="" {
            p.standing { (words::state_of(item)) " " (standing(item, now)) }
            (actions(item))
            (facts(item, now))
            h2 { "Recipients" }
            (recipients(item, now))
            h2 { "What happened" }
            (events(item, &story.history))
        }
        @match &sight {
            Some((sight, is_all)) => (contents(item, sight, *is_all)),
            None if item.state == view::State::Gone => p.soft { "Its content left with it; the history is what remains." },
            None => p.note { "Its content can't be shown: it is damaged, or gone." },
        }
    };
    Ok(visit.page(item.subject.as_deref().unwrap_or(&item.id), Part::Queue, body).await)
}

fn standing(item: &Item, now: Timestamp) -> Markup {
    let told = item.recipients.iter().find(|recipient| recipient.reason.is_some());
    let help = told.and_then(|recipient| recipient.help.as_deref());
    let who = told.and_then(|recipient| recipient.who_must_act.as_deref());
    html! {
        @match words::why(item) {
            Some(why) => { (sentence(&why)) }
            None => { @match item.state {
                view::State::Active => { "It is due, or being sent at this moment." }
                view::State::Gone => { "It has left." }
                _ => {}
            } }
        }
        @match who {
            Some("operator") => { " " strong { "You must act." } }
            Some("nobody") => { " Nobody must act: it passes." }
            Some(other) => { " Who must act: " (other) "." }
            None => {}
        }
        @if let Some(help) = help { " " (sentence(help)) }
        @if let Some(next) = words::next_try(item) { " Next try " (words::ago(next, now)) "." }
    }
}

fn actions(item: &Item) -> Markup {
    let offered: &[&str] = match item.state {
        view::State::Gone => return html! {},
        view::State::Held => &["release", "bounce", "delete"],
        view::State::Deferred => &["retry", "hold", "bounce", "delete"],
        view::State::Active => &["hold", "bounce", "delete"],
    };
    html! {
        form.buttons method="get" action="/queue/confirm" aria-label="Actions" {
            input type="hidden" name="id" value=(item.id);
            @for (name, words) in super::act::VERBS { @if offered.contains(&name) {
                button.quiet name="action" value=(name) { (words) }
            } }
            a.button.quiet href={ "/api/v1/queue/" (item.id) "/content" } download={ (item.id) ".eml" } { "Download" }
        }
    }
}

fn facts(item: &Item, now: Timestamp) -> Markup {
    let fact = |name: &str, value: Option<&str>| {
        html! { @if let Some(value) = value.filter(|value| !value.is_empty()) { dt { (name) } dd { (people::printable(value)) } } }
    };
    html! {
        dl.facts {
            dt { "From" } dd { (words::sender(&item.sender)) }
            dt { "Received" } dd { (words::time(&item.received)) " " span.soft { "(" (words::ago(&item.received, now)) ")" } }
            dt { "Size" } dd { (people::size(item.size)) }
            (fact("Client", item.client.as_deref()))
            (fact("Login", item.user.as_deref()))
            (fact("Upstream", Some(&item.upstream)))
            (fact("Message-ID", item.message_id.as_deref()))
        }
    }
}

fn recipients(item: &Item, now: Timestamp) -> Markup {
    if item.recipients.is_empty() {
        return html! { p.soft { "None are known." } };
    }
    html! {
        div.scroll tabindex="0" role="region" aria-label="Recipients" { table {
            thead { tr { th { "Address" } th { "State" } th.number { "Tries" } th { "Why" } th { "Next try" } } }
            tbody { @for recipient in item.recipients.iter().take(RECIPIENTS_MAX) {
                tr {
                    td { (people::printable(&recipient.address)) }
                    td.fact { (words::state(&recipient.state)) }
                    td.number { (recipient.attempts) }
                    td.words { (people::printable(recipient.reason.as_deref().or(recipient.last_reply.as_deref()).unwrap_or_default())) }
                    td.fact { @if let Some(next) = &recipient.next_attempt { (words::ago(next, now)) } }
                }
            } }
        } }
        @if item.recipients.len() > RECIPIENTS_MAX {
            p.soft { "The first " (RECIPIENTS_MAX) " of " (words::number(item.recipients.len() as u64)) ". All of them: " a href={ "/api/v1/queue/" (item.id) } { "JSON" } }
        }
    }
}

fn events(item: &Item, history: &[Event]) -> Markup {
    let latest = &history[history.len().saturating_sub(EVENTS_MAX)..];
    html! {
        @if latest.is_empty() { p.soft { "Nothing is told of it yet." } } @else { (list::events(latest.iter(), false)) }
        @if latest.len() < history.len() {
            p.soft { "The latest " (EVENTS_MAX) " of " (words::number(history.len() as u64)) ". All of them: " a href={ "/api/v1/queue/" (item.id) } { "JSON" } }
        }
    }
}

fn contents(item: &Item, sight: &Sight, is_all: bool) -> Markup {
    html! {
        h2 { "Text" }
        @match sight.text.as_deref().filter(|text| !text.trim().is_empty()) {
            Some(text) => (words::lines(text)),
            None => p.soft { "It has no text." },
        }
        @if !sight.attachments.is_empty() {
            h2 { "Attachments" }
            ul.plain { @for attachment in &sight.attachments {
                li { (attachment.name) " " span.soft { (attachment.kind) ", " (people::size(attachment.size)) } }
            } }
        }
        h2 { "Header" }
        (fields(sight))
        @if !is_all { p.soft { "Only its beginning is shown. " a href={ "/api/v1/queue/" (item.id) "/content" } { "Download all of it" } } }
    }
}

/// The header fields as a table.
pub(super) fn fields(sight: &Sight) -> Markup {
    html! {
        div.scroll tabindex="0" role="region" aria-label="Header" { table.fields { tbody {
            @for (name, value) in &sight.fields { tr { th scope="row" { (name) } td { (value) } } }
        } } }
    }
}
