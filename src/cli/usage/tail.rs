//! `llmproxy usage tail`: the latest records of the spool.

use std::time::Duration;

use clap::Args;

use super::{output::print, spool::archive};
use crate::{
    cli::config_file::ConfigFile,
    config::plan::Plan,
    usage::{Entry, Record, spool::Archive},
};

/// The pause between two looks for new records.
const PAUSE: Duration = Duration::from_millis(200);

#[derive(Args)]
pub struct TailArgs {
    #[command(flatten)]
    pub file: ConfigFile,
    /// The number of records.
    #[arg(short = 'n', long, value_name = "N", default_value_t = 10)]
    lines: u64,
    /// Keep printing records as they are written, until interrupted.
    #[arg(short, long)]
    follow: bool,
    /// Print each record as a line of JSON instead of a summary.
    #[arg(long)]
    raw: bool,
}

/// Prints records.
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

/// Prints the records from an index on. Returns the next index, or `None` if stdout is closed.
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

/// A summary of a record. Values that clients choose are quoted: they may hold any character.
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
