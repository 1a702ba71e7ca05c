//! `/admin/v1/backends`.

use std::{net::SocketAddr, sync::Arc};

use axum::{
    Json,
    extract::{ConnectInfo, Path, State},
};
use serde::Serialize;
use utoipa::ToSchema;

use super::{
    Parts,
    answer::{ErrorBody, Refusal, audit},
};
use crate::balance::Endpoint;

/// A backend.
#[derive(Serialize, ToSchema)]
pub struct Backend {
    /// `NAME@ADDRESS` for each of several addresses.
    name: String,
    url: String,
    /// Where it is; several if they are taken together, none while its name leads nowhere.
    addresses: Vec<String>,
    weight: u32,
    /// The probes succeed, or there are none.
    healthy: bool,
    /// It gets no new requests.
    draining: bool,
    /// Requests that are with it now.
    in_flight: usize,
}

/// All backends.
#[derive(Serialize, ToSchema)]
pub struct Backends {
    backends: Vec<Backend>,
}

fn all(parts: &Parts) -> Vec<(Arc<Endpoint>, bool)> {
    parts.live.load().health()
}

fn shown(endpoint: &Endpoint, healthy: bool) -> Backend {
    Backend {
        name: endpoint.name.clone(),
        url: endpoint.plan.url.to_string(),
        addresses: vec![endpoint.current_address().to_string()],
        weight: endpoint.plan.weight,
        healthy,
        draining: endpoint.draining(),
        in_flight: endpoint.in_flight(),
    }
}

/// The backends with their health and load.
#[utoipa::path(get, path = "/admin/v1/backends", tag = "backends", responses(
    (status = 200, body = Backends),
))]
pub async fn list(State(parts): State<Parts>) -> Json<Backends> {
    let backends = all(&parts).iter().map(|(e, healthy)| shown(e, *healthy)).collect();
    Json(Backends { backends })
}

/// Gives a backend no new requests; those under way go on. Holds until it is taken back or the
/// gateway is restarted, for all addresses of the backend, those to come included; or for a single
/// one, `NAME@ADDRESS`.
#[utoipa::path(put, path = "/admin/v1/backends/{name}/drain", tag = "backends",
    params(("name" = String, Path, description = "Its name, percent-encoded if it is a URL")),
    responses((status = 200, body = Backend), (status = 404, body = ErrorBody)))]
pub async fn drain(
    State(parts): State<Parts>,
    ConnectInfo(from): ConnectInfo<SocketAddr>,
    Path(name): Path<String>,
) -> Result<Json<Backend>, Refusal> {
    switch(&parts, from, &name, true)
}

/// Gives a backend requests again.
#[utoipa::path(delete, path = "/admin/v1/backends/{name}/drain", tag = "backends",
    params(("name" = String, Path, description = "Its name, percent-encoded if it is a URL")),
    responses((status = 200, body = Backend), (status = 404, body = ErrorBody)))]
pub async fn undrain(
    State(parts): State<Parts>,
    ConnectInfo(from): ConnectInfo<SocketAddr>,
    Path(name): Path<String>,
) -> Result<Json<Backend>, Refusal> {
    switch(&parts, from, &name, false)
}

fn switch(parts: &Parts, from: SocketAddr, name: &str, on: bool) -> Result<Json<Backend>, Refusal> {
    let Some(found) = switched(parts, name, on) else {
        let path = "/admin/v1/backends/";
        return Err(Refusal::new(path, 404, "unknown_backend", "there is no such backend"));
    };
    audit(from, if on { "backend drained" } else { "backend taken back" }, name);
    parts.carry.probe_now.notify_one();
    Ok(Json(found))
}

/// Drains what has this name or takes it back; how it stands then, all addresses together.
fn switched(parts: &Parts, name: &str, on: bool) -> Option<Backend> {
    let snapshot = parts.live.load();
    if let Some(plan) = snapshot.backends.iter().find(|b| b.name == name) {
        parts.carry.drained.set(name, on, || parts.live.load().endpoints.clone());
        let places = all(parts).into_iter().filter(|(e, _)| e.plan.name == name);
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
    // With its address an endpoint can be named even while it is the only one of its backend.
    let full = |e: &Endpoint| format!("{}@{}", e.plan.name, e.address);
    let (endpoint, healthy) = all(parts).into_iter().find(|(e, _)| full(e) == name)?;
    endpoint.drain(on);
    Some(shown(&endpoint, healthy))
}
