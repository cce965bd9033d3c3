//! The parameters of MAIL and RCPT that travel with a message (RFC 5321 §4.1.2, esmtp-param).

use std::fmt;

use serde::{Deserialize, Serialize};

/// RFC 6152, RFC 3030: what the content is made of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Body {
    /// Lines of ASCII.
    #[default]
    SevenBit,
    /// Lines that may hold octets beyond ASCII.
    EightBit,
    /// Octets without lines; only BDAT carries them.
    Binary,
}

impl Body {
    /// Whether it needs no extension.
    pub fn is_seven_bit(&self) -> bool {
        *self == Self::SevenBit
    }
}

/// RFC 3461 §4.3: how much of the message a report returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Ret {
    /// All of it.
    Full,
    /// The header section.
    Hdrs,
}

/// RFC 3461 §4.1: of what the sender wants to hear for a recipient; of nothing at all is `NEVER`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Notify {
    /// It arrived.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub success: bool,
    /// It will not arrive.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub failure: bool,
    /// It is late.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub delay: bool,
}

impl Notify {
    /// What holds where nothing was asked for (RFC 3461 §4.1): failures, and delays as local policy
    /// has it.
    pub const DEFAULT: Self = Self { success: false, failure: true, delay: true };
    /// `NOTIFY=NEVER`.
    pub const NEVER: Self = Self { success: false, failure: false, delay: false };
}

impl fmt::Display for Notify {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words = [(self.success, "SUCCESS"), (self.failure, "FAILURE"), (self.delay, "DELAY")];
        let words: Vec<_> = words.into_iter().filter_map(|(wanted, word)| wanted.then_some(word)).collect();
        f.write_str(if words.is_empty() { "NEVER" } else { "" })?;
        f.write_str(&words.join(","))
    }
}

/// RFC 3461 §4.2: the recipient as the sender first knew it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OriginalRecipient {
    /// `rfc822`, `utf-8`.
    pub kind: String,
    /// Decoded from xtext, without controls.
    pub address: String,
}
