//! What refusals do to mail beyond the one message: the breaker's word before and behind an attempt,
//! and the release of what it held.

use std::time::Duration;

use super::{
    Orders, Runner,
    lane::{Job, Lane},
    report::is_report,
    settle::{goes_on, is_over, note},
};
use crate::{
    delivery::phase::Phase,
    limits::breaker::{Breaker, HELD, Refused},
    mail::outcome::{Evidence, Outcome, Scope},
    observe::{Event, EventKind},
    queue::{Action, Claim, Listed, Next, QueueId, Search, Settled, Standing, entry::Entry},
};

/// Between two looks for a probe, however soon one is wanted, and however late.
const LOOK: Duration = Duration::from_secs(2);
const LONGEST: Duration = Duration::from_secs(60);
/// Entries read at once.
const PAGE: usize = 500;

impl Runner {
    /// Lets mail that breakers stopped go on: settings changed.
    pub(super) fn resume(&self) {
        for lane in self.lanes().iter() {
            lane.breaker.reset();
        }
        let runner = self.clone();
        tokio::spawn(async move { runner.release_all(HELD, |_| true).await });
    }

    /// Opens gates and breakers: the operator wants a try. What the breakers held stays held until it
    /// is released, too.
    pub fn try_again(&self) {
        for lane in self.lanes().iter() {
            lane.gate.reset();
            lane.breaker.reset();
        }
    }

    /// Holds a message that may not be tried, or has it wait; gives back one that may.
    pub(super) fn admit(&self, lane: &Lane, job: Job) -> Result<Job, Settled> {
        let entry = job.claim.entry();
        if let Some(evidence) = lane.breaker.pause_of(entry.reverse_path.as_str()) {
            return Err(self.put_back(job, evidence));
        }
        match lane.breaker.stops(&entry.id.to_string(), entry.reverse_path.as_str()) {
            None => Ok(job),
            Some(reason) => Err(self.hold(job.claim, &reason)),
        }
    }

    /// Has a message wait for its sender's pause to end. Nothing was tried, so nothing counts as a try.
    fn put_back(&self, job: Job, evidence: Evidence) -> Settled {
        let (orders, Job { mut claim, places }) = (self.orders(), job);
        if is_over(&orders, claim.entry(), evidence.at) {
            // What was said then was an attempt at this one as well: it would have been its.
            let outcomes = vec![Outcome::Deferred(evidence); places.len()];
            return self.settle(&orders, claim, &places, outcomes, None, None);
        }
        let entry = claim.entry_mut();
        let now = self.clock().now();
        for place in places {
            let recipient = &mut entry.recipients[place];
            recipient.due = evidence.not_before();
            recipient.last = Some(evidence.clone());
        }
        let soonest = entry.pending().map(|(_, recipient)| recipient.due.unwrap_or(now)).min();
        self.queue().settle(claim, Next::Retry(soonest.unwrap_or(now)), Vec::new())
    }

