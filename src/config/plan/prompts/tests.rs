//! Tests of `system_prompts` as part of a configuration.

use std::{fs, path::Path};

use super::PromptsPlan;
use crate::config::{Loaded, choices::PromptPosition, load_text, plan::Piece};

const BACKENDS: &str = "backends: [{url: \"http://x\"}]\n";

fn env(name: &str) -> Option<String> {
    ["REGION", "SECRET"].contains(&name).then(|| format!("the {name}"))
}

fn load(folder: &Path, section: &str) -> Loaded {
    load_text(&format!("{BACKENDS}{section}\n"), folder, &env)
}

fn plan(folder: &Path, section: &str) -> PromptsPlan {
    let loaded = load(folder, section);
    loaded.plan.unwrap_or_else(|| panic!("{section}: {:?}", loaded.problems)).prompts
}

fn problems(folder: &Path, section: &str) -> Vec<String> {
    load(folder, section).problems.iter().map(ToString::to_string).collect()
}

fn warnings(folder: &Path, section: &str) -> Vec<String> {
    let loaded = load(folder, section);
    let plan = loaded.plan.unwrap_or_else(|| panic!("{section}: {:?}", loaded.problems));
    plan.warnings.iter().map(ToString::to_string).collect()
}

fn names(plan: &PromptsPlan) -> Vec<&str> {
    plan.prompts.iter().map(|prompt| &*prompt.name).collect()
}

/// A folder with these files.
fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in files {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    folder
}

