//! Places: how many clients may be connected at once, in all and of one party.
//!
//! Whoever may relay without a login is kept a fifth of the places. Strangers, which is everybody else until
//! the login, can take the others and no more, from however many addresses they come; so they can keep each
//! other waiting, and never an app of a trusted network.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};

use super::party::Party;
use crate::{observe::Observer, smtp::reply::Reply};

/// The part of all places that strangers can't take.
const KEPT: usize = 5;

/// The most connections at once.
#[derive(Clone, Copy, Debug)]
pub struct Most {
    /// Of all clients together.
    pub all: usize,
    /// Of one party.
    pub of_one: usize,
}

impl Most {
    fn of_strangers(self) -> usize {
        self.all - self.all / KEPT
    }
}

/// All places. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Places(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    taken: Mutex<Taken>,
    crowd: watch::Sender<Crowd>,
    observer: Option<Observer>,
}

#[derive(Debug, Default)]
struct Taken {
    all: usize,
    strangers: usize,
    of_one: HashMap<Party, usize>,
}

/// Who finds no place, or will soon.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Crowd {
    anybody: bool,
    strangers: bool,
}

/// A place that a connection has. Given back when dropped.
#[derive(Debug)]
pub struct Place {
    places: Places,
    most: Most,
    /// Whose it is, once that is known.
    party: Option<Party>,
    stranger: bool,
}

impl Places {
    /// No place is taken; `observer` hears how many are.
    pub fn new(observer: Option<Observer>) -> Self {
        Self(Arc::new(Inner { observer, ..Inner::default() }))
    }

    /// How many are taken.
    pub fn taken(&self) -> usize {
        self.lock().all
    }

    /// A place for a connection of a client that is still to be named.
    ///
    /// # Errors
    /// There is none: what to say.
    pub fn take(&self, most: Most) -> Result<Place, Reply> {
        let mut taken = self.lock();
        if taken.all >= most.all {
            return Err(Reply::too_many_connections("smtp_max_connections"));
        }
        taken.all += 1;
        self.show(&taken, most);
        drop(taken);
        Ok(Place { places: self.clone(), most, party: None, stranger: false })
    }

    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.0.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn show(&self, taken: &Taken, most: Most) {
        // Two marks, so that one client's coming and going doesn't turn it on and off.
        let short = |was: bool, taken: usize, all: usize| {
            if was { taken * 10 > all * 7 } else { taken * 10 >= all * 9 }
        };
        let changed = self.0.crowd.send_if_modified(|crowd| {
            let is = Crowd {
                anybody: short(crowd.anybody, taken.all, most.all),
                strangers: short(crowd.strangers, taken.strangers, most.of_strangers()),
            };
            std::mem::replace(crowd, is) != is
        });
        if changed {
            let crowd = *self.0.crowd.borrow();
            let (open, strangers) = (taken.all, taken.strangers);
            tracing::info!(
                open,
                strangers,
                crowded = crowd.anybody,
                crowded_by_strangers = crowd.strangers,
                "places for clients"
            );
        }
        if let Some(observer) = &self.0.observer {
            observer.metrics().listener_connections.set(taken.all as i64);
        }
    }
}

impl Place {
    /// The same, counted as this client's.
    ///
    /// # Errors
    /// It has as many as it may, or strangers do: what to say.
    pub fn of(mut self, client: IpAddr, may_relay: bool) -> Result<Self, Reply> {
        let party = Party::from(client);
        let mut taken = self.places.lock();
        if !may_relay && taken.strangers >= self.most.of_strangers() {
            return Err(Reply::too_many_connections("smtp_max_connections"));
        }
        let count = taken.of_one.entry(party).or_default();
        if *count >= self.most.of_one {
            return Err(Reply::too_many_connections("smtp_max_connections_per_client"));
        }
        *count += 1;
        self.party = Some(party);
        self.stranger = !may_relay;
        taken.strangers += usize::from(self.stranger);
        self.places.show(&taken, self.most);
        drop(taken);
        Ok(self)
    }

