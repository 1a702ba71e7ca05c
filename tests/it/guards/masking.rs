//! Personal data: masked for the backend, and put back for the client.

use serde_json::{Value, json};

use super::*;
use crate::{
    languages::path,
    support::{Client, free_address},
};

/// What must not reach a backend.
const VALUES: [&str; 4] = ["ann@example.com", "4111 1111 1111 1111", "Q\"x\"Q", "bob@example.org"];

const TEXT: &str = "Write to ann@example.com, pay by 4111 1111 1111 1111, say Q\"x\"Q to bob@example.org \
                    [note] and ann@example.com.";

const MASKED: &str =
    "Write to [EMAIL_1], pay by [CARD_1], say [QUOTED_1] to [EMAIL_2] [note] and [EMAIL_1].";

const GUARD: &str = "guards: {redact: [{patterns: [{name: quoted, pattern: 'Q\"[a-z]+\"Q'}]}]}\n";

fn is_clean(text: &str) {
    for value in VALUES {
        let written = Value::from(value).to_string();
        for form in [value, written.trim_matches('"')] {
            assert!(!text.contains(form), "{form} is in: {text}");
        }
    }
}

#[tokio::test]
async fn every_pair_of_languages_masks_and_unmasks() {
    let echo = Echo::start().await;
    for backend in LANGUAGES {
        let gateway = before(&echo.url, backend, GUARD).await;
        for client in LANGUAGES {
            for (stream, piece) in [(false, 1), (true, 1), (true, 3), (true, 11), (true, 1000)] {
                echo.change(|m| m.piece = piece);
                let case = format!("{client} to {backend}, {stream}, {piece}");
                let answer = ask(&gateway, client, "", &says(client, stream, TEXT)).await;
                let seen = echo.last();
                is_clean(&seen);
                assert!(seen.contains(MASKED), "{case}: {seen}");
                let heard = hear(client, stream, &answer);
                assert_eq!(heard.text, TEXT, "{case}");
                assert!(!heard.open && heard.end.is_some() && heard.error.is_none(), "{case}");
                let told = !stream || client != "chat";
                assert!(!told || heard.usage == Some((5, 7)), "{case}: {:?}", heard.usage);
                for placeholder in ["EMAIL_", "CARD_", "QUOTED_"] {
                    assert!(!answer.text().contains(placeholder), "{case}: {}", answer.text());
                }
            }
        }
        assert!(findings(&gateway, "redact", "email", "mask").await >= 45.0);
        assert!(findings(&gateway, "redact", "quoted", "mask").await >= 15.0);
        assert!(findings(&gateway, "redact", "answer", "unmask").await >= 60.0);
    }
}

/// A request with a tool.
fn with_tool(client: &str, stream: bool) -> Value {
    let mut body = says(client, stream, TEXT);
    let schema = json!({"type": "object", "properties": {"text": {"type": "string"}}});
    body["tools"] = match client {
        "chat" => json!([{"type": "function", "function": {"name": "tell", "parameters": schema}}]),
        "messages" => json!([{"name": "tell", "input_schema": schema}]),
        _ => json!([{"type": "function", "name": "tell", "parameters": schema}]),
    };
    body
}

/// All texts at this place, one behind the other.
fn joined(documents: &[Value], place: &str) -> String {
    documents.iter().filter_map(|document| document.pointer(place)?.as_str()).collect()
}

/// The arguments of the tool call of an answer.
fn arguments(client: &str, stream: bool, text: &str) -> Value {
    let documents: Vec<Value> = match stream {
        true => events(text).into_iter().map(|(_, document)| document).collect(),
        false => vec![serde_json::from_str(text).unwrap()],
    };
    let told = match (client, stream) {
        ("chat", true) => joined(&documents, "/choices/0/delta/tool_calls/0/function/arguments"),
        ("chat", false) => joined(&documents, "/choices/0/message/tool_calls/0/function/arguments"),
        ("messages", true) => joined(&documents, "/delta/partial_json"),
        ("messages", false) => return documents[0]["content"][0]["input"].clone(),
        (_, true) => {
            let delta = documents
                .iter()
                .filter(|event| event["type"] == "response.function_call_arguments.delta");
            let delta: String = delta.map(|event| event["delta"].as_str().unwrap()).collect();
            // What repeats the arguments says the same.
            let last = documents.last().unwrap();
            assert_eq!(last["response"]["output"][0]["arguments"], delta.as_str());
            delta
        }
        _ => joined(&documents, "/output/0/arguments"),
    };
    serde_json::from_str(&told).unwrap_or_else(|e| panic!("{e}: {told}"))
}

