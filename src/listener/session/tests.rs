//! The session as a table of states and commands, and what no sequence of commands can break.

use std::net::{IpAddr, Ipv4Addr};

use proptest::prelude::*;
use secrecy::SecretString;

use super::{
    super::{auth::Credentials, policy::Senders},
    *,
};
use crate::{config::SessionBounds, mail::trace, smtp::sasl};

const OUTSIDE: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 7));
const NOW: Timestamp = Timestamp(1_340_000_000_000);
const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

fn session(address: IpAddr, tls: bool) -> Session {
    session_of(Client::new(address, tls))
}

fn session_of(client: Client) -> Session {
    let rules = Rules {
        hostname: "relay.example".into(),
        credentials: Credentials::new(vec![("dotcloud".into(), SecretString::from("secret"))]),
        networks: vec!["127.0.0.0/8".parse().unwrap()],
        message_size: 1_000,
        recipients: 2,
        recipients_of_users: Default::default(),
        binary: true,
        hold: Duration::from_secs(1_000),
        senders: Senders::default(),
        bounds: SessionBounds::default(),
        trace: true,
    };
    Session::new(Arc::new(rules), client, true, "nonce".into())
}

fn say(session: &mut Session, line: &str) -> (u16, Next) {
    let (reply, next) = session.line(Line::Whole(line.as_bytes()), NOW);
    (reply.map_or(0, |reply| reply.code()), next)
}

fn codes(session: &mut Session, lines: &[&str]) -> Vec<u16> {
    lines.iter().map(|line| say(session, line).0).collect()
}

/// Brings a session into each state by talking to it: of a client on loopback, unless the state says otherwise.
fn in_state(state: &str) -> Session {
    let mut session = match state {
        "stranger" | "in TLS, logged in" => session(OUTSIDE, false),
        "login required" => session_of(Client { login_required: true, ..Client::new(LOOPBACK, false) }),
        _ => session(LOOPBACK, false),
    };
    let lines: &[&str] = match state {
        "connected" => &[],
        "ready" | "stranger" | "login required" => &["EHLO a"],
        "HELO" => &["HELO a"],
        "authenticating" => &["EHLO a", "AUTH PLAIN"],
        "authenticated" => &["EHLO a", "AUTH PLAIN AGRvdGNsb3VkAHNlY3JldA=="],
        "open" => &["EHLO a", "MAIL FROM:<a@b.example>"],
        "chunking" => &["EHLO a", "MAIL FROM:<a@b.example>", "RCPT TO:<c@d.example>", "BDAT 5"],
        "with recipient" => &["EHLO a", "MAIL FROM:<a@b.example>", "RCPT TO:<c@d.example>"],
        "in TLS" => {
            session.tls_started(None);
            &["EHLO a"]
        }
        "in TLS, logged in" => {
            session.tls_started(None);
            &["EHLO a", "AUTH PLAIN AGRvdGNsb3VkAHNlY3JldA=="]
        }
        other => panic!("{other}"),
    };
    codes(&mut session, lines);
    session
}

