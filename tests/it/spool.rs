//! The spool of usage records: what becomes of records while nobody takes them, when there is no
//! room, and when files are damaged.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
};

use crate::support::{Gateway, Receiver, chat, eventually, free_address, sim, sim_with};

const PATH: &str = "/v1/chat/completions";

/// A request with a short answer, whatever the backend would say.
const SMALL: &str = r#"{"model":"sim-model","max_tokens":1,"messages":[]}"#;

/// `usage` with a webhook that comes back quickly.
fn usage(address: SocketAddr, spool: &str) -> String {
    format!(
        "log: {{access: false}}\n\
         usage:\n  spool: {{{spool}}}\n  reporters:\n    - {{type: webhook, max_backoff: 50ms, \
         webhook: {{url: \"http://{address}/usage\"}}}}\n"
    )
}

/// Asks so many times; all answers are whole.
async fn ask(gateway: &Gateway, n: usize) {
    let mut client = gateway.client().await;
    for _ in 0..n {
        assert_eq!(client.ask(PATH, chat(false)).await.status, 200);
    }
}

fn sequences(records: &[serde_json::Value]) -> Vec<u64> {
    records.iter().map(|record| record["sequence"].as_u64().unwrap()).collect()
}

#[tokio::test]
async fn a_receiver_that_is_away_all_the_time_gets_everything_in_order_when_it_comes() {
    let sim = sim().await;
    let address = free_address();
    let mut gateway = Gateway::before(&[sim.url()], &usage(address, "segment_size: 64KiB")).await;
    ask(&gateway, 200).await;
    // Also over a restart in good order.
    gateway.signal("TERM");
    assert!(gateway.ended().await.success());
    gateway.logs("200 usage records wait in the spool for the next start").await;
    gateway.revive().await;
    ask(&gateway, 100).await;
    assert!(gateway.segments().len() >= 3, "{:?}", gateway.segments());
    let receiver = Receiver::at(address).await;
    let records = receiver.wait_for(300).await;
    let expected: Vec<u64> = (1..=200).chain(1..=100).collect();
    assert_eq!(sequences(&records), expected);
    assert_ne!(records[0]["process"], records[299]["process"]);
    // What was delivered is not delivered again.
    gateway.signal("TERM");
    assert!(gateway.ended().await.success());
    gateway.revive().await;
    ask(&gateway, 1).await;
    let records = receiver.wait_for(301).await;
    assert_eq!(sequences(&records)[300..], [1]);
}

#[tokio::test]
async fn files_are_for_nobody_else_to_read() {
    use std::os::unix::fs::PermissionsExt;
    let sim = sim().await;
    let gateway = Gateway::before(&[sim.url()], &usage(free_address(), "")).await;
    ask(&gateway, 1).await;
    eventually("a record on the disk", async || {
        fs::metadata(&gateway.segments()[0]).unwrap().len() > 100
    })
    .await;
    let folder = gateway.path("data/usage");
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&folder), 0o700);
    for file in [gateway.segments()[0].clone(), folder.join("lock"), folder.join("places/webhook")]
    {
        assert_eq!(mode(&file), 0o600, "{}", file.display());
    }
}

#[tokio::test]
async fn without_a_spool_nothing_is_written_and_without_a_reporter_nothing_is_opened() {
    let sim = sim().await;
    let receiver = Receiver::start().await;
    let gateway = Gateway::before(&[sim.url()], &usage(receiver.address, "enabled: false")).await;
    ask(&gateway, 3).await;
    assert_eq!(sequences(&receiver.wait_for(3).await), [1, 2, 3]);
    let without = Gateway::before(&[sim.url()], "").await;
    ask(&without, 1).await;
    assert!(!gateway.path("data").exists() && !without.path("data").exists());
}

