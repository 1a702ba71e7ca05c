//! The stages before a backend answers.

use serde_json::json;

use super::{Backend, KEYS, ask, chat, configuration, hello};
use crate::support::{Gateway, eventually};

#[tokio::test]
async fn on_request_sees_the_request() {
    let backend = Backend::start().await;
    let script = "
local b = request.body
return {headers = {['x-seen'] = table.concat({request.method, request.path, request.model, tostring(request.stream),
  request.client_ip, request.headers['User-Agent'], b.messages[1].content, request.language, request.operation,
  #request.id > 10 and 'id' or request.id, '<' .. request.user_id .. '>', type(client.ip)}, ' ')}}";
    let gateway = Gateway::start(&configuration(&backend.url, "", &[("on_request", script)])).await;
    ask(&gateway, "/v1/chat/completions", "User-Agent: t/1\r\n", &hello().to_string()).await;
    assert_eq!(
        backend.last().headers["x-seen"],
        "POST /v1/chat/completions m false 127.0.0.1 t/1 Hello chat /v1/chat/completions id <> string"
    );
}

#[tokio::test]
async fn on_request_changes_only_what_it_names() {
    let backend = Backend::start().await;
    let script = "
local b = request.body
if b.model == 'untouched' then return {body = b} end
b.temperature = 0.5
b.messages[1].content = b.messages[1].content .. '!'
b.user = nil
return {body = b, headers = {['x-new'] = 'n', ['x-old'] = false, ['content-length'] = '3', host = 'evil'}}";
    let gateway = Gateway::start(&configuration(&backend.url, "", &[("on_request", script)])).await;
    let body = "{ \"model\" : \"m\",\"stop\":null, \"seed\":12345678901234567890, \"big\": 1.0e2, \
                \"messages\":[ {\"role\":\"user\", \"content\":\"h\\u00e9\"} ], \"tools\":[], \"o\":{}, \"user\":\"u\" }";
    let answer = ask(&gateway, "/v1/chat/completions", "X-Old: 1\r\n", body).await;
    assert_eq!(answer.status, 200);
    let seen = backend.last();
    assert_eq!(
        seen.body,
        "{ \"model\" : \"m\",\"stop\":null, \"seed\":12345678901234567890, \"big\": 1.0e2, \
         \"messages\":[ {\"role\":\"user\", \"content\":\"hé!\"} ], \"tools\":[], \"o\":{} ,\"temperature\":0.5}"
    );
    assert_eq!(seen.headers["x-new"], "n");
    assert!(!seen.headers.contains_key("x-old"));
    let untouched = body.replace("\"m\"", "\"untouched\"");
    ask(&gateway, "/v1/chat/completions", "", &untouched).await;
    assert_eq!(backend.last().body, untouched);
}

#[tokio::test]
async fn on_request_refuses_and_answers() {
    let backend = Backend::start().await;
    let script = "
local what = request.body.messages[1].content
if what == 'refuse' then return {allow = false, message = '不行', status = 422, code = 'nope'} end
if what == 'false' then return false end
if what == 'cached' then return {answer = {status = 203, headers = {['x-hit'] = '1'}, body = {id = 'c', choices = json.array({})}}} end
if what == 'text' then return {answer = {body = 'plain', headers = {['content-type'] = 'text/html'}}} end
if what == 'late' then return {retry_after = 7, continue = false, error = 'later', status_code = 503} end";
    let gateway =
        Gateway::start(&configuration(&backend.url, KEYS, &[("on_request", script)])).await;
    let say = async |what: &str, key: &str| {
        let mut body = hello();
        body["messages"][0]["content"] = what.into();
        let header = format!("Authorization: Bearer {key}\r\n");
        ask(&gateway, "/v1/chat/completions", &header, &body.to_string()).await
    };
    let refused = say("refuse", "sk-vip").await;
    assert_eq!((refused.status, &refused.json()["error"]["message"]), (422, &json!("不行")));
    assert_eq!(refused.json()["error"]["code"], "nope");
    assert_eq!(say("false", "sk-vip").await.status, 403);
    let late = say("late", "sk-vip").await;
    assert_eq!((late.status, late.header("retry-after")), (503, Some("7")));
    let cached = say("cached", "sk-vip").await;
    assert_eq!((cached.status, cached.header("x-hit")), (203, Some("1")));
    assert_eq!(cached.json(), json!({"id": "c", "choices": []}));
    let text = say("text", "sk-vip").await;
    assert_eq!((text.text(), text.header("content-type")), ("plain", Some("text/html")));
    // A script opens no door: who has no key gets no answer of it.
    assert_eq!(say("cached", "sk-unknown").await.status, 401);
    assert_eq!(say("fine", "sk-vip").await.status, 200);
    assert_eq!(backend.seen().len(), 1);
}

#[tokio::test]
async fn on_request_can_change_the_model_that_is_routed() {
    let (a, b) = (Backend::start().await, Backend::start().await);
    let text = format!(
        "backends:\n  - {{name: a, url: \"{}\", models: [small]}}\n  - {{name: b, url: \"{}\", models: [large]}}\nhooks:\n  on_request: {{script: \"request.body.model = 'large' return {{body = request.body}}\"}}\n",
        a.url, b.url
    );
    let gateway = Gateway::start(&text).await;
    let mut body = hello();
    body["model"] = "small".into();
    assert_eq!(chat(&gateway, &body).await.status, 200);
    assert_eq!((a.seen().len(), b.last().json()["model"].clone()), (0, json!("large")));
}

#[tokio::test]
async fn on_auth_knows_the_caller() {
    let backend = Backend::start().await;
    let script = "
assert(standard_checks.key_valid)
if request.body.model == 'gpt-4' and key_info.total_quota < 1000000 then
  return {allow = false, reason = '升级为 VIP', status_code = 402}
end
return {metadata = {who = principal.name .. '/' .. principal.tier .. '/' .. principal.key_id}, models = {'gpt-*', 'm'},
  headers = nil}";
    let gateway = Gateway::start(&configuration(&backend.url, KEYS, &[("on_auth", script)])).await;
    for (key, model, status) in [
        ("sk-vip", "gpt-4", 200),
        ("sk-std", "gpt-4", 402),
        ("sk-std", "m", 200),
        ("sk-std", "claude", 403),
        ("sk-none", "m", 401),
    ] {
        let mut body = hello();
        body["model"] = model.into();
        let header = format!("X-API-Key: {key}\r\n");
        let answer = ask(&gateway, "/v1/chat/completions", &header, &body.to_string()).await;
        assert_eq!(answer.status, status, "{key} {model}: {}", answer.text());
    }
}

#[tokio::test]
async fn rate_limit_sees_limits_and_decides() {
    let backend = Backend::start().await;
    let more = format!(
        "{KEYS}\nrate_limit:\n  global: {{requests_per_minute: 1000}}\n  per_key: {{requests_per_minute: 10}}\n"
    );
    let script = "
log.info('left ' .. rate_limit_status.key_remaining .. ' of ' .. #limits .. ' at ' .. type(current_time.hour))
if request.body.heavy then return {weight = 6} end
if request.body.strict then return {limits = {requests_per_minute = 1}} end
if rate_limit_status.key_remaining < 3 then
  return {allow = false, reason = '高峰期限流', retry_after = 30}
end";
    let gateway =
        Gateway::start(&configuration(&backend.url, &more, &[("rate_limit", script)])).await;
    let say = async |key: &str, field: &str| {
        let mut body = hello();
        if !field.is_empty() {
            body[field] = true.into();
        }
        let header = format!("Authorization: Bearer {key}\r\n");
        ask(&gateway, "/v1/chat/completions", &header, &body.to_string()).await
    };
    assert_eq!(say("sk-vip", "").await.status, 200);
    gateway.logs("left 10 of 2 at number").await;
    assert_eq!(say("sk-vip", "heavy").await.status, 200);
    let heavy = say("sk-vip", "heavy").await;
    assert_eq!(
        (heavy.status, &heavy.json()["error"]["code"]),
        (429, &json!("rate_limit_exceeded"))
    );
    assert_eq!(say("sk-vip", "").await.status, 200);
    let refused = say("sk-vip", "").await;
    assert_eq!((refused.status, refused.header("retry-after")), (429, Some("30")));
    assert_eq!(refused.json()["error"]["message"], "高峰期限流");
    // Another key has limits of its own, which the script narrows.
    assert_eq!(say("sk-std", "strict").await.status, 200);
    assert_eq!(say("sk-std", "strict").await.status, 429);
}

/// Three backends for one model.
async fn three() -> ([Backend; 3], String) {
    let all = [Backend::start().await, Backend::start().await, Backend::start().await];
    let mut text = "backends:\n".to_owned();
    for (name, backend) in ["a", "b", "c"].iter().zip(&all) {
        text += &format!("  - {{name: {name}, url: \"{}\"}}\n", backend.url);
    }
    (all, text)
}

#[tokio::test]
async fn on_route_chooses_backends() {
    let (all, text) = three().await;
    let script = "
local want = request.body.want
if want == 'named' then return 'c' end
if want == 'some' then return {backends = {'a', 'b'}, strategy = 'round_robin'} end
if want == 'unknown' then return 'nobody' end
if want == 'model' then return {model = 'other', backend = 'b'} end
if want == 'session' then return {session = request.body.user} end
if want == 'strategy' then return {strategy = 'fastest'} end
if want == 'list' then
  local names = {}
  for _, c in ipairs(candidates) do names[#names + 1] = c.name .. (c.healthy and '+' or '-') .. c.weight .. '/' .. c.in_flight end
  table.sort(names)
  log.info('candidates ' .. table.concat(names, ' ') .. ' ' .. backends.a.url .. ' ' .. backends.a.active_connections)
end";
    let gateway = Gateway::start(&(text + "hooks:\n" + &super::stage_of("on_route", script))).await;
    let ask = async |want: &str, user: &str| {
        let mut body = hello();
        body["want"] = want.into();
        body["user"] = user.into();
        chat(&gateway, &body).await
    };
    let counts = || all.each_ref().map(|backend| backend.seen().len());
    for _ in 0..3 {
        assert_eq!(ask("named", "").await.status, 200);
    }
    assert_eq!(counts(), [0, 0, 3]);
    for _ in 0..4 {
        ask("some", "").await;
    }
    assert_eq!(counts(), [2, 2, 3]);
    let renamed = ask("model", "").await;
    assert_eq!(renamed.json()["model"], "m", "the client's own name");
    assert_eq!(all[1].last().json()["model"], "other");
    let before = counts();
    for _ in 0..6 {
        ask("session", "ann").await;
    }
    let after = counts();
    let grown: Vec<_> = before.iter().zip(after).filter(|(b, a)| *b != a).collect();
    assert_eq!(grown.len(), 1, "a session stays: {before:?} {after:?}");
    // What cannot be done is logged, and the request goes on.
    assert_eq!(ask("unknown", "").await.status, 200);
    gateway.logs("no backend `nobody` serves this model").await;
    // The request before may still be on its way out.
    let idle = format!("candidates a+1/0 b+1/0 c+1/0 {} 0", all[0].url);
    eventually("no request is in flight", async || {
        assert_eq!(ask("list", "").await.status, 200);
        gateway.log().contains(&idle)
    })
    .await;
}

#[tokio::test]
async fn a_chosen_backend_that_is_down_is_not_replaced() {
    let (all, text) = three().await;
    all[2].answer_with(500);
    let script = "return 'c'";
    let gateway = Gateway::start(&(text + "hooks:\n" + &super::stage_of("on_route", script))).await;
    assert_eq!(chat(&gateway, &hello()).await.status, 500);
    assert_eq!(all.each_ref().map(|backend| backend.seen().len()), [0, 0, 1]);
}

#[tokio::test]
async fn on_upstream_request_sees_and_changes_what_is_sent() {
    let backend = Backend::start().await;
    let text = format!(
        "backends: [{{name: one, url: \"{}\", api_key: sk-backend}}]\nmodels: {{alias: {{routes: [{{backend: one, model: real}}]}}}}\nhooks:\n{}",
        backend.url,
        super::stage_of(
            "on_upstream_request",
            "
local b = request.body
b.metadata = {was = request.model, at = upstream.name, model = b.model, url = request.backend_url == upstream.url}
return {body = b, headers = {['x-auth-seen'] = tostring(request.headers['Authorization']), ['x-try'] = upstream.attempt}}",
        )
    );
    let gateway = Gateway::start(&text).await;
    let mut body = hello();
    body["model"] = "alias".into();
    let answer = chat(&gateway, &body).await;
    assert_eq!((answer.status, &answer.json()["model"]), (200, &json!("alias")));
    let seen = backend.last();
    assert_eq!(
        seen.json()["metadata"],
        json!({"was": "alias", "at": "one", "model": "real", "url": true})
    );
    assert_eq!(seen.headers["authorization"], "Bearer sk-backend");
    assert_eq!(
        (seen.headers["x-auth-seen"].clone(), seen.headers["x-try"].clone()),
        ("nil".parse().unwrap(), "1".parse().unwrap())
    );
}

#[tokio::test]
async fn on_upstream_request_runs_for_each_attempt_and_may_refuse() {
    let (bad, good) = (Backend::start().await, Backend::start().await);
    bad.answer_with(503);
    let text = format!(
        "backends:\n  - {{name: bad, url: \"{}\"}}\n  - {{name: good, url: \"{}\"}}\nmodels: {{m: {{routes: [{{backend: bad, priority: 0}}, {{backend: good, priority: 1}}]}}}}\nhooks:\n{}",
        bad.url,
        good.url,
        super::stage_of(
            "on_upstream_request",
            "if request.body.no then return {allow = false, message = 'not there', status = 451} end
return {headers = {['x-try'] = upstream.name .. upstream.attempt}}",
        )
    );
    let gateway = Gateway::start(&text).await;
    let answer = chat(&gateway, &hello()).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(bad.last().headers["x-try"], "bad1");
    assert_eq!(good.last().headers["x-try"], "good2");
    let mut body = hello();
    body["no"] = true.into();
    let refused = chat(&gateway, &body).await;
    assert_eq!((refused.status, &refused.json()["error"]["message"]), (451, &json!("not there")));
    // The connection that was ready for it does no harm.
    assert_eq!(chat(&gateway, &hello()).await.status, 200);
}
