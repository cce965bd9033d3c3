//! The parameters of MAIL and RCPT (RFC 5321 §4.1.2, esmtp-param), read as a list and written as one.
//!
//! A parameter that is given twice, or whose value is not exactly what its RFC allows, is refused:
//! what is let through here is stored, and said again to an upstream.

use super::{
    parameter::{self, Body, By, Hold, Notify, ORCPT_MAX, OriginalRecipient, Ret},
    reply::Reply,
};

/// The parameters of MAIL.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MailParameters {
    /// RFC 1870: the size the client estimates.
    pub size: Option<u64>,
    /// RFC 6152, RFC 3030: what the content was announced to be.
    pub body: Body,
    /// RFC 6531: addresses and header may hold UTF-8.
    pub utf8: bool,
    /// RFC 3461 §4.3: how much of the message a report returns.
    pub ret: Option<Ret>,
    /// RFC 3461 §4.4: the sender's name for the transaction, decoded.
    pub envid: Option<String>,
    /// RFC 8689: by TLS with a verified certificate, or not at all.
    pub require_tls: bool,
    /// RFC 6710: from -9 to 9.
    pub priority: Option<i8>,
    /// RFC 4865: not yet.
    pub hold: Option<Hold>,
    /// RFC 2852: by when.
    pub deliver_by: Option<By>,
}

/// The parameters of RCPT.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RcptParameters {
    /// RFC 3461 §4.1: of what the sender wants to hear.
    pub notify: Option<Notify>,
    /// RFC 3461 §4.2: the recipient as the sender first knew it.
    pub original: Option<OriginalRecipient>,
}

impl MailParameters {
    /// Reads what follows the address.
    ///
    /// # Errors
    /// The reply to give.
    pub fn read(text: &str) -> Result<Self, Reply> {
        let mut read = Self::default();
        for (name, value) in parameters(text)? {
            match (name.as_str(), value) {
                ("SIZE", value) => read.size = Some(must("SIZE", size(value))?),
                ("BODY", value) => read.body = must("BODY", Body::parse(value))?,
                ("SMTPUTF8", "") => read.utf8 = true,
                ("RET", value) => read.ret = Some(must("RET", Ret::parse(value))?),
                ("ENVID", value) => read.envid = Some(must("ENVID", parameter::parse_envid(value))?),
                ("REQUIRETLS", "") => read.require_tls = true,
                ("MT-PRIORITY", value) => read.priority = Some(must("MT-PRIORITY", priority(value))?),
                // RFC 4865 §4: one of the two.
                ("HOLDFOR" | "HOLDUNTIL", _) if read.hold.is_some() => {
                    return Err(Reply::bad_argument("HOLDFOR and HOLDUNTIL exclude each other"));
                }
                ("HOLDFOR", value) => read.hold = Some(must("HOLDFOR", Hold::parse_for(value))?),
                ("HOLDUNTIL", value) => read.hold = Some(must("HOLDUNTIL", Hold::parse_until(value))?),
                ("BY", value) => read.deliver_by = Some(must("BY", By::parse(value))?),
                // RFC 4954 §5: must be taken from any client that may use AUTH; we trust none to name
                // another's identity, so it goes no further.
                ("AUTH", value) if !value.is_empty() => {}
                _ => return Err(Reply::unknown_parameter(&printable(&name))),
            }
        }
        Ok(read)
    }

    /// Writes each parameter behind a blank.
    pub fn write_to(&self, line: &mut String) {
        if let Some(size) = self.size {
            line.push_str(&format!(" SIZE={size}"));
        }
        if !self.body.is_seven_bit() {
            line.push_str(&format!(" BODY={}", self.body));
        }
        if self.utf8 {
            line.push_str(" SMTPUTF8");
        }
        if let Some(ret) = self.ret {
            line.push_str(&format!(" RET={ret}"));
        }
        if let Some(envid) = &self.envid {
            line.push_str(&format!(" ENVID={}", parameter::encode_xtext(envid)));
        }
        if self.require_tls {
            line.push_str(" REQUIRETLS");
        }
        if let Some(priority) = self.priority {
            line.push_str(&format!(" MT-PRIORITY={priority}"));
        }
        match self.hold {
            Some(hold @ Hold::For(_)) => line.push_str(&format!(" HOLDFOR={hold}")),
            Some(hold @ Hold::Until(_)) => line.push_str(&format!(" HOLDUNTIL={hold}")),
            None => {}
        }
        if let Some(deliver_by) = self.deliver_by {
            line.push_str(&format!(" BY={deliver_by}"));
        }
    }
}

