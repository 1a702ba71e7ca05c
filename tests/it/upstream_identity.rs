//! What backends see of the gateway: keys, header fields, proxies. Backends never see the client's
//! credentials.

use crate::{
    support::{Gateway, NameServer, Receiver, chat, eventually, http, recorder::Recorder},
    tls::certificate,
};

/// Variables that would make the gateway use a proxy of the test machine.
const NO_PROXIES: [(&str, &str); 8] = [
    ("HTTPS_PROXY", ""),
    ("https_proxy", ""),
    ("HTTP_PROXY", ""),
    ("http_proxy", ""),
    ("ALL_PROXY", ""),
    ("all_proxy", ""),
    ("NO_PROXY", ""),
    ("no_proxy", ""),
];

async fn start(configuration: &str, env: &[(&str, &str)]) -> Gateway {
    let all: Vec<_> = NO_PROXIES.iter().chain(env).copied().collect();
    let gateway = Gateway::spawn(configuration, &all);
    eventually("the gateway answers", async || {
        tokio::net::TcpStream::connect(gateway.address).await.is_ok()
    })
    .await;
    gateway
}

#[tokio::test]
async fn the_key_is_sent_in_the_header_and_format_of_the_backend() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("key");
    std::fs::write(&file, "\u{feff}sk-file\r\n").unwrap();
    let file = file.display();
    for (keys, field, value) in [
        ("api_key: sk-1".to_owned(), "authorization", "Bearer sk-1"),
        ("api_key: sk-1, auth_header: api-key".to_owned(), "api-key", "sk-1"),
        ("api_key: sk-1, auth_header: X-API-Key".to_owned(), "x-api-key", "sk-1"),
        ("api_key: sk-1, auth_scheme: \"\"".to_owned(), "authorization", "sk-1"),
        ("api_key: sk-1, auth_scheme: Token".to_owned(), "authorization", "Token sk-1"),
        (
            "api_key: sk-1, auth_header: X-Key, auth_scheme: Bearer".to_owned(),
            "x-key",
            "Bearer sk-1",
        ),
        (format!("api_key_file: \"{file}\", auth_header: api-key"), "api-key", "sk-file"),
        (
            "api_key: sk-1, headers: {X-Org: o-7, api-key: \"  sk-2 \"}".to_owned(),
            "api-key",
            "sk-2",
        ),
        (format!("headers_file: {{X-Token: \"{file}\"}}"), "x-token", "sk-file"),
    ] {
        let recorder = Recorder::start().await;
        let gateway = start(
            &format!(
                "health_check: {{interval: 1h}}\nbackends: [{{url: \"{}\", {keys}}}]\n",
                recorder.url()
            ),
            &[],
        )
        .await;
        // The client's value of the same field is removed.
        let other = field.replace('-', "_");
        let fields = format!("{field}: Bearer sk-client\r\n{other}: sk-client\r\nX_Org: o-8\r\n");
        let answer = gateway.ask_with(&fields).await;
        assert_eq!(answer.status, 200, "{keys}");
        assert_eq!(gateway.client().await.get("/v1/models").await.status, 200);
        eventually("a probe", async || recorder.lines().contains(&"GET /health".to_owned())).await;
        for request in recorder.requests() {
            assert_eq!(request.values(field), [value], "{keys}: {}", request.line);
            assert!(!format!("{request:?}").contains("sk-client"), "{keys}: {request:?}");
        }
        if keys.contains("X-Org") {
            assert_eq!(recorder.only().values("x-org"), ["o-7"]);
            assert_eq!(recorder.only().values("x_org"), [""; 0]);
            assert_eq!(recorder.only().values("authorization"), ["Bearer sk-1"]);
        }
        gateway.logs("\"POST /v1/chat/completions\" 200").await;
        assert!(!gateway.log().contains("sk-"), "{}", gateway.log());
    }
}