#[test]
fn prompts_stand_by_priority_and_path() {
    let folder = folder(&[
        ("system_prompt.md", "of the file"),
        ("system_prompts/b.md", "b"),
        ("system_prompts/a.txt", "priority: 100\n---\na"),
        ("system_prompts/z.md", "---\npriority: -1\n---\nz"),
        ("system_prompts/off.md", "enabled: false\n---\n${NOT_ALLOWED}"),
        ("system_prompts/notes.yaml", "no prompt"),
        ("other/late.md", "---\npriority: 500\nposition: after\nmodels: [\"a\"]\n---\nlate"),
    ]);
    let section = "system_prompts:
  prompts:
    - {text: first, priority: 0, name: house rules}
    - {text: listed}
    - {file: other/late.md, models: [\"b*\"]}
    - {file: system_prompts/b.md, priority: 101}
    - {text: never, enabled: false}";
    let plan = plan(folder.path(), section);
    assert_eq!(
        names(&plan),
        [
            "system_prompts/z.md",
            "house rules",
            "system_prompt.md",
            "system_prompts/a.txt",
            "prompts[1]",
            "system_prompts/b.md",
            "other/late.md"
        ]
    );
    assert_eq!(plan.prompts[0].text, [Piece::Text("z".to_owned())]);
    let late = plan.prompts.last().unwrap();
    assert_eq!((late.position, late.separator.as_str()), (PromptPosition::After, "\n\n"));
    assert!(late.models[0].matches("b1") && !late.models[0].matches("a"));
    assert_eq!(plan.folder, Some(folder.path().join("system_prompts")));
}

#[test]
fn without_the_section_there_are_no_prompts() {
    let folder = folder(&[("system_prompts/a.md", "a ${NOT_ALLOWED}")]);
    for section in ["", "system_prompts: {enabled: false, path: missing, prompts: [{}]}"] {
        let plan = plan(folder.path(), section);
        assert!(plan.prompts.is_empty() && plan.folder.is_none(), "{section}");
    }
    assert!(problems(folder.path(), "system_prompts:")[0].contains("is empty"));
}

#[test]
fn all_files_are_watched() {
    let folder = folder(&[("more/a.md", "a"), ("x.md", "x")]);
    let section = "system_prompts: {path: more, prompts: [{file: x.md}]}";
    let files = load(folder.path(), section).plan.unwrap().files;
    // A file that is not there yet is watched as well.
    for name in ["system_prompt.md", "more/a.md", "x.md"] {
        assert!(files.contains(&folder.path().join(name)), "{name}: {files:?}");
    }
}

#[test]
fn separators_have_names() {
    let folder = folder(&[]);
    for (settings, separator) in [
        ("", "\n\n"),
        (", separator: newline", "\n"),
        (", separator: double-newline", "\n\n"),
        (", separator: none", ""),
        (", separator: custom, custom_separator: \" -- \"", " -- "),
        (", custom_separator: \"\"", "\n\n"),
    ] {
        let section = format!("system_prompts: {{prompts: [{{text: x{settings}}}]}}");
        assert_eq!(plan(folder.path(), &section).prompts[0].separator, separator, "{settings}");
    }
}

#[test]
fn variables_are_those_of_prompts() {
    let folder =
        folder(&[("system_prompts/a.md", "${REGION}, ${COMPANY}, ${UNSET:-none}, $${REGION}")]);
    let section = "system_prompts:
  env: [REGION, UNSET]
  variables: {COMPANY: \"${SECRET}\", FLOOR: 7}
  prompts: [{text: \"${REGION} ${FLOOR}\"}]";
    let plan = plan(folder.path(), section);
    let texts: Vec<_> = plan.prompts.iter().map(|prompt| prompt.text.clone()).collect();
    let text = |text: &str| vec![Piece::Text(text.to_owned())];
    assert_eq!(texts, [text("the REGION, the SECRET, none, ${REGION}"), text("the REGION 7")]);
}

#[test]
fn every_problem_is_told_with_its_file() {
    let folder = folder(&[
        ("system_prompts/a.md", "---\npositon: after\nenabled: 3\n---\nx"),
        ("system_prompts/b.md", "${SECRET} ${_HOSTNAME} ${_DAET}"),
    ]);
    let section = "system_prompts:
  file: missing.md
  env: [_X]
  time_zone: Nowhere/City
  prompts:
    - {text: x, file: y}
    - {name: x}
    - {text: x, separator: custom}
    - {text: x, custom_separator: y}
    - {text: x, models: []}
    - {text: x, position: middle}";
    let told = problems(folder.path(), section);
    for expected in [
        "system_prompts.file: cannot read",
        "system_prompts.env[0]: `_X` begins with `_`",
        "system_prompts.time_zone: the time zone `Nowhere/City` is not known here",
        "system_prompts/a.md: positon: unknown key `positon` (hint: did you mean `position`?)",
        "system_prompts/a.md: enabled: ",
        "system_prompts/b.md: `${SECRET}` is not a variable that prompts may contain (hint: add `SECRET` to `system_prompts.env`",
        "system_prompts/b.md: `${_HOSTNAME}` describes this host to every backend (hint: write `host_facts: true`",
        "system_prompts/b.md: `${_DAET}` does not exist: names with `_` are the gateway's own (hint: did you mean `${_DATE}`?)",
        "system_prompts.prompts[0]: has both `text` and `file`",
        "system_prompts.prompts[1]: has no text",
        "system_prompts.prompts[2]: prompts[2]: has no `custom_separator`",
        "system_prompts.prompts[3]: prompts[3]: its `custom_separator` has no effect",
        "system_prompts.prompts[4]: prompts[4]: `models` is empty",
        "system_prompts.prompts[5].position: must be",
    ] {
        assert!(told.iter().any(|problem| problem.contains(expected)), "{expected}: {told:#?}");
    }
    assert_eq!(told.len(), 14, "{told:#?}");
    let told = problems(folder.path(), "system_prompts: {path: missing}");
    assert!(told[0].contains("system_prompts.path: cannot read the folder"), "{told:?}");
}

#[test]
fn what_may_be_unintended_is_warned_about() {
    let folder = folder(&[]);
    let warned = |section: &str| warnings(folder.path(), section);
    let text = |text: &str| {
        warned(&format!("system_prompts: {{time_zone: UTC, prompts: [{{text: \"{text}\"}}]}}"))
    };
    assert!(warned("system_prompts: {}")[0].contains("there are no prompts"));
    assert!(text("  ")[0].contains("is empty"));
    for clock in ["${_TIME}", "It is ${_DATETIME:-now}."] {
        assert!(text(clock)[0].contains("prefix caches"), "{clock}");
    }
    for calm in ["${_DATE}", "${_MODEL} ${_USER_ID}", "_TIME", "$${_TIME}"] {
        assert_eq!(text(calm), [""; 0], "{calm}");
    }
}
