//! What a configuration says about where requests go, and every way to get that wrong.

use std::{path::Path, time::Duration};

use llmproxy::config::{
    self, Plan,
    choices::Engine,
    plan::{Affinity, Backoff, CacheSalt, CircuitPlan, RetryPlan, RoutingPlan, RulePlan, Strategy},
};

/// Three backends; `off` is switched off.
const BACKENDS: &str = "backends:
  - {name: a, url: \"http://a:1\", models: [qwen, \"llama-*\"], engine: sglang}
  - {name: b, url: \"http://b:1\", models: [qwen]}
  - {name: off, url: \"http://off:1\", enabled: false}
";

fn load(text: &str) -> config::Loaded {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    config::load_text(&format!("{BACKENDS}{text}\n"), root, &|_| None)
}

fn plan(text: &str) -> Plan {
    let loaded = load(text);
    loaded.plan.unwrap_or_else(|| panic!("{text}: {:?}", loaded.problems))
}

fn routing(text: &str) -> RoutingPlan {
    plan(text).routing
}

fn warnings(text: &str) -> Vec<String> {
    plan(text).warnings.iter().map(ToString::to_string).collect()
}

#[test]
fn the_development_guides_routing_means_what_it_said() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(root.join("tests/fixtures/seeds/development-guide.yaml"));
    let routing = config::load_text(&text.unwrap(), root, &|_| None).plan.unwrap().routing;
    assert_eq!(routing.balance.strategy, Strategy::RoundRobin);
    assert_eq!(routing.retry.max_retries, 3);
    let pauses = Backoff {
        initial: Duration::from_secs(1),
        max: Duration::from_secs(10),
        multiplier: 2.0,
        jitter: 0.2,
    };
    assert_eq!(routing.retry.again, Some(pauses));
    let rule = RulePlan {
        models: Vec::new(),
        primary: Some("http://vllm-1:8000".to_owned()),
        fallback: vec!["http://vllm-2:8000".to_owned()],
    };
    assert_eq!(routing.rules, [rule]);
}

#[test]
fn without_a_word_other_backends_are_tried_once() {
    let routing = routing("");
    assert_eq!(routing.retry, RetryPlan::default());
    assert_eq!(routing.circuit, CircuitPlan::default());
    assert_eq!((routing.explain, routing.keep_alive, routing.hedge), (1000, None, None));
    assert_eq!(routing.cache_salt, CacheSalt::Shared);
    assert!(routing.models.is_empty() && routing.rules.is_empty());
    let backends = plan("").backends;
    let engines: Vec<_> = backends.iter().map(|b| (b.name.as_str(), b.engine)).collect();
    assert_eq!(engines, [("a", Engine::Sglang), ("b", Engine::Vllm)]);
}

#[test]
fn both_names_of_the_strategy_are_understood() {
    for (text, strategy) in [
        ("load_balance_strategy: least_connections", Strategy::LeastConnections),
        ("load_balance: latency_based", Strategy::LatencyBased),
        ("load_balance: weighted", Strategy::RoundRobin),
        ("load_balance: random", Strategy::Random),
        ("load_balance: p2c", Strategy::P2c),
        ("load_balance: consistent_hash", Strategy::ConsistentHash),
        ("load_balance: prefix_affinity", Strategy::PrefixAffinity),
        ("load_balance: least_load", Strategy::LeastLoad),
    ] {
        // The strategy holds even if the rest is switched off.
        let routing = routing(&format!("routing: {{enabled: false, {text}}}"));
        assert_eq!(routing.balance.strategy, strategy, "{text}");
        assert_eq!(routing.retry.max_retries, 0, "{text}");
    }
}

#[test]
fn retries_are_what_the_sections_say_together() {
    let pauses = |initial, max, multiplier, jitter| {
        let (initial, max) = (Duration::from_millis(initial), Duration::from_millis(max));
        Some(Backoff { initial, max, multiplier, jitter })
    };
    let standard = pauses(1000, 10_000, 2.0, 0.2);
    for (text, most, again) in [
        ("routing: {retry: {}}", 3, standard),
        ("routing: {retry: {max_retries: 5, initial_wait: 2s}}", 5, pauses(2000, 10_000, 2.0, 0.2)),
        ("routing: {retry: {enabled: false}}", 0, None),
        ("routing: {enabled: false, retry: {}}", 0, None),
        ("routing: {enabled: false, fallback: [{primary: a}]}", 0, None),
        ("fallback: {max_retries: 7}", 7, None),
        ("fallback: {max_retries: 0, enable_backoff: true}", 3, None),
        ("fallback: {enable_backoff: true}", 3, pauses(100, 5000, 2.0, 0.1)),
        (
            "fallback: {enable_backoff: true, backoff_initial_delay: 50, backoff_max_delay: 1s, \
             backoff_multiplier: 3, backoff_jitter: 0}",
            3,
            pauses(50, 1000, 3.0, 0.0),
        ),
        ("routing: {retry: {}}\nfallback: {max_retries: 7}", 7, standard),
        ("routing: {retry: {}}\nfallback: {max_retries: 0}", 3, None),
        ("routing: {retry: {max_retries: 1}}\nfallback: {max_retries: 0}", 1, standard),
    ] {
        let routing = routing(text);
        assert_eq!((routing.retry.max_retries, routing.retry.again), (most, again), "{text}");
        let off = text.contains("enabled: false");
        assert!(!off || routing.rules.is_empty(), "{text}");
        let on = &routing.retry.on;
        assert_eq!([on.connect_failure, on.reset, on.timeout], [!off; 3], "{text}");
        assert!(on.statuses.contains(500), "answers are looked at: {text}");
    }
    let on = routing("routing: {retry: {retry_on: [5xx, timeout, 429, \"409\"]}}").retry.on;
    assert_eq!((on.connect_failure, on.reset, on.timeout), (false, false, true));
    let in_it = [500, 503, 429, 409].map(|status| on.statuses.contains(status));
    assert_eq!((in_it, on.statuses.contains(408)), ([true; 4], false));
}

#[test]
fn circuits_are_what_the_sections_say_together() {
    for (text, consecutive, cooldown) in [
        ("", Some(5), 30),
        ("routing: {circuit: {enabled: false}}", None, 30),
        ("routing: {circuit: {consecutive_failures: 2, cooldown: 1m}}", Some(2), 60),
        ("fallback: {cooldown_seconds: 300}", Some(1), 300),
        ("fallback: {cooldown_seconds: 0}", None, 30),
        ("fallback: {cooldown_seconds: 300}\nrouting: {circuit: {window: 1m}}", Some(1), 300),
        ("fallback: {cooldown_seconds: 9}\nrouting: {circuit: {cooldown: 5s}}", Some(1), 5),
        (
            "fallback: {cooldown_seconds: 9}\nrouting: {circuit: {consecutive_failures: 3}}",
            Some(3),
            9,
        ),
        ("fallback: {cooldown_seconds: 9}\nrouting: {circuit: {enabled: false}}", None, 9),
        ("fallback: {enable_circuit_breaker: true}", Some(5), 60),
        (
            "fallback: {enable_circuit_breaker: true, circuit_failure_threshold: 2, \
             circuit_open_timeout: 20}",
            Some(2),
            20,
        ),
    ] {
        let circuit = routing(text).circuit;
        assert_eq!(
            (circuit.consecutive, circuit.cooldown.as_secs()),
            (consecutive, cooldown),
            "{text}"
        );
    }
    for (text, lone) in [
        ("", false),
        ("routing: {circuit: {enabled: true, consecutive_failures: 5}}", false),
        ("routing: {circuit: {spare_last: true}}", false),
        ("routing: {circuit: {spare_last: false}}", true),
        ("fallback: {cooldown_seconds: 9}", true),
        ("fallback: {enable_circuit_breaker: true}", true),
        ("fallback: {cooldown_seconds: 9}\nrouting: {circuit: {spare_last: true}}", false),
        ("fallback: {enable_circuit_breaker: true}\nrouting: {circuit: {enabled: true}}", true),
    ] {
        assert_eq!(routing(text).circuit.lone, lone, "{text}");
    }
    let circuit = routing("routing: {circuit: {max_ejected: 50%, failure_rate: 0.25}}").circuit;
    assert_eq!((circuit.max_ejected, circuit.rate), (0.5, 0.25));
}

#[test]
fn models_may_balance_in_their_own_way() {
    let routing = routing(
        "routing: {load_balance: p2c, affinity: {by: key}, load_bound: 2}
models:
  qwen: {load_balance_strategy: prefix_affinity, prefix: {block: 64}}
  gpt: {routes: [{backend: b, model: qwen}], affinity: {header: X-Chat}, load_bound: 1.5}
  none: {routes: [{backend: b, enabled: false}, {backend: \"http://off:1/\"}], fallback: [gpt]}
fallback: {alias_fallback: {qwen: [llama-3], \"llama-*\": [gpt]}}",
    );
    let model = |name: &str| {
        let parsed = config::plan::ModelPattern::parse(name).unwrap();
        routing.models.iter().find(|m| m.name == parsed).unwrap()
    };
    let qwen = model("qwen");
    assert_eq!((qwen.routes.as_ref(), &qwen.fallback[..]), (None, &["llama-3".to_owned()][..]));
    assert_eq!(qwen.balance.strategy, Strategy::PrefixAffinity);
    assert_eq!((qwen.balance.prefix.block, qwen.balance.bound), (64, 2.0));
    assert_eq!(qwen.balance.affinity, Some(Affinity::Key));
    let gpt = model("gpt");
    assert_eq!((gpt.balance.strategy, gpt.balance.bound), (Strategy::P2c, 1.5));
    assert_eq!(gpt.balance.affinity, Some(Affinity::Header("x-chat".parse().unwrap())));
    let route = &gpt.routes.as_ref().unwrap()[0];
    assert_eq!((route.backend.as_str(), route.priority, route.weight), ("b", 1, 1));
    assert_eq!(model("none").routes, Some(Vec::new()));
    assert_eq!(model("llama-*").fallback, ["gpt"]);
}

#[test]
fn what_may_not_be_meant_is_told() {
    for (text, expected) in [
        (
            "detection: {error_codes: [4xx]}",
            Some("detection.error_codes[0]: a request with a client's error"),
        ),
        (
            "detection: {error_codes: [5xx, 404]}",
            Some("detection.error_codes[1]: a request with a client's error"),
        ),
        ("detection: {error_codes: [5xx, 429]}", None),
        (
            "models: {x: {routes: [{backend: off}]}}",
            Some("models.x: all of its routes are disabled"),
        ),
        ("models: {x: {enabled: false, routes: [{backend: off}]}}", None),
        ("routing: {fallback: [{primary: off}]}", Some("routing.fallback[0]: all of its backends")),
        (
            "fallback: {circuit_success_threshold: 2}",
            Some("circuit_success_threshold: has no effect"),
        ),
        (
            "fallback: {circuit_failure_threshold: 2}",
            Some("circuit_failure_threshold: has no effect"),
        ),
        (
            "routing: {retry: {}}\nfallback: {enable_backoff: true}",
            Some("fallback.enable_backoff: has no effect, because"),
        ),
    ] {
        let told = warnings(text);
        match expected {
            Some(part) => assert!(told.iter().any(|w| w.contains(part)), "{text}: {told:?}"),
            None => assert_eq!(told, [""; 0], "{text}"),
        }
    }
}

#[test]
fn a_salt_needs_a_secret_that_cannot_be_guessed() {
    let secret = "cache_salt_secret: 0123456789abcdef";
    for salt in ["per_key", "per_user"] {
        let routing = routing(&format!("routing: {{cache_salt: {salt}, {secret}}}"));
        assert_eq!(routing.cache_salt_secret.unwrap().expose(), "0123456789abcdef");
        for more in ["", ", cache_salt_secret: short"] {
            let found = load(&format!("routing: {{cache_salt: {salt}{more}}}")).problems;
            let [problem] = &found[..] else { panic!("{found:?}") };
            assert_eq!(problem.path, "routing.cache_salt_secret");
            assert!(problem.hint.as_ref().unwrap().contains("in all replicas"), "{problem}");
        }
    }
    let shown = plan(&format!("routing: {{cache_salt: per_key, {secret}}}")).shown;
    assert!(!shown.to_string().contains("0123456789abcdef"), "{shown}");
}

/// The only problem of a text, whose backends all name their models: a backend that serves every
/// model would make every name known.
fn is_wrong(text: &str, at: &str, expected: &str) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let backends = BACKENDS.lines().filter(|line| !line.contains("enabled: false"));
    let backends = backends.collect::<Vec<_>>().join("\n");
    let found = config::load_text(&format!("{backends}\n{text}\n"), root, &|_| None).problems;
    let [problem] = &found[..] else { panic!("{text}: {found:?}") };
    assert_eq!((problem.path.as_str(), problem.line), (at, Some(4)), "{text}: {problem}");
    assert!(problem.to_string().contains(expected), "{text}: {problem}");
}

#[test]
fn mistakes_in_routing_are_told() {
    for (text, at, expected) in [
        ("routing: {load_bound: 0.5}", "routing.load_bound", "between 1 and 100"),
        ("routing: {keep_alive: 5ms}", "routing.keep_alive", "shorter than 100ms"),
        ("routing: {explain: 2000000}", "routing.explain", "more than 1000000"),
        ("routing: {prefix: {block: 1}}", "routing.prefix.block", "between 16 and"),
        ("routing: {prefix: {blocks: 0}}", "routing.prefix.blocks", "between 1 and"),
        ("routing: {load: {interval: 0}}", "routing.load.interval", "between 10ms and"),
        ("routing: {load: {path: metrics}}", "routing.load.path", "is not a path"),
        ("routing: {hedge: {delay: 0}}", "routing.hedge.delay", "between 1ms and"),
        ("routing: {affinity: {header: \"a b\"}}", "routing.affinity.header", "not a header name"),
        ("routing: {affinity: {by: key, header: X}}", "routing.affinity.header", "has no effect"),
        (
            "routing: {circuit: {consecutive_failures: 0}}",
            "routing.circuit.consecutive_failures",
            "between 1",
        ),
        (
            "routing: {circuit: {max_ejected: 150%}}",
            "routing.circuit.max_ejected",
            "is not a fraction",
        ),
        ("routing: {circuit: {cooldown: 0}}", "routing.circuit.cooldown", "between 10ms and"),
        ("routing: {retry: {multiplier: 0.5}}", "routing.retry.multiplier", "between 1 and 100"),
        ("routing: {retry: {jitter: 2}}", "routing.retry.jitter", "between 0 and 1"),
        (
            "routing: {retry: {max_wait: 1ms}}",
            "routing.retry.max_wait",
            "shorter than `initial_wait`",
        ),
        ("routing: {retry: {max_retries: 101}}", "routing.retry.max_retries", "between 0 and 100"),
        ("routing: {retry: {budget: {ratio: -1}}}", "routing.retry.budget.ratio", "between 0 and"),
        (
            "routing: {retry: {retry_on: [6xx]}}",
            "routing.retry.retry_on[0]",
            "`6xx` is not a kind of failure",
        ),
        (
            "routing: {retry: {retry_on: [5xx, timeouts]}}",
            "routing.retry.retry_on[1]",
            "did you mean `timeout`?",
        ),
    ] {
        is_wrong(text, at, expected);
    }
}

#[test]
fn mistakes_in_rules_and_models_are_told() {
    for (text, at, expected) in [
        ("routing: {fallback: [{models: [x]}]}", "routing.fallback[0]", "names no backend"),
        (
            "routing: {fallback: [{primary: \"http://a:2\"}]}",
            "routing.fallback[0].primary",
            "did you mean `http://a:1`?",
        ),
        (
            "routing: {fallback: [{fallback: [b, nowhere]}]}",
            "routing.fallback[0].fallback[1]",
            "known are a, b",
        ),
        (
            "routing: {fallback: [{primary: a, models: [\"x*y\"]}]}",
            "routing.fallback[0].models[0]",
            "only at the end",
        ),
        (
            "models: {x: {routes: [{backend: c}]}}",
            "models.x.routes[0].backend",
            "there is no backend `c`",
        ),
        (
            "models: {x: {routes: [{backend: a, weight: 0}]}}",
            "models.x.routes[0].weight",
            "between 1 and 1000",
        ),
        (
            "models: {x: {routes: [{backend: a, protocol: anthropic}]}}",
            "models.x.routes[0].protocol",
            "does not speak it",
        ),
        (
            "models: {x: {routes: [{backend: a, modle: y}]}}",
            "models.x.routes[0].modle",
            "did you mean `model`?",
        ),
        ("models: {x: {}}", "models.x", "has no routes"),
        ("models: {\"*x\": {fallback: [qwen]}}", "models.*x", "only at the end"),
        ("models: {x: {fallback: [qwne]}}", "models.x.fallback[0]", "did you mean `qwen`?"),
        (
            "fallback: {alias_fallback: {qwen: [gone]}}",
            "fallback.alias_fallback.qwen[0]",
            "there is no model `gone`",
        ),
        ("fallback: {max_retries: 101}", "fallback.max_retries", "between 0 and 100"),
        ("detection: {error_codes: [200]}", "detection.error_codes[0]", "is not a status code"),
        ("detection: {error_patterns: [\"\"]}", "detection.error_patterns[0]", "is empty"),
    ] {
        is_wrong(text, at, expected);
    }
}

#[test]
fn circles_are_spelled_out() {
    for (text, at, expected) in [
        ("models: {qwen: {fallback: [qwen]}}", "models.qwen.fallback", "qwen -> qwen"),
        (
            "models: {qwen: {fallback: [llama-1]}, llama-1: {fallback: [qwen]}}",
            "models.llama-1.fallback",
            "llama-1 -> qwen -> llama-1",
        ),
        (
            "fallback: {alias_fallback: {x: [qwen], y: [x], qwen: [y]}}",
            "fallback.alias_fallback.qwen",
            "qwen -> y -> x -> qwen",
        ),
        (
            "models: {\"llama-*\": {fallback: [llama-1]}}",
            "models.llama-*.fallback",
            "llama-* -> llama-1, which is `llama-*` again",
        ),
    ] {
        let found = load(text).problems;
        let circles: Vec<_> = found.iter().filter(|p| p.message.contains("is a cycle")).collect();
        let [problem] = &circles[..] else { panic!("{text}: {found:?}") };
        assert_eq!(problem.path, at, "{text}");
        assert!(problem.message.ends_with(expected), "{text}: {problem}");
    }
    // Two ways to one model are no circle.
    let fine = "models: {qwen: {fallback: [llama-1, llama-2]}, llama-1: {fallback: [llama-2]}}";
    assert_eq!(load(fine).problems, []);
}

#[test]
fn a_route_may_wait_for_a_backend_that_a_source_will_tell_of() {
    let text = |source: &str| {
        format!(
            "backends: [{{name: a, url: \"http://a\"}}]\n\
             discovery: {{sources: [{{type: file, enabled: {source}, file: {{path: engines.yaml}}}}]}}\n\
             models: {{m: {{routes: [{{backend: later}}]}}}}\n"
        )
    };
    let loaded = config::load_text(&text("true"), Path::new("/"), &|_| None);
    let plan = loaded.plan.expect("it is valid");
    assert_eq!(plan.routing.models[0].routes.as_ref().unwrap()[0].backend, "later");
    assert!(plan.warnings.iter().any(|w| w.path == "models.m.routes[0].backend"));
    assert!(config::load_text(&text("false"), Path::new("/"), &|_| None).plan.is_none());
}
