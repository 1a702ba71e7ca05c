//! The text that the simulated model generates, and its tokenizer.

/// The tokens, repeated in this order.
const WORDS: [&str; 12] =
    ["Hello", "!", " I", " am", " a", " simulated", " model", ",", " and", " I", " count", "."];

/// Bytes of a prompt per token.
pub const BYTES_PER_TOKEN: usize = 4;

/// The token at an index of an answer.
pub fn token(at: u64) -> &'static str {
    WORDS[(at % WORDS.len() as u64) as usize]
}

/// An answer with this number of tokens.
pub fn answer(tokens: u64) -> String {
    (0..tokens).map(token).collect()
}

/// The number of tokens of a prompt: one per four bytes, plus one.
pub fn prompt_tokens(prompt_bytes: usize) -> u64 {
    (prompt_bytes / BYTES_PER_TOKEN) as u64 + 1
}
