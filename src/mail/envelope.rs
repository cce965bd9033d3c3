//! The envelope: who a message is from and for, and how it came to us.

use serde::{Deserialize, Serialize};

use crate::smtp::address::{Mailbox, ReversePath};

/// What MAIL and RCPT said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Envelope {
    /// Who hears of a failure.
    pub reverse_path: ReversePath,
    /// At least one.
    pub recipients: Vec<Mailbox>,
    /// RFC 6152: the content may hold octets beyond ASCII.
    pub eight_bit: bool,
}

/// How a message came to us: for Received, events and people.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// The client's address.
    pub client: String,
    /// What it called itself in EHLO, made harmless by the parser.
    pub hello: String,
    /// Who logged in, if anybody.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Whether EHLO was said rather than HELO.
    #[serde(default)]
    pub extended: bool,
    /// Whether it came over TLS.
    #[serde(default)]
    pub tls: bool,
}

impl Origin {
    /// The `with` word of Received (RFC 3848).
    pub fn protocol(&self) -> &'static str {
        match (self.extended, self.tls, self.user.is_some()) {
            (false, _, _) => "SMTP",
            (true, false, false) => "ESMTP",
            (true, false, true) => "ESMTPA",
            (true, true, false) => "ESMTPS",
            (true, true, true) => "ESMTPSA",
        }
    }
}