#[tokio::test]
async fn arguments_of_tool_calls_get_their_values() {
    let echo = Echo::start().await;
    for backend in LANGUAGES {
        let gateway = before(&echo.url, backend, GUARD).await;
        for client in LANGUAGES {
            for (stream, piece) in [(false, 1), (true, 1), (true, 7)] {
                echo.change(|m| m.piece = piece);
                let answer = ask(&gateway, client, "", &with_tool(client, stream)).await;
                assert_eq!(answer.status, 200, "{}", answer.text());
                is_clean(&echo.last());
                let case = format!("{client} to {backend}, {stream}, {piece}: {}", answer.text());
                assert_eq!(arguments(client, stream, answer.text())["text"], TEXT, "{case}");
            }
        }
    }
}

#[tokio::test]
async fn another_backend_gets_the_same_masked_request() {
    let (bad, good) = (Echo::start().await, Echo::start().await);
    bad.change(|m| m.status = 503);
    for (first, second) in [("chat", "messages"), ("messages", "chat"), ("responses", "responses")]
    {
        for client in LANGUAGES {
            let text = first_and_second((&bad.url, first), (&good.url, second));
            let gateway = Gateway::start(&format!("{text}{PATIENT}{GUARD}")).await;
            let count = bad.seen().len();
            for stream in [false, true] {
                let heard = heard(&gateway, client, "", &says(client, stream, TEXT)).await;
                assert_eq!(heard.text, TEXT, "{client} to {first} and {second}");
                is_clean(&good.last());
                assert!(good.last().contains(MASKED));
            }
            assert!(bad.seen().len() > count, "the first one was asked");
            is_clean(&bad.last());
        }
    }
}

#[tokio::test]
async fn hedged_requests_are_masked_too() {
    let (slow, fast) = (Echo::start().await, Echo::start().await);
    slow.change(|m| m.delay = std::time::Duration::from_secs(5));
    let text = first_and_second((&slow.url, "chat"), (&fast.url, "chat"));
    let hedge = "routing: {hedge: {enabled: true, delay: 50ms, max_tokens: 5000}, circuit: {enabled: false}}\n";
    let gateway = Gateway::start(&format!("{text}{hedge}{GUARD}")).await;
    for client in LANGUAGES {
        let mut body = says(client, false, TEXT);
        let limit = if client == "responses" { "max_output_tokens" } else { "max_tokens" };
        body[limit] = 100.into();
        assert_eq!(heard(&gateway, client, "", &body).await.text, TEXT, "{client}");
    }
    assert!(!slow.seen().is_empty() && !fast.seen().is_empty());
    for seen in [slow.last(), fast.last()] {
        is_clean(&seen);
    }
}

#[tokio::test]
async fn an_answer_without_placeholders_keeps_its_bytes() {
    let echo = Echo::start().await;
    for language in LANGUAGES {
        let (bare, guarded) =
            (before(&echo.url, language, "").await, before(&echo.url, language, GUARD).await);
        for (text, answer) in
            [("Hello [you", None), (TEXT, Some("No [EMAIL_9], no [EMAIL.".to_owned()))]
        {
            echo.change(|m| m.says = answer);
            for stream in [false, true] {
                let body = says(language, stream, text);
                let expected = ask(&bare, language, "", &body).await;
                let found = ask(&guarded, language, "", &body).await;
                assert_eq!(found.text(), expected.text(), "{language} {stream}");
            }
        }
        echo.change(|m| m.says = None);
        let body = format!("  {}  ", says(language, false, "Nothing \\u00e9 here"));
        let mut client = guarded.client().await;
        client.ask(path(language), &body).await;
        assert_eq!(echo.last(), body);
    }
}

#[tokio::test]
async fn placeholders_of_a_client_and_of_earlier_turns_stay_what_they_are() {
    let echo = Echo::start().await;
    let gateway = before(&echo.url, "chat", GUARD).await;
    let text = "What is [EMAIL_1] of carol@example.com?";
    assert_eq!(heard(&gateway, "chat", "", &says("chat", true, text)).await.text, text);
    assert!(!echo.last().contains("carol"));
    let turns = json!([{"role": "system", "content": "Answer ann@example.com."},
        {"role": "user", "content": "bob@example.org wrote"}, {"role": "assistant", "content": "To ann@example.com?"},
        {"role": "user", "content": [{"type": "text", "text": "ann@example.com, bob@example.org"}]}]);
    let heard = heard(&gateway, "chat", "", &json!({"model": "m", "messages": turns})).await;
    assert_eq!(heard.text, "ann@example.com, bob@example.org");
    let seen = echo.last_json();
    let said = |n: usize| seen["messages"][n]["content"].clone();
    assert_eq!(said(0), "Answer [EMAIL_1].");
    assert_eq!(said(1), "[EMAIL_2] wrote");
    assert_eq!(said(2), "To [EMAIL_1]?");
    assert_eq!(said(3)[0]["text"], "[EMAIL_1], [EMAIL_2]");
}

