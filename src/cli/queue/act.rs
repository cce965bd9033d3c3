//! What is done with messages: named by id at once, meant by a filter only after it was said how many
//! that are.

use std::io::{self, BufRead as _, IsTerminal as _};

use clap::Args;
use serde_json::json;

use super::super::{
    client::{Client, segment, with_query},
    exit::{Exit, Failure},
    output::{self, Bar},
};
use crate::admin::{
    Failed, Filter, NOT_HELD, Order, Outcome, people,
    view::{Item, List},
};

/// Messages that are named before somebody is asked.
const EXAMPLES: usize = 3;

#[derive(Debug, Args)]
pub(in crate::cli) struct Chosen {
    /// Queue ids
    #[arg(value_name = "ID")]
    ids: Vec<String>,
    #[command(flatten)]
    filter: Filter,
    /// All messages
    #[arg(long)]
    all: bool,
    /// Don't ask, however many a filter means
    #[arg(long, short)]
    yes: bool,
    /// Only say how many are meant
    #[arg(long)]
    dry_run: bool,
    /// For programs
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct Bounce {
    #[command(flatten)]
    chosen: Chosen,
    /// Why, for whoever reads the report
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
}

impl Bounce {
    pub(super) fn act(self, client: &Client) -> Result<(), Failure> {
        self.chosen.act(client, "bounce", self.reason)
    }
}

/// Which messages a filter means, before anything is done with them.
pub(super) struct Meant {
    pub(super) number: u64,
    examples: Vec<Item>,
}

impl Chosen {
    pub(super) fn act(self, client: &Client, action: &str, reason: Option<String>) -> Result<(), Failure> {
        let many = self.all || !self.filter.is_empty();
        match (many, self.ids.is_empty()) {
            (true, true) => self.on_many(client, action, reason),
            (false, false) => self.on_each(client, action, reason),
            _ => Err(Failure::new(
                Exit::USAGE,
                "name messages by id, or by a filter, or say --all; see --help",
            )),
        }
    }

    fn on_each(self, client: &Client, action: &str, reason: Option<String>) -> Result<(), Failure> {
        if self.dry_run {
            self.tell_number(self.ids.len() as u64);
            return Ok(());
        }
        let said = reason.map_or(json!({}), |reason| json!({ "reason": reason }));
        let mut outcome = Outcome::default();
        let mut first = None;
        for id in &self.ids {
            let path = format!("/api/v1/queue/{}/{action}", segment(id));
            match client.act(&with_query(&path, &said)) {
                Ok(done) if !self.json => output::say(format!("{}: {done}", people::printable(id))),
                Ok(done) => outcome.done += usize::from(done != NOT_HELD),
                // One that left meanwhile, or is on its way, doesn't keep the others from it.
                Err(failure) => {
                    outcome.failed.push(Failed { id: id.clone(), error: failure.words.clone() });
                    let words = format!("{}: {}", people::printable(id), failure.words);
                    first = first.or(Some(Failure { words, ..failure }));
                }
            }
        }
        if self.json {
            output::json(&outcome);
        }
        first.map_or(Ok(()), Err)
    }

    fn on_many(self, client: &Client, action: &str, reason: Option<String>) -> Result<(), Failure> {
        let meant = meant(client, &self.filter)?;
        if self.dry_run {
            self.tell_number(meant.number);
            return Ok(());
        }
        if meant.number == 0 {
            if self.json {
                output::json(&Outcome::default());
            } else {
                output::say("No message is meant.");
            }
            return Ok(());
        }
        if !self.yes && !is_agreed(action, &meant)? {
            return Err(Failure::new(Exit::USAGE, "nothing was done"));
        }
        let order = Order::new(action, &self.filter, self.filter.is_empty(), reason);
        let outcome = act_on_all(client, order, meant.number)?;
        if self.json {
            output::json(&outcome);
        } else {
            output::say(format!("{} {}", people::count(outcome.done as u64, "message"), done(action)));
            for Failed { id, error } in &outcome.failed {
                output::complain(&format!("{id}: {error}"));
            }
        }
        match outcome.failed.len() {
            0 => Ok(()),
            failed => {
                let words = format!("{} not {}", people::count(failed as u64, "message"), done(action));
                Err(Failure::new(Exit::TRY_AGAIN, words))
            }
        }
    }

    fn tell_number(&self, meant: u64) {
        match self.json {
            true => output::json(&json!({ "meant": meant })),
            false => output::say(format!("{} meant.", is_or_are(meant))),
        }
    }
}

/// Counts what a filter means, page by page.
pub(super) fn meant(client: &Client, filter: &Filter) -> Result<Meant, Failure> {
    let mut filter = Filter { limit: Some(1_000), ..filter.clone() };
    let mut meant = Meant { number: 0, examples: Vec::new() };
    loop {
        let page: List<Item> = client.get(&with_query("/api/v1/queue", &filter))?;
        meant.number += page.items.len() as u64;
        let room = EXAMPLES - meant.examples.len();
        meant.examples.extend(page.items.into_iter().take(room));
        filter.cursor = page.next;
        if filter.cursor.is_none() {
            return Ok(meant);
        }
    }
}

/// Asks whoever sits there; without anybody it is refused.
fn is_agreed(action: &str, meant: &Meant) -> Result<bool, Failure> {
    if !io::stdin().is_terminal() || !io::stderr().is_terminal() {
        let words = format!(
            "{} meant: say --yes to {action} so many without being asked, or --dry-run to see how many",
            is_or_are(meant.number)
        );
        return Err(Failure::new(Exit::USAGE, words));
    }
    let mut question = format!("{} meant", is_or_are(meant.number));
    question.push_str(if meant.number > EXAMPLES as u64 { "; the oldest:\n" } else { ":\n" });
    for item in &meant.examples {
        let [id, _, received, _, from, to, _] = super::row(item).map(|cell| people::printable(&cell));
        question.push_str(&format!("  {id}  {received}  {from} → {to}\n"));
    }
    question.push_str(&format!("{action} {}? [y/N] ", if meant.number == 1 { "it" } else { "them" }));
    output::ask(&question);
    let mut answer = String::new();
    let _ = io::stdin().lock().read_line(&mut answer);
    Ok(matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes"))
}

fn act_on_all(client: &Client, mut order: Order, meant: u64) -> Result<Outcome, Failure> {
    let mut all = Outcome::default();
    let bar = Bar::messages(meant);
    loop {
        let outcome: Outcome = client.post(&with_query("/api/v1/queue", &order))?;
        all.done += outcome.done;
        all.failed.extend(outcome.failed);
        bar.set(all.done as u64);
        order.cursor = outcome.next;
        if order.cursor.is_none() {
            return Ok(all);
        }
    }
}

fn is_or_are(number: u64) -> String {
    format!("{} {}", people::count(number, "message"), if number == 1 { "is" } else { "are" })
}

fn done(action: &str) -> &'static str {
    match action {
        "retry" => "tried again",
        "hold" => "held",
        "release" => "released",
        "bounce" => "returned",
        _ => "deleted",
    }
}
