//! Reads the metrics of an engine.

use std::time::Duration;

use reqwest::Method;

use crate::{balance::Endpoint, store::http};

/// The largest metrics that are read, in bytes.
const MAX_BYTES: usize = 1 << 20;

/// The metrics of a backend, in Prometheus' text format.
///
/// # Errors
/// Why they cannot be read, for the log.
pub async fn metrics(
    endpoint: &Endpoint,
    client: &reqwest::Client,
    path: &str,
    timeout: Duration,
) -> Result<Vec<u8>, String> {
    let request = endpoint.request(client, Method::GET, path);
    let mut response = request.timeout(timeout).send().await.map_err(http::cause)?;
    if !response.status().is_success() {
        return Err(format!("{path} answered {}", response.status().as_u16()));
    }
    let mut text = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(http::cause)? {
        if text.len() + chunk.len() > MAX_BYTES {
            return Err(format!("{path} is larger than 1 MiB"));
        }
        text.extend_from_slice(&chunk);
    }
    Ok(text)
}
