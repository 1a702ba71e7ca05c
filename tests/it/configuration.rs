//! Configuration files: the seeds', the reference, and every way to get one wrong.

use std::{path::Path, process::Command, time::Duration};

use llmproxy::{
    base::limits::{Limits, Scope},
    config::{self, Plan, Problem, plan::Destination},
};
use serde_json::json;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap()
}

fn problems(text: &str) -> Vec<Problem> {
    config::load_text(text, root(), &|_| None).problems
}

fn told(text: &str) -> Vec<String> {
    problems(text).iter().map(ToString::to_string).collect()
}

#[test]
fn the_configuration_of_version_0_1_is_valid_and_means_what_it_said() {
    let loaded =
        config::load_text(&read("tests/fixtures/seeds/readme-0.1.yaml"), root(), &|_| None);
    let plan = loaded.plan.unwrap_or_else(|| panic!("{:?}", loaded.problems));
    assert_eq!(plan.fixed.listen, "[::]:8080".parse().unwrap());
    let backends: Vec<_> = plan.backends.iter().map(|b| (&*b.url, b.weight)).collect();
    assert_eq!(backends, [("http://vllm:8000", 5), ("http://tgi:8081", 3)]);
    let Destination::Webhook(hook) = &plan.usage.reporters[0].to else { panic!("a webhook") };
    assert_eq!(
        (hook.url.expose(), hook.timeout.as_secs(), hook.retry),
        ("https://your-billing.com/llm-usage", 1, 2)
    );
    let health = plan.health_check.unwrap();
    assert_eq!((health.interval.as_secs(), health.path.as_str()), (10, "/health"));
}

fn development_guide() -> Plan {
    let text = read("tests/fixtures/seeds/development-guide.yaml");
    let loaded = config::load_text(&text, root(), &|_| None);
    loaded.plan.unwrap_or_else(|| panic!("{:?}", loaded.problems))
}

#[test]
fn the_development_guides_limits_mean_what_they_said() {
    let limits = development_guide().limits;
    let rule = |value| serde_json::from_value::<Limits>(value).unwrap();
    for scope in Scope::ALL {
        let expected = match scope {
            Scope::Global => {
                json!({"enabled": true, "requests_per_second": 100, "burst_size": 200})
            }
            Scope::Key => json!({"enabled": true, "requests_per_second": 10, "max_concurrent": 5}),
            _ => json!({}),
        };
        assert_eq!(limits.rules[scope.index()], rule(expected), "{scope:?}");
    }
    assert_eq!(limits.shared, None, "counted in memory");
    assert_eq!(limits.queue.size, 0, "nobody waits unless it is said");
}

#[test]
fn the_development_guides_authentication_means_what_it_said() {
    use llmproxy::config::{choices::Mode, plan::Source};
    let plan = development_guide();
    let auth = plan.auth.unwrap();
    assert_eq!(auth.mode, Mode::FirstMatch);
    let names: Vec<_> = auth.header_names.iter().map(|n| n.as_str()).collect();
    assert_eq!(names, ["authorization", "x-api-key"]);
    let [provider] = &auth.pipeline[..] else { panic!("one provider") };
    assert_eq!(provider.name, "redis_auth");
    assert!(provider.script.is_some());
    let Source::Redis { settings, pattern } = &provider.source else { panic!("Redis") };
    assert_eq!((settings.host.as_str(), settings.port), ("localhost", 6379));
    assert_eq!(pattern, "llmproxy:key:{api_key}");
    // Its `api_keys` belong to a provider that is not in the pipeline.
    let warnings: Vec<_> = plan.warnings.iter().map(ToString::to_string).collect();
    assert!(warnings[0].contains("these keys are not used"), "{warnings:?}");
}

