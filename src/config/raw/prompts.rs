//! `system_prompts`.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::scalar::{Switch, Word};
use crate::config::choices::PromptPosition;

/// Prompts of the operator, which are put into requests beside the client's own system prompt.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SystemPrompts {
    /// Whether prompts are inserted. If not, their files are not read.
    pub enabled: Switch,
    /// The folder of prompts: each of its files `*.md` and `*.txt` is one. `system_prompts` by
    /// default, which need not exist.
    pub path: Option<String>,
    /// A file with one more prompt. `system_prompt.md` by default, which need not exist.
    pub file: Option<String>,
    /// Prompts that are written here, or in files anywhere else.
    pub prompts: Vec<SystemPrompt>,
    /// Environment variables that prompts may contain as `${NAME}`. No others are read.
    pub env: Vec<String>,
    /// Variables of your own, which prompts contain as `${NAME}`.
    pub variables: BTreeMap<String, Word>,
    /// Whether prompts may contain `${_HOSTNAME}`, `${_USER}`, `${_HOME}` and `${_SHELL}`, which
    /// describe this host to every backend.
    pub host_facts: bool,
    /// The time zone of `${_DATE}`, `${_TIME}` and `${_DATETIME}`, `Europe/Berlin`; that of the
    /// machine by default.
    pub time_zone: Option<String>,
}

/// A prompt: either `text` or `file`.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SystemPrompt {
    /// Its name in `explain`; its file or its place in the list by default.
    pub name: Option<String>,
    /// The text. Its variables are those of prompts, not those of this file.
    pub text: Option<String>,
    /// A file with the text. The keys here take precedence over those of its header.
    pub file: Option<String>,
    /// Whether it stands before or after the client's own system prompt.
    pub position: Option<PromptPosition>,
    /// What separates it from the text that it is added to.
    pub separator: Option<PromptSeparator>,
    /// With `separator: custom`: the separator.
    pub custom_separator: Option<String>,
    /// Models whose requests get it, as clients name them; `*` stands for any text, and `?` for any
    /// character. All models by default.
    pub models: Option<Vec<String>>,
    /// Whether it is inserted.
    pub enabled: Option<bool>,
    /// Its place among the prompts: lower numbers stand first. 100 by default.
    pub priority: Option<i64>,
}

/// The header of a prompt's file.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct PromptSettings {
    pub position: Option<PromptPosition>,
    pub separator: Option<PromptSeparator>,
    pub custom_separator: Option<String>,
    pub models: Option<Vec<String>>,
    pub enabled: Option<bool>,
    pub priority: Option<i64>,
}

impl SystemPrompt {
    /// Its settings, over those of the header of its file.
    pub fn settings(&self, header: PromptSettings) -> PromptSettings {
        let given = self.clone();
        PromptSettings {
            position: given.position.or(header.position),
            separator: given.separator.or(header.separator),
            custom_separator: given.custom_separator.or(header.custom_separator),
            models: given.models.or(header.models),
            enabled: given.enabled.or(header.enabled),
            priority: given.priority.or(header.priority),
        }
    }
}

/// What separates a prompt from the text that it is added to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum PromptSeparator {
    /// A line break.
    Newline,
    /// An empty line.
    #[default]
    DoubleNewline,
    /// Nothing.
    None,
    /// `custom_separator`.
    Custom,
}
