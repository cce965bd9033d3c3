//! What happened: the history over HTTP, and for the commands when no relay runs.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use super::{
    Answer, Desk, Refusal,
    view::{self, Item, List, Recipient},
};
use crate::{
    clock::Timestamp,
    config,
    observe::{Event, EventKind},
    queue::{
        Fault, QueueId,
        history::{Reader, Span, place_of},
        is_meant,
    },
};

/// Events of a page: the usual number, and the greatest.
const PAGE: usize = 100;
const PAGE_MAX: usize = 1_000;
/// Events that one request looks through for those that are wanted; the cursor goes on from there.
const SCAN_MAX: usize = 100_000;
/// Events of one message that are told; more are read no further.
const STORY_MAX: usize = 100_000;

/// Which events are meant, as the query string and the command line say it.
#[derive(Clone, Debug, Default, Serialize, Deserialize, clap::Args)]
#[serde(deny_unknown_fields)]
pub struct Wanted {
    /// Of this message: its queue id
    #[arg(skip)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Only these: received, rejected, imported, delivered, deferred, bounced, expired, held, released, deleted
    #[arg(long, value_name = "EVENT")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub event: Option<String>,
    /// Of mail from this address, or this @domain; <> for reports
    #[arg(long, value_name = "ADDRESS")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sender: Option<String>,
    /// Of this recipient, or somebody at this @domain
    #[arg(long, value_name = "ADDRESS")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recipient: Option<String>,
    /// Of what this upstream was tried with
    #[arg(long, value_name = "NAME")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upstream: Option<String>,
    /// Not longer ago than this (30s, 5d), or not before this time (2012-06-18T06:13:20Z)
    #[arg(long, value_name = "TIME")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<String>,
    /// Longer ago than this, or before this time
    #[arg(long, value_name = "TIME")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<String>,
    /// Most events in one page
    #[arg(skip)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<usize>,
    /// Where the page before ended
    #[arg(skip)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
}

impl Wanted {
    /// All events of one message, from its first on.
    pub fn of_message(id: QueueId) -> Self {
        Self { id: Some(id.to_string()), cursor: Some("0".to_owned()), ..Self::default() }
    }

    /// Understands the words.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn ready(&self, now: Timestamp) -> Result<Ready<'_>, String> {
        let id = self.id.as_deref().map(str::parse::<QueueId>).transpose();
        let kind = self.event.as_ref().map(|name| serde_json::from_value(name.as_str().into())).transpose();
        let limit = self.limit.unwrap_or(PAGE);
        if !(1..=PAGE_MAX).contains(&limit) {
            return Err(format!("limit is from 1 to {PAGE_MAX}"));
        }
        let cursor = self.cursor.as_deref().map(str::parse).transpose();
        Ok(Ready {
            wanted: self,
            id: id.map_err(|error| error.to_string())?,
            kind: kind.map_err(|_| "event is received, rejected, imported, delivered, deferred, bounced, expired, held, released or deleted")?,
            since: self.since.as_deref().map(|text| time(text, now)).transpose()?,
            until: self.until.as_deref().map(|text| time(text, now)).transpose()?,
            cursor: cursor.map_err(|_| "no such cursor")?,
            limit,
        })
    }
}

/// A point in time, or how long ago it was.
fn time(text: &str, now: Timestamp) -> Result<Timestamp, String> {
    let ago = config::parse_duration(text).map(|ago| now.before(ago));
    ago.or_else(|| text.parse().ok())
        .ok_or_else(|| format!("{text}: expected how long ago (30s, 5d) or a time (2012-06-18T06:13:20Z)"))
}

/// Wishes that were understood.
pub struct Ready<'a> {
    wanted: &'a Wanted,
    id: Option<QueueId>,
    kind: Option<EventKind>,
    since: Option<Timestamp>,
    until: Option<Timestamp>,
    cursor: Option<i64>,
    limit: usize,
}

