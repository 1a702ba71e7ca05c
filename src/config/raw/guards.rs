//! `guards`: what is looked for in requests and answers before they pass.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    scalar::{ByteSize, SecretText, Span, Switch, secs, without_query, yes},
    when::When,
};
use crate::config::choices::{
    CapAction, DenyOn, GuardRole, ModerationFail, ModerationForm, ModerationMode, PersonalData,
    RedactAction,
};

/// What is looked for in requests and answers before they pass. Every guard is a list of entries, of which
/// all apply whose `when` fits; none has an entry by default.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Guards {
    /// Personal data and secrets in requests, which are masked or refused.
    pub redact: Vec<Redact>,
    /// Words and patterns that requests or answers must not have.
    pub deny: Vec<Deny>,
    /// Services that judge requests.
    pub moderation: Vec<Moderation>,
    /// The most that a request may ask for.
    pub caps: Vec<Caps>,
}

/// Personal data and secrets in requests.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Redact {
    /// `false`: the entry does not apply.
    pub enabled: Switch,
    /// When it applies; by default always.
    pub when: When,
    /// What happens to what is found.
    pub action: RedactAction,
    /// With `action: mask`: whether placeholders in the answer become the values again.
    pub reversible: bool,
    /// What is looked for.
    pub kinds: Vec<PersonalData>,
    /// Further patterns to look for.
    pub patterns: Vec<NamedPattern>,
    /// In which texts of the request it is looked for; by default in all.
    pub roles: Vec<GuardRole>,
    /// The status of a rejection, with `action: refuse`: 400 or 403.
    pub status: u16,
}

impl Default for Redact {
    fn default() -> Self {
        use PersonalData::{Card, Email, Iban, NationalId, Phone, Secret};
        Self {
            enabled: Switch::default(),
            when: When::default(),
            action: RedactAction::default(),
            reversible: true,
            kinds: vec![Email, Phone, Card, Iban, NationalId, Secret],
            patterns: Vec::new(),
            roles: Vec::new(),
            status: 400,
        }
    }
}

/// A pattern of your own.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NamedPattern {
    /// Its name, of letters, digits and `_`: `staff_number` makes `[STAFF_NUMBER_1]`.
    pub name: String,
    /// A regular expression without look-around and back references.
    pub pattern: String,
}

/// Words and patterns that must not pass.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Deny {
    /// `false`: the entry does not apply.
    pub enabled: Switch,
    /// When it applies; by default always.
    pub when: When,
    /// Where they are looked for.
    pub on: Vec<DenyOn>,
    /// Words and phrases, in any case. One that begins or ends with a Latin letter or a digit is only found
    /// where a word begins or ends.
    pub words: Vec<String>,
    /// Regular expressions without look-around and back references.
    pub patterns: Vec<String>,
    /// In which texts of requests they are looked for; by default in all.
    pub roles: Vec<GuardRole>,
    /// What the client is told.
    pub message: String,
    /// The status of a rejection: 400 or 403. An answer that has begun ends with an error.
    pub status: u16,
    /// The longest match in an answer, in bytes, 16 to 4096: text that may be the beginning of one waits.
    pub window: usize,
}

impl Default for Deny {
    fn default() -> Self {
        Self {
            enabled: Switch::default(),
            when: When::default(),
            on: vec![DenyOn::Prompt],
            words: Vec::new(),
            patterns: Vec::new(),
            roles: Vec::new(),
            message: "The content is not allowed here".to_owned(),
            status: 400,
            window: 256,
        }
    }
}

/// A service that judges requests.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Moderation {
    /// `false`: the entry does not apply.
    #[serde(default)]
    pub enabled: Switch,
    /// When it applies; by default always.
    #[serde(default)]
    pub when: When,
    /// When it is asked.
    #[serde(default)]
    pub mode: ModerationMode,
    /// What it is asked, and how it answers.
    #[serde(default)]
    pub form: ModerationForm,
    /// Its whole URL, for instance `https://api.openai.com/v1/moderations`.
    #[serde(serialize_with = "without_query")]
    pub url: String,
    /// Further header fields to send, for instance `Authorization`.
    #[serde(default)]
    #[schemars(with = "BTreeMap<String, String>")]
    pub headers: BTreeMap<String, SecretText>,
    /// Header fields whose values are read from files.
    #[serde(default)]
    pub headers_file: BTreeMap<String, String>,
    /// With `form: openai`: the model to ask; by default none is named.
    pub model: Option<String>,
    /// With `form: openai`: the categories that reject a request. Empty: whatever it flags.
    #[serde(default)]
    pub categories: Vec<String>,
    /// How long a response may take, 10ms to 1m.
    #[serde(default = "two_seconds")]
    pub timeout: Span,
    /// What happens to requests while the service fails.
    #[serde(default)]
    pub fail: ModerationFail,
    /// The most text that is sent. Of a longer conversation it is the end.
    #[serde(default = "max_text")]
    pub max_text: ByteSize,
    /// Which texts of the request are sent; by default those of users and tools.
    #[serde(default = "outer_roles")]
    pub roles: Vec<GuardRole>,
    /// What the client is told, unless the service says something else.
    #[serde(default = "not_allowed")]
    pub message: String,
    /// The status of a rejection: 400 or 403.
    #[serde(default = "bad_request")]
    pub status: u16,
}

fn two_seconds() -> Span {
    secs(2)
}

fn max_text() -> ByteSize {
    ByteSize(64 << 10)
}

fn outer_roles() -> Vec<GuardRole> {
    vec![GuardRole::User, GuardRole::Tool]
}

fn not_allowed() -> String {
    Deny::default().message
}

fn bad_request() -> u16 {
    400
}

/// The most that a request may ask for. What is not given is not limited.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Caps {
    /// `false`: the entry does not apply.
    pub enabled: Switch,
    /// When it applies; by default always.
    pub when: When,
    /// What happens to a request that asks for more.
    pub action: CapAction,
    /// Answers to one prompt: `n` and `best_of`.
    pub n: Option<u64>,
    /// Tokens of an answer, under the names of all languages. A request without a limit gets this one.
    pub max_tokens: Option<u64>,
    /// `false`: requests get no `logprobs` and no `prompt_logprobs`.
    #[serde(default = "yes")]
    pub logprobs: bool,
    /// Alternatives of each token: `top_logprobs`, `prompt_logprobs`, and `logprobs` of Completions.
    pub top_logprobs: Option<u64>,
    /// Tools; too many are always refused.
    pub tools: Option<u64>,
    /// Images; too many are always refused.
    pub images: Option<u64>,
    /// The size of each image that is in the request itself; a larger one is always refused.
    pub image_bytes: Option<ByteSize>,
}

impl Default for Caps {
    fn default() -> Self {
        Self {
            enabled: Switch::default(),
            when: When::default(),
            action: CapAction::default(),
            n: None,
            max_tokens: None,
            logprobs: true,
            top_logprobs: None,
            tools: None,
            images: None,
            image_bytes: None,
        }
    }
}
