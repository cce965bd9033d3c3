//! Octets to command lines.

use memchr::memchr;

/// RFC 5321 §4.5.3.1.4 asks for 512 octets and room for the extensions' parameters.
pub const COMMAND_LINE_MAX: usize = 2048;
/// A peer that sends so much without an end of line is not talking SMTP.
const LINE_GIVEN_UP: usize = 64 * 1024;

/// What stood between two ends of line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Line<'a> {
    /// A line without its CRLF.
    Whole(&'a [u8]),
    /// It was longer than allowed; all of it is gone.
    TooLong,
    /// It ended in a bare LF or held a bare CR (RFC 5321 §2.3.8).
    BareNewline,
}

/// The input has no end of line where every peer that means SMTP has one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Endless;

/// Finds command lines in a buffer that its caller keeps.
#[derive(Debug, Default)]
pub struct LineReader {
    /// Octets of an overlong line that were given back to the caller as consumed.
    discarded: usize,
    /// How much of the buffer was searched already.
    searched: usize,
}

impl LineReader {
    /// Looks for one line at the start of `input`: the line, and how many octets it took.
    /// With no line yet, the number is how many octets can be dropped.
    ///
    /// # Errors
    /// [`Endless`]: close the connection.
    pub fn next<'a>(&mut self, input: &'a [u8], max: usize) -> Result<(Option<Line<'a>>, usize), Endless> {
        let searched = std::mem::take(&mut self.searched).min(input.len());
        let Some(end) = memchr(b'\n', &input[searched..]).map(|i| searched + i) else {
            if self.discarded == 0 && input.len() <= max + 1 {
                self.searched = input.len();
                return Ok((None, 0));
            }
            self.discarded += input.len();
            return if self.discarded > LINE_GIVEN_UP { Err(Endless) } else { Ok((None, input.len())) };
        };
        let used = end + 1;
        let too_long = std::mem::take(&mut self.discarded) > 0;
        let line = match input[..end].strip_suffix(b"\r") {
            _ if too_long || end > max + 1 => Line::TooLong,
            Some(line) if line.len() > max => Line::TooLong,
            Some(line) if memchr(b'\r', line).is_none() => Line::Whole(line),
            _ => Line::BareNewline,
        };
        Ok((Some(line), used))
    }
}
