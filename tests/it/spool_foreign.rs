//! Files that were put into the folder of a spool and do not belong there: nobody's records are
//! passed over in silence.

use std::{collections::BTreeSet, fs, net::SocketAddr, process::Command};

use llmproxy::sim::Sim;

use super::support::{Gateway, Receiver, chat, eventually, free_address, sim};

/// A gateway with a webhook that comes back quickly, and room for several files of its log.
async fn gateway(sim: &Sim, address: SocketAddr) -> Gateway {
    let usage = format!(
        "log: {{access: false}}\n\
         usage:\n  spool: {{segment_size: 64KiB}}\n  reporters:\n    - {{type: webhook, max_backoff: 50ms, \
         webhook: {{url: \"http://{address}/usage\"}}}}\n"
    );
    Gateway::before(&[sim.url()], &usage).await
}

async fn ask(gateway: &Gateway, n: usize) {
    let mut client = gateway.client().await;
    for _ in 0..n {
        assert_eq!(client.ask("/v1/chat/completions", chat(false)).await.status, 200);
    }
}

async fn stop(gateway: &mut Gateway) {
    gateway.signal("TERM");
    assert!(gateway.ended().await.success());
}

/// What `usage verify` says, and whether all is well.
fn verify(gateway: &Gateway) -> (String, bool) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_llmproxy"));
    command.args(["usage", "verify", "--config"]).arg(gateway.path("llmproxy.yaml"));
    let done = command.output().unwrap();
    (String::from_utf8_lossy(&done.stdout).into_owned(), done.status.success())
}

#[tokio::test]
async fn a_segment_of_another_gateway_is_told_of_and_costs_no_record() {
    let sim = sim().await;
    let (address, nowhere) = (free_address(), free_address());
    let (mut mine, mut other) = (gateway(&sim, address).await, gateway(&sim, nowhere).await);
    ask(&mine, 200).await;
    ask(&other, 30).await;
    stop(&mut mine).await;
    stop(&mut other).await;
    assert!(mine.segments().len() >= 2);
    // As it stands where the first file of the log would be continued.
    let (from, to) =
        (&other.segments()[0], mine.path("data/usage").join(format!("{:020}.log", 20)));
    fs::copy(from, &to).unwrap();
    assert!(!verify(&mine).1);
    mine.revive().await;
    mine.logs("does not belong to the usage spool: its records clash with those of another file")
        .await;
    let adopted = async || mine.metric("llmproxy_usage_spool_adopted_total").await;
    assert_eq!(adopted().await as usize, 30);
    assert_eq!(mine.metric("llmproxy_usage_spool_foreign_files").await as usize, 1);
    let receiver = Receiver::at(address).await;
    let ids = || -> BTreeSet<String> {
        receiver.all().iter().map(|record| record["record_id"].to_string()).collect()
    };
    eventually("all records of both are delivered", async || ids().len() == 230).await;
    let damaged = "llmproxy_usage_records_lost_total{reason=\"damaged\"}";
    assert_eq!(mine.metric(damaged).await as usize, 0);
    assert!(mine.path("data/usage/foreign").join(format!("{:020}.log", 20)).exists());
    assert!(!to.exists());
    let (said, _) = verify(&mine);
    assert!(!said.contains("missing in the spool"), "{said}");
}

#[tokio::test]
async fn copies_of_the_logs_own_files_are_told_of_and_delivered_once() {
    let sim = sim().await;
    let address = free_address();
    let mut gateway = gateway(&sim, address).await;
    ask(&gateway, 200).await;
    stop(&mut gateway).await;
    let folder = gateway.path("data/usage");
    let first = gateway.segments()[0].clone();
    for name in [
        format!("{:020}.log", 7),
        format!("{:020}.log", 5000),
        "old.log".to_owned(),
        format!("{:020}.log.bak", 0),
    ] {
        fs::copy(&first, folder.join(name)).unwrap();
    }
    let (said, good) = verify(&gateway);
    assert!(!good && said.contains("old.log: does not belong to the spool"), "{said}");
    gateway.revive().await;
    gateway.logs("old.log does not belong to the usage spool: its records are not delivered").await;
    let receiver = Receiver::at(address).await;
    eventually("all is delivered", async || receiver.all().len() >= 200).await;
    ask(&gateway, 1).await;
    eventually("the last one comes", async || receiver.all().len() >= 201).await;
    assert_eq!(receiver.all().len(), 201, "none twice");
    assert_eq!(gateway.metric("llmproxy_usage_spool_adopted_total").await as usize, 0);
    assert_eq!(gateway.metric("llmproxy_usage_spool_foreign_files").await as usize, 4);
}
