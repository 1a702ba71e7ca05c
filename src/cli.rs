//! Arguments to a call.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "the command line talks to people")]

mod health;
mod lua;
mod usage;

use std::{
    fs::OpenOptions,
    io::Write,
    net::SocketAddr,
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use clap::{Args, Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};

use crate::{
    base::duration,
    config, demo, server,
    sim::{Behaviour, Fail, Sim},
    usage::record,
};

/// A programmable gateway at the edge of a fleet of LLM servers.
#[derive(Parser)]
#[command(
    name = "llmproxy",
    version,
    args_conflicts_with_subcommands = true,
    arg_required_else_help = true
)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    /// The configuration file; the same as `serve --config FILE`.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

#[derive(Subcommand)]
enum Command {
    /// Run the gateway.
    Serve(ConfigFile),
    /// Tell everything that is wrong with a configuration file.
    Check(ConfigFile),
    /// Turn a configuration of version 0.5 or older into one of today, on the standard output.
    ///
    /// What has no counterpart stands in comments, with what to do instead. The exit code is 0 if
    /// the new file is valid.
    Convert {
        /// The old configuration file.
        #[arg(value_name = "OLD")]
        file: PathBuf,
        /// Where to write the new one.
        #[arg(long, short, value_name = "NEW")]
        output: Option<PathBuf>,
    },
    /// Ask a running gateway whether it is well, as a container's health check does.
    ///
    /// The exit code is 0 if it answers 200 in time, and 1 if not.
    Health(health::HealthArgs),
    /// Print the JSON Schema of the configuration file.
    Schema {
        /// Of usage records instead.
        #[arg(long)]
        usage_record: bool,
    },
    /// Run a gateway with two simulated backends and a receiver for usage records, to try it.
    Demo {
        /// Where the gateway listens.
        #[arg(long, default_value = "127.0.0.1:8000")]
        listen: SocketAddr,
    },
    /// Run a simulated vLLM server.
    Sim(SimArgs),
    /// Try a script.
    #[command(subcommand)]
    Lua(lua::Command),
    /// Look at the spool of usage records, and send records again.
    #[command(subcommand)]
    Usage(usage::Command),
}

#[derive(Args)]
struct ConfigFile {
    /// The configuration file.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
}

#[derive(Args)]
struct SimArgs {
    /// Where it listens.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8001")]
    listen: SocketAddr,
    /// A model that it serves; may be given several times.
    #[arg(long = "model", default_value = "sim-model")]
    models: Vec<String>,
    /// Time until the first token.
    #[arg(long, default_value = "50ms", value_parser = duration::parse)]
    first_token: Duration,
    /// Time between tokens.
    #[arg(long, default_value = "20ms", value_parser = duration::parse)]
    inter_token: Duration,
    /// Tokens in an answer, unless the request wants fewer.
    #[arg(long, default_value_t = 16)]
    tokens: u64,
    /// A way to fail.
    #[arg(long, value_enum, default_value = "none")]
    fail: Fail,
    /// Fail only every so many requests.
    #[arg(long, default_value_t = 1)]
    fail_every: u64,
    /// Close the connection after each stream without saying so, as llama.cpp does.
    #[arg(long)]
    close_after_stream: bool,
    /// The key that it wants as a bearer token.
    #[arg(long, default_value = "")]
    api_key: String,
}

/// Runs the command line.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    match (cli.command, cli.config) {
        (Some(Command::Serve(ConfigFile { config })), _) | (None, Some(config)) => serve(&config),
        (Some(Command::Check(ConfigFile { config })), _) => check(&config),
        (Some(Command::Convert { file, output }), _) => convert(&file, output.as_deref()),
        (Some(Command::Health(args)), _) => end(health::run(&args)),
        (Some(Command::Schema { usage_record }), _) => {
            let schema = if usage_record { record::schema() } else { config::schema() };
            // Whoever reads only the beginning has had enough: no reason to panic.
            writeln!(std::io::stdout(), "{schema:#}").ok();
            ExitCode::SUCCESS
        }
        (Some(Command::Demo { listen }), _) => end(demo::run(listen)),
        (Some(Command::Sim(args)), _) => end(sim(args)),
        (Some(Command::Lua(command)), _) => lua::run(command),
        (Some(Command::Usage(command)), _) => usage::run(&command),
        (None, None) => unreachable!("clap prints the help"),
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
        Err(problems) => tell(file, &problems),
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
        Err(problems) => tell(file, &problems),
    }
}

fn convert(file: &Path, output: Option<&Path>) -> ExitCode {
    let old = match std::fs::read_to_string(file) {
        Ok(old) => old,
        Err(e) => return tell(file, &[config::Problem::new("", format!("cannot be read: {e}"))]),
    };
    let new = match config::convert::convert(&old) {
        Ok(new) => new,
        Err(problems) => return tell(file, &problems),
    };
    let written = match output {
        Some(path) => write_beside(file, path, &new),
        None => std::io::stdout().write_all(new.as_bytes()),
    };
    if let Err(e) = written {
        eprintln!("the new configuration cannot be written: {e}");
        return ExitCode::FAILURE;
    }
    let folder = output.unwrap_or(file).parent().unwrap_or(Path::new("."));
    let loaded = config::load_text(&new, folder, &|name| std::env::var(name).ok());
    match loaded.plan {
        Some(_) => ExitCode::SUCCESS,
        None => tell(output.unwrap_or(Path::new("the new file")), &loaded.problems),
    }
}

/// Writes a new file that is as secret as the old one, and replaces none.
fn write_beside(old: &Path, path: &Path, text: &str) -> std::io::Result<()> {
    let mode = std::fs::metadata(old)?.permissions().mode() & 0o666;
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
    file.write_all(text.as_bytes())
}

fn tell(file: &Path, problems: &[config::Problem]) -> ExitCode {
    for problem in problems {
        eprintln!("{}: {problem}", file.display());
    }
    let n = problems.len();
    eprintln!("{n} problem{} in {}", if n == 1 { "" } else { "s" }, file.display());
    ExitCode::FAILURE
}

#[tokio::main]
async fn sim(args: SimArgs) -> std::io::Result<()> {
    let behaviour = Behaviour {
        models: args.models,
        first_token_ms: args.first_token.as_millis() as u64,
        inter_token_ms: args.inter_token.as_millis() as u64,
        tokens: args.tokens,
        fail: args.fail,
        fail_every: args.fail_every,
        close_after_stream: args.close_after_stream,
        api_key: args.api_key,
        ..Behaviour::default()
    };
    let sim = Sim::start(args.listen, behaviour.clone()).await?;
    println!("llmproxy {}: simulated vLLM on {}", env!("CARGO_PKG_VERSION"), sim.url());
    println!(
        "models {}, first token after {:?}, then one every {:?}, {} tokens, failure: {:?}",
        behaviour.models.join(", "),
        args.first_token,
        args.inter_token,
        args.tokens,
        args.fail
    );
    // The first process of a container gets no signal that it does not ask for.
    let (mut terminate, mut interrupt) =
        (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::select! {
        () = sim.forever() => {}
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}
