//! Reloads and shutdown, under load.

use std::{path::Path, process::Command, time::Duration};

use crate::support::{Client, Gateway, Receiver, chat, eventually, sim, sim_with};

const PATH: &str = "/v1/chat/completions";

fn backends(urls: &[String]) -> String {
    let list: String = urls.iter().map(|url| format!("  - url: \"{url}\"\n")).collect();
    format!("backends:\n{list}")
}

#[tokio::test]
async fn a_changed_file_is_loaded() {
    let (a, b) = (sim().await, sim().await);
    let gateway = Gateway::start(&backends(&[a.url()])).await;
    gateway.rewrite(&backends(&[b.url()]));
    gateway.logs("configuration 2 is in force").await;
    assert_eq!(gateway.client().await.ask(PATH, chat(false)).await.status, 200);
    assert_eq!((a.stats().requests(), b.stats().requests()), (0, 1));
    let old = format!("llmproxy_backend_up{{backend=\"{}\"}}", a.url());
    let metrics = gateway.client().await.get("/metrics").await;
    assert!(!metrics.text().contains(&old), "a backend that is gone has no gauge");
}

#[tokio::test]
async fn sighup_reloads_immediately() {
    let (a, b) = (sim().await, sim().await);
    let gateway = Gateway::start(&backends(&[a.url()])).await;
    for n in 2..6 {
        let next = if n % 2 == 0 { &b } else { &a };
        gateway.rewrite(&backends(&[next.url()]));
        gateway.signal("HUP");
        gateway.logs(&format!("configuration {n} is in force")).await;
    }
    assert_eq!(gateway.metric("llmproxy_config_reload_success").await, 1.0);
}

#[tokio::test]
async fn an_invalid_file_keeps_the_previous_configuration() {
    let sim = sim().await;
    let gateway = Gateway::start(&backends(&[sim.url()])).await;
    gateway.rewrite("backends:\n  - url: nonsense\n    wieght: 3\n");
    gateway.logs("the configuration in force stays").await;
    let log = gateway.log();
    assert!(
        log.contains(
            "line 4: backends[0].wieght: unknown key `wieght` (hint: did you mean `weight`?)"
        ),
        "{log}"
    );
    assert!(log.contains("line 3: backends[0].url: `nonsense` is not a URL"), "{log}");
    assert_eq!(gateway.metric("llmproxy_config_reload_success").await, 0.0);
    assert_eq!(gateway.client().await.ask(PATH, chat(false)).await.status, 200);

    gateway.rewrite(&backends(&[sim.url()]));
    gateway.logs("configuration 2 is in force").await;
    assert_eq!(gateway.metric("llmproxy_config_reload_success").await, 1.0);
}

#[tokio::test]
async fn a_change_that_needs_a_restart_is_refused() {
    let sim = sim().await;
    let gateway = Gateway::start(&backends(&[sim.url()])).await;
    for (key, value) in
        [("server.threads", "threads: 3"), ("server.metrics_listen", "metrics_listen: \":1\"")]
    {
        gateway.rewrite(&format!("server: {{{value}}}\n{}", backends(&[sim.url()])));
        gateway.logs(&format!("a change of {key} needs a restart")).await;
        assert_eq!(gateway.metric("llmproxy_config_reload_success").await, 0.0);
    }
    let text =
        std::fs::read_to_string(&gateway.file).unwrap().replace("listen: \"127", "listen: \"0");
    std::fs::write(&gateway.file, text.replace("0.0.0.1", "127.0.0.2")).unwrap();
    gateway.signal("HUP");
    eventually("refused", async || gateway.log().contains("a change of listen")).await;
}

