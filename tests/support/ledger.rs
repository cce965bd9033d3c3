//! What was promised about each entry of a queue, kept outside of it, and whether the queue has kept it.
//!
//! Before a verb a line says what the entry is about to become; when the queue has said that it is durable,
//! another line says so. After a crash the entry may be what was last durable, or anything that was begun since;
//! nothing else, and nothing that was never begun.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use outpost::mail::content::Content;
use outpost::queue::{Listed, Queue, QueueId};

/// What became of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Not there: not yet accepted, or it has left.
    Gone,
    /// It has left, and a report on it has come in the same moment.
    Reported,
    /// To be tried, after so many attempts.
    Queued(u32),
    /// Waits for an operator.
    Held(u32),
}

/// The fates of all entries.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    entries: BTreeMap<QueueId, Line>,
}

#[derive(Clone, Debug)]
struct Line {
    /// Of its content.
    size: u64,
    crc32c: u32,
    /// What may be found: first what is durable, then what was begun.
    fates: Vec<Fate>,
}

/// A line of the ledger: this entry is about to be accepted.
pub fn accepting(id: QueueId, content: &[u8]) -> String {
    format!("accept {id} {} {}\n", content.len(), crc32c::crc32c(content))
}

/// A line of the ledger: this is about to become of the entry.
pub fn begun(id: QueueId, fate: Fate) -> String {
    format!("begun {id} {fate}\n")
}

/// A line of the ledger: the queue said that this is durable.
pub fn durable(id: QueueId, fate: Fate) -> String {
    format!("durable {id} {fate}\n")
}

impl Ledger {
    /// Reads lines, and half a last one that was cut off.
    pub fn read(lines: &str) -> Self {
        let mut ledger = Self::default();
        for line in lines.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n')) {
            ledger.note(line);
        }
        ledger
    }

    /// Takes one line.
    pub fn note(&mut self, line: &str) {
        let words: Vec<&str> = line.split(' ').collect();
        let id: QueueId = words[1].parse().expect("a queue id");
        match words[0] {
            "accept" => {
                let size = words[2].parse().expect("a number");
                let crc32c = words[3].parse().expect("a number");
                self.entries.insert(id, Line { size, crc32c, fates: vec![Fate::Gone, Fate::Queued(0)] });
            }
            "begun" => self.line(id).fates.push(Fate::parse(&words[2..])),
            "durable" => {
                // The next verb may have begun before this line was written, and even be durable already.
                let fates = &mut self.line(id).fates;
                if let Some(at) = fates.iter().position(|fate| *fate == Fate::parse(&words[2..])) {
                    *fates = fates.split_off(at);
                }
            }
            other => panic!("no such line: {other}"),
        }
    }

    fn line(&mut self, id: QueueId) -> &mut Line {
        self.entries.get_mut(&id).expect("it was accepted first")
    }

    /// The lines to go on with after a crash, when [`Self::compare`] has found how each entry is.
    pub fn lines(&self) -> String {
        let mut lines = String::new();
        for (id, line) in &self.entries {
            lines.push_str(&format!("accept {id} {} {}\n", line.size, line.crc32c));
            lines.extend(line.fates.iter().map(|fate| begun(*id, *fate)));
            lines.push_str(&durable(*id, line.fates[0]));
        }
        lines
    }

    /// Whether this entry was to be accepted; reports were not.
    pub fn knows(&self, id: QueueId) -> bool {
        self.entries.contains_key(&id)
    }

    /// Entries that were to be accepted.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Entries that must be there, whatever happened.
    pub fn certain(&self) -> usize {
        let there = |fate: &Fate| matches!(fate, Fate::Queued(_) | Fate::Held(_));
        self.entries.values().filter(|line| line.fates.iter().all(there)).count()
    }

    /// Looks at every entry of the queue: what was promised and isn't so. What is found is then taken as durable.
    pub async fn compare(&mut self, queue: &Queue) -> Vec<String> {
        let mut broken = Vec::new();
        let listed = all(queue).await;
        let mut found: BTreeMap<QueueId, Fate> = BTreeMap::new();
        let mut reported: BTreeSet<QueueId> = BTreeSet::new();
        let mut octets = 0;
        for item in &listed {
            octets += item.size;
            let Some(entry) = &item.entry else {
                broken.push(format!("{}: damaged", item.id));
                continue;
            };
            let whole = queue.content(item.id).await.expect("the queue can be read").map(|c| read(&c));
            let subject = entry.subject.as_deref().unwrap_or_default();
            if let Some(on) = subject.strip_prefix("Report on ") {
                let on: QueueId = on.parse().expect("a queue id");
                if whole != Some(report(on)) {
                    broken.push(format!("{}: the report on {on} is not whole", item.id));
                }
                if !reported.insert(on) {
                    broken.push(format!("{on}: reported twice"));
                }
                continue;
            }
            let attempts = entry.recipients[0].attempts;
            let held = entry.held.is_some();
            found.insert(item.id, if held { Fate::Held(attempts) } else { Fate::Queued(attempts) });
            match (self.entries.get(&item.id), whole) {
                (None, _) => broken.push(format!("{}: it was never to be accepted", item.id)),
                (Some(_), None) => broken.push(format!("{}: its content is lost or damaged", item.id)),
                (Some(line), Some(whole))
                    if (whole.len() as u64, crc32c::crc32c(&whole)) != (line.size, line.crc32c) =>
                {
                    broken.push(format!("{}: its content is another", item.id));
                }
                _ => {}
            }
        }
        for (id, line) in &mut self.entries {
            let is = match (found.get(id), reported.contains(id)) {
                (Some(fate), false) => *fate,
                (None, true) => Fate::Reported,
                (None, false) => Fate::Gone,
                (Some(_), true) => {
                    broken.push(format!("{id}: reported, and still there"));
                    continue;
                }
            };
            if !line.fates.contains(&is) {
                broken.push(format!("{id}: {is}, but promised was {:?}", line.fates));
            }
            line.fates = vec![is];
        }
        let depth = queue.depth().await.expect("the queue can be read");
        if (depth.messages, depth.octets) != (listed.len() as u64, octets) {
            broken.push(format!("{depth:?} is counted, {} with {octets} octets are there", listed.len()));
        }
        broken
    }
}

