//! Error responses: statuses and words of the client's language where a translation is between, and
//! the backend's own where none is.

use llmproxy::sim::Fail;
use serde_json::{Value, json};

use super::{
    LANGUAGES, ONCE, about, ask, before, events, first_and_second, line, models, path, refusal,
    request, says, speaker,
};
use crate::support::{
    Client, Gateway, Receiver, free_address,
    raw::{backend, send},
    saying,
};

/// A response with this status and JSON body.
fn response(status: &str, body: &str) -> String {
    format!(
        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

/// An error as a backend of this language words it.
fn error(language: &str, kind: &str, message: &str) -> String {
    match language {
        "messages" => {
            json!({"type": "error", "error": {"type": kind, "message": message}, "request_id": "r"})
        }
        _ => json!({"error": {"message": message, "type": kind, "param": null, "code": null}}),
    }
    .to_string()
}

/// Status, type and code.
type OpenAiError = (u16, &'static str, Option<&'static str>);

/// Statuses of a backend; what a client of OpenAI's languages gets: status, type and code; what one of
/// Messages gets: status and type.
const STATUSES: [(u16, OpenAiError, (u16, &str)); 14] = [
    (400, (400, "invalid_request_error", None), (400, "invalid_request_error")),
    (401, (502, "server_error", Some("upstream_auth")), (502, "api_error")),
    (402, (402, "insufficient_quota", Some("insufficient_quota")), (402, "billing_error")),
    (403, (502, "server_error", Some("upstream_auth")), (502, "api_error")),
    (404, (404, "invalid_request_error", Some("model_not_found")), (404, "not_found_error")),
    (408, (408, "server_error", Some("timeout")), (408, "timeout_error")),
    (409, (409, "conflict_error", None), (409, "conflict_error")),
    (413, (413, "invalid_request_error", Some("request_too_large")), (413, "request_too_large")),
    (422, (422, "invalid_request_error", None), (422, "invalid_request_error")),
    (429, (429, "rate_limit_error", Some("rate_limit_exceeded")), (429, "rate_limit_error")),
    (500, (500, "server_error", Some("backend_failed")), (500, "api_error")),
    (503, (503, "server_error", Some("overloaded")), (529, "overloaded_error")),
    (504, (504, "server_error", Some("timeout")), (504, "timeout_error")),
    (529, (503, "server_error", Some("overloaded")), (529, "overloaded_error")),
];

#[tokio::test]
async fn each_status_has_its_words_in_the_clients_language() {
    for from in LANGUAGES {
        for (status, openai, anthropic) in STATUSES {
            let body = error(from, "some_error", "it is said so");
            let url = saying(response(&format!("{status} X"), &body)).await;
            let gateway = before(&url, from, ONCE).await;
            for client in LANGUAGES {
                for stream in [false, true] {
                    let body_of = about(request(client, stream), &format!("{client}-{stream}"));
                    let answer = ask(&gateway, client, "", &body_of).await;
                    let case = format!("{from} to {client}, {status}: {answer:?}");
                    assert!(answer.whole, "{case}");
                    assert_eq!(answer.header("content-type"), Some("application/json"), "{case}");
                    if client == from {
                        assert_eq!((answer.status, answer.text()), (status, &*body), "{case}");
                        continue;
                    }
                    let (kind, code, message) = refusal(client, &answer);
                    if client == "messages" {
                        assert_eq!(
                            (answer.status, kind),
                            (anthropic.0, json!(anthropic.1)),
                            "{case}"
                        );
                    } else {
                        let expected = (openai.0, json!(openai.1), json!(openai.2));
                        assert_eq!((answer.status, kind, code), expected, "{case}");
                    }
                    let own = matches!(status, 401 | 403);
                    assert_eq!(message == "it is said so", !own, "{case}");
                }
            }
        }
    }
}

#[tokio::test]
async fn an_error_without_a_body_has_one_in_the_clients_language() {
    for from in LANGUAGES {
        for (status, openai, anthropic) in STATUSES {
            let url = saying(response(&format!("{status} X"), "")).await;
            let gateway = before(&url, from, ONCE).await;
            for client in LANGUAGES.into_iter().filter(|client| *client != from) {
                for stream in [false, true] {
                    let body = about(request(client, stream), &format!("{client}-{stream}"));
                    let answer = ask(&gateway, client, "", &body).await;
                    let case = format!("{from} to {client}, {status}: {answer:?}");
                    assert!(answer.whole, "{case}");
                    let (kind, _, message) = refusal(client, &answer);
                    assert!(!message.is_empty(), "{case}");
                    match client {
                        "messages" => assert_eq!(kind, anthropic.1, "{case}"),
                        _ => assert_eq!(kind, openai.1, "{case}"),
                    }
                    let status = if client == "messages" { anthropic.0 } else { openai.0 };
                    assert_eq!(answer.status, status, "{case}");
                }
            }
        }
    }
}

#[tokio::test]
async fn an_engines_own_overflow_is_worded_for_claude_code_and_a_vendors_is_not() {
    let sim = speaker("messages", |b| b.context_length = 40).await;
    for (more, stream) in [("", false), ("", true), (ONCE, false)] {
        let gateway = before(&sim.url(), "messages", more).await;
        let mut body = says("messages", stream, &"a long text ".repeat(100));
        body["max_tokens"] = 20.into();
        let answer = ask(&gateway, "messages", "", &body).await;
        assert!(answer.whole, "{answer:?}");
        too_long("messages", &answer, Some((41, 40)));
    }
    // What is no overflow passes byte for byte.
    let said = error("messages", "BadRequestError", "temperature must be at most 2");
    let url = saying(response("400 Bad Request", &said)).await;
    let gateway = before(&url, "messages", "").await;
    let answer = ask(&gateway, "messages", "", &request("messages", false)).await;
    assert_eq!((answer.status, answer.text()), (400, &*said));
    // Chat clients know vLLM's words.
    let sim = speaker("chat", |b| b.context_length = 40).await;
    let gateway = before(&sim.url(), "chat", "").await;
    let body = says("chat", false, &"a long text ".repeat(100));
    let answer = ask(&gateway, "chat", "", &body).await;
    let own = Client::connect(sim.address).await.ask(path("chat"), body.to_string()).await;
    assert_eq!((answer.status, answer.text()), (400, own.text()));
    // A vendor's own words are not touched, whatever they are.
    let said = error(
        "messages",
        "invalid_request_error",
        "maximum context length is 40 tokens. However, your prompt contains at least 41 input tokens",
    );
    let url = saying(response("400 Bad Request", &said)).await;
    let text = format!("backends:\n{}", line("a", &url, "messages", ", vendor: anthropic"));
    let gateway = Gateway::start(&text).await;
    let answer = ask(&gateway, "messages", "", &request("messages", false)).await;
    assert_eq!(answer.text(), said);
}

#[tokio::test]
async fn the_pause_that_a_backend_asks_for_reaches_every_client() {
    for from in LANGUAGES {
        let sim = speaker(from, |b| (b.fail, b.models) = (Fail::TooMany, models(9))).await;
        let gateway = before(&sim.url(), from, ONCE).await;
        for (n, client) in LANGUAGES.into_iter().enumerate() {
            let body = about(request(client, true), &format!("model-{n}"));
            let answer = ask(&gateway, client, "", &body).await;
            assert_eq!(
                (answer.status, answer.header("retry-after")),
                (429, Some("7")),
                "{from} to {client}"
            );
            if client == from {
                let mut direct = Client::connect(sim.address).await;
                let own = direct.ask(path(client), request(client, true).to_string()).await;
                assert_eq!(answer.text(), own.text());
            }
        }
    }
}

#[tokio::test]
async fn a_prompt_that_is_too_long_is_said_in_words_that_agents_know() {
    let vendors = [
        ("messages", error("messages", "invalid_request_error", "prompt is too long: 210000 tokens > 200000 maximum"), Some((210_000, 200_000))),
        (
            "chat",
            r#"{"error":{"code":400,"message":"request (9 tokens) exceeds the available context size (4 tokens), try increasing it","type":"exceed_context_size_error","n_prompt_tokens":9,"n_ctx":4}}"#.to_owned(),
            Some((9, 4)),
        ),
        (
            "responses",
            r#"{"error":{"message":"Your input exceeds the context window of this model.","type":"invalid_request_error","param":"input","code":"context_length_exceeded"}}"#.to_owned(),
            None,
        ),
    ];
    for (from, body, numbers) in vendors {
        let url = saying(response("400 Bad Request", &body)).await;
        let gateway = before(&url, from, "").await;
        for client in LANGUAGES.into_iter().filter(|client| *client != from) {
            let answer = ask(&gateway, client, "", &request(client, true)).await;
            too_long(client, &answer, numbers);
        }
    }
    // vLLM's words, in each of its languages.
    for from in LANGUAGES {
        let sim = speaker(from, |b| b.context_length = 40).await;
        let gateway = before(&sim.url(), from, "").await;
        for client in LANGUAGES.into_iter().filter(|client| *client != from) {
            for stream in [false, true] {
                let mut body = says(client, stream, &"a long text ".repeat(100));
                // Messages has a limit always, which would be larger than all there is.
                let limit = if client == "responses" { "max_output_tokens" } else { "max_tokens" };
                body[limit] = 20.into();
                let answer = ask(&gateway, client, "", &body).await;
                too_long(client, &answer, Some((41, 40)));
            }
        }
    }
}

fn too_long(client: &str, answer: &crate::support::client::Response, numbers: Option<(u64, u64)>) {
    let (kind, code, message) = refusal(client, answer);
    assert_eq!((answer.status, kind), (400, json!("invalid_request_error")), "{answer:?}");
    if client == "messages" {
        let start = "prompt is too long: ";
        assert!(message.starts_with(start), "{message}");
        if let Some((prompt, limit)) = numbers {
            assert_eq!(message, format!("{start}{prompt} tokens > {limit} maximum"));
        }
    } else {
        assert_eq!(code, "context_length_exceeded", "{answer:?}");
    }
}

#[tokio::test]
async fn what_is_too_long_is_refused_once_and_counts_against_no_backend() {
    let small = speaker("chat", |b| b.context_length = 40).await;
    let large = speaker("messages", |_| {}).await;
    let (control, folder) = (free_address(), tempfile::tempdir().unwrap());
    let text = format!(
        "{}admin: {{enabled: true, listen: \"{control}\", token: a-token-for-tests, db_path: \"{}\"}}\n",
        first_and_second((&small.url(), "chat"), (&large.url(), "messages")),
        folder.path().join("keys.db").display(),
    );
    let gateway = Gateway::start(&text).await;
    for _ in 0..12 {
        let body = says("responses", true, &"a long text ".repeat(100));
        let answer = ask(&gateway, "responses", "", &body).await;
        too_long("responses", &answer, None);
    }
    assert_eq!((small.stats().requests(), large.stats().requests()), (12, 0), "none is ejected");
}

#[tokio::test]
async fn an_overflow_in_a_stream_has_its_code_for_codex() {
    // After the head of a stream has gone out, as a keep-alive.
    let overflow = r#"{"error":{"message":"This model's maximum context length is 4 tokens. However, your prompt contains at least 5 input tokens","type":"BadRequestError","param":null,"code":400}}"#;
    let text = response("400 Bad Request", overflow);
    let (url, _) = backend(move |_| vec![crate::support::raw::Step::Pause(400), send(&text)]).await;
    let gateway = before(&url, "chat", "routing: {keep_alive: 100ms}\n").await;
    for client in ["messages", "responses"] {
        let answer = ask(&gateway, client, "", &request(client, true)).await;
        assert_eq!((answer.status, answer.whole), (200, true));
        let (name, last) = events(answer.text()).pop().unwrap();
        match client {
            "messages" => {
                assert_eq!(name, "error");
                let message = "prompt is too long: 5 tokens > 4 maximum";
                let error = json!({"type": "invalid_request_error", "message": message});
                assert_eq!(last["error"], error, "{}", answer.text());
            }
            _ => {
                assert_eq!(name, "response.failed");
                assert_eq!(last["response"]["error"]["code"], "context_length_exceeded", "{last}");
            }
        }
    }
}

#[tokio::test]
async fn the_gateways_own_refusals_are_in_the_clients_language() {
    let sim = speaker("chat", |_| {}).await;
    let receiver = Receiver::start().await;
    let text = format!(
        "backends:\n{}{}",
        line("a", &sim.url(), "chat", ", models: [sim-model]"),
        receiver.hook()
    );
    let gateway = Gateway::start(&text).await;
    for client in LANGUAGES {
        let mut unknown = request(client, false);
        unknown["model"] = "nothing".into();
        let answer = ask(&gateway, client, "", &unknown).await;
        let (kind, code, _) = refusal(client, &answer);
        let expected = match client {
            "messages" => json!(["not_found_error", Value::Null]),
            _ => json!(["invalid_request_error", "model_not_found"]),
        };
        assert_eq!((answer.status, json!([kind, code])), (404, expected));
        let mut connection = gateway.client().await;
        let answer = connection.ask(path(client), "{\"model\": ").await;
        assert_eq!(answer.status, 400);
        assert_eq!(refusal(client, &answer).0, "invalid_request_error");
        // What the client's language does not allow is said before a backend is asked.
        let mut wrong = request(client, false);
        let member = if client == "responses" { "input" } else { "messages" };
        wrong[member] = 7.into();
        if client != "chat" {
            let answer = ask(&gateway, client, "", &wrong).await;
            assert_eq!(answer.status, 400, "{}", answer.text());
            let (_, _, message) = refusal(client, &answer);
            assert!(message.contains(&format!("'{member}'")), "{message}");
        }
    }
    assert_eq!(sim.stats().requests(), 0);
}
