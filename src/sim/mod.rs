//! A simulated vLLM server: what `llmproxy demo`, the tests and the benchmarks talk to.
//!
//! It behaves on the wire as captures of a running vLLM 0.32 show: the same members in the same
//! order, `200` and headers at once and the first event later, errors in the same words, idle
//! connections closed after five seconds, an answer given up as soon as its reader is gone. It
//! can be made to fail in the ways in which real servers fail.

mod chat;
mod conn;
mod control;
mod text;

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::{net::TcpListener, task::JoinHandle};

use crate::base::lock;

/// How a simulated server behaves. Everything can be changed while it runs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Behaviour {
    /// Models that it serves; the first answers requests that name none.
    pub models: Vec<String>,
    /// Milliseconds until the first token.
    pub first_token_ms: u64,
    /// Milliseconds between tokens.
    pub inter_token_ms: u64,
    /// Tokens in an answer; `max_tokens` of a request may lower it.
    pub tokens: u64,
    /// In which way it fails.
    pub fail: Fail,
    /// Every how manyth inference request fails; 1 means each.
    pub fail_every: u64,
    /// Status of `/health`.
    pub health: u16,
    /// Milliseconds after which an idle connection is closed (uvicorn: 5000).
    pub keep_alive_ms: u64,
    /// Closes the connection after every streamed answer without having said so, as llama.cpp
    /// does.
    pub close_after_stream: bool,
    /// The key that it wants as `Authorization: Bearer`; empty for none.
    pub api_key: String,
}

impl Default for Behaviour {
    fn default() -> Self {
        Self {
            models: vec!["sim-model".to_owned()],
            first_token_ms: 0,
            inter_token_ms: 0,
            tokens: 16,
            fail: Fail::None,
            fail_every: 1,
            health: 200,
            keep_alive_ms: 5000,
            close_after_stream: false,
            api_key: String::new(),
        }
    }
}

/// Ways to fail.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
pub enum Fail {
    /// Not at all.
    #[default]
    None,
    /// Closes the connection instead of answering.
    BeforeHeaders,
    /// Closes it after `200` and the headers.
    AfterHeaders,
    /// Closes it after half of the tokens.
    MidStream,
    /// Answers 503, as vLLM does when its queue is full.
    Busy,
    /// Answers 429 with `Retry-After: 7`.
    TooMany,
    /// Answers 500.
    Error,
    /// The first event of a stream is an error.
    ErrorEvent,
    /// An error event after half of the tokens, then `[DONE]`: what vLLM sends when its engine
    /// dies.
    ErrorEventMidStream,
    /// Ends after half of the tokens with `finish_reason` `abort`: what vLLM sends on SIGTERM.
    Abort,
    /// Takes the request and never answers.
    Wedge,
    /// Stops after half of the tokens and keeps the connection open.
    Stall,
}

/// What a simulated server has seen.
#[derive(Default)]
pub struct Stats {
    requests: AtomicU64,
    aborted: AtomicU64,
    running: AtomicU64,
    connections: AtomicU64,
    probes: AtomicU64,
    prompt_tokens: AtomicU64,
    generated_tokens: AtomicU64,
    last: Mutex<Option<Seen>>,
}

/// A request as it arrived.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Seen {
    /// Method and target.
    pub line: String,
    /// Header fields, names in lower case.
    pub headers: Vec<(String, String)>,
    /// The body.
    #[serde(skip)]
    pub body: Vec<u8>,
}

impl Seen {
    /// The value of a header field.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }
}

impl Stats {
    /// Inference requests, failed ones included.
    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    /// Answers given up because the reader was gone.
    pub fn aborted(&self) -> u64 {
        self.aborted.load(Ordering::Relaxed)
    }

    /// Inference requests being answered.
    pub fn running(&self) -> u64 {
        self.running.load(Ordering::Relaxed)
    }

    /// Connections accepted.
    pub fn connections(&self) -> u64 {
        self.connections.load(Ordering::Relaxed)
    }

    /// Requests to `/health`.
    pub fn probes(&self) -> u64 {
        self.probes.load(Ordering::Relaxed)
    }

    /// The last inference request.
    pub fn last(&self) -> Option<Seen> {
        lock(&self.last).clone()
    }
}

/// What the connections of one server share.
struct Shared {
    behaviour: Mutex<Arc<Behaviour>>,
    stats: Stats,
}

impl Shared {
    fn behaviour(&self) -> Arc<Behaviour> {
        Arc::clone(&lock(&self.behaviour))
    }

    fn set(&self, behaviour: Behaviour) {
        *lock(&self.behaviour) = Arc::new(behaviour);
    }
}

/// A running server. It stops when this is dropped, and its connections are cut.
pub struct Sim {
    /// Where it listens.
    pub address: SocketAddr,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

impl Sim {
    /// Starts a server; port 0 takes any that is free.
    ///
    /// # Errors
    /// If the address cannot be listened on.
    pub async fn start(address: SocketAddr, behaviour: Behaviour) -> io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            behaviour: Mutex::new(Arc::new(behaviour)),
            stats: Stats::default(),
        });
        let task = tokio::spawn(accept(listener, Arc::clone(&shared)));
        Ok(Self { address, shared, task })
    }

    /// `http://address`.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// What it has seen.
    pub fn stats(&self) -> &Stats {
        &self.shared.stats
    }

    /// Changes how it behaves; answers under way keep their behaviour.
    pub fn change(&self, change: impl FnOnce(&mut Behaviour)) {
        let mut behaviour = (*self.shared.behaviour()).clone();
        change(&mut behaviour);
        self.shared.set(behaviour);
    }

    /// Runs until the process ends.
    pub async fn forever(mut self) {
        (&mut self.task).await.ok();
    }
}

impl Drop for Sim {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    // Dropping the set, with this task, aborts the connections.
    let mut connections = tokio::task::JoinSet::new();
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                shared.stats.connections.fetch_add(1, Ordering::Relaxed);
                stream.set_nodelay(true).ok();
                connections.spawn(control::serve(conn::Conn::new(stream), Arc::clone(&shared)));
            }
            // Out of descriptors: others will be closed.
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
        while connections.try_join_next().is_some() {}
    }
}
