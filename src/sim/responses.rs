//! OpenAI's Responses, member by member as vLLM writes them.
//!
//! Reasoning is `reasoning_text`, without summaries. An answer that was cut ends with `response.completed`, as
//! in vLLM 0.32; the response in it says `incomplete`.

use serde_json::{Map, Value, json};

use super::{
    asked::input_items,
    events::Events,
    generation::Generation,
    refusal,
    reply::{Finish, Part, PartKind, Step},
};

/// The whole response after the last token.
pub fn document(generation: &Generation<'_>, cached: u64, generated: u64, finish: Finish) -> Value {
    let parts = generation.reply.parts.iter().enumerate();
    let output = parts.map(|(number, part)| item(generation, number, Some(part.text()))).collect();
    finished(generation, output, cached, generated, finish)
}

/// The answer of `/v1/responses/input_tokens`.
pub fn counted(generation: &Generation<'_>) -> Value {
    json!({"object": "response.input_tokens", "input_tokens": generation.prompt_tokens()})
}

/// Remembers a response, if it is to be stored.
pub fn store(generation: &Generation<'_>, response: &Value) {
    if generation.body["store"] != false {
        let items = input_items(&generation.body["input"]);
        let mut responses = crate::base::lock(&generation.call.shared.responses);
        let bytes = generation.asked.prompt.len();
        responses.keep(response.clone(), &generation.previous, items, bytes);
    }
}

/// A response that is not complete.
pub fn begun(generation: &Generation<'_>, status: &str) -> Value {
    response(generation, status, Vec::new(), Value::Null)
}

fn finished(
    generation: &Generation<'_>,
    output: Vec<Value>,
    cached: u64,
    generated: u64,
    finish: Finish,
) -> Value {
    let status = match finish {
        Finish::Stop | Finish::Calls => "completed",
        Finish::Length => "incomplete",
        Finish::Abort => "cancelled",
    };
    response(generation, status, output, usage(generation, cached, generated))
}

fn response(generation: &Generation<'_>, status: &str, output: Vec<Value>, usage: Value) -> Value {
    let body = generation.body;
    let or = |name: &str, default: Value| match &body[name] {
        Value::Null => default,
        given => given.clone(),
    };
    let choice = if generation.asked.tools.is_empty() { "none" } else { "auto" };
    let incomplete = match status {
        "incomplete" => json!({"reason": "max_output_tokens"}),
        _ => Value::Null,
    };
    json!({
        "id": generation.id, "created_at": generation.created, "incomplete_details": incomplete,
        "instructions": body["instructions"], "metadata": body["metadata"], "model": generation.model(),
        "object": "response", "output": output,
        "parallel_tool_calls": or("parallel_tool_calls", true.into()),
        "temperature": or("temperature", json!(1.0)), "tool_choice": or("tool_choice", choice.into()),
        "tools": or("tools", json!([])), "top_p": or("top_p", json!(1.0)),
        "background": or("background", false.into()), "max_output_tokens": body["max_output_tokens"],
        "max_tool_calls": body["max_tool_calls"], "previous_response_id": body["previous_response_id"],
        "prompt": body["prompt"], "reasoning": body["reasoning"],
        "service_tier": or("service_tier", "auto".into()), "status": status, "text": body["text"],
        "top_logprobs": body["top_logprobs"], "truncation": or("truncation", "disabled".into()),
        "usage": usage, "user": body["user"], "presence_penalty": 0.0, "frequency_penalty": 0.0,
        "kv_transfer_params": null, "ec_transfer_params": null, "input_messages": null,
        "output_messages": null,
    })
}

fn usage(generation: &Generation<'_>, cached: u64, generated: u64) -> Value {
    let prompt = generation.prompt_tokens();
    json!({
        "input_tokens": generation.count(prompt),
        "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": 0,
                                 "input_tokens_per_turn": [], "cached_tokens_per_turn": []},
        "output_tokens": generation.count(generated),
        "output_tokens_details": {"reasoning_tokens": generation.reasoning_tokens(), "tool_output_tokens": 0,
                                  "output_tokens_per_turn": [], "tool_output_tokens_per_turn": []},
        "total_tokens": generation.count(prompt + generated),
    })
}

/// The item of a part: begun without a text, complete with it.
fn item(generation: &Generation<'_>, number: usize, text: Option<String>) -> Value {
    let part = &generation.reply.parts[number];
    let status = if text.is_some() { "completed" } else { "in_progress" };
    let id = item_id(generation, number, part);
    match &part.kind {
        PartKind::Text => {
            let content: Vec<Value> =
                text.map(|text| output_text(&text, Value::Null)).into_iter().collect();
            json!({"id": id, "content": content, "role": "assistant", "status": status, "type": "message",
                   "phase": null})
        }
        PartKind::Reasoning => {
            let content = text.map(|text| json!([reasoning_text(&text)]));
            json!({"id": id, "summary": [], "type": "reasoning", "content": content,
                   "encrypted_content": null, "status": status})
        }
        PartKind::Call { name, number } => {
            json!({"arguments": text.unwrap_or_default(), "call_id": generation.part_id("call_", *number),
                   "name": name, "type": "function_call", "id": id, "namespace": null, "status": status})
        }
    }
}

fn item_id(generation: &Generation<'_>, number: usize, part: &Part) -> String {
    let kind = match part.kind {
        PartKind::Text => "msg_",
        PartKind::Reasoning => "rs_",
        PartKind::Call { .. } => "fc_",
    };
    generation.part_id(kind, number)
}

fn output_text(text: &str, logprobs: Value) -> Value {
    json!({"annotations": [], "text": text, "type": "output_text", "logprobs": logprobs})
}

