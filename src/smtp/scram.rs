//! SCRAM-SHA-256 (RFC 5802, RFC 7677): its messages and its arithmetic, of both ends.
//!
//! Each side proves that it knows the password without showing it. With a channel binding the proof
//! also covers the TLS connection that it was made in, so that nobody in between can pass it on.

use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use super::sasl;

/// RFC 7677 §4: at least 4096. Each login costs that much, at both ends.
const ITERATIONS: u32 = 4096;
/// A server that asks for more wants our processor, not our login.
const ITERATIONS_MAX: u32 = 200_000;
/// RFC 9266: the channel binding of TLS 1.3.
const EXPORTER: &str = "tls-exporter";

/// What the client's first message says about channel binding (RFC 5802 §6).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Binding {
    /// `n`: it can't.
    Unsupported,
    /// `y`: it can, and believes that we can't.
    NotOffered,
    /// `p=tls-exporter`: it does.
    Exporter,
    /// `p=…`: it does in a way that we don't know.
    Unknown,
}

/// The client's first message.
#[derive(Clone, Debug)]
pub struct ClientFirst {
    /// What it says about channel binding.
    pub binding: Binding,
    /// Whom it wants to act as, if it says so.
    pub authzid: Option<String>,
    /// Who it is.
    pub username: String,
    nonce: String,
    gs2_header: String,
    bare: String,
}

impl ClientFirst {
    /// Reads `n,,n=user,r=nonce`; `None` if it is none.
    pub fn parse(message: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(message).ok()?;
        let mut parts = text.splitn(3, ',');
        let (flag, authzid, bare) = (parts.next()?, parts.next()?, parts.next()?);
        let binding = match flag {
            "n" => Binding::Unsupported,
            "y" => Binding::NotOffered,
            _ if flag.strip_prefix("p=")? == EXPORTER => Binding::Exporter,
            _ => Binding::Unknown,
        };
        let authzid = match authzid {
            "" => None,
            named => Some(unescape(named.strip_prefix("a=")?)?),
        };
        let mut attributes = bare.split(',');
        let username = unescape(attributes.next()?.strip_prefix("n=")?)?;
        let nonce = attributes.next()?.strip_prefix("r=")?.to_owned();
        let sound = !username.is_empty() && !nonce.is_empty() && nonce.bytes().all(|b| b.is_ascii_graphic());
        sound.then(|| Self {
            binding,
            authzid,
            username,
            nonce,
            gs2_header: text[..text.len() - bare.len()].to_owned(),
            bare: bare.to_owned(),
        })
    }
}

/// The server's end, behind the client's first message.
#[derive(Debug)]
pub struct Server {
    salt: [u8; 16],
    nonce: String,
    /// What `c=` of the client's last message must say.
    channel: Vec<u8>,
    client_bare: String,
    first: String,
}

impl Server {
    /// Answers a first message. `ours` is random, printable, without a comma, and used only once.
    ///
    /// The password is known in clear, so each exchange has a salt of its own, whoever is asked for:
    /// it says nothing about whether there is such a user.
    pub fn new(client: &ClientFirst, ours: &str, binding: Option<&[u8]>) -> Self {
        let digest = Sha256::digest(format!("salt of {ours}"));
        let mut salt = [0; 16];
        salt.copy_from_slice(&digest[..16]);
        let nonce = format!("{}{ours}", client.nonce);
        let first = format!("r={nonce},s={},i={ITERATIONS}", sasl::encode(salt));
        let mut channel = client.gs2_header.clone().into_bytes();
        if client.binding == Binding::Exporter {
            channel.extend_from_slice(binding.unwrap_or_default());
        }
        Self { salt, nonce, channel, client_bare: client.bare.clone(), first }
    }

    /// Our first message.
    pub fn first(&self) -> &str {
        &self.first
    }

    /// Takes the client's last message apart: what it proves, and the proof. `None` if it is none, or
    /// belongs to another exchange or another TLS connection.
    pub fn proof(&self, message: &[u8]) -> Option<Proof> {
        let text = std::str::from_utf8(message).ok()?;
        let (without_proof, proof) = text.rsplit_once(",p=")?;
        let mut attributes = without_proof.split(',');
        let channel = sasl::decode(attributes.next()?.strip_prefix("c=")?)?;
        let nonce = attributes.next()?.strip_prefix("r=")?;
        let proof = sasl::decode(proof)?.try_into().ok()?;
        let message = format!("{},{},{without_proof}", self.client_bare, self.first);
        (channel == self.channel && nonce == self.nonce).then_some(Proof { salt: self.salt, message, proof })
    }
}

