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
    name: String,
    url: String,
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
        name: endpoint.plan.name.clone(),
        url: endpoint.plan.url.clone(),
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
/// gateway is restarted.
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
    let found = all(parts).into_iter().find(|(e, _)| e.plan.name == name);
    let Some((endpoint, healthy)) = found else {
        let path = "/admin/v1/backends/";
        return Err(Refusal::new(path, 404, "unknown_backend", "there is no such backend"));
    };
    endpoint.drain(on);
    audit(from, if on { "backend drained" } else { "backend taken back" }, name);
    parts.carry.probe_now.notify_one();
    Ok(Json(shown(&endpoint, healthy)))
}
