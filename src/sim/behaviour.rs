//! The behaviour of a simulated server, and the faults that it can simulate.

use serde::{Deserialize, Serialize};

use super::language::Language;

/// The behaviour of a simulated server, which can be changed while it runs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Behaviour {
    /// Models that it serves; requests without a model get the first.
    pub models: Vec<String>,
    /// Languages that it speaks; the paths of others are unknown (404).
    pub languages: Vec<Language>,
    /// The most tokens of a prompt; 0: no limit.
    pub context_length: u64,
    /// Milliseconds until the first token.
    pub first_token_ms: u64,
    /// More milliseconds for each 1024 bytes of the prompt that are not in the prefix cache.
    pub prefill_ms_per_kb: u64,
    /// Milliseconds between tokens.
    pub inter_token_ms: u64,
    /// Tokens in an answer; `max_tokens` of a request may lower it.
    pub tokens: u64,
    /// Reasoning before every answer, not only where a request asks for it.
    pub reasoning: bool,
    /// When it calls tools.
    pub tool_use: ToolUse,
    /// Faults of other servers in its Chat answers.
    pub quirks: Vec<Quirk>,
    /// How it fails.
    pub fail: Fail,
    /// Every `n`th inference request fails; 1: every request.
    pub fail_every: u64,
    /// How many requests fail after a change of behaviour; 0: no limit.
    pub fail_first: u64,
    /// Only requests for this model fail; empty: all models.
    pub fail_model: String,
    /// Only requests whose body contains this text fail; empty: all requests.
    pub fail_word: String,
    /// After how many tokens a fault in mid-stream happens; default: half of them.
    pub fail_after: Option<u64>,
    /// Milliseconds that [`Fail::Slow`] adds to the time until the first token.
    pub slow_ms: u64,
    /// Status of [`Fail::Error`].
    pub error_status: u16,
    /// Error bodies are padded to this many bytes.
    pub error_bytes: usize,
    /// Milliseconds between the head of an error response, the first half of its body, and the second half;
    /// 0: everything at once.
    pub error_pause_ms: u64,
    /// Interim responses (102 and 103 alternately) that are written together with the response head.
    pub interim: usize,
    /// The seconds of `Retry-After` in a 429.
    pub retry_after: u64,
    /// How many requests run at a time, the others wait; 0: no limit. A change applies to later requests.
    pub max_running: usize,
    /// Blocks of 64 bytes (16 tokens) in the prefix cache; 0: no cache.
    pub prefix_cache: usize,
    /// Reports `cached_tokens` in the usage, as vLLM does with `--enable-prompt-tokens-details`.
    pub prompt_tokens_details: bool,
    /// Reasoning tokens to report for each choice, as vLLM does with a reasoning parser and SGLang does in a
    /// field of its own; 0: those that there are.
    pub reasoning_tokens: u64,
    /// The engine whose metric names `/metrics` uses.
    pub engine: Engine,
    /// The load to report instead of the true one.
    pub reports: Option<Load>,
    /// Status of `/health`.
    pub health: u16,
    /// Status of `/metrics`.
    pub metrics: u16,
    /// Milliseconds after which an idle connection is closed (uvicorn: 5000).
    pub keep_alive_ms: u64,
    /// Closes the connection after every stream without announcing it, as llama.cpp does.
    pub close_after_stream: bool,
    /// How a stream ends after `[DONE]`.
    pub stream_end: StreamEnd,
    /// Comments before the first token of a stream; blank lines before a document.
    pub heartbeats: u64,
    /// Comments between the last token and the usage.
    pub late_heartbeats: u64,
    /// Milliseconds between them.
    pub heartbeat_ms: u64,
    /// The content type of responses instead of the right one; empty: no header.
    pub content_type: Option<String>,
    /// How the counts of the usage are written.
    pub usage_numbers: Numbers,
    /// The key that `Authorization: Bearer` must have; empty: none.
    pub api_key: String,
}

impl Default for Behaviour {
    fn default() -> Self {
        Self {
            models: vec!["sim-model".to_owned()],
            languages: Language::ALL.to_vec(),
            context_length: 0,
            first_token_ms: 0,
            prefill_ms_per_kb: 0,
            inter_token_ms: 0,
            tokens: 16,
            reasoning: false,
            tool_use: ToolUse::Always,
            quirks: Vec::new(),
            fail: Fail::None,
            fail_every: 1,
            fail_first: 0,
            fail_model: String::new(),
            fail_word: String::new(),
            fail_after: None,
            slow_ms: 1000,
            error_status: 500,
            error_bytes: 0,
            error_pause_ms: 0,
            interim: 0,
            retry_after: 7,
            max_running: 0,
            prefix_cache: 0,
            prompt_tokens_details: false,
            reasoning_tokens: 0,
            engine: Engine::Vllm,
            reports: None,
            health: 200,
            metrics: 200,
            keep_alive_ms: 5000,
            close_after_stream: false,
            stream_end: StreamEnd::Whole,
            heartbeats: 0,
            late_heartbeats: 0,
            heartbeat_ms: 0,
            content_type: None,
            usage_numbers: Numbers::Integers,
            api_key: String::new(),
        }
    }
}

