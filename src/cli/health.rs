//! `llmproxy health`: asks a running gateway for its health.

use std::{io, path::PathBuf, time::Duration};

use clap::Args;

use crate::{
    base::duration,
    config,
    store::http::{cause, own},
};

#[derive(Args)]
pub struct HealthArgs {
    /// The configuration file of the gateway, which has its address. Without it: port 8000 of this
    /// machine.
    #[arg(long, value_name = "FILE", conflicts_with = "url")]
    config: Option<PathBuf>,
    /// The URL to ask instead, including the path.
    #[arg(long, conflicts_with = "ready")]
    url: Option<String>,
    /// Ask whether it can serve requests (`/ready`), not only whether it runs (`/health`).
    #[arg(long)]
    ready: bool,
    /// How long the response may take.
    #[arg(long, default_value = "3s", value_parser = duration::parse)]
    timeout: Duration,
}

/// Asks once.
///
/// # Errors
/// If the gateway cannot be reached, or does not answer 2xx.
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
    let response = own().get(&url).timeout(args.timeout).send().await;
    let response = response.map_err(|e| io::Error::other(format!("{url}: {}", cause(e))))?;
    let status = response.status();
    if status.is_success() {
        return Ok(());
    }
    let why = response.text().await.unwrap_or_default();
    Err(io::Error::other(format!("{url}: {status}: {}", why.trim_end())))
}
