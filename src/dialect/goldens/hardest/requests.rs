//! Requests, and what has to be undone in their answers.

use serde_json::{Value, json};

use super::{
    super::{CODECS, exchange, stream, target},
    block, called, delta, documents, messages, name, of_type, order, outgoing, sent, stop, turns,
};
use crate::dialect::{
    anthropic::codec::MessagesCodec,
    hub::{Codec, Exchange, ModelFacts, Target, Translator, translator},
    openai::codec::ChatCodec,
    responses::codec::ResponsesCodec,
};

/// A conversation with two calls of one turn, and what follows it.
fn conversation(from: &dyn Codec, results: &[(&str, &str)], between: bool) -> Value {
    let tool = json!({"type": "object", "properties": {}});
    match name(from) {
        "chat" => {
            let call = |id: &str| json!({"id": id, "type": "function", "function": {"name": "f", "arguments": "{}"}});
            let mut all = vec![
                json!({"role": "user", "content": "go"}),
                json!({"role": "assistant", "content": null, "tool_calls": [call("a"), call("b")]}),
            ];
            for (id, text) in results {
                all.push(json!({"role": "tool", "tool_call_id": id, "content": text}));
                if between {
                    all.push(json!({"role": "user", "content": "meanwhile"}));
                }
            }
            json!({"model": "m", "messages": all, "tools": [{"type": "function", "function": {"name": "f", "parameters": tool}}]})
        }
        "messages" => {
            let call = |id: &str| json!({"type": "tool_use", "id": id, "name": "f", "input": {}});
            let mut parts = Vec::new();
            for (id, text) in results {
                parts.push(json!({"type": "tool_result", "tool_use_id": id, "content": text}));
                if between {
                    parts.push(json!({"type": "text", "text": "meanwhile"}));
                }
            }
            if parts.is_empty() {
                parts.push(json!({"type": "text", "text": "stop that"}));
            }
            json!({"model": "m", "max_tokens": 9, "tools": [{"name": "f", "input_schema": tool}], "messages": [
                {"role": "user", "content": "go"}, {"role": "assistant", "content": [call("a"), call("b")]}, {"role": "user", "content": parts}]})
        }
        _ => {
            let call = |id: &str| json!({"type": "function_call", "call_id": id, "name": "f", "arguments": "{}"});
            let mut all = vec![json!({"role": "user", "content": "go"}), call("a"), call("b")];
            for (id, text) in results {
                all.push(json!({"type": "function_call_output", "call_id": id, "output": text}));
                if between {
                    all.push(json!({"role": "user", "content": "meanwhile"}));
                }
            }
            json!({"model": "m", "input": all, "tools": [{"type": "function", "name": "f", "parameters": tool}]})
        }
    }
}

#[test]
fn cases_9_and_10_results_stand_together_in_the_order_of_their_calls() {
    for from in CODECS {
        for between in [false, true] {
            // The second one was ready first.
            let body = conversation(from, &[("b", "2"), ("a", "1")], between);
            for to in CODECS.into_iter().filter(|to| name(*to) != name(from)) {
                let sent = sent(from, to, &body);
                let case = format!("{} to {}: {sent:#}", name(from), name(to));
                assert_eq!(order(&sent), ["call a", "call b", "result a", "result b"], "{case}");
                assert_eq!(
                    sent.to_string().matches("meanwhile").count(),
                    if between { 2 } else { 0 },
                    "{case}"
                );
                if name(to) == "messages" {
                    let parts = turns(&sent).last().unwrap()["content"].as_array().unwrap();
                    assert_eq!(
                        (&parts[0]["type"], &parts[1]["type"]),
                        (&json!("tool_result"), &json!("tool_result")),
                        "{case}"
                    );
                }
            }
        }
    }
}

