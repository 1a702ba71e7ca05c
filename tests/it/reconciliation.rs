//! Metered tokens compared with the counters of the engines.

use llmproxy::sim::{Engine, Fail, Sim};

use crate::support::{Client, Gateway, chat, eventually, sim, sim_with};

const PATH: &str = "/v1/chat/completions";

/// A configuration with frequent readings, and a window over all of them.
fn text(sims: &[&Sim]) -> String {
    let line = |(n, sim): (usize, &&Sim)| format!("  - {{name: b{n}, url: \"{}\"}}\n", sim.url());
    let lines: String = sims.iter().enumerate().map(line).collect();
    format!(
        "backends:\n{lines}usage: {{reconciliation: {{enabled: true, interval: 100ms, window: 1h}}}}\n"
    )
}

/// The four gauges of a backend for prompt and completion tokens: counted by the engine, metered, drift in
/// tokens, drift as a ratio.
async fn gauges(gateway: &Gateway, backend: &str) -> [[f64; 4]; 2] {
    let names = ["engine_tokens_total", "metered_tokens_total", "drift_tokens", "drift_ratio"];
    let mut all = [[0.0; 4]; 2];
    for (kind, of) in ["prompt", "completion"].iter().zip(&mut all) {
        for (name, value) in names.iter().zip(of) {
            let labels = format!("{{backend=\"{backend}\",type=\"{kind}\"}}");
            *value = gateway.metric(&format!("llmproxy_usage_{name}{labels}")).await;
        }
    }
    all
}

/// Waits until the gauges have these values.
async fn show(gateway: &Gateway, backend: &str, expected: [[f64; 4]; 2]) {
    eventually(&format!("{backend} shows {expected:?}"), async || {
        gauges(gateway, backend).await == expected
    })
    .await;
}

/// Waits for two complete readings from now on.
async fn read_twice(sim: &Sim) {
    let before = sim.stats().readings();
    eventually("two readings", async || sim.stats().readings() >= before + 3).await;
}

async fn has_gauges(gateway: &Gateway, backend: &str) -> bool {
    let text = gateway.client().await.get("/metrics").await;
    let label = format!("backend=\"{backend}\",type=");
    text.text().lines().any(|l| l.contains("_tokens_total{") && l.contains(&label))
}

/// Sends a chat with 9 prompt tokens and 16 completion tokens.
async fn ask(client: &mut Client, stream: bool) {
    assert_eq!(client.ask(PATH, chat(stream)).await.status, 200);
}

#[tokio::test]
async fn only_requests_that_bypass_the_gateway_are_drift() {
    let sim = sim().await;
    // Counted before the first reading, which is the zero point.
    let mut past = Client::connect(sim.address).await;
    ask(&mut past, false).await;
    let gateway = Gateway::start(&text(&[&sim])).await;
    gateway.logs("metered tokens are compared with the counters of vLLM; backends: 1").await;
    read_twice(&sim).await;
    let mut client = gateway.client().await;
    for stream in [false, true, true, false] {
        ask(&mut client, stream).await;
    }
    client.ask("/v1/embeddings", r#"{"model":"sim-model","input":"abcdefghij"}"#).await;
    show(&gateway, "b0", [[40.0, 40.0, 0.0, 0.0], [64.0, 64.0, 0.0, 0.0]]).await;

    ask(&mut past, true).await;
    show(&gateway, "b0", [[49.0, 40.0, 9.0, 9.0 / 49.0], [80.0, 64.0, 16.0, 16.0 / 80.0]]).await;
}

#[tokio::test]
async fn tokens_of_a_failed_attempt_are_drift_of_its_backend() {
    // It fails after reading the prompt and before anything was sent to the client.
    let failing = sim_with(|b| b.fail = Fail::AbortBeforeContent).await;
    let good = sim().await;
    let mut config = text(&[&failing, &good]);
    config.push_str("models: {sim-model: {routes: [{backend: b0}, {backend: b1, priority: 2}]}}\n");
    let gateway = Gateway::start(&config).await;
    read_twice(&failing).await;
    read_twice(&good).await;
    ask(&mut gateway.client().await, true).await;
    show(&gateway, "b0", [[9.0, 0.0, 9.0, 1.0], [0.0; 4]]).await;
    show(&gateway, "b1", [[9.0, 9.0, 0.0, 0.0], [16.0, 16.0, 0.0, 0.0]]).await;
}

#[tokio::test]
async fn a_restart_of_an_engine_is_no_drift() {
    let sim = sim().await;
    let gateway = Gateway::start(&text(&[&sim])).await;
    read_twice(&sim).await;
    let mut client = gateway.client().await;
    ask(&mut client, false).await;
    ask(&mut client, false).await;
    show(&gateway, "b0", [[18.0, 18.0, 0.0, 0.0], [32.0, 32.0, 0.0, 0.0]]).await;

    sim.restart();
    read_twice(&sim).await;
    show(&gateway, "b0", [[18.0, 18.0, 0.0, 0.0], [32.0, 32.0, 0.0, 0.0]]).await;
    ask(&mut client, true).await;
    show(&gateway, "b0", [[27.0, 27.0, 0.0, 0.0], [48.0, 48.0, 0.0, 0.0]]).await;

    // Unreachable for a while; tokens counted meanwhile are included.
    sim.change(|b| b.metrics = 500);
    read_twice(&sim).await;
    ask(&mut client, true).await;
    ask(&mut Client::connect(sim.address).await, false).await;
    sim.change(|b| b.metrics = 200);
    show(&gateway, "b0", [[45.0, 36.0, 9.0, 0.2], [80.0, 64.0, 16.0, 0.2]]).await;
}

#[tokio::test]
async fn gauges_exist_only_for_current_vllm_backends() {
    let sims = [sim().await, sim().await, sim_with(|b| b.engine = Engine::Sglang).await];
    let mut config = text(&[&sims[0], &sims[1], &sims[2]]);
    config = config.replace("name: b2,", "name: b2, engine: sglang,");
    let gateway = Gateway::start(&config).await;
    for sim in &sims[..2] {
        read_twice(sim).await;
    }
    assert!(has_gauges(&gateway, "b0").await && has_gauges(&gateway, "b1").await);
    assert!(!has_gauges(&gateway, "b2").await);
    assert_eq!(sims[2].stats().readings(), 0);

    // The counters are kept across a reload.
    let mut client = gateway.client().await;
    for _ in 0..6 {
        ask(&mut client, false).await;
    }
    gateway.rewrite(&text(&[&sims[0]]));
    eventually("the gauges are gone", async || !has_gauges(&gateway, "b1").await).await;
    assert!(has_gauges(&gateway, "b0").await);
    let n = 16.0 * sims[0].stats().completed() as f64;
    assert!(n > 0.0);
    eventually("the counters are kept", async || {
        gauges(&gateway, "b0").await[1] == [n, n, 0.0, 0.0]
    })
    .await;

    gateway.rewrite(&text(&[&sims[0]]).replace("enabled: true", "enabled: false"));
    eventually("it is switched off", async || !has_gauges(&gateway, "b0").await).await;
}
