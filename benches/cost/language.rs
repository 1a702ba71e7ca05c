//! The languages of clients and backends. Requests, answers and events have the same size in each, so that
//! what they cost can be compared.

/// An answer of Chat as vLLM writes it.
const CHAT_ANSWER: &str = r#"{"id":"chatcmpl-33a10a18637f4b37","object":"chat.completion","created":1796049528,"model":"sim-model","choices":[{"index":0,"message":{"role":"assistant","content":"Hello! I am a simulated model, and I count. Hello! I am","refusal":null,"annotations":null,"audio":null,"function_call":null,"reasoning":null},"logprobs":null,"finish_reason":"length","stop_reason":null,"token_ids":null,"routed_experts":null}],"service_tier":null,"system_fingerprint":"vllm-0.32.0","usage":{"prompt_tokens":8,"total_tokens":24,"completion_tokens":16,"prompt_tokens_details":null,"completion_tokens_details":null},"kv_transfer_params":null,"metrics":null}"#;

const CHAT_EVENT: &str = r#"data: {"id":"chatcmpl-33a10a18637f4b37","object":"chat.completion.chunk","created":1796049528,"model":"sim-model","choices":[{"index":0,"delta":{"content":" counting"},"logprobs":null,"finish_reason":null,"token_ids":null}]}

"#;

const CHAT_END: &str = r#"data: {"id":"chatcmpl-33a10a18637f4b37","object":"chat.completion.chunk","created":1796049528,"model":"sim-model","choices":[{"index":0,"delta":{"content":""},"logprobs":null,"finish_reason":"stop","stop_reason":null,"token_ids":null}]}

data: {"id":"chatcmpl-33a10a18637f4b37","object":"chat.completion.chunk","created":1796049528,"model":"sim-model","choices":[],"usage":{"prompt_tokens":8,"total_tokens":24,"completion_tokens":16}}

data: [DONE]

"#;

/// A language.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Language {
    Chat,
    Messages,
    Responses,
}

/// What each event of a stream has once, in any language.
pub const MARK: &str = "counting";

/// The number of the first event of an answer of Responses: four announce it.
const FIRST: usize = 4;

impl Language {
    /// The language of a request, by its first line.
    pub fn of(line: &str) -> Self {
        let spoken = [Self::Messages, Self::Responses];
        let found = spoken.into_iter().find(|language| line.contains(language.path()));
        found.unwrap_or(Self::Chat)
    }

    pub const fn path(self) -> &'static str {
        match self {
            Self::Chat => "/v1/chat/completions",
            Self::Messages => "/v1/messages",
            Self::Responses => "/v1/responses",
        }
    }

    /// Its name in a configuration.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Chat => "chat",
            Self::Messages => "messages",
            Self::Responses => "responses",
        }
    }

    /// The header fields by which clients of this language say who they are.
    pub fn credentials(self, key: &str) -> String {
        match self {
            Self::Chat | Self::Responses => format!("Authorization: Bearer {key}\r\n"),
            Self::Messages => format!("x-api-key: {key}\r\nanthropic-version: 2023-06-01\r\n"),
        }
    }

    /// The body of a request of 1 KB.
    pub fn request(self, stream: bool) -> String {
        let with = |language: Self, prompt: usize| {
            let prompt = "x".repeat(prompt);
            let (name, what, most) = match language {
                Self::Responses => ("input", serde_json::json!(prompt), "max_output_tokens"),
                _ => {
                    let message = serde_json::json!([{"role": "user", "content": prompt}]);
                    ("messages", message, "max_tokens")
                }
            };
            serde_json::json!({"model": "sim-model", name: what, most: 16, "stream": stream})
                .to_string()
        };
        let size = with(Self::Chat, 900).len();
        with(self, size - with(self, 0).len())
    }

    /// A plain answer.
    pub fn answer(self) -> String {
        let filled = |before: &str, after: &str| fill(before, after, CHAT_ANSWER.len());
        match self {
            Self::Chat => CHAT_ANSWER.to_owned(),
            Self::Messages => filled(
                r#"{"id":"chatcmpl-33a10a18637f4b37","type":"message","role":"assistant","content":[{"type":"text","text":"Hello! I am a simulated model, and I count."#,
                r#""}],"model":"sim-model","stop_reason":"max_tokens","stop_sequence":null,"usage":{"input_tokens":8,"output_tokens":16}}"#,
            ),
            Self::Responses => filled(
                r#"{"id":"resp_33a10a18637f4b37","created_at":1796049528,"incomplete_details":null,"instructions":null,"model":"sim-model","object":"response","output":[{"id":"msg_b26850c3900fa55f","content":[{"annotations":[],"text":"Hello! I am a simulated model, and I count."#,
                r#"","type":"output_text","logprobs":null}],"role":"assistant","status":"completed","type":"message"}],"parallel_tool_calls":true,"tool_choice":"none","tools":[],"status":"completed","usage":{"input_tokens":8,"input_tokens_details":{"cached_tokens":0},"output_tokens":16,"output_tokens_details":{"reasoning_tokens":0},"total_tokens":24}}"#,
            ),
        }
    }

    /// Event `n` of a stream with its part of the answer; before the first one stands what announces it.
    pub fn event(self, n: usize) -> String {
        let filled = |before: &str, after: &str| fill(before, after, CHAT_EVENT.len());
        let event = match self {
            Self::Chat => CHAT_EVENT.to_owned(),
            Self::Messages => filled(
                "event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"delta\":{\"type\":\"text_delta\",\"text\":\" counting",
                "\"},\"index\":0}\n\n",
            ),
            Self::Responses => {
                let number = FIRST + n;
                filled(
                    "event: response.output_text.delta\ndata: {\"content_index\":0,\"delta\":\" counting",
                    &format!(
                        "\",\"item_id\":\"msg_b26850c3900fa55f\",\"logprobs\":[],\"output_index\":0,\"sequence_number\":{number},\"type\":\"response.output_text.delta\"}}\n\n"
                    ),
                )
            }
        };
        match (self, n) {
            (Self::Messages, 0) => format!("{MESSAGES_START}{event}"),
            (Self::Responses, 0) => format!("{RESPONSES_START}{event}"),
            _ => event,
        }
    }

    /// The end of a stream of `n` events.
    pub fn end(self, n: usize) -> String {
        match self {
            Self::Chat => CHAT_END.to_owned(),
            Self::Messages => MESSAGES_END.to_owned(),
            Self::Responses => {
                let number = |at: usize| (FIRST + n + at).to_string();
                (0..4).fold(RESPONSES_END.to_owned(), |end, at| {
                    end.replacen("NUMBER", &number(at), 1)
                })
            }
        }
    }
}

