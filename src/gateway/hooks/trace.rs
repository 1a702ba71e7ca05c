//! What is kept and counted of runs of scripts, and of what guards have found.

use std::time::Duration;

use crate::{guards::Finding, hooks::Hook, runtime::explain::KeptHook, telemetry::Metrics};

/// A run, as it is kept for `/admin/v1/explain`.
pub fn of_run(hook: &Hook, took: Duration, result: &'static str, changed: Vec<String>) -> KeptHook {
    let (stage, script) = (hook.stage().key(), hook.name().to_owned());
    KeptHook { stage, script, took, result, changed }
}

/// What a guard has found, as it is kept.
pub fn of_finding(finding: &Finding) -> KeptHook {
    let Finding { guard, kind, action, count } = finding;
    KeptHook {
        stage: "guards",
        script: (*guard).to_owned(),
        took: Duration::ZERO,
        result: action,
        changed: vec![format!("{kind}: {count}")],
    }
}

/// Counts what a guard has found.
pub fn count(metrics: &Metrics, finding: &Finding) {
    let Finding { guard, kind, action, count } = finding;
    metrics.guard_findings.with_label_values(&[guard, kind.as_str(), action]).inc_by(*count as u64);
}
