//! Patterns of model names with `*` and `?` anywhere.

use std::str::Chars;

/// A pattern: `*` stands for any text, also for none and for slashes, and `?` for one character.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Glob(Vec<char>);

impl Glob {
    pub fn new(pattern: &str) -> Self {
        Self(pattern.chars().collect())
    }

    /// Whether a name is what the pattern describes. Case-sensitive.
    pub fn matches(&self, name: &str) -> bool {
        let (mut at, mut rest) = (0, name.chars());
        // The last `*`: what follows it in the pattern, and in the name if it stood for one more.
        let mut star: Option<(usize, Chars<'_>)> = None;
        loop {
            let here = rest.clone();
            match (self.0.get(at), rest.next()) {
                (Some('*'), _) => {
                    at += 1;
                    rest = here;
                    star = Some((at, rest.clone()));
                }
                (Some('?'), Some(_)) => at += 1,
                (Some(wanted), Some(found)) if *wanted == found => at += 1,
                (None, None) => return true,
                _ => {
                    let Some((after, skipped)) = &mut star else { return false };
                    if skipped.next().is_none() {
                        return false;
                    }
                    (at, rest) = (*after, skipped.clone());
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn stars_stand_for_any_text() {
        for (pattern, fits, fits_not) in [
            ("*", &["", "a", "Qwen/Qwen3-8B"][..], &[][..]),
            ("gpt-4o", &["gpt-4o"], &["gpt-4", "gpt-4o-mini", "GPT-4O", ""]),
            ("gpt-*", &["gpt-", "gpt-4o"], &["gpt", "a-gpt-4o"]),
            ("*-mini", &["gpt-4o-mini", "-mini"], &["mini", "gpt-mini-4o"]),
            ("*/Qwen*-?B", &["Qwen/Qwen3-8B", "/Qwen-xB"], &["Qwen/Qwen3-72B", "Qwen3-8B"]),
            ("a*b*c", &["abc", "axbxbxc"], &["ab", "abcx", "acb"]),
            ("??", &["ab", "äö"], &["a", "abc", ""]),
            ("", &[""], &["a"]),
        ] {
            for name in fits {
                assert!(Glob::new(pattern).matches(name), "{pattern} {name}");
            }
            for name in fits_not {
                assert!(!Glob::new(pattern).matches(name), "{pattern} {name}");
            }
        }
    }

    /// The same by recursion.
    fn plainly(pattern: &[char], name: &[char]) -> bool {
        match (pattern.split_first(), name.split_first()) {
            (None, None) => true,
            (Some(('*', after)), None) => plainly(after, name),
            (Some(('*', after)), Some((_, rest))) => plainly(after, name) || plainly(pattern, rest),
            (Some((wanted, after)), Some((found, rest))) => {
                (*wanted == '?' || wanted == found) && plainly(after, rest)
            }
            _ => false,
        }
    }

    proptest! {
        #[test]
        fn every_pattern_is_read_alike(pattern in "[ab*?]{0,8}", name in "[ab]{0,8}") {
            let chars = |text: &str| text.chars().collect::<Vec<_>>();
            prop_assert_eq!(
                Glob::new(&pattern).matches(&name),
                plainly(&chars(&pattern), &chars(&name))
            );
        }
    }
}
