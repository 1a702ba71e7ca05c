//! A receiver of usage records.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex},
};

use axum::{
    Router,
    body::Bytes,
    extract::State,
    http::{HeaderMap, StatusCode},
    routing::post,
};
use serde_json::Value;

use super::eventually;

#[derive(Clone, Default)]
struct Shared {
    records: Arc<Mutex<Vec<(HeaderMap, Value)>>>,
    /// How many requests to answer 500 to, before any is accepted.
    refuse: Arc<Mutex<u32>>,
    attempts: Arc<Mutex<u32>>,
}

/// A running receiver.
pub struct Receiver {
    pub address: SocketAddr,
    shared: Shared,
    task: tokio::task::JoinHandle<()>,
}

impl Receiver {
    pub async fn start() -> Self {
        Self::at((Ipv4Addr::LOCALHOST, 0).into()).await
    }

    /// One at this address.
    pub async fn at(address: SocketAddr) -> Self {
        let listener = tokio::net::TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Shared::default();
        let app = Router::new().route("/usage", post(receive)).with_state(shared.clone());
        let task = tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        Self { address, shared, task }
    }

    /// The section of a configuration that sends records here.
    pub fn hook(&self) -> String {
        format!("usage_hook:\n  url: \"http://{}/usage\"\n", self.address)
    }

    /// Answers 500 to the next so many.
    pub fn refuse(&self, n: u32) {
        *self.shared.refuse.lock().unwrap() = n;
    }

    pub fn attempts(&self) -> u32 {
        *self.shared.attempts.lock().unwrap()
    }

    pub fn all(&self) -> Vec<Value> {
        self.shared.records.lock().unwrap().iter().map(|(_, record)| record.clone()).collect()
    }

    /// The headers with which the first record came.
    pub fn headers(&self) -> HeaderMap {
        self.shared.records.lock().unwrap()[0].0.clone()
    }

    /// Waits for so many records in all and returns them.
    pub async fn wait_for(&self, n: usize) -> Vec<Value> {
        eventually(&format!("{n} usage records"), async || self.all().len() >= n).await;
        self.all()
    }

    /// Waits for the one record there is.
    pub async fn one(&self) -> Value {
        let all = self.wait_for(1).await;
        assert_eq!(all.len(), 1, "{all:?}");
        all[0].clone()
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn receive(State(shared): State<Shared>, headers: HeaderMap, body: Bytes) -> StatusCode {
    *shared.attempts.lock().unwrap() += 1;
    let mut refuse = shared.refuse.lock().unwrap();
    if *refuse > 0 {
        *refuse -= 1;
        return StatusCode::INTERNAL_SERVER_ERROR;
    }
    let record = serde_json::from_slice(&body).unwrap();
    shared.records.lock().unwrap().push((headers, record));
    StatusCode::NO_CONTENT
}
