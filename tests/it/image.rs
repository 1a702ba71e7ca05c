//! The Dockerfile and the workflows, as far as this needs no container engine. `.ci/image` builds and
//! measures the image.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use super::support::{free_address, python};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(file: &str) -> String {
    fs::read_to_string(root().join(file)).unwrap()
}

/// The instructions of the Dockerfile, one line each, without comments.
fn instructions() -> Vec<String> {
    let text = read("Dockerfile");
    let lines = text.lines().filter(|line| !line.trim_start().starts_with('#'));
    let joined = lines.collect::<Vec<_>>().join("\n").replace("\\\n", " ");
    let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
    joined.lines().map(words).filter(|line| !line.is_empty()).collect()
}

/// The arguments of an instruction in the last stage.
fn last_stage(name: &str) -> String {
    let all = instructions();
    let from = all.iter().rposition(|line| line.starts_with("FROM ")).unwrap();
    let mut found = all[from..].iter().filter_map(|line| line.strip_prefix(name));
    let one = found.next().unwrap_or_else(|| panic!("{name} is missing")).trim().to_owned();
    assert_eq!(found.next(), None, "{name} twice");
    one
}

/// A JSON list of words.
fn list(text: &str) -> Vec<String> {
    serde_json::from_str(text).unwrap()
}

fn llmproxy(arguments: &[String]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_llmproxy")).args(arguments).output().unwrap()
}

/// Runs a program in the folder of the repository. Shows its output if it fails.
fn content(program: &Path, arguments: &[&str], files: &[String]) {
    let mut command = Command::new(program);
    let out = command.args(arguments).args(files).current_dir(root()).output().unwrap();
    let said = [out.stdout, out.stderr].concat();
    assert!(out.status.success(), "{command:?}\n{}", String::from_utf8_lossy(&said));
}

/// The files of a folder with this ending.
fn files(folder: &str, end: &str) -> Vec<String> {
    let entries = fs::read_dir(root().join(folder)).unwrap();
    let names = entries.map(|e| format!("{folder}/{}", e.unwrap().file_name().display()));
    names.filter(|name| name.ends_with(end)).collect()
}

#[test]
fn the_dockerfile_and_workflows_are_valid() {
    let programs = python::programs("tests/image");
    let scripts = [files("scripts", ".sh"), vec![".ci/image".to_owned(), ".ci/run".to_owned()]];
    content(&programs.join("hadolint"), &[], &["Dockerfile".to_owned()]);
    content(&programs.join("shellcheck"), &[], &scripts.concat());
    let schema = ["--builtin-schema", "vendor.github-workflows"];
    content(&programs.join("check-jsonschema"), &schema, &files(".github/workflows", ".yml"));
    content(&programs.join("zizmor"), &["--offline", "--quiet"], &[".github".to_owned()]);
}

#[test]
fn the_image_contains_only_the_output_of_the_script() {
    let all = instructions();
    let stages: Vec<_> = all.iter().filter_map(|line| line.strip_prefix("FROM ")).collect();
    assert_eq!(stages.len(), 2, "{stages:?}");
    assert_eq!(stages[1], "scratch");
    assert!(stages[0].contains(':') && !stages[0].contains("latest"), "{}", stages[0]);
    assert!(
        all.iter().any(|l| l.starts_with("RUN ") && l.ends_with(" scripts/image-root.sh /image"))
    );
    assert_eq!(last_stage("COPY "), "--from=build /image /");
    assert_eq!(last_stage("USER "), "65532:65532");
    assert_eq!(last_stage("VOLUME "), "/var/lib/llmproxy");
    assert!(last_stage("ENV ").contains("LLMPROXY_DATA_DIR=/var/lib/llmproxy"));
    // The compiler satisfies the package, and the label has the version of the package.
    let compiler: Vec<u32> = stages[0].split([':', '-']).nth(1).map(numbers).unwrap();
    let wanted = read("Cargo.toml").split("rust-version = \"").nth(1).map(numbers).unwrap();
    assert!(compiler >= wanted, "{compiler:?} {wanted:?}");
    assert!(all.contains(&format!("ARG VERSION={}", env!("CARGO_PKG_VERSION"))));
}

