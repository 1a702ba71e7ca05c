//! Text from files.

/// A text without the byte order mark that some editors put at the beginning of a file.
pub fn without_mark(text: &str) -> &str {
    text.strip_prefix('\u{feff}').unwrap_or(text)
}
