//! Reading requests, and writing them again in the same language.

use proptest::{prelude::*, sample};

use super::*;
use crate::dialect::hub::{
    Part, Role,
    request::{Format, MediaSource, ReasoningMode, Tool, ToolChoice},
};

fn again(body: &str) -> Json {
    let request = read(body);
    let mut losses = Losses::default();
    let out = CODEC.write(&request, &Target::default(), &mut losses).unwrap();
    assert!(losses.is_empty(), "{losses:?}");
    json(&out)
}

fn message(content: &str) -> String {
    format!(r#"{{"model":"m","max_tokens":9,"messages":[{{"role":"user","content":{content}}}]}}"#)
}

#[test]
fn captured_requests_come_back_as_they_were() {
    for body in [
        fixture!("claude-001.request.json"),
        fixture!("claude-002.request.json"),
        fixture!("claude-tools-002.request.json"),
        fixture!("py-anthropic-001.request.json"),
        fixture!("vllm_messages.request.json"),
        fixture!("vllm_messages_stream.request.json"),
        fixture!("vllm_tools.request.json"),
        fixture!("vllm_tools_stream.request.json"),
        fixture!("vllm_err_model.request.json"),
        fixture!("llamacpp_tools.request.json"),
        fixture!("llamacpp_tools_stream.request.json"),
    ] {
        let body = json(body.trim());
        let out = again(body.as_str());
        assert!(same(&body, &out), "{body:?}\n{out:?}");
    }
    let count = fixture!("vllm_count_tokens.request.json");
    assert_eq!(refusal(count).path, "max_tokens");
    let request = MessagesCodec::read_count(count).unwrap();
    let out = CODEC.write(&request, &Target::default(), &mut Losses::default()).unwrap();
    assert!(same(&json(count.trim()), &json(&out)));
}

/// Blocks of every kind, with members that are unknown and members that say nothing new.
const BLOCKS: [&str; 27] = [
    r#"{"type":"text","text":"a\n\u00fc\ud83d\ude42 \"q\""}"#,
    r#"{"type":"text","text":"","cache_control":{"type":"ephemeral","ttl":"1h"}}"#,
    r#"{"type":"text","text":" ","citations":null,"x":[1.50]}"#,
    r#"{"type":"text","text":"c","citations":[{"type":"char_location","cited_text":"x","start_char_index":0}]}"#,
    r#"{"type":"image","source":{"type":"base64","media_type":"image/png","data":"AAAA"}}"#,
    r#"{"type":"image","source":{"type":"url","url":"https://example.com/a.png"},"cache_control":null}"#,
    r#"{"type":"image","source":{"type":"file","file_id":"file_1","y":1}}"#,
    r#"{"type":"image","source":{"type":"newer","z":{}}}"#,
    r#"{"type":"document","source":{"type":"base64","media_type":"application/pdf","data":"JVBERi0="},"title":"t","context":"c","citations":{"enabled":true}}"#,
    r#"{"type":"document","source":{"type":"text","media_type":"text/plain","data":"d"},"title":""}"#,
    r#"{"type":"document","source":{"type":"text","data":"d"},"title":null}"#,
    r#"{"type":"document","source":{"type":"url","url":"https://example.com/a.pdf"}}"#,
    r#"{"type":"document","source":{"type":"file","file_id":"file_2"}}"#,
    r#"{"type":"document","source":{"type":"content","content":[{"type":"text","text":"x"}]}}"#,
    r#"{"type":"document","source":{"type":"content","content":"x"}}"#,
    r#"{"type":"search_result","source":"s","title":"t","content":[{"type":"text","text":"x"}],"citations":{"enabled":true}}"#,
    r#"{"type":"tool_use","id":"toolu_1","name":"f","input":{"z":1,"a":{"type":"t"},"n":1.10,"b":12345678901234567890}}"#,
    r#"{"type":"tool_use","id":"a.b:c","name":"g.h","input":{},"caller":{"type":"direct"}}"#,
    r#"{"type":"tool_result","tool_use_id":"toolu_1","content":"r","is_error":false}"#,
    r#"{"type":"tool_result","tool_use_id":"toolu_1","content":[{"type":"text","text":"r"},{"type":"tool_reference","tool_name":"t"},{"type":"image","source":{"type":"base64","media_type":"image/gif","data":"R0lG"}}],"is_error":true}"#,
    r#"{"type":"tool_result","tool_use_id":"toolu_1"}"#,
    r#"{"type":"tool_result","tool_use_id":"toolu_1","content":[]}"#,
    r#"{"type":"tool_result","tool_use_id":"toolu_1","content":""}"#,
    r#"{"type":"thinking","thinking":"th","signature":"c2ln"}"#,
    r#"{"type":"thinking","thinking":"","signature":""}"#,
    r#"{"type":"redacted_thinking","data":"b2Jq"}"#,
    r#"{"type":"server_tool_use","id":"srvtoolu_1","name":"web_search","input":{"query":"q"}}"#,
];

/// Members of a request.
const MEMBERS: [&str; 30] = [
    r#""model":"m""#,
    r#""stream":true"#,
    r#""system":"s""#,
    r#""tools":[{"name":"f","input_schema":{"type":"object","properties":{"type":{"type":"string"}},"required":["type"]},"description":"d","strict":true,"cache_control":{"type":"ephemeral"},"defer_loading":true},{"type":"custom","name":"g","input_schema":{"properties":{}}},{"type":"web_search_20250305","name":"web_search","max_uses":3},{"name":"h","input_schema":{},"type":null,"strict":false}]"#,
    r#""tool_choice":{"type":"auto","disable_parallel_tool_use":true}"#,
    r#""stop_sequences":["a"," "]"#,
    r#""temperature":0.70"#,
    r#""top_p":1e-1"#,
    r#""top_k":5"#,
    r#""thinking":{"type":"enabled","budget_tokens":2048,"display":"omitted"}"#,
    r#""output_config":{"effort":"max","format":{"type":"json_schema","schema":{"b":1,"a":2}},"task_budget":{"total":1}}"#,
    r#""metadata":{"user_id":"u","x":"y"}"#,
    r#""service_tier":"standard_only""#,
    r#""container":{"id":"c","skills":[]}"#,
    r#""mcp_servers":[{"type":"url","url":"https://example.com","name":"n"}]"#,
    r#""context_management":{"edits":[]}"#,
    r#""cache_control":{"type":"ephemeral"}"#,
    r#""inference_geo":null"#,
    r#""unknown":{"a":[1,2.50,null]}"#,
    r#""tool_choice":{"type":"none"}"#,
    r#""tool_choice":{"type":"tool","name":"f","disable_parallel_tool_use":false,"x":1}"#,
    r#""tool_choice":{"type":"newer","y":[]}"#,
    r#""thinking":{"type":"between_tools"}"#,
    r#""thinking":{"type":"disabled","x":null}"#,
    r#""thinking":{"type":"newest","budget_tokens":1}"#,
    r#""system":[{"type":"text","text":"x-anthropic-billing-header: a"},{"type":"text","text":"b","cache_control":{"type":"ephemeral"}}]"#,
    r#""stop_sequences":[],"tools":[],"output_config":{},"metadata":{},"stream":false"#,
    r#""temperature":null,"system":null,"thinking":null,"tools":null,"metadata":{"user_id":null}"#,
    r#""output_config":{"format":{"type":"newer","grammar":"g"}}"#,
    r#""output_config":{"effort":null,"format":{"type":"json_schema","schema":{},"name":"n","strict":false}}"#,
];

/// A member's name: of two with one name, one is taken.
fn name(member: &str) -> &str {
    member.split(':').next().unwrap()
}

fn requests() -> impl Strategy<Value = String> {
    let content = prop_oneof![
        any::<String>().prop_map(|text| Json::text(&text).as_str().to_owned()),
        prop::collection::vec(sample::select(&BLOCKS[..]), 0..5)
            .prop_map(|blocks| format!("[{}]", blocks.join(","))),
    ];
    let role = sample::select(&["user", "assistant", "system"][..]);
    let turn = (role, content, any::<bool>()).prop_map(|(role, content, more)| {
        let more = if more { r#","id":"x""# } else { "" };
        format!(r#"{{"role":"{role}","content":{content}{more}}}"#)
    });
    let members = sample::subsequence(MEMBERS.to_vec(), 0..8).prop_shuffle();
    (prop::collection::vec(turn, 0..6), members).prop_map(|(turns, members)| {
        let mut all: Vec<&str> = Vec::new();
        for member in members {
            // These two rows have several members.
            let rows = [MEMBERS[26], MEMBERS[27]];
            let clash = |known: &&str| name(known) == name(member) || rows.contains(known);
            if !all.iter().any(clash) && (all.is_empty() || !rows.contains(&member)) {
                all.push(member);
            }
        }
        let first = r#"{"role":"user","content":"hi"}"#.to_owned();
        let turns: Vec<_> = [first].into_iter().chain(turns).collect();
        let members: String = all.iter().map(|member| format!(",{member}")).collect();
        format!(r#"{{"max_tokens":100,"messages":[{}]{members}}}"#, turns.join(","))
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn reading_and_writing_loses_nothing(body in requests()) {
        let (body, out) = (json(&body), again(&body));
        prop_assert!(same(&body, &out), "{:?}\n{:?}", body, out);
        // Once more: the written form is read as the same request.
        prop_assert_eq!(read(body.as_str()), read(body.as_str()));
        prop_assert!(same(&out, &again(out.as_str())));
    }

    #[test]
    fn no_text_is_too_odd_to_be_read(body in ".{0,60}") {
        let _ = CODEC.read(&body);
    }

    #[test]
    fn a_member_of_any_type_is_read_or_refused(
        body in requests(),
        at in any::<sample::Index>(),
        value in sample::select(&["1", "\"x\"", "[]", "{}", "true", "null", "[[1]]", "-0.5"][..]),
    ) {
        // Each value that follows a colon is replaced, one at a time.
        let colons: Vec<_> = body.match_indices("\":").map(|(at, _)| at + 2).collect();
        let from = colons[at.index(colons.len())];
        let mut values = serde_json::Deserializer::from_str(&body[from..]).into_iter::<Value>();
        values.next();
        let to = from + values.byte_offset();
        let changed = format!("{}{value}{}", &body[..from], &body[to..]);
        if let Ok(request) = CODEC.read(&changed) {
            let _ = CODEC.write(&request, &Target::default(), &mut Losses::default());
        }
    }
}

#[test]
fn wrong_types_are_refused_with_their_path() {
    for (body, path) in [
        ("[]".to_owned(), ""),
        (r#"{"max_tokens":1}"#.to_owned(), "messages"),
        (r#"{"messages":[]}"#.to_owned(), "max_tokens"),
        (r#"{"max_tokens":"1","messages":[]}"#.to_owned(), "max_tokens"),
        (r#"{"max_tokens":-1,"messages":[]}"#.to_owned(), "max_tokens"),
        (r#"{"max_tokens":1,"messages":{}}"#.to_owned(), "messages"),
        (r#"{"max_tokens":1,"messages":["x"]}"#.to_owned(), "messages[0]"),
        (
            r#"{"max_tokens":1,"messages":[{"role":"tool","content":""}]}"#.to_owned(),
            "messages[0].role",
        ),
        (r#"{"max_tokens":1,"messages":[{"role":"user"}]}"#.to_owned(), "messages[0].content"),
        (
            r#"{"max_tokens":1,"messages":[],"stop_sequences":["a",1]}"#.to_owned(),
            "stop_sequences[1]",
        ),
        (r#"{"max_tokens":1,"messages":[],"stream":"yes"}"#.to_owned(), "stream"),
        (r#"{"max_tokens":1,"messages":[],"temperature":"1"}"#.to_owned(), "temperature"),
        (
            r#"{"max_tokens":1,"messages":[],"tools":[{"input_schema":{}}]}"#.to_owned(),
            "tools[0].name",
        ),
        (
            r#"{"max_tokens":1,"messages":[],"tools":[{"name":"f","input_schema":[]}]}"#.to_owned(),
            "tools[0].input_schema",
        ),
        (
            r#"{"max_tokens":1,"messages":[],"tool_choice":{"type":"tool"}}"#.to_owned(),
            "tool_choice.name",
        ),
        (
            r#"{"max_tokens":1,"messages":[],"thinking":{"type":"enabled","budget_tokens":"x"}}"#
                .to_owned(),
            "thinking.budget_tokens",
        ),
        (
            r#"{"max_tokens":1,"messages":[],"output_config":{"format":{"type":"json_schema"}}}"#
                .to_owned(),
            "output_config.format.schema",
        ),
        (
            r#"{"max_tokens":1,"messages":[],"metadata":{"user_id":7}}"#.to_owned(),
            "metadata.user_id",
        ),
        (
            r#"{"max_tokens":1,"messages":[],"system":[{"type":"image"}]}"#.to_owned(),
            "system[0].type",
        ),
        (message("1"), "messages[0].content"),
        (message("[1]"), "messages[0].content[0]"),
        (message(r#"[{"type":"text","text":"x"},{"text":"y"}]"#), "messages[0].content[1].type"),
        (message(r#"[{"type":"text","text":1}]"#), "messages[0].content[0].text"),
        (message(r#"[{"type":"image"}]"#), "messages[0].content[0].source"),
        (
            message(r#"[{"type":"image","source":{"type":"url"}}]"#),
            "messages[0].content[0].source.url",
        ),
        (
            message(r#"[{"type":"tool_use","id":"a","name":"f","input":"{}"}]"#),
            "messages[0].content[0].input",
        ),
        (message(r#"[{"type":"tool_result","content":""}]"#), "messages[0].content[0].tool_use_id"),
        (
            message(r#"[{"type":"tool_result","tool_use_id":"a","content":[{"type":"text"}]}]"#),
            "messages[0].content[0].content[0].text",
        ),
        (
            message(r#"[{"type":"tool_result","tool_use_id":"a","is_error":"yes"}]"#),
            "messages[0].content[0].is_error",
        ),
    ] {
        let refused = refusal(&body);
        assert_eq!(refused.path, path, "{body}: {refused}");
        assert!(refused.invalid, "{body}");
    }
    let warm = refusal(r#"{"max_tokens":0,"messages":[]}"#);
    assert!(warm.path == "max_tokens" && !warm.invalid && warm.why.contains("cache"), "{warm}");
}

#[test]
fn a_request_of_claude_code_is_read() {
    let request = read(fixture!("claude-tools-002.request.json"));
    assert_eq!((request.system.len(), request.turns.len(), request.tools.len()), (3, 4, 2));
    assert_eq!(request.turns[1].role, Role::System);
    assert_eq!(request.turns[3].path, "messages[3]");
    let [Part::Reasoning(thought), Part::ToolCall(call)] = &request.turns[2].parts[..] else {
        panic!("{:?}", request.turns[2]);
    };
    let state = thought.state.as_ref().unwrap();
    assert_eq!((state.issuer.as_deref(), state.language.as_str()), (None, LANGUAGE));
    assert_eq!(call.arguments, r#"{"command":"echo hi","description":"say hi"}"#);
    assert_eq!(request.reasoning.mode, Some(ReasoningMode::Auto));
    assert_eq!(request.reasoning.effort.as_deref(), Some("high"));
    assert!(request.stream && request.stateful.is_empty());
    assert!(request.ext.get("context_management").is_some());
    // What says the default is no loss in another language.
    let Part::ToolResult(result) = &request.turns[3].parts[0] else { panic!() };
    assert!(result.ext.members.is_empty() && !result.is_error && result.plain);
}

#[test]
fn what_only_the_vendor_has_is_marked() {
    let request = read(
        r#"{"max_tokens":1,"messages":[],"container":"c","mcp_servers":[{"type":"url"}],"context_management":{},"thread":{"type":"create"}}"#,
    );
    assert_eq!(request.stateful, ["container", "mcp_servers", "thread"]);
    let none =
        read(r#"{"max_tokens":1,"messages":[],"container":null,"mcp_servers":[],"thread":null}"#);
    assert!(none.stateful.is_empty());
    let file = read(&message(
        r#"[{"type":"document","source":{"type":"file","file_id":"file_1"},"title":"t"}]"#,
    ));
    let Part::File(file) = &file.turns[0].parts[0] else { panic!("{file:?}") };
    assert_eq!(file.source, MediaSource::FileId("file_1".into()));
}

/// Case 22: the `type` of a tool, and a property of that name in its schema.
#[test]
fn a_property_named_type_is_left_alone() {
    let schema = r#"{"properties":{"type":{"type":"string"}},"type":"object"}"#;
    let tools = format!(
        r#"{{"max_tokens":1,"messages":[],"tools":[{{"type":"custom","name":"f","input_schema":{schema}}},{{"type":"bash_20250124","name":"bash"}}]}}"#
    );
    let request = read(&tools);
    let [Tool::Function(function), Tool::Vendor(vendor)] = &request.tools[..] else {
        panic!("{:?}", request.tools);
    };
    assert_eq!(function.parameters.as_ref().unwrap().as_str(), schema);
    assert_eq!((function.path.as_str(), vendor.path.as_str()), ("tools[0]", "tools[1]"));
    assert_eq!((vendor.kind.as_str(), vendor.name.as_deref()), ("bash_20250124", Some("bash")));
    assert!(function.ext.members.is_empty());
}

#[test]
fn a_leading_system_message_is_a_text_of_the_system() {
    let request = read(
        r#"{"max_tokens":1,"system":"a","messages":[{"role":"system","content":"b"},{"role":"user","content":"c"},{"role":"system","content":"d"}]}"#,
    );
    let texts: Vec<_> = request.system.iter().map(|text| text.text.as_str()).collect();
    assert_eq!(texts, ["a", "b"]);
    assert_eq!(request.turns[0].path, "messages[1]");
    assert_eq!(request.turns[1].role, Role::System);
}

#[test]
fn forms_and_choices_have_words_in_the_hub() {
    let of = |members: &str| read(&format!(r#"{{"max_tokens":1,"messages":[],{members}}}"#));
    let request = of(r#""output_format":{"type":"json_schema","schema":{"type":"object"}}"#);
    assert!(matches!(request.format, Some(Format::Schema { .. })));
    // The beta's place is not kept: the vendor takes the newer one.
    let (out, _) = write(&request, &Target::default());
    assert_eq!(out["output_config"]["format"]["type"], "json_schema");
    let request = of(r#""tool_choice":{"type":"any","disable_parallel_tool_use":true}"#);
    assert_eq!(request.tool_choice, Some(ToolChoice::Required));
    assert_eq!(request.parallel_tools, Some(false));
    assert_eq!(of(r#""tool_choice":{"type":"auto"}"#).parallel_tools, None);
}

#[test]
fn what_the_vendor_ran_can_be_read_by_others() {
    let readable = |block: &str| {
        let request = read(&message(&format!("[{block}]")));
        let Part::Opaque(part) = &request.turns[0].parts[0] else { panic!("{request:?}") };
        part.readable.clone()
    };
    assert_eq!(readable(BLOCKS[26]), r#"[web_search {"query":"q"}]"#);
    assert_eq!(
        readable(
            r#"{"type":"web_search_tool_result","tool_use_id":"s","content":[{"type":"web_search_result","url":"https://a","title":"A","encrypted_content":"zzz","page_age":"1"}]}"#
        ),
        "https://a\nA"
    );
    assert_eq!(
        readable(
            r#"{"type":"bash_code_execution_tool_result","tool_use_id":"s","content":{"type":"r","stdout":"out","stderr":"","return_code":0,"content":[]}}"#
        ),
        "out"
    );
    assert_eq!(
        readable(
            r#"{"type":"web_fetch_tool_result","tool_use_id":"s","content":{"type":"web_fetch_result","url":"https://a","content":{"type":"document","source":{"type":"base64","media_type":"application/pdf","data":"JVBERi0="},"title":"T"}}}"#
        ),
        "https://a\nT"
    );
    assert_eq!(readable(r#"{"type":"container_upload","file_id":"f"}"#), "");
    assert_eq!(readable(r#"{"type":"compaction","content":"so far"}"#), "so far");
}

/// Case 24: state that another issuer has given travels in this language's slots.
#[test]
fn envelopes_are_opened() {
    use crate::dialect::hub::{envelope, request::State};
    let state =
        State { issuer: Some("openai".into()), language: "responses".into(), value: "enc".into() };
    let text = envelope::wrap(&state, LANGUAGE);
    let request = read(&message(&format!(
        r#"[{{"type":"thinking","thinking":"t","signature":"{text}"}},{{"type":"redacted_thinking","data":"{text}"}},{{"type":"redacted_thinking","data":"own"}}]"#
    )));
    let parts: Vec<_> = request.turns[0]
        .parts
        .iter()
        .map(|part| match part {
            Part::Reasoning(part) => (part.state.clone(), part.redacted, part.text.clone()),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(parts[0], (Some(state.clone()), false, Some("t".into())));
    assert_eq!(parts[1], (Some(state), false, None));
    assert_eq!(parts[2].0.as_ref().unwrap().value, "own");
    let alone = read(&message(r#"[{"type":"thinking","thinking":"","signature":"s"}]"#));
    let Part::Reasoning(alone) = &alone.turns[0].parts[0] else { panic!("{alone:?}") };
    assert!(alone.text.is_none() && alone.state.is_some());
    assert!(parts[2].1);
    // None of it reaches a backend of this language.
    let (out, _) = write(&request, &Target::default());
    assert_eq!(
        out["messages"][0]["content"],
        serde_json::json!([{"type":"redacted_thinking","data":"own"}])
    );
}
