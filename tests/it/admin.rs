//! The admin API, in both of its shapes.

use std::net::SocketAddr;

use reqwest::{Client, Method, StatusCode};
use serde_json::{Value, json};

use super::support::{Gateway, free_address, http, python, sim, sim_with};

const TOKEN: &str = "a-token-for-tests";

/// A gateway with the admin API and the keys that it manages.
pub struct Admin {
    pub gateway: Gateway,
    address: SocketAddr,
    client: Client,
    pub folder: tempfile::TempDir,
}

impl Admin {
    pub async fn start(backends: &[String], more: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let address = free_address();
        let text = format!(
            "admin: {{enabled: true, listen: \"{address}\", token: {TOKEN}, db_path: \"{}\"}}\n\
             auth:\n  pipeline: [{{type: builtin, name: p}}]\n{more}",
            folder.path().join("keys.db").display()
        );
        let gateway = Gateway::before(backends, &text).await;
        Self { gateway, address, client: http::client(), folder }
    }

    pub async fn ask(
        &self,
        method: Method,
        path: &str,
        body: Option<Value>,
    ) -> (StatusCode, Value) {
        let request = self.client.request(method, format!("http://{}{path}", self.address));
        let request = request.header("X-Admin-Token", TOKEN);
        let request = match body {
            Some(body) => request.body(body.to_string()),
            None => request,
        };
        let answer = request.send().await.unwrap();
        let status = answer.status();
        let text = answer.text().await.unwrap();
        (status, serde_json::from_str(&text).unwrap_or(Value::Null))
    }

    pub async fn get(&self, path: &str) -> Value {
        let (status, body) = self.ask(Method::GET, path, None).await;
        assert_eq!(status, 200, "{path}: {body}");
        body
    }

    /// Status, head and text of an answer.
    pub async fn text(&self, path: &str) -> (u16, reqwest::header::HeaderMap, String) {
        let request = self.client.get(format!("http://{}{path}", self.address));
        let answer = request.header("X-Admin-Token", TOKEN).send().await.unwrap();
        let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
        (status, headers, answer.text().await.unwrap())
    }

    pub async fn post(&self, path: &str, body: Value) -> (u16, Value) {
        let (status, body) = self.ask(Method::POST, path, Some(body)).await;
        (status.as_u16(), body)
    }

    pub async fn patch(&self, path: &str, body: Value) -> (u16, Value) {
        let (status, body) = self.ask(Method::PATCH, path, Some(body)).await;
        (status.as_u16(), body)
    }
}

