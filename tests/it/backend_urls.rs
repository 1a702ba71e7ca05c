//! The endpoints that are called for each form of a backend URL.

use crate::support::{Gateway, check, eventually, recorder::Recorder};

/// Path and query of a backend URL, further keys, and the URLs called for a chat request, for the list
/// of models (if it is requested) and for health.
const FORMS: [(&str, &str, &str, &str, &str); 16] = [
    ("", "", "/v1/chat/completions", "/v1/models", "/health"),
    ("/", "", "/v1/chat/completions", "/v1/models", "/health"),
    ("/v1", "", "/v1/chat/completions", "/v1/models", "/health"),
    ("/team-a", "", "/team-a/v1/chat/completions", "/team-a/v1/models", "/team-a/health"),
    ("/team-a/v1/", "", "/team-a/v1/chat/completions", "/team-a/v1/models", "/team-a/health"),
    (
        "/api/paas/v4",
        "",
        "/api/paas/v4/chat/completions",
        "/api/paas/v4/models",
        "/api/paas/health",
    ),
    ("/api/v3", "", "/api/v3/chat/completions", "/api/v3/models", "/api/health"),
    ("/v1beta/openai", "", "/v1beta/openai/chat/completions", "/v1beta/openai/models", "/health"),
    (
        "/openai/deployments/x?api-version=2024-10-21",
        "",
        "/openai/deployments/x/chat/completions?api-version=2024-10-21",
        "",
        "/health?api-version=2024-10-21",
    ),
    ("/v1/chat/completions", "", "/v1/chat/completions", "/v1/models", "/health"),
    (
        "/openai/deployments/x/chat/completions?api-version=1",
        "",
        "/openai/deployments/x/chat/completions?api-version=1",
        "",
        "/health?api-version=1",
    ),
    ("/chat/completions", "", "/chat/completions", "/models", "/health"),
    ("/team-a", "append_v1: false", "/team-a/chat/completions", "/team-a/models", "/team-a/health"),
    ("", "append_v1: false", "/chat/completions", "/models", "/health"),
    (
        "/api/v3",
        "append_v1: true",
        "/api/v3/v1/chat/completions",
        "/api/v3/v1/models",
        "/api/v3/health",
    ),
    (
        "/v1?tenant=7",
        "",
        "/v1/chat/completions?tenant=7",
        "/v1/models?tenant=7",
        "/health?tenant=7",
    ),
];

#[tokio::test]
async fn each_form_of_a_base_url_has_its_endpoints() {
    let mut recorders = Vec::new();
    let mut text = "health_check: {interval: 1h}\nrouting: {load_balance_strategy: least_load, load: {interval: 1h}}\nbackends:\n".to_owned();
    for (i, (path, more, ..)) in FORMS.iter().enumerate() {
        let recorder = Recorder::start().await;
        let more = if more.is_empty() { String::new() } else { format!(", {more}") };
        text.push_str(&format!(
            "  - {{url: \"{}{path}\", name: b{i}, models: [m{i}, listed-model]{more}}}\n",
            recorder.url()
        ));
        recorders.push(recorder);
    }
    let gateway = Gateway::start(&text).await;
    let mut client = gateway.client().await;
    for (i, (recorder, form)) in recorders.iter().zip(FORMS).enumerate() {
        let (path, more, chat, models, health) = form;
        let body = format!("{{\"model\":\"m{i}\",\"messages\":[]}}");
        let answer = client.ask("/v1/chat/completions", &body).await;
        assert_eq!(answer.status, 200, "{path} {more}: {}", answer.text());
        assert_eq!(recorder.only().line, format!("POST {chat}"), "{path} {more}");
        assert_eq!(recorder.only().values("host"), [recorder.address.to_string()]);
        let asked = client.get("/v1/models").await;
        assert_eq!(asked.status, 200);
        let health = format!("GET {health}");
        let metrics = health.replace("/health", "/metrics");
        eventually("probe and metrics", async || {
            let lines = recorder.lines();
            lines.contains(&health) && lines.contains(&metrics)
        })
        .await;
        let lists: Vec<_> =
            recorder.lines().into_iter().filter(|line| line.contains("/models")).collect();
        match models {
            "" => assert!(lists.is_empty(), "{path} {more}: {lists:?}"),
            _ => assert!(
                !lists.is_empty() && lists.iter().all(|line| *line == format!("GET {models}")),
                "{path} {more}: {lists:?}"
            ),
        }
    }
}

