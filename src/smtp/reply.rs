//! A reply is a value (RFC 5321 §4.2): code, enhanced code (RFC 2034), text.
//!
//! Every sentence that Outpost can say to a client is a constructor below, so that the whole of it
//! can be read on one page, and nothing ever reads meaning back out of text. Replies of an upstream
//! become the same value through [`ReplyReader`], which bounds what a hostile one can make us keep.

use std::{borrow::Cow, fmt};

use serde::{Deserialize, Serialize};

/// An enhanced status code, `class.subject.detail` (RFC 3463).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Enhanced(pub u8, pub u16, pub u16);

impl Enhanced {
    /// Reads `5.1.1` if it stands alone at the start of `text`; returns what follows the blank.
    fn parse(text: &str) -> Option<(Self, &str)> {
        let (word, rest) = text.split_once(' ').unwrap_or((text, ""));
        let mut numbers = word.split('.');
        let mut number = |digits: usize| -> Option<u16> {
            let n = numbers.next()?;
            let plain = !n.is_empty() && n.len() <= digits && n.bytes().all(|b| b.is_ascii_digit());
            plain.then(|| n.parse().ok()).flatten()
        };
        let code = Self(number(1)? as u8, number(3)?, number(3)?);
        (numbers.next().is_none() && matches!(code.0, 2 | 4 | 5)).then_some((code, rest))
    }
}

impl fmt::Display for Enhanced {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.0, self.1, self.2)
    }
}

/// How final a reply is (RFC 5321 §4.2.1): the first digit, which a client must be able to act on
/// alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// 2yz.
    Success,
    /// 3yz: go on.
    Intermediate,
    /// 4yz: the same may succeed later.
    Transient,
    /// 5yz: the same will not succeed.
    Permanent,
}

/// One reply: ours to a client, or an upstream's to us.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reply {
    code: u16,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    enhanced: Option<Enhanced>,
    /// Lines joined by `\n`; no other control character.
    text: Cow<'static, str>,
}

impl Reply {
    /// A reply of any content. Lines of `text` are divided by `\n`; other control characters and
    /// those that reorder text on a screen are replaced, so that no reply can forge a line of a
    /// dialog, a log or a report.
    pub fn new(code: u16, enhanced: Option<Enhanced>, text: impl Into<Cow<'static, str>>) -> Self {
        let mut text = text.into();
        if text.contains(is_unsafe_in_text) {
            text = text.replace(is_unsafe_in_text, "\u{FFFD}").into();
        }
        Self { code, enhanced, text }
    }

    /// The three digits.
    pub fn code(&self) -> u16 {
        self.code
    }

    /// The enhanced code, if there is one.
    pub fn enhanced(&self) -> Option<Enhanced> {
        self.enhanced
    }

    /// How final it is.
    pub fn severity(&self) -> Severity {
        match self.code / 100 {
            0..=2 => Severity::Success,
            3 => Severity::Intermediate,
            4 => Severity::Transient,
            _ => Severity::Permanent,
        }
    }

    /// Whether it says yes (2yz).
    pub fn is_success(&self) -> bool {
        self.severity() == Severity::Success
    }

    /// Whether it turns somebody away for who they are or what they may do (X.7.z), or for a bound
    /// that they are over (X.3.4, X.5.3), rather than for a slip in the protocol.
    pub fn is_about_policy(&self) -> bool {
        let refused = matches!(self.severity(), Severity::Transient | Severity::Permanent);
        let subject = self.enhanced.map(|enhanced| (enhanced.1, enhanced.2));
        refused && matches!(subject, Some((7, _) | (3, 4) | (5, 3)))
    }

    /// The text's lines, without codes.
    pub fn lines(&self) -> impl Iterator<Item = &str> {
        self.text.split('\n')
    }

    /// Writes it as RFC 5321 §4.2 wants it: code, `-` or blank, the enhanced code on every line
    /// (RFC 2034 §4), text, CRLF.
    pub fn write_to(&self, out: &mut Vec<u8>) {
        let mut lines = self.lines().peekable();
        while let Some(line) = lines.next() {
            let between = if lines.peek().is_some() { '-' } else { ' ' };
            out.extend_from_slice(format!("{}{between}", self.code).as_bytes());
            if let Some(enhanced) = self.enhanced {
                out.extend_from_slice(format!("{enhanced} ").as_bytes());
            }
            out.extend_from_slice(line.as_bytes());
            out.extend_from_slice(b"\r\n");
        }
    }
}