/// Rows are states, columns are commands. Read it: it is the protocol. 0 is "no reply yet": DATA, BDAT.
#[test]
fn the_grid_of_states_and_commands_is_as_it_was_meant() {
    let commands = [
        "EHLO a",
        "HELO a",
        "STARTTLS",
        "AUTH PLAIN",
        "MAIL FROM:<a@b.example>",
        "RCPT TO:<c@d.example>",
        "DATA",
        "BDAT 5",
        "RSET",
        "NOOP",
        "VRFY a",
        "HELP",
        "QUIT",
        "FOO",
    ];
    #[rustfmt::skip]
    let grid = [
        //                  EHLO HELO TLS  AUTH MAIL RCPT DATA BDAT RSET NOOP VRFY HELP QUIT FOO
        ("connected",      [250, 250, 220, 503, 503, 503, 503, 503, 250, 250, 252, 214, 221, 500]),
        ("ready",          [250, 250, 220, 334, 250, 503, 503, 503, 250, 250, 252, 214, 221, 500]),
        ("authenticated",  [250, 250, 220, 503, 250, 503, 503, 503, 250, 250, 252, 214, 221, 500]),
        ("open",           [250, 250, 503, 503, 503, 250, 554, 554, 250, 250, 252, 214, 221, 500]),
        ("with recipient", [250, 250, 503, 503, 503, 250,   0,   0, 250, 250, 252, 214, 221, 500]),
        ("chunking",       [250, 250, 503, 503, 503, 503, 503,   0, 250, 250, 252, 214, 221, 500]),
        ("in TLS",         [250, 250, 503, 334, 250, 503, 503, 503, 250, 250, 252, 214, 221, 500]),
        ("in TLS, logged in", [250, 250, 503, 503, 250, 503, 503, 503, 250, 250, 252, 214, 221, 500]),
        ("HELO",           [250, 250, 220, 334, 250, 503, 503, 503, 250, 250, 252, 214, 221, 500]),
        ("stranger",       [250, 250, 220, 538, 530, 550, 503, 421, 250, 250, 252, 214, 221, 500]),
        ("login required", [250, 250, 220, 334, 530, 550, 503, 421, 250, 250, 252, 214, 221, 500]),
        // The client owes a response, so none of it is a command.
        ("authenticating", [501, 501, 501, 501, 501, 501, 501, 501, 501, 501, 501, 501, 501, 501]),
    ];
    for (state, expected) in grid {
        let got: Vec<u16> = commands.iter().map(|command| say(&mut in_state(state), command).0).collect();
        assert_eq!(got, expected, "{state}");
    }
}

#[test]
fn scram_proves_the_password_and_with_plus_the_connection_too() {
    use crate::smtp::scram;
    let (ours, other) = ([7_u8; 32], [8_u8; 32]);
    let play = |mechanism: &str, claim: Option<&[u8]>, password: &str| {
        let mut session = session(OUTSIDE, false);
        session.tls_started(Some(ours));
        say(&mut session, "EHLO a");
        let (client, first) = scram::Client::new("dotcloud", "nonce", claim);
        let (reply, _) =
            session.line(Line::Whole(format!("AUTH {mechanism} {}", sasl::encode(first)).as_bytes()), NOW);
        let reply = reply.unwrap();
        if reply.code() != 334 {
            return reply.code();
        }
        let server_first = sasl::decode(reply.lines().next().unwrap()).unwrap();
        let (last, expected) = client.respond(password, std::str::from_utf8(&server_first).unwrap()).unwrap();
        let (reply, _) = session.line(Line::Whole(sasl::encode(last).as_bytes()), NOW);
        let reply = reply.unwrap();
        if reply.code() != 334 {
            return reply.code();
        }
        assert_eq!(reply.lines().next(), Some(&*sasl::encode(expected)), "we prove ourselves as well");
        say(&mut session, "").0
    };
    assert_eq!(play("SCRAM-SHA-256", None, "secret"), 235);
    assert_eq!(play("SCRAM-SHA-256", None, "wrong"), 535);
    assert_eq!(play("SCRAM-SHA-256-PLUS", Some(&ours), "secret"), 235);
    assert_eq!(play("SCRAM-SHA-256-PLUS", Some(&other), "secret"), 535, "somebody in between");
    assert_eq!(play("SCRAM-SHA-256-PLUS", None, "secret"), 501);
    assert_eq!(play("SCRAM-SHA-256", Some(&ours), "secret"), 501);
    let mut session = session(OUTSIDE, false);
    session.tls_started(Some(ours));
    let offered = session.line(Line::Whole(b"EHLO a"), NOW).0.unwrap();
    assert!(offered.lines().any(|line| line.ends_with(" SCRAM-SHA-256 SCRAM-SHA-256-PLUS")), "{offered}");
    let downgraded = format!("AUTH SCRAM-SHA-256 {}", sasl::encode("y,,n=dotcloud,r=nonce"));
    assert_eq!(say(&mut session, &downgraded).0, 535, "PLUS was taken out of our offer on the way");
}

