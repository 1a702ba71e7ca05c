//! How the Redis scripts count something.

use crate::limit::claim::{Claim, ClaimKind};

/// The numbers are those of `bucket.lua`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Units are taken.
    Take = 1,
    /// Units are held.
    Reserve = 2,
    /// A slot is held.
    Slot = 3,
    /// Units are taken from a bucket in which other replicas may hold some.
    Share = 4,
    /// Units are given back.
    Give = 5,
}

impl Mode {
    /// The mode in which Redis counts exactly this claim.
    pub fn exact(claim: &Claim) -> Self {
        match claim.dim.kind() {
            ClaimKind::Take => Self::Take,
            ClaimKind::Reserve => Self::Reserve,
            ClaimKind::Slot => Self::Slot,
        }
    }

    pub fn has_bucket(self) -> bool {
        self != Self::Slot
    }

    pub fn has_holds(self) -> bool {
        !matches!(self, Self::Take | Self::Give)
    }
}
