//! What refusals do to mail beyond the one message: the breaker's word before and behind an attempt,
//! and the release of what it held.

use std::time::Duration;

use super::{Orders, Runner};
use crate::{
    limits::breaker::{HELD, Refused},
    mail::outcome::{Evidence, Outcome, Scope},
    observe::{Event, EventKind},
    queue::{
        Action, Claim, Listed, QueueId, Settled,
        entry::{Entry, RecipientState},
    },
};

/// Between two looks for a probe, however soon one is wanted, and however late.
const LOOK: Duration = Duration::from_secs(2);
const LONGEST: Duration = Duration::from_secs(60);
/// Entries read at once.
const PAGE: usize = 500;

impl Runner {
    /// Lets mail that the breaker stopped go on: settings changed.
    pub(super) fn resume(&self) {
        self.0.breaker.reset();
        let runner = self.clone();
        tokio::spawn(async move { runner.release_all().await });
    }

    /// Opens gate and breaker: the operator wants a try. What the breaker held stays held until it is
    /// released, too.
    pub fn try_again(&self) {
        self.0.gate.reset();
        self.0.breaker.reset();
    }

    /// Holds a message that may not be tried; gives back one that may.
    pub(super) fn admit(&self, claim: Claim) -> Result<Claim, Settled> {
        let entry = claim.entry();
        match self.0.breaker.stops(&entry.id.to_string(), entry.reverse_path.as_str()) {
            None => Ok(claim),
            Some(reason) => Err(self.hold(claim, &reason)),
        }
    }

    /// What the breaker makes of an attempt: why the message is held instead of what it showed.
    pub(super) fn judged(&self, orders: &Orders, entry: &Entry, outcomes: &[Outcome]) -> Option<String> {
        let (breaker, waits) = (&self.0.breaker, orders.queue.retry);
        let (id, sender) = (entry.id.to_string(), entry.reverse_path.as_str());
        if outcomes.iter().any(|outcome| matches!(outcome, Outcome::Delivered(_))) {
            if breaker.succeeded(sender) {
                let runner = self.clone();
                tokio::spawn(async move { runner.release_all().await });
            }
            return None;
        }
        if let Some(evidence) = outcomes.iter().find_map(refused_sender) {
            return Some(breaker.sender_refused(waits, sender, evidence));
        }
        let Some(evidence) = outcomes.iter().find_map(refused) else {
            breaker.undecided(&id);
            return None;
        };
        match breaker.refused(orders.breaker_bounces, waits, &id, evidence) {
            Refused::Bounce => None,
            Refused::Hold(reason) => Some(reason),
        }
    }

    /// Notes what an attempt showed, and holds the message: nobody of it is given up.
    pub(super) fn settle_held(
        &self,
        mut claim: Claim,
        pending: &[usize],
        outcomes: Vec<Outcome>,
        reason: &str,
    ) -> Settled {
        let entry = claim.entry_mut();
        for (place, outcome) in pending.iter().zip(outcomes) {
            let recipient = &mut entry.recipients[*place];
            recipient.attempts += 1;
            recipient.last = Some(outcome.evidence().clone());
            if matches!(outcome, Outcome::Delivered(_)) {
                recipient.state = RecipientState::Delivered;
            }
        }
        self.tell(claim.entry(), pending, None);
        self.hold(claim, reason)
    }

    /// Sends a probe out of what is held, whenever one is wanted. Runs until it is dropped.
    pub(super) async fn probe(&self) {
        let mut last = None;
        loop {
            let stopped = self.0.breaker.stopped();
            let now = self.0.clock.now();
            let wanted = stopped.iter().filter(|stopped| stopped.open.wants_probe(now));
            let senders: Vec<Option<String>> = wanted.map(|stopped| stopped.sender.clone()).collect();
            let mut in_vain = false;
            for sender in &senders {
                let wants = |entry: &Entry| {
                    sender.as_ref().is_none_or(|sender| entry.reverse_path.as_str() == sender)
                };
                // Another each time: the oldest may be the only bad one.
                let found = match self.held_behind(last, wants).await {
                    None => self.held_behind(None, wants).await,
                    found => found,
                };
                match found {
                    Some(listed) => {
                        last = Some(listed.id);
                        self.release(&listed).await;
                    }
                    // The next message that comes will be the probe.
                    None => in_vain = true,
                }
            }
            let next = stopped.iter().map(|stopped| stopped.open.until.since(now)).min();
            let wait = next.filter(|_| !in_vain).map_or(LONGEST, |wait| wait.clamp(LOOK, LONGEST));
            let _ = tokio::time::timeout(wait, self.0.breaker.changed_once()).await;
        }
    }

    /// Releases all that the breaker stops no more.
    async fn release_all(&self) {
        let stopped: Vec<Option<String>> =
            self.0.breaker.stopped().into_iter().map(|stopped| stopped.sender).collect();
        let free = |entry: &Entry| {
            !stopped
                .iter()
                .any(|sender| sender.as_ref().is_none_or(|sender| entry.reverse_path.as_str() == sender))
        };
        let mut last = None;
        while let Some(listed) = self.held_behind(last, free).await {
            last = Some(listed.id);
            self.release(&listed).await;
        }
    }

    /// The first entry behind `after` that the breaker holds and `wants` picks.
    async fn held_behind(
        &self,
        mut after: Option<QueueId>,
        wants: impl Fn(&Entry) -> bool,
    ) -> Option<Listed> {
        loop {
            let page = self.0.queue.list(after, PAGE).await.ok()?;
            after = page.last().map(|listed| listed.id);
            after?;
            let is_held = |entry: &Entry| entry.held.as_ref().is_some_and(|held| held.starts_with(HELD));
            let found =
                |listed: &Listed| listed.entry.as_ref().is_some_and(|entry| is_held(entry) && wants(entry));
            if let Some(listed) = page.into_iter().find(found) {
                return Some(listed);
            }
        }
    }

    async fn release(&self, listed: &Listed) {
        // One that an operator has in hand at this moment is theirs.
        if self.0.queue.act(listed.id, Action::Release, "").await.is_ok() {
            self.0.observer.emit(Event::new(self.0.clock.now(), EventKind::Released, listed.id));
        }
    }
}

/// The refusal of a sender's address, unless it passes by itself.
fn refused_sender(outcome: &Outcome) -> Option<&Evidence> {
    match outcome {
        Outcome::Deferred(evidence) if evidence.scope == Scope::Sender && evidence.not_before().is_none() => {
            Some(evidence)
        }
        _ => None,
    }
}

/// A refusal for good in the upstream's words. What it said in advance is not one.
fn refused(outcome: &Outcome) -> Option<&Evidence> {
    match outcome {
        Outcome::Failed(evidence) if evidence.reply.is_some() => Some(evidence),
        _ => None,
    }
}
