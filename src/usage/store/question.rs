//! Questions about records, as SQL.

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use jiff::{Timestamp, civil::Date, tz::TimeZone};
use serde_json::{Value, json};

use super::{
    Place, Sums,
    schema::{self, AT, DAY},
};
use crate::store::sql::{Driver, Row, Statement};

/// A column by which records can be told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[expect(missing_docs, reason = "as in the record")]
pub enum Column {
    KeyId,
    KeyName,
    UserId,
    Team,
    Model,
    Outcome,
    RequestId,
    Backend,
    Day,
}

impl Column {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::KeyId => "key_id",
            Self::KeyName => "key_name",
            Self::UserId => "user_id",
            Self::Team => "team",
            Self::Model => "model",
            Self::Outcome => "outcome",
            Self::RequestId => "request_id",
            Self::Backend => "backend_url",
            Self::Day => DAY,
        }
    }

    /// What records can be grouped by: `key`, `user`, `team`, `model` or `day`.
    pub fn grouping(word: &str) -> Option<Self> {
        Some(match word {
            "key" => Self::KeyId,
            "user" => Self::UserId,
            "team" => Self::Team,
            "model" => Self::Model,
            "day" => Self::Day,
            _ => return None,
        })
    }
}

/// Which records.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Filter {
    /// Those that came at this moment or later: milliseconds since 1970.
    pub from: Option<i64>,
    /// Those that came before this moment: milliseconds since 1970.
    pub to: Option<i64>,
    /// Those with exactly these texts.
    pub equal: Vec<(Column, String)>,
    /// Streams, or all others.
    pub stream: Option<bool>,
}

/// A moment in milliseconds since 1970, from RFC 3339 or from a date, which begins at midnight, UTC.
pub fn moment(text: &str) -> Option<i64> {
    let time = text.parse::<Timestamp>().ok().or_else(|| {
        let date = Some(text).filter(|text| text.len() == 10)?.parse::<Date>().ok()?;
        date.to_zoned(TimeZone::UTC).ok().map(|midnight| midnight.timestamp())
    })?;
    Some(time.as_millisecond())
}

/// The place in an answer where its next part begins. Places are told by what stands there, so that
/// rows that come and go meanwhile shift nothing.
#[derive(Clone, Debug, PartialEq)]
pub enum Cursor {
    /// After this record: its time, and its identity.
    Record(i64, String),
    /// After this group.
    Group(Vec<(String, String)>),
}

impl Cursor {
    /// As text for a URL.
    pub fn encode(&self) -> String {
        let value = match self {
            Self::Record(at, id) => json!([at, id]),
            Self::Group(values) => json!({"after": values}),
        };
        BASE64_URL_SAFE_NO_PAD.encode(value.to_string())
    }

    /// From text, for sums by these columns, or for records if there are none. `None` if it is no
    /// cursor of such an answer.
    pub fn decode(text: &str, by: &[Column]) -> Option<Self> {
        let bytes = BASE64_URL_SAFE_NO_PAD.decode(text).ok()?;
        if by.is_empty() {
            let (at, id) = serde_json::from_slice(&bytes).ok()?;
            return Some(Self::Record(at, id));
        }
        let mut value: Value = serde_json::from_slice(&bytes).ok()?;
        let values: Vec<(String, String)> =
            serde_json::from_value(value.get_mut("after")?.take()).ok()?;
        let same = values.iter().map(|(name, _)| name.as_str()).eq(by.iter().map(|c| c.name()));
        same.then_some(Self::Group(values))
    }
}

/// The cursor after a record.
pub fn after_record(row: &Row) -> Cursor {
    let at = row.get(AT).and_then(Value::as_i64).unwrap_or_default();
    let id = row.get("record_id").and_then(Value::as_str).unwrap_or_default();
    Cursor::Record(at, id.to_owned())
}

/// The cursor after a group.
pub fn after_sums(group: &[(Column, String)]) -> Cursor {
    Cursor::Group(group.iter().map(|(c, value)| (c.name().to_owned(), value.clone())).collect())
}

/// Asks for records.
pub fn records(place: &Place, filter: &Filter, after: Option<&Cursor>, limit: usize) -> Statement {
    let (at, id) = (place.quote(AT), place.quote("record_id"));
    let columns = schema::names().filter(|name| *name != "timestamp").chain([AT]);
    let columns: Vec<_> = columns.map(|name| place.quote(name)).collect();
    let mut ask = Statement::new(place.driver(), format!("SELECT {}", columns.join(", ")));
    those(&mut ask, place, filter);
    if let Some(Cursor::Record(time, last)) = after {
        ask.push(&format!(" AND {at} <= ")).bind(*time);
        ask.push(&format!(" AND ({at} < ")).bind(*time);
        ask.push(&format!(" OR {id} < ")).bind(last.as_str()).push(")");
    }
    ask.push(&format!(" ORDER BY {at} DESC, {id} DESC LIMIT {limit}"));
    ask
}

