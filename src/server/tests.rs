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
            write!(
                stream,
                "HTTP/1.1 200 OK\r\nContent-Type: {content_type}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{answer}",
                answer.len()
            )
            .unwrap();
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
    let mut stream = TcpStream::connect(gateway).unwrap();
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: gateway\r\nX-Toy-Key: secret\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n{body}",
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
