//! The pipeline: asks the providers in order, and combines their answers into a decision.

mod preview;

use std::{future::Future, sync::Arc, time::Instant};

use http::HeaderMap;
use prometheus::IntCounter;
use serde_json::Map;
use tokio::sync::Semaphore;

use super::{
    cache::Cache,
    count_job::{CountJob, CountingGuard},
    credential::{Credential, KeyDigest},
    decision::{RequestView, ScriptInput, Verdict},
    provider::{self, KeyRecord, KeySource, LookupKey, Provider, as_text},
    resources::Resources,
    warn_once::WarnOnce,
};
use crate::{
    base::{
        KeyUsage, Principal, Rejection,
        period::now,
        terms::{KeyInvalid, Terms},
    },
    config::{
        choices::Mode,
        plan::{AuthPlan, ProviderPlan, Reason},
    },
    dialect,
    lua::{Failure, Script},
    store::{StoreError, within},
    telemetry::Metrics,
    wire::headers,
};

/// Concurrent lookups in one provider.
const LOOKUPS: usize = 64;

/// `Retry-After` if a provider cannot be asked, in seconds.
const RETRY_AFTER: u64 = 2;

/// `Retry-After` of a used-up quota that is never reset, in seconds.
const LATER: u64 = 3600;

/// The pipeline of one configuration.
pub struct Auth {
    plan: AuthPlan,
    stages: Vec<Stage>,
    runtime: tokio::runtime::Handle,
    metrics: Metrics,
}

/// One provider of the pipeline.
struct Stage {
    source: KeySource,
    cache: Arc<Cache>,
    plan: ProviderPlan,
    allowed: IntCounter,
    /// Bounds concurrent lookups: a flood of unknown keys must not use all connections of a store, or
    /// cause an unlimited number of calls to a webhook.
    lookups: Arc<Semaphore>,
    warnings: Arc<WarnOnce>,
}

impl Stage {
    /// Opens a provider. The cache of a stage of the `earlier` configuration with the same source is
    /// kept. The tally of a source is shared with earlier stages and with those `before` this one.
    fn new(
        plan: &ProviderPlan,
        with: &Resources<'_>,
        (earlier, before): (&[Self], &[Self]),
    ) -> Self {
        let same = |s: &&Self| s.plan.source == plan.source && s.plan.cache == plan.cache;
        let cache = earlier.iter().find(same).map(|s| Arc::clone(&s.cache));
        let cache = cache.unwrap_or_else(|| {
            let mut all = earlier.iter().chain(before);
            let shares = all.find(|s| s.plan.source.same_place(&plan.source));
            let tally = shares.map_or_else(Arc::default, |s| Arc::clone(s.cache.tally()));
            Arc::new(Cache::new(plan.cache, tally))
        });
        let stage = Self {
            source: provider::open(plan, with),
            cache,
            plan: plan.clone(),
            allowed: with.metrics.auth.with_label_values(&[&plan.name, "allow"]),
            lookups: Arc::new(Semaphore::new(LOOKUPS)),
            warnings: Arc::new(WarnOnce::new(&plan.name)),
        };
        if stage.counts().is_some() {
            // Creates the metric, so that the first failure is seen as an increase.
            with.metrics.count_errors.with_label_values(&[&plan.name]);
        }
        stage
    }

    /// The store that counts usage, if any.
    fn counts(&self) -> Option<&Arc<dyn Provider>> {
        match &self.source {
            KeySource::Remote(provider) if self.plan.count_usage && provider.counts() => {
                Some(provider)
            }
            _ => None,
        }
    }
}

/// A key that providers know and that is not decided yet.
pub struct IdentifiedKey {
    /// Indexes of stages with their records; at least one.
    records: Vec<(usize, Arc<KeyRecord>)>,
}

impl IdentifiedKey {
    /// The data of the key, as its first provider returned it.
    pub fn data(&self) -> Option<&Map<String, serde_json::Value>> {
        self.records.first().map(|(_, record)| &record.data)
    }

    /// The caller according to the key's data, before the decision.
    pub fn principal(&self) -> Option<Arc<Principal>> {
        self.records.first().map(|(_, record)| Arc::clone(&record.principal))
    }
}

