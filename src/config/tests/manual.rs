//! What is made of the table of keys: the tables of the manual, and the schema for editors. With `UPDATE_MANUAL=1` the
//! files are written; without, they must be what would be.

use std::{fs, path::Path};

use super::{read, relay};
use crate::config::{KEYS, Key, keys, schema};

/// The tables of docs/configuration.md, by their marks: the first key of each.
const TABLES: [(&str, &str); 4] = [
    ("upstream", "smtp_relay_server"),
    ("listener", "smtp_listen"),
    ("queue", "smtp_queue"),
    ("outside", "smtp_environment_file"),
];

/// The tables of the maps that keys hold, by their marks.
const MAPS: [(&str, &[Key]); 6] = [
    ("smtp_listen", keys::LISTENER),
    ("smtp_users", keys::USER),
    ("smtp_relays", keys::RELAY),
    ("smtp_relay_replies", keys::REPLY),
    ("smtp_relay_oauth", keys::OAUTH),
    ("smtp_dkim", keys::DKIM),
];

const HEAD: &str = "| key | meaning | a value is | default | example |\n|---|---|---|---|---|\n";

fn row(key: &Key) -> String {
    let names: Vec<String> =
        [Some(key.name), key.local].into_iter().flatten().map(|name| format!("`{name}`")).collect();
    let see = key.see.map(|link| format!(" See [{}]({link}).", link_name(link))).unwrap_or_default();
    let restart = if key.restart { " A change waits for the next start." } else { "" };
    let cells = [names.join(", "), format!("{}{restart}{see}", key.doc), key.wants.to_owned()];
    format!("| {} | {} | `{}` |\n", cells.join(" | "), key.default, key.example)
}

fn link_name(link: &str) -> &str {
    if link.starts_with('#') { "below" } else { link.split('#').next().unwrap_or(link) }
}

fn table(number: usize) -> String {
    let place = |name: &str| KEYS.iter().position(|key| key.name == name).expect("a key");
    let from = place(TABLES[number].1);
    let to = TABLES.get(number + 1).map_or(KEYS.len(), |(_, name)| place(name));
    KEYS[from..to].iter().map(row).fold(HEAD.to_owned(), |table, row| table + &row)
}

/// The keys that only this map has; the others have their row above.
fn map(keys: &[Key]) -> String {
    let own = keys.iter().filter(|key| KEYS.iter().all(|known| known.name != key.name));
    own.map(row).fold(HEAD.to_owned(), |table, row| table + &row)
}

/// The text with each part between two marks made anew.
fn made_anew(text: &str) -> String {
    let mut text = text.to_owned();
    let of_config = TABLES.iter().enumerate().map(|(number, (name, _))| (*name, table(number)));
    for (name, made) in of_config.chain(MAPS.iter().map(|(name, keys)| (*name, map(keys)))) {
        let begin = format!("<!-- made of src/config/keys.rs: {name} -->\n");
        let from = text.find(&begin).unwrap_or_else(|| panic!("no {begin}")) + begin.len();
        let to = from + text[from..].find("<!-- end -->").expect("an end");
        text.replace_range(from..to, &made);
    }
    text
}

fn is_up_to_date(path: &str, wanted: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    if std::env::var_os("UPDATE_MANUAL").is_some() {
        fs::write(&path, wanted).expect("it can be written");
    }
    let is = fs::read_to_string(&path).unwrap_or_default();
    let differs = is.lines().zip(wanted.lines()).find(|(is, wanted)| is != wanted);
    assert!(
        is == wanted,
        "{} is not what the table of keys says (UPDATE_MANUAL=1 cargo test --lib manual makes it so): {differs:?}",
        path.display()
    );
}

#[test]
fn the_manual_is_made_of_the_table_of_keys() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/configuration.md");
    let manual = fs::read_to_string(path).expect("the manual");
    is_up_to_date("docs/configuration.md", &made_anew(&manual));
    for key in KEYS.iter().chain(MAPS.iter().flat_map(|(_, keys)| *keys)) {
        assert!(!key.doc.is_empty() && !key.example.is_empty(), "{}", key.name);
    }
}

#[test]
fn the_schema_is_made_of_the_table_of_keys() {
    let pretty = serde_json::to_string_pretty(&schema()).expect("JSON") + "\n";
    is_up_to_date("schema/dotcloud.schema.json", &pretty);
}

/// A default that is a value, not words about one, is the one that holds: set in so many words it changes nothing.
#[test]
fn each_default_that_the_table_names_is_the_one_that_holds() {
    let keys = "smtp_relay_username: us\nsmtp_relay_password: sesame\n";
    let usual = format!("{:?}", read(&relay(keys)));
    let is_value = |key: &&Key| !key.default.contains(' ') && !matches!(key.default, "none" | "any");
    let mut compared = 0;
    for key in KEYS.iter().filter(is_value) {
        let said = format!("{keys}{}: {}\n", key.name, key.default);
        assert_eq!(format!("{:?}", read(&relay(&said))), usual, "{}: {}", key.name, key.default);
        compared += 1;
    }
    assert!(compared >= 35, "{compared}");
}
