//! The official OpenAI SDK for Python, with a pinned version, in a virtual environment.

use std::{path::Path, process::Stdio};

use llmproxy::sim::Fail;

use crate::support::{Gateway, python, sim_with};

#[tokio::test]
async fn the_openai_sdk_is_served() {
    let good = sim_with(|b| (b.first_token_ms, b.inter_token_ms) = (5, 2)).await;
    // Each of these models has a backend that returns one kind of error.
    let slow =
        sim_with(|b| (b.models, b.inter_token_ms) = (vec!["slow".to_owned()], 3_600_000)).await;
    let locked = sim_with(|b| b.api_key = "another".to_owned()).await;
    let limited = sim_with(|b| b.fail = Fail::TooMany).await;
    let busy = sim_with(|b| b.fail = Fail::Busy).await;
    let broken = sim_with(|b| b.fail = Fail::MidStream).await;
    let tight = sim_with(|b| b.models = vec!["tight".to_owned()]).await;
    let queued = sim_with(|b| (b.models, b.inter_token_ms) = (vec!["queued".to_owned()], 50)).await;
    let late = sim_with(|b| (b.models, b.first_token_ms) = (vec!["late".to_owned()], 1200)).await;
    let forbidden = forbidding().await;
    let gateway = Gateway::start(&format!(
        "backends:
  - {{url: \"{}\", models: [sim-model]}}
  - {{url: \"{}\", models: [slow]}}
  - {{url: \"{}\", models: [locked]}}
  - {{url: \"{forbidden}\", models: [forbidden]}}
  - {{url: \"{}\", models: [limited]}}
  - {{url: \"{}\", models: [busy]}}
  - {{url: \"{}\", models: [broken]}}
  - {{url: \"{}\", models: [tight]}}
  - {{url: \"{}\", models: [queued]}}
  - {{url: \"{}\", models: [late]}}
routing: {{keep_alive: 500ms}}
rate_limit:
  models: {{tight: {{requests_per_minute: 1}}, queued: {{max_concurrent: 1}}}}
  queue: {{max_queue_size: 10, keep_alive: 100ms}}
server: {{max_body_size: 1MiB}}
",
        good.url(),
        slow.url(),
        locked.url(),
        limited.url(),
        busy.url(),
        broken.url(),
        tight.url(),
        queued.url(),
        late.url(),
    ))
    .await;
    broken.change(|b| b.models = vec!["broken".to_owned()]);
    let python =
        tokio::task::spawn_blocking(|| python::programs("tests/sdk").join("python")).await.unwrap();
    let out = tokio::process::Command::new(python)
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/sdk/check_openai.py"))
        .env("BASE_URL", gateway.url("/v1"))
        .env("SLOW_STATS", format!("{}/sim/stats", slow.url()))
        .stdin(Stdio::null())
        .output()
        .await
        .unwrap();
    let printed = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{printed}");
    assert!(printed.contains("Ran 20 tests"), "{printed}");
}

/// A backend that responds with 403.
async fn forbidding() -> String {
    use axum::{Router, http::StatusCode, routing::post};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let body = r#"{"error":{"message":"not for you","type":"permission_error","param":null,"code":"forbidden"}}"#;
    let answer =
        async move || (StatusCode::FORBIDDEN, [("content-type", "application/json")], body);
    let app = Router::new().route("/v1/chat/completions", post(answer));
    tokio::spawn(async move { axum::serve(listener, app).await });
    url
}
