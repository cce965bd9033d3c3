//! What the outside can see: events and metrics, each named once.
//!
//! An event is one thing that happened to one message. It becomes a line of the log, and goes to whoever
//! keeps the history.

pub mod json;
pub mod mask;
mod metrics;
pub mod output;
pub mod style;
pub mod trend;

use std::{
    fmt::{Display, Write as _},
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
};

use prometheus_client::{encoding::text, registry::Registry};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

pub use self::metrics::{
    Delivery, LimitLabels, Metrics, Received, Rejection, StateLabels, Told, UpstreamLabels,
};
use self::{mask::Mask, style::Styles, trend::Counts};
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
            let plain = |c: char| {
                c.is_ascii_alphanumeric() || c == '\'' || !c.is_whitespace() && c.escape_debug().len() == 1
            };
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

/// Addresses as an event has them: the first, and how many there are.
pub fn some_of(addresses: impl Iterator<Item = impl Display>) -> String {
    const SHOWN: usize = 10;
    let (mut text, mut all) = (String::new(), 0);
    for address in addresses {
        if all < SHOWN {
            let _ = write!(text, "{}{address}", if all == 0 { "" } else { "," });
        }
        all += 1;
    }
    if all > SHOWN {
        let _ = write!(text, ",… {all} in all");
    }
    text
}

/// Keeps events for those who ask later.
pub type Keeper = Box<dyn Fn(&Event) + Send + Sync>;

/// Where everything that can be seen goes. Clones share it.
#[derive(Clone, Debug)]
pub struct Observer(Arc<Inner>);

struct Inner {
    keeper: OnceLock<Keeper>,
    styles: Styles,
    metrics: Metrics,
    registry: Registry,
    looking: Mutex<()>,
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Observer").field("metrics", &self.metrics).finish_non_exhaustive()
    }
}

impl Default for Observer {
    fn default() -> Self {
        let (metrics, registry) = Metrics::registered();
        let looking = Mutex::default();
        let inner = Inner { keeper: OnceLock::new(), styles: Styles::default(), metrics, registry, looking };
        Self(Arc::new(inner))
    }
}

impl Observer {
    /// The counters.
    pub fn metrics(&self) -> &Metrics {
        &self.0.metrics
    }

    /// For whoever sets what is a state at one moment and then renders it: one at a time, so that none sees what
    /// another has forgotten and not set yet.
    pub fn look(&self) -> MutexGuard<'_, ()> {
        self.0.looking.lock().unwrap_or_else(PoisonError::into_inner)
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

    /// How the log looks; whoever stores another changes it.
    pub fn styles(&self) -> Styles {
        Arc::clone(&self.0.styles)
    }

    /// Puts it in the log alone.
    pub fn say(&self, event: &Event) {
        if !tracing::enabled!(target: MAIL, tracing::Level::INFO) {
            return;
        }
        let style = self.0.styles.load();
        if style.json {
            let object = event.masked(&style.mask).octets();
            tracing::info!(target: MAIL, "{}", String::from_utf8_lossy(&object));
        } else {
            tracing::info!(target: MAIL, "{}", event.line());
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
