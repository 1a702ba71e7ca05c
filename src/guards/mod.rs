//! Guards: what is looked for in requests and answers before they pass. Each is configuration, not code.
//!
//! [`Guards::applies`] chooses the entries for a request by its caller and its model. [`Guards::request`]
//! judges the body and tells the edits; [`Moderation::ask`] asks services. [`Guards::answer`] makes the filter
//! of an answer, if there is anything to do. None of it knows a language: `dialect/texts.rs` finds the texts.

mod answer;
mod caps;
mod checksum;
mod detect;
mod finding;
mod inner;
mod moderation;
mod prompt;
mod redact;
mod role;
mod running;
#[cfg(test)]
mod tests;
mod vault;

use std::{fmt, sync::Arc};

pub use self::{
    answer::{AnswerFilter, Blocked},
    finding::{Finding, Refused},
    moderation::{Moderation, Question, Verdict},
    vault::Vault,
};
use crate::{
    config::{
        choices::{DenyOn, RedactAction},
        plan::{CapsPlan, DenyPlan, GuardsPlan, RedactPlan, Subject, WhenPlan},
    },
    dialect::{Dialect, Operation, texts::RequestTexts},
    store::http as clients,
    wire::edit::Edit,
};

/// The guards of a configuration.
#[derive(Default)]
pub struct Guards {
    redact: Vec<RedactPlan>,
    deny: Vec<Arc<DenyPlan>>,
    moderation: Vec<(WhenPlan, Arc<Moderation>)>,
    caps: Vec<CapsPlan>,
}

/// The entries that apply to a request: a bit for each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Selected {
    redact: u64,
    deny: u64,
    moderation: u64,
    caps: u64,
}

impl Selected {
    /// Whether none applies.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Whether [`Guards::request`] has anything to do.
    pub fn reads_body(&self) -> bool {
        self.redact | self.deny | self.caps != 0
    }

    /// Whether a service is to be asked.
    pub fn moderates(&self) -> bool {
        self.moderation != 0
    }
}

/// What becomes of a request that passes.
#[derive(Debug, Default)]
pub struct RequestOutcome {
    /// They do not overlap; the offsets are those of the body that was given.
    pub edits: Vec<Edit>,
    /// What the answer gets back.
    pub vault: Option<Vault>,
    pub findings: Vec<Finding>,
}

impl Guards {
    /// Makes the guards of a plan.
    pub fn new(plan: &GuardsPlan) -> Self {
        let client = (!plan.moderation.is_empty()).then(clients::outside);
        let moderation = plan.moderation.iter().zip(client.iter().cycle());
        let moderation = moderation.map(|(plan, client)| {
            (plan.when.clone(), Arc::new(Moderation::new(plan.clone(), client.clone())))
        });
        Self {
            redact: plan.redact.clone(),
            deny: plan.deny.iter().cloned().map(Arc::new).collect(),
            moderation: moderation.collect(),
            caps: plan.caps.clone(),
        }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.redact.is_empty()
            && self.deny.is_empty()
            && self.moderation.is_empty()
            && self.caps.is_empty()
    }

    /// The entries that apply to a request.
    pub fn applies(&self, subject: &Subject<'_>) -> Selected {
        Selected {
            redact: mask(self.redact.iter().map(|entry| &entry.when), subject),
            deny: mask(self.deny.iter().map(|entry| &entry.when), subject),
            moderation: mask(self.moderation.iter().map(|(when, _)| when), subject),
            caps: mask(self.caps.iter().map(|entry| &entry.when), subject),
        }
    }

    /// Judges the body of a request, which is one JSON object in UTF-8. Its time is linear in the body.
    ///
    /// # Errors
    /// If it does not pass. The message does not repeat what was found.
    pub fn request(
        &self,
        selected: Selected,
        language: &dyn Dialect,
        operation: &Operation,
        body: &[u8],
    ) -> Result<RequestOutcome, Box<Refused>> {
        if !selected.reads_body() {
            return Ok(RequestOutcome::default());
        }
        let RequestTexts { texts, images } = language.request_texts(operation, body);
        let mut outcome = RequestOutcome::default();
        if selected.caps != 0 {
            let entries: Vec<_> = chosen(&self.caps, selected.caps).collect();
            let limit = language.output_limit(operation);
            let capped = caps::cap(&entries, body, &images, limit)?;
            outcome.edits = capped.edits;
            outcome.findings = capped.findings;
        }
        let denied = chosen(&self.deny, selected.deny).filter(|e| e.on.contains(&DenyOn::Prompt));
        let denied: Vec<&DenyPlan> = denied.map(AsRef::as_ref).collect();
        prompt::check(&denied, &texts, body)?;
        if selected.redact != 0 {
            let entries: Vec<_> = chosen(&self.redact, selected.redact).collect();
            let reversible =
                |entry: &&RedactPlan| entry.action == RedactAction::Mask && entry.reversible;
            let json = entries.iter().any(reversible) && language.asks_for_json(body);
            let redacted = redact::redact(&entries, &texts, body, json)?;
            outcome.edits.extend(redacted.edits);
            outcome.findings.extend(redacted.findings);
            outcome.vault = redacted.vault;
        }
        Ok(outcome)
    }

    /// The services to ask about a request, and what they are asked. They see what this body says: with the
    /// edits of [`Self::request`] no more than the backend.
    pub fn questions(
        &self,
        selected: Selected,
        (language, operation): (&dyn Dialect, &Operation),
        body: &[u8],
        subject: &Subject<'_>,
    ) -> Vec<(Arc<Moderation>, Question)> {
        if !selected.moderates() {
            return Vec::new();
        }
        let texts = language.request_texts(operation, body).texts;
        let asked = chosen(&self.moderation, selected.moderation).filter_map(|(_, service)| {
            let who = subject.principal.map_or(("", ""), |p| (&p.user_id, &p.key_id));
            let question = service.question(&texts, body, subject.model, who)?;
            Some((Arc::clone(service), question))
        });
        asked.collect()
    }

    /// The filter of an answer in the client's language; `None` if there is nothing to look for.
    pub fn answer(
        &self,
        selected: Selected,
        language: &'static dyn Dialect,
        vault: Option<Vault>,
    ) -> Option<AnswerFilter> {
        let denied = chosen(&self.deny, selected.deny);
        let denied: Vec<_> =
            denied.filter(|entry| entry.on.contains(&DenyOn::Answer)).cloned().collect();
        let needed = vault.is_some() || !denied.is_empty();
        needed.then(|| AnswerFilter::new(language, denied, vault))
    }
}

impl fmt::Debug for Guards {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lengths = [self.redact.len(), self.deny.len(), self.moderation.len(), self.caps.len()];
        write!(f, "guards {lengths:?}")
    }
}

/// The entries whose bits are set.
fn chosen<T>(entries: &[T], mask: u64) -> impl Iterator<Item = &T> {
    entries.iter().enumerate().filter(move |(i, _)| mask >> i & 1 == 1).map(|(_, entry)| entry)
}

/// A plan has no more entries than there are bits.
fn mask<'a>(conditions: impl Iterator<Item = &'a WhenPlan>, subject: &Subject<'_>) -> u64 {
    let fitting = conditions.enumerate().filter(|(_, when)| when.matches(subject));
    fitting.fold(0, |mask, (i, _)| mask | 1 << i)
}
