//! `llmproxy lua repl`: lines of the standard input, evaluated with the globals of a stage.

use std::{
    io::{self, BufRead, IsTerminal, Write},
    sync::Arc,
};

use clap::Args;
use serde_json::Value;

use super::{
    given::{Given, StageArgs},
    source::Setting,
};
use crate::{
    base::Stage,
    hooks::Call,
    lua::{Account, Failure, Library},
};

#[derive(Args)]
pub struct ReplArgs {
    #[command(flatten)]
    at: StageArgs,
    #[command(flatten)]
    setting: Setting,
}

/// What has been entered so far.
struct Session<'a> {
    setting: &'a Setting,
    library: Arc<Library>,
    stage: Stage,
    call: Call,
    /// Statements that are kept, and an empty line for everything else: an error names the line of the
    /// input.
    kept: String,
    /// Log lines of kept statements, which are not printed again.
    told: usize,
    /// Whether a line has failed.
    failed: bool,
}

/// What became of a line.
enum Outcome {
    /// The next line belongs to it.
    Incomplete(String),
    Done,
}

/// Evaluates the lines until the end of the input. Whether none has failed.
///
/// # Errors
/// If nothing could be run.
pub fn run(args: &ReplArgs) -> Result<bool, String> {
    let stage = args.at.stage.unwrap_or(Stage::Request);
    let call = Given::read(stage, args.at.given.as_deref())?.call()?;
    let (setting, library) = (&args.setting, args.setting.library()?);
    let mut session =
        Session { setting, library, stage, call, kept: String::new(), told: 0, failed: false };
    let (input, talks) = (io::stdin().lock(), io::stdin().is_terminal());
    let mut open = String::new();
    prompt(talks, false);
    for line in input.lines() {
        open += &line.map_err(|e| e.to_string())?;
        if let Outcome::Incomplete(_) = session.line(&open) {
            open.push('\n');
            prompt(talks, true);
            continue;
        }
        open.clear();
        prompt(talks, false);
    }
    if let Outcome::Incomplete(why) = session.line(open.trim_end()) {
        session.fail(&why);
    }
    Ok(!session.failed)
}

fn prompt(talks: bool, more: bool) {
    if talks {
        print!("{}", if more { ">> " } else { "> " });
        io::stdout().flush().ok();
    }
}

impl Session<'_> {
    fn line(&mut self, line: &str) -> Outcome {
        let text = line.trim();
        let expression = text.strip_prefix("return ").or(text.strip_prefix('=')).unwrap_or(line);
        if text.is_empty() {
            self.skip(line);
            return Outcome::Done;
        }
        // A comment at its end must not hide what follows.
        if let Ok(script) = self.compile(&format!("return {expression}\n")) {
            let (result, account) = script.run_here(&self.call);
            self.log(&account);
            self.skip(line);
            match result {
                Ok(Some(value)) => println!("{value}"),
                Ok(None) => println!("nil"),
                Err(failure) => self.fail(&shown(failure)),
            }
            return Outcome::Done;
        }
        match self.compile(&format!("{line}\n")) {
            Ok(script) => {
                let (result, account) = script.run_here(&self.call);
                self.log(&account);
                match result {
                    Ok(returned) => self.keep(line, returned, account.log.len()),
                    Err(failure) => {
                        self.skip(line);
                        self.fail(&shown(failure));
                    }
                }
            }
            Err(why) if why.contains("<eof>") => return Outcome::Incomplete(why),
            Err(why) => {
                self.skip(line);
                self.fail(&why);
            }
        }
        Outcome::Done
    }

    fn compile(&self, text: &str) -> Result<crate::lua::Script, String> {
        let whole = format!("{}{text}", self.kept);
        self.setting.compile("line", &whole, &self.library, Some(self.stage))
    }

    /// Keeps a statement, unless nothing could follow it.
    fn keep(&mut self, line: &str, returned: Option<Value>, logged: usize) {
        if let Some(value) = returned {
            println!("{value}");
        }
        let whole = format!("{line}\n");
        if self.compile(&format!("{whole}local _ = nil\n")).is_err() {
            return self.skip(line);
        }
        self.kept += &whole;
        self.told = logged;
    }

    fn skip(&mut self, line: &str) {
        self.kept.extend(line.split('\n').map(|_| '\n'));
    }

    fn log(&self, account: &Account) {
        for line in account.log.iter().skip(self.told) {
            println!("log {}: {line}", line.level.as_str().to_lowercase());
        }
    }

    fn fail(&mut self, why: &str) {
        self.failed = true;
        println!("error: {why}");
    }
}

fn shown(failure: Failure) -> String {
    match failure {
        Failure::Answer(why) => format!("it cannot be printed: {why}"),
        other => other.to_string(),
    }
}