#[tokio::test]
async fn a_key_lives_and_is_seen_at_once() {
    let sim = sim().await;
    let admin = Admin::start(&[sim.url()], "").await;
    let ask = async |key: &str| admin.gateway.ask_as(key).await.status;
    let (status, made) = admin
        .post(
            "/admin/v1/keys",
            json!({"name": "one", "user_id": "u1", "tier": "vip", "metadata": {"a": 1}}),
        )
        .await;
    assert_eq!(status, 201, "{made}");
    let (key, id) = (made["key"].as_str().unwrap(), made["id"].as_str().unwrap());
    assert!(key.starts_with("sk-llmproxy-") && key.len() == 44);
    assert_eq!(ask(key).await, 200);
    let at = format!("/admin/v1/keys/{id}");
    let seen = admin.get(&at).await;
    assert_eq!((&seen["user_id"], &seen["status"]), (&"u1".into(), &"active".into()));
    assert_eq!(seen["tier"], "vip");
    assert!(seen.get("key").is_none() && !seen.to_string().contains(key));

    let patch = async |change: Value| admin.ask(Method::PATCH, &at, Some(change)).await;
    assert_eq!(patch(json!({"status": "disabled"})).await.0, 200);
    assert_eq!(ask(key).await, 403);
    assert_eq!(patch(json!({"status": 0, "total_quota": 5, "used_quota": 5})).await.0, 200);
    assert_eq!(ask(key).await, 429);
    assert_eq!(
        patch(json!({"total_quota": null, "expires_at": "2020-01-01T00:00:00Z"})).await.0,
        200
    );
    assert_eq!(ask(key).await, 403);
    let (status, changed) = patch(json!({"expires_at": null})).await;
    assert_eq!(
        (status.as_u16(), &changed["name"], &changed["expires_at"]),
        (200, &"one".into(), &Value::Null)
    );
    assert_eq!(ask(key).await, 200);
    for bad in [
        json!({"status": "paused"}),
        json!({"nmae": "x"}),
        json!({"allowed_ips": ["x"]}),
        json!([]),
    ] {
        assert_eq!(patch(bad.clone()).await.0, 400, "{bad}");
    }

    let (status, rotated) = admin.post(&format!("{at}/rotate"), json!({})).await;
    assert_eq!(status, 200);
    let new = rotated["key"].as_str().unwrap();
    assert_eq!((ask(key).await, ask(new).await), (401, 200));
    assert_eq!(admin.ask(Method::DELETE, &at, None).await.0, 204);
    assert_eq!(ask(new).await, 401);
    for (method, path) in [
        (Method::GET, at.clone()),
        (Method::DELETE, at.clone()),
        (Method::POST, format!("{at}/rotate")),
    ] {
        let (status, body) = admin.ask(method, &path, None).await;
        assert_eq!(
            (status.as_u16(), &body["error"]["code"]),
            (404, &"unknown_key".into()),
            "{path}"
        );
    }
    for line in ["key created", "key changed", "key rotated", "key deleted"] {
        admin.gateway.logs(&format!("audit: {line} {id:?} from=127.0.0.1")).await;
    }
    let log = admin.gateway.log();
    assert!(!log.contains(key) && !log.contains(new) && !log.contains(TOKEN));
}

/// A second process on the same file sees a change when its own answer is too old.
#[tokio::test]
async fn another_replica_sees_a_change_in_time() {
    let sim = sim().await;
    let admin = Admin::start(&[sim.url()], "").await;
    let file = admin.folder.path().join("keys.db");
    let replica = format!(
        "admin: {{db_path: \"{}\"}}\nauth: {{pipeline: [{{type: builtin, cache_ttl: 300ms}}]}}\n",
        file.display()
    );
    let replica = Gateway::before(&[sim.url()], &replica).await;
    let (_, made) = admin.post("/admin/v1/keys", json!({})).await;
    let (key, id) = (made["key"].as_str().unwrap(), made["id"].as_str().unwrap());
    assert_eq!(replica.ask_as(key).await.status, 200);
    let (status, _) = admin.ask(Method::DELETE, &format!("/admin/v1/keys/{id}"), None).await;
    assert_eq!(status, 204);
    assert_eq!(admin.gateway.ask_as(key).await.status, 401);
    tokio::time::sleep(std::time::Duration::from_millis(350)).await;
    assert_eq!(replica.ask_as(key).await.status, 401);
}

#[tokio::test]
async fn keys_come_in_pages() {
    let sim = sim().await;
    let admin = Admin::start(&[sim.url()], "").await;
    for n in 0..25 {
        let spec = json!({"key": format!("sk-given-{n:04}"), "user_id": format!("u{}", n % 2)});
        assert_eq!(admin.post("/admin/v1/keys", spec).await.0, 201);
    }
    let page = admin.get("/admin/v1/keys").await;
    assert_eq!((page["keys"].as_array().unwrap().len(), &page["total"]), (20, &25.into()));
    let page = admin.get("/admin/v1/keys?offset=20&limit=100").await;
    assert_eq!((page["keys"].as_array().unwrap().len(), &page["limit"]), (5, &100.into()));
    assert_eq!(admin.get("/admin/v1/keys?user_id=u1&limit=1").await["total"], 12);
    for bad in ["limit=x", "limit=0", "limit=101", "offset=-1", "user=u1"] {
        assert_eq!(
            admin.ask(Method::GET, &format!("/admin/v1/keys?{bad}"), None).await.0,
            400,
            "{bad}"
        );
    }
    assert_eq!(admin.post("/admin/v1/keys", json!({"key": "sk-given-0001"})).await.0, 409);
    for bad in
        [json!({"key": "short"}), json!({"key": 7}), json!({"key": "sk-with space"}), json!("x")]
    {
        assert_eq!(admin.post("/admin/v1/keys", bad.clone()).await.0, 400, "{bad}");
    }
}

