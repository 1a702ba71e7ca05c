//! Requests of other languages, for a backend that speaks Responses.

use serde_json::{Value, json};

use super::{
    super::{ResponsesCodec, traits::NAME},
    requests::write,
};
use crate::dialect::hub::{
    Codec, Extension, Json, Losses, Part, Request, Role, Target, Turn,
    request::{
        CustomTool, Format, Function, Media, MediaSource, Opaque, Reasoning, ReasoningMode,
        ReasoningPart, Sampling, Search, State, SystemText, Text, Tool, ToolCall, ToolChoice,
        ToolKind, ToolResult,
    },
    target::Quirks,
};

fn turn(role: Role, parts: Vec<Part>) -> Turn {
    Turn { role, parts, path: "messages[0]".into(), ..Turn::default() }
}

fn text(text: &str) -> Part {
    Part::Text(Text::plain(text))
}

fn call(id: &str, arguments: &str) -> Part {
    Part::ToolCall(ToolCall {
        id: id.into(),
        name: "f".into(),
        arguments: arguments.into(),
        ..ToolCall::default()
    })
}

fn result(id: &str, parts: Vec<Part>, is_error: bool) -> Part {
    Part::ToolResult(ToolResult { call: id.into(), parts, is_error, ..ToolResult::default() })
}

fn json(text: &str) -> Json {
    Json::parse(text).unwrap()
}

fn input(turns: Vec<Turn>) -> Value {
    write(&Request { turns, ..Request::default() }).0["input"].clone()
}

#[test]
fn a_conversation_becomes_items_without_ids() {
    let items = input(vec![
        turn(Role::User, vec![text("hi")]),
        turn(Role::Assistant, vec![text("ok"), call("c1", "{\"a\": 1}"), call("c2", "")]),
        turn(
            Role::User,
            vec![
                result("c1", vec![text("1"), text("2")], false),
                result("c2", vec![], true),
                text("go on"),
            ],
        ),
        turn(Role::Assistant, vec![Part::Refusal("no".into())]),
        Turn { developer: true, ..turn(Role::System, vec![text("be brief")]) },
    ]);
    assert_eq!(
        items,
        json!([
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hi"}]},
            {"type": "message", "role": "assistant", "content": "ok"},
            {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{\"a\": 1}"},
            {"type": "function_call", "call_id": "c2", "name": "f", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c1", "output": "1\n2"},
            {"type": "function_call_output", "call_id": "c2", "output": "Error: "},
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "go on"}]},
            {"type": "message", "role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]},
            {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "be brief"}]},
        ])
    );
}

#[test]
fn several_texts_of_the_model_stay_apart() {
    let phased = Text { phase: Some("final_answer".into()), ..Text::plain("b") };
    assert_eq!(
        input(vec![turn(Role::Assistant, vec![text("a"), Part::Text(phased)])]),
        json!([{"type": "message", "phase": "final_answer", "role": "assistant", "content": [
            {"type": "output_text", "text": "a", "annotations": []},
            {"type": "output_text", "text": "b", "annotations": []}]}])
    );
}

#[test]
fn a_text_between_two_calls_stands_before_them() {
    let kinds = |parts| -> Vec<String> {
        let items = input(vec![turn(Role::Assistant, parts)]);
        items.as_array().unwrap().iter().map(|item| item["type"].as_str().unwrap().into()).collect()
    };
    let parts = vec![call("a", "{}"), text("x"), call("b", "{}"), text("y")];
    assert_eq!(kinds(parts), ["message", "function_call", "function_call", "message"]);
    let parts = vec![call("a", "{}"), sealed(), text("x"), call("b", "{}")];
    assert_eq!(kinds(parts), ["function_call", "reasoning", "message", "function_call"]);
}

fn sealed() -> Part {
    Part::Reasoning(ReasoningPart {
        text: Some("thought".into()),
        state: Some(State { issuer: Some("i".into()), language: NAME.into(), value: "enc".into() }),
        ..ReasoningPart::default()
    })
}

