//! `llmproxy usage status`: the size of the spool, and how far each reporter has come.

use std::{collections::BTreeMap, fmt::Write, path::Path, time::Duration};

use clap::Args;
use indicatif::{BinaryBytes, HumanDuration};
use serde::Serialize;

use super::{
    output::{age, count, print, time},
    spool::{archive, folder, is_missing, missing},
};
use crate::{
    cli::config_file::ConfigFile,
    config::plan::Plan,
    usage::{dead_letters::DeadLetters, spool::Archive},
};

#[derive(Args)]
pub struct StatusArgs {
    #[command(flatten)]
    pub file: ConfigFile,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Status {
    /// `null`: the spool is switched off, or does not exist yet.
    spool: Option<Spool>,
    reporters: Vec<Reporter>,
}

#[derive(Serialize)]
struct Spool {
    folder: String,
    segments: usize,
    bytes: u64,
    /// The limit of undelivered bytes.
    max_bytes: u64,
    /// The index of the first record.
    first: u64,
    /// The index of the next record that will be added.
    end: u64,
    /// When the first record was written.
    oldest: Option<String>,
    /// When the last record was written.
    newest: Option<String>,
}

#[derive(Serialize)]
struct Reporter {
    name: String,
    /// `null`: it is no longer configured.
    #[serde(rename = "type")]
    kind: Option<&'static str>,
    /// The index of the first record that it has not delivered; `null`: not known.
    next: Option<u64>,
    waiting: Option<u64>,
    /// When the oldest record that waits was written.
    oldest_waiting: Option<String>,
    oldest_waiting_seconds: Option<f64>,
    dead_letters: u64,
    /// Why some fields are `null`.
    problem: Option<String>,
}

/// Prints the status. Returns whether the configured spool exists.
///
/// # Errors
/// If the spool cannot be read.
pub fn run(args: &StatusArgs, plan: &Plan) -> Result<bool, String> {
    let here = folder(plan).ok().filter(|folder| !is_missing(folder));
    let status = match here {
        Some(folder) => read(plan, folder)?,
        None => Status { spool: None, reporters: configured(plan).collect() },
    };
    if args.json {
        let json = serde_json::to_string_pretty(&status).map_err(|e| e.to_string())?;
        print(&format!("{json}\n"));
    } else {
        print(&text(&status, plan));
    }
    Ok(here.is_some() || plan.fixed.spool.is_none())
}

fn configured(plan: &Plan) -> impl Iterator<Item = Reporter> {
    let reporters = plan.usage.reporters.iter();
    reporters.map(|reporter| Reporter::new(&reporter.name, Some(reporter.to.word())))
}

fn read(plan: &Plan, folder: &Path) -> Result<Status, String> {
    let archive = archive(plan)?;
    let (first, end) = archive.bounds()?;
    let (mut oldest, mut newest) = (None, None);
    if end > first {
        (oldest, newest) = (written(&archive, first)?, written(&archive, end - 1)?);
    }
    let places: BTreeMap<_, _> = archive.positions()?.into_iter().collect();
    let mut reporters: Vec<_> = configured(plan).collect();
    for name in places.keys() {
        if !reporters.iter().any(|reporter| reporter.name == *name) {
            reporters.push(Reporter::new(name, None));
        }
    }
    for reporter in &mut reporters {
        match places.get(&reporter.name) {
            Some(Some(next)) => reporter.set_position(*next, &archive, (first, end))?,
            Some(None) => reporter.problem = Some("its position is damaged".to_owned()),
            None => reporter.problem = Some("it has not delivered anything yet".to_owned()),
        }
        reporter.count_letters(folder)?;
    }
    let spool = Spool {
        folder: folder.display().to_string(),
        segments: archive.segments().len(),
        bytes: archive.bytes(),
        max_bytes: plan.usage.spool.max_size,
        first,
        end,
        oldest: oldest.map(time),
        newest: newest.map(time),
    };
    Ok(Status { spool: Some(spool), reporters })
}

/// When the first record that can be read from an index on was written.
fn written(archive: &Archive, index: u64) -> Result<Option<i64>, String> {
    let entry = archive.records(index).next().transpose()?;
    Ok(entry.map(|entry| entry.time))
}

impl Reporter {
    fn new(name: &str, kind: Option<&'static str>) -> Self {
        Self {
            name: name.to_owned(),
            kind,
            next: None,
            waiting: None,
            oldest_waiting: None,
            oldest_waiting_seconds: None,
            dead_letters: 0,
            problem: None,
        }
    }

