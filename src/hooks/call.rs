//! One script at one stage, and its runs.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use serde_json::Value;

use super::{
    input::{Call, Global},
    metrics::HookMetrics,
};
use crate::{
    base::Stage,
    config::plan::{HookPlan, Subject},
    lua::{Failure, Script},
    telemetry::Metrics,
};

/// A script at a stage.
pub struct Hook {
    plan: HookPlan,
    metrics: HookMetrics,
    /// The second since the start of this program in which a failure was last written to the log.
    logged: AtomicU64,
    began: Instant,
}

/// A run without a usable answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HookFailure {
    /// The stage's key.
    pub stage: &'static str,
    /// The script's name.
    pub script: String,
    /// Whether the request must not go on.
    pub closed: bool,
    /// What happened; it has the line of the script where there is one.
    pub why: String,
}

impl fmt::Display for HookFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: {}", self.stage, self.script, self.why)
    }
}

impl Hook {
    /// Ready to run.
    pub fn new(plan: HookPlan, metrics: &Metrics) -> Self {
        let counts = HookMetrics::new(metrics, plan.stage, &plan.name);
        Self { plan, metrics: counts, logged: AtomicU64::new(0), began: Instant::now() }
    }

    pub fn stage(&self) -> Stage {
        self.plan.stage
    }

    /// The name in messages and metrics.
    pub fn name(&self) -> &str {
        &self.plan.name
    }

    pub fn script(&self) -> &Script {
        &self.plan.script
    }

    /// How long all runs for one stream may take.
    pub fn stream_timeout(&self) -> Duration {
        self.plan.stream_timeout
    }

    /// Whether it runs for a request.
    pub fn applies(&self, subject: &Subject<'_>) -> bool {
        self.plan.when.matches(subject)
    }

    /// Whether it may read this field of a global; of a global itself with `""`.
    pub fn reads(&self, global: &str, field: &str) -> bool {
        match field {
            "" => self.plan.script.mentions(global),
            field => self.plan.script.may_read(global, field),
        }
    }

    /// Runs it. `None`: it changes nothing.
    ///
    /// # Errors
    /// If it fails; the log says so, at most once a second.
    pub async fn run(&self, globals: Vec<Global>) -> Result<Option<Value>, HookFailure> {
        let call = Call { stage: self.plan.stage, globals: globals.into() };
        let began = Instant::now();
        let result = self.plan.script.run(&call).await;
        self.metrics.took(began.elapsed());
        result.map_err(|failure| {
            self.metrics.failed(&failure);
            self.failure(failure.to_string())
        })
    }

    /// What a run has come to: a word of the metrics.
    pub fn count(&self, word: &'static str) {
        self.metrics.succeeded(word);
    }

    /// Its answer cannot be used.
    pub fn unusable(&self, why: String) -> HookFailure {
        let failure = Failure::Answer(why);
        self.metrics.failed(&failure);
        self.failure(failure.to_string())
    }

    /// Says in the log that a script returns fields which its stage does not know.
    pub fn warn_of_unknown(&self, unknown: &[String]) {
        if let [first, ..] = unknown {
            let (stage, script) = (self.plan.stage.key(), &self.plan.name);
            self.warn(&format!("{stage}: {script}: `{first}` is no field of what it may return"));
        }
    }

    /// At most once a second.
    fn warn(&self, what: &dyn fmt::Display) {
        // From 1 on: 0 is never.
        let second = self.began.elapsed().as_secs() + 1;
        if self.logged.swap(second, Ordering::Relaxed) != second {
            log::warn!("hook {what}");
        }
    }

    fn failure(&self, why: String) -> HookFailure {
        let closed = self.plan.closed;
        let (stage, script) = (self.plan.stage.key(), self.plan.name.clone());
        let failure = HookFailure { stage, script, closed, why };
        self.warn(&failure);
        failure
    }
}

/// Shared by requests.
pub(super) type SharedHook = Arc<Hook>;
