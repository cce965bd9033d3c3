//! The part of a report for programs: fields in blocks (RFC 3464 §2), one about the message, then one
//! for each recipient, in the order of the grammar.

use super::{Action, Fate, Report, one_line, plain};
use crate::{
    mail::outcome::Scope,
    smtp::{
        parameter::{self, OriginalRecipient},
        reply::Enhanced,
    },
};

/// RFC 5322 §2.1.1 allows 998 octets in a line; these fields can't be folded in the middle of a word.
const FIELD_MAX: usize = 900;

/// All blocks. In ASCII, unless the report may hold UTF-8.
pub(super) fn fields(report: &Report<'_>) -> String {
    let mut fields = Fields { text: String::new(), utf8: report.is_utf8() };
    // RFC 3461 §6.3.
    if let Some(envid) = report.envid {
        fields.add("Original-Envelope-Id", envid);
    }
    fields.add("Reporting-MTA", &format!("dns; {}", report.hostname));
    fields.add("Arrival-Date", &report.arrival.rfc5322());
    fields.add("X-Outpost-Queue-ID", report.id);
    for fate in &report.recipients {
        fields.text.push_str("\r\n");
        recipient(&mut fields, report, fate);
    }
    fields.text
}

fn recipient(fields: &mut Fields, report: &Report<'_>, fate: &Fate<'_>) {
    if let Some(original) = fate.original {
        let original = fields.original(original);
        // Cut short it would be another address.
        if original.len() <= FIELD_MAX {
            fields.add("Original-Recipient", &original);
        }
    }
    let address = fields.address(fate.recipient.as_str());
    fields.add("Final-Recipient", &address);
    fields.add("Action", report.action.name());
    fields.add("Status", &status(report.action, fate).to_string());
    if let Some(evidence) = fate.evidence {
        // What was returned by hand had no upstream's say in it.
        if !evidence.upstream.is_empty() {
            // RFC 3464 §2.3.5: a name of DNS, which the one that an operator has given it need not be.
            let kind = if evidence.upstream.contains('.') { "dns" } else { "x-outpost" };
            fields.add("Remote-MTA", &format!("{kind}; {}", evidence.upstream));
        }
        match (&evidence.reply, &evidence.explanation) {
            (Some(reply), _) => {
                fields.add("Diagnostic-Code", &format!("smtp; {}", one_line(&reply.to_string())))
            }
            (None, Some(ours)) => fields.add("Diagnostic-Code", &format!("X-Outpost; {}", one_line(ours))),
            (None, None) => {}
        }
        fields.add("Last-Attempt-Date", &evidence.at.rfc5322());
    }
    // RFC 3464 §2.3.9: for what is delayed, and nothing else.
    if report.action == Action::Delayed {
        fields.add("Will-Retry-Until", &report.until.rfc5322());
    }
}

/// RFC 3464 §2.3.4: the upstream's own code where it gave one; its class says what we made of it.
pub(super) fn status(action: Action, fate: &Fate<'_>) -> Enhanced {
    // RFC 3463 §3.5: delivery time expired. Of class 4, for the same may succeed another day.
    if fate.expired {
        return Enhanced(4, 4, 7);
    }
    let class = match action {
        Action::Relayed => 2,
        Action::Delayed => 4,
        Action::Failed => 5,
    };
    let given = fate.evidence.and_then(|evidence| match &evidence.reply {
        Some(reply) => reply.enhanced(),
        // RFC 3463 §3.5: no answer from host.
        None if evidence.scope == Scope::Upstream => evidence.status.or(Some(Enhanced(4, 4, 1))),
        None => evidence.status,
    });
    given.map_or(Enhanced(class, 0, 0), |given| Enhanced(class, given.1, given.2))
}

/// Fields as they are written.
struct Fields {
    text: String,
    utf8: bool,
}

impl Fields {
    fn add(&mut self, name: &str, value: &str) {
        let safe = |c: char| if c.is_ascii() || self.utf8 { c } else { '?' };
        let value: String = plain(value).chars().map(safe).collect();
        self.text.push_str(&format!("{name}: {value}\r\n"));
    }

    /// RFC 6533 §3: an address beyond ASCII is of another type, and encoded where the report is not
    /// for readers of UTF-8.
    fn address(&self, address: &str) -> String {
        match (address.is_ascii(), self.utf8) {
            (true, _) => format!("rfc822; {address}"),
            (false, true) => format!("utf-8; {address}"),
            (false, false) => format!("utf-8; {}", parameter::encode_unitext(address)),
        }
    }

    fn original(&self, original: &OriginalRecipient) -> String {
        let OriginalRecipient { kind, address } = original;
        if kind == parameter::UTF8 && !self.utf8 {
            return format!("{kind}; {}", parameter::encode_unitext(address));
        }
        format!("{kind}; {address}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_beyond_ascii_is_encoded_for_those_who_read_ascii() {
        let fields = |utf8| Fields { text: String::new(), utf8 };
        assert_eq!(fields(false).address("a@b.example"), "rfc822; a@b.example");
        assert_eq!(fields(true).address("ü@b.example"), "utf-8; ü@b.example");
        assert_eq!(fields(false).address("ü@b.example"), "utf-8; \\x{FC}@b.example");
        let original = OriginalRecipient { kind: "utf-8".into(), address: "ü@b.example".into() };
        assert_eq!(fields(false).original(&original), "utf-8; \\x{FC}@b.example");
        let odd = OriginalRecipient { kind: "x400".into(), address: "/c=us; x".into() };
        assert_eq!(fields(false).original(&odd), "x400; /c=us; x");
    }
}
