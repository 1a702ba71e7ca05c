//! The error responses of the simulated server, in vLLM's wording.

use serde_json::{Value, json};

use super::{
    behaviour::{Behaviour, Fail},
    conn::{ClientGone, Conn, ConnectionAction, JSON},
};

/// An error response: the status, more header lines, the body.
pub type Refusal = (u16, String, Value);

/// Answers with an error.
pub async fn send(conn: &mut Conn, refusal: Refusal) -> Result<ConnectionAction, ClientGone> {
    let (status, headers, body) = refusal;
    conn.answer(status, &headers, JSON, body.to_string().as_bytes()).await?;
    Ok(ConnectionAction::Keep)
}

/// The error of a vLLM whose engine has died.
pub fn dead() -> Value {
    let text = "EngineCore encountered an issue. See stack trace (above) for the root cause.";
    error(text, "InternalServerError", None, 500)
}

/// The response to a body that is not JSON.
pub fn not_json(e: &serde_json::Error) -> Refusal {
    let at = format!("body.{}", e.column());
    let text = format!(
        "1 validation error:\n  {{'type': 'json_invalid', 'loc': '{at}', 'msg': 'JSON decode error'}}"
    );
    (400, String::new(), error(&text, "Bad Request", Some(&at), 400))
}

/// The response of a server that fails by rejecting requests.
pub fn failing(fail: Fail, model: &str, behaviour: &Behaviour) -> Option<Refusal> {
    let unavailable = |text, kind| Some((503, String::new(), error(text, kind, None, 503)));
    match fail {
        Fail::Busy => unavailable(
            "The engine is currently busy and cannot accept new requests. Please try again later \
             or on a different instance.",
            "Service Unavailable",
        ),
        Fail::Backlog => unavailable(
            "The engine has reached its prefill token backlog limit. Please try again later or on \
             a different instance.",
            "Service Unavailable",
        ),
        Fail::Paused => {
            unavailable("The engine is paused. Please try again later.", "ServiceUnavailableError")
        }
        Fail::Scaling => {
            let text = "The model is currently scaling. Please try again later.";
            Some((503, String::new(), json!({"error": text})))
        }
        Fail::TooMany => {
            let body = error("Too many requests", "RateLimitError", None, 429);
            Some((429, format!("retry-after: {}\r\n", behaviour.retry_after), body))
        }
        Fail::NoModel => Some(no_model(model, behaviour)),
        Fail::Error => Some((behaviour.error_status, String::new(), dead())),
        Fail::Redirect => {
            let to = "location: http://10.1.2.3:8000/v1/chat/completions\r\n".to_owned();
            Some((307, to, json!({"detail": "Temporary Redirect"})))
        }
        _ => None,
    }
}

/// The response to a request that vLLM itself rejects.
pub fn invalid(behaviour: &Behaviour, path: &str, body: &Value) -> Option<Refusal> {
    let needed = match path {
        "/v1/chat/completions" => "messages",
        "/v1/completions" => "prompt",
        _ => "input",
    };
    if body[needed].is_null() {
        let at = format!("body.{needed}");
        let text = format!(
            "1 validation error:\n  {{'type': 'missing', 'loc': '{at}', 'msg': 'Field required'}}"
        );
        return Some((400, String::new(), error(&text, "Bad Request", Some(&at), 400)));
    }
    if !body["stream_options"].is_null() && body["stream"] != true {
        let text =
            "Stream options can only be defined when `stream=True`. (parameter=stream_options)";
        return Some((
            400,
            String::new(),
            error(text, "BadRequestError", Some("stream_options"), 400),
        ));
    }
    let model = body["model"].as_str()?;
    let known = behaviour.models.iter().any(|m| m == model);
    (!known).then(|| no_model(model, behaviour))
}

fn no_model(model: &str, behaviour: &Behaviour) -> Refusal {
    let text = format!(
        "The model `{model}` does not exist. Valid aliases: {}.",
        behaviour.models.join(", ")
    );
    (404, String::new(), error(&text, "NotFoundError", Some("model"), 404))
}

fn error(message: &str, kind: &str, param: Option<&str>, code: u16) -> Value {
    json!({"error": {"message": message, "type": kind, "param": param, "code": code}})
}
