//! A strict JSON scanner that builds no tree: it iterates over the members of an object and returns byte
//! ranges.
//!
//! It checks and reads a body of megabytes in one pass, and lets a member be cut out of a document without
//! touching any other byte.

use std::{fmt, ops::Range};

/// Objects and arrays nested deeper than this are rejected (`serde_json` stops at 128, Python's
/// parser near 1,000).
pub const MAX_DEPTH: usize = 512;

/// Where a document is not JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SyntaxError {
    /// Byte offset into the document.
    pub at: usize,
    /// What was expected there.
    pub what: &'static str,
}

impl fmt::Display for SyntaxError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at byte {}", self.what, self.at)
    }
}

/// One member of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// The key between its quotes, with its escapes.
    pub key: Range<usize>,
    pub value: Range<usize>,
    /// Whether there are escapes in the key.
    escaped: bool,
}

impl Member {
    /// From the opening quote of the key to the end of the value.
    pub fn span(&self) -> Range<usize> {
        self.key.start - 1..self.value.end
    }

    /// Whether the key is `name`, with or without escapes.
    pub fn is(&self, doc: &[u8], name: &str) -> bool {
        let key = &doc[self.key.clone()];
        key == name.as_bytes() || (self.escaped && unescape(key).is_some_and(|k| k == name))
    }
}

/// Decodes the inside of a JSON string. `None` if it is not valid.
pub fn unescape(inner: &[u8]) -> Option<String> {
    let mut quoted = Vec::with_capacity(inner.len() + 2);
    quoted.push(b'"');
    quoted.extend_from_slice(inner);
    quoted.push(b'"');
    serde_json::from_slice(&quoted).ok()
}

/// Iterates over the members of an object in their order and checks each value.
pub struct Members<'a> {
    scan: Scan<'a>,
    state: MembersState,
}

#[derive(PartialEq)]
enum MembersState {
    First,
    Next,
    Over,
}

/// The members of the object that starts at `at` (leading white space allowed).
pub fn members(doc: &[u8], at: usize) -> Members<'_> {
    Members { scan: Scan { doc, pos: at }, state: MembersState::First }
}

impl Members<'_> {
    /// The offset after the last byte read: after the closing brace once the iteration is over.
    pub fn position(&self) -> usize {
        self.scan.pos
    }

    fn step(&mut self) -> Result<Option<Member>, SyntaxError> {
        let s = &mut self.scan;
        s.space();
        match self.state {
            MembersState::Over => return Ok(None),
            MembersState::First => {
                s.expect(b'{', "expected an object")?;
                s.space();
                if s.peek() == Some(b'}') {
                    s.pos += 1;
                    self.state = MembersState::Over;
                    return Ok(None);
                }
                self.state = MembersState::Next;
            }
            MembersState::Next => match s.peek() {
                Some(b'}') => {
                    s.pos += 1;
                    self.state = MembersState::Over;
                    return Ok(None);
                }
                Some(b',') => {
                    s.pos += 1;
                    s.space();
                }
                _ => return Err(s.error("expected `,` or `}`")),
            },
        }
        let (key, escaped) = s.string()?;
        s.space();
        s.expect(b':', "expected `:`")?;
        s.space();
        let start = s.pos;
        s.value()?;
        Ok(Some(Member { key, value: start..s.pos, escaped }))
    }
}

impl Iterator for Members<'_> {
    type Item = Result<Member, SyntaxError>;

    fn next(&mut self) -> Option<Self::Item> {
        let step = self.step();
        if step.is_err() {
            self.state = MembersState::Over;
        }
        step.transpose()
    }
}

/// The first member of the object at the start of `doc` whose key is `name`; `None` if there is
/// none or the document is invalid before it.
pub fn find(doc: &[u8], name: &str) -> Option<Member> {
    members(doc, 0).map_while(Result::ok).find(|m| m.is(doc, name))
}

/// The range of the value at `at`, if nothing but further members of an outermost object follows it up to
/// the end of `doc`: then its key is one of that object's, if the document is valid.
pub fn value_near_end(doc: &[u8], at: usize) -> Option<Range<usize>> {
    let mut scan = Scan { doc, pos: at };
    scan.space();
    let start = scan.pos;
    scan.value().ok()?;
    let value = start..scan.pos;
    let mut rest = Members { scan, state: MembersState::Next };
    for member in &mut rest {
        member.ok()?;
    }
    doc[rest.position()..].trim_ascii_start().is_empty().then_some(value)
}

