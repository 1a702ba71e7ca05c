//! What a request becomes for another language.

use super::*;
use crate::dialect::hub::{
    codec::RenamedTool,
    request::{
        CustomTool, Function, Media, Opaque, ReasoningMode, ReasoningPart, Role, State, Text, Tool,
        ToolCall, ToolChoice, ToolKind, VendorTool,
    },
    stopwatch::Stopwatch,
    target::{ModelFacts, Words},
};

const WORDS: Words = Words {
    max_output: "max_tokens",
    stop: "stop",
    effort: "effort",
    verbosity: "verbosity",
    user: "user",
    parallel_tools: "parallel_tool_calls",
    logprobs: "logprobs",
    state: "signature",
};

/// A language that can say everything.
const ALL: Traits = Traits {
    name: "all",
    custom_tools: true,
    namespaces: true,
    longest_tool_name: 64,
    unique_call_ids: false,
    results_required: true,
    choices: true,
    logprobs: true,
    stop: true,
    penalties: true,
    seed: true,
    logit_bias: true,
    top_k: true,
    verbosity: true,
    metadata: true,
    user: true,
    cache_key: true,
    service_tier: true,
    store: true,
    parallel_tools: true,
    modalities: true,
    cache_marks: true,
    prefill: true,
    least_output: 1,
    words: WORDS,
};

/// One that can say next to nothing.
const LITTLE: Traits = Traits {
    name: "little",
    custom_tools: false,
    namespaces: false,
    unique_call_ids: true,
    choices: false,
    logprobs: false,
    stop: false,
    penalties: false,
    seed: false,
    logit_bias: false,
    top_k: false,
    verbosity: false,
    metadata: false,
    user: false,
    cache_key: false,
    service_tier: false,
    store: false,
    parallel_tools: false,
    modalities: false,
    cache_marks: false,
    prefill: false,
    least_output: 16,
    ..ALL
};

fn text(text: &str) -> Part {
    Part::Text(Text::plain(text))
}

fn turn(role: Role, parts: Vec<Part>) -> Turn {
    Turn { role, parts, path: "messages[1]".to_owned(), ..Turn::default() }
}

fn call(id: &str, name: &str) -> ToolCall {
    ToolCall { id: id.into(), name: name.into(), arguments: "{}".into(), ..ToolCall::default() }
}

fn result(call: &str) -> Part {
    let parts = vec![text(call)];
    Part::ToolResult(ToolResult { call: call.into(), parts, ..ToolResult::default() })
}

fn asking(turns: Vec<Turn>) -> Request {
    Request { turns, ..Request::default() }
}

fn little(request: Request, target: &Target) -> Result<(Request, Undo, Losses), Refused> {
    prepare(request, &ALL, &LITTLE, target)
}

fn paths(losses: &Losses) -> Vec<&str> {
    losses.paths()
}

/// The results of a turn, by their calls.
fn results(turn: &Turn) -> Vec<&str> {
    let call = |part: &'_ Part| match part {
        Part::ToolResult(result) => Some(result.call.clone()),
        _ => None,
    };
    turn.parts.iter().filter_map(call).map(|call| &*call.leak()).collect()
}

#[test]
fn state_that_only_a_vendor_has_is_refused_before_anything_else() {
    for path in ["previous_response_id", "conversation", "background"] {
        let request = Request { stateful: vec![path.into()], ..Request::default() };
        assert_eq!(little(request, &Target::default()).unwrap_err().path, path);
    }
}

