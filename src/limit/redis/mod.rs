//! Limits that all replicas share: the buckets are in Redis, and its clock is used.
//!
//! A decision is one round trip, or none if nothing is claimed. Scripts in Redis decide, so that all
//! claims are taken or none is.
//!
//! # Exact
//!
//! Over any window all replicas together let through no more than rate x time + capacity, by the
//! clock of Redis. Of a reservation the used part is taken when the request ends; usage beyond the
//! reservation becomes a debt. A clock that is set forward adds the units of that time. If a
//! connection breaks or an answer comes too late, requests stay counted although they were not
//! admitted; holds are given back.
//!
//! The holds of a request end with its [`Reservation`]. Redis remembers for a while that they have
//! ended: a call that was sent before and arrives later (an abandoned take, a renewal) holds nothing
//! any more, and a repeated settle counts once. A replica that is killed renews nothing, and its
//! holds expire after [`Settings::ttl`]. If Redis restarts empty, buckets are full again, and holds
//! are restored with the next renewal.
//!
//! # Leased
//!
//! With [`Settings::lease`] a replica takes a share of each bucket ahead, and most requests need no
//! call. The module `credit` states how inexact that is. Slots remain exact. An exceeded amount is
//! noticed at most [`Lease::lifetime`] later. When the counter is dropped, unused units are given
//! back.

mod amounts;
mod counter;
mod credit;
mod failures;
mod holdings;
mod mode;
mod outage;
mod replica;
mod reservation;
mod script;
mod settings;
mod sharded_map;

pub use self::{
    counter::RedisCounter,
    reservation::Reservation,
    settings::{Lease, Settings},
};
