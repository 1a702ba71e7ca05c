//! Responses that a backend has stored, and the counting of tokens where backends speak other
//! languages.

use llmproxy::sim::{Language, Sim};
use serde_json::{Value, json};

use crate::support::{
    Gateway,
    client::Response,
    raw::{backend, send},
    sim_with,
};

const RESPONSES: &str = "/v1/responses";

async fn ask(gateway: &Gateway, key: &str, method: &str, path: &str, body: Value) -> Response {
    let mut client = gateway.client().await;
    let body = if body.is_null() { String::new() } else { body.to_string() };
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    client.send(head.as_bytes()).await;
    client.answer().await
}

async fn respond(gateway: &Gateway, key: &str, more: Value) -> Response {
    let mut body = json!({"model": "m", "input": "Hello", "max_output_tokens": 16});
    for (name, value) in more.as_object().unwrap() {
        body[name] = value.clone();
    }
    ask(gateway, key, "POST", RESPONSES, body).await
}

/// How many responses each engine was asked to make.
fn asked(sims: &[Sim]) -> Vec<usize> {
    let count =
        |sim: &Sim| sim.stats().recent().iter().filter(|r| r.line.contains(RESPONSES)).count();
    sims.iter().map(count).collect()
}

async fn two_engines() -> Vec<Sim> {
    let mut sims = Vec::new();
    for _ in 0..2 {
        sims.push(sim_with(|b| (b.models, b.inter_token_ms) = (vec!["m".to_owned()], 0)).await);
    }
    sims
}

