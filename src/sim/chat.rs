//! Answers of the simulated model, member by member as vLLM writes them.

use std::{sync::Arc, time::Duration};

use serde_json::{Value, json};

use super::{
    Behaviour, Fail, Seen, Shared,
    conn::{Conn, Gone},
    control::{self, After},
    text,
};

const JSON: &str = "application/json";
const FINGERPRINT: &str = "vllm-0.32.0-simulated";
const DONE: &str = "data: [DONE]\n\n";
/// Long enough to count as for ever.
const EVER: Duration = Duration::from_secs(3600);

/// One inference request.
struct Ask<'a> {
    chat: bool,
    id: String,
    created: u64,
    model: String,
    prompt: usize,
    tokens: u64,
    finish: &'static str,
    /// The name of the tool that is to be called.
    tool: Option<String>,
    include_usage: bool,
    continuous: bool,
    fail: Fail,
    behaviour: &'a Behaviour,
}

/// Answers a request.
pub async fn answer(
    conn: &mut Conn,
    behaviour: &Behaviour,
    path: &str,
    seen: &Seen,
    fails: bool,
    shared: &Arc<Shared>,
) -> Result<After, Gone> {
    let fail = if fails { behaviour.fail } else { Fail::None };
    match fail {
        Fail::BeforeHeaders => return Ok(After::Reset),
        Fail::Busy => {
            let text = "The engine is currently busy. Please try again later.";
            return refuse(conn, 503, "", error(text, "Service Unavailable", None, 503)).await;
        }
        Fail::TooMany => {
            let body = error("Too many requests", "RateLimitError", None, 429);
            return refuse(conn, 429, "retry-after: 7\r\n", body).await;
        }
        Fail::Error => return refuse(conn, 500, "", dead()).await,
        Fail::Wedge => {
            conn.wait(EVER).await?;
            return Ok(After::Close);
        }
        _ => {}
    }
    let body: Value = match serde_json::from_slice(&seen.body) {
        Ok(body) => body,
        Err(e) => {
            let at = format!("body.{}", e.column());
            let text = format!(
                "1 validation error:\n  {{'type': 'json_invalid', 'loc': '{at}', 'msg': 'JSON decode error'}}"
            );
            return refuse(conn, 400, "", error(&text, "Bad Request", Some(&at), 400)).await;
        }
    };
    let chat = path == "/v1/chat/completions";
    let stream = body["stream"] == true;
    if let Some((status, body)) = refusal(behaviour, path, &body, stream) {
        return refuse(conn, status, "", body).await;
    }
    let ask = ask(behaviour, chat, &body, seen, fail);
    if path == "/v1/embeddings" {
        let tokens = text::prompt_tokens(ask.prompt);
        let body = json!({
            "id": ask.id, "object": "list", "created": ask.created, "model": ask.model,
            "data": [{"index": 0, "object": "embedding", "embedding": [0.1, -0.2, 0.3, 0.4]}],
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens, "completion_tokens": 0,
                      "prompt_tokens_details": null},
        });
        conn.answer(200, "", JSON, body.to_string().as_bytes()).await?;
        control::count(shared, ask.prompt, 0);
        return Ok(After::Keep);
    }
    if stream { ask.stream(conn, shared).await } else { ask.whole(conn, shared).await }
}

fn ask<'a>(behaviour: &'a Behaviour, chat: bool, body: &Value, seen: &Seen, fail: Fail) -> Ask<'a> {
    let limit = body["max_completion_tokens"].as_u64().or(body["max_tokens"].as_u64());
    let tokens = limit.unwrap_or(u64::MAX).min(behaviour.tokens);
    let prompt = ["messages", "prompt", "input"].iter().map(|k| &body[*k]).find(|v| !v.is_null());
    let options = &body["stream_options"];
    // vLLM's own default for `include_usage` is `true`.
    let include_usage = match options.get("include_usage") {
        Some(value) => *value == true,
        None => options.is_object(),
    };
    let suffix = seen
        .header("x-request-id")
        .map_or_else(|| format!("{:016x}", rand::random::<u64>()), str::to_owned);
    let tool = (body["tool_choice"] != "none")
        .then(|| body["tools"][0]["function"]["name"].as_str())
        .flatten();
    Ask {
        chat,
        id: format!("{}-{suffix}", if chat { "chatcmpl" } else { "cmpl" }),
        created: control::now(),
        model: body["model"].as_str().unwrap_or(&behaviour.models[0]).to_owned(),
        prompt: prompt.map_or(0, |p| p.to_string().len()),
        tokens,
        finish: if limit.is_some_and(|l| l <= behaviour.tokens) { "length" } else { "stop" },
        tool: tool.map(str::to_owned),
        include_usage,
        continuous: include_usage && options["continuous_usage_stats"] == true,
        fail,
        behaviour,
    }
}

