//! Reports about mail that could not go (RFC 3464): whether there should be one, and what it says.
//!
//! Composed, not sent: the queue accepts a report like any other message, in the transaction that
//! records the failure. A report has a null reverse-path and is never reported upon, so no two mail
//! systems can keep each other busy with it (RFC 5321 §6.1).

use lettre::{
    Address,
    message::{
        Body, Mailbox as HeaderMailbox, Message, MultiPart, SinglePart,
        header::{ContentTransferEncoding, ContentType, HeaderName, HeaderValue},
    },
};

use crate::{
    clock::Timestamp,
    mail::outcome::Evidence,
    smtp::{
        address::Mailbox,
        reply::{Enhanced, Severity},
    },
};

/// Octets of the original header section that are returned.
const RETURNED_MAX: usize = 32 * 1024;
/// Characters of an upstream's words in a field; the rest is in the queue's events.
const WORDS_MAX: usize = 600;

/// What happened to one recipient.
#[derive(Clone, Debug)]
pub struct Failure<'a> {
    /// Whom it did not reach.
    pub recipient: &'a Mailbox,
    /// What was seen last.
    pub evidence: &'a Evidence,
    /// It was given up after the queue's lifetime, rather than refused.
    pub expired: bool,
}

/// What a report is about.
#[derive(Clone, Debug)]
pub struct Undelivered<'a> {
    /// Who is told.
    pub to: &'a Mailbox,
    /// Our name.
    pub hostname: &'a str,
    /// The queue id of the message.
    pub id: &'a str,
    /// When it was accepted.
    pub arrival: Timestamp,
    /// Now.
    pub now: Timestamp,
    /// Its Subject, decoded for people.
    pub subject: Option<&'a str>,
    /// Its Message-ID.
    pub message_id: Option<&'a str>,
    /// Its header section.
    pub header: &'a [u8],
    /// Whom it did not reach; at least one.
    pub failures: Vec<Failure<'a>>,
}

/// A report can't be composed; an address or name in it is beyond what a header can hold.
#[derive(Debug, thiserror::Error)]
#[error("a report can't be composed: {0}")]
pub struct ComposeError(String);

/// Composes the report: for people, for programs, and the original header section.
///
/// # Errors
/// See [`ComposeError`].
pub fn compose(about: &Undelivered<'_>) -> Result<Vec<u8>, ComposeError> {
    let fail = |error: &dyn std::fmt::Display| ComposeError(error.to_string());
    let (local, domain) = about.to.as_str().rsplit_once('@').unwrap_or((about.to.as_str(), about.hostname));
    // Addresses that lettre thinks too odd exist, and this one was checked when it was accepted.
    let to = Address::new(local, domain).unwrap_or_else(|_| Address::new_dangerous(local, domain));
    let from = Address::new("MAILER-DAEMON", about.hostname).map_err(|error| fail(&error))?;
    let when = std::time::UNIX_EPOCH + std::time::Duration::from_millis(about.now.0);
    // lettre wants a multipart's boundary to be named; random, so that no content can hold it.
    let boundary = format!("{:016x}{:016x}", fastrand::u64(..), fastrand::u64(..));
    let report_type = format!("multipart/report; report-type=delivery-status; boundary=\"{boundary}\"");
    let kind = |text: &str| ContentType::parse(text).map_err(|error| fail(&error));
    let part = |content_type: ContentType, octets: Vec<u8>| {
        SinglePart::builder().header(content_type).body(Body::new(octets))
    };
    let mut builder = Message::builder()
        .from(HeaderMailbox::new(Some("Mail delivery".to_owned()), from.clone()))
        .to(HeaderMailbox::new(None, to.clone()))
        .subject(subject(about))
        .date(when)
        .message_id(Some(format!("<{}.report@{}>", about.id, about.hostname)))
        .raw_header(HeaderValue::new(
            HeaderName::new_from_ascii_str("Auto-Submitted"),
            "auto-replied".to_owned(),
        ))
        // The envelope proper is the queue's: its sender is null.
        .envelope(lettre::address::Envelope::new(None, vec![to]).map_err(|error| fail(&error))?);
    if let Some(id) = about.message_id.filter(|id| id.is_ascii()) {
        builder = builder.in_reply_to(id.to_owned()).references(id.to_owned());
    }
    // RFC 3464 §2.1: never encoded. Its lines are ASCII and within bounds by construction.
    let status =
        Body::dangerous_pre_encoded(for_programs(about).into_bytes(), ContentTransferEncoding::SevenBit);
    let message = builder
        .multipart(
            MultiPart::builder()
                .header(kind(&report_type)?)
                .singlepart(part(kind("text/plain; charset=utf-8")?, for_people(about).into_bytes()))
                .singlepart(SinglePart::builder().header(kind("message/delivery-status")?).body(status))
                .singlepart(part(kind("text/rfc822-headers")?, returned(about.header).to_vec())),
        )
        .map_err(|error| fail(&error))?;
    Ok(message.formatted())
}