#[tokio::test]
async fn a_reload_loses_no_stream() {
    let (a, b) = (
        sim_with(|s| (s.inter_token_ms, s.tokens) = (25, 40)).await,
        sim_with(|s| (s.inter_token_ms, s.tokens) = (25, 40)).await,
    );
    let gateway = Gateway::start(&backends(&[a.url()])).await;
    let address = gateway.address;
    let streams: Vec<_> = (0..40)
        .map(|n| {
            tokio::spawn(async move {
                tokio::time::sleep(Duration::from_millis(n * 20)).await;
                let answer = Client::connect(address).await.ask(PATH, chat(true)).await;
                assert!(answer.whole && answer.text().ends_with("data: [DONE]\n\n"));
                answer.text().matches("\"content\":\"").count()
            })
        })
        .collect();
    for n in 2..12 {
        // Another backend each time, so that streams outlive the configuration of their backends.
        let next = if n % 2 == 0 { &b } else { &a };
        gateway.rewrite(&backends(&[next.url()]));
        gateway.signal("HUP");
        gateway.logs(&format!("configuration {n} is in force")).await;
        tokio::time::sleep(Duration::from_millis(60)).await;
    }
    for stream in streams {
        assert_eq!(stream.await.unwrap(), 41, "role and forty tokens");
    }
    assert!(a.stats().requests() > 0 && b.stats().requests() > 0);
    assert_eq!(a.stats().aborted() + b.stats().aborted(), 0);
}

#[tokio::test]
async fn health_is_kept_across_a_reload() {
    let sick = sim_with(|b| b.health = 500).await;
    let well = sim().await;
    let text = |interval| {
        format!(
            "{}health_check: {{interval: {interval}, unhealthy_threshold: 3}}\n",
            backends(&[sick.url(), well.url()])
        )
    };
    let gateway = Gateway::start(&text("1h")).await;
    gateway.rewrite(&text("2h"));
    gateway.signal("HUP");
    gateway.logs("configuration 2 is in force").await;
    for _ in 0..6 {
        assert_eq!(gateway.client().await.ask(PATH, chat(false)).await.status, 200);
    }
    assert_eq!(sick.stats().requests(), 0, "it was known to be down");
}

#[tokio::test]
async fn sigterm_drains() {
    let sim = sim_with(|b| (b.inter_token_ms, b.tokens) = (100, 12)).await;
    let receiver = Receiver::start().await;
    let operator = crate::support::free_address();
    let more = format!("{}server: {{metrics_listen: \"{operator}\"}}\n", receiver.hook());
    let mut gateway = Gateway::before(&[sim.url()], &more).await;
    let mut client = gateway.client().await;
    client.post(PATH, chat(true)).await;
    client.head().await;
    assert!(!client.chunk().await.unwrap().is_empty());
    let mut idle = gateway.client().await;
    assert_eq!(idle.get("/ready").await.status, 200);
    assert_eq!(Client::connect(operator).await.get("/ready").await.status, 200);

    gateway.signal("TERM");
    eventually("no new connections", async || {
        tokio::net::TcpStream::connect(gateway.address).await.is_err()
    })
    .await;
    assert_eq!(Client::connect(operator).await.get("/ready").await.status, 503);
    let mut rest = Vec::new();
    while let Some(chunk) = client.chunk().await.filter(|c| !c.is_empty()) {
        rest.extend(chunk);
    }
    assert!(rest.ends_with(b"data: [DONE]\n\n"), "the stream goes on to its end");
    assert!(gateway.ended().await.success());
    assert_eq!(receiver.one().await["outcome"], "complete", "its record was delivered");
    assert_eq!(sim.stats().aborted(), 0);
}

#[tokio::test]
async fn streams_are_ended_and_recorded_after_the_shutdown_timeout() {
    let sim = sim_with(|b| b.inter_token_ms = 3_600_000).await;
    let receiver = Receiver::start().await;
    let more = format!("{}server: {{graceful_shutdown_timeout: 300ms}}\n", receiver.hook());
    let mut gateway = Gateway::before(&[sim.url()], &more).await;
    let mut client = gateway.client().await;
    client.post(PATH, chat(true)).await;
    client.head().await;
    client.chunk().await.unwrap();
    gateway.signal("TERM");
    let mut rest = Vec::new();
    while let Some(chunk) = client.chunk().await.filter(|c| !c.is_empty()) {
        rest.extend(chunk);
    }
    assert!(String::from_utf8(rest).unwrap().contains("shutting_down"));
    assert!(gateway.ended().await.success());
    let record = receiver.one().await;
    assert_eq!(record["outcome"], "upstream_error");
    assert_eq!(record["usage_source"], "partial");
}

