//! Usage records.

use crate::support::{Gateway, Receiver, chat, eventually, free_address, sim, sim_with};

const PATH: &str = "/v1/chat/completions";

#[tokio::test]
async fn a_record_has_the_seeds_fields_and_more() {
    let sim = sim().await;
    let receiver = Receiver::start().await;
    let gateway = Gateway::before(&[sim.url()], &receiver.hook()).await;
    let mut client = gateway.client().await;
    let headers = "X-API-Key: sk-prod-0123456789\r\n";
    client.post_with(PATH, headers, chat(true).as_bytes()).await;
    let answer = client.answer().await;
    let record = receiver.one().await;
    assert_eq!(record["request_id"], answer.header("x-request-id").unwrap());
    assert_eq!(record["user_id"], "");
    assert!(record["record_id"].as_str().unwrap().starts_with("rec_"));
    assert_eq!(record["path"], PATH);
    assert_eq!(record["api_key"], "sk-p***6789");
    assert_eq!(record["model"], "sim-model");
    assert_eq!(record["prompt_tokens"], 9);
    assert_eq!(record["completion_tokens"], 16);
    assert_eq!(record["total_tokens"], 25);
    assert_eq!(record["is_stream"], true);
    assert_eq!(record["endpoint"], PATH);
    assert_eq!(record["backend_url"], sim.url());
    assert_eq!(record["method"], "POST");
    assert_eq!(record["status_code"], 200);
    assert!(record["latency_ms"].is_u64() && record["ttft_ms"].is_u64());
    assert_eq!(record["outcome"], "complete");
    assert_eq!(record["usage_source"], "final");
    assert_eq!(record["usage"]["total_tokens"], 25);
    let timestamp: jiff::Timestamp = record["timestamp"].as_str().unwrap().parse().unwrap();
    assert!(jiff::Timestamp::now().duration_since(timestamp).as_secs() < 60);
    assert_eq!(receiver.headers()["content-type"], "application/json");
}

