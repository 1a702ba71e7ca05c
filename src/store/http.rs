//! The HTTP clients for the gateway's own requests: webhooks, health checks, model lists.

use std::{net::SocketAddr, time::Duration};

use ::http::{HeaderName, HeaderValue, StatusCode, header::CONTENT_TYPE};

use super::{
    StoreError,
    backend_tls::BackendTls,
    proxy::{Proxies, Proxy},
    tls,
};

/// Largest answer of a service in bytes.
const LARGEST_ANSWER: usize = 1 << 20;

/// A client for external services. It uses the proxy that the environment names, except for this machine.
///
/// Otherwise like [`client`].
pub fn outside() -> reqwest::Client {
    let proxies = Proxies::from_env(&|name| std::env::var(name).ok());
    let client = builder().tls_backend_preconfigured(tls::client(&[tls::HTTP_2, tls::HTTP_1]));
    build(client.proxy(reqwest::Proxy::custom(move |url| proxies.for_url(url))))
}

/// A client for the backends, without a proxy. Like forwarded requests it uses HTTP/1.1. It closes idle
/// connections earlier than uvicorn does, and does not follow redirects: a webhook that moves must be
/// reconfigured.
pub fn client() -> reqwest::Client {
    build(backend_builder().no_proxy())
}

/// A client for one backend with several addresses: it uses the first reachable one.
pub fn client_at(host: &str, addresses: &[SocketAddr]) -> reqwest::Client {
    build(backend_builder().no_proxy().resolve_to_addrs(host, addresses))
}

/// A client for one backend behind a proxy with these addresses.
pub fn client_behind(proxy: &Proxy, addresses: &[SocketAddr]) -> reqwest::Client {
    build(backend_builder().resolve_to_addrs(&proxy.host, addresses).proxy(through(proxy)))
}

/// A client for one backend with TLS of its own, by one of its addresses. `name` is the host of its requests'
/// URLs; `proxy` stands in front of it.
pub fn client_trusting(
    own: &BackendTls,
    name: &str,
    addresses: &[SocketAddr],
    proxy: Option<&Proxy>,
) -> reqwest::Client {
    let host = proxy.map_or(name, |proxy| &proxy.host);
    let builder = builder().tls_backend_preconfigured(own.client()).http1_only().no_proxy();
    let builder = builder.resolve_to_addrs(host, addresses);
    build(match proxy {
        Some(proxy) => builder.proxy(through(proxy)),
        None => builder,
    })
}

fn through(proxy: &Proxy) -> reqwest::Proxy {
    let through = reqwest::Proxy::all(proxy.url()).expect("what was read as a URL is one");
    match &proxy.authorization {
        Some(key) => through.custom_http_auth(key.clone()),
        None => through,
    }
}

/// A client for the gateway on this machine, whose certificate has another name.
pub fn own() -> reqwest::Client {
    build(builder().no_proxy().tls_danger_accept_invalid_certs(true))
}

/// The root cause of a failed request, which `reqwest` does not print. The URL, which may hold a secret, is
/// left out.
pub fn cause(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut last: &dyn std::error::Error = &error;
    while let Some(inner) = last.source() {
        last = inner;
    }
    last.to_string()
}

/// Asks a service that answers in JSON; `service` names it in errors (`the webhook`).
///
/// # Errors
/// If it cannot be reached, or its answer has more than 1 MiB.
pub async fn ask(
    request: reqwest::RequestBuilder,
    headers: &[(HeaderName, HeaderValue)],
    question: String,
    service: &str,
) -> Result<(StatusCode, Vec<u8>), StoreError> {
    let request = request.header(CONTENT_TYPE, "application/json").body(question);
    let with = |request: reqwest::RequestBuilder, (name, value): &(HeaderName, HeaderValue)| {
        request.header(name, value)
    };
    let failed = |e| StoreError::new(format!("{service} cannot be reached: {}", cause(e)));
    let mut answer = headers.iter().fold(request, with).send().await.map_err(failed)?;
    let mut body = Vec::new();
    while let Some(piece) = answer.chunk().await.map_err(failed)? {
        body.extend_from_slice(&piece);
        if body.len() > LARGEST_ANSWER {
            return Err(StoreError::new(format!("the answer of {service} is too large")));
        }
    }
    Ok((answer.status(), body))
}

/// Whether the connection was refused because nothing listens there.
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

/// For backends: HTTP/1.1 is the only protocol offered.
fn backend_builder() -> reqwest::ClientBuilder {
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
