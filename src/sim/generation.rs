//! What an inference request asks the model to generate, and what streamed and plain answers share.

use serde_json::{Value, json};

use super::{
    behaviour::Fail,
    call::{EngineSlot, InferenceCall},
    conn::{ClientGone, Conn},
    text,
};

/// `system_fingerprint` of the simulated vLLM.
pub const FINGERPRINT: &str = "vllm-0.32.0-simulated";

/// Seconds since 1970.
pub fn unix_seconds() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

/// The arguments of every tool call, token by token.
const ARGUMENTS: [&str; 5] = ["{", "\"city\": ", "\"Paris\"", "", "}"];

/// What one request asks for.
pub struct Generation<'a> {
    pub call: &'a InferenceCall<'a>,
    pub chat: bool,
    pub id: String,
    pub created: u64,
    /// The prompt, as JSON.
    pub prompt: String,
    /// Separates the blocks of this prompt in the prefix cache from those of other tenants.
    pub salt: Option<String>,
    tokens: u64,
    /// How many answers (`n`).
    pub choices: u64,
    finish: &'static str,
    /// The name of the tool to call.
    pub tool: Option<String>,
    pub include_usage: bool,
    pub continuous: bool,
}

impl<'a> Generation<'a> {
    pub fn new(call: &'a InferenceCall<'a>, body: &Value) -> Self {
        let behaviour = &call.setting.behaviour;
        let limit = body["max_completion_tokens"].as_u64().or(body["max_tokens"].as_u64());
        let tokens = limit.unwrap_or(u64::MAX).min(behaviour.tokens);
        let prompt =
            ["messages", "prompt", "input"].iter().map(|k| &body[*k]).find(|v| !v.is_null());
        let options = &body["stream_options"];
        // `stream_options` alone ask for nothing (vLLM 0.32).
        let include_usage = options["include_usage"] == true;
        let suffix = call
            .received
            .header("x-request-id")
            .map_or_else(|| format!("{:016x}", rand::random::<u64>()), str::to_owned);
        let tool = (body["tool_choice"] != "none")
            .then(|| body["tools"][0]["function"]["name"].as_str())
            .flatten();
        let chat = call.path == "/v1/chat/completions";
        Self {
            call,
            chat,
            id: format!("{}-{suffix}", if chat { "chatcmpl" } else { "cmpl" }),
            created: unix_seconds(),
            prompt: prompt.map_or_else(String::new, Value::to_string),
            salt: body["cache_salt"].as_str().map(str::to_owned),
            tokens: if call.fail == Fail::AbortBeforeContent { 0 } else { tokens },
            choices: body["n"].as_u64().unwrap_or(1).clamp(1, 128),
            finish: if limit.is_some_and(|l| l <= behaviour.tokens) { "length" } else { "stop" },
            tool: tool.map(str::to_owned),
            include_usage,
            continuous: include_usage && options["continuous_usage_stats"] == true,
        }
    }

    pub fn model(&self) -> &str {
        &self.call.model
    }

    /// The text of an answer.
    pub fn content(&self) -> String {
        text::answer(self.tokens)
    }

    /// Milliseconds from the first token to the last.
    pub fn decode_ms(&self) -> u64 {
        self.call.setting.behaviour.inter_token_ms * self.generated().saturating_sub(1)
    }

    /// Waits for a slot of the engine and for the prefill of this prompt.
    pub async fn acquire_slot(&self, conn: &mut Conn) -> Result<EngineSlot<'a>, ClientGone> {
        self.call.acquire_slot(conn, &self.prompt, self.salt.as_deref(), self.choices).await
    }

    /// Tokens of one choice.
    pub fn generated(&self) -> u64 {
        if self.tool.is_some() { ARGUMENTS.len() as u64 + 1 } else { self.tokens }
    }

    /// `finish_reason` of a complete answer.
    pub fn finish_reason(&self) -> &'static str {
        if self.tool.is_some() { "tool_calls" } else { self.finish }
    }

    /// The complete tool call.
    pub fn tool_call(&self, name: &str) -> Value {
        json!([{"id": self.call_id(), "type": "function",
                "function": {"name": name, "arguments": ARGUMENTS.concat()}}])
    }

    /// The deltas of the answer, as JSON.
    pub fn deltas(&self) -> Vec<String> {
        if let Some(name) = &self.tool {
            let head = json!({"content": null, "tool_calls": [{"id": self.call_id(), "type": "function",
                "index": 0, "function": {"name": name}}]});
            let arguments = ARGUMENTS.iter().map(|part| {
                json!({"content": null, "tool_calls": [{"index": 0, "function": {"arguments": part}}]}).to_string()
            });
            return std::iter::once(head.to_string()).chain(arguments).collect();
        }
        (0..self.tokens).map(|i| self.delta(text::token(i))).collect()
    }

    /// The delta of some content, as JSON.
    pub fn delta(&self, content: &str) -> String {
        let word = Value::from(content);
        if self.chat { format!(r#"{{"content":{word}}}"#) } else { word.to_string() }
    }

    /// The id of the tool call: the same in every event of one answer.
    fn call_id(&self) -> String {
        format!("chatcmpl-tool-{:016x}", xxhash_rust::xxh3::xxh3_64(self.id.as_bytes()))
    }
}
