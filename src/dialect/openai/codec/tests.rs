//! Requests: what goes in and out in the same language, and what is written for servers that differ.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::{ChatCodec, words::LANGUAGE};
use crate::dialect::hub::{
    Codec, Extension, Json, Losses, Part, Refused, Request, Role, Target, Turn,
    request::{
        Format, Media, MediaSource, ReasoningMode, ReasoningPart, Search, State, SystemText, Text,
        ToolCall, ToolChoice, ToolKind, ToolResult,
    },
    stopwatch::Stopwatch,
    target::{ModelFacts, Quirks},
};

macro_rules! captures {
    ($($server:literal / $name:literal),* $(,)?) => {
        [$((concat!($server, "/", $name), include_str!(concat!("../../../../tests/fixtures/", $server, "/", $name, ".req")))),*]
    };
}

/// Requests that real servers took, with the line that names their path.
const CAPTURES: [(&str, &str); 26] = captures![
    "vllm" / "chat_content_parts",
    "vllm" / "chat_json_schema",
    "vllm" / "chat_long_stream",
    "vllm" / "chat_max_completion_tokens",
    "vllm" / "chat_natural_stop",
    "vllm" / "chat_nonstream",
    "vllm" / "chat_nonstream_logprobs",
    "vllm" / "chat_stop",
    "vllm" / "chat_stream",
    "vllm" / "chat_stream_continuous_usage",
    "vllm" / "chat_stream_n2",
    "vllm" / "chat_stream_nullopts",
    "vllm" / "chat_stream_options_nostream",
    "vllm" / "chat_stream_usage",
    "vllm" / "chat_stream_usage_false",
    "vllm" / "chat_think",
    "vllm" / "chat_tool_result",
    "vllm" / "chat_tools_auto",
    "vllm" / "chat_tools_auto_stream",
    "vllm" / "chat_tools_named",
    "vllm" / "chat_tools_required_stream",
    "vllm" / "chat_unicode",
    "vllm" / "extra_fields",
    "llamacpp" / "chat_content_parts",
    "llamacpp" / "chat_tool_result",
    "llamacpp" / "chat_tools_required",
];

/// Requests of agents and SDKs, and one with everything.
const OTHERS: [&str; 5] = [
    include_str!("../../../../tests/fixtures/translate/chat/opencode-001.request.json"),
    include_str!("../../../../tests/fixtures/translate/chat/opencode-002.request.json"),
    include_str!("../../../../tests/fixtures/translate/chat/agents-001.request.json"),
    EVERYTHING,
    r#"{"messages":[],"user":"u","stop":"x","stream":false,"logprobs":false,"seed":null,"x":null}"#,
];

const EVERYTHING: &str =
    include_str!("../../../../tests/fixtures/translate/chat/everything.request.json");

/// A server that takes all that Chat has, and changes nothing.
fn faithful() -> Target {
    Target {
        quirks: Quirks {
            developer: true,
            one_system: false,
            flat_text: false,
            cache_control: true,
            reasoning_field: Some("reasoning_content"),
            ..Quirks::default()
        },
        ..Target::default()
    }
}

fn written(request: &Request, target: &Target) -> (Result<Value, Refused>, Losses) {
    let mut losses = Losses::default();
    let out = ChatCodec.write(request, target, &mut losses);
    (out.map(|text| serde_json::from_str(&text).unwrap()), losses)
}

fn write(request: &Request, target: &Target) -> Value {
    written(request, target).0.unwrap()
}

fn read(body: &Value) -> Request {
    ChatCodec.read(&body.to_string()).unwrap()
}

/// What does not differ in its meaning: members of messages that are null, and wishes for the form
/// of a stream, whose usage is always asked for.
fn plain(body: &str) -> Value {
    let mut body: Value = serde_json::from_str(body).unwrap();
    let top = body.as_object_mut().unwrap();
    match top.get("stream") == Some(&json!(true)) {
        true => {
            let options = top.entry("stream_options").or_insert_with(|| json!({}));
            options["include_usage"] = json!(true);
        }
        false => {
            top.remove("stream_options");
        }
    }
    for message in top["messages"].as_array_mut().unwrap() {
        message.as_object_mut().unwrap().retain(|_, value| !value.is_null());
    }
    body
}

