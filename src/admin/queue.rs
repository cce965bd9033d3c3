//! The queue over HTTP: list, show, download, act on one.

use std::time::Duration;

use axum::{
    Json,
    extract::{Path, Query, State},
    http::StatusCode,
    response::Response,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{
    Admin, Answer, Refusal, content,
    events::{Told, Wanted},
    view::{self, Item, List, Outlook},
};
use crate::{
    clock::Timestamp,
    config,
    observe::{Event, EventKind},
    queue::{Action, ActionError, Fault, QueueId},
};

/// The longest page, and what is read from the store at once.
const PAGE_MAX: usize = 1_000;
const PAGE: usize = 100;
/// Entries that one request looks through for those its filter wants; the cursor goes on from there.
const SCAN_MAX: usize = 20_000;

/// Which messages are meant, as the query string and the command line say it.
#[derive(Clone, Debug, Default, Serialize, Deserialize, clap::Args)]
#[serde(deny_unknown_fields)]
pub struct Filter {
    /// From this address, or this @domain; <> for reports
    #[arg(long, value_name = "ADDRESS")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sender: Option<String>,
    /// For this address, or somebody at this @domain
    #[arg(long, value_name = "ADDRESS")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recipient: Option<String>,
    /// For this upstream
    #[arg(long, value_name = "NAME")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upstream: Option<String>,
    /// In this state: active, deferred or held
    #[arg(long)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
    /// Received longer ago than this: 30s, 5d
    #[arg(long, value_name = "AGE")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub older_than: Option<String>,
    /// Most messages in one page
    #[arg(skip)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<usize>,
    /// Where the page before ended
    #[arg(skip)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
}

impl Filter {
    /// Whether it names no condition, so that all messages are meant.
    pub fn is_empty(&self) -> bool {
        let conditions = [&self.sender, &self.recipient, &self.upstream, &self.state, &self.older_than];
        conditions.iter().all(|condition| condition.is_none())
    }

    fn ready(&self) -> Answer<Ready<'_>> {
        let state = match self.state.as_deref() {
            None => None,
            Some("active") => Some(view::State::Active),
            Some("deferred") => Some(view::State::Deferred),
            Some("held") => Some(view::State::Held),
            Some(_) => return Err(Refusal::bad_request("state is active, deferred or held")),
        };
        let older_than = match self.older_than.as_deref().map(config::parse_duration) {
            Some(None) => return Err(Refusal::bad_request("older_than is a duration, such as 30s or 5d")),
            other => other.flatten(),
        };
        Ok(Ready { filter: self, state, older_than })
    }
}

/// A filter whose words were understood.
struct Ready<'a> {
    filter: &'a Filter,
    state: Option<view::State>,
    older_than: Option<Duration>,
}

impl Ready<'_> {
    fn wants(&self, item: &Item, received: Timestamp, now: Timestamp) -> bool {
        let Filter { sender, recipient, upstream, .. } = self.filter;
        sender.as_deref().is_none_or(|wanted| is_meant(wanted, &item.sender))
            && recipient.as_deref().is_none_or(|wanted| {
                item.recipients.iter().any(|recipient| is_meant(wanted, &recipient.address))
            })
            && upstream.as_deref().is_none_or(|wanted| wanted == item.upstream)
            && self.state.is_none_or(|wanted| wanted == item.state)
            && self.older_than.is_none_or(|age| now.since(received) > age)
    }
}

/// An address in any case, all of an `@domain`, or `<>` for the null sender.
pub(super) fn is_meant(wanted: &str, address: &str) -> bool {
    match wanted {
        "<>" => address.is_empty(),
        _ if wanted.starts_with('@') => {
            address.rfind('@').is_some_and(|at| address[at..].eq_ignore_ascii_case(wanted))
        }
        _ => address.eq_ignore_ascii_case(wanted),
    }
}

pub(super) async fn list(
    State(admin): State<Admin>,
    Query(filter): Query<Filter>,
) -> Answer<Json<List<Item>>> {
    Ok(Json(page(&admin, &filter).await?))
}

/// One page of what the filter wants.
pub(super) async fn page(admin: &Admin, filter: &Filter) -> Answer<List<Item>> {
    let limit = filter.limit.unwrap_or(PAGE).clamp(1, PAGE_MAX);
    let ready = filter.ready()?;
    let mut after = match &filter.cursor {
        Some(cursor) => Some(cursor.parse::<QueueId>().map_err(|_| Refusal::bad_request("no such cursor"))?),
        None => None,
    };
    let outlook = Outlook::of(admin);
    let now = admin.clock.now();
    let (mut items, mut scanned) = (Vec::new(), 0);
    loop {
        // A page without conditions is one read of just its length and one more.
        let batch = if filter.is_empty() { limit + 1 } else { PAGE_MAX };
        let found = admin.queue.list(after, batch).await?;
        let complete = found.len() < batch;
        scanned += found.len();
        for listed in found {
            if items.len() == limit {
                return Ok(List { items, next: after.map(|id| id.to_string()) });
            }
            after = Some(listed.id);
            let item = outlook.item(&listed);
            if ready.wants(&item, listed.id.time(), now) {
                items.push(item);
            }
        }
        if complete {
            return Ok(List { items, next: None });
        }
        if scanned >= SCAN_MAX {
            return Ok(List { items, next: after.map(|id| id.to_string()) });
        }
    }
}

