//! LLMProxy: plain, with each policy alone, and with all of them.

use std::net::SocketAddr;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::{
    Bench, Configured, KEY, Missing, PathBuf, Process, Protocol, Role, Row, Start, free, installed,
};
use crate::language::Language;

const fn row(
    name: &'static str,
    start: fn(&Bench, &Role) -> Result<Option<Process>, Missing>,
) -> Row {
    Row { name, start, peer: false, serves: |_| true }
}

pub const ROWS: &[Row] = &[
    row(super::PLAIN, |b, r| quiet(b, r, "")),
    row("LLMProxy, two backends", |b, r| quiet(b, r, &two_backends(r))),
    row("LLMProxy, nothing explained", |b, r| quiet(b, r, "routing: {explain: 0}\n")),
    row("LLMProxy, access log", |b, r| gateway(b, r, "")),
    row("LLMProxy, static key", |b, r| quiet(b, r, &static_key(""))),
    row("LLMProxy, static key with Lua", |b, r| quiet(b, r, &static_key(&lua()))),
    row("LLMProxy, Redis key with a warm cache", |b, r| quiet(b, r, &redis_key(b)?)),
    row("LLMProxy, limits in memory", |b, r| quiet(b, r, &limits("", SLOTS))),
    row("LLMProxy, limits in memory, no header fields", |b, r| {
        quiet(b, r, &limits("  headers: false\n", SLOTS))
    }),
    row("LLMProxy, limits in Redis, exact", |b, r| quiet(b, r, &redis_limits(b, "exact", SLOTS)?)),
    row("LLMProxy, limits in Redis, leased", |b, r| quiet(b, r, &redis_limits(b, "leased", "")?)),
    row("LLMProxy, usage spool", |b, r| {
        let unreachable = "{type: webhook, webhook: {url: \"http://127.0.0.1:9/\"}}";
        quiet(b, r, &usage(unreachable, ""))
    }),
    row("LLMProxy, usage to a file through the spool", |b, r| quiet(b, r, &usage(&file(b, r), ""))),
    row("LLMProxy, usage to a file from memory", |b, r| {
        quiet(b, r, &usage(&file(b, r), "  queue_size: 1000000\n  spool: {enabled: false}\n"))
    }),
    row("LLMProxy, usage to a webhook in batches", |b, r| {
        let url = format!("http://{}/usage", b.receiver);
        quiet(
            b,
            r,
            &usage(&format!("{{type: webhook, webhook: {{url: \"{url}\", batch_size: 500}}}}"), ""),
        )
    }),
    row("LLMProxy, a script that reads the head", |b, r| {
        quiet(b, r, &hook("on_request", "if request.headers['x-internal'] then return false end"))
    }),
    row("LLMProxy, a script that edits the body", |b, r| {
        let script = "local b = request.body b.temperature = 0.5 return {body = b}";
        quiet(b, r, &hook("on_request", script))
    }),
    row("LLMProxy, a script that sees events", |b, r| {
        let script = "if event.content == 'stop' then return false end";
        quiet(b, r, &hook("on_stream_event", script))
    }),
    row("LLMProxy, a guard that masks", |b, r| {
        quiet(b, r, "guards: {redact: [{kinds: [email, phone, card, secret]}]}\n")
    }),
    row(super::FULL, |b, r| {
        let all = [two_backends(r), static_key(&lua()), limits("", SLOTS), usage(&file(b, r), "")];
        gateway(b, r, &all.concat())
    }),
];

/// The plain gateway with a backend that speaks this language alone.
pub const LANGUAGES: [(Language, Row); 3] = [
    (Language::Chat, row(super::PLAIN, |b, r| quiet(b, r, &speaking(r, Language::Chat)))),
    (Language::Messages, row(super::PLAIN, |b, r| quiet(b, r, &speaking(r, Language::Messages)))),
    (Language::Responses, row(super::PLAIN, |b, r| quiet(b, r, &speaking(r, Language::Responses)))),
];

