//! `/admin/v1/config`.

use std::net::SocketAddr;

use axum::{
    Json,
    extract::{ConnectInfo, State},
    http::StatusCode,
    response::{IntoResponse, Response},
};
use serde::Serialize;
use serde_json::Value;
use tokio::sync::oneshot;
use utoipa::ToSchema;

use super::{
    Parts,
    answer::{ErrorBody, Refusal, audit},
};

/// The configuration in force.
#[derive(Serialize, ToSchema)]
pub struct Config {
    /// Counts the loads of this process, from 1.
    generation: u64,
    /// What is no mistake but may not be meant.
    warnings: Vec<String>,
    /// Every key with its value; secrets are not told.
    config: Value,
}

/// What came of a reload.
#[derive(Serialize, ToSchema)]
pub struct Reloaded {
    /// The generation in force.
    generation: u64,
}

/// Why a configuration was not taken.
#[derive(Serialize, ToSchema)]
pub struct Problems {
    /// Everything that is wrong with it.
    problems: Vec<String>,
}

/// The configuration in force, without its secrets.
#[utoipa::path(get, path = "/admin/v1/config", tag = "config", responses(
    (status = 200, body = Config),
))]
pub async fn show(State(parts): State<Parts>) -> Json<Config> {
    let snapshot = parts.live.load();
    Json(Config {
        generation: snapshot.generation,
        warnings: snapshot.plan.warnings.iter().map(ToString::to_string).collect(),
        config: snapshot.plan.shown.clone(),
    })
}

/// Loads the configuration file anew, whole or not at all.
#[utoipa::path(post, path = "/admin/v1/config/reload", tag = "config", responses(
    (status = 200, body = Reloaded), (status = 422, body = Problems),
    (status = 503, body = ErrorBody),
))]
pub async fn reload(
    State(parts): State<Parts>,
    ConnectInfo(from): ConnectInfo<SocketAddr>,
) -> Response {
    audit(from, "reload asked for", "");
    let (tell, told) = oneshot::channel();
    if parts.carry.reload.send(tell).is_err() {
        return nobody();
    }
    match told.await {
        Ok(Ok(generation)) => Json(Reloaded { generation }).into_response(),
        Ok(Err(problems)) => {
            (StatusCode::UNPROCESSABLE_ENTITY, Json(Problems { problems })).into_response()
        }
        Err(_) => nobody(),
    }
}

fn nobody() -> Response {
    let path = "/admin/v1/config/reload";
    Refusal::new(path, 503, "no_file", "there is no configuration file to load").into_response()
}
