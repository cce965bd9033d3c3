//! What of the message goes back with a report (RFC 3461 §4.3, §6.2).

use super::Action;
use crate::{mail::content, smtp::parameter::Ret};

/// Octets of a header section that are returned.
const HEADER_MAX: usize = 32 * 1024;
/// Octets of a message that is returned whole; of a larger one only the header section. Whoever
/// asks for all of it wants to see what was refused, not to have it carried back and forth.
const MESSAGE_MAX: usize = 100 * 1024;

/// What is returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Returned<'a> {
    /// The header section, or the beginning of it.
    Header(&'a [u8]),
    /// All.
    Message(&'a [u8]),
}

/// A message's content, as far as it is at hand.
#[derive(Clone, Copy, Debug)]
pub struct Original<'a> {
    /// Its beginning.
    pub octets: &'a [u8],
    /// There is no more of it.
    pub whole: bool,
}

impl<'a> Returned<'a> {
    /// What is returned of a message whose sender asked for `ret`. `eight_bit`: the report can hold
    /// octets beyond ASCII, because the upstream takes them.
    pub fn of(original: Original<'a>, action: Action, ret: Option<Ret>, eight_bit: bool) -> Self {
        let Original { octets, whole } = original;
        // RFC 3461 §4.3: what is late or has arrived needs no returning; without a word from the
        // sender, the header section is enough to know the message again.
        let wanted = action == Action::Failed && ret == Some(Ret::Full);
        let fits = whole && octets.len() <= MESSAGE_MAX;
        let can = fits && is_text(octets) && (eight_bit || octets.is_ascii());
        if wanted && can {
            return Self::Message(octets);
        }
        let header = content::header_section(octets, whole).unwrap_or(octets);
        Self::Header(bounded(header))
    }
}

/// Whether it is made of lines that DATA can carry as they are (RFC 5321 §2.3.8). What came by BDAT
/// need not be, and a report with a bare newline in it could be taken for two messages.
pub(super) fn is_text(octets: &[u8]) -> bool {
    let before = |at: usize| at.checked_sub(1).map(|at| octets[at]);
    memchr::memchr3_iter(b'\0', b'\r', b'\n', octets).all(|at| match octets[at] {
        b'\r' => octets.get(at + 1) == Some(&b'\n'),
        b'\n' => before(at) == Some(b'\r'),
        _ => false,
    })
}

/// Whole lines, up to the bound.
fn bounded(header: &[u8]) -> &[u8] {
    if header.len() <= HEADER_MAX {
        return header;
    }
    let cut = memchr::memrchr(b'\n', &header[..HEADER_MAX]).map_or(HEADER_MAX, |end| end + 1);
    &header[..cut]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_header_is_returned_in_part() {
        let header = b"X: y\r\n".repeat(10_000);
        let cut = bounded(&header);
        assert!(cut.len() <= HEADER_MAX && cut.ends_with(b"\r\n"));
    }

    #[test]
    fn all_of_a_message_is_returned_only_of_a_small_one_that_failed_and_was_asked_for() {
        let header = b"Subject: x\r\n".as_slice();
        let small = b"Subject: x\r\n\r\nhi\r\n".as_slice();
        let accents = "Subject: x\r\n\r\nhé\r\n".as_bytes();
        let bare = b"Subject: x\r\n\r\na\n.\nb\r\n".as_slice();
        let large = [small, &b"line\r\n".repeat(20_000)].concat();
        let original = |octets| Original { octets, whole: true };
        let full = Some(Ret::Full);
        let cases = [
            (original(small), Action::Failed, full, false, Returned::Message(small)),
            (original(small), Action::Failed, Some(Ret::Hdrs), true, Returned::Header(header)),
            (original(small), Action::Failed, None, true, Returned::Header(header)),
            (original(small), Action::Delayed, full, true, Returned::Header(header)),
            (original(small), Action::Relayed, full, true, Returned::Header(header)),
            (original(accents), Action::Failed, full, true, Returned::Message(accents)),
            (original(accents), Action::Failed, full, false, Returned::Header(header)),
            (original(&large), Action::Failed, full, true, Returned::Header(header)),
            (
                Original { whole: false, ..original(small) },
                Action::Failed,
                full,
                true,
                Returned::Header(header),
            ),
            (original(bare), Action::Failed, full, true, Returned::Header(header)),
        ];
        for (original, action, ret, eight_bit, wanted) in cases {
            assert_eq!(
                Returned::of(original, action, ret, eight_bit),
                wanted,
                "{action:?} {ret:?} {eight_bit}"
            );
        }
    }
}