const SUMS: [&str; 5] =
    ["prompt_tokens", "completion_tokens", "total_tokens", "cached_tokens", "reasoning_tokens"];

/// Asks for sums.
pub fn sums(
    place: &Place,
    filter: &Filter,
    by: &[Column],
    after: Option<&Cursor>,
    limit: usize,
) -> Statement {
    let driver = place.driver();
    let sum = |what: String| match driver {
        // SUM would be an error if it is too large, this is the largest number.
        Driver::Sqlite => format!("CAST(TOTAL({what}) AS INTEGER)"),
        // Both add up to decimals.
        Driver::Mysql => format!("CAST(LEAST(COALESCE(SUM({what}), 0), {}) AS SIGNED)", i64::MAX),
        Driver::Postgres => {
            format!("CAST(LEAST(COALESCE(SUM({what}), 0), {}) AS BIGINT)", i64::MAX)
        }
    };
    let groups: Vec<_> = by.iter().map(|column| place.exact(column.name())).collect();
    let mut parts: Vec<_> =
        groups.iter().enumerate().map(|(i, group)| format!("{group} AS group_{i}")).collect();
    let failed = format!("CASE WHEN {} = 'complete' THEN 0 ELSE 1 END", place.quote("outcome"));
    parts.push("COUNT(*) AS requests".to_owned());
    parts.push(format!("{} AS errors", sum(failed)));
    parts.extend(SUMS.map(|name| format!("{} AS sum_{name}", sum(place.quote(name)))));
    parts.push(format!("SUM({}) AS sum_cost", place.quote("cost")));
    let mut ask = Statement::new(driver, format!("SELECT {}", parts.join(", ")));
    those(&mut ask, place, filter);
    if let Some(Cursor::Group(values)) = after {
        ask.push(&format!(" AND ({}) > (", groups.join(", ")));
        for (i, (_, value)) in values.iter().enumerate() {
            ask.push(if i > 0 { ", " } else { "" });
            bytes(&mut ask, driver, value);
        }
        ask.push(")");
    }
    let places: Vec<_> = (1..=by.len()).map(|i| i.to_string()).collect();
    let places = places.join(", ");
    ask.push(&format!(" GROUP BY {places} ORDER BY {places} LIMIT {limit}"));
    ask
}

/// The sums of a row.
pub fn summed(row: &Row, by: &[Column]) -> Sums {
    let text = |i: usize| row.get(&format!("group_{i}")).and_then(Value::as_str);
    let number = |name: &str| row.get(name).and_then(Value::as_i64).unwrap_or_default();
    let group = |(i, column): (usize, &Column)| (*column, text(i).unwrap_or_default().to_owned());
    let [prompt_tokens, completion_tokens, total_tokens, cached_tokens, reasoning_tokens] =
        SUMS.map(|name| number(&format!("sum_{name}")));
    Sums {
        group: by.iter().enumerate().map(group).collect(),
        requests: number("requests"),
        errors: number("errors"),
        prompt_tokens,
        completion_tokens,
        total_tokens,
        cached_tokens,
        reasoning_tokens,
        cost: row.get("sum_cost").and_then(Value::as_f64),
    }
}

/// FROM and WHERE.
fn those(ask: &mut Statement, place: &Place, filter: &Filter) {
    let at = place.quote(AT);
    ask.push(&format!(" FROM {} WHERE {at} IS NOT NULL", place.table));
    if let Some(from) = filter.from {
        ask.push(&format!(" AND {at} >= ")).bind(from);
    }
    if let Some(to) = filter.to {
        ask.push(&format!(" AND {at} < ")).bind(to);
    }
    for (column, text) in &filter.equal {
        let name = place.quote(column.name());
        let text = schema::held(column.name(), text);
        if text.is_empty() {
            ask.push(&format!(" AND ({name} = '' OR {name} IS NULL)"));
            continue;
        }
        // By this it finds the index.
        ask.push(&format!(" AND {name} = ")).bind(text);
        if place.driver() == Driver::Mysql {
            ask.push(&format!(" AND {} = ", place.exact(column.name())));
            bytes(ask, Driver::Mysql, text);
        }
    }
    if let Some(stream) = filter.stream {
        let flag = place.quote("is_stream");
        match stream {
            true => ask.push(&format!(" AND {flag} = 1")),
            false => ask.push(&format!(" AND ({flag} = 0 OR {flag} IS NULL)")),
        };
    }
}

/// A text to compare with [`Place::exact`].
fn bytes(ask: &mut Statement, driver: Driver, text: &str) {
    match driver {
        Driver::Mysql => ask.push("CAST(").bind(text).push(" AS BINARY)"),
        Driver::Sqlite | Driver::Postgres => ask.bind(text),
    };
}

