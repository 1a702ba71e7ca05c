//! The values of the Helm chart: which are refused and why, and which roll the pods.

use std::{fs, path::Path};

use serde_yaml::Value;

use super::support::helm::{CHART, Rendering, Tools};

#[test]
fn invalid_values_are_refused() {
    let tools = Tools::get();
    let cases = [
        ("replicaCont: 2", "replicaCont"),
        ("replicaCount: -1", "replicaCount"),
        ("replicaCount: \"2\"", "replicaCount"),
        ("image: {tga: x}", "tga"),
        ("image: {digest: latest}", "digest"),
        ("kind: DaemonSet", "kind"),
        ("reload: restart", "reload"),
        ("service: {type: ExternalName}", "type"),
        ("service: {port: 70000}", "port"),
        ("service: {spec: {selector: {a: b}}}", "selector"),
        ("config: {usage: }", "usage"),
        ("scripts: {\"../llmproxy.yaml\": x}", "llmproxy.yaml"),
        ("secrets: [{secretName: a, key: b}]", "env"),
        ("secrets: [{env: A, value: text}]", "value"),
        ("secrets: [{env: A-B, secretName: a, key: b}]", "env"),
        ("persistence: {accessMode: ReadWriteMany}", "accessMode"),
        ("redis: {password: text}", "password"),
        ("admin: {token: text}", "token"),
        ("commonLabels: {app.kubernetes.io/name: other}", "app.kubernetes.io/name"),
        ("vllm: {fleets: [{name: \"Not A Name\"}]}", "name"),
        ("vllm: {fleets: [{name: a, selector: {a: 1}}]}", "selector"),
        ("ingress: {paths: [v1]}", "paths"),
        ("autoscaling: {minReplicas: 0}", "minReplicas"),
    ];
    for (values, word) in cases {
        for helm in &tools.helms {
            let Err(why) = helm.try_render(None, values) else { panic!("{values} is taken") };
            assert!(why.contains("don't meet the specifications of the schema"), "{values}: {why}");
            assert!(why.contains(word), "{values}: {why}");
        }
    }
}

/// Contradictory values and their messages.
const CONTRADICTIONS: &[(&str, &str)] = &[
    ("{kind: Deployment, persistence: {enabled: true}}", "a spool belongs to one gateway"),
    ("{emptyDirSize: 1Gi}", "emptyDirSize: 1Gi is too small for a full spool"),
    (
        "{persistence: {enabled: true, size: 10Gi}, config: {usage: {spool: {max_size: 10GiB}}}}",
        "persistence.size: 10Gi is too small",
    ),
    ("{emptyDirSize: much}", "emptyDirSize: \"much\" is not a size"),
    ("{config: {data_dir: data}}", "config.data_dir: must be an absolute path"),
    ("{config: {listen: \":${PORT}\"}}", "config.listen: \":${PORT}\" does not end in a port"),
    ("{config: {server: {metrics_listen: \"9100\"}}}", "config.server.metrics_listen: \"9100\""),
    ("{config: {server: {graceful_shutdown_timeout: soon}}}", "\"soon\" is not a duration"),
    ("{terminationGracePeriodSeconds: 84}", "terminationGracePeriodSeconds: 84 would kill streams"),
    (
        "{vllm: {fleets: [{name: a, host: h}]}, config: {backends: [{name: a, url: \"http://a\"}]}}",
        "backends: two of them have the name a",
    ),
    ("{vllm: {fleets: [{name: a}]}}", "vllm.fleets: a has neither a selector nor a host"),
    ("{vllm: {fleets: [{name: admin, host: h}]}}", "vllm.fleets: the name admin is reserved"),
    ("{existingConfigMap: a, reload: rollout}", "reload: `rollout` does not work with `existingConfigMap`"),
    ("{admin: {enabled: true}}", "admin.existingSecret: the admin API needs a token"),
    ("{config: {admin: {enabled: true}}}", "config.admin.enabled: set admin.enabled"),
    ("{tls: {enabled: true}}", "tls.secretName: is missing"),
    (
        "{config: {server: {tls: {cert_file: a, key_file: b}}}}",
        "config.server.tls: set tls.enabled",
    ),
    ("{redis: {enabled: true}}", "redis.addr: is missing"),
    ("{database: {enabled: true}}", "database.host: is missing"),
    ("{ingress: {enabled: true}}", "ingress.hosts: is missing"),
    ("{httpRoute: {enabled: true}}", "httpRoute.parentRefs: is missing"),
    (
        "{autoscaling: {enabled: true, minReplicas: 5, maxReplicas: 3}}",
        "minReplicas (5) is more than",
    ),
    (
        "{autoscaling: {enabled: true, targetCPUUtilizationPercentage: null}}",
        "set at least one metric",
    ),
    (
        "{autoscaling: {enabled: true}, resources: {requests: {cpu: null}}}",
        "resources.requests.cpu",
    ),
    ("{config: {auth: {pipeline: [{type: builtin}]}}}", "keys of type `builtin`"),
    (
        "{extraObjects: [{apiVersion: v1, kind: Secret, metadata: {name: a}}]}",
        "extraObjects: a Secret",
    ),
    (
        "{extraObjects: [\"kind: ConfigMap\\n---\\nkind: 'Secret'\\n\"]}",
        "extraObjects: a Secret",
    ),
    (
        "{networkPolicy: {enabled: true, egress: {enabled: true}}, redis: {enabled: true, addr: \"a:1\"},
          vllm: {fleets: [{name: x, host: h}]}}",
        "networkPolicy.egress.rules: no rule allows redis, the host of the fleet x",
    ),
    // Secrets in a ConfigMap.
    (
        "{config: {usage_hook: {url: \"https://a:b@c/d\"}}}",
        "config.usage_hook.url: a ConfigMap must not contain a secret",
    ),
    (
        "{config: {usage: {reporters: [{webhook: {headers: {api-key: x}}}]}}}",
        "config.usage.reporters[0].webhook.headers.api-key: a ConfigMap must not contain a secret",
    ),
    ("{config: {api_keys: [{key: sk-text}]}}", "config.api_keys[0].key: a ConfigMap must not contain a secret"),
    (
        "{config: {usage: {reporters: [{webhook: {headers: {Authorization: Bearer x}}}]}}}",
        "config.usage.reporters[0].webhook.headers.Authorization: a ConfigMap must not contain a secret",
    ),
    (
        "{config: {storage: {databases: [{dsn: \"mysql://a:b@c/d\"}]}}}",
        "config.storage.databases[0].dsn: a ConfigMap must not contain a secret",
    ),
    ("{redis: {options: {password: text}}}", "redis.options.password: a ConfigMap must not contain a secret"),
    (
        "{vllm: {fleets: [{name: a, host: b, backend: {api_key: text}}]}}",
        "vllm.fleets[0].backend.api_key: a ConfigMap must not contain a secret",
    ),
];

