//! The queue for slots: which requests wait, and which are refused.

use super::*;

#[tokio::test]
async fn a_request_without_a_slot_waits_unless_the_queue_is_full() {
    for (set, status) in [("", 429), (", status: 503", 503)] {
        let sim = sim_with(|b| b.inter_token_ms = FOREVER).await;
        let limits = format!(
            "{{per_model: {{max_concurrent: 1}}, queue: {{max_queue_size: 1, queue_timeout: 1h{set}}}}}"
        );
        let gateway = gateway_with(&sim, &limits).await;
        let stream = open_stream(&gateway, A).await;
        sim.change(|b| b.inter_token_ms = 0);
        let mut second = send_chat(&gateway, A, false).await;
        wait_for_queue(&gateway, 1).await;
        // A request that waits would wait for an hour.
        assert_eq!(refusal(&gateway.ask_as(A).await), no_slot(status));
        assert_eq!(refusals_by(&gateway, "per_model.max_concurrent").await, 1.0);
        assert_eq!(sim.stats().requests(), 1);
        drop(stream);
        assert_eq!(second.answer().await.status, 200);
        wait_for_queue(&gateway, 0).await;
        let waits = "llmproxy_limit_queue_wait_seconds_count{result=\"admitted\"}";
        assert_eq!(gateway.metric(waits).await, 1.0);
    }
}

#[tokio::test]
async fn a_request_is_refused_after_queue_timeout() {
    for (set, status) in [("", 429), (", status: 503", 503)] {
        let sim = sim_with(|b| b.inter_token_ms = FOREVER).await;
        let limits = format!(
            "{{global: {{max_concurrent: 1}}, queue: {{max_queue_size: 1, queue_timeout: 1s{set}}}}}"
        );
        let gateway = gateway_with(&sim, &limits).await;
        let _stream = open_stream(&gateway, A).await;
        let start = Instant::now();
        let no = gateway.ask_as(B).await;
        assert_eq!(refusal(&no), no_slot(status));
        assert!(start.elapsed() >= Duration::from_secs(1), "{:?}", start.elapsed());
        let waits = "llmproxy_limit_queue_wait_seconds_count{result=\"timeout\"}";
        assert_eq!(gateway.metric(waits).await, 1.0);
        assert_eq!(refusals_by(&gateway, "global.max_concurrent").await, 1.0);
        assert_eq!(sim.stats().requests(), 1);
    }
}

#[tokio::test]
async fn a_request_over_a_rate_does_not_wait() {
    let sim = sim_with(|b| b.inter_token_ms = FOREVER).await;
    let limits = "{per_key: {requests_per_minute: 1, max_concurrent: 1}, queue: {max_queue_size: 9, queue_timeout: 1h}}";
    let gateway = gateway_with(&sim, limits).await;
    let _stream = open_stream(&gateway, A).await;
    assert_eq!(refusal(&gateway.ask_as(A).await), too_many_requests());
}

#[tokio::test]
async fn a_waiting_request_consumes_nothing() {
    let sim = sim_with(|b| b.inter_token_ms = FOREVER).await;
    let limits = "{global: {requests_per_second: 0.001, burst_size: 3}, per_key: {max_concurrent: 1}, queue: {max_queue_size: 9, queue_timeout: 1h}}";
    let gateway = gateway_with(&sim, limits).await;
    let stream = open_stream(&gateway, A).await;
    sim.change(|b| b.inter_token_ms = 0);
    let mut second = send_chat(&gateway, A, false).await;
    wait_for_queue(&gateway, 1).await;
    let other = gateway.ask_as(B).await;
    assert_eq!((other.status, requests_left(&other)), (200, 1));
    drop(stream);
    let answer = second.answer().await;
    assert_eq!((answer.status, requests_left(&answer)), (200, 0));
}

#[tokio::test]
async fn a_waiting_request_over_its_rate_does_not_hold_up_others() {
    let sim = sim_with(|b| (b.inter_token_ms, b.tokens) = (20, 100_000)).await;
    let rules = "{global: {max_concurrent: 1}, per_key: {requests_per_minute: 1}, \
                 queue: {max_queue_size: 10, queue_timeout: 60s}}";
    let gateway = gateway_with(&sim, rules).await;
    let first = open_stream(&gateway, A).await;
    let mut second = send_chat(&gateway, B, true).await;
    wait_for_queue(&gateway, 1).await;
    assert_eq!(refusal(&gateway.ask_as(A).await), too_many_requests());
    // The rate admits one of the two requests of key B. The other one lets other keys pass.
    let _third = send_chat(&gateway, B, true).await;
    let mut fourth = send_chat(&gateway, SAME_USER_AS_A, true).await;
    wait_for_queue(&gateway, 3).await;
    drop(first);
    assert_eq!(second.head().await.status, 200);
    drop(second);
    assert_eq!(fourth.head().await.status, 200);
    wait_for_queue(&gateway, 1).await;
}

