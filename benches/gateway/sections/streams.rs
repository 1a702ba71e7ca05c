//! Streams: what a proxy adds to the first and to each further token, and the memory that an open
//! stream takes.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use serde_json::{Value, json};
use tokio::time::{Instant, sleep_until};

use super::{Bench, Entry, Protocol, Report, chosen, role};
use crate::{
    backend::Pace,
    client::request_in,
    figures::{
        stats,
        table::{Column, Row as Line, Table},
    },
    language::Language,
    machine,
    rows::{self, BARE, DIRECT, FULL, Row},
    stream::{self, Call, Times},
    target::Target,
};

/// How long after the last stream the memory is read again.
const AFTERWARDS: Duration = Duration::from_secs(5);

const ADDED_FIRST: &str = "added first token p50 µs";
const ADDED_TOKEN: &str = "added token p50 µs";
const ADDED_TOKEN_99: &str = "added token p99 µs";
pub const KIB: &str = "KiB a stream";
const IDLE: &str = "MiB idle";
const OPEN: &str = "MiB open";
const AFTER: &str = "MiB after";

const COLUMNS: [Column; 9] = [
    Column::new("first token p50 µs", 0),
    Column::difference(ADDED_FIRST, 0),
    Column::difference("added first token p99 µs", 0),
    Column::difference(ADDED_TOKEN, 0),
    Column::difference(ADDED_TOKEN_99, 0),
    Column::new(KIB, 1),
    Column::new(IDLE, 1),
    Column::new(OPEN, 1),
    Column::new(AFTER, 1),
];

/// A number of streams, and how they run.
pub struct Plan {
    /// The number that was asked for; it names the table.
    asked: usize,
    /// How many run at the same time: fewer if the system does not allow so many open files.
    pub count: usize,
    pause: Duration,
    /// The streams begin over this time.
    stagger: Duration,
    /// All are open for this time.
    hold: Duration,
    pub waves: usize,
}

impl Plan {
    /// Tokens of all streams together come at most about ten thousand times a second, which one core
    /// can pass on.
    pub fn new(asked: usize, seconds: f64) -> Self {
        let (pause, stagger, hold, waves) = match asked {
            0..=500 => (20, 1, seconds, 3),
            501..=5000 => (200, 3, seconds.max(2.0), 1),
            _ => (1000, 5, seconds.max(3.0), 1),
        };
        Self {
            asked,
            count: asked.min(machine::most_streams()),
            pause: Duration::from_millis(pause),
            stagger: Duration::from_secs(stagger),
            hold: Duration::from_secs_f64(hold),
            waves,
        }
    }

    pub fn pace(&self) -> Pace {
        // A second more, as a loaded machine starts the last streams late.
        let time = self.stagger + self.hold + Duration::from_secs(1);
        Pace { tokens: time.div_duration_f64(self.pause).ceil() as usize + 1, pause: self.pause }
    }

    pub fn caption(&self, pace: Pace) -> String {
        let fewer = if self.count < self.asked {
            format!(
                " ({} were asked for; the limit of {} open files allows no more)",
                self.asked,
                llmproxy::base::machine::open_files()
            )
        } else {
            String::new()
        };
        format!(
            "{} streams at the same time{fewer}, begun over {} s, a token every {} ms, {} tokens each. \
             Added: minus the backend alone.",
            self.count,
            self.stagger.as_secs(),
            self.pause.as_millis(),
            pace.tokens
        )
    }
}

/// What a wave of streams has yielded.
pub struct Wave {
    /// Microseconds to the first token of each stream.
    first: Vec<f64>,
    /// Microseconds that each token was on its way.
    transit: Vec<f64>,
    /// MiB while all streams were open; `None` if a server was too slow to have all of them open.
    open_mib: Option<f64>,
    /// MiB before the first wave, and after it.
    idle_mib: f64,
    after_mib: f64,
}

/// Measures each number of streams.
pub async fn streams(bench: &Bench, report: &mut Report) -> Result<(), String> {
    for asked in bench.settings.streams.clone() {
        // Routers of engines and LiteLLM have no place where thousands of streams share a core.
        let rows = rows::compared().filter(|row| asked <= 500 || !row.peer || row.name == "Envoy");
        let rows = chosen(bench, "streams", rows, &Protocol::Http1);
        if !rows.is_empty() {
            measure(bench, report, Plan::new(asked, bench.settings.seconds), rows).await?;
        }
    }
    Ok(())
}

async fn measure(
    bench: &Bench,
    report: &mut Report,
    plan: Plan,
    rows: Vec<&Row>,
) -> Result<(), String> {
    let pace = plan.pace();
    let backend = bench.backend(pace).await?;
    let mut entries = Vec::new();
    for row in rows {
        let role = role(&backend, &Protocol::Http1);
        entries.push(Entry::<Wave>::start(bench, row, row.name.to_owned(), role).await);
    }
    for number in 0..plan.waves {
        for entry in &mut entries {
            let Ok(target) = &mut entry.target else { continue };
            let result = wave(target, &plan, Language::Chat, number == 0).await;
            if number == 0 && result.as_ref().is_ok_and(|wave| wave.open_mib.is_none()) {
                println!("{}: too slow to have all streams open: no memory is given", entry.name);
            }
            entry.keep(result);
        }
    }
    report.table(table(&plan, pace, &entries), |report, table| judge(report, &plan, table));
    Ok(())
}

impl Wave {
    /// KiB that an open stream takes.
    pub fn kib(&self, plan: &Plan) -> Option<f64> {
        Some((self.open_mib? - self.idle_mib) * 1024.0 / plan.count as f64)
    }
}