#[test]
fn contradictions_are_refused_with_a_reason() {
    let tools = Tools::get();
    for &(values, reason) in CONTRADICTIONS {
        let Err(why) = tools.helm().try_render(None, values) else { panic!("{values} is taken") };
        assert!(why.contains(reason), "{values}: {why}");
    }
}

#[test]
fn consistent_values_are_accepted() {
    let tools = Tools::get();
    for values in [
        "{terminationGracePeriodSeconds: 85}",
        "{replicaCount: 1, config: {auth: {pipeline: [{type: builtin}]}}}",
        "{config: {auth: {pipeline: [{type: builtin, enabled: false}]}}}",
        "{config: {api_keys: [{key: \"${KEY:-sk-for-a-test-only}\"}]}}",
        "{config: {storage: {databases: [{dsn: \"mysql://a@c/d\"}]}}}",
        "{emptyDirSize: 1500Mi}",
        "{config: {usage: {spool: {max_size: 536870912}}}}",
        "{networkPolicy: {enabled: true, egress: {enabled: true}}}",
        "{emptyDirSize: 100Mi, config: {usage: {spool: {enabled: false}}}}",
        "{config: {server: null}}",
        "{probes: {startup: null}}",
        "{global: {anything: of a chart above}}",
    ] {
        tools.helm().render(values);
    }
}

