//! Who is told what became of a message: from entries to reports, and from wishes to recipients.

use super::{Orders, Runner, settle::given_up_at};
use crate::{
    dsn::{
        self, Action, Fate, Returned,
        returned::Original,
        wish::{self, Happened},
    },
    mail::{
        content::{self, Content},
        envelope::{Envelope, Handling, Origin},
        outcome::Evidence,
    },
    queue::{
        Claim, Next, Report,
        entry::{Entry, Recipient, RecipientState},
    },
    smtp::{
        address::{Mailbox, ReversePath},
        parameter::Body,
    },
};

/// What the origin of a report of ours has in the place of a client.
const REPORT: &str = "report";

/// Of which recipients there is something to tell: their places in the entry. One report for each
/// list, however long it is.
#[derive(Debug, Default)]
pub(super) struct News {
    relayed: Vec<usize>,
    delayed: Vec<usize>,
    failed: Vec<usize>,
}

impl News {
    /// Notes what happened to a recipient, if that is wanted to be heard.
    pub(super) fn note(&mut self, place: usize, recipient: &Recipient, happened: Happened) {
        match wish::report(happened, recipient.notify) {
            Some(Action::Relayed) => self.relayed.push(place),
            Some(Action::Delayed) => self.delayed.push(place),
            Some(Action::Failed) => self.failed.push(place),
            None => {}
        }
    }

    /// Notes that the message is late for all that are still to be reached. Told once.
    pub(super) fn warn(&mut self, entry: &mut Entry) {
        entry.warned = true;
        for (place, recipient) in entry.pending() {
            self.note(place, recipient, Happened::Late);
        }
    }
}

impl Runner {
    /// The reports that an entry brings forth, and how it goes on. What nobody can be told is held,
    /// once all that can be delivered is.
    pub(super) fn reports(
        &self,
        orders: &Orders,
        claim: &mut Claim,
        news: &News,
        eight_bit: bool,
        next: Next,
    ) -> (Vec<Report>, Next) {
        let (entry, content) = (claim.entry(), claim.content());
        let report = |action, places: &[usize], to| {
            (!places.is_empty()).then(|| self.report(orders, entry, content, action, places, to, eight_bit))
        };
        if let Some(sender) = entry.reverse_path.mailbox() {
            let lists = [
                (Action::Relayed, &news.relayed),
                (Action::Delayed, &news.delayed),
                (Action::Failed, &news.failed),
            ];
            return (
                lists.into_iter().filter_map(|(action, places)| report(action, places, sender)).collect(),
                next,
            );
        }
        // RFC 3461 §6.1, RFC 5321 §4.5.5: nobody is there to hear of reports and their like. A lost
        // one is all that matters then, and whoever runs this relay the only one to tell.
        if !entry.recipients.iter().any(is_lost_unwillingly) {
            return (Vec::new(), next);
        }
        // A report that can't be delivered to the postmaster is not reported to the postmaster.
        let postmaster =
            orders.postmaster.as_ref().filter(|to| entry.recipients.iter().all(|r| r.address != **to));
        match postmaster {
            Some(to) => (report(Action::Failed, &news.failed, to).into_iter().collect(), next),
            None if next == Next::Done => {
                self.note_held(claim, "not delivered, and there is no sender to tell");
                (Vec::new(), Next::Hold)
            }
            None => (Vec::new(), next),
        }
    }

    #[allow(clippy::too_many_arguments)] // What a report is about; each is used once.
    fn report(
        &self,
        orders: &Orders,
        entry: &Entry,
        content: &Content,
        action: Action,
        places: &[usize],
        to: &Mailbox,
        eight_bit: bool,
    ) -> Report {
        let head = head(content);
        let original =
            Original { octets: &head, whole: !head.is_empty() && content.size() == head.len() as u64 };
        // RFC 6532 §3.7: a header section beyond ASCII is for those who asked for such mail.
        let eight_bit = eight_bit && (!entry.handling.utf8_header || !to.is_ascii());
        // RFC 8689: content that asks for TLS all the way does not come back by another.
        let ret = entry.handling.ret.filter(|_| !entry.handling.require_tls);
        // Of what waits before closed gates, only they know why.
        let gates: Option<Vec<_>> = self.upstreams().into_iter().map(|upstream| upstream.closed).collect();
        let gate = gates.filter(|_| action == Action::Delayed).and_then(|gates| gates.into_iter().next());
        let why = gate.as_ref().map(|closed| &closed.evidence);
        let now = self.clock().now();
        let opens = gate.as_ref().map(|closed| closed.until);
        let next = |recipient: &Recipient| recipient.due.max(opens).filter(|next| *next > now);
        let fate = |place: &usize| {
            let recipient = &entry.recipients[*place];
            Fate {
                recipient: &recipient.address,
                original: recipient.original.as_ref(),
                evidence: later(recipient.last.as_ref(), why),
                expired: recipient.state == RecipientState::Expired,
                next: next(recipient),
            }
        };
        let (id, subject) = (entry.id.to_string(), content::decoded_subject(&head));
        let unique = format!("{:016x}{:016x}", fastrand::u64(..), fastrand::u64(..));
        let report = dsn::Report {
            action,
            recipients: places.iter().map(fate).collect(),
            to,
            hostname: &orders.hostname,
            id: &id,
            unique: &unique,
            arrival: entry.received,
            until: given_up_at(orders, entry),
            now,
            subject: subject.as_deref(),
            message_id: entry.message_id.as_deref(),
            envid: entry.handling.envid.as_deref(),
            returned: Returned::of(original, action, ret, eight_bit),
        };
        let utf8 = report.is_utf8();
        let content = report.compose();
        let body = if content.is_ascii() { Body::SevenBit } else { Body::EightBit };
        Report {
            envelope: Envelope {
                reverse_path: ReversePath::NULL,
                recipients: vec![to.clone().into()],
                handling: Handling { body, utf8, utf8_header: utf8, ..Handling::default() },
            },
            origin: Origin { client: REPORT.to_owned(), hello: orders.hostname.clone(), ..Origin::default() },
            content,
            held: None,
        }
    }
}

/// Whether it is a report of ours.
pub(super) fn is_report(entry: &Entry) -> bool {
    entry.origin.client == REPORT && entry.reverse_path.mailbox().is_none()
}

/// Whether it did not arrive although somebody wants to know.
fn is_lost_unwillingly(recipient: &Recipient) -> bool {
    let lost = matches!(recipient.state, RecipientState::Bounced | RecipientState::Expired);
    lost && wish::report(Happened::Lost, recipient.notify).is_some()
}

fn later<'a>(a: Option<&'a Evidence>, b: Option<&'a Evidence>) -> Option<&'a Evidence> {
    a.into_iter().chain(b).max_by_key(|evidence| evidence.at)
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
