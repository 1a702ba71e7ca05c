//! What the simulated model can be made to say, in every language, plain and streamed: a stream says what the
//! plain answer says, in the order that clients check.

use llmproxy::sim::{Sim, ToolUse};
use serde_json::{Value, json};

use crate::support::{Client, sim_with};

pub const PATHS: [&str; 3] = ["/v1/chat/completions", "/v1/messages", "/v1/responses"];

/// What a request is to bring about.
#[derive(Clone, Debug, Default)]
struct Wish {
    text: &'static str,
    /// The result of a call that the model has made.
    result: Option<&'static str>,
    limit: Option<u64>,
    schema: Option<Value>,
}

impl Wish {
    /// The request at a path.
    fn body(&self, path: &str, stream: bool) -> Value {
        let parameters = json!({"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer", "minimum": 2}}});
        let mut body = json!({"model": "sim-model", "stream": stream});
        let user = json!({"role": "user", "content": self.text});
        let names = ["get_weather", "get_time"];
        match path {
            "/v1/chat/completions" => {
                body["messages"] = json!([user]);
                body["tools"] = names
                    .map(|name| json!({"type": "function", "function": {"name": name, "parameters": parameters}}))
                    .into_iter()
                    .collect();
                if let Some(result) = self.result {
                    let call = json!({"id": "c1", "type": "function", "function": {"name": "get_time", "arguments": "{}"}});
                    body["messages"] = json!([user, {"role": "assistant", "content": null, "tool_calls": [call]},
                        {"role": "tool", "tool_call_id": "c1", "content": result}]);
                }
                if stream {
                    body["stream_options"] = json!({"include_usage": true});
                }
                if let Some(schema) = &self.schema {
                    body["response_format"] = json!({"type": "json_schema", "json_schema": {"name": "n", "schema": schema}});
                }
                if let Some(limit) = self.limit {
                    body["max_tokens"] = limit.into();
                }
            }
            "/v1/messages" => {
                body["messages"] = json!([user]);
                body["tools"] = names
                    .map(|name| json!({"name": name, "input_schema": parameters}))
                    .into_iter()
                    .collect();
                if let Some(result) = self.result {
                    body["messages"] = json!([user,
                        {"role": "assistant", "content": [{"type": "tool_use", "id": "c1", "name": "get_time", "input": {}}]},
                        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c1", "content": result}]}]);
                }
                if let Some(schema) = &self.schema {
                    body["output_config"] =
                        json!({"format": {"type": "json_schema", "schema": schema}});
                }
                body["max_tokens"] = self.limit.unwrap_or(4096).into();
            }
            _ => {
                body["input"] = json!([user]);
                body["tools"] = names
                    .map(|name| json!({"type": "function", "name": name, "parameters": parameters}))
                    .into_iter()
                    .collect();
                if let Some(result) = self.result {
                    body["input"] = json!([user,
                        {"type": "function_call", "call_id": "c1", "name": "get_time", "arguments": "{}"},
                        {"type": "function_call_output", "call_id": "c1", "output": result}]);
                }
                if let Some(schema) = &self.schema {
                    body["text"] =
                        json!({"format": {"type": "json_schema", "name": "n", "schema": schema}});
                }
                if let Some(limit) = self.limit {
                    body["max_output_tokens"] = limit.into();
                }
            }
        }
        body
    }
}

/// An answer, whatever language it is in.
#[derive(Debug, Default, PartialEq)]
struct Said {
    reasoning: String,
    text: String,
    /// Names and arguments.
    calls: Vec<(String, String)>,
    /// `stop`, `length` or `calls`.
    end: String,
    /// Tokens of the prompt and of the answer.
    usage: (u64, u64),
}

/// The words of all languages for how an answer ends, as one.
fn end(word: &Value) -> String {
    match word.as_str().unwrap() {
        "stop" | "end_turn" => "stop",
        "length" | "max_tokens" => "length",
        "tool_calls" | "tool_use" => "calls",
        other => panic!("{other}"),
    }
    .to_owned()
}

