//! Requests with invalid or unusual framing, host or connection fields.

use llmproxy::sim::Fail;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use crate::support::{
    Gateway, PATIENCE, Receiver, chat, chat_of, eventually, free_address, sim, sim_with,
    socket::{Script, tcp_until_closed},
};

const PATH: &str = "/v1/chat/completions";

fn chunked(body: &str) -> String {
    format!("{:x}\r\n{body}\r\n0\r\n\r\n", body.len())
}

/// Sends these bytes and reads until the connection closes.
async fn sent(gateway: &Gateway, bytes: impl AsRef<[u8]>) -> String {
    let all = tcp_until_closed(gateway.address, Script::once(bytes)).await;
    String::from_utf8(all.expect("the connection stays open").0).unwrap()
}

/// The status and the code of the error.
fn refusal(answer: &str) -> (u16, String) {
    let status = answer[9..12].parse().unwrap();
    let body = answer.split("\r\n\r\n").nth(1).unwrap_or_default();
    let body: Value = serde_json::from_str(body).unwrap_or_default();
    (status, body["error"]["code"].as_str().unwrap_or_default().to_owned())
}

#[tokio::test]
async fn two_lengths_end_the_connection() {
    let sim = sim().await;
    let gateway = Gateway::before(&[sim.url()], "").await;
    let body = chunked(&chat(false));
    for lengths in [
        "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n".to_owned(),
        format!("Content-Length: {}\r\nTransfer-Encoding: chunked\r\n", body.len()),
        "Content-Length: 0\r\nTransfer-encoding: CHUNKED\r\nConnection: keep-alive\r\n".to_owned(),
    ] {
        let before = sim.stats().requests();
        let head = format!("POST {PATH} HTTP/1.1\r\nHost: g\r\n{lengths}\r\n");
        // A following request is not served, as its start is ambiguous.
        let next = format!("POST {PATH} HTTP/1.1\r\nHost: g\r\nContent-Length: 2\r\n\r\n{{}}");
        let answer = sent(&gateway, format!("{head}{body}{next}")).await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        assert!(answer.to_lowercase().contains("\r\nconnection: close\r\n"), "{answer}");
        assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{answer}");
        assert_eq!(sim.stats().requests(), before + 1);
    }
}

#[tokio::test]
async fn keep_alive_follows_the_client() {
    let gateway = Gateway::before(&[sim().await.url()], "").await;
    for (line, kept) in [
        ("GET /health HTTP/1.1\r\nHost: g\r\n\r\n", true),
        ("GET /health HTTP/1.1\r\nHost: g\r\nConnection: keep-alive\r\n\r\n", true),
        ("GET /health HTTP/1.1\r\nHost: g\r\nConnection: close\r\n\r\n", false),
        ("GET /health HTTP/1.1\r\nHost: g\r\nConnection: X-Secret, close\r\n\r\n", false),
        ("GET /health HTTP/1.0\r\n\r\n", false),
        ("GET /health HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", true),
    ] {
        let mut client = gateway.client().await;
        client.send(line.as_bytes()).await;
        let answer = client.answer().await;
        let word = if kept { "keep-alive" } else { "close" };
        assert_eq!((answer.status, answer.header("connection")), (200, Some(word)), "{line}");
        if kept {
            assert_eq!(client.get("/health").await.status, 200, "{line}");
        }
    }
}

