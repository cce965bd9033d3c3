//! Places of connections to the page and the API: so many at once, and over TCP no more than half of them for one
//! party.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::listener::party::Party;

/// The most connections at once.
const MOST: usize = 512;

/// All places. Clones share them.
#[derive(Clone, Debug)]
pub(super) struct Places(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    free: Arc<Semaphore>,
    of_one: usize,
    parties: Mutex<HashMap<Party, usize>>,
}

/// The place of one connection. Given back when dropped.
#[derive(Debug)]
pub(super) struct Place {
    places: Places,
    party: Party,
    _free: OwnedSemaphorePermit,
}

/// How many connections there may be at once where a process may have so many descriptors.
pub fn places(descriptors: usize) -> usize {
    (descriptors / 8).clamp(16, MOST)
}

impl Places {
    /// So many, of which one party may have so many.
    pub(super) fn new(most: usize, of_one: usize) -> Self {
        let free = Arc::new(Semaphore::new(most));
        Self(Arc::new(Inner { free, of_one, parties: Mutex::default() }))
    }

    /// Waits until another connection may come; `None` can't be.
    pub(super) async fn one(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.0.free).acquire_owned().await.ok()
    }

    /// The place of a connection from there; `None` if its party has as many as it may.
    pub(super) fn of(&self, client: IpAddr, free: OwnedSemaphorePermit) -> Option<Place> {
        let party = Party::from(client);
        let mut parties = self.parties();
        let count = parties.entry(party).or_default();
        if *count >= self.0.of_one {
            return None;
        }
        *count += 1;
        drop(parties);
        Some(Place { places: self.clone(), party, _free: free })
    }

    fn parties(&self) -> MutexGuard<'_, HashMap<Party, usize>> {
        self.0.parties.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut parties = self.places.parties();
        if let Some(count) = parties.get_mut(&self.party) {
            *count -= 1;
            if *count == 0 {
                parties.remove(&self.party);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_party_has_half_of_the_places_and_gives_them_back() {
        let places = Places::new(4, 2);
        let (one, other) = ("192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap());
        let take = async |client: IpAddr| places.of(client, places.one().await.unwrap());
        let (first, second) = (take(one).await.unwrap(), take(one).await.unwrap());
        assert!(take(one).await.is_none());
        let _others = (take(other).await.unwrap(), take(other).await.unwrap());
        drop(first);
        let _again = take(one).await.unwrap();
        drop(second);
        assert_eq!(places.0.free.available_permits(), 1);
    }

    #[test]
    fn an_eighth_of_the_descriptors_is_for_them() {
        assert_eq!([64, 1_024, 65_536].map(super::places), [16, 128, 512]);
    }
}
