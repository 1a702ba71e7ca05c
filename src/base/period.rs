//! Periods after which a quota is reset.

use jiff::{Timestamp, ToSpan, civil::DateTime, tz::TimeZone};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

const DAY: i64 = 24 * 3600;
const WEEK: i64 = 7 * DAY;

/// How often a quota is reset.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema, ToSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum ResetPeriod {
    Daily,
    Weekly,
    Monthly,
    #[default]
    Never,
}

/// The current time in Unix seconds.
pub fn now() -> i64 {
    Timestamp::now().as_second()
}

impl ResetPeriod {
    /// The word in configuration and data.
    pub fn word(self) -> &'static str {
        match self {
            Self::Daily => "daily",
            Self::Weekly => "weekly",
            Self::Monthly => "monthly",
            Self::Never => "never",
        }
    }

    /// The period of this name; not case-sensitive.
    pub fn named(word: &str) -> Option<Self> {
        const WORDS: [(&str, ResetPeriod); 4] = [
            ("daily", ResetPeriod::Daily),
            ("weekly", ResetPeriod::Weekly),
            ("monthly", ResetPeriod::Monthly),
            ("never", ResetPeriod::Never),
        ];
        WORDS.iter().find(|(name, _)| word.eq_ignore_ascii_case(name)).map(|(_, period)| *period)
    }

    /// The start of the period that contains `now`, in Unix seconds; `None` if there are no
    /// periods. Periods are counted from `anchor`, the last reset. Without one they follow the
    /// calendar in UTC: they start at midnight, on Monday, on the first of the month.
    pub fn start(self, now: i64, anchor: Option<i64>) -> Option<i64> {
        match anchor {
            // A reset in the future starts the current period.
            Some(anchor) if now <= anchor => (self != Self::Never).then_some(anchor),
            Some(anchor) => match self {
                Self::Daily => Some(multiple(now, anchor, DAY)),
                Self::Weekly => Some(multiple(now, anchor, WEEK)),
                Self::Monthly => months_after(now, anchor).or_else(|| self.start(now, None)),
                Self::Never => None,
            },
            None => match self {
                Self::Daily => Some(now.div_euclid(DAY).saturating_mul(DAY)),
                // The first day of 1970 was a Thursday.
                Self::Weekly => Some(multiple(now, -3 * DAY, WEEK)),
                Self::Monthly => seconds(utc(now)?.date().first_of_month().at(0, 0, 0, 0)),
                Self::Never => None,
            },
        }
    }
}

impl ResetPeriod {
    /// When the period after the one that contains `now` starts; `None` if there are no periods.
    pub fn end(self, now: i64, anchor: Option<i64>) -> Option<i64> {
        // Longer than the longest month and shorter than the two shortest.
        const LONG: i64 = 32 * DAY;
        let start = self.start(now, anchor)?;
        match self {
            Self::Daily => start.checked_add(DAY),
            Self::Weekly => start.checked_add(WEEK),
            Self::Monthly => self.start(start.checked_add(LONG)?, anchor),
            Self::Never => None,
        }
    }
}

/// The last time not after `now` that is a whole number of `length` away from `anchor`.
fn multiple(now: i64, anchor: i64, length: i64) -> i64 {
    let past = now.saturating_sub(anchor);
    anchor.saturating_add(past.div_euclid(length).saturating_mul(length))
}

/// The last time not after `now` that is whole months after `anchor`. Each is counted from the
/// anchor: a short month does not shorten those after it.
fn months_after(now: i64, anchor: i64) -> Option<i64> {
    let (from, to) = (utc(anchor)?, utc(now)?);
    let years = i32::from(to.year()) - i32::from(from.year());
    let months = years * 12 + i32::from(to.month()) - i32::from(from.month());
    let after = |months: i32| seconds(from.checked_add(months.months()).ok()?);
    after(months).filter(|start| *start <= now).or_else(|| after(months - 1))
}

fn utc(at: i64) -> Option<DateTime> {
    Some(Timestamp::from_second(at).ok()?.to_zoned(TimeZone::UTC).datetime())
}

