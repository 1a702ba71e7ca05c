//! Streams that break, that end in an error, or that have begun with comments, while a guard waits.

use std::time::Duration;

use serde_json::json;

use super::*;

const GUARDS: &str = "guards: {redact: [{kinds: [email]}], deny: [{on: [answer], words: [nightfall, \"night of nights\"]}]}\n";

const ONE: &str = "routing: {circuit: {enabled: false}, retry: {enabled: false}}\n";

#[tokio::test]
async fn what_waits_is_not_lost_when_the_backend_dies() {
    let echo = Echo::start().await;
    let receiver = Receiver::start().await;
    let mut asked = 0;
    for backend in LANGUAGES {
        let more = format!("{ONE}{GUARDS}{}", receiver.hook());
        let gateway = before(&echo.url, backend, &more).await;
        for client in LANGUAGES {
            for (says_it, client_gets) in [
                ("I know [EMAIL_1] and [EMA", "I know a@example.com and [EMA"),
                ("I know [EMAIL_1]", "I know a@example.com"),
                ("I know [EMAIL_", "I know [EMAIL_"),
                ("It is night", "It is night"),
                ("It is a night of ", "It is a night of "),
            ] {
                for piece in [1, 4] {
                    echo.change(|m| {
                        (m.says, m.breaks, m.piece) = (Some(says_it.to_owned()), true, piece);
                    });
                    let body = says(client, true, "I am a@example.com");
                    let answer = ask(&gateway, client, "", &body).await;
                    asked += 1;
                    let case = format!("{client} to {backend}, {piece}: {}", answer.text());
                    assert_eq!(answer.status, 200, "{case}");
                    let heard = hear(client, true, &answer);
                    assert_eq!(heard.text, client_gets, "{case}");
                    assert!(heard.error.is_some() && heard.end.is_none(), "{case}");
                    assert_eq!(answer.text().matches("\"error\":{").count(), 1, "{case}");
                }
            }
        }
        for record in receiver.wait_for(asked).await {
            assert_eq!(record["outcome"], "upstream_error", "{record}");
        }
    }
}

#[tokio::test]
async fn a_match_at_the_break_is_still_not_told() {
    let echo = Echo::start().await;
    for backend in LANGUAGES {
        let gateway = before(&echo.url, backend, &format!("{ONE}{GUARDS}")).await;
        for client in LANGUAGES {
            echo.change(|m| (m.says, m.breaks) = (Some("It is nightfall".to_owned()), true));
            let answer = ask(&gateway, client, "", &says(client, true, "a@example.com")).await;
            let heard = hear(client, true, &answer);
            let case = format!("{client} to {backend}: {}", answer.text());
            assert!("It is ".starts_with(&heard.text) && heard.error.is_some(), "{case}");
            assert!(!answer.text().contains("nightfall"), "{case}");
        }
    }
}

#[tokio::test]
async fn a_break_within_an_event_looks_as_without_guards() {
    use crate::support::raw;
    let event = |content: &str| {
        let delta = json!({"content": content});
        let chunk = json!({"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "m",
            "choices": [{"index": 0, "delta": delta, "finish_reason": null}]});
        format!("data: {chunk}\n\n")
    };
    for cut in [10, 60, 2] {
        let (first, second) = (event("It is a [EM"), event("AIL_1] for you"));
        let half = second[..second.len() - cut].to_owned();
        let steps = move |_| {
            vec![
                raw::events(),
                raw::chunk(&first),
                raw::chunk(&half),
                raw::Step::Pause(200),
                raw::Step::Reset,
            ]
        };
        let (url, _) = raw::backend(steps).await;
        let body = says("chat", true, "a@example.com");
        let mut texts = Vec::new();
        for guards in ["", GUARDS] {
            let gateway = before(&url, "chat", &format!("{ONE}{guards}")).await;
            let answer = ask(&gateway, "chat", "", &body).await;
            texts.push(answer.text().to_owned());
        }
        assert_eq!(texts[0], texts[1], "{cut}");
        assert_eq!(texts[1].matches("\"error\":{").count(), 1, "{}", texts[1]);
    }
}

const ALIVE: &str =
    "routing: {keep_alive: 100ms, circuit: {enabled: false}, retry: {enabled: false}}\n";

/// The comments at the beginning, and the rest.
fn comments(text: &str) -> (usize, &str) {
    const FORMS: [&str; 2] = [": keep-alive\n\n", "event: ping\ndata: {\"type\": \"ping\"}\n\n"];
    let (mut count, mut rest) = (0, text);
    while let Some(after) = FORMS.iter().find_map(|form| rest.strip_prefix(form)) {
        (count, rest) = (count + 1, after);
    }
    (count, rest)
}

