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

    /// The message of a context overflow as Claude Code knows it. Where the prompt is too long it
    /// compacts; where only the wanted answer is, it asks for a shorter one.
    pub fn messages_wording(&self) -> String {
        let Class::ContextTooLong { prompt, limit } = self.class else {
            return self.message.clone();
        };
        let (Some(prompt), Some(limit)) = (prompt, limit) else {
            let known = self.message.to_ascii_lowercase().contains("prompt is too long");
            return if known { self.message.clone() } else { too_long(&self.message) };
        };
        if prompt > limit {
            return too_long(&format!("{prompt} tokens > {limit} maximum"));
        }
        let lower = self.message.to_ascii_lowercase();
        let Some(output) = Numbers::of(&lower).output else { return self.message.clone() };
        let sum = prompt.saturating_add(output);
        if sum <= limit {
            return self.message.clone();
        }
        // vLLM counts a prompt only as far as it has to: one token more than there is room for says
        // that there are as many or more. A shorter answer helps a prompt of unknown length only if
        // most of the context was to be the answer's.
        let least = sum == limit.saturating_add(1);
        if least && output <= limit / 2 {
            return too_long(&format!("{prompt} tokens > {} maximum", limit - output));
        }
        format!(
            "input length and `max_tokens` exceed context limit: {prompt} + {output} > {limit}, \
             decrease input length or `max_tokens` and try again"
        )
    }
}

fn too_long(what: &str) -> String {
    format!("prompt is too long: {what}")
}

/// Phrases by which servers say that the context is too small.
const OVERFLOWS: [&str; 12] = [
    "maximum context length",
    "exceeds the available context size",
    "context_length_exceeded",
    "prompt is too long",
    "exceeds the context window",
    "exceed context limit",
    "longer than the maximum model length",
    // vLLM since it counts the answer's tokens too.
    "the model's context length is",
    // SGLang.
    "longer than the model's context length",
    // Bedrock.
    "input is too long",
    // xAI.
    "maximum prompt length is",
    // Text Generation Inference.
    "`inputs` tokens + `max_new_tokens` must be <=",
];

/// What Google says of an overflow, in two pieces.
const GOOGLES: [&str; 2] = ["input token count", "exceeds the maximum number of tokens"];

/// The class of a message that speaks of an overflow of the context.
pub fn context_overflow(message: &str) -> Option<Class> {
    let lower = message.to_ascii_lowercase();
    let says = |phrase: &str| lower.contains(phrase);
    if !OVERFLOWS.iter().any(|phrase| says(phrase)) && !GOOGLES.iter().all(|p| says(p)) {
        return None;
    }
    let Numbers { prompt, limit, .. } = Numbers::of(&lower);
    Some(Class::ContextTooLong { prompt, limit })
}

/// What a message says of an overflow, in tokens.
#[derive(Clone, Copy, Debug, Default)]
struct Numbers {
    prompt: Option<u64>,
    /// Of the wanted answer.
    output: Option<u64>,
    limit: Option<u64>,
}

/// What stands before the limit, in small letters.
const LIMITS: [&str; 10] = [
    "context length is",
    "context length is only",
    "context length of",
    "model's context length",
    "maximum prompt length is",
    "maximum model length of",
    "context size",
    "context window of",
    "maximum number of tokens allowed",
    "must be <=",
];

/// What stands behind the tokens of the wanted answer.
const OUTPUTS: [&str; 5] = [
    " output tokens",
    " in the completion",
    " for the completion",
    " tokens for the completion",
    " `max_new_tokens`",
];

/// What stands behind the tokens of the prompt.
const PROMPTS: [&str; 4] =
    [" input tokens", " tokens from the input messages", " in your prompt", " `inputs`"];

/// What stands before the tokens of the prompt.
const OF_PROMPTS: [&str; 8] = [
    "prompt is too long:",
    "resulted in",
    "request (",
    "request contains",
    "prompt contains",
    "prompt (length",
    "the input (",
    "input token count",
];

