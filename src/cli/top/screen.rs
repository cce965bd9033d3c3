//! The screen of `outpost top`: drawn from what was seen, and nothing else.

use ratatui::{
    Frame,
    layout::{Constraint, Layout, Rect},
    style::{Color, Modifier, Style, Stylize as _},
    text::{Line, Span},
    widgets::{Block, Borders, Cell, Paragraph, Row, Table},
};

use super::{
    super::exit::Failure,
    watch::{Rates, Seen},
};
use crate::{
    admin::{
        people,
        view::{Item, Status, UpstreamStatus},
    },
    clock::Timestamp,
};

/// Lines for upstreams, head included: more of them are summed up in the last.
const UPSTREAMS_MAX: u16 = 8;
/// Lines for events, where there is room for all.
const EVENTS: u16 = 8;

/// By what the queue is sorted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sort {
    Oldest,
    Largest,
    Tries,
    Sender,
}

impl Sort {
    pub(super) fn next(self) -> Self {
        match self {
            Self::Oldest => Self::Largest,
            Self::Largest => Self::Tries,
            Self::Tries => Self::Sender,
            Self::Sender => Self::Oldest,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Oldest => "age",
            Self::Largest => "size",
            Self::Tries => "tries",
            Self::Sender => "sender",
        }
    }
}

/// What is shown, and how.
pub(super) struct View {
    seen: Option<Box<Seen>>,
    /// Why there is nothing newer.
    trouble: Option<String>,
    pub(super) paused: bool,
    pub(super) sort: Sort,
    pub(super) reversed: bool,
    colours: bool,
}

impl View {
    pub(super) fn new(colours: bool) -> Self {
        Self { seen: None, trouble: None, paused: false, sort: Sort::Oldest, reversed: false, colours }
    }

    /// Takes what was seen; what was seen before stays while the relay doesn't answer.
    pub(super) fn seen(&mut self, seen: Result<Box<Seen>, Failure>) {
        match seen {
            Ok(seen) => (self.seen, self.trouble) = (Some(seen), None),
            Err(failure) => {
                self.trouble = Some(people::printable(failure.words.lines().next().unwrap_or("")))
            }
        }
    }

    fn colour(&self, colour: Color) -> Style {
        if self.colours { Style::new().fg(colour) } else { Style::new() }
    }

    fn of_state(&self, state: &str) -> Style {
        match state {
            "up" | "active" | "delivered" | "received" => self.colour(Color::Green),
            "paused" | "deferred" | "imported" => self.colour(Color::Yellow),
            "down" | "held" | "bounced" | "expired" | "rejected" => self.colour(Color::Red),
            _ => Style::new(),
        }
    }

    /// The queue in the order that is wanted.
    fn sorted<'s>(&self, items: &'s [Item]) -> Vec<&'s Item> {
        let mut items: Vec<&Item> = items.iter().collect();
        match self.sort {
            Sort::Oldest => items.sort_by(|a, b| a.received.cmp(&b.received)),
            Sort::Largest => items.sort_by_key(|item| std::cmp::Reverse(item.size)),
            Sort::Tries => items.sort_by_key(|item| std::cmp::Reverse(tries(item))),
            Sort::Sender => items.sort_by(|a, b| a.sender.cmp(&b.sender)),
        }
        if self.reversed {
            items.reverse();
        }
        items
    }
}

