//! Error responses, interim responses and redirects of backends, however they are split: what the client
//! receives.

use llmproxy::sim::{Behaviour, Fail};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::{
    Client, Gateway, Receiver, chat,
    faults::{fleet, urls},
    http, saying, sim_with,
};

const PATH: &str = "/v1/chat/completions";

/// Configurations and their numbers of backends: with and without a possible retry.
const WAYS: [(&str, usize); 6] = [
    ("", 1),
    ("", 2),
    ("routing: {enabled: false}\n", 1),
    ("routing: {retry: {enabled: false}}\n", 2),
    ("routing: {retry: {initial_wait: 1ms, max_wait: 2ms, max_retries: 2}}\n", 1),
    ("routing: {keep_alive: 10s}\n", 1),
];

/// Checks what clients receive of errors over both versions of HTTP. Each request uses a new model, as a
/// busy backend cools down for a model.
async fn check_errors(change: impl Fn(&mut Behaviour) + Copy, what: &str) {
    for (more, backends) in WAYS {
        let sims = fleet(backends, |b| {
            b.models = (0..4).map(|n| format!("m{n}")).collect();
            b.fail = Fail::Error;
            change(b);
        })
        .await;
        let gateway = Gateway::before(&urls(&sims), more).await;
        let h2 = http::builder().http2_prior_knowledge().build().unwrap();
        for (n, stream) in [false, true].into_iter().enumerate() {
            let what = format!("{what}, {more:?}, {backends} backends, stream: {stream}");
            let of = |n: usize| chat(stream).replace("sim-model", &format!("m{n}"));
            let expected = Client::connect(sims[0].address).await.ask(PATH, of(n)).await;
            let answer = gateway.client().await.ask(PATH, of(n)).await;
            assert_eq!(answer.status, expected.status, "{what}");
            assert!(
                answer.body == expected.body,
                "{what}: {:?}",
                String::from_utf8_lossy(&answer.body)
            );
            assert!(answer.whole, "{what}");
            assert_eq!(answer.header("content-type"), Some("application/json"), "{what}");
            let answer = h2.post(gateway.url(PATH)).body(of(n + 2)).send().await.unwrap();
            assert_eq!(answer.status().as_u16(), expected.status, "{what}, HTTP/2");
            assert!(answer.bytes().await.unwrap() == expected.body, "{what}, HTTP/2");
        }
    }
}

#[tokio::test]
async fn errors_pass_unchanged_for_any_status_and_timing() {
    for status in [408, 429, 500, 501, 502, 503, 504, 505, 529] {
        check_errors(|b| (b.error_status, b.error_pause_ms) = (status, 3), &format!("{status}"))
            .await;
    }
}

#[tokio::test]
async fn errors_pass_unchanged_for_any_size() {
    // Around the limits of what is examined (64 KiB) and held back (1 MiB), in one and several pieces.
    for (size, pause) in [
        (0, 0),
        (64 * 1024 - 1, 2),
        (64 * 1024 + 1, 0),
        (100_000, 2),
        (1024 * 1024, 0),
        (1024 * 1024 + 1, 2),
        (3_000_000, 0),
    ] {
        let change = |b: &mut Behaviour| (b.error_bytes, b.error_pause_ms) = (size, pause);
        check_errors(change, &format!("{size} bytes")).await;
    }
}

/// A backend that responds with these pieces, with a pause between them, and closes.
async fn in_pieces(pieces: Vec<Vec<u8>>) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let pieces = pieces.clone();
            tokio::spawn(async move {
                socket.set_nodelay(true).unwrap();
                let mut request = Vec::new();
                while !request.ends_with(b"}") {
                    if socket.read_buf(&mut request).await.unwrap_or(0) == 0 {
                        return;
                    }
                }
                for piece in pieces {
                    socket.write_all(&piece).await.ok();
                    tokio::time::sleep(std::time::Duration::from_millis(1)).await;
                }
            });
        }
    });
    url
}

