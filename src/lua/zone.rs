//! Time zones. The database of zones is part of the program, so that a name such as `Asia/Shanghai`
//! means the same on a machine without zone files. The zone of the process is that of the environment
//! (`TZ`), as C reads it.

use std::{
    env, fs,
    path::{Path, PathBuf},
    sync::LazyLock,
};

use jiff::tz::{TimeZone, TimeZoneDatabase};

/// Folders of zone files. A file takes precedence over the database, because it may be newer.
const FOLDERS: [&str; 4] =
    ["/usr/share/zoneinfo", "/usr/lib/zoneinfo", "/usr/local/share/zoneinfo", "/etc/zoneinfo"];

/// Longest name of a zone.
const LONGEST: usize = 100;

/// The rule that C uses for a zone with a name for summer but without rules.
const USUAL_RULE: &str = ",M3.2.0,M11.1.0";

static DATABASE: LazyLock<TimeZoneDatabase> = LazyLock::new(TimeZoneDatabase::bundled);

/// The zone of the process, or the value of `TZ` that is no zone.
static LOCAL: LazyLock<Result<TimeZone, String>> = LazyLock::new(|| {
    let Ok(zone) = env::var("TZ") else {
        return Ok(from_file(Path::new("/etc/localtime")).unwrap_or(TimeZone::UTC));
    };
    let folders = env::var("TZDIR").into_iter().chain(FOLDERS.map(str::to_owned));
    of_environment(&zone, &folders.map(PathBuf::from).collect::<Vec<_>>()).ok_or(zone)
});

/// The zone in `TZ`, if it is none.
pub fn unknown() -> Option<&'static str> {
    LOCAL.as_ref().err().map(String::as_str)
}

/// The zone of the process.
///
/// # Errors
/// That the zone in `TZ` is unknown.
pub fn local() -> Result<TimeZone, String> {
    LOCAL.clone().map_err(|zone| {
        format!(
            "the time zone '{zone}' (TZ) is not known here. Say UTC (os.date('!...'), now()), or give TZ \
             the name of a zone, as in Europe/Berlin, or a rule, as in CET-1CEST,M3.5.0,M10.5.0/3"
        )
    })
}

/// The zone that a script names: a name of the database, or a rule. No file is read.
///
/// # Errors
/// That there is no such zone.
pub fn named(name: &str) -> Result<TimeZone, String> {
    let known = (name.len() <= LONGEST).then(|| of_database(name)).flatten();
    known.ok_or_else(|| {
        let name: String = name.chars().take(LONGEST).collect();
        format!("there is no time zone '{name}'")
    })
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

/// The zone that a value of `TZ` names: UTC, a file, a name of the database, or a rule.
fn of_environment(zone: &str, folders: &[PathBuf]) -> Option<TimeZone> {
    let zone = zone.strip_prefix(':').unwrap_or(zone);
    if zone.is_empty() {
        return Some(TimeZone::UTC);
    }
    if zone.starts_with('/') {
        return from_file(Path::new(zone));
    }
    let inside = !zone.split('/').any(|part| part == "..");
    let files = folders.iter().filter(|_| inside).map(|folder| folder.join(zone));
    files.filter_map(|file| from_file(&file)).next().or_else(|| of_database(zone))
}

fn from_file(file: &Path) -> Option<TimeZone> {
    TimeZone::tzif("", &fs::read(file).ok()?).ok()
}

fn of_database(zone: &str) -> Option<TimeZone> {
    if matches!(zone, "UTC" | "utc" | "Z") {
        return Some(TimeZone::UTC);
    }
    DATABASE.get(zone).ok().or_else(|| {
        is_rule(zone).then(|| {
            let usual = || TimeZone::posix(&format!("{zone}{USUAL_RULE}")).ok();
            TimeZone::posix(zone).ok().or_else(usual)
        })?
    })
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
    fn zones_are_known_without_files() {
        let summer = jiff::Timestamp::from_second(1_751_371_200).unwrap();
        for (known, hours) in [
            ("", 0),
            ("UTC", 0),
            (":UTC", 0),
            ("GMT", 0),
            ("Europe/Berlin", 2),
            (":Europe/Berlin", 2),
            ("Asia/Shanghai", 8),
            ("asia/tokyo", 9),
            ("CET", 2),
            ("CET-1CEST,M3.5.0,M10.5.0/3", 2),
            ("CET-1CEST", 2),
            ("EST5EDT", -4),
            ("UTC0", 0),
            ("<+08>-8", 8),
            ("JST-9", 9),
        ] {
            let zone = of_environment(known, &[]).unwrap_or_else(|| panic!("{known}"));
            assert_eq!(zone.to_offset(summer).seconds(), hours * 3600, "{known}");
        }
        for unknown in ["No/Such_Zone", "Berlin", "/no/such/file", "X", "-1", "../x", "Asia/"] {
            assert!(of_environment(unknown, &[]).is_none(), "{unknown}");
        }
        let folders = [PathBuf::from("/etc")];
        assert!(of_environment("../etc/passwd", &folders).is_none());
        assert!(named(&"x".repeat(1 << 20)).unwrap_err().len() < 200);
    }
}
