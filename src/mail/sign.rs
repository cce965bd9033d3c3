//! DKIM-Signature fields (RFC 6376): what of a message is signed, in its canonical form (relaxed for
//! header and body, so that a relay that folds or trims breaks nothing), and the field itself.
//!
//! Hashes and fields only; whose key signs them is not known here.

use std::fmt::Write as _;

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use memchr::memchr3;
use sha2::{Digest as _, Sha256};

use super::content::{Field, fields};
use crate::clock::Timestamp;

/// The fields that are signed where they are there: RFC 6376 §5.4.1, and what shows the content.
const SIGNED: &[&str] = &[
    "from",
    "sender",
    "reply-to",
    "subject",
    "date",
    "message-id",
    "to",
    "cc",
    "in-reply-to",
    "references",
    "mime-version",
    "content-type",
    "content-transfer-encoding",
    "content-id",
    "content-description",
    "list-id",
    "list-help",
    "list-unsubscribe",
    "list-unsubscribe-post",
    "list-subscribe",
    "list-post",
    "list-owner",
    "list-archive",
];
/// RFC 6376 §8.15: a field that is signed once more than it is there can't be added by others.
const OVERSIGNED: &str = "from";
/// Of a field that is there more often, the last ones.
const EACH_MAX: usize = 10;
/// What is gathered before it is hashed.
const BUFFER: usize = 8 * 1024;
/// RFC 5322 §2.1.1.
const LINE: usize = 76;

/// The hash of a body that comes in pieces, cut anywhere.
#[derive(Clone, Debug, Default)]
pub struct BodyHash {
    hash: Sha256,
    buffer: Vec<u8>,
    /// Ends of lines that count only if more follows (RFC 6376 §3.4.4).
    lines: u64,
    /// Blanks that count, as one, only if more of the line follows.
    blank: bool,
    /// A CR whose LF may be in the next piece.
    cr: bool,
    /// Something was there but blanks and ends of lines.
    any: bool,
}

impl BodyHash {
    /// The next piece.
    pub fn update(&mut self, mut octets: &[u8]) {
        while let Some(octet) = octets.first() {
            if std::mem::take(&mut self.cr) {
                if *octet == b'\n' {
                    self.blank = false;
                    self.lines += 1;
                    octets = &octets[1..];
                    continue;
                }
                self.put(b"\r");
            }
            let run = match octet {
                b'\r' => {
                    self.cr = true;
                    1
                }
                b' ' | b'\t' => {
                    self.blank = true;
                    1
                }
                _ => {
                    let run = memchr3(b'\r', b' ', b'\t', octets).unwrap_or(octets.len());
                    self.put(&octets[..run]);
                    run
                }
            };
            octets = &octets[run..];
        }
    }

    /// What is part of a line, with what waited before it.
    fn put(&mut self, octets: &[u8]) {
        for _ in 0..std::mem::take(&mut self.lines) {
            self.gather(b"\r\n");
        }
        if std::mem::take(&mut self.blank) {
            self.gather(b" ");
        }
        self.any = true;
        self.gather(octets);
    }

    fn gather(&mut self, octets: &[u8]) {
        self.buffer.extend_from_slice(octets);
        if self.buffer.len() >= BUFFER {
            self.hash.update(&self.buffer);
            self.buffer.clear();
        }
    }

    /// The body is over.
    pub fn finish(mut self) -> [u8; 32] {
        if std::mem::take(&mut self.cr) {
            self.put(b"\r");
        }
        if self.any {
            self.gather(b"\r\n");
        }
        self.hash.update(&self.buffer);
        self.hash.finalize().into()
    }
}

/// By whom and how a message is signed.
#[derive(Clone, Copy, Debug)]
pub struct Signature<'a> {
    /// `d=`.
    pub domain: &'a str,
    /// `s=`.
    pub selector: &'a str,
    /// `a=`.
    pub algorithm: &'a str,
    /// `t=`.
    pub at: Timestamp,
    /// Fields that are not signed, in small letters: what the next relay replaces.
    pub without: &'a [String],
}

/// A field without its signature.
#[derive(Debug)]
pub struct Draft {
    field: String,
    /// What is signed: header fields and the draft, in canonical form.
    pub signed: Vec<u8>,
}

impl Draft {
    /// The draft for a message with this header section and body.
    pub fn new(signature: Signature<'_>, section: &[u8], body: BodyHash) -> Self {
        let all: Vec<Field<'_>> = fields(section).collect();
        let mut signed = Vec::new();
        let mut names: Vec<&str> = Vec::new();
        for name in SIGNED.iter().filter(|name| !signature.without.iter().any(|left| left == *name)) {
            // RFC 6376 §5.4.2: from the last to the first.
            let those = all.iter().rev().filter(|field| field.name.eq_ignore_ascii_case(name.as_bytes()));
            for field in those.take(EACH_MAX) {
                names.push(name);
                canonical(name, field.value, &mut signed);
                signed.extend_from_slice(b"\r\n");
            }
        }
        names.push(OVERSIGNED);
        let Signature { domain, selector, algorithm, at, .. } = signature;
        let mut field = format!("DKIM-Signature: v=1; a={algorithm}; c=relaxed/relaxed; d={domain};\r\n");
        let _ = write!(field, "\ts={selector}; t={};\r\n\th=", at.0 / 1000);
        let mut column = 3;
        for (place, name) in names.iter().enumerate() {
            if column + name.len() > LINE {
                field.push_str("\r\n\t ");
                column = 2;
            }
            let colon = if place == 0 { "" } else { ":" };
            let _ = write!(field, "{colon}{name}");
            column += name.len() + 1;
        }
        let _ = write!(field, ";\r\n\tbh={};\r\n\tb=", BASE64.encode(body.finish()));
        let value = field.split_once(':').map_or("", |(_, value)| value);
        canonical("dkim-signature", value.as_bytes(), &mut signed);
        Self { field, signed }
    }

