//! Messages out of the queue as an archive: some with each request, so that no request takes long and
//! no answer takes much memory. Where the next ones begin is told in the header, as is what was damaged.

use std::{collections::VecDeque, fmt::Write as _};

use axum::{
    body::Body,
    extract::State,
    http::header,
    response::{IntoResponse as _, Response},
};

use bytes::Bytes;

use super::{
    Answer, Desk, Refusal,
    archive::{self, Half},
    content::{Part, Parts},
    extract::{self, Path, Query},
    queue::{self, Filter},
};
use crate::queue::{
    QueueId,
    export::{Export, Exported, WholeContent},
};

/// The field of an answer that says what `?cursor=` takes for the next messages; none: that was all.
pub const NEXT: &str = "outpost-next";
/// The field that names damaged messages, which are left out.
pub const DAMAGED: &str = "outpost-damaged";

/// Messages of one answer.
const PAGE: usize = 200;
/// Octets behind which no further message goes into an answer.
const OCTETS: u64 = 2 * 1024 * 1024;

pub(super) async fn export(State(desk): State<Desk>, Query(filter): Query<Filter>) -> Answer<Response> {
    let limit = extract::limit(filter.limit, PAGE, PAGE)?;
    let page = queue::page(&desk, &Filter { limit: Some(limit), ..filter }).await?;
    let (mut parts, mut damaged, mut octets) = (VecDeque::new(), String::new(), 0);
    let (mut next, mut last) = (page.next, None);
    for item in &page.items {
        if octets >= OCTETS {
            next = last;
            break;
        }
        last = Some(item.id.clone());
        let id = queue::id(&item.id)?;
        match desk.queue.export(id).await? {
            Export::Whole(message) => {
                octets += message.content.size() + message.record.len() as u64;
                add(&mut parts, id, message);
            }
            Export::Gone => {}
            Export::Damaged => {
                let comma = if damaged.is_empty() { "" } else { "," };
                let _ = write!(damaged, "{comma}{id}");
            }
        }
    }
    Ok(answer(parts, next, damaged))
}

/// One message alone.
pub(super) async fn one(State(desk): State<Desk>, Path(name): Path<String>) -> Answer<Response> {
    let id = queue::id(&name)?;
    let mut parts = VecDeque::new();
    match desk.queue.export(id).await? {
        Export::Whole(message) => add(&mut parts, id, message),
        Export::Gone => return Err(Refusal::not_found("no such message in the queue")),
        Export::Damaged => return Ok(answer(parts, None, id.to_string())),
    }
    Ok(answer(parts, None, String::new()))
}

fn answer(mut parts: VecDeque<Part>, next: Option<String>, damaged: String) -> Response {
    parts.push_back(Part::Octets(Bytes::from_static(&archive::END)));
    let headers =
        [(header::CONTENT_TYPE, archive::CONTENT_TYPE), (header::CONTENT_DISPOSITION, archive::DISPOSITION)];
    let mut response = (headers, Body::new(Parts(parts))).into_response();
    for (name, value) in [(NEXT, next), (DAMAGED, Some(damaged).filter(|damaged| !damaged.is_empty()))] {
        if let Some(value) = value.and_then(|value| value.parse().ok()) {
            response.headers_mut().insert(name, value);
        }
    }
    response
}

fn add(parts: &mut VecDeque<Part>, id: QueueId, Exported { record, content }: Exported) {
    let (length, size) = (record.len() as u64, content.size());
    parts.push_back(Part::Octets(archive::header(id, Half::Record, length)));
    parts.push_back(Part::Octets(record.into()));
    parts.push_back(Part::Octets(archive::padding(length)));
    parts.push_back(Part::Octets(archive::header(id, Half::Content, size)));
    parts.push_back(match content {
        WholeContent::Memory(octets) => Part::Octets(octets),
        WholeContent::File(file, size) => Part::File(tokio::fs::File::from_std(file), size),
    });
    parts.push_back(Part::Octets(archive::padding(size)));
}