impl Ready<'_> {
    /// The place behind which these wishes begin; `None`: at what happens from now on.
    pub(super) fn begins_behind(&self) -> Option<i64> {
        self.cursor.or_else(|| self.since.map(|since| place_of(since) - 1))
    }

    pub(super) fn wants(&self, event: &Event) -> bool {
        let sender = event.sender.as_deref();
        // Of a message that was received, all recipients stand there.
        let mut recipients = event.recipient.as_deref().unwrap_or_default().split(',');
        self.kind.is_none_or(|kind| kind == event.event)
            && self.since.is_none_or(|since| event.time >= since)
            && self.until.is_none_or(|until| event.time <= until)
            && self.wanted.upstream.as_ref().is_none_or(|wanted| event.upstream.as_ref() == Some(wanted))
            && self
                .wanted
                .sender
                .as_deref()
                .is_none_or(|wanted| sender.is_some_and(|sender| is_meant(wanted, sender)))
            && self
                .wanted
                .recipient
                .as_deref()
                .is_none_or(|wanted| recipients.any(|one| is_meant(wanted, one)))
    }

    /// One page of what is wanted: the latest, or, behind a cursor or a time, the first.
    ///
    /// # Errors
    /// The history can't be read.
    pub fn page(&self, history: &Reader) -> Result<List<Event>, Fault> {
        let newest = self.cursor.is_none() && self.since.is_none();
        let first = self.since.map_or(0, |since| place_of(since) - 1);
        let mut span = Span {
            id: self.id,
            after: self.cursor.unwrap_or(0).max(first),
            before: i64::MAX,
            newest,
            limit: PAGE_MAX,
        };
        let (mut items, mut scanned) = (Vec::new(), 0);
        loop {
            let found = history.events(&span)?;
            let complete = found.len() < span.limit;
            scanned += found.len();
            let last = found.last().map(|recorded| recorded.seq);
            let read = found.iter().map(|recorded| {
                let event = serde_json::from_slice::<Event>(&recorded.octets).ok();
                (recorded.seq, event.map(|event| Event { seq: Some(recorded.seq), ..event }))
            });
            if newest {
                span.before = found.first().map_or(0, |recorded| recorded.seq);
                items.extend(read.rev().filter_map(|(_, event)| event.filter(|event| self.wants(event))));
                if complete || items.len() >= self.limit || scanned >= SCAN_MAX {
                    items.truncate(self.limit);
                    items.reverse();
                    return Ok(List { items, next: None });
                }
                continue;
            }
            for (seq, event) in read {
                items.extend(event.filter(|event| self.wants(event)));
                if items.len() == self.limit {
                    let more = !complete || last != Some(seq);
                    return Ok(List { items, next: more.then(|| seq.to_string()) });
                }
            }
            match last {
                Some(last) if !complete => span.after = last,
                _ => return Ok(List { items, next: None }),
            }
            if scanned >= SCAN_MAX {
                return Ok(List { items, next: Some(span.after.to_string()) });
            }
        }
    }
}

impl Desk {
    /// One page of the history.
    pub(super) async fn events(&self, wanted: Wanted) -> Answer<List<Event>> {
        let now = self.clock.now();
        wanted.ready(now).map_err(Refusal::bad_request)?;
        let page =
            self.queue.read_history(move |history| wanted.ready(now).map_err(Fault::Broken)?.page(history));
        Ok(page.await?)
    }

    /// All that happened to a message. What became of a thousand recipients is no single page.
    pub(super) async fn history(&self, id: QueueId) -> Answer<Vec<Event>> {
        let now = self.clock.now();
        let mut wanted = Wanted { limit: Some(PAGE_MAX), ..Wanted::of_message(id) };
        let events = self.queue.read_history(move |history| {
            let mut events = Vec::new();
            loop {
                let page = wanted.ready(now).map_err(Fault::Broken)?.page(history)?;
                events.extend(page.items);
                match page.next {
                    Some(next) if events.len() < STORY_MAX => wanted.cursor = Some(next),
                    _ => return Ok(events),
                }
            }
        });
        Ok(events.await?)
    }
}

/// A message with all that happened to it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Story {
    /// As it is now, or as it was when it left.
    #[serde(flatten)]
    pub item: Item,
    /// What happened to it, oldest first.
    #[serde(default)]
    pub history: Vec<Event>,
}

