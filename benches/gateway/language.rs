//! The languages of clients and of the backend: paths, bodies, and the frames of answers, each in the shape
//! that vLLM gives them.

use super::KEY;

/// A language.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Language {
    #[default]
    Chat,
    Messages,
    Responses,
}

/// The text of a plain answer.
const TEXT: &str = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen";

impl Language {
    /// The language of a request, by its first line in lower case.
    pub fn of(line: &str) -> Self {
        let others = [Self::Messages, Self::Responses];
        others.into_iter().find(|other| line.contains(other.path())).unwrap_or_default()
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

    /// The header fields by which its clients say who they are.
    pub fn credentials(self) -> String {
        match self {
            Self::Chat | Self::Responses => format!("Authorization: Bearer {KEY}\r\n"),
            Self::Messages => format!("x-api-key: {KEY}\r\nanthropic-version: 2023-06-01\r\n"),
        }
    }

    /// A body of about `size` bytes.
    pub fn body(self, size: usize, stream: bool) -> String {
        let head = format!(r#"{{"model":"sim-model","stream":{stream},"#);
        let (before, after) = match self {
            Self::Chat => (r#""messages":[{"role":"user","content":""#, r#""}]}"#),
            Self::Messages => {
                (r#""max_tokens":4096,"messages":[{"role":"user","content":""#, r#""}]}"#)
            }
            Self::Responses => (r#""input":""#, r#""}"#),
        };
        let fill = "x".repeat(size.saturating_sub(head.len() + before.len() + after.len()));
        format!("{head}{before}{fill}{after}")
    }

    /// A plain answer.
    pub fn answer(self) -> String {
        match self {
            Self::Chat => format!(
                r#"{{"id":"chatcmpl-bench","object":"chat.completion","created":1780000000,"model":"sim-model","choices":[{{"index":0,"message":{{"role":"assistant","content":"{TEXT}"}},"logprobs":null,"finish_reason":"stop","stop_reason":null}}],"usage":{{"prompt_tokens":230,"total_tokens":246,"completion_tokens":16}}}}"#
            ),
            Self::Messages => format!(
                r#"{{"id":"chatcmpl-bench","type":"message","role":"assistant","content":[{{"type":"text","text":"{TEXT}"}}],"model":"sim-model","stop_reason":"end_turn","stop_sequence":null,"usage":{{"input_tokens":230,"output_tokens":16}}}}"#
            ),
            Self::Responses => response("completed", TEXT, 16),
        }
    }

    /// What a stream begins with, before its first token; `usage`: the members of Chat's counts.
    pub fn start(self, usage: &str) -> String {
        match self {
            Self::Chat => chunk(r#"{"role":"assistant","content":""}"#, "null", usage),
            Self::Messages => {
                named(
                    "message_start",
                    r#""message":{"id":"chatcmpl-bench","type":"message","role":"assistant","content":[],"model":"sim-model","stop_reason":null,"stop_sequence":null,"usage":{"input_tokens":230,"output_tokens":0}}"#,
                ) + &named(
                    "content_block_start",
                    r#""content_block":{"type":"text","text":""},"index":0"#,
                )
            }
            Self::Responses => {
                let begun = response("in_progress", "", 0);
                [
                    numbered("response.created", &format!(r#""response":{begun}"#), 0),
                    numbered("response.in_progress", &format!(r#""response":{begun}"#), 1),
                    numbered("response.output_item.added", r#""item":{"id":"msg_bench","content":[],"role":"assistant","status":"in_progress","type":"message","phase":null},"output_index":0"#, 2),
                    numbered("response.content_part.added", r#""content_index":0,"item_id":"msg_bench","output_index":0,"part":{"annotations":[],"text":"","type":"output_text","logprobs":[]}"#, 3),
                ]
                .concat()
            }
        }
    }

    /// Token `n` of a stream, from 1; `last`: no other follows.
    pub fn token(self, n: usize, text: &str, last: bool, usage: &str) -> String {
        match self {
            Self::Chat => {
                let reason = if last { r#""stop""# } else { "null" };
                chunk(&format!(r#"{{"content":"{text}"}}"#), reason, usage)
            }
            Self::Messages => named(
                "content_block_delta",
                &format!(r#""delta":{{"type":"text_delta","text":"{text}"}},"index":0"#),
            ),
            Self::Responses => numbered(
                "response.output_text.delta",
                &format!(
                    r#""content_index":0,"delta":"{text}","item_id":"msg_bench","logprobs":[],"output_index":0"#
                ),
                n + 3,
            ),
        }
    }

    /// What a stream ends with, after `tokens` tokens with this text. Chat's own counts are an event
    /// before it.
    pub fn end(self, tokens: usize, text: &str) -> String {
        match self {
            Self::Chat => "data: [DONE]\n\n".to_owned(),
            Self::Messages => [
                named("content_block_stop", r#""index":0"#),
                named(
                    "message_delta",
                    &format!(
                        r#""delta":{{"stop_reason":"end_turn","stop_sequence":null}},"usage":{{"input_tokens":230,"output_tokens":{tokens}}}"#
                    ),
                ),
                "event: message_stop\ndata: {\"type\":\"message_stop\"}\n\n".to_owned(),
            ]
            .concat(),
            Self::Responses => {
                let place = r#""content_index":0,"item_id":"msg_bench","output_index":0"#;
                let part = part(text);
                [
                    numbered(
                        "response.output_text.done",
                        &format!(r#"{place},"logprobs":[],"text":"{text}""#),
                        tokens + 4,
                    ),
                    numbered(
                        "response.content_part.done",
                        &format!(r#"{place},"part":{part}"#),
                        tokens + 5,
                    ),
                    numbered(
                        "response.output_item.done",
                        &format!(r#""item":{},"output_index":0"#, item(text)),
                        tokens + 6,
                    ),
                    numbered(
                        "response.completed",
                        &format!(r#""response":{}"#, response("completed", text, tokens)),
                        tokens + 7,
                    ),
                ]
                .concat()
            }
        }
    }

    /// What stands in the last event of a complete stream.
    pub const fn last(self) -> &'static [u8] {
        match self {
            Self::Chat => b"data: [DONE]",
            Self::Messages => b"event: message_stop",
            Self::Responses => b"event: response.completed",
        }
    }
}

/// An event of Chat.
fn chunk(delta: &str, reason: &str, usage: &str) -> String {
    format!(
        "data: {{\"id\":\"chatcmpl-bench\",\"object\":\"chat.completion.chunk\",\"created\":1780000000,\"model\":\"sim-model\",\"choices\":[{{\"index\":0,\"delta\":{delta},\"logprobs\":null,\"finish_reason\":{reason}}}]{usage}}}\n\n"
    )
}

/// An event of Messages.
fn named(name: &str, members: &str) -> String {
    format!("event: {name}\ndata: {{\"type\":\"{name}\",{members}}}\n\n")
}

/// An event of Responses. vLLM writes its name last.
fn numbered(name: &str, members: &str, number: usize) -> String {
    format!(
        "event: {name}\ndata: {{{members},\"sequence_number\":{number},\"type\":\"{name}\"}}\n\n"
    )
}

fn part(text: &str) -> String {
    format!(r#"{{"annotations":[],"text":"{text}","type":"output_text","logprobs":null}}"#)
}

fn item(text: &str) -> String {
    let part = part(text);
    format!(
        r#"{{"id":"msg_bench","content":[{part}],"role":"assistant","status":"completed","type":"message","phase":null}}"#
    )
}

/// A response of Responses; without a text it has only begun.
fn response(status: &str, text: &str, tokens: usize) -> String {
    let (output, usage) = match text {
        "" => (String::new(), "null".to_owned()),
        text => (
            item(text),
            format!(
                r#"{{"input_tokens":230,"input_tokens_details":{{"cached_tokens":0}},"output_tokens":{tokens},"output_tokens_details":{{"reasoning_tokens":0}},"total_tokens":{}}}"#,
                230 + tokens
            ),
        ),
    };
    format!(
        r#"{{"id":"resp_bench","created_at":1780000000,"incomplete_details":null,"instructions":null,"metadata":null,"model":"sim-model","object":"response","output":[{output}],"parallel_tool_calls":true,"temperature":1.0,"tool_choice":"none","tools":[],"top_p":1.0,"max_output_tokens":4096,"status":"{status}","usage":{usage}}}"#
    )
}
