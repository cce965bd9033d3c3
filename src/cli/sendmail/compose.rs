//! From what sendmail was given to an envelope and a whole header.
//!
//! Missing From, Date and Message-ID are put in front (RFC 6409 §8); with `-t` the header names
//! recipients, and its Bcc goes. Everything else stays as it is.

use lettre::message::{
    Mailbox as HeaderMailbox, Mailboxes,
    header::{From as FromField, Headers},
};
use mail_parser::{HeaderName, MessageParser};

use super::{arguments::Arguments, input::name};
use crate::{
    cli::exit::{Exit, Failure},
    clock::Timestamp,
    mail::envelope::{Addressee, Envelope, Handling},
    smtp::{
        address::{Mailbox, ReversePath},
        parameter::Body,
    },
};

/// Who runs the command.
#[derive(Clone, Debug)]
pub(super) struct Author {
    /// The login name.
    pub(super) login: String,
    /// The name for people, if there is one.
    pub(super) full_name: Option<String>,
    /// What unqualified addresses are completed by.
    pub(super) hostname: String,
}

/// What is known of a message before its body is read.
#[derive(Debug)]
pub(super) struct Draft {
    pub(super) envelope: Envelope,
    /// The header section, without the empty line behind it.
    pub(super) header: Vec<u8>,
}

impl Draft {
    /// Makes the envelope, and the header whole.
    pub(super) fn of(
        arguments: &Arguments,
        fields: Vec<Vec<u8>>,
        author: &Author,
        now: Timestamp,
    ) -> Result<Self, Failure> {
        let own = mailbox(&author.login, &author.hostname)?;
        let reverse_path = match arguments.sender.as_deref().map(str::trim) {
            None => ReversePath::from(own.clone()),
            // RFC 5321 §4.5.5: nobody is to hear of it.
            Some("" | "<>") => ReversePath::NULL,
            Some(text) => match &addresses(text.as_bytes(), &author.hostname)?[..] {
                [one] => one.clone().into(),
                _ => return Err(Failure::new(Exit::DATA, format!("-f {text}: one address is wanted"))),
            },
        };
        let recipients = recipients(arguments, &fields, author)?;
        let handling = Handling {
            utf8: !reverse_path.as_str().is_ascii()
                || recipients.iter().any(|to| !to.mailbox.as_str().is_ascii()),
            ret: arguments.ret,
            envid: arguments.envid.clone(),
            ..Handling::default()
        };

        let has = |wanted: &str| fields.iter().any(|field| is(field, wanted));
        let mut header = Vec::new();
        if !has("from") {
            let from = reverse_path.mailbox().unwrap_or(&own);
            let full_name = arguments.full_name.as_ref().or(author.full_name.as_ref());
            header.extend_from_slice(from_field(from, full_name).as_bytes());
        }
        if !has("date") {
            header.extend_from_slice(format!("Date: {}\r\n", now.rfc5322()).as_bytes());
        }
        if !has("message-id") {
            let id = format!("{:016x}.{:016x}", fastrand::u64(..), fastrand::u64(..));
            header.extend_from_slice(format!("Message-ID: <{id}@{}>\r\n", author.hostname).as_bytes());
        }
        for field in fields {
            if !(arguments.header_recipients && (is(&field, "bcc") || is(&field, "resent-bcc"))) {
                header.extend_from_slice(&field);
            }
        }
        Ok(Self { envelope: Envelope { reverse_path, recipients, handling }, header })
    }

    /// Takes note of what the body turned out to be made of.
    pub(super) fn set_eight_bit(&mut self) {
        self.envelope.handling.body = Body::EightBit;
    }
}

/// Those of the arguments, then with `-t` those of the header; each once.
fn recipients(arguments: &Arguments, fields: &[Vec<u8>], author: &Author) -> Result<Vec<Addressee>, Failure> {
    let mut found: Vec<Mailbox> = Vec::new();
    for text in &arguments.addresses {
        found.extend(addresses(text.as_bytes(), &author.hostname)?);
    }
    if arguments.header_recipients {
        // RFC 5322 §3.6.6: who sends it again means others than it was first for.
        let resent = ["resent-to", "resent-cc", "resent-bcc"];
        let again = fields.iter().any(|field| resent.iter().any(|name| is(field, name)));
        let wanted = if again { resent } else { ["to", "cc", "bcc"] };
        for field in fields.iter().filter(|field| wanted.iter().any(|name| is(field, name))) {
            let value = memchr::memchr(b':', field).map_or(&field[..0], |colon| &field[colon + 1..]);
            found.extend(addresses(value, &author.hostname)?);
        }
    }
    let mut each: Vec<Addressee> = Vec::new();
    for mailbox in found {
        if !each.iter().any(|known| known.mailbox == mailbox) {
            each.push(Addressee { notify: arguments.notify, ..mailbox.into() });
        }
    }
    match (each.is_empty(), arguments.header_recipients) {
        (false, _) => Ok(each),
        (true, true) => Err(Failure::new(
            Exit::DATA,
            "the mail was not sent: its header names no recipient in To, Cc or Bcc",
        )),
        (true, false) => Err(Failure::new(
            Exit::USAGE,
            "the mail was not sent: name its recipients, or have them read from its header by -t",
        )),
    }
}

