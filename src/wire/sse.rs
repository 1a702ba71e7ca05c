//! Server-sent events: cutting a byte stream into events at any split, and finding the data in
//! one. Line ends may be `\n`, `\r\n` or `\r`; no byte is lost or invented.

use std::{borrow::Cow, ops::Range};

use bytes::{Bytes, BytesMut};

/// An event larger than this is passed on in pieces, unchanged.
pub const MAX_EVENT: usize = 4 << 20;

/// What may stand at the start of a text in UTF-8.
pub const BOM: &[u8] = b"\xef\xbb\xbf";

/// A piece of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// One whole event with the blank line that ends it.
    Event(Bytes),
    /// Part of an event that is too large; more of it follows.
    Raw(Bytes),
    /// The last part of such an event.
    RawEnd(Bytes),
    /// The beginning of an event that never ended.
    Unfinished(Bytes),
}

/// Cuts a stream into events. It holds at most one unfinished event.
#[derive(Default)]
pub struct Splitter {
    carry: BytesMut,
    line: Line,
    oversized: bool,
    by_line: bool,
}

/// Where the last byte left us.
#[derive(Clone, Copy, Default, PartialEq)]
enum Line {
    /// At the start of a line that is not the first of its event, or of the first.
    #[default]
    Start,
    /// Inside a line.
    Inside,
    /// After a `\r` that ended a line with text: a `\n` may belong to it.
    AfterCr,
    /// After a `\r` on an empty line: the event is over, but a `\n` may belong to it.
    EndCr,
}

impl Splitter {
    /// One for documents that stand on lines of their own (NDJSON): each line is an event.
    pub fn by_line() -> Self {
        Self { by_line: true, ..Self::default() }
    }

    /// Takes the next bytes and hands every piece that they complete to `out`, in order.
    /// Pieces that lie within `chunk` share its memory.
    pub fn push(&mut self, chunk: &Bytes, mut out: impl FnMut(Piece)) {
        let mut start = 0;
        let mut pos = 0;
        while let Some(end) = self.event_end(chunk, &mut pos) {
            self.emit(chunk, start..end, &mut out);
            start = end;
        }
        if start < chunk.len() {
            self.keep(chunk, start, &mut out);
        }
    }

    /// What is left when the stream ends without a last blank line.
    pub fn finish(&mut self) -> Option<Piece> {
        let over = self.line == Line::EndCr;
        self.line = Line::Start;
        let rest = self.carry.split().freeze();
        match (rest.is_empty(), over && !self.oversized) {
            (true, _) => None,
            (false, true) => Some(Piece::Event(rest)),
            (false, false) => Some(Piece::Unfinished(rest)),
        }
    }

    /// Whether the next byte begins an event.
    pub fn is_between(&self) -> bool {
        self.carry.is_empty() && self.line == Line::Start && !self.oversized
    }

    /// What has come of the event that is not finished.
    pub fn unfinished(&self) -> &[u8] {
        &self.carry
    }

    fn emit(&mut self, chunk: &Bytes, range: Range<usize>, out: &mut impl FnMut(Piece)) {
        let bytes = if self.carry.is_empty() {
            chunk.slice(range)
        } else {
            self.carry.extend_from_slice(&chunk[range]);
            self.carry.split().freeze()
        };
        // The blank line of a large event may have ended with the piece before.
        if bytes.is_empty() && !self.oversized {
            return;
        }
        let whole = !std::mem::take(&mut self.oversized);
        out(if whole { Piece::Event(bytes) } else { Piece::RawEnd(bytes) });
    }

    fn keep(&mut self, chunk: &Bytes, start: usize, out: &mut impl FnMut(Piece)) {
        if !self.oversized && self.carry.len() + chunk.len() - start <= MAX_EVENT {
            self.carry.extend_from_slice(&chunk[start..]);
            return;
        }
        self.oversized = true;
        if !self.carry.is_empty() {
            out(Piece::Raw(self.carry.split().freeze()));
        }
        out(Piece::Raw(chunk.slice(start..)));
    }

    /// The offset behind the next end of an event, from `pos` on.
    fn event_end(&mut self, chunk: &[u8], pos: &mut usize) -> Option<usize> {
        if self.by_line {
            let end = memchr::memchr(b'\n', &chunk[*pos..]).map(|n| *pos + n + 1);
            *pos = end.unwrap_or(chunk.len());
            return end;
        }
        while *pos < chunk.len() {
            let byte = chunk[*pos];
            match (self.line, byte) {
                (Line::EndCr, _) => {
                    self.line = Line::Start;
                    if byte == b'\n' {
                        *pos += 1;
                    }
                    return Some(*pos);
                }
                (Line::AfterCr, b'\n') => {
                    self.line = Line::Start;
                    *pos += 1;
                }
                (Line::Start, b'\n') => {
                    *pos += 1;
                    return Some(*pos);
                }
                (Line::Start | Line::AfterCr, b'\r') => {
                    self.line = Line::EndCr;
                    *pos += 1;
                }
                (Line::Start | Line::AfterCr | Line::Inside, _) => {
                    self.line = Line::Inside;
                    match memchr::memchr2(b'\n', b'\r', &chunk[*pos..]) {
                        None => *pos = chunk.len(),
                        Some(n) => {
                            *pos += n + 1;
                            let cr = chunk[*pos - 1] == b'\r';
                            self.line = if cr { Line::AfterCr } else { Line::Start };
                        }
                    }
                }
            }
        }
        None
    }
}

