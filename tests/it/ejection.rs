//! Ejection of failing backends, and the cases without ejection.

use std::time::Instant;

use llmproxy::sim::{Fail, Sim};

use crate::support::{
    Gateway, chat,
    client::Response,
    eventually,
    faults::{Fault, fleet, heal, urls},
};

const PATH: &str = "/v1/chat/completions";

async fn gateway(sims: &[Sim], circuit: &str, more: &str) -> Gateway {
    Gateway::before(&urls(sims), &format!("routing: {{circuit: {circuit}}}\n{more}")).await
}

async fn ask(gateway: &Gateway, stream: bool) -> Response {
    gateway.client().await.ask(PATH, chat(stream)).await
}

/// A trusted proxy header identifies the callers.
const PROXY: &str = "server: {trusted_proxies: [127.0.0.1/32]}\n";

async fn ask_as(gateway: &Gateway, caller: u32) -> Response {
    let mut client = gateway.client().await;
    let header = format!("X-Forwarded-For: 198.51.100.{caller}\r\n");
    client.post_with(PATH, &header, chat(true).as_bytes()).await;
    client.answer().await
}

fn requests(sims: &[Sim]) -> Vec<u64> {
    sims.iter().map(|sim| sim.stats().requests()).collect()
}

#[tokio::test]
async fn a_failing_backend_is_ejected() {
    // Failures that a client does not notice, and those that it does.
    for fault in [
        Fault::Dead,
        Fault::Reset,
        Fault::DieBeforeContent,
        Fault::DieMidStream,
        Fault::ErrorMidStream,
        Fault::AbortMidStream,
    ] {
        let sims = fleet(2, |_| {}).await;
        let gateway = gateway(&sims, "{consecutive_failures: 3, cooldown: 1h}", "").await;
        fault.befall(&sims[0]).await;
        for _ in 0..20 {
            assert_eq!(ask(&gateway, true).await.status, 200, "{fault:?}");
        }
        assert_eq!(requests(&sims)[0], 3, "{fault:?}");
    }
}

#[tokio::test]
async fn a_silent_backend_is_ejected() {
    let sims = fleet(2, |_| {}).await;
    let more = "timeouts: {first_token: 300ms}\n";
    let gateway = gateway(&sims, "{consecutive_failures: 2, cooldown: 1h}", more).await;
    Fault::WedgeBeforeContent.befall(&sims[0]).await;
    for _ in 0..10 {
        assert_eq!(ask(&gateway, true).await.status, 200);
    }
    assert_eq!(requests(&sims)[0], 2);
}

#[tokio::test]
async fn a_recovered_backend_is_used_again() {
    let sims = fleet(2, |_| {}).await;
    let gateway = gateway(&sims, "{consecutive_failures: 2, cooldown: 300ms}", "").await;
    Fault::Dead.befall(&sims[0]).await;
    eventually("a probe request has failed", async || {
        assert_eq!(ask(&gateway, false).await.status, 200);
        sims[0].stats().requests() >= 5
    })
    .await;
    heal(&sims[0]);
    eventually("it is used again", async || {
        assert_eq!(ask(&gateway, false).await.status, 200);
        sims[0].stats().completed() >= 10
    })
    .await;
}

#[tokio::test]
async fn if_all_backends_are_ejected_the_client_gets_retry_after() {
    for fault in [Fault::Dead, Fault::Refuse] {
        let sims = fleet(2, |_| {}).await;
        let circuit = "{consecutive_failures: 2, cooldown: 100s, max_ejected: 100%}";
        let gateway = gateway(&sims, circuit, PROXY).await;
        for sim in &sims {
            fault.befall(sim).await;
        }
        for caller in 0..4 {
            assert!(ask_as(&gateway, caller).await.status >= 500);
        }
        let before = requests(&sims);
        for stream in [true, false] {
            let answer = ask(&gateway, stream).await;
            let code = answer.json()["error"]["code"].as_str().map(str::to_owned);
            assert_eq!((answer.status, code.as_deref()), (503, Some("no_healthy_backend")));
            let seconds: u64 = answer.header("retry-after").unwrap().parse().unwrap();
            assert!((60..=100).contains(&seconds), "{seconds}");
        }
        assert_eq!(requests(&sims), before, "no backend was tried");
    }
}

#[tokio::test]
async fn the_share_of_ejected_backends_is_limited() {
    let sims = fleet(2, |b| b.fail = Fail::Error).await;
    let circuit = "{consecutive_failures: 1, cooldown: 1h, max_ejected: 50%}";
    let gateway = gateway(&sims, circuit, PROXY).await;
    for caller in 0..10 {
        assert_eq!(ask_as(&gateway, caller).await.status, 500, "a real answer");
    }
    let requests = requests(&sims);
    let (least, most) = (requests.iter().min().unwrap(), requests.iter().max().unwrap());
    assert_eq!((*least, *most), (2, 10), "of one caller alone nothing is concluded");
}