#[test]
fn only_loopback_relays_without_logging_in() {
    for (address, code) in [(LOOPBACK, 250), ("::ffff:127.0.0.1".parse().unwrap(), 250), (OUTSIDE, 530)] {
        let mut session = session(address, false);
        assert_eq!(codes(&mut session, &["EHLO a", "MAIL FROM:<a@b.example>"]), [250, code], "{address}");
    }
    let mut outside = session(OUTSIDE, true);
    let plain = format!("AUTH PLAIN {}", sasl::encode(sasl::plain("dotcloud", "secret")));
    assert_eq!(codes(&mut outside, &["EHLO a", &plain, "MAIL FROM:<a@b.example>"]), [250, 235, 250]);
}

#[test]
fn a_password_is_never_asked_for_where_others_can_listen() {
    let mut session = session(OUTSIDE, false);
    let (reply, _) = session.line(Line::Whole(b"EHLO a"), NOW);
    let offered: Vec<String> = reply.unwrap().lines().map(str::to_owned).collect();
    assert!(offered.contains(&"AUTH CRAM-MD5 SCRAM-SHA-256".to_owned()), "{offered:?}");
    assert!(offered.contains(&"STARTTLS".to_owned()));
    assert_eq!(codes(&mut session, &["AUTH PLAIN", "AUTH LOGIN", "AUTH CRAM-MD5"]), [538, 538, 334]);
}

#[test]
fn each_mechanism_lets_the_right_password_in_and_no_other() {
    for (password, code) in [("secret", 235), ("wrong", 535)] {
        let plain = sasl::encode(sasl::plain("dotcloud", password));
        let (user, password) = (sasl::encode("dotcloud"), sasl::encode(password));
        let mut s = in_state("ready");
        assert_eq!(codes(&mut s, &["AUTH PLAIN", &plain]), [334, code]);
        let mut s = in_state("ready");
        assert_eq!(codes(&mut s, &["AUTH LOGIN", &user, &password]), [334, 334, code]);
        let mut s = in_state("ready");
        assert_eq!(codes(&mut s, &[&format!("AUTH LOGIN {user}"), &password]), [334, code]);
    }
    for (password, code) in [("secret", 235), ("wrong", 535)] {
        let mut s = in_state("ready");
        let (reply, _) = s.line(Line::Whole(b"AUTH CRAM-MD5"), NOW);
        let challenge = sasl::decode(reply.unwrap().lines().next().unwrap()).unwrap();
        let response = sasl::encode(sasl::cram_md5("dotcloud", password, &challenge));
        assert_eq!(codes(&mut s, &[&response]), [code]);
    }
}

#[test]
fn auth_abuse_ends_in_the_right_codes() {
    assert_eq!(
        codes(&mut in_state("ready"), &["AUTH PLAIN", "*", "AUTH PLAIN", "!!", "AUTH NTLM"]),
        [334, 501, 334, 501, 504]
    );
    assert_eq!(codes(&mut in_state("ready"), &["AUTH CRAM-MD5 AAAA"]), [501]);
    let wrong = format!("AUTH PLAIN {}", sasl::encode(sasl::plain("dotcloud", "x")));
    let nobody = format!("AUTH PLAIN {}", sasl::encode(sasl::plain("nobody", "")));
    let mut session = in_state("ready");
    assert_eq!(say(&mut session, &wrong), (535, Next::Penalty));
    assert_eq!(say(&mut session, &nobody), (535, Next::Penalty));
    assert_eq!(say(&mut session, &wrong), (421, Next::LastPenalty));
    let mut session = in_state("ready");
    say(&mut session, "AUTH PLAIN");
    assert_eq!(session.line(Line::TooLong, NOW).0.unwrap().code(), 500);
    assert_eq!(say(&mut session, "NOOP").0, 250);
}

#[test]
fn what_tls_protects_does_not_remember_what_was_said_before() {
    let mut session = in_state("authenticated");
    assert_eq!(say(&mut session, "STARTTLS"), (220, Next::StartTls));
    session.tls_started(None);
    assert_eq!(codes(&mut session, &["MAIL FROM:<a@b.example>", "EHLO a", "AUTH PLAIN"]), [503, 250, 334]);
}

