//! Attribution of failures: requests that fail at every engine, and engines that fail every request.

use llmproxy::sim::{Fail, Sim};

use crate::support::{
    Gateway, chat,
    client::Response,
    faults::{Fault, fleet, heal, urls},
};

const PATH: &str = "/v1/chat/completions";

/// A trusted proxy header identifies the callers.
const PROXY: &str = "server: {trusted_proxies: [127.0.0.1/32]}\n";

async fn gateway(sims: &[Sim], circuit: &str) -> Gateway {
    let routing = format!("routing: {{circuit: {circuit}}}\n");
    Gateway::before(&urls(sims), &format!("{PROXY}{routing}")).await
}

async fn ask_as(gateway: &Gateway, caller: u32, body: &str) -> Response {
    let mut client = gateway.client().await;
    let header = format!("X-Forwarded-For: 198.51.100.{caller}\r\n");
    client.post_with(PATH, &header, body.as_bytes()).await;
    client.answer().await
}

fn requests(sims: &[Sim]) -> Vec<u64> {
    sims.iter().map(|sim| sim.stats().requests()).collect()
}

/// Backends that fail requests containing `poison`.
async fn poisoned(n: usize, fault: Fault) -> Vec<Sim> {
    let sims = fleet(n, |b| b.fail_word = "poison".to_owned()).await;
    for sim in &sims {
        fault.befall(sim).await;
    }
    sims
}

#[tokio::test]
async fn a_request_that_fails_everywhere_ejects_no_backend_for_others() {
    for (fault, status) in [
        (Fault::Dead, 500),
        (Fault::ErrorFirst, 200),
        (Fault::ErrorAfterRole, 200),
        (Fault::Reset, 502),
        (Fault::DieBeforeContent, 502),
        (Fault::AbortBeforeContent, 200),
        (Fault::ErrorMidStream, 200),
        (Fault::DieMidStream, 200),
    ] {
        for backends in [2, 3] {
            let sims = poisoned(backends, fault).await;
            let gateway = gateway(&sims, "{consecutive_failures: 5, cooldown: 1h}").await;
            let poison = chat(true).replace("Hello", "poison");
            for n in 0..40 {
                let answer = ask_as(&gateway, 1, &poison).await;
                // A caller whose stream breaks midway may be excluded itself.
                let barred = fault.is_after_content() && answer.status == 503;
                assert!(
                    barred || answer.status == status || answer.status == 502,
                    "{fault:?}: {}",
                    answer.status
                );
                let good = ask_as(&gateway, 2 + n % 3, &chat(true)).await;
                assert_eq!(good.status, 200, "{fault:?}, request {n}");
                assert!(good.text().ends_with("data: [DONE]\n\n"), "{fault:?}");
            }
            let gauge = gateway.client().await.get("/metrics").await;
            let opened =
                gauge.text().lines().filter(|l| l.starts_with("llmproxy_backend_circuit_open{"));
            if !fault.is_after_content() {
                assert!(
                    opened.clone().all(|line| line.ends_with(" 0")),
                    "{fault:?}: {:?}",
                    opened.collect::<Vec<_>>()
                );
            }
        }
    }
}

#[tokio::test]
async fn failures_of_one_caller_exclude_only_that_caller() {
    // No other backend is tried, so there is nothing to compare.
    let sims = poisoned(2, Fault::Dead).await;
    let routing = "routing: {retry: {enabled: false}, circuit: {consecutive_failures: 3, cooldown: 1h, max_ejected: 100%}}\n";
    let gateway = Gateway::before(&urls(&sims), &format!("{PROXY}{routing}")).await;
    let poison = chat(false).replace("Hello", "poison");
    for _ in 0..6 {
        assert_eq!(ask_as(&gateway, 1, &poison).await.status, 500);
    }
    let before = requests(&sims);
    assert_eq!(ask_as(&gateway, 1, &poison).await.status, 503);
    assert_eq!(requests(&sims), before, "no engine is asked");
    for caller in 2..5 {
        for _ in 0..4 {
            assert_eq!(ask_as(&gateway, caller, &chat(false)).await.status, 200);
        }
    }
}

#[tokio::test]
async fn a_backend_that_fails_where_another_succeeds_is_ejected_for_the_caller() {
    // An engine without a projector fails on images that the other one can read.
    let sims = fleet(2, |b| b.fail_word = "poison".to_owned()).await;
    Fault::Dead.befall(&sims[0]).await;
    let gateway = gateway(&sims, "{consecutive_failures: 3, cooldown: 1h}").await;
    let poison = chat(true).replace("Hello", "poison");
    for _ in 0..20 {
        assert_eq!(ask_as(&gateway, 1, &poison).await.status, 200);
    }
    assert_eq!(requests(&sims), [3, 20]);
    for _ in 0..20 {
        assert_eq!(ask_as(&gateway, 2, &chat(true)).await.status, 200);
    }
    assert_eq!(requests(&sims), [13, 30], "others take turns as before");
}

