//! Clients that are silent, slow, or too many: each state of a connection has a limit that well-behaved
//! clients do not reach.

use std::{fs, sync::Arc, time::Duration};

use pingora::tls::{ClientConfig, RootCertStore, ServerName, TlsConnector};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    time::{sleep, timeout},
};

use crate::support::{
    Client, Gateway, PATIENCE, Receiver, chat, chat_of, eventually, free_address, http,
    raw::{self, Step},
    sim, sim_with,
    socket::{PREFACE, SETTINGS, Script, frame, http2_post, tcp_until_closed, until_closed},
};

const PATH: &str = "/v1/chat/completions";

/// Connections in each state.
const EACH: usize = 8;

/// Short limits; a machine under load must still serve a request within them.
const SHORT: &str =
    "timeouts: {client_head: 1s, client_read: 1s, client_write: 1s, client_idle: 1s}\n";

fn open_files(gateway: &Gateway) -> usize {
    fs::read_dir(format!("/proc/{}/fd", gateway.pid())).unwrap().count()
}

fn closed(reason: &str) -> String {
    format!("llmproxy_connections_closed_total{{reason=\"{reason}\"}}")
}

/// What a client sends before it becomes silent or very slow.
fn states() -> Vec<(&'static str, Script)> {
    let http2 = [PREFACE, SETTINGS].concat();
    let body = format!("POST {PATH} HTTP/1.1\r\nHost: g\r\nContent-Length: 100000\r\n\r\n{{");
    let chunked = format!("POST {PATH} HTTP/1.1\r\nHost: g\r\nTransfer-Encoding: chunked\r\n\r\n");
    let health = "GET /health HTTP/1.1\r\nHost: g\r\n\r\n";
    let opened = [&http2[..], &http2_post(1, PATH, 100)].concat();
    let begun = [&http2[..], &frame(1, 0, 1, &[0x83, 0x86])].concat();
    vec![
        ("nothing", Script::once("")),
        ("a part of the preface", Script::once(&PREFACE[..8])),
        ("the preface", Script::once(PREFACE)),
        ("preface and settings", Script::once(&http2)),
        ("a frame without its end", Script::once([&http2[..], &[0, 0, 90, 1, 4]].concat())),
        ("header fields without their end", Script::once(begun)),
        ("a stream without its body", Script::once(&opened)),
        ("a stream whose body drips", Script::dripping(&opened, frame(0, 0, 1, b" "))),
        ("pings", Script::dripping(&http2, frame(6, 0, 0, b"12345678"))),
        ("a part of a head", Script::once("GET / HTTP/1.1\r\nHos")),
        ("a head that drips", Script::dripping("GET / HTTP/1.1\r\nX: ", "x")),
        ("a head of many lines", Script::dripping("GET / HTTP/1.1\r\n", "X: x\r\n")),
        ("a body that does not come", Script::once(&body)),
        ("a body that drips", Script::dripping(&body, " ")),
        ("chunks that drip", Script::dripping(&chunked, "1\r\n \r\n")),
        ("a chunk's head that drips", Script::dripping(&chunked, "0")),
        ("a request, then nothing", Script::once(health)),
        ("a request, then a part", Script::once(format!("{health}GET /hea"))),
        ("a request, then drops", Script::dripping(format!("{health}GET /health"), "x")),
    ]
}

#[tokio::test]
async fn silent_connections_are_closed_in_every_state() {
    let sim = sim().await;
    let gateway = Gateway::before(&[sim.url()], SHORT).await;
    gateway.client().await.ask(PATH, chat(false)).await;
    let before = open_files(&gateway);
    let mut silent = Vec::new();
    for (name, script) in states() {
        for _ in 0..EACH {
            silent.push((name, tokio::spawn(tcp_until_closed(gateway.address, script.clone()))));
        }
    }
    // Other clients are served meanwhile, on old and new connections.
    let mut client = gateway.client().await;
    for n in 0..5 {
        assert_eq!(client.ask(PATH, chat(n % 2 == 0)).await.status, 200);
        assert_eq!(gateway.client().await.ask(PATH, chat(false)).await.status, 200);
    }
    drop(client);
    for (name, silent) in silent {
        let (came, _) = silent.await.unwrap().unwrap_or_else(|| panic!("{name}: stays open"));
        let came = String::from_utf8_lossy(&came).into_owned();
        match name {
            "a part of a head" | "a head that drips" | "a head of many lines" => {
                assert!(came.starts_with("HTTP/1.1 408 "), "{name}: {came}");
                assert!(came.contains("\"code\":\"request_timeout\""), "{name}: {came}");
            }
            "a body that does not come" | "a body that drips" | "chunks that drip" => {
                assert!(came.starts_with("HTTP/1.1 408 "), "{name}: {came}");
            }
            // GOAWAY: later requests were not served and may be retried.
            "preface and settings" | "pings" => {
                assert!(came.as_bytes().windows(5).any(|w| w == [0, 0, 8, 7, 0]), "{name}");
            }
            _ => {}
        }
    }
    eventually("files are closed", async || open_files(&gateway) <= before + 2).await;
    for reason in ["opening", "head", "idle"] {
        assert!(gateway.metric(&closed(reason)).await >= EACH as f64, "{reason}");
    }
    // The connection of this query itself.
    eventually("the connections are released", async || {
        gateway.metric("llmproxy_connections").await == 1.0
    })
    .await;
}

