//! The operator's HTTP API, on a listener of its own: keys, backends, the last requests, usage,
//! configuration.
//!
//! `/admin/v1/...` is the API; `/admin/keys/...` are the endpoints of LLMProxy 0.5, all of them
//! POST. The OpenAPI document is made from the handlers themselves.

mod answer;
mod backends;
mod config;
mod explain;
mod guard;
mod keys;
mod legacy;
mod usage;

use std::{io, net::TcpListener, sync::Arc, time::Duration};

use axum::{
    Router,
    extract::{DefaultBodyLimit, Request, State},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::get,
};
use utoipa::{
    OpenApi,
    openapi::{
        ContentBuilder, OpenApi as Document, Ref, Response as Documented, ResponseBuilder,
        security::{ApiKey, ApiKeyValue, SecurityScheme},
    },
};
use utoipa_axum::{router::OpenApiRouter, routes};

use self::answer::Refusal;
use crate::{
    base::Secret,
    runtime::{Carry, Live, serve},
};

/// Bytes of a request's body.
const LARGEST: usize = 1 << 20;

/// What all handlers share.
#[derive(Clone)]
pub struct Parts {
    live: Arc<Live>,
    carry: Arc<Carry>,
}

#[derive(OpenApi)]
#[openapi(
    info(title = "LLMProxy admin API", description = "Keys, backends, requests, usage and configuration."),
    security(("admin_token" = []))
)]
struct Head;

fn api() -> OpenApiRouter<Parts> {
    OpenApiRouter::with_openapi(Head::openapi())
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
        let legacy = path.starts_with(answer::LEGACY);
        let operations =
            [&mut item.get, &mut item.post, &mut item.put, &mut item.patch, &mut item.delete];
        for operation in operations.into_iter().flatten() {
            for (status, about) in EVERYWHERE {
                let response = refusal(about, if legacy { "Envelope" } else { "ErrorBody" });
                operation.responses.responses.insert(status.to_owned(), response.into());
            }
        }
    }
    document
}

/// What any request may be answered with.
const EVERYWHERE: [(&str, &str); 3] = [
    ("401", "The token is missing"),
    ("403", "The token is wrong"),
    ("500", "The keys cannot be read or written"),
];

fn refusal(about: &str, schema: &str) -> Documented {
    let body = ContentBuilder::new().schema(Some(Ref::from_schema_name(schema))).build();
    ResponseBuilder::new().description(about).content("application/json", body).build()
}

/// The handlers.
fn app(parts: Parts, token: &Secret) -> Router {
    let (router, _) = api().split_for_parts();
    let document = document().to_json().unwrap_or_default();
    let serve = move || {
        let document = document.clone();
        async move { ([("content-type", "application/json")], document) }
    };
    router
        .route("/admin/v1/openapi.json", get(serve))
        .fallback(answer::unknown_path)
        .method_not_allowed_fallback(answer::wrong_method)
        .layer(DefaultBodyLimit::max(LARGEST))
        .layer(middleware::from_fn_with_state(REQUEST, whole))
        .layer(middleware::from_fn_with_state(guard::Lock::new(token), guard::check))
        .with_state(parts)
}

/// Finishes what was begun also when the client goes away: a change, its line in the log, and what
/// makes it seen belong together. The limit holds until the head of the answer is there: an export is
/// read for as long as it has something to say.
async fn whole(State(limit): State<Duration>, request: Request, next: Next) -> Response {
    let path = request.uri().path().to_owned();
    let work = tokio::spawn(tokio::time::timeout(limit, next.run(request)));
    match work.await {
        Ok(Ok(response)) => response,
        Ok(Err(_)) => {
            Refusal::new(&path, 408, "timeout", "the request took too long").into_response()
        }
        Err(_) => Refusal::new(&path, 500, "internal_error", "the request failed").into_response(),
    }
}

/// How long a client may take for the head of a request, and a request from its head to that of its
/// answer.
const HEAD: Duration = Duration::from_secs(10);
const REQUEST: Duration = Duration::from_secs(60);

/// Serves for ever.
///
/// # Errors
/// If the listener breaks.
pub async fn run(
    listener: TcpListener,
    token: &Secret,
    live: Arc<Live>,
    carry: Arc<Carry>,
) -> io::Result<()> {
    serve::run(listener, "admin", HEAD, app(Parts { live, carry }, token)).await
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
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
                Ok::<_, io::Error>(part)
            });
            Body::from_stream(late)
        };
        let never = || std::future::pending::<()>();
        let app = Router::new()
            .route("/parts", get(parts))
            .route("/never", get(never))
            .layer(middleware::from_fn_with_state(limit, whole));
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
