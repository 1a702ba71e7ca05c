//! `llmproxy usage tail`: the latest records of the spool.

use std::time::Duration;

use clap::Args;

use super::{archive, print};
use crate::{
    cli::ConfigFile,
    config::plan::Plan,
    usage::{Entry, Record, spool::Archive},
};

/// How often it is looked for new records.
const PAUSE: Duration = Duration::from_millis(200);

/// Arguments of `usage tail`.
#[derive(Args)]
pub struct TailArgs {
    #[command(flatten)]
    pub file: ConfigFile,
    /// How many records to show.
    #[arg(short = 'n', long, value_name = "N", default_value_t = 10)]
    lines: u64,
    /// Go on showing records as they are written, until interrupted.
    #[arg(short, long)]
    follow: bool,
    /// Show the records as they are, a line of JSON each, in place of a summary.
    #[arg(long)]
    raw: bool,
}

/// Shows records.
///
/// # Errors
/// If the spool cannot be read.
pub fn run(args: &TailArgs, plan: &Plan) -> Result<bool, String> {
    let mut log = archive(plan)?;
    let (first, end) = log.bounds()?;
    let mut next = end.saturating_sub(args.lines).max(first);
    loop {
        match show(&log, next, args.raw)? {
            Some(shown) => next = shown,
            None => return Ok(true),
        }
        if !args.follow {
            return Ok(true);
        }
        let seen = log.segments().last().cloned();
        while log.segments().last() == seen.as_ref() {
            std::thread::sleep(PAUSE);
            log = archive(plan)?;
        }
    }
}

/// Shows the records from an index on; the index to go on from, or `None` if nobody reads on.
fn show(log: &Archive, mut next: u64, raw: bool) -> Result<Option<u64>, String> {
    for entry in log.records(next) {
        let entry = entry?;
        next = entry.index + 1;
        let text = String::from_utf8_lossy(&entry.json);
        let line = if raw { None } else { line(&entry) };
        if !print(&format!("{}\n", line.as_deref().unwrap_or(&text))) {
            return Ok(None);
        }
    }
    Ok(Some(next))
}

/// A record in short. What clients choose is quoted: it may hold anything.
fn line(entry: &Entry) -> Option<String> {
    let record: Record<'_> = serde_json::from_slice(&entry.json).ok()?;
    let Record { timestamp, status_code, latency_ms, user_id, model, .. } = &record;
    let outcome = serde_json::to_value(record.outcome).ok()?;
    Some(format!(
        "#{} {timestamp} {status_code} {} {latency_ms}ms user={user_id:?} model={model:?} tokens={}+{} {}",
        entry.index,
        outcome.as_str().unwrap_or_default(),
        record.prompt_tokens,
        record.completion_tokens,
        record.record_id,
    ))
}
