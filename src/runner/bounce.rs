//! What an operator returns to its sender.

use super::{Orders, Runner, report::News};
use crate::{
    clock::Timestamp,
    dsn::wish::{self, Happened},
    mail::outcome::{Evidence, Scope},
    observe::{Event, EventKind},
    queue::{
        ActionError, DAMAGED, Next, QueueId,
        entry::{Entry, Recipient, RecipientState},
    },
    smtp::{address::Mailbox, reply::Enhanced},
};

/// What every report of this kind says first.
const WORDS: &str = "returned by the operator of this relay";

/// What it says of a message of which only the envelope is left, unless the operator says more.
const WORDS_DAMAGED: &str = "its content was damaged on this relay's disk and can't be sent";

/// Who was told that a message was returned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told {
    /// Its sender, or the postmaster in the sender's place.
    Somebody(Mailbox),
    /// Nobody: that is how its sender wants it (RFC 3461 §4.1).
    Nobody,
}

/// A message was not returned.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BounceError {
    /// The queue says no.
    #[error(transparent)]
    Queue(#[from] ActionError),
    /// A report or its like (RFC 5321 §4.5.5).
    #[error(
        "the message has no sender to return it to: set smtp_postmaster to an address that it was not for, or delete it"
    )]
    NobodyToTell,
}

impl Runner {
    /// Gives up all that are still to be reached, and tells the sender, in one transaction. Of a
    /// message that is held with nobody left to reach, those are told of who were given up before.
    ///
    /// # Errors
    /// See [`BounceError`]; the message is as it was.
    pub async fn bounce(&self, id: QueueId, reason: Option<&str>) -> Result<Told, BounceError> {
        let orders = self.orders();
        let mut claim = self.queue().claim_for_operator(id).await?;
        let now = self.clock().now();
        let (places, told) = {
            let entry = claim.entry();
            let places = given_up(entry);
            (places.clone(), whom_to_tell(&orders, entry, &places).ok_or(BounceError::NobodyToTell)?)
        };
        let entry = claim.entry_mut();
        let damage = (entry.held.as_deref() == Some(DAMAGED)).then_some(WORDS_DAMAGED);
        let reason = reason.or(damage);
        let mut news = News::default();
        for place in &places {
            let recipient = &mut entry.recipients[*place];
            if recipient.state == RecipientState::Pending {
                recipient.last = Some(evidence(recipient, reason, now));
                recipient.state = RecipientState::Bounced;
            }
            news.note(*place, recipient, Happened::Lost);
        }
        let returned = entry.clone();
        let (reports, next) = self.reports(&orders, &mut claim, &news, false, Next::Done);
        self.queue().settle_once(claim, next, reports).durable().await.map_err(ActionError::Fault)?;
        // Known only now: what could not be recorded has not happened.
        for place in places {
            self.tell_bounced(&returned, &returned.recipients[place], now);
        }
        Ok(told)
    }

    fn tell_bounced(&self, entry: &Entry, recipient: &Recipient, now: Timestamp) {
        self.observer().emit(Event {
            sender: Some(entry.reverse_path.as_str().to_owned()),
            recipient: Some(recipient.address.to_string()),
            reply: recipient.last.as_ref().map(ToString::to_string),
            attempt: Some(recipient.attempts),
            delay_ms: Some(now.since(entry.received).as_millis() as u64),
            ..Event::new(now, EventKind::Bounced, entry.id)
        });
    }
}

/// Those still to be reached; or else those who were not.
fn given_up(entry: &Entry) -> Vec<usize> {
    let pending: Vec<usize> = entry.pending().map(|(place, _)| place).collect();
    if !pending.is_empty() {
        return pending;
    }
    let lost = |recipient: &Recipient| recipient.state != RecipientState::Delivered;
    entry.recipients.iter().enumerate().filter(|(_, recipient)| lost(recipient)).map(|(at, _)| at).collect()
}

/// The same answer that [`Runner::reports`] will come to; `None` if it would hold the message.
fn whom_to_tell(orders: &Orders, entry: &Entry, places: &[usize]) -> Option<Told> {
    let wanted = |place: &usize| wish::report(Happened::Lost, entry.recipients[*place].notify).is_some();
    if !places.iter().any(wanted) {
        return Some(Told::Nobody);
    }
    let postmaster =
        || orders.postmaster.as_ref().filter(|to| entry.recipients.iter().all(|r| r.address != **to));
    entry.reverse_path.mailbox().or_else(postmaster).cloned().map(Told::Somebody)
}

/// Why, and what was the last answer before.
fn evidence(recipient: &Recipient, reason: Option<&str>, now: Timestamp) -> Evidence {
    let reason = reason.map_or(String::new(), |reason| format!(": {reason}"));
    let before =
        recipient.last.as_ref().map_or(String::new(), |last| format!(" (the last answer was: {last})"));
    Evidence {
        at: now,
        upstream: String::new(),
        phase: "bounce".to_owned(),
        scope: Scope::Message,
        reply: None,
        explanation: Some(format!("{WORDS}{reason}{before}")),
        // RFC 3463 §3.1: why an operator does so fits none of the other subjects.
        status: Some(Enhanced(5, 0, 0)),
        advice: None,
        uncertain: false,
        tls: None,
    }
}
