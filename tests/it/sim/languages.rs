//! The languages of the simulated backend: each fails as Chat does, each can be switched off, and what each has
//! for itself.

use std::time::Duration;

use llmproxy::sim::{Fail, Language, Quirk, Sim};
use serde_json::{Value, json};
use tokio::time::timeout;

use super::{
    EVER, look,
    replies::{PATHS, events},
};
use crate::support::{Client, eventually, faults::Fault, sim_with};

fn request(path: &str, stream: bool) -> String {
    match path {
        "/v1/responses" => json!({"model": "sim-model", "input": "Hi", "stream": stream}),
        _ => json!({"model": "sim-model", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 100,
                    "stream": stream}),
    }
    .to_string()
}

/// As [`super::answer_in_words`], in Messages or Responses.
async fn answer_in_words(sim: &Sim, path: &str, stream: bool, silence: Option<Duration>) -> String {
    let body = request(path, stream);
    super::answer_in_words(sim, (path, &body), silence, |body, stream| match stream {
        true => events(body).iter().filter_map(event).collect(),
        false => vec![document(&serde_json::from_str(body).unwrap())],
    })
    .await
}

fn event(event: &Value) -> Option<&'static str> {
    Some(match event["type"].as_str().unwrap() {
        "message_start" | "response.created" => "role",
        "content_block_delta" | "response.output_text.delta" => "content",
        "error" | "response.failed" => "error",
        "message_delta" if event["delta"]["stop_reason"].is_null() => "abort",
        "message_delta" => "stop",
        "response.completed" => document(&event["response"]),
        _ => return None,
    })
}

fn document(document: &Value) -> &'static str {
    match (document["stop_reason"].as_str(), document["status"].as_str()) {
        _ if !document["error"].is_null() => "error",
        (Some(_), _) | (_, Some("completed")) => "stop",
        _ => "abort",
    }
}

#[tokio::test]
async fn every_fault_looks_alike_in_every_language() {
    for path in &PATHS[1..] {
        for fault in Fault::ALL {
            let sim = sim_with(|b| (b.tokens, b.keep_alive_ms, b.slow_ms) = (4, 20, 30)).await;
            fault.befall(&sim).await;
            for (stream, expected) in [(true, look(fault)[0]), (false, look(fault)[1])] {
                // In Chat the last token and the end are one event, and `[DONE]` ends all streams.
                let expected = match expected.strip_suffix(" done closed") {
                    Some(chat) if chat.ends_with("error") => format!("{chat} closed"),
                    Some(chat) if chat.contains("content") => {
                        let (words, end) = chat.rsplit_once(' ').unwrap();
                        format!("{words} content {end} closed")
                    }
                    Some(chat) => format!("{chat} closed"),
                    None => expected.to_owned(),
                };
                if fault.is_silence() {
                    let mut patience = Duration::from_millis(50);
                    eventually(&expected, async || {
                        patience *= 2;
                        answer_in_words(&sim, path, stream, Some(patience)).await == expected
                    })
                    .await;
                } else {
                    let words = answer_in_words(&sim, path, stream, None).await;
                    assert_eq!(words, expected, "{path} {fault:?} {stream}");
                }
            }
            eventually("all has ended", async || sim.stats().open() == 0).await;
        }
    }
}

#[tokio::test]
async fn refusals_are_worded_in_the_language() {
    let sim = sim_with(|b| b.fail = Fail::Busy).await;
    let mut client = Client::connect(sim.address).await;
    for path in PATHS {
        let answer = client.ask(path, request(path, true)).await;
        assert_eq!(answer.status, 503);
        let body = answer.json();
        assert_eq!(body["type"], if path == PATHS[1] { json!("error") } else { Value::Null });
        assert_eq!(body["error"]["type"], "Service Unavailable", "{path}");
    }
    sim.change(|b| (b.fail, b.fail_first) = (Fail::None, 0));
    let answer = client.ask(PATHS[1], "{}").await.json();
    let text = answer["error"]["message"].as_str().unwrap();
    assert!(text.starts_with("3 validation errors:\n"), "{text}");
    assert_eq!(text.matches("'input': '<dict of 0 items>'").count(), 3, "{text}");
}