#[test]
fn what_is_read_is_written_again() {
    let captures = CAPTURES.iter().map(|(_, text)| text.split_once('\n').unwrap().1);
    let mut count = 0;
    for body in captures.chain(OTHERS) {
        let mut target = faithful();
        target.quirks.max_completion_tokens = body.contains("max_completion_tokens");
        let request = ChatCodec.read(body).unwrap();
        let mut losses = Losses::default();
        let out = ChatCodec.write(&request, &target, &mut losses).unwrap();
        assert_eq!(plain(&out), plain(body), "{body}");
        assert!(losses.is_empty(), "{losses:?}");
        count += 1;
    }
    assert_eq!(count, 31);
}

#[test]
fn digits_and_orders_stay() {
    let request = ChatCodec.read(EVERYTHING).unwrap();
    let out = ChatCodec.write(&request, &faithful(), &mut Losses::default()).unwrap();
    for piece in [
        r#""temperature":0.70,"#,
        r#""seed":12345678901234567890,"#,
        r#""max_pixels":12.50}"#,
        r#""arguments":"{\"b\": 1, \"a\": [1.0]}""#,
        r#""$defs":{"z":{},"a":{}},"properties":{"z":{"type":"number","maximum":10.0},"a":{"const":null}}"#,
        r#""metadata":{"b":"1","a":"2"}"#,
        r#""schema":{"type":"object","properties":{"b":{},"a":{}}}"#,
        r#""a.b":1"#,
    ] {
        assert!(out.contains(piece), "{piece}\n{out}");
    }
}

#[test]
fn what_is_read_has_its_place() {
    let request = ChatCodec.read(EVERYTHING).unwrap();
    assert!(request.client.usage && request.stream);
    let origins: Vec<_> = request.system.iter().map(|s| (s.origin, s.text.as_str())).collect();
    assert_eq!(
        origins,
        [("developer", "Be brief."), ("system", "a"), ("system", "b"), ("system", "named")]
    );
    let turns: Vec<_> =
        request.turns.iter().map(|t| (t.role, t.path.as_str(), t.parts.len())).collect();
    assert_eq!(
        turns[..4],
        [
            (Role::User, "messages[3]", 10),
            (Role::Assistant, "messages[4]", 5),
            (Role::User, "messages[5]", 3),
            (Role::System, "messages[8]", 1),
        ]
    );
    assert!(request.turns[3].developer);
    assert_eq!(request.stateful, ["messages[11].audio"]);
    let Part::ToolCall(call) = &request.turns[1].parts[2] else { panic!() };
    assert_eq!(call.state.as_ref().unwrap().value, "c2ln");
    let Part::ToolResult(result) = &request.turns[2].parts[1] else { panic!() };
    assert_eq!((result.kind, result.plain), (ToolKind::Custom, false));
    let Part::Image(image) = &request.turns[0].parts[1] else { panic!() };
    assert_eq!(image.source, MediaSource::Base64("iVBORw0KGgo=".into()));
    assert_eq!(request.logprobs, Some(3));
    assert_eq!(request.modalities, ["audio"]);
    let Some(ToolChoice::Allowed { names, required: true, .. }) = &request.tool_choice else {
        panic!()
    };
    assert_eq!(names[..], ["f", "patch"]);
    assert!(matches!(&request.format, Some(Format::Schema { strict: Some(false), .. })));
}