/// A client's claim to know a password.
#[derive(Debug)]
pub struct Proof {
    salt: [u8; 16],
    message: String,
    proof: [u8; 32],
}

impl Proof {
    /// The server's last message, if this is the password.
    pub fn verify(&self, password: &str) -> Option<String> {
        let keys = Keys::derive(password, &self.salt, ITERATIONS);
        let signature = hmac(&keys.stored(), self.message.as_bytes());
        // RFC 5802 §3: what is left of the proof without the signature must be the client's key.
        let claimed = xor(self.proof, signature);
        let right: bool = Sha256::digest(claimed).ct_eq(&Sha256::digest(keys.client)).into();
        right.then(|| keys.server_final(&self.message))
    }
}

/// The client's end.
#[derive(Debug)]
pub struct Client {
    gs2_header: String,
    binding: Vec<u8>,
    bare: String,
}

impl Client {
    /// A client with its first message. `nonce` is random and used only once; `binding` is the TLS
    /// connection's, for SCRAM-SHA-256-PLUS.
    pub fn new(username: &str, nonce: &str, binding: Option<&[u8]>) -> (Self, String) {
        let gs2_header = if binding.is_some() { format!("p={EXPORTER},,") } else { "n,,".to_owned() };
        Self::begin(username, nonce, gs2_header, binding.unwrap_or_default())
    }

    /// A client that has a channel binding and was offered no use of it. A server that did offer it
    /// learns from this that somebody in between took the offer away (RFC 5802 §6).
    pub fn not_offered_binding(username: &str, nonce: &str) -> (Self, String) {
        Self::begin(username, nonce, "y,,".to_owned(), &[])
    }

    fn begin(username: &str, nonce: &str, gs2_header: String, binding: &[u8]) -> (Self, String) {
        let bare = format!("n={},r={nonce}", username.replace('=', "=3D").replace(',', "=2C"));
        let first = format!("{gs2_header}{bare}");
        (Self { gs2_header, binding: binding.to_vec(), bare }, first)
    }

    /// Answers the server's first message: our last one, and what the server must then say to prove
    /// itself. `None` if the server's message is none.
    pub fn respond(&self, password: &str, server_first: &str) -> Option<(String, String)> {
        let mut attributes = server_first.split(',');
        let nonce = attributes.next()?.strip_prefix("r=")?;
        let salt = sasl::decode(attributes.next()?.strip_prefix("s=")?)?;
        let iterations: u32 = attributes.next()?.strip_prefix("i=")?.parse().ok()?;
        let ours = self.bare.rsplit_once("r=").map_or("", |(_, nonce)| nonce);
        // Fewer would let whoever only plays the server guess the password from our proof.
        let extended = nonce.len() > ours.len() && nonce.starts_with(ours);
        if !extended || !(ITERATIONS..=ITERATIONS_MAX).contains(&iterations) {
            return None;
        }
        let channel = [self.gs2_header.as_bytes(), &self.binding].concat();
        let without_proof = format!("c={},r={nonce}", sasl::encode(channel));
        let message = format!("{},{server_first},{without_proof}", self.bare);
        let keys = Keys::derive(password, &salt, iterations);
        let proof = xor(keys.client, hmac(&keys.stored(), message.as_bytes()));
        Some((format!("{without_proof},p={}", sasl::encode(proof)), keys.server_final(&message)))
    }
}

struct Keys {
    client: [u8; 32],
    server: [u8; 32],
}

impl Keys {
    fn derive(password: &str, salt: &[u8], iterations: u32) -> Self {
        // RFC 5802 §2.2: what SASLprep forbids can't be typed the same way twice; it is taken as it is.
        let password = stringprep::saslprep(password).unwrap_or(password.into());
        let mut salted = [0; 32];
        pbkdf2::pbkdf2_hmac::<Sha256>(password.as_bytes(), salt, iterations, &mut salted);
        Self { client: hmac(&salted, b"Client Key"), server: hmac(&salted, b"Server Key") }
    }

    fn stored(&self) -> [u8; 32] {
        Sha256::digest(self.client).into()
    }

    fn server_final(&self, message: &str) -> String {
        format!("v={}", sasl::encode(hmac(&self.server, message.as_bytes())))
    }
}

