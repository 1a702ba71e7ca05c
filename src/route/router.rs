//! The router: a request only looks up the route that was computed when the configuration was loaded.

use std::{collections::HashMap, sync::Arc};

use crate::{
    base::Rejection,
    config::plan::{BalancePlan, ModelPattern},
};

/// `Retry-After` in seconds when all backends of a model are switched off.
const RETRY_AFTER: u64 = 30;

/// The tiers that serve a model, at least one.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Route {
    /// In order of preference: a tier is used while no earlier one has an available backend.
    pub tiers: Vec<Tier>,
}

impl Route {
    /// The pools of all tiers.
    pub fn pools(&self) -> impl Iterator<Item = usize> {
        self.tiers.iter().flat_map(|tier| tier.splits.iter().map(|split| split.pool))
    }
}

/// Pools of equal preference, at least one.
#[derive(Debug, PartialEq, Eq)]
pub struct Tier {
    /// Shares of the requests; if the drawn one has no available backend, the others are tried.
    pub splits: Vec<Split>,
}

/// A share of a tier.
#[derive(Debug, PartialEq, Eq)]
pub struct Split {
    /// Relative to the other splits, from 1.
    pub weight: u32,
    /// The number of the pool.
    pub pool: usize,
    /// The model's name at the backends; `None`: as in the request.
    pub model: Option<Arc<str>>,
}

/// What requests can be sent to: an endpoint of a backend. A backend may have several.
#[derive(Clone, Copy, Debug)]
pub struct RouteTarget<'a> {
    /// Name of its backend.
    pub backend: &'a str,
    /// Its weight where a route gives none.
    pub weight: u32,
    /// The models that it serves; empty for every model.
    pub models: &'a [ModelPattern],
}

/// A pool to be built.
#[derive(Clone, Debug, PartialEq)]
pub struct PoolSpec {
    /// Numbers of targets, with their weights.
    pub members: Vec<(usize, u32)>,
    pub balance: BalancePlan,
}

/// Which pools serve a model. Pools are numbers: positions in the list that [`Router::new`] returns.
#[derive(Debug)]
pub struct Router {
    pub(super) exact: HashMap<String, Entry>,
    /// Longest first.
    pub(super) prefixes: Vec<(String, Entry)>,
    /// For every other model.
    pub(super) any: Entry,
    /// For requests that name no model.
    pub(super) nameless: Entry,
    /// The exact names that are listed.
    pub(super) names: Vec<String>,
}

/// The entry of one model, or of all models with a prefix.
#[derive(Debug)]
pub struct Entry {
    pub resolution: Resolution,
    /// Whether the model is listed to clients.
    pub listed: bool,
}

/// What a model resolves to.
#[derive(Debug)]
pub enum Resolution {
    Route(Arc<Route>),
    /// The model is known, but all its backends are switched off.
    Disabled,
    Unknown,
}

impl Router {
    /// The route of a request.
    ///
    /// # Errors
    /// 404 for a model that no backend serves, 400 if a model must be named, 503 if its backends are
    /// switched off.
    pub fn find(&self, model: Option<&str>) -> Result<Arc<Route>, Rejection> {
        match (&self.entry(model).resolution, model) {
            (Resolution::Route(route), _) => Ok(Arc::clone(route)),
            (Resolution::Disabled, _) => Err(Rejection::no_healthy_backend(RETRY_AFTER)),
            (Resolution::Unknown, Some(model)) => Err(Rejection::unknown_model(model)),
            (Resolution::Unknown, None) => Err(Rejection::missing_model()),
        }
    }

    fn entry(&self, model: Option<&str>) -> &Entry {
        let Some(model) = model else {
            return &self.nameless;
        };
        let prefix = || self.prefixes.iter().find(|(p, _)| model.starts_with(p.as_str()));
        self.exact.get(model).or_else(|| prefix().map(|(_, e)| e)).unwrap_or(&self.any)
    }

    /// The models that are listed without asking a backend: the exact names of the configuration.
    pub fn models(&self) -> &[String] {
        &self.names
    }

    /// Whether a model that a backend has is listed to clients.
    pub fn lists(&self, model: &str) -> bool {
        let entry = self.entry(Some(model));
        entry.listed && matches!(entry.resolution, Resolution::Route(_))
    }

    /// Whether the configuration or a discovery source names exactly this model.
    pub fn names(&self, model: &str) -> bool {
        self.exact.contains_key(model)
    }

    /// The routes of all models.
    pub fn routes(&self) -> impl Iterator<Item = &Arc<Route>> {
        let named = self.exact.values().chain(self.prefixes.iter().map(|(_, entry)| entry));
        named.chain([&self.any, &self.nameless]).filter_map(|entry| match &entry.resolution {
            Resolution::Route(route) => Some(route),
            Resolution::Disabled | Resolution::Unknown => None,
        })
    }
}