/// Encodes a JSON string.
pub fn quoted(text: &str) -> Vec<u8> {
    serde_json::to_vec(text).unwrap_or_else(|_| b"\"\"".to_vec())
}

/// The ranges of the elements of the array at the start of `doc`, up to the first invalid one.
pub fn elements(doc: &[u8]) -> impl Iterator<Item = Range<usize>> + '_ {
    let mut scan = Scan { doc, pos: 0 };
    scan.space();
    let mut open = scan.expect(b'[', "").is_ok();
    std::iter::from_fn(move || {
        scan.space();
        if !open || scan.peek() == Some(b']') {
            return None;
        }
        let start = scan.pos;
        open = scan.value().is_ok();
        let element = start..scan.pos;
        scan.space();
        open = open && scan.expect(b',', "").is_ok();
        Some(element)
    })
}

/// The ranges to delete so that every member chosen by `remove` disappears together with exactly one comma
/// and the white space around it: the rest is the document as it would have been written without those
/// members.
///
/// # Errors
/// If the object is invalid.
pub fn cuts(
    doc: &[u8],
    remove: impl Fn(&Member) -> bool,
) -> Result<Vec<Range<usize>>, SyntaxError> {
    let mut cuts: Vec<Range<usize>> = Vec::new();
    let mut last_kept_end = None;
    let mut open: Option<Range<usize>> = None; // a run of removed members
    for member in members(doc, 0) {
        let member = member?;
        let span = member.span();
        if remove(&member) {
            open = Some(match open {
                Some(run) => run.start..span.end,
                None => last_kept_end.unwrap_or(span.start)..span.end,
            });
            continue;
        }
        if let Some(run) = open.take() {
            // A run at the beginning takes the comma after it, any other run the comma before it.
            let end = if last_kept_end.is_none() { span.start } else { run.end };
            cuts.push(run.start..end);
        }
        last_kept_end = Some(span.end);
    }
    cuts.extend(open);
    Ok(cuts)
}

struct Scan<'a> {
    doc: &'a [u8],
    pos: usize,
}