impl Auth {
    /// Opens the providers. Caches of `earlier` for the same providers are kept.
    pub fn new(plan: &AuthPlan, with: &Resources<'_>, earlier: Option<&Self>) -> Self {
        let mut stages = Vec::new();
        for provider in &plan.pipeline {
            let earlier = earlier.map(|auth| auth.stages.as_slice()).unwrap_or_default();
            stages.push(Stage::new(provider, with, (earlier, &stages)));
        }
        Self {
            stages,
            plan: plan.clone(),
            runtime: with.stores.handle(),
            metrics: with.metrics.clone(),
        }
    }

    /// Whether a path needs no key.
    pub fn skips(&self, path: &str) -> bool {
        self.plan.skip_paths.iter().any(|start| path.starts_with(start.as_str()))
    }

    /// The key of a request, if it has one.
    pub fn credential(&self, headers: &HeaderMap) -> Option<Credential> {
        Credential::find(headers, &self.plan.header_names)
    }

    /// Whether keys are looked for where all languages have them: the configuration names no fields.
    pub fn takes_usual_fields(&self) -> bool {
        self.plan.header_names == dialect::credential_fields()
    }

    /// Whether this header field may contain a key.
    pub fn is_key_header(&self, name: &http::HeaderName) -> bool {
        self.plan.header_names.iter().any(|own| headers::same_field(own.as_str(), name.as_str()))
    }

    /// Whether the caller's identity is sent to the backends.
    pub fn forwards_identity(&self) -> bool {
        self.plan.forward_identity
    }

    /// Looks up a key in the providers. `Ok(None)`: the key is unknown, and the configuration allows
    /// that.
    ///
    /// # Errors
    /// If the key is unknown or a provider cannot be asked.
    pub async fn identify(
        &self,
        credential: Option<&Credential>,
    ) -> Result<Option<IdentifiedKey>, Rejection> {
        let Some(credential) = credential else {
            return self.check("", Reason::MissingKey).map(|()| None);
        };
        let digest = credential.digest();
        let mut records = Vec::new();
        let mut failed = false;
        for (i, stage) in self.stages.iter().enumerate() {
            match self.ask(stage, credential, &digest).await {
                Ok(Some(record)) => records.push((i, record)),
                Ok(None) if self.plan.mode == Mode::All => {
                    return self.check(&stage.plan.name, Reason::NotFound).map(|()| None);
                }
                Ok(None) => {}
                Err(()) => failed = true,
            }
            if self.plan.mode == Mode::FirstMatch && !records.is_empty() {
                break;
            }
        }
        // A provider that cannot be asked might know the key.
        let missing = match self.plan.mode {
            Mode::FirstMatch => records.is_empty(),
            Mode::All => failed,
        };
        if missing {
            let why = if failed { Reason::Unavailable } else { Reason::NotFound };
            return self.check("", why).map(|()| None);
        }
        Ok(Some(IdentifiedKey { records }))
    }

    async fn ask(
        &self,
        stage: &Stage,
        credential: &Credential,
        digest: &KeyDigest,
    ) -> Result<Option<Arc<KeyRecord>>, ()> {
        // Only a lookup needs a copy of the key.
        let key = || LookupKey { key: credential.expose().into(), digest: *digest };
        let provider = match &stage.source {
            KeySource::Table(table) => return Ok(table.find(digest)),
            KeySource::Script => return Ok(Some(Arc::new(provider::unchecked_record(&key())))),
            KeySource::Remote(provider) => provider,
        };
        let changes = || provider.changes();
        if let Some(record) = stage.cache.fresh(digest, changes(), Instant::now()) {
            return Ok(record);
        }
        let lookup = || self.lookup(stage, provider, key());
        // Boxed: requests with a cached key do not carry the memory for a lookup.
        match Box::pin(stage.cache.ask(digest, changes, lookup)).await {
            Ok(result) => {
                if let Some(why) = result.stale {
                    stage.warnings.warn(&format!("{why}; its last answer is still used"));
                    self.decided(&stage.plan.name, "stale");
                }
                Ok(result.record)
            }
            Err(why) => {
                stage.warnings.warn(&why.to_string());
                self.decided(&stage.plan.name, "error");
                Err(())
            }
        }
    }

