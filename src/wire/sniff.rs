//! What a body is, by its first bytes: for answers whose header does not say it, or says it wrongly.

use bytes::{Bytes, BytesMut};

use super::sse::BOM;

/// What a body is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A JSON document, or several.
    Json,
    /// Server-sent events.
    Events,
    /// Neither.
    Other,
}

/// What is known after a piece.
#[derive(Debug, PartialEq, Eq)]
pub enum Sniffed {
    /// So far there is only white space, which all kinds may begin with: it can go out.
    Blank(Bytes),
    /// More must come; the piece is kept.
    More,
    /// It is known; with all bytes that were kept.
    Is(Kind, Bytes),
}

/// Looks at the beginning of a body.
#[derive(Default)]
pub struct Sniffer {
    /// The beginning of a word, or of a byte order mark: a few bytes.
    kept: Bytes,
}

impl Sniffer {
    /// Takes the next piece.
    pub fn push(&mut self, piece: Bytes) -> Sniffed {
        let bytes = match std::mem::take(&mut self.kept) {
            kept if kept.is_empty() => piece,
            kept => {
                let mut all = BytesMut::from(&kept[..]);
                all.extend_from_slice(&piece);
                all.freeze()
            }
        };
        let mut text = &bytes[..];
        loop {
            let rest = text.trim_ascii_start();
            let rest = rest.strip_prefix(BOM).unwrap_or(rest);
            if rest.len() == text.len() {
                break;
            }
            text = rest;
        }
        match kind(text) {
            _ if text.is_empty() => Sniffed::Blank(bytes),
            Some(kind) => Sniffed::Is(kind, bytes),
            None => {
                self.kept = bytes;
                Sniffed::More
            }
        }
    }

    /// No more comes: what was kept.
    pub fn finish(&mut self) -> Bytes {
        std::mem::take(&mut self.kept)
    }
}

/// `None` if more must be known.
fn kind(text: &[u8]) -> Option<Kind> {
    if let [b'{' | b'[', ..] = text {
        return Some(Kind::Json);
    }
    if text.starts_with(b":") {
        return Some(Kind::Events);
    }
    for name in [&b"data"[..], b"event", b"id", b"retry"] {
        match text.strip_prefix(name) {
            Some([b':' | b'\n' | b'\r', ..]) => return Some(Kind::Events),
            Some([]) => return None,
            _ if name.starts_with(text) => return None,
            _ => {}
        }
    }
    if BOM.starts_with(text) { None } else { Some(Kind::Other) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_is_known_by_its_beginning_however_it_is_cut() {
        for (text, kind) in [
            ("{\"a\":1}", Kind::Json),
            (" \n\t[1]", Kind::Json),
            ("\u{feff}{}", Kind::Json),
            ("data: x\n\n", Kind::Events),
            ("\u{feff}\r\ndata:x\n\n", Kind::Events),
            ("event: ping\n\n", Kind::Events),
            (": x\n\n", Kind::Events),
            ("id\n", Kind::Events),
            ("retry:1\n", Kind::Events),
            ("Hello", Kind::Other),
            ("database", Kind::Other),
            ("ideas", Kind::Other),
            ("\u{fffd}", Kind::Other),
            ("RIFF....WAVE", Kind::Other),
        ] {
            for size in 1..=text.len() {
                let mut sniffer = Sniffer::default();
                let mut out = Vec::new();
                let mut found = None;
                for piece in text.as_bytes().chunks(size) {
                    match sniffer.push(Bytes::copy_from_slice(piece)) {
                        _ if found.is_some() => {}
                        Sniffed::Blank(bytes) => out.extend_from_slice(&bytes),
                        Sniffed::More => {}
                        Sniffed::Is(kind, bytes) => {
                            out.extend_from_slice(&bytes);
                            found = Some(kind);
                        }
                    }
                }
                assert_eq!(found, Some(kind), "{text:?} by {size}");
                assert!(text.as_bytes().starts_with(&out), "{text:?} by {size}");
            }
        }
    }

    #[test]
    fn nothing_is_kept_for_ever() {
        let mut sniffer = Sniffer::default();
        for _ in 0..10 {
            let blank = Bytes::from_static(b" \n");
            assert_eq!(sniffer.push(blank.clone()), Sniffed::Blank(blank));
        }
        assert_eq!(sniffer.push(Bytes::from_static(b"dat")), Sniffed::More);
        assert_eq!(sniffer.finish(), "dat");
    }
}
