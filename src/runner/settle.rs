//! What becomes of a message behind an attempt: outcomes noted, the next try chosen.

use std::time::Duration;

use tokio::sync::broadcast::{self, error::RecvError};

use super::{Orders, Runner, report::News};
use crate::{
    clock::Timestamp,
    config::Waits,
    dsn::wish::Happened,
    mail::outcome::{Evidence, Outcome, Scope},
    observe::{Delivery, Event, EventKind},
    queue::{
        Claim, DAMAGED, Next, QueueId, Settled,
        entry::{Entry, Recipient, RecipientState},
        retry,
    },
    smtp::extension::Capabilities,
};

/// After an end that leaves open whether the upstream took the message, the next try waits at least
/// this long (or the longest wait, if that is shorter): each try may be one more copy.
const UNCERTAIN_WAIT: Duration = Duration::from_secs(300);

impl Runner {
    /// Records outcomes, decides how the entry goes on, and tells whoever wants to hear of it.
    /// `upstream` is what the upstream can do, if it could be asked; `until` is when it will be, if
    /// not now.
    pub(super) fn settle(
        &self,
        orders: &Orders,
        mut claim: Claim,
        pending: &[usize],
        outcomes: Vec<Outcome>,
        upstream: Option<&Capabilities>,
        until: Option<Timestamp>,
    ) -> Settled {
        let now = self.clock().now();
        let over = is_over(orders, claim.entry(), now);
        let in_vain = self.has_waited_in_vain(orders, claim.entry(), now);
        let entry = claim.entry_mut();
        let somebody = outcomes.iter().any(|outcome| matches!(outcome, Outcome::Delivered(_)));
        let taken = match entry.handling.deliver_by {
            Some(by) if by.trace => Happened::Traced,
            _ => Happened::Taken { promises: upstream.is_some_and(|upstream| upstream.dsn) },
        };
        let mut news = News::default();
        let mut waits = Waiting::default();
        for (place, outcome) in pending.iter().zip(outcomes) {
            let recipient = &mut entry.recipients[*place];
            note(recipient, outcome.evidence());
            match outcome {
                Outcome::Delivered(_) => {
                    recipient.state = RecipientState::Delivered;
                    news.note(*place, recipient, taken);
                }
                Outcome::Failed(_) => {
                    recipient.state = RecipientState::Bounced;
                    news.note(*place, recipient, Happened::Lost);
                }
                Outcome::Deferred(evidence)
                    if (if is_its_own(&evidence) { over } else { in_vain })
                        && !(somebody && evidence.scope == Scope::Transaction) =>
                {
                    recipient.state = RecipientState::Expired;
                    news.note(*place, recipient, Happened::Lost);
                }
                Outcome::Deferred(evidence) => {
                    waits.note(orders.queue.retry, &evidence, recipient.attempts, somebody)
                }
            }
        }
        let due = waits.time().map(|wait| match until {
            // They wait for the gate and for nothing else, so that they go as soon as that opens.
            Some(_) => now,
            None => in_time(entry, now, now.after(wait)),
        });
        pending.iter().for_each(|place| entry.recipients[*place].due = due);
        // Those for whom there was no room, or who go by another upstream, don't wait for these.
        let soonest = entry.pending().map(|(_, recipient)| recipient.due.unwrap_or(now)).min();
        let next = soonest.map_or(Next::Done, Next::Retry);
        if next != Next::Done && !over && is_late(orders, entry, now) {
            news.warn(entry);
        }
        let next_attempt = due.map(|due| until.unwrap_or(due));
        self.tell(claim.entry(), pending, next_attempt);
        let eight_bit = upstream.is_some_and(|upstream| upstream.eight_bit_mime);
        let (reports, next) = self.reports(orders, &mut claim, &news, eight_bit, next);
        self.queue().settle(claim, next, reports)
    }

    /// Whether a message's time is over also where nothing was seen but that no mail goes. A clock that was set
    /// forward while the upstream was away, or while nobody watched it, would end all that waits by a single
    /// connection that failed: so what is older than the clock's straight course gets the longest wait more.
    pub(super) fn has_waited_in_vain(&self, orders: &Orders, entry: &Entry, at: Timestamp) -> bool {
        let now = self.clock().now();
        let grace = retry::longest(orders.queue.retry).min(orders.queue.lifetime);
        is_over(orders, entry, at) && {
            let mut course = self.course();
            course.has_seen(now, entry.received) || course.is_straight_for(now, grace)
        }
    }

