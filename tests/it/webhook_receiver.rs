//! The example `webhook-receiver`, run as in its README.

use std::{
    path::Path,
    process::{Child, Command, Stdio},
};

use hmac::{Hmac, Mac};
use serde_json::Value;
use sha2::Sha256;

use crate::support::{Gateway, chat, eventually, free_address, http, python, sim};

const FOLDER: &str = "examples/webhook-receiver";
const KEY: &[u8] = b"a key for tests";

/// A process that is killed at the end of its test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// The signed header fields of a request sent this many seconds ago.
fn signed(id: &str, body: &str, key: &[u8], seconds_ago: i64) -> [(&'static str, String); 3] {
    use base64::{Engine as _, prelude::BASE64_STANDARD};
    let timestamp = jiff::Timestamp::now().as_second() - seconds_ago;
    let mut mac = Hmac::<Sha256>::new_from_slice(key).unwrap();
    mac.update(format!("{id}.{timestamp}.{body}").as_bytes());
    let signature = BASE64_STANDARD.encode(mac.finalize().into_bytes());
    [
        ("webhook-id", id.to_owned()),
        ("webhook-timestamp", timestamp.to_string()),
        ("webhook-signature", format!("v1,AAAA v1,{signature}")),
    ]
}

async fn send(url: &str, headers: [(&'static str, String); 3], body: &str) -> u16 {
    let mut request = http::client().post(url).body(body.to_owned());
    for (name, value) in headers {
        request = request.header(name, value);
    }
    request.send().await.unwrap().status().as_u16()
}

async fn totals(root: &str) -> Value {
    let text = http::get(format!("{root}/totals")).await.unwrap().text().await.unwrap();
    serde_json::from_str(&text).unwrap()
}

#[tokio::test]
async fn records_are_verified_and_stored_once() {
    use base64::{Engine as _, prelude::BASE64_STANDARD};
    let programs = tokio::task::spawn_blocking(|| python::programs(FOLDER)).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let address = free_address();
    let secret = format!("whsec_{}", BASE64_STANDARD.encode(KEY));
    let receiver = Command::new(programs.join("python"))
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join(FOLDER).join("receiver.py"))
        .env("WEBHOOK_SECRET", format!("an-old-one {secret}"))
        .env("DATABASE", folder.path().join("usage.db"))
        .env("PORT", address.port().to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    let _receiver = Running(receiver.unwrap());
    let root = format!("http://{address}");
    eventually("the receiver answers", async || http::get(format!("{root}/totals")).await.is_ok())
        .await;
    let url = format!("{root}/llm-usage");

    let sim = sim().await;
    let env =
        [("BACKEND_URL", sim.url()), ("WEBHOOK_URL", url.clone()), ("WEBHOOK_SECRET", secret)];
    let gateway = Gateway::example("webhook-receiver", &env).await;
    for _ in 0..3 {
        let answer = gateway.client().await.ask("/v1/chat/completions", chat(false)).await;
        assert_eq!(answer.status, 200);
    }
    eventually("three records", async || totals(&root).await["totals"][0]["requests"] == 3).await;
    let sums = totals(&root).await;
    assert_eq!(sums["totals"][0]["total_tokens"], 75);
    assert_eq!(sums["totals"][0]["model"], "sim-model");
    assert_eq!(sums["missing"], serde_json::json!([]));

    // One record, sent twice by the test.
    let record = |sequence: u64| {
        format!(
            r#"{{"record_id":"rec_{sequence}","process":"gw_hand","sequence":{sequence},"timestamp":"2026-11-21T00:00:00.000Z","user_id":"u","model":"m","prompt_tokens":1,"completion_tokens":2,"total_tokens":3}}"#
        )
    };
    let first = record(5);
    let headers = signed("rec_5", &first, KEY, 0);
    assert_eq!(send(&url, headers.clone(), &first).await, 204);
    assert_eq!(send(&url, headers.clone(), &first).await, 204);
    // Then in an array, with a missing sequence number.
    let several = format!("[{},{}]", record(5), record(8));
    assert_eq!(send(&url, signed("rec_5-2", &several, KEY, 0), &several).await, 204);
    let sums = totals(&root).await;
    assert_eq!(sums["totals"][1]["requests"], 2, "{sums}");
    assert_eq!(sums["missing"], serde_json::json!([{"process": "gw_hand", "first": 6, "last": 7}]));

    // Modified, signed with another key, too old, not a record.
    assert_eq!(send(&url, headers, &record(6)).await, 401);
    assert_eq!(send(&url, signed("rec_6", &record(6), b"other", 0), &record(6)).await, 401);
    assert_eq!(send(&url, signed("rec_6", &record(6), KEY, 400), &record(6)).await, 401);
    assert_eq!(send(&url, signed("rec_6", &record(6), KEY, -400), &record(6)).await, 401);
    for bad in ["{}", "7", "[{}]", "not json", "[null]"] {
        assert_eq!(send(&url, signed("rec_6", bad, KEY, 0), bad).await, 422, "{bad}");
    }
    assert_eq!(totals(&root).await, sums);
}
