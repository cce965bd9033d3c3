//! What a client may say (RFC 5321 §4.1.1): one line in, one value out, and back.

use std::borrow::Cow;

use super::{
    address::{self, AddressError, ReversePath},
    parameter::{self, Notify, ORCPT_MAX, OriginalRecipient, Ret},
    reply::Reply,
};

/// One command with its argument, checked for form only: whether it is allowed now is the session's
/// business.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Opens the session; extensions wanted.
    Ehlo(String),
    /// Opens the session the old way.
    Helo(String),
    /// Opens a mail transaction.
    Mail(ReversePath, MailParameters),
    /// Adds a recipient.
    Rcpt(address::Mailbox, RcptParameters),
    /// Announces the content.
    Data,
    /// Drops the transaction.
    Rset,
    /// Nothing.
    Noop,
    /// Asks whether a mailbox exists.
    Vrfy,
    /// Asks for help.
    Help,
    /// Goodbye.
    Quit,
    /// RFC 3207.
    StartTls,
    /// RFC 4954: mechanism in upper case, initial response still in base64.
    Auth(String, Option<String>),
}

/// The parameters of MAIL.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MailParameters {
    /// RFC 1870: the size the client estimates.
    pub size: Option<u64>,
    /// RFC 6152: content beyond ASCII was announced.
    pub eight_bit: bool,
    /// RFC 3461 §4.3: how much of the message a report returns.
    pub ret: Option<Ret>,
    /// RFC 3461 §4.4: the sender's name for the transaction, decoded.
    pub envid: Option<String>,
}

/// The parameters of RCPT.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RcptParameters {
    /// RFC 3461 §4.1: of what the sender wants to hear.
    pub notify: Option<Notify>,
    /// RFC 3461 §4.2: the recipient as the sender first knew it.
    pub original: Option<OriginalRecipient>,
}

/// RFC 5321 §4.5.3.1.2 lets no domain be longer; names that apps give themselves are cut off here
/// rather than refused.
const HELLO_MAX: usize = 255;

impl Command {
    /// Reads one line without its CRLF.
    ///
    /// # Errors
    /// The reply to give: the command is unknown or its argument is not well-formed.
    pub fn parse(line: &[u8]) -> Result<Self, Reply> {
        let line = std::str::from_utf8(line).map_err(|_| Reply::not_text())?;
        if line.contains(|c: char| c.is_ascii_control() && c != '\t') {
            return Err(Reply::not_text());
        }
        // RFC 5321 §4.1.1: trailing white space should be tolerated.
        let line = line.trim_end_matches([' ', '\t']);
        let (verb, argument) = line.split_once(' ').unwrap_or((line, ""));
        let argument = argument.trim_start_matches(' ');
        match verb.to_ascii_uppercase().as_str() {
            "EHLO" => hello(argument).map(Self::Ehlo),
            "HELO" => hello(argument).map(Self::Helo),
            "MAIL" => mail(argument),
            "RCPT" => rcpt(argument),
            "DATA" => alone(argument, Self::Data),
            "RSET" => alone(argument, Self::Rset),
            "QUIT" => alone(argument, Self::Quit),
            "STARTTLS" => alone(argument, Self::StartTls),
            // RFC 5321 §4.1.1.9: the argument of NOOP is ignored.
            "NOOP" => Ok(Self::Noop),
            "HELP" => Ok(Self::Help),
            "VRFY" if argument.is_empty() => Err(Reply::bad_argument("VRFY needs a name")),
            "VRFY" => Ok(Self::Vrfy),
            "AUTH" => auth(argument),
            "EXPN" => Err(Reply::not_implemented("EXPN")),
            "BDAT" => Err(Reply::not_implemented("BDAT")),
            "ETRN" => Err(Reply::not_implemented("ETRN")),
            "TURN" => Err(Reply::not_implemented("TURN")),
            _ => Err(Reply::unknown_command()),
        }
    }

