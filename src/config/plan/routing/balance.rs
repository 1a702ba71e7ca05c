//! The parts of `routing` about balancing, hedging, load and cache salts.

use std::time::Duration;

use super::types::{
    Affinity, BalancePlan, HedgePlan, LoadPlan, PrefixPlan, RoutingPlan, StoredPlan,
};
use crate::{
    base::Secret,
    config::{
        choices::CacheSalt,
        plan::{backend::BackendPlan, planner::Planner},
        raw::{self, AffinityBy, Raw},
    },
};

/// A secret that can be guessed makes salts that can be guessed.
const SHORTEST_SECRET: usize = 16;

impl Planner<'_> {
    pub(in crate::config::plan) fn routing(
        &mut self,
        whole: &Raw,
        backends: &[BackendPlan],
        unused: &[BackendPlan],
    ) -> RoutingPlan {
        let raw = &whole.routing;
        let balance = self.balance(
            "routing",
            BalancePlan { strategy: raw.load_balance_strategy, ..BalancePlan::default() },
            raw.affinity.as_ref(),
            Some(raw.load_bound),
            Some(&raw.prefix),
        );
        let off = !raw.enabled.0;
        let rules = self.rules(&raw.fallback, backends, unused);
        let rules = if off { Vec::new() } else { rules };
        let retry = self.retry(raw, &whole.fallback);
        let keep_alive = raw.keep_alive.0;
        if !keep_alive.is_zero() && keep_alive < Duration::from_millis(100) {
            self.problem(
                "routing.keep_alive",
                "is shorter than 100ms",
                "write 10s, or 0 for never",
            );
        }
        if raw.explain > 1_000_000 {
            self.problem("routing.explain", "is more than 1000000", "the default is 1000");
        }
        let models = self.models(whole, backends, unused, &rules, &balance);
        RoutingPlan {
            models,
            rules,
            balance,
            retry: if off { retry.off() } else { retry },
            detection: self.detection(&whole.detection),
            circuit: self.circuit(&raw.circuit, &whole.fallback),
            keep_alive: (!keep_alive.is_zero()).then_some(keep_alive),
            load: self.load(&raw.load),
            hedge: self.hedge(raw.hedge.as_ref()),
            cache_salt: raw.cache_salt,
            cache_salt_secret: self.cache_salt_secret(raw),
            stored_responses: self.stored_responses(raw.stored_responses.as_ref(), whole),
            explain: raw.explain,
        }
    }

    fn stored_responses(
        &mut self,
        raw: Option<&raw::StoredResponses>,
        whole: &Raw,
    ) -> Option<StoredPlan> {
        let raw = raw?;
        let at = "routing.stored_responses";
        let fits = Duration::from_secs(60)..=Duration::from_secs(366 * 24 * 3600);
        self.within_time(format!("{at}.ttl"), raw.ttl.0, fits, "the default is 30d");
        let server = self.named_cache(&format!("{at}.storage"), &raw.storage, whole)?;
        Some(StoredPlan { server, prefix: raw.key_prefix.clone(), ttl: raw.ttl.0 })
    }

    /// A plan with some settings overridden.
    pub(super) fn balance(
        &mut self,
        at: &str,
        base: BalancePlan,
        affinity: Option<&raw::Affinity>,
        bound: Option<f64>,
        prefix: Option<&raw::Prefix>,
    ) -> BalancePlan {
        if let Some(bound) = bound {
            self.within(format!("{at}.load_bound"), bound, 1.0..=100.0, "the default is 1.25");
        }
        if let Some(raw) = prefix {
            let at = |key: &str| format!("{at}.prefix.{key}");
            self.within(at("block"), raw.block.0, 16..=1 << 20, "the default is 512");
            self.within(at("blocks"), raw.blocks, 1..=4096, "the default is 128");
            self.within(at("remembered"), raw.remembered, 16..=1 << 26, "the default is 65536");
        }
        BalancePlan {
            strategy: base.strategy,
            affinity: match affinity {
                Some(raw) => self.affinity(&format!("{at}.affinity"), raw),
                None => base.affinity,
            },
            bound: bound.unwrap_or(base.bound),
            prefix: prefix.map_or(base.prefix, |raw| PrefixPlan {
                block: usize::try_from(raw.block.0).unwrap_or(usize::MAX),
                blocks: raw.blocks,
                remembered: raw.remembered,
            }),
        }
    }

    fn affinity(&mut self, at: &str, raw: &raw::Affinity) -> Option<Affinity> {
        if raw.by != AffinityBy::Header && raw.header.is_some() {
            self.problem(
                format!("{at}.header"),
                "has no effect without `by: header`",
                "keep one of the two",
            );
        }
        match raw.by {
            AffinityBy::Key => Some(Affinity::Key),
            AffinityBy::User => Some(Affinity::User),
            AffinityBy::Header => {
                let name = raw.header.as_deref().unwrap_or("X-Session-ID");
                let parsed = name.parse().ok();
                if parsed.is_none() {
                    let message = format!("`{name}` is not a header name");
                    self.problem(format!("{at}.header"), message, "the default is `X-Session-ID`");
                }
                parsed.map(Affinity::Header)
            }
        }
    }

    fn load(&mut self, raw: &raw::Load) -> LoadPlan {
        let most = Duration::from_secs(3600);
        let interval = Duration::from_millis(10)..=most;
        self.within_time("routing.load.interval", raw.interval.0, interval, "the default is 2s");
        let timeout = Duration::from_millis(1)..=most;
        self.within_time("routing.load.timeout", raw.timeout.0, timeout, "the default is 1s");
        if !raw.path.starts_with('/') || raw.path.parse::<http::Uri>().is_err() {
            self.problem("routing.load.path", "is not a path", "write `/metrics`");
        }
        LoadPlan {
            interval: raw.interval.0,
            timeout: raw.timeout.0,
            path: raw.path.clone(),
            from_answers: raw.from_answers,
        }
    }

    fn hedge(&mut self, raw: Option<&raw::Hedge>) -> Option<HedgePlan> {
        let raw = raw.filter(|h| h.enabled.0)?;
        let delay = Duration::from_millis(1)..=Duration::from_secs(3600);
        self.within_time("routing.hedge.delay", raw.delay.0, delay, "the default is 2s");
        self.within("routing.hedge.max_tokens", raw.max_tokens, 1..=1 << 32, "the default is 256");
        Some(HedgePlan {
            delay: raw.delay.0,
            max_body: usize::try_from(raw.max_body.0).unwrap_or(usize::MAX),
            max_tokens: raw.max_tokens,
        })
    }

    fn cache_salt_secret(&mut self, raw: &raw::Routing) -> Option<Secret> {
        let (text, file) = (&raw.cache_salt_secret, &raw.cache_salt_secret_file);
        let before = self.problems.len();
        let secret = self.secret("routing", "cache_salt_secret", text.as_ref(), file.as_deref());
        if raw.cache_salt == CacheSalt::Shared || self.problems.len() > before {
            return secret;
        }
        if secret.as_ref().is_none_or(|s| s.expose().len() < SHORTEST_SECRET) {
            self.problem(
                "routing.cache_salt_secret",
                format!(
                    "salts of keys and users need a secret of at least {SHORTEST_SECRET} characters"
                ),
                "write `cache_salt_secret: \"${CACHE_SALT_SECRET}\"`, the same in all replicas: \
                 otherwise they make different salts, and the engines' caches cannot be shared",
            );
        }
        secret
    }
}
