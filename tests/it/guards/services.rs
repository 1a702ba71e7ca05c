//! Moderation services, asked before or beside the backend.

use std::time::{Duration, Instant};

use serde_json::json;

use super::*;

const NONE: Duration = Duration::ZERO;

fn guard(judge: &Judge, more: &str) -> String {
    format!("guards: {{moderation: [{{url: \"{}\"{more}}}]}}\n", judge.url)
}

fn flags(flagged: bool) -> Value {
    json!({"results": [{"flagged": false, "categories": {}}, {"flagged": flagged, "categories": {"hate": flagged}}]})
}

/// It is refused with this status and this message.
async fn is_refused(
    gateway: &Gateway,
    client: &str,
    stream: bool,
    status: u16,
    code: &str,
) -> String {
    let answer = ask(gateway, client, "", &says(client, stream, "Hello")).await;
    assert_eq!(answer.status, status, "{client} {stream}: {}", answer.text());
    let (_, found, message) = refusal(client, &answer);
    assert!(client == "messages" || found == code, "{found}");
    message
}

#[tokio::test]
async fn before_the_backend() {
    let (echo, judge) = (Echo::start().await, Judge::start().await);
    let more = ", model: judge-1, status: 403, headers: {Authorization: Bearer xyz}";
    let gateway = before(&echo.url, "chat", &guard(&judge, more)).await;
    for client in LANGUAGES {
        for stream in [false, true] {
            judge.says(200, &flags(true), NONE);
            let count = echo.seen().len();
            let said = is_refused(&gateway, client, stream, 403, "content_blocked").await;
            assert_eq!(said, "The content is not allowed here");
            assert_eq!(echo.seen().len(), count, "the backend is not asked");
            let (headers, asked) = judge.asked().pop().unwrap();
            assert_eq!(asked, json!({"input": ["Hello"], "model": "judge-1"}));
            assert_eq!(headers["authorization"], "Bearer xyz");
            judge.says(200, &flags(false), NONE);
            assert_eq!(heard(&gateway, client, "", &says(client, stream, "Hi")).await.text, "Hi");
        }
    }
    assert_eq!(findings(&gateway, "moderation", "flagged", "refuse").await, 6.0);
}

#[tokio::test]
async fn some_categories_refuse() {
    let (echo, judge) = (Echo::start().await, Judge::start().await);
    judge.says(200, &flags(true), NONE);
    for (category, status) in [("hate", 400), ("violence", 200)] {
        let guard = guard(&judge, &format!(", categories: [{category}]"));
        let gateway = before(&echo.url, "chat", &guard).await;
        let answer = ask(&gateway, "chat", "", &says("chat", false, "Hello")).await;
        assert_eq!(answer.status, status, "{category}");
    }
}

#[tokio::test]
async fn the_generic_form_knows_who_asks_and_sees_placeholders() {
    let (echo, judge) = (Echo::start().await, Judge::start().await);
    let more = format!(
        "{KEYS}guards: {{redact: [{{}}], moderation: [{{url: \"{}\", form: generic, roles: [system, user]}}]}}\n",
        judge.url
    );
    let gateway = before(&echo.url, "chat", &more).await;
    judge.says(200, &json!({"allow": true}), NONE);
    let mut body = says("messages", true, "I am ann@example.com");
    body["system"] = "Be kind".into();
    let heard = heard(&gateway, "messages", &bearer("ann"), &body).await;
    assert_eq!(heard.text, "I am ann@example.com");
    assert_eq!(
        judge.asked()[0].1,
        json!({"texts": ["Be kind", "I am [EMAIL_1]"], "model": "sim-model", "user": "ann", "key": "k-ann"})
    );
    judge.says(200, &json!({"allow": false, "message": "Go away."}), NONE);
    let answer = ask(&gateway, "messages", &bearer("ann"), &body).await;
    assert_eq!((answer.status, refusal("messages", &answer).2.as_str()), (400, "Go away."));
}

#[tokio::test]
async fn beside_the_backend() {
    let (echo, judge) = (Echo::start().await, Judge::start().await);
    let receiver = Receiver::start().await;
    let slow = Duration::from_millis(300);
    let guard = guard(&judge, ", mode: beside, form: generic");
    let mut asked = 0;
    for backend in LANGUAGES {
        let gateway = before(&echo.url, backend, &format!("{guard}{}", receiver.hook())).await;
        for client in LANGUAGES {
            for stream in [false, true] {
                judge.says(200, &json!({"allow": false, "message": "Go away."}), slow);
                let count = echo.seen().len();
                let said = is_refused(&gateway, client, stream, 400, "content_blocked").await;
                assert_eq!((said.as_str(), echo.seen().len()), ("Go away.", count + 1));
                judge.says(200, &json!({"allow": true}), slow);
                let heard = heard(&gateway, client, "", &says(client, stream, "Hi there")).await;
                assert_eq!(heard.text, "Hi there");
                asked += 2;
            }
        }
        let records = receiver.wait_for(asked).await;
        for record in records {
            // Of a stream that is refused, nothing was read.
            let read = record["status_code"] == 200 || record["is_stream"] == false;
            assert!(!read || record["total_tokens"] == 12, "{record}");
        }
        assert_eq!(findings(&gateway, "moderation", "flagged", "refuse").await, 6.0);
    }
}

#[tokio::test]
async fn both_take_their_time_at_once() {
    let (echo, judge) = (Echo::start().await, Judge::start().await);
    let time = Duration::from_millis(1500);
    echo.change(|m| m.delay = time);
    judge.says(200, &json!({"allow": true}), time);
    let gateway = before(&echo.url, "chat", &guard(&judge, ", mode: beside, form: generic")).await;
    let start = Instant::now();
    heard(&gateway, "chat", "", &says("chat", true, "Hello")).await;
    assert!(start.elapsed() < time * 2, "{:?}", start.elapsed());
}

#[tokio::test]
async fn a_service_that_fails_is_open_or_closed() {
    let (echo, judge) = (Echo::start().await, Judge::start().await);
    let slow = Duration::from_secs(30);
    for mode in ["before", "beside"] {
        for fail in ["open", "closed"] {
            let guard = guard(&judge, &format!(", mode: {mode}, fail: {fail}, timeout: 200ms"));
            let gateway = before(&echo.url, "messages", &guard).await;
            for (status, body, delay) in [
                (200, flags(false), slow),
                (500, flags(false), NONE),
                (200, json!("a word"), NONE),
                (200, json!({"results": 7}), NONE),
            ] {
                judge.says(status, &body, delay);
                for (client, stream) in [("chat", true), ("messages", false), ("responses", true)] {
                    if fail == "open" {
                        heard(&gateway, client, "", &says(client, stream, "Hello")).await;
                    } else {
                        is_refused(&gateway, client, stream, 503, "moderation_unavailable").await;
                    }
                }
            }
            let action = if fail == "open" { "pass" } else { "refuse" };
            let found = findings(&gateway, "moderation", "unavailable", action).await;
            assert_eq!(found, 12.0, "{mode} {fail}");
            gateway.logs("guard moderation").await;
        }
    }
}
