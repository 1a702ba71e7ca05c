//! Memory limits for requests of clients with and without a key.

use crate::support::{
    Gateway, chat, chat_of, eventually, sim, sim_with,
    socket::{Script, tcp_until_closed},
};

const PATH: &str = "/v1/chat/completions";

#[tokio::test]
async fn the_size_of_a_head_is_limited_while_it_is_read() {
    let gateway = Gateway::before(&[sim().await.url()], "server: {max_header_size: 16KiB}\n").await;
    assert_eq!(gateway.client().await.get("/health").await.status, 200);
    let before = gateway.resident_kib();
    let mut all = Vec::new();
    for n in 0..100 {
        // One long line, several lines, or a long target.
        let first = match n % 3 {
            0 => format!("GET / HTTP/1.1\r\nHost: g\r\nX: {}", "x".repeat(900_000)),
            1 => {
                let line = format!("X: {}\r\n", "y".repeat(5_000));
                format!("GET / HTTP/1.1\r\nHost: g\r\n{}", line.repeat(200))
            }
            _ => format!("GET /{}", "x".repeat(900_000)),
        };
        all.push(tokio::spawn(tcp_until_closed(gateway.address, Script::once(first))));
    }
    for (n, one) in all.into_iter().enumerate() {
        let (came, _) = one.await.unwrap().expect("the connection stays open");
        let came = String::from_utf8_lossy(&came).into_owned();
        assert!(came.starts_with("HTTP/1.1 431 "), "{n}: {came}");
        assert!(came.contains("\"code\":\"headers_too_large\""), "{n}: {came}");
    }
    let grown = gateway.resident_kib().saturating_sub(before);
    assert!(grown < 30_000, "{grown} KiB for 100 heads");
    let reason = "llmproxy_connections_closed_total{reason=\"head_size\"}";
    assert_eq!(gateway.metric(reason).await, 100.0);
}

#[tokio::test]
async fn heads_up_to_the_limit_are_accepted() {
    let sim = sim().await;
    let gateway = Gateway::before(&[sim.url()], "server: {max_header_size: 16KiB}\n").await;
    let mut client = gateway.client().await;
    for (size, status) in [(1_000, 200), (16_000, 200), (16_500, 431)] {
        // Repeated on one connection: each head is counted separately.
        let fields = format!("X-Long: {}\r\n", "x".repeat(size));
        client.post_with(PATH, &fields, chat(false).as_bytes()).await;
        assert_eq!(client.answer().await.status, status, "{size}");
    }
    // A following body does not count as part of the head.
    let mut client = gateway.client().await;
    for _ in 0..3 {
        assert_eq!(client.ask(PATH, chat_of(1 << 20, false)).await.status, 200);
    }
}

#[tokio::test]
async fn the_total_size_of_bodies_is_limited() {
    let sim = sim_with(|b| b.first_token_ms = 600_000).await;
    let more = "server: {max_buffered_bytes: 1MiB, max_body_size: 2MiB}\n";
    let gateway = Gateway::before(&[sim.url()], more).await;
    let held = async || gateway.metric("llmproxy_buffered_bytes").await;
    let mut holders = Vec::new();
    for count in 1..=2_u64 {
        let mut client = gateway.client().await;
        client.post(PATH, chat_of(400_000, count == 1)).await;
        holders.push(client);
        eventually("the backend has it", async || sim.stats().running() == count).await;
    }
    assert!((800_000.0..1_048_576.0).contains(&held().await), "{}", held().await);
    let chunks = format!("{:x}\r\n{}\r\n0\r\n\r\n", 400_000, " ".repeat(400_000));
    for (fields, body) in
        [("Content-Length: 400000", " ".repeat(400_000)), ("Transfer-Encoding: chunked", chunks)]
    {
        let mut client = gateway.client().await;
        client
            .try_send(
                format!("POST {PATH} HTTP/1.1\r\nHost: g\r\n{fields}\r\n\r\n{body}").as_bytes(),
            )
            .await;
        let answer = client.answer().await;
        assert_eq!(answer.status, 503, "{fields}");
        assert_eq!(answer.json()["error"]["code"], "buffers_full");
        assert!(answer.header("retry-after").is_some());
    }
    // An announced length uses no memory, and small bodies still fit.
    let mut said = gateway.client().await;
    said.send(
        format!("POST {PATH} HTTP/1.1\r\nHost: g\r\nContent-Length: 1000000\r\n\r\n{{").as_bytes(),
    )
    .await;
    let mut small = gateway.client().await;
    small.post(PATH, chat(false)).await;
    eventually("the body was accepted", async || sim.stats().running() == 3).await;
    // A finished request releases its memory.
    drop((holders, said, small));
    eventually("the memory is released", async || held().await == 0.0).await;
    sim.change(|b| b.first_token_ms = 0);
    assert_eq!(gateway.client().await.ask(PATH, chat_of(900_000, false)).await.status, 200);
    eventually("nothing is left", async || held().await == 0.0).await;
}

#[tokio::test]
async fn bodies_over_http2_are_counted() {
    let sim = sim_with(|b| b.first_token_ms = 600_000).await;
    let gateway = Gateway::before(&[sim.url()], "server: {max_buffered_bytes: 500KiB}\n").await;
    let client = crate::support::http::builder().http2_prior_knowledge().build().unwrap();
    let ask = || client.post(gateway.url(PATH)).body(chat_of(400_000, false)).send();
    let first = tokio::spawn(ask());
    eventually("the backend has it", async || sim.stats().running() == 1).await;
    let answer = ask().await.unwrap();
    assert_eq!(answer.status(), 503);
    assert!(answer.headers().contains_key("retry-after"));
    first.abort();
    let held = async || gateway.metric("llmproxy_buffered_bytes").await;
    eventually("the memory is released", async || held().await == 0.0).await;
}

#[tokio::test]
async fn the_default_limit_is_a_share_of_the_memory() {
    let plan = |text: &str| {
        let text = format!("{text}\nbackends: [{{url: \"http://x\"}}]");
        llmproxy::config::load_text(&text, "/".as_ref(), &|_| None).plan.unwrap()
    };
    let default = plan("").max_buffered_bytes;
    assert!((16 << 20..1 << 42).contains(&default), "{default}");
    assert_eq!(plan("server: {max_buffered_bytes: 64MiB}").max_buffered_bytes, 64 << 20);
}
