//! What the simulated model says.

/// The words, one a token.
const WORDS: [&str; 12] =
    ["Hello", "!", " I", " am", " a", " simulated", " model", ",", " and", " I", " count", "."];

/// Bytes of a prompt that make a token.
pub const BYTES_PER_TOKEN: usize = 4;

/// The token at a place in an answer.
pub fn token(at: u64) -> &'static str {
    WORDS[(at % WORDS.len() as u64) as usize]
}

/// An answer of so many tokens.
pub fn answer(tokens: u64) -> String {
    (0..tokens).map(token).collect()
}

/// The tokens of a prompt: one for each four bytes, and one.
pub fn prompt_tokens(prompt_bytes: usize) -> u64 {
    (prompt_bytes / BYTES_PER_TOKEN) as u64 + 1
}
