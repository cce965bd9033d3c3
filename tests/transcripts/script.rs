//! The form of a transcript: read from a file, and written back with what the server really said.
//!
//! ```text
//! # RFC 5321 §4.1.1.9: what this dialog shows, in a sentence.
//! client: 192.0.2.7          where it happens: see `Setting`
//!
//! S: 220 <...>               one line of a reply; <ID>, <DATE>, <challenge>, <...> stand for what varies
//! S: 250 <keywords>          the lines of an EHLO reply behind its first, whatever they are
//! C: NOOP                    one line with its CRLF; neighbouring C lines travel in one segment
//! C< NOOP\n                  octets as they are, with \r \n \t \0 \\ \xHH; no CRLF is added
//! C: EOF                     the client ends its side
//! S: EOF                     the server has closed, and had nothing more to say
//! -- TLS --                  a TLS handshake
//! -- 300 s --                the next reply comes after so long, not sooner (with `clock: paused`)
//! -- shutdown --             the process is about to end
//! Q: from <a@b> to <c@d>     what is in the queue at the end: the envelope, then its content behind `Q|`
//! Q: nothing
//! ```
//!
//! In client lines `<x*300>` is 300 times `x`, `<plain USER PASSWORD>` and `<base64 TEXT>` are base64, and
//! `<scram-first USER>` and `<scram-final USER PASSWORD>` are SCRAM-SHA-256's, and
//! `<cram-md5 USER PASSWORD>` answers the last challenge, `<cram-md5 USER PASSWORD 1>` the first.

// A test program's module has nobody else to be public for.
#![allow(unreachable_pub)]

use std::{fmt::Write as _, net::IpAddr, time::Duration};

use outpost::config::{Limit, SessionBounds, parse_limit};
use outpost::smtp::{pattern::AddressPattern, sasl, scram};

/// The client's share of the nonce of SCRAM.
const NONCE: &str = "client-nonce";

/// Where a dialog happens.
#[derive(Clone, Debug)]
pub struct Setting {
    /// The client's address.
    pub client: IpAddr,
    /// The connection begins in TLS.
    pub tls: bool,
    /// STARTTLS is offered.
    pub starttls: bool,
    /// Somebody may log in: `dotcloud` with the password `secret`.
    pub users: bool,
    /// BINARYMIME is offered.
    pub binary: bool,
    /// The bounds of a session.
    pub bounds: SessionBounds,
    /// Octets that may be held in memory.
    pub buffered: usize,
    /// Others find no place.
    pub crowded: bool,
    /// `auth: required`.
    pub login_required: bool,
    /// `smtp_senders`.
    pub senders: Option<Vec<AddressPattern>>,
    /// The senders that `dotcloud` may use.
    pub user_senders: Option<Vec<AddressPattern>>,
    /// What `dotcloud` may hand in: its `rate_limit`.
    pub limits: Vec<Limit>,
    /// Octets of content.
    pub message_size: u64,
    /// Recipients of one message.
    pub recipients: usize,
    /// The queue takes nothing.
    pub full: bool,
    /// Our Received field is shown in the queue rather than left out.
    pub received: bool,
    /// The keywords of EHLO's reply are shown, and so checked; in other dialogs they don't matter.
    pub keywords: bool,
    /// Time passes only where everybody waits.
    pub paused: bool,
    /// The client speaks before it is greeted; only a blessing asks.
    pub early: bool,
    /// Played again and again with the client's octets cut elsewhere.
    pub cuts: bool,
}

/// One thing that happens.
#[derive(Clone, Debug)]
pub enum Step {
    /// The client says this at once.
    Say(String),
    /// The client ends its side.
    End,
    /// A TLS handshake.
    Tls,
    /// The next reply comes after so long.
    After(Duration),
    /// The process is about to end.
    Shutdown,
    /// The server says this line.
    Hear(String),
    /// The server has closed.
    Closed,
}

/// A whole file.
#[derive(Debug)]
pub struct Script {
    pub setting: Setting,
    /// With the number of the line each begins at.
    pub steps: Vec<(usize, Step)>,
    /// `Q` lines without their mark.
    pub queue: Vec<String>,
    /// Everything but the server's part, as it stands in the file: what a blessing keeps.
    layout: Vec<(Option<usize>, String)>,
}

