//! Denied words in requests and in answers.

use serde_json::json;

use super::*;

#[tokio::test]
async fn a_denied_prompt_is_refused_in_the_clients_language() {
    let echo = Echo::start().await;
    for status in [400, 403] {
        let guard = format!(
            "guards: {{deny: [{{words: [\"project nightfall\"], patterns: ['code-\\d{{4}}'], status: {status}, message: Not here.}}]}}\n"
        );
        let gateway = before(&echo.url, "chat", &guard).await;
        let count = echo.seen().len();
        for client in LANGUAGES {
            for (text, stream) in [("What is Project Nightfall?", false), ("say code-1234!", true)]
            {
                let answer = ask(&gateway, client, "", &says(client, stream, text)).await;
                assert_eq!(answer.status, status, "{client}: {}", answer.text());
                let (_, code, message) = refusal(client, &answer);
                assert_eq!(message, "Not here.");
                assert!(client == "messages" || code == "content_blocked", "{code}");
            }
            let fine = says(client, false, "What is a project nightfaller? code-123");
            heard(&gateway, client, "", &fine).await;
        }
        assert_eq!(echo.seen().len(), count + 3);
        assert_eq!(findings(&gateway, "deny", "prompt", "refuse").await, 6.0);
    }
}

const DENY: &str =
    "guards: {deny: [{on: [answer], words: [nightfall], status: 403, message: Not here.}]}\n";

#[tokio::test]
async fn a_plain_answer_is_replaced() {
    let echo = Echo::start().await;
    echo.change(|m| m.says = Some("It is Nightfall.".to_owned()));
    let receiver = Receiver::start().await;
    let mut asked = 0;
    for backend in LANGUAGES {
        let gateway = before(&echo.url, backend, &format!("{DENY}{}", receiver.hook())).await;
        for client in LANGUAGES {
            let answer = ask(&gateway, client, "", &says(client, false, "What is it?")).await;
            assert_eq!(answer.status, 403, "{client} {backend}: {}", answer.text());
            let (_, code, message) = refusal(client, &answer);
            assert_eq!(message, "Not here.");
            assert!(client == "messages" || code == "content_blocked", "{code}");
            asked += 1;
        }
        assert_eq!(findings(&gateway, "deny", "answer", "end").await, 3.0);
        // What the engine has generated is billed.
        for record in receiver.wait_for(asked).await {
            assert_eq!(record["total_tokens"], 12, "{record}");
            assert_eq!(record["status_code"], 403, "{record}");
        }
    }
}

#[tokio::test]
async fn a_stream_ends_before_the_first_byte_of_a_match() {
    let echo = Echo::start().await;
    echo.change(|m| m.says = Some("A good night, and then Nightfall came over us.".to_owned()));
    let receiver = Receiver::start().await;
    let mut asked = 0;
    for backend in LANGUAGES {
        let gateway = before(&echo.url, backend, &format!("{DENY}{}", receiver.hook())).await;
        for client in LANGUAGES {
            for piece in [1, 4, 1000] {
                echo.change(|m| m.piece = piece);
                let answer = ask(&gateway, client, "", &says(client, true, "What is it?")).await;
                asked += 1;
                let case = format!("{client} to {backend}, {piece}: {}", answer.text());
                assert_eq!((answer.status, answer.whole), (200, true), "{case}");
                let heard = hear(client, true, &answer);
                let error = heard.error.as_ref().unwrap_or_else(|| panic!("{case}"));
                assert_eq!(error["message"], "Not here.", "{case}");
                assert!("A good night, and then ".starts_with(&heard.text), "{case}");
                let whole = heard.text.trim_end() == "A good night, and then";
                assert!(whole || piece > 1, "what stands before it has gone out. {case}");
                assert_eq!(heard.end, None, "{case}");
                for denied in ["Nightfall", "over us"] {
                    assert!(!answer.text().contains(denied), "{case}");
                }
            }
        }
        assert_eq!(findings(&gateway, "deny", "answer", "end").await, 9.0);
        for record in receiver.wait_for(asked).await {
            // What was generated counts as far as the backend had said it by then.
            assert_eq!(record["outcome"], "complete", "{record}");
        }
    }
}

#[tokio::test]
async fn an_allowed_stream_is_whole() {
    let echo = Echo::start().await;
    let text = "A night falls. Nightfal, night-fall, nightfalls: night";
    for backend in LANGUAGES {
        let gateway = before(&echo.url, backend, DENY).await;
        for client in LANGUAGES {
            for piece in [1, 5] {
                echo.change(|m| m.piece = piece);
                let heard = heard(&gateway, client, "", &says(client, true, text)).await;
                assert_eq!(heard.text, text, "{client} {backend}");
            }
        }
    }
}

