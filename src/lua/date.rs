//! Calendar dates: the conversions of C's `strftime`, `os.date`, `os.time`, and `time.*`.
//!
//! C's own functions know only the zone of the process, from a file that may be absent.

use jiff::{
    SignedDuration, Timestamp, Zoned,
    civil::{Date, DateTime},
    fmt::strtime::BrokenDownTime,
    tz::{Dst, TimeZone},
};

/// A moment in a time zone.
pub struct Moment {
    civil: DateTime,
    dst: bool,
    offset: i32,
    abbreviation: String,
}

const DAYS: [&str; 7] =
    ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];
const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

/// The conversions that a format may ask for.
const CONVERSIONS: &str = "aAbBcCdDeFgGhHIjmMnprRStTuUVwWxXyYzZ%";
/// Those that may follow `%E` and `%O`, which change nothing.
const AFTER_E: &str = "cCxXyY";
const AFTER_O: &str = "deHImMSuUVwWy";

impl Moment {
    /// `seconds`: Unix time.
    ///
    /// # Errors
    /// If there is no date for it.
    pub fn new(seconds: i64, zone: &TimeZone) -> Result<Self, String> {
        let at = Timestamp::from_second(seconds);
        at.map(|at| Self::at(at, zone)).map_err(|_| "the time has no date".to_owned())
    }

    fn at(at: Timestamp, zone: &TimeZone) -> Self {
        let info = zone.to_offset_info(at);
        let offset = info.offset();
        Self {
            civil: offset.to_datetime(at),
            dst: info.dst() == Dst::Yes,
            offset: offset.seconds(),
            abbreviation: info.abbreviation().to_owned(),
        }
    }

    /// As C's `strftime`, in the locale C.
    ///
    /// # Errors
    /// The conversion that does not exist.
    pub fn format(&self, format: &str) -> Result<String, String> {
        let mut out = String::with_capacity(format.len() + 16);
        let mut rest = format.chars();
        while let Some(c) = rest.next() {
            if c != '%' {
                out.push(c);
                continue;
            }
            let (first, valid) = match rest.next() {
                Some('E') => (rest.next(), AFTER_E),
                Some('O') => (rest.next(), AFTER_O),
                other => (other, CONVERSIONS),
            };
            match first.filter(|c| valid.contains(*c)) {
                Some(conversion) => self.convert(conversion, &mut out),
                None => {
                    let told: String = first.into_iter().collect();
                    return Err(format!("invalid conversion specifier '%{told}'"));
                }
            }
        }
        Ok(out)
    }

    /// RFC 3339, in the moment's zone.
    pub fn rfc3339(&self) -> String {
        let whole = self.text("%Y-%m-%dT%H:%M:%S");
        match self.offset {
            0 => format!("{whole}Z"),
            offset => {
                let minutes = offset.abs() / 60;
                let sign = if offset < 0 { '-' } else { '+' };
                format!("{whole}{sign}{:02}:{:02}", minutes / 60, minutes % 60)
            }
        }
    }

