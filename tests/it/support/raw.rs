//! A backend that sends given bytes, which need not be HTTP.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

/// An action of the backend after it has read a request.
#[derive(Clone, Debug)]
pub enum Step {
    Send(Vec<u8>),
    /// Sends these bytes this many times; stops if the connection fails.
    Flood(Vec<u8>, usize),
    /// In milliseconds.
    Pause(u64),
    /// Waits until the peer closes.
    Open,
    /// Resets the connection.
    Reset,
}

pub fn send(text: impl AsRef<[u8]>) -> Step {
    Step::Send(text.as_ref().to_vec())
}

/// The head of a response with these header lines, each of which ends with a line break.
pub fn head(lines: &str) -> Step {
    send(format!("HTTP/1.1 200 OK\r\n{lines}\r\n"))
}

/// The head of a chunked stream of events.
pub fn events() -> Step {
    head("Content-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n")
}

/// A chunk of a chunked body.
pub fn chunk(text: impl AsRef<[u8]>) -> Step {
    let text = text.as_ref();
    let mut all = format!("{:x}\r\n", text.len()).into_bytes();
    all.extend_from_slice(text);
    all.extend_from_slice(b"\r\n");
    Step::Send(all)
}

pub fn last() -> Step {
    send("0\r\n\r\n")
}

/// Starts a backend that performs the steps for each request, by its number from 0, and closes the
/// connection. Returns its URL and the count of requests.
pub async fn backend(
    steps: impl Fn(usize) -> Vec<Step> + Send + 'static,
) -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let requests = Arc::<AtomicUsize>::default();
    let count = Arc::clone(&requests);
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            socket.set_nodelay(true).unwrap();
            let mut socket = socket;
            if !read_request(&mut socket).await {
                continue;
            }
            let todo = steps(count.fetch_add(1, Ordering::SeqCst));
            tokio::spawn(perform(socket, todo));
        }
    });
    (url, requests)
}

/// Reads a request with a JSON body.
async fn read_request(socket: &mut TcpStream) -> bool {
    let mut request = Vec::new();
    while !request.ends_with(b"}") {
        if socket.read_buf(&mut request).await.unwrap_or(0) == 0 {
            return false;
        }
    }
    true
}

async fn perform(mut socket: TcpStream, steps: Vec<Step>) {
    for step in steps {
        match step {
            Step::Send(bytes) => {
                socket.write_all(&bytes).await.ok();
                tokio::task::yield_now().await;
            }
            Step::Flood(bytes, times) => {
                for _ in 0..times {
                    if socket.write_all(&bytes).await.is_err() {
                        return;
                    }
                }
            }
            Step::Pause(millis) => tokio::time::sleep(Duration::from_millis(millis)).await,
            Step::Open => while socket.read(&mut [0; 1024]).await.is_ok_and(|n| n > 0) {},
            Step::Reset => {
                socket2::SockRef::from(&socket).set_linger(Some(Duration::ZERO)).unwrap();
                return;
            }
        }
    }
}
