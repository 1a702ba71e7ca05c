//! The scripts of `lua/guards`, each with the effect that its head describes.

use serde_json::json;

use super::*;

fn script(name: &str) -> String {
    format!("{}/lua/guards/{name}.lua", env!("CARGO_MANIFEST_DIR"))
}

async fn with(echo: &Echo, stage: &str, name: &str) -> Gateway {
    let hooks = format!("hooks: {{{stage}: {{path: \"{}\", on_error: closed}}}}\n", script(name));
    let list = "languages: [chat, messages, responses]";
    Gateway::start(&format!("backends: [{{url: \"{}\", {list}}}]\n{hooks}", echo.url)).await
}

#[tokio::test]
async fn redact_email_masks_for_good() {
    let echo = Echo::start().await;
    let gateway = with(&echo, "on_request", "redact_email").await;
    for client in LANGUAGES {
        let text = "ann@example.com and bob@example.org, ann@example.com";
        let heard = heard(&gateway, client, "", &says(client, true, text)).await;
        assert_eq!(heard.text, "[EMAIL_1] and [EMAIL_2], [EMAIL_1]", "{client}");
        assert!(!echo.last().contains('@'), "{}", echo.last());
    }
    let system = json!([{"type": "text", "text": "ann@example.com", "cache_control": {"type": "ephemeral"}}]);
    let mut body = says("messages", false, "Hello");
    body["system"] = system;
    heard(&gateway, "messages", "", &body).await;
    let seen = echo.last_json();
    assert_eq!(seen["system"][0]["text"], "[EMAIL_1]");
    assert_eq!(seen["system"][0]["cache_control"]["type"], "ephemeral");
    let plain = r#"{ "model":"m", "seed":12345678901234567890, "messages":[{"role":"user","content":"Hi"}] }"#;
    gateway.client().await.ask("/v1/chat/completions", plain).await;
    assert_eq!(echo.last(), plain);
}

#[tokio::test]
async fn deny_rejects() {
    let echo = Echo::start().await;
    let gateway = with(&echo, "on_request", "deny").await;
    for client in LANGUAGES {
        let text = "What is Project Nightfall?";
        let answer = ask(&gateway, client, "", &says(client, false, text)).await;
        assert_eq!(answer.status, 400, "{client}: {}", answer.text());
        assert_eq!(refusal(client, &answer).2, "The content is not allowed here");
        heard(&gateway, client, "", &says(client, false, "What is a project?")).await;
    }
    assert_eq!(echo.seen().len(), 3);
}

#[tokio::test]
async fn deny_answer_drops_events() {
    let echo = Echo::start().await;
    echo.change(|m| (m.says, m.piece) = (Some("Then Nightfall! And so".to_owned()), 5));
    let gateway = with(&echo, "on_stream_event", "deny_answer").await;
    for client in ["chat", "messages"] {
        echo.change(|m| m.piece = 5);
        let told = heard(&gateway, client, "", &says(client, true, "Hello")).await;
        assert_eq!(told.text, "Then Nightfall! And so", "a word in several events");
        echo.change(|m| m.piece = 15);
        let told = heard(&gateway, client, "", &says(client, true, "Hello")).await;
        assert_eq!(told.text, " And so", "{client}");
    }
}

#[tokio::test]
async fn caps_clamps() {
    let echo = Echo::start().await;
    let gateway = with(&echo, "on_request", "caps").await;
    for (client, member, asked, sent) in [
        ("chat", "n", 9, 4),
        ("chat", "max_completion_tokens", 9000, 8192),
        ("chat", "max_tokens", -1, 8192),
        ("messages", "max_tokens", 9000, 8192),
        ("responses", "max_output_tokens", 9000, 8192),
        ("responses", "max_output_tokens", 7, 7),
    ] {
        let mut body = says(client, false, "Hello");
        body[member] = asked.into();
        heard(&gateway, client, "", &body).await;
        assert_eq!(echo.last_json()[member], sent, "{client} {member}");
    }
    let mut body = says("chat", false, "Hello");
    let tool = json!({"type": "function", "function": {"name": "t"}});
    body["tools"] = vec![tool; 129].into();
    assert_eq!(ask(&gateway, "chat", "", &body).await.status, 400);
}

#[tokio::test]
async fn moderation_asks_a_service() {
    let (echo, judge) = (Echo::start().await, Judge::start().await);
    let text = std::fs::read_to_string(script("moderation")).unwrap();
    let text = text.replace("http://moderation.internal/check", &judge.url);
    let lines: String = text.lines().map(|line| format!("      {line}\n")).collect();
    let host = judge.url.trim_end_matches("/check");
    let more = format!(
        "lua: {{http: {{hosts: [\"{host}\"]}}}}\nhooks:\n  on_request:\n    timeout: 5s\n    script: |\n{lines}"
    );
    let gateway = before(&echo.url, "chat", &more).await;
    let none = std::time::Duration::ZERO;
    for client in LANGUAGES {
        judge.says(200, &json!({"allow": true}), none);
        heard(&gateway, client, "", &says(client, true, "Hello")).await;
        let asked = judge.asked().pop().unwrap().1;
        assert_eq!(asked, json!({"texts": ["Hello"], "model": "sim-model"}), "{client}");
        judge.says(200, &json!({"allow": false, "message": "Go away."}), none);
        let answer = ask(&gateway, client, "", &says(client, true, "Hello")).await;
        assert_eq!((answer.status, refusal(client, &answer).2.as_str()), (400, "Go away."));
        judge.says(500, &json!({}), none);
        assert_eq!(ask(&gateway, client, "", &says(client, true, "Hello")).await.status, 503);
    }
    assert_eq!(echo.seen().len(), 3);
}