impl Scan<'_> {
    fn peek(&self) -> Option<u8> {
        self.doc.get(self.pos).copied()
    }

    fn error(&self, what: &'static str) -> SyntaxError {
        SyntaxError { at: self.pos, what }
    }

    fn space(&mut self) {
        while let Some(b' ' | b'\n' | b'\r' | b'\t') = self.peek() {
            self.pos += 1;
        }
    }

    fn expect(&mut self, byte: u8, what: &'static str) -> Result<(), SyntaxError> {
        if self.peek() != Some(byte) {
            return Err(self.error(what));
        }
        self.pos += 1;
        Ok(())
    }

    /// A string: the range between its quotes, and whether there are escapes in it.
    fn string(&mut self) -> Result<(Range<usize>, bool), SyntaxError> {
        self.expect(b'"', "expected a string")?;
        let start = self.pos;
        let mut escaped = false;
        loop {
            self.plain_text()?;
            if self.doc[self.pos] == b'"' {
                self.pos += 1;
                return Ok((start..self.pos - 1, escaped));
            }
            escaped = true;
            self.escape()?;
        }
    }

    /// Goes on to the next quote or backslash of a string.
    fn plain_text(&mut self) -> Result<(), SyntaxError> {
        let rest = &self.doc[self.pos..];
        let n = plain_bytes(rest);
        self.pos += n;
        match rest.get(n) {
            Some(b'"' | b'\\') => Ok(()),
            Some(_) => Err(self.error("control character in a string")),
            None => Err(self.error("unterminated string")),
        }
    }

    fn escape(&mut self) -> Result<(), SyntaxError> {
        match self.doc.get(self.pos + 1) {
            Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => self.pos += 2,
            Some(b'u') => {
                let hex = self.doc.get(self.pos + 2..self.pos + 6);
                if !hex.is_some_and(|h| h.iter().all(u8::is_ascii_hexdigit)) {
                    return Err(self.error("bad unicode escape"));
                }
                self.pos += 6;
            }
            _ => return Err(self.error("bad escape")),
        }
        Ok(())
    }

    fn digits(&mut self) -> Result<(), SyntaxError> {
        let start = self.pos;
        while self.peek().is_some_and(|b| b.is_ascii_digit()) {
            self.pos += 1;
        }
        if self.pos == start { Err(self.error("expected a digit")) } else { Ok(()) }
    }

    fn number(&mut self) -> Result<(), SyntaxError> {
        if self.peek() == Some(b'-') {
            self.pos += 1;
        }
        if self.peek() == Some(b'0') {
            self.pos += 1;
        } else {
            self.digits()?;
        }
        if self.peek() == Some(b'.') {
            self.pos += 1;
            self.digits()?;
        }
        if let Some(b'e' | b'E') = self.peek() {
            self.pos += 1;
            if let Some(b'+' | b'-') = self.peek() {
                self.pos += 1;
            }
            self.digits()?;
        }
        Ok(())
    }

    fn literal(&mut self, word: &'static [u8]) -> Result<(), SyntaxError> {
        if !self.doc[self.pos..].starts_with(word) {
            return Err(self.error("expected a value"));
        }
        self.pos += word.len();
        Ok(())
    }

    fn scalar(&mut self) -> Result<(), SyntaxError> {
        match self.peek() {
            Some(b'"') => self.string().map(|_| ()),
            Some(b't') => self.literal(b"true"),
            Some(b'f') => self.literal(b"false"),
            Some(b'n') => self.literal(b"null"),
            Some(b'-' | b'0'..=b'9') => self.number(),
            _ => Err(self.error("expected a value")),
        }
    }

    /// Skips a value of any kind.
    fn value(&mut self) -> Result<(), SyntaxError> {
        self.space();
        match self.peek() {
            Some(b'{' | b'[') => self.container(),
            _ => self.scalar(),
        }
    }

    /// Skips an object or a list, without recursion.
    fn container(&mut self) -> Result<(), SyntaxError> {
        let mut nest = Nest::default();
        loop {
            self.space();
            match self.peek() {
                Some(open @ (b'{' | b'[')) => {
                    self.pos += 1;
                    self.space();
                    let close = if open == b'{' { b'}' } else { b']' };
                    if self.peek() != Some(close) {
                        nest.push(open == b'{').ok_or(self.error("nested too deeply"))?;
                        if open == b'{' {
                            self.key()?;
                        }
                        continue;
                    }
                    self.pos += 1;
                }
                _ => self.scalar()?,
            }
            // After a value: close the containers that end here.
            loop {
                let Some(in_object) = nest.top() else {
                    return Ok(());
                };
                self.space();
                match (self.peek(), in_object) {
                    (Some(b','), true) => {
                        self.pos += 1;
                        self.space();
                        self.key()?;
                        break;
                    }
                    (Some(b','), false) => {
                        self.pos += 1;
                        break;
                    }
                    (Some(b'}'), true) | (Some(b']'), false) => {
                        self.pos += 1;
                        nest.pop();
                    }
                    (_, true) => return Err(self.error("expected `,` or `}`")),
                    (_, false) => return Err(self.error("expected `,` or `]`")),
                }
            }
        }
    }

    fn key(&mut self) -> Result<(), SyntaxError> {
        self.string()?;
        self.space();
        self.expect(b':', "expected `:`")
    }
}

const EACH: u64 = u64::MAX / 255;
const HIGHEST: u64 = EACH * 0x80;

/// How many bytes come before the first quote, backslash or control character. Eight bytes at a time: most
/// strings are short words, for which a search by vectors takes longer than it saves.
fn plain_bytes(bytes: &[u8]) -> usize {
    const SHORT: usize = 32;
    let (words, _) = bytes[..bytes.len().min(SHORT)].as_chunks();
    for (i, word) in words.iter().enumerate() {
        let found = special(u64::from_le_bytes(*word));
        if found != 0 {
            return 8 * i + found.trailing_zeros() as usize / 8;
        }
    }
    let rest = &bytes[8 * words.len()..];
    if bytes.len() < SHORT {
        let special = |byte: &u8| matches!(byte, b'"' | b'\\' | 0..0x20);
        return 8 * words.len() + rest.iter().position(special).unwrap_or(rest.len());
    }
    let end = memchr::memchr2(b'"', b'\\', rest).unwrap_or(rest.len());
    let control =
        if has_control(&rest[..end]) { rest.iter().position(|b| *b < 0x20) } else { None };
    8 * words.len() + control.unwrap_or(end)
}

/// The highest bit of the first byte that is a quote, a backslash or a control character is set, and no bit
/// of the bytes before it.
fn special(word: u64) -> u64 {
    let zero = |word: u64| word.wrapping_sub(EACH) & !word;
    let quote = zero(word ^ (EACH * u64::from(b'"')));
    let backslash = zero(word ^ (EACH * u64::from(b'\\')));
    let control = word.wrapping_sub(EACH * 0x20) & !word;
    (quote | backslash | control) & HIGHEST
}

