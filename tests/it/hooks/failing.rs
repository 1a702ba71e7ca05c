//! Scripts that fail, at every stage, and what becomes of the request.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use serde_json::json;

use super::{Backend, chat, configuration, hello, hello_stream};
use crate::support::Gateway;

/// Scripts that must not do any harm.
const HOSTILE: [(&str, &str); 9] = [
    ("index", "return nothing.at.all"),
    ("loop", "while true do end"),
    ("grow", "local s = 'x' while true do s = s .. s end"),
    ("pattern", "return ('a'):rep(30000):find('a*a*a*a*a*b')"),
    ("deep", "local function f() return f() + 1 end return f()"),
    ("strange", "return function() end"),
    ("number", "return 7"),
    ("cycle", "local t = {} t.t = t return {body = t, headers = t, metadata = t, stop = t}"),
    ("raise", "error({code = 1})"),
];

const STAGES: [&str; 10] = [
    "on_request",
    "on_auth",
    "rate_limit",
    "on_route",
    "on_upstream_request",
    "on_response",
    "on_stream_event",
    "on_error",
    "on_usage",
    "on_complete",
];

fn with(url: &str, stage: &str, script: &str, on_error: &str) -> String {
    let script = format!("{script}\n").replace('\n', "\n      ");
    format!(
        "backends: [{{url: \"{url}\"}}]\nhooks:\n  {stage}:\n    timeout: 20ms\n    on_error: {on_error}\n    script: |\n      {script}\n"
    )
}

#[tokio::test]
async fn an_open_stage_goes_on_without_its_script() {
    let backend = Backend::start().await;
    for stage in STAGES {
        let mut text = format!("backends: [{{url: \"{}\"}}]\nhooks:\n  {stage}:\n", backend.url);
        for (_, script) in HOSTILE {
            text += &format!("    - {{timeout: 20ms, on_error: open, script: \"{script}\"}}\n");
        }
        let gateway = Gateway::start(&text).await;
        let plain = chat(&gateway, &hello()).await;
        assert_eq!(plain.status, 200, "{stage}: {}", plain.text());
        assert_eq!(plain.json()["choices"][0]["message"]["content"], "Hello you", "{stage}");
        let stream = chat(&gateway, &hello_stream()).await;
        assert_eq!(stream.status, 200, "{stage}");
        assert!(stream.text().ends_with("data: [DONE]\n\n"), "{stage}: {}", stream.text());
    }
}

#[tokio::test]
async fn a_closed_stage_refuses() {
    let backend = Backend::start().await;
    for stage in &STAGES[..5] {
        for (name, script) in &HOSTILE[..2] {
            let gateway = Gateway::start(&with(&backend.url, stage, script, "closed")).await;
            let answer = chat(&gateway, &hello()).await;
            assert_eq!(answer.status, 500, "{stage} {name}: {}", answer.text());
            assert_eq!(answer.json()["error"]["code"], "hook_failed");
            gateway.logs(&format!("hook {stage}: hooks.{stage}")).await;
        }
    }
    let gateway = Gateway::start(&with(&backend.url, "on_response", HOSTILE[0].1, "closed")).await;
    let answer = chat(&gateway, &hello()).await;
    assert_eq!(
        (answer.status, answer.json()["error"]["code"].clone()),
        (500, json!("hook_failed"))
    );
    let gateway =
        Gateway::start(&with(&backend.url, "on_stream_event", HOSTILE[0].1, "closed")).await;
    let answer = chat(&gateway, &hello_stream()).await;
    assert!(answer.whole && answer.text().contains("\"error\""), "{}", answer.text());
    assert!(!answer.text().contains("Hel"), "{}", answer.text());
}

#[tokio::test]
async fn on_auth_is_closed_unless_it_says_otherwise() {
    let backend = Backend::start().await;
    let gateway =
        Gateway::start(&configuration(&backend.url, "", &[("on_auth", "return nothing.x")])).await;
    assert_eq!(chat(&gateway, &hello()).await.status, 500);
    gateway.logs("hooks.on_auth:1: attempt to index a nil value (global 'nothing')").await;
}

#[tokio::test]
async fn a_stream_is_not_slowed_for_longer_than_its_budget() {
    let backend = Backend::start().await;
    backend.say(&["x"; 50]);
    let text = format!(
        "backends: [{{url: \"{}\"}}]\nhooks:\n  on_stream_event: {{script: \"local t = os.clock() while os.clock() - t < 0.009 do end\", timeout: 50ms, stream_timeout: 50ms}}\n",
        backend.url
    );
    let gateway = Gateway::start(&text).await;
    let since = Instant::now();
    let answer = chat(&gateway, &hello_stream()).await;
    assert!(answer.text().ends_with("data: [DONE]\n\n"));
    assert_eq!(answer.text().matches("\"x\"").count(), 50);
    // 54 events of 9 ms each would take half a second.
    assert!(since.elapsed() < Duration::from_millis(400), "{:?}", since.elapsed());
    gateway.logs("its time for this stream is used up").await;
}

#[tokio::test]
async fn endless_scripts_delay_no_other_request() {
    let backend = Backend::start().await;
    let script = "if request.body.hostile then while true do end end";
    for stage in STAGES.into_iter().filter(|stage| *stage != "on_complete") {
        let hooks =
            format!("  {stage}: {{on_error: open, timeout: 200ms, script: \"{script}\"}}\n");
        // One thread: a script that blocks it blocks all requests.
        let text = format!(
            "server: {{threads: 1}}\nbackends: [{{url: \"{}\"}}]\nhooks:\n{hooks}",
            backend.url
        );
        let gateway = Arc::new(Gateway::start(&text).await);
        let hostile: Vec<_> = (0..2)
            .map(|_| {
                let gateway = Arc::clone(&gateway);
                let mut body = if stage == "on_stream_event" { hello_stream() } else { hello() };
                body["hostile"] = true.into();
                tokio::spawn(async move { chat(&gateway, &body).await.status })
            })
            .collect();
        let mut served = 0;
        while !hostile.iter().all(tokio::task::JoinHandle::is_finished) && served < 10 {
            let mut client = gateway.client().await;
            assert_eq!(client.get("/health").await.status, 200);
            served += 1;
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        for one in hostile {
            assert_eq!(one.await.unwrap(), 200, "{stage}");
        }
        // No error has run that of `on_error`; that of `on_usage` runs when the client has its answer.
        let waits = !["on_error", "on_usage"].contains(&stage);
        assert!(served > 2 || !waits, "{stage}: only {served} requests were served");
    }
}
