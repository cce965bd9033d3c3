//! The queue over HTTP: list, show, download, act on one message.

use std::time::Duration;

use axum::{Json, extract::State, http::StatusCode, response::Response};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{
    Answer, Desk, Refusal, content,
    events::Story,
    extract::{self, Path, Query},
    people,
    view::{self, Item, List, Outlook},
};
use crate::{
    clock::Timestamp,
    config,
    observe::{Event, EventKind},
    queue::{Action, ActionError, Fault, QueueId, Search, Standing, is_meant},
    runner::{BounceError, Told},
};

/// The longest page, and what is read from the store at once.
const PAGE_MAX: usize = 1_000;
const PAGE: usize = 100;
/// Entries that one request looks through where the store can't tell which are meant, because that
/// depends on the upstreams at this moment; the cursor goes on from there.
const SCAN_MAX: usize = 20_000;
/// The longest reason for returning a message.
const REASON_MAX: usize = 200;
/// What is said where a message was to be released that isn't held: nothing was done.
pub const NOT_HELD: &str = "not held";

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
    /// What the store is asked for: all that is meant, and perhaps others.
    fn search(&self, outlook: &Outlook, now: Timestamp) -> Search {
        let Filter { sender, recipient, .. } = self.filter.clone();
        let standing = self.state.map_or(Standing::Any, |state| outlook.standing(state));
        let before = self.older_than.map(|age| now.before(age));
        Search { sender, recipient, standing, before }
    }

    /// Whether the store alone decides.
    fn is_exact(&self) -> bool {
        self.state.is_none() && self.filter.upstream.is_none()
    }

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

pub(super) async fn list(State(desk): State<Desk>, Query(filter): Query<Filter>) -> Answer<Json<List<Item>>> {
    Ok(Json(page(&desk, &filter).await?))
}

/// One page of what the filter wants.
pub(super) async fn page(desk: &Desk, filter: &Filter) -> Answer<List<Item>> {
    let limit = extract::limit(filter.limit, PAGE, PAGE_MAX)?;
    let ready = filter.ready()?;
    let mut after = match &filter.cursor {
        Some(cursor) => Some(cursor.parse::<QueueId>().map_err(|_| Refusal::bad_request("no such cursor"))?),
        None => None,
    };
    let outlook = Outlook::of(desk);
    let now = desk.clock.now();
    // The empty name is that of no upstream: of what none serves.
    if filter.upstream.as_ref().is_some_and(|name| !name.is_empty() && !outlook.has_upstream(name)) {
        return Ok(List { items: Vec::new(), next: None });
    }
    let search = ready.search(&outlook, now);
    let (mut items, mut scanned) = (Vec::new(), 0);
    loop {
        // What the store alone decides is one read of just the page's length and one more.
        let batch = if ready.is_exact() { limit + 1 - items.len() } else { PAGE_MAX };
        let found = desk.queue.search(search.clone(), after, batch).await?;
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
        if scanned >= SCAN_MAX && !ready.is_exact() {
            return Ok(List { items, next: after.map(|id| id.to_string()) });
        }
    }
}

pub(super) fn id(text: &str) -> Answer<QueueId> {
    text.parse().map_err(|error: crate::queue::id::NoQueueId| Refusal::bad_request(error.to_string()))
}

/// A message and what happened to it, also after it left.
pub(super) async fn show(State(desk): State<Desk>, Path(name): Path<String>) -> Answer<Json<Story>> {
    let id = id(&name)?;
    let listed = desk.queue.get(id).await?;
    let history = desk.history(id).await;
    let Some(listed) = listed else {
        let unknown = || Refusal::not_found("no such message in the queue or its history");
        return Story::gone(history?).map(Json).ok_or_else(unknown);
    };
    // What is queued is shown whatever is wrong with the history.
    let history = history.unwrap_or_default();
    Ok(Json(Story { item: Outlook::of(&desk).item(&listed), history }))
}

pub(super) async fn content(State(desk): State<Desk>, Path(name): Path<String>) -> Answer<Response> {
    content::download(&desk.queue, id(&name)?).await
}

pub(super) async fn delete(State(desk): State<Desk>, Path(name): Path<String>) -> Answer<Json<Value>> {
    one(&desk, id(&name)?, &Verb::Act(Action::Delete)).await
}

/// What may be said with an action.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Said {
    reason: Option<String>,
}

pub(super) async fn act(
    State(desk): State<Desk>,
    Path((name, action)): Path<(String, String)>,
    Query(said): Query<Said>,
) -> Answer<Json<Value>> {
    let verb = Verb::named(&action, said.reason)?;
    let id = id(&name)?;
    verb.prepare(&desk);
    one(&desk, id, &verb).await
}

