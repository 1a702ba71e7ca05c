//! The usage store through the admin API.

use std::{os::unix::fs::MetadataExt, path::Path};

use llmproxy::usage::store::PageCursor;
use reqwest::Method;
use serde_json::{Value, json};

use super::{
    super::{
        admin::Admin,
        support::{eventually, sim},
    },
    Process, record, with,
};

/// A gateway whose built-in table is this file.
async fn admin_with(path: &Path, backend: &str) -> Admin {
    let more = format!(
        "usage: {{reporters: [{{type: builtin, builtin: {{path: \"{}\"}}}}]}}\n",
        path.display()
    );
    Admin::start(&[backend.to_owned()], &more).await
}

#[tokio::test]
async fn requests_are_told_of_without_any_configuration() {
    let sim = sim().await;
    let admin = Admin::start(&[sim.url()], "").await;
    let file = admin.gateway.file.with_file_name("data").join("usage.db");
    let key = json!({"name": "one", "user_id": "u1", "team": "blue"});
    let (_, key) = admin.post("/admin/v1/keys", key).await;
    for _ in 0..3 {
        assert_eq!(admin.gateway.ask_as(key["key"].as_str().unwrap()).await.status, 200);
    }
    assert_eq!(admin.gateway.ask_as("sk-unknown").await.status, 401);
    eventually("all are told of", async || {
        admin.get("/admin/v1/usage?group_by=user").await["groups"][1]["requests"] == 3
    })
    .await;
    assert_eq!(std::fs::metadata(&file).unwrap().mode() & 0o777, 0o600);
    let found = admin.get("/admin/v1/usage?user_id=u1&limit=2").await;
    let record = &found["records"][0];
    assert_eq!((&record["team"], &record["key_id"]), (&json!("blue"), &key["id"]));
    assert_eq!((&record["outcome"], &record["model"]), (&json!("complete"), &json!("sim-model")));
    let next = found["next"].as_str().unwrap();
    let rest = admin.get(&format!("/admin/v1/usage?user_id=u1&limit=2&cursor={next}")).await;
    assert_eq!((rest["records"].as_array().unwrap().len(), &rest["next"]), (1, &Value::Null));
    let groups = admin.get("/admin/v1/usage?group_by=user,day,model&user_id=u1").await;
    let group = &groups["groups"][0];
    assert_eq!((&group["user_id"], &group["requests"]), (&json!("u1"), &json!(3)));
    assert_eq!((&group["model"], &group["cost"]), (&json!("sim-model"), &Value::Null));
    assert!(group.get("team").is_none() && groups.get("records").is_none(), "{groups}");
    // They are in the table a moment before the reporter has noted that.
    eventually("none waits", async || {
        admin.get("/admin/v1/usage/reporters").await["reporters"][0]["waiting"] == 0
    })
    .await;
    let stand = admin.get("/admin/v1/usage/reporters").await;
    assert_eq!(stand["spool"]["end"], 4, "{stand}");
    let reporter = &stand["reporters"][0];
    assert_eq!((&reporter["name"], &reporter["type"]), (&json!("builtin"), &json!("builtin")));
    assert_eq!((&reporter["state"], &reporter["waiting"]), (&json!("delivering"), &json!(0)));
}