#[test]
fn mistakes_in_the_new_sections_are_told() {
    let auth = |provider: &str| {
        told(&format!("backends: [{{url: \"http://x\"}}]\nauth: {{pipeline: [{provider}]}}\n"))
    };
    for (provider, expected) in [
        ("{type: redis}", "a provider of type `redis` needs a section `redis`"),
        ("{type: redis, redis: {}}", "needs either `addr` or `storage`"),
        ("{type: redis, redis: {addr: \"h:1\", key_pattern: x}}", "does not contain `{api_key}`"),
        ("{type: redis, redis: {addr: \"user:secret@h:1\"}}", "has more than host and port"),
        ("{type: redis, redis: {storage: main}}", "`storage.caches` has no enabled entry"),
        (
            "{type: static, redis: {addr: \"h:1\"}}",
            "does not belong to a provider of type `static`",
        ),
        ("{type: static, static: {keys: [{key: a, status: paused}]}}", "is not a status"),
        ("{type: static, static: {keys: [{key: a, expires_at: soon}]}}", "is not a time"),
        (
            "{type: static, static: {keys: [{key: a, allowed_ips: [x]}]}}",
            "is not a list of addresses",
        ),
        ("{type: static, static: {keys: [{key: a}, {key: a}]}}", "has the same key"),
        ("{type: static, static: {keys: [{name: a}]}}", "has no key"),
        ("{type: database, database: {driver: mysql, dsn: \"secret\"}}", "cannot be understood"),
        (
            "{type: database, database: {driver: sqlite, dsn: a, table: \"x; y\"}}",
            "is not a name of a table",
        ),
        ("{type: webhook, webhook: {url: \"ftp://x\"}}", "is not an http or https URL"),
        ("{type: lua}", "needs a script"),
        (
            "{type: lua, lua_script: \"return +\"}",
            "is not a Lua script: script:1: unexpected symbol",
        ),
        ("{type: lua, lua_script: \"\", lua: {name: balance}}", "several scripts"),
        ("{type: lua, lua: {name: nothing}}", "there is no script `nothing`"),
        ("{type: lua, lua_script_file: no/such.lua}", "cannot read"),
        ("{type: lua, lua: {name: balance, timeout: 0}}", "is not between 1ms and 10s"),
        ("{type: ldap}", "must be one of"),
    ] {
        let told = auth(provider);
        assert!(told.iter().any(|line| line.contains(expected)), "{provider}: {told:?}");
        assert!(!told.iter().any(|line| line.contains("secret")), "{provider}: {told:?}");
    }
    for (text, expected) in [
        ("auth: {}", "there is no key: every request would be rejected"),
        ("auth:\n# enabled: true", "is empty"),
        ("auth: {skip_paths: [\"\"]}\napi_keys: [{key: a}]", "is not a path prefix"),
        ("auth: {skip_paths: [\"/\"]}\napi_keys: [{key: a}]", "is not a path prefix"),
        (
            "auth: {status_codes: {expired: {http_code: 200}}}\napi_keys: [{key: a}]",
            "between 400 and 599",
        ),
        ("auth: {status_codes: {denied: {allow: true}}}\napi_keys: [{key: a}]", "cannot be `true`"),
        ("server: {trusted_proxies: [nobody]}", "is not an address or a network"),
        (
            "admin: {enabled: true, token: long-enough, listen: \":8000\"}",
            "is the same address as `listen`",
        ),
    ] {
        let told = told(&format!("backends: [{{url: \"http://x\"}}]\n{text}\n"));
        assert!(told.iter().any(|line| line.contains(expected)), "{text}: {told:?}");
    }
}

#[test]
fn tiers_are_known_to_the_keys_that_name_them() {
    let text = |tiers: &str, tier: &str| {
        format!(
            "backends: [{{url: \"http://x\"}}]\ntiers: {tiers}\napi_keys: [{{key: a, tier: {tier}}}]\n\
             auth: {{pipeline: [{{type: file}}, {{type: static, static: {{keys: [{{key: b, tier: {tier}}}]}}}}]}}\n"
        )
    };
    let gold = "{gold: {engine_priority: -7, queue_class: 2}, plain: {}}";
    let plan = config::load_text(&text(gold, "gold"), root(), &|_| None).plan.unwrap();
    let tier = |name: &str| (plan.tiers[name].engine_priority, plan.tiers[name].queue_class);
    assert_eq!((tier("gold"), tier("plain")), ((Some(-7), 2), (None, 0)));
    for (tiers, tier, at, expected) in [
        (gold, "glod", "api_keys[0].tier", "did you mean `gold`?"),
        (gold, "glod", "auth.pipeline[1].static.keys[0].tier", "there is no tier `glod`"),
        ("{}", "gold", "api_keys[0].tier", "add it"),
        (
            "{gold: {engine_priority: 1001}}",
            "gold",
            "tiers.gold.engine_priority",
            "between -1000 and 1000",
        ),
        ("{gold: {queue_clas: 1}}", "gold", "tiers.gold.queue_clas", "did you mean `queue_class`?"),
    ] {
        let found = problems(&text(tiers, tier));
        let told = found.iter().any(|p| p.path == at && p.to_string().contains(expected));
        assert!(told, "{tiers} {tier}: {found:?}");
    }
}

