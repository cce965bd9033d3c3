//! Rules about what an upstream's replies mean: the shipped table and the operator's own, in one form.
//!
//! Reading them is here; which rule fits a reply, and what follows, is delivery's.

use std::{path::Path, sync::LazyLock, time::Duration};

use regex::{Regex, RegexBuilder};

use super::{
    Role,
    keys::{self, Key, key},
    node::{At, Document, Id, Kind},
    reader::{Place, Reader, Surroundings, Value},
    value::{self, Read, Wrong},
};
use crate::mail::outcome::{Scope, Slower, Who};

/// The table that is shipped.
const SHIPPED: &str = include_str!("replies.yml");
/// A compiled pattern may have so many octets; the shipped ones have a tenth of it.
const PATTERN_MAX: usize = 256 * 1024;
/// The longest wait that a reply's text may ask for.
const WAIT_MAX: Duration = Duration::from_secs(24 * 3600);

/// One rule. What is empty fits everything.
#[derive(Clone, Debug)]
pub struct ReplyRule {
    /// What people call it.
    pub name: String,
    /// Presets' names.
    pub provider: Vec<String>,
    /// Phases, as people call them.
    pub phase: Vec<&'static str>,
    /// Codes, their first and last.
    pub code: Vec<(u16, u16)>,
    /// Enhanced codes, `None` in place of any number; an empty option stands for a reply without one.
    pub enhanced: Vec<Option<[Option<u16>; 3]>>,
    /// What the reply's text has.
    pub text: Option<Regex>,
    /// Only where another recipient of the transaction was accepted.
    pub after_accepted: bool,
    /// How far it reaches; `None`: as the phase has it.
    pub scope: Option<Scope>,
    /// How final it is; `None`: as the reply's first digit has it. Only a recipient or a message can
    /// be refused for good.
    pub permanent: Option<bool>,
    /// How many tries are worth it, where the upstream says "not now" of what it will never take. Only of a
    /// recipient or a message.
    pub tries: Option<u32>,
    /// Who can do something about it.
    pub who: Who,
    /// What it means, in plain words.
    pub means: String,
    /// What to do.
    pub help: Option<String>,
    /// How long to wait, unless the reply's text says it.
    pub wait: Option<ReplyWait>,
    /// What the upstream wants less of.
    pub slower: Option<Slower>,
    /// Where that is written.
    pub source: String,
    /// When it was written down here.
    pub date: String,
}

/// How long a rule waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplyWait {
    /// So long.
    For(Duration),
    /// To the next full hour.
    NextHour,
}

/// All rules that hold for one upstream: its operator's first, then the shipped ones.
#[derive(Clone, Debug, Default)]
pub struct Replies {
    own: Vec<ReplyRule>,
}

impl Replies {
    /// The rules in the order in which they are asked.
    pub fn rules(&self) -> impl Iterator<Item = &ReplyRule> {
        self.own.iter().chain(&TABLE.rules)
    }

    /// How long the reply's own text asks to wait: by the groups of `rule`'s pattern, or by one of the
    /// usual phrases.
    pub fn asked_wait(&self, rule: Option<&ReplyRule>, text: &str) -> Option<Duration> {
        let own = rule.and_then(|rule| rule.text.as_ref());
        own.into_iter().chain(&TABLE.waits).find_map(|pattern| captured_wait(pattern, text))
    }
}

fn captured_wait(pattern: &Regex, text: &str) -> Option<Duration> {
    let found = pattern.captures(text)?;
    // The upstream chooses the number, and an operator's pattern may let it be of any length.
    let number =
        |unit: &str, seconds| Some(found.name(unit)?.as_str().parse::<u64>().ok()?.saturating_mul(seconds));
    let seconds = [number("hours", 3600), number("minutes", 60), number("seconds", 1)];
    let total = seconds.into_iter().flatten().fold(0, u64::saturating_add);
    (total > 0).then(|| Duration::from_secs(total).min(WAIT_MAX))
}

struct Table {
    rules: Vec<ReplyRule>,
    waits: Vec<Regex>,
}

/// Ours, so a mistake in it is found by the first test that runs, not by an operator.
static TABLE: LazyLock<Table> = LazyLock::new(|| shipped().expect("because the shipped table is tested"));

