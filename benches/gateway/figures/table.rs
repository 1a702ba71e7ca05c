//! Tables of results, as Markdown and as JSON.

use serde_json::{Map, Value, json};

/// A column of numbers.
#[derive(Clone)]
pub struct Column {
    pub title: &'static str,
    /// Digits after the point.
    pub digits: usize,
    /// A value below zero is noise: the difference is smaller than what the run can resolve.
    pub difference: bool,
}

impl Column {
    pub const fn new(title: &'static str, digits: usize) -> Self {
        Self { title, digits, difference: false }
    }

    /// A column of differences that cannot be negative.
    pub const fn difference(title: &'static str, digits: usize) -> Self {
        Self { title, digits, difference: true }
    }

    fn show(&self, value: Option<f64>) -> String {
        match value {
            None => "-".to_owned(),
            Some(value) if self.difference && value < 0.0 => "below resolution".to_owned(),
            Some(value) => format!("{value:.*}", self.digits),
        }
    }
}

/// The result of a row.
pub enum Outcome {
    /// One value for each column; `None` if it does not exist for this row.
    Measured(Vec<Option<f64>>),
    /// It died, answered an error or left an answer incomplete.
    Failed(String),
    /// It is not installed here.
    Skipped(String),
}

/// A row, and what its values were made of.
pub struct Row {
    pub name: String,
    pub outcome: Outcome,
    pub raw: Value,
}

pub struct Table {
    /// The name of the block in the page.
    pub name: String,
    /// How it was measured, in a line.
    pub caption: String,
    pub columns: Vec<Column>,
    pub rows: Vec<Row>,
}

impl Table {
    /// A value by the name of its row and the title of its column.
    pub fn value(&self, row: &str, column: &str) -> Option<f64> {
        let column = self.columns.iter().position(|c| c.title == column)?;
        match &self.rows.iter().find(|r| r.name == row)?.outcome {
            Outcome::Measured(values) => values.get(column).copied().flatten(),
            _ => None,
        }
    }

    /// The rows that failed, each with its reason.
    pub fn failures(&self) -> impl Iterator<Item = (&str, &str)> {
        self.rows.iter().filter_map(|row| match &row.outcome {
            Outcome::Failed(why) => Some((row.name.as_str(), why.as_str())),
            _ => None,
        })
    }

    pub fn markdown(&self) -> String {
        let titles: String = self.columns.iter().map(|c| format!(" {} |", c.title)).collect();
        let line = "---|".repeat(self.columns.len() + 1);
        let mut text = format!("{}\n\n| configuration |{titles}\n|{line}\n", self.caption);
        let mut skipped = Vec::new();
        let mut failed = String::new();
        for row in &self.rows {
            let name = escape(&row.name);
            match &row.outcome {
                Outcome::Measured(values) => {
                    text += &format!("| {name} |{}\n", self.shown(values));
                }
                Outcome::Failed(why) => {
                    text += &format!("| {name} |{}\n", self.note("failed"));
                    failed += &format!("\nFailed: {name}: {}\n", escape(why));
                }
                Outcome::Skipped(why) => skipped.push(format!("{name} ({})", escape(why))),
            }
        }
        if !skipped.is_empty() {
            text += &format!("\nSkipped: {}.\n", skipped.join(", "));
        }
        text + &failed
    }

    fn shown(&self, values: &[Option<f64>]) -> String {
        let all = self.columns.iter().zip(values);
        all.map(|(column, value)| format!(" {} |", column.show(*value))).collect()
    }

    /// A word in place of all values.
    fn note(&self, word: &str) -> String {
        format!(" {word} |{}", " |".repeat(self.columns.len().saturating_sub(1)))
    }

    pub fn json(&self) -> Value {
        let rows: Vec<Value> = self.rows.iter().map(|row| self.row_json(row)).collect();
        json!({"name": self.name, "caption": self.caption, "rows": rows})
    }

    fn row_json(&self, row: &Row) -> Value {
        let mut object = Map::from_iter([("name".to_owned(), json!(row.name))]);
        match &row.outcome {
            Outcome::Measured(values) => {
                let named = self.columns.iter().zip(values);
                let values: Map<String, Value> =
                    named.map(|(column, v)| (column.title.to_owned(), json!(v))).collect();
                object.insert("values".to_owned(), Value::Object(values));
                object.insert("raw".to_owned(), row.raw.clone());
            }
            Outcome::Failed(why) => drop(object.insert("failed".to_owned(), json!(why))),
            Outcome::Skipped(why) => drop(object.insert("skipped".to_owned(), json!(why))),
        }
        Value::Object(object)
    }
}

/// A cell of a table cannot hold `|` or a line end.
fn escape(text: &str) -> String {
    text.replace('|', "\\|").replace(['\n', '\r'], " ")
}