#[tokio::test]
async fn credentials_of_clients_never_reach_a_backend() {
    let recorder = Recorder::start().await;
    let hedge = "routing: {hedge: {delay: 10m}}\n";
    let auth = "auth: {header_names: [X_Own-Key]}\napi_keys: [{key: sk-SECRET}]\n";
    let more = format!("{auth}{hedge}");
    let two = format!(
        "log: {{level: trace}}\nbackends: [{{url: \"{0}\", name: a}}, {{url: \"{0}\", name: b}}]\n{more}",
        recorder.url()
    );
    let gateway = start(&two, &[]).await;
    let names = [
        "Authorization",
        "Cookie",
        "X-API-Key",
        "Api-Key",
        "X-Goog-Api-Key",
        "X-Admin-Token",
        "X-Auth-Token",
        "X-Access-Token",
        "X-Forwarded-Access-Token",
        "X-Forwarded-Id-Token",
        "X-Auth-Request-Access-Token",
        "X-Amz-Security-Token",
        "Cf-Access-Jwt-Assertion",
        "Ocp-Apim-Subscription-Key",
        "Proxy-Authorization",
        "X-Vllm-Priority",
        "X-data-parallel-rank",
        "X-API-Key-UserID",
        "X-API-Key-Name",
        "X-Own-Key",
    ];
    let mut fields = String::new();
    for name in names {
        for spelling in [name.to_owned(), name.replace('-', "_"), name.to_uppercase()] {
            fields.push_str(&format!("{spelling}: sk-SECRET\r\n"));
        }
        // Mixed: an underscore only in place of the last hyphen.
        if let Some((head, tail)) = name.rsplit_once('-') {
            fields.push_str(&format!("{head}_{tail}: sk-SECRET\r\n"));
        }
    }
    fields.push_str("X_Own-Key: sk-SECRET\r\nX-Harmless_Field: yes\r\n");
    // A stream, and a short plain request, which is hedged.
    for body in
        [chat(true), chat(false), r#"{"model":"m","messages":[],"max_tokens":5}"#.to_owned()]
    {
        let before = recorder.requests().len();
        let mut client = gateway.client().await;
        client.post_with("/v1/chat/completions?key=sk-SECRET", &fields, body.as_bytes()).await;
        let answer = client.answer().await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        let request = recorder.requests().remove(before);
        let text = format!("{request:?}");
        assert!(!text.contains("sk-SECRET"), "{text}");
        assert_eq!(request.values("x-harmless_field"), ["yes"]);
    }
    gateway.logs("stream=false").await;
    assert!(!gateway.log().contains("sk-SECRET"), "{}", gateway.log());
}

/// A TLS backend named `backend.test`, with the DNS and trust settings for it.
struct Secure {
    backend: Recorder,
    names: NameServer,
    folder: tempfile::TempDir,
}

impl Secure {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        certificate(folder.path());
        let names = NameServer::start().await;
        names.set("localhost", &["127.0.0.1"]);
        Self { backend: Recorder::tls(folder.path()).await, names, folder }
    }

    fn trust(&self) -> String {
        self.folder.path().join("cert.pem").display().to_string()
    }

    fn port(&self) -> u16 {
        self.backend.address.port()
    }
}

/// A certificate for these names, in a folder.
fn certified(folder: &std::path::Path, names: &[&str]) {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let made = rcgen::generate_simple_self_signed(names).unwrap();
    std::fs::write(folder.join("cert.pem"), made.cert.pem()).unwrap();
    std::fs::write(folder.join("key.pem"), made.signing_key.serialize_pem()).unwrap();
}

#[tokio::test]
async fn https_goes_through_the_proxy_that_applies() {
    let folder = tempfile::tempdir().unwrap();
    certified(folder.path(), &["backend.test", "localhost", "127.0.0.1"]);
    let trust = folder.path().join("cert.pem").display().to_string();
    let names = NameServer::start().await;
    names.set("backend.test", &["127.0.0.1"]);
    // (variable, further keys of the backend, whether the proxy is used)
    for (variable, host, keys, through) in [
        (Some("HTTPS_PROXY"), "backend.test", "", true),
        (Some("https_proxy"), "backend.test", "", true),
        (Some("ALL_PROXY"), "backend.test", "", true),
        (Some("HTTP_PROXY"), "backend.test", "", false),
        (None, "backend.test", ", proxy: \"PROXY\"", true),
        (Some("HTTPS_PROXY"), "backend.test", ", proxy: none", false),
        (None, "backend.test", "", false),
        // Backends on this machine do not use a proxy.
        (Some("HTTPS_PROXY"), "127.0.0.1", "", false),
        (None, "127.0.0.1", ", proxy: \"PROXY\"", true),
    ] {
        let backend = Recorder::tls(folder.path()).await;
        let proxy = Recorder::proxy("200 Connection established").await;
        let url = format!("http://me:pa%3Ass@{}", proxy.address);
        let keys = keys.replace("PROXY", &url);
        let port = backend.address.port();
        let configuration = format!(
            "{}health_check: {{interval: 1h}}\nbackends: [{{url: \"https://{host}:{port}\", name: b{keys}}}]\n",
            names.section()
        );
        let mut env = vec![("SSL_CERT_FILE", trust.as_str())];
        if let Some(variable) = variable {
            env.push((variable, &url));
        }
        let case = format!("{variable:?} {host} {keys}");
        let gateway = start(&configuration, &env).await;
        for body in [chat(false), chat(true)] {
            let answer = gateway.client().await.ask("/v1/chat/completions", &body).await;
            assert_eq!(answer.status, 200, "{case}: {} {}", answer.text(), gateway.log());
        }
        assert_eq!(gateway.client().await.get("/v1/models").await.status, 200, "{case}");
        let lines = backend.lines();
        assert!(lines.contains(&"GET /v1/models".to_owned()), "{case}: {lines:?}");
        assert!(lines.contains(&"GET /health".to_owned()), "{case}: {lines:?}");
        let requests = proxy.requests();
        assert_eq!(!requests.is_empty(), through, "{case}: {requests:?}");
        for request in requests {
            assert_eq!(request.line, format!("CONNECT {host}:{port}"), "{case}");
            assert_eq!(request.values("proxy-authorization"), ["Basic bWU6cGE6c3M="], "{case}");
        }
        gateway.logs("stream=true").await;
        assert!(!gateway.log().contains("pa%3Ass"), "{}", gateway.log());
    }
}