/// Tools of every kind, with names that backends refuse, and a conversation that has used them.
fn named_oddly() -> Request {
    let function = |name: &str, namespace: Option<&str>| {
        Tool::Function(Function {
            name: name.into(),
            namespace: namespace.map(str::to_owned),
            ..Function::default()
        })
    };
    let long = "x".repeat(70);
    let grammar = r#"{"type":"grammar","syntax":"lark","definition":"start: /.+/"}"#;
    let custom = CustomTool {
        name: "apply_patch".into(),
        format: Json::parse(grammar).ok(),
        ..CustomTool::default()
    };
    let mut patch = call("c2", "apply_patch");
    (patch.kind, patch.arguments) = (ToolKind::Custom, "*** Begin\n\"x\"".to_owned());
    let mut grouped = call("c3", "close");
    grouped.namespace = Some("agents".into());
    Request {
        tools: vec![
            function("a.b", None),
            function("a_b", None),
            function(&long, None),
            function("close", Some("agents")),
            function("close", Some("files")),
            Tool::Custom(custom),
        ],
        tool_choice: Some(ToolChoice::Named { name: "a.b".into(), kind: ToolKind::Function }),
        turns: vec![
            turn(Role::User, vec![text("go")]),
            turn(
                Role::Assistant,
                vec![
                    Part::ToolCall(call("c1", "a.b")),
                    Part::ToolCall(patch),
                    Part::ToolCall(grouped),
                ],
            ),
            turn(Role::User, vec![result("c1"), result("c2"), result("c3")]),
        ],
        ..Request::default()
    }
}

