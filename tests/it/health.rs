//! Active health checks.

use crate::support::{Gateway, chat, eventually, free_address, sim, sim_with};

const PROBES: &str = "health_check: {interval: 30ms, timeout: 2s, path: /health, unhealthy_threshold: 3, healthy_threshold: 2}\n";
const PATH: &str = "/v1/chat/completions";

#[tokio::test]
async fn a_backend_is_down_after_the_failure_threshold() {
    let (a, b) = (sim().await, sim().await);
    let gateway = Gateway::before(&[a.url(), b.url()], PROBES).await;
    let up = format!("llmproxy_backend_up{{backend=\"{}\"}}", a.url());
    assert_eq!(gateway.metric(&up).await, 1.0);

    let before = a.stats().probes();
    a.change(|s| s.health = 503);
    eventually("the backend is taken out", async || gateway.metric(&up).await == 0.0).await;
    let probes = a.stats().probes() - before;
    // Three, plus any until this test noticed.
    assert!((3..15).contains(&probes), "taken out after {probes} probes");
    let served = a.stats().requests();
    for _ in 0..6 {
        assert_eq!(gateway.client().await.ask(PATH, chat(false)).await.status, 200);
    }
    assert_eq!(a.stats().requests(), served, "a backend that is down gets nothing");

    let before = a.stats().probes();
    a.change(|s| s.health = 200);
    eventually("the backend is back", async || gateway.metric(&up).await == 1.0).await;
    let probes = a.stats().probes() - before;
    assert!((2..15).contains(&probes), "back after {probes} probes");
    eventually("it is used again", async || {
        gateway.client().await.ask(PATH, chat(false)).await;
        a.stats().requests() > served
    })
    .await;
    gateway.logs("is down").await;
    gateway.logs("is up").await;
}

#[tokio::test]
async fn the_first_probe_decides_immediately() {
    let sick = sim_with(|b| b.health = 503).await;
    let well = sim().await;
    // The second probe would be an hour later.
    let probes = "health_check: {interval: 1h, unhealthy_threshold: 3}\n";
    let gateway = Gateway::before(&[sick.url(), well.url()], probes).await;
    for _ in 0..4 {
        assert_eq!(gateway.client().await.ask(PATH, chat(false)).await.status, 200);
    }
    assert_eq!((sick.stats().requests(), well.stats().requests()), (0, 4));
    assert_eq!(sick.stats().probes(), 1);
}

#[tokio::test]
async fn without_a_healthy_backend_requests_are_refused_and_ready_is_503() {
    let sim = sim_with(|b| b.health = 500).await;
    let gateway = Gateway::before(&[sim.url()], "health_check: {interval: 7s}\n").await;
    let mut client = gateway.client().await;
    let answer = client.ask(PATH, chat(true)).await;
    assert_eq!(answer.status, 503);
    assert_eq!(answer.header("retry-after"), Some("7"));
    assert_eq!(answer.json()["error"]["code"], "no_healthy_backend");
    let mut client = gateway.client().await;
    assert_eq!(client.get("/ready").await.status, 503);
    assert_eq!(client.get("/health").await.status, 200, "alive all the same");
}

#[tokio::test]
async fn probes_can_be_switched_off_for_a_backend() {
    let (well, hosted) = (sim().await, sim_with(|s| s.health = 404).await);
    let gateway = Gateway::start(&format!(
        "backends:\n  - url: \"{}\"\n  - {{url: \"{}\", health_check: false}}\n{PROBES}",
        well.url(),
        hosted.url()
    ))
    .await;
    eventually("several rounds", async || well.stats().probes() > 3).await;
    let up = format!("llmproxy_backend_up{{backend=\"{}\"}}", hosted.url());
    assert_eq!((gateway.metric(&up).await, hosted.stats().probes()), (1.0, 0));
    for _ in 0..4 {
        assert_eq!(gateway.client().await.ask(PATH, chat(false)).await.status, 200);
    }
    assert_eq!((well.stats().requests(), hosted.stats().requests()), (2, 2));
}

#[tokio::test]
async fn readiness_requires_a_healthy_backend_for_every_model() {
    let a = sim().await;
    let b = sim_with(|s| s.health = 503).await;
    let gateway = Gateway::start(&format!(
        "backends:\n  - {{url: \"{}\", models: [a]}}\n  - {{url: \"{}\", models: [b]}}\n{PROBES}",
        a.url(),
        b.url()
    ))
    .await;
    assert_eq!(gateway.client().await.get("/ready").await.status, 503);
    b.change(|s| s.health = 200);
    eventually("ready", async || gateway.client().await.get("/ready").await.status == 200).await;
}

#[tokio::test]
async fn readiness_can_require_any_healthy_backend() {
    let a = sim().await;
    let b = sim_with(|s| s.health = 503).await;
    let gateway = Gateway::start(&format!(
        "backends:\n  - {{url: \"{}\", models: [a]}}\n  - {{url: \"{}\", models: [b]}}\n{PROBES}\
         server: {{ready: any_backend}}\n",
        a.url(),
        b.url()
    ))
    .await;
    assert_eq!(gateway.client().await.get("/ready").await.status, 200);
    a.change(|s| s.health = 503);
    eventually("not ready", async || gateway.client().await.get("/ready").await.status == 503)
        .await;
}

#[tokio::test]
async fn probes_use_the_configured_request() {
    let sim = sim().await;
    // The simulated server returns 404 for this path, and 405 for GET on the other.
    for (check, healthy) in [
        ("{path: /nowhere, expected_status: 404}", true),
        ("{path: /nowhere}", false),
        ("{path: /v1/completions, method: GET, expected_status: 405}", true),
        ("{path: /v1/completions, method: POST, expected_status: 405}", false),
    ] {
        let gateway = Gateway::before(&[sim.url()], &format!("health_check: {check}\n")).await;
        let ready = gateway.client().await.get("/ready").await.status;
        assert_eq!(ready, if healthy { 200 } else { 503 }, "{check}");
    }
}

#[tokio::test]
async fn a_hanging_probe_fails_and_delays_nothing() {
    let deaf = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let deaf = format!("http://{}", deaf.local_addr().unwrap());
    let sim = sim().await;
    let gateway = Gateway::before(
        &[deaf.clone(), sim.url()],
        "health_check: {interval: 20ms, timeout: 50ms, unhealthy_threshold: 1}\n",
    )
    .await;
    let up = format!("llmproxy_backend_up{{backend=\"{deaf}\"}}");
    eventually("taken out", async || gateway.metric(&up).await == 0.0).await;
    let gone = format!("http://{}", free_address());
    drop(gateway);
    let gateway = Gateway::before(&[gone.clone(), sim.url()], PROBES).await;
    let up = format!("llmproxy_backend_up{{backend=\"{gone}\"}}");
    assert_eq!(gateway.metric(&up).await, 0.0);
}
