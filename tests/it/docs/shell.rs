//! The commands in a block for the shell.

use std::{
    io::Write,
    process::{Command, Stdio},
};

/// A command as it stands in a block, over one line or several.
#[derive(Debug, PartialEq, Eq)]
pub struct Line {
    /// The command, without the comment after it.
    pub text: String,
    /// The comments after it, in its line and in those below.
    pub comment: String,
}

/// The commands of a block.
pub fn commands(block: &str) -> Vec<Line> {
    let mut found: Vec<Line> = Vec::new();
    let mut open = String::new();
    for line in block.lines() {
        if open.is_empty() && (line.trim().is_empty() || line.starts_with('#')) {
            if let Some(last) = found.last_mut()
                && let Some(comment) = line.strip_prefix('#')
            {
                last.comment.push('\n');
                last.comment.push_str(comment.trim());
            }
            continue;
        }
        let so_far = if open.is_empty() { line.to_owned() } else { format!("{open}\n{line}") };
        let (code, comment) = split_comment(&so_far);
        open = match is_whole(code) {
            true => {
                let (text, comment) = (code.to_owned(), comment.trim().to_owned());
                found.push(Line { text, comment });
                String::new()
            }
            false => so_far,
        };
    }
    assert!(open.is_empty(), "this does not end:\n{open}");
    found
}

/// A command, and the comment at the end of its last line.
fn split_comment(text: &str) -> (&str, &str) {
    let last = text.rfind('\n').map_or(0, |i| i + 1);
    let mut quote = None;
    let mut before = ' ';
    for (i, c) in text.char_indices() {
        match (quote, c) {
            (None, '#') if i >= last && before.is_whitespace() => {
                return (text[..i].trim_end(), &text[i + 1..]);
            }
            (None, '\'' | '"') => quote = Some(c),
            (Some(open), c) if c == open => quote = None,
            _ => {}
        }
        before = c;
    }
    (text, "")
}

/// Whether the shell would begin now, and not wait for more.
fn is_whole(text: &str) -> bool {
    let mut child =
        Command::new("bash").arg("-n").stdin(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    !text.ends_with('\\') && child.wait().unwrap().success()
}

/// The status that a comment expects of an answer: the first thing that it says.
pub fn expected_status(comment: &str) -> Option<u16> {
    let comment = comment.trim_start();
    let first =
        comment.split_once(|c: char| c.is_whitespace() || c == ':').map_or(comment, |(a, _)| a);
    let first = match first {
        "HTTP/1.1" => comment.split_whitespace().nth(1).unwrap_or_default(),
        word => word.trim_end_matches([',', ';']),
    };
    let status = first.parse().ok()?;
    (100..600).contains(&status).then_some(status)
}

/// The exit status that a comment expects: `exit status 1`.
pub fn expected_exit(comment: &str) -> i32 {
    let said = comment.split_once("exit status ").map_or("0", |(_, rest)| rest);
    let digits: String = said.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().unwrap_or(0)
}

#[test]
fn the_reader_of_commands_can_read() {
    let block = "a 'x # y' | b   # 200 and more\n# note\n\nf() { c; }\nd \\\n  '{\n  }'  # 401\n";
    let told: Vec<_> = commands(block).into_iter().map(|l| (l.text, l.comment)).collect();
    let wanted =
        [("a 'x # y' | b", "200 and more\nnote"), ("f() { c; }", ""), ("d \\\n  '{\n  }'", "401")];
    assert_eq!(told, wanted.map(|(a, b)| (a.to_owned(), b.to_owned())));
    assert_eq!(expected_status("HTTP/1.1 503 Service"), Some(503));
    assert_eq!(expected_status("404: not there"), Some(404));
    assert_eq!(expected_status("2 groups"), None);
    assert_eq!(expected_exit("no: exit status 1"), 1);
}
