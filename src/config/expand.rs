//! `${VAR}`, `${VAR:-default}` and `$$` in the strings of a configuration.

use serde_yaml::Value;

use super::{
    problem::Problem,
    value::{self, Step},
};

/// Replaces variables in every string of the document; `env` looks one up. Returns the paths of
/// the strings that changed.
pub fn expand(
    document: &mut Value,
    env: &dyn Fn(&str) -> Option<String>,
    problems: &mut Vec<Problem>,
) -> Vec<String> {
    let mut changed = Vec::new();
    walk(document, &mut Vec::new(), &mut |text, path| {
        if !text.contains('$') || has_own_variables(path) {
            return;
        }
        match expand_text(text, env) {
            Ok(new) => {
                if new != *text {
                    changed.push(value::show(path));
                }
                *text = new;
            }
            Err(missing) => problems.push(missing.problem(value::show(path))),
        }
    });
    changed
}

/// Whether the variables of a text are not those of this file: the text of a prompt.
fn has_own_variables(path: &[Step]) -> bool {
    let [Step::Key(section), Step::Key(list), Step::Index(_), Step::Key(key)] = path else {
        return false;
    };
    [section.as_str(), list, key] == ["system_prompts", "prompts", "text"]
}

fn walk(node: &mut Value, path: &mut Vec<Step>, visit: &mut impl FnMut(&mut String, &[Step])) {
    match node {
        Value::String(text) => visit(text, path),
        Value::Sequence(items) => {
            for (i, item) in items.iter_mut().enumerate() {
                path.push(Step::Index(i));
                walk(item, path, visit);
                path.pop();
            }
        }
        Value::Mapping(map) => {
            for (key, item) in map.iter_mut() {
                path.push(Step::Key(key.as_str().unwrap_or("?").to_owned()));
                walk(item, path, visit);
                path.pop();
            }
        }
        _ => {}
    }
}

#[derive(Debug, PartialEq)]
enum Bad {
    /// The variable of this name.
    Missing(String),
    /// The text is not reported: it may be part of a password that contains `${`.
    Malformed,
    Unclosed,
}

const FORMS: &str = "write ${NAME}, ${NAME:-default}, or $$ for a dollar sign";

impl Bad {
    fn problem(self, path: String) -> Problem {
        match self {
            Self::Missing(name) => {
                Problem::new(path, format!("the environment variable `{name}` is not set"))
                    .hint(format!("set it, or give a default: ${{{name}:-value}}"))
            }
            Self::Malformed => {
                Problem::new(path, "has a `${...}` that is not a variable").hint(FORMS)
            }
            Self::Unclosed => Problem::new(path, "has a `${` without a `}`").hint(FORMS),
        }
    }
}

fn expand_text(text: &str, env: &dyn Fn(&str) -> Option<String>) -> Result<String, Bad> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(dollar) = rest.find('$') {
        out.push_str(&rest[..dollar]);
        rest = &rest[dollar + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if let Some(inner) = rest.strip_prefix('{') {
            let end = inner.find('}').ok_or(Bad::Unclosed)?;
            out.push_str(&variable(&inner[..end], env)?);
            rest = &inner[end + 1..];
        } else {
            // Any other dollar stays: passwords and regular expressions contain them.
            out.push('$');
        }
    }
    out.push_str(rest);
    Ok(out)
}

fn variable(inner: &str, env: &dyn Fn(&str) -> Option<String>) -> Result<String, Bad> {
    let (name, default) = match inner.split_once(":-") {
        Some((name, default)) => (name, Some(default)),
        None => (inner, None),
    };
    let legal = |c: char| c.is_ascii_alphanumeric() || c == '_';
    if name.is_empty() || !name.chars().all(legal) || name.starts_with(|c: char| c.is_ascii_digit())
    {
        return Err(Bad::Malformed);
    }
    // As in a shell, `:-` also replaces an empty value.
    match (env(name), default) {
        (Some(found), Some(default)) if found.is_empty() => Ok(default.to_owned()),
        (Some(found), _) => Ok(found),
        (None, Some(default)) => Ok(default.to_owned()),
        (None, None) => Err(Bad::Missing(name.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env(name: &str) -> Option<String> {
        match name {
            "KEY" => Some("secret".to_owned()),
            "EMPTY" => Some(String::new()),
            _ => None,
        }
    }

    #[test]
    fn expands() {
        for (text, expected) in [
            ("a${KEY}b", "asecretb"),
            ("${NONE:-x}${EMPTY:-y}${KEY:-z}", "xysecret"),
            ("${EMPTY}", ""),
            ("${NONE:-}", ""),
            ("$$KEY $${KEY}", "$KEY ${KEY}"),
            ("100$ and $x", "100$ and $x"),
        ] {
            assert_eq!(expand_text(text, &env).unwrap(), expected);
        }
        assert_eq!(expand_text("${NONE}", &env), Err(Bad::Missing("NONE".to_owned())));
        assert_eq!(expand_text("${KEY", &env), Err(Bad::Unclosed));
        assert_eq!(expand_text("${K-Y}", &env), Err(Bad::Malformed));
    }

    #[test]
    fn an_expansion_is_not_expanded_again() {
        let env = |_: &str| Some("${OTHER}".to_owned());
        assert_eq!(expand_text("${KEY}", &env).unwrap(), "${OTHER}");
    }
}
