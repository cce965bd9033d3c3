//! The log for programs: one JSON object a line. What happened to a message is the event as the API has
//! it; all else is `time`, `level`, `target`, `message` and its fields.

use std::fmt::{self, Debug};

use serde_json::{Map, Value};
use tracing::{Event, field};
use tracing_subscriber::fmt::format::Writer;

use super::{MAIL, mask::Mask};
use crate::clock::Clock;

/// Writes a line as an object, with addresses masked.
pub(super) fn write(mask: &Mask, clock: &Clock, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
    let fields = |mask| {
        let mut fields = Fields { mask, found: Map::new() };
        event.record(&mut fields);
        fields.found
    };
    let meta = event.metadata();
    // An event was masked before it was written as JSON.
    if meta.target() == MAIL
        && let Some(Value::String(object)) = fields(None).get("message")
        && object.starts_with('{')
    {
        return writeln!(writer, "{object}");
    }
    let mut line = Map::new();
    line.insert("time".to_owned(), clock.now().to_string().into());
    line.insert("level".to_owned(), meta.level().as_str().to_ascii_lowercase().into());
    line.insert("target".to_owned(), meta.target().into());
    line.extend(fields(Some(mask)));
    writeln!(writer, "{}", Value::Object(line))
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
