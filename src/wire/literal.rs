//! String literals of JSON documents: their text, and where each part of the text stands in the literal,
//! so that a part can be replaced and all other bytes stay as they are.

use std::borrow::Cow;

use super::json;

/// The text of a literal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Literal<'a> {
    /// Without quotes and escapes. Half of a surrogate pair without the other half is U+FFFD.
    pub text: Cow<'a, str>,
    /// Offsets into the text, and the offsets into the literal that belong to them, in ascending order.
    /// Between two of them the bytes are the same.
    marks: Vec<(usize, usize)>,
}

impl<'a> Literal<'a> {
    /// Reads a valid literal with its quotes. `None` if it is not in UTF-8, or no literal.
    pub fn read(literal: &'a [u8]) -> Option<Self> {
        let inner = literal.strip_prefix(b"\"")?.strip_suffix(b"\"")?;
        let inner = std::str::from_utf8(inner).ok()?;
        if memchr::memchr(b'\\', inner.as_bytes()).is_none() {
            return Some(Self { text: Cow::Borrowed(inner), marks: vec![(0, 1)] });
        }
        let mut text = String::with_capacity(inner.len());
        let mut marks = vec![(0, 1)];
        let mut at = 0;
        while let Some(n) = memchr::memchr(b'\\', &inner.as_bytes()[at..]) {
            text.push_str(&inner[at..at + n]);
            at += n;
            marks.push((text.len(), at + 1));
            let (character, length) = escape(&inner.as_bytes()[at..])?;
            text.push(character);
            at += length;
            marks.push((text.len(), at + 1));
        }
        text.push_str(&inner[at..]);
        Some(Self { text: Cow::Owned(text), marks })
    }

    /// The offset into the literal of an offset into the text. It must not lie within a character.
    pub fn place(&self, at: usize) -> usize {
        let next = self.marks.partition_point(|(text, _)| *text <= at);
        let (text, literal) = self.marks[next.saturating_sub(1)];
        literal + (at - text)
    }
}

/// The character of an escape at the start of a text, and the length of the escape.
fn escape(text: &[u8]) -> Option<(char, usize)> {
    let simple = |character| Some((character, 2));
    match text.get(1)? {
        b'n' => simple('\n'),
        b't' => simple('\t'),
        b'r' => simple('\r'),
        b'b' => simple('\u{8}'),
        b'f' => simple('\u{c}'),
        b'u' => {
            let first = unit(text.get(2..6)?)?;
            let second = match text.get(6..12) {
                Some([b'\\', b'u', digits @ ..]) => unit(digits),
                _ => None,
            };
            let units = [first, second.unwrap_or_default()];
            match char::decode_utf16(units).next()? {
                Ok(character) => Some((character, 6 * character.len_utf16())),
                Err(_) => Some((char::REPLACEMENT_CHARACTER, 6)),
            }
        }
        other => simple(char::from(*other)),
    }
}

/// The number of four hexadecimal digits.
fn unit(digits: &[u8]) -> Option<u16> {
    u16::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
}

/// A text as it stands within a literal, without the quotes.
pub fn escaped(text: &str) -> Vec<u8> {
    let mut quoted = json::quoted(text);
    quoted.pop();
    quoted.remove(0);
    quoted
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn reads_what_engines_read() {
        for (literal, text) in [
            (r#""""#, ""),
            (r#""plain ä""#, "plain ä"),
            (r#""a\n\"\\\/\u00e4\t""#, "a\n\"\\/ä\t"),
            (r#""\ud83d\ude00!""#, "😀!"),
            (r#""\ud83d x""#, "\u{fffd} x"),
            (r#""\ude00\ud83d\u0041""#, "\u{fffd}\u{fffd}A"),
        ] {
            assert_eq!(Literal::read(literal.as_bytes()).unwrap().text, text, "{literal}");
        }
        assert_eq!(Literal::read(b"12"), None);
        assert_eq!(Literal::read(b"\"\xff\""), None);
    }

    proptest! {
        #[test]
        fn a_part_of_the_text_has_its_place(text in "[a-c\"\\\\\n\u{e4}\u{1f600}]{0,12}", ascii: bool) {
            let mut literal = String::from_utf8(json::quoted(&text)).unwrap();
            if ascii {
                literal = literal.chars().map(|c| {
                    let mut units = [0; 2];
                    let long = |unit: &u16| format!("\\u{unit:04x}");
                    if c.is_ascii() { c.to_string() } else { c.encode_utf16(&mut units).iter().map(long).collect() }
                }).collect();
            }
            let read = Literal::read(literal.as_bytes()).unwrap();
            prop_assert_eq!(&read.text, &text);
            let ends: Vec<usize> = text.char_indices().map(|(at, _)| at).chain([text.len()]).collect();
            for (i, start) in ends.iter().enumerate() {
                for end in &ends[i..] {
                    let part = &literal[read.place(*start)..read.place(*end)];
                    let part = format!("\"{part}\"");
                    let again = Literal::read(part.as_bytes()).unwrap();
                    prop_assert_eq!(again.text, &text[*start..*end]);
                }
            }
        }
    }
}
