//! Decoding `gzip` and `deflate`, piece by piece and with a size limit.

use bytes::Bytes;
use flate2::{Decompress, FlushDecompress, Status};

/// The most bytes that one piece may decode to: a piece is at most about 64 KiB, and text is seldom compressed
/// to less than 1 %.
const MOST: usize = 16 << 20;

/// Bytes by which the output buffer grows.
const ROOM: usize = 32 * 1024;

/// A supported coding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Coding {
    /// `gzip`, `x-gzip`.
    Gzip,
    /// `deflate`: the zlib format, or raw deflate, which some servers send.
    Deflate,
}

/// Decodes one body.
pub struct Inflater {
    coding: Coding,
    /// `None` before the first byte, and between the members of a file.
    state: Option<Decompress>,
    /// A member has ended.
    whole: bool,
}

/// Why a body cannot be decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InflateError {
    /// The data is not of this coding.
    Broken,
    /// The output is too large.
    TooLarge,
    /// The data ends too early.
    CutOff,
}

impl InflateError {
    pub fn word(self) -> &'static str {
        match self {
            Self::Broken => "a compressed response that cannot be decoded",
            Self::TooLarge => "a compressed response that grows too large",
            Self::CutOff => "a compressed response that ends too early",
        }
    }
}

impl Inflater {
    pub fn new(coding: Coding) -> Self {
        Self { coding, state: None, whole: false }
    }

    /// Decodes the next piece and returns all output that is available by then.
    ///
    /// # Errors
    /// If the data is invalid or the output too large.
    pub fn push(&mut self, piece: &[u8]) -> Result<Bytes, InflateError> {
        let mut out = Vec::new();
        let mut rest = piece;
        while let Some(first) = rest.first() {
            if self.state.is_none() && self.whole && (self.coding == Coding::Deflate || *first == 0)
            {
                // Padding after the end is ignored.
                break;
            }
            let state = self.state.get_or_insert_with(|| match self.coding {
                Coding::Gzip => Decompress::new_gzip(15),
                Coding::Deflate => Decompress::new(first & 0x0f == 8 && first >> 4 <= 7),
            });
            self.whole = false;
            out.reserve(ROOM);
            let (read, written) = (state.total_in(), out.len());
            let status = state
                .decompress_vec(rest, &mut out, FlushDecompress::None)
                .map_err(|_| InflateError::Broken)?;
            let read = (state.total_in() - read) as usize;
            rest = &rest[read..];
            if out.len() > MOST {
                return Err(InflateError::TooLarge);
            }
            match status {
                Status::StreamEnd => (self.state, self.whole) = (None, true),
                _ if read == 0 && out.len() == written => break,
                _ => {}
            }
        }
        // Output that did not fit into the buffer.
        while let Some(state) = &mut self.state {
            out.reserve(ROOM);
            let written = out.len();
            let status = state.decompress_vec(&[], &mut out, FlushDecompress::None);
            if out.len() > MOST {
                return Err(InflateError::TooLarge);
            }
            match status {
                Ok(Status::StreamEnd) => (self.state, self.whole) = (None, true),
                _ if out.len() == written => break,
                _ => {}
            }
        }
        Ok(out.into())
    }

    /// Ends the body.
    ///
    /// # Errors
    /// If the end is missing.
    pub fn finish(&self) -> Result<(), InflateError> {
        if self.state.is_none() { Ok(()) } else { Err(InflateError::CutOff) }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::{
        Compression,
        write::{DeflateEncoder, GzEncoder, ZlibEncoder},
    };
    use proptest::prelude::*;

    use super::*;

    fn gzip(text: &[u8]) -> Vec<u8> {
        let mut out = GzEncoder::new(Vec::new(), Compression::default());
        out.write_all(text).unwrap();
        out.finish().unwrap()
    }

    fn zlib(text: &[u8]) -> Vec<u8> {
        let mut out = ZlibEncoder::new(Vec::new(), Compression::default());
        out.write_all(text).unwrap();
        out.finish().unwrap()
    }

    fn raw(text: &[u8]) -> Vec<u8> {
        let mut out = DeflateEncoder::new(Vec::new(), Compression::default());
        out.write_all(text).unwrap();
        out.finish().unwrap()
    }

    fn undo(coding: Coding, body: &[u8], size: usize) -> Result<Vec<u8>, InflateError> {
        let mut inflater = Inflater::new(coding);
        let mut out = Vec::new();
        for piece in body.chunks(size) {
            out.extend_from_slice(&inflater.push(piece)?);
        }
        inflater.finish()?;
        Ok(out)
    }

    #[test]
    fn an_event_is_there_as_soon_as_it_is_flushed() {
        let mut out = GzEncoder::new(Vec::new(), Compression::default());
        let mut inflater = Inflater::new(Coding::Gzip);
        for event in ["data: a\n\n", "data: b\n\n", "data: [DONE]\n\n"] {
            out.write_all(event.as_bytes()).unwrap();
            out.flush().unwrap();
            assert_eq!(inflater.push(&std::mem::take(out.get_mut())).unwrap(), event);
        }
        assert_eq!(inflater.finish(), Err(InflateError::CutOff));
        assert_eq!(inflater.push(&out.finish().unwrap()).unwrap(), "");
        assert_eq!(inflater.finish(), Ok(()));
    }

    #[test]
    fn a_bomb_does_not_go_off() {
        let bomb = gzip(&vec![b' '; 64 << 20]);
        assert!(bomb.len() < 80 << 10);
        assert_eq!(undo(Coding::Gzip, &bomb, bomb.len()), Err(InflateError::TooLarge));
    }

    #[test]
    fn what_is_broken_is_an_error() {
        let good = gzip(b"data: x\n\n");
        assert_eq!(undo(Coding::Gzip, b"data: x\n\n", 4), Err(InflateError::Broken));
        assert_eq!(undo(Coding::Gzip, &good[..good.len() - 1], 4), Err(InflateError::CutOff));
        // Several parts, and padding, are one text.
        let several = [good.clone(), good, vec![0; 8]].concat();
        assert_eq!(undo(Coding::Gzip, &several, 3).unwrap(), b"data: x\n\ndata: x\n\n");
    }

    proptest! {
        #[test]
        fn any_split_gives_the_text(
            text in proptest::collection::vec(any::<u8>(), 0..2000),
            repeat in 1usize..200,
            size in 1usize..5000,
        ) {
            let text = text.repeat(repeat);
            prop_assert_eq!(&undo(Coding::Gzip, &gzip(&text), size).unwrap(), &text);
            prop_assert_eq!(&undo(Coding::Deflate, &zlib(&text), size).unwrap(), &text);
            prop_assert_eq!(&undo(Coding::Deflate, &raw(&text), size).unwrap(), &text);
        }
    }
}