/// Draws all of it.
pub(super) fn draw(frame: &mut Frame<'_>, view: &View) {
    let Some(seen) = &view.seen else {
        let text = view.trouble.as_deref().unwrap_or("asking the relay …");
        frame.render_widget(Paragraph::new(text), frame.area());
        return;
    };
    let upstreams = (seen.status.upstreams.len() as u16).saturating_add(1).min(UPSTREAMS_MAX) + 1;
    let [head, ups, queue, events, keys] = Layout::vertical([
        Constraint::Length(3),
        Constraint::Length(upstreams),
        Constraint::Min(4),
        Constraint::Max(EVENTS + 1),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    self::head(frame, head, view, seen);
    self::upstreams(frame, ups, view, &seen.status);
    self::queue(frame, queue, view, seen);
    self::events(frame, events, view, seen);
    let order = if view.reversed { " (reversed)" } else { "" };
    let help = format!("q quit  p pause  r look now  s sort by: {}{order}  S reverse", view.sort.name());
    frame.render_widget(Paragraph::new(help).add_modifier(Modifier::REVERSED), keys);
}

fn head(frame: &mut Frame<'_>, area: Rect, view: &View, seen: &Seen) {
    let store = &seen.status.store;
    let taken = match &store.reason {
        None => Span::styled("New mail is taken.", view.colour(Color::Green)),
        Some(reason) => {
            let words = format!("NEW MAIL IS REFUSED for now: {}.", people::printable(reason));
            Span::styled(words, view.colour(Color::Red)).bold()
        }
    };
    let time = seen.at.to_string();
    let time = time.get(11..19).unwrap_or(&time);
    let mut first = vec![Span::raw(format!("outpost  {time} UTC  ")), taken];
    if view.paused {
        first.push(Span::raw("  PAUSED").bold());
    }
    if let Some(trouble) = &view.trouble {
        first.push(Span::styled(format!("  {trouble}"), view.colour(Color::Red)));
    }
    let queue = &seen.status.queue;
    let oldest =
        queue.oldest_seconds.map_or(String::new(), |age| format!("; the oldest waits {}", people::age(age)));
    let sum = format!("{}, {}{oldest}", people::count(queue.messages, "message"), people::size(queue.bytes));
    let lines = vec![
        Line::from(first),
        Line::from(rates(seen.rates)),
        Line::from(vec![
            Span::raw(format!("queue    {sum}: ")),
            Span::styled(format!("{} active", queue.active), view.of_state("active")),
            Span::raw(", "),
            Span::styled(format!("{} deferred", queue.deferred), view.of_state("deferred")),
            Span::raw(", "),
            Span::styled(format!("{} held", queue.held), view.of_state("held")),
        ]),
    ];
    frame.render_widget(Paragraph::new(lines), area);
}

fn rates(Rates(rates): Rates) -> String {
    match rates {
        None => "a minute …".to_owned(),
        Some(rates) => format!(
            "a minute {:.0} accepted, {:.0} delivered, {:.0} deferred, {:.0} bounced",
            rates.accepted, rates.delivered, rates.deferred, rates.bounced
        ),
    }
}

fn titled(title: impl Into<String>) -> Block<'static> {
    Block::new().borders(Borders::TOP).title(title.into())
}

fn upstreams(frame: &mut Frame<'_>, area: Rect, view: &View, status: &Status) {
    let row = |upstream: &UpstreamStatus| {
        let next = upstream.until.as_deref().and_then(|until| until.get(11..19)).unwrap_or("");
        let token = || {
            let reason = upstream.token.as_ref()?.reason.as_deref()?;
            Some(format!("its access token can't be renewed: {reason}"))
        };
        let reason = upstream.reason.clone().or_else(token).unwrap_or_default();
        Row::new([
            Cell::from(upstream.state.clone()).style(view.of_state(&upstream.state)),
            Cell::from(people::printable(&upstream.name)),
            Cell::from(upstream.connections.to_string()),
            Cell::from(limit(status, &upstream.name)),
            Cell::from(next.to_owned()),
            Cell::from(people::printable(&reason)),
        ])
    };
    let widths = [
        Constraint::Length(6),
        Constraint::Max(28),
        Constraint::Length(5),
        Constraint::Max(24),
        Constraint::Length(8),
        Constraint::Fill(1),
    ];
    let head = Row::new(["STATE", "UPSTREAM", "CONNS", "LIMIT", "NEXT TRY", "WHY"]).bold();
    let rows = status.upstreams.iter().map(row);
    frame.render_widget(Table::new(rows, widths).header(head).block(titled("")), area);
}

/// The limit of an upstream of which the most is used.
fn limit(status: &Status, upstream: &str) -> String {
    let own = status.limits.iter().filter(|limit| limit.upstream == upstream && limit.max > 0);
    let most = own.max_by(|a, b| {
        let part = |used: u64, max: u64| used as f64 / max as f64;
        part(a.used, a.max).total_cmp(&part(b.used, b.max))
    });
    most.map_or(String::new(), |limit| {
        let counts = if limit.counts == "messages" { "" } else { " rcpts" };
        format!("{}/{}{counts} a {}", limit.used, limit.max, limit.window)
    })
}

fn queue(frame: &mut Frame<'_>, area: Rect, view: &View, seen: &Seen) {
    let rows = view.sorted(&seen.items).into_iter().map(|item| {
        let age = item.received.parse::<Timestamp>().map_or(0, |received| seen.at.since(received).as_secs());
        let to = item.recipients.first().map_or("", |first| first.address.as_str());
        let more = match item.recipients.len() {
            0 | 1 => String::new(),
            several => format!(" +{}", several - 1),
        };
        Row::new([
            Cell::from(item.id.clone()),
            Cell::from(item.state.name()).style(view.of_state(item.state.name())),
            Cell::from(people::age(age)),
            Cell::from(people::size(item.size)),
            Cell::from(tries(item).to_string()),
            Cell::from(people::printable(if item.sender.is_empty() { "<>" } else { &item.sender })),
            Cell::from(people::printable(to) + &more),
            Cell::from(people::printable(item.reason.as_deref().unwrap_or(""))),
        ])
    });
    let widths = [
        Constraint::Length(16),
        Constraint::Length(8),
        Constraint::Length(11),
        Constraint::Length(8),
        Constraint::Length(5),
        Constraint::Max(24),
        Constraint::Max(24),
        Constraint::Fill(1),
    ];
    let head = Row::new(["ID", "STATE", "AGE", "SIZE", "TRIES", "FROM", "TO", "WHY"]).bold();
    let shown = seen.items.len() as u64;
    let title = match seen.status.queue.messages > shown {
        true => format!("the {shown} oldest of {}", people::count(seen.status.queue.messages, "message")),
        false => String::new(),
    };
    frame.render_widget(Table::new(rows, widths).header(head).block(titled(title)), area);
}

fn tries(item: &Item) -> u32 {
    item.recipients.iter().map(|recipient| recipient.attempts).max().unwrap_or(0)
}

/// The latest, the newest first.
fn events(frame: &mut Frame<'_>, area: Rect, view: &View, seen: &Seen) {
    let lines = seen.events.iter().rev().map(|event| {
        let time = event.time.to_string();
        let name = event.event.name();
        let line = people::printable(&event.line());
        let rest = line.strip_prefix(name).unwrap_or(&line).to_owned();
        Line::from(vec![
            Span::raw(format!("{}  ", time.get(11..19).unwrap_or(&time))),
            Span::styled(name, view.of_state(name)),
            Span::raw(rest),
        ])
    });
    let lines: Vec<Line<'_>> = lines.take(usize::from(area.height)).collect();
    frame.render_widget(Paragraph::new(lines).block(titled("")), area);
}

#[cfg(test)]
mod tests {
    use ratatui::{Terminal, backend::TestBackend};

    use super::{super::watch::Counts, *};
    use crate::{
        admin::view::{Recipient, State},
        observe::{Event, EventKind},
    };

    const NOW: &str = "2026-11-24T13:59:10Z";

    fn seen() -> Box<Seen> {
        let json = include_str!("../status/golden/trouble.json");
        let item = |id: &str, size, attempts, sender: &str, received: &str| Item {
            id: id.into(),
            state: if attempts > 5 { State::Held } else { State::Deferred },
            sender: sender.into(),
            recipients: vec![
                Recipient {
                    address: "a@d.example".into(),
                    state: "deferred".into(),
                    attempts,
                    last_reply: None,
                    reason: None,
                    who_must_act: None,
                    help: None,
                    next_attempt: None,
                };
                usize::try_from(attempts).unwrap().max(1)
            ],
            size,
            received: received.into(),
            client: None,
            user: None,
            message_id: None,
            subject: None,
            upstream: "second".into(),
            reason: Some("451 4.7.1 greylisted\u{1b}[2J".into()),
        };
        let at: Timestamp = NOW.parse().unwrap();
        let event = |kind: EventKind, id: &str| Event {
            recipient: Some("a@d.example".into()),
            upstream: Some("second".into()),
            reply: Some("250 2.0.0 ok".into()),
            ..Event::new(at, kind, id)
        };
        Box::new(Seen {
            at,
            status: serde_json::from_str(json).unwrap(),
            items: vec![
                item("0123456789ABC001", 4_100, 1, "shop@b.example", "2026-11-24T13:58:10Z"),
                item("0123456789ABC002", 48_000_000, 7, "", "2026-11-24T11:54:10Z"),
                item("0123456789ABC003", 512, 2, "app@b.example", "2026-11-24T13:59:00Z"),
            ],
            events: vec![
                event(EventKind::Received, "0123456789ABC003"),
                event(EventKind::Delivered, "0123456789ABC000"),
            ],
            rates: Rates(Some(Counts { accepted: 120.0, delivered: 118.2, deferred: 2.0, bounced: 0.0 })),
        })
    }

    /// `OUTPOST_BLESS=1` writes what is drawn.
    fn drawn(name: &str, (width, height): (u16, u16), view: &View) -> String {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| draw(frame, view)).unwrap();
        let buffer = terminal.backend().buffer();
        let rows = buffer.content().chunks(usize::from(width));
        let row =
            |cells: &[ratatui::buffer::Cell]| cells.iter().map(|cell| cell.symbol()).collect::<String>();
        let text: String = rows.map(|cells| row(cells).trim_end().to_owned() + "\n").collect();
        let file = format!("{}/src/cli/top/golden/{name}.txt", env!("CARGO_MANIFEST_DIR"));
        if std::env::var_os("OUTPOST_BLESS").is_some() {
            std::fs::write(&file, &text).unwrap();
        }
        assert_eq!(text, std::fs::read_to_string(&file).unwrap(), "{name}");
        text
    }

    fn view() -> View {
        let mut view = View::new(true);
        view.seen(Ok(seen()));
        view
    }

    #[test]
    fn the_whole_relay_is_on_one_screen_and_nothing_steers_the_terminal() {
        let text = drawn("wide", (140, 28), &view());
        assert!(!text.contains('\x1b'));
    }

    #[test]
    fn a_small_terminal_keeps_what_matters_most() {
        drawn("small", (80, 16), &view());
        // Whatever the size, it is drawn.
        for size in [(1, 1), (10, 3), (300, 100)] {
            let mut terminal = Terminal::new(TestBackend::new(size.0, size.1)).unwrap();
            terminal.draw(|frame| draw(frame, &view())).unwrap();
        }
    }

    #[test]
    fn the_queue_is_sorted_as_the_keys_say() {
        let mut view = view();
        let order = |view: &View| {
            let ids =
                view.sorted(&seen().items).iter().map(|item| item.id[15..].to_owned()).collect::<String>();
            (view.sort.name(), ids)
        };
        let mut orders = Vec::new();
        for _ in 0..4 {
            orders.push(order(&view));
            view.sort = view.sort.next();
        }
        let wanted = [("age", "213"), ("size", "213"), ("tries", "231"), ("sender", "231")];
        assert_eq!(orders, wanted.map(|(name, ids)| (name, ids.to_owned())));
        view.reversed = true;
        assert_eq!(order(&view).1, "312");
    }

    #[test]
    fn what_was_seen_last_stays_while_the_relay_does_not_answer() {
        let mut view = view();
        view.paused = true;
        view.seen(Err(Failure::new(
            super::super::super::exit::Exit::UNAVAILABLE,
            "no relay runs here\n  help",
        )));
        let text = drawn("away", (110, 18), &view);
        assert!(
            text.contains("no relay runs here") && text.contains("PAUSED") && text.contains("1253 messages")
        );
    }
}
