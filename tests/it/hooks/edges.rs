//! What scripts return at the edges of their stages, and what the end of a request waits for.

use std::time::Duration;

use serde_json::{Value, json};

use super::{Backend, ask, chat, configuration, hello, hello_stream, stage_of};
use crate::support::{Gateway, Receiver, eventually, free_address, http};

const NAMED: &str = "
auth:
  pipeline:
    - type: static
      static:
        keys:
          - {key: sk-one-000001, id: k-one, user_id: one, limits: {requests_per_minute: 2}}
          - {key: sk-two-000002, id: k-two, user_id: two}
";

async fn as_key(gateway: &Gateway, key: &str, body: &Value) -> crate::support::client::Response {
    let header = format!("Authorization: Bearer {key}\r\n");
    ask(gateway, "/v1/chat/completions", &header, &body.to_string()).await
}

#[tokio::test]
async fn on_response_replaces_a_body_that_it_has_not_read() {
    let backend = Backend::start().await;
    let receiver = Receiver::start().await;
    let script = "return {body = {answer = 42}, status = 202}";
    let text = configuration(&backend.url, &receiver.hook(), &[("on_response", script)]);
    let gateway = Gateway::start(&text).await;
    let mut client = gateway.client().await;
    for _ in 0..2 {
        // The connection is used again.
        let answer = client.ask("/v1/chat/completions", hello().to_string()).await;
        assert_eq!((answer.status, answer.json()), (202, json!({"answer": 42})));
        assert_eq!(answer.header("content-length"), Some("13"));
        assert!(answer.whole);
    }
    for record in receiver.wait_for(2).await {
        // What the backend has said is counted.
        assert_eq!((&record["total_tokens"], &record["status_code"]), (&json!(12), &json!(202)));
    }
    // A stream has no body to replace, and an error has.
    let stream = chat(&gateway, &hello_stream()).await;
    assert!(stream.status == 200 && stream.text().ends_with("data: [DONE]\n\n"));
    gateway.logs("`body`: this answer has none that can be changed").await;
    backend.answer_with(400);
    assert_eq!(chat(&gateway, &hello()).await.json(), json!({"answer": 42}));
}

#[tokio::test]
async fn limits_of_a_script_stand_over_those_of_the_key_field_by_field() {
    let backend = Backend::start().await;
    let script = "return {limits = {max_concurrent = 5}}";
    for stage in ["on_auth", "rate_limit"] {
        let text = configuration(&backend.url, NAMED, &[(stage, script)]);
        let gateway = Gateway::start(&text).await;
        for status in [200, 200, 429] {
            assert_eq!(as_key(&gateway, "sk-one-000001", &hello()).await.status, status, "{stage}");
        }
    }
}

#[tokio::test]
async fn what_on_usage_leaves_as_it_was_says_nothing() {
    let backend = Backend::start().await;
    for (script, total, cached, custom) in [
        ("return usage", 12, Value::Null, Value::Null),
        ("return record", 12, Value::Null, Value::Null),
        (
            "usage.total_tokens = 24 usage.note = 'twice' return usage",
            24,
            Value::Null,
            json!({"note": "twice"}),
        ),
        (
            "record.usage.cached_tokens = 3 record.centre = 7 return record",
            12,
            json!(3),
            json!({"centre": 7}),
        ),
        (
            "return {usage = 'x', custom = {a = 1}, prompt_tokens = -1, cost = -5}",
            12,
            Value::Null,
            json!({"usage": "x", "a": 1}),
        ),
    ] {
        let receiver = Receiver::start().await;
        let text = configuration(&backend.url, &receiver.hook(), &[("on_usage", script)]);
        let gateway = Gateway::start(&text).await;
        assert_eq!(chat(&gateway, &hello()).await.status, 200);
        let record = receiver.one().await;
        assert_eq!(record["total_tokens"], total, "{script}: {record}");
        assert_eq!(record["cached_tokens"], cached, "{script}: {record}");
        assert_eq!(record["custom"], custom, "{script}: {record}");
        let changed = total != 12 || !cached.is_null();
        assert_eq!(record["metered"].is_null(), !changed, "{script}: {record}");
    }
}