/// The numbers between dots at the start of a text.
fn numbers(text: &str) -> Vec<u32> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    text[..end].split('.').map(|n| n.parse().unwrap()).collect()
}

#[test]
fn the_image_names_its_missing_configuration_file() {
    assert_eq!(list(&last_stage("ENTRYPOINT ")), ["/llmproxy"]);
    // Not the file of this machine.
    let elsewhere = tempfile::tempdir().unwrap().path().join("llmproxy.yaml");
    let file = |word: String| match word.as_str() {
        "/etc/llmproxy/llmproxy.yaml" => elsewhere.display().to_string(),
        _ => word,
    };
    let command: Vec<_> = list(&last_stage("CMD ")).into_iter().map(file).collect();
    let out = llmproxy(&command);
    let said = String::from_utf8(out.stderr).unwrap();
    assert_eq!(out.status.code(), Some(1), "{said}");
    assert!(said.contains(&elsewhere.display().to_string()), "{said}");
}

#[test]
fn the_health_check_fails_if_nothing_listens() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("llmproxy.yaml");
    let text = format!("listen: \"{}\"\nbackends: [{{url: \"http://a\"}}]\n", free_address());
    fs::write(&file, text).unwrap();
    let check = last_stage("HEALTHCHECK ");
    let mut words = list(check.split_once("CMD ").unwrap().1);
    assert_eq!(words.remove(0), "/llmproxy");
    *words.last_mut().unwrap() = file.display().to_string();
    let out = llmproxy(&words);
    // 2 would mean an unknown command.
    assert_eq!(out.status.code(), Some(1), "{}", String::from_utf8_lossy(&out.stderr));
}

#[test]
fn the_build_context_is_complete() {
    let context = tempfile::tempdir().unwrap();
    for name in read(".dockerignore").lines().filter_map(|line| line.strip_prefix('!')) {
        let copied =
            Command::new("cp").arg("-r").arg(root().join(name)).arg(context.path()).status();
        assert!(copied.unwrap().success(), "{name}");
    }
    // Cargo finds the file of every target.
    let metadata = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--offline", "--format-version", "1"])
        .current_dir(context.path())
        .output()
        .unwrap();
    assert!(metadata.status.success(), "{}", String::from_utf8_lossy(&metadata.stderr));
    // The compiler finds every included file, except those of tests.
    let of_tests = |source: &Path| {
        let stem = source.file_stem().unwrap().to_string_lossy().into_owned();
        stem.ends_with("tests") || source.components().any(|part| part.as_os_str() == "tests")
    };
    for source in sources(&context.path().join("src")) {
        if of_tests(source.strip_prefix(context.path()).unwrap()) {
            continue;
        }
        let text = fs::read_to_string(&source).unwrap();
        let built = text.split("#[cfg(test)]").next().unwrap();
        for part in built.split("include_str!(\"").skip(1) {
            let file = source.parent().unwrap().join(part.split('"').next().unwrap());
            assert!(file.exists(), "{} of {}", file.display(), source.display());
        }
    }
    assert!(context.path().join("LICENSE").exists());
}

/// All Rust files below a folder.
fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => found.extend(sources(&path)),
            false if path.extension().is_some_and(|e| e == "rs") => found.push(path),
            false => {}
        }
    }
    found
}

#[test]
fn the_image_contains_the_licence_notices() {
    let out = Command::new(root().join("scripts/notices.py"))
        .env("CARGO", env!("CARGO"))
        .output()
        .unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let said = String::from_utf8(out.stdout).unwrap();
    for crate_ in ["pingora-core", "tokio", "mlua", "libsqlite3-sys"] {
        assert!(said.contains(&format!("\n{crate_} ")), "{crate_}");
    }
    assert!(said.contains("Permission is hereby granted, free of charge"));
    assert!(!said.contains("\nproptest "), "what only tests need is not in the binary");
}
