//! The log for programs: one JSON object a line. What happened to a message is the event as the API has
//! it; all else is `time`, `level`, `target`, `message` and its fields.

use std::fmt::{self, Debug};

use serde_json::{Map, Value};
use tracing::{Event, Subscriber, field};
use tracing_subscriber::{
    fmt::{FmtContext, FormatEvent, FormatFields, format::Writer},
    registry::LookupSpan,
};

use super::{MAIL, mask::Mask};
use crate::clock::Clock;

/// Writes each line as an object, with addresses masked.
#[derive(Debug)]
pub struct Lines {
    /// How addresses are shown.
    pub mask: Mask,
    /// The time.
    pub clock: Clock,
}

impl<S, N> FormatEvent<S, N> for Lines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let meta = event.metadata();
        // An event is masked before it is written as JSON.
        let is_mail = meta.target() == MAIL;
        let mut fields = Fields { mask: (!is_mail).then_some(&self.mask), found: Map::new() };
        event.record(&mut fields);
        if is_mail
            && let Some(Value::String(object)) = fields.found.get("message")
            && object.starts_with('{')
        {
            return writeln!(writer, "{object}");
        }
        let mut line = Map::new();
        line.insert("time".to_owned(), self.clock.now().to_string().into());
        line.insert("level".to_owned(), meta.level().as_str().to_ascii_lowercase().into());
        line.insert("target".to_owned(), meta.target().into());
        line.extend(fields.found);
        writeln!(writer, "{}", Value::Object(line))
    }
}

/// The fields of a line as JSON has them.
struct Fields<'m> {
    mask: Option<&'m Mask>,
    found: Map<String, Value>,
}

impl Fields<'_> {
    fn put(&mut self, field: &field::Field, value: impl Into<Value>) {
        self.found.insert(field.name().to_owned(), value.into());
    }
}

impl field::Visit for Fields<'_> {
    fn record_debug(&mut self, field: &field::Field, value: &dyn Debug) {
        self.record_str(field, &format!("{value:?}"));
    }

    fn record_str(&mut self, field: &field::Field, value: &str) {
        let masked = self.mask.map_or_else(|| value.to_owned(), |mask| mask.apply(value).into_owned());
        self.put(field, masked);
    }

    fn record_u64(&mut self, field: &field::Field, value: u64) {
        self.put(field, value);
    }

    fn record_i64(&mut self, field: &field::Field, value: i64) {
        self.put(field, value);
    }

    fn record_bool(&mut self, field: &field::Field, value: bool) {
        self.put(field, value);
    }

    fn record_f64(&mut self, field: &field::Field, value: f64) {
        self.put(field, value);
    }
}
