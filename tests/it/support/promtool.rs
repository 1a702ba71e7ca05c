//! The programs of Prometheus: `promtool` and the server.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use super::run;

pub fn promtool() -> PathBuf {
    program("promtool")
}

/// Runs `promtool` in the folder of the package; it must succeed.
pub fn check(arguments: &[&str]) {
    run(Command::new(promtool()).args(arguments).current_dir(env!("CARGO_MANIFEST_DIR")));
}

pub fn prometheus() -> PathBuf {
    program("prometheus")
}

/// The installed program, or the one of the Debian package, which is unpacked once below `target`.
/// Installing the package would start a server.
fn program(name: &str) -> PathBuf {
    if output(Command::new(name).arg("--version")).is_some() {
        return name.into();
    }
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/prometheus");
    fs::create_dir_all(&folder).unwrap();
    // Tests run as processes: the first one fetches, the others wait. Closing the file unlocks it.
    let lock = File::create(folder.join("lock")).unwrap();
    lock.lock().unwrap();
    let programs = folder.join("unpacked/usr/bin");
    if !programs.exists() {
        // Renamed when complete, so that an interrupted download is repeated.
        let new = folder.join("new");
        fs::remove_dir_all(&new).ok();
        fs::create_dir_all(new.join("lists/partial")).unwrap();
        let package = download(&new);
        run(Command::new("dpkg-deb").arg("--extract").arg(&package).arg(new.join("unpacked")));
        fs::rename(new.join("unpacked"), folder.join("unpacked")).unwrap();
        fs::remove_dir_all(new).unwrap();
    }
    programs.join(name)
}

/// Fetches the package into the folder. If the machine's list of packages is out of date, the list is
/// fetched too, into the folder, as the machine's own belongs to root.
fn download(folder: &Path) -> PathBuf {
    let apt = |options: &[String], words: &[&str]| {
        let mut command = Command::new("apt-get");
        command.current_dir(folder).args(["-qq", "-o", "APT::Sandbox::User=root"]);
        command.args(options).args(words);
        command
    };
    let fetch = ["download", "prometheus"];
    if output(&mut apt(&[], &fetch)).is_none() {
        let lists = ["-o".to_owned(), format!("Dir::State::lists={}/lists", folder.display())];
        run(&mut apt(&lists, &["update"]));
        run(&mut apt(&lists, &fetch));
    }
    let mut files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    files.find(|path| path.extension().is_some_and(|e| e == "deb")).unwrap()
}

fn output(command: &mut Command) -> Option<Output> {
    command.stdin(Stdio::null()).output().ok().filter(|out| out.status.success())
}
