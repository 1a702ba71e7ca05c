//! Bytes on the wire: JSON without a tree, server-sent events, header fields. No policy.

pub mod authority;
pub mod edit;
pub mod engine;
pub mod forwarded;
pub mod head;
pub mod headers;
pub mod inflate;
pub mod json;
pub mod literal;
pub mod pattern;
pub mod prefix;
pub mod samples;
pub mod sniff;
pub mod splice;
pub mod sse;
