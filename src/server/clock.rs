//! The check of the machine's clock at the start.

use std::{
    io,
    time::{SystemTime, UNIX_EPOCH},
};

/// Refuses a clock that is before 1970. With one, Pingora panics when it writes the date of a
/// response, and TLS when it checks a certificate; keys that have expired would be accepted.
///
/// # Errors
/// If the clock is before 1970.
pub fn check() -> io::Result<()> {
    match SystemTime::now().duration_since(UNIX_EPOCH) {
        Ok(_) => Ok(()),
        Err(before) => Err(io::Error::other(format!(
            "the clock of this machine is {} s before 1970: set it (NTP, `date -s`), then start again",
            before.duration().as_secs().max(1)
        ))),
    }
}
