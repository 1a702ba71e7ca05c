//! What a request wants of the answer's number, length and likelihoods.

use crate::dialect::hub::{
    effort,
    json::Json,
    loss::{Losses, Refused},
    request::{Format, Part, ReasoningMode, Request, SystemText},
    target::{Target, Traits},
};

/// What changes the meaning of the answer if it is left out.
pub fn choices(
    request: &mut Request,
    from: &Traits,
    to: &Traits,
    target: &Target,
    losses: &mut Losses,
) -> Result<(), Refused> {
    if request.choices.is_some_and(|n| n > 1) && !to.choices {
        return Err(Refused::new("n", "the backend's language gives one answer"));
    }
    if request.logprobs.is_some() && !to.logprobs {
        let why = "the backend's language has no log probabilities";
        return Err(Refused::new(from.words.logprobs, why));
    }
    if request.modalities.iter().any(|modality| modality != "text") && !to.modalities {
        return Err(Refused::new("modalities", "the backend's language gives text only"));
    }
    if target.facts.vision == Some(false) {
        let image = request.turns.iter().find(|turn| {
            turn.parts.iter().any(|part| match part {
                Part::Image(_) => true,
                Part::ToolResult(result) => {
                    result.parts.iter().any(|part| matches!(part, Part::Image(_)))
                }
                _ => false,
            })
        });
        if let Some(turn) = image {
            return Err(Refused::new(turn.path.clone(), "the model does not take images"));
        }
    }
    format(request, to, target, losses)
}

/// A schema that the model does not take goes to it as text.
fn format(
    request: &mut Request,
    to: &Traits,
    target: &Target,
    losses: &mut Losses,
) -> Result<(), Refused> {
    match &request.format {
        Some(Format::Other { language, .. }) if *language != to.name => {
            let why = "the backend's language has no such form of an answer";
            Err(Refused::new("response_format", why))
        }
        Some(Format::Schema { schema, .. }) if target.facts.schemas == Some(false) => {
            let text = format!(
                "Answer with a JSON object by this JSON Schema, and nothing else:\n{}",
                schema.as_str()
            );
            request.system.push(SystemText { text, origin: "system", ..SystemText::default() });
            request.format = Some(Format::JsonObject);
            losses.add("schema", "the model takes no schema; it is told it in words");
            Ok(())
        }
        _ => Ok(()),
    }
}

/// Hints: they are dropped with a warning where they have no place.
pub fn sampling(
    request: &mut Request,
    from: &Traits,
    to: &Traits,
    target: &Target,
    losses: &mut Losses,
) {
    let none = "the backend's language has no such field";
    let mut json = |allowed: bool, path: &str, field: &mut Option<Json>, why: &str| {
        if !allowed && field.take().is_some() {
            losses.add(path, why);
        }
    };
    let sampling = &mut request.sampling;
    json(to.penalties, "frequency_penalty", &mut sampling.frequency_penalty, none);
    json(to.penalties, "presence_penalty", &mut sampling.presence_penalty, none);
    json(to.seed, "seed", &mut sampling.seed, none);
    json(to.logit_bias, "logit_bias", &mut sampling.logit_bias, none);
    json(to.top_k, "top_k", &mut sampling.top_k, none);
    json(to.metadata, "metadata", &mut request.metadata, none);
    if target.facts.sampling == Some(false) {
        let why = "the model takes its own sampling only";
        json(false, "temperature", &mut sampling.temperature, why);
        json(false, "top_p", &mut sampling.top_p, why);
        json(false, "top_k", &mut sampling.top_k, why);
    }
    let mut text = |allowed: bool, path: &str, field: &mut Option<String>| {
        if !allowed && field.take().is_some() {
            losses.add(path, none);
        }
    };
    text(to.verbosity, from.words.verbosity, &mut request.verbosity);
    text(to.user, from.words.user, &mut request.user);
    text(to.service_tier, "service_tier", &mut request.service_tier);
    if !to.cache_key {
        // It only says which requests begin alike.
        request.cache_key = None;
    }
    if !to.stop && !request.stop.is_empty() {
        request.stop.clear();
        losses.add(from.words.stop, none);
    }
    if !to.store && request.store.take() == Some(true) {
        losses.add("store", none);
    }
    if !to.parallel_tools && request.parallel_tools.take() == Some(false) {
        losses.add(from.words.parallel_tools, none);
    }
    output(request, from, to, target, losses);
    efforts(request, from, target, losses);
}

/// The limit of the answer, within what the model and its vendor take.
fn output(request: &mut Request, from: &Traits, to: &Traits, target: &Target, losses: &mut Losses) {
    let Some(wanted) = request.max_output else { return };
    let most = target.facts.max_output.unwrap_or(u64::MAX);
    let given = wanted.min(most).max(to.least_output);
    if given != wanted {
        let why = format!("the model takes {given} here");
        losses.add(from.words.max_output, why);
        request.max_output = Some(given);
    }
}

/// The model's own words for effort. A budget is within them too: the word that it amounts to is said
/// beside it.
fn efforts(request: &mut Request, from: &Traits, target: &Target, losses: &mut Losses) {
    let allowed = &target.facts.efforts;
    if allowed.is_empty() {
        return;
    }
    let reasoning = &mut request.reasoning;
    let off = reasoning.mode == Some(ReasoningMode::Off);
    let said = reasoning.effort.clone().or_else(|| off.then(|| "none".to_owned()));
    let of_budget = || reasoning.budget.map(|budget| effort::word(budget).to_owned());
    let Some(wanted) = said.clone().or_else(of_budget) else { return };
    let Some(given) = effort::nearest(&wanted, allowed) else { return };
    // A budget has no word of its own that could be lost, but that it is nothing.
    if given != wanted && (said.is_some() || wanted == "none") {
        losses.add(from.words.effort, format!("the model takes `{given}` here"));
    }
    if given != wanted || said.is_none() {
        reasoning.effort = Some(given.to_owned());
        if off {
            reasoning.mode = None;
        }
    }
}