#[tokio::test]
async fn exactly_one_valid_host_is_required() {
    let sim = sim().await;
    let gateway = Gateway::before(&[sim.url()], "").await;
    let ask = async |version: &str, hosts: &str| {
        let body = chat(false);
        let head = format!(
            "POST {PATH} HTTP/{version}\r\n{hosts}Connection: close\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        refusal(&sent(&gateway, format!("{head}{body}")).await)
    };
    for (version, hosts) in [
        ("1.1", "Host: gateway\r\n"),
        ("1.1", "host:my_gateway:8000\r\n"),
        ("1.1", "HOST: [::1]:80\r\n"),
        ("1.1", "Host: xn--bcher-kva.example.\r\n"),
        ("1.0", ""),
        ("1.0", "Host: gateway\r\n"),
    ] {
        assert_eq!(ask(version, hosts).await.0, 200, "{version} {hosts}");
    }
    let seen = sim.stats().requests();
    for (version, hosts) in [
        ("1.1", ""),
        ("1.1", "Host:\r\n"),
        ("1.1", "Host: a b\r\n"),
        ("1.1", "Host: a/b\r\n"),
        ("1.1", "Host: a:b\r\n"),
        ("1.1", "Host: a:99999\r\n"),
        ("1.1", "Host: b\u{fc}cher\r\n"),
        ("1.1", "Host: a, b\r\n"),
        ("1.0", "Host: a/b\r\n"),
    ] {
        assert_eq!(
            ask(version, hosts).await,
            (400, "invalid_host".to_owned()),
            "{version} {hosts}"
        );
    }
    // Pingora refuses these itself.
    for hosts in ["Host: a\r\nHost: a\r\n", "Host: a\r\nhost: b\r\n", "Host: a@b\r\n"] {
        assert_eq!(ask("1.1", hosts).await.0, 400, "{hosts}");
    }
    assert_eq!(sim.stats().requests(), seen);
}

#[tokio::test]
async fn the_connection_header_cannot_remove_important_fields() {
    let sim = sim().await;
    let receiver = Receiver::start().await;
    let gateway = Gateway::before(&[sim.url()], &receiver.hook()).await;
    let answer = gateway.ask_with("Connection: X-Secret\r\nX-Secret: 1\r\nX-Other: 2\r\n").await;
    assert_eq!(answer.status, 200);
    let seen = sim.stats().last().unwrap();
    assert_eq!((seen.header("x-secret"), seen.header("x-other")), (None, Some("2")));
    let wrong = [
        "Host",
        "close, host",
        "Authorization",
        "content-length",
        "Content-Type",
        "X-Forwarded-For",
        "x-request-id",
        ":path",
        "a b",
        "a,b,c,d,e,f,g,h,i,j,k",
    ];
    for names in wrong {
        let answer = gateway.ask_with(&format!("Connection: {names}\r\n")).await;
        let code = answer.json()["error"]["code"].clone();
        assert_eq!((answer.status, code), (400, json!("invalid_connection")), "{names}");
    }
    let records = receiver.wait_for(1 + wrong.len()).await;
    // In any order: they are of several connections.
    let rejected = |r: &&Value| r["outcome"] == "rejected" && r["status_code"] == 400;
    assert_eq!(records.iter().filter(rejected).count(), wrong.len());
    assert_eq!(sim.stats().requests(), 1);
    let refused = "llmproxy_errors_total{reason=\"refused\",side=\"client\"}";
    assert_eq!(gateway.metric(refused).await, wrong.len() as f64);
}

#[tokio::test]
async fn invalid_chunks_are_refused_and_recorded() {
    let sim = sim().await;
    let receiver = Receiver::start().await;
    let gateway = Gateway::before(&[sim.url()], &receiver.hook()).await;
    let head = format!(
        "POST {PATH} HTTP/1.1\r\nHost: g\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    );
    let whole = chat(false);
    let begun = format!("{:x}\r\n{whole}\r\n", whole.len());
    let wrong = [
        "zz\r\n{}\r\n0\r\n\r\n".to_owned(),
        "-1\r\n{}\r\n0\r\n\r\n".to_owned(),
        "0x2\r\n{}\r\n0\r\n\r\n".to_owned(),
        "ffffffffffffffffff\r\n{}".to_owned(),
        // Line ends without CR, which are allowed in heads but not in chunks.
        "2\n{}\r\n0\r\n\r\n".to_owned(),
        "2\r\n{}\n0\r\n\r\n".to_owned(),
        "2\r\n{}XX0\r\n\r\n".to_owned(),
        "2\r{}\r\n0\r\n\r\n".to_owned(),
        "2;\n{}\r\n0\r\n\r\n".to_owned(),
        "2;a=\"\n\"\r\n{}\r\n0\r\n\r\n".to_owned(),
        "2\r\n{}\r\n0;\n\r\n".to_owned(),
        // After a complete document.
        format!("{begun}zz\r\n"),
        format!("{begun}0\n\n"),
        format!("{begun}XX"),
    ];
    for body in &wrong {
        let answer = refusal(&sent(&gateway, format!("{head}{body}")).await);
        assert_eq!(answer, (400, "invalid_chunk".to_owned()), "{:.60}", body);
    }
    let records = receiver.wait_for(wrong.len()).await;
    assert!(records.iter().all(|r| r["outcome"] == "rejected" && r["status_code"] == 400));
    assert_eq!(sim.stats().requests(), 0);
    // Extensions and trailers are ignored, as in nginx.
    for body in [
        format!("{:x};a=b;c=\"d\"\r\n{whole}\r\n0\r\n\r\n", whole.len()),
        format!("{:X} ; a\r\n{whole}\r\n0;last\r\nX-Trailer: 1\r\n\r\n", whole.len()),
    ] {
        let mut client = gateway.client().await;
        client.send(format!("{head}{body}").as_bytes()).await;
        assert_eq!(client.answer().await.status, 200, "{body}");
        assert_eq!(client.get("/health").await.status, 200, "{body}");
    }
    assert_eq!(sim.stats().last().unwrap().body, whole.as_bytes());
}

#[tokio::test]
async fn a_long_body_with_an_invalid_end_is_refused() {
    // Too long to be buffered: Pingora detects the error while proxying.
    let sim = sim().await;
    let receiver = Receiver::start().await;
    let gateway = Gateway::before(&[sim.url()], &receiver.hook()).await;
    let whole = String::from_utf8(chat_of(200_000, false)).unwrap();
    let head = format!("POST {PATH} HTTP/1.1\r\nHost: g\r\nTransfer-Encoding: chunked\r\n\r\n");
    let ends = ["zz\r\n", "0\n\n", "2\r\n  XX", "2;\n\r\n  \r\n0\r\n\r\n"];
    for end in ends {
        let body = format!("{head}{:x}\r\n{whole}\r\n{end}", whole.len());
        let answer = refusal(&sent(&gateway, body).await);
        assert_eq!(answer, (400, "invalid_chunk".to_owned()), "{end:?}");
    }
    let records = receiver.wait_for(ends.len()).await;
    assert!(records.iter().all(|r| r["outcome"] == "rejected" && r["status_code"] == 400));
    let refused = "llmproxy_errors_total{reason=\"refused\",side=\"client\"}";
    assert_eq!(gateway.metric(refused).await, ends.len() as f64);
    eventually("the backend is released", async || sim.stats().running() == 0).await;
}

#[tokio::test]
async fn heads_may_have_line_ends_without_cr() {
    let sim = sim().await;
    let gateway = Gateway::before(&[sim.url()], "").await;
    let body = chat(false);
    let head = format!("POST {PATH} HTTP/1.1\nHost: g\nContent-Length: {}\n\n", body.len());
    let mut client = gateway.client().await;
    client.send(format!("{head}{body}").as_bytes()).await;
    assert_eq!(client.answer().await.status, 200);
}

#[tokio::test]
async fn an_absolute_target_becomes_a_path() {
    let sims = [sim().await, sim().await];
    let urls: Vec<_> = sims.iter().map(|sim| sim.url()).collect();
    for more in ["", "routing: {hedge: {enabled: true, delay: 1ms}}\n"] {
        let gateway = Gateway::before(&urls, more).await;
        for target in
            ["http://gateway/v1/chat/completions", "HTTP://gateway/v1/chat/completions?x=1"]
        {
            let body = chat(false).replace("\"stream\"", "\"max_tokens\":4,\"stream\"");
            let head = format!(
                "POST {target} HTTP/1.1\r\nHost: gateway\r\nContent-Length: {}\r\n\r\n",
                body.len()
            );
            let mut client = gateway.client().await;
            client.send(format!("{head}{body}").as_bytes()).await;
            assert_eq!(client.answer().await.status, 200, "{target}");
            for seen in sims.iter().filter_map(|sim| sim.stats().last()) {
                assert!(seen.line.starts_with("POST /v1/chat/completions"), "{}", seen.line);
                assert!(seen.header("host").unwrap().starts_with("127.0.0.1:"));
            }
        }
        for (target, host, status) in [
            ("http://gateway/health", "Host: gateway\r\n", "200"),
            ("http://gateway", "Host: gateway\r\n", "404"),
            ("http://gateway/health", "", "400"),
            ("http://gateway/health", "Host: other\r\n", "400"),
            ("http:///health", "Host: gateway\r\n", "400"),
            ("http://a..b/health", "Host: a..b\r\n", "400"),
        ] {
            let request = format!("GET {target} HTTP/1.1\r\n{host}Connection: close\r\n\r\n");
            let answer = sent(&gateway, request).await;
            assert_eq!(&answer[9..12], status, "{target} {host}");
        }
    }
}

#[tokio::test]
async fn a_half_closed_client_counts_as_disconnected() {
    // As in the engines; see `docs/api.md`.
    let sim = sim_with(|b| b.first_token_ms = 600_000).await;
    let receiver = Receiver::start().await;
    let gateway = Gateway::before(&[sim.url()], &receiver.hook()).await;
    for stream in [true, false] {
        let body = chat(stream);
        let head =
            format!("POST {PATH} HTTP/1.1\r\nHost: g\r\nContent-Length: {}\r\n\r\n", body.len());
        let mut client = TcpStream::connect(gateway.address).await.unwrap();
        client.write_all(format!("{head}{body}").as_bytes()).await.unwrap();
        eventually("the backend has it", async || sim.stats().running() == 1).await;
        client.shutdown().await.unwrap();
        let mut answer = Vec::new();
        timeout(PATIENCE, client.read_to_end(&mut answer)).await.unwrap().ok();
        // The head of a stream arrives before the engine starts.
        let answer = String::from_utf8_lossy(&answer);
        assert!(!answer.contains("data:") && !answer.ends_with("0\r\n\r\n"), "{answer}");
        eventually("the backend is released", async || sim.stats().running() == 0).await;
    }
    let records = receiver.wait_for(2).await;
    assert!(records.iter().all(|r| r["outcome"] == "client_aborted"));
}

#[tokio::test]
async fn connections_are_closed_during_shutdown() {
    let sim = sim_with(|b| (b.first_token_ms, b.tokens) = (1_000, 2)).await;
    let operator = free_address();
    let more = format!("server: {{metrics_listen: \"{operator}\"}}\n");
    let mut gateway = Gateway::before(&[sim.url()], &more).await;
    let mut client = gateway.client().await;
    client.post(PATH, chat(false)).await;
    eventually("the backend has it", async || sim.stats().running() == 1).await;
    gateway.signal("TERM");
    let answer = client.answer().await;
    assert_eq!(answer.status, 200);
    assert!(gateway.ended().await.success());
    assert!(
        !client.try_send(b"GET /health HTTP/1.1\r\n\r\n").await || {
            // The first write to a closed connection may still succeed.
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            !client.try_send(b"\r\n").await
        }
    );
}

#[tokio::test]
async fn pipelined_chunks_are_checked() {
    let sim = sim().await;
    let gateway = Gateway::before(&[sim.url()], "").await;
    let first = [
        "GET /health HTTP/1.1\r\nHost: g\r\n\r\n",
        "POST /health HTTP/1.1\r\nHost: g\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ];
    let body = chat(false);
    let chunked = format!(
        "POST {PATH} HTTP/1.1\r\nHost: g\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n{:x};\n\r\n{body}\r\n0\r\n\r\n",
        body.len()
    );
    for first in first {
        let mut client = gateway.client().await;
        client.send(format!("{first}{chunked}").as_bytes()).await;
        assert!([200, 405].contains(&client.answer().await.status));
        let refused = client.answer().await;
        assert_eq!(
            (refused.status, refused.json()["error"]["code"].as_str()),
            (400, Some("invalid_chunk"))
        );
        assert_eq!(refused.header("connection"), Some("close"));
    }
    assert_eq!(sim.stats().requests(), 0);
    // Sequential requests on the connection are all checked.
    let mut client = gateway.client().await;
    let good = format!(
        "POST {PATH} HTTP/1.1\r\nHost: g\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n{body}\r\n0\r\n\r\n",
        body.len()
    );
    for _ in 0..5 {
        client.send(good.as_bytes()).await;
        assert_eq!(client.answer().await.status, 200);
    }
}

#[tokio::test]
async fn a_body_longer_than_its_document_is_ended() {
    let sim = sim_with(|b| b.fail = Fail::Wedge).await;
    let gateway = Gateway::before(&[sim.url()], "").await;
    let mut client = gateway.client().await;
    let body = String::from_utf8(chat_of(100_000, false)).unwrap();
    let head = format!(
        "POST {PATH} HTTP/1.1\r\nHost: g\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n{body}\r\n",
        body.len()
    );
    client.send(format!("{head}1\r\n \r\n").as_bytes()).await;
    eventually("the backend has the request", async || sim.stats().open() == 1).await;
    let space = format!("1000\r\n{}\r\n", " ".repeat(0x1000));
    eventually("the request is aborted", async || {
        client.try_send(space.as_bytes()).await;
        sim.stats().open() == 0
    })
    .await;
}
