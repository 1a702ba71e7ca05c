//! Failures of matching.

use std::fmt;

/// The result of matching.
pub type Result<T, E = Failure> = std::result::Result<T, E>;

/// Why matching failed. `Display` gives the messages of Lua.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The pattern or the replacement string is wrong, with Lua's message.
    Malformed(String),
    /// The pattern needs more backtracking than Lua allows.
    TooComplex,
    /// The time was over before the work was done.
    Over,
    /// The replacement is too long.
    TooLong,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Malformed(message) => message,
            Self::TooComplex => "pattern too complex",
            Self::Over => "pattern matching took too long",
            Self::TooLong => "resulting string too large",
        })
    }
}

impl std::error::Error for Failure {}

pub(super) fn malformed(message: &str) -> Failure {
    Failure::Malformed(message.to_owned())
}

pub(super) fn no_such_capture(digit: u8) -> Failure {
    Failure::Malformed(format!("invalid capture index %{}", char::from(digit)))
}