#[test]
fn case_11_a_missing_result_is_said_and_a_result_of_nothing_is_refused() {
    for from in CODECS {
        for to in CODECS.into_iter().filter(|to| name(*to) != name(from)) {
            let case = format!("{} to {}", name(from), name(to));
            let body = conversation(from, &[("a", "1")], false);
            let made = outgoing(from, to, &body, &target()).unwrap();
            let sent: Value = serde_json::from_str(&made.body).unwrap();
            assert_eq!(order(&sent), ["call a", "call b", "result a", "result b"], "{case}");
            assert!(!made.losses.is_empty(), "{case}");
            let strict = Target { strict: true, ..target() };
            let refused = outgoing(from, to, &body, &strict).unwrap_err();
            assert!(refused.why.contains("`b`"), "{case}: {refused}");
            let body = conversation(from, &[("a", "1"), ("b", "2"), ("nobody", "3")], false);
            let refused = outgoing(from, to, &body, &target()).unwrap_err();
            assert!(refused.invalid && refused.why.contains("nobody"), "{case}: {refused}");
        }
    }
}

#[test]
fn case_12_an_empty_result_stays_empty() {
    for from in CODECS {
        let body = conversation(from, &[("a", ""), ("b", "2")], false);
        for to in CODECS.into_iter().filter(|to| name(*to) != name(from)) {
            let sent = sent(from, to, &body);
            let all = turns(&sent);
            let mut found = all.iter().filter_map(|turn| match name(to) {
                "chat" => (turn["tool_call_id"] == "a").then(|| turn["content"].clone()),
                "messages" => {
                    let parts = turn["content"].as_array()?;
                    let part = parts.iter().find(|part| part["tool_use_id"] == "a")?;
                    Some(part.get("content").cloned().unwrap_or_default())
                }
                _ => (turn["call_id"] == "a" && turn.get("output").is_some())
                    .then(|| turn["output"].clone()),
            });
            let text = found.next().unwrap_or_else(|| panic!("{sent:#}"));
            assert!(matches!(&text, Value::Null) || text == "" || text == json!([]), "{sent:#}");
        }
    }
}

#[test]
fn case_20_names_are_changed_for_the_backend_and_back() {
    let long = "mcp.server:tool/".to_owned() + &"x".repeat(70);
    for from in CODECS {
        let schema = json!({"type": "object", "properties": {}});
        let (tool, call, result) = match name(from) {
            "chat" => (
                json!({"type": "function", "function": {"name": long, "parameters": schema}}),
                json!({"role": "assistant", "tool_calls": [{"id": "a", "type": "function", "function": {"name": long, "arguments": "{}"}}]}),
                json!({"role": "tool", "tool_call_id": "a", "content": "1"}),
            ),
            "messages" => (
                json!({"name": long, "input_schema": schema}),
                json!({"role": "assistant", "content": [{"type": "tool_use", "id": "a", "name": long, "input": {}}]}),
                json!({"role": "user", "content": [{"type": "tool_result", "tool_use_id": "a", "content": "1"}]}),
            ),
            _ => (
                json!({"type": "function", "name": long, "parameters": schema}),
                json!({"type": "function_call", "call_id": "a", "name": long, "arguments": "{}"}),
                json!({"type": "function_call_output", "call_id": "a", "output": "1"}),
            ),
        };
        let list = json!([{"role": "user", "content": "go"}, call, result]);
        let member = if name(from) == "responses" { "input" } else { "messages" };
        let body = json!({"model": "m", "max_tokens": 99, "tools": [tool], member: list});
        let body = if name(from) == "responses" {
            json!({"model": "m", "tools": body["tools"], "input": body["input"]})
        } else {
            body
        };
        for to in CODECS.into_iter().filter(|to| name(*to) != name(from)) {
            let case = format!("{} to {}", name(from), name(to));
            let made = outgoing(from, to, &body, &target()).unwrap();
            let again = outgoing(from, to, &body, &target()).unwrap();
            assert_eq!(made.body, again.body, "the same each time. {case}");
            assert!(!made.body.contains(&long), "{case}: {}", made.body);
            let there = made.undo.tools[0].sent.clone();
            assert!(there.len() <= to.traits().longest_tool_name, "{case}: {there}");
            // In the list of tools and in the history.
            assert_eq!(made.body.matches(&there).count(), 2, "{case}: {}", made.body);
            let exchange = Exchange { undo: made.undo, ..exchange(to) };
            let text = called(to, "{}", ["tool_calls", "tool_use", "completed"])
                .replace("\"f\"", &format!("\"{there}\""));
            let (mut translator, mut out) = (Translator::new(to, from, &exchange), String::new());
            translator.push(&bytes::Bytes::from(text), &mut out, |_| {});
            translator.finish(&mut out, |_| {});
            assert!(out.contains(&long) && !out.contains(&there), "{case}: {out}");
        }
    }
}