    pub(super) fn note_held(&self, claim: &mut Claim, reason: &str) {
        claim.entry_mut().held = Some(reason.to_owned());
        self.tell_held(claim.entry().id, Some(claim.entry()), reason);
    }

    fn tell_held(&self, id: QueueId, entry: Option<&Entry>, reason: &str) {
        if reason == DAMAGED {
            self.observer().metrics().damaged.inc();
        }
        let joined = |entry: &Entry| {
            let pending: Vec<&str> = entry.pending().map(|(_, r)| r.address.as_str()).collect();
            pending.join(",")
        };
        self.observer().emit(Event {
            sender: entry.map(|entry| entry.reverse_path.as_str().to_owned()),
            recipient: entry.map(joined),
            reply: Some(reason.to_owned()),
            ..Event::new(self.clock().now(), EventKind::Held, id)
        });
    }

    /// Tells of what the queue finds damaged before anybody tries it. Runs until it is dropped.
    pub(super) async fn tell_of_damage(&self, mut found: broadcast::Receiver<QueueId>) {
        loop {
            match found.recv().await {
                Ok(id) => {
                    let entry = self.queue().get(id).await.ok().flatten().and_then(|listed| listed.entry);
                    self.tell_held(id, entry.as_ref(), DAMAGED);
                }
                // They are listed as held all the same.
                Err(RecvError::Lagged(untold)) => {
                    self.observer().metrics().damaged.inc_by(untold);
                }
                Err(RecvError::Closed) => return,
            }
        }
    }

    pub(super) fn hold(&self, mut claim: Claim, reason: &str) -> Settled {
        tracing::error!(id = %claim.entry().id, reason, "message held");
        self.note_held(&mut claim, reason);
        self.queue().settle(claim, Next::Hold, Vec::new())
    }

    /// Events and counters of what an attempt showed.
    pub(super) fn tell(&self, entry: &Entry, pending: &[usize], next_attempt: Option<Timestamp>) {
        let metrics = self.observer().metrics();
        for place in pending {
            let recipient = &entry.recipients[*place];
            let Some(evidence) = &recipient.last else { continue };
            let (kind, result) = match recipient.state {
                RecipientState::Delivered => (EventKind::Delivered, Delivery::delivered),
                RecipientState::Pending => (EventKind::Deferred, Delivery::deferred),
                RecipientState::Bounced => (EventKind::Bounced, Delivery::bounced),
                RecipientState::Expired => (EventKind::Expired, Delivery::bounced),
            };
            metrics.delivery(&evidence.upstream, result);
            if evidence.uncertain {
                metrics.uncertain(&evidence.upstream);
            }
            let delay = evidence.at.since(entry.received);
            if kind == EventKind::Delivered {
                metrics.delivered_after(delay);
            }
            self.observer().emit(Event {
                sender: Some(entry.reverse_path.as_str().to_owned()),
                recipient: Some(recipient.address.to_string()),
                upstream: Some(evidence.upstream.clone()).filter(|upstream| !upstream.is_empty()),
                reply: Some(evidence.to_string()),
                attempt: Some(recipient.attempts),
                next_attempt: next_attempt.filter(|_| kind == EventKind::Deferred),
                delay_ms: Some(delay.as_millis() as u64),
                uncertain: evidence.uncertain,
                tls: evidence.tls.clone(),
                ..Event::new(evidence.at, kind, entry.id)
            });
        }
    }
}

/// The same outcomes; where the upstream says "not now" of what it will never take, so many tries are worth it,
/// and the last of them is a refusal for good like any other.
pub(super) fn given_up(outcomes: Vec<Outcome>, entry: &Entry, places: &[usize]) -> Vec<Outcome> {
    let is_last = |evidence: &Evidence, place: usize| {
        evidence.tries().is_some_and(|tries| entry.recipients[place].attempts + 1 >= tries)
    };
    let judge = |(outcome, place): (Outcome, &usize)| match outcome {
        Outcome::Deferred(evidence) if is_last(&evidence, *place) => Outcome::Failed(evidence),
        other => other,
    };
    outcomes.into_iter().zip(places).map(judge).collect()
}

/// Notes in a recipient what an attempt showed, whatever becomes of it.
pub(super) fn note(recipient: &mut Recipient, evidence: &Evidence) {
    recipient.attempts += 1;
    if evidence.uncertain {
        recipient.perhaps = Some(evidence.upstream.clone());
    }
    recipient.last = Some(evidence.clone());
}

/// Whether it was said of this message, and not of the way that all take.
fn is_its_own(evidence: &Evidence) -> bool {
    matches!(evidence.scope, Scope::Recipient | Scope::Message | Scope::Transaction | Scope::Sender)
}

