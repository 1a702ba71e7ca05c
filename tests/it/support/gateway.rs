//! A gateway process.

use std::{
    fs::{self, File},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};

use tempfile::TempDir;

use super::{Client, PATIENCE, chat, client::Answer, eventually, free_address, http};

/// A running gateway. It is killed when dropped.
pub struct Gateway {
    pub address: SocketAddr,
    pub file: PathBuf,
    child: Child,
    folder: TempDir,
}

impl Gateway {
    /// Starts a gateway with this configuration; `listen` is added to it.
    pub async fn start(configuration: &str) -> Self {
        let gateway = Self::spawn(configuration, &[]);
        gateway.wait_until_it_answers().await;
        gateway
    }

    /// Starts a gateway in front of these backends, with more configuration after them.
    pub async fn before(backends: &[String], more: &str) -> Self {
        let list: String = backends.iter().map(|url| format!("  - url: \"{url}\"\n")).collect();
        Self::start(&format!("backends:\n{list}{more}")).await
    }

    /// Starts a gateway by way of these words, to which its command line is added. It runs in its
    /// folder.
    pub async fn wrapped(configuration: &str, wrap: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let address = free_address();
        let file = folder.path().join("llmproxy.yaml");
        fs::write(&file, with_listen(address, configuration)).unwrap();
        let mut command = Command::new(wrap[0]);
        command.args(&wrap[1..]).arg(env!("CARGO_BIN_EXE_llmproxy")).current_dir(folder.path());
        let child = launch(command, &file, &folder.path().join("log"));
        let gateway = Self { address, file, child, folder };
        gateway.wait_until_it_answers().await;
        gateway
    }

    /// The id of the process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Starts the process and does not wait.
    pub fn spawn(configuration: &str, env: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let address = free_address();
        let file = folder.path().join("llmproxy.yaml");
        fs::write(&file, with_listen(address, configuration)).unwrap();
        let child = run(&file, &folder.path().join("log"), env.iter().copied());
        Self { address, file, child, folder }
    }

    /// Starts an example: a folder with `llmproxy.yaml`, which takes its address from `LISTEN`.
    pub async fn example(name: &str, env: &[(&str, String)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples").join(name);
        for entry in fs::read_dir(source).unwrap().map(Result::unwrap) {
            fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
        }
        let address = free_address();
        let file = folder.path().join("llmproxy.yaml");
        let listen = [("LISTEN", address.to_string())];
        let env = env.iter().chain(&listen).map(|(name, value)| (*name, value.as_str()));
        let child = run(&file, &folder.path().join("log"), env);
        let gateway = Self { address, file, child, folder };
        gateway.wait_until_it_answers().await;
        gateway
    }

    /// Starts it with a file that is not its own, which says this address.
    pub async fn with_file(file: PathBuf, address: SocketAddr, env: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let child = run(&file, &folder.path().join("log"), env.iter().copied());
        let gateway = Self { address, file, child, folder };
        gateway.wait_until_it_answers().await;
        gateway
    }

    /// Kills the process as a crash does: without a word.
    pub fn crash(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Starts it again, with the same configuration and the same folder.
    pub async fn revive(&mut self) {
        self.child = run(&self.file, &self.folder.path().join("log"), std::iter::empty());
        self.wait_until_it_answers().await;
    }

    /// A path in its folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The files of its spool, from the oldest on.
    pub fn segments(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.path("data/usage")).unwrap();
        let mut files: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
        files.retain(|path| path.extension().is_some_and(|e| e == "log"));
        files.sort();
        files
    }

    async fn wait_until_it_answers(&self) {
        eventually("the gateway answers", async || {
            tokio::net::TcpStream::connect(self.address).await.is_ok()
        })
        .await;
    }

    /// `http://address` and the path.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// Asks for a chat with a key, on a connection of its own.
    pub async fn ask_as(&self, key: &str) -> Answer {
        self.ask_with(&format!("Authorization: Bearer {key}\r\n")).await
    }

    /// Asks for a chat with more header lines, on a connection of its own.
    pub async fn ask_with(&self, headers: &str) -> Answer {
        let mut client = self.client().await;
        client.post_with("/v1/chat/completions", headers, chat(false).as_bytes()).await;
        client.answer().await
    }

    /// A connection to it.
    pub async fn client(&self) -> Client {
        Client::connect(self.address).await
    }

    /// Replaces the configuration; `listen` stays.
    pub fn rewrite(&self, configuration: &str) {
        // Renamed into place, as editors and Kubernetes do: never half a file.
        let next = self.folder.path().join("next");
        fs::write(&next, with_listen(self.address, configuration)).unwrap();
        fs::rename(next, &self.file).unwrap();
    }

    /// What it has logged so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap()
    }

    /// Waits for a text in the log.
    pub async fn logs(&self, text: &str) {
        eventually(&format!("`{text}` in the log"), async || self.log().contains(text)).await;
    }

    /// Sends a signal.
    pub fn signal(&self, name: &str) {
        let done =
            Command::new("kill").args([format!("-{name}"), self.child.id().to_string()]).status();
        assert!(done.unwrap().success());
    }

    /// Waits for the process to end.
    pub async fn ended(&mut self) -> ExitStatus {
        let start = std::time::Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(start.elapsed() < PATIENCE, "the process does not end");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// The value of a metric, by its line up to the value; 0 if there is none.
    pub async fn metric(&self, name: &str) -> f64 {
        let text = http::get(self.url("/metrics")).await.unwrap().text().await.unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.map_or(0.0, |value| value.parse().unwrap())
    }
}

fn run<'a>(file: &Path, log: &Path, env: impl Iterator<Item = (&'a str, &'a str)>) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_llmproxy"));
    let env: Vec<_> = env.collect();
    // Together they are one trust store.
    if env.iter().any(|(name, _)| name.starts_with("SSL_CERT_")) {
        command.env_remove("SSL_CERT_FILE").env_remove("SSL_CERT_DIR");
    }
    command.envs(env);
    launch(command, file, log)
}

fn launch(mut command: Command, file: &Path, log: &Path) -> Child {
    command
        .args(["serve", "--config"])
        .arg(file)
        .env_remove("RUST_LOG")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(File::options().create(true).append(true).open(log).unwrap())
        .spawn()
        .unwrap()
}

fn with_listen(address: SocketAddr, configuration: &str) -> String {
    format!("listen: \"{address}\"\n{configuration}")
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
        if std::thread::panicking() {
            eprintln!("--- log of the gateway:\n{}---", self.log());
        }
    }
}

impl Gateway {
    /// Resident memory of the process, in KiB.
    pub fn resident_kib(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").trim().parse().unwrap()
    }
}
