//! Searches without special characters.

use super::{budget::Budget, failure::Result};

/// Whether the pattern has no special characters, so that a plain search is enough. As in Lua, a
/// closing parenthesis or bracket is not special here.
pub fn is_plain(pattern: &[u8]) -> bool {
    !pattern.iter().any(|byte| b"^$*+?.([%-".contains(byte))
}

/// The first position of `needle` at `from` or later. The time is linear in both lengths.
pub fn find_plain(
    subject: &[u8],
    needle: &[u8],
    from: usize,
    budget: &mut Budget<'_>,
) -> Result<Option<usize>> {
    if from > subject.len() || needle.is_empty() || needle.len() > subject.len() - from {
        return Ok((needle.is_empty() && from <= subject.len()).then_some(from));
    }
    // The table of Knuth, Morris and Pratt: how many bytes still match if `n + 1` bytes matched and the
    // next did not. It grows with the longest match so far, so that a long needle does not cost eight
    // times its length in memory unless the subject contains most of it.
    let mut borders = vec![0];
    let grown = |borders: &[usize], mut length: usize, byte: u8| {
        while length > 0 && needle[length] != byte {
            length = borders[length - 1];
        }
        length + usize::from(needle[length] == byte)
    };
    let mut length = 0;
    for (at, &byte) in subject.iter().enumerate().skip(from) {
        budget.spend(1)?;
        length = grown(&borders, length, byte);
        if length == needle.len() {
            return Ok(Some(at + 1 - length));
        }
        if length > borders.len() {
            borders.push(grown(&borders, borders[length - 2], needle[length - 1]));
        }
    }
    Ok(None)
}
