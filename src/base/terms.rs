//! The terms under which a key is valid, as its data states them: the default rules of the auth
//! pipeline. Stores write the same facts in different forms (a Redis hash holds only strings); the
//! meaning is the same for all of them.

use std::net::IpAddr;

use serde_json::{Map, Value};

use super::{
    allowance::{Allowance, Quota},
    ip::{self, IpRules},
    limits::OwnLimits,
    number::number,
    period::ResetPeriod,
    usage::KeyUsage,
};

/// Removes empty values: scripts test `if data.x then`, and an empty string or table is true in Lua.
pub fn drop_empty(data: &mut Map<String, Value>) {
    data.retain(|_, value| match value {
        Value::Null => false,
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Object(fields) => !fields.is_empty(),
        _ => true,
    });
}

/// Why a key is not valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyInvalid {
    /// It is disabled, or its data is malformed.
    Disabled,
    Expired,
    NotYetValid,
    /// The client's address is not allowed.
    Address,
    /// Quota or balance is used up.
    Exhausted,
}

/// The terms of one key.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Terms {
    /// `None`: active.
    status: Option<KeyInvalid>,
    starts_at: Option<i64>,
    expires_at: Option<i64>,
    addresses: IpRules,
    quota: Option<Quota>,
    balance: Option<f64>,
}

/// The fields of a key that usage changes.
pub const COUNTED: [&str; 3] = ["used_quota", "balance", "last_reset_at"];

/// The change that usage makes to the data of a key. A field that is `None` stays as it is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct UsageChange {
    /// Added to `used_quota`.
    pub tokens: Option<f64>,
    /// Set `used_quota` to 0 before adding.
    pub reset: bool,
    /// The new `last_reset_at`.
    pub reset_at: Option<i64>,
    /// Subtracted from `balance`.
    pub credit: Option<f64>,
}

impl UsageChange {
    pub fn apply(&self, data: &mut Map<String, Value>) {
        let before = |data: &Map<_, _>, name| data.get(name).and_then(number).unwrap_or(0.0);
        if let Some(tokens) = self.tokens {
            let used = if self.reset { 0.0 } else { before(data, "used_quota") };
            data.insert("used_quota".to_owned(), amount(used + tokens));
        }
        if let Some(at) = self.reset_at {
            let time = time_like(data.get("last_reset_at"), at);
            data.insert("last_reset_at".to_owned(), time);
        }
        if let Some(credit) = self.credit {
            let left = before(data, "balance") - credit;
            data.insert("balance".to_owned(), amount(left));
        }
    }
}

/// A JSON number, an integer where possible.
fn amount(number: f64) -> Value {
    let whole = number.fract() == 0.0 && number.abs() < 9e15;
    if whole { Value::from(number as i64) } else { Value::from(number) }
}

/// A time in the same form as an earlier value: Unix seconds as a number or as text, or a date and
/// time.
pub fn time_like(earlier: Option<&Value>, at: i64) -> Value {
    match earlier {
        Some(Value::String(text)) if !text.trim().is_empty() => match text.trim().parse::<f64>() {
            Ok(_) => at.to_string().into(),
            Err(_) => time_text(at).into(),
        },
        _ => at.into(),
    }
}

/// A time as text, like `2026-12-31T23:59:59Z`.
pub fn time_text(at: i64) -> String {
    jiff::Timestamp::from_second(at).map_or_else(|_| at.to_string(), |t| t.to_string())
}

