//! Actions on queued messages: first what is meant and how many, then the deed.
//!
//! What is done with all that match is done with those that were there when the question was asked,
//! in pieces that each fit into one request.

use std::time::Duration;

use axum::{
    Form, Json,
    extract::{FromRef as _, Query, State},
    response::Response,
};
use maud::{Markup, html};
use tokio::time::Instant;

use super::{
    layout::{Part, Shown, Visit, sentence},
    list,
    queue::{back, conditions, filter},
    words::number,
};
use crate::{
    admin::{
        Desk, Refusal,
        bulk::{self, Failed, Order, Outcome},
        extract, people,
        queue::{self, Filter, Verb},
        view::{Item, Outlook},
    },
    queue::QueueId,
};

/// What can be done, and how it is asked for.
pub(super) const VERBS: [(&str, &str); 5] = [
    ("retry", "Try again now"),
    ("release", "Release"),
    ("hold", "Hold"),
    ("bounce", "Return to the sender"),
    ("delete", "Delete"),
];

/// Messages that are named one by one, at most.
const PICKED_MAX: usize = 1_000;
/// Messages shown before it is done, and failures behind it.
const SHOWN: usize = 8;
/// How long it is counted, and how long it is worked at one request.
const COUNT_WITHIN: Duration = Duration::from_secs(5);
const WORK_WITHIN: Duration = Duration::from_secs(15);
/// Before all ids.
const BEGINNING: &str = "0000000000000";

/// What a form asks for.
struct Asked {
    action: &'static str,
    words: &'static str,
    filter: Filter,
    /// The messages that were picked; `None`: all that match.
    picked: Option<Vec<QueueId>>,
    reason: Option<String>,
    cursor: Option<String>,
    /// What was done by the requests before.
    done: usize,
}

impl Asked {
    fn read(pairs: &[(String, String)]) -> Result<Self, Refusal> {
        let values = |name: &'static str| {
            pairs.iter().filter(move |(found, _)| found == name).map(|(_, value)| value.as_str())
        };
        let value = |name| values(name).next().map(str::trim).filter(|value| !value.is_empty());
        let asked = value("action").unwrap_or_default();
        let verb = VERBS.into_iter().find(|(name, _)| *name == asked);
        let (action, words) = verb
            .ok_or_else(|| Refusal::bad_request("the actions are retry, hold, release, bounce and delete"))?;
        let picked = match value("scope") {
            Some("all") => None,
            _ => Some(values("id").take(PICKED_MAX).map(queue::id).collect::<Result<Vec<_>, _>>()?),
        };
        Ok(Self {
            action,
            words,
            filter: Filter { cursor: None, ..filter(pairs) },
            picked,
            reason: value("reason").map(str::to_owned),
            cursor: value("cursor").map(str::to_owned),
            done: value("done").and_then(|done| done.parse().ok()).unwrap_or(0),
        })
    }

    fn fields(&self) -> Markup {
        html! {
            input type="hidden" name="action" value=(self.action);
            @match &self.picked {
                Some(picked) => { @for id in picked { input type="hidden" name="id" value=(id); } }
                None => { input type="hidden" name="scope" value="all"; }
            }
            @for (name, value) in conditions(&self.filter) { input type="hidden" name=(name) value=(value); }
        }
    }

    /// `Delete 3 messages`.
    fn title(&self, many: &str) -> String {
        match self.action {
            "retry" => format!("Try {many} again now"),
            "bounce" => format!("Return {many} to the sender"),
            _ => format!("{} {many}", self.words),
        }
    }
}

/// What will come of it.
fn meaning(action: &str) -> &'static str {
    match action {
        "retry" => "They are tried at once, whatever was seen before. Held messages stay held.",
        "release" => "Held messages are tried again.",
        "hold" => "They wait until you release them. Nothing is sent meanwhile, and nobody is told.",
        "bounce" => {
            "Each sender gets a report that the message was not delivered, with your reason. The message is then gone."
        }
        _ => "They are gone at once, and nobody is told. This can't be undone.",
    }
}

/// How many are meant: exactly, or at least so many.
async fn count(desk: &Desk, filter: &Filter) -> Shown<(u64, bool)> {
    if filter.is_empty() {
        return Ok((desk.queue.depth().await?.messages, true));
    }
    let (until, mut found, mut cursor) = (Instant::now() + COUNT_WITHIN, 0, None);
    loop {
        let page = Filter { limit: Some(PICKED_MAX), cursor, ..filter.clone() };
        let page = queue::page(desk, &page).await?;
        found += page.items.len() as u64;
        cursor = page.next;
        if cursor.is_none() || Instant::now() > until {
            return Ok((found, cursor.is_none()));
        }
    }
}