#[tokio::test]
async fn no_proxy_lists_the_exceptions() {
    let folder = tempfile::tempdir().unwrap();
    certified(folder.path(), &["backend.test"]);
    let trust = folder.path().join("cert.pem").display().to_string();
    let names = NameServer::start().await;
    names.set("backend.test", &["127.0.0.1"]);
    for (exceptions, through) in [
        ("backend.test", false),
        (".test", false),
        ("other.test, test", false),
        ("*", false),
        ("end.test", true),
        ("10.0.0.0/8", true),
    ] {
        let backend = Recorder::tls(folder.path()).await;
        let proxy = Recorder::proxy("200 OK").await;
        let configuration = format!(
            "{}backends: [{{url: \"https://backend.test:{}\"}}]\n",
            names.section(),
            backend.address.port()
        );
        let env = [
            ("SSL_CERT_FILE", trust.as_str()),
            ("HTTPS_PROXY", &proxy.url()),
            ("NO_PROXY", exceptions),
        ];
        let gateway = start(&configuration, &env).await;
        assert_eq!(gateway.ask_with("").await.status, 200, "{exceptions}: {}", gateway.log());
        assert_eq!(!proxy.lines().is_empty(), through, "{exceptions}");
    }
}

#[tokio::test]
async fn backends_known_only_to_the_proxy_are_reached() {
    let folder = tempfile::tempdir().unwrap();
    certified(folder.path(), &["outside.test"]);
    let trust = folder.path().join("cert.pem").display().to_string();
    let backend = Recorder::tls(folder.path()).await;
    let proxy = Recorder::proxy("200 OK").await;
    // The DNS server knows only the proxy.
    let names = NameServer::start().await;
    // The first address of the proxy is unreachable.
    names.set("proxy.test", &["127.0.0.3", "127.0.0.1"]);
    let configuration = format!(
        "{}backends: [{{url: \"https://outside.test:{}\", proxy: \"http://proxy.test:{}\"}}]\n",
        names.section(),
        backend.address.port(),
        proxy.address.port()
    );
    let gateway = start(&configuration, &[("SSL_CERT_FILE", &trust)]).await;
    let mut client = gateway.client().await;
    for _ in 0..3 {
        assert_eq!(client.ask("/v1/chat/completions", chat(false)).await.status, 200);
    }
    // The tunnel of the first request used the other address.
    assert!(proxy.lines().len() <= 2, "the tunnel is kept and used again: {:?}", proxy.lines());
    assert_eq!(client.get("/v1/models").await.status, 200);
    assert!(backend.lines().contains(&"GET /v1/models".to_owned()));
}

