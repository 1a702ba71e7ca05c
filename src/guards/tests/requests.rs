//! Requests.

use serde_json::{Value, json};

use super::*;

#[test]
fn values_become_placeholders_in_every_language() {
    let guards = guards("{redact: [{}]}");
    for (name, body, sent) in [
        (
            "chat",
            r#"{"messages":[{"role":"system","content":"Mail b@c.de"},{"role":"user","content":[{"type":"text","text":"I am a@b.de \u00e4 b@c.de"}]},
               {"role":"assistant","tool_calls":[{"function":{"name":"f","arguments":"{\"to\":\"x\\na@b.de\",\"card\":4111111111111111}"}}]}],"model":"a@b.de"}"#,
            r#"{"messages":[{"role":"system","content":"Mail [EMAIL_1]"},{"role":"user","content":[{"type":"text","text":"I am [EMAIL_2] \u00e4 [EMAIL_1]"}]},
               {"role":"assistant","tool_calls":[{"function":{"name":"f","arguments":"{\"to\":\"x\\n[EMAIL_2]\",\"card\":\"[CARD_1]\"}"}}]}],"model":"a@b.de"}"#,
        ),
        (
            "messages",
            r#"{"messages":[{"role":"user","content":"a@b.de"},{"role":"assistant","content":[{"type":"thinking","thinking":"a@b.de","signature":"s"},
               {"type":"tool_use","input":{"to":"a@b.de"}}]}],"system":"b@c.de"}"#,
            r#"{"messages":[{"role":"user","content":"[EMAIL_2]"},{"role":"assistant","content":[{"type":"thinking","thinking":"a@b.de","signature":"s"},
               {"type":"tool_use","input":{"to":"[EMAIL_2]"}}]}],"system":"[EMAIL_1]"}"#,
        ),
        (
            "responses",
            r#"{"input":[{"role":"user","content":"a\u0040b.de"},{"type":"function_call_output","output":"+49 30 1234567"}],"instructions":null}"#,
            r#"{"input":[{"role":"user","content":"[EMAIL_1]"},{"type":"function_call_output","output":"[PHONE_1]"}],"instructions":null}"#,
        ),
    ] {
        let (got, outcome) = request(&guards, name, body).unwrap();
        assert_eq!(got, sent);
        assert!(outcome.findings.iter().all(|found| found.action == "mask"), "{outcome:?}");
        assert!(!format!("{outcome:?}").contains("1234567"));
    }
}

#[test]
fn placeholders_stay_over_the_turns_of_a_conversation() {
    let guards = guards("{redact: [{}]}");
    let turn = |texts: &[&str]| {
        let messages: Vec<Value> =
            texts.iter().map(|t| json!({"role": "user", "content": t})).collect();
        request(&guards, "chat", &json!({"messages": messages}).to_string()).unwrap().0
    };
    let first = turn(&["a@b.de", "c@d.de"]);
    let second = turn(&["a@b.de", "c@d.de", "e@f.de and a@b.de"]);
    assert!(second.starts_with(first.trim_end_matches("]}")), "{first} {second}");
    assert!(second.contains("[EMAIL_3] and [EMAIL_1]"));
}

#[test]
fn entries_refuse_or_mask_by_kind_and_role() {
    let guards = guards(
        "{redact: [{kinds: [email]}, {kinds: [card], action: refuse, status: 403, roles: [user]},
          {kinds: [], patterns: [{name: staff, pattern: 'S-[0-9]{4}'}], reversible: false}]}",
    );
    let body =
        |role: &str, text: &str| json!({"messages": [{"role": role, "content": text}]}).to_string();
    let refused = request(&guards, "chat", &body("user", "a@b.de 4111111111111111")).unwrap_err();
    assert_eq!(
        (refused.rejection.status, refused.rejection.code.as_deref()),
        (403, Some("personal_data"))
    );
    assert!(
        refused.rejection.message.contains("card") && !refused.rejection.message.contains("4111")
    );
    let expected = Finding { guard: "redact", kind: "card".to_owned(), action: "refuse", count: 1 };
    assert_eq!(refused.findings, [expected]);
    let (sent, outcome) =
        request(&guards, "chat", &body("system", "4111111111111111 S-1234")).unwrap();
    assert!(sent.contains("4111111111111111 [STAFF_1]") && outcome.vault.is_none(), "{sent}");
}

