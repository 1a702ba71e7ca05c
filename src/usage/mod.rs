//! Metering: token counts from the passing bytes, one record per finished request, and where the
//! records go.
//!
//! The durable spool will stand between [`record`] and [`sink`]; until then a bounded queue does.

pub mod counts;
pub mod record;
pub mod sink;
pub mod stream;
pub mod tap;

pub use record::Record;
pub use stream::{Blame, StreamMeter, Strip};
pub use tap::JsonTap;