/// The only problem of a section `rate_limit`.
fn is_wrong(section: &str, at: &str, expected: &str) {
    let found = problems(&format!(
        "backends: [{{url: \"http://x\"}}]\nstorage: {{caches: [{{name: main, addr: \"h:1\"}}]}}\n\
         rate_limit: {section}\n"
    ));
    let [problem] = &found[..] else { panic!("{section}: {found:?}") };
    assert_eq!((problem.path.as_str(), problem.line), (at, Some(3)), "{section}");
    assert!(problem.message.contains(expected), "{section}: {problem}");
}

#[test]
fn mistakes_in_rules_are_told() {
    for (rule, field, expected) in [
        ("{burst_size: 5}", ".burst_size", "needs `requests_per_second`"),
        ("{budget: 5}", ".budget", "no model has a price"),
        ("{budget_period: daily}", ".budget_period", "needs `budget`"),
        ("{requests_per_minute: -1}", ".requests_per_minute", "is not a number of 0 or more"),
        ("{max_concurrent: -5}", ".max_concurrent", "is not a number of 0 or more"),
        ("{tokens_per_minute: .nan}", ".tokens_per_minute", "is not a number of 0 or more"),
        ("{max_concurrent: 1.5}", ".max_concurrent", "is not a whole number"),
        ("{requests_per_second: 0.00001}", ".requests_per_second", "is not between 0.0001 and"),
        ("{requests_per_hour: 5}", ".requests_per_hour", "unknown key `requests_per_hour`"),
        ("{budget_period: hourly}", ".budget_period", "must be one of"),
        ("7", "", "is an integer, not"),
    ] {
        for scope in Scope::ALL {
            let at = format!("rate_limit.{}{field}", scope.word());
            is_wrong(&format!("{{{}: {rule}}}", scope.word()), &at, expected);
        }
        for map in ["models", "key_models"] {
            is_wrong(
                &format!("{{{map}: {{m: {rule}}}}}"),
                &format!("rate_limit.{map}.m{field}"),
                expected,
            );
        }
    }
}

#[test]
fn mistakes_in_limits_are_told() {
    for (section, at, expected) in [
        ("{prices: {m: {input: -1, output: 1}}}", ".prices.m", "has a price that is not a number"),
        ("{prices: {m: {input: 1}}}", ".prices.m", "missing field `output`"),
        (
            "{prices: {m: {input: 1, output: 1, reasoning: -1}}}",
            ".prices.m",
            "has a price that is not a number",
        ),
        (
            "{prices: {m: {input: 1, output: 1, cache_writes: 1}}}",
            ".prices.m.cache_writes",
            "cache_write",
        ),
        ("{prices: {\"\": {input: 1, output: 1}}}", ".prices", "a model name is empty"),
        ("{models: {\"a*b\": {}}}", ".models.a*b", "`*` is allowed only at the end"),
        ("{key_models: {\"a*b\": {}}}", ".key_models.a*b", "`*` is allowed only at the end"),
        ("{queue: {status: 418}}", ".queue.status", "is neither 429 nor 503"),
        ("{queue: {max_queue_size: 5, queue_timeout: 0}}", ".queue.queue_timeout", "is zero"),
        ("{queue: {keep_alive: 5ms}}", ".queue.keep_alive", "is shorter than 100ms"),
        ("{storage: paper}", ".storage", "must be `memory` or `redis`"),
        ("{storage: redis}", ".redis", "has no enabled entry `default`"),
        ("{storage: redis, redis: other}", ".redis", "has no enabled entry `other`"),
        (
            "{storage: redis, redis: main, mode: leased, lease_share: 0.9}",
            ".lease_share",
            "is not above 0 and at",
        ),
        ("{storage: redis, redis: main, hold_ttl: 5ms}", ".hold_ttl", "is not between 1s and"),
        ("{max_buckets: 5}", ".max_buckets", "is not between 1000 and 100000000"),
        ("", "", "is empty"),
    ] {
        is_wrong(section, &format!("rate_limit{at}"), expected);
    }
}

