//! The operator's HTTP API, on a listener of its own: keys, backends, the last requests, usage,
//! configuration.
//!
//! `/admin/v1/...` is the API; `/admin/keys/...` are the endpoints of LLMProxy 0.5, all of them
//! POST. The OpenAPI document and the list at `/` are made from the handlers themselves.

mod audit;
mod backends;
mod config;
mod error;
mod explain;
mod extract;
mod guard;
mod index;
mod keys;
mod legacy;
mod log_level;
mod router;
mod state;
mod usage;

use std::{io, net::TcpListener, sync::Arc, time::Duration};

pub use self::router::document;
use self::state::AdminState;
use crate::{
    base::Secret,
    runtime::{Carry, Live, serve},
};

/// How long a client may take for the head of a request.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// Serves until the listener fails.
///
/// # Errors
/// If the listener fails.
pub async fn run(
    listener: TcpListener,
    token: &Secret,
    live: Arc<Live>,
    carry: Arc<Carry>,
) -> io::Result<()> {
    serve::run(listener, "admin", HEAD_TIMEOUT, router::app(AdminState { live, carry }, token))
        .await
}
