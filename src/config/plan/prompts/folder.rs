//! The folder of prompts.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// The files of a folder that are prompts: `*.md` and `*.txt`, without hidden ones, by their names.
///
/// # Errors
/// If the folder cannot be read.
pub(super) fn files(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        // Kubernetes mounts files as symbolic links into a hidden folder.
        if is_prompt(&path) && path.is_file() {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

fn is_prompt(path: &Path) -> bool {
    let hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
    let extension = path.extension().and_then(|extension| extension.to_str());
    !hidden
        && extension
            .is_some_and(|e| ["md", "txt"].iter().any(|known| e.eq_ignore_ascii_case(known)))
}

/// The names and contents of all prompts of a folder, to be compared with those of a moment ago. `None`
/// if the folder cannot be read.
pub fn prompt_folder_contents(folder: &Path) -> Option<Vec<u8>> {
    let mut all = Vec::new();
    for path in files(folder).ok()? {
        all.extend_from_slice(path.as_os_str().as_encoded_bytes());
        // A file that has just disappeared differs from an empty one.
        match fs::read(&path) {
            Ok(text) => {
                all.extend_from_slice(&text.len().to_le_bytes());
                all.extend_from_slice(&text);
            }
            Err(_) => all.extend_from_slice(&usize::MAX.to_le_bytes()),
        }
    }
    Some(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_are_found_by_their_names() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["b.md", "a.TXT", ".hidden.md", "c.yaml", "md", "10-c.md"] {
            fs::write(folder.path().join(name), name).unwrap();
        }
        fs::create_dir(folder.path().join("folder.md")).unwrap();
        let names: Vec<_> = files(folder.path())
            .unwrap()
            .iter()
            .map(|path| path.file_name().unwrap().to_str().unwrap().to_owned())
            .collect();
        assert_eq!(names, ["10-c.md", "a.TXT", "b.md"]);
    }

    #[test]
    fn every_change_of_a_prompt_is_seen() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let mut seen = vec![prompt_folder_contents(&path("prompts"))];
        fs::create_dir(path("prompts")).unwrap();
        let mut look = || seen.push(prompt_folder_contents(&path("prompts")));
        look();
        fs::write(path("prompts/a.md"), "").unwrap();
        look();
        fs::write(path("prompts/a.md"), "text").unwrap();
        look();
        fs::write(path("prompts/a.md"), "tex2").unwrap();
        look();
        fs::rename(path("prompts/a.md"), path("prompts/b.md")).unwrap();
        look();
        assert!(seen.windows(2).all(|two| two[0] != two[1]), "{seen:?}");
        fs::write(path("prompts/c.yaml"), "other").unwrap();
        assert_eq!(prompt_folder_contents(&path("prompts")), seen.pop().unwrap());
    }
}
