//! Octets to lines, octets to content, content to octets.
//!
//! The one place that decides where a line and where a message ends, in both directions. Only CRLF
//! ends a line of content and only CRLF.CRLF ends content (RFC 5321 §2.3.8, §4.1.1.4): whoever
//! disagrees with a neighbour about that can be made to smuggle mail. All of it gives the same
//! result however the octets were cut into reads; properties and a fuzz target hold it to that.

use memchr::{memchr, memchr2, memmem};

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

/// Where the reader stands in the content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    /// Behind a CRLF, or at the very start.
    LineStart,
    /// Inside a line.
    Line,
    /// Behind a CR inside a line; the CR is not given out yet.
    Cr,
    /// Behind a dot at the start of a line; the dot is not given out yet.
    Dot,
    /// Behind a dot and a CR at the start of a line; neither is given out yet.
    DotCr,
    /// Behind the end.
    End,
}

/// Takes the content of a message out of what follows 354, dots unstuffed (RFC 5321 §4.5.2).
///
/// A bare CR or LF is noted and the rest is read to its true end, so that none of it can be taken
/// for commands; what a refused message holds is then nobody's business, and is not given out.
#[derive(Debug)]
pub struct ContentReader {
    at: At,
    size: u64,
    max: u64,
    bare_newline: bool,
    nuls: Nuls,
    eight_bit: bool,
}

/// What was wrong with content that was read to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContentFault {
    /// A CR or LF outside a CRLF pair.
    BareNewline,
    /// A line that begins with NULs and a dot.
    HiddenDot,
    /// More octets than allowed.
    TooLarge,
}

impl ContentReader {
    /// A reader of at most `max` octets.
    pub fn new(max: u64) -> Self {
        Self { at: At::LineStart, size: 0, max, bare_newline: false, nuls: Nuls::LineStart, eight_bit: false }
    }

    /// Octets of content so far.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Whether an octet beyond ASCII was seen.
    pub fn is_eight_bit(&self) -> bool {
        self.eight_bit
    }

    /// Whether the end was read.
    pub fn is_done(&self) -> bool {
        self.at == At::End
    }

    /// What is wrong with the content, once it was read to its end.
    pub fn fault(&self) -> Option<ContentFault> {
        if self.bare_newline {
            Some(ContentFault::BareNewline)
        } else if self.nuls == Nuls::HiddenDot {
            Some(ContentFault::HiddenDot)
        } else if self.size > self.max {
            Some(ContentFault::TooLarge)
        } else {
            None
        }
    }

    /// Takes octets from the front of `input`, up to the end of the content, and gives out the
    /// content in pieces. Returns how many octets were taken.
    pub fn read(&mut self, input: &[u8], mut give: impl FnMut(&[u8])) -> usize {
        let mut i = 0;
        // Where the octets begin that are content but were not given out yet.
        let mut begin = 0;
        while i < input.len() && self.at != At::End {
            let b = input[i];
            match self.at {
                At::LineStart if b == b'.' => {
                    self.give(&input[begin..i], &mut give);
                    (self.at, i) = (At::Dot, i + 1);
                    begin = i;
                }
                At::LineStart | At::Line => match memchr2(b'\r', b'\n', &input[i..]) {
                    Some(n) if input[i + n] == b'\r' && input.get(i + n + 1) == Some(&b'\n') => {
                        (self.at, i) = (At::LineStart, i + n + 2);
                    }
                    Some(n) if input[i + n] == b'\r' && i + n + 1 == input.len() => {
                        self.give(&input[begin..i + n], &mut give);
                        (self.at, i) = (At::Cr, i + n + 1);
                        begin = i;
                    }
                    Some(n) => {
                        self.bare_newline = true;
                        (self.at, i) = (At::Line, i + n + 1);
                    }
                    None => (self.at, i) = (At::Line, input.len()),
                },
                At::Cr if b == b'\n' => {
                    self.give(b"\r\n", &mut give);
                    (self.at, i) = (At::LineStart, i + 1);
                    begin = i;
                }
                At::Cr => {
                    self.bare_newline = true;
                    self.at = At::Line;
                }
                At::Dot if b == b'\r' => (self.at, i) = (At::DotCr, i + 1),
                // RFC 5321 §4.5.2: the first dot of a line that goes on was added by the client.
                At::Dot => {
                    begin = i;
                    self.at = At::Line;
                }
                At::DotCr if b == b'\n' => {
                    (self.at, i) = (At::End, i + 1);
                    begin = i;
                }
                At::DotCr => {
                    self.bare_newline = true;
                    begin = i;
                    self.at = At::Line;
                }
                At::End => {}
            }
        }
        if matches!(self.at, At::LineStart | At::Line) {
            self.give(&input[begin..i], &mut give);
        }
        i
    }

