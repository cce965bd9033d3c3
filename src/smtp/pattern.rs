//! Which addresses a list means: one, those of a domain, those of its subdomains; and which address
//! stands for which.

use std::fmt;

use super::address::{Mailbox, check_domain};

/// An entry of a list of addresses, as operators write it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AddressPattern {
    /// `shop@example.com`: this address.
    Address(Mailbox),
    /// `example.com` or `@example.com`: every address of this domain, and of no subdomain.
    Domain(String),
    /// `.example.com`: every address of any subdomain, and not of the domain itself.
    Subdomains(String),
}

impl AddressPattern {
    /// Reads one; `None` if it is none.
    pub fn parse(text: &str) -> Option<Self> {
        // A legal character of a local-part, but here always meant as a wildcard.
        if text.contains('*') {
            return None;
        }
        let domain = |text: &str| check_domain(text).ok().map(|()| text.to_ascii_lowercase());
        match (text.strip_prefix('@'), text.strip_prefix('.')) {
            (Some(name), _) => domain(name).map(Self::Domain),
            (_, Some(name)) => domain(name).map(|name| Self::Subdomains(format!(".{name}"))),
            _ if text.contains('@') => Mailbox::parse(text).ok().map(Self::Address),
            _ => domain(text).map(Self::Domain),
        }
    }

    /// Whether it means this address.
    ///
    /// RFC 5321 §2.4 leaves the case of a local-part to its host. Here it doesn't count: no operator
    /// means two people by two spellings, and the address itself travels on as it was written.
    pub fn matches(&self, mailbox: &Mailbox) -> bool {
        match self {
            Self::Address(address) => address.as_str().eq_ignore_ascii_case(mailbox.as_str()),
            Self::Domain(domain) => domain.eq_ignore_ascii_case(mailbox.domain()),
            Self::Subdomains(suffix) => {
                let domain = mailbox.domain().as_bytes();
                let tail = domain.len().checked_sub(suffix.len()).map(|at| &domain[at..]);
                tail.is_some_and(|tail| tail.eq_ignore_ascii_case(suffix.as_bytes()))
            }
        }
    }
}

impl fmt::Display for AddressPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Domain(text) | Self::Subdomains(text) => f.write_str(text),
        }
    }
}

/// Which address stands in the place of another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AddressMap {
    /// The first that fits is taken.
    rules: Vec<(AddressPattern, Mailbox)>,
    /// What stands for all others, words that are no address among them.
    others: Option<Mailbox>,
}

impl AddressMap {
    /// One address for all.
    pub fn all(address: Mailbox) -> Self {
        Self { rules: Vec::new(), others: Some(address) }
    }

    /// By patterns, of which the first that fits is taken; what fits none stays.
    pub fn of_patterns(rules: Vec<(AddressPattern, Mailbox)>) -> Self {
        Self { rules, others: None }
    }

    /// What stands in the place of `address`, unless it may stay as it is.
    pub fn of(&self, address: &str) -> Option<&Mailbox> {
        let fits = |mailbox: &Mailbox| self.rules.iter().find(|(pattern, _)| pattern.matches(mailbox));
        let ruled = Mailbox::parse(address).ok().and_then(|mailbox| Some(&fits(&mailbox)?.1));
        ruled.or(self.others.as_ref()).filter(|new| new.as_str() != address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_means_an_address_a_domain_or_its_subdomains() {
        let cases = [
            ("shop@Example.com", "Shop@example.COM", true),
            ("shop@example.com", "shop+1@example.com", false),
            ("shop@example.com", "workshop@example.com", false),
            ("example.com", "a@EXAMPLE.com", true),
            ("@Example.com", "a@example.com", true),
            ("example.com", "a@mail.example.com", false),
            ("example.com", "a@badexample.com", false),
            (".example.com", "a@mail.example.com", true),
            (".example.com", "a@x.MAIL.example.com", true),
            (".example.com", "a@example.com", false),
            (".example.com", "a@badexample.com", false),
            ("example.com", "\"a@example.com\"@evil.example", false),
            ("example.com", "a%example.com@evil.example", false),
            ("example.com", "postmaster", false),
        ];
        for (pattern, address, expected) in cases {
            let pattern = AddressPattern::parse(pattern).unwrap();
            assert_eq!(pattern.matches(&Mailbox::parse(address).unwrap()), expected, "{pattern} {address}");
        }
        for wrong in ["", "@", ".", "a b", "*.example.com", "a@", "@a@b", "..a", "<a@b>"] {
            assert_eq!(AddressPattern::parse(wrong), None, "{wrong}");
        }
    }
}
