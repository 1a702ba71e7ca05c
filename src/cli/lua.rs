//! `llmproxy lua`: tools for people who write scripts.

mod bench;
mod effect;
mod given;
mod key;
mod reference;
mod repl;
mod source;
mod test;
mod types;

use std::process::ExitCode;

use clap::Subcommand;

#[derive(Subcommand)]
pub enum Command {
    /// Run a script once, and print what the gateway makes of it, its time and its memory.
    ///
    /// Without `--stage` the script decides about a key. With a stage it sees made-up values of all
    /// globals of that stage, which `--given` changes.
    ///
    /// The exit code is 0 if the request goes on, 1 if the script refuses it, ends the stream or
    /// fails, and 2 if the script could not be run.
    Test(test::TestArgs),
    /// Run a script many times, and print how long a call takes.
    ///
    /// What the script does with `store` and `http` is done in every call. The exit code is 0, 1 if a
    /// call failed, and 2 if the script could not be run.
    Bench(bench::BenchArgs),
    /// Evaluate lines of the standard input with the globals of a stage.
    ///
    /// An expression is printed as JSON. A statement that succeeds is kept, and run again before each
    /// further line: what it does with `store` and `http` is done again too. A line that is not
    /// complete goes on with the next one. The exit code is 0, 1 if a line failed, and 2 if nothing
    /// could be run.
    Repl(repl::ReplArgs),
    /// Print the words of scripts as a definition file for editors with LuaLS.
    Types(types::TypesArgs),
    /// Print the tables of docs/lua.md.
    #[command(hide = true)]
    Reference,
}

/// Runs a subcommand. The exit code is 0 for success, 1 for what each command describes, and 2 if
/// the command could not be run.
pub fn run(command: Command) -> ExitCode {
    let done = match command {
        Command::Test(args) => test::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Repl(args) => repl::run(&args),
        Command::Types(args) => {
            types::print(&args);
            Ok(true)
        }
        Command::Reference => {
            reference::print();
            Ok(true)
        }
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
