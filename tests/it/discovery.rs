//! Discovery of backends at run time: DNS names, sources, and removed backends.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex},
};

use axum::{Router, extract::State, http::StatusCode, routing::get};
use llmproxy::sim::{Behaviour, Sim};
use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    admin::Admin,
    support::{Gateway, NameServer, chat, eventually, free_address, http, sim, sim_with},
};

const PATH: &str = "/v1/chat/completions";

/// Two simulated servers on the same port of two addresses.
async fn twins() -> (Sim, Sim) {
    let first = Ipv4Addr::new(127, 0, 0, 1);
    let second = Ipv4Addr::new(127, 0, 0, 2);
    loop {
        let port = free_address().port();
        let start = async |ip| Sim::start((ip, port).into(), short()).await;
        if let (Ok(a), Ok(b)) = (start(first).await, start(second).await) {
            return (a, b);
        }
    }
}

fn short() -> Behaviour {
    Behaviour { tokens: 4, ..Behaviour::default() }
}

async fn ask(gateway: &Gateway) -> u16 {
    gateway.client().await.ask(PATH, chat(false)).await.status
}

fn requests(sims: [&Sim; 2]) -> [u64; 2] {
    sims.map(|s| s.stats().requests())
}

/// Whether requests go to exactly the expected servers.
async fn only(gateway: &Gateway, sims: [&Sim; 2], expected: [bool; 2]) -> bool {
    let before = requests(sims);
    for _ in 0..4 {
        if ask(gateway).await != 200 {
            return false;
        }
    }
    let after = requests(sims);
    [0, 1].map(|i| after[i] > before[i]) == expected
}

#[tokio::test]
async fn requests_follow_the_addresses_of_a_name() {
    let names = NameServer::start().await;
    let (a, b) = twins().await;
    let port = a.address.port();
    names.set("engines.test", &["127.0.0.1"]);
    let url = format!("http://engines.test:{port}");
    let more = format!("{}health_check: {{interval: 1h}}\n", names.section());
    let gateway = Gateway::before(std::slice::from_ref(&url), &more).await;
    // The addresses are known before the first request.
    assert_eq!(ask(&gateway).await, 200);
    assert!(only(&gateway, [&a, &b], [true, false]).await);
    let host = a.stats().last().unwrap().header("host").unwrap().to_owned();
    assert_eq!(host, format!("engines.test:{port}"));
    let up = |place: &str| format!("llmproxy_backend_up{{backend=\"{url}{place}\"}}");
    assert_eq!(gateway.metric(&up("")).await, 1.0);

    names.set("engines.test", &["127.0.0.2", "127.0.0.1"]);
    eventually("both are used", async || only(&gateway, [&a, &b], [true, true]).await).await;
    let [first, second] = [1, 2].map(|n| up(&format!("@127.0.0.{n}:{port}")));
    eventually("both are probed", async || {
        gateway.metric(&first).await + gateway.metric(&second).await == 2.0
    })
    .await;
    assert!(b.stats().probes() > 0);
    assert_eq!(gateway.metric(&up("")).await, 0.0, "the gauge of before has gone");
    let metrics = async || http::get(gateway.url("/metrics")).await.unwrap().text().await.unwrap();
    eventually("each is shown by itself", async || {
        let text = metrics().await;
        let shown =
            |n| text.contains(&format!("_in_flight{{backend=\"{url}@127.0.0.{n}:{port}\"}}"));
        shown(1) && shown(2) && !text.contains(&format!("_in_flight{{backend=\"{url}\"}}"))
    })
    .await;

    // A stream at a removed address continues to its end.
    a.change(|s| s.inter_token_ms = 1500);
    let streams = async || {
        let mut client = gateway.client().await;
        client.post(PATH, chat(true)).await;
        client.head().await;
        client
    };
    let (mut one, mut two) = (streams().await, streams().await);
    eventually("one of them is there", async || a.stats().running() == 1).await;
    a.change(|s| s.inter_token_ms = 0);
    names.set("engines.test", &["127.0.0.2"]);
    eventually("only the second is used", async || only(&gateway, [&a, &b], [false, true]).await)
        .await;
    for client in [&mut one, &mut two] {
        let mut body = Vec::new();
        while let Some(chunk) = client.chunk().await.filter(|c| !c.is_empty()) {
            body.extend(chunk);
        }
        let body = String::from_utf8(body).unwrap();
        assert!(body.ends_with("data: [DONE]\n\n"), "{body}");
        assert!(!body.contains("error"), "{body}");
    }
    let metrics = metrics().await;
    assert!(!metrics.contains("@127.0.0.1"), "{metrics}");
}

