//! Laying the ways of all models out.
//!
//! Models that no pattern of the configuration tells apart go the same ways. So there is one class
//! for each exact name, one for each prefix (all other models that begin so), one for all the rest
//! and one for requests without a model; the ways of each are found once.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use super::{Entry, Place, PoolSpec, Route, Router, Split, Tier, Way};
use crate::config::plan::{BalancePlan, ModelPattern, ModelPlan, RoutePlan, RoutingPlan, RulePlan};

/// Weights within a pool are brought below this, as far as they may be.
const LARGEST_WEIGHT: u64 = 1000;

/// Models that go the same ways.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class<'a> {
    Nameless,
    Name(&'a str),
    /// All that begin so and are in no narrower class.
    Prefix(&'a str),
}

impl<'a> Class<'a> {
    fn name(self) -> Option<&'a str> {
        match self {
            Self::Name(name) => Some(name),
            Self::Nameless | Self::Prefix(_) => None,
        }
    }

    /// Whether a pattern matches all models of the class; if not, it matches none.
    fn is_in(self, pattern: &ModelPattern) -> bool {
        match (self, pattern) {
            (Self::Nameless, _) | (Self::Prefix(_), ModelPattern::Exact(_)) => false,
            (Self::Name(name), pattern) => pattern.matches(name),
            (Self::Prefix(prefix), ModelPattern::Prefix(p)) => prefix.starts_with(p.as_str()),
        }
    }
}

