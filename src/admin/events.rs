//! What happened lately.

use axum::{
    Json,
    extract::{Query, State},
};
use serde::Deserialize;

use super::{Admin, Answer, Refusal, view::List};
use crate::observe::Event;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Wanted {
    id: Option<String>,
    limit: Option<usize>,
}

/// The latest events, oldest first.
pub(super) async fn list(
    State(admin): State<Admin>,
    Query(wanted): Query<Wanted>,
) -> Answer<Json<List<Event>>> {
    let limit = wanted.limit.unwrap_or(100);
    if !(1..=1_000).contains(&limit) {
        return Err(Refusal::bad_request("limit is from 1 to 1000"));
    }
    let is_wanted = |event: &Event| wanted.id.as_deref().is_none_or(|id| event.id.eq_ignore_ascii_case(id));
    let items = admin.observer.recent(limit, is_wanted);
    Ok(Json(List { items: items.iter().map(|event| Event::clone(event)).collect(), next: None }))
}
