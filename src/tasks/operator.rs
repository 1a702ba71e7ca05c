//! The operator's own listener: `/metrics`, `/health` and `/ready` on an address that clients do
//! not reach. It answers until the process ends, so that `/ready` can say that it is draining.

use std::{io, net::TcpListener, sync::Arc};

use axum::{Router, extract::State, http::StatusCode, http::header, routing::get};

use crate::{
    runtime::{Carry, Live},
    telemetry::Metrics,
};

type Parts = (Arc<Live>, Arc<Carry>);

/// Serves for ever.
///
/// # Errors
/// If the listener breaks.
pub async fn run(listener: TcpListener, live: Arc<Live>, carry: Arc<Carry>) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let app = Router::new()
        .route("/health", get(async || "OK"))
        .route("/ready", get(ready))
        .route("/metrics", get(metrics))
        .with_state((live, carry));
    axum::serve(listener, app).await
}

async fn ready(State((live, carry)): State<Parts>) -> (StatusCode, &'static str) {
    match carry.ready(&live.load()) {
        Ok(()) => (StatusCode::OK, "OK"),
        Err(why) => (StatusCode::SERVICE_UNAVAILABLE, why),
    }
}

async fn metrics(
    State((_, carry)): State<Parts>,
) -> ([(header::HeaderName, &'static str); 1], Vec<u8>) {
    ([(header::CONTENT_TYPE, Metrics::CONTENT_TYPE)], carry.metrics.render())
}
