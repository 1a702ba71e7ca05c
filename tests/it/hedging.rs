//! Hedging: short requests that are sent to two backends at the same time.

use std::time::Duration;

use llmproxy::sim::Sim;
use serde_json::Value;

use crate::support::{
    Client, Gateway, Receiver, chat, chat_of, eventually,
    faults::{Fault, at_rest, fleet, tries_of},
    free_address, http,
};

const PATH: &str = "/v1/chat/completions";

/// In milliseconds: longer than any test waits.
const LONG: u64 = 600_000;

fn short() -> String {
    chat(false).replace("\"stream\"", "\"max_tokens\":16,\"stream\"")
}

/// Backends that are selected in this order.
fn backends(sims: &[Sim]) -> String {
    let line = |(n, sim): (usize, &Sim)| {
        format!("  - {{url: \"{}\", name: b{n}, weight: {}}}\n", sim.url(), [100, 10, 1][n])
    };
    format!("backends:\n{}", sims.iter().enumerate().map(line).collect::<String>())
}

fn hedging(delay: &str) -> String {
    format!("routing: {{hedge: {{enabled: true, delay: {delay}}}}}\n")
}

async fn hedges(gateway: &Gateway) -> [f64; 3] {
    let mut all = [0.0; 3];
    for (value, result) in all.iter_mut().zip(["won", "lost", "failed"]) {
        let name = format!("llmproxy_hedges_total{{result=\"{result}\"}}");
        *value = gateway.metric(&name).await;
    }
    all
}

fn requests(sims: &[Sim]) -> Vec<u64> {
    sims.iter().map(|sim| sim.stats().requests()).collect()
}

async fn slow(sim: &Sim, ms: u64) {
    sim.change(|b| b.slow_ms = ms);
    Fault::Slow.befall(sim).await;
}

async fn admin(address: std::net::SocketAddr, path: &str) -> Value {
    let request = http::client().get(format!("http://{address}{path}"));
    let answer = request.header("X-Admin-Token", "a-token-for-tests").send().await.unwrap();
    assert_eq!(answer.status(), 200);
    serde_json::from_str(&answer.text().await.unwrap()).unwrap()
}

#[tokio::test]
async fn a_second_backend_responds_if_the_first_is_slow() {
    let sims = fleet(2, |_| {}).await;
    slow(&sims[0], LONG).await;
    let receiver = Receiver::start().await;
    let (control, folder) = (free_address(), tempfile::tempdir().unwrap());
    let gateway = Gateway::start(&format!(
        "{}{}{}admin: {{enabled: true, listen: \"{control}\", token: a-token-for-tests, \
         db_path: \"{}\"}}\n",
        backends(&sims),
        hedging("50ms"),
        receiver.hook(),
        folder.path().join("keys.db").display(),
    ))
    .await;
    let mut client = gateway.client().await;
    client.post_with(PATH, "X-Request-Id: hedged-1\r\n", short().as_bytes()).await;
    let answer = client.answer().await;
    assert_eq!((answer.status, answer.whole), (200, true));
    assert_eq!(answer.header("x-request-id"), Some("hedged-1"));
    assert_eq!(answer.json()["usage"]["completion_tokens"], 16);
    assert_eq!(tries_of(&sims, "hedged-1"), [1, 1]);

    at_rest(&sims).await;
    assert_eq!((sims[0].stats().aborted(), sims[0].stats().completed()), (1, 0));
    let record = receiver.one().await;
    assert_eq!(record["outcome"], "complete");
    assert_eq!(record["completion_tokens"], 16);
    assert_eq!(record["backend_url"], sims[1].url());
    assert_eq!(
        gateway
            .metric("llmproxy_usage_tokens_total{model=\"sim-model\",type=\"completion\"}")
            .await,
        16.0
    );
    assert_eq!(hedges(&gateway).await, [1.0, 0.0, 0.0]);

    let known = admin(control, "/admin/v1/backends").await;
    for backend in known["backends"].as_array().unwrap() {
        assert_eq!(backend["in_flight"], 0, "{known}");
    }
    let story = admin(control, "/admin/v1/explain?request_id=hedged-1").await;
    let of = |n: usize, member: &str| story["tries"][n][member].clone();
    assert_eq!((of(0, "backend"), of(0, "hedge")), ("b0".into(), false.into()), "{story}");
    assert_eq!((of(1, "backend"), of(1, "hedge")), ("b1".into(), true.into()), "{story}");
    assert_eq!((of(0, "result"), of(1, "result")), ("broken off".into(), "ok".into()), "{story}");
    assert!(of(0, "first_byte_ms").is_null() && of(1, "first_byte_ms").is_u64(), "{story}");

    // The client connection stays usable.
    assert_eq!(client.ask(PATH, short()).await.status, 200);
}

