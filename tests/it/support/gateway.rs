//! A gateway process.

use std::{
    fs::{self, File},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};

use tempfile::TempDir;

use super::{Client, PATIENCE, chat, client::Response, eventually, free_address, http};

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
        Self::spawn(configuration, &[]).ready().await
    }

    /// Starts a gateway with these backends; `more` is added to the configuration.
    pub async fn before(backends: &[String], more: &str) -> Self {
        let list: String = backends.iter().map(|url| format!("  - url: \"{url}\"\n")).collect();
        Self::start(&format!("backends:\n{list}{more}")).await
    }

    /// Starts a gateway through the command `wrap`, to which its command line is added. It runs in
    /// its folder.
    pub async fn wrapped(configuration: &str, wrap: &[&str]) -> Self {
        Self::with_configuration(configuration, |file, folder| {
            let mut command = Command::new(wrap[0]);
            command.args(&wrap[1..]).arg(env!("CARGO_BIN_EXE_llmproxy")).current_dir(folder);
            launch(command, file, &folder.join("log"))
        })
        .ready()
        .await
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Starts the process without waiting for it.
    pub fn spawn(configuration: &str, env: &[(&str, &str)]) -> Self {
        Self::with_configuration(configuration, |file, folder| {
            run(file, &folder.join("log"), env.iter().copied())
        })
    }

    /// Writes the configuration into a new folder, and starts a process with both.
    fn with_configuration(configuration: &str, start: impl FnOnce(&Path, &Path) -> Child) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let address = free_address();
        let file = folder.path().join("llmproxy.yaml");
        fs::write(&file, with_listen(address, configuration)).unwrap();
        let child = start(&file, folder.path());
        Self { address, file, child, folder }
    }

    /// Starts an example: a folder with `llmproxy.yaml`, which takes its address from `LISTEN`.
    pub async fn example(name: &str, env: &[(&str, String)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples").join(name);
        copy(&source, folder.path());
        let address = free_address();
        let file = folder.path().join("llmproxy.yaml");
        let listen = [("LISTEN", address.to_string())];
        let env = env.iter().chain(&listen).map(|(name, value)| (*name, value.as_str()));
        let child = run(&file, &folder.path().join("log"), env);
        Self { address, file, child, folder }.ready().await
    }

    /// Starts a gateway with an existing file, in which `listen` is this address.
    pub async fn with_file(file: PathBuf, address: SocketAddr, env: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let child = run(&file, &folder.path().join("log"), env.iter().copied());
        Self { address, file, child, folder }.ready().await
    }

    async fn ready(self) -> Self {
        self.wait_until_it_answers().await;
        self
    }

    /// Kills the process without a shutdown, as a crash does.
    pub fn crash(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Starts it again with the same configuration and folder.
    pub async fn revive(&mut self) {
        self.child = run(&self.file, &self.folder.path().join("log"), std::iter::empty());
        self.wait_until_it_answers().await;
    }

    /// A path in its folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The files of its spool, oldest first.
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

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// Sends a chat request with this key on a new connection.
    pub async fn ask_as(&self, key: &str) -> Response {
        self.ask_with(&format!("Authorization: Bearer {key}\r\n")).await
    }

    /// Sends a chat request with these header lines on a new connection.
    pub async fn ask_with(&self, headers: &str) -> Response {
        let mut client = self.client().await;
        client.post_with("/v1/chat/completions", headers, chat(false).as_bytes()).await;
        client.answer().await
    }

    pub async fn client(&self) -> Client {
        Client::connect(self.address).await
    }

    /// Replaces the configuration; `listen` stays.
    pub fn rewrite(&self, configuration: &str) {
        // Renamed into place, as editors and Kubernetes do, so that no half file is ever read.
        let next = self.folder.path().join("next");
        fs::write(&next, with_listen(self.address, configuration)).unwrap();
        fs::rename(next, &self.file).unwrap();
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap()
    }

    /// Waits until the log contains this text.
    pub async fn logs(&self, text: &str) {
        eventually(&format!("`{text}` in the log"), async || self.log().contains(text)).await;
    }

    pub fn signal(&self, name: &str) {
        let done =
            Command::new("kill").args([format!("-{name}"), self.child.id().to_string()]).status();
        assert!(done.unwrap().success());
    }

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

    /// The value of a sample, by its name and labels as in the exposition; 0 if it is missing.
    pub async fn metric(&self, name: &str) -> f64 {
        let text = http::get(self.url("/metrics")).await.unwrap().text().await.unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.map_or(0.0, |value| value.parse().unwrap())
    }
}

fn run<'a>(file: &Path, log: &Path, env: impl Iterator<Item = (&'a str, &'a str)>) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_llmproxy"));
    let env: Vec<_> = env.collect();
    // The two variables define one trust store: none of the environment may mix with those given.
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

/// Copies the files and folders of a folder.
fn copy(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            fs::create_dir(&target).unwrap();
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
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
