//! Lua 5.4 string patterns on byte strings, written so that every unit of work counts against a
//! budget that can stop it. Lua's own matcher, in C, backtracks without any hook running, so one
//! hostile pattern on a long subject would hold a thread for as long as it likes.

use std::fmt;
use std::ops::RangeInclusive;

const STEPS_PER_ASK: usize = 4096;
/// `LUA_MAXCAPTURES`.
const MAX_CAPTURES: usize = 32;
/// `MAXCCALLS`. Nothing recurses here, but scripts see where Lua's limit is.
const MAX_DEPTH: usize = 200;

/// What comes of matching.
pub type Result<T, E = Failure> = std::result::Result<T, E>;

/// Watches the work: `over` is asked every so many steps whether time is over.
pub struct Budget<'a> {
    over: &'a dyn Fn() -> bool,
    left: usize,
}

impl<'a> Budget<'a> {
    /// A budget that asks `over` about every 4096 steps. Where a loop makes many calls they
    /// should share one: a call that takes fewer steps than that never asks.
    pub fn new(over: &'a dyn Fn() -> bool) -> Self {
        Self { over, left: STEPS_PER_ASK }
    }

    #[inline]
    fn spend(&mut self, steps: usize) -> Result<()> {
        if steps < self.left {
            self.left -= steps;
            return Ok(());
        }
        self.left = STEPS_PER_ASK;
        if (self.over)() { Err(Failure::Over) } else { Ok(()) }
    }
}

/// What a pair of parentheses caught, in byte offsets from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Capture {
    /// A piece of the subject.
    Span {
        /// Where it begins.
        start: usize,
        /// Where it ends, exclusive.
        end: usize,
    },
    /// The place where `()` stood. It counts from 0 too, unlike what a script sees.
    Position(usize),
}

/// Where a pattern matched, in byte offsets from 0.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Match {
    /// Where the match begins.
    pub start: usize,
    /// Where it ends, exclusive.
    pub end: usize,
    /// The captures as written in the pattern; empty if it has none.
    pub captures: Vec<Capture>,
}

/// Why there is no answer. It displays as the message that Lua gives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The pattern or the replacement string is wrong, with Lua's message.
    Malformed(String),
    /// The pattern makes more choices that may be taken back than Lua allows.
    TooComplex,
    /// The budget was over before the work was done.
    Over,
    /// The replacement is longer than it may be.
    TooLong,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Malformed(message) => message,
            Self::TooComplex => "pattern too complex",
            Self::Over => "pattern matching took too long",
            Self::TooLong => "resulting string too large",
        })
    }
}

impl std::error::Error for Failure {}

/// Why a substitution failed: in the matching or in the replacement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SubstituteError<E> {
    /// The matching failed.
    Pattern(Failure),
    /// The replacement failed.
    Replace(E),
}

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

/// The next match as gmatch walks in Lua 5.4: it may not end where the last one ended
/// (`last_end`), and a leading `^` is no anchor but stands for itself.
pub fn next(
    subject: &[u8],
    pattern: &[u8],
    from: usize,
    last_end: Option<usize>,
    budget: &mut Budget<'_>,
) -> Result<Option<Match>> {
    Matcher::new(subject, pattern, budget).search(from..=subject.len(), last_end)
}

/// Appends to the output what takes a match's place.
pub type Replace<'r, E> = dyn FnMut(&Match, &mut Vec<u8>) -> Result<(), E> + 'r;

/// Walks as gsub does in Lua 5.4 and calls `replace` with each of at most `max` matches. Returns
/// the output and the number of matches. A capture left open is an error here even if `replace`
/// would not look at it.
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
        // One template can ask for a long capture many times.
        if out.len() > largest {
            return Err(Failure::TooLong);
        }
    }
    out.extend_from_slice(rest);
    Ok(())
}

/// Whether the pattern has no special characters, so that a plain search will do. As in Lua, a
/// closing parenthesis or bracket is not special here.
pub fn is_plain(pattern: &[u8]) -> bool {
    !pattern.iter().any(|byte| b"^$*+?.([%-".contains(byte))
}

/// Where `needle` first begins at `from` or later, in time linear to both lengths.
pub fn find_plain(
    subject: &[u8],
    needle: &[u8],
    from: usize,
    budget: &mut Budget<'_>,
) -> Result<Option<usize>> {
    if from > subject.len() || needle.is_empty() || needle.len() > subject.len() - from {
        return Ok((needle.is_empty() && from <= subject.len()).then_some(from));
    }
    // The table of Knuth, Morris and Pratt: after `n + 1` bytes matched and the next did not, how
    // many still do. It grows with the longest match so far, so that a long needle does not cost
    // eight times its length in memory unless the subject is made for it.
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

/// The pattern without its anchor, and the last place where a match may begin.
fn split_anchor<'p>(subject: &[u8], pattern: &'p [u8], from: usize) -> (&'p [u8], usize) {
    match pattern.strip_prefix(b"^") {
        Some(rest) => (rest, from.min(subject.len())),
        None => (pattern, subject.len()),
    }
}