#[test]
fn bounds_are_kept() {
    let mut s = in_state("open");
    let three = ["RCPT TO:<a@x.example>", "RCPT TO:<b@x.example>", "RCPT TO:<c@x.example>", "DATA"];
    assert_eq!(codes(&mut s, &three), [250, 250, 452, 0]);
    assert_eq!(s.envelope().unwrap().0.recipients.len(), 2);
    assert_eq!(codes(&mut in_state("ready"), &["MAIL FROM:<a@b.example> SIZE=1001"]), [552]);
    assert_eq!(codes(&mut in_state("ready"), &["MAIL FROM:<a@b.example> SIZE=1000"]), [250]);

    let mut s = in_state("ready");
    let steps: Vec<_> = (0..20).map(|_| say(&mut s, "FOO")).collect();
    assert_eq!(steps[18], (500, Next::Continue));
    assert_eq!(steps[19], (421, Next::Close));
    assert_eq!(say(&mut session(LOOPBACK, false), "GET / HTTP/1.1"), (421, Next::Close));
}

#[test]
fn a_refused_message_leaves_the_session_ready_for_the_next() {
    let mut session = in_state("with recipient");
    assert_eq!(say(&mut session, "DATA"), (0, Next::Receive));
    assert_eq!(session.received(Err(Reply::local_error())).code(), 451);
    assert!(session.envelope().is_none());
    assert_eq!(codes(&mut session, &["DATA", "MAIL FROM:<>", "RCPT TO:<postmaster>"]), [503, 250, 250]);
}

#[test]
fn a_refused_chunk_drops_the_transaction_so_that_no_part_passes_for_the_whole() {
    let mut s = in_state("open");
    let step = say(&mut s, "BDAT 7");
    assert_eq!(step, (554, Next::Skip(7)));
    assert_eq!(codes(&mut s, &["RCPT TO:<c@d.example>", "BDAT 3 LAST"]), [503, 503]);

    let mut s = in_state("chunking");
    s.received(Err(Reply::too_large(1)));
    assert_eq!(say(&mut s, "BDAT 3 LAST"), (503, Next::Skip(3)));
}

#[test]
fn a_refused_chunk_is_read_over_only_as_far_as_a_message_and_only_for_whom_may_relay() {
    assert_eq!(say(&mut in_state("ready"), "BDAT 1000"), (503, Next::Skip(1_000)));
    for size in ["1001", "9223372036854775807"] {
        let mut s = in_state("ready");
        assert_eq!(say(&mut s, &format!("BDAT {size}")), (421, Next::Close));
        assert_eq!(say(&mut s, "NOOP").1, Next::Close, "whatever comes of it is no command");
    }
    let mut stranger = session(OUTSIDE, false);
    say(&mut stranger, "EHLO a");
    assert_eq!(say(&mut stranger, "BDAT 0"), (503, Next::Skip(0)), "nothing follows it");
    assert_eq!(say(&mut stranger, "BDAT 1"), (421, Next::Close));
}

#[test]
fn chunks_without_content_do_not_go_on_for_ever() {
    let mut s = in_state("with recipient");
    let steps: Vec<_> = (0..1_000).map(|_| say(&mut s, "BDAT 0").1).collect();
    assert_eq!((steps[0], steps.contains(&Next::Close)), (Next::Chunk(0, false), true));
    let mut s = in_state("with recipient");
    assert!((0..2 * 1_000).all(|_| say(&mut s, "BDAT 1").1 == Next::Chunk(1, false)));
}

fn any_line() -> impl Strategy<Value = Vec<u8>> {
    let known = proptest::sample::select(vec![
        "EHLO a",
        "HELO a",
        "STARTTLS",
        "AUTH PLAIN",
        "AUTH LOGIN",
        "AUTH CRAM-MD5",
        "MAIL FROM:<a@b.example>",
        "MAIL FROM:<>",
        "RCPT TO:<c@d.example>",
        "RCPT TO:<e@f.example>",
        "DATA",
        "BDAT 5",
        "BDAT 9223372036854775807",
        "BDAT 0 LAST",
        "RSET",
        "NOOP",
        "VRFY a",
        "HELP",
        "QUIT",
        "*",
        "AGRvdGNsb3VkAHNlY3JldA==",
        "",
    ]);
    prop_oneof![8 => known.prop_map(|line| line.as_bytes().to_vec()), 1 => any::<Vec<u8>>()]
}

