//! One running text of an answer: how much of it is known to be fine, and which placeholders it has.

use std::{collections::VecDeque, ops::Range, sync::Arc};

use super::vault::Vault;
use crate::{config::plan::DenyPlan, dialect::texts::Part, wire::pattern::Table};

/// Bytes of a text that are kept behind what is known to be fine, for patterns that look at what stands
/// before a match.
const CONTEXT: usize = 4;

/// What is looked for in an answer.
pub struct Rules {
    pub denied: Vec<Denied>,
    pub vault: Option<Vault>,
}

/// An entry of `deny`, and its memory.
pub struct Denied {
    pub plan: Arc<DenyPlan>,
    pub table: Table,
}

/// The number of an entry of [`Rules::denied`] that has found something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hit(pub usize);

/// A placeholder in a running text, and the number of its value. Offsets are those of the whole text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Swap {
    pub range: Range<usize>,
    pub value: usize,
}

/// A running text.
#[derive(Default)]
pub struct Running {
    pub group: u64,
    /// The end of the text: that which is not known to be fine, and a little before it.
    text: String,
    /// The offset of `text` in the whole text.
    base: usize,
    /// Up to this offset in the whole text everything is decided.
    safe: usize,
    /// Placeholders that are decided, in their order.
    pub swaps: VecDeque<Swap>,
    /// Nothing is replaced in it.
    pub sealed: bool,
    pub part: Option<Part>,
}

impl Running {
    /// The offset of the end of what has come.
    pub fn end(&self) -> usize {
        self.base + self.text.len()
    }

    /// Up to this offset everything is decided.
    pub fn safe(&self) -> usize {
        self.safe
    }

    /// Takes the next piece.
    pub fn grow(&mut self, piece: &str) {
        self.text.push_str(piece);
    }

    /// Decides as much as can be decided; `over`: all, because no more comes.
    ///
    /// # Errors
    /// The entry whose pattern stands there.
    pub fn settle(&mut self, rules: &mut Rules, over: bool) -> Result<(), Hit> {
        let from = self.safe - self.base;
        let mut fine = self.text.len();
        if self.part != Some(Part::Echo) {
            for (i, denied) in rules.denied.iter_mut().enumerate() {
                let first = self.look(denied, from, over).ok_or(Hit(i))?;
                fine = fine.min(first);
            }
        }
        if let Some(vault) = rules.vault.as_ref().filter(|_| !self.sealed) {
            let found = placeholders(&self.text, from..fine, vault, over);
            fine = found.fine;
            let base = self.base;
            self.swaps.extend(
                found.swaps.into_iter().map(|(range, value)| Swap {
                    range: base + range.start..base + range.end,
                    value,
                }),
            );
        }
        self.safe = self.base + fine;
        let mut old = fine.saturating_sub(CONTEXT);
        while !self.text.is_char_boundary(old) {
            old -= 1;
        }
        self.text.drain(..old);
        self.base += old;
        Ok(())
    }

    /// The offset up to which an entry has no objection; `None` if its pattern stands there.
    fn look(&self, denied: &mut Denied, from: usize, over: bool) -> Option<usize> {
        let (text, length) = (self.text.as_str(), self.text.len());
        let mut window = length.saturating_sub(denied.plan.window).max(from);
        while !text.is_char_boundary(window) {
            window += 1;
        }
        if let Some((_, found)) = denied.plan.patterns.find(text, from) {
            // What touches the end may go on, and be no match then.
            let decided = over || found.end < length || found.start < window;
            if decided {
                return None;
            }
        }
        if over {
            return Some(length);
        }
        Some(denied.plan.patterns.beginning(&mut denied.table, text, window))
    }
}

/// The placeholders of a part of a text.
pub struct Placeholders {
    pub swaps: Vec<(Range<usize>, usize)>,
    /// Up to this offset everything is decided.
    pub fine: usize,
}

/// Finds the placeholders that lie in this range of a text. One that may go on behind the end of the text
/// ends what is decided, and so does one that goes beyond the range; `over`: no more text comes.
pub fn placeholders(text: &str, within: Range<usize>, vault: &Vault, over: bool) -> Placeholders {
    let mut found = Placeholders { swaps: Vec::new(), fine: within.end };
    let mut at = within.start;
    while let Some(n) = memchr::memchr(b'[', &text.as_bytes()[at.min(within.end)..within.end]) {
        let start = at + n;
        at = match vault.at_start(&text[start..]) {
            Some((value, length)) if start + length <= within.end => {
                found.swaps.push((start..start + length, value));
                start + length
            }
            None if over || !vault.may_begin(&text[start..]) => start + 1,
            _ => {
                found.fine = start;
                break;
            }
        };
    }
    found
}
