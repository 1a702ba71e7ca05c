//! The tables of `docs/lua.md`, from the tables of the code.

use std::fmt::Write;

use crate::{
    base::Stage,
    hooks::reference::{self, GLOBALS, RETURNS},
    lua::words::{self, WORDS},
};

/// Prints all tables, each between the markers of the page.
pub fn print() {
    for (name, table) in
        [("stages", stages()), ("globals", globals()), ("returns", returns()), ("words", words())]
    {
        println!("<!-- {name}: begin -->\n\n{table}\n<!-- {name}: end -->\n");
    }
}

/// When a stage's scripts run.
fn when(stage: Stage) -> &'static str {
    match stage {
        Stage::Request => {
            "the request has been read, its key is identified and not yet decided about"
        }
        Stage::Auth => "the key may make the request by all other rules",
        Stage::RateLimit => "before the limits admit the request",
        Stage::Route => "before the first backend is picked",
        Stage::UpstreamRequest => "before each attempt is sent",
        Stage::Response => "the head of an answer, or a plain answer as a whole",
        Stage::StreamEvent => "each event of a stream",
        Stage::Error => "before an error response of the gateway's own",
        Stage::Usage => "before the usage record is written",
        Stage::Complete => "after the end, apart from the request",
    }
}

fn stages() -> String {
    let mut table =
        "| stage | when | globals of its own | may return |\n|---|---|---|---|\n".to_owned();
    for stage in Stage::ALL {
        let own = reference::globals(stage).filter(|word| word.stages.len() < Stage::ALL.len());
        let own = names(own.map(|word| word.name));
        let returns = match stage {
            Stage::StreamEvent => "the changed `event`, `false` (drops it), `stop`".to_owned(),
            Stage::Usage => "fields of the record".to_owned(),
            Stage::Complete => String::new(),
            stage => names(reference::returns(stage).map(|word| word.name)),
        };
        line(&mut table, &[&format!("`{}`", stage.key()), when(stage), &own, &returns]);
    }
    table
}

fn globals() -> String {
    let mut text = String::new();
    for word in GLOBALS {
        let kind = if word.kind.is_empty() { String::new() } else { format!(" (`{}`)", word.kind) };
        let stages = match word.stages.len() == Stage::ALL.len() {
            true => "All stages".to_owned(),
            false => names(word.stages.iter().map(|stage| stage.key())),
        };
        let (name, doc) = (word.name, word.doc);
        writeln!(text, "#### Global `{name}`\n\n{stages}{kind}: {doc}\n").ok();
        if word.fields.is_empty() {
            continue;
        }
        text += "| field | type | meaning |\n|---|---|---|\n";
        for field in word.fields {
            let (name, kind) = (format!("`{}`", field.name), format!("`{}`", field.kind));
            line(&mut text, &[&name, &kind, field.doc]);
        }
        text.push('\n');
    }
    text.truncate(text.trim_end().len());
    text.push('\n');
    text
}

fn returns() -> String {
    let mut table =
        "| field | stages | type | meaning | example |\n|---|---|---|---|---|\n".to_owned();
    for word in RETURNS {
        let stages = names(word.stages.iter().map(|stage| stage.key()));
        let (name, kind) = (format!("`{}`", word.name), format!("`{}`", word.kind));
        line(&mut table, &[&name, &stages, &kind, word.doc, &format!("`{}`", word.example)]);
    }
    table
}

fn words() -> String {
    let mut table = "| word | returns | meaning |\n|---|---|---|\n".to_owned();
    for word in WORDS {
        let early = word.stages == words::Stages::BeforeBackend;
        let only = if early { " Only before a backend is asked." } else { "" };
        let (signature, kind) = (format!("`{}`", word.signature), format!("`{}`", word.returns));
        line(&mut table, &[&signature, &kind, &format!("{}{only}", word.doc)]);
    }
    table
}

fn names<'a>(names: impl Iterator<Item = &'a str>) -> String {
    names.map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

/// A row; a bar in a cell must not end it.
fn line(table: &mut String, cells: &[&str]) {
    for cell in cells {
        write!(table, "| {} ", cell.replace('|', "\\|")).ok();
    }
    table.push_str("|\n");
}