/// `before` and `after` with letters between them, so that all have this size.
fn fill(before: &str, after: &str, size: usize) -> String {
    let missing = size.checked_sub(before.len() + after.len());
    format!("{before}{}{after}", "x".repeat(missing.unwrap()))
}

const MESSAGES_START: &str = r#"event: message_start
data: {"type":"message_start","message":{"id":"chatcmpl-33a10a18637f4b37","type":"message","role":"assistant","content":[],"model":"sim-model","stop_reason":null,"stop_sequence":null,"usage":{"input_tokens":8,"output_tokens":0}}}

event: content_block_start
data: {"type":"content_block_start","content_block":{"type":"text","text":""},"index":0}

"#;

const MESSAGES_END: &str = r#"event: content_block_stop
data: {"type":"content_block_stop","index":0}

event: message_delta
data: {"type":"message_delta","delta":{"stop_reason":"end_turn","stop_sequence":null},"usage":{"input_tokens":8,"output_tokens":16}}

event: message_stop
data: {"type":"message_stop"}

"#;

const RESPONSES_START: &str = r#"event: response.created
data: {"response":{"id":"resp_33a10a18637f4b37","created_at":1796049528,"model":"sim-model","object":"response","output":[],"status":"in_progress","usage":null},"sequence_number":0,"type":"response.created"}

event: response.in_progress
data: {"response":{"id":"resp_33a10a18637f4b37","created_at":1796049528,"model":"sim-model","object":"response","output":[],"status":"in_progress","usage":null},"sequence_number":1,"type":"response.in_progress"}

event: response.output_item.added
data: {"item":{"id":"msg_b26850c3900fa55f","content":[],"role":"assistant","status":"in_progress","type":"message","phase":null},"output_index":0,"sequence_number":2,"type":"response.output_item.added"}

event: response.content_part.added
data: {"content_index":0,"item_id":"msg_b26850c3900fa55f","output_index":0,"part":{"annotations":[],"text":"","type":"output_text","logprobs":[]},"sequence_number":3,"type":"response.content_part.added"}

"#;

const RESPONSES_END: &str = r#"event: response.output_text.done
data: {"content_index":0,"item_id":"msg_b26850c3900fa55f","logprobs":[],"output_index":0,"sequence_number":NUMBER,"text":"...","type":"response.output_text.done"}

event: response.content_part.done
data: {"content_index":0,"item_id":"msg_b26850c3900fa55f","output_index":0,"part":{"annotations":[],"text":"...","type":"output_text","logprobs":null},"sequence_number":NUMBER,"type":"response.content_part.done"}

event: response.output_item.done
data: {"item":{"id":"msg_b26850c3900fa55f","content":[{"annotations":[],"text":"...","type":"output_text","logprobs":null}],"role":"assistant","status":"completed","type":"message","phase":null},"output_index":0,"sequence_number":NUMBER,"type":"response.output_item.done"}

event: response.completed
data: {"response":{"id":"resp_33a10a18637f4b37","created_at":1796049528,"model":"sim-model","object":"response","output":[{"id":"msg_b26850c3900fa55f","content":[{"annotations":[],"text":"...","type":"output_text","logprobs":null}],"role":"assistant","status":"completed","type":"message","phase":null}],"status":"completed","usage":{"input_tokens":8,"input_tokens_details":{"cached_tokens":0},"output_tokens":16,"output_tokens_details":{"reasoning_tokens":0},"total_tokens":24}},"sequence_number":NUMBER,"type":"response.completed"}

"#;
