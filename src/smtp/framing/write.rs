//! Content to octets.

use memchr::memmem;

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
