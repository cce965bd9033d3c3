//! The parameters of MAIL and RCPT that travel with a message (RFC 5321 §4.1.2, esmtp-param), and the
//! two encodings that let any text stand in one.

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

    /// Reads the value of BODY, in any case; `None` if it is no such value.
    pub fn parse(value: &str) -> Option<Self> {
        match value.to_ascii_uppercase().as_str() {
            "7BIT" => Some(Self::SevenBit),
            "8BITMIME" => Some(Self::EightBit),
            "BINARYMIME" => Some(Self::Binary),
            _ => None,
        }
    }
}

/// As the value of BODY.
impl fmt::Display for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::SevenBit => "7BIT",
            Self::EightBit => "8BITMIME",
            Self::Binary => "BINARYMIME",
        })
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

impl Ret {
    /// Reads the value of RET, in any case; `None` if it is no such value.
    pub fn parse(value: &str) -> Option<Self> {
        match value.to_ascii_uppercase().as_str() {
            "FULL" => Some(Self::Full),
            "HDRS" => Some(Self::Hdrs),
            _ => None,
        }
    }
}

impl fmt::Display for Ret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Full => "FULL",
            Self::Hdrs => "HDRS",
        })
    }
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

    /// Reads the value of NOTIFY, in any case; `None` if it is no such value.
    pub fn parse(value: &str) -> Option<Self> {
        if value.eq_ignore_ascii_case("NEVER") {
            return Some(Self::NEVER);
        }
        let mut notify = Self::NEVER;
        for word in value.split(',') {
            match word.to_ascii_uppercase().as_str() {
                "SUCCESS" => notify.success = true,
                "FAILURE" => notify.failure = true,
                "DELAY" => notify.delay = true,
                _ => return None,
            }
        }
        Some(notify)
    }
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

