//! A value of a JSON document and where it stands there.

use std::{borrow::Cow, ops::Range};

use crate::wire::{
    json::{self, Member},
    literal::Literal,
};

/// A value within a document.
#[derive(Clone, Debug)]
pub struct Node<'a> {
    doc: &'a [u8],
    range: Range<usize>,
}

impl<'a> Node<'a> {
    /// The value that a document consists of.
    pub fn root(doc: &'a [u8]) -> Self {
        let start = doc.len() - doc.trim_ascii_start().len();
        Self { doc, range: start..doc.trim_ascii_end().len().max(start) }
    }

    /// Where it stands; of a text with its quotes.
    pub fn range(&self) -> Range<usize> {
        self.range.clone()
    }

    pub fn bytes(&self) -> &'a [u8] {
        &self.doc[self.range.clone()]
    }

    pub fn is_text(&self) -> bool {
        self.bytes().starts_with(b"\"")
    }

    pub fn is_list(&self) -> bool {
        self.bytes().starts_with(b"[")
    }

    pub fn is_object(&self) -> bool {
        self.bytes().starts_with(b"{")
    }

    /// The members of an object; of anything else none.
    pub fn members(&self) -> impl Iterator<Item = (Key<'a>, Self)> + use<'a> {
        let doc = self.doc;
        json::members(&doc[..self.range.end], self.range.start).map_while(Result::ok).map(
            move |member| {
                let value = Self { doc, range: member.value.clone() };
                (Key { doc, member }, value)
            },
        )
    }

    /// The elements of a list; of anything else none.
    pub fn elements(&self) -> impl Iterator<Item = Self> + use<'a> {
        let (doc, start) = (self.doc, self.range.start);
        json::elements(&doc[self.range.clone()])
            .map(move |range| Self { doc, range: start + range.start..start + range.end })
    }

    /// A member of an object. Where its key stands twice the last one applies, as engines have it.
    pub fn get(&self, name: &str) -> Option<Self> {
        self.members().filter(|(key, _)| key.is(name)).last().map(|(_, value)| value)
    }

    /// Its text, if it is one.
    pub fn text(&self) -> Option<Cow<'a, str>> {
        Literal::read(self.bytes()).map(|literal| literal.text)
    }

    /// Its text is this one, which needs no escapes.
    pub fn says(&self, text: &str) -> bool {
        self.text().is_some_and(|said| said == text)
    }

    pub fn number(&self) -> Option<u64> {
        std::str::from_utf8(self.bytes()).ok()?.parse().ok()
    }

    /// All texts within it, however deep, without the keys of objects.
    pub fn leaves(&self) -> impl Iterator<Item = Self> + use<'a> {
        let doc = self.doc;
        let Range { start: mut at, end } = self.range.clone();
        std::iter::from_fn(move || {
            loop {
                let start = at + memchr::memchr(b'"', doc.get(at..end)?)?;
                at = end_of_text(&doc[..end], start)?;
                let behind = doc[at..end].trim_ascii_start();
                if !behind.starts_with(b":") {
                    return Some(Self { doc, range: start..at });
                }
            }
        })
    }
}

/// The offset behind the quote that ends a text.
fn end_of_text(doc: &[u8], start: usize) -> Option<usize> {
    let mut at = start + 1;
    loop {
        at += memchr::memchr2(b'"', b'\\', doc.get(at..)?)?;
        match doc[at] {
            b'"' => return Some(at + 1),
            _ => at += 2,
        }
    }
}

/// The key of a member.
#[derive(Clone, Debug)]
pub struct Key<'a> {
    doc: &'a [u8],
    member: Member,
}

impl Key<'_> {
    /// Whether it has this name, with or without escapes.
    pub fn is(&self, name: &str) -> bool {
        self.member.is(self.doc, name)
    }

    /// Whether it has one of these names.
    pub fn is_any(&self, names: &[&str]) -> bool {
        names.iter().any(|name| self.is(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_values() {
        let doc = br#" {"a":[1,{"b":"x"}], "k\"1":{"\u0061":"y\""},"a":[2]} "#;
        let root = Node::root(doc);
        let values = root.get("a").unwrap().elements().map(|n| n.number()).collect::<Vec<_>>();
        assert_eq!(values, [Some(2)]);
        let leaves: Vec<_> = root.leaves().map(|n| n.text().unwrap().into_owned()).collect();
        assert_eq!(leaves, ["x", "y\""]);
        assert!(root.is_object() && root.get("b").is_none());
        assert!(Node::root(b"").members().next().is_none());
    }
}