fn chunked(body: &[u8]) -> Vec<u8> {
    let head = format!(
        "POST {PATH} HTTP/1.1\r\nHost: g\r\n{}Transfer-Encoding: chunked\r\n\r\n",
        bearer(A)
    );
    let mut bytes = head.into_bytes();
    bytes.extend_from_slice(format!("{:x}\r\n", body.len()).as_bytes());
    bytes.extend_from_slice(body);
    bytes.extend_from_slice(b"\r\n0\r\n\r\n");
    bytes
}

#[tokio::test]
async fn a_client_that_disconnects_leaves_the_queue() {
    let sim = sim_with(|b| b.inter_token_ms = FOREVER).await;
    let receiver = Receiver::start().await;
    let more = format!(
        "{KEYS}rate_limit: {{global: {{max_concurrent: 1}}, queue: {{max_queue_size: 9, queue_timeout: 1h}}}}\n{}",
        receiver.hook()
    );
    let gateway = Gateway::before(&[sim.url()], &more).await;
    let stream = open_stream(&gateway, A).await;
    let ways: [(&str, Vec<u8>); 3] = [
        ("a length", Vec::new()),
        ("chunks", chunked(chat(false).as_bytes())),
        ("HTTP/2", Vec::new()),
    ];
    let count = ways.len();
    for (way, bytes) in ways {
        if way == "HTTP/2" {
            let h2 = http::builder().http2_prior_knowledge().build().unwrap();
            let request = h2.post(gateway.url(PATH)).bearer_auth(A).body(chat(false)).send();
            let task = tokio::spawn(request);
            wait_for_queue(&gateway, 1).await;
            task.abort();
        } else {
            let mut client = gateway.client().await;
            if bytes.is_empty() {
                client.post_with(PATH, &bearer(A), chat(false).as_bytes()).await;
            } else {
                client.send(&bytes).await;
            }
            wait_for_queue(&gateway, 1).await;
            drop(client);
        }
        eventually(&format!("a request with {way} has left the queue"), async || {
            gateway.metric("llmproxy_limit_queue_depth").await == 0.0
        })
        .await;
    }
    let left = "llmproxy_limit_queue_wait_seconds_count{result=\"left\"}";
    eventually("all waits are counted", async || gateway.metric(left).await == count as f64).await;
    for record in receiver.wait_for(count).await {
        assert_eq!(
            (&record["outcome"], &record["status_code"]),
            (&"client_aborted".into(), &499.into())
        );
    }
    sim.change(|b| b.inter_token_ms = 0);
    drop(stream);
    eventually("a free slot", async || gateway.ask_as(A).await.status == 200).await;
    assert_eq!(sim.stats().requests(), 2, "no request that waited reached the backend");
    assert!(!gateway.log().contains("ERROR") && !gateway.log().contains("WARN"));
}

#[tokio::test]
async fn a_body_that_waited_in_the_queue_arrives_unchanged() {
    let sim = sim_with(|b| b.inter_token_ms = FOREVER).await;
    let limits = "{global: {max_concurrent: 1}, queue: {max_queue_size: 9, queue_timeout: 1h}}";
    let gateway = gateway_with(&sim, limits).await;
    for size in [500, 70_000, 300_000] {
        for way in ["a length", "chunks", "HTTP/2"] {
            let body = chat_of(size, false);
            sim.change(|b| b.inter_token_ms = FOREVER);
            let stream = take_slot(&gateway).await;
            sim.change(|b| b.inter_token_ms = 0);
            if way == "HTTP/2" {
                let h2 = http::builder().http2_prior_knowledge().build().unwrap();
                let request = h2.post(gateway.url(PATH)).bearer_auth(A).body(body.clone()).send();
                let task = tokio::spawn(request);
                wait_for_queue(&gateway, 1).await;
                drop(stream);
                assert_eq!(task.await.unwrap().unwrap().status(), 200, "{way} {size}");
            } else {
                let mut client = gateway.client().await;
                if way == "chunks" {
                    client.send(&chunked(&body)).await;
                } else {
                    client.post_with(PATH, &bearer(A), &body).await;
                }
                wait_for_queue(&gateway, 1).await;
                drop(stream);
                assert_eq!(client.answer().await.status, 200, "{way} {size}");
            }
            assert!(sim.stats().last().unwrap().body == body, "{way} {size}: the body was changed");
        }
    }
}
