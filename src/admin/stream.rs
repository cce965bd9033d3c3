//! Events as they happen, by server-sent events (the HTML standard's `text/event-stream`).
//!
//! A stream is a place in the history that moves: nothing gathers for whoever reads slowly, and whoever
//! comes again names the place where it was. What the history has lost meanwhile is told.

use std::{collections::VecDeque, convert::Infallible, sync::Arc, time::Duration};

use axum::{
    Json,
    extract::{FromRef as _, State},
    http::{HeaderMap, StatusCode, header},
    response::{
        IntoResponse as _, Response,
        sse::{self, KeepAlive, Sse},
    },
};
use futures_util::stream;
use serde_json::json;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, sleep},
};

use super::{Admin, Answer, Desk, Refusal, events::Wanted, extract::Query};

/// Streams at once.
const STREAMS_MAX: usize = 32;
/// How often it is looked for what has happened.
const LOOK: Duration = Duration::from_millis(500);
/// Silence behind which a comment tells that the stream lives.
const HEARTBEAT: Duration = Duration::from_secs(15);
/// A stream ends itself before its connection has to ([`super::serve`]).
const STREAM_WITHIN: Duration = Duration::from_secs(280);
/// Events that are read at once.
const PAGE: usize = 200;

/// The places for streams. Clones share it.
#[derive(Clone, Debug)]
pub struct Streams(Arc<Semaphore>);

impl Default for Streams {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(STREAMS_MAX)))
    }
}

/// A page of events, or a stream of them for who asks for one.
pub(super) async fn events(
    State(admin): State<Admin>,
    headers: HeaderMap,
    Query(wanted): Query<Wanted>,
) -> Answer<Response> {
    let desk = Desk::from_ref(&admin);
    let accepts = headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok()).unwrap_or_default();
    if !accepts.to_ascii_lowercase().contains("text/event-stream") {
        return Ok(Json(desk.events(wanted).await?).into_response());
    }
    let Ok(place) = Arc::clone(&admin.streams.0).try_acquire_owned() else {
        let words =
            format!("there are {STREAMS_MAX} streams of events already; close one, or try again later");
        return Err(Refusal::new(StatusCode::SERVICE_UNAVAILABLE, words));
    };
    let last = headers.get("last-event-id").and_then(|id| id.to_str().ok());
    let follower = Follower::new(desk, wanted, last, place).await?;
    let events = stream::unfold(follower, Follower::next);
    Ok(Sse::new(events).keep_alive(KeepAlive::new().interval(HEARTBEAT)).into_response())
}

/// A reader on its way along the history.
struct Follower {
    desk: Desk,
    wanted: Wanted,
    /// The last event that was looked at.
    after: i64,
    /// Read, and not sent yet: at most a page.
    ready: VecDeque<sse::Event>,
    /// Events that the history could not keep, as far as they were told of.
    lost: u64,
    /// The last look went to the end of the history.
    at_end: bool,
    until: Instant,
    _place: OwnedSemaphorePermit,
}

impl Follower {
    async fn new(
        desk: Desk,
        mut wanted: Wanted,
        last: Option<&str>,
        place: OwnedSemaphorePermit,
    ) -> Answer<Self> {
        if wanted.limit.is_some() || wanted.until.is_some() {
            return Err(Refusal::bad_request("limit and until are not for streams"));
        }
        // A browser that has seen none yet names none.
        let last = last.filter(|last| !last.is_empty()).map(str::to_owned);
        let resumed = last.is_some() || wanted.cursor.as_deref().is_some_and(|cursor| cursor != "0");
        wanted.cursor = last.or(wanted.cursor);
        let now = desk.clock.now();
        let after = wanted.ready(now).map_err(Refusal::bad_request)?.begins_behind();
        let after = match after {
            Some(after) => after,
            None => {
                let newest = desk.events(Wanted { limit: Some(1), ..Wanted::default() }).await?;
                newest.items.last().and_then(|event| event.seq).unwrap_or(0)
            }
        };
        let lost = desk.queue.history_health().lost;
        let until = Instant::now() + STREAM_WITHIN;
        let ready = VecDeque::new();
        let mut follower = Self { desk, wanted, after, ready, lost, at_end: false, until, _place: place };
        if resumed && follower.is_gone().await? {
            follower.ready.push_back(missed(None));
        }
        // What was asked for by place and time is known; from here on it is the place alone.
        (follower.wanted.cursor, follower.wanted.since) = (None, None);
        Ok(follower)
    }

