//! Two measurements by the method of onthebench.ai (<https://github.com/GetBusbar/benchmarking>): what a
//! proxy adds to a request and to the first token of a stream if there is nothing else to do.

use std::{sync::atomic::AtomicUsize, time::Duration};

use serde_json::json;

use super::{Bench, Entry, INSTANT, Protocol, ROUNDS, Report, chosen, role};
use crate::{
    client::{body, request},
    figures::{
        stats,
        table::{Column, Row as Line, Table},
    },
    language::Language,
    load::{self, Load},
    rows::{self, DIRECT},
    stream::{self, Call},
    target::Target,
};

/// Streams in a round: a hundred in all.
const STREAMS: usize = 20;
/// Bytes of a request: a short prompt.
const BYTES: usize = 128;

const COLUMNS: [Column; 6] = [
    Column::difference("added p50 µs", 0),
    Column::difference("added p99 µs", 0),
    Column::difference("added first token p50 µs", 0),
    Column::difference("added first token p99 µs", 0),
    Column::new("p50 µs", 0),
    Column::new("first token p50 µs", 0),
];

/// The times of a round in microseconds.
struct Sample {
    requests: Vec<f64>,
    first_tokens: Vec<f64>,
}

/// Measures added latency, one request at a time.
pub async fn latency(bench: &Bench, report: &mut Report) -> Result<(), String> {
    let rows = chosen(bench, "latency", rows::compared(), &Protocol::Http1);
    if rows.is_empty() {
        return Ok(());
    }
    let backend = bench.backend(INSTANT).await?;
    let mut entries = Vec::new();
    for row in rows {
        let role = role(&backend, &Protocol::Http1);
        entries.push(Entry::<Sample>::start(bench, row, row.name.to_owned(), role).await);
    }
    let load = Load {
        body: body(BYTES, false),
        language: Language::Chat,
        clients: 1,
        time: Duration::from_secs_f64(bench.settings.seconds),
        least: 1,
        protocol: Protocol::Http1,
    };
    for round in 0..=ROUNDS {
        for entry in &mut entries {
            let Ok(target) = &mut entry.target else { continue };
            let result = sample(target, &load).await;
            if round > 0 || result.is_err() {
                entry.keep(result);
            }
        }
    }
    report.table(table(bench, &entries), |_, _| {});
    Ok(())
}

async fn sample(target: &mut Target, load: &Load) -> Result<Sample, String> {
    let round = load::round(target, load).await?;
    let (request, open) = (request(&body(BYTES, true), true), AtomicUsize::new(0));
    let mut first_tokens = Vec::new();
    for _ in 0..STREAMS {
        let call = Call {
            address: target.address,
            request: &request,
            language: Language::Chat,
            tokens: INSTANT.tokens,
            patience: Duration::from_secs(20),
            open: &open,
        };
        first_tokens.push(stream::read(call).await?.first);
    }
    Ok(Sample { requests: round.times, first_tokens })
}

/// All times of a row: of requests and to first tokens.
fn pooled(entry: &Entry<Sample>) -> [Vec<f64>; 2] {
    let all = |of: fn(&Sample) -> &Vec<f64>| {
        stats::sorted(entry.results.iter().flat_map(of).copied().collect())
    };
    [all(|sample| &sample.requests), all(|sample| &sample.first_tokens)]
}

fn table(bench: &Bench, entries: &[Entry<Sample>]) -> Table {
    let direct = entries.iter().find(|entry| entry.name == DIRECT).map(pooled).unwrap_or_default();
    let lines = entries.iter().map(|entry| {
        let own = pooled(entry);
        let outcome = entry.outcome(|target, _| {
            let at = |kind: usize, share| stats::percentile(&own[kind], share);
            let added = |kind: usize, share| {
                let base = stats::percentile(&direct[kind], share);
                let added = at(kind, share).zip(base).map(|(own, base)| own - base);
                added.filter(|_| target.process.is_some())
            };
            vec![
                added(0, 0.5),
                added(0, 0.99),
                added(1, 0.5),
                added(1, 0.99),
                at(0, 0.5),
                at(1, 0.5),
            ]
        });
        let raw = json!({"requests": own[0].len(), "first_tokens_us": own[1]});
        Line { name: entry.name.clone(), outcome, raw }
    });
    let caption = format!(
        "One request of {BYTES} bytes at a time on one connection, {ROUNDS} windows of {} s; {} streams \
         one after the other, each on a new connection. Percentiles of all samples of a row, minus those \
         of the backend alone.",
        bench.settings.seconds,
        STREAMS * ROUNDS
    );
    let lines = lines.collect();
    Table { name: "latency".to_owned(), caption, columns: COLUMNS.to_vec(), rows: lines }
}
