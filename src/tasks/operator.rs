//! The operator listener: `/metrics`, `/health` and `/ready` on an address that clients cannot reach.
//! It answers until the process ends, so that `/ready` can report the draining.

use std::{io, net::TcpListener, sync::Arc, time::Duration};

use axum::{Router, extract::State, http::StatusCode, http::header, routing::get};

use crate::{
    runtime::{Carry, Live, serve},
    telemetry::Metrics,
};

/// How long a client may take for the head of a request: longer than a scrape interval, so that
/// Prometheus keeps its connection.
const HEAD: Duration = Duration::from_secs(150);

type AppState = (Arc<Live>, Arc<Carry>);

/// Serves until the listener breaks.
///
/// # Errors
/// If the listener breaks.
pub async fn run(listener: TcpListener, live: Arc<Live>, carry: Arc<Carry>) -> io::Result<()> {
    let app = Router::new()
        .route("/health", get(async || "OK"))
        .route("/ready", get(ready))
        .route("/metrics", get(metrics))
        .with_state((live, carry));
    serve::run(listener, "operator", HEAD, app).await
}

async fn ready(State((live, carry)): State<AppState>) -> (StatusCode, &'static str) {
    match carry.ready(&live.load()) {
        Ok(()) => (StatusCode::OK, "OK"),
        Err(why) => (StatusCode::SERVICE_UNAVAILABLE, why),
    }
}

async fn metrics(
    State((_, carry)): State<AppState>,
) -> ([(header::HeaderName, &'static str); 1], Vec<u8>) {
    ([(header::CONTENT_TYPE, Metrics::CONTENT_TYPE)], carry.metrics.render())
}
