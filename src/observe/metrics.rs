//! The metrics of the contract, and their labels: each from a fixed set, never from what a client sent.

use std::{sync::atomic::AtomicI64, time::Duration};

pub(super) use prometheus_client::metrics::counter::Counter;
use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeLabelValue},
    metrics::{family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};

use super::trend::{self, Counts};

/// What became of a message offered to the listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
#[allow(missing_docs, non_camel_case_types)]
pub enum Received {
    accepted,
    rejected,
}

/// Why a client was turned away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
#[allow(missing_docs, non_camel_case_types)]
pub enum Rejection {
    /// No place was left for its connection.
    connections,
    /// A command: for who it is, what it may do, a bound.
    command,
    /// A whole message.
    message,
    /// It took too long over a message.
    slow,
    /// A conversation that led nowhere, or was none.
    abuse,
}

/// What an attempt meant for one recipient.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
#[allow(missing_docs, non_camel_case_types)]
pub enum Delivery {
    delivered,
    deferred,
    bounced,
}

/// Whether a webhook took what it was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
#[allow(missing_docs, non_camel_case_types)]
pub enum Told {
    delivered,
    failed,
}

/// Labels of `outpost_webhook_total`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
#[allow(missing_docs)]
pub struct WebhookLabels {
    /// `alert` or `event`.
    pub webhook: &'static str,
    pub result: Told,
}

/// Labels of `outpost_received_total`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
#[allow(missing_docs)]
pub struct ReceivedLabels {
    pub result: Received,
}

/// Labels of `outpost_rejections_total`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
#[allow(missing_docs)]
pub struct RejectionLabels {
    pub reason: Rejection,
}

/// Labels of `outpost_deliveries_total`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
#[allow(missing_docs)]
pub struct DeliveryLabels {
    pub upstream: String,
    pub result: Delivery,
}

/// Labels of what is counted per upstream.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
#[allow(missing_docs)]
pub struct UpstreamLabels {
    pub upstream: String,
}

/// Labels of what is counted per limit.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
#[allow(missing_docs)]
pub struct LimitLabels {
    pub upstream: String,
    pub window: String,
    pub counts: String,
}

/// Labels of `outpost_queue_messages`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
#[allow(missing_docs)]
pub struct StateLabels {
    pub state: &'static str,
}

/// The metrics of the contract.
#[derive(Debug)]
#[allow(missing_docs)] // Each field's meaning is its help text below.
pub struct Metrics {
    pub queue_messages: Family<StateLabels, Gauge>,
    pub queue_oldest_age_seconds: Gauge<f64, std::sync::atomic::AtomicU64>,
    pub queue_bytes: Gauge,
    pub received: Family<ReceivedLabels, Counter>,
    pub rejections: Family<RejectionLabels, Counter>,
    pub deliveries: Family<DeliveryLabels, Counter>,
    pub deliveries_uncertain: Family<UpstreamLabels, Counter>,
    pub delivery_seconds: Histogram,
    pub upstream_up: Family<UpstreamLabels, Gauge>,
    pub upstream_connections: Family<UpstreamLabels, Gauge>,
    pub rate_limit_used: Family<LimitLabels, Gauge>,
    pub rate_limit_max: Family<LimitLabels, Gauge>,
    pub listener_connections: Gauge<i64, AtomicI64>,
    pub enqueue_seconds: Histogram,
    pub damaged: Counter,
    pub log_lines_dropped: Counter,
    pub history_events_lost: Gauge,
    pub history_set_aside: Gauge,
    /// The same as some of these, for the plots.
    pub counts: Counts,
    pub webhook: Family<WebhookLabels, Counter>,
    pub ready: Gauge,
}