impl Fate {
    fn parse(words: &[&str]) -> Self {
        let attempts = || words[1].parse().expect("a number");
        match words[0] {
            "gone" => Self::Gone,
            "reported" => Self::Reported,
            "queued" => Self::Queued(attempts()),
            "held" => Self::Held(attempts()),
            other => panic!("no such fate: {other}"),
        }
    }
}

impl fmt::Display for Fate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gone => f.write_str("gone"),
            Self::Reported => f.write_str("reported"),
            Self::Queued(attempts) => write!(f, "queued {attempts}"),
            Self::Held(attempts) => write!(f, "held {attempts}"),
        }
    }
}

/// All entries, page by page.
pub async fn all(queue: &Queue) -> Vec<Listed> {
    let mut items: Vec<Listed> = Vec::new();
    loop {
        let after = items.last().map(|item| item.id);
        let page = queue.list(after, 100).await.expect("the queue can be read");
        if page.is_empty() {
            return items;
        }
        items.extend(page);
    }
}

/// The octets of a content.
pub fn read(content: &Content) -> Vec<u8> {
    match content {
        Content::Memory(octets) => octets.to_vec(),
        Content::File { path, .. } => std::fs::read(path).unwrap_or_default(),
    }
}

/// A content of about this size that no other message has, in lines; no two of its blocks are alike.
pub fn content(number: u64, size: usize) -> Vec<u8> {
    let mut octets = format!("Subject: {number}\r\n\r\n").into_bytes();
    let mut dice = fastrand::Rng::with_seed(number);
    while octets.len() < size {
        octets.extend_from_slice(format!("{:016x} {}\r\n", dice.u64(..), "=".repeat(400)).as_bytes());
    }
    octets
}

/// The content of a report.
pub fn report(on: QueueId) -> Vec<u8> {
    format!("Subject: Report on {on}\r\n\r\nIt could not be delivered.\r\n").into_bytes()
}
