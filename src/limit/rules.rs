//! From rules to the claims of one request.

use std::{
    borrow::Cow,
    collections::hash_map::RandomState,
    hash::{BuildHasher, Hasher},
    net::IpAddr,
};

use sha2::{Digest, Sha256};

use super::{
    bucket::{Rate, SECOND},
    claim::{Claim, Claims, Dim, Kind, Spend, Unit},
    estimate::Guess,
    table,
};
use crate::{
    base::{
        ModelPattern, Principal, ResetPeriod,
        limits::{Limits, Scope},
    },
    config::plan::LimitPlan,
};

/// A request, as rules see it.
pub struct Ask<'a> {
    /// The caller, if it is known.
    pub who: Option<&'a Principal>,
    /// Its address.
    pub address: Option<IpAddr>,
    /// The model asked for.
    pub model: Option<&'a str>,
    /// Unix seconds.
    pub now: i64,
    /// Only requests are counted: nothing will be generated.
    pub only_requests: bool,
    /// Callers are refused whose quota or balance is used up. It is counted in any case.
    pub enforce_quotas: bool,
}

/// One limit of a rule.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Gauge {
    dim: Dim,
    rate: Rate,
}

/// A rule, ready for use.
#[derive(Clone, Debug, Default)]
struct Rule {
    limits: Limits,
    gauges: Vec<Gauge>,
    budget: Option<(f64, ResetPeriod)>,
}

impl Rule {
    fn new(limits: Limits) -> Self {
        let some = |amount: Option<f64>| amount.filter(|n| *n > 0.0);
        let mut gauges = Vec::new();
        let mut budget = None;
        if limits.enabled != Some(false) {
            if let Some(n) = some(limits.requests_per_second) {
                let burst = some(limits.burst_size).unwrap_or(2.0 * n);
                gauges
                    .push(Gauge { dim: Dim::RequestsPerSecond, rate: Rate::new(n, SECOND, burst) });
            }
            for (dim, amount) in [
                (Dim::RequestsPerMinute, limits.requests_per_minute),
                (Dim::Tokens, limits.tokens_per_minute),
                (Dim::InputTokens, limits.input_tokens_per_minute),
                (Dim::OutputTokens, limits.output_tokens_per_minute),
            ] {
                if let Some(n) = some(amount) {
                    gauges.push(Gauge { dim, rate: Rate::new(n, 60 * SECOND, n) });
                }
            }
            if let Some(n) = some(limits.max_concurrent) {
                gauges.push(Gauge {
                    dim: Dim::Concurrent,
                    rate: Rate { interval: 1, capacity: n as u64 },
                });
            }
            let period = limits.budget_period.unwrap_or(ResetPeriod::Monthly);
            budget = some(limits.budget).map(|amount| (amount, period));
        }
        Self { limits, gauges, budget }
    }

    fn is_empty(&self) -> bool {
        self.gauges.is_empty() && self.budget.is_none()
    }
}

/// All rules of a configuration.
pub struct Rules {
    /// By [`Scope::index`].
    scopes: Vec<Rule>,
    models: Vec<(ModelPattern, Rule)>,
    key_models: Vec<(ModelPattern, Rule)>,
    /// Scopes without any rule are passed over, unless a caller has limits of its own.
    used: Vec<Scope>,
    named: bool,
    enabled: bool,
}

