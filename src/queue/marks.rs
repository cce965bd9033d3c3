//! Marks: what a row of the store tells of its entry, so that the entry need not be read to know whose
//! turn it is and whether a filter may mean it.
//!
//! They are stored: what makes them must not change without a new format. Two different addresses may
//! have the same mark, so a mark finds candidates, and the entry itself has the last word.

use super::entry::Entry;

/// Whose turn an entry takes: its priority, and the sender among whose mail it stands.
///
/// A sender is a login. Where nobody logged in it is a client with the domain of the reverse-path, so
/// that the apps behind one address, and the hosts of one domain, are told apart as far as they can be.
/// Senders of a priority take turns; two in 67 million share theirs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Flow(u32);

/// Bits of a [`Flow`] that tell senders apart.
const SENDER_BITS: u32 = 26;
/// RFC 6710 §4.1: the highest priority.
const HIGHEST: i8 = 9;

impl Flow {
    /// Before all others.
    pub(super) const FIRST: Self = Self(0);

    /// The flow of an entry.
    pub fn of(entry: &Entry) -> Self {
        let sender = match &entry.origin.user {
            Some(user) => crc32c::crc32c(user.as_bytes()),
            None => {
                let client = crc32c::crc32c_append(!0, entry.origin.client.as_bytes());
                crc32c::crc32c_append(client, domain(entry.reverse_path.as_str()).as_bytes())
            }
        };
        let rank = (HIGHEST - entry.handling.priority.clamp(-HIGHEST, HIGHEST)).unsigned_abs();
        Self(u32::from(rank) << SENDER_BITS | sender >> (32 - SENDER_BITS))
    }

    /// Its priority, the highest being 0.
    pub fn rank(self) -> u32 {
        self.0 >> SENDER_BITS
    }

    /// As the store keeps it.
    pub(super) fn from_i64(value: i64) -> Self {
        Self(u32::try_from(value).unwrap_or_default())
    }

    /// As the store keeps it.
    pub(super) fn to_i64(self) -> i64 {
        self.0.into()
    }
}

/// The mark of a sender: that of its domain, and that of its address, 31 bits each. 0 is the null
/// reverse-path.
pub(super) fn sender(address: &str) -> i64 {
    if address.is_empty() { 0 } else { i64::from(of_domain(address)) << 31 | i64::from(of_address(address)) }
}

/// The marks of recipients, of each address and each domain once.
pub(super) fn recipients<'a>(addresses: impl Iterator<Item = &'a str>) -> Vec<u8> {
    let mut marks: Vec<u32> =
        addresses.flat_map(|address| [of_address(address), of_domain(address)]).collect();
    marks.sort_unstable();
    marks.dedup();
    marks.into_iter().flat_map(u32::to_be_bytes).collect()
}

/// What a filter wants of an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    /// The null reverse-path.
    Nobody,
    /// Any of this `@domain`, by its mark.
    Domain(u32),
    /// This one, by its mark.
    Address(u32),
}

impl Wanted {
    pub(super) fn of(text: &str) -> Self {
        match text {
            "<>" => Self::Nobody,
            _ if text.starts_with('@') => Self::Domain(of_domain(text)),
            _ => Self::Address(of_address(text)),
        }
    }
}

/// Whether an address is meant by what people write: an address in any case, all of an `@domain`, or
/// `<>` for the null sender.
pub fn is_meant(wanted: &str, address: &str) -> bool {
    match wanted {
        "<>" => address.is_empty(),
        _ if wanted.starts_with('@') => {
            address.rfind('@').is_some_and(|at| address[at..].eq_ignore_ascii_case(wanted))
        }
        _ => address.eq_ignore_ascii_case(wanted),
    }
}

/// 31 bits, so that two of them fit into a number of SQLite.
fn mark(text: &str) -> u32 {
    crc32c::crc32c(text.to_ascii_lowercase().as_bytes()) >> 1
}

fn of_address(address: &str) -> u32 {
    mark(address)
}

fn of_domain(address: &str) -> u32 {
    mark(&domain(address))
}

/// The domain with its `@`, in lower case; empty where there is none.
fn domain(address: &str) -> String {
    address.rfind('@').map_or_else(String::new, |at| address[at..].to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::queue::entry::tests::sample;

    #[test]
    fn an_address_is_meant_by_itself_its_domain_or_as_nobody() {
        assert!(is_meant("A@b.example", "a@B.example"));
        assert!(is_meant("@b.example", "a@B.example"));
        assert!(is_meant("<>", ""));
        for (wanted, address) in
            [("@b.example", "a@sub.b.example"), ("b.example", "a@b.example"), ("<>", "a@b"), ("@b", "")]
        {
            assert!(!is_meant(wanted, address), "{wanted} {address}");
        }
    }

    #[test]
    fn whatever_is_meant_has_the_mark_that_is_looked_for() {
        let addresses =
            ["a@b.example", "A@B.EXAMPLE", "\"x@y\"@b.example", "postmaster", "grüße@bücher.example"];
        for address in addresses {
            for wanted in
                [address.to_owned(), address.to_uppercase(), "@B.example".to_owned(), "<>".to_owned()]
            {
                if !is_meant(&wanted, address) {
                    continue;
                }
                let sender = sender(address);
                let marks = recipients([address, "other@else.example"].into_iter());
                let is_among = |mark: u32| marks.chunks(4).any(|one| one == mark.to_be_bytes());
                match Wanted::of(&wanted) {
                    Wanted::Nobody => assert_eq!(sender, 0),
                    Wanted::Domain(mark) => assert!(sender >> 31 == i64::from(mark) && is_among(mark)),
                    Wanted::Address(mark) => {
                        assert!(sender & 0x7FFF_FFFF == i64::from(mark) && is_among(mark));
                    }
                }
            }
        }
        assert_eq!(sender(""), 0);
    }

    #[test]
    fn a_flow_is_a_priority_and_a_sender() {
        let entry = sample(1);
        let changed = |change: &dyn Fn(&mut Entry)| {
            let mut entry = entry.clone();
            change(&mut entry);
            Flow::of(&entry)
        };
        let flow = Flow::of(&entry);
        assert_eq!(changed(&|entry| entry.subject = None), flow);
        assert!(changed(&|entry| entry.handling.priority = 9) < flow);
        assert!(changed(&|entry| entry.handling.priority = -9) > flow);
        assert_eq!(changed(&|entry| entry.handling.priority = 9).rank(), 0);
        let login = |name: &str| changed(&|entry| entry.origin.user = Some(name.to_owned()));
        assert_ne!(login("shop"), flow);
        assert_ne!(login("shop"), login("newsletter"));
        assert_ne!(changed(&|entry| entry.origin.client = "10.0.0.2".to_owned()), flow);
        assert!(changed(&|entry| entry.handling.priority = i8::MIN).to_i64() <= i64::from(u32::MAX >> 1));
        assert_eq!(Flow::from_i64(flow.to_i64()), flow);
        // Written down, because what is stored was made by it.
        assert_eq!((flow.to_i64(), sender("App@Sender.example")), (664_898_671, 3_596_537_112_188_576_777));
    }
}
