//! Answers that are no proper ones: without an end, empty, an error in a good status, no JSON.

use std::sync::atomic::Ordering;

use serde_json::{Value, json};

use super::{
    LANGUAGES, ONCE, PATIENT, ask, before, first_and_second, hear, refusal, request, speaker,
};
use crate::support::{
    Gateway, Receiver,
    raw::{Step, backend, chunk, events, head, last, send},
};

/// An event of a stream of this language.
fn event(language: &str, document: &Value) -> String {
    match language {
        "chat" => format!("data: {document}\n\n"),
        _ => format!("event: {}\ndata: {document}\n\n", document["type"].as_str().unwrap()),
    }
}

/// A stream: its beginning, a text (unless it is empty), and its end in two parts, of which the last
/// one says nothing but that it is over.
fn stream(language: &str, text: &str) -> [String; 4] {
    let item = json!({"id": "msg_1", "type": "message", "status": "in_progress", "role": "assistant", "content": []});
    let usage = json!({"input_tokens": 3, "output_tokens": 4, "total_tokens": 7});
    let said = !text.is_empty();
    let [beginning, content, end, over]: [Vec<Value>; 4] = match language {
        "chat" => {
            let chunk = |delta: Value, finish: Value| {
                json!({"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "sim-model",
                "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]})
            };
            let mut finish = chunk(json!({}), json!("stop"));
            finish["usage"] =
                json!({"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7});
            [
                vec![chunk(json!({"role": "assistant", "content": ""}), Value::Null)],
                vec![chunk(json!({"content": text}), Value::Null)],
                vec![finish],
                vec![],
            ]
        }
        "messages" => [
            vec![
                json!({"type": "message_start", "message": {"id": "m", "type": "message", "role": "assistant", "content": [],
                "model": "sim-model", "stop_reason": null, "usage": {"input_tokens": 3, "output_tokens": 0}}}),
            ],
            vec![
                json!({"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}),
                json!({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": text}}),
                json!({"type": "content_block_stop", "index": 0}),
            ],
            vec![
                json!({"type": "message_delta", "delta": {"stop_reason": "end_turn", "stop_sequence": null}, "usage": {"output_tokens": 4}}),
            ],
            vec![json!({"type": "message_stop"})],
        ],
        _ => {
            let response = |status: &str, output: Value| {
                json!({"id": "resp_1", "object": "response", "created_at": 1, "model": "sim-model",
                "status": status, "error": null, "incomplete_details": null, "output": output, "usage": if status == "completed" { usage.clone() } else { Value::Null }})
            };
            let mut done = item.clone();
            done["status"] = "completed".into();
            done["content"] = json!([{"type": "output_text", "text": text, "annotations": []}]);
            let output = if said { json!([done]) } else { json!([]) };
            [
                vec![
                    json!({"type": "response.created", "response": response("in_progress", json!([]))}),
                ],
                vec![
                    json!({"type": "response.output_item.added", "output_index": 0, "item": item}),
                    json!({"type": "response.content_part.added", "item_id": "msg_1", "output_index": 0, "content_index": 0, "part": {"type": "output_text", "text": "", "annotations": []}}),
                    json!({"type": "response.output_text.delta", "item_id": "msg_1", "output_index": 0, "content_index": 0, "delta": text}),
                    json!({"type": "response.output_item.done", "output_index": 0, "item": done}),
                ],
                vec![],
                vec![
                    json!({"type": "response.completed", "response": response("completed", output)}),
                ],
            ]
        }
    };
    let content = if said { content } else { Vec::new() };
    let text = |all: Vec<Value>| all.iter().map(|e| event(language, e)).collect::<String>();
    let over = if language == "chat" { "data: [DONE]\n\n".to_owned() } else { text(over) };
    [text(beginning), text(content), text(end), over]
}

#[tokio::test]
async fn an_answer_that_is_over_ends_although_its_backend_says_nothing_more() {
    for from in ["chat", "messages"] {
        let [beginning, content, end, _] = stream(from, "Hello");
        let all = format!("{beginning}{content}{end}");
        let (url, _) = backend(move |_| vec![events(), chunk(&all), Step::Open]).await;
        let receiver = Receiver::start().await;
        let gateway = before(&url, from, &format!("{ONCE}{}", receiver.hook())).await;
        for (n, client) in LANGUAGES.into_iter().filter(|client| *client != from).enumerate() {
            let began = std::time::Instant::now();
            let answer = ask(&gateway, client, "", &request(client, true)).await;
            let case = format!("{from} to {client}: {}", answer.text());
            let took = began.elapsed();
            assert!(took.as_millis() > 1500 && took.as_secs() < 30, "{took:?}, {case}");
            assert!(hear(client, true, &answer).is_complete(1), "{case}");
            let record = receiver.wait_for(n + 1).await.pop().unwrap();
            assert_eq!(record["outcome"], "complete", "{case}: {record}");
        }
    }
}

/// A good response with this body, which is one document.
fn document(kind: &str, body: &str) -> Vec<Step> {
    vec![head(&format!("Content-Type: {kind}\r\nContent-Length: {}\r\n", body.len())), send(body)]
}

#[tokio::test]
async fn a_stream_without_its_last_event_is_complete_where_all_was_said() {
    for from in ["chat", "messages"] {
        let [beginning, content, end, _] = stream(from, "Hello");
        let all = format!("{beginning}{content}{end}");
        let (url, _) = backend(move |_| vec![events(), chunk(&all), last()]).await;
        let receiver = Receiver::start().await;
        let gateway = before(&url, from, &format!("{ONCE}{}", receiver.hook())).await;
        for (n, client) in LANGUAGES.into_iter().filter(|client| *client != from).enumerate() {
            let answer = ask(&gateway, client, "", &request(client, true)).await;
            let heard = hear(client, true, &answer);
            let case = format!("{from} to {client}: {}", answer.text());
            assert!(heard.is_complete(1), "{case}");
            let record = receiver.wait_for(n + 1).await.pop().unwrap();
            assert_eq!(record["outcome"], "complete", "{case}\n{record}");
            assert_eq!(record["total_tokens"], 7, "{case}\n{record}");
        }
    }
}

#[tokio::test]
async fn a_stream_that_ends_before_its_end_is_an_error_however_it_ends() {
    for from in LANGUAGES {
        let [beginning, content, _, _] = stream(from, "Hello");
        let all = format!("{beginning}{content}");
        for ending in [last(), Step::Reset, send("")] {
            let (text, tail) = (all.clone(), ending.clone());
            let (url, _) =
                backend(move |_| vec![events(), chunk(&text), Step::Pause(100), tail.clone()])
                    .await;
            let receiver = Receiver::start().await;
            let gateway = before(&url, from, &format!("{ONCE}{}", receiver.hook())).await;
            // A native stream passes as it is where its connection ends well.
            let clients = LANGUAGES.into_iter().filter(|client| *client != from);
            for (n, client) in clients.enumerate() {
                let answer = ask(&gateway, client, "", &request(client, true)).await;
                let heard = hear(client, true, &answer);
                let case = format!("{from} to {client}, {ending:?}: {}", answer.text());
                let error = heard.error.as_ref().unwrap_or_else(|| panic!("{case}"));
                assert!(error["message"].is_string(), "{case}");
                assert_eq!((heard.text.as_str(), heard.end), ("Hello", None), "{case}");
                let record = receiver.wait_for(n + 1).await.pop().unwrap();
                assert_eq!(record["outcome"], "upstream_error", "{case}\n{record}");
            }
        }
    }
}

#[tokio::test]
async fn an_answer_without_content_is_a_proper_empty_one() {
    for from in LANGUAGES {
        let all = stream(from, "").concat();
        let (url, requests) = backend(move |_| vec![events(), chunk(&all), last()]).await;
        let receiver = Receiver::start().await;
        let gateway = before(&url, from, &format!("{ONCE}{}", receiver.hook())).await;
        for (n, client) in LANGUAGES.into_iter().filter(|client| *client != from).enumerate() {
            let answer = ask(&gateway, client, "", &request(client, true)).await;
            let heard = hear(client, true, &answer);
            let case = format!("{from} to {client}: {}", answer.text());
            assert!(heard.is_complete(0), "{case}\n{heard:?}");
            let blocks = answer.text().matches("event: content_block_start").count();
            assert_eq!(blocks, usize::from(client == "messages"), "one empty text. {case}");
            let record = receiver.wait_for(n + 1).await.pop().unwrap();
            assert_eq!(
                (&record["outcome"], &record["total_tokens"]),
                (&json!("complete"), &json!(7)),
                "{case}"
            );
        }
        assert_eq!(requests.load(Ordering::SeqCst), 2, "{from}: nothing is tried again");
    }
}

/// An error that a backend says in a response with a good status.
fn in_good_status(language: &str, kind: &str, code: &str) -> String {
    match language {
        "messages" => json!({"type": "error", "error": {"type": kind, "message": "said inside"}}),
        "responses" => json!({"id": "resp_1", "object": "response", "created_at": 1, "model": "m", "status": "failed", "output": [],
            "error": {"code": code, "message": "said inside"}}),
        _ => json!({"error": {"message": "said inside", "type": kind, "param": null, "code": code}}),
    }
    .to_string()
}

#[tokio::test]
async fn an_error_in_a_good_status_is_an_error_with_its_true_status() {
    for from in LANGUAGES {
        for (kind, code, openai, anthropic) in [
            ("rate_limit_error", "rate_limit_exceeded", 429, 429),
            ("overloaded_error", "server_overloaded", 503, 529),
            ("api_error", "server_error", 502, 502),
        ] {
            let body = in_good_status(from, kind, code);
            let (url, _) = backend(move |_| document("application/json", &body)).await;
            let receiver = Receiver::start().await;
            let gateway = before(&url, from, &format!("{ONCE}{}", receiver.hook())).await;
            let mut sent = 0;
            for client in LANGUAGES.into_iter().filter(|client| *client != from) {
                for stream in [false, true] {
                    let answer = ask(&gateway, client, "", &request(client, stream)).await;
                    sent += 1;
                    let case = format!("{from} to {client}, {kind}, {stream}: {answer:?}");
                    let status = if client == "messages" { anthropic } else { openai };
                    assert_eq!((answer.status, answer.whole), (status, true), "{case}");
                    assert_eq!(refusal(client, &answer).2, "said inside", "{case}");
                    let record = receiver.wait_for(sent).await.pop().unwrap();
                    assert_eq!(record["status_code"], status, "{case}\n{record}");
                    assert_eq!(record["outcome"], "upstream_error", "{case}\n{record}");
                }
            }
        }
    }
}

#[tokio::test]
async fn another_backend_takes_over_from_an_answer_that_is_none() {
    for from in LANGUAGES {
        let odd = [
            document("application/json", &in_good_status(from, "api_error", "server_error")),
            document("application/json", "{}"),
            document("application/json", ""),
            document("text/html", "<html>It works!</html>"),
            document("application/json", "{\"id\": \"x\", "),
            document("text/event-stream", ""),
            vec![events(), chunk(stream(from, "")[0].clone()), last()],
        ];
        for (n, steps) in odd.into_iter().enumerate() {
            let (url, requests) = backend(move |_| steps.clone()).await;
            for second in LANGUAGES {
                let other = speaker(second, |b| b.tokens = 8).await;
                let receiver = Receiver::start().await;
                let text = first_and_second((&url, from), (&other.url(), second));
                let text = format!("{text}{PATIENT}{}", receiver.hook());
                let gateway = Gateway::start(&text).await;
                for client in LANGUAGES.into_iter().filter(|client| *client != from) {
                    for stream in [false, true] {
                        let before = requests.load(Ordering::SeqCst);
                        let answer = ask(&gateway, client, "", &request(client, stream)).await;
                        let case =
                            format!("{from} {n}, {second} to {client}, {stream}: {answer:?}");
                        assert_eq!(answer.status, 200, "{case}");
                        assert!(hear(client, stream, &answer).is_complete(8), "{case}");
                        assert_eq!(requests.load(Ordering::SeqCst), before + 1, "{case}");
                    }
                }
                let records = receiver.wait_for(4).await;
                assert!(
                    records
                        .iter()
                        .all(|r| r["outcome"] == "complete" && r["completion_tokens"] == 8)
                );
            }
        }
    }
}

#[tokio::test]
async fn a_client_gets_the_form_that_it_asked_for_whatever_the_backend_sends() {
    for from in LANGUAGES {
        // A document for a client that wants a stream, and a stream for one that wants a document.
        let sim = speaker(from, |b| b.tokens = 8).await;
        let mut direct = crate::support::Client::connect(sim.address).await;
        let plain = direct.ask(super::path(from), request(from, false).to_string()).await;
        let plain = plain.text().to_owned();
        let streamed = stream(from, "Hello").concat();
        let (as_document, _) = backend(move |_| document("application/json", &plain)).await;
        let (as_stream, _) = backend(move |_| vec![events(), chunk(&streamed), last()]).await;
        for (url, stream, words) in [(as_document, true, 8), (as_stream, false, 1)] {
            let gateway = before(&url, from, "").await;
            for client in LANGUAGES.into_iter().filter(|client| *client != from) {
                let answer = ask(&gateway, client, "", &request(client, stream)).await;
                let case = format!("{from} to {client}, {stream}: {answer:?}");
                assert_eq!(answer.status, 200, "{case}");
                let heard = hear(client, stream, &answer);
                assert!(heard.is_complete(words), "{case}");
                assert!(heard.usage.is_some() || client == "chat", "{case}");
            }
        }
    }
}
