//! Derives the claims of a request from the rules.

use std::{
    borrow::Cow,
    collections::hash_map::RandomState,
    hash::{BuildHasher, Hasher},
    net::IpAddr,
};

use sha2::{Digest, Sha256};

use super::{
    bucket::{Rate, SECOND},
    claim::{Claim, ClaimKind, Claims, Dim, Spend, Unit},
    estimate::Estimate,
    table,
};
use crate::{
    base::{
        ModelPattern, Principal, ResetPeriod,
        limits::{Limits, Scope},
    },
    config::plan::LimitPlan,
};

/// The facts about a request that rules match on.
pub struct RequestFacts<'a> {
    /// The caller, if known.
    pub principal: Option<&'a Principal>,
    /// The client's address.
    pub address: Option<IpAddr>,
    pub model: Option<&'a str>,
    /// Unix seconds.
    pub now: i64,
    /// Count only requests: nothing will be generated.
    pub only_requests: bool,
    /// Reject callers whose quota or balance is used up. It is counted in any case.
    pub enforce_quotas: bool,
}

/// One limit of a rule that is counted in a bucket.
#[derive(Clone, Copy, Debug, PartialEq)]
struct RateLimit {
    dim: Dim,
    rate: Rate,
}

/// A rule, prepared for use.
#[derive(Clone, Debug, Default)]
struct Rule {
    limits: Limits,
    rate_limits: Vec<RateLimit>,
    budget: Option<(f64, ResetPeriod)>,
}

impl Rule {
    fn new(limits: Limits) -> Self {
        let some = |amount: Option<f64>| amount.filter(|n| *n > 0.0);
        let mut rate_limits = Vec::new();
        let mut budget = None;
        if limits.enabled != Some(false) {
            if let Some(n) = some(limits.requests_per_second) {
                let burst = some(limits.burst_size).unwrap_or(2.0 * n);
                rate_limits.push(RateLimit {
                    dim: Dim::RequestsPerSecond,
                    rate: Rate::new(n, SECOND, burst),
                });
            }
            for (dim, amount) in [
                (Dim::RequestsPerMinute, limits.requests_per_minute),
                (Dim::Tokens, limits.tokens_per_minute),
                (Dim::InputTokens, limits.input_tokens_per_minute),
                (Dim::OutputTokens, limits.output_tokens_per_minute),
            ] {
                if let Some(n) = some(amount) {
                    rate_limits.push(RateLimit { dim, rate: Rate::new(n, 60 * SECOND, n) });
                }
            }
            if let Some(n) = some(limits.max_concurrent) {
                rate_limits.push(RateLimit {
                    dim: Dim::Concurrent,
                    rate: Rate { interval: 1, capacity: n as u64 },
                });
            }
            let period = limits.budget_period.unwrap_or(ResetPeriod::Monthly);
            budget = some(limits.budget).map(|amount| (amount, period));
        }
        Self { limits, rate_limits, budget }
    }

    fn is_empty(&self) -> bool {
        self.rate_limits.is_empty() && self.budget.is_none()
    }
}

/// All rules of a configuration.
pub struct Rules {
    /// By [`Scope::index`].
    scopes: Vec<Rule>,
    models: Vec<(ModelPattern, Rule)>,
    key_models: Vec<(ModelPattern, Rule)>,
    /// Scopes with rules. The others are checked only for callers with limits of their own.
    used: Vec<Scope>,
    /// Whether claims get names, for a store outside of this process.
    named: bool,
    enabled: bool,
    /// Buckets that a request needs, unless limits of models or of its own apply.
    usual: usize,
}

