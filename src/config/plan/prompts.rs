//! `system_prompts`: prompts of the operator, from a folder, a file and the configuration.

mod folder;
mod glob;
mod header;
mod template;
mod variables;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use jiff::tz::TimeZone;

pub use self::{
    folder::prompt_folder_contents,
    glob::Glob,
    template::{Piece, RequestVariable},
};
use self::{header::PromptFile, template::Value};
use super::planner::Planner;
use crate::config::{
    choices::PromptPosition,
    raw::{PromptSeparator, PromptSettings, SystemPrompt, SystemPrompts},
};

/// The prompts of the operator.
#[derive(Clone, Debug)]
pub struct PromptsPlan {
    /// In the order in which they stand; without those that are switched off.
    pub prompts: Vec<PromptPlan>,
    /// That of dates and times.
    pub time_zone: TimeZone,
    /// The folder whose prompts are watched. It need not exist.
    pub folder: Option<PathBuf>,
}

impl Default for PromptsPlan {
    fn default() -> Self {
        Self { prompts: Vec::new(), time_zone: TimeZone::UTC, folder: None }
    }
}

/// A prompt.
#[derive(Clone, Debug)]
pub struct PromptPlan {
    /// Its file, relative to the configuration, or the name that it was given.
    pub name: Arc<str>,
    pub position: PromptPosition,
    /// What separates it from the text that it is added to.
    pub separator: String,
    /// The models whose requests get it, as clients name them.
    pub models: Vec<Glob>,
    /// Not empty.
    pub text: Vec<Piece>,
}

/// A file with a prompt.
struct Location {
    /// The path of what names it in the configuration.
    at: &'static str,
    name: String,
    path: PathBuf,
}

/// A prompt that was read.
struct Source {
    /// The path of what names it in the configuration.
    at: String,
    name: String,
    text: String,
    settings: PromptSettings,
}

const FOLDER: &str = "system_prompts";
const FILE: &str = "system_prompt.md";
const PRIORITY: i64 = 100;

/// Bytes of the longest text: more is probably another file.
const LONGEST_TEXT: usize = 1 << 20;

