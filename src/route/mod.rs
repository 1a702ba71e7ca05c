//! From a model to the pools that serve it. All ways are laid out when the configuration is loaded;
//! a request only looks its own up.

mod layout;

use std::{collections::HashMap, sync::Arc};

use crate::{
    base::Rejection,
    config::plan::{BalancePlan, ModelPattern, RoutingPlan},
};

/// Seconds after which a client may try again whose model has no backend that is used.
const RETRY_AFTER: u64 = 30;

/// The ways to a model: one tier after the other, at least one.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Route {
    /// The first is used while it has a backend to choose, then the next.
    pub tiers: Vec<Tier>,
}

impl Route {
    /// The pools of all tiers.
    pub fn pools(&self) -> impl Iterator<Item = usize> {
        self.tiers.iter().flat_map(|tier| tier.splits.iter().map(|split| split.pool))
    }
}

/// Ways of equal right, at least one.
#[derive(Debug, PartialEq, Eq)]
pub struct Tier {
    /// Shares of the requests; when the chosen one has no backend, the others are asked.
    pub splits: Vec<Split>,
}

/// A share of a tier.
#[derive(Debug, PartialEq, Eq)]
pub struct Split {
    /// In relation to the other splits, from 1.
    pub weight: u32,
    /// Who serves it.
    pub pool: usize,
    /// The model's name there; `None`: as the client says.
    pub model: Option<Arc<str>>,
}

/// A place that requests can be sent to. Several may stand for one backend of the file.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    /// Name of its backend.
    pub backend: &'a str,
    /// Its share where nothing else says one.
    pub weight: u32,
    /// Models it serves; empty for every model.
    pub models: &'a [ModelPattern],
}

/// A pool that is to be made.
#[derive(Clone, Debug, PartialEq)]
pub struct PoolSpec {
    /// Places by their numbers, with their weights.
    pub members: Vec<(usize, u32)>,
    /// How it balances.
    pub balance: BalancePlan,
}

/// Which pools serve a model. Pools are numbers; what they are is told by [`Router::new`].
#[derive(Debug)]
pub struct Router {
    exact: HashMap<String, Entry>,
    /// Longest first.
    prefixes: Vec<(String, Entry)>,
    /// For every other model.
    any: Entry,
    /// For requests that name no model.
    nameless: Entry,
    /// The exact names that are listed.
    names: Vec<String>,
}

/// What is known of one model, or of all that begin alike.
#[derive(Debug)]
struct Entry {
    way: Way,
    /// Whether clients are told of it.
    listed: bool,
}

#[derive(Debug)]
enum Way {
    To(Arc<Route>),
    /// The model is known, and none of its backends is used.
    Closed,
    Unknown,
}

impl Router {
    /// Lays the ways of all models out. Returns the router and the pools that it speaks of.
    pub fn new(plan: &RoutingPlan, places: &[Place<'_>]) -> (Self, Vec<PoolSpec>) {
        layout::lay_out(plan, places)
    }

    /// The ways of a request.
    ///
    /// # Errors
    /// 404 for a model that nobody serves, 400 if one must be named, 503 if its backends are
    /// switched off.
    pub fn find(&self, model: Option<&str>) -> Result<Arc<Route>, Rejection> {
        match (&self.entry(model).way, model) {
            (Way::To(route), _) => Ok(Arc::clone(route)),
            (Way::Closed, _) => Err(Rejection::no_healthy_backend(RETRY_AFTER)),
            (Way::Unknown, Some(model)) => Err(Rejection::unknown_model(model)),
            (Way::Unknown, None) => Err(Rejection::missing_model()),
        }
    }

    fn entry(&self, model: Option<&str>) -> &Entry {
        let Some(model) = model else {
            return &self.nameless;
        };
        let prefix = || self.prefixes.iter().find(|(p, _)| model.starts_with(p.as_str()));
        self.exact.get(model).or_else(|| prefix().map(|(_, e)| e)).unwrap_or(&self.any)
    }

    /// The names that clients are told without asking a backend: those of the configuration.
    pub fn models(&self) -> &[String] {
        &self.names
    }

    /// Whether clients are told of a model, where a backend has it.
    pub fn lists(&self, model: &str) -> bool {
        let entry = self.entry(Some(model));
        entry.listed && matches!(entry.way, Way::To(_))
    }

    /// Whether the configuration or a source of backends names this very model.
    pub fn names(&self, model: &str) -> bool {
        self.exact.contains_key(model)
    }

    /// All ways that a request may take.
    pub fn routes(&self) -> impl Iterator<Item = &Arc<Route>> {
        let named = self.exact.values().chain(self.prefixes.iter().map(|(_, entry)| entry));
        named.chain([&self.any, &self.nameless]).filter_map(|entry| match &entry.way {
            Way::To(route) => Some(route),
            Way::Closed | Way::Unknown => None,
        })
    }
}
