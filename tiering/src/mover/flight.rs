//! One transfer for all who want the same block.

use std::{fmt, hash::Hash, sync::Arc};

use dashmap::{DashMap, Entry};
use tokio::sync::watch;

type Shared<K> = Arc<DashMap<K, watch::Receiver<()>>>;

/// The blocks under way.
pub struct Flights<K>(Shared<K>);

/// What [`Flights::join`] found.
pub enum Join<K: Copy + Eq + Hash> {
    /// Nobody was at it: the caller is now, until it drops the flight.
    First(Flight<K>),
    /// Somebody is; look again after the landing.
    Wait(Landing),
}

/// The right to move a block; others wait until it is dropped.
pub struct Flight<K: Copy + Eq + Hash> {
    key: K,
    shared: Shared<K>,
    // Dropped with the flight, which wakes those who wait.
    _landed: watch::Sender<()>,
}

/// Somebody else's flight.
pub struct Landing(watch::Receiver<()>);

impl Landing {
    /// Waits until that flight is over, however it ended.
    pub async fn landed(mut self) {
        // An error says that the sender is gone, which is the landing.
        while self.0.changed().await.is_ok() {}
    }
}

impl<K: Eq + Hash> Default for Flights<K> {
    fn default() -> Self {
        Self(Arc::new(DashMap::new()))
    }
}

impl<K: Copy + Eq + Hash> Flights<K> {
    /// Takes a block in hand, or finds who has it.
    pub fn join(&self, key: K) -> Join<K> {
        match self.0.entry(key) {
            Entry::Occupied(taken) => Join::Wait(Landing(taken.get().clone())),
            Entry::Vacant(free) => {
                let (landed, receiver) = watch::channel(());
                free.insert(receiver);
                Join::First(Flight { key, shared: self.0.clone(), _landed: landed })
            }
        }
    }

    /// Blocks under way.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<K: Copy + Eq + Hash> Flight<K> {
    /// The block.
    pub fn key(&self) -> K {
        self.key
    }
}

impl<K: Copy + Eq + Hash> Drop for Flight<K> {
    fn drop(&mut self) {
        self.shared.remove(&self.key);
    }
}

impl<K: Eq + Hash> fmt::Debug for Flights<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Flights({})", self.0.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::block_on;

    #[test]
    fn the_second_waits_for_the_first() {
        let flights = Flights::default();
        let Join::First(flight) = flights.join(7u64) else { panic!("nobody was at it") };
        assert_eq!(flight.key(), 7);
        let Join::Wait(landing) = flights.join(7) else { panic!("the first is at it") };
        assert!(matches!(flights.join(8), Join::First(_)));
        let waiter = std::thread::spawn(move || block_on(landing.landed()));
        drop(flight);
        waiter.join().unwrap();
        assert!(matches!(flights.join(7), Join::First(_)));
        assert!(flights.is_empty(), "a flight that is dropped is over");
    }
}
