//! Loading a configuration: read, expand, plan, and report every problem.

use std::path::Path;

use serde_yaml::Value;

use super::{
    expand::expand,
    locate,
    plan::{self, Plan},
    problem::Problem,
    raw::{Raw, UNQUOTED},
    read::read,
    value,
};
use crate::base::without_mark;

/// The result of loading a file.
pub struct Loaded {
    /// The plan, if there was no problem.
    pub plan: Option<Plan>,
    /// Every problem, ordered by line.
    pub problems: Vec<Problem>,
}

/// The prefix of top-level keys that only hold YAML anchors.
const EXTENSION: &str = "x-";

/// The variable that sets the default of `data_dir`.
const DATA_DIR: &str = "LLMPROXY_DATA_DIR";

/// Loads a file, with the variables of the process's environment.
///
/// # Errors
/// All problems of the file.
pub fn load(path: &Path) -> Result<Plan, Vec<Problem>> {
    let text = text(path).map_err(|problem| vec![problem])?;
    let folder = path.parent().unwrap_or(Path::new("."));
    let loaded = load_text(&text, folder, &variable);
    loaded.plan.ok_or(loaded.problems)
}

/// Loads a text. Relative paths in it start at `folder`; `env` looks a variable up.
pub fn load_text(text: &str, folder: &Path, env: &dyn Fn(&str) -> Option<String>) -> Loaded {
    let mut problems = Vec::new();
    let text = without_mark(text);
    let plan = document(text, &mut problems).and_then(|mut document| {
        let expanded = expand(&mut document, env, &mut problems);
        if let (Value::Mapping(keys), Some(folder)) = (&mut document, env(DATA_DIR))
            && !folder.is_empty()
        {
            keys.entry("data_dir".into()).or_insert(folder.into());
        }
        // A section whose lines are all commented out must not switch authentication or prompts off.
        for (section, hint) in [
            ("auth", "write `auth: {}` to require keys, or remove it"),
            ("rate_limit", "remove it, or write `rate_limit: {enabled: false}`"),
            (
                "system_prompts",
                "write `system_prompts: {}` to insert those of its folder, or remove it",
            ),
        ] {
            if document.get(section).is_some_and(Value::is_null) {
                problems.push(Problem::new(section, "is empty").hint(hint));
            }
        }
        // Some later problems may only follow from a missing variable, but most do not.
        let (raw, removed) = read::<Raw>(document, &expanded, &mut problems);
        let mut further = Vec::new();
        let plan = plan::plan(&raw?, folder, env, &mut further);
        for mut problem in further {
            problem.path = value::show(&removed.original(&value::parse(&problem.path)));
            problems.push(problem);
        }
        plan
    });
    let mut plan = plan;
    let warnings = plan.iter_mut().flat_map(|p| &mut p.warnings);
    for problem in problems.iter_mut().chain(warnings) {
        problem.line = problem.line.or_else(|| locate::line_of(text, &problem.path));
    }
    problems.sort_by_key(|p| p.line.unwrap_or(0));
    Loaded { plan: plan.filter(|_| problems.is_empty()), problems }
}

/// The URL, without a path, at which the gateway that runs with a file answers health checks from
/// the same machine. Problems of other keys are ignored: a gateway that rejected a change of its
/// file continues with the previous one.
///
/// # Errors
/// If the file has no valid address.
pub fn own_url(path: &Path) -> Result<String, Problem> {
    let text = text(path)?;
    let mut problems = Vec::new();
    let raw = document(without_mark(&text), &mut problems).and_then(|mut document| {
        let expanded = expand(&mut document, &variable, &mut problems);
        read::<Raw>(document, &expanded, &mut problems).0
    });
    let url = raw.as_ref().and_then(plan::own_url);
    url.ok_or_else(|| Problem::new("listen", "the file has no valid address of the gateway"))
}

fn text(path: &Path) -> Result<String, Problem> {
    std::fs::read_to_string(path).map_err(|e| Problem::new("", format!("cannot be read: {e}")))
}

/// A variable of the process's environment.
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

pub(super) fn document(text: &str, problems: &mut Vec<Problem>) -> Option<Value> {
    match serde_yaml::from_str::<Value>(text) {
        Ok(mut document @ Value::Mapping(_)) => {
            if let Err(e) = document.apply_merge() {
                problems.push(Problem::new("", format!("bad merge key: {e}")));
            }
            value::name_keys(&mut document);
            if let Value::Mapping(keys) = &mut document {
                keys.retain(|key, _| key.as_str().is_none_or(|key| !key.starts_with(EXTENSION)));
            }
            Some(document)
        }
        Ok(Value::Null) => Some(Value::Mapping(serde_yaml::Mapping::new())),
        Ok(_) => {
            problems.push(Problem::new("", "the file is not a mapping of keys to values"));
            None
        }
        Err(e) => {
            let text = e.to_string();
            // The error of a number that is too large contains the number, which may be a secret.
            let mut problem = match text.split_once(": invalid type: ") {
                Some((path, _)) if !path.contains(' ') => {
                    Problem::new(path, UNQUOTED).hint("put it in quotes")
                }
                Some(_) => Problem::new("", UNQUOTED).hint("put it in quotes"),
                None => Problem::new("", format!("not YAML: {text}")),
            };
            problem.line = e.location().map(|l| l.line());
            problems.push(problem);
            None
        }
    }
}

/// The JSON Schema of a configuration file.
pub fn schema() -> serde_json::Value {
    let mut schema = schemars::schema_for!(Raw);
    let extensions = serde_json::json!({"^x-": {"description": "A holder of YAML anchors."}});
    schema.insert("patternProperties".to_owned(), extensions);
    schema.to_value()
}
