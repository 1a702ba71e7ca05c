//! Requests per second: small and large requests, with TLS, and by HTTP/2.

use std::time::Duration;

use super::{Bench, Entry, INSTANT, Protocol, ROUNDS, Report, chosen, role};
use crate::{
    client::body,
    figures::{
        stats,
        table::{Column, Row as Line, Table},
    },
    language::Language,
    load::{self, Load, Round},
    rows::{self, BARE, FULL, PLAIN, Row},
    target::Target,
};

pub const RATE: &str = "requests/s";
pub const OF_BARE: &str = "of bare Pingora";
pub const CPU: &str = "µs of a core/request";
const IDLE: &str = "MiB idle";
const LOADED: &str = "MiB at load";

const COLUMNS: [Column; 7] = [
    Column::new(RATE, 0),
    Column::new(OF_BARE, 2),
    Column::new("p50 ms", 2),
    Column::new("p99 ms", 2),
    Column::new(CPU, 1),
    Column::new(IDLE, 1),
    Column::new(LOADED, 1),
];

/// A kind of request.
struct Kind {
    section: &'static str,
    name: &'static str,
    title: &'static str,
    bytes: usize,
    clients: usize,
    /// Whether each policy is measured alone.
    policies: bool,
}

/// Measures the sections `requests`, `bodies`, `tls` and `h2`.
pub async fn run(bench: &Bench, report: &mut Report) -> Result<(), String> {
    let plain = Kind {
        section: "requests",
        name: "requests",
        title: "Requests of 1 KB",
        bytes: 1024,
        clients: 32,
        policies: true,
    };
    measure(bench, report, &plain, Protocol::Http1).await?;
    let large = Kind {
        section: "bodies",
        name: "bodies-100k",
        title: "Requests of 100 KB",
        bytes: 100 * 1024,
        policies: false,
        ..plain
    };
    measure(bench, report, &large, Protocol::Http1).await?;
    let huge =
        Kind { name: "bodies-2m", title: "Requests of 2 MB", bytes: 2 << 20, clients: 8, ..large };
    measure(bench, report, &huge, Protocol::Http1).await?;
    let tls = Kind {
        section: "tls",
        name: "tls",
        title: "Requests of 1 KB on TLS connections that stay open",
        policies: false,
        ..plain
    };
    let client = Protocol::Tls(bench.certificate.client.clone());
    measure(bench, report, &tls, client).await?;
    let h2 = Kind {
        section: "h2",
        name: "h2",
        title: "Requests of 1 KB by HTTP/2 without TLS, four at a time on each connection",
        policies: false,
        ..plain
    };
    measure(bench, report, &h2, Protocol::Http2).await
}

async fn measure(
    bench: &Bench,
    report: &mut Report,
    kind: &Kind,
    protocol: Protocol,
) -> Result<(), String> {
    let rows: Vec<&'static Row> =
        if kind.policies { rows::all().collect() } else { rows::compared().collect() };
    let rows = chosen(bench, kind.section, rows.into_iter(), &protocol);
    if rows.is_empty() {
        return Ok(());
    }
    let backend = bench.backend(INSTANT).await?;
    let mut entries = Vec::new();
    for row in rows {
        let role = role(&backend, &protocol);
        entries.push(Loaded::start(bench, row, row.name.to_owned(), role).await);
    }
    let load = Load {
        body: body(kind.bytes, false),
        language: Language::Chat,
        clients: kind.clients,
        time: Duration::from_secs_f64(bench.settings.seconds),
        least: 1,
        protocol,
    };
    rounds(&mut entries, &load).await;
    let caption = format!(
        "{}: {} at a time, {ROUNDS} rounds of {} s for each row, median.",
        kind.title, kind.clients, bench.settings.seconds
    );
    report.table(table(kind.name, caption, &entries), judge);
    Ok(())
}

/// A row under load.
pub struct Loaded {
    pub entry: Entry<Round>,
    idle_mib: f64,
}

