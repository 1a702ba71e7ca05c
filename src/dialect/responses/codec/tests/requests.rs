//! Requests are restored by reading and writing.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::super::{ResponsesCodec, traits::NAME};
use crate::dialect::hub::{
    Codec, Losses, Part, Request, Role, Target,
    request::{Format, MediaSource, Text, Tool, ToolChoice, ToolKind},
};

/// Reads a request.
pub(super) fn read(body: &Value) -> Request {
    ResponsesCodec.read(&body.to_string()).unwrap()
}

/// Writes it for a backend.
pub(super) fn write(request: &Request) -> (Value, Losses) {
    let mut losses = Losses::default();
    let text = ResponsesCodec.write(request, &Target::default(), &mut losses).unwrap();
    (serde_json::from_str(&text).unwrap(), losses)
}

fn restored(body: &Value) {
    let (back, losses) = write(&read(body));
    assert_eq!(&back, body);
    assert!(losses.is_empty(), "{losses:?}");
}

/// The body of a capture, behind its head.
fn body(capture: &str) -> Value {
    let at = capture.find("\n{").unwrap() + 1;
    serde_json::from_str(&capture[at..]).unwrap()
}

#[test]
fn captured_requests_are_restored() {
    for capture in [
        include_str!("../../../../../tests/fixtures/vllm/responses.req"),
        include_str!("../../../../../tests/fixtures/vllm/responses_stream.req"),
        include_str!("../../../../../tests/fixtures/llamacpp/responses.req"),
        include_str!("../../../../../tests/fixtures/llamacpp/responses_stream.req"),
        include_str!("../../../../../tests/fixtures/translate/responses/codex-first.request.json"),
        include_str!("../../../../../tests/fixtures/translate/responses/codex-tools.request.json"),
    ] {
        restored(&body(&format!("\n{capture}")));
    }
}

#[test]
fn items_of_every_kind_are_restored() {
    restored(&json!({"model": "m", "input": items()}));
}

/// An item of every kind, and of some kinds in many forms.
fn items() -> Value {
    json!([
        {"role": "developer", "content": "be brief"},
        {"type": "message", "id": "msg_1", "role": "system", "content": [
            {"type": "input_text", "text": "a", "prompt_cache_breakpoint": {"mode": "explicit"}},
            {"type": "input_text", "text": "b"}], "unknown": 1},
        {"role": "user", "content": [
            {"type": "input_text", "text": "look"},
            {"type": "input_image", "detail": "high", "image_url": "data:image/png;base64,iVBORw=="},
            {"type": "input_image", "detail": "auto", "file_id": null, "image_url": "https://x/y.png"},
            {"type": "input_file", "filename": "a.pdf", "file_data": "data:application/pdf;base64,JVBERi0="},
            {"type": "input_file", "filename": "b", "file_data": "JVBERi0="},
            {"type": "input_file", "file_url": "https://x/y.pdf"},
            {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "mp3"}},
            {"type": "input_strange", "x": {"b": 1, "a": 2.50}}]},
        {"role": "user", "content": "and"},
        {"type": "message", "role": "user", "content": []},
        {"type": "reasoning", "id": "rs_1", "encrypted_content": "abc", "summary": [
            {"type": "summary_text", "text": "one"}, {"type": "summary_text", "text": "two"}]},
        {"type": "reasoning", "id": "rs_2", "summary": [], "content": [
            {"type": "reasoning_text", "text": "x"}, {"text": "y", "type": "reasoning_text"}],
            "status": "completed"},
        {"type": "reasoning", "id": "rs_3", "encrypted_content": null},
        {"type": "message", "id": "msg_2", "role": "assistant", "status": "completed",
            "phase": "commentary", "content": [
            {"type": "output_text", "text": "hm", "annotations": [], "logprobs": []},
            {"type": "refusal", "refusal": "no"}]},
        {"type": "message", "id": "msg_3", "role": "assistant", "status": "completed", "content": [
            {"type": "output_text", "text": "see", "annotations": [
                {"type": "url_citation", "start_index": 0, "end_index": 3, "url": "u", "title": "t"}]}]},
        {"role": "assistant", "content": "plain", "phase": null},
        {"type": "function_call", "id": "fc_1", "call_id": "c1", "name": "f", "status": "completed",
            "arguments": "{\"z\": 1,\"a\":1.50}", "namespace": "ns"},
        {"type": "custom_tool_call", "call_id": "c2", "name": "apply_patch", "input": "*** x"},
        {"type": "web_search_call", "id": "ws_1", "status": "completed",
            "action": {"type": "search", "query": "rust"}},
        {"type": "function_call_output", "call_id": "c1", "output": "ok", "id": null},
        {"type": "custom_tool_call_output", "call_id": "c2", "output": [
            {"type": "input_text", "text": "done"},
            {"type": "input_image", "image_url": "https://x", "detail": "low"}]},
        {"type": "item_reference", "id": "msg_9"},
        {"id": "msg_10"},
        {"type": "compaction", "id": "cmp_1", "encrypted_content": "zzz"},
        {"type": "configuration_update", "reasoning": {"effort": "low"}},
        {"role": "developer", "content": "later"},
        {"role": "user", "content": [{"type": "input_image", "detail": "auto", "file_id": "file-1"}]}
    ])
}