#[tokio::test]
async fn the_clients_query_is_appended_without_keys() {
    let [plain, azure] = [Recorder::start().await, Recorder::start().await];
    let gateway = Gateway::start(&format!(
        "log: {{level: trace}}\nbackends:\n  - {{url: \"{}\", models: [plain]}}\n  - {{url: \"{}/openai/deployments/x?api-version=7\", models: [azure]}}\n",
        plain.url(),
        azure.url()
    ))
    .await;
    let mut client = gateway.client().await;
    for (model, query, called) in [
        ("plain", "", "/v1/chat/completions"),
        ("plain", "?beta=true&a=%20b", "/v1/chat/completions?beta=true&a=%20b"),
        ("plain", "?key=sk-VERYSECRET", "/v1/chat/completions"),
        ("plain", "?beta=1&key=sk-VERYSECRET&c=2", "/v1/chat/completions?beta=1&c=2"),
        ("plain", "?%6bey=sk-VERYSECRET", "/v1/chat/completions"),
        ("plain", "?Api_Key=sk-VERYSECRET", "/v1/chat/completions"),
        ("plain", "?access_token=sk-VERYSECRET&keys=1", "/v1/chat/completions?keys=1"),
        ("azure", "", "/openai/deployments/x/chat/completions?api-version=7"),
        ("azure", "?beta=true", "/openai/deployments/x/chat/completions?api-version=7&beta=true"),
        ("azure", "?api-version=1", "/openai/deployments/x/chat/completions?api-version=7"),
        ("azure", "?key=sk-VERYSECRET", "/openai/deployments/x/chat/completions?api-version=7"),
    ] {
        let recorder = if model == "plain" { &plain } else { &azure };
        for stream in [false, true] {
            let before = recorder.lines().len();
            let body = format!("{{\"model\":\"{model}\",\"messages\":[],\"stream\":{stream}}}");
            let answer = client.ask(&format!("/v1/chat/completions{query}"), &body).await;
            assert_eq!(answer.status, 200, "{query}");
            assert_eq!(recorder.lines()[before..], [format!("POST {called}")], "{query}");
        }
    }
    // Nor is it logged after an error.
    drop((plain, azure));
    for path in
        ["/v1/chat/completions", "/v1/completions", "/v1/models", "/v1/none", "/v1/models/x"]
    {
        for method in ["GET", "POST"] {
            let head = format!(
                "{method} {path}?key=sk-VERYSECRET HTTP/1.1\r\nHost: g\r\nContent-Length: 31\r\nConnection: close\r\n\r\n{{\"model\":\"plain\",\"messages\":[]}}"
            );
            let mut client = gateway.client().await;
            client.send(head.as_bytes()).await;
            client.answer().await;
        }
    }
    gateway.logs("\"POST /v1/models/").await;
    assert!(!gateway.log().contains("VERYSECRET"), "{}", gateway.log());
}

#[test]
fn check_shows_the_endpoints() {
    let mut text = "backends:\n".to_owned();
    for (i, (path, more, ..)) in FORMS.iter().enumerate() {
        let more = if more.is_empty() { String::new() } else { format!(", {more}") };
        text.push_str(&format!("  - {{url: \"http://engine{path}\", name: b{i}{more}}}\n"));
    }
    text.push_str(
        "  - {url: \"http://a\", name: claude, vendor: anthropic, api_key: sk-VERYSECRET}
  - {url: \"http://b/x\", name: own, languages: [responses, chat]}\n",
    );
    text.push_str(
        "  - {url: \"https://h/v1?key=sk-VERYSECRET&api-version=3\", name: last, api_key: sk-VERYSECRET, auth_header: api-key, proxy: \"http://me:sk-VERYSECRET@proxy:3128\"}\n",
    );
    let output = check(&text, &[]);
    let printed = String::from_utf8(output.stdout).unwrap();
    for (i, (_, _, chat, ..)) in FORMS.iter().enumerate() {
        let shown = chat.replace("tenant=7", "tenant=...");
        let line = format!("  b{i}: POST http://engine{shown}\n");
        assert!(printed.contains(&line), "{line} in\n{printed}");
    }
    let others = "  claude: POST http://a/v1/messages, key in `x-api-key`\n  own: POST http://b/x/v1/responses\n";
    assert!(printed.contains(others), "{printed}");
    let last = "  last: POST https://h/v1/chat/completions?key=...&api-version=3, key in `api-key`, proxy proxy:3128\n";
    assert!(printed.ends_with(last), "{printed}");
    assert!(!printed.contains("VERYSECRET"), "{printed}");
}

#[test]
fn urls_of_other_apis_are_refused_with_a_hint() {
    for (url, part) in [
        ("https://h/v1/messages", "`/messages` is an endpoint"),
        ("https://h/v1/responses", "`/responses` is an endpoint"),
        ("https://h/v1beta/models/m:generateContent", "`:generateContent` is a method"),
        ("https://h/v1#x", "a fragment"),
        ("ftp://h/v1", "http or https"),
    ] {
        let output = check(&format!("backends: [{{url: \"{url}\"}}]\n"), &[]);
        let printed = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success(), "{url}");
        assert!(printed.contains("backends[0].url") && printed.contains(part), "{printed}");
        assert!(printed.contains("hint: "), "{printed}");
    }
}

#[tokio::test]
async fn a_source_can_set_endpoints_of_its_entries() {
    let recorder = Recorder::start().await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("engines.yaml");
    // With a byte order mark, which some editors write.
    let list = format!(
        "\u{feff}backends:\n  - {{url: \"{0}/api/v3\", name: a, models: [a]}}\n  - {{url: \"{0}/x\", append_v1: false, name: b, models: [b]}}\n",
        recorder.url()
    );
    std::fs::write(&file, list).unwrap();
    let gateway = Gateway::start(&format!(
        "discovery: {{sources: [{{type: file, file: {{path: \"{}\"}}, api_key: sk-1, auth_header: api-key}}]}}\n",
        file.display()
    ))
    .await;
    let mut client = gateway.client().await;
    for model in ["a", "b"] {
        let body = format!("{{\"model\":\"{model}\",\"messages\":[]}}");
        assert_eq!(client.ask("/v1/chat/completions", &body).await.status, 200);
    }
    let lines = recorder.lines();
    assert_eq!(lines, ["POST /api/v3/chat/completions", "POST /x/chat/completions"]);
    assert!(recorder.requests().iter().all(|request| request.values("api-key") == ["sk-1"]));
}
