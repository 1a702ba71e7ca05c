//! The text that the simulated model generates, and its tokenizer.

/// The tokens, repeated in this order.
const WORDS: [&str; 12] =
    ["Hello", "!", " I", " am", " a", " simulated", " model", ",", " and", " I", " count", "."];

/// The reasoning before an answer.
pub const REASONING: &str = "The user wants me to think. I think briefly.";

/// Bytes of a prompt per token.
pub const BYTES_PER_TOKEN: usize = 4;

/// The token at an index of an answer.
pub fn token(at: u64) -> &'static str {
    WORDS[(at % WORDS.len() as u64) as usize]
}

/// The number of tokens of a prompt: one per four bytes, plus one.
pub fn prompt_tokens(prompt_bytes: usize) -> u64 {
    (prompt_bytes / BYTES_PER_TOKEN) as u64 + 1
}

/// The tokens of a text: words with the space before them, and every other character for itself.
pub fn pieces(text: &str) -> Vec<String> {
    let mut pieces: Vec<String> = Vec::new();
    let mut in_word = false;
    for c in text.chars() {
        let word = c.is_alphanumeric();
        match pieces.last_mut() {
            Some(last) if word && (in_word || last == " ") => last.push(c),
            _ => pieces.push(c.into()),
        }
        in_word = word;
    }
    pieces
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn words_keep_the_space_before_them() {
        assert_eq!(pieces(r#"{"city": "Paris"}"#).len(), 10);
        assert_eq!(pieces("The tool said: 12C."), ["The", " tool", " said", ":", " 12C", "."]);
    }

    proptest! {
        #[test]
        fn pieces_are_the_text(text: String) {
            let pieces = pieces(&text);
            prop_assert!(pieces.iter().all(|piece| !piece.is_empty()));
            prop_assert_eq!(pieces.concat(), text);
        }
    }
}