    /// Sets what follows from the position of the reporter.
    fn set_position(&mut self, next: u64, log: &Archive, bounds: (u64, u64)) -> Result<(), String> {
        let (first, end) = bounds;
        // Records before the first one were dropped.
        let waiting = end.saturating_sub(next.max(first));
        (self.next, self.waiting) = (Some(next), Some(waiting));
        if waiting > 0
            && let Some(oldest) = written(log, next)?
        {
            self.oldest_waiting = Some(time(oldest));
            self.oldest_waiting_seconds = Some(age(oldest).as_secs_f64());
        }
        Ok(())
    }

    fn count_letters(&mut self, folder: &Path) -> Result<(), String> {
        let letters = DeadLetters::open(folder, &self.name);
        let unreadable = |e| format!("cannot read {}: {e}", letters.path().display());
        let mut reading = letters.read().map_err(unreadable)?;
        for letter in reading.by_ref() {
            letter.map_err(unreadable)?;
            self.dead_letters += 1;
        }
        self.dead_letters += reading.damaged();
        Ok(())
    }
}

fn text(status: &Status, plan: &Plan) -> String {
    let mut text = String::new();
    match (&status.spool, folder(plan)) {
        (Some(spool), _) => spool.write(&mut text),
        (None, Ok(folder)) => writeln!(text, "{}", missing(folder)),
        (None, Err(off)) => writeln!(text, "{off}"),
    }
    .ok();
    if status.reporters.is_empty() {
        text.push_str("no reporter is configured: no usage records are written\n");
        return text;
    }
    let mut rows = vec![
        ["reporter", "type", "next", "waiting", "oldest", "dead letters", ""].map(str::to_owned),
    ];
    rows.extend(status.reporters.iter().map(Reporter::row));
    table(&mut text, &rows);
    text
}

impl Spool {
    fn write(&self, text: &mut String) -> std::fmt::Result {
        let (bytes, most) = (BinaryBytes(self.bytes), BinaryBytes(self.max_bytes));
        let segments = count(self.segments as u64, "segment");
        writeln!(text, "spool    {}", self.folder)?;
        writeln!(text, "size     {bytes} in {segments}; limit {most}")?;
        match (&self.oldest, &self.newest) {
            (Some(oldest), Some(newest)) => {
                let (first, last) = (self.first, self.end - 1);
                let records = count(self.end - first, "record");
                writeln!(text, "records  {records}: #{first} of {oldest} to #{last} of {newest}")?;
            }
            _ => writeln!(text, "records  none; the next one is #{}", self.end)?,
        }
        writeln!(text)
    }
}

impl Reporter {
    /// Its row in the table.
    fn row(&self) -> [String; 7] {
        let shown = |n: Option<u64>, mark: &str| n.map_or("-".to_owned(), |n| format!("{mark}{n}"));
        let oldest = self.oldest_waiting_seconds.and_then(|s| Duration::try_from_secs_f64(s).ok());
        [
            self.name.clone(),
            self.kind.unwrap_or("not configured").to_owned(),
            shown(self.next, "#"),
            shown(self.waiting, ""),
            oldest.map_or("-".to_owned(), |age| format!("{} ago", HumanDuration(age))),
            self.dead_letters.to_string(),
            self.problem.clone().unwrap_or_default(),
        ]
    }
}

/// Rows in aligned columns.
fn table<const N: usize>(text: &mut String, rows: &[[String; N]]) {
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
    for row in rows {
        let cells = row.iter().enumerate();
        let line: String =
            cells.map(|(i, cell)| format!("{cell:<width$}  ", width = width(i))).collect();
        text.push_str(line.trim_end());
        text.push('\n');
    }
}