/// The default backends are the pods with vLLM's own label.
#[test]
fn backends_come_from_all_values() {
    let tools = Tools::get();
    let cases: &[(&str, &[&str], usize)] = &[
        ("{}", &["vllm"], 1),
        ("{config: {backends: [{name: a, url: \"http://a\"}]}}", &["a"], 0),
        ("{simulator: {enabled: true}}", &["simulator"], 0),
        ("{config: {discovery: {sources: [{type: file, file: {path: a}}]}}}", &[], 0),
        ("{vllm: {fleets: [{name: x, host: h}, {name: z, selector: {a: b}}]}}", &["x", "z"], 1),
        (
            "{vllm: {fleets: [{name: x, selector: {a: b}}]}, simulator: {enabled: true},
              config: {backends: [{name: a, url: \"http://a\"}]}}",
            &["a", "x", "simulator"],
            1,
        ),
    ];
    for (values, names, services) in cases {
        let rendering = tools.helm().render(values);
        assert_eq!(backends(&rendering), *names, "{values}");
        let component = |service: &&Value| {
            service["metadata"]["labels"]["app.kubernetes.io/component"] == "backend"
        };
        let fleets = rendering.all("Service").into_iter().filter(component);
        assert_eq!(fleets.count(), *services, "{values}");
    }
}

fn backends(rendering: &Rendering) -> Vec<String> {
    let configuration: Value = serde_yaml::from_str(rendering.configuration().unwrap()).unwrap();
    let all = configuration["backends"].as_sequence().unwrap().iter();
    all.map(|backend| backend["name"].as_str().unwrap().to_owned()).collect()
}

/// The values in the README are valid.
#[test]
fn the_values_of_the_readme_are_valid() {
    let tools = Tools::get();
    let readme = fs::read_to_string(Path::new(CHART).join("README.md")).unwrap();
    let blocks = readme.split("```yaml\n").skip(1).map(|rest| rest.split("```").next().unwrap());
    // One block is for prometheus-adapter.
    let ours: Vec<_> = blocks.filter(|block| !block.starts_with("rules:")).collect();
    let renderings: Vec<_> = ours.iter().map(|values| tools.helm().render(values)).collect();
    assert!(renderings.len() >= 3, "{}", renderings.len());
    assert_eq!(backends(&renderings[0]), ["hosted", "qwen-72b", "qwen-7b"]);
}

/// Changes that need a restart roll the pods; with `rollout` all changes of the configuration do.
#[test]
fn pods_are_rolled_only_if_necessary() {
    let tools = Tools::get();
    let checksum = |reload: &str, change: &str| {
        let values = format!("{{reload: {reload}, {change}}}");
        let rendering = tools.helm().render(&values);
        let (name, sum) = rendering.checksum();
        (name.to_owned(), sum.to_owned())
    };
    let (live, whole) = ("in-place", "rollout");
    let before = checksum(live, "replicaCount: 2");
    assert_eq!(before.0, "checksum/restart-keys");
    let before_whole = checksum(whole, "replicaCount: 2");
    assert_eq!(before_whole.0, "checksum/config");

    for change in [
        "config: {timeouts: {connect: 3s}}",
        "config: {server: {graceful_shutdown_timeout: 2m}}",
        "config: {log: {level: debug}}",
        "config: {usage: {spool: {max_size: 500MiB}}}",
        "vllm: {fleets: [{name: other, host: h}]}",
        "scripts: {a.lua: return true}",
    ] {
        assert_eq!(checksum(live, change), before, "{change}");
        assert_ne!(checksum(whole, change), before_whole, "{change}");
    }
    for change in [
        "config: {listen: \":9000\"}",
        "config: {data_dir: /data}",
        "config: {server: {threads: 3}}",
        "config: {server: {h2c: false}}",
        "config: {server: {metrics_listen: null}}",
        "tls: {enabled: true, secretName: t}",
        "admin: {enabled: true, existingSecret: a}",
        "config: {admin: {db_path: /data/keys.db}}",
        "config: {log: {format: text}}",
        "config: {rate_limit: {db_path: /data/limits.db}}",
        "config: {usage: {spool: {path: /data/spool}}}",
    ] {
        assert_ne!(checksum(live, change), before, "{change}");
        assert_ne!(checksum(whole, change), before_whole, "{change}");
    }
    for change in ["service: {port: 80}", "replicaCount: 5", "serviceMonitor: {enabled: true}"] {
        assert_eq!(checksum(live, change), before, "{change}");
        assert_eq!(checksum(whole, change), before_whole, "{change}");
    }
    // With `rollout` the files are mounted by `subPath`.
    for (reload, paths) in [(live, 0), (whole, 2)] {
        let rendering =
            tools.helm().render(&format!("{{reload: {reload}, scripts: {{a.lua: x}}}}"));
        let mounts = rendering.container()["volumeMounts"].as_sequence().unwrap();
        assert_eq!(mounts.iter().filter(|m| m["subPath"].is_string()).count(), paths, "{reload}");
    }
}

#[test]
fn the_notes_contain_recommendations() {
    let tools = Tools::get();
    let notes = |values: &str| {
        let words = ["install", "edge", CHART, "--dry-run=client", "--namespace", "llm", "-f", "-"];
        let out = tools.helm().run(&words, values);
        let text = String::from_utf8(out.stdout).unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        text.split_once("NOTES:").unwrap().1.to_owned()
    };
    let text = notes("{}");
    for line in [
        "config.auth is not set",
        "app.kubernetes.io/name=vllm",
        "The metrics are not scraped",
        "helm -n llm test edge",
    ] {
        assert!(text.contains(line), "{line}: {text}");
    }
    let file = fs::read_to_string(Path::new(CHART).join("ci/redis-database-values.yaml"));
    let text = notes(&file.unwrap());
    assert!(!text.contains("config.auth") && !text.contains("Limits apply"), "{text}");
    assert!(text.contains("lost with their pod") && text.contains("the admin API"), "{text}");
    let text = notes("{config: {rate_limit: {per_key: {requests_per_minute: 1}}}}");
    assert!(text.contains("Limits apply to each gateway separately"), "{text}");
}
