//! The floors of the house, as `lib.rs` draws them: no module imports one of its own floor or
//! above.

use std::{fs, path::Path};

/// Modules and their floors, as in the table of `lib.rs`. `base` is below its neighbours.
const FLOORS: [(&str, u32); 22] = [
    ("base", 0),
    ("lua", 1),
    ("store", 1),
    ("telemetry", 1),
    ("wire", 1),
    ("dialect", 2),
    ("config", 3),
    ("sim", 3),
    ("auth", 4),
    ("balance", 4),
    ("limit", 4),
    ("route", 4),
    ("usage", 4),
    ("runtime", 5),
    ("admin", 6),
    ("gateway", 6),
    ("listener", 6),
    ("tasks", 6),
    ("server", 7),
    ("demo", 8),
    ("cli", 9),
    ("main", 10),
];

fn floor(module: &str) -> u32 {
    let known = FLOORS.iter().find(|(name, _)| *name == module);
    known.unwrap_or_else(|| panic!("`{module}` stands on no floor")).1
}

/// Every `crate::module` that a file names outside of its tests and comments.
fn imports(text: &str) -> Vec<String> {
    let code = text.split("\n#[cfg(test)]\nmod tests").next().unwrap();
    let code: String = code
        .lines()
        .filter(|l| !l.trim_start().starts_with("//"))
        .map(|l| format!("{l}\n"))
        .collect();
    let mut found = Vec::new();
    for rest in code.split("crate::").skip(1) {
        if let Some(group) = rest.strip_prefix('{') {
            found.extend(heads(group));
        } else {
            found.push(word(rest));
        }
    }
    found
}

fn word(text: &str) -> String {
    text.trim_start().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
}

/// The first words of a group `a::b, c::{d, e}, f}`.
fn heads(group: &str) -> Vec<String> {
    let (mut depth, mut start, mut heads) = (0, 0, Vec::new());
    for (i, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => {
                heads.push(word(&group[start..i]));
                break;
            }
            '}' => depth -= 1,
            ',' if depth == 0 => {
                heads.push(word(&group[start..i]));
                start = i + 1;
            }
            _ => {}
        }
    }
    heads.retain(|h| !h.is_empty());
    heads
}

fn files(folder: &Path, found: &mut Vec<std::path::PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
}

#[test]
fn imports_go_down() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut all = Vec::new();
    files(&source, &mut all);
    let (mut wrong, mut seen) = (Vec::new(), 0);
    for path in &all {
        let inside = path.strip_prefix(&source).unwrap();
        let own = inside
            .components()
            .next()
            .unwrap()
            .as_os_str()
            .to_str()
            .unwrap()
            .trim_end_matches(".rs");
        if own == "lib" {
            continue;
        }
        for module in imports(&fs::read_to_string(path).unwrap()) {
            seen += 1;
            if module != own && floor(&module) >= floor(own) {
                wrong.push(format!("{} imports crate::{module}", inside.display()));
            }
        }
    }
    assert!(seen > 80, "only {seen} imports were found: the test has gone blind");
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn the_reader_of_imports_can_read() {
    let text = "use crate::{\n    base::{A, B},\n    config,\n};\nfn f() { crate::wire::edit::g() }\n// crate::no\n";
    assert_eq!(imports(text), ["base", "config", "wire"]);
}

#[test]
fn every_module_says_what_it_is_for() {
    let mut all = Vec::new();
    files(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut all);
    for path in all {
        assert!(fs::read_to_string(&path).unwrap().starts_with("//! "), "{}", path.display());
    }
}
