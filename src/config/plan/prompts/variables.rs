//! What the variables of prompts stand for.

use std::env::consts;

use super::template::{RequestVariable, Value, is_name};
use crate::config::{problem::closest, raw::SystemPrompts};

/// Names of the gateway's own variables.
const OWN: [&str; 12] = [
    "_OS",
    "_ARCH",
    "_HOSTNAME",
    "_USER",
    "_HOME",
    "_SHELL",
    "_LANG",
    "_DATE",
    "_TIME",
    "_DATETIME",
    "_MODEL",
    "_USER_ID",
];

/// Why a name stands for nothing, and what to do about it.
#[derive(Debug, PartialEq)]
pub struct Refused {
    pub message: String,
    pub hint: String,
}

/// What `name` stands for. `env` looks a variable of the environment up.
///
/// # Errors
/// If prompts may not contain it, or if there is no such variable.
pub fn find(
    name: &str,
    section: &SystemPrompts,
    env: &dyn Fn(&str) -> Option<String>,
) -> Result<Value, Refused> {
    if name.starts_with('_') {
        return own(name, section.host_facts, env);
    }
    if let Some(value) = section.variables.get(name) {
        return Ok(Value::Known(Some(value.0.clone())));
    }
    if section.env.iter().any(|allowed| allowed == name) {
        return Ok(Value::Known(env(name)));
    }
    Err(Refused {
        message: format!("`${{{name}}}` is not a variable that prompts may contain"),
        hint: format!(
            "add `{name}` to `system_prompts.env` for a variable of the environment, or to \
             `system_prompts.variables` for one of your own; write `$${{{name}}}` for that text"
        ),
    })
}

fn own(
    name: &str,
    host_facts: bool,
    env: &dyn Fn(&str) -> Option<String>,
) -> Result<Value, Refused> {
    let set = |names: &[&str]| {
        let found = names.iter().find_map(|name| env(name).filter(|value| !value.is_empty()));
        Ok(Value::Known(found))
    };
    let known = |text: &str| Ok(Value::Known(Some(text.to_owned())));
    let of_request = |variable| Ok(Value::OfRequest(variable));
    match name {
        "_OS" => known(os(consts::OS)),
        "_ARCH" => known(architecture(consts::ARCH)),
        "_LANG" => set(&["LANG"]),
        "_DATE" => of_request(RequestVariable::Date),
        "_TIME" => of_request(RequestVariable::Time),
        "_DATETIME" => of_request(RequestVariable::DateTime),
        "_MODEL" => of_request(RequestVariable::Model),
        "_USER_ID" => of_request(RequestVariable::UserId),
        "_HOSTNAME" | "_USER" | "_HOME" | "_SHELL" if !host_facts => Err(Refused {
            message: format!("`${{{name}}}` describes this host to every backend"),
            hint: "write `host_facts: true` in `system_prompts` to allow it".to_owned(),
        }),
        "_HOSTNAME" => Ok(Value::Known(hostname().or_else(|| env("HOSTNAME")))),
        "_USER" => set(&["USER", "LOGNAME"]),
        "_HOME" => set(&["HOME"]),
        "_SHELL" => set(&["SHELL"]),
        _ => Err(Refused {
            message: format!("`${{{name}}}` does not exist: names with `_` are the gateway's own"),
            hint: match closest(name, OWN) {
                Some(similar) => format!("did you mean `${{{similar}}}`?"),
                None => format!("known are {}", OWN.join(", ")),
            },
        }),
    }
}

/// The name of this host, where the system says it in a file.
fn hostname() -> Option<String> {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").ok()?;
    Some(name.trim().to_owned()).filter(|name| !name.is_empty())
}