fn malformed(message: &str) -> Failure {
    Failure::Malformed(message.to_owned())
}

fn no_such_capture(digit: u8) -> Failure {
    Failure::Malformed(format!("invalid capture index %{}", char::from(digit)))
}

/// Whether `byte` is in the class that `%` and `class` name, in the C locale.
fn in_class(byte: u8, class: u8) -> bool {
    let member = match class.to_ascii_lowercase() {
        b'a' => byte.is_ascii_alphabetic(),
        b'c' => byte.is_ascii_control(),
        b'd' => byte.is_ascii_digit(),
        b'g' => byte.is_ascii_graphic(),
        b'l' => byte.is_ascii_lowercase(),
        b'p' => byte.is_ascii_punctuation(),
        // `is_ascii_whitespace` leaves the vertical tab out.
        b's' => matches!(byte, b' ' | b'\t'..=b'\r'),
        b'u' => byte.is_ascii_uppercase(),
        b'w' => byte.is_ascii_alphanumeric(),
        b'x' => byte.is_ascii_hexdigit(),
        // Out of the manual since 5.2, but 5.4 still takes it.
        b'z' => byte == 0,
        _ => return class == byte,
    };
    member != class.is_ascii_uppercase()
}

/// A place in the subject and the place in the pattern that has to match there.
type Place = (usize, usize);

/// What is left to try where a choice was made, if what follows does not match.
enum Retry {
    /// Nothing: the newest capture began there.
    Open,
    /// Nothing: this capture was closed there.
    Close(usize),
    /// To go on from another place.
    Elsewhere(Place),
    /// To take one fewer, down to `least`, and to go on at `p`.
    Fewer { least: usize, s: usize, p: usize },
    /// To take one more of what the pattern asks for from `p` to `end`.
    More { s: usize, p: usize, end: usize },
}

/// In all of its functions, `s` is a place in the subject and `p` one in the pattern. A mistake in
/// the pattern is reported only once the matching gets there, as Lua does it.
struct Matcher<'m, 'b> {
    subject: &'m [u8],
    pattern: &'m [u8],
    budget: &'m mut Budget<'b>,
    /// Where each capture begins, and what it caught if it is closed.
    slots: Vec<(usize, Option<Capture>)>,
    /// The choices that may be taken back. Lua's matcher recurses for each of them.
    trail: Vec<Retry>,
}

impl<'m, 'b> Matcher<'m, 'b> {
    fn new(subject: &'m [u8], pattern: &'m [u8], budget: &'m mut Budget<'b>) -> Self {
        Self { subject, pattern, budget, slots: Vec::new(), trail: Vec::new() }
    }

    /// The first match that begins in `starts` and does not end at `last_end`.
    fn search(
        &mut self,
        starts: RangeInclusive<usize>,
        last_end: Option<usize>,
    ) -> Result<Option<Match>> {
        for start in starts {
            if let Some(end) = self.end_from(start)?.filter(|&end| Some(end) != last_end) {
                let unfinished = || malformed("unfinished capture");
                let captures = self.slots.iter().map(|slot| slot.1.ok_or_else(unfinished));
                let captures = captures.collect::<Result<_>>()?;
                return Ok(Some(Match { start, end, captures }));
            }
        }
        Ok(None)
    }

    /// The byte of the pattern at `p`, or the zero that ends a C string.
    fn at(&self, p: usize) -> u8 {
        self.pattern.get(p).copied().unwrap_or(0)
    }

    /// Where the match that begins at `start` ends, if there is one.
    fn end_from(&mut self, start: usize) -> Result<Option<usize>> {
        self.slots.clear();
        self.trail.clear();
        let mut place = Some((start, 0));
        loop {
            self.budget.spend(1)?;
            place = match place {
                Some((s, p)) if p == self.pattern.len() => return Ok(Some(s)),
                Some((s, p)) => self.step(s, p)?,
                None => match self.trail.pop() {
                    Some(retry) => self.back(retry)?,
                    None => return Ok(None),
                },
            };
        }
    }

