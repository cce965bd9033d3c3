//! The EHLO keywords (RFC 5321 §4.1.1.1) that Outpost offers, and those it understands of others.

use super::{parameter::Hold, reply::Reply};

/// What an upstream said it can do, in its reply to EHLO.
///
/// Only the reply received inside TLS counts once there is TLS (RFC 3207 §4.2): make a new value
/// then.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Capabilities {
    /// RFC 2920.
    pub pipelining: bool,
    /// RFC 6152.
    pub eight_bit_mime: bool,
    /// RFC 3207.
    pub starttls: bool,
    /// RFC 3030 §2.
    pub chunking: bool,
    /// RFC 3030 §3.
    pub binary_mime: bool,
    /// RFC 6531.
    pub smtp_utf8: bool,
    /// RFC 8689.
    pub require_tls: bool,
    /// RFC 6710.
    pub priority: bool,
    /// RFC 9422 §4: recipients of one transaction, if it named a number.
    pub recipients_max: Option<usize>,
    /// RFC 3461.
    pub dsn: bool,
    /// RFC 2852: offered, and the shortest time that it takes, in seconds (0 if none was named).
    pub deliver_by: Option<u32>,
    /// RFC 1870: offered, and the largest size if one was named.
    pub size: Option<Option<u64>>,
    /// RFC 4954: mechanisms in upper case, in the server's order.
    pub auth: Vec<String>,
}

impl Capabilities {
    /// Reads the keywords behind the first line. Case doesn't matter (RFC 5321 §2.4).
    pub fn from_reply(reply: &Reply) -> Self {
        let mut known = Self::default();
        for line in reply.lines().skip(1) {
            let upper = line.to_ascii_uppercase();
            let mut words = upper.split_ascii_whitespace();
            match words.next() {
                Some("PIPELINING") => known.pipelining = true,
                Some("8BITMIME") => known.eight_bit_mime = true,
                Some("STARTTLS") => known.starttls = true,
                Some("CHUNKING") => known.chunking = true,
                Some("BINARYMIME") => known.binary_mime = true,
                Some("SMTPUTF8") => known.smtp_utf8 = true,
                Some("REQUIRETLS") => known.require_tls = true,
                Some("MT-PRIORITY") => known.priority = true,
                Some("LIMITS") => {
                    let named = words.find_map(|word| word.strip_prefix("RCPTMAX="));
                    known.recipients_max = named.and_then(|n| n.parse().ok()).filter(|n| *n > 0);
                }
                Some("DSN") => known.dsn = true,
                Some("DELIVERBY") => {
                    known.deliver_by = Some(words.next().and_then(|n| n.parse().ok()).unwrap_or(0));
                }
                // RFC 1870 §3: no number or 0 means that no limit is named.
                Some("SIZE") => {
                    known.size = Some(words.next().and_then(|n| n.parse().ok()).filter(|n| *n > 0));
                }
                Some("AUTH") => known.add_auth(words),
                // Before RFC 2554 servers wrote "AUTH=LOGIN PLAIN", and some still add it.
                Some(first) => {
                    if let Some(old) = first.strip_prefix("AUTH=") {
                        known.add_auth(std::iter::once(old).chain(words));
                    }
                }
                None => {}
            }
        }
        known
    }

    fn add_auth<'a>(&mut self, mechanisms: impl Iterator<Item = &'a str>) {
        for mechanism in mechanisms {
            if !mechanism.is_empty() && !self.auth.iter().any(|known| known == mechanism) {
                self.auth.push(mechanism.to_owned());
            }
        }
    }
}

/// What we offer in answer to EHLO, as it depends on the connection.
#[derive(Clone, Copy, Debug)]
pub struct Offer {
    /// The largest message taken.
    pub message_size: u64,
    /// Recipients of one message.
    pub recipients: usize,
    /// RFC 4865: for how long, and until when, a message can be held.
    pub hold: Option<[Hold; 2]>,
    /// BINARYMIME: the upstream is said to take it.
    pub binary: bool,
    /// The connection is in TLS.
    pub tls: bool,
    /// STARTTLS: a certificate is there and the connection is still in clear.
    pub starttls: bool,
    /// PLAIN and LOGIN show the password to whoever listens, so only over TLS or loopback.
    pub auth_clear: bool,
    /// CRAM-MD5 and SCRAM don't, so it is offered whenever AUTH is of use.
    pub auth: bool,
    /// The connection has a channel binding (RFC 9266), so SCRAM can be tied to it.
    pub auth_bound: bool,
}

impl Offer {
    /// The keyword lines in the order they are sent.
    pub fn keywords(&self) -> Vec<String> {
        let mut lines = vec![
            "PIPELINING".to_owned(),
            format!("SIZE {}", self.message_size),
            "8BITMIME".to_owned(),
            "CHUNKING".to_owned(),
            "SMTPUTF8".to_owned(),
            "ENHANCEDSTATUSCODES".to_owned(),
            "DSN".to_owned(),
            "DELIVERBY".to_owned(),
            "MT-PRIORITY".to_owned(),
            format!("LIMITS RCPTMAX={}", self.recipients),
        ];
        // RFC 3030 §3: only together with CHUNKING.
        if self.binary {
            lines.push("BINARYMIME".to_owned());
        }
        if let Some([longest, latest]) = self.hold {
            lines.push(format!("FUTURERELEASE {longest} {latest}"));
        }
        // RFC 8689 §2: never in clear.
        if self.tls {
            lines.push("REQUIRETLS".to_owned());
        }
        if self.starttls {
            lines.push("STARTTLS".to_owned());
        }
        if self.auth {
            let clear = if self.auth_clear { " PLAIN LOGIN" } else { "" };
            let bound = if self.auth_bound { " SCRAM-SHA-256-PLUS" } else { "" };
            lines.push(format!("AUTH{clear} CRAM-MD5 SCRAM-SHA-256{bound}"));
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keywords_are_understood_in_any_case_and_form() {
        let reply = Reply::new(
            250,
            None,
            "mx.example\nPipelining\n8bitmime\nSIZE 1000\nAUTH PLAIN login\nAUTH=LOGIN CRAM-MD5\nX-OTHER\ndsn\n\
             smtputf8\nLIMITS MAILMAX=5 RCPTMAX=20\nBINARYMIME\nDELIVERBY 240",
        );
        let known = Capabilities::from_reply(&reply);
        assert!(known.pipelining && known.eight_bit_mime && known.dsn && !known.starttls);
        assert!(known.smtp_utf8 && known.binary_mime && !known.chunking);
        assert_eq!(known.recipients_max, Some(20));
        assert_eq!(known.deliver_by, Some(240));
        assert_eq!(known.size, Some(Some(1000)));
        assert_eq!(known.auth, ["PLAIN", "LOGIN", "CRAM-MD5"]);
    }

    #[test]
    fn a_size_of_zero_names_no_limit() {
        let known = Capabilities::from_reply(&Reply::new(250, None, "mx\nSIZE 0"));
        assert_eq!(known.size, Some(None));
    }
}
