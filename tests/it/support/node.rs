//! Node, and the packages of it that tests need.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
};

use super::{python, run};

/// Node's program, and the folder with the packages in `FOLDER/package-lock.json`. Node itself is a
/// package in `FOLDER/requirements.txt`, so that its version is pinned as well. Everything is made once,
/// below `target`.
pub fn packages(folder: &str) -> (PathBuf, PathBuf) {
    let programs = python::programs(folder);
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let name = Path::new(folder).file_name().unwrap().display();
    let target = root.join(format!("target/{name}-node"));
    fs::create_dir_all(&target).unwrap();
    let lock = File::create(target.join("lock")).unwrap();
    lock.lock().unwrap();
    let wanted = fs::read_to_string(root.join(folder).join("package-lock.json")).unwrap();
    let stamp = target.join("installed");
    if !fs::read_to_string(&stamp).is_ok_and(|installed| installed == wanted) {
        for file in ["package.json", "package-lock.json"] {
            fs::copy(root.join(folder).join(file), target.join(file)).unwrap();
        }
        let mut install = Command::new(programs.join("npm"));
        run(install
            .args(["ci", "--ignore-scripts", "--no-audit", "--no-fund"])
            .current_dir(&target));
        fs::write(stamp, wanted).unwrap();
    }
    (programs.join("node"), target)
}