proptest! {
    #[test]
    fn any_sequence_of_commands_gets_one_reply_each_and_keeps_the_session_legal(
        lines in proptest::collection::vec(any_line(), 0..60),
        outside: bool,
        tls: bool,
    ) {
        let mut session = session(if outside { OUTSIDE } else { LOOPBACK }, tls);
        let mut chunking = false;
        for line in lines {
            let (reply, next) = session.line(Line::Whole(&line), NOW);
            match next {
                Next::Receive => {
                    prop_assert!(reply.is_none());
                    let (envelope, origin) = session.envelope().expect("content is received in a transaction");
                    prop_assert!(!envelope.recipients.is_empty());
                    prop_assert!(!outside || origin.user.is_some(), "relayed for a stranger");
                    session.received(Err(Reply::local_error()));
                }
                Next::Chunk(size, last) => {
                    prop_assert!(reply.is_none());
                    let (envelope, origin) = session.envelope().expect("content is received in a transaction");
                    prop_assert!(!envelope.recipients.is_empty());
                    prop_assert!(!outside || origin.user.is_some(), "relayed for a stranger");
                    if last {
                        session.received(Err(Reply::local_error()));
                    } else {
                        prop_assert_eq!(session.chunk_received(size).code(), 250);
                        chunking = true;
                        continue;
                    }
                }
                Next::Skip(size) => {
                    prop_assert!(size <= 1_000 && (size == 0 || session.is_known()), "read over for ever");
                    let code = reply.expect("one reply").code();
                    prop_assert!(matches!(code, 503 | 554));
                    prop_assert!(!session.is_receiving(), "a refused chunk leaves no transaction");
                }
                Next::StartTls => {
                    prop_assert_eq!(reply.expect("one reply").code(), 220);
                    session.tls_started(None);
                }
                Next::Close | Next::LastPenalty => {
                    prop_assert!(matches!(reply.expect("one reply").code(), 221 | 421 | 550));
                    break;
                }
                Next::Continue | Next::Penalty => {
                    let code = reply.expect("one reply").code();
                    prop_assert!((200..600).contains(&code) && code != 354 && code != 421);
                }
            }
            // What has begun with BDAT goes on until it is done or dropped.
            chunking &= session.is_receiving();
            prop_assert_eq!(session.is_receiving(), chunking);
        }
    }

    #[test]
    fn nothing_that_a_client_says_breaks_out_of_the_received_field(
        hello in proptest::collection::vec(any::<u8>(), 0..40),
        to in proptest::collection::vec(any::<u8>(), 0..40),
    ) {
        let mut session = session(LOOPBACK, false);
        let (hello, quoted) = ([b"EHLO a", &hello[..]].concat(), [b"RCPT TO:<\"", &to[..], b"\"@d.example>"].concat());
        let plain = [b"RCPT TO:<", &to[..], b"@d.example>"].concat();
        for line in [&hello[..], b"EHLO (a\tb)", b"MAIL FROM:<a@b.example>", &quoted, &plain, b"RCPT TO:<c@d.example>", b"DATA"] {
            session.line(Line::Whole(line), NOW);
        }
        let (envelope, origin) = session.envelope().expect("content is received");
        for to in &envelope.recipients {
            let field = trace::received(&origin, "relay.example", "ID", Some(&to.mailbox), true, NOW);
            let lines: Vec<&str> = field.split_terminator("\r\n").collect();
            prop_assert!(lines[0].starts_with("Received: from ") && lines.len() <= 4, "{field:?}");
            prop_assert!(lines[1..].iter().all(|line| line.starts_with('\t')), "{field:?}");
            prop_assert!(!field.replace("\r\n\t", "").trim_end().contains(char::is_control), "{field:?}");
        }
    }
}
