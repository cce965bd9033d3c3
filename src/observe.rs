//! What the outside can see: events and metrics, each named once.
//!
//! An event is one thing that happened to one message. It becomes a line of the log, and goes to whoever
//! keeps the history. Labels of metrics come from fixed sets, never from what a client sent.

pub mod json;
pub mod mask;
pub mod output;
pub mod trend;

use std::{
    fmt::{Display, Write as _},
    sync::{Arc, OnceLock, atomic::AtomicI64},
    time::Duration,
};

use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeLabelValue, text},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use self::{mask::Mask, trend::Counts};
use crate::clock::Timestamp;

/// Under which target the log tells what happened to messages.
const MAIL: &str = "outpost::mail";

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum EventKind {
    Received,
    Rejected,
    Imported,
    Delivered,
    Deferred,
    Bounced,
    Expired,
    Held,
    Released,
    Deleted,
}

impl EventKind {
    /// As events and the log name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Received => "received",
            Self::Rejected => "rejected",
            Self::Imported => "imported",
            Self::Delivered => "delivered",
            Self::Deferred => "deferred",
            Self::Bounced => "bounced",
            Self::Expired => "expired",
            Self::Held => "held",
            Self::Released => "released",
            Self::Deleted => "deleted",
        }
    }
}

/// One thing that happened to one message. Only what applies is there.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[allow(missing_docs)] // The names are the contract's and say what they are.
pub struct Event {
    #[serde(serialize_with = "as_text", deserialize_with = "from_text")]
    pub time: Timestamp,
    pub event: EventKind,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub id: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sender: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recipient: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upstream: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reply: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempt: Option<u32>,
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        serialize_with = "as_optional_text",
        deserialize_with = "from_optional_text"
    )]
    pub next_attempt: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delay_ms: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message_id: Option<String>,
    /// The final reply was lost: the upstream may have taken the message.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub uncertain: bool,
    /// The version of TLS that it travelled by to the upstream.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<String>,
    /// Its place in the history, once it is there: what `?cursor=` takes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seq: Option<i64>,
}

impl Event {
    /// An event of which nothing else is known yet.
    pub fn new(time: Timestamp, event: EventKind, id: impl ToString) -> Self {
        Self {
            time,
            event,
            id: id.to_string(),
            sender: None,
            recipient: None,
            upstream: None,
            reply: None,
            attempt: None,
            next_attempt: None,
            delay_ms: None,
            client: None,
            user: None,
            size: None,
            message_id: None,
            uncertain: false,
            tls: None,
            seq: None,
        }
    }

    /// As the history keeps it.
    pub fn octets(&self) -> Vec<u8> {
        // Strings and numbers can't fail to be written to memory.
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// The same with people's addresses as the log may show them.
    #[must_use]
    pub fn masked(&self, mask: &Mask) -> Self {
        let masked = |text: &Option<String>| text.as_deref().map(|text| mask.apply(text).into_owned());
        Self {
            sender: masked(&self.sender),
            recipient: masked(&self.recipient),
            reply: masked(&self.reply),
            user: masked(&self.user),
            message_id: masked(&self.message_id),
            ..self.clone()
        }
    }

    /// In one line: `name=value` in a fixed order. A value that is not one plain word is quoted and
    /// escaped, so none can forge another field or another line.
    pub fn line(&self) -> String {
        let mut line = String::with_capacity(256);
        line.push_str(self.event.name());
        let mut field = |name: &str, value: Option<&dyn Display>| {
            let Some(value) = value else { return };
            let begin = line.len() + name.len() + 2;
            let _ = write!(line, " {name}={value}");
            // What would be written otherwise in quotes: controls, and what hides or reorders text.
            let plain = |c: char| c == '\'' || !c.is_whitespace() && c.escape_debug().len() == 1;
            if line.len() == begin || !line[begin..].chars().all(plain) {
                let quoted = format!("{:?}", &line[begin..]);
                line.truncate(begin);
                line.push_str(&quoted);
            }
        };
        field("id", (!self.id.is_empty()).then_some(&self.id as _));
        field("sender", self.sender.as_ref().map(|v| v as _));
        field("recipient", self.recipient.as_ref().map(|v| v as _));
        field("upstream", self.upstream.as_ref().map(|v| v as _));
        field("reply", self.reply.as_ref().map(|v| v as _));
        field("attempt", self.attempt.as_ref().map(|v| v as _));
        field("next_attempt", self.next_attempt.as_ref().map(|v| v as _));
        field("delay_ms", self.delay_ms.as_ref().map(|v| v as _));
        field("client", self.client.as_ref().map(|v| v as _));
        field("user", self.user.as_ref().map(|v| v as _));
        field("size", self.size.as_ref().map(|v| v as _));
        field("message_id", self.message_id.as_ref().map(|v| v as _));
        field("uncertain", self.uncertain.then_some(&true as _));
        field("tls", self.tls.as_ref().map(|v| v as _));
        line
    }
}

fn as_text<S: Serializer>(time: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(time)
}

fn as_optional_text<S: Serializer>(time: &Option<Timestamp>, serializer: S) -> Result<S::Ok, S::Error> {
    match time {
        Some(time) => serializer.collect_str(time),
        None => serializer.serialize_none(),
    }
}

fn from_text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Timestamp, D::Error> {
    String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
}

fn from_optional_text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Timestamp>, D::Error> {
    from_text(deserializer).map(Some)
}

/// Keeps events for those who ask later.
pub type Keeper = Box<dyn Fn(&Event) + Send + Sync>;

/// Where everything that can be seen goes. Clones share it.
#[derive(Clone, Debug)]
pub struct Observer(Arc<Inner>);

struct Inner {
    keeper: OnceLock<Keeper>,
    /// Set where the log is JSON: how it shows addresses.
    json: OnceLock<Mask>,
    metrics: Metrics,
    registry: Registry,
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Observer").field("metrics", &self.metrics).finish_non_exhaustive()
    }
}

