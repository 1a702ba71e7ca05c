//! Edits of a byte buffer in place, applied from back to front: a typical edit, a few bytes near the end,
//! moves little.

use std::{borrow::Cow, ops::Range};

use bytes::BytesMut;

/// Replaces `range` by `with`. An empty range inserts, an empty `with` deletes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Edit {
    pub range: Range<usize>,
    pub with: Cow<'static, [u8]>,
}

impl Edit {
    /// Deletes a range.
    pub fn cut(range: Range<usize>) -> Self {
        Self { range, with: Cow::Borrowed(b"") }
    }

    /// Inserts before `at`.
    pub fn insert(at: usize, with: impl Into<Cow<'static, [u8]>>) -> Self {
        Self { range: at..at, with: with.into() }
    }
}

/// Above this number of edits a new buffer is written, because each edit in place moves what follows it.
const FEW: usize = 8;

/// The buffer with its edits, in one pass.
fn rewritten(buf: &[u8], mut edits: Vec<Edit>) -> BytesMut {
    edits.sort_by_key(|e| e.range.start);
    let grown: usize = edits.iter().map(|e| e.with.len()).sum();
    let mut out = BytesMut::with_capacity(buf.len() + grown);
    let mut at = 0;
    for Edit { range, with } in edits {
        out.extend_from_slice(&buf[at..range.start]);
        out.extend_from_slice(&with);
        at = range.end;
    }
    out.extend_from_slice(&buf[at..]);
    out
}

/// Applies edits in any order. They must not overlap.
pub fn apply(buf: &mut BytesMut, mut edits: Vec<Edit>) {
    if edits.len() > FEW {
        *buf = rewritten(buf, edits);
        return;
    }
    edits.sort_by_key(|e| std::cmp::Reverse(e.range.start));
    for Edit { range, with } in edits {
        let old = buf.len();
        let tail = range.end..old;
        if with.len() > range.len() {
            buf.resize(old + with.len() - range.len(), 0);
        }
        buf.copy_within(tail.clone(), range.start + with.len());
        buf[range.start..range.start + with.len()].copy_from_slice(&with);
        buf.truncate(range.start + with.len() + tail.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edits_in_any_order() {
        let mut buf = BytesMut::from(&b"0123456789"[..]);
        let edits = vec![
            Edit { range: 1..3, with: Cow::Borrowed(b"abcd") },
            Edit::insert(10, &b"!"[..]),
            Edit::cut(5..8),
            Edit { range: 4..5, with: Cow::Borrowed(b"x") },
        ];
        apply(&mut buf, edits);
        assert_eq!(&buf[..], b"0abcd3x89!");
    }

    #[test]
    fn many_edits_give_the_same_as_few() {
        let text: Vec<u8> = (0..200).collect();
        let edit = |n: usize| Edit { range: n * 7..n * 7 + n % 5, with: vec![b'x'; n % 3].into() };
        let edits: Vec<_> = (0..25).map(edit).collect();
        let mut one_by_one = BytesMut::from(&text[..]);
        for one in edits.iter().rev() {
            apply(&mut one_by_one, vec![one.clone()]);
        }
        let mut at_once = BytesMut::from(&text[..]);
        apply(&mut at_once, edits);
        assert_eq!(at_once, one_by_one);
    }
}
