//! The HTTP client for everything that is not a client's request: webhooks, probes, model lists.

use std::{net::SocketAddr, time::Duration};

use super::{
    proxy::{Proxies, Proxy},
    tls,
};

/// A client for what is outside of the fleet: it uses the proxy that the environment names, but for
/// what is on this machine.
///
/// See [`client`] for the rest.
pub fn outside() -> reqwest::Client {
    let proxies = Proxies::of(&|name| std::env::var(name).ok());
    let client = builder().tls_backend_preconfigured(tls::client(&[tls::HTTP_2, tls::HTTP_1]));
    build(client.proxy(reqwest::Proxy::custom(move |url| proxies.for_url(url))))
}

/// A client for the backends, without a proxy. Like the requests themselves it speaks HTTP/1.1. It keeps
/// idle connections for less time than uvicorn does, and follows no redirects: a webhook that moves
/// must be configured anew.
pub fn client() -> reqwest::Client {
    build(near().no_proxy())
}

/// A client for one backend whose name leads to several addresses: it goes to these, the first that
/// can be reached.
pub fn client_at(host: &str, addresses: &[SocketAddr]) -> reqwest::Client {
    build(near().no_proxy().resolve_to_addrs(host, addresses))
}

/// A client for one backend behind a proxy, which is at one of these addresses.
pub fn client_behind(proxy: &Proxy, addresses: &[SocketAddr]) -> reqwest::Client {
    let through = reqwest::Proxy::all(proxy.url());
    let through = through.expect("what was read as a URL is one");
    build(near().resolve_to_addrs(&proxy.host, addresses).proxy(match &proxy.authorization {
        Some(key) => through.custom_http_auth(key.clone()),
        None => through,
    }))
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

/// For backends: by HTTP/1.1, which is also all that is offered to them.
fn near() -> reqwest::ClientBuilder {
    builder().tls_backend_preconfigured(tls::client(&[tls::HTTP_1])).http1_only()
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