#[tokio::test]
async fn a_fast_backend_is_not_hedged() {
    let sims = fleet(2, |_| {}).await;
    let gateway = Gateway::start(&format!("{}{}", backends(&sims), hedging("60s"))).await;
    let mut client = gateway.client().await;
    let mut direct = Client::connect(sims[0].address).await;
    for _ in 0..5 {
        let answer = client.ask(PATH, short()).await;
        assert_eq!(answer.status, 200);
        let (same, expected) = (answer.json(), direct.ask(PATH, short()).await.json());
        assert_eq!((&same["choices"], &same["usage"]), (&expected["choices"], &expected["usage"]));
    }
    let embeddings = r#"{"model":"sim-model","input":"Hello"}"#;
    assert_eq!(client.ask("/v1/embeddings", embeddings).await.status, 200);
    assert_eq!(requests(&sims).iter().sum::<u64>(), 11);
    assert_eq!(sims[0].stats().connections(), 2, "connections are kept");
    assert_eq!(hedges(&gateway).await, [0.0; 3]);
    // A client error is not hedged.
    let wrong = short().replace("sim-model", "other");
    assert_eq!(client.ask(PATH, wrong).await.status, 404);
    assert_eq!(requests(&sims).iter().sum::<u64>(), 12);
}

#[tokio::test]
async fn the_first_attempt_can_still_win() {
    let sims = fleet(2, |_| {}).await;
    slow(&sims[0], 1000).await;
    slow(&sims[1], LONG).await;
    let gateway = Gateway::start(&format!("{}{}", backends(&sims), hedging("10ms"))).await;
    assert_eq!(gateway.client().await.ask(PATH, short()).await.status, 200);
    at_rest(&sims).await;
    assert_eq!((sims[0].stats().completed(), sims[1].stats().aborted()), (1, 1));
    assert_eq!(hedges(&gateway).await, [0.0, 1.0, 0.0]);
}

#[tokio::test]
async fn only_short_requests_that_are_not_streamed_are_hedged() {
    let sims = fleet(2, |_| {}).await;
    slow(&sims[0], 300).await;
    slow(&sims[1], 300).await;
    let gateway = Gateway::start(&format!("{}{}", backends(&sims), hedging("10ms"))).await;
    let stream = short().replace("\"stream\":false", "\"stream\":true");
    let long = String::from_utf8(chat_of(20_000, false)).unwrap();
    let bodies = [
        stream,
        long.replacen('{', "{\"max_tokens\":16,", 1),
        short().replace("16", "257"),
        chat(false),
    ];
    for (n, body) in bodies.into_iter().enumerate() {
        assert_eq!(gateway.client().await.ask(PATH, body).await.status, 200);
        assert_eq!(requests(&sims).iter().sum::<u64>(), n as u64 + 1);
    }
    assert_eq!(hedges(&gateway).await, [0.0; 3]);
}

#[tokio::test]
async fn an_immediate_failure_is_a_retry() {
    for fault in [Fault::Dead, Fault::Reset, Fault::Refuse, Fault::AbortBeforeContent] {
        let sims = fleet(2, |_| {}).await;
        fault.befall(&sims[0]).await;
        let receiver = Receiver::start().await;
        let more = hedging("60s") + &receiver.hook();
        let gateway = Gateway::start(&format!("{}{more}", backends(&sims))).await;
        let answer = gateway.client().await.ask(PATH, short()).await;
        assert_eq!(answer.status, 200, "{fault:?}");
        assert_eq!(answer.json()["usage"]["completion_tokens"], 16);
        assert_eq!(receiver.one().await["backend_url"], sims[1].url());
        assert_eq!(hedges(&gateway).await, [0.0; 3]);
    }
}

