//! How it was, over HTTP, and who keeps the numbers: a look at the queue now and then.

use std::{collections::HashMap, time::Duration};

use axum::{Json, extract::State};
use serde::{Deserialize, Serialize};
use tokio::{sync::watch, time::MissedTickBehavior};

use super::{Admin, Answer, Refusal, extract::Query, view::QueueStatus};
use crate::observe::trend::{Depth, Range, Step};

/// How often the queue is looked at. What comes and goes in between is counted all the same.
const LOOK: Duration = Duration::from_secs(10);

/// Looks, and writes down what was seen, until `shutdown` turns true.
pub(super) async fn keep(admin: Admin, mut shutdown: watch::Receiver<bool>) {
    let mut looks = tokio::time::interval(LOOK);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut saving = None::<tokio::task::JoinHandle<()>>;
    loop {
        tokio::select! {
            _ = looks.tick() => {}
            _ = shutdown.wait_for(|shutdown| *shutdown) => break,
        }
        // A queue that can't be read is no reason to forget what was counted.
        match tokio::time::timeout(LOOK, admin.queue_status()).await {
            Ok(Ok(queue)) => admin.note(Some(&queue)),
            _ => admin.note(None),
        }
        // A disk that hangs has one writer waiting for it, not one more with each look.
        if saving.as_ref().is_none_or(tokio::task::JoinHandle::is_finished) {
            let trend = admin.trend.clone();
            saving = Some(tokio::task::spawn_blocking(move || trend.save()));
        }
    }
    admin.note(None);
    let _ = tokio::task::spawn_blocking(move || admin.trend.save()).await;
}

impl Admin {
    /// Notes what was counted, and how the queue is.
    pub(super) fn note(&self, queue: Option<&QueueStatus>) {
        let depth = queue.map(|queue| Depth {
            active: queue.active,
            deferred: queue.deferred,
            held: queue.held,
            oldest_seconds: queue.oldest_seconds.unwrap_or(0),
        });
        self.trend.note(self.clock.now(), depth, || self.observer.metrics().counts.read());
    }
}

/// Numbers over time.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Trend {
    /// `1h`, `24h`, `7d` or `30d`.
    pub range: String,
    /// Seconds from one item to the next.
    pub step: u64,
    /// The oldest first. Nothing is said of times in which no relay ran.
    pub items: Vec<Moment>,
}

/// What is known of one step.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Moment {
    pub time: String,
    /// The greatest numbers of queued messages that were seen.
    pub active: u64,
    pub deferred: u64,
    pub held: u64,
    pub oldest_seconds: u64,
    /// Messages that clients handed in.
    pub accepted: u64,
    pub rejected: u64,
    /// Outcomes of attempts, each for one recipient.
    pub delivered: u64,
    pub retried: u64,
    pub bounced: u64,
    /// Seconds from acceptance within which half of the deliveries were made, about; and 95 of 100.
    pub latency_p50: Option<f64>,
    pub latency_p95: Option<f64>,
}

impl Moment {
    fn of(step: &Step) -> Option<Self> {
        let point = step.point?;
        Some(Self {
            time: step.at.to_string(),
            active: point.depth.active,
            deferred: point.depth.deferred,
            held: point.depth.held,
            oldest_seconds: point.depth.oldest_seconds,
            accepted: point.flow.accepted,
            rejected: point.flow.rejected,
            delivered: point.flow.delivered,
            retried: point.flow.deferred,
            bounced: point.flow.bounced,
            latency_p50: point.flow.latency(0.5),
            latency_p95: point.flow.latency(0.95),
        })
    }
}

/// Answers `?range=1h`, `24h`, `7d` or `30d`.
pub(super) async fn show(
    State(admin): State<Admin>,
    Query(wanted): Query<HashMap<String, String>>,
) -> Answer<Json<Trend>> {
    let range = match wanted.get("range") {
        None => Range::default(),
        Some(name) => {
            Range::named(name).ok_or_else(|| Refusal::bad_request("range is 1h, 24h, 7d or 30d"))?
        }
    };
    admin.note(admin.queue_status().await.ok().as_ref());
    let items = admin.trend.range(range, admin.clock.now()).iter().filter_map(Moment::of).collect();
    Ok(Json(Trend { range: range.name().to_owned(), step: range.step().as_secs(), items }))
}
