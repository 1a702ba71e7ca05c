//! Measured servers.

use std::{
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::PathBuf,
    time::{Duration, Instant},
};

use super::{
    backend::Pace,
    certificate::Certificate,
    client::{Client, Http2, Protocol, body, request},
    machine::Cores,
    process::{Process, Start},
    settings::Settings,
};

/// What all sections share.
pub struct Bench {
    pub settings: Settings,
    pub cores: Cores,
    /// The folder for configurations, sockets and what gateways store.
    pub folder: PathBuf,
    pub llmproxy: PathBuf,
    pub certificate: Certificate,
    /// A Redis server that holds the key of the load.
    pub redis: Option<SocketAddr>,
    /// Accepts usage records and discards them.
    pub receiver: SocketAddr,
}

/// What a server is started for.
#[derive(Clone)]
pub struct Role {
    pub listen: SocketAddr,
    pub backend: SocketAddr,
    pub threads: usize,
    pub protocol: Protocol,
}

/// Why there is no server.
pub enum Missing {
    /// It is not installed here.
    NotInstalled(String),
    Failed(String),
}

impl From<String> for Missing {
    fn from(why: String) -> Self {
        Self::Failed(why)
    }
}

/// A server that runs.
pub struct Target {
    pub address: SocketAddr,
    /// `None` for the backend itself, whose process is not measured.
    pub process: Option<Process>,
}

impl Target {
    /// # Errors
    /// If the process has ended.
    pub fn alive(&mut self) -> Result<(), String> {
        self.process.as_mut().map_or(Ok(()), Process::alive)
    }

    /// CPU time and context switches so far.
    pub fn counters(&self) -> (Duration, f64) {
        let process = self.process.as_ref();
        process.map_or((Duration::ZERO, 0.0), |p| (p.cpu(), p.context_switches()))
    }

    /// Resident memory; 0 without a process.
    pub fn resident_mib(&self) -> f64 {
        self.process.as_ref().map_or(0.0, Process::resident_mib)
    }

    /// Waits until requests are answered.
    pub async fn ready(&mut self, protocol: &Protocol) -> Result<(), String> {
        /// LiteLLM takes half a minute to start on a busy machine.
        const PATIENCE: Duration = Duration::from_secs(90);
        let start = Instant::now();
        loop {
            self.alive()?;
            let why = match once(self.address, protocol).await {
                Ok(()) => return Ok(()),
                Err(why) => why,
            };
            if start.elapsed() > PATIENCE {
                return Err(format!("not ready after {} s: {why}", PATIENCE.as_secs()));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

/// One request on a connection of its own.
async fn once(address: SocketAddr, protocol: &Protocol) -> Result<(), String> {
    let body = body(128, false);
    if matches!(protocol, Protocol::Http2) {
        return Http2::connect(address).await?.ask(address, body.into()).await;
    }
    Client::connect(address, protocol).await?.ask(&request(&body, true)).await
}

impl Bench {
    /// A backend, in a process of its own on the cores of the load.
    pub async fn backend(&self, pace: Pace) -> Result<Target, String> {
        let address = free();
        let program = std::env::current_exe().map_err(|e| e.to_string())?;
        let process = Process::start(Start {
            program: &program,
            arguments: &[
                "--backend",
                &address.to_string(),
                &pace.tokens.to_string(),
                &pace.pause.as_micros().to_string(),
            ],
            environment: &[],
            cores: self.cores.load(),
            errors: Some(self.folder.join("backend.log")),
        })?;
        let mut target = Target { address, process: Some(process) };
        target.ready(&Protocol::Http1).await.map_err(|why| format!("the backend: {why}"))?;
        Ok(target)
    }
}

/// An address that nothing listens on.
pub fn free() -> SocketAddr {
    let bound = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|l| l.local_addr());
    bound.expect("a free port on loopback")
}