fn with_keys(sims: &[Sim]) -> String {
    format!(
        "backends:
  - {{name: a, url: \"{}\", languages: [responses], models: [m]}}
  - {{name: b, url: \"{}\", languages: [responses], models: [m]}}
  - {{name: other, url: \"{}\", languages: [responses], models: [o]}}
auth:
  pipeline:
    - {{type: static, static: {{keys: [{{key: sk-one-000001, user_id: one}}, {{key: sk-two-000002, user_id: two}}]}}}}
",
        sims[0].url(),
        sims[1].url(),
        sims[0].url(),
    )
}

#[tokio::test]
async fn a_stored_response_is_found_where_it_was_made_and_by_its_caller() {
    let sims = two_engines().await;
    let gateway = Gateway::start(&with_keys(&sims)).await;
    let (one, two) = ("sk-one-000001", "sk-two-000002");
    for round in 0..6 {
        let last = asked(&sims);
        let stream = round % 2 == 1;
        let made = respond(&gateway, one, json!({"stream": stream})).await;
        assert_eq!(made.status, 200, "{}", made.text());
        let id = match stream {
            false => made.json()["id"].as_str().unwrap().to_owned(),
            true => {
                let line = made.text().lines().find(|line| line.starts_with("data: ")).unwrap();
                let event: Value = serde_json::from_str(&line[6..]).unwrap();
                event["response"]["id"].as_str().unwrap().to_owned()
            }
        };
        let made_by = asked(&sims);
        let owner = usize::from(made_by[1] > last[1]);
        let path = format!("{RESPONSES}/{id}");
        let before = asked(&sims);
        let found = ask(&gateway, one, "GET", &path, Value::Null).await;
        assert_eq!((found.status, &found.json()["id"]), (200, &json!(id)));
        let items = ask(&gateway, one, "GET", &format!("{path}/input_items"), Value::Null).await;
        assert_eq!(items.json()["data"][0]["content"][0]["text"], "Hello", "{}", items.text());
        // The next turn, wherever the balancing would have sent it.
        for _ in 0..3 {
            let next = respond(&gateway, one, json!({"previous_response_id": id})).await;
            assert_eq!(next.status, 200, "{}", next.text());
        }
        let more: Vec<usize> =
            asked(&sims).iter().zip(&before).map(|(now, then)| now - then).collect();
        assert_eq!((more[owner], more[1 - owner]), (3, 0));
        // Another caller does not find it, and neither does a model that its backend does not have.
        let foreign = ask(&gateway, two, "GET", &path, Value::Null).await;
        assert_eq!(
            (foreign.status, &foreign.json()["error"]["code"]),
            (404, &json!("response_not_found"))
        );
        let foreign = respond(&gateway, two, json!({"previous_response_id": id})).await;
        assert_eq!(foreign.status, 400);
        assert_eq!(foreign.json()["error"]["code"], "previous_response_not_found");
        let deleted = ask(&gateway, one, "DELETE", &path, Value::Null).await;
        assert_eq!((deleted.status, &deleted.json()["deleted"]), (200, &json!(true)));
        assert_eq!(ask(&gateway, one, "GET", &path, Value::Null).await.status, 404);
    }
    assert_eq!(
        ask(&gateway, "sk-bad", "GET", "/v1/responses/resp_x", Value::Null).await.status,
        401
    );
}

#[tokio::test]
async fn reading_a_stored_response_is_not_billed_again() {
    let sims = two_engines().await;
    let gateway = Gateway::start(&format!(
        "{}usage: {{reporters: [{{type: file, file: {{path: records.jsonl}}}}]}}\n",
        with_keys(&sims)
    ))
    .await;
    let key = "sk-one-000001";
    let id = respond(&gateway, key, json!({})).await.json()["id"].as_str().unwrap().to_owned();
    for _ in 0..3 {
        let found = ask(&gateway, key, "GET", &format!("{RESPONSES}/{id}"), Value::Null).await;
        assert_eq!(found.status, 200);
    }
    let records = gateway.path("records.jsonl");
    crate::support::eventually("the record", async || records.exists()).await;
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    let text = std::fs::read_to_string(records).unwrap();
    assert_eq!(text.lines().count(), 1, "{text}");
    let counted =
        gateway.metric("llmproxy_usage_tokens_total{model=\"m\",type=\"completion\"}").await;
    assert_eq!(counted, 16.0);
}

#[tokio::test]
async fn without_keys_the_only_backend_is_asked_and_its_absence_is_said() {
    let sim = sim_with(|b| b.models = vec!["m".to_owned()]).await;
    let one = Gateway::start(&format!(
        "backends: [{{url: \"{}\", languages: [responses]}}]\n",
        sim.url()
    ))
    .await;
    // Made before this gateway was started.
    let direct = crate::support::http::client()
        .post(format!("{}/v1/responses", sim.url()))
        .body(json!({"model": "m", "input": "x", "max_output_tokens": 16}).to_string())
        .send()
        .await
        .unwrap();
    let made: Value = serde_json::from_slice(&direct.bytes().await.unwrap()).unwrap();
    let path = format!("{RESPONSES}/{}", made["id"].as_str().unwrap());
    assert_eq!(ask(&one, "", "GET", &path, Value::Null).await.status, 200);
    let chat = Gateway::before(&[sim.url()], "").await;
    assert_eq!(ask(&chat, "", "GET", &path, Value::Null).await.status, 404);
    for (member, value) in [
        ("previous_response_id", made["id"].clone()),
        ("conversation", json!("conv_1")),
        ("background", json!(true)),
    ] {
        let refused = respond(&chat, "", json!({member: value})).await;
        assert_eq!(refused.status, 400, "{}", refused.text());
        assert_eq!(refused.json()["error"]["param"], member);
    }
}

#[tokio::test]
async fn tokens_are_counted_in_every_language_or_estimated() {
    let one = |languages: &[Language]| {
        let languages = languages.to_vec();
        sim_with(move |b| (b.models, b.languages) = (vec!["m".to_owned()], languages))
    };
    let (chat, messages) = (one(&[Language::Chat]).await, one(&[Language::Messages]).await);
    let responses = one(&[Language::Responses]).await;
    let gateway = Gateway::start(&format!(
        "backends:
  - {{url: \"{}\", models: [chat]}}
  - {{name: other, url: \"{}\", models: [other], engine: other}}
  - {{url: \"{}\", models: [messages], languages: [messages]}}
  - {{url: \"{}\", models: [responses], languages: [responses]}}
models:
  chat: {{routes: [{{backend: \"{}\", model: m}}]}}
  messages: {{routes: [{{backend: \"{}\", model: m}}]}}
  responses: {{routes: [{{backend: \"{}\", model: m}}]}}
",
        chat.url(),
        chat.url(),
        messages.url(),
        responses.url(),
        chat.url(),
        messages.url(),
        responses.url(),
    ))
    .await;
    let tool = json!({"name": "f", "input_schema": {"type": "object", "properties": {}}});
    for model in ["chat", "messages", "responses", "other"] {
        let mut counts = Vec::new();
        for tools in [json!([]), json!([tool])] {
            let body = json!({"model": model, "tools": tools,
                "messages": [{"role": "user", "content": "Say hello to the world."}]});
            let counted = ask(&gateway, "", "POST", "/v1/messages/count_tokens", body).await;
            assert_eq!(counted.status, 200, "{model}: {}", counted.text());
            let estimated = counted.header("x-llmproxy-estimate").is_some();
            assert_eq!(estimated, model == "other", "{model}");
            counts.push(counted.json()["input_tokens"].as_u64().unwrap());
        }
        assert!(counts[0] > 0 && counts[1] >= counts[0], "{model}: {counts:?}");
        let body = json!({"model": model, "input": "Say hello to the world."});
        let counted = ask(&gateway, "", "POST", "/v1/responses/input_tokens", body).await;
        assert_eq!(counted.json()["object"], "response.input_tokens", "{}", counted.text());
        assert!(counted.json()["input_tokens"].as_u64().unwrap() > 0);
    }
    let seen = chat.stats().recent();
    let body: Value = serde_json::from_slice(&seen[0].body).unwrap();
    assert_eq!((seen[0].line.as_str(), &body["model"]), ("POST /tokenize", &json!("m")));
    assert_eq!(body["messages"][0]["content"], "Say hello to the world.");
}

#[tokio::test]
async fn a_conversation_stays_with_its_backend_and_its_caller() {
    let sims = two_engines().await;
    let gateway = Gateway::start(&with_keys(&sims)).await;
    for (number, form) in [json!("conv_0"), json!({"id": "conv_1"})].into_iter().enumerate() {
        let before = asked(&sims);
        for round in 0..4 {
            let more = json!({"conversation": form, "stream": round == 1});
            let made = respond(&gateway, "sk-one-000001", more).await;
            assert_eq!(made.status, 200, "{}", made.text());
        }
        let mut more: Vec<usize> =
            asked(&sims).iter().zip(&before).map(|(now, then)| now - then).collect();
        more.sort_unstable();
        assert_eq!(more, [0, 4]);
        let id = format!("conv_{number}");
        let foreign = respond(&gateway, "sk-two-000002", json!({"conversation": id})).await;
        assert_eq!(foreign.status, 404, "{}", foreign.text());
        assert_eq!(foreign.json()["error"]["code"], "conversation_not_found");
    }
}

#[tokio::test]
async fn a_backend_that_is_drained_or_gone_is_named_as_the_reason() {
    let sims = two_engines().await;
    let folder = tempfile::tempdir().unwrap();
    let admin = crate::support::free_address();
    let line = |name: &str, sim: &Sim| {
        format!(
            "  - {{name: {name}, url: \"{}\", languages: [responses], models: [m]}}\n",
            sim.url()
        )
    };
    let rest = format!(
        "admin: {{enabled: true, listen: \"{admin}\", token: admin-token-000001, db_path: \"{}\"}}\n",
        folder.path().join("keys.db").display()
    );
    let both = format!("backends:\n{}{}{rest}", line("a", &sims[0]), line("b", &sims[1]));
    let gateway = Gateway::start(&both).await;
    let made = respond(&gateway, "", json!({"conversation": "conv_1"})).await;
    let id = made.json()["id"].as_str().unwrap().to_owned();
    let owner = usize::from(asked(&sims)[1] == 1);
    let drain = async |method| {
        let name = ["a", "b"][owner];
        let request = crate::support::http::client()
            .request(method, format!("http://{admin}/admin/v1/backends/{name}/drain"))
            .header("X-Admin-Token", "admin-token-000001");
        assert_eq!(request.send().await.unwrap().status(), 200);
    };
    drain(http::Method::PUT).await;
    let path = format!("{RESPONSES}/{id}");
    let of = async || {
        [
            ask(&gateway, "", "GET", &path, Value::Null).await,
            respond(&gateway, "", json!({"previous_response_id": id})).await,
            respond(&gateway, "", json!({"conversation": "conv_1"})).await,
        ]
    };
    for refused in of().await {
        let error = &refused.json()["error"];
        assert_eq!((refused.status, &error["code"]), (503, &json!("backend_drained")));
        assert!(error["message"].as_str().unwrap().contains("drained"), "{error}");
    }
    drain(http::Method::DELETE).await;
    assert!(of().await.iter().all(|answer| answer.status == 200));
    let other = 1 - owner;
    gateway.rewrite(&format!("backends:\n{}{rest}", line(["a", "b"][other], &sims[other])));
    crate::support::eventually("the backend is gone", async || {
        ask(&gateway, "", "GET", &path, Value::Null).await.status == 404
    })
    .await;
    let codes = ["response_not_found", "previous_response_not_found", "conversation_not_found"];
    for (refused, (status, code)) in of().await.iter().zip([404, 400, 404].into_iter().zip(codes)) {
        let error = &refused.json()["error"];
        assert_eq!((refused.status, &error["code"]), (status, &json!(code)));
        let message = error["message"].as_str().unwrap();
        assert!(message.ends_with("is no longer part of the gateway"), "{message}");
    }
}

#[tokio::test]
async fn owners_in_redis_are_known_to_all_replicas_and_after_a_restart() {
    let redis = crate::support::servers::Redis::start().await;
    let sims = two_engines().await;
    let text = format!(
        "{}storage: {{caches: [{{name: main, driver: redis, addr: \"{}\"}}]}}
routing: {{stored_responses: {{storage: main}}}}\n",
        with_keys(&sims),
        redis.address
    );
    let (mut one, two) = (Gateway::start(&text).await, Gateway::start(&text).await);
    let key = "sk-one-000001";
    let mut made = Vec::new();
    for _ in 0..4 {
        made.push(respond(&one, key, json!({})).await.json()["id"].as_str().unwrap().to_owned());
    }
    crate::support::eventually("all are written", async || {
        redis.command(&["KEYS", "llmproxy:stored:*"]).lines().count() == 4
    })
    .await;
    let ttl = redis.command(&["KEYS", "llmproxy:stored:*"]);
    let ttl = redis.command(&["TTL", ttl.lines().next().unwrap()]);
    assert!(ttl.trim().parse::<u64>().unwrap() > 29 * 24 * 3600, "{ttl}");
    one.crash();
    one.revive().await;
    for gateway in [&one, &two] {
        for id in &made {
            let path = format!("{RESPONSES}/{id}");
            assert_eq!(ask(gateway, key, "GET", &path, Value::Null).await.status, 200);
            let foreign = ask(gateway, "sk-two-000002", "GET", &path, Value::Null).await;
            assert_eq!(foreign.status, 404);
            let next = respond(gateway, key, json!({"previous_response_id": id})).await;
            assert_eq!(next.status, 200, "{}", next.text());
        }
    }
    // What one has deleted the other does not know any more, unless it has seen it itself.
    let path = format!("{RESPONSES}/{}", made[0]);
    assert_eq!(ask(&two, key, "DELETE", &path, Value::Null).await.status, 200);
    // Without Redis each knows what it has seen, and says so once.
    drop(redis);
    for _ in 0..3 {
        let made = respond(&one, key, json!({})).await;
        let path = format!("{RESPONSES}/{}", made.json()["id"].as_str().unwrap());
        assert_eq!(ask(&one, key, "GET", &path, Value::Null).await.status, 200);
        assert_eq!(ask(&one, key, "GET", "/v1/responses/resp_x", Value::Null).await.status, 404);
    }
    one.logs("routing.stored_responses:").await;
    assert_eq!(one.log().matches("routing.stored_responses:").count(), 1, "{}", one.log());
}

#[tokio::test]
async fn a_stored_response_has_the_clients_name_of_its_model() {
    let sim = sim_with(|b| b.models = vec!["m".to_owned()]).await;
    let gateway = Gateway::start(&format!(
        "backends: [{{name: a, url: \"{}\", languages: [responses]}}]
models: {{alias: {{routes: [{{backend: a, model: m}}]}}}}\n",
        sim.url()
    ))
    .await;
    for (asked, told) in [("alias", "alias"), ("m", "m")] {
        let made = respond(&gateway, "", json!({"model": asked})).await;
        assert_eq!(made.json()["model"], told, "{}", made.text());
        let path = format!("{RESPONSES}/{}", made.json()["id"].as_str().unwrap());
        let found = ask(&gateway, "", "GET", &path, Value::Null).await;
        assert_eq!((found.status, &found.json()["model"]), (200, &json!(told)));
        assert!(found.whole && found.json()["output"].is_array(), "{}", found.text());
    }
}

#[tokio::test]
async fn a_backend_without_a_tokenizer_gives_an_estimate_and_is_not_asked_again() {
    let sim = sim_with(|b| b.models = vec!["m".to_owned()]).await;
    for status in ["404 Not Found", "405 Method Not Allowed"] {
        let no = send(format!("HTTP/1.1 {status}\r\nContent-Length: 2\r\n\r\n{{}}"));
        let (url, seen) = backend(move |_| vec![no.clone()]).await;
        let gateway = Gateway::start(&format!(
            "backends:\n  - {{url: \"{url}\", models: [old]}}\n  - {{url: \"{}\", models: [m]}}\n",
            sim.url()
        ))
        .await;
        for _ in 0..3 {
            let body =
                json!({"model": "old", "messages": [{"role": "user", "content": "Say hello."}]});
            let counted = ask(&gateway, "", "POST", "/v1/messages/count_tokens", body).await;
            assert_eq!(counted.status, 200, "{}", counted.text());
            assert_eq!(counted.header("x-llmproxy-estimate"), Some("true"));
            assert!(counted.json()["input_tokens"].as_u64().unwrap() > 0);
        }
        assert_eq!(seen.load(std::sync::atomic::Ordering::SeqCst), 1);
        let body = json!({"model": "m", "messages": [{"role": "user", "content": "Say hello."}]});
        let counted = ask(&gateway, "", "POST", "/v1/messages/count_tokens", body).await;
        assert_eq!(counted.header("x-llmproxy-estimate"), None);
    }
}
