//! One action on all messages of a filter: at most a page of them with each request, so that no
//! request takes long and nobody needs one for each message.
//!
//! Meant are messages that were there when the first request came. What arrives later, as the
//! reports do that `bounce` brings forth, is left alone: the cursor remembers where the end was.

use axum::{Json, extract::State};
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;

use super::{
    Answer, Desk, Refusal,
    extract::Query,
    queue::{self, Filter, Verb},
};
use crate::queue::QueueId;

/// Messages of one request.
const PAGE: usize = 1_000;
/// At once: they share the syncs of the queue.
const AT_ONCE: usize = 100;

/// Which messages are meant, and what is said with the action: the query string.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)] // As in `Filter`.
pub struct Order {
    /// `retry`, `hold`, `release`, `bounce` or `delete`.
    pub action: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sender: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recipient: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upstream: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub older_than: Option<String>,
    /// All messages: without any condition this must be said.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub all: bool,
    /// For the report of a bounce.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// `next` of the answer before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
}

impl Order {
    /// An order for the messages of `filter`, or for all.
    pub fn new(action: &str, filter: &Filter, all: bool, reason: Option<String>) -> Self {
        let Filter { sender, recipient, upstream, state, older_than, .. } = filter.clone();
        let action = action.to_owned();
        Self { action, sender, recipient, upstream, state, older_than, all, reason, cursor: None }
    }

    fn filter(self) -> Filter {
        let Self { sender, recipient, upstream, state, older_than, .. } = self;
        Filter { sender, recipient, upstream, state, older_than, limit: Some(PAGE), cursor: None }
    }
}

/// What one request has done.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Outcome {
    /// So many messages.
    pub done: usize,
    /// The others that were meant, and are still there.
    pub failed: Vec<Failed>,
    /// What `?cursor=` takes for the next ones; none: that was all.
    pub next: Option<String>,
}

/// A message that an action was not done with.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Failed {
    /// Its queue id.
    pub id: String,
    /// Why not.
    pub error: String,
}

pub(super) async fn act(State(desk): State<Desk>, Query(order): Query<Order>) -> Answer<Json<Outcome>> {
    let verb = Verb::named(&order.action, order.reason.clone())?;
    let (after, until) = match &order.cursor {
        Some(cursor) => {
            let (after, until) = read_cursor(cursor).ok_or_else(|| Refusal::bad_request("no such cursor"))?;
            (Some(after), until)
        }
        None => (None, desk.queue.newest()),
    };
    let all = order.all;
    let mut filter = order.filter();
    if filter.is_empty() != all {
        let words = "say which messages are meant by a condition such as sender=, or all=true";
        return Err(Refusal::bad_request(words));
    }
    filter.cursor = after.map(|after| after.to_string());
    let page = queue::page(&desk, &filter).await?;
    let mut meant = Vec::with_capacity(page.items.len());
    for item in &page.items {
        meant.push(queue::id(&item.id)?);
    }
    let beyond = meant.iter().any(|id| *id > until);
    meant.retain(|id| *id <= until);
    let next = page.next.filter(|_| !beyond).map(|after| format!("{after}-{until}"));
    verb.prepare(&desk);
    let mut outcome = Outcome { done: 0, failed: Vec::new(), next };
    for some in meant.chunks(AT_ONCE) {
        if !act_on(&desk, &verb, some, &mut outcome).await {
            // What the disk doesn't take now it won't take from the others.
            outcome.next = None;
            break;
        }
    }
    outcome.failed.sort_by(|a, b| a.id.cmp(&b.id));
    Ok(Json(outcome))
}

/// Does it with these, at once. Whether it makes sense to go on.
pub(super) async fn act_on(desk: &Desk, verb: &Verb, ids: &[QueueId], outcome: &mut Outcome) -> bool {
    let mut acting = JoinSet::new();
    for id in ids.iter().copied() {
        let (desk, verb) = (desk.clone(), verb.clone());
        acting.spawn(async move { (id, verb.apply(&desk, id).await) });
    }
    let mut goes_on = true;
    while let Some(Ok((id, result))) = acting.join_next().await {
        match result {
            // Nothing was to do where it was not held.
            Ok(done) => outcome.done += usize::from(done.is_some()),
            // It has left meanwhile, and is not meant any more.
            Err(refusal) if refusal.is_not_found() => {}
            Err(refusal) => {
                goes_on &= !refusal.is_fault();
                outcome.failed.push(Failed { id: id.to_string(), error: refusal.words().to_owned() });
            }
        }
    }
    goes_on
}

fn read_cursor(cursor: &str) -> Option<(QueueId, QueueId)> {
    let (after, until) = cursor.split_once('-')?;
    Some((after.parse().ok()?, until.parse().ok()?))
}