#[tokio::test]
async fn a_failure_that_another_backend_calls_a_client_error_is_not_counted() {
    let sims = poisoned(2, Fault::Dead).await;
    sims[1].change(|b| (b.fail, b.error_status) = (Fail::Error, 422));
    let gateway =
        gateway(&sims, "{consecutive_failures: 2, cooldown: 1h, max_ejected: 100%}").await;
    let poison = chat(false).replace("Hello", "poison");
    for _ in 0..20 {
        assert_eq!(ask_as(&gateway, 1, &poison).await.status, 422);
    }
    assert_eq!(requests(&sims)[0], 20, "it is asked first each time, as ever");
}

#[tokio::test]
async fn a_broken_backend_is_ejected_for_all_callers() {
    for fault in [Fault::Dead, Fault::ErrorFirst, Fault::Reset, Fault::DieMidStream] {
        let sims = fleet(2, |_| {}).await;
        fault.befall(&sims[0]).await;
        let gateway = gateway(&sims, "{consecutive_failures: 3, cooldown: 1h}").await;
        // Three callers, who use it in turn.
        for n in 0..12 {
            let answer = ask_as(&gateway, 1 + n % 3, &chat(true)).await;
            assert_eq!(answer.status, 200, "{fault:?}");
        }
        let before = requests(&sims)[0];
        assert!((3..=6).contains(&before), "{fault:?}: {before}");
        for caller in 10..30 {
            assert_eq!(ask_as(&gateway, caller, &chat(true)).await.status, 200, "{fault:?}");
        }
        assert_eq!(requests(&sims)[0], before, "{fault:?}: strangers are spared it");
    }
}

#[tokio::test]
async fn an_open_circuit_closes_despite_failing_requests() {
    let sims = fleet(2, |_| {}).await;
    Fault::Dead.befall(&sims[0]).await;
    let gateway = gateway(&sims, "{consecutive_failures: 3, cooldown: 300ms, window: 1h}").await;
    for n in 0..12 {
        ask_as(&gateway, 1 + n % 3, &chat(true)).await;
    }
    heal(&sims[0]);
    for sim in &sims {
        sim.change(|b| (b.fail, b.fail_word) = (Fail::Error, "poison".to_owned()));
    }
    let poison = chat(true).replace("Hello", "poison");
    let completed = sims[0].stats().completed();
    crate::support::eventually("it is used again", async || {
        ask_as(&gateway, 1, &poison).await;
        ask_as(&gateway, 9, &chat(true)).await;
        sims[0].stats().completed() > completed + 3
    })
    .await;
}

#[tokio::test]
async fn the_only_backend_of_an_alias_is_never_ejected() {
    let sims = fleet(2, |_| {}).await;
    let list: String = sims
        .iter()
        .enumerate()
        .map(|(n, sim)| format!("  - {{name: b{n}, url: \"{}\"}}\n", sim.url()))
        .collect();
    let models = "routing: {circuit: {consecutive_failures: 2, cooldown: 1h}}\nmodels:\n  \
                  wide: {routes: [{backend: b0, model: sim-model}, {backend: b1, model: sim-model}]}\n  \
                  narrow: {routes: [{backend: b0, model: sim-model}]}\n";
    let gateway = Gateway::start(&format!("backends:\n{list}{PROXY}{models}")).await;
    let of = |model: &str| chat(true).replace("sim-model", model);
    sims[0].change(|b| (b.fail, b.fail_first) = (Fail::Error, 12));
    for n in 0..24 {
        assert_eq!(ask_as(&gateway, n % 4, &of("wide")).await.status, 200);
    }
    let asked = requests(&sims)[0];
    assert!(asked < 12, "it is ejected from `wide`: {asked}");
    for fault in [Fail::Error, Fail::Busy] {
        sims[0].change(|b| (b.fail, b.fail_first) = (fault, 0));
        let refused = ask_as(&gateway, 1, &of("narrow")).await;
        assert_eq!(
            refused.json()["error"]["code"],
            if fault == Fail::Error { 500 } else { 503 },
            "its own words"
        );
        heal(&sims[0]);
        assert_eq!(ask_as(&gateway, 1, &of("narrow")).await.status, 200);
    }
}

#[tokio::test]
async fn at_least_half_of_a_fleet_stays_in_use() {
    let sims = fleet(4, |b| b.fail = Fail::Error).await;
    let gateway = gateway(&sims, "{consecutive_failures: 2, cooldown: 1h}").await;
    for caller in 0..40 {
        let answer = ask_as(&gateway, caller, &chat(false)).await;
        assert_eq!(answer.status, 500, "a real answer");
    }
    let open = sims.iter().filter(|sim| sim.stats().requests() > 10).count();
    assert_eq!(open, 2, "{:?}", requests(&sims));
}
