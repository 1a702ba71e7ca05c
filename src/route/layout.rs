//! Computes the routes of all models.
//!
//! Models that no pattern of the configuration distinguishes have the same route. So there is one
//! class for each exact name, one for each prefix (all other models with it), one for all other models
//! and one for requests without a model; the route of each class is computed once.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use super::router::{Entry, PoolSpec, Resolution, Route, RouteTarget, Router, Split, Tier};
use crate::config::plan::{BalancePlan, ModelPattern, ModelPlan, RoutePlan, RoutingPlan, RulePlan};

/// Weights within a pool are scaled down to at most this.
const LARGEST_WEIGHT: u64 = 1000;

/// Models with the same route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class<'a> {
    Nameless,
    Name(&'a str),
    /// All models with this prefix that are in no narrower class.
    Prefix(&'a str),
}

impl<'a> Class<'a> {
    fn name(self) -> Option<&'a str> {
        match self {
            Self::Name(name) => Some(name),
            Self::Nameless | Self::Prefix(_) => None,
        }
    }

    /// Whether a pattern matches the models of the class: all or none of them.
    fn is_in(self, pattern: &ModelPattern) -> bool {
        match (self, pattern) {
            (Self::Nameless, _) | (Self::Prefix(_), ModelPattern::Exact(_)) => false,
            (Self::Name(name), pattern) => pattern.matches(name),
            (Self::Prefix(prefix), ModelPattern::Prefix(p)) => prefix.starts_with(p.as_str()),
        }
    }
}

impl Router {
    /// Computes the routes of all models. Returns the router and the pools that it refers to.
    pub fn new(plan: &RoutingPlan, targets: &[RouteTarget<'_>]) -> (Self, Vec<PoolSpec>) {
        lay_out(plan, targets)
    }
}

fn lay_out(plan: &RoutingPlan, targets: &[RouteTarget<'_>]) -> (Router, Vec<PoolSpec>) {
    let aliases = plan.models.iter().map(|m| (m.name.clone(), m)).collect();
    let mut layout = Layout { plan, targets, aliases, pools: Vec::new() };
    let known = (plan.models.iter().map(|m| &m.name))
        .chain(targets.iter().flat_map(|t| t.models))
        .chain(plan.rules.iter().flat_map(|r| &r.models));
    let (mut exact, mut prefixes) = (HashMap::new(), BTreeMap::new());
    let mut names = Vec::new();
    for pattern in known {
        match pattern {
            ModelPattern::Exact(name) if !exact.contains_key(name) => {
                let entry = layout.entry(Class::Name(name));
                if entry.listed && matches!(entry.resolution, Resolution::Route(_)) {
                    names.push(name.clone());
                }
                exact.insert(name.clone(), entry);
            }
            ModelPattern::Prefix(prefix) if !prefixes.contains_key(prefix) => {
                prefixes.insert(prefix.clone(), layout.entry(Class::Prefix(prefix)));
            }
            ModelPattern::Exact(_) | ModelPattern::Prefix(_) => {}
        }
    }
    // The fallback models have classes of their own, so that none falls back to itself.
    for name in plan.models.iter().flat_map(|m| &m.fallback) {
        if !exact.contains_key(name) {
            exact.insert(name.clone(), layout.entry(Class::Name(name)));
        }
    }
    let mut prefixes: Vec<_> = prefixes.into_iter().collect();
    prefixes.sort_by_key(|(prefix, _)| std::cmp::Reverse(prefix.len()));
    let any = layout.entry(Class::Prefix(""));
    let nameless = layout.entry(Class::Nameless);
    layout.add_pool_of_unused();
    (Router { exact, prefixes, any, nameless, names }, layout.pools)
}

struct Layout<'a> {
    plan: &'a RoutingPlan,
    targets: &'a [RouteTarget<'a>],
    aliases: Vec<(ModelPattern, &'a ModelPlan)>,
    pools: Vec<PoolSpec>,
}

/// The route of one class, while it is computed.
struct RouteBuilder<'a> {
    /// The class of the requested model.
    requested: Class<'a>,
    tiers: Vec<Tier>,
    used: HashSet<(usize, Option<Arc<str>>)>,
    /// Models whose tiers were added.
    followed: BTreeSet<&'a str>,
}

