//! The routes, the OpenAPI document that is made from them, and the layers around the handlers.

use std::{sync::Arc, time::Duration};

use axum::{
    Extension, Router,
    extract::{DefaultBodyLimit, Request, State},
    middleware::{self, Next},
    response::{IntoResponse, Response},
};
use utoipa::{
    OpenApi,
    openapi::{
        ContentBuilder, OpenApi as Document, Ref, Response as DocumentedResponse, ResponseBuilder,
        security::{ApiKey, ApiKeyValue, SecurityScheme},
    },
};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    backends, config,
    error::{self, ApiError},
    explain,
    extract::MAX_BODY,
    guard,
    index::{self, Description},
    keys, legacy, log_level,
    state::AdminState,
    usage,
};
use crate::base::Secret;

/// How long a request may take, from its head to the head of its response.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);

#[derive(OpenApi)]
#[openapi(
    info(title = "LLMProxy admin API", description = "Keys, backends, requests, usage and configuration."),
    security(("admin_token" = []))
)]
struct Head;

fn api() -> OpenApiRouter<AdminState> {
    OpenApiRouter::with_openapi(Head::openapi())
        .routes(routes!(index::root))
        .routes(routes!(index::list))
        .routes(routes!(index::openapi))
        .routes(routes!(keys::list, keys::create))
        .routes(routes!(keys::get, keys::change, keys::delete))
        .routes(routes!(keys::rotate))
        .routes(routes!(backends::list))
        .routes(routes!(backends::drain, backends::undrain))
        .routes(routes!(explain::show))
        .routes(routes!(usage::list))
        .routes(routes!(usage::export))
        .routes(routes!(usage::reporters))
        .routes(routes!(config::show))
        .routes(routes!(config::reload))
        .routes(routes!(log_level::show, log_level::change))
        .routes(routes!(legacy::create))
        .routes(routes!(legacy::update))
        .routes(routes!(legacy::delete))
        .routes(routes!(legacy::get))
        .routes(routes!(legacy::list))
        .routes(routes!(legacy::sync))
}

/// The OpenAPI document.
pub fn document() -> Document {
    let mut document = api().into_openapi();
    let header = ApiKeyValue::new("X-Admin-Token");
    let scheme = SecurityScheme::ApiKey(ApiKey::Header(header));
    document
        .components
        .get_or_insert_default()
        .security_schemes
        .insert("admin_token".to_owned(), scheme.into());
    for (path, item) in &mut document.paths.paths {
        let legacy = path.starts_with(error::LEGACY);
        let operations =
            [&mut item.get, &mut item.post, &mut item.put, &mut item.patch, &mut item.delete];
        for operation in operations.into_iter().flatten() {
            for (status, about) in COMMON_ERRORS {
                let response = error_response(about, if legacy { "Envelope" } else { "ErrorBody" });
                operation.responses.responses.insert(status.to_owned(), response.into());
            }
        }
    }
    document
}

/// The errors that every endpoint may answer.
const COMMON_ERRORS: [(&str, &str); 3] = [
    ("401", "The token is missing"),
    ("403", "The token is wrong"),
    ("500", "The keys cannot be read or written"),
];

fn error_response(about: &str, schema: &str) -> DocumentedResponse {
    let body = ContentBuilder::new().schema(Some(Ref::from_schema_name(schema))).build();
    ResponseBuilder::new().description(about).content("application/json", body).build()
}

/// The handlers, behind the check of the token.
pub fn app(state: AdminState, token: &Secret) -> Router {
    let (router, _) = api().split_for_parts();
    router
        .fallback(error::unknown_path)
        .method_not_allowed_fallback(error::wrong_method)
        .layer(Extension(Arc::new(Description::new(&document()))))
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .layer(middleware::from_fn_with_state(REQUEST_TIMEOUT, finish))
        .layer(middleware::from_fn_with_state(guard::AdminToken::new(token), guard::check))
        .with_state(state)
}

/// Finishes a request also when its client disconnects: a change, its audit line and its effect
/// belong together. The limit applies until the head of the response: an export takes as long as
/// its body.
async fn finish(State(limit): State<Duration>, request: Request, next: Next) -> Response {
    let path = request.uri().path().to_owned();
    let work = tokio::spawn(tokio::time::timeout(limit, next.run(request)));
    match work.await {
        Ok(Ok(response)) => response,
        Ok(Err(_)) => {
            ApiError::new(&path, 408, "timeout", "the request took too long").into_response()
        }
        Err(_) => ApiError::new(&path, 500, "internal_error", "the request failed").into_response(),
    }
}

#[cfg(test)]
mod tests {
    use axum::{body::Body, routing::get};
    use futures::{StreamExt, stream};
    use http_body_util::BodyExt;
    use hyper::service::Service;
    use hyper_util::service::TowerToHyperService;

    use super::*;

    #[tokio::test]
    async fn only_the_head_of_an_answer_has_a_time_limit() {
        let limit = Duration::from_millis(500);
        let parts = move || async move {
            let late = stream::iter(["a", "b"]).then(move |part| async move {
                tokio::time::sleep(limit.mul_f32(1.2)).await;
                Ok::<_, std::io::Error>(part)
            });
            Body::from_stream(late)
        };
        let never = || std::future::pending::<()>();
        let app = Router::new()
            .route("/parts", get(parts))
            .route("/never", get(never))
            .layer(middleware::from_fn_with_state(limit, finish));
        let ask = async |path: &str| {
            let request = Request::builder().uri(path).body(Body::empty()).unwrap();
            TowerToHyperService::new(app.clone()).call(request).await.unwrap()
        };
        let parts = ask("/parts").await;
        assert_eq!(parts.status(), 200);
        assert_eq!(parts.into_body().collect().await.unwrap().to_bytes(), "ab");
        assert_eq!(ask("/never").await.status(), 408);
    }
}