#[tokio::test]
async fn what_cannot_be_asked_is_refused() {
    let sim = sim().await;
    let folder = tempfile::tempdir().unwrap();
    let admin = admin_with(&folder.path().join("usage.db"), &sim.url()).await;
    let ask = async |query: &str| {
        let (status, body) = admin.ask(Method::GET, &format!("/admin/v1/{query}"), None).await;
        (status.as_u16(), body["error"]["code"].as_str().unwrap_or_default().to_owned())
    };
    let group = PageCursor::Group(vec![("team".to_owned(), "a".to_owned())]).encode();
    for (query, code) in [
        ("usage?limit=0", "invalid_value"),
        ("usage?limit=1001", "invalid_value"),
        ("usage?limit=many", "invalid_query"),
        ("usage?from=yesterday", "invalid_value"),
        ("usage?to=2026-13-01", "invalid_value"),
        ("usage?group_by=shoe", "invalid_value"),
        ("usage?group_by=", "invalid_value"),
        ("usage?cursor=x", "invalid_value"),
        (&format!("usage?cursor={group}"), "invalid_value"),
        ("usage?outcome=fine", "invalid_query"),
        ("usage?stream=perhaps", "invalid_query"),
        ("usage?user=u", "invalid_query"),
        ("usage/export?format=xml", "invalid_query"),
        ("usage/export?limit=5", "invalid_query"),
        ("usage/export?from=x", "invalid_value"),
    ] {
        assert_eq!(ask(query).await, (400, code.to_owned()), "{query}");
    }
    for fine in ["usage?from=2026-11-21&to=2026-11-21T12:00:00%2B01:00", "usage?stream=true"] {
        assert_eq!(ask(fine).await.0, 200, "{fine}");
    }
    let off = Admin::start(&[sim.url()], "usage: {store: none}\n").await;
    let unusable = "usage: {reporters: [{type: database, database: {driver: mysql, \
                    dsn: \"mysql://u:hidden@127.0.0.1:1/d\"}}]}\n";
    let away = Admin::start(&[sim.url()], unusable).await;
    for path in ["usage", "usage?group_by=day", "usage/export"] {
        let (status, body) = off.ask(Method::GET, &format!("/admin/v1/{path}"), None).await;
        assert_eq!((status.as_u16(), &body["error"]["code"]), (404, &json!("usage_store_off")));
        let (status, body) = away.ask(Method::GET, &format!("/admin/v1/{path}"), None).await;
        assert_eq!((status.as_u16(), &body["error"]["code"]), (503, &json!("store_failed")));
        assert!(!body.to_string().contains("127.0.0.1"), "{body}");
    }
    away.gateway.logs("admin: the usage store: ").await;
    assert!(!away.gateway.log().contains("hidden"));
}

#[tokio::test]
async fn records_are_exported() {
    let sim = sim().await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("usage.db");
    let odd = with(record(7), json!({"user_id": "a,\"b\"\nc 用户", "key_name": ""}));
    let mut records: Vec<_> = (0..2300).map(record).collect();
    records[7] = odd;
    let process = Process::file(&path);
    process.put(&records).await;
    let admin = admin_with(&path, &sim.url()).await;
    records.reverse();
    let (status, headers, text) = admin.text("/admin/v1/usage/export?format=jsonl").await;
    assert_eq!((status, headers["content-type"].as_bytes()), (200, &b"application/x-ndjson"[..]));
    assert_eq!(headers["content-disposition"], "attachment; filename=\"usage.jsonl\"");
    let told: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let clean = |record: &Value| {
        let mut record = record.as_object().unwrap().clone();
        record.retain(|_, value| value != "");
        record
    };
    assert_eq!(told.len(), records.len());
    for (told, put) in told.iter().zip(&records) {
        assert_eq!(clean(told), clean(put));
    }
    let (status, headers, text) = admin.text("/admin/v1/usage/export").await;
    assert_eq!(
        (status, headers["content-type"].as_bytes()),
        (200, &b"text/csv; charset=utf-8"[..])
    );
    let mut reader = csv::Reader::from_reader(text.as_bytes());
    let header = reader.headers().unwrap().clone();
    let lines: Vec<_> = reader.records().map(Result::unwrap).collect();
    assert_eq!(lines.len(), records.len());
    for (line, put) in lines.iter().zip(&records) {
        for (name, cell) in header.iter().zip(line) {
            let text = put[name].as_str().map_or_else(|| put[name].to_string(), str::to_owned);
            assert_eq!(cell, text, "{name}");
        }
    }
    let few = "/admin/v1/usage/export?from=2026-11-21T00:01:00Z&to=2026-11-21T00:03:00Z";
    assert_eq!(admin.text(few).await.2.lines().count(), 3);
    let none = "/admin/v1/usage/export?user_id=nobody";
    assert_eq!(admin.text(none).await.2.lines().count(), 1);
}
