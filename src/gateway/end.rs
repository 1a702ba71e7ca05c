//! How a request ended.

use crate::base::{Fault, Rejection};

/// How a request ended.
pub struct End {
    /// Status of the answer, or what logs and records have in its place.
    pub status: u16,
    /// Why.
    pub cause: Cause,
}

/// Why a request ended as it did.
pub enum Cause {
    /// It was answered: by the gateway itself or by a backend.
    Answered,
    /// The gateway refused it.
    Refused(Rejection),
    /// Something broke.
    Failed(Fault),
}

impl End {
    /// It was answered with this status.
    pub fn answered(status: u16) -> Self {
        Self { status, cause: Cause::Answered }
    }

    /// It was refused.
    pub fn refused(rejection: Rejection) -> Self {
        Self { status: rejection.status, cause: Cause::Refused(rejection) }
    }

    /// It failed.
    pub fn failed(status: u16, fault: Fault) -> Self {
        Self { status, cause: Cause::Failed(fault) }
    }

    /// Why it was refused.
    pub fn rejection(&self) -> Option<&Rejection> {
        match &self.cause {
            Cause::Refused(rejection) => Some(rejection),
            Cause::Answered | Cause::Failed(_) => None,
        }
    }

    /// What broke.
    pub fn fault(&self) -> Option<Fault> {
        match self.cause {
            Cause::Failed(fault) => Some(fault),
            Cause::Answered | Cause::Refused(_) => None,
        }
    }
}
