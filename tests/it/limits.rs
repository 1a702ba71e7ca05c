//! Limits: who is let in, who waits, who is refused, and what a client is told of it.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use axum::{Router, body::Bytes, extract::State, http::HeaderMap, routing::post};
use llmproxy::sim::{Fail, Sim};
use serde_json::Value;
use socket2::{Domain, Socket, Type};
use tokio::sync::Semaphore;

use super::{
    scripts::with_script,
    streaming::without_time,
    support::{
        Client, Gateway, Receiver, chat, chat_of, client::Answer, eventually, http, saying, sim,
        sim_with,
    },
};

const PATH: &str = "/v1/chat/completions";

/// Keys: two of one user, one of another, and one that `per_key` gives as many requests as it
/// wants.
const KEYS: &str = "auth: {}
api_keys:
  - {key: sk-first-000001, user_id: user_001}
  - {key: sk-second-00001, user_id: user_002}
  - {key: sk-third-000001, user_id: user_001}
  - {key: sk-free-0000001, limits: {requests_per_minute: 0}}
";
const A: &str = "sk-first-000001";
const B: &str = "sk-second-00001";
const OF_THE_SAME_USER: &str = "sk-third-000001";
const FREE: &str = "sk-free-0000001";

/// Milliseconds; longer than any test.
const EVER: u64 = 3_600_000;

const COMMENT: &str = ": keep-alive\n\n";

async fn limited(sim: &Sim, limits: &str) -> Gateway {
    Gateway::before(&[sim.url()], &format!("{KEYS}rate_limit: {limits}\n")).await
}

fn bearer(key: &str) -> String {
    format!("Authorization: Bearer {key}\r\n")
}

/// Asks on this connection: the next one finds everything settled.
async fn ask(client: &mut Client, key: &str, body: &str) -> Answer {
    client.post_with(PATH, &bearer(key), body.as_bytes()).await;
    client.answer().await
}

/// Asks, and does not read the answer.
async fn begun(gateway: &Gateway, key: &str, stream: bool) -> Client {
    let mut client = gateway.client().await;
    client.post_with(PATH, &bearer(key), chat(stream).as_bytes()).await;
    client
}

/// Opens a stream, which has its slot then.
async fn opened(gateway: &Gateway, key: &str) -> Client {
    let mut client = begun(gateway, key, true).await;
    assert_eq!(client.head().await.status, 200);
    client
}

/// A backend that cannot be reached, as long as the socket is kept: nobody else gets the address.
fn dead() -> (String, Socket) {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    let any: SocketAddr = (Ipv4Addr::LOCALHOST, 0).into();
    socket.bind(&any.into()).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    (format!("http://{address}"), socket)
}

/// Waits until so many wait.
async fn waiting(gateway: &Gateway, n: usize) {
    eventually(&format!("{n} in the queue"), async || {
        gateway.metric("llmproxy_limit_queue_depth").await == n as f64
    })
    .await;
}

/// A number in a header.
fn number(answer: &Answer, name: &str) -> u64 {
    let value = answer.header(name).unwrap_or_else(|| panic!("no {name}: {answer:?}"));
    value.parse().unwrap()
}

fn left(answer: &Answer) -> u64 {
    number(answer, "x-ratelimit-remaining-requests")
}

fn tokens_left(answer: &Answer) -> u64 {
    number(answer, "x-ratelimit-remaining-tokens")
}

/// Status, type and code of a refusal, which says when to try again.
fn refusal(answer: &Answer) -> (u16, String, String) {
    assert!(number(answer, "retry-after") > 0);
    let error = &answer.json()["error"];
    let word = |name: &str| error[name].as_str().unwrap_or_default().to_owned();
    (answer.status, word("type"), word("code"))
}

fn words(status: u16, kind: &str, code: &str) -> (u16, String, String) {
    (status, kind.to_owned(), code.to_owned())
}

fn too_many_requests() -> (u16, String, String) {
    words(429, "requests", "rate_limit_exceeded")
}

fn no_slot(status: u16) -> (u16, String, String) {
    words(status, "concurrency", "concurrency_limit_exceeded")
}

async fn refused_by(gateway: &Gateway, rule: &str) -> f64 {
    gateway.metric(&format!("llmproxy_limit_refused_total{{rule=\"{rule}\"}}")).await
}

/// Reloads a configuration.
async fn reload(gateway: &Gateway, sim: &Sim, limits: &str, generation: u32) {
    let backends = format!("backends:\n  - url: \"{}\"\n", sim.url());
    gateway.rewrite(&format!("{backends}{KEYS}rate_limit: {limits}\n"));
    gateway.signal("HUP");
    gateway.logs(&format!("configuration {generation} is in force")).await;
}

// --- requests

#[tokio::test]
async fn a_second_has_a_burst_of_twice_its_rate() {
    let sim = sim().await;
    let gateway = limited(&sim, "{per_key: {requests_per_second: 2}}").await;
    let start = Instant::now();
    let mut passed = 0;
    for n in 0..16 {
        let answer = gateway.ask_as(A).await;
        assert_eq!(answer.header("x-ratelimit-limit"), Some("4"));
        assert!(n >= 4 || answer.status == 200, "{n}");
        passed += u32::from(answer.status == 200);
    }
    let most = 4.0 + 2.0 * start.elapsed().as_secs_f64();
    assert!(f64::from(passed) <= most, "{passed} of {most}");
}

#[tokio::test]
async fn a_burst_is_what_it_is_said_to_be_and_each_key_has_its_own() {
    let sim = sim().await;
    // One more comes in 100 seconds.
    let limits = "{per_key: {requests_per_second: 0.01, burst_size: 3}}";
    let gateway = limited(&sim, limits).await;
    for expected in [2, 1, 0] {
        let answer = gateway.ask_as(A).await;
        assert_eq!((answer.status, left(&answer)), (200, expected));
        assert_eq!(answer.header("x-ratelimit-remaining"), Some(&*expected.to_string()));
        let reset = number(&answer, "x-ratelimit-reset");
        assert!((200 - 100 * expected..=300 - 100 * expected).contains(&reset), "{reset}");
        assert_eq!(answer.header("retry-after"), None);
    }
    let no = gateway.ask_as(A).await;
    assert_eq!(refusal(&no), too_many_requests());
    assert!(number(&no, "retry-after") <= 100);
    for (name, value) in [
        ("x-ratelimit-limit", "3"),
        ("x-ratelimit-remaining", "0"),
        ("x-ratelimit-limit-requests", "3"),
        ("x-ratelimit-remaining-requests", "0"),
    ] {
        assert_eq!(no.header(name), Some(value), "{name}");
    }
    let reset = no.header("x-ratelimit-reset-requests").unwrap();
    assert!(reset.starts_with("3m") || reset.starts_with("4m") || reset == "5m0s", "{reset}");
    let other = gateway.ask_as(B).await;
    assert_eq!((other.status, left(&other)), (200, 2));
    assert_eq!(sim.stats().requests(), 4, "no backend hears of a refusal");
}

#[tokio::test]
async fn a_refusal_names_its_rule_to_the_client_the_metrics_and_the_records() {
    let sim = sim().await;
    let receiver = Receiver::start().await;
    let more =
        format!("{KEYS}rate_limit: {{per_key: {{requests_per_minute: 1}}}}\n{}", receiver.hook());
    let gateway = Gateway::before(&[sim.url()], &more).await;
    assert_eq!(gateway.ask_as(A).await.status, 200);
    let rule = "per_key.requests_per_minute";
    assert_eq!(refused_by(&gateway, rule).await, 0.0);
    let no = gateway.ask_as(A).await;
    assert_eq!(refusal(&no), too_many_requests());
    let message = no.json()["error"]["message"].as_str().unwrap().to_owned();
    let said = format!("Rate limit reached: {rule} allows 1. Try again in ");
    assert!(message.starts_with(&said), "{message}");
    assert_eq!(no.json()["error"]["param"], Value::Null);
    assert_eq!(refused_by(&gateway, rule).await, 1.0);
    // Records come in any order.
    let records = receiver.wait_for(2).await;
    let record = records.iter().find(|r| r["status_code"] == 429).unwrap();
    assert_eq!((&record["outcome"], &record["usage_source"]), (&"rejected".into(), &"none".into()));
    assert_eq!(record["user_id"], "user_001");
    let name = format!(
        "llmproxy_requests_total{{backend=\"\",path=\"{PATH}\",status=\"429\",stream=\"false\"}}"
    );
    assert_eq!(gateway.metric(&name).await, 1.0);
}

