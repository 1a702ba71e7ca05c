//! Where sessions belong: a ring (Ketama), where few sessions move when a backend comes or goes. It
//! is made of what all replicas of the gateway know of the backends, so that they agree, and a
//! restart moves no session.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use pingora_load_balancing::{
    Backend, Extensions,
    selection::{BackendIter, BackendSelection, consistent::KetamaHashing},
};

use super::Endpoint;

/// The ring of a pool.
pub struct Ring {
    points: Arc<KetamaHashing>,
    /// The numbers of the members by their tags on the ring, sorted.
    members: Box<[(IpAddr, usize)]>,
}

impl Ring {
    /// A ring of these members, with their weights.
    pub fn new(members: &[(Arc<Endpoint>, u32)]) -> Self {
        let tags = members.iter().map(|(endpoint, _)| IpAddr::from(endpoint.lasting_tag()));
        let mut numbers: Box<[_]> = tags.enumerate().map(|(member, tag)| (tag, member)).collect();
        numbers.sort_unstable();
        let backend = |(tag, member): &(IpAddr, usize)| {
            let (addr, weight) = (SocketAddr::from((*tag, 1)), members[*member].1 as usize);
            Backend { addr: addr.into(), weight, ext: Extensions::new() }
        };
        let set: BTreeSet<_> = numbers.iter().map(backend).collect();
        Self { points: Arc::new(KetamaHashing::build(&set)), members: numbers }
    }

    /// The numbers of the members from where a session belongs, point by point. The same may come
    /// several times.
    pub fn from(&self, session: u64) -> impl Iterator<Item = usize> {
        let mut points = self.points.iter(&session.to_le_bytes());
        std::iter::from_fn(move || {
            let tag = points.next()?.addr.as_inet()?.ip();
            let at = self.members.binary_search_by_key(&tag, |(tag, _)| *tag).ok()?;
            Some(self.members[at].1)
        })
    }
}