impl Place {
    /// A text column as an expression of which every difference counts, and that is never NULL.
    fn exact(&self, column: &str) -> String {
        let name = self.quote(column);
        match self.driver() {
            Driver::Sqlite => format!("COALESCE({name}, '')"),
            Driver::Postgres => format!("COALESCE(CAST({name} AS TEXT), '')"),
            // Columns of earlier versions may pass over case, all of them over spaces at the end.
            Driver::Mysql => format!("CAST(CONVERT(COALESCE({name}, '') USING utf8mb4) AS BINARY)"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{
        config::plan::TablePlan,
        store::{
            Stores,
            sql::{Settings, Target},
        },
    };

    fn place(driver: Driver) -> Arc<Place> {
        let target = Target::Dsn(crate::base::Secret::new("nowhere"));
        let settings = Settings { driver, target, ..Settings::own_file("x".into()) };
        let table = "usage_records".to_owned();
        let plan = TablePlan { settings, table, batch_size: 1, retention: None, own: false };
        Place::new(&plan, &Stores::default())
    }

    fn filter() -> Filter {
        Filter {
            from: Some(1),
            to: Some(2),
            equal: vec![(Column::UserId, "u".to_owned()), (Column::Team, String::new())],
            stream: Some(false),
        }
    }

    #[test]
    fn records_are_asked_for_with_filters_and_a_place() {
        let place = place(Driver::Postgres);
        let after = Cursor::Record(9, "rec_9".to_owned());
        let ask = records(&place, &filter(), Some(&after), 11);
        let (columns, rest) = ask.sql().split_once(" FROM ").unwrap();
        assert!(columns.ends_with("\"usage_source\", \"at_ms\"") && !columns.contains("timestamp"));
        assert_eq!(
            rest,
            "\"usage_records\" WHERE \"at_ms\" IS NOT NULL AND \"at_ms\" >= $1 AND \"at_ms\" < $2 \
             AND \"user_id\" = $3 AND (\"team\" = '' OR \"team\" IS NULL) \
             AND (\"is_stream\" = 0 OR \"is_stream\" IS NULL) \
             AND \"at_ms\" <= $4 AND (\"at_ms\" < $5 OR \"record_id\" < $6) \
             ORDER BY \"at_ms\" DESC, \"record_id\" DESC LIMIT 11"
        );
    }

    #[test]
    fn sums_are_asked_for_group_by_group() {
        let place = place(Driver::Mysql);
        let by = [Column::UserId, Column::Day];
        let after = after_sums(&[(Column::UserId, "u".into()), (Column::Day, "2026-11-21".into())]);
        let only = Filter { equal: vec![(Column::Model, "m".to_owned())], ..Filter::default() };
        let ask = sums(&place, &only, &by, Some(&after), 3);
        let exact = |name| format!("CAST(CONVERT(COALESCE(`{name}`, '') USING utf8mb4) AS BINARY)");
        let (user, day, model) = (exact("user_id"), exact("day"), exact("model"));
        let (head, rest) = ask.sql().split_once(" FROM ").unwrap();
        assert!(head.starts_with(&format!("SELECT {user} AS group_0, {day} AS group_1, COUNT(*)")));
        assert!(
            head.contains("CAST(LEAST(COALESCE(SUM(`cached_tokens`), 0), 9223372036854775807)")
        );
        assert_eq!(
            rest,
            format!(
                "`usage_records` WHERE `at_ms` IS NOT NULL AND `model` = ? \
                 AND {model} = CAST(? AS BINARY) \
                 AND ({user}, {day}) > (CAST(? AS BINARY), CAST(? AS BINARY)) \
                 GROUP BY 1, 2 ORDER BY 1, 2 LIMIT 3"
            )
        );
    }

    #[test]
    fn cursors_are_texts_and_belong_to_a_question() {
        let record = Cursor::Record(-5, "rec_\u{e4}".to_owned());
        let group = after_sums(&[(Column::Team, "a,b".to_owned()), (Column::Day, String::new())]);
        let by = [Column::Team, Column::Day];
        assert_eq!(Cursor::decode(&record.encode(), &[]), Some(record.clone()));
        assert_eq!(Cursor::decode(&group.encode(), &by), Some(group.clone()));
        assert_eq!(Cursor::decode(&group.encode(), &[]), None);
        assert_eq!(Cursor::decode(&record.encode(), &by), None);
        assert_eq!(Cursor::decode(&group.encode(), &[Column::Day, Column::Team]), None);
        for wrong in ["", "a", "bm90aGluZw", "\u{e4}"] {
            assert_eq!(Cursor::decode(wrong, &[]), None, "{wrong}");
            assert_eq!(Cursor::decode(wrong, &by), None, "{wrong}");
        }
    }

    #[test]
    fn moments_are_times_or_dates() {
        assert_eq!(moment("1970-01-02"), Some(86_400_000));
        assert_eq!(moment("1970-01-01T01:00:00.25+01:00"), Some(250));
        for wrong in ["", "yesterday", "1970-13-01", "1970-01-01T00:00:00", "5"] {
            assert_eq!(moment(wrong), None, "{wrong}");
        }
    }
}
