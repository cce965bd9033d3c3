//! Every sentence of the listener, in the order in which a dialog can meet them.
//!
//! Each is a constructor, so that the whole of what Outpost says to a client can be read on one page, and
//! nothing ever reads meaning back out of text.

use std::{borrow::Cow, fmt};

use super::{Enhanced, Reply};

#[allow(missing_docs)] // Each is its own explanation.
impl Reply {
    fn say(code: u16, enhanced: (u8, u16, u16), text: impl Into<Cow<'static, str>>) -> Self {
        Self::new(code, Some(Enhanced(enhanced.0, enhanced.1, enhanced.2)), text)
    }

    // The connection.
    pub fn greeting(hostname: &str) -> Self {
        Self::new(220, None, format!("{hostname} ESMTP Outpost"))
    }
    pub fn too_many_connections(key: &'static str) -> Self {
        Self::say(421, (4, 7, 0), format!("too many connections at once ({key}); try again later"))
    }
    pub fn shutting_down(hostname: &str) -> Self {
        Self::say(421, (4, 3, 2), format!("{hostname} is shutting down; try again"))
    }
    pub fn idle_too_long(hostname: &str) -> Self {
        Self::say(421, (4, 4, 2), format!("{hostname} waited too long for you; closing"))
    }
    pub fn no_login_in_time() -> Self {
        Self::say(421, (4, 7, 0), "you have not logged in in time (smtp_login_timeout); closing")
    }
    pub fn too_slow() -> Self {
        Self::say(421, (4, 4, 2), "the message came too slowly; closing (smtp_min_rate, smtp_timeout)")
    }
    pub fn too_many_errors() -> Self {
        Self::say(421, (4, 7, 0), "too many errors (smtp_max_errors); closing")
    }
    pub fn too_many_commands(key: &'static str) -> Self {
        Self::say(421, (4, 7, 0), format!("too many commands without a message ({key}); closing"))
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
        Self::say(421, (4, 7, 0), "too many failed logins (smtp_max_failed_logins); closing")
    }
    pub fn auth_required() -> Self {
        let words =
            "log in first: relaying is for this network's own applications (smtp_users, smtp_networks)";
        Self::say(530, (5, 7, 0), words)
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
        Self::say(552, (5, 3, 4), format!("message is larger than {max} octets (smtp_max_message_size)"))
    }
    pub fn too_many_recipients(key: &str) -> Self {
        // RFC 5321 §4.5.3.1.10: 452, so that the client sends the rest in another transaction.
        Self::say(
            452,
            (4, 5, 3),
            format!("too many recipients ({key}); send to the rest in another transaction"),
        )
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
    pub fn refused_chunk_not_read() -> Self {
        Self::say(421, (4, 7, 0), "this chunk belongs to no message that may come, and is not read; closing")
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
    pub fn content_line_too_long(max: usize) -> Self {
        let words = format!("a line of the message is longer than {max} octets (smtp_max_content_line)");
        Self::say(554, (5, 6, 0), words)
    }
    pub fn too_many_hops(max: usize) -> Self {
        Self::say(554, (5, 4, 6), format!("more than {max} Received fields: mail loop (smtp_max_hops)"))
    }
    pub fn passed_too_often(hostname: &str) -> Self {
        let words =
            format!("the message comes back to {hostname} again and again: mail loop (smtp_max_passes)");
        Self::say(554, (5, 4, 6), words)
    }
    pub fn header_too_large(max: usize) -> Self {
        let words = format!("header section is larger than {max} octets (smtp_max_header_size)");
        Self::say(552, (5, 3, 4), words)
    }
    /// The only 250 after content. [`Receipt`](crate::queue::Receipt) is the proof that the message
    /// is on stable storage; nothing but the queue can make one.
    pub fn accepted(receipt: &crate::queue::Receipt) -> Self {
        Self::say(250, (2, 0, 0), format!("queued as {}", receipt.id()))
    }

    // Limits that the operator set for a login: the message may come again, if it can ever fit.
    pub fn limit_reached(key: &str, until: Option<&str>) -> Self {
        let when = until.map_or_else(String::new, |until| format!(" at {until}"));
        Self::say(
            451,
            (4, 7, 1),
            format!("the limit of this login is used up ({key}); try again later{when}"),
        )
    }
    pub fn limit_too_small(key: &str, limit: &str) -> Self {
        let words = format!("the limit of this login never has room for so many recipients ({key}: {limit})");
        Self::say(554, (5, 5, 3), words)
    }

    // Our faults: always 4yz, so that the client keeps the message (RFC 5321 §4.2.1).
    pub fn storage_full() -> Self {
        Self::say(452, (4, 3, 1), "not enough storage; try again later")
    }
    pub fn local_error() -> Self {
        Self::say(451, (4, 3, 0), "local error; try again later")
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn each_sentence_has_an_enhanced_code_of_its_class_but_those_that_may_have_none() {
        let source = include_str!("said.rs").split_whitespace().collect::<Vec<_>>().join(" ");
        let (sentences, _) = source.split_once("#[cfg(test)]").unwrap();
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
}