    fn give(&mut self, octets: &[u8], give: &mut impl FnMut(&[u8])) {
        self.size = self.size.saturating_add(octets.len() as u64);
        self.eight_bit |= !octets.is_ascii();
        self.nuls.see(octets);
        if self.fault().is_none() && !octets.is_empty() {
            give(octets);
        }
    }
}

/// Judges the content of a message that comes in chunks (RFC 3030 §2), however they are cut.
///
/// Their octets are content as they are. What is not announced as binary must be lines, as behind
/// DATA: it may have to travel on by DATA, where a bare CR or LF could be taken for something else.
#[derive(Debug)]
pub struct ChunkReader {
    size: u64,
    max: u64,
    binary: bool,
    /// The last octet was a CR that may still become a CRLF.
    cr: bool,
    bare_newline: bool,
    nuls: Nuls,
    eight_bit: bool,
}

impl ChunkReader {
    /// A reader of at most `max` octets.
    pub fn new(max: u64, binary: bool) -> Self {
        let nuls = Nuls::LineStart;
        Self { size: 0, max, binary, cr: false, bare_newline: false, nuls, eight_bit: false }
    }

    /// Takes the next octets of content; says whether they are worth keeping.
    pub fn read(&mut self, octets: &[u8]) -> bool {
        self.size = self.size.saturating_add(octets.len() as u64);
        self.eight_bit |= !octets.is_ascii();
        if !self.binary && !octets.is_empty() {
            self.bare_newline |= has_bare_newline(octets, self.cr);
            self.nuls.see(octets);
            self.cr = octets.last() == Some(&b'\r');
        }
        self.fault().is_none()
    }

    /// The last chunk was read.
    pub fn end(&mut self) {
        self.bare_newline |= self.cr;
    }

    /// Octets of content so far.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Whether an octet beyond ASCII was seen.
    pub fn is_eight_bit(&self) -> bool {
        self.eight_bit
    }

    /// What is wrong with the content so far.
    pub fn fault(&self) -> Option<ContentFault> {
        if self.bare_newline {
            Some(ContentFault::BareNewline)
        } else if self.nuls == Nuls::HiddenDot {
            Some(ContentFault::HiddenDot)
        } else if self.size > self.max {
            Some(ContentFault::TooLarge)
        } else {
            None
        }
    }
}

/// Looks for lines that begin with NULs and a dot. Dots are doubled only where they come first, and some servers
/// drop NULs: such a line could be the end of the message for them, with commands of the sender's behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Nuls {
    LineStart,
    /// Nothing but NULs since the start of the line.
    BehindStart,
    /// Further on in a line.
    Line,
    /// There was one.
    HiddenDot,
}

impl Nuls {
    fn see(&mut self, octets: &[u8]) {
        let Some(last) = octets.last() else { return };
        // Hardly any message has a NUL anywhere.
        if matches!(self, Self::LineStart | Self::Line) && memchr(b'\0', octets).is_none() {
            *self = if *last == b'\n' { Self::LineStart } else { Self::Line };
            return;
        }
        for octet in octets {
            *self = match (*self, octet) {
                (Self::HiddenDot, _) | (Self::BehindStart, b'.') => Self::HiddenDot,
                (_, b'\n') => Self::LineStart,
                (Self::LineStart | Self::BehindStart, b'\0') => Self::BehindStart,
                _ => Self::Line,
            };
        }
    }
}

