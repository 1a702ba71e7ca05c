//! A fault: something broke while a request was carried. It says whose side broke and how;
//! `gateway::failure` alone turns it into a status.

use std::fmt;

/// Whose side broke.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The caller: it left, or sent what cannot be read.
    Client,
    /// The backend or the way to it.
    Backend,
    /// The gateway itself.
    Gateway,
}

/// What broke.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultKind {
    /// No connection could be made.
    Connect,
    /// No connection could be made in time.
    ConnectTimeout,
    /// The connection ended before a whole answer was read.
    Broken,
    /// A kept-alive connection turned out to be dead before any byte of an answer.
    StaleConnection,
    /// No byte of an answer came within `timeouts.first_byte`.
    FirstByteTimeout,
    /// The stream paused for longer than `timeouts.between_chunks`.
    ChunkTimeout,
    /// The request took longer than `timeouts.total`.
    TotalTimeout,
    /// The other side does not speak HTTP.
    Protocol,
    /// The client went away.
    Gone,
    /// A chunked body cannot be sent a second time.
    NotReplayable,
    /// The gateway stops, and the time to drain is over.
    Shutdown,
    /// A defect of ours.
    Internal,
}

/// Something broke.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Whose side.
    pub side: Side,
    /// How.
    pub kind: FaultKind,
}

impl Fault {
    /// The word for this fault in logs and in the `reason` label of `llmproxy_retries_total`.
    pub fn word(self) -> &'static str {
        match self.kind {
            FaultKind::Connect => "connect_failure",
            FaultKind::ConnectTimeout => "connect_timeout",
            FaultKind::Broken => "connection_broken",
            FaultKind::StaleConnection => "stale_connection",
            FaultKind::FirstByteTimeout => "first_byte_timeout",
            FaultKind::ChunkTimeout => "chunk_timeout",
            FaultKind::TotalTimeout => "total_timeout",
            FaultKind::Protocol => "protocol_error",
            FaultKind::Gone => "client_gone",
            FaultKind::NotReplayable => "not_replayable",
            FaultKind::Shutdown => "shutdown",
            FaultKind::Internal => "internal_error",
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}