fn id(text: &str) -> Answer<QueueId> {
    text.parse().map_err(|error: crate::queue::id::NoQueueId| Refusal::bad_request(error.to_string()))
}

/// A message and what happened to it, also after it left.
pub(super) async fn show(State(admin): State<Admin>, Path(name): Path<String>) -> Answer<Json<Told>> {
    let id = id(&name)?;
    let listed = admin.queue.get(id).await?;
    let history = admin.events(Wanted { limit: Some(1_000), ..Wanted::of_message(id) }).await;
    let Some(listed) = listed else {
        let unknown = || Refusal::not_found("no such message in the queue or its history");
        return Told::gone(history?.items).map(Json).ok_or_else(unknown);
    };
    // What is queued is shown whatever is wrong with the history.
    let history = history.map(|list| list.items).unwrap_or_default();
    Ok(Json(Told { item: Outlook::of(&admin).item(&listed), history }))
}

pub(super) async fn content(State(admin): State<Admin>, Path(name): Path<String>) -> Answer<Response> {
    content::download(&admin.queue, id(&name)?).await
}

pub(super) async fn delete(State(admin): State<Admin>, Path(name): Path<String>) -> Answer<Json<Value>> {
    done(&admin, id(&name)?, Action::Delete).await
}

pub(super) async fn act(
    State(admin): State<Admin>,
    Path((name, action)): Path<(String, String)>,
) -> Answer<Json<Value>> {
    let id = id(&name)?;
    match action.as_str() {
        "retry" => done(&admin, id, Action::Retry).await,
        "hold" => done(&admin, id, Action::Hold).await,
        "release" => done(&admin, id, Action::Release).await,
        "bounce" => {
            let words = "returning a message to its sender by hand is not implemented yet; hold or delete it";
            Err(Refusal::new(StatusCode::NOT_IMPLEMENTED, words))
        }
        _ => Err(Refusal::not_found("the actions are retry, hold, release and bounce")),
    }
}

async fn done(admin: &Admin, id: QueueId, action: Action) -> Answer<Json<Value>> {
    let before = admin.queue.get(id).await?;
    let entry = before.as_ref().and_then(|listed| listed.entry.as_ref());
    if action == Action::Retry && entry.is_some_and(|entry| entry.held.is_some()) {
        return Err(Refusal::new(StatusCode::CONFLICT, "the message is held: release it, and it is tried"));
    }
    if matches!(action, Action::Retry | Action::Release) {
        // The operator wants a try now, whatever was seen before.
        admin.runner.try_again();
    }
    match admin.queue.act(id, action, "held by the operator").await {
        // It is being tried, as was asked for.
        Err(ActionError::Busy) if action == Action::Retry => {}
        other => other.map_err(refusal)?,
    }
    let (kind, word) = match action {
        Action::Retry => (None, "tried again"),
        Action::Hold => (Some(EventKind::Held), "held"),
        Action::Release => (Some(EventKind::Released), "released"),
        Action::Delete => (Some(EventKind::Deleted), "deleted"),
    };
    if let Some(kind) = kind {
        admin.observer.emit(Event {
            sender: entry.map(|entry| entry.reverse_path.as_str().to_owned()),
            size: entry.map(|entry| entry.content.size),
            message_id: entry.and_then(|entry| entry.message_id.clone()),
            ..Event::new(admin.clock.now(), kind, id)
        });
    }
    Ok(Json(json!({ "id": id.to_string(), "done": word })))
}

fn refusal(error: ActionError) -> Refusal {
    let status = match error {
        ActionError::NoSuchEntry => StatusCode::NOT_FOUND,
        ActionError::Busy | ActionError::Damaged => StatusCode::CONFLICT,
        ActionError::Fault(Fault::Full) => StatusCode::INSUFFICIENT_STORAGE,
        ActionError::Fault(_) => StatusCode::SERVICE_UNAVAILABLE,
    };
    Refusal::new(status, error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_means_an_address_a_domain_or_nobody() {
        assert!(is_meant("A@b.example", "a@B.example"));
        assert!(is_meant("@b.example", "a@B.example"));
        assert!(is_meant("<>", ""));
        for (wanted, address) in
            [("@b.example", "a@sub.b.example"), ("b.example", "a@b.example"), ("<>", "a@b"), ("@b", "")]
        {
            assert!(!is_meant(wanted, address), "{wanted} {address}");
        }
    }

    #[test]
    fn a_filter_that_is_not_understood_is_refused() {
        let state = Filter { state: Some("stuck".into()), ..Filter::default() };
        let age = Filter { older_than: Some("5".into()), ..Filter::default() };
        assert!(state.ready().is_err() && age.ready().is_err());
        assert!(Filter { limit: Some(3), ..Filter::default() }.is_empty());
        assert!(!age.is_empty());
    }
}