#[tokio::test]
async fn an_engine_may_lack_languages() {
    let sim = sim_with(|b| b.languages = vec![Language::Chat]).await;
    let mut client = Client::connect(sim.address).await;
    let mut statuses = async || {
        let mut all = Vec::new();
        for path in PATHS {
            all.push(client.ask(path, request(path, false)).await.status);
        }
        for path in ["/v1/messages/count_tokens", "/v1/responses/input_tokens"] {
            all.push(
                client.ask(path, r#"{"model":"sim-model","messages":[],"input":"x"}"#).await.status,
            );
        }
        let missing = client.get("/v1/responses/resp_x").await;
        all.push(if missing.text().contains("detail") { 404 } else { 200 });
        all
    };
    assert_eq!(statuses().await, [200, 404, 404, 404, 404, 404]);
    assert_eq!(sim.stats().requests(), 1, "an unknown path is no request");
    let change = json!({"languages": ["messages", "responses"]}).to_string();
    assert_eq!(Client::connect(sim.address).await.ask("/sim/behaviour", change).await.status, 200);
    assert_eq!(statuses().await, [404, 200, 200, 200, 200, 200]);
    let change = json!({"languages": ["esperanto"]}).to_string();
    assert_eq!(Client::connect(sim.address).await.ask("/sim/behaviour", change).await.status, 400);
}

#[tokio::test]
async fn a_key_is_wanted_as_a_bearer_in_every_language() {
    let sim = sim_with(|b| b.api_key = "secret".to_owned()).await;
    let mut client = Client::connect(sim.address).await;
    for path in PATHS {
        let mut status = async |head: &str| {
            client.post_with(path, head, request(path, false).as_bytes()).await;
            client.answer().await.status
        };
        assert_eq!(status("x-api-key: secret\r\n").await, 401, "{path}");
        assert_eq!(status("Authorization: Bearer secret\r\n").await, 200, "{path}");
    }
}

#[tokio::test]
async fn cached_tokens_are_counted_as_each_language_does() {
    let sim = sim_with(|b| (b.prefix_cache, b.prompt_tokens_details) = (100, true)).await;
    let text = "c".repeat(64 * 4);
    let mut client = Client::connect(sim.address).await;
    for _ in 0..2 {
        let body = json!({"model": "sim-model", "max_tokens": 4, "stream": true, "messages": [{"role": "user", "content": text}]});
        let answer = client.ask("/v1/messages", body.to_string()).await;
        let events = events(answer.text());
        let first = &events[0]["message"]["usage"];
        let last = &events[events.len() - 2]["usage"];
        let cached = last["cache_read_input_tokens"].as_u64().unwrap_or(0);
        assert!(first["cache_read_input_tokens"].is_null(), "it is not known yet");
        let all = first["input_tokens"].as_u64().unwrap();
        assert_eq!(last["input_tokens"].as_u64().unwrap() + cached, all);
        assert_eq!(cached, if sim.stats().requests() == 1 { 0 } else { 64 });
    }
    for cached in [0, 80] {
        let body = json!({"model": "sim-model", "input": text, "stream": true});
        let answer = client.ask("/v1/responses", body.to_string()).await;
        let usage = events(answer.text()).last().unwrap()["response"]["usage"].clone();
        assert_eq!(usage["input_tokens_details"]["cached_tokens"], cached);
        let sum =
            usage["input_tokens"].as_u64().unwrap() + usage["output_tokens"].as_u64().unwrap();
        assert_eq!(usage["total_tokens"], sum);
    }
}

#[tokio::test]
async fn who_waits_for_a_place_is_told_that_a_response_was_created() {
    let sim = sim_with(|b| (b.max_running, b.inter_token_ms) = (1, EVER)).await;
    let mut first = Client::connect(sim.address).await;
    first.post(PATHS[0], request(PATHS[0], true)).await;
    eventually("the first runs", async || sim.stats().running() == 1).await;
    let mut others = Vec::new();
    for (path, begins) in [(PATHS[1], false), (PATHS[2], true)] {
        let mut client = Client::connect(sim.address).await;
        client.post(path, request(path, true)).await;
        assert_eq!(client.head().await.status, 200);
        let text = timeout(Duration::from_millis(200), client.chunk()).await;
        if begins {
            let text = String::from_utf8(text.unwrap().unwrap()).unwrap();
            assert!(text.starts_with("event: response.created\n"), "{text}");
        } else {
            assert!(text.is_err(), "{path}: {text:?}");
        }
        others.push(client);
    }
    assert_eq!(sim.stats().waiting(), 2);
    drop((first, others));
    eventually("all have ended", async || sim.stats().open() == 0).await;
    assert_eq!(sim.stats().aborted(), 3);
}

#[tokio::test]
async fn tokens_are_counted_without_an_answer() {
    let sim = sim_with(|_| {}).await;
    let mut client = Client::connect(sim.address).await;
    let chat = json!({"model": "sim-model", "max_tokens": 1, "messages": [{"role": "user", "content": "twelve words"}]});
    let counted = client.ask("/v1/messages/count_tokens", chat.to_string()).await.json();
    let used = client.ask("/v1/messages", chat.to_string()).await.json();
    assert_eq!(counted["input_tokens"], used["usage"]["input_tokens"]);
    let body = json!({"model": "sim-model", "input": "twelve words", "instructions": "Be brief."})
        .to_string();
    let counted = client.ask("/v1/responses/input_tokens", &body).await.json();
    let used = client.ask("/v1/responses", &body).await.json();
    assert_eq!(counted["input_tokens"], used["usage"]["input_tokens"]);
    assert_eq!(counted["object"], "response.input_tokens");
}

#[tokio::test]
async fn responses_are_stored_and_continued() {
    let sim = sim_with(|b| b.tokens = 3).await;
    let mut client = Client::connect(sim.address).await;
    let mut ask = async |body: Value| client.ask("/v1/responses", body.to_string()).await;
    let mut ids = Vec::new();
    for stream in [false, true] {
        let body = json!({"model": "sim-model", "input": "Hello", "stream": stream});
        let answer = ask(body).await;
        let response = if stream {
            events(answer.text()).last().unwrap()["response"].clone()
        } else {
            answer.json()
        };
        let id = response["id"].as_str().unwrap().to_owned();
        let mut other = Client::connect(sim.address).await;
        assert_eq!(other.get(&format!("/v1/responses/{id}")).await.json(), response);
        let items = other.get(&format!("/v1/responses/{id}/input_items")).await.json();
        assert_eq!(items["data"][0]["content"], json!([{"type": "input_text", "text": "Hello"}]));
        assert_eq!(
            (&items["first_id"], &items["has_more"]),
            (&items["data"][0]["id"], &json!(false))
        );
        let late = other.ask(&format!("/v1/responses/{id}/cancel"), "").await;
        assert_eq!(late.status, 400, "{}", late.text());
        let next = ask(json!({"model": "sim-model", "input": "More", "previous_response_id": id}))
            .await
            .json();
        assert_eq!(next["previous_response_id"], id.as_str());
        let (before, after) = (&response["usage"]["input_tokens"], &next["usage"]["input_tokens"]);
        assert!(after.as_u64() > before.as_u64(), "the turns before are read again: {after}");
        ids.push(id);
    }
    let lost = json!({"model": "sim-model", "input": "More", "previous_response_id": "resp_lost"});
    assert_eq!(ask(lost).await.status, 404);
    let fleeting = json!({"model": "sim-model", "input": "Hello", "store": false});
    let fleeting = ask(fleeting).await.json()["id"].as_str().unwrap().to_owned();
    assert_eq!(client.get(&format!("/v1/responses/{fleeting}")).await.status, 404);
    client
        .send(format!("DELETE /v1/responses/{} HTTP/1.1\r\nHost: x\r\n\r\n", ids[0]).as_bytes())
        .await;
    assert_eq!(
        client.answer().await.json(),
        json!({"id": ids[0], "object": "response", "deleted": true})
    );
    assert_eq!(client.get(&format!("/v1/responses/{}", ids[0])).await.status, 404);
    assert_eq!(client.get(&format!("/v1/responses/{}", ids[1])).await.status, 200);
    sim.restart();
    assert_eq!(client.get(&format!("/v1/responses/{}", ids[1])).await.status, 404);
}

#[tokio::test]
async fn a_response_in_the_background_can_be_cancelled() {
    let sim = sim_with(|b| b.inter_token_ms = EVER).await;
    let mut client = Client::connect(sim.address).await;
    let body = json!({"model": "sim-model", "input": "Hello", "background": true}).to_string();
    let queued = client.ask("/v1/responses", &body).await.json();
    assert_eq!((&queued["status"], &queued["output"]), (&json!("queued"), &json!([])));
    let path = format!("/v1/responses/{}", queued["id"].as_str().unwrap());
    assert_eq!(client.get(&path).await.json()["status"], "in_progress");
    assert_eq!(client.ask(&format!("{path}/cancel"), "").await.json()["status"], "cancelled");
    assert_eq!(client.get(&path).await.json()["status"], "cancelled");
    let body = json!({"model": "sim-model", "input": "Hello", "background": true, "store": false});
    assert_eq!(client.ask("/v1/responses", body.to_string()).await.status, 400);
}

/// The chunks of a Chat stream with two calls, from a server with a quirk.
async fn quirky(quirk: Quirk) -> (String, Vec<Value>) {
    let sim = sim_with(|b| b.quirks = vec![quirk]).await;
    let tool = |name: &str| json!({"type": "function", "function": {"name": name, "parameters": {"properties": {"n": {"type": "integer"}}}}});
    let body = json!({"model": "sim-model", "stream": true, "tools": [tool("a"), tool("b")],
        "messages": [{"role": "user", "content": "call a, call b"}]});
    let answer = Client::connect(sim.address).await.ask(PATHS[0], body.to_string()).await;
    assert!(answer.whole);
    (answer.text().to_owned(), events(answer.text()))
}

fn call_deltas(chunks: &[Value]) -> Vec<&Value> {
    let deltas = chunks.iter().filter_map(|c| c["choices"][0]["delta"]["tool_calls"].as_array());
    deltas.flatten().collect()
}

#[tokio::test]
async fn calls_are_as_odd_as_those_of_other_servers() {
    let (_, chunks) = quirky(Quirk::NoIndex).await;
    let deltas = call_deltas(&chunks);
    assert!(deltas.iter().all(|delta| delta.get("index").is_none()));
    assert_eq!(deltas.iter().filter(|delta| delta["id"].is_string()).count(), 2);

    let (_, chunks) = quirky(Quirk::ZeroIndex).await;
    let deltas = call_deltas(&chunks);
    assert!(deltas.iter().all(|delta| delta["index"] == 0));
    let ids: Vec<&str> = deltas.iter().filter_map(|delta| delta["id"].as_str()).collect();
    assert!(ids.len() == 2 && ids[0] != ids[1]);

    let (_, chunks) = quirky(Quirk::WholeCall).await;
    assert_eq!(chunks.len(), 2, "the role and the rest");
    assert_eq!(chunks[1]["choices"][0]["finish_reason"], "tool_calls");
    let whole: Vec<_> = call_deltas(&chunks)
        .iter()
        .map(|d| {
            (d["index"].as_u64(), d["function"]["name"].clone(), d["function"]["arguments"].clone())
        })
        .collect();
    assert_eq!(
        whole,
        [(Some(0), json!("a"), json!("{\"n\": 0}")), (Some(1), json!("b"), json!("{\"n\": 0}"))]
    );

    let (_, chunks) = quirky(Quirk::LateName).await;
    let deltas = call_deltas(&chunks);
    assert!(deltas[0]["id"].is_string() && deltas[0]["function"].get("name").is_none());
    let named: Vec<_> =
        deltas.iter().filter(|delta| delta["function"]["name"].is_string()).collect();
    assert_eq!(named.len(), 2);
    assert!(named.iter().all(|delta| delta["function"]["arguments"] == "}"), "{named:?}");
}

#[tokio::test]
async fn streams_end_as_oddly_as_those_of_other_servers() {
    let (_, chunks) = quirky(Quirk::StopForCalls).await;
    assert_eq!(chunks.last().unwrap()["choices"][0]["finish_reason"], "stop");
    assert_eq!(call_deltas(&chunks).iter().filter(|delta| delta["id"].is_string()).count(), 2);

    let (text, chunks) = quirky(Quirk::NoDone).await;
    assert!(!text.contains("[DONE]"));
    assert_eq!(chunks.last().unwrap()["choices"][0]["finish_reason"], "tool_calls");

    let (text, chunks) = quirky(Quirk::UsageInFinish).await;
    assert!(text.ends_with("data: [DONE]\n\n"));
    let last = chunks.last().unwrap();
    assert_eq!(last["choices"][0]["finish_reason"], "tool_calls");
    assert_eq!(last["usage"]["completion_tokens"], chunks.len() - 1, "all but the role: {last}");
    assert!(chunks[..chunks.len() - 1].iter().all(|chunk| chunk["usage"].is_null()));
}
