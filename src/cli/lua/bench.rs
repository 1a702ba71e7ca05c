//! `llmproxy lua bench`: how long a call of a script takes.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use clap::Args;

use super::{
    given::{Given, StageArgs},
    key::{KeyArgs, KeyQuestion},
    source::{self, Setting},
};
use crate::lua::{Account, Failure, Script};

#[derive(Args)]
pub struct BenchArgs {
    /// A file, the name of a built-in script, or `-` for the standard input.
    script: PathBuf,
    /// The number of calls.
    #[arg(long, default_value = "10000", value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    calls: u32,
    #[command(flatten)]
    at: StageArgs,
    #[command(flatten)]
    key: KeyArgs,
    #[command(flatten)]
    setting: Setting,
}

/// What the calls took.
#[derive(Default)]
struct Figures {
    times: Vec<Duration>,
    memory: usize,
    failed: u32,
    /// Why the first one has failed.
    why: Option<String>,
    /// Calls beyond what a thread that serves requests does itself.
    long: u32,
}

impl Figures {
    fn add(&mut self, took: Duration, failure: Option<Failure>, account: &Account) {
        self.times.push(took);
        self.memory = self.memory.max(account.memory);
        self.long += u32::from(!account.is_brief());
        if let Some(failure) = failure {
            self.failed += 1;
            self.why.get_or_insert_with(|| failure.to_string());
        }
    }
}

/// Runs the script, and prints the figures. Whether no call has failed.
///
/// # Errors
/// If it could not be run.
pub fn run(args: &BenchArgs) -> Result<bool, String> {
    let library = args.setting.library()?;
    let (name, text) = (source::name(&args.script), source::text(&args.script)?);
    let script = args.setting.compile(&name, &text, &library, args.at.stage)?;
    let figures = match args.at.stage {
        Some(stage) => {
            let call = Given::read(stage, args.at.given.as_deref())?.call()?;
            measure(args.calls, || {
                let (result, account) = script.run_here(&call);
                (result.err(), account)
            })
        }
        None => {
            let question = KeyQuestion::read(&args.key)?;
            measure(args.calls, || {
                let (result, account) = question.run(&script);
                (result.err(), account)
            })
        }
    };
    print(figures, &script)
}

fn measure(calls: u32, mut run: impl FnMut() -> (Option<Failure>, Account)) -> Figures {
    // The first calls create the interpreter and fill the caches.
    for _ in 0..(calls / 100).max(1) {
        run();
    }
    let mut figures = Figures::default();
    for _ in 0..calls {
        let began = Instant::now();
        let (failure, account) = run();
        figures.add(began.elapsed(), failure, &account);
    }
    figures
}

fn print(mut figures: Figures, script: &Script) -> Result<bool, String> {
    let calls = figures.times.len();
    let total: Duration = figures.times.iter().sum();
    figures.times.sort_unstable();
    let micros = |share: usize| {
        let at = (calls * share / 100).min(calls - 1);
        figures.times[at].as_secs_f64() * 1e6
    };
    let rate = calls as f64 / total.as_secs_f64();
    println!("calls: {calls}, {rate:.0} per second on one thread, {} failed", figures.failed);
    println!("time: median {:.1} µs, 99th percentile {:.1} µs", micros(50), micros(99));
    println!("memory: {} bytes", figures.memory);
    match figures.long {
        0 => println!("thread: no call would leave the thread that serves the request"),
        n => println!("thread: {n} calls would go to another thread (over 1 ms or 1 MiB)"),
    }
    if script.mentions("http") {
        println!("thread: a call that uses `http` goes to another thread in any case");
    }
    if let Some(why) = &figures.why {
        println!("failed: {}: {}: {why}", script.stage(), script.name());
    }
    Ok(figures.failed == 0)
}
