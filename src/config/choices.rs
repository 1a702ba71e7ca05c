//! Values that a key chooses among. They mean the same in the file and in the plan, so that both
//! use one type; what is written in the file is its serde name.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Which backends must be healthy for `/ready` to be 200.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Ready {
    /// At least one for every model.
    #[default]
    EveryModel,
    /// At least one backend, so that a model without a healthy backend does not take the others out
    /// of service.
    AnyBackend,
}

/// The format of the gateway's own errors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ErrorFormat {
    /// The format of the API that the path belongs to, so that its SDKs raise their own errors.
    #[default]
    Openai,
    /// `{"error": "...", "code": 403}`, as version 0.3 had it; `code` is the HTTP status.
    Simple,
}

/// Where a prompt of the operator stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum PromptPosition {
    /// Before the client's own system prompt.
    #[default]
    Before,
    /// After it.
    After,
}

/// What happens when the script of a hook fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum OnScriptError {
    /// The request goes on as if the script had changed nothing.
    Open,
    /// The request is refused, or its answer ends.
    Closed,
}

/// LLM servers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Engine {
    /// vLLM.
    #[default]
    Vllm,
    /// SGLang.
    Sglang,
    /// Text Generation Inference.
    Tgi,
    /// llama.cpp.
    #[serde(alias = "llama.cpp")]
    Llamacpp,
    /// Any other server: nothing is added to its requests.
    Other,
}

/// Hosted APIs whose languages, credentials and peculiarities are known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Vendor {
    Anthropic,
    Cerebras,
    Deepseek,
    Fireworks,
    Groq,
    Mistral,
    Moonshot,
    Openai,
    Openrouter,
    Together,
    Xai,
    Zai,
}

/// What happens to what a backend's language cannot say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum TranslationMode {
    /// Hints are dropped, and named in `x-llmproxy-dropped` and in the log. What would change the
    /// meaning of the answer is refused.
    #[default]
    Lenient,
    /// Whatever cannot be said is refused.
    Strict,
}

/// How a model is told to reason, in Messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ThinkingControl {
    /// By a word, `output_config.effort`.
    Effort,
    /// By a number of tokens, `thinking.budget_tokens`.
    Budget,
    /// It does not reason.
    None,
}

/// How the gateway asks an engine for the token counts of a stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum StreamUsage {
    /// In every chunk (`include_usage` and vLLM's `continuous_usage_stats`), so that an
    /// aborted stream is counted to the token.
    #[default]
    Continuous,
    /// At the end (`include_usage` only): for servers that reject unknown options, like OpenAI's.
    Final,
    /// Never: requests pass unchanged, and a stream is counted only if its client asks for usage.
    Off,
}

/// Log levels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    Error,
    Warn,
    #[default]
    Info,
    Debug,
    Trace,
}

/// How several providers are combined.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// The first provider that knows the key decides.
    #[default]
    FirstMatch,
    /// Every provider must know the key and allow it.
    All,
}

/// How several sources are combined.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DiscoveryMode {
    /// `backends` and the backends of all sources.
    #[default]
    Merge,
    /// The backends of the first source that has any; `backends` if none has.
    First,
}

/// How a backend is treated whose name resolves to several addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Addresses {
    /// Each address is a separate server, with its own share, health and connections.
    Each,
    /// All addresses are one server: one of them is used for as long as the name resolves to it.
    One,
}

/// What happens while Redis does not respond.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnRedisError {
    /// Requests pass without limits.
    Allow,
    /// Requests are rejected with 503.
    Deny,
    /// Each replica counts separately.
    Local,
}

/// Balancing strategies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Strategy {
    /// In turn, in proportion to the weights.
    #[default]
    #[serde(alias = "weighted")]
    RoundRobin,
    /// The backend with the fewest requests in flight.
    LeastConnections,
    /// The backend whose recent first tokens were the fastest; the others are tried now and then.
    LatencyBased,
    /// At random, in proportion to the weights.
    Random,
    /// The less loaded of two random backends.
    P2c,
    /// The requests of one session, key or address to one backend, unless it is overloaded.
    ConsistentHash,
    /// Prompts with a common beginning to one backend, unless it is overloaded.
    PrefixAffinity,
    /// The engine with the least load, according to its own metrics.
    LeastLoad,
}

/// Which requests share the prefix caches of the engines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum CacheSalt {
    /// All requests.
    #[default]
    Shared,
    /// The requests of one key.
    PerKey,
    /// The requests of one user.
    PerUser,
}

/// What happens when the spool is full.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum WhenFull {
    /// New inference requests are rejected with 503 until there is room; requests in flight
    /// continue. No record is lost.
    #[default]
    BlockNewRequests,
    /// The oldest records are dropped, and counted.
    DropOldest,
}

/// The kinds of destinations of records.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ReporterKind {
    /// POST to a URL.
    Webhook,
    /// A table in a database.
    Database,
    /// The gateway's own SQLite file.
    Builtin,
    /// A file with one record per line.
    File,
    /// A Redis stream.
    Redis,
}

impl ReporterKind {
    /// The value of the key.
    pub fn word(self) -> &'static str {
        match self {
            Self::Webhook => "webhook",
            Self::Database => "database",
            Self::Builtin => "builtin",
            Self::File => "file",
            Self::Redis => "redis",
        }
    }
}

/// How an API key is written into a usage record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum KeyForm {
    /// The first and the last four characters.
    #[default]
    Masked,
    /// As the client sent it.
    Plain,
    /// The key is left out.
    None,
}

/// Who speaks in a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum GuardRole {
    /// Instructions: `system` and `developer`.
    System,
    User,
    /// What the model has said earlier, and the arguments of its calls.
    Assistant,
    /// Results of tools.
    Tool,
}

/// What happens to personal data.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RedactAction {
    /// A placeholder such as `[EMAIL_1]` goes to the backend in its place.
    #[default]
    Mask,
    /// The request is rejected.
    Refuse,
}

/// Kinds of personal data.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum PersonalData {
    /// Addresses of e-mail.
    Email,
    /// Phone numbers with a country code or in a usual national form.
    Phone,
    /// Numbers of payment cards, by their check digit.
    Card,
    /// Bank accounts, by their check digits.
    Iban,
    /// Numbers of persons: of the USA (by form), of Brazil, China, France, India, Italy, Poland and Spain (by
    /// their check digits).
    NationalId,
    /// Keys of APIs, tokens, and private keys in PEM.
    Secret,
    /// Addresses of IPv4.
    Ipv4,
    /// Addresses of IPv6.
    Ipv6,
}

/// Where words and patterns are looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DenyOn {
    /// In requests.
    Prompt,
    /// In answers.
    Answer,
}

/// When a service is asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ModerationMode {
    /// Before the request goes to a backend.
    #[default]
    Before,
    /// While a backend works on the request; nothing of its answer goes to the client before.
    Beside,
}

/// What a service is asked, and how it answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ModerationForm {
    /// OpenAI's: `{"input": [...]}`, and `results[].flagged` and `results[].categories`.
    #[default]
    Openai,
    /// `{"texts", "model", "user", "key"}`, and `{"allow": true}` or `{"allow": false, "message": "..."}`.
    Generic,
}

/// What happens while a service fails.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ModerationFail {
    /// Requests pass.
    Open,
    /// Requests are rejected with 503.
    #[default]
    Closed,
}

/// What happens to a request that asks for more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum CapAction {
    /// It is rejected with 400.
    #[default]
    Refuse,
    /// It gets the most that is allowed.
    Clamp,
}