fn seconds(at: DateTime) -> Option<i64> {
    Some(at.to_zoned(TimeZone::UTC).ok()?.timestamp().as_second())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> i64 {
        text.parse::<Timestamp>().unwrap().as_second()
    }

    fn start(period: ResetPeriod, now: &str, anchor: Option<&str>) -> String {
        let start = period.start(at(now), anchor.map(at)).unwrap();
        Timestamp::from_second(start).unwrap().to_string()
    }

    #[test]
    fn without_an_anchor_the_calendar_counts() {
        use ResetPeriod::{Daily, Monthly, Weekly};
        for (period, now, expected) in [
            (Daily, "2026-03-04T23:59:59Z", "2026-03-04T00:00:00Z"),
            (Daily, "2026-03-04T00:00:00Z", "2026-03-04T00:00:00Z"),
            // A Wednesday, a Monday, a Sunday.
            (Weekly, "2026-03-04T12:00:00Z", "2026-03-02T00:00:00Z"),
            (Weekly, "2026-03-02T00:00:00Z", "2026-03-02T00:00:00Z"),
            (Weekly, "2026-03-01T23:59:59Z", "2026-02-23T00:00:00Z"),
            (Weekly, "2026-01-01T10:00:00Z", "2025-12-29T00:00:00Z"),
            (Monthly, "2026-03-31T23:59:59Z", "2026-03-01T00:00:00Z"),
            (Monthly, "2026-01-01T00:00:00Z", "2026-01-01T00:00:00Z"),
            (Daily, "1969-12-31T12:00:00Z", "1969-12-31T00:00:00Z"),
            (Weekly, "1969-12-31T12:00:00Z", "1969-12-29T00:00:00Z"),
        ] {
            assert_eq!(start(period, now, None), expected, "{period:?} {now}");
        }
    }

    #[test]
    fn an_anchor_sets_the_hour_and_the_day() {
        use ResetPeriod::{Daily, Monthly, Weekly};
        for (period, anchor, now, expected) in [
            (Daily, "2026-03-01T09:30:00Z", "2026-03-04T09:29:59Z", "2026-03-03T09:30:00Z"),
            (Daily, "2026-03-01T09:30:00Z", "2026-03-04T09:30:00Z", "2026-03-04T09:30:00Z"),
            (Weekly, "2026-03-04T09:30:00Z", "2026-03-11T09:29:59Z", "2026-03-04T09:30:00Z"),
            (Weekly, "2026-03-04T09:30:00Z", "2026-03-25T09:30:00Z", "2026-03-25T09:30:00Z"),
            (Monthly, "2026-01-15T08:00:00Z", "2026-02-15T07:59:59Z", "2026-01-15T08:00:00Z"),
            (Monthly, "2026-01-15T08:00:00Z", "2027-01-15T08:00:00Z", "2027-01-15T08:00:00Z"),
            // Ends of months; always counted from the anchor.
            (Monthly, "2026-01-31T00:00:00Z", "2026-02-27T23:59:59Z", "2026-01-31T00:00:00Z"),
            (Monthly, "2026-01-31T00:00:00Z", "2026-02-28T00:00:00Z", "2026-02-28T00:00:00Z"),
            (Monthly, "2026-01-31T00:00:00Z", "2026-03-30T00:00:00Z", "2026-02-28T00:00:00Z"),
            (Monthly, "2026-01-31T00:00:00Z", "2026-03-31T00:00:00Z", "2026-03-31T00:00:00Z"),
            (Monthly, "2026-01-31T00:00:00Z", "2026-04-30T12:00:00Z", "2026-04-30T00:00:00Z"),
            (Monthly, "2027-12-31T00:00:00Z", "2028-02-29T00:00:00Z", "2028-02-29T00:00:00Z"),
            (Monthly, "2025-12-31T23:00:00Z", "2026-01-31T22:00:00Z", "2025-12-31T23:00:00Z"),
            // One that lies ahead.
            (Daily, "2026-03-05T00:00:00Z", "2026-03-04T00:00:00Z", "2026-03-05T00:00:00Z"),
            (Monthly, "2026-03-05T00:00:00Z", "2026-03-04T00:00:00Z", "2026-03-05T00:00:00Z"),
        ] {
            assert_eq!(start(period, now, Some(anchor)), expected, "{period:?} {anchor} {now}");
        }
    }

    #[test]
    fn nothing_is_too_far_away() {
        use ResetPeriod::{Daily, Monthly, Never, Weekly};
        for period in [Daily, Weekly, Monthly] {
            for anchor in [i64::MIN, -1, 0, 1_800_000_000_000, i64::MAX] {
                assert!(period.start(1_800_000_000, Some(anchor)).is_some());
            }
        }
        assert_eq!(Never.start(1_800_000_000, None), None);
        assert_eq!(Never.start(1_800_000_000, Some(1)), None);
        assert_eq!(Never.start(1, Some(2)), None);
    }

    #[test]
    fn names_are_understood_in_any_case() {
        assert_eq!(ResetPeriod::named("Daily"), Some(ResetPeriod::Daily));
        assert_eq!(ResetPeriod::named("NEVER"), Some(ResetPeriod::Never));
        assert_eq!(ResetPeriod::named("yearly"), None);
    }
}
