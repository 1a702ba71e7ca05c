//! Token limits: estimates, metered use, and what failed requests consume.

use super::*;

#[tokio::test]
async fn an_aborted_stream_consumes_the_tokens_metered_so_far() {
    const CAP: u64 = 2000;
    // The backend stops after half of the tokens and keeps the connection open.
    let sim = sim_with(|b| (b.fail, b.tokens) = (Fail::Stall, 600)).await;
    let receiver = Receiver::start().await;
    let more =
        format!("{KEYS}rate_limit: {{per_key: {{tokens_per_minute: {CAP}}}}}\n{}", receiver.hook());
    let gateway = Gateway::before(&[sim.url()], &more).await;
    let start = Instant::now();
    let mut client = send_chat(&gateway, A, true).await;
    let head = client.head().await;
    assert_eq!(head.header("x-ratelimit-limit-tokens"), Some("2000"));
    // The estimate is reserved while the request runs.
    assert!(tokens_left(&head) < CAP - 200, "{}", tokens_left(&head));
    // The first event has the role and an empty content.
    let mut tokens = 0;
    while tokens < 1 + 300 {
        let text = client.chunk().await.unwrap();
        tokens += memchr::memmem::find_iter(&text, b"\"content\":\"").count();
    }
    drop(client);
    let record = receiver.one().await;
    assert_eq!(
        (&record["outcome"], &record["usage_source"]),
        (&"client_aborted".into(), &"partial".into())
    );
    let metered = record["total_tokens"].as_u64().unwrap();
    assert_eq!(metered, 9 + 300);
    sim.change(|b| b.fail = Fail::None);
    let small = chat(false).replacen('{', r#"{"max_tokens":1,"#, 1);
    let mut client = gateway.client().await;
    let answer = ask(&mut client, A, &small).await;
    let refill = (start.elapsed().as_secs_f64() * CAP as f64 / 60.0).ceil() as u64;
    assert_eq!(answer.status, 200);
    let left = tokens_left(&answer);
    let bounds = CAP - metered - 100..=CAP - metered + refill;
    assert!(bounds.contains(&left), "{left} is not in {bounds:?}");
    // The aborted stream gives no ratio for the completion.
    eventually("estimates are compared", async || {
        let count = "llmproxy_token_estimate_ratio_count";
        gateway.metric(&format!("{count}{{kind=\"prompt\"}}")).await == 2.0
            && gateway.metric(&format!("{count}{{kind=\"completion\"}}")).await == 1.0
    })
    .await;
}

#[tokio::test]
async fn a_failed_request_consumes_no_tokens() {
    let sim = sim().await;
    let (dead, _socket) = unreachable();
    let text = format!(
        "backends:\n  - {{url: \"{}\", models: [sim-model]}}\n  - {{url: \"{dead}\", models: [dead-model]}}\n{KEYS}rate_limit: {{per_key: {{tokens_per_minute: 1000}}}}\n",
        sim.url(),
    );
    let gateway = Gateway::start(&text).await;
    let mut client = gateway.client().await;
    let dead = chat(false).replace("sim-model", "dead-model");
    let mut seen = Vec::new();
    for _ in 0..6 {
        let answer = ask(&mut gateway.client().await, A, &dead).await;
        assert_eq!(answer.status, 502);
        seen.push(tokens_left(&answer));
        for (fail, status) in [(Fail::Error, 500), (Fail::TooMany, 429), (Fail::Busy, 503)] {
            sim.change(|b| b.fail = fail);
            let answer = ask(&mut client, A, &chat(false)).await;
            assert_eq!(answer.status, status);
            seen.push(tokens_left(&answer));
        }
    }
    // Each request found the whole limit less its own estimate.
    assert!((600..=800).contains(&seen[0]), "{seen:?}");
    assert!(seen.iter().all(|left| left.abs_diff(seen[0]) <= 1), "{seen:?}");
}

#[tokio::test]
async fn a_used_up_token_limit_refuses_and_says_how_long_to_wait() {
    for (limit, allows, cost) in [
        ("tokens_per_minute", 20, 25),
        ("input_tokens_per_minute", 5, 9),
        ("output_tokens_per_minute", 10, 16),
    ] {
        let sim = sim().await;
        let gateway = gateway_with(&sim, &format!("{{per_key: {{{limit}: {allows}}}}}")).await;
        let mut client = gateway.client().await;
        // A request larger than the limit passes if the bucket is full.
        assert_eq!(ask(&mut client, A, &chat(false)).await.status, 200, "{limit}");
        let no = ask(&mut client, A, &chat(false)).await;
        assert_eq!(refusal(&no), error(429, "tokens", "rate_limit_exceeded"));
        assert_eq!(no.header("x-ratelimit-limit-tokens"), Some(&*allows.to_string()));
        assert_eq!(tokens_left(&no), 0);
        // The wait follows from the tokens used, not from the estimate.
        let wait = header_number(&no, "retry-after");
        assert!(wait <= 60 * cost / allows, "{limit}: {wait}");
        assert_eq!(refusals_by(&gateway, &format!("per_key.{limit}")).await, 1.0);
        assert_eq!(ask(&mut client, B, &chat(false)).await.status, 200, "{limit}");
    }
}

#[tokio::test]
async fn a_stream_without_usage_consumes_counted_tokens() {
    let sim = sim_with(|b| (b.inter_token_ms, b.tokens) = (1, 100_000)).await;
    let backends = format!("backends:\n  - {{url: \"{}\", stream_usage: off}}\n", sim.url());
    let rules = "rate_limit: {global: {tokens_per_minute: 10000}}\n";
    let gateway = Gateway::start(&format!("{backends}{rules}")).await;
    let start = Instant::now();
    let mut client = send_chat(&gateway, A, true).await;
    client.head().await;
    let mut text = String::new();
    while text.matches("\"content\":\"").count() < 600 {
        text.push_str(std::str::from_utf8(&client.chunk().await.unwrap()).unwrap());
    }
    drop(client);
    let refilled = |since: Instant| 10_000.0 / 60.0 * since.elapsed().as_secs_f64() + 1.0;
    eventually("the streamed tokens are consumed", async || {
        let small = r#"{"model":"sim-model","messages":[],"max_tokens":1}"#;
        let left = tokens_left(&gateway.client().await.ask(PATH, small).await) as f64;
        left <= 10_000.0 - 600.0 + refilled(start)
    })
    .await;
}
