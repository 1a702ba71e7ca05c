//! A simulated vLLM server, for `llmproxy demo`, the tests and the benchmarks.
//!
//! On the wire it behaves like vLLM 0.32, according to captures: the same members in the same order, `200` and
//! headers at once and the first event later, errors in the same words, idle connections closed after five
//! seconds, an answer aborted when its client disconnects. It can simulate the faults of real servers, and has
//! what makes the load of engines differ: a queue and a prefix cache.
//!
//! It speaks Chat, Messages and Responses. `asked.rs` reads what a request asks for, `reply.rs` generates the
//! answer token by token, and a file for each language (`chat.rs`, `messages.rs`, `responses.rs`) writes it.
//! What a request can make the model do, in each language:
//!
//! - reason before it answers: by the field of its language, or by the word `think` in the user's last text;
//! - call tools: by `tool_choice`, or by the words `call NAME` in that text, once for each call;
//! - answer a tool's result: the text repeats it;
//! - answer with an instance of a JSON schema: by the field of its language.

mod asked;
mod behaviour;
mod cache;
mod call;
mod chat;
mod conn;
mod control;
mod events;
mod generation;
mod inference;
mod language;
mod messages;
mod metrics;
mod plain;
mod refusal;
mod reply;
mod responses;
mod retrieval;
mod schema;
mod server_state;
mod stats;
mod stored;
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

pub use behaviour::{Behaviour, Engine, Fail, Load, Numbers, Quirk, StreamEnd, ToolUse};
pub use language::Language;
pub use stats::{ReceivedRequest, Stats};

/// The most connections that wait to be accepted.
const BACKLOG: u32 = 1024;

/// A running server. Dropping it stops the server and closes its connections.
pub struct Sim {
    pub address: SocketAddr,
    shared: Arc<ServerState>,
    state: Mutex<ListenerState>,
}

enum ListenerState {
    Listening((JoinHandle<()>, Arc<Notify>)),
    /// The socket keeps the port reserved.
    Refusing(TcpSocket),
    /// The same, while existing connections stay open.
    Retired(TcpSocket, JoinHandle<()>),
    Between,
}

impl Sim {
    /// Starts a server; port 0 means any free port.
    ///
    /// # Errors
    /// If it cannot listen on the address.
    pub async fn start(address: SocketAddr, behaviour: Behaviour) -> io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        let shared = Arc::new(ServerState {
            setting: Mutex::new(Arc::new(ActiveBehaviour::new(behaviour))),
            cache: Mutex::default(),
            responses: Mutex::default(),
            stats: Stats::default(),
            silent: Arc::default(),
        });
        shared.stats.begin();
        let task = Self::serve(listener, &shared);
        Ok(Self { address, shared, state: Mutex::new(ListenerState::Listening(task)) })
    }

    /// `http://address`.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn stats(&self) -> &Stats {
        &self.shared.stats
    }

    /// Changes the behaviour; running answers keep theirs.
    pub fn change(&self, change: impl FnOnce(&mut Behaviour)) {
        let mut behaviour = self.shared.setting().behaviour.clone();
        change(&mut behaviour);
        self.shared.set(behaviour);
    }

    /// Clears the prefix cache, like a restart of the engine.
    pub fn forget(&self) {
        *lock(&self.shared.cache) = cache::PrefixCache::default();
    }

    /// Simulates a restart of the engine: resets the token counters, clears the prefix cache, and forgets the
    /// stored responses.
    pub fn restart(&self) {
        self.shared.stats.begin();
        *lock(&self.shared.responses) = stored::StoredResponses::default();
        self.forget();
    }

    fn serve(listener: TcpListener, shared: &Arc<ServerState>) -> (JoinHandle<()>, Arc<Notify>) {
        let retire = Arc::new(Notify::new());
        let task = tokio::spawn(accept(listener, Arc::clone(shared), Arc::clone(&retire)));
        (task, retire)
    }

    /// Refuses new connections, and keeps existing ones open without writing to them, as vLLM does after
    /// SIGTERM. [`Self::listen`] starts it again.
    ///
    /// # Errors
    /// If another process has taken the port.
    pub async fn retire(&self) -> io::Result<()> {
        self.stop_listening(true).await
    }

    /// Refuses new connections, and continues to serve existing ones.
    ///
    /// # Errors
    /// If another process has taken the port.
    pub async fn drain(&self) -> io::Result<()> {
        self.stop_listening(false).await
    }

    async fn stop_listening(&self, silent: bool) -> io::Result<()> {
        let state = std::mem::replace(&mut *lock(&self.state), ListenerState::Between);
        let ListenerState::Listening((task, retire)) = state else {
            *lock(&self.state) = state;
            return Ok(());
        };
        self.shared.silent.store(silent, Ordering::Relaxed);
        retire.notify_one();
        let socket = loop {
            match self.socket() {
                Ok(socket) => break socket,
                // The listener is being closed.
                Err(e) if e.kind() == io::ErrorKind::AddrInUse && !task.is_finished() => {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                Err(e) => return Err(e),
            }
        };
        *lock(&self.state) = ListenerState::Retired(socket, task);
        Ok(())
    }

    /// A socket that reserves the port without listening.
    fn socket(&self) -> io::Result<TcpSocket> {
        let socket = match self.address {
            SocketAddr::V4(_) => TcpSocket::new_v4()?,
            SocketAddr::V6(_) => TcpSocket::new_v6()?,
        };
        // Connections may still be closing.
        socket.set_reuseaddr(true)?;
        socket.bind(self.address)?;
        Ok(socket)
    }

    /// Closes all connections and refuses new ones, as if the process had ended.
    ///
    /// # Errors
    /// If another process has taken the port.
    pub async fn refuse(&self) -> io::Result<()> {
        let state = std::mem::replace(&mut *lock(&self.state), ListenerState::Between);
        let ListenerState::Listening((task, _)) = state else {
            *lock(&self.state) = state;
            return Ok(());
        };
        task.abort();
        task.await.ok();
        *lock(&self.state) = ListenerState::Refusing(self.socket()?);
        Ok(())
    }

    /// Listens again after [`Self::refuse`], at the same address and with the same counters.
    ///
    /// # Errors
    /// If the system does not allow it.
    pub fn listen(&self) -> io::Result<()> {
        let mut state = lock(&self.state);
        match std::mem::replace(&mut *state, ListenerState::Between) {
            ListenerState::Retired(socket, task) => {
                task.abort();
                self.shared.silent.store(false, Ordering::Relaxed);
                *state =
                    ListenerState::Listening(Self::serve(socket.listen(BACKLOG)?, &self.shared));
            }
            ListenerState::Refusing(socket) => {
                let listener = socket.listen(BACKLOG)?;
                let task = Self::serve(listener, &self.shared);
                *state = ListenerState::Listening(task);
            }
            other => *state = other,
        }
        Ok(())
    }

    /// Runs until the process ends.
    pub async fn forever(self) {
        let state = std::mem::replace(&mut *lock(&self.state), ListenerState::Between);
        if let ListenerState::Listening((task, _)) = state {
            task.await.ok();
        }
    }
}

impl Drop for Sim {
    fn drop(&mut self) {
        if let ListenerState::Listening((task, _)) | ListenerState::Retired(_, task) =
            &*lock(&self.state)
        {
            task.abort();
        }
    }
}

async fn accept(listener: TcpListener, shared: Arc<ServerState>, retire: Arc<Notify>) {
    // Dropping this set, together with the task, aborts the connections.
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
            // Out of file descriptors: wait until connections close.
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
        while connections.try_join_next().is_some() {}
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}