impl OriginalRecipient {
    /// Reads the value of ORCPT; `None` if it is not well-formed.
    pub fn parse(value: &str) -> Option<Self> {
        let (kind, address) = value.split_once(';').filter(|_| value.len() <= ORCPT_MAX)?;
        // RFC 3461 §4.2: addr-type is an atom.
        let atom = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-/=?^_`{|}~".contains(&b);
        if kind.is_empty() || !kind.bytes().all(atom) {
            return None;
        }
        let kind = kind.to_ascii_lowercase();
        let address = if kind == UTF8 { decode_unitext(address) } else { decode_xtext(address) }?;
        (!address.is_empty()).then_some(Self { kind, address })
    }
}

/// As the value of ORCPT.
impl fmt::Display for OriginalRecipient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let address = if self.kind == UTF8 { encode_unitext } else { encode_xtext }(&self.address);
        write!(f, "{};{address}", self.kind)
    }
}

/// RFC 4865 §4: until when a message is not to be sent on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hold {
    /// HOLDFOR: so many seconds from now.
    For(u32),
    /// HOLDUNTIL: a point in time, in milliseconds since 1970-01-01T00:00:00Z.
    Until(u64),
}

impl Hold {
    /// Reads the value of HOLDFOR: up to nine digits, the first not zero.
    pub fn parse_for(value: &str) -> Option<Self> {
        let plain = value.len() <= 9 && value.bytes().all(|b| b.is_ascii_digit()) && !value.starts_with('0');
        value.parse().ok().filter(|_| plain).map(Self::For)
    }

    /// Reads the value of HOLDUNTIL, a date-time of RFC 3339.
    pub fn parse_until(value: &str) -> Option<Self> {
        let time: jiff::Timestamp = value.parse().ok()?;
        u64::try_from(time.as_second()).ok().map(|seconds| Self::Until(seconds * 1_000))
    }
}

/// As the value of its parameter.
impl fmt::Display for Hold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::For(seconds) => write!(f, "{seconds}"),
            Self::Until(time) => {
                let time =
                    i64::try_from(time / 1_000).ok().and_then(|s| jiff::Timestamp::from_second(s).ok());
                write!(f, "{}", time.unwrap_or(jiff::Timestamp::MAX))
            }
        }
    }
}

/// RFC 2852 §4: by when the message should have arrived, and what else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct By {
    /// Seconds from now; below zero if it is late already.
    pub seconds: i32,
    /// Mode R: behind that it is returned. Otherwise mode N: its sender is told.
    pub or_return: bool,
    /// T: each relay that passes it on tells the sender.
    pub trace: bool,
}

impl By {
    /// Reads the value of BY; `None` if it is no such value.
    pub fn parse(value: &str) -> Option<Self> {
        let (time, mode) = value.split_once(';')?;
        let digits = time.strip_prefix(['+', '-']).unwrap_or(time);
        let plain = (1..=9).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_digit());
        let seconds: i32 = time.parse().ok().filter(|_| plain)?;
        let (or_return, trace) = match mode.to_ascii_uppercase().as_str() {
            "N" => (false, false),
            "NT" => (false, true),
            "R" => (true, false),
            "RT" => (true, true),
            _ => return None,
        };
        // RFC 2852 §4: who wants it returned must leave some time.
        (seconds > 0 || !or_return).then_some(Self { seconds, or_return, trace })
    }
}

/// As the value of BY.
impl fmt::Display for By {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (mode, trace) = (if self.or_return { "R" } else { "N" }, if self.trace { "T" } else { "" });
        write!(f, "{};{mode}{trace}", self.seconds)
    }
}

/// Reads the value of ENVID: xtext of printable ASCII, within its bound.
pub fn parse_envid(value: &str) -> Option<String> {
    let envid = decode_xtext(value).filter(|_| value.len() <= ENVID_MAX)?;
    (!envid.is_empty() && envid.is_ascii()).then_some(envid)
}

/// RFC 3461 §4.4: characters of ENVID's value.
pub const ENVID_MAX: usize = 100;
/// RFC 3461 §4.2: characters of ORCPT's value.
pub const ORCPT_MAX: usize = 500;
/// RFC 6533 §3: the address type whose text is not xtext.
pub const UTF8: &str = "utf-8";

/// Text as xtext (RFC 3461 §4): printable ASCII, the rest as `+XX` an octet.
pub fn encode_xtext(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for octet in text.bytes() {
        match octet {
            b'+' | b'=' => encoded.push_str(&format!("+{octet:02X}")),
            b'!'..=b'~' => encoded.push(char::from(octet)),
            _ => encoded.push_str(&format!("+{octet:02X}")),
        }
    }
    encoded
}

/// Reads xtext. `None` if it is not well-formed, or if what it stands for is no text or holds a
/// control character: RFC 3461 §4.2 and §4.4 want it printable, and it will stand in a header.
pub fn decode_xtext(xtext: &str) -> Option<String> {
    let mut octets = Vec::with_capacity(xtext.len());
    let mut rest = xtext.bytes();
    while let Some(octet) = rest.next() {
        octets.push(match octet {
            b'+' => {
                let mut digit = || char::from(rest.next()?).to_digit(16);
                (digit()? << 4 | digit()?) as u8
            }
            b'=' => return None,
            b'!'..=b'~' => octet,
            _ => return None,
        });
    }
    String::from_utf8(octets).ok().filter(|text| !text.contains(char::is_control))
}

/// Text as utf-8-addr-xtext (RFC 6533 §3): printable ASCII, the rest as `\x{HEX}` a character. Any
/// server takes it, with SMTPUTF8 or without.
pub fn encode_unitext(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '+' | '=' | '\\' => encoded.push_str(&format!("\\x{{{:X}}}", u32::from(c))),
            '!'..='~' => encoded.push(c),
            _ => encoded.push_str(&format!("\\x{{{:X}}}", u32::from(c))),
        }
    }
    encoded
}

/// Reads utf-8-addr-xtext or utf-8-addr-unitext; `None` as in [`decode_xtext`].
fn decode_unitext(encoded: &str) -> Option<String> {
    let mut text = String::with_capacity(encoded.len());
    let mut rest = encoded;
    while let Some(c) = rest.chars().next() {
        rest = &rest[c.len_utf8()..];
        text.push(match c {
            '\\' => {
                let (digits, behind) = rest.strip_prefix("x{")?.split_once('}')?;
                let hex = (2..=6).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_hexdigit());
                rest = behind;
                char::from_u32(u32::from_str_radix(digits, 16).ok().filter(|_| hex)?)?
            }
            '+' | '=' => return None,
            '!'..='~' => c,
            c if !c.is_ascii() => c,
            _ => return None,
        });
    }
    (!text.contains(char::is_control)).then_some(text)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn xtext_is_read_as_the_standard_writes_it() {
        assert_eq!(encode_xtext("a+b=c d@x"), "a+2Bb+3Dc+20d@x");
        assert_eq!(decode_xtext("a+2Bb+3dc+20d@x").as_deref(), Some("a+b=c d@x"));
        assert_eq!(decode_xtext("").as_deref(), Some(""));
        for bad in ["+", "+4", "+4G", "a=b", "a b", "+0D+0A", "+00", "+FF", "+7F", "+C2+85", "+-1", "ü"] {
            assert_eq!(decode_xtext(bad), None, "{bad}");
        }
    }

    #[test]
    fn an_original_recipient_is_read_as_the_standards_write_it() {
        let parse = OriginalRecipient::parse;
        let named = |kind: &str, address: &str| {
            Some(OriginalRecipient { kind: kind.to_owned(), address: address.to_owned() })
        };
        assert_eq!(parse("rfc822;Bob+2Bx@example.com"), named("rfc822", "Bob+x@example.com"));
        assert_eq!(parse("X400;/c=us"), None);
        assert_eq!(parse("UTF-8;\\x{FC}ser@b\\x{FC}cher.example"), named("utf-8", "üser@bücher.example"));
        assert_eq!(parse("utf-8;üser\\x{2B}@bücher.example"), named("utf-8", "üser+@bücher.example"));
        for bad in [
            "",
            "a@b",
            ";a@b",
            "rfc822;",
            "r c;a",
            "utf-8;\\x{0D}",
            "utf-8;\\x{D800}",
            "utf-8;\\x{+41}",
            "utf-8;\\",
        ] {
            assert_eq!(parse(bad), None, "{bad}");
        }
        assert_eq!(parse(&format!("rfc822;{}", "a".repeat(ORCPT_MAX))), None);
    }

    #[test]
    fn notify_is_never_or_a_list() {
        assert_eq!(Notify::parse("never"), Some(Notify::NEVER));
        assert_eq!(Notify::parse("Failure,delay"), Some(Notify::DEFAULT));
        for bad in ["", "NEVER,SUCCESS", "SUCCESS,", ",", "SUCCESS, DELAY", "ALWAYS"] {
            assert_eq!(Notify::parse(bad), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn any_text_survives_xtext(text in "\\PC{0,60}") {
            let xtext = encode_xtext(&text);
            prop_assert!(xtext.bytes().all(|b| b.is_ascii_graphic() && b != b'='));
            prop_assert_eq!(decode_xtext(&xtext), Some(text));
        }

        #[test]
        fn any_original_recipient_survives(kind in "rfc822|utf-8|x-[a-z]{1,9}", address in "\\PC{1,40}") {
            let original = OriginalRecipient { kind, address };
            let value = original.to_string();
            prop_assert!(value.bytes().all(|b| b.is_ascii_graphic() && b != b'='));
            let short = value.len() <= ORCPT_MAX;
            prop_assert_eq!(OriginalRecipient::parse(&value), short.then_some(original));
        }

        #[test]
        fn any_notify_survives(success: bool, failure: bool, delay: bool) {
            let notify = Notify { success, failure, delay };
            prop_assert_eq!(Notify::parse(&notify.to_string()), Some(notify));
        }

        #[test]
        fn nothing_decodes_to_a_control_character(value in "(\\+[0-9A-F]{2}|\\\\x\\{[0-9A-F]{2,4}\\}|\\PC){0,20}") {
            let texts = [decode_xtext(&value), decode_unitext(&value)];
            prop_assert!(texts.iter().flatten().all(|text| !text.contains(char::is_control)));
        }
    }
}