#[test]
fn case_21_an_id_of_every_turn_is_made_unique_where_it_has_to_be() {
    let call = json!({"role": "assistant", "tool_calls": [{"id": "functions.Bash:0", "type": "function", "function": {"name": "f", "arguments": "{}"}}]});
    let result =
        |text: &str| json!({"role": "tool", "tool_call_id": "functions.Bash:0", "content": text});
    let body = json!({"model": "m", "messages": [{"role": "user", "content": "go"}, call, result("1"), call, result("2"), call, result("3")]});
    for to in [&MessagesCodec as &dyn Codec, &ResponsesCodec] {
        let sent = sent(&ChatCodec, to, &body);
        let order = order(&sent);
        let ids = |kind: &str| -> Vec<String> {
            order.iter().filter_map(|entry| Some(entry.strip_prefix(kind)?.to_owned())).collect()
        };
        let (calls, results) = (ids("call "), ids("result "));
        assert_eq!(calls, results, "{sent:#}");
        assert_eq!(calls.len(), 3);
        if to.traits().unique_call_ids {
            let unique: std::collections::BTreeSet<_> = calls.iter().collect();
            assert_eq!(unique.len(), 3, "{sent:#}");
            let good =
                |id: &String| id.chars().all(|c| c.is_ascii_alphanumeric() || "_-".contains(c));
            assert!(calls.iter().all(good), "{calls:?}");
        }
    }
}

#[test]
fn case_22_a_property_named_type_is_a_property() {
    let schema = json!({"type": "object", "properties": {"type": {"type": "string", "enum": ["a"]}, "required": {"type": "integer"}}, "required": ["type"]});
    let body = json!({"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "go"}],
        "tools": [{"name": "f", "type": "custom", "input_schema": schema}]});
    assert_eq!(
        sent(&MessagesCodec, &ChatCodec, &body)["tools"][0]["function"]["parameters"],
        schema
    );
    assert_eq!(sent(&MessagesCodec, &ResponsesCodec, &body)["tools"][0]["parameters"], schema);
    let body = json!({"model": "m", "messages": [{"role": "user", "content": "go"}], "tools": [{"type": "function", "function": {"name": "f", "parameters": schema}}]});
    assert_eq!(sent(&ChatCodec, &MessagesCodec, &body)["tools"][0]["input_schema"], schema);
}

#[test]
fn case_23_a_custom_tool_comes_back_as_itself() {
    let patch = "*** Begin Patch\n\"quoted\"\n*** End Patch";
    let body = json!({"model": "m", "input": [{"role": "user", "content": "go"},
            {"type": "custom_tool_call", "call_id": "a", "name": "apply_patch", "input": patch},
            {"type": "custom_tool_call_output", "call_id": "a", "output": "done"}],
        "tools": [{"type": "custom", "name": "apply_patch", "description": "d", "format": {"type": "grammar", "syntax": "lark", "definition": "start: \"x\""}}]});
    for to in [&ChatCodec as &dyn Codec, &MessagesCodec] {
        let quirks =
            crate::dialect::hub::target::Quirks { custom_tools: Some(false), ..Default::default() };
        let target = Target { quirks, ..target() };
        let made = outgoing(&ResponsesCodec, to, &body, &target).unwrap();
        let sent: Value = serde_json::from_str(&made.body).unwrap();
        let tool = &sent["tools"][0];
        let schema = if name(to) == "chat" {
            &tool["function"]["parameters"]
        } else {
            &tool["input_schema"]
        };
        assert_eq!(schema["properties"]["input"]["type"], "string", "{sent:#}");
        let wrapped = json!({"input": patch});
        let history = match name(to) {
            "chat" => serde_json::from_str(
                turns(&sent)[1]["tool_calls"][0]["function"]["arguments"].as_str().unwrap(),
            )
            .unwrap(),
            _ => turns(&sent)[1]["content"][0]["input"].clone(),
        };
        assert_eq!(history, wrapped, "{sent:#}");
        // The answer is free text for the client again.
        let exchange = Exchange { undo: made.undo, ..exchange(to) };
        let text = called(to, &wrapped.to_string(), ["tool_calls", "tool_use", "completed"])
            .replace("\"f\"", "\"apply_patch\"");
        let (mut translator, mut out) =
            (Translator::new(to, &ResponsesCodec, &exchange), String::new());
        translator.push(&bytes::Bytes::from(text), &mut out, |_| {});
        translator.finish(&mut out, |_| {});
        let all = documents(&out);
        let done = of_type(&all, "response.output_item.done");
        assert_eq!(
            (&done[0]["item"]["type"], &done[0]["item"]["input"]),
            (&json!("custom_tool_call"), &json!(patch)),
            "{out}"
        );
        assert!(!out.contains("function_call_arguments"), "{out}");
    }
}

