//! A message taken apart for looking at. All of it is its sender's: nothing that comes from here may be run,
//! loaded from elsewhere, or named in a way that plays tricks.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use mail_parser::{Message, MessageParser, MessagePart, MimeHeaders as _, PartType};
use memchr::{memchr_iter, memmem};

use crate::admin::people;

/// Types that a download may have; anything else is octets.
const KINDS: [&str; 9] = [
    "application/pdf",
    "image/gif",
    "image/jpeg",
    "image/png",
    "image/webp",
    "text/calendar",
    "text/csv",
    "text/plain",
    "message/rfc822",
];
/// Longest name of a download, in characters.
const NAME_MAX: usize = 100;
/// Elements that ask for something before any policy is heard: `<link rel=preconnect>` does, and Chromium
/// connects for a frame that it then forbids; or that change what addresses mean.
const DEFUSED: [&str; 7] = ["link", "meta", "base", "iframe", "frame", "object", "embed"];

/// A message in a message in a message ends the process by its stack, for the parser lets go of them one within
/// the other. Each takes a Content-Type; so many no honest mail has.
const TYPES_MAX: usize = 1_000;
/// Where an encoding hides them, the stack has to bear as many as a message of this size holds; of a larger one
/// with an encoded message in it the header section alone is shown.
const HIDDEN_MAX: usize = 256 * 1024;
const STACK: usize = 64 << 20;
/// How a type begins.
const TYPE: &[u8] = b"content-type";
/// How an encoding begins, and those that hide nothing.
const ENCODING: &[u8] = b"content-transfer-encoding:";
const PLAIN: [&[u8]; 3] = [b"7bit", b"8bit", b"binary"];
/// How the type of a message in a message may be written: comments may stand in it.
const MESSAGES: [&[u8]; 6] =
    [b"message/rfc822", b"message/global", b"message/(", b")/rfc822", b")/global", b")/("];
/// The same of what has messages for parts that name no type.
const DIGESTS: [&[u8]; 4] = [b"multipart/digest", b"multipart/(", b")/digest", b")/("];

/// The longest HTML with its pictures in it; beyond that, pictures stay away. A page may name one a million times.
const HTML_MAX: usize = 32 << 20;

/// What there is to see.
pub(super) struct Sight {
    /// Name and value of each header field, unfolded and decoded.
    pub(super) fields: Vec<(String, String)>,
    pub(super) text: Option<String>,
    pub(super) has_html: bool,
    pub(super) attachments: Vec<Attachment>,
}

/// What came with it.
pub(super) struct Attachment {
    pub(super) name: String,
    pub(super) kind: String,
    pub(super) size: u64,
}

/// Takes a message apart, or as much of it as there is.
pub(super) fn sight(octets: &[u8]) -> Sight {
    let nothing = || Sight { fields: Vec::new(), text: None, has_html: false, attachments: Vec::new() };
    on_a_large_stack(|| sight_of(octets)).unwrap_or_else(nothing)
}

/// Gives what work on a message gives, unless it panics.
fn on_a_large_stack<T: Send>(work: impl FnOnce() -> T + Send) -> Option<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().stack_size(STACK).spawn_scoped(scope, work);
        thread.ok()?.join().ok()
    })
}

/// A message taken apart; of one that may be too deep, the header section alone.
fn parsed(octets: &[u8]) -> Option<Message<'_>> {
    match is_shallow(octets) {
        true => MessageParser::new().parse(octets),
        false => MessageParser::new().parse_headers(octets),
    }
}

/// Whether the stack bears all the messages in a message, however many those are that an encoding hides.
fn is_shallow(octets: &[u8]) -> bool {
    let (mut types, mut dense) = (0, Vec::new());
    let (mut encoded, mut digest) = (false, false);
    for section in sections(octets) {
        // The parser passes over blanks, also within the name of a field.
        dense.clear();
        dense.extend(section.iter().filter(|octet| !octet.is_ascii_whitespace()).map(u8::to_ascii_lowercase));
        // There may be millions.
        if dense.len() < TYPE.len() {
            continue;
        }
        types += memmem::find_iter(&dense, TYPE).count();
        let has = |words: &[u8]| memmem::find(&dense, words).is_some();
        let is_encoded = is_encoded(&dense);
        encoded |= is_encoded;
        digest |= DIGESTS.into_iter().any(has);
        let hides = encoded && digest || is_encoded && MESSAGES.into_iter().any(has);
        if types > TYPES_MAX || hides && octets.len() > HIDDEN_MAX {
            return false;
        }
    }
    true
}

