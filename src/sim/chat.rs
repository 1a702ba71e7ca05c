//! Chat Completions and Completions, member by member as vLLM writes them.

use serde_json::{Value, json};

use super::{
    asked::ToolChoice,
    behaviour::Quirk,
    events::Events,
    generation::{FINGERPRINT, Generation},
    refusal,
    reply::{Finish, PartKind, Step},
};

/// The plain answer. The last two counts are of the prefix cache and of all choices.
pub fn document(generation: &Generation<'_>, cached: u64, generated: u64) -> Value {
    let prompt = generation.prompt_tokens();
    let mut body = json!({
        "id": generation.id,
        "object": if generation.chat { "chat.completion" } else { "text_completion" },
        "created": generation.created, "model": generation.model(),
        "choices": (0..generation.choices).map(|at| choice(generation, at)).collect::<Vec<_>>(),
        "service_tier": null, "system_fingerprint": FINGERPRINT,
        "usage": {"prompt_tokens": generation.count(prompt),
                  "total_tokens": generation.count(prompt + generated),
                  "completion_tokens": generation.count(generated),
                  "prompt_tokens_details": generation.prompt_details(cached),
                  "completion_tokens_details": null},
    });
    if let Some((name, value)) = generation.reasoning() {
        body["usage"][name] = value;
    }
    let nulls: &[&str] =
        if generation.chat { &["prompt_logprobs", "prompt_token_ids", "prompt_text"] } else { &[] };
    for null in nulls.iter().chain(&["kv_transfer_params", "ec_transfer_params", "metrics"]) {
        body[*null] = Value::Null;
    }
    body
}

/// The answer of `/tokenize`; the tokens are numbered.
pub fn counted(generation: &Generation<'_>) -> Value {
    let count = generation.prompt_tokens();
    let tokens: Vec<u64> = (1..=count).collect();
    json!({"count": count, "max_model_len": 32768, "tokens": tokens, "token_strs": null})
}

fn choice(generation: &Generation<'_>, index: u64) -> Value {
    let reply = &generation.reply;
    let text = reply.text_of(&PartKind::Text);
    let mut choice = if generation.chat {
        let calls = tool_calls(generation);
        let content = match (&text, &generation.asked.choice) {
            (Some(text), _) => Value::from(text.as_str()),
            (None, ToolChoice::Auto) if !calls.is_empty() => Value::Null,
            (None, _) => "".into(),
        };
        let mut message = json!({"role": "assistant", "content": content, "refusal": null,
            "annotations": null, "audio": null, "function_call": null});
        if !calls.is_empty() {
            message["tool_calls"] = calls.into();
        }
        message["reasoning"] = reply.text_of(&PartKind::Reasoning).into();
        json!({"index": index, "message": message})
    } else {
        json!({"index": index, "text": text.unwrap_or_default()})
    };
    choice["logprobs"] = Value::Null;
    choice["finish_reason"] = generation.finish_reason(generation.finish()).into();
    let nulls: &[&str] = if generation.chat {
        &["stop_reason", "token_ids", "routed_experts"]
    } else {
        &["stop_reason", "token_ids", "prompt_logprobs", "prompt_token_ids", "routed_experts"]
    };
    for null in nulls {
        choice[*null] = Value::Null;
    }
    choice
}

/// The complete tool calls.
fn tool_calls(generation: &Generation<'_>) -> Vec<Value> {
    let parts = generation.reply.parts.iter();
    let calls = parts.filter_map(|part| match &part.kind {
        PartKind::Call { name, number } => {
            Some(json!({"id": call_id(generation, *number), "type": "function",
                        "function": {"name": name, "arguments": part.text()}}))
        }
        _ => None,
    });
    calls.collect()
}

/// The id of a call in Chat and in Messages.
pub fn call_id(generation: &Generation<'_>, number: usize) -> String {
    generation.part_id("chatcmpl-tool-", number)
}