    /// Whether events behind the place where the reader was are gone already.
    async fn is_gone(&self) -> Answer<bool> {
        let first_behind = |after: i64| {
            let wanted = Wanted { cursor: Some(after.to_string()), limit: Some(1), ..Wanted::default() };
            async move { Ok::<_, Refusal>(self.desk.events(wanted).await?.items.first().and_then(|e| e.seq)) }
        };
        let oldest = first_behind(0).await?;
        Ok(oldest.is_some_and(|oldest| oldest > self.after))
    }

    async fn next(mut self) -> Option<(Result<sse::Event, Infallible>, Self)> {
        while self.ready.is_empty() {
            if Instant::now() >= self.until {
                return None;
            }
            if self.at_end {
                sleep(LOOK).await;
            }
            // What can't be read now is read later: the place stays.
            self.at_end = self.look().await.unwrap_or(true);
        }
        let event = self.ready.pop_front()?;
        Some((Ok(event), self))
    }

    /// Reads a page; whether that was the end.
    async fn look(&mut self) -> Answer<bool> {
        let page = Wanted {
            id: self.wanted.id.clone(),
            cursor: Some(self.after.to_string()),
            limit: Some(PAGE),
            ..Wanted::default()
        };
        let page = self.desk.events(page).await?;
        let wanted = self.wanted.ready(self.desk.clock.now()).map_err(Refusal::bad_request)?;
        let mut told = self.after;
        for event in &page.items {
            self.after = event.seq.unwrap_or(self.after);
            if wanted.wants(event) {
                told = self.after;
                let data = serde_json::to_string(event).unwrap_or_default();
                self.ready
                    .push_back(sse::Event::default().event("event").id(self.after.to_string()).data(data));
            }
        }
        let next = page.next.as_ref().and_then(|next| next.parse().ok());
        self.after = next.unwrap_or(self.after);
        // Whoever comes again goes on here, however long nothing was for them: a client keeps the place, and
        // takes what has no data for no event (HTML §9.2.6).
        if told != self.after {
            self.ready.push_back(sse::Event::default().id(self.after.to_string()));
        }
        let lost = self.desk.queue.history_health().lost;
        if lost > self.lost {
            self.ready.push_back(missed(Some(lost - self.lost)));
            self.lost = lost;
        }
        Ok(page.next.is_none())
    }
}

fn missed(events: Option<u64>) -> sse::Event {
    sse::Event::default().event("missed").data(json!({ "events": events }).to_string())
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;
    use http_body_util::BodyExt as _;

    use super::*;
    use crate::{
        admin::tests::admin,
        observe::{Event, EventKind},
    };

    #[tokio::test(start_paused = true)]
    async fn a_filter_that_nothing_fits_goes_on_at_once_and_says_how_far_it_has_come() {
        let home = tempfile::tempdir().expect("a directory");
        let (admin, _writers) = admin(home.path());
        for _ in 0..2 * PAGE + 1 {
            admin.observer.emit(Event::new(admin.clock.now(), EventKind::Rejected, "01HXYZ0000ABC"));
        }
        let all = Wanted { cursor: Some("0".to_owned()), limit: Some(1_000), ..Wanted::default() };
        let all = Desk::from_ref(&admin).events(all).await.expect("a page").items;
        let places = [PAGE, 2 * PAGE, 2 * PAGE + 1].map(|number| all[number - 1].seq.expect("a place"));

        let headers = HeaderMap::from_iter([(header::ACCEPT, HeaderValue::from_static("text/event-stream"))]);
        let (cursor, event) = (Some("0".to_owned()), Some("delivered".to_owned()));
        let wanted = Wanted { cursor, event, ..Wanted::default() };
        let mut body = events(State(admin), headers, Query(wanted)).await.expect("a stream").into_body();
        let began = Instant::now();
        for place in places {
            let frame = body.frame().await.expect("it goes on").expect("a frame");
            let octets = frame.into_data().expect("octets");
            assert_eq!(String::from_utf8_lossy(&octets), format!("id: {place}\n\n"));
        }
        assert!(began.elapsed() < LOOK, "it has waited though there was more");
    }
}