#[tokio::test]
async fn every_kind_of_request_is_counted() {
    let sim = sim().await;
    let receiver = Receiver::start().await;
    let gateway = Gateway::before(&[sim.url()], &receiver.hook()).await;
    let mut client = gateway.client().await;
    let asks = [
        (PATH, r#"{"model":"sim-model","messages":[],"max_tokens":3}"#, (1, 3)),
        (PATH, r#"{"model":"sim-model","messages":[],"max_tokens":3,"stream":true}"#, (1, 3)),
        (
            PATH,
            r#"{"model":"sim-model","messages":[],"max_tokens":3,"stream":true,"stream_options":{"include_usage":true}}"#,
            (1, 3),
        ),
        (
            "/v1/completions",
            r#"{"model":"sim-model","prompt":"abcdef","max_tokens":2,"stream":true}"#,
            (3, 2),
        ),
        ("/v1/completions", r#"{"model":"sim-model","prompt":"abcdef","max_tokens":2}"#, (3, 2)),
        ("/v1/embeddings", r#"{"model":"sim-model","input":"abcdefghij"}"#, (4, 0)),
    ];
    for (n, (path, body, (prompt, completion))) in asks.iter().enumerate() {
        assert_eq!(client.ask(path, body).await.status, 200, "{body}");
        let record = receiver.wait_for(n + 1).await.pop().unwrap();
        let counts = (
            record["prompt_tokens"].as_u64().unwrap(),
            record["completion_tokens"].as_u64().unwrap(),
        );
        assert_eq!(counts, (*prompt, *completion), "{path} {body}");
        assert_eq!(record["usage_source"], "final");
    }
}

#[tokio::test]
async fn a_stream_that_is_left_is_counted_to_the_token() {
    let sim = sim_with(|b| (b.inter_token_ms, b.tokens) = (20, 1000)).await;
    let receiver = Receiver::start().await;
    let gateway = Gateway::before(&[sim.url()], &receiver.hook()).await;
    let mut client = gateway.client().await;
    client.post(PATH, chat(true)).await;
    client.head().await;
    let mut text = String::new();
    while text.matches("\"content\":\"").count() < 5 {
        text.push_str(std::str::from_utf8(&client.chunk().await.unwrap()).unwrap());
    }
    assert!(!text.contains("usage"), "what was added is not shown");
    drop(client);
    let record = receiver.one().await;
    assert_eq!(record["outcome"], "client_aborted");
    assert_eq!(record["usage_source"], "partial");
    let tokens = record["completion_tokens"].as_u64().unwrap();
    // The role event counts none; some tokens were on their way when the client left.
    assert!((4..100).contains(&tokens), "{tokens}");
    assert_eq!(record["prompt_tokens"], 9);
}

#[tokio::test]
async fn refusals_are_recorded() {
    let sim = sim().await;
    let receiver = Receiver::start().await;
    let backends = format!("backends:\n  - {{url: \"{}\", models: [sim-model]}}\n", sim.url());
    let gateway = Gateway::start(&format!("{backends}{}", receiver.hook())).await;
    let mut client = gateway.client().await;
    client.ask(PATH, "not json").await;
    client.ask(PATH, r#"{"model":"unknown","messages":[]}"#).await;
    client.ask(PATH, r#"{"model":"sim-model"}"#).await;
    client.get("/v1/models").await;
    let records = receiver.wait_for(3).await;
    let seen: Vec<_> = records
        .iter()
        .map(|r| (r["status_code"].as_u64().unwrap(), r["outcome"].as_str().unwrap()))
        .collect();
    assert!(seen.iter().all(|(_, outcome)| *outcome == "rejected"), "{seen:?}");
    let mut statuses: Vec<_> = seen.iter().map(|(status, _)| *status).collect();
    statuses.sort_unstable();
    assert_eq!(statuses, [400, 400, 404]);
    assert!(records.iter().all(|r| r["usage"].is_null() && r["usage_source"] == "none"));
}

#[tokio::test]
async fn injection_can_be_changed_for_each_backend() {
    for (setting, asked) in [
        ("off", None),
        ("final", Some(r#"{"include_usage":true}"#)),
        ("continuous", Some(r#"{"include_usage":true,"continuous_usage_stats":true}"#)),
    ] {
        let sim = sim().await;
        let receiver = Receiver::start().await;
        let gateway = Gateway::start(&format!(
            "backends:\n  - {{url: \"{}\", stream_usage: {setting}}}\n{}",
            sim.url(),
            receiver.hook()
        ))
        .await;
        let answer = gateway.client().await.ask(PATH, chat(true)).await;
        assert!(!answer.text().contains("usage"), "{setting}");
        let body: serde_json::Value =
            serde_json::from_slice(&sim.stats().last().unwrap().body).unwrap();
        assert_eq!(
            body.get("stream_options").map(ToString::to_string).as_deref(),
            asked,
            "{setting}"
        );
        let source = if asked.is_some() { "final" } else { "none" };
        assert_eq!(receiver.one().await["usage_source"], source, "{setting}");
    }
}

#[tokio::test]
async fn backends_of_one_pool_may_be_asked_differently() {
    let sims = [sim().await, sim().await, sim().await];
    let settings = ["off", "final", "continuous"];
    let list: String = sims
        .iter()
        .zip(settings)
        .map(|(s, setting)| format!("  - {{url: \"{}\", stream_usage: {setting}}}\n", s.url()))
        .collect();
    let gateway = Gateway::start(&format!("backends:\n{list}")).await;
    for _ in 0..3 {
        let answer = gateway.client().await.ask(PATH, chat(true)).await;
        assert!(answer.text().ends_with("data: [DONE]\n\n") && !answer.text().contains("usage"));
    }
    let bodies: Vec<_> =
        sims.iter().map(|s| String::from_utf8(s.stats().last().unwrap().body).unwrap()).collect();
    assert_eq!(bodies[0], chat(true));
    assert!(bodies[1].contains("include_usage") && !bodies[1].contains("continuous"));
    assert!(bodies[2].contains("continuous_usage_stats"));
}

#[tokio::test]
async fn a_webhook_that_fails_is_tried_again_and_holds_no_request_up() {
    let sim = sim().await;
    let receiver = Receiver::start().await;
    receiver.refuse(2);
    let more = format!(
        "usage: {{spool: {{enabled: false}}}}\n{}  retry: 2\n  headers: {{X-Token: \"secret-token\"}}\n",
        receiver.hook()
    );
    let gateway = Gateway::before(&[sim.url()], &more).await;
    assert_eq!(gateway.client().await.ask(PATH, chat(false)).await.status, 200);
    receiver.one().await;
    assert_eq!(receiver.attempts(), 3);
    assert_eq!(receiver.headers()["x-token"], "secret-token");
    eventually("counted once", async || {
        gateway.metric("llmproxy_webhook_success_total").await == 1.0
    })
    .await;

    receiver.refuse(3);
    let answer = gateway.client().await.ask(PATH, chat(false)).await;
    eventually("given up", async || gateway.metric("llmproxy_webhook_failure_total").await == 1.0)
        .await;
    assert_eq!(receiver.attempts(), 6);
    let id = answer.header("x-request-id").unwrap();
    let told = format!(
        "usage record of request {id} given up after 3 attempts: reporter usage_hook: answered 500"
    );
    gateway.logs(&told).await;
    assert_eq!(gateway.metric("llmproxy_usage_records_lost_total{reason=\"given_up\"}").await, 1.0);
    assert!(!gateway.log().contains("secret-token"));
}

#[tokio::test]
async fn a_webhook_that_is_away_loses_records_beyond_the_queue_and_says_so() {
    let sim = sim().await;
    // Accepts connections and never answers.
    let deaf = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let more = format!(
        "usage: {{spool: {{enabled: false}}}}\nusage_hook: {{url: \"http://{}/\", timeout: 1h, queue_size: 5}}\n",
        deaf.local_addr().unwrap()
    );
    let gateway = Gateway::before(&[sim.url()], &more).await;
    for _ in 0..8 {
        assert_eq!(gateway.client().await.ask(PATH, chat(false)).await.status, 200);
    }
    // One is being sent and holds its place until it is delivered.
    eventually("three lost", async || {
        gateway.metric("llmproxy_usage_records_lost_total{reason=\"queue_full\"}").await == 3.0
    })
    .await;
    eventually("five wait", async || gateway.metric("llmproxy_webhook_queue_depth").await == 5.0)
        .await;
    gateway.logs("lost: the queue is full").await;
}

#[tokio::test]
async fn a_webhook_that_cannot_be_reached_is_told_without_its_secrets() {
    let sim = sim().await;
    let address = free_address();
    let more = format!(
        "usage: {{spool: {{enabled: false}}}}\nusage_hook: {{url: \"http://{address}/?token=hidden\", retry: 0}}\n"
    );
    let gateway = Gateway::before(&[sim.url()], &more).await;
    assert_eq!(gateway.client().await.ask(PATH, chat(false)).await.status, 200);
    gateway.logs("given up after 1 attempts: reporter usage_hook: cannot be reached").await;
    assert!(!gateway.log().contains("hidden"), "{}", gateway.log());
}

#[tokio::test]
async fn the_key_can_be_sent_plain_or_not_at_all() {
    for (form, shown) in [("plain", "sk-prod-0123456789"), ("none", "")] {
        let sim = sim().await;
        let receiver = Receiver::start().await;
        let gateway =
            Gateway::before(&[sim.url()], &format!("{}  caller_key: {form}\n", receiver.hook()))
                .await;
        let mut client = gateway.client().await;
        client
            .post_with(PATH, "Authorization: bearer sk-prod-0123456789\r\n", chat(false).as_bytes())
            .await;
        client.answer().await;
        assert_eq!(receiver.one().await["api_key"], shown);
    }
}
