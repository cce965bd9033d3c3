//! What of people's addresses the log shows: `smtp_log_addresses`.
//!
//! A line is masked as text, wherever in it an address stands: in a field of an event, in an upstream's
//! words, in a complaint. What is not in doubt is an `@` with a domain behind it; what stands before it up
//! to a blank or a bracket is taken for the local-part, rather more than less.

use std::borrow::Cow;

use hmac::{Hmac, KeyInit, Mac as _};
use sha2::Sha256;

/// How addresses are shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Addresses {
    /// As they are.
    #[default]
    Full,
    /// Their domain only.
    Domain,
    /// A number that is the same for the same address, in this installation only.
    Hash,
}

/// Masks the addresses of a line.
#[derive(Clone)]
pub struct Mask {
    addresses: Addresses,
    key: [u8; 32],
}

impl std::fmt::Debug for Mask {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mask").field("addresses", &self.addresses).finish_non_exhaustive()
    }
}

impl Default for Mask {
    fn default() -> Self {
        Self::new(Addresses::Full, [0; 32])
    }
}

impl Mask {
    /// A mask; the key makes numbers of addresses unlike those of other installations.
    pub fn new(addresses: Addresses, key: [u8; 32]) -> Self {
        Self { addresses, key }
    }

    /// The text with its addresses as they are to be shown.
    pub fn apply<'t>(&self, text: &'t str) -> Cow<'t, str> {
        if self.addresses == Addresses::Full || !text.contains('@') {
            return Cow::Borrowed(text);
        }
        let (mut masked, mut from) = (String::with_capacity(text.len()), 0);
        for (at, _) in text.match_indices('@') {
            if at < from {
                continue;
            }
            let (begin, end) = (from + local_part(&text[from..at]), at + 1 + domain(&text[at + 1..]));
            if begin == at || end == at + 1 {
                continue;
            }
            masked.push_str(&text[from..begin]);
            match self.addresses {
                Addresses::Hash => masked.push_str(&self.number(&text[begin..end])),
                _ => {
                    masked.push('…');
                    masked.push_str(&text[at..end]);
                }
            }
            from = end;
        }
        masked.push_str(&text[from..]);
        Cow::Owned(masked)
    }

    fn number(&self, address: &str) -> String {
        let mut mac = <Hmac<Sha256> as KeyInit>::new_from_slice(&self.key)
            .expect("because HMAC takes keys of any length");
        mac.update(address.to_ascii_lowercase().as_bytes());
        let digest = mac.finalize().into_bytes();
        digest.iter().take(8).fold("#".to_owned(), |text, octet| format!("{text}{octet:02x}"))
    }
}

/// Where the local-part that ends this text begins.
fn local_part(text: &str) -> usize {
    if let Some(inner) = text.strip_suffix('"') {
        // In quotes, which may be escaped themselves.
        let begin = inner.rfind('"').unwrap_or(0);
        return if inner[..begin].ends_with('\\') { begin - 1 } else { begin };
    }
    let ends = |c: char| c.is_whitespace() || c.is_control() || "<>()[],;:\"=\\".contains(c);
    // VERP and the like have an `=` inside, behind something that a field's name is not.
    let begin = text.rfind(ends).map_or(0, |at| at + text[at..].chars().next().map_or(1, char::len_utf8));
    match text[..begin].strip_suffix('=') {
        Some(before) if before.ends_with(|c: char| c.is_alphanumeric()) => {
            let ahead = before.trim_end_matches(|c: char| c.is_ascii_lowercase() || c == '_');
            let is_field = ahead.chars().next_back().is_none_or(char::is_whitespace);
            if is_field { begin } else { local_part(before) }
        }
        _ => begin,
    }
}

/// Where the domain that begins this text ends.
fn domain(text: &str) -> usize {
    if text.starts_with('[') {
        return text.find(']').map_or(0, |end| end + 1);
    }
    let part = |c: char| c.is_alphanumeric() || matches!(c, '.' | '-');
    let end = text.find(|c: char| !part(c)).unwrap_or(text.len());
    text[..end].trim_end_matches(['.', '-']).len()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "delivered id=X sender=app+x@a.example recipient=\"ü@b.example,\\\"john doe\\\"@c.example\" \
                        reply=\"550 5.1.1 <bounce-user=d.example@e.example>: no ok@[192.0.2.1].\" at @ 9";

    #[test]
    fn addresses_are_masked_wherever_they_stand() {
        assert_eq!(Mask::default().apply(TEXT), TEXT);
        let domain = Mask::new(Addresses::Domain, [0; 32]);
        let masked = domain.apply(TEXT);
        assert_eq!(
            masked,
            "delivered id=X sender=…@a.example recipient=\"…@b.example,…@c.example\" \
             reply=\"550 5.1.1 <…@e.example>: no …@[192.0.2.1].\" at @ 9"
        );
        assert_eq!(domain.apply(&masked), masked);
        let hash = Mask::new(Addresses::Hash, [7; 32]);
        let masked = hash.apply(TEXT);
        for part in ["app", "a.example", "john", "doe", "bounce", "user", "192.0.2.1]"] {
            assert!(!masked.contains(part), "{part}: {masked}");
        }
        assert_eq!(hash.apply("x A@b.example"), hash.apply("x a@B.example"));
        assert_ne!(hash.apply("a@b.example"), hash.apply("b@b.example"));
        assert_ne!(hash.apply("a@b.example"), Mask::new(Addresses::Hash, [8; 32]).apply("a@b.example"));
    }

    proptest::proptest! {
        #[test]
        fn nothing_of_a_plain_local_part_is_left(
            local in "[a-z]{4,8}[0-9+._-]{0,3}[a-z]{1,3}", before in "\\PC{0,10}[ <,=]", behind in "[ >,)]\\PC{0,10}"
        ) {
            proptest::prop_assume!(!before.contains(&local) && !behind.contains(&local));
            for addresses in [Addresses::Domain, Addresses::Hash] {
                let masked = Mask::new(addresses, [1; 32]).apply(&format!("{before}{local}@b.example{behind}")).into_owned();
                proptest::prop_assert!(!masked.contains(&local), "{masked}");
            }
        }
    }
}