#[tokio::test]
async fn a_dns_failure_keeps_the_addresses_and_an_empty_answer_removes_them() {
    let names = NameServer::start().await;
    let (a, b) = twins().await;
    let url = format!("http://engines.test:{}", a.address.port());
    // The gateway starts although the name does not exist yet.
    let gateway = Gateway::before(&[url], &names.section()).await;
    let answer = gateway.client().await.ask(PATH, chat(false)).await;
    assert_eq!(answer.status, 503);
    assert_eq!(answer.json()["error"]["code"], "no_healthy_backend");
    assert_eq!(gateway.client().await.get("/ready").await.status, 503);
    gateway.logs("name engines.test has no address").await;
    names.set("engines.test", &["127.0.0.1"]);
    eventually("it is there", async || ask(&gateway).await == 200).await;
    names.fail("engines.test");
    let questions = names.questions();
    eventually("the DNS server fails to answer", async || names.questions() > questions).await;
    gateway.logs("name engines.test cannot be resolved").await;
    assert!(only(&gateway, [&a, &b], [true, false]).await);
    names.set("engines.test", &[]);
    // Logged twice.
    eventually("it has gone", async || ask(&gateway).await == 503).await;
}

#[tokio::test]
async fn addresses_can_be_combined_into_one_backend() {
    let names = NameServer::start().await;
    let (a, b) = twins().await;
    let port = a.address.port();
    names.set("engine_pool.test", &["127.0.0.1"]);
    let backends = format!(
        "backends: [{{name: e, url: \"http://engine_pool.test:{port}\", addresses: one}}]\n{}",
        names.section()
    );
    let gateway = Gateway::start(&backends).await;
    assert!(only(&gateway, [&a, &b], [true, false]).await);
    names.set("engine_pool.test", &["127.0.0.2", "127.0.0.1"]);
    let questions = names.questions();
    eventually("the name is looked up again", async || names.questions() > questions + 1).await;
    assert!(only(&gateway, [&a, &b], [true, false]).await, "it stays while the name leads there");
    names.set("engine_pool.test", &["127.0.0.2"]);
    eventually("it moves", async || only(&gateway, [&a, &b], [false, true]).await).await;
}

/// A service that lists backends.
struct Registry {
    address: SocketAddr,
    response: Arc<Mutex<(u16, String)>>,
    task: tokio::task::JoinHandle<()>,
}

