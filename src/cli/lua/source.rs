//! Which script is run, and with what: its text, its limits and its library.

use std::{
    io::Read,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use clap::Args;

use crate::{
    base::{Stage, duration},
    config::{self, plan::SHIPPED},
    lua::{Library, Limits, Scope, Script},
};

/// How a script is run.
#[derive(Args)]
pub struct Setting {
    /// How long a call may take.
    #[arg(long, default_value = "100ms", value_parser = duration::parse)]
    timeout: Duration,
    /// The memory that its values may take, in bytes.
    #[arg(long, value_name = "BYTES", default_value_t = Limits::default().memory)]
    max_memory: usize,
    /// A configuration: its modules, environment variables and hosts are used. `store` is in memory.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

impl Setting {
    /// The library of the configuration, or an empty one.
    ///
    /// # Errors
    /// What is wrong with the configuration.
    pub fn library(&self) -> Result<Arc<Library>, String> {
        let Some(file) = &self.config else { return Ok(Arc::default()) };
        let plan = config::load(file).map_err(|problems| {
            let all: Vec<_> = problems.iter().map(ToString::to_string).collect();
            format!("{}: {}", file.display(), all.join("; "))
        })?;
        let library = Arc::clone(&plan.lua);
        drop(plan);
        let library = Arc::into_inner(library).ok_or("the configuration is in use")?;
        Ok(Arc::new(library.in_memory()))
    }

    /// Compiles a text for a stage; `None`: for the decision about a key.
    ///
    /// # Errors
    /// The compiler's message, with the line.
    pub fn compile(
        &self,
        name: &str,
        text: &str,
        library: &Arc<Library>,
        stage: Option<Stage>,
    ) -> Result<Script, String> {
        let limits = Limits::new(self.timeout, self.max_memory);
        let scope = stage.map_or(Scope::AUTH, |stage| Scope::of_stage(stage.key()));
        Script::compile_with(name, text, limits, library, scope)
    }
}

/// A script of the command line: a file, the name of a built-in one, or `-` for the standard input.
///
/// # Errors
/// If it cannot be read.
pub fn text(script: &Path) -> Result<String, String> {
    if script == Path::new("-") {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).map_err(|e| format!("cannot read: {e}"))?;
        return Ok(text);
    }
    let named = script.to_str().and_then(|name| SHIPPED.iter().find(|(n, _)| *n == name));
    match (std::fs::read_to_string(script), named) {
        (Ok(text), _) => Ok(text),
        (Err(_), Some((_, text))) => Ok((*text).to_owned()),
        (Err(e), None) => Err(format!("cannot read {}: {e}", script.display())),
    }
}

/// The name of a script in messages.
pub fn name(script: &Path) -> String {
    match script == Path::new("-") {
        true => "stdin".to_owned(),
        false => script.display().to_string(),
    }
}

/// A stage of the command line.
///
/// # Errors
/// If there is none with this key.
pub fn stage(key: &str) -> Result<Stage, String> {
    let known = || Stage::ALL.map(Stage::key).join(", ");
    Stage::of_key(key).ok_or_else(|| format!("there is no such stage; known are {}", known()))
}
