//! Lists of messages, and what stands where one is empty.

use maud::{Markup, html};

use super::{layout::sentence, words};
use crate::{
    admin::{people, view::Item},
    clock::Timestamp,
    observe::Event,
};

/// Nothing to show, and what to expect.
pub(super) fn nothing(title: &str, words: &Markup) -> Markup {
    html! { div.nothing { p.title { (title) } p.soft { (words) } } }
}

/// Queued messages; with boxes to pick some of them.
pub(super) fn queued(items: &[Item], now: Timestamp, pick: bool) -> Markup {
    html! {
        ul.rows.queued {
            @for item in items {
                li {
                    @if pick {
                        input type="checkbox" name="id" value=(item.id) aria-label={ "Select " (item.id) };
                    }
                    div.what {
                        a.subject href={ "/queue/" (item.id) } { (words::subject(item.subject.as_deref())) }
                        div.parties {
                            (words::sender(&item.sender)) " " span.arrow aria-label="to" role="img" { "→" } " "
                            (words::recipients(item.recipients.iter().map(|to| to.address.as_str())))
                        }
                        @if let Some(why) = words::why(item) {
                            div.why { (sentence(&why)) @if let Some(next) = words::next_try(item) {
                                " " span.next { "Next try " (words::ago(next, now)) "." }
                            } }
                        }
                    }
                    div.facts {
                        (words::state_of(item))
                        span { (words::ago(&item.received, now)) }
                        span { (people::size(item.size)) }
                    }
                }
            }
        }
    }
}

/// What happened, the latest first.
pub(super) fn events<'a>(events: impl Iterator<Item = &'a Event>, with_message: bool) -> Markup {
    html! {
        div.scroll tabindex="0" role="region" aria-label="Events" { table.events {
            thead { tr {
                th { "Time" } th { "What" }
                @if with_message { th { "Message" } th { "From" } }
                th { "To" } th { "Words of the upstream" }
                @if !with_message { th { "Upstream" } th { "TLS" } th { "Next try" } }
            } }
            tbody { @for event in events {
                tr {
                    td.fact { (words::time(&event.time.to_string())) }
                    td.fact {
                        (words::state(event.event.name()))
                        @if let Some(attempt) = event.attempt { span.soft { " try " (attempt) } }
                        @if event.uncertain { " " strong { "uncertain" } }
                    }
                    @if with_message {
                        td.fact { @if !event.id.is_empty() { a.id href={ "/queue/" (event.id) } { (event.id) } } }
                        td { (event.sender.as_deref().map(words::sender).unwrap_or_default()) }
                    }
                    td { (words::recipients(event.recipient.iter().flat_map(|all| all.split(',')).collect::<Vec<_>>().into_iter())) }
                    td.words { (people::printable(event.reply.as_deref().unwrap_or_default())) }
                    @if !with_message {
                        td { (people::printable(event.upstream.as_deref().unwrap_or_default())) }
                        td.fact { (event.tls.as_deref().unwrap_or_default()) }
                        td.fact { @if let Some(next) = event.next_attempt { (words::time(&next.to_string())) } }
                    }
                }
            } }
        } }
    }
}
