//! The examples, run as in their READMEs.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command},
    time::{Duration, Instant},
};

use llmproxy::sim::{Fail, Language, Sim};

use serde_json::{Value, json};

use super::support::{
    Client, Gateway, chat, eventually, free_address,
    servers::{MariaDb, Postgres, Redis},
    sim, sim_with,
};

fn file(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples").join(path)
}

/// Runs an example and checks what all of them have in common.
async fn example(name: &str, env: &[(&str, String)]) -> Gateway {
    let sim = sim().await;
    let backend = [("BACKEND_URL", sim.url())];
    let env: Vec<_> = env.iter().chain(&backend).cloned().collect();
    let gateway = Gateway::example(name, &env).await;
    for (key, status) in
        [("sk-example-good-0001", 200), ("sk-example-disabled-1", 403), ("sk-any-other", 401)]
    {
        assert_eq!(gateway.ask_as(key).await.status, status, "{name}: {key}");
    }
    gateway.logs("user=\"user_001\"").await;
    gateway
}

#[tokio::test]
async fn keys_from_the_configuration_work() {
    example("auth-static", &[]).await;
    example("auth-file", &[]).await;
}

#[tokio::test]
async fn keys_from_redis_work() {
    let redis = Redis::start().await;
    for line in fs::read_to_string(file("auth-redis/keys.redis")).unwrap().lines() {
        let words = words(line);
        if !words.is_empty() {
            redis.command(&words.iter().map(String::as_str).collect::<Vec<_>>());
        }
    }
    let gateway = example("auth-redis", &[("REDIS_ADDR", redis.address.to_string())]).await;
    assert_eq!(gateway.ask_as("sk-example-empty-0001").await.status, 429);
}

/// The words of a redis-cli line. Text in single quotes is one word.
fn words(line: &str) -> Vec<String> {
    if line.starts_with('#') {
        return Vec::new();
    }
    let split = |(i, part): (usize, &str)| match i % 2 {
        0 => part.split_whitespace().map(str::to_owned).collect(),
        _ => vec![part.to_owned()],
    };
    line.split('\'').enumerate().flat_map(split).collect()
}

#[tokio::test]
async fn keys_from_a_table_work() {
    let sql = |name: &str| fs::read_to_string(file("auth-database").join(name)).unwrap();
    let env =
        |driver: &str, dsn: String| [("DATABASE_DRIVER", driver.to_owned()), ("DATABASE_DSN", dsn)];
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("keys.db");
    let made = Command::new("python3")
        .args(["-c", "import sqlite3,sys; sqlite3.connect(sys.argv[1]).executescript(sys.argv[2])"])
        .arg(&path)
        .arg(sql("sqlite.sql"))
        .status();
    assert!(made.unwrap().success());
    example("auth-database", &env("sqlite", path.display().to_string())).await;
    let postgres = Postgres::start().await;
    postgres.run(&sql("postgres.sql"));
    example("auth-database", &env("postgres", postgres.url())).await;
    let mariadb = MariaDb::start().await;
    mariadb.run(&sql("mysql.sql"));
    example("auth-database", &env("mysql", mariadb.url())).await;
}

/// A process that is killed at the end of its test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

#[tokio::test]
async fn keys_from_a_webhook_work() {
    let address = free_address();
    let server = Command::new("python3")
        .arg(file("auth-webhook/server.py"))
        .arg(address.port().to_string())
        .spawn();
    let _server = Running(server.unwrap());
    eventually("the webhook answers", async || {
        tokio::net::TcpStream::connect(address).await.is_ok()
    })
    .await;
    example("auth-webhook", &[("WEBHOOK_URL", format!("http://{address}/check"))]).await;
}