#[tokio::test]
async fn two_gateways_do_not_share_a_spool() {
    let sim = sim().await;
    let gateway = Gateway::before(&[sim.url()], &usage(free_address(), "")).await;
    let folder = gateway.path("data");
    let more = format!("data_dir: \"{}\"\n{}", folder.display(), usage(free_address(), ""));
    let mut second =
        Gateway::spawn(&format!("backends: [{{url: \"{}\"}}]\n{more}", sim.url()), &[]);
    assert!(!second.ended().await.success());
    second.logs("another llmproxy uses").await;
}

#[tokio::test]
async fn a_full_spool_refuses_new_requests_and_harms_none_under_way() {
    let sim = sim_with(|b| (b.inter_token_ms, b.tokens) = (2, 100_000)).await;
    let address = free_address();
    let spool = "segment_size: 64KiB, max_size: 256KiB";
    let gateway = Gateway::before(&[sim.url()], &usage(address, spool)).await;
    let mut stream = gateway.client().await;
    let long = r#"{"model":"sim-model","stream":true,"messages":[]}"#;
    stream.post(PATH, long).await;
    stream.head().await;
    let mut client = gateway.client().await;
    let mut accepted = 1;
    let refused = loop {
        let answer = client.ask(PATH, SMALL).await;
        if answer.status != 200 {
            break answer;
        }
        accepted += 1;
        assert!(accepted < 2000, "it is never full");
    };
    assert_eq!(refused.status, 503);
    assert_eq!(refused.json()["error"]["code"], "usage_spool_full");
    assert!(refused.header("retry-after").is_some());
    let ready = client.get("/ready").await;
    assert_eq!((ready.status, ready.text()), (503, "no room for usage records\n"));
    assert_eq!(client.get("/v1/models").await.status, 200);
    assert_eq!(gateway.metric("llmproxy_usage_spool_full").await, 1.0);
    gateway.logs("new requests are rejected until there is space").await;
    // Refusals need no room, and the stream goes on.
    for _ in 0..50 {
        assert_eq!(client.ask(PATH, SMALL).await.status, 503);
    }
    for _ in 0..20 {
        assert!(stream.chunk().await.is_some());
    }
    drop(stream);
    let receiver = Receiver::at(address).await;
    let records = receiver.wait_for(accepted).await;
    assert_eq!(sequences(&records), (1..=accepted as u64).collect::<Vec<_>>());
    eventually("requests are served again", async || client.ask(PATH, SMALL).await.status == 200)
        .await;
    assert_eq!(client.get("/ready").await.status, 200);
    for reason in ["queue_full", "spool_full", "damaged"] {
        let lost = format!("llmproxy_usage_records_lost_total{{reason=\"{reason}\"}}");
        assert_eq!(gateway.metric(&lost).await, 0.0, "{reason}");
    }
}

#[tokio::test]
async fn a_full_spool_may_drop_the_oldest_records_instead() {
    let sim = sim().await;
    let address = free_address();
    let spool = "segment_size: 64KiB, max_size: 256KiB, when_full: drop_oldest";
    let gateway = Gateway::before(&[sim.url()], &usage(address, spool)).await;
    let lost = "llmproxy_usage_records_lost_total{reason=\"spool_full\"}";
    let mut asked = 0;
    eventually("records are dropped", async || {
        ask(&gateway, 50).await;
        asked += 50;
        gateway.metric(lost).await > 0.0
    })
    .await;
    gateway.logs("usage records lost").await;
    eventually("what was dropped does not count as waiting", async || {
        let waiting = gateway.metric("llmproxy_usage_waiting{reporter=\"webhook\"}").await;
        waiting == asked as f64 - gateway.metric(lost).await
    })
    .await;
    let receiver = Receiver::at(address).await;
    eventually("the rest is delivered", async || {
        receiver.all().last().is_some_and(|record| record["sequence"] == asked)
    })
    .await;
    // Of those that were dropped some may have been on their way.
    let first = gateway.metric(lost).await as u64 + 1;
    let came = sequences(&receiver.all());
    assert!(came.is_sorted_by(|a, b| a < b));
    assert!(came.ends_with(&(first..=asked as u64).collect::<Vec<_>>()), "{first}: {came:?}");
    assert!(came.len() < asked);
}