#[test]
fn limits_of_keys_hold_without_a_section_and_not_where_it_is_switched_off() {
    let plan = |section: &str| {
        let text = format!("backends: [{{url: \"http://x\"}}]\n{section}\n");
        let loaded = config::load_text(&text, root(), &|_| None);
        loaded.plan.unwrap_or_else(|| panic!("{:?}", loaded.problems)).limits
    };
    let limits = plan("");
    assert!(limits.rules.iter().all(|rule| *rule == Limits::default()));
    assert!(plan("rate_limit: {global: {requests_per_second: 1}}").enabled);
    let off = plan("rate_limit: {enabled: false, global: {requests_per_second: 1}}");
    assert!(!off.enabled && off.rules[0] == Limits::default());
}

#[test]
fn rules_for_single_models_hold_in_place_of_the_general_ones_field_by_field() {
    let text = "backends: [{url: \"http://x\"}]
rate_limit:
  per_model: {requests_per_minute: 60, max_concurrent: 4}
  models: {\"qwen-*\": {max_concurrent: 8}}
";
    let limits = config::load_text(text, root(), &|_| None).plan.unwrap().limits;
    let [(_, rule)] = &limits.models[..] else { panic!("{:?}", limits.models) };
    assert_eq!((rule.requests_per_minute, rule.max_concurrent), (Some(60.0), Some(8.0)));
}

#[test]
fn the_reference_is_valid_and_shows_every_key() {
    let text = read("conf/llmproxy.yaml");
    let env = |name: &str| (name == "BACKEND_KEY").then(|| "sk-x".to_owned());
    let loaded = config::load_text(&text, &root().join("conf"), &env);
    let plan = loaded.plan.unwrap_or_else(|| panic!("{:?}", loaded.problems));
    assert!(!plan.warnings.iter().any(|w| w.path.contains("fallback")), "{:?}", plan.warnings);
    // Every key of the schema stands in the reference, as a setting or in a comment.
    let schema = config::schema();
    let mut keys = Vec::new();
    collect_keys(&schema, &mut keys);
    assert!(keys.len() > 40, "{keys:?}");
    for key in keys {
        assert!(text.contains(&format!("{key}:")), "`{key}` is missing in conf/llmproxy.yaml");
    }
}

fn collect_keys(schema: &serde_json::Value, keys: &mut Vec<String>) {
    match schema {
        serde_json::Value::Object(map) => {
            for (name, value) in map {
                if name == "properties" {
                    keys.extend(value.as_object().unwrap().keys().cloned());
                }
                collect_keys(value, keys);
            }
        }
        serde_json::Value::Array(items) => items.iter().for_each(|v| collect_keys(v, keys)),
        _ => {}
    }
}

#[test]
fn all_problems_are_told_in_one_run_with_line_and_hint() {
    let text = "listen: nowhere
backends:
  - url: ftp://x
    weight: 0
    modles: [a]
  - url: \"http://y\"
    weight: \"heavy\"
  - name: z
  - url: \"http://y/v1/messages\"
timeouts:
  connect: 5
  first_bite: 3s
server:
  max_body_size: lots
health_check:
  method: get
unknown: 1
";
    let expected = [
        "line 1: listen: `nowhere` is not an address to listen on (hint: write `:8000`, `127.0.0.1:8000` or `[::]:8000`)",
        "line 3: backends[0].url: the scheme must be http or https (hint: write `http://host:8000` or `https://host/v1`)",
        "line 4: backends[0].weight: is not between 1 and 1000",
        "line 5: backends[0].modles: unknown key `modles` (hint: did you mean `models`?)",
        "line 7: backends[1].weight: is a string, not u32",
        "line 8: backends[2]: missing field `url`",
        "line 9: backends[3].url: `/messages` is an endpoint that the gateway does not call (hint: ",
        "line 11: timeouts.connect: `5` has no unit; write `5s` for seconds or `5ms`",
        "line 12: timeouts.first_bite: unknown key `first_bite` (hint: did you mean `first_byte`?)",
        "line 14: server.max_body_size: `lots` is not a size; write `64KiB` or `32MiB`",
        "line 16: health_check.method: `get` is not an HTTP method (hint: write `GET`)",
        "line 17: unknown: unknown key `unknown`",
    ];
    let found = told(text);
    for line in expected {
        assert!(found.iter().any(|f| f.starts_with(line)), "missing: {line}\nin: {found:#?}");
    }
    assert_eq!(found.len(), expected.len(), "{found:#?}");
}

#[test]
fn variables_come_from_the_environment() {
    let env = |name: &str| match name {
        "URL" => Some("http://vllm:8000".to_owned()),
        "WEIGHT" => Some("7".to_owned()),
        "KEY" => Some("12345".to_owned()),
        _ => None,
    };
    let text = "backends:\n  - {url: \"${URL}/a\", weight: \"${WEIGHT}\", api_key: \"${KEY}$$x\", name: \"${NAME:-b}\"}\n";
    let plan = config::load_text(text, root(), &env).plan.unwrap();
    let backend = &plan.backends[0];
    assert_eq!((backend.base.root.as_str(), backend.weight, backend.name.as_str()), ("/a", 7, "b"));
    assert_eq!(backend.key.as_ref().unwrap().1, "Bearer 12345$x");

    let found = told("backends:\n  - url: \"http://x\"\n    api_key: \"${MISSING}\"\n");
    assert_eq!(
        found,
        [
            "line 3: backends[0].api_key: the environment variable `MISSING` is not set (hint: set it, or give a default: ${MISSING:-value})"
        ]
    );
}

#[test]
fn a_secret_may_stand_in_a_file() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("key"), "sk-from-file\n").unwrap();
    let text = "backends:\n  - {url: \"http://x\", api_key_file: key}\n";
    let plan = config::load_text(text, folder.path(), &|_| None).plan.unwrap();
    assert_eq!(plan.backends[0].key.as_ref().unwrap().1, "Bearer sk-from-file");
    assert!(!format!("{plan:?}").contains("sk-from-file"), "secrets are not printed");
    let found = config::load_text(
        "backends:\n  - {url: \"http://x\", api_key_file: none}\n",
        folder.path(),
        &|_| None,
    );
    assert!(found.problems[0].message.contains("cannot read"), "{:?}", found.problems);
    let hook = "backends: [{url: \"http://x\"}]\nusage_hook: {url: \"http://y\", headers_file: {X-Token: key}}\n";
    let plan = config::load_text(hook, folder.path(), &|_| None).plan.unwrap();
    let Destination::Webhook(hook) = &plan.usage.reporters[0].to else { panic!("a webhook") };
    assert_eq!(hook.headers[0].1, "sk-from-file");
    assert!(!format!("{plan:?}").contains("sk-from-file"));
    let both = told("backends:\n  - {url: \"http://x\", api_key: a, api_key_file: b}\n");
    assert!(both[0].contains("both `api_key` and `api_key_file` are given"), "{both:?}");
}