impl Numbers {
    /// Of a message in small letters.
    fn of(text: &str) -> Self {
        if let Some(found) = Self::sum(text) {
            return found;
        }
        let any_after = |all: &[&str]| all.iter().find_map(|phrase| after(text, phrase));
        let any_before = |all: &[&str]| all.iter().find_map(|phrase| before(text, phrase));
        let output = any_before(&OUTPUTS).or_else(|| after(text, "is too large:"));
        // Of a sum the answer is a part.
        let all = any_after(&["you requested", "you requested a total of"]);
        let all = all.map(|all| all.saturating_sub(output.unwrap_or(0)));
        Self {
            prompt: any_before(&PROMPTS).or(all).or_else(|| any_after(&OF_PROMPTS)),
            output,
            limit: any_after(&LIMITS).or_else(|| before(text, " maximum")),
        }
    }

    /// Anthropic's `exceed context limit: 199211 + 20000 > 200000`.
    fn sum(text: &str) -> Option<Self> {
        let (_, rest) = text.split_once("exceed context limit:")?;
        let mut numbers = rest.split(|c: char| !c.is_ascii_digit()).filter(|n| !n.is_empty());
        let mut next = || numbers.next()?.parse().ok();
        Some(Self { prompt: next(), output: next(), limit: next() })
    }
}

/// The number that stands right behind a phrase, at most behind a brace or quotes, and is of tokens of
/// the prompt or of all.
fn after(text: &str, phrase: &str) -> Option<u64> {
    let rest = |(at, found): (usize, &str)| &text[at + found.len()..];
    text.match_indices(phrase).map(rest).find_map(|rest| {
        let rest = rest.trim_start_matches([' ', '(', ':', '"', '\'', '`']);
        let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let (number, behind) = rest.split_at(end);
        let other = behind.starts_with(" characters") || behind.starts_with(" output tokens");
        number.parse().ok().filter(|_| !other)
    })
}