/// A typical script of an operator. It reads the request: one that reads only the data of a key would be
/// called once.
pub const SCRIPT: &str = "if tonumber(data.balance) <= 0 or request.model == nil then
          return {allow = false, message = \"used up\"}
        end
        return {allow = true, metadata = {user_id = data.user_id}}";

/// A field of limits: `max_concurrent`, which the leased mode of Redis does not need.
const SLOTS: &str = ", max_concurrent: 100000";

/// A gateway without access log.
fn quiet(bench: &Bench, role: &Role, more: &str) -> Result<Option<Process>, Missing> {
    start(bench, role, &format!("log: {{access: false}}\n{more}"), true)
}

/// A gateway with an access log, which goes to /dev/null.
fn gateway(bench: &Bench, role: &Role, more: &str) -> Result<Option<Process>, Missing> {
    start(bench, role, more, false)
}

fn start(bench: &Bench, role: &Role, more: &str, errors: bool) -> Result<Option<Process>, Missing> {
    let tls = match role.protocol {
        Protocol::Tls(_) => format!(
            ", tls: {{cert_file: \"{}\", key_file: \"{}\"}}",
            bench.certificate.chain.display(),
            bench.certificate.key.display()
        ),
        _ => String::new(),
    };
    let one = format!("backends: [{{url: \"http://{}\"}}]\n", role.backend);
    let backends = if more.contains("backends:") { "" } else { one.as_str() };
    let text = format!(
        "listen: \"{}\"\nserver: {{threads: {}{tls}}}\ndata_dir: data-{}\n{backends}health_check: {{interval: 5s}}\n{more}",
        role.listen,
        role.threads,
        role.listen.port(),
    );
    Configured { bench, role, extension: "yaml", text: &text }.start(
        &bench.llmproxy,
        &["serve", "--config", "{file}"],
        errors,
    )
}

/// The same backend twice, so that a retry is possible and the head of a response is deferred.
fn two_backends(role: &Role) -> String {
    let url = format!("http://{}", role.backend);
    format!("backends: [{{name: a, url: \"{url}\"}}, {{name: b, url: \"{url}\"}}]\n")
}

fn speaking(role: &Role, language: Language) -> String {
    let url = format!("http://{}", role.backend);
    format!("backends: [{{url: \"{url}\", languages: [{}]}}]\n", language.name())
}

/// A script at a stage.
fn hook(stage: &str, script: &str) -> String {
    format!("hooks: {{{stage}: {{script: \"{script}\"}}}}\n")
}

fn static_key(more: &str) -> String {
    format!(
        "auth:\n  pipeline:\n    - type: static\n      static: {{keys: [{{key: {KEY}, user_id: user_001, balance: 1e12}}]}}\n{more}"
    )
}

fn lua() -> String {
    format!("      lua_script: |\n        {SCRIPT}\n")
}

/// The address of Redis.
fn cache(bench: &Bench) -> Result<SocketAddr, Missing> {
    let missing = || Missing::NotInstalled("redis-server is not installed".to_owned());
    bench.redis.ok_or_else(missing)
}

fn redis_key(bench: &Bench) -> Result<String, Missing> {
    let address = cache(bench)?;
    Ok(format!(
        "auth:\n  pipeline:\n    - {{type: redis, count_usage: false, redis: {{addr: \"{address}\"}}}}\n"
    ))
}

/// Limits above the load: four for all callers together and four for each key.
fn limits(before: &str, slots: &str) -> String {
    const RATES: &str = "requests_per_second: 1000000, requests_per_minute: 1000000000, tokens_per_minute: 100000000000";
    format!("rate_limit:\n{before}  global: {{{RATES}{slots}}}\n  per_key: {{{RATES}{slots}}}\n")
}

fn redis_limits(bench: &Bench, mode: &str, slots: &str) -> Result<String, Missing> {
    let address = cache(bench)?;
    let before = format!("  storage: redis\n  redis: r\n  mode: {mode}\n");
    Ok(format!(
        "storage: {{caches: [{{name: r, driver: redis, addr: \"{address}\"}}]}}\n{}",
        limits(&before, slots)
    ))
}

fn usage(reporter: &str, more: &str) -> String {
    format!("usage:\n  reporters: [{reporter}]\n{more}")
}

/// A reporter that writes a file.
fn file(bench: &Bench, role: &Role) -> String {
    let path = bench.folder.join(format!("{}.jsonl", role.listen.port()));
    format!("{{type: file, file: {{path: \"{}\"}}}}", path.display())
}

/// Starts a Redis server that knows the key of the load; `None` if none is installed.
pub async fn redis(folder: &std::path::Path) -> Result<Option<(Process, SocketAddr)>, String> {
    let Some(program) = redis_server(folder) else { return Ok(None) };
    let listen = free();
    let port = listen.port().to_string();
    let process = Process::start(Start {
        program: &program,
        arguments: &["--port", &port, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"],
        environment: &[],
        cores: None,
        errors: Some(folder.join("redis.log")),
    })?;
    let mut stream = loop {
        match TcpStream::connect(listen).await {
            Ok(stream) => break stream,
            Err(_) => tokio::time::sleep(std::time::Duration::from_millis(20)).await,
        }
    };
    let name = format!("llmproxy:key:{KEY}");
    // The balance is more than the load uses.
    let words =
        ["HSET", &name, "status", "active", "balance", "1000000000000", "user_id", "user_001"];
    let mut command = format!("*{}\r\n", words.len());
    words.iter().for_each(|word| command += &format!("${}\r\n{word}\r\n", word.len()));
    stream.write_all(command.as_bytes()).await.map_err(|e| e.to_string())?;
    match stream.read(&mut [0; 16]).await {
        Ok(n) if n > 0 => Ok(Some((process, listen))),
        _ => Err("Redis does not answer".to_owned()),
    }
}

/// The Redis server. Debian's redis-tools contains it under the name of a tool.
fn redis_server(folder: &std::path::Path) -> Option<PathBuf> {
    if let Ok(program) = installed("redis-server") {
        return Some(program);
    }
    let tool = installed("redis-check-rdb").ok()?;
    let link = folder.join("redis-server");
    std::os::unix::fs::symlink(tool, &link).ok()?;
    Some(link)
}
