//! `hooks` and `scripts`: which scripts run at which stage.

use std::{sync::Arc, time::Duration};

use super::{
    planner::Planner,
    script::{ScriptSource, ScriptUse},
    when::WhenPlan,
};
use crate::{
    base::Stage,
    config::{choices::OnScriptError, raw},
    lua::Script,
};

/// How long a call for one event may take.
const EVENT_TIME: Duration = Duration::from_millis(10);

/// Fewer bytes than this are megabytes: no script runs in so few.
const MEGABYTES: u64 = 1 << 12;

/// How long all calls for one stream may take.
const STREAM_TIME: Duration = Duration::from_secs(1);

/// A script at a stage.
#[derive(Clone, Debug)]
pub struct HookPlan {
    pub stage: Stage,
    /// In messages and metrics.
    pub name: String,
    pub script: Arc<Script>,
    /// Whether the request does not go on if the script fails.
    pub closed: bool,
    pub when: WhenPlan,
    /// How long all calls for one stream may take.
    pub stream_timeout: Duration,
}

impl Planner<'_> {
    /// The scripts of all stages, those of `hooks` first.
    pub(super) fn hooks(&mut self, hooks: &raw::Hooks, scripts: &raw::Scripts) -> Vec<HookPlan> {
        let mut plans = Vec::new();
        if !hooks.enabled.0 {
            return plans;
        }
        let lists = [
            (Stage::Request, &hooks.on_request),
            (Stage::Auth, &hooks.on_auth),
            (Stage::RateLimit, &hooks.rate_limit),
            (Stage::Route, &hooks.on_route),
            (Stage::UpstreamRequest, &hooks.on_upstream_request),
            (Stage::Response, &hooks.on_response),
            (Stage::StreamEvent, &hooks.on_stream_event),
            (Stage::Error, &hooks.on_error),
            (Stage::Usage, &hooks.on_usage),
            (Stage::Complete, &hooks.on_complete),
        ];
        for (stage, list) in lists {
            for (n, hook) in list.0.iter().enumerate() {
                let at = match list.0.len() {
                    1 => format!("hooks.{}", stage.key()),
                    _ => format!("hooks.{}[{n}]", stage.key()),
                };
                plans.extend(self.stage_hook(&at, stage, hook));
            }
        }
        let old = [
            ("routing", Stage::Route, &scripts.routing),
            ("auth", Stage::Auth, &scripts.auth),
            ("rate_limit", Stage::RateLimit, &scripts.rate_limit),
            ("usage", Stage::Usage, &scripts.usage),
            ("request_transform", Stage::UpstreamRequest, &scripts.request_transform),
            ("response_transform", Stage::Response, &scripts.response_transform),
            ("error_handler", Stage::Error, &scripts.error_handler),
        ];
        for (key, stage, hook) in old {
            if let Some(hook) = hook {
                plans.extend(self.stage_hook(&format!("scripts.{key}"), stage, hook));
            }
        }
        plans
    }

    fn stage_hook(&mut self, at: &str, stage: Stage, raw: &raw::Hook) -> Option<HookPlan> {
        if !raw.enabled.0 {
            return None;
        }
        let when = self.when(&format!("{at}.when"), &raw.when);
        if raw.stream_timeout.is_some() && stage != Stage::StreamEvent {
            let hint = "only `on_stream_event` runs several times for one stream";
            self.problem(format!("{at}.stream_timeout"), "has no effect here", hint);
        }
        let given = [("script", &raw.script), ("path", &raw.path), ("name", &raw.name)]
            .map(|(key, text)| (key, text.as_deref()));
        let source = match ScriptSource::of(&given) {
            Ok(Some(source)) => source,
            Ok(None) => {
                self.problem(at, "has no script", "add `script`, `path` or `name`");
                return None;
            }
            Err(keys) => {
                self.problem(at, format!("has several scripts: {keys}"), "keep one");
                return None;
            }
        };
        let max_memory = raw.max_memory.map(|memory| match memory.0 {
            // Version 0.5 counted megabytes.
            megabytes @ 1..MEGABYTES => {
                let message = format!("is taken for {megabytes}MiB: write the unit");
                self.warn(format!("{at}.max_memory"), message);
                megabytes << 20
            }
            bytes => bytes,
        });
        let usual = if stage == Stage::StreamEvent { EVENT_TIME } else { Duration::ZERO };
        let how = ScriptUse {
            timeout: raw.timeout.map(|t| t.0).or((!usual.is_zero()).then_some(usual)),
            max_memory,
            stage: Some(stage),
        };
        let (name, script) = self.compile(at, source, &how)?;
        let closed = match raw.on_error {
            Some(choice) => choice == OnScriptError::Closed,
            None => stage == Stage::Auth,
        };
        let stream_timeout = raw.stream_timeout.map_or(STREAM_TIME, |t| t.0);
        Some(HookPlan { stage, name, script, closed, when, stream_timeout })
    }
}
