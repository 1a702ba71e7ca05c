//! A fault: something broke while a request was carried. It says whose side broke and how;
//! `gateway::fault` alone turns it into a status.

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

impl Side {
    /// The `side` label of `llmproxy_errors_total`.
    pub fn word(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Backend => "backend",
            Self::Gateway => "gateway",
        }
    }
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
    /// The backend redirects to another place, or switches to a protocol that was not requested.
    Redirect,
    /// The backend has said nothing yet, and accepts no connections any more.
    Refusing,
    /// The client went away.
    Gone,
    /// A chunked body cannot be sent a second time.
    NotReplayable,
    /// The gateway stops, and the time to drain is over.
    Shutdown,
    /// A defect of the gateway.
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
    /// The word for this fault in logs and in the `reason` labels of `llmproxy_retries_total` and
    /// `llmproxy_errors_total`.
    pub fn word(self) -> &'static str {
        self.kind.word()
    }
}

impl FaultKind {
    /// Its word.
    pub fn word(self) -> &'static str {
        match self {
            Self::Connect => "connect_failure",
            Self::ConnectTimeout => "connect_timeout",
            Self::Broken => "connection_broken",
            Self::StaleConnection => "stale_connection",
            Self::FirstByteTimeout => "first_byte_timeout",
            Self::ChunkTimeout => "chunk_timeout",
            Self::TotalTimeout => "total_timeout",
            Self::Protocol => "protocol_error",
            Self::Redirect => "redirect",
            Self::Refusing => "backend_refusing",
            Self::Gone => "client_gone",
            Self::NotReplayable => "not_replayable",
            Self::Shutdown => "shutdown",
            Self::Internal => "internal_error",
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}
