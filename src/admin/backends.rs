//! `/admin/v1/backends`.

use std::{net::SocketAddr, sync::Arc};

use axum::{
    Json,
    extract::{ConnectInfo, Path, State},
};
use serde::Serialize;
use utoipa::ToSchema;

use super::{
    audit::audit,
    error::{ApiError, ErrorBody},
    state::AdminState,
};
use crate::balance::Endpoint;

/// A backend.
#[derive(Serialize, ToSchema)]
pub struct Backend {
    /// `NAME@ADDRESS` for each of several addresses.
    name: String,
    url: String,
    /// Its addresses; several with `addresses: one`, none while its name does not resolve.
    addresses: Vec<String>,
    weight: u32,
    /// Whether its probes succeed; `true` without probes.
    healthy: bool,
    /// Whether it receives no new requests.
    draining: bool,
    /// Requests in flight.
    in_flight: usize,
}

/// All backends.
#[derive(Serialize, ToSchema)]
pub struct Backends {
    backends: Vec<Backend>,
}

fn all(state: &AdminState) -> Vec<(Arc<Endpoint>, bool)> {
    state.live.load().health()
}

fn shown(endpoint: &Endpoint, healthy: bool) -> Backend {
    Backend {
        name: (*endpoint.name).to_owned(),
        url: endpoint.plan.url.to_string(),
        addresses: vec![endpoint.current_address().to_string()],
        weight: endpoint.plan.weight,
        healthy,
        draining: endpoint.draining(),
        in_flight: endpoint.in_flight(),
    }
}

/// List the backends with their health and load.
#[utoipa::path(get, path = "/admin/v1/backends", tag = "backends", responses(
    (status = 200, body = Backends),
))]
pub async fn list(State(state): State<AdminState>) -> Json<Backends> {
    let backends = all(&state).iter().map(|(e, healthy)| shown(e, *healthy)).collect();
    Json(Backends { backends })
}

/// Drain a backend: it receives no new requests.
///
/// Requests in flight continue. It stays drained until the drain is cancelled or the gateway
/// restarts. A name drains all addresses of the backend, including later ones; `NAME@ADDRESS`
/// drains a single one.
#[utoipa::path(put, path = "/admin/v1/backends/{name}/drain", tag = "backends",
    params(("name" = String, Path, description = "Its name, percent-encoded if it is a URL")),
    responses((status = 200, body = Backend), (status = 404, body = ErrorBody)))]
pub async fn drain(
    State(state): State<AdminState>,
    ConnectInfo(from): ConnectInfo<SocketAddr>,
    Path(name): Path<String>,
) -> Result<Json<Backend>, ApiError> {
    switch(&state, from, &name, true)
}

/// Cancel the drain of a backend.
#[utoipa::path(delete, path = "/admin/v1/backends/{name}/drain", tag = "backends",
    params(("name" = String, Path, description = "Its name, percent-encoded if it is a URL")),
    responses((status = 200, body = Backend), (status = 404, body = ErrorBody)))]
pub async fn undrain(
    State(state): State<AdminState>,
    ConnectInfo(from): ConnectInfo<SocketAddr>,
    Path(name): Path<String>,
) -> Result<Json<Backend>, ApiError> {
    switch(&state, from, &name, false)
}

fn switch(
    state: &AdminState,
    from: SocketAddr,
    name: &str,
    on: bool,
) -> Result<Json<Backend>, ApiError> {
    let Some(found) = switched(state, name, on) else {
        let path = "/admin/v1/backends/";
        return Err(ApiError::new(path, 404, "unknown_backend", "there is no such backend"));
    };
    audit(from, if on { "backend drained" } else { "backend undrained" }, name);
    state.carry.probe_now.notify_one();
    Ok(Json(found))
}

/// Drains a backend or an endpoint, or cancels it. Returns the new state, of all addresses
/// together.
fn switched(state: &AdminState, name: &str, on: bool) -> Option<Backend> {
    let snapshot = state.live.load();
    if let Some(plan) = snapshot.backends.iter().find(|b| b.name == name) {
        state.carry.drained.set(name, on, || state.live.load().endpoints.clone());
        let places = all(state).into_iter().filter(|(e, _)| e.plan.name == name);
        let shown: Vec<_> = places.map(|(e, healthy)| shown(&e, healthy)).collect();
        return Some(Backend {
            name: name.to_owned(),
            url: plan.url.to_string(),
            weight: plan.weight,
            healthy: shown.iter().any(|b| b.healthy),
            draining: on,
            in_flight: shown.iter().map(|b| b.in_flight).sum(),
            addresses: shown.into_iter().flat_map(|b| b.addresses).collect(),
        });
    }
    // An endpoint can also be named with its address while it is the only one of its backend.
    let full = |e: &Endpoint| format!("{}@{}", e.plan.name, e.address);
    let (endpoint, healthy) = all(state).into_iter().find(|(e, _)| full(e) == name)?;
    endpoint.drain(on);
    Some(shown(&endpoint, healthy))
}