impl Rules {
    /// Prepares the rules. `named`: claims get names, for a store outside.
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
        let used = Scope::ALL.into_iter().filter(used).collect();
        Self {
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

    /// Whether nobody is limited but by limits of its own.
    pub fn is_empty(&self) -> bool {
        self.used.is_empty()
    }

    /// What a request claims. `hash` makes identities of buckets; `guess` is asked at most once,
    /// if tokens are limited.
    pub fn claims(
        &self,
        ask: &Ask<'_>,
        hash: &RandomState,
        guess: impl FnOnce() -> Guess,
    ) -> (Claims, Option<Guess>) {
        let own = ask.who.and_then(|who| who.limits.as_deref()).filter(|_| self.enabled);
        let mut claims = Claims::default();
        let scopes: &[Scope] = if own.is_some() { &Scope::ALL } else { &self.used };
        let model = ask.model.unwrap_or_default();
        for scope in scopes.iter().copied() {
            let rule = self.rule(scope, model);
            let own = own.and_then(|own| own.of(scope, model));
            let merged = own.map(|own| Rule::new(own.or(&rule.limits)));
            let rule = merged.as_ref().unwrap_or(rule);
            if !rule.is_empty()
                && let Some(whose) = identity(scope, ask)
            {
                // A rate of one's own for what others share is counted by itself: a bucket knows one
                // rate.
                let own = merged.is_some() && !matches!(scope, Scope::Key | Scope::KeyModel);
                self.add(&mut claims, rule, (scope, own), &short(whose), (ask, hash));
            }
        }
        if !ask.only_requests {
            allowance(&mut claims, ask);
        }
        let guess = reserve(&mut claims, guess);
        (claims, guess)
    }

    fn add(
        &self,
        claims: &mut Claims,
        rule: &Rule,
        (scope, own): (Scope, bool),
        whose: &str,
        (ask, hash): (&Ask<'_>, &RandomState),
    ) {
        let mut hasher = hash.build_hasher();
        hasher.write_u8(scope as u8);
        hasher.write(whose.as_bytes());
        let id = hasher.finish();
        for gauge in &rule.gauges {
            if ask.only_requests && gauge.dim.kind() != Kind::Take {
                continue;
            }
            // Limits of one rule differ by an odd multiple: a bijection for each of them.
            let salt = (gauge.dim as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
            let Rate { interval, capacity } = gauge.rate;
            let apart = own && gauge.dim.kind() != Kind::Slot;
            let name = match (self.named, apart) {
                (true, false) => format!("{}/{}/{whose}", scope.word(), gauge.dim.word()),
                (true, true) => {
                    let (scope, dim) = (scope.word(), gauge.dim.word());
                    format!("{scope}/{dim}@{interval}x{capacity}/{whose}")
                }
                (false, _) => String::new(),
            };
            let rate = if apart { hash.hash_one((interval, capacity)) } else { 0 };
            let id = id ^ salt ^ rate;
            claims.takes.push(Claim {
                id: match scope {
                    Scope::Global | Scope::Team | Scope::Model => table::shared(id),
                    Scope::Key | Scope::Ip | Scope::User | Scope::KeyModel => table::single(id),
                },
                name,
                scope,
                dim: gauge.dim,
                rate: gauge.rate,
                amount: 1,
                left: 0,
                reset: 0,
            });
        }
        if let Some((limit, period)) = rule.budget
            && !ask.only_requests
        {
            let unit = Unit::Cost;
            claims.spends.push(Spend {
                // What is spent in a month is not what is spent in a day.
                subject: format!("{}/{}/{}/{whose}", scope.word(), unit.word(), period.word()),
                scope,
                unit,
                limit,
                start: period.start(ask.now, None).unwrap_or(0),
                end: period.end(ask.now, None),
            });
        }
    }
}

/// More than anybody has.
const BOUNDLESS: f64 = 1e300;

/// Quota and balance of a key that nobody else counts.
fn allowance(claims: &mut Claims, ask: &Ask<'_>) {
    let Some(who) = ask.who else { return };
    let Some(allowance) = &who.allowance else { return };
    let enforced = ask.enforce_quotas && allowance.enforced;
    let mut add = |unit: Unit, limit: f64, start, end| {
        claims.spends.push(Spend {
            subject: format!("{}/{}/{}", Scope::Key.word(), unit.word(), who.key_id),
            scope: Scope::Key,
            unit,
            limit: if enforced { limit } else { BOUNDLESS },
            start,
            end,
        });
    };
    if let Some(quota) = &allowance.quota {
        let anchor = quota.last_reset_at;
        let start = quota.period.start(ask.now, anchor).unwrap_or(0);
        add(Unit::Quota, quota.left(ask.now), start, quota.renews_at(ask.now));
    }
    if let Some(balance) = allowance.balance {
        add(Unit::Balance, balance, 0, None);
    }
}

/// Reservations of tokens, as large as the guess.
fn reserve(claims: &mut Claims, guess: impl FnOnce() -> Guess) -> Option<Guess> {
    let mut tokens = claims.takes.iter_mut().filter(|c| c.dim.kind() == Kind::Reserve).peekable();
    tokens.peek()?;
    let guess = guess();
    for claim in tokens {
        claim.amount = guess.used().of(claim.dim);
    }
    // Embeddings have no answer in tokens: a limit of those does not concern them.
    claims.takes.retain(|claim| claim.amount > 0);
    Some(guess)
}

/// Whom a rule counts this request with; `None` if the rule does not concern it.
fn identity<'a>(scope: Scope, ask: &Ask<'a>) -> Option<Cow<'a, str>> {
    let key = ask.who.map(|who| who.key_id.as_str()).filter(|id| !id.is_empty());
    // Who shows no key is told apart by its address.
    let key = || key.map_or_else(|| address(ask.address).into(), Cow::from);
    let model = ask.model.unwrap_or_default();
    match scope {
        Scope::Global => Some("all".into()),
        Scope::Key => Some(key()),
        Scope::Ip => Some(address(ask.address).into()),
        Scope::User => {
            let user = ask.who.map(|who| who.user_id.as_str()).filter(|id| !id.is_empty());
            // A key of nobody is a user of its own, which no user can be called like.
            Some(user.map_or_else(|| format!("key:{}", key()).into(), Cow::from))
        }
        Scope::Team => {
            ask.who.map(|who| who.team.as_str()).filter(|t| !t.is_empty()).map(Cow::from)
        }
        // A list of models is for no model.
        Scope::Model | Scope::KeyModel if ask.only_requests => None,
        Scope::Model => Some(model.into()),
        Scope::KeyModel => Some(format!("{}/{model}", key()).into()),
    }
}

/// Bytes of an identity that names hold.
const LONGEST: usize = 200;

/// The identity itself, or in place of a long one its digest: clients choose the names of models.
fn short(whose: Cow<'_, str>) -> Cow<'_, str> {
    if whose.len() <= LONGEST {
        return whose;
    }
    let digest: String =
        Sha256::digest(whose.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{digest}").into()
}

/// An address, or of IPv6 the /64 network, which is what one customer gets at least.
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

/// Who waits in turn with others: the key, or the address of who has none.
pub fn fair_key(ask: &Ask<'_>, hash: &RandomState) -> u64 {
    hash.hash_one(identity(Scope::Key, ask).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use super::*;
    use crate::{base::limits::OwnLimits, limit::estimate::Guess};

    const GUESS: Guess = Guess { prompt: 10, completion: 20 };

    fn plan(rules: &[(Scope, serde_json::Value)]) -> LimitPlan {
        let text = "backends: [{url: \"http://x\"}]";
        let loaded = crate::config::load_text(text, std::path::Path::new("."), &|_| None);
        let mut plan = loaded.plan.unwrap().limits;
        for (scope, limits) in rules {
            plan.rules[scope.index()] = serde_json::from_value(limits.clone()).unwrap();
        }
        plan
    }

    fn ask<'a>(who: Option<&'a Principal>, address: &str, model: &'a str) -> Ask<'a> {
        let address = address.parse().ok();
        Ask { who, address, model: Some(model), now: 0, only_requests: false, enforce_quotas: true }
    }

    fn takes(rules: &Rules, ask: &Ask<'_>, hash: &RandomState) -> Vec<Claim> {
        rules.claims(ask, hash, || GUESS).0.takes
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
            let claims = takes(&rules, &ask(Some(who), ip, model), &hash);
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
            |model: &str| takes(&rules, &ask(None, "10.0.0.1", model), &hash)[0].name.clone();
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
            let claims = takes(&rules, &ask(None, ip, "m"), &hash);
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
            let claims = takes(&rules, &ask(Some(&who), "10.0.0.1", "m"), &hash);
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
        let mut ask = ask(None, "10.0.0.1", "m");
        let (claims, guess) = rules.claims(&ask, &hash, || GUESS);
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
        assert_eq!(guess, Some(GUESS));
        ask.only_requests = true;
        let (claims, guess) = rules.claims(&ask, &hash, || unreachable!());
        assert_eq!((claims.takes.len(), guess), (1, None));
        assert_eq!(claims.takes[0].rate.capacity, 1);
    }
}
