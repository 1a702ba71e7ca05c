//! A second API language through the whole gateway: nothing knows of it but the list of languages.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    path::Path,
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use crate::{config, server};

/// A backend that speaks the toy language: the requests that it got, as text.
fn backend(answer: &'static str, content_type: &'static str) -> (String, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let seen = Arc::new(Mutex::new(Vec::new()));
    let requests = Arc::clone(&seen);
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let (head, body) = read(&mut stream);
            requests.lock().unwrap().push(format!("{head}{body}"));
            // A probe connects and leaves.
            _ = write!(
                stream,
                "HTTP/1.1 200 OK\r\nContent-Type: {content_type}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{answer}",
                answer.len()
            );
        }
    });
    (url, seen)
}

/// Reads a message of HTTP/1.1 with a length, or up to the end of the connection.
fn read(stream: &mut TcpStream) -> (String, String) {
    let mut reader = BufReader::new(stream);
    let (mut head, mut length) = (String::new(), None);
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        if line.trim().is_empty() {
            break;
        }
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = Some(value.trim().parse::<usize>().unwrap());
        }
        head.push_str(&line);
    }
    let mut body = Vec::new();
    match length {
        Some(length) => {
            body.resize(length, 0);
            reader.read_exact(&mut body).unwrap();
        }
        None => _ = reader.read_to_end(&mut body).unwrap(),
    }
    (head, String::from_utf8(body).unwrap())
}

/// Starts a gateway in this process.
fn gateway(backends: &str) -> String {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let text = format!(
        "listen: \"127.0.0.1:{port}\"\nlog: {{level: error}}\n\
         models: {{short: {{routes: [{{backend: toy, model: a-model}}]}}}}\n\
         rate_limit: {{global: {{requests_per_minute: 100, tokens_per_minute: 100000}}}}\n\
         backends:\n{backends}"
    );
    let loaded = config::load_text(&text, Path::new("."), &|_| None);
    let problems: Vec<String> = loaded.problems.iter().map(ToString::to_string).collect();
    assert_eq!(problems, [""; 0]);
    let plan = loaded.plan.unwrap();
    thread::spawn(move || server::run(plan, None));
    let address = format!("127.0.0.1:{port}");
    while TcpStream::connect(&address).is_err() {
        thread::sleep(Duration::from_millis(10));
    }
    address
}

fn ask(gateway: &str, method: &str, path: &str, body: &str) -> (String, String) {
    ask_with(gateway, method, path, "", body)
}

fn ask_with(gateway: &str, method: &str, path: &str, fields: &str, body: &str) -> (String, String) {
    let mut stream = TcpStream::connect(gateway).unwrap();
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: gateway\r\nX-Toy-Key: secret\r\nContent-Length: {}\r\n\
         Connection: close\r\n{fields}\r\n{body}",
        body.len()
    )
    .unwrap();
    read(&mut stream)
}

#[test]
fn a_language_is_added_through_the_list_alone() {
    let (url, seen) = backend("one\ntwo\nthree\n# 4 3\n", "text/event-stream");
    let gateway =
        gateway(&format!("  - {{name: toy, url: \"{url}\", protocol: toy, models: [a-model]}}\n"));

    // Words pass as they come, counted by the language's own meter, under the client's own model.
    let (head, body) = ask(&gateway, "POST", "/toy/short:say", "short stream 9: hello");
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    assert_eq!(body.replace(['\r', '\n'], " ").matches("three").count(), 1, "{body}");
    assert!(body.contains("one\ntwo\nthree\n# 4 3\n"), "{body}");
    let head = head.to_ascii_lowercase();
    assert!(head.contains("x-toy-most: 100") && head.contains("x-toy-left: 99"), "{head}");
    assert!(!head.contains("x-ratelimit"), "{head}");
    let sent = seen.lock().unwrap().last().unwrap().clone();
    assert!(sent.contains("a-model stream 9: hello"), "{sent}");
    assert!(!sent.to_ascii_lowercase().contains("secret"), "the key of the client: {sent}");
    let (_, metrics) = ask(&gateway, "GET", "/metrics", "");
    let line =
        |start: &str| metrics.lines().find(|line| line.starts_with(start)).map(str::to_owned);
    let tokens = line("llmproxy_usage_tokens_total{model=\"short\",type=\"completion\"}");
    assert!(tokens.is_some_and(|line| line.ends_with(" 3")), "{metrics}");
    assert!(metrics.contains("path=\"/toy/{model}:say\""), "{metrics}");

    // Errors are in its own words.
    let (head, body) = ask(&gateway, "POST", "/toy/x:say", "x: hello");
    assert!(head.starts_with("HTTP/1.1 404"), "{head}");
    assert!(body.starts_with("! 404: The model `x` does not exist"), "{body}");
    let (head, body) = ask(&gateway, "POST", "/toy/x:say", "nothing");
    assert!(head.starts_with("HTTP/1.1 400") && body.starts_with("! 400: "), "{head}{body}");
    let (head, body) = ask(&gateway, "POST", "/v1/nowhere", "");
    assert!(head.starts_with("HTTP/1.1 404") && body.contains("\"error\""), "{head}{body}");

    // So are model lists; OpenAI's is as it was.
    let (_, body) = ask(&gateway, "GET", "/toy/models", "");
    assert!(body.split(' ').any(|name| name == "short"), "{body}");
    let (_, body) = ask(&gateway, "GET", "/v1/models", "");
    assert!(body.contains("\"object\":\"list\""), "{body}");
}

