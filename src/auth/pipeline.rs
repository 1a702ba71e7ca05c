//! The pipeline: which providers are asked in which order, and what their answers come to.

use std::{
    future::Future,
    sync::{Arc, Mutex},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use http::HeaderMap;
use prometheus::IntCounter;
use serde_json::Map;
use tokio::sync::Semaphore;

use super::{
    Call, Credential, KeyStore,
    cache::Cache,
    credential::KeyDigest,
    decision::{Question, Verdict},
    provider::{self, KeyRecord, Place, Provider, Wanted, words},
};
use crate::{
    base::{Principal, Rejection, lock, terms::Unfit},
    config::{
        plan::{AuthPlan, ProviderPlan, Reason},
        raw::Mode,
    },
    lua::{Failure, Script},
    store::{StoreError, Stores, within},
    telemetry::Metrics,
};

/// For so long a failure is not told of again.
const QUIET: Duration = Duration::from_secs(1);

/// Questions to one provider at a time.
const QUESTIONS: usize = 64;

/// Seconds after which a client may try again when a provider cannot be asked.
const RETRY_AFTER: u64 = 2;

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
    /// The failure that was told of last, and when.
    told: Mutex<Option<(Instant, String)>>,
}

impl Stage {
    /// Tells of a failure, but not of the same one more than once a second.
    fn tell(&self, what: &str) {
        let mut told = lock(&self.told);
        let known = |(at, text): &(Instant, String)| at.elapsed() < QUIET && text == what;
        if !told.as_ref().is_some_and(known) {
            log::warn!("auth provider {}: {what}", self.plan.name);
            *told = Some((Instant::now(), what.to_owned()));
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
        let stage = |provider: &ProviderPlan| {
            let same =
                |s: &&Stage| s.plan.source == provider.source && s.plan.cache == provider.cache;
            let kept = earlier.and_then(|auth| auth.stages.iter().find(same));
            let place = provider::open(&provider.source, provider.timeout, with);
            Stage {
                place,
                cache: kept
                    .map_or_else(|| Arc::new(Cache::new(provider.cache)), |s| Arc::clone(&s.cache)),
                plan: provider.clone(),
                allowed: with.metrics.auth.with_label_values(&[&provider.name, "allow"]),
                questions: Arc::new(Semaphore::new(QUESTIONS)),
                told: Mutex::default(),
            }
        };
        Self {
            stages: plan.pipeline.iter().map(stage).collect(),
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
        self.plan.header_names.contains(name)
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
                    stage.tell(&format!("{why}; its last answer still serves"));
                    self.count(&stage.plan.name, "stale");
                }
                Ok(told.record)
            }
            Err(why) => {
                stage.tell(&why.to_string());
                self.count(&stage.plan.name, "error");
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

    /// The default rules.
    fn by_rules(&self, stage: &Stage, record: &KeyRecord, call: Call<'_>) -> Result<(), Rejection> {
        let terms = match &record.terms {
            Ok(terms) => terms,
            Err(why) => return self.unreadable(stage, record, why),
        };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let now = i64::try_from(now).unwrap_or(i64::MAX);
        let tolerated = |why| self.plan.answers.of(reason(why)).allow;
        match terms.check(now, call.ip, tolerated) {
            Ok(()) => self.refuse(&stage.plan.name, Reason::Active),
            Err(why) => self.refuse(&stage.plan.name, reason(why)),
        }
    }

    /// Nobody has said that what cannot be read may pass.
    fn unreadable<T>(&self, stage: &Stage, record: &KeyRecord, why: &str) -> Result<T, Rejection> {
        let key = &record.principal.key_id;
        log::warn!("auth provider {}: key {key} is refused: {why}", stage.plan.name);
        self.count(&stage.plan.name, "deny");
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
                self.count(&stage.plan.name, "script_error");
                // Nobody has looked at this caller: it may try again.
                let busy = why == Failure::Busy;
                let reason = if busy { Reason::Unavailable } else { Reason::ScriptError };
                return Err(self.rejection(reason));
            }
        };
        if verdict.allow {
            return self.refuse(&stage.plan.name, Reason::Active).map(|()| verdict);
        }
        self.count(&stage.plan.name, "deny");
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
        self.count(stage, "deny");
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

    fn count(&self, provider: &str, decision: &str) {
        self.metrics.auth.with_label_values(&[provider, decision]).inc();
    }
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
    if verdict.metadata.is_empty() && verdict.limits.is_none() && verdict.tags.is_empty() {
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
    Arc::new(both)
}