#[test]
fn what_is_of_the_wrong_type_is_refused_by_its_path() {
    let user = |content: Value| json!({"messages": [{"role": "user", "content": content}]});
    for (body, path) in [
        (json!([]), ""),
        (json!({"model": "m"}), "messages"),
        (json!({"messages": {}}), "messages"),
        (json!({"messages": ["x"]}), "messages[0]"),
        (json!({"messages": [{"content": "x"}]}), "messages[0].role"),
        (json!({"messages": [{"role": "narrator", "content": "x"}]}), "messages[0].role"),
        (user(json!(5)), "messages[0].content"),
        (user(json!([{"type": "text"}])), "messages[0].content[0].text"),
        (user(json!([{"x": "text"}])), "messages[0].content[0].type"),
        (
            user(json!([{"type": "image_url", "image_url": {}}])),
            "messages[0].content[0].image_url.url",
        ),
        (user(json!([{"type": "file", "file": {}}])), "messages[0].content[0].file"),
        (json!({"messages": [{"role": "tool", "content": "x"}]}), "messages[0].tool_call_id"),
        (
            json!({"messages": [{"role": "assistant", "tool_calls": [{"id": "a", "function": {"arguments": "{}"}}]}]}),
            "messages[0].tool_calls[0].function.name",
        ),
        (json!({"messages": [], "stream": "yes"}), "stream"),
        (json!({"messages": [], "temperature": "0.5"}), "temperature"),
        (json!({"messages": [], "max_tokens": -1}), "max_tokens"),
        (json!({"messages": [], "stop": [1]}), "stop"),
        (json!({"messages": [], "tools": [{"type": "function"}]}), "tools[0].function"),
        (
            json!({"messages": [], "tools": [{"type": "function", "function": {}}]}),
            "tools[0].function.name",
        ),
        (json!({"messages": [], "tool_choice": "some"}), "tool_choice"),
        (
            json!({"messages": [], "response_format": {"type": "json_schema"}}),
            "response_format.json_schema",
        ),
    ] {
        let refused = ChatCodec.read(&body.to_string()).unwrap_err();
        assert_eq!((refused.path.as_str(), refused.invalid), (path, true), "{body}");
    }
    assert!(ChatCodec.read("{").is_err());
}

#[test]
fn case_8_a_call_that_stands_in_the_content_and_in_the_list_is_one_call() {
    let body = json!({"messages": [
        {"role": "user", "content": "x"},
        {"role": "assistant",
         "content": [
            {"type": "text", "text": "I look."},
            {"type": "tool_use", "id": "call_1", "name": "f", "input": {"a": 1}},
            {"type": "tool_use", "id": "call_2", "name": "g", "input": {}},
         ],
         "tool_calls": [
            {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{\"a\":1}"}},
            {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{\"a\":1}"}},
         ]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "call_2", "content": "y"}]},
        {"role": "tool", "tool_call_id": "call_1", "content": "z"},
    ]});
    let out = write(&read(&body), &Target::default());
    let calls = out["messages"][1]["tool_calls"].as_array().unwrap();
    let ids: Vec<_> = calls.iter().map(|call| call["id"].as_str().unwrap()).collect();
    assert_eq!(ids, ["call_2", "call_1"]);
    let results: Vec<_> = out["messages"].as_array().unwrap()[2..]
        .iter()
        .map(|m| (m["role"].as_str().unwrap(), m["tool_call_id"].as_str().unwrap()))
        .collect();
    assert_eq!(results, [("tool", "call_2"), ("tool", "call_1")]);
}

#[test]
fn the_oldest_form_is_read_as_tools() {
    let body = json!({
        "messages": [
            {"role": "user", "content": "x"},
            {"role": "assistant", "content": null, "function_call": {"name": "f", "arguments": "{}"}},
            {"role": "function", "name": "f", "content": "1"},
            {"role": "assistant", "content": null, "function_call": {"name": "f", "arguments": "{}"}},
            {"role": "function", "name": "f", "content": "2"},
        ],
        "functions": [{"name": "f", "parameters": {"type": "object"}}],
        "function_call": {"name": "f"},
    });
    let request = read(&body);
    assert!(request.client.functions);
    let out = write(&request, &Target::default());
    let id = |at: usize| out["messages"][at]["tool_calls"][0]["id"].clone();
    assert_eq!(out["messages"][2]["tool_call_id"], id(1));
    assert_eq!(out["messages"][4]["tool_call_id"], id(3));
    assert_ne!(id(1), id(3));
    assert_eq!(out["tools"][0]["function"]["name"], "f");
    assert_eq!(out["tool_choice"]["function"]["name"], "f");
    assert!(out.get("functions").is_none() && out.get("function_call").is_none());
}

#[test]
fn signatures_in_ids_go_to_their_slot() {
    let body = json!({"messages": [
        {"role": "user", "content": "x"},
        {"role": "assistant", "tool_calls": [{"id": "call_1__thought__c2ln", "type": "function", "function": {"name": "f", "arguments": "{}"}}]},
        {"role": "tool", "tool_call_id": "call_1__thought__c2ln", "content": "y"},
    ]});
    let out = write(&read(&body), &faithful());
    let call = &out["messages"][1]["tool_calls"][0];
    assert_eq!(call["id"], "call_1");
    assert_eq!(call["extra_content"]["google"]["thought_signature"], "c2ln");
    assert_eq!(out["messages"][2]["tool_call_id"], "call_1");
}

