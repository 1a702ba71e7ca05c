//! How a simulated server behaves, and the ways in which it can be made to fail.

use serde::{Deserialize, Serialize};

/// How a simulated server behaves. Everything can be changed while it runs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Behaviour {
    /// Models that it serves; the first answers requests that name none.
    pub models: Vec<String>,
    /// Milliseconds until the first token.
    pub first_token_ms: u64,
    /// Milliseconds more for every 1024 bytes of the prompt that are not in the prefix cache.
    pub prefill_ms_per_kb: u64,
    /// Milliseconds between tokens.
    pub inter_token_ms: u64,
    /// Tokens in an answer; `max_tokens` of a request may lower it.
    pub tokens: u64,
    /// In which way it fails.
    pub fail: Fail,
    /// Every how manyth inference request fails; 1 means each.
    pub fail_every: u64,
    /// How many requests fail, counted from the last change of behaviour; 0 for no end.
    pub fail_first: u64,
    /// The only model whose requests fail; empty for all.
    pub fail_model: String,
    /// What the body of a request must contain for it to fail; empty for all.
    pub fail_word: String,
    /// After how many tokens a stream fails that fails midway; half of them if not given.
    pub fail_after: Option<u64>,
    /// Milliseconds that [`Fail::Slow`] adds to the time until the first token.
    pub slow_ms: u64,
    /// Status of [`Fail::Error`].
    pub error_status: u16,
    /// Bytes to which the bodies of errors are filled up.
    pub error_bytes: usize,
    /// Milliseconds by which the body of an error comes later than its head, and the second half of
    /// it later than the first; 0: all in one piece.
    pub error_pause_ms: u64,
    /// Interim responses (102 and 103 in turn) that come in one piece with the head of an answer.
    pub interim: usize,
    /// The seconds of `Retry-ConnectionAction` in a 429.
    pub retry_after: u64,
    /// How many requests are worked on at a time, the others wait; 0 for all. A change holds for
    /// the requests that come after it.
    pub max_running: usize,
    /// Blocks of 64 bytes (16 tokens) that the prefix cache holds; 0 for no cache.
    pub prefix_cache: usize,
    /// Tells `cached_tokens` in the usage, as vLLM does with `--enable-prompt-tokens-details`.
    pub prompt_tokens_details: bool,
    /// Tells that so many tokens of each choice were reasoning, as vLLM does with a reasoning parser
    /// and SGLang does in a place of its own; 0: tells nothing.
    pub reasoning_tokens: u64,
    /// Whose names `/metrics` has.
    pub engine: Engine,
    /// What it says of its load instead of the truth.
    pub reports: Option<Load>,
    /// Status of `/health`.
    pub health: u16,
    /// Status of `/metrics`.
    pub metrics: u16,
    /// Milliseconds after which an idle connection is closed (uvicorn: 5000).
    pub keep_alive_ms: u64,
    /// Closes the connection after every streamed answer without having said so, as llama.cpp
    /// does.
    pub close_after_stream: bool,
    /// How it ends a stream of which `[DONE]` has been sent.
    pub stream_end: StreamEnd,
    /// How many comments it sends before the first token of a stream; blank lines before a document.
    pub heartbeats: u64,
    /// How many comments it sends after the event that ends the answer, before its usage.
    pub late_heartbeats: u64,
    /// Milliseconds between them.
    pub heartbeat_ms: u64,
    /// The content type of its answers instead of the right one; empty for none.
    pub content_type: Option<String>,
    /// How it writes the counts of its usage.
    pub usage_numbers: Numbers,
    /// The key that it wants as `Authorization: Bearer`; empty for none.
    pub api_key: String,
}

impl Default for Behaviour {
    fn default() -> Self {
        Self {
            models: vec!["sim-model".to_owned()],
            first_token_ms: 0,
            prefill_ms_per_kb: 0,
            inter_token_ms: 0,
            tokens: 16,
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
    /// The content type of an answer whose right one is this.
    pub fn kind<'a>(&'a self, right: &'a str) -> &'a str {
        self.content_type.as_deref().unwrap_or(right)
    }
}

/// How a stream ends of which `[DONE]` has been sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StreamEnd {
    /// As HTTP says that it must.
    #[default]
    Whole,
    /// The connection is closed without the last chunk.
    Close,
    /// It is reset.
    Reset,
    /// It stays open, and nothing more is sent.
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

/// The load of an engine, as it tells it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Load {
    /// Requests that it works on.
    pub running: u64,
    /// Requests that wait in its queue.
    pub waiting: u64,
    /// The share of its KV cache that is in use, from 0 to 1.
    pub kv_cache_usage: f64,
}

/// Engines whose metrics are known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Engine {
    #[default]
    Vllm,
    Sglang,
    Tgi,
    Llamacpp,
}

/// Ways to fail. What is said of events is said of streams; a plain answer fails at the place that
/// corresponds. A server that cannot be reached is made with [`super::Sim::refuse`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
pub enum Fail {
    /// Not at all.
    #[default]
    None,
    /// Resets the connection instead of answering.
    BeforeHeaders,
    /// Breaks off after `200` and the headers: a stream is closed, a plain answer is reset.
    AfterHeaders,
    /// Resets the connection after the event that has only a role; a plain answer after its first
    /// bytes.
    BeforeContent,
    /// Breaks off after half of the tokens (or `fail_after`): a stream is reset, a plain answer is
    /// closed.
    MidStream,
    /// Answers 503, as vLLM does when its queue is full.
    Busy,
    /// Answers 503, as vLLM does when too many tokens wait for their prefill.
    Backlog,
    /// Answers 503, as vLLM does while it is paused.
    Paused,
    /// Answers 503, as vLLM does while it changes its size: the error is a text, not an object.
    Scaling,
    /// Answers 429 with `Retry-ConnectionAction`.
    TooMany,
    /// Answers 404: it has no such model.
    NoModel,
    /// Answers 500, or `error_status`.
    Error,
    /// Answers 307, which leads to an address inside of the fleet.
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
    /// The same, before there was any content.
    AbortBeforeContent,
    /// Takes the request and never answers.
    Wedge,
    /// Sends `200` and the headers, and nothing more.
    WedgeAfterHeaders,
    /// Sends the event that has only a role, and nothing more; of a plain answer, the first bytes.
    WedgeAfterRole,
    /// Stops after half of the tokens (or `fail_after`) and keeps the connection open.
    Stall,
    /// Answers as it should, `slow_ms` late.
    Slow,
}
