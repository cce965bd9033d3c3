//! What a reply means: for whom, and how final it is.
//!
//! Scope is asked first, permanence second; only message and recipient scope can ever be permanent,
//! so trouble with the account never bounces anybody's mail. The first rule that fits is taken; the
//! last ones are RFC 5321's own first digit.

use super::phase::Phase;
use crate::{
    mail::outcome::Scope,
    smtp::reply::{Enhanced, Reply, Severity},
};

/// How final an outcome is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Permanence {
    /// Taken.
    Success,
    /// Not now.
    Transient,
    /// Never.
    Permanent,
}

/// What a reply means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// How final it is.
    pub permanence: Permanence,
    /// For whom.
    pub scope: Scope,
    /// What an operator should know beyond the upstream's words.
    pub explanation: Option<&'static str>,
}

/// A rule: when it fits, and what it means then.
struct Rule {
    fits: fn(&Facts<'_>) -> bool,
    verdict: Verdict,
}

struct Facts<'a> {
    phase: Phase,
    reply: &'a Reply,
    others_accepted: bool,
    /// In lower case.
    text: String,
}

const fn transient(scope: Scope, explanation: &'static str) -> Verdict {
    Verdict { permanence: Permanence::Transient, scope, explanation: Some(explanation) }
}

/// From the most special to the most general.
const RULES: [Rule; 4] = [
    // RFC 4954 §6: these codes are about the login, wherever they come.
    Rule {
        fits: |facts| matches!(facts.reply.code(), 530 | 534 | 535 | 538),
        verdict: transient(
            Scope::Credential,
            "the upstream wants a valid login: check user name and password",
        ),
    },
    // RFC 3463 §3.5: X.4.5 is congestion, whatever the first digit; Gmail's daily limit is 550 5.4.5.
    Rule {
        fits: |facts| {
            // A recipient's full mailbox (X.2.2) has a quota too, but that is the recipient's affair.
            let ours =
                facts.phase != Phase::Rcpt && !matches!(facts.reply.enhanced(), Some(Enhanced(_, 2, 2)));
            matches!(facts.reply.enhanced(), Some(Enhanced(_, 4, 5)))
                || ours
                    && [
                        "quota exceeded",
                        "sending limit exceeded",
                        "rate limit",
                        "throttl",
                        "too many messages",
                    ]
                    .iter()
                    .any(|words| facts.text.contains(words))
        },
        verdict: transient(Scope::Upstream, "a limit of the account at the upstream is reached"),
    },
    // RFC 5321 §4.5.3.1.10: too many recipients, which some old servers say with 552.
    Rule {
        fits: |facts| {
            facts.phase == Phase::Rcpt
                && facts.others_accepted
                && (facts.reply.code() == 552
                    || facts.reply.code() == 452
                        && facts.reply.enhanced().is_none_or(|e| e == Enhanced(4, 5, 3)))
        },
        verdict: transient(
            Scope::Transaction,
            "too many recipients at once: the rest follows in another transaction",
        ),
    },
    // 503 behind an accepted envelope says that we and the upstream disagree about the protocol.
    Rule {
        fits: |facts| facts.reply.code() == 503,
        verdict: transient(Scope::Upstream, "the upstream is confused about the order of commands"),
    },
];

/// Judges a reply. `others_accepted` says that the transaction has an accepted recipient already.
pub fn judge(phase: Phase, reply: &Reply, others_accepted: bool) -> Verdict {
    let scope = if phase == Phase::Rcpt { Scope::Recipient } else { Scope::Message };
    let plain = |permanence| Verdict { permanence, scope, explanation: None };
    match reply.severity() {
        Severity::Success => return plain(Permanence::Success),
        // Only DATA may be told to go on.
        Severity::Intermediate => {
            return transient(Scope::Upstream, "the upstream's answer does not belong to the question");
        }
        Severity::Transient | Severity::Permanent => {}
    }
    let text = reply.lines().collect::<Vec<_>>().join(" ").to_lowercase();
    let facts = Facts { phase, reply, others_accepted, text };
    let special = RULES.iter().find(|rule| (rule.fits)(&facts)).map(|rule| rule.verdict);
    special.unwrap_or_else(|| {
        plain(if reply.severity() == Severity::Permanent {
            Permanence::Permanent
        } else {
            Permanence::Transient
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(phase: Phase, text: &str, permanence: Permanence, scope: Scope) {
        let wire = format!("{text}\r\n");
        let reply = crate::smtp::reply::ReplyReader::default().read(&mut wire.as_bytes()).unwrap().unwrap();
        let verdict = judge(phase, &reply, true);
        assert_eq!((verdict.permanence, verdict.scope), (permanence, scope), "{text}");
    }

    #[test]
    fn only_message_and_recipient_scope_are_ever_permanent() {
        use Permanence::{Permanent, Success, Transient};
        use Scope::{Credential, Message, Recipient, Transaction, Upstream};
        check(Phase::FinalReply, "250 2.0.0 queued", Success, Message);
        check(Phase::Rcpt, "550 5.1.1 no such user", Permanent, Recipient);
        check(Phase::Rcpt, "450 4.2.0 greylisted", Transient, Recipient);
        check(Phase::Rcpt, "452 4.5.3 too many recipients", Transient, Transaction);
        check(Phase::Rcpt, "552 too many", Transient, Transaction);
        check(Phase::Rcpt, "452 4.3.1 disk full", Transient, Recipient);
        check(Phase::FinalReply, "554 5.7.1 spam", Permanent, Message);
        check(Phase::FinalReply, "451 4.3.0 later", Transient, Message);
        check(Phase::Mail, "530 5.7.0 Authentication required", Transient, Credential);
        check(Phase::FinalReply, "550 5.4.5 Daily user sending quota exceeded", Transient, Upstream);
        check(
            Phase::FinalReply,
            "454 Throttling failure: Maximum sending rate exceeded",
            Transient,
            Upstream,
        );
        check(Phase::Mail, "552 5.3.4 too large", Permanent, Message);
        check(Phase::FinalReply, "552 5.2.2 mailbox quota exceeded", Permanent, Message);
        check(Phase::Rcpt, "550 quota exceeded", Permanent, Recipient);
        check(Phase::Data, "503 5.5.1 bad sequence", Transient, Upstream);
        check(Phase::FinalReply, "354 go on", Transient, Upstream);
    }
}
