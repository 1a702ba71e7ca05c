//! Keys and header fields: every form of a key is taken on every path, and nothing of a client's own
//! goes to a backend of another language.

use llmproxy::sim::ReceivedRequest;

use super::{LANGUAGES, ask, before, line, path, refusal, request, speaker};
use crate::support::Gateway;

const KEYS: &str = "auth: {}\napi_keys: [{key: sk-client-1}]\n";

/// All header fields that clients send their key in.
const FORMS: [&str; 4] = [
    "Authorization: Bearer sk-client-1",
    "x-api-key: sk-client-1",
    "api-key: sk-client-1",
    "x-goog-api-key: sk-client-1",
];

#[tokio::test]
async fn every_form_of_a_key_is_taken_on_every_path_and_none_is_passed_on() {
    for backend in LANGUAGES {
        let sim = speaker(backend, |_| {}).await;
        let gateway = before(&sim.url(), backend, KEYS).await;
        for client in LANGUAGES {
            for form in FORMS {
                let case = format!("{backend} to {client}, {form}");
                let answer =
                    ask(&gateway, client, &format!("{form}\r\n"), &request(client, false)).await;
                assert_eq!(answer.status, 200, "{case}: {}", answer.text());
                let seen = sim.stats().last().unwrap();
                assert!(!all(&seen).contains("sk-client-1"), "{case}: {}", all(&seen));
                let wrong = form.replace("sk-client-1", "sk-nobody-1");
                let answer =
                    ask(&gateway, client, &format!("{wrong}\r\n"), &request(client, false)).await;
                assert!(matches!(answer.status, 401 | 403), "{case}: {}", answer.text());
                let (kind, _, _) = refusal(client, &answer);
                if client == "messages" {
                    assert!(kind == "authentication_error" || kind == "permission_error", "{kind}");
                }
            }
            let answer = ask(&gateway, client, "", &request(client, false)).await;
            assert_eq!(answer.status, 401, "{}", answer.text());
            let (kind, ..) = refusal(client, &answer);
            let expected =
                if client == "messages" { "authentication_error" } else { "invalid_request_error" };
            assert_eq!(kind, expected);
        }
    }
}

/// What a backend has got, but for the body.
fn all(seen: &ReceivedRequest) -> String {
    format!("{} {:?}", seen.line, seen.headers)
}

/// Fields that clients of the languages send.
const OWN: &str = "Authorization: Bearer sk-client-1\r\nx-api-key: sk-client-1\r\nCookie: session=sk-client-1\r\n\
    anthropic-version: 2023-01-01\r\nanthropic-beta: context-1m\r\nanthropic-dangerous-direct-browser-access: true\r\n\
    openai-organization: org-of-client\r\nopenai-project: p-of-client\r\nopenai-beta: responses=v1\r\n\
    x-stainless-lang: js\r\nx-stainless-retry-count: 1\r\nX-Other: kept\r\n";

#[tokio::test]
async fn what_is_of_the_clients_language_stays_behind() {
    for backend in LANGUAGES {
        let sim = speaker(backend, |_| {}).await;
        let gateway = before(&sim.url(), backend, "").await;
        for client in LANGUAGES.into_iter().filter(|client| *client != backend) {
            let mut connection = gateway.client().await;
            let target = format!("{}?beta=true&key=sk-client-1&api-version=7", path(client));
            let body = request(client, false).to_string();
            connection.post_with(&target, OWN, body.as_bytes()).await;
            let answer = connection.answer().await;
            let case = format!("{backend} to {client}: {}", answer.text());
            assert_eq!(answer.status, 200, "{case}");
            let seen = sim.stats().last().unwrap();
            let text = all(&seen);
            assert_eq!(seen.line, format!("POST {}", path(backend)), "{case}");
            assert!(!text.contains("sk-client-1") && !text.contains("cookie"), "{text}");
            assert_eq!(seen.header("x-other"), Some("kept"), "{case}");
            let own: &[&str] = match client {
                "messages" => &["anthropic-beta", "anthropic-dangerous-direct-browser-access"],
                _ => &["openai-organization", "openai-project", "openai-beta"],
            };
            let sdk = ["x-stainless-lang", "x-stainless-retry-count"];
            for name in own.iter().chain(&sdk) {
                // Chat and Responses are both OpenAI's.
                let sibling = client != "messages" && backend != "messages";
                assert!(seen.header(name).is_none() || sibling, "{case}: {name}: {text}");
            }
            let version = seen.header("anthropic-version");
            let expected = match (backend, client) {
                ("messages", _) => Some("2023-06-01"),
                (_, "messages") => None,
                _ => version,
            };
            assert_eq!(version, expected, "{case}: {text}");
            assert_eq!(seen.header("content-type"), Some("application/json"), "{case}");
        }
    }
}

