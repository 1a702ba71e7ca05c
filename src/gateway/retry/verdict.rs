//! The verdict of an outcome on its backend: broken, busy, or not at fault.

use std::time::Duration;

use memchr::memmem;

use super::cause::Cause;
use crate::{
    base::FaultKind,
    config::plan::RoutingPlan,
    dialect::{Blame, Progress},
};

/// Bytes of such an answer that are looked at.
pub const MOST: usize = 64 * 1024;

/// What servers say that have no room now and are not broken: vLLM (admission by queue length and
/// by prefill backlog, paused, scaling), SGLang, llama.cpp while it loads, Ollama.
const BUSY: [&str; 9] = [
    "engine is currently busy",
    "backlog limit",
    "currently scaling",
    "is paused",
    "ServiceUnavailableError",
    "queue is full",
    "Loading model",
    "server busy",
    "overloaded",
];

/// The verdict on a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It works.
    Good,
    /// Nothing: the request is at fault, or it is unknown which side is.
    Neutral,
    /// It has no room now, and perhaps says for how long.
    Busy(Option<Duration>),
    /// It accepts no connections.
    Unreachable,
    /// It is broken, or cannot cope with this request.
    Failed,
}

impl Verdict {
    /// What a fault says.
    pub fn of_fault(cause: Cause) -> Self {
        match cause {
            Cause::Fault(FaultKind::Refusing) => Self::Unreachable,
            cause if cause.is_unsent() => Self::Unreachable,
            _ => Self::Failed,
        }
    }
}

/// The verdict on a backend whose answer has ended. The engine may have reported an error after no
/// other backend could take over.
pub fn of_end(status: Option<u16>, progress: &Progress) -> Verdict {
    match progress.error {
        Some(Blame::Client | Blame::Unknown) => Verdict::Neutral,
        _ if progress.is_broken_off() => Verdict::Failed,
        _ if status.is_some_and(|status| status < 400) => Verdict::Good,
        _ => Verdict::Neutral,
    }
}

/// The verdict on a backend whose stream ended or failed before any content.
pub fn of_no_content(progress: &Progress) -> Verdict {
    match progress.error {
        Some(Blame::Unknown) => Verdict::Neutral,
        _ => Verdict::Failed,
    }
}

/// Whether a status leads the client elsewhere: to an address inside the fleet (3xx), or
/// to another protocol (101), for which no path of the gateway has a use. 304 does neither.
pub fn is_redirect(status: u16) -> bool {
    status == 101 || (300..400).contains(&status) && status != 304
}

/// Whether the body of an answer with this status must be known.
pub fn wants_body(status: u16, plan: &RoutingPlan) -> bool {
    status >= 500
        || status >= 400
            && (plan.retry.on.statuses.contains(status)
                || plan.detection.statuses.contains(status)
                || !plan.detection.patterns.is_empty())
}

/// Judges an answer; the cause is there if another backend might do better.
pub fn judge(
    status: u16,
    body: &[u8],
    retry_after: Option<Duration>,
    plan: &RoutingPlan,
) -> (Verdict, Option<Cause>) {
    let says = |text: &String| memmem::find(body, text.as_bytes()).is_some();
    let matched = status >= 400 && plan.detection.patterns.iter().any(says);
    let busy = || BUSY.iter().any(|text| memmem::find(body, text.as_bytes()).is_some());
    let verdict = match status {
        429 | 529 => Verdict::Busy(retry_after),
        503 if retry_after.is_some() || busy() => Verdict::Busy(retry_after),
        _ if matched => Verdict::Failed,
        // The request did not come in time, or asks for what was not built there.
        408 | 501 | 505 => Verdict::Neutral,
        500.. => Verdict::Failed,
        400 | 404 => Verdict::Neutral,
        // Statuses that the operator takes for failures, an exhausted account for instance.
        _ if plan.detection.statuses.contains(status) => Verdict::Failed,
        _ => Verdict::Neutral,
    };
    let again = matched
        || plan.retry.on.statuses.contains(status)
        || plan.detection.statuses.contains(status)
        || matches!(verdict, Verdict::Busy(_)) && status == 503;
    let cause = match verdict {
        Verdict::Busy(pause) => Cause::Busy(pause),
        _ => Cause::Status(status),
    };
    (verdict, again.then_some(cause))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::plan::{DetectionPlan, Statuses};

    fn detecting(classes: &[u16], patterns: &[&str]) -> RoutingPlan {
        let statuses = Statuses { codes: Vec::new(), classes: classes.to_vec() };
        let patterns = patterns.iter().map(|p| (*p).to_owned()).collect();
        RoutingPlan { detection: DetectionPlan { statuses, patterns }, ..Default::default() }
    }

    #[test]
    fn a_full_engine_is_not_a_broken_one() {
        let plan = RoutingPlan::default();
        let of = |status, body: &str| judge(status, body.as_bytes(), None, &plan);
        let busy = (Verdict::Busy(None), Some(Cause::Busy(None)));
        assert_eq!(of(503, r#"{"error":"The model is currently scaling. Please retry."}"#), busy);
        assert_eq!(of(503, r#"{"error":{"type":"ServiceUnavailableError"}}"#), busy);
        assert_eq!(of(429, ""), busy);
        assert_eq!(of(503, "<html>").0, Verdict::Failed);
        assert_eq!(of(500, "").0, Verdict::Failed);
        assert_eq!(of(501, ""), (Verdict::Neutral, Some(Cause::Status(501))));
        for status in [400, 401, 404, 413, 422] {
            assert_eq!(of(status, "overloaded"), (Verdict::Neutral, None), "{status}");
        }
    }

    #[test]
    fn a_pause_that_is_asked_for_makes_it_busy() {
        let pause = Some(Duration::from_secs(7));
        let plan = RoutingPlan::default();
        assert_eq!(judge(503, b"", pause, &plan).0, Verdict::Busy(pause));
    }

    #[test]
    fn operators_say_what_else_is_a_failure() {
        let plan = detecting(&[4], &["organization has been disabled"]);
        let of = |status, body: &str| judge(status, body.as_bytes(), None, &plan);
        assert_eq!(of(403, ""), (Verdict::Failed, Some(Cause::Status(403))));
        // Tried elsewhere, but an invalid request ejects no backend.
        assert_eq!(of(400, ""), (Verdict::Neutral, Some(Cause::Status(400))));
        assert_eq!(of(400, "this organization has been disabled").0, Verdict::Failed);
        assert_eq!(of(200, "organization has been disabled").1, None);
    }
}
