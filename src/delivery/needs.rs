//! What a message needs of its upstream beyond plain SMTP, and what may be said to it.
//!
//! Decided before a word about the message is said, from what EHLO told: an upstream that lacks what a
//! message needs never gets a changed message, and never gets it raw.

use super::{Forward, Message};
use crate::{
    clock::Timestamp,
    mail::{envelope::DeliverBy, outcome::Scope},
    smtp::{
        address::Mailbox,
        command::Command,
        esmtp::{MailParameters, RcptParameters},
        extension::Capabilities,
        parameter::{Body, By},
        reply::Enhanced,
    },
};

/// The message is larger than the upstream takes.
pub(super) const TOO_LARGE: Enhanced = Enhanced(5, 3, 4);

/// Something that the upstream lacks.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Lack {
    /// What it amounts to.
    pub status: Enhanced,
    /// In words for the sender.
    pub words: String,
    /// For whom: the transaction's rest may go in another, the others never.
    pub scope: Scope,
}

impl Lack {
    fn new(scope: Scope, status: Enhanced, words: impl Into<String>) -> Self {
        Self { status, words: words.into(), scope }
    }
}

/// What the upstream lacks for the message as a whole. `verified`: the connection is in TLS, and the
/// upstream has shown that it is the one we were told of; `documented`: the size of its largest message,
/// where it doesn't say; `now` is what is left of a time counts from.
pub(super) fn of_message(
    message: &Message<'_>,
    known: &Capabilities,
    documented: Option<u64>,
    verified: bool,
    now: Timestamp,
) -> Option<Lack> {
    let lack = |status, words: &str| Some(Lack::new(Scope::Message, status, words));
    // RFC 1870 §6.1.
    if let Some(max) = known.size.flatten().or(documented)
        && message.size() > max
    {
        return lack(TOO_LARGE, &format!("the upstream takes no message larger than {max} octets"));
    }
    match message.handling.body {
        // RFC 6152 §3: without the extension the eighth bit may be stripped on the way.
        Body::EightBit if !known.eight_bit_mime => {
            return lack(
                Enhanced(5, 6, 3),
                "the message holds 8-bit text, which the upstream does not take (no 8BITMIME)",
            );
        }
        // RFC 3030 §3: by BDAT and to a server that offers both, or not at all.
        Body::Binary if !(known.binary_mime && known.chunking) => {
            return lack(
                Enhanced(5, 6, 3),
                "the message is binary, which the upstream does not take (no BINARYMIME with CHUNKING)",
            );
        }
        _ => {}
    }
    // RFC 6531 §3.6: what needs SMTPUTF8 goes to nobody who does not offer it.
    if (message.handling.utf8_header || !message.reverse_path.is_ascii()) && !known.smtp_utf8 {
        return lack(
            Enhanced(5, 6, 7),
            "the message's sender or header needs SMTPUTF8, which the upstream does not offer",
        );
    }
    // RFC 8689 §4.2.
    if message.handling.require_tls && !(verified && known.require_tls) {
        return lack(
            Enhanced(5, 7, 30),
            "the sender requires TLS all the way (REQUIRETLS), which the upstream does not promise",
        );
    }
    // RFC 2852 §4: whoever wants a message back rather than late has it go only by those who keep to that.
    if let Some(by) = message.handling.deliver_by.filter(|by| by.or_return) {
        let Some(shortest) = known.deliver_by else {
            return lack(
                Enhanced(5, 3, 3),
                "the sender wants the message back rather than late (BY with R), which the upstream does not \
                 promise (no DELIVERBY)",
            );
        };
        if left(by, shortest, now).is_none() {
            return lack(
                Enhanced(5, 4, 7),
                &format!(
                    "less is left of the time that the sender gave than the upstream needs ({shortest} s)"
                ),
            );
        }
    }
    None
}

/// What the upstream lacks for the recipient at that place among those of this attempt.
pub(super) fn of_recipient(place: usize, to: &Mailbox, known: &Capabilities) -> Option<Lack> {
    if !to.is_ascii() && !known.smtp_utf8 {
        return Some(Lack::new(
            Scope::Recipient,
            Enhanced(5, 6, 7),
            "the address needs SMTPUTF8, which the upstream does not offer",
        ));
    }
    // RFC 9422 §4.2: what it would refuse with 452 need not be said.
    let max = known.recipients_max.filter(|max| place >= *max)?;
    Some(Lack::new(
        Scope::Transaction,
        Enhanced(4, 5, 3),
        format!("the upstream takes {max} recipients at once: the rest follows in another transaction"),
    ))
}

