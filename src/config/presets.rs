//! Providers' presets: what is known of an upstream before the first connection, and which mistakes
//! people make with its login.

use std::{path::Path, sync::LazyLock};

use regex::Regex;

use super::{
    Role,
    keys::{self, Key, key},
    limit::{Limit, limit},
    node::{At, Document, Kind},
    reader::{Reader, Surroundings, Value},
    replies::pattern,
    value::{self, Read, Wrong},
};

const SHIPPED: &str = include_str!("presets.yml");
/// Stands in a host's name for what the operator has to say.
const REGION: &str = "REGION";

/// What a provider documents. An empty list or option: nothing is known.
#[derive(Clone, Debug)]
#[allow(missing_docs)] // The head of presets.yml says what they are.
pub struct Preset {
    pub name: String,
    pub title: String,
    pub hosts: Vec<String>,
    pub host_pattern: Option<Regex>,
    pub ports: Vec<u16>,
    pub implicit: Vec<u16>,
    pub username: String,
    pub password: String,
    pub recipients: Option<usize>,
    pub size: Option<u64>,
    pub connections: Option<usize>,
    pub messages: Option<u64>,
    pub limits: Vec<String>,
    pub replaces: Vec<String>,
    pub mistakes: Vec<Mistake>,
    pub sender: Option<String>,
    pub gone: Option<String>,
    pub note: Option<String>,
    pub source: String,
    pub date: String,
}

/// What people do wrong with a login.
#[derive(Clone, Debug)]
pub struct Mistake {
    when: When,
    /// What is wrong.
    pub says: String,
    /// What to do.
    pub help: String,
}

#[derive(Clone, Debug)]
enum When {
    User(Regex, bool),
    Password(Regex, bool),
}

/// All presets, in the table's order.
pub fn presets() -> &'static [Preset] {
    &TABLE
}

/// The preset of that name. A name with a region, `ses-eu-west-1`, is `ses`.
pub fn preset(name: &str) -> Option<&'static Preset> {
    let exact = TABLE.iter().find(|preset| preset.name == name);
    exact.or_else(|| TABLE.iter().find(|preset| preset.region_in(name).is_some()))
}

/// The preset that this host belongs to.
pub(super) fn of_host(host: &str) -> Option<&'static Preset> {
    let host = host.trim_end_matches('.').to_ascii_lowercase();
    TABLE.iter().find(|preset| {
        preset.hosts.contains(&host)
            || preset.host_pattern.as_ref().is_some_and(|pattern| pattern.is_match(&host))
    })
}

impl Preset {
    /// The host to connect to, for a preset that was called `name`; `None` if it lacks its region.
    pub fn host(&self, name: &str) -> Option<String> {
        let host = self.hosts.first()?;
        if !host.contains(REGION) {
            return Some(host.clone());
        }
        self.region_in(name).map(|region| host.replace(REGION, region))
    }

    fn region_in<'n>(&self, name: &'n str) -> Option<&'n str> {
        let region = name.strip_prefix(self.name.as_str())?.strip_prefix('-')?;
        let legal = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        let has_region = self.hosts.first().is_some_and(|host| host.contains(REGION));
        (has_region && !region.is_empty() && region.chars().all(legal)).then_some(region)
    }

    /// Its documented limits.
    pub(super) fn limits(&self) -> impl Iterator<Item = Limit> {
        self.limits.iter().filter_map(|text| limit(text).ok())
    }

    /// What is known to be wrong with a login.
    pub fn mistakes<'p>(
        &'p self,
        username: &'p str,
        password: Option<&'p str>,
    ) -> impl Iterator<Item = (&'p Mistake, bool)> {
        self.mistakes.iter().filter_map(move |mistake| {
            let (found, about_password) = match &mistake.when {
                When::User(pattern, wanted) => (pattern.is_match(username) == *wanted, false),
                When::Password(pattern, wanted) => (pattern.is_match(password?) == *wanted, true),
            };
            found.then_some((mistake, about_password))
        })
    }
}

/// `smtp_relay_provider`.
pub(super) fn named(text: &str) -> Read<(&'static Preset, String)> {
    let name = text.to_ascii_lowercase();
    if let Some(preset) = preset(&name) {
        return Ok((preset, name));
    }
    let near = |preset: &&Preset| (strsim::jaro_winkler(&preset.name, &name) * 1000.0) as u32;
    let nearest = TABLE.iter().max_by_key(near).filter(|preset| near(preset) > 800);
    Err(match nearest {
        Some(preset) => Wrong::Help(format!("did you mean {}? `outpost presets` lists them", preset.name)),
        None => Wrong::Help("`outpost presets` lists them".to_owned()),
    })
}

/// Ours, so a mistake in it is found by the first test that runs, not by an operator.
static TABLE: LazyLock<Vec<Preset>> =
    LazyLock::new(|| shipped().expect("because the shipped table is tested"));