#[test]
fn cases_9_and_10_results_are_first_and_in_the_order_of_their_calls() {
    let call = |id: &str| json!({"id": id, "type": "function", "function": {"name": "f", "arguments": "{}"}});
    let body = json!({"messages": [
        {"role": "user", "content": "x"},
        {"role": "assistant", "tool_calls": [call("a"), call("b"), call("c")]},
        {"role": "tool", "tool_call_id": "c", "content": "3"},
        {"role": "user", "content": "between"},
        {"role": "tool", "tool_call_id": "a", "content": [
            {"type": "text", "text": "1"},
            {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}},
        ]},
        {"role": "system", "content": "late"},
        {"role": "tool", "tool_call_id": "b", "content": "2"},
    ]});
    let out = write(&read(&body), &Target::default());
    let messages = out["messages"].as_array().unwrap();
    let roles: Vec<_> = messages[2..]
        .iter()
        .map(|m| m["tool_call_id"].as_str().or(m["role"].as_str()).unwrap())
        .collect();
    assert_eq!(roles, ["a", "b", "c", "user", "user", "user"]);
    assert_eq!(messages[2]["content"], "1");
    assert_eq!(messages[5]["content"][0]["type"], "image_url");
    assert_eq!(messages[6]["content"], "between");
    assert_eq!(messages[7]["content"], "<system-reminder>\nlate\n</system-reminder>");
}

fn text(text: &str) -> Part {
    Part::Text(Text::plain(text))
}

fn turn(role: Role, parts: Vec<Part>) -> Turn {
    Turn { role, parts, path: "messages[1]".into(), ..Turn::default() }
}

fn call(id: &str) -> Part {
    Part::ToolCall(ToolCall { id: id.into(), name: "f".into(), ..ToolCall::default() })
}

fn result(id: &str, parts: Vec<Part>, is_error: bool) -> Part {
    Part::ToolResult(ToolResult { call: id.into(), parts, is_error, ..ToolResult::default() })
}

fn thought(text: &str) -> Part {
    Part::Reasoning(ReasoningPart { text: Some(text.into()), ..ReasoningPart::default() })
}

fn foreign(turns: Vec<Turn>) -> Request {
    Request { turns, ext: Extension::new("messages", Vec::new()), ..Request::default() }
}

#[test]
fn turns_of_other_languages_become_messages() {
    let mut request = foreign(vec![
        turn(Role::User, vec![text("a"), text("b")]),
        turn(Role::Assistant, vec![thought("hm"), text("say "), text("this"), call("1")]),
        turn(Role::Assistant, vec![text("and"), call("2")]),
        turn(
            Role::User,
            vec![
                result("2", vec![text("x"), text("y")], true),
                result("1", vec![text("Error: no")], true),
                text("go on"),
            ],
        ),
    ]);
    request.system = vec![
        SystemText {
            text: "x-anthropic-billing-header: cc_version=2".into(),
            origin: "system",
            ..SystemText::default()
        },
        SystemText { text: "one".into(), origin: "system", ..SystemText::default() },
        SystemText { text: "two".into(), origin: "system", ..SystemText::default() },
    ];
    let out = write(&request, &Target::default());
    assert_eq!(
        out["messages"],
        json!([
            {"role": "system", "content": "one\n\ntwo"},
            {"role": "user", "content": "a\nb"},
            {"role": "assistant", "content": "say this\nand", "reasoning": "hm", "tool_calls": [
                {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}},
                {"id": "2", "type": "function", "function": {"name": "f", "arguments": "{}"}},
            ]},
            {"role": "tool", "tool_call_id": "1", "content": "Error: no"},
            {"role": "tool", "tool_call_id": "2", "content": "Error: x\ny"},
            {"role": "user", "content": "go on"},
        ])
    );
    assert!(out.get("tools").is_none() && out.get("continue_final_message").is_none());
}

