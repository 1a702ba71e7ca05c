//! The time zone of the environment (TZ). The image has no zone files, and the C library silently uses
//! UTC for a zone that it does not find.

use std::{env, path::Path, sync::LazyLock};

/// Folders of zone files.
const FOLDERS: [&str; 4] =
    ["/usr/share/zoneinfo", "/usr/lib/zoneinfo", "/usr/local/share/zoneinfo", "/etc/zoneinfo"];

/// The zone in `TZ`, if there is no file for it.
pub fn unknown() -> Option<&'static str> {
    static UNKNOWN: LazyLock<Option<String>> = LazyLock::new(|| {
        let zone = env::var("TZ").ok()?;
        let folders = env::var("TZDIR").into_iter().chain(FOLDERS.map(str::to_owned));
        let there = |name: &str| folders.clone().any(|dir| Path::new(&dir).join(name).is_file());
        (!is_known(&zone, there)).then_some(zone)
    });
    UNKNOWN.as_deref()
}

/// Whether a script uses the local time zone, as far as its text shows.
pub fn is_used(text: &str) -> bool {
    let calls = |name: &str, fine: &[&str]| {
        text.match_indices(name).any(|(at, _)| {
            let rest = text[at + name.len()..].trim_start_matches([' ', '(']);
            !fine.iter().any(|fine| rest.starts_with(fine))
        })
    };
    calls("os.date", &["\"!", "'!"]) || calls("os.time", &[")"])
}

/// Whether a value of `TZ` is valid: UTC, a rule, or the name of a file.
fn is_known(zone: &str, there: impl Fn(&str) -> bool) -> bool {
    let zone = zone.strip_prefix(':').unwrap_or(zone);
    if ["", "UTC", "GMT", "UCT", "Etc/UTC", "Zulu", "Universal"].contains(&zone) {
        return true;
    }
    if let Some(path) = zone.strip_prefix('/') {
        return Path::new("/").join(path).is_file();
    }
    is_rule(zone) || there(zone)
}

/// `CET-1CEST,M3.5.0,M10.5.0/3`: a name and its offset from UTC.
fn is_rule(zone: &str) -> bool {
    let rest = match zone.strip_prefix('<') {
        Some(quoted) => quoted.split_once('>').map(|(_, rest)| rest),
        None => {
            let name =
                zone.len() - zone.trim_start_matches(|c: char| c.is_ascii_alphabetic()).len();
            (name >= 3).then(|| &zone[name..])
        }
    };
    let offset = rest.map(|rest| rest.trim_start_matches(['+', '-']));
    offset.is_some_and(|offset| offset.starts_with(|c: char| c.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_asks_for_a_zone_is_seen() {
        for asks in
            ["os.date()", "return os.date('%H')", "os.date(f)", "os.time({year = 1})", "os.time{}"]
        {
            assert!(is_used(asks), "{asks}");
        }
        for not in
            ["os.date('!%H')", "os.date(\"!*t\", now())", "os.date '!%H'", "os.time()", "now()"]
        {
            assert!(!is_used(not), "{not}");
        }
    }

    #[test]
    fn a_zone_without_a_file_is_unknown() {
        let there = |name: &str| name == "Europe/Berlin";
        for known in [
            "",
            "UTC",
            ":UTC",
            "GMT",
            "Europe/Berlin",
            ":Europe/Berlin",
            "CET-1CEST,M3.5.0,M10.5.0/3",
            "EST5EDT",
            "UTC0",
            "<+08>-8",
            "JST-9",
        ] {
            assert!(is_known(known, there), "{known}");
        }
        for unknown in ["Asia/Shanghai", ":Asia/Tokyo", "CET", "Berlin", "/no/such/file", "X", "-1"]
        {
            assert!(!is_known(unknown, there), "{unknown}");
        }
    }
}
