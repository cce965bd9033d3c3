//! What a reply meant, with its evidence: outcomes out of the classifier's verdicts.

use super::{Client, Transaction};
use crate::{
    delivery::{
        classify::{self, Said, Verdict},
        phase::Phase,
    },
    mail::outcome::{Evidence, Outcome, Scope},
    smtp::reply::Reply,
};

impl<S> Client<S> {
    pub(super) fn judge(&mut self, transaction: &mut Transaction<'_, '_>, phase: Phase, reply: &Reply) {
        let verdict = self.verdict(phase, reply, false);
        // The connection has carried what it may.
        self.broken |= verdict.evidence().scope == Scope::Transaction;
        for outcome in transaction.outcomes.iter_mut().filter(|outcome| outcome.is_none()) {
            *outcome = Some(verdict.clone());
        }
    }

    pub(super) fn verdict(&self, phase: Phase, reply: &Reply, others_accepted: bool) -> Outcome {
        self.outcome(phase, reply, self.judged(phase, reply, others_accepted))
    }

    pub(super) fn judged(&self, phase: Phase, reply: &Reply, others_accepted: bool) -> Verdict {
        let provider = self.upstream.provider.as_deref();
        let said = Said { phase, reply, others_accepted, provider };
        classify::judge(&self.upstream.replies, said, self.clock.now())
    }

    pub(super) fn outcome(&self, phase: Phase, reply: &Reply, verdict: Verdict) -> Outcome {
        let Verdict { permanence, scope, explanation, advice, .. } = verdict;
        let evidence = Evidence { explanation, advice, ..self.evidence(phase, scope, Some(reply.clone())) };
        match permanence {
            classify::Permanence::Success => Outcome::Delivered(evidence),
            classify::Permanence::Transient => Outcome::Deferred(evidence),
            classify::Permanence::Permanent => Outcome::Failed(evidence),
        }
    }

    pub(super) fn evidence(&self, phase: Phase, scope: Scope, reply: Option<Reply>) -> Evidence {
        Evidence {
            at: self.clock.now(),
            upstream: self.upstream.name.clone(),
            phase: phase.name().to_owned(),
            scope,
            reply,
            explanation: None,
            status: None,
            advice: None,
            uncertain: false,
            tls: self.stream.tls_version().map(str::to_owned),
        }
    }
}
