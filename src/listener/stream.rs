//! A client's connection as Pingora gets it: it reports received bytes and blocked writes, detects
//! HTTP/2 by the first bytes, and answers heads that never become requests.

use std::{
    fmt, io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker, ready},
    time::Duration,
};

use async_trait::async_trait;
use pingora::{
    http::ResponseHeader,
    protocols::{
        ALPN, GetProxyDigest, GetSocketDigest, GetTimingDigest, IO, Peek, Shutdown, SocketDigest,
        Ssl, TimingDigest, UniqueID, UniqueIDType,
        raw_connect::ProxyDigest,
        tls::{SslDigest, TlsRef},
    },
};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};

use super::{chunks::ChunkLines, writer::Writer};
use crate::runtime::connections::{ClientConnection, HeadFailure, Phase};

/// The connection preface of HTTP/2 (RFC 9113, section 3.4).
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Makes the response to a head that never becomes a request.
pub type HeadFailureResponse = Arc<dyn Fn(HeadFailure) -> Vec<u8> + Send + Sync>;

/// A client's connection.
pub struct ClientStream<T: IO> {
    io: Writer<T>,
    /// Bytes that it had taken when that was last looked at.
    taken: u64,
    chunks: ChunkLines,
    connection: Arc<ClientConnection>,
    /// Made once: Pingora asks for it with each request.
    digest: Arc<ProxyDigest>,
    head_failure_response: HeadFailureResponse,
    /// Bytes that were read to find out which protocol it is.
    first: [u8; PREFACE.len()],
    /// How many of them were read, and how many were passed on.
    peeked: usize,
    passed_on: usize,
    http2: bool,
    last: Option<LastResponse>,
}

/// The last response of a connection.
struct LastResponse {
    bytes: Vec<u8>,
    written: usize,
    closed: bool,
}

impl<T: IO> Drop for ClientStream<T> {
    /// Sends buffered bytes as far as possible without waiting. When an answer breaks off, its reader must
    /// see everything that arrived before.
    fn drop(&mut self) {
        if !self.io.waiting().is_empty() {
            let flushed =
                Pin::new(&mut self.io).poll_flush(&mut Context::from_waker(Waker::noop()));
            log::debug!("a connection was closed with bytes to send: {flushed:?}");
        }
    }
}

impl<T: IO> fmt::Debug for ClientStream<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClientStream")
    }
}

impl<T: IO> ClientStream<T> {
    pub fn new(
        io: T,
        connection: Arc<ClientConnection>,
        head_failure_response: HeadFailureResponse,
    ) -> pingora::Result<Self> {
        // The only custom value that Pingora passes from a connection to each of its requests.
        let head = Box::new(ResponseHeader::build(200, Some(0))?);
        let data = Box::new(Arc::clone(&connection));
        Ok(Self {
            io: Writer::new(io),
            taken: 0,
            digest: Arc::new(ProxyDigest::new(head, Some(data))),
            connection,
            chunks: ChunkLines::default(),
            head_failure_response,
            first: [0; PREFACE.len()],
            peeked: 0,
            passed_on: 0,
            http2: false,
            last: None,
        })
    }

    /// Switches to HTTP/2, which was negotiated.
    pub fn set_http2(&mut self) {
        self.http2 = true;
        self.chunks = ChunkLines::default();
    }

    /// Whether it begins with the preface of HTTP/2. Stops reading at the first different byte.
    ///
    /// # Errors
    /// If nothing can be read.
    pub async fn is_http2(&mut self) -> io::Result<bool> {
        while self.peeked < PREFACE.len() && PREFACE.starts_with(&self.first[..self.peeked]) {
            if std::future::poll_fn(|cx| self.poll_peek(cx)).await? == 0 {
                return Ok(false);
            }
        }
        if self.first == *PREFACE {
            self.set_http2();
        }
        Ok(self.http2)
    }

    fn poll_peek(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let at = self.peeked;
        let mut rest = self.first;
        let mut buffer = ReadBuf::new(&mut rest[at..]);
        ready!(self.poll_receive(cx, &mut buffer))?;
        let read = buffer.filled().len();
        self.first = rest;
        self.peeked = at + read;
        Poll::Ready(Ok(read))
    }