/// Whether there is a CR or LF outside a CRLF pair; `cr` says that a CR stands before `octets`. One at
/// their end is not judged.
fn has_bare_newline(octets: &[u8], cr: bool) -> bool {
    let mut rest = octets;
    if cr {
        match rest.strip_prefix(b"\n") {
            Some(behind) => rest = behind,
            None => return true,
        }
    }
    while let Some(at) = memchr2(b'\r', b'\n', rest) {
        match (rest[at], rest.get(at + 1)) {
            (b'\r', Some(b'\n')) => rest = &rest[at + 2..],
            (b'\r', None) => return false,
            _ => return true,
        }
    }
    false
}

/// Writes content the way DATA wants it: dots at the start of a line doubled (RFC 5321 §4.5.2), the
/// end marked by a line of one dot.
#[derive(Debug)]
pub struct ContentWriter {
    /// What the last two octets written were, as far as a line's start and end depend on it.
    last: [u8; 2],
}

impl Default for ContentWriter {
    fn default() -> Self {
        Self { last: *b"\r\n" }
    }
}

impl ContentWriter {
    /// Gives out `content` in pieces that can go to the wire as they are. Content without a dot at
    /// the start of a line, which is nearly all, goes out as it came, uncopied.
    pub fn write<'a>(&mut self, content: &'a [u8], mut give: impl FnMut(&'a [u8])) {
        let mut begin = 0;
        if self.last == *b"\r\n" && content.first() == Some(&b'.') {
            give(b".");
        } else if self.last[1] == b'\r' && content.starts_with(b"\n.") {
            give(&content[..1]);
            give(b".");
            begin = 1;
        }
        let searched = begin;
        for hit in memmem::find_iter(&content[searched..], b"\r\n.") {
            let found = searched + hit;
            give(&content[begin..found + 2]);
            give(b".");
            begin = found + 2;
        }
        if begin < content.len() {
            give(&content[begin..]);
        }
        match content {
            [] => {}
            [only] => self.last = [self.last[1], *only],
            [.., a, b] => self.last = [*a, *b],
        }
    }

    /// What ends the content. A message whose last line lacks its CRLF gets one; no other gains an
    /// empty line.
    pub fn end(self) -> &'static [u8] {
        if self.last == *b"\r\n" { b".\r\n" } else { b"\r\n.\r\n" }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Feeds the pieces one after another; returns content, fault, and what follows the end.
    fn read(pieces: &[&[u8]], max: u64) -> (Vec<u8>, Option<ContentFault>, Option<Vec<u8>>) {
        let (mut reader, mut content, mut rest) = (ContentReader::new(max), Vec::new(), Vec::new());
        for piece in pieces {
            let used = if reader.is_done() {
                0
            } else {
                reader.read(piece, |octets| content.extend_from_slice(octets))
            };
            rest.extend_from_slice(&piece[used..]);
        }
        let fault = reader.fault();
        (content, fault, reader.is_done().then_some(rest))
    }

    /// Every way to cut `octets` in two gives the same.
    #[track_caller]
    fn check(octets: &[u8], content: &[u8], fault: Option<ContentFault>, rest: Option<&[u8]>) {
        for cut in 0..=octets.len() {
            let (got, got_fault, got_rest) = read(&[&octets[..cut], &octets[cut..]], 1000);
            assert_eq!((got_fault, got_rest.as_deref()), (fault, rest), "cut at {cut}: {octets:?}");
            if fault.is_none() {
                assert_eq!(got, content, "cut at {cut}");
            }
        }
    }

    #[test]
    fn content_ends_at_a_line_of_one_dot_and_dots_are_unstuffed() {
        check(b".\r\n", b"", None, Some(b""));
        check(b"a\r\n.\r\nMAIL", b"a\r\n", None, Some(b"MAIL"));
        check(b"..a\r\n...\r\n.b\r\n.\r\n", b".a\r\n..\r\nb\r\n", None, Some(b""));
        check(b"\r\n\r\n.\r\n", b"\r\n\r\n", None, Some(b""));
    }

