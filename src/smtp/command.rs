//! What a client may say (RFC 5321 §4.1.1): one line in, one value out, and back.

use std::borrow::Cow;

use super::{
    address::{self, ReversePath},
    esmtp::{MailParameters, RcptParameters},
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
    /// RFC 3030 §2: so many octets of content follow at once; whether they are the last.
    Bdat(u64, bool),
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
            "BDAT" => bdat(argument),
            "DATA" => alone(argument, Self::Data),
            "RSET" => alone(argument, Self::Rset),
            "QUIT" => alone(argument, Self::Quit),
            "STARTTLS" => alone(argument, Self::StartTls),
            // RFC 5321 §4.1.1.9: the argument of NOOP is ignored.
            "NOOP" => Ok(Self::Noop),
            "HELP" => Ok(Self::Help),
            "VRFY" => name("VRFY", argument).map(|()| Self::Vrfy),
            "AUTH" => auth(argument),
            "EXPN" => Err(Reply::not_implemented("EXPN")),
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
                parameters.write_to(&mut line);
                line.into()
            }
            Self::Rcpt(mailbox, parameters) => {
                let mut line = format!("RCPT TO:<{mailbox}>");
                parameters.write_to(&mut line);
                line.into()
            }
            Self::Data => "DATA".into(),
            Self::Bdat(size, last) => format!("BDAT {size}{}", if *last { " LAST" } else { "" }).into(),
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
    let (path, rest) = address::parse_path(path).map_err(Reply::bad_sender)?;
    let parameters = MailParameters::read(rest)?;
    // RFC 6531 §3.5: who did not ask for SMTPUTF8 can't use such an address.
    if !path.is_ascii() && !parameters.utf8 {
        return Err(Reply::non_ascii_address());
    }
    Ok(Command::Mail(path, parameters))
}

fn rcpt(argument: &str) -> Result<Command, Reply> {
    let path = keyword(argument, "TO:").ok_or_else(|| Reply::bad_argument("expected RCPT TO:<address>"))?;
    let (path, rest) = address::parse_path(path).map_err(Reply::bad_recipient)?;
    let parameters = RcptParameters::read(rest)?;
    match path.mailbox() {
        Some(mailbox) => Ok(Command::Rcpt(mailbox.clone(), parameters)),
        None => Err(Reply::null_recipient()),
    }
}

/// RFC 3030 §2. A size that is no number can't be read over: what follows is then taken for commands.
fn bdat(argument: &str) -> Result<Command, Reply> {
    let (size, last) = match argument.split_once(' ') {
        None => (argument, false),
        Some((size, word)) if word.trim_start_matches(' ').eq_ignore_ascii_case("LAST") => (size, true),
        Some(_) => return Err(Reply::bad_argument("expected BDAT size [LAST]")),
    };
    let digits = !size.is_empty() && size.bytes().all(|b| b.is_ascii_digit());
    let size = size.parse().ok().filter(|size| digits && *size <= i64::MAX as u64);
    size.map(|size| Command::Bdat(size, last)).ok_or_else(|| Reply::bad_argument("the size is not valid"))
}

