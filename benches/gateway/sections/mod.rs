//! The sections of a run. Each measures its rows in alternating rounds, so that the noise of the
//! machine affects all of them alike.

mod languages;
mod latency;
mod loads;
mod startup;
mod streams;
mod system_calls;
mod threads;

use super::{
    backend::Pace,
    client::Protocol,
    figures::table::Outcome,
    report::Report,
    rows::{BARE, DIRECT, PLAIN, Row},
    target::{Bench, Missing, Role, Target, free},
};

pub use self::{
    languages::languages, latency::latency, loads::run as loads, startup::startup,
    streams::streams, threads::threads,
};

/// Rounds of each measurement, after one to warm up.
const ROUNDS: usize = 5;

/// A row that is being measured, and what it has yielded.
struct Entry<T> {
    name: String,
    target: Result<Target, Missing>,
    results: Vec<T>,
}

impl<T> Entry<T> {
    async fn start(bench: &Bench, row: &Row, name: String, role: Role) -> Self {
        let target = row.start(bench, role).await;
        if let Err(Missing::NotInstalled(why)) = &target {
            println!("skipped: {name}: {why}");
        }
        Self { name, target, results: Vec::new() }
    }

    /// Keeps a result. A row that has failed once is not measured any more.
    fn keep(&mut self, result: Result<T, String>) {
        match result {
            Ok(result) => self.results.push(result),
            Err(why) => {
                println!("FAILED: {}: {why}", self.name);
                self.target = Err(Missing::Failed(why));
            }
        }
    }

    /// The outcome, of values that are made from the results.
    fn outcome(&self, values: impl FnOnce(&Target, &[T]) -> Vec<Option<f64>>) -> Outcome {
        match &self.target {
            Ok(target) => Outcome::Measured(values(target, &self.results)),
            Err(Missing::NotInstalled(why)) => Outcome::Skipped(why.clone()),
            Err(Missing::Failed(why)) => Outcome::Failed(why.clone()),
        }
    }
}

/// The rows of a section that are measured: those that `BENCH_ONLY` asks for, and those that they are
/// compared with. Empty if it asks for none of this section.
fn chosen(
    bench: &Bench,
    section: &str,
    rows: impl Iterator<Item = &'static Row>,
    protocol: &Protocol,
) -> Vec<&'static Row> {
    let asked = |row: &&Row| bench.settings.row(row.name);
    let rows: Vec<_> = rows.filter(|row| row.serves(protocol)).collect();
    if !bench.settings.section(section) || !rows.iter().any(asked) {
        return Vec::new();
    }
    let always = |row: &&Row| [DIRECT, BARE, PLAIN].contains(&row.name);
    rows.into_iter().filter(|row| asked(row) || always(row)).collect()
}

/// What servers of a section are started for.
fn role(backend: &Target, protocol: &Protocol) -> Role {
    Role { listen: free(), backend: backend.address, threads: 1, protocol: protocol.clone() }
}

/// Streams that end at once, for sections without paced streams.
const INSTANT: Pace = Pace { tokens: 1, pause: std::time::Duration::ZERO };
