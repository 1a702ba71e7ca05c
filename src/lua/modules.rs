//! Modules of scripts: the files of a folder, compiled when the configuration is read.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use super::reads::{self, Reads};

/// Largest number of files, and of folders in folders.
const MOST_FILES: usize = 500;
const DEEPEST: usize = 8;

/// Largest file, in bytes.
const LARGEST: u64 = 1 << 20;

/// A compiled module.
#[derive(Debug)]
pub struct Module {
    /// Unique in the process.
    pub(super) id: u64,
    /// Bytecode of a function that returns the module as a function of its globals.
    pub(super) bytecode: Vec<u8>,
    pub(super) reads: Reads,
}

/// All modules, by name: `a.b` is the file `a/b.lua` of the folder.
#[derive(Debug, Default)]
pub struct Modules(BTreeMap<String, Module>);

/// What was found in a folder.
#[derive(Debug, Default)]
pub struct LoadedModules {
    pub modules: Modules,
    /// All files that were read.
    pub files: Vec<PathBuf>,
    /// What is wrong with them, with the file and the line.
    pub problems: Vec<String>,
}

impl Modules {
    /// Reads and compiles all files `*.lua` of a folder and of the folders in it.
    pub fn load(folder: &Path) -> LoadedModules {
        let mut loaded = LoadedModules::default();
        if let Err(why) = find(folder, 0, &mut loaded.files) {
            loaded.problems.push(why);
        }
        loaded.files.sort();
        for file in &loaded.files {
            match compile(folder, file) {
                Ok((name, module)) => {
                    loaded.modules.0.insert(name, module);
                }
                Err(why) => loaded.problems.push(why),
            }
        }
        loaded
    }

    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    pub(super) fn get(&self, name: &str) -> Option<&Module> {
        self.0.get(name)
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &Module> {
        self.0.values()
    }
}

fn find(folder: &Path, depth: usize, files: &mut Vec<PathBuf>) -> Result<(), String> {
    let told = |e: std::io::Error| format!("cannot read {}: {e}", folder.display());
    for entry in fs::read_dir(folder).map_err(told)? {
        let entry = entry.map_err(told)?;
        let path = entry.path();
        // Kubernetes mounts a ConfigMap with hidden folders, to which its files are links.
        if entry.file_name().to_string_lossy().starts_with('.') {
            continue;
        }
        if path.is_dir() {
            if depth >= DEEPEST {
                return Err(format!("{}: folders are nested too deeply", path.display()));
            }
            find(&path, depth + 1, files)?;
        } else if path.extension().is_some_and(|e| e == "lua") {
            if files.len() >= MOST_FILES {
                return Err(format!("{} has more than {MOST_FILES} files", folder.display()));
            }
            files.push(path);
        }
    }
    Ok(())
}

fn compile(folder: &Path, file: &Path) -> Result<(String, Module), String> {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let shown = file.display();
    let size = fs::metadata(file).map_err(|e| format!("cannot read {shown}: {e}"))?.len();
    if size > LARGEST {
        return Err(format!("{shown} is larger than {LARGEST} bytes"));
    }
    let text = fs::read_to_string(file).map_err(|e| format!("cannot read {shown}: {e}"))?;
    let inside = file.strip_prefix(folder).unwrap_or(file).with_extension("");
    let parts: Option<Vec<_>> = inside.iter().map(|part| part.to_str()).collect();
    let parts = parts.ok_or_else(|| format!("{shown}: the name is not UTF-8"))?;
    if parts.iter().any(|part| part.contains('.')) {
        return Err(format!("{shown}: the name of a module has no dots"));
    }
    let name = parts.join(".");
    let text = crate::base::without_mark(&text);
    let bytecode = reads::bytecode(&format!("{}.lua", parts.join("/")), text)?;
    let id = NEXT.fetch_add(1, Ordering::Relaxed);
    Ok((name, Module { id, bytecode, reads: Reads::of(text) }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_files_of_a_folder_are_modules() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let file = folder.path().join(name);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, text).unwrap();
        };
        write("a.lua", "return 1");
        write("deep/b.lua", "return require('a')");
        write(".hidden/c.lua", "not Lua");
        write("notes.txt", "not Lua");
        let loaded = Modules::load(folder.path());
        assert_eq!(loaded.problems, Vec::<String>::new());
        assert_eq!(loaded.modules.names().collect::<Vec<_>>(), ["a", "deep.b"]);
        assert_eq!(loaded.files.len(), 2);
        write("deep/wrong.lua", "\nreturn 1 +");
        write("x.y.lua", "return 1");
        let problems = Modules::load(folder.path()).problems;
        assert_eq!(problems.len(), 2, "{problems:?}");
        assert!(problems[0].starts_with("deep/wrong.lua:2: unexpected symbol"), "{problems:?}");
        assert!(!Modules::load(&folder.path().join("none")).problems.is_empty());
    }
}
