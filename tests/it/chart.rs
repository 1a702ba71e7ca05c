//! The Helm chart: each rendering is valid for Kubernetes and for the gateway, and consistent.

use std::{collections::BTreeSet, fs, path::Path, process::Command};

use serde_yaml::Value;

use super::support::helm::{CHART, Rendering, Tools, examples};

/// Renders each example with each Helm.
fn each_rendering(tools: &Tools, mut look: impl FnMut(&str, &Rendering)) {
    for file in examples() {
        let name = file.as_deref().map_or("defaults".into(), |f| f.display().to_string());
        for helm in &tools.helms {
            let rendering = helm.try_render(file.as_deref(), "{}");
            look(&name, &rendering.unwrap_or_else(|why| panic!("{name}: {why}")));
        }
    }
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_sequence().into_iter().flatten()
}

/// The oldest version of Kubernetes that the chart supports.
fn oldest() -> String {
    let chart: Value = yaml(&Path::new(CHART).join("Chart.yaml"));
    let wanted = chart["kubeVersion"].as_str().unwrap();
    wanted.strip_prefix(">=").unwrap().strip_suffix(".0-0").unwrap().to_owned()
}

fn yaml(path: &Path) -> Value {
    serde_yaml::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

#[test]
fn each_rendering_is_valid_for_kubernetes() {
    let tools = Tools::get();
    let mut texts = Vec::new();
    each_rendering(&tools, |name, rendering| texts.push((name.to_owned(), rendering.text.clone())));
    for versions in texts.chunks(tools.helms.len()) {
        let (name, text) = &versions[0];
        assert!(versions.iter().all(|(_, other)| other == text), "{name}: Helm 3 and 4 differ");
        for version in [&oldest(), "newest"] {
            let said = tools.validate(text, version).unwrap_or_else(|why| panic!("{name}: {why}"));
            eprintln!("{name}: {}", said.trim());
        }
    }
    // The schemas refuse an unknown field, and one that is newer than the version.
    let (_, text) = texts.pop().unwrap();
    for (wrong, right) in [("serviceAccountNam:", "serviceAccountName:"), ("sleeep:", "sleep:")] {
        assert!(
            tools
                .validate(&text.replace(right, wrong), "newest")
                .unwrap_err()
                .contains(wrong.trim_end_matches(':'))
        );
    }
    assert!(tools.validate(&text, "1.28").unwrap_err().contains("'sleep' was unexpected"));
}

#[test]
fn helm_lint_reports_nothing() {
    let tools = Tools::get();
    for helm in &tools.helms {
        for file in examples() {
            let file = file.as_deref().map(|file| file.to_str().unwrap());
            let mut words = vec!["lint", "--strict", CHART];
            words.extend(file.iter().flat_map(|file| ["-f", file]));
            let out = helm.run(&words, "");
            let said = String::from_utf8_lossy(&out.stdout);
            assert!(out.status.success() && !said.contains("[WARNING]"), "{words:?}: {said}");
        }
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().to_str().unwrap();
        let out = helm.run(&["package", CHART, "-d", target], "");
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        let package = folder.path().join(concat!("llmproxy-", env!("CARGO_PKG_VERSION"), ".tgz"));
        let out = helm.run(&["template", "edge", package.to_str().unwrap(), "-f", "-"], MONITORING);
        let said = String::from_utf8_lossy(&out.stdout);
        assert!(out.status.success() && said.contains("kind: PrometheusRule"), "{said}");
    }
}

const MONITORING: &str = "prometheusRule: {enabled: true}\ndashboard: {enabled: true}\n";

#[test]
fn the_readme_is_up_to_date() {
    let tools = Tools::get();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/chart-readme.py");
    let out = Command::new(&tools.python).arg(script).arg("--check").output().unwrap();
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{said}\n(with {})", tools.python.display());
}

#[test]
fn the_chart_installs_this_version() {
    let chart = yaml(&Path::new(CHART).join("Chart.yaml"));
    assert_eq!(chart["appVersion"], env!("CARGO_PKG_VERSION"));
}

/// The gateway accepts the configuration, with the environment and the files of the pod.
#[test]
fn each_configuration_is_valid_for_the_gateway() {
    let tools = Tools::get();
    let mut checked = 0;
    each_rendering(&tools, |name, rendering| {
        let Some(files) = rendering.files() else { return };
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().to_str().unwrap();
        let mounts = secret_files(rendering, folder.path());
        for (file, text) in files {
            let text = text.as_str().unwrap().replace("/run/secrets", root);
            fs::write(folder.path().join(file.as_str().unwrap()), text).unwrap();
        }
        let mut check = Command::new(env!("CARGO_BIN_EXE_llmproxy"));
        let path = std::env::var_os("PATH").unwrap();
        check.env_clear().env("PATH", path);
        for variable in list(&rendering.container()["env"]) {
            let value = variable["value"].as_str().unwrap_or("a-secret-of-some-length");
            check.env(variable["name"].as_str().unwrap(), value);
        }
        let out = check.arg("check").arg("--config").arg(folder.path().join("llmproxy.yaml"));
        let out = out.output().unwrap();
        let said = String::from_utf8_lossy(&out.stderr);
        assert!(out.status.success(), "{name}, with {mounts:?}: {said}");
        checked += 1;
    });
    assert!(checked > 8, "{checked}");
}

/// Creates the secret files of the pod. Returns their names.
fn secret_files(rendering: &Rendering, root: &Path) -> Vec<String> {
    let mut made = Vec::new();
    for volume in list(&rendering.pod()["spec"]["volumes"]) {
        let mounts = list(&rendering.container()["volumeMounts"]);
        let mount = mounts.into_iter().find(|mount| mount["name"] == volume["name"]).unwrap();
        let path = mount["mountPath"].as_str().unwrap();
        let Some(path) = path.strip_prefix("/run/secrets/") else { continue };
        let folder = root.join(path);
        fs::create_dir_all(&folder).unwrap();
        if volume["secret"].is_mapping() {
            let pair = rcgen::generate_simple_self_signed(["gateway".to_owned()]).unwrap();
            fs::write(folder.join("tls.crt"), pair.cert.pem()).unwrap();
            fs::write(folder.join("tls.key"), pair.signing_key.serialize_pem()).unwrap();
            made.push(format!("{path}/tls.crt"));
        }
        for source in list(&volume["projected"]["sources"]) {
            for item in list(&source["secret"]["items"]) {
                let name = item["path"].as_str().unwrap();
                fs::write(folder.join(name), "a-secret-of-some-length\n").unwrap();
                made.push(format!("{path}/{name}"));
            }
        }
    }
    made
}

/// Whether a selector, or a map of labels, matches labels.
fn selects(selector: &Value, labels: &Value) -> bool {
    let wanted = selector.get("matchLabels").unwrap_or(selector).as_mapping().unwrap();
    wanted.iter().all(|(key, value)| labels.get(key) == Some(value))
}

#[test]
fn the_objects_of_a_rendering_are_consistent() {
    let tools = Tools::get();
    each_rendering(&tools, |name, rendering| {
        ports_lead_somewhere(name, rendering);
        routes_lead_to_the_api(name, rendering);
        let pod = rendering.pod();
        let labels = &pod["metadata"]["labels"];
        let workload = rendering.workload();
        assert!(selects(&workload["spec"]["selector"], labels), "{name}");
        for budget in rendering.all("PodDisruptionBudget") {
            assert!(selects(&budget["spec"]["selector"], labels), "{name}");
        }
        for policy in rendering.all("NetworkPolicy") {
            assert!(selects(&policy["spec"]["podSelector"], labels), "{name}");
        }
        for scaler in rendering.all("HorizontalPodAutoscaler") {
            let target = &scaler["spec"]["scaleTargetRef"];
            assert_eq!(target["kind"], workload["kind"], "{name}");
            assert_eq!(target["name"], workload["metadata"]["name"], "{name}");
            assert!(workload["spec"]["replicas"].is_null(), "{name}: two decide on the replicas");
        }
        let claims =
            list(&workload["spec"]["volumeClaimTemplates"]).map(|c| &c["metadata"]["name"]);
        let volumes = list(&pod["spec"]["volumes"]).map(|volume| &volume["name"]);
        let volumes: Vec<_> = claims.chain(volumes).collect();
        let mut paths = Vec::new();
        for mount in list(&rendering.container()["volumeMounts"]) {
            assert!(volumes.contains(&&mount["name"]), "{name}: {mount:?}");
            paths.push(mount["mountPath"].as_str().unwrap());
        }
        let file = Path::new(rendering.container()["args"][2].as_str().unwrap());
        assert!(paths.iter().any(|path| file.starts_with(path)), "{name}: {paths:?}");
        for monitor in rendering.all("ServiceMonitor") {
            let services = rendering.all("Service");
            let found = services.iter().filter(|s| monitored(monitor, s));
            let port = &monitor["spec"]["endpoints"][0]["port"];
            let ports: Vec<_> =
                found.flat_map(|s| list(&s["spec"]["ports"])).map(|p| &p["name"]).collect();
            assert_eq!(ports, [port], "{name}: each pod is scraped once");
        }
    });
}

fn monitored(monitor: &Value, service: &Value) -> bool {
    let labels = &service["metadata"]["labels"];
    let selector = &monitor["spec"]["selector"];
    selects(selector, labels)
        && list(&selector["matchExpressions"]).all(|rule| {
            let label = labels.get(rule["key"].as_str().unwrap());
            match rule["operator"].as_str().unwrap() {
                "In" => label.is_some_and(|label| list(&rule["values"]).any(|v| v == label)),
                _ => label.is_none(),
            }
        })
}

fn ports_lead_somewhere(name: &str, rendering: &Rendering) {
    let container = rendering.container();
    let ports: Vec<_> = list(&container["ports"]).map(|port| &port["name"]).collect();
    for probe in ["startupProbe", "livenessProbe", "readinessProbe"] {
        assert!(ports.contains(&&container[probe]["httpGet"]["port"]), "{name}: {probe}");
    }
    let mut served = BTreeSet::new();
    for service in rendering.all("Service") {
        if selects(&service["spec"]["selector"], &rendering.pod()["metadata"]["labels"]) {
            for port in list(&service["spec"]["ports"]) {
                assert!(ports.contains(&&port["targetPort"]), "{name}: {port:?}");
                served.insert(port["targetPort"].as_str().unwrap());
            }
        }
    }
    assert_eq!(served.len(), ports.len(), "{name}: a port without a Service");
}

/// Checks that external traffic reaches only the API.
fn routes_lead_to_the_api(name: &str, rendering: &Rendering) {
    let api = rendering.workload()["metadata"]["name"].as_str().unwrap();
    let service = rendering.find("Service", api).unwrap();
    let ports: Vec<_> = list(&service["spec"]["ports"]).map(|port| &port["targetPort"]).collect();
    assert_eq!(ports, ["http"], "{name}");
    for ingress in rendering.all("Ingress") {
        for rule in list(&ingress["spec"]["rules"]) {
            assert!(rule["host"].is_string(), "{name}");
            for path in list(&rule["http"]["paths"]) {
                assert_eq!(path["backend"]["service"]["name"], api, "{name}");
                assert_eq!(path["backend"]["service"]["port"]["name"], "http", "{name}");
            }
        }
    }
    for route in rendering.all("HTTPRoute") {
        for backend in list(&route["spec"]["rules"][0]["backendRefs"]) {
            assert_eq!(backend["name"], api, "{name}");
            assert_eq!(backend["port"], service["spec"]["ports"][0]["port"], "{name}");
        }
    }
    for policy in rendering.all("NetworkPolicy") {
        for rule in list(&policy["spec"]["ingress"]) {
            let open = rule["from"].as_sequence().is_none_or(Vec::is_empty);
            let port = &rule["ports"][0]["port"];
            assert!(!open || port == "http", "{name}: {port:?} is open for all peers");
        }
    }
}

#[test]
fn pods_are_restricted_and_no_secret_is_created() {
    let tools = Tools::get();
    each_rendering(&tools, |name, rendering| {
        assert!(rendering.all("Secret").is_empty(), "{name}");
        for object in &rendering.objects {
            let pod = match object["kind"].as_str().unwrap() {
                "Pod" => &object["spec"],
                "Deployment" | "StatefulSet" => &object["spec"]["template"]["spec"],
                _ => continue,
            };
            assert_eq!(pod["automountServiceAccountToken"], false, "{name}");
            let whole = &pod["securityContext"];
            assert_eq!(whole["runAsNonRoot"], true, "{name}");
            assert_eq!(whole["runAsUser"], 65532, "{name}");
            assert_eq!(whole["seccompProfile"]["type"], "RuntimeDefault", "{name}");
            // The user decides about additional containers.
            let ours = list(&pod["containers"]).filter(|c| c["name"] != "sidecar");
            for container in ours.map(|container| &container["securityContext"]) {
                assert_eq!(container["allowPrivilegeEscalation"], false, "{name}");
                assert_eq!(container["readOnlyRootFilesystem"], true, "{name}");
                assert_eq!(container["capabilities"]["drop"][0], "ALL", "{name}");
            }
        }
    });
}

#[test]
fn pods_have_time_to_drain() {
    let tools = Tools::get();
    let mut seen = Vec::new();
    let mut look = |rendering: &Rendering| {
        let Some(configuration) = rendering.configuration() else { return };
        let configuration: Value = serde_yaml::from_str(configuration).unwrap();
        let drain = configuration["server"]["graceful_shutdown_timeout"].as_str().unwrap();
        let drain = llmproxy::base::duration::parse(drain).unwrap().as_secs_f64();
        let pause = &rendering.container()["lifecycle"]["preStop"]["sleep"]["seconds"];
        let pause = pause.as_f64().unwrap_or(0.0);
        let grace = &rendering.pod()["spec"]["terminationGracePeriodSeconds"];
        let grace = grace.as_f64().unwrap();
        assert!(grace >= pause + drain + 10.0, "{grace} is not {pause} and {drain}");
        seen.push((drain, grace));
    };
    each_rendering(&tools, |_, rendering| look(rendering));
    for drain in ["0", "500ms", "1.5m", "1h0.5s", "1d"] {
        let values = format!(
            "config: {{server: {{graceful_shutdown_timeout: \"{drain}\"}}}}\npreStopSeconds: 0"
        );
        look(&tools.helm().render(&values));
    }
    assert_eq!(
        seen[seen.len() - 4..],
        [(0.5, 16.0), (90.0, 105.0), (3600.5, 3616.0), (86400.0, 86415.0)]
    );
}

/// The rules and the dashboard are rendered as they are in the files.
#[test]
fn alerts_and_dashboard_are_rendered_unchanged() {
    let tools = Tools::get();
    let rendering = tools.helm().render(MONITORING);
    let file = |name: &str| fs::read_to_string(Path::new(CHART).join("files").join(name)).unwrap();
    let alerts: Value = serde_yaml::from_str(&file("alerts.yaml")).unwrap();
    assert!(file("alerts.yaml").contains("{{"), "nothing shows that templates survive");
    assert_eq!(rendering.all("PrometheusRule")[0]["spec"]["groups"], alerts["groups"]);
    let board = rendering.find("ConfigMap", "edge-llmproxy-dashboard").unwrap();
    assert_eq!(board["data"]["llmproxy.json"], file("dashboard.json"));
    assert_eq!(board["metadata"]["labels"]["grafana_dashboard"], "1");

    let rule = alerts["groups"][0]["rules"][0]["alert"].as_str().unwrap();
    let without = format!("{MONITORING}\nprometheusRule: {{enabled: true, disabled: [{rule}]}}")
        .replacen("prometheusRule: {enabled: true}\n", "", 1);
    let rendering = tools.helm().render(&without);
    let groups = &rendering.all("PrometheusRule")[0]["spec"]["groups"];
    assert!(!serde_yaml::to_string(groups).unwrap().contains(rule));
}