#[tokio::test]
async fn a_backend_with_tls_may_come_by_a_reload() {
    let secure = Secure::start().await;
    let plain = Recorder::start().await;
    let common = format!("{}health_check: {{interval: 1h}}\n", secure.names.section());
    let first = format!("{common}backends: [{{url: \"{}\"}}]\n", plain.url());
    // The connectors of this process were made without a trust store.
    let gateway = start(&first, &[("SSL_CERT_FILE", &secure.trust())]).await;
    assert_eq!(gateway.ask_with("").await.status, 200);
    let port = secure.port();
    gateway.rewrite(&format!("{common}backends: [{{url: \"https://localhost:{port}\"}}]\n"));
    gateway.signal("HUP");
    eventually("the new backend answers", async || {
        gateway.ask_with("").await.status == 200 && !secure.backend.lines().is_empty()
    })
    .await;
    // Its certificate is verified: one that the machine does not trust is refused.
    let folder = tempfile::tempdir().unwrap();
    certificate(folder.path());
    let other = Recorder::tls(folder.path()).await;
    let port = other.address.port();
    gateway.rewrite(&format!("{common}backends: [{{url: \"https://localhost:{port}\"}}]\n"));
    gateway.signal("HUP");
    // 502, or 503 once its first probe has failed.
    eventually("it is refused", async || gateway.ask_with("").await.status >= 502).await;
    assert_eq!(other.lines(), Vec::<String>::new());
}

#[tokio::test]
async fn a_refusing_proxy_makes_the_backend_unreachable() {
    for status in ["407 Proxy Authentication Required", "502 Bad Gateway", "nonsense"] {
        let secure = Secure::start().await;
        let proxy = Recorder::proxy(status).await;
        let configuration = format!(
            "{}backends: [{{url: \"https://localhost:{}\", proxy: \"{}\"}}]\n",
            secure.names.section(),
            secure.port(),
            proxy.url()
        );
        let gateway = start(&configuration, &[("SSL_CERT_FILE", &secure.trust())]).await;
        let answer = gateway.ask_with("").await;
        assert_eq!(answer.status, 502, "{status}: {}", answer.text());
        assert_eq!(answer.json()["error"]["code"], "backend_unreachable");
        assert_eq!(secure.backend.lines(), Vec::<String>::new());
    }
}

#[tokio::test]
async fn a_plain_http_request_has_an_absolute_uri_for_the_proxy() {
    let proxy = Recorder::start().await;
    let backend = "http://engine.test:8000/team-a?tenant=7";
    for stream in [false, true] {
        let before = proxy.requests().len();
        let configuration = format!(
            "backends: [{{url: \"{backend}\", api_key: sk-1, proxy: \"http://me:secret@{}\"}}]\n",
            proxy.address
        );
        let gateway = start(&configuration, &[]).await;
        let mut client = gateway.client().await;
        let answer = client.ask("/v1/chat/completions?beta=1", chat(stream)).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_eq!(client.get("/v1/models").await.status, 200);
        let requests = proxy.requests().split_off(before);
        let lines: Vec<_> = requests.iter().map(|request| request.line.as_str()).collect();
        assert_eq!(
            lines,
            [
                "POST http://engine.test:8000/team-a/v1/chat/completions?tenant=7&beta=1",
                "GET http://engine.test:8000/team-a/v1/models?tenant=7"
            ]
        );
        for request in requests {
            assert_eq!(request.values("host"), ["engine.test:8000"]);
            assert_eq!(request.values("authorization"), ["Bearer sk-1"]);
            assert_eq!(request.values("proxy-authorization"), ["Basic bWU6c2VjcmV0"]);
        }
    }
}

#[tokio::test]
async fn webhooks_on_this_machine_do_not_go_through_a_proxy() {
    let (proxy, backend) = (Recorder::proxy("200 OK").await, Recorder::start().await);
    for host in ["127.0.0.1", "localhost"] {
        let receiver = Receiver::start().await;
        let url = receiver.url().replace("127.0.0.1", host);
        let configuration = format!(
            "backends: [{{url: \"{}\"}}]\nusage_hook: {{enabled: true, url: \"{url}\"}}\n",
            backend.url()
        );
        let url = proxy.url();
        let env = [("HTTP_PROXY", url.as_str()), ("http_proxy", &url), ("ALL_PROXY", &url)];
        let gateway = start(&configuration, &env).await;
        assert_eq!(gateway.ask_with("").await.status, 200);
        eventually("a record", async || receiver.all().len() == 1).await;
        assert_eq!(proxy.lines(), Vec::<String>::new(), "{host}");
    }
}

