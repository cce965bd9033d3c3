//! Facts about the content, found in its header section.
//!
//! The content itself is never parsed on its way: a few field names are looked for, within a bound,
//! and nothing is changed. Decoding for people (subjects, names) is done where people look.

use std::path::PathBuf;

use bytes::Bytes;
use memchr::{memchr, memmem};

use super::trace;
use crate::smtp::reply::is_unsafe_in_text;

/// More header section than this is an attack or a mistake, and every next hop would have to bear it.
pub const HEADER_MAX: usize = 256 * 1024;
/// The longest Subject or Message-ID that is kept for people to look at.
const FIELD_KEPT: usize = 500;

/// Where content is, and how to know that it is whole.
#[derive(Clone, Debug)]
pub enum Content {
    /// In memory, its checksum already compared.
    Memory(Bytes),
    /// In a file, to be streamed; whoever reads it compares the checksum before anything is final.
    File {
        /// Which file.
        path: PathBuf,
        /// Octets.
        size: u64,
        /// Of all octets.
        crc32c: u32,
    },
}

impl Content {
    /// Octets.
    pub fn size(&self) -> u64 {
        match self {
            Self::Memory(octets) => octets.len() as u64,
            Self::File { size, .. } => *size,
        }
    }

    /// Octets that it takes in memory.
    pub fn octets_in_memory(&self) -> usize {
        match self {
            Self::Memory(octets) => octets.len(),
            Self::File { .. } => 0,
        }
    }
}

/// What the header section says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Octets of the header section.
    pub header: usize,
    /// Received fields.
    pub hops: usize,
    /// Those of them that are our own.
    pub passes: usize,
    /// There is a Date field.
    pub date: bool,
    /// It holds octets beyond ASCII.
    pub eight_bit: bool,
    /// As it stands, unfolded, not decoded, fit to be looked at.
    pub subject: Option<String>,
    /// The same.
    pub message_id: Option<String>,
}

/// The header section is longer than [`HEADER_MAX`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeaderTooLarge;

impl Facts {
    /// Looks through the header section at the start of `head`. `whole` says that there is no more
    /// content than that; content without a blank line is all header.
    ///
    /// # Errors
    /// [`HeaderTooLarge`]; what it holds is then not looked at.
    pub fn of(head: &[u8], whole: bool) -> Result<Self, HeaderTooLarge> {
        let section = header_section(head, whole)?;
        let mut facts = Self { header: section.len(), eight_bit: !section.is_ascii(), ..Self::default() };
        for field in fields(section) {
            if field.name.eq_ignore_ascii_case(b"received") {
                facts.hops += 1;
            } else if field.name.eq_ignore_ascii_case(b"date") {
                facts.date = true;
            } else if field.name.eq_ignore_ascii_case(b"subject") {
                facts.subject = facts.subject.or_else(|| Some(field.unfolded()));
            } else if field.name.eq_ignore_ascii_case(b"message-id") {
                facts.message_id = facts.message_id.or_else(|| Some(field.unfolded()));
            }
        }
        Ok(facts)
    }

    /// Counts how often the message passed Outpost under the name `hostname`, from the same head.
    pub fn count_passes(&mut self, head: &[u8], hostname: &str) {
        if self.hops == 0 {
            return;
        }
        let section = header_section(head, true).unwrap_or_default();
        let received = fields(section).filter(|field| field.name.eq_ignore_ascii_case(b"received"));
        self.passes = received.filter(|field| trace::is_ours(field.value, hostname)).count();
    }
}

/// The octets before the blank line that ends the header section (RFC 5322 §2.1).
///
/// # Errors
/// [`HeaderTooLarge`] if it doesn't end within the bound.
pub fn header_section(head: &[u8], whole: bool) -> Result<&[u8], HeaderTooLarge> {
    let bounded = &head[..head.len().min(HEADER_MAX)];
    let end = header_end(bounded, whole && head.len() <= HEADER_MAX);
    end.map(|end| &head[..end]).ok_or(HeaderTooLarge)
}

/// Where the blank line begins that ends the header section; `None` if `head` has none, unless it is the
/// `whole` content.
pub fn header_end(head: &[u8], whole: bool) -> Option<usize> {
    if head.starts_with(b"\r\n") {
        return Some(0);
    }
    memmem::find(head, b"\r\n\r\n").map(|end| end + 2).or(whole.then_some(head.len()))
}

