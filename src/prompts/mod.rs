//! Prompts of the operator in a request's body: which of them a request gets, what their variables
//! stand for, and the edits that put them there. What a language calls a system prompt is in
//! [`dialect`](crate::dialect).

mod render;

use std::{borrow::Cow, sync::Arc};

use jiff::Timestamp;

use self::render::{Facts, render};
use crate::{
    config::{
        choices::PromptPosition,
        plan::{Piece, PromptPlan, PromptsPlan},
    },
    dialect::{Dialect, Operation, SystemText},
    wire::edit::Edit,
};

/// The prompts of a configuration.
pub struct Prompts(PromptsPlan);

/// What decides about the prompts of a request.
#[derive(Clone, Copy)]
pub struct Target<'a> {
    /// The client's language.
    pub language: &'a dyn Dialect,
    pub operation: &'a Operation,
    /// The model, as the client names it; empty if it names none.
    pub model: &'a str,
    /// The user that the key belongs to; empty without one.
    pub user: &'a str,
    /// When the request arrived.
    pub now: Timestamp,
}

/// The prompts of a request.
#[derive(Debug, Default)]
pub struct Applied {
    /// They do not overlap with each other, but are not to be mixed with edits of another origin:
    /// offsets are into the body as it was. Empty if the body stays as it is.
    pub edits: Vec<Edit>,
    /// The names of the prompts, in the order of the configuration.
    pub names: Vec<Arc<str>>,
}

impl Prompts {
    pub fn new(plan: PromptsPlan) -> Self {
        Self(plan)
    }

    /// Whether no request gets any.
    pub fn is_empty(&self) -> bool {
        self.0.prompts.is_empty()
    }

    /// The edits that put the prompts for a request into its body, once. A body without a
    /// conversation, or whose system prompt has no valid form, stays as it is.
    pub fn apply(&self, target: &Target<'_>, body: &[u8]) -> Applied {
        let chosen = self.0.prompts.iter().filter(|prompt| is_for(prompt, target.model));
        let mut text = SystemText::default();
        let mut names = Vec::new();
        for prompt in chosen {
            let Some(rendered) = self.rendered(prompt, target) else { continue };
            match prompt.position {
                PromptPosition::Before => text.add_before(&rendered, &prompt.separator),
                PromptPosition::After => text.add_after(&rendered, &prompt.separator),
            }
            names.push(Arc::clone(&prompt.name));
        }
        if names.is_empty() {
            return Applied::default();
        }
        let edits = target.language.insert_system(target.operation, body, &text);
        if edits.is_empty() {
            names.clear();
        }
        Applied { edits, names }
    }

    /// The text of a prompt; `None` if nothing is left of it.
    fn rendered<'p>(&self, prompt: &'p PromptPlan, target: &Target<'_>) -> Option<Cow<'p, str>> {
        if let [Piece::Text(text)] = &prompt.text[..] {
            return Some(text.into());
        }
        let now = target.now.to_zoned(self.0.time_zone.clone());
        let facts = Facts { now: now.datetime(), model: target.model, user: target.user };
        let text = render(&prompt.text, &facts);
        (!text.is_empty()).then_some(text.into())
    }
}

fn is_for(prompt: &PromptPlan, model: &str) -> bool {
    prompt.models.iter().any(|pattern| pattern.matches(model))
}

#[cfg(test)]
mod tests;
