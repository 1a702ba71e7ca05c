//! Every configuration that the documentation shows is valid.

use std::{fs, path::Path, sync::LazyLock};

use llmproxy::config;
use serde_yaml::{Mapping, Value};

use super::markdown::{Block, Page, documentation, root};

/// What a block of YAML may be for that is no configuration of the gateway: the second word of its
/// fence.
const OTHERS: [&str; 4] = ["kubernetes", "helm", "compose", "prometheus"];

/// What the fragments of the pages take for granted.
const REST: &str = "
backends:
  - {name: vllm-1, url: 'http://vllm-1:8000'}
  - {name: vllm-2, url: 'http://vllm-2:8000'}
  - {name: hosted, url: 'https://api.example.com/v1'}
storage:
  caches: [{name: main, addr: 'redis:6379'}]
  databases: [{name: accounts, driver: postgres, host: db, user: llmproxy, database: accounts}]
api_keys: [{key: sk-first-000000001}]
";

#[test]
fn configurations_are_valid() {
    let secrets = tempfile::tempdir().unwrap();
    let (mut wrong, mut seen) = (Vec::new(), 0);
    for block in documentation().iter().flat_map(Page::blocks) {
        if block.info.split(' ').next() != Some("yaml") {
            continue;
        }
        match own(&block) {
            Ok(None) => {}
            Ok(Some(map)) => {
                seen += 1;
                wrong.extend(
                    problems(map, secrets.path()).iter().map(|p| format!("{}: {p}", block.at)),
                );
            }
            Err(why) => wrong.push(format!("{}: {why}", block.at)),
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(seen > 50, "only {seen} configurations were found: the test has gone blind");
}

/// A block as a configuration of the gateway, whole or a part; `None` if it is none.
pub fn own(block: &Block) -> Result<Option<Mapping>, String> {
    let known = config::schema();
    let map: Value = serde_yaml::from_str(&block.text).map_err(|e| e.to_string())?;
    if let Some(kind) = block.info.split(' ').nth(1) {
        let told = format!("`{kind}` is none of {OTHERS:?}");
        return if OTHERS.contains(&kind) { Ok(None) } else { Err(told) };
    }
    let is_key = |key: &Value| known["properties"].get(key.as_str().unwrap_or_default()).is_some();
    match map {
        Value::Mapping(map) if map.keys().all(is_key) => Ok(Some(map)),
        _ => Err(format!("no configuration: say what it is for, `yaml` and one of {OTHERS:?}")),
    }
}

/// A certificate and its key, as PEM.
static PAIR: LazyLock<(String, String)> = LazyLock::new(|| {
    let made = rcgen::generate_simple_self_signed(vec!["gateway".to_owned()]).unwrap();
    (made.cert.pem(), made.signing_key.serialize_pem())
});

/// What is wrong with a configuration when it is put together with the rest.
fn problems(mut map: Mapping, secrets: &Path) -> Vec<String> {
    let rest: Mapping = serde_yaml::from_str(REST).unwrap();
    let from_elsewhere = map.contains_key("discovery");
    for (key, value) in rest {
        let has_others = key == "backends" && from_elsewhere;
        if !map.contains_key(&key) && !has_others {
            map.insert(key, value);
        }
    }
    let text = serde_yaml::to_string(&map).unwrap();
    for name in text.split("/run/secrets/").skip(1) {
        let name: String = name.chars().take_while(|c| c.is_alphanumeric() || *c == '-').collect();
        fs::write(secrets.join(&name), format!("{name}-0123456789abcdef")).unwrap();
    }
    for name in text.split("/run/tls/").skip(1) {
        // One certificate stands for all, and its key for all keys.
        let name = &name[..name.find(".pem").unwrap()];
        let pem = if name.ends_with("-key") { &PAIR.1 } else { &PAIR.0 };
        fs::write(secrets.join(format!("{name}.pem")), pem).unwrap();
    }
    let text = text.replace("/run/secrets", secrets.to_str().unwrap());
    let text = text.replace("/run/tls", secrets.to_str().unwrap());
    let env = |name: &str| {
        let default = text.contains(&format!("${{{name}:-"));
        (!default).then(|| format!("{name}-0123456789abcdef"))
    };
    let loaded = config::load_text(&text, root(), &env);
    loaded.problems.iter().map(ToString::to_string).collect()
}

#[test]
fn what_needs_a_restart_is_listed() {
    let page = fs::read_to_string(root().join("docs/configure.md")).unwrap();
    let list = page.split("<!-- restart: begin -->").nth(1).unwrap();
    let list = list.split("<!-- restart: end -->").next().unwrap();
    let mut listed: Vec<_> = list.split('`').skip(1).step_by(2).map(str::to_owned).collect();
    let mut marked = marked(&fs::read_to_string(root().join("conf/llmproxy.yaml")).unwrap());
    listed.sort();
    marked.sort();
    assert_eq!(listed, marked);
}

/// The keys of the reference configuration whose comments say `(restart`.
fn marked(text: &str) -> Vec<String> {
    let (mut found, mut waits) = (Vec::new(), false);
    let mut above: Vec<(usize, String)> = Vec::new();
    for line in text.lines() {
        // A key that is commented out is `# key:`, and so indented by two more.
        let bare = line.replacen("# ", "", usize::from(line.trim_start().starts_with("# ")));
        let said = line.contains("(restart");
        let body = bare.split(" #").next().unwrap();
        let key = body.trim_start().split_once(':').map(|(key, _)| key).unwrap_or_default();
        if key.is_empty()
            || key.contains(|c: char| !(c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_'))
        {
            waits |= said;
            continue;
        }
        let indent = body.len() - body.trim_start().len();
        above.retain(|(i, _)| *i < indent);
        above.push((indent, key.to_owned()));
        if said || std::mem::take(&mut waits) {
            let path: Vec<_> = above.iter().map(|(_, key)| key.as_str()).collect();
            found.push(path.join("."));
        }
    }
    found
}
