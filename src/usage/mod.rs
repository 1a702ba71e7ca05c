//! Metering: one record per finished request, the spool in
//! which records wait, and where they go.
//!
//! A request's thread hands a [`Draft`] to the [`Outbox`] and goes on. The thread of the
//! [`spool`] makes a [`Record`] of it and appends it to a log; each reporter reads that log at its
//! own pace and hands the records to its [`sink`].

pub mod dead_letters;
pub mod outbox;
pub mod record;
pub mod sink;
pub mod spool;
pub mod store;

pub use outbox::{Outbox, Standing, State};
pub use record::{Draft, Record};
pub use spool::{Cursor, Entry, Spool};