impl Script {
    /// Reads a file's text.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut script = Self {
            setting: Setting {
                client: IpAddr::from([127, 0, 0, 1]),
                tls: false,
                starttls: true,
                users: true,
                binary: false,
                bounds: SessionBounds::default(),
                buffered: 1_000_000,
                crowded: false,
                login_required: false,
                senders: None,
                user_senders: None,
                limits: Vec::new(),
                message_size: 100_000,
                recipients: 100,
                full: false,
                received: false,
                keywords: false,
                paused: false,
                early: false,
                cuts: true,
            },
            steps: Vec::new(),
            queue: Vec::new(),
            layout: Vec::new(),
        };
        if !text.starts_with("# RFC ") {
            return Err("line 1: begin with `# RFC 1234 §5: a sentence`".into());
        }
        let mut together = false;
        for (i, line) in text.lines().enumerate() {
            let was_together = std::mem::take(&mut together);
            let mut server_part = false;
            let before = script.steps.len();
            if line.is_empty() || line.starts_with('#') {
            } else if line == "C: EOF" {
                script.steps.push((i + 1, Step::End));
            } else if let Some(octets) = line
                .strip_prefix("C: ")
                .map(|line| format!("{}\\r\\n", line.replace('\\', "\\\\")))
                .or_else(|| (line == "C:").then(|| "\\r\\n".to_owned()))
                .or_else(|| line.strip_prefix("C< ").map(str::to_owned))
            {
                together = true;
                match script.steps.last_mut() {
                    Some((_, Step::Say(said))) if was_together => said.push_str(&octets),
                    _ => script.steps.push((i + 1, Step::Say(octets))),
                }
            } else if line == "S: EOF" {
                server_part = true;
                script.steps.push((i + 1, Step::Closed));
            } else if let Some(heard) = line.strip_prefix("S: ") {
                server_part = true;
                script.steps.push((i + 1, Step::Hear(heard.to_owned())));
            } else if let Some(queued) = line.strip_prefix("Q: ") {
                server_part = true;
                script.queue.push(queued.to_owned());
            } else if let Some(content) = line.strip_prefix("Q|") {
                server_part = true;
                script.queue.push(format!("|{content}"));
            } else if let Some(event) = line.strip_prefix("-- ").and_then(|line| line.strip_suffix(" --")) {
                let step = match event.strip_suffix(" s").map(str::parse) {
                    Some(Ok(seconds)) => Step::After(Duration::from_secs(seconds)),
                    _ if event == "TLS" => Step::Tls,
                    _ if event == "shutdown" => Step::Shutdown,
                    _ => return Err(format!("line {}: no such event: {event}", i + 1)),
                };
                script.steps.push((i + 1, step));
            } else {
                script.setting.read(line).ok_or_else(|| format!("line {}: can't read {line:?}", i + 1))?;
            }
            if !server_part {
                let step = (together || script.steps.len() > before).then(|| script.steps.len() - 1);
                script.layout.push((step, line.to_owned()));
            }
        }
        Ok(script)
    }

    /// The file with what was heard at the start and after each step, and what was queued.
    pub fn blessed(&self, greeting: &[String], heard: &[Vec<String>], queue: &[String]) -> String {
        let mut text = String::new();
        let mut greeted = false;
        for (i, (step, line)) in self.layout.iter().enumerate() {
            if step.is_some() && !std::mem::replace(&mut greeted, true) {
                add_heard(&mut text, greeting);
            }
            let _ = writeln!(text, "{line}");
            if let Some(step) = step
                && self.layout.get(i + 1).is_none_or(|(next, _)| next != &Some(*step))
            {
                add_heard(&mut text, &heard[*step]);
            }
        }
        if !greeted {
            add_heard(&mut text, greeting);
        }
        text.truncate(text.trim_end().len());
        text.push_str("\n\n");
        for line in queue {
            let _ =
                if line.starts_with('|') { writeln!(text, "Q{line}") } else { writeln!(text, "Q: {line}") };
        }
        text
    }
}

fn add_heard(text: &mut String, lines: &[String]) {
    for line in lines {
        let _ = writeln!(text, "S: {line}");
    }
}