/// The Subject as people read it: encoded words decoded, nothing that could end a line.
pub fn decoded_subject(head: &[u8]) -> Option<String> {
    let header = header_section(head, true).ok()?;
    let message = mail_parser::MessageParser::new()
        .header_text(mail_parser::HeaderName::Subject)
        .parse_headers(header)?;
    let subject: String =
        message.subject()?.chars().map(|c| if c == '\n' || is_unsafe_in_text(c) { ' ' } else { c }).collect();
    Some(subject[..subject.floor_char_boundary(FIELD_KEPT)].to_owned())
}

/// One header field as it stands.
#[derive(Clone, Copy, Debug)]
pub struct Field<'a> {
    /// Before the colon.
    pub name: &'a [u8],
    /// Behind the colon, folds and last CRLF included.
    pub value: &'a [u8],
    /// Where in the header section the value begins.
    pub at: usize,
}

impl Field<'_> {
    /// The value on one line, bounded; controls, and what hides or reorders text, replaced: people look at it.
    pub fn unfolded(&self) -> String {
        let text = String::from_utf8_lossy(&self.value[..self.value.len().min(4 * FIELD_KEPT)]);
        let text = text.replace("\r\n", "");
        let clean: String = text
            .trim()
            .chars()
            .map(|c| {
                if c == '\t' {
                    ' '
                } else if c == '\n' || is_unsafe_in_text(c) {
                    '\u{FFFD}'
                } else {
                    c
                }
            })
            .collect();
        clean[..clean.floor_char_boundary(FIELD_KEPT)].to_owned()
    }
}

/// The fields of a header section, in order. A line that is none is passed over.
pub fn fields(mut section: &[u8]) -> impl Iterator<Item = Field<'_>> {
    let length = section.len();
    std::iter::from_fn(move || {
        while !section.is_empty() {
            let mut end = line_end(section);
            // RFC 5322 §2.2.3: a line that begins with white space goes on with the field.
            while matches!(section.get(end), Some(b' ' | b'\t')) {
                end += line_end(&section[end..]);
            }
            let begin = length - section.len();
            let (field, rest) = section.split_at(end);
            section = rest;
            if let Some(colon) = memchr(b':', field) {
                let name = field[..colon].trim_ascii_end();
                if !name.is_empty() && name.iter().all(u8::is_ascii_graphic) {
                    let value = &field[colon + 1..];
                    return Some(Field { name, value, at: begin + colon + 1 });
                }
            }
        }
        None
    })
}

fn line_end(octets: &[u8]) -> usize {
    memchr(b'\n', octets).map_or(octets.len(), |i| i + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(content: &[u8], hops: usize, subject: Option<&str>) {
        let facts = Facts::of(content, true).unwrap();
        assert_eq!((facts.hops, facts.subject.as_deref()), (hops, subject));
    }

    #[test]
    fn the_header_is_read_and_the_body_is_not() {
        let content =
            b"Received: a\r\nrECEIVED : b\r\n\tmore\r\nSubject:\r\n =?utf-8?q?x?=\r\n\ty\r\nno field\r\n\
            Message-ID: <1@x>\r\n\r\nSubject: body\r\nReceived: c\r\n";
        check(content, 2, Some("=?utf-8?q?x?= y"));
        assert_eq!(Facts::of(content, true).unwrap().message_id.as_deref(), Some("<1@x>"));
    }

    #[test]
    fn odd_content_is_taken_as_it_is() {
        check(b"\r\nSubject: body\r\n", 0, None);
        check(b"", 0, None);
        check(b"Subject: only", 0, Some("only"));
        check(b"Subject: a\x1b[2J\r\n\r\n", 0, Some("a\u{FFFD}[2J"));
        check("Subject: a\u{202E}\u{2028}b\r\n\r\n".as_bytes(), 0, Some("a\u{FFFD}\u{FFFD}b"));
        check(b" folded nothing\r\n: no name\r\n\r\n", 0, None);
    }

    #[test]
    fn an_endless_header_is_noticed() {
        let endless = b"X: y\r\n".repeat(HEADER_MAX / 6 + 1);
        assert_eq!(Facts::of(&endless, true), Err(HeaderTooLarge));
        assert_eq!(Facts::of(b"X: y\r\n", false), Err(HeaderTooLarge));
    }
}
