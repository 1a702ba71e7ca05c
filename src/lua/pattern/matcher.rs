//! The backtracking matcher, without recursion.

use std::ops::RangeInclusive;

use super::{
    budget::Budget,
    class::in_class,
    failure::{Failure, Result, malformed, no_such_capture},
};

/// `LUA_MAXCAPTURES`.
const MAX_CAPTURES: usize = 32;
/// `MAXCCALLS`. Nothing recurses here, but scripts get the same error as in Lua.
const MAX_DEPTH: usize = 200;

/// The capture of a pair of parentheses, in byte offsets from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Capture {
    /// A piece of the subject.
    Span {
        start: usize,
        /// Exclusive.
        end: usize,
    },
    /// The position of `()`. It counts from 0 too, unlike in scripts.
    Position(usize),
}

/// A match, in byte offsets from 0.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Match {
    pub start: usize,
    /// Exclusive.
    pub end: usize,
    /// In the order of the pattern; empty if it has none.
    pub captures: Vec<Capture>,
}

/// A position in the subject, and the position in the pattern that has to match there.
type Position = (usize, usize);

/// What to do on backtracking to a choice.
enum Choice {
    /// Remove the newest capture.
    Open,
    /// Reopen this capture.
    Close(usize),
    /// Continue at another position.
    Elsewhere(Position),
    /// Match one fewer, down to `least`, and continue at `p`.
    Fewer { least: usize, s: usize, p: usize },
    /// Match one more of the item from `p` to `end`.
    More { s: usize, p: usize, end: usize },
}

/// In all functions `s` is a position in the subject and `p` one in the pattern. A mistake in the
/// pattern is reported only when the matching reaches it, as in Lua.
pub(super) struct Matcher<'m, 'b> {
    subject: &'m [u8],
    pattern: &'m [u8],
    budget: &'m mut Budget<'b>,
    /// The start of each capture, and the capture itself if it is closed.
    slots: Vec<(usize, Option<Capture>)>,
    /// The choices to backtrack to. Lua's matcher recurses for each of them.
    trail: Vec<Choice>,
}

impl<'m, 'b> Matcher<'m, 'b> {
    pub(super) fn new(subject: &'m [u8], pattern: &'m [u8], budget: &'m mut Budget<'b>) -> Self {
        Self { subject, pattern, budget, slots: Vec::new(), trail: Vec::new() }
    }