/// On one line, as logs and reports show it: `550 5.1.1 no such user`.
impl fmt::Display for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.code)?;
        if let Some(enhanced) = self.enhanced {
            write!(f, " {enhanced}")?;
        }
        for line in self.lines().filter(|line| !line.is_empty()) {
            write!(f, " {line}")?;
        }
        Ok(())
    }
}

/// Controls (but not the `\n` between lines), and characters that hide or reorder text.
pub(super) fn is_unsafe_in_text(c: char) -> bool {
    (c.is_control() && c != '\n')
        || matches!(c, '\u{200B}'..='\u{200F}' | '\u{2028}'..='\u{202E}' | '\u{2066}'..='\u{2069}' | '\u{FEFF}')
}

/// Every sentence of the listener. In the order in which a dialog can meet them.
#[allow(missing_docs)] // Each is its own explanation.
impl Reply {
    fn say(code: u16, enhanced: (u8, u16, u16), text: impl Into<Cow<'static, str>>) -> Self {
        Self::new(code, Some(Enhanced(enhanced.0, enhanced.1, enhanced.2)), text)
    }

    // The connection.
    pub fn greeting(hostname: &str) -> Self {
        Self::new(220, None, format!("{hostname} ESMTP Outpost"))
    }
    pub fn too_many_connections() -> Self {
        Self::say(421, (4, 7, 0), "too many connections at once; try again later")
    }
    pub fn shutting_down(hostname: &str) -> Self {
        Self::say(421, (4, 3, 2), format!("{hostname} is shutting down; try again"))
    }
    pub fn idle_too_long(hostname: &str) -> Self {
        Self::say(421, (4, 4, 2), format!("{hostname} waited too long for you; closing"))
    }
    pub fn too_slow() -> Self {
        Self::say(421, (4, 4, 2), "the message came too slowly; closing (smtp_min_rate, smtp_timeout)")
    }
    pub fn too_many_errors() -> Self {
        Self::say(421, (4, 7, 0), "too many errors; closing")
    }
    pub fn no_proxy_header_here() -> Self {
        Self::say(550, (5, 7, 1), "a PROXY header is not taken from your address; closing")
    }
    pub fn proxy_header_expected() -> Self {
        Self::say(421, (4, 7, 0), "a PROXY header was expected from your address (proxy_protocol); closing")
    }
    pub fn not_http() -> Self {
        Self::say(421, (4, 7, 0), "this is a mail server; closing")
    }
    pub fn goodbye(hostname: &str) -> Self {
        Self::say(221, (2, 0, 0), format!("{hostname} closing connection"))
    }

    // Any command.
    pub fn ok() -> Self {
        Self::say(250, (2, 0, 0), "ok")
    }
    pub fn unknown_command() -> Self {
        Self::say(500, (5, 5, 1), "unknown command")
    }
    pub fn not_implemented(verb: &'static str) -> Self {
        Self::say(502, (5, 5, 1), format!("{verb} is not implemented here"))
    }
    pub fn line_too_long() -> Self {
        Self::say(500, (5, 5, 2), "line too long")
    }
    pub fn bare_newline_in_command() -> Self {
        Self::say(500, (5, 5, 2), "a command must end with CRLF and hold no other CR or LF")
    }
    pub fn not_text() -> Self {
        Self::say(501, (5, 5, 2), "a command must be printable text")
    }
    pub fn bad_argument(what: impl Into<Cow<'static, str>>) -> Self {
        Self::say(501, (5, 5, 4), what)
    }
    pub fn no_argument_allowed() -> Self {
        Self::bad_argument("this command takes no argument")
    }
    pub fn bad_sequence(what: &'static str) -> Self {
        Self::say(503, (5, 5, 1), what)
    }

    // EHLO, HELO, HELP, VRFY.
    pub fn hello(hostname: &str, keywords: &[String]) -> Self {
        let mut text = hostname.to_owned();
        for keyword in keywords {
            text.push('\n');
            text.push_str(keyword);
        }
        Self::new(250, None, text)
    }
    pub fn help() -> Self {
        Self::say(
            214,
            (2, 0, 0),
            "EHLO HELO MAIL RCPT DATA BDAT RSET NOOP VRFY HELP QUIT STARTTLS AUTH\n\
             Outpost takes mail of this network's applications and relays it",
        )
    }
    pub fn can_not_verify() -> Self {
        // RFC 5321 §3.5.3: what a relay says that can't know the mailboxes.
        Self::say(252, (2, 5, 0), "can't verify here; send the message and the upstream will tell")
    }

