//! A transaction with the upstream under way: who was accepted so far, and what became of the others.

use super::{Message, phase::Phase};
use crate::mail::outcome::{Evidence, Outcome};

/// A transaction under way: `None` stands for a recipient that was accepted so far.
pub(super) struct Transaction<'t, 'm> {
    /// What is carried.
    pub message: &'t Message<'m>,
    /// In the order of its recipients.
    pub outcomes: Vec<Option<Outcome>>,
    /// All of the content was on its way before the envelope was answered.
    pub content_sent: bool,
    /// MAIL or RCPT was refused because the connection has carried what it may, which says nothing of this message.
    pub used_up: bool,
}

impl<'t, 'm> Transaction<'t, 'm> {
    /// Nobody is judged yet.
    pub(super) fn new(message: &'t Message<'m>) -> Self {
        Self { message, outcomes: Vec::new(), content_sent: false, used_up: false }
    }

    /// The places of those who have no outcome yet.
    pub(super) fn open(&self) -> impl Iterator<Item = usize> {
        let open = |(place, outcome): (usize, &Option<Outcome>)| outcome.is_none().then_some(place);
        self.outcomes.iter().enumerate().filter_map(open)
    }

    /// Whether the content went out for nobody: all were refused before.
    pub(super) fn is_unsent(&self) -> bool {
        let envelope = [Phase::Mail.name(), Phase::Rcpt.name()];
        let refused = |outcome: &Outcome| envelope.contains(&outcome.evidence().phase.as_str());
        self.outcomes.iter().flatten().all(refused)
    }

    /// What became of one recipient.
    pub(super) fn note(&mut self, place: usize, outcome: Outcome) {
        self.outcomes[place] = Some(outcome);
    }

    /// Whoever has no outcome yet is deferred.
    pub(super) fn finish(self, evidence: impl Fn() -> Evidence) -> Vec<Outcome> {
        let open = |outcome: Option<Outcome>| outcome.unwrap_or_else(|| Outcome::Deferred(evidence()));
        self.outcomes.into_iter().map(open).collect()
    }
}
