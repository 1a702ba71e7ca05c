//! The HTTP client for everything that is not a client's request: webhooks, probes, model lists.

use std::time::Duration;

use super::tls;

/// Makes a client. It keeps idle connections for less time than uvicorn does, and follows no
/// redirects: a webhook that moves must be configured anew.
pub fn client() -> reqwest::Client {
    tls::install_crypto();
    reqwest::Client::builder()
        .user_agent(concat!("llmproxy/", env!("CARGO_PKG_VERSION")))
        .redirect(reqwest::redirect::Policy::none())
        .connect_timeout(Duration::from_secs(5))
        .pool_idle_timeout(Duration::from_secs(3))
        .build()
        .expect("a client without files of its own can always be built")
}
