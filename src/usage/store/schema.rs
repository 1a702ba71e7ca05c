//! The columns of the usage table, and the conversion between records and rows.

use std::sync::LazyLock;

use jiff::{Timestamp, tz::TimeZone};
use serde_json::{Map, Value, json};

use crate::{
    store::sql::{Bind, ColumnType, Driver, ExistingTable, Row, Statement, TableDefinition, quote},
    usage::{record::Record, spool::Entry},
};

/// What a record contains where the row has NULL.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Absent {
    /// No member.
    Omitted,
    /// `null`.
    Null,
    /// An empty string, 0 or `false`.
    Empty,
}

/// A field of records, which is a column.
struct Field {
    name: &'static str,
    holds: ColumnType,
    absent: Absent,
}

const fn field(name: &'static str, holds: ColumnType) -> Field {
    Field { name, holds, absent: Absent::Empty }
}

const fn optional(name: &'static str, holds: ColumnType) -> Field {
    Field { name, holds, absent: Absent::Omitted }
}

/// Text that may be indexed: databases limit its length.
const NAME: ColumnType = ColumnType::Short(255);

/// The fields in the order of [`Record`]. `usage` is left out: it repeats other fields.
const FIELDS: [Field; 39] = [
    field("record_id", ColumnType::Short(64)),
    field("version", ColumnType::Whole),
    field("process", ColumnType::Short(64)),
    field("sequence", ColumnType::Whole),
    field("request_id", NAME),
    field("user_id", NAME),
    field("api_key", NAME),
    optional("key_id", NAME),
    optional("key_name", NAME),
    optional("team", NAME),
    optional("tier", NAME),
    optional("metadata", ColumnType::Long),
    optional("tags", ColumnType::Long),
    field("model", NAME),
    optional("response_model", NAME),
    field("prompt_tokens", ColumnType::Whole),
    field("completion_tokens", ColumnType::Whole),
    field("total_tokens", ColumnType::Whole),
    optional("cached_tokens", ColumnType::Whole),
    optional("cache_write_tokens", ColumnType::Whole),
    optional("reasoning_tokens", ColumnType::Whole),
    optional("audio_prompt_tokens", ColumnType::Whole),
    optional("audio_completion_tokens", ColumnType::Whole),
    optional("cost", ColumnType::Float),
    optional("custom", ColumnType::Long),
    optional("metered", ColumnType::Long),
    field("is_stream", ColumnType::Flag),
    field("endpoint", NAME),
    field("timestamp", ColumnType::Moment),
    field("backend_url", ColumnType::Short(1024)),
    field("path", NAME),
    field("method", ColumnType::Short(32)),
    field("status_code", ColumnType::Whole),
    field("latency_ms", ColumnType::Whole),
    Field { name: "ttft_ms", holds: ColumnType::Whole, absent: Absent::Null },
    optional("queue_ms", ColumnType::Whole),
    field("tries", ColumnType::Whole),
    field("outcome", ColumnType::Short(32)),
    field("usage_source", ColumnType::Short(32)),
];

/// Not a field: when the request arrived, in milliseconds since 1970.
pub const AT: &str = "at_ms";
/// Not a field: the day of that time, in UTC.
pub const DAY: &str = "day";

/// The largest cost that is stored, so that sums cannot overflow.
const MAX_COST: f64 = 1e15;

/// The values of columns of earlier versions that are NOT NULL without a default.
const FILLED: [(&str, &str); 2] = [("request_body", "'{}'"), ("created_at", "CURRENT_TIMESTAMP")];

static COLUMNS: LazyLock<Vec<(&str, ColumnType)>> = LazyLock::new(|| {
    let fields = FIELDS.iter().map(|field| (field.name, field.holds));
    let rest = [(AT, ColumnType::Whole), (DAY, ColumnType::Day), ("created_at", ColumnType::Made)];
    [("id", ColumnType::Serial)].into_iter().chain(fields).chain(rest).collect()
});

pub fn definition(table: &str) -> TableDefinition<'_> {
    TableDefinition {
        table,
        columns: &COLUMNS,
        indexes: &[
            ("record", &["record_id"]),
            ("at", &[AT, "record_id"]),
            ("user_at", &["user_id", AT, "record_id"]),
            ("key_at", &["key_id", AT, "record_id"]),
            ("request", &["request_id"]),
        ],
    }
}

