//! Routes, as an operator would write them down: tiers of `targets:weights` and names.

use proptest::prelude::*;

use super::*;

/// Backends by name: weight, number of targets, models.
type Backends<'a> = &'a [(&'a str, u32, usize, &'a [&'a str])];

fn pattern(text: &str) -> ModelPattern {
    ModelPattern::parse(text).unwrap()
}

fn patterns(texts: &[&str]) -> Vec<ModelPattern> {
    texts.iter().map(|text| pattern(text)).collect()
}

fn model(name: &str, routes: Option<&[(&str, &str, u32, u32)]>, fallback: &[&str]) -> ModelPlan {
    let route = |(backend, model, priority, weight): &(&str, &str, u32, u32)| RoutePlan {
        backend: (*backend).to_owned(),
        model: (!model.is_empty()).then(|| (*model).into()),
        priority: *priority,
        weight: *weight,
    };
    ModelPlan {
        name: pattern(name),
        enabled: true,
        routes: routes.map(|routes| routes.iter().map(route).collect()),
        fallback: fallback.iter().map(|name| (*name).to_owned()).collect(),
        balance: BalancePlan::default(),
        translation: crate::config::plan::TranslationPlan::default(),
    }
}

fn rule(models: &[&str], primary: &str, fallback: &[&str]) -> RulePlan {
    RulePlan {
        models: patterns(models),
        primary: (!primary.is_empty()).then(|| primary.to_owned()),
        fallback: fallback.iter().map(|name| (*name).to_owned()).collect(),
    }
}

fn router(backends: Backends<'_>, plan: &RoutingPlan) -> (Router, Vec<PoolSpec>) {
    let models: Vec<_> = backends.iter().map(|b| patterns(b.3)).collect();
    let targets: Vec<_> = backends
        .iter()
        .zip(&models)
        .flat_map(|((backend, weight, count, _), models)| {
            std::iter::repeat_n(RouteTarget { backend, weight: *weight, models }, *count)
        })
        .collect();
    Router::new(plan, &targets)
}

/// `0:95,1:5=qwen@100` is a split of weight 100 between two targets, which are asked for `qwen`;
/// splits are separated by `|`, tiers by a space.
fn show((router, pools): &(Router, Vec<PoolSpec>), asked: Option<&str>) -> String {
    let split = |s: &Split| {
        let members = pools[s.pool].members.iter().map(|(i, w)| format!("{i}:{w}"));
        let members = members.collect::<Vec<_>>().join(",");
        let model = s.model.as_ref().map(|m| format!("={m}")).unwrap_or_default();
        let weight = if s.weight == 1 { String::new() } else { format!("@{}", s.weight) };
        format!("{members}{model}{weight}")
    };
    let tier = |t: &Tier| t.splits.iter().map(split).collect::<Vec<_>>().join("|");
    match router.find(asked) {
        Ok(route) => route.tiers.iter().map(tier).collect::<Vec<_>>().join(" "),
        Err(no) => no.status.to_string(),
    }
}

fn check(backends: Backends<'_>, plan: &RoutingPlan, expected: &[(&str, &str)]) {
    let made = router(backends, plan);
    for (asked, route) in expected {
        let asked = (!asked.is_empty()).then_some(*asked);
        assert_eq!(show(&made, asked), *route, "{asked:?}");
    }
}

#[test]
fn backends_serve_the_models_that_they_name() {
    let backends: Backends<'_> = &[
        ("a", 1, 1, &["qwen-72b"]),
        ("b", 1, 1, &[]),
        ("c", 3, 1, &["qwen-*"]),
        ("d", 1, 1, &["qwen-7*", "llama"]),
    ];
    let plan = RoutingPlan::default();
    check(
        backends,
        &plan,
        &[
            ("qwen-72b", "0:1,1:1,2:3,3:1"),
            ("qwen-7b", "1:1,2:3,3:1"),
            ("qwen-1", "1:1,2:3"),
            ("llama", "1:1,3:1"),
            ("other", "1:1"),
            ("", "1:1"),
        ],
    );
    check(&backends[..1], &plan, &[("other", "404"), ("", "400"), ("qwen-72b", "0:1")]);
    let (router, pools) = router(backends, &plan);
    assert_eq!(router.models(), ["qwen-72b", "llama"]);
    assert_eq!(pools.len(), 5, "equal sets share a pool: {pools:?}");
}

#[test]
fn aliases_lead_where_they_say() {
    let backends: Backends<'_> =
        &[("a", 5, 1, &["qwen"]), ("b", 1, 1, &["qwen"]), ("c", 1, 1, &["next", "gpt-mini"])];
    let canary: &[_] = &[("a", "qwen", 1, 95), ("c", "next", 1, 5)];
    let plan = RoutingPlan {
        models: vec![
            model("canary", Some(canary), &[]),
            model("same", Some(&[("a", "qwen", 1, 95), ("b", "qwen", 1, 5)]), &[]),
            model("ranks", Some(&[("c", "", 2, 1), ("a", "qwen", 1, 1)]), &[]),
            model("gpt-*", Some(&[("b", "", 1, 1)]), &[]),
            model("gpt-4*", Some(&[("a", "qwen", 1, 1)]), &[]),
            model("qwen", None, &["next"]),
            model("lost", Some(&[]), &[]),
            ModelPlan { enabled: false, ..model("off", Some(&[]), &["qwen"]) },
            ModelPlan { enabled: false, ..model("gone", Some(&[]), &[]) },
            ModelPlan { enabled: false, ..model("next", Some(&[]), &[]) },
        ],
        ..RoutingPlan::default()
    };
    check(
        backends,
        &plan,
        &[
            ("canary", "0:1=qwen@95|2:1=next@5"),
            ("same", "0:19,1:1=qwen@100"),
            ("ranks", "0:1=qwen 2:1"),
            // An alias takes precedence over the backends' own names; the longest prefix applies.
            ("gpt-mini", "1:1"),
            ("gpt-4o", "0:1=qwen"),
            ("gpt-3", "1:1"),
            ("qwen", "0:5,1:1"),
            ("off", "0:5,1:1=qwen"),
            ("lost", "503"),
            ("gone", "404"),
            ("next", "404"),
            ("other", "404"),
        ],
    );
    let (router, _) = router(backends, &plan);
    assert_eq!(router.models(), ["canary", "same", "ranks", "qwen", "gpt-mini"]);
    let listed = ["qwen", "gpt-mini", "gpt-5", "off", "next", "other"].map(|m| router.lists(m));
    assert_eq!(listed, [true, true, true, false, false, false]);
}

#[test]
fn models_go_on_with_others_each_once() {
    let backends: Backends<'_> = &[("a", 1, 1, &["x", "y", "z-*"]), ("b", 1, 1, &["y"])];
    let plan = RoutingPlan {
        models: vec![
            model("x", None, &["y", "z-1"]),
            model("y", None, &["z-1"]),
            model("other", Some(&[("a", "x", 1, 1)]), &["x"]),
            // Circles are refused elsewhere; here they end.
            model("z-*", None, &["z-2", "x"]),
        ],
        ..RoutingPlan::default()
    };
    check(
        backends,
        &plan,
        &[
            ("x", "0:1 0:1,1:1=y 0:1=z-1 0:1=z-2"),
            ("y", "0:1,1:1 0:1=z-1 0:1=z-2 0:1=x"),
            ("other", "0:1=x 0:1,1:1=y 0:1=z-1 0:1=z-2"),
            ("z-2", "0:1 0:1=x 0:1,1:1=y 0:1=z-1"),
        ],
    );
}

#[test]
fn rules_say_which_backend_comes_first() {
    let backends: Backends<'_> =
        &[("a", 1, 1, &["qwen"]), ("b", 1, 2, &["qwen", "llama"]), ("c", 1, 1, &["llama"])];
    let ruled = |rules| RoutingPlan {
        models: vec![model("alias", Some(&[("a", "qwen", 1, 1)]), &["qwen"])],
        rules,
        ..RoutingPlan::default()
    };
    check(
        backends,
        &ruled(vec![
            rule(&["qwen"], "b", &["a"]),
            rule(&["lla*"], "", &["a"]),
            rule(&["new"], "c", &[]),
            rule(&["llama"], "c", &[]),
        ]),
        &[
            ("qwen", "1:1,2:1 0:1"),
            ("llama", "1:1,2:1,3:1 0:1"),
            ("new", "3:1"),
            ("llava", "404"),
            ("other", "404"),
            ("alias", "0:1=qwen 1:1,2:1=qwen"),
        ],
    );
    // A rule for all models does not send one where it is not.
    check(
        backends,
        &ruled(vec![rule(&[], "a", &["b", "c"])]),
        &[("qwen", "0:1 1:1,2:1"), ("llama", "1:1,2:1,3:1 1:1,2:1 3:1"), ("other", "404")],
    );
    let all: Backends<'_> = &[("a", 1, 1, &["qwen"]), ("b", 1, 1, &[])];
    let plan = RoutingPlan { rules: vec![rule(&[], "a", &["b"])], ..RoutingPlan::default() };
    check(all, &plan, &[("qwen", "0:1 1:1"), ("other", "1:1"), ("", "1:1")]);
}

#[test]
fn a_backends_share_does_not_grow_with_its_addresses() {
    let backends: Backends<'_> = &[("a", 1, 10, &["x"]), ("b", 1, 1, &["x"])];
    let routes: &[_] = &[("a", "x", 1, 95), ("b", "x", 1, 5)];
    let plan =
        RoutingPlan { models: vec![model("y", Some(routes), &[])], ..RoutingPlan::default() };
    let (router, pools) = router(backends, &plan);
    let members = &pools[router.find(Some("y")).unwrap().tiers[0].splits[0].pool].members;
    let of = |places: std::ops::Range<usize>| -> u32 {
        members.iter().filter(|(i, _)| places.contains(i)).map(|(_, w)| w).sum()
    };
    assert_eq!(of(0..10), 19 * of(10..11), "{members:?}");
}

#[test]
fn pools_that_balance_in_different_ways_are_two() {
    use crate::config::plan::Strategy;
    let balance = BalancePlan { strategy: Strategy::P2c, ..BalancePlan::default() };
    let plan = RoutingPlan {
        models: vec![ModelPlan { balance: balance.clone(), ..model("y", None, &[]) }],
        ..RoutingPlan::default()
    };
    let (router, pools) = router(&[("a", 1, 1, &[])], &plan);
    let of = |name| &pools[router.find(Some(name)).unwrap().tiers[0].splits[0].pool];
    assert_eq!(of("y").balance, balance);
    assert_eq!(of("x").balance, BalancePlan::default());
    assert_eq!(router.routes().count(), 3);
}

#[test]
fn every_backend_is_in_a_pool() {
    let plan = RoutingPlan {
        models: vec![model("x", Some(&[("a", "", 1, 1)]), &[])],
        ..RoutingPlan::default()
    };
    let (_, pools) = router(&[("a", 1, 1, &["x"]), ("b", 1, 1, &["x"])], &plan);
    assert!(pools.iter().any(|p| p.members.iter().any(|(i, _)| *i == 1)), "{pools:?}");
}

const NAMES: [&str; 6] = ["a", "ab", "a*", "ab*", "b", "*"];
const BACKENDS: [&str; 3] = ["one", "two", "three"];

prop_compose! {
    fn any_model()(
        name in prop::sample::select(&NAMES[..]),
        routes in prop::option::of(prop::collection::vec(
            (prop::sample::select(&BACKENDS[..]), prop::sample::select(&["", "a", "up"][..]),
                1..3u32, 1..=1000u32), 0..4)),
        fallback in prop::collection::vec(prop::sample::select(&["a", "ab", "b", "c"][..]), 0..4),
        enabled in any::<bool>(),
    ) -> ModelPlan {
        ModelPlan { enabled, ..model(name, routes.as_deref(), &fallback) }
    }
}

prop_compose! {
    fn any_rule()(
        models in prop::collection::vec(prop::sample::select(&NAMES[..]), 0..2),
        primary in prop::sample::select(&["", "one", "two"][..]),
        fallback in prop::collection::vec(prop::sample::select(&BACKENDS[..]), 0..3),
    ) -> RulePlan {
        rule(&models, primary, &fallback)
    }
}

proptest! {
    /// With any configuration, even with circular fallbacks, a route is finite, without empty tiers or
    /// duplicate splits.
    #[test]
    fn routes_are_finite_and_without_duplicates(
        mut models in prop::collection::vec(any_model(), 0..6),
        rules in prop::collection::vec(any_rule(), 0..3),
        served in prop::collection::vec(
            (1..1000u32, 1..4usize, prop::collection::vec(prop::sample::select(&NAMES[..]), 0..3)), 3),
    ) {
        models.sort_by_key(|m| format!("{:?}", m.name));
        models.dedup_by_key(|m| m.name.clone());
        let backends: Vec<_> = BACKENDS
            .iter()
            .zip(&served)
            .map(|(name, (weight, count, models))| (*name, *weight, *count, &models[..]))
            .collect();
        let plan = RoutingPlan { models, rules, ..RoutingPlan::default() };
        let (router, pools) = router(&backends, &plan);
        for (i, pool) in pools.iter().enumerate() {
            prop_assert!(!pools[..i].contains(pool), "{pools:?}");
            prop_assert!(!pool.members.is_empty());
            prop_assert!(pool.members.iter().all(|(_, weight)| (1..=1000).contains(weight)));
            prop_assert!(pool.members.windows(2).all(|pair| pair[0].0 < pair[1].0));
        }
        for route in router.routes() {
            prop_assert!(!route.tiers.is_empty());
            let splits: Vec<_> = route.tiers.iter().flat_map(|t| &t.splits).collect();
            let distinct: HashSet<_> = splits.iter().map(|s| (s.pool, &s.model)).collect();
            prop_assert_eq!(distinct.len(), splits.len());
            prop_assert!(splits.iter().all(|s| s.weight > 0 && s.pool < pools.len()));
            prop_assert!(route.tiers.iter().all(|t| !t.splits.is_empty()));
        }
        for name in router.models() {
            prop_assert!(router.find(Some(name)).is_ok() && router.lists(name));
        }
    }
}