impl Planner<'_> {
    pub(super) fn prompts(&mut self, raw: Option<&SystemPrompts>) -> PromptsPlan {
        let Some(raw) = raw.filter(|raw| raw.enabled.0) else {
            return PromptsPlan::default();
        };
        for (at, why) in variables::unusable_names(raw) {
            self.problem(at, why, "");
        }
        let mut prompts = Vec::new();
        for source in self.prompt_sources(raw) {
            let priority = source.settings.priority.unwrap_or(PRIORITY);
            prompts.extend(self.prompt(source, raw).map(|plan| (priority, plan)));
        }
        if prompts.is_empty() {
            let message = "there are no prompts: nothing is inserted";
            self.warn("system_prompts", message);
        }
        // Stable: those with the same priority keep their order.
        prompts.sort_by_key(|(priority, _)| *priority);
        let prompts: Vec<_> = prompts.into_iter().map(|(_, plan)| plan).collect();
        let time_zone = self.prompt_time_zone(raw, prompts.iter().any(PromptPlan::has_time));
        let folder = Some(self.path(raw.path.as_deref().unwrap_or(FOLDER)));
        PromptsPlan { prompts, time_zone, folder }
    }

    /// All prompts: the files by their paths, then those of the list.
    fn prompt_sources(&mut self, raw: &SystemPrompts) -> Vec<Source> {
        let mut sources = Vec::new();
        for Location { at, name, path } in self.prompt_files(raw) {
            let Some(found) = self.prompt_file(at, &name, &path) else { continue };
            let at = at.to_owned();
            sources.push(Source { at, name, text: found.text, settings: found.settings });
        }
        let list = raw.prompts.iter().enumerate();
        sources.extend(list.filter_map(|(i, prompt)| self.listed_prompt(i, prompt)));
        sources
    }

    /// The files of the folder and the single one, except those that the list names.
    fn prompt_files(&mut self, raw: &SystemPrompts) -> Vec<Location> {
        let folder = raw.path.as_deref().unwrap_or(FOLDER);
        let in_folder = |path: PathBuf| {
            let file = path.file_name().unwrap_or_default().to_string_lossy();
            let name = format!("{}/{file}", folder.trim_end_matches('/'));
            Location { at: "system_prompts.path", name, path }
        };
        let mut files: Vec<_> = self.folder_files(raw, folder).into_iter().map(in_folder).collect();
        let name = raw.file.as_deref().unwrap_or(FILE);
        let path = self.path(name);
        if raw.file.is_some() || path.exists() {
            files.push(Location { at: "system_prompts.file", name: name.to_owned(), path });
        } else {
            // It may appear.
            self.files.push(path);
        }
        let listed: Vec<_> =
            raw.prompts.iter().filter_map(|p| Some(self.path(p.file.as_deref()?))).collect();
        files.retain(|file| !listed.contains(&file.path));
        files.sort_by(|one, other| one.name.cmp(&other.name));
        files.dedup_by(|one, other| one.path == other.path);
        files
    }

    /// The files of the folder. Only one that is named must exist.
    fn folder_files(&mut self, raw: &SystemPrompts, folder: &str) -> Vec<PathBuf> {
        let path = self.path(folder);
        if raw.path.is_none() && !path.exists() {
            return Vec::new();
        }
        folder::files(&path).unwrap_or_else(|e| {
            let message = format!("cannot read the folder {}: {e}", path.display());
            let hint = "a relative path starts at the folder of the configuration file";
            self.problem("system_prompts.path", message, hint);
            Vec::new()
        })
    }

    fn prompt_file(&mut self, at: &str, name: &str, path: &Path) -> Option<PromptFile> {
        self.files.push(path.to_owned());
        let found = header::parse(&self.text_of(at, path)?);
        for problem in &found.problems {
            let key = if problem.path.is_empty() { "" } else { ": " };
            let message = format!("{name}{key}{}: {}", problem.path, problem.message);
            let hint = problem.hint.as_deref().unwrap_or(
                "a text that begins with `---` itself is written after an empty header: two lines `---`",
            );
            self.problem(at, message, hint);
        }
        if let Some(doubt) = &found.doubt {
            self.warn(at, format!("{name}: {doubt}"));
        }
        Some(found)
    }

    fn listed_prompt(&mut self, i: usize, raw: &SystemPrompt) -> Option<Source> {
        let at = format!("system_prompts.prompts[{i}]");
        let (text, header) = match (&raw.text, &raw.file) {
            (Some(text), None) => (text.trim().to_owned(), PromptSettings::default()),
            (None, Some(file)) => {
                let found = self.prompt_file(&format!("{at}.file"), file, &self.path(file))?;
                (found.text, found.settings)
            }
            (Some(_), Some(_)) => {
                self.problem(at, "has both `text` and `file`", "keep one");
                return None;
            }
            (None, None) => {
                self.problem(at, "has no text", "add `text` or `file`");
                return None;
            }
        };
        let name = raw.name.clone().or_else(|| raw.file.clone());
        let name = name.unwrap_or_else(|| format!("prompts[{i}]"));
        Some(Source { at, name, text, settings: raw.settings(header) })
    }

    fn prompt(&mut self, source: Source, raw: &SystemPrompts) -> Option<PromptPlan> {
        let Source { at, name, text, settings } = source;
        if settings.enabled == Some(false) {
            return None;
        }
        if text.is_empty() {
            self.warn(at, format!("{name}: is empty"));
            return None;
        }
        if text.len() > LONGEST_TEXT {
            self.problem(&at, format!("{name}: is longer than 1MiB"), "");
        }
        let separator = self.prompt_separator(&at, &name, &settings);
        let models = settings.models.unwrap_or_else(|| vec!["*".to_owned()]);
        if models.is_empty() {
            let hint = "leave `models` out for all models";
            self.problem(&at, format!("{name}: `models` is empty"), hint);
        }
        let text = template::parse(&text, |variable| self.variable(&at, &name, variable, raw));
        let plan = PromptPlan {
            name: name.into(),
            position: settings.position.unwrap_or_default(),
            separator,
            models: models.iter().map(|pattern| Glob::new(pattern)).collect(),
            text,
        };
        self.warn_of_clock(&at, &plan);
        Some(plan).filter(|plan| !plan.text.is_empty())
    }

    fn prompt_separator(&mut self, at: &str, name: &str, settings: &PromptSettings) -> String {
        let custom = settings.custom_separator.clone().unwrap_or_default();
        let separator = settings.separator.unwrap_or_default();
        match separator {
            PromptSeparator::Custom if settings.custom_separator.is_none() => {
                let message = format!("{name}: has no `custom_separator`");
                self.problem(at, message, "`separator: custom` needs one");
            }
            PromptSeparator::Custom => {}
            _ if !custom.is_empty() => {
                let message = format!("{name}: its `custom_separator` has no effect");
                self.problem(at, message, "add `separator: custom`");
            }
            _ => {}
        }
        match separator {
            PromptSeparator::Newline => "\n".to_owned(),
            PromptSeparator::DoubleNewline => "\n\n".to_owned(),
            PromptSeparator::None => String::new(),
            PromptSeparator::Custom => custom,
        }
    }

    /// What a variable of a prompt stands for; `None` if that is a problem, which is reported.
    fn variable(
        &mut self,
        at: &str,
        prompt: &str,
        name: &str,
        raw: &SystemPrompts,
    ) -> Option<Value> {
        match variables::find(name, raw, self.env) {
            Ok(value) => Some(value),
            Err(refused) => {
                self.problem(at, format!("{prompt}: {}", refused.message), &refused.hint);
                None
            }
        }
    }

    /// Engines reuse what they have computed for requests that begin alike.
    fn warn_of_clock(&mut self, at: &str, plan: &PromptPlan) {
        if plan.variables().any(RequestVariable::is_clock) {
            let message = format!(
                "{}: its text changes with the time: engines cannot reuse their prefix caches for what follows \
                 `${{_TIME}}` or `${{_DATETIME}}`; `${{_DATE}}` changes once a day",
                plan.name
            );
            self.warn(at, message);
        }
    }

    fn prompt_time_zone(&mut self, raw: &SystemPrompts, needed: bool) -> TimeZone {
        let found = match &raw.time_zone {
            Some(name) => TimeZone::get(name),
            None if needed => TimeZone::try_system(),
            None => return TimeZone::UTC,
        };
        found.unwrap_or_else(|e| {
            if let Some(name) = &raw.time_zone {
                let message = format!("the time zone `{name}` is not known here: {e}");
                let hint = "write a name like `Europe/Berlin` whose zone file is installed, or `UTC`";
                self.problem("system_prompts.time_zone", message, hint);
            } else {
                let message = "the time zone of the machine is not known: dates and times of prompts are in \
                               UTC; set `time_zone`";
                self.warn("system_prompts", message);
            }
            TimeZone::UTC
        })
    }
}

impl PromptPlan {
    fn variables(&self) -> impl Iterator<Item = RequestVariable> {
        self.text.iter().filter_map(|piece| match piece {
            Piece::Text(_) => None,
            Piece::Variable { variable, .. } => Some(*variable),
        })
    }

    fn has_time(&self) -> bool {
        self.variables().any(RequestVariable::is_time)
    }
}

#[cfg(test)]
mod tests;