/// MAIL, with the parameters that this upstream knows and this message needs.
/// `now` is what is left of a time counts from.
pub(super) fn mail(message: &Message<'_>, known: &Capabilities, now: Timestamp) -> Command {
    let handling = message.handling;
    let needs_utf8 = handling.utf8 || !message.reverse_path.is_ascii();
    let parameters = MailParameters {
        size: known.size.map(|_| message.size()),
        body: handling.body,
        utf8: known.smtp_utf8 && (needs_utf8 || message.recipients.iter().any(|to| !to.mailbox.is_ascii())),
        ret: handling.ret.filter(|_| known.dsn),
        envid: handling.envid.clone().filter(|_| known.dsn),
        require_tls: handling.require_tls,
        // RFC 6710 §4.4: passed on as it came.
        priority: Some(handling.priority).filter(|priority| known.priority && *priority != 0),
        hold: None,
        deliver_by: handling.deliver_by.and_then(|by| left(by, known.deliver_by?, now)),
    };
    Command::Mail(message.reverse_path.clone(), parameters)
}

/// RFC 2852 §4: the time goes on as what is left of it, to an upstream that takes so short a one.
fn left(by: DeliverBy, shortest: u32, now: Timestamp) -> Option<By> {
    let (left, past) = (by.time.since(now).as_secs(), now.since(by.time).as_secs());
    let seconds = if left > 0 { i64::try_from(left).ok()? } else { -i64::try_from(past).ok()? };
    let fits = !by.or_return || seconds >= i64::from(shortest.max(1));
    let seconds = seconds.clamp(-BY_MAX, BY_MAX).try_into().ok()?;
    fits.then_some(By { seconds, or_return: by.or_return, trace: by.trace })
}

/// RFC 2852 §4.1.2: nine digits.
const BY_MAX: i64 = 999_999_999;

