//! What a reply means: for whom, how final it is, who must act, and how long to wait.
//!
//! The rules are data (`config/replies.yml`, and the operator's `smtp_relay_replies` before them); here
//! is which one fits, and what holds where none does: RFC 5321's own first digit. Scope is asked first,
//! permanence second; only message and recipient scope can ever be permanent, so trouble with the
//! account never bounces anybody's mail.

use std::time::Duration;

use super::phase::Phase;
use crate::{
    clock::Timestamp,
    config::{Replies, ReplyRule, ReplyWait},
    mail::outcome::{Advice, Scope, Who},
    smtp::reply::{Enhanced, Reply, Severity},
};

/// Octets of a reply's text that rules look at.
const TEXT_MAX: usize = 4 * 1024;

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
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// How final it is.
    pub permanence: Permanence,
    /// For whom.
    pub scope: Scope,
    /// What it means beyond the upstream's words.
    pub explanation: Option<String>,
    /// Who can do something about it, what, and when. None of a refusal for good that no rule knows: there
    /// the upstream's words are all that is known.
    pub advice: Option<Box<Advice>>,
    /// The rule that fitted; none, where RFC 5321's digits alone say what it means.
    pub rule: Option<String>,
}

/// A reply, and where it came.
#[derive(Clone, Copy, Debug)]
pub struct Said<'a> {
    /// To what.
    pub phase: Phase,
    /// The words.
    pub reply: &'a Reply,
    /// The transaction has an accepted recipient already.
    pub others_accepted: bool,
    /// The upstream's preset, where it is known.
    pub provider: Option<&'a str>,
}

/// Judges a reply that came `now`.
pub fn judge(replies: &Replies, said: Said<'_>, now: Timestamp) -> Verdict {
    let Said { phase, reply, .. } = said;
    match reply.severity() {
        Severity::Success => return plain(Permanence::Success, own_scope(phase)),
        // Only DATA may be told to go on.
        Severity::Intermediate => {
            return Verdict {
                explanation: Some("the upstream's answer does not belong to the question".to_owned()),
                advice: Some(Box::new(Advice {
                    who: Who::Upstream,
                    help: None,
                    not_before: None,
                    tries: None,
                    slower: None,
                })),
                ..plain(Permanence::Transient, Scope::Upstream)
            };
        }
        Severity::Transient | Severity::Permanent => {}
    }
    let text = text(reply);
    let rule = replies.rules().find(|rule| fits(rule, said, &text));
    let scope = rule.and_then(|rule| rule.scope).unwrap_or(own_scope(phase));
    let refused = rule.and_then(|rule| rule.permanent).unwrap_or(reply.severity() == Severity::Permanent);
    let permanence = match scope {
        Scope::Message | Scope::Recipient if refused => Permanence::Permanent,
        _ => Permanence::Transient,
    };
    // A refusal for good is not lifted by "try again in …".
    let wait = (permanence == Permanence::Transient).then(|| wait(replies, rule, &text, now)).flatten();
    let not_before = wait.map(|wait| now.after(wait));
    let (explanation, advice) = match rule {
        Some(rule) => {
            let (help, tries) = (rule.help.clone(), rule.tries);
            let advice = Advice { who: rule.who, help, not_before, tries, slower: rule.slower };
            (Some(rule.means.clone()), Some(advice))
        }
        None if permanence == Permanence::Permanent => (None, None),
        None => {
            let (who, means) = by_phase(phase);
            // Where the upstream says when, it is only a matter of time.
            let who = if not_before.is_some() { Who::Nobody } else { who };
            let advice = Advice { who, help: None, not_before, tries: None, slower: None };
            (Some(means.to_owned()), Some(advice))
        }
    };
    Verdict {
        explanation,
        advice: advice.map(Box::new),
        rule: rule.map(|rule| rule.name.clone()),
        ..plain(permanence, scope)
    }
}

fn plain(permanence: Permanence, scope: Scope) -> Verdict {
    Verdict { permanence, scope, explanation: None, advice: None, rule: None }
}