fn shipped() -> Result<Vec<Preset>, String> {
    let document = Document::parse(SHIPPED).map_err(|error| error.message)?;
    let around = Surroundings {
        document: &document,
        file: "presets.yml",
        base: Path::new(""),
        env: &|_| None,
        role: Role::Relay,
    };
    let root = (At::default(), Some(document.root()));
    let mut reader = Reader::new(around, keys::PRESETS, root, "the table of presets", |_| true);
    let found = maps(&mut reader, key!(keys::PRESETS, "presets"), keys::PRESET, read);
    match reader.problems.first() {
        None => Ok(found),
        Some(problem) => Err(problem.to_string()),
    }
}

/// The maps in a list, each read by `read`.
fn maps<T>(
    reader: &mut Reader<'_>,
    key: &Key,
    keys: &'static [Key],
    read: fn(&mut Reader<'_>) -> Option<T>,
) -> Vec<T> {
    if !reader.is_set(key) {
        return Vec::new();
    }
    let mut found = Vec::new();
    for item in reader.items(key).unwrap_or_default() {
        match item.value {
            Value::Node(id) if matches!(reader.around.document.node(id).kind, Kind::Map(_)) => {
                let mut inner = reader.inside(id, keys, "a preset");
                found.extend(read(&mut inner));
                reader.absorb(inner);
            }
            _ => reader.complain(key, &item, Wrong::Plain),
        }
    }
    found
}

fn read(reader: &mut Reader<'_>) -> Option<Preset> {
    macro_rules! the {
        ($name:literal) => {
            key!(keys::PRESET, $name)
        };
    }
    let port = value::number(1..=u16::MAX);
    Some(Preset {
        name: reader.one(the!("name"), value::text)?,
        title: reader.one(the!("title"), value::text)?,
        hosts: reader.many(the!("hosts"), value::text)?,
        host_pattern: reader.one(the!("host_pattern"), pattern),
        ports: reader.many(the!("ports"), &port)?,
        implicit: reader.many(the!("implicit"), &port).unwrap_or_default(),
        username: reader.one(the!("username"), value::text)?,
        password: reader.one(the!("password"), value::text)?,
        recipients: reader.one(the!("recipients"), value::number(1..=100_000)),
        size: reader.one(the!("size"), value::positive_size),
        connections: reader.one(the!("connections"), value::number(1..=1000)),
        messages: reader.one(the!("messages"), value::number(1..=u64::MAX)),
        limits: reader.many(the!("limits"), value::text).unwrap_or_default(),
        replaces: reader.many(the!("replaces"), value::text).unwrap_or_default(),
        mistakes: maps(reader, the!("mistakes"), keys::MISTAKE, mistake),
        sender: reader.one(the!("sender"), value::text),
        gone: reader.one(the!("gone"), value::text),
        note: reader.one(the!("note"), value::text),
        source: reader.one(the!("source"), value::text)?,
        date: reader.one(the!("date"), value::text)?,
    })
}

fn mistake(reader: &mut Reader<'_>) -> Option<Mistake> {
    let mut condition = |key: &Key| reader.one(key, pattern);
    let user = condition(key!(keys::MISTAKE, "user")).map(|pattern| When::User(pattern, true));
    let user_not = condition(key!(keys::MISTAKE, "user_not")).map(|pattern| When::User(pattern, false));
    let password = condition(key!(keys::MISTAKE, "password")).map(|pattern| When::Password(pattern, true));
    let password_not =
        condition(key!(keys::MISTAKE, "password_not")).map(|pattern| When::Password(pattern, false));
    Some(Mistake {
        when: user.or(user_not).or(password).or(password_not)?,
        says: reader.one(key!(keys::MISTAKE, "says"), value::text)?,
        help: reader.one(key!(keys::MISTAKE, "help"), value::text)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shipped_table_reads_and_each_preset_can_be_found() {
        let table = shipped().expect("it is right");
        for preset in &table {
            assert_eq!(super::preset(&preset.name).map(|found| &found.name), Some(&preset.name));
            assert!(!preset.source.is_empty() && preset.date.len() == 10, "{} has no source", preset.name);
            assert!(preset.implicit.iter().all(|port| preset.ports.contains(port)), "{}", preset.name);
        }
    }

    #[test]
    fn a_host_tells_its_preset() {
        for (host, name) in [
            ("smtp.mailgun.org", "mailgun"),
            ("SMTP.Gmail.com.", "gmail"),
            ("email-smtp.eu-west-1.amazonaws.com", "ses"),
            ("smtppro.zoho.eu", "zoho"),
            ("aws-smtp.critsend.com", "critsend"),
        ] {
            assert_eq!(of_host(host).map(|preset| preset.name.as_str()), Some(name), "{host}");
        }
        assert!(of_host("smtp.gmail.com.evil.example").is_none() && of_host("mailer").is_none());
    }

    #[test]
    fn a_region_is_part_of_the_name() {
        let host = |name: &str| preset(name).and_then(|preset| preset.host(name));
        assert_eq!(host("ses-eu-west-1").as_deref(), Some("email-smtp.eu-west-1.amazonaws.com"));
        assert_eq!(host("ses"), None);
        assert_eq!(host("mailgun-eu").as_deref(), Some("smtp.eu.mailgun.org"));
        assert!(preset("ses-").is_none() && preset("gmail-eu").is_none() && preset("ses-a.b").is_none());
    }
}
