//! What becomes of a message behind an attempt: outcomes noted, the next try chosen.

use std::time::Duration;

use tokio::sync::broadcast::{self, error::RecvError};

use super::{Orders, Runner, report::News};
use crate::{
    clock::Timestamp,
    config::Waits,
    dsn::wish::Happened,
    mail::outcome::{Evidence, Outcome, Scope},
    observe::{Delivery, Event, EventKind, some_of},
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
        let taken = match entry.handling.deliver_by {
            Some(by) if by.trace => Happened::Traced,
            _ => Happened::Taken { promises: upstream.is_some_and(|upstream| upstream.dsn) },
        };
        let goes_on = goes_on(&outcomes);
        let mut news = News::default();
        let mut waits = Waiting::new(orders.queue.retry, goes_on);
        for (place, outcome) in pending.iter().zip(outcomes) {
            let recipient = &mut entry.recipients[*place];
            note(recipient, outcome.evidence(), goes_on);
            recipient.due = None;
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
                        && !is_next(&evidence, goes_on) =>
                {
                    recipient.state = RecipientState::Expired;
                    news.note(*place, recipient, Happened::Lost);
                }
                Outcome::Deferred(evidence) => waits.note(*place, &evidence, recipient.attempts),
            }
        }
        for (place, wait) in waits.times() {
            let due = match until {
                // They wait for the gate and for nothing else, so that they go as soon as that opens.
                Some(_) => now,
                None => in_time(entry, now, now.after(wait)),
            };
            entry.recipients[place].due = Some(due);
        }
        // Those for whom there was no room, or who go by another upstream, don't wait for these.
        let soonest = entry.pending().map(|(_, recipient)| recipient.due.unwrap_or(now)).min();
        let next = soonest.map_or(Next::Done, Next::Retry);
        if next != Next::Done && !over && is_late(orders, entry, now) {
            news.warn(entry);
        }
        self.tell(claim.entry(), pending, |recipient| until.or(recipient.due));
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
        let joined =
            |entry: &Entry| some_of(entry.pending().map(|(_, recipient)| recipient.address.as_str()));
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

    /// Events and counters of what an attempt showed. `next_attempt` says when a deferred recipient is tried again.
    pub(super) fn tell(
        &self,
        entry: &Entry,
        pending: &[usize],
        next_attempt: impl Fn(&Recipient) -> Option<Timestamp>,
    ) {
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
                next_attempt: next_attempt(recipient).filter(|_| kind == EventKind::Deferred),
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

/// Whether somebody of a message got an answer of its own. Then those for whom there was no room may go at once,
/// in the next transaction: there are fewer of them each time, so that this ends.
pub(super) fn goes_on(outcomes: &[Outcome]) -> bool {
    outcomes.iter().any(|outcome| {
        matches!(outcome, Outcome::Delivered(_)) || outcome.evidence().scope == Scope::Recipient
    })
}

/// Whether nothing was said of a recipient but that it goes in the next transaction.
fn is_next(evidence: &Evidence, goes_on: bool) -> bool {
    goes_on && evidence.scope == Scope::Transaction
}

/// Notes in a recipient what an attempt showed, whatever becomes of it. To have been the next is no attempt: its
/// first real answer must not count as the last that it may get.
pub(super) fn note(recipient: &mut Recipient, evidence: &Evidence, goes_on: bool) {
    recipient.attempts = recipient.attempts.saturating_add(u32::from(!is_next(evidence, goes_on)));
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
    // RFC 4865: until then it waits because its sender wants it to.
    let since = entry.handling.hold_until.map_or(entry.received, |until| until.max(entry.received));
    let waits_long = orders.queue.delay_warning.is_some_and(|delay| now.since(since) >= delay);
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

/// How long the recipients of an entry wait, each as long as was said of it.
#[derive(Debug)]
struct Waiting {
    waits: Waits,
    /// The same for all, so that those who wait equally long go together again.
    random: f64,
    goes_on: bool,
    /// By their places.
    each: Vec<(usize, Duration)>,
    /// No sooner than this, whoever wants it.
    at_least: Duration,
}

impl Waiting {
    fn new(waits: Waits, goes_on: bool) -> Self {
        Self { waits, random: fastrand::f64(), goes_on, each: Vec::new(), at_least: Duration::ZERO }
    }

    fn note(&mut self, place: usize, evidence: &Evidence, attempts: u32) {
        let wait = if is_next(evidence, self.goes_on) {
            Duration::ZERO
        } else {
            retry::wait(self.waits, attempts, self.random)
        };
        if evidence.uncertain {
            self.at_least = UNCERTAIN_WAIT.min(self.waits.longest);
        }
        // The upstream said when. It said so to one after the other: full seconds keep them together.
        let told = evidence.not_before().map_or(Duration::ZERO, |at| at.since(evidence.at));
        let told = Duration::from_secs(told.as_millis().div_ceil(1_000) as u64);
        self.each.push((place, wait.max(told)));
    }

    fn times(&self) -> impl Iterator<Item = (usize, Duration)> {
        self.each.iter().map(|(place, wait)| (*place, (*wait).max(self.at_least)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mail::outcome::{Advice, Who};

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

    fn times(waiting: &Waiting) -> Vec<Duration> {
        waiting.times().map(|(_, wait)| wait).collect()
    }

    #[test]
    fn too_many_recipients_go_on_at_once_only_when_some_have_gone() {
        let full = evidence(Scope::Transaction, false);
        let deferred = |scope| Outcome::Deferred(evidence(scope, false));
        assert!(goes_on(&[
            Outcome::Delivered(evidence(Scope::Message, false)),
            deferred(Scope::Transaction)
        ]));
        assert!(goes_on(&[deferred(Scope::Recipient), deferred(Scope::Transaction)]), "it waits for itself");
        let mut waiting = Waiting::new(WAITS, true);
        waiting.note(0, &full, 0);
        assert_eq!(times(&waiting), [Duration::ZERO]);
        // Nobody got through: trying the same again at once would go on for ever.
        assert!(!goes_on(&[
            deferred(Scope::Transaction),
            deferred(Scope::Upstream),
            deferred(Scope::Message)
        ]));
        let mut waiting = Waiting::new(WAITS, false);
        waiting.note(0, &full, 1);
        assert!(times(&waiting)[0] >= Duration::from_secs(48));
    }

    #[test]
    fn after_a_lost_final_reply_nobody_of_the_message_is_tried_soon() {
        let mut waiting = Waiting::new(WAITS, false);
        waiting.note(0, &evidence(Scope::Upstream, true), 1);
        waiting.note(1, &evidence(Scope::Recipient, false), 1);
        assert_eq!(times(&waiting), [UNCERTAIN_WAIT; 2]);
        let short = Waits { first: Duration::from_secs(1), longest: Duration::from_secs(2) };
        let mut waiting = Waiting::new(short, false);
        waiting.note(0, &evidence(Scope::Upstream, true), 1);
        assert_eq!(times(&waiting), [Duration::from_secs(2)]);
    }

    #[test]
    fn who_waits_equally_long_goes_together_and_waits_for_nobody_else() {
        let told = |at: u64, seen_later: u64| {
            let not_before = Some(Timestamp(at).after(Duration::from_secs(300)));
            let advice = Advice { who: Who::Nobody, help: None, not_before, tries: None, slower: None };
            let at = Timestamp(at + seen_later);
            Evidence { at, advice: Some(Box::new(advice)), ..evidence(Scope::Recipient, false) }
        };
        let plain = evidence(Scope::Recipient, false);
        let mut waiting = Waiting::new(WAITS, true);
        let seen =
            [told(1_000, 0), plain.clone(), told(1_070, 3), plain, evidence(Scope::Transaction, false)];
        seen.iter().enumerate().for_each(|(place, evidence)| waiting.note(place, evidence, 1));
        let times = times(&waiting);
        assert_eq!((times[0], times[2]), (Duration::from_secs(300), Duration::from_secs(300)));
        assert_eq!(times[1], times[3]);
        assert!(times[1] >= Duration::from_secs(48) && times[1] <= Duration::from_secs(72));
        assert_eq!(times[4], Duration::ZERO);
    }
}
