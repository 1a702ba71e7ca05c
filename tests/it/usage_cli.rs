//! `llmproxy usage`: on spools that a gateway has written.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Stdio,
};

use llmproxy::{sim::Sim, usage::spool::Archive};
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::Command,
    time::timeout,
};

use super::support::{Gateway, PATIENCE, Receiver, eventually, free_address, saying, sim};

/// A reporter that is always there: a file.
const FILE: &str = "usage:
  reporters:
    - {name: ledger, type: file, file: {path: ledger.jsonl}}
";

/// What a command has said, and how it has ended.
#[derive(Debug)]
struct Said {
    code: i32,
    out: String,
    err: String,
}

impl Said {
    fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }

    /// What stands on each line.
    fn lines(&self) -> Vec<&str> {
        self.out.lines().collect()
    }
}

fn command(config: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_llmproxy"));
    command.arg("usage").arg(args[0]).arg("--config").arg(config).args(&args[1..]);
    command.env_remove("RUST_LOG").stdin(Stdio::null()).kill_on_drop(true);
    command
}

async fn ended(mut command: Command) -> Said {
    let output = timeout(PATIENCE, command.output()).await.expect("it ends").unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    let code = output.status.code().unwrap();
    Said { code, out: text(output.stdout), err: text(output.stderr) }
}

/// Runs `llmproxy usage`.
async fn usage(config: &Path, args: &[&str]) -> Said {
    ended(command(config, args)).await
}

/// A gateway that has written so many records, which are all in its ledger.
async fn written(n: usize, more: &str) -> (Gateway, Sim) {
    let sim = sim().await;
    let gateway = Gateway::before(&[sim.url()], &format!("{FILE}{more}")).await;
    for _ in 0..n {
        assert_eq!(gateway.ask_as("sk-any").await.status, 200);
    }
    let ledger = gateway.file.with_file_name("ledger.jsonl");
    eventually("all are in the ledger", async || lines(&ledger).len() == n).await;
    (gateway, sim)
}