#[tokio::test]
async fn conditions_hold_at_the_end_of_a_request_too() {
    let backend = Backend::start().await;
    let receiver = Receiver::start().await;
    let text = format!(
        "backends: [{{url: \"{}\"}}]\n{NAMED}{}hooks:
  on_usage:
    - {{script: \"return {{two = true}}\", when: {{keys: [k-two]}}}}
    - {{script: \"return {{model = true}}\", when: {{models: [m]}}}}
    - {{script: \"return {{other = true}}\", when: {{models: [other]}}}}
  on_complete:
    - {{script: \"log.warn('ended for two')\", when: {{keys: [k-two], models: [m]}}}}
    - {{script: \"log.warn('ended for nobody')\", when: {{keys: [k-three]}}}}
",
        backend.url,
        receiver.hook()
    );
    let gateway = Gateway::start(&text).await;
    let both = json!({"two": true, "model": true});
    let cases = [("sk-two-000002", both), ("sk-one-000001", json!({"model": true}))];
    for (at, (key, custom)) in cases.into_iter().enumerate() {
        assert_eq!(as_key(&gateway, key, &hello()).await.status, 200);
        assert_eq!(receiver.wait_for(at + 1).await[at]["custom"], custom);
    }
    gateway.logs("ended for two").await;
    assert_eq!(gateway.log().matches("ended for two").count(), 1);
    assert!(!gateway.log().contains("ended for nobody"));
}

#[tokio::test]
async fn a_chosen_model_goes_only_to_a_backend_that_serves_it() {
    let [x, y] = [Backend::start().await, Backend::start().await];
    let script = "return {model = request.body.want}";
    let text = format!(
        "backends:\n  - {{name: x, url: \"{}\", models: [m]}}\n  - {{name: y, url: \"{}\", models: [big]}}\nhooks:\n{}",
        x.url,
        y.url,
        stage_of("on_route", script)
    );
    let gateway = Gateway::start(&text).await;
    let want = async |model: &str| {
        let mut body = hello();
        body["want"] = model.into();
        chat(&gateway, &body).await
    };
    for _ in 0..4 {
        let answer = want("big").await;
        assert_eq!((answer.status, &answer.json()["model"]), (200, &json!("m")));
    }
    assert_eq!((x.seen().len(), y.seen().len()), (0, 4));
    assert_eq!(y.last().json()["model"], "big");
    // Nobody serves it: that is logged, and the request goes on as it was.
    assert_eq!(want("none").await.status, 200);
    gateway.logs("no backend serves `none`").await;
    assert_eq!(x.last().json()["model"], "m");
    // It ends with an error, not in a search without end, when its only backend fails.
    y.answer_with(500);
    let failed = tokio::time::timeout(Duration::from_secs(20), want("big")).await;
    assert_eq!(failed.expect("it ends").status, 500);
}

#[tokio::test]
async fn many_changes_of_a_body_are_one_body() {
    let backend = Backend::start().await;
    let script = "
local b = request.body
for i = 1, 60 do
  if i % 3 == 0 then b['f' .. i] = nil elseif i % 3 == 1 then b['f' .. i] = 'now ' .. i else b['g' .. i] = i end
end
return {body = b}";
    let text = configuration(&backend.url, "routing: {explain: 10}", &[("on_request", script)]);
    let gateway = Gateway::start(&text).await;
    let mut body = hello();
    let mut expected = hello();
    for i in 1..=60 {
        body[format!("f{i}")] = json!({"n": i, "text": "ü".repeat(i)});
        match i % 3 {
            0 => {}
            1 => expected[format!("f{i}")] = format!("now {i}").into(),
            _ => {
                expected[format!("f{i}")] = body[format!("f{i}")].clone();
                expected[format!("g{i}")] = i.into();
            }
        }
    }
    assert_eq!(chat(&gateway, &body).await.status, 200);
    assert_eq!(backend.last().json(), expected);
}

#[tokio::test]
async fn the_end_of_the_process_waits_for_on_complete() {
    let backend = Backend::start().await;
    let text = format!(
        "backends: [{{url: \"{}\"}}]\nhooks:\n  on_complete: {{timeout: 5s, script: \"local t = os.clock() while os.clock() - t < 1 do end log.warn('all is said')\"}}\n",
        backend.url
    );
    let mut gateway = Gateway::start(&text).await;
    assert_eq!(chat(&gateway, &hello()).await.status, 200);
    gateway.signal("TERM");
    gateway.ended().await;
    assert!(gateway.log().contains("all is said"), "{}", gateway.log());
}

#[tokio::test]
async fn a_stream_that_is_left_or_refused_is_explained() {
    let backend = Backend::start().await;
    backend.say(&["nothing ", "but night", "fall"]);
    let (admin, folder) = (free_address(), tempfile::tempdir().unwrap());
    let more = format!(
        "admin: {{enabled: true, listen: \"{admin}\", token: a-token-for-tests, db_path: \"{}\"}}
routing: {{explain: 10}}
guards: {{deny: [{{on: [answer], words: [nightfall]}}]}}",
        folder.path().join("keys.db").display(),
    );
    let script =
        "if event.content then event.content = event.content:upper():lower() return event end";
    let text = configuration(&backend.url, &more, &[("on_stream_event", script)]);
    let gateway = Gateway::start(&text).await;
    let body = hello_stream().to_string();
    let answer = ask(&gateway, "/v1/chat/completions", "X-Request-ID: refused\r\n", &body).await;
    assert!(answer.text().contains("content_blocked"), "{}", answer.text());
    let url = format!("http://{admin}/admin/v1/explain?request_id=refused");
    let client = http::client();
    let mut hooks = Value::Null;
    eventually("the request is explained", async || {
        let asked = client.get(&url).header("X-Admin-Token", "a-token-for-tests").send();
        let answer = asked.await.unwrap();
        let found = answer.status() == 200;
        let document: Value = serde_json::from_str(&answer.text().await.unwrap()).unwrap();
        hooks = document["hooks"].clone();
        found
    })
    .await;
    let stages: Vec<_> = hooks.as_array().unwrap().iter().map(|hook| &hook["stage"]).collect();
    assert!(stages.contains(&&json!("on_stream_event")), "{hooks}");
}
