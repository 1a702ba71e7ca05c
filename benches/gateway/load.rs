//! Load: as many requests as a server answers, from a number of clients that each wait for the answer.

use std::time::{Duration, Instant};

use bytes::Bytes;
use serde_json::{Value, json};

use super::{
    client::{Client, Http2, Protocol, request_in, timed},
    figures::stats,
    language::Language,
    target::Target,
};

/// How many requests share a connection of HTTP/2.
const PER_CONNECTION: usize = 4;

/// A load.
pub struct Load {
    pub body: String,
    /// The language of the body; by HTTP/2 it is Chat.
    pub language: Language,
    /// How many requests are in flight.
    pub clients: usize,
    pub time: Duration,
    /// Requests that each client sends even if that takes longer.
    pub least: usize,
    pub protocol: Protocol,
}

/// One round of a load.
pub struct Round {
    pub requests: usize,
    pub seconds: f64,
    /// The time of each request in microseconds, sorted.
    pub times: Vec<f64>,
    /// CPU time of the measured process.
    pub cpu: Duration,
    pub switches: f64,
    /// Resident memory in the middle of the round.
    pub resident_mib: f64,
}

impl Round {
    pub fn per_second(&self) -> f64 {
        self.requests as f64 / self.seconds
    }

    pub fn cpu_us(&self) -> f64 {
        self.cpu.as_secs_f64() * 1e6 / self.requests as f64
    }

    /// A percentile in microseconds.
    pub fn percentile(&self, share: f64) -> f64 {
        stats::percentile(&self.times, share).unwrap_or(f64::NAN)
    }

    pub fn json(&self) -> Value {
        json!({
            "requests": self.requests,
            "seconds": self.seconds,
            "p50_us": self.percentile(0.5),
            "p90_us": self.percentile(0.9),
            "p99_us": self.percentile(0.99),
            "cpu_seconds": self.cpu.as_secs_f64(),
            "context_switches": self.switches,
            "resident_mib": self.resident_mib,
        })
    }
}

/// Puts a server under load. Any answer that is not a complete success is an error.
pub async fn round(target: &mut Target, load: &Load) -> Result<Round, String> {
    target.alive()?;
    let (cpu, switches) = target.counters();
    let start = Instant::now();
    let lanes = lanes(target, load, start).await?;
    tokio::time::sleep(load.time / 2).await;
    let resident_mib = target.resident_mib();
    let mut times = Vec::new();
    for lane in lanes {
        times.extend(lane.await.map_err(|e| e.to_string())??);
    }
    let seconds = start.elapsed().as_secs_f64();
    target.alive()?;
    let (cpu_after, switches_after) = target.counters();
    Ok(Round {
        requests: times.len(),
        seconds,
        times: stats::sorted(times),
        cpu: cpu_after.saturating_sub(cpu),
        switches: switches_after - switches,
        resident_mib,
    })
}

type Lane = tokio::task::JoinHandle<Result<Vec<f64>, String>>;

async fn lanes(target: &Target, load: &Load, start: Instant) -> Result<Vec<Lane>, String> {
    let address = target.address;
    let mut lanes = Vec::new();
    let mut shared = None;
    for n in 0..load.clients {
        let (time, least) = (load.time, load.least);
        match &load.protocol {
            Protocol::Http2 => {
                if n % PER_CONNECTION == 0 {
                    shared = Some(Http2::connect(address).await?);
                }
                let Some(client) = shared.clone() else { continue };
                let body = Bytes::from(load.body.clone());
                lanes.push(tokio::spawn(async move {
                    let mut times = Vec::with_capacity(16 * 1024);
                    while start.elapsed() < time || times.len() < least {
                        times.push(timed(client.ask(address, body.clone())).await?);
                    }
                    Ok(times)
                }));
            }
            protocol => {
                let request = request_in(load.language, &load.body, false);
                let protocol = protocol.clone();
                lanes.push(tokio::spawn(async move {
                    let mut client = Client::connect(address, &protocol).await?;
                    let mut times = Vec::with_capacity(16 * 1024);
                    while start.elapsed() < time || times.len() < least {
                        times.push(timed(client.ask(&request)).await?);
                    }
                    Ok(times)
                }));
            }
        }
    }
    Ok(lanes)
}
