//! The files of a crate as a tree of modules, and the imports of one file from another.

use std::collections::{BTreeMap, BTreeSet};

use super::reader::{File, Use, read};

type Module = Vec<String>;

/// The names being looked up, and whether each is the last segment of its path. `use` declarations
/// can refer to each other in a loop.
type Seen = Vec<(Module, bool)>;

const ROOTS: [&str; 3] = ["crate", "self", "super"];

/// (importing file, defining file) -> the paths by which the first names items of the second.
pub type Arrows = BTreeMap<(String, String), BTreeSet<String>>;

pub struct Tree {
    /// By path, such as `limit/mod.rs`.
    pub files: BTreeMap<String, Entry>,
    modules: BTreeMap<Module, String>,
    items: BTreeSet<(Module, String)>,
    /// In each module: the path of a `use`, and the name that it binds.
    uses: BTreeMap<Module, Vec<(Module, String)>>,
}

pub struct Entry {
    pub module: Module,
    pub test: bool,
    pub file: File,
}

#[derive(Clone, Debug, PartialEq)]
enum Target {
    Module(Module),
    /// An item, in the file that defines it.
    Item(String),
}

/// Follows `mod` declarations from these files, as the compiler does.
pub fn tree(roots: &[&str], text: impl Fn(&str) -> Option<String>) -> Tree {
    let mut tree = Tree {
        files: BTreeMap::new(),
        modules: BTreeMap::new(),
        items: BTreeSet::new(),
        uses: BTreeMap::new(),
    };
    for root in roots {
        // `main.rs` is a separate crate that depends on the library.
        let module = if *root == "lib.rs" { vec![] } else { vec![stem(root).to_owned()] };
        tree.add(root, module, false, &text);
    }
    tree
}

fn stem(path: &str) -> &str {
    path.strip_suffix(".rs").expect("a file of Rust")
}

fn folder(path: &str) -> String {
    path.rsplit_once('/').map(|(folder, _)| format!("{folder}/")).unwrap_or_default()
}

fn join(module: &[String], rest: &[String]) -> Module {
    [module, rest].concat()
}

impl Tree {
    fn add(
        &mut self,
        path: &str,
        module: Module,
        test: bool,
        text: &impl Fn(&str) -> Option<String>,
    ) {
        let file = read(&text(path).unwrap_or_else(|| panic!("there is no {path}")));
        for declaration in &file.declarations {
            let inner = join(&declaration.module, std::slice::from_ref(&declaration.name));
            let child = match &declaration.path {
                Some(given) => format!("{}{given}", folder(path)),
                None => {
                    let name = path.rsplit('/').next().unwrap_or_default();
                    let base = match name {
                        "mod.rs" | "lib.rs" | "main.rs" => folder(path),
                        _ => format!("{}/", stem(path)),
                    };
                    let flat = format!("{base}{}.rs", inner.join("/"));
                    if text(&flat).is_some() {
                        flat
                    } else {
                        format!("{base}{}/mod.rs", inner.join("/"))
                    }
                }
            };
            self.add(&child, join(&module, &inner), test || declaration.test, text);
        }
        if !test {
            self.modules.insert(module.clone(), path.to_owned());
            for inner in &file.inline_modules {
                self.modules.insert(join(&module, inner), path.to_owned());
            }
            for (inner, name) in &file.items {
                self.items.insert((join(&module, inner), name.clone()));
            }
            for Use { path, name, .. } in &file.uses {
                let inside = join(&module, &path.module);
                let list = self.uses.entry(inside).or_default();
                list.push((path.segments.clone(), name.clone()));
            }
        }
        let known = self.files.insert(path.to_owned(), Entry { module, test, file });
        assert!(known.is_none(), "{path} is declared twice");
    }

    /// The path from the root of the crate. Re-exports are not followed.
    pub fn absolute(&self, module: &[String], path: &[String]) -> Option<Module> {
        let mut base = module.to_vec();
        match path.first()?.as_str() {
            "crate" => base.clear(),
            "self" => {}
            "super" => drop(base.pop()?),
            _ => return None,
        }
        let mut rest = &path[1..];
        while rest.first().is_some_and(|s| s == "super") {
            base.pop()?;
            rest = &rest[1..];
        }
        Some(join(&base, rest))
    }

    fn resolve(&self, module: &[String], path: &[String], seen: &mut Seen) -> Option<Target> {
        let first = path.first()?;
        let supers = path.iter().take_while(|s| *s == "super").count();
        let (mut here, rest) = match first.as_str() {
            "crate" => (vec![], &path[1..]),
            "self" => (module.to_vec(), &path[1..]),
            "super" => (module[..module.len().checked_sub(supers)?].to_vec(), &path[supers..]),
            _ => match self.lookup(module, first, path.len() == 1, seen)? {
                Target::Item(file) => return Some(Target::Item(file)),
                Target::Module(found) => (found, &path[1..]),
            },
        };
        for (i, name) in rest.iter().enumerate() {
            match self.lookup(&here, name, i + 1 == rest.len(), seen) {
                Some(Target::Module(found)) => here = found,
                Some(item) => return Some(item),
                // A macro defines it.
                None => return self.modules.get(&here).cloned().map(Target::Item),
            }
        }
        Some(Target::Module(here))
    }

