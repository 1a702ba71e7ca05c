//! Browsers: what pages of other origins may do, and are told.

use crate::support::{
    Gateway, chat, check,
    client::Response,
    raw::{backend, send},
    sim,
};

const PAGE: &str = "https://app.example.com";

const CORS: &str = "server: {cors: {allowed_origins: [\"https://app.example.com\", \"https://*.example.org\"], max_age: 10m}}\n";

const KEYS: &str =
    "auth: {pipeline: [{type: static, static: {keys: [{key: sk-first-000000001}]}}]}\n";

async fn ask(gateway: &Gateway, method: &str, path: &str, fields: &str, body: &str) -> Response {
    let mut client = gateway.client().await;
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: x\r\n{fields}Content-Length: {}\r\n\r\n{body}",
        body.len()
    );
    client.send(head.as_bytes()).await;
    client.answer().await
}

async fn preflight(gateway: &Gateway, path: &str, origin: &str) -> Response {
    let fields = format!(
        "Origin: {origin}\r\nAccess-Control-Request-Method: POST\r\n\
         Access-Control-Request-Headers: authorization,content-type,x-stainless-os\r\n"
    );
    ask(gateway, "OPTIONS", path, &fields, "").await
}

/// The fields of an answer that are for browsers.
fn told(answer: &Response) -> Vec<String> {
    let mut all: Vec<String> = answer
        .headers
        .iter()
        .filter(|(name, _)| name.starts_with("access-control-") || name == "vary")
        .map(|(name, value)| format!("{name}: {value}"))
        .collect();
    all.sort();
    all
}

#[tokio::test]
async fn a_page_asks_before_it_has_a_key() {
    let sim = sim().await;
    let gateway = Gateway::before(&[sim.url()], &format!("{CORS}{KEYS}")).await;
    for path in ["/v1/chat/completions", "/v1/messages", "/v1/responses", "/v1/models"] {
        for origin in [PAGE, "https://a.example.org"] {
            let answer = preflight(&gateway, path, origin).await;
            assert_eq!((answer.status, answer.text()), (204, ""), "{path}");
            assert_eq!(
                told(&answer),
                [
                    "access-control-allow-headers: authorization,content-type,x-stainless-os",
                    "access-control-allow-methods: GET, POST, DELETE",
                    &format!("access-control-allow-origin: {origin}"),
                    "access-control-max-age: 600",
                    "vary: Access-Control-Request-Headers",
                    "vary: Origin",
                ]
            );
        }
        let answer = preflight(&gateway, path, "https://evil.test").await;
        assert_eq!((answer.status, told(&answer)), (403, vec!["vary: Origin".to_owned()]));
        assert!(answer.text().contains("Pages of this origin may not call this API"));
    }
    // It takes nothing of anybody's limits, and no backend hears of it.
    assert_eq!(sim.stats().requests(), 0);
}

#[tokio::test]
async fn a_page_may_read_every_answer() {
    let sim = sim().await;
    let gateway = Gateway::before(&[sim.url()], &format!("{CORS}{KEYS}")).await;
    let key = "Authorization: Bearer sk-first-000000001\r\n";
    let from = |origin: &str| format!("Origin: {origin}\r\n");
    let expected = [
        "access-control-allow-origin: https://app.example.com".to_owned(),
        "access-control-expose-headers: *".to_owned(),
        "vary: Origin".to_owned(),
    ];
    let (plain, stream) = (chat(false), chat(true));
    for (method, path, fields, body, status) in [
        ("POST", "/v1/chat/completions", key, plain.as_str(), 200),
        ("POST", "/v1/chat/completions", key, stream.as_str(), 200),
        ("GET", "/v1/models", key, "", 200),
        ("POST", "/v1/chat/completions", "", plain.as_str(), 401),
        ("POST", "/v1/chat/completions", key, "{", 400),
        ("GET", "/v1/nothing", key, "", 404),
        ("OPTIONS", "/v1/chat/completions", key, "", 405),
    ] {
        let case = format!("{method} {path} {status}");
        let answer = ask(&gateway, method, path, &(from(PAGE) + fields), body).await;
        assert_eq!((answer.status, told(&answer)), (status, expected.to_vec()), "{case}");
        // Another page gets the answer as any client does, and its browser keeps it back.
        let answer = ask(&gateway, method, path, &(from("https://evil.test") + fields), body).await;
        assert_eq!(
            (answer.status, told(&answer)),
            (status, vec!["vary: Origin".to_owned()]),
            "{case}"
        );
        let answer = ask(&gateway, method, path, fields, body).await;
        assert_eq!(
            (answer.status, told(&answer)),
            (status, vec!["vary: Origin".to_owned()]),
            "{case}"
        );
    }
    for path in ["/health", "/ready", "/metrics"] {
        let answer = ask(&gateway, "GET", path, &from(PAGE), "").await;
        assert_eq!(
            (answer.status, told(&answer)),
            (200, vec!["vary: Origin".to_owned()]),
            "{path}"
        );
    }
}