impl Registry {
    async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let response = Arc::new(Mutex::new((200, "[]".to_owned())));
        let respond = async |State(response): State<Arc<Mutex<(u16, String)>>>| {
            let (status, text) = response.lock().unwrap().clone();
            (StatusCode::from_u16(status).unwrap(), text)
        };
        let app = Router::new().route("/list", get(respond)).with_state(Arc::clone(&response));
        let task = tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        Self { address, response, task }
    }

    fn respond(&self, status: u16, text: impl ToString) {
        *self.response.lock().unwrap() = (status, text.to_string());
    }

    fn section(&self, more: &str) -> String {
        format!(
            "discovery:\n  sources:\n  - {{name: r, type: http, http: {{url: \"http://{}/list\", interval: 100ms}}{more}}}\n",
            self.address
        )
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn entry(name: &str, sim: &Sim) -> Value {
    json!({"name": name, "url": sim.url(), "status": "active"})
}

#[tokio::test]
async fn backends_come_from_a_service() {
    let registry = Registry::start().await;
    let keyed = |b: &mut Behaviour| b.api_key = "sk-engines".to_owned();
    let (a, b) = (sim_with(keyed).await, sim_with(keyed).await);
    registry.respond(200, json!({"backends": [entry("a", &a)]}));
    let gateway = Gateway::start(&registry.section(", api_key: sk-engines")).await;
    assert_eq!(ask(&gateway).await, 200, "known before the first request");
    let (up, count) =
        ("llmproxy_discovery_up{source=\"r\"}", "llmproxy_discovery_backends{source=\"r\"}");
    assert_eq!((gateway.metric(up).await, gateway.metric(count).await), (1.0, 1.0));

    registry.respond(200, json!([entry("a", &a), entry("b", &b), {"name": "bad", "url": "x"}]));
    eventually("both are used", async || only(&gateway, [&a, &b], [true, true]).await).await;
    gateway.logs("entry 2 (\"bad\")").await;

    // An invalid list or a failure changes nothing.
    let bad = "[{\"name\": \"a\", \"address\": \"of another version\"}]";
    for (status, text) in [(500, "[]"), (200, "<html>"), (200, "{}"), (200, bad)] {
        registry.respond(status, text);
        eventually("the address is down", async || gateway.metric(up).await == 0.0).await;
        assert_eq!(gateway.metric(count).await, 2.0);
        assert!(only(&gateway, [&a, &b], [true, true]).await);
        registry.respond(200, json!([entry("a", &a), entry("b", &b)]));
        eventually("the address is up", async || gateway.metric(up).await == 1.0).await;
    }
    assert_eq!(gateway.log().matches("answered 500").count(), 1, "logged once");
    gateway.logs("no entry is valid: entry 0 (\"a\")").await;

    registry.respond(200, "[]");
    // Logged twice.
    eventually("none is left", async || ask(&gateway).await == 503).await;
    gateway.logs("returned an empty list once").await;
    gateway.logs("lists no backends any more").await;
    assert_eq!(gateway.client().await.get("/ready").await.status, 503);
    registry.respond(200, json!({"services": [entry("b", &b)]}));
    eventually("one is back", async || only(&gateway, [&a, &b], [false, true]).await).await;
}

#[tokio::test]
async fn a_route_can_name_a_discovered_backend() {
    let registry = Registry::start().await;
    let sim = sim().await;
    let models = "models: {gpt: {routes: [{backend: discovered, model: sim-model}]}}\n";
    let gateway = Gateway::start(&format!("{}{models}", registry.section(""))).await;
    let ask = async || {
        let body = chat(false).replace("sim-model", "gpt");
        gateway.client().await.ask(PATH, body).await.status
    };
    assert_eq!(ask().await, 503);
    registry.respond(200, json!([entry("discovered", &sim)]));
    eventually("the route leads to the backend", async || ask().await == 200).await;
}

#[tokio::test]
async fn backends_come_from_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("engines.yaml");
    let (a, b) = (sim().await, sim().await);
    let list = |sims: &[(&str, &Sim)]| {
        let line = |(name, s): &(&str, &Sim)| format!("- {{name: {name}, url: \"{}\"}}\n", s.url());
        fs::write(&file, sims.iter().map(line).collect::<String>()).unwrap();
    };
    list(&[("a", &a)]);
    let section = |mode: &str| {
        format!(
            "discovery:\n  mode: {mode}\n  sources: [{{type: file, file: {{path: \"{}\"}}}}]\n",
            file.display()
        )
    };
    let static_b = format!("backends: [{{name: b, url: \"{}\"}}]\n", b.url());
    let gateway = Gateway::start(&format!("{static_b}{}", section("first"))).await;
    assert!(only(&gateway, [&a, &b], [true, false]).await);
    gateway.rewrite(&format!("{static_b}{}", section("merge")));
    eventually("both are used", async || only(&gateway, [&a, &b], [true, true]).await).await;
    fs::remove_file(&file).unwrap();
    let up = "llmproxy_discovery_up{source=\"file\"}";
    eventually("the address is down", async || gateway.metric(up).await == 0.0).await;
    assert!(only(&gateway, [&a, &b], [true, true]).await);
    // A backend of the configuration takes precedence over one of the same name.
    list(&[("b", &a)]);
    eventually("it has gone", async || only(&gateway, [&a, &b], [false, true]).await).await;
    gateway.rewrite(&static_b);
    eventually("the source has gone", async || {
        let metrics = http::get(gateway.url("/metrics")).await.unwrap().text().await.unwrap();
        !metrics.contains("source=\"file\"")
    })
    .await;
}

#[tokio::test]
async fn a_removed_backend_finishes_its_streams() {
    let (a, b) = (sim_with(|s| s.inter_token_ms = 300).await, sim().await);
    let gateway = Gateway::before(&[a.url()], "").await;
    let mut client = gateway.client().await;
    client.post(PATH, chat(true)).await;
    assert_eq!(client.head().await.status, 200);
    // New requests are fast; the stream is not.
    a.change(|s| s.inter_token_ms = 0);
    gateway.rewrite(&format!("backends: [{{url: \"{}\"}}]\n", b.url()));
    eventually("the other is used", async || only(&gateway, [&a, &b], [false, true]).await).await;
    assert_eq!(a.stats().running(), 1, "the stream is still there");
    let mut body = Vec::new();
    while let Some(chunk) = client.chunk().await.filter(|c| !c.is_empty()) {
        body.extend(chunk);
    }
    let body = String::from_utf8(body).unwrap();
    assert_eq!(body.matches("\"content\":").count(), 16 + 1, "{body}");
    assert!(body.ends_with("data: [DONE]\n\n"), "{body}");
    assert_eq!(a.stats().aborted(), 0);
}