#[tokio::test]
async fn a_damaged_segment_is_told_of_and_the_rest_is_delivered() {
    let sim = sim().await;
    let address = free_address();
    let mut gateway = Gateway::before(&[sim.url()], &usage(address, "segment_size: 64KiB")).await;
    ask(&gateway, 250).await;
    gateway.signal("TERM");
    assert!(gateway.ended().await.success());
    let files = gateway.segments();
    assert!(files.len() >= 3, "{files:?}");
    // A stretch of zeros across several records, as a bad disk leaves it.
    let mut bytes = fs::read(&files[1]).unwrap();
    bytes[10_000..14_096].fill(0);
    fs::write(&files[1], bytes).unwrap();
    gateway.revive().await;
    let receiver = Receiver::at(address).await;
    ask(&gateway, 1).await;
    // The first one of the second life comes last.
    eventually("all is delivered", async || {
        receiver.all().iter().filter(|record| record["sequence"] == 1).count() == 2
    })
    .await;
    let sequences = sequences(&receiver.all());
    let lost = 251 - sequences.len();
    assert!((3..12).contains(&lost), "{lost}");
    let damaged = "llmproxy_usage_records_lost_total{reason=\"damaged\"}";
    assert_eq!(gateway.metric(damaged).await as usize, lost);
    assert!(sequences[..sequences.len() - 1].is_sorted());
    gateway.logs("cannot be read: damaged").await;
}

#[tokio::test]
async fn reporters_come_and_go_with_the_configuration() {
    let sim = sim().await;
    let (first, second) = (Receiver::start().await, Receiver::start().await);
    let reporter = |name: &str, receiver: &Receiver| {
        format!(
            "    - {{name: {name}, type: webhook, webhook: {{url: \"http://{}/usage\"}}}}\n",
            receiver.address
        )
    };
    let text = |list: &[String]| {
        let reporters = if list.is_empty() { "" } else { "usage:\n  reporters:\n" };
        format!("backends: [{{url: \"{}\"}}]\n{reporters}{}", sim.url(), list.concat())
    };
    let gateway = Gateway::start(&text(&[])).await;
    ask(&gateway, 1).await;
    for (n, list) in [
        vec![reporter("a", &first)],
        vec![reporter("a", &first), reporter("b", &second)],
        vec![reporter("b", &second)],
    ]
    .iter()
    .enumerate()
    {
        gateway.rewrite(&text(list));
        gateway.logs(&format!("configuration {} is in force", n + 2)).await;
        ask(&gateway, 2).await;
    }
    // The first record was made when nobody wanted any, the last two when `a` was gone.
    assert_eq!(sequences(&second.wait_for(4).await), [3, 4, 5, 6]);
    assert_eq!(sequences(&first.wait_for(4).await), [1, 2, 3, 4]);
    gateway.rewrite(&format!("{}  spool: {{enabled: false}}\n", text(&[reporter("b", &second)])));
    gateway.logs("a change of usage.spool needs a restart").await;
}

/// Runs a gateway whose `data` is on a disk of its own, of so many KiB.
///
/// Where this process may not mount anything, its files may not become larger than a part of that
/// instead: writes fail in the same way.
struct SmallDisk {
    gateway: Gateway,
    mounted: bool,
}

