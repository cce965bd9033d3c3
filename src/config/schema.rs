//! A JSON Schema of `dotcloud.yml`, for editors that complete and check while one types.
//!
//! Made of the table of keys: what a value is there said in words becomes a type here. It refuses less than
//! [`super::load()`] does, never more: what one key demands of another, editors can't see.

use serde_json::{Map, Value, json};

use super::{
    Role,
    keys::{DKIM, KEYS, Key, LISTENER, OAUTH, RELAY, REPLY, USER},
};

/// What the settings read as text; YAML takes some of it for a number.
const TEXT: [&str; 2] = ["string", "number"];
const DURATION: &str = "([0-9]+ *(ms|s|min|m|h|d|w) *)+";

/// The schema (draft 7, which every editor knows).
pub fn schema() -> Value {
    json!({
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "dotcloud.yml",
        "description": "Services, and the settings of Outpost in their `config`",
        "type": "object",
        "additionalProperties": {
            "if": {"type": "object", "properties": {"type": {"const": "smtp"}}, "required": ["type"]},
            "then": {"properties": {"config": {"$ref": "#/definitions/relay"}}},
            "else": {"properties": {"config": {"$ref": "#/definitions/local"}}},
        },
        "definitions": {"relay": relay(), "local": local(), "keys": keys()},
    })
}

/// The `config` of a service of `type: smtp`.
fn relay() -> Value {
    let mut config = object(KEYS, Role::Relay);
    config["description"] = "A relay: a service of type: smtp".into();
    config
}

/// The `config` of another service, which may have a local MTA beside settings of its own software.
fn local() -> Value {
    let mut config = object(KEYS, Role::LocalMta);
    let ours: Vec<&String> = config["properties"].as_object().into_iter().flat_map(Map::keys).collect();
    let names = json!({"anyOf": [{"not": {"pattern": "^smtp_"}}, {"enum": ours}]});
    config["propertyNames"] = names;
    config["additionalProperties"] = true.into();
    config["type"] = json!(["object", "null"]);
    config
}

/// What each key takes, once, wherever it may stand.
fn keys() -> Value {
    Value::Object(KEYS.iter().map(|key| (key.name.to_owned(), described(key))).collect())
}

/// A map of these keys and no others.
fn object(keys: &[Key], role: Role) -> Value {
    let (mut properties, mut alternatives) = (Map::new(), Vec::new());
    for key in keys {
        let value = match KEYS.iter().any(|known| known.name == key.name) {
            true => json!({"$ref": format!("#/definitions/keys/{}", key.name)}),
            false => described(key),
        };
        for name in key.names(role) {
            properties.insert(name.to_owned(), value.clone());
            if key.secret {
                let file = format!("{name}_file");
                let words = format!("The file that holds {name}.");
                properties.insert(file.clone(), json!({"type": "string", "description": words}));
                alternatives.push(json!({"not": {"required": [name, file]}}));
            }
        }
    }
    let mut object = json!({"type": "object", "properties": properties, "additionalProperties": false});
    if !alternatives.is_empty() {
        object["allOf"] = alternatives.into();
    }
    object
}

fn described(key: &Key) -> Value {
    let mut value = value(key);
    let mut words = format!("{} A value is {}.", key.doc, key.wants);
    if key.default != "none" {
        words.push_str(&format!(" Default: {}.", key.default));
    }
    if key.restart {
        words.push_str(" A change waits for the next start.");
    }
    value["description"] = words.trim_start().into();
    value
}

/// What a key takes: maps of keys by their own tables, all else by the words for it.
fn value(key: &Key) -> Value {
    let map = |keys| object(keys, Role::Relay);
    match key.name {
        "smtp_listen" => one_or_many(json!({"anyOf": [{"type": "string"}, map(LISTENER)]})),
        "smtp_users" => json!({"type": "object", "additionalProperties": map(USER)}),
        "smtp_relays" => one_or_many(map(RELAY)),
        "smtp_relay_replies" => one_or_many(map(REPLY)),
        "smtp_relay_oauth" => map(OAUTH),
        "smtp_dkim" => one_or_many(map(DKIM)),
        "smtp_sender_rewrite" => {
            json!({"anyOf": [{"type": "string"}, {"type": "object", "additionalProperties": {"type": "string"}}]})
        }
        "proxy_protocol" => one_or_many(json!({"type": ["boolean", "string"]})),
        _ => match key.wants.split_once(", or a list of them") {
            Some((one, _)) => one_or_many(simple(one)),
            None if key.wants.contains("one of each family") || key.wants.starts_with("one or several") => {
                one_or_many(simple(key.wants))
            }
            None => simple(key.wants),
        },
    }
}

fn one_or_many(one: Value) -> Value {
    json!({"anyOf": [one, {"type": "array", "items": one, "minItems": 1}]})
}

/// A single value, by the words for it.
fn simple(wants: &str) -> Value {
    let pattern = |pattern: String| json!({"type": "string", "pattern": pattern});
    let choice = |words: &mut dyn Iterator<Item = &str>| {
        // YAML reads some of them as something else than text.
        let both = words.flat_map(|word| {
            let read = serde_json::from_str(word).ok().filter(|value: &Value| !value.is_string());
            [Some(Value::from(word)), read]
        });
        json!({"enum": both.flatten().collect::<Vec<_>>()})
    };
    if let Some(words) = wants.strip_prefix("one of ") {
        return choice(&mut words.split(", "));
    }
    if let Some(range) = wants.strip_prefix("a number ").or_else(|| wants.strip_prefix("a port ")) {
        let numbers: Vec<u64> = range.split(' ').filter_map(|word| word.parse().ok()).collect();
        return match numbers[..] {
            [least, most] => {
                json!({"type": ["integer", "string"], "minimum": least, "maximum": most, "pattern": "^[0-9]+$"})
            }
            _ => json!({"type": ["integer", "string"], "minimum": 1, "pattern": "^[0-9]+$"}),
        };
    }
    match wants {
        "a duration" => pattern(format!("^{DURATION}$")),
        "a duration, or never" => {
            json!({"anyOf": [pattern(format!("^({DURATION}|never|0)$")), {"const": 0}]})
        }
        "two durations, the first and the longest wait" => pattern(format!("^{DURATION}\\.\\.{DURATION}$")),
        "a limit" => pattern("^ *[0-9]+ *[A-Za-z]* */".to_owned()),
        "a port" => json!({"type": ["integer", "string"], "minimum": 1, "maximum": 65535}),
        size if size.starts_with("a size") => {
            json!({"type": ["integer", "string"], "minimum": 0, "pattern": "^ *[0-9]+ *([KkMmGgTt]([Ii]?[Bb])?|[Bb])? *$"})
        }
        // Two words to choose from.
        two => match two.split_once(" or ") {
            Some((one, other)) if !one.contains(' ') && !other.contains(' ') => {
                choice(&mut [one, other].into_iter())
            }
            _ => json!({"type": TEXT}),
        },
    }
}
