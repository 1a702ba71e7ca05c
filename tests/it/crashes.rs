//! The gateway and the receiver of its records are killed many times under load: every completed response
//! is billed exactly once.

use std::{
    collections::{BTreeMap, HashMap},
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use axum::{Router, body::Bytes, extract::State, http::StatusCode, routing::post};
use rand::Rng;
use serde_json::{Value, json};

use crate::support::{Gateway, eventually, http, sim_with};

/// The number of kills.
const KILLS: u32 = 100;

/// Clients that send requests continuously.
const CLIENTS: usize = 6;

/// `usage.spool.fsync_interval` of this test. Older records must not be lost. A killed process loses only
/// what it has not written yet, which takes milliseconds; the longer interval makes the test independent
/// of the load of the machine.
const INTERVAL: Duration = Duration::from_secs(2);

/// The received records in order, with repetitions.
#[derive(Clone, Default)]
struct Ledger(Arc<Mutex<Vec<Value>>>);

impl Ledger {
    fn all(&self) -> Vec<Value> {
        self.0.lock().unwrap().clone()
    }

    fn len(&self) -> usize {
        self.0.lock().unwrap().len()
    }
}

async fn receive(State(ledger): State<Ledger>, body: Bytes) -> StatusCode {
    ledger.0.lock().unwrap().push(serde_json::from_slice(&body).unwrap());
    // A receiver may store a record and die before the response.
    match rand::rng().random_ratio(1, 20) {
        true => StatusCode::INTERNAL_SERVER_ERROR,
        false => StatusCode::NO_CONTENT,
    }
}

/// A receiver that can be stopped and started at the same address.
struct Receiver {
    address: SocketAddr,
    ledger: Ledger,
    task: Option<tokio::task::JoinHandle<()>>,
}

impl Receiver {
    async fn start() -> Self {
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let mut receiver = Self { address: any, ledger: Ledger::default(), task: None };
        receiver.up().await;
        receiver
    }

    async fn up(&mut self) {
        if self.task.is_none() {
            let socket = tokio::net::TcpSocket::new_v4().unwrap();
            socket.set_reuseaddr(true).unwrap();
            socket.bind(self.address).unwrap();
            let listener = socket.listen(64).unwrap();
            self.address = listener.local_addr().unwrap();
            let app = Router::new().route("/usage", post(receive)).with_state(self.ledger.clone());
            self.task =
                Some(tokio::spawn(async move { axum::serve(listener, app).await.unwrap() }));
        }
    }

    async fn down(&mut self) {
        if let Some(task) = self.task.take() {
            task.abort();
            task.await.ok();
        }
    }
}

/// The ids of requests with complete responses, and their times.
type Seen = Arc<Mutex<HashMap<String, Instant>>>;

async fn client(url: String, n: usize, numbers: Arc<AtomicU64>, seen: Seen, stop: Arc<AtomicBool>) {
    let http = http::builder().no_proxy().build().unwrap();
    while !stop.load(Ordering::Relaxed) {
        let id = format!("req-{n}-{}", numbers.fetch_add(1, Ordering::Relaxed));
        let stream = rand::random::<bool>();
        let body = json!({"model": "sim-model", "messages": [], "stream": stream, "max_tokens": 4});
        let asked = http
            .post(&url)
            .header("X-Request-Id", &id)
            .header("Content-Type", "application/json")
            .body(body.to_string());
        let answer = match asked.send().await {
            Ok(answer) if answer.status() == 200 => answer.text().await,
            _ => {
                tokio::time::sleep(Duration::from_millis(5)).await;
                continue;
            }
        };
        // A truncated body is an error, or a stream without its end.
        if answer.is_ok_and(|text| !stream || text.contains("data: [DONE]")) {
            seen.lock().unwrap().insert(id, Instant::now());
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_completed_response_is_billed_once_despite_crashes() {
    let sim = sim_with(|b| (b.first_token_ms, b.inter_token_ms) = (1, 1)).await;
    let mut receiver = Receiver::start().await;
    let mut gateway = Gateway::before(
        &[sim.url()],
        &format!(
            "log: {{access: false}}\n\
             usage:\n  spool: {{fsync_interval: {INTERVAL:?}, segment_size: 64KiB}}\n  reporters:\n    \
             - {{type: webhook, max_backoff: 20ms, webhook: {{url: \"http://{}/usage\"}}}}\n",
            receiver.address
        ),
    )
    .await;
    let (numbers, seen, stop) = (Arc::default(), Seen::default(), Arc::new(AtomicBool::new(false)));
    let clients: Vec<_> = (0..CLIENTS)
        .map(|n| {
            let url = gateway.url("/v1/chat/completions");
            let (numbers, seen, stop) =
                (Arc::clone(&numbers), Arc::clone(&seen), Arc::clone(&stop));
            tokio::spawn(client(url, n, numbers, seen, stop))
        })
        .collect();
    let mut kills = Vec::new();
    for kill in 0..KILLS {
        // Mostly short runs, and some longer than the interval.
        let most = if kill % 20 == 19 { 3000 } else { 250 };
        let life = rand::rng().random_range(0..most);
        tokio::time::sleep(Duration::from_millis(life)).await;
        // The times before the kill and after the end of the process.
        let killed = Instant::now();
        gateway.crash();
        kills.push((killed, Instant::now()));
        match rand::rng().random_range(0..4) {
            0 => receiver.down().await,
            1 | 2 => receiver.up().await,
            _ => {}
        }
        gateway.revive().await;
    }
    stop.store(true, Ordering::Relaxed);
    for client in clients {
        client.await.unwrap();
    }
    receiver.up().await;
    // The client has a whole stream before its record is written. When no request is in flight, all
    // records are on their way, and the last record arrives after all others.
    let in_flight = "llmproxy_requests_in_flight";
    eventually("all requests have ended", async || gateway.metric(in_flight).await <= 1.0).await;
    assert_eq!(gateway.ask_with("X-Request-Id: the-last\r\n").await.status, 200);
    let mut came = 0;
    while receiver.ledger.all().last().is_none_or(|record| record["request_id"] != "the-last") {
        // Whatever their number, one more arrives.
        eventually("the next record", async || receiver.ledger.len() > came).await;
        came = receiver.ledger.len();
    }

    let ledger = receiver.ledger.all();
    let records = records_by_request(&ledger);
    let seen = seen.lock().unwrap().clone();
    assert!(seen.len() > 500, "there was load: {}", seen.len());
    let mut lost: BTreeMap<usize, u32> = BTreeMap::new();
    let mut oldest = Duration::ZERO;
    for (id, at) in &seen {
        match records.get(id.as_str()).copied() {
            Some(1) => {}
            Some(n) => panic!("{id} would be billed {n} times"),
            None => {
                let kill = kills.iter().position(|(_, dead)| dead >= at);
                let kill = kill.unwrap_or_else(|| panic!("{id} is lost without a crash"));
                *lost.entry(kill).or_default() += 1;
                oldest = oldest.max(kills[kill].0.saturating_duration_since(*at));
            }
        }
    }
    let (most, sum) = (lost.values().max().copied().unwrap_or(0), lost.values().sum::<u32>());
    eprintln!(
        "{} answers seen, {} deliveries, {KILLS} crashes: they cost {sum} records, {:.2} on average \
         and {most} at most, the oldest {oldest:?} old",
        seen.len(),
        ledger.len(),
        f64::from(sum) / f64::from(KILLS),
    );
    // Nearly all younger records survive too.
    assert!(sum as usize * 10 < seen.len(), "{sum} of {} records are lost", seen.len());
    assert!(oldest < INTERVAL, "a record that was {oldest:?} old is lost");
    in_order(&ledger);
}

/// The number of distinct records for each request.
fn records_by_request(ledger: &[Value]) -> HashMap<&str, usize> {
    let mut records: HashMap<&str, Vec<&str>> = HashMap::new();
    for record in ledger {
        let ids = records.entry(record["request_id"].as_str().unwrap()).or_default();
        let id = record["record_id"].as_str().unwrap();
        if !ids.contains(&id) {
            ids.push(id);
        }
    }
    records.into_iter().map(|(request, ids)| (request, ids.len())).collect()
}

/// Checks that the records of a process arrive in order and without a gap, apart from repetitions, and
/// that the processes follow each other.
fn in_order(ledger: &[Value]) {
    let mut processes: Vec<(&str, u64)> = Vec::new();
    let mut present = "";
    for record in ledger {
        let process = record["process"].as_str().unwrap();
        let sequence = record["sequence"].as_u64().unwrap();
        match processes.iter_mut().find(|(known, _)| *known == process) {
            Some((_, last)) if sequence <= *last => {}
            Some((_, last)) => {
                assert_eq!((process, sequence), (present, *last + 1));
                *last = sequence;
            }
            None => {
                assert_eq!(sequence, 1, "{process}");
                processes.push((process, sequence));
                present = process;
            }
        }
    }
    assert!(processes.len() > 20, "{} lives left records", processes.len());
}
