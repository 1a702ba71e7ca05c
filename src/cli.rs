//! The command line: arguments to a call.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "the command line talks to people")]

mod config_file;
mod convert;
mod first_steps;
mod health;
mod lua;
mod sim;
mod translate;
mod usage;

use std::{
    io::Write,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{Parser, Subcommand};

use self::config_file::{ConfigFile, report};
use crate::{config, demo, server, usage::record};

/// A programmable gateway at the edge of a fleet of LLM servers.
#[derive(Parser)]
#[command(name = "llmproxy", version, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    /// Run the gateway with this configuration file; the same as `serve --config FILE`.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

#[derive(Subcommand)]
enum Command {
    /// Run the gateway.
    Serve(ConfigFile),
    /// Report every problem of a configuration file.
    ///
    /// The exit code is 0 if the file is valid, and 1 if not. Warnings are printed in either case.
    Check(ConfigFile),
    /// Rewrite a configuration of version 0.5 or older, to the standard output.
    ///
    /// A key without a counterpart becomes a comment that says what to write instead. The exit code
    /// is 0 if the new file is valid.
    Convert(convert::ConvertArgs),
    /// Ask a running gateway for its health, as a container's health check does.
    ///
    /// The exit code is 0 if it answers 200 in time, and 1 if not.
    Health(health::HealthArgs),
    /// Print the JSON Schema of the configuration file.
    Schema {
        /// Print the schema of usage records instead.
        #[arg(long)]
        usage_record: bool,
    },
    /// Run a gateway with two simulated backends and a receiver of usage records, to try it.
    Demo {
        /// The address of the gateway.
        #[arg(long, default_value = "127.0.0.1:8000")]
        listen: SocketAddr,
    },
    /// Run a simulated vLLM server.
    Sim(sim::SimArgs),
    /// Test a script.
    #[command(subcommand)]
    Lua(lua::Command),
    /// Print what the gateway would make of a request or an answer in another API language.
    ///
    /// What would be dropped is printed to the standard error. The exit code is 0 if it can be
    /// translated, and 1 if not.
    Translate(translate::TranslateArgs),
    /// Inspect the spool of usage records, and send records again.
    #[command(subcommand)]
    Usage(usage::Command),
}

/// Runs the command line.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    match (cli.command, cli.config) {
        (Some(Command::Serve(ConfigFile { config })), _) | (None, Some(config)) => serve(&config),
        (Some(Command::Check(ConfigFile { config })), _) => check(&config),
        (Some(Command::Convert(args)), _) => convert::run(&args),
        (Some(Command::Health(args)), _) => end(health::run(&args)),
        (Some(Command::Schema { usage_record }), _) => {
            let schema = if usage_record { record::schema() } else { config::schema() };
            // A reader that closes the pipe early is no reason to panic.
            writeln!(std::io::stdout(), "{schema:#}").ok();
            ExitCode::SUCCESS
        }
        (Some(Command::Demo { listen }), _) => end(demo::run(listen)),
        (Some(Command::Sim(args)), _) => end(sim::run(args)),
        (Some(Command::Lua(command)), _) => lua::run(command),
        (Some(Command::Translate(args)), _) => translate::run(&args),
        (Some(Command::Usage(command)), _) => usage::run(&command),
        (None, None) => first_steps::print(),
    }
}

fn end(result: std::io::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("llmproxy: {e}");
            ExitCode::FAILURE
        }
    }
}

fn serve(file: &Path) -> ExitCode {
    match config::load(file) {
        Ok(plan) => end(server::run(plan, Some(file.to_owned()))),
        Err(problems) => report(file, &problems),
    }
}

fn check(file: &Path) -> ExitCode {
    match config::load(file) {
        Ok(plan) => {
            let n = plan.backends.len();
            for warning in &plan.warnings {
                eprintln!("{}: warning: {warning}", file.display());
            }
            println!("{} is valid: {n} backend{}", file.display(), if n == 1 { "" } else { "s" });
            for backend in &plan.backends {
                println!("  {}: {}", backend.name, backend.called());
            }
            ExitCode::SUCCESS
        }
        Err(problems) => report(file, &problems),
    }
}
