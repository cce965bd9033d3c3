//! The envelope: who a message is from and for, and how it came to us.

use serde::{Deserialize, Serialize};

use crate::{
    clock::Timestamp,
    smtp::{
        address::{Mailbox, ReversePath},
        parameter::{Body, Notify, OriginalRecipient, Ret},
    },
};

/// What MAIL and RCPT said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Envelope {
    /// Who hears of a failure.
    pub reverse_path: ReversePath,
    /// At least one.
    pub recipients: Vec<Addressee>,
    /// What the client asked for the message as a whole.
    pub handling: Handling,
}

/// One RCPT.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Addressee {
    /// Whom to reach.
    pub mailbox: Mailbox,
    /// RFC 3461 §4.1: of what the sender wants to hear; `None` where it did not say.
    pub notify: Option<Notify>,
    /// RFC 3461 §4.2: ORCPT.
    pub original: Option<OriginalRecipient>,
}

impl From<Mailbox> for Addressee {
    fn from(mailbox: Mailbox) -> Self {
        Self { mailbox, notify: None, original: None }
    }
}

/// What the client asked for the message as a whole, by the parameters of MAIL.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Handling {
    /// What the content is made of.
    #[serde(default, skip_serializing_if = "Body::is_seven_bit")]
    pub body: Body,
    /// RFC 6531: SMTPUTF8 was asked for.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub utf8: bool,
    /// SMTPUTF8 was asked for, and the header section does hold more than ASCII. Whether an address
    /// does, it says itself.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub utf8_header: bool,
    /// RFC 3461 §4.3.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ret: Option<Ret>,
    /// RFC 3461 §4.4: ENVID, decoded from xtext, without controls.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub envid: Option<String>,
    /// RFC 8689: by TLS with a verified certificate, or not at all.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub require_tls: bool,
    /// RFC 6710: from -9 to 9; higher goes first.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub priority: i8,
    /// RFC 4865: not before this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hold_until: Option<Timestamp>,
    /// RFC 2852: not later than this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deliver_by: Option<DeliverBy>,
}

fn is_zero(priority: &i8) -> bool {
    *priority == 0
}

/// RFC 2852 §4: by when it should have arrived, and what else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeliverBy {
    /// By when.
    pub time: Timestamp,
    /// Behind that it is returned; otherwise its sender is told and it is tried on.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub or_return: bool,
    /// Each relay that passes it on tells the sender.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub trace: bool,
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
    /// Whether it came by HTTP, where there is no EHLO.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub http: bool,
}

impl Origin {
    /// The `with` word of Received (RFC 3848), or HTTP; `utf8` says that SMTPUTF8 was asked for (RFC 6531
    /// §4.3).
    pub fn protocol(&self, utf8: bool) -> &'static str {
        if self.http {
            return "HTTP";
        }
        match (self.extended, utf8, self.tls, self.user.is_some()) {
            (false, ..) => "SMTP",
            (true, false, false, false) => "ESMTP",
            (true, false, false, true) => "ESMTPA",
            (true, false, true, false) => "ESMTPS",
            (true, false, true, true) => "ESMTPSA",
            (true, true, false, false) => "UTF8SMTP",
            (true, true, false, true) => "UTF8SMTPA",
            (true, true, true, false) => "UTF8SMTPS",
            (true, true, true, true) => "UTF8SMTPSA",
        }
    }
}
