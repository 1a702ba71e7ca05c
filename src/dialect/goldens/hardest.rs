//! The hardest cases of translation, each by its number, in every pair of languages that it touches.
//!
//! | case | what | test (in the folder of this file, if no other is named) |
//! |---|---|---|
//! | 1 | reasoning while a text is open | `case_1_reasoning_behind_a_text_opens_a_block_of_its_own` |
//! | 2 | a repeated beginning | `case_2_a_beginning_that_is_repeated_is_one` |
//! | 3 | indexes of blocks | `case_3_blocks_are_numbered_over_all_kinds` |
//! | 4 | an empty answer, or reasoning alone | `case_4_an_answer_without_text_has_an_empty_one` |
//! | 5 | `response.incomplete` | `case_5_an_incomplete_response_has_a_reason_and_an_end` |
//! | 6 | a call without arguments | `case_6_a_call_without_arguments_has_an_empty_object` |
//! | 7 | arguments of two calls alternate | `case_7_arguments_that_alternate_are_two_whole_calls` |
//! | 8 | one call in two places | Chat's `case_8_a_call_that_stands_in_the_content_and_in_the_list_is_one_call` |
//! | 9, 10 | results of parallel calls, and what stands between them | `cases_9_and_10_results_stand_together_in_the_order_of_their_calls` |
//! | 11 | a call without a result, a result without a call | `case_11_a_missing_result_is_said_and_a_result_of_nothing_is_refused` |
//! | 12 | an empty result | `case_12_an_empty_result_stays_empty` |
//! | 13 | no index | Chat's `case_13_calls_without_an_index_are_matched_by_id_and_order` |
//! | 14 | the index 0 everywhere | Chat's `case_14_each_new_id_is_a_new_call_although_all_have_index_0` |
//! | 15 | the first call has the index 1 | `case_15_calls_are_numbered_from_nothing` |
//! | 16 | a late name | Chat's `case_16_a_name_that_comes_late_or_once_more` |
//! | 17 | all in one chunk | `case_17_a_call_and_its_end_in_one_chunk` |
//! | 18 | `stop` although calls were made | `case_18_a_call_is_the_reason_whatever_the_backend_says` |
//! | 19 | a call that a limit has cut | `case_19_a_call_that_was_cut_cannot_be_run` |
//! | 20 | names that a backend refuses | `case_20_names_are_changed_for_the_backend_and_back` |
//! | 21 | the same id in every turn | `case_21_an_id_of_every_turn_is_made_unique_where_it_has_to_be` |
//! | 22 | a property named `type` | `case_22_a_property_named_type_is_a_property` |
//! | 23 | Codex' `apply_patch` | `case_23_a_custom_tool_comes_back_as_itself` |
//! | 24 | signatures of another vendor | `case_24_a_signature_goes_to_its_issuer_alone` |
//! | 25 | reasoning without a signature | `case_25_reasoning_without_a_signature_is_not_sent_to_messages` |
//! | 26 | `reasoning_content` on each call | Chat's `case_26_reasoning_goes_back_in_the_field_that_the_server_wants` |
//! | 27 | reasoning as speech | `case_27_reasoning_is_never_speech` |
//! | 30 | a prefix that changes | `translation_is_append_only` of the properties, Chat's `case_30_...` |
//! | 31 | a text that was not announced | `case_31_what_was_not_announced_is_announced` |
//! | 32 | a break while Codex reads | `case_32_a_break_has_a_code_for_codex` |
//! | 33 | `previous_response_id` | `case_33_a_reference_to_a_store_is_refused` |
//! | 34 | a message between two calls | `case_34_calls_of_one_turn_stand_together` |
//! | 35 | tools that the model refuses in Chat | `tests/it/languages/refusals.rs`: `case_35_...` |
//! | 36 | a probe with `max_tokens: 1` | `case_36_a_limit_is_raised_to_the_vendors_floor` |
//! | 40 | an error in a good status | Chat's `case_40_...`, `tests/it/languages/odd_answers.rs` |
//!
//! The cases 28, 29, 37 and 38 are of Gemini's language and 39 is of Bedrock's: their tests come with
//! these languages.

mod answers;
mod requests;

use serde_json::{Value, json};

