//! Octets to content, behind DATA and behind BDAT, and what is wrong with it.

use memchr::{memchr, memchr2};

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
    lines: Lines,
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
    /// A line of more octets than allowed.
    LineTooLong,
}

impl ContentReader {
    /// A reader of at most `max` octets.
    pub fn new(max: u64) -> Self {
        Self {
            at: At::LineStart,
            size: 0,
            max,
            bare_newline: false,
            nuls: Nuls::LineStart,
            lines: Lines::default(),
            eight_bit: false,
        }
    }

    /// The same, with lines of at most `max` octets.
    pub fn with_lines_of(self, max: usize) -> Self {
        Self { lines: Lines::of(max), ..self }
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
            self.lines.too_long.then_some(ContentFault::LineTooLong)
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
        self.lines.see(octets);
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
    lines: Lines,
    eight_bit: bool,
}

impl ChunkReader {
    /// A reader of at most `max` octets.
    pub fn new(max: u64, binary: bool) -> Self {
        let (nuls, lines) = (Nuls::LineStart, Lines::default());
        Self { size: 0, max, binary, cr: false, bare_newline: false, nuls, lines, eight_bit: false }
    }

    /// The same, with lines of at most `max` octets; what is binary has none.
    pub fn with_lines_of(self, max: usize) -> Self {
        Self { lines: Lines::of(max), ..self }
    }

    /// Takes the next octets of content; says whether they are worth keeping.
    pub fn read(&mut self, octets: &[u8]) -> bool {
        self.size = self.size.saturating_add(octets.len() as u64);
        self.eight_bit |= !octets.is_ascii();
        if !self.binary && !octets.is_empty() {
            self.bare_newline |= has_bare_newline(octets, self.cr);
            self.nuls.see(octets);
            self.lines.see(octets);
            self.cr = octets.last() == Some(&b'\r');
        }
        self.fault().is_none()
    }

    /// The last chunk was read.
    pub fn end(&mut self) {
        self.bare_newline |= self.cr;
        self.lines.end();
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
            self.lines.too_long.then_some(ContentFault::LineTooLong)
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

/// Looks for lines of content that are longer than allowed (RFC 5321 §4.5.3.1.6), if there is such a bound.
#[derive(Debug, Default)]
struct Lines {
    /// Octets of a line without its CRLF.
    max: Option<usize>,
    /// Octets of the line that has begun.
    length: usize,
    too_long: bool,
}

impl Lines {
    fn of(max: usize) -> Self {
        Self { max: Some(max), ..Self::default() }
    }

    fn see(&mut self, octets: &[u8]) {
        let Some(max) = self.max else { return };
        for piece in octets.split_inclusive(|octet| *octet == b'\n') {
            self.length = self.length.saturating_add(piece.len());
            let whole = piece.ends_with(b"\n");
            // What has not ended may still be a CR, and an LF.
            self.too_long |= self.length > max.saturating_add(if whole { 2 } else { 1 });
            if whole {
                self.length = 0;
            }
        }
    }

    /// There is no more, so what has not ended is a line.
    fn end(&mut self) {
        self.too_long |= self.max.is_some_and(|max| self.length > max);
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