fn lines(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap_or_default();
    // The last one may be half written.
    let whole = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
    whole.map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The folder of the spool of a gateway.
fn spool(gateway: &Gateway) -> PathBuf {
    gateway.file.with_file_name("data").join("usage")
}

/// A configuration beside that of a gateway: with a reporter `late` that posts to a URL.
fn late(gateway: &Gateway, url: &str) -> PathBuf {
    let text = fs::read_to_string(&gateway.file).unwrap();
    let late = format!(
        "{FILE}    - {{name: late, type: webhook, webhook: {{url: \"{url}\", retry: 0}}}}\n"
    );
    let path = gateway.file.with_file_name("late.yaml");
    fs::write(&path, text.replace(FILE, &late)).unwrap();
    path
}

fn sequences(records: &[Value]) -> Vec<u64> {
    records.iter().map(|record| record["sequence"].as_u64().unwrap()).collect()
}

#[tokio::test]
async fn status_tells_how_far_each_reporter_has_come() {
    let away = free_address();
    let away =
        format!("    - {{type: webhook, webhook: {{url: \"http://{away}/?token=hidden\"}}}}\n");
    let (mut gateway, _sim) = written(3, &away).await;
    let status = async || usage(&gateway.file, &["status", "--json"]).await.json();
    eventually("the place of the ledger is kept", async || {
        status().await["reporters"][0]["next"] == 3
    })
    .await;
    let told = status().await;
    let log = &told["spool"];
    assert_eq!((&log["first"], &log["end"], &log["segments"]), (&0.into(), &3.into(), &1.into()));
    assert_eq!(log["bytes"], fs::metadata(&gateway.segments()[0]).unwrap().len());
    assert_eq!(log["max_bytes"], 1 << 30);
    assert!(log["oldest"].as_str().unwrap() <= log["newest"].as_str().unwrap(), "{told}");
    let ledger = &told["reporters"][0];
    assert_eq!((&ledger["name"], &ledger["type"]), (&"ledger".into(), &"file".into()));
    assert_eq!((&ledger["waiting"], &ledger["dead_letters"]), (&0.into(), &0.into()));
    assert!(ledger["oldest_waiting_seconds"].is_null());
    let webhook = &told["reporters"][1];
    assert_eq!((&webhook["name"], &webhook["waiting"]), (&"webhook".into(), &3.into()));
    assert_eq!(webhook["oldest_waiting"], log["oldest"]);
    assert!(webhook["oldest_waiting_seconds"].as_f64().unwrap() >= 0.0);

    // The same when the gateway does not run, for people.
    gateway.signal("KILL");
    gateway.ended().await;
    let said = usage(&gateway.file, &["status"]).await;
    assert_eq!(said.code, 0, "{said:?}");
    let lines = said.lines();
    assert!(lines[0].starts_with("spool ") && lines[0].ends_with("/data/usage"), "{said:?}");
    assert!(lines[2].starts_with("records  3 records: #0 of 20"), "{said:?}");
    let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(words(lines[5]), ["ledger", "file", "#3", "0", "-", "0"]);
    assert_eq!(words(lines[6])[..4], ["webhook", "webhook", "#0", "3"]);
    assert!(!said.out.contains("hidden"), "{said:?}");

    // One that is not configured any more, and one that has not begun.
    let text = fs::read_to_string(&gateway.file).unwrap();
    gateway.rewrite(
        &text.replace("{type: webhook", "{name: other, type: webhook").replace("listen:", "#"),
    );
    let told = usage(&gateway.file, &["status", "--json"]).await.json();
    let [other, webhook] = &told["reporters"].as_array().unwrap()[1..] else { panic!("{told}") };
    assert_eq!(
        (&other["name"], &other["problem"]),
        (&"other".into(), &"it has not delivered anything yet".into())
    );
    assert_eq!((&webhook["name"], &webhook["type"]), (&"webhook".into(), &Value::Null));
    assert_eq!(webhook["waiting"], 3);
}

#[tokio::test]
async fn without_a_spool_the_commands_say_so() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("llmproxy.yaml");
    let backend = "backends: [{url: \"http://127.0.0.1:9\"}]\n";
    let missing = "there is no spool in ";
    fs::write(&config, format!("{backend}{FILE}")).unwrap();
    let said = usage(&config, &["status"]).await;
    assert!(said.code == 1 && said.out.starts_with(missing), "{said:?}");
    assert!(said.out.contains("\nledger "), "{said:?}");
    let said = usage(&config, &["status", "--json"]).await;
    assert_eq!((said.code, &said.json()["spool"]), (1, &Value::Null));
    for args in [&["tail"][..], &["verify"], &["replay", "--sink", "ledger"]] {
        let said = usage(&config, args).await;
        assert!(said.code == 2 && said.err.contains(missing), "{said:?}");
    }

    fs::write(&config, format!("{backend}usage: {{spool: {{enabled: false}}}}\n")).unwrap();
    let said = usage(&config, &["status"]).await;
    assert_eq!(said.code, 0);
    assert!(said.out.contains("records wait only in memory"), "{said:?}");
    assert!(said.out.contains("no reporter is configured"), "{said:?}");
    let said = usage(&config, &["verify"]).await;
    assert!(said.code == 2 && said.err.contains("records wait only in memory"), "{said:?}");

    fs::write(&config, "nonsense: 1\n").unwrap();
    let said = usage(&config, &["verify"]).await;
    assert!(said.code == 2 && said.err.contains("nonsense"), "{said:?}");
}

