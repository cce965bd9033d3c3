//! Variables as text: JSON, YAML, dotenv, shell; and back, for what is merged.
//!
//! Values that others put into a file are kept as they are, strings or not. Of YAML, that means their
//! meaning; comments and layout there are lost.

use std::{
    fmt::{self, Write as _},
    path::Path,
};

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::Value;

/// How variables are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// One object, as in `environment.json`.
    Json,
    /// One flat map, all values quoted.
    Yaml,
    /// `NAME=value` lines that dotenv readers and `sh` understand alike.
    Dotenv,
    /// `export NAME='value'` lines for `eval`.
    Shell,
}

impl Format {
    /// The format that a file's ending asks for.
    pub fn of(path: &Path) -> Option<Self> {
        let name = path.file_name()?.to_str()?;
        match name.rsplit_once('.')?.1 {
            "json" => Some(Self::Json),
            "yml" | "yaml" => Some(Self::Yaml),
            "env" => Some(Self::Dotenv),
            _ => None,
        }
    }
}

/// The variables' text in a format.
pub fn render(format: Format, variables: &[(String, String)]) -> String {
    let lines = |line: &dyn Fn(&str, &str) -> String| -> String {
        variables.iter().map(|(name, value)| line(name, value)).collect()
    };
    match format {
        Format::Json | Format::Yaml => {
            let strings = variables.iter().map(|(name, value)| (name.clone(), Value::from(value.as_str())));
            render_values(format, &strings.collect::<Vec<_>>())
        }
        Format::Dotenv => lines(&|name, value| format!("{name}={}\n", dotenv_quoted(value))),
        Format::Shell => lines(&|name, value| format!("export {name}='{}'\n", value.replace('\'', r"'\''"))),
    }
}

/// An object or a flat map, in the order given.
pub(super) fn render_values(format: Format, values: &[(String, Value)]) -> String {
    let entries = values.iter().map(|(name, value)| {
        let value = match value {
            Value::String(text) => quoted(text),
            // JSON is YAML, too.
            other => other.to_string(),
        };
        (quoted(name), value)
    });
    match format {
        Format::Json if values.is_empty() => "{}\n".to_owned(),
        Format::Json => {
            let lines: Vec<_> = entries.map(|(name, value)| format!("  {name}: {value}")).collect();
            format!("{{\n{}\n}}\n", lines.join(",\n"))
        }
        _ => entries.map(|(name, value)| format!("{name}: {value}\n")).collect(),
    }
}

/// A string as JSON and YAML both read it.
fn quoted(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            // YAML 1.1 takes some of these for line breaks.
            c if c.is_control() || matches!(c, '\u{2028}' | '\u{2029}' | '\u{feff}') => {
                // Writing to a string can't fail.
                let _ = write!(quoted, "\\u{:04x}", u32::from(c));
            }
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

/// Bare where it can be, since some readers take quotes literally; single quotes where they do, since
/// nothing in them is special; else double quotes, whose escapes `sh` and dotenv readers share.
fn dotenv_quoted(value: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-.,:/@%+=".contains(c);
    if !value.is_empty() && value.chars().all(plain) {
        return value.to_owned();
    }
    if !value.contains('\'') {
        return format!("'{value}'");
    }
    let mut quoted = String::from("\"");
    for c in value.chars() {
        if matches!(c, '"' | '\\' | '$' | '`') {
            quoted.push('\\');
        }
        quoted.push(c);
    }
    quoted + "\""
}

/// The entries of a JSON object or a YAML map, in their order.
#[derive(Default)]
pub(super) struct Entries(pub(super) Vec<(String, Value)>);

impl Entries {
    /// Reads an existing file's text; `None` when it is none. A blank file has no entries.
    pub(super) fn parse(format: Format, text: &str) -> Option<Self> {
        if text.trim().is_empty() {
            return Some(Self::default());
        }
        match format {
            Format::Json => serde_json::from_str(text).ok(),
            _ => serde_saphyr::from_str(text).ok(),
        }
    }
}

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct InOrder;
        impl<'de> Visitor<'de> for InOrder {
            type Value = Entries;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entries, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Entries(entries))
            }
        }
        deserializer.deserialize_map(InOrder)
    }
}
