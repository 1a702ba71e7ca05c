//! Patterns in texts, also in texts that arrive in pieces. They are regular expressions whose time is linear
//! in the text: what a text may cost does not depend on who wrote it.

use std::{fmt, ops::Range};

use regex_automata::{
    Anchored, Input, MatchKind,
    hybrid::dfa::{Cache, DFA},
    meta::Regex,
    nfa::thompson::{self, WhichCaptures},
    util::syntax,
};
use regex_syntax::hir::{Hir, HirKind, Repetition};

/// The most memory of compiled patterns, in bytes: of a few thousand words, or of about `\w{1000}`.
const LARGEST: usize = 32 << 20;

/// The most memory of the table that finds beginnings, in bytes, of each answer that is looked through.
const TABLE: usize = 256 << 10;

/// Compiled patterns. One of them that stands further ahead in the list takes precedence.
#[derive(Clone)]
pub struct Patterns {
    regex: Regex,
    begins: DFA,
    count: usize,
}

/// Why a pattern cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadPattern {
    /// Its place in the list.
    pub at: usize,
    pub why: String,
}

impl Patterns {
    /// Compiles patterns.
    ///
    /// # Errors
    /// If one of them is no pattern, is too large or matches a text without characters.
    pub fn new(patterns: &[String]) -> Result<Self, BadPattern> {
        let mut whole = Vec::with_capacity(patterns.len());
        for (at, pattern) in patterns.iter().enumerate() {
            let bad = |why: String| BadPattern { at, why };
            let hir = syntax::parse(pattern).map_err(|e| bad(reason(&e.to_string())))?;
            if hir.properties().minimum_len().is_none_or(|length| length == 0) {
                return Err(bad("matches a text without characters".to_owned()));
            }
            whole.push(hir);
        }
        let compiled = compile(&whole).and_then(|regex| Ok((regex, beginnings(&whole)?)));
        let (regex, begins) = compiled.map_err(|why| {
            let alone = |hir: &Hir| compile(std::slice::from_ref(hir)).is_err();
            let last = whole.len().saturating_sub(1);
            BadPattern { at: whole.iter().position(alone).unwrap_or(last), why }
        })?;
        Ok(Self { regex, begins, count: patterns.len() })
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The first match that begins at `from` or later: the place of its pattern in the list, and its own.
    /// What stands before `from` is seen by `^` and `\b`.
    pub fn find(&self, text: &str, from: usize) -> Option<(usize, Range<usize>)> {
        let found = self.regex.search(&Input::new(text).span(from..text.len()))?;
        Some((found.pattern().as_usize(), found.range()))
    }

    /// All matches that do not overlap, in their order.
    pub fn find_all<'a>(
        &'a self,
        text: &'a str,
    ) -> impl Iterator<Item = (usize, Range<usize>)> + 'a {
        self.regex.find_iter(text).map(|found| (found.pattern().as_usize(), found.range()))
    }

    /// A table for [`Self::beginning`].
    pub fn table(&self) -> Table {
        Table(self.begins.create_cache())
    }

    /// The first offset, `from` or later, from which on the rest of the text may be the beginning of a match
    /// that ends behind the text, or a match that more text could undo (`\bno\b` before `w`); the length of
    /// the text if there is none. Takes a time of the square of the length in the worst case, so that callers
    /// pass the end of a text only.
    pub fn beginning(&self, table: &mut Table, text: &str, from: usize) -> usize {
        let starts = text[from..].char_indices().map(|(at, _)| from + at);
        let mut alive = starts.filter(|start| self.is_alive(&mut table.0, text, *start));
        alive.next().unwrap_or(text.len())
    }

    fn is_alive(&self, cache: &mut Cache, text: &str, start: usize) -> bool {
        let input = Input::new(text).span(start..text.len()).anchored(Anchored::Yes);
        let Ok(mut state) = self.begins.start_state_forward(cache, &input) else { return true };
        for byte in &text.as_bytes()[start..] {
            match self.begins.next_state(cache, state, *byte) {
                Ok(next) if next.is_dead() => return false,
                Ok(next) => state = next,
                Err(_) => return true,
            }
        }
        true
    }
}

impl fmt::Debug for Patterns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} patterns", self.count)
    }
}

/// The memory of a search for beginnings.
#[derive(Debug)]
pub struct Table(Cache);

