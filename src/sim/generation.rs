//! What an inference request asks the model to generate, and what streamed and plain answers share.

use serde_json::{Value, json};

use super::{
    asked::{Asked, ToolChoice},
    behaviour::{Engine, Fail, Quirk},
    call::{EngineSlot, InferenceCall},
    conn::{ClientGone, Conn},
    language::{Endpoint, Language},
    reply::{Finish, Reply},
    text,
};

/// `system_fingerprint` of the simulated vLLM.
pub const FINGERPRINT: &str = "vllm-0.32.0-simulated";

/// Seconds since 1970.
pub fn unix_seconds() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

/// What one request asks for.
pub struct Generation<'a> {
    pub call: &'a InferenceCall<'a>,
    /// The request.
    pub body: &'a Value,
    pub chat: bool,
    pub id: String,
    pub created: u64,
    pub asked: Asked,
    pub reply: Reply,
    /// The turns of the response that the request continues.
    pub previous: Vec<Value>,
    /// Separates the blocks of this prompt in the prefix cache from those of other tenants.
    pub salt: Option<String>,
    /// How many answers (`n`).
    pub choices: u64,
    pub include_usage: bool,
    pub continuous: bool,
}

impl<'a> Generation<'a> {
    pub fn new(
        call: &'a InferenceCall<'a>,
        body: &'a Value,
        asked: Asked,
        previous: Vec<Value>,
    ) -> Self {
        let options = &body["stream_options"];
        // `stream_options` alone ask for nothing (vLLM 0.32).
        let include_usage = options["include_usage"] == true;
        let suffix = call
            .received
            .header("x-request-id")
            .map_or_else(|| format!("{:016x}", rand::random::<u64>()), str::to_owned);
        let kind = match call.endpoint {
            Endpoint::Chat | Endpoint::Messages | Endpoint::CountTokens | Endpoint::Tokenize => {
                "chatcmpl"
            }
            Endpoint::Responses | Endpoint::InputTokens => "resp",
            Endpoint::Completions | Endpoint::Embeddings => "cmpl",
        };
        let separator = if kind == "resp" { '_' } else { '-' };
        let several = call.endpoint.language() == Language::Chat;
        let reply = match call.fail {
            Fail::AbortBeforeContent => Reply::nothing(),
            _ => Reply::to(&asked, &call.setting.behaviour),
        };
        Self {
            call,
            body,
            chat: call.endpoint == Endpoint::Chat,
            id: format!("{kind}{separator}{suffix}"),
            created: unix_seconds(),
            asked,
            reply,
            previous,
            salt: body["cache_salt"].as_str().map(str::to_owned),
            choices: if several { body["n"].as_u64().unwrap_or(1).clamp(1, 128) } else { 1 },
            include_usage,
            continuous: include_usage && options["continuous_usage_stats"] == true,
        }
    }

    pub fn model(&self) -> &str {
        &self.call.model
    }

    pub fn prompt_tokens(&self) -> u64 {
        text::prompt_tokens(self.asked.prompt.len())
    }

    /// Milliseconds from the first token to the last.
    pub fn decode_ms(&self) -> u64 {
        self.call.setting.behaviour.inter_token_ms * self.reply.len().saturating_sub(1)
    }

    /// Waits for a slot of the engine and for the prefill of this prompt.
    pub async fn acquire_slot(&self, conn: &mut Conn) -> Result<EngineSlot<'a>, ClientGone> {
        self.call.acquire_slot(conn, &self.asked.prompt, self.salt.as_deref(), self.choices).await
    }

    /// Why the answer ends.
    pub fn finish(&self) -> Finish {
        match self.call.fail {
            Fail::Abort | Fail::AbortBeforeContent => Finish::Abort,
            _ => self.reply.finish,
        }
    }

    /// `finish_reason` in Chat and Completions.
    pub fn finish_reason(&self, finish: Finish) -> &'static str {
        match finish {
            Finish::Abort => "abort",
            Finish::Length => "length",
            Finish::Stop => "stop",
            // vLLM says so where the request names the tool.
            Finish::Calls if matches!(self.asked.choice, ToolChoice::Named(_)) => "stop",
            Finish::Calls if self.call.setting.behaviour.has(Quirk::StopForCalls) => "stop",
            Finish::Calls => "tool_calls",
        }
    }

    /// The id of a tool call or of an item: the same in every event of one answer.
    pub fn part_id(&self, kind: &str, number: usize) -> String {
        let hash = xxhash_rust::xxh3::xxh3_64_with_seed(self.id.as_bytes(), number as u64);
        format!("{kind}{hash:016x}")
    }

    /// A count, as the behaviour has it written.
    pub fn count(&self, count: u64) -> Value {
        let written = self.call.setting.behaviour.usage_numbers.write(count);
        serde_json::from_str(&written).unwrap_or_default()
    }

    /// `prompt_tokens_details` of Chat: vLLM sends it only if part of the prompt was cached.
    pub fn prompt_details(&self, cached: u64) -> Value {
        if self.call.setting.behaviour.prompt_tokens_details && cached > 0 {
            json!({"cached_tokens": cached})
        } else {
            Value::Null
        }
    }

    /// Tokens of reasoning in one choice.
    pub fn reasoning_tokens(&self) -> u64 {
        match self.call.setting.behaviour.reasoning_tokens {
            0 => self.reply.reasoning_len(),
            tokens => tokens.min(self.reply.len()),
        }
    }

    /// The member of `usage` of Chat that counts reasoning tokens, and its value.
    pub fn reasoning(&self) -> Option<(&'static str, Value)> {
        let tokens = self.reasoning_tokens() * self.choices;
        match self.call.setting.behaviour.engine {
            _ if tokens == 0 => None,
            Engine::Sglang => Some(("reasoning_tokens", tokens.into())),
            _ => Some(("completion_tokens_details", json!({"reasoning_tokens": tokens}))),
        }
    }
}
