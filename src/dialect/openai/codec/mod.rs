//! Chat Completions to the hub and back.

pub mod errors;
