//! Model aliases, their routes and fallbacks, and the requests that engines receive.

use llmproxy::sim::{Fail, ReceivedRequest, Sim};
use serde_json::Value;

use crate::support::{
    Client, Gateway, chat,
    client::Response,
    eventually,
    faults::{Fault, fleet},
    free_address, http, sim_with,
};

const PATH: &str = "/v1/chat/completions";
const ID: &str = "X-Request-Id: fixed\r\n";

fn serves(models: &[&str]) -> Vec<String> {
    models.iter().map(|m| (*m).to_owned()).collect()
}

async fn ask(gateway: &Gateway, model: &str, stream: bool) -> Response {
    let mut client = gateway.client().await;
    client.post_with(PATH, ID, chat(stream).replace("sim-model", model).as_bytes()).await;
    client.answer().await
}

/// Removes the time, which differs.
fn timeless(text: &str) -> String {
    let mut parts = text.split("\"created\":");
    let mut out = parts.next().unwrap_or_default().to_owned();
    parts.for_each(|p| out.push_str(p.trim_start_matches(|c: char| c.is_ascii_digit())));
    out
}

/// The response of the backend itself, with the client's name of the model.
async fn expected(sim: &Sim, model: &str, name: &str, stream: bool) -> String {
    let mut client = Client::connect(sim.address).await;
    client.post_with(PATH, ID, chat(stream).replace("sim-model", model).as_bytes()).await;
    let text = timeless(client.answer().await.text());
    text.replace(&format!("\"model\":\"{model}\""), &format!("\"model\":\"{name}\""))
}

