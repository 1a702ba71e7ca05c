//! The error responses of the simulated server, in vLLM's wording.

use serde_json::{Value, json};

use super::{
    behaviour::{Behaviour, Fail},
    conn::{ClientGone, Conn, ConnectionAction, JSON},
    language::{Endpoint, Language},
};

/// An error response: the status, more header lines, the body.
pub type Refusal = (u16, String, Value);

/// Answers with an error.
pub async fn send(conn: &mut Conn, refusal: Refusal) -> Result<ConnectionAction, ClientGone> {
    let (status, headers, body) = refusal;
    conn.answer(status, &headers, JSON, body.to_string().as_bytes()).await?;
    Ok(ConnectionAction::Keep)
}

/// What a vLLM says whose engine has died.
pub const DEAD: &str =
    "EngineCore encountered an issue. See stack trace (above) for the root cause.";

/// The error of a vLLM whose engine has died.
pub fn dead() -> Value {
    error(DEAD, "InternalServerError", None, 500)
}

/// An error as it is worded in the language of an endpoint. What the parser of requests rejects is worded as
/// in Chat everywhere.
pub fn worded(endpoint: Endpoint, refusal: Refusal) -> Refusal {
    let (status, headers, mut body) = refusal;
    if endpoint.language() == Language::Messages && body["error"].is_object() {
        let error = body["error"].take();
        body = json!({"type": "error",
                      "error": {"type": error["type"], "message": error["message"]}});
    }
    (status, headers, body)
}

/// The response to a body that is not JSON.
pub fn not_json(e: &serde_json::Error) -> Refusal {
    let at = format!("body.{}", e.column());
    let text = format!(
        "1 validation error:\n  {{'type': 'json_invalid', 'loc': '{at}', 'msg': 'JSON decode error', 'input': '<dict of 0 items>', 'ctx': {{'error': 'Expecting value'}}}}"
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
pub fn invalid(behaviour: &Behaviour, endpoint: Endpoint, body: &Value) -> Option<Refusal> {
    if let Some(unreadable) = unreadable(endpoint, body) {
        return Some(unreadable);
    }
    let bad = |text: &str, param| {
        Some((400, String::new(), error(text, "BadRequestError", Some(param), 400)))
    };
    let is_openai = endpoint.language() == Language::Chat;
    if is_openai && !body["stream_options"].is_null() && body["stream"] != true {
        let text =
            "Stream options can only be defined when `stream=True`. (parameter=stream_options)";
        return bad(text, "stream_options");
    }
    if endpoint == Endpoint::Responses && body["background"] == true && body["store"] == false {
        let text = "background can only be used when `store` is true";
        return bad(text, "background");
    }
    let choice = &body["tool_choice"];
    if endpoint == Endpoint::Chat && (choice == "required" || choice.is_object()) {
        let none = Vec::new();
        let tools = body["tools"].as_array().unwrap_or(&none);
        if tools.is_empty() {
            let text = "When using `tool_choice`, `tools` must be set. (parameter=tool_choice)";
            return bad(text, "tool_choice");
        }
        let name = &choice["function"]["name"];
        if name.is_string() && !tools.iter().any(|tool| tool["function"]["name"] == *name) {
            let text = "The tool specified in `tool_choice` does not match any of the specified \
                        `tools` (parameter=tool_choice)";
            return bad(text, "tool_choice");
        }
    }
    let model = body["model"].as_str()?;
    let known = behaviour.models.iter().any(|m| m == model);
    (!known).then(|| worded(endpoint, no_model(model, behaviour)))
}

/// The response to a body in which the parser finds mistakes.
fn unreadable(endpoint: Endpoint, body: &Value) -> Option<Refusal> {
    let refused = |text: &str, at: &str| {
        Some((400, String::new(), error(text, "Bad Request", Some(at), 400)))
    };
    let Some(members) = body.as_object() else {
        let input = match body {
            Value::Array(items) => format!("<list of {} items>", items.len()),
            other => other.to_string(),
        };
        let text = format!(
            "1 validation error:\n  {{'type': 'model_attributes_type', 'loc': 'body', 'msg': 'Input should be a \
             valid dictionary or object to extract fields from', 'input': '{input}'}}"
        );
        return refused(&text, "body");
    };
    let needed: &[&str] = match endpoint {
        Endpoint::Chat | Endpoint::Tokenize => &["messages"],
        Endpoint::Completions => &["prompt"],
        Endpoint::Embeddings | Endpoint::Responses | Endpoint::InputTokens => &["input"],
        Endpoint::Messages => &["model", "messages", "max_tokens"],
        Endpoint::CountTokens => &["model", "messages"],
    };
    let missing: Vec<&&str> = needed.iter().filter(|name| body[**name].is_null()).collect();
    let first = missing.first()?;
    let errors: String = missing
        .iter()
        .map(|name| {
            format!(
                "\n  {{'type': 'missing', 'loc': 'body.{name}', 'msg': 'Field required', 'input': '<dict of {} \
                 items>'}}",
                members.len()
            )
        })
        .collect();
    let plural = if missing.len() == 1 { "" } else { "s" };
    let text = format!("{} validation error{plural}:{errors}", missing.len());
    refused(&text, &format!("body.{first}"))
}

/// The response to a prompt, or a wish for tokens, that is longer than the context.
pub fn too_long(context: u64, prompt: u64, wanted: Option<u64>) -> Option<Refusal> {
    let (text, param) = match wanted {
        _ if context == 0 => return None,
        Some(wanted) if wanted > context => (
            format!(
                "max_tokens={wanted} cannot be greater than max_model_len={context}. Please request fewer output \
                 tokens. (parameter=max_tokens, value={wanted})"
            ),
            "max_tokens",
        ),
        _ if prompt > context => {
            // It stops counting there.
            let least = context + 1;
            let text = format!(
                "This model's maximum context length is {context} tokens. However, your prompt contains at least \
                 {least} input tokens, which exceeds this limit even without any output tokens. Please reduce the \
                 length of the input prompt. (parameter=input_tokens, value={least})"
            );
            (text, "input_tokens")
        }
        _ => return None,
    };
    Some((400, String::new(), error(&text, "BadRequestError", Some(param), 400)))
}

/// The response to the id of a response that is not stored.
pub fn no_response(id: &str) -> Refusal {
    let text = format!("Response with id '{id}' not found.");
    (404, String::new(), error(&text, "invalid_request_error", Some("response_id"), 404))
}

fn no_model(model: &str, behaviour: &Behaviour) -> Refusal {
    let text = format!(
        "The model `{model}` does not exist. Valid aliases: {}.",
        behaviour.models.join(", ")
    );
    (404, String::new(), error(&text, "NotFoundError", Some("model"), 404))
}

/// An error as OpenAI's languages word it.
pub fn error(message: &str, kind: &str, param: Option<&str>, code: u16) -> Value {
    json!({"error": {"message": message, "type": kind, "param": param, "code": code}})
}
