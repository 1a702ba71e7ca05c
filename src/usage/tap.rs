//! Metering a plain JSON answer as it passes: a tap that keeps only the `usage` object, however
//! the answer is cut and however large it is.

use crate::{
    base::{TokenCounts, UsageSource},
    usage::counts,
};

/// A `usage` object larger than this is not one of ours.
const MAX_USAGE: usize = 16 * 1024;
/// The longest string that is compared with a key; longer ones are only passed over.
const MAX_WORD: usize = 16;

/// Watches one JSON document that arrives in pieces.
#[derive(Default)]
pub struct JsonTap {
    depth: usize,
    in_string: bool,
    escaped: bool,
    /// The string being read, or the last one read; cut off at [`MAX_WORD`].
    word: Vec<u8>,
    word_cut: bool,
    /// The key whose value comes next.
    key: Key,
    /// The bytes of the top-level `usage` value, while it is being read.
    usage: Option<Vec<u8>>,
    counts: Option<TokenCounts>,
    aborted: bool,
}

#[derive(Clone, Copy, Default, PartialEq)]
enum Key {
    #[default]
    Other,
    Usage,
    FinishReason,
}

impl JsonTap {
    /// Takes the next piece of the document.
    pub fn push(&mut self, piece: &[u8]) {
        let mut i = 0;
        while i < piece.len() {
            let from = i;
            if self.in_string {
                i += self.string(&piece[i..]);
            } else {
                self.structure(piece[i]);
                i += 1;
            }
            if let Some(kept) = &mut self.usage {
                kept.extend_from_slice(&piece[from..i]);
                if kept.len() > MAX_USAGE {
                    self.usage = None;
                    self.key = Key::Other;
                } else if self.depth == 1 && !self.in_string && kept.ends_with(b"}") {
                    let kept = self.usage.take().unwrap_or_default();
                    self.counts = counts::read(&kept).or(self.counts);
                    self.key = Key::Other;
                }
            }
        }
    }

    /// The counts, once they have passed.
    pub fn usage(&self) -> (TokenCounts, UsageSource) {
        match self.counts {
            Some(counts) => (counts, UsageSource::Final),
            None => (TokenCounts::default(), UsageSource::None),
        }
    }

    /// The engine broke the generation off.
    pub fn aborted(&self) -> bool {
        self.aborted
    }

    /// Reads on in a string; returns how many bytes it took.
    fn string(&mut self, rest: &[u8]) -> usize {
        if self.escaped {
            self.escaped = false;
            return 1;
        }
        let n = memchr::memchr2(b'"', b'\\', rest).unwrap_or(rest.len());
        let room = MAX_WORD.saturating_sub(self.word.len());
        self.word.extend_from_slice(&rest[..n.min(room)]);
        self.word_cut |= n > room;
        match rest.get(n) {
            None => n,
            Some(b'\\') => {
                self.escaped = true;
                self.word_cut = true;
                n + 1
            }
            Some(_) => {
                self.in_string = false;
                self.string_ended();
                n + 1
            }
        }
    }

    fn string_ended(&mut self) {
        if self.key == Key::FinishReason && !self.word_cut {
            self.aborted |= self.word == b"abort" || self.word == b"error";
        }
    }

    fn structure(&mut self, byte: u8) {
        match byte {
            b'"' => {
                self.in_string = true;
                self.word.clear();
                self.word_cut = false;
            }
            b':' if self.usage.is_none() => {
                self.key = match (&self.word[..], self.depth, self.word_cut) {
                    (b"usage", 1, false) => Key::Usage,
                    (b"finish_reason", 3, false) => Key::FinishReason,
                    _ => Key::Other,
                };
            }
            b'{' | b'[' => {
                if self.key == Key::Usage && self.depth == 1 && byte == b'{' && self.usage.is_none()
                {
                    self.usage = Some(Vec::with_capacity(256));
                }
                self.depth += 1;
                if self.usage.is_none() {
                    self.key = Key::Other;
                }
            }
            b'}' | b']' => self.depth = self.depth.saturating_sub(1),
            b',' if self.usage.is_none() => self.key = Key::Other,
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ANSWER: &str = r#"{"id":"x","choices":[{"index":0,"message":{"content":"\"usage\":{\"prompt_tokens\":9}",
        "usage":{"prompt_tokens":8}},"finish_reason":"stop"}],"usage": {"prompt_tokens":21,"total_tokens":33,
        "completion_tokens":12,"prompt_tokens_details":{"cached_tokens":3}},"metrics":null}"#;

    #[test]
    fn finds_the_usage_of_the_answer_and_no_other() {
        let mut tap = JsonTap::default();
        tap.push(ANSWER.as_bytes());
        let counts = TokenCounts {
            prompt: 21,
            completion: 12,
            total: 33,
        };
        assert_eq!(tap.usage(), (counts, UsageSource::Final));
        assert!(!tap.aborted());
    }

    #[test]
    fn null_usage_is_none() {
        let mut tap = JsonTap::default();
        tap.push(br#"{"usage":null,"x":{"prompt_tokens":1}}"#);
        assert_eq!(tap.usage().1, UsageSource::None);
    }

    #[test]
    fn sees_an_abort() {
        let mut tap = JsonTap::default();
        tap.push(br#"{"choices":[{"text":"finish_reason","finish_reason" : "abort"}]}"#);
        assert!(tap.aborted());
        let mut tap = JsonTap::default();
        tap.push(br#"{"choices":[{"finish_reason":null,"text":"abort"}]}"#);
        assert!(!tap.aborted());
    }

    proptest! {
        #[test]
        fn any_split_gives_the_same_counts(mut cuts in proptest::collection::vec(0usize..400, 0..8)) {
            let whole = ANSWER.as_bytes();
            cuts.sort_unstable();
            let mut tap = JsonTap::default();
            let mut at = 0;
            for cut in cuts {
                let cut = cut.min(whole.len());
                tap.push(&whole[at..cut]);
                at = cut;
            }
            tap.push(&whole[at..]);
            prop_assert_eq!(tap.usage().0.total, 33);
        }
    }
}