impl Setting {
    fn read(&mut self, line: &str) -> Option<()> {
        let (key, value) = line.split_once(": ")?;
        let yes = match value {
            "yes" => Some(true),
            "no" => Some(false),
            _ => None,
        };
        match (key, value) {
            ("client", _) => self.client = value.parse().ok()?,
            ("tls", _) => self.tls = yes?,
            ("starttls", _) => self.starttls = yes?,
            ("users", _) => self.users = yes?,
            ("buffered", _) => self.buffered = value.parse().ok()?,
            ("crowded", _) => self.crowded = yes?,
            ("command-line", _) => self.bounds.command_line = value.parse().ok()?,
            ("header-size", _) => self.bounds.header = value.parse().ok()?,
            ("content-line", _) => self.bounds.content_line = Some(value.parse().ok()?),
            ("buffered-per-connection", _) => self.bounds.buffered = value.parse().ok()?,
            ("passes", _) => self.bounds.passes = value.parse().ok()?,
            ("failed-logins", _) => self.bounds.failed_logins = value.parse().ok()?,
            ("hops", _) => self.bounds.hops = value.parse().ok()?,
            ("errors", _) => self.bounds.errors = value.parse().ok()?,
            ("commands", _) => self.bounds.commands = value.parse().ok()?,
            ("commands-before-auth", _) => self.bounds.commands_before_auth = value.parse().ok()?,
            ("login-timeout", _) => self.bounds.login_timeout = seconds(value)?,
            ("timeout", _) => self.bounds.timeout = seconds(value)?,
            ("transaction-timeout", _) => self.bounds.transaction_timeout = seconds(value)?,
            ("min-rate", _) => self.bounds.min_rate = value.parse().ok()?,
            ("auth", "required") => self.login_required = true,
            ("senders", _) => self.senders = patterns(value),
            ("user-senders", _) => self.user_senders = patterns(value),
            ("rate-limit", _) => self.limits = vec![parse_limit(value)?],
            ("message-size", _) => self.message_size = value.parse().ok()?,
            ("recipients", _) => self.recipients = value.parse().ok()?,
            ("queue", "full") => self.full = true,
            ("received", "shown") => self.received = true,
            ("keywords", "shown") => self.keywords = true,
            ("binary", _) => self.binary = yes?,
            ("early", _) => self.early = yes?,
            ("clock", "paused") => self.paused = true,
            ("cuts", _) => self.cuts = yes?,
            _ => return None,
        }
        Some(())
    }
}

fn seconds(value: &str) -> Option<Duration> {
    value.strip_suffix(" s")?.parse().ok().map(Duration::from_secs)
}

fn patterns(list: &str) -> Option<Vec<AddressPattern>> {
    list.split(' ').map(AddressPattern::parse).collect()
}

/// The octets that a client's words stand for. `challenges` are those heard, in base64.
pub fn octets(words: &str, challenges: &[String]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut rest = words;
    while let Some(c) = rest.chars().next() {
        if let Some((inner, after)) = rest.strip_prefix('<').and_then(|open| open.split_once('>'))
            && let Some(octets) = computed(inner, challenges)
        {
            out.extend_from_slice(&octets);
            rest = after;
            continue;
        }
        rest = &rest[c.len_utf8()..];
        if c != '\\' {
            out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
            continue;
        }
        let escape = rest.chars().next().expect("an escape has a letter");
        rest = &rest[1..];
        out.push(match escape {
            'r' => b'\r',
            'n' => b'\n',
            't' => b'\t',
            '0' => 0,
            '\\' => b'\\',
            'x' => {
                let (digits, after) = rest.split_at(2);
                rest = after;
                u8::from_str_radix(digits, 16).expect("two hexadecimal digits")
            }
            other => panic!("no such escape: \\{other}"),
        });
    }
    out
}