#[tokio::test]
async fn a_refusal_can_be_simple() {
    let sim = sim().await;
    let more = format!(
        "{KEYS}rate_limit: {{per_key: {{requests_per_minute: 1}}}}\nserver: {{error_format: simple}}\n"
    );
    let gateway = Gateway::before(&[sim.url()], &more).await;
    assert_eq!(gateway.ask_as(A).await.status, 200);
    let no = gateway.ask_as(A).await;
    assert_eq!((no.status, left(&no), number(&no, "retry-after") > 0), (429, 0, true));
    let body = no.json();
    assert_eq!(body["code"], 429);
    assert!(body["error"].as_str().unwrap().contains("per_key.requests_per_minute"), "{body}");
}

#[tokio::test]
async fn a_refusal_takes_nothing_of_the_other_rules() {
    let sim = sim().await;
    let limits = "{global: {requests_per_minute: 10}, per_key: {requests_per_minute: 1}}";
    let gateway = limited(&sim, limits).await;
    // Of this key only `global` speaks.
    let first = gateway.ask_as(FREE).await;
    assert_eq!((first.header("x-ratelimit-limit"), left(&first)), (Some("10"), 9));
    assert_eq!(gateway.ask_as(A).await.status, 200);
    for _ in 0..5 {
        assert_eq!(refusal(&gateway.ask_as(A).await), too_many_requests());
    }
    let answer = gateway.ask_as(FREE).await;
    assert!(left(&answer) >= 7, "{} after three that passed", left(&answer));
}

