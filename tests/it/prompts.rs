//! Prompts of the operator, as they reach backends.

use std::{fs, path::Path};

use serde_json::{Value, json};

use super::{
    guards::echo::Echo,
    languages::{LANGUAGES, ask, hear, line, path, says},
    support::{Client, Gateway, eventually, free_address},
};

/// A gateway with one backend and this section.
async fn before(url: &str, language: &str, section: &str) -> Gateway {
    Gateway::start(&format!("backends:\n{}{section}\n", line("a", url, language, ""))).await
}

/// Sends this body as it is.
async fn send(gateway: &Gateway, language: &str, body: &str) {
    let answer = gateway.client().await.ask(path(language), body).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
}

const TWO: &str = "system_prompts:
  prompts:
    - {name: first, text: \"Be \\\"kind\\\".\"}
    - {name: last, text: Be brief., position: after, separator: newline}";

#[tokio::test]
async fn chat_gets_them_as_text_and_as_parts() {
    let echo = Echo::start().await;
    let gateway = before(&echo.url, "chat", TWO).await;
    for role in ["system", "developer"] {
        let body = format!(
            "{{ \"model\" : \"m\",\"stop\":null, \"seed\":12345678901234567890, \"messages\":[ {{\"role\":\"{role}\", \
             \"content\":\"Sp\\u00e9ak.\"}} , {{\"role\":\"user\", \"content\":\"h\\u00e9\"}} ], \"o\":{{}} }}"
        );
        send(&gateway, "chat", &body).await;
        let seen = echo.last();
        let system = r#""Be \"kind\".\n\nSp\u00e9ak.\nBe brief.""#;
        assert_eq!(seen, body.replace(r#""Sp\u00e9ak.""#, system), "the rest is as it was");
    }
    let body = r#"{"model":"m", "messages":[ {"role":"user", "content":"Hi"} ] }"#;
    send(&gateway, "chat", body).await;
    let seen = echo.last_json();
    assert_eq!(
        seen["messages"][0],
        json!({"role": "system", "content": "Be \"kind\".\nBe brief."})
    );
    assert!(echo.last().ends_with(r#" {"role":"user", "content":"Hi"} ] }"#), "{}", echo.last());
    let parts = r#"[ {"type":"text", "text":"A", "cache_control":{"type":"ephemeral"}},{"type":"text","text":"B"} ]"#;
    let body = format!(
        r#"{{"model":"m","messages":[{{"role":"system","content":{parts}}},{{"role":"user","content":"Hi"}}]}}"#
    );
    send(&gateway, "chat", &body).await;
    let inner = &parts[1..parts.len() - 1];
    assert!(echo.last().contains(inner.trim()), "{}", echo.last());
    let seen = echo.last_json()["messages"][0]["content"].clone();
    let texts: Vec<_> =
        seen.as_array().unwrap().iter().map(|p| p["text"].as_str().unwrap()).collect();
    assert_eq!(texts, ["Be \"kind\".\n\n", "A", "B", "\nBe brief."]);
    assert_eq!(seen[1]["cache_control"]["type"], "ephemeral");
}

#[tokio::test]
async fn messages_and_responses_get_them_in_their_own_places() {
    let echo = Echo::start().await;
    let gateway = before(&echo.url, "messages", TWO).await;
    let ask = async |system: Value| {
        let mut body = says("messages", false, "Hi");
        if !system.is_null() {
            body["system"] = system;
        }
        send(&gateway, "messages", &body.to_string()).await;
        let mut seen = echo.last_json();
        let system = seen.as_object_mut().unwrap().remove("system").unwrap();
        body.as_object_mut().unwrap().remove("system");
        assert_eq!(seen, body, "nothing else has changed");
        system
    };
    assert_eq!(ask(json!("Speak.")).await, "Be \"kind\".\n\nSpeak.\nBe brief.");
    assert_eq!(ask(Value::Null).await, "Be \"kind\".\nBe brief.");
    let cached = json!({"type": "text", "text": "A", "cache_control": {"type": "ephemeral"}});
    let list = ask(json!([cached])).await;
    assert_eq!(list[1], cached);
    assert_eq!(
        (&list[0]["text"], &list[2]["text"]),
        (&json!("Be \"kind\".\n\n"), &json!("\nBe brief."))
    );
    let gateway = before(&echo.url, "responses", TWO).await;
    for (own, expected) in [
        (json!("Speak."), "Be \"kind\".\n\nSpeak.\nBe brief."),
        (Value::Null, "Be \"kind\".\nBe brief."),
    ] {
        let mut body = says("responses", true, "Hi");
        body["instructions"] = own;
        send(&gateway, "responses", &body.to_string()).await;
        assert_eq!(echo.last_json()["instructions"], expected);
    }
}

#[tokio::test]
async fn they_survive_translation() {
    let echo = Echo::start().await;
    for backend in LANGUAGES {
        let gateway = before(&echo.url, backend, TWO).await;
        for client in LANGUAGES {
            for stream in [false, true] {
                let answer = ask(&gateway, client, "", &says(client, stream, "Hello")).await;
                assert_eq!(hear(client, stream, &answer).text, "Hello");
                let seen = echo.last_json();
                let system = match backend {
                    "chat" => &seen["messages"][0]["content"],
                    "messages" => &seen["system"],
                    _ if seen["instructions"].is_string() => &seen["instructions"],
                    _ => &seen["input"][0]["content"],
                };
                let said = match system {
                    Value::Array(parts) => parts[0]["text"].clone(),
                    text => text.clone(),
                };
                assert_eq!(said, "Be \"kind\".\nBe brief.", "{client} to {backend}: {seen}");
                assert_eq!(seen.to_string().matches("Be brief.").count(), 1, "{seen}");
            }
        }
    }
}

#[tokio::test]
async fn order_and_patterns_of_models_decide() {
    let echo = Echo::start().await;
    let section = "system_prompts:
  time_zone: UTC
  variables: {WHO: Example Ltd}
  prompts:
    - {text: third}
    - {text: first, priority: -5}
    - {text: second, priority: 10, models: [\"qwen-*\", \"org/*-mini\"], separator: none}
    - {text: \"${_MODEL} of ${WHO}\", position: after, models: [\"gpt-?\"], separator: custom, custom_separator: \" | \"}
    - {text: off, enabled: false}
    - {text: \"today ${_DATE}\", position: after, priority: 900, models: [dated]}";
    let gateway = before(&echo.url, "chat", section).await;
    let today = jiff::Timestamp::now().to_zoned(jiff::tz::TimeZone::UTC).date();
    for (model, expected) in [
        ("qwen-7b", "first\n\nsecondthird\n\nx".to_owned()),
        ("org/a/b-mini", "first\n\nsecondthird\n\nx".to_owned()),
        ("gpt-4", "first\n\nthird\n\nx | gpt-4 of Example Ltd".to_owned()),
        ("gpt-4o", "first\n\nthird\n\nx".to_owned()),
        ("dated", format!("first\n\nthird\n\nx\n\ntoday {today}")),
    ] {
        let turns = json!([{"role": "system", "content": "x"}, {"role": "user", "content": "Hi"}]);
        send(&gateway, "chat", &json!({"model": model, "messages": turns}).to_string()).await;
        assert_eq!(echo.last_json()["messages"][0]["content"], expected.as_str(), "{model}");
    }
}

#[tokio::test]
async fn what_has_no_system_prompt_stays_as_it_is() {
    let sim = super::support::sim().await;
    let gateway = before(&sim.url(), "chat", TWO).await;
    for (path, body) in [
        ("/v1/completions", r#"{"model":"sim-model", "prompt":"Once"}"#),
        ("/v1/embeddings", r#"{"model":"sim-model", "input":"Once"}"#),
    ] {
        assert_eq!(gateway.client().await.ask(path, body).await.status, 200, "{path}");
        assert_eq!(sim.stats().last().unwrap().body, body.as_bytes(), "{path}");
    }
}

#[tokio::test]
async fn their_tokens_count() {
    let echo = Echo::start().await;
    let limit = "rate_limit: {per_model: {tokens_per_minute: 100000}}\n";
    let long = "word ".repeat(2000);
    let section = format!("system_prompts: {{prompts: [{{text: \"{long}\"}}]}}\n{limit}");
    let mut left = Vec::new();
    for section in [limit, &section] {
        let gateway = before(&echo.url, "chat", section).await;
        echo.change(|m| m.delay = std::time::Duration::from_secs(2));
        // While it runs, the estimate is reserved.
        let mut body = says("chat", true, "Hello");
        body["max_tokens"] = 10.into();
        let answer = ask(&gateway, "chat", "", &body).await;
        let header = answer.header("x-ratelimit-remaining-tokens").unwrap();
        left.push(header.parse::<i64>().unwrap());
    }
    assert!(left[0] - left[1] > 1500, "{left:?}");
}

async fn system(gateway: &Gateway, echo: &Echo) -> String {
    send(gateway, "chat", &says("chat", false, "Hi").to_string()).await;
    echo.last_json()["messages"][0]["content"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn changes_of_files_act_without_a_restart() {
    let echo = Echo::start().await;
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name);
    fs::write(file("b.md"), "Second.\n").unwrap();
    fs::write(file("a.txt"), "---\nseparator: newline\n---\nFirst.\n").unwrap();
    fs::write(file(".hidden.md"), "Hidden.").unwrap();
    let section = format!("system_prompts: {{path: \"{}\"}}", folder.path().display());
    let gateway = before(&echo.url, "chat", &section).await;
    let becomes = async |expected: &str| {
        eventually(expected, async || system(&gateway, &echo).await == expected).await;
    };
    assert_eq!(system(&gateway, &echo).await, "First.\nSecond.");
    replace(&file("a.txt"), "Changed.");
    becomes("Changed.\n\nSecond.").await;
    replace(&file("c.md"), "---\npriority: 1\n---\nNew.");
    becomes("New.\n\nChanged.\n\nSecond.").await;
    // A mistake leaves everything as it is.
    replace(&file("c.md"), "---\npriority: high\n---\nWrong.");
    gateway.logs("c.md").await;
    assert_eq!(system(&gateway, &echo).await, "New.\n\nChanged.\n\nSecond.");
    fs::remove_file(file("c.md")).unwrap();
    fs::remove_file(file("a.txt")).unwrap();
    becomes("Second.").await;
}

/// As editors do it.
fn replace(path: &Path, text: &str) {
    let next = path.with_extension("next");
    fs::write(&next, text).unwrap();
    fs::rename(next, path).unwrap();
}

#[tokio::test]
async fn the_explanation_names_them() {
    let echo = Echo::start().await;
    let admin = free_address();
    let section = format!(
        "{TWO}\nadmin: {{enabled: true, listen: \"{admin}\", token: a-token-for-tests, db_path: keys.db}}"
    );
    let gateway = before(&echo.url, "chat", &section).await;
    ask(&gateway, "chat", "X-Request-Id: fixed\r\n", &says("chat", true, "Hi")).await;
    let mut found = Value::Null;
    eventually("the explanation", async || {
        let mut client = Client::connect(admin).await;
        let get = "GET /admin/v1/explain?request_id=fixed HTTP/1.1\r\nHost: a\r\nX-Admin-Token: a-token-for-tests\r\n\r\n";
        client.send(get.as_bytes()).await;
        let answer = client.answer().await;
        if answer.status == 200 {
            found = answer.json();
        }
        answer.status == 200
    })
    .await;
    let hooks = found["hooks"].as_array().unwrap().iter();
    let named: Vec<_> = hooks.filter(|hook| hook["stage"] == "system_prompts").collect();
    let names: Vec<_> = named.iter().map(|hook| hook["script"].as_str().unwrap()).collect();
    assert_eq!(names, ["first", "last"]);
    assert!(named.iter().all(|hook| hook["result"] == "changed"), "{named:?}");
}
