//! How many connections there are, in all and from one address: so that nobody can take every place
//! and keep the panel out.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::throttle::network;

/// The open connections.
#[derive(Clone, Debug)]
pub(super) struct Crowd {
    places: Arc<Semaphore>,
    by_address: Arc<Mutex<HashMap<IpAddr, usize>>>,
    per_address: usize,
}

/// One connection's place; it is free again when this is dropped.
#[derive(Debug)]
pub(super) struct Place {
    crowd: Crowd,
    address: IpAddr,
    _permit: OwnedSemaphorePermit,
}

impl Crowd {
    pub(super) fn new(places: usize, per_address: usize) -> Self {
        Self {
            places: Arc::new(Semaphore::new(places)),
            by_address: Arc::default(),
            per_address,
        }
    }

    /// Waits until there is a place at all. Cancel-safe.
    pub(super) async fn room(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.places).acquire_owned().await.ok()
    }

    /// Gives the place to this address, unless it has its share already.
    pub(super) fn enter(&self, address: IpAddr, permit: OwnedSemaphorePermit) -> Option<Place> {
        let address = network(address);
        let mut by_address = self
            .by_address
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let count = by_address.entry(address).or_default();
        if *count >= self.per_address {
            return None;
        }
        *count += 1;
        Some(Place {
            crowd: self.clone(),
            address,
            _permit: permit,
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut by_address = self
            .crowd
            .by_address
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = by_address.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                by_address.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_address_has_its_share_and_others_have_theirs() {
        let crowd = Crowd::new(10, 2);
        let (one, other) = (IpAddr::from([192, 0, 2, 1]), IpAddr::from([192, 0, 2, 2]));
        let enter = async |address| crowd.enter(address, crowd.room().await.unwrap());
        let first = enter(one).await.unwrap();
        let _second = enter(one).await.unwrap();
        assert!(enter(one).await.is_none());
        let _third = enter(other).await.unwrap();
        drop(first);
        assert!(enter(one).await.is_some());
        assert_eq!(
            crowd.places.available_permits(),
            8,
            "who is refused takes no place"
        );
        assert_eq!(
            crowd.by_address.lock().unwrap().len(),
            2,
            "who has gone is forgotten"
        );
    }
}