    /// Reads from the client and reports the bytes to the connection.
    fn poll_receive(
        &mut self,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.last.is_none()
            && !self.http2
            && let Some(failure) = self.connection.head_failure()
        {
            self.fail(failure);
        }
        if self.last.is_some() {
            return self.poll_last_response(cx);
        }
        if self.connection.has_bad_chunks() {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, "bad chunks")));
        }
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.io).poll_read(cx, buf))?;
        let bytes = &buf.filled()[before..];
        let read = bytes.len();
        if !self.http2 && matches!(self.connection.phase(), Phase::Opening | Phase::Idle) {
            self.chunks.begin();
        }
        if self.chunks.is_on() {
            let before = self.chunks.is_chunked();
            if !self.chunks.push(bytes) {
                self.connection.set_bad_chunks();
            }
            if !before && self.chunks.is_chunked() {
                self.connection.watch_chunks();
            }
        }
        if read == 0 || matches!(self.connection.phase(), Phase::Busy | Phase::Ending) {
            return Poll::Ready(Ok(()));
        }
        if !self.http2 {
            self.connection.received(read);
        } else if self.connection.phase() != Phase::Idle {
            self.connection.received(read);
            if self.connection.head_bytes() >= PREFACE.len() {
                self.connection.ready();
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Ends the connection with a response to the failed head.
    fn fail(&mut self, failure: HeadFailure) {
        let bytes = (self.head_failure_response)(failure);
        self.connection.finish();
        self.last = Some(LastResponse { bytes, written: 0, closed: false });
    }

    /// Writes the last response, closes the sending side, and reads what the client still sends: closing at
    /// once would reset the connection and destroy the response.
    fn poll_last_response(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Poll::Ready(result) = self.poll_write_and_drain(cx) {
            if let Err(e) = result {
                log::debug!("cannot answer: {e}");
            }
            self.connection.close();
        }
        Poll::Pending
    }

    fn poll_write_and_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Some(last) = &mut self.last else {
            return Poll::Ready(Ok(()));
        };
        while let Some(rest) = last.bytes.get(last.written..).filter(|rest| !rest.is_empty()) {
            match ready!(Pin::new(&mut self.io).poll_write(cx, rest))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                written => last.written += written,
            }
        }
        if !last.closed {
            ready!(Pin::new(&mut self.io).poll_flush(cx))?;
            ready!(Pin::new(&mut self.io).poll_shutdown(cx))?;
            last.closed = true;
        }
        let mut discarded = [0; 1024];
        loop {
            let mut buffer = ReadBuf::new(&mut discarded);
            ready!(Pin::new(&mut self.io).poll_read(cx, &mut buffer))?;
            if buffer.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
        }
    }

    /// Reports whether a write is blocked: the connection takes no byte. Bytes that only went into the buffer
    /// say nothing about the client.
    fn report_write<R>(&mut self, result: Poll<io::Result<R>>) -> Poll<io::Result<R>> {
        let taken = self.io.taken();
        let progress = std::mem::replace(&mut self.taken, taken) != taken;
        // Pending after pending keeps the first deadline.
        if progress || (result.is_ready() && self.io.waiting().is_empty()) {
            self.connection.set_blocked(false);
        }
        if result.is_pending() {
            self.connection.set_blocked(true);
        }
        result
    }

    fn check_write(&self) -> io::Result<()> {
        if self.connection.write_failed() {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "the client does not read"));
        }
        Ok(())
    }
}

impl<T: IO> AsyncRead for ClientStream<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.passed_on < this.peeked && this.last.is_none() {
            let bytes = &this.first[this.passed_on..this.peeked];
            let bytes = &bytes[..bytes.len().min(buf.remaining())];
            buf.put_slice(bytes);
            this.passed_on += bytes.len();
            return Poll::Ready(Ok(()));
        }
        this.poll_receive(cx, buf)
    }
}

impl<T: IO> AsyncWrite for ClientStream<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.check_write()?;
        let result = Pin::new(&mut self.io).poll_write(cx, buf);
        self.report_write(result)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check_write()?;
        let result = Pin::new(&mut self.io).poll_flush(cx);
        self.report_write(result)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check_write()?;
        let result = Pin::new(&mut self.io).poll_shutdown(cx);
        self.report_write(result)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.check_write()?;
        let result = Pin::new(&mut self.io).poll_write_vectored(cx, bufs);
        self.report_write(result)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}

#[async_trait]
impl<T: IO> Shutdown for ClientStream<T> {
    async fn shutdown(&mut self) {
        if let Err(e) = AsyncWriteExt::shutdown(self).await {
            log::debug!("cannot close a connection: {e}");
        }
    }
}

#[async_trait]
impl<T: IO> Peek for ClientStream<T> {
    /// Only used for the preface of HTTP/2, which was read before.
    async fn try_peek(&mut self, buf: &mut [u8]) -> io::Result<bool> {
        let fits = self.passed_on == 0 && self.peeked == buf.len();
        if fits {
            buf.copy_from_slice(&self.first);
        }
        Ok(fits)
    }
}

impl<T: IO> UniqueID for ClientStream<T> {
    fn id(&self) -> UniqueIDType {
        self.io.get_ref().id()
    }
}

impl<T: IO> Ssl for ClientStream<T> {
    fn get_ssl(&self) -> Option<&TlsRef> {
        self.io.get_ref().get_ssl()
    }

    fn get_ssl_digest(&self) -> Option<Arc<SslDigest>> {
        self.io.get_ref().get_ssl_digest()
    }

    fn selected_alpn_proto(&self) -> Option<ALPN> {
        self.io.get_ref().selected_alpn_proto()
    }
}

impl<T: IO> GetTimingDigest for ClientStream<T> {
    fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
        self.io.get_ref().get_timing_digest()
    }

    fn get_read_pending_time(&self) -> Duration {
        self.io.get_ref().get_read_pending_time()
    }

    fn get_write_pending_time(&self) -> Duration {
        self.io.get_ref().get_write_pending_time()
    }
}

impl<T: IO> GetProxyDigest for ClientStream<T> {
    fn get_proxy_digest(&self) -> Option<Arc<ProxyDigest>> {
        Some(Arc::clone(&self.digest))
    }
}

impl<T: IO> GetSocketDigest for ClientStream<T> {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        self.io.get_ref().get_socket_digest()
    }

    fn set_socket_digest(&mut self, digest: SocketDigest) {
        self.io.get_mut().set_socket_digest(digest);
    }
}
