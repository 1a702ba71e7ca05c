//! The structure of the source: modules import only from lower floors (the table in `lib.rs`), files
//! form no import circles, and files and functions are of limited length.

mod known;
mod lexer;
mod reader;
mod reader_tests;
mod tree;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use tree::{Tree, circles, describe};

const LONGEST_FILE: usize = 600;
const LONG_FUNCTION: usize = 60;
const MOST_LONG_FUNCTIONS: usize = 6;

fn source() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

fn text(path: &str) -> Option<String> {
    fs::read_to_string(source().join(path)).ok()
}

fn source_tree() -> Tree {
    tree::tree(&["lib.rs", "main.rs"], text)
}

/// Adds all Rust files of a folder, as paths relative to `src`.
fn files(folder: &Path, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            let inside = path.strip_prefix(source()).unwrap();
            found.insert(inside.to_str().unwrap().to_owned());
        }
    }
}

fn all_files() -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    files(&source(), &mut found);
    found
}

/// The top-level module of a file.
fn top(path: &str) -> &str {
    path.split('/').next().unwrap().trim_end_matches(".rs")
}

/// Modules and their floors, from the rows of the table in `lib.rs`, such as
/// ``//! | 9 | [`cli`] | arguments to a call |``. `main` is above them all.
fn floors() -> BTreeMap<String, u32> {
    let mut floors = BTreeMap::from([("main".to_owned(), u32::MAX)]);
    for line in text("lib.rs").unwrap().lines() {
        let cells: Vec<_> = line.split('|').map(str::trim).collect();
        if let [_, floor, modules, ..] = cells[..]
            && let Ok(floor) = floor.parse()
        {
            for module in modules.split('`').skip(1).step_by(2) {
                assert!(floors.insert(module.to_owned(), floor).is_none(), "{module} twice");
            }
        }
    }
    floors
}

/// (file, its top-level module, the top-level module that it imports)
fn imports(tree: &Tree) -> BTreeSet<(String, String, String)> {
    let mut found = BTreeSet::new();
    for (name, entry) in tree.files.iter().filter(|(_, entry)| !entry.test) {
        let own = top(name);
        let uses = entry.file.uses.iter().map(|u| &u.path);
        for path in uses.chain(&entry.file.paths) {
            let inside = [&entry.module[..], &path.module].concat();
            let module = match tree.absolute(&inside, &path.segments) {
                Some(absolute) => absolute.first().cloned(),
                None if own == "main" && path.segments[0] == "llmproxy" => {
                    path.segments.get(1).cloned()
                }
                None => None,
            };
            if let Some(module) = module.filter(|module| module != own) {
                found.insert((name.clone(), own.to_owned(), module));
            }
        }
    }
    found
}

#[test]
fn imports_go_down() {
    let floors = floors();
    let floor = |module: &str| {
        *floors.get(module).unwrap_or_else(|| panic!("`{module}` is not in the table of lib.rs"))
    };
    let imports = imports(&source_tree());
    let wrong: Vec<_> = imports
        .iter()
        .filter(|(_, own, module)| own != "lib" && floor(module) >= floor(own))
        .map(|(name, _, module)| format!("{name} imports crate::{module}"))
        .collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
    for (own, module) in [
        ("main", "cli"),
        ("server", "gateway"),
        ("admin", "runtime"),
        ("runtime", "balance"),
        ("limit", "config"),
        ("config", "base"),
    ] {
        let known = imports.iter().any(|(_, o, m)| (o.as_str(), m.as_str()) == (own, module));
        assert!(known, "no import of {module} was found in {own}: too little is read");
    }
    assert!(imports.len() > 300, "only {} imports were found: too little is read", imports.len());
}

#[test]
fn every_module_has_a_floor_and_every_floor_has_its_files() {
    let on_disk: BTreeSet<_> = all_files().iter().map(|path| top(path).to_owned()).collect();
    let mut in_table: BTreeSet<_> = floors().into_keys().collect();
    in_table.insert("lib".to_owned());
    assert_eq!(on_disk, in_table);
}

