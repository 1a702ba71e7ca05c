//! Measures the gateway on loopback, in one run with the backend alone, bare Pingora, and other proxies
//! that are installed. Prints tables and ratios, as absolute numbers depend on the machine.
//!
//! `make bench`; `docs/benchmarks.md` describes the sections, the variables and the method.
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a benchmark that cannot go on ends, and it talks to people"
)]

mod backend;
mod certificate;
mod client;
mod figures;
mod in_process;
mod language;
mod load;
mod machine;
mod process;
mod report;
mod rows;
mod sections;
mod settings;
mod stream;
mod target;

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::ExitCode,
};

use self::{
    certificate::Certificate, machine::Cores, report::Report, settings::Settings, target::Bench,
};

/// The key of the load.
const KEY: &str = "sk-bench-0123456789";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    llmproxy::base::machine::raise_open_files();
    let result = match arguments.first().map(String::as_str) {
        Some("--backend") => backend::run(&arguments[1..]).map(|()| 0),
        // `cargo test --benches` must not measure for minutes.
        _ if !arguments.iter().any(|a| a == "--bench") => Ok(0),
        _ => run(),
    };
    match result {
        Ok(0) => ExitCode::SUCCESS,
        Ok(failed) => {
            eprintln!("{failed} rows have failed");
            ExitCode::FAILURE
        }
        Err(why) => {
            eprintln!("bench: {why}");
            ExitCode::FAILURE
        }
    }
}

/// Runs what the environment asks for. Returns how many rows have failed.
fn run() -> Result<usize, String> {
    let settings = Settings::from_environment()?;
    llmproxy::store::tls::install_crypto();
    let cores = Cores::new();
    cores.pin_self();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(cores.load_count())
        .enable_all()
        .build()
        .map_err(|e| e.to_string())?;
    let folder = std::env::temp_dir().join(format!("llmproxy-bench-{}", std::process::id()));
    fs::create_dir_all(&folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    let result = runtime.block_on(measure(settings, cores, &folder));
    fs::remove_dir_all(&folder).ok();
    result
}

async fn measure(settings: Settings, cores: Cores, folder: &Path) -> Result<usize, String> {
    let redis = rows::redis(folder).await?;
    let bench = Bench {
        settings,
        cores,
        folder: folder.to_owned(),
        llmproxy: PathBuf::from(env!("CARGO_BIN_EXE_llmproxy")),
        certificate: Certificate::create(folder)?,
        redis: redis.as_ref().map(|(_, address)| *address),
        receiver: receiver().await?,
    };
    let mut report = Report::new(&bench.cores);
    sections::loads(&bench, &mut report).await?;
    sections::streams(&bench, &mut report).await?;
    sections::languages(&bench, &mut report).await?;
    sections::latency(&bench, &mut report).await?;
    sections::threads(&bench, &mut report).await?;
    sections::startup(&bench, &mut report).await?;
    drop(redis);
    in_process::measure(&bench.settings, &mut report);
    if report.is_empty() {
        return Err(format!(
            "BENCH_ONLY names no section ({}) and no part of a row's name",
            settings::SECTIONS.join(", ")
        ));
    }
    report.finish(&bench.settings)
}

/// Accepts usage records and discards them.
async fn receiver() -> Result<SocketAddr, String> {
    let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0));
    let listener = listener.await.map_err(|e| e.to_string())?;
    let address = listener.local_addr().map_err(|e| e.to_string())?;
    let app = axum::Router::new().route("/usage", axum::routing::post(async || ""));
    tokio::spawn(async move { axum::serve(listener, app).await });
    Ok(address)
}
