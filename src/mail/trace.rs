//! The Received field that we put on top (RFC 5321 §4.4).

use super::envelope::Origin;
use crate::{clock::Timestamp, smtp::address::Mailbox};

/// Composes the field, CRLF included.
///
/// Nothing a client chose can break out of it: the HELO name and addresses were reduced to harmless
/// characters when they were parsed. The recipient is named only where there is one, so that no
/// blind copy is given away (RFC 5321 §7.2). The user is not named: the field travels with the mail.
pub fn received(
    origin: &Origin,
    hostname: &str,
    id: &str,
    only: Option<&Mailbox>,
    utf8: bool,
    at: Timestamp,
) -> String {
    let literal = if origin.client.contains(':') { "IPv6:" } else { "" };
    let recipient = only
        // A quoted local-part could hold a `;`, which would end the clause too early.
        .filter(|mailbox| !mailbox.as_str().starts_with('"'))
        .map_or(String::new(), |mailbox| format!("\r\n\tfor <{mailbox}>"));
    format!(
        "Received: from {} ([{literal}{}])\r\n\tby {hostname} (Outpost) with {} id {id}{recipient};\r\n\t{}\r\n",
        origin.hello,
        origin.client,
        origin.protocol(utf8),
        at.rfc5322(),
    )
}

/// Whether a Received field's value says that Outpost put it there under the name `hostname`.
pub fn is_ours(value: &[u8], hostname: &str) -> bool {
    let mut words = value.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
    while let Some(word) = words.next() {
        if word.eq_ignore_ascii_case(b"by") {
            let host = words.next().is_some_and(|host| host.eq_ignore_ascii_case(hostname.as_bytes()));
            return host && words.next() == Some(b"(Outpost)");
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_field_tells_from_by_with_id_for_and_when() {
        let origin = Origin {
            client: "2001:db8::1".into(),
            hello: "app".into(),
            user: Some("dotcloud".into()),
            extended: true,
            tls: true,
            http: false,
        };
        let mailbox = Mailbox::parse("a@b.example").unwrap();
        assert_eq!(
            received(&origin, "relay.example", "ID", Some(&mailbox), false, Timestamp(1_340_000_000_000)),
            "Received: from app ([IPv6:2001:db8::1])\r\n\tby relay.example (Outpost) with ESMTPSA id ID\r\n\
             \tfor <a@b.example>;\r\n\tMon, 18 Jun 2012 06:13:20 +0000\r\n"
        );
    }

    #[test]
    fn our_own_field_is_known_again_and_no_other_is() {
        let field = received(&Origin::default(), "relay.example", "ID", None, false, Timestamp(0));
        assert!(is_ours(field.as_bytes(), "relay.example"));
        assert!(is_ours(field.as_bytes(), "Relay.Example"));
        assert!(!is_ours(field.as_bytes(), "other.example"));
        assert!(!is_ours(b"from relay.example by other.example (Postfix)", "relay.example"));
        assert!(!is_ours(b"from x by relay.example (Postfix)", "relay.example"));
        assert!(!is_ours(b"", "relay.example"));
    }

    #[test]
    fn several_recipients_are_not_named() {
        let field = received(&Origin::default(), "relay.example", "ID", None, true, Timestamp(0));
        assert!(!field.contains("for <"), "{field}");
        assert!(field.contains("with SMTP id ID;"), "{field}");
    }
}