    /// The fields of `os.date("*t")` that are numbers, with their names.
    pub fn fields(&self) -> [(&'static str, i64); 8] {
        let c = self.civil;
        [
            ("year", c.year().into()),
            ("month", c.month().into()),
            ("day", c.day().into()),
            ("hour", c.hour().into()),
            ("min", c.minute().into()),
            ("sec", c.second().into()),
            ("wday", self.weekday() + 1),
            ("yday", c.date().day_of_year().into()),
        ]
    }

    pub fn is_dst(&self) -> bool {
        self.dst
    }

    /// From 0, Sunday.
    fn weekday(&self) -> i64 {
        self.civil.date().weekday().to_sunday_zero_offset().into()
    }

    /// A format of this file.
    fn text(&self, format: &str) -> String {
        self.format(format).unwrap_or_default()
    }

    fn convert(&self, conversion: char, out: &mut String) {
        let c = self.civil;
        let (weekday, day) = (self.weekday(), i64::from(c.date().day_of_year()) - 1);
        let hour12 = (c.hour() + 11) % 12 + 1;
        let month = MONTHS[(c.month() as usize - 1) % 12];
        let iso = c.date().iso_week_date();
        let text = match conversion {
            'a' => DAYS[weekday as usize][..3].to_owned(),
            'A' => DAYS[weekday as usize].to_owned(),
            'b' | 'h' => month[..3].to_owned(),
            'B' => month.to_owned(),
            'c' => self.text("%a %b %e %H:%M:%S %Y"),
            'C' => format!("{:02}", c.year().div_euclid(100)),
            'd' => format!("{:02}", c.day()),
            'D' | 'x' => self.text("%m/%d/%y"),
            'e' => format!("{:2}", c.day()),
            'F' => self.text("%Y-%m-%d"),
            'g' => format!("{:02}", iso.year().rem_euclid(100)),
            'G' => iso.year().to_string(),
            'H' => format!("{:02}", c.hour()),
            'I' => format!("{hour12:02}"),
            'j' => format!("{:03}", day + 1),
            'm' => format!("{:02}", c.month()),
            'M' => format!("{:02}", c.minute()),
            'n' => "\n".to_owned(),
            'p' => if c.hour() < 12 { "AM" } else { "PM" }.to_owned(),
            'r' => self.text("%I:%M:%S %p"),
            'R' => self.text("%H:%M"),
            'S' => format!("{:02}", c.second()),
            't' => "\t".to_owned(),
            'T' | 'X' => self.text("%H:%M:%S"),
            'u' => (if weekday == 0 { 7 } else { weekday }).to_string(),
            'U' => format!("{:02}", (day + 7 - weekday) / 7),
            'V' => format!("{:02}", iso.week()),
            'w' => weekday.to_string(),
            'W' => format!("{:02}", (day + 7 - (weekday + 6) % 7) / 7),
            'y' => format!("{:02}", c.year().rem_euclid(100)),
            'Y' => c.year().to_string(),
            'z' => {
                let minutes = self.offset.abs() / 60;
                let sign = if self.offset < 0 { '-' } else { '+' };
                format!("{sign}{:02}{:02}", minutes / 60, minutes % 60)
            }
            'Z' => self.abbreviation.clone(),
            _ => "%".to_owned(),
        };
        out.push_str(&text);
    }
}

/// A date of the calendar as a script states it. Fields beyond their range are carried over: the 32nd
/// of January is the 1st of February.
#[derive(Clone, Copy, Debug)]
pub struct CalendarFields {
    pub year: i64,
    pub month: i64,
    pub day: i64,
    pub hour: i64,
    pub min: i64,
    pub sec: i64,
    /// Which of two moments is meant when the clock is set back; `None`: the first one.
    pub isdst: Option<bool>,
}

/// The Unix time of a date in a zone.
///
/// # Errors
/// If it is too far away.
pub fn unix_time(fields: CalendarFields, zone: &TimeZone) -> Result<i64, String> {
    let far = || "the date is too far away".to_owned();
    let civil = civil(fields).ok_or_else(far)?;
    let first = zone.to_ambiguous_timestamp(civil);
    let earlier = first.compatible().map_err(|_| far())?;
    let chosen = match fields.isdst {
        Some(dst) if Moment::at(earlier, zone).dst != dst => first.later().ok(),
        _ => None,
    };
    let chosen = chosen.filter(|later| Some(Moment::at(*later, zone).dst) == fields.isdst);
    Ok(chosen.unwrap_or(earlier).as_second())
}

fn civil(fields: CalendarFields) -> Option<DateTime> {
    let months = fields.year.checked_mul(12)?.checked_add(fields.month.checked_sub(1)?)?;
    let year = i16::try_from(months.div_euclid(12)).ok()?;
    let month = i8::try_from(months.rem_euclid(12) + 1).ok()?;
    let first = Date::new(year, month, 1).ok()?.to_datetime(jiff::civil::Time::midnight());
    let days = fields.day.checked_sub(1)?.checked_mul(86_400)?;
    let minutes = fields.hour.checked_mul(60)?.checked_add(fields.min)?.checked_mul(60)?;
    let seconds = days.checked_add(minutes)?.checked_add(fields.sec)?;
    first.checked_add(SignedDuration::from_secs(seconds)).ok()
}

/// The Unix time, in seconds and nanoseconds, of a text in this format; without one of RFC 3339. A text
/// without an offset or a zone is a time in `zone`.
///
/// # Errors
/// Why the text has no time.
pub fn parse(text: &str, format: Option<&str>, zone: &TimeZone) -> Result<(i64, i32), String> {
    let split = |at: Timestamp| (at.as_second(), at.subsec_nanosecond());
    let in_zone = |civil: DateTime| {
        let at = zone.to_ambiguous_timestamp(civil).compatible();
        at.map(split).map_err(|_| "the date is too far away".to_owned())
    };
    let Some(format) = format else {
        if let Ok(at) = text.parse::<Timestamp>() {
            return Ok(split(at));
        }
        let civil = text.parse::<DateTime>().map_err(|_| "it is not a time of RFC 3339")?;
        return in_zone(civil);
    };
    let why = |e: jiff::Error| e.to_string();
    let parts = BrokenDownTime::parse(format, text).map_err(why)?;
    if let Ok(at) = parts.to_timestamp() {
        return Ok(split(at));
    }
    if let Ok(zoned) = parts.to_zoned() as Result<Zoned, _> {
        return Ok(split(zoned.timestamp()));
    }
    match parts.to_datetime() {
        Ok(civil) => in_zone(civil),
        // A date without a time is its beginning.
        Err(_) => in_zone(parts.to_date().map_err(why)?.to_datetime(jiff::civil::Time::midnight())),
    }
}