/// Whether any byte is below 0x20. Eight bytes at a time, because most of a body passes through here, and a
/// compiler that optimizes for size would test single bytes.
fn has_control(bytes: &[u8]) -> bool {
    let (words, rest) = bytes.as_chunks();
    // The highest bit of a byte is set in the result if the byte is below 0x20, or if one below it
    // in the word is.
    let low = |word: u64| word.wrapping_sub(EACH * 0x20) & !word & HIGHEST;
    let bad = words.iter().fold(0, |bad, word| bad | low(u64::from_le_bytes(*word)));
    bad != 0 || rest.iter().any(|b| *b < 0x20)
}

/// A stack of bits without allocation: whether each level is an object.
#[derive(Default)]
struct Nest {
    bits: [u64; MAX_DEPTH / 64],
    depth: usize,
}

impl Nest {
    fn push(&mut self, object: bool) -> Option<()> {
        let word = self.bits.get_mut(self.depth / 64)?;
        let bit = 1 << (self.depth % 64);
        *word = if object { *word | bit } else { *word & !bit };
        self.depth += 1;
        Some(())
    }

    fn top(&self) -> Option<bool> {
        let i = self.depth.checked_sub(1)?;
        Some(self.bits[i / 64] >> (i % 64) & 1 == 1)
    }

    fn pop(&mut self) {
        self.depth -= 1;
    }
}

/// Finds the end of a JSON document that arrives in pieces: the closing brace of the outermost object or
/// array. It checks nothing else.
#[derive(Default)]
pub struct EndFinder {
    depth: usize,
    in_string: bool,
    escaped: bool,
    started: bool,
}

