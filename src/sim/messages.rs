//! Anthropic's Messages, member by member as vLLM writes them.
//!
//! vLLM writes them from its own Chat answers, which shows: the ids, `stop_reason` null after an abort, a
//! signature that is a random number, cached tokens only in the last usage.

use serde_json::{Value, json};

use super::{
    chat::call_id,
    events::Events,
    generation::Generation,
    refusal,
    reply::{Finish, PartKind, Step},
};

/// The plain answer. Members that would be null are absent.
pub fn document(generation: &Generation<'_>, cached: u64, generated: u64) -> Value {
    let parts = generation.reply.parts.iter().filter(|part| {
        // An empty text is no block.
        !part.tokens.is_empty() || matches!(part.kind, PartKind::Call { .. })
    });
    let content: Vec<Value> = parts
        .map(|part| match &part.kind {
            PartKind::Reasoning => {
                json!({"type": "thinking", "thinking": part.text(), "signature": signature(generation)})
            }
            PartKind::Text => json!({"type": "text", "text": part.text()}),
            PartKind::Call { name, number } => {
                // What was cut off is not JSON.
                let input: Value = serde_json::from_str(&part.text()).unwrap_or_else(|_| json!({}));
                json!({"type": "tool_use", "id": call_id(generation, *number), "name": name, "input": input})
            }
        })
        .collect();
    let mut body = json!({"id": generation.id, "type": "message", "role": "assistant", "content": content,
                          "model": generation.model()});
    if let Some(reason) = stop_reason(generation.finish()) {
        body["stop_reason"] = reason.into();
    }
    body["usage"] = usage(generation, cached, generated);
    body
}

/// The answer of `/v1/messages/count_tokens`.
pub fn counted(generation: &Generation<'_>) -> Value {
    let tokens = generation.prompt_tokens();
    json!({"input_tokens": tokens, "context_management": {"original_input_tokens": tokens}})
}

/// `None`: vLLM knows no word for it.
fn stop_reason(finish: Finish) -> Option<&'static str> {
    match finish {
        Finish::Stop => Some("end_turn"),
        Finish::Length => Some("max_tokens"),
        Finish::Calls => Some("tool_use"),
        Finish::Abort => None,
    }
}

/// In Anthropic's language `input_tokens` are without those that were cached.
fn usage(generation: &Generation<'_>, cached: u64, generated: u64) -> Value {
    let prompt = generation.prompt_tokens();
    let told = generation.call.setting.behaviour.prompt_tokens_details && cached > 0;
    let cached = if told { cached } else { 0 };
    let mut usage = json!({"input_tokens": generation.count(prompt.saturating_sub(cached)),
                           "output_tokens": generation.count(generated)});
    if told {
        usage["cache_read_input_tokens"] = generation.count(cached);
    }
    usage
}

fn signature(generation: &Generation<'_>) -> String {
    format!("{:032x}", xxhash_rust::xxh3::xxh3_128(generation.id.as_bytes()))
}

/// The events of a stream.
pub struct MessagesEvents<'a> {
    generation: &'a Generation<'a>,
    cached: u64,
    /// The part whose block is open.
    open: Option<usize>,
    /// Blocks that have ended: the index of the open one.
    index: u64,
    finish: Option<Finish>,
}

impl<'a> MessagesEvents<'a> {
    pub fn new(generation: &'a Generation<'a>) -> Self {
        Self { generation, cached: 0, open: None, index: 0, finish: None }
    }

    fn kind(&self, part: usize) -> &'a PartKind {
        &self.generation.reply.parts[part].kind
    }

    /// Ends the open block.
    fn stop(&mut self, events: &mut Vec<String>) {
        let Some(part) = self.open.take() else { return };
        if *self.kind(part) == PartKind::Reasoning {
            let signature = signature(self.generation);
            events.push(self.delta(json!({"type": "signature_delta", "signature": signature})));
        }
        events.push(event(json!({"type": "content_block_stop", "index": self.index})));
        self.index += 1;
    }

    /// Begins the block of a part, unless it is open.
    fn start(&mut self, part: usize, events: &mut Vec<String>) {
        if self.open == Some(part) {
            return;
        }
        self.stop(events);
        let block = match self.kind(part) {
            PartKind::Reasoning => json!({"type": "thinking", "thinking": ""}),
            PartKind::Text => json!({"type": "text", "text": ""}),
            PartKind::Call { name, number } => {
                json!({"type": "tool_use", "id": call_id(self.generation, *number), "name": name, "input": {}})
            }
        };
        self.open = Some(part);
        let start =
            json!({"type": "content_block_start", "content_block": block, "index": self.index});
        events.push(event(start));
    }

    fn delta(&self, delta: Value) -> String {
        event(json!({"type": "content_block_delta", "delta": delta, "index": self.index}))
    }
}

impl Events for MessagesEvents<'_> {
    fn prefilled(&mut self, cached: u64) {
        self.cached = cached;
    }

    fn opening(&mut self) -> Vec<String> {
        let generation = self.generation;
        let message = json!({"id": generation.id, "type": "message", "role": "assistant", "content": [],
            "model": generation.model(), "stop_reason": null, "stop_sequence": null,
            "usage": usage(generation, 0, 0)});
        vec![event(json!({"type": "message_start", "message": message}))]
    }

    fn step(&mut self, step: Step<'_>, finish: Option<Finish>, _generated: u64) -> Vec<String> {
        let mut events = Vec::new();
        match step {
            Step::Name(part) => self.start(part, &mut events),
            // An empty text has no event.
            Step::Token(part, token) if !token.is_empty() => {
                self.start(part, &mut events);
                events.push(self.delta(match self.kind(part) {
                    PartKind::Reasoning => json!({"type": "thinking_delta", "thinking": token}),
                    PartKind::Text => json!({"type": "text_delta", "text": token}),
                    PartKind::Call { .. } => {
                        json!({"type": "input_json_delta", "partial_json": token})
                    }
                }));
            }
            Step::Token(..) | Step::Eos => {}
        }
        self.finish = finish.or(self.finish);
        events
    }

    fn closing(&mut self, generated: u64) -> Vec<String> {
        let mut events = Vec::new();
        self.stop(&mut events);
        let reason = stop_reason(self.finish.unwrap_or(Finish::Stop));
        let usage = usage(self.generation, self.cached, generated);
        events.push(event(json!({"type": "message_delta",
            "delta": {"stop_reason": reason, "stop_sequence": null}, "usage": usage})));
        events.push(event(json!({"type": "message_stop"})));
        events
    }

    fn error(&mut self) -> String {
        let error = json!({"type": "internal_error", "message": refusal::DEAD});
        event(json!({"type": "error", "error": error}))
    }
}

fn event(data: Value) -> String {
    format!("event: {}\ndata: {data}\n\n", data["type"].as_str().unwrap_or_default())
}
