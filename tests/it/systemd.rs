//! The systemd example: runs the commands of the unit as systemd does.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    net::SocketAddr,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use llmproxy::{base::duration, sim::Sim};
use tempfile::TempDir;

use crate::support::{Client, PATIENCE, chat, eventually, free_address, sim_with};

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/systemd").join(name)
}

fn printed(out: &Output) -> String {
    String::from_utf8([&*out.stdout, &*out.stderr].concat()).unwrap()
}

/// The values of a key in the unit.
fn unit(key: &str) -> Vec<String> {
    let text = fs::read_to_string(file("llmproxy.service")).unwrap();
    let pairs = text.lines().filter(|l| !l.starts_with('#')).filter_map(|l| l.split_once('='));
    pairs.filter(|(name, _)| *name == key).map(|(_, value)| value.to_owned()).collect()
}

/// A folder into which `install.sh` has installed.
struct Machine {
    root: TempDir,
    address: SocketAddr,
    metrics: SocketAddr,
    admin: SocketAddr,
    child: Option<Child>,
}

impl Machine {
    fn new(sim: &Sim) -> Self {
        let [address, metrics, admin] = [(); 3].map(|()| free_address());
        let machine =
            Self { root: tempfile::tempdir().unwrap(), address, metrics, admin, child: None };
        machine.install();
        fs::create_dir_all(machine.path("/etc/default")).unwrap();
        let env = format!(
            "BACKEND_URL={}\nLISTEN={address}\nMETRICS_LISTEN={metrics}\nADMIN_LISTEN={admin}\n",
            sim.url()
        );
        fs::write(machine.path("/etc/default/llmproxy"), env).unwrap();
        machine
    }

    fn install(&self) {
        // A script that executes the binary, instead of a copy of the large binary.
        let binary = self.root.path().join("binary");
        let script = format!("#!/bin/sh\nexec '{}' \"$@\"\n", env!("CARGO_BIN_EXE_llmproxy"));
        fs::write(&binary, script).unwrap();
        let mut install = Command::new("sh");
        install.arg(file("install.sh")).arg(binary).env("DESTDIR", self.root.path());
        let out = install.output().unwrap();
        assert!(out.status.success(), "{}", printed(&out));
    }

    fn path(&self, path: &str) -> PathBuf {
        self.root.path().join(path.trim_start_matches('/'))
    }

    /// The command lines of a key, with only the environment of the unit.
    fn commands(&self, key: &str) -> Vec<Command> {
        let lines = unit(key);
        assert!(!lines.is_empty(), "{key}");
        lines.iter().map(|line| self.command(line)).collect()
    }

    fn command(&self, line: &str) -> Command {
        let mut words = line.split(' ').map(|word| match word {
            "$MAINPID" => self.pid().to_string(),
            word if word.starts_with("/usr/local") || word.starts_with("/etc") => {
                self.path(word).display().to_string()
            }
            word => word.to_owned(),
        });
        let mut command = Command::new(words.next().unwrap());
        command.args(words).env_clear().envs(self.environment()).current_dir("/");
        command.stdin(Stdio::null());
        command
    }

    fn environment(&self) -> BTreeMap<String, String> {
        let files = unit("EnvironmentFile").into_iter().map(|path| {
            fs::read_to_string(self.path(path.trim_start_matches('-'))).unwrap_or_default()
        });
        let files: String = files.collect();
        let state = self.path("/var/lib").display().to_string();
        let own = unit("Environment").into_iter().map(|pair| pair.replace("%S", &state));
        let all = files.lines().map(str::to_owned).chain(own);
        let pair = |pair: String| {
            let (name, value) = pair.split_once('=').unwrap();
            (name.to_owned(), value.to_owned())
        };
        all.map(pair).collect()
    }