    /// Asks the store, on the runtime of the stores: a client that goes away must not leave a
    /// connection in the middle of an answer.
    fn lookup(
        &self,
        stage: &Stage,
        provider: &Arc<dyn Provider>,
        key: LookupKey,
    ) -> impl Future<Output = Result<Option<KeyRecord>, StoreError>> + use<> {
        let provider = Arc::clone(provider);
        let (timeout, lookups) = (stage.plan.timeout, Arc::clone(&stage.lookups));
        let queries = self.metrics.auth_queries.clone();
        let name = stage.plan.name.clone();
        let task = self.runtime.spawn(async move {
            let began = Instant::now();
            let found = within(timeout, async {
                let _permit = lookups.acquire().await.map_err(StoreError::new)?;
                provider.find(&key).await
            });
            let found = found.await;
            let result = match &found {
                Ok(Some(_)) => "found",
                Ok(None) => "unknown",
                Err(_) => "error",
            };
            let seconds = began.elapsed().as_secs_f64();
            queries.with_label_values(&[&name, result]).observe(seconds);
            found
        });
        async move { task.await.unwrap_or_else(|_| Err(StoreError::new("the lookup was aborted"))) }
    }

    /// Decides about a caller whose key is known.
    ///
    /// # Errors
    /// If access is denied.
    pub async fn decide(
        &self,
        identified: &IdentifiedKey,
        key: &str,
        request: RequestView<'_>,
    ) -> Result<Arc<Principal>, Rejection> {
        let mut principal: Option<Arc<Principal>> = None;
        let mut metadata = Map::new();
        let several = identified.records.len() > 1;
        for (i, record) in &identified.records {
            let stage = &self.stages[*i];
            if let Err(why) = &record.limits {
                return self.malformed(stage, record, why);
            }
            let principal_here = match &stage.plan.script {
                None => {
                    self.by_rules(stage, record, request)?;
                    Arc::clone(&record.principal)
                }
                Some(script) => match record.decision_of(script) {
                    Some(known) => {
                        self.check(&stage.plan.name, Reason::Active)?;
                        if several {
                            metadata.extend(known.metadata.clone());
                        }
                        Arc::clone(&known.principal)
                    }
                    None => {
                        let question =
                            ScriptInput { key, data: &record.data, request, metadata: &metadata };
                        let verdict = self.by_script(stage, script, &question).await?;
                        let again = script.depends_on_data_alone();
                        let own = (several || again).then(|| verdict.metadata.clone());
                        let own = own.unwrap_or_default();
                        if several {
                            metadata.extend(own.clone());
                        }
                        let principal = with_verdict(record, verdict);
                        if again {
                            record.remember(script, own, &principal);
                        }
                        principal
                    }
                },
            };
            stage.allowed.inc();
            principal = Some(match principal {
                None => principal_here,
                Some(earlier) => merged(&earlier, &principal_here),
            });
        }
        Ok(principal.unwrap_or_default())
    }

    /// Counts the usage of a request wherever its key has a quota or a balance that is counted. Returns
    /// at once: cached records are changed immediately, the stores in the background.
    pub fn count(&self, identified: &IdentifiedKey, key: Option<&Credential>, usage: KeyUsage) {
        let counted = identified.records.iter().filter_map(|(i, record)| {
            let stage = &self.stages[*i];
            let limited = record.terms.as_ref().is_ok_and(Terms::counted);
            Some((stage, stage.counts().filter(|_| limited)?, record))
        });
        let mut counted = counted.peekable();
        let (Some(credential), Some(_)) = (key.filter(|_| !usage.is_zero()), counted.peek()) else {
            return;
        };
        let digest = credential.digest();
        let mut done: Vec<&Arc<Cache>> = Vec::new();
        for (stage, provider, record) in counted {
            if done.iter().any(|cache| Arc::ptr_eq(cache, &stage.cache)) {
                continue;
            }
            stage.cache.amend(&digest, |record| record.after_usage(usage, now()));
            let tally = stage.cache.tally();
            // A source that is in the pipeline twice counts once.
            let counted = done.iter().any(|cache| Arc::ptr_eq(cache.tally(), tally));
            done.push(&stage.cache);
            if counted {
                tally.observe(&digest, &stage.cache);
            } else if tally.add(&digest, usage, &stage.cache) {
                let job = CountJob {
                    tally: Arc::clone(tally),
                    provider: Arc::clone(provider),
                    key: LookupKey { key: credential.expose().into(), digest },
                    key_id: record.principal.key_id.clone(),
                    timeout: stage.plan.timeout,
                    warnings: Arc::clone(&stage.warnings),
                    lost: self.metrics.count_errors.with_label_values(&[&stage.plan.name]),
                    guard: CountingGuard::new(&self.metrics.counting),
                };
                self.runtime.spawn(job.run());
            }
        }
    }