#[tokio::test]
async fn the_endpoints_of_version_0_5_answer_as_they_did() {
    let sim = sim().await;
    let admin = Admin::start(&[sim.url()], "").await;
    let post =
        async |name: &str, body: Value| admin.post(&format!("/admin/keys/{name}"), body).await;
    let key = "sk-legacy-0001";
    let entry = json!({"key": key, "name": "旧", "user_id": "u", "status": 0, "starts_at": "2025-01-01T00:00:00Z",
        "expires_at": "2100-01-01T00:00:00Z"});
    let (status, made) = post("create", entry.clone()).await;
    assert_eq!((status, &made["success"]), (200, &true.into()), "{made}");
    assert_eq!(admin.gateway.ask_as(key).await.status, 200);
    for (name, body, status) in [
        ("create", entry, 409),
        ("create", json!({"name": "x"}), 400),
        ("create", json!({"key": "sk-other-0001", "starts_at": "never"}), 400),
        ("update", json!({"key": "sk-unknown-1"}), 404),
        ("update", json!({}), 400),
        ("get", json!({"key": "sk-unknown-1"}), 404),
        ("delete", json!({"key": "sk-unknown-1"}), 404),
        ("sync", json!({"keys": []}), 400),
        ("sync", json!({"keys": [], "mode": "all"}), 400),
        ("nothing", json!({}), 404),
    ] {
        let (got, body) = post(name, body).await;
        assert_eq!(got, status, "{name}: {body}");
        assert!(
            body["success"] == false && body["message"].is_string() && body["error"].is_string()
        );
    }
    let (_, found) = post("get", json!({"key": key})).await;
    let data = &found["data"];
    assert_eq!((&data["status"], &data["expires_at"]), (&0.into(), &"2100-01-01T00:00:00Z".into()));
    assert_eq!(data["name"], "旧");
    assert!(!found.to_string().contains(key), "the key is not told back: {found}");

    // What is not said of a known key stays.
    let again = json!({"mode": "incremental", "keys": [{"key": key, "user_id": "v"}]});
    assert_eq!(post("sync", again).await.0, 200);
    let (_, found) = post("get", json!({"key": key})).await;
    assert_eq!((&found["data"]["user_id"], &found["data"]["name"]), (&"v".into(), &"旧".into()));
    assert_eq!(post("update", json!({"key": key, "status": 1})).await.0, 200);
    assert_eq!(admin.gateway.ask_as(key).await.status, 403);
    let (_, changed) =
        post("update", json!({"key": key, "status": 0, "expires_at": "", "name": null})).await;
    assert_eq!(
        (&changed["data"]["expires_at"], &changed["data"]["name"]),
        (&Value::Null, &"旧".into())
    );
    let keys = |names: &[&str]| names.iter().map(|n| json!({"key": n})).collect::<Vec<_>>();
    let (_, synced) =
        post("sync", json!({"mode": "incremental", "keys": keys(&["sk-second-01"])})).await;
    assert_eq!(synced["data"], json!({"created": 1, "updated": 0, "deleted": 0}));
    let (_, listed) = post("list", json!({})).await;
    assert_eq!(
        (listed["data"]["keys"].as_array().unwrap().len(), &listed["data"]["total"]),
        (2, &2.into())
    );
    let (_, synced) = post("sync", json!({"mode": "full", "keys": keys(&["sk-second-01"])})).await;
    assert_eq!(synced["data"], json!({"created": 0, "updated": 1, "deleted": 1}));
    assert_eq!(admin.gateway.ask_as(key).await.status, 401);
    assert_eq!(post("delete", json!({"key": "sk-second-01"})).await.0, 200);

    let (status, body) = admin.ask(Method::GET, "/admin/keys/list", None).await;
    assert_eq!((status.as_u16(), &body["success"]), (405, &false.into()));
}

