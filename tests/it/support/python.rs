//! Virtual environments with the Python packages that tests need.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use super::run;

/// The folder of programs of the packages in `FOLDER/requirements.txt`. It is made once, below
/// `target`. Only one test may use each folder: two must not make it at the same time.
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
    run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&venv));
    let mut install = Command::new(programs.join("python"));
    run(install.args(["-m", "pip", "install", "--quiet", "-r"]).arg(&requirements));
    std::fs::write(stamp, wanted).unwrap();
    programs
}
