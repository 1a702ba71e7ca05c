//! Asks an engine for its metrics.

use std::time::Duration;

use reqwest::Method;

use crate::{balance::Endpoint, store::http};

/// What is read of an engine's metrics at most.
const MOST: usize = 1 << 20;

/// The metrics of a backend, in Prometheus' text format.
///
/// # Errors
/// Why there are none, for the log.
pub async fn metrics(
    endpoint: &Endpoint,
    client: &reqwest::Client,
    path: &str,
    timeout: Duration,
) -> Result<Vec<u8>, String> {
    let request = endpoint.request(client, Method::GET, path);
    let mut answer = request.timeout(timeout).send().await.map_err(http::cause)?;
    if !answer.status().is_success() {
        return Err(format!("{path} answered {}", answer.status().as_u16()));
    }
    let mut text = Vec::new();
    while let Some(chunk) = answer.chunk().await.map_err(http::cause)? {
        if text.len() + chunk.len() > MOST {
            return Err(format!("{path} is larger than 1 MiB"));
        }
        text.extend_from_slice(&chunk);
    }
    Ok(text)
}
