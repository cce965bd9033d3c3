//! What a submission server adds to a message that lacks it (RFC 6409 §8): Date and Message-ID.
//!
//! Nothing else is added, and nothing is changed. Only mail that comes from its author gets them: a
//! message with a Received field has passed a server whose business it was, and may be signed by now.
//! That is where Postfix draws the line, too, between what it completes and what it relays.

use super::content::Facts;
use crate::clock::Timestamp;

/// Composes the fields that are missing, each with its CRLF, and notes the Message-ID in `facts`.
pub fn complete(facts: &mut Facts, id: &str, hostname: &str, at: Timestamp) -> String {
    let mut fields = String::new();
    if facts.hops > 0 {
        return fields;
    }
    // RFC 6409 §8.1, RFC 5322 §3.6.1.
    if !facts.date {
        fields.push_str(&format!("Date: {}\r\n", at.rfc5322()));
    }
    // RFC 6409 §8.2. The queue id is unique for this relay only as long as its queue lives; the time
    // makes it so for good.
    if facts.message_id.is_none() {
        let message_id = format!("<{}.{id}@{hostname}>", at.0);
        fields.push_str(&format!("Message-ID: {message_id}\r\n"));
        facts.message_id = Some(message_id);
    }
    fields
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(content: &str, expected: &str) {
        let mut facts = Facts::of(content.as_bytes(), true).unwrap();
        assert_eq!(complete(&mut facts, "ID", "relay.example", Timestamp(1_340_000_000_123)), expected);
    }

    #[test]
    fn what_is_missing_is_added_and_nothing_else() {
        let date = "Date: Mon, 18 Jun 2012 06:13:20 +0000\r\n";
        let id = "Message-ID: <1340000000123.ID@relay.example>\r\n";
        check("Subject: x\r\n\r\nDate: in the body\r\n", &format!("{date}{id}"));
        check("\r\nno header\r\n", &format!("{date}{id}"));
        check("date: x\r\nX: y\r\n", id);
        check("MESSAGE-ID: <1@x>\r\n\r\n", date);
        check("Date: x\r\nMessage-ID: <1@x>\r\n\r\n", "");
        // It came through another server.
        check("Received: from a by b\r\nSubject: x\r\n\r\n", "");
    }
}
