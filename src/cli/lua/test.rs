//! `llmproxy lua test`: runs a script as the gateway would.

use std::{path::PathBuf, sync::Arc};

use clap::Args;

use super::{
    effect::Effect,
    given::{Given, StageArgs},
    key::{self, KeyArgs, KeyQuestion},
    source::{self, Setting},
};
use crate::{
    base::Stage,
    lua::{Account, Script},
};

#[derive(Args)]
pub struct TestArgs {
    /// A file, the name of a built-in script, or `-` for the standard input.
    script: PathBuf,
    #[command(flatten)]
    at: StageArgs,
    #[command(flatten)]
    key: KeyArgs,
    #[command(flatten)]
    setting: Setting,
}

/// Runs the script. Whether the request goes on.
///
/// # Errors
/// If it could not be run.
pub fn run(args: &TestArgs) -> Result<bool, String> {
    let library = args.setting.library()?;
    let (name, text) = (source::name(&args.script), source::text(&args.script)?);
    let script = args.setting.compile(&name, &text, &library, args.at.stage)?;
    let Some(stage) = args.at.stage else {
        if args.at.given.is_some() {
            return Err("--given needs --stage".to_owned());
        }
        return Ok(key::test(&script, &KeyQuestion::read(&args.key)?));
    };
    let given = Given::read(stage, args.at.given.as_deref())?;
    // Creates the interpreter, which is not part of the script's time.
    let warm = args.setting.compile("warm", "return nil", &Arc::default(), Some(stage))?;
    warm.run_here(&given.call()?).0.ok();
    test(&script, stage, &given)
}

fn test(script: &Script, stage: Stage, given: &Given) -> Result<bool, String> {
    let (result, account) = script.run_here(&given.call()?);
    for line in &account.log {
        println!("log {}: {line}", line.level.as_str().to_lowercase());
    }
    let effect = match result {
        Ok(returned) => {
            match &returned {
                Some(value) => println!("returned: {value}"),
                None => println!("returned: nil"),
            }
            Effect::read(returned, given).map_err(|why| format!("its answer cannot be used: {why}"))
        }
        Err(failure) => Err(failure.to_string()),
    };
    let goes_on = match effect {
        Ok(effect) => {
            for warning in &effect.warnings {
                println!("warning: {warning}");
            }
            match effect.what.is_null() {
                true => println!("result: {}", effect.result),
                false => println!("result: {}\n{:#}", effect.result, effect.what),
            }
            effect.goes_on
        }
        Err(why) => {
            println!("failed: {}: {}: {why}", stage.key(), script.name());
            false
        }
    };
    used(&account);
    Ok(goes_on)
}

fn used(account: &Account) {
    let micros = account.time.as_secs_f64() * 1e6;
    println!("time: {micros:.1} µs, memory: {} bytes", account.memory);
}
