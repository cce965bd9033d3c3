//! What becomes of a message behind an attempt: outcomes noted, the next try chosen, its sender told.

use std::time::Duration;

use super::{Orders, Runner};
use crate::{
    clock::Timestamp,
    config::Waits,
    dsn::{self, Failure, Undelivered},
    mail::{
        content::{self, Content},
        envelope::{Envelope, Handling, Origin},
        outcome::{Evidence, Outcome, Scope},
    },
    observe::{Delivery, Event, EventKind},
    queue::{
        Claim, Next, Report, Settled,
        entry::{Entry, RecipientState},
        retry,
    },
    smtp::address::{Mailbox, ReversePath},
};

/// After an end that leaves open whether the upstream took the message, the next try waits at least
/// this long (or the longest wait, if that is shorter): each try may be one more copy.
const UNCERTAIN_WAIT: Duration = Duration::from_secs(300);

impl Runner {
    /// Records outcomes, decides how the entry goes on, and reports what is final.
    pub(super) fn settle(
        &self,
        orders: &Orders,
        mut claim: Claim,
        pending: &[usize],
        outcomes: Vec<Outcome>,
        until: Option<Timestamp>,
    ) -> Settled {
        let now = self.clock().now();
        let over = is_over(orders, claim.entry(), now);
        let entry = claim.entry_mut();
        let somebody = outcomes.iter().any(|outcome| matches!(outcome, Outcome::Delivered(_)));
        let mut failed = Vec::new();
        let mut waits = Waiting::default();
        for (place, outcome) in pending.iter().zip(outcomes) {
            let recipient = &mut entry.recipients[*place];
            recipient.attempts += 1;
            let evidence = outcome.evidence();
            if evidence.uncertain {
                recipient.perhaps = Some(evidence.upstream.clone());
            }
            recipient.last = Some(evidence.clone());
            match outcome {
                Outcome::Delivered(_) => recipient.state = RecipientState::Delivered,
                Outcome::Failed(_) => {
                    recipient.state = RecipientState::Bounced;
                    failed.push(*place);
                }
                Outcome::Deferred(evidence)
                    if over && !(somebody && evidence.scope == Scope::Transaction) =>
                {
                    recipient.state = RecipientState::Expired;
                    failed.push(*place);
                }
                Outcome::Deferred(evidence) => {
                    waits.note(orders.queue.retry, &evidence, recipient.attempts, somebody)
                }
            }
        }
        let due = waits.time().map(|wait| match until {
            // They wait for the gate and for nothing else, so that they go as soon as that opens.
            Some(_) => now,
            None => now.after(wait),
        });
        pending.iter().for_each(|place| entry.recipients[*place].due = due);
        // Those for whom there was no room, or who go by another upstream, don't wait for these.
        let soonest = entry.pending().map(|(_, recipient)| recipient.due.unwrap_or(now)).min();
        let next = soonest.map_or(Next::Done, Next::Retry);
        let next_attempt = due.map(|due| until.unwrap_or(due));
        self.tell(claim.entry(), pending, next_attempt);
        let (reports, next) = self.reports(orders, &mut claim, &failed, next);
        self.queue().settle(claim, next, reports)
    }

    /// Who is told of the recipients that have failed. What nobody can be told is held, once all that
    /// can be delivered is.
    fn reports(
        &self,
        orders: &Orders,
        claim: &mut Claim,
        failed: &[usize],
        next: Next,
    ) -> (Vec<Report>, Next) {
        let entry = claim.entry();
        let lost = |state| matches!(state, RecipientState::Bounced | RecipientState::Expired);
        if !entry.recipients.iter().any(|recipient| lost(recipient.state)) {
            return (Vec::new(), next);
        }
        // A report that can't be delivered to the postmaster is not reported to the postmaster.
        let for_postmaster =
            || orders.postmaster.as_ref().filter(|to| entry.recipients.iter().all(|r| r.address != **to));
        let reason = match entry.reverse_path.mailbox().or_else(for_postmaster) {
            Some(_) if failed.is_empty() => return (Vec::new(), next),
            Some(to) => match self.report(orders, entry, claim.content(), failed, to) {
                Ok(content) => {
                    let recipients = vec![to.clone().into()];
                    let origin = Origin {
                        client: "report".to_owned(),
                        hello: orders.hostname.clone(),
                        ..Origin::default()
                    };
                    let envelope = Envelope {
                        reverse_path: ReversePath::NULL,
                        recipients,
                        handling: Handling::default(),
                    };
                    return (vec![Report { envelope, origin, content, held: None }], next);
                }
                Err(error) => format!("not delivered, and {error}"),
            },
            None => "not delivered, and there is no sender to tell".to_owned(),
        };
        if next != Next::Done {
            return (Vec::new(), next);
        }
        self.note_held(claim, &reason);
        (Vec::new(), Next::Hold)
    }

    fn note_held(&self, claim: &mut Claim, reason: &str) {
        claim.entry_mut().held = Some(reason.to_owned());
        self.observer().emit(Event {
            reply: Some(reason.to_owned()),
            ..Event::new(self.clock().now(), EventKind::Held, claim.entry().id)
        });
    }

    fn report(
        &self,
        orders: &Orders,
        entry: &Entry,
        content: &Content,
        failed: &[usize],
        to: &Mailbox,
    ) -> Result<Vec<u8>, dsn::ComposeError> {
        let head = head(content);
        let header = content::header_section(&head, content.size() == head.len() as u64).unwrap_or(&head);
        let failures = failed
            .iter()
            .filter_map(|place| {
                let recipient = &entry.recipients[*place];
                let evidence = recipient.last.as_ref()?;
                let expired = recipient.state == RecipientState::Expired;
                Some(Failure { recipient: &recipient.address, evidence, expired })
            })
            .collect();
        dsn::compose(&Undelivered {
            to,
            hostname: &orders.hostname,
            id: &entry.id.to_string(),
            arrival: entry.received,
            now: self.clock().now(),
            subject: content::decoded_subject(&head).as_deref(),
            message_id: entry.message_id.as_deref(),
            header,
            failures,
        })
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
            let delay = evidence.at.since(entry.received);
            if kind == EventKind::Delivered {
                metrics.delivered_after(delay);
            }
            self.observer().emit(Event {
                sender: Some(entry.reverse_path.as_str().to_owned()),
                recipient: Some(recipient.address.to_string()),
                upstream: Some(evidence.upstream.clone()),
                reply: Some(evidence.to_string()),
                attempt: Some(recipient.attempts),
                next_attempt: next_attempt.filter(|_| kind == EventKind::Deferred),
                delay_ms: Some(delay.as_millis() as u64),
                uncertain: evidence.uncertain,
                ..Event::new(evidence.at, kind, entry.id)
            });
        }
    }
}

/// Whether a message has outlived the queue's patience. Asked only behind an attempt, so that a clock
/// set forward expires nothing that was not just tried.
pub(super) fn is_over(orders: &Orders, entry: &Entry, now: Timestamp) -> bool {
    now.since(entry.received) >= orders.queue.lifetime
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

/// The start of the content, as far as a header section may reach.
fn head(content: &Content) -> bytes::Bytes {
    match content {
        Content::Memory(octets) => octets.clone(),
        Content::File { path, .. } => {
            use std::io::Read as _;
            let mut head = Vec::new();
            // A large message that failed; rare enough to read where we are.
            let read = std::fs::File::open(path)
                .and_then(|file| file.take(content::HEADER_MAX as u64).read_to_end(&mut head));
            if read.is_err() {
                head.clear();
            }
            head.into()
        }
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