    /// Matches one item of the pattern; `None` if it does not match.
    fn step(&mut self, s: usize, p: usize) -> Result<Option<Place>> {
        match (self.at(p), self.at(p + 1)) {
            (b'(', b')') => self.open(s, p + 2, Some(Capture::Position(s))),
            (b'(', _) => self.open(s, p + 1, None),
            (b')', _) => self.close(s, p + 1),
            (b'$', _) if p + 1 == self.pattern.len() => {
                Ok((s == self.subject.len()).then_some((s, p + 1)))
            }
            (b'%', b'b') => Ok(self.balanced(s, p + 2)?.map(|s| (s, p + 4))),
            (b'%', b'f') => Ok(self.frontier(s, p + 2)?.map(|p| (s, p))),
            (b'%', digit @ b'0'..=b'9') => Ok(self.again(s, digit)?.map(|s| (s, p + 2))),
            _ => self.repeated(s, p),
        }
    }

    /// Goes back to a choice that came to nothing.
    fn back(&mut self, retry: Retry) -> Result<Option<Place>> {
        match retry {
            Retry::Open => _ = self.slots.pop(),
            Retry::Close(index) => self.slots[index].1 = None,
            Retry::Elsewhere(place) => return Ok(Some(place)),
            Retry::Fewer { least, s, p } if s > least => {
                return self.choose(Retry::Fewer { least, s: s - 1, p }, (s - 1, p));
            }
            Retry::More { s, p, end } if self.single(s, p, end)? => {
                return self.choose(Retry::More { s: s + 1, p, end }, (s + 1, end + 1));
            }
            Retry::Fewer { .. } | Retry::More { .. } => {}
        }
        Ok(None)
    }

    fn choose(&mut self, retry: Retry, place: Place) -> Result<Option<Place>> {
        // The match itself is the first of Lua's calls.
        if self.trail.len() + 1 == MAX_DEPTH {
            return Err(Failure::TooComplex);
        }
        self.trail.push(retry);
        Ok(Some(place))
    }

    /// One byte of some kind, and the quantifier behind it.
    fn repeated(&mut self, s: usize, p: usize) -> Result<Option<Place>> {
        let end = self.item_end(p)?;
        match (self.at(end), self.single(s, p, end)?) {
            (b'?', true) => self.choose(Retry::Elsewhere((s, end + 1)), (s + 1, end + 1)),
            (b'+', true) => self.longest(s + 1, p, end),
            (b'*', true) => self.longest(s, p, end),
            (b'-', true) => self.choose(Retry::More { s, p, end }, (s, end + 1)),
            (b'?' | b'*' | b'-', false) => Ok(Some((s, end + 1))),
            (_, true) => Ok(Some((s + 1, end))),
            (_, false) => Ok(None),
        }
    }

    fn longest(&mut self, least: usize, p: usize, end: usize) -> Result<Option<Place>> {
        let mut s = least;
        while self.single(s, p, end)? {
            self.budget.spend(1)?;
            s += 1;
        }
        self.choose(Retry::Fewer { least, s, p: end + 1 }, (s, end + 1))
    }

    fn open(&mut self, s: usize, p: usize, caught: Option<Capture>) -> Result<Option<Place>> {
        if self.slots.len() == MAX_CAPTURES {
            return Err(malformed("too many captures"));
        }
        self.slots.push((s, caught));
        self.choose(Retry::Open, (s, p))
    }

    fn close(&mut self, s: usize, p: usize) -> Result<Option<Place>> {
        let innermost = self.slots.iter().rposition(|slot| slot.1.is_none());
        let index = innermost.ok_or_else(|| malformed("invalid pattern capture"))?;
        self.slots[index].1 = Some(Capture::Span { start: self.slots[index].0, end: s });
        self.choose(Retry::Close(index), (s, p))
    }

    fn balanced(&mut self, s: usize, p: usize) -> Result<Option<usize>> {
        let Some(&[open, close]) = self.pattern.get(p..p + 2) else {
            return Err(malformed("malformed pattern (missing arguments to '%b')"));
        };
        if self.subject.get(s) != Some(&open) {
            return Ok(None);
        }
        let mut pending = 1_usize;
        for (at, &byte) in self.subject.iter().enumerate().skip(s + 1) {
            self.budget.spend(1)?;
            // The closing one comes first: the two may be the same.
            if byte == close {
                pending -= 1;
                if pending == 0 {
                    return Ok(Some(at + 1));
                }
            } else if byte == open {
                pending += 1;
            }
        }
        Ok(None)
    }

    fn frontier(&mut self, s: usize, p: usize) -> Result<Option<usize>> {
        if self.at(p) != b'[' {
            return Err(malformed("missing '[' after '%f' in pattern"));
        }
        let end = self.item_end(p)?;
        let before = s.checked_sub(1).map_or(0, |previous| self.subject[previous]);
        let after = self.subject.get(s).copied().unwrap_or(0);
        let crossed = !self.in_set(before, p, end)? && self.in_set(after, p, end)?;
        Ok(crossed.then_some(end))
    }