    /// The whole field, its end of line included.
    pub fn complete(mut self, signature: &[u8]) -> String {
        let text = BASE64.encode(signature);
        let mut rest = text.as_str();
        while !rest.is_empty() {
            let (line, more) = rest.split_at(rest.len().min(LINE - 4));
            self.field.push_str(line);
            self.field.push_str(if more.is_empty() { "\r\n" } else { "\r\n\t" });
            rest = more;
        }
        self.field
    }
}

/// RFC 6376 §3.4.2, without the end of line.
fn canonical(name: &str, value: &[u8], to: &mut Vec<u8>) {
    to.extend_from_slice(name.as_bytes());
    to.push(b':');
    let words = value.split(|octet| b" \t\r\n".contains(octet)).filter(|word| !word.is_empty());
    for (place, word) in words.enumerate() {
        if place > 0 {
            to.push(b' ');
        }
        to.extend_from_slice(word);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn check_body(body: &[u8], canonical: &[u8]) {
        for cut in 0..=body.len() {
            let mut hash = BodyHash::default();
            hash.update(&body[..cut]);
            hash.update(&body[cut..]);
            assert_eq!(hash.finish()[..], Sha256::digest(canonical)[..], "{body:?} cut at {cut}");
        }
    }

    #[test]
    fn bodies_have_the_canonical_form_of_rfc_6376() {
        // The example of §3.4.5.
        check_body(b" C \r\nD \t E\r\n\r\n\r\n", b" C\r\nD E\r\n");
        check_body(b"", b"");
        check_body(b"\r\n \t\r\n\r\n", b"");
        check_body(b"a", b"a\r\n");
        check_body(b"a ", b"a\r\n");
        check_body(b"\r\n\r\na\r\n \r\n\tb\t", b"\r\n\r\na\r\n\r\n b\r\n");
        check_body(b"a\rb\r", b"a\rb\r\r\n");
        check_body(b".a\r\n..\r\n", b".a\r\n..\r\n");
        check_body("ä \u{2003}b\r\n".as_bytes(), "ä \u{2003}b\r\n".as_bytes());
    }

    #[test]
    fn headers_have_the_canonical_form_of_rfc_6376() {
        let mut got = Vec::new();
        // The example of §3.4.5.
        canonical("b", b" Y\t\r\n\tZ  \r\n", &mut got);
        assert_eq!(got, b"b:Y Z");
    }

    fn draft(section: &str, without: &[String]) -> Draft {
        let at = Timestamp(1_795_430_400_000);
        let signature =
            Signature { domain: "example.com", selector: "s1", algorithm: "rsa-sha256", at, without };
        Draft::new(signature, section.as_bytes(), BodyHash::default())
    }

    #[test]
    fn what_is_there_is_signed_from_the_last_to_the_first_and_from_once_more() {
        let section = "Received: x\r\nFrom:  a@b\r\nTO : c\r\nX-Mine: 1\r\nto: d\r\n\te\r\nDate: today\r\n";
        let got = draft(section, &["date".to_owned()]);
        let signed = String::from_utf8(got.signed.clone()).unwrap();
        let expected = "from:a@b\r\nto:d e\r\nto:c\r\ndkim-signature:v=1; a=rsa-sha256; c=relaxed/relaxed; \
            d=example.com; s=s1; t=1795430400; h=from:to:to:from; \
            bh=47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=; b=";
        assert_eq!(signed, expected);
        let field = got.complete(&[0xff; 256]);
        assert!(field.ends_with("==\r\n") && field.lines().all(|line| line.len() <= 78), "{field}");
        assert_eq!(field.matches("\r\n").count(), field.matches("\r\n\t").count() + 1, "one field");
    }

    proptest! {
        #[test]
        fn a_body_cut_anywhere_has_one_hash(
            octets in prop::collection::vec(prop::sample::select(b"\r\n \tab.".to_vec()), 0..40),
            cuts in prop::collection::vec(1usize..6, 1..10),
        ) {
            let mut whole = BodyHash::default();
            whole.update(&octets);
            let (mut pieces, mut rest) = (BodyHash::default(), &octets[..]);
            let mut cuts = cuts.iter().cycle();
            while !rest.is_empty() {
                let (piece, more) = rest.split_at(rest.len().min(*cuts.next().unwrap()));
                pieces.update(piece);
                rest = more;
            }
            prop_assert_eq!(whole.finish(), pieces.finish());
        }
    }
}
