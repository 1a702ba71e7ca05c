//! How a request ended.

use crate::base::{Fault, Rejection};

/// How a request ended.
pub struct End {
    /// Status of the answer, or what logs and records have in its place.
    pub status: u16,
    /// Why.
    pub cause: EndCause,
}

/// Why a request ended as it did.
pub enum EndCause {
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
        Self { status, cause: EndCause::Answered }
    }

    /// It was refused.
    pub fn refused(rejection: Rejection) -> Self {
        Self { status: rejection.status, cause: EndCause::Refused(rejection) }
    }

    /// It failed.
    pub fn failed(status: u16, fault: Fault) -> Self {
        Self { status, cause: EndCause::Failed(fault) }
    }

    /// Why it was refused.
    pub fn rejection(&self) -> Option<&Rejection> {
        match &self.cause {
            EndCause::Refused(rejection) => Some(rejection),
            EndCause::Answered | EndCause::Failed(_) => None,
        }
    }

    /// What broke.
    pub fn fault(&self) -> Option<Fault> {
        match self.cause {
            EndCause::Failed(fault) => Some(fault),
            EndCause::Answered | EndCause::Refused(_) => None,
        }
    }
}
