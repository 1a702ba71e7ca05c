//! The range of records that a replay sends.

use std::{fmt, str::FromStr};

use jiff::{Timestamp, civil::DateTime, tz::TimeZone};

use crate::{
    cli::usage::output::{count, time},
    usage::{Entry, spool::Archive},
};

/// A bound of a range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bound {
    /// As written on the command line.
    text: String,
    position: Position,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Position {
    Index(u64),
    /// In milliseconds since 1970.
    Time(i64),
}

impl FromStr for Bound {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let position = if let Some(index) = text.strip_prefix('#') {
            Position::Index(
                index.parse().map_err(|_| "what follows `#` is not a number".to_owned())?,
            )
        } else if let Ok(time) = text.parse::<Timestamp>() {
            Position::Time(time.as_millisecond())
        } else {
            let civil = text.parse::<DateTime>().ok();
            let zoned = civil.and_then(|civil| civil.to_zoned(TimeZone::UTC).ok());
            let what = "neither a time (2026-01-31T12:00:00Z), a date, nor an index (#1234)";
            Position::Time(zoned.ok_or(what)?.timestamp().as_millisecond())
        };
        Ok(Self { text: text.to_owned(), position })
    }
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Bound {
    fn is_before(&self, entry: &Entry) -> bool {
        match self.position {
            Position::Index(index) => index <= entry.index,
            Position::Time(time) => time <= entry.time,
        }
    }
}

/// A range. Without `from` it begins with the oldest record, without `to` it ends with the newest.
pub struct Range {
    /// The first record of the range.
    pub from: Option<Bound>,
    /// The first record after the range.
    pub to: Option<Bound>,
}

/// The records of a range that the spool has.
pub struct Selection {
    pub records: u64,
    /// Index and time of the first and of the last record; `None`: there are none.
    pub ends: Option<((u64, i64), (u64, i64))>,
    /// What the spool lacks of the range, as messages.
    pub notes: Vec<String>,
}

impl Range {
    /// Whether a record belongs to the range.
    fn holds(&self, entry: &Entry) -> bool {
        self.from.as_ref().is_none_or(|from| from.is_before(entry))
            && self.to.as_ref().is_none_or(|to| !to.is_before(entry))
    }

    /// The index at which reading starts.
    fn start(&self) -> u64 {
        match self.from.as_ref().map(|from| from.position) {
            Some(Position::Index(index)) => index,
            // A clock may have been set back: every record is compared.
            _ => 0,
        }
    }

    /// Finds the records of the range.
    ///
    /// # Errors
    /// If the spool cannot be read.
    pub fn select(&self, archive: &Archive) -> Result<Selection, String> {
        let (mut records, mut unreadable) = (0, 0);
        let (mut ends, mut oldest) = (None, None);
        let first = archive.segments().first().map_or(0, |segment| segment.first);
        let mut expected = self.start().max(first);
        for entry in archive.records(self.start()) {
            let entry = entry?;
            let this = (entry.index, entry.time);
            oldest.get_or_insert(this);
            if self.holds(&entry) {
                records += 1;
                unreadable += entry.index.saturating_sub(expected);
                let (since, _) = ends.unwrap_or((this, this));
                ends = Some((since, this));
            }
            expected = entry.index + 1;
        }
        let mut notes = Vec::new();
        notes.extend(self.gone(first, oldest.map(|(_, time)| time)));
        if unreadable > 0 {
            let records = count(unreadable, "record");
            notes.push(format!("{records} of this range cannot be read: see `usage verify`"));
        }
        Ok(Selection { records, ends, notes })
    }

    /// The part of the range that a spool, which begins with this record, no longer has.
    fn gone(&self, first: u64, oldest: Option<i64>) -> Option<String> {
        match self.from.as_ref()?.position {
            Position::Index(index) if index < first => {
                let last = first - 1;
                Some(format!("the records #{index} to #{last} are no longer in the spool"))
            }
            Position::Time(from) if first > 0 && oldest.is_none_or(|oldest| from < oldest) => {
                let since = oldest.map(|oldest| format!(" of {}", time(oldest)));
                let since = since.unwrap_or_default();
                Some(format!(
                    "the spool begins with #{first}{since}: earlier records are no longer in it"
                ))
            }
            _ => None,
        }
    }

    /// The records that were selected.
    pub fn records<'a>(
        &'a self,
        archive: &'a Archive,
        selection: &Selection,
    ) -> impl Iterator<Item = Result<Entry, String>> + 'a {
        let (first, last) = selection.ends.map_or((1, 0), |(first, last)| (first.0, last.0));
        archive
            .records(first)
            // Records that were written after the selection do not belong to it.
            .take_while(move |entry| entry.as_ref().map_or(true, |entry| entry.index <= last))
            .filter(|entry| entry.as_ref().map_or(true, |entry| self.holds(entry)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_are_indexes_times_and_dates() {
        let at = |text: &str| text.parse::<Bound>().map(|bound| bound.position);
        assert_eq!(at("#12"), Ok(Position::Index(12)));
        assert_eq!(at("1970-01-01T00:00:01Z"), Ok(Position::Time(1000)));
        assert_eq!(at("1970-01-01T02:00:00.005+02:00"), Ok(Position::Time(5)));
        assert_eq!(at("1970-01-02"), Ok(Position::Time(86_400_000)));
        assert_eq!(at("1970-01-01T00:01"), Ok(Position::Time(60_000)));
        for wrong in ["12", "#", "#-1", "#a", "", "yesterday", "1970-13-01"] {
            assert!(at(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_range_begins_with_its_first_bound_and_ends_before_its_last() {
        let entry = |index, time| Entry { index, time, json: bytes::Bytes::new() };
        let range = |from: &str, to: &str| Range {
            from: (!from.is_empty()).then(|| from.parse().unwrap()),
            to: (!to.is_empty()).then(|| to.parse().unwrap()),
        };
        let held = |range: Range| -> Vec<u64> {
            (0..5).filter(|n| range.holds(&entry(*n, *n as i64 * 1000))).collect()
        };
        assert_eq!(held(range("", "")), [0, 1, 2, 3, 4]);
        assert_eq!(held(range("#2", "#4")), [2, 3]);
        assert_eq!(held(range("1970-01-01T00:00:01Z", "1970-01-01T00:00:03Z")), [1, 2]);
        assert_eq!(held(range("#1", "1970-01-01T00:00:02Z")), [1]);
        assert_eq!(held(range("#3", "#3")), [0_u64; 0]);
    }

    #[test]
    fn what_is_gone_is_told() {
        let gone = |from: &str, first, oldest| {
            Range { from: from.parse().ok(), to: None }.gone(first, oldest)
        };
        let told = gone("#2", 5, Some(9000)).unwrap();
        assert_eq!(told, "the records #2 to #4 are no longer in the spool");
        assert_eq!(gone("#5", 5, Some(9000)), None);
        let told = gone("1970-01-01", 5, Some(9000)).unwrap();
        let begins = "the spool begins with #5 of 1970-01-01T00:00:09.000Z";
        assert_eq!(told, format!("{begins}: earlier records are no longer in it"));
        assert_eq!(gone("1970-01-01", 0, Some(9000)), None);
        assert_eq!(gone("1970-01-02", 5, Some(9000)), None);
    }
}