    /// The first match that begins in `starts` and does not end at `last_end`.
    pub(super) fn search(
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

    /// The byte of the pattern at `p`, or the zero at the end of a C string.
    fn at(&self, p: usize) -> u8 {
        self.pattern.get(p).copied().unwrap_or(0)
    }

    /// The end of the match that begins at `start`, if there is one.
    fn end_from(&mut self, start: usize) -> Result<Option<usize>> {
        self.slots.clear();
        self.trail.clear();
        let mut position = Some((start, 0));
        loop {
            self.budget.spend(1)?;
            position = match position {
                Some((s, p)) if p == self.pattern.len() => return Ok(Some(s)),
                Some((s, p)) => self.step(s, p)?,
                None => match self.trail.pop() {
                    Some(choice) => self.backtrack(choice)?,
                    None => return Ok(None),
                },
            };
        }
    }

    /// Matches one item of the pattern; `None` if it does not match.
    fn step(&mut self, s: usize, p: usize) -> Result<Option<Position>> {
        match (self.at(p), self.at(p + 1)) {
            (b'(', b')') => self.open(s, p + 2, Some(Capture::Position(s))),
            (b'(', _) => self.open(s, p + 1, None),
            (b')', _) => self.close(s, p + 1),
            (b'$', _) if p + 1 == self.pattern.len() => {
                Ok((s == self.subject.len()).then_some((s, p + 1)))
            }
            (b'%', b'b') => Ok(self.balanced(s, p + 2)?.map(|s| (s, p + 4))),
            (b'%', b'f') => Ok(self.frontier(s, p + 2)?.map(|p| (s, p))),
            (b'%', digit @ b'0'..=b'9') => Ok(self.back_reference(s, digit)?.map(|s| (s, p + 2))),
            _ => self.repeated(s, p),
        }
    }

    /// Backtracks to a choice.
    fn backtrack(&mut self, choice: Choice) -> Result<Option<Position>> {
        match choice {
            Choice::Open => _ = self.slots.pop(),
            Choice::Close(index) => self.slots[index].1 = None,
            Choice::Elsewhere(place) => return Ok(Some(place)),
            Choice::Fewer { least, s, p } if s > least => {
                return self.choose(Choice::Fewer { least, s: s - 1, p }, (s - 1, p));
            }
            Choice::More { s, p, end } if self.single(s, p, end)? => {
                return self.choose(Choice::More { s: s + 1, p, end }, (s + 1, end + 1));
            }
            Choice::Fewer { .. } | Choice::More { .. } => {}
        }
        Ok(None)
    }

    fn choose(&mut self, choice: Choice, next: Position) -> Result<Option<Position>> {
        // In Lua the match itself is the first call.
        if self.trail.len() + 1 == MAX_DEPTH {
            return Err(Failure::TooComplex);
        }
        self.trail.push(choice);
        Ok(Some(next))
    }

    /// Matches an item for one byte with its quantifier.
    fn repeated(&mut self, s: usize, p: usize) -> Result<Option<Position>> {
        let end = self.item_end(p)?;
        match (self.at(end), self.single(s, p, end)?) {
            (b'?', true) => self.choose(Choice::Elsewhere((s, end + 1)), (s + 1, end + 1)),
            (b'+', true) => self.longest(s + 1, p, end),
            (b'*', true) => self.longest(s, p, end),
            (b'-', true) => self.choose(Choice::More { s, p, end }, (s, end + 1)),
            (b'?' | b'*' | b'-', false) => Ok(Some((s, end + 1))),
            (_, true) => Ok(Some((s + 1, end))),
            (_, false) => Ok(None),
        }
    }

    fn longest(&mut self, least: usize, p: usize, end: usize) -> Result<Option<Position>> {
        let mut s = least;
        while self.single(s, p, end)? {
            self.budget.spend(1)?;
            s += 1;
        }
        self.choose(Choice::Fewer { least, s, p: end + 1 }, (s, end + 1))
    }

    fn open(&mut self, s: usize, p: usize, caught: Option<Capture>) -> Result<Option<Position>> {
        if self.slots.len() == MAX_CAPTURES {
            return Err(malformed("too many captures"));
        }
        self.slots.push((s, caught));
        self.choose(Choice::Open, (s, p))
    }

    fn close(&mut self, s: usize, p: usize) -> Result<Option<Position>> {
        let innermost = self.slots.iter().rposition(|slot| slot.1.is_none());
        let index = innermost.ok_or_else(|| malformed("invalid pattern capture"))?;
        self.slots[index].1 = Some(Capture::Span { start: self.slots[index].0, end: s });
        self.choose(Choice::Close(index), (s, p))
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
            // `close` is compared first, because both may be the same.
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

    fn back_reference(&mut self, s: usize, digit: u8) -> Result<Option<usize>> {
        let index = usize::from(digit).wrapping_sub(usize::from(b'1'));
        let caught = match self.slots.get(index) {
            Some(&(_, Some(Capture::Span { start, end }))) => &self.subject[start..end],
            // A position capture matches nothing, but is no mistake in Lua.
            Some((_, Some(Capture::Position(_)))) => return Ok(None),
            Some((_, None)) | None => return Err(no_such_capture(digit)),
        };
        self.budget.spend(caught.len())?;
        Ok(self.subject[s..].starts_with(caught).then_some(s + caught.len()))
    }

    /// Whether the byte at `s` matches the item from `p` to `end`.
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

    /// The end of the single-byte item at `p`.
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
            // The first byte is skipped before the test for the end: a `]` there is a member.
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

    /// Whether `byte` is in the set from `p` to `end`.
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