/// RFC 3461 §5.2: the wishes go on to an upstream that knows them as they came, and to no other.
pub(super) fn rcpt(to: &Forward<'_>, known: &Capabilities) -> Command {
    let parameters = if known.dsn {
        RcptParameters { notify: to.notify, original: to.original.cloned() }
    } else {
        RcptParameters::default()
    };
    Command::Rcpt(to.mailbox.clone(), parameters)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::{
        mail::{content::Content, envelope::Handling},
        smtp::{
            address::ReversePath,
            parameter::{Notify, OriginalRecipient, Ret},
            reply::Reply,
        },
    };

    /// What the upstream lacks for the message, then for each recipient, as enhanced codes; then MAIL.
    #[track_caller]
    fn check(
        keywords: &str,
        from: &str,
        to: &[&str],
        handling: Handling,
        expected: &[&str],
        mail_line: &str,
    ) {
        let known = Capabilities::from_reply(&Reply::new(250, None, format!("up\n{keywords}")));
        let mailboxes: Vec<Mailbox> = to.iter().map(|text| Mailbox::parse(text).unwrap()).collect();
        let content = Content::Memory(Bytes::from_static(b"x\r\n"));
        let message = Message {
            reverse_path: &ReversePath::try_from(from.to_owned()).unwrap(),
            recipients: mailboxes
                .iter()
                .map(|mailbox| Forward { mailbox, notify: None, original: None })
                .collect(),
            handling: &handling,
            content: &content,
            head: None,
        };
        let shown = |lack: Option<Lack>| lack.map_or("ok".to_owned(), |lack| lack.status.to_string());
        let documented = keywords.contains("X-DOCUMENTED").then_some(2);
        let mut got = vec![shown(of_message(
            &message,
            &known,
            documented,
            keywords.contains("X-VERIFIED"),
            Timestamp(0),
        ))];
        got.extend(mailboxes.iter().enumerate().map(|(place, to)| shown(of_recipient(place, to, &known))));
        assert_eq!(got, expected, "{keywords}");
        let mut line = Vec::new();
        mail(&message, &known, Timestamp(0)).write_to(&mut line);
        assert_eq!(String::from_utf8(line).unwrap().trim_end(), mail_line, "{keywords}");
    }

    /// RFC 3461 §5.2, every combination: with DSN all goes on as it came, without it nothing does.
    #[test]
    fn wishes_for_reports_go_on_as_they_came_or_not_at_all() {
        let rets = [(None, ""), (Some(Ret::Full), " RET=FULL"), (Some(Ret::Hdrs), " RET=HDRS")];
        let envids = [(None, ""), (Some("QQ+1=2"), " ENVID=QQ+2B1+3D2")];
        let originals =
            [(None, ""), (Some("rfc822;anna+2Bx@old.example"), " ORCPT=rfc822;anna+2Bx@old.example")];
        let notifies = [
            (None, ""),
            (Some("NEVER"), " NOTIFY=NEVER"),
            (Some("SUCCESS"), " NOTIFY=SUCCESS"),
            (Some("FAILURE"), " NOTIFY=FAILURE"),
            (Some("DELAY"), " NOTIFY=DELAY"),
            (Some("SUCCESS,FAILURE"), " NOTIFY=SUCCESS,FAILURE"),
            (Some("SUCCESS,DELAY"), " NOTIFY=SUCCESS,DELAY"),
            (Some("FAILURE,DELAY"), " NOTIFY=FAILURE,DELAY"),
            (Some("SUCCESS,FAILURE,DELAY"), " NOTIFY=SUCCESS,FAILURE,DELAY"),
        ];
        let said = |command: Command| {
            let mut line = Vec::new();
            command.write_to(&mut line);
            String::from_utf8(line).unwrap().trim_end().to_owned()
        };
        let known = [false, true].map(|dsn| Capabilities { dsn, ..Capabilities::default() });
        let mailbox = Mailbox::parse("a@b.example").unwrap();
        let content = Content::Memory(Bytes::from_static(b"x\r\n"));
        let mut cases = 0;
        for (ret, ret_said) in rets {
            for (envid, envid_said) in envids {
                let handling = Handling { ret, envid: envid.map(str::to_owned), ..Handling::default() };
                let message = Message {
                    reverse_path: &ReversePath::NULL,
                    recipients: Vec::new(),
                    handling: &handling,
                    content: &content,
                    head: None,
                };
                let mail = |known| said(mail(&message, known, Timestamp(0)));
                assert_eq!(mail(&known[0]), "MAIL FROM:<>");
                assert_eq!(mail(&known[1]), format!("MAIL FROM:<>{ret_said}{envid_said}"));
                for (original, original_said) in originals {
                    let original = original.map(|text| OriginalRecipient::parse(text).unwrap());
                    for (notify, notify_said) in notifies {
                        let notify = notify.map(|words| Notify::parse(words).unwrap());
                        let to = Forward { mailbox: &mailbox, notify, original: original.as_ref() };
                        assert_eq!(said(rcpt(&to, &known[0])), "RCPT TO:<a@b.example>");
                        let expected = format!("RCPT TO:<a@b.example>{notify_said}{original_said}");
                        assert_eq!(said(rcpt(&to, &known[1])), expected);
                        cases += 1;
                    }
                }
            }
        }
        assert_eq!(cases, 3 * 2 * 2 * 9);
    }

    #[test]
    fn utf8_goes_only_where_it_is_taken_and_ascii_goes_everywhere() {
        let to = ["a@b.example", "ü@b.example"];
        let asked = || Handling { utf8: true, ..Handling::default() };
        let header = || Handling { utf8: true, utf8_header: true, ..Handling::default() };
        check("SMTPUTF8", "", &to, asked(), &["ok", "ok", "ok"], "MAIL FROM:<> SMTPUTF8");
        check("", "", &to, asked(), &["ok", "ok", "5.6.7"], "MAIL FROM:<>");
        check("", "", &to[..1], header(), &["5.6.7", "ok"], "MAIL FROM:<>");
        check("", "ü@a.example", &to[..1], asked(), &["5.6.7", "ok"], "MAIL FROM:<ü@a.example>");
        check("SMTPUTF8", "", &to[..1], Handling::default(), &["ok", "ok"], "MAIL FROM:<>");
        // A message of ours, as a report, has asked for nothing, and goes to whom it must.
        check("SMTPUTF8", "", &to[1..], Handling::default(), &["ok", "ok"], "MAIL FROM:<> SMTPUTF8");
    }

    #[test]
    fn who_requires_tls_gets_it_from_a_verified_upstream_that_promises_it() {
        let handling = || Handling { require_tls: true, ..Handling::default() };
        let line = "MAIL FROM:<> REQUIRETLS";
        check("REQUIRETLS\nX-VERIFIED", "", &["a@b.example"], handling(), &["ok", "ok"], line);
        check("REQUIRETLS", "", &["a@b.example"], handling(), &["5.7.30", "ok"], line);
        check("X-VERIFIED", "", &["a@b.example"], handling(), &["5.7.30", "ok"], line);
    }

    #[test]
    fn content_goes_only_where_it_is_taken_as_it_is() {
        let body = |body| Handling { body, ..Handling::default() };
        let (to, ok) = (["a@b.example"], ["ok", "ok"]);
        check("", "", &to, body(Body::EightBit), &["5.6.3", "ok"], "MAIL FROM:<> BODY=8BITMIME");
        check("8BITMIME", "", &to, body(Body::EightBit), &ok, "MAIL FROM:<> BODY=8BITMIME");
        check("BINARYMIME", "", &to, body(Body::Binary), &["5.6.3", "ok"], "MAIL FROM:<> BODY=BINARYMIME");
        let both = "BINARYMIME\nCHUNKING";
        check(both, "", &to, body(Body::Binary), &ok, "MAIL FROM:<> BODY=BINARYMIME");
        check("X-DOCUMENTED", "", &to, body(Body::SevenBit), &["5.3.4", "ok"], "MAIL FROM:<>");
        check("SIZE 9\nX-DOCUMENTED", "", &to, body(Body::SevenBit), &ok, "MAIL FROM:<> SIZE=3");
        check("SIZE 2", "", &to, body(Body::SevenBit), &["5.3.4", "ok"], "MAIL FROM:<> SIZE=3");
    }

    #[test]
    fn recipients_beyond_the_upstreams_limit_wait_for_another_transaction() {
        let to = ["a@b.example", "c@b.example", "d@b.example"];
        let expected = ["ok", "ok", "ok", "4.5.3"];
        check("LIMITS RCPTMAX=2", "", &to, Handling::default(), &expected, "MAIL FROM:<>");
    }

    #[test]
    fn priority_is_passed_on_to_who_knows_it() {
        let handling = || Handling { priority: -3, ..Handling::default() };
        let (to, ok) = (["a@b.example"], ["ok", "ok"]);
        check("MT-PRIORITY", "", &to, handling(), &ok, "MAIL FROM:<> MT-PRIORITY=-3");
        check("", "", &to, handling(), &ok, "MAIL FROM:<>");
    }

    #[test]
    fn what_is_left_of_a_time_is_passed_on_to_who_takes_so_short_a_one() {
        let by = |seconds, or_return| Handling {
            deliver_by: Some(DeliverBy {
                time: Timestamp(0).after(std::time::Duration::from_secs(seconds)),
                or_return,
                trace: true,
            }),
            ..Handling::default()
        };
        let (to, ok) = (["a@b.example"], ["ok", "ok"]);
        check("DELIVERBY", "", &to, by(90, true), &ok, "MAIL FROM:<> BY=90;RT");
        check("DELIVERBY 60", "", &to, by(90, false), &ok, "MAIL FROM:<> BY=90;NT");
        check("DELIVERBY", "", &to, by(0, false), &ok, "MAIL FROM:<> BY=0;NT");
        check("", "", &to, by(90, false), &ok, "MAIL FROM:<>");
        // Who wants it back gets it back, rather than have it go on without a promise.
        check("DELIVERBY 100", "", &to, by(90, true), &["5.4.7", "ok"], "MAIL FROM:<>");
        check("DELIVERBY", "", &to, by(0, true), &["5.4.7", "ok"], "MAIL FROM:<>");
        check("", "", &to, by(90, true), &["5.3.3", "ok"], "MAIL FROM:<>");
    }
}
