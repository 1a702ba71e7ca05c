//! The searches of `string.find`, `string.match` and `string.gmatch`.

use super::{
    budget::Budget,
    failure::Result,
    matcher::{Match, Matcher},
};

/// The first match that begins at `from` or later; only at `from` if the pattern is anchored
/// with `^`.
pub fn find(
    subject: &[u8],
    pattern: &[u8],
    from: usize,
    budget: &mut Budget<'_>,
) -> Result<Option<Match>> {
    let (pattern, last) = split_anchor(subject, pattern, from);
    Matcher::new(subject, pattern, budget).search(from..=last, None)
}

/// The next match of `gmatch` in Lua 5.4: it must not end where the last one ended (`last_end`), and
/// a leading `^` is no anchor but stands for itself.
pub fn next(
    subject: &[u8],
    pattern: &[u8],
    from: usize,
    last_end: Option<usize>,
    budget: &mut Budget<'_>,
) -> Result<Option<Match>> {
    Matcher::new(subject, pattern, budget).search(from..=subject.len(), last_end)
}

/// The pattern without its anchor, and the last position at which a match may begin.
pub(super) fn split_anchor<'p>(
    subject: &[u8],
    pattern: &'p [u8],
    from: usize,
) -> (&'p [u8], usize) {
    match pattern.strip_prefix(b"^") {
        Some(rest) => (rest, from.min(subject.len())),
        None => (pattern, subject.len()),
    }
}