    // STARTTLS.
    pub fn ready_for_tls() -> Self {
        Self::say(220, (2, 0, 0), "ready to start TLS")
    }
    pub fn tls_not_available() -> Self {
        Self::say(502, (5, 5, 1), "STARTTLS is not offered here")
    }
    pub fn already_tls() -> Self {
        Self::bad_sequence("this connection is already protected by TLS")
    }

    // AUTH.
    pub fn challenge(base64: String) -> Self {
        Self::new(334, None, base64)
    }
    pub fn authenticated() -> Self {
        Self::say(235, (2, 7, 0), "authentication succeeded")
    }
    pub fn wrong_credentials() -> Self {
        Self::say(535, (5, 7, 8), "wrong user name or password")
    }
    pub fn auth_needs_tls() -> Self {
        Self::say(538, (5, 7, 11), "this mechanism shows the password: use STARTTLS first")
    }
    pub fn unknown_mechanism() -> Self {
        Self::say(504, (5, 5, 4), "this AUTH mechanism is not offered here")
    }
    pub fn auth_cancelled() -> Self {
        Self::say(501, (5, 7, 0), "authentication cancelled")
    }
    pub fn bad_base64() -> Self {
        Self::say(501, (5, 5, 2), "not valid base64 of a valid response")
    }
    pub fn auth_line_too_long() -> Self {
        Self::say(500, (5, 5, 6), "authentication exchange line too long")
    }
    pub fn already_authenticated() -> Self {
        Self::bad_sequence("already authenticated")
    }
    pub fn auth_in_transaction() -> Self {
        Self::bad_sequence("not during a mail transaction")
    }
    pub fn too_many_failed_logins() -> Self {
        Self::say(421, (4, 7, 0), "too many failed logins; closing")
    }
    pub fn auth_required() -> Self {
        Self::say(530, (5, 7, 0), "log in first: relaying is for this network's own applications")
    }

    // MAIL and RCPT.
    pub fn sender_ok() -> Self {
        Self::say(250, (2, 1, 0), "sender ok")
    }
    pub fn relaying_denied() -> Self {
        Self::say(550, (5, 7, 1), "relaying is for this network's own applications (smtp_networks)")
    }
    pub fn sender_not_allowed(sender: impl fmt::Display, key: &str) -> Self {
        Self::say(550, (5, 7, 1), format!("sender {sender} is not among {key}"))
    }
    pub fn recipient_ok() -> Self {
        Self::say(250, (2, 1, 5), "recipient ok")
    }
    pub fn hello_first() -> Self {
        Self::bad_sequence("say EHLO first")
    }
    pub fn mail_first() -> Self {
        Self::bad_sequence("say MAIL first")
    }
    pub fn nested_mail() -> Self {
        Self::bad_sequence("a mail transaction is already open; say RSET to drop it")
    }
    pub fn bad_sender(why: impl fmt::Display) -> Self {
        Self::say(501, (5, 1, 7), format!("bad sender address: {why}"))
    }
    pub fn bad_recipient(why: impl fmt::Display) -> Self {
        Self::say(501, (5, 1, 3), format!("bad recipient address: {why}"))
    }
    pub fn non_ascii_address() -> Self {
        Self::say(553, (5, 6, 7), "an address beyond ASCII needs the parameter SMTPUTF8 of MAIL")
    }
    pub fn null_recipient() -> Self {
        Self::say(501, (5, 1, 3), "a recipient can't be empty")
    }
    pub fn unknown_parameter(name: &str) -> Self {
        Self::say(555, (5, 5, 4), format!("parameter {name} is not offered here"))
    }
    pub fn bad_parameter(name: &str) -> Self {
        Self::say(501, (5, 5, 4), format!("bad value of parameter {name}"))
    }
    pub fn repeated_parameter(name: &str) -> Self {
        Self::say(501, (5, 5, 4), format!("parameter {name} is given twice"))
    }
    pub fn held_too_long(max: u64) -> Self {
        Self::say(554, (5, 5, 4), format!("a message is held for at most {max} seconds"))
    }
    pub fn too_large(max: u64) -> Self {
        Self::say(552, (5, 3, 4), format!("message is larger than {max} octets"))
    }
    pub fn too_many_recipients() -> Self {
        // RFC 5321 §4.5.3.1.10: 452, so that the client sends the rest in another transaction.
        Self::say(452, (4, 5, 3), "too many recipients; send to the rest in another transaction")
    }

