//! Replies that repeat a secret: some servers show a command that they don't know, or their trouble with
//! it, and words of theirs are kept and shown wherever an operator looks.

use secrecy::ExposeSecret as _;

use crate::{
    config::Login,
    smtp::{reply::Reply, sasl},
};

/// What stands where a secret stood.
const WITHHELD: &str = "(withheld)";
/// A shorter password would be found in innocent words; what holds it in base64 is longer.
const LENGTH_MIN: usize = 4;
/// So many octets of a longer one give something away.
const PART: usize = 16;

/// The reply without what was sent to log in: the password or token, and what it was sent as.
pub(super) fn withheld(reply: Reply, login: &Login) -> Reply {
    let (user, password) = (login.username.as_str(), login.password.expose_secret());
    let sent = [
        sasl::encode(sasl::plain(user, password)),
        sasl::encode(sasl::oauthbearer(user, password)),
        sasl::encode(sasl::xoauth2(user, password)),
        sasl::encode(password),
        password.to_owned(),
    ];
    match without(&reply.lines().collect::<Vec<_>>().join("\n"), &sent) {
        Some(text) => Reply::new(reply.code(), reply.enhanced(), text),
        None => reply,
    }
}

/// The text without these secrets; `None` if none of them is in it.
pub(super) fn without(text: &str, secrets: &[String]) -> Option<String> {
    let (mut text, mut found) = (text.to_owned(), false);
    for secret in secrets.iter().filter(|secret| secret.len() >= LENGTH_MIN) {
        // A server that cuts a long command short shows a part of it.
        let bare = secret.trim_end_matches('=');
        if text.contains(bare) {
            text = text.replace(bare, WITHHELD);
            found = true;
        } else if let Some(at) = beginning(&text, bare) {
            text.replace_range(at, WITHHELD);
            found = true;
        }
    }
    found.then_some(text)
}

/// Where the beginning of a secret stands at the end of a line, if it is long enough to give something
/// away.
fn beginning(text: &str, secret: &str) -> Option<std::ops::Range<usize>> {
    if secret.len() < PART {
        return None;
    }
    let at = text.find(&secret[..secret.floor_char_boundary(PART)])?;
    let same = text[at..].bytes().zip(secret.bytes()).take_while(|(a, b)| a == b).count();
    // Another character may begin with the same octets; it goes, too.
    Some(at..text.ceil_char_boundary(at + same))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::AuthMechanism;

    #[track_caller]
    fn check(said: &str, shown: &str) {
        let login = Login {
            username: "user".into(),
            password: "open sesame, 4711".into(),
            mechanism: AuthMechanism::Auto,
            oauth: None,
        };
        let got = withheld(Reply::new(535, None, said.to_owned()), &login);
        assert_eq!(got.lines().collect::<Vec<_>>().join("\n"), shown);
    }

    #[test]
    fn what_was_sent_is_not_repeated() {
        check("no such user", "no such user");
        check("wrong password: open sesame, 4711!", "wrong password: (withheld)!");
        check(
            "bad command: AUTH PLAIN AHVzZXIAb3BlbiBzZXNhbWUsIDQ3MTE=",
            "bad command: AUTH PLAIN (withheld)=",
        );
        check("first\nb3BlbiBzZXNhbWUsIDQ3MTE= ?", "first\n(withheld)= ?");
        check("AUTH PLAIN AHVzZXIAb3BlbiBzZXNhb...", "AUTH PLAIN (withheld)...");
    }

    #[test]
    fn a_part_of_a_secret_is_found_among_whatever_characters() {
        let cases = [
            // The two letters begin with the same octet.
            ("sixteen-octets--äx", "sixteen-octets--ö!", "(withheld)!"),
            ("fifteen-octets-äbc", "fifteen-octets-ä...", "(withheld)..."),
            ("fifteen-octets-äbc", "fifteen-octets-", "(withheld)"),
            ("sixteen-octets--äx", "sixteen-octets--", "(withheld)"),
        ];
        for (secret, said, shown) in cases {
            let got = without(&format!("wrong: {said}"), &[secret.to_owned()]);
            assert_eq!(got, Some(format!("wrong: {shown}")), "{secret}");
        }
        assert_eq!(without("wrong: short-öä", &["short-öäü".to_owned()]), None);
    }
}
