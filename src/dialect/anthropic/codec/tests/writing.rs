//! Writing requests that were read from other languages.

use base64::{Engine, engine::general_purpose::STANDARD};
use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::dialect::hub::{
    Extension, Part, Role, Turn,
    request::{
        Format, Function, Media, MediaSource, Reasoning, ReasoningMode, ReasoningPart, Search,
        State, SystemText, Text, Tool, ToolCall, ToolChoice, ToolKind, ToolResult,
    },
    stopwatch::Stopwatch,
    target::{ModelFacts, Thinking},
};

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

fn result(id: &str, content: &str) -> Part {
    Part::ToolResult(ToolResult {
        call: id.into(),
        parts: vec![text(content)],
        plain: true,
        ..ToolResult::default()
    })
}

fn turns(turns: Vec<(Role, Vec<Part>)>) -> Request {
    let turns = turns.into_iter().enumerate().map(|(at, (role, parts))| Turn {
        role,
        parts,
        path: format!("messages[{at}]"),
        ..Turn::default()
    });
    Request {
        model: Some("alias".into()),
        turns: turns.collect(),
        ext: Extension::new("chat", Vec::new()),
        ..Request::default()
    }
}

fn user(parts: Vec<Part>) -> Request {
    turns(vec![(Role::User, parts)])
}

fn target(facts: ModelFacts) -> Target {
    Target { model: Some("claude".into()), facts, ..Target::default() }
}

fn plain(request: &Request) -> Value {
    let (out, losses) = write(request, &Target::default());
    assert!(losses.is_empty(), "{losses:?}");
    out
}

fn messages(request: &Request) -> Value {
    plain(request)["messages"].clone()
}

fn block(part: Part) -> Value {
    messages(&user(vec![part]))[0]["content"][0].clone()
}

fn why(request: &Request) -> Refused {
    refused(request, &Target::default())
}

fn paths(losses: &Losses) -> Vec<String> {
    losses.iter().map(|loss| loss.path.clone()).collect()
}

#[test]
fn a_limit_is_always_there() {
    let facts = |most, default| ModelFacts {
        max_output: most,
        default_output: default,
        ..ModelFacts::default()
    };
    for (wanted, facts, written, lost) in [
        (None, facts(None, None), 4096, false),
        (None, facts(Some(1000), None), 1000, false),
        (None, facts(None, Some(8000)), 8000, false),
        (None, facts(Some(5000), Some(8000)), 5000, false),
        (Some(1), facts(None, Some(8000)), 1, false),
        (Some(9000), facts(Some(5000), None), 5000, true),
    ] {
        let request = Request { max_output: wanted, ..user(vec![text("x")]) };
        let (out, losses) = write(&request, &target(facts));
        assert_eq!((&out["max_tokens"], !losses.is_empty()), (&json!(written), lost), "{wanted:?}");
        assert_eq!(out["model"], "claude");
    }
}

#[test]
fn blank_texts_and_empty_turns_are_left_out() {
    let request = turns(vec![
        (Role::User, vec![text("a"), text(" \n"), text("")]),
        (Role::Assistant, vec![text("")]),
        (Role::User, vec![text("b")]),
        (Role::Assistant, vec![text("c")]),
        (Role::Assistant, vec![Part::Refusal("no".into())]),
    ]);
    assert_eq!(
        messages(&request),
        json!([
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            {"role": "assistant", "content": [{"type": "text", "text": "c"}, {"type": "text", "text": "no"}]},
        ])
    );
}