async fn one(desk: &Desk, id: QueueId, verb: &Verb) -> Answer<Json<Value>> {
    let done = verb.apply(desk, id).await?;
    Ok(Json(json!({ "id": id.to_string(), "done": done.as_deref().unwrap_or(NOT_HELD) })))
}

/// What an operator has done with messages.
#[derive(Clone, Debug)]
pub(super) enum Verb {
    Act(Action),
    /// Returned to the sender; why, for whoever reads the report.
    Bounce(Option<String>),
}

impl Verb {
    pub(super) fn named(name: &str, reason: Option<String>) -> Answer<Self> {
        let verb = match name {
            "retry" => Self::Act(Action::Retry),
            "hold" => Self::Act(Action::Hold),
            "release" => Self::Act(Action::Release),
            "delete" => Self::Act(Action::Delete),
            "bounce" => Self::Bounce(reason.clone()),
            _ => return Err(Refusal::bad_request("the actions are retry, hold, release, bounce and delete")),
        };
        match (&verb, reason) {
            (Self::Act(_), Some(_)) => Err(Refusal::bad_request("a reason is told with bounce only")),
            (_, Some(reason)) if reason.len() > REASON_MAX || people::printable(&reason) != reason => {
                Err(Refusal::bad_request(format!("a reason is one line of at most {REASON_MAX} octets")))
            }
            _ => Ok(verb),
        }
    }

    /// What is done once, however many messages are meant.
    pub(super) fn prepare(&self, desk: &Desk) {
        if matches!(self, Self::Act(Action::Retry | Action::Release)) {
            // The operator wants a try now, whatever was seen before.
            desk.runner.try_again();
        }
    }

    /// Does it with one message; returns what was done in words, and nothing where there was nothing to do.
    pub(super) async fn apply(&self, desk: &Desk, id: QueueId) -> Answer<Option<String>> {
        let (verb, desk) = (self.clone(), desk.clone());
        // To its end, though whoever asked leaves: what was done is told as well.
        let doing = tokio::spawn(async move { verb.carry_out(&desk, id).await });
        let lost = |_| Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "local error; see the log");
        doing.await.map_err(lost)?
    }

    async fn carry_out(&self, desk: &Desk, id: QueueId) -> Answer<Option<String>> {
        match self {
            Self::Act(action) => Ok(act_on(desk, id, *action).await?.map(str::to_owned)),
            Self::Bounce(reason) => match desk.runner.bounce(id, reason.as_deref()).await {
                Ok(Told::Somebody(to)) => Ok(Some(format!("returned to {to}"))),
                Ok(Told::Nobody) => Ok(Some("removed; its sender wants no report".to_owned())),
                Err(BounceError::Queue(error)) => Err(refusal(error)),
                Err(error @ BounceError::NobodyToTell) => {
                    Err(Refusal::new(StatusCode::CONFLICT, error.to_string()))
                }
            },
        }
    }
}

async fn act_on(desk: &Desk, id: QueueId, action: Action) -> Answer<Option<&'static str>> {
    let before = desk.queue.get(id).await?;
    let entry = before.as_ref().and_then(|listed| listed.entry.as_ref());
    if action == Action::Retry && entry.is_some_and(|entry| entry.held.is_some()) {
        return Err(Refusal::new(StatusCode::CONFLICT, "the message is held: release it, and it is tried"));
    }
    // Also while it is being delivered: of thousands some are.
    if action == Action::Release && entry.is_some_and(|entry| entry.held.is_none()) {
        return Ok(None);
    }
    match desk.queue.act(id, action, "held by the operator").await {
        Ok(true) => {}
        // Somebody else was faster.
        Ok(false) => return Ok(None),
        // It is being tried, as was asked for.
        Err(ActionError::Busy) if action == Action::Retry => {}
        Err(error) => return Err(refusal(error)),
    }
    let (kind, word) = match action {
        Action::Retry => (None, "tried again"),
        Action::Hold => (Some(EventKind::Held), "held"),
        Action::Release => (Some(EventKind::Released), "released"),
        Action::Delete => (Some(EventKind::Deleted), "deleted"),
    };
    if let Some(kind) = kind {
        desk.observer.emit(Event {
            sender: entry.map(|entry| entry.reverse_path.as_str().to_owned()),
            size: entry.map(|entry| entry.content.size),
            message_id: entry.and_then(|entry| entry.message_id.clone()),
            ..Event::new(desk.clock.now(), kind, id)
        });
    }
    Ok(Some(word))
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
    fn a_filter_that_is_not_understood_is_refused() {
        let state = Filter { state: Some("stuck".into()), ..Filter::default() };
        let age = Filter { older_than: Some("5".into()), ..Filter::default() };
        assert!(state.ready().is_err() && age.ready().is_err());
        assert!(Filter { limit: Some(3), ..Filter::default() }.is_empty());
        assert!(!age.is_empty());
    }
}
