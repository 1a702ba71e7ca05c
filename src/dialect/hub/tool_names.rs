//! Names of tools that a backend would refuse: they are changed for it, the same way each time, and
//! changed back in its answers.

use sha2::{Digest, Sha256};

/// A name of `[a-zA-Z0-9_-]` that is not longer than `longest`; the same for the same name. `taken`
/// tells which are in use by other tools.
pub fn allowed(name: &str, longest: usize, taken: impl Fn(&str) -> bool) -> String {
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
    if !name.is_empty() && name.len() <= longest && name.chars().all(good) {
        return name.to_owned();
    }
    let plain: String = name.chars().map(|c| if good(c) { c } else { '_' }).collect();
    if !plain.is_empty() && plain.len() <= longest && !taken(&plain) {
        return plain;
    }
    let digest = hash(name);
    let kept: String = plain.chars().take(longest.saturating_sub(digest.len() + 1)).collect();
    format!("{kept}_{digest}")
}

/// Eight characters that stand for a text.
pub fn hash(text: &str) -> String {
    hex(text, 8)
}

/// The id of a call for which the backend has said none: the same for the same place in the same
/// answer.
pub fn call_id(answer: &str, choice: u32, part: u32) -> String {
    format!("call_{}", hex(&format!("{answer}/{choice}/{part}"), 24))
}

fn hex(text: &str, digits: usize) -> String {
    let digest = Sha256::digest(text.as_bytes());
    let mut all: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    all.truncate(digits);
    all
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn good_names_stay() {
        assert_eq!(allowed("get_weather-2", 64, |_| true), "get_weather-2");
        assert_eq!(allowed("mcp.files/read", 64, |_| false), "mcp_files_read");
        assert_ne!(allowed("mcp.files/read", 64, |_| true), "mcp_files_read");
    }

    proptest! {
        #[test]
        fn every_name_becomes_allowed_and_always_the_same(name in ".{0,100}", taken: bool) {
            let out = allowed(&name, 64, |_| taken);
            prop_assert!((1..=64).contains(&out.len()), "{}", out);
            prop_assert!(out.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-'));
            prop_assert_eq!(allowed(&name, 64, |_| taken), out);
        }
    }
}