fn subject(about: &Undelivered<'_>) -> String {
    match about.subject {
        Some(subject) => format!("Not delivered: {subject}"),
        None => "Your message was not delivered".to_owned(),
    }
}

/// The first part: what somebody reads who does not know what SMTP is.
fn for_people(about: &Undelivered<'_>) -> String {
    let mut text = format!(
        "This is the mail relay {}.\r\n\r\nYour message of {} could not be delivered to:\r\n",
        about.hostname,
        about.arrival.rfc5322()
    );
    for failure in &about.failures {
        let evidence = failure.evidence;
        text.push_str(&format!("\r\n  {}\r\n", failure.recipient));
        if failure.expired {
            text.push_str("    It was tried again and again and is now given up. The last answer was:\r\n");
        } else if evidence.reply.is_some() {
            text.push_str(&format!("    {} refused it for good. Its words were:\r\n", evidence.upstream));
        } else {
            text.push_str("    It can't be sent on:\r\n");
        }
        match (&evidence.reply, &evidence.explanation) {
            (Some(reply), explanation) => {
                text.push_str(&format!("    {}\r\n", shortened(&reply.to_string())));
                if let Some(explanation) = explanation {
                    text.push_str(&format!("    ({})\r\n", shortened(explanation)));
                }
            }
            (None, _) => text.push_str(&format!("    {}\r\n", shortened(&evidence.to_string()))),
        }
    }
    text.push_str(
        "\r\nNothing more will be tried for these addresses. If the address is right, show this report to\r\n\
         whoever runs the mail of that address or of this relay.\r\n\r\n",
    );
    text.push_str(&format!("Queue id: {}\r\n", about.id));
    text
}

/// The second part (RFC 3464 §2), in ASCII.
fn for_programs(about: &Undelivered<'_>) -> String {
    let mut text = format!(
        "Reporting-MTA: dns; {}\r\nX-Outpost-Queue-ID: {}\r\nArrival-Date: {}\r\n",
        about.hostname,
        about.id,
        about.arrival.rfc5322()
    );
    for failure in &about.failures {
        let evidence = failure.evidence;
        let status = status(failure);
        text.push_str(&format!(
            "\r\nFinal-Recipient: rfc822; {}\r\nAction: failed\r\nStatus: {status}\r\nRemote-MTA: dns; {}\r\n",
            failure.recipient, evidence.upstream
        ));
        if let Some(reply) = &evidence.reply {
            text.push_str(&format!("Diagnostic-Code: smtp; {}\r\n", shortened(&reply.to_string())));
        }
        text.push_str(&format!("Last-Attempt-Date: {}\r\n", evidence.at.rfc5322()));
    }
    text.chars().map(|c| if c.is_ascii() { c } else { '?' }).collect()
}

/// RFC 3464 §2.3.4: the upstream's own code where it gave one.
fn status(failure: &Failure<'_>) -> Enhanced {
    // RFC 3463 §3.5: delivery time expired.
    const EXPIRED: Enhanced = Enhanced(4, 4, 7);
    match &failure.evidence.reply {
        _ if failure.expired => EXPIRED,
        Some(reply) => reply.enhanced().unwrap_or(match reply.severity() {
            Severity::Transient => Enhanced(4, 0, 0),
            _ => Enhanced(5, 0, 0),
        }),
        None => failure.evidence.status.unwrap_or(Enhanced(5, 0, 0)),
    }
}

