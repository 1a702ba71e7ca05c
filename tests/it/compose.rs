//! The Docker Compose example: its files and the processes that they run, without containers.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use futures::future::join_all;
use llmproxy::base::duration;
use serde_yaml::Value;

use crate::support::{eventually, http, promtool::promtool, python};

mod stack;

use stack::Stack;

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/compose").join(name)
}

fn read(name: &str) -> String {
    fs::read_to_string(file(name)).unwrap()
}

fn run(command: &mut Command) -> String {
    let out = command.stdin(Stdio::null()).output().unwrap();
    let printed = [out.stdout, out.stderr].concat();
    let printed = String::from_utf8(printed).unwrap();
    assert!(out.status.success(), "{command:?}\n{printed}");
    printed
}

/// The variables of `.env.example`.
fn variables() -> BTreeMap<String, String> {
    let text = read(".env.example");
    let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    let pairs = lines.map(|line| line.split_once('=').unwrap());
    pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

/// The names in `${NAME}`, `${NAME:-default}` and `${NAME:?message}` of a text, with `true` if they must
/// be set.
fn named(text: &str) -> BTreeSet<(String, bool)> {
    let inner = text.split("${").skip(1).map(|rest| rest.split('}').next().unwrap());
    inner.map(|i| (i.split(':').next().unwrap().to_owned(), !i.contains(":-"))).collect()
}

/// Replaces the variables in a value as Compose does.
fn filled(value: Value, env: &BTreeMap<String, String>) -> Value {
    match value {
        Value::String(text) => {
            let mut parts = text.split("${");
            let mut out = parts.next().unwrap().to_owned();
            for part in parts {
                let (inner, rest) = part.split_once('}').unwrap();
                let name = inner.split(':').next().unwrap();
                out += env.get(name).unwrap_or_else(|| panic!("{name} is not set"));
                out += rest;
            }
            Value::String(out)
        }
        Value::Sequence(list) => list.into_iter().map(|v| filled(v, env)).collect(),
        Value::Mapping(map) => {
            Value::Mapping(map.into_iter().map(|(k, v)| (k, filled(v, env))).collect())
        }
        other => other,
    }
}

/// `compose.yaml` with these variables.
fn compose(env: &BTreeMap<String, String>) -> Value {
    let mut value: Value = serde_yaml::from_str(&read("compose.yaml")).unwrap();
    value.apply_merge().unwrap();
    filled(value, env)
}

fn words(value: &Value) -> Vec<String> {
    let list = value.as_sequence().unwrap();
    list.iter().map(|word| word.as_str().unwrap().to_owned()).collect()
}

fn services(compose: &Value) -> impl Iterator<Item = (&str, &Value)> {
    compose["services"].as_mapping().unwrap().iter().map(|(name, s)| (name.as_str().unwrap(), s))
}

/// The mounts of a service from the repository: source and target.
fn mounts(service: &Value) -> Vec<(String, String)> {
    let Some(list) = service.get("volumes") else { return Vec::new() };
    let files = words(list).into_iter().filter(|mount| mount.starts_with('.'));
    files
        .map(|mount| {
            let mut parts = mount.split(':').map(str::to_owned);
            let mounted = (parts.next().unwrap(), parts.next().unwrap());
            assert_eq!(parts.next().as_deref(), Some("ro"), "{mount}");
            mounted
        })
        .collect()
}

#[test]
fn the_compose_file_is_valid() {
    let python = python::programs("tests/compose");
    let mut check = Command::new(python.join("check-jsonschema"));
    run(check.args(["--builtin-schema", "vendor.compose-spec"]).arg(file("compose.yaml")));
    // If Compose is installed, it decides.
    let has = Command::new("docker").args(["compose", "version"]).output();
    if has.is_ok_and(|out| out.status.success()) {
        let mut docker = Command::new("docker");
        docker.args(["compose", "--env-file"]).arg(file(".env.example")).arg("--file");
        docker.arg(file("compose.yaml")).args(["--profile", "sim", "--profile", "gpu"]);
        run(docker.args(["config", "--quiet"]));
    }
}

#[test]
fn names_used_in_one_file_exist_in_the_others() {
    let (text, env) = (read("compose.yaml"), variables());
    let wanted: BTreeSet<_> = named(&text).into_iter().map(|(name, _)| name).collect();
    assert!(wanted.iter().eq(env.keys()), "{wanted:?} {env:?}");
    let compose = compose(&env);
    let mut mounted = 0;
    for (name, service) in services(&compose) {
        for (from, _) in mounts(service) {
            assert!(file(&from).exists(), "{name}: {from}");
            mounted += 1;
        }
        // Each service with data has a declared volume.
        for mount in service.get("volumes").map(words).unwrap_or_default() {
            let source = mount.split(':').next().unwrap();
            let declared = compose["volumes"].get(source).is_some();
            assert!(source.starts_with('.') || declared, "{name}: {mount}");
        }
        let image = service["image"].as_str().unwrap();
        assert!(image.contains(':') && !image.ends_with(":latest"), "{name}: {image}");
    }
    assert_eq!(mounted, 6);
    let gateway = &compose["services"]["gateway"];
    for (name, _) in named(&read("gateway/llmproxy.yaml")).iter().filter(|(_, must)| *must) {
        assert!(gateway["environment"].get(name).is_some(), "{name} is not given to the gateway");
    }
    let tag = format!("ghcr.io/llmproxy/llmproxy:{}", env!("CARGO_PKG_VERSION"));
    assert_eq!(gateway["image"].as_str(), Some(tag.as_str()));
    let readme = read("README.md");
    for (name, _) in named(&read("gateway/llmproxy.yaml")).iter().filter(|(_, must)| !must) {
        assert!(
            readme.contains(name.as_str()) || name.ends_with("LISTEN"),
            "README.md does not describe {name}"
        );
    }
}

#[test]
fn only_the_api_is_reachable_from_other_machines() {
    let compose = compose(&variables());
    let published: Vec<_> = services(&compose)
        .flat_map(|(_, s)| s.get("ports").map(words).unwrap_or_default())
        .collect();
    assert_eq!(published, ["8000:8000", "127.0.0.1:9090:9090", "127.0.0.1:3000:3000"]);
    let readme = read("README.md");
    for port in ["localhost:8000", "localhost:9090", "localhost:3000"] {
        assert!(readme.contains(port), "{port}");
    }
    for name in ["gateway", "sim"] {
        let service = &compose["services"][name];
        assert_eq!(service["read_only"], true);
        assert_eq!(words(&service["cap_drop"]), ["ALL"]);
        assert_eq!(service["user"], "65532:65532");
    }
    for (name, service) in services(&compose).filter(|(name, _)| *name != "vllm") {
        assert_eq!(words(&service["security_opt"]), ["no-new-privileges:true"], "{name}");
    }
    let grafana = &compose["services"]["grafana"]["environment"];
    assert_eq!(grafana["GF_AUTH_ANONYMOUS_ORG_ROLE"], "Viewer");
    assert_eq!(grafana["GF_SECURITY_DISABLE_INITIAL_ADMIN_CREATION"], "true");
}

#[test]
fn the_stop_grace_period_is_long_enough() {
    let of = |text: &Value| duration::parse(text.as_str().unwrap()).unwrap();
    let compose = compose(&variables());
    let grace = of(&compose["services"]["gateway"]["stop_grace_period"]);
    let gateway: Value = serde_yaml::from_str(&read("gateway/llmproxy.yaml")).unwrap();
    let drain = of(&gateway["server"]["graceful_shutdown_timeout"]);
    assert!(grace > drain + Duration::from_secs(5), "{grace:?} {drain:?}");
}

/// Creates the folders of the Prometheus container below `root`. Returns the configuration with replaced
/// paths.
fn container(service: &Value, root: &Path) -> String {
    let text = read("prometheus/prometheus.yml");
    for (from, to) in mounts(service) {
        let (from, to) = (file(&from), to.trim_start_matches('/'));
        if from.is_file() {
            fs::create_dir_all(root.join(to).parent().unwrap()).unwrap();
            fs::copy(from, root.join(to)).unwrap();
        }
    }
    let rules = "/etc/prometheus-rules";
    text.replace(rules, &format!("{}{rules}", root.display()))
}

#[test]
fn the_prometheus_configuration_is_valid() {
    let folder = tempfile::tempdir().unwrap();
    let compose = compose(&variables());
    let text = container(&compose["services"]["prometheus"], folder.path());
    let path = folder.path().join("prometheus.yml");
    fs::write(&path, text).unwrap();
    let printed = run(Command::new(promtool()).args(["check", "config"]).arg(&path));
    assert!(printed.contains("1 rule files found"), "{printed}");
}

/// The result of a query with one value; 0 if there is none yet, or Prometheus is still starting.
async fn value(api: &str, query: &str) -> f64 {
    let url = reqwest::Url::parse_with_params(&format!("{api}/query"), [("query", query)]).unwrap();
    let response = http::get(url).await.unwrap().text().await.unwrap();
    let response: serde_json::Value = serde_json::from_str(&response).unwrap_or_default();
    response["data"]["result"][0]["value"][1].as_str().map_or(0.0, |value| value.parse().unwrap())
}

#[tokio::test]
async fn traffic_is_metered_and_shown() {
    let mut stack = Stack::start().await;
    let (key, readme) = ("sk-0123456789abcdef", read("README.md"));
    assert_eq!(stack.ask("sk-any-other").await, 401);
    // The commands of the README.
    let make = readme.lines().find_map(|l| l.strip_prefix("docker compose exec redis redis-cli "));
    let make = make.unwrap().replace('"', "").replace("$KEY", key);
    stack.redis.command(&make.split(' ').collect::<Vec<_>>());
    let statuses = join_all((0..10).map(|_| stack.ask(key))).await;
    assert_eq!(statuses, [200; 10]);
    let sql = readme.split("psql -U llmproxy -c \"").nth(1).unwrap().split('"').next().unwrap();
    let mut row = String::new();
    eventually("ten rows", async || {
        // The table does not exist before the first record.
        let there = stack.postgres.run("SELECT to_regclass('usage_records')");
        if !there.trim().is_empty() {
            row = stack.postgres.run(sql);
        }
        row.split('\t').nth(4) == Some("10")
    })
    .await;
    let columns: Vec<_> = row.trim().split('\t').collect();
    assert_eq!(columns[1..4], ["research", "user_001", stack.env["MODEL"].as_str()], "{row}");
    assert_eq!(columns[6], "640", "ten times --tokens: {row}");
    assert!(columns[7].parse::<f64>().unwrap() > 0.0, "a cost: {row}");

    let api = stack.observed().await;
    eventually("all is scraped", async || value(&api, "sum(up)").await == 3.0).await;
    let served = r#"sum(llmproxy_requests_total{status="200",job="llmproxy"})"#;
    eventually("requests are seen", async || value(&api, served).await == 10.0).await;
    // Two addresses of one name are two backends, and the load of both is read.
    let up = r#"count(llmproxy_backend_up{backend=~"vllm@127.*"} == 1)"#;
    eventually("both backends are up", async || value(&api, up).await == 2.0).await;
    assert_eq!(value(&api, "sum(vllm:generation_tokens_total)").await, 640.0);
    stack.healthy("gateway", &[]);
    let sims = stack.sims.clone();
    for sim in &sims {
        stack.healthy("sim", &[("127.0.0.1:8000", sim.to_string())]);
    }
}
