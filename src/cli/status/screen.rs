//! The screen of `outpost status`: what an operator asks first stands first, in sentences and small bars.

use super::super::style::{Paint, Style};
use crate::{
    admin::{
        people,
        view::{Status, UpstreamStatus},
    },
    clock::Timestamp,
};

/// Cells of a bar, where there is room for it.
const BAR: usize = 20;
/// The same on a narrow terminal.
const SHORT_BAR: usize = 8;
/// Narrower than this is narrow.
const ROOMY: usize = 72;
/// A limit of which less than this part is left is worth a look: one in so many.
const NEARLY_USED: u64 = 10;

/// A limit of an upstream or a login, as one line shows it.
struct Limit<'a> {
    of: String,
    counts: &'a str,
    window: &'a str,
    used: u64,
    max: u64,
    frees_at: Option<&'a str>,
}

/// Draws it. Whatever the relay or an upstream said can't break out of its line.
pub(super) fn screen(status: &Status, now: Timestamp, style: &Style) -> String {
    let mut lines = Vec::new();
    store(status, style, &mut lines);
    queue(status, style, &mut lines);
    for (n, upstream) in status.upstreams.iter().enumerate() {
        if n == 0 {
            heading("Upstreams", style, &mut lines);
        }
        self::upstream(upstream, now, style, &mut lines);
    }
    limits(status, now, style, &mut lines);
    lines.join("\n")
}

fn heading(text: &str, style: &Style, lines: &mut Vec<String>) {
    lines.push(String::new());
    lines.push(style.paint(Paint::Strong, text));
}

/// Whether new mail is taken: the sign and the first line of the sentence, the rest below it.
fn store(status: &Status, style: &Style, lines: &mut Vec<String>) {
    let store = &status.store;
    match &store.reason {
        None => lines.push(format!("{} New mail is taken.", style.sign(Paint::Good))),
        Some(reason) => {
            let text = format!("NEW MAIL IS REFUSED for now: {}.", people::printable(reason));
            said(&text, Paint::Bad, style, lines);
        }
    }
    if let Some(warning) = &store.warning {
        said(&format!("WARNING: {}.", people::printable(warning)), Paint::Careful, style, lines);
    }
}

/// A sign, and a text behind it.
fn said(text: &str, paint: Paint, style: &Style, lines: &mut Vec<String>) {
    let mut wrapped = style.wrapped(text, 2);
    if let Some(first) = wrapped.first_mut() {
        *first = format!("{} {}", style.sign(paint), style.paint(paint, first.trim_start()));
    }
    lines.extend(wrapped);
}

fn queue(status: &Status, style: &Style, lines: &mut Vec<String>) {
    let queue = &status.queue;
    heading("Queue", style, lines);
    let Some(oldest) = queue.oldest_seconds else {
        lines.push("  It is empty.".to_owned());
        return;
    };
    let messages = people::count(queue.messages, "message");
    let sum =
        format!("{messages}, {}; the oldest has waited {}.", people::size(queue.bytes), people::age(oldest));
    lines.extend(style.wrapped(&sum, 2));
    let most = [queue.active, queue.deferred, queue.held].into_iter().max().unwrap_or(0);
    let width = most.to_string().len();
    for (name, number, paint, what) in [
        ("active", queue.active, Paint::Good, ""),
        ("deferred", queue.deferred, Paint::Careful, ""),
        ("held", queue.held, Paint::Bad, "they wait for you: outpost queue list --state held"),
    ] {
        let bar = style.bar(number, queue.messages, cells(style), paint);
        let line = format!("  {name:8}  {bar}  {number:>width$}");
        match what {
            what if number > 0 && !what.is_empty() && is_narrow(style) => {
                lines.push(line);
                lines.extend(style.wrapped(what, 4));
            }
            what if number > 0 && !what.is_empty() => lines.push(format!("{line}  {what}")),
            _ => lines.push(line),
        }
    }
}

/// The state in a line; below it why, who must act, what to do and when the next try is.
fn upstream(upstream: &UpstreamStatus, now: Timestamp, style: &Style, lines: &mut Vec<String>) {
    let (paint, waits) = match (upstream.state.as_str(), &upstream.reason) {
        ("up", None) => (Paint::Good, ""),
        ("up", Some(_)) => (Paint::Careful, ""),
        ("down", _) => (Paint::Bad, "Its mail stays queued."),
        _ => (Paint::Careful, "Its mail stays queued."),
    };
    let name = style.paint(Paint::Strong, &people::printable(&upstream.name));
    let state = style.paint(paint, &upstream.state);
    let connections = people::count(upstream.connections as u64, "connection");
    lines.push(format!("  {} {name} is {state}, {connections} open", style.sign(paint)));
    if let Some(reason) = &upstream.reason {
        let reason = people::printable(reason);
        lines.extend(style.wrapped(&format!("{}. {waits}", reason.trim_end_matches('.')), 6));
    }
    let who = upstream.who_must_act.as_deref().map(|who| match who {
        "operator" => "You must act: it won't get better by itself.".to_owned(),
        "nobody" => "Nobody must act: it passes.".to_owned(),
        who => format!("Who must act: {}.", people::printable(who)),
    });
    let help = upstream.help.as_deref().map(|help| {
        let help = people::printable(help);
        format!("What to do: {}.", help.trim_end_matches('.'))
    });
    let next = upstream.until.as_deref().map(|until| format!("Next try at {}.", point(until, now)));
    let learned = upstream.learned.as_ref().map(|learned| learned.sentence());
    let token = upstream.token.as_ref().and_then(|token| {
        let trouble = people::printable(&token.trouble(&upstream.name, now)?);
        let help = token.help.as_ref().map_or_else(String::new, |help| format!(" What to do: {help}."));
        Some(format!("WARNING: {}.{help}", trouble.trim_end_matches('.')))
    });
    for sentence in [who, help, next, learned, token].into_iter().flatten() {
        lines.extend(style.wrapped(&sentence, 6));
    }
}