/// The requests that vLLM itself refuses.
fn refusal(behaviour: &Behaviour, path: &str, body: &Value, stream: bool) -> Option<(u16, Value)> {
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
        return Some((400, error(&text, "Bad Request", Some(&at), 400)));
    }
    if !body["stream_options"].is_null() && !stream {
        let text =
            "Stream options can only be defined when `stream=True`. (parameter=stream_options)";
        return Some((400, error(text, "BadRequestError", Some("stream_options"), 400)));
    }
    let model = body["model"].as_str()?;
    if behaviour.models.iter().any(|m| m == model) {
        return None;
    }
    let text = format!(
        "The model `{model}` does not exist. Valid aliases: {}.",
        behaviour.models.join(", ")
    );
    Some((404, error(&text, "NotFoundError", Some("model"), 404)))
}

async fn refuse(conn: &mut Conn, status: u16, headers: &str, body: Value) -> Result<After, Gone> {
    conn.answer(status, headers, JSON, body.to_string().as_bytes()).await?;
    Ok(After::Keep)
}

fn error(message: &str, kind: &str, param: Option<&str>, code: u16) -> Value {
    json!({"error": {"message": message, "type": kind, "param": param, "code": code}})
}

fn dead() -> Value {
    let text = "EngineCore encountered an issue. See stack trace (above) for the root cause.";
    error(text, "InternalServerError", None, 500)
}

