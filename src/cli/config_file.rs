//! The argument that names the configuration file, and the report of what is wrong with it.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::Args;

use crate::config::Problem;

#[derive(Args)]
pub struct ConfigFile {
    /// The configuration file.
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
}

/// Prints every problem, and how many there are.
pub fn report(file: &Path, problems: &[Problem]) -> ExitCode {
    for problem in problems {
        eprintln!("{}: {problem}", file.display());
    }
    let n = problems.len();
    eprintln!("{n} problem{} in {}", if n == 1 { "" } else { "s" }, file.display());
    ExitCode::FAILURE
}