#[tokio::test]
async fn errors_without_a_length_pass() {
    let body = r#"{"error": {"message": "out of memory", "code": 500}}"#;
    let chunked = "HTTP/1.1 500 Internal Server Error\r\nTransfer-Encoding: chunked\r\n\r\n";
    let until_close = "HTTP/1.1 500 Internal Server Error\r\nConnection: close\r\n\r\n";
    for cut in [1, 7, body.len() - 1] {
        let (a, b) = body.split_at(cut);
        let chunk = |part: &str| format!("{:x}\r\n{part}\r\n", part.len()).into_bytes();
        let wires = [
            vec![chunked.into(), chunk(a), chunk(b), b"0\r\n\r\n".to_vec()],
            vec![until_close.into(), a.into(), b.into()],
        ];
        for wire in wires {
            let gateway = Gateway::before(&[in_pieces(wire).await], "").await;
            for stream in [false, true] {
                let answer = gateway.client().await.ask(PATH, chat(stream)).await;
                assert_eq!((answer.status, answer.text()), (500, body));
            }
        }
    }
}

#[tokio::test]
async fn a_response_that_ends_after_its_head_is_cut_off() {
    // The head announced a document with a length, so an event in its place would be wrong.
    for (status, kind) in
        [("200 OK", "application/json"), ("500 Oops", "application/json"), ("404 No", "text/plain")]
    {
        let head =
            format!("HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: 500\r\n\r\n");
        let url = in_pieces(vec![head.into_bytes()]).await;
        let gateway = Gateway::before(&[url], "").await;
        let mut client = gateway.client().await;
        client.post(PATH, chat(false)).await;
        let answer = client.answer().await;
        assert!(!answer.whole, "{status}");
        assert_eq!(answer.text(), "", "{status}");
    }
}

#[tokio::test]
async fn interim_responses_pass_in_any_number_and_split() {
    for interim in [1, 2, 7] {
        for (more, backends) in WAYS {
            let sims = fleet(backends, |b| b.interim = interim).await;
            let gateway = Gateway::before(&urls(&sims), more).await;
            for stream in [false, true] {
                let what = format!("{interim}, {more:?}, {backends}, {stream}");
                let mut client = gateway.client().await;
                client.post(PATH, chat(stream)).await;
                let mut seen = Vec::new();
                let head = loop {
                    let head = client.head().await;
                    if head.status >= 200 {
                        break head;
                    }
                    seen.push(head.status);
                };
                assert_eq!(head.status, 200, "{what}");
                let expected: Vec<u16> = [102, 103].into_iter().cycle().take(interim).collect();
                assert_eq!(seen, expected, "{what}: they pass");
                assert!(client.rest(head).await.whole, "{what}");
                // The connection is in sync: the next response belongs to the next request.
                assert_eq!(client.get("/health").await.text(), "OK", "{what}");
                let h2 = http::builder().http2_prior_knowledge().build().unwrap();
                let answer = h2.post(gateway.url(PATH)).body(chat(stream)).send().await.unwrap();
                assert_eq!(answer.status().as_u16(), 200, "{what}");
                assert!(!answer.text().await.unwrap().is_empty());
            }
        }
    }
}

