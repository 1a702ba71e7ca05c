//! The header of a prompt's file: YAML between two lines `---` at its start, or YAML from its start up to
//! one line `---`. The same line is a rule in Markdown, so that only what reads as a header is one.

use serde_yaml::Value;

use crate::{
    base::without_mark,
    config::{
        problem::{Problem, closest},
        raw::PromptSettings,
        read::read,
    },
};

/// The keys of a header.
const KEYS: [&str; 6] =
    ["position", "separator", "custom_separator", "models", "enabled", "priority"];

/// How a line begins that ends a header.
const FENCE: &str = "---";

/// A file, read.
#[derive(Debug, Default)]
pub struct PromptFile {
    pub settings: PromptSettings,
    /// The text after the header, without white space around it.
    pub text: String,
    /// What is wrong with the header; paths start at it.
    pub problems: Vec<Problem>,
    /// The text begins with something that may have been meant as a header.
    pub doubt: Option<String>,
}

/// Reads a file.
pub fn parse(file: &str) -> PromptFile {
    let file = without_mark(file).trim();
    match split(file) {
        Split::Header { yaml, text } => {
            let mut found = header(yaml);
            found.text = text.trim().to_owned();
            found
        }
        Split::Text { doubt } => {
            PromptFile { text: file.to_owned(), doubt, ..PromptFile::default() }
        }
    }
}

/// Where a header ends, if there is one.
enum Split<'a> {
    Header { yaml: &'a str, text: &'a str },
    Text { doubt: Option<String> },
}

fn split(file: &str) -> Split<'_> {
    let first = file.lines().next().unwrap_or_default();
    let fenced = first.starts_with(FENCE) && first.trim_end().chars().all(|c| c == '-');
    let rest = if fenced { file[first.len()..].trim_start_matches(['\r', '\n']) } else { file };
    let Some((yaml, text)) = at_fence(rest) else { return Split::Text { doubt: None } };
    let header = Split::Header { yaml, text };
    let has_known_key = yaml.lines().any(begins_with_key);
    match serde_yaml::from_str::<Value>(yaml) {
        // Two fences with nothing between them: the text may then begin with anything.
        Ok(Value::Null) if fenced && yaml.trim().is_empty() => header,
        // A paragraph like `Note: be brief` is a mapping as well.
        Ok(Value::Mapping(keys)) if fenced && !keys.is_empty() => header,
        Ok(Value::Mapping(_)) if has_known_key => header,
        Ok(Value::Mapping(keys)) => Split::Text { doubt: doubt(&keys) },
        Err(_) if fenced && has_known_key => header,
        Err(_) if begins_with_key(first) => header,
        _ => Split::Text { doubt: None },
    }
}

/// What stands before and after the first line that begins with a fence.
fn at_fence(text: &str) -> Option<(&str, &str)> {
    let mut at = 0;
    for line in text.split_inclusive('\n') {
        if line.starts_with(FENCE) {
            return Some((&text[..at], &text[at + line.len()..]));
        }
        at += line.len();
    }
    None
}

/// Whether a line of YAML begins with a key of a header.
fn begins_with_key(line: &str) -> bool {
    line.split_once(':').is_some_and(|(key, _)| KEYS.contains(&key.trim_end()))
}

/// Keys that none of a header is, but that resemble one.
fn doubt(keys: &serde_yaml::Mapping) -> Option<String> {
    let similar = |key: &str| Some((key.to_owned(), closest(key, KEYS)?));
    let (key, known) = keys.keys().filter_map(Value::as_str).find_map(similar)?;
    Some(format!(
        "begins like a header, but `{key}` is no key of one: the lines are part of the text (did you mean \
         `{known}`?)"
    ))
}

