//! How long a client with a wrong password waits for the answer.
//!
//! Guessing gets slower with each miss, by client address: not by account, for whoever could lock an
//! account could stop an app's mail. Only wrong answers wait, so an app with the right password never
//! does, even if it shares its address with an attacker.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use super::party::Party;

/// The wait behind the first wrong password; it doubles with each further one.
const FIRST: Duration = Duration::from_secs(1);
/// No wait is longer, because the client holds one of its places meanwhile.
const LONGEST: Duration = Duration::from_secs(30);
/// One miss is forgotten in each such time.
const DECAY: Duration = Duration::from_secs(60);
/// Beyond it misses make no difference.
const MISSES_MAX: u32 = 6;
/// Addresses that are remembered; whoever comes from more has a network, and is slowed by it.
const ADDRESSES_MAX: usize = 4096;

/// The misses of each client address. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Penalties(Arc<Mutex<HashMap<Party, Misses>>>);

#[derive(Clone, Copy, Debug)]
struct Misses {
    count: u32,
    last: Instant,
}

impl Misses {
    fn left(self, now: Instant) -> u32 {
        let forgotten = (now - self.last).as_secs() / DECAY.as_secs();
        self.count.saturating_sub(u32::try_from(forgotten).unwrap_or(u32::MAX))
    }
}

impl Penalties {
    /// A wrong password from there: how long its answer waits.
    pub fn miss(&self, client: IpAddr) -> Duration {
        let (now, client) = (Instant::now(), Party::from(client));
        let mut table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let before = table.get(&client).map_or(0, |misses| misses.left(now));
        if table.len() >= ADDRESSES_MAX && !table.contains_key(&client) {
            table.retain(|_, misses| misses.left(now) > 0);
            let mildest = table.iter().min_by_key(|(_, misses)| (misses.left(now), misses.last));
            if let Some(mildest) =
                mildest.map(|(address, _)| *address).filter(|_| table.len() >= ADDRESSES_MAX)
            {
                table.remove(&mildest);
            }
        }
        table.insert(client, Misses { count: (before + 1).min(MISSES_MAX), last: now });
        (FIRST * 2_u32.pow(before)).min(LONGEST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(number: u32) -> IpAddr {
        IpAddr::from(std::net::Ipv4Addr::from(number))
    }

    #[tokio::test(start_paused = true)]
    async fn waits_grow_by_address_and_are_forgotten_in_time() {
        let penalties = Penalties::default();
        let waits = |n: usize| (0..n).map(|_| penalties.miss(client(1)).as_secs()).collect::<Vec<_>>();
        assert_eq!(waits(8), [1, 2, 4, 8, 16, 30, 30, 30]);
        assert_eq!(penalties.miss(client(2)).as_secs(), 1, "somebody else");
        tokio::time::advance(DECAY * 3).await;
        assert_eq!(waits(1), [8], "three of six are forgotten");
        tokio::time::advance(DECAY * 10).await;
        assert_eq!(waits(1), [1]);
        let v6 = |text: &str| penalties.miss(text.parse().unwrap()).as_secs();
        assert_eq!([v6("2001:db8::1"), v6("2001:db8::2"), v6("2001:db8:0:1::1")], [1, 2, 1]);
    }

    #[tokio::test(start_paused = true)]
    async fn the_table_is_bounded_and_keeps_the_worst() {
        let penalties = Penalties::default();
        for _ in 0..3 {
            penalties.miss(client(0));
        }
        for number in 1..(ADDRESSES_MAX as u32 + 100) {
            penalties.miss(client(number));
        }
        assert_eq!(penalties.0.lock().unwrap().len(), ADDRESSES_MAX);
        assert_eq!(penalties.miss(client(0)).as_secs(), 8);
    }
}