impl Ask<'_> {
    async fn whole(&self, conn: &mut Conn, shared: &Shared) -> Result<After, Gone> {
        let time = self.behaviour.first_token_ms
            + self.behaviour.inter_token_ms * self.tokens.saturating_sub(1);
        if time > 0 {
            conn.wait(Duration::from_millis(time)).await?;
        }
        let aborted = self.fail == Fail::Abort;
        let finish = if aborted { "abort" } else { self.finish_reason() };
        let content = text::answer(self.tokens);
        let mut choice = match (&self.tool, self.chat) {
            (Some(name), _) => {
                json!({"index": 0, "message": {"role": "assistant", "content": null, "refusal": null,
                "annotations": null, "audio": null, "function_call": null,
                "tool_calls": [{"id": self.call_id(), "type": "function",
                                "function": {"name": name, "arguments": ARGUMENTS.concat()}}],
                "reasoning": null}})
            }
            (None, true) => {
                json!({"index": 0, "message": {"role": "assistant", "content": content, "refusal": null,
                "annotations": null, "audio": null, "function_call": null, "reasoning": null}})
            }
            (None, false) => json!({"index": 0, "text": content}),
        };
        choice["logprobs"] = Value::Null;
        choice["finish_reason"] = finish.into();
        for null in ["stop_reason", "token_ids", "routed_experts"] {
            choice[null] = Value::Null;
        }
        let prompt = text::prompt_tokens(self.prompt);
        let generated = self.generated();
        let body = json!({
            "id": self.id,
            "object": if self.chat { "chat.completion" } else { "text_completion" },
            "created": self.created, "model": self.model, "choices": [choice], "service_tier": null,
            "system_fingerprint": FINGERPRINT,
            "usage": {"prompt_tokens": prompt, "total_tokens": prompt + generated,
                      "completion_tokens": generated, "prompt_tokens_details": null,
                      "completion_tokens_details": null},
            "kv_transfer_params": null, "metrics": null,
        })
        .to_string();
        if matches!(self.fail, Fail::AfterHeaders | Fail::MidStream) {
            let head = format!(
                "HTTP/1.1 200 OK\r\ncontent-type: {JSON}\r\ncontent-length: {}\r\n\r\n",
                body.len()
            );
            conn.write(head.as_bytes()).await?;
            if self.fail == Fail::MidStream {
                conn.write(&body.as_bytes()[..body.len() / 2]).await?;
            }
            return Ok(After::Close);
        }
        conn.answer(200, "", JSON, body.as_bytes()).await?;
        control::count(shared, self.prompt, generated);
        Ok(After::Keep)
    }

    async fn stream(&self, conn: &mut Conn, shared: &Shared) -> Result<After, Gone> {
        conn.write(
            b"HTTP/1.1 200 OK\r\nserver: uvicorn\r\ncontent-type: text/event-stream; charset=utf-8\r\n\
              transfer-encoding: chunked\r\n\r\n",
        )
        .await?;
        if self.behaviour.first_token_ms > 0 {
            conn.wait(Duration::from_millis(self.behaviour.first_token_ms)).await?;
        }
        match self.fail {
            Fail::AfterHeaders => return Ok(After::Close),
            Fail::ErrorEvent => return self.end_with_error(conn).await,
            _ => {}
        }
        let deltas = self.deltas();
        let half = deltas.len() / 2;
        if self.chat {
            conn.chunk(&self.first_event()).await?;
        }
        for (i, delta) in deltas.iter().enumerate() {
            if i > 0 && self.behaviour.inter_token_ms > 0 {
                conn.wait(Duration::from_millis(self.behaviour.inter_token_ms)).await?;
            }
            let last = i + 1 == deltas.len();
            match self.fail {
                Fail::MidStream if i == half => return Ok(After::Reset),
                Fail::ErrorEventMidStream if i == half => return self.end_with_error(conn).await,
                Fail::Stall if i == half => {
                    conn.wait(EVER).await?;
                    return Ok(After::Close);
                }
                Fail::Abort if i == half => {
                    conn.chunk(&self.event(delta, Some("abort"), i as u64 + 1)).await?;
                    return self.end(conn, shared, i as u64 + 1).await;
                }
                _ => {}
            }
            let finish = last.then(|| self.finish_reason());
            conn.chunk(&self.event(delta, finish, i as u64 + 1)).await?;
        }
        self.end(conn, shared, deltas.len() as u64).await
    }

    async fn end(&self, conn: &mut Conn, shared: &Shared, generated: u64) -> Result<After, Gone> {
        let mut rest = String::new();
        if self.include_usage {
            let event = self.document("", &self.usage(generated, false), true);
            rest.push_str(&format!("{:x}\r\n{event}\r\n", event.len()));
        }
        conn.write(format!("{rest}{:x}\r\n{DONE}\r\n0\r\n\r\n", DONE.len()).as_bytes()).await?;
        control::count(shared, self.prompt, generated);
        Ok(if self.behaviour.close_after_stream { After::Close } else { After::Keep })
    }

    async fn end_with_error(&self, conn: &mut Conn) -> Result<After, Gone> {
        conn.chunk(&format!("data: {}\n\n", dead())).await?;
        conn.chunk(DONE).await?;
        conn.write(b"0\r\n\r\n").await?;
        Ok(After::Keep)
    }

    /// One event: everything but the choices is the same in all of them.
    fn document(&self, choices: &str, tail: &str, fingerprint: bool) -> String {
        let object = if self.chat { "chat.completion.chunk" } else { "text_completion" };
        let model = Value::from(self.model.as_str());
        let fingerprint = if fingerprint {
            format!(r#","system_fingerprint":"{FINGERPRINT}""#)
        } else {
            String::new()
        };
        format!(
            "data: {{\"id\":\"{}\",\"object\":\"{object}\",\"created\":{},\"model\":{model},\"choices\":[{choices}]{tail}{fingerprint}}}\n\n",
            self.id, self.created
        )
    }

    fn first_event(&self) -> String {
        let choice = r#"{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}"#;
        let mut tail = self.running_usage(0);
        tail.push_str(r#","prompt_token_ids":null,"prompt_text":null"#);
        self.document(choice, &tail, false)
    }

    fn event(&self, delta: &str, finish: Option<&str>, generated: u64) -> String {
        let (reason, stop) = match finish {
            Some(reason) => (format!("\"{reason}\""), r#","stop_reason":null"#),
            None => ("null".to_owned(), if self.chat { "" } else { r#","stop_reason":null"# }),
        };
        let choice = if self.chat {
            format!(
                r#"{{"index":0,"delta":{delta},"logprobs":null,"finish_reason":{reason}{stop},"token_ids":null}}"#
            )
        } else {
            format!(
                r#"{{"index":0,"text":{delta},"logprobs":null,"finish_reason":{reason}{stop},"prompt_token_ids":null,"token_ids":null}}"#
            )
        };
        // vLLM moves the fingerprint to the usage chunk when there is one.
        self.document(
            &choice,
            &self.running_usage(generated),
            finish.is_some() && !self.include_usage,
        )
    }

    fn running_usage(&self, generated: u64) -> String {
        if self.continuous { self.usage(generated, true) } else { String::new() }
    }

    fn usage(&self, generated: u64, running: bool) -> String {
        let prompt = text::prompt_tokens(self.prompt);
        let details = if running { r#","completion_tokens_details":null"# } else { "" };
        format!(
            r#","usage":{{"prompt_tokens":{prompt},"total_tokens":{},"completion_tokens":{generated}{details}}}"#,
            prompt + generated
        )
    }

    /// The deltas of the answer, as JSON.
    fn deltas(&self) -> Vec<String> {
        if let Some(name) = &self.tool {
            let head = json!({"content": null, "tool_calls": [{"id": self.call_id(), "type": "function",
                "index": 0, "function": {"name": name}}]});
            let arguments = ARGUMENTS.iter().map(|part| {
                json!({"content": null, "tool_calls": [{"index": 0, "function": {"arguments": part}}]}).to_string()
            });
            return std::iter::once(head.to_string()).chain(arguments).collect();
        }
        let word = |i| Value::from(text::token(i)).to_string();
        let delta = |i| {
            if self.chat { format!(r#"{{"content":{}}}"#, word(i)) } else { word(i) }
        };
        (0..self.tokens).map(delta).collect()
    }

    fn generated(&self) -> u64 {
        if self.tool.is_some() { ARGUMENTS.len() as u64 + 1 } else { self.tokens }
    }

    fn finish_reason(&self) -> &'static str {
        if self.tool.is_some() { "tool_calls" } else { self.finish }
    }

    fn call_id(&self) -> String {
        format!("chatcmpl-tool-{:016x}", self.created)
    }
}

/// What every tool is called with, token by token.
const ARGUMENTS: [&str; 5] = ["{", "\"city\": ", "\"Paris\"", "", "}"];
