//! Settings of the limits in Redis.

use std::time::Duration;

/// How limits are counted in Redis.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// The prefix of all key names: `llmproxy:limit:`
    pub prefix: String,
    /// How long a hold lasts if it is not renewed.
    pub ttl: Duration,
    /// How long a decision may take. At most `ttl`: an answer that comes later would be about holds
    /// that have already ended.
    pub timeout: Duration,
    /// Set in the leased mode.
    pub lease: Option<Lease>,
}

/// What a replica takes ahead of need.
#[derive(Clone, Debug, PartialEq)]
pub struct Lease {
    /// Part of a bucket's capacity that is taken at a time.
    pub share: f64,
    /// How long an unused share is kept.
    pub lifetime: Duration,
}
