//! Durations as text: `500ms`, `10s`, `1.5m`, `2h`.

use std::time::Duration;

/// Reads a duration: a decimal number with one of `ms`, `s`, `m`, `h`, `d`; several may follow
/// each other (`1m30s`). A bare `0` is zero.
///
/// # Errors
/// The problem, as a sentence.
pub fn parse(text: &str) -> Result<Duration, String> {
    let text = text.trim();
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    if text.is_empty() {
        return Err("a duration is missing its number".to_owned());
    }
    let mut rest = text;
    let mut total = 0f64;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(|| {
            format!("`{text}` has no unit; write `{text}s` for seconds or `{text}ms`")
        })?;
        let number: f64 =
            rest[..digits].parse().map_err(|_| format!("`{text}` is not a duration"))?;
        let unit_end = rest[digits..]
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .map_or(rest.len(), |i| digits + i);
        let seconds = match &rest[digits..unit_end] {
            "ms" => 0.001,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            "d" => 86400.0,
            other => {
                return Err(format!("`{other}` in `{text}` is not a unit (ms, s, m, h, d)"));
            }
        };
        total += number * seconds;
        rest = &rest[unit_end..];
    }
    if total > 366.0 * 86400.0 {
        return Err(format!("`{text}` is longer than a year"));
    }
    Ok(Duration::from_secs_f64(total))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_people_write() {
        for (text, millis) in [
            ("500ms", 500),
            ("10s", 10_000),
            ("1.5m", 90_000),
            ("1m30s", 90_000),
            ("2h", 7_200_000),
            ("0", 0),
            (" 3s ", 3_000),
        ] {
            assert_eq!(parse(text).unwrap(), Duration::from_millis(millis), "{text}");
        }
    }

    #[test]
    fn says_what_is_wrong() {
        for (text, part) in [
            ("10", "no unit"),
            ("", "missing"),
            ("5 s", "not a unit"),
            ("ms", "not a duration"),
            ("9999999d", "year"),
        ] {
            let err = parse(text).unwrap_err();
            assert!(err.contains(part), "{text}: {err}");
        }
    }
}