fn string(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// What a plain answer says.
fn plain(path: &str, answer: &Value) -> Said {
    let mut said = Said::default();
    match path {
        "/v1/chat/completions" => {
            let message = &answer["choices"][0]["message"];
            (said.reasoning, said.text) =
                (string(&message["reasoning"]), string(&message["content"]));
            for call in message["tool_calls"].as_array().into_iter().flatten() {
                said.calls.push((
                    string(&call["function"]["name"]),
                    string(&call["function"]["arguments"]),
                ));
            }
            said.end = end(&answer["choices"][0]["finish_reason"]);
            let usage = &answer["usage"];
            said.usage = (
                usage["prompt_tokens"].as_u64().unwrap(),
                usage["completion_tokens"].as_u64().unwrap(),
            );
        }
        "/v1/messages" => {
            for block in answer["content"].as_array().unwrap() {
                match block["type"].as_str().unwrap() {
                    "thinking" => said.reasoning += block["thinking"].as_str().unwrap(),
                    "text" => said.text += block["text"].as_str().unwrap(),
                    _ => said.calls.push((string(&block["name"]), block["input"].to_string())),
                }
            }
            said.end = end(&answer["stop_reason"]);
            let usage = &answer["usage"];
            said.usage =
                (usage["input_tokens"].as_u64().unwrap(), usage["output_tokens"].as_u64().unwrap());
        }
        _ => {
            for item in answer["output"].as_array().unwrap() {
                match item["type"].as_str().unwrap() {
                    "reasoning" => said.reasoning += item["content"][0]["text"].as_str().unwrap(),
                    "message" => said.text += item["content"][0]["text"].as_str().unwrap(),
                    _ => said.calls.push((string(&item["name"]), string(&item["arguments"]))),
                }
            }
            let status = answer["status"].as_str().unwrap();
            said.end = match status {
                "incomplete" => "length",
                _ if said.calls.is_empty() => "stop",
                _ => "calls",
            }
            .to_owned();
            let usage = &answer["usage"];
            said.usage =
                (usage["input_tokens"].as_u64().unwrap(), usage["output_tokens"].as_u64().unwrap());
        }
    }
    said
}

/// The data of the events of a stream.
pub fn events(stream: &str) -> Vec<Value> {
    let data = stream.lines().filter_map(|line| line.strip_prefix("data: "));
    data.filter(|data| *data != "[DONE]").map(|data| serde_json::from_str(data).unwrap()).collect()
}

/// The plain answer that a stream of Chat amounts to.
fn fold_chat(stream: &str) -> Value {
    assert!(stream.ends_with("data: [DONE]\n\n"));
    let mut message = json!({"content": "", "reasoning": ""});
    let mut calls: Vec<Value> = Vec::new();
    let (mut finish, mut usage) = (Value::Null, Value::Null);
    for event in events(stream) {
        usage = event["usage"].clone();
        let choice = &event["choices"][0];
        for name in ["content", "reasoning"] {
            let more = string(&message[name]) + &string(&choice["delta"][name]);
            message[name] = more.into();
        }
        for delta in choice["delta"]["tool_calls"].as_array().into_iter().flatten() {
            let at = delta["index"].as_u64().unwrap() as usize;
            if at == calls.len() {
                assert!(delta["id"].is_string() && delta["function"]["name"].is_string());
                calls.push(
                    json!({"function": {"name": delta["function"]["name"], "arguments": ""}}),
                );
            } else {
                assert!(at + 1 == calls.len() && delta["id"].is_null(), "one after the other");
            }
            let more = string(&calls[at]["function"]["arguments"])
                + &string(&delta["function"]["arguments"]);
            calls[at]["function"]["arguments"] = more.into();
        }
        if choice["finish_reason"].is_string() {
            assert!(finish.is_null(), "one end");
            finish = choice["finish_reason"].clone();
        }
    }
    message["tool_calls"] = calls.into();
    json!({"choices": [{"message": message, "finish_reason": finish}], "usage": usage})
}

/// The plain answer that a stream of Messages amounts to.
fn fold_messages(stream: &str) -> Value {
    let events = events(stream);
    let named: Vec<&str> = stream.lines().filter_map(|line| line.strip_prefix("event: ")).collect();
    let typed: Vec<&str> = events.iter().map(|event| event["type"].as_str().unwrap()).collect();
    assert_eq!(named, typed, "names and types are the same");
    assert_eq!((typed[0], *typed.last().unwrap()), ("message_start", "message_stop"));
    let (mut answer, mut open, mut arguments) = (Value::Null, false, String::new());
    let mut blocks: Vec<Value> = Vec::new();
    for event in &events {
        if let Some(index) = event["index"].as_u64() {
            let started = blocks.len() as u64 - u64::from(open);
            assert_eq!(index, started, "dense, and one block at a time: {event}");
        }
        let delta = &event["delta"];
        match event["type"].as_str().unwrap() {
            "message_start" => answer = event["message"].clone(),
            "content_block_start" => {
                assert!(!open);
                open = true;
                arguments.clear();
                blocks.push(event["content_block"].clone());
            }
            "content_block_delta" => {
                let block = blocks.last_mut().unwrap();
                let (kind, name) = match delta["type"].as_str().unwrap() {
                    "text_delta" => ("text", "text"),
                    "thinking_delta" => ("thinking", "thinking"),
                    "signature_delta" => ("thinking", "signature"),
                    _ => ("tool_use", "partial_json"),
                };
                assert_eq!(block["type"], kind);
                if name == "partial_json" {
                    arguments += delta[name].as_str().unwrap();
                } else {
                    let more = string(&block[name]) + delta[name].as_str().unwrap();
                    block[name] = more.into();
                }
            }
            "content_block_stop" => {
                assert!(open);
                open = false;
                let block = blocks.last_mut().unwrap();
                if block["type"] == "tool_use" {
                    block["input"] = serde_json::from_str(&arguments).unwrap_or_else(|_| json!({}));
                }
                assert_eq!(block["type"] == "thinking", block["signature"].is_string());
            }
            "message_delta" => {
                assert!(!open);
                answer["stop_reason"] = delta["stop_reason"].clone();
                answer["usage"] = event["usage"].clone();
            }
            "message_stop" => {}
            other => panic!("{other}"),
        }
    }
    answer["content"] = blocks.into();
    answer
}

/// The response at the end of a stream of Responses, after the checks that OpenAI's SDK makes: numbers, places and
/// identities of events and items; and that deltas and whole texts are the same.
fn fold_responses(stream: &str) -> Value {
    let events = events(stream);
    assert_eq!(events[0]["type"], "response.created");
    assert_eq!(events[1]["type"], "response.in_progress");
    let id = &events[0]["response"]["id"];
    let mut done: Vec<Value> = Vec::new();
    let (mut open, mut text) = (Value::Null, String::new());
    for (number, event) in events.iter().enumerate() {
        let kind = event["type"].as_str().unwrap();
        assert_eq!(event["sequence_number"], number, "{event}");
        assert!(event["response"].is_null() || event["response"]["id"] == *id, "{event}");
        if !event["output_index"].is_null() {
            assert_eq!(event["output_index"], done.len(), "{event}");
        }
        if !event["item_id"].is_null() {
            assert_eq!(event["item_id"], open["id"], "{event}");
        }
        match kind {
            "response.output_item.added" => {
                assert!(open.is_null());
                assert_eq!(event["item"]["status"], "in_progress");
                open = event["item"].clone();
                text.clear();
            }
            "response.output_item.done" => {
                let item = &event["item"];
                assert_eq!((&item["id"], &item["type"]), (&open["id"], &open["type"]));
                let whole = if item["arguments"].is_null() {
                    &item["content"][0]["text"]
                } else {
                    &item["arguments"]
                };
                assert_eq!(whole, text.as_str(), "{event}");
                done.push(item.clone());
                open = Value::Null;
            }
            _ if kind.ends_with(".delta") => text += event["delta"].as_str().unwrap(),
            _ if kind.ends_with("text.done") => assert_eq!(event["text"], text.as_str()),
            _ if kind.ends_with("arguments.done") => assert_eq!(event["arguments"], text.as_str()),
            "response.content_part.done" => assert_eq!(event["part"]["text"], text.as_str()),
            "response.completed" => assert_eq!(number + 1, events.len(), "it is the last"),
            _ => {}
        }
    }
    assert!(open.is_null());
    let last = events.last().unwrap()["response"].clone();
    assert_eq!(last["output"], Value::Array(done));
    last
}

/// What a request brings about, at a path: the same plain and streamed.
async fn said(sim: &Sim, path: &str, wish: &Wish) -> Said {
    let mut client = Client::connect(sim.address).await;
    let answer = client.ask(path, wish.body(path, false).to_string()).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let whole = plain(path, &answer.json());
    let answer = client.ask(path, wish.body(path, true).to_string()).await;
    assert!(answer.whole);
    let folded = match path {
        "/v1/chat/completions" => fold_chat(answer.text()),
        "/v1/messages" => fold_messages(answer.text()),
        _ => fold_responses(answer.text()),
    };
    let streamed = plain(path, &folded);
    assert_eq!(streamed, whole, "{path} {wish:?}: a stream says the same");
    whole
}

async fn polite() -> Sim {
    sim_with(|b| (b.tool_use, b.tokens) = (ToolUse::Asked, 3)).await
}

#[tokio::test]
async fn reasoning_comes_before_the_answer() {
    let sim = polite().await;
    for path in PATHS {
        let wish = Wish { text: "Think about it.", ..Wish::default() };
        let found = said(&sim, path, &wish).await;
        assert!(found.reasoning.starts_with("The user wants me to think."), "{path} {found:?}");
        assert_eq!((found.text.as_str(), found.end.as_str()), ("Hello! I", "stop"), "{path}");
        let cut = said(&sim, path, &Wish { limit: Some(4), ..wish }).await;
        assert!(cut.text.is_empty() && !cut.reasoning.is_empty(), "{path} {cut:?}");
        assert_eq!((cut.end.as_str(), cut.usage.1), ("length", 4), "{path}");
    }
    sim.change(|b| b.reasoning = true);
    for path in PATHS {
        let found = said(&sim, path, &Wish { text: "Hello", ..Wish::default() }).await;
        assert!(!found.reasoning.is_empty(), "{path}");
    }
}

#[tokio::test]
async fn tools_are_called_as_the_user_says_and_their_results_are_repeated() {
    let sim = polite().await;
    let arguments = json!({"city": "Paris", "days": 2});
    for path in PATHS {
        let none = said(&sim, path, &Wish { text: "Hello", ..Wish::default() }).await;
        assert!(none.calls.is_empty() && none.end == "stop", "{path} {none:?}");
        let wish = Wish { text: "think, call get_time and call get_weather", ..Wish::default() };
        let both = said(&sim, path, &wish).await;
        let names: Vec<&str> = both.calls.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(
            (names, both.end.as_str()),
            (vec!["get_time", "get_weather"], "calls"),
            "{path}"
        );
        assert!(both.text.is_empty() && !both.reasoning.is_empty(), "{path}");
        for (_, found) in &both.calls {
            assert_eq!(serde_json::from_str::<Value>(found).unwrap(), arguments, "{path}");
        }
        let after = said(&sim, path, &Wish { result: Some("12C, \"windy\""), ..wish }).await;
        assert_eq!(after.text, "The tool said: 12C, \"windy\"", "{path}");
        assert!(after.calls.is_empty() && after.end == "stop", "{path}");
    }
    sim.change(|b| b.tool_use = ToolUse::Always);
    for path in PATHS {
        let first = said(&sim, path, &Wish { text: "Hello", ..Wish::default() }).await;
        assert_eq!(first.calls[0].0, "get_weather", "{path}");
        let cut =
            said(&sim, path, &Wish { text: "Hello", limit: Some(6), ..Wish::default() }).await;
        assert_eq!((cut.end.as_str(), cut.usage.1), ("length", 6), "{path} {cut:?}");
    }
}

#[tokio::test]
async fn structured_output_is_an_instance_of_the_schema() {
    let sim = polite().await;
    let schema = json!({"type": "object", "required": ["a", "b"], "additionalProperties": false,
        "properties": {"a": {"enum": ["x", "yy"]}, "b": {"type": "array", "minItems": 1, "items": {"type": "number"}},
                       "c": {"type": "string"}}});
    for path in PATHS {
        let wish = Wish { text: "Hello", schema: Some(schema.clone()), ..Wish::default() };
        let found = said(&sim, path, &wish).await;
        let value: Value = serde_json::from_str(&found.text).unwrap();
        assert_eq!(value, json!({"a": "x", "b": [0.0]}), "{path}");
        let after = said(&sim, path, &Wish { result: Some("12C"), ..wish }).await;
        assert_eq!(serde_json::from_str::<Value>(&after.text).unwrap(), value, "{path}");
    }
}

#[tokio::test]
async fn any_limit_gives_the_beginning_of_the_same_answer() {
    let sim = polite().await;
    for path in PATHS {
        for text in ["Hello", "think", "think, call get_time, call get_weather"] {
            let whole = said(&sim, path, &Wish { text, ..Wish::default() }).await;
            for limit in 1..whole.usage.1 + 3 {
                let cut =
                    said(&sim, path, &Wish { text, limit: Some(limit), ..Wish::default() }).await;
                assert_eq!(cut.usage.1, limit.min(whole.usage.1), "{path} {text} {limit}");
                assert!(whole.text.starts_with(&cut.text), "{path} {text} {limit}");
                assert!(whole.reasoning.starts_with(&cut.reasoning), "{path} {text} {limit}");
                assert!(cut.calls.len() <= whole.calls.len());
                if cut.end != "length" {
                    assert_eq!(cut, whole, "{path} {text} {limit}");
                }
            }
        }
    }
}