impl Rules {
    /// Prepares the rules.
    pub fn new(plan: &LimitPlan) -> Self {
        let models = |list: &[(ModelPattern, Limits)]| -> Vec<_> {
            list.iter().map(|(p, limits)| (p.clone(), Rule::new(limits.clone()))).collect()
        };
        let scopes: Vec<_> = plan.rules.iter().cloned().map(Rule::new).collect();
        let (models, key_models) = (models(&plan.models), models(&plan.key_models));
        let used = |scope: &Scope| match scope {
            Scope::Model if !models.is_empty() => true,
            Scope::KeyModel if !key_models.is_empty() => true,
            _ => !scopes[scope.index()].is_empty(),
        };
        let used: Vec<_> = Scope::ALL.into_iter().filter(used).collect();
        let usual = scopes.iter().map(|rule| rule.rate_limits.len()).sum();
        Self {
            usual,
            used,
            models,
            key_models,
            scopes,
            named: plan.shared.is_some(),
            enabled: plan.enabled,
        }
    }

    fn rule(&self, scope: Scope, model: &str) -> &Rule {
        let special = match scope {
            Scope::Model => ModelPattern::closest(&self.models, model),
            Scope::KeyModel => ModelPattern::closest(&self.key_models, model),
            _ => None,
        };
        special.unwrap_or(&self.scopes[scope.index()])
    }

    /// Whether only callers with limits of their own are limited.
    pub fn is_empty(&self) -> bool {
        self.used.is_empty()
    }

    /// The claims of a request. `hash` makes the ids of buckets; `estimate` is called at most once,
    /// if tokens are limited.
    pub fn claims(
        &self,
        facts: &RequestFacts<'_>,
        hash: &RandomState,
        estimate: impl FnOnce() -> Estimate,
    ) -> (Claims, Option<Estimate>) {
        let own = facts.principal.and_then(|p| p.limits.as_deref()).filter(|_| self.enabled);
        let takes = Vec::with_capacity(self.usual);
        let mut claims = Claims { takes, spends: Vec::new() };
        let scopes: &[Scope] = if own.is_some() { &Scope::ALL } else { &self.used };
        let model = facts.model.unwrap_or_default();
        for scope in scopes.iter().copied() {
            let rule = self.rule(scope, model);
            let own = own.and_then(|own| own.for_scope(scope, model));
            let merged = own.map(|own| Rule::new(own.or(&rule.limits)));
            let rule = merged.as_ref().unwrap_or(rule);
            if !rule.is_empty()
                && let Some(identity) = identity_of(scope, facts)
            {
                // A caller's own rate for a shared scope gets its own bucket, because a bucket has
                // one rate.
                let own = merged.is_some() && !matches!(scope, Scope::Key | Scope::KeyModel);
                self.add(&mut claims, rule, (scope, own), &short(identity), (facts, hash));
            }
        }
        if !facts.only_requests {
            allowance(&mut claims, facts);
        }
        let estimate = reserve(&mut claims, estimate);
        (claims, estimate)
    }

