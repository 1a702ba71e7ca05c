//! SIGTERM and SIGINT: the first one drains, a second one ends the process at once.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use async_trait::async_trait;
use pingora::server::{ShutdownSignal, ShutdownSignalWatch};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::Mutex,
};

use super::drain::drain;
use crate::runtime::{Carry, Live};

/// The signal of a process that writes a larger file than it may.
const SIGXFSZ: i32 = 25;

/// The streams of both signals. They collect signals from now on, until Pingora waits for them: the
/// first requests may come earlier than that.
pub struct Pending {
    terminate: Signal,
    interrupt: Signal,
}

impl Pending {
    /// # Errors
    /// If the signals cannot be handled.
    pub fn collect(carry: &Carry) -> io::Result<Self> {
        let handle = carry.stores.handle();
        let _entered = handle.enter();
        // A file that reaches its size limit (`ulimit -f`) is an error of that file; it must not
        // end the process.
        drop(signal(SignalKind::from_raw(SIGXFSZ))?);
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

/// Pingora's source of shutdown signals.
pub struct Signals {
    live: Arc<Live>,
    carry: Arc<Carry>,
    /// Taken when Pingora waits for a signal.
    pending: Mutex<Option<Pending>>,
}

impl Signals {
    pub fn new(live: Arc<Live>, carry: Arc<Carry>, pending: Pending) -> Self {
        Self { live, carry, pending: Mutex::new(Some(pending)) }
    }
}

#[async_trait]
impl ShutdownSignalWatch for Signals {
    async fn recv(&self) -> ShutdownSignal {
        let Some(mut pending) = self.pending.lock().await.take() else {
            return std::future::pending().await;
        };
        let name = pending.next().await;
        self.carry.draining.store(true, Ordering::Relaxed);
        let timeout = self.live.load().plan.graceful_shutdown_timeout;
        let open = self.carry.metrics.in_flight.get();
        let (live, carry) = (Arc::clone(&self.live), Arc::clone(&self.carry));
        let at_once = Arc::new(AtomicBool::new(false));
        let second_signal = Arc::clone(&at_once);
        // On a thread of its own: Pingora's main thread sleeps through its grace period.
        std::thread::spawn(move || drain(&live, &carry, timeout, &at_once));
        tokio::spawn(async move {
            pending.next().await;
            second_signal.store(true, Ordering::Relaxed);
        });
        log::info!(
            "{name}: draining: no new connections; {open} requests have {timeout:?} to finish"
        );
        ShutdownSignal::GracefulTerminate
    }
}
