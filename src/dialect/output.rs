//! What goes out of a meter.

use bytes::{BufMut, Bytes, BytesMut};

/// Collects what goes out and notices when that is exactly the chunk that came in.
pub struct Output {
    chunk: Bytes,
    /// How much of `chunk` has been passed on unchanged, from its start, with nothing else.
    same: usize,
    other: Option<BytesMut>,
}

impl Output {
    /// Of this chunk.
    pub fn new(chunk: Bytes) -> Self {
        Self { chunk, same: 0, other: None }
    }

    /// Adds bytes.
    pub fn put(&mut self, bytes: Bytes) {
        if let Some(other) = &mut self.other {
            return other.put_slice(&bytes);
        }
        let expected = self.chunk.get(self.same..).map(<[u8]>::as_ptr);
        if expected == Some(bytes.as_ptr()) && bytes.len() <= self.chunk.len() - self.same {
            self.same += bytes.len();
            return;
        }
        let mut all = BytesMut::with_capacity(self.chunk.len() + bytes.len());
        all.put_slice(&self.chunk[..self.same]);
        all.put_slice(&bytes);
        self.other = Some(all);
    }

    /// All of it.
    pub fn finish(self) -> Bytes {
        match self.other {
            Some(other) => other.freeze(),
            None => self.chunk.slice(..self.same),
        }
    }
}
