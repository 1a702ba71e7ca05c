//! A minimal Pingora proxy that sends every request to one backend without inspecting it. The
//! benchmark compares LLMProxy with it.
//!
//! `bare_pingora LISTEN BACKEND [THREADS [RUNTIME [h2c | CERTIFICATE KEY]]]`; the runtime `simple` is the
//! one without work stealing, which LLMProxy uses with one thread. `h2c` accepts HTTP/2 without TLS.

use std::{net::SocketAddr, time::Duration};

use async_trait::async_trait;
use pingora::{
    Result,
    apps::HttpServerOptions,
    server::{Server, configuration::ServerConf},
    upstreams::peer::HttpPeer,
};
use pingora_proxy::{ProxyHttp, Session};

struct Bare(SocketAddr);

#[async_trait]
impl ProxyHttp for Bare {
    type CTX = ();

    fn new_ctx(&self) {}

    async fn upstream_peer(&self, _: &mut Session, (): &mut ()) -> Result<Box<HttpPeer>> {
        let mut peer = Box::new(HttpPeer::new(self.0, false, String::new()));
        peer.options.idle_timeout = Some(Duration::from_secs(3));
        Ok(peer)
    }
}

#[allow(dead_code, reason = "`benches/cost` has a `main` of its own")]
fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    serve(&arguments);
}

/// Serves until the process ends.
pub fn serve(arguments: &[String]) {
    let threads = arguments.get(2).map_or(1, |n| n.parse().expect("a number of threads"));
    let conf = ServerConf {
        threads,
        upstream_keepalive_pool_size: 1024,
        work_stealing: arguments.get(3).is_none_or(|a| a != "simple"),
        ..ServerConf::default()
    };
    let mut server = Server::new_with_opt_and_conf(None, conf);
    server.bootstrap();
    let backend = arguments[1].parse().expect("the address of a backend");
    let mut proxy = pingora_proxy::http_proxy_service(&server.configuration, Bare(backend));
    let listen = &arguments[0];
    match &arguments[arguments.len().min(4)..] {
        [certificate, key] => {
            proxy.add_tls(listen, certificate, key).expect("a certificate and its key");
        }
        [h2c] if h2c == "h2c" => {
            let mut options = HttpServerOptions::default();
            options.h2c = true;
            proxy.app_logic_mut().expect("no clone yet").server_options = Some(options);
            proxy.add_tcp(listen);
        }
        _ => proxy.add_tcp(listen),
    }
    server.add_service(proxy);
    server.run_forever();
}
