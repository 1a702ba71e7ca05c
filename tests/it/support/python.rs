//! Virtual environments with the Python packages that tests need.

use std::{
    fs::File,
    path::{Path, PathBuf},
    process::Command,
};

use super::run;

/// The folder of programs of the packages in `FOLDER/requirements.txt`. It is made once, below
/// `target`. A lock keeps concurrent tests apart.
pub fn programs(folder: &str) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let requirements = root.join(folder).join("requirements.txt");
    let wanted = std::fs::read_to_string(&requirements).unwrap();
    let name = Path::new(folder).file_name().unwrap().display();
    let venv = root.join(format!("target/{name}-venv"));
    let stamp = venv.join("requirements.txt");
    let programs = venv.join("bin");
    std::fs::create_dir_all(root.join("target")).unwrap();
    let lock = File::create(venv.with_extension("lock")).unwrap();
    lock.lock().unwrap();
    if std::fs::read_to_string(&stamp).is_ok_and(|made| made == wanted) {
        return programs;
    }
    run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&venv));
    let mut install = Command::new(programs.join("python"));
    run(install.args(["-m", "pip", "install", "--quiet", "-r"]).arg(&requirements));
    std::fs::write(stamp, wanted).unwrap();
    programs
}