#[tokio::test]
async fn a_stream_that_begins_with_comments_is_right() {
    let echo = Echo::start().await;
    let text = "Write to a@example.com by nighttime";
    for backend in LANGUAGES {
        let gateway = before(&echo.url, backend, &format!("{ALIVE}{GUARDS}")).await;
        for client in LANGUAGES {
            let case = format!("{client} to {backend}");
            echo.change(|m| (m.delay, m.says) = (Duration::from_millis(500), None));
            let answer = ask(&gateway, client, "", &says(client, true, text)).await;
            let (count, _) = comments(answer.text());
            assert!(count >= 2, "{case}: {}", answer.text());
            let heard = hear(client, true, &answer);
            assert_eq!(heard.text, text, "{case}");
            assert!(heard.end.is_some() && heard.error.is_none() && !heard.open, "{case}");
            // It ends in an error, once.
            echo.change(|m| m.says = Some("And then: nightfall, the end".to_owned()));
            let answer = ask(&gateway, client, "", &says(client, true, text)).await;
            let heard = hear(client, true, &answer);
            assert_eq!(heard.text.trim_end(), "And then:", "{case}");
            assert!(heard.error.is_some(), "{case}");
            // A backend that fails after the comments.
            echo.change(|m| m.status = 500);
            let answer = ask(&gateway, client, "", &says(client, true, text)).await;
            echo.change(|m| m.status = 200);
            let case = format!("{case}: {}", answer.text());
            assert_eq!((answer.status, answer.whole), (200, true), "{case}");
            assert_eq!(answer.text().matches("\"error\":{").count(), 1, "{case}");
        }
    }
}

#[tokio::test]
async fn a_refusal_after_comments_is_an_event() {
    let (echo, judge) = (Echo::start().await, Judge::start().await);
    let slow = Duration::from_millis(700);
    let more = format!(
        "{ALIVE}guards: {{moderation: [{{url: \"{}\", mode: beside, form: generic}}]}}\n",
        judge.url
    );
    echo.change(|m| m.delay = slow);
    for backend in LANGUAGES {
        let gateway = before(&echo.url, backend, &more).await;
        for client in LANGUAGES {
            judge.says(200, &json!({"allow": false, "message": "Go away."}), slow * 2);
            let answer = ask(&gateway, client, "", &says(client, true, "Hello")).await;
            let (count, rest) = comments(answer.text());
            let case = format!("{client} to {backend}: {}", answer.text());
            assert!(count > 0 && answer.status == 200 && answer.whole, "{case}");
            let told = events(rest);
            assert!(!rest.contains("Hello") && !told.is_empty(), "{case}");
            assert_eq!(rest.matches("Go away.").count(), 1, "{case}");
            judge.says(200, &json!({"allow": true}), slow * 2);
            let heard = heard(&gateway, client, "", &says(client, true, "Hello")).await;
            assert_eq!(heard.text, "Hello", "{case}");
        }
    }
}

#[tokio::test]
async fn comments_go_on_while_only_a_service_is_waited_for() {
    let (echo, judge) = (Echo::start().await, Judge::start().await);
    let more = format!(
        "{ALIVE}guards: {{moderation: [{{url: \"{}\", mode: beside, form: generic}}]}}\n",
        judge.url
    );
    let slow = Duration::from_millis(800);
    for backend in LANGUAGES {
        let gateway = before(&echo.url, backend, &more).await;
        for (client, allow) in [("chat", true), ("messages", false), ("responses", true)] {
            judge.says(200, &json!({"allow": allow, "message": "Go away."}), slow);
            let answer = ask(&gateway, client, "", &says(client, true, "Hello")).await;
            let (count, rest) = comments(answer.text());
            let case = format!("{client} to {backend}: {}", answer.text());
            assert!(count >= 3 && answer.status == 200 && answer.whole, "{case}");
            assert_eq!(rest.contains("Go away."), !allow, "{case}");
            assert_eq!(rest.contains("Hel"), allow, "{case}");
        }
    }
}

#[tokio::test]
async fn comments_of_a_backend_open_no_way_around() {
    let echo = Echo::start().await;
    let text = "Write to a@example.com by nighttime";
    echo.change(|m| (m.comment, m.piece) = (true, 8));
    for backend in LANGUAGES {
        let gateway = before(&echo.url, backend, GUARDS).await;
        for client in LANGUAGES {
            let case = format!("{client} to {backend}");
            let heard = heard(&gateway, client, "", &says(client, true, text)).await;
            assert_eq!(heard.text, text, "{case}");
        }
    }
}

#[tokio::test]
async fn a_whole_answer_to_a_stream_is_guarded() {
    let echo = Echo::start().await;
    let text = "Write to a@example.com by nighttime";
    echo.change(|m| (m.whole, m.delay) = (true, Duration::from_millis(400)));
    for more in ["", ALIVE] {
        for language in LANGUAGES {
            let gateway = before(&echo.url, language, &format!("{more}{GUARDS}")).await;
            let answer = ask(&gateway, language, "", &says(language, true, text)).await;
            let case = format!("{language}: {}", answer.text());
            assert!(answer.text().contains(text) && !answer.text().contains("EMAIL"), "{case}");
        }
    }
}
