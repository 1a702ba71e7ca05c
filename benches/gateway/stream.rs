//! A client that reads one stream, with as little work as possible: thousands of them share a core with
//! the backend.

use std::{
    net::SocketAddr,
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use super::{backend, client, language::Language};

/// The end of a chunked body.
const END: &[u8] = b"\r\n0\r\n\r\n";
/// `@` and nanoseconds since 1970: what the backend writes as a token.
const STAMP: usize = 20;
/// About the size of an event.
const EVENT: usize = 260;

/// Times of one stream in microseconds.
pub struct Times {
    /// From the request to the first token.
    pub first: f64,
    /// How long each token was on its way from the backend.
    pub transit: Vec<f32>,
}

/// What a stream is, and how many are open.
pub struct Call<'a> {
    pub address: SocketAddr,
    pub request: &'a [u8],
    pub language: Language,
    pub tokens: usize,
    /// The longest time that the stream may take.
    pub patience: Duration,
    pub open: &'a AtomicUsize,
}

/// Reads a stream, which must be complete.
pub async fn read(call: Call<'_>) -> Result<Times, String> {
    match timeout(call.patience, exchange(&call)).await {
        Ok(result) => result,
        Err(_) => Err(format!("a stream did not end within {:?}", call.patience)),
    }
}

async fn exchange(call: &Call<'_>) -> Result<Times, String> {
    let mut stream = client::connect(call.address).await?;
    let asked = Instant::now();
    let sent = stream.write_all(call.request).await;
    sent.map_err(|e| format!("a request could not be sent: {e}"))?;
    let mut reader = Reader::new(call.language, call.tokens);
    let first = loop {
        reader.more(&mut stream).await?;
        if !reader.transit.is_empty() {
            break asked.elapsed();
        }
    };
    call.open.fetch_add(1, Ordering::Relaxed);
    let rest = reader.rest(&mut stream).await;
    call.open.fetch_sub(1, Ordering::Relaxed);
    rest?;
    Ok(Times { first: first.as_secs_f64() * 1e6, transit: reader.transit })
}

struct Reader {
    language: Language,
    /// All that has been received.
    buffer: Vec<u8>,
    /// Up to here it was searched for tokens.
    searched: usize,
    tokens: usize,
    transit: Vec<f32>,
}

impl Reader {
    fn new(language: Language, tokens: usize) -> Self {
        let buffer = Vec::with_capacity((tokens + 4) * EVENT);
        Self { language, buffer, searched: 0, tokens, transit: Vec::with_capacity(tokens) }
    }

    async fn more(&mut self, stream: &mut TcpStream) -> Result<(), String> {
        let read = stream.read_buf(&mut self.buffer).await;
        let n = read.map_err(|e| format!("a stream was cut off: {e}"))?;
        let now = backend::now();
        if n == 0 || (self.buffer.len() >= 12 && &self.buffer[9..12] != b"200") {
            let status_known = self.buffer.get(9..12).is_some_and(|code| code != b"200");
            let text = "a stream was cut off".to_owned();
            return Err(if status_known { client::refused(&self.buffer) } else { text });
        }
        // Responses repeats all tokens at its end.
        let repeated = self.language == Language::Responses;
        while let Some(at) = memchr::memchr(b'@', &self.buffer[self.searched..]) {
            if repeated && self.transit.len() == self.tokens {
                break;
            }
            let from = self.searched + at;
            let Some(stamp) = self.buffer.get(from + 1..from + STAMP) else {
                self.searched = from;
                return Ok(());
            };
            let stamp = std::str::from_utf8(stamp).ok().and_then(|text| text.parse().ok());
            let stamp: u64 = stamp.ok_or("a token is damaged")?;
            self.transit.push(now.saturating_sub(stamp) as f32 / 1000.0);
            self.searched = from + STAMP;
        }
        self.searched = self.buffer.len();
        Ok(())
    }

    /// Bytes in which the last event stands.
    fn longest_end(&self) -> usize {
        match self.language {
            Language::Chat => 64,
            Language::Messages => 128,
            // All of the answer once more.
            Language::Responses => 2048 + self.tokens * (STAMP + 1),
        }
    }

    async fn rest(&mut self, stream: &mut TcpStream) -> Result<(), String> {
        while !self.buffer.ends_with(END) {
            self.more(stream).await?;
        }
        let last = self.language.last();
        let tail = &self.buffer[self.buffer.len().saturating_sub(self.longest_end())..];
        if memchr::memmem::find(tail, last).is_none() {
            return Err(format!("a stream ended without {}", String::from_utf8_lossy(last)));
        }
        match self.transit.len() == self.tokens {
            true => Ok(()),
            false => Err(format!("a stream had {} of {} tokens", self.transit.len(), self.tokens)),
        }
    }
}
