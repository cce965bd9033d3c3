//! Health, metrics and status.

use std::time::Duration;

use axum::{
    Json,
    extract::{FromRef as _, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse as _, Response},
};
use tokio::time::timeout;

use super::{
    Admin, Answer, Desk,
    view::{LimitStatus, Outlook, Status},
};
use crate::observe::{LimitLabels, StateLabels, UpstreamLabels};

/// Alive: the process answers.
pub(super) async fn healthz() -> &'static str {
    "ok\n"
}

/// Takes mail, or why not.
pub(super) async fn readyz(State(admin): State<Admin>) -> Response {
    match admin.queue.trouble() {
        None => "ready\n".into_response(),
        Some(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {reason}\n")).into_response(),
    }
}

pub(super) async fn status(State(admin): State<Admin>) -> Answer<Json<Status>> {
    Ok(Json(admin.status().await?))
}

/// How long the queue may take to be looked at: less than Prometheus waits.
const LOOK_WITHIN: Duration = Duration::from_secs(5);

/// Counters move by themselves; what is a state at this moment is looked at now. Where the queue can't be read, its
/// numbers are those of the last look, and all else is there: that is when it is wanted most.
pub(super) async fn metrics(State(admin): State<Admin>, headers: HeaderMap) -> Response {
    let depth = timeout(LOOK_WITHIN, admin.queue.depth()).await.ok().and_then(Result::ok);
    let outlook = Outlook::of(&Desk::from_ref(&admin));
    let metrics = admin.observer.metrics();
    let _one_at_a_time = admin.observer.look();
    metrics.ready.set((depth.is_some() && admin.queue.trouble().is_none()).into());
    if let Some(depth) = depth {
        let queue = outlook.queue_status(depth, admin.queue.claimed() as u64);
        for (state, number) in [("active", queue.active), ("deferred", queue.deferred), ("held", queue.held)]
        {
            metrics.queue_messages.get_or_create(&StateLabels { state }).set(number as i64);
        }
        metrics.queue_bytes.set(queue.bytes as i64);
        metrics.queue_oldest_age_seconds.set(queue.oldest_seconds.unwrap_or(0) as f64);
    }
    let history = admin.queue.history_health();
    metrics.history_events_lost.set(history.lost as i64);
    metrics.history_set_aside.set(history.set_aside as i64);
    // An upstream that has left the settings leaves the metrics.
    metrics.forget_upstreams();
    for (status, is_well) in outlook.healths() {
        metrics.begin_upstream(&status.name);
        let upstream = UpstreamLabels { upstream: status.name };
        metrics.upstream_up.get_or_create(&upstream).set(is_well.into());
        metrics.upstream_connections.get_or_create(&upstream).set(status.connections as i64);
    }
    for LimitStatus { upstream, window, counts, used, max, .. } in outlook.limits() {
        let labels = LimitLabels { upstream, window, counts };
        metrics.rate_limit_used.get_or_create(&labels).set(used as i64);
        metrics.rate_limit_max.get_or_create(&labels).set(max as i64);
    }
    let accepts = headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok()).unwrap_or_default();
    let (kind, text) = if accepts.contains("application/openmetrics-text") {
        ("application/openmetrics-text; version=1.0.0; charset=utf-8", admin.observer.render_metrics())
    } else {
        ("text/plain; version=0.0.4; charset=utf-8", admin.observer.render_prometheus())
    };
    ([(header::CONTENT_TYPE, kind)], text).into_response()
}
