//! The first page: does mail flow, how deep is the queue, why does something wait, what is to be done.

use std::collections::HashMap;

use axum::extract::{FromRef as _, Query};
use maud::{Markup, html};

use super::{
    captured,
    layout::{Part, Shown, Visit, sentence},
    list,
    plot::{self, Plot, Series, Unit},
    words::{self, number},
};
use crate::{
    admin::{
        Desk, dev,
        events::Wanted,
        people,
        view::{Status, UpstreamStatus},
    },
    clock::Timestamp,
    observe::{
        Event,
        trend::{Flow, Range, Step},
    },
};

/// Events, and captured messages.
const LATEST: usize = 12;

pub(super) async fn show(visit: Visit, Query(asked): Query<HashMap<String, String>>) -> Shown {
    let admin = &visit.admin;
    let range = asked.get("range").and_then(|name| Range::named(name)).unwrap_or_default();
    let status = admin.status().await?;
    admin.note(Some(&status.queue));
    let now = admin.clock.now();
    let steps = admin.trend.range(range, now);
    // The page is there whatever is wrong with the history.
    let wanted = Wanted { limit: Some(LATEST), ..Wanted::default() };
    let events = Desk::from_ref(admin).events(wanted).await.map(|list| list.items).unwrap_or_default();
    let arrived = match &admin.captured {
        Some(queue) => Some(dev::latest(queue, LATEST).await?),
        None => None,
    };
    let body = html! {
        h1.hidden { "Overview" }
        section #state data-live="" { (headline(&status)) (warning(&status)) }
        @if let Some((mail, all)) = &arrived {
            section #arrived data-live="" {
                h2 { "Mail that arrived" @if *all > mail.len() { " " a.more href="/dev" { "all " (number(*all as u64)) } } }
                (captured::rows(mail, now))
            }
        }
        section #numbers data-live="" { (tiles(&status, &steps, range, now)) }
        section #upstreams data-live="" {
            h2 { "Upstreams" }
            div.cards { @for upstream in &status.upstreams { (card(upstream, now)) } }
            (limits(&status, now))
        }
        section #plots data-live="" {
            div.heading {
                h2 { "Over time" }
                nav.ranges aria-label="Time shown" { @for one in Range::ALL {
                    a href={ "/?range=" (one.name()) "#plots" } aria-current=[(one == range).then_some("true")] { (spoken(one)) }
                } }
            }
            (plots(&steps, range))
        }
        section #lately data-live="" { (lately(&events)) }
    };
    Ok(visit.page("Overview", Part::Overview, body).await)
}

fn spoken(range: Range) -> &'static str {
    match range {
        Range::Hour => "1 hour",
        Range::Day => "24 hours",
        Range::Week => "7 days",
        Range::Month => "30 days",
    }
}

fn headline(status: &Status) -> Markup {
    let stopped: Vec<&UpstreamStatus> = status.upstreams.iter().filter(|up| up.state != "up").collect();
    let (queue, all) = (&status.queue, status.upstreams.len());
    let (mood, title, more) = match () {
        () if !status.ready => (
            "bad",
            "New mail is refused for now",
            sentence(status.store.reason.as_deref().unwrap_or("the queue can't be written")),
        ),
        () if all > 0 && stopped.len() == all && !stopped.iter().all(|up| status.waits_for_limit(up)) => (
            "bad",
            "Mail waits",
            "It is taken and kept, and goes out once an upstream takes it; see below why not now.".to_owned(),
        ),
        () if !stopped.is_empty() && stopped.iter().all(|up| status.waits_for_limit(up)) => {
            ("wait", "Some mail waits", "A limit is used up; what waits goes out as it frees up.".to_owned())
        }
        () if !stopped.is_empty() => {
            ("wait", "Some mail waits", "Not every upstream takes mail now; see below why.".to_owned())
        }
        () if status
            .upstreams
            .iter()
            .any(|up| up.token.as_ref().is_some_and(|token| token.reason.is_some())) =>
        {
            (
                "wait",
                "Mail will soon wait",
                "An access token can't be renewed; see below why, and what to do.".to_owned(),
            )
        }
        () if queue.held > 0 => (
            "wait",
            "Some mail waits for you",
            format!("{} held until you decide.", people::count(queue.held, "message")),
        ),
        () if queue.messages == 0 => {
            ("good", "All is well", "New mail is taken, and nothing waits.".to_owned())
        }
        () => ("good", "Mail flows", "New mail is taken, and what is queued is on its way.".to_owned()),
    };
    html! {
        div class={ "headline " (mood) } {
            svg.sign viewBox="0 0 24 24" aria-hidden="true" focusable="false" {
                circle cx="12" cy="12" r="11" {}
                path d=(match mood { "good" => "m7 12.500 3.500 3.500L17 9", "wait" => "M12 6v6.500l4 2", _ => "M12 6v7.500M12 17v.5" }) {}
            }
            div {
                p.title { (title) }
                p { (more) @if queue.held > 0 { " " a href="/queue?state=held" { "Look at what is held" } } }
            }
        }
    }
}