#[tokio::test]
async fn a_drained_backend_is_drained_at_every_address() {
    let names = NameServer::start().await;
    let (a, b) = twins().await;
    let port = a.address.port();
    names.set("engines.test", &["127.0.0.1", "127.0.0.2"]);
    let url = format!("http://engines.test:{port}");
    let admin = Admin::start(std::slice::from_ref(&url), &names.section()).await;
    let (_, key) = admin.post("/admin/v1/keys", json!({"name": "k", "user_id": "u"})).await;
    let key = key["key"].as_str().unwrap();
    let list = async || admin.get("/admin/v1/backends").await["backends"].clone();
    let shown = list().await;
    assert_eq!(shown.as_array().unwrap().len(), 2, "{shown}");
    assert_eq!(shown[1]["name"], format!("{url}@127.0.0.2:{port}"));
    let escaped = url.replace(':', "%3A").replace('/', "%2F");
    let switch = async |method: Method, name: &str| {
        let path = format!("/admin/v1/backends/{name}/drain");
        let (status, body) = admin.ask(method, &path, None).await;
        assert_eq!(status, 200, "{body}");
        body
    };
    let ask = async || admin.gateway.ask_as(key).await.status;

    let one = format!("{escaped}@127.0.0.1%3A{port}");
    assert_eq!(switch(Method::PUT, &one).await["draining"], true);
    for _ in 0..4 {
        assert_eq!(ask().await, 200);
    }
    assert_eq!(requests([&a, &b]), [0, 4]);
    switch(Method::DELETE, &one).await;

    names.set("engines.test", &["127.0.0.1"]);
    eventually("one is left", async || list().await.as_array().unwrap().len() == 1).await;
    let drained = switch(Method::PUT, &escaped).await;
    assert_eq!(drained["addresses"], json!([format!("127.0.0.1:{port}")]));
    assert_eq!(ask().await, 503);
    // An address added later is drained too.
    names.set("engines.test", &["127.0.0.1", "127.0.0.2", "127.0.0.3"]);
    eventually("three are there", async || list().await.as_array().unwrap().len() == 3).await;
    assert!(list().await.as_array().unwrap().iter().all(|b| b["draining"] == true));
    assert_eq!(ask().await, 503);
    switch(Method::DELETE, &escaped).await;
    assert_eq!(ask().await, 200);
}

#[test]
fn problems_in_the_section_are_reported() {
    let text = "discovery:
  interval: 1ms
  dns_servers: [\"10.0.0.1\", \"ns.example.com\"]
  sources:
  - {type: kubernetes, kubernetes: {service: vllm}}
  - {type: consul, consul: {addr: x}}
  - {type: http}
  - {type: file, file: {path: a}}
  - {type: file, file: {path: b}}
  - {name: h, type: http, http: {url: ftp://x, interval: 1ms}}
  - {type: etcd, enabled: false, etcd: {prefix: x}}
";
    let loaded = llmproxy::config::load_text(text, std::path::Path::new("."), &|_| None);
    let problems: Vec<_> = loaded.problems.iter().map(ToString::to_string).collect();
    let expected = [
        "line 2: discovery.interval: is shorter than 100ms",
        "line 3: discovery.dns_servers[1]: `ns.example.com` is not an address",
        "line 5: discovery.sources[0].type: sources of type `kubernetes` are not supported (hint: name a headless service",
        "line 6: discovery.sources[1].type: sources of type `consul` are not supported (hint: write `http://SERVICE.service.consul",
        "line 7: discovery.sources[2]: a source of type `http` needs a section `http`",
        "line 9: discovery.sources[4]: has the same name as an earlier source: `file`",
        "line 10: discovery.sources[5].http.url: is not an http or https URL",
        "line 10: discovery.sources[5].http.interval: is shorter than 100ms",
    ];
    for part in expected {
        assert!(problems.iter().any(|t| t.starts_with(part)), "{part} in {problems:#?}");
    }
    assert_eq!(problems.len(), expected.len(), "{problems:#?}");
}
