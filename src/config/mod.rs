//! Configuration, in three steps: `raw` is what the file says, [`plan`] is what it means, and the
//! runtime's snapshot is what a request uses. Every problem of a file is reported in one run.
//! `raw` is private: the rest of the program sees a plan, and the [`choices`] that a plan holds.

pub mod check;
pub mod choices;
pub mod convert;
pub mod expand;
pub mod legacy;
pub mod locate;
pub mod plan;
pub mod problem;
mod raw;
pub mod read;
mod value;

pub use check::{Loaded, load, load_text, own_url, schema};
pub use plan::Plan;
pub use problem::Problem;