    /// A back reference.
    fn again(&mut self, s: usize, digit: u8) -> Result<Option<usize>> {
        let index = usize::from(digit).wrapping_sub(usize::from(b'1'));
        let caught = match self.slots.get(index) {
            Some(&(_, Some(Capture::Span { start, end }))) => &self.subject[start..end],
            // A position is nothing that could come again, but Lua takes it for no mistake.
            Some((_, Some(Capture::Position(_)))) => return Ok(None),
            Some((_, None)) | None => return Err(no_such_capture(digit)),
        };
        self.budget.spend(caught.len())?;
        Ok(self.subject[s..].starts_with(caught).then_some(s + caught.len()))
    }

    /// Whether the byte at `s` is what the pattern asks for from `p` to `end`.
    #[inline]
    fn single(&mut self, s: usize, p: usize, end: usize) -> Result<bool> {
        let Some(&byte) = self.subject.get(s) else { return Ok(false) };
        match self.pattern[p] {
            b'.' => Ok(true),
            b'%' => Ok(in_class(byte, self.at(p + 1))),
            b'[' => self.in_set(byte, p, end),
            literal => Ok(literal == byte),
        }
    }

    /// Where what stands at `p` for a single byte ends.
    fn item_end(&mut self, p: usize) -> Result<usize> {
        match self.pattern[p] {
            b'%' if p + 1 == self.pattern.len() => {
                return Err(malformed("malformed pattern (ends with '%')"));
            }
            b'%' => return Ok(p + 2),
            b'[' => {}
            _ => return Ok(p + 1),
        }
        let mut at = p + 1 + usize::from(self.at(p + 1) == b'^');
        loop {
            self.budget.spend(1)?;
            // The first one is passed before any look for the end: a `]` there is a member.
            at += match self.pattern.get(at) {
                Some(b'%') => 2,
                Some(_) => 1,
                None => return Err(malformed("malformed pattern (missing ']')")),
            };
            if self.at(at) == b']' {
                return Ok(at + 1);
            }
        }
    }

