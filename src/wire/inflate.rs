//! Undoing `gzip` and `deflate`, piece by piece and within bounds.

use bytes::Bytes;
use flate2::{Decompress, FlushDecompress, Status};

/// Bytes that one piece may become: a piece is at most some 64 KiB, and text is seldom compressed to
/// less than a hundredth.
const MOST: usize = 16 << 20;

/// Room that is made at a time.
const ROOM: usize = 32 * 1024;

/// A coding that can be undone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Coding {
    /// `gzip`, `x-gzip`.
    Gzip,
    /// `deflate`: zlib's format, or as some servers read the word without its frame.
    Deflate,
}

/// Undoes a coding.
pub struct Inflater {
    coding: Coding,
    /// `None` before the first byte, and between the parts of a file of several.
    state: Option<Decompress>,
    /// A part has ended.
    whole: bool,
}

/// Why it cannot be undone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// It is not what it is said to be.
    Broken,
    /// It becomes too large.
    TooLarge,
    /// It ended before its end.
    CutOff,
}

impl Trouble {
    /// What is said of it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Broken => "a compressed answer that cannot be decoded",
            Self::TooLarge => "a compressed answer that grows too large",
            Self::CutOff => "a compressed answer that ends too early",
        }
    }
}

impl Inflater {
    /// For one body.
    pub fn new(coding: Coding) -> Self {
        Self { coding, state: None, whole: false }
    }

    /// Takes the next piece; all that can be known of the text by then is returned.
    ///
    /// # Errors
    /// If it is broken or too large.
    pub fn push(&mut self, piece: &[u8]) -> Result<Bytes, Trouble> {
        let mut out = Vec::new();
        let mut rest = piece;
        while let Some(first) = rest.first() {
            if self.state.is_none() && self.whole && (self.coding == Coding::Deflate || *first == 0)
            {
                // What follows the end says nothing.
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
                .map_err(|_| Trouble::Broken)?;
            let read = (state.total_in() - read) as usize;
            rest = &rest[read..];
            if out.len() > MOST {
                return Err(Trouble::TooLarge);
            }
            match status {
                Status::StreamEnd => (self.state, self.whole) = (None, true),
                _ if read == 0 && out.len() == written => break,
                _ => {}
            }
        }
        // What did not fit in the room of the last round.
        while let Some(state) = &mut self.state {
            out.reserve(ROOM);
            let written = out.len();
            let status = state.decompress_vec(&[], &mut out, FlushDecompress::None);
            if out.len() > MOST {
                return Err(Trouble::TooLarge);
            }
            match status {
                Ok(Status::StreamEnd) => (self.state, self.whole) = (None, true),
                _ if out.len() == written => break,
                _ => {}
            }
        }
        Ok(out.into())
    }

    /// No more comes.
    ///
    /// # Errors
    /// If the end was missing.
    pub fn finish(&self) -> Result<(), Trouble> {
        if self.state.is_none() { Ok(()) } else { Err(Trouble::CutOff) }
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

    fn undo(coding: Coding, body: &[u8], size: usize) -> Result<Vec<u8>, Trouble> {
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
        assert_eq!(inflater.finish(), Err(Trouble::CutOff));
        assert_eq!(inflater.push(&out.finish().unwrap()).unwrap(), "");
        assert_eq!(inflater.finish(), Ok(()));
    }

    #[test]
    fn a_bomb_does_not_go_off() {
        let bomb = gzip(&vec![b' '; 64 << 20]);
        assert!(bomb.len() < 80 << 10);
        assert_eq!(undo(Coding::Gzip, &bomb, bomb.len()), Err(Trouble::TooLarge));
    }

    #[test]
    fn what_is_broken_is_an_error() {
        let good = gzip(b"data: x\n\n");
        assert_eq!(undo(Coding::Gzip, b"data: x\n\n", 4), Err(Trouble::Broken));
        assert_eq!(undo(Coding::Gzip, &good[..good.len() - 1], 4), Err(Trouble::CutOff));
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