    /// What a name refers to in a module.
    fn lookup(&self, module: &[String], name: &str, last: bool, seen: &mut Seen) -> Option<Target> {
        let child = join(module, &[name.to_owned()]);
        if seen.contains(&(child.clone(), last)) {
            return None;
        }
        seen.push((child.clone(), last));
        let found = self.lookup_once(module, name, &child, last, seen);
        seen.pop();
        found
    }

    fn lookup_once(
        &self,
        module: &[String],
        name: &str,
        child: &[String],
        last: bool,
        seen: &mut Seen,
    ) -> Option<Target> {
        let is_module = self.modules.contains_key(child);
        if is_module && !last {
            return Some(Target::Module(child.to_vec()));
        }
        if self.items.contains(&(module.to_vec(), name.to_owned())) {
            return Some(Target::Item(self.modules.get(module)?.clone()));
        }
        let uses = self.uses.get(module).map_or(&[][..], Vec::as_slice);
        for (path, bound) in uses {
            if bound == name
                && let Some(found) = self.resolve(module, path, seen)
            {
                return Some(found);
            }
        }
        if is_module {
            return Some(Target::Module(child.to_vec()));
        }
        for (path, _) in uses.iter().filter(|(_, bound)| bound == "*") {
            if let Some(Target::Module(other)) = self.resolve(module, path, seen)
                && let Some(found) = self.lookup(&other, name, last, seen)
            {
                return Some(found);
            }
        }
        None
    }

    fn has_children(&self, module: &[String]) -> bool {
        self.modules.keys().any(|m| m.len() > module.len() && m.starts_with(module))
    }

    pub fn arrows(&self) -> Arrows {
        let mut arrows = Arrows::new();
        for (from, entry) in self.files.iter().filter(|(_, entry)| !entry.test) {
            let mut tie = |to: &str, path: &[String]| {
                if to != from {
                    let names = arrows.entry((from.clone(), to.to_owned())).or_default();
                    let named = path.iter().filter(|s| !ROOTS.contains(&s.as_str()));
                    names.insert(named.map(String::as_str).collect::<Vec<_>>().join("::"));
                }
            };
            for Use { path, name, public } in &entry.file.uses {
                let module = join(&entry.module, &path.module);
                if name == "*" {
                    continue;
                }
                let to = match self.resolve(&module, &path.segments, &mut Vec::new()) {
                    Some(Target::Item(file)) => file,
                    // An import of a folder's module makes arrows only where its items are used.
                    Some(Target::Module(other)) if !self.has_children(&other) => {
                        self.modules[&other].clone()
                    }
                    _ => continue,
                };
                // A parent module may re-export its children.
                let inside = self.files[&to].module.starts_with(&entry.module);
                if !(*public && inside && to != *from) {
                    tie(&to, &path.segments);
                }
            }
            for path in &entry.file.paths {
                let module = join(&entry.module, &path.module);
                match self.resolve(&module, &path.segments, &mut Vec::new()) {
                    Some(Target::Item(file)) => tie(&file, &path.segments),
                    Some(Target::Module(_)) | None => {}
                }
            }
        }
        arrows
    }
}

/// Files that form circles: each group of more than one file in which every file leads to every
/// other one (Tarjan's strongly connected components).
pub fn circles(arrows: &Arrows) -> Vec<Vec<String>> {
    let mut next = BTreeMap::<&str, Vec<&str>>::new();
    for (from, to) in arrows.keys() {
        next.entry(from).or_default().push(to);
        next.entry(to).or_default();
    }
    let mut search = Search { next: &next, marks: BTreeMap::new(), stack: vec![], found: vec![] };
    for file in next.keys() {
        if !search.marks.contains_key(file) {
            search.visit(file);
        }
    }
    search.found.sort();
    search.found
}

struct Search<'a> {
    next: &'a BTreeMap<&'a str, Vec<&'a str>>,
    /// When each file was first visited, and the earliest file on the stack that it leads to.
    marks: BTreeMap<&'a str, (usize, usize)>,
    stack: Vec<&'a str>,
    found: Vec<Vec<String>>,
}

impl<'a> Search<'a> {
    fn visit(&mut self, file: &'a str) -> usize {
        let index = self.marks.len();
        let mut low = index;
        self.marks.insert(file, (index, low));
        self.stack.push(file);
        for to in &self.next[file] {
            if !self.marks.contains_key(to) {
                low = low.min(self.visit(to));
            } else if self.stack.contains(to) {
                low = low.min(self.marks[to].0);
            }
        }
        self.marks.insert(file, (index, low));
        if low == index {
            let start = self.stack.iter().position(|f| *f == file).unwrap_or_default();
            let mut group: Vec<_> = self.stack.drain(start..).map(str::to_owned).collect();
            if group.len() > 1 {
                group.sort();
                self.found.push(group);
            }
        }
        low
    }
}

/// A circle's arrows, each with the paths that make it.
pub fn describe(circle: &[String], arrows: &Arrows) -> String {
    let mut text = format!("a circle of {} files: {}", circle.len(), circle.join(", "));
    for ((from, to), names) in arrows {
        if circle.contains(from) && circle.contains(to) {
            let names: Vec<_> = names.iter().map(String::as_str).collect();
            text.push_str(&format!("\n  {from} -> {to}: {}", names.join(", ")));
        }
    }
    text
}
