//! What a run has found: printed, written as JSON, and on request into the documentation.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde_json::{Value, json};

use super::{
    figures::{
        BLOCKS, markers,
        svg::Chart,
        table::{Outcome, Table},
    },
    machine::{self, Cores},
    rows::{DIRECT, FULL, PLAIN},
    settings::Settings,
};

/// The results of a run.
pub struct Report {
    machine: Value,
    tables: Vec<Table>,
    aims: Vec<Aim>,
}

struct Aim {
    /// The table that it judges.
    table: String,
    text: String,
    reached: bool,
    value: String,
}

impl Report {
    pub fn new(cores: &Cores) -> Self {
        Self { machine: machine::describe(cores), tables: Vec::new(), aims: Vec::new() }
    }

    /// Prints a table, judges it by the aims, and keeps it.
    pub fn table(&mut self, table: Table, judge: impl FnOnce(&mut Self, &Table)) {
        println!("\n## {}\n\n{}", table.name, table.markdown());
        let before = self.aims.len();
        judge(self, &table);
        for aim in &mut self.aims[before..] {
            aim.table.clone_from(&table.name);
        }
        self.tables.push(table);
    }

    /// Adds an aim whose value may not exceed `most`; nothing if there is no value.
    pub fn at_most(&mut self, text: &str, value: Option<f64>, most: f64, digits: usize) {
        if let Some(value) = value {
            self.aim(format!("{text}: at most {most:.digits$}"), value <= most, value, digits);
        }
    }

    /// Adds an aim whose value must reach `least`; nothing if there is no value.
    pub fn at_least(&mut self, text: &str, value: Option<f64>, least: f64, digits: usize) {
        if let Some(value) = value {
            self.aim(format!("{text}: at least {least:.digits$}"), value >= least, value, digits);
        }
    }

    fn aim(&mut self, text: String, reached: bool, value: f64, digits: usize) {
        let value = format!("{value:.digits$}");
        let aim = Aim { table: String::new(), text, reached, value };
        println!("aim: {}: {} ({})", aim.text, aim.verdict(), aim.value);
        self.aims.push(aim);
    }

    /// Whether anything was measured.
    pub fn is_empty(&self) -> bool {
        self.tables.is_empty()
    }

    /// Writes the results. Returns how many rows have failed.
    pub fn finish(&self, settings: &Settings) -> Result<usize, String> {
        if let Some(folder) = settings.results.parent() {
            fs::create_dir_all(folder).map_err(|e| format!("{}: {e}", folder.display()))?;
        }
        let text = serde_json::to_string_pretty(&self.json(settings)).map_err(|e| e.to_string())?;
        write(&settings.results, &format!("{text}\n"))?;
        println!("\nraw results: {}", settings.results.display());
        if settings.write {
            self.write_documentation()?;
        }
        Ok(self.tables.iter().map(|table| table.failures().count()).sum())
    }

    fn json(&self, settings: &Settings) -> Value {
        let aims = self.aims.iter();
        let aims: Vec<Value> = aims
            .map(|a| {
                json!({"table": a.table, "aim": a.text, "reached": a.reached, "value": a.value})
            })
            .collect();
        json!({
            "machine": self.machine,
            "seconds": settings.seconds,
            "tables": self.tables.iter().map(Table::json).collect::<Vec<_>>(),
            "aims": aims,
        })
    }

    /// Fills the blocks of `docs/benchmarks.md` that this run has measured.
    fn write_documentation(&self) -> Result<(), String> {
        let docs = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("docs");
        let page = docs.join("benchmarks.md");
        let mut text = fs::read_to_string(&page).map_err(|e| format!("{}: {e}", page.display()))?;
        let run = machine::sentence(&self.machine);
        // Numbers of streams of the reader's own have no block.
        let tables = self.tables.iter().filter(|table| BLOCKS.contains(&table.name.as_str()));
        for table in tables {
            let aims = self.aims_of(&table.name);
            let block = format!("{}\n{aims}Measured {run}", table.markdown());
            text = markers::replace(&text, &table.name, &block)?;
        }
        for plot in self.plots() {
            let folder = docs.join("benchmarks");
            fs::create_dir_all(&folder).map_err(|e| e.to_string())?;
            write(&folder.join(format!("{}.svg", plot.name)), &plot.chart.svg())?;
            let image = format!("![{}](benchmarks/{}.svg)", plot.chart.title, plot.name);
            text = markers::replace(&text, &format!("plot-{}", plot.name), &image)?;
        }
        write(&page, &text)
    }

