//! `/admin/v1/log-level`: what the process writes to its log, until the next reload.

use std::net::SocketAddr;

use axum::{Json, extract::ConnectInfo};
use log::LevelFilter;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    audit::audit,
    error::{ApiError, ErrorBody},
    extract::Body,
};

/// A level of the log.
#[derive(Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct LogLevel {
    /// `error`, `warn`, `info`, `debug` or `trace`.
    level: String,
}

/// Show the lowest level that is written.
#[utoipa::path(get, path = "/admin/v1/log-level", tag = "config", responses(
    (status = 200, body = LogLevel),
))]
pub async fn show() -> Json<LogLevel> {
    Json(LogLevel { level: log::max_level().as_str().to_ascii_lowercase() })
}

/// Change the lowest level that is written. A reload of the configuration sets its own again.
#[utoipa::path(post, path = "/admin/v1/log-level", tag = "config", request_body = LogLevel, responses(
    (status = 200, body = LogLevel), (status = 400, body = ErrorBody), (status = 409, body = ErrorBody),
))]
pub async fn change(
    ConnectInfo(from): ConnectInfo<SocketAddr>,
    Body(wanted): Body<LogLevel>,
) -> Result<Json<LogLevel>, ApiError> {
    const PATH: &str = "/admin/v1/log-level";
    let known = wanted.level.parse::<LevelFilter>().ok().filter(|level| *level != LevelFilter::Off);
    let Some(level) = known else {
        let why = "`level` is not one of error, warn, info, debug and trace";
        return Err(ApiError::new(PATH, 400, "invalid_value", why));
    };
    if std::env::var_os("RUST_LOG").is_some() {
        let why = "the environment variable RUST_LOG sets the levels of this process";
        return Err(ApiError::new(PATH, 409, "level_is_fixed", why));
    }
    // The change itself is written at the more verbose of both levels.
    log::set_max_level(level.max(log::max_level()));
    audit(from, "log level changed to", &wanted.level);
    log::set_max_level(level);
    Ok(show().await)
}
