//! Kept connections to backends that are closed without notice.

use llmproxy::sim::Fail;

use crate::support::{Gateway, chat, chat_of, eventually, sim, sim_with};

const PATH: &str = "/v1/chat/completions";

#[tokio::test]
async fn a_server_that_closes_after_each_stream_loses_no_request() {
    // As llama.cpp does.
    let sim = sim_with(|b| b.close_after_stream = true).await;
    let gateway = Gateway::before(&[sim.url()], "").await;
    let mut client = gateway.client().await;
    for n in 0..500 {
        let answer = client.ask(PATH, chat(true)).await;
        assert_eq!(answer.status, 200, "stream {n}");
        assert!(answer.whole && answer.text().ends_with("data: [DONE]\n\n"), "stream {n}");
    }
    assert_eq!(sim.stats().requests(), 500);
}

#[tokio::test]
async fn connections_are_kept_and_reused() {
    let sim = sim().await;
    let gateway = Gateway::before(&[sim.url()], "").await;
    let mut client = gateway.client().await;
    for stream in [true, false].repeat(10) {
        assert_eq!(client.ask(PATH, chat(stream)).await.status, 200);
    }
    // Rarely a connection is closed because its end was not read before the client had the response.
    let connections = sim.stats().connections();
    assert!(connections <= 3, "{connections} connections for 20 requests");
}

#[tokio::test]
async fn idle_connections_are_closed_before_the_server_closes_them() {
    // Kept for less time than by the server: the second request opens a new connection.
    let sim = sim_with(|b| b.keep_alive_ms = 600_000).await;
    let gateway = Gateway::before(&[sim.url()], "timeouts: {upstream_idle: 50ms}\n").await;
    let mut client = gateway.client().await;
    assert_eq!(client.ask(PATH, chat(false)).await.status, 200);
    eventually("a new connection", async || {
        tokio::time::sleep(std::time::Duration::from_millis(60)).await;
        client.ask(PATH, chat(false)).await;
        sim.stats().connections() >= 2
    })
    .await;
}

#[tokio::test]
async fn a_request_on_a_dead_connection_is_resent_on_a_new_one() {
    for body in [chat_of(200, false), chat_of(65_537, true), chat_of(1 << 20, false)] {
        let sim = sim().await;
        let gateway = Gateway::before(&[sim.url()], "").await;
        let mut client = gateway.client().await;
        assert_eq!(client.ask(PATH, chat(false)).await.status, 200);
        // The next request on the kept connection is reset before a response; the one after it, on a
        // new connection, succeeds.
        sim.change(|b| (b.fail, b.fail_every) = (Fail::BeforeHeaders, 2));
        let answer = client.ask(PATH, &body).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_eq!((sim.stats().requests(), sim.stats().connections()), (3, 2));
        assert_eq!(
            gateway.metric("llmproxy_retries_total{reason=\"stale_connection\"}").await,
            1.0
        );
    }
}

#[tokio::test]
async fn a_new_connection_that_breaks_is_an_error() {
    // The backend may have executed the request: only a reused connection allows a resend.
    let sim = sim_with(|b| b.fail = Fail::BeforeHeaders).await;
    let gateway = Gateway::before(&[sim.url()], "").await;
    let answer = gateway.client().await.ask(PATH, chat(false)).await;
    assert_eq!(answer.status, 502);
    assert_eq!(answer.json()["error"]["code"], "backend_failed");
    assert_eq!(sim.stats().requests(), 1);
}