fn shortened(words: &str) -> &str {
    &words[..words.floor_char_boundary(WORDS_MAX)]
}

/// Whole lines of the header section, up to the bound.
fn returned(header: &[u8]) -> &[u8] {
    if header.len() <= RETURNED_MAX {
        return header;
    }
    let cut = memchr::memrchr(b'\n', &header[..RETURNED_MAX]).map_or(RETURNED_MAX, |end| end + 1);
    &header[..cut]
}

#[cfg(test)]
mod tests {
    use mail_parser::{MessageParser, MimeHeaders as _};

    use super::*;
    use crate::{mail::outcome::Scope, smtp::reply::Reply};

    fn evidence(reply: Option<Reply>) -> Evidence {
        Evidence {
            at: Timestamp(1_340_000_100_000),
            upstream: "smtp.example".into(),
            phase: "RCPT".into(),
            scope: Scope::Recipient,
            reply,
            explanation: None,
            status: None,
            advice: None,
            uncertain: false,
            tls: None,
        }
    }

    #[test]
    fn a_report_tells_people_and_programs_the_same() {
        let reply = Reply::new(
            550,
            Some(Enhanced(5, 1, 1)),
            "no such user hére, and this is a long line that nobody may fold or encode",
        );
        let (refused, silent) = (evidence(Some(reply)), evidence(None));
        let (a, b) = (Mailbox::parse("a@x.example").unwrap(), Mailbox::parse("b@x.example").unwrap());
        let about = Undelivered {
            to: &Mailbox::parse("app@sender.example").unwrap(),
            hostname: "relay.example",
            id: "ID",
            arrival: Timestamp(1_340_000_000_000),
            now: Timestamp(1_340_000_200_000),
            subject: Some("Grüße"),
            message_id: Some("<1@sender.example>"),
            header: "Subject: Grüße\r\nFrom: app@sender.example\r\n".as_bytes(),
            failures: vec![
                Failure { recipient: &a, evidence: &refused, expired: false },
                Failure { recipient: &b, evidence: &silent, expired: true },
            ],
        };
        let octets = compose(&about).unwrap();
        assert!(octets.is_ascii(), "a report must pass any upstream");
        let report = MessageParser::default().parse(&octets).unwrap();
        assert_eq!(report.subject(), Some("Not delivered: Grüße"));
        assert_eq!(report.header_raw("Auto-Submitted").map(str::trim), Some("auto-replied"));
        let kind = report.content_type().unwrap();
        assert_eq!((kind.ctype(), kind.subtype()), ("multipart", Some("report")));
        assert_eq!(kind.attribute("report-type"), Some("delivery-status"));
        let people = report.body_text(0).unwrap();
        assert!(people.contains("550 5.1.1 no such user hére"), "{people}");
        assert!(people.contains("given up"), "{people}");

        let text = String::from_utf8(octets).unwrap();
        for line in [
            "Reporting-MTA: dns; relay.example\r\n",
            "Final-Recipient: rfc822; a@x.example\r\nAction: failed\r\nStatus: 5.1.1\r\nRemote-MTA: dns; smtp.example\r\n\
             Diagnostic-Code: smtp; 550 5.1.1 no such user h?re, and this is a long line that nobody may fold or encode\r\n",
            "Final-Recipient: rfc822; b@x.example\r\nAction: failed\r\nStatus: 4.4.7\r\n",
        ] {
            assert!(text.contains(line), "{line} is not in:\n{text}");
        }
    }

    #[test]
    fn a_long_header_is_returned_in_part() {
        let header = b"X: y\r\n".repeat(10_000);
        let returned = returned(&header);
        assert!(returned.len() <= RETURNED_MAX && returned.ends_with(b"\r\n"));
    }
}