#[test]
fn every_file_is_read() {
    let mut declared: BTreeSet<_> = source_tree().files.into_keys().collect();
    // The toy language is in `tests`.
    declared.retain(|path| !path.contains("../"));
    assert_eq!(declared, all_files(), "files that `mod` declares, and files of the folder");
}

/// Occurrences of `crate::` and `super::` in all lines that are not comments.
fn plain_count(text: &str) -> usize {
    text.lines()
        .filter(|line| !line.trim_start().starts_with("//"))
        .map(|line| line.matches("crate::").count() + line.matches("super::").count())
        .sum()
}

#[test]
fn every_mention_of_another_module_is_read() {
    let tree = source_tree();
    let (mut total, mut in_tests) = (0, 0);
    for (name, entry) in &tree.files {
        let text = text(name).unwrap();
        let (code, test) = (entry.file.mentions, entry.file.test_mentions);
        assert_eq!(code + test, plain_count(&text), "{name}");
        // If the tests are one block at the end, the code is the text before it.
        if text.matches("#[cfg(test)]").count() == 1
            && let Some((before, _)) = text.split_once("\n#[cfg(test)]\nmod tests {")
        {
            assert_eq!(code, plain_count(before), "{name}");
        }
        total += code + test;
        in_tests += test;
    }
    assert!(total > 450, "only {total} mentions were found: too little is read");
    assert!(
        in_tests * 2 < total,
        "{in_tests} of {total} mentions are in tests: too little is read"
    );
}

#[test]
fn no_files_form_a_circle() {
    let tree = source_tree();
    let arrows = tree.arrows();
    assert!(arrows.len() > 600, "only {} arrows were found: too little is read", arrows.len());
    let found = circles(&arrows);
    let new: Vec<_> = found
        .iter()
        .filter(|circle| !known::CIRCLES.contains(&circle.join(" ").as_str()))
        .map(|circle| describe(circle, &arrows))
        .collect();
    assert!(new.is_empty(), "{} circles:\n{}", new.len(), new.join("\n"));
    let found: Vec<_> = found.iter().map(|circle| circle.join(" ")).collect();
    for known in known::CIRCLES {
        assert!(
            found.iter().any(|c| c == known),
            "this circle is gone, and is still listed: {known}"
        );
    }
}

#[test]
fn no_file_is_long_without_its_tests() {
    let tree = source_tree();
    let long: Vec<_> = tree
        .files
        .iter()
        .filter(|(_, entry)| !entry.test && entry.file.lines > LONGEST_FILE)
        .map(|(name, entry)| (name.as_str(), entry.file.lines))
        .collect();
    let names: Vec<_> = long.iter().map(|(name, _)| *name).collect();
    assert_eq!(names, known::LONG_FILES, "files with over {LONGEST_FILE} lines: {long:?}");
}

#[test]
fn few_functions_are_long() {
    let tree = source_tree();
    let (mut all, mut long) = (0, Vec::new());
    for (name, entry) in tree.files.iter().filter(|(_, entry)| !entry.test) {
        for function in &entry.file.functions {
            all += 1;
            if function.lines > LONG_FUNCTION {
                long.push(format!("{name}: {} has {} lines", function.name, function.lines));
            }
        }
    }
    println!("{} of {all} functions have over {LONG_FUNCTION} lines: {long:#?}", long.len());
    assert!(all > 2000, "only {all} functions were found: too little is read");
    assert!(long.len() <= MOST_LONG_FUNCTIONS, "{long:#?}");
}

#[test]
fn every_module_says_what_it_is_for() {
    for path in all_files() {
        assert!(text(&path).unwrap().starts_with("//! "), "{path}");
    }
}

#[test]
fn the_walk_in_lib_names_files_that_exist() {
    let text = text("lib.rs").unwrap();
    let docs: Vec<_> = text.lines().filter(|line| line.starts_with("//!")).collect();
    let mut seen = 0;
    for name in docs.join("\n").split('`').skip(1).step_by(2) {
        if name.contains('/') && !name.contains(' ') {
            seen += 1;
            let path = name.strip_prefix("src/").unwrap_or(name);
            assert!(source().join(path).exists(), "lib.rs names `{name}`");
        }
    }
    assert!(seen >= 8, "only {seen} files were found in the docs of lib.rs");
}