#[tokio::test]
async fn a_second_signal_ends_the_process_immediately() {
    let sim = sim_with(|b| b.inter_token_ms = 3_600_000).await;
    let mut gateway =
        Gateway::before(&[sim.url()], "server: {graceful_shutdown_timeout: 1h}\n").await;
    let mut client = gateway.client().await;
    client.post(PATH, chat(true)).await;
    client.head().await;
    gateway.signal("INT");
    gateway.logs("to finish").await;
    gateway.signal("INT");
    assert!(gateway.ended().await.success());
}

#[test]
fn an_address_in_use_is_reported() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("c.yaml");
    let text = format!(
        "listen: \"{}\"\nbackends: [{{url: \"http://127.0.0.1:1\"}}]\n",
        taken.local_addr().unwrap()
    );
    std::fs::write(&file, text).unwrap();
    let out = run(&["--config", file.to_str().unwrap()]);
    assert_eq!(out.status.code(), Some(1));
    let printed = String::from_utf8(out.stderr).unwrap();
    assert!(printed.contains("cannot listen on 127.0.0.1"), "{printed}");
}

fn run(arguments: &[&str]) -> std::process::Output {
    Command::new(Path::new(env!("CARGO_BIN_EXE_llmproxy"))).args(arguments).output().unwrap()
}

#[tokio::test]
async fn stalled_clients_do_not_delay_shutdown_and_are_recorded() {
    // Megabytes at once: more than the socket buffers, so that the gateway waits for the client.
    let sim = sim_with(|b| b.tokens = 100_000).await;
    let receiver = Receiver::start().await;
    let more = format!("{}server: {{graceful_shutdown_timeout: 200ms}}\n", receiver.hook());
    let mut gateway = Gateway::before(&[sim.url()], &more).await;
    let mut deaf = gateway.client().await;
    deaf.post(PATH, chat(true)).await;
    deaf.head().await;
    let mut slow = gateway.client().await;
    slow.send(b"POST /v1/chat/completions HTTP/1.1\r\nHost: g\r\nContent-Length: 1000\r\n\r\n{")
        .await;
    eventually("both are running", async || {
        gateway.metric("llmproxy_requests_in_flight").await == 3.0
    })
    .await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    gateway.signal("TERM");
    assert!(gateway.ended().await.success());
    let records = receiver.wait_for(2).await;
    assert!(
        records.iter().any(|r| r["prompt_tokens"] == 9 && r["usage_source"] == "partial"),
        "{records:?}"
    );
    assert!(!gateway.log().contains("could not be aborted"), "{}", gateway.log());
    drop((deaf, slow));
}

#[tokio::test]
async fn a_change_of_the_log_format_needs_a_restart() {
    let sim = sim().await;
    let gateway = Gateway::start(&backends(&[sim.url()])).await;
    gateway.rewrite(&format!("log: {{format: json}}\n{}", backends(&[sim.url()])));
    gateway.logs("a change of log.format needs a restart").await;
}

#[tokio::test]
async fn local_backends_are_reached_without_the_proxy_of_the_environment() {
    let sim = sim().await;
    let configuration = format!("{}health_check: {{interval: 1h}}\n", backends(&[sim.url()]));
    let nowhere = format!("http://{}", crate::support::free_address());
    let gateway =
        Gateway::spawn(&configuration, &[("HTTP_PROXY", &nowhere), ("http_proxy", &nowhere)]);
    eventually("it answers", async || {
        tokio::net::TcpStream::connect(gateway.address).await.is_ok()
    })
    .await;
    assert_eq!(gateway.client().await.ask(PATH, chat(false)).await.status, 200);
    let models = gateway.client().await.get("/v1/models").await;
    assert_eq!(models.json()["data"][0]["id"], "sim-model");
}

#[tokio::test]
async fn a_blocked_log_does_not_stop_the_gateway() {
    let sim = sim().await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("c.yaml");
    let address = crate::support::free_address();
    std::fs::write(&file, format!("listen: \"{address}\"\n{}", backends(&[sim.url()]))).unwrap();
    // A pipe without a reader is full after 64 KiB.
    let mut child = Command::new(env!("CARGO_BIN_EXE_llmproxy"))
        .args(["--config", file.to_str().unwrap()])
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    eventually("it answers", async || tokio::net::TcpStream::connect(address).await.is_ok()).await;
    let mut client = Client::connect(address).await;
    for _ in 0..10_000 {
        assert_eq!(client.get("/health").await.status, 200);
    }
    child.kill().unwrap();
    child.wait().unwrap();
}
