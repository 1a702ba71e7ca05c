//! HTTP/1.1 by hand: libraries would not let the server break the rules.

use std::{
    io,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::{Buf, BytesMut};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use super::stats::ReceivedRequest;

/// The content type of JSON documents.
pub const JSON: &str = "application/json";

/// What happens to a connection after a response.
pub enum ConnectionAction {
    /// It waits for the next request.
    Keep,
    /// It is closed.
    Close,
    /// It is reset.
    Reset,
}

/// One connection.
pub struct Conn {
    stream: TcpStream,
    buffer: BytesMut,
    /// Written together with the next bytes.
    announced: Vec<u8>,
    /// The server has retired: nothing more is written.
    silent: Arc<AtomicBool>,
}

/// The client has disconnected.
pub struct ClientGone;

impl From<io::Error> for ClientGone {
    fn from(_: io::Error) -> Self {
        Self
    }
}

impl Conn {
    pub fn new(stream: TcpStream, silent: Arc<AtomicBool>) -> Self {
        let buffer = BytesMut::with_capacity(8 * 1024);
        Self { stream, buffer, announced: Vec::new(), silent }
    }

    /// Queues bytes that are written before the next ones.
    pub fn announce(&mut self, text: &str) {
        self.announced.extend_from_slice(text.as_bytes());
    }

    /// The next request; `None` if the connection has ended or was idle for too long.
    pub async fn request(&mut self, idle: Duration) -> Option<ReceivedRequest> {
        if self.buffer.is_empty() {
            timeout(idle, self.stream.read_buf(&mut self.buffer))
                .await
                .ok()?
                .ok()
                .filter(|n| *n > 0)?;
        }
        let (mut seen, head) = loop {
            if let Some(found) = parse(&self.buffer)? {
                break found;
            }
            self.more().await?;
        };
        self.buffer.advance(head);
        if seen.header("expect").is_some_and(|v| v.eq_ignore_ascii_case("100-continue")) {
            self.stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await.ok()?;
        }
        seen.body = if seen.header("transfer-encoding").is_some() {
            self.chunked().await?
        } else {
            let length = seen.header("content-length").and_then(|v| v.parse().ok()).unwrap_or(0);
            self.exactly(length).await?
        };
        Some(seen)
    }

    async fn more(&mut self) -> Option<()> {
        self.stream.read_buf(&mut self.buffer).await.ok().filter(|n| *n > 0).map(|_| ())
    }

    async fn exactly(&mut self, length: usize) -> Option<Vec<u8>> {
        self.buffer.reserve(length.saturating_sub(self.buffer.len()));
        while self.buffer.len() < length {
            self.more().await?;
        }
        Some(self.buffer.split_to(length).to_vec())
    }

    async fn chunked(&mut self) -> Option<Vec<u8>> {
        let mut body = Vec::new();
        loop {
            let line = loop {
                if let Some(at) = memchr::memmem::find(&self.buffer, b"\r\n") {
                    break self.buffer.split_to(at + 2);
                }
                self.more().await?;
            };
            let size = std::str::from_utf8(&line).ok()?.split(';').next()?.trim();
            let size = usize::from_str_radix(size, 16).ok()?;
            let chunk = self.exactly(size + 2).await?;
            if size == 0 {
                return Some(body);
            }
            body.extend_from_slice(&chunk[..size]);
        }
    }

    /// Writes bytes as they are.
    pub async fn write(&mut self, bytes: &[u8]) -> Result<(), ClientGone> {
        if self.silent.load(Ordering::Relaxed) {
            return Err(self.hang().await);
        }
        if self.announced.is_empty() {
            return Ok(self.stream.write_all(bytes).await?);
        }
        let all = [&std::mem::take(&mut self.announced), bytes].concat();
        Ok(self.stream.write_all(&all).await?)
    }

    /// Writes a complete response.
    pub async fn answer(
        &mut self,
        status: u16,
        headers: &str,
        kind: &str,
        body: &[u8],
    ) -> Result<(), ClientGone> {
        let mut out = head(status, headers, kind, body.len());
        out.extend_from_slice(body);
        self.write(&out).await
    }

    /// Writes the head and the two halves of the body, with a pause before each half.
    pub async fn answer_slowly(
        &mut self,
        status: u16,
        headers: &str,
        body: &[u8],
        pause: Duration,
    ) -> Result<(), ClientGone> {
        if pause.is_zero() {
            return self.answer(status, headers, JSON, body).await;
        }
        self.write(&head(status, headers, JSON, body.len())).await?;
        for half in [&body[..body.len() / 2], &body[body.len() / 2..]] {
            self.wait(pause).await?;
            self.write(half).await?;
        }
        Ok(())
    }

    /// Writes the head of a chunked response.
    pub async fn chunked_head(&mut self, kind: &str) -> Result<(), ClientGone> {
        let kind =
            if kind.is_empty() { String::new() } else { format!("content-type: {kind}\r\n") };
        let head = "HTTP/1.1 200 OK\r\nserver: uvicorn\r\n";
        self.write(format!("{head}{kind}transfer-encoding: chunked\r\n\r\n").as_bytes()).await
    }

    /// Writes one chunk of a chunked body.
    pub async fn chunk(&mut self, text: &str) -> Result<(), ClientGone> {
        self.write(format!("{:x}\r\n{text}\r\n", text.len()).as_bytes()).await
    }

    /// Writes `count` heartbeats into a chunked body.
    pub async fn heartbeats(
        &mut self,
        count: u64,
        text: &str,
        pause: Duration,
    ) -> Result<(), ClientGone> {
        for _ in 0..count {
            self.chunk(text).await?;
            self.wait(pause).await?;
        }
        Ok(())
    }

    /// Waits, unless the client disconnects.
    pub async fn wait(&mut self, time: Duration) -> Result<(), ClientGone> {
        if time.is_zero() {
            return Ok(());
        }
        self.until(tokio::time::sleep(time)).await
    }

    /// Waits for a future, unless the client disconnects.
    pub async fn until<T>(&mut self, what: impl Future<Output = T>) -> Result<T, ClientGone> {
        let mut what = pin!(what);
        loop {
            tokio::select! {
                outcome = &mut what => return Ok(outcome),
                read = self.stream.read_buf(&mut self.buffer) => {
                    // A half-close counts as disconnected, as in vLLM.
                    if read? == 0 {
                        return Err(ClientGone);
                    }
                }
            }
        }
    }

    /// Waits until the client disconnects.
    pub async fn hang(&mut self) -> ClientGone {
        match self.until(std::future::pending::<ClientGone>()).await {
            Ok(gone) | Err(gone) => gone,
        }
    }

    /// Resets the connection, as a killed process does.
    pub fn reset(self) {
        socket2::SockRef::from(&self.stream).set_linger(Some(Duration::ZERO)).ok();
    }
}

/// The head of a response.
fn head(status: u16, headers: &str, kind: &str, length: usize) -> Vec<u8> {
    let reason = match status {
        200 => "OK",
        307 => "Temporary Redirect",
        400 => "Bad Request",
        401 => "Unauthorized",
        404 => "Not Found",
        405 => "Method Not Allowed",
        429 => "Too Many Requests",
        503 => "Service Unavailable",
        _ => "Internal Server Error",
    };
    let kind = if kind.is_empty() { String::new() } else { format!("content-type: {kind}\r\n") };
    let text = format!(
        "HTTP/1.1 {status} {reason}\r\nserver: uvicorn\r\ncontent-length: {length}\r\n{headers}{kind}\r\n"
    );
    text.into_bytes()
}

/// Parses a request head: the request without its body, and the length of the head. `Some(None)`: the head is
/// incomplete; `None`: not HTTP.
#[expect(clippy::option_option, reason = "broken, unfinished and whole are three things")]
fn parse(buffer: &[u8]) -> Option<Option<(ReceivedRequest, usize)>> {
    let mut headers = [httparse::EMPTY_HEADER; 100];
    let mut request = httparse::Request::new(&mut headers);
    match request.parse(buffer).ok()? {
        httparse::Status::Partial => Some(None),
        httparse::Status::Complete(length) => {
            let line = format!("{} {}", request.method?, request.path?);
            let headers = request
                .headers
                .iter()
                .map(|h| {
                    (h.name.to_ascii_lowercase(), String::from_utf8_lossy(h.value).into_owned())
                })
                .collect();
            Some(Some((ReceivedRequest { line, headers, body: Vec::new() }, length)))
        }
    }
}
