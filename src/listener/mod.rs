//! The listener for clients: accepts connections up to the configured limits, and passes each to
//! Pingora's HTTP proxy, with a time limit for every phase. There is one worker for each thread, and a
//! connection stays with its worker: what a request wakes is on its own thread.
//!
//! Pingora's own listening service has no such limits: it waits forever for an HTTP/2 preface, and does
//! not count connections.

mod chunks;
mod drive;
mod socket;
mod stream;
mod writer;

use std::{
    io,
    net::{self, IpAddr, Shutdown, SocketAddr, TcpListener},
    os::fd::AsRawFd,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use async_trait::async_trait;
use futures::future::BoxFuture;
use pingora::{
    apps::{HttpServerApp, ReusedHttpStream, ServerApp},
    listeners::tls::Acceptor,
    protocols::{
        ALPN, GetSocketDigest, IO, SocketDigest, Ssl, Stream, http::ServerSession,
        l4::stream::Stream as TcpTransport,
    },
    server::{ListenFds, ShutdownWatch},
    services::Service,
};
use socket2::SockRef;
use tokio::{
    net::TcpStream,
    sync::{mpsc, watch},
};

pub use self::socket::{Bound, bind, listen};
use self::stream::{ClientStream, HeadFailureResponse};
use crate::{
    base::{Rejection, ip},
    config::choices::ErrorFormat,
    dialect::{DIALECTS, ErrorWording},
    runtime::{
        Carry, Live,
        connections::{
            ClientConnection, ConnectionLimits, HeadFailure, MaxConnections, ReachedLimit,
        },
    },
};

/// Pause before accepting again when the system has no file descriptor or memory for a connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Milliseconds between two warnings about refused connections.
const WARN_EVERY: u64 = 10_000;

/// `Retry-After` in seconds of a connection refused because of a limit.
const RETRY_AFTER: u64 = 1;

/// What serves connections on one thread: a service of Pingora's server. Each has a runtime, a pool of
/// connections to backends and timers of its own, so that a request stays on one thread.
pub struct Worker<A> {
    app: Option<A>,
    door: Arc<Door>,
    role: Option<Role>,
}

/// Where a worker's connections come from.
enum Role {
    /// It accepts them, and gives them to the worker with the fewest.
    Accepts(Bound, Vec<Seat>),
    /// The one that accepts gives them to it.
    IsGiven(mpsc::UnboundedReceiver<(net::TcpStream, Admitted)>),
}

/// A connection that has a slot, and a place at a worker.
struct Admitted {
    peer: SocketAddr,
    connection: Arc<ClientConnection>,
    place: Place,
}

/// A worker, as the one that accepts sees it.
struct Seat {
    /// How many connections it has.
    taken: Arc<AtomicUsize>,
    /// `None`: itself.
    connections: Option<mpsc::UnboundedSender<(net::TcpStream, Admitted)>>,
}

/// A connection's place at a worker; given back when dropped.
struct Place(Arc<AtomicUsize>);

impl Seat {
    fn take(&self) -> Place {
        self.taken.fetch_add(1, Ordering::Relaxed);
        Place(Arc::clone(&self.taken))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Workers that serve connections to a bound address, one with each of these.
pub fn workers<A>(
    apps: Vec<A>,
    bound: Bound,
    tls: Option<Acceptor>,
    live: &Arc<Live>,
    carry: &Arc<Carry>,
) -> Vec<Worker<A>> {
    let door = Arc::new(Door {
        tls,
        h2c: live.load().plan.fixed.h2c,
        live: Arc::clone(live),
        carry: Arc::clone(carry),
        started: Instant::now(),
        warned: AtomicU64::new(0),
        head_failure_response: head_failure_response(live),
    });
    let mut seats = vec![Seat { taken: Arc::default(), connections: None }];
    let mut given = Vec::new();
    for _ in 1..apps.len() {
        let (sender, receiver) = mpsc::unbounded_channel();
        seats.push(Seat { taken: Arc::default(), connections: Some(sender) });
        given.push(Role::IsGiven(receiver));
    }
    let roles = std::iter::once(Role::Accepts(bound, seats)).chain(given);
    let worker = |(app, role)| Worker { app: Some(app), door: Arc::clone(&door), role: Some(role) };
    apps.into_iter().zip(roles).map(worker).collect()
}

#[async_trait]
impl<A: HttpServerApp + Send + Sync + 'static> Service for Worker<A> {
    async fn start_service(&mut self, _: Option<ListenFds>, shutdown: ShutdownWatch, _: usize) {
        let (Some(app), Some(role)) = (self.app.take(), self.role.take()) else {
            return;
        };
        let server =
            ConnectionServer { app: Arc::new(app), door: Arc::clone(&self.door), shutdown };
        let server = Arc::new(server);
        match role {
            Role::Accepts(bound, seats) => match bound.listen().and_then(from_std) {
                Ok(listener) => accept(&listener, &seats, &server).await,
                Err(e) => log::error!("the listener failed: {e}"),
            },
            Role::IsGiven(mut connections) => {
                while let Some((stream, admitted)) = connections.recv().await {
                    match TcpStream::from_std(stream) {
                        Ok(stream) => server.begin(stream, admitted),
                        Err(e) => log::error!("a connection cannot be served: {e}"),
                    }
                }
            }
        }
        server.app.http_cleanup().await;
    }

    fn name(&self) -> &str {
        "listener"
    }

    fn threads(&self) -> Option<usize> {
        Some(1)
    }
}

fn from_std(listener: TcpListener) -> io::Result<tokio::net::TcpListener> {
    listener.set_nonblocking(true)?;
    tokio::net::TcpListener::from_std(listener)
}

/// What all workers share.
struct Door {
    tls: Option<Acceptor>,
    h2c: bool,
    live: Arc<Live>,
    carry: Arc<Carry>,
    started: Instant,
    /// When a refused connection was last logged, in milliseconds since `started`.
    warned: AtomicU64,
    head_failure_response: HeadFailureResponse,
}

/// Serves the connections of one worker; shared by all of them.
struct ConnectionServer<A> {
    app: Arc<A>,
    door: Arc<Door>,
    shutdown: ShutdownWatch,
}

async fn accept<A: HttpServerApp + Send + Sync + 'static>(
    listener: &tokio::net::TcpListener,
    seats: &[Seat],
    server: &Arc<ConnectionServer<A>>,
) {
    let mut shutdown = server.shutdown.clone();
    let mut next = 0;
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            changed = shutdown.changed() => {
                if changed.is_err() || *shutdown.borrow() {
                    return;
                }
                continue;
            }
        };
        match accepted {
            Ok((stream, peer)) => {
                let Some(connection) = server.door.admit(&stream, peer) else { continue };
                let seat = &seats[emptiest(seats, next)];
                next = (next + 1) % seats.len();
                let admitted = Admitted { peer, connection, place: seat.take() };
                match &seat.connections {
                    None => server.begin(stream, admitted),
                    // It leaves this thread's event loop.
                    Some(worker) => match stream.into_std() {
                        Ok(stream) => drop(worker.send((stream, admitted))),
                        Err(e) => log::error!("a connection cannot be served: {e}"),
                    },
                }
            }
            Err(e) if is_of_one_client(&e) => {}
            Err(e) => {
                log::error!("cannot accept connections: {e}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// The worker with the fewest connections, from this one on.
fn emptiest(seats: &[Seat], from: usize) -> usize {
    let in_turn = (from..seats.len()).chain(0..from);
    let taken = |seat: &usize| seats[*seat].taken.load(Ordering::Relaxed);
    in_turn.min_by_key(taken).unwrap_or_default()
}

/// Whether only one connection is affected: the client closed it before it was accepted.
fn is_of_one_client(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionReset | Interrupted)
}

impl<A: HttpServerApp + Send + Sync + 'static> ConnectionServer<A> {
    /// Serves an admitted connection on this thread.
    fn begin(self: &Arc<Self>, stream: TcpStream, admitted: Admitted) {
        let server = Arc::clone(self);
        let transport = transport(stream, admitted.peer);
        tokio::spawn(async move {
            let Admitted { connection, place: _place, .. } = admitted;
            let serving = server.serve(transport, &connection);
            drive::run(serving, &connection).await;
        });
    }

    /// Serves one connection to its end. State that is only needed for a while, or only by some connections,
    /// is boxed separately, because there are many connections.
    fn serve<'a>(
        &'a self,
        transport: TcpTransport,
        connection: &'a Arc<ClientConnection>,
    ) -> BoxFuture<'a, ()> {
        let shutdown = &self.shutdown;
        let Some(tls) = &self.door.tls else {
            return match self.wrapped(transport, connection) {
                Some(stream) => Box::pin(self.serve_plain(stream, connection, shutdown)),
                None => Box::pin(std::future::ready(())),
            };
        };
        let handshake = Box::pin(async move {
            match tls.tls_handshake(transport).await {
                Ok(transport) => self.wrapped(transport, connection),
                Err(e) => {
                    log::debug!("TLS handshake failed: {e}");
                    None
                }
            }
        });
        Box::pin(async move {
            let Some(mut stream) = handshake.await else { return };
            if matches!(stream.selected_alpn_proto(), Some(ALPN::H2)) {
                stream.set_http2();
                Box::pin(self.http2(stream, connection, shutdown)).await;
            } else {
                self.http1(stream, shutdown).await;
            }
        })
    }

    fn wrapped<T: IO + 'static>(
        &self,
        transport: T,
        connection: &Arc<ClientConnection>,
    ) -> Option<Box<ClientStream<T>>> {
        ClientStream::new(
            transport,
            Arc::clone(connection),
            Arc::clone(&self.door.head_failure_response),
        )
        .map(Box::new)
        .inspect_err(|e| log::error!("a connection cannot be served: {e}"))
        .ok()
    }

    async fn serve_plain(
        &self,
        mut stream: Box<ClientStream<TcpTransport>>,
        connection: &ClientConnection,
        shutdown: &ShutdownWatch,
    ) {
        let http2 = match self.door.h2c {
            true => stream.is_http2().await,
            false => Ok(false),
        };
        match http2 {
            Ok(true) => {
                connection.ready();
                Box::pin(self.http2(stream, connection, shutdown)).await;
            }
            Ok(false) => self.http1(stream, shutdown).await,
            Err(e) => log::debug!("a connection ended before its first request: {e}"),
        }
    }

    /// HTTP/1.1, one request after the other, as Pingora's own service does it.
    async fn http1(&self, stream: Stream, shutdown: &ShutdownWatch) {
        let mut reused = self.first(stream, shutdown).await;
        while let Some(stream) = reused {
            reused = self.next(stream, shutdown).await;
        }
    }

    fn first<'a>(
        &'a self,
        stream: Stream,
        shutdown: &'a ShutdownWatch,
    ) -> BoxFuture<'a, Option<ReusedHttpStream>> {
        let mut session = ServerSession::new_http1(stream);
        // 0: Pingora sets no time limit for the head; the connection has its own.
        session.set_keepalive((!*shutdown.borrow()).then_some(0));
        self.app.process_new_http(session, shutdown)
    }

    fn next<'a>(
        &'a self,
        reused: ReusedHttpStream,
        shutdown: &'a ShutdownWatch,
    ) -> BoxFuture<'a, Option<ReusedHttpStream>> {
        let (stream, settings) = reused.consume();
        let mut session = ServerSession::new_http1(stream);
        if let Some(settings) = settings {
            settings.apply_to_session(&mut session);
        }
        self.app.process_new_http(session, shutdown)
    }

    /// HTTP/2. Pingora ends it gracefully when the server shuts down, or when only this connection is to
    /// end; both are signalled over the same channel.
    async fn http2(&self, stream: Stream, connection: &ClientConnection, shutdown: &ShutdownWatch) {
        let mut shutdown = shutdown.clone();
        let (goaway, end) = watch::channel(*shutdown.borrow());
        let server = goaway.clone();
        connection.set_http2(goaway);
        let mut serving = self.app.process_new(stream, &end);
        let changed = tokio::select! {
            biased;
            _ = &mut serving => return,
            changed = shutdown.changed() => changed,
        };
        if changed.is_err() || *shutdown.borrow() {
            server.send_replace(true);
        }
        serving.await;
    }
}

