//! Scripts at the stages of a request, through the binary.

mod answers;
mod backend;
mod edges;
mod failing;
mod requests;
mod seeds;

use serde_json::{Value, json};

use self::backend::Backend;
use super::support::{Gateway, Receiver, client::Response};

/// A configuration with this backend, these sections, and scripts by their stage.
fn configuration(url: &str, more: &str, scripts: &[(&str, &str)]) -> String {
    let mut text = format!("backends: [{{name: one, url: \"{url}\"}}]\n{more}\nhooks:\n");
    for (stage, script) in scripts {
        text += &stage_of(stage, script);
    }
    text
}

/// One stage with its script.
fn stage_of(stage: &str, script: &str) -> String {
    let lines: String = script.lines().map(|line| format!("      {line}\n")).collect();
    format!("  {stage}:\n    script: |\n{lines}")
}

/// Sends this request with these header lines.
async fn ask(gateway: &Gateway, path: &str, headers: &str, body: &str) -> Response {
    let mut client = gateway.client().await;
    client.post_with(path, headers, body.as_bytes()).await;
    client.answer().await
}

async fn chat(gateway: &Gateway, body: &Value) -> Response {
    ask(gateway, "/v1/chat/completions", "", &body.to_string()).await
}

fn hello() -> Value {
    json!({"model": "m", "messages": [{"role": "user", "content": "Hello"}]})
}

fn hello_stream() -> Value {
    let mut body = hello();
    body["stream"] = true.into();
    body
}

/// Two keys with data.
const KEYS: &str = r#"
tiers: {gold: {queue_class: 1}}
auth:
  pipeline:
    - type: static
      static:
        keys:
          - {key: sk-vip, id: k-vip, user_id: ann, name: Ann, total_quota: 5000000, tier: gold}
          - {key: sk-std, id: k-std, user_id: bob, name: Bob, total_quota: 100000}
"#;

#[tokio::test]
async fn what_scripts_did_is_explained_and_counted() {
    let backend = Backend::start().await;
    let scripts = [
        (
            "on_request",
            "return {body = {model = 'm', messages = request.body.messages, top_k = 3}, tags = {'x'}}",
        ),
        ("on_response", "return nil"),
        ("on_usage", "return {discount = 0.5}"),
    ];
    let gateway =
        Gateway::start(&configuration(&backend.url, "routing: {explain: 10}", &scripts)).await;
    assert_eq!(chat(&gateway, &hello()).await.status, 200);
    let calls = |stage: &str, result: &str| {
        format!(
            "llmproxy_hook_calls_total{{result=\"{result}\",script=\"hooks.{stage}\",stage=\"{stage}\"}}"
        )
    };
    for (stage, result) in
        [("on_request", "changed"), ("on_response", "nothing"), ("on_usage", "changed")]
    {
        let name = calls(stage, result);
        super::support::eventually(&name, async || gateway.metric(&name).await == 1.0).await;
    }
}

#[tokio::test]
async fn a_reload_swaps_all_scripts_at_once() {
    let backend = Backend::start().await;
    let with = |name: &str| {
        let set = format!("return {{headers = {{['x-set'] = '{name}'}}}}");
        configuration(&backend.url, "", &[("on_request", &set), ("on_response", &set)])
    };
    let gateway = Gateway::start(&with("old")).await;
    let answer = chat(&gateway, &hello()).await;
    assert_eq!(answer.header("x-set"), Some("old"));
    gateway.rewrite(&with("new"));
    super::support::eventually("the new scripts", async || {
        chat(&gateway, &hello()).await.header("x-set") == Some("new")
    })
    .await;
    let seen = backend.seen();
    assert_eq!(seen.first().unwrap().headers["x-set"], "old");
    assert_eq!(seen.last().unwrap().headers["x-set"], "new");
}

#[tokio::test]
async fn conditions_choose_requests() {
    let backend = Backend::start().await;
    let text = format!(
        "backends: [{{url: \"{}\"}}]\n{KEYS}\nhooks:\n  on_request:\n    - {{script: \"return {{headers = {{['x-a'] = '1'}}}}\", when: {{models: [m*]}}}}\n    - {{script: \"return {{headers = {{['x-b'] = '1'}}, tags = {{'t'}}}}\", when: {{keys: [k-vip]}}}}\n    - {{script: \"return {{headers = {{['x-c'] = '1'}}}}\", when: {{tags: [t]}}}}\n    - {{script: \"return {{headers = {{['x-d'] = '1'}}}}\", enabled: false}}\n",
        backend.url
    );
    let gateway = Gateway::start(&text).await;
    for (key, model, expected) in
        [("sk-vip", "m1", "abc"), ("sk-std", "m1", "a"), ("sk-std", "other", "")]
    {
        let mut body = hello();
        body["model"] = model.into();
        let header = format!("Authorization: Bearer {key}\r\n");
        ask(&gateway, "/v1/chat/completions", &header, &body.to_string()).await;
        let seen = backend.last();
        let set: String = ["a", "b", "c", "d"]
            .into_iter()
            .filter(|name| seen.headers.contains_key(format!("x-{name}")))
            .collect();
        assert_eq!(set, expected, "{key} {model}");
    }
}

#[tokio::test]
async fn records_have_what_scripts_said() {
    let backend = Backend::start().await;
    let receiver = Receiver::start().await;
    let scripts = [
        ("on_request", "return {tags = {'night'}, metadata = {centre = 'R&D'}}"),
        (
            "on_usage",
            "log.info('用量 ' .. usage.total_tokens)
return {total_tokens = usage.total_tokens * 2, cost = 0.25, discount = 0.8, user = request.user_id,
  model = record.model, latency = type(metadata.latency_ms), ids = {record_id = 'x'}, record_id = 'mine'}",
        ),
        ("on_complete", "log.warn('done ' .. result.outcome .. ' ' .. result.custom.discount)"),
    ];
    let text = configuration(&backend.url, &format!("{KEYS}{}", receiver.hook()), &scripts);
    let gateway = Gateway::start(&text).await;
    let answer = ask(
        &gateway,
        "/v1/chat/completions",
        "Authorization: Bearer sk-vip\r\n",
        &hello().to_string(),
    )
    .await;
    assert_eq!(answer.status, 200);
    let record = receiver.one().await;
    assert_eq!(record["tags"], json!(["night"]));
    assert_eq!(record["metadata"]["centre"], "R&D");
    assert_eq!((&record["total_tokens"], &record["prompt_tokens"]), (&json!(24), &json!(5)));
    assert_eq!(record["cost"], 0.25);
    assert_eq!(
        record["metered"],
        json!({"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12})
    );
    assert_eq!(
        record["custom"],
        json!({"discount": 0.8, "ids": {"record_id": "x"}, "latency": "number", "user": "ann"})
    );
    assert!(record["record_id"].as_str().unwrap().starts_with("rec_"));
    gateway.logs("用量 12").await;
    gateway.logs("done complete 0.8").await;
}
