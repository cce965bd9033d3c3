//! Replies of an upstream, put together out of its octets.
//!
//! What a hostile one can make us keep is bounded.

use super::{Enhanced, Reply};

/// The longest part of one reply line that is kept. RFC 5321 §4.5.3.1.5 allows 512.
const LINE_KEPT: usize = 2048;
/// The most text of one reply that is kept: enough for any explanation worth showing to a person.
const TEXT_KEPT: usize = 8 * 1024;
/// More lines than this are not an answer but an attack.
const LINES_MAX: usize = 256;
/// Octets of one reply, kept or not, before the peer is given up.
const OCTETS_MAX: usize = 256 * 1024;

/// What an upstream sent is not a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReplyError {
    /// Not three digits from 200 to 599, or lines whose codes differ.
    #[error("the server sent something that is not an SMTP reply")]
    Malformed,
    /// Beyond the bounds above.
    #[error("the server's reply has no end")]
    Endless,
}

/// Puts an upstream's octets together to replies, however they were cut.
///
/// Lenient where it is harmless (a bare LF ends a line), strict where it is not: lines must agree on
/// their code, so that a 250 can never be taken for another command's answer.
#[derive(Debug, Default)]
pub struct ReplyReader {
    line: Vec<u8>,
    octets: usize,
    lines: usize,
    code: u16,
    enhanced: Option<Enhanced>,
    text: String,
}

impl ReplyReader {
    /// Whether a reply has begun and not ended.
    pub fn is_midway(&self) -> bool {
        self.octets > 0
    }

    /// Takes octets from the front of `input` up to the end of one reply.
    ///
    /// # Errors
    /// See [`ReplyError`]; the connection can't be used after one.
    pub fn read(&mut self, input: &mut &[u8]) -> Result<Option<Reply>, ReplyError> {
        while let Some(end) = memchr::memchr(b'\n', input) {
            self.keep(&input[..end]);
            *input = &input[end + 1..];
            self.octets += 1;
            if self.octets > OCTETS_MAX || self.lines >= LINES_MAX {
                return Err(ReplyError::Endless);
            }
            if self.end_line()? {
                let reply = Reply::new(self.code, self.enhanced, std::mem::take(&mut self.text));
                *self = Self::default();
                return Ok(Some(reply));
            }
        }
        self.keep(input);
        *input = &[];
        if self.octets > OCTETS_MAX { Err(ReplyError::Endless) } else { Ok(None) }
    }

    fn keep(&mut self, octets: &[u8]) {
        let room = LINE_KEPT.saturating_sub(self.line.len());
        self.line.extend_from_slice(&octets[..octets.len().min(room)]);
        self.octets += octets.len();
    }

