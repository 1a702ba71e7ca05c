//! Less common client requests: keys in several header fields, compressed bodies, a single model by name.

use crate::support::{Gateway, chat, recorder::Recorder, sim, sim_with};

#[tokio::test]
async fn the_first_of_several_keys_is_used_and_none_is_forwarded() {
    let backend = Recorder::start().await;
    let gateway = Gateway::start(&format!(
        "backends: [{{url: \"{}\"}}]\nauth: {{}}\napi_keys: [{{key: sk-good}}, {{key: \"sk-a,b\"}}]\n",
        backend.url()
    ))
    .await;
    for (fields, status) in [
        ("Authorization: Bearer sk-good\r\nAuthorization: Bearer sk-bad\r\n", 200),
        ("Authorization: Bearer sk-bad\r\nAuthorization: Bearer sk-good\r\n", 401),
        ("Authorization: Basic eDp5\r\nAuthorization: Bearer sk-good\r\n", 200),
        ("Authorization: Basic eDp5, Bearer sk-good\r\n", 200),
        ("Authorization: Bearer sk-good, Bearer sk-bad\r\n", 200),
        ("Authorization: Bearer sk-bad, Bearer sk-good\r\n", 401),
        ("Authorization: \r\nAuthorization: Bearer sk-good\r\n", 200),
        ("Authorization: Basic eDp5\r\nX-API-Key: sk-good\r\n", 200),
        ("X-API-Key: \r\nX-API-Key: sk-good\r\n", 200),
        ("api-key: sk-good\r\n", 200),
        ("Api-Key: sk-bad\r\n", 401),
        ("X-API-Key: sk-bad\r\napi-key: sk-good\r\n", 401),
        ("Authorization: Bearer sk-a,b\r\n", 200),
        ("api_key: sk-good\r\n", 401),
    ] {
        let answer = gateway.ask_with(fields).await;
        assert_eq!(answer.status, status, "{fields:?}: {}", answer.text());
    }
    for request in backend.requests() {
        assert!(!format!("{request:?}").contains("sk-"), "{request:?}");
    }
}

#[tokio::test]
async fn a_compressed_body_is_refused_with_accept_encoding() {
    let sim = sim().await;
    let gateway = Gateway::before(&[sim.url()], "").await;
    for (coding, status) in [
        ("gzip", 415),
        ("GZIP", 415),
        ("deflate", 415),
        ("br", 415),
        ("zstd", 415),
        ("identity, gzip", 415),
        ("identity\r\nContent-Encoding: br", 415),
        ("x-unknown", 415),
        ("identity", 200),
        ("", 200),
    ] {
        for more in ["", "Expect: 100-continue\r\n"] {
            let mut client = gateway.client().await;
            let fields = format!("Content-Encoding: {coding}\r\n{more}");
            client.post_with("/v1/chat/completions", &fields, chat(false).as_bytes()).await;
            let answer = client.answer().await;
            assert_eq!(answer.status, status, "{coding}: {}", answer.text());
            if status == 415 {
                assert_eq!(answer.header("accept-encoding"), Some("identity"), "{coding}");
                let error = &answer.json()["error"];
                assert_eq!(error["code"], "unsupported_content_encoding", "{error}");
            }
        }
    }
    assert_eq!(sim.stats().requests(), 4, "only what was not compressed was sent on");
}

#[tokio::test]
async fn a_single_model_is_returned_by_name() {
    let sim =
        sim_with(|b| b.models = vec!["sim-model".to_owned(), "Org/Model-7B".to_owned()]).await;
    let gateway = Gateway::start(&format!(
        "backends: [{{url: \"{}\", name: b}}]\nmodels: {{mine: {{routes: [{{backend: b, model: sim-model}}]}}}}\n",
        sim.url()
    ))
    .await;
    let mut client = gateway.client().await;
    let list = client.get("/v1/models").await.json();
    for (path, id) in [
        ("sim-model", "sim-model"),
        ("Org/Model-7B", "Org/Model-7B"),
        ("Org%2FModel-7B", "Org/Model-7B"),
        ("mine", "mine"),
    ] {
        let answer = client.get(&format!("/v1/models/{path}")).await;
        assert_eq!(answer.status, 200, "{path}: {}", answer.text());
        let listed = list["data"].as_array().unwrap().iter().find(|model| model["id"] == id);
        // The gateway sets `created` to the current time.
        let (mut single, mut listed) = (answer.json(), listed.unwrap().clone());
        for model in [&mut single, &mut listed] {
            model["created"] = 0.into();
        }
        assert_eq!(single, listed, "{path}");
    }
    for path in ["other", "sim-model/", "sim-model/x", "Org", "..%2F..%2Fpause", "%FF"] {
        let answer = client.get(&format!("/v1/models/{path}")).await;
        assert_eq!(answer.status, 404, "{path}");
        assert_eq!(answer.json()["error"]["code"], "model_not_found", "{path}");
    }
    assert_eq!(client.get("/v1/models/").await.json()["error"]["code"], "unknown_url");
    assert_eq!(client.ask("/v1/models/sim-model", "{}").await.status, 405);
    let seen = sim.stats().recent();
    assert!(seen.iter().all(|seen| !seen.line.contains("/v1/models/")), "{seen:?}");
    let metric = "llmproxy_requests_total{backend=\"\",path=\"/v1/models/{model}\",status=\"200\",stream=\"false\"}";
    assert!(gateway.metric(metric).await >= 4.0);
}

#[tokio::test]
async fn a_model_that_the_caller_may_not_use_is_not_shown() {
    let sim = sim_with(|b| b.models = vec!["open".to_owned(), "closed".to_owned()]).await;
    let gateway = Gateway::start(&format!(
        "backends: [{{url: \"{}\"}}]\nauth: {{pipeline: [{{type: file, lua_script: \"return request.model ~= 'closed'\"}}]}}\napi_keys: [{{key: sk-1}}]\n",
        sim.url()
    ))
    .await;
    for (key, model, status) in
        [("sk-1", "open", 200), ("sk-1", "closed", 404), ("sk-2", "open", 401)]
    {
        let mut client = gateway.client().await;
        let head = format!(
            "GET /v1/models/{model} HTTP/1.1\r\nHost: g\r\nAuthorization: Bearer {key}\r\n\r\n"
        );
        client.send(head.as_bytes()).await;
        assert_eq!(client.answer().await.status, status, "{key} {model}");
    }
}
