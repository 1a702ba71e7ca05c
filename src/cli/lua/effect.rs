//! What the gateway makes of a script's answer.

use serde_json::{Map, Value, json};

use super::given::Given;
use crate::{
    base::{ModelPattern, Stage, limits::OwnLimits},
    config::plan::Strategy,
    hooks::{HeaderChange, Refusal, Verdict},
    lua::json::normalised,
};

/// What becomes of the request.
#[derive(Debug)]
pub struct Effect {
    /// `nothing changes`, `changed`, `refused`, ...
    pub result: &'static str,
    /// What exactly; null: there is no more to say.
    pub what: Value,
    /// Whether the request, or the stream, goes on.
    pub goes_on: bool,
    /// What the gateway ignores.
    pub warnings: Vec<String>,
}

impl Effect {
    fn new(result: &'static str, what: Value, goes_on: bool) -> Self {
        Self { result, what, goes_on, warnings: Vec::new() }
    }

    fn of(changes: Map<String, Value>) -> Self {
        match changes.is_empty() {
            true => Self::new("nothing changes", Value::Null, true),
            false => Self::new("changed", Value::Object(changes), true),
        }
    }

    /// Reads what a script has returned.
    ///
    /// # Errors
    /// Why it cannot be used: for the gateway the script has failed.
    pub fn read(returned: Option<Value>, given: &Given) -> Result<Self, String> {
        let Some(returned) = returned else { return Ok(Self::of(Map::new())) };
        if given.stage == Stage::StreamEvent {
            return event(returned, given);
        }
        let verdict = Verdict::read(given.stage, returned).map_err(|why| why.0)?;
        let mut warnings: Vec<_> =
            verdict.unknown.iter().map(|name| format!("unknown field `{name}`")).collect();
        let mut effect = match (&verdict.refusal, given.stage.may_refuse()) {
            (Some(refusal), true) => Self::new("refused", refused(refusal, given.stage), false),
            _ if given.stage == Stage::Usage => Self::of(record(verdict.record, given)),
            _ if given.stage == Stage::Complete => Self::of(Map::new()),
            _ => Self::of(changes(verdict, given, &mut warnings)?),
        };
        effect.warnings = warnings;
        Ok(effect)
    }
}

fn refused(refusal: &Refusal, stage: Stage) -> Value {
    let limited = stage == Stage::RateLimit;
    let (usual, message) = match limited {
        true => (429, "Too many requests"),
        false => (403, "The request was refused"),
    };
    let mut what = json!({
        "status": refusal.status.unwrap_or(usual),
        "message": refusal.message.as_deref().unwrap_or(message),
        "code": refusal.code.as_deref().unwrap_or("refused_by_hook"),
    });
    if let Some(seconds) = refusal.retry_after.or(limited.then_some(60)) {
        what["retry_after"] = seconds.into();
    }
    what
}

/// What a script changes, with the names of its answer.
fn changes(
    verdict: Verdict,
    given: &Given,
    warnings: &mut Vec<String>,
) -> Result<Map<String, Value>, String> {
    let mut changes = Map::new();
    let mut set = |name: &str, value: Value| _ = changes.insert(name.to_owned(), value);
    if let Some(status) = verdict.status {
        set("status", status.into());
    }
    if let Some(message) = verdict.refusal.and_then(|refusal| refusal.message) {
        set("message", message.into());
    }
    if !verdict.headers.is_empty() {
        set("headers", headers(&verdict.headers));
    }
    if let Some(body) = verdict.body
        && let Some(changed) = body_changes(&body, given)?
    {
        set("body", changed);
    }
    if let Some(answer) = verdict.answer {
        let headers = headers(&answer.headers);
        set("answer", json!({"status": answer.status, "headers": headers, "body": answer.body}));
    }
    for (name, list) in [("tags", &verdict.tags)] {
        if !list.is_empty() {
            set(name, json!(list));
        }
    }
    if !verdict.metadata.is_empty() {
        set("metadata", verdict.metadata.into());
    }
    if let Some(limits) = verdict.limits {
        OwnLimits::read(&limits).map_err(|why| format!("`limits`: {why}"))?;
        set("limits", limits);
    }
    if let Some(models) = verdict.models {
        for model in &models {
            ModelPattern::parse(model).map_err(|why| format!("`models`: {why}"))?;
        }
        set("models", json!(models));
    }
    if let Some(backends) = verdict.backends {
        warnings.extend(backends.iter().filter(|name| !is_candidate(name, given)).map(|name| {
            format!("`{name}` is not one of `candidates`: the gateway would ignore the answer")
        }));
        set("backends", json!(backends));
    }
    if let Some(strategy) = verdict.strategy {
        serde_json::from_value::<Strategy>(strategy.as_str().into())
            .map_err(|_| format!("`{strategy}` is not a strategy"))?;
        set("strategy", strategy.into());
    }
    if let Some(weight) = verdict.weight {
        set("weight", weight.into());
    }
    for (name, text) in
        [("tier", verdict.tier), ("model", verdict.model), ("session", verdict.session)]
    {
        if let Some(text) = text {
            set(name, text.into());
        }
    }
    Ok(changes)
}

fn headers(changes: &[HeaderChange]) -> Value {
    let shown = |change: &HeaderChange| {
        let value = change.value.as_ref();
        let text = value.map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
        (change.name.to_string(), text.map_or(Value::Bool(false), Value::String))
    };
    Value::Object(changes.iter().map(shown).collect())
}