pub(super) async fn confirm(visit: Visit, Query(pairs): Query<Vec<(String, String)>>) -> Shown {
    let asked = Asked::read(&pairs)?;
    let desk = Desk::from_ref(&visit.admin);
    let newest = desk.queue.newest();
    let (items, number_meant, is_all): (Vec<Item>, u64, bool) = match &asked.picked {
        Some(picked) => {
            let (outlook, mut items) = (Outlook::of(&desk), Vec::new());
            for id in picked {
                items.extend(desk.queue.get(*id).await?.map(|listed| outlook.item(&listed)));
            }
            let number = items.len() as u64;
            (items, number, true)
        }
        None => {
            let first = Filter { limit: Some(SHOWN), ..asked.filter.clone() };
            let items = queue::page(&desk, &first).await?.items;
            let (number, is_all) = count(&desk, &asked.filter).await?;
            (items, number, is_all)
        }
    };
    let return_to = back(&asked.filter);
    if number_meant == 0 {
        let what = match &asked.picked {
            Some(picked) if picked.is_empty() => {
                "Select messages by the boxes before them, or choose all that match."
            }
            _ => "What was meant is not in the queue any more.",
        };
        let body = html! { h1 { "No message is meant" } p.lead { (what) } p { a.button href=(return_to) { "Back to the queue" } } };
        return Ok(visit.page("No message is meant", Part::Queue, body).await);
    }
    let many = match is_all {
        true => format!("{} message{}", number(number_meant), if number_meant == 1 { "" } else { "s" }),
        false => format!("at least {} messages", number(number_meant)),
    };
    let title = asked.title(&many);
    let body = html! {
        h1 { (title) "?" }
        p.lead { (meaning(asked.action)) }
        (list::queued(&items[..items.len().min(SHOWN)], visit.admin.clock.now(), false))
        @if number_meant > SHOWN as u64 { p.soft { "… and " (number(number_meant - SHOWN as u64)) " more." } }
        form.decide method="post" action="/queue/act" {
            (asked.fields())
            @if asked.picked.is_none() { input type="hidden" name="cursor" value={ (BEGINNING) "-" (newest) }; }
            @if asked.action == "bounce" {
                label { span { "Reason, for the sender" } input name="reason" maxlength="200" placeholder="the address does not exist any more" autocomplete="off"; }
            }
            div.buttons {
                button class=[matches!(asked.action, "bounce" | "delete").then_some("danger")] { (title) }
                a href=(return_to) { "Leave it" }
            }
        }
    };
    Ok(visit.page(&title, Part::Queue, body).await)
}

pub(super) async fn act(visit: Visit, Form(pairs): Form<Vec<(String, String)>>) -> Shown {
    let asked = Asked::read(&pairs)?;
    let desk = Desk::from_ref(&visit.admin);
    let verb = Verb::named(asked.action, asked.reason.clone())?;
    let outcome = match &asked.picked {
        Some(picked) => {
            let mut outcome = Outcome::default();
            verb.prepare(&desk);
            bulk::act_on(&desk, &verb, picked, &mut outcome).await;
            outcome
        }
        None => all(&desk, &asked).await?,
    };
    Ok(told(&visit, &asked, outcome).await)
}

/// As much as one request has time for.
async fn all(desk: &Desk, asked: &Asked) -> Shown<Outcome> {
    let until = Instant::now() + WORK_WITHIN;
    let mut order = Order::new(asked.action, &asked.filter, asked.filter.is_empty(), asked.reason.clone());
    order.cursor = asked.cursor.clone();
    let mut sum = Outcome::default();
    loop {
        let Json(outcome) = bulk::act(State(desk.clone()), extract::Query(order.clone())).await?;
        sum.done += outcome.done;
        sum.failed.extend(outcome.failed);
        sum.next = outcome.next;
        order.cursor = sum.next.clone();
        if sum.next.is_none() || Instant::now() > until {
            return Ok(sum);
        }
    }
}

async fn told(visit: &Visit, asked: &Asked, outcome: Outcome) -> Response {
    let done = asked.done + outcome.done;
    let what = match asked.action {
        "retry" => "tried again",
        "release" => "released",
        "hold" => "held",
        "bounce" => "returned to the sender",
        _ => "deleted",
    };
    let title = match (done, outcome.failed.len()) {
        (0, 0) => "Nothing was left to do".to_owned(),
        (0, _) => "That was not possible".to_owned(),
        (done, _) => format!("{} {what}", people::count(done as u64, "message")),
    };
    let return_to = back(&asked.filter);
    let body = html! {
        h1 { (title) }
        @if !outcome.failed.is_empty() { (failures(&outcome.failed)) }
        @if let Some(next) = &outcome.next {
            p.lead { "There are more. Each step takes some seconds." }
            form.decide method="post" action="/queue/act" data-onward="" {
                (asked.fields())
                input type="hidden" name="cursor" value=(next);
                input type="hidden" name="done" value=(done);
                @if let Some(reason) = &asked.reason { input type="hidden" name="reason" value=(reason); }
                div.buttons { button { "Go on" } a href=(return_to) { "Stop here" } }
            }
        } @else {
            p.buttons {
                a.button href=(return_to) { "Back to the queue" }
                @if let Some([id]) = asked.picked.as_deref() { a href={ "/queue/" (id) } { "Look at the message" } }
            }
        }
    };
    visit.page(&title, Part::Queue, body).await
}

fn failures(failed: &[Failed]) -> Markup {
    html! {
        p.lead { (people::count(failed.len() as u64, "message")) " stayed as before:" }
        ul.plain { @for one in failed.iter().take(SHOWN) {
            li { a.id href={ "/queue/" (one.id) } { (one.id) } " " (sentence(&one.error)) }
        } }
        @if failed.len() > SHOWN { p.soft { "… and " (number((failed.len() - SHOWN) as u64)) " more." } }
    }
}
