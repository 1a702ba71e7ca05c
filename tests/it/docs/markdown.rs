//! Markdown as far as the pages of this repository use it.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// A page.
pub struct Page {
    /// Its path in the repository.
    pub name: String,
    /// All of it.
    pub text: String,
}

/// A fenced block.
pub struct Block {
    /// Where it is: page and line.
    pub at: String,
    /// What its fence says: the language, and perhaps what it is for.
    pub info: String,
    /// What stands in it.
    pub text: String,
}

/// The root of the repository.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every page of the repository.
pub fn pages() -> Vec<Page> {
    let mut found = Vec::new();
    walk(root(), &mut found);
    found.sort();
    let page = |path: &PathBuf| Page {
        name: path.strip_prefix(root()).unwrap().display().to_string(),
        text: fs::read_to_string(path).unwrap(),
    };
    found.iter().map(page).collect()
}

/// The pages that tell of the gateway as such: the examples' are tried in `examples.rs`.
pub fn documentation() -> Vec<Page> {
    let mut all = pages();
    all.retain(|page| page.name.starts_with("docs/") || !page.name.contains('/'));
    assert!(all.len() > 10, "only {} pages: the test has gone blind", all.len());
    all
}

fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
        let (path, name) = (entry.path(), entry.file_name());
        let name = name.to_str().unwrap();
        let hidden = name.starts_with('.') && name != ".github";
        if path.is_dir() && !hidden && !["target", "data", "venv"].contains(&name) {
            walk(&path, found);
        } else if name.ends_with(".md") {
            found.push(path);
        }
    }
}

impl Page {
    /// Its fenced blocks, without the indentation that they have in lists.
    pub fn blocks(&self) -> Vec<Block> {
        let mut blocks: Vec<Block> = Vec::new();
        let mut open: Option<usize> = None;
        for (i, line) in self.text.lines().enumerate() {
            let indent = line.len() - line.trim_start().len();
            match (line.trim_start().strip_prefix("```"), open) {
                (Some(info), None) => {
                    let at = format!("{}:{}", self.name, i + 1);
                    blocks.push(Block { at, info: info.trim().to_owned(), text: String::new() });
                    open = Some(indent);
                }
                (Some(_), Some(_)) => open = None,
                (None, Some(indent)) => {
                    let text = &mut blocks.last_mut().unwrap().text;
                    text.push_str(line.get(indent..).unwrap_or_default());
                    text.push('\n');
                }
                (None, None) => {}
            }
        }
        assert!(open.is_none(), "{}: a block is not closed", self.name);
        blocks
    }

    /// Its lines that are in no block.
    pub fn prose(&self) -> Vec<&str> {
        let mut inside = false;
        let outside = |line: &&str| {
            let fence = line.trim_start().starts_with("```");
            inside ^= fence;
            !inside && !fence
        };
        self.text.lines().filter(outside).collect()
    }

    /// What stands between backticks outside of blocks. A span may go on in the next line.
    pub fn spans(&self) -> Vec<String> {
        let prose = self.prose().join("\n");
        let paragraphs =
            prose.split("\n\n").flat_map(|p| p.split("\n- ")).flat_map(|p| p.split("\n|"));
        let odd = |text: &str| -> Vec<String> {
            let parts = text.split('`').skip(1).step_by(2);
            parts.map(|part| part.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
        };
        paragraphs.flat_map(odd).collect()
    }

    /// The names by which its headings can be linked to.
    pub fn anchors(&self) -> Vec<String> {
        let mut anchors: Vec<String> = Vec::new();
        for line in self.prose() {
            let title = line.trim_start_matches('#');
            if title.len() == line.len() || !title.starts_with(' ') {
                continue;
            }
            let name = slug(title.trim());
            let again = anchors.iter().filter(|known| **known == name).count();
            anchors.push(if again == 0 { name } else { format!("{name}-{again}") });
        }
        anchors
    }

    /// The targets of its links.
    pub fn links(&self) -> Vec<String> {
        let prose = self.prose().join("\n");
        // Code may look like a link.
        let bare: String = prose.split('`').step_by(2).collect::<Vec<_>>().join("code");
        let inline = bare.split("](").skip(1).filter_map(|rest| Some(rest.split_once(')')?.0));
        let named = bare.lines().filter(|line| line.starts_with('[')).filter_map(|line| {
            let (_, target) = line.split_once("]: ")?;
            Some(target.trim())
        });
        inline.chain(named).map(str::to_owned).collect()
    }
}

/// How GitHub names a heading.
fn slug(title: &str) -> String {
    let kept = title.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.flat_map(char::to_lowercase).map(|c| if c == ' ' { '-' } else { c }).collect()
}

#[test]
fn the_reader_of_pages_can_read() {
    let text = "# A `b`, c_d: e's\n[x](y.md#z) `[a](b)`\n- l\n  ```sh run\n  cd x\n    y\n  ```\n## 502, 504\n# 502 504\n`one\ntwo`\n";
    let page = Page { name: "p.md".to_owned(), text: text.to_owned() };
    assert_eq!(page.anchors(), ["a-b-c_d-es", "502-504", "502-504-1"]);
    assert_eq!(page.links(), ["y.md#z"]);
    assert_eq!(page.spans(), ["b", "[a](b)", "one two"]);
    let [block] = &page.blocks()[..] else { panic!("one block") };
    assert_eq!((&*block.at, &*block.info, &*block.text), ("p.md:4", "sh run", "cd x\n  y\n"));
}
