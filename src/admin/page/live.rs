//! Tells an open page that something has changed, so that it fetches itself anew: server-sent events (HTML §9.2).

use std::{
    convert::Infallible,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    Extension,
    body::Body,
    extract::{FromRef as _, State},
    http::{StatusCode, header},
    response::IntoResponse as _,
};
use bytes::Bytes;
use hyper::body::Frame;
use tokio::{
    sync::{Semaphore, mpsc},
    time::{Instant, MissedTickBehavior},
};

use super::layout::Shown;
use crate::admin::{Admin, Desk, Refusal, view::Outlook};

/// Open pages that are kept fresh at once; others stay as they are.
const STREAMS_MAX: usize = 32;
/// How often it is looked whether something has changed.
const LOOK: Duration = Duration::from_secs(1);
/// Ages on a page grow without an event; and whoever is gone is noticed by it.
const HEARTBEAT: Duration = Duration::from_secs(20);
/// The browser asks again behind it.
const WITHIN: Duration = Duration::from_secs(240);

/// The places of streams. Clones share them.
#[derive(Clone, Debug)]
pub(in crate::admin) struct Places(Arc<Semaphore>);

impl Default for Places {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(STREAMS_MAX)))
    }
}

pub(super) async fn stream(State(admin): State<Admin>, Extension(places): Extension<Places>) -> Shown {
    let full =
        || Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "too many pages are open; this one stays as it is");
    let place = Arc::clone(&places.0).try_acquire_owned().map_err(|_| full())?;
    let (pieces, body) = mpsc::channel(1);
    tokio::spawn(async move {
        let until = Instant::now() + WITHIN;
        let (mut seen, mut told) = (pulse(&admin), Instant::now());
        let mut looks = tokio::time::interval(LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut piece = Bytes::from_static(b"retry: 5000\n\n");
        while Instant::now() < until {
            // A reader that doesn't read ends its stream.
            let sent = tokio::time::timeout(HEARTBEAT, pieces.send(piece)).await;
            if !matches!(sent, Ok(Ok(()))) {
                break;
            }
            piece = loop {
                tokio::select! {
                    _ = looks.tick() => {}
                    () = pieces.closed() => return,
                }
                let now = pulse(&admin);
                if now != seen || told.elapsed() >= HEARTBEAT {
                    (seen, told) = (now, Instant::now());
                    break Bytes::from_static(b"event: change\ndata:\n\n");
                }
            };
        }
        drop(place);
    });
    Ok(([(header::CONTENT_TYPE, "text/event-stream")], Body::new(Pieces(body))).into_response())
}

/// A number that is another one whenever there is something new to show.
fn pulse(admin: &Admin) -> u64 {
    let mut hash = DefaultHasher::new();
    admin.observer.metrics().counts.changes().hash(&mut hash);
    admin.queue.trouble().hash(&mut hash);
    admin.queue.newest().hash(&mut hash);
    (admin.queue.claimed(), admin.queue.waiting()).hash(&mut hash);
    admin.captured.as_ref().map(|captured| captured.newest()).hash(&mut hash);
    for upstream in Outlook::of(&Desk::from_ref(admin)).upstreams() {
        (upstream.name, upstream.state, upstream.reason, upstream.until, upstream.connections)
            .hash(&mut hash);
    }
    hash.finish()
}

/// A body of which the pieces come when they come.
struct Pieces(mpsc::Receiver<Bytes>);

impl hyper::body::Body for Pieces {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.poll_recv(context).map(|piece| piece.map(|piece| Ok(Frame::data(piece))))
    }
}
