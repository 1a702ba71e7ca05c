//! A simulated vLLM server: what `llmproxy demo`, the tests and the benchmarks talk to.
//!
//! It behaves on the wire as captures of a running vLLM 0.32 show: the same members in the same
//! order, `200` and headers at once and the first event later, errors in the same words, idle
//! connections closed after five seconds, an answer given up as soon as its reader is gone. It
//! can be made to fail in the ways in which real servers fail, and it has what makes the load of
//! engines differ: a queue and a prefix cache.

mod behaviour;
mod cache;
mod call;
mod conn;
mod control;
mod generation;
mod inference;
mod metrics;
mod plain;
mod refusal;
mod server_state;
mod stats;
mod stream;
mod text;

use std::{
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, atomic::Ordering},
    time::Duration,
};

use tokio::{
    net::{TcpListener, TcpSocket},
    sync::Notify,
    task::JoinHandle,
};

use self::server_state::{ActiveBehaviour, ServerState};
use crate::base::lock;

pub use behaviour::{Behaviour, Engine, Fail, Load, Numbers, StreamEnd};
pub use stats::{ReceivedRequest, Stats};

/// Connections that wait to be accepted.
const BACKLOG: u32 = 1024;

/// A running server. It stops when this is dropped, and its connections are cut.
pub struct Sim {
    /// Where it listens.
    pub address: SocketAddr,
    shared: Arc<ServerState>,
    state: Mutex<State>,
}

enum State {
    Listening((JoinHandle<()>, Arc<Notify>)),
    /// The socket keeps the port from others.
    Refusing(TcpSocket),
    /// The same, while the connections stay open that it has.
    Retired(TcpSocket, JoinHandle<()>),
    Between,
}

impl Sim {
    /// Starts a server; port 0 takes any that is free.
    ///
    /// # Errors
    /// If the address cannot be listened on.
    pub async fn start(address: SocketAddr, behaviour: Behaviour) -> io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        let shared = Arc::new(ServerState {
            setting: Mutex::new(Arc::new(ActiveBehaviour::new(behaviour))),
            cache: Mutex::default(),
            stats: Stats::default(),
            silent: Arc::default(),
        });
        shared.stats.begin();
        let task = Self::serve(listener, &shared);
        Ok(Self { address, shared, state: Mutex::new(State::Listening(task)) })
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
        let mut behaviour = self.shared.setting().behaviour.clone();
        change(&mut behaviour);
        self.shared.set(behaviour);
    }

    /// Forgets every prompt, as a restarted engine has.
    pub fn forget(&self) {
        *lock(&self.shared.cache) = cache::PrefixCache::default();
    }

    /// Its counters of tokens begin at 0, and it has forgotten every prompt: it is another engine.
    pub fn restart(&self) {
        self.shared.stats.begin();
        self.forget();
    }

    fn serve(listener: TcpListener, shared: &Arc<ServerState>) -> (JoinHandle<()>, Arc<Notify>) {
        let retire = Arc::new(Notify::new());
        let task = tokio::spawn(accept(listener, Arc::clone(shared), Arc::clone(&retire)));
        (task, retire)
    }

    /// Refuses new connections, and leaves those that it has open without another word, as vLLM does
    /// after SIGTERM. [`Self::listen`] makes it another, new process.
    ///
    /// # Errors
    /// If another process has got the port meanwhile.
    pub async fn retire(&self) -> io::Result<()> {
        self.stop_listening(true).await
    }

    /// Refuses new connections, and goes on with what came before.
    ///
    /// # Errors
    /// If another process has got the port meanwhile.
    pub async fn drain(&self) -> io::Result<()> {
        self.stop_listening(false).await
    }

    async fn stop_listening(&self, silent: bool) -> io::Result<()> {
        let state = std::mem::replace(&mut *lock(&self.state), State::Between);
        let State::Listening((task, retire)) = state else {
            *lock(&self.state) = state;
            return Ok(());
        };
        self.shared.silent.store(silent, Ordering::Relaxed);
        retire.notify_one();
        let socket = loop {
            match self.socket() {
                Ok(socket) => break socket,
                // The listener is about to be closed.
                Err(e) if e.kind() == io::ErrorKind::AddrInUse && !task.is_finished() => {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                Err(e) => return Err(e),
            }
        };
        *lock(&self.state) = State::Retired(socket, task);
        Ok(())
    }

    /// A socket that keeps the port and does not listen.
    fn socket(&self) -> io::Result<TcpSocket> {
        let socket = match self.address {
            SocketAddr::V4(_) => TcpSocket::new_v4()?,
            SocketAddr::V6(_) => TcpSocket::new_v6()?,
        };
        // Its connections may still be closing.
        socket.set_reuseaddr(true)?;
        socket.bind(self.address)?;
        Ok(socket)
    }

    /// Cuts all connections and refuses new ones, as if the process had ended.
    ///
    /// # Errors
    /// If another process has got the port meanwhile.
    pub async fn refuse(&self) -> io::Result<()> {
        let state = std::mem::replace(&mut *lock(&self.state), State::Between);
        let State::Listening((task, _)) = state else {
            *lock(&self.state) = state;
            return Ok(());
        };
        task.abort();
        task.await.ok();
        *lock(&self.state) = State::Refusing(self.socket()?);
        Ok(())
    }

    /// Listens again after [`Self::refuse`], at the same address and with what it had seen.
    ///
    /// # Errors
    /// If the system does not let it.
    pub fn listen(&self) -> io::Result<()> {
        let mut state = lock(&self.state);
        match std::mem::replace(&mut *state, State::Between) {
            State::Retired(socket, task) => {
                task.abort();
                self.shared.silent.store(false, Ordering::Relaxed);
                *state = State::Listening(Self::serve(socket.listen(BACKLOG)?, &self.shared));
            }
            State::Refusing(socket) => {
                let listener = socket.listen(BACKLOG)?;
                let task = Self::serve(listener, &self.shared);
                *state = State::Listening(task);
            }
            other => *state = other,
        }
        Ok(())
    }

    /// Runs until the process ends.
    pub async fn forever(self) {
        let state = std::mem::replace(&mut *lock(&self.state), State::Between);
        if let State::Listening((task, _)) = state {
            task.await.ok();
        }
    }
}

impl Drop for Sim {
    fn drop(&mut self) {
        if let State::Listening((task, _)) | State::Retired(_, task) = &*lock(&self.state) {
            task.abort();
        }
    }
}

async fn accept(listener: TcpListener, shared: Arc<ServerState>, retire: Arc<Notify>) {
    // Dropping the set, with this task, aborts the connections.
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = retire.notified() => break,
        };
        match accepted {
            Ok((stream, _)) => {
                shared.stats.connections.fetch_add(1, Ordering::Relaxed);
                stream.set_nodelay(true).ok();
                let conn = conn::Conn::new(stream, Arc::clone(&shared.silent));
                connections.spawn(control::serve(conn, Arc::clone(&shared)));
            }
            // Out of descriptors: others will be closed.
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
        while connections.try_join_next().is_some() {}
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}
