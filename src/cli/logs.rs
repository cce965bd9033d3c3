//! `outpost logs`: what happened to each message, also after it left.
//!
//! Asks the running relay, and reads its file where none runs.

use std::{io::Write as _, time::Duration};

use clap::Args;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::{
    Place,
    client::{Client, with_query},
    exit::{Exit, Failure},
    output,
};
use crate::{
    admin::{events::Wanted, people, view::List},
    clock::Clock,
    observe::Event,
    queue::history::Reader,
};

/// How often a follower looks for more.
const LOOK: Duration = Duration::from_millis(500);
/// Events that are shown unless more are asked for.
const SHOWN: usize = 100;

#[derive(Debug, Args)]
pub(super) struct Logs {
    /// Only of these messages: queue ids
    #[arg(value_name = "ID")]
    ids: Vec<String>,
    /// The same as an option
    #[arg(long = "id", value_name = "ID")]
    more_ids: Vec<String>,
    #[command(flatten)]
    wanted: Wanted,
    /// Only so many, the latest [default: 100, or all of a message or a time]
    #[arg(long, value_name = "NUMBER")]
    limit: Option<usize>,
    /// Go on showing what happens (the configuration is named by --config here)
    #[arg(short = 'f', long)]
    follow: bool,
    /// One JSON object a line, for programs
    #[arg(long)]
    json: bool,
}

impl Logs {
    pub(super) fn run(mut self, place: &Place) -> Result<(), Failure> {
        let client = Client::find(place)?;
        self.ids.append(&mut self.more_ids);
        let of_all = self.ids.is_empty() && self.wanted.since.is_none();
        let most = self.limit.unwrap_or(if of_all { SHOWN } else { usize::MAX });
        let ids: Vec<_> = match self.ids.len() {
            0 => vec![None],
            _ => self.ids.iter().cloned().map(Some).collect(),
        };
        let mut events = Vec::new();
        for id in ids {
            let wanted = Wanted { id, cursor: Some("0".to_owned()), ..self.wanted.clone() };
            events.extend(self.latest(&client, place, wanted, most, of_all)?);
        }
        events.sort_by_key(|event| event.seq);
        let last = events.last().and_then(|event| event.seq);
        if events.drain(..events.len().saturating_sub(most)).count() > 0 && self.limit.is_none() {
            output::complain(&format!("only the latest {most} are shown; --limit or --since shows more"));
        }
        if events.is_empty() && !self.follow && !self.json {
            output::complain("nothing is known of that");
        }
        if !self.show(&events) || !self.follow {
            return Ok(());
        }
        self.follow(&client, last)
    }

    /// The latest of what is wanted, `most` of them at least if there are so many.
    fn latest(
        &self,
        client: &Client,
        place: &Place,
        mut wanted: Wanted,
        most: usize,
        of_all: bool,
    ) -> Result<Vec<Event>, Failure> {
        // Without conditions the relay finds the latest at once.
        if of_all && self.is_plain() && most <= 1_000 {
            let latest = Wanted { limit: Some(most.max(1)), cursor: None, ..wanted };
            return Ok(page(client, place, &latest)?.items);
        }
        wanted.limit = Some(1_000);
        let mut events = Vec::new();
        loop {
            let List { items, next } = page(client, place, &wanted)?;
            events.extend(items);
            if events.len() > most.saturating_mul(2).max(10_000) && most < usize::MAX {
                events.drain(..events.len() - most);
            }
            match next {
                Some(next) => wanted.cursor = Some(next),
                None => return Ok(events),
            }
        }
    }

    /// Whether there are no conditions.
    fn is_plain(&self) -> bool {
        let Wanted { event, sender, recipient, upstream, until, .. } = &self.wanted;
        [event, sender, recipient, upstream, until].into_iter().all(Option::is_none)
    }

    /// False once nobody reads any more.
    fn show(&self, events: &[Event]) -> bool {
        let mut out = std::io::stdout().lock();
        let shown = events.iter().try_for_each(|event| {
            if self.json {
                writeln!(out, "{}", serde_json::to_string(event).unwrap_or_default())
            } else {
                writeln!(out, "{} {}", event.time, people::printable(&event.line()))
            }
        });
        shown.and_then(|()| out.flush()).is_ok()
    }

    /// Shows what happens from here on, over restarts of the relay, until nobody reads any more.
    fn follow(&self, client: &Client, mut last: Option<i64>) -> Result<(), Failure> {
        let mut away = false;
        loop {
            let wanted = Wanted {
                cursor: Some(last.unwrap_or(0).to_string()),
                limit: Some(1_000),
                id: self.ids.first().filter(|_| self.ids.len() == 1).cloned(),
                ..self.wanted.clone()
            };
            // What is there before the look at what is wanted need not be looked at again.
            let newest = Wanted { limit: Some(1), ..Wanted::default() };
            let newest = client.get::<List<Event>>(&with_query("/api/v1/events", &newest));
            let got = newest.and_then(|newest| {
                let wanted = client.get::<List<Event>>(&with_query("/api/v1/events", &wanted))?;
                Ok((newest.items.last().and_then(|event| event.seq), wanted))
            });
            match got {
                Ok((newest, List { mut items, next })) => {
                    if std::mem::take(&mut away) {
                        output::complain("the relay runs again");
                    }
                    let seen = items.last().and_then(|event| event.seq);
                    last = match &next {
                        Some(next) => next.parse().ok().or(last),
                        None => seen.max(newest).max(last),
                    };
                    let is_meant = |event: &Event| {
                        self.ids.is_empty() || self.ids.iter().any(|id| id.eq_ignore_ascii_case(&event.id))
                    };
                    items.retain(is_meant);
                    if !self.show(&items) {
                        return Ok(());
                    }
                    if next.is_some() {
                        continue;
                    }
                }
                Err(failure) if failure.exit == Exit::UNAVAILABLE => {
                    if !std::mem::replace(&mut away, true) {
                        output::complain("the relay doesn't answer; waiting until it runs again");
                    }
                }
                Err(failure) => return Err(failure),
            }
            if nobody_reads(LOOK) {
                return Ok(());
            }
        }
    }
}

/// Waits so long, or until the reader of standard output has gone: nothing may happen for hours that would
/// tell by a write that fails.
fn nobody_reads(within: Duration) -> bool {
    let output = std::io::stdout();
    // Nothing is asked for: what is told unasked is that the other end was closed.
    let mut ends = [PollFd::new(&output, PollFlags::empty())];
    let within = Timespec::try_from(within).ok();
    matches!(poll(&mut ends, within.as_ref()), Ok(1..)) && ends[0].revents().intersects(PollFlags::ERR)
}

/// One page, from the relay or from its file.
fn page(client: &Client, place: &Place, wanted: &Wanted) -> Result<List<Event>, Failure> {
    match client.get(&with_query("/api/v1/events", wanted)) {
        Err(failure) if failure.exit == Exit::UNAVAILABLE => from_file(place, wanted, failure),
        answered => answered,
    }
}

fn from_file(place: &Place, wanted: &Wanted, away: Failure) -> Result<List<Event>, Failure> {
    let directory = place.queue()?;
    if !directory.exists() {
        return Err(away);
    }
    let ready = wanted.ready(Clock::System.now()).map_err(|words| Failure::new(Exit::USAGE, words))?;
    let page = Reader::open(&directory).and_then(|history| ready.page(&history));
    page.map_err(|fault| {
        let words =
            format!("no relay runs here, and its history in {} can't be read: {fault}", directory.display());
        Failure::new(Exit::UNAVAILABLE, words)
    })
}