    /// Whether `byte` is in the set that is written from `p` to `end`.
    fn in_set(&mut self, byte: u8, p: usize, end: usize) -> Result<bool> {
        let close = end - 1;
        let negated = self.at(p + 1) == b'^';
        let mut at = p + 1 + usize::from(negated);
        let mut found = false;
        while at < close && !found {
            self.budget.spend(1)?;
            let (first, second) = (self.at(at), self.at(at + 1));
            (found, at) = if first == b'%' {
                (in_class(byte, second), at + 2)
            } else if second == b'-' && at + 2 < close {
                ((first..=self.at(at + 2)).contains(&byte), at + 3)
            } else {
                (first == byte, at + 1)
            };
        }
        Ok(found != negated)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    const CASES: &[(&[u8], &[u8], &str)] = &[
        (b"", b"abc", "0..0"),
        (b"", b"", "0..0"),
        (b"a", b"", "none"),
        (b"b", b"abc", "1..2"),
        (b"bc", b"abc", "1..3"),
        (b"^b", b"abc", "none"),
        (b"^a", b"abc", "0..1"),
        (b"c$", b"abc", "2..3"),
        (b"^$", b"", "0..0"),
        (b"$", b"abc", "3..3"),
        (b"a$c", b"xa$c", "1..4"),
        (b"a^b", b"a^b", "0..3"),
        (b".", b"\0", "0..1"),
        (b"a.c", b"xabc", "1..4"),
        (b"b*", b"abbb", "0..0"),
        (b"b+", b"abbb", "1..4"),
        (b"b-", b"abbb", "0..0"),
        (b"ab-c", b"abbbc", "0..5"),
        (b"ab?c", b"ac abc", "0..2"),
        (b"a?a?a?aa", b"aa", "0..2"),
        (b".*b", b"aabab", "0..5"),
        (b".-b", b"aabab", "0..3"),
        (b"%a+", b"12ab3", "2..4"),
        (b"%A+", b"ab12c", "2..4"),
        (b"%c", b"a\x7f", "1..2"),
        (b"%d+", b"a2026b", "1..5"),
        (b"%D+", b"12ab", "2..4"),
        (b"%g+", b" a! ", "1..3"),
        (b"%l+", b"ABcdE", "2..4"),
        (b"%L+", b"abCDe", "2..4"),
        (b"%p+", b"a,;b", "1..3"),
        (b"%P+", b",;ab", "2..4"),
        (b"%s+", b"a \t\n\x0b\x0c\rb", "1..7"),
        (b"%S+", b" \x0bab ", "2..4"),
        (b"%u+", b"abCD", "2..4"),
        (b"%w+", b"..a1_", "2..4"),
        (b"%W+", b"a1_.", "2..4"),
        (b"%x+", b"xyzfF09g", "3..7"),
        (b"%X+", b"afxyz", "2..5"),
        (b"%z", b"a\0", "1..2"),
        (b"%.", b"a.b", "1..2"),
        (b"%%", b"5%", "1..2"),
        (b"\xff+", b"a\xff\xff", "1..3"),
        (b"%a", b"\xe4", "none"),
        (b"a\0b", b"xa\0b", "1..4"),
        (b"[abc]+", b"xxcabd", "2..5"),
        (b"[^abc]+", b"abxyc", "2..4"),
        (b"[a-c]+", b"zabcd", "1..4"),
        (b"[]]", b"a]", "1..2"),
        (b"[^]]", b"]a", "1..2"),
        (b"[]-a]+", b"Z^a`]", "1..5"),
        (b"[a-]+", b"b-a-", "1..4"),
        (b"[-a]+", b"b-a-", "1..4"),
        (b"[%a_][%w_]*", b"1_x9 ", "1..4"),
        (b"[%]]", b"]", "0..1"),
        (b"[%a-z]+", b"1-z", "1..3"),
        (b"[^%s]+", b"  ab ", "2..4"),
        (b"[+-%%]", b"]", "0..1"),
        (b"[a^]+", b"b^a", "1..3"),
        (b"[\0-\x1f]", b"a\n", "1..2"),
        (b"[b-a]", b"ab", "none"),
        (b"[.]", b"a.", "1..2"),
        (b"()", b"ab", "0..0 @0"),
        (b"a()b()", b"xab", "1..3 @2 @3"),
        (b"(a)(b)", b"ab", "0..2 0..1 1..2"),
        (b"((a)(b))", b"xab", "1..3 1..3 1..2 2..3"),
        (b"(a*(.)%w(%s*))", b"aab c", "0..4 0..4 1..2 3..4"),
        (b"(.-)=(.*)", b"key=value", "0..9 0..3 4..9"),
        (b"^(%s*)(.-)%s*$", b" ab  ", "0..5 0..1 1..3"),
        (b"()(%d+)()", b"ab12c", "2..4 @2 2..4 @4"),
        (b"(a)-b", b"a-b", "0..3 0..1"),
        (b"(a*)b?", b"aab", "0..3 0..2"),
        (b"(['\"]).-%1", b"x 'it\" is' y", "2..10 2..3"),
        (b"(%a)%1", b"abccd", "2..4 2..3"),
        (b"(a)(b)%2%1", b"abba", "0..4 0..1 1..2"),
        (b"()%1", b"aa", "none"),
        (b"()a%1", b"aa", "none"),
        (b"(a*)%1b", b"aaaab", "0..5 0..2"),
        (b"%b()", b"f(a(b)c)d)", "1..8"),
        (b"%b()", b"((a)", "1..4"),
        (b"%bxx", b"axbxc", "1..4"),
        (b"%b()%b[]", b"()[a]", "0..5"),
        (b"%b\0\x01", b"a\0b\x01", "1..4"),
        (b"%b()", b"", "none"),
        (b"%f[%a]%a+", b"1 the", "2..5"),
        (b"%f[%A]", b"ab", "2..2"),
        (b"%f[\0]", b"ab", "2..2"),
        (b"%f[^\0]", b"ab", "0..0"),
        (b"%f[%w]%w+%f[%W]", b"..ab1!", "2..5"),
        (b"%f[a]", b"baab", "1..1"),
        (b"%", b"a", "malformed pattern (ends with '%')"),
        (b"a%", b"a", "malformed pattern (ends with '%')"),
        (b"a%", b"b", "none"),
        (b"[a", b"a", "malformed pattern (missing ']')"),
        (b"[]", b"a", "malformed pattern (missing ']')"),
        (b"[^]", b"a", "malformed pattern (missing ']')"),
        (b"[a%", b"a", "malformed pattern (missing ']')"),
        (b"[a%]", b"a", "malformed pattern (missing ']')"),
        (b"[", b"a", "malformed pattern (missing ']')"),
        (b"%f", b"a", "missing '[' after '%f' in pattern"),
        (b"%fa", b"a", "missing '[' after '%f' in pattern"),
        (b"%f[", b"a", "malformed pattern (missing ']')"),
        (b"%b", b"a", "malformed pattern (missing arguments to '%b')"),
        (b"%b(", b"a", "malformed pattern (missing arguments to '%b')"),
        (b"(a", b"a", "unfinished capture"),
        (b"(a", b"b", "none"),
        (b"()(", b"b", "unfinished capture"),
        (b"a)", b"a", "invalid pattern capture"),
        (b"(a))", b"a", "invalid pattern capture"),
        (b")", b"", "invalid pattern capture"),
        (b"%0", b"a", "invalid capture index %0"),
        (b"%1", b"a", "invalid capture index %1"),
        (b"(a)%2", b"a", "invalid capture index %2"),
        (b"(a%1)", b"aa", "invalid capture index %1"),
        (b"(a%1", b"aa", "invalid capture index %1"),
        (b"*a", b"*a", "0..2"),
        (b"+", b"+", "0..1"),
        (b"a**", b"aa*", "0..3"),
        (b"a+?", b"aa?", "0..3"),
        (b"a--", b"a-", "0..2"),
        (b"^*", b"*", "0..1"),
        (b"^^a", b"^a", "0..2"),
        (b"%-?", b"-", "0..1"),
        (b"(^a)", b"^a", "0..2 0..2"),
        (b"a\\n", b"a\\n", "0..3"),
    ];

    fn never() -> bool {
        false
    }

    fn show(result: Result<Option<Match>>) -> String {
        match result {
            Err(failure) => failure.to_string(),
            Ok(None) => "none".to_owned(),
            Ok(Some(found)) => {
                let mut shown = format!("{}..{}", found.start, found.end);
                for capture in found.captures {
                    shown += &match capture {
                        Capture::Span { start, end } => format!(" {start}..{end}"),
                        Capture::Position(at) => format!(" @{at}"),
                    };
                }
                shown
            }
        }
    }

    fn find_freely(subject: &[u8], pattern: &[u8], from: usize) -> Result<Option<Match>> {
        find(subject, pattern, from, &mut Budget::new(&never))
    }

    fn gsub(subject: &str, pattern: &str, template: &str, max: usize) -> String {
        let subject = subject.as_bytes();
        let mut budget = Budget::new(&never);
        let mut replace = |found: &Match, out: &mut Vec<u8>| {
            expand(subject, found, template.as_bytes(), 1 << 20, out)
        };
        match substitute(subject, pattern.as_bytes(), max, &mut budget, &mut replace) {
            Ok((out, count)) => format!("{} {count}", String::from_utf8(out).unwrap()),
            Err(SubstituteError::Pattern(failure) | SubstituteError::Replace(failure)) => {
                failure.to_string()
            }
        }
    }

    /// What gmatch walks over: the first capture or the whole match of each.
    fn gmatch(subject: &str, pattern: &str, from: usize) -> Vec<String> {
        let mut budget = Budget::new(&never);
        let (mut at, mut last_end, mut walked) = (from, None, Vec::new());
        while let Some(found) =
            next(subject.as_bytes(), pattern.as_bytes(), at, last_end, &mut budget).unwrap()
        {
            walked.push(match found.captures.first() {
                None => subject[found.start..found.end].to_owned(),
                Some(&Capture::Span { start, end }) => subject[start..end].to_owned(),
                Some(Capture::Position(at)) => format!("@{at}"),
            });
            at = found.end;
            last_end = Some(at);
        }
        walked
    }

    /// What comes of `work` with a watch that says it is over when asked for the `patience`th
    /// time, and how often it was asked.
    fn watched<T>(
        patience: usize,
        work: impl FnOnce(&mut Budget<'_>) -> Result<T>,
    ) -> (Result<T>, usize) {
        let asked = Cell::new(0);
        let over = || {
            asked.set(asked.get() + 1);
            asked.get() >= patience
        };
        let result = work(&mut Budget::new(&over));
        (result, asked.get())
    }

    #[test]
    fn finds_what_lua_finds() {
        for &(pattern, subject, expected) in CASES {
            let shown = show(find_freely(subject, pattern, 0));
            let (pattern, subject) = (pattern.escape_ascii(), subject.escape_ascii());
            assert_eq!(shown, expected, "{pattern} in {subject}");
        }
    }

    #[test]
    fn begins_where_it_is_told() {
        for (pattern, from, expected) in [
            ("b", 1, "1..2"),
            ("b", 2, "4..5"),
            ("^b", 4, "4..5"),
            ("^b", 3, "none"),
            ("^b", 7, "none"),
            ("^", 6, "6..6"),
            ("", 6, "6..6"),
            ("", 7, "none"),
            ("[", 7, "none"),
            ("%f[b]", 1, "1..1"),
            ("%f[b]", 2, "4..4"),
        ] {
            assert_eq!(
                show(find_freely(b"abcabc", pattern.as_bytes(), from)),
                expected,
                "{pattern}"
            );
        }
    }

    #[test]
    fn classes_are_those_of_the_c_locale() {
        for (class, members) in
            [("a", 52), ("c", 33), ("d", 10), ("g", 94), ("l", 26), ("p", 32), ("s", 6)]
                .into_iter()
                .chain([("u", 26), ("w", 62), ("x", 22), ("z", 1)])
        {
            let counted = |class: u8| (0..=u8::MAX).filter(|&byte| in_class(byte, class)).count();
            let class = class.as_bytes()[0];
            assert_eq!(counted(class), members, "{}", char::from(class));
            assert_eq!(counted(class.to_ascii_uppercase()), 256 - members);
        }
    }

    #[test]
    fn substitutes_as_gsub() {
        for (subject, pattern, template, expected) in [
            ("abc", "%w*", "x", "x 1"),
            ("hello world", "o*", "x", "xhxexlxlx xwxrxlxdx 10"),
            ("", "", "x", "x 1"),
            ("abc", "", "-", "-a-b-c- 4"),
            ("abc", "b*", "-", "-a-c- 3"),
            ("hello", "^h", "J", "Jello 1"),
            ("hhh", "^h", "", "hh 1"),
            ("abc", "^", "x", "xabc 1"),
            ("abc", "^x*", "-", "-abc 1"),
            ("abc", "^b", "x", "abc 0"),
            ("abc", "$", "x", "abcx 1"),
            ("ab cd", "(%w)(%w)", "%2%1", "ba dc 2"),
            ("ab", "()", "%1", "1a2b3 3"),
            ("a=1, b=2", "(%w+)=(%w+)", "%2=%1%%", "1=a%, 2=b% 2"),
            ("a,b,,c", ",*", ";", ";a;b;c; 4"),
            ("abc", "b", "<%0%1>", "a<bb>c 1"),
            ("a b  c", "%s+", "", "abc 2"),
            ("aXb", "%f[%u].", "_", "a_b 1"),
            ("alo", ".", "%2", "invalid capture index %2"),
            ("alo", "(.)", "%2", "invalid capture index %2"),
            ("alo", ".", "%x", "invalid use of '%' in replacement string"),
            ("alo", ".", "%", "invalid use of '%' in replacement string"),
            ("alo", "x", "%", "alo 0"),
            ("alo", "(%0)", "a", "invalid capture index %0"),
            ("alo", "[", "a", "malformed pattern (missing ']')"),
            ("alo", "(a", "%1", "unfinished capture"),
        ] {
            assert_eq!(gsub(subject, pattern, template, usize::MAX), expected, "{pattern}");
        }
        assert_eq!(gsub("abc def", "%w+", "<%0>", 1), "<abc> def 1");
        assert_eq!(gsub("abc", "[", "x", 0), "abc 0");
        let mut refuse = |_: &Match, _: &mut Vec<u8>| Err("no");
        let refused = substitute(b"abc", b"b", 9, &mut Budget::new(&never), &mut refuse);
        assert_eq!(refused, Err(SubstituteError::Replace("no")));
    }

    #[test]
    fn walks_as_gmatch() {
        for (subject, pattern, expected) in [
            ("abc", "%w*", "abc"),
            ("hello world", "o*", "||||o||o|||"),
            ("one two", "%a+", "one|two"),
            ("a=1,b=2", "%w=(%w)", "1|2"),
            ("abc", "", "|||"),
            ("", "x*", ""),
            ("^a^a", "^a", "^a|^a"),
            ("aab", "a-", "|||"),
            ("THE (quick) fox", "%((%a+)%)", "quick"),
            ("ab", "()", "@0|@1|@2"),
        ] {
            assert_eq!(gmatch(subject, pattern, 0).join("|"), expected, "{pattern}");
        }
        assert_eq!(gmatch("one two", "%a+", 2), ["e", "two"]);
        assert!(gmatch("abc", "x", 0).is_empty());
        assert!(gmatch("abc", "", 4).is_empty());
    }

    #[test]
    fn limits_are_those_of_lua() {
        let subject = vec![b'a'; 300];
        let run = |pattern: String| find_freely(&subject, pattern.as_bytes(), 0);
        assert_eq!(run("a?".repeat(199)).unwrap().unwrap().end, 199);
        assert_eq!(run("a?".repeat(200)), Err(Failure::TooComplex));
        assert_eq!(run("()".repeat(32)).unwrap().unwrap().captures.len(), 32);
        assert_eq!(run("(a)".repeat(32)).unwrap().unwrap().end, 32);
        assert_eq!(show(run("()".repeat(33))), "too many captures");
        assert_eq!(show(run("(".repeat(33))), "too many captures");
        assert_eq!(Failure::TooComplex.to_string(), "pattern too complex");
    }

    #[test]
    fn the_deepest_recursion_fits_a_small_stack() {
        let deep = || {
            for items in ["a?b?", "a-%l-", "[ab]?%l?", "a*b*", "a+b+", "[ac]*[bc]*"] {
                let pattern = items.repeat(101);
                let subject = b"ab".repeat(300);
                let failure = find_freely(&subject, pattern.as_bytes(), 0).unwrap_err();
                assert_eq!(failure, Failure::TooComplex, "{items}");
            }
        };
        std::thread::Builder::new().stack_size(512 * 1024).spawn(deep).unwrap().join().unwrap();
    }

    #[test]
    fn hostile_patterns_end_when_time_is_over() {
        let long = vec![b'a'; 30_000];
        let open = vec![b'('; 30_000];
        let many = "%d".repeat(3000);
        let patterns = [
            (&long, "a*a*a*a*b".to_owned()),
            (&long, "a+a+a+b".to_owned()),
            (&long, ".-.-.-.-b".to_owned()),
            (&long, "a?".repeat(40) + "%d"),
            (&long, "(a*)(a*)%1%2b".to_owned()),
            (&long, "%f[a]a*.*.*b".to_owned()),
            (&long, "[ab]*[a-z]*[^b]*b".to_owned()),
            (&long, format!("[{many}a]*b")),
            (&long, format!("a[^{many}]-b")),
            (&open, "%b()".to_owned()),
            (&open, ".-%b()".to_owned()),
        ];
        for (subject, pattern) in &patterns {
            let pattern = pattern.as_bytes();
            let told = pattern.escape_ascii().to_string();
            let (result, asked) = watched(50, |budget| find(subject, pattern, 0, budget));
            assert_eq!((result, asked), (Err(Failure::Over), 50), "{told}");
            let (result, asked) = watched(50, |budget| next(subject, pattern, 0, None, budget));
            assert_eq!(asked, 50, "{told}");
            assert!(result.is_err(), "{told}");
            let (result, _) = watched(50, |budget| {
                let mut keep = |_: &Match, _: &mut Vec<u8>| Ok::<(), Failure>(());
                Ok(substitute(subject, pattern, usize::MAX, budget, &mut keep))
            });
            assert_eq!(result, Ok(Err(SubstituteError::Pattern(Failure::Over))), "{told}");
        }
    }

    #[test]
    fn calls_that_share_a_budget_add_up() {
        let (result, asked) = watched(3, |budget| {
            (0..100_000).try_for_each(|_| find(b"aaab", b"a-b", 0, budget).map(|_| ()))
        });
        assert_eq!((result, asked), (Err(Failure::Over), 3));
    }

    #[test]
    fn tells_plain_patterns() {
        for plain in ["", "abc", "a b\0c", ")", "]", "a,b"] {
            assert!(is_plain(plain.as_bytes()), "{plain}");
        }
        for special in "^$*+?.([%-".chars() {
            assert!(!is_plain(format!("a{special}").as_bytes()), "{special}");
        }
    }

    #[test]
    fn finds_plain_text_as_a_search_by_windows_does() {
        let mut seed = 1_u32;
        let mut random = |below: u32| {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (seed >> 16) % below
        };
        for _ in 0..20_000 {
            let [subject, needle] = [24, 7].map(|length| {
                (0..random(length)).map(|_| b"ab"[random(2) as usize]).collect::<Vec<_>>()
            });
            let from = random(26) as usize;
            let expected = (from..=subject.len()).find(|&at| subject[at..].starts_with(&needle));
            let found = find_plain(&subject, &needle, from, &mut Budget::new(&never));
            assert_eq!(found, Ok(expected), "{needle:?} in {subject:?} from {from}");
        }
    }

    #[test]
    fn plain_search_is_linear_and_watched() {
        let subject = vec![b'a'; 1_000_000];
        let mut needle = vec![b'a'; 500_000];
        needle.push(b'b');
        let (result, asked) = watched(300, |budget| find_plain(&subject, &needle, 0, budget));
        assert_eq!(result, Ok(None));
        assert!((200..300).contains(&asked), "{asked}");
        let (result, asked) = watched(7, |budget| find_plain(&subject, &needle, 0, budget));
        assert_eq!((result, asked), (Err(Failure::Over), 7));
    }
}