fn reasoning_text(text: &str) -> Value {
    json!({"text": text, "type": "reasoning_text"})
}

/// The events of a stream.
pub struct ResponsesEvents<'a> {
    generation: &'a Generation<'a>,
    cached: u64,
    /// The number of the next event.
    sequence: u64,
    /// The part whose item is open, and its text so far.
    open: Option<(usize, String)>,
    /// The items that are complete.
    output: Vec<Value>,
    finish: Option<Finish>,
}

impl<'a> ResponsesEvents<'a> {
    pub fn new(generation: &'a Generation<'a>) -> Self {
        Self { generation, cached: 0, sequence: 0, open: None, output: Vec::new(), finish: None }
    }

    fn part(&self, number: usize) -> &'a Part {
        &self.generation.reply.parts[number]
    }

    /// One event. vLLM writes the members in alphabetical order, except for the name of a function.
    fn event(&mut self, kind: &str, members: Value) -> String {
        let mut data = match members {
            Value::Object(members) => members,
            _ => Map::new(),
        };
        data.insert("sequence_number".to_owned(), self.sequence.into());
        data.insert("type".to_owned(), kind.into());
        self.sequence += 1;
        data.sort_keys();
        if let Some(name) = data.shift_remove("name") {
            data.insert("name".to_owned(), name);
        }
        format!("event: {kind}\ndata: {}\n\n", Value::Object(data))
    }

    /// An event within the open item, with where it is.
    fn inner(&mut self, kind: &str, number: usize, mut members: Value) -> String {
        let part = self.part(number);
        members["item_id"] = item_id(self.generation, number, part).into();
        members["output_index"] = self.output.len().into();
        if !matches!(part.kind, PartKind::Call { .. }) {
            members["content_index"] = 0.into();
        }
        self.event(kind, members)
    }

    /// Begins the item of a part, unless it is open.
    fn start(&mut self, number: usize, events: &mut Vec<String>) {
        if self.open.as_ref().is_some_and(|(open, _)| *open == number) {
            return;
        }
        self.stop(events);
        self.open = Some((number, String::new()));
        let item = item(self.generation, number, None);
        let added = json!({"item": item, "output_index": self.output.len()});
        events.push(self.event("response.output_item.added", added));
        let part = match self.part(number).kind {
            PartKind::Text => output_text("", json!([])),
            PartKind::Reasoning => reasoning_text(""),
            PartKind::Call { .. } => return,
        };
        events.push(self.inner("response.content_part.added", number, json!({"part": part})));
    }

    /// Ends the open item.
    fn stop(&mut self, events: &mut Vec<String>) {
        let Some((number, text)) = self.open.take() else { return };
        let (kind, done, part) = match &self.part(number).kind {
            PartKind::Text => (
                "response.output_text.done",
                json!({"text": text, "logprobs": []}),
                Some(output_text(&text, Value::Null)),
            ),
            PartKind::Reasoning => {
                ("response.reasoning_text.done", json!({"text": text}), Some(reasoning_text(&text)))
            }
            PartKind::Call { name, .. } => (
                "response.function_call_arguments.done",
                json!({"arguments": text, "name": name}),
                None,
            ),
        };
        events.push(self.inner(kind, number, done));
        if let Some(part) = part {
            events.push(self.inner("response.content_part.done", number, json!({"part": part})));
        }
        let item = item(self.generation, number, Some(text));
        let done = json!({"item": item, "output_index": self.output.len()});
        events.push(self.event("response.output_item.done", done));
        self.output.push(item);
    }
}

impl Events for ResponsesEvents<'_> {
    fn begins_at_once(&self) -> bool {
        true
    }

    fn prefilled(&mut self, cached: u64) {
        self.cached = cached;
    }

    fn opening(&mut self) -> Vec<String> {
        let response = json!({"response": begun(self.generation, "in_progress")});
        ["response.created", "response.in_progress"]
            .map(|kind| self.event(kind, response.clone()))
            .into()
    }

    fn step(&mut self, step: Step<'_>, finish: Option<Finish>, _generated: u64) -> Vec<String> {
        let mut events = Vec::new();
        match step {
            Step::Name(number) => self.start(number, &mut events),
            // An empty text has no event.
            Step::Token(number, token) if !token.is_empty() => {
                self.start(number, &mut events);
                if let Some((_, text)) = &mut self.open {
                    text.push_str(token);
                }
                let (kind, delta) = match self.part(number).kind {
                    PartKind::Text => {
                        ("response.output_text.delta", json!({"delta": token, "logprobs": []}))
                    }
                    PartKind::Reasoning => {
                        ("response.reasoning_text.delta", json!({"delta": token}))
                    }
                    PartKind::Call { .. } => {
                        ("response.function_call_arguments.delta", json!({"delta": token}))
                    }
                };
                events.push(self.inner(kind, number, delta));
            }
            Step::Token(..) | Step::Eos => {}
        }
        self.finish = finish.or(self.finish);
        events
    }

    fn closing(&mut self, generated: u64) -> Vec<String> {
        let mut events = Vec::new();
        self.stop(&mut events);
        let output = std::mem::take(&mut self.output);
        let finish = self.finish.unwrap_or(Finish::Stop);
        let response = finished(self.generation, output, self.cached, generated, finish);
        store(self.generation, &response);
        events.push(self.event("response.completed", json!({"response": response})));
        events
    }

    fn error(&mut self) -> String {
        let mut response = begun(self.generation, "failed");
        response["error"] = json!({"code": "server_error", "message": refusal::DEAD});
        self.event("response.failed", json!({"response": response}))
    }
}
