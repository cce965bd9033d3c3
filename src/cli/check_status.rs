//! `outpost status --check`: one line and an exit code, as Nagios and its kin ask of a plugin.
//!
//! 0 is well, 1 a warning (mail is held, an upstream takes none or soon won't), 2 critical (a bound is passed, new mail
//! is refused, or nobody answers), 3 unknown.

use std::time::Duration;

use clap::Args;

use super::{
    Place,
    client::Client,
    exit::{Exit, Failure},
    output,
};
use crate::{
    admin::{people, view::Status},
    clock::Clock,
    config,
};

#[derive(Debug, Args)]
pub(super) struct Check {
    /// Say in one line and by the exit code whether all is well, for Nagios and its kin
    #[arg(long, conflicts_with = "json")]
    pub(super) check: bool,
    /// More messages in the queue are critical
    #[arg(long, value_name = "N", requires = "check")]
    max_depth: Option<u64>,
    /// An older message in the queue is critical: 30m, 4h
    #[arg(long, value_name = "AGE", requires = "check", value_parser = age)]
    max_age: Option<Duration>,
}

fn age(text: &str) -> Result<Duration, String> {
    config::parse_duration(text).ok_or_else(|| "a duration is wanted, such as 30m or 4h".to_owned())
}

/// How it is, in the order of its weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Verdict {
    Ok,
    Warning,
    Critical,
    Unknown,
}

impl Check {
    /// Prints the line; the exit code says the same.
    pub(super) fn run(&self, place: &Place) -> Exit {
        let asked = Client::find(place).and_then(|client| client.get::<Status>("/api/v1/status"));
        let (verdict, words, figures) = match asked {
            Ok(status) => {
                let (verdict, words) = self.judge(&status);
                (verdict, words, Some(self.figures(&status)))
            }
            Err(Failure { exit, words }) => {
                let verdict = if exit == Exit::UNAVAILABLE { Verdict::Critical } else { Verdict::Unknown };
                (verdict, words.lines().next().unwrap_or_default().to_owned(), None)
            }
        };
        let name = match verdict {
            Verdict::Ok => "OK",
            Verdict::Warning => "WARNING",
            Verdict::Critical => "CRITICAL",
            Verdict::Unknown => "UNKNOWN",
        };
        // What stands behind a bar is figures.
        let words = people::printable(&words).replace('|', "/");
        let figures = figures.map_or_else(String::new, |figures| format!(" | {figures}"));
        output::say(format!("OUTPOST {name} - {words}{figures}"));
        Exit(verdict as u8)
    }

    fn judge(&self, status: &Status) -> (Verdict, String) {
        let queue = &status.queue;
        let mut found = Vec::new();
        if !status.ready {
            let reason = status.store.reason.as_deref().unwrap_or("not ready");
            found.push((Verdict::Critical, format!("new mail is refused: {reason}")));
        }
        if let Some(max) = self.max_depth.filter(|max| queue.messages > *max) {
            let depth = people::count(queue.messages, "message");
            found.push((Verdict::Critical, format!("{depth} in the queue, more than {max}")));
        }
        let oldest = queue.oldest_seconds.unwrap_or(0);
        if let Some(max) = self.max_age.filter(|max| oldest > max.as_secs()) {
            let (oldest, max) = (people::age(oldest), people::age(max.as_secs()));
            found.push((
                Verdict::Critical,
                format!("the oldest message has waited {oldest}, more than {max}"),
            ));
        }
        if queue.held > 0 {
            found.push((Verdict::Warning, format!("{} held", people::count(queue.held, "message"))));
        }
        for upstream in status.upstreams.iter().filter(|upstream| upstream.state != "up") {
            let reason = upstream.reason.as_deref().unwrap_or("no reason known");
            found.push((
                Verdict::Warning,
                format!("upstream {} is {}: {reason}", upstream.name, upstream.state),
            ));
        }
        let now = Clock::System.now();
        for upstream in &status.upstreams {
            let trouble = upstream.token.as_ref().and_then(|token| token.trouble(&upstream.name, now));
            found.extend(trouble.map(|trouble| (Verdict::Warning, trouble)));
        }
        let worst = found.iter().map(|(verdict, _)| *verdict).max().unwrap_or(Verdict::Ok);
        let mut words: Vec<String> = found.into_iter().map(|(_, words)| words).collect();
        if words.is_empty() {
            words.push(format!("{} in the queue", people::count(queue.messages, "message")));
        }
        (worst, words.join("; "))
    }

    fn figures(&self, status: &Status) -> String {
        let queue = &status.queue;
        let depth = self.max_depth.map_or_else(String::new, |max| max.to_string());
        let age = self.max_age.map_or_else(String::new, |max| max.as_secs().to_string());
        format!(
            "messages={};;{depth};0 active={};;;0 deferred={};;;0 held={};;;0 oldest={}s;;{age};0 bytes={}B;;;0",
            queue.messages,
            queue.active,
            queue.deferred,
            queue.held,
            queue.oldest_seconds.unwrap_or(0),
            queue.bytes,
        )
    }
}
