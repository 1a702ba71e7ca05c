//! The chart in processes that run: its configuration mounted as Kubernetes mounts it, and renewed as
//! Kubernetes renews it; its other commands.

use std::{fs, net::SocketAddr, os::unix::fs::symlink, path::PathBuf};

use serde_yaml::{Mapping, Value};
use tempfile::TempDir;

use super::support::{
    Client, Gateway, chat, eventually, free_address,
    helm::{Rendering, Tools},
    sim,
};

/// A ConfigMap in a folder. Each file is a link to what is in `..data`, which is a link to a folder
/// of its own for each state: so all files change at once.
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
    /// With a name for the model, an answer of the script, and more of the section `server`.
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

/// Whether the probes of the pod find what they ask for at the ports that they name.
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
    // What is for operators is not at the port that the Service of the API leads to.
    assert_eq!(gateway.client().await.get("/metrics").await.status, 404);
    // The data are where the pod has its volume.
    assert!(here.data.path().join("usage").is_dir());

    let second = tools.helm().render(&here.values("second", true, ""));
    assert_eq!(second.checksum(), first.checksum(), "the pods would be rolled");
    mounted.put(second.files().unwrap());
    eventually("the new model", async || asked(&gateway, "second").await == 200).await;
    assert_eq!(asked(&gateway, "first").await, 404);

    // A script alone.
    let third = tools.helm().render(&here.values("second", false, ""));
    mounted.put(third.files().unwrap());
    eventually("the new script", async || asked(&gateway, "second").await == 403).await;
    assert_eq!(reloaded(here.metrics).await, "1");

    // What needs a restart is refused where it runs, and rolls the pods.
    let fourth = tools.helm().render(&here.values("fourth", true, "threads: 3"));
    assert_ne!(fourth.checksum(), first.checksum(), "nobody would ever see it");
    mounted.put(fourth.files().unwrap());
    eventually("the refusal", async || reloaded(here.metrics).await == "0").await;
    gateway.logs("a change of server.threads needs a restart").await;
    assert_eq!(asked(&gateway, "second").await, 403);
}

/// The command line of the first container of a pod, with another address in place of its own.
fn command(pod: &Value, theirs: &str, ours: SocketAddr) -> tokio::process::Command {
    let words = pod["spec"]["containers"][0]["args"].as_sequence().unwrap().iter();
    let words: Vec<_> = words.map(|word| word.as_str().unwrap()).collect();
    assert!(words.iter().any(|word| word.contains(theirs)), "{words:?}");
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_llmproxy"));
    command.args(words.iter().map(|word| word.replace(theirs, &ours.to_string())));
    command.kill_on_drop(true);
    command
}

/// What `helm test` runs finds a gateway that is ready, and not one that is not.
#[tokio::test]
async fn the_test_of_the_release_asks_the_gateway() {
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
