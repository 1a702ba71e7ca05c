//! The chart with running processes: its configuration is mounted and updated as Kubernetes does it.

use std::{fs, net::SocketAddr, os::unix::fs::symlink, path::PathBuf};

use serde_yaml::{Mapping, Value};
use tempfile::TempDir;

use super::support::{
    Client, Gateway, chat, eventually, free_address,
    helm::{Rendering, Tools},
    sim,
};

/// A ConfigMap mounted as a folder. Each file is a link into `..data`, which is a link to one folder per
/// state, so that all files change at once.
struct Mounted {
    folder: TempDir,
    states: usize,
}

impl Mounted {
    fn new(files: &Mapping) -> Self {
        let mut mounted = Self { folder: tempfile::tempdir().unwrap(), states: 0 };
        mounted.put(files);
        for name in files.keys().map(|name| name.as_str().unwrap()) {
            symlink(PathBuf::from("..data").join(name), mounted.path(name)).unwrap();
        }
        mounted
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn put(&mut self, files: &Mapping) {
        self.states += 1;
        let state = format!("..2026_11_21_{}", self.states);
        fs::create_dir(self.path(&state)).unwrap();
        for (name, text) in files {
            let file = self.path(&state).join(name.as_str().unwrap());
            fs::write(file, text.as_str().unwrap()).unwrap();
        }
        symlink(&state, self.path("..data_tmp")).unwrap();
        fs::rename(self.path("..data_tmp"), self.path("..data")).unwrap();
        if self.states > 1 {
            let old = format!("..2026_11_21_{}", self.states - 1);
            fs::remove_dir_all(self.path(&old)).unwrap();
        }
    }
}

/// The values of an installation on this machine.
struct Here {
    backend: String,
    api: SocketAddr,
    metrics: SocketAddr,
    data: TempDir,
}

impl Here {
    /// Values with a model, a decision of the script, and additions to the section `server`.
    fn values(&self, model: &str, allow: bool, server: &str) -> String {
        let Self { backend, api, metrics, data } = self;
        let data = data.path().display();
        format!(
            r#"
config:
  listen: "{api}"
  data_dir: {data}
  server: {{metrics_listen: "{metrics}", {server}}}
  backends: [{{url: "{backend}", name: engine}}]
  models: {{{model}: {{routes: [{{backend: engine, model: sim-model}}]}}}}
  auth:
    pipeline: [{{type: lua, lua: {{path: decide.lua}}}}]
  usage: {{reporters: [{{type: builtin}}]}}
scripts:
  decide.lua: |
    return {{allow = {allow}}}
"#
        )
    }
}

/// The status of a request for a model.
async fn asked(gateway: &Gateway, model: &str) -> u16 {
    let mut client = gateway.client().await;
    let body = chat(false).replace("sim-model", model);
    client.post_with("/v1/chat/completions", "X-API-Key: any\r\n", body.as_bytes()).await;
    client.answer().await.status
}

/// The value of `llmproxy_config_reload_success`.
async fn reloaded(metrics: SocketAddr) -> String {
    let text = Client::connect(metrics).await.get("/metrics").await.text().to_owned();
    let mut lines = text.lines();
    lines.find_map(|l| l.strip_prefix("llmproxy_config_reload_success ")).unwrap().to_owned()
}

/// Checks that the probes of the pod succeed.
async fn probed(rendering: &Rendering, here: &Here) {
    let container = rendering.container();
    for probe in ["startupProbe", "livenessProbe", "readinessProbe"] {
        let http = &container[probe]["httpGet"];
        let ports = container["ports"].as_sequence().unwrap();
        let port = ports.iter().find(|port| port["name"] == http["port"]).unwrap();
        let number = port["containerPort"].as_u64().unwrap();
        assert_eq!(number, u64::from(here.metrics.port()));
        eventually(probe, async || {
            let path = http["path"].as_str().unwrap();
            Client::connect(here.metrics).await.get(path).await.status == 200
        })
        .await;
    }
}

#[tokio::test]
async fn a_changed_configmap_is_loaded_in_place() {
    let tools = tokio::task::spawn_blocking(Tools::get).await.unwrap();
    let sim = sim().await;
    let here = Here {
        backend: sim.url(),
        api: free_address(),
        metrics: free_address(),
        data: tempfile::tempdir().unwrap(),
    };
    let first = tools.helm().render(&here.values("first", true, ""));
    let mut mounted = Mounted::new(first.files().unwrap());
    let gateway = Gateway::with_file(mounted.path("llmproxy.yaml"), here.api, &[]).await;
    probed(&first, &here).await;
    assert_eq!(asked(&gateway, "first").await, 200);
    assert_eq!(asked(&gateway, "second").await, 404);
    // Operator endpoints are not on the port of the API.
    assert_eq!(gateway.client().await.get("/metrics").await.status, 404);
    // The data are in the volume of the pod.
    assert!(here.data.path().join("usage").is_dir());

    let second = tools.helm().render(&here.values("second", true, ""));
    assert_eq!(second.checksum(), first.checksum(), "the pods would be rolled");
    mounted.put(second.files().unwrap());
    eventually("the new model", async || asked(&gateway, "second").await == 200).await;
    assert_eq!(asked(&gateway, "first").await, 404);

    // A change of a script only.
    let third = tools.helm().render(&here.values("second", false, ""));
    mounted.put(third.files().unwrap());
    eventually("the new script", async || asked(&gateway, "second").await == 403).await;
    assert_eq!(reloaded(here.metrics).await, "1");

    // A change that needs a restart is refused by the running gateway, and rolls the pods.
    let fourth = tools.helm().render(&here.values("fourth", true, "threads: 3"));
    assert_ne!(fourth.checksum(), first.checksum(), "the change would never be applied");
    mounted.put(fourth.files().unwrap());
    eventually("the refusal", async || reloaded(here.metrics).await == "0").await;
    gateway.logs("a change of server.threads needs a restart").await;
    assert_eq!(asked(&gateway, "second").await, 403);
}

/// The command line of the first container of a pod, with a replaced address.
fn command(pod: &Value, theirs: &str, ours: SocketAddr) -> tokio::process::Command {
    let words = pod["spec"]["containers"][0]["args"].as_sequence().unwrap().iter();
    let words: Vec<_> = words.map(|word| word.as_str().unwrap()).collect();
    assert!(words.iter().any(|word| word.contains(theirs)), "{words:?}");
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_llmproxy"));
    command.args(words.iter().map(|word| word.replace(theirs, &ours.to_string())));
    command.kill_on_drop(true);
    command
}

/// The command of `helm test` succeeds with a ready gateway, and fails without one.
#[tokio::test]
async fn helm_test_checks_the_gateway() {
    let tools = tokio::task::spawn_blocking(Tools::get).await.unwrap();
    let sim = sim().await;
    let gateway = Gateway::before(&[sim.url()], "").await;
    let rendering = tools.helm().render("{}");
    let pod = rendering.find("Pod", "edge-llmproxy-test").unwrap();
    for (address, ready) in [(gateway.address, true), (free_address(), false)] {
        let mut ask = command(pod, "edge-llmproxy.llm:8000", address);
        assert_eq!(ask.status().await.unwrap().success(), ready);
    }
}

#[tokio::test]
async fn the_simulator_of_the_chart_serves_its_model() {
    let tools = tokio::task::spawn_blocking(Tools::get).await.unwrap();
    let rendering = tools.helm().render("simulator: {enabled: true, model: ours}");
    let pod = &rendering.find("Deployment", "edge-llmproxy-simulator").unwrap()["spec"]["template"];
    let address = free_address();
    let _simulator = command(pod, "0.0.0.0:8000", address).spawn().unwrap();
    let gateway = Gateway::before(&[format!("http://{address}")], "").await;
    eventually("an answer", async || asked(&gateway, "ours").await == 200).await;
}
