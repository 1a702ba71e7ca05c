//! The tools for people who write scripts: `llmproxy lua`.

use std::{
    io::Write,
    process::{Command, Stdio},
};

use serde_json::json;

use super::support::{Gateway, Receiver, chat, eventually, sim};

/// Runs `llmproxy lua` with these arguments and this input: the exit code and the output.
fn lua(arguments: &[&str], input: &str) -> (i32, String) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_llmproxy"))
        .arg("lua")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // It may end without reading all of it.
    child.stdin.take().unwrap().write_all(input.as_bytes()).ok();
    let done = child.wait_with_output().unwrap();
    let text = String::from_utf8(done.stdout).unwrap() + &String::from_utf8(done.stderr).unwrap();
    (done.status.code().unwrap(), text)
}

#[test]
fn a_script_is_tested_at_every_stage() {
    for (stage, script, code, says) in [
        ("on_request", "return nil", 0, "nothing changes"),
        ("on_request", "local b = request.body b.top_k = 3 return {body = b}", 0, "\"top_k\": 3"),
        ("on_request", "return {haeders = {}}", 0, "warning: unknown field `haeders`"),
        ("on_request", "return {allow = false, message = 'no'}", 1, "\"status\": 403"),
        ("on_request", "log.warn('a', 1) return request.headers['content-TYPE']", 1, "log warn: a"),
        ("on_auth", "return {models = {principal.user_id}}", 0, "user_001"),
        ("rate_limit", "return limits[1].remaining > 100", 1, "\"retry_after\": 60"),
        ("on_route", "return candidates[2].name", 0, "vllm-2"),
        ("on_route", "return backends['vllm-1'].name", 0, "vllm-1"),
        (
            "on_upstream_request",
            "return {headers = {['X-A'] = upstream.attempt}}",
            0,
            "\"x-a\": \"1\"",
        ),
        ("on_response", "return {status = response.status + 1}", 0, "\"status\": 201"),
        ("on_stream_event", "event.content = 'x' return event", 0, "\"content\": \"x\""),
        ("on_stream_event", "return false", 0, "dropped"),
        ("on_stream_event", "return {stop = 'enough'}", 1, "enough"),
        ("on_error", "return {message = error.code}", 0, "rate_limit_exceeded"),
        ("on_usage", "return {cost = usage.cost / 2}", 0, "\"cost\": 0.0001"),
        ("on_complete", "log(result.outcome)", 0, "log info: complete"),
        ("on_request", "\nreturn nothing.at.all", 1, "failed: on_request: stdin: stdin:2:"),
        ("on_request", "while true do end", 1, "longer than 100ms"),
        ("on_request", "return return", 2, "stdin:1:"),
        ("on_nothing", "return nil", 2, "on_stream_event"),
    ] {
        let (ended, text) = lua(&["test", "-", "--stage", stage], script);
        assert_eq!(ended, code, "{stage} {script}: {text}");
        assert!(text.contains(says), "{stage} {script}: {text}");
        let used = code == 2 || text.contains("time: ") && text.contains("memory: ");
        assert!(used, "{text}");
    }
}

#[test]
fn globals_are_given() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("given.json");
    std::fs::write(&file, json!({"request": {"body": {"n": 9}}}).to_string()).unwrap();
    let script = "return {tags = {request.model, tostring(request.body.n)}}";
    let with = |given: &str| lua(&["test", "-", "--stage", "on_request", "--given", given], script);
    assert!(with(r#"{"request": {"model": "mine"}}"#).1.contains("mine"));
    assert!(with(file.to_str().unwrap()).1.contains("\"9\""));
    let (code, text) = with(r#"{"event": {}}"#);
    assert!(code == 2 && text.contains("`event`"), "{text}");
}

#[test]
fn a_configuration_lends_its_library() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let file = folder.path().join(name);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(&file, text).unwrap();
        file.to_str().unwrap().to_owned()
    };
    write("lua/modules/names.lua", "return {mine = 'from the module'}");
    let file = write(
        "llmproxy.yaml",
        "backends: [{url: 'http://vllm:8000'}]
lua: {env: [PATH], store: {type: redis, storage: main}}
storage: {caches: [{name: main, addr: 'redis:6379'}]}
",
    );
    let script = "store.set('a', 1)
return {tags = {require('names').mine, type(env.PATH), tostring(store.incr('a'))}}";
    let (code, text) = lua(&["test", "-", "--stage", "on_auth", "--config", &file], script);
    assert_eq!(code, 0, "{text}");
    for tag in ["from the module", "\"string\"", "\"2\""] {
        assert!(text.contains(tag), "{text}");
    }
    let (code, text) = lua(&["test", "-", "--stage", "on_auth"], script);
    assert_eq!(code, 1, "{text}");
}

