//! The way of usage records to webhooks.

use base64::{Engine as _, prelude::BASE64_STANDARD};
use hmac::{Hmac, Mac};
use serde_json::Value;
use sha2::Sha256;

use crate::support::{Gateway, Receiver, chat, eventually, receiver::Attempt, sim};

const PATH: &str = "/v1/chat/completions";

/// A webhook in the list of reporters, that waits for moments only; with more keys of its own.
fn reporter(name: &str, to: &Receiver, webhook: &str, more: &str) -> String {
    format!(
        "    - {{name: {name}, type: webhook, max_backoff: 50ms, {more} webhook: {{url: \"{}\", {webhook}}}}}\n",
        to.url()
    )
}

fn reporters(list: &[String]) -> String {
    format!("usage:\n  reporters:\n{}", list.concat())
}

async fn ask(gateway: &Gateway, times: usize) {
    for _ in 0..times {
        assert_eq!(gateway.client().await.ask(PATH, chat(false)).await.status, 200);
    }
}

fn sequences(records: &[Value]) -> Vec<u64> {
    records.iter().map(|record| record["sequence"].as_u64().unwrap()).collect()
}

fn header<'a>(attempt: &'a Attempt, name: &str) -> &'a str {
    attempt.headers[name].to_str().unwrap()
}

/// The signature as a receiver works it out.
fn signature(key: &[u8], attempt: &Attempt) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).unwrap();
    let (id, timestamp) = (header(attempt, "webhook-id"), header(attempt, "webhook-timestamp"));
    mac.update(format!("{id}.{timestamp}.").as_bytes());
    mac.update(&attempt.body);
    format!("v1,{}", BASE64_STANDARD.encode(mac.finalize().into_bytes()))
}