/// The number that stands right before a phrase, and is no bound that the prompt is above.
fn before(text: &str, phrase: &str) -> Option<u64> {
    text.match_indices(phrase).find_map(|(at, _)| {
        let rest = &text[..at];
        let digits = rest.bytes().rev().take_while(u8::is_ascii_digit).count();
        let (before, number) = rest.split_at(rest.len() - digits);
        number.parse().ok().filter(|_| !before.ends_with("upper bound for "))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(text: &str) -> Option<(Option<u64>, Option<u64>)> {
        match context_overflow(text) {
            Some(Class::ContextTooLong { prompt, limit }) => Some((prompt, limit)),
            _ => None,
        }
    }

    #[test]
    fn an_overflow_is_known_by_its_words() {
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
        ] {
            assert_eq!(numbers(text), found, "{text}");
        }
    }

    #[test]
    fn more_servers_have_more_words_for_it() {
        for (text, found) in [
            (
                "You passed 99073 input tokens and requested 32000 output tokens. However, the model's context length is only 131072 tokens, resulting in a maximum input length of 99072 tokens. Please reduce the length of the input messages.",
                Some((Some(99_073), Some(131_072))),
            ),
            (
                "The input (5000 tokens) is longer than the model's context length (4096 tokens).",
                Some((Some(5000), Some(4096))),
            ),
            (
                "Requested token count exceeds the model's maximum context length of 4096 tokens. You requested a total of 5000 tokens: 4000 tokens from the input messages and 1000 tokens for the completion.",
                Some((Some(4000), Some(4096))),
            ),
            ("Input is too long for requested model.", Some((None, None))),
            (
                "The input token count (1200000) exceeds the maximum number of tokens allowed (1048576).",
                Some((Some(1_200_000), Some(1_048_576))),
            ),
            (
                "This model's maximum prompt length is 131072 but the request contains 537812 tokens.",
                Some((Some(537_812), Some(131_072))),
            ),
            (
                "The decoder prompt (length 5000) is longer than the maximum model length of 4096.",
                Some((Some(5000), Some(4096))),
            ),
            (
                "This model's maximum context length is 8192 tokens. However, you requested 9001 tokens (8001 in the messages, 1000 in the completion).",
                Some((Some(8001), Some(8192))),
            ),
            (
                "This model's maximum context length is 8192 tokens. However, you requested 9000 tokens (7000 in the messages, 1000 in the functions, and 1000 in the completion).",
                Some((Some(8000), Some(8192))),
            ),
            (
                "Prompt contains 40000 tokens and 0 draft tokens, too large for model with 32768 maximum context length",
                Some((Some(40_000), Some(32_768))),
            ),
            (
                "request (5000 tokens) exceeds the available context size (4096 tokens), try increasing it",
                Some((Some(5000), Some(4096))),
            ),
            (
                "input length and `max_tokens` exceed context limit: 199211 + 20000 > 200000, decrease input length",
                Some((Some(199_211), Some(200_000))),
            ),
            (
                "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 4096. Given: 4000 `inputs` tokens and 1000 `max_new_tokens`",
                Some((Some(4000), Some(4096))),
            ),
            (
                "This model's maximum context length is 2048 tokens. However, you requested 100 output tokens and your prompt contains 50000 characters (more than 20000 characters, which is the upper bound for 1948 input tokens).",
                Some((None, Some(2048))),
            ),
            (
                "You passed 50000 input characters and requested 100 output tokens. However, the model's context length is only 2048 tokens, resulting in a maximum input length of 1948 tokens.",
                Some((None, Some(2048))),
            ),
            ("the model is overloaded", None),
            ("max_tokens exceeds the maximum number of tokens allowed (4096)", None),
        ] {
            assert_eq!(numbers(text), found, "{text}");
        }
    }

    #[test]
    fn claude_code_is_told_what_is_too_long() {
        let wording = |text: &str| {
            StreamFault::new(Class::InvalidRequest, text).with_context_numbers().messages_wording()
        };
        let sum = "input length and `max_tokens` exceed context limit:";
        let more = "decrease input length or `max_tokens` and try again";
        for (text, told) in [
            (
                "'max_tokens' or 'max_completion_tokens' is too large: 32000. This model's maximum context length is 40960 tokens and your request has 20000 input tokens (32000 > 40960 - 20000).",
                format!("{sum} 20000 + 32000 > 40960, {more}"),
            ),
            (
                "This model's maximum context length is 8192 tokens. However, you requested 9001 tokens (8001 in the messages, 1000 in the completion).",
                format!("{sum} 8001 + 1000 > 8192, {more}"),
            ),
            (
                "input length and `max_tokens` exceed context limit: 199211 + 20000 > 200000",
                format!("{sum} 199211 + 20000 > 200000, {more}"),
            ),
            // The prompt has as many tokens or more: most of the context is its own.
            (
                "You passed 99073 input tokens and requested 32000 output tokens. However, the model's context length is only 131072 tokens, resulting in a maximum input length of 99072 tokens.",
                "prompt is too long: 99073 tokens > 99072 maximum".to_owned(),
            ),
            // Most of it was to be the answer's.
            (
                "You passed 8961 input tokens and requested 32000 output tokens. However, the model's context length is only 40960 tokens, resulting in a maximum input length of 8960 tokens.",
                format!("{sum} 8961 + 32000 > 40960, {more}"),
            ),
            (
                "Maximum context length is 4096 tokens, the prompt has 4000 input tokens",
                "Maximum context length is 4096 tokens, the prompt has 4000 input tokens"
                    .to_owned(),
            ),
            (
                "This model's maximum context length is 2048 tokens, but there are 2049 input tokens",
                "prompt is too long: 2049 tokens > 2048 maximum".to_owned(),
            ),
            (
                "Input is too long for requested model.",
                "prompt is too long: Input is too long for requested model.".to_owned(),
            ),
            ("Your prompt is too long", "Your prompt is too long".to_owned()),
        ] {
            assert_eq!(wording(text), told, "{text}");
        }
    }
}