fn warning(status: &Status) -> Markup {
    html! { @if let Some(warning) = &status.store.warning { p.note { strong { "Warning. " } (sentence(warning)) } } }
}

fn total(steps: &[Step]) -> Flow {
    steps.iter().filter_map(|step| step.point).fold(Flow::default(), |sum, point| sum.and(point.flow))
}

fn tiles(status: &Status, steps: &[Step], range: Range, now: Timestamp) -> Markup {
    let (queue, flow) = (&status.queue, total(steps));
    let tile = |name: &str, value: Markup, more: Markup| {
        html! { div.tile { dt { (name) } dd { span.value { (value) } span.soft { (more) } } } }
    };
    let lately = html! { "in the last " (spoken(range).trim_start_matches("1 ")) };
    html! {
        dl.tiles {
            (tile("In the queue", html! { (number(queue.messages)) }, html! {
                @if queue.messages == 0 { "Empty." } @else {
                    (number(queue.active)) " active, " (number(queue.deferred)) " deferred, " (number(queue.held)) " held"
                }
            }))
            (tile("Oldest message", html! { @match queue.oldest_seconds { Some(age) => { (people::age(age)) }, None => "–" } }, html! {
                @match queue.oldest_seconds {
                    Some(age) => { "since " (words::time(&now.before(std::time::Duration::from_secs(age)).to_string())) },
                    None => "Nothing waits.",
                }
            }))
            (tile("Handed in", html! { (number(flow.accepted)) }, html! {
                (lately) @if flow.rejected > 0 { "; " (number(flow.rejected)) " refused" }
            }))
            (tile("Delivered", html! { (number(flow.delivered)) }, html! {
                (number(flow.deferred)) " retried, " (number(flow.bounced)) " bounced"
            }))
            (tile("Typical delivery", html! { (flow.latency(0.5).map_or("–".to_owned(), words::duration)) }, html! {
                @match flow.latency(0.95) { Some(slow) => { "95 % within " (words::duration(slow)) }, None => "no delivery yet" }
            }))
        }
    }
}

fn card(upstream: &UpstreamStatus, now: Timestamp) -> Markup {
    html! {
        div.card {
            div.heading { h3 { (people::printable(&upstream.name)) } (words::state(&upstream.state)) }
            @match &upstream.reason {
                None => p { "It takes mail." },
                Some(reason) => {
                    p.quote { (sentence(reason)) }
                    dl.facts {
                        @if let Some(who) = &upstream.who_must_act {
                            dt { "Who must act" }
                            dd { (match who.as_str() { "operator" => "You", "nobody" => "Nobody: it passes", "the upstream" => "The upstream", other => other }) }
                        }
                        @if let Some(help) = &upstream.help { dt { "What to do" } dd { (sentence(help)) } }
                        @if let Some(until) = &upstream.until { dt { "Next try" } dd { (next_try(until, now)) } }
                    }
                }
            }
            @if let Some(learned) = &upstream.learned { p { (learned.sentence()) } }
            @if let Some(token) = &upstream.token && let Some(trouble) = token.trouble(&upstream.name, now) {
                p.note {
                    strong { "Warning. " } (sentence(&trouble))
                    @if let Some(help) = &token.help { " What to do: " (help) "." }
                }
            }
            p.soft { (people::count(upstream.connections as u64, "connection")) " open" }
        }
    }
}

/// Behind its time it is whatever message comes next that tries.
fn next_try(until: &str, now: Timestamp) -> Markup {
    match until.parse::<Timestamp>() {
        Ok(until) if until <= now => html! { "with the next message" },
        _ => words::ago(until, now),
    }
}

fn limits(status: &Status, now: Timestamp) -> Markup {
    let of_upstreams =
        status.limits.iter().map(|l| (&l.upstream, &l.window, &l.counts, l.used, l.max, &l.frees_at));
    let of_logins = status.logins.iter().map(|l| (&l.user, &l.window, &l.counts, l.used, l.max, &l.frees_at));
    let all: Vec<_> = of_upstreams
        .map(|limit| ("Upstream", limit))
        .chain(of_logins.map(|limit| ("Login", limit)))
        .collect();
    html! { @if !all.is_empty() {
        h3 { "Limits" }
        ul.limits { @for (of, (name, window, counts, used, max, frees_at)) in all {
            li {
                div.heading {
                    span { span.soft { (of) " " } (people::printable(name)) }
                    span.figures { (number(used)) " of " (number(max)) " " (counts) " " (within(window)) }
                }
                svg.meter viewBox="0 0 100 4" preserveAspectRatio="none" aria-hidden="true" focusable="false" {
                    rect.room width="100" height="4" {}
                    rect class=(if used >= max { "full" } else { "used" }) width=(used.saturating_mul(100).div_ceil(max.max(1))) height="4" {}
                }
                @if let Some(at) = frees_at.as_deref() { p.soft { @if used >= max { "Used up; f" } @else { "F" } "rees up " (words::ago(at, now)) "." } }
            }
        } }
    } }
}