#[test]
fn texts_of_the_system_are_blocks_with_their_marks() {
    let system = |text: &str, cache: Option<&str>| SystemText {
        text: text.into(),
        cache: cache.map(json),
        ..SystemText::default()
    };
    let request = Request {
        system: vec![
            system("a", Some(r#"{"type":"ephemeral","ttl":"1h"}"#)),
            system(" ", None),
            system("b", Some(r#"{"mode":"explicit","ttl":"12h"}"#)),
            system("c", None),
        ],
        ..user(vec![text("x")])
    };
    assert_eq!(
        plain(&request)["system"],
        json!([
            {"type": "text", "text": "a", "cache_control": {"type": "ephemeral", "ttl": "1h"}},
            {"type": "text", "text": "b", "cache_control": {"type": "ephemeral"}},
            {"type": "text", "text": "c"},
        ])
    );
    assert!(plain(&user(vec![text("x")]))["system"].is_null());
}

/// Cases 9 and 10: all results of a turn stand first, in the order of the calls.
#[test]
fn results_are_contiguous_and_in_the_order_of_their_calls() {
    let image = Part::Image(Media {
        source: MediaSource::Url("https://example.com/a".into()),
        ..Media::default()
    });
    let request = turns(vec![
        (Role::User, vec![text("go")]),
        (
            Role::Assistant,
            vec![text("I call"), call("a", "{}"), call("b", ""), call("c", "{\"x\":1.0}")],
        ),
        (Role::User, vec![result("c", "3"), image]),
        (Role::User, vec![text("between"), result("a", "1")]),
        (Role::User, vec![result("b", "2")]),
        (Role::User, vec![text("and now?")]),
    ]);
    let out = messages(&request);
    assert_eq!(out.as_array().unwrap().len(), 3);
    let kinds: Vec<_> = out[2]["content"]
        .as_array()
        .unwrap()
        .iter()
        .map(|b| b["tool_use_id"].as_str().or(b["text"].as_str()).unwrap_or("image").to_owned())
        .collect();
    assert_eq!(kinds, ["a", "b", "c", "image", "between", "and now?"]);
    assert_eq!(out[1]["content"][2]["input"], json!({}));
}

/// A system message must not part calls from their results either.
#[test]
fn late_system_turns_are_native_or_marked() {
    let request = turns(vec![
        (Role::User, vec![text("go")]),
        (Role::System, vec![text("be brief")]),
        (Role::Assistant, vec![call("a", "{}")]),
        (Role::System, vec![text("hurry")]),
        (Role::User, vec![result("a", "1")]),
        (Role::System, vec![text("well")]),
    ]);
    let roles = |facts: ModelFacts| {
        let out = write(&request, &target(facts)).0;
        let all = out["messages"].as_array().unwrap().clone();
        all.iter()
            .map(|m| (m["role"].as_str().unwrap().to_owned(), m["content"].clone()))
            .collect::<Vec<_>>()
    };
    let native = roles(ModelFacts { late_system: Some(true), ..ModelFacts::default() });
    let names: Vec<_> = native.iter().map(|(role, _)| role.as_str()).collect();
    assert_eq!(names, ["user", "system", "assistant", "user", "system"]);
    assert_eq!(native[4].1.as_array().unwrap().len(), 2);
    for facts in
        [ModelFacts::default(), ModelFacts { late_system: Some(false), ..ModelFacts::default() }]
    {
        let marked = roles(facts);
        let names: Vec<_> = marked.iter().map(|(role, _)| role.as_str()).collect();
        assert_eq!(names, ["user", "assistant", "user"]);
        assert_eq!(marked[0].1[1]["text"], "<system-reminder>\nbe brief\n</system-reminder>");
        assert_eq!(marked[2].1[0]["type"], "tool_result");
        assert_eq!(marked[2].1[1]["text"], "<system-reminder>\nhurry\n</system-reminder>");
    }
    // A Messages client's own stay what they are, unless the model is known not to take them.
    let own = read(fixture!("claude-001.request.json"));
    assert_eq!(plain(&own)["messages"][1]["role"], "system");
    let facts = ModelFacts { late_system: Some(false), ..ModelFacts::default() };
    assert_eq!(write(&own, &target(facts)).0["messages"][1]["role"], "user");
}

#[test]
fn arguments_are_objects_or_refused() {
    let with = |arguments: &str| turns(vec![(Role::Assistant, vec![call("call_9", arguments)])]);
    let input = |arguments: &str| messages(&with(arguments))[0]["content"][0]["input"].clone();
    assert_eq!(input(""), json!({}));
    assert_eq!(input("  "), json!({}));
    let body = CODEC.write(
        &with(r#"{"z": 12345678901234567890, "a": 1.50}"#),
        &Target::default(),
        &mut Losses::default(),
    );
    assert!(body.unwrap().contains(r#""input":{"z":12345678901234567890,"a":1.50}"#));
    for arguments in ["[]", "\"x\"", "{\"a\":", "null", "{} x"] {
        let refused = why(&with(arguments));
        assert!(refused.why.contains("`call_9`") && !refused.invalid, "{refused}");
        assert_eq!(refused.path, "messages[0]");
    }
    let custom = Part::ToolCall(ToolCall { kind: ToolKind::Custom, ..ToolCall::default() });
    assert!(!why(&turns(vec![(Role::Assistant, vec![custom])])).why.is_empty());
}

/// Case 21: ids with characters that the vendor refuses; the result still matches its call.
#[test]
fn ids_of_calls_are_made_fit_for_the_vendor() {
    let request = turns(vec![
        (Role::Assistant, vec![call("functions.Bash:0", "{}"), call("toolu_1", "{}")]),
        (Role::User, vec![result("toolu_1", "b"), result("functions.Bash:0", "a")]),
    ]);
    let out = messages(&request);
    let id = out[0]["content"][0]["id"].as_str().unwrap();
    assert!(id.starts_with("functions_Bash_0_"), "{id}");
    assert_eq!(out[1]["content"][0]["tool_use_id"], id);
    assert_eq!(out[1]["content"][1]["tool_use_id"], "toolu_1");
}

#[test]
fn many_results_of_one_turn_are_ordered_in_a_moment() {
    const MANY: usize = 20_000;
    let id = |at: usize| format!("toolu_{at}");
    let calls = (0..MANY).map(|at| call(&id(at), "{}")).collect();
    let results = (0..MANY).rev().map(|at| result(&id(at), "x")).collect();
    let request = turns(vec![(Role::Assistant, calls), (Role::User, results)]);
    let began = Stopwatch::start();
    let out = messages(&request);
    assert!(began.time().as_secs() < 8, "{:?}", began.time());
    assert_eq!(out[1]["content"][MANY - 1]["tool_use_id"], id(MANY - 1));
}

#[test]
fn results_say_what_there_is() {
    let of = |parts: Vec<Part>, plain, is_error| {
        block(Part::ToolResult(ToolResult {
            call: "a".into(),
            parts,
            plain,
            is_error,
            ..ToolResult::default()
        }))
    };
    let head = |more: Value| {
        let mut all = json!({"type": "tool_result", "tool_use_id": "a"});
        all.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        all
    };
    assert_eq!(of(vec![text("r")], true, false), head(json!({"content": "r"})));
    assert_eq!(of(vec![text("")], true, false), head(json!({})));
    assert_eq!(of(vec![], false, false), head(json!({})));
    assert_eq!(of(vec![text("")], true, true), head(json!({"content": "error", "is_error": true})));
    assert_eq!(
        of(vec![text("r"), text(" "), text("s")], false, true),
        head(
            json!({"content": [{"type": "text", "text": "r"}, {"type": "text", "text": "s"}], "is_error": true})
        )
    );
    let audio = Part::ToolResult(ToolResult {
        parts: vec![Part::Audio(Media::default())],
        ..ToolResult::default()
    });
    assert!(why(&user(vec![audio])).why.contains("audio"));
}

fn base64(bytes: &[u8]) -> String {
    let mut all = bytes.to_vec();
    all.resize(all.len().max(24), b' ');
    STANDARD.encode(all)
}

#[test]
fn images_are_told_by_their_type_or_their_bytes() {
    let image = |mime: Option<&str>, source: MediaSource| {
        Part::Image(Media { source, mime: mime.map(str::to_owned), ..Media::default() })
    };
    let png = base64(b"\x89PNG\r\n\x1a\n");
    let bytes = |mime: &str| json!({"type": "base64", "media_type": mime, "data": png});
    for (said, told) in [
        (Some("image/png"), "image/png"),
        (Some("image/jpg"), "image/jpeg"),
        (Some("image/webp"), "image/webp"),
        (None, "image/png"),
        (Some("application/octet-stream"), "image/png"),
    ] {
        let part = image(said, MediaSource::Base64(png.clone()));
        assert_eq!(block(part)["source"], bytes(told), "{said:?}");
    }
    let url = |url: &str| image(None, MediaSource::Url(url.to_owned()));
    assert_eq!(block(url("https://x/a"))["source"], json!({"type": "url", "url": "https://x/a"}));
    assert_eq!(block(url(&format!("data:image/gif;base64,{png}")))["source"], bytes("image/gif"));
    for part in [
        image(Some("image/bmp"), MediaSource::Base64(png.clone())),
        image(None, MediaSource::Base64(base64(b"BM"))),
        image(None, MediaSource::Base64(String::new())),
        url("ftp://x/a"),
        url("data:image/svg+xml;base64,AAAA"),
        image(None, MediaSource::Text("x".into())),
    ] {
        let refused = why(&user(vec![text("x"), part.clone()]));
        assert_eq!(refused.path, "messages[0].content[1]", "{part:?}");
    }
    let detail = Part::Image(Media {
        source: MediaSource::Url("https://x/a".into()),
        detail: Some("high".into()),
        ..Media::default()
    });
    let (_, losses) = write(&user(vec![detail]), &Target::default());
    assert_eq!(paths(&losses), ["messages[0].content[0].detail"]);
}

#[test]
fn documents_are_pdf_or_text_and_sounds_are_refused() {
    let file = |mime: Option<&str>, name: Option<&str>, bytes: &[u8]| {
        Part::File(Media {
            source: MediaSource::Base64(STANDARD.encode(bytes)),
            mime: mime.map(str::to_owned),
            name: name.map(str::to_owned),
            ..Media::default()
        })
    };
    let pdf = b"%PDF-1.7 and so on";
    for (mime, name) in [
        (Some("application/pdf"), Some("a.pdf")),
        (None, Some("a")),
        (Some("application/octet-stream"), None),
    ] {
        let out = block(file(mime, name, pdf));
        assert_eq!(
            (&out["type"], &out["source"]["media_type"]),
            (&json!("document"), &json!("application/pdf"))
        );
        assert_eq!(out["title"].as_str(), name);
    }
    for mime in ["text/plain", "text/markdown; charset=utf-8", "application/json"] {
        let out = block(file(Some(mime), Some("n"), "grüß".as_bytes()));
        assert_eq!(
            out["source"],
            json!({"type": "text", "media_type": "text/plain", "data": "grüß"})
        );
    }
    for (mime, bytes) in [
        (Some("application/zip"), &b"PK"[..]),
        (Some("text/plain"), b"\xff\xfe"),
        (None, b"what is this, then?"),
    ] {
        assert!(why(&user(vec![file(mime, Some("n"), bytes)])).why.contains("PDF"), "{mime:?}");
    }
    for part in [Part::Audio(Media::default()), Part::Video(Media::default())] {
        assert_eq!(why(&user(vec![part])).path, "messages[0].content[0]");
    }
    let search = Part::Search(Search {
        source: "s".into(),
        title: "t".into(),
        parts: vec![text("x")],
        ..Search::default()
    });
    assert_eq!(block(search)["content"], json!([{"type": "text", "text": "x"}]));
}

/// Case 25: what has no signature of ours is left out, and none is made up.
#[test]
fn only_reasoning_with_our_own_state_goes_back() {
    let state = |language: &str| {
        Some(State { issuer: None, language: language.into(), value: "sig".into() })
    };
    let thought = |text: Option<&str>, state: Option<State>, redacted| {
        Part::Reasoning(ReasoningPart {
            text: text.map(str::to_owned),
            state,
            redacted,
            ..ReasoningPart::default()
        })
    };
    let request = turns(vec![
        (Role::User, vec![text("x")]),
        (
            Role::Assistant,
            vec![
                thought(Some("unsigned"), None, false),
                thought(Some("foreign"), state("responses"), false),
                thought(Some("ours"), state(LANGUAGE), false),
                thought(None, state(LANGUAGE), false),
                thought(None, state(LANGUAGE), true),
                text("said"),
            ],
        ),
    ]);
    assert_eq!(
        messages(&request)[1]["content"],
        json!([
            {"type": "thinking", "thinking": "ours", "signature": "sig"},
            {"type": "thinking", "thinking": "", "signature": "sig"},
            {"type": "redacted_thinking", "data": "sig"},
            {"type": "text", "text": "said"},
        ])
    );
    let alone = turns(vec![(Role::Assistant, vec![thought(Some("x"), None, false)])]);
    assert_eq!(messages(&alone), json!([]));
}

fn tool(name: &str, parameters: Option<&str>) -> Tool {
    Tool::Function(Function {
        name: name.into(),
        parameters: parameters.map(json),
        path: "tools[0].function".into(),
        ..Function::default()
    })
}

#[test]
fn choices_have_their_words() {
    let allowed = |names: &[&str], required| ToolChoice::Allowed {
        names: names.iter().map(|name| (*name).to_owned()).collect(),
        required,
        json: json("{}"),
    };
    let named = || ToolChoice::Named { name: "f".into(), kind: ToolKind::Function };
    for (choice, parallel, written, tools) in [
        (None, None, json!(null), 3),
        (None, Some(true), json!(null), 3),
        (None, Some(false), json!({"type": "auto", "disable_parallel_tool_use": true}), 3),
        (Some(ToolChoice::Auto), None, json!({"type": "auto"}), 3),
        (Some(ToolChoice::None), Some(false), json!({"type": "none"}), 3),
        (
            Some(ToolChoice::Required),
            Some(false),
            json!({"type": "any", "disable_parallel_tool_use": true}),
            3,
        ),
        (Some(named()), None, json!({"type": "tool", "name": "f"}), 3),
        (Some(allowed(&["f", "g"], false)), None, json!({"type": "auto"}), 2),
        (Some(allowed(&["f", "g"], true)), None, json!({"type": "any"}), 2),
        (Some(allowed(&["g"], true)), None, json!({"type": "tool", "name": "g"}), 1),
    ] {
        let request = Request {
            tools: vec![
                tool("f", None),
                tool("g", Some("{}")),
                tool("h", Some(r#"{"type":"object","x":1}"#)),
            ],
            tool_choice: choice.clone(),
            parallel_tools: parallel,
            ..user(vec![text("x")])
        };
        let out = plain(&request);
        assert_eq!(out["tool_choice"], written, "{choice:?}");
        assert_eq!(out["tools"].as_array().unwrap().len(), tools, "{choice:?}");
        assert_eq!(out["tools"][0]["input_schema"], json!({"type": "object", "properties": {}}));
        let none = Request { tools: Vec::new(), ..request };
        match choice {
            None | Some(ToolChoice::Auto | ToolChoice::None) => {
                assert!(plain(&none)["tool_choice"].is_null());
            }
            Some(_) => assert_eq!(why(&none).path, "tool_choice"),
        }
    }
}

#[test]
fn strict_tools_pass_unless_the_model_does_not_know_them() {
    let mut function = Function {
        name: "f".into(),
        strict: Some(true),
        path: "tools[0]".into(),
        ..Function::default()
    };
    let request = |function: &Function| Request {
        tools: vec![Tool::Function(function.clone())],
        ..user(vec![text("x")])
    };
    assert_eq!(plain(&request(&function))["tools"][0]["strict"], true);
    let facts = ModelFacts { schemas: Some(false), ..ModelFacts::default() };
    let (out, losses) = write(&request(&function), &target(facts));
    assert!(out["tools"][0]["strict"].is_null());
    assert_eq!(paths(&losses), ["tools[0].strict"]);
    function.strict = Some(false);
    assert!(plain(&request(&function))["tools"][0]["strict"].is_null());
}

#[test]
fn reasoning_is_told_as_the_model_takes_it() {
    let run = |effort: Option<&str>, budget: Option<u64>, mode, limit: u64, thinking| {
        let mut request = Request { max_output: Some(limit), ..user(vec![text("x")]) };
        request.reasoning.effort = effort.map(str::to_owned);
        request.reasoning.budget = budget;
        request.reasoning.mode = mode;
        let facts = ModelFacts { thinking, ..ModelFacts::default() };
        let (out, losses) = write(&request, &target(facts));
        (out["thinking"].clone(), out["output_config"]["effort"].clone(), paths(&losses))
    };
    let enabled = |budget: u64| json!({"type": "enabled", "budget_tokens": budget});
    let off = || json!({"type": "disabled"});
    let adaptive = || json!({"type": "adaptive"});
    let null = || json!(null);
    let lost = ["reasoning_effort"];
    use ReasoningMode::{Auto, Off};
    for (effort, budget, mode, limit, facts, thinking, word, losses) in [
        (None, None, None, 9000, Thinking::Effort, null(), null(), &[][..]),
        (Some("high"), None, None, 9000, Thinking::Effort, adaptive(), json!("high"), &[]),
        (Some("minimal"), None, None, 9000, Thinking::Effort, adaptive(), json!("low"), &[]),
        (Some("none"), None, None, 9000, Thinking::Effort, off(), null(), &[]),
        (None, Some(3000), None, 9000, Thinking::Effort, adaptive(), json!("medium"), &[]),
        (None, None, Some(Off), 9000, Thinking::Effort, off(), null(), &[]),
        (None, None, Some(Auto), 9000, Thinking::Effort, adaptive(), null(), &[]),
        (Some("low"), None, None, 9000, Thinking::Budget, enabled(1024), null(), &[]),
        (Some("medium"), None, None, 9000, Thinking::Budget, enabled(2048), null(), &[]),
        (Some("max"), None, None, 9000, Thinking::Budget, enabled(8999), null(), &[]),
        (Some("high"), None, None, 1025, Thinking::Budget, enabled(1024), null(), &[]),
        (Some("high"), None, None, 1024, Thinking::Budget, null(), null(), &lost),
        (Some("none"), None, None, 9000, Thinking::Budget, null(), null(), &[]),
        (None, Some(5000), None, 9000, Thinking::Budget, enabled(5000), null(), &[]),
        (None, Some(100), None, 9000, Thinking::Budget, enabled(1024), null(), &[]),
        (Some("high"), None, None, 9000, Thinking::Unknown, null(), json!("high"), &[]),
        (None, Some(5000), None, 9000, Thinking::Unknown, enabled(5000), null(), &[]),
        (Some("none"), None, None, 9000, Thinking::Unknown, off(), null(), &[]),
        (Some("high"), None, None, 9000, Thinking::None, null(), null(), &lost),
        (Some("none"), None, None, 9000, Thinking::None, null(), null(), &[]),
    ] {
        let got = run(effort, budget, mode, limit, facts);
        let losses: Vec<String> = losses.iter().map(|loss| (*loss).to_owned()).collect();
        assert_eq!(
            got,
            (thinking, word, losses),
            "{effort:?} {budget:?} {mode:?} {limit} {facts:?}"
        );
    }
}

#[test]
fn a_limit_of_our_own_leaves_the_answer_its_share() {
    let run = |effort: &str, budget, thinking, default, most| {
        let mut request = user(vec![text("x")]);
        request.reasoning.effort = Some(effort.to_owned()).filter(|word| !word.is_empty());
        request.reasoning.budget = budget;
        let facts = ModelFacts {
            thinking,
            default_output: default,
            max_output: most,
            ..ModelFacts::default()
        };
        let (out, losses) = write(&request, &target(facts));
        let given = out["thinking"]["budget_tokens"].as_u64();
        (out["max_tokens"].as_u64().unwrap(), given, losses.iter().count())
    };
    use Thinking::{Budget, Effort, None as No, Unknown};
    for (effort, budget, thinking, default, most, got) in [
        ("high", None, Budget, None, None, (8192, Some(4096), 0)),
        ("max", None, Budget, Some(8000), None, (24_384, Some(16_384), 0)),
        ("max", None, Budget, None, Some(8192), (8192, Some(4096), 0)),
        ("", Some(100), Budget, None, None, (5120, Some(1024), 0)),
        ("high", None, Budget, None, Some(1500), (1500, None, 1)),
        ("none", None, Budget, None, None, (4096, None, 0)),
        ("high", None, Effort, None, None, (8192, None, 0)),
        ("none", None, Effort, None, None, (4096, None, 0)),
        ("", Some(5000), Unknown, None, None, (9096, Some(5000), 0)),
        ("high", None, Unknown, None, None, (4096, None, 0)),
        ("high", None, No, None, None, (4096, None, 1)),
        ("", None, Budget, None, None, (4096, None, 0)),
    ] {
        let written = run(effort, budget, thinking, default, most);
        assert_eq!(written, got, "{effort} {budget:?} {thinking:?} {default:?} {most:?}");
    }
}

/// A model of budgets refuses to think where it goes on from calls before which it has not.
#[test]
fn reasoning_is_left_out_behind_calls_that_came_without_it() {
    let thought = || {
        let state = State { issuer: None, language: LANGUAGE.into(), value: "sig".into() };
        Part::Reasoning(ReasoningPart { state: Some(state), ..ReasoningPart::default() })
    };
    let unsigned =
        || Part::Reasoning(ReasoningPart { text: Some("hm".into()), ..ReasoningPart::default() });
    let go = || (Role::User, vec![text("go")]);
    let calls = |first: Option<Part>, id: &str| {
        (Role::Assistant, first.into_iter().chain([call(id, "{}")]).collect::<Vec<_>>())
    };
    let done = |id: &str| (Role::User, vec![result(id, "1")]);
    let said = || (Role::Assistant, vec![text("said")]);
    for (history, thinks) in [
        (vec![go()], true),
        (vec![go(), calls(None, "a"), done("a")], false),
        (vec![go(), calls(Some(unsigned()), "a"), done("a")], false),
        (vec![go(), calls(Some(text("I call")), "a"), done("a")], false),
        (vec![go(), calls(Some(thought()), "a"), done("a")], true),
        // The model does not reason again between calls.
        (vec![go(), calls(Some(thought()), "a"), done("a"), calls(None, "b"), done("b")], true),
        (vec![go(), calls(None, "a"), done("a"), calls(Some(thought()), "b"), done("b")], false),
        (vec![go(), calls(None, "a"), (Role::User, vec![result("a", "1"), text("and")])], false),
        // That turn is over.
        (vec![go(), calls(None, "a"), done("a"), said(), go()], true),
        (
            vec![
                go(),
                calls(None, "a"),
                done("a"),
                said(),
                go(),
                calls(Some(thought()), "b"),
                done("b"),
            ],
            true,
        ),
    ] {
        for (thinking, always) in
            [(Thinking::Budget, false), (Thinking::Unknown, false), (Thinking::Effort, true)]
        {
            let mut request = Request { max_output: Some(9000), ..turns(history.clone()) };
            request.reasoning.budget = Some(2048);
            let facts = ModelFacts { thinking, ..ModelFacts::default() };
            let (out, losses) = write(&request, &target(facts));
            let on = thinks || always;
            assert_eq!(out["thinking"].is_object(), on, "{thinking:?} {history:?}");
            assert_eq!(paths(&losses), if on { &[][..] } else { &["reasoning_effort"][..] });
        }
    }
}

#[test]
fn who_says_effort_and_wants_a_call_gets_the_call() {
    let mut request = Request {
        tools: vec![tool("f", None)],
        tool_choice: Some(ToolChoice::Required),
        ..user(vec![text("x")])
    };
    request.reasoning.effort = Some("high".into());
    let facts = ModelFacts { thinking: Thinking::Effort, ..ModelFacts::default() };
    let (out, losses) = write(&request, &target(facts));
    assert!(out["thinking"].is_null(), "{out}");
    assert_eq!(out["output_config"]["effort"], "high");
    assert_eq!(paths(&losses), ["reasoning_effort"]);
}

#[test]
fn a_model_that_thinks_cannot_be_made_to_call() {
    let mut request = Request {
        tools: vec![tool("f", None)],
        tool_choice: Some(ToolChoice::Required),
        max_output: Some(9000),
        ..user(vec![text("x")])
    };
    request.reasoning.effort = Some("high".into());
    request.sampling.temperature = Some(json("0.20"));
    let facts = ModelFacts { thinking: Thinking::Budget, ..ModelFacts::default() };
    let why = refused(&request, &target(facts.clone()));
    assert_eq!(why.path, "tool_choice");
    // A server of which nothing is known takes both.
    let unknown = Request {
        tool_choice: None,
        reasoning: Reasoning { budget: Some(2048), ..Reasoning::default() },
        ..request.clone()
    };
    let out = plain(&unknown);
    assert!(out["temperature"].is_number() && out["thinking"].is_object());
    request.tool_choice = Some(ToolChoice::Auto);
    let (out, losses) = write(&request, &target(facts));
    assert!(out["temperature"].is_null() && out["thinking"].is_object());
    assert_eq!(paths(&losses), ["temperature"]);
}

#[test]
fn sampling_is_clamped_or_dropped_with_a_loss() {
    let run = |temperature: &str, sampling| {
        let mut request = user(vec![text("x")]);
        request.sampling.temperature = Some(json(temperature));
        request.sampling.top_k = Some(json("40"));
        request.stop = vec!["\n".into(), "END".into(), "".into()];
        let facts = ModelFacts { sampling, ..ModelFacts::default() };
        let mut losses = Losses::default();
        (CODEC.write(&request, &target(facts), &mut losses).unwrap(), paths(&losses))
    };
    let (out, losses) = run("0.70", None);
    assert!(out.contains(r#""temperature":0.70,"top_k":40"#), "{out}");
    assert!(out.contains(r#""stop_sequences":["END"]"#), "{out}");
    assert_eq!(losses, ["stop"]);
    let (out, losses) = run("1.5", Some(true));
    assert!(out.contains(r#""temperature":1,"#), "{out}");
    assert_eq!(losses, ["stop", "temperature"]);
    let (out, losses) = run("0.5", Some(false));
    assert!(!out.contains("temperature") && !out.contains("top_k"), "{out}");
    assert_eq!(losses, ["stop", "temperature", "top_k"]);
}

#[test]
fn forms_users_and_tiers_have_their_places() {
    let schema = Format::Schema {
        name: Some("n".into()),
        description: None,
        schema: json(r#"{"type":"object","b":1,"a":1}"#),
        strict: Some(true),
    };
    let with = |format: Format| Request { format: Some(format), ..user(vec![text("x")]) };
    let out = plain(&with(schema.clone()));
    assert_eq!(
        out["output_config"]["format"],
        json!({"type": "json_schema", "schema": {"type": "object", "b": 1, "a": 1}})
    );
    let out = plain(&with(Format::JsonObject));
    assert_eq!(
        out["output_config"]["format"]["schema"],
        json!({"type": "object", "additionalProperties": true})
    );
    assert!(plain(&with(Format::Text))["output_config"].is_null());
    let facts = ModelFacts { schemas: Some(false), ..ModelFacts::default() };
    assert_eq!(refused(&with(schema), &target(facts)).path, "response_format");
    let other = Format::Other { language: "chat", json: json("{}") };
    assert_eq!(why(&with(other)).path, "response_format");
    for (tier, written, lost) in [
        ("auto", json!("auto"), 0),
        ("default", json!("standard_only"), 0),
        ("priority", json!("auto"), 0),
        ("flex", json!(null), 1),
    ] {
        let request = Request {
            service_tier: Some(tier.into()),
            user: Some("u".into()),
            stream: true,
            ..user(vec![text("x")])
        };
        let (out, losses) = write(&request, &Target::default());
        assert_eq!((&out["service_tier"], losses.iter().count()), (&written, lost), "{tier}");
        assert_eq!((&out["metadata"], &out["stream"]), (&json!({"user_id": "u"}), &json!(true)));
    }
}

#[test]
fn added_fields_stand_once() {
    let field = ("cache_salt", json("\"s\""));
    let target = Target { fields: vec![field], ..Target::default() };
    let request = read(r#"{"max_tokens":1,"messages":[],"cache_salt":"theirs"}"#);
    let body = CODEC.write(&request, &target, &mut Losses::default()).unwrap();
    assert_eq!(body.matches("cache_salt").count(), 1, "{body}");
    assert!(body.contains(r#""cache_salt":"s""#), "{body}");
    let target = Target { fields: vec![("service_tier", json("\"auto\""))], ..Target::default() };
    let request = read(r#"{"max_tokens":1,"messages":[],"service_tier":null}"#);
    let body = CODEC.write(&request, &target, &mut Losses::default()).unwrap();
    assert_eq!(body.matches("service_tier").count(), 1, "{body}");
}

fn any_turn() -> impl Strategy<Value = (Role, Vec<Part>)> {
    let parts = |assistant: bool| {
        prop::collection::vec((0..4_u8, "[a-c ]{0,3}"), 0..4).prop_map(move |parts| {
            parts
                .into_iter()
                .map(|(kind, word)| match kind {
                    0 if assistant => call(&format!("id{word}"), "{}"),
                    0 => result(&format!("id{word}"), &word),
                    1 if assistant => Part::Reasoning(ReasoningPart {
                        text: Some(word.clone()),
                        state: Some(State { issuer: None, language: LANGUAGE.into(), value: word }),
                        ..ReasoningPart::default()
                    }),
                    _ => text(&word),
                })
                .collect()
        })
    };
    prop_oneof![
        parts(false).prop_map(|parts| (Role::User, parts)),
        parts(true).prop_map(|parts| (Role::Assistant, parts)),
        "[a-c ]{0,3}".prop_map(|word| (Role::System, vec![text(&word)])),
    ]
}

proptest! {
    /// Case 30: the same history gives the same bytes, and a longer one begins with those of the
    /// shorter: of all its messages but the last, which the next turn may join.
    #[test]
    fn writing_is_pure_and_append_only(all in prop::collection::vec(any_turn(), 1..8)) {
        let body = |count: usize| {
            let request = turns(all[..count].to_vec());
            CODEC.write(&request, &Target::default(), &mut Losses::default()).unwrap()
        };
        let list = |count: usize| {
            let body = json(&body(count));
            let messages = body.object().unwrap().json("messages").unwrap();
            messages.array().unwrap().iter().map(|m| m.get().to_owned()).collect::<Vec<_>>()
        };
        prop_assert_eq!(body(all.len()), body(all.len()));
        let whole = list(all.len());
        for count in 1..all.len() {
            let part = list(count);
            let fixed = part.len().saturating_sub(1);
            prop_assert_eq!(&part[..fixed], &whole[..fixed]);
        }
    }

    #[test]
    fn roles_alternate_and_nothing_is_blank(
        all in prop::collection::vec(any_turn(), 0..10),
        late in any::<Option<bool>>(),
    ) {
        let request = turns(all);
        let facts = ModelFacts { late_system: late, ..ModelFacts::default() };
        let (out, _) = write(&request, &target(facts));
        let messages = out["messages"].as_array().unwrap();
        for pair in messages.windows(2) {
            prop_assert_ne!(&pair[0]["role"], &pair[1]["role"]);
        }
        for message in messages {
            let blocks = message["content"].as_array().unwrap();
            prop_assert!(!blocks.is_empty());
            let results = blocks.iter().take_while(|b| b["type"] == "tool_result").count();
            prop_assert!(blocks[results..].iter().all(|b| b["type"] != "tool_result"));
            for block in blocks {
                prop_assert!(block["text"].as_str().is_none_or(|text| !text.trim().is_empty()));
            }
        }
    }
}