fn shipped() -> Result<Table, String> {
    let document = Document::parse(SHIPPED).map_err(|error| error.message)?;
    let around = Surroundings {
        document: &document,
        file: "replies.yml",
        base: Path::new(""),
        env: &|_| None,
        role: Role::Relay,
    };
    let home = At::default();
    let mut reader =
        Reader::new(around, keys::REPLIES, (home, Some(document.root())), "the table of replies", |_| true);
    let waits = reader.many(key!(keys::REPLIES, "waits"), pattern).unwrap_or_default();
    let rules = rules(&mut reader, key!(keys::REPLIES, "rules"));
    match reader.problems.first() {
        None => Ok(Table { rules, waits }),
        Some(problem) => Err(problem.to_string()),
    }
}

/// The operator's rules.
pub(super) fn replies(reader: &mut Reader<'_>) -> Replies {
    Replies { own: rules(reader, key!("smtp_relay_replies")) }
}

fn rules(reader: &mut Reader<'_>, key: &Key) -> Vec<ReplyRule> {
    let items = reader.items(key).unwrap_or_default();
    let mut rules = Vec::new();
    for item in items {
        let map = match item.value {
            Value::Node(id) if matches!(reader.around.document.node(id).kind, Kind::Map(_)) => id,
            Value::Node(_) => {
                reader.complain(key, &item, Wrong::Plain);
                continue;
            }
            Value::Text(_) => {
                let help = "write it in the file";
                reader.report(item.place, format!("{} can't come from a variable", item.name), Some(help));
                return rules;
            }
        };
        let mut inner = reader.inside(map, keys::REPLY, "a rule about replies");
        rules.extend(rule(&mut inner, map, rules.len() + 1));
        reader.absorb(inner);
    }
    rules
}

fn rule(reader: &mut Reader<'_>, map: Id, number: usize) -> Option<ReplyRule> {
    macro_rules! the {
        ($name:literal) => {
            key!(keys::REPLY, $name)
        };
    }
    let at = Place::File(reader.around.document.node(map).at);
    let name = reader.one(the!("name"), value::text).unwrap_or_else(|| format!("own rule {number}"));
    let provider = reader.many(the!("provider"), value::text).unwrap_or_default();
    let phase = reader.many(the!("phase"), phase).unwrap_or_default();
    let code = reader.many(the!("code"), code).unwrap_or_default();
    let enhanced = reader.many(the!("enhanced"), enhanced).unwrap_or_default();
    let text = reader.one(the!("text"), pattern);
    let after_accepted = reader.one(the!("after_accepted"), value::boolean).unwrap_or(false);
    let scope = reader.one(the!("scope"), scope);
    let permanent = reader.one(the!("permanent"), value::boolean);
    let tries = reader.one(the!("tries"), value::number(1..=1000));
    let who = reader.one(the!("who_must_act"), who);
    let means = reader.one(the!("means"), value::text);
    let help = reader.one(the!("help"), value::text);
    let wait = reader.one(the!("wait"), wait);
    let slower = reader.one(the!("slower"), slower);
    let source = reader.one(the!("source"), value::text).unwrap_or_default();
    let date = reader.one(the!("date"), value::text).unwrap_or_default();

    if means.is_none() && !reader.is_set(the!("means")) {
        reader.report(at.clone(), "this rule does not say what the reply means", Some("add `means: …`"));
    }
    if code.is_empty() && enhanced.is_empty() && text.is_none() && reader.problems.is_empty() {
        let help = "name a code, an enhanced code or a text";
        reader.report(at, "this rule would fit every reply", Some(help));
    }
    let can_bounce = matches!(scope, None | Some(Scope::Recipient | Scope::Message));
    for (key, set) in [(the!("permanent"), permanent == Some(true)), (the!("tries"), tries.is_some())] {
        if set && !can_bounce {
            let help = format!("set scope to message or recipient, or leave {} out", key.name);
            let place = reader.place(key);
            reader.report(place, "only a message or a recipient can be refused for good", Some(&help));
        }
    }
    Some(ReplyRule {
        name,
        provider,
        phase,
        code,
        enhanced,
        text,
        after_accepted,
        scope,
        permanent,
        tries: tries.map(|tries: u16| tries.into()),
        who: who.unwrap_or(Who::Operator),
        means: means?,
        help,
        wait,
        slower,
        source,
        date,
    })
}

