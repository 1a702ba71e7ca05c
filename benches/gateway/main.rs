//! Measures the gateway on loopback, in one run with the backend alone, bare Pingora, and nginx if it
//! is installed. Prints ratios, as absolute numbers depend on the machine.
//!
//! `make bench`, or with a longer measurement `BENCH_SECONDS=10 make bench`; `BENCH_ONLY=limits`
//! measures only the plain gateway and the gateways whose names contain `limits`, and
//! `BENCH_ONLY=selection` only the selection of a backend. Each proxy has one thread on one core; the
//! load and the backend use the others.
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a benchmark that cannot go on ends, and it talks to people"
)]

mod client;
mod in_process;

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use self::{
    client::{Client, request_body, stream},
    in_process::{print_decision, print_script, print_selection},
};

const CONNECTIONS: usize = 32;
const ROUNDS: usize = 5;
const STREAMS: usize = 200;
const STREAM_TOKENS: u64 = 50;
const STREAM_PAUSE_MS: u64 = 20;

/// A process of the measurement; killed when dropped.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

impl Process {
    /// Starts a program, on one core if `core` says so.
    fn start(program: &Path, arguments: &[&str], core: Option<usize>) -> Self {
        let mut command = match core {
            Some(core) => {
                let mut command = Command::new("taskset");
                command.args(["-c", &core.to_string()]).arg(program);
                command
            }
            None => Command::new(program),
        };
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Self(command.spawn().unwrap_or_else(|e| panic!("{}: {e}", program.display())))
    }

    /// CPU time of the process and its children so far (`nginx` works in a child).
    fn cpu(&self) -> Duration {
        let own = self.0.id();
        let children =
            fs::read_to_string(format!("/proc/{own}/task/{own}/children")).unwrap_or_default();
        let ticks: u64 = std::iter::once(own.to_string())
            .chain(children.split_whitespace().map(str::to_owned))
            .filter_map(|pid| fs::read_to_string(format!("/proc/{pid}/stat")).ok())
            .map(|stat| {
                // After the name in parentheses: user and system time are fields 14 and 15.
                let fields: Vec<&str> = stat.rsplit(") ").next().unwrap().split(' ').collect();
                fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
            })
            .sum();
        Duration::from_millis(ticks * 10)
    }

    fn resident_mib(&self) -> f64 {
        let status =
            fs::read_to_string(format!("/proc/{}/status", self.0.id())).unwrap_or_default();
        let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).unwrap_or("0 kB");
        line.trim().trim_end_matches(" kB").parse::<f64>().unwrap_or(0.0) / 1024.0
    }
}

/// A measured server and its results.
struct Target {
    name: &'static str,
    address: SocketAddr,
    process: Option<Process>,
    rounds: Vec<Round>,
}

#[derive(Clone, Copy)]
struct Round {
    per_second: f64,
    p50: f64,
    p99: f64,
    cpu_us: f64,
}

fn free() -> SocketAddr {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap()
}

