//! The operator's own listener: `/metrics`, `/health` and `/ready` on an address that clients do
//! not reach. It answers until the process ends, so that `/ready` can say that it is draining.

use std::{io, net::TcpListener, sync::Arc, time::Duration};

use axum::{Router, extract::State, http::StatusCode, http::header, routing::get};

use crate::{
    runtime::{Carry, Live, serve},
    telemetry::Metrics,
};

/// How long a client may take for the head of a request: longer than the time from one scrape to the
/// next, so that Prometheus keeps its connection.
const HEAD: Duration = Duration::from_secs(150);

type Parts = (Arc<Live>, Arc<Carry>);

/// Serves for ever.
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
