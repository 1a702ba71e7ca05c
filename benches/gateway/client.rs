//! Clients that send requests and read streams.

use std::{net::SocketAddr, time::Instant};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

pub fn request_body(size: usize, stream: bool) -> Vec<u8> {
    let head = format!(
        r#"{{"model":"sim-model","stream":{stream},"messages":[{{"role":"user","content":""#
    );
    let fill = "x".repeat(size - head.len() - 4);
    let body = format!("{head}{fill}\"}}]}}");
    format!(
        "POST /v1/chat/completions HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\n\
         Authorization: Bearer sk-bench-0123456789\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

/// Times of one stream in milliseconds: to the first event, and between events.
pub struct Pace {
    pub first: f64,
    pub gaps: Vec<f64>,
}

pub async fn stream(address: SocketAddr, request: &[u8]) -> Pace {
    let mut client = Client::connect(address).await;
    let asked = Instant::now();
    client.stream.write_all(request).await.unwrap();
    let mut pace = Pace { first: 0.0, gaps: Vec::new() };
    let (mut last, mut seen) = (asked, Vec::new());
    loop {
        let n = client.stream.read_buf(&mut seen).await.unwrap();
        assert!(n > 0, "a stream was cut off");
        let now = Instant::now();
        let since = (now - last).as_secs_f64() * 1000.0;
        if seen.windows(6).any(|w| w == b"[DONE]") {
            return pace;
        }
        if !seen.windows(6).any(|w| w == b"data: ") {
            continue;
        }
        if pace.first == 0.0 {
            pace.first = since;
        } else {
            pace.gaps.push(since);
        }
        last = now;
        seen.clear();
    }
}

/// A connection that is reused.
pub struct Client {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Client {
    pub async fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Self { stream, buffer: Vec::with_capacity(16 * 1024) }
    }

    /// Sends a request and reads the response, which must have `Content-Length`.
    pub async fn ask(&mut self, request: &[u8]) {
        self.stream.write_all(request).await.unwrap();
        self.buffer.clear();
        loop {
            let n = self.stream.read_buf(&mut self.buffer).await.unwrap();
            assert!(n > 0, "the connection was closed");
            if let Some(whole) = whole_length(&self.buffer)
                && self.buffer.len() >= whole
            {
                assert!(
                    self.buffer.starts_with(b"HTTP/1.1 200"),
                    "{}",
                    String::from_utf8_lossy(&self.buffer)
                );
                return;
            }
        }
    }
}

fn whole_length(buffer: &[u8]) -> Option<usize> {
    let mut headers = [httparse::EMPTY_HEADER; 32];
    let mut response = httparse::Response::new(&mut headers);
    let httparse::Status::Complete(head) = response.parse(buffer).ok()? else {
        return None;
    };
    let length = response.headers.iter().find(|h| h.name.eq_ignore_ascii_case("content-length"))?;
    Some(head + std::str::from_utf8(length.value).ok()?.parse::<usize>().ok()?)
}
