//! The harness: a gateway process, a raw HTTP client, a receiver of usage records.

pub mod client;
pub mod dns;
pub mod faults;
pub mod gateway;
pub mod helm;
pub mod http;
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
    process::{Command, Output},
    sync::Mutex,
    time::{Duration, Instant},
};

use llmproxy::sim::{Behaviour, Sim};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
pub use {client::Client, dns::NameServer, gateway::Gateway, receiver::Receiver};

/// How long something may take that should happen at once: long enough for a slow machine, short
/// enough to end a test that hangs.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// An address of this machine that nothing listens on.
pub fn free_address() -> SocketAddr {
    static GIVEN: Mutex<Vec<u16>> = Mutex::new(Vec::new());

    let mut given = GIVEN.lock().unwrap();
    loop {
        // Below the ports that the system gives to who asks for any: until this one is listened on,
        // no other test gets it for its backend or its client.
        let port = rand::random_range(10_000..30_000);
        let address = (Ipv4Addr::LOCALHOST, port).into();
        // Nor is it given twice before somebody listens there.
        if !given.contains(&port) && TcpListener::bind(address).is_ok() {
            given.push(port);
            return address;
        }
    }
}

/// A simulated backend.
pub async fn sim() -> Sim {
    sim_with(|_| {}).await
}

/// A simulated backend that behaves in its own way.
pub async fn sim_with(change: impl FnOnce(&mut Behaviour)) -> Sim {
    let mut behaviour = Behaviour::default();
    change(&mut behaviour);
    Sim::start((Ipv4Addr::LOCALHOST, 0).into(), behaviour).await.unwrap()
}

/// Waits until something is so.
pub async fn eventually(what: &str, mut so: impl AsyncFnMut() -> bool) {
    let start = Instant::now();
    while !so().await {
        assert!(start.elapsed() < PATIENCE, "waited in vain: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Runs `llmproxy check`, with no proxy and no trust store in its environment but those given.
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

/// A chat request.
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
    // Not all the same byte: a piece in the wrong place must show.
    let fill: String = (0..fill).map(|i| char::from(b'a' + (i / 7 % 26) as u8)).collect();
    format!("{head}{fill}{tail}").into_bytes()
}

/// A backend that answers the first request on each connection with these bytes; returns its URL.
pub async fn saying(answer: String) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let mut request = Vec::new();
            while !request.ends_with(b"}") {
                if socket.read_buf(&mut request).await.unwrap_or(0) == 0 {
                    break;
                }
            }
            socket.write_all(answer.as_bytes()).await.ok();
        }
    });
    url
}