#[test]
fn members_of_every_kind_are_restored() {
    let all = json!({
        "model": "m", "input": "hi", "instructions": "be brief", "stream": false,
        "tools": [
            {"type": "function", "name": "f", "description": "d", "strict": true,
                "parameters": {"type": "object", "properties": {"z": {"type": "integer"}, "a": {}}}},
            {"type": "function", "name": "g", "parameters": null, "strict": null, "defer_loading": true},
            {"type": "namespace", "name": "ns", "description": "group", "tools": [
                {"type": "function", "name": "h", "parameters": {}},
                {"type": "custom", "name": "c"}]},
            {"type": "namespace", "name": "ns2", "description": "group 2", "tools": [
                {"type": "function", "name": "h"}]},
            {"type": "namespace", "name": "empty", "description": "", "tools": []},
            {"type": "custom", "name": "apply_patch", "description": "p",
                "format": {"type": "grammar", "syntax": "lark", "definition": "start: x"}},
            {"type": "web_search", "external_web_access": false},
            {"type": "mcp", "server_label": "s", "server_url": "https://x"}],
        "tool_choice": {"type": "allowed_tools", "mode": "required", "tools": [
            {"type": "function", "name": "f"}, {"type": "mcp", "server_label": "s"}]},
        "parallel_tool_calls": false,
        "text": {"format": {"name": "n", "type": "json_schema", "schema": {"b": 1, "a": 2},
            "strict": null, "description": "d"}, "verbosity": "low"},
        "reasoning": {"summary": "auto", "effort": "high"},
        "max_output_tokens": 3, "temperature": 0.50, "top_p": 1, "top_k": 5, "seed": 18446744073709551615u64,
        "frequency_penalty": 0.1, "presence_penalty": -0.1, "logit_bias": {"1": 2}, "stop": "END",
        "include": ["reasoning.encrypted_content", "message.output_text.logprobs", "file_search_call.results"],
        "top_logprobs": 3, "store": true, "metadata": {"b": "1", "a": "2"}, "user": "u",
        "safety_identifier": "s", "prompt_cache_key": "k", "client_metadata": {"x": "y"},
        "service_tier": "flex", "truncation": "auto", "previous_response_id": "resp_0",
        "conversation": {"id": "conv_1"}, "background": true, "prompt": {"id": "p"},
        "context_management": [{"type": "compaction"}], "max_tool_calls": null, "unknown": [1.0e5]
    });
    restored(&all);
    // Each member alone, too: absent ones are not invented.
    for (name, value) in all.as_object().unwrap() {
        restored(&json!({ "model": "m", "input": [], name: value }));
    }
    for (name, value) in [
        ("text", json!({})),
        ("text", json!({"format": {"type": "text"}})),
        ("text", json!({"format": {"type": "json_object"}, "x": 1})),
        ("text", json!(null)),
        ("reasoning", json!({})),
        ("reasoning", json!({"effort": null, "generate_summary": "auto"})),
        ("tools", json!([])),
        ("tool_choice", json!("required")),
        ("tool_choice", json!({"type": "function", "name": "f", "namespace": "ns"})),
        ("tool_choice", json!({"type": "web_search"})),
        ("include", json!([])),
        ("top_logprobs", json!(0)),
        ("stop", json!(["a", "b"])),
        ("stream", json!(true)),
        ("instructions", json!(null)),
        ("user", json!("u")),
        ("background", json!(false)),
    ] {
        restored(&json!({ "input": "x", name: value }));
    }
    restored(&json!({"prompt": {"id": "p"}}));
}

#[test]
fn tools_that_an_item_adds_are_tools_and_stay_in_their_item() {
    let body = json!({"input": [
        {"type": "additional_tools", "role": "developer", "tools": [
            {"type": "function", "name": "f"}, {"type": "custom", "name": "g"}, {"type": "function", "name": "old"}]},
        {"role": "developer", "content": "system"},
        {"role": "user", "content": "hi"}],
        "tools": [{"type": "function", "name": "old"}]});
    restored(&body);
    let request = read(&body);
    assert_eq!(request.tools.len(), 3);
    // The system's text is the system's, although an item stands before it.
    assert_eq!(request.system[0].text, "system");
}

