//! Binds sessions to backends: a ring (Ketama), on which few sessions move when a backend is added or
//! removed. It is built from what all replicas of the gateway know of the backends, so that they agree
//! and a restart moves no session.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use pingora_load_balancing::{
    Backend, Extensions,
    selection::{BackendIter, BackendSelection, consistent::KetamaHashing},
};

use super::endpoint::Endpoint;

/// The ring of a pool.
pub struct Ring {
    points: Arc<KetamaHashing>,
    /// The members' tags on the ring with their numbers, sorted.
    members: Box<[(IpAddr, usize)]>,
}

impl Ring {
    pub fn new(members: &[(Arc<Endpoint>, u32)]) -> Self {
        let tags = members.iter().map(|(endpoint, _)| IpAddr::from(endpoint.stable_tag()));
        let mut numbers: Box<[_]> = tags.enumerate().map(|(member, tag)| (tag, member)).collect();
        numbers.sort_unstable();
        let backend = |(tag, member): &(IpAddr, usize)| {
            let (addr, weight) = (SocketAddr::from((*tag, 1)), members[*member].1 as usize);
            Backend { addr: addr.into(), weight, ext: Extensions::new() }
        };
        let set: BTreeSet<_> = numbers.iter().map(backend).collect();
        Self { points: Arc::new(KetamaHashing::build(&set)), members: numbers }
    }

    /// The numbers of the members, point by point from the session's place on the ring. A number may
    /// repeat.
    pub fn from(&self, session: u64) -> impl Iterator<Item = usize> {
        let mut points = self.points.iter(&session.to_le_bytes());
        std::iter::from_fn(move || {
            let tag = points.next()?.addr.as_inet()?.ip();
            let at = self.members.binary_search_by_key(&tag, |(tag, _)| *tag).ok()?;
            Some(self.members[at].1)
        })
    }
}
