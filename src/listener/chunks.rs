//! Checks the line endings of chunked request bodies as they arrive.
//!
//! Pingora skips chunk extensions up to CR LF and accepts an LF inside of them. A proxy in front of the
//! gateway that ends lines at LF sees other chunks in the same bytes, which allows request smuggling.
//! RFC 9112 requires CR LF, and nginx enforces it.

use memchr::memchr;

/// The beginning of the header line that announces chunks.
const FIELD: &[u8; 18] = b"transfer-encoding:";

/// Follows the bytes of one request from its first.
#[derive(Default)]
pub struct ChunkLines {
    state: State,
    /// The beginning of the current line of the head, and the line's length.
    begin: [u8; FIELD.len()],
    length: usize,
    /// Whether the head had a non-empty line.
    begun: bool,
    chunked: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    /// Nothing to check: there are no chunks, or the last one has begun.
    #[default]
    Off,
    Head,
    /// The line before a chunk: the size read so far, whether more digits may follow, and whether the last
    /// byte was a CR.
    Line {
        size: u64,
        digits: bool,
        cr: bool,
    },
    /// The remaining bytes of a chunk, including CR LF.
    Data(u64),
}

impl ChunkLines {
    /// Starts a new request.
    pub fn begin(&mut self) {
        *self = Self { state: State::Head, ..Self::default() };
    }

    /// Whether it checks bytes at all.
    pub fn is_on(&self) -> bool {
        self.state != State::Off
    }

    /// Whether the request has a chunked body, once its head is complete.
    pub fn is_chunked(&self) -> bool {
        self.chunked && self.state != State::Head
    }

    /// Checks the next bytes. `false` if the line before a chunk ends without CR.
    pub fn push(&mut self, mut bytes: &[u8]) -> bool {
        while !bytes.is_empty() {
            match self.state {
                State::Off => return true,
                State::Head => bytes = self.head(bytes),
                State::Data(left) => {
                    let taken = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
                    bytes = &bytes[taken..];
                    self.state = match left - taken as u64 {
                        0 => LINE,
                        left => State::Data(left),
                    };
                }
                State::Line { size, digits, cr } => {
                    let end = memchr(b'\n', bytes);
                    let part = &bytes[..end.unwrap_or(bytes.len())];
                    let (size, digits) = read_size(size, digits, part);
                    let cr = part.last().map_or(cr, |last| *last == b'\r');
                    let Some(end) = end else {
                        self.state = State::Line { size, digits, cr };
                        return true;
                    };
                    bytes = &bytes[end + 1..];
                    self.state = match size {
                        0 => State::Off,
                        size => State::Data(size.saturating_add(2)),
                    };
                    if !cr {
                        self.state = State::Off;
                        return false;
                    }
                }
            }
        }
        true
    }

    /// Reads bytes of the head up to the end of a line; returns the rest.
    fn head<'b>(&mut self, bytes: &'b [u8]) -> &'b [u8] {
        let end = memchr(b'\n', bytes);
        let part = &bytes[..end.unwrap_or(bytes.len())];
        let at = self.length.min(FIELD.len());
        let room = part.len().min(FIELD.len() - at);
        self.begin[at..at + room].copy_from_slice(&part[..room]);
        self.length += part.len();
        let Some(end) = end else { return &[] };
        self.chunked |= self.length >= FIELD.len() && self.begin.eq_ignore_ascii_case(FIELD);
        let empty = self.length == 0 || (self.length == 1 && self.begin[0] == b'\r');
        if empty && self.begun {
            self.state = if self.chunked { LINE } else { State::Off };
        }
        self.begun |= !empty;
        self.length = 0;
        &bytes[end + 1..]
    }
}

const LINE: State = State::Line { size: 0, digits: true, cr: false };

fn read_size(mut size: u64, mut digits: bool, bytes: &[u8]) -> (u64, bool) {
    for byte in bytes {
        let digit = char::from(*byte).to_digit(16).filter(|_| digits);
        let Some(digit) = digit else {
            digits = false;
            break;
        };
        // Pingora rejects sizes that are too large.
        size = size.saturating_mul(16).saturating_add(u64::from(digit));
    }
    (size, digits)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn whole(text: &str) -> bool {
        let mut lines = ChunkLines::default();
        lines.begin();
        lines.push(text.as_bytes())
    }

    const HEAD: &str = "POST / HTTP/1.1\r\nHost: g\r\nTransfer-Encoding: chunked\r\n\r\n";

    const FINE: [&str; 6] = [
        "5\r\nhe\nlo\r\n0\r\n\r\n",
        "5;a=b\r\nhello\r\nA ; c\r\n0123\n56\n89\r\n0;x\r\nTrailer: 1\r\n\r\n",
        "2\r\n\n\n\r\n0\r\n\r\n",
        "",
        "5",
        "0\r\n\r\nGET / HTTP/1.1\nHost: g\n\n",
    ];

    const BROKEN: [&str; 5] = [
        "5;\nhello\r\n0\r\n\r\n",
        "5;a\n\r\nhello\r\n0\r\n\r\n",
        "5\r\nhello\r\n5;a=\"\n\"\r\nhello\r\n0\r\n\r\n",
        "5\r\nhello\r\n0;\n\r\n",
        "5\nhello\n0\n\n",
    ];

    #[test]
    fn lines_end_with_both() {
        for body in FINE {
            assert!(whole(&format!("{HEAD}{body}")), "{body:?}");
        }
        for body in BROKEN {
            assert!(!whole(&format!("{HEAD}{body}")), "{body:?}");
        }
    }

    #[test]
    fn only_chunks_are_looked_at() {
        for head in [
            "POST / HTTP/1.1\r\nHost: g\r\nContent-Length: 5\r\n\r\n",
            "POST / HTTP/1.1\r\nX-Transfer-Encoding: chunked\r\n\r\n",
            "POST / HTTP/1.1\r\nX: a\r\n transfer-encoding: chunked\r\n\r\n",
        ] {
            assert!(whole(&format!("{head}5;\nhello")), "{head:?}");
        }
        for head in [
            "\r\n\nPOST / HTTP/1.1\r\nTRANSFER-ENCODING:chunked\r\nX: a\r\n\r\n",
            "POST / HTTP/1.1\ntransfer-encoding: gzip, chunked\n\n",
        ] {
            assert!(!whole(&format!("{head}5;\nhello")), "{head:?}");
        }
    }

    proptest! {
        #[test]
        fn pieces_say_what_the_whole_says(which in 0..11_usize, cuts in prop::collection::vec(0..120_usize, 0..6)) {
            let body = FINE.iter().chain(&BROKEN).nth(which).unwrap();
            let text = format!("{HEAD}{body}");
            let mut cuts: Vec<_> = cuts.into_iter().map(|cut| cut.min(text.len())).collect();
            cuts.extend([0, text.len()]);
            cuts.sort_unstable();
            let mut lines = ChunkLines::default();
            lines.begin();
            let fine = cuts.windows(2).all(|cut| lines.push(&text.as_bytes()[cut[0]..cut[1]]));
            prop_assert_eq!(fine, whole(&text));
        }
    }
}