fn computed(inner: &str, challenges: &[String]) -> Option<Vec<u8>> {
    let mut words = inner.split(' ');
    match (words.next()?, words.next(), words.next()) {
        ("plain", Some(user), Some(password)) => Some(sasl::encode(sasl::plain(user, password)).into()),
        ("cram-md5", Some(user), Some(password)) => {
            let which = words.next().map_or(challenges.len(), |n| n.parse().expect("a number")) - 1;
            let challenge = sasl::decode(&challenges[which]).expect("a challenge in base64");
            Some(sasl::encode(sasl::cram_md5(user, password, &challenge)).into())
        }
        ("scram-first", Some(user), _) => Some(sasl::encode(scram::Client::new(user, NONCE, None).1).into()),
        ("scram-final", Some(user), Some(password)) => {
            let first = sasl::decode(challenges.last()?).expect("a challenge in base64");
            let first = String::from_utf8(first).expect("a challenge is text");
            let (last, _) = scram::Client::new(user, NONCE, None).0.respond(password, &first)?;
            Some(sasl::encode(last).into())
        }
        ("base64", Some(_), _) => Some(sasl::encode(octets(&inner["base64 ".len()..], &[])).into()),
        _ => {
            let (text, times) = inner.rsplit_once('*')?;
            Some(octets(text, &[]).repeat(times.parse().ok()?))
        }
    }
}

/// Octets as a line of a file shows them.
pub fn shown(octets: &[u8]) -> String {
    /// Repetitions of one octet from which on they are counted rather than shown.
    const LONG: usize = 40;
    let mut text = String::new();
    for run in octets.chunk_by(|a, b| a == b) {
        let one = match run[0] {
            b'\r' => "\\r".to_owned(),
            b'\n' => "\\n".to_owned(),
            b'\\' => "\\\\".to_owned(),
            b'\t' => "\\t".to_owned(),
            b @ b' '..=b'~' => char::from(b).to_string(),
            b => format!("\\x{b:02x}"),
        };
        let _ = if run.len() < LONG {
            write!(text, "{}", one.repeat(run.len()))
        } else {
            write!(text, "<{one}*{}>", run.len())
        };
    }
    text
}

/// Whether what was expected, placeholders and all, is what came.
pub fn matches(expected: &str, got: &str) -> bool {
    let Some((at, name)) =
        ["<ID>", "<DATE>", "<challenge>", "<...>"].iter().filter_map(|n| Some((expected.find(n)?, *n))).min()
    else {
        return expected == got;
    };
    let Some(rest) = got.strip_prefix(&expected[..at]) else { return false };
    let after = &expected[at + name.len()..];
    (1..=rest.len()).filter(|end| rest.is_char_boundary(*end)).any(|end| {
        let sound = name != "<ID>" || rest[..end].parse::<outpost::queue::QueueId>().is_ok();
        sound && matches(after, &rest[end..])
    })
}

/// Stands for the lines of an EHLO reply behind its first.
pub const KEYWORDS: &str = "250 <keywords>";

/// Puts [`KEYWORDS`] in the place of what it stands for.
pub fn leave_out_keywords(lines: &mut Vec<String>) {
    let mut inside = false;
    lines.retain_mut(|line| {
        let was_inside = inside;
        inside = line == "250-relay.example" || inside && line.starts_with("250-");
        if was_inside && !inside {
            *line = KEYWORDS.to_owned();
        }
        !(was_inside && inside)
    });
}

/// What came, with placeholders for what varies.
pub fn masked(got: &str) -> String {
    // Of CRAM-MD5 (`<`) and SCRAM (`r=`, `v=`).
    if ["334 PD", "334 cj", "334 dj"].iter().any(|start| got.starts_with(start)) {
        return "334 <challenge>".to_owned();
    }
    let date = got.strip_prefix("|\\t").is_some_and(|date| date.ends_with(" +0000"));
    if date {
        return "|\\t<DATE>".to_owned();
    }
    if got.starts_with("|Date: ") && got.ends_with(" +0000") {
        return "|Date: <DATE>".to_owned();
    }
    if got.starts_with("|Message-ID: <1") && got.ends_with("@relay.example>") {
        return "|Message-ID: <<...>@relay.example>".to_owned();
    }
    let is_id = |word: &str| word.trim_end_matches(';').parse::<outpost::queue::QueueId>().is_ok();
    let mask = |word: &str| if is_id(word) { format!("<ID>{}", &word[13..]) } else { word.to_owned() };
    got.split(' ').map(mask).collect::<Vec<_>>().join(" ")
}
