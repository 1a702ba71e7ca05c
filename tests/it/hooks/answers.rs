//! The stages of an answer.

use serde_json::{Value, json};

use super::{Backend, KEYS, ask, backend, chat, configuration, hello, hello_stream, stage_of};
use crate::support::{Gateway, chat as sim_chat, client::Response, sim_with};

#[tokio::test]
async fn on_response_changes_a_plain_answer() {
    let backend = Backend::start().await;
    let script = "
local b = response.body
if request.body.plain then return nil end
if request.body.text then return {body = 'just text', headers = {['content-type'] = 'text/plain'}} end
b.metadata = {backend = backend_url, latency = type(latency_ms), was = b.model, status = response.status_code}
b.model = 'gpt-4'
return {status = 201, headers = {['x-added'] = 'yes', ['x-served-by-test'] = false}, body = b}";
    let gateway =
        Gateway::start(&configuration(&backend.url, "", &[("on_response", script)])).await;
    let answer = chat(&gateway, &hello()).await;
    assert_eq!((answer.status, answer.header("x-added")), (201, Some("yes")));
    assert_eq!(answer.header("x-served-by-test"), None);
    let length = answer.body.len().to_string();
    assert_eq!(answer.header("content-length"), Some(length.as_str()));
    assert_eq!(
        answer.json()["metadata"],
        json!({"backend": backend.url, "latency": "number", "was": "m", "status": 200})
    );
    assert_eq!(answer.json()["model"], "gpt-4");
    // Where nothing changed, nothing changes: `logprobs` is still null.
    assert!(answer.text().contains("\"logprobs\":null"), "{}", answer.text());
    let ask_for = async |field: &str| {
        let mut body = hello();
        body[field] = true.into();
        chat(&gateway, &body).await
    };
    let plain = ask_for("plain").await;
    assert_eq!((plain.status, plain.header("x-served-by-test")), (200, Some("one")));
    let text = ask_for("text").await;
    assert_eq!((text.text(), text.header("content-type")), ("just text", Some("text/plain")));
}

#[tokio::test]
async fn on_response_sees_error_responses_of_backends() {
    let backend = Backend::start().await;
    let script = "
if response.status >= 500 then
  return {status = 529, body = {error = {message = 'we said: ' .. response.body.error.message}}}
end";
    for more in ["", "routing: {retry: {max_retries: 2}}"] {
        let gateway =
            Gateway::start(&configuration(&backend.url, more, &[("on_response", script)])).await;
        backend.answer_with(500);
        let answer = chat(&gateway, &hello()).await;
        assert_eq!(
            (answer.status, answer.json()["error"]["message"].clone()),
            (529, json!("we said: broken")),
            "{more}"
        );
        backend.answer_with(200);
        assert_eq!(chat(&gateway, &hello()).await.status, 200);
    }
}

#[tokio::test]
async fn on_response_changes_the_head_of_a_stream() {
    let backend = Backend::start().await;
    let script = "return {headers = {['x-stream'] = type(response.body.id)}}";
    let gateway =
        Gateway::start(&configuration(&backend.url, "", &[("on_response", script)])).await;
    let answer = chat(&gateway, &hello_stream()).await;
    assert_eq!((answer.status, answer.header("x-stream")), (200, Some("nil")));
    assert_eq!(content(&answer), "Hello you");
}

/// The content of a stream of Chat.
fn content(answer: &Response) -> String {
    documents(answer)
        .iter()
        .filter_map(|chunk| chunk.pointer("/choices/0/delta/content")?.as_str())
        .collect()
}

fn documents(answer: &Response) -> Vec<Value> {
    let data = answer.text().split("\n\n").filter_map(|event| event.strip_prefix("data: "));
    data.filter_map(|data| serde_json::from_str(data).ok()).collect()
}

