//! What waits: searched, filtered, page by page, and picked for an action.

use axum::{
    extract::{FromRef as _, Query},
    http::StatusCode,
    response::{IntoResponse as _, Redirect},
};
use maud::{Markup, html};

use super::{
    layout::{Part, Shown, Visit, sentence},
    list, words,
};
use crate::{
    admin::{
        Desk, people,
        queue::{self, Filter},
        view::{List, Outlook},
    },
    queue::QueueId,
};

/// Messages of a page.
const PAGE: usize = 50;

/// Which messages are meant, as a form says it: what was left empty is no condition.
pub(super) fn filter(asked: &[(String, String)]) -> Filter {
    let value = |name: &str| {
        let found = asked.iter().find(|(found, _)| found == name).map(|(_, value)| value.trim().to_owned());
        found.filter(|value| !value.is_empty())
    };
    Filter {
        sender: value("sender"),
        recipient: value("recipient"),
        upstream: value("upstream"),
        state: value("state"),
        older_than: value("older_than"),
        limit: None,
        cursor: value("cursor"),
    }
}

/// The conditions of a filter, by their names in forms.
pub(super) fn conditions(filter: &Filter) -> Vec<(&'static str, &str)> {
    let all = [
        ("sender", &filter.sender),
        ("recipient", &filter.recipient),
        ("upstream", &filter.upstream),
        ("state", &filter.state),
        ("older_than", &filter.older_than),
    ];
    all.into_iter().filter_map(|(name, value)| Some((name, value.as_deref()?))).collect()
}

pub(super) async fn show(visit: Visit, Query(asked): Query<Vec<(String, String)>>) -> Shown {
    // A message is found by its id, too, also after it left.
    let id =
        asked.iter().find(|(name, _)| name == "find").and_then(|(_, id)| id.trim().parse::<QueueId>().ok());
    if let Some(id) = id {
        return Ok(Redirect::to(&format!("/queue/{id}")).into_response());
    }
    let mut filter = filter(&asked);
    filter.limit = Some(PAGE);
    let desk = Desk::from_ref(&visit.admin);
    let upstreams: Vec<String> = Outlook::of(&desk).upstreams().map(|upstream| upstream.name).collect();
    let (page, problem) = match queue::page(&desk, &filter).await {
        Ok(page) => (page, None),
        Err(refusal) if !refusal.is_fault() => {
            (List { items: Vec::new(), next: None }, Some(sentence(refusal.words())))
        }
        Err(fault) => return Err(fault.into()),
    };
    let body = html! {
        h1 { "Queue" }
        (form(&filter, &upstreams))
        @if let Some(problem) = &problem { p.note role="alert" { (problem) } }
        section #list data-live="" { (found(&filter, &page, &visit, problem.is_some())) }
    };
    let status = if problem.is_some() { StatusCode::BAD_REQUEST } else { StatusCode::OK };
    Ok((status, visit.page("Queue", Part::Queue, body).await).into_response())
}

fn form(filter: &Filter, upstreams: &[String]) -> Markup {
    let text = |name: &str, label: &str, example: &str, value: &Option<String>| {
        html! { label { span { (label) } input name=(name) value=(value.as_deref().unwrap_or_default()) placeholder=(example) autocomplete="off" spellcheck="false"; } }
    };
    let choice = |name: &str, label: &str, all: &[(&str, &str)], value: &Option<String>| {
        html! { label { span { (label) } select name=(name) {
            option value="" { "any" }
            @for (value_of, words) in all { option value=(value_of) selected[value.as_deref() == Some(*value_of)] { (words) } }
        } } }
    };
    let names: Vec<(&str, &str)> = upstreams.iter().map(|name| (name.as_str(), name.as_str())).collect();
    html! {
        form.filter method="get" action="/queue" role="search" {
            (text("sender", "From", "@example.com", &filter.sender))
            (text("recipient", "To", "ada@example.com", &filter.recipient))
            (choice("state", "State", &[("active", "active"), ("deferred", "deferred"), ("held", "held")], &filter.state))
            (choice("upstream", "Upstream", &names, &filter.upstream))
            (text("older_than", "Older than", "30s, 2h, 5d", &filter.older_than))
            (text("find", "Or by queue id", "01HXYZ0000ABC", &None))
            div.buttons {
                button { "Search" }
                @if !filter.is_empty() { a href="/queue" { "Show all" } }
            }
        }
    }
}

fn found(filter: &Filter, page: &List<crate::admin::view::Item>, visit: &Visit, failed: bool) -> Markup {
    if page.items.is_empty() && page.next.is_none() {
        return match () {
            () if failed => html! {},
            () if filter.cursor.is_some() => {
                list::nothing("No more", &html! { a href="/queue" { "Back to the first" } })
            }
            () if filter.is_empty() => list::nothing(
                "Nothing waits",
                &html! { "Mail that is on its way, or can't be delivered yet, appears here. What has left is found by its queue id, and by " code { "outpost logs" } "." },
            ),
            () => list::nothing(
                "No message is like that",
                &html! { "Others may wait: " a href="/queue" { "show all" } "." },
            ),
        };
    }
    let onward = |cursor: &str| {
        let conditions = conditions(filter);
        format!("/queue?{}", words::query(conditions.into_iter().chain([("cursor", cursor)])))
    };
    html! {
        form.picked method="get" action="/queue/confirm" {
            @for (name, value) in conditions(filter) { input type="hidden" name=(name) value=(value); }
            div.actions role="group" aria-label="What to do" {
                label { span { "Do" } select name="action" {
                    @for (name, words) in super::act::VERBS { option value=(name) { (words) } }
                } }
                label { span { "with" } select name="scope" {
                    option value="picked" { "the selected" }
                    option value="all" { @if filter.is_empty() { "all in the queue" } @else { "all that match" } }
                } }
                button { "Go on …" }
            }
            (list::queued(&page.items, visit.admin.clock.now(), true))
        }
        p.pages {
            span.soft { (people::count(page.items.len() as u64, "message")) " here, the oldest first" }
            @if filter.cursor.is_some() { a href={ "/queue?" (words::query(conditions(filter))) } { "First page" } }
            @if let Some(next) = &page.next { a.button href=(onward(next)) rel="next" { "Next page" } }
        }
    }
}

/// Sends the browser back to a list.
pub(super) fn back(filter: &Filter) -> String {
    match filter.is_empty() {
        true => "/queue".to_owned(),
        false => format!("/queue?{}", words::query(conditions(filter))),
    }
}
