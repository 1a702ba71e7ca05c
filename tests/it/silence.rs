//! Engines that stop: they accept no more connections and are silent on the existing ones.

use std::time::{Duration, Instant};

use llmproxy::sim::{Fail, Sim};

use crate::support::{
    Gateway, chat, eventually,
    faults::{fleet, urls},
    http,
};

const PATH: &str = "/v1/chat/completions";

const PROBES: &str =
    "health_check: {interval: 100ms, timeout: 1s, unhealthy_threshold: 2, healthy_threshold: 1}\n";

async fn busy(sims: &[Sim], requests: u64) {
    eventually("the requests are with the backends", async || {
        sims.iter().map(|sim| sim.stats().open()).sum::<u64>() >= requests
    })
    .await;
}

#[tokio::test]
async fn requests_of_a_stopped_engine_are_retried() {
    // The progress of the response: nothing, the head, the event without content.
    for fail in [Fail::Wedge, Fail::WedgeAfterHeaders, Fail::WedgeAfterRole] {
        for probed in [true, false] {
            let sims = fleet(2, |b| b.fail = fail).await;
            sims[1].change(|b| b.fail = Fail::None);
            let more = if probed { PROBES.to_owned() } else { String::new() };
            let gateway = Gateway::before(&urls(&sims), &more).await;
            let mut waiting = Vec::new();
            for n in 0..8 {
                let mut client = gateway.client().await;
                client.post(PATH, chat(n % 4 < 2)).await;
                waiting.push(client);
            }
            busy(&sims[..1], 4).await;
            sims[0].retire().await.unwrap();
            if !probed {
                // Later requests notice it.
                eventually("connections are refused", async || {
                    gateway.client().await.ask(PATH, chat(true)).await;
                    sims[0].stats().open() == 0
                })
                .await;
            }
            for client in &mut waiting {
                let answer = client.answer().await;
                assert_eq!(answer.status, 200, "{fail:?}, probed: {probed}");
                assert!(answer.whole, "{fail:?}");
            }
        }
    }
}

#[tokio::test]
async fn a_request_without_another_backend_is_not_aborted_early() {
    let sims = fleet(1, |b| b.fail = Fail::Wedge).await;
    let gateway = Gateway::before(&urls(&sims), PROBES).await;
    let mut client = gateway.client().await;
    client.post(PATH, chat(true)).await;
    busy(&sims, 1).await;
    let start = Instant::now();
    sims[0].retire().await.unwrap();
    // It ends, but not before the server has had time to finish. (30 s; the client of these tests waits
    // for at most 20 at a time.)
    let early = tokio::time::timeout(Duration::from_secs(5), client.head()).await;
    assert!(early.is_err(), "{:?} after {:?}", early.map(|a| a.status), start.elapsed());
}

#[tokio::test]
async fn a_stream_with_content_is_left_to_its_backend() {
    let sims = fleet(2, |b| (b.tokens, b.inter_token_ms) = (200, 10)).await;
    let gateway = Gateway::before(&urls(&sims), PROBES).await;
    let mut clients = Vec::new();
    for _ in 0..2 {
        let mut client = gateway.client().await;
        client.post(PATH, chat(true)).await;
        client.head().await;
        client.chunk().await.unwrap();
        clients.push(client);
    }
    // The engine drains: it closes its listener and continues its requests.
    sims[0].drain().await.unwrap();
    eventually("the probes have noticed", async || {
        let health = gateway.client().await.get("/metrics").await;
        health.text().lines().any(|l| l.starts_with("llmproxy_backend_up{") && l.ends_with(" 0"))
    })
    .await;
    for client in &mut clients {
        client.answer_rest().await;
    }
    eventually("both streams were finished", async || {
        sims.iter().all(|sim| sim.stats().completed() == 1)
    })
    .await;
}

#[tokio::test]
async fn every_probe_opens_a_connection() {
    let sims = fleet(1, |_| {}).await;
    let gateway = Gateway::before(&urls(&sims), PROBES).await;
    eventually("it was probed", async || sims[0].stats().probes() >= 5).await;
    let stats = sims[0].stats();
    assert!(stats.connections() >= stats.probes(), "{} {}", stats.connections(), stats.probes());
    drop(gateway);
    let direct = http::builder().build().unwrap();
    assert!(direct.get(format!("{}/health", sims[0].url())).send().await.is_ok());
}