    /// Writes the command as a client sends it, CRLF included.
    pub fn write_to(&self, out: &mut Vec<u8>) {
        let line: Cow<'_, str> = match self {
            Self::Ehlo(name) => format!("EHLO {name}").into(),
            Self::Helo(name) => format!("HELO {name}").into(),
            Self::Mail(path, parameters) => {
                let mut line = format!("MAIL FROM:{path}");
                if let Some(size) = parameters.size {
                    line.push_str(&format!(" SIZE={size}"));
                }
                if parameters.eight_bit {
                    line.push_str(" BODY=8BITMIME");
                }
                if let Some(ret) = parameters.ret {
                    line.push_str(&format!(" RET={ret}"));
                }
                if let Some(envid) = &parameters.envid {
                    line.push_str(&format!(" ENVID={}", parameter::encode_xtext(envid)));
                }
                line.into()
            }
            Self::Rcpt(mailbox, parameters) => {
                let mut line = format!("RCPT TO:<{mailbox}>");
                if let Some(notify) = parameters.notify {
                    line.push_str(&format!(" NOTIFY={notify}"));
                }
                // Encoding can make one grow beyond what a server must take: better none than a
                // recipient refused for it.
                let original = parameters.original.as_ref().map(ToString::to_string);
                if let Some(original) = original.filter(|original| original.len() <= ORCPT_MAX) {
                    line.push_str(&format!(" ORCPT={original}"));
                }
                line.into()
            }
            Self::Data => "DATA".into(),
            Self::Rset => "RSET".into(),
            Self::Noop => "NOOP".into(),
            Self::Vrfy => "VRFY postmaster".into(),
            Self::Help => "HELP".into(),
            Self::Quit => "QUIT".into(),
            Self::StartTls => "STARTTLS".into(),
            Self::Auth(mechanism, None) => format!("AUTH {mechanism}").into(),
            Self::Auth(mechanism, Some(initial)) => format!("AUTH {mechanism} {initial}").into(),
        };
        out.extend_from_slice(line.as_bytes());
        out.extend_from_slice(b"\r\n");
    }
}

fn alone(argument: &str, command: Command) -> Result<Command, Reply> {
    if argument.is_empty() { Ok(command) } else { Err(Reply::no_argument_allowed()) }
}

/// RFC 5321 §4.1.1.1 wants a domain or an address literal; apps in containers say what they like,
/// and nothing depends on it, so any printable word will do. It is shown in Received, so it may hold
/// nothing that could end a comment or a line there.
fn hello(argument: &str) -> Result<String, Reply> {
    let name = argument.split(' ').next().unwrap_or_default();
    if name.is_empty() {
        return Err(Reply::bad_argument("a host name is needed"));
    }
    let legal = |c: char| {
        if c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':' | '[' | ']') { c } else { '?' }
    };
    Ok(name.chars().take(HELLO_MAX).map(legal).collect())
}

fn mail(argument: &str) -> Result<Command, Reply> {
    let path =
        keyword(argument, "FROM:").ok_or_else(|| Reply::bad_argument("expected MAIL FROM:<address>"))?;
    let (path, rest) = address::parse_path(path).map_err(|error| match error {
        AddressError::NotAscii => Reply::non_ascii_sender(),
        other => Reply::bad_sender(other),
    })?;
    let mut parameters = MailParameters::default();
    for word in rest.split(' ').filter(|word| !word.is_empty()) {
        let (name, value) = word.split_once('=').unwrap_or((word, ""));
        match name.to_ascii_uppercase().as_str() {
            // RFC 1870 §3: up to 20 digits, so a value can be too large for any integer of ours.
            "SIZE" => {
                let digits = (1..=20).contains(&value.len()) && value.bytes().all(|b| b.is_ascii_digit());
                if !digits {
                    return Err(Reply::bad_parameter("SIZE"));
                }
                parameters.size = Some(value.parse().unwrap_or(u64::MAX));
            }
            "BODY" => match value.to_ascii_uppercase().as_str() {
                "7BIT" => parameters.eight_bit = false,
                "8BITMIME" => parameters.eight_bit = true,
                _ => return Err(Reply::bad_parameter("BODY")),
            },
            // RFC 4954 §5: must be taken from any client that may use AUTH; we trust none to name
            // another's identity, so it goes no further.
            "AUTH" if !value.is_empty() => {}
            _ => return Err(Reply::unknown_parameter(&printable(name))),
        }
    }
    Ok(Command::Mail(path, parameters))
}