impl RcptParameters {
    /// Reads what follows the address.
    ///
    /// # Errors
    /// The reply to give.
    pub fn read(text: &str) -> Result<Self, Reply> {
        let mut read = Self::default();
        for (name, value) in parameters(text)? {
            match name.as_str() {
                "NOTIFY" => read.notify = Some(must("NOTIFY", Notify::parse(value))?),
                "ORCPT" => read.original = Some(must("ORCPT", OriginalRecipient::parse(value))?),
                _ => return Err(Reply::unknown_parameter(&printable(&name))),
            }
        }
        Ok(read)
    }

    /// Writes each parameter behind a blank.
    pub fn write_to(&self, line: &mut String) {
        if let Some(notify) = self.notify {
            line.push_str(&format!(" NOTIFY={notify}"));
        }
        // Encoding can make one grow beyond what a server must take: better none than a recipient
        // refused for it.
        let original = self.original.as_ref().map(ToString::to_string);
        if let Some(original) = original.filter(|original| original.len() <= ORCPT_MAX) {
            line.push_str(&format!(" ORCPT={original}"));
        }
    }
}

/// The parameters one by one, names in upper case; a value that is missing is empty.
fn parameters(text: &str) -> Result<Vec<(String, &str)>, Reply> {
    let mut list: Vec<(String, &str)> = Vec::new();
    for word in text.split(' ').filter(|word| !word.is_empty()) {
        let (name, value) = match word.split_once('=') {
            Some((name, "")) => return Err(Reply::bad_parameter(&printable(name))),
            Some(named) => named,
            None => (word, ""),
        };
        let name = name.to_ascii_uppercase();
        // RFC 3461 §4, RFC 1870 §4 and others: not more than once.
        if list.iter().any(|(known, _)| *known == name) {
            return Err(Reply::repeated_parameter(&printable(&name)));
        }
        list.push((name, value));
    }
    Ok(list)
}

fn must<T>(name: &str, value: Option<T>) -> Result<T, Reply> {
    value.ok_or_else(|| Reply::bad_parameter(name))
}

/// RFC 1870 §3: up to 20 digits, so a value can be too large for any integer of ours.
fn size(value: &str) -> Option<u64> {
    let digits = (1..=20).contains(&value.len()) && value.bytes().all(|b| b.is_ascii_digit());
    digits.then(|| value.parse().unwrap_or(u64::MAX))
}

/// RFC 6710 §5: `-9` to `9`, and no other spelling.
fn priority(value: &str) -> Option<i8> {
    value.parse().ok().filter(|number| (-9..=9).contains(number) && i8::to_string(number) == value)
}