    /// The default rules.
    fn by_rules(
        &self,
        stage: &Stage,
        record: &KeyRecord,
        request: RequestView<'_>,
    ) -> Result<(), Rejection> {
        let terms = match &record.terms {
            Ok(terms) => terms,
            Err(why) => return self.malformed(stage, record, why),
        };
        let tolerated = |why| self.plan.answers.of(reason(why)).allow;
        let now = now();
        match terms.check(now, request.ip, tolerated) {
            Ok(()) => self.check(&stage.plan.name, Reason::Active),
            Err(why) => self.check(&stage.plan.name, reason(why)).map_err(|mut rejection| {
                if why == KeyInvalid::Exhausted {
                    rejection.retry_after = Some(wait_for(terms.renews_at(now), now));
                }
                rejection
            }),
        }
    }

    /// Whether callers are rejected whose quota or balance is used up.
    pub fn enforces_quotas(&self) -> bool {
        !self.plan.answers.of(Reason::QuotaExceeded).allow
    }

    /// The rejection of a caller whose quota or balance is used up. `renews_at`: Unix seconds.
    pub fn quota_exceeded(&self, renews_at: Option<i64>) -> Rejection {
        self.decided("", "deny");
        let mut rejection = self.rejection(Reason::QuotaExceeded);
        rejection.retry_after = Some(wait_for(renews_at, now()));
        rejection
    }

    /// Rejects a key with malformed data, whatever the configuration allows otherwise.
    fn malformed<T>(&self, stage: &Stage, record: &KeyRecord, why: &str) -> Result<T, Rejection> {
        let key = &record.principal.key_id;
        log::warn!("auth provider {}: key {key} is rejected: {why}", stage.plan.name);
        self.decided(&stage.plan.name, "deny");
        Err(self.rejection(Reason::Disabled))
    }

    async fn by_script(
        &self,
        stage: &Stage,
        script: &Arc<Script>,
        question: &ScriptInput<'_>,
    ) -> Result<Verdict, Rejection> {
        let verdict = match script.run(question).await {
            Ok(verdict) => verdict,
            Err(why) => {
                log::error!(
                    "auth provider {}: script {} failed: {why}",
                    stage.plan.name,
                    script.name()
                );
                self.decided(&stage.plan.name, "script_error");
                // The script has not run: the caller may try again.
                let busy = why == Failure::Busy;
                let reason = if busy { Reason::Unavailable } else { Reason::ScriptError };
                return Err(self.rejection(reason));
            }
        };
        if verdict.allow {
            return self.check(&stage.plan.name, Reason::Active).map(|()| verdict);
        }
        self.decided(&stage.plan.name, "deny");
        let mut rejection = self.rejection(Reason::Denied);
        if verdict.message.is_some() || verdict.status.is_some() {
            let answer = self.plan.answers.of(Reason::Denied);
            let message = verdict.message.as_deref().unwrap_or(&answer.message);
            let status = verdict.status.unwrap_or(answer.status);
            rejection = Rejection::denied(status, answer.code.clone(), message);
        }
        Err(rejection)
    }

    /// Rejects for this reason, unless the configuration allows it.
    fn check(&self, stage: &str, reason: Reason) -> Result<(), Rejection> {
        if self.plan.answers.of(reason).allow {
            return Ok(());
        }
        self.decided(stage, "deny");
        Err(self.rejection(reason))
    }

