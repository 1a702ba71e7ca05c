//! The substitution of `string.gsub`.

use super::{
    budget::Budget,
    failure::{Failure, Result, malformed, no_such_capture},
    matcher::{Capture, Match, Matcher},
    search::split_anchor,
};

/// Why a substitution failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SubstituteError<E> {
    Pattern(Failure),
    Replace(E),
}

/// Appends the replacement of a match to the output.
pub type Replace<'r, E> = dyn FnMut(&Match, &mut Vec<u8>) -> Result<(), E> + 'r;

/// Calls `replace` with each of at most `max` matches, as `gsub` of Lua 5.4 does. Returns the output
/// and the number of matches. An unfinished capture is an error even if `replace` does not use it.
pub fn substitute<E>(
    subject: &[u8],
    pattern: &[u8],
    max: usize,
    budget: &mut Budget<'_>,
    replace: &mut Replace<'_, E>,
) -> Result<(Vec<u8>, usize), SubstituteError<E>> {
    let (pattern, last) = split_anchor(subject, pattern, 0);
    let mut matcher = Matcher::new(subject, pattern, budget);
    let (mut out, mut count) = (Vec::with_capacity(subject.len()), 0);
    let (mut at, mut last_end) = (0, None);
    while count < max
        && let Some(found) =
            matcher.search(at..=last, last_end).map_err(SubstituteError::Pattern)?
    {
        out.extend_from_slice(&subject[at..found.start]);
        replace(&found, &mut out).map_err(SubstituteError::Replace)?;
        count += 1;
        at = found.end;
        last_end = Some(at);
    }
    out.extend_from_slice(&subject[at..]);
    Ok((out, count))
}

/// Expands a replacement string for one match: `%0` is the whole match, `%1` to `%9` its
/// captures (`%1` is the whole match if there are none) and `%%` a percent sign. Position
/// captures are written as decimal numbers from 1.
pub fn expand(
    subject: &[u8],
    found: &Match,
    template: &[u8],
    largest: usize,
    out: &mut Vec<u8>,
) -> Result<()> {
    let whole = Capture::Span { start: found.start, end: found.end };
    let captures = if found.captures.is_empty() { &[whole][..] } else { &found.captures };
    let mut rest = template;
    while let Some(escape) = rest.iter().position(|&byte| byte == b'%') {
        out.extend_from_slice(&rest[..escape]);
        match rest.get(escape + 1) {
            Some(b'%') => out.push(b'%'),
            Some(b'0') => out.extend_from_slice(&subject[found.start..found.end]),
            Some(&digit @ b'1'..=b'9') => match captures.get(usize::from(digit - b'1')) {
                Some(&Capture::Span { start, end }) => out.extend_from_slice(&subject[start..end]),
                Some(Capture::Position(at)) => out.extend((at + 1).to_string().bytes()),
                None => return Err(no_such_capture(digit)),
            },
            _ => return Err(malformed("invalid use of '%' in replacement string")),
        }
        rest = &rest[escape + 2..];
        // A template can contain a long capture many times.
        if out.len() > largest {
            return Err(Failure::TooLong);
        }
    }
    out.extend_from_slice(rest);
    Ok(())
}