#[tokio::test]
async fn client_errors_eject_no_backend() {
    let sims = fleet(2, |_| {}).await;
    let gateway = gateway(&sims, "{consecutive_failures: 1, cooldown: 1h}", "").await;
    sims[0].change(|b| b.fail = Fail::NoModel);
    for _ in 0..20 {
        assert!([200, 404].contains(&ask(&gateway, true).await.status));
    }
    assert_eq!(requests(&sims), [10, 10]);
    for _ in 0..20 {
        let bad = r#"{"model":"sim-model"}"#;
        let status = gateway.client().await.ask(PATH, bad).await.status;
        assert!([400, 404].contains(&status));
    }
    assert_eq!(requests(&sims), [20, 20]);
}

#[tokio::test]
async fn a_backend_is_ejected_per_model() {
    let sims = fleet(2, |b| b.models.push("broken".to_owned())).await;
    let gateway = gateway(&sims, "{consecutive_failures: 2, cooldown: 1h}", "").await;
    sims[0].change(|b| (b.fail, b.fail_model) = (Fail::Error, "broken".to_owned()));
    for _ in 0..10 {
        let body = chat(true).replace("sim-model", "broken");
        assert_eq!(gateway.client().await.ask(PATH, body).await.status, 200);
    }
    for _ in 0..10 {
        assert_eq!(ask(&gateway, true).await.status, 200);
    }
    assert_eq!(sims[0].stats().requests_for("broken"), 2);
    let served = [&sims[0], &sims[1]].map(|sim| sim.stats().requests_for("sim-model"));
    assert!(served[0] >= 3 && served[0] + served[1] == 10, "{served:?}");
}

#[tokio::test]
async fn a_full_backend_cools_down_briefly() {
    let sims = fleet(2, |_| {}).await;
    let gateway = gateway(&sims, "{consecutive_failures: 1, cooldown: 1h}", "").await;
    for fault in [Fault::Busy, Fault::Backlog, Fault::Paused, Fault::Scaling] {
        let before = sims[0].stats().requests();
        fault.befall(&sims[0]).await;
        let start = Instant::now();
        for _ in 0..20 {
            assert_eq!(ask(&gateway, true).await.status, 200, "{fault:?}");
        }
        let asked = sims[0].stats().requests() - before;
        assert!(asked <= 1 + start.elapsed().as_secs(), "{fault:?}: {asked}");
        heal(&sims[0]);
        // Its circuit stays closed.
        let before = sims[0].stats().completed();
        eventually("it is used again", async || {
            assert_eq!(ask(&gateway, true).await.status, 200);
            sims[0].stats().completed() > before
        })
        .await;
    }
}

#[tokio::test]
async fn a_request_waits_if_all_backends_are_full() {
    let sims = fleet(2, |b| (b.fail, b.fail_first) = (Fail::Busy, 1)).await;
    let more = "routing: {retry: {initial_wait: 10ms, max_wait: 5s, max_retries: 2}}\n";
    let gateway = Gateway::before(&urls(&sims), more).await;
    assert_eq!(ask(&gateway, true).await.status, 200);
    assert_eq!(requests(&sims).iter().sum::<u64>(), 3);
    // All other backends are ejected, so the failed one is tried again.
    for sim in &sims {
        sim.change(|b| (b.fail, b.retry_after, b.fail_first) = (Fail::TooMany, 3600, 1));
    }
    let more = "routing: {retry: {initial_wait: 10ms, max_wait: 100ms, max_retries: 2}}\n";
    let gateway = Gateway::before(&urls(&sims), more).await;
    let answer = ask(&gateway, true).await;
    assert_eq!((answer.status, answer.header("retry-after")), (429, Some("3600")));
    let answer = ask(&gateway, true).await;
    assert_eq!(answer.status, 503, "no backend is available");
    assert!(answer.header("retry-after").is_some());
}

#[tokio::test]
async fn a_single_backend_is_ejected_only_if_configured() {
    for (spare, status) in [("", 500), (", spare_last: true", 500), (", spare_last: false", 503)] {
        let sims = fleet(1, |b| b.fail = Fail::Error).await;
        let circuit = format!("{{enabled: true, consecutive_failures: 2, cooldown: 1h{spare}}}");
        let gateway = gateway(&sims, &circuit, "").await;
        for _ in 0..2 {
            assert_eq!(ask(&gateway, false).await.status, 500, "{spare}");
        }
        for _ in 0..3 {
            assert_eq!(ask(&gateway, false).await.status, status, "{spare}");
        }
        assert_eq!(requests(&sims)[0], if status == 503 { 2 } else { 5 }, "{spare}");
    }
}
