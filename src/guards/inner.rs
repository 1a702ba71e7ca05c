//! The texts within a text that is JSON itself, as the arguments of calls are.

use std::ops::Range;

use crate::wire::literal::Literal;

/// A part of a text in which can be searched.
pub struct Piece<'a> {
    /// Where it stands in the text.
    pub start: usize,
    /// What it says, and where.
    pub said: Said<'a>,
}

/// What a piece says.
pub enum Said<'a> {
    /// What stands there.
    Plain(&'a str),
    /// A literal, without its escapes.
    Literal(Literal<'a>),
}

impl Piece<'_> {
    /// What can be searched.
    pub fn text(&self) -> &str {
        match &self.said {
            Said::Plain(text) => text,
            Said::Literal(literal) => &literal.text,
        }
    }

    /// Where a part of it stands in the whole text.
    pub fn place(&self, range: &Range<usize>) -> Range<usize> {
        match &self.said {
            Said::Plain(_) => self.start + range.start..self.start + range.end,
            Said::Literal(literal) => {
                self.start + literal.place(range.start)..self.start + literal.place(range.end)
            }
        }
    }

    /// Whether it is a literal.
    pub fn is_literal(&self) -> bool {
        matches!(self.said, Said::Literal(_))
    }
}

/// The pieces of a text; of one that is no JSON it is the text.
pub fn pieces(text: &str, embedded: bool) -> Vec<Piece<'_>> {
    if !embedded {
        return vec![Piece { start: 0, said: Said::Plain(text) }];
    }
    let mut found = Vec::new();
    let mut at = 0;
    while let Some(literal) = next_literal(&text.as_bytes()[at..]) {
        let (start, end) = (at + literal.start, at + literal.end);
        found.push(Piece { start: at, said: Said::Plain(&text[at..start]) });
        let said = match Literal::read(&text.as_bytes()[start..end]) {
            Some(literal) => Said::Literal(literal),
            None => Said::Plain(&text[start..end]),
        };
        found.push(Piece { start, said });
        at = end;
    }
    found.push(Piece { start: at, said: Said::Plain(&text[at..]) });
    found.retain(|piece| !piece.text().is_empty());
    found
}

fn next_literal(text: &[u8]) -> Option<Range<usize>> {
    let start = memchr::memchr(b'"', text)?;
    let mut at = start + 1;
    loop {
        at += memchr::memchr2(b'"', b'\\', text.get(at..)?)?;
        if text[at] == b'"' {
            return Some(start..at + 1);
        }
        at += 2;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_read_without_their_escapes() {
        let text = r#"{"a\nb":"x\"y","n":12} "open"#;
        let found: Vec<_> = pieces(text, true).iter().map(|p| p.text().to_owned()).collect();
        assert_eq!(found, ["{", "a\nb", ":", "x\"y", ",", "n", ":12} \"open"]);
        let piece = &pieces(text, true)[1];
        assert_eq!(&text[piece.place(&(2..3))], "b");
        assert_eq!(pieces(text, false).len(), 1);
    }
}