#[tokio::test]
async fn interim_responses_pass_between_attempts_and_before_errors() {
    const INTERIM: &str = "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n";
    let body = r#"{"error":{"message":"no","code":500}}"#;
    let last = format!("HTTP/1.1 500 No\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    // Split at any position.
    let whole = [INTERIM, INTERIM, &last].concat();
    for cut in (1..whole.len()).step_by(9) {
        let pieces = vec![whole.as_bytes()[..cut].to_vec(), whole.as_bytes()[cut..].to_vec()];
        let urls = [in_pieces(pieces.clone()).await, in_pieces(pieces).await];
        for backends in [&urls[..1], &urls[..]] {
            let gateway = Gateway::before(backends, "").await;
            let answer = gateway.client().await.ask(PATH, chat(true)).await;
            assert_eq!((answer.status, answer.text()), (500, body), "cut at {cut}");
        }
    }
}

#[tokio::test]
async fn http_1_0_clients_get_no_interim_responses() {
    let sims = fleet(2, |b| b.interim = 2).await;
    for backends in [1, 2] {
        let gateway = Gateway::before(&urls(&sims)[..backends], "").await;
        let body = chat(false);
        let mut client = gateway.client().await;
        let head =
            format!("POST {PATH} HTTP/1.0\r\nHost: g\r\nContent-Length: {}\r\n\r\n", body.len());
        client.send(&[head.as_bytes(), body.as_bytes()].concat()).await;
        assert_eq!(client.head().await.status, 200, "{backends}");
    }
}

#[tokio::test]
async fn redirects_are_retried_and_never_reach_a_client() {
    for status in [
        "301 Moved",
        "302 Found",
        "303 See Other",
        "307 Temporary",
        "308 Permanent",
        "101 Switching Protocols",
    ] {
        let wire = format!(
            "HTTP/1.1 {status}\r\nLocation: http://10.1.2.3/secret\r\nUpgrade: x\r\nConnection: upgrade\r\nContent-Length: 0\r\n\r\n"
        );
        let away = saying(wire).await;
        let receiver = Receiver::start().await;
        let alone = Gateway::before(std::slice::from_ref(&away), &receiver.hook()).await;
        for stream in [false, true] {
            let answer = alone.client().await.ask(PATH, chat(stream)).await;
            assert_eq!(answer.status, 502, "{status}");
            assert_eq!(answer.json()["error"]["code"], "backend_failed", "{status}");
            let all = format!("{:?} {}", answer.headers, answer.text());
            assert!(!all.contains("10.1.2.3") && answer.header("location").is_none(), "{all}");
        }
        let records = receiver.wait_for(2).await;
        assert!(
            records.iter().all(|r| r["outcome"] == "upstream_error" && r["status_code"] == 502)
        );
        let sim = sim_with(|_| {}).await;
        for hedge in ["", "routing: {hedge: {delay: 10s}}\n"] {
            let both = Gateway::before(&[away.clone(), sim.url()], hedge).await;
            for _ in 0..4 {
                for stream in [false, true] {
                    assert_eq!(
                        both.client().await.ask(PATH, chat(stream)).await.status,
                        200,
                        "{status}"
                    );
                }
            }
        }
    }
}

#[tokio::test]
async fn internal_header_fields_do_not_reach_a_client() {
    let body = r#"{"object":"chat.completion","choices":[]}"#;
    let wire = |status: &str| {
        format!(
            "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\
             Set-Cookie: session=secret\r\nSet-Cookie: b=c\r\nServer: uvicorn\r\nX-Powered-By: Python\r\n\
             Alt-Svc: h3=\":443\"\r\nX-Node: gpu-17\r\nX-Kept: yes\r\n\r\n{body}",
            body.len()
        )
    };
    for status in ["200 OK", "404 Not Found", "500 Oops"] {
        let url = saying(wire(status)).await;
        let gateway = Gateway::before(std::slice::from_ref(&url), "").await;
        let answer = gateway.client().await.ask(PATH, chat(false)).await;
        for gone in ["set-cookie", "server", "x-powered-by", "alt-svc"] {
            assert_eq!(answer.header(gone), None, "{status}");
        }
        assert_eq!(
            (answer.header("x-node"), answer.header("x-kept")),
            (Some("gpu-17"), Some("yes"))
        );
        assert_eq!(answer.text(), body);
        let more = "edge_guard: {remove_response_headers: [X-Node, Server]}\n";
        let gateway = Gateway::before(&[url], more).await;
        let answer = gateway.client().await.ask(PATH, chat(false)).await;
        assert_eq!((answer.header("x-node"), answer.header("server")), (None, None));
        assert_eq!(answer.header("x-powered-by"), Some("Python"), "a list replaces the list");
    }
}

#[tokio::test]
async fn a_response_without_a_body_after_a_failed_attempt_has_its_own_head() {
    let failed = [
        "HTTP/1.1 503 No\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}",
        "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ];
    for first in failed {
        for (second, status) in [
            ("HTTP/1.1 400 Bad Request\r\nX-Second: yes\r\nContent-Length: 0\r\n\r\n", 400),
            ("HTTP/1.1 401 No\r\nX-Second: yes\r\nContent-Length: 0\r\n\r\n", 401),
            ("HTTP/1.1 204 No Content\r\nX-Second: yes\r\n\r\n", 204),
        ] {
            let urls = [saying(first.to_owned()).await, saying(second.to_owned()).await];
            let gateway = Gateway::before(&urls, "").await;
            for _ in 0..4 {
                let answer = gateway.client().await.ask(PATH, chat(true)).await;
                assert_eq!(
                    (answer.status, answer.text(), answer.whole),
                    (status, "", true),
                    "{first}"
                );
                assert_eq!(answer.header("x-second"), Some("yes"), "{first}");
            }
        }
    }
}