fn header(yaml: &str) -> PromptFile {
    let mut found = PromptFile::default();
    match serde_yaml::from_str::<Value>(yaml) {
        Ok(Value::Null) => {}
        Ok(document) => {
            let (settings, _) = read(document, &[], &mut found.problems);
            found.settings = settings.unwrap_or_default();
        }
        Err(why) => {
            let problem = Problem::new("", format!("the header is not YAML: {why}"));
            found.problems.push(problem);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{choices::PromptPosition, raw::PromptSeparator};

    fn whole(file: &str) {
        let found = parse(file);
        assert_eq!(found.text, file.trim(), "{file}");
        assert_eq!(found.settings, PromptSettings::default(), "{file}");
        assert!(found.problems.is_empty(), "{file}: {:?}", found.problems);
    }

    const KEYS_AND_VALUES: &str = "# A comment.\nposition: after\nseparator: custom\ncustom_separator: \"\\n***\\n\"\nmodels:\n  - gpt-*\n  - \"*\"\nenabled: false\npriority: 7\n";

    #[test]
    fn both_forms_of_a_header_are_read() {
        let settings = PromptSettings {
            position: Some(PromptPosition::After),
            separator: Some(PromptSeparator::Custom),
            custom_separator: Some("\n***\n".to_owned()),
            models: Some(vec!["gpt-*".to_owned(), "*".to_owned()]),
            enabled: Some(false),
            priority: Some(7),
        };
        let text = "Be brief.\n---\nBe kind.";
        for file in [
            format!("---\n{KEYS_AND_VALUES}---\n{text}\n"),
            format!("{KEYS_AND_VALUES}---\n{text}"),
            format!("\u{feff}---  \n{KEYS_AND_VALUES}--- end of the header\n\n\n{text}\n\n"),
            format!("\u{feff}\n{KEYS_AND_VALUES}-----\n{text}"),
            format!("---\n{KEYS_AND_VALUES}---\n{text}").replace('\n', "\r\n"),
        ] {
            let found = parse(&file);
            assert_eq!(found.settings, settings, "{file}");
            assert_eq!(found.text.replace('\r', ""), text, "{file}");
            assert!(found.problems.is_empty() && found.doubt.is_none(), "{file}: {found:?}");
        }
    }

    #[test]
    fn a_header_may_have_any_of_its_keys() {
        for (name, separator) in [
            ("newline", PromptSeparator::Newline),
            ("double-newline", PromptSeparator::DoubleNewline),
            ("none", PromptSeparator::None),
            ("custom", PromptSeparator::Custom),
        ] {
            let found = parse(&format!("separator: {name}\n---\nx"));
            assert_eq!(found.settings.separator, Some(separator));
            assert_eq!((found.settings.priority, found.text.as_str()), (None, "x"));
        }
        for empty in ["---\n---\nx", "---\n\n---\nx"] {
            assert_eq!(parse(empty).text, "x");
        }
        assert_eq!(parse("---\n---\nmodels: three\n---\nx").text, "models: three\n---\nx");
        assert_eq!(parse("priority: 1\n---").text, "");
    }

    #[test]
    fn a_rule_of_markdown_is_no_header() {
        for file in [
            "",
            "Be brief.",
            "Be brief.\n\n---\n\nBe kind.\n",
            "# Rules\n---\nBe brief.",
            "---\nBe brief.\n---\nBe kind.",
            "---\n# Rules\n---\nBe brief.",
            "---\nBe brief.",
            "---",
            "- one\n- two\n---\nthree",
            "Rules: be brief\n---\nBe kind.",
            "Note: this: is no YAML\n---\nx",
            "{\"a\": 1}\n---\nx",
            "--- position: after\n---\nx",
            "Our: models: three\nmodels: many\n---\nx",
        ] {
            whole(file);
        }
    }

    #[test]
    fn a_wrong_header_is_a_problem() {
        for (file, expected) in [
            (
                "---\npositon: after\n---\nx",
                "positon: unknown key `positon` (hint: did you mean `position`?)",
            ),
            (
                "---\ntitle: x\n---\nx",
                "title: unknown key `title` (hint: known keys: position, separator, custom_separator, models, enabled, priority)",
            ),
            ("position: after\ntitle: x\n---\nx", "title: unknown key `title`"),
            ("position: middle\n---\nx", "position: must be"),
            ("enabled: yes\n---\nx", "enabled: "),
            ("priority: first\n---\nx", "priority: "),
            ("---\nmodels: [*]\n---\nx", "the header is not YAML"),
            ("models: [*]\n---\nx", "the header is not YAML"),
        ] {
            let found = parse(file);
            let problems: Vec<_> = found.problems.iter().map(ToString::to_string).collect();
            assert!(problems[0].starts_with(expected), "{file}: {problems:?}");
            assert_eq!(found.text, "x", "{file}");
        }
        let two = parse("---\npositon: after\nenabled: 3\npriority: 5\n---\nx");
        assert_eq!((two.problems.len(), two.settings.priority), (2, Some(5)));
    }

    #[test]
    fn what_may_have_been_meant_as_a_header_is_said() {
        let found = parse("Position: after\n---\nx");
        assert_eq!(found.text, "Position: after\n---\nx");
        assert!(found.doubt.unwrap().contains("did you mean `position`?"));
        assert!(parse("Rules of the house: be kind\n---\nx").doubt.is_none());
    }

    #[test]
    fn the_keys_are_those_that_are_read() {
        let schema = schemars::schema_for!(PromptSettings).to_value();
        let mut read: Vec<_> = schema["properties"].as_object().unwrap().keys().collect();
        let mut known = KEYS.to_vec();
        read.sort();
        known.sort_unstable();
        assert_eq!(read, known);
    }
}
