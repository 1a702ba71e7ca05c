//! `llmproxy demo`: a gateway, two simulated backends and a receiver of usage records in one
//! process, to see how it works.
#![expect(clippy::print_stdout, reason = "the demo talks to people")]

use std::{
    io::{self, Write},
    net::{Ipv4Addr, SocketAddr},
    path::Path,
};

use axum::{Router, body::Bytes, http::StatusCode, routing::post};

use crate::{
    config, listener, server,
    sim::{Behaviour, Sim},
};

/// Runs the demo until it is told to stop.
///
/// # Errors
/// If an address cannot be listened on.
pub fn run(listen: SocketAddr) -> io::Result<()> {
    // Told before the introduction is, which would push it out of sight.
    drop(listener::listen(listen)?);
    // The backends and the receiver have a runtime of their own; the gateway makes its own.
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let (sims, receiver) = runtime.block_on(async {
        let behaviour =
            Behaviour { first_token_ms: 150, inter_token_ms: 40, ..Behaviour::default() };
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let first = Sim::start(any, behaviour.clone()).await?;
        let second = Sim::start(any, behaviour).await?;
        let listener = tokio::net::TcpListener::bind(any).await?;
        let receiver = listener.local_addr()?;
        let app = Router::new().route("/usage", post(print_record));
        tokio::spawn(async { axum::serve(listener, app).await });
        Ok::<_, io::Error>(([first, second], receiver))
    })?;
    let text = configuration(listen, &[sims[0].url(), sims[1].url()], receiver);
    let loaded = config::load_text(&text, Path::new("."), &|_| None);
    let plan = loaded.plan.ok_or_else(|| {
        let all: Vec<String> = loaded.problems.iter().map(ToString::to_string).collect();
        io::Error::other(all.join("; "))
    })?;
    introduce(&text, plan.fixed.listen);
    server::run(plan, None)
}

fn configuration(listen: SocketAddr, backends: &[String; 2], receiver: SocketAddr) -> String {
    format!(
        "listen: \"{listen}\"
backends:
  - url: \"{}\"
    weight: 5
  - url: \"{}\"
    weight: 3
health_check:
  interval: 10s
  path: /health
usage:
  spool: {{enabled: false}}
usage_hook:
  url: \"http://{receiver}/usage\"
log:
  level: warn
",
        backends[0], backends[1]
    )
}

fn introduce(configuration: &str, listen: SocketAddr) {
    let base = format!("http://{listen}");
    println!("llmproxy {} demo. Its configuration:\n", env!("CARGO_PKG_VERSION"));
    for line in configuration.lines() {
        println!("    {line}");
    }
    println!(
        "
Try it from another terminal:

    curl {base}/v1/models

    curl {base}/v1/chat/completions -H 'Content-Type: application/json' \\
      -d '{{\"model\":\"sim-model\",\"messages\":[{{\"role\":\"user\",\"content\":\"Hello\"}}]}}'

    curl -N {base}/v1/chat/completions -H 'Content-Type: application/json' \\
      -d '{{\"model\":\"sim-model\",\"stream\":true,\"messages\":[{{\"role\":\"user\",\"content\":\"Hello\"}}]}}'

    curl {base}/metrics

Each request's usage record is printed here. Ctrl-C stops the demo.
"
    );
    io::stdout().flush().ok();
}

async fn print_record(body: Bytes) -> StatusCode {
    println!("usage record: {}", String::from_utf8_lossy(&body));
    io::stdout().flush().ok();
    StatusCode::NO_CONTENT
}