impl Loaded {
    pub async fn start(bench: &Bench, row: &Row, name: String, role: crate::target::Role) -> Self {
        let entry = Entry::start(bench, row, name, role).await;
        let idle_mib = entry.target.as_ref().map_or(0.0, Target::resident_mib);
        Self { entry, idle_mib }
    }

    /// The median of what rounds have.
    pub fn median(&self, of: impl Fn(&Round) -> f64) -> Option<f64> {
        stats::median(self.entry.results.iter().map(of))
    }

    /// The most memory of any round.
    fn most_memory(&self) -> Option<f64> {
        self.entry.results.iter().map(|round| round.resident_mib).reduce(f64::max)
    }
}

/// Puts all rows under load in turns. The first round is a warm-up.
pub async fn rounds(entries: &mut [Loaded], load: &Load) {
    for round in 0..=ROUNDS {
        for loaded in &mut *entries {
            let Ok(target) = &mut loaded.entry.target else { continue };
            let result = load::round(target, load).await;
            if round > 0 || result.is_err() {
                loaded.entry.keep(result);
            }
        }
    }
}

fn table(name: &str, caption: String, entries: &[Loaded]) -> Table {
    let bare = entries.iter().find(|loaded| loaded.entry.name == BARE);
    let bare = bare.and_then(|loaded| loaded.median(Round::per_second));
    let lines = entries.iter().map(|loaded| {
        let outcome = loaded.entry.outcome(|target, _| {
            let rate = loaded.median(Round::per_second);
            let of_process = |value: Option<f64>| value.filter(|_| target.process.is_some());
            vec![
                rate,
                rate.zip(bare).map(|(rate, bare)| rate / bare),
                loaded.median(|round| round.percentile(0.5) / 1000.0),
                loaded.median(|round| round.percentile(0.99) / 1000.0),
                of_process(loaded.median(Round::cpu_us)),
                of_process(Some(loaded.idle_mib)),
                of_process(loaded.most_memory()),
            ]
        });
        let raw = loaded.entry.results.iter().map(Round::json).collect();
        Line { name: loaded.entry.name.clone(), outcome, raw }
    });
    let lines = lines.collect();
    Table { name: name.to_owned(), caption, columns: COLUMNS.to_vec(), rows: lines }
}

fn judge(report: &mut Report, table: &Table) {
    let of_bare = |row| table.value(row, OF_BARE);
    let name = table.name.as_str();
    match name {
        "requests" => {
            report.at_least("requests/s, plain, of bare Pingora", of_bare(PLAIN), 1.0, 2);
            report.at_least("requests/s, full house, of bare Pingora", of_bare(FULL), 0.95, 2);
            report.at_most("MiB idle, full house", table.value(FULL, IDLE), 12.0, 1);
            report.at_most("MiB at load, full house", table.value(FULL, LOADED), 25.0, 1);
            policies(report, table);
        }
        "bodies-100k" | "bodies-2m" => {
            for row in [PLAIN, FULL] {
                let text = format!("requests/s, {name}, {row}, of bare Pingora");
                report.at_least(&text, of_bare(row), 0.95, 2);
            }
        }
        _ => {}
    }
}

/// Single policies, compared with the gateway without them.
fn policies(report: &mut Report, table: &Table) {
    for (row, least) in [
        ("LLMProxy, static key", 0.95),
        ("LLMProxy, static key with Lua", 0.9),
        ("LLMProxy, Redis key with a warm cache", 0.9),
        ("LLMProxy, limits in memory", 0.95),
        ("LLMProxy, limits in memory, no header fields", 0.95),
    ] {
        let ratio = table.value(row, RATE).zip(table.value(PLAIN, RATE)).map(|(a, b)| a / b);
        report.at_least(&format!("requests/s, {row}, of LLMProxy"), ratio, least, 2);
    }
    let spooled = table.value("LLMProxy, usage to a file through the spool", RATE);
    let memory = table.value("LLMProxy, usage to a file from memory", RATE);
    let ratio = spooled.zip(memory).map(|(a, b)| a / b);
    report.at_least("requests/s, usage to a file, spool of memory", ratio, 0.95, 2);
}