/// The phases of a conversation with an upstream.
const PHASES: [(&str, &str); 11] = [
    ("connect", "connect"),
    ("greeting", "greeting"),
    ("ehlo", "EHLO"),
    ("starttls", "STARTTLS"),
    ("tls", "TLS"),
    ("auth", "AUTH"),
    ("mail", "MAIL"),
    ("rcpt", "RCPT"),
    ("data", "DATA"),
    ("content", "content"),
    ("final reply", "final reply"),
];

fn phase(text: &str) -> Read<&'static str> {
    value::word(text, &PHASES)
}

fn slower(text: &str) -> Read<Slower> {
    value::word(text, &[("rate", Slower::Rate), ("connections", Slower::Connections)])
}

fn scope(text: &str) -> Read<Scope> {
    value::word(
        text,
        &[
            ("recipient", Scope::Recipient),
            ("message", Scope::Message),
            ("transaction", Scope::Transaction),
            ("sender", Scope::Sender),
            ("credential", Scope::Credential),
            ("account", Scope::Account),
            ("upstream", Scope::Upstream),
            ("network", Scope::Network),
        ],
    )
}

fn who(text: &str) -> Read<Who> {
    value::word(text, &[Who::Operator, Who::Upstream, Who::Sender, Who::Nobody].map(|who| (who.name(), who)))
}

/// `550`, `45x`, `4xx`.
fn code(text: &str) -> Read<(u16, u16)> {
    let legal = text.len() == 3 && matches!(text.as_bytes()[0], b'2'..=b'5');
    let bound = |digit: &str| text.replace('x', digit).parse::<u16>().map_err(|_| Wrong::Plain);
    if legal { Ok((bound("0")?, bound("9")?)) } else { Err(Wrong::Plain) }
}

/// `5.4.5`, `x.4.5`, `none`.
fn enhanced(text: &str) -> Read<Option<[Option<u16>; 3]>> {
    if text == "none" {
        return Ok(None);
    }
    let mut numbers = text.split('.').map(|part| match part {
        "x" => Ok(None),
        number => number.parse().map(Some).map_err(|_| Wrong::Plain),
    });
    let mut next = || numbers.next().unwrap_or(Err(Wrong::Plain));
    let found = [next()?, next()?, next()?];
    if numbers.next().is_none() { Ok(Some(found)) } else { Err(Wrong::Plain) }
}

fn wait(text: &str) -> Read<ReplyWait> {
    if text == "hour" { Ok(ReplyWait::NextHour) } else { value::duration(text).map(ReplyWait::For) }
}

/// A regular expression, in any case.
pub(super) fn pattern(text: &str) -> Read<Regex> {
    RegexBuilder::new(text)
        .case_insensitive(true)
        .size_limit(PATTERN_MAX)
        .build()
        .map_err(|error| Wrong::Help(format!("this is no regular expression that can be used: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shipped_table_reads_and_each_rule_says_where_it_is_from() {
        let table = shipped().expect("it is right");
        assert!(table.rules.len() > 30 && table.waits.len() == 3);
        let mut names = std::collections::HashSet::new();
        for rule in &table.rules {
            assert!(names.insert(&rule.name), "{} stands twice", rule.name);
            assert!(!rule.source.is_empty() && rule.date.len() == 10, "{} has no source", rule.name);
        }
    }

    #[test]
    fn waits_are_read_from_the_words() {
        for (text, seconds) in [
            ("Too many messages. Try again in 92 seconds", Some(92)),
            ("greylisted, come back after 5 minutes please", Some(300)),
            ("please wait for 2 hours", Some(7200)),
            ("try again in 999999 seconds", Some(86_400)),
            ("try again in 0 seconds", None),
            ("in 2012 somebody said no", None),
        ] {
            let found = Replies::default().asked_wait(None, text).map(|wait| wait.as_secs());
            assert_eq!(found, seconds, "{text}");
        }
    }

    #[test]
    fn a_number_of_any_length_asks_for_a_day_at_most() {
        let pattern = pattern(r"wait (?<hours>\d+)h(?<minutes>\d+)m").expect("a pattern");
        for text in ["wait 18446744073709551615h18446744073709551615m", "wait 5124095576030432h1m"] {
            assert_eq!(captured_wait(&pattern, text), Some(WAIT_MAX), "{text}");
        }
        assert_eq!(captured_wait(&pattern, "wait 99999999999999999999h2m"), Some(Duration::from_secs(120)));
    }
}