#[test]
fn a_conversation_is_in_turns() {
    let request = read(&json!({"input": [
        {"role": "developer", "content": "d"},
        {"role": "user", "content": "u"},
        {"type": "reasoning", "id": "rs", "summary": [], "encrypted_content": "e"},
        {"type": "message", "role": "assistant", "id": "m", "phase": "commentary",
            "content": [{"type": "output_text", "text": "t", "annotations": []}]},
        {"type": "function_call", "id": "fc", "call_id": "c1", "name": "f", "arguments": "{}"},
        {"type": "custom_tool_call", "call_id": "c2", "name": "p", "input": "x"},
        {"type": "function_call_output", "call_id": "c1", "output": "1"},
        {"type": "custom_tool_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "2"}]},
        {"role": "user", "content": "more"},
        {"role": "system", "content": "late"}]}));
    assert_eq!((request.system[0].origin, request.system[0].text.as_str()), ("developer", "d"));
    let turns: Vec<_> = request
        .turns
        .iter()
        .map(|turn| (turn.role, turn.parts.len(), turn.path.as_str()))
        .collect();
    assert_eq!(
        turns,
        [
            (Role::User, 1, "input[1]"),
            (Role::Assistant, 4, "input[2]"),
            (Role::User, 2, "input[6]"),
            (Role::User, 1, "input[8]"),
            (Role::System, 1, "input[9]"),
        ]
    );
    let [Part::Reasoning(reasoning), Part::Text(text), Part::ToolCall(f), Part::ToolCall(p)] =
        &request.turns[1].parts[..]
    else {
        panic!("{:?}", request.turns[1])
    };
    let state = reasoning.state.as_ref().unwrap();
    assert_eq!(
        (state.language.as_str(), state.value.as_str(), reasoning.redacted),
        (NAME, "e", true)
    );
    assert_eq!((text.phase.as_deref(), text.item.as_deref()), (Some("commentary"), Some("m")));
    assert_eq!((f.id.as_str(), f.item.as_deref(), f.kind), ("c1", Some("fc"), ToolKind::Function));
    assert_eq!((p.arguments.as_str(), p.kind), ("x", ToolKind::Custom));
    let Part::ToolResult(result) = &request.turns[2].parts[1] else { panic!() };
    assert_eq!((result.call.as_str(), result.plain, result.kind), ("c2", false, ToolKind::Custom));
}

#[test]
fn what_the_hub_has_a_word_for_is_there() {
    let request = read(&json!({
        "model": "m", "stream": true, "input": "x",
        "tools": [{"type": "namespace", "name": "ns", "description": "d", "tools": [
            {"type": "function", "name": "f", "strict": false}]}, {"type": "web_search"}],
        "tool_choice": {"type": "custom", "name": "p"},
        "text": {"format": {"type": "json_schema", "name": "n", "schema": {}, "strict": true}, "verbosity": "high"},
        "reasoning": {"effort": "none", "summary": "detailed"}, "max_output_tokens": 7,
        "include": ["message.output_text.logprobs"], "top_logprobs": 4, "user": "u", "store": false}));
    let Tool::Function(function) = &request.tools[0] else { panic!() };
    assert_eq!(
        (function.namespace.as_deref(), function.path.as_str()),
        (Some("ns"), "tools[0].tools[0]")
    );
    assert!(matches!(&request.tools[1], Tool::Vendor(tool) if tool.kind == "web_search"));
    let choice = ToolChoice::Named { name: "p".into(), kind: ToolKind::Custom };
    assert_eq!(request.tool_choice, Some(choice));
    assert!(matches!(request.format, Some(Format::Schema { strict: Some(true), .. })));
    assert_eq!(request.reasoning.effort.as_deref(), Some("none"));
    assert_eq!((request.max_output, request.logprobs), (Some(7), Some(4)));
    assert_eq!((request.user.as_deref(), request.store), (Some("u"), Some(false)));
    assert!(!request.client.encrypted_reasoning);
    let echo: Vec<_> = request.client.echo.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
    assert!(echo.contains(&("previous_response_id", "null")) && echo.contains(&("top_p", "1.0")));
    assert!(echo.contains(&("reasoning", r#"{"effort":"none","summary":"detailed"}"#)));
}

#[test]
fn what_only_the_vendor_has_is_named() {
    let request = read(&json!({
        "previous_response_id": "r", "conversation": "c", "background": true, "prompt": {"id": "p"},
        "input": [{"type": "item_reference", "id": "i"}, {"role": "user", "content": [
            {"type": "input_image", "detail": "auto", "file_id": "file-1"}]},
            {"type": "compaction", "encrypted_content": "x"}]}));
    assert_eq!(
        request.stateful,
        [
            "previous_response_id",
            "conversation",
            "prompt",
            "background",
            "input[0]",
            "input[1].content[0].file_id",
            "input[2]"
        ]
    );
    let Part::Image(image) = &request.turns[1].parts[0] else { panic!() };
    assert_eq!(image.source, MediaSource::FileId("file-1".into()));
    let none = read(&json!({"previous_response_id": null, "background": false, "input": "x"}));
    assert!(none.stateful.is_empty());
}

#[test]
fn wrong_types_are_named_by_their_place() {
    for (body, path) in [
        (json!([]), ""),
        (json!({"input": 1}), "input"),
        (json!({"input": [1]}), "input[0]"),
        (json!({"input": [{"x": 1}]}), "input[0].type"),
        (json!({"input": [{"role": "tool", "content": "x"}]}), "input[0].role"),
        (json!({"input": [{"role": "user"}]}), "input[0].content"),
        (json!({"input": [{"role": "user", "content": ["x"]}]}), "input[0].content[0]"),
        (
            json!({"input": [{"role": "user", "content": [{"type": "input_text"}]}]}),
            "input[0].content[0].text",
        ),
        (
            json!({"input": [{"type": "function_call", "name": "f", "arguments": "{}"}]}),
            "input[0].call_id",
        ),
        (
            json!({"input": [{"type": "function_call", "call_id": "c", "name": "f", "arguments": {}}]}),
            "input[0].arguments",
        ),
        (
            json!({"input": [{"type": "function_call_output", "call_id": "c", "output": 1}]}),
            "input[0].output",
        ),
        (json!({"input": [{"type": "reasoning", "summary": "x"}]}), "input[0].summary"),
        (json!({"tools": [{"type": "function"}]}), "tools[0].name"),
        (
            json!({"tools": [{"type": "function", "name": "f", "parameters": "x"}]}),
            "tools[0].parameters",
        ),
        (json!({"tools": {}}), "tools"),
        (json!({"tool_choice": "any"}), "tool_choice"),
        (json!({"text": {"format": {"type": "json_schema"}}}), "text.format.schema"),
        (json!({"max_output_tokens": 1.5}), "max_output_tokens"),
        (json!({"stream": "yes"}), "stream"),
        (json!({"temperature": "1"}), "temperature"),
        (json!({"reasoning": "high"}), "reasoning"),
        (json!({"background": 1}), "background"),
    ] {
        let refused = ResponsesCodec.read(&body.to_string()).unwrap_err();
        assert_eq!((refused.path.as_str(), refused.invalid), (path, true), "{body}");
    }
}

#[test]
fn numbers_keep_their_digits_and_schemas_their_order() {
    let body = r#"{"input":"x","temperature":0.10,"tools":[{"type":"function","name":"f","parameters":{"z":1e2,"a":123456789012345678901234567890}}],"seed":123456789012345678901234567890}"#;
    let request = ResponsesCodec.read(body).unwrap();
    let back = ResponsesCodec.write(&request, &Target::default(), &mut Losses::default()).unwrap();
    for piece in [
        "0.10",
        r#"{"z":1e2,"a":123456789012345678901234567890}"#,
        r#""seed":123456789012345678901234567890"#,
    ] {
        assert!(back.contains(piece), "{back}");
    }
}

proptest! {
    #[test]
    fn items_are_restored_in_any_order(order in prop::collection::vec(any::<prop::sample::Index>(), 0..12)) {
        let all = items();
        let all = all.as_array().unwrap();
        let input: Vec<&Value> = order.iter().map(|at| at.get(all)).collect();
        restored(&json!({ "input": input }));
    }

    #[test]
    fn a_turn_that_was_changed_is_written_as_it_is_now(
        order in prop::collection::vec(any::<prop::sample::Index>(), 1..8),
        turn: prop::sample::Index,
        part: prop::sample::Index,
        add: bool,
    ) {
        let all = items();
        let all = all.as_array().unwrap();
        let input: Vec<&Value> = order.iter().map(|at| at.get(all)).collect();
        let mut request = read(&json!({ "input": input }));
        if request.turns.is_empty() {
            return Ok(());
        }
        let at = turn.index(request.turns.len());
        let turn = &mut request.turns[at];
        if add || turn.parts.is_empty() {
            turn.parts.push(Part::Text(Text::plain("added")));
        } else {
            turn.parts.remove(part.index(turn.parts.len()));
        }
        let (body, _) = write(&request);
        // Nothing else is lost: what is written has as many parts as there were.
        let parts = |request: &Request| {
            let turns: usize = request.turns.iter().map(|turn| turn.parts.len()).sum();
            turns + request.system.len()
        };
        prop_assert_eq!(parts(&read(&body)), parts(&request), "{}", body);
        prop_assert!(!add || body["input"].to_string().contains("added"));
        for item in body["input"].as_array().unwrap() {
            prop_assert!(!item["type"].as_str().is_some_and(|kind| kind.starts_with("input_")));
        }
    }
}