    #[test]
    fn nothing_that_only_looks_like_the_end_is_one() {
        let bare = Some(ContentFault::BareNewline);
        for end in [
            "\n.\n",
            "\n.\r\n",
            "\r\n.\n",
            "\n.\r",
            "\r.\n",
            "\r.\r",
            "\r.\r\n",
            "\r\n.\r\r\n",
            "\r\r\n.\r\r\n",
        ] {
            let octets = format!("a{end}MAIL FROM:<x@y>\r\n");
            check(octets.as_bytes(), b"", bare, None);
            let whole = format!("{octets}.\r\nQUIT\r\n");
            check(whole.as_bytes(), b"", bare, Some(b"QUIT\r\n"));
        }
        check(b"a\r\n\0.\r\nb\r\n.\r\n", b"", Some(ContentFault::HiddenDot), Some(b""));
        check(b"a\r\n.\0\r\nb\r\n.\r\n", b"a\r\n\0\r\nb\r\n", None, Some(b""));
    }

    /// What a server sees that drops NULs.
    #[test]
    fn what_is_sent_on_ends_in_one_place_only_whoever_reads_it() {
        let hidden = Some(ContentFault::HiddenDot);
        for (line, fault) in [
            ("\0.", hidden),
            ("\0\0.\0", hidden),
            ("\0..", hidden),
            (".\0", None),
            ("\0", None),
            ("\0a.", None),
            ("a\0.", None),
            (".", None),
            ("..", None),
            (". ", None),
        ] {
            let content = format!("a\r\n{line}\r\nMAIL FROM:<x@y.example>\r\n");
            for cut in 0..=content.len() {
                let pieces = [&content.as_bytes()[..cut], &content.as_bytes()[cut..]];
                let (mut chunks, mut writer, mut wire) =
                    (ChunkReader::new(1000, false), ContentWriter::default(), Vec::new());
                for piece in pieces {
                    chunks.read(piece);
                    writer.write(piece, |octets| wire.extend_from_slice(octets));
                }
                wire.extend_from_slice(writer.end());
                assert_eq!(chunks.fault(), fault, "{line:?} cut at {cut}");
                assert_eq!(read(&[&wire], 1000).1, fault, "{line:?}");
                wire.retain(|b| *b != 0);
                let ends = read(&[&wire], 1000).2 == Some(Vec::new());
                assert!(ends || fault == hidden, "{line:?} cut at {cut}: ends too early");
            }
        }
    }

    #[test]
    fn content_beyond_the_limit_is_read_to_its_end_and_not_given_out() {
        let (content, fault, rest) = read(&[b"0123456789\r\nabc\r\n.\r\nX"], 10);
        assert_eq!((fault, rest.as_deref()), (Some(ContentFault::TooLarge), Some(&b"X"[..])));
        assert!(content.len() <= 10);
        assert_eq!(read(&[b"01234567\r\n.\r\n"], 10).1, None);
    }

    #[test]
    fn chunks_are_lines_unless_they_are_binary() {
        let bare = Some(ContentFault::BareNewline);
        for (octets, expected) in [
            (&b"a\r\n.\r\nb"[..], None),
            (b"", None),
            (b"\r\n\r\n", None),
            (b"a\nb\r\n", bare),
            (b"a\rb\r\n", bare),
            (b"a\r\n\n", bare),
            (b"a\r\r\n", bare),
            (b"a\r", bare),
            (b"0123456789a", Some(ContentFault::TooLarge)),
        ] {
            for cut in 0..=octets.len() {
                for binary in [false, true] {
                    let mut reader = ChunkReader::new(10, binary);
                    reader.read(&octets[..cut]);
                    reader.read(b"");
                    reader.read(&octets[cut..]);
                    reader.end();
                    let expected = expected.filter(|fault| !binary || *fault == ContentFault::TooLarge);
                    assert_eq!(reader.fault(), expected, "{octets:?} cut at {cut}, binary: {binary}");
                }
            }
        }
    }