#[tokio::test]
async fn if_both_attempts_fail_the_retry_rules_apply() {
    let timeouts = "timeouts: {first_byte: 1s}\n";
    let sims = fleet(3, |_| {}).await;
    Fault::WedgeBeforeHeaders.befall(&sims[0]).await;
    Fault::Dead.befall(&sims[1]).await;
    let receiver = Receiver::start().await;
    let more = hedging("50ms") + timeouts + &receiver.hook();
    let gateway = Gateway::start(&format!("{}{more}", backends(&sims))).await;
    assert_eq!(gateway.client().await.ask(PATH, short()).await.status, 200);
    assert_eq!(requests(&sims), [1, 1, 1]);
    assert_eq!(receiver.one().await["backend_url"], sims[2].url());
    assert_eq!(hedges(&gateway).await, [0.0, 0.0, 1.0]);

    // No backend is left: the client gets the last response.
    let gateway = Gateway::start(&format!("{}{more}", backends(&sims[..2]))).await;
    let answer = gateway.client().await.ask(PATH, short()).await;
    let expected = Client::connect(sims[1].address).await.ask(PATH, short()).await;
    assert_eq!((answer.status, answer.text()), (500, expected.text()));
    assert_eq!(receiver.wait_for(2).await[1]["status_code"], 500);

    // Without any response it gets an error with the reason.
    Fault::WedgeAfterHeaders.befall(&sims[1]).await;
    let gateway = Gateway::start(&format!("{}{more}", backends(&sims[..2]))).await;
    let answer = gateway.client().await.ask(PATH, short()).await;
    let code = answer.json()["error"]["code"].clone();
    assert_eq!((answer.status, code.as_str()), (504, Some("backend_timeout")));
    at_rest(&sims).await;
    assert_eq!(receiver.wait_for(3).await.len(), 3);
}

#[tokio::test]
async fn a_disconnect_ends_both_attempts() {
    let sims = fleet(2, |_| {}).await;
    slow(&sims[0], LONG).await;
    slow(&sims[1], LONG).await;
    let receiver = Receiver::start().await;
    let more = hedging("10ms") + &receiver.hook();
    let gateway = Gateway::start(&format!("{}{more}", backends(&sims))).await;
    let mut client = gateway.client().await;
    client.post(PATH, short()).await;
    eventually("both are asked", async || requests(&sims) == [1, 1]).await;
    drop(client);
    at_rest(&sims).await;
    let record = receiver.one().await;
    assert_eq!(
        (&record["outcome"], &record["status_code"]),
        (&"client_aborted".into(), &499.into())
    );
    assert_eq!(hedges(&gateway).await, [0.0, 1.0, 0.0]);
}

#[tokio::test]
async fn the_deadline_of_the_request_ends_both_attempts() {
    let sims = fleet(2, |_| {}).await;
    slow(&sims[0], LONG).await;
    slow(&sims[1], LONG).await;
    let more = hedging("10ms") + "timeouts: {total: 1s}\n";
    let gateway = Gateway::start(&format!("{}{more}", backends(&sims))).await;
    let answer = gateway.client().await.ask(PATH, short()).await;
    let code = answer.json()["error"]["code"].clone();
    assert_eq!((answer.status, code.as_str()), (504, Some("request_timeout")));
    assert_eq!(requests(&sims), [1, 1]);
    at_rest(&sims).await;
}

#[tokio::test]
async fn a_long_response_is_passed_on_as_it_arrives() {
    let sims = fleet(2, |b| (b.tokens, b.inter_token_ms) = (3_000_000, 0)).await;
    slow(&sims[0], LONG).await;
    let receiver = Receiver::start().await;
    let more = format!(
        "routing: {{hedge: {{enabled: true, delay: 10ms, max_tokens: 3000000}}}}\n{}",
        receiver.hook()
    );
    let gateway = Gateway::start(&format!("{}{more}", backends(&sims))).await;
    let body = short().replace("16", "3000000");
    let answer = gateway.client().await.ask(PATH, &body).await;
    assert!(answer.whole && answer.body.len() > 5 << 20, "{}", answer.body.len());
    let expected = Client::connect(sims[1].address).await.ask(PATH, &body).await;
    assert_eq!(answer.json()["choices"], expected.json()["choices"]);
    let record = receiver.one().await;
    assert_eq!(
        (&record["completion_tokens"], &record["outcome"]),
        (&3_000_000.into(), &"complete".into())
    );
    at_rest(&sims).await;
}

