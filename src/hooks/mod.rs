//! Hooks: the operator's scripts at the stages of a request.
//!
//! What a script sees, and what becomes of its answer, is the gateway's part (`gateway/hooks`). Here is
//! what all stages have in common: which scripts there are, whether one runs for a request, a run with its
//! limits and counts, and the reading of what it returns.

mod call;
mod input;
mod metrics;
pub mod reference;
mod set;
mod verdict;

pub use call::{Hook, HookFailure};
pub use input::{Call, Global, Input};
pub use set::Hooks;
pub use verdict::{Answer, HeaderChange, Refusal, Unusable, Verdict};
