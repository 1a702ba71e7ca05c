//! Builds the endpoints of a generation from its backends and their addresses.

use std::{collections::HashMap, net::SocketAddr, sync::Arc};

use super::carry::Carry;
use crate::{
    balance::Endpoint,
    config::plan::{BackendPlan, TimeoutPlan},
};

/// The endpoints of the generation before.
#[derive(Clone, Copy)]
pub struct EarlierEndpoints<'a> {
    pub endpoints: &'a [Arc<Endpoint>],
    pub timeouts: &'a TimeoutPlan,
}

/// The endpoints of these backends, in their order. Unchanged ones of `earlier` are kept.
pub fn build(
    backends: &[BackendPlan],
    timeouts: &TimeoutPlan,
    carry: &Carry,
    earlier: Option<EarlierEndpoints<'_>>,
) -> Vec<Arc<Endpoint>> {
    let before: HashMap<u32, &Arc<Endpoint>> =
        earlier.iter().flat_map(|e| e.endpoints).map(|e| (e.id, e)).collect();
    let same_timeouts = earlier.is_some_and(|e| e.timeouts == timeouts);
    let mut endpoints = Vec::with_capacity(backends.len());
    for backend in backends {
        let each = Endpoint::each(backend);
        let known = (!each).then(|| before.get(&carry.ids.get(backend).0)).flatten();
        let addresses = carry.discovered.addresses(backend, known.map(|e| e.current_address()));
        let groups =
            if each { addresses.chunks(1) } else { addresses.chunks(addresses.len().max(1)) };
        let several = groups.len() > 1;
        for group in groups {
            let address = group[0];
            let name = match several {
                false => backend.name.clone(),
                true => format!("{}@{address}", backend.name),
            };
            let identity = carry.ids.get_address(backend, each.then_some(address));
            let unchanged = before.get(&identity.0).filter(|e| {
                let same = (&*e.name, &e.plan) == (name.as_str(), backend);
                same_timeouts && same && have_same_members(e.addresses(), group)
            });
            endpoints.push(match unchanged {
                Some(endpoint) => Arc::clone(endpoint),
                None => {
                    let endpoint = Endpoint::new(identity, backend.clone(), group, timeouts);
                    Arc::new(endpoint.with_name(name))
                }
            });
        }
    }
    endpoints
}

/// Whether two lists hold the same addresses, in any order: which of them is used is the endpoint's
/// decision.
fn have_same_members(one: &[SocketAddr], other: &[SocketAddr]) -> bool {
    one.len() == other.len() && one.iter().all(|address| other.contains(address))
}