fn hmac(key: &[u8; 32], message: &[u8]) -> [u8; 32] {
    let mut mac =
        <Hmac<Sha256> as KeyInit>::new_from_slice(key).expect("because HMAC takes keys of any length");
    mac.update(message);
    mac.finalize().into_bytes().into()
}

fn xor(mut a: [u8; 32], b: [u8; 32]) -> [u8; 32] {
    for (a, b) in a.iter_mut().zip(b) {
        *a ^= b;
    }
    a
}

/// RFC 5802 §5.1: `,` and `=` of a name travel as `=2C` and `=3D`, and no other `=` does.
fn unescape(name: &str) -> Option<String> {
    let plain = name.replace("=2C", ",").replace("=3D", "=");
    let escapes = name.matches("=2C").count() + name.matches("=3D").count();
    (name.matches('=').count() == escapes).then_some(plain)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// RFC 7677 §3.
    #[test]
    fn the_example_of_rfc_7677_holds() {
        let (client, first) = Client::new("user", "rOprNGfwEbeRWgbNEkqO", None);
        assert_eq!(first, "n,,n=user,r=rOprNGfwEbeRWgbNEkqO");
        let server_first =
            "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096";
        let (last, server_final) = client.respond("pencil", server_first).unwrap();
        assert_eq!(
            last,
            "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="
        );
        assert_eq!(server_final, "v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=");
    }

    fn exchange(right: &str, given: &str, ours: Option<&[u8]>, theirs: Option<&[u8]>) -> bool {
        let (client, first) = Client::new("a=b,c", "abc", theirs);
        let first = ClientFirst::parse(first.as_bytes()).unwrap();
        assert_eq!(first.username, "a=b,c");
        let server = Server::new(&first, "<1.x@y>", ours);
        let (last, expected) = client.respond(given, server.first()).unwrap();
        let said = server.proof(last.as_bytes()).and_then(|proof| proof.verify(right));
        said.is_some_and(|said| said == expected)
    }

    #[test]
    fn both_ends_agree_on_the_password_and_on_the_connection() {
        assert!(exchange("secret", "secret", None, None));
        assert!(exchange("sécret", "se\u{301}cret", None, None), "SASLprep");
        assert!(!exchange("secret", "Secret", None, None));
        assert!(!exchange("", "secret", None, None));
        let (one, other) = ([1; 32], [2; 32]);
        assert!(exchange("secret", "secret", Some(&one), Some(&one)));
        assert!(!exchange("secret", "secret", Some(&one), Some(&other)));
        assert!(!exchange("secret", "secret", None, Some(&other)));
    }

    #[test]
    fn a_server_that_makes_guessing_easy_or_asks_for_too_much_work_gets_no_proof() {
        let (client, _) = Client::new("user", "abc", None);
        for (first, answered) in [
            ("r=abcd,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096", true),
            ("r=abcd,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4095", false),
            ("r=abcd,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=200001", false),
            ("r=abc,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096", false),
            ("r=xyzd,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096", false),
            ("m=x,r=abcd,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096", false),
            ("", false),
        ] {
            assert_eq!(client.respond("secret", first).is_some(), answered, "{first}");
        }
    }

    #[test]
    fn who_was_offered_no_binding_says_so_and_a_server_that_has_one_hears_it() {
        let (_, first) = Client::not_offered_binding("user", "abc");
        assert_eq!(ClientFirst::parse(first.as_bytes()).unwrap().binding, Binding::NotOffered);
    }

    #[test]
    fn a_proof_is_worth_nothing_in_another_exchange() {
        let (client, first) = Client::new("a", "abc", None);
        let first = ClientFirst::parse(first.as_bytes()).unwrap();
        let (one, other) = (Server::new(&first, "1", None), Server::new(&first, "2", None));
        assert_ne!(one.first(), other.first());
        let (last, _) = client.respond("secret", one.first()).unwrap();
        assert!(one.proof(last.as_bytes()).is_some_and(|proof| proof.verify("secret").is_some()));
        assert!(other.proof(last.as_bytes()).is_none());
    }

    proptest! {
        #[test]
        fn no_message_is_too_odd(message in "[npya=,rt2CD3s:cdi0-9-]{0,40}") {
            if let Some(first) = ClientFirst::parse(message.as_bytes()) {
                let server = Server::new(&first, "x", None);
                prop_assert!(server.proof(message.as_bytes()).is_none());
            }
        }
    }
}
