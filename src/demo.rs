//! `llmproxy demo`: a gateway, two simulated backends and a receiver of usage records in one
//! process, to see how it works.
#![expect(clippy::print_stdout, reason = "the demo prints its introduction")]

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

/// Runs the demo until a signal stops it.
///
/// # Errors
/// If an address cannot be listened on.
pub fn run(listen: SocketAddr) -> io::Result<()> {
    // An address in use is reported before the introduction is printed.
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
    println!("llmproxy {} demo. Its configuration:\n", env!("CARGO_PKG_VERSION"));
    for line in configuration.lines() {
        println!("    {line}");
    }
    println!("{}", next_steps(&format!("http://{listen}")));
    io::stdout().flush().ok();
}

/// What to try from another terminal.
fn next_steps(base: &str) -> String {
    format!(
        "
Try it from another terminal.

A streaming chat:

    curl -N {base}/v1/chat/completions -H 'Content-Type: application/json' \\
      -d '{{\"model\":\"sim-model\",\"stream\":true,\"messages\":[{{\"role\":\"user\",\"content\":\"Hello\"}}]}}'

The same with OpenAI's Python SDK (pip install openai):

    from openai import OpenAI
    client = OpenAI(base_url=\"{base}/v1\", api_key=\"any\")
    print(client.chat.completions.create(model=\"sim-model\", messages=[{{\"role\": \"user\", \"content\": \"Hello\"}}]))

What else there is:

    curl {base}/v1/models     the models of the backends
    curl {base}/metrics       metrics for Prometheus
    curl {base}/ready         whether a backend is healthy

The usage record of each request is printed here, as a webhook receives it. To send records elsewhere, see
`usage.reporters` in docs/usage.md. To use your own backends, run `llmproxy` without arguments.

Ctrl-C stops the demo.
"
    )
}

async fn print_record(body: Bytes) -> StatusCode {
    println!("usage record: {}", String::from_utf8_lossy(&body));
    io::stdout().flush().ok();
    StatusCode::NO_CONTENT
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configuration_is_valid_and_the_next_steps_name_its_address() {
        let (listen, receiver) =
            ("127.0.0.1:8000".parse().unwrap(), "127.0.0.1:1".parse().unwrap());
        let backends = ["http://127.0.0.1:2".to_owned(), "http://127.0.0.1:3".to_owned()];
        let text = configuration(listen, &backends, receiver);
        let loaded = config::load_text(&text, Path::new("."), &|_| None);
        assert!(loaded.plan.is_some(), "{:?}", loaded.problems);
        let steps = next_steps("http://127.0.0.1:8000");
        for part in [
            "curl -N http://127.0.0.1:8000/v1/chat/completions",
            "\"stream\":true",
            "OpenAI(base_url=\"http://127.0.0.1:8000/v1\"",
            "http://127.0.0.1:8000/metrics",
            "Ctrl-C",
        ] {
            assert!(steps.contains(part), "{part} in {steps}");
        }
    }
}