impl Door {
    /// Takes a slot for a connection, or refuses it.
    fn admit(&self, stream: &TcpStream, peer: SocketAddr) -> Option<Arc<ClientConnection>> {
        let snapshot = self.live.load();
        let plan = &snapshot.plan;
        let address = peer.ip().to_canonical();
        let limited = (!ip::within(&plan.trusted_proxies, address)).then_some(address);
        let max = MaxConnections {
            total: plan.max_connections,
            per_address: plan.max_connections_per_ip,
        };
        match self.carry.connections.admit(limited, max, ConnectionLimits::of(plan)) {
            Ok(connection) => Some(connection),
            Err(limit) => {
                self.warn(limit, address);
                if self.tls.is_none() {
                    let rejection = Rejection::too_many_connections(RETRY_AFTER);
                    refuse(stream, &response(plan.error_format, &rejection));
                }
                None
            }
        }
    }

    fn warn(&self, limit: ReachedLimit, address: IpAddr) {
        let now = self.started.elapsed().as_millis() as u64 + WARN_EVERY;
        let last = self.warned.load(Ordering::Relaxed);
        if now.saturating_sub(last) < WARN_EVERY
            || self
                .warned
                .compare_exchange(last, now, Ordering::Relaxed, Ordering::Relaxed)
                .is_err()
        {
            return;
        }
        match limit {
            ReachedLimit::Total => log::warn!(
                "connections are refused: {} are open, as many as server.max_connections allows",
                self.carry.connections.open()
            ),
            ReachedLimit::Address => log::warn!(
                "connections of {address} are refused: server.max_connections_per_ip is reached"
            ),
        }
    }
}