#[tokio::test]
async fn on_stream_event_changes_drops_and_stops() {
    let backend = Backend::start().await;
    let script = "
if event.type == 'usage' then return false end
if event.content == 'stop' then return {stop = '到此为止'} end
if event.content and event.content ~= '' then event.content = event.content:upper() return event end
if event.finish_reason == 'stop' then event.raw.choices[1].note = 'end' return event end";
    let gateway =
        Gateway::start(&configuration(&backend.url, "", &[("on_stream_event", script)])).await;
    let mut asked = hello_stream();
    asked["stream_options"] = json!({"include_usage": true});
    let answer = chat(&gateway, &asked).await;
    assert_eq!(content(&answer), "HELLO YOU");
    let all = documents(&answer);
    assert!(all.iter().all(|chunk| chunk.get("usage").is_none_or(Value::is_null)), "{all:?}");
    assert_eq!(all.last().unwrap()["choices"][0]["note"], "end");
    assert!(answer.text().ends_with("data: [DONE]\n\n"));
    backend.say(&["one", "stop", "two"]);
    let answer = chat(&gateway, &asked).await;
    assert!(answer.whole);
    assert_eq!(content(&answer), "ONE");
    assert_eq!(documents(&answer).last().unwrap()["error"]["message"], "到此为止");
    // The connection is usable, and so is the gateway.
    assert_eq!(chat(&gateway, &hello()).await.status, 200);
}

#[tokio::test]
async fn an_identity_hook_leaves_every_byte() {
    let scripts = ["return event", "return nil", "local e = event e.raw.x = nil return e"];
    for (path, body) in [
        ("/v1/chat/completions", sim_chat(true)),
        (
            "/v1/messages",
            json!({"model": "sim-model", "max_tokens": 20, "stream": true,
                "messages": [{"role": "user", "content": "Hello"}]})
            .to_string(),
        ),
        (
            "/v1/responses",
            json!({"model": "sim-model", "stream": true, "input": "Hello"}).to_string(),
        ),
    ] {
        let backend =
            crate::support::raw::backend(move |_| vec![crate::support::raw::send(captured(path))])
                .await
                .0;
        let languages = "languages: [chat, messages, responses]";
        let bare =
            Gateway::start(&format!("backends: [{{url: \"{backend}\", {languages}}}]\n")).await;
        let expected = ask(&bare, path, "", &body).await;
        assert!(expected.text().len() > 500, "{path}: {}", expected.text());
        for script in scripts {
            let text = format!("backends: [{{url: \"{backend}\", {languages}}}]\nhooks:\n");
            let gateway = Gateway::start(&(text + &stage_of("on_stream_event", script))).await;
            let answer = ask(&gateway, path, "", &body).await;
            assert_eq!(answer.text(), expected.text(), "{path} {script}");
        }
    }
}

/// A stream of a running vLLM.
fn captured(path: &str) -> Vec<u8> {
    let name = match path {
        "/v1/messages" => "anthropic_messages_stream",
        "/v1/responses" => "responses_stream",
        _ => "chat_stream",
    };
    let file = format!("{}/tests/fixtures/vllm/{name}.txt", env!("CARGO_MANIFEST_DIR"));
    let raw = std::fs::read(&file).unwrap_or_else(|e| panic!("{file}: {e}"));
    let head = memchr::memmem::find(&raw, b"\r\n\r\n").unwrap();
    // As it came, without the chunks that curl has taken off.
    let mut answer = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n".to_vec();
    answer.extend_from_slice(&raw[head + 4..]);
    answer
}

#[tokio::test]
async fn on_stream_event_speaks_every_language() {
    let sim = sim_with(|b| b.tokens = 5).await;
    let script = "
if event.content and #event.content > 0 then event.content = string.rep('x', #event.content) return event end";
    for (backend, client) in [
        ("chat", "/v1/messages"),
        ("chat", "/v1/responses"),
        ("messages", "/v1/chat/completions"),
        ("responses", "/v1/messages"),
        ("responses", "/v1/responses"),
    ] {
        let text = format!(
            "backends: [{{url: \"{}\", languages: [{backend}]}}]\nhooks:\n{}",
            sim.url(),
            stage_of("on_stream_event", script)
        );
        let gateway = Gateway::start(&text).await;
        let body = match client {
            "/v1/responses" => json!({"model": "sim-model", "stream": true, "input": "Hello"}),
            _ => json!({"model": "sim-model", "max_tokens": 20, "stream": true,
                "messages": [{"role": "user", "content": "Hello"}]}),
        };
        let answer = ask(&gateway, client, "", &body.to_string()).await;
        assert_eq!(answer.status, 200, "{client}");
        let text: String = answer
            .text()
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line.strip_prefix("data: ")?).ok())
            .filter_map(|event| {
                let delta = event["type"] == "response.output_text.delta";
                let place = ["/delta/text", "/choices/0/delta/content"];
                let found =
                    place.iter().find_map(|p| event.pointer(p)?.as_str().map(str::to_owned));
                found.or_else(|| event["delta"].as_str().filter(|_| delta).map(str::to_owned))
            })
            .collect();
        assert!(!text.is_empty() && text.chars().all(|c| c == 'x'), "{backend} {client}: {text}");
    }
}