#[tokio::test]
async fn only_the_token_opens_it() {
    let sim = sim().await;
    let admin = Admin::start(&[sim.url()], "").await;
    let wrong = "a-token-for-testz";
    for (name, value, status) in [
        (None, "", 401),
        (Some("X-Admin-Token"), wrong, 403),
        (Some("X-Admin-Token"), "", 403),
        (Some("Authorization"), "Bearer a-token-for-tests", 200),
        (Some("Authorization"), "Bearer x", 403),
        (Some("X-Admin-Token"), TOKEN, 200),
    ] {
        for path in ["/admin/v1/keys", "/admin/v1/openapi.json", "/admin/v1/config"] {
            let mut request = admin.client.get(format!("http://{}{path}", admin.address));
            if let Some(name) = name {
                request = request.header(name, value);
            }
            assert_eq!(request.send().await.unwrap().status(), status, "{name:?} {value} {path}");
        }
    }
    // Also for paths that are not there: nobody finds out by asking.
    let nothing = admin.client.get(format!("http://{}/nothing", admin.address)).send().await;
    assert_eq!(nothing.unwrap().status(), 401);
    // Not on the clients' listener.
    let mut client = admin.gateway.client().await;
    assert_eq!(client.get("/admin/v1/keys").await.status, 404);
    // A body is capped.
    let large = json!({"name": "x".repeat(1 << 20)});
    assert_eq!(admin.post("/admin/v1/keys", large).await.0, 413);
}

#[tokio::test]
async fn a_client_that_says_nothing_is_left() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let sim = sim().await;
    let admin = Admin::start(&[sim.url()], "").await;
    let mut stream = tokio::net::TcpStream::connect(admin.address).await.unwrap();
    stream.write_all(b"GET /admin/v1/keys HTTP/1.1\r\nX-Adm").await.unwrap();
    let mut rest = Vec::new();
    let ended = tokio::time::timeout(super::support::PATIENCE, stream.read_to_end(&mut rest)).await;
    assert!(ended.is_ok(), "the connection stays open");
}

#[tokio::test]
async fn backends_can_be_drained_and_watched() {
    let (one, two) = (sim().await, sim_with(|b| b.inter_token_ms = 100).await);
    let text = format!(
        "backends:\n  - {{url: \"{}\", name: one}}\n  - {{url: \"{}\"}}\n",
        one.url(),
        two.url()
    );
    let folder = tempfile::tempdir().unwrap();
    let address = free_address();
    let admin_section = format!(
        "admin: {{enabled: true, listen: \"{address}\", token: {TOKEN}, db_path: \"{}\"}}\n",
        folder.path().join("keys.db").display()
    );
    let gateway = Gateway::start(&format!("{text}{admin_section}")).await;
    let admin = Admin { gateway, address, client: http::client(), folder };
    let drain = async |method, name: &str| {
        admin.ask(method, &format!("/admin/v1/backends/{name}/drain"), None).await
    };
    let (status, body) = drain(Method::PUT, "one").await;
    assert_eq!((status.as_u16(), &body["draining"]), (200, &true.into()));
    for _ in 0..4 {
        assert_eq!(admin.gateway.ask_with("").await.status, 200);
    }
    assert_eq!((one.stats().requests(), two.stats().requests()), (0, 4));
    // It stays so through a reload, which the API can ask for.
    let (status, body) = admin.post("/admin/v1/config/reload", json!({})).await;
    assert_eq!((status, &body["generation"]), (200, &2.into()));
    let listed = admin.get("/admin/v1/backends").await;
    assert_eq!(listed["backends"][0]["draining"], true);
    let encoded = two.url().replace(':', "%3A").replace('/', "%2F");
    assert_eq!(drain(Method::PUT, &encoded).await.0, 200);
    assert_eq!(admin.gateway.ask_with("").await.status, 503);
    let mut client = admin.gateway.client().await;
    assert_eq!(client.get("/ready").await.status, 503);
    assert_eq!(drain(Method::DELETE, "one").await.0, 200);
    assert_eq!(admin.gateway.ask_with("").await.status, 200);
    assert_eq!(one.stats().requests(), 1);
    assert_eq!(drain(Method::PUT, "three").await.0, 404);

    assert_eq!(drain(Method::DELETE, &encoded).await.0, 200);
    assert_eq!(drain(Method::PUT, "one").await.0, 200);
    let mut stream = admin.gateway.client().await;
    stream.post("/v1/chat/completions", super::support::chat(true)).await;
    stream.head().await;
    assert_eq!(admin.get("/admin/v1/backends").await["backends"][1]["in_flight"], 1);
    stream.answer_rest().await;
    super::support::eventually("its place is given back", async || {
        admin.get("/admin/v1/backends").await["backends"][1]["in_flight"] == 0
    })
    .await;
}

