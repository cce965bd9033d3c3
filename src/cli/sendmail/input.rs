//! A message on standard input: lines as Unix writes them become lines as SMTP wants them.
//!
//! The header section is kept in memory, field by field and within a bound; the body passes through
//! into memory, or into a file once it is large. Only ends of lines are changed.

use std::io::{self, BufRead, Read as _, Write as _};

use tempfile::NamedTempFile;

use crate::{
    cli::exit::{Exit, Failure},
    mail::content::{Content, HEADER_MAX},
};

/// The most of a line that is looked at together.
const PIECE: u64 = 64 * 1024;
/// Content up to this size stays in memory.
const MEMORY_MAX: usize = 256 * 1024;

/// Reads a message.
#[derive(Debug)]
pub(super) struct Input<R> {
    source: R,
    dots_are_text: bool,
    at_line_start: bool,
    /// The last octet given was a CR.
    behind_cr: bool,
    ended: bool,
    /// What was read of the body while looking for the header section's end.
    body: Vec<u8>,
}

impl<R: BufRead> Input<R> {
    pub(super) fn new(source: R, dots_are_text: bool) -> Self {
        Self { source, dots_are_text, at_line_start: true, behind_cr: false, ended: false, body: Vec::new() }
    }

    /// Appends the next line, or a part of a long one. False at the end.
    fn piece(&mut self, into: &mut Vec<u8>) -> io::Result<bool> {
        let begin = into.len();
        if self.ended || (&mut self.source).take(PIECE).read_until(b'\n', into)? == 0 {
            self.ended = true;
            return Ok(false);
        }
        if self.at_line_start && !self.dots_are_text && matches!(&into[begin..], b".\n" | b".\r\n" | b".") {
            into.truncate(begin);
            self.ended = true;
            return Ok(false);
        }
        self.at_line_start = into.ends_with(b"\n");
        if self.at_line_start {
            into.pop();
            let has_cr = if into.len() == begin { self.behind_cr } else { into.ends_with(b"\r") };
            into.extend_from_slice(if has_cr { b"\n" } else { b"\r\n" });
        }
        self.behind_cr = into.ends_with(b"\r");
        Ok(true)
    }

    /// Appends the rest of a line.
    fn rest_of_line(&mut self, line: &mut Vec<u8>) -> io::Result<()> {
        while !self.at_line_start && line.len() <= HEADER_MAX && self.piece(line)? {}
        if !line.ends_with(b"\r\n") {
            line.extend_from_slice(b"\r\n");
        }
        Ok(())
    }

    /// Reads the header section: its fields, each with its folds and last CRLF. The first line that
    /// can't be part of it ends it, as an empty line does.
    pub(super) fn header(&mut self) -> Result<Vec<Vec<u8>>, Failure> {
        let mut fields: Vec<Vec<u8>> = Vec::new();
        let (mut size, mut is_first) = (0, true);
        loop {
            let mut line = Vec::new();
            if !self.piece(&mut line).map_err(unreadable)? {
                return Ok(fields);
            }
            // Mailboxes and mail readers put it in front; it is no field (RFC 5322 §3.6.8).
            let from_line = std::mem::take(&mut is_first) && line.starts_with(b"From ");
            let folded = line.starts_with(b" ") || line.starts_with(b"\t");
            match fields.last_mut() {
                _ if from_line => self.rest_of_line(&mut line).map_err(unreadable)?,
                Some(field) if folded => {
                    self.rest_of_line(&mut line).map_err(unreadable)?;
                    field.extend_from_slice(&line);
                }
                _ if name(&line).is_some() => {
                    self.rest_of_line(&mut line).map_err(unreadable)?;
                    fields.push(line.clone());
                }
                _ => {
                    if line != b"\r\n" {
                        self.body.extend_from_slice(b"\r\n");
                    }
                    self.body.extend_from_slice(&line);
                    return Ok(fields);
                }
            }
            size += line.len();
            if size > HEADER_MAX {
                let words = format!("the mail was not sent: its header is longer than {HEADER_MAX} octets");
                return Err(Failure::new(Exit::DATA, words));
            }
        }
    }