/// A gateway with TLS, and a function to connect to it with given protocols.
async fn with_tls(
    url: String,
) -> (Gateway, impl Fn(&[&str]) -> TlsConnector, std::net::SocketAddr) {
    let folder = tempfile::tempdir().unwrap();
    crate::tls::certificate(folder.path());
    let operator = free_address();
    let (at, pem) = (folder.path().display().to_string(), folder.path().join("cert.pem"));
    let more = format!(
        "server: {{metrics_listen: \"{operator}\", tls: {{cert_file: {at}/cert.pem, key_file: {at}/key.pem}}}}\n{SHORT}"
    );
    let gateway = Gateway::before(&[url], &more).await;
    let (certs, _) = pingora::tls::load_certs_and_key_files(
        pem.to_str().unwrap(),
        folder.path().join("key.pem").to_str().unwrap(),
    )
    .unwrap()
    .unwrap();
    let connector = move |protocols: &[&str]| {
        let mut roots = RootCertStore::empty();
        roots.add(certs[0].clone()).unwrap();
        let mut config =
            ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols = protocols.iter().map(|p| p.as_bytes().to_vec()).collect();
        TlsConnector::from(Arc::new(config))
    };
    (gateway, connector, operator)
}

#[tokio::test]
async fn silent_connections_are_closed_over_tls() {
    let sim = sim().await;
    let (gateway, connector, operator) = with_tls(sim.url()).await;
    let before = open_files(&gateway);
    let mut silent = Vec::new();
    for (name, protocols, script) in [
        ("no handshake", None, Script::once("")),
        ("a part of a handshake", None, Script::once([22, 3, 1, 2, 0, 1, 0])),
        ("a handshake that drips", None, Script::dripping([22, 3, 1, 2, 0, 1], [0])),
        ("h2 without a preface", Some(&["h2"][..]), Script::once("")),
        ("h2 with a part of it", Some(&["h2"]), Script::once(&PREFACE[..10])),
        ("h2 with its preface", Some(&["h2"]), Script::once(PREFACE)),
        ("h2 idle", Some(&["h2"]), Script::once([PREFACE, SETTINGS].concat())),
        ("http/1.1 without a byte", Some(&["http/1.1"]), Script::once("")),
        ("no protocol, a part of a head", Some(&[]), Script::once("GET / HT")),
        (
            "idle after a request",
            Some(&["http/1.1"]),
            Script::once("GET /health HTTP/1.1\r\nHost: g\r\n\r\n"),
        ),
    ] {
        for _ in 0..EACH {
            let tls = protocols.map(&connector);
            let (script, address) = (script.clone(), gateway.address);
            let held = async move {
                let stream = TcpStream::connect(address).await.unwrap();
                match tls {
                    None => until_closed(stream, script).await,
                    Some(tls) => {
                        let name = ServerName::try_from("localhost").unwrap();
                        until_closed(tls.connect(name, stream).await.unwrap(), script).await
                    }
                }
            };
            silent.push((name, tokio::spawn(held)));
        }
    }
    for (name, silent) in silent {
        let (came, _) = silent.await.unwrap().unwrap_or_else(|| panic!("{name}: stays open"));
        let came = String::from_utf8_lossy(&came);
        match name {
            "no protocol, a part of a head" => assert!(came.contains(" 408 "), "{name}: {came}"),
            "idle after a request" => assert!(came.contains(" 200 "), "{name}: {came}"),
            _ => {}
        }
    }
    eventually("files are closed", async || open_files(&gateway) <= before + 2).await;
    let url = format!("http://{operator}/metrics");
    let metrics = http::get(url).await.unwrap().text().await.unwrap();
    assert!(metrics.contains("llmproxy_connections 0\n"), "{metrics}");
}