/// The members of a body that a script has changed; null: it has removed them.
fn body_changes(new: &Value, given: &Given) -> Result<Option<Value>, String> {
    let global = match given.stage {
        Stage::Response => "response",
        // The body of an error is not among the globals.
        Stage::Error => return Ok(Some(new.clone())),
        _ => "request",
    };
    let old = normalised(given.field(global, "body").unwrap_or(&Value::Null));
    match (&old, new) {
        (Value::Object(old), Value::Object(new)) => {
            let changed = difference(old, new);
            Ok((!changed.is_empty()).then_some(Value::Object(changed)))
        }
        (Value::Object(_), _) => Err("`body` is not a table with string keys".to_owned()),
        (old, new) => Ok((old != new).then(|| new.clone())),
    }
}

fn difference(old: &Map<String, Value>, new: &Map<String, Value>) -> Map<String, Value> {
    let gone = old.keys().filter(|name| !new.contains_key(*name));
    let gone = gone.map(|name| (name.clone(), Value::Null));
    let changed = new.iter().filter(|(name, value)| old.get(*name) != Some(value));
    changed.map(|(name, value)| (name.clone(), value.clone())).chain(gone).collect()
}

fn is_candidate(name: &str, given: &Given) -> bool {
    let candidates = given.values.get("candidates").and_then(Value::as_array);
    candidates.into_iter().flatten().any(|candidate| candidate["name"] == name)
}

/// Fields of the usage record: counts and the cost are changed, others are added below `custom`.
fn record(fields: Map<String, Value>, given: &Given) -> Map<String, Value> {
    let (mut changes, mut custom) = (Map::new(), Map::new());
    for (name, value) in fields {
        match name.as_str() {
            "prompt_tokens" | "completion_tokens" | "total_tokens" | "cost" => {
                let same = given.field("usage", &name).and_then(Value::as_f64) == value.as_f64();
                if value.is_number() && !same {
                    changes.insert(name, value);
                }
            }
            "record_id" | "request_id" | "sequence" | "process" => {}
            _ => _ = custom.insert(name, value),
        }
    }
    if !custom.is_empty() {
        changes.insert("custom".to_owned(), custom.into());
    }
    changes
}

/// What becomes of an event.
fn event(returned: Value, given: &Given) -> Result<Effect, String> {
    let mut event = match returned {
        Value::Bool(true) => return Ok(Effect::of(Map::new())),
        Value::Bool(false) => return Ok(Effect::new("the event is dropped", Value::Null, true)),
        Value::Object(event) => event,
        _ => return Err("it is neither an event nor false".to_owned()),
    };
    if let Some(why) = event.remove("stop") {
        let why = why.as_str().unwrap_or("The answer was stopped").to_owned();
        return Ok(Effect::new("the stream ends", json!({"stop": why}), false));
    }
    let old = normalised(given.values.get("event").unwrap_or(&Value::Null));
    let old = old.as_object().cloned().unwrap_or_default();
    let mut changed = difference(&old, &event);
    // What an event does not mention stays.
    changed.retain(|_, value| !value.is_null());
    let known = |name: &str| old.contains_key(name) && !matches!(name, "type" | "name");
    let warnings = changed.keys().filter(|name| !known(name));
    let warnings = warnings.map(|name| format!("`{name}` is not changed: the event has none"));
    let warnings = warnings.collect();
    changed.retain(|name, _| known(name));
    Ok(Effect { warnings, ..Effect::of(changed) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(stage: Stage, returned: Value) -> Result<Effect, String> {
        Effect::read(Some(returned), &Given::read(stage, None).unwrap())
    }

    #[test]
    fn answers_have_their_effects() {
        let body = json!({"model": "qwen-7b", "messages": [], "top_k": 3});
        for (stage, returned, result, what) in [
            (Stage::Request, json!(true), "nothing changes", Value::Null),
            (
                Stage::Request,
                json!({"body": body}),
                "changed",
                json!({"body": {"messages": [], "top_k": 3, "max_tokens": null}}),
            ),
            (
                Stage::RateLimit,
                json!(false),
                "refused",
                json!({"status": 429, "message": "Too many requests", "code": "refused_by_hook",
                       "retry_after": 60}),
            ),
            (Stage::Route, json!("vllm-1"), "changed", json!({"backends": ["vllm-1"]})),
            (Stage::Error, json!({"message": "x"}), "changed", json!({"message": "x"})),
            (
                Stage::Usage,
                json!({"cost": 1, "total_tokens": 20, "request_id": "x", "centre": 7}),
                "changed",
                json!({"cost": 1, "custom": {"centre": 7}}),
            ),
            (Stage::StreamEvent, json!(false), "the event is dropped", Value::Null),
            (Stage::StreamEvent, json!({"stop": "x"}), "the stream ends", json!({"stop": "x"})),
            (Stage::StreamEvent, json!({"content": "x"}), "changed", json!({"content": "x"})),
            (Stage::Complete, json!({"x": 1}), "nothing changes", Value::Null),
        ] {
            let effect = read(stage, returned.clone()).unwrap();
            assert_eq!((effect.result, effect.what), (result, what), "{returned}");
        }
    }

    #[test]
    fn what_is_ignored_is_named() {
        for (stage, returned, named) in [
            (Stage::Request, json!({"haeders": {}}), "haeders"),
            (Stage::Route, json!("unknown"), "candidates"),
            (Stage::StreamEvent, json!({"reasoning": "x"}), "reasoning"),
        ] {
            let effect = read(stage, returned).unwrap();
            assert!(effect.warnings[0].contains(named), "{effect:?}");
        }
        for (stage, returned) in [
            (Stage::Route, json!({"strategy": "best"})),
            (Stage::Auth, json!({"limits": {"per_second": 5}})),
            (Stage::StreamEvent, json!("x")),
            (Stage::Request, json!({"body": []})),
        ] {
            assert!(read(stage, returned.clone()).is_err(), "{returned}");
        }
    }
}