use super::{exchange, stream};
use crate::dialect::hub::{Codec, Outgoing, Refused, Target, prepare, translator};

pub(super) fn name(codec: &dyn Codec) -> &'static str {
    codec.traits().name
}

/// A stream of Chat with these deltas.
pub(super) fn chat(deltas: &[Value], finish: &str) -> String {
    let chunk = |delta: &Value, finish: Value| {
        let choice = json!({"index": 0, "delta": delta, "finish_reason": finish});
        format!("data: {}\n\n", json!({"id": "c", "created": 5, "model": "m", "choices": [choice]}))
    };
    let mut out: String = deltas.iter().map(|delta| chunk(delta, Value::Null)).collect();
    out += &chunk(&json!({}), finish.into());
    out + "data: [DONE]\n\n"
}

/// A stream of events that have their names in `type`.
pub(super) fn typed(events: &[Value]) -> String {
    let event =
        |event: &Value| format!("event: {}\ndata: {event}\n\n", event["type"].as_str().unwrap());
    events.iter().map(event).collect()
}

/// A stream of Messages with these events between its beginning and its end.
pub(super) fn messages(events: &[Value], reason: &str) -> String {
    let message = json!({"id": "msg_1", "type": "message", "role": "assistant", "content": [], "model": "m",
        "usage": {"input_tokens": 3, "output_tokens": 1}});
    let mut all = vec![json!({"type": "message_start", "message": message})];
    all.extend_from_slice(events);
    all.push(json!({"type": "message_delta", "delta": {"stop_reason": reason}, "usage": {"output_tokens": 9}}));
    all.push(json!({"type": "message_stop"}));
    typed(&all)
}

pub(super) fn block(index: u32, block: Value) -> Value {
    json!({"type": "content_block_start", "index": index, "content_block": block})
}

pub(super) fn delta(index: u32, delta: Value) -> Value {
    json!({"type": "content_block_delta", "index": index, "delta": delta})
}

pub(super) fn stop(index: u32) -> Value {
    json!({"type": "content_block_stop", "index": index})
}

/// A stream of Responses that ends with this event and these items.
pub(super) fn responses(events: &[Value], end: &str, output: Value, more: Value) -> String {
    let mut response = json!({"id": "resp_1", "object": "response", "created_at": 5, "model": "m", "status": "in_progress",
        "output": []});
    let mut all = vec![json!({"type": "response.created", "response": response})];
    all.extend_from_slice(events);
    response["status"] = end.into();
    response["output"] = output;
    for (name, value) in more.as_object().unwrap() {
        response[name] = value.clone();
    }
    all.push(json!({"type": format!("response.{end}"), "response": response}));
    typed(&all)
}

/// The documents of a stream that a client gets, without Chat's end marker.
pub(super) fn documents(out: &str) -> Vec<Value> {
    let data = |event: &str| {
        let line = event.lines().find_map(|line| line.strip_prefix("data: "))?;
        serde_json::from_str(line).ok()
    };
    out.split("\n\n").filter_map(data).collect()
}

pub(super) fn of_type<'a>(all: &'a [Value], kind: &str) -> Vec<&'a Value> {
    all.iter().filter(|event| event["type"] == kind).collect()
}

/// What a client has understood of an answer.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Understood {
    pub(super) text: String,
    pub(super) reasoning: String,
    /// Ids, names and arguments.
    pub(super) calls: Vec<(String, String, String)>,
    pub(super) end: String,
}

