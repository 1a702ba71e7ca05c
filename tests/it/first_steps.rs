//! What a newcomer sees first.

use std::process::{Command, Output};

fn llmproxy(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_llmproxy")).args(arguments).output().unwrap()
}

#[test]
fn without_arguments_it_says_how_to_begin() {
    let output = llmproxy(&[]);
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(output.stdout.is_empty());
    let help = String::from_utf8(llmproxy(&["--help"]).stdout).unwrap();
    for command in ["demo", "check", "convert", "schema"] {
        assert!(text.contains(&format!("llmproxy {command}")), "{command} in {text}");
        assert!(help.contains(&format!("\n  {command} ")), "{command} in {help}");
    }
    assert!(text.contains("llmproxy --config llmproxy.yaml"), "{text}");
}

#[test]
fn the_file_that_it_suggests_is_valid() {
    let text = String::from_utf8(llmproxy(&[]).stderr).unwrap();
    let line = text.lines().find(|line| line.contains("printf")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let mut shell = Command::new("sh");
    assert!(shell.args(["-c", line]).current_dir(folder.path()).status().unwrap().success());
    let file = folder.path().join("llmproxy.yaml");
    let checked = llmproxy(&["check", "--config", file.to_str().unwrap()]);
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
}
