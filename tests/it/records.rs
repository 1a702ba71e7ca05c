//! What stands in usage records.

use std::{
    collections::HashSet,
    path::Path,
    process::{Command, Stdio},
};

use llmproxy::{
    sim::{Engine, Fail, Sim},
    usage::record,
};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;

use crate::support::{
    Gateway, Receiver, chat, eventually, free_address, python, raw, sim, sim_with,
};

const PATH: &str = "/v1/chat/completions";

/// Milliseconds; longer than any test.
const EVER: u64 = 3_600_000;

const PRICES: &str = "rate_limit: {prices: {\"sim-model\": {input: 1000, cached_input: 100, output: 2000}, \
                      \"free-*\": {input: 0, output: 0}}}\n";

fn near(value: &Value, expected: f64) -> bool {
    value.as_f64().is_some_and(|value| (value - expected).abs() < 1e-9)
}

/// A prompt of so many blocks of the simulated prefix cache, of 16 tokens each, and one token.
fn blocks(n: usize, more: &str) -> String {
    let content = "c".repeat(64 * n - r#"[{"role":"user","content":""}]"#.len());
    format!(r#"{{"model":"sim-model","messages":[{{"role":"user","content":"{content}"}}]{more}}}"#)
}

#[tokio::test]
async fn a_record_tells_all_that_is_known_of_the_caller() {
    let sim = sim().await;
    let receiver = Receiver::start().await;
    let gateway = Gateway::start(&format!(
        "backends: [{{url: \"{}\"}}]
tiers: {{gold: {{queue_class: 1}}}}
auth:
  pipeline:
    - type: file
      lua_script: |
        return {{metadata = {{plan = 'pro', level = 7}}, tags = {{'beta', 'eu'}}}}
api_keys:
  - {{key: sk-first-000001, id: key-1, name: first, user_id: user_001, team: research, tier: gold,
      metadata: {{cost_centre: '4711'}}}}
  - {{key: sk-second-00001}}
{}",
        sim.url(),
        receiver.hook()
    ))
    .await;
    assert_eq!(gateway.ask_as("sk-first-000001").await.status, 200);
    let known = receiver.one().await;
    for (member, value) in [
        ("user_id", json!("user_001")),
        ("key_name", json!("first")),
        ("team", json!("research")),
        ("tier", json!("gold")),
        ("api_key", json!("***")),
        ("metadata", json!({"cost_centre": "4711", "plan": "pro", "level": 7})),
        ("tags", json!(["beta", "eu"])),
    ] {
        assert_eq!(known[member], value, "{member}: {known}");
    }
    assert!(known["key_id"].as_str().is_some_and(|id| !id.is_empty() && !id.contains("first-0")));
    assert_eq!(gateway.ask_as("sk-second-00001").await.status, 200);
    let bare = receiver.wait_for(2).await[1].clone();
    assert_ne!(bare["key_id"], known["key_id"]);
    for absent in [
        "key_name",
        "team",
        "tier",
        "cost",
        "queue_ms",
        "cached_tokens",
        "cache_write_tokens",
        "reasoning_tokens",
        "audio_prompt_tokens",
        "audio_completion_tokens",
    ] {
        assert!(bare.get(absent).is_none(), "{absent}: {bare}");
    }
    // A key that nobody knows belongs to nobody.
    assert_eq!(gateway.ask_as("sk-nobody-00001").await.status, 401);
}

#[tokio::test]
async fn the_model_that_answered_is_the_one_that_the_backend_names() {
    let dying = sim_with(|b| b.fail = Fail::BeforeHeaders).await;
    let good = sim_with(|b| b.models = vec!["qwen/7b".to_owned()]).await;
    let receiver = Receiver::start().await;
    let gateway = Gateway::start(&format!(
        "backends:
  - {{name: a, url: \"{}\", models: [qwen-72b]}}
  - {{name: b, url: \"{}\", models: [qwen/7b]}}
models:
  gpt-4o: {{routes: [{{backend: a, model: qwen-72b}}], fallback: [small]}}
  small: {{routes: [{{backend: b, model: qwen/7b}}]}}
{}",
        dying.url(),
        good.url(),
        receiver.hook()
    ))
    .await;
    let mut client = gateway.client().await;
    for (n, stream) in [true, false].into_iter().enumerate() {
        let answer = client.ask(PATH, chat(stream).replace("sim-model", "gpt-4o")).await;
        assert!(answer.status == 200 && !answer.text().contains("qwen"), "{}", answer.text());
        let record = receiver.wait_for(n + 1).await[n].clone();
        assert_eq!(
            (&record["model"], &record["response_model"]),
            (&json!("gpt-4o"), &json!("qwen/7b")),
            "{record}"
        );
        assert_eq!(record["tries"], 2);
        assert_eq!(record["backend_url"], good.url());
    }
    // Of a model without a way of its own, the name is the same.
    client.ask("/v1/embeddings", r#"{"model":"qwen/7b","input":"abc"}"#).await;
    let record = receiver.wait_for(3).await[2].clone();
    assert_eq!((&record["response_model"], &record["tries"]), (&json!("qwen/7b"), &json!(1)));
}

#[tokio::test]
async fn a_hedge_counts_as_a_try() {
    let sims = [sim_with(|b| b.fail = Fail::Wedge).await, sim().await];
    let receiver = Receiver::start().await;
    let gateway = Gateway::start(&format!(
        "backends: [{{url: \"{}\", weight: 100}}, {{url: \"{}\", weight: 1}}]
routing: {{hedge: {{enabled: true, delay: 50ms}}}}
{}",
        sims[0].url(),
        sims[1].url(),
        receiver.hook()
    ))
    .await;
    let body = chat(false).replace("\"stream\"", "\"max_tokens\":16,\"stream\"");
    assert_eq!(gateway.client().await.ask(PATH, body).await.status, 200);
    let record = receiver.one().await;
    assert_eq!((&record["tries"], &record["backend_url"]), (&json!(2), &json!(sims[1].url())));
}

#[tokio::test]
async fn details_of_the_engines_are_kept_and_priced() {
    let sim = sim_with(|b| {
        (b.prefix_cache, b.prompt_tokens_details, b.reasoning_tokens) = (100, true, 5);
    })
    .await;
    let receiver = Receiver::start().await;
    let more = format!("{PRICES}{}", receiver.hook());
    let gateway = Gateway::before(&[sim.url()], &more).await;
    let mut client = gateway.client().await;
    let mut n = 0;
    let mut record = async |body: String| {
        assert_eq!(client.ask(PATH, &body).await.status, 200, "{body}");
        n += 1;
        receiver.wait_for(n).await[n - 1].clone()
    };
    let first = record(blocks(4, "")).await;
    assert_eq!(first.get("cached_tokens"), None, "vLLM tells only of what it has known");
    assert_eq!(first["reasoning_tokens"], 5);
    assert!(near(&first["cost"], (65.0 * 1000.0 + 16.0 * 2000.0) / 1e6), "{first}");
    let half = (1.0 * 1000.0 + 64.0 * 100.0 + 16.0 * 2000.0) / 1e6;
    for more in
        ["", r#","stream":true"#, r#","stream":true,"stream_options":{"include_usage":true}"#]
    {
        let known = record(blocks(4, more)).await;
        assert_eq!((&known["cached_tokens"], &known["reasoning_tokens"]), (&json!(64), &json!(5)));
        assert!(near(&known["cost"], half), "{known}");
    }
    let several = record(blocks(4, r#","stream":true,"n":3"#)).await;
    assert_eq!(several["completion_tokens"], 48);
    assert_eq!((&several["cached_tokens"], &several["reasoning_tokens"]), (&json!(64), &json!(15)));
    sim.change(|b| (b.engine, b.prompt_tokens_details) = (Engine::Sglang, false));
    let sglang = record(blocks(4, "")).await;
    assert_eq!((sglang.get("cached_tokens"), &sglang["reasoning_tokens"]), (None, &json!(5)));
}

/// A usage that a backend may report, the members of the record that follow from it, and the cost.
fn reports() -> Vec<(&'static str, Value, f64)> {
    vec![
        (
            // OpenAI.
            r#"{"prompt_tokens":100,"completion_tokens":50,"total_tokens":150,
                "prompt_tokens_details":{"cached_tokens":40,"cache_write_tokens":30,"audio_tokens":10},
                "completion_tokens_details":{"reasoning_tokens":20,"audio_tokens":5}}"#,
            json!({"prompt_tokens": 100, "completion_tokens": 50, "total_tokens": 150,
                "cached_tokens": 40, "cache_write_tokens": 30, "reasoning_tokens": 20,
                "audio_prompt_tokens": 10, "audio_completion_tokens": 5}),
            20.0 + 4.0 + 60.0 + 100.0 + 25.0 * 2.0 + 20.0 * 3.0 + 5.0 * 20.0,
        ),
        (
            // vLLM, which reports no audio.
            r#"{"prompt_tokens":100,"completion_tokens":50,"total_tokens":150,
                "prompt_tokens_details":{"created_cache_tokens":64}}"#,
            json!({"prompt_tokens": 100, "completion_tokens": 50, "total_tokens": 150,
                "cached_tokens": null, "cache_write_tokens": 64, "reasoning_tokens": null,
                "audio_prompt_tokens": null, "audio_completion_tokens": null}),
            36.0 + 128.0 + 100.0,
        ),
        (
            // Anthropic's words: what was cached is not part of the input.
            r#"{"input_tokens":10,"output_tokens":5,"cache_creation_input_tokens":30,"cache_read_input_tokens":60}"#,
            json!({"prompt_tokens": 100, "completion_tokens": 5, "total_tokens": 105,
                "cached_tokens": 60, "cache_write_tokens": 30, "reasoning_tokens": null}),
            10.0 + 6.0 + 60.0 + 10.0,
        ),
        (
            // xAI: reasoning beside the answer.
            r#"{"prompt_tokens":10,"completion_tokens":5,"total_tokens":115,
                "completion_tokens_details":{"reasoning_tokens":100}}"#,
            json!({"prompt_tokens": 10, "completion_tokens": 105, "total_tokens": 115,
                "reasoning_tokens": 100}),
            10.0 + 10.0 + 300.0,
        ),
        (
            // More cached than there is: reported as it is, and not charged beyond the prompt.
            r#"{"prompt_tokens":10,"completion_tokens":5,"total_tokens":15,
                "prompt_tokens_details":{"cached_tokens":50,"cache_write_tokens":50}}"#,
            json!({"prompt_tokens": 10, "cached_tokens": 50, "cache_write_tokens": 50}),
            1.0 + 10.0,
        ),
    ]
}

#[tokio::test]
async fn every_part_of_the_tokens_is_kept_priced_and_shown() {
    let (url, _) = raw::backend(|n| {
        let usage = reports()[n / 2].0;
        let document = |choices: &str| {
            format!(r#"{{"id":"a","model":"m","choices":[{choices}],"usage":{usage}}}"#)
                .replace('\n', " ")
        };
        if n.is_multiple_of(2) {
            let body = document(r#"{"index":0,"message":{"role":"assistant","content":"a"}}"#);
            let length = body.len();
            let lines = format!("Content-Type: application/json\r\nContent-Length: {length}\r\n");
            return vec![raw::head(&lines), raw::send(body)];
        }
        let content = r#"data: {"id":"a","choices":[{"index":0,"delta":{"content":"a"}}]}"#;
        let end = format!("data: {}\n\ndata: [DONE]\n\n", document(""));
        vec![raw::events(), raw::chunk(format!("{content}\n\n")), raw::chunk(end), raw::last()]
    })
    .await;
    let receiver = Receiver::start().await;
    // One token of each costs: 1, 0.1, 2, 10; 2, 3, 20.
    let prices = "rate_limit: {prices: {\"*\": {input: 1000000, cached_input: 100000, cache_write: 2000000, \
                  audio_input: 10000000, output: 2000000, reasoning: 3000000, audio_output: 20000000}}}\n";
    let more = format!("{prices}{}", receiver.hook());
    let gateway = Gateway::before(&[url], &more).await;
    for (n, (_, members, cost)) in reports().into_iter().enumerate() {
        for (stream, place) in [(false, 2 * n), (true, 2 * n + 1)] {
            let answer = gateway.client().await.ask(PATH, chat(stream)).await;
            assert_eq!(answer.status, 200, "{}", answer.text());
            let record = receiver.wait_for(place + 1).await[place].clone();
            assert_eq!(record["usage_source"], "final", "{record}");
            for (member, value) in members.as_object().unwrap() {
                let found = record.get(member).cloned().unwrap_or_default();
                assert_eq!(&found, value, "{member}: {record}");
                assert!(!value.is_null() || record.get(member).is_none(), "{member}: {record}");
            }
            assert!(near(&record["cost"], cost), "{cost}: {record}");
        }
    }
    let twice = |pick: fn(&Value) -> u64| {
        2.0 * reports().iter().map(|(_, of, _)| pick(of) as f64).sum::<f64>()
    };
    let sums = [
        ("cached", twice(|of| of["cached_tokens"].as_u64().unwrap_or(0))),
        ("cache_write", twice(|of| of["cache_write_tokens"].as_u64().unwrap_or(0))),
        ("reasoning", twice(|of| of["reasoning_tokens"].as_u64().unwrap_or(0))),
        ("audio_prompt", twice(|of| of["audio_prompt_tokens"].as_u64().unwrap_or(0))),
        ("audio_completion", twice(|of| of["audio_completion_tokens"].as_u64().unwrap_or(0))),
    ];
    for (kind, expected) in sums {
        let name =
            format!("llmproxy_usage_token_parts_total{{model=\"sim-model\",type=\"{kind}\"}}");
        assert_eq!(gateway.metric(&name).await, expected, "{kind}");
    }
}

#[tokio::test]
async fn a_cost_is_told_where_there_is_a_price_and_a_count() {
    let sim = sim_with(|b| b.models = vec!["sim-model".to_owned()]).await;
    let receiver = Receiver::start().await;
    let text = format!(
        "backends: [{{url: \"{}\", models: [sim-model, free-model, other]}}]\n{PRICES}{}",
        sim.url(),
        receiver.hook()
    );
    sim.change(|b| b.models.extend(["free-model", "other"].map(str::to_owned)));
    let gateway = Gateway::start(&text).await;
    let mut client = gateway.client().await;
    for (n, (model, cost)) in
        [("sim-model", Some(0.041)), ("free-model", Some(0.0)), ("other", None)]
            .into_iter()
            .enumerate()
    {
        client.ask(PATH, chat(true).replace("sim-model", model)).await;
        let record = receiver.wait_for(n + 1).await[n].clone();
        assert_eq!(record["completion_tokens"], 16);
        match cost {
            Some(cost) => assert!(near(&record["cost"], cost), "{record}"),
            None => assert_eq!(record.get("cost"), None, "{record}"),
        }
    }
    // What nobody has counted has no cost.
    sim.change(|b| b.fail = Fail::Error);
    client.ask(PATH, chat(false)).await;
    client.ask(PATH, r#"{"model":"unknown","messages":[]}"#).await;
    client.ask(PATH, "not json").await;
    let records = receiver.wait_for(6).await;
    for (record, tries) in records[3..].iter().zip([1, 0, 0]) {
        assert_eq!((record.get("cost"), record.get("response_model")), (None, None), "{record}");
        assert_eq!((&record["tries"], &record["usage_source"]), (&json!(tries), &json!("none")));
        assert_eq!(record["backend_url"] == "", tries == 0, "{record}");
    }
}

#[tokio::test]
async fn a_stream_that_is_left_is_priced_as_far_as_it_came() {
    let sim =
        sim_with(|b| (b.inter_token_ms, b.fail, b.fail_after) = (0, Fail::Stall, Some(5))).await;
    let receiver = Receiver::start().await;
    let more = format!("{PRICES}{}", receiver.hook());
    let gateway = Gateway::before(&[sim.url()], &more).await;
    let mut client = gateway.client().await;
    client.post(PATH, chat(true)).await;
    client.head().await;
    let mut text = String::new();
    while text.matches("\"content\":\"").count() < 6 {
        text.push_str(std::str::from_utf8(&client.chunk().await.unwrap()).unwrap());
    }
    drop(client);
    let record = receiver.one().await;
    assert_eq!(
        (&record["outcome"], &record["usage_source"]),
        (&json!("client_aborted"), &json!("partial"))
    );
    assert_eq!((&record["completion_tokens"], &record["tries"]), (&json!(5), &json!(1)));
    assert_eq!(record["response_model"], "sim-model");
    assert!(near(&record["cost"], (9.0 * 1000.0 + 5.0 * 2000.0) / 1e6), "{record}");
}

#[tokio::test]
async fn who_has_waited_for_a_slot_is_told_how_long() {
    let sim = sim_with(|b| b.inter_token_ms = EVER).await;
    let receiver = Receiver::start().await;
    let limits = "rate_limit: {global: {max_concurrent: 1}, queue: {max_queue_size: 10}}\n";
    let more = format!("{limits}{}", receiver.hook());
    let gateway = Gateway::before(&[sim.url()], &more).await;
    let mut first = gateway.client().await;
    first.post(PATH, chat(true)).await;
    first.head().await;
    let mut second = gateway.client().await;
    second.post(PATH, chat(false)).await;
    eventually("it waits", async || gateway.metric("llmproxy_limit_queue_depth").await == 1.0)
        .await;
    sim.change(|b| b.inter_token_ms = 0);
    drop(first);
    assert_eq!(second.answer().await.status, 200);
    // Those of two connections have no order.
    let records = receiver.wait_for(2).await;
    let of = |outcome: &str| records.iter().find(|record| record["outcome"] == outcome);
    let left = of("client_aborted").unwrap_or_else(|| panic!("{records:?}"));
    let waited = of("complete").unwrap_or_else(|| panic!("{records:?}"));
    assert_eq!(left.get("queue_ms"), None);
    let (queued, latency) = (waited["queue_ms"].as_u64().unwrap(), waited["latency_ms"].as_u64());
    assert!(Some(queued) <= latency, "{waited}");
}

#[tokio::test]
async fn records_are_numbered_in_each_process() {
    let sim = sim().await;
    let receiver = Receiver::start().await;
    let mut gateway = Gateway::before(&[sim.url()], &receiver.hook()).await;
    let mut client = gateway.client().await;
    for _ in 0..5 {
        client.ask(PATH, chat(false)).await;
    }
    receiver.wait_for(5).await;
    gateway.signal("TERM");
    assert!(gateway.ended().await.success());
    let gateway = Gateway::before(&[sim.url()], &receiver.hook()).await;
    gateway.client().await.ask(PATH, chat(false)).await;
    let records = receiver.wait_for(6).await;
    let numbers: Vec<_> = records.iter().map(|r| r["sequence"].as_u64().unwrap()).collect();
    assert_eq!(numbers, [1, 2, 3, 4, 5, 1]);
    let processes: HashSet<_> = records[..5].iter().map(|r| r["process"].as_str()).collect();
    assert_eq!(processes.len(), 1);
    assert!(!processes.contains(&records[5]["process"].as_str()), "{records:?}");
    assert!(records.iter().all(|r| r["version"] == record::VERSION));
    let ids: HashSet<_> = records.iter().map(|r| r["record_id"].as_str()).collect();
    assert_eq!(ids.len(), records.len());
}

#[test]
fn the_schema_in_the_repository_is_that_of_the_records() {
    let program = env!("CARGO_BIN_EXE_llmproxy");
    let printed = Command::new(program).args(["schema", "--usage-record"]).output().unwrap();
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/usage-record.schema.json");
    assert!(
        printed.stdout == std::fs::read(file).unwrap(),
        "regenerate it: cargo run -- schema --usage-record > docs/usage-record.schema.json"
    );
    let printed: Value = serde_json::from_slice(&printed.stdout).unwrap();
    assert_eq!(printed, record::schema());
    assert_eq!(printed["properties"]["version"]["const"], record::VERSION);
}

/// The example of a record in the documentation.
fn documented() -> Value {
    let text = include_str!("../../docs/usage.md");
    let example = text.split("```json\n").nth(1).unwrap().split("```").next().unwrap();
    serde_json::from_str(example).unwrap()
}

#[test]
fn every_field_is_documented() {
    let text = include_str!("../../docs/usage.md");
    let rows: Vec<_> = text.lines().filter(|line| line.starts_with("| `")).collect();
    let schema = record::schema();
    let fields: Vec<_> = schema["properties"].as_object().unwrap().keys().collect();
    for field in &fields {
        let named = format!("`{field}`");
        let first = |row: &&&str| row.split('|').nth(1).is_some_and(|cell| cell.contains(&named));
        assert!(rows.iter().any(|row| first(&row)), "{field}");
    }
    // In the order in which they are written, and none that does not exist.
    let shown = documented();
    let shown: Vec<_> = shown.as_object().unwrap().keys().collect();
    // Those that nearly no record has are not in the example.
    let rare = |field: &str| ["queue_ms", "custom", "metered"].contains(&field);
    let expected: Vec<_> = fields.into_iter().filter(|field| !rare(field)).collect();
    assert_eq!(shown, expected);
}

/// Records of as many kinds as there are.
async fn all_kinds(receiver: &Receiver, sim: &Sim) -> Vec<Value> {
    let gateway = Gateway::start(&format!(
        "backends: [{{url: \"{}\", models: [sim-model]}}, {{url: \"http://{}\", models: [gone]}}]
auth: {{pipeline: [{{type: file, lua_script: \"return {{metadata = {{a = {{1, 2}}}}, tags = {{'x'}}}}\"}}]}}
api_keys: [{{key: sk-first-000001, name: n, user_id: u, team: t, tier: gold}}]
tiers: {{gold: {{queue_class: 1}}}}
{PRICES}{}",
        sim.url(),
        free_address(),
        receiver.hook()
    ))
    .await;
    let ask = async |path: &str, key: &str, body: &str| {
        let mut client = gateway.client().await;
        let headers = format!("Authorization: Bearer {key}\r\n");
        client.post_with(path, &headers, body.as_bytes()).await;
        client.answer().await.status
    };
    let known = "sk-first-000001";
    let mut statuses = Vec::new();
    for body in [
        &blocks(4, ""),
        &blocks(4, r#","stream":true"#),
        &chat(false).replace("sim-model", "gone"),
        "{",
    ] {
        statuses.push(ask(PATH, known, body).await);
    }
    statuses.push(ask("/v1/embeddings", known, r#"{"model":"sim-model","input":"a"}"#).await);
    sim.change(|b| b.fail = Fail::Abort);
    statuses.push(ask(PATH, known, &chat(true)).await);
    assert_eq!(statuses, [200, 200, 502, 400, 200, 200]);
    statuses.push(ask(PATH, "sk-nobody-00001", &chat(false)).await);
    receiver.wait_for(6).await
}

#[tokio::test]
async fn records_satisfy_the_schema() {
    let sim = sim_with(|b| {
        (b.prefix_cache, b.prompt_tokens_details, b.reasoning_tokens) = (100, true, 5);
    })
    .await;
    let receiver = Receiver::start().await;
    let records = all_kinds(&receiver, &sim).await;
    let program = tokio::task::spawn_blocking(|| python::programs("tests/records").join("python"));
    let program = program.await.unwrap();
    let check = async |records: &[Value]| {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/records/check.py");
        let mut child = tokio::process::Command::new(&program)
            .arg(script)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines: String = records.iter().map(|record| format!("{record}\n")).collect();
        child.stdin.take().unwrap().write_all(lines.as_bytes()).await.unwrap();
        let out = child.wait_with_output().await.unwrap();
        (out.status.success(), String::from_utf8_lossy(&out.stdout).into_owned())
    };
    let (fine, told) = check(&records).await;
    assert!(fine, "{told}");
    let (fine, told) = check(&[documented()]).await;
    assert!(fine, "{told}");
    // Fields may be added; none may lack, or be of another kind.
    let mut more = records[0].clone();
    more["new"] = json!({"field": 1});
    assert!(check(&[more]).await.0);
    for (member, value) in
        [("sequence", json!(0)), ("record_id", json!("rec_1")), ("cost", Value::Null)]
    {
        let mut bad = records[0].clone();
        bad[member] = value;
        let (fine, told) = check(&[bad]).await;
        assert!(!fine && told.contains(member), "{member}: {told}");
    }
    let mut without = records[0].clone();
    without.as_object_mut().unwrap().remove("process");
    assert!(!check(&[without]).await.0);
}