#[tokio::test]
async fn tail_shows_the_latest_records() {
    let (gateway, _sim) = written(4, "").await;
    let said = usage(&gateway.file, &["tail", "-n", "2"]).await;
    assert_eq!(said.code, 0, "{said:?}");
    let [third, fourth] = said.lines()[..] else { panic!("{said:?}") };
    assert!(third.starts_with("#2 20") && fourth.starts_with("#3 20"), "{said:?}");
    assert!(fourth.contains(" 200 complete "), "{said:?}");
    assert!(fourth.contains(" model=\"sim-model\" tokens=9+16 rec_"), "{said:?}");

    let said = usage(&gateway.file, &["tail", "--raw"]).await;
    let raw: Vec<Value> = said.lines().iter().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(raw, lines(&gateway.file.with_file_name("ledger.jsonl")));

    let mut following = command(&gateway.file, &["tail", "-n", "1", "-f", "--raw"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut shown = BufReader::new(following.stdout.take().unwrap()).lines();
    for n in 4..=6 {
        let line = timeout(PATIENCE, shown.next_line()).await.expect("a line").unwrap().unwrap();
        let record: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(record["sequence"], n);
        assert_eq!(gateway.ask_as("sk-any").await.status, 200);
    }
    following.kill().await.unwrap();
}

#[tokio::test]
async fn records_are_sent_again() {
    let (gateway, _sim) = written(5, "").await;
    let receiver = Receiver::start().await;
    let config = late(&gateway, &format!("http://{}/usage", receiver.address));
    let replay = async |args: &[&str]| {
        let all = [&["replay", "--sink", "late"], args].concat();
        usage(&config, &all).await
    };
    let said = replay(&["--dry-run"]).await;
    assert!(said.code == 0 && said.out.starts_with("5 records: #0 of 20"), "{said:?}");
    assert_eq!(receiver.attempts(), 0);

    receiver.refuse(1);
    let said = replay(&[]).await;
    assert_eq!(
        (said.code, said.lines()),
        (0, vec!["5 records accepted by late, 0 refused, 0 not sent"])
    );
    assert!(said.err.contains("500 Internal Server Error; retrying in 500ms"), "{said:?}");
    assert_eq!(receiver.all(), lines(&gateway.file.with_file_name("ledger.jsonl")));

    let said = replay(&["--from", "#1", "--to", "#3"]).await;
    assert_eq!(said.out, "2 records accepted by late, 0 refused, 0 not sent\n", "{said:?}");
    assert_eq!(sequences(&receiver.all()[5..]), [2, 3]);
    let said = replay(&["--from", "2000-01-01", "--to", "#1"]).await;
    assert_eq!(said.out, "1 record accepted by late, 0 refused, 0 not sent\n", "{said:?}");
    for args in [["--to", "2000-01-01"], ["--from", "2999-01-01T00:00:00Z"], ["--from", "#5"]] {
        let said = replay(&args).await;
        assert_eq!(said.out, "the spool has no record in this range: nothing to send\n");
    }
    assert_eq!(receiver.all().len(), 8);

    let said = usage(&config, &["replay", "--sink", "none"]).await;
    assert!(said.code == 2 && said.err.contains("configured: ledger, late"), "{said:?}");
    let said = replay(&["--from", "yesterday"]).await;
    assert!(said.code == 2 && said.err.contains("neither a time"), "{said:?}");

    // No place has changed, and the new reporter has none.
    eventually("the place of the ledger is kept, and no other", async || {
        let told = usage(&config, &["status", "--json"]).await.json();
        told["reporters"][0]["next"] == 5 && told["reporters"][1]["next"].is_null()
    })
    .await;
}

#[tokio::test]
async fn a_replay_stops_where_it_cannot_go_on_and_passes_over_what_is_refused() {
    let (gateway, _sim) = written(3, "").await;
    let answer = |status: &str| {
        format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
    };
    let away = saying(answer("503 Service Unavailable\r\nRetry-After: 3600")).await;
    let config = late(&gateway, &away);
    let said = usage(&config, &["replay", "--sink", "late", "--from", "#1", "--to", "#3"]).await;
    assert_eq!((said.code, &*said.out), (1, "0 records accepted by late, 0 refused, 2 not sent\n"));
    assert!(said.err.contains("stopped at #1: late: answered 503"), "{said:?}");
    assert!(said.err.contains("asks for a pause of 3600s"), "{said:?}");
    assert!(said.err.ends_with(" --sink late --from '#1' --to '#3'\n"), "{said:?}");

    let config = late(&gateway, &saying(answer("410 Gone")).await);
    let said = usage(&config, &["replay", "--sink", "late"]).await;
    assert_eq!(said.code, 1);
    assert!(said.err.contains("stopped at #0: late: answered 410"), "{said:?}");

    let config = late(&gateway, &saying(answer("422 Unprocessable Entity")).await);
    let said = usage(&config, &["replay", "--sink", "late"]).await;
    assert_eq!((said.code, &*said.out), (1, "0 records accepted by late, 3 refused, 0 not sent\n"));
    assert!(said.err.contains("#2 was refused: answered 422"), "{said:?}");
}

#[tokio::test]
async fn a_replay_into_a_file_that_has_no_room_leaves_no_half_line() {
    let (gateway, _sim) = written(3, "").await;
    let ledger = gateway.file.with_file_name("ledger.jsonl");
    let said = usage(&gateway.file, &["replay", "--sink", "ledger", "--from", "#2"]).await;
    assert_eq!(
        (said.code, &*said.out),
        (0, "1 record accepted by ledger, 0 refused, 0 not sent\n")
    );
    assert_eq!(sequences(&lines(&ledger)), [1, 2, 3, 3]);

    // In blocks of 512 bytes: there is room for a part of the records only.
    let size = fs::metadata(&ledger).unwrap().len();
    let program = env!("CARGO_BIN_EXE_llmproxy");
    let mut limited = Command::new("sh");
    let script = "trap '' XFSZ; ulimit -f \"$1\"; shift; exec \"$@\"";
    limited.args(["-c", script, "sh", &(size / 512 + 2).to_string(), program, "usage", "replay"]);
    limited.args(["--sink", "ledger", "--config"]).arg(&gateway.file).kill_on_drop(true);
    let mut limited = limited.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut told = BufReader::new(limited.stderr.take().unwrap()).lines();
    let mut line = async || timeout(PATIENCE, told.next_line()).await.expect("a line").unwrap();
    let first = line().await.unwrap();
    assert!(first.ends_with("File too large (os error 27); retrying in 500ms"), "{first}");
    // Whoever sits in front of it has seen enough.
    let pid = limited.id().unwrap().to_string();
    assert!(Command::new("kill").args(["-INT", &pid]).status().await.unwrap().success());
    let mut last = Vec::new();
    while let Some(line) = line().await {
        last.push(line);
    }
    let [.., stopped, hint] = &last[..] else { panic!("{last:?}") };
    assert_eq!(stopped, "llmproxy: stopped at #0: ledger: interrupted");
    assert!(hint.starts_with("to continue: llmproxy usage replay --config '"), "{hint}");
    assert!(hint.ends_with(" --sink ledger --from '#0'"), "{hint}");
    let output = timeout(PATIENCE, limited.wait_with_output()).await.expect("it ends").unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(output.stdout, b"0 records accepted by ledger, 0 refused, 3 not sent\n");
    assert_eq!(fs::metadata(&ledger).unwrap().len(), size);
}

#[tokio::test]
async fn dead_letters_are_sent_again() {
    let refuses =
        "HTTP/1.1 422 Unprocessable Entity\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    let refuses = saying(refuses.to_owned()).await;
    let reporter =
        format!("    - {{name: late, type: webhook, webhook: {{url: \"{refuses}\", retry: 0}}}}\n");
    let (gateway, _sim) = written(3, &reporter).await;
    let dead = async |config: &Path| {
        let told = usage(config, &["status", "--json"]).await.json();
        told["reporters"][1]["dead_letters"].as_u64().unwrap()
    };
    eventually("all were put aside", async || dead(&gateway.file).await == 3).await;
    let size = "llmproxy_usage_dead_letters_bytes{reporter=\"late\"}";
    let file = spool(&gateway).join("dead/late.jsonl");
    eventually("their size is told", async || {
        gateway.metric(size).await == fs::metadata(&file).unwrap().len() as f64
    })
    .await;
    let replay = ["replay", "--sink", "late", "--dead"];
    let said = usage(&gateway.file, &replay).await;
    assert_eq!((said.code, &*said.out), (1, "0 records accepted by late, 3 refused, 0 not sent\n"));
    assert_eq!(dead(&gateway.file).await, 3, "what is refused stays");

    let receiver = Receiver::start().await;
    let config = gateway.file.with_file_name("late.yaml");
    let text = fs::read_to_string(&gateway.file).unwrap();
    let good = format!("http://{}/usage", receiver.address);
    fs::write(&config, text.replace(&refuses, &good)).unwrap();
    let said = usage(&config, &[&replay[..], &["--dry-run"]].concat()).await;
    assert_eq!((said.code, &*said.out), (0, "3 dead letters of late\n"));
    let said = usage(&config, &replay).await;
    assert_eq!((said.code, &*said.out), (0, "3 records accepted by late, 0 refused, 0 not sent\n"));
    assert_eq!(receiver.all(), lines(&gateway.file.with_file_name("ledger.jsonl")));
    assert_eq!(dead(&config).await, 0);
    eventually("the gateway sees that", async || gateway.metric(size).await == 0.0).await;
    let said = usage(&config, &replay).await;
    assert_eq!((said.code, &*said.out), (0, "late has no dead letters: nothing to send\n"));
}

#[tokio::test]
async fn verify_finds_what_is_damaged_and_what_is_missing() {
    // Records so large that a few fill a segment.
    let note = "x".repeat(15_000);
    let more = format!(
        "  spool: {{segment_size: 64KiB, max_size: 1MiB}}
auth: {{}}
api_keys: [{{key: sk-any, metadata: {{note: {note}}}}}]
"
    );
    let (mut gateway, _sim) = written(15, &more).await;
    let said = usage(&gateway.file, &["verify"]).await;
    assert_eq!(said.code, 0, "{said:?}");
    assert!(said.out.starts_with("15 records in "), "{said:?}");
    assert!(said.out.ends_with(": nothing is damaged, nothing is missing\n"), "{said:?}");

    gateway.signal("TERM");
    gateway.ended().await;
    let files = gateway.segments();
    assert!(files.len() >= 3, "{files:?}");
    let last = files.last().unwrap();
    let whole = fs::read(last).unwrap();
    fs::write(last, &whole[..whole.len() - 5]).unwrap();
    let said = usage(&gateway.file, &["verify"]).await;
    assert!(said.code == 0 && said.out.starts_with("the last record is incomplete, "), "{said:?}");
    fs::write(last, &whole).unwrap();

    // In the midst of the first record.
    let first = fs::read(&files[0]).unwrap();
    let mut flipped = first.clone();
    flipped[100] ^= 1;
    fs::write(&files[0], &flipped).unwrap();
    let said = usage(&gateway.file, &["verify"]).await;
    assert_eq!(said.code, 1, "{said:?}");
    let told = said.lines();
    assert!(told[0].starts_with(&files[0].display().to_string()), "{said:?}");
    assert!(told[0].ends_with("bytes at offset 16 cannot be read"), "{said:?}");
    assert_eq!(told[1], "1 record missing in the spool: #0 to #0");
    assert!(told.last().unwrap().ends_with(": there are problems"), "{said:?}");
    // The others can be sent again all the same.
    let said = usage(&gateway.file, &["replay", "--sink", "ledger", "--dry-run"]).await;
    assert!(said.out.starts_with("14 records: #1 of "), "{said:?}");
    assert!(said.err.contains("1 record of this range cannot be read"), "{said:?}");
    fs::write(&files[0], &first).unwrap();

    // A segment in the midst, and then the oldest one: that may have been delivered and removed.
    let index = |path: &Path| path.file_stem().unwrap().to_str().unwrap().parse::<u64>().unwrap();
    let (from, to) = (index(&files[1]), index(&files[2]));
    fs::remove_file(&files[1]).unwrap();
    let said = usage(&gateway.file, &["verify"]).await;
    assert_eq!(said.code, 1, "{said:?}");
    let missing = format!("{} records missing in the spool: #{from} to #{}\n", to - from, to - 1);
    assert!(said.out.starts_with(&missing), "{said:?}");
    assert!(said.out.contains(&format!("sequence {} to {to}\n", from + 1)), "{said:?}");
    fs::remove_file(&files[0]).unwrap();
    let said = usage(&gateway.file, &["verify"]).await;
    assert_eq!(said.code, 0, "{said:?}");
    let said = usage(&gateway.file, &["replay", "--sink", "ledger", "--from", "#0"]).await;
    let gone = format!("the records #0 to #{} are no longer in the spool\n", to - 1);
    assert!(said.code == 0 && said.err.ends_with(&gone), "{said:?}");

    // One that a gateway removes while it is looked at.
    let archive = Archive::open(&spool(&gateway)).unwrap();
    fs::remove_file(&files[2]).unwrap();
    let verdict = archive.verify(&mut |_| {}).unwrap();
    assert!(verdict.is_intact() && verdict.records > 0, "{verdict:?}");
}