impl Behaviour {
    /// The content type to send in place of the right one.
    pub fn kind<'a>(&'a self, right: &'a str) -> &'a str {
        self.content_type.as_deref().unwrap_or(right)
    }

    pub fn has(&self, quirk: Quirk) -> bool {
        self.quirks.contains(&quirk)
    }
}

/// When the model calls tools, if a request leaves that to it (`tool_choice` is `auto`). In both cases the
/// words `call NAME` in the last text of the user make it call that tool, several of them several tools, and
/// it answers a tool's result with text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
pub enum ToolUse {
    /// It calls the first tool if the user names none.
    #[default]
    Always,
    /// Only tools that the user names.
    Asked,
}

/// Faults of other servers in Chat answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
pub enum Quirk {
    /// Deltas of tool calls have no `index`.
    NoIndex,
    /// Deltas of all tool calls have the `index` 0.
    ZeroIndex,
    /// All tool calls are in one chunk, together with `finish_reason`.
    WholeCall,
    /// The name of a tool comes with the last of its arguments.
    LateName,
    /// `finish_reason` is `stop` though tools are called.
    StopForCalls,
    /// A stream ends without `[DONE]`.
    NoDone,
    /// The usage is in the chunk with `finish_reason`, whether or not it was asked for.
    UsageInFinish,
}

/// How a stream ends after `[DONE]`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StreamEnd {
    /// With the last chunk, as HTTP requires.
    #[default]
    Whole,
    /// The connection is closed without the last chunk.
    Close,
    /// The connection is reset.
    Reset,
    /// The connection stays open, and nothing more is sent.
    Open,
}

/// How counts are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Numbers {
    /// `12`.
    #[default]
    Integers,
    /// `12.0`.
    Floats,
    /// `12e0`.
    Exponents,
    /// `"12"`.
    Strings,
    /// `-12`.
    Negative,
    /// `12.5`.
    Fractions,
}

impl Numbers {
    /// A count, as JSON.
    pub fn write(self, count: u64) -> String {
        match self {
            Self::Integers => count.to_string(),
            Self::Floats => format!("{count}.0"),
            Self::Exponents => format!("{count}e0"),
            Self::Strings => format!("\"{count}\""),
            Self::Negative => format!("-{count}"),
            Self::Fractions => format!("{count}.5"),
        }
    }
}

/// The load of an engine, as it reports it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Load {
    /// Running requests.
    pub running: u64,
    /// Requests in the queue.
    pub waiting: u64,
    /// The used share of the KV cache, from 0 to 1.
    pub kv_cache_usage: f64,
}

/// Engines whose metrics the simulator writes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Engine {
    #[default]
    Vllm,
    Sglang,
    Tgi,
    Llamacpp,
}

/// Faults. Events are those of a stream; a plain answer fails at the corresponding point. `Sim::refuse`
/// simulates an unreachable server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
pub enum Fail {
    /// No fault.
    #[default]
    None,
    /// Resets the connection instead of answering.
    BeforeHeaders,
    /// Stops after `200` and the headers: a stream is closed, a plain answer is reset.
    AfterHeaders,
    /// Resets the connection after the event that has only a role; a plain answer after its first
    /// bytes.
    BeforeContent,
    /// Stops after half of the tokens (or `fail_after`): a stream is reset, a plain answer is
    /// closed.
    MidStream,
    /// Answers 503, as vLLM does when its queue is full.
    Busy,
    /// Answers 503, as vLLM does when too many tokens wait for their prefill.
    Backlog,
    /// Answers 503, as vLLM does while it is paused.
    Paused,
    /// Answers 503, as vLLM does while it scales: the error is a string, not an object.
    Scaling,
    /// Answers 429 with `Retry-After`.
    TooMany,
    /// Answers 404: unknown model.
    NoModel,
    /// Answers 500, or `error_status`.
    Error,
    /// Answers 307, which redirects to an internal address.
    Redirect,
    /// The first event of a stream is an error; a plain answer is 500.
    ErrorEvent,
    /// An error event after the one that has only a role, then `[DONE]`; a plain answer is 500.
    ErrorEventAfterRole,
    /// An error event after half of the tokens (or `fail_after`), then `[DONE]`: what vLLM sends
    /// when its engine dies. A plain answer is 500.
    ErrorEventMidStream,
    /// Ends after half of the tokens (or `fail_after`) with `finish_reason` `abort`: what vLLM
    /// sends on SIGTERM.
    Abort,
    /// The same, before any content.
    AbortBeforeContent,
    /// Accepts the request and never answers.
    Wedge,
    /// Sends `200` and the headers, and nothing more.
    WedgeAfterHeaders,
    /// Sends the event that has only a role, and nothing more; of a plain answer, the first bytes.
    WedgeAfterRole,
    /// Stops after half of the tokens (or `fail_after`) and keeps the connection open.
    Stall,
    /// Answers correctly, `slow_ms` late.
    Slow,
}
