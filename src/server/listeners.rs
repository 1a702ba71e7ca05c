//! The listeners: their sockets, and Pingora's settings for the connections of clients.

use std::{fmt, io, net::TcpListener, sync::Arc};

use pingora::{
    apps::HttpServerOptions,
    protocols::http::v2::server::{H2Options, default_h2_options},
    server::{Server, configuration::ServerConf},
    tls::{ClientHello, ResolvesServerCert, sign::CertifiedKey},
};
use pingora_proxy::HttpProxy;

use crate::{
    config::plan::Fixed,
    gateway::Gateway,
    listener::{self, Worker},
    runtime::{Carry, Live},
    store,
};

/// The sockets, bound before anything else is started.
pub struct Sockets {
    pub proxy: listener::Bound,
    pub operator: Option<TcpListener>,
    pub admin: Option<TcpListener>,
}

impl Sockets {
    /// Binds every address of the configuration. Clients cannot connect to `proxy` before its
    /// service starts: before the first probes they would only be disconnected again.
    ///
    /// # Errors
    /// If an address cannot be listened on.
    pub fn bind(fixed: &Fixed) -> io::Result<Self> {
        Ok(Self {
            proxy: listener::bind(fixed.listen)?,
            operator: fixed.metrics_listen.map(listener::listen).transpose()?,
            admin: fixed.admin.as_ref().map(|admin| listener::listen(admin.listen)).transpose()?,
        })
    }
}

/// Pingora's settings for the whole process.
pub fn server_conf(uses_tls: bool) -> ServerConf {
    ServerConf {
        // Of each service; `listener` has one for each thread.
        threads: 1,
        // A single thread has no other to steal from; Pingora then uses a simpler runtime.
        work_stealing: false,
        // Idle connections that are kept, for each thread.
        upstream_keepalive_pool_size: 1024,
        ca_file: store::tls::proxy_ca_file(uses_tls),
        // `gateway::failure` decides about attempts; this only stops a defect.
        max_retries: 1000,
        // `signals` ends the process; Pingora's own grace periods are fixed at the start.
        grace_period_seconds: Some(7 * 24 * 3600),
        ..ServerConf::default()
    }
}

/// The services that serve the connections of clients: one for each thread.
pub fn workers(
    server: &Server,
    fixed: &Fixed,
    socket: listener::Bound,
    live: &Arc<Live>,
    carry: &Arc<Carry>,
) -> Vec<Worker<HttpProxy<Gateway>>> {
    let tls = fixed
        .tls
        .map(|least| store::tls::acceptor(least, Arc::new(PresentCertificates(Arc::clone(live)))));
    let max_header_size = live.load().plan.max_header_size;
    let proxy = || {
        let gateway = Gateway::new(Arc::clone(live), Arc::clone(carry));
        let mut proxy = pingora_proxy::http_proxy(&server.configuration, gateway);
        let mut options = HttpServerOptions::default();
        options.h2c = fixed.h2c;
        proxy.server_options = Some(options);
        proxy.h2_options = Some(h2_options(max_header_size));
        proxy
    };
    // Each reads the trust store, if there is TLS to backends: at the same time.
    let proxies = std::thread::scope(|scope| {
        let made: Vec<_> = (1..fixed.threads).map(|_| scope.spawn(proxy)).collect();
        let rest = made.into_iter().map(|made| made.join().expect("nothing in it panics"));
        std::iter::once(proxy()).chain(rest).collect()
    });
    listener::workers(proxies, socket, tls, live, carry)
}

/// The certificates of the configuration that is in force: a reload changes them for the next connections.
struct PresentCertificates(Arc<Live>);

impl ResolvesServerCert for PresentCertificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let snapshot = self.0.load();
        Some(snapshot.plan.certificates.as_ref()?.find(hello.server_name()))
    }
}

impl fmt::Debug for PresentCertificates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PresentCertificates")
    }
}

/// Pingora's defaults, with the limit of header sizes that is configured at the start. HTTP/2
/// counts 32 bytes more for each field than `server.max_header_size` does.
fn h2_options(max_header_size: usize) -> H2Options {
    const ROOM: usize = 16 << 10;
    let mut options = default_h2_options();
    options.max_header_list_size(u32::try_from(max_header_size + ROOM).unwrap_or(u32::MAX));
    options
}
