//! The phases of a conversation with an upstream, in their order, each with its deadline.

use std::time::Duration;

/// Where a conversation stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // They are the protocol's own words.
pub enum Phase {
    Connect,
    Greeting,
    Ehlo,
    StartTls,
    Tls,
    Auth,
    Mail,
    Rcpt,
    Data,
    Content,
    FinalReply,
}

impl Phase {
    /// What people call it, and how long RFC 5321 §4.5.3.2 lets it take.
    const fn facts(self) -> (&'static str, u64) {
        match self {
            // Not in the RFC: an operating system's own two minutes help nobody.
            Self::Connect => ("connect", 30),
            Self::Greeting => ("greeting", 300),
            Self::Ehlo => ("EHLO", 300),
            Self::StartTls => ("STARTTLS", 300),
            Self::Tls => ("TLS", 60),
            Self::Auth => ("AUTH", 300),
            Self::Mail => ("MAIL", 300),
            Self::Rcpt => ("RCPT", 300),
            Self::Data => ("DATA", 120),
            Self::Content => ("content", 180),
            // Given up earlier, the upstream may still take the message, and it would be sent twice.
            Self::FinalReply => ("final reply", 600),
        }
    }

    /// What people call it.
    pub const fn name(self) -> &'static str {
        self.facts().0
    }

    /// How long it may take; `shortened` is the operator's `smtp_relay_timeout`.
    pub fn deadline(self, shortened: Option<Duration>) -> Duration {
        let rfc = Duration::from_secs(self.facts().1);
        shortened.map_or(rfc, |shorter| rfc.min(shorter))
    }
}