/// Whom a reply concerns by the place where it comes. Before MAIL nothing was asked about a message.
fn own_scope(phase: Phase) -> Scope {
    match phase {
        Phase::Connect => Scope::Network,
        Phase::Greeting | Phase::Ehlo | Phase::StartTls | Phase::Tls => Scope::Upstream,
        Phase::Auth => Scope::Credential,
        Phase::Rcpt => Scope::Recipient,
        Phase::Mail | Phase::Data | Phase::Content | Phase::FinalReply => Scope::Message,
    }
}

/// What "not now" means where no rule knows more, and who can do something about it. Before MAIL no reply is
/// the message's fault, and a "never" means no more than that.
fn by_phase(phase: Phase) -> (Who, &'static str) {
    match phase {
        Phase::Connect | Phase::Greeting => (Who::Upstream, "the upstream takes no connection now"),
        Phase::Ehlo => (Who::Upstream, "the upstream refuses our EHLO"),
        Phase::StartTls | Phase::Tls => (Who::Upstream, "the upstream does not begin TLS now"),
        Phase::Auth => (Who::Upstream, "the upstream does not answer the login as it should"),
        Phase::Mail | Phase::Data => (Who::Nobody, "the upstream does not take this message now"),
        Phase::Rcpt => (Who::Nobody, "the upstream does not take mail for this recipient now"),
        Phase::Content | Phase::FinalReply => {
            (Who::Nobody, "the upstream has seen this message and does not take it now")
        }
    }
}

fn fits(rule: &ReplyRule, said: Said<'_>, text: &str) -> bool {
    let Said { phase, reply, others_accepted, provider } = said;
    let (code, enhanced) = (reply.code(), reply.enhanced());
    let is_provider = match provider {
        Some(name) => rule.provider.iter().any(|wanted| wanted == name),
        None => rule.text.is_some(),
    };
    // Before MAIL no message can be meant, whatever a rule says.
    let about_mail =
        matches!(rule.scope, Some(Scope::Recipient | Scope::Message | Scope::Sender | Scope::Transaction));
    (rule.provider.is_empty() || is_provider)
        && (rule.phase.is_empty() || rule.phase.contains(&phase.name()))
        && (rule.code.is_empty() || rule.code.iter().any(|(first, last)| (*first..=*last).contains(&code)))
        && (rule.enhanced.is_empty() || rule.enhanced.iter().any(|wanted| is_enhanced(*wanted, enhanced)))
        && (!rule.after_accepted || others_accepted)
        && (!about_mail || is_in_transaction(phase))
        && rule.text.as_ref().is_none_or(|pattern| pattern.is_match(text))
}

fn is_in_transaction(phase: Phase) -> bool {
    matches!(phase, Phase::Mail | Phase::Rcpt | Phase::Data | Phase::Content | Phase::FinalReply)
}

fn is_enhanced(wanted: Option<[Option<u16>; 3]>, found: Option<Enhanced>) -> bool {
    match (wanted, found) {
        (None, None) => true,
        (Some(wanted), Some(Enhanced(class, subject, detail))) => {
            let found = [class.into(), subject, detail];
            wanted.iter().zip(found).all(|(wanted, found)| wanted.is_none_or(|wanted| wanted == found))
        }
        _ => false,
    }
}

/// The text of all lines, as much as rules look at.
fn text(reply: &Reply) -> String {
    let mut text = String::new();
    for line in reply.lines() {
        if text.len() + line.len() > TEXT_MAX {
            text.push_str(&line[..line.floor_char_boundary(TEXT_MAX.saturating_sub(text.len()))]);
            break;
        }
        text.push_str(line);
        text.push(' ');
    }
    text
}

fn wait(replies: &Replies, rule: Option<&ReplyRule>, text: &str, now: Timestamp) -> Option<Duration> {
    const HOUR: u64 = 3_600_000;
    let by_rule = || match rule?.wait? {
        ReplyWait::For(wait) => Some(wait),
        ReplyWait::NextHour => Some(Duration::from_millis(HOUR - now.0 % HOUR)),
    };
    replies.asked_wait(rule, text).or_else(by_rule)
}

#[cfg(test)]
mod tests;