    /// Judges one whole line; true if it was the last of its reply.
    fn end_line(&mut self) -> Result<bool, ReplyError> {
        if self.line.last() == Some(&b'\r') {
            self.line.pop();
        }
        let (digits, rest) = self.line.split_at_checked(3).ok_or(ReplyError::Malformed)?;
        if !digits.iter().all(u8::is_ascii_digit) {
            return Err(ReplyError::Malformed);
        }
        let code = digits.iter().fold(0, |n, b| n * 10 + u16::from(b - b'0'));
        let last = match rest.first() {
            None | Some(b' ') => true,
            Some(b'-') => false,
            Some(_) => return Err(ReplyError::Malformed),
        };
        if !(200..600).contains(&code) || (self.lines > 0 && code != self.code) {
            return Err(ReplyError::Malformed);
        }
        let text = String::from_utf8_lossy(rest.get(1..).unwrap_or_default()).into_owned();
        let mut text = text.as_str();
        // RFC 2034 §4: the class of the enhanced code agrees with the code's first digit.
        if let Some((enhanced, rest)) = Enhanced::parse(text)
            && u16::from(enhanced.0) == code / 100
            && (self.lines == 0 || self.enhanced == Some(enhanced))
        {
            self.enhanced = Some(enhanced);
            text = rest;
        }
        if self.lines > 0 && self.text.len() < TEXT_KEPT {
            self.text.push('\n');
        }
        let room = TEXT_KEPT.saturating_sub(self.text.len());
        self.text.push_str(&text[..text.floor_char_boundary(room)]);
        self.code = code;
        self.lines += 1;
        self.line.clear();
        Ok(last)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{super::Severity, *};

    fn read_all(mut input: &[u8]) -> Result<Option<Reply>, ReplyError> {
        ReplyReader::default().read(&mut input)
    }

    #[test]
    fn replies_are_read_with_their_enhanced_code() {
        let reply = read_all(b"550-5.1.1 no such\r\n550 5.1.1 user\r\n").unwrap().unwrap();
        assert_eq!(reply, Reply::new(550, Some(Enhanced(5, 1, 1)), "no such\nuser"));
        assert_eq!(reply.to_string(), "550 5.1.1 no such user");
    }

    #[test]
    fn sloppy_but_harmless_replies_are_understood() {
        assert_eq!(read_all(b"250\r\n"), Ok(Some(Reply::new(250, None, ""))));
        assert_eq!(read_all(b"250 ok\n"), Ok(Some(Reply::new(250, None, "ok"))));
        assert_eq!(read_all(b"299 hm\r\n").unwrap().unwrap().severity(), Severity::Success);
        // The class must agree with the code, else it is text.
        assert_eq!(read_all(b"250 5.1.1 x\r\n"), Ok(Some(Reply::new(250, None, "5.1.1 x"))));
    }

    #[test]
    fn what_is_no_reply_is_an_error() {
        for bad in ["hello\r\n", "25\r\n", "250_x\r\n", "777 x\r\n", "250-a\r\n550 b\r\n", "\r\n"] {
            assert_eq!(read_all(bad.as_bytes()), Err(ReplyError::Malformed), "{bad:?}");
        }
    }

    #[test]
    fn an_endless_reply_is_given_up_and_never_kept() {
        let mut reader = ReplyReader::default();
        let chunk = vec![b'x'; 64 * 1024];
        let result = (0..100).find_map(|_| reader.read(&mut chunk.as_slice()).err());
        assert_eq!(result, Some(ReplyError::Endless));
        assert!(reader.line.len() <= LINE_KEPT);

        let lines = b"250-more\r\n".repeat(LINES_MAX + 1);
        assert_eq!(read_all(&lines), Err(ReplyError::Endless));
    }

    #[test]
    fn no_reply_can_forge_a_line() {
        let reply = read_all(b"550 a\rb\x1b[2Jc\xE2\x80\xAE\r\n").unwrap().unwrap();
        assert!(!reply.to_string().contains(['\r', '\n', '\u{1b}', '\u{202E}']), "{reply:?}");
    }

    proptest! {
        #[test]
        fn writing_and_reading_is_identity_however_the_octets_are_cut(
            code in 200u16..600,
            enhanced in proptest::option::of((0u16..1000, 0u16..1000)),
            lines in proptest::collection::vec("[a-zA-Z][ -~]{0,60}", 1..6),
            cuts in proptest::collection::vec(1usize..20, 1..40),
        ) {
            let enhanced = enhanced
                .filter(|_| [2, 4, 5].contains(&(code / 100)))
                .map(|(subject, detail)| Enhanced((code / 100) as u8, subject, detail));
            let reply = Reply::new(code, enhanced, lines.join("\n"));
            let mut octets = Vec::new();
            reply.write_to(&mut octets);

            let mut reader = ReplyReader::default();
            let (mut rest, mut cuts, mut got) = (octets.as_slice(), cuts.iter().cycle(), None);
            while got.is_none() {
                prop_assert!(!rest.is_empty());
                let (mut piece, after) = rest.split_at(rest.len().min(*cuts.next().unwrap()));
                rest = after;
                got = reader.read(&mut piece).unwrap();
                prop_assert!(piece.is_empty());
            }
            prop_assert_eq!(got.unwrap(), reply);
            prop_assert!(rest.is_empty() && !reader.is_midway());
        }

        #[test]
        fn any_octets_are_read_without_a_panic(octets: Vec<u8>) {
            let _ = read_all(&octets);
        }
    }
}