#[test]
fn a_clients_own_text_that_begins_like_the_attribution_stays() {
    let body = json!({"messages": [{"role": "system", "content": "x-anthropic-billing-header: is what?"}]});
    assert_eq!(write(&read(&body), &Target::default())["messages"], body["messages"]);
}

#[test]
fn an_answer_that_has_begun_is_continued_or_refused() {
    let request = foreign(vec![
        turn(Role::User, vec![text("count")]),
        turn(Role::Assistant, vec![text("1, 2,")]),
    ]);
    let out = write(&request, &Target::default());
    assert_eq!(out["continue_final_message"], true);
    assert_eq!(out["add_generation_prompt"], false);
    let mut target = Target::default();
    target.quirks.continues = false;
    let refused = written(&request, &target).0.unwrap_err();
    assert_eq!((refused.path.as_str(), refused.invalid), ("messages[1]", false));
    // A client of this language says it by itself.
    let body = json!({"messages": [{"role": "assistant", "content": "1"}]});
    assert!(write(&read(&body), &target).get("continue_final_message").is_none());
}

#[test]
fn case_26_reasoning_goes_back_in_the_field_that_the_server_wants() {
    let request = foreign(vec![
        turn(Role::User, vec![text("x")]),
        turn(Role::Assistant, vec![thought("hm"), text("a")]),
        turn(Role::User, vec![text("y")]),
        turn(Role::Assistant, vec![call("1")]),
        turn(Role::User, vec![result("1", vec![], false)]),
    ]);
    let mut target = Target::default();
    target.quirks.reasoning_field = Some("reasoning_content");
    target.quirks.reasoning_on_calls = true;
    let out = write(&request, &target);
    assert_eq!(out["messages"][1]["reasoning_content"], "hm");
    assert_eq!(out["messages"][3]["reasoning_content"], "");
    assert_eq!(out["messages"][4]["content"], "");
    target.quirks.reasoning_field = None;
    let out = write(&request, &target).to_string();
    // Never as speech.
    assert!(!out.contains("reasoning") && !out.contains("hm"), "{out}");
    target.quirks.reasoning_field = Some("thinking");
    let out = write(&request, &target);
    assert_eq!(
        out["messages"][1]["content"],
        json!([
            {"type": "thinking", "thinking": [{"type": "text", "text": "hm"}], "closed": true},
            {"type": "text", "text": "a"},
        ])
    );
    target.quirks.reasoning_field = Some("reasoning_details");
    let out = write(&request, &target);
    assert_eq!(
        out["messages"][1]["reasoning_details"],
        json!([{"type": "reasoning.text", "text": "hm"}])
    );
}

#[test]
fn state_of_this_language_goes_back_as_it_came() {
    let list = r#"[{"type":"reasoning.encrypted","data":"x","id":"rs_1","index":0}]"#;
    let part = |language: &str| {
        Part::Reasoning(ReasoningPart {
            state: Some(State { issuer: None, language: language.into(), value: list.into() }),
            redacted: true,
            ..ReasoningPart::default()
        })
    };
    let with = |language| {
        let turns = vec![
            turn(Role::User, vec![text("x")]),
            turn(Role::Assistant, vec![part(language), text("a")]),
            turn(Role::User, vec![text("y")]),
        ];
        write(&foreign(turns), &Target::default())
    };
    assert_eq!(with(LANGUAGE)["messages"][1]["reasoning_details"].to_string(), list);
    assert!(!with("messages").to_string().contains("encrypted"));
}

