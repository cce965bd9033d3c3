//! Any octets as what a client says to log in, by every mechanism, right, wrong, cut short and bent: only who
//! knows the password gets in, who is bent gets one clean reply, and nothing tells the password.
//!
//! Each line of the input is one line of the client. Its first octet may ask for what fuzzing would not find by
//! itself: `@` the rest in base64; `!` a sound first message of SCRAM; `%` a right answer to the last challenge,
//! with the rest of the line laid over it.

#![no_main]

use std::{net::IpAddr, sync::Arc};

use libfuzzer_sys::fuzz_target;
use outpost::{
    clock::Timestamp,
    config::SessionBounds,
    listener::{
        auth::Credentials,
        policy::{Client, Rules, Senders},
        session::{Next, Session},
    },
    smtp::{framing::Line, sasl, scram},
};
use secrecy::SecretString;

const USER: &str = "dotcloud";
const PASSWORD: &str = "sesame";
const BINDING: [u8; 32] = [7; 32];

/// What the client's side knows.
#[derive(Default)]
struct Hand {
    scram: Option<scram::Client>,
    challenge: Vec<u8>,
    /// Something was said in this exchange that only who knows the password can say.
    knows: bool,
}

impl Hand {
    fn words(&mut self, line: &[u8], bound: bool) -> Vec<u8> {
        match line.split_first() {
            Some((b'@', message)) => self.shown(message.to_vec()),
            Some((b'!', name)) => {
                let name = std::str::from_utf8(name).ok().filter(|name| !name.is_empty()).unwrap_or(USER);
                let (client, first) = scram::Client::new(name, "abc", bound.then_some(&BINDING[..]));
                self.scram = Some(client);
                let plus = if bound { "-PLUS" } else { "" };
                format!("AUTH SCRAM-SHA-256{plus} {}", sasl::encode(first)).into_bytes()
            }
            Some((b'%', change)) => {
                let answer = match (&self.scram, std::str::from_utf8(&self.challenge)) {
                    (Some(client), Ok(first)) => client.respond(PASSWORD, first).map(|(answer, _)| answer),
                    _ => None,
                };
                let answer = answer.unwrap_or_else(|| sasl::cram_md5(USER, PASSWORD, &self.challenge));
                let mut answer = answer.into_bytes();
                self.knows = true;
                answer.iter_mut().zip(change).for_each(|(octet, change)| *octet ^= change);
                sasl::encode(answer).into_bytes()
            }
            _ => {
                let message = line.rsplit(|b| *b == b' ').next().unwrap_or_default();
                let message = std::str::from_utf8(message).ok().and_then(sasl::decode);
                self.shown(message.unwrap_or_default());
                line.to_vec()
            }
        }
    }

    fn shown(&mut self, message: Vec<u8>) -> Vec<u8> {
        self.knows |= message.windows(PASSWORD.len()).any(|window| window == PASSWORD.as_bytes());
        sasl::encode(message).into_bytes()
    }
}

fuzz_target!(|data: &[u8]| {
    let Some((flags, input)) = data.split_first() else { return };
    let (stranger, tls, bound) = (flags & 1 != 0, flags & 2 != 0, flags & 4 != 0);
    let rules = Rules {
        hostname: "relay.example".into(),
        credentials: Credentials::new(vec![(USER.into(), SecretString::from(PASSWORD))]),
        networks: Vec::new(),
        message_size: 1_000,
        recipients: 3,
        recipients_of_users: Default::default(),
        binary: false,
        hold: std::time::Duration::ZERO,
        senders: Senders::default(),
        bounds: SessionBounds::default(),
        trace: true,
    };
    let address: IpAddr = if stranger { [192, 0, 2, 7] } else { [127, 0, 0, 1] }.into();
    let mut client = Client::new(address, tls);
    client.binding = (tls && bound).then_some(BINDING);
    let mut session = Session::new(Arc::new(rules), client, !tls, "nonce".into());
    let now = Timestamp(1_340_000_000_000);
    session.line(Line::Whole(b"EHLO a"), now);
    let (mut hand, mut missed, mut owes, mut user) = (Hand::default(), 0, false, false);

    for line in input.split(|b| *b == b'\n').take(60) {
        if !owes {
            hand = Hand::default();
        }
        let said = hand.words(line, bound);
        if said.len() > session.line_max() {
            continue;
        }
        let (reply, next) = session.line(Line::Whole(&said), now);
        let Some(reply) = reply else { return };
        let (code, text) = (reply.code(), reply.to_string());
        let mut written = Vec::new();
        reply.write_to(&mut written);
        assert_eq!(written.iter().filter(|b| **b == b'\n').count(), reply.lines().count());
        assert!(!text.contains(PASSWORD) && !text.contains("nobody"), "a password is told: {text}");
        let verb = said.get(..4).map(<[u8]>::to_ascii_uppercase);
        if owes {
            assert!(matches!(code, 235 | 334 | 421 | 500 | 501 | 535), "{text} in an exchange");
        } else if user && verb.as_deref() == Some(b"AUTH") {
            assert!(matches!(code, 421 | 500..504), "a second login: {text}");
        }
        if said == b"*" && owes {
            assert!(matches!(code, 501 | 421), "RFC 4954 §4, or one error too many");
        }
        owes = code == 334;
        match code {
            334 => {
                let challenge = reply.lines().next().and_then(sasl::decode);
                hand.challenge = challenge.expect("a challenge is base64");
            }
            235 => {
                assert!(hand.knows, "in without the password");
                user = true;
            }
            535 => missed += 1,
            _ => {}
        }
        assert_eq!(session.client().user.is_some(), user);
        match next {
            Next::Continue => assert_ne!(code, 535, "a wrong password that doesn't wait"),
            Next::Penalty => assert!(code == 535 && missed < 3),
            Next::LastPenalty => {
                assert_eq!((code, missed), (421, 2), "the third wrong password ends it");
                return;
            }
            Next::StartTls => {
                session.tls_started(bound.then_some(BINDING));
                (user, owes) = (false, false);
            }
            _ => return,
        }
    }
});
