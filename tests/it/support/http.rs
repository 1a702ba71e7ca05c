//! HTTP clients of tests.

use llmproxy::store::tls::install_crypto;
use reqwest::{Client, ClientBuilder, IntoUrl, Response, Result};

/// For a client with settings of its own.
pub fn builder() -> ClientBuilder {
    // reqwest brings no cryptography along: the gateway chooses it.
    install_crypto();
    Client::builder()
}

/// A client.
pub fn client() -> Client {
    builder().build().unwrap()
}

/// Asks once.
pub async fn get(url: impl IntoUrl) -> Result<Response> {
    client().get(url).send().await
}