#[test]
fn documents_and_search_results_are_text_where_they_can_be() {
    let document = |source, mime: &str| {
        Part::File(Media {
            source,
            mime: Some(mime.into()),
            name: Some("Notes".into()),
            ..Media::default()
        })
    };
    let search = Part::Search(Search {
        source: "https://example.org".into(),
        title: "T".into(),
        parts: vec![text("found")],
        ..Search::default()
    });
    let pdf = document(MediaSource::Base64("JVBERi0=".into()), "application/pdf");
    let readable = foreign(vec![turn(
        Role::User,
        vec![
            document(MediaSource::Text("plain".into()), "text/plain"),
            document(MediaSource::Base64("aGk=".into()), "text/csv"),
            search,
        ],
    )]);
    let out = write(&readable, &Target::default());
    assert_eq!(
        out["messages"][0]["content"],
        "Notes\n\nplain\nNotes\n\nhi\nT\nhttps://example.org\nfound"
    );
    let request = foreign(vec![turn(Role::User, vec![pdf])]);
    let refused = written(&request, &Target::default()).0.unwrap_err();
    assert_eq!(refused.path, "messages[1]");
    let out = write(&request, &faithful());
    assert_eq!(
        out["messages"][0]["content"][0]["file"],
        json!({"filename": "Notes", "file_data": "data:application/pdf;base64,JVBERi0="})
    );
    let kept = Part::Image(Media { source: MediaSource::FileId("f".into()), ..Media::default() });
    let request = foreign(vec![turn(Role::User, vec![kept])]);
    assert!(written(&request, &faithful()).0.is_err());
}

#[test]
fn servers_are_not_sent_what_they_refuse() {
    let request = read(&json!({
        "messages": [{"role": "user", "content": "x", "name": "ann"}],
        "tools": [{"type": "function", "function": {"name": "f", "strict": true}}],
        "tool_choice": "required",
        "parallel_tool_calls": true,
        "temperature": 1, "seed": 1, "stop": ["x"], "min_p": 0.1, "user": "u",
        "reasoning_effort": "low",
    }));
    let names = [
        "name",
        "strict",
        "tool_choice",
        "parallel_tool_calls",
        "temperature",
        "seed",
        "stop",
        "min_p",
        "user",
        "reasoning_effort",
    ];
    let mut target = Target::default();
    target.quirks.refuses = names.map(String::from).into();
    let (out, losses) = written(&request, &target);
    let out = out.unwrap().to_string();
    for name in names {
        let member = match name {
            "name" => "\"ann\"".to_owned(),
            "user" => "\"user\":\"u\"".to_owned(),
            name => format!("\"{name}\""),
        };
        assert!(!out.contains(&member), "{name}: {out}");
        assert!(losses.paths().contains(&name), "{name}: {losses:?}");
    }
    target.strict = true;
    assert!(written(&request, &target).0.is_err());
    // What the answer depends on is not left out.
    for (name, value) in [
        ("n", json!(2)),
        ("logprobs", json!(true)),
        ("response_format", json!({"type": "json_object"})),
        ("tools", json!([{"type": "function", "function": {"name": "f"}}])),
        ("modalities", json!(["text", "audio"])),
    ] {
        let request = read(&json!({"messages": [], name: value}));
        let mut target = Target::default();
        target.quirks.refuses = vec![name.into()];
        assert_eq!(written(&request, &target).0.unwrap_err().path, name);
    }
}

#[test]
fn hints_that_only_openai_knows_go_to_it_alone() {
    let request = Request {
        store: Some(false),
        cache_key: Some("k".into()),
        user: Some("u".repeat(80)),
        metadata: Json::parse("{\"a\":\"b\"}").ok(),
        service_tier: Some("standard_only".into()),
        max_output: Some(9),
        ..foreign(vec![turn(Role::User, vec![text("x")])])
    };
    let (out, losses) = written(&request, &Target::default());
    let out = out.unwrap();
    let names: Vec<_> = out.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(names, ["messages", "max_tokens", "user"]);
    assert_eq!(losses.paths(), ["metadata", "service_tier"]);
    let mut target = faithful();
    target.quirks.max_completion_tokens = true;
    let out = write(&request, &target);
    assert_eq!(out["safety_identifier"].as_str().unwrap().len(), 64);
    assert_eq!((&out["store"], &out["prompt_cache_key"]), (&json!(false), &json!("k")));
    assert_eq!(out["max_completion_tokens"], 9);
}

#[test]
fn tools_that_are_not_allowed_are_left_out_where_the_choice_cannot_be_said() {
    let request = ChatCodec.read(EVERYTHING).unwrap();
    let out = write(&request, &Target::default());
    let names: Vec<_> = out["tools"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|tool| tool["function"]["name"].as_str().or(tool["custom"]["name"].as_str()))
        .collect();
    assert_eq!(names, ["f", "patch", "$web_search"]);
    assert_eq!(out["tool_choice"], "required");
}

