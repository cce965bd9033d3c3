//! Small things as the pages say them: times, durations, states with a mark beside their colour.

use maud::{Markup, PreEscaped, html};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use crate::{
    admin::{
        people,
        view::{Item, State},
    },
    clock::Timestamp,
};

/// A point in time, in UTC, with what a program wants to know beside it.
pub(super) fn time(at: &str) -> Markup {
    html! { time datetime=(at) { (at.get(..19).unwrap_or(at).replace('T', " ")) } }
}

/// How long ago that was, or how soon it will be.
pub(super) fn ago(at: &str, now: Timestamp) -> Markup {
    let Ok(then) = at.parse::<Timestamp>() else { return time(at) };
    let words = match (now.since(then).as_secs(), then.since(now).as_secs()) {
        (0, 0) => "just now".to_owned(),
        (0, ahead) => format!("in {}", people::age(ahead)),
        (past, _) => format!("{} ago", people::age(past)),
    };
    html! { time datetime=(at) title={ (at.get(..19).unwrap_or(at).replace('T', " ")) " UTC" } { (words) } }
}

/// `35 ms`, `1.2 s`, `40 s`, `3 min`.
pub(super) fn duration(seconds: f64) -> String {
    match seconds {
        0.0 => "0".to_owned(),
        ..0.000_5 => "1 ms".to_owned(),
        ..1.0 => format!("{:.0} ms", seconds * 1000.0),
        ..9.95 => format!("{seconds:.1} s").replace(".0 s", " s"),
        _ => people::age(seconds.round() as u64),
    }
}

/// A number with its thousands apart.
pub(super) fn number(number: u64) -> String {
    let digits = number.to_string();
    let mut parted = String::new();
    for (i, digit) in digits.char_indices() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            parted.push('\u{202F}');
        }
        parted.push(digit);
    }
    parted
}

/// An envelope's sender.
pub(super) fn sender(address: &str) -> String {
    if address.is_empty() { "<>".to_owned() } else { people::printable(address) }
}

/// The first few; a message can have thousands.
pub(super) fn recipients<'a>(addresses: impl ExactSizeIterator<Item = &'a str>) -> String {
    let (all, few) = (addresses.len(), 3);
    let first: Vec<String> = addresses.take(few).map(people::printable).collect();
    match all.saturating_sub(few) {
        0 => first.join(", "),
        more => format!("{} and {more} more", first.join(", ")),
    }
}

pub(super) fn subject(subject: Option<&str>) -> Markup {
    match subject.filter(|subject| !subject.trim().is_empty()) {
        Some(subject) => html! { (people::printable(subject)) },
        None => html! { span.soft { "(no subject)" } },
    }
}

/// What all recipients of a message have in common is the reason of the message.
pub(super) fn why(item: &Item) -> Option<String> {
    item.reason.as_deref().map(people::printable)
}

/// The soonest next try of any recipient.
pub(super) fn next_try(item: &Item) -> Option<&str> {
    item.recipients.iter().filter_map(|recipient| recipient.next_attempt.as_deref()).min()
}

/// The state of something in a word, with a shape for whoever can't tell colours.
pub(super) fn state(name: &str) -> Markup {
    // As drawn in a field of 12 by 12.
    let (mood, shape) = match name {
        "active" | "received" | "imported" => ("go", "M6 1v10M2.500 7.500 6 11l3.500-3.500"),
        "up" | "ready" | "delivered" | "released" => ("good", "m2 6.500 3 3 5-6.500"),
        "deferred" | "paused" => ("wait", "M6 1a5 5 0 1 0 0 10a5 5 0 1 0 0-10M6 3.500V6l2 1"),
        "held" => ("stop", "M4 2v8M8 2v8"),
        "down" | "bounced" | "expired" | "rejected" | "deleted" => ("bad", "m2.500 2.500 7 7m0-7-7 7"),
        _ => ("none", "M2 6h8"),
    };
    html! {
        span class={ "state " (mood) } {
            svg viewBox="0 0 12 12" aria-hidden="true" focusable="false" { path d=(shape) {} }
            (name)
        }
    }
}

pub(super) fn state_of(item: &Item) -> Markup {
    let State::Gone = item.state else { return state(item.state.name()) };
    // What became of it, if that is the same for all.
    let mut outcomes: Vec<&str> = item.recipients.iter().map(|recipient| recipient.state.as_str()).collect();
    outcomes.dedup();
    match outcomes[..] {
        [one] => state(one),
        _ => state("gone"),
    }
}

/// A query string of names and values.
pub(super) fn query<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> String {
    const KEPT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.');
    let pairs = pairs.into_iter().map(|(name, value)| format!("{name}={}", utf8_percent_encode(value, KEPT)));
    pairs.collect::<Vec<_>>().join("&")
}

/// Text as it stands, line by line, without what would reorder or hide any of it.
pub(super) fn lines(text: &str) -> Markup {
    let lines = text.lines().map(|line| people::printable(&line.replace('\t', "    ")));
    let text = lines.collect::<Vec<_>>().join("\n");
    // A line end right behind the tag would not count (HTML §13.1.2.5).
    html! { pre tabindex="0" { (PreEscaped("\n")) (text) } }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_durations_are_short() {
        assert_eq!(number(1_234_567), "1\u{202F}234\u{202F}567");
        assert_eq!(number(12), "12");
        for (seconds, words) in
            [(0.0, "0"), (0.0001, "1 ms"), (0.035, "35 ms"), (1.0, "1 s"), (2.54, "2.5 s"), (61.0, "1 min")]
        {
            assert_eq!(duration(seconds), words);
        }
    }

    #[test]
    fn times_are_told_from_now() {
        let now = Timestamp(1_340_000_000_000);
        let said = |at: u64| ago(&Timestamp(at).to_string(), now).into_string();
        assert!(said(now.0 - 65_000).contains(">1 min ago<"));
        assert!(said(now.0 + 65_000).contains(">in 1 min<"));
        assert!(said(now.0 + 5).contains(">just now<"));
        assert!(ago("soon", now).into_string().contains(">soon<"));
    }

    #[test]
    fn a_query_string_can_not_be_broken_out_of() {
        assert_eq!(query([("a", "x&b=\"<é"), ("c", "")]), "a=x%26b%3D%22%3C%C3%A9&c=");
    }
}
