//! Limits across configuration reloads.

use super::*;

async fn reload(gateway: &Gateway, sim: &Sim, limits: &str, generation: u32) {
    let backends = format!("backends:\n  - url: \"{}\"\n", sim.url());
    gateway.rewrite(&format!("{backends}{KEYS}rate_limit: {limits}\n"));
    gateway.signal("HUP");
    gateway.logs(&format!("configuration {generation} is in force")).await;
}

#[tokio::test]
async fn consumption_is_kept_across_a_reload() {
    let sim = sim().await;
    let limits = |n: u32| format!("{{per_key: {{requests_per_second: 0.001, burst_size: {n}}}}}");
    let gateway = gateway_with(&sim, &limits(2)).await;
    for status in [200, 200, 429] {
        assert_eq!(gateway.ask_as(A).await.status, status);
    }
    reload(&gateway, &sim, &format!("{} # the same", limits(2)), 2).await;
    assert_eq!(refusal(&gateway.ask_as(A).await), too_many_requests());
    assert_eq!(gateway.ask_as(B).await.header("x-ratelimit-limit"), Some("2"));
    reload(&gateway, &sim, &limits(1), 3).await;
    let no = gateway.ask_as(A).await;
    assert_eq!((refusal(&no), no.header("x-ratelimit-limit")), (too_many_requests(), Some("1")));
    reload(&gateway, &sim, "{}", 4).await;
    let answer = gateway.ask_as(A).await;
    assert_eq!((answer.status, answer.header("x-ratelimit-limit")), (200, None));
}

#[tokio::test]
async fn slots_and_the_queue_are_kept_across_a_reload() {
    let sim = sim_with(|b| b.inter_token_ms = FOREVER).await;
    let limits = |slots: u32| {
        format!(
            "{{per_key: {{max_concurrent: {slots}}}, queue: {{max_queue_size: 1, queue_timeout: 1h}}}}"
        )
    };
    let gateway = gateway_with(&sim, &limits(1)).await;
    let stream = open_stream(&gateway, A).await;
    sim.change(|b| b.inter_token_ms = 0);
    let mut second = send_chat(&gateway, A, false).await;
    wait_for_queue(&gateway, 1).await;
    reload(&gateway, &sim, &format!("{} # the same", limits(1)), 2).await;
    assert_eq!(gateway.metric("llmproxy_limit_queue_depth").await, 1.0);
    assert_eq!(refusal(&gateway.ask_as(A).await), no_slot(429), "the queue is as full as before");
    drop(stream);
    assert_eq!(second.answer().await.status, 200);
    wait_for_queue(&gateway, 0).await;

    sim.change(|b| b.inter_token_ms = FOREVER);
    let _first = open_stream(&gateway, A).await;
    reload(&gateway, &sim, &limits(2), 3).await;
    let _second = open_stream(&gateway, A).await;
    let _third = send_chat(&gateway, A, true).await;
    wait_for_queue(&gateway, 1).await;
}

#[tokio::test]
async fn a_reload_changes_the_limits_of_a_key() {
    let sim = sim().await;
    let text = |n: u32| {
        let key = format!("{{key: {A}, limits: {{requests_per_minute: {n}}}}}");
        format!("backends:\n  - url: \"{}\"\nauth: {{}}\napi_keys: [{key}]\n", sim.url())
    };
    let gateway = Gateway::start(&text(2)).await;
    assert_eq!(gateway.ask_as(A).await.header("x-ratelimit-limit"), Some("2"));
    gateway.rewrite(&text(7));
    gateway.signal("HUP");
    gateway.logs("configuration 2 is in force").await;
    assert_eq!(gateway.ask_as(A).await.header("x-ratelimit-limit"), Some("7"));
}

#[tokio::test]
async fn a_reload_that_adds_slots_admits_waiting_requests() {
    let sim = sim_with(|b| (b.inter_token_ms, b.tokens) = (20, 100_000)).await;
    let queue = "queue: {max_queue_size: 10, queue_timeout: 60s}";
    let gateway = gateway_with(&sim, &format!("{{global: {{max_concurrent: 1}}, {queue}}}")).await;
    let _first = open_stream(&gateway, A).await;
    let mut second = send_chat(&gateway, B, true).await;
    wait_for_queue(&gateway, 1).await;
    reload(&gateway, &sim, &format!("{{global: {{max_concurrent: 2}}, {queue}}}"), 2).await;
    assert_eq!(second.head().await.status, 200);
    wait_for_queue(&gateway, 0).await;
}