/// Vendors answer 400 to a word that a model does not have.
#[test]
fn reasoning_is_switched_off_only_where_there_is_a_word_for_it() {
    let mut request = foreign(vec![turn(Role::User, vec![text("x")])]);
    request.reasoning.mode = Some(ReasoningMode::Off);
    let quirks = Quirks { effort_none: false, ..Quirks::default() };
    let vendor = Target { quirks, ..Target::default() };
    let mut losses = Losses::default();
    let out = ChatCodec.write(&request, &vendor, &mut losses).unwrap();
    assert!(!out.contains("reasoning_effort"), "{out}");
    assert_eq!(losses.paths(), ["thinking"]);
    let facts = ModelFacts { efforts: vec!["none".into(), "low".into()], ..ModelFacts::default() };
    let out = write(&request, &Target { facts, ..vendor });
    assert_eq!(out["reasoning_effort"], "none");
}

#[test]
fn efforts_and_schemas_of_other_languages() {
    let mut request = foreign(vec![turn(Role::User, vec![text("x")])]);
    for (budget, mode, word) in [
        (Some(1024), Some(ReasoningMode::On), Some("low")),
        (Some(32_000), None, Some("xhigh")),
        (None, Some(ReasoningMode::Off), Some("none")),
        (None, Some(ReasoningMode::Auto), None),
    ] {
        request.reasoning.budget = budget;
        request.reasoning.mode = mode;
        assert_eq!(write(&request, &Target::default())["reasoning_effort"].as_str(), word);
    }
    for (schema, strict) in [
        (
            r#"{"type":"object","properties":{"a":{}},"required":["a"],"additionalProperties":false}"#,
            true,
        ),
        (r#"{"type":"object","properties":{"a":{}},"additionalProperties":false}"#, false),
        (r#"{"type":"object","properties":{"a":{}},"required":["a"]}"#, false),
        (
            r#"{"type":"object","properties":{"a":{"type":"object"}},"required":["a"],"additionalProperties":false}"#,
            false,
        ),
        (r#"{"type":"string"}"#, true),
    ] {
        request.format = Some(Format::Schema {
            name: None,
            description: None,
            schema: Json::parse(schema).unwrap(),
            strict: None,
        });
        let out = write(&request, &Target::default());
        let written = &out["response_format"]["json_schema"];
        assert_eq!((&written["name"], &written["strict"]), (&json!("output"), &json!(strict)));
    }
}

#[test]
fn fields_of_the_gateway_stand_once() {
    let request = read(&json!({"messages": [], "cache_salt": "theirs", "stream": true}));
    let target = Target {
        fields: vec![("cache_salt", Json::text("ours"))],
        model: Some("there".into()),
        ..Target::default()
    };
    let out = ChatCodec.write(&request, &target, &mut Losses::default()).unwrap();
    assert_eq!(
        out,
        r#"{"model":"there","messages":[],"stream":true,"stream_options":{"include_usage":true},"cache_salt":"ours"}"#
    );
}

#[test]
fn case_30_a_longer_history_begins_with_the_bytes_of_the_shorter_one() {
    let body: Value = serde_json::from_str(EVERYTHING).unwrap();
    let all = body["messages"].as_array().unwrap();
    let of = |count: usize| {
        let mut body = body.clone();
        body["messages"] = json!(all[..count]);
        let out =
            ChatCodec.write(&read(&body), &Target::default(), &mut Losses::default()).unwrap();
        let at = out.find("\"messages\":[").unwrap();
        let end = out.find("],\"tools\":").unwrap();
        out[at..end].to_owned()
    };
    // Where an answer follows; before it, results may still come and are put first.
    for count in [4, 10, 11, 12, 14] {
        let (short, long) = (of(count), of(all.len()));
        assert!(long.starts_with(&short), "{count}:\n{short}\n{long}");
        assert_eq!(short, of(count));
    }
}

#[test]
fn many_members_and_calls_take_no_more_time_each_than_few() {
    const MANY: usize = 20_000;
    let began = Stopwatch::start();
    let calls: Vec<Value> = (0..MANY)
        .map(|at| {
            let function = json!({"name": "f", "arguments": "{}"});
            json!({"id": format!("c{at}"), "type": "function", "function": function})
        })
        .collect();
    let result =
        |at: usize| json!({"role": "tool", "tool_call_id": format!("c{at}"), "content": ""});
    let mut messages = vec![json!({"role": "assistant", "tool_calls": calls})];
    messages.extend((0..MANY).rev().map(result));
    // Of unknown calls, too.
    messages.extend((MANY..2 * MANY).map(result));
    messages.extend((0..MANY).map(|_| json!({"role": "function", "name": "g", "content": ""})));
    let mut body = json!({"messages": messages});
    (0..MANY).for_each(|at| body[format!("x{at}")] = Value::Null);
    let out = write(&read(&body), &Target::default());
    let ids = out["messages"].as_array().unwrap()[1..].iter();
    let ids: Vec<&str> = ids.map(|m| m["tool_call_id"].as_str().unwrap()).collect();
    assert_eq!((ids[0], ids[MANY - 1], ids[MANY]), ("c0", "c19999", "c20000"));
    assert!(out["x7"].is_null() && out.as_object().unwrap().contains_key("x7"));
    assert!(began.time().as_secs() < 6, "{:?}", began.time());
}

#[test]
fn a_call_that_stands_twice_in_a_list_is_one() {
    let call = |id: &str, arguments: &str| {
        let function = json!({"name": "f", "arguments": arguments});
        json!({"id": id, "type": "function", "function": function})
    };
    let calls = json!([call("a", "1"), call("b", "1"), call("a", "1"), call("a", "2")]);
    let request = read(&json!({"messages": [{"role": "assistant", "tool_calls": calls}]}));
    let kept = request.turns[0].parts.iter().map(|part| match part {
        Part::ToolCall(call) => format!("{}{}", call.id, call.arguments),
        other => panic!("{other:?}"),
    });
    assert_eq!(kept.collect::<Vec<_>>(), ["a1", "b1", "a2"]);
}

#[test]
fn results_in_results_and_schemas_in_schemas_end_somewhere() {
    const DEEP: usize = 20_000;
    let open = r#"{"type":"tool_result","tool_use_id":"t","content":["#;
    let nested = format!("{}{}", open.repeat(DEEP), "]}".repeat(DEEP));
    let body = format!(r#"{{"messages":[{{"role":"user","content":[{nested}]}}]}}"#);
    let request = ChatCodec.read(&body).unwrap();
    let Part::ToolResult(outer) = &request.turns[0].parts[0] else { panic!() };
    assert!(matches!(&outer.parts[..], [Part::Opaque(inner)] if inner.kind == "tool_result"));
    for (open, close) in [("[", "]"), (r#"{"a":"#, "}")] {
        let schema = format!("{}1{}", open.repeat(DEEP), close.repeat(DEEP));
        let format = Format::Schema {
            name: None,
            description: None,
            schema: Json::parse(&schema).unwrap(),
            strict: None,
        };
        let ext = Extension::new("messages", Vec::new());
        let request = Request { format: Some(format), ext, ..Request::default() };
        let out = ChatCodec.write(&request, &Target::default(), &mut Losses::default()).unwrap();
        assert!(out.contains(r#""strict":false"#));
    }
}

proptest! {
    #[test]
    fn any_members_come_back(
        names in proptest::collection::hash_set("[a-z]{3}_[a-z]{1,9}", 0..6),
        texts in proptest::collection::vec(any::<String>(), 1..4),
        arguments in any::<String>(),
    ) {
        let mut body = json!({"model": "m", "messages": [
            {"role": "system", "content": &texts[0]},
            {"role": "user", "content": texts.iter().map(|t| json!({"type": "text", "text": t})).collect::<Vec<_>>()},
            {"role": "assistant", "content": &texts[0], "tool_calls": [
                {"id": "i", "type": "function", "function": {"name": "f", "arguments": arguments}},
            ]},
            {"role": "tool", "tool_call_id": "i", "content": texts.last()},
        ]});
        for (at, name) in names.iter().enumerate() {
            if body.get(name).is_none() {
                body[name] = json!({"v": [at, texts[0].clone()]});
            }
        }
        let text = body.to_string();
        // Names that have a meaning are not arbitrary members.
        prop_assume!(ChatCodec.read(&text).is_ok());
        prop_assert_eq!(write(&read(&body), &faithful()), body);
    }
}
