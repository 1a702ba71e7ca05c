//! Limits of a single key, from the configuration or a script.

use super::*;

/// Ten requests with this key: so many of them pass, which is what its minute has, or all.
async fn expect_passes(gateway: &Gateway, key: &str, expected: u32, what: &str) {
    let start = Instant::now();
    let mut passed = 0;
    for _ in 0..10 {
        let answer = gateway.ask_as(key).await;
        if answer.status != 200 {
            assert_eq!(refusal(&answer), too_many_requests(), "{key} {what}");
        }
        passed += u32::from(answer.status == 200);
    }
    let most = f64::from(expected) * (1.0 + start.elapsed().as_secs_f64() / 60.0);
    assert!(passed >= expected && f64::from(passed) <= most, "{key} {what}: {passed}");
}

#[tokio::test]
async fn limits_of_a_key_take_precedence_over_the_rules() {
    let sim = sim().await;
    let keys = "auth: {}
api_keys:
  - {key: sk-plain-000001}
  - {key: sk-more-0000001, limits: {requests_per_minute: 5}}
  - {key: sk-less-0000001, limits: {requests_per_minute: 1}}
  - {key: sk-none-0000001, limits: {requests_per_minute: 0}}
  - {key: sk-model-000001, limits: {requests_per_minute: 0, models: {\"sim-*\": {requests_per_minute: 4}}}}
";
    let cases = |rule| {
        [
            ("sk-plain-000001", rule),
            ("sk-more-0000001", 5),
            ("sk-less-0000001", 1),
            ("sk-none-0000001", 10),
            ("sk-model-000001", 4),
        ]
    };
    let more = format!("{keys}rate_limit: {{per_key: {{requests_per_minute: 2}}}}\n");
    let gateway = Gateway::before(&[sim.url()], &more).await;
    for (key, expected) in cases(2) {
        expect_passes(&gateway, key, expected, "with a section").await;
    }
    assert_eq!(gateway.ask_as("sk-none-0000001").await.header("x-ratelimit-limit"), None);
    assert!(refusals_by(&gateway, "per_key_model.requests_per_minute").await >= 1.0);
    let gateway = Gateway::before(&[sim.url()], keys).await;
    for (key, expected) in cases(10) {
        expect_passes(&gateway, key, expected, "without a section").await;
    }
    let off = "rate_limit: {enabled: false, per_key: {requests_per_minute: 2}}\n";
    let gateway = Gateway::before(&[sim.url()], &format!("{keys}{off}")).await;
    for (key, _) in cases(10) {
        expect_passes(&gateway, key, 10, "switched off").await;
    }
    assert_eq!(gateway.ask_as("sk-less-0000001").await.header("x-ratelimit-limit"), None);
}

#[tokio::test]
async fn limits_from_a_script_take_precedence_over_the_rules() {
    let sim = sim().await;
    let script = "
local limits = {
  ['sk-more'] = {requests_per_minute = 5},
  ['sk-less'] = {requests_per_minute = '1'},
  ['sk-none'] = {requests_per_minute = 0},
  ['sk-bad'] = {requests_per_day = 1},
  ['sk-worse'] = {requests_per_minute = -1},
}
return {allow = true, metadata = {key_id = api_key}, limits = limits[api_key]}";
    let text = with_script(&sim.url(), script);
    let rule = "rate_limit: {per_key: {requests_per_minute: 2}}\n";
    let gateway = Gateway::start(&format!("{text}{rule}")).await;
    for (key, expected) in [("sk-plain", 2), ("sk-more", 5), ("sk-less", 1), ("sk-none", 10)] {
        expect_passes(&gateway, key, expected, "with a section").await;
    }
    let before = sim.stats().requests();
    for key in ["sk-bad", "sk-worse"] {
        assert_eq!(gateway.ask_as(key).await.status, 403, "{key}");
    }
    assert_eq!(sim.stats().requests(), before);
    gateway.logs("`requests_per_day` is not a known limit").await;
    let gateway = Gateway::start(&text).await;
    expect_passes(&gateway, "sk-less", 1, "without a section").await;
    let gateway = Gateway::start(&format!("{text}rate_limit: {{enabled: false}}\n")).await;
    expect_passes(&gateway, "sk-less", 10, "switched off").await;
}

#[tokio::test]
async fn a_global_limit_of_one_key_does_not_use_up_the_shared_one() {
    let sim = sim().await;
    let keys = KEYS
        .replace("limits: {requests_per_minute: 0}", "limits: {global: {requests_per_minute: 2}}");
    let rules = "rate_limit: {global: {requests_per_minute: 1000}}\n";
    let gateway = Gateway::before(&[sim.url()], &format!("{keys}{rules}")).await;
    for expected in [200, 200, 429] {
        assert_eq!(gateway.ask_as(FREE).await.status, expected);
    }
    assert_eq!(header_number(&gateway.ask_as(A).await, "x-ratelimit-limit-requests"), 1000);
    assert!(requests_left(&gateway.ask_as(A).await) >= 998);
}