#[test]
fn reasoning_goes_back_only_with_the_state_of_its_vendor() {
    let foreign = |language: &str| {
        let state = State { issuer: None, language: language.into(), value: "sig".into() };
        Part::Reasoning(ReasoningPart {
            text: Some("t".into()),
            state: Some(state),
            ..ReasoningPart::default()
        })
    };
    let bare =
        Part::Reasoning(ReasoningPart { text: Some("t".into()), ..ReasoningPart::default() });
    let turns = vec![turn(Role::Assistant, vec![sealed(), foreign("messages"), bare, text("x")])];
    let (body, losses) = write(&Request { turns, ..Request::default() });
    let items = body["input"].as_array().unwrap();
    assert_eq!(items.len(), 2);
    assert_eq!(
        items[0],
        json!({"type": "reasoning", "summary": [{"type": "summary_text", "text": "thought"}], "encrypted_content": "enc"})
    );
    assert_eq!(losses.paths(), ["messages[0]"]);
}

#[test]
fn one_text_of_the_system_is_an_instruction_and_several_are_messages() {
    let system = |origin, text: &str, cache: Option<&str>| SystemText {
        text: text.into(),
        origin,
        cache: cache.map(json),
        ..SystemText::default()
    };
    let of = |system| write(&Request { system, ..Request::default() }).0;
    let one = of(vec![system("system", "a", None)]);
    assert_eq!((&one["instructions"], &one["input"]), (&json!("a"), &json!([])));
    let marked = of(vec![
        system("system", "a", Some(r#"{"type":"ephemeral"}"#)),
        system("system", "b", None),
        system("developer", "c", None),
    ]);
    assert!(marked.get("instructions").is_none());
    assert_eq!(
        marked["input"],
        json!([
            {"type": "message", "role": "system", "content": [
                {"type": "input_text", "text": "a", "prompt_cache_breakpoint": {"mode": "explicit"}},
                {"type": "input_text", "text": "b"}]},
            {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "c"}]},
        ])
    );
}

#[test]
fn nothing_is_kept_that_the_client_did_not_ask_for() {
    let of = |store| {
        let (body, _) = write(&Request { store, ..Request::default() });
        (body["store"].clone(), body["include"].clone())
    };
    let encrypted = json!(["reasoning.encrypted_content"]);
    assert_eq!(of(None), (json!(false), encrypted.clone()));
    assert_eq!(of(Some(false)), (json!(false), encrypted));
    assert_eq!(of(Some(true)), (json!(true), Value::Null));
}

#[test]
fn a_limit_is_not_lower_than_the_vendor_takes() {
    for (asked, sent, lost) in [(1, 16, true), (16, 16, false), (500, 500, false)] {
        let (body, losses) = write(&Request { max_output: Some(asked), ..Request::default() });
        assert_eq!((body["max_output_tokens"].as_u64(), losses.is_empty()), (Some(sent), !lost));
    }
}

