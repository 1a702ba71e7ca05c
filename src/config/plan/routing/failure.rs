//! What is a failure, and what follows for the request and for the backend. `fallback` has some of
//! it with the keys of other gateways; `routing` takes precedence.

use std::time::Duration;

use super::types::{Backoff, BudgetPlan, CircuitPlan, DetectionPlan, RetryOn, RetryPlan, Statuses};
use crate::config::{
    plan::planner::Planner,
    problem::closest,
    raw::{self, Fallback, Word},
};

/// The longest pause and the longest cooldown.
const DAY: Duration = Duration::from_secs(86_400);

/// Words of `retry_on` that are not status codes.
const WORDS: [&str; 3] = ["connect_failure", "reset", "timeout"];

impl Planner<'_> {
    pub(super) fn retry(&mut self, raw: &raw::Routing, fallback: &Fallback) -> RetryPlan {
        let named = fallback.max_retries;
        if let Some(most) = named {
            self.within("fallback.max_retries", most, 0..=100, "the default is 3");
        }
        let Some(raw) = &raw.retry else {
            let standard = RetryPlan::default();
            return RetryPlan {
                max_retries: named.filter(|n| *n > 0).unwrap_or(standard.max_retries),
                // In other gateways 0 means: no retry on the same backend.
                again: self.backoff_of_fallback(fallback).filter(|_| named != Some(0)),
                ..standard
            };
        };
        self.second_backoff(fallback);
        let at = |key: &str| format!("routing.retry.{key}");
        if let Some(most) = raw.max_retries {
            self.within(at("max_retries"), most, 0..=100, "the default is 3");
        }
        let again = self.backoff(
            ["routing.retry", "initial_wait", "max_wait", "multiplier", "jitter"],
            Backoff {
                initial: raw.initial_wait.0,
                max: raw.max_wait.0,
                multiplier: raw.multiplier,
                jitter: raw.jitter,
            },
        );
        self.within(at("budget.ratio"), raw.budget.ratio, 0.0..=100.0, "the default is 0.2");
        let free = raw.budget.min_per_second;
        self.within(at("budget.min_per_second"), free, 0.0..=1e6, "the default is 10");
        let standard = RetryPlan::default();
        let max_retries = raw.max_retries.or(named.filter(|n| *n > 0));
        let plan = RetryPlan {
            max_retries: max_retries.unwrap_or(standard.max_retries),
            again: Some(again).filter(|_| raw.max_retries.is_some() || named != Some(0)),
            on: raw.retry_on.as_ref().map_or(standard.on, |words| self.retry_on(words)),
            budget: BudgetPlan { ratio: raw.budget.ratio, min_per_second: free },
        };
        if raw.enabled.0 { plan } else { plan.off() }
    }

    fn backoff_of_fallback(&mut self, raw: &Fallback) -> Option<Backoff> {
        let time = |given: Option<raw::Millis>, standard| {
            given.map_or(Duration::from_millis(standard), |t| t.0.0)
        };
        let plan = Backoff {
            initial: time(raw.backoff_initial_delay, 100),
            max: time(raw.backoff_max_delay, 5000),
            multiplier: raw.backoff_multiplier.unwrap_or(2.0),
            jitter: raw.backoff_jitter.unwrap_or(0.1),
        };
        let keys = [
            "fallback",
            "backoff_initial_delay",
            "backoff_max_delay",
            "backoff_multiplier",
            "backoff_jitter",
        ];
        raw.enable_backoff.then(|| self.backoff(keys, plan))
    }

    /// Warns about pauses of `fallback` that `routing.retry` overrides.
    fn second_backoff(&mut self, raw: &Fallback) {
        for (key, given) in [
            ("enable_backoff", raw.enable_backoff),
            ("backoff_initial_delay", raw.backoff_initial_delay.is_some()),
            ("backoff_max_delay", raw.backoff_max_delay.is_some()),
            ("backoff_multiplier", raw.backoff_multiplier.is_some()),
            ("backoff_jitter", raw.backoff_jitter.is_some()),
        ] {
            if given {
                let message = "has no effect, because `routing.retry` sets the pauses";
                self.warn(format!("fallback.{key}"), message);
            }
        }
    }

    /// `keys`: the path of the section, and the names of its four keys.
    fn backoff(&mut self, keys: [&str; 5], plan: Backoff) -> Backoff {
        let [at, initial, max, multiplier, jitter] = keys;
        let path = |key: &str| format!("{at}.{key}");
        self.within_time(path(initial), plan.initial, Duration::ZERO..=DAY, "write `1s`");
        self.within_time(path(max), plan.max, Duration::ZERO..=DAY, "write `10s`");
        if plan.max < plan.initial {
            self.problem(path(max), format!("is shorter than `{initial}`"), "");
        }
        self.within(path(multiplier), plan.multiplier, 1.0..=100.0, "the default is 2");
        self.within(path(jitter), plan.jitter, 0.0..=1.0, "0.2 is a fifth more or less");
        plan
    }

    fn retry_on(&mut self, words: &[Word]) -> RetryOn {
        let has = |word: &str| words.iter().any(|w| w.0 == word);
        let [connect, reset, timeout] = WORDS.map(has);
        let mut statuses = Statuses::default();
        for (i, word) in words.iter().enumerate().filter(|(_, w)| !WORDS.contains(&w.0.as_str())) {
            if !add_status(&mut statuses, &word.0) {
                let hint = match closest(&word.0, WORDS) {
                    Some(known) => format!("did you mean `{known}`?"),
                    None => {
                        format!("known are {}, `5xx`, `4xx` and status codes", WORDS.join(", "))
                    }
                };
                let message = format!("`{}` is not a kind of failure", word.0);
                self.problem(format!("routing.retry.retry_on[{i}]"), message, &hint);
            }
        }
        RetryOn { connect_failure: connect, reset, timeout, statuses }
    }

    pub(super) fn detection(&mut self, raw: &raw::Detection) -> DetectionPlan {
        let mut statuses = Statuses::default();
        for (i, word) in raw.error_codes.iter().enumerate() {
            let at = format!("detection.error_codes[{i}]");
            if !add_status(&mut statuses, &word.0) {
                let message = format!("`{}` is not a status code", word.0);
                self.problem(at, message, "write `5xx`, or a status code from 400 to 599");
            } else if matches!(word.0.to_ascii_lowercase().as_str(), "4xx" | "400" | "404") {
                let message = "a request with a client's error is now tried on every backend; it does \
                               not count against a backend";
                self.warn(at, message);
            }
        }
        for (i, pattern) in raw.error_patterns.iter().enumerate() {
            if pattern.is_empty() {
                let at = format!("detection.error_patterns[{i}]");
                self.problem(at, "is empty", "it would match every response");
            }
        }
        DetectionPlan { statuses, patterns: raw.error_patterns.clone() }
    }

    pub(super) fn circuit(&mut self, raw: &raw::Circuit, fallback: &Fallback) -> CircuitPlan {
        let base = self.circuit_of_fallback(fallback);
        let at = |key: &str| format!("routing.circuit.{key}");
        let hint = "`enabled: false` switches it off";
        if let Some(n) = raw.consecutive_failures {
            self.within(at("consecutive_failures"), n, 1..=1_000_000, hint);
        }
        let short = Duration::from_millis(10);
        if let Some(window) = raw.window {
            self.within_time(at("window"), window.0, short..=DAY, "the default is 30s");
        }
        if let Some(cooldown) = raw.cooldown {
            self.within_time(at("cooldown"), cooldown.0, short..=DAY, hint);
        }
        if raw.failure_rate.is_some_and(|rate| rate.0 == 0.0) {
            self.problem(
                at("failure_rate"),
                "is zero",
                "write `100%` to use only `consecutive_failures`",
            );
        }
        let standard = CircuitPlan::default();
        let consecutive = match raw.enabled {
            Some(false) => None,
            _ if raw.consecutive_failures.is_some() => raw.consecutive_failures,
            Some(true) => base.consecutive.or(standard.consecutive),
            None => base.consecutive,
        };
        CircuitPlan {
            consecutive,
            rate: raw.failure_rate.map_or(base.rate, |rate| rate.0),
            min_requests: raw.min_requests.unwrap_or(base.min_requests).max(1),
            window: raw.window.map_or(base.window, |w| w.0),
            cooldown: raw.cooldown.map_or(base.cooldown, |c| c.0),
            max_ejected: raw.max_ejected.map_or(base.max_ejected, |share| share.0),
            lone: raw.spare_last.map_or(base.lone, |spare| !spare.0),
        }
    }

    /// The part of `fallback`: a single failure ejects a backend, unless the circuit breaker is on.
    fn circuit_of_fallback(&mut self, raw: &Fallback) -> CircuitPlan {
        let mut plan = CircuitPlan::default();
        let range = Duration::ZERO..=DAY;
        if let Some(raw::Seconds(cooldown)) = raw.cooldown_seconds {
            self.within_time("fallback.cooldown_seconds", cooldown.0, range.clone(), "");
            plan.consecutive = (!cooldown.0.is_zero()).then_some(1);
            plan.lone = true;
            if !cooldown.0.is_zero() {
                plan.cooldown = cooldown.0;
            }
        }
        for (key, given) in [
            ("circuit_failure_threshold", raw.circuit_failure_threshold.is_some()),
            ("circuit_open_timeout", raw.circuit_open_timeout.is_some()),
        ] {
            if given && !raw.enable_circuit_breaker {
                let message = "has no effect without `enable_circuit_breaker`";
                self.warn(format!("fallback.{key}"), message);
            }
        }
        if raw.circuit_success_threshold.is_some() {
            let message = "has no effect: the first successful request closes the circuit";
            self.warn("fallback.circuit_success_threshold", message);
        }
        if raw.enable_circuit_breaker {
            let threshold = raw.circuit_failure_threshold.unwrap_or(5);
            self.within("fallback.circuit_failure_threshold", threshold, 1..=1_000_000, "");
            plan.consecutive = Some(threshold);
            plan.lone = true;
            let minute = Duration::from_secs(60);
            let given = raw.circuit_open_timeout.map(|open| open.0.0);
            plan.cooldown = given.or(raw.cooldown_seconds.map(|c| c.0.0)).unwrap_or(minute);
            let at = "fallback.circuit_open_timeout";
            self.within_time(at, plan.cooldown, Duration::from_millis(10)..=DAY, "write 60");
        }
        plan
    }
}

/// Adds `5xx` or `503` to a set. `false` if the word is neither.
fn add_status(statuses: &mut Statuses, word: &str) -> bool {
    match word.to_ascii_lowercase().as_str() {
        "4xx" => statuses.classes.push(4),
        "5xx" => statuses.classes.push(5),
        digits => match digits.parse() {
            Ok(code @ 400..=599) => statuses.codes.push(code),
            _ => return false,
        },
    }
    true
}