pub(super) fn lay_out(plan: &RoutingPlan, places: &[Place<'_>]) -> (Router, Vec<PoolSpec>) {
    let aliases = plan.models.iter().map(|m| (m.name.clone(), m)).collect();
    let mut layout = Layout { plan, places, aliases, pools: Vec::new() };
    let known = (plan.models.iter().map(|m| &m.name))
        .chain(places.iter().flat_map(|p| p.models))
        .chain(plan.rules.iter().flat_map(|r| &r.models));
    let (mut exact, mut prefixes) = (HashMap::new(), BTreeMap::new());
    let mut names = Vec::new();
    for pattern in known {
        match pattern {
            ModelPattern::Exact(name) if !exact.contains_key(name) => {
                let entry = layout.entry(Class::Name(name));
                if entry.listed && matches!(entry.way, Way::To(_)) {
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
    // A model that another one goes on with is told apart, so as not to go on with itself.
    for name in plan.models.iter().flat_map(|m| &m.fallback) {
        if !exact.contains_key(name) {
            exact.insert(name.clone(), layout.entry(Class::Name(name)));
        }
    }
    let mut prefixes: Vec<_> = prefixes.into_iter().collect();
    prefixes.sort_by_key(|(prefix, _)| std::cmp::Reverse(prefix.len()));
    let any = layout.entry(Class::Prefix(""));
    let nameless = layout.entry(Class::Nameless);
    layout.pool_of_the_rest();
    (Router { exact, prefixes, any, nameless, names }, layout.pools)
}

struct Layout<'a> {
    plan: &'a RoutingPlan,
    places: &'a [Place<'a>],
    aliases: Vec<(ModelPattern, &'a ModelPlan)>,
    pools: Vec<PoolSpec>,
}

/// The ways of one class, while they are found.
struct Ways<'a> {
    /// What the client says.
    asked: Class<'a>,
    tiers: Vec<Tier>,
    used: HashSet<(usize, Option<Arc<str>>)>,
    /// Models that were gone on with.
    followed: BTreeSet<&'a str>,
}

impl Ways<'_> {
    /// The name by which a backend is asked; `None` if it is the one that the client says.
    fn upstream(&self, class: Class<'_>, route: Option<&Arc<str>>) -> Option<Arc<str>> {
        let name = route.cloned().or_else(|| class.name().map(Into::into));
        name.filter(|name| self.asked.name() != Some(name))
    }

    /// Adds a tier of what was not there before.
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
        let mut ways = Ways { asked: class, tiers: Vec::new(), used: HashSet::new(), followed };
        self.follow(class, &mut ways);
        let alias = self.alias(class);
        let way = match ways.tiers {
            tiers if !tiers.is_empty() => Way::To(Arc::new(Route { tiers })),
            _ if alias.is_some_and(|a| a.enabled && a.routes.is_some()) => Way::Closed,
            _ => Way::Unknown,
        };
        Entry { way, listed: alias.is_none_or(|a| a.enabled) }
    }

    /// The entry of `models` that holds for a class.
    fn alias(&self, class: Class<'_>) -> Option<&'a ModelPlan> {
        match class {
            Class::Nameless => None,
            Class::Name(name) => ModelPattern::closest(&self.aliases, name).copied(),
            // A model that begins so, and that no exact name is.
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

    /// Adds the ways of a class, then those of the models that it goes on with.
    fn follow(&mut self, class: Class<'a>, ways: &mut Ways<'a>) {
        let alias = self.alias(class);
        match alias.and_then(|a| a.routes.as_deref()) {
            Some(routes) => {
                let balance = alias.map_or(&self.plan.balance, |a| &a.balance);
                self.routes(class, routes, balance, ways);
            }
            None => self.own(class, alias, ways),
        }
        for name in alias.map_or(&[][..], |a| &a.fallback) {
            if ways.followed.insert(name) {
                self.follow(Class::Name(name), ways);
            }
        }
    }

    /// The ways of an entry of `models`: a tier for each priority, in it a split for each name.
    fn routes(
        &mut self,
        class: Class<'a>,
        routes: &[RoutePlan],
        balance: &BalancePlan,
        ways: &mut Ways<'a>,
    ) {
        let mut tiers: BTreeMap<u32, Vec<&RoutePlan>> = BTreeMap::new();
        for route in routes {
            tiers.entry(route.priority).or_default().push(route);
        }
        for tier in tiers.into_values() {
            let mut names: Vec<(Option<Arc<str>>, Vec<&RoutePlan>)> = Vec::new();
            for route in tier {
                let name = ways.upstream(class, route.model.as_ref());
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
            ways.push(splits);
        }
    }

    /// The places of some routes. What a route gets is divided among the places of its backend, so
    /// that 95 to 5 stays so however many addresses each has.
    fn shares(&self, routes: &[&RoutePlan]) -> Vec<(usize, u64)> {
        let count = |r: &RoutePlan| self.of_backend(&r.backend).count().max(1) as u64;
        let counts: Vec<u64> = routes.iter().map(|r| count(r)).collect();
        let whole = counts.iter().fold(1, |a, b| (a / gcd(a, *b) * b).min(1 << 30));
        let mut members: BTreeMap<usize, u64> = BTreeMap::new();
        for (route, count) in routes.iter().zip(counts) {
            for place in self.of_backend(&route.backend) {
                *members.entry(place).or_default() += u64::from(route.weight) * whole / count;
            }
        }
        members.into_iter().collect()
    }

    fn of_backend(&self, name: &str) -> impl Iterator<Item = usize> {
        let places = self.places.iter().enumerate();
        places.filter(move |(_, p)| p.backend == name).map(|(i, _)| i)
    }

    fn serves(&self, place: usize, class: Class<'_>) -> bool {
        let models = self.places[place].models;
        models.is_empty() || models.iter().any(|p| class.is_in(p))
    }

    /// The ways of a model by the backends' own names, as the rules arrange them.
    fn own(&mut self, class: Class<'a>, alias: Option<&'a ModelPlan>, ways: &mut Ways<'a>) {
        let balance = alias.map_or(&self.plan.balance, |a| &a.balance);
        let holds =
            |rule: &&RulePlan| rule.models.is_empty() || rule.models.iter().any(|p| class.is_in(p));
        let rule = self.plan.rules.iter().find(holds);
        let own: Vec<_> = (0..self.places.len()).filter(|i| self.serves(*i, class)).collect();
        let exact = |rule: &RulePlan| {
            let mut models = rule.models.iter();
            models.any(|p| matches!(p, ModelPattern::Exact(_)) && class.is_in(p))
        };
        if own.is_empty() && !rule.is_some_and(exact) {
            return;
        }
        // A rule for all models does not send one to a backend that does not have it.
        let usable = |layout: &Self, rule: &RulePlan, backend: &str| {
            let places = layout.of_backend(backend);
            let fits = |i: &usize| !rule.models.is_empty() || layout.serves(*i, class);
            places.filter(fits).collect::<Vec<_>>()
        };
        let mut tiers = Vec::new();
        let primary = rule.and_then(|r| Some(usable(self, r, r.primary.as_deref()?)));
        tiers.push(primary.filter(|p| !p.is_empty()).unwrap_or(own));
        for backend in rule.map_or(&[][..], |r| &r.fallback) {
            tiers.extend(rule.map(|r| usable(self, r, backend)));
        }
        for places in tiers {
            let weigh = |i: usize| (i, u64::from(self.places[i].weight));
            let pool = self.pool(places.into_iter().map(weigh).collect(), balance);
            let model = ways.upstream(class, None);
            ways.push(pool.map(|pool| Split { weight: 1, pool, model }));
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

    /// Places that no model leads to are in a pool as well: their health is known by their pool.
    fn pool_of_the_rest(&mut self) {
        let used: HashSet<usize> =
            self.pools.iter().flat_map(|p| p.members.iter().map(|(i, _)| *i)).collect();
        let rest = (0..self.places.len()).filter(|i| !used.contains(i)).map(|i| (i, 1)).collect();
        self.pool(rest, &self.plan.balance);
    }
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests;
