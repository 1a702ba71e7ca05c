//! The harness: a gateway process, a raw HTTP client, a receiver of usage records.

pub mod client;
pub mod dns;
pub mod faults;
pub mod gateway;
pub mod helm;
pub mod http;
pub mod node;
pub mod promql;
pub mod promtool;
pub mod python;
pub mod raw;
pub mod receiver;
pub mod recorder;
pub mod servers;
pub mod socket;

use std::{
    net::{Ipv4Addr, SocketAddr, TcpListener},
    process::{Command, Output, Stdio},
    sync::Mutex,
    time::{Duration, Instant},
};

use axum::Router;
use llmproxy::sim::{Behaviour, Sim};
pub use {client::Client, dns::NameServer, gateway::Gateway, receiver::Receiver};

/// The limit for what should happen immediately: long enough for a slow machine, short enough to end
/// a test that hangs.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// An address of this machine that nothing listens on.
pub fn free_address() -> SocketAddr {
    static GIVEN: Mutex<Vec<u16>> = Mutex::new(Vec::new());

    let mut given = GIVEN.lock().unwrap();
    loop {
        // Below the ephemeral ports, so that no backend or client of another test gets this one
        // before the test listens on it.
        let port = rand::random_range(10_000..30_000);
        let address = (Ipv4Addr::LOCALHOST, port).into();
        // Nor is it given out twice before then.
        if !given.contains(&port) && TcpListener::bind(address).is_ok() {
            given.push(port);
            return address;
        }
    }
}

pub async fn sim() -> Sim {
    sim_with(|_| {}).await
}

/// A simulated backend with a changed behaviour.
pub async fn sim_with(change: impl FnOnce(&mut Behaviour)) -> Sim {
    let mut behaviour = Behaviour::default();
    change(&mut behaviour);
    Sim::start((Ipv4Addr::LOCALHOST, 0).into(), behaviour).await.unwrap()
}

/// Waits until a condition holds.
pub async fn eventually(what: &str, mut so: impl AsyncFnMut() -> bool) {
    let start = Instant::now();
    while !so().await {
        assert!(start.elapsed() < PATIENCE, "timed out waiting for: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Runs `llmproxy check`. Proxies and trust stores come only from the given environment.
pub fn check(configuration: &str, env: &[(&str, String)]) -> Output {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("llmproxy.yaml");
    std::fs::write(&file, configuration).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_llmproxy"));
    for name in ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR"] {
        command.env_remove(name);
    }
    command.args(["check", "--config"]).arg(&file);
    command.envs(env.iter().map(|(name, value)| (*name, value))).output().unwrap()
}

pub fn chat(stream: bool) -> String {
    format!(
        r#"{{"model":"sim-model","messages":[{{"role":"user","content":"Hello"}}],"stream":{stream}}}"#
    )
}

/// A valid chat request of exactly `size` bytes.
pub fn chat_of(size: usize, stream: bool) -> Vec<u8> {
    let head = format!(
        r#"{{"model":"sim-model","stream":{stream},"messages":[{{"role":"user","content":""#
    );
    let tail = r#""}]}"#;
    let fill = size.checked_sub(head.len() + tail.len()).expect("the size has room for a request");
    // The bytes differ, so that a piece in the wrong place is detected.
    let fill: String = (0..fill).map(|i| char::from(b'a' + (i / 7 % 26) as u8)).collect();
    format!("{head}{fill}{tail}").into_bytes()
}

/// A backend that answers the first request on each connection with these bytes; returns its URL.
pub async fn saying(answer: String) -> String {
    raw::backend(move |_| vec![raw::send(&answer)]).await.0
}

/// Serves this application on a free port; returns its URL.
pub async fn serve(app: Router) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
    url
}

/// Runs a command that must succeed.
pub fn run(command: &mut Command) {
    let out = command.stdin(Stdio::null()).output().unwrap();
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    assert!(out.status.success(), "{command:?}\n{}\n{}", text(&out.stdout), text(&out.stderr));
}