impl Metrics {
    /// Registers them all.
    pub(super) fn registered() -> (Self, Registry) {
        let metrics = Self {
            queue_messages: Family::default(),
            queue_oldest_age_seconds: Gauge::default(),
            queue_bytes: Gauge::default(),
            received: Family::default(),
            rejections: Family::default(),
            deliveries: Family::default(),
            deliveries_uncertain: Family::default(),
            delivery_seconds: Histogram::new(trend::LATENCIES),
            upstream_up: Family::default(),
            upstream_connections: Family::default(),
            rate_limit_used: Family::default(),
            rate_limit_max: Family::default(),
            listener_connections: Gauge::default(),
            enqueue_seconds: Histogram::new([
                0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0,
            ]),
            damaged: Counter::default(),
            log_lines_dropped: Counter::default(),
            history_events_lost: Gauge::default(),
            history_set_aside: Gauge::default(),
            counts: Counts::default(),
            webhook: Family::default(),
            ready: Gauge::default(),
        };
        let mut registry = Registry::with_prefix("outpost");
        let r = &mut registry;
        r.register("queue_messages", "Messages in the queue by state", metrics.queue_messages.clone());
        r.register(
            "queue_oldest_age_seconds",
            "Age of the oldest message in the queue",
            metrics.queue_oldest_age_seconds.clone(),
        );
        r.register("queue_bytes", "Octets of the messages in the queue", metrics.queue_bytes.clone());
        r.register(
            "received",
            "Messages offered by clients, by what became of them",
            metrics.received.clone(),
        );
        r.register("rejections", "Clients turned away, by why", metrics.rejections.clone());
        r.register("deliveries", "Outcomes of attempts, per recipient", metrics.deliveries.clone());
        r.register(
            "deliveries_uncertain",
            "Attempts whose final reply was lost, per recipient: each may be one more copy",
            metrics.deliveries_uncertain.clone(),
        );
        r.register(
            "delivery_seconds",
            "From acceptance to delivery, per recipient",
            metrics.delivery_seconds.clone(),
        );
        r.register(
            "upstream_up",
            "1 while the upstream takes mail, as far as our own limits let it be sent",
            metrics.upstream_up.clone(),
        );
        r.register(
            "upstream_connections",
            "Open connections to the upstream",
            metrics.upstream_connections.clone(),
        );
        r.register(
            "rate_limit_used",
            "What of a limit is used within its window",
            metrics.rate_limit_used.clone(),
        );
        r.register("rate_limit_max", "The limit", metrics.rate_limit_max.clone());
        r.register("listener_connections", "Open client connections", metrics.listener_connections.clone());
        r.register(
            "enqueue_seconds",
            "From the end of the content to the 250",
            metrics.enqueue_seconds.clone(),
        );
        r.register(
            "damaged",
            "Messages that were found damaged and set aside since the start",
            metrics.damaged.clone(),
        );
        r.register(
            "log_lines_dropped",
            "Lines of the log that standard error did not take",
            metrics.log_lines_dropped.clone(),
        );
        r.register(
            "history_events_lost",
            "Events since the start that the history could not keep",
            metrics.history_events_lost.clone(),
        );
        r.register(
            "history_set_aside",
            "Damaged files of the history set aside since the start",
            metrics.history_set_aside.clone(),
        );
        r.register("webhook", "POSTs to webhooks, by whether they were taken", metrics.webhook.clone());
        r.register("ready", "1 while new mail can be made durable", metrics.ready.clone());
        metrics.begin();
        (metrics, registry)
    }

    /// What can be counted is there from the start, at nothing: a rate needs a value before the first.
    fn begin(&self) {
        for result in [Received::accepted, Received::rejected] {
            drop(self.received.get_or_create(&ReceivedLabels { result }));
        }
        for reason in [
            Rejection::connections,
            Rejection::command,
            Rejection::message,
            Rejection::slow,
            Rejection::abuse,
        ] {
            drop(self.rejections.get_or_create(&RejectionLabels { reason }));
        }
        for webhook in ["alert", "event"] {
            for result in [Told::delivered, Told::failed] {
                drop(self.webhook.get_or_create(&WebhookLabels { webhook, result }));
            }
        }
    }

    /// The same for an upstream.
    pub fn begin_upstream(&self, upstream: &str) {
        for result in [Delivery::delivered, Delivery::deferred, Delivery::bounced] {
            drop(self.deliveries.get_or_create(&DeliveryLabels { upstream: upstream.to_owned(), result }));
        }
        drop(self.deliveries_uncertain.get_or_create(&UpstreamLabels { upstream: upstream.to_owned() }));
    }

    /// Counts a POST to a webhook, `alert` or `event`.
    pub fn webhook(&self, webhook: &'static str, result: Told) {
        self.webhook.get_or_create(&WebhookLabels { webhook, result }).inc();
    }

    /// Counts the outcome of an attempt for one recipient.
    pub fn delivery(&self, upstream: &str, result: Delivery) {
        self.deliveries.get_or_create(&DeliveryLabels { upstream: upstream.to_owned(), result }).inc();
        Counts::one_more(match result {
            Delivery::delivered => &self.counts.delivered,
            Delivery::deferred => &self.counts.deferred,
            Delivery::bounced => &self.counts.bounced,
        });
    }

    /// Counts an attempt whose final reply was lost, for one recipient.
    pub fn uncertain(&self, upstream: &str) {
        self.deliveries_uncertain.get_or_create(&UpstreamLabels { upstream: upstream.to_owned() }).inc();
    }

    /// Forgets what is a state of an upstream at one moment; whoever looks sets it anew.
    pub fn forget_upstreams(&self) {
        self.upstream_up.clear();
        self.upstream_connections.clear();
        self.rate_limit_used.clear();
        self.rate_limit_max.clear();
    }

    /// Counts what became of an offered message.
    pub fn received(&self, result: Received) {
        self.received.get_or_create(&ReceivedLabels { result }).inc();
        Counts::one_more(match result {
            Received::accepted => &self.counts.accepted,
            Received::rejected => &self.counts.rejected,
        });
    }

    /// Counts a client that was turned away.
    pub fn rejected(&self, reason: Rejection) {
        self.rejections.get_or_create(&RejectionLabels { reason }).inc();
    }

    /// Notes how long a recipient waited from acceptance to delivery.
    pub fn delivered_after(&self, delay: Duration) {
        self.delivery_seconds.observe(delay.as_secs_f64());
        self.counts.delivered_after(delay);
    }
}
