//! The commands of the documentation are run, as far as they can be: those of the gateway and of
//! curl against a running gateway, of whose configuration the page's first example is a part.

use std::{
    fs,
    net::SocketAddr,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use llmproxy::sim::Sim;
use serde_yaml::{Mapping, Value};

use super::{
    configurations,
    markdown::{Block, Page, documentation, root},
    shell::{self, Line},
};
use crate::support::{Gateway, Receiver, chat, eventually, free_address, sim};

const TOKEN: &str = "a-token-for-tests";

/// A key that pages use.
const KEY: &str = "sk-first-000000001";

/// Ids of requests that pages ask about.
const REQUESTS: [&str; 3] = ["order-17", "req_0f3a5d7c9b1e24680f3a5d7c9b1e2468", "third"];

/// Programs that are not run here: only the files of the repository that they name must be there.
const ELSEWHERE: [&str; 17] = [
    "cargo",
    "cd",
    "claude",
    "codex",
    "cp",
    "docker",
    "git",
    "helm",
    "journalctl",
    "kubectl",
    "mysql",
    "openssl",
    "psql",
    "redis-cli",
    "sqlite3",
    "sudo",
    "systemctl",
];

/// Subcommands that go on until they are told to stop.
const FOREVER: [&str; 3] = ["demo", "serve", "sim"];

// The simulated backends go on while a command is waited for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_do_what_the_pages_say() {
    let (mut wrong, mut run) = (Vec::new(), 0);
    for page in documentation() {
        let blocks = page.blocks();
        let of = |lang: &str| blocks.iter().filter(move |b| b.info == lang).collect::<Vec<_>>();
        if of("sh").is_empty() && of("sql").is_empty() {
            continue;
        }
        let mut stage = Stage::new(&page).await;
        for block in of("sh") {
            for line in shell::commands(&block.text) {
                run += 1;
                if let Err(why) = stage.run(&line) {
                    wrong.push(format!("{}: {}\n{why}", block.at, line.text));
                }
            }
        }
        for block in of("sql").iter().filter(|b| b.text.starts_with("SELECT")) {
            run += 1;
            if let Err(why) = stage.query(block).await {
                wrong.push(format!("{}: {why}", block.at));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
    assert!(run > 100, "only {run} commands were found: the test has gone blind");
}

/// What the commands of a page are run against.
struct Stage {
    gateway: Gateway,
    sims: [Sim; 2],
    _receiver: Receiver,
    admin: SocketAddr,
    operator: Option<SocketAddr>,
    /// A folder with `curl` and `llmproxy`, before all others.
    programs: PathBuf,
    /// Variables and functions that the page has defined.
    defined: Vec<String>,
    /// The id of a key that the gateway has made, which stands for those of the page.
    key_id: Option<String>,
}

impl Stage {
    async fn new(page: &Page) -> Self {
        let (sims, receiver) = ([sim().await, sim().await], Receiver::start().await);
        let (admin, operator) = (free_address(), free_address());
        let own = page
            .blocks()
            .iter()
            .filter(|b| b.info == "yaml")
            .find_map(|b| configurations::own(b).ok()?);
        let mut own = own.unwrap_or_default();
        let has_operator = own.get("server").is_some_and(|s| s.get("metrics_listen").is_some());
        let ours = ours(&sims, &receiver, admin, has_operator.then_some(operator));
        for key in
            ["listen", "data_dir", "usage_hook", "discovery", "models", "health_check", "storage"]
        {
            own.remove(key);
        }
        for (key, value) in ours {
            match (own.get_mut(&key), value) {
                (Some(Value::Mapping(old)), Value::Mapping(new)) if key == "server" => {
                    old.extend(new)
                }
                (_, value) => drop(own.insert(key, value)),
            }
        }
        let gateway = Gateway::start(&serde_yaml::to_string(&own).unwrap()).await;
        let programs = gateway.path("programs");
        make_programs(&programs);
        fs::create_dir(gateway.path("lua")).unwrap();
        fs::copy(root().join("lua/balance.lua"), gateway.path("lua/mine.lua")).unwrap();
        let old = root().join("tests/fixtures/seeds/v0.5-small.yaml");
        fs::copy(old, gateway.path("old.yaml")).unwrap();
        // Some commands are for a clone of the repository.
        symlink(root().join("tests"), gateway.path("tests")).unwrap();
        let stage = Self {
            gateway,
            sims,
            _receiver: receiver,
            admin,
            operator: has_operator.then_some(operator),
            programs,
            defined: Vec::new(),
            key_id: None,
        };
        stage.use_it().await;
        stage.damage_a_copy();
        stage
    }

    /// Sends the requests that pages ask about, and waits for their records.
    async fn use_it(&self) {
        for id in REQUESTS {
            let mut client = self.gateway.client().await;
            let headers = format!("X-Request-Id: {id}\r\nAuthorization: Bearer {KEY}\r\n");
            client.post_with("/v1/chat/completions", &headers, chat(false).as_bytes()).await;
            assert_eq!(client.answer().await.status, 200);
        }
        let written = || fs::read_to_string(self.gateway.path("usage.jsonl")).unwrap_or_default();
        eventually("records are written", async || written().lines().count() == REQUESTS.len())
            .await;
    }

    /// A copy of the spool of which a record cannot be read, and its configuration.
    fn damage_a_copy(&self) {
        let (from, to) = (self.gateway.path("data/usage"), self.gateway.path("damaged/usage"));
        fs::create_dir_all(&to).unwrap();
        let segment = "00000000000000000000.log";
        let mut bytes = fs::read(from.join(segment)).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(to.join(segment), bytes).unwrap();
        let text = fs::read_to_string(&self.gateway.file).unwrap();
        fs::write(self.gateway.path("damaged.yaml"), format!("{text}data_dir: damaged\n")).unwrap();
    }

    /// Runs a command, or finds out why not.
    fn run(&mut self, line: &Line) -> Result<(), String> {
        let first = line.text.split([' ', '\n']).next().unwrap();
        let is_set =
            first.contains('=') && ![" curl ", " llmproxy "].iter().any(|c| line.text.contains(c));
        let is_definition = first.ends_with("()") || first == "export" || is_set;
        let defined = self.defined.iter().any(|d| d.starts_with(&format!("{first}()")));
        match first {
            _ if is_definition => {
                self.defined.push(self.replaced(&line.text));
                Ok(())
            }
            "make" => make(&line.text),
            "llmproxy" if FOREVER.iter().any(|f| line.text.split(' ').nth(1) == Some(*f)) => Ok(()),
            "curl" | "llmproxy" | "target/release/llmproxy" => self.shell(line),
            _ if defined => self.shell(line),
            _ if ELSEWHERE.contains(&first) => files_are_there(&line.text),
            _ => {
                Err(format!("`{first}` is of no kind that is known here, so nobody would check it"))
            }
        }
    }

    fn shell(&mut self, line: &Line) -> Result<(), String> {
        let told = self.bash(&self.replaced(&line.text));
        let (out, err) =
            (String::from_utf8_lossy(&told.stdout), String::from_utf8_lossy(&told.stderr));
        let statuses: Vec<u16> =
            err.lines().filter_map(|l| l.strip_prefix("STATUS ")?.parse().ok()).collect();
        if let Some((_, rest)) = out.split_once("\"id\":\"key_") {
            self.key_id = rest.split('"').next().map(|id| format!("key_{id}"));
        }
        let wanted = shell::expected_status(&line.comment);
        let right = |status: &u16| wanted.map_or(*status < 300, |wanted| wanted == *status);
        let exit = shell::expected_exit(&line.comment);
        if told.status.code() == Some(exit) && statuses.iter().all(right) {
            return Ok(());
        }
        let shown: String = out.chars().take(1000).collect();
        Err(format!(
            "ended with {}, wanted {exit}; wanted status {wanted:?}\n{shown}\n{err}",
            told.status
        ))
    }

    fn bash(&self, text: &str) -> Output {
        let path = std::env::var("PATH").unwrap();
        let script = format!("set -o pipefail\n{}\n{text}\n", self.defined.join("\n"));
        Command::new("bash")
            .args(["-c", &script])
            .current_dir(self.gateway.path(""))
            .env("PATH", format!("{}:{path}", self.programs.display()))
            .env("ADMIN_TOKEN", TOKEN)
            .env_remove("RUST_LOG")
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }

    /// A command with the addresses and ids of this stage.
    fn replaced(&self, text: &str) -> String {
        let encoded = self.sims[1].url().replace(':', "%3A").replace('/', "%2F");
        let operator = self.operator.unwrap_or(self.gateway.address);
        let mut text = text
            .replace("127.0.0.1:8000", &self.gateway.address.to_string())
            .replace("127.0.0.1:8001", &self.admin.to_string())
            .replace("127.0.0.1:9100", &operator.to_string())
            .replace("http%3A%2F%2Fvllm-1%3A8000", &encoded)
            .replace("target/release/llmproxy", "llmproxy");
        if let Some(id) = &self.key_id {
            text = text.replace("key_0f3a5d7c9b1e2468", id);
        }
        text
    }

    /// Asks the table of records.
    async fn query(&self, block: &Block) -> Result<(), String> {
        let file = self.gateway.path("data/usage.db");
        let ask = |sql: &str| {
            let program = "import sqlite3,sys; print(sqlite3.connect(sys.argv[1]).execute(sys.argv[2]).fetchall())";
            let asked =
                Command::new("python3").args(["-c", program]).arg(&file).arg(sql).output().unwrap();
            match asked.status.success() {
                true => Ok(String::from_utf8(asked.stdout).unwrap()),
                false => Err(String::from_utf8(asked.stderr).unwrap()),
            }
        };
        eventually("the table has rows", async || {
            ask("SELECT count(*) FROM usage_records").is_ok_and(|n| !n.starts_with("[(0"))
        })
        .await;
        ask(block.text.trim()).map(drop)
    }
}

/// What every stage has, whatever the page says.
fn ours(
    sims: &[Sim; 2],
    receiver: &Receiver,
    admin: SocketAddr,
    operator: Option<SocketAddr>,
) -> Mapping {
    let operator =
        operator.map_or(String::new(), |a| format!("server: {{metrics_listen: \"{a}\"}}\n"));
    let text = format!(
        "backends:
  - {{name: vllm-1, url: \"{}\"}}
  - {{url: \"{}\"}}
admin: {{enabled: true, listen: \"{admin}\", token: {TOKEN}}}
usage:
  reporters:
    - {{name: billing, type: webhook, webhook: {{url: \"{}\"}}}}
    - {{name: ledger, type: file, file: {{path: usage.jsonl}}}}
    - {{type: builtin}}
{operator}",
        sims[0].url(),
        sims[1].url(),
        receiver.url()
    );
    serde_yaml::from_str(&text).unwrap()
}

/// `llmproxy`, and a `curl` that tells the status of each answer.
fn make_programs(folder: &Path) {
    fs::create_dir(folder).unwrap();
    symlink(env!("CARGO_BIN_EXE_llmproxy"), folder.join("llmproxy")).unwrap();
    let curl = "#!/bin/sh\nPATH=${PATH#*:} exec curl --silent --show-error --max-time 20 \
                --write-out '%{stderr}STATUS %{http_code}\\n' \"$@\"\n";
    fs::write(folder.join("curl"), curl).unwrap();
    fs::set_permissions(folder.join("curl"), fs::Permissions::from_mode(0o755)).unwrap();
}

/// Whether there is such a target.
fn make(text: &str) -> Result<(), String> {
    let words = text.split_whitespace().skip(1);
    let told = Command::new("make").arg("-n").args(words).current_dir(root()).output().unwrap();
    match told.status.success() {
        true => Ok(()),
        false => Err(String::from_utf8(told.stderr).unwrap()),
    }
}

/// Whether the files of the repository are there that a command names.
fn files_are_there(text: &str) -> Result<(), String> {
    let word = |c: char| c.is_whitespace() || matches!(c, '"' | '\'' | '=' | ':' | ',');
    for name in text.split(word).map(|name| name.trim_start_matches("./")) {
        let folder = name.split('/').next().unwrap();
        let ours = ["conf", "docs", "examples", "helm", "lua", "scripts"].contains(&folder);
        if ours && name.contains('/') && !root().join(name).exists() {
            return Err(format!("there is no {name}"));
        }
    }
    Ok(())
}
