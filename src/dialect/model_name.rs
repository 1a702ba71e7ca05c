//! The model as an engine names it in its answers.

/// Bytes of the longest name that is kept.
const MOST: usize = 256;

/// Bytes of the longest JSON string that can be such a name: each byte of it as `\u0041`.
pub const MOST_WRITTEN: usize = 2 + 6 * MOST;

/// Reads a JSON string, quotes included. `None` for anything else, for an empty name, and for one
/// longer than 256 bytes.
pub fn read(value: &[u8]) -> Option<Box<str>> {
    if value.len() > MOST_WRITTEN {
        return None;
    }
    let name: Box<str> = serde_json::from_slice(value).ok()?;
    (1..=MOST).contains(&name.len()).then_some(name)
}