    /// Its client has logged in, and makes room for another stranger.
    pub fn is_no_strangers(&mut self) {
        if std::mem::take(&mut self.stranger) {
            let mut taken = self.places.lock();
            taken.strangers -= 1;
            self.places.show(&taken, self.most);
        }
    }

    /// Returns at that time, or later, when the likes of this client find no place.
    pub async fn is_wanted_at(&self, time: Instant) {
        let mut crowd = self.places.0.crowd.subscribe();
        let wanted = |crowd: &Crowd| crowd.anybody || self.stranger && crowd.strangers;
        if crowd.wait_for(wanted).await.is_err() {
            return std::future::pending().await;
        }
        sleep_until(time).await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.lock();
        taken.all -= 1;
        taken.strangers -= usize::from(self.stranger);
        if let Some(party) = self.party
            && let Some(count) = taken.of_one.get_mut(&party)
        {
            *count -= 1;
            if *count == 0 {
                taken.of_one.remove(&party);
            }
        }
        self.places.show(&taken, self.most);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOST: Most = Most { all: 20, of_one: 4 };

    fn address(number: u8) -> IpAddr {
        IpAddr::from([192, 0, 2, number])
    }

    fn place(places: &Places, number: u8, may_relay: bool) -> Result<Place, String> {
        let place = places.take(MOST).and_then(|place| place.of(address(number), may_relay));
        place.map_err(|reply| reply.to_string())
    }

    #[test]
    fn strangers_of_any_number_leave_a_fifth_to_those_who_may_relay() {
        let places = Places::default();
        let mut strangers: Vec<_> = (0..16).map(|n| place(&places, n, false).unwrap()).collect();
        let refused = place(&places, 16, false).unwrap_err();
        assert!(refused.contains("(smtp_max_connections)"), "{refused}");
        let apps: Vec<_> = (0..4).map(|_| place(&places, 100, true).unwrap()).collect();
        assert!(place(&places, 101, true).is_err(), "there are no more");
        drop(apps);
        strangers[0].is_no_strangers();
        strangers[0].is_no_strangers();
        let another = place(&places, 16, false).unwrap();
        assert!(place(&places, 17, false).is_err());
        assert_eq!(places.taken(), 17);
        drop((strangers, another));
        let taken = places.lock();
        assert_eq!((taken.all, taken.strangers, taken.of_one.len()), (0, 0, 0), "all are given back");
    }

    #[test]
    fn one_party_has_its_most_whatever_addresses_it_has() {
        let places = Places::default();
        let from = |text: &str| places.take(MOST).unwrap().of(text.parse().unwrap(), true);
        let held: Vec<_> = (1..5).map(|n| from(&format!("2001:db8::{n}")).unwrap()).collect();
        let refused = from("2001:db8::5").unwrap_err().to_string();
        assert!(refused.contains("(smtp_max_connections_per_client)"), "{refused}");
        assert!(from("2001:db8:0:1::1").is_ok(), "somebody else");
        assert_eq!(places.taken(), held.len(), "who was refused takes nothing");
    }

    #[tokio::test(start_paused = true)]
    async fn a_crowd_of_strangers_hurries_strangers_and_nobody_else() {
        let places = Places::default();
        let app = place(&places, 100, true).unwrap();
        let stranger = place(&places, 0, false).unwrap();
        let wanted = async |place: &Place| {
            let wait = std::time::Duration::from_secs(1);
            tokio::time::timeout(wait, place.is_wanted_at(Instant::now())).await.is_ok()
        };
        assert!(!wanted(&app).await && !wanted(&stranger).await);
        let crowd: Vec<_> = (1..15).map(|n| place(&places, n, false).unwrap()).collect();
        assert!(!wanted(&app).await && wanted(&stranger).await);
        let more = [place(&places, 100, true).unwrap(), place(&places, 101, true).unwrap()];
        assert!(wanted(&app).await, "now nobody finds a place");
        drop((crowd, more));
        assert!(!wanted(&app).await && !wanted(&stranger).await);
    }
}