/// What lies between empty lines: no header section goes beyond one of these.
fn sections(octets: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = Some(octets);
    std::iter::from_fn(move || {
        let section = rest?;
        let is_last = |at: &usize| matches!(&section[at + 1..], [b'\n', ..] | [b'\r', b'\n', ..]);
        let end = memchr_iter(b'\n', section).find(is_last);
        rest = end.map(|at| &section[at + 1..]);
        Some(&section[..end.unwrap_or(section.len())])
    })
}

/// Whether a header section, without its blanks, names an encoding.
fn is_encoded(section: &[u8]) -> bool {
    let mut encodings = memmem::find_iter(section, ENCODING).map(|at| &section[at + ENCODING.len()..]);
    encodings.any(|encoding| !PLAIN.iter().any(|plain| encoding.starts_with(plain)))
}

fn sight_of(octets: &[u8]) -> Sight {
    let Some(message) = parsed(octets) else {
        let text = String::from_utf8_lossy(octets).into_owned();
        return Sight { fields: Vec::new(), text: Some(text), has_html: false, attachments: Vec::new() };
    };
    let field = |(name, value): (&str, &str)| {
        let unfolded = value.split(['\r', '\n']).map(str::trim).filter(|line| !line.is_empty());
        (people::printable(name), people::decoded(&unfolded.collect::<Vec<_>>().join(" ")))
    };
    Sight {
        fields: message.headers_raw().map(field).collect(),
        text: message.body_text(0).map(std::borrow::Cow::into_owned),
        has_html: html_part(&message).is_some(),
        attachments: message
            .attachments()
            .enumerate()
            .map(|(i, part)| Attachment {
                name: name(part, i),
                kind: people::printable(&declared(part)),
                size: part.contents().len() as u64,
            })
            .collect(),
    }
}

fn html_part<'a>(message: &'a Message<'_>) -> Option<&'a str> {
    match &message.html_part(0)?.body {
        PartType::Html(html) => Some(html),
        _ => None,
    }
}

/// The HTML of a message: without what a policy would come too late for, with the pictures that came with it.
pub(super) fn html(octets: &[u8]) -> Option<String> {
    on_a_large_stack(|| html_of(octets))?
}

fn html_of(octets: &[u8]) -> Option<String> {
    let message = parsed(octets)?;
    let mut html = defused(html_part(&message)?);
    for part in &message.parts {
        let Some(id) = part.content_id().filter(|id| !id.is_empty()) else { continue };
        let kind = kind(part);
        if !kind.starts_with("image/") {
            continue;
        }
        let reference = format!("cid:{}", id.trim_matches(['<', '>']));
        let start = format!("data:{kind};base64,");
        let length = start.len() + part.contents().len().div_ceil(3) * 4;
        let longer = html.matches(&reference).count().saturating_mul(length);
        if longer > 0 && html.len().saturating_add(longer) <= HTML_MAX {
            html = html.replace(&reference, &(start + &STANDARD.encode(part.contents())));
        }
    }
    Some(html)
}

/// A tag begins with `<` and its name, and nothing can stand in between (HTML §13.2.5.6): renamed, it is an
/// element that does nothing.
fn defused(html: &str) -> String {
    let mut safe = String::with_capacity(html.len());
    let mut rest = html;
    while let Some(at) = rest.find('<') {
        let (before, tag) = rest.split_at(at + 1);
        safe.push_str(before);
        let is_meant = DEFUSED.iter().any(|name| {
            tag.as_bytes().get(..name.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(name.as_bytes()))
        });
        if is_meant {
            safe.push_str("x-");
        }
        rest = tag;
    }
    safe + rest
}

/// A download: its name, type and octets.
pub(super) fn attachment(octets: &[u8], k: usize) -> Option<(String, &'static str, Vec<u8>)> {
    on_a_large_stack(|| {
        let message = parsed(octets)?;
        let part = message.attachments().nth(k)?;
        Some((name(part, k), kind(part), part.contents().to_vec()))
    })?
}