/// The data of an event.
#[derive(Debug, PartialEq, Eq)]
pub enum Data<'a> {
    /// No `data` field: a comment, or another field.
    None,
    /// One `data` line: where its value lies in the event.
    One(Range<usize>),
    /// Several, joined by line feeds as the standard says.
    Many(Cow<'a, [u8]>),
}

/// The value of the field `event`: the type of an event that has one.
pub fn kind(event: &[u8]) -> Option<&[u8]> {
    lines(event).filter_map(|line| field(event, line, b"event")).last().map(|value| &event[value])
}

/// Finds the data of an event.
pub fn data(event: &[u8]) -> Data<'_> {
    let mut first: Option<Range<usize>> = None;
    let mut joined: Option<Vec<u8>> = None;
    for line in lines(event) {
        let Some(value) = field(event, line, b"data") else {
            continue;
        };
        match (&first, &mut joined) {
            (None, _) => first = Some(value),
            (Some(f), None) => {
                let mut all = event[f.clone()].to_vec();
                all.push(b'\n');
                all.extend_from_slice(&event[value]);
                joined = Some(all);
            }
            (Some(_), Some(all)) => {
                all.push(b'\n');
                all.extend_from_slice(&event[value]);
            }
        }
    }
    match (first, joined) {
        (_, Some(all)) => Data::Many(Cow::Owned(all)),
        (Some(range), None) => Data::One(range),
        (None, None) => Data::None,
    }
}

/// The value of a line, if it is of the field `name`.
pub fn field(event: &[u8], line: Range<usize>, name: &[u8]) -> Option<Range<usize>> {
    let text = &event[line.clone()];
    let rest = text.strip_prefix(name)?;
    match rest.first() {
        None => Some(line.end..line.end),
        Some(b':') => {
            let skip = name.len() + 1 + usize::from(rest.get(1) == Some(&b' '));
            Some(line.start + skip..line.end)
        }
        Some(_) => None,
    }
}

/// The lines of an event, without their ends. A byte order mark at the start is no part of a line.
pub fn lines(event: &[u8]) -> impl Iterator<Item = Range<usize>> + '_ {
    let mut pos = if event.starts_with(BOM) { BOM.len() } else { 0 };
    std::iter::from_fn(move || {
        if pos >= event.len() {
            return None;
        }
        let end = memchr::memchr2(b'\n', b'\r', &event[pos..]).map_or(event.len(), |n| pos + n);
        let line = pos..end;
        pos = match event.get(end..) {
            Some([b'\r', b'\n', ..]) => end + 2,
            _ => end + 1,
        };
        Some(line)
    })
}

