//! Queries for usage records and their sums, as SQL.

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use jiff::{Timestamp, civil::Date, tz::TimeZone};
use serde_json::{Value, json};

use super::{
    record_table::RecordTable,
    schema::{self, AT, DAY},
};
use crate::store::sql::{Driver, Row, Statement};

/// A column by which records can be filtered or grouped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
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

    /// From `key`, `user`, `team`, `model` or `day`.
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

/// Which records to return.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Filter {
    /// Arrived at this time or later: milliseconds since 1970.
    pub from: Option<i64>,
    /// Arrived before this time: milliseconds since 1970.
    pub to: Option<i64>,
    /// Columns that equal these texts, byte for byte.
    pub equal: Vec<(Column, String)>,
    /// Only streams, or only other requests.
    pub stream: Option<bool>,
}

/// The sums over a group of records.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sums {
    /// The values that the records share, in the order of the requested columns.
    pub group: Vec<(Column, String)>,
    pub requests: i64,
    /// Requests whose outcome is not `complete`.
    pub errors: i64,
    pub prompt_tokens: i64,
    pub completion_tokens: i64,
    pub total_tokens: i64,
    pub cached_tokens: i64,
    pub cache_write_tokens: i64,
    pub reasoning_tokens: i64,
    pub audio_prompt_tokens: i64,
    pub audio_completion_tokens: i64,
    /// `None` if none of the models has a price.
    pub cost: Option<f64>,
}

/// Milliseconds since 1970, from RFC 3339 or from a date, which begins at midnight, UTC.
pub fn moment(text: &str) -> Option<i64> {
    let time = text.parse::<Timestamp>().ok().or_else(|| {
        let date = Some(text).filter(|text| text.len() == 10)?.parse::<Date>().ok()?;
        date.to_zoned(TimeZone::UTC).ok().map(|midnight| midnight.timestamp())
    })?;
    Some(time.as_millisecond())
}

/// Where the next page of a result begins. It names the last row, not a count, so that rows that come or
/// go between two pages shift nothing.
#[derive(Clone, Debug, PartialEq)]
pub enum PageCursor {
    /// After this record: its time and its `record_id`.
    Record(i64, String),
    /// After this group.
    Group(Vec<(String, String)>),
}

impl PageCursor {
    /// As base64 for a URL.
    pub fn encode(&self) -> String {
        let value = match self {
            Self::Record(at, id) => json!([at, id]),
            Self::Group(values) => json!({"after": values}),
        };
        BASE64_URL_SAFE_NO_PAD.encode(value.to_string())
    }

