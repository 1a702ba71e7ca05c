//! `llmproxy usage`: looks at the spool of usage records, and sends records again.
//!
//! The commands read the spool as it is on the disk, while a gateway writes it or when none does,
//! and change nothing in it; only a replay of dead letters takes those away that were accepted.

mod replay;
mod status;
mod tail;
mod verify;

use std::{
    io::Write,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use clap::Subcommand;
use indicatif::{ProgressBar, ProgressStyle};
use jiff::Timestamp;

use super::tell;
use crate::{
    config::{self, plan::Plan},
    usage::spool::Archive,
};

/// Subcommands of `usage`.
#[derive(Subcommand)]
pub enum Command {
    /// Tell how large the spool is, and how far each reporter has come.
    ///
    /// The exit code is 0, or 1 if there is no spool where the configuration says.
    Status(status::StatusArgs),
    /// Show the latest records of the spool, delivered ones included.
    Tail(tail::TailArgs),
    /// Send records of the spool, or dead letters, to a reporter again.
    ///
    /// Records stay in the spool until every reporter has delivered them, and for as long as
    /// `usage.spool.keep` says after that: what is still there can be sent again, to a receiver that
    /// has lost it or to one that is new. It is sent by this process, in the order and in the
    /// batches in which the gateway would send it, and no place that a gateway keeps is changed.
    /// Repeats are harmless: receivers tell them by `record_id`.
    ///
    /// If the receiver cannot be reached, and not after a few attempts either, the replay stops and
    /// says from where to go on. The exit code is 0 if every record was accepted, and 1 if some were
    /// refused or not sent.
    Replay(replay::ReplayArgs),
    /// Check that nothing in the spool is damaged and nothing is missing.
    ///
    /// Reads every segment; checks the checksum of each record, that the records follow one another,
    /// and that the sequence of each process has no gap. What is missing before the oldest record is
    /// no gap: it was delivered and removed. Half a record at the very end is no damage: it is being
    /// written, or a crash has left it and the next start removes it.
    ///
    /// The exit code is 0 if all is well, 1 if anything is damaged or missing, and 2 if it could not
    /// be checked.
    Verify(verify::VerifyArgs),
}

/// Runs a subcommand: 0 if all is well, 1 if not, 2 if it could not be done at all.
pub fn run(command: &Command) -> ExitCode {
    let file = match command {
        Command::Status(args) => &args.file.config,
        Command::Tail(args) => &args.file.config,
        Command::Replay(args) => &args.file.config,
        Command::Verify(args) => &args.file.config,
    };
    let plan = match config::load(file) {
        Ok(plan) => plan,
        Err(problems) => {
            tell(file, &problems);
            return ExitCode::from(2);
        }
    };
    let done = match command {
        Command::Status(args) => status::run(args, &plan),
        Command::Tail(args) => tail::run(args, &plan),
        Command::Replay(args) => replay::run(args, &plan),
        Command::Verify(_) => verify::run(&plan),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(why) => {
            eprintln!("llmproxy: {why}");
            ExitCode::from(2)
        }
    }
}

/// The folder of the spool.
fn folder(plan: &Plan) -> Result<&PathBuf, String> {
    let off = "there is no spool: `usage.spool.enabled` is false, records wait in memory only";
    plan.fixed.spool.as_ref().ok_or_else(|| off.to_owned())
}

/// The spool of a configuration.
fn archive(plan: &Plan) -> Result<Archive, String> {
    let folder = folder(plan)?;
    if is_missing(folder) {
        return Err(missing(folder));
    }
    Archive::open(folder)
}

fn is_missing(folder: &Path) -> bool {
    matches!(folder.try_exists(), Ok(false))
}

fn missing(folder: &Path) -> String {
    let shown = folder.display();
    format!("there is no spool in {shown}: no gateway has kept usage records there yet")
}

/// When a record was written.
fn time(millis: i64) -> String {
    let time = Timestamp::from_millisecond(millis);
    time.map_or_else(|_| millis.to_string(), |time| format!("{time:.3}"))
}

/// How long ago a record was written.
fn age(millis: i64) -> Duration {
    let ago = Timestamp::now().as_millisecond().saturating_sub(millis);
    Duration::from_millis(ago.try_into().unwrap_or(0))
}

/// `1 record`, `2 records`.
fn count(n: u64, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

/// Prints a text. Whoever reads only its beginning has had enough: no reason to panic. Returns
/// whether anybody reads on.
fn print(text: &str) -> bool {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).is_ok()
}

/// A progress bar on stderr; hidden if that is no terminal.
fn bar(total: u64, template: &str) -> ProgressBar {
    let style = ProgressStyle::with_template(template);
    let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(total).with_style(style.progress_chars("=> "))
}
