//! From a model to the pool that serves it.

use std::{collections::HashMap, sync::Arc};

use crate::{base::Rejection, config::plan::ModelPattern};

/// The ways to a model: one tier after the other.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Route {
    /// The first is used while it has a backend to choose, then the next.
    pub tiers: Vec<Tier>,
}

/// Ways of equal right.
#[derive(Debug, PartialEq, Eq)]
pub struct Tier {
    /// Shares of the requests; when the chosen one has no backend, the others are asked.
    pub splits: Vec<Split>,
}

/// A share of a tier.
#[derive(Debug, PartialEq, Eq)]
pub struct Split {
    /// In relation to the other splits.
    pub weight: u32,
    /// Who serves it.
    pub pool: usize,
    /// The model's name there; `None`: as the client says.
    pub model: Option<Arc<str>>,
}

/// Which pool serves a model. Pools are numbers; who is in them is told by [`Router::new`].
#[derive(Debug, Default)]
pub struct Router {
    exact: HashMap<String, usize>,
    /// Longest first.
    prefixes: Vec<(String, usize)>,
    /// For every other model: the backends that do not name theirs.
    any: Option<usize>,
}

impl Router {
    /// Sorts backends into pools by the models that each of them serves (`models[i]` are those of
    /// backend `i`; empty means all). Returns the router and the members of each pool.
    ///
    /// Every model that can be told apart gets the backends that name it, that have a prefix of
    /// it, and those that serve all. Equal sets share a pool.
    pub fn new(models: &[Vec<ModelPattern>]) -> (Self, Vec<Vec<usize>>) {
        let mut pools: Vec<Vec<usize>> = Vec::new();
        let mut pool = |serves: &dyn Fn(&ModelPattern) -> bool| {
            let members: Vec<usize> = (0..models.len())
                .filter(|i| models[*i].is_empty() || models[*i].iter().any(serves))
                .collect();
            match pools.iter().position(|p| *p == members) {
                _ if members.is_empty() => None,
                Some(known) => Some(known),
                None => {
                    pools.push(members);
                    Some(pools.len() - 1)
                }
            }
        };
        let mut router = Self { any: pool(&|_| false), ..Self::default() };
        for pattern in models.iter().flatten() {
            match pattern {
                ModelPattern::Exact(name) => {
                    let id = pool(&|p| p.matches(name));
                    router.exact.extend(id.map(|id| (name.clone(), id)));
                }
                ModelPattern::Prefix(prefix) => {
                    // Any other model with this prefix: shorter prefixes of it match as well.
                    let covers = |p: &ModelPattern| matches!(p, ModelPattern::Prefix(q) if prefix.starts_with(q.as_str()));
                    let id = pool(&covers);
                    router.prefixes.extend(id.map(|id| (prefix.clone(), id)));
                }
            }
        }
        router.prefixes.sort_by_key(|(prefix, _)| std::cmp::Reverse(prefix.len()));
        router.prefixes.dedup();
        (router, pools)
    }

    /// The ways of a request.
    ///
    /// # Errors
    /// 404 for a model that no backend serves, 400 if one must be named.
    pub fn find(&self, model: Option<&str>) -> Result<Arc<Route>, Rejection> {
        let pool = self.pool(model)?;
        let tier = Tier { splits: vec![Split { weight: 1, pool, model: None }] };
        Ok(Arc::new(Route { tiers: vec![tier] }))
    }

    fn pool(&self, model: Option<&str>) -> Result<usize, Rejection> {
        let Some(model) = model else {
            return self.any.ok_or_else(Rejection::missing_model);
        };
        let prefix =
            || self.prefixes.iter().find(|(p, _)| model.starts_with(p.as_str())).map(|(_, id)| *id);
        self.exact
            .get(model)
            .copied()
            .or_else(prefix)
            .or(self.any)
            .ok_or_else(|| Rejection::unknown_model(model))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn router(models: &[&[&str]]) -> (Router, Vec<Vec<usize>>) {
        let parsed: Vec<Vec<_>> = models
            .iter()
            .map(|list| list.iter().map(|m| ModelPattern::parse(m).unwrap()).collect())
            .collect();
        Router::new(&parsed)
    }

    #[test]
    fn sorts_models_to_their_backends() {
        let (router, pools) =
            router(&[&["qwen-72b"], &[], &["qwen-*"], &["qwen-7*", "llama"], &["qwen-72b"]]);
        let members = |model| pools[router.pool(Some(model)).unwrap()].clone();
        assert_eq!(members("qwen-72b"), [0, 1, 2, 3, 4]);
        assert_eq!(members("qwen-7b"), [1, 2, 3]);
        assert_eq!(members("qwen-1"), [1, 2]);
        assert_eq!(members("llama"), [1, 3]);
        assert_eq!(members("other"), [1]);
        assert_eq!(pools[router.pool(None).unwrap()], [1]);
    }

    #[test]
    fn refuses_models_that_nobody_serves() {
        let (router, _) = router(&[&["a"], &["b*"]]);
        assert_eq!(router.pool(Some("c")).unwrap_err().code.as_deref(), Some("model_not_found"));
        assert_eq!(router.pool(Some("c")).unwrap_err().status, 404);
        assert_eq!(router.pool(None).unwrap_err().status, 400);
        assert!(router.pool(Some("b")).is_ok());
    }

    #[test]
    fn equal_sets_share_a_pool() {
        let (router, pools) = router(&[&["a", "b"], &["a", "b", "c"]]);
        assert_eq!(router.pool(Some("a")), router.pool(Some("b")));
        assert_eq!(pools.len(), 2);
    }
}