    /// Reads the rest; gives `header` and body as content of at most `max` octets.
    pub(super) fn content(mut self, header: Vec<u8>, max: u64) -> Result<Letter, Failure> {
        let mut spool = Spool { max, ..Spool::default() };
        spool.take(header)?;
        spool.take(std::mem::take(&mut self.body))?;
        loop {
            let mut piece = Vec::new();
            if !self.piece(&mut piece).map_err(unreadable)? {
                return spool.finish();
            }
            spool.take(piece)?;
        }
    }
}

/// A field's name (RFC 5322 §2.2), if a line begins one.
pub(super) fn name(line: &[u8]) -> Option<&[u8]> {
    let colon = memchr::memchr(b':', line)?;
    let name = line[..colon].trim_ascii_end();
    (!name.is_empty() && name.iter().all(u8::is_ascii_graphic)).then_some(name)
}

fn unreadable(error: io::Error) -> Failure {
    Failure::new(Exit::TRY_AGAIN, format!("the mail was not sent: standard input can't be read: {error}"))
}

/// A message that is ready to be handed over.
#[derive(Debug)]
pub(super) struct Letter {
    pub(super) content: Content,
    /// It holds octets beyond ASCII.
    pub(super) eight_bit: bool,
    /// Removes the file of large content when it is dropped.
    _file: Option<NamedTempFile>,
}

/// Content that is gathered.
#[derive(Debug, Default)]
struct Spool {
    max: u64,
    memory: Vec<u8>,
    file: Option<NamedTempFile>,
    size: u64,
    crc32c: u32,
    eight_bit: bool,
}

impl Spool {
    fn take(&mut self, octets: Vec<u8>) -> Result<(), Failure> {
        self.size += octets.len() as u64;
        if self.size > self.max {
            let words = format!("the mail was not sent: it is larger than {} octets", self.max);
            return Err(Failure::new(Exit::DATA, words));
        }
        self.crc32c = crc32c::crc32c_append(self.crc32c, &octets);
        self.eight_bit |= !octets.is_ascii();
        self.memory.extend_from_slice(&octets);
        if self.memory.len() > MEMORY_MAX { self.write().map_err(unwritable) } else { Ok(()) }
    }

    fn write(&mut self) -> io::Result<()> {
        if self.file.is_none() {
            self.file = Some(tempfile::Builder::new().prefix("outpost-sendmail-").tempfile()?);
        }
        if let Some(file) = &mut self.file {
            file.write_all(&self.memory)?;
        }
        self.memory.clear();
        Ok(())
    }

    fn finish(mut self) -> Result<Letter, Failure> {
        let content = if self.file.is_some() {
            self.write().map_err(unwritable)?;
            let path = self.file.as_ref().map(|file| file.path().to_owned()).unwrap_or_default();
            Content::File { path, size: self.size, crc32c: self.crc32c }
        } else {
            Content::Memory(self.memory.into())
        };
        Ok(Letter { content, eight_bit: self.eight_bit, _file: self.file })
    }
}

