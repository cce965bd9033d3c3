//! Reports on what became of mail (RFC 3464): whether there should be one, and what it says.
//!
//! Composed, not sent: the queue accepts a report like any other message, in the transaction that
//! records its cause. A report has a null reverse-path and is never reported upon, so no two mail
//! systems can keep each other busy with it (RFC 5321 §6.1).
//!
//! - here: its frame, a multipart/report (RFC 6522)
//! - [`wish`]: who wants to hear of what
//! - `people`: the part that is read by people
//! - `programs`: the part that is read by programs
//! - [`returned`]: what of the message goes back with it
//!
//! Words of others stand in all of it: the upstream's, the subject's, addresses. Each is put on one
//! line, within a bound, so that none can forge a field or a part.

mod people;
mod programs;
pub mod returned;
pub mod wish;

use lettre::{
    Address,
    address::Envelope,
    message::{
        Body, Mailbox as HeaderMailbox, Message, MultiPart, SinglePart,
        header::{ContentTransferEncoding, ContentType, HeaderName, HeaderValue},
    },
};

pub use self::{returned::Returned, wish::Action};
use crate::{
    clock::Timestamp,
    mail::outcome::Evidence,
    smtp::{address::Mailbox, parameter::OriginalRecipient, reply::is_unsafe_in_text},
};

/// Octets of somebody's words that are repeated; the rest is in the queue's events.
const WORDS_MAX: usize = 600;

/// What a report is about, and all that it needs to be composed.
#[derive(Clone, Debug)]
pub struct Report<'a> {
    /// What became of the recipients.
    pub action: Action,
    /// Them; at least one.
    pub recipients: Vec<Fate<'a>>,
    /// Who is told.
    pub to: &'a Mailbox,
    /// Our name.
    pub hostname: &'a str,
    /// The queue id of the message.
    pub id: &'a str,
    /// A word that nobody can guess and no other report has: it divides the parts, so that nothing
    /// in them can end one, and makes the Message-ID.
    pub unique: &'a str,
    /// When the message was accepted.
    pub arrival: Timestamp,
    /// When it will be given up; for what is [`Action::Delayed`].
    pub until: Timestamp,
    /// Now.
    pub now: Timestamp,
    /// Its Subject, decoded for people.
    pub subject: Option<&'a str>,
    /// Its Message-ID.
    pub message_id: Option<&'a str>,
    /// RFC 3461 §4.4: the sender's name for the transaction.
    pub envid: Option<&'a str>,
    /// What goes back of it.
    pub returned: Returned<'a>,
}

/// What became of one recipient.
#[derive(Clone, Copy, Debug)]
pub struct Fate<'a> {
    /// Whom it was for.
    pub recipient: &'a Mailbox,
    /// RFC 3461 §4.2: the recipient as the sender first knew it.
    pub original: Option<&'a OriginalRecipient>,
    /// What was seen last; `None` if nothing was tried yet.
    pub evidence: Option<&'a Evidence>,
    /// It was given up because its time was over, rather than refused.
    pub expired: bool,
    /// When it is tried next, where that is known; for what is [`Action::Delayed`].
    pub next: Option<Timestamp>,
}

impl Report<'_> {
    /// RFC 6531: whether only a server with SMTPUTF8 can take the report. It is so for a sender whose
    /// address is beyond ASCII; for all others the report is kept to ASCII, and passes anywhere.
    pub fn is_utf8(&self) -> bool {
        !self.to.is_ascii()
    }

    /// Composes it: for people, for programs, and what is returned of the message.
    pub fn compose(&self) -> Vec<u8> {
        let (local, domain) = self.to.as_str().rsplit_once('@').unwrap_or((self.to.as_str(), self.hostname));
        // Addresses that lettre thinks too odd exist, and this one was checked when it was accepted.
        let to = Address::new_dangerous(local, domain);
        let from = Address::new_dangerous("MAILER-DAEMON", self.hostname);
        let when = std::time::UNIX_EPOCH + std::time::Duration::from_millis(self.now.0);
        let mut builder = Message::builder()
            .from(HeaderMailbox::new(Some("Mail delivery".to_owned()), from))
            .to(HeaderMailbox::new(None, to.clone()))
            .subject(people::subject(self))
            .date(when)
            .message_id(Some(format!("<{}.{}@{}>", self.id, self.unique, self.hostname)))
            // RFC 3834 §5.
            .raw_header(HeaderValue::new(
                HeaderName::new_from_ascii_str("Auto-Submitted"),
                "auto-replied".to_owned(),
            ));
        // The envelope proper is the queue's; lettre only wants one.
        if let Ok(envelope) = Envelope::new(None, vec![to]) {
            builder = builder.envelope(envelope);
        }
        if let Some(id) = self.message_id.filter(|id| id.is_ascii()) {
            builder = builder.in_reply_to(id.to_owned()).references(id.to_owned());
        }
        builder
            .multipart(self.parts())
            .expect("because it has From, To and an envelope, and lettre asks for nothing else")
            .formatted()
    }

    fn parts(&self) -> MultiPart {
        // RFC 6533 §4 and §6: the same parts for those who read UTF-8 in header sections.
        let global = self.is_utf8();
        let status = if global { "global-delivery-status" } else { "delivery-status" };
        let (returned, octets, raw) = match (&self.returned, global) {
            (Returned::Header(octets), false) => ("text/rfc822-headers", octets, false),
            (Returned::Header(octets), true) => ("message/global-headers", octets, false),
            (Returned::Message(octets), false) => ("message/rfc822", octets, true),
            (Returned::Message(octets), true) => ("message/global", octets, true),
        };
        // RFC 3464 §2.1: never encoded. Its lines are within bounds by construction.
        let fields = raw_body(programs::fields(self).into_bytes());
        let is_nothing = octets.is_empty();
        // RFC 2046 §5.2.1: a message in a message is not encoded either.
        let octets = match octets.to_vec() {
            octets if raw => raw_body(octets),
            octets if returned::is_text(&octets) => Body::new(octets),
            octets => encoded_body(octets),
        };
        let part = |kind: &str, body| SinglePart::builder().header(content_type(kind)).body(body);
        let parts = MultiPart::builder()
            .header(content_type(&format!(
                "multipart/report; report-type={status}; boundary=\"{}\"",
                self.unique
            )))
            .singlepart(part("text/plain; charset=utf-8", Body::new(people::text(self))))
            .singlepart(part(&format!("message/{status}"), fields));
        // RFC 6522 §3: the third part is not a must. Of a damaged message nothing can be returned.
        if is_nothing { parts } else { parts.singlepart(part(returned, octets)) }
    }
}

fn content_type(text: &str) -> ContentType {
    ContentType::parse(text).expect("because each is written above, with a boundary of our own making")
}

fn raw_body(octets: Vec<u8>) -> Body {
    let encoding =
        if octets.is_ascii() { ContentTransferEncoding::SevenBit } else { ContentTransferEncoding::EightBit };
    Body::dangerous_pre_encoded(octets, encoding)
}

fn encoded_body(octets: Vec<u8>) -> Body {
    Body::new_with_encoding(octets, ContentTransferEncoding::Base64)
        .unwrap_or_else(|_| Body::new(String::new()))
}

/// Somebody's words on one line and within a bound.
fn one_line(words: &str) -> String {
    plain(&words[..words.floor_char_boundary(WORDS_MAX)])
}

/// Text without anything that could end a line, or hide or turn what stands in it.
fn plain(text: &str) -> String {
    text.chars().map(|c| if c == '\n' || is_unsafe_in_text(c) { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests;
