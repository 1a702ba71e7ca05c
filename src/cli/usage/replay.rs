//! `llmproxy usage replay`: sends records of the spool, or dead letters, to a reporter again.

mod range;
mod send;

use std::path::Path;

use clap::Args;

use self::{
    range::{Bound, Range},
    send::{Sender, Sent, Stopped},
};
use super::{
    output::{bar, count, print, time},
    spool::{archive, folder, is_missing, missing},
};
use crate::{
    cli::config_file::ConfigFile,
    config::plan::{Plan, ReporterPlan},
    store::{Stores, http},
    usage::{
        Entry,
        dead_letters::DeadLetters,
        sink::{self, Pace, Resources},
    },
};

#[derive(Args)]
pub struct ReplayArgs {
    #[command(flatten)]
    pub file: ConfigFile,
    /// The reporter to send to, by its name in the configuration.
    #[arg(long, value_name = "NAME")]
    sink: String,
    /// Send the records from here on. Without it: from the oldest one in the spool.
    ///
    /// A time (`2026-01-31T12:00:00Z`, in UTC without a zone), a date (its beginning in UTC), or
    /// the index of a record (`#1234`, in quotes for the shell). The time of a record is when it
    /// was written, which is when its request ended.
    #[arg(long, value_name = "WHEN", conflicts_with = "dead")]
    from: Option<Bound>,
    /// Send only records before this one. Without it: up to the newest one. Written like `--from`:
    /// `--from 2026-01-01 --to 2026-02-01` is January.
    #[arg(long, value_name = "WHEN", conflicts_with = "dead")]
    to: Option<Bound>,
    /// Send the reporter's dead letters instead of records of the spool. Accepted ones are removed;
    /// those that are refused again stay.
    #[arg(long)]
    dead: bool,
    /// Only print what would be sent.
    #[arg(long)]
    dry_run: bool,
}

/// Sends records again. Returns whether all were accepted.
///
/// # Errors
/// If nothing can be sent.
pub fn run(args: &ReplayArgs, plan: &Plan) -> Result<bool, String> {
    let reporters = &plan.usage.reporters;
    let Some(reporter) = reporters.iter().find(|reporter| reporter.name == args.sink) else {
        let known: Vec<_> = reporters.iter().map(|reporter| reporter.name.as_str()).collect();
        let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
        return Err(format!("no reporter is called `{}`; configured: {known}", args.sink));
    };
    let folder = folder(plan)?;
    if is_missing(folder) {
        return Err(missing(folder));
    }
    if args.dead {
        return dead(folder, reporter, args.dry_run);
    }
    let archive = archive(plan)?;
    let range = Range { from: args.from.clone(), to: args.to.clone() };
    let selection = range.select(&archive)?;
    for note in &selection.notes {
        eprintln!("llmproxy: {note}");
    }
    let Some((first, last)) = selection.ends else {
        print("the spool has no record in this range: nothing to send\n");
        return Ok(true);
    };
    if args.dry_run {
        let records = count(selection.records, "record");
        let ((first, since), (last, until)) = (first, last);
        let (since, until) = (time(since), time(until));
        print(&format!("{records}: #{first} of {since} to #{last} of {until}\n"));
        return Ok(true);
    }
    let sent = send(range.records(&archive, &selection), selection.records, reporter)?;
    if let Some(Stopped { index, why }) = &sent.stopped {
        let (sink, index) = (&reporter.name, index.unwrap_or(first.0));
        let to = args.to.as_ref().map(|to| format!(" --to '{to}'")).unwrap_or_default();
        eprintln!("llmproxy: stopped at #{index}: {sink}: {why}");
        let file = args.file.config.display();
        eprintln!(
            "to continue: llmproxy usage replay --config '{file}' --sink {sink} --from '#{index}'{to}"
        );
    }
    Ok(sent.summarize(reporter, selection.records))
}

impl Sent {
    /// Prints how many were accepted. Returns whether all of `wanted` were.
    fn summarize(&self, reporter: &ReporterPlan, wanted: u64) -> bool {
        let refused = self.refused.len() as u64;
        let (accepted, left) = (self.done - refused, wanted.saturating_sub(self.done));
        let (records, name) = (count(accepted, "record"), &reporter.name);
        print(&format!("{records} accepted by {name}, {refused} refused, {left} not sent\n"));
        refused == 0 && left == 0 && self.stopped.is_none()
    }
}

/// Sends records, with a progress bar.
fn send(
    records: impl Iterator<Item = Result<Entry, String>>,
    wanted: u64,
    reporter: &ReporterPlan,
) -> Result<Sent, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|e| e.to_string())?;
    let (client, stores) = (http::outside(), Stores::default());
    let bar = bar(wanted, "{bar:30} {human_pos}/{human_len} records {per_sec} {eta}");
    let sink = sink::make(reporter, Resources { client: &client, stores: &stores });
    let sender = Sender::new(&reporter.name, sink, bar);
    Ok(runtime.block_on(sender.send_all(records, Pace::of(reporter).batch)))
}

/// Sends dead letters.
fn dead(folder: &Path, reporter: &ReporterPlan, dry_run: bool) -> Result<bool, String> {
    let letters = DeadLetters::open(folder, &reporter.name);
    let path = letters.path();
    let cannot = |e| format!("cannot use {}: {e}", path.display());
    let name = &reporter.name;
    if dry_run {
        let n = letters.read().map_err(cannot)?.count() as u64;
        print(&format!("{} of {name}\n", count(n, "dead letter")));
        return Ok(true);
    }
    let Some(taken) = letters.take().map_err(cannot)? else {
        print(&format!("{name} has no dead letters: nothing to send\n"));
        return Ok(true);
    };
    let wanted = taken.read().map_err(cannot)?.count() as u64;
    let records = taken.read().map_err(cannot)?;
    let records = records.map(|letter| letter.map(|l| l.entry()).map_err(|e| e.to_string()));
    let sent = send(records, wanted, reporter)?;
    if let Some(Stopped { why, .. }) = &sent.stopped {
        eprintln!(
            "llmproxy: stopped: {name}: {why}; records that were not accepted stay dead letters"
        );
    }
    let mut places = 0..;
    taken.finish(|_| places.next().is_none_or(|place| sent.is_left(place))).map_err(cannot)?;
    Ok(sent.summarize(reporter, wanted))
}