impl RouteBuilder<'_> {
    /// The name by which a backend is asked for the model; `None` if it is the requested one.
    fn upstream(&self, class: Class<'_>, route: Option<&Arc<str>>) -> Option<Arc<str>> {
        let name = route.cloned().or_else(|| class.name().map(Into::into));
        name.filter(|name| self.requested.name() != Some(name))
    }

    /// Adds a tier with the splits that no earlier tier has.
    fn push(&mut self, splits: impl IntoIterator<Item = Split>) {
        let new = |s: &Split| self.used.insert((s.pool, s.model.clone()));
        let splits: Vec<_> = splits.into_iter().filter(new).collect();
        if !splits.is_empty() {
            self.tiers.push(Tier { splits });
        }
    }
}

impl<'a> Layout<'a> {
    fn entry(&mut self, class: Class<'a>) -> Entry {
        let followed = class.name().into_iter().collect();
        let mut builder =
            RouteBuilder { requested: class, tiers: Vec::new(), used: HashSet::new(), followed };
        self.follow(class, &mut builder);
        let alias = self.alias(class);
        let resolution = match builder.tiers {
            tiers if !tiers.is_empty() => Resolution::Route(Arc::new(Route { tiers })),
            _ if alias.is_some_and(|a| a.enabled && a.routes.is_some()) => Resolution::Disabled,
            _ => Resolution::Unknown,
        };
        Entry { resolution, listed: alias.is_none_or(|a| a.enabled) }
    }

