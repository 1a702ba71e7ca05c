//! `llmproxy health`: asks a running gateway whether it is well.

use std::{io, path::PathBuf, time::Duration};

use clap::Args;

use crate::{
    base::duration,
    config,
    store::http::{cause, own},
};

/// Arguments of `health`.
#[derive(Args)]
pub struct HealthArgs {
    /// The configuration file of the gateway, which tells where it listens; without it, port 8000.
    #[arg(long, value_name = "FILE", conflicts_with = "url")]
    config: Option<PathBuf>,
    /// What to ask instead, with the path.
    #[arg(long, conflicts_with = "ready")]
    url: Option<String>,
    /// Ask whether it can serve (`/ready`), and not only whether it lives (`/health`).
    #[arg(long)]
    ready: bool,
    /// How long the answer may take.
    #[arg(long, default_value = "3s", value_parser = duration::parse)]
    timeout: Duration,
}

/// Asks once.
///
/// # Errors
/// What is wrong with the gateway.
#[tokio::main(flavor = "current_thread")]
pub async fn run(args: &HealthArgs) -> io::Result<()> {
    let url = match (&args.url, &args.config) {
        (Some(url), _) => url.clone(),
        (None, file) => {
            let base = match file {
                None => "http://127.0.0.1:8000".to_owned(),
                Some(file) => config::own_url(file)
                    .map_err(|e| io::Error::other(format!("{}: {e}", file.display())))?,
            };
            format!("{base}/{}", if args.ready { "ready" } else { "health" })
        }
    };
    let answer = own().get(&url).timeout(args.timeout).send().await;
    let answer = answer.map_err(|e| io::Error::other(format!("{url}: {}", cause(e))))?;
    let status = answer.status();
    if status.is_success() {
        return Ok(());
    }
    let why = answer.text().await.unwrap_or_default();
    Err(io::Error::other(format!("{url}: {status}: {}", why.trim_end())))
}