#[tokio::test]
async fn what_nobody_serves_takes_nothing_and_a_list_of_models_is_a_request() {
    let sim = sim().await;
    let text = format!(
        "backends: [{{url: \"{}\", models: [sim-model]}}]\n{KEYS}rate_limit: {{per_key: {{requests_per_second: 0.001, burst_size: 2, tokens_per_minute: 100000, max_concurrent: 1}}}}\n",
        sim.url()
    );
    let gateway = Gateway::start(&text).await;
    let mut client = gateway.client().await;
    for (body, status) in
        [(r#"{"model":"unknown","messages":[]}"#, 404), ("not json", 400), ("{}", 400)]
    {
        assert_eq!(ask(&mut client, A, body).await.status, status, "{body}");
    }
    let answer = ask(&mut client, A, &chat(false)).await;
    assert_eq!((answer.status, left(&answer)), (200, 1));
    let list = format!("GET /v1/models HTTP/1.1\r\nHost: g\r\n{}\r\n", bearer(A));
    client.send(list.as_bytes()).await;
    let models = client.answer().await;
    assert_eq!((models.status, left(&models)), (200, 0));
    assert_eq!(models.header("x-ratelimit-limit-tokens"), None, "it has no tokens");
    client.send(list.as_bytes()).await;
    assert_eq!(refusal(&client.answer().await), too_many_requests());
    assert_eq!(refusal(&ask(&mut client, A, &chat(false)).await), too_many_requests());
    for path in ["/health", "/ready", "/metrics"] {
        assert_eq!(client.get(path).await.header("x-ratelimit-limit"), None, "{path}");
    }
}

#[tokio::test]
async fn addresses_are_counted_as_trusted_proxies_tell_them() {
    let sim = sim().await;
    for rule in ["per_ip", "per_key", "per_user"] {
        let more = format!(
            "server: {{trusted_proxies: [\"127.0.0.1\"]}}\nrate_limit: {{{rule}: {{requests_per_second: 0.001}}}}\n"
        );
        let gateway = Gateway::before(&[sim.url()], &more).await;
        for (address, status) in [
            ("2001:db8:1:2::1", 200),
            ("2001:db8:1:2::2", 429),
            ("2001:db8:1:2:ffff::", 429),
            ("2001:db8:1:3::1", 200),
            ("192.0.2.1", 200),
            ("::ffff:192.0.2.1", 429),
            ("192.0.2.2", 200),
        ] {
            let answer = gateway.ask_with(&format!("X-Forwarded-For: {address}\r\n")).await;
            assert_eq!(answer.status, status, "{rule} {address}");
        }
        // Who is not believed has one address, whatever it says.
        let trusting = more.replace("127.0.0.1", "192.0.2.77");
        let gateway = Gateway::before(&[sim.url()], &trusting).await;
        for (address, status) in [("192.0.2.1", 200), ("192.0.2.2", 429)] {
            let answer = gateway.ask_with(&format!("X-Forwarded-For: {address}\r\n")).await;
            assert_eq!(answer.status, status, "{rule} {address}");
        }
    }
}

#[tokio::test]
async fn what_a_backend_says_of_its_own_limits_passes_where_there_are_none() {
    let said = [
        ("x-ratelimit-limit", "7"),
        ("x-ratelimit-remaining-requests", "77"),
        ("x-ratelimit-remaining-tokens", "777"),
        ("anthropic-ratelimit-requests-remaining", "7777"),
    ];
    let answer = move |_: Bytes| async move { (axum::response::AppendHeaders(said), "{}") };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let app = Router::new().route(PATH, post(answer));
    tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
    let more = format!("{KEYS}rate_limit: {{per_user: {{requests_per_minute: 5}}}}\n");
    for (more, key) in [("", A), (KEYS, A), (&more.replace("per_user", "per_team"), A)] {
        let gateway = Gateway::before(std::slice::from_ref(&url), more).await;
        let answer = gateway.ask_as(key).await;
        for (name, value) in said {
            assert_eq!(answer.header(name), Some(value), "{more}");
        }
    }
    let gateway = Gateway::before(&[url], &more).await;
    let answer = gateway.ask_as(A).await;
    assert_eq!(
        (answer.status, answer.header("x-ratelimit-limit"), left(&answer)),
        (200, Some("5"), 4)
    );
    assert_eq!(answer.header("x-ratelimit-remaining-tokens"), None);
    assert_eq!(answer.header("anthropic-ratelimit-requests-remaining"), None);
}

// --- requests at the same time

#[tokio::test]
async fn streams_hold_their_slots() {
    let sim = sim_with(|b| b.inter_token_ms = EVER).await;
    let gateway = limited(&sim, "{per_key: {max_concurrent: 2}}").await;
    let streams = [opened(&gateway, A).await, opened(&gateway, A).await];
    let no = gateway.ask_as(A).await;
    assert_eq!(refusal(&no), no_slot(429));
    let message = no.json()["error"]["message"].as_str().unwrap().to_owned();
    let said = "Concurrency limit reached: per_key.max_concurrent allows 2.";
    assert!(message.starts_with(said), "{message}");
    assert_eq!(refused_by(&gateway, "per_key.max_concurrent").await, 1.0);
    opened(&gateway, B).await;
    drop(streams);
}

#[tokio::test]
async fn a_slot_is_free_again_however_a_request_has_ended() {
    let sim = sim_with(|b| b.inter_token_ms = EVER).await;
    let gateway = limited(&sim, "{per_key: {max_concurrent: 1}}").await;
    let h2 = http::builder().http2_prior_knowledge().build().unwrap();
    for way in ["whole", "left", "left by HTTP/2", "broken", "never begun", "500", "400", "wedged"]
    {
        let slow = matches!(way, "left" | "left by HTTP/2");
        sim.change(|b| {
            b.inter_token_ms = if slow { EVER } else { 0 };
            b.fail = match way {
                "broken" => Fail::MidStream,
                "never begun" => Fail::BeforeHeaders,
                "500" => Fail::Error,
                "wedged" => Fail::Wedge,
                _ => Fail::None,
            };
        });
        match way {
            "left" => drop(opened(&gateway, A).await),
            "wedged" => {
                let client = begun(&gateway, A, false).await;
                eventually("it is there", async || sim.stats().running() == 1).await;
                drop(client);
            }
            "left by HTTP/2" => {
                let request = h2.post(gateway.url(PATH)).bearer_auth(A).body(chat(true));
                let answer = request.send().await.unwrap();
                assert_eq!(answer.status(), 200);
                drop(answer);
            }
            _ => {
                let body =
                    if way == "400" { r#"{"model":"sim-model"}"#.to_owned() } else { chat(true) };
                let mut client = gateway.client().await;
                let answer = ask(&mut client, A, &body).await;
                let expected = match way {
                    "never begun" => 502,
                    "500" => 500,
                    "400" => 400,
                    _ => 200,
                };
                assert_eq!(answer.status, expected, "{way}");
                assert_eq!(answer.text().contains("[DONE]"), way == "whole", "{way}");
            }
        }
        sim.change(|b| (b.inter_token_ms, b.fail) = (EVER, Fail::None));
        eventually(&format!("a free slot after one that was {way}"), async || {
            begun(&gateway, A, true).await.head().await.status == 200
        })
        .await;
        eventually("it is over", async || sim.stats().running() == 0).await;
    }
    // And there are no more of them than before.
    let mut stream = None;
    eventually("a free slot", async || {
        let mut client = begun(&gateway, A, true).await;
        let status = client.head().await.status;
        stream = Some(client);
        status == 200
    })
    .await;
    assert_eq!(refusal(&gateway.ask_as(A).await), no_slot(429));
}

#[tokio::test]
async fn who_has_the_whole_answer_has_given_its_slot_back() {
    let sim = sim().await;
    let gateway = limited(&sim, "{per_key: {max_concurrent: 1}}").await;
    for n in 0..300 {
        // By connections of their own: nothing else orders them.
        let answer = begun(&gateway, A, n % 2 == 0).await.answer().await;
        assert_eq!(answer.status, 200, "{n}: {}", answer.text());
    }
    let (dead, _socket) = dead();
    let more = format!("{KEYS}rate_limit: {{per_key: {{max_concurrent: 1}}}}\n");
    let gateway = Gateway::before(&[dead], &more).await;
    for n in 0..100 {
        assert_eq!(gateway.ask_as(A).await.status, 502, "{n}");
    }
}

#[tokio::test]
async fn who_finds_no_slot_waits_and_who_finds_no_place_does_not() {
    for (set, status) in [("", 429), (", status: 503", 503)] {
        let sim = sim_with(|b| b.inter_token_ms = EVER).await;
        let limits = format!(
            "{{per_model: {{max_concurrent: 1}}, queue: {{max_queue_size: 1, queue_timeout: 1h{set}}}}}"
        );
        let gateway = limited(&sim, &limits).await;
        let stream = opened(&gateway, A).await;
        sim.change(|b| b.inter_token_ms = 0);
        let mut second = begun(&gateway, A, false).await;
        waiting(&gateway, 1).await;
        // It would wait for an hour, if it waited.
        assert_eq!(refusal(&gateway.ask_as(A).await), no_slot(status));
        assert_eq!(refused_by(&gateway, "per_model.max_concurrent").await, 1.0);
        assert_eq!(sim.stats().requests(), 1);
        drop(stream);
        assert_eq!(second.answer().await.status, 200);
        waiting(&gateway, 0).await;
        let waits = "llmproxy_limit_queue_wait_seconds_count{result=\"admitted\"}";
        assert_eq!(gateway.metric(waits).await, 1.0);
    }
}

#[tokio::test]
async fn who_waits_too_long_is_refused() {
    for (set, status) in [("", 429), (", status: 503", 503)] {
        let sim = sim_with(|b| b.inter_token_ms = EVER).await;
        let limits = format!(
            "{{global: {{max_concurrent: 1}}, queue: {{max_queue_size: 1, queue_timeout: 1s{set}}}}}"
        );
        let gateway = limited(&sim, &limits).await;
        let _stream = opened(&gateway, A).await;
        let start = Instant::now();
        let no = gateway.ask_as(B).await;
        assert_eq!(refusal(&no), no_slot(status));
        assert!(start.elapsed() >= Duration::from_secs(1), "{:?}", start.elapsed());
        let waits = "llmproxy_limit_queue_wait_seconds_count{result=\"timeout\"}";
        assert_eq!(gateway.metric(waits).await, 1.0);
        assert_eq!(refused_by(&gateway, "global.max_concurrent").await, 1.0);
        assert_eq!(sim.stats().requests(), 1);
    }
}

#[tokio::test]
async fn who_is_over_a_rate_does_not_wait() {
    let sim = sim_with(|b| b.inter_token_ms = EVER).await;
    let limits = "{per_key: {requests_per_minute: 1, max_concurrent: 1}, queue: {max_queue_size: 9, queue_timeout: 1h}}";
    let gateway = limited(&sim, limits).await;
    let _stream = opened(&gateway, A).await;
    assert_eq!(refusal(&gateway.ask_as(A).await), too_many_requests());
}

#[tokio::test]
async fn who_waits_has_taken_nothing() {
    let sim = sim_with(|b| b.inter_token_ms = EVER).await;
    let limits = "{global: {requests_per_second: 0.001, burst_size: 3}, per_key: {max_concurrent: 1}, queue: {max_queue_size: 9, queue_timeout: 1h}}";
    let gateway = limited(&sim, limits).await;
    let stream = opened(&gateway, A).await;
    sim.change(|b| b.inter_token_ms = 0);
    let mut second = begun(&gateway, A, false).await;
    waiting(&gateway, 1).await;
    let other = gateway.ask_as(B).await;
    assert_eq!((other.status, left(&other)), (200, 1));
    drop(stream);
    let answer = second.answer().await;
    assert_eq!((answer.status, left(&answer)), (200, 0));
}

/// A backend that answers when it is told to, and notes the ids of what comes.
#[derive(Clone)]
struct Gate {
    url: String,
    order: Arc<Mutex<Vec<String>>>,
    answers: Arc<Semaphore>,
}

impl Gate {
    async fn new() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let gate = Self { url, order: Arc::default(), answers: Arc::new(Semaphore::new(0)) };
        let app = Router::new().route(PATH, post(Self::answer)).with_state(gate.clone());
        tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        gate
    }

    /// The body is read, since what is not read costs the connection.
    async fn answer(State(gate): State<Self>, headers: HeaderMap, _: Bytes) -> &'static str {
        let id = headers["x-request-id"].to_str().unwrap().to_owned();
        gate.order.lock().unwrap().push(id);
        gate.answers.acquire().await.unwrap().forget();
        "{}"
    }

    fn order(&self) -> Vec<String> {
        self.order.lock().unwrap().clone()
    }

    /// Waits until so many have come.
    async fn seen(&self, n: usize) {
        eventually(&format!("{n} at the backend"), async || self.order().len() == n).await;
    }
}

/// Asks with an id.
async fn named(gateway: &Gateway, key: &str, id: &str) -> Client {
    let mut client = gateway.client().await;
    let headers = format!("{}X-Request-Id: {id}\r\n", bearer(key));
    client.post_with(PATH, &headers, chat(false).as_bytes()).await;
    client
}

#[tokio::test]
async fn a_key_with_many_does_not_make_another_one_wait() {
    let gate = Gate::new().await;
    let more = format!(
        "{KEYS}rate_limit: {{global: {{max_concurrent: 1}}, queue: {{max_queue_size: 1000, queue_timeout: 1h}}}}\n"
    );
    let gateway = Gateway::before(std::slice::from_ref(&gate.url), &more).await;
    let mut many = vec![named(&gateway, A, "a").await];
    gate.seen(1).await;
    for _ in 0..500 {
        many.push(named(&gateway, A, "a").await);
    }
    waiting(&gateway, 500).await;
    // Some of them are served first: it comes in the middle of it.
    gate.answers.add_permits(10);
    gate.seen(11).await;
    waiting(&gateway, 490).await;
    let mut one = named(&gateway, B, "b").await;
    waiting(&gateway, 491).await;
    let before = gate.order().len();
    gate.answers.add_permits(492);
    assert_eq!(one.answer().await.status, 200);
    for client in &mut many {
        assert_eq!(client.answer().await.status, 200);
    }
    let order = gate.order();
    assert_eq!(order.len(), 502);
    let place = order.iter().position(|id| id == "b").unwrap();
    // One was at the backend when it came; one more may go before it.
    assert!(place <= before + 1, "{place} after {before}");
    waiting(&gateway, 0).await;
}

#[tokio::test]
async fn a_full_queue_makes_room_for_a_key_that_has_less_in_it() {
    let gate = Gate::new().await;
    let more = format!(
        "{KEYS}rate_limit: {{per_model: {{max_concurrent: 1}}, queue: {{max_queue_size: 3, queue_timeout: 1h}}}}\n"
    );
    let gateway = Gateway::before(std::slice::from_ref(&gate.url), &more).await;
    let mut many = Vec::new();
    for n in 0..4 {
        many.push(named(&gateway, A, &format!("a{n}")).await);
        if n == 0 { gate.seen(1).await } else { waiting(&gateway, n).await }
    }
    assert_eq!(refusal(&gateway.ask_as(A).await), no_slot(429));
    let mut one = named(&gateway, B, "b").await;
    let newest = many.pop().unwrap().answer().await;
    assert_eq!(refusal(&newest), no_slot(429));
    waiting(&gateway, 3).await;
    gate.answers.add_permits(4);
    assert_eq!(one.answer().await.status, 200);
    for client in &mut many {
        assert_eq!(client.answer().await.status, 200);
    }
    assert_eq!(gate.order(), ["a0", "a1", "b", "a2"]);
}

#[tokio::test]
async fn a_higher_class_goes_first_and_takes_the_place_of_a_lower_one() {
    let gate = Gate::new().await;
    let keys = KEYS.replace("user_002}", "user_002, tier: vip}");
    let more = format!(
        "{keys}tiers: {{vip: {{queue_class: 1}}}}\n\
         rate_limit: {{global: {{max_concurrent: 1}}, queue: {{max_queue_size: 3, queue_timeout: 1h}}}}\n"
    );
    let gateway = Gateway::before(std::slice::from_ref(&gate.url), &more).await;
    let mut under_way = named(&gateway, A, "a0").await;
    gate.seen(1).await;
    let mut low = Vec::new();
    for n in 1..4 {
        low.push(named(&gateway, A, &format!("a{n}")).await);
        waiting(&gateway, n).await;
    }
    // The key that comes has as many as the other one, and more.
    let mut high = Vec::new();
    for n in 0..2 {
        high.push(named(&gateway, B, &format!("b{n}")).await);
        let newest = low.pop().unwrap().answer().await;
        assert_eq!(refusal(&newest), no_slot(429));
        waiting(&gateway, 3).await;
    }
    // Nobody of a higher class goes for one of a lower.
    assert_eq!(refusal(&gateway.ask_as(OF_THE_SAME_USER).await), no_slot(429));
    gate.answers.add_permits(4);
    for client in [&mut under_way].into_iter().chain(&mut high).chain(&mut low) {
        assert_eq!(client.answer().await.status, 200);
    }
    assert_eq!(gate.order(), ["a0", "b0", "b1", "a1"]);
}

#[tokio::test]
async fn a_script_says_the_tier_and_one_that_nobody_knows_is_none() {
    let gate = Gate::new().await;
    let receiver = Receiver::start().await;
    let script = "return {tier = ({[A] = 'vip', [B] = 'tin'})[api_key]}"
        .replace("[A]", &format!("['{A}']"))
        .replace("[B]", &format!("['{B}']"));
    let text = format!(
        "{}tiers: {{vip: {{queue_class: 1}}}}\n{}\
         rate_limit: {{global: {{max_concurrent: 1}}, queue: {{max_queue_size: 9, queue_timeout: 1h}}}}\n",
        with_script(&gate.url, &script),
        receiver.hook(),
    );
    let gateway = Gateway::start(&text).await;
    let mut clients = vec![named(&gateway, FREE, "none").await];
    gate.seen(1).await;
    let later = [(B, "unknown"), (B, "unknown"), (FREE, "none"), (A, "vip")];
    for (n, (key, id)) in later.into_iter().enumerate() {
        clients.push(named(&gateway, key, id).await);
        waiting(&gateway, n + 1).await;
    }
    gate.answers.add_permits(5);
    for client in &mut clients {
        assert_eq!(client.answer().await.status, 200);
    }
    assert_eq!(gate.order(), ["none", "vip", "unknown", "none", "unknown"]);
    let told = receiver.wait_for(5).await;
    assert_eq!(told.iter().filter(|record| record["tier"] == "vip").count(), 1);
    let log = gateway.log();
    assert_eq!(log.matches("there is no tier \"tin\"").count(), 1, "{log}");
}

fn chunked(body: &[u8]) -> Vec<u8> {
    let head = format!(
        "POST {PATH} HTTP/1.1\r\nHost: g\r\n{}Transfer-Encoding: chunked\r\n\r\n",
        bearer(A)
    );
    let mut bytes = head.into_bytes();
    bytes.extend_from_slice(format!("{:x}\r\n", body.len()).as_bytes());
    bytes.extend_from_slice(body);
    bytes.extend_from_slice(b"\r\n0\r\n\r\n");
    bytes
}

#[tokio::test]
async fn who_leaves_while_it_waits_is_forgotten() {
    let sim = sim_with(|b| b.inter_token_ms = EVER).await;
    let receiver = Receiver::start().await;
    let more = format!(
        "{KEYS}rate_limit: {{global: {{max_concurrent: 1}}, queue: {{max_queue_size: 9, queue_timeout: 1h}}}}\n{}",
        receiver.hook()
    );
    let gateway = Gateway::before(&[sim.url()], &more).await;
    let stream = opened(&gateway, A).await;
    let ways: [(&str, Vec<u8>); 3] = [
        ("a length", Vec::new()),
        ("chunks", chunked(chat(false).as_bytes())),
        ("HTTP/2", Vec::new()),
    ];
    let count = ways.len();
    for (way, bytes) in ways {
        if way == "HTTP/2" {
            let h2 = http::builder().http2_prior_knowledge().build().unwrap();
            let request = h2.post(gateway.url(PATH)).bearer_auth(A).body(chat(false)).send();
            let task = tokio::spawn(request);
            waiting(&gateway, 1).await;
            task.abort();
        } else {
            let mut client = gateway.client().await;
            if bytes.is_empty() {
                client.post_with(PATH, &bearer(A), chat(false).as_bytes()).await;
            } else {
                client.send(&bytes).await;
            }
            waiting(&gateway, 1).await;
            drop(client);
        }
        eventually(&format!("one with {way} has left"), async || {
            gateway.metric("llmproxy_limit_queue_depth").await == 0.0
        })
        .await;
    }
    let left = "llmproxy_limit_queue_wait_seconds_count{result=\"left\"}";
    eventually("all have left", async || gateway.metric(left).await == count as f64).await;
    for record in receiver.wait_for(count).await {
        assert_eq!(
            (&record["outcome"], &record["status_code"]),
            (&"client_aborted".into(), &499.into())
        );
    }
    sim.change(|b| b.inter_token_ms = 0);
    drop(stream);
    eventually("a free slot", async || gateway.ask_as(A).await.status == 200).await;
    assert_eq!(sim.stats().requests(), 2, "no backend has heard of them");
    assert!(!gateway.log().contains("ERROR") && !gateway.log().contains("WARN"));
}

#[tokio::test]
async fn a_body_that_has_waited_arrives_as_it_was() {
    let sim = sim_with(|b| b.inter_token_ms = EVER).await;
    let limits = "{global: {max_concurrent: 1}, queue: {max_queue_size: 9, queue_timeout: 1h}}";
    let gateway = limited(&sim, limits).await;
    for size in [500, 70_000, 300_000] {
        for way in ["a length", "chunks", "HTTP/2"] {
            let body = chat_of(size, false);
            sim.change(|b| b.inter_token_ms = EVER);
            let mut stream = None;
            eventually("a free slot", async || {
                let mut client = begun(&gateway, A, true).await;
                let status = client.head().await.status;
                stream = Some(client);
                status == 200
            })
            .await;
            sim.change(|b| b.inter_token_ms = 0);
            if way == "HTTP/2" {
                let h2 = http::builder().http2_prior_knowledge().build().unwrap();
                let request = h2.post(gateway.url(PATH)).bearer_auth(A).body(body.clone()).send();
                let task = tokio::spawn(request);
                waiting(&gateway, 1).await;
                drop(stream);
                assert_eq!(task.await.unwrap().unwrap().status(), 200, "{way} {size}");
            } else {
                let mut client = gateway.client().await;
                if way == "chunks" {
                    client.send(&chunked(&body)).await;
                } else {
                    client.post_with(PATH, &bearer(A), &body).await;
                }
                waiting(&gateway, 1).await;
                drop(stream);
                assert_eq!(client.answer().await.status, 200, "{way} {size}");
            }
            assert!(sim.stats().last().unwrap().body == body, "{way} {size}: the body was changed");
        }
    }
}

// --- comments for streams that wait

const KEEP_ALIVE: &str = "{global: {max_concurrent: 1}, queue: {max_queue_size: 9, queue_timeout: 1h, keep_alive: 100ms}}";

/// Reads so many comments, and what came with them.
async fn comments(client: &mut Client, n: usize) -> String {
    let mut text = String::new();
    while text.matches(COMMENT).count() < n {
        text.push_str(std::str::from_utf8(&client.chunk().await.unwrap()).unwrap());
    }
    text
}

/// Reads to the end, which must be one; what comes after the comments.
async fn events(client: &mut Client, mut text: String) -> String {
    loop {
        let chunk = client.chunk().await.expect("the end of the body");
        if chunk.is_empty() {
            break;
        }
        text.push_str(std::str::from_utf8(&chunk).unwrap());
    }
    text.trim_start_matches(COMMENT).to_owned()
}

/// The document of the one event of a stream.
fn only_event(text: &str) -> Value {
    let document = text.strip_prefix("data: ").and_then(|t| t.strip_suffix("\n\n"));
    serde_json::from_str(document.unwrap_or(text)).unwrap_or_else(|e| panic!("{e}: {text}"))
}

#[tokio::test]
async fn a_stream_that_waits_is_kept_alive_and_then_is_the_stream() {
    let sim = sim_with(|b| b.inter_token_ms = EVER).await;
    let receiver = Receiver::start().await;
    let more = format!("{KEYS}rate_limit: {KEEP_ALIVE}\n{}", receiver.hook());
    let gateway = Gateway::before(&[sim.url()], &more).await;
    let first = opened(&gateway, A).await;
    sim.change(|b| b.inter_token_ms = 0);
    let mut client = gateway.client().await;
    let id = "X-Request-Id: fixed\r\n";
    let headers = format!("{}{id}Accept-Encoding: gzip\r\n", bearer(B));
    client.post_with(PATH, &headers, chat(true).as_bytes()).await;
    let head = client.head().await;
    assert_eq!(head.status, 200);
    assert_eq!(head.header("content-type"), Some("text/event-stream; charset=utf-8"));
    assert_eq!(head.header("x-request-id"), Some("fixed"));
    let text = comments(&mut client, 3).await;
    assert_eq!(text.replace(COMMENT, ""), "");
    assert_eq!(sim.stats().requests(), 1, "it waits");
    drop(first);
    let found = events(&mut client, text).await;
    assert_eq!(sim.stats().last().unwrap().header("accept-encoding"), None);
    let mut direct = Client::connect(sim.address).await;
    direct.post_with(PATH, id, chat(true).as_bytes()).await;
    let expected = direct.answer().await;
    assert_eq!(without_time(&found), without_time(expected.text()));
    assert!(found.ends_with("data: [DONE]\n\n"));
    // The connection is as good as before.
    let again = ask(&mut client, B, &chat(false)).await;
    assert_eq!((again.status, again.header("content-type")), (200, Some("application/json")));
    let records = receiver.wait_for(3).await;
    let record = records.iter().find(|r| r["request_id"] == "fixed").unwrap();
    assert_eq!((&record["outcome"], &record["status_code"]), (&"complete".into(), &200.into()));
    assert_eq!((&record["total_tokens"], &record["usage_source"]), (&25.into(), &"final".into()));
    assert!(!gateway.log().contains("WARN") && !gateway.log().contains("ERROR"));
}

#[tokio::test]
async fn comments_go_by_http2_too() {
    let sim = sim_with(|b| b.inter_token_ms = EVER).await;
    let gateway = limited(&sim, KEEP_ALIVE).await;
    let first = opened(&gateway, A).await;
    sim.change(|b| b.inter_token_ms = 0);
    let h2 = http::builder().http2_prior_knowledge().build().unwrap();
    let request = h2.post(gateway.url(PATH)).bearer_auth(B).body(chat(true));
    let mut answer = request.send().await.unwrap();
    assert_eq!((answer.version(), answer.status().as_u16()), (reqwest::Version::HTTP_2, 200));
    assert_eq!(answer.chunk().await.unwrap().unwrap(), COMMENT.as_bytes());
    drop(first);
    let text = answer.text().await.unwrap();
    let events = text.trim_start_matches(COMMENT);
    assert!(events.starts_with("data: {\"id\"") && events.ends_with("data: [DONE]\n\n"), "{text}");
}

#[tokio::test]
async fn what_is_no_stream_gets_no_comments() {
    let sim = sim_with(|b| b.inter_token_ms = EVER).await;
    let gateway = limited(&sim, KEEP_ALIVE).await;
    let first = opened(&gateway, A).await;
    sim.change(|b| b.inter_token_ms = 0);
    let mut plain = begun(&gateway, A, false).await;
    waiting(&gateway, 1).await;
    let mut stream = opened(&gateway, B).await;
    // It has waited for as long as this one, which was sent three.
    let text = comments(&mut stream, 3).await;
    drop(first);
    let answer = plain.answer().await;
    assert_eq!((answer.status, answer.header("content-type")), (200, Some("application/json")));
    assert_eq!(answer.json()["usage"]["total_tokens"], 25);
    assert!(events(&mut stream, text).await.ends_with("data: [DONE]\n\n"));
    // Nor does a stream that does not wait.
    let mut client = gateway.client().await;
    assert!(ask(&mut client, A, &chat(true)).await.text().starts_with("data: {\"id\""));
}

#[tokio::test]
async fn a_refusal_after_comments_is_an_event() {
    let sim = sim_with(|b| b.inter_token_ms = EVER).await;
    let receiver = Receiver::start().await;
    let limits = KEEP_ALIVE.replace("1h", "1s");
    let gateway =
        Gateway::before(&[sim.url()], &format!("{KEYS}rate_limit: {limits}\n{}", receiver.hook()))
            .await;
    let _first = opened(&gateway, A).await;
    let mut client = opened(&gateway, B).await;
    let text = comments(&mut client, 1).await;
    let error = only_event(&events(&mut client, text).await);
    assert_eq!(error["error"]["code"], "concurrency_limit_exceeded");
    assert_eq!(error["error"]["type"], "concurrency");
    let record = receiver.one().await;
    assert_eq!((&record["outcome"], &record["status_code"]), (&"rejected".into(), &429.into()));
    assert_eq!(refused_by(&gateway, "global.max_concurrent").await, 1.0);
    assert_eq!(sim.stats().requests(), 1);
}

#[tokio::test]
async fn a_backends_error_after_comments_is_an_event() {
    for fail in [Fail::Error, Fail::TooMany, Fail::Busy] {
        let sim = sim_with(|b| b.inter_token_ms = EVER).await;
        let gateway = limited(&sim, KEEP_ALIVE).await;
        let first = opened(&gateway, A).await;
        sim.change(|b| b.fail = fail);
        let mut client = opened(&gateway, B).await;
        let text = comments(&mut client, 1).await;
        drop(first);
        let found = events(&mut client, text).await;
        let direct = Client::connect(sim.address).await.ask(PATH, chat(true)).await;
        assert_eq!(found, format!("data: {}\n\n", direct.text()), "{fail:?}");
    }
}

#[tokio::test]
async fn a_failure_after_comments_is_an_event() {
    let sim = sim_with(|b| b.inter_token_ms = EVER).await;
    let (dead, _socket) = dead();
    let text = format!(
        "backends:\n  - {{url: \"{}\", models: [sim-model]}}\n  - {{url: \"{dead}\", models: [dead-model]}}\n{KEYS}rate_limit: {KEEP_ALIVE}\n",
        sim.url(),
    );
    let gateway = Gateway::start(&text).await;
    for (model, code) in [("dead-model", "backend_unreachable"), ("sim-model", "backend_failed")] {
        sim.change(|b| b.fail = Fail::None);
        let mut first = None;
        eventually("a free slot", async || {
            let mut client = begun(&gateway, A, true).await;
            client.head().await;
            let text = client.chunk().await.unwrap();
            first = Some(client);
            text.starts_with(b"data: {")
        })
        .await;
        sim.change(|b| b.fail = Fail::BeforeHeaders);
        let mut client = gateway.client().await;
        let body = chat(true).replace("sim-model", model);
        client.post_with(PATH, &bearer(B), body.as_bytes()).await;
        assert_eq!(client.head().await.status, 200);
        let text = comments(&mut client, 1).await;
        drop(first);
        let error = only_event(&events(&mut client, text).await);
        assert_eq!(error["error"]["code"], code);
    }
}

/// What a client is sent after comments, by a backend that answers with these bytes, and the
/// record of it.
async fn after_comments(answer: &str) -> (String, Value) {
    let sim = sim_with(|b| b.inter_token_ms = EVER).await;
    let url = saying(answer.to_owned()).await;
    let receiver = Receiver::start().await;
    let text = format!(
        "backends:\n  - {{url: \"{}\", models: [sim-model]}}\n  - {{url: \"{url}\", models: [odd]}}\n{KEYS}rate_limit: {KEEP_ALIVE}\n{}",
        sim.url(),
        receiver.hook()
    );
    let gateway = Gateway::start(&text).await;
    let first = opened(&gateway, A).await;
    let mut client = gateway.client().await;
    let body = chat(true).replace("sim-model", "odd");
    client.post_with(PATH, &bearer(B), body.as_bytes()).await;
    assert_eq!(client.head().await.status, 200);
    let text = comments(&mut client, 1).await;
    drop(first);
    let found = events(&mut client, text).await;
    let records = receiver.wait_for(2).await;
    (found, records.into_iter().find(|r| r["model"] == "odd").unwrap())
}

#[tokio::test]
async fn a_document_after_comments_is_an_event_and_is_metered() {
    let document = r#"{"choices":[{"finish_reason":"stop"}],"usage":{"prompt_tokens":9,"completion_tokens":16,"total_tokens":25}}"#;
    for (status, tokens, source) in [("200 OK", 25, "final"), ("400 Bad Request", 0, "none")] {
        let (found, record) = after_comments(&format!(
            "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{document}",
            document.len()
        ))
        .await;
        assert_eq!(found, format!("data: {document}\n\n"));
        assert_eq!(
            (&record["total_tokens"], &record["usage_source"]),
            (&tokens.into(), &source.into())
        );
    }
}

#[tokio::test]
async fn an_empty_answer_after_comments_is_an_error_event() {
    for head in [
        "204 No Content\r\n",
        "302 Found\r\nLocation: http://10.1.2.3/\r\nContent-Length: 0\r\n",
        "200 OK\r\nContent-Type: application/json\r\nContent-Length: 0\r\n",
        "200 OK\r\nContent-Type: application/json\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n",
        "500 Internal Server Error\r\nContent-Length: 0\r\n",
    ] {
        let (found, record) = after_comments(&format!("HTTP/1.1 {head}\r\n")).await;
        assert_eq!(only_event(&found)["error"]["code"], "backend_failed", "{head}");
        assert_eq!(
            (&record["outcome"], &record["status_code"]),
            (&"upstream_error".into(), &502.into()),
            "{head}"
        );
    }
}

// --- tokens

#[tokio::test]
async fn a_stream_that_is_left_has_taken_what_was_metered() {
    const CAP: u64 = 2000;
    // It stops after half of them, and keeps the connection open.
    let sim = sim_with(|b| (b.fail, b.tokens) = (Fail::Stall, 600)).await;
    let receiver = Receiver::start().await;
    let more =
        format!("{KEYS}rate_limit: {{per_key: {{tokens_per_minute: {CAP}}}}}\n{}", receiver.hook());
    let gateway = Gateway::before(&[sim.url()], &more).await;
    let start = Instant::now();
    let mut client = begun(&gateway, A, true).await;
    let head = client.head().await;
    assert_eq!(head.header("x-ratelimit-limit-tokens"), Some("2000"));
    // What an answer is thought to come to is held while it runs.
    assert!(tokens_left(&head) < CAP - 200, "{}", tokens_left(&head));
    // The event with the role has an empty content.
    let mut tokens = 0;
    while tokens < 1 + 300 {
        let text = client.chunk().await.unwrap();
        tokens += memchr::memmem::find_iter(&text, b"\"content\":\"").count();
    }
    drop(client);
    let record = receiver.one().await;
    assert_eq!(
        (&record["outcome"], &record["usage_source"]),
        (&"client_aborted".into(), &"partial".into())
    );
    let metered = record["total_tokens"].as_u64().unwrap();
    assert_eq!(metered, 9 + 300);
    sim.change(|b| b.fail = Fail::None);
    let small = chat(false).replacen('{', r#"{"max_tokens":1,"#, 1);
    let mut client = gateway.client().await;
    let answer = ask(&mut client, A, &small).await;
    let refill = (start.elapsed().as_secs_f64() * CAP as f64 / 60.0).ceil() as u64;
    assert_eq!(answer.status, 200);
    let left = tokens_left(&answer);
    let bounds = CAP - metered - 100..=CAP - metered + refill;
    assert!(bounds.contains(&left), "{left} is not in {bounds:?}");
    // Neither is known before there was an answer.
    eventually("estimates are compared", async || {
        let count = "llmproxy_token_estimate_ratio_count";
        gateway.metric(&format!("{count}{{kind=\"prompt\"}}")).await == 2.0
            && gateway.metric(&format!("{count}{{kind=\"completion\"}}")).await == 1.0
    })
    .await;
}

#[tokio::test]
async fn what_was_never_answered_takes_no_tokens() {
    let sim = sim().await;
    let (dead, _socket) = dead();
    let text = format!(
        "backends:\n  - {{url: \"{}\", models: [sim-model]}}\n  - {{url: \"{dead}\", models: [dead-model]}}\n{KEYS}rate_limit: {{per_key: {{tokens_per_minute: 1000}}}}\n",
        sim.url(),
    );
    let gateway = Gateway::start(&text).await;
    let mut client = gateway.client().await;
    let dead = chat(false).replace("sim-model", "dead-model");
    let mut seen = Vec::new();
    for _ in 0..6 {
        let answer = ask(&mut gateway.client().await, A, &dead).await;
        assert_eq!(answer.status, 502);
        seen.push(tokens_left(&answer));
        for (fail, status) in [(Fail::Error, 500), (Fail::TooMany, 429), (Fail::Busy, 503)] {
            sim.change(|b| b.fail = fail);
            let answer = ask(&mut client, A, &chat(false)).await;
            assert_eq!(answer.status, status);
            seen.push(tokens_left(&answer));
        }
    }
    // Each of them found the limit untouched, but for its own estimate.
    assert!((600..=800).contains(&seen[0]), "{seen:?}");
    assert!(seen.iter().all(|left| left.abs_diff(seen[0]) <= 1), "{seen:?}");
}

#[tokio::test]
async fn tokens_that_are_used_up_are_waited_for() {
    for (limit, allows, cost) in [
        ("tokens_per_minute", 20, 25),
        ("input_tokens_per_minute", 5, 9),
        ("output_tokens_per_minute", 10, 16),
    ] {
        let sim = sim().await;
        let gateway = limited(&sim, &format!("{{per_key: {{{limit}: {allows}}}}}")).await;
        let mut client = gateway.client().await;
        // It is larger than the limit, and passes since nothing of it was taken.
        assert_eq!(ask(&mut client, A, &chat(false)).await.status, 200, "{limit}");
        let no = ask(&mut client, A, &chat(false)).await;
        assert_eq!(refusal(&no), words(429, "tokens", "rate_limit_exceeded"));
        assert_eq!(no.header("x-ratelimit-limit-tokens"), Some(&*allows.to_string()));
        assert_eq!(tokens_left(&no), 0);
        // What it took must be there again, whatever it was thought to come to.
        let wait = number(&no, "retry-after");
        assert!(wait <= 60 * cost / allows, "{limit}: {wait}");
        assert_eq!(refused_by(&gateway, &format!("per_key.{limit}")).await, 1.0);
        assert_eq!(ask(&mut client, B, &chat(false)).await.status, 200, "{limit}");
    }
}

// --- budgets

/// Each token costs 1: a chat 25.
const PRICES: &str = "prices: {\"*\": {input: 1000000, output: 1000000}}";

fn no_money() -> (u16, String, String) {
    words(429, "insufficient_quota", "budget_exceeded")
}

#[tokio::test]
async fn a_budget_is_spent_and_then_refuses() {
    let sim = sim().await;
    let limits = format!("{{{PRICES}, per_key: {{budget: 30, budget_period: never}}}}");
    let gateway = limited(&sim, &limits).await;
    let mut client = gateway.client().await;
    // After the first something is left, after the second nothing.
    for _ in 0..2 {
        assert_eq!(ask(&mut client, A, &chat(false)).await.status, 200);
    }
    let no = ask(&mut client, A, &chat(false)).await;
    assert_eq!(refusal(&no), no_money());
    let message = no.json()["error"]["message"].as_str().unwrap().to_owned();
    assert!(message.starts_with("Budget used up: per_key.budget allows 30."), "{message}");
    assert_eq!(refused_by(&gateway, "per_key.budget").await, 1.0);
    assert_eq!(ask(&mut client, B, &chat(false)).await.status, 200);
    assert_eq!(ask(&mut client, OF_THE_SAME_USER, &chat(false)).await.status, 200);
}

#[tokio::test]
async fn a_budget_of_a_user_is_that_of_all_its_keys() {
    let sim = sim().await;
    let limits = format!("{{{PRICES}, per_user: {{budget: 20, budget_period: never}}}}");
    let gateway = limited(&sim, &limits).await;
    let mut client = gateway.client().await;
    assert_eq!(ask(&mut client, A, &chat(true)).await.status, 200);
    assert_eq!(refusal(&ask(&mut client, OF_THE_SAME_USER, &chat(false)).await), no_money());
    assert_eq!(ask(&mut client, B, &chat(false)).await.status, 200);
}

#[tokio::test]
async fn a_budget_of_a_period_says_when_the_next_one_begins() {
    const DAY: u64 = 24 * 3600;
    let sim = sim().await;
    for (period, longest) in
        [("", 31 * DAY), (", budget_period: weekly", 7 * DAY), (", budget_period: daily", DAY)]
    {
        let limits = format!("{{{PRICES}, per_key: {{budget: 20{period}}}}}");
        let gateway = limited(&sim, &limits).await;
        let mut client = gateway.client().await;
        let mut answer = ask(&mut client, A, &chat(false)).await;
        assert_eq!(answer.status, 200);
        // Should midnight come between, there is another one to spend.
        for _ in 0..2 {
            if answer.status == 200 {
                answer = ask(&mut client, A, &chat(false)).await;
            }
        }
        assert_eq!(refusal(&answer), no_money());
        assert!(number(&answer, "retry-after") <= longest, "{answer:?}");
    }
}

async fn spent_on_disk(file: &Path) -> f64 {
    let url = format!("sqlite://{}?mode=ro", file.display());
    let Ok(pool) = sqlx::SqlitePool::connect(&url).await else {
        return 0.0;
    };
    sqlx::query_scalar("SELECT SUM(amount) FROM spent").fetch_one(&pool).await.unwrap_or(0.0)
}

#[tokio::test]
async fn budgets_outlive_the_process() {
    let sim = sim().await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("limits.db");
    let limits = format!(
        "{{{PRICES}, per_key: {{budget: 30, budget_period: never}}, db_path: \"{}\"}}",
        file.display()
    );
    let mut gateway = limited(&sim, &limits).await;
    assert_eq!(gateway.ask_as(A).await.status, 200);
    gateway.signal("TERM");
    assert!(gateway.ended().await.success());
    assert_eq!(spent_on_disk(&file).await, 25.0);

    let mut gateway = limited(&sim, &limits).await;
    assert_eq!(gateway.ask_as(A).await.status, 200, "5 were left");
    eventually("it is written", async || spent_on_disk(&file).await == 50.0).await;
    gateway.signal("KILL");
    assert!(!gateway.ended().await.success());

    let gateway = limited(&sim, &limits).await;
    assert_eq!(refusal(&gateway.ask_as(A).await), no_money());
    assert_eq!(gateway.ask_as(B).await.status, 200);
}

// --- limits of a key's own

/// Ten requests with this key: so many of them pass, which is what its minute has, or all.
async fn pass(gateway: &Gateway, key: &str, expected: u32, what: &str) {
    let start = Instant::now();
    let mut passed = 0;
    for _ in 0..10 {
        let answer = gateway.ask_as(key).await;
        if answer.status != 200 {
            assert_eq!(refusal(&answer), too_many_requests(), "{key} {what}");
        }
        passed += u32::from(answer.status == 200);
    }
    let most = f64::from(expected) * (1.0 + start.elapsed().as_secs_f64() / 60.0);
    assert!(passed >= expected && f64::from(passed) <= most, "{key} {what}: {passed}");
}

#[tokio::test]
async fn limits_of_a_key_go_before_the_rules() {
    let sim = sim().await;
    let keys = "auth: {}
api_keys:
  - {key: sk-plain-000001}
  - {key: sk-more-0000001, limits: {requests_per_minute: 5}}
  - {key: sk-less-0000001, limits: {requests_per_minute: 1}}
  - {key: sk-none-0000001, limits: {requests_per_minute: 0}}
  - {key: sk-model-000001, limits: {requests_per_minute: 0, models: {\"sim-*\": {requests_per_minute: 4}}}}
";
    let cases = |rule| {
        [
            ("sk-plain-000001", rule),
            ("sk-more-0000001", 5),
            ("sk-less-0000001", 1),
            ("sk-none-0000001", 10),
            ("sk-model-000001", 4),
        ]
    };
    let more = format!("{keys}rate_limit: {{per_key: {{requests_per_minute: 2}}}}\n");
    let gateway = Gateway::before(&[sim.url()], &more).await;
    for (key, expected) in cases(2) {
        pass(&gateway, key, expected, "with a section").await;
    }
    assert_eq!(gateway.ask_as("sk-none-0000001").await.header("x-ratelimit-limit"), None);
    assert!(refused_by(&gateway, "per_key_model.requests_per_minute").await >= 1.0);
    let gateway = Gateway::before(&[sim.url()], keys).await;
    for (key, expected) in cases(10) {
        pass(&gateway, key, expected, "without a section").await;
    }
    let off = "rate_limit: {enabled: false, per_key: {requests_per_minute: 2}}\n";
    let gateway = Gateway::before(&[sim.url()], &format!("{keys}{off}")).await;
    for (key, _) in cases(10) {
        pass(&gateway, key, 10, "switched off").await;
    }
    assert_eq!(gateway.ask_as("sk-less-0000001").await.header("x-ratelimit-limit"), None);
}

#[tokio::test]
async fn limits_of_a_script_go_before_the_rules() {
    let sim = sim().await;
    let script = "
local limits = {
  ['sk-more'] = {requests_per_minute = 5},
  ['sk-less'] = {requests_per_minute = '1'},
  ['sk-none'] = {requests_per_minute = 0},
  ['sk-bad'] = {requests_per_day = 1},
  ['sk-worse'] = {requests_per_minute = -1},
}
return {allow = true, metadata = {key_id = api_key}, limits = limits[api_key]}";
    let text = with_script(&sim.url(), script);
    let rule = "rate_limit: {per_key: {requests_per_minute: 2}}\n";
    let gateway = Gateway::start(&format!("{text}{rule}")).await;
    for (key, expected) in [("sk-plain", 2), ("sk-more", 5), ("sk-less", 1), ("sk-none", 10)] {
        pass(&gateway, key, expected, "with a section").await;
    }
    let before = sim.stats().requests();
    for key in ["sk-bad", "sk-worse"] {
        assert_eq!(gateway.ask_as(key).await.status, 403, "{key}");
    }
    assert_eq!(sim.stats().requests(), before);
    gateway.logs("`requests_per_day` is not a known limit").await;
    let gateway = Gateway::start(&text).await;
    pass(&gateway, "sk-less", 1, "without a section").await;
    let gateway = Gateway::start(&format!("{text}rate_limit: {{enabled: false}}\n")).await;
    pass(&gateway, "sk-less", 10, "switched off").await;
}

// --- reloads

#[tokio::test]
async fn what_was_taken_counts_after_a_reload() {
    let sim = sim().await;
    let limits = |n: u32| format!("{{per_key: {{requests_per_second: 0.001, burst_size: {n}}}}}");
    let gateway = limited(&sim, &limits(2)).await;
    for status in [200, 200, 429] {
        assert_eq!(gateway.ask_as(A).await.status, status);
    }
    reload(&gateway, &sim, &format!("{} # the same", limits(2)), 2).await;
    assert_eq!(refusal(&gateway.ask_as(A).await), too_many_requests());
    assert_eq!(gateway.ask_as(B).await.header("x-ratelimit-limit"), Some("2"));
    reload(&gateway, &sim, &limits(1), 3).await;
    let no = gateway.ask_as(A).await;
    assert_eq!((refusal(&no), no.header("x-ratelimit-limit")), (too_many_requests(), Some("1")));
    reload(&gateway, &sim, "{}", 4).await;
    let answer = gateway.ask_as(A).await;
    assert_eq!((answer.status, answer.header("x-ratelimit-limit")), (200, None));
}

#[tokio::test]
async fn slots_and_the_queue_outlive_a_reload() {
    let sim = sim_with(|b| b.inter_token_ms = EVER).await;
    let limits = |slots: u32| {
        format!(
            "{{per_key: {{max_concurrent: {slots}}}, queue: {{max_queue_size: 1, queue_timeout: 1h}}}}"
        )
    };
    let gateway = limited(&sim, &limits(1)).await;
    let stream = opened(&gateway, A).await;
    sim.change(|b| b.inter_token_ms = 0);
    let mut second = begun(&gateway, A, false).await;
    waiting(&gateway, 1).await;
    reload(&gateway, &sim, &format!("{} # the same", limits(1)), 2).await;
    assert_eq!(gateway.metric("llmproxy_limit_queue_depth").await, 1.0);
    assert_eq!(refusal(&gateway.ask_as(A).await), no_slot(429), "the queue is as full as before");
    drop(stream);
    assert_eq!(second.answer().await.status, 200);
    waiting(&gateway, 0).await;

    sim.change(|b| b.inter_token_ms = EVER);
    let _first = opened(&gateway, A).await;
    reload(&gateway, &sim, &limits(2), 3).await;
    let _second = opened(&gateway, A).await;
    let _third = begun(&gateway, A, true).await;
    waiting(&gateway, 1).await;
}

#[tokio::test]
async fn a_limit_of_a_key_changes_with_a_reload() {
    let sim = sim().await;
    let text = |n: u32| {
        let key = format!("{{key: {A}, limits: {{requests_per_minute: {n}}}}}");
        format!("backends:\n  - url: \"{}\"\nauth: {{}}\napi_keys: [{key}]\n", sim.url())
    };
    let gateway = Gateway::start(&text(2)).await;
    assert_eq!(gateway.ask_as(A).await.header("x-ratelimit-limit"), Some("2"));
    gateway.rewrite(&text(7));
    gateway.signal("HUP");
    gateway.logs("configuration 2 is in force").await;
    assert_eq!(gateway.ask_as(A).await.header("x-ratelimit-limit"), Some("7"));
}

#[tokio::test]
async fn who_waits_follows_a_reload() {
    let sim = sim_with(|b| (b.inter_token_ms, b.tokens) = (20, 100_000)).await;
    let queue = "queue: {max_queue_size: 10, queue_timeout: 60s}";
    let gateway = limited(&sim, &format!("{{global: {{max_concurrent: 1}}, {queue}}}")).await;
    let _first = opened(&gateway, A).await;
    let mut second = begun(&gateway, B, true).await;
    waiting(&gateway, 1).await;
    reload(&gateway, &sim, &format!("{{global: {{max_concurrent: 2}}, {queue}}}"), 2).await;
    assert_eq!(second.head().await.status, 200);
    waiting(&gateway, 0).await;
}

#[tokio::test]
async fn who_is_over_a_rate_is_told_so_while_others_wait_and_holds_nobody_up() {
    let sim = sim_with(|b| (b.inter_token_ms, b.tokens) = (20, 100_000)).await;
    let rules = "{global: {max_concurrent: 1}, per_key: {requests_per_minute: 1}, \
                 queue: {max_queue_size: 10, queue_timeout: 60s}}";
    let gateway = limited(&sim, rules).await;
    let first = opened(&gateway, A).await;
    let mut second = begun(&gateway, B, true).await;
    waiting(&gateway, 1).await;
    assert_eq!(refusal(&gateway.ask_as(A).await), too_many_requests());
    // Of two that wait of one key only one may pass, and the other lets others go first.
    let _third = begun(&gateway, B, true).await;
    let mut fourth = begun(&gateway, OF_THE_SAME_USER, true).await;
    waiting(&gateway, 3).await;
    drop(first);
    assert_eq!(second.head().await.status, 200);
    drop(second);
    assert_eq!(fourth.head().await.status, 200);
    waiting(&gateway, 1).await;
}

#[tokio::test]
async fn a_turn_counts_wherever_one_waits() {
    // One slot of the model, and two of each key: a key that waits for a slot of its own does not
    // take the model's past who waits for that.
    let gate = Gate::new().await;
    let rules = "{per_model: {max_concurrent: 2}, per_key: {max_concurrent: 1}, \
                 queue: {max_queue_size: 100, queue_timeout: 60s}}";
    let more = format!("{KEYS}rate_limit: {rules}\n");
    let gateway = Gateway::before(std::slice::from_ref(&gate.url), &more).await;
    let mut clients = Vec::new();
    for id in ["a1", "c1"] {
        let key = if id == "a1" { A } else { FREE };
        clients.push(named(&gateway, key, id).await);
    }
    gate.seen(2).await;
    for n in 2..20 {
        clients.push(named(&gateway, A, &format!("a{n}")).await);
    }
    waiting(&gateway, 18).await;
    clients.push(named(&gateway, B, "b1").await);
    waiting(&gateway, 19).await;
    // Two places become free, one after the other.
    gate.answers.add_permits(1);
    gate.seen(3).await;
    gate.answers.add_permits(1);
    gate.seen(4).await;
    let order = gate.order();
    assert!(order[2..4].contains(&"b1".to_owned()), "{order:?}");
}

#[tokio::test]
async fn limits_by_model_need_a_model() {
    let sim = sim().await;
    let gateway = limited(&sim, "{models: {\"sim-*\": {requests_per_minute: 5}}}").await;
    let mut client = gateway.client().await;
    let nameless = ask(&mut client, A, r#"{"messages":[]}"#).await;
    assert_eq!(
        (nameless.status, nameless.json()["error"]["code"].as_str()),
        (400, Some("missing_model"))
    );
    assert_eq!(left(&gateway.ask_as(A).await), 4);
}

#[tokio::test]
async fn clients_need_not_be_told_how_limits_stand() {
    let sim = sim().await;
    let gateway = limited(&sim, "{headers: false, per_key: {requests_per_minute: 1}}").await;
    let passed = gateway.ask_as(A).await;
    let refused = gateway.ask_as(A).await;
    assert_eq!((passed.status, refusal(&refused)), (200, too_many_requests()));
    for answer in [passed, refused] {
        assert!(!answer.headers.iter().any(|(name, _)| name.contains("ratelimit")), "{answer:?}");
    }
}

#[tokio::test]
async fn a_rate_of_ones_own_leaves_to_others_what_is_theirs() {
    let sim = sim().await;
    let keys = KEYS
        .replace("limits: {requests_per_minute: 0}", "limits: {global: {requests_per_minute: 2}}");
    let rules = "rate_limit: {global: {requests_per_minute: 1000}}\n";
    let gateway = Gateway::before(&[sim.url()], &format!("{keys}{rules}")).await;
    for expected in [200, 200, 429] {
        assert_eq!(gateway.ask_as(FREE).await.status, expected);
    }
    assert_eq!(number(&gateway.ask_as(A).await, "x-ratelimit-limit-requests"), 1000);
    assert!(left(&gateway.ask_as(A).await) >= 998);
}

#[tokio::test]
async fn what_nobody_meters_is_not_for_nothing() {
    let sim = sim_with(|b| (b.inter_token_ms, b.tokens) = (1, 100_000)).await;
    let backends = format!("backends:\n  - {{url: \"{}\", stream_usage: off}}\n", sim.url());
    let rules = "rate_limit: {global: {tokens_per_minute: 10000}}\n";
    let gateway = Gateway::start(&format!("{backends}{rules}")).await;
    let start = Instant::now();
    let mut client = begun(&gateway, A, true).await;
    client.head().await;
    let mut text = String::new();
    while text.matches("\"content\":\"").count() < 600 {
        text.push_str(std::str::from_utf8(&client.chunk().await.unwrap()).unwrap());
    }
    drop(client);
    let refilled = |since: Instant| 10_000.0 / 60.0 * since.elapsed().as_secs_f64() + 1.0;
    eventually("what was streamed is taken", async || {
        let small = r#"{"model":"sim-model","messages":[],"max_tokens":1}"#;
        let left = tokens_left(&gateway.client().await.ask(PATH, small).await) as f64;
        left <= 10_000.0 - 600.0 + refilled(start)
    })
    .await;
}