    /// Starts the service. `ExecStartPre` must succeed.
    async fn start(&mut self) {
        for name in unit("StateDirectory") {
            fs::create_dir_all(self.path("/var/lib").join(name)).unwrap();
        }
        for mut before in self.commands("ExecStartPre") {
            let out = before.output().unwrap();
            assert!(out.status.success(), "{}", printed(&out));
        }
        let log = File::create(self.path("log")).unwrap();
        let [mut start] = <[_; 1]>::try_from(self.commands("ExecStart")).unwrap();
        self.child = Some(start.stdout(Stdio::null()).stderr(log).spawn().unwrap());
        let address = self.address;
        eventually("the gateway answers", async || {
            tokio::net::TcpStream::connect(address).await.is_ok()
        })
        .await;
    }

    /// Reloads the service: runs the commands in order until one fails.
    fn reload(&self) -> Result<(), String> {
        for mut command in self.commands("ExecReload") {
            let out = command.output().unwrap();
            if !out.status.success() {
                return Err(printed(&out));
            }
        }
        Ok(())
    }

    /// Sends the stop signal of the unit.
    fn stop(&self) {
        let [signal] = <[_; 1]>::try_from(unit("KillSignal")).unwrap();
        let signal = format!("-{}", signal.trim_start_matches("SIG"));
        let pid = self.pid().to_string();
        assert!(Command::new("kill").args([signal, pid]).status().unwrap().success());
    }

    fn pid(&self) -> u32 {
        self.child.as_ref().unwrap().id()
    }

    fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    async fn logs(&self, text: &str) {
        eventually(&format!("`{text}` in the log"), async || self.log().contains(text)).await;
    }

    /// Creates a key through the admin API.
    async fn key(&self) -> String {
        let token = fs::read_to_string(self.path("/etc/llmproxy/secrets/admin-token")).unwrap();
        let mut admin = Client::connect(self.admin).await;
        let body = br#"{"name": "first", "user_id": "user_001"}"#;
        admin.post_with("/admin/v1/keys", &format!("X-Admin-Token: {token}\r\n"), body).await;
        let answer = admin.answer().await;
        assert_eq!(answer.status, 201, "{}", answer.text());
        answer.json()["key"].as_str().unwrap().to_owned()
    }

    /// Sends a chat request.
    async fn ask(&self, key: &str, stream: bool) -> Client {
        let mut client = Client::connect(self.address).await;
        let header = format!("Authorization: Bearer {key}\r\n");
        client.post_with("/v1/chat/completions", &header, chat(stream).as_bytes()).await;
        client
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            child.kill().ok();
            child.wait().ok();
        }
        if std::thread::panicking() {
            eprintln!("--- log of the gateway:\n{}---", self.log());
        }
    }
}

#[test]
fn the_unit_is_valid_and_hardened() {
    let folder = tempfile::tempdir().unwrap();
    // This also checks that the programs exist.
    let text = fs::read_to_string(file("llmproxy.service")).unwrap();
    let text = text.replace("/usr/local/bin/llmproxy", env!("CARGO_BIN_EXE_llmproxy"));
    let path = folder.path().join("llmproxy.service");
    fs::write(&path, text).unwrap();
    let analyze = |words: &[&str]| {
        let out = Command::new("systemd-analyze").args(words).arg(&path).output().unwrap();
        assert!(out.status.success(), "{}", printed(&out));
        printed(&out)
    };
    // An unknown key is only a warning.
    let verified = analyze(&["verify", "--man=no"]);
    assert!(!verified.contains("llmproxy.service"), "{verified}");
    // Out of 100; the rest is network access, which a gateway needs.
    analyze(&["security", "--no-pager", "--offline=true", "--threshold=20"]);
}

#[test]
fn the_stop_timeout_is_longer_than_the_graceful_shutdown() {
    let [stop] = <[_; 1]>::try_from(unit("TimeoutStopSec")).unwrap();
    let text = fs::read_to_string(file("llmproxy.yaml")).unwrap();
    let yaml: serde_yaml::Value = serde_yaml::from_str(&text).unwrap();
    let drain = yaml["server"]["graceful_shutdown_timeout"].as_str().unwrap();
    let drain = duration::parse(drain).unwrap();
    assert!(duration::parse(&stop).unwrap() > drain + Duration::from_secs(5), "{stop} {drain:?}");
}