#[tokio::test]
async fn keys_from_the_admin_api_work() {
    let sim = sim().await;
    let admin = free_address().to_string();
    let env = [("ADMIN_LISTEN", admin), ("ADMIN_TOKEN", "a-token-for-tests".to_owned())];
    let more = [("BACKEND_URL", sim.url())];
    let all: Vec<_> = env.iter().chain(&more).cloned().collect();
    let gateway = Gateway::example("auth-builtin", &all).await;
    let create = |env: &[(&str, String)]| {
        let made = Command::new("sh")
            .arg(file("auth-builtin/create-key.sh"))
            .envs(env.iter().cloned())
            .output();
        String::from_utf8(made.unwrap().stdout).unwrap()
    };
    let printed = create(&env);
    assert!(printed.contains("\"user_id\":\"user_001\""), "{printed}");
    for (key, status) in
        [("sk-example-good-0001", 200), ("sk-example-disabled-1", 403), ("sk-any-other", 401)]
    {
        assert_eq!(gateway.ask_as(key).await.status, status, "{key}");
    }
    assert!(create(&env).contains("key_exists"));
}

#[tokio::test]
async fn limits_and_the_queue_work() {
    let sim = sim_with(|b| b.first_token_ms = 300).await;
    let gateway = Gateway::example("rate-limits", &[("BACKEND_URL", sim.url())]).await;
    let (plain, vip) = ("sk-example-plain-0001", "sk-example-vip-00001");
    for left in ["2", "1", "0"] {
        let answer = gateway.ask_as(plain).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_eq!(answer.header("x-ratelimit-limit-requests"), Some("3"));
        assert_eq!(answer.header("x-ratelimit-remaining-requests"), Some(left));
    }
    let refused = gateway.ask_as(plain).await;
    assert_eq!(refused.status, 429);
    assert_eq!(refused.header("x-ratelimit-limit-requests"), Some("3"));
    let seconds: u64 = refused.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=20).contains(&seconds), "one comes every 20 seconds: {seconds}");
    let error = &refused.json()["error"];
    assert_eq!(error["type"], "requests");
    assert_eq!(error["code"], "rate_limit_exceeded");
    let said = "Rate limit reached: per_key.requests_per_minute allows 3. Try again in ";
    assert!(error["message"].as_str().unwrap().starts_with(said), "{error}");

    // Four concurrent requests of the other key: two are served, and two wait for their end.
    let start = Instant::now();
    let mut clients = Vec::new();
    for _ in 0..4 {
        let mut client = gateway.client().await;
        let headers = format!("Authorization: Bearer {vip}\r\n");
        client.post_with("/v1/chat/completions", &headers, chat(false).as_bytes()).await;
        clients.push(client);
    }
    for mut client in clients {
        let answer = client.answer().await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_eq!(answer.header("x-ratelimit-limit-requests"), Some("100"));
    }
    assert!(start.elapsed() >= Duration::from_millis(600), "{:?}", start.elapsed());
}

