//! The parts of a routing plan.

use std::{sync::Arc, time::Duration};

use http::HeaderName;

use crate::{
    base::{ModelPattern, Secret},
    config::choices::{CacheSalt, Strategy},
};

/// Routing as a whole.
#[derive(Clone, Debug, Default)]
pub struct RoutingPlan {
    /// Models by other names than the backends' own, in the order of the file.
    pub models: Vec<ModelPlan>,
    /// `routing.fallback`: rules by backend. The first whose patterns match a model holds.
    pub rules: Vec<RulePlan>,
    /// How pools balance that no model says otherwise for.
    pub balance: BalancePlan,
    /// Trying again.
    pub retry: RetryPlan,
    /// Which answers are failures of the backend.
    pub detection: DetectionPlan,
    /// When a backend that fails is left alone.
    pub circuit: CircuitPlan,
    /// How often a client that waits for its first token is sent a comment; `None`: never.
    pub keep_alive: Option<Duration>,
    /// Reading the engines' load.
    pub load: LoadPlan,
    /// A second try at the same time; `None`: never.
    pub hedge: Option<HedgePlan>,
    /// Whose requests share the engines' prefix caches.
    pub cache_salt: CacheSalt,
    /// What salts are made with.
    pub cache_salt_secret: Option<Secret>,
    /// Requests whose way is remembered for `/admin/v1/explain`.
    pub explain: usize,
}

/// One entry of `models`.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelPlan {
    /// The name or prefix by which clients ask for it.
    pub name: ModelPattern,
    /// Whether it is on. One that is not still has its fallbacks.
    pub enabled: bool,
    /// Where it leads; `None`: to the backends that serve a model of this name. Empty if it is off
    /// or if none of its backends is used.
    pub routes: Option<Vec<RoutePlan>>,
    /// Models to go on with, in order. Free of cycles.
    pub fallback: Vec<String>,
    /// How its pools balance.
    pub balance: BalancePlan,
}

/// One way to a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoutePlan {
    /// Name of a backend of the file.
    pub backend: String,
    /// The model's name there; `None`: as the client says.
    pub model: Option<Arc<str>>,
    /// Lower goes first.
    pub priority: u32,
    /// Share among those of the same priority.
    pub weight: u32,
}

/// One rule of `routing.fallback`; backends by name. It names at least one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RulePlan {
    /// Models it holds for; empty: all.
    pub models: Vec<ModelPattern>,
    /// First choice; `None`: whatever serves the model.
    pub primary: Option<String>,
    /// Then these, in order.
    pub fallback: Vec<String>,
}

/// How one pool balances.
#[derive(Clone, Debug, PartialEq)]
pub struct BalancePlan {
    /// The strategy.
    pub strategy: Strategy,
    /// What binds requests to one backend; `None`: nothing.
    pub affinity: Option<Affinity>,
    /// How far above the average of its pool a backend may be loaded before affinity yields.
    /// At least 1.
    pub bound: f64,
    /// Blocks of `prefix_affinity`.
    pub prefix: PrefixPlan,
}

impl Default for BalancePlan {
    fn default() -> Self {
        Self {
            strategy: Strategy::default(),
            affinity: None,
            bound: 1.25,
            prefix: PrefixPlan::default(),
        }
    }
}

/// What binds requests to one backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Affinity {
    /// The value of a request header.
    Header(HeaderName),
    /// The caller's key.
    Key,
    /// The caller's user.
    User,
}

/// Blocks of `prefix_affinity`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PrefixPlan {
    /// Bytes of a block.
    pub block: usize,
    /// Blocks of a conversation that are looked at.
    pub blocks: usize,
    /// Blocks that a pool remembers.
    pub remembered: usize,
}

impl Default for PrefixPlan {
    fn default() -> Self {
        Self { block: 512, blocks: 128, remembered: 1 << 16 }
    }
}

/// Trying again.
#[derive(Clone, Debug, PartialEq)]
pub struct RetryPlan {
    /// Tries after the first; 0 for none.
    pub max_retries: u32,
    /// Pauses before a backend is tried again that has failed this request; `None`: it is not.
    pub again: Option<Backoff>,
    /// Which failures are tried again.
    pub on: RetryOn,
    /// Retries that a pool may add to its requests.
    pub budget: BudgetPlan,
}