#[tokio::test]
async fn the_configuration_is_told_without_its_secrets() {
    let sim = sim().await;
    let more = "usage_hook: {url: \"http://user:hidden-1@127.0.0.1:1/services/hidden-7?token=hidden-2\", headers: {Authorization: hidden-3}}\n\
                api_keys: [{key: sk-hidden-4-long-enough}]\n\
                storage: {databases: [{name: d, driver: mysql, dsn: \"mysql://u:hidden-5@h/d\"}], caches: [{name: c, addr: \"h:1\", password: hidden-6}]}\n";
    let admin = Admin::start(&[sim.url()], more).await;
    let shown = admin.get("/admin/v1/config").await;
    assert_eq!(shown["generation"], 1);
    assert_eq!(shown["config"]["usage_hook"]["url"], "http://127.0.0.1:1/[…]");
    assert_eq!(shown["config"]["usage_hook"]["retry"], 10);
    assert_eq!(shown["config"]["auth"]["pipeline"][0]["cache_ttl"], "10s");
    assert!(!shown.to_string().contains("hidden"), "{shown}");
    assert!(!shown.to_string().contains(TOKEN));
    assert!(shown["warnings"][0].as_str().unwrap().contains("api_keys"), "{}", shown["warnings"]);
    // A file that is not valid is told why, and changes nothing.
    admin.gateway.rewrite("backends: []\nnonsense: 1\n");
    let (status, body) = admin.post("/admin/v1/config/reload", json!({})).await;
    assert_eq!(status, 422);
    assert!(body["problems"].to_string().contains("nonsense"), "{body}");
    assert_eq!(admin.get("/admin/v1/config").await["generation"], 1);
}

#[tokio::test]
async fn a_request_that_nobody_remembers_cannot_be_explained() {
    let sim = sim().await;
    let admin = Admin::start(&[sim.url()], "").await;
    let explain = async |query: &str| {
        admin.ask(Method::GET, &format!("/admin/v1/explain{query}"), None).await
    };
    let (status, body) = explain("?request_id=req-1").await;
    assert_eq!(status, 404);
    assert!(body["error"]["message"].as_str().unwrap().contains("`routing.explain`"), "{body}");
    for bad in ["", "?request=req-1", "?request_id=a&more=b"] {
        assert_eq!(explain(bad).await.0, 400, "{bad}");
    }
}