#[tokio::test]
async fn the_native_path_keeps_the_clients_own_fields() {
    let sim = speaker("messages", |_| {}).await;
    let gateway = before(&sim.url(), "messages", "").await;
    let mut connection = gateway.client().await;
    let body = request("messages", true).to_string();
    connection.post_with("/v1/messages?beta=true", OWN, body.as_bytes()).await;
    let answer = connection.answer().await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let seen = sim.stats().last().unwrap();
    assert_eq!(seen.line, "POST /v1/messages?beta=true");
    for (name, value) in [
        ("anthropic-version", "2023-01-01"),
        ("anthropic-beta", "context-1m"),
        ("x-stainless-lang", "js"),
    ] {
        assert_eq!(seen.header(name), Some(value), "{name}");
    }
    assert!(seen.header("x-api-key").is_none() && seen.header("authorization").is_none());
}

#[tokio::test]
async fn a_backend_of_messages_gets_its_key_and_its_version_in_its_own_form() {
    for (more, version) in [
        ("", "2023-06-01"),
        (", headers: {anthropic-version: \"2026-10-21\", anthropic-beta: b-1}", "2026-10-21"),
    ] {
        let sim = speaker("messages", |_| {}).await;
        let text = line("a", &sim.url(), "messages", &format!(", api_key: sk-backend{more}"));
        let gateway = Gateway::start(&format!("backends:\n{text}{KEYS}")).await;
        for client in LANGUAGES {
            let head = "x-api-key: sk-client-1\r\nopenai-organization: o\r\n";
            let answer = ask(&gateway, client, head, &request(client, false)).await;
            assert_eq!(answer.status, 200, "{client}: {}", answer.text());
            let seen = sim.stats().last().unwrap();
            let case = format!("{client}: {}", all(&seen));
            let keys: Vec<_> =
                seen.headers.iter().filter(|(name, _)| name == "x-api-key").collect();
            assert_eq!(keys, [&("x-api-key".to_owned(), "sk-backend".to_owned())], "{case}");
            assert_eq!(seen.header("authorization"), None, "{case}");
            let expected = (client != "messages" || !more.is_empty()).then_some(version);
            assert_eq!(seen.header("anthropic-version"), expected, "{case}");
            assert_eq!(seen.header("anthropic-beta").is_some(), !more.is_empty(), "{case}");
        }
    }
    for backend in ["chat", "responses"] {
        let sim = speaker(backend, |b| b.api_key = "sk-backend".to_owned()).await;
        let text = line("a", &sim.url(), backend, ", api_key: sk-backend");
        let gateway = Gateway::start(&format!("backends:\n{text}{KEYS}")).await;
        for client in LANGUAGES {
            let head = "x-api-key: sk-client-1\r\n";
            let answer = ask(&gateway, client, head, &request(client, false)).await;
            assert_eq!(answer.status, 200, "{backend} to {client}: {}", answer.text());
            let seen = sim.stats().last().unwrap();
            assert_eq!(seen.header("authorization"), Some("Bearer sk-backend"));
            assert_eq!(seen.header("x-api-key"), None);
        }
    }
}

#[tokio::test]
async fn ids_of_requests_are_in_the_fields_that_each_language_has() {
    for backend in LANGUAGES {
        let sim = speaker(backend, |_| {}).await;
        let gateway = before(&sim.url(), backend, "").await;
        for client in LANGUAGES {
            let head = format!("X-Request-Id: id-of-{client}\r\n");
            let answer = ask(&gateway, client, &head, &request(client, true)).await;
            let id = format!("id-of-{client}");
            assert_eq!(answer.header("x-request-id"), Some(&*id), "{backend} to {client}");
            if client == "messages" {
                assert_eq!(answer.header("request-id"), Some(&*id), "{backend} to {client}");
            }
            assert_eq!(sim.stats().tries_of(&id), 1, "{backend} to {client}");
        }
    }
}
