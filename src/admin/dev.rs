//! Local mode: what the embedded upstream has received.
//!
//! It keeps mail in a queue of its own that nobody empties but the user, so a message's number is
//! its place there: the first is 1.

use axum::{Json, extract::State, http::StatusCode, response::Response};
use serde::{Deserialize, Serialize};

use super::{
    Admin, Answer, Refusal, content,
    extract::{self, Path, Query},
    people,
    view::List,
};
use crate::queue::{Action, ActionError, Entry, Queue, QueueId};

/// The longest page, and what is read from the store at once.
const PAGE_MAX: usize = 1_000;

/// One message that was captured.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Captured {
    pub(super) n: usize,
    pub(super) id: String,
    pub(super) sender: String,
    pub(super) recipients: Vec<String>,
    pub(super) subject: Option<String>,
    pub(super) size: u64,
    pub(super) received: String,
    pub(super) tls: bool,
    pub(super) auth: bool,
    pub(super) user: Option<String>,
    pub(super) client: String,
}

impl Captured {
    fn new(n: usize, entry: &Entry) -> Self {
        Self {
            n,
            id: entry.id.to_string(),
            sender: entry.reverse_path.as_str().to_owned(),
            recipients: entry.recipients.iter().map(|recipient| recipient.address.to_string()).collect(),
            subject: entry.subject.as_deref().map(people::decoded),
            size: entry.content.size,
            received: entry.received.to_string(),
            tls: entry.origin.tls,
            auth: entry.origin.user.is_some(),
            user: entry.origin.user.clone(),
            client: entry.origin.client.clone(),
        }
    }
}

/// At most `limit` of what was captured, in the order of its arrival, behind number `after`.
pub(super) async fn captured(queue: &Queue, after: usize, limit: usize) -> Answer<Vec<Captured>> {
    let (mut found, mut n, mut last) = (Vec::new(), 0, None);
    loop {
        let listed = queue.list(last, PAGE_MAX).await?;
        for listed in &listed {
            n += 1;
            last = Some(listed.id);
            if n > after
                && let Some(entry) = &listed.entry
            {
                found.push(Captured::new(n, entry));
            }
            if found.len() == limit {
                return Ok(found);
            }
        }
        if listed.len() < PAGE_MAX {
            return Ok(found);
        }
    }
}

/// The latest of what was captured, the last first, and how many there are in all.
pub(super) async fn latest(queue: &Queue, most: usize) -> Answer<(Vec<Captured>, usize)> {
    let mut all = captured(queue, 0, usize::MAX).await?;
    let number = all.len();
    let latest = all.split_off(number.saturating_sub(most));
    Ok((latest.into_iter().rev().collect(), number))
}

/// The message of this number, and its id.
pub(super) async fn numbered(queue: &Queue, n: &str) -> Answer<(QueueId, Captured)> {
    let none = || Refusal::not_found("no message of this number was captured");
    let n: usize = n.parse().ok().filter(|n| *n > 0).ok_or_else(none)?;
    let found = captured(queue, n - 1, 1).await?.pop().filter(|captured| captured.n == n).ok_or_else(none)?;
    Ok((found.id.parse().map_err(|_| none())?, found))
}

pub(super) fn queue(admin: &Admin) -> Answer<&Queue> {
    admin.captured.as_ref().ok_or_else(|| Refusal::not_found("this is not local mode"))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Wanted {
    limit: Option<usize>,
    cursor: Option<usize>,
}

pub(super) async fn list(
    State(admin): State<Admin>,
    Query(wanted): Query<Wanted>,
) -> Answer<Json<List<Captured>>> {
    let limit = extract::limit(wanted.limit, PAGE_MAX, PAGE_MAX)?;
    let mut items = captured(queue(&admin)?, wanted.cursor.unwrap_or(0), limit + 1).await?;
    let more = items.len() > limit;
    items.truncate(limit);
    let next = items.last().filter(|_| more).map(|item| item.n.to_string());
    Ok(Json(List { items, next }))
}

pub(super) async fn raw(State(admin): State<Admin>, Path(n): Path<String>) -> Answer<Response> {
    let queue = queue(&admin)?;
    content::download(queue, numbered(queue, &n).await?.0).await
}

pub(super) async fn clear(State(admin): State<Admin>) -> Answer<StatusCode> {
    let queue = queue(&admin)?;
    loop {
        let listed = queue.list(None, PAGE_MAX).await?;
        if listed.is_empty() {
            return Ok(StatusCode::NO_CONTENT);
        }
        for listed in listed {
            match queue.act(listed.id, Action::Delete, "").await {
                Ok(_) | Err(ActionError::NoSuchEntry) => {}
                Err(error) => return Err(Refusal::new(StatusCode::SERVICE_UNAVAILABLE, error.to_string())),
            }
        }
    }
}
