//! The processes of the Compose profile `sim`, except Grafana.

use std::{
    collections::BTreeMap,
    fs,
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use serde_yaml::Value;
use tempfile::TempDir;

use super::{compose, container, read, run, variables, words};
use crate::support::{
    Client, NameServer, eventually, free_address,
    promtool::prometheus,
    servers::{PASSWORD, Postgres, Redis},
};

const BINARY: &str = env!("CARGO_BIN_EXE_llmproxy");

/// A process that is killed at the end of its test.
struct Running(Child);

impl Running {
    fn start(command: &mut Command, log: &Path) -> Self {
        let log = fs::File::create(log).unwrap();
        Self(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// The processes, each with the files and environment of its container.
pub struct Stack {
    pub compose: Value,
    pub gateway: SocketAddr,
    pub metrics: SocketAddr,
    pub sims: Vec<SocketAddr>,
    pub redis: Redis,
    pub postgres: Postgres,
    folder: TempDir,
    pub env: BTreeMap<String, String>,
    running: Vec<Running>,
    names: NameServer,
}

/// Two addresses with the same port, like two containers.
fn twins() -> Vec<SocketAddr> {
    loop {
        let one = free_address();
        let two = SocketAddr::from(([127, 0, 0, 2], one.port()));
        if TcpListener::bind(two).is_ok() {
            return vec![one, two];
        }
    }
}

impl Stack {
    pub async fn start() -> Self {
        let mut env = variables();
        env.insert("POSTGRES_PASSWORD".to_owned(), PASSWORD.to_owned());
        let (redis, postgres) =
            (Redis::start_with(Some(&env["REDIS_PASSWORD"])).await, Postgres::start().await);
        let names = NameServer::start().await;
        let compose = compose(&env);
        let folder = tempfile::tempdir().unwrap();
        let mut stack = Self {
            gateway: free_address(),
            metrics: free_address(),
            sims: twins(),
            compose,
            redis,
            postgres,
            folder,
            env,
            running: Vec::new(),
            names,
        };
        let sim = &stack.compose["services"]["sim"];
        // The DNS of the network resolves the alias to both addresses.
        let alias = sim["networks"]["default"]["aliases"][0].as_str().unwrap().to_owned();
        stack.names.set(&alias, &["127.0.0.1", "127.0.0.2"]);
        assert_eq!(sim["deploy"]["replicas"], stack.sims.len());
        for (n, address) in stack.sims.clone().into_iter().enumerate() {
            let command = stack.command("sim", &[("0.0.0.0:8000", address.to_string())]);
            stack.run(command, &format!("sim-{n}"));
        }
        let configuration = read("gateway/llmproxy.yaml") + &stack.names.section();
        fs::write(stack.configuration(), configuration).unwrap();
        let command = stack.command("gateway", &[]);
        stack.run(command, "gateway");
        let gateway = stack.gateway;
        eventually("the gateway answers", async || {
            tokio::net::TcpStream::connect(gateway).await.is_ok()
        })
        .await;
        stack
    }

    fn configuration(&self) -> PathBuf {
        self.folder.path().join("llmproxy.yaml")
    }

    /// Runs the command of a service. `with`: replacements in the command.
    fn command(&self, service: &str, with: &[(&str, String)]) -> Command {
        self.of(service, words(&self.compose["services"][service]["command"]), with)
    }

    /// A command in the container of a service, with only the environment from Compose.
    fn of(&self, service: &str, words: Vec<String>, with: &[(&str, String)]) -> Command {
        let mut command = Command::new(BINARY);
        command.env_clear().current_dir(self.folder.path());
        if let Some(env) = self.compose["services"][service].get("environment") {
            let text = |value: &Value| value.as_str().unwrap().to_owned();
            command.envs(env.as_mapping().unwrap().iter().map(|(k, v)| (text(k), text(v))));
        }
        let here = self.configuration().display().to_string();
        for mut word in words {
            word = word.replace("/etc/llmproxy/llmproxy.yaml", &here);
            for (from, to) in with {
                word = word.replace(from, to);
            }
            command.arg(word);
        }
        // The addresses of the other processes, instead of the names in the Compose network.
        command.env("LLMPROXY_DATA_DIR", self.folder.path().join("data"));
        command.env("LISTEN", self.gateway.to_string());
        command.env("METRICS_LISTEN", self.metrics.to_string());
        command.env("BACKEND_URL", format!("http://vllm:{}", self.sims[0].port()));
        command.env("REDIS_ADDR", self.redis.address.to_string());
        command.env("POSTGRES_HOST", self.postgres.address.ip().to_string());
        command.env("POSTGRES_PORT", self.postgres.address.port().to_string());
        command
    }

    fn run(&mut self, mut command: Command, name: &str) {
        let log = self.folder.path().join(format!("{name}.log"));
        self.running.push(Running::start(&mut command, &log));
    }

    /// Sends a request as in the README.
    pub async fn ask(&self, key: &str) -> u16 {
        let readme = read("README.md");
        let body = readme.split("-d '").nth(1).unwrap().split('\'').next().unwrap();
        let wanted: serde_json::Value = serde_json::from_str(body).unwrap();
        assert_eq!(wanted["model"], self.env["MODEL"].as_str());
        let mut client = Client::connect(self.gateway).await;
        let headers = format!("Authorization: Bearer {key}\r\n");
        client.post_with("/v1/chat/completions", &headers, body.as_bytes()).await;
        let answer = client.answer().await;
        assert!(answer.status != 200 || answer.text().ends_with("data: [DONE]\n\n"));
        answer.status
    }

    /// Runs the health check of a service as Compose does.
    pub fn healthy(&self, service: &str, with: &[(&str, String)]) {
        let test = words(&self.compose["services"][service]["healthcheck"]["test"]);
        assert_eq!(test[..2], ["CMD", "/llmproxy"]);
        run(&mut self.of(service, test[2..].to_vec(), with));
    }

    /// Runs Prometheus as Compose does and waits until all targets are up. Returns its URL.
    pub async fn observed(&mut self) -> String {
        let root = self.folder.path().to_owned();
        let service = self.compose["services"]["prometheus"].clone();
        let mut configuration: Value = serde_yaml::from_str(&container(&service, &root)).unwrap();
        let jobs = &mut configuration["scrape_configs"];
        assert_eq!(jobs[0]["static_configs"][0]["targets"][0], "gateway:9100");
        assert_eq!(jobs[1]["dns_sd_configs"][0]["names"][0], "vllm");
        let targets = |all: &[SocketAddr]| {
            let all: Vec<_> = all.iter().map(ToString::to_string).collect();
            serde_yaml::to_value([BTreeMap::from([("targets", all)])]).unwrap()
        };
        jobs[0]["static_configs"] = targets(&[self.metrics]);
        jobs[1].as_mapping_mut().unwrap().remove("dns_sd_configs");
        jobs[1]["static_configs"] = targets(&self.sims);
        fs::create_dir_all(root.join("etc/prometheus")).unwrap();
        let file = root.join("etc/prometheus/prometheus.yml");
        fs::write(file, serde_yaml::to_string(&configuration).unwrap()).unwrap();
        let mut command = Command::new(prometheus());
        for word in words(&service["command"]) {
            let (option, value) = word.split_once('=').unwrap();
            let path = if value.starts_with('/') { root.to_str().unwrap() } else { "" };
            command.arg(format!("{option}={path}{value}"));
        }
        let address = free_address();
        self.run(
            {
                command.arg(format!("--web.listen-address={address}"));
                command
            },
            "prometheus",
        );
        eventually("Prometheus answers", async || {
            tokio::net::TcpStream::connect(address).await.is_ok()
        })
        .await;
        format!("http://{address}/api/v1")
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for name in ["gateway", "prometheus"] {
                let log = fs::read_to_string(self.folder.path().join(format!("{name}.log")));
                eprintln!("--- log of {name}:\n{}---", log.unwrap_or_default());
            }
        }
    }
}
