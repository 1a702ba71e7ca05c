//! Selection of a backend by model and weight.

use llmproxy::sim::Sim;

use crate::support::{Gateway, chat, free_address, sim, sim_with};

const PATH: &str = "/v1/chat/completions";

async fn ask(gateway: &Gateway, model: &str) -> u16 {
    let body = format!(r#"{{"model":"{model}","messages":[]}}"#);
    gateway.client().await.ask(PATH, body).await.status
}

fn counts(sims: &[&Sim]) -> Vec<u64> {
    sims.iter().map(|s| s.stats().requests()).collect()
}

#[tokio::test]
async fn weights_five_and_three_split_eight_requests() {
    let (a, b) = (sim().await, sim().await);
    let backends = format!(
        "backends:\n  - {{url: \"{}\", weight: 5}}\n  - {{url: \"{}\", weight: 3}}\n",
        a.url(),
        b.url()
    );
    let gateway = Gateway::start(&backends).await;
    for round in 1..=3 {
        for _ in 0..8 {
            assert_eq!(ask(&gateway, "sim-model").await, 200);
        }
        assert_eq!(counts(&[&a, &b]), [5 * round, 3 * round]);
    }
}

#[tokio::test]
async fn models_find_their_backends() {
    let models = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>();
    let qwen = sim_with(|b| b.models = models(&["qwen-72b", "qwen-7b"])).await;
    let llama = sim_with(|b| b.models = models(&["llama"])).await;
    let gateway = Gateway::start(&format!(
        "backends:\n  - {{url: \"{}\", models: [\"qwen-*\"]}}\n  - {{url: \"{}\", models: [llama]}}\n",
        qwen.url(), llama.url()
    ))
    .await;
    for _ in 0..3 {
        assert_eq!(ask(&gateway, "qwen-72b").await, 200);
        assert_eq!(ask(&gateway, "llama").await, 200);
    }
    assert_eq!(counts(&[&qwen, &llama]), [3, 3]);

    let answer = gateway.client().await.ask(PATH, r#"{"model":"gpt","messages":[]}"#).await;
    assert_eq!(answer.status, 404);
    let error = answer.json()["error"].clone();
    assert_eq!(error["code"], "model_not_found");
    assert_eq!(error["param"], "model");
    assert!(error["message"].as_str().unwrap().contains("`gpt`"));
    let answer = gateway.client().await.ask(PATH, r#"{"messages":[]}"#).await;
    assert_eq!(
        (answer.status, answer.json()["error"]["code"].as_str()),
        (400, Some("missing_model"))
    );
    assert_eq!(counts(&[&qwen, &llama]), [3, 3]);
}

#[tokio::test]
async fn a_backend_without_models_accepts_any_model_and_no_model() {
    let sim = sim().await;
    let gateway = Gateway::before(&[sim.url()], "").await;
    // The engine knows its models.
    assert_eq!(ask(&gateway, "other").await, 404);
    assert_eq!(sim.stats().requests(), 1);
    assert_eq!(gateway.client().await.ask(PATH, r#"{"messages":[]}"#).await.status, 200);
}

#[tokio::test]
async fn the_list_of_models_is_merged() {
    let models = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>();
    let a = sim_with(|b| b.models = models(&["one", "two"])).await;
    let b = sim_with(|b| b.models = models(&["two", "three", "hidden"])).await;
    let dead = free_address();
    let gateway = Gateway::start(&format!(
        "backends:\n  - {{url: \"{}\"}}\n  - {{url: \"{}\", models: [two, \"th*\", configured]}}\n  - {{url: \"http://{dead}\", models: [\"x*\"]}}\n",
        a.url(), b.url()
    ))
    .await;
    let list = gateway.client().await.get("/v1/models").await.json();
    assert_eq!(list["object"], "list");
    let ids: Vec<_> =
        list["data"].as_array().unwrap().iter().map(|m| m["id"].as_str().unwrap()).collect();
    assert_eq!(ids, ["one", "two", "three", "configured"]);
    assert_eq!(list["data"][0]["owned_by"], "vllm", "as reported by the backend");
}

#[tokio::test]
async fn an_unreachable_backend_is_replaced() {
    let sim = sim().await;
    let dead = [format!("http://{}", free_address()), format!("http://{}", free_address())];
    let gateway = Gateway::before(&[dead[0].clone(), sim.url(), dead[1].clone()], "").await;
    for stream in [true, false, true, false, true, false] {
        assert_eq!(gateway.client().await.ask(PATH, chat(stream)).await.status, 200);
    }
    assert_eq!(sim.stats().requests(), 6);
}

#[tokio::test]
async fn if_no_backend_is_reachable_the_client_gets_an_error() {
    let dead = [format!("http://{}", free_address()), "http://no-such-host.invalid:1".to_owned()];
    let gateway = Gateway::before(&dead, "").await;
    let answer = gateway.client().await.ask(PATH, chat(true)).await;
    assert_eq!(answer.status, 502);
    let error = answer.json()["error"].clone();
    assert_eq!(
        (error["type"].as_str(), error["code"].as_str()),
        (Some("server_error"), Some("backend_unreachable"))
    );
}
