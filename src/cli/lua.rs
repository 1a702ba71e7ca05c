//! `llmproxy lua test`: runs a script as the gateway would.

use std::{net::IpAddr, path::PathBuf, process::ExitCode, time::Duration};

use clap::{Args, Subcommand};
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::{
    auth::decision::{RequestView, ScriptInput, Verdict},
    base::duration,
    config::plan::SHIPPED,
    lua::{Limits, Script},
};

#[derive(Subcommand)]
pub enum Command {
    /// Run a script for one request, and print its decision, time and memory.
    Test(TestArgs),
}

#[derive(Args)]
pub struct TestArgs {
    /// A file, or the name of a built-in script.
    script: PathBuf,
    /// The key: the global `api_key`.
    #[arg(long, default_value = "sk-test")]
    key: String,
    /// What the provider knows of the key: the global `data`.
    #[arg(long, value_name = "JSON", default_value = "{}")]
    data: String,
    /// The request: `{"method", "path", "ip", "headers", "model", "stream"}`, each optional.
    #[arg(long, value_name = "JSON", default_value = "{}")]
    request: String,
    /// The metadata of earlier scripts: the global `metadata`.
    #[arg(long, value_name = "JSON", default_value = "{}")]
    metadata: String,
    /// How long a call may take.
    #[arg(long, default_value = "100ms", value_parser = duration::parse)]
    timeout: Duration,
    /// The memory that its values may take, in bytes.
    #[arg(long, value_name = "BYTES", default_value_t = Limits::default().memory)]
    max_memory: usize,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Request {
    method: String,
    path: String,
    ip: Option<IpAddr>,
    headers: Map<String, Value>,
    model: Option<String>,
    stream: bool,
}

impl Default for Request {
    fn default() -> Self {
        Self {
            method: "POST".to_owned(),
            path: "/v1/chat/completions".to_owned(),
            ip: Some(IpAddr::from([127, 0, 0, 1])),
            headers: Map::new(),
            model: None,
            stream: false,
        }
    }
}

/// Runs a subcommand. The exit code is 0 if the script allows the request, 1 if not or if it fails,
/// and 2 if it could not be run.
pub fn run(command: Command) -> ExitCode {
    let Command::Test(args) = command;
    match test(&args) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(why) => {
            eprintln!("llmproxy: {why}");
            ExitCode::from(2)
        }
    }
}

fn test(args: &TestArgs) -> Result<bool, String> {
    let name = args.script.display().to_string();
    let limits = Limits::new(args.timeout, args.max_memory);
    let script = Script::compile(&name, &text(args)?, limits)?;
    let data = object("--data", &args.data)?;
    let metadata = object("--metadata", &args.metadata)?;
    let request: Request =
        serde_json::from_str(&args.request).map_err(|e| format!("--request: {e}"))?;
    let method = Method::from_bytes(request.method.as_bytes())
        .map_err(|_| "--request: `method` is not an HTTP method".to_owned())?;
    let headers = headers(&request.headers)?;
    let call = RequestView {
        method: &method,
        path: &request.path,
        ip: request.ip,
        headers: &headers,
        model: request.model.as_deref(),
        stream: request.stream,
    };
    let question = ScriptInput { key: &args.key, data: &data, request: call, metadata: &metadata };
    // The first call creates the interpreter, which is not part of the script's time.
    script.run_here(&question).0.ok();
    let (result, account) = script.run_here(&question);
    for line in &account.log {
        println!("log: {line}");
    }
    let allow = match &result {
        Ok(verdict) => {
            println!("{:#}", decision(verdict));
            verdict.allow
        }
        Err(why) => {
            println!("failed: {why}");
            false
        }
    };
    let micros = account.time.as_secs_f64() * 1e6;
    println!("time: {micros:.1} µs, memory: {} bytes", account.memory);
    Ok(allow)
}

fn text(args: &TestArgs) -> Result<String, String> {
    let named = args.script.to_str().and_then(|name| SHIPPED.iter().find(|(n, _)| *n == name));
    match (std::fs::read_to_string(&args.script), named) {
        (Ok(text), _) => Ok(text),
        (Err(_), Some((_, text))) => Ok((*text).to_owned()),
        (Err(e), None) => Err(format!("cannot read {}: {e}", args.script.display())),
    }
}

fn object(what: &str, text: &str) -> Result<Map<String, Value>, String> {
    serde_json::from_str(text).map_err(|e| format!("{what}: {e}"))
}

fn headers(fields: &Map<String, Value>) -> Result<HeaderMap, String> {
    let mut headers = HeaderMap::new();
    for (name, value) in fields {
        let text = value.as_str().ok_or(format!("--request: header `{name}` is not a string"))?;
        let pair = (HeaderName::try_from(name.as_str()), HeaderValue::try_from(text));
        let (Ok(name), Ok(value)) = pair else {
            return Err(format!("--request: `{name}` is not a header field"));
        };
        headers.append(name, value);
    }
    Ok(headers)
}

fn decision(verdict: &Verdict) -> Value {
    let mut decision = json!({"allow": verdict.allow});
    for (name, value) in [
        ("message", json!(verdict.message)),
        ("status", json!(verdict.status)),
        ("metadata", json!(verdict.metadata)),
        ("limits", json!(verdict.limits)),
        ("tags", json!(verdict.tags)),
        ("tier", json!(verdict.tier)),
    ] {
        if !value.is_null() && value != json!({}) && value != json!([]) {
            decision[name] = value;
        }
    }
    decision
}
