//! How a phase ends early.

use std::fmt;

use pingora::{Error, ErrorType};

use crate::base::{Fault, Rejection};

/// Why a phase ends before its work is done. `?` carries both.
pub enum Stop {
    /// The gateway refuses the request.
    Refuse(Rejection),
    /// Something broke.
    Broken(Box<Error>),
}

impl From<Rejection> for Stop {
    fn from(rejection: Rejection) -> Self {
        Self::Refuse(rejection)
    }
}

impl From<Box<Error>> for Stop {
    fn from(error: Box<Error>) -> Self {
        Self::Broken(error)
    }
}

impl Stop {
    /// The request ends because of this fault, which belongs to no attempt.
    pub fn fault(fault: Fault, why: &'static str) -> Self {
        Self::Broken(Error::because(ErrorType::ReadTimedout, why, Carried::Fault(fault)))
    }

    /// As Pingora's phases return it. [`rejection_of`] and [`fault_of`] find again what it was.
    pub fn into_error(self) -> Box<Error> {
        match self {
            Self::Broken(error) => error,
            Self::Refuse(rejection) => {
                let etype = ErrorType::HTTPStatus(rejection.status);
                Error::because(etype, "refused", Carried::Rejection(rejection))
            }
        }
    }
}

/// What an error takes along to the end of the request.
#[derive(Debug)]
enum Carried {
    Rejection(Rejection),
    Fault(Fault),
}

impl fmt::Display for Carried {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rejection(rejection) => write!(f, "{} {}", rejection.status, rejection.message),
            Self::Fault(fault) => fault.fmt(f),
        }
    }
}

impl std::error::Error for Carried {}

/// The same error, for which the request is refused.
pub fn refusing(mut error: Box<Error>, rejection: Rejection) -> Box<Error> {
    error.cause = Some(Box::new(Carried::Rejection(rejection)));
    error
}

fn carried(error: &Error) -> Option<&Carried> {
    error.cause.as_deref()?.downcast_ref()
}

/// Why the gateway refuses the request, if this error says so.
pub fn rejection_of(error: &Error) -> Option<&Rejection> {
    match carried(error)? {
        Carried::Rejection(rejection) => Some(rejection),
        Carried::Fault(_) => None,
    }
}

/// The fault that this error carries.
pub fn fault_of(error: &Error) -> Option<Fault> {
    match carried(error)? {
        Carried::Fault(fault) => Some(*fault),
        Carried::Rejection(_) => None,
    }
}
