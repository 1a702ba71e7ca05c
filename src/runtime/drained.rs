//! Backends that get no new requests, because an operator drains them.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex},
};

use crate::{balance::Endpoint, base::lock};

/// The names of drained backends. A name also drains addresses of the backend that are found later.
#[derive(Default)]
pub struct Drained(Mutex<HashSet<String>>);

impl Drained {
    /// Starts or stops draining a backend, with all its endpoints among `current`. The closure is called
    /// under the lock, so that no generation takes over in between without its endpoints being set.
    pub fn set(&self, name: &str, on: bool, current: impl FnOnce() -> Vec<Arc<Endpoint>>) {
        let mut names = lock(&self.0);
        if on {
            names.insert(name.to_owned());
        } else {
            names.remove(name);
        }
        for endpoint in current().iter().filter(|e| e.plan.name == name) {
            endpoint.drain(on);
        }
    }

    pub fn contains(&self, name: &str) -> bool {
        lock(&self.0).contains(name)
    }

    /// Drains the endpoints of a new generation.
    pub(super) fn apply(&self, endpoints: &[Arc<Endpoint>]) {
        let names = lock(&self.0);
        for endpoint in endpoints.iter().filter(|e| names.contains(&e.plan.name)) {
            endpoint.drain(true);
        }
    }
}