#[tokio::test]
async fn clients_that_do_not_read_are_disconnected() {
    let sim = sim_with(|b| b.tokens = 1_000_000).await;
    let receiver = Receiver::start().await;
    let more = format!("timeouts: {{client_write: 500ms}}\n{}", receiver.hook());
    let gateway = Gateway::before(&[sim.url()], &more).await;
    let mut deaf = gateway.client().await;
    deaf.post(PATH, chat(true)).await;
    deaf.head().await;
    assert_eq!(receiver.one().await["outcome"], "client_aborted");
    assert_eq!(gateway.metric(&closed("write")).await, 1.0);
    // Over HTTP/2 the window of the stream is full, and other streams of the connection continue.
    let body = chat(true);
    let ask =
        [PREFACE, SETTINGS, &http2_post(1, PATH, body.len())[..], &frame(0, 1, 1, body.as_bytes())];
    let mut deaf = TcpStream::connect(gateway.address).await.unwrap();
    deaf.write_all(&ask.concat()).await.unwrap();
    let records = receiver.wait_for(2).await;
    assert_eq!(records[1]["outcome"], "client_aborted");
    eventually("the backend is released", async || sim.stats().running() == 0).await;
}

#[tokio::test]
async fn slow_but_active_clients_are_served() {
    let sim = sim_with(|b| b.first_token_ms = 2_500).await;
    let more = format!("server: {{min_body_rate: 2000}}\n{SHORT}");
    let gateway = Gateway::before(&[sim.url()], &more).await;
    // An engine that takes longer than any limit for silent clients.
    let h2 = http::builder().http2_prior_knowledge().build().unwrap();
    let by_http2 = h2.post(gateway.url(PATH)).body(chat(true)).send();
    let plain = async { gateway.client().await.ask(PATH, chat(false)).await };
    let streamed = async { gateway.client().await.ask(PATH, chat(true)).await };
    // An upload of four seconds, above the rate.
    let upload = async {
        let mut client = gateway.client().await;
        let body = chat_of(20_000, false);
        let head =
            format!("POST {PATH} HTTP/1.1\r\nHost: g\r\nContent-Length: {}\r\n\r\n", body.len());
        client.send(head.as_bytes()).await;
        for piece in body.chunks(500) {
            client.send(piece).await;
            sleep(Duration::from_millis(100)).await;
        }
        client.answer().await
    };
    let (by_http2, plain, streamed, upload) = tokio::join!(by_http2, plain, streamed, upload);
    let by_http2 = by_http2.unwrap().text().await.unwrap();
    assert!(by_http2.ends_with("data: [DONE]\n\n"), "{by_http2}");
    assert_eq!((plain.status, upload.status), (200, 200));
    assert!(streamed.text().ends_with("data: [DONE]\n\n"));
}

