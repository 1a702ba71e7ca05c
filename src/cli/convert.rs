//! `llmproxy convert`: rewrites a configuration of version 0.5 or older.

use std::{
    fs::OpenOptions,
    io::Write,
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::Args;

use super::config_file::report;
use crate::config;

#[derive(Args)]
pub struct ConvertArgs {
    /// The old configuration file.
    #[arg(value_name = "OLD")]
    file: PathBuf,
    /// The file to write the new configuration to, instead of the standard output. It must not
    /// exist.
    #[arg(long, short, value_name = "NEW")]
    output: Option<PathBuf>,
}

pub fn run(ConvertArgs { file, output }: &ConvertArgs) -> ExitCode {
    let old = match std::fs::read_to_string(file) {
        Ok(old) => old,
        Err(e) => {
            let problem = config::Problem::new("", format!("cannot be read: {e}"));
            return report(file, &[problem]);
        }
    };
    let new = match config::convert::convert(&old) {
        Ok(new) => new,
        Err(problems) => return report(file, &problems),
    };
    let written = match output {
        Some(path) => write_new(file, path, &new),
        None => std::io::stdout().write_all(new.as_bytes()),
    };
    if let Err(e) = written {
        eprintln!("the new configuration cannot be written: {e}");
        return ExitCode::FAILURE;
    }
    let folder = output.as_deref().unwrap_or(file).parent().unwrap_or(Path::new("."));
    let loaded = config::load_text(&new, folder, &|name| std::env::var(name).ok());
    match loaded.plan {
        Some(_) => ExitCode::SUCCESS,
        None => report(output.as_deref().unwrap_or(Path::new("the new file")), &loaded.problems),
    }
}

/// Writes a new file with the permissions of the old one, and replaces none: both may hold secrets.
fn write_new(old: &Path, path: &Path, text: &str) -> std::io::Result<()> {
    let mode = std::fs::metadata(old)?.permissions().mode() & 0o666;
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
    file.write_all(text.as_bytes())
}
