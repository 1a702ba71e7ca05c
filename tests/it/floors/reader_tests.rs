//! Tests of the source reader on small texts.

use super::{
    reader::{File, read},
    tree::{circles, describe, tree},
};

fn paths(file: &File) -> Vec<String> {
    file.paths.iter().map(|path| path.segments.join("::")).collect()
}

fn uses(file: &File) -> Vec<(String, &str)> {
    file.uses.iter().map(|u| (u.path.segments.join("::"), u.name.as_str())).collect()
}

/// The import arrows between small files. One of them is `lib.rs`.
fn arrows(files: &[(&str, &str)]) -> Vec<String> {
    let tree = tree(&["lib.rs"], |path| {
        files.iter().find(|(name, _)| *name == path).map(|(_, text)| (*text).to_owned())
    });
    assert_eq!(tree.files.len(), files.len());
    let arrows = tree.arrows();
    arrows
        .iter()
        .map(|((from, to), names)| {
            format!("{from} -> {to}: {}", names.iter().cloned().collect::<Vec<_>>().join(", "))
        })
        .collect()
}

#[test]
fn groups_and_aliases_of_imports_are_read() {
    let file = read(
        "use crate::{\n    base::{A, B as C, d::{self, e}},\n    config,\n};\n\
         pub(super) use super::super::x::Y;\nuse ::redis::Z;\npub use self::child::*;",
    );
    assert_eq!(
        uses(&file),
        [
            ("crate::base::A".to_owned(), "A"),
            ("crate::base::B".to_owned(), "C"),
            ("crate::base::d".to_owned(), "d"),
            ("crate::base::d::e".to_owned(), "e"),
            ("crate::config".to_owned(), "config"),
            ("super::super::x::Y".to_owned(), "Y"),
            ("::::redis::Z".to_owned(), "Z"),
            ("self::child".to_owned(), "*"),
        ]
    );
    assert_eq!(file.uses.iter().filter(|u| u.public).count(), 2);
    assert_eq!(file.mentions, 3);
}

#[test]
fn inline_paths_are_read() {
    let file = read(
        "fn f(x: &crate::wire::Head<'_>) -> super::Y { x.g(); super::super::a::h::<u8>(0..b::i()) }\n\
         macro_rules! m { () => { $crate::base::j() }; }\n\
         #[serde(default = \"super::one\", rename = \"two::three\", alias = \"x y\")] struct S;",
    );
    let found = paths(&file);
    for path in [
        "crate::wire::Head",
        "super::Y",
        "super::super::a::h",
        "b::i",
        "crate::base::j",
        "super::one",
    ] {
        assert!(found.contains(&path.to_owned()), "{path}: {found:?}");
    }
    assert!(!found.iter().any(|path| path == "g"), "{found:?}");
    assert_eq!(file.mentions, 6);
}

#[test]
fn tests_comments_and_strings_are_not_imports() {
    let file = read(
        "//! crate::a\nuse super::b; // use crate::c;\n/* crate::d */\n\
         const E: &str = \"use crate::e; } {\";\nconst F: char = '\"';\n\
         #[cfg(test)]\nuse crate::g;\n#[cfg(test)]\nfn h(x: [u8; 2]) { crate::i() }\n\
         fn j() { crate::k() }\n\
         #[cfg(test)]\nmod tests {\n    use super::*;\n    fn l() { crate::m() }\n}\n",
    );
    assert_eq!(uses(&file), [("super::b".to_owned(), "b")]);
    assert_eq!(paths(&file), ["char", "crate::k"].map(str::to_owned)[1..]);
    assert_eq!((file.mentions, file.test_mentions), (2, 4));
    assert_eq!(file.functions.iter().map(|f| &f.name[..]).collect::<Vec<_>>(), ["j"]);
    assert_eq!(file.lines, 5);
}

#[test]
fn a_function_is_measured_by_its_lines_of_code() {
    let file = read(
        "fn a<T>(x: [u8; 2]) -> char\nwhere\n    T: Copy,\n{\n    let b = \"}\"; // }\n\n    // {\n    '}'\n}\n\
         trait C {\n    fn d(&self);\n    fn e(&self) { struct F { g: fn(u8) } }\n}\n",
    );
    let found: Vec<_> = file.functions.iter().map(|f| (&f.name[..], f.lines)).collect();
    assert_eq!(found, [("a", 2), ("e", 0)]);
}

#[test]
fn a_name_leads_to_the_file_that_defines_it() {
    let found = arrows(&[
        ("lib.rs", "pub mod a;\npub mod b;"),
        (
            "a/mod.rs",
            "mod one;\nmod two;\nmod three;\n#[cfg(test)] mod tests;\n\
             pub use self::one::One;\npub use self::three::*;\npub struct Own;\n\
             fn f() -> Two { two::g() }\nuse self::two::Two;",
        ),
        ("a/one.rs", "use super::{Own, Two, two::h as i};\npub struct One;"),
        ("a/two.rs", "pub struct Two;\npub fn g() {}\npub fn h() {}"),
        (
            "a/three.rs",
            "pub enum Three { A }\npub mod inner { pub type Deep = super::super::One; }",
        ),
        ("a/tests.rs", "use super::{one::One, two::Two};\nmod more;"),
        ("a/tests/more.rs", "use crate::b;"),
        (
            "b.rs",
            "use crate::a::{self, One as Renamed};\nuse std::collections::BTreeMap;\n\
             fn f() { a::Three::A; a::inner::Deep::x(); a::Own; a::made_by_a_macro(); }",
        ),
    ]);
    assert_eq!(
        found,
        [
            "a/mod.rs -> a/two.rs: Two, two::Two, two::g",
            "a/one.rs -> a/mod.rs: Own",
            "a/one.rs -> a/two.rs: Two, two::h",
            "a/three.rs -> a/one.rs: One",
            "b.rs -> a/mod.rs: a::Own, a::made_by_a_macro",
            "b.rs -> a/one.rs: a::One",
            "b.rs -> a/three.rs: a::Three::A, a::inner::Deep::x",
        ]
    );
}

#[test]
fn a_re_export_of_a_child_makes_no_arrow_but_its_use_does() {
    let shown = "mod child;\npub use self::child::Child;\npub struct Own;\n";
    let used = format!("{shown}fn f(child: Child) {{ child.g() }}\n");
    let child = "use super::Own;\npub struct Child;";
    let up = "a/child.rs -> a/mod.rs: Own";
    for (parent, expected) in
        [(shown, vec![up]), (&used, vec![up, "a/mod.rs -> a/child.rs: Child"])]
    {
        let found = arrows(&[("lib.rs", "mod a;"), ("a/mod.rs", parent), ("a/child.rs", child)]);
        assert_eq!(found, expected);
    }
}

#[test]
fn circles_are_found_whole_with_what_ties_them() {
    let arrows: super::tree::Arrows = [
        ("a", "b", "super::b::B"),
        ("b", "c", "C"),
        ("c", "a", "A"),
        ("c", "d", "D"),
        ("d", "e", "E"),
        ("e", "d", "D"),
        ("e", "f", "F"),
        ("g", "a", "A"),
    ]
    .map(|(from, to, name)| ((from.to_owned(), to.to_owned()), [name.to_owned()].into()))
    .into();
    let found = circles(&arrows);
    assert_eq!(found, [vec!["a", "b", "c"], vec!["d", "e"]]);
    assert_eq!(describe(&found[1], &arrows), "a circle of 2 files: d, e\n  d -> e: E\n  e -> d: D");
}
