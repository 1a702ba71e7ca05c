//! `llmproxy usage`: inspects the spool of usage records, and sends records again.
//!
//! The commands read the spool on disk, whether or not a gateway writes it at the same time,
//! and change nothing in it; only a replay of dead letters removes those that were accepted.

mod output;
mod replay;
mod spool;
mod status;
mod tail;
mod verify;

use std::process::ExitCode;

use clap::Subcommand;

use super::config_file::report;
use crate::config;

#[derive(Subcommand)]
pub enum Command {
    /// Show the size of the spool, and how far each reporter has come.
    ///
    /// The exit code is 0, or 1 if the configured folder has no spool.
    Status(status::StatusArgs),
    /// Show the latest records of the spool, delivered ones included.
    Tail(tail::TailArgs),
    /// Send records of the spool, or dead letters, to a reporter again.
    ///
    /// Records stay in the spool until every reporter has delivered them, and for
    /// `usage.spool.keep` after that. Until then they can be sent again, to a receiver that has
    /// lost them or to a new one. This process sends them, in the order and the batches of the
    /// gateway; the positions of the gateway's reporters do not change. Repeats are harmless:
    /// receivers recognise them by `record_id`.
    ///
    /// If the receiver cannot be reached in a few attempts, the replay stops and prints the command
    /// that continues it. The exit code is 0 if every record was accepted, and 1 if some were
    /// refused or not sent.
    Replay(replay::ReplayArgs),
    /// Check that nothing in the spool is damaged and nothing is missing.
    ///
    /// Reads every segment; checks the checksum of each record, that the records follow one
    /// another, and that the sequence of each process has no gap. Records before the oldest one are
    /// no gap: they were delivered and removed. An incomplete record at the very end is no damage:
    /// it is being written, or a crash has left it and the next start removes it.
    ///
    /// The exit code is 0 if nothing is damaged or missing, 1 if anything is, and 2 if the spool
    /// could not be checked.
    Verify(verify::VerifyArgs),
}

/// Runs a subcommand. The exit code is 0 for success, 1 for what each command describes, and 2 if
/// the command could not be run.
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
            report(file, &problems);
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