/// The last line of an error that shows the pattern in several.
fn reason(error: &str) -> String {
    let last = error.lines().rfind(|line| !line.trim().is_empty()).unwrap_or(error);
    last.trim().trim_start_matches("error: ").to_owned()
}

fn compile(patterns: &[Hir]) -> Result<Regex, String> {
    let config = Regex::config().nfa_size_limit(Some(LARGEST));
    let built = Regex::builder().configure(config).build_many_from_hir(patterns);
    built.map_err(|e| match e.size_limit() {
        Some(limit) => format!("takes more than {limit} bytes when it is compiled"),
        None => reason(&e.to_string()),
    })
}

/// What finds beginnings: the patterns without `^`, `$` and `\b`, which only make them match less. Every
/// alternative is followed, because a later text may rule out the preferred one.
fn beginnings(patterns: &[Hir]) -> Result<DFA, String> {
    let patterns: Vec<Hir> = patterns.iter().map(without_looks).collect();
    let config =
        thompson::Config::new().nfa_size_limit(Some(LARGEST)).which_captures(WhichCaptures::None);
    let nfa = thompson::Compiler::new().configure(config).build_many_from_hir(&patterns);
    let nfa = nfa.map_err(|e| reason(&e.to_string()))?;
    let config = DFA::config()
        .match_kind(MatchKind::All)
        .cache_capacity(TABLE)
        .skip_cache_capacity_check(true);
    let built = DFA::builder().configure(config).build_from_nfa(nfa);
    built.map_err(|e| reason(&e.to_string()))
}

fn without_looks(hir: &Hir) -> Hir {
    match hir.kind() {
        HirKind::Look(_) => Hir::empty(),
        HirKind::Empty | HirKind::Literal(_) | HirKind::Class(_) => hir.clone(),
        HirKind::Capture(capture) => without_looks(&capture.sub),
        HirKind::Repetition(repetition) => Hir::repetition(Repetition {
            sub: Box::new(without_looks(&repetition.sub)),
            ..repetition.clone()
        }),
        HirKind::Concat(parts) => Hir::concat(parts.iter().map(without_looks).collect()),
        HirKind::Alternation(parts) => Hir::alternation(parts.iter().map(without_looks).collect()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn patterns(list: &[&str]) -> Patterns {
        let list: Vec<String> = list.iter().map(|p| (*p).to_owned()).collect();
        Patterns::new(&list).unwrap()
    }

    #[test]
    fn finds_the_first_match() {
        let found = patterns(&["b+", "(?i)SECRET"]);
        assert_eq!(found.find("a secret bb", 0), Some((1, 2..8)));
        assert_eq!(found.find("a secret bb", 3), Some((0, 9..11)));
        assert_eq!(found.find_all("bab").count(), 2);
    }

    #[test]
    fn says_what_is_wrong() {
        for (bad, why) in [
            ("a(", "unclosed group"),
            ("a*", "matches a text without characters"),
            (r"\b", "matches a text without characters"),
            (r"(?:\w{100}){100}", "takes more than"),
            (r"(a)\1", "backreferences are not supported"),
        ] {
            let error = Patterns::new(&["fine".to_owned(), bad.to_owned()]).unwrap_err();
            assert!(error.at == 1 && error.why.contains(why), "{bad}: {error:?}");
        }
    }

    #[test]
    fn knows_what_may_be_a_beginning() {
        for (pattern, text, begins) in [
            ("secret", "the sec", 4),
            ("secret", "the sex", 7),
            ("secret", "", 0),
            ("secret", "ssse", 2),
            // A match that nothing can undo is found by `find`; until then it is a beginning.
            ("secret", "a secret", 2),
            ("secret", "a secrets ", 10),
            (r"\bno\b", "is no", 3),
            (r"\bno\b", "ä no", 3),
            (r"a\b|abcd", "abc", 0),
            ("x.{2,5}y", "1x345", 1),
            ("x.{2,5}y", "1x3456789", 9),
            ("(?i)geheim|绝密", "这是绝", 6),
        ] {
            let patterns = patterns(&[pattern]);
            let mut table = patterns.table();
            assert_eq!(patterns.beginning(&mut table, text, 0), begins, "{pattern} in {text}");
        }
    }
}