#[test]
fn problems_are_reported_without_secrets() {
    for (keys, path, part) in [
        ("auth_header: api-key", "auth_header", "there is no key to send"),
        ("auth_scheme: Bearer", "auth_scheme", "there is no key to send"),
        ("api_key: sk-SECRET, auth_header: \"a b\"", "auth_header", "is not the name"),
        ("api_key: sk-SECRET, auth_header: Host", "auth_header", "is not the name"),
        ("api_key: sk-SECRET, auth_header: Transfer-Encoding", "auth_header", "is not the name"),
        ("api_key: sk-SECRET, auth_scheme: \"a b\"", "auth_scheme", "is not one word"),
        ("headers: {Host: sk-SECRET}", "headers.host", "is set by the gateway itself"),
        ("headers: {Connection: sk-SECRET}", "headers.connection", "is set by the gateway"),
        ("headers: {Content-Length: \"1\"}", "headers.content-length", "is set by the gateway"),
        ("headers: {X-A: \"sk-SECRET\\nb\"}", "headers.X-A", "is not a header field"),
        (
            "api_key: sk-SECRET, headers: {Authorization: sk-SECRET}",
            "headers.authorization",
            "is also the `auth_header` of the key",
        ),
        ("proxy: \"socks5://me:sk-SECRET@p:1\"", "proxy", "only `http` is possible"),
        ("proxy: \"https://me:sk-SECRET@p:1\"", "proxy", "only `http` is possible"),
        (
            "proxy: \"http://p:1\", addresses: each",
            "addresses",
            "addresses cannot be distinguished",
        ),
        ("proxy: \"http://\"", "proxy", "is not the URL of a proxy"),
        ("proxy: \"http://me:sk-SECRET@p:99999\"", "proxy", "is not the URL of a proxy"),
    ] {
        let text = format!("backends: [{{url: \"https://h\", {keys}}}]\n");
        let env = |_: &str| None;
        let loaded = llmproxy::config::load_text(&text, std::path::Path::new("."), &env);
        let problems: Vec<_> = loaded.problems.iter().map(ToString::to_string).collect();
        let path = format!("backends[0].{path}: ");
        assert!(
            problems.len() == 1 && problems[0].contains(&path) && problems[0].contains(part),
            "{keys}: {problems:?}"
        );
        assert!(!problems[0].contains("SECRET"), "{problems:?}");
    }
    let env = |name: &str| (name == "HTTPS_PROXY").then(|| "socks5://me:sk-SECRET@p:1".to_owned());
    let text = "backends: [{url: \"https://h\"}, {url: \"http://h\"}]\n";
    let loaded = llmproxy::config::load_text(text, std::path::Path::new("."), &env);
    let problems: Vec<_> = loaded.problems.iter().map(ToString::to_string).collect();
    assert!(
        problems.len() == 1 && problems[0].contains("`HTTPS_PROXY` names a proxy of `socks5`"),
        "{problems:?}"
    );
    assert!(!problems[0].contains("SECRET"), "{problems:?}");
    // A disabled backend needs no proxy.
    let text = "backends: [{url: \"https://h\", enabled: false}, {url: \"http://h\"}]\n";
    let loaded = llmproxy::config::load_text(text, std::path::Path::new("."), &env);
    assert!(loaded.plan.is_some() && loaded.problems.is_empty(), "{:?}", loaded.problems);
}

#[tokio::test]
async fn the_shown_configuration_contains_no_secrets() {
    let backend = Recorder::start().await;
    let configuration = format!(
        "log: {{level: trace}}\nadmin: {{enabled: true, listen: \"ADMIN\", token: admin-token}}\nbackends: [{{url: \"{}/v1?sig=sk-SECRET1\", api_key: sk-SECRET2, headers: {{X-A: sk-SECRET3}}, proxy: \"http://a:sk-SECRET4@127.0.0.1:1\"}}]\n",
        backend.url()
    );
    let admin = crate::support::free_address();
    let gateway = start(&configuration.replace("ADMIN", &admin.to_string()), &[]).await;
    gateway.ask_with("").await;
    for path in ["/admin/v1/config", "/admin/v1/backends"] {
        let url = format!("http://{admin}{path}");
        let request = http::client().get(url).header("X-Admin-Token", "admin-token");
        let answer = request.send().await.unwrap();
        assert_eq!(answer.status(), 200, "{path}");
        let text = answer.text().await.unwrap();
        assert!(text.contains(&backend.address.to_string()), "{text}");
        assert!(!text.contains("SECRET"), "{text}");
    }
    gateway.logs("ACCESS").await;
    assert!(!gateway.log().contains("SECRET"), "{}", gateway.log());
}