#[test]
fn other_mistakes() {
    for (text, told_part) in [
        ("", "there is no backend"),
        ("- a\n- b\n", "not a mapping"),
        ("a: [\n", "not YAML"),
        ("backends:\n  - url: \"http://user:pw@x\"\n", "contains a user name"),
        ("backends:\n  - url: \"http://x\"\n  - url: \"http://x/\"\n", "same name as backends[0]"),
        (
            "backends:\n  - {url: \"http://x\", models: [\"a*b\"]}\n",
            "`*` is allowed only at the end",
        ),
        ("backends: [{url: \"http://x\", enabled: false}]\n", "every backend is disabled"),
        (
            "backends: [{url: \"http://x\", protocol: klingon}]\n",
            "backends[0].protocol: `klingon` is not available in this version",
        ),
        (
            "backends: [{url: \"http://x\"}]\nrouting: {load_balance_strategy: fastest}\n",
            "must be one of `round_robin`",
        ),
        (
            "backends: [{url: \"http://x\"}]\nusage_hook: {url: nonsense}\n",
            "not an http or https URL",
        ),
        (
            "backends: [{url: \"http://x\"}]\nlisten: \":1\"\nserver: {metrics_listen: \":1\"}\n",
            "same address",
        ),
        (
            "backends: [{url: \"http://x\"}]\nedge_guard: {remove_headers: [\"a b\"]}\n",
            "is not a header name",
        ),
        ("backends: [{url: \"http://x\"}]\nbackends: []\n", "duplicate"),
        ("1: 2\n", "unknown key `1`"),
        ("backends: [{url: \"http://h:99999\"}]\n", "the port is not between"),
        ("backends: [{url: \"http://h:0\"}]\n", "the port is not between"),
        ("backends: [{url: \"http://[::1]:0\"}]\n", "the port is not between"),
        ("backends: [{url: \"http://h#x\"}]\n", "contains a fragment"),
        ("log: 7\n", "log: is an integer, not a mapping of keys"),
        ("backends: [{url: \"http://x\"}]\nhealth_check: {path: \"/a b\"}\n", "is not a path"),
    ] {
        let found = told(text);
        assert!(found.iter().any(|f| f.contains(told_part)), "{text}: {found:?}");
    }
}

