//! Answers of the simulated model as one JSON document, member by member as vLLM writes them.

use std::time::Duration;

use serde_json::{Value, json};

use super::{
    behaviour::{Engine, Fail},
    conn::{ClientGone, Conn, ConnectionAction, JSON},
    generation::{FINGERPRINT, Generation},
    metrics, refusal, text,
};

impl Generation<'_> {
    /// Answers with one document.
    pub async fn answer_plain(&self, conn: &mut Conn) -> Result<ConnectionAction, ClientGone> {
        let call = self.call;
        let slot = self.acquire_slot(conn).await?;
        conn.wait(Duration::from_millis(self.decode_ms())).await?;
        let prompt = text::prompt_tokens(self.prompt.len());
        let generated = self.generated() * self.choices;
        call.generated(generated);
        let mut body = json!({
            "id": self.id,
            "object": if self.chat { "chat.completion" } else { "text_completion" },
            "created": self.created, "model": self.model(),
            "choices": (0..self.choices).map(|index| self.choice(index)).collect::<Vec<_>>(),
            "service_tier": null, "system_fingerprint": FINGERPRINT,
            "usage": {"prompt_tokens": prompt, "total_tokens": prompt + generated,
                      "completion_tokens": generated,
                      "prompt_tokens_details": self.prompt_details(slot.cached),
                      "completion_tokens_details": null},
            "kv_transfer_params": null, "metrics": null,
        });
        if let Some((name, value)) = self.reasoning() {
            body["usage"][name] = value;
        }
        for name in ["prompt_tokens", "total_tokens", "completion_tokens"] {
            let count = body["usage"][name].as_u64().unwrap_or(0);
            let written = call.setting.behaviour.usage_numbers.write(count);
            body["usage"][name] = serde_json::from_str(&written).unwrap_or_default();
        }
        let load = metrics::header(call.received, &call.shared.stats, &call.setting.behaviour);
        self.deliver(conn, &load, body).await
    }

    fn choice(&self, index: u64) -> Value {
        let mut choice = match (&self.tool, self.chat) {
            (Some(name), _) => {
                json!({"index": index, "message": {"role": "assistant", "content": null, "refusal": null,
                "annotations": null, "audio": null, "function_call": null,
                "tool_calls": self.tool_call(name), "reasoning": null}})
            }
            (None, true) => {
                json!({"index": index, "message": {"role": "assistant", "content": self.content(),
                "refusal": null, "annotations": null, "audio": null, "function_call": null,
                "reasoning": null}})
            }
            (None, false) => json!({"index": index, "text": self.content()}),
        };
        choice["logprobs"] = Value::Null;
        let aborted = matches!(self.call.fail, Fail::Abort | Fail::AbortBeforeContent);
        choice["finish_reason"] = if aborted { "abort" } else { self.finish_reason() }.into();
        for null in ["stop_reason", "token_ids", "routed_experts"] {
            choice[null] = Value::Null;
        }
        choice
    }

    /// `prompt_tokens_details`: vLLM sends it only if part of the prompt was cached.
    pub fn prompt_details(&self, cached: u64) -> Value {
        if self.call.setting.behaviour.prompt_tokens_details && cached > 0 {
            json!({"cached_tokens": cached})
        } else {
            Value::Null
        }
    }

    /// The member of `usage` that counts reasoning tokens, and its value.
    pub fn reasoning(&self) -> Option<(&'static str, Value)> {
        let behaviour = &self.call.setting.behaviour;
        let tokens = behaviour.reasoning_tokens.min(self.generated()) * self.choices;
        match behaviour.engine {
            _ if tokens == 0 => None,
            Engine::Sglang => Some(("reasoning_tokens", tokens.into())),
            _ => Some(("completion_tokens_details", json!({"reasoning_tokens": tokens}))),
        }
    }

    /// Sends the document, or as much of it as a failing server sends.
    pub async fn deliver(
        &self,
        conn: &mut Conn,
        headers: &str,
        body: Value,
    ) -> Result<ConnectionAction, ClientGone> {
        let body = body.to_string();
        let cut = match self.call.fail {
            Fail::ErrorEvent | Fail::ErrorEventAfterRole | Fail::ErrorEventMidStream => {
                return refusal::send(conn, (500, String::new(), refusal::dead())).await;
            }
            Fail::AfterHeaders | Fail::WedgeAfterHeaders => 0,
            // Cut before the content.
            Fail::BeforeContent | Fail::WedgeAfterRole => body.len().min(16),
            Fail::MidStream | Fail::Stall => body.len() / 2,
            _ => {
                let behaviour = &self.call.setting.behaviour;
                let kind = behaviour.kind(JSON);
                if behaviour.heartbeats > 0 {
                    conn.chunked_head(kind).await?;
                    let pause = Duration::from_millis(behaviour.heartbeat_ms);
                    conn.heartbeats(behaviour.heartbeats, "\n", pause).await?;
                    conn.chunk(&body).await?;
                    conn.write(b"0\r\n\r\n").await?;
                } else {
                    conn.answer(200, headers, kind, body.as_bytes()).await?;
                }
                self.call.count();
                return Ok(ConnectionAction::Keep);
            }
        };
        let head = format!(
            "HTTP/1.1 200 OK\r\ncontent-type: {JSON}\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        conn.write(head.as_bytes()).await?;
        conn.write(&body.as_bytes()[..cut]).await?;
        match self.call.fail {
            Fail::MidStream => Ok(ConnectionAction::Close),
            Fail::AfterHeaders | Fail::BeforeContent => Ok(ConnectionAction::Reset),
            _ => Err(conn.hang().await),
        }
    }
}
