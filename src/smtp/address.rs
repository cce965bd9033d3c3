//! Reverse-path and forward-path (RFC 5321 §4.1.2), checked and kept as they were written.
//!
//! What comes in goes out byte for byte: quoting, case and literals are the sender's business.
//! What can't be written back safely (controls, unbalanced quotes, spaces) is never accepted.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::reply::is_unsafe_in_text;

/// RFC 5321 §4.5.3.1.1: a local-part of 64 octets must be accepted; longer ones exist (VERP), and
/// the upstream is the judge of them.
const LOCAL_PART_MAX: usize = 128;
/// RFC 5321 §4.5.3.1.2.
const DOMAIN_MAX: usize = 255;
/// RFC 1035 §2.3.4.
const LABEL_MAX: usize = 63;

/// `local-part@domain`, or a lone `postmaster` (RFC 5321 §4.5.1), as it was written.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Mailbox(String);

impl Mailbox {
    /// Checks an address without its angle brackets.
    ///
    /// # Errors
    /// Says which part is wrong.
    pub fn parse(text: &str) -> Result<Self, AddressError> {
        if text.eq_ignore_ascii_case("postmaster") {
            return Ok(Self(text.to_owned()));
        }
        let at = local_part_end(text)?;
        let (local, domain) = (&text[..at], &text[at + 1..]);
        if local.is_empty() || local.len() > LOCAL_PART_MAX {
            return Err(AddressError::LocalPart);
        }
        check_domain(domain)?;
        Ok(Self(text.to_owned()))
    }

    /// The address as written.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it needs no SMTPUTF8 (RFC 6531).
    pub fn is_ascii(&self) -> bool {
        self.0.is_ascii()
    }

    /// What stands behind the last `@`; empty for a lone `postmaster`.
    pub fn domain(&self) -> &str {
        self.0.rsplit_once('@').map_or("", |(_, domain)| domain)
    }
}

impl fmt::Display for Mailbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for Mailbox {
    type Error = AddressError;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        Self::parse(&text)
    }
}

impl From<Mailbox> for String {
    fn from(mailbox: Mailbox) -> Self {
        mailbox.0
    }
}

/// The argument of MAIL: who hears of it if the message can't be delivered, or nobody (`<>`).
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ReversePath(Option<Mailbox>);

impl ReversePath {
    /// `<>`: of reports and other mail that must never be answered by a report.
    pub const NULL: Self = Self(None);

    /// The sender, unless it is the null one.
    pub fn mailbox(&self) -> Option<&Mailbox> {
        self.0.as_ref()
    }

    /// Whether it needs no SMTPUTF8 (RFC 6531).
    pub fn is_ascii(&self) -> bool {
        self.as_str().is_ascii()
    }

    /// The address as written; empty for the null path.
    pub fn as_str(&self) -> &str {
        self.0.as_ref().map_or("", Mailbox::as_str)
    }
}

impl From<Mailbox> for ReversePath {
    fn from(mailbox: Mailbox) -> Self {
        Self(Some(mailbox))
    }
}

impl TryFrom<String> for ReversePath {
    type Error = AddressError;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        if text.is_empty() { Ok(Self::NULL) } else { Mailbox::parse(&text).map(Into::into) }
    }
}

impl From<ReversePath> for String {
    fn from(path: ReversePath) -> Self {
        path.as_str().to_owned()
    }
}

impl fmt::Display for ReversePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "<{}>", self.as_str())
    }
}

/// Why an address can't be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// Neither a path in angle brackets nor an address.
    #[error("expected an address in angle brackets")]
    Syntax,
    /// Before the `@`.
    #[error("the part before the @ is not valid")]
    LocalPart,
    /// Behind the `@`.
    #[error("the domain is not valid")]
    Domain,
}

/// Reads a path at the start of a command's argument and returns what follows it.
///
/// `<a@b>` and, because many apps write it so, `a@b` without brackets. A source route (`<@r:a@b>`)
/// is dropped, as RFC 5321 §4.1.1.3 and appendix C ask.
///
/// # Errors
/// Says which part is wrong.
pub fn parse_path(text: &str) -> Result<(ReversePath, &str), AddressError> {
    let (inner, rest) = match text.strip_prefix('<') {
        Some(open) => {
            let end = closing_bracket(open).ok_or(AddressError::Syntax)?;
            (strip_source_route(&open[..end])?, &open[end + 1..])
        }
        None => {
            let end = text.find(' ').unwrap_or(text.len());
            if end == 0 {
                return Err(AddressError::Syntax);
            }
            (&text[..end], &text[end..])
        }
    };
    if !(rest.is_empty() || rest.starts_with(' ')) {
        return Err(AddressError::Syntax);
    }
    Ok((ReversePath::try_from(inner.to_owned())?, rest.trim_start_matches(' ')))
}

/// The `>` that is not inside a quoted local-part.
fn closing_bracket(text: &str) -> Option<usize> {
    let (mut quoted, mut escaped) = (false, false);
    for (i, b) in text.bytes().enumerate() {
        match b {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            b'>' if !quoted => return Some(i),
            _ => {}
        }
    }
    None
}

fn strip_source_route(path: &str) -> Result<&str, AddressError> {
    if !path.starts_with('@') {
        return Ok(path);
    }
    let (route, mailbox) = path.split_once(':').ok_or(AddressError::Syntax)?;
    for hop in route.split(',') {
        check_domain(hop.strip_prefix('@').ok_or(AddressError::Syntax)?)?;
    }
    Ok(mailbox)
}