#[test]
fn a_script_is_measured() {
    let bench = |script| lua(&["bench", "-", "--stage", "on_request", "--calls", "50"], script);
    let (code, text) = bench("return {tags = {request.model}}");
    assert_eq!(code, 0, "{text}");
    for part in ["calls: 50, ", " per second", "median ", "99th percentile ", "memory: "] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let (_, text) = bench("local s = ('x'):rep(3 << 20) return nil");
    assert!(text.contains("50 calls would go to another thread"), "{text}");
    let (code, text) = bench("return nothing.at.all");
    assert!(code == 1 && text.contains("50 failed") && text.contains("stdin:1:"), "{text}");
    let (code, text) = lua(&["bench", "balance", "--data", "{\"balance\": 1}", "--calls", "5"], "");
    assert!(code == 0 && text.contains("0 failed"), "{text}");
}

#[test]
fn lines_are_evaluated() {
    let repl = |input: &str| lua(&["repl", "--stage", "on_route"], input);
    let input = "1 + 1
request.model
local n = 5
function twice(x)
  return 2 * x
end
twice(n)
log.info('once')
candidates[1].name
nothing.at.all
{1, 2}
return n
nil
n -- a comment
";
    let (code, text) = repl(input);
    assert_eq!(code, 1, "{text}");
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines[..5], ["2", "\"qwen-7b\"", "10", "log info: once", "nil"], "{text}");
    assert_eq!(lines[5], "\"vllm-1\"");
    assert!(lines[6].starts_with("error: line:10: "), "{text}");
    assert_eq!(lines[7..], ["[1,2]", "5", "nil", "5"], "{text}");
    let (code, text) = repl("for i = 1, 3 do\n");
    assert!(code == 1 && text.contains("error: line:"), "{text}");
    assert_eq!(repl("").0, 0);
}

#[test]
fn editors_get_definitions() {
    let (code, all) = lua(&["types"], "");
    assert_eq!(code, 0);
    for part in [
        "---@meta\n",
        "---@class llmproxy.request\n",
        "---@field model? string The model, as the client names it.\n",
        "---@type llmproxy.candidates[]\ncandidates = nil\n",
        "---@overload fun(message: any, level?: integer)\n",
        "---@param options? table\n",
        "function http.get(url, options) end\n",
        "---@return string\nfunction json.encode(value) end\n",
        "function store.set(key, value, ttl) end\n",
    ] {
        assert!(all.contains(part), "{part}\n{all}");
    }
    let (_, usage) = lua(&["types", "--stage", "on_usage"], "");
    assert!(usage.contains("record = nil") && !usage.contains("http.get"), "{usage}");
}

#[tokio::test]
async fn requests_of_scripts_are_counted() {
    let (sim, receiver) = (sim().await, Receiver::start().await);
    let host = receiver.url();
    let host = host.split('/').take(3).collect::<Vec<_>>().join("/");
    let text = format!(
        "backends: [{{url: \"{}\"}}]
lua: {{http: {{hosts: [\"{host}\"]}}}}
hooks:
  on_request:
    on_error: closed
    script: \"http.get('{host}/x') return nil\"
",
        sim.url()
    );
    let gateway = Gateway::start(&text).await;
    let answer = gateway.client().await.ask("/v1/chat/completions", chat(false)).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    eventually("the request is counted", async || {
        let scraped = gateway.client().await.get("/metrics").await.text().to_owned();
        let named = |metric: &str| {
            let of = |line: &&str| line.starts_with(metric) && line.contains(&host);
            scraped.lines().any(|line| of(&line) && line.ends_with(" 1"))
        };
        named("llmproxy_script_http_requests_total{")
            && named("llmproxy_script_http_seconds_count{")
    })
    .await;
}