impl EndFinder {
    /// Scans the next piece; `true` once the document has ended in it.
    pub fn push(&mut self, piece: &[u8]) -> bool {
        let mut i = 0;
        while i < piece.len() {
            if self.escaped {
                self.escaped = false;
                i += 1;
                continue;
            }
            if self.in_string {
                let Some(n) = memchr::memchr2(b'"', b'\\', &piece[i..]) else {
                    return false;
                };
                if piece[i + n] == b'"' {
                    self.in_string = false;
                } else {
                    self.escaped = true;
                }
                i += n + 1;
                continue;
            }
            match piece[i] {
                b'"' => self.in_string = true,
                b'{' | b'[' => {
                    self.depth += 1;
                    self.started = true;
                }
                b'}' | b']' => self.depth = self.depth.saturating_sub(1),
                _ => {}
            }
            if self.started && self.depth == 0 {
                return true;
            }
            i += 1;
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn keys(doc: &str) -> Result<Vec<String>, SyntaxError> {
        members(doc.as_bytes(), 0).map(|m| m.map(|m| doc[m.key].to_owned())).collect()
    }

    fn without(doc: &str, names: &[&str]) -> String {
        let mut out = doc.to_owned();
        let found = cuts(doc.as_bytes(), |m| names.iter().any(|n| m.is(doc.as_bytes(), n)));
        for cut in found.unwrap().into_iter().rev() {
            out.replace_range(cut, "");
        }
        out
    }

    #[test]
    fn walks_members() {
        assert_eq!(keys(r#" { "a" : [1,{"b":2}] , "c":"}" } "#).unwrap(), ["a", "c"]);
        assert_eq!(keys("{}").unwrap(), Vec::<String>::new());
    }

    #[test]
    fn refuses_what_is_not_json() {
        for bad in [
            "",
            "[]",
            "{",
            r#"{"a"}"#,
            r#"{"a":}"#,
            r#"{"a":1,}"#,
            r#"{"a":01}"#,
            r#"{"a":1 "b":2}"#,
            r#"{"a":tru}"#,
            "{\"a\":\"\n\"}",
            r#"{"a":"\x"}"#,
            r#"{"a":"\u12g4"}"#,
            r#"{"a":[1,]}"#,
            r#"{"a":NaN}"#,
            r#"{"a":1.}"#,
            r#"{"a":[1}]"#,
            r#"{"a":-}"#,
            r#"{'a':1}"#,
        ] {
            assert!(keys(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn refuses_deep_nesting() {
        let fits = format!("{{\"a\":{}{}}}", "[".repeat(MAX_DEPTH), "]".repeat(MAX_DEPTH));
        assert!(keys(&fits).is_ok());
        let deep = format!("{{\"a\":{}{}}}", "[".repeat(MAX_DEPTH + 2), "]".repeat(MAX_DEPTH + 2));
        assert_eq!(keys(&deep).unwrap_err().what, "nested too deeply");
    }

    #[test]
    fn sees_through_escaped_keys() {
        let doc = br#"{"priorit\u0079":1}"#;
        assert!(find(doc, "priority").is_some());
        assert!(find(doc, "prio").is_none());
    }

    #[test]
    fn the_first_special_byte_ends_plain_text() {
        for length in 0..80 {
            assert_eq!(plain_bytes(&vec![b'x'; length]), length);
            assert_eq!(plain_bytes(&vec![0xff; length]), length);
            for at in 0..length {
                for special in [b'"', b'\\', 0, b'\n', 0x1f] {
                    let mut bytes = vec![b'\x23'; length];
                    bytes[at] = special;
                    bytes[length - 1] = if at == length - 1 { special } else { b'"' };
                    assert_eq!(plain_bytes(&bytes), at, "{special} in {length}");
                }
                for plain in [0x20, 0x21, 0x23, 0x5b, 0x5d, 0x7f, 0x80, 0xa2, 0xdc] {
                    let mut bytes = vec![b'x'; length];
                    bytes[at] = plain;
                    assert_eq!(plain_bytes(&bytes), length, "{plain} in {length}");
                }
            }
        }
    }

    #[test]
    fn cuts_leave_a_document_as_if_never_written() {
        let doc = r#"{"a": 1, "b": 2, "c": 3, "d": 4}"#;
        assert_eq!(without(doc, &["a"]), r#"{"b": 2, "c": 3, "d": 4}"#);
        assert_eq!(without(doc, &["b"]), r#"{"a": 1, "c": 3, "d": 4}"#);
        assert_eq!(without(doc, &["d"]), r#"{"a": 1, "b": 2, "c": 3}"#);
        assert_eq!(without(doc, &["a", "b"]), r#"{"c": 3, "d": 4}"#);
        assert_eq!(without(doc, &["b", "c"]), r#"{"a": 1, "d": 4}"#);
        assert_eq!(without(doc, &["a", "c"]), r#"{"b": 2, "d": 4}"#);
        assert_eq!(without(doc, &["a", "b", "c", "d"]), "{}");
    }

    #[test]
    fn walks_elements() {
        let doc = br#" [ {"a":[1]} , 2 ] "#;
        let found: Vec<_> = elements(doc).map(|r| std::str::from_utf8(&doc[r]).unwrap()).collect();
        assert_eq!(found, [r#"{"a":[1]}"#, "2"]);
        assert_eq!(elements(b"[]").count(), 0);
        assert_eq!(elements(b"{}").count(), 0);
    }

    proptest! {
        #[test]
        fn control_characters_are_found_wherever_they_are(
            bytes in proptest::collection::vec(prop_oneof![30 => 0x1f..=0x21u8, 70 => any::<u8>()], 0..40),
        ) {
            prop_assert_eq!(has_control(&bytes), bytes.iter().any(|b| *b < 0x20));
            let others: Vec<u8> = bytes.iter().map(|b| (*b).max(0x20)).collect();
            prop_assert!(!has_control(&others));
        }

        #[test]
        fn agrees_with_serde_json_on_any_bytes(text in r#"[\{\}\[\],:"a1\\ \.tfn-]{0,40}"#) {
            let doc = format!("{{\"k\":{text}}}");
            let ours = members(doc.as_bytes(), 0).collect::<Result<Vec<_>, _>>().is_ok();
            let mut walk = members(doc.as_bytes(), 0);
            let whole = ours && { walk.by_ref().for_each(drop); walk.position() == doc.len() };
            let theirs = serde_json::from_str::<serde_json::Value>(&doc);
            // serde_json refuses lone surrogates when it decodes; nothing else may differ.
            prop_assert_eq!(whole, theirs.is_ok(), "{}", doc);
        }

        #[test]
        fn finds_the_end_under_any_split(at in 0usize..40, tail in "[ \n}]{0,5}") {
            let doc = r#"{"a":"}\"]","b":[{"c":"\\"}]}"#;
            let all = format!("{doc}{tail}");
            let at = at.min(doc.len() - 1);
            let mut finder = EndFinder::default();
            prop_assert!(!finder.push(&all.as_bytes()[..at]));
            prop_assert!(finder.push(&all.as_bytes()[at..]));
            let mut early = EndFinder::default();
            prop_assert!(!early.push(&doc.as_bytes()[..doc.len() - 1]));
        }
    }
}
