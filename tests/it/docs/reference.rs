//! The tables of `docs/lua.md` are those of the code. `GOLDEN_WRITE=1 cargo nextest run reference` writes
//! them anew.

use std::{fs, process::Command};

use super::markdown::root;

#[test]
fn the_tables_of_scripts_are_those_of_the_code() {
    let printed =
        Command::new(env!("CARGO_BIN_EXE_llmproxy")).args(["lua", "reference"]).output().unwrap();
    let printed = String::from_utf8(printed.stdout).unwrap();
    let file = root().join("docs/lua.md");
    let page = fs::read_to_string(&file).unwrap();
    let mut made = page.clone();
    for name in ["stages", "globals", "returns", "words"] {
        let (begin, end) = (format!("<!-- {name}: begin -->"), format!("<!-- {name}: end -->"));
        let table = |text: &str| {
            let at = text.find(&begin).unwrap_or_else(|| panic!("there is no {begin}"));
            at..text[at..].find(&end).unwrap() + at
        };
        made.replace_range(table(&made), &printed[table(&printed)]);
    }
    if std::env::var_os("GOLDEN_WRITE").is_some() {
        fs::write(file, made).unwrap();
        return;
    }
    assert!(page == made, "docs/lua.md differs from the code: run this test with GOLDEN_WRITE=1");
}
