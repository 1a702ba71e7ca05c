//! `/`, `/admin/v1/` and `/admin/v1/openapi.json`: what this API offers.

use std::sync::Arc;

use axum::{Extension, Json, http::header, response::IntoResponse};
use serde::Serialize;
use utoipa::{ToSchema, openapi::OpenApi as Document};

use super::error::ErrorBody;

/// One endpoint.
#[derive(Clone, Serialize, ToSchema)]
pub struct EndpointSummary {
    method: &'static str,
    /// With its parameters in braces.
    path: String,
    /// What it does, in one line.
    summary: String,
}

/// All endpoints.
#[derive(Clone, Serialize, ToSchema)]
pub struct Index {
    /// The version of the gateway.
    version: &'static str,
    endpoints: Vec<EndpointSummary>,
}

/// The API's description of itself.
pub struct Description {
    index: Index,
    openapi: String,
}

impl Description {
    /// Takes the list of endpoints from the document, which is made from the routes.
    pub fn new(document: &Document) -> Self {
        let mut endpoints = Vec::new();
        for (path, item) in &document.paths.paths {
            let operations = [
                ("GET", &item.get),
                ("POST", &item.post),
                ("PUT", &item.put),
                ("PATCH", &item.patch),
                ("DELETE", &item.delete),
            ];
            for (method, operation) in operations {
                let Some(operation) = operation else { continue };
                let summary = operation.summary.clone().unwrap_or_default();
                let summary = summary.trim_end_matches('.').to_owned();
                endpoints.push(EndpointSummary { method, path: path.clone(), summary });
            }
        }
        let index = Index { version: env!("CARGO_PKG_VERSION"), endpoints };
        Self { index, openapi: document.to_json().unwrap_or_default() }
    }
}

/// List all endpoints; the same as `/admin/v1/`.
#[utoipa::path(get, path = "/", tag = "index", responses((status = 200, body = Index)))]
pub async fn root(Extension(description): Extension<Arc<Description>>) -> Json<Index> {
    Json(description.index.clone())
}

/// List all endpoints: method, path, and what each does.
#[utoipa::path(get, path = "/admin/v1/", tag = "index", responses((status = 200, body = Index)))]
pub async fn list(Extension(description): Extension<Arc<Description>>) -> Json<Index> {
    Json(description.index.clone())
}

/// The OpenAPI document of this API.
#[utoipa::path(get, path = "/admin/v1/openapi.json", tag = "index", responses(
    (status = 200, body = serde_json::Value, content_type = "application/json"), (status = 401, body = ErrorBody),
))]
pub async fn openapi(Extension(description): Extension<Arc<Description>>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "application/json")], description.openapi.clone())
}