fn is(field: &[u8], wanted: &str) -> bool {
    name(field).is_some_and(|name| name.eq_ignore_ascii_case(wanted.as_bytes()))
}

/// The addresses of a list as a header field has it: names, comments and groups aside.
fn addresses(value: &[u8], hostname: &str) -> Result<Vec<Mailbox>, Failure> {
    let field = [b"To: ", value, b"\r\n\r\n"].concat();
    let parsed = MessageParser::new().header_address(HeaderName::To).parse_headers(&field);
    let Some(list) = parsed.as_ref().and_then(|message| message.to()) else { return Ok(Vec::new()) };
    let one = |address: &mail_parser::Addr<'_>| match (&address.address, &address.name) {
        (Some(address), _) => mailbox(address, hostname),
        // A user of this machine: `root`.
        (None, Some(name)) => mailbox(name, hostname),
        (None, None) => mailbox("", hostname),
    };
    list.iter().map(one).collect()
}

fn mailbox(text: &str, hostname: &str) -> Result<Mailbox, Failure> {
    let qualified = if text.contains('@') { text.to_owned() } else { format!("{text}@{hostname}") };
    Mailbox::parse(&qualified).map_err(|error| {
        Failure::new(Exit::DATA, format!("the mail was not sent: {text:?} is no address: {error}"))
    })
}

