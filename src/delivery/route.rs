//! Which upstreams a recipient's mail may go by, and in which order. Pure: the same facts give the
//! same order, so that a change of settings applies to mail that is queued already.

use crate::{config::Serves, smtp::address::Mailbox};

/// What a route depends on beside the recipient.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// Who it is from; `None` for a report, which belongs to all.
    pub sender: Option<&'a Mailbox>,
    /// The login that handed it in.
    pub user: Option<&'a str>,
    /// Spreads messages, and tries of one message, over upstreams of the same priority.
    pub seed: u64,
}

/// The places in `upstreams` of those that serve this mail, the one to be tried first in front.
pub fn order<'u>(
    upstreams: impl IntoIterator<Item = &'u Serves>,
    facts: Facts<'_>,
    recipient: &Mailbox,
) -> Vec<usize> {
    let serving = upstreams.into_iter().enumerate().filter(|(_, serves)| is_for(serves, facts, recipient));
    let mut ranked: Vec<(u32, f64, usize)> =
        serving.map(|(place, serves)| (serves.priority, chance(serves, facts.seed, place), place)).collect();
    ranked.sort_by(|a, b| (a.0, a.1, a.2).partial_cmp(&(b.0, b.1, b.2)).unwrap_or(a.2.cmp(&b.2)));
    ranked.into_iter().map(|(_, _, place)| place).collect()
}

fn is_for(serves: &Serves, facts: Facts<'_>, recipient: &Mailbox) -> bool {
    let sender = |from| serves.senders.iter().any(|pattern| pattern.matches(from));
    let named = |user| serves.users.iter().any(|name| name == user);
    (serves.senders.is_empty() || facts.sender.is_none_or(sender))
        && (serves.users.is_empty() || facts.user.is_some_and(named))
        && (serves.recipients.is_empty()
            || serves.recipients.iter().any(|pattern| pattern.matches(recipient)))
}

/// A waiting time drawn at random with the weight as its rate: the shortest goes first, and each goes
/// first as often as its weight says.
fn chance(serves: &Serves, seed: u64, place: usize) -> f64 {
    // 53 bits are what a float holds; never 0, whose logarithm is none.
    let random = mixed(seed ^ mixed(place as u64 + 1)) >> 11;
    let unit = (random as f64 + 0.5) / (1_u64 << 53) as f64;
    -unit.ln() / f64::from(serves.weight.max(1))
}

/// SplitMix64's finisher: neighbouring seeds share nothing.
fn mixed(seed: u64) -> u64 {
    let z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::smtp::pattern::AddressPattern;

    fn serves(priority: u32, weight: u32) -> Serves {
        Serves { priority, weight, ..Serves::default() }
    }

    fn mailbox(text: &str) -> Mailbox {
        Mailbox::parse(text).unwrap()
    }

    fn patterns(texts: &[&str]) -> Vec<AddressPattern> {
        texts.iter().map(|text| AddressPattern::parse(text).unwrap()).collect()
    }

    #[track_caller]
    fn check(all: &[Serves], sender: Option<&str>, user: Option<&str>, recipient: &str, expected: &[usize]) {
        let sender = sender.map(mailbox);
        let facts = Facts { sender: sender.as_ref(), user, seed: 1 };
        assert_eq!(order(all, facts, &mailbox(recipient)), expected, "{sender:?} {user:?} {recipient}");
    }

    #[test]
    fn mail_goes_by_those_that_serve_it_the_lowest_priority_first() {
        let all = [
            Serves { senders: patterns(&["shop.example"]), ..serves(5, 1) },
            Serves { users: vec!["crm".into()], ..serves(0, 1) },
            Serves { recipients: patterns(&["a@b.example", ".c.example"]), ..serves(9, 1) },
            serves(7, 1),
        ];
        check(&all, Some("x@shop.example"), None, "u@v.example", &[0, 3]);
        check(&all, Some("x@other.example"), Some("crm"), "u@v.example", &[1, 3]);
        check(&all, Some("x@other.example"), Some("CRM"), "a@b.example", &[3, 2]);
        check(&all, None, None, "u@x.c.example", &[0, 3, 2]);
        check(&all[..2], Some("x@other.example"), None, "u@v.example", &[]);
    }

    #[test]
    fn each_of_the_same_priority_goes_first_as_often_as_its_weight_says() {
        let all = [serves(0, 3), serves(0, 1), serves(1, 100)];
        let to = mailbox("u@v.example");
        let mut first = [0; 3];
        for seed in 0..10_000 {
            let order = order(&all, Facts { sender: None, user: None, seed }, &to);
            first[order[0]] += 1;
            assert_eq!(order[2], 2, "a priority is not a weight");
        }
        assert!((7_300..7_700).contains(&first[0]), "{first:?}");
        assert_eq!(first[2], 0);
    }
}
