//! The audit log: one line for each change that an operator makes.

use std::net::SocketAddr;

/// Logs a change.
pub fn audit(from: SocketAddr, change: &str, subject: &str) {
    log::info!(target: "audit", "{change} {subject:?} from={}", from.ip());
}
