//! Serves the listeners for operators: few connections, each with a time limit.

use std::{io, net::TcpListener, sync::Arc, time::Duration};

use axum::{Extension, Router, extract::ConnectInfo};
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::sync::Semaphore;

/// Connections at a time: a client without a token must not use up all resources.
const CONNECTIONS: usize = 256;

/// Pause before accepting again when the system has no file descriptor for a connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves until the listener breaks. `head` is how long a client may take for the head of a request,
/// including the idle time before it. Handlers find the client's address in [`ConnectInfo`].
///
/// # Errors
/// If the listener breaks.
pub async fn run(listener: TcpListener, name: &str, head: Duration, app: Router) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let slots = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let slot = Arc::clone(&slots).acquire_owned().await.map_err(io::Error::other)?;
        let (stream, mut from) = match listener.accept().await {
            Ok(connection) => connection,
            // No file descriptors, or a client that has closed the connection already.
            Err(e) => {
                log::warn!("{name}: {e}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        // IPv4-mapped addresses as IPv4.
        from.set_ip(from.ip().to_canonical());
        let service = TowerToHyperService::new(app.clone().layer(Extension(ConnectInfo(from))));
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(head)
            .serve_connection(TokioIo::new(stream), service);
        tokio::spawn(async move {
            connection.await.ok();
            drop(slot);
        });
    }
}

#[cfg(test)]
mod tests {
    use axum::routing::get;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpStream,
    };

    use super::*;

    #[tokio::test]
    async fn silent_connections_are_closed() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let app = Router::new().route("/health", get(async || "OK"));
        tokio::spawn(run(listener, "test", Duration::from_millis(200), app));
        let request = "GET /health HTTP/1.1\r\nHost: g\r\n\r\n";
        for begin in ["", "GET / HT", request] {
            let mut client = TcpStream::connect(address).await.unwrap();
            client.write_all(begin.as_bytes()).await.unwrap();
            let mut received = Vec::new();
            // Ends only because the server closes.
            client.read_to_end(&mut received).await.unwrap();
            assert_eq!(received.ends_with(b"OK"), begin == request, "{begin}");
        }
    }
}
