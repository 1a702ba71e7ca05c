//! Lua scripts that decide about requests.

use std::{path::Path, process::Command, sync::Arc, time::Duration};

use serde_json::{Value, json};

use super::support::{Gateway, Receiver, chat, http, sim, sim_with};

/// A gateway whose script decides about every key.
pub fn with_script(url: &str, script: &str) -> String {
    let lines: String = script.lines().map(|l| format!("        {l}\n")).collect();
    format!(
        "backends: [{{url: \"{url}\"}}]\nauth:\n  pipeline:\n    - type: lua\n      lua_script: |\n{lines}"
    )
}

#[tokio::test]
async fn a_script_sees_the_request_and_identifies_the_caller() {
    let sim = sim().await;
    let receiver = Receiver::start().await;
    let script = "
local r = request
log('asked for ' .. tostring(r.model))
if api_key == 'sk-nil' then return nil end
if api_key == 'sk-true' then return true end
if api_key == 'sk-false' then return false end
if api_key == 'sk-no' then return {allow = false, message = '余额不足', status = 402} end
return {metadata = {user_id = 'u-' .. data.api_key, name = 'n', method = r.method, path = r.path,
  ip = r.ip, model = r.model, stream = r.stream, ua = r.headers['user-agent'], ua2 = r.headers['User-Agent'],
  same = key.api_key == data.api_key, none = next(metadata) == nil}, tags = {'a', 'b'}}";
    let text = with_script(&sim.url(), script) + &receiver.hook();
    let gateway = Gateway::start(&text).await;
    for (key, status) in [("sk-nil", 200), ("sk-true", 200), ("sk-false", 403), ("sk-no", 402)] {
        assert_eq!(gateway.ask_as(key).await.status, status, "{key}");
    }
    assert_eq!(gateway.ask_as("sk-no").await.json()["error"]["message"], "余额不足");
    receiver.wait_for(5).await;
    let answer = gateway.ask_with("User-Agent: test/1\r\nX-API-Key: sk-tell\r\n").await;
    assert_eq!(answer.status, 200);
    let record = receiver.wait_for(6).await[5].clone();
    assert_eq!((&record["user_id"], &record["key_name"]), (&"u-sk-tell".into(), &"n".into()));
    assert_eq!(record["tags"], json!(["a", "b"]));
    let mut metadata = record["metadata"].clone();
    metadata.as_object_mut().unwrap().retain(|name, _| name != "user_id" && name != "name");
    assert_eq!(
        metadata,
        json!({"method": "POST", "path": "/v1/chat/completions", "ip": "127.0.0.1", "model": "sim-model",
            "stream": false, "ua": "test/1", "ua2": "test/1", "same": true, "none": true})
    );
    gateway.logs("asked for sim-model").await;
}

#[tokio::test]
async fn a_failing_script_refuses_one_request_and_is_logged() {
    let sim = sim().await;
    let script = "
if api_key == 'sk-index' then return data.nothing.more end
if api_key == 'sk-answer' then return 'yes' end
if api_key == 'sk-loop' then while true do end end
if api_key == 'sk-grow' then local s = 'x' while true do s = s .. s end end
if api_key == 'sk-regex' then return ('a'):rep(30000):find('a*a*a*a*a*b') end
return true";
    let gateway = Gateway::start(&with_script(&sim.url(), script)).await;
    for (key, message) in [
        ("sk-index", "script:2: attempt to index a nil value (field 'nothing')"),
        ("sk-answer", "a string is not a decision"),
        ("sk-loop", "ran for longer than 100ms"),
        ("sk-grow", "needed more than 10485760 bytes"),
        ("sk-regex", "ran for longer than 100ms"),
    ] {
        let answer = gateway.ask_as(key).await;
        assert_eq!((answer.status, &answer.json()["error"]["code"]), (403, &"SCRIPT_ERROR".into()));
        gateway.logs(message).await;
        assert_eq!(gateway.ask_as("sk-good").await.status, 200, "after {key}");
    }
}