fn model_of(seen: &ReceivedRequest) -> String {
    let body: Value = serde_json::from_slice(&seen.body).unwrap();
    body["model"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn responses_differ_only_in_the_clients_model_name() {
    let sims = fleet(2, |b| b.models = serves(&["qwen-72b", "q"])).await;
    let gateway = Gateway::start(&format!(
        "backends:
  - {{name: a, url: \"{}\", models: [qwen-72b, q]}}
  - {{name: b, url: \"{}\", models: [qwen-72b, q]}}
routing: {{circuit: {{enabled: false}}}}
models:
  gpt-4o:
    routes:
      - {{backend: a, model: qwen-72b}}
      - {{backend: b, model: qwen-72b, priority: 2}}
  a-name-that-is-much-longer-than-the-other: {{routes: [{{backend: a, model: q}}]}}
",
        sims[0].url(),
        sims[1].url(),
    ))
    .await;
    for (name, model) in [
        ("gpt-4o", "qwen-72b"),
        ("a-name-that-is-much-longer-than-the-other", "q"),
        ("qwen-72b", "qwen-72b"),
    ] {
        for stream in [true, false] {
            let answer = ask(&gateway, name, stream).await;
            assert!(answer.status == 200 && answer.whole, "{name}: {}", answer.text());
            let right = expected(&sims[0], model, name, stream).await;
            assert_eq!(timeless(answer.text()), right, "{name} {stream}");
        }
    }
    // Also after a retry.
    for fault in [Fault::Dead, Fault::DieBeforeContent, Fault::Refuse] {
        fault.befall(&sims[0]).await;
        for stream in [true, false] {
            let answer = ask(&gateway, "gpt-4o", stream).await;
            let right = expected(&sims[1], "qwen-72b", "gpt-4o", stream).await;
            assert!(answer.status == 200 && answer.whole, "{fault:?}: {}", answer.text());
            assert_eq!(timeless(answer.text()), right, "{fault:?} {stream}");
        }
    }
}

#[tokio::test]
async fn a_long_response_has_the_clients_model_name() {
    // Longer than the part of a document that is held back to replace the model.
    let sim = sim_with(|b| (b.models, b.tokens) = (serves(&["qwen"]), 100_000)).await;
    let gateway = Gateway::start(&format!(
        "backends: [{{name: a, url: \"{}\"}}]\nmodels: {{gpt: {{routes: [{{backend: a, model: qwen}}]}}}}\n",
        sim.url()
    ))
    .await;
    let answer = ask(&gateway, "gpt", false).await;
    assert!(answer.whole && answer.body.len() > 256 * 1024);
    assert!(timeless(answer.text()) == expected(&sim, "qwen", "gpt", false).await, "it differs");
}

#[tokio::test]
async fn a_fallback_model_takes_over() {
    let big = sim_with(|b| b.models = serves(&["big"])).await;
    let small = sim_with(|b| b.models = serves(&["small"])).await;
    let gateway = Gateway::start(&format!(
        "backends:
  - {{url: \"{}\", models: [big]}}
  - {{url: \"{}\", models: [small]}}
routing: {{circuit: {{enabled: false}}}}
models: {{big: {{fallback: [small]}}}}
fallback: {{alias_fallback: {{old: [big]}}}}
",
        big.url(),
        small.url(),
    ))
    .await;
    assert_eq!(ask(&gateway, "big", false).await.json()["model"], "big");
    assert_eq!(small.stats().requests(), 0);
    for fault in [Fault::Dead, Fault::Busy, Fault::Reset, Fault::ErrorFirst, Fault::Refuse] {
        fault.befall(&big).await;
        for (name, stream) in [("big", true), ("big", false), ("old", false)] {
            let before = small.stats().requests();
            let answer = ask(&gateway, name, stream).await;
            let case = format!("{fault:?} {name} {stream}: {}", answer.text());
            assert_eq!(answer.status, 200, "{case}");
            let named = answer.text().matches(&format!("\"model\":\"{name}\"")).count();
            assert_eq!(named, answer.text().matches("\"model\"").count(), "{case}");
            assert_eq!(small.stats().requests(), before + 1, "{case}");
            assert_eq!(model_of(&small.stats().last().unwrap()), "small", "{case}");
        }
    }
}

#[tokio::test]
async fn a_canary_gets_its_share() {
    let (stable, canary) = (sim_with(|_| {}).await, sim_with(|_| {}).await);
    let gateway = Gateway::start(&format!(
        "backends: [{{name: stable, url: \"{}\"}}, {{name: canary, url: \"{}\"}}]
models:
  gpt:
    routes:
      - {{backend: stable, model: sim-model, weight: 95}}
      - {{backend: canary, model: sim-model, weight: 5}}
",
        stable.url(),
        canary.url()
    ))
    .await;
    let mut client = gateway.client().await;
    let body = chat(false).replace("sim-model", "gpt");
    for _ in 0..400 {
        assert_eq!(client.ask(PATH, &body).await.status, 200);
    }
    // 20 are expected. Six standard deviations are 26.
    let share = canary.stats().requests();
    assert!((1..=46).contains(&share), "{share} of 400");
    assert_eq!(stable.stats().requests() + share, 400);
    // If one route fails, the other one is used, in both directions.
    stable.refuse().await.unwrap();
    for _ in 0..5 {
        assert_eq!(client.ask(PATH, &body).await.status, 200);
    }
    assert_eq!(canary.stats().requests(), share + 5);
}

#[tokio::test]
async fn a_request_shows_its_route() {
    let sims = fleet(2, |b| b.models = serves(&["big", "small"])).await;
    let (admin, folder) = (free_address(), tempfile::tempdir().unwrap());
    let gateway = Gateway::start(&format!(
        "backends:
  - {{name: a, url: \"{}\", models: [big]}}
  - {{name: b, url: \"{}\", models: [small]}}
routing: {{explain: 10}}
models: {{big: {{fallback: [small]}}}}
admin: {{enabled: true, listen: \"{admin}\", token: a-token-for-tests, db_path: \"{}\"}}
",
        sims[0].url(),
        sims[1].url(),
        folder.path().join("keys.db").display(),
    ))
    .await;
    sims[0].change(|b| b.fail = Fail::Busy);
    assert_eq!(ask(&gateway, "big", false).await.status, 200);
    let url = format!("http://{admin}/admin/v1/explain?request_id=fixed");
    let client = http::client();
    let mut explained = Value::Null;
    eventually("the request is explained", async || {
        let asked = client.get(&url).header("X-Admin-Token", "a-token-for-tests").send();
        let answer = asked.await.unwrap();
        let found = answer.status() == 200;
        explained = serde_json::from_str(&answer.text().await.unwrap()).unwrap();
        found
    })
    .await;
    let attempts = explained["tries"].as_array().unwrap();
    assert_eq!(attempts.len(), 2, "{explained}");
    for (at, backend, model, result) in [(0, "a", "big", "busy"), (1, "b", "small", "ok")] {
        let attempt = &attempts[at];
        assert_eq!(
            (&attempt["backend"], &attempt["model"]),
            (&backend.into(), &model.into()),
            "{attempt}"
        );
        assert_eq!(
            (&attempt["result"], &attempt["tier"]),
            (&result.into(), &at.into()),
            "{attempt}"
        );
        assert!(attempt["first_byte_ms"].is_u64() && attempt["took_ms"].is_u64(), "{attempt}");
    }
    assert_eq!(
        (&explained["model"], &explained["outcome"]),
        (&"big".into(), &"complete".into()),
        "{explained}"
    );
    assert_eq!(explained["status"], 200, "{explained}");
}

#[tokio::test]
async fn priorities_are_sent_in_the_format_of_each_engine() {
    let sims = fleet(3, |_| {}).await;
    let gateway = Gateway::start(&format!(
        "backends:
  - {{url: \"{}\", models: [vllm], engine: vllm}}
  - {{url: \"{}\", models: [sglang], engine: sglang}}
  - {{url: \"{}\", models: [other], engine: other}}
routing: {{cache_salt: per_user, cache_salt_secret: sixteen-bytes-and-more}}
tiers: {{vip: {{engine_priority: 10}}}}
auth: {{}}
api_keys:
  - {{key: sk-vip-00000001, user_id: one, tier: vip}}
  - {{key: sk-vip-00000002, user_id: one, tier: vip}}
  - {{key: sk-plain-000001, user_id: two}}
",
        sims[0].url(),
        sims[1].url(),
        sims[2].url(),
    ))
    .await;
    for (sim, model) in sims.iter().zip(["vllm", "sglang", "other"]) {
        sim.change(|b| b.models = serves(&[model]));
    }
    let seen = async |key: &str, model: &str, stream: bool| {
        let body = chat(stream)
            .replace("sim-model", model)
            .replace("\"messages\"", r#""priority":-99,"cache_salt":"mine","messages""#);
        let headers = format!("Authorization: Bearer {key}\r\nX-Vllm-Priority: -99\r\n");
        let mut client = gateway.client().await;
        client.post_with(PATH, &headers, body.as_bytes()).await;
        assert_eq!(client.answer().await.status, 200);
        let at = ["vllm", "sglang", "other"].iter().position(|m| *m == model).unwrap();
        let seen = sims[at].stats().last().unwrap();
        let body: Value = serde_json::from_slice(&seen.body).unwrap();
        let priority = seen.header("x-vllm-priority").map(str::to_owned);
        (priority, body["priority"].clone(), body["cache_salt"].as_str().map(str::to_owned))
    };
    for stream in [true, false] {
        let (priority, field, salt) = seen("sk-vip-00000001", "vllm", stream).await;
        assert_eq!((priority.as_deref(), field), (Some("-10"), Value::Null));
        let salt = salt.unwrap();
        assert!(salt.len() == 64 && salt != "mine");
        assert_eq!(seen("sk-vip-00000002", "vllm", stream).await.2.unwrap(), salt, "a user");
        let (priority, field, other) = seen("sk-plain-000001", "vllm", stream).await;
        assert_eq!((priority, field), (None, Value::Null));
        assert!(other.is_some_and(|other| other != salt), "another user");
        let fields = seen("sk-vip-00000001", "sglang", stream).await;
        assert_eq!(fields, (None, 10.into(), None));
        let fields = seen("sk-plain-000001", "sglang", stream).await;
        assert_eq!(fields, (None, Value::Null, None));
        assert_eq!(seen("sk-vip-00000001", "other", stream).await, (None, Value::Null, None));
    }
}
