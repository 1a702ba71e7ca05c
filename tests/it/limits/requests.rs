//! Request rates: bursts, refusals, and the headers that report them.

use super::*;

#[tokio::test]
async fn requests_per_second_allows_a_burst_of_twice_the_rate() {
    let sim = sim().await;
    let gateway = gateway_with(&sim, "{per_key: {requests_per_second: 2}}").await;
    let start = Instant::now();
    let mut passed = 0;
    for n in 0..16 {
        let answer = gateway.ask_as(A).await;
        assert_eq!(answer.header("x-ratelimit-limit"), Some("4"));
        assert!(n >= 4 || answer.status == 200, "{n}");
        passed += u32::from(answer.status == 200);
    }
    let most = 4.0 + 2.0 * start.elapsed().as_secs_f64();
    assert!(f64::from(passed) <= most, "{passed} of {most}");
}

#[tokio::test]
async fn burst_size_applies_to_each_key_separately() {
    let sim = sim().await;
    // The bucket gains one request in 100 seconds.
    let limits = "{per_key: {requests_per_second: 0.01, burst_size: 3}}";
    let gateway = gateway_with(&sim, limits).await;
    for expected in [2, 1, 0] {
        let answer = gateway.ask_as(A).await;
        assert_eq!((answer.status, requests_left(&answer)), (200, expected));
        assert_eq!(answer.header("x-ratelimit-remaining"), Some(&*expected.to_string()));
        let reset = header_number(&answer, "x-ratelimit-reset");
        assert!((200 - 100 * expected..=300 - 100 * expected).contains(&reset), "{reset}");
        assert_eq!(answer.header("retry-after"), None);
    }
    let no = gateway.ask_as(A).await;
    assert_eq!(refusal(&no), too_many_requests());
    assert!(header_number(&no, "retry-after") <= 100);
    for (name, value) in [
        ("x-ratelimit-limit", "3"),
        ("x-ratelimit-remaining", "0"),
        ("x-ratelimit-limit-requests", "3"),
        ("x-ratelimit-remaining-requests", "0"),
    ] {
        assert_eq!(no.header(name), Some(value), "{name}");
    }
    let reset = no.header("x-ratelimit-reset-requests").unwrap();
    assert!(reset.starts_with("3m") || reset.starts_with("4m") || reset == "5m0s", "{reset}");
    let other = gateway.ask_as(B).await;
    assert_eq!((other.status, requests_left(&other)), (200, 2));
    assert_eq!(sim.stats().requests(), 4, "a refused request does not reach a backend");
}

#[tokio::test]
async fn a_refusal_names_its_rule_in_response_metrics_and_records() {
    let sim = sim().await;
    let receiver = Receiver::start().await;
    let more =
        format!("{KEYS}rate_limit: {{per_key: {{requests_per_minute: 1}}}}\n{}", receiver.hook());
    let gateway = Gateway::before(&[sim.url()], &more).await;
    assert_eq!(gateway.ask_as(A).await.status, 200);
    let rule = "per_key.requests_per_minute";
    assert_eq!(refusals_by(&gateway, rule).await, 0.0);
    let no = gateway.ask_as(A).await;
    assert_eq!(refusal(&no), too_many_requests());
    let message = no.json()["error"]["message"].as_str().unwrap().to_owned();
    let said = format!("Rate limit reached: {rule} allows 1. Try again in ");
    assert!(message.starts_with(&said), "{message}");
    assert_eq!(no.json()["error"]["param"], Value::Null);
    assert_eq!(refusals_by(&gateway, rule).await, 1.0);
    // Records arrive in any order.
    let records = receiver.wait_for(2).await;
    let record = records.iter().find(|r| r["status_code"] == 429).unwrap();
    assert_eq!((&record["outcome"], &record["usage_source"]), (&"rejected".into(), &"none".into()));
    assert_eq!(record["user_id"], "user_001");
    let name = format!(
        "llmproxy_requests_total{{backend=\"\",path=\"{PATH}\",status=\"429\",stream=\"false\"}}"
    );
    assert_eq!(gateway.metric(&name).await, 1.0);
}

#[tokio::test]
async fn a_refusal_follows_the_simple_error_format() {
    let sim = sim().await;
    let more = format!(
        "{KEYS}rate_limit: {{per_key: {{requests_per_minute: 1}}}}\nserver: {{error_format: simple}}\n"
    );
    let gateway = Gateway::before(&[sim.url()], &more).await;
    assert_eq!(gateway.ask_as(A).await.status, 200);
    let no = gateway.ask_as(A).await;
    assert_eq!(
        (no.status, requests_left(&no), header_number(&no, "retry-after") > 0),
        (429, 0, true)
    );
    let body = no.json();
    assert_eq!(body["code"], 429);
    assert!(body["error"].as_str().unwrap().contains("per_key.requests_per_minute"), "{body}");
}

#[tokio::test]
async fn a_refused_request_consumes_nothing_of_other_rules() {
    let sim = sim().await;
    let limits = "{global: {requests_per_minute: 10}, per_key: {requests_per_minute: 1}}";
    let gateway = gateway_with(&sim, limits).await;
    // Only `global` applies to this key.
    let first = gateway.ask_as(FREE).await;
    assert_eq!((first.header("x-ratelimit-limit"), requests_left(&first)), (Some("10"), 9));
    assert_eq!(gateway.ask_as(A).await.status, 200);
    for _ in 0..5 {
        assert_eq!(refusal(&gateway.ask_as(A).await), too_many_requests());
    }
    let answer = gateway.ask_as(FREE).await;
    assert!(requests_left(&answer) >= 7, "{} after three that passed", requests_left(&answer));
}