impl Default for Observer {
    fn default() -> Self {
        let (metrics, registry) = Metrics::registered();
        let inner = Inner { keeper: OnceLock::new(), json: OnceLock::new(), metrics, registry };
        Self(Arc::new(inner))
    }
}

impl Observer {
    /// The counters.
    pub fn metrics(&self) -> &Metrics {
        &self.0.metrics
    }

    /// All metrics as OpenMetrics has them.
    pub fn render_metrics(&self) -> String {
        let mut out = String::new();
        let _ = text::encode(&mut out, &self.0.registry);
        out
    }

    /// The same in Prometheus' own text form (0.0.4): counters are declared by the name that they have,
    /// and nothing marks the end.
    pub fn render_prometheus(&self) -> String {
        let metrics = self.render_metrics();
        let (mut out, mut help) = (String::with_capacity(metrics.len()), None);
        for line in metrics.lines() {
            if let Some(rest) = line.strip_prefix("# HELP ") {
                help = rest.split_once(' ');
            } else if let Some(rest) = line.strip_prefix("# TYPE ") {
                let end = if rest.ends_with(" counter") { "_total" } else { "" };
                let (name, kind) = rest.split_once(' ').unwrap_or((rest, "untyped"));
                if let Some((_, words)) = help.take() {
                    let _ = writeln!(out, "# HELP {name}{end} {words}");
                }
                let _ = writeln!(out, "# TYPE {name}{end} {kind}");
            } else if !line.starts_with('#') {
                let _ = writeln!(out, "{line}");
            }
        }
        out
    }

    /// Names who keeps events. There is one; the first stays.
    pub fn keep_by(&self, keeper: Keeper) {
        let _ = self.0.keeper.set(keeper);
    }

    /// Has events told as JSON, with their addresses masked. The first mask stays.
    pub fn say_json(&self, mask: Mask) {
        let _ = self.0.json.set(mask);
    }

    /// Puts it in the log alone.
    pub fn say(&self, event: &Event) {
        if !tracing::enabled!(target: MAIL, tracing::Level::INFO) {
            return;
        }
        match self.0.json.get() {
            Some(mask) => {
                let object = event.masked(mask).octets();
                tracing::info!(target: MAIL, "{}", String::from_utf8_lossy(&object));
            }
            None => tracing::info!(target: MAIL, "{}", event.line()),
        }
    }