    /// From text, for sums grouped by these columns, or for records if there are none. `None` if it is
    /// not a cursor of such a result.
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
pub fn after_record(row: &Row) -> PageCursor {
    let at = row.get(AT).and_then(Value::as_i64).unwrap_or_default();
    let id = row.get("record_id").and_then(Value::as_str).unwrap_or_default();
    PageCursor::Record(at, id.to_owned())
}

/// The cursor after a group.
pub fn after_sums(group: &[(Column, String)]) -> PageCursor {
    PageCursor::Group(group.iter().map(|(c, value)| (c.name().to_owned(), value.clone())).collect())
}

pub fn records(
    table: &RecordTable,
    filter: &Filter,
    after: Option<&PageCursor>,
    limit: usize,
) -> Statement {
    let (at, id) = (table.quote(AT), table.quote("record_id"));
    let columns = schema::field_names().filter(|name| *name != "timestamp").chain([AT]);
    let columns: Vec<_> = columns.map(|name| table.quote(name)).collect();
    let mut query = Statement::new(table.driver(), format!("SELECT {}", columns.join(", ")));
    add_filter(&mut query, table, filter);
    if let Some(PageCursor::Record(time, last)) = after {
        query.push(&format!(" AND {at} <= ")).bind(*time);
        query.push(&format!(" AND ({at} < ")).bind(*time);
        query.push(&format!(" OR {id} < ")).bind(last.as_str()).push(")");
    }
    query.push(&format!(" ORDER BY {at} DESC, {id} DESC LIMIT {limit}"));
    query
}

/// The columns that are added up.
const SUMS: [&str; 8] = [
    "prompt_tokens",
    "completion_tokens",
    "total_tokens",
    "cached_tokens",
    "cache_write_tokens",
    "reasoning_tokens",
    "audio_prompt_tokens",
    "audio_completion_tokens",
];

pub fn sums(
    table: &RecordTable,
    filter: &Filter,
    by: &[Column],
    after: Option<&PageCursor>,
    limit: usize,
) -> Statement {
    let driver = table.driver();
    let sum = |what: String| match driver {
        // SUM fails on overflow; TOTAL is cut to the largest integer.
        Driver::Sqlite => format!("CAST(TOTAL({what}) AS INTEGER)"),
        // SUM returns a decimal in both.
        Driver::Mysql => format!("CAST(LEAST(COALESCE(SUM({what}), 0), {}) AS SIGNED)", i64::MAX),
        Driver::Postgres => {
            format!("CAST(LEAST(COALESCE(SUM({what}), 0), {}) AS BIGINT)", i64::MAX)
        }
    };
    let groups: Vec<_> = by.iter().map(|column| table.exact(column.name())).collect();
    let mut parts: Vec<_> =
        groups.iter().enumerate().map(|(i, group)| format!("{group} AS group_{i}")).collect();
    let failed = format!("CASE WHEN {} = 'complete' THEN 0 ELSE 1 END", table.quote("outcome"));
    parts.push("COUNT(*) AS requests".to_owned());
    parts.push(format!("{} AS errors", sum(failed)));
    parts.extend(SUMS.map(|name| format!("{} AS sum_{name}", sum(table.quote(name)))));
    parts.push(format!("SUM({}) AS sum_cost", table.quote("cost")));
    let mut query = Statement::new(driver, format!("SELECT {}", parts.join(", ")));
    add_filter(&mut query, table, filter);
    if let Some(PageCursor::Group(values)) = after {
        query.push(&format!(" AND ({}) > (", groups.join(", ")));
        for (i, (_, value)) in values.iter().enumerate() {
            query.push(if i > 0 { ", " } else { "" });
            bind_exact(&mut query, driver, value);
        }
        query.push(")");
    }
    let places: Vec<_> = (1..=by.len()).map(|i| i.to_string()).collect();
    let places = places.join(", ");
    query.push(&format!(" GROUP BY {places} ORDER BY {places} LIMIT {limit}"));
    query
}

pub fn sums_of_row(row: &Row, by: &[Column]) -> Sums {
    let text = |i: usize| row.get(&format!("group_{i}")).and_then(Value::as_str);
    let number = |name: &str| row.get(name).and_then(Value::as_i64).unwrap_or_default();
    let group = |(i, column): (usize, &Column)| (*column, text(i).unwrap_or_default().to_owned());
    let sum = |column: &str| number(&format!("sum_{column}"));
    Sums {
        group: by.iter().enumerate().map(group).collect(),
        requests: number("requests"),
        errors: number("errors"),
        prompt_tokens: sum("prompt_tokens"),
        completion_tokens: sum("completion_tokens"),
        total_tokens: sum("total_tokens"),
        cached_tokens: sum("cached_tokens"),
        cache_write_tokens: sum("cache_write_tokens"),
        reasoning_tokens: sum("reasoning_tokens"),
        audio_prompt_tokens: sum("audio_prompt_tokens"),
        audio_completion_tokens: sum("audio_completion_tokens"),
        cost: row.get("sum_cost").and_then(Value::as_f64),
    }
}

/// Adds FROM and WHERE.
fn add_filter(query: &mut Statement, table: &RecordTable, filter: &Filter) {
    let at = table.quote(AT);
    query.push(&format!(" FROM {} WHERE {at} IS NOT NULL", table.quoted_name));
    if let Some(from) = filter.from {
        query.push(&format!(" AND {at} >= ")).bind(from);
    }
    if let Some(to) = filter.to {
        query.push(&format!(" AND {at} < ")).bind(to);
    }
    for (column, text) in &filter.equal {
        let name = table.quote(column.name());
        let text = schema::truncated(column.name(), text);
        if text.is_empty() {
            query.push(&format!(" AND ({name} = '' OR {name} IS NULL)"));
            continue;
        }
        // This comparison can use the index.
        query.push(&format!(" AND {name} = ")).bind(text);
        if table.driver() == Driver::Mysql {
            query.push(&format!(" AND {} = ", table.exact(column.name())));
            bind_exact(query, Driver::Mysql, text);
        }
    }
    if let Some(stream) = filter.stream {
        let flag = table.quote("is_stream");
        match stream {
            true => query.push(&format!(" AND {flag} = 1")),
            false => query.push(&format!(" AND ({flag} = 0 OR {flag} IS NULL)")),
        };
    }
}

/// Binds a text that is compared with [`RecordTable::exact`].
fn bind_exact(query: &mut Statement, driver: Driver, text: &str) {
    match driver {
        Driver::Mysql => query.push("CAST(").bind(text).push(" AS BINARY)"),
        Driver::Sqlite | Driver::Postgres => query.bind(text),
    };
}

impl RecordTable {
    /// A text column as an expression that compares byte for byte and is never NULL.
    fn exact(&self, column: &str) -> String {
        let name = self.quote(column);
        match self.driver() {
            Driver::Sqlite => format!("COALESCE({name}, '')"),
            Driver::Postgres => format!("COALESCE(CAST({name} AS TEXT), '')"),
            // Collations of earlier columns may ignore case, and all ignore trailing spaces.
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

    fn table(driver: Driver) -> Arc<RecordTable> {
        let target = Target::Dsn(crate::base::Secret::new("nowhere"));
        let settings = Settings { driver, target, ..Settings::own_file("x".into()) };
        let table = "usage_records".to_owned();
        let plan = TablePlan { settings, table, batch_size: 1, retention: None, own: false };
        RecordTable::new(&plan, &Stores::default())
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
        let table = table(Driver::Postgres);
        let after = PageCursor::Record(9, "rec_9".to_owned());
        let query = records(&table, &filter(), Some(&after), 11);
        let (columns, rest) = query.sql().split_once(" FROM ").unwrap();
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
        let table = table(Driver::Mysql);
        let by = [Column::UserId, Column::Day];
        let after = after_sums(&[(Column::UserId, "u".into()), (Column::Day, "2026-11-21".into())]);
        let only = Filter { equal: vec![(Column::Model, "m".to_owned())], ..Filter::default() };
        let query = sums(&table, &only, &by, Some(&after), 3);
        let exact = |name| format!("CAST(CONVERT(COALESCE(`{name}`, '') USING utf8mb4) AS BINARY)");
        let (user, day, model) = (exact("user_id"), exact("day"), exact("model"));
        let (head, rest) = query.sql().split_once(" FROM ").unwrap();
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
        let record = PageCursor::Record(-5, "rec_\u{e4}".to_owned());
        let group = after_sums(&[(Column::Team, "a,b".to_owned()), (Column::Day, String::new())]);
        let by = [Column::Team, Column::Day];
        assert_eq!(PageCursor::decode(&record.encode(), &[]), Some(record.clone()));
        assert_eq!(PageCursor::decode(&group.encode(), &by), Some(group.clone()));
        assert_eq!(PageCursor::decode(&group.encode(), &[]), None);
        assert_eq!(PageCursor::decode(&record.encode(), &by), None);
        assert_eq!(PageCursor::decode(&group.encode(), &[Column::Day, Column::Team]), None);
        for wrong in ["", "a", "bm90aGluZw", "\u{e4}"] {
            assert_eq!(PageCursor::decode(wrong, &[]), None, "{wrong}");
            assert_eq!(PageCursor::decode(wrong, &by), None, "{wrong}");
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