#[tokio::test]
async fn an_invalid_request_consumes_nothing_and_a_model_list_counts_as_a_request() {
    let sim = sim().await;
    let text = format!(
        "backends: [{{url: \"{}\", models: [sim-model]}}]\n{KEYS}rate_limit: {{per_key: {{requests_per_second: 0.001, burst_size: 2, tokens_per_minute: 100000, max_concurrent: 1}}}}\n",
        sim.url()
    );
    let gateway = Gateway::start(&text).await;
    let mut client = gateway.client().await;
    for (body, status) in
        [(r#"{"model":"unknown","messages":[]}"#, 404), ("not json", 400), ("{}", 400)]
    {
        assert_eq!(ask(&mut client, A, body).await.status, status, "{body}");
    }
    let answer = ask(&mut client, A, &chat(false)).await;
    assert_eq!((answer.status, requests_left(&answer)), (200, 1));
    let list = format!("GET /v1/models HTTP/1.1\r\nHost: g\r\n{}\r\n", bearer(A));
    client.send(list.as_bytes()).await;
    let models = client.answer().await;
    assert_eq!((models.status, requests_left(&models)), (200, 0));
    assert_eq!(models.header("x-ratelimit-limit-tokens"), None, "a model list consumes no tokens");
    client.send(list.as_bytes()).await;
    assert_eq!(refusal(&client.answer().await), too_many_requests());
    assert_eq!(refusal(&ask(&mut client, A, &chat(false)).await), too_many_requests());
    for path in ["/health", "/ready", "/metrics"] {
        assert_eq!(client.get(path).await.header("x-ratelimit-limit"), None, "{path}");
    }
}

#[tokio::test]
async fn client_addresses_come_from_trusted_proxies_only() {
    let sim = sim().await;
    for rule in ["per_ip", "per_key", "per_user"] {
        let more = format!(
            "server: {{trusted_proxies: [\"127.0.0.1\"]}}\nrate_limit: {{{rule}: {{requests_per_second: 0.001}}}}\n"
        );
        let gateway = Gateway::before(&[sim.url()], &more).await;
        for (address, status) in [
            ("2001:db8:1:2::1", 200),
            ("2001:db8:1:2::2", 429),
            ("2001:db8:1:2:ffff::", 429),
            ("2001:db8:1:3::1", 200),
            ("192.0.2.1", 200),
            ("::ffff:192.0.2.1", 429),
            ("192.0.2.2", 200),
        ] {
            let answer = gateway.ask_with(&format!("X-Forwarded-For: {address}\r\n")).await;
            assert_eq!(answer.status, status, "{rule} {address}");
        }
        // The header of an untrusted peer is ignored.
        let trusting = more.replace("127.0.0.1", "192.0.2.77");
        let gateway = Gateway::before(&[sim.url()], &trusting).await;
        for (address, status) in [("192.0.2.1", 200), ("192.0.2.2", 429)] {
            let answer = gateway.ask_with(&format!("X-Forwarded-For: {address}\r\n")).await;
            assert_eq!(answer.status, status, "{rule} {address}");
        }
    }
}

#[tokio::test]
async fn limit_headers_of_a_backend_pass_unless_the_gateway_has_limits() {
    let said = [
        ("x-ratelimit-limit", "7"),
        ("x-ratelimit-remaining-requests", "77"),
        ("x-ratelimit-remaining-tokens", "777"),
        ("anthropic-ratelimit-requests-remaining", "7777"),
    ];
    let answer = move |_: Bytes| async move { (axum::response::AppendHeaders(said), "{}") };
    let url = serve(Router::new().route(PATH, post(answer))).await;
    let more = format!("{KEYS}rate_limit: {{per_user: {{requests_per_minute: 5}}}}\n");
    for (more, key) in [("", A), (KEYS, A), (&more.replace("per_user", "per_team"), A)] {
        let gateway = Gateway::before(std::slice::from_ref(&url), more).await;
        let answer = gateway.ask_as(key).await;
        for (name, value) in said {
            assert_eq!(answer.header(name), Some(value), "{more}");
        }
    }
    let gateway = Gateway::before(&[url], &more).await;
    let answer = gateway.ask_as(A).await;
    assert_eq!(
        (answer.status, answer.header("x-ratelimit-limit"), requests_left(&answer)),
        (200, Some("5"), 4)
    );
    assert_eq!(answer.header("x-ratelimit-remaining-tokens"), None);
    assert_eq!(answer.header("anthropic-ratelimit-requests-remaining"), None);
}

#[tokio::test]
async fn a_limit_per_model_requires_a_model() {
    let sim = sim().await;
    let gateway = gateway_with(&sim, "{models: {\"sim-*\": {requests_per_minute: 5}}}").await;
    let mut client = gateway.client().await;
    let nameless = ask(&mut client, A, r#"{"messages":[]}"#).await;
    assert_eq!(
        (nameless.status, nameless.json()["error"]["code"].as_str()),
        (400, Some("missing_model"))
    );
    assert_eq!(requests_left(&gateway.ask_as(A).await), 4);
}

#[tokio::test]
async fn limit_headers_can_be_switched_off() {
    let sim = sim().await;
    let gateway = gateway_with(&sim, "{headers: false, per_key: {requests_per_minute: 1}}").await;
    let passed = gateway.ask_as(A).await;
    let refused = gateway.ask_as(A).await;
    assert_eq!((passed.status, refusal(&refused)), (200, too_many_requests()));
    for answer in [passed, refused] {
        assert!(!answer.headers.iter().any(|(name, _)| name.contains("ratelimit")), "{answer:?}");
    }
}