fn unwritable(error: io::Error) -> Failure {
    let place = std::env::temp_dir().display().to_string();
    Failure::new(Exit::TRY_AGAIN, format!("the mail was not sent: no place for it in {place}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &[u8], dots_are_text: bool) -> (Vec<String>, Vec<u8>) {
        // Small reads show what depends on where they are cut.
        let mut input = Input::new(io::BufReader::with_capacity(3, text), dots_are_text);
        let fields = input.header().expect("a header");
        let letter = input.content(Vec::new(), u64::MAX).expect("content");
        let Content::Memory(content) = letter.content else { panic!("it is small") };
        (fields.into_iter().map(|field| String::from_utf8(field).expect("UTF-8")).collect(), content.to_vec())
    }

    #[track_caller]
    fn check(text: &str, fields: &[&str], body: &str) {
        let (got, content) = read(text.as_bytes(), false);
        assert_eq!(
            (got, String::from_utf8_lossy(&content).as_ref()),
            (fields.iter().map(ToString::to_string).collect(), body),
            "{text:?}"
        );
    }

    #[test]
    fn header_and_body_are_told_apart() {
        check("A: 1\nB : 2\n  more\n\nbody\n", &["A: 1\r\n", "B : 2\r\n  more\r\n"], "\r\nbody\r\n");
        check("A: 1\r\n\r\nbody\r\n", &["A: 1\r\n"], "\r\nbody\r\n");
        check("A: 1\nno field\n", &["A: 1\r\n"], "\r\nno field\r\n");
        check("only a body", &[], "\r\nonly a body");
        check(" folded\n", &[], "\r\n folded\r\n");
        check("From me Mon Jan  6\nA: 1\n\nFrom here\n", &["A: 1\r\n"], "\r\nFrom here\r\n");
        check("A: 1", &["A: 1\r\n"], "");
        check("", &[], "");
    }

    #[test]
    fn a_lone_dot_ends_the_message_unless_dots_are_text() {
        check("A: 1\n\na\n..\n. \n.\nlost\n", &["A: 1\r\n"], "\r\na\r\n..\r\n. \r\n");
        check("A: 1\r\n\r\na\r\n.\r\nlost\r\n", &["A: 1\r\n"], "\r\na\r\n");
        check("A: 1\n.\n", &["A: 1\r\n"], "");
        check("\na.\n.", &[], "\r\na.\r\n");
        assert_eq!(read(b"\na\n.\nb\n", true).1, b"\r\na\r\n.\r\nb\r\n");
    }

    #[test]
    fn only_ends_of_lines_are_changed() {
        assert_eq!(read(b"\n\xff\0\rx\r\n\r\r\n y \n\r", false).1, b"\r\n\xff\0\rx\r\n\r\r\n y \r\n\r");
        // A CR and its LF in different pieces of a long line.
        let mut long = vec![b'x'; PIECE as usize - 1];
        long.extend_from_slice(b"\r\nz\n");
        let expected = [&b"\r\n"[..], &long[..long.len() - 1], b"\r\n"].concat();
        assert_eq!(read(&[&b"\n"[..], &long].concat(), false).1, expected);
    }

    #[test]
    fn large_content_goes_to_a_file_and_has_a_bound() {
        let text = [b"\n".to_vec(), b"0123456789abcde\n".repeat(100_000)].concat();
        let letter = |max| {
            let mut input = Input::new(&text[..], false);
            input.header().and_then(|_| input.content(b"A: 1\r\n".to_vec(), max))
        };
        let whole = letter(u64::MAX).expect("taken");
        let Content::File { path, size, crc32c } = &whole.content else { panic!("it is large") };
        let written = std::fs::read(path).expect("a file");
        assert_eq!((written.len() as u64, crc32c::crc32c(&written)), (*size, *crc32c));
        assert!(written.starts_with(b"A: 1\r\n\r\n0123456789abcde\r\n01"));
        let path = path.clone();
        drop(whole);
        assert!(!path.exists(), "nothing is left behind");
        assert_eq!(letter(1_000_000).map_err(|failure| failure.exit).err(), Some(Exit::DATA));
    }

    #[test]
    fn an_endless_header_is_refused() {
        let endless = b"A: 1\n".repeat(HEADER_MAX / 5);
        assert_eq!(Input::new(&endless[..], false).header().map_err(|failure| failure.exit), Err(Exit::DATA));
        let one = [&b"A: "[..], &vec![b'x'; 4 * HEADER_MAX]].concat();
        assert_eq!(Input::new(&one[..], false).header().map_err(|failure| failure.exit), Err(Exit::DATA));
    }
}