#[tokio::test]
async fn a_hostile_script_delays_no_other_request() {
    let sim = sim().await;
    let script = "
if api_key == 'sk-loop' then while true do end end
return true";
    // One thread: a script that blocks it blocks all requests.
    let text = format!("server: {{threads: 1}}\n{}", with_script(&sim.url(), script));
    let gateway = Arc::new(Gateway::start(&text).await);
    let hostile: Vec<_> = (0..8)
        .map(|_| {
            let gateway = Arc::clone(&gateway);
            tokio::spawn(async move { gateway.ask_as("sk-loop").await.status })
        })
        .collect();
    // Eight loops of 100 ms each, four at a time, take at least 200 ms.
    let mut served = 0;
    while !hostile.iter().any(tokio::task::JoinHandle::is_finished) {
        let mut client = gateway.client().await;
        assert_eq!(client.get("/health").await.status, 200);
        served += 1;
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    // Nor does it block other requests of the same script, even one known to be slow.
    for _ in 0..5 {
        assert_eq!(gateway.ask_as("sk-good").await.status, 200);
    }
    for one in hostile {
        assert_eq!(one.await.unwrap(), 403);
    }
    assert!(served > 2, "only {served} requests were served meanwhile");
}

#[tokio::test]
async fn a_changed_script_file_is_reloaded() {
    let sim = sim().await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("auth.lua");
    std::fs::write(&file, "return false").unwrap();
    let text = format!(
        "backends: [{{url: \"{}\"}}]\nauth:\n  pipeline:\n    - {{type: lua, lua_script_file: \"{}\"}}\n",
        sim.url(),
        file.display()
    );
    let gateway = Gateway::start(&text).await;
    assert_eq!(gateway.ask_as("sk-a").await.status, 403);
    std::fs::write(&file, "return true").unwrap();
    gateway.logs("configuration 2 is in force").await;
    assert_eq!(gateway.ask_as("sk-a").await.status, 200);
    std::fs::write(&file, "return true +").unwrap();
    gateway.logs("is not a Lua script").await;
    assert_eq!(gateway.ask_as("sk-a").await.status, 200);
}

/// The scripts from the documentation of earlier versions, unchanged.
#[tokio::test]
async fn scripts_of_earlier_versions_run_unchanged() {
    let sim = sim().await;
    let guide = "if tonumber(data.balance) <= 0 then
  return {allow = false, message = \"余额不足\"}
end
return {allow = true}";
    let status = "if data.status ~= \"active\" then
  return {allow = false, message = \"Key 已禁用\"}
end
if data.expires_at and tonumber(data.expires_at) < now() then
  return {allow = false, message = \"已过期\"}
end
return {allow = true, metadata = {user_id = data.user_id}}";
    let answer = |script: &str, data: &Value| {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("s.lua");
        std::fs::write(&file, script).unwrap();
        lua_test(&file, data, &json!({}))
    };
    for (script, data, allow) in [
        (guide, json!({"balance": "0"}), false),
        (guide, json!({"balance": "10"}), true),
        (guide, json!({"balance": 10}), true),
        (guide, json!({}), false),
        (status, json!({"status": "active", "expires_at": "1", "user_id": "u"}), false),
        (status, json!({"status": "active", "user_id": "u"}), true),
        (status, json!({"status": "disabled"}), false),
    ] {
        assert_eq!(answer(script, &data).0, allow, "{script} {data}");
    }
    let gateway = Gateway::start(&with_script(&sim.url(), guide)).await;
    // Without a balance `tonumber(nil)` is nil, and the comparison fails.
    assert_eq!(gateway.ask_as("sk-a").await.status, 403);
}

/// Runs `llmproxy lua test`. Returns the decision and the output.
fn lua_test(script: &Path, data: &Value, request: &Value) -> (bool, String) {
    let done = Command::new(env!("CARGO_BIN_EXE_llmproxy"))
        .args(["lua", "test"])
        .arg(script)
        .args(["--key", "sk-a", "--data", &data.to_string(), "--request", &request.to_string()])
        .output()
        .unwrap();
    let text = String::from_utf8(done.stdout).unwrap() + &String::from_utf8(done.stderr).unwrap();
    assert!(done.status.code().is_some_and(|code| code < 2), "{text}");
    assert!(text.contains("time: ") && text.contains("memory: "), "{text}");
    (done.status.success(), text)
}

#[test]
fn the_built_in_scripts_decide_as_documented() {
    let ip = |ip: &str| json!({"ip": ip});
    let model = |model: &str| json!({"model": model});
    for (script, data, request, allow, says) in [
        ("balance", json!({"balance": "12.5", "user_id": "u"}), json!({}), true, "\"u\""),
        ("balance", json!({"balance": 0}), json!({}), false, "\"status\": 429"),
        ("balance", json!({}), json!({}), false, "429"),
        ("vip_tier", json!({"level": "gold"}), json!({}), true, "limits"),
        ("vip_tier", json!({"tier": "nonsense"}), json!({}), true, "standard"),
        ("business_hours", json!({"always": true}), json!({}), true, "true"),
        ("business_hours", json!({"always": "true"}), json!({}), true, "true"),
        ("business_hours", json!({"open_hour": 0, "close_hour": 0}), json!({}), false, "message"),
        ("ip_allow_list", json!({"allowed_ips": ["10.0.0.0/8"]}), ip("10.9.9.9"), true, "true"),
        ("ip_allow_list", json!({"allowed_ips": ["10.0.0.0/8"]}), ip("11.0.0.1"), false, "message"),
        (
            "ip_allow_list",
            json!({"allowed_ips": "192.0.2.7, 192.0.2.9"}),
            ip("192.0.2.9"),
            true,
            "true",
        ),
        (
            "ip_allow_list",
            json!({"allowed_ips": "[\"192.0.2.0/25\"]"}),
            ip("192.0.2.200"),
            false,
            "message",
        ),
        ("ip_allow_list", json!({"allowed_ips": ["2001:db8::1"]}), ip("2001:db8::1"), true, "true"),
        ("ip_allow_list", json!({}), ip("10.0.0.1"), false, "message"),
        ("model_permission", json!({"models": ["qwen-*"]}), model("qwen-72b"), true, "true"),
        ("model_permission", json!({"models": ["qwen-*"]}), model("llama"), false, "message"),
        ("model_permission", json!({"models": "a,b"}), model("b"), true, "true"),
        ("model_permission", json!({"models": "[\"a\"]"}), model("b"), false, "message"),
        (
            "model_permission",
            json!({"models": ["a"]}),
            json!({"method": "GET", "path": "/v1/models"}),
            true,
            "true",
        ),
        ("model_permission", json!({}), model("any"), true, "true"),
        (
            "webhook_result",
            json!({"code": 0, "_http_status": 200, "user_id": "u"}),
            json!({}),
            true,
            "\"u\"",
        ),
        (
            "webhook_result",
            json!({"code": 3, "_http_status": 200, "message": "no"}),
            json!({}),
            false,
            "\"no\"",
        ),
    ] {
        let (allowed, text) = lua_test(Path::new(script), &data, &request);
        assert_eq!(allowed, allow, "{script} {data} {request}: {text}");
        assert!(text.contains(says), "{script} {data} {request}: {text}");
    }
}

#[tokio::test]
async fn a_script_decides_about_streams_too() {
    let sim = sim().await;
    let script = "return {allow = not request.stream, message = 'no streams'}";
    let gateway = Gateway::start(&with_script(&sim.url(), script)).await;
    let mut client = gateway.client().await;
    let key = "X-API-Key: sk-a\r\n";
    for (stream, status) in [(false, 200), (true, 403)] {
        client.post_with("/v1/chat/completions", key, chat(stream).as_bytes()).await;
        assert_eq!(client.answer().await.status, status);
    }
}

#[tokio::test]
async fn the_list_of_models_contains_what_the_caller_may_use() {
    let sim = sim_with(|b| b.models = vec!["qwen-7b".to_owned(), "llama".to_owned()]).await;
    let keys = r#"    static:
        keys:
        - {key: sk-qwen-000001, metadata: {models: ["qwen-*"]}}
        - {key: sk-llama-00001, metadata: {models: ["llama", "gpt"]}}
        - {key: sk-all-0000001}
        - {key: sk-never-00001, metadata: {models: ["another"]}}
"#;
    let gateway = async |script: &str| {
        let text = format!(
            "backends: [{{name: b, url: \"{}\"}}]\nmodels: {{gpt: {{routes: [{{backend: b, model: \
             llama}}]}}}}\nauth:\n  pipeline:\n  - type: static\n{keys}{script}",
            sim.url()
        );
        Gateway::start(&text).await
    };
    let listed = async |gateway: &Gateway, key: &str| {
        let request = http::client().get(gateway.url("/v1/models")).bearer_auth(key);
        let answer = request.send().await.unwrap();
        assert_eq!(answer.status(), 200, "{key}");
        let answer: Value = serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap();
        let data = answer["data"].as_array().unwrap().clone();
        let mut names: Vec<_> = data.iter().map(|m| m["id"].as_str().unwrap().to_owned()).collect();
        names.sort();
        names.join(" ")
    };
    // The built-in script, which refuses a POST without a model.
    let shipped = gateway("    lua: {name: model_permission}\n").await;
    assert_eq!(listed(&shipped, "sk-qwen-000001").await, "qwen-7b");
    assert_eq!(listed(&shipped, "sk-llama-00001").await, "gpt llama");
    assert_eq!(listed(&shipped, "sk-all-0000001").await, "gpt llama qwen-7b");

    let own = gateway(
        "    lua_script: |
      if request.method ~= 'POST' then return true end
      log('asked for ' .. tostring(request.model))
      if request.model == nil then return true end
      for _, name in ipairs(data.metadata and data.metadata.models or {}) do
        if name == request.model then return true end
      end
      return false\n",
    )
    .await;
    assert_eq!(listed(&own, "sk-llama-00001").await, "gpt llama");
    assert_eq!(listed(&own, "sk-never-00001").await, "", "none of them");
    // Only the two requests were counted, and nothing was logged.
    let count =
        |decision| format!("llmproxy_auth_total{{decision=\"{decision}\",provider=\"static\"}}");
    assert_eq!(own.metric(&count("allow")).await, 2.0);
    assert_eq!(own.metric(&count("deny")).await, 0.0);
    assert!(!own.log().contains("asked for"), "{}", own.log());

    // A caller without access to the API gets a refusal, not an empty list.
    let closed = gateway("    lua_script: \"return request.method == 'GET'\"\n").await;
    assert_eq!(listed(&closed, "sk-all-0000001").await, "gpt llama qwen-7b");
    let slow = "    lua_script: \"if request.model then while true do end end return true\"\n";
    let models = listed(&gateway(slow).await, "sk-all-0000001").await;
    assert_ne!(models, "gpt llama qwen-7b", "a script that fails refuses");
}