/// RFC 6531 §3.7.4.1: VRFY and EXPN may say SMTPUTF8 behind the name; without it the name is ASCII.
fn name(verb: &'static str, argument: &str) -> Result<(), Reply> {
    if argument.is_empty() {
        return Err(Reply::bad_argument(format!("{verb} needs a name")));
    }
    let utf8 = argument.rsplit(' ').next().is_some_and(|last| last.eq_ignore_ascii_case("SMTPUTF8"));
    if argument.is_ascii() || utf8 { Ok(()) } else { Err(Reply::non_ascii_address()) }
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::smtp::parameter::{Body, By, Hold, Notify, OriginalRecipient, Ret};

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
        assert_eq!(ok("bdat 0 last"), Command::Bdat(0, true));
        assert_eq!(ok("BDAT 9223372036854775807"), Command::Bdat(i64::MAX as u64, false));
        assert_eq!(ok("NOOP whatever"), Command::Noop);
        assert_eq!(
            ok("mail from: <a@b.example> body=8bitmime size=99999999999999999999 AUTH=<>"),
            Command::Mail(
                ReversePath::try_from("a@b.example".to_owned()).unwrap(),
                MailParameters { size: Some(u64::MAX), body: Body::EightBit, ..MailParameters::default() }
            )
        );
        assert_eq!(ok("auth plain \tAGE="), Command::Auth("PLAIN".into(), Some("AGE=".into())));
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
            "BDAT",
            "BDAT LAST",
            "BDAT -1",
            "BDAT +1",
            "BDAT 0x10",
            "BDAT 1 FIRST",
            "BDAT 1 LAST LAST",
            "BDAT 9223372036854775808",
            "AUTH",
            "AUTH A B C",
            "NOOP \u{0}",
            "MAIL FROM:<a@b.example>\rX",
        ] {
            assert_eq!(code(line), 501, "{line}");
        }
        assert_eq!(code("EXPN list"), 502);
        assert_eq!(code("MAIL FROM:<ü@b.example>"), 553);
        assert_eq!(code("VRFY ü"), 553);
        assert_eq!(code("MAIL FROM:<a@b.example> X=1"), 555);
        assert_eq!(code("RCPT TO:<a@b.example> RET=FULL"), 555);
        assert_eq!(Command::parse(b"NOOP \xff").unwrap_err().code(), 501);
    }

    prop_compose! {
        fn mailbox()(local in "[a-z.+üж]{1,20}|\"[a-z @>\\]]{0,10}\"", domain in "[a-zß]{1,9}(\\.[a-z]{2,5}){0,2}")
            -> address::Mailbox
        {
            address::Mailbox::parse(&format!("{local}@{domain}")).unwrap()
        }
    }

    prop_compose! {
        fn mail_parameters()(
            size in proptest::option::of(any::<u64>()),
            body in proptest::sample::select(vec![Body::SevenBit, Body::EightBit, Body::Binary]),
            flags: [bool; 3],
            ret in proptest::option::of(proptest::sample::select(vec![Ret::Full, Ret::Hdrs])),
            envid in proptest::option::of("[ -~]{1,33}"),
            priority in proptest::option::of(-9i8..=9),
            hold in proptest::option::of(prop_oneof![
                (1u32..1_000_000_000).prop_map(Hold::For),
                (0u64..100_000_000_000).prop_map(|seconds| Hold::Until(seconds * 1_000)),
            ]),
            seconds in proptest::option::of(1i32..1_000_000_000),
        ) -> MailParameters {
            let [require_tls, or_return, trace] = flags;
            let deliver_by = seconds.map(|seconds| By { seconds, or_return, trace });
            MailParameters { size, body, utf8: true, ret, envid, require_tls, priority, hold, deliver_by }
        }
    }

    prop_compose! {
        fn rcpt_parameters()(
            notify in proptest::option::of(any::<[bool; 3]>()),
            original in proptest::option::of(("rfc822|utf-8", "[ -~üж]{1,60}")),
        ) -> RcptParameters {
            RcptParameters {
                notify: notify.map(|[success, failure, delay]| Notify { success, failure, delay }),
                original: original.map(|(kind, address)| OriginalRecipient { kind, address }),
            }
        }
    }

    fn command() -> impl Strategy<Value = Command> {
        prop_oneof![
            "[a-z.:_-]{1,30}".prop_map(Command::Ehlo),
            "[a-z.:_-]{1,30}".prop_map(Command::Helo),
            (proptest::option::of(mailbox()), mail_parameters()).prop_map(|(path, parameters)| {
                Command::Mail(path.map_or(ReversePath::NULL, Into::into), parameters)
            }),
            (mailbox(), rcpt_parameters()).prop_map(|(to, parameters)| Command::Rcpt(to, parameters)),
            ("[A-Z0-9-]{1,20}", proptest::option::of("[A-Za-z0-9+/=]{1,40}"))
                .prop_map(|(mechanism, initial)| Command::Auth(mechanism, initial)),
            (0..=i64::MAX as u64, any::<bool>()).prop_map(|(size, last)| Command::Bdat(size, last)),
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