impl Story {
    /// A message that has left, as far as its events tell; `None` if there are none.
    pub fn gone(history: Vec<Event>) -> Option<Self> {
        let first = history.first()?;
        let received = history.iter().find(|event| event.event == EventKind::Received);
        let one = |get: fn(&Event) -> Option<String>| history.iter().find_map(get);
        let mut item = Item {
            id: first.id.clone(),
            state: view::State::Gone,
            sender: one(|event| event.sender.clone()).unwrap_or_default(),
            recipients: Vec::new(),
            size: history.iter().find_map(|event| event.size).unwrap_or(0),
            received: received.unwrap_or(first).time.to_string(),
            client: one(|event| event.client.clone()),
            user: one(|event| event.user.clone()),
            message_id: one(|event| event.message_id.clone()),
            subject: None,
            upstream: String::new(),
            reason: None,
        };
        let mut places: HashMap<String, usize> = HashMap::new();
        for event in &history {
            item.upstream = event.upstream.clone().unwrap_or(item.upstream);
            if event.event == EventKind::Deleted {
                item.reason = Some("deleted by the operator".to_owned());
            }
            let tried = !matches!(event.event, EventKind::Received | EventKind::Rejected);
            let Some(address) = event.recipient.as_ref().filter(|_| tried) else { continue };
            let recipient = Recipient {
                address: address.clone(),
                state: event.event.name().to_owned(),
                attempts: event.attempt.unwrap_or(0),
                last_reply: event.reply.clone(),
                reason: None,
                who_must_act: None,
                help: None,
                next_attempt: None,
            };
            match places.get(address) {
                Some(place) => item.recipients[*place] = recipient,
                None => {
                    places.insert(address.clone(), item.recipients.len());
                    item.recipients.push(recipient);
                }
            }
        }
        Some(Self { item, history })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(kind: EventKind, recipient: &str, attempt: u32) -> Event {
        Event {
            sender: Some("a@b.example".into()),
            recipient: Some(recipient.into()),
            attempt: Some(attempt),
            reply: Some("250 2.0.0 ok".into()),
            ..Event::new(Timestamp(1_340_000_000_000), kind, "ID")
        }
    }

    #[test]
    fn a_message_that_left_is_told_by_its_events() {
        let history = vec![
            Event { size: Some(7), ..event(EventKind::Received, "x@d.example,y@d.example", 0) },
            event(EventKind::Deferred, "x@d.example", 1),
            event(EventKind::Bounced, "y@d.example", 1),
            event(EventKind::Delivered, "x@d.example", 2),
        ];
        let told = Story::gone(history).unwrap();
        let now: Vec<_> = told
            .item
            .recipients
            .iter()
            .map(|to| (to.address.as_str(), to.state.as_str(), to.attempts))
            .collect();
        assert_eq!(now, [("x@d.example", "delivered", 2), ("y@d.example", "bounced", 1)]);
        assert_eq!((told.item.size, told.history.len()), (7, 4));
        assert!(Story::gone(Vec::new()).is_none());
    }

    #[test]
    fn wishes_pick_events_by_what_they_say() {
        let now = Timestamp(1_340_000_100_000);
        let wants = |wanted: Wanted, event: &Event| wanted.ready(now).unwrap().wants(event);
        let received = event(EventKind::Received, "x@d.example,y@d.example", 0);
        let some = |text: &str| Some(text.to_owned());
        assert!(wants(Wanted { recipient: some("Y@d.example"), ..Wanted::default() }, &received));
        assert!(!wants(Wanted { recipient: some("z@d.example"), ..Wanted::default() }, &received));
        assert!(wants(
            Wanted { sender: some("@b.example"), event: some("received"), ..Wanted::default() },
            &received
        ));
        let tried = Event { upstream: some("first"), ..event(EventKind::Deferred, "x@d.example", 1) };
        assert!(wants(Wanted { upstream: some("first"), ..Wanted::default() }, &tried));
        assert!(!wants(Wanted { upstream: some("second"), ..Wanted::default() }, &tried));
        assert!(!wants(Wanted { upstream: some("first"), ..Wanted::default() }, &received));
        assert!(!wants(Wanted { event: some("held"), ..Wanted::default() }, &received));
        assert!(wants(Wanted { since: some("100s"), ..Wanted::default() }, &received));
        assert!(!wants(Wanted { since: some("99s"), ..Wanted::default() }, &received));
        assert!(wants(Wanted { until: some("2012-06-18T06:13:20Z"), ..Wanted::default() }, &received));
        for bad in [
            Wanted { since: some("soon"), ..Wanted::default() },
            Wanted { event: some("lost"), ..Wanted::default() },
            Wanted { id: some("x"), ..Wanted::default() },
            Wanted { limit: Some(0), ..Wanted::default() },
            Wanted { cursor: some("x"), ..Wanted::default() },
        ] {
            assert!(bad.ready(now).is_err(), "{bad:?}");
        }
    }
}
