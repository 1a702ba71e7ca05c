//! A webhook that receives usage records.

use std::{
    collections::VecDeque,
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard},
    time::Instant,
};

use axum::{
    Router,
    body::Bytes,
    extract::State,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
    routing::post,
};
use serde_json::Value;

use super::eventually;

#[derive(Clone, Debug)]
pub struct Attempt {
    pub at: Instant,
    pub headers: HeaderMap,
    pub body: Bytes,
    /// The status of the response.
    pub status: u16,
}

#[derive(Default)]
struct Book {
    attempts: Vec<Attempt>,
    /// Status and `Retry-After` for the next requests.
    answers: VecDeque<(u16, Option<&'static str>)>,
    /// The status for all other requests.
    always: Option<u16>,
    /// A body that contains this gets 422.
    poison: Option<&'static str>,
}

type Shared = Arc<Mutex<Book>>;

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

    /// Starts a receiver at this address.
    pub async fn at(address: SocketAddr) -> Self {
        let listener = tokio::net::TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Shared::default();
        let app = Router::new().route("/usage", post(receive)).with_state(Arc::clone(&shared));
        let task = tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        Self { address, shared, task }
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.shared.lock().unwrap()
    }

    pub fn url(&self) -> String {
        format!("http://{}/usage", self.address)
    }

    /// The configuration section that sends records here.
    pub fn hook(&self) -> String {
        format!("usage_hook:\n  url: \"{}\"\n", self.url())
    }

    /// Answers 500 to the next `n` requests.
    pub fn refuse(&self, n: u32) {
        self.answer((0..n).map(|_| (500, None)));
    }

    /// Sets status and `Retry-After` for the next requests.
    pub fn answer(&self, answers: impl IntoIterator<Item = (u16, Option<&'static str>)>) {
        self.book().answers.extend(answers);
    }

    /// Sets the status for all requests after those of `answer`; `None` accepts them.
    pub fn always(&self, status: Option<u16>) {
        self.book().always = status;
    }

    /// Answers 422 to every body that contains this.
    pub fn poison(&self, text: &'static str) {
        self.book().poison = Some(text);
    }

    pub fn attempts(&self) -> u32 {
        self.book().attempts.len() as u32
    }

    /// All requests, in the order of arrival.
    pub fn requests(&self) -> Vec<Attempt> {
        self.book().attempts.clone()
    }

    /// The accepted requests.
    pub fn accepted(&self) -> Vec<Attempt> {
        self.requests().into_iter().filter(|attempt| attempt.status == 204).collect()
    }

    /// The accepted records, sent singly or in arrays.
    pub fn all(&self) -> Vec<Value> {
        let records = |attempt: Attempt| match serde_json::from_slice(&attempt.body).unwrap() {
            Value::Array(records) => records,
            record => vec![record],
        };
        self.accepted().into_iter().flat_map(records).collect()
    }

    /// The headers of the first accepted request.
    pub fn headers(&self) -> HeaderMap {
        self.accepted()[0].headers.clone()
    }

    /// Waits for `n` records in all and returns them.
    pub async fn wait_for(&self, n: usize) -> Vec<Value> {
        eventually(&format!("{n} usage records"), async || self.all().len() >= n).await;
        self.all()
    }

    /// Waits for a record, which must be the only one.
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

async fn receive(State(shared): State<Shared>, headers: HeaderMap, body: Bytes) -> Response {
    let at = Instant::now();
    let mut book = shared.lock().unwrap();
    let poisoned =
        book.poison.is_some_and(|text| memchr::memmem::find(&body, text.as_bytes()).is_some());
    let always = if poisoned { 422 } else { book.always.unwrap_or(204) };
    let (status, pause) = book.answers.pop_front().unwrap_or((always, None));
    book.attempts.push(Attempt { at, headers, body, status });
    let status = StatusCode::from_u16(status).unwrap();
    match pause {
        Some(pause) => (status, [(header::RETRY_AFTER, pause)]).into_response(),
        None => status.into_response(),
    }
}