#[tokio::test]
async fn on_error_rewords_the_gateways_own_errors() {
    let backend = Backend::start().await;
    let script = "
local e = error
if e.status_code == 404 then return {message = '没有这个：' .. e.message} end
if e.type == 'backend_error' then error('raised') end
return {status = e.status == 401 and 418 or nil, headers = {['x-why'] = e.type .. ' ' .. e.side .. ' ' .. e.code},
  body = {error = {message = e.message, type = e.type, request_id = request.id, path = request.path}}}";
    let gateway = Gateway::start(&configuration(&backend.url, KEYS, &[("on_error", script)])).await;
    let unknown = chat(&gateway, &hello()).await;
    assert_eq!(unknown.status, 418);
    assert_eq!(unknown.header("x-why"), Some("auth_error client MISSING_KEY"));
    let error = &unknown.json()["error"];
    assert_eq!(
        (&error["type"], &error["path"]),
        (&json!("auth_error"), &json!("/v1/chat/completions"))
    );
    assert_eq!(unknown.header("x-request-id"), error["request_id"].as_str());
    let missing = ask(&gateway, "/v1/nothing", "", "{}").await;
    assert_eq!(missing.status, 404);
    let message = missing.json()["error"]["message"].as_str().unwrap().to_owned();
    assert!(message.starts_with("没有这个：Invalid URL"), "{message}");
}

#[tokio::test]
async fn on_error_sees_broken_backends() {
    let script = "return {body = {error = {message = 'sorry', why = error.type .. '/' .. error.code, model = request.body.model, old = error_message == error.message}}}";
    // Nothing listens there.
    let gateway =
        Gateway::start(&configuration("http://127.0.0.1:1", "", &[("on_error", script)])).await;
    let answer = chat(&gateway, &hello()).await;
    assert_eq!(answer.status, 502);
    let error = answer.json()["error"].clone();
    assert_eq!((&error["message"], &error["model"]), (&json!("sorry"), &json!("m")));
    assert!(error["why"].as_str().unwrap().starts_with("backend_error/"), "{error}");
    // Clients of Messages get their own words, changed in the same way.
    let body =
        json!({"model": "m", "max_tokens": 5, "messages": [{"role": "user", "content": "x"}]});
    let answer = ask(&gateway, "/v1/messages", "", &body.to_string()).await;
    assert_eq!(answer.json()["error"]["message"], "sorry");
}

#[tokio::test]
async fn events_that_come_in_any_pieces_are_whole_for_scripts() {
    // One byte at a time.
    let text = backend::events(&["Grüße", "你好"]);
    let body = text.clone();
    let url = crate::support::raw::backend(move |_| {
        let mut steps = vec![crate::support::raw::events()];
        steps.extend(body.as_bytes().iter().map(|byte| crate::support::raw::chunk([*byte])));
        steps.push(crate::support::raw::last());
        steps
    })
    .await
    .0;
    let script =
        "if event.content then event.content = '[' .. event.content .. ']' return event end";
    let gateway = Gateway::start(&configuration(&url, "", &[("on_stream_event", script)])).await;
    let answer = chat(&gateway, &hello_stream()).await;
    assert_eq!(content(&answer), "[][Grüße][你好]");
    assert!(answer.whole);
}