impl Terms {
    /// Reads the terms out of a key's data.
    ///
    /// # Errors
    /// The field that is malformed. Such a key must be rejected.
    pub fn read(data: &Map<String, Value>) -> Result<Self, String> {
        let get = |names: &[&str]| names.iter().filter_map(|n| data.get(*n)).find(|v| !is_empty(v));
        let named = |name: &str, why: &str| format!("`{name}` {why}");
        let time = |names: &[&str]| {
            // `expires_at: 0` means no limit, and must not hide an `expired_at`.
            let names: Vec<_> = names
                .iter()
                .copied()
                .filter(|n| data.get(*n).and_then(number) != Some(0.0))
                .collect();
            let name = names.iter().find(|n| data.get(**n).is_some_and(|v| !is_empty(v)));
            name.map(|name| time_seconds(&data[*name]).map_err(|why| named(name, why))).transpose()
        };
        let amount = |name: &str| {
            get(&[name])
                .map(|v| number(v).ok_or_else(|| named(name, "is not a number")))
                .transpose()
        };
        let list = |name: &str| match get(&[name]) {
            Some(value) => nets(value).ok_or_else(|| named(name, "is not a list of addresses")),
            None => Ok(Vec::new()),
        };
        let total = amount("total_quota")?.filter(|total| *total != 0.0);
        if total.is_some_and(|total| total < 0.0) {
            return Err(named("total_quota", NEGATIVE));
        }
        let used = amount("used_quota")?.unwrap_or(0.0);
        let period = get(&["quota_reset_period"]).map_or(Ok(ResetPeriod::Never), |value| {
            let period = value.as_str().and_then(|word| ResetPeriod::named(word.trim()));
            period.ok_or_else(|| {
                named("quota_reset_period", "is not daily, weekly, monthly or never")
            })
        })?;
        let last_reset_at = time(&["last_reset_at"])?.filter(|t| *t > 0);
        own_limits(data)?;
        Ok(Self {
            status: get(&["status"]).map_or(Ok(None), status)?,
            starts_at: time(&["starts_at"])?.filter(|t| *t != NO_TIME),
            expires_at: time(&["expires_at", "expired_at"])?.filter(|t| *t != NO_TIME),
            addresses: IpRules { allowed: list("allowed_ips")?, denied: list("denied_ips")? },
            quota: total.map(|total| Quota { used, total, period, last_reset_at }),
            balance: amount("balance")?,
        })
    }

    /// Whether the key is valid at this time (Unix seconds) and from this address. Reasons that are
    /// `tolerated` are ignored.
    ///
    /// # Errors
    /// The first reason that is not tolerated.
    pub fn check(
        &self,
        now: i64,
        address: Option<IpAddr>,
        tolerated: impl Fn(KeyInvalid) -> bool,
    ) -> Result<(), KeyInvalid> {
        let check = |valid: bool, why| if valid || tolerated(why) { Ok(()) } else { Err(why) };
        self.status.map_or(Ok(()), |why| check(false, why))?;
        check(self.starts_at.is_none_or(|t| now >= t), KeyInvalid::NotYetValid)?;
        check(self.expires_at.is_none_or(|t| now < t), KeyInvalid::Expired)?;
        check(self.addresses.allow(address), KeyInvalid::Address)?;
        let left = |quota: &Quota| quota.used(now) < quota.total;
        check(self.quota.as_ref().is_none_or(left), KeyInvalid::Exhausted)?;
        check(self.balance.is_none_or(|b| b > 0.0), KeyInvalid::Exhausted)
    }

    /// Whether usage must be counted: there is a quota or a balance.
    pub fn counted(&self) -> bool {
        self.quota.is_some() || self.balance.is_some()
    }

    /// How this usage changes the key's data.
    pub fn change(&self, usage: KeyUsage, now: i64) -> UsageChange {
        let due = self.quota.as_ref().and_then(|quota| quota.due_reset(now));
        // A quota that was never reset starts with the current calendar period.
        let first = self.quota.as_ref().filter(|quota| quota.last_reset_at.is_none());
        UsageChange {
            tokens: self.quota.as_ref().map(|_| usage.tokens),
            reset: due.is_some(),
            reset_at: due.or_else(|| first.and_then(|quota| quota.period.start(now, None))),
            credit: self.balance.map(|_| usage.credit),
        }
    }

    /// Quota and balance, for the gateway to count; `None` if there is neither.
    pub fn allowance(&self) -> Option<Allowance> {
        self.counted().then_some(Allowance {
            quota: self.quota,
            balance: self.balance,
            enforced: true,
        })
    }

    /// When the quota is next reset (Unix seconds), if ever.
    pub fn renews_at(&self, now: i64) -> Option<i64> {
        self.quota.as_ref()?.renews_at(now)
    }
}