/// A conversation of Messages in which the model has thought before it called.
fn thought(signature: &str) -> Value {
    let thinking = json!({"type": "thinking", "thinking": "why", "signature": signature});
    json!({"model": "m", "max_tokens": 9, "tools": [{"name": "f", "input_schema": {"type": "object", "properties": {}}}], "messages": [
        {"role": "user", "content": "go"},
        {"role": "assistant", "content": [thinking, {"type": "tool_use", "id": "a", "name": "f", "input": {}}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "a", "content": "1"}]}]})
}

#[test]
fn case_24_a_signature_goes_to_its_issuer_alone() {
    // What a client of Chat got from a backend of Messages, and what it sends back.
    let blocks = [
        block(0, json!({"type": "thinking", "thinking": "", "signature": ""})),
        delta(0, json!({"type": "thinking_delta", "thinking": "why"})),
        delta(0, json!({"type": "signature_delta", "signature": "SIGNED+by/claude=="})),
        stop(0),
        block(1, json!({"type": "text", "text": ""})),
        delta(1, json!({"type": "text_delta", "text": "A"})),
        stop(1),
    ];
    let text = messages(&blocks, "end_turn");
    let (_, events) = stream(&MessagesCodec, &ChatCodec, &[text.as_bytes()]);
    let document: Value =
        serde_json::from_str(&translator::document(&ChatCodec, &events, &exchange(&MessagesCodec)))
            .unwrap();
    let message = document["choices"][0]["message"].clone();
    let body = json!({"model": "m", "messages": [{"role": "user", "content": "go"}, message, {"role": "user", "content": "more"}]});
    // Its issuer gets it back as it was.
    let back = sent(&ChatCodec, &MessagesCodec, &body);
    let first = &turns(&back)[1]["content"][0];
    assert_eq!(
        (&first["thinking"], &first["signature"]),
        (&json!("why"), &json!("SIGNED+by/claude==")),
        "{back:#}"
    );
    // Another issuer gets the turn without it.
    let other = Target { issuer: "another".to_owned(), ..target() };
    for to in [&MessagesCodec as &dyn Codec, &ResponsesCodec, &ChatCodec] {
        let made = outgoing(&ChatCodec, to, &body, &other).unwrap();
        assert!(
            !made.body.contains("SIGNED") && !made.body.contains("lp1."),
            "{}: {}",
            name(to),
            made.body
        );
        assert!(made.body.contains("\"A\""), "{}: {}", name(to), made.body);
    }
    // The client has kept it: later turns at its issuer are unharmed.
    assert_eq!(back, sent(&ChatCodec, &MessagesCodec, &body));
    for to in [&ChatCodec as &dyn Codec, &ResponsesCodec] {
        let made = outgoing(&MessagesCodec, to, &thought("SIGNED"), &target()).unwrap();
        assert!(!made.body.contains("SIGNED"), "{}: {}", name(to), made.body);
    }
}

