//! Reads the declarations, imports and paths of one Rust file. Its tests are kept separate.

use std::collections::BTreeSet;

use super::lexer::{Placed, Token, tokens};

/// A path as written, without generic arguments.
#[derive(Debug, PartialEq)]
pub struct Path {
    /// The enclosing inline modules, outermost first.
    pub module: Vec<String>,
    pub segments: Vec<String>,
}

/// One name of a `use` declaration. A group gives one of these for each of its names.
#[derive(Debug)]
pub struct Use {
    pub path: Path,
    /// The name that it binds; `*` for a glob.
    pub name: String,
    pub public: bool,
}

/// `mod name;`
#[derive(Debug)]
pub struct Declaration {
    pub module: Vec<String>,
    pub name: String,
    /// From `#[path = "..."]`.
    pub path: Option<String>,
    pub test: bool,
}

#[derive(Debug)]
pub struct Function {
    pub name: String,
    /// Lines of the body, without blank lines and comments.
    pub lines: usize,
}

#[derive(Debug, Default)]
pub struct File {
    pub declarations: Vec<Declaration>,
    pub inline_modules: Vec<Vec<String>>,
    /// (module, name) of each item defined at module level.
    pub items: Vec<(Vec<String>, String)>,
    pub uses: Vec<Use>,
    pub paths: Vec<Path>,
    pub functions: Vec<Function>,
    /// Occurrences of `crate::` and `super::` in the code, and in its tests.
    pub mentions: usize,
    pub test_mentions: usize,
    /// Lines of the file before its first `#[cfg(test)]`.
    pub lines: usize,
}

pub fn read(text: &str) -> File {
    let tokens = attribute_paths(tokens(text));
    let lines = text.lines().take_while(|l| l.trim() != "#[cfg(test)]").count();
    let mut reader = Reader {
        tokens: &tokens,
        at: 0,
        test_end: 0,
        blocks: Vec::new(),
        path: None,
        file: File { lines, ..File::default() },
    };
    reader.all();
    reader.file
}

/// Replaces strings that serde reads as paths, `#[serde(default = "super::one")]`, by those paths.
fn attribute_paths(all: Vec<Placed>) -> Vec<Placed> {
    let mut found = Vec::with_capacity(all.len());
    let mut end = 0;
    for (i, (token, line)) in all.iter().enumerate() {
        if token.is("#") && all.get(i + 2).is_some_and(|(t, _)| t.is("serde")) {
            end = closing(&all, i + 1);
        }
        match token {
            Token::Text(text) if i < end && is_path(text) && all[i - 1].0.is("=") => {
                found.extend(tokens(text).into_iter().map(|(token, _)| (token, *line)));
                // Serde calls it.
                found.push((Token::Mark("("), *line));
                found.push((Token::Mark(")"), *line));
            }
            _ => found.push((token.clone(), *line)),
        }
    }
    found
}

fn is_path(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c == '_' || c == ':' || c.is_alphanumeric())
}

/// The index of the bracket that closes the one at `open`.
fn closing(tokens: &[Placed], open: usize) -> usize {
    let mut depth = 0;
    for (i, (token, _)) in tokens.iter().enumerate().skip(open) {
        match token {
            Token::Mark("(" | "[" | "{") => depth += 1,
            Token::Mark(")" | "]" | "}") => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return i;
        }
    }
    panic!("a bracket without its end")
}

const KEYWORDS: [&str; 36] = [
    "as", "async", "await", "break", "const", "continue", "dyn", "else", "enum", "extern", "false",
    "fn", "for", "if", "impl", "in", "let", "loop", "match", "mod", "move", "mut", "pub", "ref",
    "return", "self", "Self", "static", "struct", "trait", "true", "type", "unsafe", "use",
    "where", "while",
];

struct Reader<'a> {
    tokens: &'a [Placed],
    at: usize,
    /// Tokens before this index belong to a test item.
    test_end: usize,
    /// The open braces: the name of an inline module, `None` for all others.
    blocks: Vec<Option<String>>,
    /// From the last `#[path = "..."]`.
    path: Option<String>,
    file: File,
}

