//! A record in the spool.

use bytes::Bytes;

/// A record in the log, as JSON.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its position in the log, counted from 0.
    pub index: u64,
    /// When it was written, in milliseconds since 1970.
    pub time: i64,
    pub json: Bytes,
}
