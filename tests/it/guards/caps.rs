//! Caps on what a request asks for.

use serde_json::json;

use super::*;

fn with(client: &str, members: &Value) -> Value {
    let mut body = says(client, false, "Hello");
    for (name, value) in members.as_object().unwrap() {
        body[name] = value.clone();
    }
    body
}

const CAPS: &str = "max_tokens: 100, n: 2, logprobs: false, tools: 1, images: 1, image_bytes: 6";

fn image(bytes: usize) -> Value {
    use base64::Engine as _;
    let data = base64::engine::general_purpose::STANDARD.encode(vec![0; bytes]);
    json!({"type": "image_url", "image_url": {"url": format!("data:image/png;base64,{data}")}})
}

fn with_images(sizes: &[usize]) -> Value {
    let parts: Vec<Value> = sizes.iter().map(|size| image(*size)).collect();
    json!({"messages": [{"role": "user", "content": parts}]})
}

fn tools(count: usize) -> Value {
    let tool = |n| json!({"type": "function", "function": {"name": format!("tool{n}"), "parameters": {"type": "object"}}});
    json!({"tools": (0..count).map(tool).collect::<Vec<_>>()})
}

#[tokio::test]
async fn too_much_is_refused() {
    let echo = Echo::start().await;
    let gateway = before(&echo.url, "chat", &format!("guards: {{caps: [{{{CAPS}}}]}}\n")).await;
    for (client, members, status) in [
        ("chat", json!({"max_tokens": 100, "n": 2}), 200),
        ("chat", json!({"max_tokens": 101}), 400),
        ("chat", json!({"max_completion_tokens": 101}), 400),
        ("chat", json!({"n": 3}), 400),
        ("chat", json!({"logprobs": true}), 400),
        ("chat", json!({"logprobs": false}), 200),
        ("chat", tools(1), 200),
        ("chat", tools(2), 400),
        ("chat", with_images(&[6]), 200),
        ("chat", with_images(&[7]), 400),
        ("chat", with_images(&[1, 1]), 400),
        ("messages", json!({"max_tokens": 100}), 200),
        ("messages", json!({"max_tokens": 101}), 400),
        ("responses", json!({"max_output_tokens": 100}), 200),
        ("responses", json!({"max_output_tokens": 101}), 400),
    ] {
        let answer = ask(&gateway, client, "", &with(client, &members)).await;
        assert_eq!(answer.status, status, "{client} {members}: {}", answer.text());
        if status == 400 {
            let (_, code, message) = refusal(client, &answer);
            assert!(client == "messages" || code == "cap_exceeded", "{code} {message}");
        }
    }
    assert_eq!(findings(&gateway, "caps", "max_tokens", "refuse").await, 4.0);
}

#[tokio::test]
async fn too_much_becomes_the_most() {
    let echo = Echo::start().await;
    for (client, backend) in [
        ("chat", "chat"),
        ("messages", "messages"),
        ("responses", "responses"),
        ("messages", "chat"),
        ("chat", "messages"),
    ] {
        let gateway =
            before(&echo.url, backend, &format!("guards: {{caps: [{{{CAPS}, action: clamp}}]}}\n"))
                .await;
        let own = match client {
            "responses" => "max_output_tokens",
            _ => "max_tokens",
        };
        let limit = |seen: &Value| {
            let names = ["max_tokens", "max_completion_tokens", "max_output_tokens"];
            names.iter().find_map(|name| seen[*name].as_u64())
        };
        for asked in [json!({own: 5000}), json!({own: -1}), json!({})] {
            let mut body = with(client, &asked);
            if asked.as_object().unwrap().is_empty() {
                body.as_object_mut().unwrap().remove("max_tokens");
            }
            if client == "messages" && asked[own] == -1 {
                continue;
            }
            heard(&gateway, client, "", &body).await;
            assert_eq!(limit(&echo.last_json()), Some(100), "{client} {asked}: {}", echo.last());
        }
        heard(&gateway, client, "", &with(client, &json!({own: 99}))).await;
        assert_eq!(limit(&echo.last_json()), Some(99));
        if client == "chat" && backend == "chat" {
            let asked = json!({"n": 9, "logprobs": true, "top_logprobs": 3});
            heard(&gateway, client, "", &with(client, &asked)).await;
            let seen = echo.last_json();
            assert_eq!(seen["n"], 2);
            assert!(
                seen["logprobs"] != true && seen["top_logprobs"].as_u64().unwrap_or(0) == 0,
                "{seen}"
            );
            assert_eq!(findings(&gateway, "caps", "n", "clamp").await, 1.0);
            // Too many are refused in any case.
            for members in [tools(2), with_images(&[1, 1])] {
                assert_eq!(ask(&gateway, client, "", &with(client, &members)).await.status, 400);
            }
        }
    }
}