#[test]
fn tools_have_names_and_kinds_that_the_backend_takes() {
    let request = named_oddly();
    let (out, undo, losses) = little(request.clone(), &Target::default()).unwrap();
    assert!(losses.is_empty(), "{losses:?}");
    let names: Vec<&str> = out
        .tools
        .iter()
        .map(|tool| match tool {
            Tool::Function(function) => function.name.as_str(),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(names[3..], ["agents__close", "files__close", "apply_patch"]);
    assert!(names.iter().all(|name| name.len() <= 64 && !name.contains('.')), "{names:?}");
    let mut once = names.clone();
    once.sort_unstable();
    once.dedup();
    assert_eq!(once.len(), names.len(), "{names:?}");
    assert_eq!(
        out.tool_choice,
        Some(ToolChoice::Named { name: names[0].into(), kind: ToolKind::Function })
    );
    let Tool::Function(as_function) = &out.tools[5] else { panic!() };
    assert!(as_function.description.as_ref().unwrap().contains("start: /.+/"));
    let calls: Vec<(&str, &str)> = out.turns[1]
        .parts
        .iter()
        .filter_map(|part| match part {
            Part::ToolCall(call) => Some((call.name.as_str(), call.arguments.as_str())),
            _ => None,
        })
        .collect();
    assert_eq!(
        calls,
        [
            (names[0], "{}"),
            ("apply_patch", r#"{"input":"*** Begin\n\"x\""}"#),
            ("agents__close", "{}")
        ]
    );
    let undone = |sent: &str| undo.tools.iter().find(|tool| tool.sent == sent).cloned().unwrap();
    assert_eq!(undone(names[0]).name, "a.b");
    assert!(undone("apply_patch").custom);
    assert_eq!(
        undone("files__close"),
        RenamedTool {
            sent: "files__close".into(),
            name: "close".into(),
            namespace: Some("files".into()),
            custom: false
        }
    );
    // A language that has all of it gets only what no vendor takes in another way.
    let (same, _, _) = prepare(request, &LITTLE, &ALL, &Target::default()).unwrap();
    assert!(matches!(&same.tools[5], Tool::Custom(tool) if tool.name == "apply_patch"));
}

#[test]
fn a_vendors_tools_are_dropped_unless_they_are_demanded() {
    let vendor = |kind: &str| {
        Tool::Vendor(VendorTool {
            language: "all",
            kind: kind.into(),
            name: Some(kind.into()),
            json: Json::parse("{}").unwrap(),
            path: "tools[0]".into(),
        })
    };
    let with = |tools: Vec<Tool>, choice: Option<ToolChoice>| {
        let request = Request { tools, tool_choice: choice, ..Request::default() };
        little(request, &Target::default())
    };
    let own = Tool::Function(Function { name: "f".into(), ..Function::default() });
    let (out, _, losses) = with(vec![vendor("web_search"), own.clone()], None).unwrap();
    assert_eq!((out.tools, paths(&losses)), (vec![own.clone()], vec!["tools[0]:web_search"]));
    let named = ToolChoice::Named { name: "web_search".into(), kind: ToolKind::Function };
    for (tools, choice) in [
        (vec![vendor("web_search"), own.clone()], Some(named)),
        (vec![vendor("web_search")], Some(ToolChoice::Required)),
        (vec![vendor("local_shell"), own], None),
    ] {
        assert!(with(tools.clone(), choice).is_err(), "{tools:?}");
    }
    let (out, ..) = with(vec![vendor("web_search")], Some(ToolChoice::Auto)).unwrap();
    assert_eq!(out.tool_choice, None, "a choice without tools is refused by vendors");
}

#[test]
fn a_choice_among_tools_is_a_shorter_list() {
    let tool = |name: &str| Tool::Function(Function { name: name.into(), ..Function::default() });
    let request = |names: &[&str]| Request {
        tools: vec![tool("a"), tool("b"), tool("c")],
        tool_choice: Some(ToolChoice::Allowed {
            names: names.iter().map(|name| (*name).to_owned()).collect(),
            required: true,
            json: Json::parse("{}").unwrap(),
        }),
        ..Request::default()
    };
    let (out, ..) = little(request(&["a", "c"]), &Target::default()).unwrap();
    assert_eq!(out.tools, [tool("a"), tool("c")]);
    assert_eq!(out.tool_choice, Some(ToolChoice::Required));
    assert_eq!(little(request(&["a", "x"]), &Target::default()).unwrap_err().path, "tool_choice");
}

#[test]
fn results_stand_first_behind_their_calls_and_in_their_order() {
    let calls = || {
        let calls = ["c1", "c2", "c3"].map(|id| Part::ToolCall(call(id, "f")));
        turn(Role::Assistant, calls.into())
    };
    let (out, _, losses) = little(
        asking(vec![
            calls(),
            turn(Role::User, vec![text("before"), result("c3")]),
            turn(Role::System, vec![text("late")]),
            turn(Role::User, vec![result("c1"), text("after"), result("c2")]),
        ]),
        &Target::default(),
    )
    .unwrap();
    assert!(losses.is_empty());
    assert_eq!(results(&out.turns[1]), ["c1", "c2", "c3"]);
    assert_eq!(out.turns[1].parts[3], text("before"));
    assert_eq!(out.turns[2].parts, [text("late")]);
    assert_eq!(out.turns[3].parts, [text("after")]);
    // One without a result, whether something follows or not.
    for rest in [vec![], vec![turn(Role::User, vec![result("c2"), text("go on")])]] {
        let mut turns = vec![calls()];
        turns.extend(rest);
        let (out, _, losses) = little(asking(turns), &Target::default()).unwrap();
        assert_eq!(results(&out.turns[1]), ["c1", "c2", "c3"]);
        assert!(!losses.is_empty());
    }
    // A result without a call is wrong in any language.
    let lost = asking(vec![turn(Role::User, vec![result("c9")])]);
    assert!(little(lost, &Target::default()).unwrap_err().invalid);
}

#[test]
fn ids_are_there_once_and_results_follow_them() {
    let round = || {
        [
            turn(Role::Assistant, vec![Part::ToolCall(call("functions.Bash:0", "f"))]),
            turn(Role::User, vec![result("functions.Bash:0")]),
        ]
    };
    let mut turns: Vec<Turn> = round().into();
    turns.extend(round());
    let (out, ..) = little(asking(turns), &Target::default()).unwrap();
    let ids: Vec<String> = out
        .turns
        .iter()
        .flat_map(|turn| &turn.parts)
        .map(|part| match part {
            Part::ToolCall(call) => call.id.clone(),
            Part::ToolResult(result) => result.call.clone(),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(ids[0], ids[1]);
    assert_eq!(ids[2], ids[3]);
    assert_ne!(ids[0], ids[2]);
    assert!(ids.iter().all(|id| id.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')));
}

#[test]
fn state_goes_to_its_issuer_alone() {
    let reasoning = |language: &str, issuer: Option<&str>| {
        Part::Reasoning(ReasoningPart {
            text: Some("because".into()),
            state: Some(State {
                issuer: issuer.map(str::to_owned),
                language: language.into(),
                value: "s".into(),
            }),
            ..ReasoningPart::default()
        })
    };
    let target = Target { issuer: "here".into(), ..Target::default() };
    for (language, issuer, kept) in [
        ("little", Some("here"), true),
        ("little", Some("there"), false),
        ("all", Some("here"), false),
        // Bare: of the vendor whose language it is.
        ("little", None, true),
        ("all", None, false),
    ] {
        let turns = vec![
            turn(Role::Assistant, vec![reasoning(language, issuer), text("x")]),
            turn(Role::User, vec![text("y")]),
        ];
        let (out, _, losses) = little(asking(turns), &target).unwrap();
        let Part::Reasoning(part) = &out.turns[0].parts[0] else { panic!("the text stays") };
        assert_eq!(
            (part.state.is_some(), losses.is_empty()),
            (kept, kept),
            "{language} {issuer:?}"
        );
    }
    // Nothing is left of what was only state.
    let hidden = Part::Reasoning(ReasoningPart {
        state: Some(State { issuer: None, language: "all".into(), value: "s".into() }),
        redacted: true,
        ..ReasoningPart::default()
    });
    let turns = vec![turn(Role::Assistant, vec![hidden]), turn(Role::User, vec![text("y")])];
    assert_eq!(little(asking(turns), &target).unwrap().0.turns.len(), 1);
}

#[test]
fn what_a_vendors_tool_has_done_becomes_text() {
    let opaque = |kind: &str, readable: &str| {
        Part::Opaque(Opaque {
            language: "all",
            kind: kind.into(),
            json: Json::parse("{}").unwrap(),
            readable: readable.into(),
        })
    };
    let with = |parts| {
        let turns = vec![turn(Role::Assistant, parts), turn(Role::User, vec![text("y")])];
        little(asking(turns), &Target::default())
    };
    let (out, _, losses) =
        with(vec![opaque("web_search_call", "searched"), opaque("other", "")]).unwrap();
    assert_eq!(out.turns[0].parts, [text("searched")]);
    assert!(!losses.is_empty());
    for kind in ["item_reference", "compaction", "program"] {
        assert!(with(vec![opaque(kind, "")]).is_err(), "{kind}");
    }
}

#[test]
fn hints_are_dropped_and_named() {
    let json = |text: &str| Json::parse(text).ok();
    let mut request = Request {
        stop: vec!["END".into()],
        verbosity: Some("low".into()),
        user: Some("u".into()),
        metadata: json("{}"),
        store: Some(true),
        parallel_tools: Some(false),
        cache_key: Some("k".into()),
        max_output: Some(3),
        ..Request::default()
    };
    request.sampling.seed = json("7");
    request.sampling.top_k = json("5");
    request.sampling.presence_penalty = json("0.5");
    request.ext = Extension::new(
        "all",
        vec![
            ("betas".into(), Json::parse("[1]").unwrap()),
            ("truncation".into(), Json::parse("\"auto\"").unwrap()),
            ("@form".into(), Json::parse("1").unwrap()),
        ],
    );
    let (out, _, losses) = little(request.clone(), &Target::default()).unwrap();
    let mut lost = paths(&losses);
    lost.sort_unstable();
    assert_eq!(
        lost,
        [
            "betas",
            "max_tokens",
            "metadata",
            "parallel_tool_calls",
            "presence_penalty",
            "seed",
            "stop",
            "store",
            "top_k",
            "user",
            "verbosity"
        ]
    );
    assert_eq!((out.max_output, out.stop.len(), out.cache_key), (Some(16), 0, None));
    // A language that has all of it loses only what has no word anywhere.
    let (_, _, losses) = prepare(request, &LITTLE, &ALL, &Target::default()).unwrap();
    assert!(losses.is_empty(), "{losses:?}");
}

#[test]
fn what_would_change_the_answer_is_refused() {
    for (request, path) in [
        (Request { choices: Some(2), ..Request::default() }, "n"),
        (Request { logprobs: Some(0), ..Request::default() }, "logprobs"),
        (Request { modalities: vec!["audio".into()], ..Request::default() }, "modalities"),
        (asking(vec![turn(Role::Assistant, vec![text("So far")])]), "messages[1]"),
    ] {
        assert_eq!(little(request.clone(), &Target::default()).unwrap_err().path, path);
        assert!(prepare(request, &LITTLE, &ALL, &Target::default()).is_ok(), "{path}");
    }
    for harmless in [
        Request { choices: Some(1), ..Request::default() },
        Request { modalities: vec!["text".into()], ..Request::default() },
    ] {
        assert!(little(harmless, &Target::default()).is_ok());
    }
}

#[test]
fn a_models_abilities_count() {
    let facts = ModelFacts {
        max_output: Some(100),
        efforts: ["low", "high"].map(String::from).into(),
        vision: Some(false),
        tools: Some(false),
        sampling: Some(false),
        ..ModelFacts::default()
    };
    let target = Target { facts, ..Target::default() };
    let mut request = Request { max_output: Some(500), ..Request::default() };
    request.reasoning.effort = Some("xhigh".into());
    request.sampling.temperature = Json::parse("0.5").ok();
    let tool = Tool::Function(Function { name: "f".into(), ..Function::default() });
    request.tools = vec![tool];
    let (out, _, losses) = prepare(request.clone(), &ALL, &ALL, &target).unwrap();
    assert_eq!((out.max_output, out.reasoning.effort.as_deref()), (Some(100), Some("high")));
    assert!(out.tools.is_empty() && out.sampling.temperature.is_none());
    assert_eq!(paths(&losses), ["tools", "temperature", "max_tokens", "effort"]);
    request.tool_choice = Some(ToolChoice::Required);
    assert!(prepare(request, &ALL, &ALL, &target).is_err());
    let image = Part::Image(Media::default());
    assert!(prepare(asking(vec![turn(Role::User, vec![image])]), &ALL, &ALL, &target).is_err());
    // A model that cannot switch its reasoning off reasons as little as it can.
    let mut off = Request::default();
    off.reasoning.mode = Some(ReasoningMode::Off);
    let (out, ..) = prepare(off, &ALL, &ALL, &target).unwrap();
    assert_eq!((out.reasoning.effort.as_deref(), out.reasoning.mode), (Some("low"), None));
    // A budget is within the model's words too.
    for (budget, word, lost) in
        [(1024, "low", 0), (5000, "low", 0), (30_000, "high", 0), (0, "low", 1)]
    {
        let mut request = Request::default();
        request.reasoning.budget = Some(budget);
        let (out, _, losses) = prepare(request, &ALL, &ALL, &target).unwrap();
        assert_eq!(out.reasoning.effort.as_deref(), Some(word), "{budget}");
        assert_eq!(paths(&losses).len(), lost, "{budget}");
    }
}

/// Ids of the calls, and those that the results have with their texts.
fn ids(request: &Request) -> (Vec<String>, Vec<(String, Part)>) {
    let (mut calls, mut results) = (Vec::new(), Vec::new());
    for part in request.turns.iter().flat_map(|turn| &turn.parts) {
        match part {
            Part::ToolCall(call) => calls.push(call.id.clone()),
            Part::ToolResult(result) => {
                results.push((result.call.clone(), result.parts[0].clone()));
            }
            _ => {}
        }
    }
    (calls, results)
}

fn result_of(call: &str, says: &str) -> Part {
    let parts = vec![text(says)];
    Part::ToolResult(ToolResult { call: call.into(), parts, ..ToolResult::default() })
}

#[test]
fn two_calls_with_one_id_in_a_turn_keep_their_results_apart() {
    let calls = vec![Part::ToolCall(call("x", "f")), Part::ToolCall(call("x", "g"))];
    let (out, _, losses) = little(
        asking(vec![
            turn(Role::Assistant, calls),
            turn(Role::User, vec![result_of("x", "first"), result_of("x", "second")]),
        ]),
        &Target::default(),
    )
    .unwrap();
    let (calls, results) = ids(&out);
    assert_eq!(calls, ["x", "x_2"]);
    assert_eq!(results, [("x".to_owned(), text("first")), ("x_2".to_owned(), text("second"))]);
    assert!(losses.is_empty(), "{losses:?}");
}

#[test]
fn of_several_results_of_a_call_the_last_one_counts() {
    let (out, _, losses) = little(
        asking(vec![
            turn(Role::Assistant, vec![Part::ToolCall(call("x", "f"))]),
            turn(Role::User, vec![result_of("x", "first")]),
            turn(Role::User, vec![result_of("x", "second"), text("go on")]),
        ]),
        &Target::default(),
    )
    .unwrap();
    assert_eq!(ids(&out).1, [("x".to_owned(), text("second"))]);
    assert_eq!(paths(&losses), ["messages[1]"]);
}

#[test]
fn a_result_that_comes_late_stands_behind_its_call() {
    let late = |rest: Vec<Part>| {
        let mut last = vec![result_of("x", "done")];
        last.extend(rest);
        let turns = vec![
            turn(Role::Assistant, vec![Part::ToolCall(call("x", "f"))]),
            turn(Role::User, vec![text("interrupt")]),
            turn(Role::Assistant, vec![text("ok")]),
            turn(Role::User, last),
        ];
        little(asking(turns), &Target::default())
    };
    let (out, _, losses) = late(vec![text("and now?")]).unwrap();
    assert!(losses.is_empty(), "{losses:?}");
    assert_eq!(out.turns[1].parts, [result_of("x", "done"), text("interrupt")]);
    assert_eq!(out.turns[3].parts, [text("and now?")]);
    // The answer is still the model's turn, although nothing else was said.
    let (out, ..) = late(Vec::new()).unwrap();
    assert_eq!(out.turns[1].parts, [result_of("x", "done"), text("interrupt")]);
    assert_eq!((out.turns.len(), out.turns[3].role), (4, Role::User));
    // A result before its call has none.
    let turns = vec![
        turn(Role::User, vec![result("x")]),
        turn(Role::Assistant, vec![Part::ToolCall(call("x", "f"))]),
    ];
    assert!(little(asking(turns), &Target::default()).unwrap_err().invalid);
}

#[test]
fn many_calls_take_no_more_time_each_than_few() {
    const MANY: usize = 20_000;
    let began = Stopwatch::start();
    // Of one id, and each of its own with its results the other way round.
    let same = |_| "x".to_owned();
    let own = |at: usize| format!("c{at}");
    for id in [&same as &dyn Fn(usize) -> String, &own] {
        let calls = (0..MANY).map(|at| Part::ToolCall(call(&id(at), &format!("f{at}"))));
        let results = (0..MANY).rev().map(|at| result_of(&id(at), "r"));
        let turns =
            vec![turn(Role::Assistant, calls.collect()), turn(Role::User, results.collect())];
        let (out, ..) = little(asking(turns), &Target::default()).unwrap();
        let (calls, results) = ids(&out);
        assert!(calls.iter().eq(results.iter().map(|(call, _)| call)));
        assert_eq!(calls.iter().collect::<std::collections::HashSet<_>>().len(), MANY);
    }
    assert!(began.time().as_secs() < 4, "{:?}", began.time());
}

#[test]
fn a_tool_of_free_text_keeps_its_group_and_the_groups_description_is_noted() {
    let json = |text: &str| Json::parse(text).unwrap();
    let group = |name: &str, said: &str| {
        let members =
            vec![("@namespace".to_owned(), Json::text(name)), ("@group".to_owned(), json(said))];
        Tool::Custom(CustomTool {
            name: "patch".into(),
            path: format!("tools[{}].tools[0]", name.len()),
            ext: Extension::new("all", members),
            ..CustomTool::default()
        })
    };
    let mut called = call("c1", "patch");
    (called.kind, called.namespace) = (ToolKind::Custom, Some("b".into()));
    let request = Request {
        tools: vec![group("a", "{}"), group("b", r#"{"description":"Files."}"#)],
        turns: vec![
            turn(Role::Assistant, vec![Part::ToolCall(called)]),
            turn(Role::User, vec![result("c1")]),
        ],
        ..Request::default()
    };
    let (out, undo, losses) = little(request, &Target::default()).unwrap();
    let names = out.tools.iter().map(|tool| match tool {
        Tool::Function(function) => function.name.as_str(),
        other => panic!("{other:?}"),
    });
    let names: Vec<_> = names.collect();
    assert_eq!(names, ["a__patch", "b__patch"]);
    assert_eq!(paths(&losses), ["tools[1].description"]);
    let Part::ToolCall(sent) = &out.turns[0].parts[0] else { panic!() };
    assert_eq!(sent.name, "b__patch");
    let groups: Vec<_> = undo.tools.iter().map(|tool| tool.namespace.as_deref()).collect();
    assert_eq!(groups, [Some("a"), Some("b")]);
    assert!(undo.tools.iter().all(|tool| tool.custom && tool.name == "patch"), "{undo:?}");
}

#[test]
fn who_pays_at_anthropic_is_told_to_nobody_else() {
    let system = |text: &str| SystemText { text: text.into(), ..SystemText::default() };
    let request = Request {
        system: vec![system("x-anthropic-billing-header: cc_version=2"), system("be brief")],
        turns: vec![turn(Role::User, vec![text("hi")])],
        ..Request::default()
    };
    let messages = Traits { name: "messages", ..ALL };
    for (from, to, kept) in [
        (&messages, &LITTLE, 1),
        (&messages, &ALL, 1),
        (&messages, &messages, 2),
        (&ALL, &messages, 2),
    ] {
        let (out, _, losses) = prepare(request.clone(), from, to, &Target::default()).unwrap();
        assert_eq!(out.system.len(), kept, "{} {}", from.name, to.name);
        assert!(losses.is_empty(), "{losses:?}");
    }
}

#[test]
fn tools_that_an_item_has_added_are_no_loss() {
    let added = Part::Opaque(Opaque {
        language: "all",
        kind: "additional_tools".into(),
        json: Json::parse("{}").unwrap(),
        readable: String::new(),
    });
    let turns = vec![turn(Role::User, vec![added.clone()]), turn(Role::User, vec![text("x")])];
    let (out, _, losses) = little(asking(turns.clone()), &Target::default()).unwrap();
    assert_eq!((out.turns.len(), losses.is_empty()), (1, true));
    let (out, ..) = prepare(asking(turns), &LITTLE, &ALL, &Target::default()).unwrap();
    assert_eq!(out.turns[0].parts, [added], "its own language has the item");
}

#[test]
fn what_is_not_written_decides_nothing() {
    let messages = Traits { name: "messages", prefill: false, ..ALL };
    let begun = |last: &str| {
        let turns = vec![
            turn(Role::User, vec![text("hi")]),
            Turn { path: "messages[2]".into(), ..turn(Role::Assistant, vec![text("It is")]) },
            turn(Role::User, vec![text(last), text("")]),
        ];
        asking(turns)
    };
    let to = |request, to: &Traits| prepare(request, &ALL, to, &Target::default());
    for blank in ["", " \n"] {
        assert_eq!(to(begun(blank), &messages).unwrap_err().path, "messages[2]");
        // Where it is written, it is a turn.
        assert!(to(begun(blank), &LITTLE).is_ok());
        let nothing = asking(vec![turn(Role::User, vec![text(blank)])]);
        let refused = to(nothing, &messages).unwrap_err();
        assert_eq!((refused.path.as_str(), refused.invalid), ("messages", true));
    }
    assert!(to(asking(Vec::new()), &messages).is_err());
    assert!(to(begun("go on"), &messages).is_ok());
    // A picture is something.
    let mut picture = begun("");
    picture.turns[2].parts.push(Part::Image(Media::default()));
    assert!(to(picture, &messages).is_ok());
}
