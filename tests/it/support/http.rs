//! HTTP clients of tests.

use llmproxy::store::tls::install_crypto;
use reqwest::{Client, ClientBuilder, IntoUrl, Response, Result};

/// For a client with its own settings.
pub fn builder() -> ClientBuilder {
    // reqwest is built without a crypto provider: the gateway installs one.
    install_crypto();
    Client::builder()
}

pub fn client() -> Client {
    builder().build().unwrap()
}

pub async fn get(url: impl IntoUrl) -> Result<Response> {
    client().get(url).send().await
}