/// Per-key limits in the data of a key.
///
/// # Errors
/// If they are malformed.
pub fn own_limits(data: &Map<String, Value>) -> Result<Option<OwnLimits>, String> {
    let limits = data.get("limits").filter(|value| !is_empty(value));
    limits.map(OwnLimits::read).transpose().map_err(|why| format!("`limits`: {why}"))
}

/// Stores write an absent value as null or as white space.
fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.trim().is_empty(),
        _ => false,
    }
}

/// A status as a number: 0 active, 1 disabled, 2 quota_exceeded, 3 expired.
pub fn status_number(value: &Value) -> Option<i64> {
    const WORDS: [&str; 4] = ["active", "disabled", "quota_exceeded", "expired"];
    let number = match value {
        Value::String(text) => {
            let text = text.trim();
            let word = WORDS.iter().position(|w| text.eq_ignore_ascii_case(w));
            word.map(|n| n as i64).or_else(|| text.parse().ok())
        }
        other => {
            other.as_i64().or_else(|| other.as_f64().filter(|f| f.fract() == 0.0).map(|f| f as i64))
        }
    };
    number.filter(|n| (0..4).contains(n))
}

fn status(value: &Value) -> Result<Option<KeyInvalid>, String> {
    match status_number(value) {
        Some(0) => Ok(None),
        Some(1) => Ok(Some(KeyInvalid::Disabled)),
        Some(2) => Ok(Some(KeyInvalid::Exhausted)),
        Some(3) => Ok(Some(KeyInvalid::Expired)),
        _ => Err("`status` is not a known status".to_owned()),
    }
}

/// The problem with a negative amount, which other gateways take for "no limit".
pub const NEGATIVE: &str = "is negative: for no limit, write 0 or leave it out";

/// The last second of the year 9999. Milliseconds of any date since 1978 are larger.
const LAST: f64 = 253_402_300_799.0;

/// The first second of the year 1, which some programs write for "never".
const NO_TIME: i64 = -62_135_596_800;

/// A time in Unix seconds, read from a number, a number as text, or a date with or without time and
/// zone.
///
/// # Errors
/// The problem and how to fix it.
pub fn time_seconds(value: &Value) -> Result<i64, &'static str> {
    const WRONG: &str = "is not a time: write Unix seconds, or a date such as 2026-12-31T23:59:59Z";
    if let Some(number) = number(value) {
        return match number.floor() {
            seconds if seconds < 0.0 => {
                Err("is a negative number: write Unix seconds, or 0 for no limit")
            }
            seconds if seconds > LAST => Err(
                "is after the year 9999 and looks like milliseconds: write Unix seconds, or a date such \
                 as 2026-12-31T23:59:59Z",
            ),
            seconds => Ok(seconds as i64),
        };
    }
    let text = value.as_str().ok_or(WRONG)?.trim();
    if let Ok(timestamp) = text.parse::<jiff::Timestamp>() {
        return Ok(timestamp.as_second());
    }
    let civil = |text: &str| text.parse::<jiff::civil::DateTime>();
    let zoned = |civil: jiff::civil::DateTime| civil.to_zoned(jiff::tz::TimeZone::UTC);
    match civil(text).and_then(zoned) {
        Ok(zoned) => Ok(zoned.timestamp().as_second()),
        // Databases write the last day of 9999 for "never". `jiff` rejects it as an instant, because
        // it leaves room for every time zone.
        Err(_) if text.starts_with("9999-12-3") => {
            let date = text.get(..19).or(text.get(..10)).unwrap_or_default();
            civil(date).map(|_| LAST as i64).map_err(|_| WRONG)
        }
        Err(_) => Err(WRONG),
    }
}