#[tokio::test]
async fn each_attempt_uses_the_model_name_of_its_backend() {
    let sims = fleet(2, |b| b.models = vec!["own".to_owned()]).await;
    slow(&sims[0], 2000).await;
    slow(&sims[1], 2000).await;
    let more = "models:\n  public:\n    routes:\n      \
                - {backend: b0, model: own, weight: 100}\n      \
                - {backend: b1, model: own, weight: 100}\n";
    let gateway = Gateway::start(&format!("{}{more}{}", backends(&sims), hedging("10ms"))).await;
    let body = short().replace("sim-model", "public");
    let answer = gateway.client().await.ask(PATH, body).await;
    assert_eq!((answer.status, answer.json()["model"].as_str()), (200, Some("public")));
    assert_eq!(requests(&sims), [1, 1]);
}

#[tokio::test]
async fn all_kinds_of_clients_and_bodies_are_served() {
    let sims = fleet(2, |_| {}).await;
    slow(&sims[0], LONG).await;
    slow(&sims[1], LONG).await;
    let gateway = Gateway::start(&format!("{}{}", backends(&sims), hedging("10ms"))).await;
    // HTTP/2: a reset stream ends both attempts.
    let client = http::builder().http2_prior_knowledge().build().unwrap();
    let post = || client.post(gateway.url(PATH)).body(short());
    let waiting = tokio::spawn(post().send());
    eventually("both are asked", async || requests(&sims) == [1, 1]).await;
    waiting.abort();
    at_rest(&sims).await;
    sims[1].change(|b| b.slow_ms = 0);
    let mut asked = requests(&sims);
    let answer = post().send().await.unwrap();
    assert_eq!((answer.status().as_u16(), answer.version()), (200, reqwest::Version::HTTP_2));
    assert!(answer.text().await.unwrap().contains("\"completion_tokens\":16"));
    // A chunked body: its last chunk may be unread when the response arrives.
    let mut client = gateway.client().await;
    let head = format!("POST {PATH} HTTP/1.1\r\nHost: g\r\nTransfer-Encoding: chunked\r\n\r\n");
    let body = format!("{:x}\r\n{}\r\n0\r\n\r\n", short().len(), short());
    for _ in 0..3 {
        client.send((head.clone() + &body).as_bytes()).await;
        assert_eq!(client.answer().await.status, 200);
    }
    asked[1] += 4;
    assert_eq!(requests(&sims)[1], asked[1]);
    // A backend that closes the connection after the response.
    let mut client = gateway.client().await;
    client.post_with(PATH, "Connection: close\r\n", short().as_bytes()).await;
    let answer = client.answer().await;
    assert_eq!((answer.status, answer.header("connection")), (200, Some("close")));
}

#[tokio::test]
async fn a_dead_kept_alive_connection_is_not_a_failure() {
    let sims = fleet(2, |b| b.keep_alive_ms = 50).await;
    let gateway = Gateway::start(&format!("{}{}", backends(&sims), hedging("60s"))).await;
    for _ in 0..3 {
        assert_eq!(gateway.client().await.ask(PATH, short()).await.status, 200);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(requests(&sims), [3, 0]);
}

#[tokio::test]
async fn hedges_use_the_retry_budget() {
    let sims = fleet(2, |_| {}).await;
    slow(&sims[0], 300).await;
    let more = "routing:\n  hedge: {enabled: true, delay: 10ms}\n  \
                retry: {budget: {ratio: 0, min_per_second: 0}}\n";
    let gateway = Gateway::start(&format!("{}{more}", backends(&sims))).await;
    assert_eq!(gateway.client().await.ask(PATH, short()).await.status, 200);
    assert_eq!(requests(&sims), [1, 0]);
    assert_eq!(gateway.metric("llmproxy_retry_budget_exhausted_total").await, 1.0);
    assert_eq!(hedges(&gateway).await, [0.0; 3]);
}
