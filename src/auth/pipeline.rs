//! The pipeline: which providers are asked in which order, and what their answers come to.

mod preview;

use std::{future::Future, sync::Arc, time::Instant};

use http::HeaderMap;
use prometheus::IntCounter;
use serde_json::Map;
use tokio::sync::Semaphore;

use super::{
    Call, Credential, KeyStore,
    cache::Cache,
    credential::KeyDigest,
    decision::{Question, Verdict},
    provider::{self, KeyRecord, Place, Provider, Used, Wanted, words},
    tally::{self, Job, Voice},
};
use crate::{
    base::{
        Principal, Rejection,
        period::now,
        terms::{Terms, Unfit},
    },
    config::{
        choices::Mode,
        plan::{AuthPlan, ProviderPlan, Reason},
    },
    lua::{Failure, Script},
    store::{StoreError, Stores, within},
    telemetry::Metrics,
    wire::headers,
};

/// Questions to one provider at a time.
const QUESTIONS: usize = 64;

/// Seconds after which a client may try again when a provider cannot be asked.
const RETRY_AFTER: u64 = 2;

/// Seconds after which a client may try again when nobody knows better.
const LATER: u64 = 3600;

/// What providers are made with.
pub struct Resources<'a> {
    /// Redis and SQL.
    pub stores: &'a Stores,
    /// For webhooks.
    pub client: &'a reqwest::Client,
    /// The keys of the admin API.
    pub keys: &'a Arc<KeyStore>,
    /// For counting.
    pub metrics: &'a Metrics,
}

/// The pipeline of one configuration.
pub struct Auth {
    plan: AuthPlan,
    stages: Vec<Stage>,
    runtime: tokio::runtime::Handle,
    metrics: Metrics,
}

/// One provider at work.
struct Stage {
    place: Place,
    cache: Arc<Cache>,
    plan: ProviderPlan,
    allowed: IntCounter,
    /// Places for questions under way: a flood of keys that nobody knows must not take all of a
    /// store's connections, nor open any number of calls to a webhook.
    questions: Arc<Semaphore>,
    /// Tells of failures.
    voice: Arc<Voice>,
}

impl Stage {
    /// Opens a provider. What stages of the `earlier` configuration remember of the same place is
    /// kept, and what is to be counted there is shared with the stages `before` in this one.
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
            place: provider::open(plan, with),
            cache,
            plan: plan.clone(),
            allowed: with.metrics.auth.with_label_values(&[&plan.name, "allow"]),
            questions: Arc::new(Semaphore::new(QUESTIONS)),
            voice: Arc::new(Voice::new(&plan.name)),
        };
        if stage.counts().is_some() {
            // There from the start, so that the first one is seen as an increase.
            with.metrics.count_errors.with_label_values(&[&plan.name]);
        }
        stage
    }

    /// Where usage is counted, if it is.
    fn counts(&self) -> Option<&Arc<dyn Provider>> {
        match &self.place {
            Place::Remote(provider) if self.plan.count_usage && provider.counts() => Some(provider),
            _ => None,
        }
    }
}

/// A caller whose key is known, and not yet decided about.
pub struct Found {
    /// Numbers of stages, and what they know; at least one.
    known: Vec<(usize, Arc<KeyRecord>)>,
}

impl Found {
    /// The caller as its data tells it, before anything is decided.
    pub fn principal(&self) -> Option<Arc<Principal>> {
        self.known.first().map(|(_, record)| Arc::clone(&record.principal))
    }
}