    fn rejection(&self, reason: Reason) -> Rejection {
        let answer = self.plan.answers.of(reason);
        let mut rejection = Rejection::denied(answer.status, answer.code.clone(), &answer.message);
        if reason == Reason::Unavailable {
            rejection.retry_after = Some(RETRY_AFTER);
        }
        rejection
    }

    fn decided(&self, provider: &str, decision: &str) {
        self.metrics.auth.with_label_values(&[provider, decision]).inc();
    }
}

/// Seconds until then; an hour if the time is unknown.
fn wait_for(renews_at: Option<i64>, now: i64) -> u64 {
    let wait = renews_at.map(|at| at.saturating_sub(now).max(1));
    wait.map_or(LATER, |seconds| seconds.unsigned_abs())
}

fn reason(why: KeyInvalid) -> Reason {
    match why {
        KeyInvalid::Disabled => Reason::Disabled,
        KeyInvalid::Expired => Reason::Expired,
        KeyInvalid::NotYetValid => Reason::NotYetValid,
        KeyInvalid::Address => Reason::IpDenied,
        KeyInvalid::Exhausted => Reason::QuotaExceeded,
    }
}

/// The caller with the changes that a script has made.
fn with_verdict(record: &KeyRecord, verdict: Verdict) -> Arc<Principal> {
    let known = &record.principal;
    let unchanged = verdict.metadata.is_empty()
        && verdict.limits.is_none()
        && verdict.tags.is_empty()
        && verdict.tier.is_none();
    if unchanged {
        return Arc::clone(known);
    }
    let decided = record.decided.load();
    if let Some(decided) = &*decided
        && is_result(decided, known, &verdict)
    {
        return Arc::clone(decided);
    }
    let principal = Arc::new(changed(known, verdict));
    record.decided.store(Some(Arc::clone(&principal)));
    principal
}

/// Whether a verdict would change a caller to this one. False where that is not simple to tell.
fn is_result(decided: &Principal, known: &Principal, verdict: &Verdict) -> bool {
    // The names follow from the metadata.
    known.metadata.is_empty()
        && known.tags.is_empty()
        && decided.metadata == verdict.metadata
        && decided.tags == verdict.tags
        && decided.tier == *verdict.tier.as_ref().unwrap_or(&known.tier)
        && decided.limits.as_ref() == verdict.own_limits.as_ref().or(known.limits.as_ref())
}

fn changed(known: &Principal, verdict: Verdict) -> Principal {
    let mut principal = known.clone();
    let field = |name: &str| verdict.metadata.get(name).and_then(as_text);
    if let Some(user_id) = field("user_id") {
        principal.user_id = user_id;
    }
    if let Some(name) = field("name") {
        principal.name = name;
    }
    if let Some(team) = field("team") {
        principal.team = team;
    }
    if let Some(tier) = verdict.tier {
        principal.tier = tier;
    }
    principal.metadata.extend(verdict.metadata);
    principal.limits = verdict.own_limits.or(principal.limits);
    principal.tags.extend(verdict.tags);
    principal
}

/// Merges two records of one caller: the later takes precedence over the earlier.
fn merged(earlier: &Principal, later: &Principal) -> Arc<Principal> {
    let mut both = earlier.clone();
    for (to, from) in [
        (&mut both.user_id, &later.user_id),
        (&mut both.name, &later.name),
        (&mut both.team, &later.team),
        (&mut both.tier, &later.tier),
    ] {
        if !from.is_empty() {
            to.clone_from(from);
        }
    }
    both.metadata.extend(later.metadata.clone());
    if later.limits.is_some() {
        both.limits.clone_from(&later.limits);
    }
    both.tags.extend(later.tags.iter().cloned());
    // An allowance that is only counted does not replace an enforced one.
    let enforced = |p: &Principal| p.allowance.as_ref().is_some_and(|a| a.enforced);
    if later.allowance.is_some() && (enforced(later) || !enforced(earlier)) {
        both.allowance.clone_from(&later.allowance);
    }
    Arc::new(both)
}