/// In the order of the columns.
pub fn field_names() -> impl Iterator<Item = &'static str> {
    FIELDS.iter().map(|field| field.name)
}

/// A record that will become a row.
pub struct NewRow {
    fields: Map<String, Value>,
    at: Timestamp,
}

/// # Errors
/// If it is not a usage record.
pub fn parse(entry: &Entry) -> Result<NewRow, String> {
    let record: Record<'_> = serde_json::from_slice(&entry.json)
        .map_err(|e| format!("it is not a usage record: {e}"))?;
    let at = record.timestamp.parse().map_err(|e| format!("its timestamp cannot be read: {e}"))?;
    match serde_json::to_value(&record) {
        Ok(Value::Object(fields)) => Ok(NewRow { fields, at }),
        _ => Err("it is not a usage record".to_owned()),
    }
}

/// The INSERT of a table.
pub struct Insert {
    driver: Driver,
    /// The statement up to the first row.
    head: String,
    /// The most characters of each field, if limited.
    lengths: Vec<Option<usize>>,
    /// The values of columns of earlier versions, after the fields.
    filled: String,
}

impl Insert {
    /// For an existing table.
    ///
    /// # Errors
    /// If it has other columns that are NOT NULL without a default.
    pub fn new(driver: Driver, table: &str, found: &ExistingTable) -> Result<Self, String> {
        let mut columns: Vec<_> = field_names().chain([AT, DAY]).collect();
        let mut filled = String::new();
        for name in found.required() {
            match FILLED.iter().find(|(known, _)| *known == name) {
                Some((known, value)) => {
                    columns.push(known);
                    filled.push_str(", ");
                    filled.push_str(value);
                }
                None if columns.contains(&name) => {}
                None => {
                    return Err(format!(
                        "the column `{name}` of the table is NOT NULL and has no default, and records have \
                         no value for it: give the column a default"
                    ));
                }
            }
        }
        let lengths = FIELDS.iter().map(|field| {
            let has = found.column(field.name).and_then(|has| has.length);
            match field.holds {
                ColumnType::Short(most) => Some(has.map_or(most, |has| has.min(most))),
                _ => has,
            }
        });
        let columns: Vec<_> =
            columns.iter().map(|name| quote(driver, name).unwrap_or_default()).collect();
        let head = format!("INSERT INTO {table} ({}) VALUES ", columns.join(", "));
        Ok(Self { driver, head, lengths: lengths.collect(), filled })
    }

    /// The most rows of one statement: SQLite allows 32766 bound values, the others twice as many.
    pub const ROWS: usize = 32_000 / (FIELDS.len() + 2);

    /// The statement for these rows. Rows that exist already stay unchanged.
    pub fn statement(&self, rows: &[NewRow]) -> Statement {
        let mut insert = Statement::new(self.driver, self.head.as_str());
        for (i, row) in rows.iter().enumerate() {
            insert.push(if i > 0 { ", (" } else { "(" });
            for (field, length) in FIELDS.iter().zip(&self.lengths) {
                self.value(&mut insert, row, field, *length);
                insert.push(", ");
            }
            let day = row.at.to_zoned(TimeZone::UTC).date().to_string();
            insert.bind(row.at.as_millisecond()).push(", ").bind(day.as_str());
            insert.push(&self.filled).push(")");
        }
        insert.unless_there("record_id");
        insert
    }