#[tokio::test]
async fn clients_that_do_not_read_are_disconnected_over_tls() {
    let sim = sim_with(|b| b.tokens = 1_000_000).await;
    let (gateway, connector, _) = with_tls(sim.url()).await;
    let body = chat(true);
    let request =
        format!("POST {PATH} HTTP/1.1\r\nHost: g\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    let stream = TcpStream::connect(gateway.address).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    let mut deaf = connector(&["http/1.1"]).connect(name, stream).await.unwrap();
    deaf.write_all(request.as_bytes()).await.unwrap();
    eventually("the request runs", async || sim.stats().running() == 1).await;
    eventually("the backend is released", async || sim.stats().running() == 0).await;
}

#[tokio::test]
async fn clients_that_do_not_read_a_large_answer_are_disconnected() {
    let head = raw::head("Content-Type: application/json\r\nContent-Length: 900000000\r\n");
    let flood = Step::Flood(vec![b' '; 256 * 1024], 4000);
    let (backend, _) =
        raw::backend(move |_| vec![head.clone(), raw::send("{"), flood.clone()]).await;
    let receiver = Receiver::start().await;
    let more = format!("timeouts: {{client_write: 500ms}}\n{}", receiver.hook());
    let gateway = Gateway::before(&[backend], &more).await;
    let mut deaf = gateway.client().await;
    deaf.post(PATH, chat(false)).await;
    assert_eq!(receiver.one().await["outcome"], "client_aborted");
    assert_eq!(gateway.metric(&closed("write")).await, 1.0);
}

#[tokio::test]
async fn a_client_that_reads_slowly_gets_everything() {
    let sim = sim_with(|b| b.tokens = 20_000).await;
    let gateway = Gateway::before(&[sim.url()], "timeouts: {client_write: 2s}\n").await;
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let mut client = socket.connect(gateway.address).await.unwrap();
    let body = chat(true);
    let head = format!(
        "POST {PATH} HTTP/1.1\r\nHost: g\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    client.write_all(&[head.as_bytes(), body.as_bytes()].concat()).await.unwrap();
    let mut came = Vec::new();
    let mut piece = vec![0; 64 * 1024];
    loop {
        let read = timeout(PATIENCE, client.read(&mut piece)).await.unwrap().unwrap();
        if read == 0 {
            break;
        }
        came.extend_from_slice(&piece[..read]);
        if came.len() < 500_000 {
            sleep(Duration::from_millis(20)).await;
        }
    }
    assert!(came.ends_with(b"data: [DONE]\n\n\r\n0\r\n\r\n"), "{} bytes", came.len());
}

#[tokio::test]
async fn a_request_shorter_than_the_http2_preface_is_served_immediately() {
    // It is shorter than the HTTP/2 preface.
    let gateway = Gateway::before(&[sim().await.url()], "").await;
    let mut client = gateway.client().await;
    client.send(b"GET /health HTTP/1.0\n\n").await;
    assert_eq!(client.answer().await.status, 200);
    let mut client = gateway.client().await;
    // It begins like a preface.
    client.send(b"PRI /health HTTP/1.1\r\nHost: g\r\n\r\n").await;
    assert_eq!(client.answer().await.status, 405);
}

#[tokio::test]
async fn idle_connections_outlive_those_of_load_balancers() {
    let loaded =
        llmproxy::config::load_text("backends: [{url: \"http://x\"}]", "/".as_ref(), &|_| None);
    let timeouts = loaded.plan.unwrap().timeouts;
    // Google's load balancers keep idle connections for 600 seconds, the longest of all.
    assert!(timeouts.client_idle.unwrap() > Duration::from_secs(600));
    // After a reload, the limit at the last request applies.
    let sim = sim().await;
    let gateway = Gateway::before(&[sim.url()], "timeouts: {client_idle: 1h}\n").await;
    let mut client = TcpStream::connect(gateway.address).await.unwrap();
    let mut ask = async || {
        client.write_all(b"GET /health HTTP/1.1\r\nHost: g\r\n\r\n").await.unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"OK") {
            assert!(client.read_buf(&mut answer).await.unwrap() > 0);
        }
    };
    ask().await;
    let url = sim.url();
    gateway.rewrite(&format!("backends: [{{url: \"{url}\"}}]\ntimeouts: {{client_idle: 300ms}}\n"));
    gateway.logs("configuration 2 is in force").await;
    ask().await;
    assert_eq!(timeout(PATIENCE, client.read(&mut [0; 1])).await.unwrap().unwrap(), 0);
}

/// Open connections without a request.
async fn open(gateway: &Gateway, count: usize) -> Vec<TcpStream> {
    let mut all = Vec::new();
    for _ in 0..count {
        all.push(TcpStream::connect(gateway.address).await.unwrap());
    }
    all
}

/// The status of `GET /health` on a new connection, and whether it has `Retry-After`.
async fn health(gateway: &Gateway) -> (u16, bool) {
    let mut client = gateway.client().await;
    client.try_send(b"GET /health HTTP/1.1\r\nHost: g\r\n\r\n").await;
    let answer = client.answer().await;
    if answer.status == 503 {
        assert_eq!(answer.json()["error"]["code"], "too_many_connections");
    }
    (answer.status, answer.header("retry-after").is_some())
}

#[tokio::test]
async fn connections_are_limited_in_total() {
    let operator = free_address();
    let more = format!("server: {{max_connections: 5, metrics_listen: \"{operator}\"}}\n");
    let gateway = Gateway::before(&[sim().await.url()], &more).await;
    let count = async |name: &str| {
        let text =
            http::get(format!("http://{operator}/metrics")).await.unwrap().text().await.unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap().parse::<u64>().unwrap()
    };
    eventually("no connection is open", async || count("llmproxy_connections").await == 0).await;
    let mut held = open(&gateway, 5).await;
    eventually("all connections are in use", async || count("llmproxy_connections").await == 5)
        .await;
    assert_eq!(health(&gateway).await, (503, true));
    assert_eq!(count("llmproxy_connections_refused_total{reason=\"total\"}").await, 1);
    gateway.logs("server.max_connections").await;
    // Admitted connections are served.
    held[0].write_all(b"GET /health HTTP/1.1\r\nHost: g\r\n\r\n").await.unwrap();
    let mut answer = [0; 12];
    held[0].read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200");
    held.pop();
    eventually("a connection is released", async || count("llmproxy_connections").await == 4).await;
    assert_eq!(health(&gateway).await, (200, false));
}

#[tokio::test]
async fn connections_are_limited_by_address() {
    let more = "server: {max_connections_per_ip: 3, trusted_proxies: [\"127.0.0.3\"]}\n";
    let gateway = Gateway::before(&[sim().await.url()], more).await;
    let from = async |address: &str| {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(format!("{address}:0").parse().unwrap()).unwrap();
        let mut stream = socket.connect(gateway.address).await.unwrap();
        stream.write_all(b"GET /health HTTP/1.1\r\nHost: g\r\n\r\n").await.ok();
        let mut answer = [0; 12];
        timeout(PATIENCE, stream.read_exact(&mut answer)).await.unwrap().unwrap();
        (String::from_utf8_lossy(&answer[9..]).into_owned(), stream)
    };
    let mut held = Vec::new();
    for (address, count, more) in [("127.0.0.2", 3, "503"), ("127.0.0.3", 9, "200")] {
        for _ in 0..count {
            let (status, stream) = from(address).await;
            assert_eq!(status, "200", "{address}");
            held.push(stream);
        }
        assert_eq!(from(address).await.0, more, "{address}");
    }
    // Another address is not affected. The first one is admitted again after it closes a connection.
    assert_eq!(from("127.0.0.4").await.0, "200");
    held.remove(0);
    eventually("a connection is released", async || from("127.0.0.2").await.0 == "200").await;
}

#[tokio::test]
async fn the_limit_of_open_files_is_never_reached() {
    let sim = sim().await;
    let configuration = format!("backends: [{{url: \"{}\"}}]\n", sim.url());
    let limited = ["sh", "-c", "ulimit -n 128; exec \"$@\"", "sh"];
    let gateway = Gateway::wrapped(&configuration, &limited).await;
    // Half of them, 64, are reserved for clients.
    let held = open(&gateway, 100).await;
    eventually("some are refused", async || gateway.log().contains("server.max_connections")).await;
    assert!(open_files(&gateway) < 120);
    drop(held);
    eventually("the gateway serves", async || {
        let mut client = Client::connect(gateway.address).await;
        client.try_send(b"GET /health HTTP/1.1\r\nHost: g\r\n\r\n").await;
        client.answer().await.status == 200
    })
    .await;
    assert_eq!(gateway.client().await.ask(PATH, chat(false)).await.status, 200);
    assert!(!gateway.log().contains("cannot accept"), "{}", gateway.log());
}

#[tokio::test]
async fn a_port_without_an_address_listens_on_both_ip_versions() {
    let sim = sim().await;
    let (port, operator, admin) =
        (free_address().port(), free_address().port(), free_address().port());
    let configuration = format!(
        "listen: \":{port}\"\nserver: {{metrics_listen: \":{operator}\"}}\n\
         admin: {{enabled: true, listen: \":{admin}\", token: a-token-for-tests}}\n\
         backends: [{{url: \"{}\"}}]\n",
        sim.url()
    );
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("llmproxy.yaml");
    fs::write(&file, configuration).unwrap();
    let address = format!("127.0.0.1:{port}").parse().unwrap();
    let gateway = Gateway::with_file(file, address, &[]).await;
    let ipv6 = std::net::TcpListener::bind("[::1]:0").is_ok();
    for host in ["127.0.0.1", "[::1]"] {
        if host == "[::1]" && !ipv6 {
            continue;
        }
        for (port, path) in
            [(port, "/v1/models"), (operator, "/metrics"), (admin, "/admin/v1/openapi.json")]
        {
            let answer = http::get(format!("http://{host}:{port}{path}")).await.unwrap();
            assert!([200, 401].contains(&answer.status().as_u16()), "{host} {path}");
        }
    }
    // Callers are identified by their own address.
    assert_eq!(gateway.client().await.ask(PATH, chat(false)).await.status, 200);
    assert!(gateway.log().contains("ACCESS 127.0.0.1 "), "{}", gateway.log());
}