fn rcpt(argument: &str) -> Result<Command, Reply> {
    let path = keyword(argument, "TO:").ok_or_else(|| Reply::bad_argument("expected RCPT TO:<address>"))?;
    let (path, rest) = address::parse_path(path).map_err(|error| match error {
        AddressError::NotAscii => Reply::non_ascii_recipient(),
        other => Reply::bad_recipient(other),
    })?;
    if let Some(word) = rest.split(' ').find(|word| !word.is_empty()) {
        let name = word.split_once('=').map_or(word, |(name, _)| name);
        return Err(Reply::unknown_parameter(&printable(name)));
    }
    match path.mailbox() {
        Some(mailbox) => Ok(Command::Rcpt(mailbox.clone(), RcptParameters::default())),
        None => Err(Reply::null_recipient()),
    }
}

fn auth(argument: &str) -> Result<Command, Reply> {
    let mut words = argument.split([' ', '\t']).filter(|word| !word.is_empty());
    let mechanism = words.next().ok_or_else(|| Reply::bad_argument("AUTH needs a mechanism"))?;
    let initial = words.next().map(str::to_owned);
    // RFC 4954 §4, sasl-mech of RFC 4422 §3.1.
    let legal = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
    if words.next().is_some() || mechanism.len() > 20 || !mechanism.bytes().all(legal) {
        return Err(Reply::bad_argument("expected AUTH mechanism [response]"));
    }
    Ok(Command::Auth(mechanism.to_ascii_uppercase(), initial))
}

/// `FROM:` or `TO:` in any case. RFC 5321 §3.3 allows no blank behind it, but many apps put one.
fn keyword<'a>(argument: &'a str, keyword: &str) -> Option<&'a str> {
    let (head, rest) = argument.split_at_checked(keyword.len())?;
    head.eq_ignore_ascii_case(keyword).then(|| rest.trim_start_matches(' '))
}