/// A piece of a JSON document as a piece of an event; `first` and `last`: the event begins or ends
/// there. In JSON a line break is a space.
pub fn event_part(piece: &[u8], first: bool, last: bool) -> Bytes {
    let mut out = Vec::with_capacity(piece.len() + 8);
    if first {
        out.extend_from_slice(b"data: ");
    }
    out.extend(piece.iter().map(|b| if matches!(b, b'\n' | b'\r') { b' ' } else { *b }));
    if last {
        out.extend_from_slice(b"\n\n");
    }
    out.into()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_document_becomes_one_event() {
        let mut all = Vec::new();
        for (piece, first, last) in [("{\n ", true, false), ("\"a\":\r\n1}", false, true)] {
            all.extend(event_part(piece.as_bytes(), first, last));
        }
        assert_eq!(all, b"data: {  \"a\":  1}\n\n");
    }

    fn split(parts: &[&[u8]]) -> Vec<Piece> {
        let mut splitter = Splitter::default();
        let mut found = Vec::new();
        for part in parts {
            splitter.push(&Bytes::copy_from_slice(part), |p| found.push(p));
        }
        found.extend(splitter.finish());
        found
    }

    fn event(text: &str) -> Piece {
        Piece::Event(Bytes::copy_from_slice(text.as_bytes()))
    }

    #[test]
    fn cuts_at_blank_lines_of_every_kind() {
        assert_eq!(split(&[b"a\n\nb\n\n"]), [event("a\n\n"), event("b\n\n")]);
        assert_eq!(split(&[b"a\r\n\r\nb\r\n\r\n"]), [event("a\r\n\r\n"), event("b\r\n\r\n")]);
        assert_eq!(split(&[b"a\r\rb\r\r"]), [event("a\r\r"), event("b\r\r")]);
        assert_eq!(split(&[b"a\r\n\n"]), [event("a\r\n\n")]);
        assert_eq!(split(&[b": ping\n\n"]), [event(": ping\n\n")]);
    }

    #[test]
    fn keeps_what_never_ended() {
        let rest = Piece::Unfinished(Bytes::from_static(b"b"));
        assert_eq!(split(&[b"a\n\nb"]), [event("a\n\n"), rest]);
    }

    #[test]
    fn passes_on_events_that_are_too_large() {
        let mut splitter = Splitter::default();
        let mut got = Vec::new();
        let big = Bytes::from(vec![b'x'; MAX_EVENT + 1]);
        splitter.push(&big, |p| got.push(p));
        assert_eq!(got, [Piece::Raw(big)]);
        splitter.push(&Bytes::from_static(b"y\n\nz\n\n"), |p| got.push(p));
        assert_eq!(got[1..], [Piece::RawEnd(Bytes::from_static(b"y\n\n")), event("z\n\n")]);
    }

    #[test]
    fn a_large_event_may_end_with_a_lone_cr_at_the_end_of_a_piece() {
        let mut splitter = Splitter::default();
        let mut got = Vec::new();
        let big = Bytes::from([&vec![b'x'; MAX_EVENT + 1][..], b"\r\r"].concat());
        splitter.push(&big, |p| got.push(p));
        splitter.push(&Bytes::from_static(b"y\n\n"), |p| got.push(p));
        assert_eq!(got, [Piece::Raw(big.clone()), Piece::RawEnd(Bytes::new()), event("y\n\n")]);
        got.clear();
        splitter.push(&big, |p| got.push(p));
        splitter.push(&Bytes::from_static(b"\ny\n\n"), |p| got.push(p));
        assert_eq!(got[1..], [Piece::RawEnd(Bytes::from_static(b"\n")), event("y\n\n")]);
    }

    #[test]
    fn lines_can_be_events() {
        let mut splitter = Splitter::by_line();
        let mut got = Vec::new();
        for part in ["{\"a\":1}\n{\"b\"", ":2}\r\n\n{"] {
            splitter.push(&Bytes::from(part), |p| got.push(p));
        }
        got.extend(splitter.finish());
        let rest = Piece::Unfinished(Bytes::from_static(b"{"));
        assert_eq!(got, [event("{\"a\":1}\n"), event("{\"b\":2}\r\n"), event("\n"), rest]);
    }

    #[test]
    fn finds_data() {
        assert_eq!(data(b"data: x\n\n"), Data::One(6..7));
        assert_eq!(data(b"event: e\r\ndata:x\r\n\r\n"), Data::One(15..16));
        assert_eq!(data(b": comment\n\n"), Data::None);
        assert_eq!(data(b"database: x\n\n"), Data::None);
        assert_eq!(data(b"data: a\ndata: b\r\n\n"), Data::Many(Cow::Owned(b"a\nb".to_vec())));
        assert_eq!(data(b"data\n\n"), Data::One(4..4));
        assert_eq!(data(b"\xef\xbb\xbfdata: x\n\n"), Data::One(9..10));
        assert_eq!(kind(b"data: x\nevent: error\n\n"), Some(&b"error"[..]));
        assert_eq!(kind(b"data: event: x\n\n"), None);
    }

    proptest! {
        #[test]
        fn any_split_gives_the_same_events(
            text in "(data: [a-c]{0,4}(\n|\r\n|\r)|: c(\n|\r\n|\r)|(\n|\r\n|\r)){0,12}",
            cuts in proptest::collection::vec(0usize..80, 0..6),
        ) {
            let whole = text.as_bytes();
            let mut cuts: Vec<usize> = cuts.into_iter().map(|c| c.min(whole.len())).collect();
            cuts.sort_unstable();
            let mut parts = Vec::new();
            let mut at = 0;
            for cut in cuts {
                parts.push(&whole[at..cut]);
                at = cut;
            }
            parts.push(&whole[at..]);
            let pieces = split(&parts);
            prop_assert_eq!(&pieces, &split(&[whole]));
            let joined: Vec<u8> = pieces
                .iter()
                .flat_map(|p| match p {
                    Piece::Event(b) | Piece::Raw(b) | Piece::RawEnd(b) | Piece::Unfinished(b) => b.to_vec(),
                })
                .collect();
            prop_assert_eq!(joined, whole);
        }
    }
}