/// A connection as Pingora knows it, with its addresses.
fn transport(stream: TcpStream, peer: SocketAddr) -> TcpTransport {
    let digest = SocketDigest::from_raw_fd(stream.as_raw_fd());
    digest.peer_addr.set(Some(peer.into())).ok();
    let mut transport = TcpTransport::from(stream);
    transport.set_socket_digest(digest);
    transport
}

/// Responds to heads that never become requests.
fn head_failure_response(live: &Arc<Live>) -> HeadFailureResponse {
    let live = Arc::clone(live);
    Arc::new(move |failure| {
        let plan = &live.load().plan;
        let rejection = match failure {
            HeadFailure::Timeout => Rejection::head_timeout(),
            HeadFailure::TooLarge => Rejection::headers_too_large(plan.max_header_size),
        };
        response(plan.error_format, &rejection)
    })
}

/// Responds to a refused connection, if that is possible without waiting.
fn refuse(stream: &TcpStream, response: &[u8]) {
    if stream.try_write(response).is_ok() {
        SockRef::from(stream).shutdown(Shutdown::Write).ok();
    }
}

/// A complete HTTP/1.1 response, after which the connection is closed.
fn response(format: ErrorFormat, rejection: &Rejection) -> Vec<u8> {
    let flat = format == ErrorFormat::Simple;
    let body = ErrorWording::new(DIALECTS[0], flat).rejection(rejection);
    let reason =
        http::StatusCode::from_u16(rejection.status).ok().and_then(|s| s.canonical_reason());
    let mut response = format!(
        "HTTP/1.1 {} {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n",
        rejection.status,
        reason.unwrap_or_default(),
        body.len()
    );
    if let Some(seconds) = rejection.retry_after {
        response.push_str(&format!("Retry-After: {seconds}\r\n"));
    }
    response.push_str("\r\n");
    let mut response = response.into_bytes();
    response.extend_from_slice(&body);
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_goes_to_the_worker_with_the_fewest() {
        let seat = || Seat { taken: Arc::default(), connections: None };
        let seats: Vec<Seat> = std::iter::repeat_with(seat).take(3).collect();
        let mut places = Vec::new();
        let mut next = || {
            let chosen = emptiest(&seats, places.len() % 3);
            places.push(seats[chosen].take());
            chosen
        };
        assert_eq!([next(), next(), next(), next()], [0, 1, 2, 0]);
        // Of two with as few, the one whose turn it is.
        assert_eq!(next(), 1);
        drop(places.drain(1..3));
        assert_eq!(emptiest(&seats, 0), 2, "0 has two, 1 has one, 2 has none");
        drop(places);
        assert_eq!(emptiest(&seats, 2), 2);
    }
}