/// The lines of the dead letters of a reporter.
fn dead(gateway: &Gateway, name: &str) -> Vec<Value> {
    let folder = gateway.file.parent().unwrap().join("data/usage/dead");
    let text = std::fs::read_to_string(folder.join(format!("{name}.jsonl"))).unwrap_or_default();
    // The last line may be half written.
    let whole = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
    whole.map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[tokio::test]
async fn a_record_is_signed_and_named() {
    let sim = sim().await;
    let receiver = Receiver::start().await;
    let webhook = "secret: \"whsec_c2lnbmVk plain-old-key\", \
                   headers: {Authorization: Bearer secret-token, Content-Type: application/vnd.test+json}";
    let hook = reporters(&[reporter("billing", &receiver, webhook, "")]);
    let gateway = Gateway::before(&[sim.url()], &hook).await;
    receiver.refuse(1);
    ask(&gateway, 1).await;
    let record = receiver.one().await;
    let attempts = receiver.requests();
    assert_eq!(attempts.len(), 2);
    for attempt in &attempts {
        let id = record["record_id"].as_str().unwrap();
        assert_eq!(header(attempt, "idempotency-key"), id);
        assert_eq!(header(attempt, "webhook-id"), id);
        let both = [b"signed".as_slice(), b"plain-old-key"].map(|key| signature(key, attempt));
        assert_eq!(header(attempt, "webhook-signature"), both.join(" "));
        let timestamp: i64 = header(attempt, "webhook-timestamp").parse().unwrap();
        assert!((jiff::Timestamp::now().as_second() - timestamp).abs() < 60);
        assert_eq!(header(attempt, "authorization"), "Bearer secret-token");
        assert_eq!(header(attempt, "content-type"), "application/vnd.test+json");
    }
    assert_eq!(attempts[0].body, attempts[1].body);
    let log = gateway.log();
    for secret in ["secret-token", "c2lnbmVk", "plain-old-key"] {
        assert!(!log.contains(secret), "{log}");
    }
}

#[tokio::test]
async fn records_gather_in_arrays() {
    let sim = sim().await;
    let (full, prompt) = (Receiver::start().await, Receiver::start().await);
    let hook = reporters(&[
        reporter("full", &full, "batch_size: 3, flush_interval: 1h", ""),
        reporter("prompt", &prompt, "batch_size: 3, flush_interval: 50ms", ""),
    ]);
    let mut gateway = Gateway::before(&[sim.url()], &hook).await;
    ask(&gateway, 1).await;
    assert!(
        serde_json::from_slice::<Vec<Value>>(&{
            prompt.wait_for(1).await;
            prompt.requests()[0].body.clone()
        })
        .is_ok_and(|records| records.len() == 1)
    );
    assert_eq!(full.attempts(), 0);
    let oldest = "llmproxy_usage_oldest_waiting_seconds{reporter=\"full\"}";
    eventually("what gathers gets older", async || gateway.metric(oldest).await > 0.0).await;
    ask(&gateway, 3).await;
    assert_eq!(sequences(&full.wait_for(3).await), [1, 2, 3]);
    let attempt = &full.requests()[0];
    assert!(header(attempt, "webhook-id").starts_with("batch_"));
    assert_eq!(header(attempt, "idempotency-key"), header(attempt, "webhook-id"));

    // The fourth does not wait for an hour when the gateway ends.
    gateway.signal("TERM");
    gateway.ended().await;
    assert_eq!(sequences(&full.all()), [1, 2, 3, 4]);
    assert_eq!(sequences(&prompt.all()), [1, 2, 3, 4]);
    assert_eq!(full.attempts(), 2);
    assert!(gateway.log().contains("stopped"));
    assert!(!gateway.log().contains("records wait in the spool"));
}

#[tokio::test]
async fn records_come_in_order_whatever_happens() {
    let sim = sim().await;
    let receiver = Receiver::start().await;
    let hook = reporters(&[reporter("billing", &receiver, "", "")]);
    let gateway = Gateway::before(&[sim.url()], &hook).await;
    let statuses = [500, 204, 204, 503, 401, 204, 302, 404, 204, 204, 429, 500];
    receiver.answer(statuses.map(|status| (status, None)));
    ask(&gateway, 20).await;
    let expected: Vec<u64> = (1..=20).collect();
    assert_eq!(sequences(&receiver.wait_for(20).await), expected);
    assert_eq!(receiver.attempts(), 27, "seven were not accepted");
    let delivered = "llmproxy_usage_delivered_total{reporter=\"billing\"}";
    eventually("all counted", async || gateway.metric(delivered).await == 20.0).await;
    let errors = "llmproxy_usage_delivery_errors_total{reporter=\"billing\"}";
    assert_eq!(gateway.metric(errors).await, 7.0);
    assert_eq!(gateway.metric("llmproxy_webhook_success_total").await, 20.0);
    assert_eq!(gateway.metric("llmproxy_webhook_failure_total").await, 0.0);
    // It fails several times within a minute, which is told once.
    let log = gateway.log();
    assert_eq!(log.matches("usage reporter billing: answered").count(), 1, "{log}");
    assert_eq!(log.matches("usage reporter billing works again").count(), 1, "{log}");
}

#[tokio::test]
async fn several_requests_at_a_time_lose_nothing() {
    let sim = sim().await;
    let receiver = Receiver::start().await;
    let webhook = "concurrency: 4, batch_size: 2, flush_interval: 10ms";
    let hook = reporters(&[reporter("billing", &receiver, webhook, "")]);
    let mut gateway = Gateway::before(&[sim.url()], &hook).await;
    receiver.answer([500, 204, 500, 500, 204, 500].map(|status| (status, None)));
    ask(&gateway, 30).await;
    let mut found = sequences(&receiver.wait_for(30).await);
    found.sort_unstable();
    assert_eq!(found, (1..=30).collect::<Vec<_>>());
    gateway.signal("TERM");
    gateway.ended().await;
    assert_eq!(receiver.all().len(), 30);
}

#[tokio::test]
async fn retry_after_is_obeyed() {
    let sim = sim().await;
    let receiver = Receiver::start().await;
    let hook = reporters(&[reporter("billing", &receiver, "", "")]);
    let gateway = Gateway::before(&[sim.url()], &hook).await;
    receiver.answer([(429, Some("1")), (503, Some("2"))]);
    ask(&gateway, 1).await;
    receiver.one().await;
    let at: Vec<_> = receiver.requests().iter().map(|attempt| attempt.at).collect();
    assert_eq!(at.len(), 3);
    assert!((at[1] - at[0]).as_secs_f64() >= 1.0, "{at:?}");
    assert!((at[2] - at[1]).as_secs_f64() >= 2.0, "{at:?}");
}

#[tokio::test]
async fn a_receiver_that_is_gone_is_left_alone_until_it_moves() {
    let sim = sim().await;
    let (gone, moved) = (Receiver::start().await, Receiver::start().await);
    let config = |to: &Receiver| {
        let hook = reporters(&[reporter("billing", to, "", "")]);
        format!("backends:\n  - url: \"{}\"\n{hook}", sim.url())
    };
    let gateway = Gateway::start(&config(&gone)).await;
    gone.always(Some(410));
    ask(&gateway, 1).await;
    let disabled = "llmproxy_usage_reporter_disabled{reporter=\"billing\"}";
    eventually("disabled", async || gateway.metric(disabled).await == 1.0).await;
    gateway.logs("usage reporter billing: answered 410 Gone: no more records are sent there").await;
    ask(&gateway, 4).await;
    let waiting = "llmproxy_usage_waiting{reporter=\"billing\"}";
    eventually("five wait", async || gateway.metric(waiting).await == 5.0).await;
    let oldest = "llmproxy_usage_oldest_waiting_seconds{reporter=\"billing\"}";
    eventually("they get older", async || gateway.metric(oldest).await > 1.0).await;
    assert_eq!(gone.attempts(), 1);

    gateway.rewrite(&config(&moved));
    gateway.signal("HUP");
    assert_eq!(sequences(&moved.wait_for(5).await), [1, 2, 3, 4, 5]);
    assert_eq!(gateway.metric(disabled).await, 0.0);
    eventually("none waits", async || gateway.metric(waiting).await == 0.0).await;
    eventually("and none is old", async || gateway.metric(oldest).await == 0.0).await;
    assert_eq!(gone.attempts(), 1);
}

#[tokio::test]
async fn a_receiver_that_is_gone_does_not_fill_the_spool() {
    let sim = sim().await;
    let (well, gone) = (Receiver::start().await, Receiver::start().await);
    gone.always(Some(410));
    let list = [reporter("well", &well, "", ""), reporter("gone", &gone, "", "")];
    // Records so large that a few fill a segment.
    let more = format!(
        "{}  spool: {{segment_size: 64KiB, max_size: 512KiB}}
auth: {{}}
api_keys: [{{key: sk-any, metadata: {{note: {}}}}}]
",
        reporters(&list),
        "x".repeat(15_000)
    );
    let gateway = Gateway::before(&[sim.url()], &more).await;
    let letters = "llmproxy_usage_dead_letters_total{reporter=\"gone\"}";
    // More than half of the room is 18 records, all of it 33.
    for n in 1..=5 {
        for _ in 0..10 {
            assert_eq!(gateway.ask_as("sk-any").await.status, 200);
        }
        well.wait_for(10 * n).await;
        let aside = (10 * n).saturating_sub(17) as f64;
        eventually("they are put aside", async || gateway.metric(letters).await >= aside).await;
    }
    let dead = dead(&gateway, "gone");
    assert!(dead.iter().enumerate().all(|(i, letter)| letter["index"] == i), "in order");
    assert_eq!(dead[0]["why"], "answered 410 Gone");
    assert_eq!(gone.attempts(), 1);
    assert_eq!(
        gateway.metric("llmproxy_usage_records_lost_total{reason=\"spool_full\"}").await,
        0.0
    );
}

#[tokio::test]
async fn without_a_spool_a_receiver_that_is_gone_costs_the_records() {
    let sim = sim().await;
    let receiver = Receiver::start().await;
    receiver.always(Some(410));
    let more = format!("usage: {{spool: {{enabled: false}}}}\n{}", receiver.hook());
    let gateway = Gateway::before(&[sim.url()], &more).await;
    ask(&gateway, 3).await;
    let lost = "llmproxy_usage_records_lost_total{reason=\"given_up\"}";
    eventually("all are lost", async || gateway.metric(lost).await == 3.0).await;
    let failures = "llmproxy_webhook_failure_total";
    eventually("and counted", async || gateway.metric(failures).await == 3.0).await;
    assert_eq!(receiver.attempts(), 1);
}

#[tokio::test]
async fn a_record_that_is_refused_holds_no_other_up() {
    let sim = sim().await;
    let receiver = Receiver::start().await;
    receiver.poison("\"poison\"");
    let webhook = "batch_size: 5, flush_interval: 1h, retry: 2";
    let hook = reporters(&[reporter("billing", &receiver, webhook, "")]);
    let config = format!("backends:\n  - {{url: \"{}\", models: [sim-model]}}\n{hook}", sim.url());
    let gateway = Gateway::start(&config).await;
    ask(&gateway, 2).await;
    let mut client = gateway.client().await;
    assert_eq!(client.ask(PATH, r#"{"model":"poison","messages":[]}"#).await.status, 404);
    ask(&gateway, 2).await;
    assert_eq!(sequences(&receiver.wait_for(4).await), [1, 2, 4, 5]);
    let letters = "llmproxy_usage_dead_letters_total{reporter=\"billing\"}";
    eventually("one is put aside", async || gateway.metric(letters).await == 1.0).await;
    let dead = dead(&gateway, "billing");
    assert_eq!(dead.len(), 1);
    assert_eq!(dead[0]["record"]["model"], "poison");
    assert_eq!(dead[0]["record"]["sequence"], 3);
    assert_eq!(dead[0]["index"], 2);
    assert_eq!(dead[0]["why"], "answered 422 Unprocessable Entity");
    assert!(dead[0]["at"].as_str().unwrap().parse::<jiff::Timestamp>().is_ok());
    let alone = |attempt: &&Attempt| {
        let records: Vec<Value> = serde_json::from_slice(&attempt.body).unwrap();
        records.len() == 1 && records[0]["model"] == "poison"
    };
    assert_eq!(receiver.requests().iter().filter(alone).count(), 3, "`retry` more than one");
    // The receiver has seen them before the gateway has seen its answer.
    eventually("all are counted", async || {
        gateway.metric("llmproxy_webhook_failure_total").await == 1.0
            && gateway.metric("llmproxy_webhook_success_total").await == 4.0
    })
    .await;
    gateway.logs("usage reporter billing: 1 records put aside in ").await;
}

#[tokio::test]
async fn a_record_that_is_too_old_is_put_aside_and_the_next_ones_are_tried() {
    let sim = sim().await;
    let receiver = Receiver::start().await;
    receiver.always(Some(500));
    // Long enough for the third one to be tried at all on a busy machine.
    let hook = reporters(&[reporter("billing", &receiver, "", "max_age: 3s,")]);
    let gateway = Gateway::before(&[sim.url()], &hook).await;
    ask(&gateway, 2).await;
    eventually("both are put aside", async || dead(&gateway, "billing").len() == 2).await;
    assert!(receiver.attempts() > 1);
    receiver.always(None);
    ask(&gateway, 1).await;
    assert_eq!(receiver.one().await["sequence"], 3);
    let dead = dead(&gateway, "billing");
    let indexes: Vec<_> = dead.iter().map(|letter| letter["index"].as_u64().unwrap()).collect();
    assert_eq!(indexes, [0, 1]);
}

#[tokio::test]
async fn a_receiver_that_is_away_holds_no_other_up() {
    let sim = sim().await;
    let (well, away) = (Receiver::start().await, Receiver::start().await);
    away.always(Some(503));
    let list = [reporter("well", &well, "", ""), reporter("away", &away, "", "")];
    let gateway = Gateway::before(&[sim.url()], &reporters(&list)).await;
    ask(&gateway, 10).await;
    let expected: Vec<u64> = (1..=10).collect();
    assert_eq!(sequences(&well.wait_for(10).await), expected);
    assert!(away.all().is_empty());
    let waiting = async |name: &str| {
        gateway.metric(&format!("llmproxy_usage_waiting{{reporter=\"{name}\"}}")).await
    };
    eventually("ten wait for one", async || waiting("away").await == 10.0).await;
    eventually("none waits for the other", async || waiting("well").await == 0.0).await;
    eventually("the queue is the longer one", async || {
        gateway.metric("llmproxy_webhook_queue_depth").await == 10.0
    })
    .await;

    away.always(None);
    assert_eq!(sequences(&away.wait_for(10).await), expected);
    gateway.logs("usage reporter away works again").await;
    assert_eq!(well.attempts(), 10);
}

#[tokio::test]
async fn the_end_waits_for_a_receiver_that_works_and_for_no_other() {
    let sim = sim().await;
    let (well, away) = (Receiver::start().await, Receiver::start().await);
    away.always(Some(503));
    let list = [reporter("well", &well, "", ""), reporter("away", &away, "", "")];
    let mut gateway = Gateway::before(&[sim.url()], &reporters(&list)).await;
    // The end waits for seconds, in which a slow machine delivers a few.
    ask(&gateway, 5).await;
    gateway.signal("TERM");
    assert!(gateway.ended().await.success());
    assert_eq!(sequences(&well.all()), (1..=5).collect::<Vec<_>>());
    gateway.logs("stopped; 5 usage records wait in the spool for the next start").await;
}
