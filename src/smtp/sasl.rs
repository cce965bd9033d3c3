//! The octets of the SASL mechanisms: PLAIN (RFC 4616), LOGIN, CRAM-MD5 (RFC 2195).
//!
//! Both ends use them: what the client side writes, the server side reads. Whether a password is
//! right is decided elsewhere.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use hmac::{Hmac, KeyInit, Mac};
use md5::Md5;
use subtle::ConstantTimeEq;

/// RFC 4954 §4: the longest line of an AUTH exchange.
pub const LINE_MAX: usize = 12_288;

/// Octets to base64.
pub fn encode(octets: impl AsRef<[u8]>) -> String {
    STANDARD.encode(octets)
}

/// Base64 to octets; `None` if it is none.
pub fn decode(text: &str) -> Option<Vec<u8>> {
    // RFC 4954 §4: a lone "=" stands for an empty response.
    if text == "=" { Some(Vec::new()) } else { STANDARD.decode(text).ok() }
}

/// The single message of PLAIN.
pub fn plain(username: &str, password: &str) -> Vec<u8> {
    format!("\0{username}\0{password}").into_bytes()
}

/// The message of XOAUTH2, as Google and Microsoft document it.
pub fn xoauth2(username: &str, token: &str) -> Vec<u8> {
    format!("user={username}\x01auth=Bearer {token}\x01\x01").into_bytes()
}

/// The message of OAUTHBEARER (RFC 7628 §3.1). In the name, `,` and `=` are written out.
pub fn oauthbearer(username: &str, token: &str) -> Vec<u8> {
    let name = username.replace('=', "=3D").replace(',', "=2C");
    format!("n,a={name},\x01auth=Bearer {token}\x01\x01").into_bytes()
}

/// Takes the message of PLAIN apart: whom it wants to act as (empty: as itself), user name, password.
pub fn parse_plain(message: &[u8]) -> Option<(&str, &str, &str)> {
    let mut parts = std::str::from_utf8(message).ok()?.split('\0');
    let (authzid, username, password) = (parts.next()?, parts.next()?, parts.next()?);
    let sound = parts.next().is_none() && !username.is_empty();
    sound.then_some((authzid, username, password))
}

/// The response to a CRAM-MD5 challenge.
pub fn cram_md5(username: &str, password: &str, challenge: &[u8]) -> String {
    use std::fmt::Write as _;
    let mut response = format!("{username} ");
    for byte in hmac_md5(password, challenge).finalize().into_bytes() {
        let _ = write!(response, "{byte:02x}");
    }
    response
}

/// Takes a CRAM-MD5 response apart: user name and digest in hexadecimal.
pub fn parse_cram_md5(response: &[u8]) -> Option<(&str, &str)> {
    let (username, digest) = std::str::from_utf8(response).ok()?.rsplit_once(' ')?;
    (!username.is_empty() && digest.len() == 32).then_some((username, digest))
}

/// Whether the digest is that of the password, in a time that doesn't depend on where they differ.
pub fn verify_cram_md5(password: &str, challenge: &[u8], digest: &str) -> bool {
    let expected = cram_md5("", password, challenge);
    expected.as_bytes()[1..].ct_eq(digest.to_ascii_lowercase().as_bytes()).into()
}

/// Whether two secrets are equal, in a time that doesn't depend on where they differ.
pub fn same_secret(a: &str, b: &str) -> bool {
    use sha2::Digest as _;
    // Digests have one length, so not even the length of the right one is told.
    sha2::Sha256::digest(a).ct_eq(&sha2::Sha256::digest(b)).into()
}

fn hmac_md5(key: &str, message: &[u8]) -> Hmac<Md5> {
    let mut mac = <Hmac<Md5> as KeyInit>::new_from_slice(key.as_bytes())
        .expect("because HMAC takes keys of any length");
    mac.update(message);
    mac
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_of_rfc_2195_holds() {
        let challenge = b"<1896.697170952@postoffice.reston.mci.net>";
        let response = cram_md5("tim", "tanstaaftanstaaf", challenge);
        assert_eq!(response, "tim b913a602c7eda7a495b4e6e7334d3890");
        let (user, digest) = parse_cram_md5(response.as_bytes()).unwrap();
        assert_eq!(user, "tim");
        assert!(verify_cram_md5("tanstaaftanstaaf", challenge, digest));
        assert!(!verify_cram_md5("wrong", challenge, digest));
    }

    #[test]
    fn plain_is_read_back() {
        assert_eq!(parse_plain(&plain("a", "b c")), Some(("", "a", "b c")));
        assert_eq!(parse_plain(b"root\0a\0p"), Some(("root", "a", "p")));
        assert_eq!(parse_plain(b"\0\0p"), None);
        assert_eq!(parse_plain(b"\0a\0p\0x"), None);
        assert_eq!(parse_plain(b"a"), None);
    }
}
