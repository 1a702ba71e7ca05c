//! Usage records: one record per finished request, the spool in which records wait, and the sinks that
//! deliver them.
//!
//! The thread of a request hands a [`Draft`] to the [`Outbox`]. The thread of the [`spool`] turns it into a
//! [`Record`] and appends it to a log. Each reporter reads that log at its own pace and hands the records to
//! its [`sink`].

pub mod dead_letters;
pub mod outbox;
pub mod record;
pub mod sink;
pub mod spool;
pub mod store;

pub use outbox::{Outbox, ReporterState, ReporterStatus};
pub use record::{Draft, Metered, Record, ShownKey};
pub use spool::{Cursor, Entry, Spool};