/// The events of a stream.
pub struct ChatEvents<'a> {
    generation: &'a Generation<'a>,
    cached: u64,
}

impl<'a> ChatEvents<'a> {
    pub fn new(generation: &'a Generation<'a>) -> Self {
        Self { generation, cached: 0 }
    }

    fn has(&self, quirk: Quirk) -> bool {
        self.generation.call.setting.behaviour.has(quirk)
    }

    /// The delta of a token, as JSON; `None` if it has no event of its own.
    fn delta(&self, step: Step<'_>, ends: bool) -> Option<String> {
        let reply = &self.generation.reply;
        let kind = match step {
            Step::Name(part) | Step::Token(part, _) => Some(&reply.parts[part].kind),
            Step::Eos => None,
        };
        let called = reply.parts.iter().any(|part| matches!(part.kind, PartKind::Call { .. }));
        if self.generation.chat && called && self.has(Quirk::WholeCall) {
            match kind {
                _ if ends => return Some(self.whole_calls()),
                Some(PartKind::Call { .. }) => return None,
                _ => {}
            }
        }
        Some(match (step, kind) {
            (Step::Token(_, token), _) if !self.generation.chat => Value::from(token).to_string(),
            (Step::Name(_), Some(PartKind::Call { name, number })) => {
                self.call_start(name, *number)
            }
            (Step::Token(part, token), Some(PartKind::Call { name, number })) => {
                // The tokens are slices of one list, so that the last one is known by its address.
                let last = reply.parts[part].tokens.last();
                let last = last.is_some_and(|last| std::ptr::eq(last.as_str(), token));
                let name = (last && self.has(Quirk::LateName)).then_some(name.as_str());
                self.arguments(token, name, *number)
            }
            (Step::Token(_, token), Some(PartKind::Reasoning)) => {
                format!(r#"{{"reasoning":{}}}"#, Value::from(token))
            }
            (Step::Token(_, token), _) => format!(r#"{{"content":{}}}"#, Value::from(token)),
            _ if self.generation.chat => "{}".to_owned(),
            _ => r#""""#.to_owned(),
        })
    }

    fn call_start(&self, name: &str, number: usize) -> String {
        let mut call = json!({"id": call_id(self.generation, number), "type": "function"});
        self.set_index(&mut call, number);
        call["function"] = if self.has(Quirk::LateName) {
            json!({"arguments": ""})
        } else {
            json!({"name": name})
        };
        json!({"content": null, "tool_calls": [call]}).to_string()
    }

    fn arguments(&self, token: &str, name: Option<&str>, number: usize) -> String {
        let mut call = json!({});
        self.set_index(&mut call, number);
        call["function"] = match name {
            Some(name) => json!({"name": name, "arguments": token}),
            None => json!({"arguments": token}),
        };
        json!({"content": null, "tool_calls": [call]}).to_string()
    }

    fn whole_calls(&self) -> String {
        let mut calls = tool_calls(self.generation);
        for (number, call) in calls.iter_mut().enumerate() {
            self.set_index(call, number);
        }
        json!({"content": null, "tool_calls": calls}).to_string()
    }

    fn set_index(&self, call: &mut Value, number: usize) {
        if !self.has(Quirk::NoIndex) {
            let number = if self.has(Quirk::ZeroIndex) { 0 } else { number };
            call["index"] = number.into();
        }
    }

    /// One event: everything except the choices is the same in all of them.
    fn event(&self, choices: &str, tail: &str, fingerprint: bool) -> String {
        let generation = self.generation;
        let object = if generation.chat { "chat.completion.chunk" } else { "text_completion" };
        let model = Value::from(generation.model());
        let fingerprint = if fingerprint {
            format!(r#","system_fingerprint":"{FINGERPRINT}""#)
        } else {
            String::new()
        };
        format!(
            "data: {{\"id\":\"{}\",\"object\":\"{object}\",\"created\":{},\"model\":{model},\"choices\":[{choices}]{tail}{fingerprint}}}\n\n",
            generation.id, generation.created
        )
    }

    fn choice(&self, index: u64, delta: &str, finish: Option<Finish>) -> String {
        let chat = self.generation.chat;
        let (reason, stop) = match finish {
            Some(finish) => {
                (format!("\"{}\"", self.generation.finish_reason(finish)), r#","stop_reason":null"#)
            }
            None => ("null".to_owned(), if chat { "" } else { r#","stop_reason":null"# }),
        };
        if chat {
            format!(
                r#"{{"index":{index},"delta":{delta},"logprobs":null,"finish_reason":{reason}{stop},"token_ids":null}}"#
            )
        } else {
            format!(
                r#"{{"index":{index},"text":{delta},"logprobs":null,"finish_reason":{reason}{stop},"prompt_token_ids":null,"token_ids":null}}"#
            )
        }
    }

    /// The usage of one choice so far, for requests that want it in every event.
    fn running_usage(&self, generated: u64) -> String {
        if self.generation.continuous {
            self.usage(generated, r#","completion_tokens_details":null"#)
        } else {
            String::new()
        }
    }

    /// The usage of all choices.
    fn final_usage(&self, generated: u64) -> String {
        let mut details = match self.generation.prompt_details(self.cached) {
            Value::Null => String::new(),
            details => format!(r#","prompt_tokens_details":{details}"#),
        };
        if let Some((name, value)) = self.generation.reasoning() {
            details.push_str(&format!(r#","{name}":{value}"#));
        }
        self.usage(generated * self.generation.choices, &details)
    }

    fn usage(&self, generated: u64, details: &str) -> String {
        let prompt = self.generation.prompt_tokens();
        let write = |count| self.generation.call.setting.behaviour.usage_numbers.write(count);
        format!(
            r#","usage":{{"prompt_tokens":{},"total_tokens":{},"completion_tokens":{}{details}}}"#,
            write(prompt),
            write(prompt + generated),
            write(generated)
        )
    }
}

impl Events for ChatEvents<'_> {
    fn prefilled(&mut self, cached: u64) {
        self.cached = cached;
    }

    fn opening(&mut self) -> Vec<String> {
        if !self.generation.chat {
            return Vec::new();
        }
        let mut tail = self.running_usage(0);
        tail.push_str(r#","prompt_token_ids":null,"prompt_text":null"#);
        let choice = |index| {
            format!(
                r#"{{"index":{index},"delta":{{"role":"assistant","content":""}},"logprobs":null,"finish_reason":null}}"#
            )
        };
        (0..self.generation.choices).map(|at| self.event(&choice(at), &tail, false)).collect()
    }

    fn step(&mut self, step: Step<'_>, finish: Option<Finish>, generated: u64) -> Vec<String> {
        let Some(delta) = self.delta(step, finish.is_some()) else {
            return Vec::new();
        };
        let in_finish = finish.is_some() && self.has(Quirk::UsageInFinish);
        let tail =
            if in_finish { self.final_usage(generated) } else { self.running_usage(generated) };
        // vLLM moves the fingerprint to the usage chunk when there is one.
        let fingerprint = finish.is_some() && (in_finish || !self.generation.include_usage);
        let event = |at| self.event(&self.choice(at, &delta, finish), &tail, fingerprint);
        (0..self.generation.choices).map(event).collect()
    }

    fn closing(&mut self, generated: u64) -> Vec<String> {
        if !self.generation.include_usage || self.has(Quirk::UsageInFinish) {
            return Vec::new();
        }
        vec![self.event("", &self.final_usage(generated), true)]
    }

    fn error(&mut self) -> String {
        format!("data: {}\n\n", refusal::dead())
    }

    fn end(&self) -> &'static str {
        if self.has(Quirk::NoDone) { "" } else { "data: [DONE]\n\n" }
    }
}
