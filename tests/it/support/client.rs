//! A raw HTTP/1.1 client: it sends any bytes and shows each response chunk as it arrives.

use std::net::SocketAddr;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use super::PATIENCE;

/// One connection.
pub struct Client {
    stream: TcpStream,
    buffer: Vec<u8>,
}

#[derive(Debug)]
pub struct Response {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// The body ended as its framing requires.
    pub whole: bool,
}

impl Response {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }

    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {}", self.text()))
    }
}

impl Client {
    pub async fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Self { stream, buffer: Vec::new() }
    }

    /// Sends bytes; `false` if the peer has closed the connection.
    pub async fn try_send(&mut self, bytes: &[u8]) -> bool {
        self.stream.write_all(bytes).await.is_ok()
    }

    pub async fn send(&mut self, bytes: &[u8]) {
        assert!(self.try_send(bytes).await, "the gateway has closed the connection");
    }

    /// Sends a POST with a JSON body and additional header lines.
    pub async fn post_with(&mut self, path: &str, headers: &str, body: &[u8]) {
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: gateway\r\nContent-Type: application/json\r\n{headers}Content-Length: {}\r\n\r\n",
            body.len()
        );
        self.send(&[head.as_bytes(), body].concat()).await;
    }

    pub async fn post(&mut self, path: &str, body: impl AsRef<[u8]>) {
        self.post_with(path, "", body.as_ref()).await;
    }

    /// Sends a POST and reads the answer.
    pub async fn ask(&mut self, path: &str, body: impl AsRef<[u8]>) -> Response {
        self.post(path, body).await;
        self.answer().await
    }

    pub async fn get(&mut self, path: &str) -> Response {
        self.send(format!("GET {path} HTTP/1.1\r\nHost: gateway\r\n\r\n").as_bytes()).await;
        self.answer().await
    }

    /// Reads more; `false` at the end of the connection.
    async fn more(&mut self) -> bool {
        self.buffer.reserve(64 * 1024);
        let read = timeout(PATIENCE, self.stream.read_buf(&mut self.buffer)).await;
        read.expect("the gateway is silent").unwrap_or(0) > 0
    }

    /// Reads the head of a response, also an interim one (1xx).
    pub async fn head(&mut self) -> Response {
        loop {
            if let Some(end) = memchr::memmem::find(&self.buffer, b"\r\n\r\n") {
                let head: Vec<u8> = self.buffer.drain(..end + 4).collect();
                return parse_head(&String::from_utf8(head).unwrap());
            }
            assert!(self.more().await, "no answer: {:?}", String::from_utf8_lossy(&self.buffer));
        }
    }

    /// Reads a whole response, after any interim ones.
    pub async fn answer(&mut self) -> Response {
        let mut answer = self.head().await;
        while (100..200).contains(&answer.status) {
            answer = self.head().await;
        }
        self.rest(answer).await
    }

    /// Reads the body of a response whose head was read.
    pub async fn rest(&mut self, mut answer: Response) -> Response {
        if answer.header("transfer-encoding") == Some("chunked") {
            loop {
                match self.chunk().await {
                    Some(chunk) if chunk.is_empty() => break,
                    Some(chunk) => answer.body.extend(chunk),
                    None => {
                        answer.whole = false;
                        break;
                    }
                }
            }
            return answer;
        }
        let length = answer.header("content-length").map_or(0, |v| v.parse().unwrap());
        while self.buffer.len() < length && self.more().await {}
        let taken = length.min(self.buffer.len());
        answer.body = self.buffer.drain(..taken).collect();
        answer.whole = taken == length;
        answer
    }

    /// Reads to the end of a chunked body.
    pub async fn answer_rest(&mut self) {
        while self.chunk().await.is_some_and(|chunk| !chunk.is_empty()) {}
    }

    /// Reads one chunk of a chunked body; empty for the last, `None` if the connection ends.
    pub async fn chunk(&mut self) -> Option<Vec<u8>> {
        let line = loop {
            if let Some(end) = memchr::memmem::find(&self.buffer, b"\r\n") {
                break self.buffer.drain(..end + 2).collect::<Vec<u8>>();
            }
            if !self.more().await {
                return None;
            }
        };
        let size = usize::from_str_radix(std::str::from_utf8(&line).unwrap().trim(), 16).unwrap();
        while self.buffer.len() < size + 2 {
            if !self.more().await {
                return None;
            }
        }
        let chunk = self.buffer.drain(..size).collect();
        self.buffer.drain(..2);
        Some(chunk)
    }
}

fn parse_head(head: &str) -> Response {
    let mut lines = head.trim_end().split("\r\n");
    let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
    let headers = lines
        .map(|line| line.split_once(':').unwrap())
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    Response { status, headers, body: Vec::new(), whole: true }
}