fn from_field(from: &Mailbox, full_name: Option<&String>) -> String {
    let full_name = full_name.map(|name| name.trim().to_owned()).filter(|name| !name.is_empty());
    match from.as_str().parse() {
        Ok(address) => {
            let mut headers = Headers::new();
            headers.set(FromField::from(Mailboxes::from(HeaderMailbox::new(full_name, address))));
            headers.to_string()
        }
        // Beyond what lettre takes for an address; it is one, or the envelope would not hold it.
        Err(_) => format!("From: <{from}>\r\n"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn author() -> Author {
        Author { login: "www-data".into(), full_name: None, hostname: "app.example".into() }
    }

    fn draft(arguments: &Arguments, header: &[&str]) -> Result<(String, Vec<String>, String), Failure> {
        let fields = header.iter().map(|field| format!("{field}\r\n").into_bytes()).collect();
        let draft = Draft::of(arguments, fields, &author(), Timestamp(1_340_000_000_000))?;
        let to = draft.envelope.recipients.iter().map(|to| to.mailbox.to_string()).collect();
        let from = draft.envelope.reverse_path.to_string();
        Ok((from, to, String::from_utf8(draft.header).expect("UTF-8")))
    }

    fn to(addresses: &[&str]) -> Arguments {
        Arguments { addresses: addresses.iter().map(ToString::to_string).collect(), ..Arguments::default() }
    }

    fn by_header() -> Arguments {
        Arguments { header_recipients: true, ..Arguments::default() }
    }

    #[test]
    fn addresses_are_found_in_every_form() {
        for (list, wanted) in [
            ("a@b.example", &["a@b.example"][..]),
            ("a@b.example, c@d.example,,", &["a@b.example", "c@d.example"]),
            ("A Name <a@b.example>", &["a@b.example"]),
            (
                "\"Name, with a comma\" <a@b.example>,\r\n c@d.example (of course, D)",
                &["a@b.example", "c@d.example"],
            ),
            ("=?utf-8?q?J=C3=BCrgen=2C?= <a@b.example>", &["a@b.example"]),
            (
                "Friends: a@b.example, C <c@d.example>;, e@f.example",
                &["a@b.example", "c@d.example", "e@f.example"],
            ),
            ("undisclosed-recipients:;", &[]),
            ("", &[]),
            ("root", &["root@app.example"]),
            ("root, postmaster", &["root@app.example", "postmaster@app.example"]),
            ("a@b.example, a@b.example", &["a@b.example"]),
        ] {
            let field = format!("To: {list}");
            let got = draft(&by_header(), &[&field, "Cc: other@x.example"]).map(|(_, to, _)| to);
            let wanted: Vec<String> =
                wanted.iter().chain(&["other@x.example"]).map(ToString::to_string).collect();
            assert_eq!(got, Ok(wanted), "{list}");
        }
    }

    #[test]
    fn what_is_no_address_is_refused_rather_than_guessed() {
        for text in ["a@", "@b.example", "a b c", "a@b.example c@d.example", "<a@b..example>"] {
            assert_eq!(draft(&to(&[text]), &[]).map_err(|failure| failure.exit), Err(Exit::DATA), "{text}");
        }
    }

    #[test]
    fn bcc_is_read_and_removed_for_t_only() {
        let header = [
            "From: a@b.example",
            "Date: x",
            "Message-ID: <1@x>",
            "To: t@x.example",
            "BCC: b@x.example",
            "Cc: c@x.example",
        ];
        let kept: String = header
            .iter()
            .filter(|field| !field.starts_with("BCC"))
            .map(|field| format!("{field}\r\n"))
            .collect();
        let (_, everybody, written) = draft(&by_header(), &header).expect("a draft");
        assert_eq!(
            (everybody, written),
            (vec!["t@x.example".into(), "b@x.example".into(), "c@x.example".into()], kept)
        );
        let (_, named, written) = draft(&to(&["n@x.example"]), &header).expect("a draft");
        assert_eq!(named, ["n@x.example"]);
        assert!(written.contains("BCC: b@x.example\r\n"));
    }

    #[test]
    fn who_sends_it_again_means_the_resent_fields() {
        let header = ["To: t@x.example", "Resent-To: r@x.example", "Resent-Bcc: s@x.example"];
        let (_, everybody, written) = draft(&by_header(), &header).expect("a draft");
        assert_eq!(everybody, ["r@x.example", "s@x.example"]);
        assert!(!written.contains("Resent-Bcc"));
    }

    #[test]
    fn recipients_of_both_kinds_are_joined_and_none_is_an_error() {
        let both = Arguments { header_recipients: true, ..to(&["n@x.example"]) };
        assert_eq!(draft(&both, &["To: t@x.example"]).expect("a draft").1, ["n@x.example", "t@x.example"]);
        let exit = |arguments: &Arguments| draft(arguments, &["Subject: x"]).map_err(|failure| failure.exit);
        assert_eq!(exit(&by_header()), Err(Exit::DATA));
        assert_eq!(exit(&to(&[])), Err(Exit::USAGE));
    }

    #[test]
    fn only_missing_fields_are_added() {
        let (from, _, header) = draft(&to(&["n@x.example"]), &["Subject: x"]).expect("a draft");
        assert_eq!(from, "<www-data@app.example>");
        let lines: Vec<&str> = header.lines().collect();
        assert_eq!(lines[..2], ["From: www-data@app.example", "Date: Mon, 18 Jun 2012 06:13:20 +0000"]);
        assert!(lines[2].starts_with("Message-ID: <") && lines[2].ends_with("@app.example>"), "{header}");
        assert_eq!(lines[3..], ["Subject: x"]);
    }

    #[test]
    fn sender_and_name_make_the_from_field() {
        let with = |sender: &str, full_name: &str| Arguments {
            sender: Some(sender.into()),
            full_name: Some(full_name.into()),
            ..to(&["n@x.example"])
        };
        for (sender, full_name, path, field) in [
            ("s@x.example", "", "<s@x.example>", "From: s@x.example"),
            ("The App <s@x.example>", "Cron Daemon", "<s@x.example>", "From: \"Cron Daemon\" <s@x.example>"),
            ("s@x.example", "Jürgen", "<s@x.example>", "From: =?utf-8?b?SsO8cmdlbg==?= <s@x.example>"),
            ("<>", "", "<>", "From: www-data@app.example"),
            ("", "", "<>", "From: www-data@app.example"),
            ("app", "", "<app@app.example>", "From: app@app.example"),
        ] {
            let (from, _, header) = draft(&with(sender, full_name), &[]).expect(sender);
            assert_eq!((from.as_str(), header.lines().next()), (path, Some(field)), "{sender}");
        }
        assert_eq!(
            draft(&with("a@x.example, b@x.example", ""), &[]).map_err(|failure| failure.exit),
            Err(Exit::DATA)
        );
    }
}
