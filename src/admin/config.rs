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
    audit::audit,
    error::{ApiError, ErrorBody},
    state::AdminState,
};

/// The active configuration.
#[derive(Serialize, ToSchema)]
pub struct Config {
    /// The number of loads in this process, from 1.
    generation: u64,
    /// Settings that are valid but may be unintended.
    warnings: Vec<String>,
    /// Every key with its value, without secrets.
    config: Value,
}

/// The result of a reload.
#[derive(Serialize, ToSchema)]
pub struct Reloaded {
    /// The active generation.
    generation: u64,
}

/// Why a configuration was rejected.
#[derive(Serialize, ToSchema)]
pub struct Problems {
    /// Every problem of the file.
    problems: Vec<String>,
}

/// Show the active configuration without its secrets.
#[utoipa::path(get, path = "/admin/v1/config", tag = "config", responses(
    (status = 200, body = Config),
))]
pub async fn show(State(state): State<AdminState>) -> Json<Config> {
    let snapshot = state.live.load();
    Json(Config {
        generation: snapshot.generation,
        warnings: snapshot.plan.warnings.iter().map(ToString::to_string).collect(),
        config: snapshot.plan.shown.clone(),
    })
}

/// Reload the configuration file: all of it, or nothing if it has a problem.
#[utoipa::path(post, path = "/admin/v1/config/reload", tag = "config", responses(
    (status = 200, body = Reloaded), (status = 422, body = Problems),
    (status = 503, body = ErrorBody),
))]
pub async fn reload(
    State(state): State<AdminState>,
    ConnectInfo(from): ConnectInfo<SocketAddr>,
) -> Response {
    audit(from, "reload requested", "");
    let (reply, result) = oneshot::channel();
    if state.carry.reload.send(reply).is_err() {
        return no_file();
    }
    match result.await {
        Ok(Ok(generation)) => Json(Reloaded { generation }).into_response(),
        Ok(Err(problems)) => {
            (StatusCode::UNPROCESSABLE_ENTITY, Json(Problems { problems })).into_response()
        }
        Err(_) => no_file(),
    }
}

fn no_file() -> Response {
    let path = "/admin/v1/config/reload";
    ApiError::new(path, 503, "no_file", "there is no configuration file to load").into_response()
}