/// `a day`, `in 10 minutes`.
fn within(window: &str) -> String {
    let article = match window {
        "hour" => "an",
        numbered if numbered.starts_with(|c: char| c.is_ascii_digit()) => "in",
        _ => "a",
    };
    format!("{article} {window}")
}

fn plots(steps: &[Step], range: Range) -> Markup {
    let depth = |name, look, value: fn(&Step) -> Option<u64>| {
        Series::of(name, look, steps, |step| value(step).map(|v| v as f64))
    };
    let rate = |name, look, value: fn(&Flow) -> u64| {
        Series::of(name, look, steps, move |step| {
            Some(value(&step.point?.flow) as f64 / step.minutes.max(1.0))
        })
    };
    let draw = |title, says: &str, unit, stacked, series: &[Series]| {
        Plot { title, says, unit, stacked, range, steps, series }.draw()
    };
    let greatest = |value: fn(&Step) -> Option<f64>| {
        let points = steps.iter().filter_map(|step| Some((value(step)?, step.at)));
        points.max_by(|(a, _), (b, _)| a.total_cmp(b)).filter(|(value, _)| *value > 0.0)
    };
    let at_most = |unit: Unit, most: Option<(f64, Timestamp)>, none: &str| match most {
        Some((value, at)) => format!("At most {}, at {}.", unit.words(value), plot::clock(at, range)),
        None => none.to_owned(),
    };
    let flow = total(steps);
    let deepest = at_most(
        Unit::Count,
        greatest(|step| Some(step.point?.depth.messages() as f64)),
        "Nothing has waited.",
    );
    let outcomes = format!(
        "{} handed in, {} delivered, {} retried, {} bounced.",
        number(flow.accepted),
        number(flow.delivered),
        number(flow.deferred),
        number(flow.bounced)
    );
    let slowest = match (flow.latency(0.5), flow.latency(0.95)) {
        (Some(half), Some(most)) => {
            format!("Half within {}, 95 % within {}.", words::duration(half), words::duration(most))
        }
        _ => "No delivery in this time.".to_owned(),
    };
    let oldest = at_most(
        Unit::Seconds,
        greatest(|step| Some(step.point?.depth.oldest_seconds as f64)),
        "Nothing has waited.",
    );
    html! {
        div.plots {
            (draw("Messages in the queue", &deepest, Unit::Count, true, &[
                depth("held", "c", |step| Some(step.point?.depth.held)),
                depth("deferred", "b", |step| Some(step.point?.depth.deferred)),
                depth("active", "a", |step| Some(step.point?.depth.active)),
            ]))
            (draw("A minute", &outcomes, Unit::Rate, false, &[
                rate("handed in", "a", |flow| flow.accepted),
                rate("delivered", "b", |flow| flow.delivered),
                rate("retried", "c", |flow| flow.deferred),
                rate("bounced", "d", |flow| flow.bounced),
            ]))
            (draw("From acceptance to delivery", &slowest, Unit::Seconds, false, &[
                Series::of("half of the deliveries", "a", steps, |step| step.point?.flow.latency(0.5)),
                Series::of("95 of 100", "c", steps, |step| step.point?.flow.latency(0.95)),
            ]))
            (draw("Age of the oldest message", &oldest, Unit::Seconds, true, &[
                depth("oldest", "b", |step| Some(step.point?.depth.oldest_seconds)),
            ]))
        }
        (numbers(steps, range))
    }
}

/// The same for who reads numbers rather than lines.
fn numbers(steps: &[Step], range: Range) -> Markup {
    let time = |seconds: Option<f64>| seconds.map_or("–".to_owned(), words::duration);
    html! {
        details #table {
            summary { "The numbers behind the plots" }
            div.scroll tabindex="0" role="region" aria-label="The numbers behind the plots" { table.numbers {
                thead { tr {
                    th { "From" }
                    @for name in ["Active", "Deferred", "Held", "Oldest", "Handed in", "Delivered", "Retried", "Bounced", "Half within", "95 % within"] {
                        th { (name) }
                    }
                } }
                tbody { @for step in steps.iter().rev() { @if let Some(point) = step.point {
                    tr {
                        th scope="row" { (plot::clock(step.at, range)) }
                        @for number in [point.depth.active, point.depth.deferred, point.depth.held] { td { (words::number(number)) } }
                        td { (words::duration(point.depth.oldest_seconds as f64)) }
                        @for number in [point.flow.accepted, point.flow.delivered, point.flow.deferred, point.flow.bounced] {
                            td { (words::number(number)) }
                        }
                        td { (time(point.flow.latency(0.5))) }
                        td { (time(point.flow.latency(0.95))) }
                    }
                } } }
            } }
        }
    }
}

fn lately(events: &[Event]) -> Markup {
    html! {
        h2 { "Lately" }
        @if events.is_empty() {
            (list::nothing("Nothing has happened yet", &html! { "What becomes of each message is told here, and by " code { "outpost logs" } "." }))
        } @else { (list::events(events.iter().rev(), true)) }
    }
}
