//! A reply is a value (RFC 5321 §4.2): code, enhanced code (RFC 2034), text.
//!
//! - here: the value
//! - `said`: every sentence that Outpost can say to a client
//! - `read`: replies of an upstream

mod read;
mod said;

use std::{borrow::Cow, fmt, io::Write as _};

use serde::{Deserialize, Serialize};

pub use self::read::{ReplyError, ReplyReader};

/// An enhanced status code, `class.subject.detail` (RFC 3463).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Enhanced(pub u8, pub u16, pub u16);

impl Enhanced {
    /// Reads `5.1.1` if it stands alone at the start of `text`; returns what follows the blank.
    fn parse(text: &str) -> Option<(Self, &str)> {
        let (word, rest) = text.split_once(' ').unwrap_or((text, ""));
        let mut numbers = word.split('.');
        let mut number = |digits: usize| -> Option<u16> {
            let n = numbers.next()?;
            let plain = !n.is_empty() && n.len() <= digits && n.bytes().all(|b| b.is_ascii_digit());
            plain.then(|| n.parse().ok()).flatten()
        };
        let code = Self(number(1)? as u8, number(3)?, number(3)?);
        (numbers.next().is_none() && matches!(code.0, 2 | 4 | 5)).then_some((code, rest))
    }
}

impl fmt::Display for Enhanced {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.0, self.1, self.2)
    }
}

/// How final a reply is (RFC 5321 §4.2.1): the first digit, which a client must be able to act on
/// alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// 2yz.
    Success,
    /// 3yz: go on.
    Intermediate,
    /// 4yz: the same may succeed later.
    Transient,
    /// 5yz: the same will not succeed.
    Permanent,
}

/// One reply: ours to a client, or an upstream's to us.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reply {
    code: u16,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    enhanced: Option<Enhanced>,
    /// Lines joined by `\n`; no other control character.
    text: Cow<'static, str>,
}

impl Reply {
    /// A reply of any content. Lines of `text` are divided by `\n`; other control characters and
    /// those that reorder text on a screen are replaced, so that no reply can forge a line of a
    /// dialog, a log or a report.
    pub fn new(code: u16, enhanced: Option<Enhanced>, text: impl Into<Cow<'static, str>>) -> Self {
        let mut text = text.into();
        if text.contains(is_unsafe_in_text) {
            text = text.replace(is_unsafe_in_text, "\u{FFFD}").into();
        }
        Self { code, enhanced, text }
    }

    /// The three digits.
    pub fn code(&self) -> u16 {
        self.code
    }

    /// The enhanced code, if there is one.
    pub fn enhanced(&self) -> Option<Enhanced> {
        self.enhanced
    }

    /// How final it is.
    pub fn severity(&self) -> Severity {
        match self.code / 100 {
            0..=2 => Severity::Success,
            3 => Severity::Intermediate,
            4 => Severity::Transient,
            _ => Severity::Permanent,
        }
    }

    /// Whether it says yes (2yz).
    pub fn is_success(&self) -> bool {
        self.severity() == Severity::Success
    }

    /// Whether it turns somebody away for who they are or what they may do (X.7.z), or for a bound
    /// that they are over (X.3.4, X.5.3), rather than for a slip in the protocol.
    pub fn is_about_policy(&self) -> bool {
        let refused = matches!(self.severity(), Severity::Transient | Severity::Permanent);
        let subject = self.enhanced.map(|enhanced| (enhanced.1, enhanced.2));
        refused && matches!(subject, Some((7, _) | (3, 4) | (5, 3)))
    }

    /// The text's lines, without codes.
    pub fn lines(&self) -> impl Iterator<Item = &str> {
        self.text.split('\n')
    }

    /// Writes it as RFC 5321 §4.2 wants it: code, `-` or blank, the enhanced code on every line
    /// (RFC 2034 §4), text, CRLF.
    pub fn write_to(&self, out: &mut Vec<u8>) {
        let mut lines = self.lines().peekable();
        while let Some(line) = lines.next() {
            let between = if lines.peek().is_some() { '-' } else { ' ' };
            // Memory takes all.
            let _ = write!(out, "{}{between}", self.code);
            if let Some(enhanced) = self.enhanced {
                let _ = write!(out, "{enhanced} ");
            }
            out.extend_from_slice(line.as_bytes());
            out.extend_from_slice(b"\r\n");
        }
    }
}

/// On one line, as logs and reports show it: `550 5.1.1 no such user`.
impl fmt::Display for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.code)?;
        if let Some(enhanced) = self.enhanced {
            write!(f, " {enhanced}")?;
        }
        for line in self.lines().filter(|line| !line.is_empty()) {
            write!(f, " {line}")?;
        }
        Ok(())
    }
}

/// Controls (but not the `\n` between lines), and characters that hide or reorder text.
pub fn is_unsafe_in_text(c: char) -> bool {
    (c.is_control() && c != '\n')
        || matches!(c, '\u{200B}'..='\u{200F}' | '\u{2028}'..='\u{202E}' | '\u{2066}'..='\u{2069}' | '\u{FEFF}')
}