#[test]
fn case_25_reasoning_without_a_signature_is_not_sent_to_messages() {
    let message = json!({"role": "assistant", "content": "A", "reasoning_content": "unsigned"});
    let body = json!({"model": "m", "messages": [{"role": "user", "content": "go"}, message, {"role": "user", "content": "more"}]});
    let out = sent(&ChatCodec, &MessagesCodec, &body);
    assert!(
        !out.to_string().contains("unsigned") && !out.to_string().contains("signature"),
        "{out:#}"
    );
    let item = json!({"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "unsigned"}]});
    let body = json!({"model": "m", "input": [{"role": "user", "content": "go"}, item, {"role": "assistant", "content": "A"}, {"role": "user", "content": "more"}]});
    let out = sent(&ResponsesCodec, &MessagesCodec, &body);
    assert!(
        !out.to_string().contains("unsigned") && !out.to_string().contains("signature"),
        "{out:#}"
    );
    assert!(out.to_string().contains("\"A\""), "{out:#}");
}

#[test]
fn case_33_a_reference_to_a_store_is_refused() {
    for (member, value) in [
        ("previous_response_id", json!("resp_1")),
        ("conversation", json!("conv_1")),
        ("background", json!(true)),
        ("prompt", json!({"id": "pmpt_1"})),
    ] {
        let body = json!({"model": "m", "input": "go", member: value});
        for to in [&ChatCodec as &dyn Codec, &MessagesCodec] {
            let refused = outgoing(&ResponsesCodec, to, &body, &target()).unwrap_err();
            assert_eq!((refused.path.as_str(), refused.invalid), (member, false), "{refused}");
        }
    }
    let body = json!({"model": "m", "input": [{"role": "user", "content": "go"}, {"type": "item_reference", "id": "msg_1"}]});
    for to in [&ChatCodec as &dyn Codec, &MessagesCodec] {
        assert!(outgoing(&ResponsesCodec, to, &body, &target()).is_err(), "{}", name(to));
    }
}

#[test]
fn case_34_calls_of_one_turn_stand_together() {
    let call =
        |id: &str| json!({"type": "function_call", "call_id": id, "name": "f", "arguments": "{}"});
    let result = |id: &str| json!({"type": "function_call_output", "call_id": id, "output": "1"});
    let body = json!({"model": "m", "input": [{"role": "user", "content": "go"}, call("a"),
        {"role": "assistant", "content": "and another"}, call("b"), result("a"), result("b")]});
    for to in [&ChatCodec as &dyn Codec, &MessagesCodec] {
        let sent = sent(&ResponsesCodec, to, &body);
        assert_eq!(order(&sent), ["call a", "call b", "result a", "result b"], "{sent:#}");
        let own: Vec<&Value> =
            turns(&sent).iter().filter(|turn| turn["role"] == "assistant").collect();
        assert_eq!(own.len(), 1, "{}: {sent:#}", name(to));
        assert!(own[0].to_string().contains("and another"), "{sent:#}");
    }
}

#[test]
fn case_36_a_limit_is_raised_to_the_vendors_floor() {
    for (from, member) in [(&MessagesCodec as &dyn Codec, "max_tokens"), (&ChatCodec, "max_tokens")]
    {
        let body =
            json!({"model": "m", member: 1, "messages": [{"role": "user", "content": "quota"}]});
        assert_eq!(sent(from, &ResponsesCodec, &body)["max_output_tokens"], 16, "{}", name(from));
        let to: &dyn Codec = if name(from) == "chat" { &MessagesCodec } else { &ChatCodec };
        let sent = sent(from, to, &body);
        let given = sent.get("max_tokens").or_else(|| sent.get("max_completion_tokens"));
        assert_eq!(given, Some(&json!(1)), "{sent:#}");
        // A model's own limit wins over what is asked, not over the floor.
        let facts = ModelFacts { max_output: Some(4096), ..ModelFacts::default() };
        let limited = Target { facts, ..target() };
        let body =
            json!({"model": "m", member: 9000, "messages": [{"role": "user", "content": "x"}]});
        let made = outgoing(from, &ResponsesCodec, &body, &limited).unwrap();
        assert!(
            made.body.contains("\"max_output_tokens\":4096") && !made.losses.is_empty(),
            "{}",
            made.body
        );
    }
}
