//! Who may have how many connections at a time: so many in all, so many from one address. A few are kept for programs of this
//! machine, so that a server reaches its own discovery whatever strangers do.
//!
//! In: callers. Out: a [`Place`] to hold while the connection lives, or none. An IPv6 address counts with its /64,
//! because whoever has one address of it has them all. Callers on loopback are not told apart: behind them is a proxy,
//! or whoever could stop this process anyway.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::Caller;

/// How many bits of an IPv6 address name the network of its owner.
const V6_HOST_BITS: u32 = 64;

/// Connections that only callers of this machine have, but never more than a quarter of all.
const LOCAL_PLACES: usize = 16;

/// The connections of one server.
#[derive(Debug)]
pub(super) struct Places {
    connections_max: usize,
    per_address_max: usize,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    all: usize,
    /// Addresses with a connection; one that has none is not here.
    by_address: HashMap<IpAddr, usize>,
}

/// The right to one connection; given back when dropped.
#[derive(Debug)]
pub(super) struct Place {
    places: Arc<Places>,
    address: Option<IpAddr>,
}

impl Places {
    pub(super) fn new(connections_max: usize, per_address_max: usize) -> Arc<Self> {
        Arc::new(Self { connections_max, per_address_max, taken: Mutex::default() })
    }

    /// A place for one more connection of `caller`, if there is one.
    pub(super) fn take(self: &Arc<Self>, caller: &Caller) -> Option<Place> {
        let mut place = self.take_for_another(caller)?;
        place.ascribe(caller).then_some(place)
    }

    /// The same for a connection that may turn out to be another's: no address has it yet.
    pub(super) fn take_for_another(self: &Arc<Self>, caller: &Caller) -> Option<Place> {
        let mut taken = self.taken();
        if taken.all >= self.open_to(counted(caller)) {
            return None;
        }
        taken.all += 1;
        Some(Place { places: Arc::clone(self), address: None })
    }

    /// Of all places those that somebody may have.
    fn open_to(&self, address: Option<IpAddr>) -> usize {
        let kept = if address.is_some() { LOCAL_PLACES.min(self.connections_max / 4) } else { 0 };
        self.connections_max - kept
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        // No code can panic half-way through a change.
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    /// It is `caller`'s, if there is one for it; else it is to be given back. Once for each place.
    pub(super) fn ascribe(&mut self, caller: &Caller) -> bool {
        let address = counted(caller);
        let mut taken = self.places.taken();
        // This one is among them.
        if taken.all > self.places.open_to(address) {
            return false;
        }
        if let Some(address) = address {
            let of_address = taken.by_address.entry(address).or_default();
            if *of_address >= self.places.per_address_max {
                return false;
            }
            *of_address += 1;
        }
        self.address = address;
        true
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.taken();
        taken.all -= 1;
        if let Some(address) = self.address
            && let Some(of_address) = taken.by_address.get_mut(&address)
        {
            *of_address -= 1;
            if *of_address == 0 {
                taken.by_address.remove(&address);
            }
        }
    }
}

/// The address that a caller counts under.
fn counted(caller: &Caller) -> Option<IpAddr> {
    let Caller::Ip(address) = caller else { return None };
    match address.ip().to_canonical() {
        ip if ip.is_loopback() => None,
        IpAddr::V4(v4) => Some(v4.into()),
        IpAddr::V6(v6) => Some(Ipv6Addr::from_bits(v6.to_bits() >> V6_HOST_BITS << V6_HOST_BITS).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caller(text: &str) -> Caller {
        Caller::Ip(text.parse().unwrap())
    }

    #[test]
    fn one_address_cannot_take_the_places_of_others() {
        let places = Places::new(10, 2);
        let held: Vec<_> = (0..2).map(|_| places.take(&caller("203.0.113.7:1")).unwrap()).collect();
        assert!(places.take(&caller("203.0.113.7:2")).is_none());
        assert!(
            places.take(&caller("[::ffff:203.0.113.7]:3")).is_none(),
            "the same address in other clothes"
        );
        let other = places.take(&caller("203.0.113.8:1")).unwrap();
        drop(held);
        assert!(places.take(&caller("203.0.113.7:4")).is_some());
        drop(other);
        let taken = places.taken();
        assert_eq!((taken.all, taken.by_address.len()), (0, 0), "everything was given back");
    }

    #[test]
    fn strangers_leave_places_for_this_machine() {
        let places = Places::new(8, 64);
        let strangers: Vec<_> = (0..6).map(|_| places.take(&caller("203.0.113.7:1")).unwrap()).collect();
        assert!(places.take(&caller("203.0.113.8:1")).is_none());
        let local: Vec<_> = (0..2).map(|_| places.take(&caller("127.0.0.1:1")).unwrap()).collect();
        assert!(places.take(&Caller::Local).is_none());
        drop((strangers, local));
    }

    #[test]
    fn behind_a_proxy_each_counts_for_itself_and_nobody_has_what_is_kept_for_this_machine() {
        let places = Places::new(8, 2);
        for proxy in ["127.0.0.1:1", "198.51.100.1:1"] {
            let mut held = Vec::new();
            for last in [1, 1, 2, 2, 3, 3] {
                let mut place = places.take_for_another(&caller(proxy)).unwrap();
                assert!(place.ascribe(&caller(&format!("203.0.113.{last}:9"))));
                held.push(place);
            }
            // None is left for a third stranger, whether a local proxy has one for it or not.
            let another = places.take_for_another(&caller(proxy));
            assert_eq!(another.is_some(), proxy.starts_with("127"));
            assert!(another.is_none_or(|mut another| !another.ascribe(&caller("203.0.113.9:9"))));
            held.truncate(4);
            let mut third = places.take_for_another(&caller(proxy)).unwrap();
            assert!(!third.ascribe(&caller("203.0.113.1:9")), "it has two");
            drop((third, held));
            let taken = places.taken();
            assert_eq!((taken.all, taken.by_address.len()), (0, 0));
        }
    }

    #[test]
    fn an_ipv6_network_of_64_bits_is_one_address() {
        let places = Places::new(10, 1);
        let _held = places.take(&caller("[2001:db8:1:2::1]:1")).unwrap();
        assert!(places.take(&caller("[2001:db8:1:2:ffff::9]:1")).is_none());
        assert!(places.take(&caller("[2001:db8:1:3::1]:1")).is_some());
    }

    #[test]
    fn loopback_and_local_callers_share_the_whole_number() {
        let places = Places::new(3, 1);
        let held =
            [caller("127.0.0.1:1"), caller("[::1]:1"), Caller::Local].map(|from| places.take(&from).unwrap());
        assert!(places.take(&caller("203.0.113.7:1")).is_none(), "the bound on all holds for everybody");
        drop(held);
    }
}
