//! Listeners for operators: few connections, each with a time limit.

use std::{io, net::TcpListener, sync::Arc, time::Duration};

use axum::{Extension, Router, extract::ConnectInfo};
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::sync::Semaphore;

/// Connections at a time: whoever reaches the port without a token must not use up all that there
/// is.
const CONNECTIONS: usize = 256;

/// How long accepting rests when the system has no file descriptor for a connection.
const REST: Duration = Duration::from_millis(100);

/// Serves for ever. `head` is how long a client may take for the head of a request, the time without a
/// request before it included. Handlers find the client's address in [`ConnectInfo`].
///
/// # Errors
/// If the listener breaks.
pub async fn run(listener: TcpListener, name: &str, head: Duration, app: Router) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let place = Arc::clone(&places).acquire_owned().await.map_err(io::Error::other)?;
        let (stream, mut from) = match listener.accept().await {
            Ok(connection) => connection,
            // Out of file descriptors, or a client that has gone again.
            Err(e) => {
                log::warn!("{name}: {e}");
                tokio::time::sleep(REST).await;
                continue;
            }
        };
        // As it is where only IPv4 is spoken.
        from.set_ip(from.ip().to_canonical());
        let service = TowerToHyperService::new(app.clone().layer(Extension(ConnectInfo(from))));
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(head)
            .serve_connection(TokioIo::new(stream), service);
        tokio::spawn(async move {
            connection.await.ok();
            drop(place);
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
            let mut came = Vec::new();
            // Ends only because the server closes.
            client.read_to_end(&mut came).await.unwrap();
            assert_eq!(came.ends_with(b"OK"), begin == request, "{begin}");
        }
    }
}