    fn add(
        &self,
        claims: &mut Claims,
        rule: &Rule,
        (scope, own): (Scope, bool),
        identity: &str,
        (facts, hash): (&RequestFacts<'_>, &RandomState),
    ) {
        let mut hasher = hash.build_hasher();
        hasher.write_u8(scope as u8);
        hasher.write(identity.as_bytes());
        let id = hasher.finish();
        for rate_limit in &rule.rate_limits {
            if facts.only_requests && rate_limit.dim.kind() != ClaimKind::Take {
                continue;
            }
            // The ids of one rule differ by odd multiples: a bijection for each dimension.
            let salt = (rate_limit.dim as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
            let Rate { interval, capacity } = rate_limit.rate;
            let apart = own && rate_limit.dim.kind() != ClaimKind::Slot;
            let name = match (self.named, apart) {
                (true, false) => format!("{}/{}/{identity}", scope.word(), rate_limit.dim.word()),
                (true, true) => {
                    let (scope, dim) = (scope.word(), rate_limit.dim.word());
                    format!("{scope}/{dim}@{interval}x{capacity}/{identity}")
                }
                (false, _) => String::new(),
            };
            let rate = if apart { hash.hash_one((interval, capacity)) } else { 0 };
            let id = table::sibling(id, salt ^ rate);
            claims.takes.push(Claim {
                id: match scope {
                    Scope::Global | Scope::Team | Scope::Model => table::shared(id),
                    Scope::Key | Scope::Ip | Scope::User | Scope::KeyModel => table::single(id),
                },
                name,
                scope,
                dim: rate_limit.dim,
                rate: rate_limit.rate,
                amount: 1,
                left: 0,
                reset: 0,
            });
        }
        if let Some((limit, period)) = rule.budget
            && !facts.only_requests
        {
            let unit = Unit::Cost;
            claims.spends.push(Spend {
                // Each period has its own amount.
                subject: format!("{}/{}/{}/{identity}", scope.word(), unit.word(), period.word()),
                scope,
                unit,
                limit,
                start: period.start(facts.now, None).unwrap_or(0),
                end: period.end(facts.now, None),
            });
        }
    }
}

/// Larger than any quota: the amount is only counted.
const UNLIMITED: f64 = 1e300;

/// Adds the quota and balance of a key that the gateway itself counts.
fn allowance(claims: &mut Claims, facts: &RequestFacts<'_>) {
    let Some(principal) = facts.principal else { return };
    let Some(allowance) = &principal.allowance else { return };
    let enforced = facts.enforce_quotas && allowance.enforced;
    let mut add = |unit: Unit, limit: f64, start, end| {
        claims.spends.push(Spend {
            subject: [Scope::Key.word(), "/", unit.word(), "/", &principal.key_id].concat(),
            scope: Scope::Key,
            unit,
            limit: if enforced { limit } else { UNLIMITED },
            start,
            end,
        });
    };
    if let Some(quota) = &allowance.quota {
        let anchor = quota.last_reset_at;
        let start = quota.period.start(facts.now, anchor).unwrap_or(0);
        add(Unit::Quota, quota.left(facts.now), start, quota.renews_at(facts.now));
    }
    if let Some(balance) = allowance.balance {
        add(Unit::Balance, balance, 0, None);
    }
}

/// Sets the amounts of token reservations to the estimate.
fn reserve(claims: &mut Claims, estimate: impl FnOnce() -> Estimate) -> Option<Estimate> {
    let mut tokens =
        claims.takes.iter_mut().filter(|c| c.dim.kind() == ClaimKind::Reserve).peekable();
    tokens.peek()?;
    let estimate = estimate();
    for claim in tokens {
        claim.amount = estimate.charge().units(claim.dim);
    }
    // Embeddings have no answer tokens: a limit on those does not apply to them.
    claims.takes.retain(|claim| claim.amount > 0);
    Some(estimate)
}

/// The identity by which a rule counts this request; `None` if the rule does not apply to it.
fn identity_of<'a>(scope: Scope, facts: &RequestFacts<'a>) -> Option<Cow<'a, str>> {
    let key = facts.principal.map(|p| p.key_id.as_str()).filter(|id| !id.is_empty());
    // A caller without a key is identified by its address.
    let key = || key.map_or_else(|| address(facts.address).into(), Cow::from);
    let model = facts.model.unwrap_or_default();
    match scope {
        Scope::Global => Some("all".into()),
        Scope::Key => Some(key()),
        Scope::Ip => Some(address(facts.address).into()),
        Scope::User => {
            let user = facts.principal.map(|p| p.user_id.as_str()).filter(|id| !id.is_empty());
            // A key without a user counts as a user of its own; the prefix avoids clashes with user ids.
            Some(user.map_or_else(|| format!("key:{}", key()).into(), Cow::from))
        }
        Scope::Team => {
            facts.principal.map(|p| p.team.as_str()).filter(|t| !t.is_empty()).map(Cow::from)
        }
        // A request for the list of models is for no model.
        Scope::Model | Scope::KeyModel if facts.only_requests => None,
        Scope::Model => Some(model.into()),
        Scope::KeyModel => Some(format!("{}/{model}", key()).into()),
    }
}

/// The longest identity that is used in a name, in bytes.
const MAX_IDENTITY: usize = 200;

