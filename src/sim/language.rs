//! The API languages that the simulated server speaks, and the endpoints where it does.

use serde::{Deserialize, Serialize};

/// An API language. Models, health and metrics belong to none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
pub enum Language {
    /// OpenAI's Chat Completions, with Completions and Embeddings.
    Chat,
    /// Anthropic's Messages.
    Messages,
    /// OpenAI's Responses.
    Responses,
}

impl Language {
    /// All of them, as vLLM has them.
    pub const ALL: [Self; 3] = [Self::Chat, Self::Messages, Self::Responses];
}

/// What a `POST` asks for, by its path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Endpoint {
    Chat,
    Completions,
    Embeddings,
    Messages,
    /// `/v1/messages/count_tokens`.
    CountTokens,
    Responses,
    /// `/v1/responses/input_tokens`.
    InputTokens,
    /// `/tokenize`, of messages.
    Tokenize,
}

impl Endpoint {
    /// The endpoint at a path.
    pub fn at(path: &str) -> Option<Self> {
        Some(match path {
            "/v1/chat/completions" => Self::Chat,
            "/v1/completions" => Self::Completions,
            "/v1/embeddings" => Self::Embeddings,
            "/v1/messages" => Self::Messages,
            "/v1/messages/count_tokens" => Self::CountTokens,
            "/v1/responses" => Self::Responses,
            "/v1/responses/input_tokens" => Self::InputTokens,
            "/tokenize" => Self::Tokenize,
            _ => return None,
        })
    }

    pub fn language(self) -> Language {
        match self {
            Self::Chat | Self::Completions | Self::Embeddings | Self::Tokenize => Language::Chat,
            Self::Messages | Self::CountTokens => Language::Messages,
            Self::Responses | Self::InputTokens => Language::Responses,
        }
    }
}
