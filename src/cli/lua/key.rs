//! The decision about a key, for a request that is made up on the command line.

use std::net::IpAddr;

use clap::Args;
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::{
    auth::decision::{RequestView, ScriptInput, Verdict},
    lua::{Account, Failure, Script},
};

/// What a script that decides about a key sees.
#[derive(Args)]
pub struct KeyArgs {
    /// The key: the global `api_key`. Only without `--stage`, as the next three.
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

/// The same, read.
pub struct KeyQuestion {
    key: String,
    data: Map<String, Value>,
    metadata: Map<String, Value>,
    method: Method,
    headers: HeaderMap,
    request: Request,
}

impl KeyQuestion {
    /// Reads the arguments.
    ///
    /// # Errors
    /// Which of them is wrong.
    pub fn read(args: &KeyArgs) -> Result<Self, String> {
        let data = object("--data", &args.data)?;
        let metadata = object("--metadata", &args.metadata)?;
        let request: Request =
            serde_json::from_str(&args.request).map_err(|e| format!("--request: {e}"))?;
        let method = Method::from_bytes(request.method.as_bytes())
            .map_err(|_| "--request: `method` is not an HTTP method".to_owned())?;
        let headers = headers(&request.headers).map_err(|why| format!("--request: {why}"))?;
        Ok(Self { key: args.key.clone(), data, metadata, method, headers, request })
    }

    /// Runs a script for it on this thread.
    pub fn run(&self, script: &Script) -> (Result<Verdict, Failure>, Account) {
        let call = RequestView {
            method: &self.method,
            path: &self.request.path,
            ip: self.request.ip,
            headers: &self.headers,
            model: self.request.model.as_deref(),
            stream: self.request.stream,
        };
        let (data, metadata) = (&self.data, &self.metadata);
        script.run_here(&ScriptInput { key: &self.key, data, request: call, metadata })
    }
}

/// Runs a script once, and prints its decision. Whether it allows the request.
pub fn test(script: &Script, question: &KeyQuestion) -> bool {
    // The first call creates the interpreter, which is not part of the script's time.
    question.run(script).0.ok();
    let (result, account) = question.run(script);
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
    allow
}

fn object(what: &str, text: &str) -> Result<Map<String, Value>, String> {
    serde_json::from_str(text).map_err(|e| format!("{what}: {e}"))
}

/// Header fields of a JSON object.
///
/// # Errors
/// Which one is none.
pub fn headers(fields: &Map<String, Value>) -> Result<HeaderMap, String> {
    let mut headers = HeaderMap::new();
    for (name, value) in fields {
        let text = value.as_str().ok_or(format!("header `{name}` is not a string"))?;
        let pair = (HeaderName::try_from(name.as_str()), HeaderValue::try_from(text));
        let (Ok(name), Ok(value)) = pair else {
            return Err(format!("`{name}` is not a header field"));
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