    fn lines(octets: &[u8], cuts: &[usize], max: usize) -> Result<Vec<Result<Vec<u8>, bool>>, Endless> {
        let (mut reader, mut buffer, mut out, mut rest) =
            (LineReader::default(), Vec::new(), Vec::new(), octets);
        let mut cuts = cuts.iter().cycle();
        while !rest.is_empty() {
            let (piece, after) = rest.split_at(rest.len().min(*cuts.next().unwrap()));
            buffer.extend_from_slice(piece);
            rest = after;
            loop {
                let (line, used) = reader.next(&buffer, max)?;
                let line = match line {
                    Some(Line::Whole(line)) => Some(Ok(line.to_vec())),
                    Some(Line::TooLong) => Some(Err(true)),
                    Some(Line::BareNewline) => Some(Err(false)),
                    None => None,
                };
                buffer.drain(..used);
                match line {
                    Some(line) => out.push(line),
                    None => break,
                }
            }
        }
        Ok(out)
    }

    #[test]
    fn lines_are_judged_one_by_one() {
        let whole = |text: &str| Ok(text.as_bytes().to_vec());
        let got = lines(b"NOOP\r\nNO\nA\rB\r\n12345678\r\n123456789\r\n\r\nX", &[100], 8).unwrap();
        assert_eq!(got, [whole("NOOP"), Err(false), Err(false), whole("12345678"), Err(true), whole("")]);
        assert_eq!(lines(&vec![b'x'; 70_000], &[1000], 8), Err(Endless));
    }

    fn alphabet() -> impl Strategy<Value = Vec<u8>> {
        let octet = prop_oneof![4 => Just(b'\r'), 4 => Just(b'\n'), 4 => Just(b'.'), 3 => Just(b'a'), 1 => any::<u8>()];
        proptest::collection::vec(octet, 0..60)
    }

    fn cuts() -> impl Strategy<Value = Vec<usize>> {
        proptest::collection::vec(1usize..8, 1..20)
    }

    fn pieces<'a>(octets: &'a [u8], cuts: &[usize]) -> Vec<&'a [u8]> {
        let (mut out, mut rest, mut cuts) = (Vec::new(), octets, cuts.iter().cycle());
        while !rest.is_empty() {
            let (piece, after) = rest.split_at(rest.len().min(*cuts.next().unwrap()));
            out.push(piece);
            rest = after;
        }
        out
    }

    proptest! {
        #[test]
        fn octets_cut_anywhere_give_the_same_content(octets in alphabet(), cuts in cuts()) {
            let (content, fault, rest) = read(&pieces(&octets, &cuts), 40);
            let (whole, whole_fault, whole_rest) = read(&[&octets], 40);
            prop_assert_eq!((fault, &rest), (whole_fault, &whole_rest));
            if fault.is_none() {
                prop_assert_eq!(content, whole);
            }
        }

        #[test]
        fn octets_cut_anywhere_give_the_same_lines(octets in alphabet(), cuts in cuts()) {
            prop_assert_eq!(lines(&octets, &cuts, 6), lines(&octets, &[1000], 6));
        }

        #[test]
        fn what_is_written_is_read_back(octets in alphabet(), cuts in cuts()) {
            // Content as the reader gives it out: no bare CR or LF.
            let mut text = String::from_utf8_lossy(&octets).replace("\r\n", "\n").replace('\r', "x").replace('\n', "\r\n");
            let (mut writer, mut wire) = (ContentWriter::default(), Vec::new());
            for piece in pieces(text.as_bytes(), &cuts) {
                writer.write(piece, |octets| wire.extend_from_slice(octets));
            }
            wire.extend_from_slice(writer.end());
            let (content, fault, rest) = read(&[&wire], 1000);
            prop_assert_eq!((fault, rest), (None, Some(Vec::new())));
            if !text.is_empty() && !text.ends_with("\r\n") {
                text.push_str("\r\n");
            }
            prop_assert_eq!(content, text.into_bytes());
        }
    }
}