    /// Tells what happened.
    pub fn emit(&self, event: Event) {
        self.say(&event);
        Counts::one_more(&self.0.metrics.counts.events);
        if let Some(keep) = self.0.keeper.get() {
            keep(&event);
        }
    }
}

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
    fn registered() -> (Self, Registry) {
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
        r.register("upstream_up", "1 while the upstream takes mail", metrics.upstream_up.clone());
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_bear_the_names_of_the_contract() {
        let observer = Observer::default();
        observer.metrics().received(Received::accepted);
        observer.metrics().delivery("up", Delivery::delivered);
        observer.metrics().queue_messages.get_or_create(&StateLabels { state: "held" }).set(3);
        let text = observer.render_metrics();
        for line in [
            "outpost_received_total{result=\"accepted\"} 1",
            "outpost_deliveries_total{upstream=\"up\",result=\"delivered\"} 1",
            "outpost_queue_messages{state=\"held\"} 3",
        ] {
            assert!(text.contains(line), "{line} is not in:\n{text}");
        }
    }

    #[test]
    fn no_value_can_forge_a_field_or_a_line_of_the_log() {
        let event = Event {
            sender: Some(String::new()),
            reply: Some("550 no\r\n\u{1b}[2J id=forged".to_owned()),
            ..Event::new(Timestamp(0), EventKind::Bounced, "ID")
        };
        assert_eq!(event.line(), r#"bounced id=ID sender="" reply="550 no\r\n\u{1b}[2J id=forged""#);
    }

    /// Takes a line of the log apart as whoever reads it would: by blanks, but for those in quotes.
    fn fields(line: &str) -> Vec<(String, String)> {
        let (mut fields, mut rest) = (Vec::new(), line.split_once(' ').map_or("", |(_, rest)| rest));
        while let Some((name, behind)) = rest.split_once('=') {
            let end = match behind.strip_prefix('"') {
                Some(quoted) => {
                    let mut escaped = false;
                    let end = quoted.find(|c| {
                        let was = std::mem::take(&mut escaped);
                        escaped = c == '\\' && !was;
                        c == '"' && !was
                    });
                    end.expect("quotes are closed") + 2
                }
                None => behind.find(' ').unwrap_or(behind.len()),
            };
            fields.push((name.to_owned(), behind[..end].to_owned()));
            rest = behind[end..].trim_start_matches(' ');
        }
        assert!(rest.is_empty(), "{rest:?} belongs to no field");
        fields
    }

    proptest::proptest! {
        /// Whatever a client or an upstream said, and whatever of it got through: in both forms of an event.
        #[test]
        fn an_event_is_one_line_with_its_own_fields_whatever_stands_in_them(
            values in proptest::collection::vec("(\\PC|[\u{0}-\u{ff}\u{2028}\u{202e}]|[ =\"\\\\\r\n]|id=x){0,12}", 7),
        ) {
            let [sender, recipient, upstream, reply, client, user, message_id] =
                <[String; 7]>::try_from(values.clone()).unwrap().map(Some);
            let event = Event {
                sender, recipient, upstream, reply, client, user, message_id,
                ..Event::new(Timestamp(0), EventKind::Rejected, "ID")
            };
            let line = event.line();
            proptest::prop_assert!(line.chars().all(|c| c == ' ' || c == '\'' || c == '"' || c == '\\' || c.escape_debug().len() == 1), "{line:?}");
            let names = ["id", "sender", "recipient", "upstream", "reply", "client", "user", "message_id"];
            let written = fields(&line);
            proptest::prop_assert_eq!(written.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), names);
            for ((_, written), value) in written[1..].iter().zip(&values) {
                let same = written == value || *written == format!("{value:?}");
                proptest::prop_assert!(same, "{:?} was {:?}", written, value);
            }

            let json = serde_json::to_string(&event).unwrap();
            proptest::prop_assert!(!json.contains(['\n', '\r']), "{json:?}");
            let read: Event = serde_json::from_str(&json).unwrap();
            proptest::prop_assert_eq!(read.line(), line);
        }
    }

    #[test]
    fn what_is_kept_of_an_event_is_read_back_as_it_was() {
        let kept = Arc::new(std::sync::Mutex::new(Vec::new()));
        let observer = Observer::default();
        let keeper = Arc::clone(&kept);
        observer.keep_by(Box::new(move |event| {
            keeper.lock().unwrap().push(serde_json::to_vec(event).unwrap());
        }));
        let event = Event {
            next_attempt: Some(Timestamp(1_340_000_000_123)),
            uncertain: true,
            tls: Some("TLSv1.3".to_owned()),
            ..Event::new(Timestamp(1_340_000_000_001), EventKind::Deferred, "ID")
        };
        observer.emit(event.clone());
        let read: Event = serde_json::from_slice(&kept.lock().unwrap()[0]).unwrap();
        assert_eq!((read.time, read.line()), (event.time, event.line()));
    }

    #[test]
    fn events_hold_only_what_applies() {
        let event = Event::new(Timestamp(0), EventKind::Held, "ID");
        let json = serde_json::to_string(&event).unwrap();
        assert_eq!(json, r#"{"time":"1970-01-01T00:00:00.000Z","event":"held","id":"ID"}"#);
    }
}
