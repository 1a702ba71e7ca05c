//! The backend alone, bare Pingora, and two plain proxies.

use super::{Bench, Configured, Missing, Process, Protocol, Role, Row, Start, installed};

pub const ROWS: &[Row] = &[
    Row {
        name: super::DIRECT,
        start: |_, _| Ok(None),
        peer: false,
        serves: |protocol| matches!(protocol, Protocol::Http1),
    },
    Row { name: super::BARE, start: |b, r| bare(b, r, "simple"), peer: false, serves: |_| true },
    Row {
        name: "bare Pingora, work stealing",
        start: |b, r| bare(b, r, "stealing"),
        peer: false,
        serves: |_| true,
    },
    Row { name: "nginx", start: nginx, peer: false, serves: |_| true },
    Row { name: "HAProxy", start: haproxy, peer: false, serves: |_| true },
];

/// Bare Pingora, on the runtime without work stealing that LLMProxy uses with one thread, or on
/// Pingora's default.
fn bare(bench: &Bench, role: &Role, runtime: &str) -> Result<Option<Process>, Missing> {
    let program = bench.llmproxy.with_file_name("examples").join("bare_pingora");
    if !program.is_file() {
        return Err(Missing::Failed(format!(
            "{} is missing: build it with `cargo build --example bare_pingora` and the same profile",
            program.display()
        )));
    }
    let (listen, backend) = (role.listen.to_string(), role.backend.to_string());
    let threads = role.threads.to_string();
    let mut arguments = vec![listen.as_str(), &backend, &threads, runtime];
    let files = [&bench.certificate.chain, &bench.certificate.key].map(|p| p.display().to_string());
    match role.protocol {
        Protocol::Http1 => {}
        Protocol::Http2 => arguments.push("h2c"),
        Protocol::Tls(_) => arguments.extend(files.iter().map(String::as_str)),
    }
    let process = Process::start(Start {
        program: &program,
        arguments: &arguments,
        environment: &[],
        cores: bench.cores.measured(role.threads),
        errors: Some(bench.folder.join(format!("{}.log", role.listen.port()))),
    })?;
    Ok(Some(process))
}

fn nginx(bench: &Bench, role: &Role) -> Result<Option<Process>, Missing> {
    let program = installed("nginx")?;
    let (chain, key) = (bench.certificate.chain.display(), bench.certificate.key.display());
    let (listen, tls) = match role.protocol {
        Protocol::Http1 => ("", String::new()),
        Protocol::Http2 => (" http2", String::new()),
        Protocol::Tls(_) => {
            (" ssl", format!("ssl_certificate {chain}; ssl_certificate_key {key};"))
        }
    };
    let text = format!(
        "daemon off; worker_processes {threads}; pid {folder}/{port}.pid; error_log stderr crit;
worker_rlimit_nofile {files};
events {{ worker_connections {connections}; }}
http {{
  access_log off; client_body_temp_path {folder}; proxy_temp_path {folder};
  fastcgi_temp_path {folder}; uwsgi_temp_path {folder}; scgi_temp_path {folder};
  client_max_body_size 32m; client_body_buffer_size 32m;
  upstream b {{ server {backend}; keepalive 256; keepalive_timeout 3s; }}
  server {{
    listen {address}{listen}; {tls} keepalive_requests 100000000;
    location / {{
      proxy_pass http://b; proxy_http_version 1.1; proxy_set_header Connection \"\";
      proxy_buffering off;
    }}
  }}
}}",
        threads = role.threads,
        folder = bench.folder.display(),
        port = role.listen.port(),
        files = llmproxy::base::machine::open_files(),
        // When fewer than a sixteenth are free, nginx closes connections that have just begun.
        connections = 2 * llmproxy::base::machine::open_files(),
        backend = role.backend,
        address = role.listen,
    );
    Configured { bench, role, extension: "conf", text: &text }.start(
        &program,
        &["-e", "stderr", "-c", "{file}"],
        true,
    )
}

fn haproxy(bench: &Bench, role: &Role) -> Result<Option<Process>, Missing> {
    let program = installed("haproxy")?;
    let bind = match role.protocol {
        Protocol::Http1 => String::new(),
        Protocol::Http2 => " proto h2".to_owned(),
        Protocol::Tls(_) => format!(" ssl crt {}", bench.certificate.both.display()),
    };
    let text = format!(
        "global
  nbthread {threads}
  maxconn {connections}
defaults
  mode http
  option http-no-delay
  timeout connect 5s
  timeout client 600s
  timeout server 600s
frontend f
  bind {address}{bind}
  default_backend b
backend b
  http-reuse always
  server s {backend} pool-purge-delay 3s
",
        threads = role.threads,
        connections = llmproxy::base::machine::open_files() / 2 - 100,
        address = role.listen,
        backend = role.backend,
    );
    Configured { bench, role, extension: "cfg", text: &text }.start(
        &program,
        &["-db", "-f", "{file}"],
        true,
    )
}
