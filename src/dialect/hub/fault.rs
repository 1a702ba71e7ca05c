//! What broke an answer, in the neutral form.

/// The kind of an error. The table of HTTP statuses and of each language's words is in the
/// languages' codecs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// 400
    InvalidRequest,
    /// 400: the prompt and the wanted answer are longer than the model's context.
    ContextTooLong {
        /// In tokens, as far as the backend said them.
        prompt: Option<u64>,
        limit: Option<u64>,
    },
    /// 400: the content is blocked.
    ContentBlocked,
    /// 401
    Authentication,
    /// 402
    NoCredit,
    /// 403
    Forbidden,
    /// 404
    NotFound,
    /// 409
    Conflict,
    /// 413
    TooLarge,
    /// 429
    RateLimit,
    /// 500, 502
    Server,
    /// 503, 529
    Overloaded,
    /// 504, 408
    Timeout,
}

impl Class {
    /// By an HTTP status.
    pub fn of_status(status: u16) -> Self {
        match status {
            401 => Self::Authentication,
            402 => Self::NoCredit,
            403 => Self::Forbidden,
            404 => Self::NotFound,
            408 | 504 => Self::Timeout,
            409 => Self::Conflict,
            413 => Self::TooLarge,
            429 => Self::RateLimit,
            503 | 529 => Self::Overloaded,
            500.. => Self::Server,
            _ => Self::InvalidRequest,
        }
    }

    /// The request itself is at fault: no other backend would serve it.
    pub fn is_clients(self) -> bool {
        matches!(
            self,
            Self::InvalidRequest
                | Self::ContextTooLong { .. }
                | Self::ContentBlocked
                | Self::NotFound
                | Self::TooLarge
        )
    }
}

/// An error of a backend, or of its connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamFault {
    pub class: Class,
    /// In the backend's words, or the gateway's.
    pub message: String,
    /// The backend's own code, if it is a word.
    pub code: Option<String>,
    /// The field that is wrong.
    pub param: Option<String>,
    /// In seconds.
    pub retry_after: Option<u64>,
}

impl StreamFault {
    /// One with a message alone.
    pub fn new(class: Class, message: impl Into<String>) -> Self {
        Self { class, message: message.into(), code: None, param: None, retry_after: None }
    }

    /// The backend's stream has ended before its answer did.
    pub fn cut() -> Self {
        Self::new(Class::Server, "The backend's answer broke off")
    }

    /// Reads what a message says of an overflow of the context: vLLM's, llama.cpp's, OpenAI's and
    /// Anthropic's wordings.
    pub fn with_context_numbers(mut self) -> Self {
        if let Some(class) = context_overflow(&self.message) {
            self.class = class;
        }
        self
    }

    /// The message of a context overflow as Claude Code knows it; it compacts then.
    pub fn messages_wording(&self) -> String {
        match self.class {
            Class::ContextTooLong { prompt: Some(prompt), limit: Some(limit) } => {
                format!("prompt is too long: {prompt} tokens > {limit} maximum")
            }
            Class::ContextTooLong { .. } => format!("prompt is too long: {}", self.message),
            _ => self.message.clone(),
        }
    }
}

/// Phrases by which servers say that the context is too small.
const OVERFLOWS: [&str; 7] = [
    "maximum context length",
    "exceeds the available context size",
    "context_length_exceeded",
    "prompt is too long",
    "exceeds the context window",
    "exceed context limit",
    "longer than the maximum model length",
];

/// The class of a message that speaks of an overflow of the context.
pub fn context_overflow(message: &str) -> Option<Class> {
    let lower = message.to_ascii_lowercase();
    if !OVERFLOWS.iter().any(|phrase| lower.contains(phrase)) {
        return None;
    }
    let (prompt, limit) = overflow_numbers(&lower);
    Some(Class::ContextTooLong { prompt, limit })
}

/// The tokens of the prompt and those that the model takes.
fn overflow_numbers(text: &str) -> (Option<u64>, Option<u64>) {
    let after = |phrase: &str| {
        let rest = &text[text.find(phrase)? + phrase.len()..];
        let digits: String = rest
            .chars()
            .skip_while(|c| !c.is_ascii_digit())
            .take_while(char::is_ascii_digit)
            .collect();
        digits.parse().ok()
    };
    let before = |phrase: &str| {
        let rest = &text[..text.find(phrase)?];
        let digits: String = rest
            .chars()
            .rev()
            .skip_while(|c| !c.is_ascii_digit())
            .take_while(char::is_ascii_digit)
            .collect();
        digits.chars().rev().collect::<String>().parse().ok()
    };
    let limit = after("maximum context length is")
        .or_else(|| after("context size"))
        .or_else(|| before(" maximum"))
        .or_else(|| after("context window of"));
    let prompt = before(" input tokens")
        .or_else(|| after("prompt is too long:"))
        .or_else(|| after("resulted in"))
        .or_else(|| after("you requested"))
        .or_else(|| after("request ("));
    (prompt, limit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_overflow_is_known_by_its_words() {
        let numbers = |text: &str| match context_overflow(text) {
            Some(Class::ContextTooLong { prompt, limit }) => Some((prompt, limit)),
            _ => None,
        };
        for (text, found) in [
            (
                "This model's maximum context length is 2048 tokens. However, you requested 0 output tokens and your prompt contains at least 2049 input tokens, for a total of at least 2049 tokens.",
                Some((Some(2049), Some(2048))),
            ),
            (
                "the request exceeds the available context size. try increasing the context size or enable context shift",
                Some((None, None)),
            ),
            (
                "prompt is too long: 210000 tokens > 200000 maximum",
                Some((Some(210_000), Some(200_000))),
            ),
            (
                "This model's maximum context length is 8192 tokens. However, your messages resulted in 9001 tokens.",
                Some((Some(9001), Some(8192))),
            ),
            ("the model is overloaded", None),
        ] {
            assert_eq!(numbers(text), found, "{text}");
        }
    }
}
