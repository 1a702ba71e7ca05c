//! Selected metrics from the Prometheus text format: engines write tens of kilobytes.

use memchr::{memchr, memrchr};

/// Calls `found` for every sample of a metric in `wanted`, with the value that `wanted` assigns to its name.
/// Unreadable lines are skipped.
pub fn each<T: Copy>(text: &[u8], wanted: &[(&[u8], T)], mut found: impl FnMut(T, f64)) {
    // Most lines are not wanted, and most of those can be skipped by their first byte.
    let mut first = [false; 256];
    wanted.iter().filter_map(|(name, _)| name.first()).for_each(|b| first[usize::from(*b)] = true);
    let mut rest = text;
    while !rest.is_empty() {
        let end = memchr(b'\n', rest).unwrap_or(rest.len());
        let line = &rest[..end];
        rest = rest.get(end + 1..).unwrap_or_default();
        if line.first().is_some_and(|b| first[usize::from(*b)])
            && let Some((what, value)) = sample(line, wanted)
        {
            found(what, value);
        }
    }
}

/// The value of a line that is wanted.
fn sample<T: Copy>(line: &[u8], wanted: &[(&[u8], T)]) -> Option<(T, f64)> {
    let of = |name: &[u8]| {
        let rest = line.strip_prefix(name)?;
        match rest.first()? {
            // A label value may contain a brace; what follows the labels may not.
            b'{' => Some(&rest[memrchr(b'}', rest)? + 1..]),
            b' ' | b'\t' => Some(rest),
            // A longer name.
            _ => None,
        }
    };
    let (what, value) = wanted.iter().find_map(|(name, what)| Some((*what, of(name)?)))?;
    // A timestamp may follow the value.
    let value = std::str::from_utf8(value).ok()?.split_ascii_whitespace().next()?;
    Some((what, value.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_wanted_is_found() {
        let text = b"# TYPE a_total counter\n\
            a_total{x=\"1 } 9\"} 3.0\n\
            a_total{x=\"2\"} 1e1 1700000000\n\
            a_total_of_more 99\n\
            a_total{x=\"3\n\
            a_total nothing\n\
            ab\t7\n\
            b 1\n\
            a_total 0.5";
        let mut seen = Vec::new();
        each(text, &[(b"a_total", 'a'), (b"ab", 'b')], |what, value| seen.push((what, value)));
        assert_eq!(seen, [('a', 3.0), ('a', 10.0), ('b', 7.0), ('a', 0.5)]);
        each(b"a 1\n", &[], |(), _| panic!("nothing is wanted"));
    }
}