    // DATA.
    pub fn no_valid_recipients() -> Self {
        Self::say(554, (5, 5, 1), "no valid recipients")
    }
    pub fn start_data() -> Self {
        Self::new(354, None, "end data with <CR><LF>.<CR><LF>")
    }
    pub fn binary_needs_bdat() -> Self {
        Self::bad_sequence("binary content comes by BDAT")
    }
    pub fn chunks_begun() -> Self {
        Self::bad_sequence("the message has begun with BDAT: go on with BDAT, or say RSET to drop it")
    }
    pub fn chunk_ok(octets: u64) -> Self {
        Self::say(250, (2, 0, 0), format!("{octets} octets received"))
    }
    pub fn bare_newline_in_content() -> Self {
        Self::say(
            550,
            (5, 6, 0),
            "the message holds a CR or LF that is not part of a CRLF pair: \
             lines must end with CRLF (RFC 5321 section 2.3.8)",
        )
    }
    pub fn hidden_dot_in_content() -> Self {
        Self::say(
            550,
            (5, 6, 0),
            "a line of the message begins with NUL octets and a dot: \
             a server that drops NULs could take it for the end of the message",
        )
    }
    pub fn too_many_hops(max: usize) -> Self {
        Self::say(554, (5, 4, 6), format!("more than {max} Received fields: mail loop"))
    }
    pub fn passed_too_often(hostname: &str) -> Self {
        Self::say(554, (5, 4, 6), format!("the message comes back to {hostname} again and again: mail loop"))
    }
    pub fn header_too_large(max: usize) -> Self {
        Self::say(552, (5, 3, 4), format!("header section is larger than {max} octets"))
    }
    /// The only 250 after content. [`Receipt`](crate::queue::Receipt) is the proof that the message
    /// is on stable storage; nothing but the queue can make one.
    pub fn accepted(receipt: &crate::queue::Receipt) -> Self {
        Self::say(250, (2, 0, 0), format!("queued as {}", receipt.id()))
    }

    // Limits that the operator set for a login: the message may come again.
    pub fn limit_reached(until: Option<&str>) -> Self {
        let when = until.map_or_else(String::new, |until| format!(" at {until}"));
        Self::say(451, (4, 7, 1), format!("the limit of this login is used up; try again later{when}"))
    }
    pub fn limit_too_small(limit: &str) -> Self {
        let words = format!("the limit of this login ({limit}) has no room for so many recipients at once");
        Self::say(452, (4, 5, 3), words)
    }

    // Our faults: always 4yz, so that the client keeps the message (RFC 5321 §4.2.1).
    pub fn storage_full() -> Self {
        Self::say(452, (4, 3, 1), "not enough storage; try again later")
    }
    pub fn local_error() -> Self {
        Self::say(451, (4, 3, 0), "local error; try again later")
    }
}

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

    use super::*;

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
    fn each_sentence_has_an_enhanced_code_of_its_class_but_those_that_may_have_none() {
        let source = include_str!("reply.rs").split_whitespace().collect::<Vec<_>>().join(" ");
        let (_, sentences) = source.split_once("/// Every sentence of the listener.").unwrap();
        let (sentences, _) = sentences.split_once("/// The longest part of one reply line").unwrap();
        let sentences: Vec<&str> = sentences.split("pub fn ").skip(1).collect();
        assert!(sentences.len() > 40, "they are not found any more");
        // RFC 2034 §4: not the greeting, not EHLO and HELO; and nothing that goes on (3yz) has a class.
        let without = sentences.iter().filter(|sentence| sentence.contains("Self::new("));
        let without: Vec<&str> = without.filter_map(|sentence| sentence.split('(').next()).collect();
        assert_eq!(without, ["greeting", "hello", "challenge", "start_data"]);
        for said in sentences.iter().flat_map(|sentence| sentence.split("Self::say(").skip(1)) {
            let (code, rest) = said.trim_start().split_once(", (").unwrap();
            assert_eq!(code.get(..1), rest.get(..1), "the classes differ: {said}");
        }
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