    /// The entry of `models` that applies to a class.
    fn alias(&self, class: Class<'_>) -> Option<&'a ModelPlan> {
        match class {
            Class::Nameless => None,
            Class::Name(name) => ModelPattern::closest(&self.aliases, name).copied(),
            // A model with the prefix that is no exact name.
            Class::Prefix(prefix) => {
                let prefixes = self.aliases.iter().filter(|(p, _)| class.is_in(p));
                let length = |p: &ModelPattern| match p {
                    ModelPattern::Exact(_) => prefix.len(),
                    ModelPattern::Prefix(p) => p.len(),
                };
                prefixes.max_by_key(|(p, _)| length(p)).map(|(_, alias)| *alias)
            }
        }
    }

    /// Adds the tiers of a class, then those of its fallback models.
    fn follow(&mut self, class: Class<'a>, builder: &mut RouteBuilder<'a>) {
        let alias = self.alias(class);
        match alias.and_then(|a| a.routes.as_deref()) {
            Some(routes) => {
                let balance = alias.map_or(&self.plan.balance, |a| &a.balance);
                self.routes(class, routes, balance, builder);
            }
            None => self.by_backend_models(class, alias, builder),
        }
        for name in alias.map_or(&[][..], |a| &a.fallback) {
            if builder.followed.insert(name) {
                self.follow(Class::Name(name), builder);
            }
        }
    }

    /// Adds the tiers of an entry of `models`: one for each priority, with a split for each name.
    fn routes(
        &mut self,
        class: Class<'a>,
        routes: &[RoutePlan],
        balance: &BalancePlan,
        builder: &mut RouteBuilder<'a>,
    ) {
        let mut tiers: BTreeMap<u32, Vec<&RoutePlan>> = BTreeMap::new();
        for route in routes {
            tiers.entry(route.priority).or_default().push(route);
        }
        for tier in tiers.into_values() {
            let mut names: Vec<(Option<Arc<str>>, Vec<&RoutePlan>)> = Vec::new();
            for route in tier {
                let name = builder.upstream(class, route.model.as_ref());
                match names.iter_mut().find(|(known, _)| *known == name) {
                    Some((_, routes)) => routes.push(route),
                    None => names.push((name, vec![route])),
                }
            }
            let mut splits = Vec::new();
            for (model, routes) in names {
                let weight = routes.iter().fold(0u32, |sum, r| sum.saturating_add(r.weight));
                let members = self.shares(&routes);
                let pool = self.pool(members, balance);
                splits.extend(pool.map(|pool| Split { weight, pool, model }));
            }
            builder.push(splits);
        }
    }

    /// The targets of some routes. The weight of a route is divided among the targets of its backend, so
    /// that 95 to 5 stays 95 to 5 however many addresses each backend has.
    fn shares(&self, routes: &[&RoutePlan]) -> Vec<(usize, u64)> {
        let count = |r: &RoutePlan| self.targets_of(&r.backend).count().max(1) as u64;
        let counts: Vec<u64> = routes.iter().map(|r| count(r)).collect();
        let whole = counts.iter().fold(1, |a, b| (a / gcd(a, *b) * b).min(1 << 30));
        let mut members: BTreeMap<usize, u64> = BTreeMap::new();
        for (route, count) in routes.iter().zip(counts) {
            for target in self.targets_of(&route.backend) {
                *members.entry(target).or_default() += u64::from(route.weight) * whole / count;
            }
        }
        members.into_iter().collect()
    }

    fn targets_of(&self, name: &str) -> impl Iterator<Item = usize> {
        let targets = self.targets.iter().enumerate();
        targets.filter(move |(_, t)| t.backend == name).map(|(i, _)| i)
    }

    fn serves(&self, target: usize, class: Class<'_>) -> bool {
        let models = self.targets[target].models;
        models.is_empty() || models.iter().any(|p| class.is_in(p))
    }

    /// Adds the tiers of the backends that serve the class by their own `models`, in the order of the
    /// rules.
    fn by_backend_models(
        &mut self,
        class: Class<'a>,
        alias: Option<&'a ModelPlan>,
        builder: &mut RouteBuilder<'a>,
    ) {
        let balance = alias.map_or(&self.plan.balance, |a| &a.balance);
        let applies =
            |rule: &&RulePlan| rule.models.is_empty() || rule.models.iter().any(|p| class.is_in(p));
        let rule = self.plan.rules.iter().find(applies);
        let serving: Vec<_> = (0..self.targets.len()).filter(|i| self.serves(*i, class)).collect();
        let exact = |rule: &RulePlan| {
            let mut models = rule.models.iter();
            models.any(|p| matches!(p, ModelPattern::Exact(_)) && class.is_in(p))
        };
        if serving.is_empty() && !rule.is_some_and(exact) {
            return;
        }
        // A rule for all models sends none to a backend that does not serve it.
        let usable = |layout: &Self, rule: &RulePlan, backend: &str| {
            let targets = layout.targets_of(backend);
            let fits = |i: &usize| !rule.models.is_empty() || layout.serves(*i, class);
            targets.filter(fits).collect::<Vec<_>>()
        };
        let mut tiers = Vec::new();
        let primary = rule.and_then(|r| Some(usable(self, r, r.primary.as_deref()?)));
        tiers.push(primary.filter(|p| !p.is_empty()).unwrap_or(serving));
        for backend in rule.map_or(&[][..], |r| &r.fallback) {
            tiers.extend(rule.map(|r| usable(self, r, backend)));
        }
        for targets in tiers {
            let weigh = |i: usize| (i, u64::from(self.targets[i].weight));
            let pool = self.pool(targets.into_iter().map(weigh).collect(), balance);
            let model = builder.upstream(class, None);
            builder.push(pool.map(|pool| Split { weight: 1, pool, model }));
        }
    }

    /// The pool with these members; `None` if there are none.
    fn pool(&mut self, members: Vec<(usize, u64)>, balance: &BalancePlan) -> Option<usize> {
        let most = members.iter().map(|(_, weight)| *weight).max()?;
        let common = members.iter().fold(0, |a, (_, weight)| gcd(a, *weight)).max(1);
        let small = |weight: u64| match most / common {
            0..=LARGEST_WEIGHT => weight / common,
            _ => weight * LARGEST_WEIGHT / most,
        };
        let weigh = |(i, weight)| (i, u32::try_from(small(weight)).unwrap_or(u32::MAX).max(1));
        let members = members.into_iter().map(weigh).collect();
        let spec = PoolSpec { members, balance: balance.clone() };
        Some(self.pools.iter().position(|known| *known == spec).unwrap_or_else(|| {
            self.pools.push(spec);
            self.pools.len() - 1
        }))
    }

    /// Adds a pool of the targets that no route uses: health is only known for members of pools.
    fn add_pool_of_unused(&mut self) {
        let used: HashSet<usize> =
            self.pools.iter().flat_map(|p| p.members.iter().map(|(i, _)| *i)).collect();
        let unused =
            (0..self.targets.len()).filter(|i| !used.contains(i)).map(|i| (i, 1)).collect();
        self.pool(unused, &self.plan.balance);
    }
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests;
