//! Raw connections that send given bytes, valid or not, and raw HTTP/2 frames.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use super::PATIENCE;

/// The client connection preface of HTTP/2.
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// An empty `SETTINGS` frame.
pub const SETTINGS: &[u8] = &[0, 0, 0, 4, 0, 0, 0, 0, 0];

/// The bytes that a connection sends first, and those that it repeats at an interval.
#[derive(Clone, Debug, Default)]
pub struct Script {
    pub first: Vec<u8>,
    pub drip: Option<(Duration, Vec<u8>)>,
}

impl Script {
    pub fn once(first: impl AsRef<[u8]>) -> Self {
        Self { first: first.as_ref().to_vec(), drip: None }
    }

    pub fn dripping(first: impl AsRef<[u8]>, piece: impl AsRef<[u8]>) -> Self {
        let drip = Some((Duration::from_millis(40), piece.as_ref().to_vec()));
        Self { drip, ..Self::once(first) }
    }
}

/// Returns all bytes received until the peer closed, and the time that took; `None` if the peer does
/// not close.
pub async fn until_closed<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    script: Script,
) -> Option<(Vec<u8>, Duration)> {
    let start = Instant::now();
    let (mut read, mut write) = tokio::io::split(stream);
    let sending = async {
        write.write_all(&script.first).await.ok();
        write.flush().await.ok();
        while let Some((every, piece)) = &script.drip {
            tokio::time::sleep(*every).await;
            if write.write_all(piece).await.is_err() || write.flush().await.is_err() {
                break;
            }
        }
        std::future::pending::<()>().await;
    };
    let mut came = Vec::new();
    let reading = async { while read.read_buf(&mut came).await.unwrap_or(0) > 0 {} };
    let both = async {
        tokio::select! {
            () = reading => {}
            () = sending => {}
        }
    };
    let closed = timeout(PATIENCE, both).await.is_ok();
    closed.then(|| (came, start.elapsed()))
}

/// [`until_closed`] over TCP.
pub async fn tcp_until_closed(address: SocketAddr, script: Script) -> Option<(Vec<u8>, Duration)> {
    until_closed(TcpStream::connect(address).await.unwrap(), script).await
}

/// A `HEADERS` frame of HTTP/2 for a POST, which opens this stream.
pub fn http2_post(stream: u32, path: &str, length: usize) -> Vec<u8> {
    // RFC 7541: POST and http from the static table, the rest as literals without indexing.
    let mut block = vec![0x83, 0x86];
    for (name, value) in [(0x04, path), (0x01, "gateway")] {
        block.push(name);
        block.push(value.len() as u8);
        block.extend_from_slice(value.as_bytes());
    }
    let length = length.to_string();
    block.extend_from_slice(&[0x0f, 28 - 15, length.len() as u8]);
    block.extend_from_slice(length.as_bytes());
    frame(1, 4, stream, &block)
}

pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    frame.extend_from_slice(&[kind, flags]);
    frame.extend_from_slice(&stream.to_be_bytes());
    frame.extend_from_slice(payload);
    frame
}