    fn value(&self, insert: &mut Statement, row: &NewRow, field: &Field, length: Option<usize>) {
        let value = row.fields.get(field.name).filter(|value| !value.is_null());
        match (field.holds, self.driver) {
            (ColumnType::Moment, Driver::Mysql) => {
                insert.bind(row.at.strftime("%Y-%m-%d %H:%M:%S%.3f").to_string().as_str())
            }
            (ColumnType::Moment, Driver::Postgres) => {
                let text = format!("{:.3}", row.at);
                insert.push("CAST(").bind(text.as_str()).push(" AS TIMESTAMPTZ)")
            }
            (ColumnType::Moment, Driver::Sqlite) => insert.bind(format!("{:.3}", row.at).as_str()),
            (ColumnType::Float, _) => insert.bind(Bind::Float(
                value.and_then(Value::as_f64).map(|cost| cost.clamp(-MAX_COST, MAX_COST)),
            )),
            (ColumnType::Flag, _) => {
                insert.bind(Bind::Whole(value.and_then(Value::as_bool).map(i64::from)))
            }
            (ColumnType::Whole, _) => {
                insert.bind(Bind::Whole(value.and_then(Value::as_u64).map(whole)))
            }
            _ => match value {
                None => insert.bind(Bind::Text(None)),
                Some(Value::String(text)) => insert.bind(truncate(text, length)),
                Some(other) => insert.bind(other.to_string().as_str()),
            },
        };
    }
}

/// The number, or the largest of `i64`.
fn whole(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// The first `length` characters of a text.
fn truncate(text: &str, length: Option<usize>) -> &str {
    let end = length.and_then(|length| text.char_indices().nth(length));
    end.map_or(text, |(end, _)| &text[..end])
}

/// A text as the column of this name stores it.
pub fn truncated<'a>(name: &str, text: &'a str) -> &'a str {
    match FIELDS.iter().find(|field| field.name == name) {
        Some(Field { holds: ColumnType::Short(most), .. }) => truncate(text, Some(*most)),
        _ => text,
    }
}