fn limits(status: &Status, now: Timestamp, style: &Style, lines: &mut Vec<String>) {
    let of_upstreams = status.limits.iter().map(|limit| Limit {
        of: people::printable(&limit.upstream),
        counts: &limit.counts,
        window: &limit.window,
        used: limit.used,
        max: limit.max,
        frees_at: limit.frees_at.as_deref(),
    });
    let of_logins = status.logins.iter().map(|limit| Limit {
        of: format!("login {}", people::printable(&limit.user)),
        counts: &limit.counts,
        window: &limit.window,
        used: limit.used,
        max: limit.max,
        frees_at: limit.frees_at.as_deref(),
    });
    let all: Vec<Limit<'_>> = of_upstreams.chain(of_logins).collect();
    if all.is_empty() {
        return;
    }
    heading("Limits", style, lines);
    let widest = all.iter().map(|limit| limit.of.chars().count()).max().unwrap_or(0);
    for limit in &all {
        let paint = match limit.max.saturating_sub(limit.used) {
            0 => Paint::Bad,
            left if left <= limit.max / NEARLY_USED => Paint::Careful,
            _ => Paint::Good,
        };
        let bar = style.bar(limit.used, limit.max, cells(style), paint);
        let used = format!("{} of {} {}/{} used", limit.used, limit.max, limit.counts, limit.window);
        let frees = limit.frees_at.map_or(String::new(), |at| format!("; frees up at {}", point(at, now)));
        if is_narrow(style) {
            lines.push(format!("  {bar}  {}", limit.of));
            lines.extend(style.wrapped(&format!("{used}{frees}."), 4));
        } else {
            let line = format!("  {:widest$}  {bar}  {used}", limit.of);
            let long = 2 + widest + 2 + BAR + 2 + used.chars().count() + frees.chars().count();
            if style.width.is_some_and(|width| long > width) {
                lines.push(line);
                lines.extend(style.wrapped(frees.trim_start_matches("; "), 6));
            } else {
                lines.push(line + &frees);
            }
        }
    }
}

fn is_narrow(style: &Style) -> bool {
    style.width.is_some_and(|width| width < ROOMY)
}

fn cells(style: &Style) -> usize {
    if is_narrow(style) { SHORT_BAR } else { BAR }
}

/// A time to come as people say it: `14:03 UTC, in 4 min`.
fn point(time: &str, now: Timestamp) -> String {
    let Ok(at) = time.parse::<Timestamp>() else { return people::printable(time) };
    let text = at.to_string();
    let (day, clock) = text.split_once('T').unwrap_or(("", &text));
    let clock = clock.get(..5).unwrap_or(clock);
    let today = now.to_string();
    let day = if today.starts_with(day) { String::new() } else { format!("{day} ") };
    match at.since(now).as_secs() {
        0 => format!("{day}{clock} UTC, now"),
        seconds => format!("{day}{clock} UTC, in {}", people::age(seconds)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `OUTPOST_BLESS=1` writes what is drawn.
    fn drawn(name: &str, of: &str, style: &Style) {
        let here = concat!(env!("CARGO_MANIFEST_DIR"), "/src/cli/status/golden");
        let json = std::fs::read_to_string(format!("{here}/{of}.json")).unwrap();
        let status: Status = serde_json::from_str(&json).unwrap();
        let now = "2026-11-24T13:59:10Z".parse().unwrap();
        let screen = screen(&status, now, style) + "\n";
        let file = format!("{here}/{name}.txt");
        if std::env::var_os("OUTPOST_BLESS").is_some() {
            std::fs::write(&file, &screen).unwrap();
        }
        assert_eq!(screen, std::fs::read_to_string(&file).unwrap(), "{name}");
        if let Some(width) = style.width.filter(|_| !style.colours) {
            // A word that is wider than the terminal, such as a URL, stands alone.
            let fits = |line: &str| line.chars().count() <= width || !line.trim_start().contains(' ');
            assert!(screen.lines().all(fits), "{screen}");
        }
    }

    fn style() -> Style {
        Style { colours: false, width: Some(100), signs: true }
    }

    #[test]
    fn an_idle_relay_takes_a_few_lines() {
        drawn("idle", "idle", &style());
    }

    #[test]
    fn trouble_says_why_who_must_act_what_to_do_and_when_the_next_try_is() {
        drawn("trouble", "trouble", &style());
    }

    #[test]
    fn the_same_fits_a_narrow_terminal_without_signs() {
        drawn("narrow", "trouble", &Style { width: Some(48), signs: false, ..style() });
    }

    #[test]
    fn colours_are_added_and_no_word_depends_on_them() {
        drawn("coloured", "trouble", &Style { colours: true, ..style() });
    }

    #[test]
    fn lines_stay_whole_where_a_program_reads_them() {
        drawn("piped", "trouble", &Style { width: None, ..style() });
    }

    #[test]
    fn nothing_that_was_said_elsewhere_steers_the_terminal() {
        let json = include_str!("golden/trouble.json").replace("535-5.7.8", "\\u001b[2J\\r535");
        let status: Status = serde_json::from_str(&json).unwrap();
        let screen = screen(&status, Timestamp(0), &style());
        assert!(!screen.contains(['\x1b', '\r']) && screen.contains("[2J"), "{screen}");
    }
}