#[tokio::test]
async fn the_root_lists_every_endpoint() {
    let sim = sim().await;
    let admin = Admin::start(&[sim.url()], "").await;
    let index = admin.get("/").await;
    assert_eq!(index, admin.get("/admin/v1/").await);
    let document = admin.get("/admin/v1/openapi.json").await;
    let operations = document["paths"].as_object().unwrap().iter().flat_map(|(path, item)| {
        let methods = item.as_object().unwrap().keys();
        methods.map(move |method| (method.to_uppercase(), path.clone()))
    });
    let listed = index["endpoints"].as_array().unwrap().iter().map(|endpoint| {
        let field = |name: &str| endpoint[name].as_str().unwrap().to_owned();
        let summary = field("summary");
        assert!(!summary.is_empty() && summary.len() < 100, "{endpoint}");
        (field("method"), field("path"))
    });
    let (mut operations, mut listed): (Vec<_>, Vec<_>) = (operations.collect(), listed.collect());
    operations.sort();
    listed.sort();
    assert_eq!(listed, operations);
    for path in ["/", "/admin/v1/"] {
        let answer = admin.client.get(format!("http://{}{path}", admin.address)).send().await;
        assert_eq!(answer.unwrap().status(), 401, "{path}");
    }
}

/// Schemathesis reads the document, makes requests that it allows and others that it does not, and
/// looks whether every answer is one that the document tells of.
#[tokio::test]
async fn the_openapi_document_tells_the_truth() {
    let sim = sim().await;
    let admin = Admin::start(&[sim.url()], "").await;
    let document = admin.get("/admin/v1/openapi.json").await;
    let served = llmproxy::admin::document().to_json().unwrap();
    assert_eq!(document, serde_json::from_str::<Value>(&served).unwrap());
    let paths: Vec<_> = document["paths"].as_object().unwrap().keys().cloned().collect();
    assert_eq!(paths.len(), 21, "{paths:?}");
    let report = tempfile::tempdir().unwrap();
    let url = format!("http://{}/admin/v1/openapi.json", admin.address);
    let done = tokio::process::Command::new(python::programs("tests/openapi").join("schemathesis"))
        .args(["run", &url, "--header", &format!("X-Admin-Token: {TOKEN}")])
        .args(["--max-examples", "20", "--seed", "7", "--workers", "1"])
        // What the document cannot say: which fields exclude each other, what a key must look like.
        .args(["--exclude-checks", "positive_data_acceptance,ignored_auth"])
        .args(["--suppress-health-check", "filter_too_much"])
        .arg("--no-color")
        .current_dir(report.path())
        .stdin(std::process::Stdio::null())
        .output()
        .await
        .unwrap();
    let told = String::from_utf8_lossy(&done.stdout);
    assert!(done.status.success(), "{told}\n{}", String::from_utf8_lossy(&done.stderr));
}

#[tokio::test]
async fn it_does_not_start_without_a_token() {
    for admin in
        ["{enabled: true}", "{enabled: true, token: \"\"}", "{enabled: true, token: short}"]
    {
        let text = format!("backends: [{{url: \"http://127.0.0.1:1\"}}]\nadmin: {admin}\n");
        let mut gateway = Gateway::spawn(&text, &[]);
        assert!(!gateway.ended().await.success());
        assert!(gateway.log().contains("admin.token"), "{}", gateway.log());
    }
}

#[tokio::test]
async fn the_level_of_the_log_can_be_changed_until_a_reload() {
    let sim = sim().await;
    let admin = Admin::start(&[sim.url()], "").await;
    const PATH: &str = "/admin/v1/log-level";
    assert_eq!(admin.get(PATH).await, json!({"level": "info"}));
    let set = async |body: Value| admin.ask(Method::POST, PATH, Some(body)).await;
    assert_eq!(set(json!({"level": "error"})).await, (StatusCode::OK, json!({"level": "error"})));
    admin.gateway.logs("log level changed to \"error\"").await;
    admin.gateway.ask_with("").await;
    for wrong in
        [json!({"level": "loud"}), json!({"level": "off"}), json!({}), json!({"levels": 1})]
    {
        let (status, body) = set(wrong.clone()).await;
        assert_eq!(status, 400, "{wrong}: {body}");
    }
    assert_eq!(admin.get(PATH).await, json!({"level": "error"}));
    assert!(!admin.gateway.log().contains("ACCESS"));
    let (status, _) = admin.ask(Method::POST, "/admin/v1/config/reload", None).await;
    assert_eq!(status, 200);
    assert_eq!(admin.get(PATH).await, json!({"level": "info"}));
}