/// Checks the local-part and returns where its `@` stands.
fn local_part_end(text: &str) -> Result<usize, AddressError> {
    let mut chars = text.char_indices();
    if !text.starts_with('"') {
        // RFC 5321 §4.1.2 Dot-string, but dots may stand anywhere: such mailboxes exist.
        return match chars.find(|(_, c)| !(is_atext(*c) || *c == '.')) {
            Some((i, '@')) => Ok(i),
            Some(_) => Err(AddressError::LocalPart),
            None => Err(AddressError::Syntax),
        };
    }
    chars.next();
    loop {
        match chars.next() {
            Some((_, '"')) => break,
            // RFC 6531 §3.3 adds UTF-8 to what stands in quotes, and nothing to what a backslash quotes.
            Some((_, '\\')) if chars.next().is_some_and(|(_, c)| matches!(c, ' '..='~')) => {}
            Some((_, c)) if c != '\\' && (matches!(c, ' '..='~') || is_utf8_text(c)) => {}
            _ => return Err(AddressError::LocalPart),
        }
    }
    match chars.next() {
        Some((i, '@')) => Ok(i),
        _ => Err(AddressError::LocalPart),
    }
}

/// RFC 5321 §4.1.2 Domain or address-literal. Underscores are let through: such hosts exist.
pub(crate) fn check_domain(domain: &str) -> Result<(), AddressError> {
    if let Some(literal) = domain.strip_prefix('[') {
        let inner = literal.strip_suffix(']').ok_or(AddressError::Domain)?;
        let legal = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b':' | b'-');
        return if !inner.is_empty() && inner.len() < DOMAIN_MAX && inner.bytes().all(legal) {
            Ok(())
        } else {
            Err(AddressError::Domain)
        };
    }
    let label = |label: &str| {
        !label.is_empty()
            // A label beyond ASCII is shorter in characters than in the form that the limit is for.
            && label.chars().count() <= LABEL_MAX
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_') || is_utf8_text(c))
    };
    if domain.len() <= DOMAIN_MAX && domain.split('.').all(label) {
        Ok(())
    } else {
        Err(AddressError::Domain)
    }
}

/// RFC 5322 §3.2.3, and UTF8-non-ascii as RFC 6531 §3.3 adds it.
fn is_atext(c: char) -> bool {
    c.is_ascii_alphanumeric() || "!#$%&'*+-/=?^_`{|}~".contains(c) || is_utf8_text(c)
}

/// A character beyond ASCII that may stand in an address. Controls, blanks and what hides or reorders
/// text would make an address look like another one to people, in a log or a report.
fn is_utf8_text(c: char) -> bool {
    !c.is_ascii() && !c.is_whitespace() && !is_unsafe_in_text(c)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: Result<(&str, &str), AddressError>) {
        let got = parse_path(text);
        let got = got.as_ref().map(|(path, rest)| (path.as_str(), *rest)).map_err(|e| *e);
        assert_eq!(got, expected, "{text}");
    }

    #[test]
    fn paths_are_read_as_they_were_written() {
        check("<a@b.example>", Ok(("a@b.example", "")));
        check("<>", Ok(("", "")));
        check("<a@b.example> SIZE=1", Ok(("a@b.example", "SIZE=1")));
        check("a@b.example SIZE=1", Ok(("a@b.example", "SIZE=1")));
        check("<@r1.example,@r2.example:a@b.example>", Ok(("a@b.example", "")));
        check("<\"a> b@c\\\"\"@d.example> X", Ok(("\"a> b@c\\\"\"@d.example", "X")));
        check("<a@[192.0.2.1]>", Ok(("a@[192.0.2.1]", "")));
        check("<a@[IPv6:2001:db8::1]>", Ok(("a@[IPv6:2001:db8::1]", "")));
        check("<Postmaster>", Ok(("Postmaster", "")));
        check("<a..b@docomo.example>", Ok(("a..b@docomo.example", "")));
        check("<用户.ü@bücher.例子>", Ok(("用户.ü@bücher.例子", "")));
        check("<\"ü ü\"@b.example>", Ok(("\"ü ü\"@b.example", "")));
        check("<user%other@b_c.example>", Ok(("user%other@b_c.example", "")));
    }

    #[test]
    fn what_can_not_be_written_back_safely_is_refused() {
        check("", Err(AddressError::Syntax));
        check("<a@b.example", Err(AddressError::Syntax));
        check("<a@b.example>SIZE=1", Err(AddressError::Syntax));
        check("<a>", Err(AddressError::Syntax));
        check("<@b.example>", Err(AddressError::Syntax));
        check("<a b@c.example>", Err(AddressError::LocalPart));
        check("<a@b@c.example>", Err(AddressError::Domain));
        check("<a@>", Err(AddressError::Domain));
        check("<a@-b.example>", Err(AddressError::Domain));
        check("<a@b..example>", Err(AddressError::Domain));
        check("<a@[1.2.3.4>", Err(AddressError::Domain));
        check("<\"a\u{1}\"@b.example>", Err(AddressError::LocalPart));
        check("<\"a\\\"@b.example>", Err(AddressError::Syntax));
        for hidden in ["\u{85}", "\u{A0}", "\u{3000}", "\u{200B}", "\u{202E}", "\u{2028}", "\u{FEFF}"] {
            check(&format!("<a{hidden}@b.example>"), Err(AddressError::LocalPart));
            check(&format!("<\"a{hidden}\"@b.example>"), Err(AddressError::LocalPart));
            check(&format!("<a@b{hidden}.example>"), Err(AddressError::Domain));
        }
        check("<\"a\\ü\"@b.example>", Err(AddressError::LocalPart));
        check("<a@[ü]>", Err(AddressError::Domain));
        check(&format!("<{}@b.example>", "a".repeat(129)), Err(AddressError::LocalPart));
        check(&format!("<a@{}.example>", "b".repeat(64)), Err(AddressError::Domain));
    }
}