/// Whether a message has outlived the queue's patience, or the time that its sender gave it. Asked
/// only behind an attempt, so that a clock set forward expires nothing that was not just tried.
pub(super) fn is_over(orders: &Orders, entry: &Entry, now: Timestamp) -> bool {
    now >= given_up_at(orders, entry)
}

/// When an attempt that brings no yes will have been the last.
pub(super) fn given_up_at(orders: &Orders, entry: &Entry) -> Timestamp {
    let patience = entry.received.after(orders.queue.lifetime);
    match entry.handling.deliver_by {
        // RFC 2852 §4: then it is worth nothing any more.
        Some(by) if by.or_return => patience.min(by.time),
        _ => patience,
    }
}

/// Whether the sender of a message should be told now that it is late.
pub(super) fn is_late(orders: &Orders, entry: &Entry, now: Timestamp) -> bool {
    let waits_long = orders.queue.delay_warning.is_some_and(|delay| now.since(entry.received) >= delay);
    // RFC 2852 §4: wanted by a time, but not worthless behind it.
    let is_overdue = entry.handling.deliver_by.is_some_and(|by| !by.or_return && now >= by.time);
    !entry.warned && (waits_long || is_overdue)
}

/// A try is not put off beyond the time by which the sender wants the message to arrive: it would be
/// the last, or the one after which the sender is told.
fn in_time(entry: &Entry, now: Timestamp, due: Timestamp) -> Timestamp {
    match entry.handling.deliver_by {
        Some(by) if by.time > now => due.min(by.time),
        _ => due,
    }
}

/// How long an entry waits, of what its recipients want.
#[derive(Debug, Default)]
struct Waiting {
    soonest: Option<Duration>,
    /// No sooner than this, whoever wants it.
    at_least: Duration,
}

impl Waiting {
    fn note(&mut self, waits: Waits, evidence: &Evidence, attempts: u32, somebody_was_delivered: bool) {
        let wait = if evidence.scope == Scope::Transaction && somebody_was_delivered {
            // The same mail may pass at once in another transaction; and the list gets shorter.
            Duration::ZERO
        } else {
            retry::wait(waits, attempts, fastrand::f64())
        };
        if evidence.uncertain {
            self.at_least = UNCERTAIN_WAIT.min(waits.longest);
        }
        // The upstream said when.
        let wait = evidence.not_before().map_or(wait, |at| wait.max(at.since(evidence.at)));
        self.soonest = Some(self.soonest.map_or(wait, |soonest| soonest.min(wait)));
    }

    fn time(&self) -> Option<Duration> {
        self.soonest.map(|soonest| soonest.max(self.at_least))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WAITS: Waits = Waits { first: Duration::from_secs(60), longest: Duration::from_secs(3_600) };

    fn evidence(scope: Scope, uncertain: bool) -> Evidence {
        Evidence {
            at: Timestamp(0),
            upstream: "up".into(),
            phase: "RCPT".into(),
            scope,
            reply: None,
            explanation: None,
            status: None,
            advice: None,
            uncertain,
            tls: None,
        }
    }

    #[test]
    fn too_many_recipients_go_on_at_once_only_when_some_have_gone() {
        let mut waiting = Waiting::default();
        waiting.note(WAITS, &evidence(Scope::Transaction, false), 1, true);
        assert_eq!(waiting.time(), Some(Duration::ZERO));
        // Nobody got through: trying the same again at once would go on for ever.
        let mut waiting = Waiting::default();
        waiting.note(WAITS, &evidence(Scope::Transaction, false), 1, false);
        assert!(waiting.time() >= Some(Duration::from_secs(48)));
    }

    #[test]
    fn after_a_lost_final_reply_nobody_of_the_message_is_tried_soon() {
        let mut waiting = Waiting::default();
        waiting.note(WAITS, &evidence(Scope::Upstream, true), 1, false);
        waiting.note(WAITS, &evidence(Scope::Recipient, false), 1, false);
        assert_eq!(waiting.time(), Some(UNCERTAIN_WAIT));
        let short = Waits { first: Duration::from_secs(1), longest: Duration::from_secs(2) };
        let mut waiting = Waiting::default();
        waiting.note(short, &evidence(Scope::Upstream, true), 1, false);
        assert_eq!(waiting.time(), Some(Duration::from_secs(2)));
    }

    #[test]
    fn with_nobody_left_there_is_nothing_to_wait_for() {
        assert_eq!(Waiting::default().time(), None);
    }
}
