//! `/admin/v1/explain`.

use axum::{Json, extract::State};
use serde::Deserialize;

use super::{
    error::{ApiError, ErrorBody},
    extract::Params,
    state::AdminState,
};
use crate::runtime::explain::Trace;

const PATH: &str = "/admin/v1/explain";

/// The request.
#[derive(Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ExplainQuery {
    /// Its id: `X-Request-Id` of the response, of usage records and of the access log.
    request_id: String,
}

/// Explain the routing of a request: its attempts, the candidates of each, and times.
///
/// This is the newest request with this id, if it is still remembered (`routing.explain`).
#[utoipa::path(get, path = "/admin/v1/explain", tag = "explain", params(ExplainQuery), responses(
    (status = 200, body = Trace), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody),
))]
pub async fn show(
    State(state): State<AdminState>,
    Params(query): Params<ExplainQuery>,
) -> Result<Json<Trace>, ApiError> {
    let explains = &state.carry.explains;
    if let Some(trace) = explains.find(&query.request_id) {
        return Ok(Json(trace));
    }
    Err(match explains.capacity() {
        0 => {
            let hint = "no requests are remembered: set `routing.explain` to their number";
            ApiError::new(PATH, 404, "explain_off", hint)
        }
        most => {
            let hint = format!(
                "this process remembers its last {most} requests (`routing.explain`), and this one is not \
                 among them; other replicas remember their own"
            );
            ApiError::new(PATH, 404, "unknown_request", hint)
        }
    })
}

#[cfg(test)]
mod tests {
    use std::{
        path::Path,
        sync::Arc,
        time::{Duration, Instant},
    };

    use axum::{body::to_bytes, response::IntoResponse};
    use serde_json::{Value, json};

    use super::*;
    use crate::{
        balance::Candidate,
        base::{Outcome, RequestId},
        runtime::{
            Carry, Live, Snapshot,
            explain::{KeptAttempt, KeptRequest, Names},
        },
    };

    async fn explained(state: &AdminState, request_id: &str) -> (u16, Value) {
        let query = Params(ExplainQuery { request_id: request_id.to_owned() });
        let answer = show(State(state.clone()), query).await.into_response();
        let status = answer.status().as_u16();
        let body = to_bytes(answer.into_body(), usize::MAX).await.unwrap();
        (status, serde_json::from_slice(&body).unwrap())
    }

    #[tokio::test]
    async fn a_request_is_told_of_by_its_id() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let (carry, _outlets) = Carry::new(at("keys.db"), at("limits.db"), None);
        let text = "backends: [{url: \"http://x\"}]";
        let plan = crate::config::load_text(text, Path::new("."), &|_| None).plan.unwrap();
        let snapshot = Snapshot::build(plan, None, &carry);
        let state = AdminState { live: Arc::new(Live::new(snapshot)), carry };
        state.carry.explains.resize(0);
        let (status, off) = explained(&state, "req-1").await;
        assert_eq!((status, &off["error"]["code"]), (404, &json!("explain_off")));
        state.carry.explains.resize(2);
        let candidate = Candidate { backend: "b".into(), score: Some(1.5), barred: None };
        let first = KeptAttempt {
            at: Duration::from_millis(1),
            began: Instant::now(),
            tier: 0,
            pool: 0,
            model: Some("qwen-72b".into()),
            backend: Some("b".into()),
            candidates: vec![candidate],
            first_byte: None,
            took: Some(Duration::from_micros(5999)),
            result: "connect_failure".into(),
            hedge: false,
            translation: None,
        };
        state.carry.explains.put(KeptRequest {
            request_id: RequestId::accept(b"req-1").unwrap(),
            arrived: jiff::Timestamp::UNIX_EPOCH,
            names: Names::new("gpt-4o", "key-1", "u"),
            attempts: vec![first],
            outcome: Outcome::Rejected,
            status: 502,
            duration: Duration::from_millis(7),
            hooks: Vec::new(),
            queued: None,
        });
        let (status, trace) = explained(&state, "req-1").await;
        assert_eq!((status, &trace["queued_ms"]), (200, &Value::Null));
        assert_eq!(
            trace["tries"][0]["candidates"],
            json!([{"backend": "b", "score": 1.5, "barred": null}])
        );
        assert_eq!(
            trace,
            json!({
                "request_id": "req-1", "time": "1970-01-01T00:00:00.000Z", "model": "gpt-4o",
                "key_id": "key-1", "user_id": "u", "outcome": "rejected", "status": 502,
                "duration_ms": 7, "queued_ms": null,
                "hooks": [],
                "tries": [{
                    "at_ms": 1, "tier": 0, "pool": 0, "model": "qwen-72b", "backend": "b",
                    "candidates": [{"backend": "b", "score": 1.5, "barred": null}],
                    "first_byte_ms": null, "took_ms": 5, "result": "connect_failure", "hedge": false,
                    "language": null, "language_reason": "native", "dropped": [],
                }],
            })
        );
        let (status, unknown) = explained(&state, "req-2").await;
        assert_eq!((status, &unknown["error"]["code"]), (404, &json!("unknown_request")));
        assert!(unknown["error"]["message"].as_str().unwrap().contains("routing.explain"));
    }
}
