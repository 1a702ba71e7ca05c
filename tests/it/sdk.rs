//! The official SDKs of OpenAI and Anthropic, for Python and Node, with pinned versions.

use std::{
    fmt::Write as _,
    path::{Path, PathBuf},
    process::Stdio,
};

use llmproxy::sim::{Behaviour, Fail, Language, Sim, ToolUse};
use tokio::process::Command;

use crate::support::{Gateway, node, python, sim_with};

const FOLDER: &str = "tests/sdk";

#[tokio::test]
async fn openai_for_python_is_served_by_each_language() {
    let mut checks = python_in(FOLDER).await;
    checks.args(["-B", "-m", "unittest", "check_chat", "check_responses"]);
    EachLanguage::start().await.passes(checks, "Ran 196 tests").await;
}

#[tokio::test]
async fn anthropic_for_python_is_served_by_each_language() {
    let mut checks = python_in(FOLDER).await;
    checks.args(["-B", "-m", "unittest", "check_anthropic"]);
    EachLanguage::start().await.passes(checks, "Ran 116 tests").await;
}

/// The last version that sends `x-api-key`, and 2023-06-01 as the version of the API.
#[tokio::test]
async fn older_anthropic_for_python_is_served_by_each_language() {
    let mut checks = python_in("tests/sdk/anthropic-2023").await;
    checks.args(["-B", "-m", "unittest", "check_anthropic"]);
    EachLanguage::start().await.passes(checks, "Ran 116 tests").await;
}

#[tokio::test]
async fn openai_for_node_is_served_by_each_language() {
    EachLanguage::start().await.passes(node_with("check_openai.mjs").await, "tests 88").await;
}

#[tokio::test]
async fn anthropic_for_node_is_served_by_each_language() {
    EachLanguage::start().await.passes(node_with("check_anthropic.mjs").await, "tests 52").await;
}

/// A gateway before backends that speak one language each, and one that speaks all of them.
struct EachLanguage {
    gateway: Gateway,
    slow: String,
    _sims: Vec<Sim>,
}

const LANGUAGES: [(&str, &[Language]); 4] = [
    ("chat", &[Language::Chat]),
    ("responses", &[Language::Responses]),
    ("messages", &[Language::Messages]),
    ("all", &Language::ALL),
];

/// What a kind of engine does otherwise than the others.
type Change = fn(&mut Behaviour);

/// What backends do, and the beginning of the names of their models.
const KINDS: [(&str, Change); 8] = [
    ("m", |_| {}),
    ("busy", |b| b.fail = Fail::Busy),
    ("limited", |b| b.fail = Fail::TooMany),
    ("broken", |b| b.fail = Fail::ErrorEventMidStream),
    ("short", |b| b.context_length = 200),
    ("late", |b| b.first_token_ms = 350),
    ("slow", |b| b.inter_token_ms = 3_600_000),
    ("cached", |b| (b.prefix_cache, b.prompt_tokens_details) = (1000, true)),
];

impl EachLanguage {
    async fn start() -> Self {
        let mut sims = Vec::new();
        let mut configuration =
            "api_keys: [{key: sk-test-0123456789, user_id: tester}]\nauth: {}\nrouting: {keep_alive: 100ms}\nbackends:\n"
                .to_owned();
        let mut slow = String::new();
        for (kind, behave) in KINDS {
            // One server for all is enough where what matters is that it fails.
            let shared = sim_with(|b| {
                b.models = LANGUAGES.iter().map(|(name, _)| format!("{kind}-{name}")).collect();
                (b.tool_use, b.tokens) = (ToolUse::Asked, 20);
                behave(b);
            })
            .await;
            for (name, languages) in LANGUAGES {
                let mut url = shared.url();
                if kind == "m" {
                    let change = |b: &mut Behaviour| {
                        b.models = vec![format!("m-{name}")];
                        (b.tool_use, b.tokens) = (ToolUse::Asked, 20);
                        b.languages = languages.to_vec();
                    };
                    let own = sim_with(change).await;
                    url = own.url();
                    sims.push(own);
                }
                let languages = match name {
                    "all" => "chat, responses, messages",
                    one => one,
                };
                let model = format!("{kind}-{name}");
                writeln!(
                    configuration,
                    "  - {{name: {model}, url: \"{url}\", models: [{model}], languages: [{languages}]}}"
                )
                .unwrap();
            }
            if kind == "slow" {
                slow = shared.url();
            }
            sims.push(shared);
        }
        Self { gateway: Gateway::start(&configuration).await, slow, _sims: sims }
    }

    /// Runs checks that must pass, as many as this says.
    async fn passes(&self, mut checks: Command, count: &str) {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(FOLDER);
        checks
            .current_dir(folder)
            .env("GATEWAY", self.gateway.url(""))
            .env("SLOW_STATS", format!("{}/sim/stats", self.slow))
            .kill_on_drop(true);
        passes(checks, count).await;
    }
}

/// Python with the packages of a folder.
async fn python_in(folder: &'static str) -> Command {
    let made = tokio::task::spawn_blocking(move || python::programs(folder)).await.unwrap();
    Command::new(made.join("python"))
}

/// Node with a script.
async fn node_with(script: &str) -> Command {
    let made = tokio::task::spawn_blocking(|| node::packages(FOLDER));
    let (program, packages): (PathBuf, PathBuf) = made.await.unwrap();
    let mut node = Command::new(program);
    node.args(["--test-reporter=spec", script]).env("PACKAGES", packages);
    node
}

/// Runs checks that must pass, as many as this says.
async fn passes(mut checks: Command, count: &str) {
    let out = checks.stdin(Stdio::null()).output().await.unwrap();
    let printed = [out.stdout, out.stderr].concat();
    let printed = String::from_utf8_lossy(&printed);
    assert!(out.status.success() && printed.contains(count), "{printed}");
}

#[tokio::test]
async fn openai_for_python_is_served() {
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
    let mut checks = python_in(FOLDER).await;
    checks
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/sdk/check_openai.py"))
        .env("BASE_URL", gateway.url("/v1"))
        .env("SLOW_STATS", format!("{}/sim/stats", slow.url()));
    passes(checks, "Ran 20 tests").await;
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
