//! `scripts`, with the globals and returns that version 0.5 documents. The scripts are our own; they use
//! the same words as its examples.

use serde_json::json;

use super::{Backend, KEYS, ask, hello};
use crate::support::{Gateway, Receiver};

const ROUTING: &str = "
local level = request.body.viplevel or 0
if request.body.user and request.body.user.profile then level = request.body.user.profile.viplevel or level end
log.info('route ' .. request.user_id .. ' ' .. level .. ' ' .. (request.body.model or ''))
if level >= 3 then return 'ultra' elseif level >= 1 then return 'fast' end
if not backends.standard.healthy then return 'fast' end
return 'standard'";

const AUTH: &str = "
local quota = key_info.total_quota or 0
log.info('auth ' .. request.user_id .. ' ' .. quota)
if quota >= 1000000 then return {allow = true} end
if request.body.model == 'gpt-4' then
  return {allow = false, reason = '您的账户等级不支持 ' .. request.body.model, status_code = 403}
end
return {allow = true}";

const RATE_LIMIT: &str = "
local hour = current_time.hour or 0
log.info('limit ' .. hour .. ' ' .. (rate_limit_status.key_remaining or 0))
if hour >= 0 and hour <= 24 and (key_info.total_quota or 0) < 1000000 and (rate_limit_status.key_remaining or 0) < 3 then
  return {allow = false, reason = '高峰期限流，请稍后重试', retry_after = 60}
end
return nil";

const USAGE: &str = "
local level = request.body.viplevel or 0
local discount = level >= 3 and 0.5 or level >= 1 and 0.8 or 1.0
local billable = math.floor((usage.total_tokens or 0) * discount)
return {prompt_tokens = usage.prompt_tokens, completion_tokens = usage.completion_tokens,
  total_tokens = usage.total_tokens, billable_tokens = billable, discount = discount, cost = billable * 0.00001,
  viplevel = level}";

const REQUEST_TRANSFORM: &str = "
local map = {['gpt-4'] = 'llama-70b'}
local original = request.body.model or ''
local body = {}
for name, value in pairs(request.body) do body[name] = value end
body.model = map[original] or original
return {body = body, headers = {['X-User-ID'] = request.user_id, ['X-Original-Model'] = original,
  ['X-Backend-URL'] = request.backend_url}}";

const RESPONSE_TRANSFORM: &str = "
local map = {['llama-70b'] = 'gpt-4'}
local model = response.body.model or ''
local body = {}
for name, value in pairs(response.body) do body[name] = value end
body.model = map[model] or model
body.metadata = {backend = backend_url, latency_ms = latency_ms, original_model = model}
return {status_code = response.status_code, body = body, headers = response.headers}";

const ERROR_HANDLER: &str = "
local messages = {auth_error = '认证失败', rate_limit = '请求过于频繁', backend_error = '后端服务异常'}
local kind = error.type or 'unknown'
log.error('failed ' .. kind .. ' ' .. (error.message or ''))
return {status_code = error.status_code or 500, body = {error = {message = messages[kind] or '未知错误',
  type = kind, request_id = request.id, details = error.message}}}";

/// The configuration with all seven, in files as its example has them.
fn configuration(backends: &[(&str, &Backend)], folder: &std::path::Path, more: &str) -> String {
    let mut text = "backends:\n".to_owned();
    for (name, backend) in backends {
        text += &format!("  - {{name: {name}, url: \"{}\", weight: 10}}\n", backend.url);
    }
    text += KEYS;
    text +=
        "rate_limit: {enabled: true, per_key: {enabled: true, requests_per_minute: 5}}\nscripts:\n";
    for (key, script) in [
        ("routing", ROUTING),
        ("auth", AUTH),
        ("rate_limit", RATE_LIMIT),
        ("usage", USAGE),
        ("request_transform", REQUEST_TRANSFORM),
        ("response_transform", RESPONSE_TRANSFORM),
        ("error_handler", ERROR_HANDLER),
    ] {
        let file = folder.join(format!("{key}.lua"));
        std::fs::write(&file, script).unwrap();
        text += &format!("  {key}: {{enabled: true, script_file: \"{}\"}}\n", file.display());
    }
    text + more
}

#[tokio::test]
async fn the_seven_kinds_of_scripts_work_as_documented() {
    let folder = tempfile::tempdir().unwrap();
    let (standard, fast, ultra) =
        (Backend::start().await, Backend::start().await, Backend::start().await);
    let receiver = Receiver::start().await;
    let backends = [("standard", &standard), ("fast", &fast), ("ultra", &ultra)];
    let gateway = Gateway::start(&configuration(&backends, folder.path(), &receiver.hook())).await;
    let say = async |key: &str, change: serde_json::Value| {
        let mut body = hello();
        for (name, value) in change.as_object().unwrap() {
            body[name] = value.clone();
        }
        let header = format!("Authorization: Bearer {key}\r\n");
        ask(&gateway, "/v1/chat/completions", &header, &body.to_string()).await
    };
    // routing, request_transform, response_transform, usage
    let answer = say("sk-vip", json!({"model": "gpt-4", "viplevel": 3, "stop": null})).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let seen = ultra.last();
    assert_eq!(seen.json()["model"], "llama-70b");
    assert_eq!(seen.headers["x-user-id"], "ann");
    assert_eq!(seen.headers["x-original-model"], "gpt-4");
    assert_eq!(seen.headers["x-backend-url"], ultra.url.as_str());
    let document = answer.json();
    assert_eq!(document["model"], "gpt-4");
    assert_eq!(document["metadata"]["original_model"], "llama-70b");
    assert_eq!(document["metadata"]["backend"], ultra.url.as_str());
    let record = receiver.one().await;
    assert_eq!(record["total_tokens"], 12);
    assert_eq!(record["custom"], json!({"billable_tokens": 6, "discount": 0.5, "viplevel": 3}));
    assert!((record["cost"].as_f64().unwrap() - 0.00006).abs() < 1e-12);
    say("sk-vip", json!({"user": {"profile": {"viplevel": 1}}})).await;
    say("sk-vip", json!({})).await;
    assert_eq!((fast.seen().len(), standard.seen().len()), (1, 1));
    gateway.logs("route ann 1 m").await;
    // auth and error_handler
    let refused = say("sk-std", json!({"model": "gpt-4"})).await;
    assert_eq!(refused.status, 403);
    let error = refused.json()["error"].clone();
    assert_eq!((&error["message"], &error["type"]), (&json!("认证失败"), &json!("auth_error")));
    assert_eq!(error["details"], "您的账户等级不支持 gpt-4");
    // rate_limit
    let mut statuses = Vec::new();
    for _ in 0..5 {
        statuses.push(say("sk-std", json!({})).await.status);
    }
    assert_eq!(statuses, [200, 200, 200, 429, 429]);
    let limited = say("sk-std", json!({})).await;
    assert_eq!(limited.header("retry-after"), Some("60"));
    assert_eq!(limited.json()["error"]["message"], "请求过于频繁");
}