#[tokio::test]
async fn an_update_keeps_configuration_and_secrets() {
    let sim = sim_with(|_| {}).await;
    let machine = Machine::new(&sim);
    let mode = |path: &str| {
        format!("{:o}", fs::metadata(machine.path(path)).unwrap().permissions().mode() & 0o777)
    };
    let token = machine.path("/etc/llmproxy/secrets/admin-token");
    let first = fs::read_to_string(&token).unwrap();
    assert_eq!(first.len(), 48);
    assert_eq!(mode("/etc/llmproxy/secrets"), "750");
    assert_eq!(mode("/etc/llmproxy/secrets/admin-token"), "640");
    assert_eq!(mode("/etc/llmproxy/llmproxy.yaml"), "640");
    assert_eq!(mode("/usr/local/bin/llmproxy"), "755");
    let configuration = machine.path("/etc/llmproxy/llmproxy.yaml");
    fs::write(&configuration, "changed: true\n").unwrap();
    machine.install();
    assert_eq!(fs::read_to_string(&token).unwrap(), first);
    assert_eq!(fs::read_to_string(&configuration).unwrap(), "changed: true\n");
    // Nor does it start with that file.
    let out = machine.commands("ExecStartPre")[0].output().unwrap();
    assert!(
        !out.status.success() && printed(&out).contains("unknown key `changed`"),
        "{}",
        printed(&out)
    );
}

#[tokio::test]
async fn the_service_starts_reloads_and_drains() {
    let sim = sim_with(|s| (s.inter_token_ms, s.tokens) = (100, 20)).await;
    let mut machine = Machine::new(&sim);
    machine.start().await;
    let key = machine.key().await;
    assert_eq!(machine.ask("sk-unknown", false).await.answer().await.status, 401);
    assert_eq!(Client::connect(machine.metrics).await.get("/health").await.status, 200);

    let configuration = machine.path("/etc/llmproxy/llmproxy.yaml");
    let good = fs::read_to_string(&configuration).unwrap();
    fs::write(&configuration, good.replace("interval: 5s", "interval: 6s")).unwrap();
    machine.reload().unwrap();
    machine.logs("configuration 2 is in force").await;
    fs::write(&configuration, good.replace("interval:", "intervall:")).unwrap();
    let why = machine.reload().unwrap_err();
    assert!(why.contains("did you mean `interval`?"), "{why}");
    machine.logs("the configuration in force stays").await;

    let mut stream = machine.ask(&key, true).await;
    assert_eq!(stream.head().await.status, 200);
    let first = stream.chunk().await.unwrap();
    assert!(first.starts_with(b"data: "), "{}", String::from_utf8_lossy(&first));
    machine.stop();
    machine.logs("to finish").await;
    let mut rest = Vec::new();
    while let Some(chunk) = stream.chunk().await.filter(|chunk| !chunk.is_empty()) {
        rest.extend(chunk);
    }
    let rest = String::from_utf8(rest).unwrap();
    assert!(rest.ends_with("data: [DONE]\n\n"), "the stream comes to its end: {rest}");
    let start = Instant::now();
    let ended = loop {
        if let Some(status) = machine.child.as_mut().unwrap().try_wait().unwrap() {
            break status;
        }
        assert!(start.elapsed() < PATIENCE, "the process does not end");
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    // Any other status is a failure, after which systemd would restart it.
    assert_eq!(ended.code(), Some(0));
    let state = machine.path("/var/lib/llmproxy");
    for name in ["keys.db", "usage.db", "usage"] {
        assert!(state.join(name).exists(), "{name} is not in {}", state.display());
    }
}