#[test]
fn tools_are_flat_and_not_strict_unless_they_say_so() {
    let function = |strict, parameters: Option<&str>| {
        Tool::Function(Function {
            name: "f".into(),
            strict,
            parameters: parameters.map(json),
            ..Function::default()
        })
    };
    let grammar = r#"{"type":"grammar","grammar":{"syntax":"lark","definition":"x"}}"#;
    let custom =
        CustomTool { name: "p".into(), format: Some(json(grammar)), ..CustomTool::default() };
    let request = Request {
        tools: vec![function(None, None), function(Some(true), Some("{}")), Tool::Custom(custom)],
        tool_choice: Some(ToolChoice::Allowed {
            names: vec!["f".into(), "p".into()],
            required: true,
            json: json(r#"{"type":"allowed_tools","allowed_tools":{}}"#),
        }),
        ..Request::default()
    };
    let (body, _) = write(&request);
    assert_eq!(
        body["tools"],
        json!([
            {"type": "function", "name": "f", "parameters": {"type": "object", "properties": {}}, "strict": false},
            {"type": "function", "name": "f", "parameters": {}, "strict": true},
            {"type": "custom", "name": "p", "format": {"type": "grammar", "syntax": "lark", "definition": "x"}},
        ])
    );
    assert_eq!(
        body["tool_choice"],
        json!({"type": "allowed_tools", "mode": "required", "tools": [
            {"type": "function", "name": "f"}, {"type": "custom", "name": "p"}]})
    );
    // A choice without tools is refused by the vendor.
    let (body, _) = write(&Request { tool_choice: Some(ToolChoice::Auto), ..Request::default() });
    assert!(body.get("tool_choice").is_none());
}

#[test]
fn the_form_of_the_answer_and_reasoning_have_their_places() {
    let schema =
        |strict| Format::Schema { name: None, description: None, schema: json("{}"), strict };
    let request = Request {
        format: Some(schema(None)),
        verbosity: Some("low".into()),
        reasoning: Reasoning {
            budget: Some(4096),
            mode: Some(ReasoningMode::On),
            ..Reasoning::default()
        },
        logprobs: Some(2),
        user: Some("x".repeat(100)),
        sampling: Sampling { temperature: Some(json("0.70")), ..Sampling::default() },
        stop: vec!["x".into()],
        ..Request::default()
    };
    let (body, losses) = write(&request);
    assert_eq!(
        body["text"],
        json!({"format": {"type": "json_schema", "name": "output", "schema": {}, "strict": false}, "verbosity": "low"})
    );
    assert_eq!(body["reasoning"], json!({"effort": "medium", "summary": "auto"}));
    assert_eq!(body["top_logprobs"], json!(2));
    assert_eq!(
        body["include"],
        json!(["reasoning.encrypted_content", "message.output_text.logprobs"])
    );
    assert_eq!(body["safety_identifier"].as_str().map(str::len), Some(64));
    assert_eq!(losses.paths(), ["stop"]);
    let off = Reasoning { mode: Some(ReasoningMode::Off), ..Reasoning::default() };
    let off = Request {
        reasoning: off,
        ext: Extension::new("messages", Vec::new()),
        ..Request::default()
    };
    let (body, _) = write(&off);
    assert_eq!(body["reasoning"], json!({"effort": "none"}));
    // A vendor answers 400 to a word that its model does not have.
    let quirks = Quirks { effort_none: false, ..Quirks::default() };
    let (vendor, mut losses) = (Target { quirks, ..Target::default() }, Losses::default());
    let body = ResponsesCodec.write(&off, &vendor, &mut losses).unwrap();
    assert!(!body.contains("\"effort\""), "{body}");
    assert_eq!(losses.paths(), ["thinking"]);
}

#[test]
fn media_have_their_parts() {
    let media = |source, mime: Option<&str>, name: Option<&str>| Media {
        source,
        mime: mime.map(str::to_owned),
        name: name.map(str::to_owned),
        ..Media::default()
    };
    let base64 = |data: &str| MediaSource::Base64(data.into());
    let search = Search {
        title: "t".into(),
        source: "s".into(),
        parts: vec![text("x")],
        ..Search::default()
    };
    let opaque = Opaque {
        language: "messages",
        kind: "k".into(),
        json: json("{}"),
        readable: "read".into(),
    };
    let parts = vec![
        Part::Image(media(base64("/9j/x"), None, None)),
        Part::Image(media(MediaSource::Url("https://x".into()), None, None)),
        Part::File(media(base64("JVBE"), Some("application/pdf"), None)),
        Part::File(media(MediaSource::Text("body".into()), None, Some("notes"))),
        Part::File(media(MediaSource::FileId("f".into()), None, None)),
        Part::Audio(media(base64("AA"), Some("audio/mpeg"), None)),
        Part::Search(search),
        Part::Opaque(opaque),
    ];
    let (body, losses) =
        write(&Request { turns: vec![turn(Role::User, parts)], ..Request::default() });
    assert_eq!(
        body["input"][0]["content"],
        json!([
            {"type": "input_image", "detail": "auto", "image_url": "data:image/jpeg;base64,/9j/x"},
            {"type": "input_image", "detail": "auto", "image_url": "https://x"},
            {"type": "input_file", "filename": "file", "file_data": "data:application/pdf;base64,JVBE"},
            {"type": "input_text", "text": "notes\n\nbody"},
            {"type": "input_file", "file_id": "f"},
            {"type": "input_audio", "input_audio": {"data": "AA", "format": "mp3"}},
            {"type": "input_text", "text": "t\ns\nx"},
            {"type": "input_text", "text": "read"},
        ])
    );
    assert!(!losses.is_empty());
    let video = Request {
        turns: vec![turn(Role::User, vec![Part::Video(Media::default())])],
        ..Request::default()
    };
    let refused = ResponsesCodec.write(&video, &Target::default(), &mut Losses::default());
    assert_eq!(refused.unwrap_err().path, "messages[0]");
}

#[test]
fn an_output_with_an_image_is_a_list() {
    let image = Part::Image(Media { source: MediaSource::Url("u".into()), ..Media::default() });
    let parts = vec![result("c", vec![text("see"), image], true)];
    assert_eq!(
        input(vec![turn(Role::User, parts)])[0]["output"],
        json!([{"type": "input_text", "text": "Error:"}, {"type": "input_text", "text": "see"},
            {"type": "input_image", "detail": "auto", "image_url": "u"}])
    );
}

#[test]
fn the_target_names_the_model_and_adds_members() {
    let mut target = Target { model: Some("there".into()), ..Target::default() };
    target.fields.push(("cache_salt", json("\"s\"")));
    target.quirks.refuses.extend(["store".into(), "service_tier".into()]);
    let tier = Some("flex".to_owned());
    let request = Request { model: Some("here".into()), service_tier: tier, ..Request::default() };
    let mut losses = Losses::default();
    let text = ResponsesCodec.write(&request, &target, &mut losses).unwrap();
    let body: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((&body["model"], &body["cache_salt"]), (&json!("there"), &json!("s")));
    assert!(body.get("store").is_none() && body.get("service_tier").is_none());
    // Nothing was to be stored.
    assert_eq!(losses.paths(), ["service_tier"]);
}

#[test]
fn a_longer_history_begins_with_the_bytes_of_the_shorter() {
    let turns = [
        turn(Role::User, vec![text("hi")]),
        turn(Role::Assistant, vec![sealed(), call("a", "{}"), text("x"), call("b", "{}")]),
        turn(Role::User, vec![result("a", vec![text("1")], false), result("b", vec![], false)]),
        turn(Role::Assistant, vec![text("done")]),
    ];
    let items = |many: usize| {
        let request = Request { turns: turns[..many].to_vec(), ..Request::default() };
        let text =
            ResponsesCodec.write(&request, &Target::default(), &mut Losses::default()).unwrap();
        let (from, to) = (text.find("\"input\":[").unwrap(), text.find("],\"include\"").unwrap());
        text[from..to].to_owned()
    };
    for many in 1..turns.len() {
        assert!(items(many + 1).starts_with(&items(many)), "{many}");
    }
}

#[test]
fn a_custom_tools_result_has_its_own_type() {
    let mut custom =
        ToolCall { id: "c".into(), name: "p".into(), arguments: "x".into(), ..ToolCall::default() };
    custom.kind = ToolKind::Custom;
    let answer = ToolResult { call: "c".into(), kind: ToolKind::Custom, ..ToolResult::default() };
    let items = input(vec![
        turn(Role::Assistant, vec![Part::ToolCall(custom)]),
        turn(Role::User, vec![Part::ToolResult(answer)]),
    ]);
    assert_eq!(
        items,
        json!([{"type": "custom_tool_call", "call_id": "c", "name": "p", "input": "x"},
            {"type": "custom_tool_call_output", "call_id": "c", "output": ""}])
    );
}