    /// The aims of a table, as a table of their own; nothing without any.
    fn aims_of(&self, table: &str) -> String {
        let row = |aim: &Aim| format!("| {} | {} | {} |\n", aim.text, aim.verdict(), aim.value);
        let rows: String = self.aims.iter().filter(|aim| aim.table == table).map(row).collect();
        match rows.as_str() {
            "" => String::new(),
            rows => format!("| aim | | value |\n|---|---|---|\n{rows}\n"),
        }
    }

    fn named(&self, name: &str) -> Option<&Table> {
        self.tables.iter().find(|table| table.name == name)
    }

    fn plots(&self) -> Vec<Plot> {
        let latency = self.named("latency").map(|table| Plot {
            name: "latency",
            chart: Chart {
                title: "Added latency of a request, one connection".to_owned(),
                axis: "µs more than the backend alone (shorter is better)".to_owned(),
                series: vec!["p50".to_owned(), "p99".to_owned()],
                rows: bars(table, &["added p50 µs", "added p99 µs"], |v| v),
            },
        });
        let throughput = self.named("requests").map(|table| Plot {
            name: "throughput",
            chart: Chart {
                title: "Throughput of one core, requests of 1 KB".to_owned(),
                axis: "requests per second of CPU time (longer is better)".to_owned(),
                series: vec!["requests".to_owned()],
                rows: bars(table, &["µs of a core/request"], |us| 1e6 / us),
            },
        });
        [latency, throughput, self.memory_plot()].into_iter().flatten().collect()
    }

    fn memory_plot(&self) -> Option<Plot> {
        let tables: Vec<&Table> = ["streams-256", "streams-2000", "streams-10000"]
            .into_iter()
            .filter_map(|name| self.named(name))
            .collect();
        let first = tables.first()?;
        let value = |table: &Table, row: &str| table.value(row, "KiB a stream");
        let rows = first.rows.iter().map(|row| {
            let values = tables.iter().map(|table| value(table, &row.name)).collect();
            (row.name.clone(), values)
        });
        Some(Plot {
            name: "memory",
            chart: Chart {
                title: "Memory of an open stream".to_owned(),
                axis: "KiB (shorter is better)".to_owned(),
                series: tables
                    .iter()
                    .map(|t| format!("{} streams", t.name.trim_start_matches("streams-")))
                    .collect(),
                rows: rows.filter(has_value).collect(),
            },
        })
    }
}

impl Aim {
    fn verdict(&self) -> &'static str {
        if self.reached { "reached" } else { "missed" }
    }
}

struct Plot {
    name: &'static str,
    chart: Chart,
}

type Bars = (String, Vec<Option<f64>>);

/// The bars of a table: others, the plain gateway and the full house. Single policies have tables.
fn bars(table: &Table, columns: &[&str], of: impl Fn(f64) -> f64) -> Vec<Bars> {
    let shown = |name: &str| !name.starts_with("LLMProxy") || [PLAIN, FULL].contains(&name);
    let rows = table.rows.iter().filter(|row| {
        matches!(row.outcome, Outcome::Measured(_)) && shown(&row.name) && row.name != DIRECT
    });
    let bars = rows.map(|row| {
        let value = |column: &&str| table.value(&row.name, column).map(&of);
        (row.name.clone(), columns.iter().map(value).collect())
    });
    bars.filter(has_value).collect()
}

fn has_value(bars: &Bars) -> bool {
    bars.1.iter().any(Option::is_some)
}

fn write(path: &Path, text: &str) -> Result<(), String> {
    fs::write(path, text).map_err(|e| format!("{}: {e}", path.display()))
}