/// One wave of streams through a server. Memory is read in the first.
pub async fn wave(
    target: &mut Target,
    plan: &Plan,
    language: Language,
    memory: bool,
) -> Result<Wave, String> {
    target.alive()?;
    let pace = plan.pace();
    let idle_mib = target.resident_mib();
    let request = Arc::new(request_in(language, &language.body(1024, true), false));
    let open = Arc::new(AtomicUsize::new(0));
    let start = Instant::now();
    let tasks: Vec<_> = (0..plan.count)
        .map(|n| {
            let (request, open, address) = (request.clone(), open.clone(), target.address);
            let at = start + plan.stagger.mul_f64(n as f64 / plan.count as f64);
            let patience = pace.pause * pace.tokens as u32 + Duration::from_secs(30);
            tokio::spawn(async move {
                sleep_until(at).await;
                let (request, open) = (&request, &open);
                let tokens = pace.tokens;
                let call = Call { address, request, language, tokens, patience, open };
                stream::read(call).await
            })
        })
        .collect();
    sleep_until(start + plan.stagger + plan.hold / 2).await;
    let together = open.load(Ordering::Relaxed);
    let open_mib = Some(target.resident_mib()).filter(|_| together == plan.count);
    let mut times: Vec<Result<Times, String>> = Vec::new();
    for task in tasks {
        times.push(task.await.map_err(|e| e.to_string())?);
    }
    let failed = times.iter().filter_map(|result| result.as_ref().err()).collect::<Vec<_>>();
    if let Some(why) = failed.first() {
        return Err(format!("{} of {} streams failed: {why}", failed.len(), plan.count));
    }
    target.alive()?;
    if memory && target.process.is_some() {
        tokio::time::sleep(AFTERWARDS).await;
    }
    let times: Vec<Times> = times.into_iter().flatten().collect();
    Ok(Wave {
        first: times.iter().map(|times| times.first).collect(),
        transit: times.iter().flat_map(|times| &times.transit).map(|t| f64::from(*t)).collect(),
        open_mib,
        idle_mib,
        after_mib: target.resident_mib(),
    })
}

/// Times of all waves of a row, sorted: to the first tokens, and of each token on its way.
pub fn pooled(entry: &Entry<Wave>) -> [Vec<f64>; 2] {
    let all = |of: fn(&Wave) -> &Vec<f64>| {
        stats::sorted(entry.results.iter().flat_map(of).copied().collect())
    };
    [all(|wave| &wave.first), all(|wave| &wave.transit)]
}

fn table(plan: &Plan, pace: Pace, entries: &[Entry<Wave>]) -> Table {
    let direct = entries.iter().find(|entry| entry.name == DIRECT).map(pooled).unwrap_or_default();
    let lines = entries.iter().map(|entry| {
        let own = pooled(entry);
        let outcome = entry.outcome(|target, waves| {
            let is_process = target.process.is_some();
            let at = |kind: usize, share| stats::percentile(&own[kind], share);
            let added = |kind: usize, share| {
                let base = stats::percentile(&direct[kind], share);
                at(kind, share).zip(base).map(|(own, base)| own - base).filter(|_| is_process)
            };
            let wave = waves.first().filter(|_| is_process);
            vec![
                at(0, 0.5),
                added(0, 0.5),
                added(0, 0.99),
                added(1, 0.5),
                added(1, 0.99),
                wave.and_then(|w| w.kib(plan)),
                wave.map(|w| w.idle_mib),
                wave.and_then(|w| w.open_mib),
                wave.map(|w| w.after_mib),
            ]
        });
        Line { name: entry.name.clone(), outcome, raw: raw(&own) }
    });
    let lines = lines.collect();
    Table {
        name: format!("streams-{}", plan.asked),
        caption: format!(
            "{} After: {} s after the last stream has ended.",
            plan.caption(pace),
            AFTERWARDS.as_secs()
        ),
        columns: COLUMNS.to_vec(),
        rows: lines,
    }
}

/// Percentiles of the pooled times; the times themselves would be megabytes.
pub fn raw(own: &[Vec<f64>; 2]) -> Value {
    let percentiles = |times: &[f64]| -> Value {
        let shares = [0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 0.999, 1.0];
        shares.iter().map(|share| json!([share, stats::percentile(times, *share)])).collect()
    };
    json!({
        "streams": own[0].len(),
        "first_token_us": percentiles(&own[0]),
        "token_transit_us": percentiles(&own[1]),
    })
}

fn judge(report: &mut Report, plan: &Plan, table: &Table) {
    let (full, bare) = (|column| table.value(FULL, column), |column| table.value(BARE, column));
    let more = |column| full(column).zip(bare(column)).map(|(full, bare)| full - bare);
    let count = plan.count;
    if [32, 256].contains(&plan.asked) {
        let text = format!("µs added to the first token, {count} streams, full house above bare");
        report.at_most(&text, more(ADDED_FIRST), 40.0, 0);
    }
    if plan.asked == 256 {
        let text = format!("µs added per token, {count} streams, full house above bare");
        report.at_most(&text, more(ADDED_TOKEN), 20.0, 0);
    }
    if plan.asked >= 2000 {
        report.at_most(&format!("KiB a stream, {count} streams, full house"), full(KIB), 42.0, 1);
        let given_back = full(OPEN).zip(full(AFTER)).zip(full(IDLE));
        let share = given_back.map(|((open, after), idle)| (open - after) / (open - idle));
        let text = format!("share of memory given back after {count} streams, full house");
        report.at_least(&text, share, 0.8, 2);
    }
    if plan.asked >= 10_000 {
        let text = format!("ms added per token p99, {count} streams, full house");
        let late = full(ADDED_TOKEN_99).map(|us| us / 1000.0);
        report.at_most(&text, late, plan.pause.as_secs_f64() * 1000.0, 1);
    }
}