/// An operating system under Go's name.
fn os(name: &'static str) -> &'static str {
    if name == "macos" { "darwin" } else { name }
}

/// An architecture under Go's name.
fn architecture(name: &'static str) -> &'static str {
    match name {
        "x86_64" => "amd64",
        "x86" => "386",
        "aarch64" => "arm64",
        "loongarch64" => "loong64",
        "powerpc64" if cfg!(target_endian = "little") => "ppc64le",
        "powerpc64" => "ppc64",
        other => other,
    }
}

/// Names in `env` and `variables` that no prompt can use: their paths, and why.
pub fn unusable_names(section: &SystemPrompts) -> Vec<(String, String)> {
    let env = section.env.iter().enumerate();
    let env = env.map(|(i, name)| (format!("system_prompts.env[{i}]"), name));
    let own = section.variables.keys();
    let own = own.map(|name| (format!("system_prompts.variables.{name}"), name));
    let why = |name: &str| match name.as_bytes() {
        _ if !is_name(name) => Some("is not a name of letters, digits and `_`"),
        [b'_', ..] => Some("begins with `_`, as only the gateway's own names do"),
        _ => None,
    };
    let all = env.chain(own);
    all.filter_map(|(at, name)| Some((at, format!("`{name}` {}", why(name)?)))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::raw::Word;

    fn env(name: &str) -> Option<String> {
        let value = match name {
            "LANG" => "de_DE.UTF-8",
            "LOGNAME" => "operator",
            "USER" => "",
            "HOME" => "/home/operator",
            "SHELL" => "/bin/sh",
            "REGION" => "eu-1",
            "SECRET" => "s",
            _ => return None,
        };
        Some(value.to_owned())
    }

    fn section() -> SystemPrompts {
        SystemPrompts {
            env: vec!["REGION".to_owned(), "MISSING".to_owned()],
            variables: [("COMPANY".to_owned(), Word("Example".to_owned()))].into(),
            host_facts: true,
            ..SystemPrompts::default()
        }
    }

    fn known(text: &str) -> Result<Value, Refused> {
        Ok(Value::Known(Some(text.to_owned())))
    }

    #[test]
    fn own_variables_have_gos_names() {
        let find = |name: &str| find(name, &section(), &env);
        assert_eq!(find("_OS"), known(os(consts::OS)));
        assert_eq!(find("_ARCH"), known(architecture(consts::ARCH)));
        assert_eq!(find("_LANG"), known("de_DE.UTF-8"));
        assert_eq!(find("_USER"), known("operator"));
        assert_eq!(find("_HOME"), known("/home/operator"));
        assert_eq!(find("_SHELL"), known("/bin/sh"));
        assert!(matches!(find("_HOSTNAME"), Ok(Value::Known(Some(name))) if !name.is_empty()));
        for (name, variable) in [
            ("_DATE", RequestVariable::Date),
            ("_TIME", RequestVariable::Time),
            ("_DATETIME", RequestVariable::DateTime),
            ("_MODEL", RequestVariable::Model),
            ("_USER_ID", RequestVariable::UserId),
        ] {
            assert_eq!(find(name), Ok(Value::OfRequest(variable)));
        }
        for name in OWN {
            assert!(find(name).is_ok(), "{name}");
        }
        assert_eq!([os("linux"), os("macos")], ["linux", "darwin"]);
        let names = ["x86_64", "aarch64", "riscv64", "x86"].map(architecture);
        assert_eq!(names, ["amd64", "arm64", "riscv64", "386"]);
    }

    #[test]
    fn only_what_is_allowed_is_read() {
        assert_eq!(find("REGION", &section(), &env), known("eu-1"));
        assert_eq!(find("MISSING", &section(), &env), Ok(Value::Known(None)));
        assert_eq!(find("COMPANY", &section(), &env), known("Example"));
        let refused = find("SECRET", &section(), &env).unwrap_err();
        assert!(refused.hint.contains("add `SECRET` to `system_prompts.env`"), "{refused:?}");
        let closed = SystemPrompts { host_facts: false, ..section() };
        for name in ["_HOSTNAME", "_USER", "_HOME", "_SHELL"] {
            let refused = find(name, &closed, &env).unwrap_err();
            assert!(refused.hint.contains("host_facts: true"), "{refused:?}");
        }
        let refused = find("_DAET", &section(), &env).unwrap_err();
        assert_eq!(refused.hint, "did you mean `${_DATE}`?");
    }

    #[test]
    fn names_that_cannot_be_used_are_found() {
        let mut section = section();
        assert_eq!(unusable_names(&section), []);
        section.env.push("_HOME".to_owned());
        section.variables.insert("a b".to_owned(), Word(String::new()));
        let paths: Vec<_> = unusable_names(&section).into_iter().map(|(at, _)| at).collect();
        assert_eq!(paths, ["system_prompts.env[2]", "system_prompts.variables.a b"]);
    }
}
