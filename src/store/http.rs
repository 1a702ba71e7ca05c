//! The HTTP client for everything that is not a client's request: webhooks, probes, model lists.

use std::{net::SocketAddr, time::Duration};

use super::tls;

/// A client for what is outside of the fleet: it uses the proxy that the environment names.
///
/// See [`client`] for the rest.
pub fn outside() -> reqwest::Client {
    build(builder())
}

/// A client for the backends. Like the requests themselves it uses no proxy, and HTTP/1.1. It keeps
/// idle connections for less time than uvicorn does, and follows no redirects: a webhook that moves
/// must be configured anew.
pub fn client() -> reqwest::Client {
    build(builder().no_proxy().http1_only())
}

/// A client for one backend that has several addresses: it goes to this one.
pub fn client_at(host: &str, address: SocketAddr) -> reqwest::Client {
    build(builder().no_proxy().http1_only().resolve(host, address))
}

/// A client for the gateway on this machine, whose certificate is made out to another name.
pub fn own() -> reqwest::Client {
    build(builder().no_proxy().tls_danger_accept_invalid_certs(true))
}

/// What a failed request failed from. `reqwest` itself prints only that it failed; the URL, which
/// may hold a secret, is not told.
pub fn cause(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut last: &dyn std::error::Error = &error;
    while let Some(inner) = last.source() {
        last = inner;
    }
    last.to_string()
}

/// Whether no connection could be made because nothing listens there.
pub fn is_refused(error: &reqwest::Error) -> bool {
    let mut source = std::error::Error::source(error);
    while let Some(inner) = source {
        if let Some(error) = inner.downcast_ref::<std::io::Error>()
            && error.kind() == std::io::ErrorKind::ConnectionRefused
        {
            return true;
        }
        source = inner.source();
    }
    false
}

fn builder() -> reqwest::ClientBuilder {
    tls::install_crypto();
    reqwest::Client::builder()
        .user_agent(concat!("llmproxy/", env!("CARGO_PKG_VERSION")))
        .redirect(reqwest::redirect::Policy::none())
        .connect_timeout(Duration::from_secs(5))
        .pool_idle_timeout(Duration::from_secs(3))
}

fn build(builder: reqwest::ClientBuilder) -> reqwest::Client {
    builder.build().expect("a client without files of its own can always be built")
}