#[tokio::test]
async fn entries_apply_by_model_key_and_tag() {
    let echo = Echo::start().await;
    let more = format!(
        "{KEYS}
hooks: {{on_request: {{script: \"if request.headers['x-night'] then return {{tags = {{'night'}}}} end\"}}}}
guards:
  redact: [{{kinds: [email], when: {{models: [\"masked-*\"]}}}}]
  deny:
    - {{words: [alpha], when: {{keys: [k-ann]}}}}
    - {{words: [beta], when: {{tags: [night], keys: [bob]}}}}
  caps: [{{n: 1, when: {{models: [capped]}}}}]
"
    );
    let gateway = before(&echo.url, "chat", &more).await;
    for (who, night, model, text, status) in [
        ("ann", false, "m", "alpha", 400),
        ("ann", true, "m", "beta", 200),
        ("bob", true, "m", "beta", 400),
        ("bob", false, "m", "alpha beta", 200),
        ("bob", false, "capped", "x", 400),
        ("bob", false, "capped-not", "x", 200),
    ] {
        let mut body = says("chat", false, text);
        body["model"] = model.into();
        body["n"] = 2.into();
        let headers = bearer(who) + if night { "X-Night: 1\r\n" } else { "" };
        let answer = ask(&gateway, "chat", &headers, &body).await;
        assert_eq!(answer.status, status, "{who} {night} {model} {text}: {}", answer.text());
    }
    for (model, seen) in [("masked-1", "[EMAIL_1]"), ("other", "a@example.com")] {
        let mut body = says("chat", false, "a@example.com");
        body["model"] = model.into();
        assert_eq!(heard(&gateway, "chat", &bearer("ann"), &body).await.text, "a@example.com");
        assert_eq!(echo.last_json()["messages"][0]["content"], json!(seen));
    }
}

/// A backend with one kind of body for whatever is asked.
async fn says_only(kind: &'static str, body: String) -> String {
    let answer = move || async move { ([("content-type", kind)], body.clone()) };
    let app = axum::Router::new().fallback(answer);
    crate::support::serve(app).await
}

#[tokio::test]
async fn an_answer_that_is_too_long_to_be_looked_at_is_no_answer() {
    let echo = Echo::start().await;
    let deny = "guards: {deny: [{on: [answer], words: [nightfall]}]}\n";
    let gateway = before(&echo.url, "chat", deny).await;
    echo.change(|m| m.says = Some("night ".repeat(3 << 20)));
    let answer = ask(&gateway, "chat", "", &says("chat", false, "Hello")).await;
    let code = &answer.json()["error"]["code"];
    assert_eq!((answer.status, code), (502, &json!("answer_too_long")));
    // One that scripts alone would see passes unseen.
    let hook =
        "hooks: {on_response: {script: \"return {headers = {['x-seen'] = #response.body}}\"}}\n";
    let gateway = before(&echo.url, "chat", hook).await;
    let answer = ask(&gateway, "chat", "", &says("chat", false, "Hello")).await;
    assert!(answer.status == 200 && answer.whole && answer.body.len() > 18 << 20);
}

#[tokio::test]
async fn a_script_that_makes_an_error_of_an_answer_opens_no_way_around() {
    let echo = Echo::start().await;
    let more = "guards: {deny: [{on: [answer], words: [nightfall]}]}
hooks: {on_response: {script: \"return {status = 404}\"}}\n";
    let gateway = before(&echo.url, "chat", more).await;
    echo.change(|m| m.says = Some("It is nightfall".to_owned()));
    for stream in [false, true] {
        let answer = ask(&gateway, "chat", "", &says("chat", stream, "Hello")).await;
        assert!(!answer.text().contains("nightfall"), "{stream}: {}", answer.text());
        assert!(answer.text().contains("content_blocked"), "{stream}: {}", answer.text());
    }
}

#[tokio::test]
async fn documents_on_lines_are_looked_at_and_not_held() {
    let chunk = |text: &str| {
        let choice = json!({"index": 0, "delta": {"content": text}, "finish_reason": null});
        format!("{}\n", json!({"id": "c", "object": "chat.completion.chunk", "choices": [choice]}))
    };
    let body = ["It is ", "still ", "night", "fall", " now"].map(chunk).concat();
    let deny = "guards: {deny: [{on: [answer], words: [nightfall]}]}
hooks: {on_stream_event: {script: \"return false\"}}\n";
    let url = says_only("application/x-ndjson", body.clone()).await;
    let gateway = before(&url, "chat", deny).await;
    let answer = ask(&gateway, "chat", "", &says("chat", true, "Hello")).await;
    let lines: Vec<Value> =
        answer.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 3, "{}", answer.text());
    assert_eq!(lines[1]["choices"][0]["delta"]["content"], "still ");
    assert_eq!(lines[2]["error"]["code"], "content_blocked");
    let fine = body.replace("fall", "club");
    let url = says_only("application/x-ndjson", fine.clone()).await;
    let gateway = before(&url, "chat", deny).await;
    assert_eq!(ask(&gateway, "chat", "", &says("chat", true, "Hello")).await.text(), fine);
}

#[tokio::test]
async fn a_stored_answer_is_looked_at_when_it_is_read() {
    let response = |text: &str| {
        let content = json!([{"type": "output_text", "text": text, "annotations": []}]);
        let message = json!({"type": "message", "id": "msg_1", "role": "assistant", "status": "completed", "content": content});
        json!({"id": "resp_stored1", "object": "response", "created_at": 1, "status": "completed",
            "model": "sim-model", "output": [message]})
    };
    let (now, later) =
        (response("Wait a moment").to_string(), response("It is nightfall").to_string());
    let json = |body: String| async move { ([("content-type", "application/json")], body) };
    let app = axum::Router::new()
        .route("/v1/responses", axum::routing::post(move || json(now.clone())))
        .route("/v1/responses/{id}", axum::routing::get(move || json(later.clone())));
    let url = crate::support::serve(app).await;
    let deny = "guards: {deny: [{on: [answer], words: [nightfall]}]}\n";
    let gateway = before(&url, "responses", deny).await;
    let made = ask(&gateway, "responses", "", &says("responses", false, "Hello")).await;
    assert_eq!((made.status, &made.json()["id"]), (200, &json!("resp_stored1")), "{}", made.text());
    let read = gateway.client().await.get("/v1/responses/resp_stored1").await;
    assert_eq!(read.json()["error"]["code"], "content_blocked", "{}", read.text());
    assert!(!read.text().contains("nightfall"));
}
