//! Connecting to the first reachable of several addresses.

use std::{
    io, net,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use async_trait::async_trait;
use pingora::{
    Error, ErrorType, Result,
    connectors::L4Connect,
    protocols::l4::{socket::SocketAddr, stream::Stream},
};
use tokio::net::TcpStream;

/// Connects to one address.
///
/// # Errors
/// The errors of Pingora's own connector.
pub async fn connect(address: net::SocketAddr) -> Result<TcpStream> {
    TcpStream::connect(address).await.map_err(|e| {
        let kind = match e.kind() {
            io::ErrorKind::ConnectionRefused => ErrorType::ConnectRefused,
            io::ErrorKind::TimedOut => ErrorType::ConnectTimedout,
            io::ErrorKind::NetworkUnreachable | io::ErrorKind::HostUnreachable => {
                ErrorType::ConnectNoRoute
            }
            _ => ErrorType::ConnectError,
        };
        Error::because(kind, format!("connecting to {address}"), e)
    })
}

/// The addresses of one server. One is used as long as it is reachable.
#[derive(Debug)]
pub struct Addresses {
    list: Vec<net::SocketAddr>,
    current: AtomicUsize,
}

impl Addresses {
    /// Begins with the first address.
    pub fn new(list: Vec<net::SocketAddr>) -> Self {
        Self { list, current: AtomicUsize::new(0) }
    }

    pub fn list(&self) -> &[net::SocketAddr] {
        &self.list
    }

    /// The index of the address in use.
    pub fn current(&self) -> usize {
        self.current.load(Ordering::Relaxed)
    }
}

/// Connects to the address in use, and on failure to the next ones. All attempts share one timeout.
#[derive(Debug)]
pub struct FirstReachable {
    pub addresses: Arc<Addresses>,
    /// How long connecting may take in all.
    pub timeout: Option<Duration>,
}

impl FirstReachable {
    /// Connects to `wanted`, or to another address.
    ///
    /// # Errors
    /// The error of the last address, if none is reachable.
    pub async fn dial(&self, wanted: &SocketAddr) -> Result<TcpStream> {
        let all = self.addresses.list();
        let first = all.iter().position(|a| Some(a) == wanted.as_inet()).unwrap_or(0);
        let end = self.timeout.map(|timeout| Instant::now() + timeout);
        let mut failed = None;
        for attempt in 0..all.len() {
            let number = (first + attempt) % all.len();
            match reach(all[number], end, all.len() - attempt).await {
                Ok(stream) => {
                    if attempt > 0 {
                        self.addresses.current.store(number, Ordering::Relaxed);
                    }
                    return Ok(stream);
                }
                Err(e) => failed = Some(e),
            }
        }
        Err(failed.unwrap_or_else(|| Error::explain(ErrorType::ConnectError, "no address")))
    }
}

/// Connects to one address, in its share of the time until `end`. `left` counts the addresses that are still
/// to be tried, including this one.
async fn reach(address: net::SocketAddr, end: Option<Instant>, left: usize) -> Result<TcpStream> {
    let Some(end) = end else {
        return connect(address).await;
    };
    let left = u32::try_from(left).unwrap_or(u32::MAX).max(1);
    let share = end.saturating_duration_since(Instant::now()) / left;
    let made = tokio::time::timeout(share, connect(address)).await;
    made.unwrap_or_else(|_| {
        Error::e_explain(ErrorType::ConnectTimedout, format!("connecting to {address}"))
    })
}

#[async_trait]
impl L4Connect for FirstReachable {
    async fn connect(&self, wanted: &SocketAddr) -> Result<Stream> {
        Ok(self.dial(wanted).await?.into())
    }
}
