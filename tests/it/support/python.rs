//! Python packages for tests that need them, in environments of their own.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// The folder with the programs of the packages in `FOLDER/requirements.txt`; made once, below
/// `target`. One test for each folder: two must not make it at the same time.
pub fn programs(folder: &str) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let requirements = root.join(folder).join("requirements.txt");
    let wanted = std::fs::read_to_string(&requirements).unwrap();
    let name = Path::new(folder).file_name().unwrap().display();
    let venv = root.join(format!("target/{name}-venv"));
    let stamp = venv.join("requirements.txt");
    let programs = venv.join("bin");
    if std::fs::read_to_string(&stamp).is_ok_and(|made| made == wanted) {
        return programs;
    }
    let run = |command: &mut Command| {
        let out = command.stdin(Stdio::null()).output().unwrap();
        assert!(out.status.success(), "{command:?}\n{}", String::from_utf8_lossy(&out.stderr));
    };
    run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&venv));
    let mut install = Command::new(programs.join("python"));
    run(install.args(["-m", "pip", "install", "--quiet", "-r"]).arg(&requirements));
    std::fs::write(stamp, wanted).unwrap();
    programs
}