impl RetryPlan {
    /// One try for each request, whatever becomes of it. The statuses stay: they also say which
    /// answers are looked at, and so count against a backend.
    pub(super) fn off(self) -> Self {
        let on = RetryOn { connect_failure: false, reset: false, timeout: false, ..self.on };
        Self { max_retries: 0, again: None, on, ..self }
    }
}

impl Default for RetryPlan {
    fn default() -> Self {
        Self { max_retries: 3, again: None, on: RetryOn::default(), budget: BudgetPlan::default() }
    }
}

/// Pauses that grow.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Backoff {
    /// The first.
    pub initial: Duration,
    /// The longest.
    pub max: Duration,
    /// Each in relation to the one before it. At least 1.
    pub multiplier: f64,
    /// How much of a pause is left to chance, 0 to 1: 0.2 is a fifth more or less.
    pub jitter: f64,
}

/// Which failures are tried again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RetryOn {
    /// A connection that cannot be made.
    pub connect_failure: bool,
    /// A connection that breaks before any content has gone to the client.
    pub reset: bool,
    /// No first token in time.
    pub timeout: bool,
    /// Statuses.
    pub statuses: Statuses,
}

impl Default for RetryOn {
    fn default() -> Self {
        let statuses = Statuses { codes: vec![408, 429], classes: vec![5] };
        Self { connect_failure: true, reset: true, timeout: true, statuses }
    }
}

/// A set of statuses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Statuses {
    /// Single ones.
    pub codes: Vec<u16>,
    /// `5` for all from 500 to 599.
    pub classes: Vec<u16>,
}

impl Statuses {
    /// Whether a status is among them.
    pub fn contains(&self, status: u16) -> bool {
        self.codes.contains(&status) || self.classes.contains(&(status / 100))
    }
}

/// What retries may add to the requests of a pool.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BudgetPlan {
    /// Retries in relation to requests: 0.2 is one for five.
    pub ratio: f64,
    /// Retries a second that are free in any case.
    pub min_per_second: f64,
}

impl Default for BudgetPlan {
    fn default() -> Self {
        Self { ratio: 0.2, min_per_second: 10.0 }
    }
}

/// Which answers are failures of the backend, beyond what [`RetryOn`] says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DetectionPlan {
    /// Statuses.
    pub statuses: Statuses,
    /// Texts in the body of an answer that is no success.
    pub patterns: Vec<String>,
}

/// When a backend that fails is left alone: for each backend and model.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CircuitPlan {
    /// Failures in a row; `None`: breaking is off.
    pub consecutive: Option<u32>,
    /// Failures in relation to requests within the window, 0 to 1.
    pub rate: f64,
    /// Requests below which the rate says nothing.
    pub min_requests: u32,
    /// The window.
    pub window: Duration,
    /// How long it is left alone.
    pub cooldown: Duration,
    /// Share of a pool that may be left alone at once, 0 to 1.
    pub max_ejected: f64,
    /// Also a backend that nobody can stand in for: then its clients are told to come back, instead
    /// of what it would say.
    pub lone: bool,
}

impl Default for CircuitPlan {
    fn default() -> Self {
        Self {
            consecutive: Some(5),
            rate: 0.5,
            min_requests: 20,
            window: Duration::from_secs(30),
            cooldown: Duration::from_secs(30),
            max_ejected: 0.5,
            lone: false,
        }
    }
}

/// Reading the engines' load for `least_load`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadPlan {
    /// Time from one reading to the next.
    pub interval: Duration,
    /// How long one may take.
    pub timeout: Duration,
    /// Path of the metrics, below the backend's prefix.
    pub path: String,
    /// Also from vLLM's answers (`endpoint-load-metrics`).
    pub from_answers: bool,
}

impl Default for LoadPlan {
    fn default() -> Self {
        Self {
            interval: Duration::from_secs(2),
            timeout: Duration::from_secs(1),
            path: "/metrics".to_owned(),
            from_answers: false,
        }
    }
}

/// A second try at the same time, for short requests that are not streamed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HedgePlan {
    /// How long the first is waited for.
    pub delay: Duration,
    /// Bytes of a short request.
    pub max_body: usize,
    /// Most tokens that a short request may ask for; one that says nothing is not short.
    pub max_tokens: u64,
}
