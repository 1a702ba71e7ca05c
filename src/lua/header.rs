//! Names of header fields.

/// The name of a header field in scripts: `x-api-key` is `X-Api-Key`.
pub fn canonical(name: &[u8]) -> Vec<u8> {
    let mut start = true;
    let case = |b: &u8| {
        let out = if start { b.to_ascii_uppercase() } else { b.to_ascii_lowercase() };
        start = *b == b'-';
        out
    };
    name.iter().map(case).collect()
}