/// A client's own word, short and safe enough to stand in a reply.
fn printable(word: &str) -> String {
    word.chars().filter(char::is_ascii_graphic).take(40).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn each_parameter_is_read_and_written_as_its_standard_has_it() {
        for text in [
            "",
            " SIZE=18446744073709551615",
            " BODY=8BITMIME",
            " BODY=BINARYMIME",
            " SMTPUTF8",
            " RET=FULL",
            " RET=HDRS ENVID=QQ+2B314159",
            " REQUIRETLS",
            " MT-PRIORITY=-9",
            " MT-PRIORITY=0",
            " HOLDFOR=1",
            " HOLDFOR=999999999",
            " HOLDUNTIL=2026-12-31T23:59:59Z",
            " BY=120;R",
            " BY=0;N",
            " BY=-999999999;NT",
            " BY=999999999;RT",
        ] {
            let mut written = String::new();
            MailParameters::read(text).expect(text).write_to(&mut written);
            assert_eq!(written, text);
        }
        let read = MailParameters::read(
            "size=1 Body=7bit smtputf8 ret=full by=+5;nt holduntil=2026-01-01T01:00:00+01:00",
        );
        let read = read.expect("any case");
        assert_eq!(read.deliver_by, Some(By { seconds: 5, or_return: false, trace: true }));
        assert_eq!(read.hold, Hold::parse_until("2026-01-01T00:00:00Z"));
    }

    #[test]
    fn what_no_standard_allows_is_refused() {
        for (text, code) in [
            ("SIZE", 501),
            ("SIZE=", 501),
            ("SIZE=1 size=2", 501),
            ("SIZE=123456789012345678901", 501),
            ("BODY=9BIT", 501),
            ("SMTPUTF8=yes", 555),
            ("RET=ALL", 501),
            ("ENVID=", 501),
            ("ENVID=a+0Ab", 501),
            ("ENVID=a+C3+A4", 501),
            ("REQUIRETLS=1", 555),
            ("MT-PRIORITY=10", 501),
            ("MT-PRIORITY=+1", 501),
            ("MT-PRIORITY=-0", 501),
            ("HOLDFOR=0", 501),
            ("HOLDFOR=01", 501),
            ("HOLDFOR=1000000000", 501),
            ("HOLDFOR=1 HOLDUNTIL=2026-12-31T23:59:59Z", 501),
            ("HOLDUNTIL=tomorrow", 501),
            ("HOLDUNTIL=2026-12-31", 501),
            ("HOLDUNTIL=2026-13-01T00:00:00Z", 501),
            ("BY=1", 501),
            ("BY=1;", 501),
            ("BY=1;X", 501),
            ("BY=1;NTT", 501),
            ("BY=0;R", 501),
            ("BY=-1;R", 501),
            ("BY=1234567890;N", 501),
            ("BY=--1;N", 501),
            ("AUTH", 555),
            ("NOTIFY=NEVER", 555),
        ] {
            assert_eq!(MailParameters::read(text).map_err(|reply| reply.code()), Err(code), "{text}");
        }
        for (text, code) in [("NOTIFY=", 501), ("NOTIFY=NEVER,DELAY", 501), ("ORCPT=a", 501), ("SIZE=1", 555)]
        {
            assert_eq!(RcptParameters::read(text).map_err(|reply| reply.code()), Err(code), "{text}");
        }
    }

    #[test]
    fn wishes_about_reports_are_written() {
        let original = OriginalRecipient { kind: "utf-8".into(), address: "ä@b.example".into() };
        let mut written = String::new();
        RcptParameters { notify: Some(Notify::DEFAULT), original: Some(original) }.write_to(&mut written);
        assert_eq!(written, " NOTIFY=FAILURE,DELAY ORCPT=utf-8;\\x{E4}@b.example");

        let long = OriginalRecipient { kind: "utf-8".into(), address: "ä".repeat(100) };
        let mut written = String::new();
        RcptParameters { notify: Some(Notify::NEVER), original: Some(long) }.write_to(&mut written);
        assert_eq!(written, " NOTIFY=NEVER");
    }

    proptest! {
        #[test]
        fn whatever_is_read_is_written_and_read_again(
            text in "((SIZE|BODY|RET|ENVID|HOLDFOR|HOLDUNTIL|BY|MT-PRIORITY|SMTPUTF8|NOTIFY|ORCPT)(=[0-9A-Za-z+;:,-]{0,9})? ){0,4}",
        ) {
            if let Ok(read) = MailParameters::read(&text) {
                let mut written = String::new();
                read.write_to(&mut written);
                prop_assert_eq!(MailParameters::read(&written), Ok(read));
            }
            if let Ok(read) = RcptParameters::read(&text) {
                let mut written = String::new();
                read.write_to(&mut written);
                prop_assert_eq!(RcptParameters::read(&written), Ok(read));
            }
        }
    }
}