/// A client's own word, short and safe enough to stand in a reply.
fn printable(word: &str) -> String {
    word.chars().filter(char::is_ascii_graphic).take(40).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn code(line: &str) -> u16 {
        Command::parse(line.as_bytes()).expect_err(line).code()
    }

    #[test]
    fn commands_are_read_in_any_case_and_with_harmless_blanks() {
        let ok = |line: &str| Command::parse(line.as_bytes()).expect(line);
        assert_eq!(ok("ehlo app.example "), Command::Ehlo("app.example".into()));
        assert_eq!(ok("HELO (a)\"b"), Command::Helo("?a??b".into()));
        assert_eq!(ok("data"), Command::Data);
        assert_eq!(ok("NOOP whatever"), Command::Noop);
        assert_eq!(
            ok("mail from: <a@b.example> body=8bitmime size=99999999999999999999 AUTH=<>"),
            Command::Mail(
                ReversePath::try_from("a@b.example".to_owned()).unwrap(),
                MailParameters { size: Some(u64::MAX), eight_bit: true, ..MailParameters::default() }
            )
        );
        assert_eq!(ok("auth plain \tAGE="), Command::Auth("PLAIN".into(), Some("AGE=".into())));
    }

    #[test]
    fn wishes_about_reports_are_written() {
        let written = |command: Command| {
            let mut line = Vec::new();
            command.write_to(&mut line);
            String::from_utf8(line).unwrap()
        };
        let mail = MailParameters {
            size: Some(9),
            ret: Some(Ret::Hdrs),
            envid: Some("a b+c".into()),
            ..MailParameters::default()
        };
        assert_eq!(
            written(Command::Mail(ReversePath::NULL, mail)),
            "MAIL FROM:<> SIZE=9 RET=HDRS ENVID=a+20b+2Bc\r\n"
        );
        let to = address::Mailbox::parse("a@b.example").unwrap();
        let original = OriginalRecipient { kind: "utf-8".into(), address: "ä@b.example".into() };
        let rcpt = RcptParameters { notify: Some(Notify::DEFAULT), original: Some(original) };
        assert_eq!(
            written(Command::Rcpt(to.clone(), rcpt)),
            "RCPT TO:<a@b.example> NOTIFY=FAILURE,DELAY ORCPT=utf-8;\\x{E4}@b.example\r\n"
        );
        let long = OriginalRecipient { kind: "utf-8".into(), address: "ä".repeat(100) };
        let rcpt = RcptParameters { notify: Some(Notify::NEVER), original: Some(long) };
        assert_eq!(written(Command::Rcpt(to, rcpt)), "RCPT TO:<a@b.example> NOTIFY=NEVER\r\n");
    }

    #[test]
    fn ill_formed_commands_get_the_code_that_says_so() {
        for line in ["", "FOO", "XCLIENT ADDR=1.2.3.4", "GET / HTTP/1.1", "MAILFROM:<a@b>"] {
            assert_eq!(code(line), 500, "{line}");
        }
        for line in [
            "EHLO",
            "DATA x",
            "RSET x",
            "QUIT x",
            "STARTTLS x",
            "MAIL",
            "MAIL TO:<a@b.example>",
            "MAIL FROM:",
            "MAIL FROM:<a@b.example> SIZE=-1",
            "MAIL FROM:<a@b.example> SIZE=",
            "MAIL FROM:<a@b.example> BODY=9BIT",
            "RCPT TO:<>",
            "RCPT TO:<a>",
            "VRFY",
            "AUTH",
            "AUTH A B C",
            "NOOP \u{0}",
            "MAIL FROM:<a@b.example>\rX",
        ] {
            assert_eq!(code(line), 501, "{line}");
        }
        assert_eq!(code("EXPN list"), 502);
        assert_eq!(code("BDAT 10 LAST"), 502);
        assert_eq!(code("MAIL FROM:<ü@b.example>"), 553);
        assert_eq!(code("MAIL FROM:<a@b.example> RET=FULL"), 555);
        assert_eq!(code("RCPT TO:<a@b.example> NOTIFY=NEVER"), 555);
        assert_eq!(Command::parse(b"NOOP \xff").unwrap_err().code(), 501);
    }

    prop_compose! {
        fn mailbox()(local in "[a-z.+]{1,20}|\"[a-z @>\\]]{0,10}\"", domain in "[a-z]{1,9}(\\.[a-z]{2,5}){0,2}")
            -> address::Mailbox
        {
            address::Mailbox::parse(&format!("{local}@{domain}")).unwrap()
        }
    }

    fn command() -> impl Strategy<Value = Command> {
        prop_oneof![
            "[a-z.:_-]{1,30}".prop_map(Command::Ehlo),
            "[a-z.:_-]{1,30}".prop_map(Command::Helo),
            (proptest::option::of(mailbox()), any::<(Option<u64>, bool)>()).prop_map(
                |(path, (size, eight_bit))| {
                    Command::Mail(
                        path.map_or(ReversePath::NULL, Into::into),
                        MailParameters { size, eight_bit, ..MailParameters::default() },
                    )
                }
            ),
            mailbox().prop_map(|to| Command::Rcpt(to, RcptParameters::default())),
            ("[A-Z0-9-]{1,20}", proptest::option::of("[A-Za-z0-9+/=]{1,40}"))
                .prop_map(|(mechanism, initial)| Command::Auth(mechanism, initial)),
            proptest::sample::select(vec![
                Command::Data,
                Command::Rset,
                Command::Noop,
                Command::Vrfy,
                Command::Help,
                Command::Quit,
                Command::StartTls,
            ]),
        ]
    }

    proptest! {
        #[test]
        fn writing_and_parsing_is_identity(command in command()) {
            let mut line = Vec::new();
            command.write_to(&mut line);
            let line = line.strip_suffix(b"\r\n").unwrap();
            prop_assert_eq!(Command::parse(line), Ok(command));
        }

        #[test]
        fn whatever_is_accepted_is_written_without_a_line_break(line in "(MAIL FROM:|RCPT TO:|EHLO |AUTH ).{0,60}") {
            if let Ok(command) = Command::parse(line.as_bytes()) {
                let mut written = Vec::new();
                command.write_to(&mut written);
                let body = written.strip_suffix(b"\r\n").unwrap();
                prop_assert!(!body.iter().any(|b| b.is_ascii_control()));
                prop_assert_eq!(Command::parse(body), Ok(command));
            }
        }
    }
}