/// Status and model of the responses to requests for these models.
async fn answered(gateway: &Gateway, models: &[&str]) -> Vec<(u16, String)> {
    let mut answers = Vec::new();
    for model in models {
        let body = format!(r#"{{"model":"{model}","messages":[]}}"#);
        let answer = gateway.client().await.ask("/v1/chat/completions", body).await;
        answers
            .push((answer.status, answer.json()["model"].as_str().unwrap_or_default().to_owned()));
    }
    answers
}

#[tokio::test]
async fn model_aliases_are_listed() {
    let (gateway, _stable, _canary) = aliases().await;
    let list = gateway.client().await.get("/v1/models").await.json();
    let ids: Vec<_> =
        list["data"].as_array().unwrap().iter().map(|m| m["id"].as_str().unwrap()).collect();
    assert_eq!(ids, ["qwen-72b", "qwen-7b", "qwen-72b-next", "gpt-4o"]);
}

#[tokio::test]
async fn model_aliases_are_served() {
    let (gateway, stable, canary) = aliases().await;
    for _ in 0..20 {
        assert_eq!(answered(&gateway, &["gpt-4o"]).await, [(200, "gpt-4o".to_owned())]);
    }
    let counts = (stable.stats().requests(), canary.stats().requests());
    assert_eq!(counts.0 + counts.1, 20);
    assert!(counts.0 > counts.1, "{counts:?}");
    for model in ["gpt-3.5", "qwen-old", "qwen-7b"] {
        assert_eq!(answered(&gateway, &[model]).await, [(200, model.to_owned())]);
    }
    assert_eq!(answered(&gateway, &["llama"]).await[0].0, 404);
}

#[tokio::test]
async fn an_engine_is_reached_in_every_language() {
    let engine = sim_with(|b| b.languages = vec![Language::Chat]).await;
    let gateway = Gateway::example("languages", &[("BACKEND_URL", engine.url())]).await;
    let mut client = gateway.client().await;
    for (path, body, member, kind) in [
        (
            "/v1/messages",
            r#"{"model":"claude-sonnet-5","max_tokens":50,"messages":[{"role":"user","content":"Hello"}]}"#,
            "type",
            "message",
        ),
        ("/v1/responses", r#"{"model":"sim-model","input":"Hello"}"#, "object", "response"),
    ] {
        let answer = client.ask(path, body).await;
        assert_eq!((answer.status, &answer.json()[member]), (200, &kind.into()), "{path}");
    }
    client
        .send(b"GET /v1/models HTTP/1.1\r\nHost: g\r\nanthropic-version: 2023-06-01\r\n\r\n")
        .await;
    assert_eq!(client.answer().await.json()["data"][0]["type"], "model");
}

async fn aliases() -> (Gateway, Sim, Sim) {
    let models = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>();
    let stable = sim_with(|b| b.models = models(&["qwen-72b", "qwen-7b", "qwen-old"])).await;
    let canary = sim_with(|b| b.models = models(&["qwen-72b-next"])).await;
    let env = [("STABLE_URL", stable.url()), ("CANARY_URL", canary.url())];
    (Gateway::example("aliases", &env).await, stable, canary)
}

/// The backends of all attempts of a request, from the admin API.
async fn backends_tried(admin: &str, request_id: &str) -> Vec<String> {
    let ask = format!(
        "GET /admin/v1/explain?request_id={request_id} HTTP/1.1\r\nHost: {admin}\r\n\
         X-Admin-Token: change-me-please\r\n\r\n"
    );
    let mut backends = Vec::new();
    // A request is listed after its end, which may be slightly later than its response.
    eventually("the request is listed", async || {
        let mut client = Client::connect(admin.parse().unwrap()).await;
        client.send(ask.as_bytes()).await;
        let answer = client.answer().await;
        if answer.status == 200 {
            let trace = answer.json();
            let attempts = trace["tries"].as_array().unwrap().iter();
            backends = attempts.map(|t| t["backend"].as_str().unwrap().to_owned()).collect();
        }
        answer.status == 200
    })
    .await;
    backends
}

#[tokio::test]
async fn conversations_stay_with_an_engine_and_survive_its_failure() {
    let (one, two) = (sim().await, sim().await);
    let admin = free_address().to_string();
    let env = [("ENGINE_1", one.url()), ("ENGINE_2", two.url()), ("ADMIN_LISTEN", admin.clone())];
    let gateway = Gateway::example("routing", &env).await;
    let system = "You are a patient teacher of mathematics. ".repeat(4);
    let body = format!(
        r#"{{"model":"sim-model","stream":true,"messages":[{{"role":"system","content":"{system}"}}]}}"#
    );
    let ask = async |id: &str| {
        let mut client = gateway.client().await;
        let headers = format!("X-Request-Id: {id}\r\n");
        client.post_with("/v1/chat/completions", &headers, body.as_bytes()).await;
        let answer = client.answer().await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert!(answer.text().ends_with("data: [DONE]\n\n"), "{}", answer.text());
    };
    for _ in 0..4 {
        ask("whole").await;
    }
    let home = backends_tried(&admin, "whole").await.pop().unwrap();
    let (at_home, other, engines) = match home.as_str() {
        "engine-1" => (&one, &two, ["engine-1", "engine-2"]),
        _ => (&two, &one, ["engine-2", "engine-1"]),
    };
    assert_eq!((at_home.stats().requests(), other.stats().requests()), (4, 0));

    // It fails after its headers: the clients do not notice.
    at_home.change(|b| b.fail = Fail::AfterHeaders);
    ask("broken").await;
    assert_eq!(backends_tried(&admin, "broken").await, engines);
    for _ in 0..5 {
        ask("later").await;
    }
    assert_eq!(other.stats().requests(), 6);
}

#[tokio::test]
async fn a_fallback_backend_takes_over() {
    let models = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>();
    let primary = sim_with(|b| b.models = models(&["qwen-72b"])).await;
    let fallback = sim_with(|b| b.models = models(&["qwen-72b", "other"])).await;
    let env = [("PRIMARY_URL", primary.url()), ("FALLBACK_URL", fallback.url())];
    let gateway = Gateway::example("fallback", &env).await;
    let counts = || (primary.stats().requests(), fallback.stats().requests());
    let served = [(200, "qwen-72b".to_owned()), (200, "qwen-72b".to_owned())];
    assert_eq!(answered(&gateway, &["qwen-72b", "qwen-72b"]).await, served);
    assert_eq!(counts(), (2, 0));
    // The primary does not have this model and is not tried.
    assert_eq!(answered(&gateway, &["other"]).await[0].0, 200);
    assert_eq!(counts(), (2, 1));
    primary.change(|b| b.fail = Fail::Error);
    assert_eq!(answered(&gateway, &["qwen-72b", "qwen-72b"]).await, served);
    assert_eq!(counts(), (4, 3));
}

#[tokio::test]
async fn usage_is_stored_in_a_table() {
    let sim = sim().await;
    let (postgres, mariadb) = (Postgres::start().await, MariaDb::start().await);
    for (driver, dsn) in
        [("sqlite", "usage.db".to_owned()), ("postgres", postgres.url()), ("mysql", mariadb.url())]
    {
        let admin = free_address().to_string();
        let env = [
            ("DATABASE_DRIVER", driver.to_owned()),
            ("DATABASE_DSN", dsn),
            ("BACKEND_URL", sim.url()),
            ("ADMIN_LISTEN", admin.clone()),
        ];
        let gateway = Gateway::example("usage-database", &env).await;
        for n in [1, 1, 2] {
            let answer = gateway.ask_as(&format!("sk-example-good-000{n}")).await;
            assert_eq!(answer.status, 200, "{driver}");
        }
        let ask = format!(
            "GET /admin/v1/usage?group_by=team,user,day HTTP/1.1\r\nHost: {admin}\r\n\
             X-Admin-Token: change-me-please\r\n\r\n"
        );
        eventually(&format!("{driver}: all requests are counted"), async || {
            let mut client = Client::connect(admin.parse().unwrap()).await;
            client.send(ask.as_bytes()).await;
            let answer = client.answer().await;
            assert_eq!(answer.status, 200, "{driver}: {}", answer.text());
            let sums = answer.json();
            let requests = |user: &str| -> u64 {
                let groups = sums["groups"].as_array().unwrap().iter();
                let of = groups.filter(|group| group["user_id"] == user && group["team"] == "blue");
                of.map(|group| group["requests"].as_u64().unwrap()).sum()
            };
            (requests("user_001"), requests("user_002")) == (2, 1)
        })
        .await;
    }
}

#[tokio::test]
async fn usage_is_written_to_a_file() {
    let sim = sim().await;
    let gateway = Gateway::example("usage-file", &[("BACKEND_URL", sim.url())]).await;
    for _ in 0..3 {
        assert_eq!(
            gateway.client().await.ask("/v1/chat/completions", chat(false)).await.status,
            200
        );
    }
    let path = gateway.file.with_file_name("data").join("usage.jsonl");
    let text = || fs::read_to_string(&path).unwrap_or_default();
    eventually("three lines", async || text().lines().count() == 3).await;
    let counted = r#""prompt_tokens":9,"completion_tokens":16"#;
    assert!(text().lines().all(|line| line.contains(counted)), "{}", text());
}

#[tokio::test]
async fn usage_is_sent_to_redis() {
    let (sim, redis) = (sim().await, Redis::start().await);
    let env = [("BACKEND_URL", sim.url()), ("REDIS_ADDR", redis.address.to_string())];
    let gateway = Gateway::example("usage-redis", &env).await;
    for _ in 0..3 {
        assert_eq!(
            gateway.client().await.ask("/v1/chat/completions", chat(false)).await.status,
            200
        );
    }
    eventually("three entries", async || redis.command(&["XLEN", "llmproxy:usage"]).trim() == "3")
        .await;
    redis.command(&["XGROUP", "CREATE", "llmproxy:usage", "billing", "0"]);
    let group = ["XREADGROUP", "GROUP", "billing", "worker-1", "COUNT", "100"];
    let read = redis.command(&[&group[..], &["STREAMS", "llmproxy:usage", ">"]].concat());
    let counted = r#""prompt_tokens":9,"completion_tokens":16"#;
    let counted = read.lines().filter(|line| line.starts_with('{') && line.contains(counted));
    assert_eq!(counted.count(), 3, "{read}");
}

/// The gateway of `hooks`, with its two backends.
async fn hooks(peak: [&str; 2]) -> (Gateway, Sim, Sim) {
    let (standard, vip) = (sim().await, sim().await);
    let [from, until] = peak.map(str::to_owned);
    let env = [
        ("STANDARD_URL", standard.url()),
        ("VIP_URL", vip.url()),
        ("PEAK_FROM", from),
        ("PEAK_UNTIL", until),
    ];
    (Gateway::example("hooks", &env).await, standard, vip)
}

const NEVER: [&str; 2] = ["24", "24"];
const PLAIN: &str = "sk-example-plain-0001";
const VIP: &str = "sk-example-vip-00001";

async fn says(gateway: &Gateway, key: &str, model: &str, text: &str) -> Value {
    let body = json!({"model": model, "messages": [{"role": "user", "content": text}]});
    let mut client = gateway.client().await;
    let headers = format!("Authorization: Bearer {key}\r\n");
    client.post_with("/v1/chat/completions", &headers, body.to_string().as_bytes()).await;
    let answer = client.answer().await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json()
}

/// The last request that this backend has got.
fn got(sim: &Sim) -> Value {
    serde_json::from_slice(&sim.stats().last().unwrap().body).unwrap()
}

#[tokio::test]
async fn hooks_route_vips_and_remap_models() {
    let (gateway, standard, vip) = hooks(NEVER).await;
    for _ in 0..4 {
        says(&gateway, PLAIN, "sim-model", "Hello").await;
    }
    assert_eq!((standard.stats().requests(), vip.stats().requests()), (4, 0));
    for _ in 0..4 {
        let answer = says(&gateway, VIP, "gpt-4o", "Hello").await;
        assert_eq!(answer["model"], "gpt-4o");
    }
    assert_eq!((standard.stats().requests(), vip.stats().requests()), (4, 4));
    assert_eq!(got(&vip)["model"], "sim-model");
}

#[tokio::test]
async fn hooks_bill_with_a_discount() {
    let (gateway, _standard, _vip) = hooks(NEVER).await;
    let path = gateway.file.with_file_name("data").join("usage.jsonl");
    for (n, key, custom, cost) in [
        (1, PLAIN, json!({"billable_tokens": 25, "discount": 0}), 0.0005),
        (2, VIP, json!({"billable_tokens": 12, "discount": 0.5}), 0.00024),
    ] {
        says(&gateway, key, "sim-model", "Hello").await;
        let text = || fs::read_to_string(&path).unwrap_or_default();
        eventually("a line", async || text().lines().count() == n).await;
        let record: Value = serde_json::from_str(text().lines().last().unwrap()).unwrap();
        assert_eq!((&record["custom"], &record["total_tokens"]), (&custom, &json!(25)), "{record}");
        assert!((record["cost"].as_f64().unwrap() - cost).abs() < 1e-9, "{record}");
    }
}

#[tokio::test]
async fn hooks_limit_requests_at_peak_hours() {
    for (peak, statuses) in [(NEVER, [200; 4]), (["0", "24"], [200, 200, 429, 429])] {
        let (gateway, _standard, _vip) = hooks(peak).await;
        for expected in statuses {
            assert_eq!(gateway.ask_as(PLAIN).await.status, expected, "{peak:?}");
        }
        for _ in 0..4 {
            assert_eq!(gateway.ask_as(VIP).await.status, 200);
        }
    }
}

#[tokio::test]
async fn hooks_mask_personal_data() {
    let backend = super::guards::echo::Echo::start().await;
    let env = [("STANDARD_URL", backend.url.clone()), ("VIP_URL", backend.url.clone())];
    let gateway = Gateway::example("hooks", &env).await;
    let text = "I am ann@example.com, 4111 1111 1111 1111";
    let told = |answer: &Value| answer["choices"][0]["message"]["content"].clone();
    let answer = says(&gateway, VIP, "sim-model", text).await;
    assert_eq!(told(&answer), text, "the guard puts values back");
    assert_eq!(backend.last_json()["messages"][0]["content"], "I am [EMAIL_1], [CARD_1]");
    let answer = says(&gateway, VIP, "hosted-large", text).await;
    assert_eq!(told(&answer), "I am [EMAIL], 4111 1111 1111 1111", "the script does not");
    assert_eq!(backend.last_json()["messages"][0]["content"], "I am [EMAIL], [CARD_1]");
}

#[tokio::test]
async fn system_prompts_are_added() {
    let models = ["sim-model", "sim-mini"].map(str::to_owned).to_vec();
    let backend = sim_with(|b| b.models = models).await;
    let gateway = Gateway::example("system-prompts", &[("BACKEND_URL", backend.url())]).await;
    let rules = "You work for Example Ltd, in Europe.\n\n---\n\nNever give legal advice.";
    let date = || jiff::Timestamp::now().to_zoned(jiff::tz::TimeZone::UTC).date();
    for (model, brief) in
        [("sim-model", ""), ("sim-mini", "\n\nAnswer in at most three sentences.")]
    {
        let ask = async |turns: Value| {
            let body = json!({"model": model, "messages": turns}).to_string();
            let answer = gateway.client().await.ask("/v1/chat/completions", body).await;
            assert_eq!(answer.status, 200, "{}", answer.text());
            got(&backend)["messages"].clone()
        };
        let user = json!({"role": "user", "content": "Hello"});
        let before = date();
        let seen = ask(json!([{"role": "system", "content": "Be kind."}, user])).await;
        let with = |date| format!("{rules}\n\nBe kind.{brief}\nToday is {date}.");
        let system = seen[0]["content"].as_str().unwrap();
        assert!([with(before), with(date())].iter().any(|text| text == system), "{system}");
        assert_eq!(seen[1], user);
        let seen = ask(json!([user])).await;
        let system = seen[0]["content"].as_str().unwrap();
        assert!(system.starts_with(rules) && system.contains("\nToday is "), "{system}");
    }
    // A new file acts without a restart.
    let file = gateway.file.with_file_name("system_prompts").join("50-more.md");
    fs::write(file, "Be polite.").unwrap();
    eventually("the new prompt", async || {
        gateway.client().await.ask("/v1/chat/completions", chat(false)).await;
        got(&backend).to_string().contains("Be polite.")
    })
    .await;
}