/// The identity, or its digest if it is long: clients choose the names of models.
fn short(identity: Cow<'_, str>) -> Cow<'_, str> {
    if identity.len() <= MAX_IDENTITY {
        return identity;
    }
    let digest: String =
        Sha256::digest(identity.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{digest}").into()
}

/// An IPv4 address or an IPv6 /64 network, which is the least that one customer gets.
fn address(address: Option<IpAddr>) -> String {
    match address.map(|ip| ip.to_canonical()) {
        None => "unknown".to_owned(),
        Some(IpAddr::V4(ip)) => ip.to_string(),
        Some(IpAddr::V6(ip)) => {
            let network = u128::from(ip) >> 64 << 64;
            format!("{}/64", std::net::Ipv6Addr::from(network))
        }
    }
}

/// Identifies the caller for fairness in the queue: its key, or its address if it has none.
pub fn fair_key(facts: &RequestFacts<'_>, hash: &RandomState) -> u64 {
    hash.hash_one(identity_of(Scope::Key, facts).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use super::*;
    use crate::{base::limits::OwnLimits, limit::estimate::Estimate};

    const ESTIMATE: Estimate = Estimate { prompt: 10, completion: 20 };

    fn plan(rules: &[(Scope, serde_json::Value)]) -> LimitPlan {
        let text = "backends: [{url: \"http://x\"}]";
        let loaded = crate::config::load_text(text, std::path::Path::new("."), &|_| None);
        let mut plan = loaded.plan.unwrap().limits;
        for (scope, limits) in rules {
            plan.rules[scope.index()] = serde_json::from_value(limits.clone()).unwrap();
        }
        plan
    }

    fn facts<'a>(who: Option<&'a Principal>, address: &str, model: &'a str) -> RequestFacts<'a> {
        let address = address.parse().ok();
        RequestFacts {
            principal: who,
            address,
            model: Some(model),
            now: 0,
            only_requests: false,
            enforce_quotas: true,
        }
    }

    fn takes(rules: &Rules, facts: &RequestFacts<'_>, hash: &RandomState) -> Vec<Claim> {
        rules.claims(facts, hash, || ESTIMATE).0.takes
    }

    fn principal(key: &str, limits: Option<serde_json::Value>) -> Principal {
        let limits = limits.map(|l| Arc::new(OwnLimits::read(&l).unwrap()));
        Principal { key_id: key.to_owned(), limits, ..Principal::default() }
    }

    #[test]
    fn rules_count_together_whom_they_say() {
        let all = json!({"requests_per_minute": 5});
        let rules = Rules::new(&plan(&Scope::ALL.map(|scope| (scope, all.clone()))));
        let hash = RandomState::new();
        let ids = |who: &Principal, ip: &str, model: &str| {
            let claims = takes(&rules, &facts(Some(who), ip, model), &hash);
            claims.iter().map(|c| (c.scope, c.id)).collect::<Vec<_>>()
        };
        let who = |key: &str, user: &str, team: &str| Principal {
            user_id: user.to_owned(),
            team: team.to_owned(),
            ..principal(key, None)
        };
        let shared = |a: Vec<(Scope, u64)>, b: Vec<(Scope, u64)>| -> Vec<Scope> {
            a.iter().filter(|claim| b.contains(claim)).map(|(scope, _)| *scope).collect()
        };
        let one = || ids(&who("k1", "u", "t"), "10.0.0.1", "m1");
        assert_eq!(one().len(), 7);
        let others = ids(&who("k2", "u", "t"), "10.0.0.2", "m1");
        assert_eq!(shared(one(), others), [Scope::Global, Scope::User, Scope::Team, Scope::Model]);
        let others = ids(&who("k1", "", ""), "10.0.0.1", "m2");
        assert_eq!(others.len(), 6, "who has no team is under no team's rule");
        assert_eq!(shared(one(), others), [Scope::Global, Scope::Key, Scope::Ip]);
    }

    #[test]
    fn names_of_models_do_not_make_long_names() {
        let all = json!({"requests_per_minute": 5});
        let mut plan = plan(&[(Scope::Model, all)]);
        let server = crate::store::redis::Settings {
            host: String::new(),
            port: 1,
            tls: false,
            username: None,
            password: None,
            db: 0,
            connections: 1,
            connect_timeout: std::time::Duration::ZERO,
            timeout: std::time::Duration::ZERO,
        };
        plan.shared = Some(crate::config::plan::SharedPlan {
            server,
            prefix: String::new(),
            ttl: std::time::Duration::ZERO,
            timeout: std::time::Duration::ZERO,
            lease: None,
            on_error: crate::config::choices::OnRedisError::Local,
        });
        let rules = Rules::new(&plan);
        let hash = RandomState::new();
        let name =
            |model: &str| takes(&rules, &facts(None, "10.0.0.1", model), &hash)[0].name.clone();
        assert_eq!(name("qwen"), "per_model/requests_per_minute/qwen");
        let long = "a".repeat(1 << 20);
        assert!(name(&long).len() < 120);
        assert_ne!(name(&long), name(&format!("{long}b")));
    }

    #[test]
    fn addresses_stand_for_callers_without_a_key_and_ipv6_counts_by_network() {
        let all = json!({"requests_per_minute": 5});
        let rules = Rules::new(&plan(&[(Scope::Key, all.clone()), (Scope::Ip, all)]));
        let hash = RandomState::new();
        let ids = |ip: &str| {
            let claims = takes(&rules, &facts(None, ip, "m"), &hash);
            claims.iter().map(|c| c.id).collect::<Vec<_>>()
        };
        assert_eq!(ids("2001:db8:1:2::7"), ids("2001:db8:1:2:ffff::1"));
        assert_ne!(ids("2001:db8:1:2::7"), ids("2001:db8:1:3::7"));
        assert_eq!(ids("::ffff:10.0.0.1"), ids("10.0.0.1"));
        assert_ne!(ids("10.0.0.1"), ids("10.0.0.2"));
    }

    #[test]
    fn limits_of_ones_own_go_before_the_rules() {
        let rule = json!({"requests_per_minute": 5, "max_concurrent": 2});
        let rules = Rules::new(&plan(&[(Scope::Key, rule)]));
        let hash = RandomState::new();
        let of = |limits: serde_json::Value| {
            let who = principal("k", Some(limits));
            let claims = takes(&rules, &facts(Some(&who), "10.0.0.1", "m"), &hash);
            claims.iter().map(|c| (c.scope, c.dim, c.rate.capacity)).collect::<Vec<_>>()
        };
        assert_eq!(
            of(json!({"requests_per_minute": 100, "max_concurrent": 0})),
            [(Scope::Key, Dim::RequestsPerMinute, 100)]
        );
        assert_eq!(of(json!({"per_key": {"enabled": false}})), []);
        assert_eq!(
            of(json!({"enabled": false, "models": {"m": {"max_concurrent": 1}}})),
            [(Scope::KeyModel, Dim::Concurrent, 1)]
        );
    }

    #[test]
    fn tokens_are_reserved_as_guessed_and_lists_of_models_reserve_none() {
        let rule = json!({"tokens_per_minute": 100, "input_tokens_per_minute": 100,
            "output_tokens_per_minute": 100, "requests_per_second": 0.5, "max_concurrent": 1});
        let rules = Rules::new(&plan(&[(Scope::Global, rule)]));
        let hash = RandomState::new();
        let mut facts = facts(None, "10.0.0.1", "m");
        let (claims, estimate) = rules.claims(&facts, &hash, || ESTIMATE);
        let amounts: Vec<_> = claims.takes.iter().map(|c| (c.dim, c.amount)).collect();
        assert_eq!(
            amounts,
            [
                (Dim::RequestsPerSecond, 1),
                (Dim::Tokens, 30),
                (Dim::InputTokens, 10),
                (Dim::OutputTokens, 20),
                (Dim::Concurrent, 1)
            ]
        );
        assert_eq!(estimate, Some(ESTIMATE));
        facts.only_requests = true;
        let (claims, estimate) = rules.claims(&facts, &hash, || unreachable!());
        assert_eq!((claims.takes.len(), estimate), (1, None));
        assert_eq!(claims.takes[0].rate.capacity, 1);
    }
}