#[tokio::test]
async fn masks_for_good_for_some_kinds_and_roles() {
    let echo = Echo::start().await;
    let guard = "guards: {redact: [{kinds: [email], reversible: false, roles: [user]}]}\n";
    let gateway = before(&echo.url, "messages", guard).await;
    let mut body = says("messages", true, "ann@example.com, 4111 1111 1111 1111");
    body["system"] = "You are help@example.com.".into();
    let heard = heard(&gateway, "messages", "", &body).await;
    assert_eq!(heard.text, "[EMAIL_1], 4111 1111 1111 1111");
    assert_eq!(echo.last_json()["system"], "You are help@example.com.");
    assert_eq!(findings(&gateway, "redact", "answer", "unmask").await, 0.0);
}

#[tokio::test]
async fn json_stays_json() {
    let echo = Echo::start().await;
    let gateway = before(&echo.url, "chat", GUARD).await;
    echo.change(|m| m.says = Some(r#"{"said":"[QUOTED_1]"}"#.to_owned()));
    for stream in [false, true] {
        let mut body = says("chat", stream, TEXT);
        body["response_format"] = json!({"type": "json_object"});
        let heard = heard(&gateway, "chat", "", &body).await;
        let said: Value = serde_json::from_str(&heard.text).unwrap();
        assert_eq!(said["said"], "Q\"x\"Q");
    }
}

#[tokio::test]
async fn what_must_not_be_sent_is_refused() {
    let echo = Echo::start().await;
    for status in [400, 403] {
        let guard =
            format!("guards: {{redact: [{{action: refuse, kinds: [email], status: {status}}}]}}\n");
        let gateway = before(&echo.url, "chat", &guard).await;
        for client in LANGUAGES {
            for stream in [false, true] {
                let answer = ask(&gateway, client, "", &says(client, stream, TEXT)).await;
                assert_eq!(answer.status, status, "{client}");
                let (_, code, message) = refusal(client, &answer);
                assert!(client == "messages" || code == "personal_data", "{code}");
                assert!(message.contains("email") && !message.contains('@'), "{message}");
            }
            heard(&gateway, client, "", &says(client, false, "4111 1111 1111 1111")).await;
        }
        assert_eq!(findings(&gateway, "redact", "email", "refuse").await, 18.0);
    }
    assert_eq!(echo.seen().len(), 6);
}

#[tokio::test]
async fn values_are_in_no_log_and_in_no_explanation() {
    let echo = Echo::start().await;
    let receiver = Receiver::start().await;
    let admin = free_address();
    let more = format!(
        "{GUARD}{}log: {{level: debug}}\nadmin: {{enabled: true, listen: \"{admin}\", token: a-token-for-tests, db_path: keys.db}}\nrouting: {{explain: 10}}\n",
        receiver.hook()
    );
    let gateway = before(&echo.url, "messages", &more).await;
    let id = "X-Request-Id: fixed\r\n";
    for (sent, stream) in [(1, false), (2, true)] {
        assert_eq!(heard(&gateway, "chat", id, &says("chat", stream, TEXT)).await.text, TEXT);
        let records = receiver.wait_for(sent).await;
        is_clean(&serde_json::to_string(&records).unwrap());
    }
    let mut client = Client::connect(admin).await;
    client
        .send(b"GET /admin/v1/explain?request_id=fixed HTTP/1.1\r\nHost: a\r\nX-Admin-Token: a-token-for-tests\r\n\r\n")
        .await;
    let explained = client.answer().await;
    assert_eq!(explained.status, 200, "{}", explained.text());
    is_clean(explained.text());
    let hooks = explained.json()["hooks"].clone();
    let of = |result: &str| -> Vec<Value> {
        let all = hooks.as_array().unwrap().iter();
        all.filter(|h| h["result"] == result).map(|h| h["changed"][0].clone()).collect()
    };
    assert_eq!(of("mask"), ["quoted: 1", "email: 3", "card: 1"], "{hooks}");
    assert_eq!(of("unmask"), ["answer: 5"], "{hooks}");
    is_clean(&gateway.log());
}