    /// What the breaker makes of an attempt: why the message is held instead of what it showed.
    pub(super) fn judged(
        &self,
        orders: &Orders,
        lane: &Lane,
        entry: &Entry,
        outcomes: &[Outcome],
    ) -> Option<String> {
        let (breaker, waits) = (&lane.breaker, orders.queue.retry);
        let (id, sender) = (entry.id.to_string(), entry.reverse_path.as_str());
        if outcomes.iter().any(|outcome| matches!(outcome, Outcome::Delivered(_))) {
            // That a report of a bounce passes does not mean that what bounced would.
            if is_report(entry) {
                breaker.undecided(&id);
                return None;
            }
            if breaker.succeeded(sender) {
                let (runner, breaker) = (self.clone(), breaker.clone());
                tokio::spawn(async move { runner.release_freed(&breaker).await });
            }
            return None;
        }
        if let Some(evidence) = outcomes.iter().find_map(refused_sender) {
            return Some(breaker.sender_refused(waits, sender, evidence));
        }
        if let Some(evidence) = outcomes.iter().find_map(paused_sender) {
            breaker.sender_paused(sender, evidence);
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

    /// Notes what an attempt showed, and holds the message: nobody of it is given up. Nobody was
    /// delivered either, for then [`Self::judged`] holds nothing, so there is nothing to report.
    pub(super) fn settle_held(
        &self,
        mut claim: Claim,
        pending: &[usize],
        outcomes: Vec<Outcome>,
        reason: &str,
    ) -> Settled {
        let entry = claim.entry_mut();
        let goes_on = goes_on(&outcomes);
        for (place, outcome) in pending.iter().zip(outcomes) {
            note(&mut entry.recipients[*place], outcome.evidence(), goes_on);
        }
        self.tell(claim.entry(), pending, |_| None);
        self.hold(claim, reason)
    }

    /// Sends a probe out of what a breaker holds, whenever one is wanted. Runs until it is dropped.
    pub(super) async fn probe(&self, breaker: &Breaker) {
        let mut last = None;
        loop {
            let changed = breaker.changed_once();
            let stopped = breaker.stopped();
            let now = self.clock().now();
            let wanted = stopped.iter().filter(|stopped| stopped.open.wants_probe(now));
            let senders: Vec<Option<String>> = wanted.map(|stopped| stopped.sender.clone()).collect();
            let mut in_vain = false;
            for sender in &senders {
                let wants = |entry: &Entry| {
                    sender.as_ref().is_none_or(|sender| entry.reverse_path.as_str() == sender)
                };
                // Another each time: the oldest may be the only bad one.
                let found = match self.held_behind(last, &breaker.held(), wants).await {
                    None => self.held_behind(None, &breaker.held(), wants).await,
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
            let _ = tokio::time::timeout(wait, changed).await;
        }
    }

    /// Releases all that a breaker held and stops no more.
    async fn release_freed(&self, breaker: &Breaker) {
        let stopped: Vec<Option<String>> =
            breaker.stopped().into_iter().map(|stopped| stopped.sender).collect();
        let free = |entry: &Entry| {
            !stopped
                .iter()
                .any(|sender| sender.as_ref().is_none_or(|sender| entry.reverse_path.as_str() == sender))
        };
        self.release_all(&breaker.held(), free).await;
    }

    /// Releases what is held for a reason that begins so and `wants` picks.
    async fn release_all(&self, held: &str, wants: impl Fn(&Entry) -> bool) {
        let mut last = None;
        while let Some(listed) = self.held_behind(last, held, &wants).await {
            last = Some(listed.id);
            self.release(&listed).await;
        }
    }

    /// The first entry behind `after` that is held for a reason that begins so and `wants` picks.
    async fn held_behind(
        &self,
        mut after: Option<QueueId>,
        held: &str,
        wants: impl Fn(&Entry) -> bool,
    ) -> Option<Listed> {
        loop {
            let search = Search { standing: Standing::Held, ..Search::default() };
            let page = self.queue().search(search, after, PAGE).await.ok()?;
            after = page.last().map(|listed| listed.id);
            after?;
            let is_held = |entry: &Entry| entry.held.as_ref().is_some_and(|reason| reason.starts_with(held));
            let found =
                |listed: &Listed| listed.entry.as_ref().is_some_and(|entry| is_held(entry) && wants(entry));
            if let Some(listed) = page.into_iter().find(found) {
                return Some(listed);
            }
        }
    }

    async fn release(&self, listed: &Listed) {
        // One that an operator has in hand at this moment is theirs.
        if self.queue().act(listed.id, Action::Release, "").await == Ok(true) {
            self.observer().emit(Event::new(self.clock().now(), EventKind::Released, listed.id));
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

/// What the upstream said of a sender, where it will take its mail again by itself.
fn paused_sender(outcome: &Outcome) -> Option<&Evidence> {
    match outcome {
        Outcome::Deferred(evidence) if evidence.scope == Scope::Sender && evidence.not_before().is_some() => {
            Some(evidence)
        }
        _ => None,
    }
}

/// A refusal for good, in the upstream's words or in those of its EHLO: what it does not offer from one day
/// to the next would bounce one message after another as well. What we find wrong ourselves is none.
fn refused(outcome: &Outcome) -> Option<&Evidence> {
    match outcome {
        Outcome::Failed(evidence) if evidence.reply.is_some() || evidence.phase == Phase::Mail.name() => {
            Some(evidence)
        }
        _ => None,
    }
}
