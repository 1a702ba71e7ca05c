//! Prometheus' own checker of rules.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

/// Runs it in the folder of the package.
pub fn run(arguments: &[&str]) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let out = Command::new(program(root)).args(arguments).current_dir(root).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(out.status.success(), "{arguments:?}\n{}\n{}", text(&out.stdout), text(&out.stderr));
}

/// That of the machine, or the one that `scripts/setup.sh` has unpacked.
fn program(root: &Path) -> PathBuf {
    let unpacked = root.join("target/prometheus/promtool");
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&path).map(|folder| folder.join("promtool"));
    on_path
        .chain([unpacked])
        .find(|file| file.is_file())
        .expect("there is no promtool: scripts/setup.sh unpacks it")
}