impl Reader<'_> {
    fn is(&self, at: usize, text: &str) -> bool {
        self.tokens.get(at).is_some_and(|(token, _)| token.is(text))
    }

    fn word(&self, at: usize) -> Option<&str> {
        self.tokens.get(at)?.0.word()
    }

    /// Whether the previous token is `text`.
    fn after(&self, text: &str) -> bool {
        self.at > 0 && self.is(self.at - 1, text)
    }

    fn in_test(&self) -> bool {
        self.at < self.test_end
    }

    fn module(&self) -> Vec<String> {
        self.blocks.iter().flatten().cloned().collect()
    }

    fn all(&mut self) {
        while let Some((token, _)) = self.tokens.get(self.at) {
            match token {
                Token::Mark("{") => self.blocks.push(None),
                Token::Mark("}") => drop(self.blocks.pop()),
                Token::Mark("#") => self.attribute(),
                Token::Word(word) => {
                    let word = word.clone();
                    self.read_word(&word);
                    continue;
                }
                _ => {}
            }
            self.at += 1;
        }
        assert!(self.blocks.is_empty(), "a block without its end");
    }

    fn attribute(&mut self) {
        let inner = self.is(self.at + 1, "!");
        let open = self.at + 1 + usize::from(inner);
        if !self.is(open, "[") {
            return;
        }
        let end = closing(self.tokens, open);
        let inside = &self.tokens[open + 1..end];
        let has = |word: &str| inside.iter().any(|(token, _)| token.is(word));
        if self.is(open + 1, "cfg") && has("test") && !has("not") {
            let end = if inner { self.tokens.len() } else { self.end_of_item(end + 1) };
            self.test_end = self.test_end.max(end);
        }
        if let [(name, _), _, (Token::Text(path), _)] = inside
            && name.is("path")
        {
            self.path = Some(path.clone());
        }
    }

    /// The index after the item that begins here: after its `;` or its block.
    fn end_of_item(&self, start: usize) -> usize {
        let mut at = start;
        while at < self.tokens.len() {
            match self.tokens[at].0 {
                Token::Mark(";") => return at + 1,
                Token::Mark("{") => return closing(self.tokens, at) + 1,
                Token::Mark("(" | "[") => at = closing(self.tokens, at),
                _ => {}
            }
            at += 1;
        }
        at
    }

    /// Reads the construct that begins with this word, and moves past it.
    fn read_word(&mut self, word: &str) {
        match word {
            "use" if !self.is(self.at + 1, "<") => return self.read_use(),
            "mod" => return self.read_module(),
            "fn" => self.read_function(),
            "struct" | "enum" | "union" | "trait" | "type" | "const" | "static" | "macro_rules" => {
                let skip = usize::from(self.is(self.at + 1, "mut") || self.is(self.at + 1, "!"));
                self.define(self.at + 1 + skip);
            }
            _ => {}
        }
        if KEYWORDS.contains(&word) && word != "self" {
            self.at += 1;
            return;
        }
        self.read_path();
    }

    /// Items inside functions and `impl` blocks are left out.
    fn define(&mut self, at: usize) {
        let name = self.word(at).filter(|name| !KEYWORDS.contains(name)).map(str::to_owned);
        if let Some(name) = name
            && self.blocks.iter().all(Option::is_some)
            && !self.in_test()
        {
            self.file.items.push((self.module(), name));
        }
    }

    fn read_function(&mut self) {
        let Some(name) = self.word(self.at + 1).map(str::to_owned) else { return };
        self.define(self.at + 1);
        let end = self.end_of_item(self.at);
        if !self.in_test() && self.is(end - 1, "}") {
            let lines = self.lines_of_code(end - 1);
            self.file.functions.push(Function { name, lines });
        }
    }

    /// Lines with code between the braces of a function whose last brace is at `end`.
    fn lines_of_code(&self, end: usize) -> usize {
        let open = (self.at..end).find(|at| self.is(*at, "{")).expect("a body");
        let (first, last) = (self.tokens[open].1, self.tokens[end].1);
        let inside = self.tokens[open..end].iter().map(|(_, line)| *line);
        inside.filter(|line| (first + 1..last).contains(line)).collect::<BTreeSet<_>>().len()
    }

    fn read_module(&mut self) {
        let name = self.word(self.at + 1).expect("a module's name").to_owned();
        if self.is(self.at + 2, "{") {
            self.blocks.push(Some(name));
            if !self.in_test() {
                self.file.inline_modules.push(self.module());
            }
        } else {
            let (module, path, test) = (self.module(), self.path.take(), self.in_test());
            self.file.declarations.push(Declaration { module, name, path, test });
        }
        self.at += 3;
    }

    fn mention(&mut self, at: usize) {
        if self.is(at + 1, "::") && (self.is(at, "crate") || self.is(at, "super")) {
            *(if self.in_test() {
                &mut self.file.test_mentions
            } else {
                &mut self.file.mentions
            }) += 1;
        }
    }

    fn read_use(&mut self) {
        let public = self.after("pub") || self.after(")");
        let end = self.end_of_use();
        self.at += 1;
        let mut found = Vec::new();
        self.read_tree(&mut Vec::new(), &mut found);
        assert_eq!(self.at, end, "a `use` that was read in part");
        if self.at >= self.test_end {
            for (segments, name) in found {
                let path = Path { module: self.module(), segments };
                self.file.uses.push(Use { path, name, public });
            }
        }
        self.at += 1;
    }

    fn end_of_use(&self) -> usize {
        (self.at..).find(|at| self.is(*at, ";")).expect("the end of a `use`")
    }

    /// `a::b as c`, `a::*`, `a::{b, c::d}`
    fn read_tree(&mut self, prefix: &mut Vec<String>, found: &mut Vec<(Vec<String>, String)>) {
        let depth = prefix.len();
        loop {
            if self.is(self.at, "$") {
                // `$crate` in a macro.
                self.at += 1;
            } else if self.is(self.at, "::") {
                // A path that begins with `::` names an external crate.
                if prefix.is_empty() {
                    prefix.push("::".to_owned());
                }
                self.at += 1;
            } else if self.is(self.at, "{") {
                self.at += 1;
                while !self.is(self.at, "}") {
                    self.read_tree(prefix, found);
                    self.at += usize::from(self.is(self.at, ","));
                }
                self.at += 1;
                break;
            } else if self.is(self.at, "*") {
                self.at += 1;
                found.push((prefix.clone(), "*".to_owned()));
                break;
            } else {
                self.mention(self.at);
                prefix.push(self.word(self.at).expect("a name in a `use`").to_owned());
                self.at += 1;
                if self.is(self.at, "::") {
                    continue;
                }
                if prefix.len() > 1 && prefix.last().is_some_and(|last| last == "self") {
                    prefix.pop();
                }
                let mut name = prefix.last().cloned().unwrap_or_default();
                if self.is(self.at, "as") {
                    name = self.word(self.at + 1).expect("a name after `as`").to_owned();
                    self.at += 2;
                }
                found.push((prefix.clone(), name));
                break;
            }
        }
        prefix.truncate(depth);
    }

    fn read_path(&mut self) {
        let start = self.at;
        // A method or field, but not the end of a range.
        let continued =
            self.after("::") || self.after(".") && !(self.at > 1 && self.is(self.at - 2, "."));
        let mut segments = Vec::new();
        while let Some(word) = self.word(self.at) {
            segments.push(word.to_owned());
            self.mention(self.at);
            self.at += 1;
            if !(self.is(self.at, "::") && self.word(self.at + 1).is_some()) {
                break;
            }
            self.at += 1;
        }
        let defined = start > 0
            && ["fn", "struct", "enum", "trait", "type", "let", "mut", "ref", "const", "static"]
                .iter()
                .any(|before| self.is(start - 1, before));
        // A single lower-case word that is not called is taken as a local variable.
        let own = segments.len() == 1
            && !segments[0].starts_with(char::is_uppercase)
            && !self.is(self.at, "(")
            && !self.is(self.at, "::");
        if !continued && !defined && !own && start >= self.test_end {
            self.file.paths.push(Path { module: self.module(), segments });
        }
    }
}