fn main() {
    // `cargo test --benches` must not measure for minutes.
    if !std::env::args().any(|a| a == "--bench") {
        return;
    }
    if std::env::var("BENCH_ONLY").is_ok_and(|only| only == "selection") {
        return print_selection();
    }
    let seconds = std::env::var("BENCH_SECONDS").map_or(3.0, |s| s.parse().unwrap());
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let pinned = cores > 1 && Command::new("taskset").arg("-V").output().is_ok();
    // The last core is the measured one.
    let core = pinned.then_some(cores - 1);
    if pinned {
        pin_self(cores - 1);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(cores.max(2) - 1)
        .enable_all()
        .build()
        .unwrap();
    let folder = std::env::temp_dir().join(format!("llmproxy-bench-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    runtime.block_on(measure(&folder, core, seconds));
    fs::remove_dir_all(&folder).ok();
}

/// Keeps the load off the measured core.
fn pin_self(measured: usize) {
    let others = if measured == 1 { "0".to_owned() } else { format!("0-{}", measured - 1) };
    let pid = std::process::id().to_string();
    Command::new("taskset").args(["-a", "-c", "-p", &others, &pid]).output().ok();
}

async fn measure(folder: &Path, core: Option<usize>, seconds: f64) {
    let binaries = PathBuf::from(env!("CARGO_BIN_EXE_llmproxy"));
    let (_backend, backend) = backend(&binaries, "0ms", 16, 0);
    let mut targets = targets(folder, &binaries, backend, core);
    let redis = callers(&mut targets, folder, &binaries, backend, core).await;
    limited(&mut targets, redis.as_ref().map(|r| r.1), |listen, more| {
        gateway(folder, &binaries, listen, backend, core, more)
    });
    if let Ok(only) = std::env::var("BENCH_ONLY") {
        let plain = ["backend alone", "bare Pingora", "LLMProxy"];
        targets.retain(|t| t.name.contains(&only) || plain.contains(&t.name));
    }
    for target in &targets {
        reachable(target.address).await;
    }
    println!(
        "plain requests: 1 KiB, {CONNECTIONS} connections, {ROUNDS} rounds of {seconds} s each, median\n"
    );
    let body = request_body(1024, false);
    for round in 0..=ROUNDS {
        for target in &mut targets {
            let measured = load(target, &body, Duration::from_secs_f64(seconds)).await;
            // The first round is a warm-up.
            if round > 0 {
                target.rounds.push(measured);
            }
        }
    }
    print_requests(&targets);
    print_callers(&targets);
    print_limited(&targets);
    print_spool(&targets);
    drop((targets, redis));
    print_selection();
    print_script();
    print_decision();
    drop(_backend);

    let (_backend, backend) =
        self::backend(&binaries, &format!("{STREAM_PAUSE_MS}ms"), STREAM_TOKENS, 50);
    let mut targets = self::targets(folder, &binaries, backend, core);
    println!(
        "\nstreams: {STREAMS} at once, a token every {STREAM_PAUSE_MS} ms, {STREAM_TOKENS} tokens each\n"
    );
    print_streams(&mut targets).await;
}

fn backend(llmproxy: &Path, pause: &str, tokens: u64, first_ms: u64) -> (Process, SocketAddr) {
    let address = free();
    let (listen, tokens) = (address.to_string(), tokens.to_string());
    let first = format!("{first_ms}ms");
    let arguments = [
        "sim",
        "--listen",
        &listen,
        "--first-token",
        &first,
        "--inter-token",
        pause,
        "--tokens",
        &tokens,
    ];
    (Process::start(llmproxy, &arguments, None), address)
}

fn targets(
    folder: &Path,
    llmproxy: &Path,
    backend: SocketAddr,
    core: Option<usize>,
) -> Vec<Target> {
    let mut targets =
        vec![Target { name: "backend alone", address: backend, process: None, rounds: Vec::new() }];
    let mut add = |name, start: &dyn Fn(SocketAddr) -> Process| {
        let address = free();
        targets.push(Target { name, address, process: Some(start(address)), rounds: Vec::new() });
    };
    let bare = llmproxy.with_file_name("examples").join("bare_pingora");
    add("bare Pingora", &|listen| {
        Process::start(&bare, &[&listen.to_string(), &backend.to_string()], core)
    });
    add("bare Pingora, simple runtime", &|listen| {
        Process::start(&bare, &[&listen.to_string(), &backend.to_string(), "1", "simple"], core)
    });
    if Command::new("nginx").arg("-v").output().is_ok() {
        add("nginx", &|listen| nginx(folder, listen, backend, core));
    }
    add("LLMProxy", &|listen| {
        gateway(folder, llmproxy, listen, backend, core, "log: {access: false}\n")
    });
    // The same backend twice, so that a retry is possible and the head of a response is deferred.
    let two = format!(
        "log: {{access: false}}\nbackends: [{{name: a, url: \"http://{backend}\"}}, {{name: b, url: \"http://{backend}\"}}]\n"
    );
    add("LLMProxy, two backends", &|listen| gateway(folder, llmproxy, listen, backend, core, &two));
    let unexplained = format!("{two}routing: {{explain: 0}}\n");
    add("LLMProxy, two backends, nothing explained", &|listen| {
        gateway(folder, llmproxy, listen, backend, core, &unexplained)
    });
    add("LLMProxy, access log", &|listen| gateway(folder, llmproxy, listen, backend, core, ""));
    let more =
        format!("log: {{access: false}}\nusage_hook: {{url: \"http://{}/usage\"}}\n", receiver());
    add("LLMProxy, a webhook call each", &|listen| {
        gateway(folder, llmproxy, listen, backend, core, &more)
    });
    for (name, usage) in recorders(folder) {
        let more = format!("log: {{access: false}}\nusage:\n  {usage}\n");
        add(name, &|listen| gateway(folder, llmproxy, listen, backend, core, &more));
    }
    targets
}

const SPOOLED: &str = "LLMProxy, usage spool";
const SPOOLED_FILE: &str = "LLMProxy, usage spool and file";
const MEMORY_FILE: &str = "LLMProxy, usage to a file from memory";

/// Gateways with usage records, by configuration.
fn recorders(folder: &Path) -> Vec<(&'static str, String)> {
    let nobody = "reporters: [{type: webhook, webhook: {url: \"http://127.0.0.1:9/\"}}]";
    let batches = format!(
        "reporters: [{{type: webhook, webhook: {{url: \"http://{}/usage\", batch_size: 500}}}}]",
        receiver()
    );
    let file = |name: &str| {
        let path = folder.join(name).display().to_string();
        format!("reporters: [{{type: file, file: {{path: \"{path}\"}}}}]")
    };
    vec![
        (SPOOLED, nobody.to_owned()),
        (SPOOLED_FILE, file("spooled.jsonl")),
        (MEMORY_FILE, {
            format!("{}\n  queue_size: 1000000\n  spool: {{enabled: false}}", file("memory.jsonl"))
        }),
        ("LLMProxy, usage spool and webhook in batches", batches),
    ]
}

/// Prints the cost of usage records, and of persistent ones compared to those in memory.
fn print_spool(targets: &[Target]) {
    let ratio = |name| ratio_to_plain(targets, name);
    if let (Some(spooled), Some(memory), Some(alone)) =
        (ratio(SPOOLED_FILE), ratio(MEMORY_FILE), ratio(SPOOLED))
    {
        let ratio = spooled / memory;
        let verdict = if ratio >= 0.95 { "reached" } else { "MISSED" };
        println!("aim: {SPOOLED_FILE} at 0.95 of {MEMORY_FILE} or more: {verdict} ({ratio:.2})");
        println!("{SPOOLED} against no records at all: {alone:.2}");
    }
}

/// The key of the load.
const KEY: &str = "sk-bench-0123456789";

/// A typical script of an operator.
const SCRIPT: &str = "if tonumber(data.balance) <= 0 then
          return {allow = false, message = \"used up\"}
        end
        return {allow = true, metadata = {user_id = data.user_id}}";

/// Gateways with authentication, and the Redis server of one of them.
async fn callers(
    targets: &mut Vec<Target>,
    folder: &Path,
    llmproxy: &Path,
    backend: SocketAddr,
    core: Option<usize>,
) -> Option<(Process, SocketAddr)> {
    let mut add = |name, provider: &str| {
        let address = free();
        let more = format!("log: {{access: false}}\nauth:\n  pipeline:\n    - {provider}\n");
        let process = Some(gateway(folder, llmproxy, address, backend, core, &more));
        targets.push(Target { name, address, process, rounds: Vec::new() });
    };
    let keys = format!("static: {{keys: [{{key: {KEY}, user_id: user_001, balance: 1e12}}]}}");
    add(STATIC, &format!("{{type: static, {keys}}}"));
    add(SCRIPTED, &format!("type: static\n      {keys}\n      lua_script: |\n        {SCRIPT}\n"));
    let listen = free();
    let port = listen.port().to_string();
    let server = redis_server(folder)?;
    let arguments = ["--port", &port, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"];
    let redis = Process::start(&server, &arguments, None);
    reachable(listen).await;
    let name = format!("llmproxy:key:{KEY}");
    // More than the load uses.
    let balance = ["balance", "1000000000000"];
    let command =
        ["HSET", &name, "status", "active", balance[0], balance[1], "user_id", "user_001"];
    let mut resp = format!("*{}\r\n", command.len());
    command.iter().for_each(|word| resp += &format!("${}\r\n{word}\r\n", word.len()));
    let mut stream = TcpStream::connect(listen).await.unwrap();
    stream.write_all(resp.as_bytes()).await.unwrap();
    assert!(stream.read(&mut [0; 16]).await.unwrap() > 0);
    add(REDIS, &format!("{{type: redis, count_usage: false, redis: {{addr: \"{listen}\"}}}}"));
    Some((redis, listen))
}

/// The Redis server. Debian's redis-tools contains it under the name of a tool.
fn redis_server(folder: &Path) -> Option<PathBuf> {
    let runs = |program: &Path| Command::new(program).arg("--version").output().is_ok();
    let plain = PathBuf::from("redis-server");
    if runs(&plain) {
        return Some(plain);
    }
    let tool = Path::new("/usr/bin/redis-check-rdb");
    let link = folder.join("redis-server");
    std::os::unix::fs::symlink(tool, &link).ok()?;
    runs(&link).then_some(link)
}

const STATIC: &str = "LLMProxy, static key";
const SCRIPTED: &str = "LLMProxy, static key with Lua";
const REDIS: &str = "LLMProxy, Redis with a warm cache";

/// Prints the cost of authentication, compared to the gateway without it.
fn print_callers(targets: &[Target]) {
    for (name, aim) in [(STATIC, 0.95), (SCRIPTED, 0.9), (REDIS, 0.9)] {
        if let Some(ratio) = ratio_to_plain(targets, name) {
            let verdict = if ratio >= aim { "reached" } else { "missed" };
            println!("aim: {name} at {aim} of no authentication or more: {verdict} ({ratio:.2})");
        }
    }
}

/// Gateways with limits above the load: in memory, and in Redis if it is installed.
fn limited(
    targets: &mut Vec<Target>,
    redis: Option<SocketAddr>,
    start: impl Fn(SocketAddr, &str) -> Process,
) {
    const RATES: &str = "requests_per_second: 1000000, requests_per_minute: 1000000000, tokens_per_minute: 100000000000";
    let mut add = |name, more: &str| {
        let address = free();
        let process = Some(start(address, &format!("log: {{access: false}}\n{more}")));
        targets.push(Target { name, address, process, rounds: Vec::new() });
    };
    let slots = "max_concurrent: 100000";
    let rules =
        |slots: &str| format!("  global: {{{RATES}{slots}}}\n  per_key: {{{RATES}{slots}}}\n");
    let all = rules(&format!(", {slots}"));
    add(MEMORY, &format!("rate_limit:\n{all}"));
    add(QUIET, &format!("rate_limit:\n  headers: false\n{all}"));
    let Some(redis) = redis else { return };
    let shared = format!(
        "storage: {{caches: [{{name: r, driver: redis, addr: \"{redis}\"}}]}}\nrate_limit:\n  storage: redis\n  redis: r\n"
    );
    add(EXACT, &format!("{shared}{all}"));
    add(LEASED, &format!("{shared}  mode: leased\n{}", rules("")));
}

const MEMORY: &str = "LLMProxy, limits in memory";
const QUIET: &str = "LLMProxy, limits in memory, no header fields";
const EXACT: &str = "LLMProxy, limits in Redis, exact";
const LEASED: &str = "LLMProxy, limits in Redis, leased";

/// Prints the cost of limits, compared to the gateway without limits.
fn print_limited(targets: &[Target]) {
    for (name, aim) in [(MEMORY, Some(0.95)), (QUIET, Some(0.95)), (EXACT, None), (LEASED, None)] {
        let Some(ratio) = ratio_to_plain(targets, name) else { continue };
        match aim {
            Some(aim) => {
                let verdict = if ratio >= aim { "reached" } else { "missed" };
                println!("aim: {name} at {aim} of no limits or more: {verdict} ({ratio:.2})");
            }
            None => println!("{name}: {ratio:.2} of no limits"),
        }
    }
}

/// The throughput of a gateway as a share of the plain one.
fn ratio_to_plain(targets: &[Target], name: &str) -> Option<f64> {
    let speed = |name: &str| {
        let target = targets.iter().find(|t| t.name == name)?;
        Some(median(&target.rounds, |r| r.per_second))
    };
    Some(speed(name)? / speed("LLMProxy")?)
}

fn gateway(
    folder: &Path,
    llmproxy: &Path,
    listen: SocketAddr,
    backend: SocketAddr,
    core: Option<usize>,
    more: &str,
) -> Process {
    let file = folder.join(format!("{}.yaml", listen.port()));
    let one = format!("backends: [{{url: \"http://{backend}\"}}]\n");
    let backends = if more.contains("backends:") { "" } else { one.as_str() };
    let text = format!(
        "listen: \"{listen}\"\nserver: {{threads: 1}}\ndata_dir: data-{}\n{backends}health_check: {{interval: 5s}}\n{more}",
        listen.port()
    );
    fs::write(&file, text).unwrap();
    Process::start(llmproxy, &["serve", "--config", file.to_str().unwrap()], core)
}

fn nginx(folder: &Path, listen: SocketAddr, backend: SocketAddr, core: Option<usize>) -> Process {
    let file = folder.join("nginx.conf");
    let text = format!(
        "daemon off; worker_processes 1; pid {0}/nginx.pid; error_log stderr crit;
         events {{ worker_connections 4096; }}
         http {{ access_log off; client_body_temp_path {0}; proxy_temp_path {0}; fastcgi_temp_path {0};
           uwsgi_temp_path {0}; scgi_temp_path {0};
           upstream b {{ server {backend}; keepalive 256; keepalive_timeout 3s; }}
           server {{ listen {listen}; keepalive_requests 1000000;
             location / {{ proxy_pass http://b; proxy_http_version 1.1; proxy_set_header Connection \"\";
               proxy_buffering off; }} }} }}",
        folder.display()
    );
    fs::write(&file, text).unwrap();
    Process::start(Path::new("nginx"), &["-c", file.to_str().unwrap()], core)
}

/// Accepts usage records and discards them.
fn receiver() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    listener.set_nonblocking(true).unwrap();
    let listener = tokio::net::TcpListener::from_std(listener).unwrap();
    let app = axum::Router::new().route("/usage", axum::routing::post(async || ""));
    tokio::spawn(async move { axum::serve(listener, app).await });
    address
}

async fn reachable(address: SocketAddr) {
    let start = Instant::now();
    while TcpStream::connect(address).await.is_err() {
        assert!(start.elapsed() < Duration::from_secs(10), "{address} does not answer");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Sends requests on all connections as fast as responses arrive.
async fn load(target: &Target, request: &[u8], time: Duration) -> Round {
    let cpu = target.process.as_ref().map(Process::cpu);
    let start = Instant::now();
    let clients: Vec<_> = (0..CONNECTIONS)
        .map(|_| {
            let (address, request) = (target.address, request.to_vec());
            tokio::spawn(async move {
                let mut client = Client::connect(address).await;
                let mut times = Vec::with_capacity(16 * 1024);
                while start.elapsed() < time {
                    let asked = Instant::now();
                    client.ask(&request).await;
                    times.push(asked.elapsed().as_secs_f64() * 1000.0);
                }
                times
            })
        })
        .collect();
    let mut times = Vec::new();
    for client in clients {
        times.extend(client.await.unwrap());
    }
    let elapsed = start.elapsed().as_secs_f64();
    let used =
        target.process.as_ref().map(Process::cpu).zip(cpu).map_or(Duration::ZERO, |(b, a)| b - a);
    times.sort_by(f64::total_cmp);
    Round {
        per_second: times.len() as f64 / elapsed,
        p50: percentile(&times, 0.50),
        p99: percentile(&times, 0.99),
        cpu_us: used.as_secs_f64() * 1e6 / times.len() as f64,
    }
}

fn percentile(sorted: &[f64], share: f64) -> f64 {
    sorted[((sorted.len() - 1) as f64 * share) as usize]
}

fn median(rounds: &[Round], of: impl Fn(&Round) -> f64) -> f64 {
    let mut values: Vec<f64> = rounds.iter().map(of).collect();
    values.sort_by(f64::total_cmp);
    percentile(&values, 0.5)
}

fn print_requests(targets: &[Target]) {
    let of = |name: &str| targets.iter().find(|t| t.name == name).unwrap();
    let bare = median(&of("bare Pingora").rounds, |r| r.per_second);
    println!("| | requests/s | of bare Pingora | p50 ms | p99 ms | µs of a core/request | MiB |");
    println!("|---|---|---|---|---|---|---|");
    for target in targets {
        let rate = median(&target.rounds, |r| r.per_second);
        let process = |text: String| {
            if target.process.is_some() { text } else { "-".to_owned() }
        };
        println!(
            "| {} | {rate:.0} | {:.2} | {:.2} | {:.2} | {} | {} |",
            target.name,
            rate / bare,
            median(&target.rounds, |r| r.p50),
            median(&target.rounds, |r| r.p99),
            process(format!("{:.1}", median(&target.rounds, |r| r.cpu_us))),
            process(format!("{:.0}", target.process.as_ref().map_or(0.0, Process::resident_mib))),
        );
    }
    let ratio = median(&of("LLMProxy").rounds, |r| r.per_second) / bare;
    let verdict = if ratio >= 0.9 { "reached" } else { "MISSED" };
    println!(
        "\naim: LLMProxy with metering at 0.9 of bare Pingora or more: {verdict} ({ratio:.2})"
    );
}

async fn print_streams(targets: &mut [Target]) {
    println!(
        "| | first event p50 ms | p99 | added p50 | between events p99 ms | added p99 | MiB |"
    );
    println!("|---|---|---|---|---|---|---|");
    let mut alone: Option<(f64, f64)> = None;
    for target in targets {
        reachable(target.address).await;
        let request = request_body(1024, true);
        let tasks: Vec<_> = (0..STREAMS)
            .map(|n| {
                let (address, request) = (target.address, request.clone());
                tokio::spawn(async move {
                    // Not all at the same moment, which would measure the queue.
                    tokio::time::sleep(Duration::from_millis(n as u64 * 5)).await;
                    stream(address, &request).await
                })
            })
            .collect();
        tokio::time::sleep(Duration::from_millis(STREAMS as u64 * 5)).await;
        let memory = target.process.as_ref().map_or(0.0, Process::resident_mib);
        let (mut firsts, mut gaps) = (Vec::new(), Vec::new());
        for task in tasks {
            let pace = task.await.unwrap();
            firsts.push(pace.first);
            gaps.extend(pace.gaps);
        }
        firsts.sort_by(f64::total_cmp);
        gaps.sort_by(f64::total_cmp);
        let (first, gap) = (percentile(&firsts, 0.5), percentile(&gaps, 0.99));
        let (base_first, base_gap) = *alone.get_or_insert((first, gap));
        println!(
            "| {} | {first:.2} | {:.2} | {:.2} | {gap:.2} | {:.2} | {memory:.0} |",
            target.name,
            percentile(&firsts, 0.99),
            first - base_first,
            gap - base_gap,
        );
    }
}
