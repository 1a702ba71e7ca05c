//! All scripts of a configuration, by stage.

use std::sync::Arc;

use super::call::{Hook, SharedHook};
use crate::{
    base::{Stage, Stages},
    config::plan::HookPlan,
    telemetry::Metrics,
};

/// The scripts of a configuration. A stage without any costs a bit test.
#[derive(Default)]
pub struct Hooks {
    stages: Stages,
    at: [Box<[SharedHook]>; Stage::ALL.len()],
    /// A later stage reads the request's body.
    keeps_request: bool,
    /// A later stage reads the answer's body.
    keeps_answer: bool,
}

/// The stages that run when the request's body may be gone.
const LATE: [Stage; 5] =
    [Stage::Response, Stage::StreamEvent, Stage::Error, Stage::Usage, Stage::Complete];

impl Hooks {
    /// Ready to run.
    pub fn new(plans: &[HookPlan], metrics: &Metrics) -> Self {
        let mut hooks = Self::default();
        for stage in Stage::ALL {
            let own = plans.iter().filter(|plan| plan.stage == stage);
            let own: Vec<_> = own.map(|plan| Arc::new(Hook::new(plan.clone(), metrics))).collect();
            if !own.is_empty() {
                hooks.stages.insert(stage);
            }
            let reads = |global| own.iter().any(|hook: &SharedHook| hook.reads(global, "body"));
            hooks.keeps_request |= LATE.contains(&stage) && reads("request");
            hooks.keeps_answer |=
                matches!(stage, Stage::Usage | Stage::Complete) && reads("response");
            hooks.at[stage as usize] = own.into();
        }
        hooks
    }

    /// Whether a stage has a script.
    #[inline]
    pub fn has(&self, stage: Stage) -> bool {
        self.stages.has(stage)
    }

    /// Whether no stage has one.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.stages.is_empty()
    }

    /// The scripts of a stage, in their order.
    pub fn at(&self, stage: Stage) -> &[Arc<Hook>] {
        &self.at[stage as usize]
    }

    /// Whether a stage that runs late reads the request's body.
    pub fn keeps_request(&self) -> bool {
        self.keeps_request
    }

    /// Whether a stage after the answer reads the answer's body.
    pub fn keeps_answer(&self) -> bool {
        self.keeps_answer
    }
}