#[test]
fn halves_of_surrogates_hide_nothing() {
    let guards = guards("{redact: [{}], deny: [{words: [secret]}]}");
    let body = r#"{"messages":[{"content":"\ud800 a@b.de"}]}"#;
    let (sent, _) = request(&guards, "chat", &body.replace(r"\ud800", r"\ud83d\ude00")).unwrap();
    assert!(sent.contains("[EMAIL_1]"));
    let selected = guards.applies(&Subject::default());
    let chat = language("chat");
    let outcome = guards.request(selected, chat, operation(chat), body.as_bytes()).unwrap();
    assert_eq!(outcome.edits.len(), 1);
    let refused = guards.request(
        selected,
        chat,
        operation(chat),
        br#"{"messages":[{"content":"\ud800 s\u0065cret"}]}"#,
    );
    assert_eq!(refused.unwrap_err().rejection.code.as_deref(), Some("content_blocked"));
}

#[test]
fn denied_words_are_found_as_words() {
    let guards = guards(
        r"{deny: [{words: [ass, 绝密], patterns: ['project-\d+'], message: No., status: 403, roles: [user]}]}",
    );
    for (text, denied) in [
        ("an Ass!", true),
        ("assume", false),
        ("这是绝密文件", true),
        ("Project-7", false),
        ("project-7", true),
    ] {
        let body = json!({"messages": [{"role": "user", "content": text}]}).to_string();
        let answer = request(&guards, "chat", &body);
        assert_eq!(answer.is_err(), denied, "{text}");
        if let Err(refused) = answer {
            assert_eq!((refused.rejection.status, &*refused.rejection.message), (403, "No."));
        }
        let body = json!({"messages": [{"role": "system", "content": text}]}).to_string();
        assert!(request(&guards, "chat", &body).is_ok());
    }
    let body = r#"{"messages":[{"role":"user","tool_calls":[{"function":{"arguments":"{\"a\":\"x\\nass\"}"}}]}]}"#;
    assert!(request(&guards, "chat", body).is_ok(), "arguments are the assistant's");
}

#[test]
fn caps_clamp() {
    let guards = guards(
        "{caps: [{action: clamp, n: 2, max_tokens: 100, top_logprobs: 3}, {action: clamp, max_tokens: 50}]}",
    );
    for (name, body, sent) in [
        ("chat", r#"{"n":5,"max_tokens":70}"#, r#"{"n":2,"max_tokens":50}"#),
        ("chat", r#"{"n":2,"max_tokens":50}"#, r#"{"n":2,"max_tokens":50}"#),
        (
            "chat",
            r#"{"n":"7","max_completion_tokens":1e9}"#,
            r#"{"n":2,"max_completion_tokens":50}"#,
        ),
        ("chat", "{}", r#"{"max_completion_tokens":50}"#),
        ("chat", r#"{"max_completion_tokens":null}"#, r#"{"max_completion_tokens":50}"#),
        (
            "chat",
            r#"{"max_tokens":-1,"logprobs":true,"top_logprobs":20}"#,
            r#"{"max_tokens":50,"logprobs":true,"top_logprobs":3}"#,
        ),
        ("messages", r#"{"model":"m" }"#, r#"{"model":"m" ,"max_tokens":50}"#),
        ("responses", r#"{"max_output_tokens":51}"#, r#"{"max_output_tokens":50}"#),
    ] {
        let (got, outcome) = request(&guards, name, body).unwrap();
        assert_eq!(got, sent);
        assert_eq!(outcome.findings.is_empty(), body == sent, "{outcome:?}");
    }
}

#[test]
fn caps_refuse() {
    let image = |data: &str| json!({"type": "image_url", "image_url": {"url": format!("data:image/png;base64,{data}")}});
    let images = |list: Vec<Value>| json!({"messages": [{"content": list}]}).to_string();
    let guards = guards("{caps: [{n: 2, logprobs: false, tools: 1, images: 1, image_bytes: 6}]}");
    for (body, param) in [
        (r#"{"n":3}"#.to_owned(), Some("n")),
        (r#"{"n":1,"n":3}"#.to_owned(), Some("n")),
        (r#"{"best_of":3}"#.to_owned(), Some("n")),
        (r#"{"logprobs":true}"#.to_owned(), Some("logprobs")),
        (r#"{"logprobs":false,"n":2,"tools":[{}]}"#.to_owned(), None),
        (r#"{"tools":[{},{}]}"#.to_owned(), Some("tools")),
        (images(vec![image("AAAAAAAA")]), None),
        (images(vec![image("AAAAAAAAAAAA")]), Some("image_bytes")),
        (images(vec![image("AAAA"), image("AAAA")]), Some("images")),
    ] {
        let refused = request(&guards, "chat", &body).err();
        let found = refused.as_ref().and_then(|r| r.rejection.param.as_deref());
        assert_eq!(found, param, "{body}");
    }
}