/// The record of a row.
pub fn record(mut row: Row) -> Map<String, Value> {
    let mut record = Map::new();
    for field in &FIELDS {
        let value = row.remove(field.name).filter(|value| !value.is_null());
        let value = match (field.holds, value, field.absent) {
            (ColumnType::Moment, ..) => {
                let at = row.get(AT).and_then(Value::as_i64).unwrap_or_default();
                let at = Timestamp::from_millisecond(at).unwrap_or_default();
                format!("{at:.3}").into()
            }
            (ColumnType::Flag, Some(value), _) => {
                (value != json!(0) && value != json!(false)).into()
            }
            (ColumnType::Long, Some(Value::String(text)), _) => {
                serde_json::from_str(&text).unwrap_or(Value::String(text))
            }
            (_, Some(value), _) => value,
            (_, None, Absent::Omitted) => continue,
            (_, None, Absent::Null) => Value::Null,
            (ColumnType::Flag, None, Absent::Empty) => false.into(),
            (ColumnType::Whole | ColumnType::Float, None, Absent::Empty) => 0.into(),
            (_, None, Absent::Empty) => "".into(),
        };
        record.insert(field.name.to_owned(), value);
    }
    let count = |name: &str| (name.to_owned(), record[name].clone());
    let usage = match record["usage_source"].as_str() {
        Some("none" | "") => Value::Null,
        _ => {
            ["prompt_tokens", "completion_tokens", "total_tokens"].map(count).into_iter().collect()
        }
    };
    record.insert("usage".to_owned(), usage);
    record
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::usage::record::schema;

    /// A record with everything in it.
    pub fn full() -> Value {
        json!({
            "record_id": "rec_1", "version": 1, "process": "gw_1", "sequence": 7,
            "request_id": "req-1", "user_id": "用户😀", "api_key": "sk-p***6789", "key_id": "k1",
            "key_name": "one", "team": "blue", "tier": "vip", "metadata": {"a": [1, {"b": null}]},
            "tags": ["x", "y"], "model": "m", "response_model": "m-1", "prompt_tokens": 1,
            "completion_tokens": 2, "total_tokens": 3, "cached_tokens": 1, "cache_write_tokens": 0,
            "reasoning_tokens": 2, "audio_prompt_tokens": 1, "audio_completion_tokens": 0, "cost": 0.25, "is_stream": true, "endpoint": "/v1/chat/completions",
            "timestamp": "2026-11-21T12:00:00.123Z", "backend_url": "http://b",
            "path": "/v1/chat/completions", "method": "POST", "status_code": 200,
            "latency_ms": 10, "ttft_ms": 5, "queue_ms": 1, "tries": 2, "outcome": "complete",
            "usage_source": "final",
            "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3},
        })
    }

    fn entry(record: &Value) -> Entry {
        Entry { index: 0, time: 0, json: record.to_string().into() }
    }

    #[test]
    fn every_field_of_a_record_has_a_column() {
        let schema = schema();
        let fields = schema["properties"].as_object().unwrap().keys().map(String::as_str);
        let mut fields: Vec<_> = fields.filter(|name| *name != "usage").collect();
        let mut columns: Vec<_> = field_names().collect();
        fields.sort_unstable();
        columns.sort_unstable();
        assert_eq!(columns, fields);
        for name in schema["required"].as_array().unwrap() {
            let field = FIELDS.iter().find(|field| field.name == name);
            assert!(field.is_none_or(|field| field.absent != Absent::Omitted), "{name}");
        }
    }

    #[test]
    fn a_row_is_the_record_that_it_was() {
        let all = full();
        let mut row = all.as_object().unwrap().clone();
        row.insert("at_ms".to_owned(), 1_795_262_400_123i64.into());
        row.insert("is_stream".to_owned(), 1.into());
        row.insert("metadata".to_owned(), all["metadata"].to_string().into());
        row.insert("tags".to_owned(), all["tags"].to_string().into());
        assert_eq!(Value::Object(record(row)), all);
        let nothing = Value::Object(record(Row::new()));
        assert_eq!(nothing["usage"], Value::Null);
        assert_eq!((&nothing["is_stream"], &nothing["ttft_ms"]), (&json!(false), &Value::Null));
        assert!(nothing.get("cost").is_none(), "{nothing}");
    }

    #[test]
    fn records_of_earlier_versions_are_records() {
        let mut earlier = full();
        for name in ["cache_write_tokens", "audio_prompt_tokens", "audio_completion_tokens"] {
            earlier.as_object_mut().unwrap().shift_remove(name);
        }
        let row = parse(&entry(&earlier)).unwrap();
        assert_eq!(Value::Object(row.fields), earlier);
    }

    #[test]
    fn rows_are_inserted_once() {
        let fresh = parse(&entry(&full())).unwrap();
        let insert = |driver| Insert::new(driver, "t", &ExistingTable::default()).unwrap();
        let one = |driver| insert(driver).statement(std::slice::from_ref(&fresh)).sql().to_owned();
        let sql = one(Driver::Postgres);
        assert!(sql.starts_with("INSERT INTO t (\"record_id\", \"version\", "), "{sql}");
        assert!(sql.contains("$28, CAST($29 AS TIMESTAMPTZ), $30"), "{sql}");
        assert!(sql.ends_with("$41) ON CONFLICT (\"record_id\") DO NOTHING"), "{sql}");
        assert!(one(Driver::Sqlite).ends_with("?) ON CONFLICT (`record_id`) DO NOTHING"));
        let mysql = one(Driver::Mysql);
        let end = "?) ON DUPLICATE KEY UPDATE `record_id` = IF(`record_id` = VALUES(`record_id`), \
                   `record_id`, 18446744073709551615 + CHAR_LENGTH(VALUES(`record_id`)))";
        assert!(mysql.ends_with(end), "{mysql}");
        assert_eq!(mysql.matches('?').count(), FIELDS.len() + 2);
        assert!(Insert::ROWS * (FIELDS.len() + 2) <= 32_766);
    }

    #[test]
    fn what_is_no_record_is_refused() {
        for wrong in ["", "{}", "[1]", "{\"record_id\":\"rec_1\"}"] {
            assert!(parse(&Entry { index: 0, time: 0, json: wrong.into() }).is_err(), "{wrong}");
        }
        let mut record = full();
        record["timestamp"] = "yesterday".into();
        assert!(parse(&entry(&record)).err().unwrap().contains("timestamp"));
    }

    #[test]
    fn long_texts_are_cut_between_characters() {
        assert_eq!(
            (truncate("héllo", Some(2)), truncate("ab", Some(2)), truncate("ab", None)),
            ("hé", "ab", "ab")
        );
        assert_eq!(truncated("user_id", &"界".repeat(300)).chars().count(), 255);
        assert_eq!(whole(u64::MAX), i64::MAX);
    }
}