#[test]
fn check_and_schema_are_commands() {
    let run = |arguments: &[&str]| {
        Command::new(env!("CARGO_BIN_EXE_llmproxy"))
            .args(arguments)
            .current_dir(root())
            .output()
            .unwrap()
    };
    let fine = run(&["check", "--config", "tests/fixtures/seeds/readme-0.1.yaml"]);
    assert!(fine.status.success(), "{}", String::from_utf8_lossy(&fine.stderr));
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("two-mistakes.yaml");
    std::fs::write(&file, "listen: nowhere\nbackends: []\n").unwrap();
    let bad = run(&["check", "--config", file.to_str().unwrap()]);
    assert_eq!(bad.status.code(), Some(1));
    let told = String::from_utf8(bad.stderr).unwrap();
    assert!(told.contains("two-mistakes.yaml: line ") && told.contains("2 problems in"), "{told}");
    let none = run(&["check", "--config", "no/such/file"]);
    assert_eq!(none.status.code(), Some(1));
    let schema: serde_json::Value = serde_json::from_slice(&run(&["schema"]).stdout).unwrap();
    assert_eq!(schema["properties"]["backends"]["type"], "array");
    assert_eq!(schema["additionalProperties"], false);
}

#[test]
fn a_secret_in_a_wrong_place_is_not_printed() {
    let env = |_: &str| Some("sk-VERYSECRET".to_owned());
    for text in [
        "usage_hook: {url: \"http://x\", caller_key: \"${K}\"}\n",
        "usage_hook: {url: \"http://x\", headers: \"Authorization: Bearer ${K}\"}\n",
        "backends: [{url: \"user:${K}@host:80\"}]\n",
        "backends: [{url: \"http://user:${K}@host:80\"}]\n",
        "backends: [{url: \"http://x\", weight: \"${K}\"}]\n",
        "backends: \"${K}\"\n",
    ] {
        let loaded = config::load_text(text, root(), &env);
        let told: Vec<_> = loaded.problems.iter().map(ToString::to_string).collect();
        assert!(!told.is_empty() && !told.iter().any(|t| t.contains("VERYSECRET")), "{told:?}");
    }
}

#[test]
fn counts_and_keys_in_redis_have_names_of_their_own() {
    let told = |redis: &str, limits: &str| {
        let text = format!(
            "backends: [{{url: \"http://x\"}}]\n\
             storage: {{caches: [{{name: default, addr: \"localhost:6379\"}}]}}\n\
             auth: {{pipeline: [{{type: redis, redis: {{{redis}}}}}]}}\n\
             rate_limit: {{storage: redis{limits}}}\n"
        );
        told(&text)
    };
    let here = "addr: \"redis://localhost\"";
    assert_eq!(told(here, ""), [""; 0]);
    assert_eq!(told("storage: default", ""), [""; 0]);
    let wide = format!("{here}, key_pattern: \"llmproxy:{{api_key}}\"");
    assert_eq!(told(&wide, ", key_prefix: \"limits:\""), [""; 0]);
    assert_eq!(told(&format!("{wide}, db: 1"), ""), [""; 0]);
    let elsewhere = wide.replace("localhost", "localhost:6380");
    assert_eq!(told(&elsewhere, ""), [""; 0]);
    for (redis, limits) in [
        (wide.as_str(), ""),
        ("storage: default, key_pattern: \"{api_key}\"", ""),
        ("storage: default, key_pattern: \"llmproxy:limit:spent/{api_key}\"", ""),
        (here, ", key_prefix: \"llmproxy:key:limit:\""),
        (here, ", key_prefix: \"\""),
    ] {
        let found = told(redis, limits);
        let there = found.iter().any(|f| f.contains("rate_limit.key_prefix: is `"));
        assert!(there && found.len() == 1, "{redis} {limits}: {found:?}");
    }
}