#[test]
fn a_failure_is_in_the_clients_language() {
    let dead = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let gateway = gateway(&format!("  - {{name: toy, url: \"http://{dead}\", protocol: toy}}\n"));
    let (head, body) = ask(&gateway, "POST", "/toy/m:say", "m: hello");
    assert!(head.starts_with("HTTP/1.1 502"), "{head}");
    assert_eq!(body, "! backend_unreachable: The backend could not be reached\n");
}

const BEGUN: &str = concat!(
    "event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"id\":\"m\",",
    "\"model\":\"a-model\",\"usage\":{\"input_tokens\":4,\"output_tokens\":1}}}\n\n",
    "event: content_block_start\ndata: {\"type\":\"content_block_start\",\"index\":0,",
    "\"content_block\":{\"type\":\"text\",\"text\":\"\"}}\n\n",
    "event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"index\":0,",
    "\"delta\":{\"type\":\"text_delta\",\"text\":\"Hi\"}}\n\n",
);

/// The value of a field of a head.
fn field<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    let lines = head.lines().filter_map(|line| line.split_once(": "));
    lines.filter(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value).next()
}

#[test]
fn messages_pass_in_their_own_language() {
    let (url, seen) = backend(BEGUN, "text/event-stream");
    let gateway = gateway(&format!(
        "  - {{name: toy, url: \"{url}\", models: [a-model], languages: [chat, messages, responses]}}\n"
    ));
    let body = r#"{"model":"short","max_tokens":9,"stream":true,"messages":[]}"#;
    let fields =
        "x-api-key: one\r\nx-goog-api-key: two\r\ncookie: three=3\r\nanthropic-beta: x\r\n";
    let path = "/v1/messages?beta=true&key=four";
    let (head, text) = ask_with(&gateway, "POST", path, fields, body);
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    assert_eq!(field(&head, "request-id").unwrap(), field(&head, "x-request-id").unwrap());
    assert_eq!(field(&head, "anthropic-ratelimit-requests-limit"), Some("100"));
    assert!(field(&head, "x-ratelimit-limit-requests").is_none(), "{head}");
    // The stream was cut: an open block ends, and an error follows. The model has the client's name.
    assert!(text.contains(r#""model":"short""#) && text.contains("text_delta"), "{text}");
    let at = |part: &str| text.find(part).unwrap_or_else(|| panic!("{part}: {text}"));
    assert!(at("event: content_block_stop") < at("event: error\n"), "{text}");
    let sent = seen.lock().unwrap().last().unwrap().to_ascii_lowercase();
    assert!(sent.starts_with("post /v1/messages?beta=true http"), "{sent}");
    assert!(sent.contains("\"model\":\"a-model\"") && sent.contains("anthropic-beta: x"), "{sent}");
    for secret in ["one", "two", "three", "four"] {
        assert!(!sent.contains(&format!(": {secret}")) && !sent.contains(&format!("={secret}")));
    }

    // To count tokens is passed on too, and costs none.
    let (head, _) = ask(&gateway, "POST", "/v1/messages/count_tokens", r#"{"model":"short"}"#);
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    let sent = seen.lock().unwrap().last().unwrap().clone();
    assert!(sent.starts_with("POST /v1/messages/count_tokens "), "{sent}");

    // Lists and errors at shared paths have the form of those who ask.
    let version = "anthropic-version: 2023-06-01\r\n";
    let (_, list) = ask_with(&gateway, "GET", "/v1/models?limit=5", version, "");
    assert!(list.contains(r#""display_name":"short""#) && list.contains("has_more"), "{list}");
    let (head, error) = ask_with(&gateway, "GET", "/v1/models?limit=0", version, "");
    assert!(head.starts_with("HTTP/1.1 400") && error.contains("invalid_request_error"), "{error}");
    let (_, one) = ask_with(&gateway, "GET", "/v1/models/short", version, "");
    assert!(one.contains(r#""type":"model""#), "{one}");
    let (head, error) = ask_with(&gateway, "POST", "/v1/models", version, "");
    assert!(head.starts_with("HTTP/1.1 405") && error.contains("\"type\":\"error\""), "{error}");
    let (_, error) = ask_with(&gateway, "GET", "/v1/nowhere", version, "");
    assert!(error.starts_with(r#"{"type":"error","error":{"type":"not_found_error""#), "{error}");
    let (_, list) = ask(&gateway, "GET", "/v1/models", "");
    assert!(list.contains(r#""object":"list""#), "{list}");
}

#[test]
fn responses_pass_in_their_own_language() {
    const CUT: &str = concat!(
        "event: response.created\ndata: {\"type\":\"response.created\",\"sequence_number\":0,",
        "\"response\":{\"id\":\"resp_9\",\"model\":\"a-model\"}}\n\n",
        "event: response.output_text.delta\ndata: {\"type\":\"response.output_text.delta\",",
        "\"sequence_number\":1,\"delta\":\"Hi\"}\n\n",
    );
    let (url, seen) = backend(CUT, "text/event-stream");
    let gateway = gateway(&format!(
        "  - {{name: toy, url: \"{url}\", models: [a-model], languages: [chat, messages, responses]}}\n"
    ));
    let body = r#"{"model":"short","stream":true,"input":"x"}"#;
    let (_, text) = ask(&gateway, "POST", "/v1/responses", body);
    let last =
        text.split("event: response.failed\ndata: ").nth(1).unwrap_or_else(|| panic!("{text}"));
    assert!(last.contains("\"id\":\"resp_9\"") && last.contains("\"model\":\"short\""), "{last}");
    assert!(last.contains("\"sequence_number\":2"), "{last}");
    let sent = seen.lock().unwrap().last().unwrap().clone();
    assert!(sent.ends_with(r#"{"model":"a-model","stream":true,"input":"x"}"#), "{sent}");

    for (method, path) in [
        ("GET", "/v1/responses/resp_9"),
        ("DELETE", "/v1/responses/resp_9"),
        ("POST", "/v1/responses/resp_9/cancel"),
        ("GET", "/v1/responses/resp_9/input_items"),
    ] {
        let (head, _) = ask(&gateway, method, path, "");
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        let sent = seen.lock().unwrap().last().unwrap().clone();
        assert!(sent.starts_with(&format!("{method} {path} ")), "{sent}");
    }
    let (head, _) = ask(&gateway, "POST", "/v1/responses/compact", r#"{"model":"short"}"#);
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    // Codex asks by WebSocket first, and by HTTP after this.
    let (head, error) = ask_with(&gateway, "GET", "/v1/responses", "Upgrade: websocket\r\n", "");
    assert!(head.starts_with("HTTP/1.1 426") && error.contains("by HTTP"), "{head}{error}");
    let (head, _) = ask(&gateway, "GET", "/v1/responses", "");
    assert!(head.starts_with("HTTP/1.1 405"), "{head}");
}

#[test]
fn a_failed_backend_is_an_error_of_messages() {
    let dead = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let gateway = gateway(&format!(
        "  - {{name: toy, url: \"http://{dead}\", languages: [chat, messages]}}\n"
    ));
    let (head, body) = ask(&gateway, "POST", "/v1/messages", r#"{"model":"m"}"#);
    assert!(head.starts_with("HTTP/1.1 502"), "{head}");
    assert!(body.starts_with(r#"{"type":"error","error":{"type":"api_error""#), "{body}");
    let (head, body) = ask(&gateway, "POST", "/v1/messages", "[");
    assert!(head.starts_with("HTTP/1.1 400") && body.contains("invalid_request_error"), "{body}");
}

#[test]
fn each_language_looks_for_keys_in_its_own_order() {
    let (url, _) = backend("{}", "application/json");
    let start = |names: &str| {
        gateway(&format!(
            "  - {{name: toy, url: \"{url}\", languages: [chat, messages, responses]}}\n\
             auth: {{mode: first_match{names}}}\n\
             api_keys: [{{key: good}}]\n"
        ))
    };
    let status = |gateway: &str, path: &str, fields: &str| {
        let (head, _) = ask_with(gateway, "POST", path, fields, r#"{"model":"m"}"#);
        head.split(' ').nth(1).unwrap().to_owned()
    };
    let own = "x-api-key: good\r\nAuthorization: Bearer bad\r\n";
    let bearer = "x-api-key: bad\r\nAuthorization: Bearer good\r\n";
    let gateway = start("");
    for (path, fields, expected) in [
        ("/v1/messages", own, "200"),
        ("/v1/messages", bearer, "401"),
        ("/v1/messages", "Authorization: Bearer good\r\n", "200"),
        ("/v1/messages", "x-goog-api-key: good\r\n", "200"),
        ("/v1/messages", "", "401"),
        ("/v1/responses", own, "401"),
        ("/v1/responses", bearer, "200"),
        ("/v1/responses", "api-key: good\r\n", "200"),
        ("/v1/chat/completions", own, "401"),
        ("/v1/chat/completions", bearer, "200"),
        ("/v1/chat/completions", "x-goog-api-key: good\r\n", "200"),
        // A stored response is not for everybody.
        ("/v1/responses/r/cancel", "", "401"),
        ("/v1/responses/r/cancel", bearer, "404"),
    ] {
        assert_eq!(status(&gateway, path, fields), expected, "{path} {fields}");
    }
    // The order that the configuration says applies everywhere.
    let gateway = start(", header_names: [Authorization, x-api-key]");
    assert_eq!(status(&gateway, "/v1/messages", bearer), "200");
    assert_eq!(status(&gateway, "/v1/messages", own), "401");
}