fn declared(part: &MessagePart<'_>) -> String {
    match part.content_type() {
        Some(kind) => format!("{}/{}", kind.ctype(), kind.subtype().unwrap_or("*")).to_ascii_lowercase(),
        None if matches!(part.body, PartType::Message(_)) => "message/rfc822".to_owned(),
        None => "of no type".to_owned(),
    }
}

fn kind(part: &MessagePart<'_>) -> &'static str {
    let declared = declared(part);
    KINDS.into_iter().find(|kind| *kind == declared).unwrap_or("application/octet-stream")
}

/// A file's name without a way, and without what hides its ending.
fn name(part: &MessagePart<'_>, i: usize) -> String {
    let given = part.attachment_name().unwrap_or_default();
    let last = given.rsplit(['/', '\\']).next().unwrap_or_default();
    let strange = |c: char| matches!(c, '"' | '<' | '>' | ':' | '|' | '?' | '*' | ';' | '%' | '\u{FFFD}');
    let safe: String = people::printable(last).chars().map(|c| if strange(c) { '_' } else { c }).collect();
    let safe = safe.trim_matches(['.', ' ']);
    // From the end, where its kind is told.
    let skipped = safe.chars().count().saturating_sub(NAME_MAX);
    match safe.chars().skip(skipped).collect::<String>() {
        empty if empty.is_empty() => format!("attachment-{}", i + 1),
        name => name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_attachment(name: &str, kind: &str) -> (String, &'static str, Vec<u8>) {
        let message = format!(
            "Subject: x\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n\r\ntext\r\n--b\r\n\
             Content-Type: {kind}\r\nContent-Disposition: attachment; filename=\"{name}\"\r\n\r\nabc\r\n--b--\r\n"
        );
        attachment(message.as_bytes(), 0).expect("an attachment")
    }

    #[test]
    fn a_download_has_a_harmless_name_and_type() {
        for (given, name) in [
            ("report.pdf", "report.pdf"),
            ("../../etc/passwd", "passwd"),
            ("C:\\\\windows\\\\x.exe", "x.exe"),
            ("..", "attachment-1"),
            ("=?utf-8?q?a=E2=80=AEfdp.exe?=", "a_fdp.exe"),
            ("a<b>.txt", "a_b_.txt"),
        ] {
            assert_eq!(with_attachment(given, "text/plain").0, name, "{given}");
        }
        assert_eq!(with_attachment(&"x".repeat(300), "text/plain").0.len(), NAME_MAX);
        for (given, kind) in [
            ("text/html", "application/octet-stream"),
            ("image/svg+xml", "application/octet-stream"),
            ("IMAGE/PNG", "image/png"),
        ] {
            assert_eq!(with_attachment("a", given).1, kind, "{given}");
        }
    }

    #[test]
    fn html_asks_for_nothing_and_has_its_own_pictures() {
        let message = "Content-Type: multipart/related; boundary=b\r\n\r\n--b\r\nContent-Type: text/html\r\n\r\n\
            <LINK rel=preconnect href=//evil.example><meta http-equiv=refresh><iframe src=//evil.example></iframe><img src=\"cid:p@x\"><p>a < b\r\n--b\r\n\
            Content-Type: image/png\r\nContent-ID: <p@x>\r\nContent-Transfer-Encoding: base64\r\n\r\nQUJD\r\n--b--\r\n";
        let html = html(message.as_bytes()).expect("it has HTML");
        assert!(html.contains("<x-LINK") && html.contains("<x-meta") && html.contains("<x-iframe"), "{html}");
        assert!(html.contains("src=\"data:image/png;base64,QUJD\"") && html.contains("a < b"), "{html}");
        assert!(sight(message.as_bytes()).has_html);
        assert!(super::html(b"Subject: x\r\n\r\nonly text").is_none());
    }

    #[test]
    fn a_picture_that_is_named_without_end_stays_away() {
        let related = |times: usize| {
            format!(
                "Content-Type: multipart/related; boundary=b\r\n\r\n--b\r\nContent-Type: text/html\r\n\r\n\
                 {}\r\n--b\r\nContent-Type: image/png\r\nContent-ID: <a>\r\n\
                 Content-Transfer-Encoding: base64\r\n\r\n{}\r\n--b--\r\n",
                "cid:a ".repeat(times),
                STANDARD.encode([7_u8; 3_000]),
            )
        };
        assert!(!html(related(100).as_bytes()).expect("it has HTML").contains("cid:a"));
        let many = html(related(10_000).as_bytes()).expect("it has HTML");
        assert!(many.contains("cid:a") && many.len() <= HTML_MAX, "{}", many.len());
    }

    #[test]
    fn neither_depth_nor_folds_nor_parts_without_end_stop_the_page() {
        // Deeper than the stack of a thread bears, if a level took a call.
        const DEPTH: usize = 20_000;
        let multiparts: String = (0..DEPTH)
            .map(|n| format!("Content-Type: multipart/mixed; boundary=b{n}\r\n\r\n--b{n}\r\n"))
            .collect();
        let messages = "Content-Type: message/rfc822\r\n\r\n".repeat(DEPTH);
        let parts =
            format!("Content-Type: multipart/mixed; boundary=b\r\n\r\n{}", "--b\r\n\r\nx\r\n".repeat(DEPTH));
        // As many as the start of a message holds that is shown, hidden by an encoding.
        let hidden = "Content-Type:message/rfc822\n\n".repeat(6_500);
        let hidden = format!(
            "Content-Type: message/rfc822\r\nContent-Transfer-Encoding: base64\r\n\r\n{}\r\n",
            STANDARD.encode(hidden)
        );
        for octets in [multiparts, messages, parts, hidden] {
            assert!(!sight(octets.as_bytes()).fields.is_empty(), "its header section is there to see");
            html(octets.as_bytes());
            attachment(octets.as_bytes(), 0);
        }
        // More than the stack bears, and blanks where the parser passes over them.
        let many = STANDARD.encode("Content-Type:message/rfc822\n\n".repeat(2 * DEPTH));
        for (header, is_shown) in [
            ("Content-Type: message/rfc822\r\nContent-Transfer-Encoding: base64", false),
            (
                "Content-Type: Message/(x)RFC822\r\nX: y\r\nContent-Transfer-Enc oding: quoted-printable",
                false,
            ),
            (
                "Content-Type: multipart/digest; boundary=b\r\n\r\n--b\r\nContent-Transfer-Encoding: base64",
                false,
            ),
            ("Content-Type: text/plain\r\nContent-Transfer-Encoding: base64", true),
        ] {
            let octets = format!("{header}\r\nSubject: x\r\n\r\n{many}\r\n");
            assert!(!sight(octets.as_bytes()).fields.is_empty(), "{header}");
            assert_eq!(is_shallow(octets.as_bytes()), is_shown, "{header}");
        }
        // One that is passed on as it is hides nothing, whatever came with it.
        let passed_on = format!(
            "Content-Type: message/rfc822\r\nContent-Transfer-Encoding: 8bit\r\n\r\n\
             Content-Type: image/png\r\nContent-Transfer-Encoding: base64\r\n\r\n{many}\r\n"
        );
        assert!(is_shallow(passed_on.as_bytes()));
        let spread = "Content- Type: message/rfc822\r\n\r\n".repeat(TYPES_MAX + 1);
        assert!(!is_shallow(spread.as_bytes()));
        let folded = format!("Subject: a{}\r\n\r\nx", "\r\n b".repeat(DEPTH));
        assert_eq!(sight(folded.as_bytes()).fields[0].1, format!("a{}", " b".repeat(DEPTH)));
    }

    #[test]
    fn what_is_no_message_is_shown_without_a_fault() {
        for octets in
            [&b""[..], b"\xff\xfe\0", b"Subject", b"Content-Type: multipart/mixed; boundary=\r\n\r\n--"]
        {
            let sight = sight(octets);
            assert!(!sight.has_html && html(octets).is_none(), "{octets:?}");
        }
        let sight = sight(b"Subject: =?utf-8?q?Gr=C3=BC=C3=9Fe?=\r\n an alle\r\n\r\nHallo");
        assert_eq!(sight.fields, [("Subject".to_owned(), "Grüße an alle".to_owned())]);
        assert_eq!(sight.text.as_deref(), Some("Hallo"));
    }
}