#[test]
fn limits_that_are_switched_off_keep_where_quotas_are_counted() {
    let text = "backends: [{url: \"http://x\"}]\n\
        storage: {caches: [{name: counts, addr: \"redis.example:6380\"}]}\n\
        rate_limit:\n  enabled: false\n  storage: redis\n  redis: counts\n  mode: leased\n  \
        key_prefix: \"mine:\"\n  redis_timeout: 90ms\n  on_redis_error: deny\n  max_buckets: 5000\n  \
        prices: {\"*\": {input: 1, output: 2}}\n  queue: {max_queue_size: 7, status: 1}\n  \
        global: {requests_per_second: 1}\n  models: {\"a**\": {max_concurrent: 1}}\n";
    let loaded = config::load_text(text, root(), &|_| None);
    let limits = loaded.plan.unwrap_or_else(|| panic!("{:?}", loaded.problems)).limits;
    let shared = limits.shared.unwrap();
    assert_eq!((shared.server.host.as_str(), shared.server.port), ("redis.example", 6380));
    assert_eq!((shared.prefix.as_str(), shared.timeout.as_millis()), ("mine:", 90));
    assert!(shared.lease.is_some() && shared.on_error == config::choices::OnRedisError::Deny);
    assert_eq!((limits.max_buckets, limits.prices.len()), (5000, 1));
    assert!(!limits.enabled && limits.models.is_empty() && limits.queue.size == 0);
    assert!(limits.rules.iter().all(|rule| *rule == Limits::default()));
}

/// What a text says of usage records.
fn usage(text: &str) -> Plan {
    let text = format!("backends: [{{url: \"http://x\"}}]\n{text}");
    let loaded = config::load_text(&text, Path::new("/etc/llmproxy"), &|_| None);
    loaded.plan.unwrap_or_else(|| panic!("{:?}", loaded.problems))
}

#[test]
fn the_hook_of_the_first_version_can_do_what_a_webhook_reporter_can() {
    let plan = usage(
        "usage_hook: {url: \"http://y/hidden-path\", batch_size: 50, flush_interval: 3s, concurrency: 4}\n",
    );
    let Destination::Webhook(webhook) = &plan.usage.reporters[0].to else { panic!("{plan:?}") };
    assert_eq!((webhook.batch_size, webhook.concurrency), (50, 4));
    assert_eq!(webhook.flush_interval, Duration::from_secs(3));
    assert_eq!(webhook.url.expose(), "http://y/hidden-path");
    assert!(!format!("{plan:?}").contains("hidden-path"));
    let text = "backends: [{url: \"http://x\"}]\nusage_hook: {url: \"http://y\", batch_size: 0}\n";
    let loaded = config::load_text(text, Path::new("."), &|_| None);
    assert!(loaded.problems[0].to_string().contains("usage_hook.batch_size"));
}

#[test]
fn a_built_in_table_that_was_asked_for_is_kept_for_ever() {
    let retention = |text: &str| {
        let plan = usage(text);
        let [reporter] = &plan.usage.reporters[..] else { panic!("{plan:?}") };
        let Destination::Database(table) = &reporter.to else { panic!("{plan:?}") };
        assert!(table.own);
        table.retention
    };
    let day = Duration::from_secs(24 * 3600);
    assert_eq!(retention("usage: {reporters: [{type: builtin}]}\n"), None);
    assert_eq!(retention("usage: {reporters: [{type: builtin, builtin: {path: x.db}}]}\n"), None);
    let seven = "usage: {reporters: [{type: builtin, builtin: {retention_days: 7}}]}\n";
    assert_eq!(retention(seven), Some(7 * day));
    let admin = "admin: {enabled: true, token: a-token-that-is-long-enough-0123456789}\n";
    assert_eq!(retention(admin), Some(90 * day));
}

#[test]
fn a_script_of_a_reporter_is_told_to_have_no_effect() {
    let plan = usage(
        "usage: {reporters: [{type: file, file: {path: x}, script: {enabled: true, path: x.lua}}]}\n",
    );
    let warnings: Vec<_> = plan.warnings.iter().map(ToString::to_string).collect();
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(warnings[0].contains("usage.reporters[0].script"), "{warnings:?}");
    assert!(warnings[0].contains("has no effect"), "{warnings:?}");
}
