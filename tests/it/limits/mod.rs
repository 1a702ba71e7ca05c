//! Limits: which requests are admitted, which wait, which are refused, and what the client sees.

mod budgets;
mod keep_alive;
mod order;
mod per_key;
mod queue;
mod reloads;
mod requests;
mod slots;
mod tokens;

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
        Client, Gateway, Receiver, chat, chat_of, client::Response, eventually, http, saying,
        serve, sim, sim_with,
    },
};

const PATH: &str = "/v1/chat/completions";

/// Two keys of one user, one of another user, and one without a request limit (0).
const KEYS: &str = "auth: {}
api_keys:
  - {key: sk-first-000001, user_id: user_001}
  - {key: sk-second-00001, user_id: user_002}
  - {key: sk-third-000001, user_id: user_001}
  - {key: sk-free-0000001, limits: {requests_per_minute: 0}}
";
const A: &str = "sk-first-000001";
const B: &str = "sk-second-00001";
const SAME_USER_AS_A: &str = "sk-third-000001";
const FREE: &str = "sk-free-0000001";

/// In milliseconds: longer than any test.
const FOREVER: u64 = 3_600_000;

async fn gateway_with(sim: &Sim, limits: &str) -> Gateway {
    Gateway::before(&[sim.url()], &format!("{KEYS}rate_limit: {limits}\n")).await
}

fn bearer(key: &str) -> String {
    format!("Authorization: Bearer {key}\r\n")
}

/// Asks on this connection. The gateway has settled the request before it reads the next one.
async fn ask(client: &mut Client, key: &str, body: &str) -> Response {
    client.post_with(PATH, &bearer(key), body.as_bytes()).await;
    client.answer().await
}

/// Takes the only slot of key `A`, as soon as it is free, with a stream that is still open.
async fn take_slot(gateway: &Gateway) -> Client {
    let mut stream = None;
    eventually("a free slot", async || {
        let mut client = send_chat(gateway, A, true).await;
        let status = client.head().await.status;
        stream = Some(client);
        status == 200
    })
    .await;
    stream.unwrap()
}

/// Sends a request on a new connection without reading the response.
async fn send_chat(gateway: &Gateway, key: &str, stream: bool) -> Client {
    let mut client = gateway.client().await;
    client.post_with(PATH, &bearer(key), chat(stream).as_bytes()).await;
    client
}

/// Opens a stream and reads its head: the stream holds its slot then.
async fn open_stream(gateway: &Gateway, key: &str) -> Client {
    let mut client = send_chat(gateway, key, true).await;
    assert_eq!(client.head().await.status, 200);
    client
}

/// The URL of an unreachable backend. The socket keeps the address from being given to another one.
fn unreachable() -> (String, Socket) {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    let any: SocketAddr = (Ipv4Addr::LOCALHOST, 0).into();
    socket.bind(&any.into()).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    (format!("http://{address}"), socket)
}

/// Waits until `n` requests are in the queue.
async fn wait_for_queue(gateway: &Gateway, n: usize) {
    eventually(&format!("{n} in the queue"), async || {
        gateway.metric("llmproxy_limit_queue_depth").await == n as f64
    })
    .await;
}

fn header_number(answer: &Response, name: &str) -> u64 {
    let value = answer.header(name).unwrap_or_else(|| panic!("no {name}: {answer:?}"));
    value.parse().unwrap()
}

fn requests_left(answer: &Response) -> u64 {
    header_number(answer, "x-ratelimit-remaining-requests")
}

fn tokens_left(answer: &Response) -> u64 {
    header_number(answer, "x-ratelimit-remaining-tokens")
}

/// Status, type and code of a refusal, which must have `Retry-After`.
fn refusal(answer: &Response) -> (u16, String, String) {
    assert!(header_number(answer, "retry-after") > 0);
    let error = &answer.json()["error"];
    let word = |name: &str| error[name].as_str().unwrap_or_default().to_owned();
    (answer.status, word("type"), word("code"))
}

fn error(status: u16, kind: &str, code: &str) -> (u16, String, String) {
    (status, kind.to_owned(), code.to_owned())
}

fn too_many_requests() -> (u16, String, String) {
    error(429, "requests", "rate_limit_exceeded")
}

fn no_slot(status: u16) -> (u16, String, String) {
    error(status, "concurrency", "concurrency_limit_exceeded")
}

async fn refusals_by(gateway: &Gateway, rule: &str) -> f64 {
    gateway.metric(&format!("llmproxy_limit_refused_total{{rule=\"{rule}\"}}")).await
}
