//! From the start of a process to its first answer.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use serde_json::json;

use super::{Bench, INSTANT, Protocol, Report, chosen, free, role};
use crate::{
    client::{body, refused, request},
    figures::{
        stats,
        table::{Column, Outcome, Row as Line, Table},
    },
    rows::{self, DIRECT, FULL, PLAIN, Row},
    target::{Missing, Role},
};

const RUNS: usize = 10;
const MEDIAN: &str = "ms to the first answer";

/// Measures how long servers take to start.
pub async fn startup(bench: &Bench, report: &mut Report) -> Result<(), String> {
    let rows = chosen(bench, "start", rows::own(), &Protocol::Http1);
    if rows.is_empty() {
        return Ok(());
    }
    let backend = bench.backend(INSTANT).await?;
    let mut lines = Vec::new();
    for row in rows.into_iter().filter(|row| row.name != DIRECT) {
        let runs: Result<Vec<f64>, Missing> =
            (0..RUNS).map(|_| once(bench, row, &role(&backend, &Protocol::Http1))).collect();
        let (outcome, raw) = match runs {
            Ok(runs) => {
                let sorted = stats::sorted(runs.clone());
                let most = sorted.last().copied();
                (Outcome::Measured(vec![stats::percentile(&sorted, 0.5), most]), json!(runs))
            }
            Err(Missing::NotInstalled(why)) => (Outcome::Skipped(why), json!(null)),
            Err(Missing::Failed(why)) => (Outcome::Failed(why), json!(null)),
        };
        lines.push(Line { name: row.name.to_owned(), outcome, raw });
    }
    let table = Table {
        name: "start".to_owned(),
        caption: format!(
            "From the start of the process to the first answer to a request: {RUNS} starts, median."
        ),
        columns: vec![Column::new(MEDIAN, 1), Column::new("longest ms", 1)],
        rows: lines,
    };
    report.table(table, |report, table| {
        for row in [PLAIN, FULL] {
            let value = table.value(row, MEDIAN);
            report.at_most(&format!("ms from exec to the first answer, {row}"), value, 15.0, 1);
        }
    });
    Ok(())
}

/// Milliseconds of one start.
fn once(bench: &Bench, row: &Row, role: &Role) -> Result<f64, Missing> {
    let role = Role { listen: free(), ..role.clone() };
    let request = request(&body(128, false), true);
    let began = Instant::now();
    let mut process = row.launch(bench, &role)?;
    loop {
        if let Some(answer) = answer(role.listen, &request) {
            let took = began.elapsed().as_secs_f64() * 1000.0;
            return match answer.get(9..12) {
                Some(b"200") => Ok(took),
                _ => Err(Missing::Failed(refused(&answer))),
            };
        }
        if let Some(process) = &mut process {
            process.alive()?;
        }
        if began.elapsed() > Duration::from_secs(30) {
            return Err(Missing::Failed("no answer within 30 s".to_owned()));
        }
        std::thread::sleep(Duration::from_micros(200));
    }
}

fn answer(address: SocketAddr, request: &[u8]) -> Option<Vec<u8>> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(10))).ok()?;
    stream.write_all(request).ok()?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).ok().filter(|n| *n > 0)?;
    Some(answer)
}