#[tokio::test]
async fn what_a_backend_tells_browsers_does_not_count() {
    let body = r#"{"id":"c","object":"chat.completion","model":"m","choices":[]}"#;
    let answer = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nAccess-Control-Allow-Origin: *\r\n\
         Access-Control-Allow-Credentials: true\r\nVary: Accept\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let url = backend(move |_| vec![send(&answer)]).await.0;
    for (cors, expected) in [
        (CORS, vec!["vary: Accept", "vary: Origin"]),
        (
            "server: {cors: {allowed_origins: [\"*\"], expose_headers: [x-request-id]}}\n",
            vec![
                "access-control-allow-origin: *",
                "access-control-expose-headers: x-request-id",
                "vary: Accept",
            ],
        ),
        // Off: as any other field.
        (
            "",
            vec![
                "access-control-allow-credentials: true",
                "access-control-allow-origin: *",
                "vary: Accept",
            ],
        ),
    ] {
        let gateway = Gateway::before(std::slice::from_ref(&url), cors).await;
        let fields = "Origin: https://evil.test\r\n";
        let answer = ask(&gateway, "POST", "/v1/chat/completions", fields, &chat(false)).await;
        assert_eq!(
            (answer.status, told(&answer)),
            (200, expected.iter().map(|e| (*e).to_owned()).collect())
        );
    }
    let gateway = Gateway::before(&[url], "").await;
    assert_eq!(preflight(&gateway, "/v1/chat/completions", PAGE).await.status, 405);
}

#[tokio::test]
async fn an_operator_narrows_what_pages_may() {
    let sim = sim().await;
    let cors = "server: {cors: {allowed_origins: [\"https://app.example.com\"], allow_credentials: true, \
                allowed_methods: [POST], allowed_headers: [Authorization, Content-Type]}}\n";
    let gateway = Gateway::before(&[sim.url()], cors).await;
    let answer = preflight(&gateway, "/v1/chat/completions", PAGE).await;
    let all = told(&answer);
    for part in [
        "access-control-allow-credentials: true",
        "access-control-allow-headers: Authorization, Content-Type",
        "access-control-allow-methods: POST",
        "access-control-max-age: 3600",
    ] {
        assert!(all.contains(&part.to_owned()), "{all:?}");
    }
    let fields = format!("Origin: {PAGE}\r\n");
    let answer = ask(&gateway, "POST", "/v1/chat/completions", &fields, &chat(true)).await;
    let exposed = answer.header("access-control-expose-headers").unwrap();
    assert!(exposed.contains("x-request-id") && exposed.contains("x-ratelimit-remaining-tokens"));
    // It may be written and off, and a reload changes it.
    let off = "server: {cors: {enabled: false, allowed_origins: [\"https://app.example.com\"], max_age: 60}}";
    gateway.rewrite(&format!("backends: [{{url: \"{}\"}}]\n{off}\n", sim.url()));
    crate::support::eventually("it is off", async || {
        preflight(&gateway, "/v1/chat/completions", PAGE).await.status == 405
    })
    .await;
}

#[test]
fn what_browsers_would_not_take_is_refused() {
    for (cors, part) in [
        ("{}", "allowed_origins: allows no page"),
        ("{allowed_origins: [app.example.com]}", "`app.example.com` is not an origin"),
        ("{allowed_origins: [\"https://a/b\"]}", "is not an origin"),
        ("{allowed_origins: [\"*\"], allow_credentials: true}", "would let every page act"),
        ("{allowed_origins: [\"*\"], allowed_methods: [get]}", "allowed_methods[0]: `get`"),
        ("{allowed_origins: [\"*\"], allowed_headers: [\"a, b\"]}", "allowed_headers[0]"),
        (
            "{allowed_origins: [\"https://a\"], allow_credentials: true, expose_headers: [\"*\"]}",
            "expose_headers[0]",
        ),
    ] {
        let text = format!("backends: [{{url: \"http://x\"}}]\nserver: {{cors: {cors}}}\n");
        let output = check(&text, &[]);
        let printed = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{cors}: {printed}");
        assert!(printed.contains(part), "{cors}: {printed}");
    }
}
