//! Prompts of a configuration in the bodies of requests.

use bytes::BytesMut;

use super::*;
use crate::{config::load_text, dialect::find, wire::edit};

fn prompts(section: &str) -> Prompts {
    let text = format!("backends: [{{url: \"http://x\"}}]\nsystem_prompts:\n{section}\n");
    let loaded = load_text(&text, std::path::Path::new("/nowhere"), &|_| None);
    let plan = loaded.plan.unwrap_or_else(|| panic!("{:?}", loaded.problems));
    Prompts::new(plan.prompts)
}

/// A body of Chat, Messages or Responses with the prompts for a model, and the names of these.
fn asked(prompts: &Prompts, path: &str, model: &str, body: &str) -> (String, Vec<String>) {
    let found = find("POST", path, &http::HeaderMap::new()).unwrap();
    let target = Target {
        language: found.language,
        operation: found.operation,
        model,
        user: "user_001",
        now: "2026-03-04T23:30:05Z".parse().unwrap(),
    };
    let applied = prompts.apply(&target, body.as_bytes());
    let mut buf = BytesMut::from(body.as_bytes());
    edit::apply(&mut buf, applied.edits);
    let names = applied.names.iter().map(|name| (**name).to_owned()).collect();
    (String::from_utf8(buf.to_vec()).unwrap(), names)
}

const CHAT: &str = "/v1/chat/completions";

#[test]
fn prompts_stand_in_their_order_around_the_clients_own() {
    let prompts = prompts(
        "  prompts:
    - {name: b2, text: B2, priority: 20, separator: newline}
    - {name: a2, text: A2, priority: 4, position: after, separator: none}
    - {name: b1, text: B1, priority: 10}
    - {name: a1, text: A1, priority: 3, position: after, separator: custom, custom_separator: \" / \"}",
    );
    assert!(!prompts.is_empty());
    for (path, body, expected) in [
        (
            CHAT,
            r#"{"messages":[{"role":"system","content":"own"}]}"#,
            r#"{"messages":[{"role":"system","content":"B1\n\nB2\nown / A1A2"}]}"#,
        ),
        (
            CHAT,
            r#"{"messages":[{"role":"user","content":"x"}]}"#,
            r#"{"messages":[{"role":"system","content":"B1\n\nB2 / A1A2"},{"role":"user","content":"x"}]}"#,
        ),
        (
            "/v1/messages",
            r#"{"messages":[{"role":"user","content":"x"}],"system":"own"}"#,
            r#"{"messages":[{"role":"user","content":"x"}],"system":"B1\n\nB2\nown / A1A2"}"#,
        ),
        (
            "/v1/responses",
            r#"{"input":"x","instructions":"own"}"#,
            r#"{"input":"x","instructions":"B1\n\nB2\nown / A1A2"}"#,
        ),
    ] {
        let (text, names) = asked(&prompts, path, "m", body);
        assert_eq!(text, expected);
        assert_eq!(names, ["a1", "a2", "b1", "b2"]);
    }
}

#[test]
fn a_prompt_is_for_models_as_clients_name_them() {
    let prompts = prompts(
        "  prompts:
    - {name: all, text: all, separator: newline}
    - {name: mini, text: mini, models: [\"*-mini\", \"*/small\"]}",
    );
    let body = r#"{"messages":[{"role":"user","content":"x"}]}"#;
    let names = |model: &str| asked(&prompts, CHAT, model, body).1;
    assert_eq!(names("gpt-4o-mini"), ["all", "mini"]);
    assert_eq!(names("org/small"), ["all", "mini"]);
    assert_eq!(names("gpt-4o"), ["all"]);
    assert_eq!(names(""), ["all"]);
}

#[test]
fn requests_without_a_conversation_stay_as_they_are() {
    let prompts = prompts("  prompts: [{text: x}]");
    for (path, body) in [
        ("/v1/completions", r#"{"prompt":"x","messages":[{"role":"user"}]}"#),
        ("/v1/embeddings", r#"{"input":"x"}"#),
        ("/v1/responses/compact", r#"{"input":"x"}"#),
        (CHAT, r#"{"model":"m"}"#),
    ] {
        assert_eq!(asked(&prompts, path, "m", body), (body.to_owned(), Vec::new()), "{path}");
    }
}

#[test]
fn variables_say_what_holds_for_the_request() {
    let prompts = prompts(
        "  time_zone: UTC
  prompts:
    - {text: \"${_DATE}|${_TIME}|${_DATETIME}|${_MODEL}|${_USER_ID:-nobody}|$5\\n\"}",
    );
    let body = r#"{"input":"x","instructions":"own"}"#;
    let (text, _) = asked(&prompts, "/v1/responses", "a\"b", body);
    let expected = r#"{"input":"x","instructions":"2026-03-04|23:30:05|2026-03-04T23:30:05|a\"b|user_001|$5\n\nown"}"#;
    assert_eq!(text, expected);
}

#[test]
fn dates_are_those_of_the_time_zone() {
    let mut plan = prompts("  prompts: [{text: \"${_DATETIME}\"}]").0;
    plan.time_zone = jiff::tz::TimeZone::fixed(jiff::tz::offset(8));
    let body = r#"{"input":"x"}"#;
    let (text, _) = asked(&Prompts::new(plan), "/v1/responses", "m", body);
    assert_eq!(text, r#"{"input":"x","instructions":"2026-03-05T07:30:05"}"#);
}

#[test]
fn a_prompt_of_which_nothing_is_left_adds_nothing() {
    let prompts = prompts("  prompts: [{text: \"${_MODEL}\"}, {text: x, models: [a]}]");
    let body = r#"{"input":"x"}"#;
    assert_eq!(asked(&prompts, "/v1/responses", "", body), (body.to_owned(), Vec::new()));
    assert!(Prompts::new(PromptsPlan::default()).is_empty());
}