impl Auth {
    /// Opens the providers. What `earlier` remembers of the same provider is kept.
    pub fn new(plan: &AuthPlan, with: &Resources<'_>, earlier: Option<&Self>) -> Self {
        let mut stages = Vec::new();
        for provider in &plan.pipeline {
            let known = earlier.map(|auth| auth.stages.as_slice()).unwrap_or_default();
            stages.push(Stage::new(provider, with, (known, &stages)));
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

    /// The key that a request shows, if it shows one.
    pub fn credential(&self, headers: &HeaderMap) -> Option<Credential> {
        Credential::find(headers, &self.plan.header_names)
    }

    /// Whether callers show their keys in this field.
    pub fn is_key_header(&self, name: &http::HeaderName) -> bool {
        self.plan.header_names.iter().any(|own| headers::same_field(own.as_str(), name.as_str()))
    }

    /// Whether the backends are told who is calling.
    pub fn forwards_identity(&self) -> bool {
        self.plan.forward_identity
    }

    /// Finds out whose key this is. `Ok(None)`: nobody knows, and the configuration lets that pass.
    ///
    /// # Errors
    /// If nobody knows the key.
    pub async fn identify(&self, shown: Option<&Credential>) -> Result<Option<Found>, Rejection> {
        let Some(credential) = shown else {
            return self.refuse("", Reason::MissingKey).map(|()| None);
        };
        let digest = credential.digest();
        let mut known = Vec::new();
        let mut failed = false;
        for (i, stage) in self.stages.iter().enumerate() {
            match self.ask(stage, credential, &digest).await {
                Ok(Some(record)) => known.push((i, record)),
                Ok(None) if self.plan.mode == Mode::All => {
                    return self.refuse(&stage.plan.name, Reason::NotFound).map(|()| None);
                }
                Ok(None) => {}
                Err(()) => failed = true,
            }
            if self.plan.mode == Mode::FirstMatch && !known.is_empty() {
                break;
            }
        }
        // A provider that cannot be asked may be the one that knows the key.
        let missing = match self.plan.mode {
            Mode::FirstMatch => known.is_empty(),
            Mode::All => failed,
        };
        if missing {
            let why = if failed { Reason::Unavailable } else { Reason::NotFound };
            return self.refuse("", why).map(|()| None);
        }
        Ok(Some(Found { known }))
    }

    async fn ask(
        &self,
        stage: &Stage,
        credential: &Credential,
        digest: &KeyDigest,
    ) -> Result<Option<Arc<KeyRecord>>, ()> {
        // Only who asks needs a copy of the key.
        let wanted = || Wanted { key: credential.expose().into(), digest: *digest };
        let provider = match &stage.place {
            Place::Table(table) => return Ok(table.find(digest)),
            Place::Anyone => return Ok(Some(Arc::new(provider::anyone(&wanted())))),
            Place::Remote(provider) => provider,
        };
        let changes = || provider.changes();
        if let Some(record) = stage.cache.fresh(digest, changes(), Instant::now()) {
            return Ok(record);
        }
        let question = || self.question(stage, provider, wanted());
        // Boxed: requests whose key is remembered do not carry the room for a question.
        match Box::pin(stage.cache.ask(digest, changes, question)).await {
            Ok(told) => {
                if let Some(why) = told.stale {
                    stage.voice.tell(&format!("{why}; its last answer still serves"));
                    self.decided(&stage.plan.name, "stale");
                }
                Ok(told.record)
            }
            Err(why) => {
                stage.voice.tell(&why.to_string());
                self.decided(&stage.plan.name, "error");
                Err(())
            }
        }
    }

    /// Asks the place itself, on the runtime of the stores: a client that goes away must not leave
    /// a connection in the middle of an answer.
    fn question(
        &self,
        stage: &Stage,
        provider: &Arc<dyn Provider>,
        wanted: Wanted,
    ) -> impl Future<Output = Result<Option<KeyRecord>, StoreError>> + use<> {
        let provider = Arc::clone(provider);
        let (timeout, questions) = (stage.plan.timeout, Arc::clone(&stage.questions));
        let queries = self.metrics.auth_queries.clone();
        let name = stage.plan.name.clone();
        let task = self.runtime.spawn(async move {
            let began = Instant::now();
            let found = within(timeout, async {
                let _place = questions.acquire().await.map_err(StoreError::new)?;
                provider.find(&wanted).await
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
        async move { task.await.unwrap_or_else(|_| Err(StoreError::new("the question broke off"))) }
    }

    /// Decides about a caller whose key is known.
    ///
    /// # Errors
    /// If it is not let in.
    pub async fn decide(
        &self,
        found: &Found,
        key: &str,
        call: Call<'_>,
    ) -> Result<Arc<Principal>, Rejection> {
        let mut principal: Option<Arc<Principal>> = None;
        let mut metadata = Map::new();
        for (i, record) in &found.known {
            let stage = &self.stages[*i];
            if let Err(why) = &record.limits {
                return self.unreadable(stage, record, why);
            }
            let own = match &stage.plan.script {
                None => {
                    self.by_rules(stage, record, call)?;
                    Arc::clone(&record.principal)
                }
                Some(script) => {
                    let question = Question { key, data: &record.data, call, metadata: &metadata };
                    let verdict = self.by_script(stage, script, &question).await?;
                    if found.known.len() > 1 {
                        metadata.extend(verdict.metadata.clone());
                    }
                    told(&record.principal, verdict)
                }
            };
            stage.allowed.inc();
            principal = Some(match principal {
                None => own,
                Some(earlier) => joined(&earlier, &own),
            });
        }
        Ok(principal.unwrap_or_default())
    }

    /// Counts what a request has used, wherever its key has a quota or a balance that is counted.
    /// Never waits: what is remembered of the key is changed at once, the place itself soon after.
    pub fn count(&self, found: &Found, key: Option<&Credential>, used: Used) {
        let counted = found.known.iter().filter_map(|(i, record)| {
            let stage = &self.stages[*i];
            let wanted = record.terms.as_ref().is_ok_and(Terms::counted);
            Some((stage, stage.counts().filter(|_| wanted)?, record))
        });
        let mut counted = counted.peekable();
        let (Some(credential), Some(_)) = (key.filter(|_| !used.is_nothing()), counted.peek())
        else {
            return;
        };
        let digest = credential.digest();
        let mut done: Vec<&Arc<Cache>> = Vec::new();
        for (stage, provider, record) in counted {
            if done.iter().any(|cache| Arc::ptr_eq(cache, &stage.cache)) {
                continue;
            }
            stage.cache.amend(&digest, |record| record.after(used, now()));
            let tally = stage.cache.tally();
            // A place that stands in the pipeline twice is told once.
            let told = done.iter().any(|cache| Arc::ptr_eq(cache.tally(), tally));
            done.push(&stage.cache);
            if told {
                tally.tell(&digest, &stage.cache);
            } else if tally.add(&digest, used, &stage.cache) {
                let job = Job {
                    tally: Arc::clone(tally),
                    provider: Arc::clone(provider),
                    wanted: Wanted { key: credential.expose().into(), digest },
                    key_id: record.principal.key_id.clone(),
                    timeout: stage.plan.timeout,
                    voice: Arc::clone(&stage.voice),
                    lost: self.metrics.count_errors.with_label_values(&[&stage.plan.name]),
                    place: tally::Place::new(&self.metrics.counting),
                };
                self.runtime.spawn(job.run());
            }
        }
    }

    /// The default rules.
    fn by_rules(&self, stage: &Stage, record: &KeyRecord, call: Call<'_>) -> Result<(), Rejection> {
        let terms = match &record.terms {
            Ok(terms) => terms,
            Err(why) => return self.unreadable(stage, record, why),
        };
        let tolerated = |why| self.plan.answers.of(reason(why)).allow;
        let now = now();
        match terms.check(now, call.ip, tolerated) {
            Ok(()) => self.refuse(&stage.plan.name, Reason::Active),
            Err(why) => self.refuse(&stage.plan.name, reason(why)).map_err(|mut no| {
                if why == Unfit::Exhausted {
                    no.retry_after = Some(wait_for(terms.renews_at(now), now));
                }
                no
            }),
        }
    }

    /// Whether callers are refused whose quota or balance is used up.
    pub fn enforces_quotas(&self) -> bool {
        !self.plan.answers.of(Reason::QuotaExceeded).allow
    }

    /// The refusal of a caller whose quota or balance is used up. `renews_at`: Unix seconds.
    pub fn quota_exceeded(&self, renews_at: Option<i64>) -> Rejection {
        self.decided("", "deny");
        let mut no = self.rejection(Reason::QuotaExceeded);
        no.retry_after = Some(wait_for(renews_at, now()));
        no
    }

    /// Nobody has said that what cannot be read may pass.
    fn unreadable<T>(&self, stage: &Stage, record: &KeyRecord, why: &str) -> Result<T, Rejection> {
        let key = &record.principal.key_id;
        log::warn!("auth provider {}: key {key} is refused: {why}", stage.plan.name);
        self.decided(&stage.plan.name, "deny");
        Err(self.rejection(Reason::Disabled))
    }

    async fn by_script(
        &self,
        stage: &Stage,
        script: &Arc<Script>,
        question: &Question<'_>,
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
                // Nobody has looked at this caller: it may try again.
                let busy = why == Failure::Busy;
                let reason = if busy { Reason::Unavailable } else { Reason::ScriptError };
                return Err(self.rejection(reason));
            }
        };
        if verdict.allow {
            return self.refuse(&stage.plan.name, Reason::Active).map(|()| verdict);
        }
        self.decided(&stage.plan.name, "deny");
        let mut no = self.rejection(Reason::Denied);
        if verdict.message.is_some() || verdict.status.is_some() {
            let answer = self.plan.answers.of(Reason::Denied);
            let message = verdict.message.as_deref().unwrap_or(&answer.message);
            let status = verdict.status.unwrap_or(answer.status);
            no = Rejection::not_let_in(status, answer.code.clone(), message);
        }
        Err(no)
    }

    /// Refuses, unless the configuration lets this reason pass.
    fn refuse(&self, stage: &str, reason: Reason) -> Result<(), Rejection> {
        if self.plan.answers.of(reason).allow {
            return Ok(());
        }
        self.decided(stage, "deny");
        Err(self.rejection(reason))
    }

    fn rejection(&self, reason: Reason) -> Rejection {
        let answer = self.plan.answers.of(reason);
        let mut no = Rejection::not_let_in(answer.status, answer.code.clone(), &answer.message);
        if reason == Reason::Unavailable {
            no.retry_after = Some(RETRY_AFTER);
        }
        no
    }

    fn decided(&self, provider: &str, decision: &str) {
        self.metrics.auth.with_label_values(&[provider, decision]).inc();
    }
}

/// Seconds until then; an hour, if nobody knows until when.
fn wait_for(renews_at: Option<i64>, now: i64) -> u64 {
    let wait = renews_at.map(|at| at.saturating_sub(now).max(1));
    wait.map_or(LATER, |seconds| seconds.unsigned_abs())
}

fn reason(why: Unfit) -> Reason {
    match why {
        Unfit::Disabled => Reason::Disabled,
        Unfit::Expired => Reason::Expired,
        Unfit::NotYetValid => Reason::NotYetValid,
        Unfit::Address => Reason::IpDenied,
        Unfit::Exhausted => Reason::QuotaExceeded,
    }
}

/// The caller, with what a script told about it.
fn told(known: &Arc<Principal>, verdict: Verdict) -> Arc<Principal> {
    let says_nothing = verdict.metadata.is_empty()
        && verdict.limits.is_none()
        && verdict.tags.is_empty()
        && verdict.tier.is_none();
    if says_nothing {
        return Arc::clone(known);
    }
    let mut principal = Principal::clone(known);
    let said = |name: &str| verdict.metadata.get(name).and_then(words);
    if let Some(user_id) = said("user_id") {
        principal.user_id = user_id;
    }
    if let Some(name) = said("name") {
        principal.name = name;
    }
    if let Some(team) = said("team") {
        principal.team = team;
    }
    if let Some(tier) = verdict.tier {
        principal.tier = tier;
    }
    principal.metadata.extend(verdict.metadata);
    principal.limits = verdict.own_limits.or(principal.limits);
    principal.tags.extend(verdict.tags);
    Arc::new(principal)
}

/// Two accounts of one caller: what the later says goes before what the earlier said.
fn joined(earlier: &Principal, later: &Principal) -> Arc<Principal> {
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
    // One that is only counted does not undo one that holds.
    let enforced = |p: &Principal| p.allowance.as_ref().is_some_and(|a| a.enforced);
    if later.allowance.is_some() && (enforced(later) || !enforced(earlier)) {
        both.allowance.clone_from(&later.allowance);
    }
    Arc::new(both)
}
