//! What the documentation names exists: commands and flags, metrics, keys of the configuration.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    process::Command,
};

use llmproxy::config;
use serde_json::Value;

use super::{
    markdown::{Page, documentation, pages, root},
    shell,
};
use crate::support::{Gateway, Receiver, chat, sim};

#[test]
fn commands_and_flags_exist() {
    let mut help = Help::default();
    let (mut wrong, mut seen) = (BTreeSet::new(), 0);
    for page in pages() {
        let blocks = page.blocks().into_iter().filter(|b| b.info == "sh");
        let lines = blocks.flat_map(|b| shell::commands(&b.text)).map(|c| c.text);
        for text in lines.chain(page.spans()) {
            let Some(rest) = text.strip_prefix("llmproxy ") else { continue };
            seen += 1;
            if let Err(why) = help.knows(rest) {
                wrong.insert(format!("{}: `{text}`: {why}", page.name));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(seen > 50, "only {seen} commands were found: the test has gone blind");
}

/// What `--help` says, by subcommand.
#[derive(Default)]
struct Help(BTreeMap<String, String>);

impl Help {
    fn of(&mut self, path: &[&str]) -> &str {
        self.0.entry(path.join(" ")).or_insert_with(|| {
            let run =
                Command::new(env!("CARGO_BIN_EXE_llmproxy")).args(path).arg("--help").output();
            String::from_utf8(run.unwrap().stdout).unwrap()
        })
    }

    /// Whether the words after `llmproxy` are subcommands and flags.
    fn knows(&mut self, rest: &str) -> Result<(), String> {
        let words = rest
            .split_whitespace()
            .take_while(|w| !["|", ">", "&", "#", "&&", ";"].contains(w) && !w.contains("$("));
        let mut path: Vec<&str> = Vec::new();
        let mut begun = false;
        for word in words {
            if let Some(flag) = word.strip_prefix('-') {
                begun = true;
                let flag = format!("-{}", flag.split('=').next().unwrap());
                let known = |c: char| !(c.is_alphanumeric() || c == '-');
                if !self.of(&path).split(known).any(|word| word == flag) {
                    return Err(format!("there is no {flag}"));
                }
                continue;
            }
            let help = self.of(&path);
            let is_command = |line: &str| line.split_whitespace().next() == Some(word);
            let commands =
                help.split("\nCommands:\n").nth(1).map(|c| c.split("\n\n").next().unwrap());
            match commands {
                Some(all) if all.lines().any(is_command) && !begun => path.push(word),
                Some(_) if !begun => return Err(format!("there is no {word}")),
                _ => begun = true,
            }
        }
        Ok(())
    }
}

#[tokio::test]
async fn metrics_exist_and_are_all_told() {
    let listed = metrics_in(&fs::read_to_string(root().join("docs/metrics.md")).unwrap());
    // `llmproxy_usage_spool` may stand for all that begin so.
    let known = |name: &String| {
        let several = format!("{name}_");
        listed.contains(name) || listed.iter().any(|listed| listed.starts_with(&several))
    };
    for page in pages() {
        let all = metrics_in(&page.text);
        let unknown: Vec<_> = all.iter().filter(|name| !known(name)).collect();
        assert!(unknown.is_empty(), "{}: {unknown:?} are not in docs/metrics.md", page.name);
    }
    let files =
        fs::read_dir(root().join("src/telemetry")).unwrap().map(|file| file.unwrap().path());
    let declared: BTreeSet<_> =
        files.flat_map(|file| quoted(&fs::read_to_string(file).unwrap())).collect();
    let ours = listed.iter().filter(|name| name.starts_with("llmproxy_")).cloned().collect();
    assert_eq!(declared, ours, "what is declared, and what docs/metrics.md has");
    let (sim, receiver) = (sim().await, Receiver::start().await);
    let gateway = Gateway::before(&[sim.url()], &receiver.hook()).await;
    gateway.client().await.ask("/v1/chat/completions", chat(true)).await;
    let answer = gateway.client().await.get("/metrics").await;
    let text = answer.text();
    let scraped = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next());
    let untold: Vec<_> = scraped.filter(|name| !listed.contains(*name)).collect();
    assert!(untold.is_empty(), "{untold:?} are not in docs/metrics.md");
}

/// The names of metrics in a text.
fn metrics_in(text: &str) -> BTreeSet<String> {
    let word = |c: char| !(c.is_ascii_lowercase() || c == '_');
    let ours = |name: &&str| name.starts_with("llmproxy_") || name.starts_with("process_");
    let whole = |name: &&str| ours(name) && !name.ends_with('_');
    // Of a histogram Prometheus knows three.
    let plain = |name: &str| {
        let parts = ["_bucket", "_sum", "_count"];
        parts.iter().find_map(|part| name.strip_suffix(part)).unwrap_or(name).to_owned()
    };
    text.split(word).filter(whole).map(plain).collect()
}

/// The names that stand in quotes.
fn quoted(text: &str) -> BTreeSet<String> {
    let strings = text.split('"').skip(1).step_by(2);
    strings.filter(|s| s.starts_with("llmproxy_")).map(str::to_owned).collect()
}

#[test]
fn keys_of_the_configuration_exist() {
    let schema = serde_json::from_str(&config::schema().to_string()).unwrap();
    let (mut wrong, mut seen) = (BTreeSet::new(), 0);
    for page in documentation() {
        for path in page.spans().iter().filter_map(|span| key_path(&schema, span)) {
            seen += 1;
            if !leads(&schema, &schema, &path) {
                wrong.insert(format!("{}: {}", page.name, path.join(".")));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(seen > 100, "only {seen} keys were found: the test has gone blind");
}

/// A span that is a path to a key: `usage.spool.keep`, `models.*.routes[].model`, `routing: ...` is
/// none.
fn key_path(schema: &Value, span: &str) -> Option<Vec<String>> {
    let span = span.split(": ").next().unwrap();
    let steps: Vec<String> = span.replace("[]", "").split('.').map(str::to_owned).collect();
    let word = |step: &String| {
        !step.is_empty()
            && step.chars().all(|c| c.is_ascii_lowercase() || "_0123456789*".contains(c))
    };
    // `usage.db` is a file.
    let file = ["db", "jsonl", "yaml", "lua", "log", "md", "rs"];
    let file = steps.iter().any(|step| file.contains(&step.as_str()));
    let ours = schema["properties"].get(&steps[0]).is_some();
    (steps.len() > 1 && ours && !file && steps.iter().all(word)).then_some(steps)
}

/// Whether a path leads to a key from here.
fn leads(schema: &Value, here: &Value, path: &[String]) -> bool {
    let Some((step, rest)) = path.split_first() else { return true };
    if let Some(name) = here["$ref"].as_str() {
        let name = name.strip_prefix("#/$defs/").unwrap();
        return leads(schema, &schema["$defs"][name], path);
    }
    let any = ["anyOf", "oneOf", "allOf"].iter().filter_map(|key| here[key].as_array()).flatten();
    let below = any.chain(here.get("items"));
    let next = match step.as_str() {
        "*" => here.get("additionalProperties"),
        step => here["properties"].get(step),
    };
    next.is_some_and(|next| leads(schema, next, rest))
        || below.into_iter().any(|b| leads(schema, b, path))
}

#[test]
fn every_page_is_in_the_list() {
    let list = Page {
        name: "docs/README.md".to_owned(),
        text: fs::read_to_string(root().join("docs/README.md")).unwrap(),
    };
    let linked = list.links();
    for page in documentation() {
        let name = page.name.strip_prefix("docs/").unwrap_or_default();
        let missing = !name.is_empty() && name != "README.md" && !linked.iter().any(|l| l == name);
        assert!(!missing, "{name} is not in docs/README.md");
    }
}
