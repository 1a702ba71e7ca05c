//! A buffer for what is written to a connection, which takes no memory while nothing waits in it.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes that are collected for one call of the system, or one TLS record.
const MOST: usize = 4096;

/// Memory for the first bytes: enough for a head with a short answer, or some events.
const FIRST: usize = 2048;

/// Collects small writes until a flush. There is one for each connection, and an open stream or an idle
/// connection has nothing to collect.
pub struct Writer<T> {
    io: T,
    waiting: Vec<u8>,
    /// How much of it has been written.
    written: usize,
    /// All bytes that the connection has taken.
    taken: u64,
}

impl<T> Writer<T> {
    pub fn new(io: T) -> Self {
        Self { io, waiting: Vec::new(), written: 0, taken: 0 }
    }

    pub fn get_ref(&self) -> &T {
        &self.io
    }

    pub fn get_mut(&mut self) -> &mut T {
        &mut self.io
    }

    /// All bytes that the connection has taken so far.
    pub fn taken(&self) -> u64 {
        self.taken
    }

    /// Bytes that wait for a flush.
    pub fn waiting(&self) -> &[u8] {
        &self.waiting[self.written..]
    }
}

impl<T: AsyncWrite + Unpin> Writer<T> {
    /// Makes room for this many bytes; `false` if they are so many that they are written directly.
    fn poll_room(&mut self, cx: &mut Context<'_>, bytes: usize) -> Poll<io::Result<bool>> {
        if self.waiting.len() + bytes > MOST {
            ready!(self.poll_write_waiting(cx))?;
        }
        if bytes >= MOST {
            return Poll::Ready(Ok(false));
        }
        if self.waiting.capacity() == 0 {
            self.waiting.reserve_exact(bytes.max(FIRST));
        }
        Poll::Ready(Ok(true))
    }

    fn count(&mut self, result: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(n)) = &result {
            self.taken += *n as u64;
        }
        result
    }

    fn poll_write_waiting(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.written < self.waiting.len() {
            let rest = &self.waiting[self.written..];
            match ready!(Pin::new(&mut self.io).poll_write(cx, rest))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                n => {
                    self.written += n;
                    self.taken += n as u64;
                }
            }
        }
        (self.waiting, self.written) = (Vec::new(), 0);
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Writer<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Writer<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        if !ready!(self.poll_room(cx, buf.len()))? {
            let result = Pin::new(&mut self.io).poll_write(cx, buf);
            return self.count(result);
        }
        self.waiting.extend_from_slice(buf);
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let all = bufs.iter().map(|buf| buf.len()).sum();
        if !ready!(self.poll_room(cx, all))? {
            let result = Pin::new(&mut self.io).poll_write_vectored(cx, bufs);
            return self.count(result);
        }
        bufs.iter().for_each(|buf| self.waiting.extend_from_slice(buf));
        Poll::Ready(Ok(all))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_write_waiting(cx))?;
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_write_waiting(cx))?;
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    proptest! {
        #[test]
        fn what_is_written_arrives_in_order(
            lengths in prop::collection::vec(0..40_000_usize, 1..12),
            pipe in 1..50_000_usize,
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            runtime.block_on(async {
                let (near, mut far) = duplex(pipe);
                let mut writer = Writer::new(near);
                let expected: Vec<u8> =
                    lengths.iter().enumerate().flat_map(|(i, n)| vec![i as u8; *n]).collect();
                let write = async {
                    for (i, length) in lengths.iter().enumerate() {
                        let part = vec![i as u8; *length];
                        let (one, two) = part.split_at(length / 2);
                        match i % 3 {
                            0 => writer.write_all(&part).await.unwrap(),
                            1 => {
                                let parts = [io::IoSlice::new(one), io::IoSlice::new(two)];
                                let n = writer.write_vectored(&parts).await.unwrap();
                                writer.write_all(&part[n..]).await.unwrap();
                            }
                            _ => {
                                writer.write_all(&part).await.unwrap();
                                writer.flush().await.unwrap();
                                assert!(writer.waiting().is_empty());
                                assert_eq!(writer.waiting.capacity(), 0);
                            }
                        }
                    }
                    writer.shutdown().await.unwrap();
                };
                let mut got = Vec::new();
                let (_, read) = tokio::join!(write, far.read_to_end(&mut got));
                read.unwrap();
                assert_eq!(got, expected);
            });
        }
    }

    #[tokio::test]
    async fn small_writes_wait_for_a_flush() {
        let (near, mut far) = duplex(1024);
        let mut writer = Writer::new(near);
        writer.write_all(b"head").await.unwrap();
        writer.write_all(b"body").await.unwrap();
        assert_eq!(writer.waiting(), b"headbody");
        writer.flush().await.unwrap();
        let mut got = [0; 8];
        far.read_exact(&mut got).await.unwrap();
        assert_eq!(&got, b"headbody");
    }
}