/// Networks: a list, a list as JSON text, or text with separators.
fn nets(value: &Value) -> Option<Vec<ipnet::IpNet>> {
    match value {
        Value::Array(items) => items.iter().map(|i| ip::parse(i.as_str()?)).collect(),
        Value::String(text) if text.trim_start().starts_with('[') => {
            nets(&serde_json::from_str(text).ok()?)
        }
        Value::String(text) => {
            let parts = text.split([',', ' ', ';']).filter(|p| !p.trim().is_empty());
            parts.map(ip::parse).collect()
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const NOW: i64 = 1_800_000_000;

    fn check(data: Value) -> Result<(), KeyInvalid> {
        let terms = Terms::read(data.as_object().unwrap()).map_err(|_| KeyInvalid::Disabled)?;
        terms.check(NOW, "10.1.2.3".parse().ok(), |_| false)
    }

    #[test]
    fn what_is_tolerated_is_passed_over_alone() {
        let data = json!({"expires_at": 1, "balance": 0});
        let terms = Terms::read(data.as_object().unwrap()).unwrap();
        let check =
            |tolerated: &[KeyInvalid]| terms.check(NOW, None, |why| tolerated.contains(&why));
        assert_eq!(check(&[]), Err(KeyInvalid::Expired));
        assert_eq!(check(&[KeyInvalid::Expired]), Err(KeyInvalid::Exhausted));
        assert_eq!(check(&[KeyInvalid::Expired, KeyInvalid::Exhausted]), Ok(()));
    }

    #[test]
    fn a_status_means_the_same_as_number_and_as_word() {
        for (forms, expected) in [
            ([json!(0), json!("0"), json!("active")], Ok(())),
            ([json!(1), json!("1"), json!("disabled")], Err(KeyInvalid::Disabled)),
            ([json!(2), json!("2"), json!("quota_exceeded")], Err(KeyInvalid::Exhausted)),
            ([json!(3), json!("3"), json!("Expired")], Err(KeyInvalid::Expired)),
            ([json!(9), json!("paused"), json!(true)], Err(KeyInvalid::Disabled)),
        ] {
            for form in forms {
                assert_eq!(check(json!({"status": form})), expected, "{form}");
            }
        }
        assert_eq!(check(json!({})), Ok(()));
        assert_eq!(check(json!({"status": "", "expires_at": null})), Ok(()));
    }

    #[test]
    fn times_are_understood_in_every_form() {
        for (past, future) in [
            (json!(NOW - 1), json!(NOW + 1)),
            (json!("1799999999"), json!("1800000001.5")),
            (json!("2027-01-15T07:59:59Z"), json!("2027-01-15T08:00:01Z")),
            (json!("2027-01-15 07:59:59"), json!("2027-01-15 08:00:01")),
            (json!("2027-01-15T08:59:59+01:00"), json!("2027-01-15T09:00:01+01:00")),
            (json!("2027-01-15"), json!("2027-01-16")),
        ] {
            assert_eq!(check(json!({"expires_at": past})), Err(KeyInvalid::Expired), "{past}");
            assert_eq!(check(json!({"expired_at": past})), Err(KeyInvalid::Expired), "{past}");
            assert_eq!(check(json!({"expires_at": future})), Ok(()), "{future}");
            assert_eq!(check(json!({"starts_at": past})), Ok(()), "{past}");
            assert_eq!(
                check(json!({"starts_at": future})),
                Err(KeyInvalid::NotYetValid),
                "{future}"
            );
        }
        assert_eq!(check(json!({"expires_at": 0})), Ok(()));
        assert_eq!(check(json!({"expires_at": "soon"})), Err(KeyInvalid::Disabled));
        // A time long ago is not "never", except the first second of the year 1.
        assert_eq!(check(json!({"expires_at": "1969-12-31T23:59:59Z"})), Err(KeyInvalid::Expired));
        assert_eq!(check(json!({"expires_at": "1970-01-01"})), Err(KeyInvalid::Expired));
        assert_eq!(check(json!({"starts_at": "1900-01-01"})), Ok(()));
        assert_eq!(check(json!({"expires_at": "0001-01-01T00:00:00Z"})), Ok(()));
    }

    #[test]
    fn what_cannot_be_seconds_is_no_time() {
        let why = |name: &str, value: Value| {
            let data = json!({name: value});
            Terms::read(data.as_object().unwrap()).err().unwrap_or_default()
        };
        let last = LAST as i64;
        for name in ["starts_at", "expires_at", "expired_at", "last_reset_at"] {
            // Milliseconds, microseconds and nanoseconds of today, in every form; and of 1980.
            for scale in [1e3, 1e6, 1e9] {
                let number = NOW as f64 * scale;
                for value in [json!(number), json!(number as u64), json!(format!("{number}"))] {
                    let why = why(name, value.clone());
                    assert!(why.starts_with(&format!("`{name}`")), "{value}: {why}");
                    assert!(why.contains("looks like milliseconds: write Unix seconds"), "{why}");
                }
            }
            assert!(why(name, json!(315_532_800_000_i64)).contains("milliseconds"), "{name}");
            assert!(why(name, json!(last + 1)).contains("milliseconds"), "{name}");
            assert!(why(name, json!(-1)).contains("0 for no limit"), "{name}");
            assert!(why(name, json!("-5.5")).contains("0 for no limit"), "{name}");
            // What databases hold for "never" is a date.
            for fine in [
                json!(last),
                json!(format!("{last}")),
                json!("9999-12-31 23:59:59"),
                json!("9999-12-31T23:59:59Z"),
                json!("9999-12-31"),
                json!(0),
            ] {
                assert_eq!(why(name, fine.clone()), "", "{name} {fine}");
            }
        }
    }

    #[test]
    fn a_negative_quota_is_not_one_without_end() {
        for total in [json!(-1), json!(-0.5), json!("-1"), json!(" -1e9 ")] {
            let data = json!({"total_quota": total, "used_quota": 5});
            let why = Terms::read(data.as_object().unwrap()).unwrap_err();
            assert!(
                why.contains("`total_quota` is negative: for no limit, write 0 or leave it out"),
                "{why}"
            );
            assert_eq!(check(data), Err(KeyInvalid::Disabled));
        }
        // Below 0 are a balance that is overdrawn, and tokens that were given back.
        assert_eq!(check(json!({"balance": -1})), Err(KeyInvalid::Exhausted));
        assert_eq!(check(json!({"total_quota": 5, "used_quota": -1})), Ok(()));
        assert_eq!(check(json!({"total_quota": -0.0})), Ok(()));
    }

    #[test]
    fn quota_and_balance_run_out() {
        for (data, expected) in [
            (json!({"total_quota": 10, "used_quota": 9}), Ok(())),
            (json!({"total_quota": "10", "used_quota": "10"}), Err(KeyInvalid::Exhausted)),
            (json!({"total_quota": 0, "used_quota": 10}), Ok(())),
            (json!({"used_quota": 10}), Ok(())),
            (json!({"balance": "0.01"}), Ok(())),
            (json!({"balance": 0}), Err(KeyInvalid::Exhausted)),
            (json!({"balance": "-3.5"}), Err(KeyInvalid::Exhausted)),
            (json!({"balance": "much"}), Err(KeyInvalid::Disabled)),
            (json!({"balance": "NaN"}), Err(KeyInvalid::Disabled)),
        ] {
            assert_eq!(check(data.clone()), expected, "{data}");
        }
    }

    const DAY: i64 = 24 * 3600;

    #[test]
    fn a_quota_begins_anew_when_its_period_is_over() {
        let used = |period: Value, last: Value| {
            check(json!({"total_quota": 10, "used_quota": 10, "quota_reset_period": period,
                "last_reset_at": last}))
        };
        assert_eq!(used(json!("daily"), json!(NOW - DAY)), Ok(()));
        assert_eq!(used(json!(" Daily "), json!("2027-01-14T08:00:00Z")), Ok(()));
        assert_eq!(used(json!("daily"), json!(NOW - DAY + 1)), Err(KeyInvalid::Exhausted));
        assert_eq!(used(json!("weekly"), json!(NOW - DAY)), Err(KeyInvalid::Exhausted));
        assert_eq!(used(json!("monthly"), json!(NOW - 31 * DAY)), Ok(()));
        assert_eq!(used(json!("never"), json!(1)), Err(KeyInvalid::Exhausted));
        assert_eq!(used(json!(null), json!(1)), Err(KeyInvalid::Exhausted));
        assert_eq!(used(json!("daily"), json!(null)), Err(KeyInvalid::Exhausted));
        assert_eq!(used(json!("daily"), json!(0)), Err(KeyInvalid::Exhausted));
        assert_eq!(used(json!("yearly"), json!(1)), Err(KeyInvalid::Disabled));
        assert_eq!(used(json!(1), json!(1)), Err(KeyInvalid::Disabled));
        assert_eq!(used(json!("daily"), json!("once")), Err(KeyInvalid::Disabled));
    }

    #[test]
    fn counting_changes_what_is_counted() {
        let used = KeyUsage { tokens: 25.0, credit: 0.5 };
        let counted = |data: Value| {
            let mut data = data.as_object().unwrap().clone();
            let terms = Terms::read(&data).unwrap();
            terms.change(used, NOW).apply(&mut data);
            Value::Object(data)
        };
        let same = json!({"used_quota": 5, "name": "n", "total_quota": 0});
        assert_eq!(counted(same.clone()), same);
        assert_eq!(counted(json!({"balance": "10"})), json!({"balance": 9.5}));
        assert_eq!(
            counted(json!({"total_quota": "100", "used_quota": "5"})),
            json!({"total_quota": "100", "used_quota": 30})
        );
        let of = |used: Value, last: Value| {
            json!({"total_quota": 100, "quota_reset_period": "daily", "used_quota": used,
                "last_reset_at": last})
        };
        // 2027-01-15T08:00:00Z.
        let midnight = NOW - 8 * 3600;
        assert_eq!(counted(of(json!(5), json!(null))), of(json!(30), json!(midnight)));
        assert_eq!(counted(of(json!(5), json!(NOW - 9))), of(json!(30), json!(NOW - 9)));
        let two_days = NOW - 2 * DAY - 9;
        assert_eq!(counted(of(json!(5), json!(two_days))), of(json!(25), json!(NOW - 9)));
        let text = |text: &str| of(json!(25), json!(text));
        assert_eq!(counted(text("2027-01-13T07:00:00Z")), text("2027-01-15T07:00:00Z"));
        assert_eq!(counted(text("1799823591")), text("1799996391"));
    }

    #[test]
    fn an_allowance_is_what_is_left_of_the_period() {
        let of = |data: Value| Terms::read(data.as_object().unwrap()).unwrap().allowance();
        let quota = |last: i64| {
            let data = json!({"total_quota": 30, "used_quota": 5, "quota_reset_period": "daily",
                "last_reset_at": last, "balance": "2.5"});
            of(data).unwrap()
        };
        let fresh = quota(NOW - 9);
        assert_eq!(fresh.balance, Some(2.5));
        let fresh = fresh.quota.unwrap();
        assert_eq!((fresh.left(NOW), fresh.renews_at(NOW)), (25.0, Some(NOW - 9 + DAY)));
        assert_eq!(fresh.left(NOW + DAY), 30.0);
        assert_eq!(quota(NOW - DAY).quota.unwrap().left(NOW), 30.0);
        assert_eq!(of(json!({"total_quota": 0})), None);
    }

    #[test]
    fn addresses_are_understood_in_every_form() {
        for (here, elsewhere) in [
            (json!(["10.0.0.0/8"]), json!(["192.0.2.0/24"])),
            (json!("10.1.2.3, 192.0.2.1"), json!("192.0.2.1")),
            (json!("[\"10.1.2.3\"]"), json!("[\"192.0.2.1\"]")),
        ] {
            assert_eq!(check(json!({"allowed_ips": here})), Ok(()), "{here}");
            assert_eq!(check(json!({"denied_ips": here})), Err(KeyInvalid::Address), "{here}");
            assert_eq!(check(json!({"allowed_ips": elsewhere})), Err(KeyInvalid::Address));
            assert_eq!(check(json!({"denied_ips": elsewhere})), Ok(()));
        }
        assert_eq!(check(json!({"allowed_ips": []})), Ok(()));
        assert_eq!(check(json!({"allowed_ips": ["office"]})), Err(KeyInvalid::Disabled));
        assert_eq!(check(json!({"allowed_ips": 7})), Err(KeyInvalid::Disabled));
    }
}
