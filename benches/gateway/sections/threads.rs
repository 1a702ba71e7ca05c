//! One and two threads: what a second one costs.

use std::time::Duration;

use serde_json::Value;

use super::{
    Bench, INSTANT, Protocol, ROUNDS, Report, chosen,
    loads::{self, CPU, Loaded, RATE},
    role,
    system_calls::{self, Calls},
};
use crate::{
    client::body,
    figures::table::{Column, Row as Line, Table},
    language::Language,
    load::{Load, Round},
    rows::{self, BARE, FULL, PLAIN},
    target::{Missing, Role},
};

const SWITCHES: &str = "context switches/request";
const CALLS: &str = "system calls/request";
const FUTEX: &str = "futex/request";

const COLUMNS: [Column; 5] = [
    Column::new(RATE, 0),
    Column::new(CPU, 1),
    Column::new(SWITCHES, 2),
    Column::new(CALLS, 1),
    Column::new(FUTEX, 2),
];

/// A row, and its system calls of a request.
type Counted = (Loaded, Option<Calls>);

/// Measures with one and with two threads.
pub async fn threads(bench: &Bench, report: &mut Report) -> Result<(), String> {
    let stealing = "bare Pingora, work stealing";
    let rows = rows::all().filter(|row| [BARE, stealing, PLAIN, FULL].contains(&row.name));
    let rows = chosen(bench, "threads", rows, &Protocol::Http1);
    if rows.is_empty() {
        return Ok(());
    }
    let backend = bench.backend(INSTANT).await?;
    let mut entries = Vec::new();
    for row in rows.into_iter().filter(|row| row.name != rows::DIRECT) {
        for threads in [1, 2] {
            let role = Role { threads, ..role(&backend, &Protocol::Http1) };
            let name = labelled(row.name, threads);
            entries.push(Loaded::start(bench, row, name, role).await);
        }
    }
    let load = Load {
        body: body(1024, false),
        language: Language::Chat,
        clients: 32,
        time: Duration::from_secs_f64(bench.settings.seconds),
        least: 1,
        protocol: Protocol::Http1,
    };
    loads::rounds(&mut entries, &load).await;
    let mut counted: Vec<Counted> = Vec::new();
    for mut loaded in entries {
        let calls = match &mut loaded.entry.target {
            Ok(target) => system_calls::count(bench, target).await,
            Err(_) => Ok(None),
        };
        let calls = calls.unwrap_or_else(|why| {
            loaded.entry.target = Err(Missing::Failed(why));
            None
        });
        counted.push((loaded, calls));
    }
    report.table(table(bench, &counted), judge);
    Ok(())
}

fn labelled(name: &str, threads: usize) -> String {
    let plural = if threads == 1 { "thread" } else { "threads" };
    format!("{name}, {threads} {plural}")
}

fn table(bench: &Bench, entries: &[Counted]) -> Table {
    let lines = entries.iter().map(|(loaded, calls)| {
        let outcome = loaded.entry.outcome(|_, _| {
            vec![
                loaded.median(Round::per_second),
                loaded.median(Round::cpu_us),
                loaded.median(|round| round.switches / round.requests as f64),
                calls.as_ref().map(|calls| calls.all),
                calls.as_ref().map(|calls| calls.futex),
            ]
        });
        let raw: Value = loaded.entry.results.iter().map(Round::json).collect();
        Line { name: loaded.entry.name.clone(), outcome, raw }
    });
    let caption = format!(
        "Requests of 1 KB: 32 at a time, {ROUNDS} rounds of {} s for each row, median. System calls are \
         counted by strace in a run of their own, with 4 requests at a time.",
        bench.settings.seconds
    );
    let lines = lines.collect();
    Table { name: "threads".to_owned(), caption, columns: COLUMNS.to_vec(), rows: lines }
}

fn judge(report: &mut Report, table: &Table) {
    let value = |row, threads, column| table.value(&labelled(row, threads), column);
    for row in [PLAIN, FULL] {
        let ratio = value(row, 2, CPU).zip(value(row, 1, CPU)).map(|(two, one)| two / one);
        report.at_most(&format!("CPU of a request, {row}, two threads to one"), ratio, 1.1, 2);
        let futex = value(row, 2, FUTEX);
        report.at_most(&format!("futex calls of a request, {row}, two threads"), futex, 0.05, 2);
        let most = value(BARE, 1, CALLS);
        if let Some(most) = most {
            let calls = value(row, 1, CALLS);
            // Half a call is the difference of two runs.
            report.at_most(&format!("system calls of a request, {row}"), calls, most + 0.5, 1);
        }
    }
}