/// The plain answer that a client gets of a stream.
pub(super) fn understood(from: &dyn Codec, to: &dyn Codec, text: &str) -> Understood {
    let (_, events) = stream(from, to, &[text.as_bytes()]);
    let document: Value =
        serde_json::from_str(&translator::document(to, &events, &exchange(from))).unwrap();
    let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut out = Understood::default();
    match name(to) {
        "chat" => {
            let choice = &document["choices"][0];
            let message = &choice["message"];
            out.text = word(&message["content"]);
            out.reasoning = word(&message["reasoning_content"]);
            for call in message["tool_calls"].as_array().into_iter().flatten() {
                let function = &call["function"];
                out.calls.push((
                    word(&call["id"]),
                    word(&function["name"]),
                    word(&function["arguments"]),
                ));
            }
            out.end = word(&choice["finish_reason"]);
        }
        "messages" => {
            for block in document["content"].as_array().unwrap() {
                match block["type"].as_str().unwrap() {
                    "text" => out.text += block["text"].as_str().unwrap(),
                    "thinking" => out.reasoning += block["thinking"].as_str().unwrap(),
                    _ => out.calls.push((
                        word(&block["id"]),
                        word(&block["name"]),
                        block["input"].to_string(),
                    )),
                }
            }
            out.end = word(&document["stop_reason"]);
        }
        _ => {
            for item in document["output"].as_array().unwrap() {
                let texts = |parts: &Value| -> String {
                    parts.as_array().into_iter().flatten().map(|part| word(&part["text"])).collect()
                };
                match item["type"].as_str().unwrap() {
                    "message" => out.text += &texts(&item["content"]),
                    "reasoning" => {
                        out.reasoning += &(texts(&item["summary"]) + &texts(&item["content"]))
                    }
                    _ => out.calls.push((
                        word(&item["call_id"]),
                        word(&item["name"]),
                        word(&item["arguments"]),
                    )),
                }
            }
            out.end = word(&document["status"]);
        }
    }
    out
}

/// A request in another language.
pub(super) fn outgoing(
    from: &dyn Codec,
    to: &dyn Codec,
    body: &Value,
    target: &Target,
) -> Result<Outgoing, Refused> {
    let request = from.read(&body.to_string())?;
    prepare::translate(request, from.traits(), to, target)
}

pub(super) fn sent(from: &dyn Codec, to: &dyn Codec, body: &Value) -> Value {
    serde_json::from_str(&outgoing(from, to, body, &super::target()).unwrap().body).unwrap()
}

/// The turns of a request.
pub(super) fn turns(body: &Value) -> &Vec<Value> {
    body.get("messages").or_else(|| body.get("input")).unwrap().as_array().unwrap()
}

/// Calls and results of a request, in their order: `call ID`, `result ID`.
pub(super) fn order(body: &Value) -> Vec<String> {
    let mut out = Vec::new();
    let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    for turn in turns(body) {
        for call in turn["tool_calls"].as_array().into_iter().flatten() {
            out.push(format!("call {}", word(&call["id"])));
        }
        match (turn["role"].as_str(), turn["type"].as_str()) {
            (Some("tool"), _) => out.push(format!("result {}", word(&turn["tool_call_id"]))),
            (_, Some("function_call")) => out.push(format!("call {}", word(&turn["call_id"]))),
            (_, Some("function_call_output")) => {
                out.push(format!("result {}", word(&turn["call_id"])))
            }
            _ => {}
        }
        for block in turn["content"].as_array().into_iter().flatten() {
            match block["type"].as_str() {
                Some("tool_use") => out.push(format!("call {}", word(&block["id"]))),
                Some("tool_result") => out.push(format!("result {}", word(&block["tool_use_id"]))),
                _ => {}
            }
        }
    }
    out
}

/// A call, as each language says it in a stream.
pub(super) fn called(from: &dyn Codec, arguments: &str, reason: [&str; 3]) -> String {
    match name(from) {
        "chat" => {
            let call = json!({"index": 0, "id": "call_1", "type": "function", "function": {"name": "f", "arguments": arguments}});
            chat(&[json!({"role": "assistant", "tool_calls": [call]})], reason[0])
        }
        "messages" => {
            let mut events = vec![block(
                0,
                json!({"type": "tool_use", "id": "call_1", "name": "f", "input": {}}),
            )];
            if !arguments.is_empty() {
                events
                    .push(delta(0, json!({"type": "input_json_delta", "partial_json": arguments})));
            }
            events.push(stop(0));
            messages(&events, reason[1])
        }
        _ => {
            let item = json!({"id": "fc_1", "type": "function_call", "call_id": "call_1", "name": "f", "arguments": arguments, "status": reason[2]});
            let added =
                json!({"type": "response.output_item.added", "output_index": 0, "item": item});
            let done =
                json!({"type": "response.output_item.done", "output_index": 0, "item": item});
            let more = match reason[2] {
                "incomplete" => json!({"incomplete_details": {"reason": "max_output_tokens"}}),
                _ => json!({}),
            };
            responses(&[added, done], reason[2], json!([item]), more)
        }
    }
}