impl SmallDisk {
    async fn start(configuration: &str) -> Self {
        let may = Command::new("unshare").args(["-rm", "true"]).status();
        let mounted = may.is_ok_and(|status| status.success());
        let script = match mounted {
            true => "mkdir -p data && mount -t tmpfs -o size=1m tmpfs data && exec \"$@\"",
            false => "ulimit -S -f 40 && exec \"$@\"",
        };
        let wrap: &[&str] = if mounted { &["unshare", "-rm"] } else { &[] };
        let wrap = [wrap, &["sh", "-c", script, "sh"]].concat();
        let gateway = Gateway::wrapped(configuration, &wrap).await;
        let disk = Self { gateway, mounted };
        if mounted {
            // Nothing is left of it.
            let mut filler = fs::File::create(disk.inside("data/filler")).unwrap();
            std::io::copy(&mut std::io::repeat(0), &mut filler).unwrap_err();
        }
        disk
    }

    /// A path as the gateway sees it.
    fn inside(&self, path: &str) -> PathBuf {
        let path = self.gateway.path(path);
        let pid = self.gateway.pid();
        PathBuf::from(format!("/proc/{pid}/root{}", path.display()))
    }

    /// There is room again.
    fn clear(&self) {
        if self.mounted {
            fs::remove_file(self.inside("data/filler")).unwrap();
            return;
        }
        let pid = format!("--pid={}", self.gateway.pid());
        let done = Command::new("prlimit").args([&pid, "--fsize=unlimited"]).status();
        assert!(done.unwrap().success());
    }
}

#[tokio::test]
async fn a_full_disk_refuses_new_requests_and_loses_nothing() {
    let sim = sim_with(|b| (b.inter_token_ms, b.tokens) = (2, 400)).await;
    let receiver = Receiver::start().await;
    let more = usage(receiver.address, "segment_size: 64KiB, max_size: 512KiB");
    let disk = SmallDisk::start(&format!("backends: [{{url: \"{}\"}}]\n{more}", sim.url())).await;
    let gateway = &disk.gateway;
    let mut stream = gateway.client().await;
    let body = r#"{"model":"sim-model","stream":true,"messages":[]}"#;
    stream.post(PATH, body).await;
    stream.head().await;
    let mut client = gateway.client().await;
    let mut accepted = 1;
    eventually("requests are refused", async || {
        let answer = client.ask(PATH, SMALL).await;
        accepted += usize::from(answer.status == 200);
        answer.status == 503 && answer.json()["error"]["code"] == "usage_spool_full"
    })
    .await;
    gateway.logs("cannot write to the usage spool").await;
    let mut text = String::new();
    while let Some(chunk) = stream.chunk().await.filter(|chunk| !chunk.is_empty()) {
        text.push_str(std::str::from_utf8(&chunk).unwrap());
    }
    assert!(text.contains("data: [DONE]"), "the stream ends as if nothing were");
    disk.clear();
    eventually("requests are served again", async || client.ask(PATH, SMALL).await.status == 200)
        .await;
    let records = receiver.wait_for(accepted + 1).await;
    assert_eq!(sequences(&records), (1..=accepted as u64 + 1).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_full_disk_may_cost_records_instead() {
    let sim = sim().await;
    let receiver = Receiver::start().await;
    let spool = "segment_size: 64KiB, max_size: 512KiB, when_full: drop_oldest";
    let more = usage(receiver.address, spool);
    let disk = SmallDisk::start(&format!("backends: [{{url: \"{}\"}}]\n{more}", sim.url())).await;
    let lost = "llmproxy_usage_records_lost_total{reason=\"spool_full\"}";
    let mut asked = 0;
    eventually("records are lost", async || {
        ask(&disk.gateway, 20).await;
        asked += 20;
        disk.gateway.metric(lost).await > 0.0
    })
    .await;
    disk.gateway.logs("usage records lost: cannot write to the usage spool").await;
    disk.clear();
    ask(&disk.gateway, 1).await;
    eventually("the last one arrives", async || {
        receiver.all().last().is_some_and(|record| record["sequence"] == asked + 1)
    })
    .await;
    let lost = disk.gateway.metric(lost).await as u64;
    assert_eq!(receiver.all().len() as u64, asked + 1 - lost, "the receiver sees the gap");
}
